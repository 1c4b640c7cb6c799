//! How each disk would be read: what a job would ask, with the answers that are to be expected.

use super::{Expected, Past, estimate};
use crate::job::changes::{History, LARGEST_VHD, REFERENCES_BACK};
use crate::journal::Keep;
use crate::preflight::{self, FIRST_CBT_API, FIRST_IGNORING_API, FIRST_WITHOUT_QUIESCE_API, Facts};
use crate::references;
use crate::spec::{CbtMode, JobOptions};
use crate::tracking::{self, Allocated, Allocation, Base, Cause, Changes, Decision, Hop, Origin, Untracked};
use blocks::ByteCount;
use xapi::{PowerState, Ref, Sr, Vdi, VdiType, Vm};

/// The snapshot that a job would take.
pub(super) struct Shot {
    /// The calls that are made for it, the last one with success.
    pub calls: Vec<&'static str>,
    /// Whether it is a checkpoint.
    pub with_memory: bool,
    /// Disks of the VM that are in it although nobody wants them.
    pub unwanted: Vec<String>,
}

/// A question to the pool about a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// What changed since this reference.
    Changes(String),
    /// The head of a VHD export, against this reference if any.
    Head(Option<String>),
}

/// One thing to read, as a job would find it.
pub(super) struct Disk {
    pub name: String,
    /// Uuid of the live VDI; empty for the memory.
    pub uuid: String,
    pub sr: Ref<Sr>,
    pub size: ByteCount,
    /// Whether change tracking would be switched on.
    pub enable: bool,
    pub ask: Option<Ask>,
    pub decision: Decision,
    /// What becomes of the snapshot's disk.
    pub keep: Keep,
    /// References that go once there is a new one.
    pub replaces: Vec<String>,
    /// Id of the store; empty where there is none yet.
    pub store: String,
    pub reads: Expected,
    pub audit: ByteCount,
    pub ships: Expected,
}

impl Shot {
    pub(super) fn of(facts: &Facts, vm: &Vm, options: &JobOptions) -> Self {
        let excluded: Vec<String> = facts
            .disks(vm)
            .iter()
            .filter(|disk| preflight::is_excluded(disk, options))
            .map(preflight::Disk::name)
            .collect();
        let with_memory = options.checkpoint && vm.power_state != PowerState::Halted;
        if with_memory {
            return Self { calls: vec!["VM.checkpoint"], with_memory, unwanted: excluded };
        }
        let mut calls = Vec::new();
        if options.quiesce {
            calls.push("VM.snapshot_with_quiesce");
            if facts.api() < FIRST_WITHOUT_QUIESCE_API {
                return Self { calls, with_memory, unwanted: excluded };
            }
        }
        let leaves_out = facts.api() >= FIRST_IGNORING_API;
        if !excluded.is_empty() && !leaves_out {
            // The release does not know the parameter, and is asked again without it.
            calls.push("VM.snapshot");
        }
        calls.push("VM.snapshot");
        Self { calls, with_memory, unwanted: if leaves_out { Vec::new() } else { excluded } }
    }
}

/// Everything that would be read, in the job's order.
pub(super) fn disks(
    facts: &Facts,
    history: &History,
    past: &Past,
    vm: &Vm,
    options: &JobOptions,
    shot: &Shot,
) -> Vec<Disk> {
    let wanted = facts.disks(vm).into_iter().filter(|disk| !preflight::is_excluded(disk, options));
    let mut disks: Vec<Disk> = wanted.map(|disk| predict(facts, history, past, &disk, options)).collect();
    if shot.with_memory {
        disks.extend(memory(facts, history, vm, options));
    }
    disks
}

fn predict(
    facts: &Facts,
    history: &History,
    past: &Past,
    disk: &preflight::Disk<'_>,
    options: &JobOptions,
) -> Disk {
    let vdi = disk.vdi;
    let uuid = vdi.uuid.as_str();
    let size = ByteCount::new(vdi.virtual_size);
    let (enable, untracked) = tracking_of(facts, disk, options);
    let mut ask = None;
    let origin = match history.of_disk(uuid).next() {
        None => {
            let first = (Cause::FirstBackup, "first backup of this disk".to_owned());
            let (cause, why) = history.unusable().cloned().unwrap_or(first);
            Origin::Nothing(cause, why, allocation(vdi, size, options, &mut ask))
        }
        Some((_, last)) => {
            let base = Base { tree: last.tree };
            Origin::Base(base, changes(facts, history, vdi, size, untracked.as_ref(), &mut ask))
        }
    };
    let decision = tracking::decide(tracking::Facts { size, origin });
    let keep = match () {
        () if untracked.is_none() => Keep::Metadata,
        () if reserves(vdi, size, untracked.as_ref()) => Keep::Snapshot,
        () => Keep::Nothing,
    };
    let store = past.store.as_deref();
    let replaces = store.map(|store| references::references_of(&facts.owner, &facts.vdis, uuid, store));
    let reads = estimate::reads(facts, history, Some(vdi), size, &decision);
    Disk {
        name: disk.name(),
        uuid: uuid.to_owned(),
        sr: vdi.sr.clone(),
        size,
        enable,
        ask,
        keep,
        replaces: replaces.unwrap_or_default(),
        store: store.unwrap_or_default().to_owned(),
        audit: estimate::audit(options.audit, size, &decision, &reads),
        ships: estimate::ships(history, uuid, &decision, &reads),
        reads,
        decision,
    }
}

/// Whether tracking would be switched on, and why it would be off all the same.
fn tracking_of(facts: &Facts, disk: &preflight::Disk<'_>, options: &JobOptions) -> (bool, Option<Untracked>) {
    if options.cbt == CbtMode::Off {
        return (false, Some(Untracked::ByOption));
    }
    if disk.vdi.cbt_enabled {
        return (false, None);
    }
    let untracked = match () {
        () if facts.api() < FIRST_CBT_API => Some(Untracked::OldRelease),
        () if preflight::cbt_is_restricted(facts) == Some(true) => Some(Untracked::Unlicensed),
        () if !preflight::can_track(facts, disk) => Some(Untracked::Unsupported),
        () => None,
    };
    (true, untracked)
}

fn is_vhd(vdi: &Vdi) -> bool {
    vdi.sm_config.get("vdi_type").is_some_and(|kind| kind == "vhd")
}

fn reserves(vdi: &Vdi, size: ByteCount, untracked: Option<&Untracked>) -> bool {
    untracked == Some(&Untracked::OldRelease) && is_vhd(vdi) && size <= LARGEST_VHD
}

/// A list with nothing in it: what a job would get, but for its contents.
fn nothing(size: ByteCount) -> Allocated {
    Allocated { disk_size: size, block_size: ByteCount::new(2 << 20), blocks: Vec::new() }
}

fn allocation(vdi: &Vdi, size: ByteCount, options: &JobOptions, ask: &mut Option<Ask>) -> Allocation {
    if options.read_unallocated {
        return Allocation::Unknown("unallocated space is read on request".into());
    }
    if !is_vhd(vdi) {
        return Allocation::Unknown("the storage does not tell what is allocated".into());
    }
    *ask = Some(Ask::Head(None));
    Allocation::Listed(nothing(size))
}

/// What a job would learn about the changes of a disk that was backed up before.
fn changes(
    facts: &Facts,
    history: &History,
    vdi: &Vdi,
    size: ByteCount,
    untracked: Option<&Untracked>,
    ask: &mut Option<Ask>,
) -> Changes {
    let unknown = |(cause, why): (Cause, String)| Changes::Unknown(cause, why);
    if untracked == Some(&Untracked::ByOption) {
        return unknown(Untracked::ByOption.explain());
    }
    let mut missing = None;
    for (_, disk) in history.of_disk(vdi.uuid.as_str()).take(REFERENCES_BACK) {
        if let Some(uuid) = &disk.reference {
            match facts.vdis.values().find(|vdi| vdi.uuid.as_str() == uuid) {
                Some(reference) => return since(reference, size, untracked, ask),
                None => _ = missing.get_or_insert(uuid),
            }
        }
        if disk.cause == Cause::AuditAlarm.code() {
            let why = "an audit caught the change tracking missing writes, and it was started anew";
            return Changes::Unknown(Cause::AuditAlarm, why.into());
        }
    }
    match (untracked, missing) {
        (Some(Untracked::OldRelease), Some(uuid)) => {
            let why =
                format!("disk {uuid} of the reserved snapshot is gone from the pool; a new one is made");
            Changes::Unknown(Cause::ReferenceMissing, why)
        }
        (Some(untracked), _) if !reserves(vdi, size, Some(untracked)) => unknown(untracked.explain()),
        (_, Some(uuid)) => Changes::Unknown(
            Cause::ReferenceMissing,
            format!("the reference VDI {uuid} is gone from the pool"),
        ),
        (_, None) => Changes::Unknown(Cause::NoReference, "the last backup left no reference".into()),
    }
}

fn since(reference: &Vdi, size: ByteCount, untracked: Option<&Untracked>, ask: &mut Option<Ask>) -> Changes {
    let uuid = reference.uuid.to_string();
    match untracked {
        None => {
            *ask = Some(Ask::Changes(uuid));
            let bytes = size.blocks_ceil().get().div_ceil(8);
            let bitmap = vec![0; usize::try_from(bytes).unwrap_or(0)];
            Changes::Tracked(vec![Hop { size, bitmap }])
        }
        Some(untracked) if reference.kind == VdiType::CbtMetadata => {
            let (cause, why) = untracked.explain();
            Changes::Unknown(cause, why)
        }
        Some(_) => {
            *ask = Some(Ask::Head(Some(uuid)));
            Changes::Difference(nothing(size))
        }
    }
}

/// The memory of a checkpoint: it does not exist yet, so its size is the VM's.
fn memory(facts: &Facts, history: &History, vm: &Vm, options: &JobOptions) -> Option<Disk> {
    let sr = preflight::suspend_sr(facts, vm)?;
    let size = ByteCount::new(vm.memory_static_max);
    // The suspend image is of the format that its storage gives all its disks.
    let as_vhd = facts.vdis.values().any(|vdi| vdi.sr == sr && is_vhd(vdi));
    let (cause, why) = Untracked::Memory.explain();
    let mut ask = None;
    let allocated = match () {
        () if options.read_unallocated => Allocation::Unknown("unallocated space is read on request".into()),
        () if as_vhd => {
            ask = Some(Ask::Head(None));
            Allocation::Listed(nothing(size))
        }
        () => Allocation::Unknown("the storage does not tell what is allocated".into()),
    };
    let decision = tracking::decide(tracking::Facts { size, origin: Origin::Nothing(cause, why, allocated) });
    let reads = estimate::reads(facts, history, None, size, &decision);
    Some(Disk {
        name: "memory".into(),
        uuid: String::new(),
        sr,
        size,
        enable: false,
        ask,
        keep: Keep::Nothing,
        replaces: Vec::new(),
        store: String::new(),
        audit: estimate::audit(options.audit, size, &decision, &reads),
        ships: estimate::ships(history, "", &decision, &reads),
        reads,
        decision,
    })
}

/// What to know besides the calls.
pub(super) fn notes(facts: &Facts, disks: &[Disk]) -> Vec<String> {
    let mut notes = Vec::new();
    let leftovers = preflight::leftover_count(facts);
    if leftovers > 0 {
        notes.push(format!(
            "the run first removes what ended jobs left in pool '{}': {leftovers} objects, see `abd reconcile`",
            facts.name
        ));
    }
    if disks.iter().any(|disk| matches!(disk.ask, Some(Ask::Changes(_)))) {
        notes.push(
            "if the pool cannot list changes after all, the disk is read whole and compared, and a damaged log is \
             started anew with a second snapshot"
                .into(),
        );
    }
    notes
}
