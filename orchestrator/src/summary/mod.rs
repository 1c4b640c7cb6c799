//! What a run leaves behind for people and programs: its result, each VM's, and what is to be done.
//!
//! Pure: the facts come in, the exit code, the JSON form and the text for a mail go out. Promises: a VM without a new
//! restore point is never part of "all fine"; the JSON form only grows within a version.

mod metrics;
mod text;

pub use metrics::metrics;
pub use text::text;

use crate::error::{Error, Kind};
use crate::path::PathSummary;
use serde::Serialize;

/// Version of the JSON form. Within a version members are only added.
pub const VERSION: u32 = 1;

/// A run that is over. Its JSON form is documented in the room's README.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RunSummary {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the run.
    pub name: String,
    /// Uuid of the run.
    pub run: String,
    /// Names of the pools.
    pub pools: Vec<String>,
    /// Directory of the store.
    pub store: String,
    /// When it began, by the local clock: RFC 3339 with the offset.
    pub started: String,
    /// When it ended.
    pub ended: String,
    /// Wall time in milliseconds.
    pub elapsed_ms: u64,
    /// `done`, `failed`, `alarm`, `bad-blocks`, `leftovers`, `nothing-done` or `stopped`.
    pub result: &'static str,
    /// The process's exit code.
    pub exit_code: u8,
    /// The same, for this program; none where all is well.
    #[serde(skip)]
    pub verdict: Option<Kind>,
    /// Why the run as a whole failed, where it did.
    pub error: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// How many VMs ended how.
    pub counts: Counts,
    /// Bytes that delegates read.
    pub read: u64,
    /// Bytes that were added to the store, compressed.
    pub stored: u64,
    /// The VMs, in the order in which they were queued.
    pub vms: Vec<VmSummary>,
    /// Odd things that concern the run as a whole.
    pub warnings: Vec<String>,
    /// Copies to other places of the store.
    pub copies: Vec<CopySummary>,
}

/// How one copy to another place of the store ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CopySummary {
    /// Where to.
    pub to: String,
    /// Restore points that were copied.
    pub points: usize,
    /// Those that are damaged here and were left out.
    pub omitted: usize,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Wall time in milliseconds.
    pub elapsed_ms: u64,
    /// Why not everything is there that should be.
    pub error: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
}

/// How many VMs ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// VMs that were selected.
    pub selected: usize,
    /// Those with a new restore point.
    pub done: usize,
    /// Those whose job failed.
    pub failed: usize,
    /// Those whose job did not start.
    pub skipped: usize,
    /// Those whose audit failed: earlier restore points are in doubt.
    pub alarms: usize,
    /// Those of which something is still in the pool.
    pub leftovers: usize,
    /// Those with disks of which a part could not be read.
    pub bad_blocks: usize,
}

/// How one VM's job ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum VmResult {
    /// There is a new restore point.
    Done,
    /// The job failed.
    Failed,
    /// The job did not start.
    #[default]
    Skipped,
}

impl VmResult {
    /// The word for hooks and programs, as in the JSON form.
    pub const fn word(self) -> &'static str {
        match self {
            VmResult::Done => "done",
            VmResult::Failed => "failed",
            VmResult::Skipped => "skipped",
        }
    }
}

/// One VM of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct VmSummary {
    /// Its name.
    pub vm: String,
    /// Its uuid; empty where it was named and is not there.
    pub uuid: String,
    /// Name of its pool; empty where it was not found and there are several.
    pub pool: String,
    /// How it ended.
    pub result: VmResult,
    /// Uuid of the last job; none where none started.
    pub job: Option<String>,
    /// How many jobs were tried.
    pub tries: u32,
    /// The restore point.
    pub point: Option<String>,
    /// Wall time of the last job in milliseconds.
    pub elapsed_ms: u64,
    /// Its disks.
    pub disks: Vec<DiskRow>,
    /// What the time of the last job's data path was spent on, and what it was bound by; none where none moved data.
    pub path: Option<PathSummary>,
    /// How many delegates of the last job were kept ones, of earlier jobs.
    pub delegates_reused: u32,
    /// Why there is no restore point.
    pub error: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// A short code where the delegate gave one.
    pub code: Option<String>,
    /// The exit code that goes with the failure.
    pub exit_code: Option<u8>,
    /// The same, for this program.
    #[serde(skip)]
    pub kind: Option<Kind>,
    /// Odd things on the way.
    pub warnings: Vec<String>,
    /// Disks whose audit failed.
    pub alarms: Vec<String>,
    /// Objects that could not be removed from the pool.
    pub leftovers: Vec<String>,
}

/// One disk of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DiskRow {
    /// Its name.
    pub name: String,
    /// Uuid of its VDI.
    pub vdi: String,
    /// Its size in bytes.
    pub size: u64,
    /// How it was read.
    pub mode: String,
    /// Why, as a stable code.
    pub cause: String,
    /// Why, in words.
    pub reason: String,
    /// Bytes that were read, audits included.
    pub read: u64,
    /// Of these, bytes that were read only to check change tracking.
    pub audited: u64,
    /// Of these, bytes that tracking had missed.
    pub mismatched: u64,
    /// Bytes that were added to the store, compressed.
    pub stored: u64,
    /// Bytes that could not be read: zeros are saved there.
    pub bad: u64,
    /// In so many places.
    pub bad_ranges: u64,
    /// From the first read to the last, in milliseconds.
    pub reading_ms: u64,
    /// Of these, held back to keep `rate_limit`.
    pub limited_ms: u64,
    /// Of these, held back because the disk answered slowly.
    pub throttled_ms: u64,
}

impl VmSummary {
    /// Disks of which a part could not be read.
    pub fn bad(&self) -> impl Iterator<Item = &DiskRow> {
        self.disks.iter().filter(|disk| disk.bad > 0)
    }

    /// A backup that failed by an error; of which VM is to be filled in.
    pub fn failed(error: &Error) -> Self {
        Self {
            result: VmResult::Failed,
            kind: Some(error.kind()),
            exit_code: Some(error.kind().exit_code()),
            error: Some(error.chain()),
            remedy: error.remedy_text().map(str::to_owned),
            ..Self::default()
        }
    }

    /// Bytes that were read.
    pub fn read(&self) -> u64 {
        self.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.read))
    }

    /// Bytes that were added to the store.
    pub fn stored(&self) -> u64 {
        self.disks.iter().fold(0, |sum, disk| sum.saturating_add(disk.stored))
    }
}

/// What a run as a whole came to, beside its VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// The user stopped it.
    pub is_stopped: bool,
    /// Something of earlier jobs is still in a pool; the warnings name it.
    pub has_old_leftovers: bool,
    /// Something failed that is no job: a hook, a pool.
    pub failure: Option<(Kind, String, Option<String>)>,
}

impl RunSummary {
    /// Counts, and decides what the run came to.
    #[must_use]
    pub fn concluded(mut self, whole: Whole) -> Self {
        let count = |has: &dyn Fn(&VmSummary) -> bool| self.vms.iter().filter(|vm| has(vm)).count();
        self.counts = Counts {
            selected: self.vms.len(),
            done: count(&|vm| vm.result == VmResult::Done),
            failed: count(&|vm| vm.result == VmResult::Failed),
            skipped: count(&|vm| vm.result == VmResult::Skipped),
            alarms: count(&|vm| !vm.alarms.is_empty()),
            leftovers: count(&|vm| !vm.leftovers.is_empty()),
            bad_blocks: count(&|vm| vm.bad().next().is_some()),
        };
        self.version = VERSION;
        self.read = self.vms.iter().fold(0, |sum, vm| sum.saturating_add(vm.read()));
        self.stored = self.vms.iter().fold(0, |sum, vm| sum.saturating_add(vm.stored()));
        let verdict = verdict(&self.vms, &whole);
        self.verdict = verdict;
        self.result = word(verdict);
        self.exit_code = verdict.map_or(0, Kind::exit_code);
        (self.error, self.remedy) =
            whole.failure.map_or((None, None), |(_, error, remedy)| (Some(error), remedy));
        self
    }

    /// What the run came to as one sentence: the subject of a mail.
    pub fn headline(&self) -> String {
        text::headline(self)
    }
}

/// What a run came to; none where every VM has a new restore point and nothing is left to do.
pub fn verdict(vms: &[VmSummary], whole: &Whole) -> Option<Kind> {
    // Data of earlier points in doubt is worse than a point that is missing.
    if vms.iter().any(|vm| !vm.alarms.is_empty()) {
        return Some(Kind::Alarm);
    }
    if whole.is_stopped {
        return Some(Kind::Cancelled);
    }
    let kinds: Vec<Kind> = vms
        .iter()
        .filter(|vm| vm.result == VmResult::Failed)
        .map(|vm| vm.kind.unwrap_or(Kind::Failed))
        .collect();
    let skipped = vms.iter().filter(|vm| vm.result == VmResult::Skipped).count();
    if let Some((kind, ..)) = whole.failure {
        return Some(if kinds.iter().all(|other| *other == kind) { kind } else { Kind::Failed });
    }
    if skipped == vms.len() {
        return Some(Kind::NothingDone);
    }
    match kinds.first() {
        // A VM that was skipped has no new restore point either: that is not "all fine".
        Some(first) if skipped == 0 && kinds.iter().all(|kind| kind == first) => Some(*first),
        Some(_) => Some(Kind::Failed),
        None if skipped > 0 => Some(Kind::Failed),
        None if vms.iter().any(|vm| vm.bad().next().is_some()) => Some(Kind::BadBlocks),
        None => {
            let left = whole.has_old_leftovers || vms.iter().any(|vm| !vm.leftovers.is_empty());
            left.then_some(Kind::Leftovers)
        }
    }
}

fn word(verdict: Option<Kind>) -> &'static str {
    match verdict {
        None => "done",
        Some(Kind::Alarm) => "alarm",
        Some(Kind::BadBlocks) => "bad-blocks",
        Some(Kind::Leftovers) => "leftovers",
        Some(Kind::NothingDone) => "nothing-done",
        Some(Kind::Cancelled) => "stopped",
        Some(_) => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(result: VmResult, kind: Option<Kind>) -> VmSummary {
        VmSummary { vm: "web01".into(), result, kind, ..VmSummary::default() }
    }

    fn done() -> VmSummary {
        vm(VmResult::Done, None)
    }

    fn failed(kind: Kind) -> VmSummary {
        vm(VmResult::Failed, Some(kind))
    }

    fn code(vms: &[VmSummary]) -> u8 {
        verdict(vms, &Whole::default()).map_or(0, Kind::exit_code)
    }

    #[test]
    fn only_a_new_restore_point_of_every_vm_is_all_fine() {
        let skipped = || vm(VmResult::Skipped, None);
        assert_eq!(code(&[done(), done()]), 0);
        assert_eq!(code(&[done(), failed(Kind::Failed)]), 1);
        assert_eq!(code(&[done(), skipped()]), 1);
        assert_eq!(code(&[skipped(), skipped()]), 12);
        assert_eq!(code(&[]), 12);
        assert_eq!(code(&[failed(Kind::Failed), skipped()]), 1);
    }

    #[test]
    fn failures_that_agree_give_their_own_code() {
        assert_eq!(code(&[done(), failed(Kind::StoreFull), failed(Kind::StoreFull)]), 9);
        assert_eq!(code(&[failed(Kind::StoreFull), failed(Kind::Unreachable)]), 1);
        assert_eq!(code(&[failed(Kind::Locked)]), 14);
    }

    #[test]
    fn an_alarm_outranks_everything_and_leftovers_nothing() {
        let alarm = VmSummary { alarms: vec!["root".into()], ..done() };
        let leftover = VmSummary { leftovers: vec!["VDI x".into()], ..done() };
        let stopped = Whole { is_stopped: true, ..Whole::default() };
        assert_eq!(verdict(&[alarm.clone(), failed(Kind::StoreFull)], &stopped), Some(Kind::Alarm));
        assert_eq!(verdict(&[done(), leftover.clone()], &stopped), Some(Kind::Cancelled));
        assert_eq!(code(&[done(), leftover.clone()]), 11);
        assert_eq!(code(&[failed(Kind::Unreachable), leftover]), 5);
    }

    #[test]
    fn what_could_not_be_read_is_worse_than_leftovers_and_better_than_no_backup() {
        let disk = DiskRow { name: "root".into(), bad: 512, bad_ranges: 1, ..DiskRow::default() };
        let bad = VmSummary { disks: vec![disk], leftovers: vec!["VDI x".into()], ..done() };
        assert_eq!(code(&[done(), bad.clone()]), 15);
        assert_eq!(code(&[bad.clone(), failed(Kind::StoreFull)]), 9);
        let alarm = VmSummary { alarms: vec!["root".into()], ..bad.clone() };
        assert_eq!(code(&[alarm]), 13);
        let summary =
            RunSummary { vms: vec![bad, done()], ..RunSummary::default() }.concluded(Whole::default());
        assert_eq!((summary.result, summary.counts.bad_blocks), ("bad-blocks", 1));
        let said = text(&summary);
        assert!(said.contains("BAD BLOCKS") && said.contains("512 B in 1 place"), "{said}");
        assert!(said.contains("VDI x"), "and the rest: {said}");
    }

    #[test]
    fn what_earlier_jobs_left_counts_where_nothing_is_worse() {
        let old = Whole { has_old_leftovers: true, ..Whole::default() };
        assert_eq!(verdict(&[done()], &old), Some(Kind::Leftovers));
        assert_eq!(verdict(&[done(), failed(Kind::StoreFull)], &old), Some(Kind::StoreFull));
        let alarm = VmSummary { alarms: vec!["root".into()], leftovers: vec!["VDI x".into()], ..done() };
        assert_eq!(verdict(std::slice::from_ref(&alarm), &old), Some(Kind::Alarm));
        let summary = RunSummary { vms: vec![alarm], ..RunSummary::default() }.concluded(old);
        assert_eq!((summary.counts.alarms, summary.counts.leftovers), (1, 1));
        let said = text(&summary);
        assert!(said.contains("ALARM") && said.contains("VDI x"), "both are shown: {said}");
    }

    #[test]
    fn what_fails_around_the_jobs_counts() {
        let hook = Whole { failure: Some((Kind::Failed, "hook".into(), None)), ..Whole::default() };
        assert_eq!(verdict(&[done()], &hook), Some(Kind::Failed));
        let pool = Whole { failure: Some((Kind::Unreachable, "pool".into(), None)), ..Whole::default() };
        assert_eq!(verdict(&[], &pool), Some(Kind::Unreachable));
        assert_eq!(verdict(&[done(), failed(Kind::StoreFull)], &pool), Some(Kind::Failed));
    }

    #[test]
    fn the_json_form_is_stable() {
        let disk =
            DiskRow { name: "root".into(), mode: "cbt".into(), read: 3, stored: 2, ..DiskRow::default() };
        let one = VmSummary { point: Some("p".into()), tries: 1, disks: vec![disk], ..done() };
        let summary = RunSummary { name: "nightly".into(), vms: vec![one], ..RunSummary::default() };
        let summary = summary.concluded(Whole::default());
        let json = serde_json::to_string(&summary).expect("plain");
        assert_eq!(
            json,
            concat!(
                r#"{"version":1,"name":"nightly","run":"","pools":[],"store":"","started":"","ended":"","elapsed_ms":0,"#,
                r#""result":"done","exit_code":0,"error":null,"remedy":null,"#,
                r#""counts":{"selected":1,"done":1,"failed":0,"skipped":0,"alarms":0,"leftovers":0,"bad_blocks":0},"read":3,"stored":2,"#,
                r#""vms":[{"vm":"web01","uuid":"","pool":"","result":"done","job":null,"tries":1,"point":"p","#,
                r#""elapsed_ms":0,"disks":[{"name":"root","vdi":"","size":0,"mode":"cbt","cause":"","reason":"","#,
                r#""read":3,"audited":0,"mismatched":0,"stored":2,"bad":0,"bad_ranges":0,"#,
                r#""reading_ms":0,"limited_ms":0,"throttled_ms":0}],"path":null,"delegates_reused":0,"error":null,"remedy":null,"code":null,"exit_code":null,"warnings":[],"#,
                r#""alarms":[],"leftovers":[]}],"warnings":[],"copies":[]}"#
            )
        );
    }
}
