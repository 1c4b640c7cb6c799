//! Storage and hosts that are busy, full or slow.

use super::{Bench, modes};
use serde_json::json;

#[test]
fn a_disk_that_is_in_use_for_seconds_after_the_delegate_ended_is_waited_for() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    for method in ["VDI.destroy", "VDI.data_destroy"] {
        bench.fault(json!({"method": method, "error": ["VDI_IN_USE", "OpaqueRef:x", "destroy"], "count": 3}));
    }
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), ["cbt", "cbt"]);
    bench.assert_next_run_is("cbt");
}

#[test]
fn disks_that_the_storage_detaches_late_are_waited_for() {
    let Some(mut bench) = Bench::tracked(&["--detach-lag-ms", "2000"]) else { return };
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_disk_that_cannot_be_removed_is_reported_and_reconcile_removes_it_later() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let refusal = ["SR_BACKEND_FAILURE_47", "", "The SR is not available", ""];
    bench.fault(json!({"method": "VDI.data_destroy", "error": refusal, "count": 1000}));
    let run = bench.backup();
    run.fails_with(11);
    run.says("run `abd reconcile`").says("SR_BACKEND_FAILURE_47");
    // The backup itself is good.
    assert_eq!(modes(&run), ["cbt", "cbt"]);
    bench.assert_stored();
    bench.fault(json!({"clear": true}));
    let reconciled = bench.lab.abd(&["reconcile"]).ok();
    assert_eq!(reconciled.answer()["leftovers"], json!([]));
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn another_operation_on_what_is_removed_is_waited_for() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    for method in ["VM.destroy", "VDI.data_destroy", "VDI.destroy"] {
        let refusal = ["OTHER_OPERATION_IN_PROGRESS", "VDI", "OpaqueRef:x"];
        bench.fault(json!({"method": method, "error": refusal, "count": 3}));
    }
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_vm_that_is_busy_with_another_operation_is_waited_for() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let refusal = ["OTHER_OPERATION_IN_PROGRESS", "VM", "OpaqueRef:x"];
    bench.fault(json!({"method": "VM.snapshot", "error": refusal, "count": 2}));
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_snapshot_refused_for_space_says_what_is_full_and_leaves_nothing() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let refusal = ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""];
    bench.fault(json!({"method": "VM.snapshot", "error": refusal}));
    let run = bench.backup();
    run.fails_with(1);
    run.says("SR_BACKEND_FAILURE_44").says("make room");
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn storage_without_room_for_the_snapshot_is_refused_before_anything_is_touched() {
    let Some(mut bench) = Bench::new(&["--sr", "name=thick,type=lvm,capacity=256M,default=true"]) else {
        return;
    };
    let vm = bench.lab.vm_with("large", &[120 << 20], true);
    let seen = bench.lab.log().len() as u64;
    let run = bench.lab.abd(&["backup", &vm.uuid]);
    run.fails_with(1);
    run.says("thick");
    let wrote = bench.lab.log_since(seen).into_iter().filter(|entry| {
        let method = entry["method"].as_str().unwrap_or_default();
        entry["write"] == true && !method.starts_with("session.")
    });
    assert_eq!(wrote.count(), 0);
    bench.before = e2e::Inventory::take(&bench.lab);
    bench.assert_next_run_is("full");
}

#[test]
fn a_chain_as_long_as_the_storage_allows_is_refused_with_what_to_do() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let refusal = ["SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", ""];
    bench.fault(json!({"method": "VM.snapshot", "error": refusal}));
    let run = bench.backup();
    run.fails_with(1);
    run.says("the chain of snapshots is as long as the storage allows").says("delete snapshots");
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_pool_that_answers_slowly_makes_a_job_slow_and_nothing_else() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    bench.fault(json!({"method": "*", "delay_ms": 40, "count": 100_000}));
    bench.assert_good(bench.backup());
    bench.fault(json!({"clear": true}));
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_snapshot_that_is_there_although_it_failed_is_removed_before_the_next_one_is_taken() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let refusal = ["SR_BACKEND_FAILURE_46", "", "The VDI is not available", ""];
    bench.fault(json!({"method": "VM.snapshot", "when": "after", "error": refusal, "count": 2}));
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}
