//! The backup job, in the order that keeps data safe: snapshot, list the changes before anything is attached,
//! let delegates read and ship, remove delegates and snapshot, commit the restore point, and only then turn
//! the snapshot's disks into the references of the next run.

use super::changes::{History, Planned};
use super::commit::Sealed;
use super::delegate::{Attachment, Site};
use super::placement::{self, Round, rounds};
use super::snapshot::Snapshot;
use super::watch::Outcome;
use super::{FIRST_POSITION, Failure, Job, JobResult, Run};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::preflight::{self, Finding, Gate, Known, Subject};
use crate::report::{Event, JobSummary};
use crate::retention;
use crate::spec::JobOptions;
use crate::template::TemplateAt;
use crate::tracking::Decision;
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::time::Instant;
use wire::{BackupDisk, Work};
use xapi::{Host, Ref, Vm};

/// Whether everything after the last byte was done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tidied {
    Fully,
    Partly,
}

impl Tidied {
    /// Fully only where both are.
    pub(super) fn and(self, other: Tidied) -> Tidied {
        if self == Tidied::Fully { other } else { Tidied::Partly }
    }
}

/// Whether a job may begin.
enum Entrance {
    /// It may, and this is what it starts from.
    Open(History),
    /// It is left out this time, as configured, because its storage is busy.
    Closed(Finding),
}

/// Backs up one VM. Everything is reported as it happens; the result says how it ended.
///
/// `host` is where the run would like the delegate; another one is taken where that one does not see the disks. `ready`
/// is called once the checks and waits are over and before anything is touched; where it fails, so does the job.
pub async fn run(
    run: &Run,
    vm: &Ref<Vm>,
    record: &Vm,
    options: &JobOptions,
    host: Option<&Ref<Host>>,
    ready: impl AsyncFnOnce() -> Result<()>,
) -> JobResult {
    let job = match Job::start(run, &record.name_label, record.uuid.as_str(), options) {
        Ok(job) => job,
        Err(error) => return JobResult::not_started(run, &record.name_label, &error),
    };
    let started = Instant::now();
    let mut entries = Vec::new();
    let history = match job.enter(vm, record).await {
        Ok(Entrance::Open(history)) => history,
        Ok(Entrance::Closed(why)) => return job.skipped(&why),
        Err(error) => return job.abandon(error.into(), &entries).await,
    };
    if let Err(error) = ready().await {
        return job.abandon(error.into(), &entries).await;
    }
    match job.backup(vm, host, &history, &mut entries, started).await {
        Ok((tidied, summary)) => {
            job.retain(record.uuid.as_str()).await;
            job.ended(tidied, summary)
        }
        Err(failure) => job.abandon(failure, &entries).await,
    }
}

impl Job<'_> {
    /// How a job that made its restore point ends.
    fn ended(self, tidied: Tidied, summary: JobSummary) -> JobResult {
        match tidied {
            Tidied::Fully => self.succeeded(summary),
            // The backup is good; its journal stays for `reconcile`.
            Tidied::Partly => self.left_something(summary),
        }
    }

    /// Removes restore points of the VM that the job's rules do not keep. That they cannot be removed harms no backup.
    async fn retain(&self, vm: &str) {
        let (run, rules) = (self.run, self.options.keep.clone());
        if rules.is_empty() {
            return;
        }
        self.step("retention");
        let (store, name, vm) = (run.store.clone(), run.name.clone(), vm.to_owned());
        let remove = move || retention::apply::after_job(&store, &vm, name, &rules, &TimeZone::system());
        let removed = tokio::task::spawn_blocking(remove)
            .await
            .map_err(|error| Error::new(Kind::Failed, "a store operation was stopped").because(error));
        match removed.and_then(|removed| removed) {
            Ok((kept, removed)) => self.run.report.event(&Event::PointsRemoved {
                job: self.id.clone(),
                subject: self.subject.clone(),
                removed: removed.iter().map(ToString::to_string).collect(),
                kept,
            }),
            Err(error) => self.warn(format!("old restore points are not removed: {}", error.chain())),
        }
    }

    /// Everything that would make the job fail later is found out now, before anything is touched.
    async fn enter(&self, vm: &Ref<Vm>, record: &Vm) -> Result<Entrance> {
        self.step("check");
        let history = self.history(record.uuid.as_str()).await?;
        let known = Known { templates: self.templates().await?, networks: self.run.networks() };
        let usual_changes = preflight::usual_changes(history.points());
        let subject = Subject { vm, options: self.options, known: &known, usual_changes: &usual_changes };
        let waiting = |held: &Finding| self.step(&format!("waits: {}", held.message));
        match preflight::gate(&self.pool, subject, &mut self.run.cancel.clone(), waiting).await? {
            Gate::Go { warnings } => {
                for finding in warnings {
                    self.warn(finding.message);
                }
                Ok(Entrance::Open(history))
            }
            Gate::Skip(finding) => Ok(Entrance::Closed(finding)),
            Gate::Refuse(findings) => match preflight::refusal(&findings) {
                Some(error) => Err(error),
                None => Ok(Entrance::Open(history)),
            },
        }
    }

    async fn backup(
        &self,
        vm: &Ref<Vm>,
        host: Option<&Ref<Host>>,
        history: &History,
        entries: &mut Vec<Entry>,
        started: Instant,
    ) -> Result<(Tidied, JobSummary), Failure> {
        // Read again: hooks and waits may have passed since the run looked, and a disk may have been attached.
        let record = &self.pool.client.get_record::<Vm>(vm).await.context(|| "look at the VM".into())?;
        let mut live = self.live_disks(record).await?;
        let site = placement::Site::look(&self.pool, &self.demand()).await?;
        let preferred = placement::preference(host, Some(record));
        // Found out before anything is made in the pool.
        let templates = self.templates().await?;
        let storage: Vec<_> = live.wanted.iter().map(|disk| disk.record.sr.clone()).collect();
        rounds(&storage, &site, &templates, &preferred)?;
        self.check_cancelled()?;
        self.track(&mut live.wanted).await;
        let planning = self.snapshot_and_plan(vm, record, live, history, entries);
        let (snapshot, planned) = self.unless_cancelled(planning).await?;
        self.show_plan(&planned);
        self.check_tracking(&planned)?;
        self.check_cancelled()?;
        let storage: Vec<_> = planned.iter().map(|disk| disk.source.sr.clone()).collect();
        let rounds = rounds(&storage, &site, &templates, &preferred)?;
        let (sealed, mut tidied) = self.read(&planned, &rounds, &templates, entries).await?;
        // Every byte is durable: what resists from here on is left to `reconcile` and does not undo the backup.
        let reserve = planned.iter().any(|disk| self.reserves(&disk.source));
        if !reserve {
            self.step("remove snapshot");
            if let Err(error) = self.remove_snapshot(&snapshot).await {
                self.warn(format!("not removed, run `abd reconcile`: {}", error.chain()));
                tidied = Tidied::Partly;
            }
        }
        self.record(entries, Entry::TornDown)?;
        self.step("commit");
        let (rotated, summary) =
            self.commit(record, &snapshot, planned, sealed, history, reserve, entries, started).await?;
        Ok((tidied.and(rotated), summary))
    }

    /// Takes the snapshot and decides how its disks are read. Where the tracking of a disk proves broken it is
    /// started anew, and the snapshot taken again, so that this very run leaves a usable reference.
    async fn snapshot_and_plan(
        &self,
        vm: &Ref<Vm>,
        record: &Vm,
        live: super::source::LiveDisks,
        history: &History,
        entries: &mut Vec<Entry>,
    ) -> Result<(Snapshot, Vec<Planned>)> {
        let snapshot = self.snapshot(vm, record, &live.excluded, entries).await?;
        let sources = self.pair(&live, &snapshot)?;
        let plan = self.plan(sources, history, &BTreeMap::new()).await?;
        if plan.broken.is_empty() {
            return Ok((snapshot, plan.disks));
        }
        let mut reset = BTreeMap::new();
        for (vdi, why) in plan.broken {
            match self.reset_tracking(&vdi).await {
                Ok(()) => {
                    self.warn(format!("change tracking of {} is started anew: {why}", self.subject));
                    reset.insert(vdi, why);
                }
                Err(error) => self.warn(format!("{why}; it stays so: {}", error.chain())),
            }
        }
        if reset.is_empty() {
            return Ok((snapshot, plan.disks));
        }
        self.discard(snapshot).await?;
        let snapshot = self.snapshot(vm, record, &live.excluded, entries).await?;
        let sources = self.pair(&live, &snapshot)?;
        let plan = self.plan(sources, history, &reset).await?;
        Ok((snapshot, plan.disks))
    }

    /// Refuses to read everything where the job demands change tracking.
    fn check_tracking(&self, planned: &[Planned]) -> Result<()> {
        let refused = planned.iter().find(|disk| {
            self.options.require_cbt && !disk.decision.cause.is_allowed_with_required_tracking()
        });
        match refused {
            None => Ok(()),
            Some(disk) => Err(Error::new(
                Kind::Failed,
                format!(
                    "changes of {} cannot be listed and the job demands it: {}",
                    disk.source.name, disk.decision.reason
                ),
            )
            .remedy(
                "run once without require_cbt: everything is read, and the next run has a reference again",
            )),
        }
    }

    /// Lets delegates read the disks, one after the other where one is not enough.
    async fn read(
        &self,
        planned: &[Planned],
        rounds: &[Round],
        templates: &[TemplateAt],
        entries: &mut Vec<Entry>,
    ) -> Result<(Sealed, Tidied), Failure> {
        let mut sealed = Sealed::new(planned.len());
        let mut tidied = Tidied::Fully;
        for (number, round) in rounds.iter().enumerate() {
            if rounds.len() > 1 {
                self.step(&format!("delegate {} of {}", number + 1, rounds.len()));
            }
            let (outcome, removed) =
                self.read_round(planned, round, &templates[round.template], entries).await?;
            sealed.take(round, outcome);
            if let Err(error) = removed {
                self.warn(format!("not removed, run `abd reconcile`: {}", error.chain()));
                tidied = Tidied::Partly;
            }
            // After the last one the work is done, and throwing it away would help nobody.
            if number + 1 < rounds.len() {
                self.check_cancelled()?;
            }
        }
        Ok((sealed, tidied))
    }

    async fn read_round(
        &self,
        planned: &[Planned],
        round: &Round,
        template: &TemplateAt,
        entries: &mut Vec<Entry>,
    ) -> Result<(Outcome, Result<()>), Failure> {
        let disks = || (FIRST_POSITION..).zip(round.disks.iter().map(|at| (*at, &planned[*at])));
        let attachments: Vec<_> = disks()
            .map(|(userdevice, (_, disk))| Attachment {
                vdi: disk.source.snapshot.clone(),
                userdevice,
                writable: false,
                label: disk.source.label(),
            })
            .collect();
        let work = Work::Backup {
            level: self.options.level,
            pack_size: self.run.pack_size,
            rate_limit: self.options.rate_limit,
            throttle: self
                .options
                .throttle
                .map(|throttle| wire::Throttle { latency_ms: throttle.latency_ms, floor: throttle.floor }),
            skip_bad_blocks: self.options.skip_bad_blocks,
            disks: disks()
                .map(|(userdevice, (at, disk))| BackupDisk {
                    userdevice,
                    size: disk.source.size,
                    start: disk.decision.start.clone(),
                    audit: self.audit(at, &disk.decision),
                })
                .collect(),
        };
        let bitmaps = disks()
            .map(|(_, (_, disk))| disk.decision.bitmap.as_ref().map(|bitmap| bitmap.to_xapi()))
            .collect();
        let site = Site { host: Some(round.host.clone()), template: template.clone() };
        self.serve(work, bitmaps, &attachments, &site, entries).await
    }

    /// What is read again of a disk of which only a part is read. Every disk has a sample of its own.
    fn audit(&self, at: usize, decision: &Decision) -> Option<wire::Audit> {
        let options = self.options.audit;
        let seed = options.seed.unwrap_or(self.seed);
        (options.is_on() && decision.bitmap.is_some()).then(|| wire::Audit {
            seed: seed.wrapping_add(u64::try_from(at).unwrap_or(u64::MAX)),
            parts_per_million: options.parts_per_million,
            minimum: blocks::BlockCount::new(u64::from(options.minimum)),
        })
    }
}
