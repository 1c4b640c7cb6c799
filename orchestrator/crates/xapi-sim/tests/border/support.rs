//! A simulator per test and a client that shares no code with it.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use xapi_sim::{Config, LabClient, Simulator};

pub const NULL: &str = "OpaqueRef:NULL";

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running simulator in a directory of its own.
pub struct Lab {
    runtime: Runtime,
    simulator: Option<Simulator>,
    pub dir: TempDir,
}

/// What came back over HTTP.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<String> {
        let line = |l: &str| {
            l.split_once(':').filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned())
        };
        self.head.lines().find_map(line)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Lab {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::new(dir.path());
        config.data_destroy_wait = Duration::from_millis(100);
        change(&mut config);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let simulator = runtime.block_on(Simulator::start(config)).unwrap();
        Self { runtime, simulator: Some(simulator), dir }
    }

    pub fn ports(&self) -> &xapi_sim::Ports {
        self.simulator.as_ref().unwrap().ports()
    }

    pub fn control(&self) -> LabClient {
        LabClient::new(self.ports().lab)
    }

    /// One exchange over plain HTTP; the answer's body ends with its length or the connection.
    pub fn http(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        exchange(self.ports().http, method, target, headers, body)
    }

    pub fn login(&self) -> Client<'_> {
        self.login_as("root", "password")
    }

    pub fn login_as(&self, user: &str, password: &str) -> Client<'_> {
        let session = self.call_raw("session.login_with_password", json!([user, password])).unwrap();
        Client { lab: self, session: session.as_str().unwrap().to_owned() }
    }

    /// A JSON-RPC 2.0 call; the error is code and parameters.
    pub fn call_raw(&self, method: &str, params: Value) -> Result<Value, Vec<String>> {
        let request = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1});
        let answer = self.http("POST", "/jsonrpc", &[], request.to_string().as_bytes());
        let reply: Value =
            serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}", answer.text()));
        match reply.get("error") {
            None => Ok(reply["result"].clone()),
            // Releases before 7.3 answer version 2 calls with the errors of version 1.
            Some(Value::Array(list)) => Err(list.iter().map(|v| v.as_str().unwrap().to_owned()).collect()),
            Some(error) => {
                let mut list = vec![error["message"].as_str().unwrap().to_owned()];
                list.extend(error["data"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()));
                Err(list)
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let simulator = self.simulator.take().unwrap();
        self.runtime.block_on(simulator.shutdown());
    }
}

/// One exchange with a port of this machine.
pub fn exchange(port: u16, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    exchange_at(([127, 0, 0, 1], port).into(), method, target, headers, body)
}

/// One exchange with an address.
pub fn exchange_at(
    to: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = TcpStream::connect(to).unwrap();
    let mut head = format!("{method} {target} HTTP/1.1\r\nhost: lab\r\nconnection: close\r\n");
    if !headers
        .iter()
        .any(|(n, _)| n.eq_ignore_ascii_case("content-length") || n.eq_ignore_ascii_case("transfer-encoding"))
    {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
    // A server that refuses early may close while we still send; its answer is what matters.
    let _ = stream.write_all(body);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    read_answer(stream)
}

/// Waits for an entry of the log and answers it.
pub fn wait_for_log(lab: &Lab, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    let by = Instant::now() + PATIENCE;
    let mut since = 0;
    loop {
        for entry in lab.control().lines(&format!("/lab/log?since={since}")).unwrap() {
            since = entry["seq"].as_u64().unwrap() + 1;
            if wanted(&entry) {
                return entry;
            }
        }
        assert!(Instant::now() < by, "the log does not say it within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

pub fn read_answer(stream: impl Read) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line == "\r\n" {
            break;
        }
        head.push_str(&line);
    }
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    let _ = reader.read_to_end(&mut body);
    Answer { status, head, body }
}

/// A session.
pub struct Client<'a> {
    lab: &'a Lab,
    pub session: String,
}

impl Client<'_> {
    /// A call; `params` is the array without the session.
    pub fn try_call(&self, method: &str, params: Value) -> Result<Value, Vec<String>> {
        let mut all = vec![json!(self.session)];
        all.extend(params.as_array().unwrap().iter().cloned());
        self.lab.call_raw(method, Value::Array(all))
    }

    pub fn call(&self, method: &str, params: Value) -> Value {
        self.try_call(method, params.clone()).unwrap_or_else(|e| panic!("{method} {params}: {e:?}"))
    }

    /// The reference or string a call answers.
    pub fn text(&self, method: &str, params: Value) -> String {
        self.call(method, params).as_str().unwrap().to_owned()
    }

    /// The code and parameters of a call that must fail.
    pub fn refused(&self, method: &str, params: Value) -> Vec<String> {
        self.try_call(method, params.clone()).expect_err(&format!("{method} {params} was accepted"))
    }

    pub fn code(&self, method: &str, params: Value) -> String {
        self.refused(method, params)[0].clone()
    }

    /// A VM of the lab: reference, then the references of its disks.
    pub fn vm(&self, wanted: Value) -> (String, Vec<String>) {
        let made = self.lab.control().json("POST", "/lab/vm", Some(&wanted)).unwrap();
        let vdis = made["vdis"].as_array().unwrap().iter();
        let vdis = vdis.map(|uuid| self.text("VDI.get_by_uuid", json!([uuid]))).collect();
        (made["ref"].as_str().unwrap().to_owned(), vdis)
    }

    pub fn write(&self, vdi: &str, offset: u64, bytes: &[u8]) {
        let path = format!("/lab/vdi/{vdi}?offset={offset}");
        self.lab.control().bytes("PUT", &path, bytes).unwrap();
    }

    pub fn read(&self, vdi: &str, offset: u64, length: u64) -> Vec<u8> {
        self.lab
            .control()
            .bytes("GET", &format!("/lab/vdi/{vdi}?offset={offset}&length={length}"), &[])
            .unwrap()
    }

    /// Blocks whose bit is set, read most significant bit first from base64 decoded by hand.
    pub fn changed(&self, from: &str, to: &str) -> Vec<u64> {
        let bitmap = base64(&self.text("VDI.list_changed_blocks", json!([from, to])));
        let set = |(byte, value): (usize, &u8)| {
            let (byte, value) = (byte as u64, *value);
            (0..8).filter(move |bit| value & (0x80 >> bit) != 0).map(move |bit| byte * 8 + bit)
        };
        bitmap.iter().enumerate().flat_map(set).collect()
    }

    /// The disks of a snapshot VM by the live disk they belong to.
    pub fn snapshot_disk(&self, snapshot: &str, live: &str) -> String {
        let vbds = self.call("VM.get_VBDs", json!([snapshot]));
        let disks = vbds.as_array().unwrap().iter().map(|vbd| self.text("VBD.get_VDI", json!([vbd])));
        let found: Vec<String> =
            disks.filter(|vdi| self.text("VDI.get_snapshot_of", json!([vdi])) == live).collect();
        assert_eq!(found.len(), 1);
        found[0].clone()
    }

    pub fn vbd(&self, vm: &str, vdi: &str, position: &str, mode: &str) -> Value {
        json!({"VM": vm, "VDI": vdi, "userdevice": position, "bootable": false, "mode": mode, "type": "Disk",
            "empty": false, "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {}})
    }

    /// Waits for a task and answers its record.
    pub fn wait(&self, task: &str) -> Value {
        let mut token = String::new();
        loop {
            let record = self.call("task.get_record", json!([task]));
            if record["status"] != "pending" && record["status"] != "cancelling" {
                return record;
            }
            let batch = self.call("event.from", json!([[format!("task/{task}")], token, 10.0]));
            token = batch["token"].as_str().unwrap().to_owned();
        }
    }
}

pub fn base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut out) = (0u32, 0, Vec::new());
    for c in text.bytes().filter(|c| *c != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|a| *a == c).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    out
}
