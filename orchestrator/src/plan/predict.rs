//! How each disk would be read: what a job would ask, with the answers that are to be expected.

use super::{Expected, Past, estimate};
use crate::job::changes::{History, REFERENCES_BACK, after_alarm, may_reserve, without_reference};
use crate::job::snapshot::is_vhd;
use crate::journal::Keep;
use crate::preflight::{self, FIRST_CBT_API, FIRST_IGNORING_API, FIRST_WITHOUT_QUIESCE_API, Facts};
use crate::references;
use crate::spec::{CbtMode, JobOptions};
use crate::tracking::{self, Allocated, Allocation, Base, Cause, Changes, Decision, Hop, Origin, Untracked};
use ads::PointDisk;
use blocks::ByteCount;
use xapi::{PowerState, Ref, Sr, Vdi, VdiType, Vm};

/// The snapshot that a job would take.
pub(super) struct Shot {
    /// The calls that are made for it, the last one with success.
    pub tries: Vec<Try>,
    /// Whether it is a checkpoint.
    pub with_memory: bool,
    /// Disks of the VM that are in it although nobody wants them.
    pub unwanted: Vec<String>,
}

/// A call for a snapshot, and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Try {
    Works(&'static str),
    /// Its task fails.
    Fails(&'static str),
    /// It is refused before there is a task.
    Refused(&'static str),
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

impl Disk {
    /// Whether it is the memory of a checkpoint.
    pub(super) fn is_memory(&self) -> bool {
        self.uuid.is_empty()
    }
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
            return Self { tries: vec![Try::Works("VM.checkpoint")], with_memory, unwanted: excluded };
        }
        let mut tries = Vec::new();
        if options.quiesce {
            const QUIESCED: &str = "VM.snapshot_with_quiesce";
            let offered = vm.allowed_operations.iter().any(|operation| operation == "snapshot_with_quiesce");
            if offered && facts.api() < FIRST_WITHOUT_QUIESCE_API {
                tries.push(Try::Works(QUIESCED));
                return Self { tries, with_memory, unwanted: excluded };
            }
            tries.push(Try::Fails(QUIESCED));
        }
        let leaves_out = facts.api() >= FIRST_IGNORING_API;
        if !excluded.is_empty() && !leaves_out {
            // The release does not know the parameter, and is asked again without it.
            tries.push(Try::Refused("VM.snapshot"));
        }
        tries.push(Try::Works("VM.snapshot"));
        Self { tries, with_memory, unwanted: if leaves_out { Vec::new() } else { excluded } }
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
        Some((_, newest)) => changes(facts, history, vdi, newest, untracked.as_ref(), &mut ask),
    };
    let decision = tracking::decide(tracking::Facts { size, origin });
    let keep = match () {
        () if untracked.is_none() => Keep::Metadata,
        () if may_reserve(untracked.as_ref(), is_vhd(vdi), size) => Keep::Snapshot,
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

/// What a job would learn about the changes of a disk that was backed up before, and since which state of it: that of
/// the newest restore point whose reference is still there.
fn changes(
    facts: &Facts,
    history: &History,
    vdi: &Vdi,
    newest: &PointDisk,
    untracked: Option<&Untracked>,
    ask: &mut Option<Ask>,
) -> Origin {
    // Where everything is read, the nearest state is the best to compare with.
    let whole = |(cause, why): (Cause, String)| Origin::Base(Base::of(newest), Changes::Unknown(cause, why));
    if untracked == Some(&Untracked::ByOption) {
        return whole(Untracked::ByOption.explain());
    }
    let size = ByteCount::new(vdi.virtual_size);
    let mut missing = None;
    for (_, disk) in history.of_disk(vdi.uuid.as_str()).take(REFERENCES_BACK) {
        if let Some(uuid) = &disk.reference {
            match facts.vdis.values().find(|vdi| vdi.uuid.as_str() == uuid) {
                Some(reference) => {
                    return match since(reference, size, untracked, ask) {
                        Changes::Unknown(cause, why) => whole((cause, why)),
                        listed => Origin::Base(Base::of(disk), listed),
                    };
                }
                None => _ = missing.get_or_insert(uuid.as_str()),
            }
        }
        if disk.cause == Cause::AuditAlarm.code() {
            return whole(after_alarm());
        }
    }
    whole(without_reference(untracked, missing, may_reserve(untracked, is_vhd(vdi), size)))
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

/// The memory of a checkpoint: it does not exist yet.
fn memory(facts: &Facts, history: &History, vm: &Vm, options: &JobOptions) -> Option<Disk> {
    let sr = preflight::suspend_sr(facts, vm)?;
    // Storage rounds it up; VHD storage to whole blocks.
    let size = ByteCount::new(preflight::suspend_image(vm).get().next_multiple_of(2 << 20));
    let (cause, why) = Untracked::Memory.explain();
    let mut ask = None;
    let allocated = match options.read_unallocated {
        true => Allocation::Unknown("unallocated space is read on request".into()),
        false => {
            // Storage that snapshots gives every disk of its own making a VHD.
            ask = Some(Ask::Head(None));
            Allocation::Listed(nothing(size))
        }
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
