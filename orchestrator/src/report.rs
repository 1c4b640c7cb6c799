//! What people and programs see while commands run: progress bars on a terminal, one aligned line per event
//! otherwise, or one JSON object per line.

use crate::check::DelegateCheck;
use crate::path::PathSummary;
use crate::printable::{printable, printable_lines};
use blocks::ByteCount;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;

/// Something that happened, with a stable JSON form: `{"event": "...", ...}`.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A job began.
    JobStarted {
        /// The job's uuid.
        job: String,
        /// The VM's name, or the restore point's.
        subject: String,
    },
    /// A job reached its next step.
    Step {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// A few words, such as `snapshot`.
        step: String,
    },
    /// How a disk will be read.
    DiskPlan {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// The disk's name.
        disk: String,
        /// `cbt`, `vhd-diff`, `scan` or `full`.
        mode: String,
        /// Why, as a stable code.
        cause: String,
        /// Why.
        reason: String,
        /// Size of the disk in bytes.
        size: u64,
        /// Bytes that will be read.
        planned: u64,
    },
    /// How far a job is.
    Progress {
        /// The job's uuid.
        job: String,
        /// Bytes read or written so far.
        moved: u64,
        /// Bytes to read or write.
        planned: u64,
        /// Bytes shipped to the store so far, sealed.
        sealed: u64,
    },
    /// A job is done.
    JobDone(Box<JobSummary>),
    /// A job failed.
    JobFailed {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// A short code where the delegate gave one.
        code: Option<String>,
        /// What happened.
        error: String,
        /// What to do about it.
        remedy: Option<String>,
        /// Objects that could not be removed from the pool.
        leftovers: Vec<String>,
    },
    /// A job was left out, as configured.
    JobSkipped {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// Why.
        reason: String,
        /// What to do about it.
        remedy: Option<String>,
    },
    /// What a delegate found that was started only to look.
    DelegateChecked(Box<DelegateCheck>),
    /// An audit caught change tracking missing writes: earlier restore points are in doubt.
    Alarm {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// The disk's name.
        disk: String,
        /// What it means, and what to do.
        message: String,
    },
    /// Parts of a disk could not be read: zeros are saved there.
    BadBlocks {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// The disk's name.
        disk: String,
        /// Uuid of its VDI.
        vdi: String,
        /// Which parts.
        bad: wire::BadRanges,
        /// What it means, and what to do.
        message: String,
    },
    /// After a job, restore points that no rule keeps were removed.
    PointsRemoved {
        /// The job's uuid.
        job: String,
        /// The VM's name.
        subject: String,
        /// Ids of the points that are gone.
        removed: Vec<String>,
        /// How many of the job's points of this VM stay.
        kept: usize,
    },
    /// Odd, but it went on.
    Warning {
        /// The job's uuid, where it belongs to one.
        #[serde(skip_serializing_if = "Option::is_none")]
        job: Option<String>,
        /// One sentence.
        message: String,
    },
    /// A plain message.
    Note {
        /// One sentence.
        message: String,
    },
    /// How far something is that is counted in pieces.
    Pieces {
        /// What is gone through.
        what: String,
        /// Pieces so far.
        done: u64,
        /// Pieces in all.
        total: u64,
    },
    /// How far an upload or a check is.
    Bytes {
        /// What moves.
        what: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// The result of a job.
#[derive(Clone, Debug, Serialize)]
pub struct JobSummary {
    /// The job's uuid.
    pub job: String,
    /// `backup` or `restore`.
    pub kind: String,
    /// The VM's name.
    pub subject: String,
    /// The restore point that was made or restored.
    pub point: String,
    /// Wall time in milliseconds.
    pub elapsed_ms: u64,
    /// Names of disks whose audit failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<String>,
    /// Each disk.
    pub disks: Vec<DiskSummary>,
    /// What the delegate reported of itself.
    pub delegate: DelegateSummary,
    /// What the time of the data path was spent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathSummary>,
}

/// The result of one disk.
#[derive(Clone, Debug, Serialize)]
pub struct DiskSummary {
    /// The disk's name.
    pub name: String,
    /// Uuid of the VDI: the source of a backup, the target of a restore.
    pub vdi: String,
    /// Bytes of the disk.
    pub size: u64,
    /// `cbt`, `vhd-diff`, `scan`, `full` or `restore`.
    pub mode: String,
    /// Why, as a stable code.
    pub cause: String,
    /// Why.
    pub reason: String,
    /// The id that proves the disk.
    pub tree_id: String,
    /// Counts by the delegate.
    #[serde(flatten)]
    pub counts: wire::DiskCounts,
    /// What the time of the data path was spent on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathSummary>,
    /// The same of each pass, where there was more than one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passes: Vec<PathSummary>,
    /// What could not be read, and is zeros in the restore point.
    #[serde(skip_serializing_if = "wire::BadRanges::is_empty")]
    pub bad: wire::BadRanges,
    /// How fast it was read, and what held the delegate back.
    pub pacing: wire::Pacing,
}

impl JobSummary {
    /// The disks of which a part could not be read.
    pub fn bad(&self) -> impl Iterator<Item = &DiskSummary> {
        self.disks.iter().filter(|disk| !disk.bad.is_empty())
    }
}

/// What a delegate reported of itself.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DelegateSummary {
    /// How many of the job's delegates were kept ones, of earlier jobs.
    pub reused: u32,
    /// Version of its program.
    pub agent: String,
    /// How it read disks.
    pub engine: String,
    /// From the start of its kernel to user space, in milliseconds.
    pub boot_ms: u32,
    /// From the start of its kernel to the order, in milliseconds.
    pub claim_ms: u32,
    /// Memory that its kernel saw, in bytes.
    pub memory: u64,
    /// Most memory that its worker held, in bytes.
    pub worker_peak: u64,
    /// Least memory available in it, in bytes.
    pub available_low: u64,
    /// Processor time of its worker in milliseconds.
    pub cpu_ms: u64,
}

/// Shows events. Shared by all jobs of a run.
#[derive(Debug)]
pub struct Report {
    json: bool,
    /// Whether people see nothing while jobs run, because they read a summary afterwards.
    quiet: bool,
    /// Whether people see what the time of each disk was spent on.
    detailed: bool,
    bars: Option<MultiProgress>,
    shown: Mutex<HashMap<String, ProgressBar>>,
}

impl Report {
    /// JSON lines on standard output, or text with progress bars where standard error is a terminal.
    pub fn new(json: bool) -> Self {
        let bars = (!json && std::io::stderr().is_terminal())
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));
        Self { json, quiet: false, detailed: false, bars, shown: Mutex::default() }
    }

    /// The same without lines about what happens. Programs see all of it still, and so do progress bars.
    #[must_use]
    pub fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The same with a table of what the time of each disk was spent on.
    #[must_use]
    pub fn detailed(self, detailed: bool) -> Self {
        Self { detailed, ..self }
    }

    /// Whether programs read the output.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Prints an answer: the JSON value as it is, or the text.
    pub fn answer(&self, value: &impl Serialize, text: impl FnOnce() -> String) {
        if self.json {
            self.line(&to_json(value));
        } else {
            self.line(&printable_lines(text().trim_end()));
        }
    }

    /// Shows that something happened.
    pub fn event(&self, event: &Event) {
        if self.json {
            return self.line(&to_json(event));
        }
        match event {
            Event::Progress { job, moved, planned, sealed } => {
                if let Some(bar) = self.shown().get(job) {
                    bar.set_length((*planned).max(1));
                    bar.set_position(*moved);
                    bar.set_message(format!("{} stored", ByteCount::new(*sealed)));
                }
            }
            Event::Bytes { what, done, total } => self.bar(what, *done, *total, None),
            Event::Pieces { what, done, total } => {
                self.bar(what, *done, *total, Some("{prefix:20} [{bar:30}] {percent:>3}% {pos}/{len}"));
            }
            Event::Step { job, subject, step } => match self.shown().get(job) {
                Some(bar) => bar.set_message(printable(step).into_owned()),
                None => self.tell(&format!("{:<20} {}", printable(subject), printable(step))),
            },
            Event::JobStarted { job, subject } => self.start_bar(job, subject),
            Event::JobDone(summary) => {
                self.end_bar(&summary.job);
                self.tell(&summary_text(summary));
                if self.detailed {
                    self.line(&printable_lines(&path_text(summary)));
                }
            }
            Event::JobFailed { job, subject, error, remedy, leftovers, .. } => {
                self.end_bar(job);
                let mut text = format!("{:<20} FAILED: {}", printable(subject), printable(error));
                if let Some(remedy) = remedy {
                    text.push_str(&format!("\n{:20} what to do: {}", "", printable(remedy)));
                }
                for leftover in leftovers {
                    text.push_str(&format!("\n{:20} still in the pool: {}", "", printable(leftover)));
                }
                self.tell(&text);
            }
            // It is told at the end, with those of the other hosts.
            Event::DelegateChecked(check) => self.end_bar(&check.job),
            Event::JobSkipped { job, subject, reason, remedy } => {
                self.end_bar(job);
                let mut text = format!("{:<20} skipped: {}", printable(subject), printable(reason));
                if let Some(remedy) = remedy {
                    text.push_str(&format!("\n{:20} what to do: {}", "", printable(remedy)));
                }
                self.line(&printable_lines(&text));
            }
            Event::DiskPlan { subject, disk, mode, reason, planned, .. } => {
                let planned = ByteCount::new(*planned);
                let (subject, disk) = (printable(subject), printable(disk));
                let reason = printable(reason);
                self.tell(&format!("{subject:<20} {disk}: {mode}, {planned} to read ({reason})"));
            }
            Event::Alarm { message, .. } => self.tell(&format!("ALARM: {}", printable(message))),
            Event::BadBlocks { message, .. } => self.tell(&format!("BAD BLOCKS: {}", printable(message))),
            Event::Warning { message, .. } => self.tell(&format!("warning: {}", printable(message))),
            Event::PointsRemoved { subject, removed, kept, .. } if !removed.is_empty() => {
                let count = removed.len();
                let subject = printable(subject);
                self.tell(&format!("{subject:<20} {count} restore points removed by the rules, {kept} stay"));
            }
            Event::PointsRemoved { .. } => {}
            Event::Note { message } => self.tell(&printable(message)),
        }
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn start_bar(&self, key: &str, subject: &str) {
        let Some(bars) = &self.bars else { return };
        let style = ProgressStyle::with_template(
            "{prefix:20} [{bar:30}] {percent:>3}% {binary_bytes_per_sec:>14} {msg}",
        )
        .expect("the template is constant")
        .progress_chars("=> ");
        let bar =
            bars.add(ProgressBar::new(1).with_style(style).with_prefix(printable(subject).into_owned()));
        bar.tick();
        self.shown().insert(key.to_owned(), bar);
    }

    fn end_bar(&self, key: &str) {
        if let Some(bar) = self.shown().remove(key) {
            bar.finish_and_clear();
        }
    }

    fn bar(&self, what: &str, done: u64, total: u64, template: Option<&str>) {
        if self.bars.is_none() {
            return;
        }
        if !self.shown().contains_key(what) {
            self.start_bar(what, what);
            let style = template.and_then(|template| ProgressStyle::with_template(template).ok());
            let style = style.map(|style| style.progress_chars("=> "));
            if let (Some(bar), Some(style)) = (self.shown().get(what), style) {
                bar.set_style(style);
            }
        }
        if done >= total {
            return self.end_bar(what);
        }
        if let Some(bar) = self.shown().get(what) {
            bar.set_length(total.max(1));
            bar.set_position(done);
        }
    }

    /// A line about what happens.
    fn tell(&self, text: &str) {
        if !self.quiet {
            self.line(&printable_lines(text));
        }
    }

    /// A reader that went away (`abd list | head`) is no reason to stop a backup.
    fn line(&self, text: &str) {
        let write = || {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        };
        match &self.bars {
            Some(bars) => bars.suspend(write),
            None => write(),
        }
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("reports are plain text and numbers")
}

fn summary_text(summary: &JobSummary) -> String {
    let seconds = summary.elapsed_ms as f64 / 1000.0;
    let point = &summary.point[..summary.point.len().min(12)];
    let mut text = format!(
        "{:<20} {} done in {seconds:.1} s: restore point {point}",
        printable(&summary.subject),
        summary.kind
    );
    for disk in &summary.disks {
        let (counts, name) = (&disk.counts, printable(&disk.name));
        let line = if summary.kind == "backup" {
            let read = ByteCount::new(counts.moved.get().saturating_sub(counts.audited.get()));
            let audit = match counts.audited.get() {
                0 => String::new(),
                _ => format!(", {} audited", counts.audited),
            };
            format!(
                "{}: {read} of {} read ({}){audit}, {} new, {} stored",
                name,
                ByteCount::new(disk.size),
                disk.mode,
                counts.shipped,
                counts.sealed
            )
        } else {
            format!("{}: {} written to VDI {}", name, counts.moved, disk.vdi)
        };
        text.push_str(&format!("\n{:20} {line}", ""));
        if disk.pacing.is_held_back() {
            text.push_str(&format!("\n{:20} {}: {}", "", name, disk.pacing));
        }
        if !disk.bad.is_empty() {
            text.push_str(&format!("\n{:20} {}: COULD NOT BE READ: {}; zeros instead", "", name, disk.bad));
        }
    }
    if let Some(path) = &summary.path {
        text.push_str(&format!("\n{:20} {}", "", path.line()));
    }
    text
}

/// What the time of a job's data path was spent on: a table for each disk, and one for all where there are several.
fn path_text(summary: &JobSummary) -> String {
    let mut parts = Vec::new();
    let mut part = |name: String, path: &PathSummary| {
        parts.push(format!("{name}: {}\n{}", path.line(), path.table()));
    };
    for disk in &summary.disks {
        for (pass, number) in disk.passes.iter().zip(1..) {
            part(format!("{}, {}, pass {number}", summary.subject, disk.name), pass);
        }
        if let Some(path) = &disk.path {
            part(format!("{}, {}", summary.subject, disk.name), path);
        }
    }
    if let Some(path) = summary.path.as_ref().filter(|_| summary.disks.len() > 1) {
        part(format!("{}, all disks", summary.subject), path);
    }
    parts.join("\n\n")
}

/// A table with aligned columns for people.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| printable(cell)).collect()).collect();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([header[column].chars().count()])
            .max()
    };
    let widths: Vec<usize> = (0..header.len()).map(|column| width(column).unwrap_or(0)).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(AsRef::as_ref))));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let rows = vec![vec!["a".to_owned(), "long cell".to_owned()], vec!["bcd".to_owned(), "x".to_owned()]];
        assert_eq!(table(&["N", "VALUE"], &rows), "N    VALUE\na    long cell\nbcd  x");
        let rows = vec![vec!["a\u{1b}[2J".to_owned(), "x\ny".to_owned()]];
        assert_eq!(table(&["N", "VALUE"], &rows), "N           VALUE\na\\u{1b}[2J  x\\ny");
    }

    #[test]
    fn events_have_a_stable_json_form() {
        let event = Event::Progress { job: "j".into(), moved: 1, planned: 2, sealed: 3 };
        assert_eq!(to_json(&event), r#"{"event":"progress","job":"j","moved":1,"planned":2,"sealed":3}"#);
        let event = Event::Warning { job: None, message: "m".into() };
        assert_eq!(to_json(&event), r#"{"event":"warning","message":"m"}"#);
    }
}
