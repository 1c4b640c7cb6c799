//! Delegates that are kept for later jobs: only where a pool is told so, only as they were cloned, only for their time.

use e2e::{Api, Inventory, Lab, Running, Vm, noise};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// A pool that keeps delegates, and a VM.
struct Bench {
    lab: Lab,
    vm: Vm,
    before: Inventory,
}

impl Bench {
    fn new(keep: &[&str]) -> Option<Self> {
        let lab = Lab::quick(&[])?;
        let vm = lab.vm_with("web01", &[4 * MIB], true);
        lab.write(&vm.vdis[0], 0, &noise(1, 4 << 20));
        lab.abd(&[&["pool", "set", "lab"], keep].concat()).ok();
        let before = Inventory::take(&lab);
        Some(Self { lab, vm, before })
    }

    fn backup(&self) -> e2e::Output {
        let run = self.lab.backup(&[&self.vm]).ok();
        assert_eq!(run.all("warning").len(), 0, "{:#?}", run.all("warning"));
        run
    }

    fn slow(&self) -> Running {
        let mut run = self.lab.spawn(&["backup", "web01", "--full", "--rate-limit", "1MiB/s"]);
        run.until_working();
        run
    }

    /// Delegates in the pool.
    fn delegates(&self) -> Vec<Value> {
        let now = Inventory::take(&self.lab);
        now.without(&self.before).all("VM").filter(|vm| vm["is_a_snapshot"] == false).cloned().collect()
    }

    /// The only delegate, which is kept: halted, with nothing but its own disk.
    #[track_caller]
    fn kept(&self) -> String {
        let found = self.delegates();
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((&found[0]["power_state"], &found[0]["is_a_template"]), (&json!("Halted"), &json!(false)));
        assert!(found[0]["other_config"]["abd:idle"].is_string(), "{found:#?}");
        let uuid = found[0]["uuid"].as_str().expect("a uuid").to_owned();
        assert_eq!(Inventory::take(&self.lab).disks_of(&uuid).len(), 1);
        let api = Api::new(&self.lab);
        let vm = api.find("VM", &uuid);
        assert_eq!(api.call("VM.get_xenstore_data", json!([vm])), json!({}), "nothing of the job stays");
        assert_eq!(self.lab.abd(&["reconcile"]).ok().answer()["removed"], json!([]), "its time runs");
        uuid
    }

    /// Fails unless the pool is as it was before the first job, but for references.
    #[track_caller]
    fn assert_nothing_left(&self) {
        let left = Inventory::take(&self.lab).leftovers(&self.before, &self.vm);
        assert!(left.is_empty(), "{}", left.join("\n"));
    }

    fn calls_since(&self, seen: u64, method: &str) -> usize {
        let is_it = |entry: &&Value| {
            entry["method"].as_str().is_some_and(|name| name.trim_start_matches("Async.") == method)
        };
        self.lab.log_since(seen).iter().filter(is_it).count()
    }

    fn seen(&self) -> u64 {
        self.lab.log().last().map_or(0, |entry| entry["seq"].as_u64().expect("a number"))
    }
}

#[test]
fn a_pool_keeps_nothing_unless_it_is_told_to() {
    let Some(bench) = Bench::new(&["--keep-idle", "0"]) else { return };
    let run = bench.backup();
    assert_eq!(run.job("web01")["delegate"]["reused"], 0);
    assert_eq!(bench.delegates().len(), 0);
    bench.assert_nothing_left();
}

#[test]
fn the_second_job_takes_the_delegate_of_the_first() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    assert_eq!(bench.backup().job("web01")["delegate"]["reused"], 0);
    let kept = bench.kept();
    bench.lab.write(&bench.vm.vdis[0], MIB, &noise(2, 100_000));
    let metrics = bench.lab.path("abd.prom").display().to_string();
    let seen = bench.seen();
    let run = bench.lab.abd(&["backup", "web01", "--metrics", &metrics]).ok();
    assert_eq!(run.job("web01")["delegate"]["reused"], 1);
    for method in ["VM.clone", "VM.provision", "VIF.create", "VM.set_memory_limits"] {
        assert_eq!(bench.calls_since(seen, method), 0, "{method}");
    }
    assert_eq!(bench.calls_since(seen, "VM.start_on"), 1);
    assert_eq!(bench.kept(), kept, "and it is kept again");
    bench.lab.assert_restores(&bench.vm);
    let text = std::fs::read_to_string(&metrics).expect("metrics");
    let reused = text.lines().find(|line| line.starts_with("abd_job_delegates_reused{"));
    assert!(reused.is_some_and(|line| line.ends_with(" 1")), "{text}");
    let doctor = bench.lab.abd(&["doctor"]).ok();
    assert!(doctor.answer().to_string().contains("kept-delegates"), "{:#?}", doctor.answer());
}

/// Backs up, and gives the key that the delegate published, as the pool has it before it is emptied.
fn key_of_a_job(bench: &Bench) -> String {
    let hold = json!({"method": "VM.set_xenstore_data", "nth": 2, "delay_ms": 1000});
    bench.lab.post("/lab/faults", Some(&hold));
    let seen = bench.seen();
    let run = bench.lab.spawn(&["backup", "web01"]);
    let by = Instant::now() + LIMIT;
    while bench.calls_since(seen, "VM.set_xenstore_data") < 2 {
        assert!(Instant::now() < by, "the delegate is never given back");
        std::thread::sleep(Duration::from_millis(5));
    }
    let uuid = bench.delegates()[0]["uuid"].as_str().expect("a uuid").to_owned();
    let api = Api::new(&bench.lab);
    let vm = api.find("VM", &uuid);
    let published = api.call("VM.get_xenstore_data", json!([vm]));
    run.finish().ok();
    published["vm-data/abd/key"].as_str().unwrap_or_else(|| panic!("no key in {published}")).to_owned()
}

#[test]
fn each_job_of_a_kept_delegate_has_a_key_of_its_own() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    let first = key_of_a_job(&bench);
    let kept = bench.kept();
    assert_ne!(key_of_a_job(&bench), first);
    assert_eq!(bench.kept(), kept, "the same delegate");
}

#[test]
fn more_memory_is_what_a_kept_delegate_gets_where_a_job_wants_it() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    bench.backup();
    let kept = bench.kept();
    let seen = bench.seen();
    bench.lab.abd(&["backup", "web01", "--delegate-memory", "256"]).ok();
    assert_eq!(
        (bench.calls_since(seen, "VM.clone"), bench.calls_since(seen, "VM.set_memory_limits")),
        (0, 1)
    );
    assert_eq!(bench.kept(), kept);
}

#[test]
fn a_delegate_whose_boot_disk_was_written_to_is_not_kept() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    let run = bench.slow();
    let delegate = bench.delegates()[0]["uuid"].as_str().expect("a uuid").to_owned();
    let now = Inventory::take(&bench.lab);
    let boot = now.all("VBD").find(|vbd| vbd["VM"] == delegate.as_str() && vbd["userdevice"] == "0");
    let disk = boot.and_then(|vbd| vbd["VDI"].as_str()).expect("a disk");
    // As a guest that was taken over would.
    let file = std::fs::File::options().write(true).open(bench.lab.disk_file(disk)).expect("a file");
    file.write_all_at(b"something that wants to stay", 4096).expect("written");
    run.finish().ok();
    assert_eq!(bench.delegates().len(), 0, "it went like any other");
    bench.assert_nothing_left();
}

#[test]
fn a_kept_delegate_that_somebody_changed_is_replaced() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    bench.backup();
    let kept = bench.kept();
    let other = bench.lab.vm("other", &[MIB]);
    let api = Api::new(&bench.lab);
    let vbd = json!({
        "VM": api.find("VM", &kept), "VDI": api.find("VDI", &other.vdis[0]), "userdevice": "7",
        "bootable": false, "mode": "RO", "type": "Disk", "empty": false, "other_config": {},
        "qos_algorithm_type": "", "qos_algorithm_params": {},
    });
    api.call("VBD.create", json!([vbd]));
    let run = bench.lab.backup(&[&bench.vm]).ok();
    assert_eq!(run.job("web01")["delegate"]["reused"], 0);
    let now = Inventory::take(&bench.lab);
    assert!(now.get("VM", &kept).is_none(), "it is gone");
    assert!(now.get("VDI", &other.vdis[0]).is_some(), "the disk is not ours");
}

#[test]
fn its_time_runs_out() {
    let Some(bench) = Bench::new(&["--keep-idle", "1", "--keep-idle-for", "1s"]) else { return };
    bench.backup();
    let by = Instant::now() + LIMIT;
    while !bench.delegates().is_empty() {
        assert!(Instant::now() < by, "it stays for ever");
        bench.lab.abd(&["reconcile"]).ok();
    }
    bench.assert_nothing_left();
}

#[test]
fn a_killed_run_leaves_no_delegate_kept_or_taken() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    for turn in ["made by the job that died", "kept and taken by it"] {
        let mut run = bench.slow();
        assert_eq!(bench.delegates().len(), 1, "{turn}");
        run.kill();
        let reconciled = bench.lab.abd(&["reconcile"]).ok();
        assert_eq!(reconciled.answer()["leftovers"], json!([]), "{turn}");
        assert_eq!(bench.delegates().len(), 0, "{turn}");
        bench.assert_nothing_left();
        bench.backup();
        bench.kept();
    }
}

/// Killed while the delegate is taken and while it is given back, after each call that changes something then.
#[test]
fn a_run_that_is_killed_while_it_takes_or_gives_back_leaves_what_reconcile_knows() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    bench.backup();
    for (method, nth) in [
        ("VM.remove_from_other_config", 1),
        ("VM.set_name_description", 1),
        ("VBD.create", 1),
        ("VM.set_xenstore_data", 1),
        ("VM.set_xenstore_data", 2),
        ("VBD.destroy", 1),
        ("VM.set_name_description", 2),
        ("VM.add_to_other_config", 1),
    ] {
        bench.kept();
        let freeze = json!({"method": method, "nth": nth, "freeze": true, "when": "after"});
        bench.lab.post("/lab/faults", Some(&freeze));
        let seen = bench.seen();
        let mut run = bench.lab.spawn(&["backup", "web01"]);
        let by = Instant::now() + LIMIT;
        let frozen =
            |entry: &Value| entry.to_string().contains("frozen") || entry.to_string().contains("freeze");
        while !bench.lab.log_since(seen).iter().any(frozen) {
            assert!(Instant::now() < by, "{method} is not called {nth} times: {:#?}", run.events());
            std::thread::sleep(Duration::from_millis(5));
        }
        run.kill();
        println!("killed at {method} number {nth}");
        bench.lab.abd(&["reconcile"]).ok();
        assert!(bench.delegates().len() <= 1);
        assert!(bench.delegates().iter().all(|vm| vm["other_config"]["abd:idle"].is_string()));
        bench.backup();
    }
    bench.lab.abd(&["pool", "set", "lab", "--keep-idle", "0"]).ok();
    bench.assert_nothing_left();
}

#[test]
fn an_upgrade_of_the_template_drops_what_was_made_of_the_old_one() {
    let Some(bench) = Bench::new(&["--keep-idle", "1"]) else { return };
    bench.backup();
    bench.kept();
    let disk = bench.lab.path("upgrade.img").display().to_string();
    std::fs::write(&disk, noise(7, 1 << 20)).expect("written");
    let xva = bench.lab.path("upgrade.xva").display().to_string();
    bench.lab.abd(&["template", "build", "--disk", &disk, "--out", &xva]).ok();
    let import = bench.lab.abd(&["template", "import", &xva]).ok();
    assert_eq!(import.answer()["waiting"], json!([]), "an idle delegate keeps no old template");
    let fresh = import.answer()["uuid"].clone();
    let left = bench.delegates();
    assert!(left.len() == 1 && left[0]["uuid"] == fresh, "only the new template is there: {left:#?}");
}

#[test]
fn switching_it_off_or_forgetting_the_pool_removes_what_is_kept() {
    let off: [&[&str]; 3] = [
        &["pool", "set", "lab", "--keep-idle", "0"],
        &["release", "--all", "--yes"],
        &["pool", "remove", "lab", "--keep-references"],
    ];
    let Some(bench) = Bench::new(&["--keep-idle", "2"]) else { return };
    for command in off {
        bench.lab.abd(&["pool", "set", "lab", "--keep-idle", "2"]).ok();
        bench.backup();
        bench.kept();
        bench.lab.abd(command).ok();
        assert_eq!(bench.delegates().len(), 0, "{command:?}");
        bench.assert_nothing_left();
    }
}

#[test]
fn no_more_are_kept_than_the_pool_says() {
    let Some(bench) = Bench::new(&["--keep-idle", "2"]) else { return };
    let others: Vec<Vm> = (0..3).map(|number| bench.lab.vm(&format!("vm{number}"), &[MIB])).collect();
    let before = Inventory::take(&bench.lab);
    bench.lab.backup(&others.iter().collect::<Vec<_>>()).ok();
    let kept = Inventory::take(&bench.lab).without(&before).all("VM").count();
    assert_eq!(kept, 2);
}
