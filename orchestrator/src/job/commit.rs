//! The end of a backup: the restore point is written, references are rotated, and an audit that failed is made known.

use super::backup::Tidied;
use super::changes::{History, Planned};
use super::placement::Round;
use super::snapshot::Snapshot;
use super::watch::Outcome;
use super::{Job, blocking, counts_of, summary_of};
use crate::cleanup::Removed;
use crate::error::{Error, Kind, Result};
use crate::journal::{Entry, Keep, Reserve, Rotation};
use crate::path::Paths;
use crate::references;
use crate::report::{DiskSummary, Event, JobSummary};
use crate::tracking::{self, Cause, Mode};
use ads::{PointDisk, PointPool, PointVm, RestorePoint};
use std::time::{Instant, SystemTime};
use wire::{Claim, DiskAnswer, DiskDone, Usage};
use xapi::{Ref, Vdi, Vm};

/// What the delegates of a job sealed.
pub(super) struct Sealed {
    /// By position in the job's list of disks.
    pub(super) disks: Vec<Option<(DiskDone, DiskAnswer)>>,
    pub(super) claim: Option<Claim>,
    pub(super) usage: Usage,
    pub(super) paths: Paths,
    /// Delegates that were kept ones.
    pub(super) reused: u32,
}

impl Sealed {
    pub(super) fn new(count: usize) -> Self {
        Self {
            disks: vec![None; count],
            claim: None,
            usage: Usage::default(),
            paths: Paths::default(),
            reused: 0,
        }
    }

    /// Takes in what one delegate did.
    pub(super) fn take(&mut self, round: &Round, outcome: Outcome) {
        for (at, disk) in round.disks.iter().zip(outcome.disks) {
            self.disks[*at] = disk;
        }
        let place = |disk| round.disks.get(usize::from(disk)).and_then(|at| u16::try_from(*at).ok());
        self.paths.take(outcome.done.passes, place);
        self.reused += u32::from(outcome.reused);
        let usage = outcome.done.usage;
        self.usage.worker_peak = self.usage.worker_peak.max(usage.worker_peak);
        self.usage.available_low = match self.claim {
            Some(_) => self.usage.available_low.min(usage.available_low),
            None => usage.available_low,
        };
        self.usage.cpu_ms = self.usage.cpu_ms.saturating_add(usage.cpu_ms);
        self.claim = outcome.claim.or(self.claim.take());
    }
}

/// A disk whose audit failed.
struct Alarm {
    vdi: Ref<Vdi>,
    name: String,
}

impl Job<'_> {
    /// Makes the restore point exist, then rotates the references.
    #[allow(clippy::too_many_arguments, reason = "everything that a job gathered ends here, each thing once")]
    pub(super) async fn commit(
        &self,
        vm: &Vm,
        snapshot: &Snapshot,
        planned: Vec<Planned>,
        sealed: Sealed,
        history: &History,
        reserve: bool,
        entries: &mut Vec<Entry>,
        started: Instant,
    ) -> Result<(Tidied, JobSummary)> {
        let run = self.run;
        let store_id = run.store.id().to_string();
        let (mut disks, mut summaries, mut alarms) = (Vec::new(), Vec::new(), Vec::new());
        let mut rotations: Vec<Rotation> = Vec::new();
        let sealed_paths = &sealed.paths;
        for (mut planned, sealed) in planned.into_iter().zip(sealed.disks) {
            let Some((done, answer)) = sealed else {
                let message = format!("no delegate sealed disk {} of {}", planned.source.name, self.subject);
                return Err(Error::new(Kind::Failed, message));
            };
            let suspect = self.judge_audit(&mut planned, &done, history, &mut alarms);
            let Planned { source, base, decision } = planned;
            let keep = match () {
                // The tracking that lied is started anew: what it says of this snapshot is worth nothing.
                () if done.counts.mismatched.get() > 0 => Keep::Nothing,
                () if source.tracked => Keep::Metadata,
                () if self.reserves(&source) => Keep::Snapshot,
                () => Keep::Nothing,
            };
            summaries.push(DiskSummary {
                name: source.name.clone(),
                vdi: source.live_uuid.clone(),
                size: source.size.get(),
                mode: tracking::mode_name(decision.mode).into(),
                cause: decision.cause.code().into(),
                reason: decision.reason.clone(),
                tree_id: answer.tree.to_string(),
                counts: done.counts,
                bad: done.bad.clone(),
                path: sealed_paths.of_disk(summaries.len(), &done.counts),
                passes: sealed_paths.of_passes(summaries.len()),
                pacing: done.pacing,
            });
            rotations.push(Rotation {
                vdi: source.snapshot_uuid.clone(),
                keep,
                live: source.live_uuid.clone(),
                store: store_id.clone(),
                replaces: Some(Vec::new()),
            });
            disks.push(PointDisk {
                kind: source.kind,
                vdi: source.live_uuid,
                name: source.name,
                userdevice: source.position,
                bootable: source.bootable,
                tree: done.tree(),
                tree_id: answer.tree,
                mode: decision.mode,
                cause: decision.cause.code().into(),
                reason: decision.reason,
                counts: done.counts,
                reference: (keep != Keep::Nothing).then_some(source.snapshot_uuid),
                base,
                suspect,
                bad: done.bad,
            });
        }
        // Disks that the job leaves out are in the snapshot of an older host all the same.
        for (_, vdi) in &snapshot.disks {
            if !rotations.iter().any(|rotation| rotation.vdi == vdi.uuid.as_str()) {
                rotations.push(Rotation {
                    vdi: vdi.uuid.to_string(),
                    keep: Keep::Nothing,
                    live: String::new(),
                    store: store_id.clone(),
                    replaces: Some(Vec::new()),
                });
            }
        }
        let reserved =
            (reserve && rotations.iter().any(|rotation| rotation.keep == Keep::Snapshot)).then(|| Reserve {
                snapshot: snapshot.uuid.clone(),
                vm: vm.uuid.to_string(),
                store: store_id.clone(),
            });
        let mut tidied = Tidied::Fully;
        if reserve && reserved.is_none() {
            // An audit that failed left nothing worth reserving.
            if let Err(error) = self.remove_snapshot(snapshot).await {
                self.leave(error.chain());
                tidied = Tidied::Partly;
            }
        }
        let point = RestorePoint {
            version: RestorePoint::VERSION,
            job: self.id.clone(),
            job_name: run.name.clone(),
            run: run.id.clone(),
            created: ads::timestamp(SystemTime::now()),
            store: run.store.id(),
            pool: PointPool { uuid: run.pool.config.uuid.clone(), name: run.pool.config.name.clone() },
            vm: PointVm { uuid: vm.uuid.to_string(), name: vm.name_label.clone(), metadata: vm_metadata(vm) },
            quiesced: snapshot.quiesced,
            checkpoint: snapshot.memory.is_some(),
            disks,
            base: history.newest(),
        };
        // Before the point exists: a run that dies in between leaves nothing that a next one could trust.
        for alarm in &alarms {
            tidied = tidied.and(self.distrust(alarm).await);
        }
        // Asked before the point exists: between it and the journal's word of it nothing may take time, because a job
        // that dies there leaves a point whose references are removed.
        self.find_replaced(&mut rotations, &store_id).await;
        let (store, lease) = (run.store.clone(), history.lease().cloned());
        let id = blocking(move || match lease {
            Some(lease) => lease.commit(&point),
            None => store.commit_point(&point),
        })
        .await?;
        tidied = tidied.and(self.rotate(&id.to_string(), rotations, reserved, entries).await);
        for alarm in &alarms {
            self.sound(alarm);
        }
        for disk in summaries.iter().filter(|disk| !disk.bad.is_empty()) {
            self.tell_bad(disk, &id);
        }
        let summary = JobSummary {
            job: self.id.clone(),
            kind: "backup".into(),
            subject: self.subject.clone(),
            point: id.to_string(),
            elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            alarms: alarms.into_iter().map(|alarm| alarm.name).collect(),
            path: sealed.paths.of_job(&counts_of(&summaries)),
            disks: summaries,
            delegate: summary_of(sealed.claim.as_ref(), sealed.usage, sealed.reused),
        };
        run.report.event(&Event::JobDone(Box::new(summary.clone())));
        Ok((tidied, summary))
    }

    /// Looks at what the audit of a disk found. Where it found a mismatch, the delegate has read the whole disk; gives
    /// the earlier restore points that are in doubt.
    fn judge_audit(
        &self,
        planned: &mut Planned,
        done: &DiskDone,
        history: &History,
        alarms: &mut Vec<Alarm>,
    ) -> Vec<ads::PointId> {
        let counts = done.counts;
        if counts.mismatched.get() == 0 {
            return Vec::new();
        }
        let Planned { source, decision, .. } = planned;
        let what = match decision.mode {
            Mode::Full => "the storage's list of allocated space",
            _ => "change tracking",
        };
        decision.reason = format!(
            "an audit of {} caught {what} missing {} of changes; the whole disk was read",
            counts.audited, counts.mismatched
        );
        decision.cause = Cause::AuditAlarm;
        decision.mode = match decision.start.base() {
            Some(_) => Mode::Scan,
            None => Mode::Full,
        };
        alarms.push(Alarm { vdi: source.live.clone(), name: source.name.clone() });
        history.resting_on_tracking(&source.live_uuid, planned.base)
    }

    /// Makes an alarm known.
    fn sound(&self, alarm: &Alarm) {
        self.run.report.event(&Event::Alarm {
            job: self.id.clone(),
            subject: self.subject.clone(),
            disk: alarm.name.clone(),
            message: format!(
                "{}: writes to {} were not tracked. This backup is whole; earlier ones since the last that read \
                 everything are in doubt: see `abd list`",
                self.subject, alarm.name
            ),
        });
    }

    /// Says what of a disk is zeros in the restore point because it could not be read.
    fn tell_bad(&self, disk: &DiskSummary, point: &ads::PointId) {
        let DiskSummary { name, vdi, bad, .. } = disk;
        tracing::error!(job = %self.id, disk = %name, %bad, "not all of the disk could be read");
        self.run.report.event(&Event::BadBlocks {
            job: self.id.clone(),
            subject: self.subject.clone(),
            disk: name.clone(),
            vdi: vdi.clone(),
            bad: bad.clone(),
            message: format!(
                "{}: {bad} of {name} (VDI {vdi}) could not be read; restore point {} has zeros there. The next backup \
                 reads it again. Look after the storage",
                self.subject,
                point.short()
            ),
        });
    }

    /// Starts the tracking of a disk anew: what was missed once will be missed again.
    async fn distrust(&self, alarm: &Alarm) -> Tidied {
        let tracked = self.pool.client.get_record::<Vdi>(&alarm.vdi).await.map(|vdi| vdi.cbt_enabled);
        let reset = match tracked {
            Ok(true) => self.reset_tracking(&alarm.vdi).await,
            Ok(false) => Ok(()),
            Err(error) => Err(error.into()),
        };
        match reset {
            Ok(()) => Tidied::Fully,
            Err(error) => {
                self.warn(format!("{} of {}: {}", alarm.name, self.subject, error.chain()));
                Tidied::Partly
            }
        }
    }

    /// Notes which references the new ones replace.
    async fn find_replaced(&self, rotations: &mut [Rotation], store: &str) {
        let pool = &self.pool;
        match pool.client.get_all_records::<Vdi>().await {
            Ok(vdis) => {
                for rotation in rotations.iter_mut().filter(|rotation| !rotation.live.is_empty()) {
                    let mut found = references::references_of(&pool.owner, &vdis, &rotation.live, store);
                    found.retain(|uuid| *uuid != rotation.vdi);
                    rotation.replaces = Some(found);
                }
            }
            // The rotation asks again, and is not done before it knows.
            Err(error) => {
                tracing::debug!(job = self.id, "the references that are replaced are not known yet: {error}");
                for rotation in rotations.iter_mut().filter(|rotation| !rotation.live.is_empty()) {
                    rotation.replaces = None;
                }
            }
        }
    }

    /// Turns the snapshot's disks into references. The backup exists: what fails here is left for `reconcile`.
    async fn rotate(
        &self,
        point: &str,
        rotations: Vec<Rotation>,
        reserve: Option<Reserve>,
        entries: &mut Vec<Entry>,
    ) -> Tidied {
        let pool = &self.pool;
        let mut tidied = Tidied::Fully;
        let committed =
            Entry::Committed { point: point.to_owned(), vdis: rotations.clone(), reserve: reserve.clone() };
        if let Err(error) = self.record(entries, committed) {
            // Without this entry the clean-up takes the snapshot's disks for rubbish. They may be: the references
            // before are still there, and the next run lists its changes from them.
            self.warn(format!("the references are not rotated, run `abd reconcile`: {}", error.chain()));
            return Tidied::Partly;
        }
        self.step("rotate references");
        let mut removed = Removed::default();
        references::rotate(pool, &self.id, &rotations, reserve.as_ref(), &mut removed).await;
        for leftover in removed.leftovers {
            self.leave(leftover);
            tidied = Tidied::Partly;
        }
        tidied
    }
}

/// What is needed to make the VM again: the fields that `VM.create` takes.
fn vm_metadata(vm: &Vm) -> serde_json::Value {
    serde_json::json!({
        "name_label": vm.name_label,
        "name_description": vm.name_description,
        "memory_static_max": vm.memory_static_max,
        "memory_static_min": vm.memory_static_min,
        "memory_dynamic_max": vm.memory_dynamic_max,
        "memory_dynamic_min": vm.memory_dynamic_min,
        "vcpus_max": vm.vcpus_max,
        "vcpus_at_startup": vm.vcpus_at_startup,
        "hvm_boot_policy": vm.hvm_boot_policy,
        "hvm_boot_params": vm.hvm_boot_params,
        "domain_type": vm.domain_type.to_string(),
        "pv_bootloader": vm.pv_bootloader,
        "pv_kernel": vm.pv_kernel,
        "pv_ramdisk": vm.pv_ramdisk,
        "pv_args": vm.pv_args,
        "nvram": vm.nvram,
        "bios_strings": vm.bios_strings,
        "vcpus_params": vm.vcpus_params,
        "has_vendor_device": vm.has_vendor_device,
        "actions_after_shutdown": vm.actions_after_shutdown,
        "actions_after_reboot": vm.actions_after_reboot,
        "actions_after_crash": vm.actions_after_crash,
        "platform": vm.platform,
        "other_config": vm.other_config,
        "tags": vm.tags,
        "power_state": format!("{:?}", vm.power_state),
    })
}
