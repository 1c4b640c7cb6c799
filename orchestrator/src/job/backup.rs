//! The backup job, in the order that keeps data safe: snapshot, list the changes before anything is attached,
//! let delegates read and ship, remove delegates and snapshot, commit the restore point, and only then turn
//! the snapshot's disks into the references of the next run.

use super::delegate::{Attachment, Outcome};
use super::{FIRST_POSITION, Failure, Job, MAX_DISKS, Run, summary_of};
use crate::cleanup::{self, Removed, snapshot_name, tags};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{Entry, Rotation};
use crate::report::{DiskSummary, Event, JobSummary};
use crate::template;
use crate::tracking::{self, Allocation, Base, Changes, Decision, Facts};
use ads::{DiskKind, PointDisk, PointPool, PointVm, RestorePoint, StoredPoint};
use blocks::ByteCount;
use std::time::{Instant, SystemTime};
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

/// Backs up one VM. Everything is reported as it happens; the result says how it ended.
///
/// `host` is where the run would like the delegate; another one is taken where that one does not see the disks.
pub async fn run(
    run: &Run,
    vm: &Ref<Vm>,
    record: &Vm,
    options: &JobOptions,
    host: Option<&Ref<Host>>,
) -> JobResult {
    let job = match Job::start(run, &record.name_label, record.uuid.as_str(), options) {
        Ok(job) => job,
        Err(error) => return JobResult::not_started(run, &record.name_label, &error),
    };
    let started = Instant::now();
    let mut entries = Vec::new();
    match job.backup(vm, record, host, &mut entries, started).await {
        Ok((Tidied::Fully, summary)) => job.succeeded(summary),
        // The backup is good; its journal stays for `reconcile`.
        Ok((Tidied::Partly, summary)) => job.left_something(summary),
        Err(failure) => job.abandon(failure, &entries).await,
    }
}

impl Job<'_> {
    async fn backup(
        &self,
        vm: &Ref<Vm>,
        record: &Vm,
        host: Option<&Ref<Host>>,
        entries: &mut Vec<Entry>,
        started: Instant,
    ) -> Result<(Tidied, crate::report::JobSummary), Failure> {
        let mut live = self.live_disks(record).await?;
        let history = self.history(record.uuid.as_str()).await?;
        let site = placement::Site::look(&self.run.pool).await?;
        let preferred = placement::preference(host, Some(record));
        // Found out before anything is made in the pool.
        let storage: Vec<_> = live.wanted.iter().map(|disk| disk.record.sr.clone()).collect();
        rounds(&storage, &site, &self.run.templates, &preferred)?;
        self.check_cancelled()?;
        self.track(&mut live.wanted).await;
        let (snapshot, planned) = self.snapshot_and_plan(vm, record, live, &history, entries).await?;
        self.show_plan(&planned);
        self.check_tracking(&planned)?;
        self.check_cancelled()?;
        let storage: Vec<_> = planned.iter().map(|disk| disk.source.sr.clone()).collect();
        let rounds = rounds(&storage, &site, &self.run.templates, &preferred)?;
        let (sealed, mut tidied) = self.read(&planned, &rounds, entries).await?;
        // Every byte is durable: what resists from here on is left to `reconcile` and does not undo the backup.
        let reserve = planned.iter().any(|disk| self.reserves(&disk.source));
        if !reserve {
            self.step("remove snapshot");
            if let Err(error) = self.remove_snapshot(&snapshot.uuid).await {
                self.warn(format!("not removed, run `abd reconcile`: {}", error.chain()));
                tidied = Tidied::Partly;
            }
        }
        self.record(entries, Entry::TornDown)?;
        self.step("commit");
        let (rotated, summary) =
            self.commit(record, &snapshot, planned, sealed, &history, reserve, entries, started).await?;
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
        entries: &mut Vec<Entry>,
    ) -> Result<(Sealed, Tidied), Failure> {
        let mut sealed = Sealed::new(planned.len());
        let mut tidied = Tidied::Fully;
        for (number, round) in rounds.iter().enumerate() {
            if rounds.len() > 1 {
                self.step(&format!("delegate {} of {}", number + 1, rounds.len()));
            }
            let (outcome, removed) = self.read_round(planned, round, entries).await?;
            sealed.take(round, outcome);
            if let Err(error) = removed {
                self.warn(format!("not removed, run `abd reconcile`: {}", error.chain()));
                tidied = Tidied::Partly;
            }
            self.check_cancelled()?;
        }
        Ok((sealed, tidied))
    }

    async fn read_round(
        &self,
        planned: &[Planned],
        round: &Round,
        entries: &mut Vec<Entry>,
    ) -> Result<(Outcome, Result<()>), Failure> {
        let disks = || (FIRST_POSITION..).zip(round.disks.iter().map(|at| &planned[*at]));
        let attachments: Vec<_> = disks()
            .map(|(userdevice, disk)| Attachment {
                vdi: disk.source.snapshot.clone(),
                userdevice,
                writable: false,
            })
            .collect();
        let work = Work::Backup {
            level: settings.level,
            pack_size: settings.pack_size,
            rate_limit: None,
            disks: positions
                .map(|(userdevice, disk)| BackupDisk {
                    userdevice,
                    size: disk.source.size,
                    start: disk.decision.start.clone(),
                    audit: None,
                })
                .collect(),
        };
        let bitmaps =
            disks().map(|(_, disk)| disk.decision.bitmap.as_ref().map(|bitmap| bitmap.to_xapi())).collect();
        let site = Site { host: Some(round.host.clone()), template: round.template };
        self.serve(work, bitmaps, &attachments, &site, entries).await
    }

    /// Removes the snapshot VM; its disks stay for now.
    async fn remove_snapshot(&self, entries: &[Entry]) -> Result<()> {
        let uuid = entries.iter().find_map(|entry| match entry {
            Entry::Snapshot { uuid, .. } => Some(uuid),
            _ => None,
        });
        let Some(uuid) = uuid else { return Ok(()) };
        let parsed = uuid.parse().map_err(|_| Error::new(Kind::Failed, format!("'{uuid}' is no uuid")))?;
        match self.run.pool.client.get_by_uuid::<Vm>(&parsed).await {
            Ok(vm) => cleanup::destroy_vm(&self.run.pool, &vm)
                .await
                .map(|_| ())
                .context(|| "remove the snapshot".into()),
            Err(error) if crate::retry::is_gone(&error) => Ok(()),
            Err(error) => Err(error).context(|| "look for the snapshot".into()),
        }
    }

    /// Makes the restore point exist, then rotates the references.
    async fn commit(
        &self,
        vm: &Vm,
        planned: Vec<Planned>,
        outcome: Outcome,
        base: Option<StoredPoint>,
        entries: &mut Vec<Entry>,
        started: Instant,
    ) -> Result<Rotated> {
        let run = self.run;
        let store_id = run.store.id().to_string();
        let mut disks = Vec::new();
        let mut summaries = Vec::new();
        let mut rotations = Vec::new();
        for (planned, (done, answer)) in planned.into_iter().zip(outcome.disks.into_iter().flatten()) {
            let Planned { source, decision } = planned;
            let name = disk_name(&source);
            let vdi = source.live_record.uuid.to_string();
            summaries.push(DiskSummary {
                name: name.clone(),
                vdi: vdi.clone(),
                size: source.size.get(),
                mode: tracking::mode_name(decision.mode).into(),
                reason: decision.reason.clone(),
                tree_id: answer.tree.to_string(),
                counts: done.counts,
            });
            rotations.push(Rotation {
                vdi: source.snapshot_uuid.clone(),
                keep_reference: source.tracked,
                replaces: Vec::new(),
                live: vdi.clone(),
                store: store_id.clone(),
            });
            disks.push(PointDisk {
                vdi,
                name,
                kind: DiskKind::User,
                userdevice: source.vbd.userdevice.parse().unwrap_or(0),
                bootable: source.vbd.bootable,
                tree: done.tree(),
                tree_id: answer.tree,
                mode: decision.mode,
                reason: decision.reason,
                cause: String::new(),
                counts: done.counts,
                reference: source.tracked.then_some(source.snapshot_uuid),
                suspect: Vec::new(),
            });
        }
        let point = RestorePoint {
            version: RestorePoint::VERSION,
            job: self.id.clone(),
            job_name: None,
            run: run.id.clone(),
            created: ads::timestamp(SystemTime::now()),
            store: run.store.id(),
            pool: PointPool { uuid: run.pool.config.uuid.clone(), name: run.pool.config.name.clone() },
            vm: PointVm { uuid: vm.uuid.to_string(), name: vm.name_label.clone(), metadata: vm_metadata(vm) },
            disks,
            base: base.map(|base| base.id),
            quiesced: false,
            checkpoint: false,
        };
        let store = run.store.clone();
        let id = blocking(move || store.commit_point(&point)).await?;
        match run.pool.client.get_all_records::<Vdi>().await {
            Ok(vdis) => {
                for rotation in &mut rotations {
                    rotation.replaces = cleanup::references_of(&run.pool, &vdis, rotation);
                }
            }
            // The next run of this VM drops them.
            Err(error) => self.warn(format!("old references stay for now: {error}")),
        }
        let committed = Entry::Committed { point: id.to_string(), vdis: rotations.clone() };
        // The backup exists. What fails from here on is left for `reconcile`, and does not undo it.
        let mut rotated = Rotated::Fully;
        if let Err(error) = self.record(entries, committed) {
            self.warn(error.chain());
            rotated = Rotated::Partly;
        }
        self.step("rotate references");
        let mut removed = Removed::default();
        cleanup::rotate(&run.pool, &self.id, &rotations, &mut removed).await;
        for leftover in removed.leftovers {
            self.warn(format!("not removed, run `abd reconcile`: {leftover}"));
            rotated = Rotated::Partly;
        }
        run.report.event(&Event::JobDone(Box::new(JobSummary {
            job: self.id.clone(),
            kind: "backup".into(),
            subject: self.subject.clone(),
            point: id.to_string(),
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            disks: summaries,
            delegate: summary_of(outcome.claim.as_ref(), outcome.done.usage),
        })));
        Ok(rotated)
    }
}
