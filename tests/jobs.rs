//! Several jobs in one invocation.

use e2e::{Lab, noise, text};
use serde_json::Value;
use std::collections::BTreeSet;

const MIB: u64 = 1 << 20;

#[test]
fn three_vms_are_three_delegates_at_the_same_time() {
    let Some(lab) = Lab::start() else { return };
    let names = ["web01", "db01", "mail01"];
    let vms: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let vm = lab.vm(name, &[32 * MIB]);
            lab.write(&vm.vdis[0], 0, &text(at as u64, 4 * MIB as usize));
            lab.write(&vm.vdis[0], 20 * MIB, &noise(99, 2 * MIB as usize));
            vm
        })
        .collect();
    let before = lab.inventory();
    let run = lab.backup(&vms.iter().collect::<Vec<_>>()).ok();
    assert_eq!(run.all("job-done").len(), 3);

    let (peak, started) = guests(&lab.log());
    assert_eq!(started.len(), 3, "each job has a delegate of its own");
    assert_eq!(peak, 3, "the three ran at the same time");
    let jobs: BTreeSet<_> =
        run.all("job-done").iter().map(|job| format!("abd-{}", job["job"].as_str().expect("id"))).collect();
    assert_eq!(started, jobs);
    assert!(clones_of_the_template(&lab.log()) >= 3);
    for vm in &vms {
        lab.assert_restores(vm);
    }
    lab.assert_store_whole();
    lab.assert_clean(&before);
}

#[test]
fn one_failed_job_does_not_harm_the_others() {
    let Some(lab) = Lab::start() else { return };
    let good = lab.vm("good", &[4 * MIB]);
    let bad = lab.vm("bad", &[4 * MIB]);
    lab.write(&good.vdis[0], 0, &text(1, 100_000));
    let before = lab.inventory();
    lab.post("/lab/faults", Some(&serde_json::json!({
        "method": "VM.snapshot", "nth": 1, "error": ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""],
    })));
    // One after the other, so that the fault meets the first.
    let run = lab.abd(&["backup", "bad", "good", "--jobs", "1"]);
    let text = run.fails_with(1);
    assert!(text.contains("SR_BACKEND_FAILURE_44") && text.contains("make room"), "{text}");
    assert_eq!(run.all("job-failed").len() + run.all("job-done").len(), 2);
    assert_eq!(run.all("job-done").len(), 1);
    lab.assert_clean(&before);
    lab.backup(&[&bad]).ok();
}

/// The most guests that ran at once, and their names.
fn guests(log: &[Value]) -> (usize, BTreeSet<String>) {
    let (mut running, mut peak, mut names) = (0usize, 0, BTreeSet::new());
    for entry in log {
        match entry["kind"].as_str() {
            Some("guest-start") => {
                running += 1;
                peak = peak.max(running);
                names.insert(entry["name"].as_str().expect("a name").to_owned());
            }
            Some("guest-exit") => running -= 1,
            _ => {}
        }
    }
    assert_eq!(running, 0, "no guest is left running");
    (peak, names)
}

fn clones_of_the_template(log: &[Value]) -> usize {
    let is_clone = |entry: &&Value| {
        entry["kind"] == "call" && entry["method"].as_str().is_some_and(|method| method.ends_with("VM.clone"))
    };
    log.iter().filter(is_clone).count()
}
