//! The backup job, in the order that keeps data safe: snapshot, list the changes before anything is attached,
//! let the delegate read and ship, remove delegate and snapshot, commit the restore point, and only then turn
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
use xapi::{Host, Pbd, Ref, Sr, Vbd, VbdType, Vdi, Vm};

/// A disk of the VM, live and in the snapshot.
struct Source {
    live_record: Vdi,
    vbd: Vbd,
    snapshot: Ref<Vdi>,
    snapshot_uuid: String,
    tracked: bool,
    size: ByteCount,
    /// Why change tracking is off, where it is.
    untracked: Option<String>,
}

/// A disk together with how it is read.
struct Planned {
    source: Source,
    decision: Decision,
}

/// Whether everything after the commit was done.
enum Rotated {
    Fully,
    Partly,
}

/// Backs up one VM. Everything is reported; the result says how it ended for the exit code.
///
/// # Errors
/// The kind of the failure.
pub async fn run(run: &Run, vm: &Ref<Vm>, record: &Vm) -> Result<(), Kind> {
    let job = match Job::start(run, &record.name_label, record.uuid.as_str()) {
        Ok(job) => job,
        Err(error) => {
            run.report.event(&Event::JobFailed {
                job: String::new(),
                subject: record.name_label.clone(),
                code: None,
                error: error.chain(),
                remedy: error.remedy_text().map(str::to_owned),
                leftovers: Vec::new(),
            });
            return Err(error.kind());
        }
    };
    let started = Instant::now();
    let mut entries = Vec::new();
    match job.backup(vm, record, &mut entries, started).await {
        Ok(Rotated::Fully) => {
            if let Err(error) = job.journal.finish() {
                tracing::warn!("{}", error.chain());
            }
            Ok(())
        }
        // The backup is good; its journal stays for `reconcile`.
        Ok(Rotated::Partly) => Err(Kind::Leftovers),
        Err(failure) => Err(job.abandon(failure, &entries).await),
    }
}

impl Job<'_> {
    async fn backup(
        &self,
        vm: &Ref<Vm>,
        record: &Vm,
        entries: &mut Vec<Entry>,
        started: Instant,
    ) -> Result<Rotated, Failure> {
        let live = self.live_disks(record).await?;
        self.check_cancelled()?;
        let sources = self.snapshot(vm, record, live, entries).await?;
        self.step("list changes");
        let base = self.base_point(record.uuid.as_str()).await?;
        let mut planned = Vec::with_capacity(sources.len());
        for source in sources {
            planned.push(self.plan(source, base.as_ref()).await?);
        }
        self.check_cancelled()?;
        let host = self.choose_host(record, &planned).await?;
        let (outcome, removed) = self.delegate(&planned, host.as_ref(), entries).await?;
        // Every byte is durable: what resists from here on is left to `reconcile` and does not undo the backup.
        let mut rotated = Rotated::Fully;
        self.step("remove snapshot");
        for result in [removed, self.remove_snapshot(entries).await] {
            if let Err(error) = result {
                self.warn(format!("not removed, run `abd reconcile`: {}", error.chain()));
                rotated = Rotated::Partly;
            }
        }
        self.record(entries, Entry::TornDown)?;
        self.step("commit");
        match self.commit(record, planned, outcome, base, entries, started).await? {
            Rotated::Fully => Ok(rotated),
            Rotated::Partly => Ok(Rotated::Partly),
        }
    }

    /// The VM's disks, with change tracking switched on where it is wanted and possible.
    async fn live_disks(&self, vm: &Vm) -> Result<Vec<(Ref<Vdi>, Vdi, Vbd, Option<String>)>> {
        let client = &self.run.pool.client;
        let mut disks = Vec::new();
        for reference in &vm.vbds {
            let vbd =
                client.get_record::<Vbd>(reference).await.context(|| "look at the VM's disks".into())?;
            if vbd.kind != VbdType::Disk || vbd.vdi.is_null() {
                continue;
            }
            let vdi = vbd.vdi.clone();
            let record = client.get_record::<Vdi>(&vdi).await.context(|| "look at the VM's disks".into())?;
            let untracked = self.ensure_tracking(&vdi, &record).await;
            disks.push((vdi, record, vbd, untracked));
        }
        disks.sort_by_key(|(_, _, vbd, _)| vbd.userdevice.parse::<u32>().unwrap_or(u32::MAX));
        if disks.is_empty() {
            return Err(Error::new(Kind::Failed, format!("{} has no disks to back up", vm.name_label)));
        }
        if disks.len() > MAX_DISKS {
            return Err(Error::new(
                Kind::Failed,
                format!("{} has {} disks, one delegate takes {MAX_DISKS}", vm.name_label, disks.len()),
            ));
        }
        Ok(disks)
    }

    /// Why changes of this disk are not tracked, or `None` where they are from now on.
    async fn ensure_tracking(&self, vdi: &Ref<Vdi>, record: &Vdi) -> Option<String> {
        if record.cbt_enabled {
            return None;
        }
        if !self.run.settings.enable_cbt {
            return Some("change tracking is off and this run does not switch it on".into());
        }
        match self.run.pool.client.vdi_enable_cbt(vdi).await {
            Ok(()) => None,
            Err(error) => Some(match error.kind() {
                xapi::Kind::License => "the pool's licence has no change tracking".to_owned(),
                xapi::Kind::NotSupported => "this pool or storage has no change tracking".to_owned(),
                _ => format!("change tracking cannot be switched on: {error}"),
            }),
        }
    }

    /// Makes the snapshot and pairs its disks with the live ones by `snapshot_of`, never by position.
    async fn snapshot(
        &self,
        vm: &Ref<Vm>,
        record: &Vm,
        live: Vec<(Ref<Vdi>, Vdi, Vbd, Option<String>)>,
        entries: &mut Vec<Entry>,
    ) -> Result<Vec<Source>> {
        self.step("snapshot");
        let client = &self.run.pool.client;
        let name = snapshot_name(&self.id);
        self.record(entries, Entry::SnapshotIntent { vm: record.uuid.to_string(), name: name.clone() })?;
        let snapshot = client
            .vm_snapshot(vm, &name, &[])
            .await
            .context(|| format!("snapshot {}", record.name_label))
            .map_err(explain_snapshot)?;
        let tags = tags(&self.run.pool, &self.id);
        for (key, value) in &tags {
            client.add_to_other_config(&snapshot, key, value).await.context(|| "tag the snapshot".into())?;
        }
        let snapshot_record =
            client.get_record::<Vm>(&snapshot).await.context(|| "look at the snapshot".into())?;
        let mut disks = Vec::new();
        for vbd in &snapshot_record.vbds {
            let vbd =
                client.get_record::<Vbd>(vbd).await.context(|| "look at the snapshot's disks".into())?;
            if vbd.kind == VbdType::Disk && !vbd.vdi.is_null() {
                let vdi = client
                    .get_record::<Vdi>(&vbd.vdi)
                    .await
                    .context(|| "look at the snapshot's disks".into())?;
                disks.push((vbd.vdi, vdi));
            }
        }
        let vdis = disks.iter().map(|(_, vdi)| vdi.uuid.to_string()).collect();
        self.record(entries, Entry::Snapshot { uuid: snapshot_record.uuid.to_string(), vdis })?;
        for (vdi, _) in &disks {
            for (key, value) in &tags {
                client.add_to_other_config(vdi, key, value).await.context(|| "tag a snapshot disk".into())?;
            }
        }
        let mut sources = Vec::new();
        for (live, live_record, vbd, untracked) in live {
            let mut found = disks.iter().filter(|(_, vdi)| vdi.snapshot_of == live);
            let (Some((snapshot, vdi)), None) = (found.next(), found.next()) else {
                return Err(Error::new(
                    Kind::Failed,
                    format!("the snapshot has no single disk that belongs to VDI {}", live_record.uuid),
                ));
            };
            sources.push(Source {
                live_record,
                vbd,
                snapshot: snapshot.clone(),
                snapshot_uuid: vdi.uuid.to_string(),
                tracked: vdi.cbt_enabled,
                size: ByteCount::new(vdi.virtual_size),
                untracked,
            });
        }
        Ok(sources)
    }

    /// The newest restore point of the VM. None while packs of the store cannot be read: then every block is
    /// offered again, and those that were lost are shipped again.
    async fn base_point(&self, vm: &str) -> Result<Option<StoredPoint>> {
        if self.run.settings.full {
            return Ok(None);
        }
        if let Some(pack) = self.run.store.skipped_packs().first() {
            self.warn(format!("the store has damaged packs ({}): backing up in full", pack.path.display()));
            return Ok(None);
        }
        let (store, vm) = (self.run.store.clone(), vm.to_owned());
        blocking(move || store.latest_point(&vm)).await
    }

    /// Gathers the facts about one disk and decides.
    async fn plan(&self, source: Source, point: Option<&StoredPoint>) -> Result<Planned> {
        let uuid = source.live_record.uuid.as_str();
        let base = point.and_then(|point| point.point.disks.iter().find(|disk| disk.vdi == uuid));
        let reference = base.and_then(|base| base.reference.as_deref());
        let (changes, allocation) = match base {
            Some(_) => (self.changes(&source, reference).await, Allocation::Unknown(String::new())),
            None => (Changes::Unknown(String::new()), self.allocation(&source).await),
        };
        let decision = tracking::decide(Facts {
            size: source.size,
            base: base.map(|base| Base { tree: base.tree }),
            changes,
            allocation,
        });
        self.run.report.event(&Event::DiskPlan {
            job: self.id.clone(),
            subject: self.subject.clone(),
            disk: disk_name(&source),
            mode: tracking::mode_name(decision.mode).into(),
            reason: decision.reason.clone(),
            size: source.size.get(),
            planned: decision.planned(source.size).get(),
        });
        Ok(Planned { source, decision })
    }

    /// Asks the pool what changed since the base. The snapshot is attached nowhere yet: XAPI refuses the
    /// call while it is.
    async fn changes(&self, source: &Source, reference: Option<&str>) -> Changes {
        let Some(reference) = reference else {
            let why = source.untracked.clone();
            return Changes::Unknown(why.unwrap_or_else(|| "the last backup left no reference".into()));
        };
        if !source.tracked {
            let why = source.untracked.clone();
            return Changes::Unknown(why.unwrap_or_else(|| "change tracking is off for this disk".into()));
        }
        let vdi = match cleanup::find_vdi(&self.run.pool, reference).await {
            Ok(Some(vdi)) => vdi,
            Ok(None) => {
                return Changes::Unknown(format!("the reference VDI {reference} is gone from the pool"));
            }
            Err(error) => return Changes::Unknown(error.chain()),
        };
        let listed = crate::retry::until_free(
            || "list changed blocks".into(),
            async || self.run.pool.client.vdi_list_changed_blocks(&vdi, &source.snapshot).await,
        );
        match listed.await {
            Ok(bitmap) => Changes::Listed(bitmap),
            Err(error) => Changes::Unknown(error.chain()),
        }
    }

    /// Asks which parts of a disk were ever written, by the head of a VHD export.
    async fn allocation(&self, source: &Source) -> Allocation {
        if self.run.settings.read_unallocated {
            return Allocation::Unknown("unallocated space is read on request".into());
        }
        if source.live_record.sm_config.get("vdi_type").is_none_or(|kind| kind != "vhd") {
            return Allocation::Unknown("the storage does not tell what is allocated".into());
        }
        match self.run.pool.client.export_vdi_vhd_head(&source.snapshot, None).await {
            Ok(head) if !head.differencing => Allocation::Listed {
                disk_size: ByteCount::new(head.disk_bytes),
                block_size: ByteCount::new(u64::from(head.block_bytes)),
                blocks: head.blocks,
            },
            Ok(_) => Allocation::Unknown("the pool sent a differencing VHD".into()),
            Err(error) => Allocation::Unknown(format!("the pool does not tell what is allocated: {error}")),
        }
    }

    /// A host that sees the storage of every disk and of the delegate: the VM's own where it can, else any.
    async fn choose_host(&self, vm: &Vm, disks: &[Planned]) -> Result<Option<Ref<Host>>> {
        let pool = &self.run.pool;
        let pbds =
            pool.client.get_all_records::<Pbd>().await.context(|| "list storage connections".into())?;
        let template = template::storage(pool, &self.run.template).await?;
        let needed: Vec<&Ref<Sr>> =
            disks.iter().map(|disk| &disk.source.live_record.sr).chain(&template).collect();
        let sees = |host: &Ref<Host>, sr: &Ref<Sr>| {
            pbds.values().any(|pbd| pbd.host == *host && pbd.sr == *sr && pbd.currently_attached)
        };
        let hosts = pool.hosts().await?;
        let usable = |host: &Ref<Host>| {
            hosts.get(host).is_some_and(|host| host.enabled) && needed.iter().all(|sr| sees(host, sr))
        };
        match [&vm.resident_on, &vm.affinity].into_iter().chain(hosts.keys()).find(|host| usable(host)) {
            Some(host) => Ok(Some(host.clone())),
            None => Err(Error::new(
                Kind::Failed,
                format!("no enabled host of the pool sees the storage of {} and of the delegate", self.subject),
            )
            .remedy("plug the missing storage on one host, or import the template to storage that the VM's host sees")),
        }
    }

    /// Provisions a delegate, lets it work, and removes it.
    async fn delegate(
        &self,
        disks: &[Planned],
        host: Option<&Ref<Host>>,
        entries: &mut Vec<Entry>,
    ) -> Result<(Outcome, Result<()>), Failure> {
        let settings = &self.run.settings;
        let positions = (FIRST_POSITION..).zip(disks);
        let attachments: Vec<_> = positions
            .clone()
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
            disks.iter().map(|disk| disk.decision.bitmap.as_ref().map(|bitmap| bitmap.to_xapi())).collect();
        self.serve(work, bitmaps, &attachments, host, entries).await
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

fn disk_name(source: &Source) -> String {
    match source.live_record.name_label.trim() {
        "" => format!("disk {}", source.vbd.userdevice),
        name => name.to_owned(),
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
        "platform": vm.platform,
        "other_config": vm.other_config,
        "tags": vm.tags,
        "power_state": format!("{:?}", vm.power_state),
    })
}

fn explain_snapshot(error: Error) -> Error {
    if error.chain().contains("SR_BACKEND_FAILURE_44") {
        return error.remedy("make room on the VM's storage repository: a snapshot needs some");
    }
    error
}

/// Runs a blocking store call off the async runtime.
pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ads::Error> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| Error::new(Kind::Failed, "a store operation was stopped").because(error))?
        .map_err(crate::catalog::store_error)
}
