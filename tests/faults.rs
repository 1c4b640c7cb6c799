//! Things that die in the middle: the job says what happened, the store stays whole, the pool is cleaned, the
//! next run succeeds.

use e2e::{Api, Lab, Vm, noise};
use serde_json::json;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Short, so that tests are; a real one is 90.
const WATCHDOG: &str = "20";
/// An appliance writes its last words and powers off; a loaded machine that emulates it takes a few seconds for that.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(20);

/// A VM whose backup takes a delegate several seconds.
fn slow_vm(lab: &Lab) -> Vm {
    let vm = lab.vm("victim", &[96 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 88 * MIB as usize));
    vm
}

/// After a failure: nothing is left, the store is whole, and a backup works.
fn assert_recovers(lab: &Lab, vm: &Vm, before: &serde_json::Value) {
    lab.assert_clean(before);
    lab.assert_store_whole();
    lab.backup(&[vm]).ok();
    lab.assert_restores(vm);
    lab.assert_clean(before);
}

#[test]
fn a_delegate_that_is_killed_in_the_middle() {
    let Some(lab) = Lab::start() else { return };
    let vm = slow_vm(&lab);
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "victim"]);
    run.until_working();
    lab.post(&format!("/lab/guest/{}/kill", lab.delegate()), None);
    let text = run.finish().fails_with(1);
    assert!(
        text.contains("the delegate of victim was powered off or crashed in the middle of its work"),
        "{text}"
    );
    assert_recovers(&lab, &vm, &before);
}

#[test]
fn a_delegate_that_is_asked_to_shut_down_ends_at_once_and_its_job_says_why() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("victim", &[8 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 8 * MIB as usize));
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "victim", "--rate-limit", "1MiB/s"]);
    run.until_working();
    let api = Api::new(&lab);
    let delegate = api.find("VM", &lab.delegate());
    let asked = Instant::now();
    // Comes back when the guest has cleared `control/shutdown` and is gone.
    api.call("VM.clean_shutdown", json!([delegate]));
    let took = asked.elapsed();
    assert!(took < SHUTDOWN_LIMIT, "{took:?}");
    let output = run.finish();
    let text = output.fails_with(1);
    assert!(text.contains("the appliance was asked to shut down before the job was done"), "{text}");
    assert!(text.contains("somebody shut the delegate's VM down"), "{text}");
    assert_eq!(output.all("job-failed")[0]["code"], "shutdown");
    println!("measured: clean shutdown in {} ms", took.as_millis());
    drop(api);
    lab.assert_clean(&before);
    lab.assert_store_whole();
}

#[test]
fn an_orchestrator_that_is_killed_in_the_middle() {
    let Some(lab) = Lab::start() else { return };
    let vm = slow_vm(&lab);
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "victim", "--watchdog", WATCHDOG]);
    run.until_working();
    run.kill();
    // Nobody tells the delegate: it finds out by itself and powers off.
    let killed = Instant::now();
    let limit = Duration::from_secs(90);
    while lab.log().iter().filter(|entry| entry["kind"] == "guest-exit").count() == 0 {
        assert!(killed.elapsed() < limit, "the delegate does not power itself off");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!(
        "measured: delegate gone {} s after its orchestrator, watchdog {WATCHDOG} s",
        killed.elapsed().as_secs()
    );
    lab.assert_store_whole();

    // Somebody made a VM of their own from our snapshot: it inherits our tags and must not be touched.
    let theirs = lab.clone_snapshot("theirs");
    let first = lab.abd(&["reconcile"]).ok();
    assert!(!first.answer()["removed"].as_array().expect("a list").is_empty());
    let second = lab.abd(&["reconcile"]).ok();
    assert_eq!(second.answer()["removed"], json!([]), "twice is the same as once");
    let inventory = lab.inventory();
    let vbds = inventory["VBD"].as_array().expect("a list");
    let disk = vbds.iter().find(|vbd| vbd["VM"] == theirs.as_str()).expect("their VM still has its disk");
    let vdis = inventory["VDI"].as_array().expect("a list");
    assert!(vdis.iter().any(|vdi| vdi["uuid"] == disk["VDI"]), "their disk is still there");
    for class in ["VM", "VDI", "VBD"] {
        // Storage keeps what a copy shares with its source in a hidden node.
        let is_shown = |item: &&serde_json::Value| item["managed"] != false;
        let count = |inventory: &serde_json::Value| {
            inventory[class].as_array().expect("a list").iter().filter(is_shown).count()
        };
        assert_eq!(count(&inventory), count(&before) + 1, "only theirs is new: {:#}", inventory[class]);
    }
    // The killed process could not log out; its session ends by itself in a real pool.
    let before = inventory;
    assert_recovers(&lab, &vm, &before);
}

#[test]
fn a_connection_that_is_cut_in_the_middle() {
    let Some(lab) = Lab::start() else { return };
    let vm = slow_vm(&lab);
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "victim", "--watchdog", WATCHDOG]);
    run.until_working();
    lab.post(&format!("/lab/guest/{}/link?up=0", lab.delegate()), None);
    let text = run.finish().fails_with(1);
    assert!(
        text.contains("the delegate of victim") && text.contains("the connection between them was cut"),
        "{text}"
    );
    println!("said: {text}");
    assert_recovers(&lab, &vm, &before);
}

#[test]
fn a_delegate_without_a_network_says_so_through_xenstore() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("lonely", &[MIB]);
    let before = lab.inventory();
    lab.post("/lab/faults", Some(&json!({"dhcp": false})));
    let output = lab.backup(&[&vm]);
    let text = output.fails_with(1);
    assert!(text.contains("eth0"), "{text}");
    let code = output.all("job-failed")[0]["code"].as_str().expect("the delegate's code").to_owned();
    assert!(["no-link", "no-dhcp-lease"].contains(&code.as_str()), "{code}");
    lab.post("/lab/faults", Some(&json!({"dhcp": true})));
    assert_recovers(&lab, &vm, &before);
}

#[test]
fn a_run_that_is_interrupted_cleans_up() {
    let Some(lab) = Lab::start() else { return };
    let vm = slow_vm(&lab);
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "victim"]);
    run.until_working();
    let killed = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", run.id())]).status();
    assert!(killed.expect("kill runs").success());
    let text = run.finish().fails_with(130);
    assert!(text.contains("stopped on request"), "{text}");
    assert_recovers(&lab, &vm, &before);
}

#[test]
fn a_restore_that_dies_leaves_no_half_disk() {
    let Some(lab) = Lab::start() else { return };
    let vm = slow_vm(&lab);
    lab.backup(&[&vm]).ok();
    let before = lab.inventory();
    let list = lab.abd(&["list"]).ok();
    let point = list.answer()["points"][0]["id"].as_str().expect("an id").to_owned();
    let mut run = lab.spawn(&["restore", &point]);
    run.until_working();
    lab.post(&format!("/lab/guest/{}/kill", lab.delegate()), None);
    run.finish().fails_with(1);
    lab.assert_clean(&before);
    let restored = lab.inventory();
    let half = restored["VDI"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|vdi| !vdi["other_config"]["abd:restored"].is_null());
    assert_eq!(half.count(), 0);
    lab.assert_restores(&vm);
}
