//! What a job was bound by, as `abd` says it: to programs, to people, in the summary and in metrics. Delegates are
//! processes; one part of their way is made so slow that nothing else matters.

use e2e::{Lab, Output, noise};
use serde_json::{Value, json};
use std::fs;

const MIB: u64 = 1 << 20;

/// Bytes per second of a slow network: 2 MiB take two seconds.
const NETWORK_RATE: &str = "1048576";

/// The account of a job's data path.
fn path<'a>(output: &'a Output, vm: &str) -> &'a Value {
    &output.job(vm)["path"]
}

fn stage<'a>(path: &'a Value, name: &str) -> &'a Value {
    let stages = path["stages"].as_array().expect("a list");
    stages.iter().find(|stage| stage["stage"] == name).unwrap_or_else(|| panic!("no {name} in {path:#}"))
}

#[test]
fn a_slow_network_is_named_to_programs_and_people() {
    let Some(lab) = Lab::quick(&["--delegate-network-rate", NETWORK_RATE]) else { return };
    let vm = lab.vm("web01", &[2 * MIB, MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 2 << 20));
    let metrics = lab.path("abd.prom").display().to_string();
    let summary = lab.path("summary.txt").display().to_string();
    let run = lab.abd(&["backup", "web01", "--metrics", &metrics, "--summary", &summary]).ok();
    let job = path(&run, "web01");
    assert_eq!(job["bound_by"], "network", "{job:#}");
    assert_eq!(job["verdict"], "bound by the network");
    assert!(stage(job, "network")["bytes"].as_u64() > Some(2 * MIB), "{job:#}");
    assert_eq!(
        stage(job, "read")["bytes"],
        3 * MIB,
        "the second disk holds nothing, and is audited: {job:#}"
    );
    assert_eq!(job["compression"], 1.0, "noise does not compress: {job:#}");
    let disks = run.job("web01")["disks"].as_array().expect("a list");
    assert_eq!(disks[0]["path"]["bound_by"], "network");
    let text = fs::read_to_string(&summary).expect("written");
    assert!(text.contains("\nbound by the network: web01\n"), "{text}");
    let text = fs::read_to_string(&metrics).expect("written");
    let line = text.lines().find(|line| line.starts_with("abd_job_bound_by{")).unwrap_or_default();
    assert!(line.contains("vm=\"web01\"") && line.ends_with("by=\"network\"} 1"), "{text}");

    // All of it is in the store now; the second run ships nothing, and the table says it to people.
    let output = lab.plain_command(&["backup", "web01", "--full", "--report"]).output().expect("it runs");
    let printed = String::from_utf8(output.stdout).expect("text");
    println!("{printed}");
    assert!(output.status.success());
    assert!(printed.contains("data moved for "), "{printed}");
    for line in ["read", "hash", "judge"] {
        assert!(printed.lines().any(|printed| printed.starts_with(line)), "{line}: {printed}");
    }
    let tables = printed.lines().skip_while(|line| !line.starts_with("STAGE"));
    assert!(
        tables.clone().count() > 0 && tables.clone().all(|line| line.chars().count() <= 100),
        "{printed}"
    );
    let restored = lab.assert_restores(&vm);
    assert_eq!(path(&restored, "web01")["bound_by"], "network");
}

#[test]
fn a_slow_disk_is_named_and_the_quick_one_beside_it_is_not() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[2 * MIB, MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 2 << 20));
    lab.write(&vm.vdis[1], 0, &noise(2, 1 << 20));
    // Eight reads of 256 KiB.
    lab.post(&format!("/lab/vdi/{}/surface", vm.vdis[0]), Some(&json!({"service_us": 200_000})));
    let run = lab.backup(&[&vm]).ok();
    let disks = run.job("web01")["disks"].as_array().expect("a list");
    let bound = |disk: usize| disks[disk]["path"]["bound_by"].clone();
    assert_eq!(
        (bound(0), &path(&run, "web01")["bound_by"]),
        ("disk-read".into(), &"disk-read".into()),
        "{disks:#?}"
    );
    assert_ne!(bound(1), "disk-read", "{disks:#?}");
    let read = stage(&disks[0]["path"], "read");
    assert!(
        read["busy_ms"].as_u64() >= Some(1600) && read["busy_percent"].as_f64() > Some(50.0),
        "{disks:#?}"
    );
    lab.assert_restores(&vm);
}

#[test]
fn without_report_people_see_one_line_of_it() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 1 << 20));
    let output = lab.plain_command(&["backup", "web01"]).output().expect("it runs");
    let printed = String::from_utf8(output.stdout).expect("text");
    assert_eq!(printed.matches("data moved for").count(), 1, "{printed}");
    assert!(!printed.contains("STAGE"), "{printed}");
}
