//! A simulated pool of a test's own.

use crate::run::{Output, Running};
use crate::xen::XenMachine;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use xapi_sim::{LabClient, Ports};

/// How long the simulator may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long an operation of the pool may take.
const TASK_LIMIT: Duration = Duration::from_secs(60);

/// Size of the disk of a template that nobody boots.
const BLANK_DISK_SIZE: u64 = 1 << 20;

/// What runs the delegates of a lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delegates {
    /// Guests in QEMU, booted from the built image.
    #[default]
    Guests,
    /// The appliance's worker as a process of the simulator: a job takes milliseconds, and no image is needed.
    Processes,
    /// Domains on a real Xen, by the word that `xapi-sim` has for their kind: `xen-pv`, `xen-pvh`, `xen-hvm`.
    Xen(&'static str),
}

impl Delegates {
    /// The simulator's word.
    fn word(self) -> &'static str {
        match self {
            Delegates::Guests => "qemu",
            Delegates::Processes => "process",
            Delegates::Xen(kind) => kind,
        }
    }
}

/// How a lab is started.
#[derive(Debug, Default)]
pub struct Options {
    /// What runs the delegates.
    pub delegates: Delegates,
    /// More arguments for `xapi-sim serve`.
    pub sim: Vec<String>,
    /// Leave the pool unknown to `abd`.
    pub without_pool: bool,
    /// Leave the template out of the pool.
    pub without_template: bool,
}

/// A pool, a state directory and a store, gone at the end of the test.
#[derive(Debug)]
pub struct Lab {
    dir: tempfile::TempDir,
    sim: Child,
    abd: PathBuf,
    delegates: Delegates,
    /// Where the pool listens.
    pub ports: Ports,
    control: LabClient,
    /// Let go of after the simulator has ended.
    xen: Option<XenMachine>,
}

/// A sample VM.
#[derive(Clone, Debug)]
pub struct Vm {
    /// Its name.
    pub name: String,
    /// Its uuid.
    pub uuid: String,
    /// Uuids of its disks.
    pub vdis: Vec<String>,
}

impl Lab {
    /// A pool that `abd` knows and that has the template; `None` with a reason where this machine cannot.
    pub fn start() -> Option<Self> {
        Self::with(Options::default())
    }

    /// A pool whose delegates are processes, with more arguments for `xapi-sim serve`.
    pub fn quick(sim: &[&str]) -> Option<Self> {
        let sim = sim.iter().map(|argument| (*argument).to_owned()).collect();
        Self::with(Options { delegates: Delegates::Processes, sim, ..Options::default() })
    }

    /// A pool as the options say.
    pub fn with(options: Options) -> Option<Self> {
        let (Some(abd), Some(sim)) = (variable("ABD_BIN"), variable("ABD_SIM_BIN")) else {
            println!("skipped: ABD_BIN and ABD_SIM_BIN are not set; run scripts/test");
            return None;
        };
        let xen = match options.delegates {
            Delegates::Xen(_) => Some(XenMachine::take()?),
            Delegates::Guests | Delegates::Processes => None,
        };
        let dir = tempfile::tempdir().expect("a directory");
        let port_file = dir.path().join("ports.json");
        let log = fs::File::create(dir.path().join("sim.log")).expect("a log");
        let mut sim = Command::new(sim)
            .args(["serve", "--login-delay", "0", "--dir"])
            .arg(dir.path().join("pool"))
            .arg("--port-file")
            .arg(&port_file)
            .args(["--delegates", options.delegates.word()])
            .args(xen.iter().flat_map(|xen| [Path::new("--xen"), &xen.directory]))
            .args(&options.sim)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("xapi-sim starts");
        let by = Instant::now() + START_LIMIT;
        let ports: Ports = loop {
            match fs::read_to_string(&port_file) {
                Ok(text) => break serde_json::from_str(&text).expect("the simulator's own file"),
                Err(_) => assert!(Instant::now() < by, "the simulator does not start"),
            }
            let ended = sim.try_wait().expect("a child");
            assert!(
                ended.is_none(),
                "the simulator ended: {:?}",
                fs::read_to_string(dir.path().join("sim.log"))
            );
            std::thread::sleep(Duration::from_millis(20));
        };
        let control = LabClient::new(ports.lab);
        let lab = Self { dir, sim, abd, delegates: options.delegates, ports, control, xen };
        if options.delegates == Delegates::Processes {
            lab.pack_blank_template();
        }
        if !options.without_pool {
            lab.add_pool().ok();
        }
        if !options.without_template {
            lab.abd(&["template", "import", &lab.template()]).ok();
        }
        Some(lab)
    }

    /// Adds the pool with the right password and certificate.
    pub fn add_pool(&self) -> Output {
        let (url, fingerprint) = (self.url(), self.ports.fingerprint.clone());
        let password = self.ports.password_file.display().to_string();
        self.abd(&self.pool_arguments(&url, &fingerprint, &password))
    }

    /// `abd pool add` with a lab's addresses.
    pub fn pool_arguments<'a>(&self, url: &'a str, fingerprint: &'a str, password: &'a str) -> Vec<&'a str> {
        vec![
            "pool",
            "add",
            url,
            "--user",
            "root",
            "--password-file",
            password,
            "--fingerprint",
            fingerprint,
            "--name",
            "lab",
            "--advertise",
            "10.0.2.2",
            "--listen",
            "127.0.0.1:0",
        ]
    }

    /// Address of the pool.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.https)
    }

    /// Packs a template whose disk is blank: a delegate that is a process boots from nothing.
    fn pack_blank_template(&self) {
        let disk = self.path("blank.img");
        let file = fs::File::create(&disk).expect("a file");
        file.set_len(BLANK_DISK_SIZE).expect("a size");
        let disk = disk.display().to_string();
        self.abd(&["template", "build", "--disk", &disk, "--out", &self.template()]).ok();
    }

    /// The template's file.
    pub fn template(&self) -> String {
        if self.delegates == Delegates::Processes {
            return self.path("blank.xva").display().to_string();
        }
        let directory = variable("ABD_IMAGE_DIR").expect("scripts/test sets ABD_IMAGE_DIR");
        directory.join("abd.xva").display().to_string()
    }

    /// A path in the test's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The store.
    pub fn store(&self) -> PathBuf {
        self.path("state").join("store")
    }

    /// Leaves everything on disk when the test ends, for whoever looks into its failure. Gives the directory.
    pub fn keep(&mut self) -> &Path {
        self.dir.disable_cleanup(true);
        self.dir.path()
    }

    /// Runs `abd --json` to its end.
    pub fn abd(&self, arguments: &[&str]) -> Output {
        self.spawn(arguments).finish()
    }

    /// Starts `abd --json`.
    pub fn spawn(&self, arguments: &[&str]) -> Running {
        Running::new(self.command(arguments).spawn().expect("abd starts"))
    }

    /// `abd --json` with this lab's directories, ready to start.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.plain_command(&["--json"]);
        command.args(arguments);
        command
    }

    /// Runs what [`Lab::command`] made, perhaps with more, to its end.
    pub fn finish(&self, command: Command) -> Output {
        self.start_command(command).finish()
    }

    /// Starts what [`Lab::command`] made, perhaps with more.
    pub fn start_command(&self, mut command: Command) -> Running {
        Running::new(command.spawn().expect("abd starts"))
    }

    /// The same as [`Lab::command`] for people: without `--json`.
    pub fn plain_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.abd);
        command
            .args(arguments)
            .env("ABD_STATE_DIR", self.path("state"))
            .env_remove("ABD_STORE")
            .env_remove("ABD_PASSWORD")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Makes a VM whose disks have these sizes, all zeros.
    pub fn vm(&self, name: &str, sizes: &[u64]) -> Vm {
        self.vm_with(name, sizes, false)
    }

    /// Makes a VM that is switched on or off.
    pub fn vm_with(&self, name: &str, sizes: &[u64], running: bool) -> Vm {
        let disks: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(at, size)| json!({"name": format!("{name} disk {at}"), "size": size}))
            .collect();
        self.vm_of(&json!({"name": name, "disks": disks, "running": running}))
    }

    /// Makes a VM as the control port describes it.
    pub fn vm_of(&self, wanted: &Value) -> Vm {
        let made = self.control.json("POST", "/lab/vm", Some(wanted)).expect("the VM is made");
        let vdis = made["vdis"].as_array().expect("a list").iter().map(string).collect();
        Vm { name: string(&wanted["name"]), uuid: string(&made["uuid"]), vdis }
    }

    /// Waits until the pool has done what it was asked to do in the background.
    #[track_caller]
    pub fn await_tasks(&self) {
        let by = Instant::now() + TASK_LIMIT;
        let is_running =
            |task: &Value| task["status"] == "pending" && string(&task["name_label"]).starts_with("Async.");
        while self.inventory()["task"].as_array().expect("a list").iter().any(is_running) {
            assert!(Instant::now() < by, "a task does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Writes to a disk as its VM would.
    pub fn write(&self, vdi: &str, offset: u64, bytes: &[u8]) {
        self.control.bytes("PUT", &format!("/lab/vdi/{vdi}?offset={offset}"), bytes).expect("written");
    }

    /// Grows a disk.
    pub fn resize(&self, vdi: &str, size: u64) {
        self.control.json("POST", &format!("/lab/vdi/{vdi}/resize?size={size}"), None).expect("resized");
    }

    /// The raw file behind a disk.
    pub fn disk_file(&self, vdi: &str) -> PathBuf {
        let answer = self.control.json("GET", &format!("/lab/vdi/{vdi}/path"), None).expect("a path");
        string(&answer["path"]).into()
    }

    /// Size and digest of a disk; blocks of zeros do not count, so that huge disks are quick.
    pub fn digest(&self, vdi: &str) -> Value {
        self.control.json("GET", &format!("/lab/vdi/{vdi}/digest?sparse=1"), None).expect("a digest")
    }

    /// Posts to the control port.
    pub fn post(&self, path: &str, body: Option<&Value>) -> Value {
        self.control.json("POST", path, body).expect("the control port answers")
    }

    /// Asks the control port.
    pub fn get(&self, path: &str) -> Value {
        self.control.json("GET", path, None).expect("the control port answers")
    }

    /// The event log.
    pub fn log(&self) -> Vec<Value> {
        self.log_since(0)
    }

    /// The event log from an entry on, by its number.
    pub fn log_since(&self, entry: u64) -> Vec<Value> {
        self.control.lines(&format!("/lab/log?since={entry}")).expect("the log")
    }

    /// Everything in the pool.
    pub fn inventory(&self) -> Value {
        self.control.json("GET", "/lab/inventory", None).expect("the inventory")
    }

    /// Uuid of the delegate that exists now.
    #[track_caller]
    pub fn delegate(&self) -> String {
        let inventory = self.inventory();
        let vms = inventory["VM"].as_array().expect("a list");
        let found = vms.iter().find(|vm| {
            vm["name_label"].as_str().is_some_and(|name| name.starts_with("abd-"))
                && vm["is_a_snapshot"] == false
        });
        string(&found.expect("a delegate exists")["uuid"])
    }

    /// Backs up VMs and gives the result.
    pub fn backup(&self, vms: &[&Vm]) -> Output {
        let names = vms.iter().map(|vm| vm.name.as_str());
        let arguments: Vec<&str> = ["backup"].into_iter().chain(names).collect();
        self.abd(&arguments)
    }

    /// Restores a VM's newest restore point and fails unless every byte of every disk is the one it has now.
    #[track_caller]
    pub fn assert_restores(&self, vm: &Vm) -> Output {
        let list = self.abd(&["list", &vm.name]).ok();
        let points = list.answer()["points"].as_array().expect("a list").clone();
        let point = string(&points.last().expect("a restore point")["id"]);
        let output = self.abd(&["restore", &point]).ok();
        let disks = output.job(&vm.name)["disks"].as_array().expect("a list").clone();
        assert_eq!(disks.len(), vm.vdis.len());
        for (vdi, restored) in vm.vdis.iter().zip(&disks) {
            assert_eq!(self.digest(&string(&restored["vdi"])), self.digest(vdi), "{restored}");
        }
        output
    }

    /// Fails unless the pool holds what it held at `before`, but for our references and restored disks.
    #[track_caller]
    pub fn assert_clean(&self, before: &Value) {
        let after = self.inventory();
        for (class, items) in after.as_object().expect("an object") {
            let old: BTreeSet<_> = before[class]
                .as_array()
                .expect("the same classes")
                .iter()
                .map(|item| string(&item["uuid"]))
                .collect();
            for item in items.as_array().expect("a list") {
                if item["managed"] == false {
                    // A node of the storage's own: it comes and goes as the storage likes.
                    continue;
                }
                let ours = class == "VDI"
                    && (item["type"] == "cbt_metadata" || !item["other_config"]["abd:restored"].is_null())
                    && item["other_config"]["abd:job"].is_null() == (item["type"] != "cbt_metadata");
                assert!(ours || old.contains(&string(&item["uuid"])), "left in the pool: {class} {item:#}");
            }
            let now: BTreeSet<_> =
                items.as_array().expect("a list").iter().map(|item| string(&item["uuid"])).collect();
            let lost: Vec<_> = old.difference(&now).collect();
            assert!(class == "VDI" || lost.is_empty(), "lost from the pool: {class} {lost:?}");
        }
    }

    /// What all guests so far wrote to their consoles.
    pub fn consoles(&self) -> String {
        let files = consoles(&self.path("pool"));
        files
            .iter()
            .map(|file| String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned())
            .collect()
    }

    /// Fails unless the store is whole.
    #[track_caller]
    pub fn assert_store_whole(&self) {
        let output = self.abd(&["verify", "--read-data"]).ok();
        assert_eq!(output.answer()["clean"], true);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("sim.log")).unwrap_or_default();
            println!("--- simulator\n{log}");
            if let Some(xen) = &self.xen {
                println!("--- Xen\n{}", xen.console());
            }
            for console in consoles(&self.path("pool")) {
                println!("--- {}\n{}", console.display(), fs::read_to_string(&console).unwrap_or_default());
            }
        }
        let _ = self.control.json("POST", "/lab/shutdown", None);
        let by = Instant::now() + START_LIMIT;
        while Instant::now() < by {
            if !matches!(self.sim.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.sim.kill();
        let _ = self.sim.wait();
    }
}

fn consoles(directory: &Path) -> Vec<PathBuf> {
    let Ok(items) = fs::read_dir(directory) else { return Vec::new() };
    let paths = items.flatten().map(|item| item.path());
    paths
        .flat_map(|path| {
            if path.is_dir() {
                consoles(&path)
            } else {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                if name.contains("console") || name.contains("serial") { vec![path] } else { Vec::new() }
            }
        })
        .collect()
}

pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn string(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
