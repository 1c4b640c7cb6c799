//! The pool is away: sessions, masters, toolstacks and hosts that are lost in the middle, answers and events that do not
//! come as they should.

use super::{Bench, HOLD_MS, modes};
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
        let Some(mut bench) = Bench::tracked(&["--hosts", "2"]) else { return };
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
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let host = super::uuid_of(&bench.lab, "host", "xapi-sim-1");
    // The delegate has claimed its order when the orchestrator asks for its record after that.
    let run = bench.backup_while("VM.start_on", || {
        let lab = bench.lab.control();
        let path = format!("/lab/host/{host}/reboot?down_ms={}", 2 * HOLD_MS);
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(HOLD_MS));
            lab.json("POST", &path, None).expect("the host goes down");
        });
    });
    let text = run.fails_with(1);
    println!("said: {text}");
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
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
