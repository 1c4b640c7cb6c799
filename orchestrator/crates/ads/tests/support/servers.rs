//! S3 servers that none of us wrote, as processes of a test, and a proxy that breaks what passes.
//!
//! `scripts/lib/foreign-clients` installs them below `ABD_FOREIGN_DIR`: `rclone serve s3`, which ignores conditional
//! writes, and SeaweedFS, which keeps objects in volumes of its own.

#![allow(dead_code, reason = "every test file uses another part of it")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const ACCESS_KEY: &str = "test-key";
pub const SECRET_KEY: &str = "test-secret";
pub const BUCKET: &str = "bucket";
/// SeaweedFS takes four seconds alone, and more beside other tests.
const START_LIMIT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A program that serves S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Rclone,
    Seaweed,
}

/// A server that runs; ended with this.
#[derive(Debug)]
pub struct Server {
    process: Child,
    pub address: SocketAddr,
    dir: TempDir,
}

impl Server {
    /// Starts one, or says why it cannot run here.
    pub fn start(kind: Kind) -> Option<Self> {
        Self::start_with(kind, &[])
    }

    /// [`start`](Self::start) with more arguments.
    pub fn start_with(kind: Kind, more: &[&str]) -> Option<Self> {
        let Some(dir) = std::env::var_os("ABD_FOREIGN_DIR") else {
            println!("skipped: ABD_FOREIGN_DIR is not set");
            return None;
        };
        let name = match kind {
            Kind::Rclone => "rclone",
            Kind::Seaweed => "weed",
        };
        let program = PathBuf::from(dir).join("venv/bin").join(name);
        if !program.exists() {
            println!("skipped: {} is not installed", program.display());
            return None;
        }
        // Ports that are free now; who takes one of them meanwhile makes the server end, and another try is made.
        for _ in 0..3 {
            let (dir, ports) = (TempDir::new().expect("a directory"), free_ports());
            let mut command = match kind {
                Kind::Rclone => rclone(&program, &dir, &ports),
                Kind::Seaweed => seaweed(&program, &dir, &ports),
            };
            let log = File::create(dir.path().join("log")).expect("a log");
            command.args(more).stdout(log.try_clone().expect("a log")).stderr(log).stdin(Stdio::null());
            let process = command.spawn().expect("the server starts");
            let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
            let mut server = Self { process, address, dir };
            if server.wait_until_up(kind, ports[1]) {
                return Some(server);
            }
            let log = std::fs::read_to_string(server.dir.path().join("log")).unwrap_or_default();
            println!("{kind:?} did not come up:\n{log}");
        }
        panic!("{kind:?} is installed and does not start")
    }

    /// The address of a store on it.
    pub fn store(&self, prefix: &str) -> String {
        store_at(self.address, prefix)
    }

    fn wait_until_up(&mut self, kind: Kind, filer: u16) -> bool {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if self.process.try_wait().is_ok_and(|ended| ended.is_some()) {
                return false;
            }
            // Any answer will do: it is up.
            let made = match kind {
                Kind::Rclone => true,
                Kind::Seaweed => {
                    let answer = request(filer, &format!("POST /buckets/{BUCKET}/ HTTP/1.0\r\n"));
                    // Made now, or by the try before.
                    answer.contains(" 201 ") || answer.contains(" 409 ")
                }
            };
            if made && request(self.address.port(), "GET / HTTP/1.0\r\n").starts_with("HTTP/1.") {
                return true;
            }
            std::thread::sleep(POLL);
        }
        false
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A store's address on a server at this address.
pub fn store_at(address: SocketAddr, prefix: &str) -> String {
    format!("s3://{BUCKET}/{prefix}?endpoint=http://{address}&region=us-east-1")
}

fn rclone(program: &PathBuf, dir: &TempDir, ports: &[u16]) -> Command {
    let data = dir.path().join("data");
    std::fs::create_dir_all(data.join(BUCKET)).expect("a bucket");
    let mut command = Command::new(program);
    command.args(["serve", "s3", "--addr", &format!("127.0.0.1:{}", ports[0])]);
    command.args(["--auth-key", &format!("{ACCESS_KEY},{SECRET_KEY}"), "--vfs-cache-mode", "off"]);
    command.arg("--config").arg(dir.path().join("none.conf")).arg(data);
    command
}

fn seaweed(program: &PathBuf, dir: &TempDir, ports: &[u16]) -> Command {
    let data = dir.path().join("data");
    std::fs::create_dir_all(&data).expect("a directory");
    let config = dir.path().join("s3.json");
    let identity = format!(
        r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
    );
    std::fs::write(&config, identity).expect("written");
    let mut command = Command::new(program);
    command
        .args(["-logtostderr=true", "server", "-ip", "127.0.0.1", "-ip.bind", "127.0.0.1", "-dir"])
        .arg(data);
    command.args(["-volume.max", "30", "-master.volumeSizeLimitMB", "64", "-master.telemetry=false"]);
    let mut port = |option: &str, at: usize| {
        command.args([option, &ports[at].to_string()]);
    };
    port("-s3.port", 0);
    port("-filer.port", 1);
    port("-s3.port.grpc", 2);
    port("-filer.port.grpc", 3);
    port("-master.port", 4);
    port("-master.port.grpc", 5);
    port("-volume.port", 6);
    port("-volume.port.grpc", 7);
    command.args(["-s3.port.iceberg", "0", "-s3.port.lance", "0", "-filer", "-s3", "-s3.config"]).arg(config);
    command
}

pub fn free_ports() -> Vec<u16> {
    let held: Vec<TcpListener> =
        (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    held.iter().map(|listener| listener.local_addr().expect("bound").port()).collect()
}

/// The answer to a request without a body; empty where there is none.
pub fn request(port: u16, line: &str) -> String {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(format!("{line}Host: localhost\r\nContent-Length: 0\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    ask().unwrap_or_default()
}

/// What happens to a request that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// `500 InternalError`; the server never sees it.
    Internal,
    /// `503 SlowDown`; the server never sees it.
    SlowDown,
    /// The answer ends in the middle.
    Cut,
    /// The server does what was asked, and its answer is lost.
    LostAnswer,
}

/// A proxy that lets every request pass but every n-th, whose trouble is the next of a list.
#[derive(Debug)]
pub struct Proxy {
    pub address: SocketAddr,
    pub struck: Arc<AtomicU64>,
}

impl Proxy {
    /// Between a client and `server`. Its threads end with the test.
    pub fn start(server: SocketAddr, every: u64, troubles: &'static [Trouble]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (count, struck) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let told = struck.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (count, struck) = (count.clone(), told.clone());
                std::thread::spawn(move || {
                    let now = count.fetch_add(1, Ordering::SeqCst) + 1;
                    let trouble = now.is_multiple_of(every).then(|| {
                        let number = struck.fetch_add(1, Ordering::SeqCst);
                        troubles[usize::try_from(number).expect("few") % troubles.len()]
                    });
                    // A connection that breaks is what this is for.
                    let _ = pass(client, server, trouble);
                });
            }
        });
        Self { address, struck }
    }
}

/// Passes one request and its answer; then both connections end.
fn pass(mut client: TcpStream, server: SocketAddr, trouble: Option<Trouble>) -> std::io::Result<()> {
    let Some(request) = read_request(&mut client)? else { return Ok(()) };
    let refusal = |status: &str, code: &str| {
        let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    };
    match trouble {
        Some(Trouble::Internal) => {
            return client.write_all(refusal("500 Internal Server Error", "InternalError").as_bytes());
        }
        Some(Trouble::SlowDown) => {
            return client.write_all(refusal("503 Service Unavailable", "SlowDown").as_bytes());
        }
        _ => {}
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(&request)?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer)?;
    match trouble {
        Some(Trouble::LostAnswer) => Ok(()),
        Some(Trouble::Cut) => client.write_all(&answer[..answer.len() / 2]),
        _ => client.write_all(&answer),
    }
}

/// A request with its body, and with the wish that the connection end after it.
fn read_request(client: &mut TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 1 << 16];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        match client.read(&mut piece)? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |text| text.trim().parse().expect("a number"));
    while bytes.len() < end + length {
        match client.read(&mut piece)? {
            0 => return Ok(None),
            count => bytes.extend_from_slice(&piece[..count]),
        }
    }
    bytes.splice(end - 2..end - 2, b"Connection: close\r\n".iter().copied());
    Ok(Some(bytes))
}
