//! A store for several machines: `abd serve`, and orchestrators that use it over TLS.

use e2e::{Lab, Output, Running, Vm, noise, text};
use serde_json::Value;
use std::fs::File;
use std::path::PathBuf;

/// `abd serve` on a machine of its own: another state directory, and a store that nobody else sees.
struct Server<'a> {
    lab: &'a Lab,
    running: Option<Running>,
    /// Where it listens; the same after it was started anew.
    address: String,
    key: String,
}

impl<'a> Server<'a> {
    fn start(lab: &'a Lab, options: &[&str]) -> Self {
        let mut server = Self { lab, running: None, address: "127.0.0.1:0".into(), key: String::new() };
        server.run(&[&["--init-store"], options].concat());
        server
    }

    fn store(&self) -> PathBuf {
        self.lab.path("vault/store")
    }

    fn run(&mut self, options: &[&str]) {
        let address = self.address.clone();
        let mut command = self.lab.command(&["serve", "--listen", &address]);
        command.args(options).env("ABD_STATE_DIR", self.lab.path("vault"));
        command.stderr(
            File::options().append(true).create(true).open(self.lab.path("serve.log")).expect("a log"),
        );
        let mut running = self.lab.start_command(command);
        let serving = running.until("it serves", |event| event["event"] == "serving");
        self.running = Some(running);
        self.address = serving["addresses"][0].as_str().expect("an address").to_owned();
        self.key = serving["key"].as_str().expect("a key").to_owned();
    }

    /// `abd` on the server's machine.
    fn abd(&self, arguments: &[&str]) -> Output {
        let mut command = self.lab.command(arguments);
        command.env("ABD_STATE_DIR", self.lab.path("vault"));
        self.lab.finish(command)
    }

    fn place(&self) -> String {
        format!("abd://{}?key={}", self.address, self.key)
    }

    fn kill(&mut self) {
        self.running.take().expect("it runs").kill();
    }

    /// Ends it as systemd does.
    fn terminate(&mut self) {
        let running = self.running.take().expect("it runs");
        let ended = std::process::Command::new("kill").arg(running.id().to_string()).status();
        assert!(ended.expect("kill").success());
        running.finish().ok();
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill();
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.lab.path("serve.log")).unwrap_or_default();
            println!("--- abd serve\n{log}");
        }
    }
}

/// A machine that uses the server: a lab's own, or another state directory in it.
struct Machine<'a> {
    lab: &'a Lab,
    state: &'static str,
    place: String,
}

impl<'a> Machine<'a> {
    fn new(lab: &'a Lab, state: &'static str, server: &Server) -> Self {
        Self { lab, state, place: server.place() }
    }

    /// With its key known to the server.
    fn known(lab: &'a Lab, state: &'static str, server: &Server, name: &str, role: &str) -> Self {
        let machine = Self::new(lab, state, server);
        let key =
            machine.abd(&["store", "client-key"]).ok().answer()["key"].as_str().expect("a key").to_owned();
        server.abd(&["serve", "client", "add", name, "--role", role, "--key", &key]).ok();
        machine
    }

    fn start(&self, arguments: &[&str]) -> Running {
        let mut command = self.lab.command(arguments);
        command.env("ABD_STORE", &self.place).env("ABD_STATE_DIR", self.lab.path(self.state));
        self.lab.start_command(command)
    }

    fn abd(&self, arguments: &[&str]) -> Output {
        self.start(arguments).finish()
    }

    fn newest(&self, vm: &Vm) -> String {
        let list = self.abd(&["list", &vm.name]).ok();
        let points = list.answer()["points"].as_array().expect("a list").clone();
        points.last().expect("a point")["id"].as_str().expect("text").to_owned()
    }

    /// Restores the newest point of the VM and compares every disk.
    fn assert_restores(&self, vm: &Vm) {
        let restore = self.abd(&["restore", &self.newest(vm)]).ok();
        let disks = restore.job(&vm.name)["disks"].as_array().expect("a list").clone();
        assert_eq!(disks.len(), vm.vdis.len());
        for (vdi, disk) in vm.vdis.iter().zip(&disks) {
            let restored = disk["vdi"].as_str().expect("text");
            assert_eq!(self.lab.digest(restored), self.lab.digest(vdi), "{disk}");
        }
    }
}

fn vm(lab: &Lab, name: &str, seed: u64) -> Vm {
    let vm = lab.vm(name, &[(12 << 20) + 512, 512]);
    lab.write(&vm.vdis[0], 0, &noise(seed, 300_000));
    lab.write(&vm.vdis[0], 9 << 20, &text(seed + 1, 3_000_000));
    lab.write(&vm.vdis[1], 0, &noise(seed + 2, 512));
    vm
}

#[test]
fn two_orchestrators_use_one_server_at_once_and_take_nothing_away() {
    let (Some(lab), Some(other)) = (Lab::quick(&[]), Lab::quick(&[])) else { return };
    let mut server = Server::start(&lab, &[]);
    let (web, db) = (vm(&lab, "web01", 1), vm(&other, "db01", 9));
    // Nobody is let in who was not made known, and he is told how.
    let stranger = Machine::new(&lab, "state", &server);
    let key = stranger.abd(&["store", "client-key"]).ok().answer()["key"].as_str().expect("text").to_owned();
    let said = stranger.abd(&["backup", "web01"]).fails_with(8);
    assert!(said.contains("abd serve client add") && said.contains(&key), "{said}");
    let one = Machine::known(&lab, "state", &server, "dc1", "orchestrator");
    let two = Machine::known(&other, "state", &server, "dc2", "orchestrator");
    for _ in 0..2 {
        let (first, second) = (one.start(&["backup", "web01"]), two.start(&["backup", "db01"]));
        first.finish().ok();
        second.finish().ok();
        lab.write(&web.vdis[0], 5 << 20, &noise(4, 100_000));
        other.write(&db.vdis[0], 2 << 20, &noise(5, 100_000));
    }
    let (first, second) = (one.start(&["backup", "web01"]), two.start(&["backup", "db01"]));
    let (first, second) = (first.finish().ok(), second.finish().ok());
    assert_eq!(first.job("web01")["disks"][0]["mode"], "cbt", "{}", first.job("web01"));
    assert_eq!(second.job("db01")["disks"][0]["mode"], "cbt", "{}", second.job("db01"));
    one.assert_restores(&web);
    two.assert_restores(&db);
    assert_eq!(one.abd(&["verify", "--read-data"]).ok().answer()["clean"], true);
    // Each sees what it may do, and that is not much.
    let check = one.abd(&["store", "check"]).ok();
    let standing = &check.answer()["standing"];
    assert_eq!((&standing["client"], &standing["role"]), (&"dc1".into(), &"orchestrator".into()));
    let info = two.abd(&["store", "info"]).ok();
    assert_eq!((&info.answer()["points"], &info.answer()["standing"]["client"]), (&6.into(), &"dc2".into()));
    one.abd(&["doctor"]).ok();
    let said = one.abd(&["remove", &one.newest(&web), "--yes"]).fails_with(8);
    assert!(said.contains("removes no restore points"), "{said}");
    let said = two.abd(&["prune", "--all", "--keep-last", "1", "--yes"]).fails_with(8);
    assert!(said.contains("removes no restore points"), "{said}");
    let said = one.abd(&["store", "gc"]).fails_with(8);
    assert!(said.contains("--gc-every"), "{said}");
    one.abd(&["store", "gc", "--dry-run"]).ok();
    one.abd(&["pin", &one.newest(&web), "--note", "kept"]).ok();
    let said = two.abd(&["unpin", &one.newest(&web)]).fails_with(8);
    assert!(said.contains("removes no pins"), "{said}");
    // A reader restores and cannot back up; an admin removes; the server collects.
    let reader = Machine::known(&lab, "desk", &server, "desk", "reader");
    assert_eq!(reader.abd(&["verify"]).ok().answer()["clean"], true);
    let said = reader.abd(&["pin", &one.newest(&web)]).fails_with(8);
    assert!(said.contains("only reads"), "{said}");
    let admin = Machine::known(&lab, "admin", &server, "admin", "admin");
    let oldest = admin.abd(&["list", "db01"]).ok().answer()["points"][0]["id"].clone();
    admin.abd(&["remove", oldest.as_str().expect("text"), "--yes"]).ok();
    assert_eq!(admin.abd(&["store", "info"]).ok().answer()["points"], 5);
    server.abd(&["store", "gc"]).ok();
    two.assert_restores(&db);
    // Who is forgotten is not let in any more, and the server ends when it is told to.
    server.abd(&["serve", "client", "remove", "dc1"]).ok();
    let said = one.abd(&["list"]).fails_with(8);
    assert!(said.contains("does not know the key"), "{said}");
    let wrong = server.place().replace(&server.key, &"ab".repeat(32));
    let said = Machine { lab: &other, state: "state", place: wrong }.abd(&["list"]).fails_with(8);
    assert!(said.contains(&server.key), "{said}");
    server.terminate();
    let verify = server.abd(&["verify", "--read-data"]).ok();
    assert_eq!(verify.answer()["clean"], true);
    let leases = std::fs::read_dir(server.store().join("leases")).expect("listed");
    assert_eq!(leases.count(), 0, "everybody gave his lease back");
}

/// The server is killed in the middle of a job and started anew, with a floor: the job goes on to its end.
#[test]
fn a_job_outlives_its_server_and_young_points_stay_for_everybody() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let mut server = Server::start(&lab, &[]);
    let web = vm(&lab, "web01", 1);
    let machine = Machine::known(&lab, "state", &server, "dc1", "orchestrator");
    machine.abd(&["backup", "web01"]).ok();
    lab.write(&web.vdis[0], 4 << 20, &noise(7, 4_000_000));
    let mut job = machine.start(&["backup", "web01", "--rate-limit", "1MiB/s"]);
    job.until_working();
    server.kill();
    server.run(&["--keep-at-least", "30"]);
    job.finish().ok();
    machine.assert_restores(&web);
    assert_eq!(machine.abd(&["verify", "--read-data"]).ok().answer()["clean"], true);
    let admin = Machine::known(&lab, "admin", &server, "admin", "admin");
    let said = admin.abd(&["remove", &admin.newest(&web), "--yes"]).fails_with(8);
    assert!(said.contains("keeps everything for 30 days"), "{said}");
    // Nor on the server's own machine, by rules or by name; and what is once said is not taken back.
    let said = server.abd(&["remove", &admin.newest(&web), "--yes"]).fails_with(8);
    assert!(said.contains("keeps everything for 30 days"), "{said}");
    let pruned = server.abd(&["prune", "--all", "--keep-last", "1", "--yes"]).ok();
    assert_eq!(pruned.answer()["removed"], Value::Array(Vec::new()), "{}", pruned.answer());
    server.terminate();
    let said = server.abd(&["serve", "--listen", "127.0.0.1:0", "--keep-at-least", "7"]).fails_with(8);
    assert!(said.contains("keeps everything for 30 days"), "{said}");
    server.run(&["--append-only"]);
    let said = admin.abd(&["remove", &admin.newest(&web), "--yes"]).fails_with(8);
    assert!(said.contains("keeps everything") || said.contains("removes nothing"), "{said}");
}
