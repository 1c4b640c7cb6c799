//! The gate before a job: its VM's checks, and the wait for storage that merges snapshots.

use super::facts::{Facts, Known};
use super::finding::{Code, Finding, Level};
use super::{chains, of_vm, vm};
use crate::error::{Error, Kind, Result};
use crate::pool::Pool;
use crate::spec::{CoalescePolicy, JobOptions};
use crate::tracking::Mode;
use ads::StoredPoint;
use blocks::ByteCount;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use xapi::{Ref, Vm};

/// Longest pause between two looks at storage that merges: a merge takes a minute or so, and a look reads every disk
/// record of the pool.
const LONGEST_LOOK: Duration = Duration::from_secs(30);
/// Shortest pause.
const SHORTEST_LOOK: Duration = Duration::from_secs(1);
/// A wait is looked at about this often in all.
const LOOKS: u32 = 20;

/// A job that wants to start.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Its VM.
    pub vm: &'a Ref<Vm>,
    /// Its options.
    pub options: &'a JobOptions,
    /// What the run has found already.
    pub known: &'a Known,
    /// See [`usual_changes`].
    pub usual_changes: &'a BTreeMap<String, ByteCount>,
}

/// What becomes of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// It may start.
    Go {
        /// What to look at all the same.
        warnings: Vec<Finding>,
    },
    /// It is left out this time, as configured, because its storage is busy.
    Skip(Finding),
    /// It would fail. The findings that are errors, and nothing was touched.
    Refuse(Vec<Finding>),
}

/// What would become of a job that starts now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It starts, and these are its warnings.
    Go(Vec<Finding>),
    /// It waits for this first.
    Wait(Finding),
    /// It is left out because of this.
    Skip(Finding),
    /// It is refused because of these.
    Refuse(Vec<Finding>),
}

/// What the gate would say now.
pub fn outlook(facts: &Facts, reference: &Ref<Vm>, record: &Vm, options: &JobOptions) -> Outlook {
    match decide(facts, reference, record, options, Duration::ZERO) {
        Decision::Now(Gate::Go { warnings }) => Outlook::Go(warnings),
        Decision::Now(Gate::Skip(held)) => Outlook::Skip(held),
        Decision::Now(Gate::Refuse(errors)) => Outlook::Refuse(errors),
        Decision::Wait { held, .. } => Outlook::Wait(held),
    }
}

/// What the newest incremental restore point of each disk read, by uuid of the live VDI: what a guest usually
/// writes between two jobs. `points` from the oldest to the newest.
pub fn usual_changes(points: &[StoredPoint]) -> BTreeMap<String, ByteCount> {
    let disks = points.iter().flat_map(|stored| &stored.point.disks);
    let incremental = disks.filter(|disk| !matches!(disk.mode, Mode::Full | Mode::Scan));
    let read = |counts: &wire::DiskCounts| counts.moved.get().saturating_sub(counts.audited.get());
    incremental.map(|disk| (disk.vdi.clone(), ByteCount::new(read(&disk.counts)))).collect()
}

/// Looks at the pool and decides; waits for storage that merges snapshots where the job is configured to.
/// `waiting` hears once why.
///
/// # Errors
/// What the pool says; [`Kind::NotFound`] where the VM is gone; [`Kind::Cancelled`].
pub async fn gate(
    pool: &Pool,
    subject: Subject<'_>,
    cancel: &mut watch::Receiver<bool>,
    mut waiting: impl FnMut(&Finding),
) -> Result<Gate> {
    let started = Instant::now();
    let mut told = false;
    loop {
        let mut facts = Facts::for_job(pool, subject.known).await?;
        facts.usual_changes.clone_from(subject.usual_changes);
        let gone = || Error::new(Kind::NotFound, format!("the VM is gone from pool '{}'", facts.name));
        let record = facts.vms.get(subject.vm).ok_or_else(gone)?;
        let (held, pause) = match decide(&facts, subject.vm, record, subject.options, started.elapsed()) {
            Decision::Now(gate) => return Ok(gate),
            Decision::Wait { held, pause } => (held, pause),
        };
        if !told {
            waiting(&held);
            told = true;
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            Ok(_) = cancel.wait_for(|cancelled| *cancelled) => return Err(crate::job::cancelled()),
        }
    }
}

/// What one look at the pool leads to.
#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Now(Gate),
    Wait { held: Finding, pause: Duration },
}

fn decide(
    facts: &Facts,
    reference: &Ref<Vm>,
    record: &Vm,
    options: &JobOptions,
    waited: Duration,
) -> Decision {
    let held = chains::hold(facts, record, options);
    let mut findings = of_vm(facts, record, vm::check(facts, reference, record, options));
    if held.is_some() && options.coalesce != CoalescePolicy::Ignore {
        // Merging makes room in the chain.
        findings.retain(|finding| finding.code != Code::DiskChain);
    }
    findings.retain(|finding| finding.level > Level::Ok);
    if findings.iter().any(|finding| finding.level == Level::Error) {
        findings.retain(|finding| finding.level == Level::Error);
        return Decision::Now(Gate::Refuse(findings));
    }
    let Some(held) = of_vm(facts, record, held.into_iter().collect()).pop() else {
        return Decision::Now(Gate::Go { warnings: findings });
    };
    match options.coalesce {
        CoalescePolicy::Wait { limit } if waited < limit => {
            let pause = (limit / LOOKS).clamp(SHORTEST_LOOK, LONGEST_LOOK).min(limit - waited);
            Decision::Wait { held, pause }
        }
        CoalescePolicy::Wait { .. } | CoalescePolicy::Skip => Decision::Now(Gate::Skip(held)),
        CoalescePolicy::Ignore => {
            findings.push(held);
            Decision::Now(Gate::Go { warnings: findings })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn options(coalesce: CoalescePolicy) -> JobOptions {
        JobOptions { coalesce, ..JobOptions::default() }
    }

    fn decision(sample: &Sample, coalesce: CoalescePolicy, waited: Duration) -> Decision {
        decide(&sample.facts, &sample.vm, sample.vm(), &options(coalesce), waited)
    }

    /// Two merges of the VM's own disk wait.
    fn busy() -> Sample {
        let mut sample = Sample::new();
        let oldest = sample.hidden(&[]);
        let middle = sample.hidden(&[&oldest]);
        sample.set_parent(0, &middle);
        sample
    }

    #[test]
    fn a_job_without_findings_starts() {
        let go = Decision::Now(Gate::Go { warnings: Vec::new() });
        assert_eq!(decision(&Sample::new(), CoalescePolicy::Skip, Duration::ZERO), go);
    }

    #[test]
    fn busy_storage_is_waited_for_until_the_limit_and_then_the_job_is_skipped() {
        let wait = CoalescePolicy::Wait { limit: MINUTE };
        let Decision::Wait { held, pause } = decision(&busy(), wait, Duration::ZERO) else {
            panic!("no wait")
        };
        assert_eq!((held.code, pause), (Code::Coalescing, Duration::from_secs(3)));
        assert_eq!(held.pool.as_deref(), Some("dc1"));
        assert_eq!(held.vm.as_deref(), Some(busy().vm().uuid.as_str()));
        let almost = MINUTE - Duration::from_millis(10);
        let Decision::Wait { pause, .. } = decision(&busy(), wait, almost) else { panic!("no wait") };
        assert_eq!(pause, Duration::from_millis(10), "the last look is at the limit");
        assert!(matches!(decision(&busy(), wait, MINUTE), Decision::Now(Gate::Skip(_))));
    }

    #[test]
    fn busy_storage_skips_or_is_ignored_as_configured() {
        assert!(matches!(decision(&busy(), CoalescePolicy::Skip, MINUTE), Decision::Now(Gate::Skip(_))));
        let Decision::Now(Gate::Go { warnings }) = decision(&busy(), CoalescePolicy::Ignore, MINUTE) else {
            panic!("ignored storage holds the job")
        };
        assert_eq!(warnings.iter().map(|finding| finding.code).collect::<Vec<_>>(), [Code::Coalescing]);
    }

    #[test]
    fn a_chain_is_never_made_longer_than_the_limit_whatever_the_policy() {
        let sample = busy();
        let policies = [CoalescePolicy::Wait { limit: MINUTE }, CoalescePolicy::Skip, CoalescePolicy::Ignore];
        for (policy, refused) in policies.into_iter().zip([false, false, true]) {
            let options = JobOptions { max_chain: 3, ..options(policy) };
            let decision = decide(&sample.facts, &sample.vm, sample.vm(), &options, Duration::ZERO);
            assert!(!matches!(decision, Decision::Now(Gate::Go { .. })), "{policy:?}: {decision:?}");
            assert_eq!(
                matches!(decision, Decision::Now(Gate::Refuse(_))),
                refused,
                "{policy:?}: {decision:?}"
            );
        }
    }

    #[test]
    fn an_error_refuses_at_once_and_names_only_errors() {
        let mut sample = busy();
        sample.vm_mut().blocked_operations.insert("snapshot".into(), "no".into());
        sample.disk_mut(0).sharable = true;
        let wait = CoalescePolicy::Wait { limit: MINUTE };
        let Decision::Now(Gate::Refuse(findings)) = decision(&sample, wait, Duration::ZERO) else {
            panic!("not refused")
        };
        assert_eq!(findings.iter().map(|finding| finding.code).collect::<Vec<_>>(), [Code::VmBlocked]);
    }
}
