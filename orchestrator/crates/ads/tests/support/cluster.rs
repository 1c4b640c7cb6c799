//! SeaweedFS as several nodes on loopback: a master, three volume servers that keep each object twice, a filer, and S3 on it.
//!
//! A volume server can be stopped in between: what it held is on another one, and what comes goes to the other two.

use super::servers::{ACCESS_KEY, BUCKET, SECRET_KEY, free_ports, request, store_at};
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Six programs, one after the other, beside other tests.
const START_LIMIT: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
const NODES: usize = 3;

/// A cluster that runs; ended with this.
#[derive(Debug)]
pub struct Cluster {
    processes: Vec<Child>,
    nodes: Vec<Option<Child>>,
    pub address: SocketAddr,
    dir: TempDir,
}

/// Ports of one program: HTTP and gRPC.
#[derive(Clone, Copy)]
struct Ports(u16, u16);

impl Ports {
    fn of(ports: &[u16], at: usize) -> Self {
        Self(ports[2 * at], ports[2 * at + 1])
    }

    /// As other nodes are told.
    fn address(self) -> String {
        format!("127.0.0.1:{}.{}", self.0, self.1)
    }
}

impl Cluster {
    /// Starts one, or says why it cannot run here.
    pub fn start() -> Option<Self> {
        let Some(dir) = std::env::var_os("ABD_FOREIGN_DIR") else {
            println!("skipped: ABD_FOREIGN_DIR is not set");
            return None;
        };
        let program = PathBuf::from(dir).join("venv/bin/weed");
        if !program.exists() {
            println!("skipped: {} is not installed", program.display());
            return None;
        }
        // Ports that are free now; who takes one of them meanwhile makes a program end, and another try is made.
        for _ in 0..3 {
            match Self::try_start(&program) {
                Ok(cluster) => return Some(cluster),
                Err(log) => println!("the cluster did not come up:\n{log}"),
            }
        }
        panic!("SeaweedFS is installed and does not start")
    }

    fn try_start(program: &Path) -> Result<Self, String> {
        let dir = TempDir::new().expect("a directory");
        let ports = [free_ports(), free_ports()].concat();
        let (master, filer, s3) = (Ports::of(&ports, 0), Ports::of(&ports, 1), Ports::of(&ports, 2));
        let address = SocketAddr::from(([127, 0, 0, 1], s3.0));
        let mut cluster = Self { processes: Vec::new(), nodes: Vec::new(), address, dir };
        let started = cluster.spawn(program, "master", |command, data| {
            command.args(["-defaultReplication", "001", "-volumeSizeLimitMB", "64", "-telemetry=false"]);
            command.args(["-mdir"]).arg(data).args(["-peers", "none"]);
            listen(command, master);
        });
        cluster.processes.push(started);
        cluster.await_answer(master.0, "GET /cluster/status HTTP/1.0\r\n", |text| {
            text.contains("\"IsLeader\":true")
        })?;
        for node in 0..NODES {
            let own = Ports::of(&ports, 3 + node);
            let started = cluster.spawn(program, &format!("volume-{node}"), |command, data| {
                command.args(["-max", "20", "-master", &master.address(), "-dir"]).arg(data);
                listen(command, own);
            });
            cluster.nodes.push(Some(started));
        }
        let urls: Vec<String> =
            (0..NODES).map(|node| format!("127.0.0.1:{}", Ports::of(&ports, 3 + node).0)).collect();
        cluster.await_answer(master.0, "GET /dir/status HTTP/1.0\r\n", |text| {
            urls.iter().all(|url| text.contains(url))
        })?;
        let config = cluster.dir.path().join("s3.json");
        let identity = format!(
            r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        std::fs::write(&config, identity).expect("written");
        let started = cluster.spawn(program, "filer", |command, data| {
            command
                .args(["-master", &master.address(), "-defaultReplicaPlacement", "001", "-defaultStoreDir"])
                .arg(data);
            listen(command, filer);
        });
        cluster.processes.push(started);
        let make = format!("POST /buckets/{BUCKET}/ HTTP/1.0\r\n");
        cluster.await_answer(filer.0, &make, |text| text.contains(" 201 ") || text.contains(" 409 "))?;
        // A program of its own: a filer that is started with `-s3` but without `weed server` was seen not to open the port.
        let started = cluster.spawn(program, "s3", |command, _| {
            command.args([
                "-ip.bind",
                "127.0.0.1",
                "-port",
                &s3.0.to_string(),
                "-port.grpc",
                &s3.1.to_string(),
            ]);
            command.args(["-port.iceberg", "0", "-port.lance", "0", "-filer", &filer.address(), "-config"]);
            command.arg(&config);
        });
        cluster.processes.push(started);
        cluster.await_answer(s3.0, "GET / HTTP/1.0\r\n", |text| text.starts_with("HTTP/1."))?;
        Ok(cluster)
    }

    fn spawn(&self, program: &Path, name: &str, arguments: impl FnOnce(&mut Command, &Path)) -> Child {
        let data = self.dir.path().join(name);
        std::fs::create_dir_all(&data).expect("a directory");
        let log = File::create(self.dir.path().join(format!("{name}.log"))).expect("a log");
        let mut command = Command::new(program);
        command.arg("-logtostderr=true").arg(name.split('-').next().expect("a word"));
        arguments(&mut command, &data);
        command.stdout(log.try_clone().expect("a log")).stderr(log).stdin(Stdio::null());
        command.spawn().expect("it starts")
    }

    fn await_answer(&mut self, port: u16, line: &str, wanted: impl Fn(&str) -> bool) -> Result<(), String> {
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            let ended = |child: &mut Child| child.try_wait().is_ok_and(|ended| ended.is_some());
            if self.processes.iter_mut().chain(self.nodes.iter_mut().flatten()).any(ended) {
                break;
            }
            if wanted(&request(port, line)) {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        let logs = std::fs::read_dir(self.dir.path()).expect("a directory").flatten();
        let logs = logs.filter(|entry| entry.path().extension().is_some_and(|end| end == "log"));
        Err(logs.map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default()).collect())
    }

    /// The address of a store on it.
    pub fn store(&self, prefix: &str) -> String {
        store_at(self.address, prefix)
    }

    /// Kills a volume server, as a power cut would.
    pub fn stop_node(&mut self, node: usize) {
        if let Some(mut process) = self.nodes[node].take() {
            process.kill().expect("it runs");
            process.wait().expect("it was started here");
        }
    }
}

fn listen(command: &mut Command, ports: Ports) {
    command.args(["-ip", "127.0.0.1", "-ip.bind", "127.0.0.1"]);
    command.args(["-port", &ports.0.to_string(), "-port.grpc", &ports.1.to_string()]);
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().chain(self.nodes.iter_mut().flatten()) {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
