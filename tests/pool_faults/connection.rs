//! The pool is away: sessions, masters, toolstacks and hosts that are lost in the middle, answers and events that do not
//! come as they should.

use super::{Bench, HOLD_MS, MIB, modes};
use e2e::{Lab, noise};
use serde_json::json;

/// Calls from all phases of a job, at each of which a session is lost.
const PHASES: [&str; 6] =
    ["VM.snapshot", "VDI.list_changed_blocks", "VM.clone", "VBD.create", "VM.destroy", "VDI.data_destroy"];

#[test]
fn a_session_that_is_lost_in_the_middle_is_replaced_and_the_job_goes_on() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    for method in PHASES {
        bench.write();
        let run = bench.backup_while(method, || {
            bench.lab.post("/lab/sessions/drop", None);
        });
        println!("session lost at {method}");
        bench.assert_good(run);
    }
    bench.assert_next_run_is("cbt");
}

#[test]
fn another_master_in_the_middle_is_followed() {
    for method in ["VDI.list_changed_blocks", "VM.start_on", "VM.destroy"] {
        let sim = ["--hosts", "2", "--sr", "name=shared,type=nfs,shared=true,default=true"];
        let Some(mut bench) = Bench::tracked(&sim) else { return };
        let run = bench.backup_while(method, || {
            bench.lab.post("/lab/master", None);
        });
        println!("another master at {method}");
        bench.assert_good(run);
        bench.assert_next_run_is("cbt");
    }
}

#[test]
fn connections_that_the_pool_cuts_for_a_while_do_not_leave_anything() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    for method in ["VM.get_record", "VM.destroy", "VDI.destroy", "VDI.data_destroy"] {
        bench.fault(json!({"method": method, "drop": true, "when": "after"}));
    }
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_host_that_reboots_under_the_delegate_fails_the_job_and_leaves_nothing() {
    let Some(lab) = Lab::quick(&[]) else { return };
    // Switched off, so that the reboot does nothing to it, and with enough on its disk for the delegate to be at it.
    let vm = lab.vm("web01", &[64 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 64 << 20));
    let mut bench = Bench::of(lab, vm);
    let host = super::uuid_of(&bench.lab, "host", "lab-host-1");
    let mut run = bench.lab.spawn(&["backup", "web01"]);
    run.until("the delegate works", |event| {
        event["step"].as_str().is_some_and(|step| step.starts_with("delegate works"))
    });
    // It is stopped in its work, so that it cannot be done before the host is down.
    bench.lab.post(&format!("/lab/guest/{}/link?up=0", bench.lab.delegate()), None);
    bench.lab.post(&format!("/lab/host/{host}/reboot?down_ms={HOLD_MS}"), None);
    let run = run.finish();
    run.fails_with(1);
    run.says("the delegate of web01 was powered off or crashed in the middle of its work");
    bench.assert_clean();
    bench.await_host(&host);
    bench.assert_next_run_is("full");
}

#[test]
fn a_vhd_whose_transfer_fails_after_it_began_means_that_everything_is_read() {
    let Some(mut bench) = Bench::new(&[]) else { return };
    let refusal = ["SR_BACKEND_FAILURE_46", "", "The VDI is not available", ""];
    bench.fault(json!({"method": "GET /export_raw_vdi", "error": refusal, "count": 2}));
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), ["full", "full"]);
    run.says("the pool does not tell what is allocated").says("SR_BACKEND_FAILURE_46");
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_template_whose_import_fails_after_the_upload_is_refused_and_leaves_nothing() {
    let Some(bench) = Bench::new(&[]) else { return };
    bench.lab.abd(&["template", "remove"]).ok();
    let before = e2e::Inventory::take(&bench.lab);
    let refusal = ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""];
    bench.fault(json!({"method": "PUT /import", "error": refusal}));
    let template = bench.lab.template();
    let run = bench.lab.abd(&["template", "import", &template]);
    assert_ne!(run.code, 0);
    run.says("SR_BACKEND_FAILURE_44");
    assert_eq!(e2e::Inventory::take(&bench.lab).differences(&before), [""; 0]);
    bench.lab.abd(&["template", "import", &template]).ok();
    bench.backup().ok();
    bench.assert_stored();
}

#[test]
fn events_that_come_twice_change_nothing() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    bench.fault(json!({"method": "event.from", "double_events": true, "count": 100_000}));
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_pool_that_forgot_its_events_is_asked_again() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    for nth in [2, 4, 6, 9] {
        bench.fault(json!({"method": "event.from", "error": ["EVENTS_LOST"], "nth": nth}));
    }
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}

#[test]
fn events_that_nobody_is_told_of_are_found_out_by_looking() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    bench.fault(json!({"method": "event.from", "nth": 3, "lose_events": 6}));
    bench.assert_good(bench.backup());
    bench.assert_next_run_is("cbt");
}
