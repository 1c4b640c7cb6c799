//! The results of a run as metrics: a text file in Prometheus' exposition format, for the node exporter's textfile
//! collector. Written whole or not at all, so that a scrape never meets half of it.
//!
//! Names and labels are stable. Labels hold names of VMs and disks, modes and causes; never a secret.

use crate::config::write_durable;
use crate::error::{Kind, Result, file_error};
use crate::job::{End, JobResult};
use crate::report::{DiskSummary, JobSummary};
use std::fmt::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes the metrics of a run's jobs to a file.
///
/// # Errors
/// [`Kind::Usage`] naming the file that cannot be written.
pub fn write(path: &Path, run: &str, pool: &str, results: &[JobResult], ended: SystemTime) -> Result<()> {
    let text = text(run, pool, results, ended);
    write_durable(path, text.as_bytes()).map_err(|error| {
        file_error(Kind::Usage, path, "write", error).remedy("name a file in a directory that exists")
    })
}

/// The metrics as text. `run` is the name of the job file, empty where there is none.
pub fn text(run: &str, pool: &str, results: &[JobResult], ended: SystemTime) -> String {
    let mut page = Page::default();
    let ended = ended.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
    let done: Vec<(&JobResult, &JobSummary)> =
        results.iter().filter_map(|result| Some((result, result.summary.as_ref()?))).collect();
    let job = |result: &JobResult| {
        vec![("run", run.to_owned()), ("pool", pool.to_owned()), ("vm", result.subject.clone())]
    };
    let disk = |result: &JobResult, disk: &DiskSummary| {
        let mut labels = job(result);
        labels.extend([("disk", disk.name.clone()), ("vdi", disk.vdi.clone())]);
        labels
    };

    page.family("abd_run_end_time_seconds", "When the run ended, in seconds since 1970.");
    page.sample("abd_run_end_time_seconds", &[("run", run.into()), ("pool", pool.into())], ended);
    page.family("abd_job_result", "1 for how the last job of a VM ended, by its result.");
    for result in results {
        let mut labels = job(result);
        labels.push(("result", end_name(result.end).into()));
        page.sample("abd_job_result", &labels, 1.0);
    }
    page.family("abd_job_duration_seconds", "Wall time of a job that did its work.");
    for (result, summary) in &done {
        page.sample("abd_job_duration_seconds", &job(result), summary.elapsed_ms as f64 / 1000.0);
    }
    page.family("abd_job_leftovers", "Objects that could not be removed from the pool.");
    for result in results {
        page.sample("abd_job_leftovers", &job(result), result.leftovers.len() as f64);
    }
    page.family("abd_disk_mode", "1 for how a disk was read, by mode and cause.");
    for (result, summary) in &done {
        for each in &summary.disks {
            let mut labels = disk(result, each);
            labels.extend([("mode", each.mode.clone()), ("cause", each.cause.clone())]);
            page.sample("abd_disk_mode", &labels, 1.0);
        }
    }
    type Size = fn(&DiskSummary) -> u64;
    let sizes: [(&str, &str, Size); 6] = [
        ("abd_disk_size_bytes", "Size of a disk.", |disk| disk.size),
        ("abd_disk_read_bytes", "Bytes read from a disk, audits included.", |disk| disk.counts.moved.get()),
        ("abd_disk_shipped_bytes", "Plain bytes that the store lacked.", |disk| disk.counts.shipped.get()),
        ("abd_disk_stored_bytes", "The same as they were stored.", |disk| disk.counts.sealed.get()),
        ("abd_disk_audited_bytes", "Bytes read only to check change tracking.", |disk| {
            disk.counts.audited.get()
        }),
        (
            "abd_disk_mismatched_bytes",
            "Audited bytes that tracking had missed; above 0 is an alarm.",
            |disk| disk.counts.mismatched.get(),
        ),
    ];
    for (name, help, size) in sizes {
        page.family(name, help);
        for (result, summary) in &done {
            for each in &summary.disks {
                page.sample(name, &disk(result, each), size(each) as f64);
            }
        }
    }
    page.text
}

const fn end_name(end: End) -> &'static str {
    match end {
        End::Done => "done",
        End::Leftovers => "leftovers",
        End::Alarm => "alarm",
        End::Skipped => "skipped",
        End::Failed(_) => "failed",
    }
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
    use super::*;
    use crate::report::DelegateSummary;
    use blocks::ByteCount;
    use std::time::Duration;

    fn result(end: End) -> JobResult {
        let counts = wire::DiskCounts { moved: ByteCount::new(131_072), ..Default::default() };
        let disk = DiskSummary {
            name: "a \"disk\"\\".into(),
            vdi: "v".into(),
            size: 4_194_304,
            mode: "scan".into(),
            cause: "reference-missing".into(),
            reason: "the reference VDI is gone".into(),
            tree_id: String::new(),
            counts,
        };
        let summary = JobSummary {
            job: "j".into(),
            kind: "backup".into(),
            subject: "web01".into(),
            point: "p".into(),
            elapsed_ms: 1500,
            alarms: Vec::new(),
            disks: vec![disk],
            delegate: DelegateSummary::default(),
        };
        JobResult {
            job: "j".into(),
            subject: "web01".into(),
            end,
            summary: Some(summary),
            error: None,
            remedy: None,
            code: None,
            leftovers: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn every_disk_tells_how_and_why_it_was_read() {
        let at = UNIX_EPOCH + Duration::from_millis(1500);
        let text = text("nightly", "dc1", &[result(End::Done)], at);
        for line in [
            "abd_run_end_time_seconds{run=\"nightly\",pool=\"dc1\"} 1.5",
            "abd_job_result{run=\"nightly\",pool=\"dc1\",vm=\"web01\",result=\"done\"} 1",
            "abd_job_duration_seconds{run=\"nightly\",pool=\"dc1\",vm=\"web01\"} 1.5",
            "abd_disk_mode{run=\"nightly\",pool=\"dc1\",vm=\"web01\",disk=\"a \\\"disk\\\"\\\\\",vdi=\"v\",\
             mode=\"scan\",cause=\"reference-missing\"} 1",
            "abd_disk_read_bytes{run=\"nightly\",pool=\"dc1\",vm=\"web01\",disk=\"a \\\"disk\\\"\\\\\",vdi=\"v\"} 131072",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn each_family_is_described_once_before_its_samples() {
        let text = text("", "dc1", &[result(End::Done), result(End::Alarm)], UNIX_EPOCH);
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
        assert_eq!(described.len(), 11);
    }
}
