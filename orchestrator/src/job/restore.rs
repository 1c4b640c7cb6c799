//! The restore job: new VDIs are made, a delegate writes a restore point's disks into them, and only whole ones
//! stay.

use super::commit::Sealed;
use super::delegate::{Attachment, Site};
use super::placement::{self, rounds};
use super::watch::Outcome;
use super::{FIRST_POSITION, Failure, Job, JobResult, Run, blocking, counts_of, summary_of};
use crate::cleanup::{self, tags};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::pool::{TAG_RESTORED, TAG_SELF};
use crate::report::{DiskSummary, Event, JobSummary};
use crate::spec::JobOptions;
use ads::{PointDisk, StoredPoint};
use blocks::ByteCount;
use std::time::Instant;
use wire::{RestoreDisk, Work};
use xapi::{Ref, Sr, StringMap, Vdi, VdiCreate, VdiType};

/// What to restore, and where to.
pub struct Request {
    /// The restore point.
    pub point: StoredPoint,
    /// Positions in its list of disks.
    pub disks: Vec<usize>,
    /// Where the new VDIs are made.
    pub sr: Ref<Sr>,
}

struct Target {
    disk: PointDisk,
    vdi: Ref<Vdi>,
    uuid: String,
    /// What the pool made of the size that was asked for.
    device: ByteCount,
}

/// Restores disks into new VDIs. Everything is reported as it happens; the result says how it ended.
pub async fn run(run: &Run, request: Request, options: &JobOptions) -> JobResult {
    let subject = request.point.point.vm.name.clone();
    let job = match Job::start(run, &subject, &request.point.id.to_string(), options) {
        Ok(job) => job,
        Err(error) => return JobResult::not_started(run, &subject, &error),
    };
    let mut entries = Vec::new();
    match job.restore(request, &mut entries, Instant::now()).await {
        Ok(summary) => job.succeeded(summary),
        Err(failure) => job.abandon(failure, &entries).await,
    }
}

impl Job<'_> {
    async fn restore(
        &self,
        request: Request,
        entries: &mut Vec<Entry>,
        started: Instant,
    ) -> Result<JobSummary, Failure> {
        // Held until the last byte is written: nobody removes what the point needs.
        let (store, owner, point) =
            (self.run.store.clone(), format!("restore {}", self.id), request.point.clone());
        let _lease = blocking(move || store.lease(&owner, &[&point])).await?;
        let pool = placement::Site::look(&self.pool, &self.demand()).await?;
        // The disks share their storage, so that every round has the same place.
        let storage = vec![request.sr.clone(); request.disks.len()];
        let templates = self.templates().await?;
        let rounds = rounds(&storage, &pool, &templates, &[])?;
        self.step("make disks");
        let mut targets = Vec::new();
        for at in &request.disks {
            let disk = request.point.point.disks[*at].clone();
            targets.push(self.make_vdi(&request, disk, entries).await?);
        }
        self.check_cancelled()?;
        let mut written = Sealed::new(targets.len());
        for round in &rounds {
            let template = templates[round.template].clone();
            let site = Site { host: Some(round.host.clone()), template };
            let targets: Vec<&Target> = round.disks.iter().map(|at| &targets[*at]).collect();
            let (outcome, removed) = self.write(&targets, &site, entries).await?;
            // Only a delegate that is gone cannot write to the disks any more.
            removed?;
            written.take(round, outcome);
            self.check_cancelled()?;
        }
        // From this entry on the disks are kept, whatever happens; what is left to do is taking our mark off.
        self.record(entries, Entry::Restored)?;
        for target in &targets {
            cleanup::hand_over(&self.pool, &target.uuid).await?;
        }
        Ok(self.summarise(&request, targets, written, started))
    }

    /// Makes a blank VDI, tagged with the job from its first moment.
    async fn make_vdi(&self, request: &Request, disk: PointDisk, entries: &mut Vec<Entry>) -> Result<Target> {
        let client = &self.pool.client;
        let point = &request.point;
        let name = format!("{} (restored)", disk.name);
        self.record(entries, Entry::VdiIntent { name: name.clone() })?;
        let mut other_config: StringMap = tags(&self.pool, &self.id);
        other_config.insert(TAG_RESTORED.into(), point.id.to_string());
        let create = VdiCreate {
            name_label: name,
            name_description: format!(
                "{} of {} as of {}, restore point {}",
                disk.name,
                point.point.vm.name,
                point.point.created,
                point.id.short()
            ),
            sr: request.sr.clone(),
            virtual_size: disk.tree.size.get(),
            kind: VdiType::User,
            other_config,
            sm_config: StringMap::new(),
        };
        let vdi = client.vdi_create(&create).await.context(|| format!("make a VDI for {}", disk.name))?;
        let record = client.get_record::<Vdi>(&vdi).await.context(|| "look at the VDI".into())?;
        let uuid = record.uuid.to_string();
        self.record(entries, Entry::Vdi { uuid: uuid.clone() })?;
        // The uuid is known only now; without it a copy of the disk would look like the disk.
        client.add_to_other_config(&vdi, TAG_SELF, &uuid).await.context(|| "tag the VDI".into())?;
        if record.virtual_size < disk.tree.size.get() {
            let message =
                format!("the pool made a VDI of {} bytes for {}", record.virtual_size, disk.tree.size);
            return Err(Error::new(Kind::Failed, message));
        }
        Ok(Target { disk, vdi, uuid, device: ByteCount::new(record.virtual_size) })
    }

    async fn write(
        &self,
        targets: &[&Target],
        site: &Site,
        entries: &mut Vec<Entry>,
    ) -> Result<(Outcome, Result<()>), Failure> {
        let positions = (FIRST_POSITION..).zip(targets);
        let attachments: Vec<_> = positions
            .clone()
            .map(|(userdevice, target)| Attachment {
                vdi: target.vdi.clone(),
                userdevice,
                writable: true,
                label: format!("'{}' (new VDI {})", target.disk.name, target.uuid),
            })
            .collect();
        let work = Work::Restore {
            disks: positions
                .map(|(userdevice, target)| RestoreDisk {
                    userdevice,
                    device: target.device,
                    size: target.disk.tree.size,
                    root: target.disk.tree.root,
                    blank: true,
                })
                .collect(),
        };
        self.serve(work, vec![None; targets.len()], &attachments, site, entries).await
    }

    fn summarise(
        &self,
        request: &Request,
        targets: Vec<Target>,
        written: Sealed,
        started: Instant,
    ) -> JobSummary {
        let paths = &written.paths;
        let disks: Vec<_> = targets
            .into_iter()
            .zip(written.disks.into_iter().flatten())
            .enumerate()
            .map(|(at, (target, (done, answer)))| DiskSummary {
                name: target.disk.name,
                vdi: target.uuid,
                size: target.disk.tree.size.get(),
                mode: "restore".into(),
                cause: "restore".into(),
                reason: "into a new VDI".into(),
                tree_id: answer.tree.to_string(),
                counts: done.counts,
                bad: target.disk.bad,
                path: paths.of_disk(at, &done.counts),
                passes: paths.of_passes(at),
                pacing: done.pacing,
            })
            .collect();
        let summary = JobSummary {
            job: self.id.clone(),
            kind: "restore".into(),
            subject: self.subject.clone(),
            point: request.point.id.to_string(),
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            alarms: Vec::new(),
            path: written.paths.of_job(&counts_of(&disks)),
            disks,
            delegate: summary_of(written.claim.as_ref(), written.usage, written.reused),
        };
        self.run.report.event(&Event::JobDone(Box::new(summary.clone())));
        summary
    }
}
