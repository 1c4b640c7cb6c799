//! What is found out before a job begins: `abd doctor` changes nothing and names what is wrong, and jobs that would fail
//! are refused, held or left out before anything is touched. Delegates are processes here.

use e2e::{Lab, Output, noise};
use serde_json::{Value, json};
use std::fs;

const MIB: u64 = 1 << 20;

/// Number of the next entry of the simulator's log.
pub(crate) fn now(lab: &Lab) -> u64 {
    lab.log().last().and_then(|entry| entry["seq"].as_u64()).map_or(0, |last| last + 1)
}

/// The calls since then that may change something, and those that list changes, in order.
pub(crate) fn calls_since(lab: &Lab, since: u64) -> Vec<String> {
    let log = lab.log();
    let entries = log.iter().filter(|entry| entry["seq"].as_u64() >= Some(since));
    let wanted =
        entries.filter(|entry| entry["write"] == true || entry["method"] == "VDI.list_changed_blocks");
    wanted.map(|entry| entry["method"].as_str().expect("a text").to_owned()).collect()
}

/// Code and level of each finding.
fn findings(output: &Output) -> Vec<(String, String)> {
    let answer = output.events.iter().find(|event| event["findings"].is_array()).expect("findings");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all = answer["findings"].as_array().expect("a list").iter();
    all.map(|finding| (text(&finding["code"]), text(&finding["level"]))).collect()
}

/// The finding of a code.
#[track_caller]
fn finding(output: &Output, code: &str) -> Value {
    let answer = output.events.iter().find(|event| event["findings"].is_array()).expect("findings");
    let mut all = answer["findings"].as_array().expect("a list").iter();
    let found = all.find(|finding| finding["code"] == code);
    found.unwrap_or_else(|| panic!("no finding {code}: {:#?}", answer)).clone()
}

fn has(output: &Output, code: &str, level: &str) -> bool {
    findings(output).contains(&(code.to_owned(), level.to_owned()))
}

#[test]
fn the_doctor_makes_no_call_that_could_change_something() {
    let Some(lab) = Lab::quick(&[]) else { return };
    lab.vm("web01", &[MIB]);
    lab.abd(&["backup", "web01"]).ok();
    let (before, since) = (lab.inventory(), now(&lab));
    lab.abd(&["doctor"]).ok();
    lab.abd(&["doctor", "web01"]).ok();
    lab.abd(&["doctor", "web02"]).fails_with(3);
    assert_eq!(calls_since(&lab, since), Vec::<String>::new());
    assert_eq!(lab.inventory(), before);
}

#[test]
fn a_pool_that_works_has_no_error_and_its_vm_is_fine() {
    let Some(lab) = Lab::quick(&[]) else { return };
    lab.vm("web01", &[MIB]);
    let output = lab.abd(&["doctor", "web01"]).ok();
    assert!(findings(&output).iter().all(|(_, level)| level != "error"), "{:#?}", output.events);
    let vm = finding(&output, "vm");
    assert_eq!(
        (&vm["level"], &vm["object"]["kind"], &vm["pool"]),
        (&json!("ok"), &json!("vm"), &json!("lab"))
    );
    assert!(has(&output, "no-store", "warning"));
    // A warning is enough for the strict.
    lab.abd(&["doctor", "--strict"]).fails_with(8);
}

#[test]
fn the_text_fits_a_terminal_and_ends_with_what_it_means() {
    let Some(lab) = Lab::quick(&["--flavour", "xs-7.2"]) else { return };
    lab.vm("web01", &[MIB]);
    let output = lab.plain_command(&["doctor"]).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(text.contains("pool lab\n  warning  release "), "{text}");
    assert!(text.contains("does not track changes"), "{text}");
    assert!(text.trim_end().ends_with("warnings: jobs work, but look at this"), "{text}");
}

#[test]
fn missing_permissions_are_named_and_those_of_a_power_admin_are_enough() {
    let sim = ["--extra-user", "reader:secret:read-only", "--extra-user", "backup:secret:vm-power-admin"];
    let Some(lab) = Lab::quick(&sim) else { return };
    let vm = lab.vm("web01", &[MIB]);
    let password = lab.path("secret");
    fs::write(&password, "secret\n").expect("written");
    let password = password.display().to_string();
    let as_user = |user: &str| {
        lab.abd(&["pool", "remove", "lab"]).ok();
        let (url, fingerprint) = (lab.url(), lab.ports.fingerprint.clone());
        let mut arguments = lab.pool_arguments(&url, &fingerprint, &password);
        let at = arguments.iter().position(|word| *word == "root").expect("the user");
        arguments[at] = user;
        lab.abd(&arguments).ok();
    };
    as_user("reader");
    let output = lab.abd(&["doctor"]);
    output.fails_with(4);
    let message = finding(&output, "permissions")["message"].as_str().expect("a text").to_owned();
    for call in ["VM.snapshot", "VDI.data_destroy", "VBD.create", "VM.start_on"] {
        assert!(message.contains(call), "{call} in {message}");
    }
    let since = now(&lab);
    lab.abd(&["backup", "web01"]).fails_with(4);
    assert_eq!(calls_since(&lab, since), Vec::<String>::new(), "refused before anything is touched");

    as_user("backup");
    let output = lab.abd(&["doctor"]).ok();
    assert!(has(&output, "permissions", "ok"), "{:#?}", output.events);
    // What the list calls enough is enough, for full and for tracked backups.
    lab.backup(&[&vm]).ok();
    let second = lab.backup(&[&vm]).ok();
    assert_eq!(second.job("web01")["disks"][0]["mode"], "cbt");
}

#[test]
fn a_licence_without_tracking_and_a_wrong_clock_are_warnings() {
    let Some(lab) = Lab::quick(&["--flavour", "xs-7.3"]) else { return };
    let output = lab.abd(&["doctor"]).ok();
    assert!(
        !has(&output, "cbt-licence", "warning") && !has(&output, "clock", "warning"),
        "{:#?}",
        output.events
    );
    lab.post("/lab/faults", Some(&json!({"cbt_licensed": false, "clock_offset_s": -300})));
    let output = lab.abd(&["doctor"]).ok();
    assert!(
        has(&output, "cbt-licence", "warning") && has(&output, "clock", "warning"),
        "{:#?}",
        output.events
    );
}

#[test]
fn thick_storage_without_room_for_the_snapshot_refuses_the_job() {
    let Some(lab) = Lab::quick(&["--sr", "name=thick,type=lvm,capacity=3G"]) else { return };
    let disks = json!([{"name": "big", "size": 2048 * MIB, "sr": "thick"}]);
    lab.post("/lab/vm", Some(&json!({"name": "web01", "disks": disks, "running": true})));
    let (before, since) = (lab.inventory(), now(&lab));
    let text = lab.abd(&["backup", "web01"]).fails_with(1);
    assert!(text.contains("storage 'thick'") && text.contains("make room"), "{text}");
    assert_eq!(calls_since(&lab, since), Vec::<String>::new());
    assert_eq!(lab.inventory(), before);
    assert!(has(&lab.abd(&["doctor", "web01"]), "snapshot-space", "error"));
    // Without being asked about it, it is no error: nobody said that it is to be backed up.
    assert!(has(&lab.abd(&["doctor"]).ok(), "snapshot-space", "warning"));
}

#[test]
fn jobs_are_held_while_storage_merges_skipped_as_configured_and_go_on_afterwards() {
    let Some(lab) = Lab::quick(&["--coalesce", "manual"]) else { return };
    let vm = lab.vm("web01", &[2 * MIB]);
    // A snapshot of a disk that nobody wrote to since the last one costs nothing.
    let write = |number: u64| lab.write(&vm.vdis[0], 0, &noise(number, 65536));
    write(1);
    lab.backup(&[&vm]).ok();
    write(2);
    // What one job left does not hold up the next one.
    lab.backup(&[&vm]).ok();
    write(3);
    let since = now(&lab);
    let skipped = lab.abd(&["backup", "web01", "--coalesce", "skip"]);
    assert_eq!(skipped.all("job-skipped").len(), 1, "{:#?}", skipped.events);
    assert_ne!(skipped.code, 0);
    assert_eq!(calls_since(&lab, since), Vec::<String>::new());
    assert!(has(&lab.abd(&["doctor", "web01"]).ok(), "coalescing", "warning"));
    let plan = lab.abd(&["plan", "web01"]).ok();
    assert_eq!(plan.answer()["plans"][0]["verdict"], "wait");
    // Nothing is frozen for a job that does not begin.
    let (file, ran) = (lab.path("held.toml"), lab.path("hooks-ran"));
    let hook =
        format!("before_job = \"echo before >> '{0}'\"\nafter_job = \"echo after >> '{0}'\"", ran.display());
    std::fs::write(&file, format!("select.names = \"web01\"\n[options]\ncoalesce = \"skip\"\n{hook}\n"))
        .expect("written");
    let file = file.to_str().expect("a path of ours");
    lab.abd(&["run", file]).fails_with(12);
    assert!(!ran.exists());

    let mut waiting = lab.spawn(&["backup", "web01", "--coalesce-limit", "5min"]);
    waiting.until("it waits", |event| {
        event["event"] == "step" && event["step"].as_str().is_some_and(|step| step.starts_with("waits"))
    });
    let sr = lab.api("SR.get_by_name_label", json!(["Local storage"]));
    let sr = lab.api("SR.get_uuid", json!([sr[0]]));
    lab.post(&format!("/lab/sr/{}/coalesce", sr.as_str().expect("a text")), None);
    let done = waiting.finish().ok();
    assert_eq!(done.job("web01")["disks"][0]["mode"], "cbt");
    lab.abd(&["run", file, "--coalesce", "ignore"]).ok();
    assert_eq!(std::fs::read_to_string(&ran).expect("hooks ran"), "before\nafter\n");
}

#[test]
fn a_chain_is_never_made_longer_than_the_limit() {
    let Some(lab) = Lab::quick(&["--coalesce", "manual"]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    let reference = lab.api("VM.get_by_uuid", json!([vm.uuid]));
    for number in 1..4 {
        lab.write(&vm.vdis[0], 0, &noise(number, 65536));
        lab.api("VM.snapshot", json!([reference, format!("before update {number}")]));
    }
    // A chain of 4: three snapshots of a person's, which nothing can merge.
    let since = now(&lab);
    let text = lab.abd(&["backup", "web01", "--max-chain", "4"]).fails_with(1);
    assert!(text.contains("chain of 4, and 4 are allowed"), "{text}");
    assert_eq!(calls_since(&lab, since), Vec::<String>::new());
    lab.abd(&["backup", "web01", "--max-chain", "5"]).ok();
}

#[test]
fn what_a_killed_run_left_is_named_until_it_is_removed() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[8 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 8 * MIB as usize));
    let mut run = lab.spawn(&["backup", "web01", "--rate-limit", "1MiB/s"]);
    run.until("its delegate works", |event| {
        event["event"] == "step"
            && event["step"].as_str().is_some_and(|step| step.starts_with("delegate works"))
    });
    run.kill();
    let output = lab.abd(&["doctor"]).ok();
    assert!(
        has(&output, "journals", "warning") && has(&output, "leftovers", "warning"),
        "{:#?}",
        output.events
    );
    let message = finding(&output, "leftovers")["message"].as_str().expect("a text").to_owned();
    assert!(message.contains("-snapshot'"), "{message}");
    // Another installation names it as somebody else's.
    let mut other = lab.command(&["doctor"]);
    other.env("ABD_STATE_DIR", lab.path("other"));
    let (url, fingerprint) = (lab.url(), lab.ports.fingerprint.clone());
    let password = lab.ports.password_file.display().to_string();
    let mut add = lab.command(&lab.pool_arguments(&url, &fingerprint, &password));
    add.env("ABD_STATE_DIR", lab.path("other"));
    lab.finish(add).ok();
    let output = lab.finish(other).ok();
    assert!(
        has(&output, "foreign-objects", "warning") && has(&output, "leftovers", "ok"),
        "{:#?}",
        output.events
    );
    lab.abd(&["reconcile"]).ok();
    let output = lab.abd(&["doctor"]).ok();
    assert!(has(&output, "leftovers", "ok") && !has(&output, "journals", "warning"), "{:#?}", output.events);
}
