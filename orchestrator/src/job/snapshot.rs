//! The snapshot that a job reads: taken, tagged, paired with the live disks, and removed again.

use super::Job;
use super::source::{LiveDisk, LiveDisks, disk_name, position};
use crate::cleanup::{self, Removed, snapshot_name};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::ownership::mark;
use crate::retry::{BRIEFLY, Patience};
use crate::tracking::Untracked;
use ads::DiskKind;
use blocks::ByteCount;
use xapi::{PowerState, Ref, Sr, Vbd, VbdType, Vdi, Vm};

/// What a VM's memory is called among its disks.
const MEMORY_NAME: &str = "memory";

/// A snapshot that exists.
pub(super) struct Snapshot {
    pub vm: Ref<Vm>,
    pub uuid: String,
    /// Its disks, those that nobody wanted included.
    pub disks: Vec<(Ref<Vdi>, Vdi)>,
    /// The memory, of a checkpoint.
    pub memory: Option<(Ref<Vdi>, Vdi)>,
    /// Whether the guest settled its file systems for it.
    pub quiesced: bool,
}

/// One thing to read: a disk of the snapshot, or the memory.
pub(super) struct Source {
    pub kind: DiskKind,
    /// The live VDI; for the memory the suspend image itself.
    pub live: Ref<Vdi>,
    pub live_uuid: String,
    pub name: String,
    pub position: u16,
    pub bootable: bool,
    pub sr: Ref<Sr>,
    /// Whether the storage keeps it as a VHD.
    pub is_vhd: bool,
    pub snapshot: Ref<Vdi>,
    pub snapshot_uuid: String,
    /// Whether the pool tracks changes of the snapshot's disk.
    pub tracked: bool,
    pub size: ByteCount,
    /// Why change tracking is off, where it is.
    pub untracked: Option<Untracked>,
}

impl Source {
    /// The disk as people know it: by its name, its position on the VM and its VDI.
    pub(super) fn label(&self) -> String {
        format!("'{}' (position {}, VDI {})", self.name, self.position, self.live_uuid)
    }
}

impl Job<'_> {
    /// Makes the snapshot. What the journal says before and after is enough to remove it.
    pub(super) async fn snapshot(
        &self,
        vm: &Ref<Vm>,
        record: &Vm,
        excluded: &[Ref<Vdi>],
        entries: &mut Vec<Entry>,
    ) -> Result<Snapshot> {
        self.step("snapshot");
        let client = &self.pool.client;
        let name = snapshot_name(&self.id);
        self.record(entries, Entry::SnapshotIntent { vm: record.uuid.to_string(), name: name.clone() })?;
        let (snapshot, quiesced) = self.take(vm, record, &name, excluded, entries).await?;
        let looking = || "look at the snapshot".to_owned();
        let found = client.get_record::<Vm>(&snapshot).await.context(looking)?;
        let marked = mark(&self.pool, &snapshot, &found.uuid, &self.id, &[]).await;
        marked.context(|| "tag the snapshot".into())?;
        let mut disks = Vec::new();
        for vbd in &found.vbds {
            let vbd = client.get_record::<Vbd>(vbd).await.context(looking)?;
            if vbd.kind == VbdType::Disk && !vbd.vdi.is_null() {
                let vdi = client.get_record::<Vdi>(&vbd.vdi).await.context(looking)?;
                disks.push((vbd.vdi, vdi));
            }
        }
        let memory = match found.suspend_vdi.is_null() {
            true => None,
            false => {
                let vdi = client.get_record::<Vdi>(&found.suspend_vdi).await.context(looking)?;
                Some((found.suspend_vdi.clone(), vdi))
            }
        };
        let all = disks.iter().chain(&memory);
        let vdis = all.clone().map(|(_, vdi)| vdi.uuid.to_string()).collect();
        self.record(entries, Entry::Snapshot { uuid: found.uuid.to_string(), vdis })?;
        for (vdi, record) in all {
            let marked = mark(&self.pool, vdi, &record.uuid, &self.id, &[]).await;
            marked.context(|| "tag a snapshot disk".into())?;
        }
        Ok(Snapshot { vm: snapshot, uuid: found.uuid.to_string(), disks, memory, quiesced })
    }

    /// The kind of snapshot that was asked for, or the nearest that the host and the VM's state allow. Whether it is
    /// quiesced comes with it.
    async fn take(
        &self,
        vm: &Ref<Vm>,
        record: &Vm,
        name: &str,
        excluded: &[Ref<Vdi>],
        entries: &[Entry],
    ) -> Result<(Ref<Vm>, bool)> {
        let client = &self.pool.client;
        let taking = || format!("snapshot {}", record.name_label);
        if self.options.checkpoint {
            if record.power_state != PowerState::Halted {
                let taken = self.until_taken(entries, async || client.vm_checkpoint(vm, name).await).await?;
                return Ok((taken.context(taking).map_err(explain)?, false));
            }
            self.warn(format!("{} is off: a snapshot without memory is made", record.name_label));
        }
        if self.options.quiesce {
            let quiesced = async || client.vm_snapshot_with_quiesce(vm, name).await;
            match self.until_taken(entries, quiesced).await? {
                Ok(taken) => return Ok((taken, true)),
                Err(error) if matches!(error.kind(), xapi::Kind::Quiesce | xapi::Kind::NotSupported) => {
                    self.warn(format!(
                        "the snapshot of {} is not quiesced, its disks are as after a power cut: {error}",
                        record.name_label
                    ));
                    self.remove_failed(entries, &error).await?;
                }
                Err(error) => return Err(error).context(taking).map_err(explain),
            }
        }
        let plain = async || client.vm_snapshot(vm, name, excluded).await;
        let taken = self.until_taken(entries, plain).await?;
        Ok((taken.context(taking).map_err(explain)?, false))
    }

    /// Makes a call that takes a snapshot, again while the pool refuses it for a reason that passes by itself, for
    /// [`BRIEFLY`]. Where nobody knows what came of it, that is the answer.
    async fn until_taken(
        &self,
        entries: &[Entry],
        mut call: impl AsyncFnMut() -> std::result::Result<Ref<Vm>, xapi::Error>,
    ) -> Result<std::result::Result<Ref<Vm>, xapi::Error>> {
        let mut patience = Patience::new(BRIEFLY);
        loop {
            let error = match call().await {
                Err(error) if error.effect() != xapi::Effect::Unknown => error,
                answer => return Ok(answer),
            };
            if !patience.waits_out("take a snapshot", &error).await {
                return Ok(Err(error));
            }
            self.remove_failed(entries, &error).await?;
        }
    }

    /// Removes what a call left that failed after it had begun: the next one makes another of the same name, and
    /// only that is removed when the job ends.
    async fn remove_failed(&self, entries: &[Entry], error: &xapi::Error) -> Result<()> {
        if error.effect() == xapi::Effect::None {
            return Ok(());
        }
        let removed = cleanup::remove_job(&self.pool, &self.id, entries).await?;
        match removed.leftovers.first() {
            None => Ok(()),
            Some(first) => {
                Err(Error::new(Kind::Failed, format!("a snapshot that failed ({error}) stays: {first}")))
            }
        }
    }

    /// Pairs the live disks with the snapshot's by `snapshot_of`, never by position.
    pub(super) fn pair(&self, live: &LiveDisks, snapshot: &Snapshot) -> Result<Vec<Source>> {
        let known =
            |of: &Ref<Vdi>| live.excluded.contains(of) || live.wanted.iter().any(|disk| disk.vdi == *of);
        if let Some((_, stranger)) = snapshot.disks.iter().find(|(_, vdi)| !known(&vdi.snapshot_of)) {
            let message = format!(
                "a disk was attached to {} while its snapshot was made: '{}'",
                self.subject, stranger.name_label
            );
            return Err(Error::new(Kind::Failed, message).remedy("run the job again"));
        }
        let mut sources = Vec::new();
        for LiveDisk { vdi: live, record, vbd, untracked } in &live.wanted {
            let mut found = snapshot.disks.iter().filter(|(_, vdi)| vdi.snapshot_of == *live);
            let (Some((reference, vdi)), None) = (found.next(), found.next()) else {
                return Err(Error::new(
                    Kind::Failed,
                    format!("the snapshot has no single disk that belongs to VDI {}", record.uuid),
                ));
            };
            sources.push(Source {
                kind: DiskKind::User,
                name: disk_name(record, vbd),
                position: position(vbd).and_then(|position| u16::try_from(position).ok()).unwrap_or(0),
                bootable: vbd.bootable,
                sr: vdi.sr.clone(),
                is_vhd: is_vhd(record),
                live: live.clone(),
                live_uuid: record.uuid.to_string(),
                snapshot: reference.clone(),
                snapshot_uuid: vdi.uuid.to_string(),
                tracked: vdi.cbt_enabled && untracked.is_none(),
                size: ByteCount::new(vdi.virtual_size),
                untracked: untracked.clone(),
            });
        }
        if let Some((reference, vdi)) = &snapshot.memory {
            sources.push(Source {
                kind: DiskKind::Suspend,
                live: reference.clone(),
                live_uuid: vdi.uuid.to_string(),
                name: MEMORY_NAME.into(),
                position: 0,
                bootable: false,
                sr: vdi.sr.clone(),
                is_vhd: is_vhd(vdi),
                snapshot: reference.clone(),
                snapshot_uuid: vdi.uuid.to_string(),
                tracked: false,
                size: ByteCount::new(vdi.virtual_size),
                untracked: Some(Untracked::Memory),
            });
        }
        Ok(sources)
    }

    /// Removes the snapshot VM; its disks stay for now.
    pub(super) async fn remove_snapshot(&self, snapshot: &Snapshot) -> Result<()> {
        let removed = cleanup::destroy_vm(&self.pool, &snapshot.vm).await;
        removed.map(|_| ()).context(|| "remove the snapshot".into())
    }

    /// Removes a snapshot with everything in it, to make another.
    pub(super) async fn discard(&self, snapshot: Snapshot) -> Result<()> {
        self.remove_snapshot(&snapshot).await?;
        let uuids: Vec<String> =
            snapshot.disks.iter().chain(&snapshot.memory).map(|(_, vdi)| vdi.uuid.to_string()).collect();
        let mut removed = Removed::default();
        cleanup::remove_vdis(&self.pool, &uuids, "snapshot disk", &mut removed).await;
        match removed.leftovers.first() {
            None => Ok(()),
            Some(first) => Err(Error::new(Kind::Failed, format!("an unusable snapshot stays: {first}"))),
        }
    }
}

/// Whether the storage keeps a disk as a VHD. Repositories on volumes say what each disk is; those on files say it only
/// of raw ones (`LVHDSR.py` and `FileSR.py` of the storage manager). Where this is wrong the export fails, and the disk
/// is scanned.
pub(crate) fn is_vhd(vdi: &Vdi) -> bool {
    match vdi.sm_config.get("vdi_type") {
        Some(kind) => kind == "vhd",
        None => vdi.sm_config.get("type").is_none_or(|kind| kind != "raw"),
    }
}

fn explain(error: Error) -> Error {
    let text = error.chain();
    if text.contains("SR_BACKEND_FAILURE_44") {
        return error.remedy("make room on the VM's storage repository: a snapshot needs some");
    }
    if text.contains("SR_BACKEND_FAILURE_109") {
        return error.remedy(
            "the chain of snapshots is as long as the storage allows: delete snapshots that nobody needs, and let \
             the storage coalesce",
        );
    }
    error
}
