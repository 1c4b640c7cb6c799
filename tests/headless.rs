//! `abd run`: what cron and systemd start with nobody watching. Delegates are processes here: what they do to disks is
//! shown elsewhere.

use e2e::{Lab, Output, text};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

/// How long something that a hook writes is waited for.
const LIMIT: Duration = Duration::from_secs(60);

/// A pool whose delegates are processes.
fn lab() -> Option<Lab> {
    Lab::quick(&[])
}

/// Writes a job file and gives its path.
fn job_file(lab: &Lab, name: &str, text: &str) -> String {
    let path = lab.path(&format!("{name}.toml"));
    fs::write(&path, text).expect("written");
    path.display().to_string()
}

fn summary(output: &Output) -> &Value {
    output.all("run-summary").pop().unwrap_or_else(|| panic!("no summary: {:#?}", output.events))
}

/// Name and result of each VM.
pub(crate) fn results(output: &Output) -> Vec<String> {
    let vms = summary(output)["vms"].as_array().expect("a list");
    let word = |value: &Value| value.as_str().expect("a text").to_owned();
    vms.iter().map(|vm| format!("{} {}", word(&vm["vm"]), word(&vm["result"]))).collect()
}

#[track_caller]
fn wait_for(path: &Path) {
    let by = Instant::now() + LIMIT;
    while !path.exists() {
        assert!(Instant::now() < by, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A hook that says that it runs and waits until it may end.
fn gate(lab: &Lab) -> String {
    let (here, go) = (lab.path("here"), lab.path("go"));
    format!("touch '{}'; while ! [ -e '{}' ]; do sleep 0.05; done", here.display(), go.display())
}

fn signal(process: u32, name: &str) {
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status();
    assert!(sent.expect("a shell").success());
}

#[test]
fn a_job_file_backs_up_what_it_selects_and_leaves_a_summary() {
    let Some(lab) = lab() else { return };
    let vms: Vec<_> =
        ["web01", "web02", "web02-test", "db01", "mail"].map(|name| lab.vm(name, &[MIB])).into();
    lab.write(&vms[3].vdis[0], 0, &text(1, 100_000));
    let before = lab.inventory();
    let (mail, json) = (lab.path("mail.txt"), lab.path("summary.json"));
    let file = job_file(
        &lab,
        "nightly",
        &format!(
            "[select]\nnames = [\"db01\", \"web*\", \"ftp*\"]\n[exclude]\nnames = \"*-test\"\n\
         [run]\nsummary = '{}'\n[[vm]]\nname = \"web02\"\nlevel = 3\n",
            mail.display(),
        ),
    );

    let listed = lab.abd(&["run", &file, "--dry-run"]).ok();
    let names: Vec<_> =
        listed.answer()["vms"].as_array().expect("a list").iter().map(|vm| &vm["vm"]).collect();
    assert_eq!(names, ["db01", "web01", "web02"]);
    assert!(!lab.store().exists() && lab.inventory() == before, "a dry run changes nothing");

    let json_path = json.display().to_string();
    let run = lab.abd(&["run", &file, "--summary-json", &json_path]).ok();
    assert_eq!(results(&run), ["db01 done", "web01 done", "web02 done"]);
    assert_eq!(summary(&run)["result"], "done");
    assert_eq!(summary(&run)["warnings"], serde_json::json!(["no VM's name matches 'ftp*'"]));
    let written: Value = serde_json::from_str(&fs::read_to_string(&json).expect("written")).expect("JSON");
    assert_eq!(written["vms"], summary(&run)["vms"]);
    let written = fs::read_to_string(&mail).expect("written");
    assert!(written.starts_with("abd nightly: 3 VMs backed up\n"), "{written}");
    assert!(written.lines().all(|line| line.chars().count() <= 78), "{written}");
    lab.assert_restores(&vms[3]);
    lab.assert_clean(&before);
}

#[test]
fn a_vm_that_is_named_and_not_there_fails_and_the_others_are_backed_up() {
    let Some(lab) = lab() else { return };
    lab.vm("web01", &[MIB]);
    let file = job_file(&lab, "nightly", "select.names = [\"web01\", \"mail\", \"ftp*\"]");
    let dry = lab.abd(&["run", &file, "--dry-run"]).fails_with(3);
    assert!(dry.contains("no VM is named 'mail'"), "{dry}");
    let run = lab.abd(&["run", &file]);
    assert_eq!(results(&run), ["web01 done", "mail failed"]);
    let mail = &summary(&run)["vms"][1];
    assert_eq!((&mail["error"], &mail["exit_code"]), (&"no VM is named 'mail'".into(), &3.into()));
    assert_eq!(summary(&run)["warnings"], serde_json::json!(["no VM's name matches 'ftp*'"]));
    run.fails_with(3);
}

#[test]
fn in_a_pipe_a_run_prints_its_summary_and_nothing_else() {
    let Some(lab) = lab() else { return };
    lab.vm("web01", &[MIB]);
    let file = job_file(&lab, "nightly", "select.names = \"*\"\n");
    let output = lab.plain_command(&["run", &file]).output().expect("it runs");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert!(printed.starts_with("abd nightly: 1 VM backed up\n"), "{printed}");
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_keeps_a_run_from_doing_anything_has_its_own_code() {
    let Some(lab) = lab() else { return };
    lab.vm("web01", &[MIB]);
    let before = lab.inventory();
    let file = job_file(&lab, "nobody", "select.names = \"ftp*\"\n");
    let said = lab.abd(&["run", &file]).fails_with(12);
    assert!(said.contains("no VM's name matches 'ftp*'"), "{said}");

    let file = job_file(&lab, "wrong", "select.names = \"*\"\n[options]\nlevle = 3\n");
    let said = lab.abd(&["run", &file]).fails_with(2);
    assert!(said.contains("wrong.toml line 3") && said.contains("'level'"), "{said}");
    let said = lab.abd(&["run", "/nonexistent.toml"]).fails_with(2);
    assert!(said.contains("/nonexistent.toml"), "{said}");

    // A window that opens in two hours and is open for one.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let hour = now.as_secs() / 3600 % 24;
    let window = format!("{:02}:00-{:02}:00", (hour + 2) % 24, (hour + 3) % 24);
    let file = job_file(&lab, "night", &format!("select.names = \"*\"\n[run]\nwindow = \"{window}\"\n"));
    let mut command = lab.command(&["run", &file]);
    command.env("TZ", "UTC");
    let said = lab.finish(command).fails_with(12);
    assert!(said.contains("window is closed"), "{said}");
    assert_eq!(lab.inventory(), before);
}

#[test]
fn hooks_stand_around_jobs_and_a_failed_one_keeps_its_job_from_starting() {
    let Some(lab) = lab() else { return };
    let good = lab.vm("good", &[MIB]);
    lab.vm("bad", &[MIB]);
    let before = lab.inventory();
    let log = lab.path("hooks.log");
    let file = job_file(
        &lab,
        "hooks",
        &format!(
            r#"
        select.names = ["bad", "good"]
        [options]
        retries = 0
        before_job = '[ "$ABD_VM" != bad ] || {{ echo frozen solid >&2; exit 7; }}'
        after_job = 'echo "$ABD_RUN $ABD_VM $ABD_RESULT ${{ABD_POINT:+point}}" >> "{log}"'
        [run]
        max_jobs = 1
        before_run = 'env > "{log}.env"'
        after_run = 'echo "$ABD_RESULT $ABD_EXIT_CODE $ABD_HEADLINE" >> "{log}"'
        "#,
            log = log.display(),
        ),
    );
    let mut command = lab.command(&["run", &file]);
    let password = fs::read_to_string(&lab.ports.password_file).expect("the simulator's own");
    command.env("ABD_PASSWORD", password.trim()).env("CREDENTIALS_DIRECTORY", lab.path("nothing"));
    let output = lab.finish(command);
    let said = output.fails_with(1);
    assert!(
        said.contains("before_job hook") && said.contains("status 7") && said.contains("frozen solid"),
        "{said}"
    );
    assert_eq!(results(&output), ["bad failed", "good done"]);
    let lines = fs::read_to_string(&log).expect("written");
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "hooks bad failed ",
            "hooks good done point",
            "failed 1 abd hooks: FAILED: 1 of 2 VMs not backed up",
        ]
    );
    let environment = fs::read_to_string(log.with_extension("log.env")).expect("written");
    assert!(environment.contains("ABD_RUN=hooks"), "{environment}");
    for secret in ["ABD_PASSWORD", "CREDENTIALS_DIRECTORY"] {
        assert!(!environment.contains(secret), "{environment}");
    }
    assert_eq!(output.all("job-done").len(), 1);
    lab.assert_clean(&before);
    lab.assert_restores(&good);
}

#[test]
fn a_job_that_fails_for_a_passing_reason_is_tried_again() {
    let Some(lab) = lab() else { return };
    lab.vm("web01", &[MIB]);
    lab.post("/lab/faults", Some(&serde_json::json!({
        "method": "VM.snapshot", "nth": 1, "error": ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""],
    })));
    let before = lab.inventory();
    let file = job_file(&lab, "again", "select.names = \"*\"\n[options]\nretry_pause = \"1 s\"\n");
    let run = lab.abd(&["run", &file]).ok();
    assert_eq!(results(&run), ["web01 done"]);
    assert_eq!(summary(&run)["vms"][0]["tries"], 2);
    assert_eq!((run.all("job-failed").len(), run.all("job-done").len()), (1, 1));
    lab.assert_clean(&before);
}

#[test]
fn a_second_run_and_a_second_backup_of_a_vm_are_told_who_is_at_it() {
    let Some(lab) = lab() else { return };
    lab.vm("web01", &[MIB]);
    lab.vm("web02", &[MIB]);
    let file = job_file(
        &lab,
        "nightly",
        &format!("select.names = \"web01\"\n[options]\nbefore_job = \"\"\"{}\"\"\"\n", gate(&lab)),
    );
    let first = lab.spawn(&["run", &file]);
    wait_for(&lab.path("here"));
    let process = format!("process {}", first.id());
    let said = lab.abd(&["run", &file]).fails_with(14);
    assert!(
        said.contains("'nightly'") && said.contains("`abd run nightly`") && said.contains(&process),
        "{said}"
    );
    let by_hand = lab.abd(&["backup", "web01", "web02"]);
    let said = by_hand.fails_with(14);
    assert!(said.contains("being backed up already") && said.contains(&process), "{said}");
    assert_eq!(results(&by_hand), ["web01 failed", "web02 done"]);
    fs::write(lab.path("go"), "").expect("written");
    let first = first.finish().ok();
    assert_eq!(results(&first), ["web01 done"]);
    lab.abd(&["run", &file]).ok();
}

#[test]
fn an_interrupted_run_cleans_up_and_says_what_was_not_done() {
    let Some(lab) = lab() else { return };
    lab.vm("web01", &[MIB]);
    lab.vm("web02", &[MIB]);
    let before = lab.inventory();
    let mail = lab.path("mail.txt");
    let file = job_file(
        &lab,
        "nightly",
        &format!(
            "select.names = [\"web01\", \"web02\"]\n[options]\nbefore_job = \"\"\"{}\"\"\"\n[run]\nmax_jobs = 1\nsummary = '{}'\n",
            gate(&lab),
            mail.display(),
        ),
    );
    let run = lab.spawn(&["run", &file]);
    wait_for(&lab.path("here"));
    signal(run.id(), "INT");
    fs::write(lab.path("go"), "").expect("written");
    let run = run.finish();
    run.fails_with(130);
    assert_eq!(summary(&run)["result"], "stopped");
    assert_eq!(results(&run)[1], "web02 skipped");
    assert_eq!(run.all("job-done").len(), 0);
    let written = fs::read_to_string(&mail).expect("written");
    assert!(written.starts_with("abd nightly: STOPPED: 0 of 2 VMs backed up\n"), "{written}");
    lab.assert_clean(&before);
}

#[test]
fn a_request_to_stop_is_heard_while_a_call_hangs() {
    for method in ["VM.snapshot", "VM.clone", "VM.start_on"] {
        let Some(lab) = lab() else { return };
        lab.vm("web01", &[MIB]);
        let before = lab.inventory();
        // Longer than the test runs.
        lab.post("/lab/faults", Some(&json!({"method": method, "delay_ms": 300_000, "count": 1})));
        let mut run = lab.spawn(&["backup", "web01"]);
        let step = if method == "VM.snapshot" { "snapshot" } else { "start delegate" };
        run.until("it is at the call", |event| event["step"] == step);
        while !lab.log().iter().any(|entry| {
            entry["method"].as_str().is_some_and(|found| found.trim_start_matches("Async.") == method)
        }) {
            std::thread::sleep(Duration::from_millis(10));
        }
        signal(run.id(), "INT");
        let run = run.finish();
        run.fails_with(130);
        println!("stopped in {method}: {:?}", run.all("job-failed"));
        lab.assert_clean(&before);
    }
}

#[test]
fn no_more_jobs_run_at_once_than_the_limits_say() {
    let Some(lab) = lab() else { return };
    for name in ["a", "b", "c"] {
        lab.vm(name, &[MIB]);
    }
    let peak = || {
        let (mut running, mut peak) = (0, 0);
        for entry in lab.log() {
            match entry["kind"].as_str() {
                Some("guest-start") => running += 1,
                Some("guest-exit") => running -= 1,
                _ => {}
            }
            peak = peak.max(running);
        }
        peak
    };
    let file = job_file(&lab, "one", "select.names = \"*\"\n[run]\nmax_jobs_per_sr = 1\n");
    let run = lab.abd(&["run", &file]).ok();
    assert_eq!(results(&run), ["a done", "b done", "c done"]);
    assert_eq!(peak(), 1, "all disks are on one storage repository");
}
