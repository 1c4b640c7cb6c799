//! The results of a run as metrics, in Prometheus' exposition format, for the node exporter's textfile collector.
//!
//! Names and labels are stable. Labels hold names of pools, VMs and disks, modes and causes; never a secret.

use super::{CopySummary, DiskRow, RunSummary, VmSummary};
use crate::path::PathSummary;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// The metrics of a run that ended at `ended`.
pub fn metrics(summary: &RunSummary, ended: SystemTime) -> String {
    let mut page = Page::default();
    let of_run = || vec![("run", summary.name.clone())];
    let of_vm = |vm: &VmSummary| {
        let mut labels = of_run();
        labels.extend([("pool", vm.pool.clone()), ("vm", vm.vm.clone()), ("uuid", vm.uuid.clone())]);
        labels
    };
    let of_disk = |vm: &VmSummary, disk: &DiskRow| {
        let mut labels = of_vm(vm);
        labels.extend([("disk", disk.name.clone()), ("vdi", disk.vdi.clone())]);
        labels
    };

    page.family("abd_run_end_time_seconds", "When the run ended, in seconds since 1970.");
    let ended = ended.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    page.sample("abd_run_end_time_seconds", &of_run(), ended);
    page.family("abd_run_exit_code", "The exit code of the run; 0 where all is well.");
    page.sample("abd_run_exit_code", &of_run(), f64::from(summary.exit_code));
    type OfCopy = fn(&CopySummary) -> f64;
    let of_copies: [(&str, &str, OfCopy); 3] = [
        ("abd_copy_success", "1 where all that should be in another place of the store is.", |copy| {
            f64::from(u8::from(copy.error.is_none()))
        }),
        ("abd_copy_points", "Restore points that were copied there.", |copy| copy.points as f64),
        ("abd_copy_bytes", "Bytes that were moved there.", |copy| copy.bytes as f64),
    ];
    for (name, help, number) in of_copies {
        page.family(name, help);
        for copy in &summary.copies {
            let mut labels = of_run();
            labels.push(("place", copy.to.clone()));
            page.sample(name, &labels, number(copy));
        }
    }
    page.family("abd_job_result", "1 for how the last job of a VM ended, by its result.");
    for vm in &summary.vms {
        let mut labels = of_vm(vm);
        labels.push(("result", vm.result.word().to_owned()));
        page.sample("abd_job_result", &labels, 1.0);
    }
    type Number = fn(&VmSummary) -> f64;
    let numbers: [(&str, &str, Number); 4] = [
        ("abd_job_duration_seconds", "Wall time of the last job.", |vm| vm.elapsed_ms as f64 / 1000.0),
        ("abd_job_alarms", "Disks whose audit caught change tracking missing writes.", |vm| {
            vm.alarms.len() as f64
        }),
        (
            "abd_job_delegates_reused",
            "Delegates of the last job that were kept ones, of earlier jobs.",
            |vm| f64::from(vm.delegates_reused),
        ),
        ("abd_job_leftovers", "Objects that could not be removed from the pool.", |vm| {
            vm.leftovers.len() as f64
        }),
    ];
    for (name, help, number) in numbers {
        page.family(name, help);
        for vm in &summary.vms {
            page.sample(name, &of_vm(vm), number(vm));
        }
    }
    page.family("abd_job_bound_by", "1 for what the last job's data path was bound by.");
    for (vm, path) in paths(summary) {
        let mut labels = of_vm(vm);
        labels.push(("by", path.bound_by.name().to_owned()));
        page.sample("abd_job_bound_by", &labels, 1.0);
    }
    page.family("abd_job_path_seconds", "How long the last job moved data.");
    for (vm, path) in paths(summary) {
        page.sample("abd_job_path_seconds", &of_vm(vm), path.wall_ms as f64 / 1000.0);
    }
    let name = "abd_job_stage_seconds";
    page.family(name, "What the threads of each stage of the data path spent their time on.");
    for (vm, path) in paths(summary) {
        for stage in &path.stages {
            let states = [
                ("busy", stage.busy_ms),
                ("starved", stage.starved_ms),
                ("blocked", stage.blocked_ms),
                ("held", stage.held_ms),
            ];
            for (state, time) in states {
                let mut labels = of_vm(vm);
                labels.extend([("stage", stage.stage.name().to_owned()), ("state", state.to_owned())]);
                page.sample(name, &labels, time as f64 / 1000.0);
            }
        }
    }
    page.family("abd_disk_mode", "1 for how a disk was read, by mode and cause.");
    for (vm, disk) in disks(summary) {
        let mut labels = of_disk(vm, disk);
        labels.extend([("mode", disk.mode.clone()), ("cause", disk.cause.clone())]);
        page.sample("abd_disk_mode", &labels, 1.0);
    }
    type Size = fn(&DiskRow) -> u64;
    let sizes: [(&str, &str, Size); 6] = [
        ("abd_disk_size_bytes", "Size of a disk.", |disk| disk.size),
        ("abd_disk_read_bytes", "Bytes read from a disk, audits included.", |disk| disk.read),
        ("abd_disk_stored_bytes", "Bytes added to the store, compressed.", |disk| disk.stored),
        ("abd_disk_audited_bytes", "Bytes read only to check change tracking.", |disk| disk.audited),
        ("abd_disk_mismatched_bytes", "Audited bytes that tracking had missed.", |disk| disk.mismatched),
        ("abd_disk_bad_bytes", "Bytes that could not be read; zeros are saved there.", |disk| disk.bad),
    ];
    for (name, help, size) in sizes {
        page.family(name, help);
        for (vm, disk) in disks(summary) {
            page.sample(name, &of_disk(vm, disk), size(disk) as f64);
        }
    }
    const THROTTLED: &str = "abd_disk_throttled_seconds";
    page.family(THROTTLED, "Time that reading was held back because the disk answered slowly.");
    for (vm, disk) in disks(summary) {
        page.sample(THROTTLED, &of_disk(vm, disk), disk.throttled_ms as f64 / 1000.0);
    }
    page.text
}

fn paths(summary: &RunSummary) -> impl Iterator<Item = (&VmSummary, &PathSummary)> {
    summary.vms.iter().filter_map(|vm| Some((vm, vm.path.as_ref()?)))
}

fn disks(summary: &RunSummary) -> impl Iterator<Item = (&VmSummary, &DiskRow)> {
    summary.vms.iter().flat_map(|vm| vm.disks.iter().map(move |disk| (vm, disk)))
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn family(&mut self, name: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, String)], value: f64) {
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escape(value))).collect();
        // As above.
        let _ = writeln!(self.text, "{name}{{{}}} {value}", labels.join(","));
    }
}

/// A label's value as the format wants it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::VmResult;
    use super::*;
    use crate::path::tests::held_up;
    use std::time::Duration;

    fn summary() -> RunSummary {
        let disk = DiskRow {
            name: "a \"disk\"\\".into(),
            vdi: "v".into(),
            mode: "scan".into(),
            cause: "reference-missing".into(),
            read: 131_072,
            ..DiskRow::default()
        };
        let vm = |name: &str, result, disks: Vec<DiskRow>| VmSummary {
            vm: name.into(),
            uuid: "u".into(),
            pool: "dc1".into(),
            result,
            elapsed_ms: 1500,
            path: (!disks.is_empty()).then(held_up),
            disks,
            ..VmSummary::default()
        };
        RunSummary {
            name: "nightly".into(),
            copies: vec![CopySummary {
                to: "s3://b/x".into(),
                points: 2,
                bytes: 9,
                ..CopySummary::default()
            }],
            vms: vec![vm("web01", VmResult::Done, vec![disk]), vm("db01", VmResult::Failed, Vec::new())],
            ..RunSummary::default()
        }
    }

    #[test]
    fn every_disk_tells_how_and_why_it_was_read() {
        let text = metrics(&summary(), UNIX_EPOCH + Duration::from_millis(1500));
        let web01 = "run=\"nightly\",pool=\"dc1\",vm=\"web01\",uuid=\"u\"";
        let disk = format!("{web01},disk=\"a \\\"disk\\\"\\\\\",vdi=\"v\"");
        for line in [
            "abd_run_end_time_seconds{run=\"nightly\"} 1.5".to_owned(),
            "abd_copy_success{run=\"nightly\",place=\"s3://b/x\"} 1".to_owned(),
            "abd_copy_bytes{run=\"nightly\",place=\"s3://b/x\"} 9".to_owned(),
            format!("abd_job_result{{{web01},result=\"done\"}} 1"),
            format!("abd_job_duration_seconds{{{web01}}} 1.5"),
            format!("abd_job_bound_by{{{web01},by=\"network\"}} 1"),
            format!("abd_job_path_seconds{{{web01}}} 10.4"),
            format!("abd_job_stage_seconds{{{web01},stage=\"read\",state=\"blocked\"}} 9"),
            format!("abd_disk_mode{{{disk},mode=\"scan\",cause=\"reference-missing\"}} 1"),
            format!("abd_disk_read_bytes{{{disk}}} 131072"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        assert!(text.contains("vm=\"db01\",uuid=\"u\",result=\"failed\"} 1"), "{text}");
    }

    #[test]
    fn each_family_is_described_once_before_its_samples() {
        let text = metrics(&summary(), UNIX_EPOCH);
        let mut described = Vec::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" gauge")) {
                assert!(!described.contains(&name), "{name} twice");
                described.push(name);
            } else if !line.starts_with('#') {
                let name = line.split('{').next().expect("a name");
                assert_eq!(described.last(), Some(&name), "{line}");
            }
        }
        assert_eq!(described.len(), 21);
    }
}
