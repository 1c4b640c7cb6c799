//! The template in a pool: upgraded while jobs run on it, imported twice at once, cut in the middle, without its disk,
//! newer than `abd`; and storage that only another host sees.

use e2e::{Api, Inventory, Lab, Options, Vm, noise};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Longest wait for something that the pool does by itself.
const LIMIT: Duration = Duration::from_secs(60);
/// Time in which a second import begins while the first one waits.
const HOLD_MS: u64 = 1500;

/// A template whose disk has this size and content.
fn build(lab: &Lab, name: &str, seed: u64, size: u64) -> String {
    let disk = lab.path(&format!("{name}.img")).display().to_string();
    fs::write(&disk, noise(seed, usize::try_from(size).expect("it fits"))).expect("written");
    let xva = lab.path(&format!("{name}.xva")).display().to_string();
    lab.abd(&["template", "build", "--disk", &disk, "--out", &xva]).ok();
    xva
}

fn templates(lab: &Lab) -> Vec<Value> {
    let list = lab.abd(&["template", "list"]).ok();
    list.answer()["templates"].as_array().expect("a list").clone()
}

/// The only template that is live.
#[track_caller]
fn live(lab: &Lab) -> String {
    let live: Vec<Value> = templates(lab).into_iter().filter(|one| one["state"] == "live").collect();
    assert_eq!(live.len(), 1, "{live:#?}");
    text(&live[0]["uuid"])
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}

fn noisy_vm(lab: &Lab, name: &str, size: u64) -> Vm {
    let vm = lab.vm(name, &[size]);
    lab.write(&vm.vdis[0], 0, &noise(1, usize::try_from(size).expect("it fits")));
    vm
}

/// Waits until something is so in the pool.
#[track_caller]
fn await_that(what: &str, mut is_so: impl FnMut() -> bool) {
    let by = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < by, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_template_is_upgraded_while_a_job_runs_on_the_old_one() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (slow, quick) = (noisy_vm(&lab, "slow", 16 * MIB), noisy_vm(&lab, "quick", MIB));
    let old = live(&lab);
    let disk = Inventory::take(&lab).disks_of(&old);
    let mut run = lab.spawn(&["backup", "slow", "--rate-limit", "1MiB/s"]);
    run.until_working();
    let upgrade = build(&lab, "upgrade", 7, MIB);
    let import = lab.abd(&["template", "import", &upgrade]).ok();
    assert_eq!(import.answer()["imported"], true);
    assert_eq!(import.answer()["waiting"], json!([{"uuid": old, "delegates": 1}]));
    let fresh = text(&import.answer()["uuid"]);
    assert_eq!(live(&lab), fresh);

    let api = Api::new(&lab);
    let seen = lab.log().last().map_or(0, |entry| entry["seq"].as_u64().expect("a number"));
    lab.backup(&[&quick]).ok();
    let clones: Vec<Value> =
        lab.log_since(seen).into_iter().filter(|entry| entry["method"] == "Async.VM.clone").collect();
    let template = api.find("VM", &fresh);
    assert!(clones.len() == 1 && clones[0].to_string().contains(&text(&template)), "{clones:#?}");
    let states: Vec<Value> = templates(&lab).iter().map(|one| one["state"].clone()).collect();
    assert!(states.contains(&json!("retired")), "the first job still runs on it: {states:?}");

    run.finish().ok();
    let all = templates(&lab);
    assert_eq!(all.len(), 1, "the last delegate took the old template with it: {all:#?}");
    assert!(Inventory::take(&lab).get("VDI", &disk[0]).is_none(), "and its disk");
    lab.assert_restores(&slow);
    assert_eq!(lab.abd(&["reconcile"]).ok().answer()["removed"], json!([]));
}

#[test]
fn an_old_template_whose_job_died_goes_with_reconcile() {
    let Some(lab) = Lab::quick(&[]) else { return };
    noisy_vm(&lab, "slow", 4 * MIB);
    let old = live(&lab);
    let mut run = lab.spawn(&["backup", "slow", "--rate-limit", "1MiB/s"]);
    run.until_working();
    let removed = lab.abd(&["template", "remove"]).ok();
    assert_eq!(removed.answer()["waiting"], json!([{"uuid": old, "delegates": 1}]));
    run.kill();
    lab.abd(&["backup", "slow"]).fails_with(7);
    lab.abd(&["reconcile"]).ok();
    assert!(templates(&lab).is_empty());
    lab.abd(&["template", "status"]).fails_with(7);
}

#[test]
fn a_template_without_its_disk_is_recognised_and_replaced() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = noisy_vm(&lab, "web01", MIB);
    assert_eq!(lab.abd(&["template", "status"]).ok().answer()["ready"], true);
    let broken = live(&lab);
    lab.destroy_vdi(&Inventory::take(&lab).disks_of(&broken)[0]);
    let status = lab.abd(&["template", "status"]);
    assert!(status.fails_with(7).contains("its disk is gone"));
    assert_eq!(templates(&lab)[0]["state"], "broken");
    let refused = lab.backup(&[&vm]);
    assert!(refused.fails_with(7).contains("its disk is gone"));
    let import = lab.abd(&["template", "import", &lab.template()]).ok();
    assert_eq!((&import.answer()["imported"], &import.answer()["removed"]), (&json!(true), &json!([broken])));
    lab.backup(&[&vm]).ok();
    assert_eq!(templates(&lab).len(), 1);
}

#[test]
fn an_import_that_is_killed_in_the_middle_leaves_nothing() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = noisy_vm(&lab, "web01", MIB);
    let large = build(&lab, "large", 7, 48 * MIB);
    let before = Inventory::take(&lab);
    let mut import = lab.spawn(&["template", "import", &large]);
    let half = || Inventory::take(&lab).without(&before).all("VM").count();
    await_that("the import makes its template", || half() == 1);
    import.kill();
    let names: Vec<Value> = templates(&lab).iter().map(|one| one["state"].clone()).collect();
    assert!(
        names.iter().filter(|state| **state == "live").count() == 1,
        "half a template is none: {names:?}"
    );
    await_that("the pool undoes the import", || half() == 0);
    assert_eq!(Inventory::take(&lab).differences(&before), [""; 0]);
    lab.backup(&[&vm]).ok();
    assert_eq!(lab.abd(&["template", "import", &large]).ok().answer()["imported"], true);
    assert_eq!(templates(&lab).len(), 1);
}

#[test]
fn an_import_that_fails_leaves_the_template_that_was_there() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let other = build(&lab, "other", 7, MIB);
    let before = Inventory::take(&lab);
    lab.post(
        "/lab/faults",
        Some(&json!({"method": "PUT /import", "error": ["VDI_IO_ERROR", "planned"], "when": "before"})),
    );
    lab.abd(&["template", "import", &other]).fails_with(1);
    assert_eq!(Inventory::take(&lab).differences(&before), [""; 0]);
    // The answer is lost, the import is not: the task tells.
    lab.post("/lab/faults", Some(&json!({"method": "PUT /import", "drop": true, "when": "after"})));
    assert_eq!(lab.abd(&["template", "import", &other]).ok().answer()["imported"], true);
    assert_eq!(templates(&lab).len(), 1);
}

#[test]
fn two_imports_at_once_end_with_one_template() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (one, other) = (build(&lab, "one", 7, MIB), build(&lab, "other", 8, MIB));
    let vm = noisy_vm(&lab, "web01", MIB);
    for (first, second) in [(&one, &one), (&other, &lab.template())] {
        lab.abd(&["template", "remove"]).ok();
        let held = json!({"method": "PUT /import", "delay_ms": HOLD_MS, "count": 2});
        lab.post("/lab/faults", Some(&held));
        let runs = [first, second].map(|file| lab.spawn(&["template", "import", file]));
        let outputs = runs.map(|run| run.finish().ok());
        let all = templates(&lab);
        assert_eq!(all.len(), 1, "{all:#?}");
        assert_eq!(all[0]["state"], "live");
        let told: Vec<&Value> = outputs.iter().map(|output| &output.answer()["uuid"]).collect();
        assert!(told.contains(&&all[0]["uuid"]), "{told:?}");
        let new = outputs.iter().filter(|output| output.answer()["imported"] == true).count();
        assert!(new >= 1, "{outputs:#?}");
        let disks = Inventory::take(&lab).disks_of(&text(&all[0]["uuid"]));
        let of_templates = Inventory::take(&lab).all("VDI").filter(|vdi| vdi["uuid"] != vm.vdis[0]).count();
        assert_eq!((disks.len(), of_templates), (1, 1), "no disk is left of the other one");
    }
    lab.backup(&[&vm]).ok();
}

#[test]
fn an_import_for_storage_of_another_host_follows_it_there() {
    let Some(lab) = Lab::quick(&["--hosts", "2"]) else { return };
    let all = lab.local_storage();
    let first = live(&lab);
    let api = Api::new(&lab);
    let sr_of = |template: &str| {
        let disk = api.find("VDI", &Inventory::take(&lab).disks_of(template)[0]);
        api.uuid("SR", &api.call("VDI.get_SR", json!([disk])))
    };
    let here = sr_of(&first);
    let there = all.iter().find(|sr| **sr != here).expect("a second host's storage");
    let seen = lab.log().last().map_or(0, |entry| entry["seq"].as_u64().expect("a number"));
    let import = lab.abd(&["template", "import", &lab.template(), "--sr", there]).ok();
    assert_eq!(sr_of(&text(&import.answer()["uuid"])), *there);
    assert_eq!(import.answer()["removed"], json!([]), "the other host's jobs need theirs");
    let puts = lab.log_since(seen).iter().filter(|entry| entry["method"] == "PUT /import").count();
    assert_eq!(puts, 2, "asked at the first host, sent to the second");
    assert_eq!(templates(&lab).len(), 2);
    let again = lab.abd(&["template", "import", &lab.template(), "--sr", there]).ok();
    assert_eq!(again.answer()["imported"], false);
}

#[test]
fn a_template_without_named_storage_goes_where_most_hosts_see_it() {
    let sim = ["--hosts", "2", "--sr", "name=shared,type=nfs,shared=true"].map(str::to_owned).to_vec();
    let options =
        Options { delegates: e2e::Delegates::Processes, sim, without_template: true, ..Options::default() };
    let Some(lab) = Lab::with(options) else { return };
    let api = Api::new(&lab);
    let pool = api.call("pool.get_all", json!([]))[0].clone();
    api.call("pool.set_default_SR", json!([pool, "OpaqueRef:NULL"]));
    lab.abd(&["template", "import", &lab.template()]).ok();
    assert_eq!(templates(&lab)[0]["storage"], json!(["shared"]));
}

#[test]
fn an_abd_that_is_older_than_the_template_says_so() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = noisy_vm(&lab, "web01", MIB);
    let template = live(&lab);
    lab.set_vm_other_config(&template, "abd:template", "999.0.0");
    for run in [
        lab.backup(&[&vm]),
        lab.abd(&["template", "status"]),
        lab.abd(&["template", "import", &lab.template()]),
    ] {
        let error = run.fails_with(7);
        assert!(error.contains("this abd is older") && error.contains("update abd"), "{error}");
    }
    assert_eq!(templates(&lab).len(), 1, "it is not replaced by an older one");
    lab.set_vm_other_config(&template, "abd:template", "0.0.1");
    let error = lab.backup(&[&vm]).fails_with(7);
    assert!(error.contains("version 0.0.1") && error.contains("abd template import"), "{error}");
    let upgrade = lab.abd(&["template", "import", &lab.template()]).ok();
    assert_eq!(upgrade.answer()["removed"], json!([template]));
    lab.backup(&[&vm]).ok();
}
