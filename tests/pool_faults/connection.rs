//! The pool is away: sessions, masters, toolstacks and hosts that are lost in the middle, answers and events that do not
//! come as they should.

use super::{Bench, HOLD_MS, MIB, modes};
use e2e::{Api, Delegates, Lab, Options, Relay, Running, noise};
use serde_json::json;
use std::time::Duration;

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

/// A pool that is reached over a relay.
fn relayed() -> Option<(Bench, Relay)> {
    let sim = vec![];
    let lab = Lab::with(Options {
        delegates: Delegates::Processes,
        sim,
        without_pool: true,
        without_template: true,
    })?;
    let relay = Relay::new(lab.ports.https);
    let (url, fingerprint) = (format!("https://127.0.0.1:{}", relay.port), lab.ports.fingerprint.clone());
    let password = lab.ports.password_file.display().to_string();
    lab.abd(&lab.pool_arguments(&url, &fingerprint, &password)).ok();
    lab.abd(&["template", "import", &lab.template()]).ok();
    let vm = lab.vm_with("web01", &[2 * MIB, MIB], true);
    let mut bench = Bench::of(lab, vm);
    bench.backup().ok();
    bench.write();
    Some((bench, relay))
}

/// The toolstack is away for some seconds, and with it every session; what it was doing goes on.
fn restart(bench: &Bench, relay: &mut Relay) {
    relay.shut();
    bench.lab.post("/lab/sessions/drop", None);
    std::thread::sleep(Duration::from_secs(3));
    relay.open();
}

#[test]
fn a_toolstack_that_restarts_while_the_job_tears_down_or_asks_is_waited_for() {
    let Some((mut bench, mut relay)) = relayed() else { return };
    for method in
        ["VDI.list_changed_blocks", "VM.get_record", "VM.destroy", "VDI.destroy", "VDI.data_destroy"]
    {
        let run = bench.backup_while(method, || restart(&bench, &mut relay));
        println!("restart at {method}: {:?}", run.warnings());
        run.ok();
        bench.assert_stored();
        bench.assert_clean();
        bench.write();
    }
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_toolstack_that_restarts_while_the_job_sets_up_costs_at_most_this_job() {
    let Some((mut bench, mut relay)) = relayed() else { return };
    for method in ["VM.snapshot", "VM.clone", "VBD.create", "VM.start_on"] {
        let run = bench.backup_while(method, || restart(&bench, &mut relay));
        println!("restart at {method}: {} {:?}", run.code, run.all("job-failed"));
        // What was asked for when the toolstack went may still appear: its journal stays for that.
        bench.unsettled = true;
        bench.assert_clean();
        bench.assert_next_run_is("cbt");
    }
}

#[test]
fn a_call_whose_answer_is_lost_leaves_nothing_that_the_job_does_not_find_again() {
    for method in
        ["VM.snapshot", "VM.clone", "VBD.create", "VIF.create", "VM.start_on", "VM.add_to_other_config"]
    {
        let Some(mut bench) = Bench::tracked(&[]) else { return };
        bench.fault(json!({"method": method, "drop": true, "when": "after"}));
        let run = bench.backup();
        println!("answer to {method} lost: {} {:?}", run.code, run.all("job-failed"));
        bench.assert_clean();
        bench.assert_next_run_is("cbt");
    }
}

#[test]
fn a_delegate_that_cannot_start_says_why_and_leaves_nothing() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    bench.fault(
        json!({"method": "VM.start_on", "error": ["HOST_NOT_ENOUGH_FREE_MEMORY", "134217728", "1000"]}),
    );
    let run = bench.backup();
    run.fails_with(1);
    run.says("start the delegate").says("HOST_NOT_ENOUGH_FREE_MEMORY");
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_delegate_that_somebody_removes_fails_the_job_and_leaves_nothing() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[64 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 64 << 20));
    let mut bench = Bench::of(lab, vm);
    let mut run = bench.lab.spawn(&["backup", "web01"]);
    until_it_works(&bench, &mut run);
    {
        let api = Api::new(&bench.lab);
        let delegate = api.find("VM", &bench.lab.delegate());
        api.call("VM.hard_shutdown", json!([delegate]));
        // The job may be quicker.
        let _ = api.try_call("VM.destroy", json!([delegate]));
    }
    let run = run.finish();
    run.fails_with(1);
    run.says("the delegate of web01 was");
    bench.assert_clean();
    bench.assert_next_run_is("full");
}

/// Waits until the delegate has its order, and stops it in its work: it cannot be done before something happens to it.
fn until_it_works(bench: &Bench, run: &mut Running) {
    run.until("the delegate works", |event| {
        event["step"].as_str().is_some_and(|step| step.starts_with("delegate works"))
    });
    bench.lab.post(&format!("/lab/guest/{}/link?up=0", bench.lab.delegate()), None);
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
    until_it_works(&bench, &mut run);
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
