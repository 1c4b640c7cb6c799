//! What a job asked for comes about after the job died, and after the first clean-up looked for it.

use super::{DISK_SIZES, FREEZE_LIMIT, NAME};
use e2e::{Inventory, Lab, Vm};
use serde_json::json;
use std::time::{Duration, Instant};

/// Kills a job while the call that makes something waits in the pool, cleans up before and after it appears.
fn appears_late(method: &str, arguments: impl Fn(&Lab, &Vm) -> Vec<String>) {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm(NAME, &DISK_SIZES);
    lab.backup(&[&vm]).ok();
    let before = Inventory::take(&lab);
    lab.post("/lab/faults", Some(&json!({"method": method, "delay_ms": 2000})));
    let arguments = arguments(&lab, &vm);
    let mut run = lab.spawn(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let by = Instant::now() + FREEZE_LIMIT;
    while lab.get("/lab/faults")["planned"] != json!([]) {
        assert!(Instant::now() < by, "{method} is not called");
        std::thread::sleep(Duration::from_millis(2));
    }
    run.kill();
    lab.abd(&["reconcile"]).ok();
    assert_eq!(Inventory::take(&lab).leftovers(&before, &vm), [""; 0]);
    while Inventory::take(&lab) == before {
        assert!(Instant::now() < by, "it does not appear");
        std::thread::sleep(Duration::from_millis(2));
    }
    lab.await_tasks();
    let second = lab.abd(&["reconcile"]).ok();
    assert_ne!(second.answer()["removed"], json!([]));
    let left = Inventory::take(&lab).leftovers(&before, &vm);
    assert!(left.is_empty(), "{}", left.join("\n"));
    let third = lab.abd(&["reconcile"]).ok();
    assert_eq!((&third.answer()["removed"], &third.answer()["jobs"]), (&json!([]), &json!([])));
    lab.backup(&[&vm]).ok();
}

fn backup_of(_: &Lab, vm: &Vm) -> Vec<String> {
    vec!["backup".into(), vm.uuid.clone()]
}

#[test]
fn a_snapshot_that_appears_after_its_job_died_is_removed_by_a_later_reconcile() {
    appears_late("VM.snapshot", backup_of);
}

#[test]
fn a_delegate_that_appears_after_its_job_died_is_removed_by_a_later_reconcile() {
    appears_late("VM.clone", backup_of);
}

#[test]
fn a_disk_to_restore_into_that_appears_after_its_job_died_is_removed_by_a_later_reconcile() {
    appears_late("VDI.create", |lab, vm| {
        let points = lab.points(&vm.uuid);
        vec!["restore".into(), points.last().expect("a restore point").id.to_string()]
    });
}
