//! References: what stays in a pool between runs, so that the changes of a disk can be listed.
//!
//! Where the pool tracks changes, a reference is the VDI of an old snapshot without its data (`cbt_metadata`), one
//! for each disk and store. Before XenServer 7.3 it is a whole snapshot of the VM, the *reserved snapshot*.
//!
//! Promises: an old reference goes only once its successor is one; nothing is destroyed that does not carry this
//! installation's tags, of the right kind and name. Every step may find its work done.

use crate::cleanup::{Removed, destroy_vdi, destroy_vm, disks_of, find_vdi};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{self, Keep, Reserve, Rotation};
use crate::ownership::is_copy;
use crate::pool::{Pool, TAG_JOB, TAG_OWNER, TAG_REFERENCE, TAG_STORE};
use crate::retry::{is_gone, until_free};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;
use xapi::{Ref, StringMap, Uuid, Vdi, VdiType, Vm};

/// End of a reserved snapshot's name; its beginning is the name of the job that made it.
const RESERVED_SUFFIX: &str = "-reserved";

/// What kind of object is kept between runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptKind {
    /// A VDI with the change-tracking metadata of an old snapshot.
    Reference,
    /// A whole snapshot of a VM, with its disks.
    Reserved,
}

/// Something that an installation keeps in a pool between runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it is.
    pub kind: KeptKind,
    /// Its uuid.
    pub uuid: String,
    /// The installation that keeps it.
    pub owner: String,
    /// Uuid of the live VDI whose changes a reference lists; of the VM that a reserved snapshot is of.
    pub of: String,
    /// Id of the store that holds the base that goes with it.
    pub store: String,
    /// The job that made it, where it says so.
    pub job: Option<String>,
    /// When the snapshot was taken, by the pool's clock; none where the pool does not say.
    pub taken: Option<SystemTime>,
}

/// What all installations keep in a pool, by what it is kept for, oldest first.
pub fn kept(vms: &BTreeMap<Ref<Vm>, Vm>, vdis: &BTreeMap<Ref<Vdi>, Vdi>) -> Vec<Kept> {
    let one = |kind, uuid: &Uuid, tags: &StringMap, job: Option<&str>, taken: &str| {
        (!is_copy(uuid, tags)).then_some(())?;
        Some(Kept {
            kind,
            uuid: uuid.to_string(),
            owner: tags.get(TAG_OWNER)?.clone(),
            of: tags.get(TAG_REFERENCE)?.clone(),
            store: tags.get(TAG_STORE)?.clone(),
            job: job.map(str::to_owned),
            taken: xapi::timestamp(taken),
        })
    };
    let references = vdis.values().filter(|vdi| vdi.kind == VdiType::CbtMetadata).filter_map(|vdi| {
        let job = vdi.other_config.get(TAG_JOB).map(String::as_str);
        one(KeptKind::Reference, &vdi.uuid, &vdi.other_config, job, &vdi.snapshot_time)
    });
    let reserved = vms.values().filter(|vm| is_reserved(vm, vms.get(&vm.snapshot_of))).filter_map(|vm| {
        one(KeptKind::Reserved, &vm.uuid, &vm.other_config, job_of_reserved(vm), &vm.snapshot_time)
    });
    let mut found: Vec<Kept> = references.chain(reserved).collect();
    found.sort_by(|a, b| (&a.of, a.taken, &a.uuid).cmp(&(&b.of, b.taken, &b.uuid)));
    found
}

/// Removes kept objects of this installation. What is not its any more, or not what it was, stays.
///
/// # Errors
/// Where the pool cannot be asked; single objects that resist are listed in `removed`.
pub async fn release(pool: &Pool, kept: &[&Kept], removed: &mut Removed) -> Result<()> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    for one in kept {
        match one.kind {
            KeptKind::Reference => {
                removed.note(format!("reference {}", one.uuid), drop_reference(pool, &one.uuid).await);
            }
            KeptKind::Reserved => {
                let ours = reserved_of(&pool.owner, &vms, &one.of, &one.store);
                for (reference, vm) in ours.into_iter().filter(|(_, vm)| vm.uuid.as_str() == one.uuid) {
                    remove_reserved(pool, reference, vm, removed).await;
                }
            }
        }
    }
    Ok(())
}

/// Name of the reserved snapshot that a job leaves.
pub fn reserved_name(job: &str) -> String {
    format!("{}{RESERVED_SUFFIX}", crate::cleanup::delegate_name(job))
}

/// Does what the journal says after a commit: turns the snapshot's disks into references, or removes them, and
/// drops the references that they replace.
pub async fn rotate(
    pool: &Pool,
    job: &str,
    rotations: &[Rotation],
    reserve: Option<&Reserve>,
    removed: &mut Removed,
) {
    let unknown = rotations.iter().filter(|rotation| rotation.replaces.is_none());
    let mut replaced = match older_references(pool, unknown).await {
        Ok(found) => found,
        Err(error) => {
            removed.leftovers.push(format!("old references: {}", error.chain()));
            BTreeMap::new()
        }
    };
    for rotation in rotations {
        let object = format!("snapshot disk {}", rotation.vdi);
        let done = match rotation.keep {
            Keep::Metadata => make_reference(pool, rotation).await,
            Keep::Snapshot => tag_reference(pool, rotation).await.map(|found| match found {
                Some(_) => Successor::Is,
                None => Successor::Gone,
            }),
            Keep::Nothing => destroy_vdi(pool, &rotation.vdi).await.map(|_| Successor::Unwanted),
        };
        // Where somebody removed the successor, the old reference is still good.
        let may_drop = matches!(done, Ok(Successor::Made | Successor::Is | Successor::Unwanted));
        removed.note(object, done.map(|successor| successor == Successor::Made));
        let replaces =
            rotation.replaces.clone().or_else(|| replaced.remove(&rotation.vdi)).unwrap_or_default();
        for old in replaces.iter().filter(|_| may_drop) {
            let result = drop_reference(pool, old).await;
            removed.note(format!("old reference {old}"), result);
        }
    }
    if let Some(reserve) = reserve {
        match keep_snapshot(pool, job, reserve).await {
            Ok(true) => drop_reserved(pool, reserve, removed).await,
            Ok(false) => {}
            Err(error) => removed.leftovers.push(format!("snapshot {}: {}", reserve.snapshot, error.chain())),
        }
    }
    tracing::debug!(job, "references rotated");
}

/// The references that rotations replace, by the rotation's VDI: those that are not younger, because a later job may
/// have left its own since.
async fn older_references(
    pool: &Pool,
    rotations: impl Iterator<Item = &Rotation>,
) -> Result<BTreeMap<String, Vec<String>>> {
    let mut rotations = rotations.peekable();
    if rotations.peek().is_none() {
        return Ok(BTreeMap::new());
    }
    let what = || "list VDIs".to_owned();
    let vdis = until_free(what, async || pool.client.get_all_records::<Vdi>().await).await?;
    let by_uuid = |uuid: &str| vdis.values().find(|vdi| vdi.uuid.as_str() == uuid);
    let found = rotations.filter_map(|rotation| {
        // Where it is gone, the next run of its VM drops what is older.
        let before = &by_uuid(&rotation.vdi)?.snapshot_time;
        let mut older = references_of(&pool.owner, &vdis, &rotation.live, &rotation.store);
        older.retain(|uuid| {
            *uuid != rotation.vdi && by_uuid(uuid).is_some_and(|vdi| vdi.snapshot_time <= *before)
        });
        Some((rotation.vdi.clone(), older))
    });
    Ok(found.collect())
}

/// What became of a snapshot disk that was to follow the old references.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Successor {
    /// It is a reference from now on.
    Made,
    /// It was one already.
    Is,
    /// Somebody removed it.
    Gone,
    /// None was wanted.
    Unwanted,
}

/// Takes the data out of a snapshot VDI and leaves its change-tracking metadata, tagged as a reference.
async fn make_reference(pool: &Pool, rotation: &Rotation) -> Result<Successor> {
    let uuid = &rotation.vdi;
    let Some((vdi, record)) = tag_reference(pool, rotation).await? else { return Ok(Successor::Gone) };
    if record.kind == VdiType::CbtMetadata {
        return Ok(Successor::Is);
    }
    // Not what passes by itself: the snapshot VM stayed, or somebody attached the disk. Waiting for it would hold the
    // job for minutes, disk by disk.
    if !record.vbds.is_empty() {
        let message = format!("remove the data of snapshot VDI {uuid}: a VM still has it");
        return Err(Error::new(Kind::Leftovers, message)
            .remedy("detach it where it is attached, then run `abd reconcile`"));
    }
    until_free(
        || format!("remove the data of snapshot VDI {uuid}"),
        async || pool.client.vdi_data_destroy(&vdi).await,
    )
    .await?;
    Ok(Successor::Made)
}

async fn tag_reference(pool: &Pool, rotation: &Rotation) -> Result<Option<(Ref<Vdi>, Vdi)>> {
    let uuid = &rotation.vdi;
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(None) };
    let record = pool.client.get_record::<Vdi>(&vdi).await.context(|| format!("look at VDI {uuid}"))?;
    for (key, value) in [(TAG_REFERENCE, &rotation.live), (TAG_STORE, &rotation.store)] {
        pool.client.add_to_other_config(&vdi, key, value).await.context(|| format!("tag VDI {uuid}"))?;
    }
    Ok(Some((vdi, record)))
}

/// Uuids of the references that the installation `owner` keeps for a live VDI and a store, oldest first.
pub fn references_of(owner: &str, vdis: &BTreeMap<Ref<Vdi>, Vdi>, live: &str, store: &str) -> Vec<String> {
    let mut found: Vec<&Vdi> = vdis
        .values()
        .filter(|vdi| {
            vdi.kind == VdiType::CbtMetadata && is_reference(owner, &vdi.uuid, &vdi.other_config, live, store)
        })
        .collect();
    found.sort_by(|a, b| (&a.snapshot_time, a.uuid.as_str()).cmp(&(&b.snapshot_time, b.uuid.as_str())));
    found.into_iter().map(|vdi| vdi.uuid.to_string()).collect()
}

fn is_reference(owner: &str, uuid: &Uuid, tags: &StringMap, of: &str, store: &str) -> bool {
    let is = |key: &str, value: &str| tags.get(key).is_some_and(|found| found == value);
    !is_copy(uuid, tags) && is(TAG_OWNER, owner) && is(TAG_REFERENCE, of) && is(TAG_STORE, store)
}

/// Destroys a reference if it is one of ours.
async fn drop_reference(pool: &Pool, uuid: &str) -> Result<bool> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(false) };
    let record = pool.client.get_record::<Vdi>(&vdi).await.context(|| format!("look at VDI {uuid}"))?;
    let ours = record.other_config.get(TAG_OWNER).is_some_and(|owner| *owner == pool.owner);
    if !ours || is_copy(&record.uuid, &record.other_config) || record.kind != VdiType::CbtMetadata {
        tracing::warn!(vdi = uuid, "a recorded reference is not ours any more; it stays");
        return Ok(false);
    }
    destroy_vdi(pool, uuid).await
}

/// Makes the job's snapshot VM the reserved one. `false` where somebody removed it.
async fn keep_snapshot(pool: &Pool, job: &str, reserve: &Reserve) -> Result<bool> {
    let uuid = &reserve.snapshot;
    let parsed = uuid.parse().map_err(|_| Error::new(Kind::Failed, format!("'{uuid}' is no uuid")))?;
    let vm = match pool.client.get_by_uuid::<Vm>(&parsed).await {
        Ok(vm) => vm,
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(error).context(|| format!("look for snapshot {uuid}")),
    };
    for (key, value) in [(TAG_REFERENCE, &reserve.vm), (TAG_STORE, &reserve.store)] {
        pool.client.add_to_other_config(&vm, key, value).await.context(|| "tag the snapshot".into())?;
    }
    let about = "Reserved by the backup: the next run lists the changes since this snapshot. Removing it only makes \
                 that run read everything.";
    let told = async {
        pool.client.set_name_description(&vm, about).await?;
        pool.client.set_name_label(&vm, &reserved_name(job)).await?;
        // Last: until here the job's clean-up still knows it.
        pool.client.remove_from_other_config(&vm, TAG_JOB).await
    };
    told.await.context(|| format!("reserve snapshot {uuid}"))?;
    Ok(true)
}

/// Removes the VM's earlier reserved snapshots with their disks.
async fn drop_reserved(pool: &Pool, newest: &Reserve, removed: &mut Removed) {
    let vms = match pool.client.get_all_records::<Vm>().await {
        Ok(vms) => vms,
        Err(error) => return removed.leftovers.push(format!("old reserved snapshots: {error}")),
    };
    let kept = reserved_of(&pool.owner, &vms, &newest.vm, &newest.store);
    // Only what is older: the journal of a job that died may be worked through after a later job reserved its own.
    let Some((_, this)) = kept.iter().find(|(_, vm)| vm.uuid.as_str() == newest.snapshot) else { return };
    let before = this.snapshot_time.clone();
    let old = |vm: &Vm| vm.uuid.as_str() != newest.snapshot && vm.snapshot_time <= before;
    for (reference, vm) in kept.into_iter().filter(|(_, vm)| old(vm)) {
        remove_reserved(pool, reference, vm, removed).await;
    }
}

/// The reserved snapshots that the installation `owner` keeps for a VM and a store.
pub(crate) fn reserved_of<'a>(
    owner: &str,
    vms: &'a BTreeMap<Ref<Vm>, Vm>,
    of: &str,
    store: &str,
) -> Vec<(&'a Ref<Vm>, &'a Vm)> {
    let is_one = |vm: &Vm| {
        is_reserved(vm, vms.get(&vm.snapshot_of))
            && is_reference(owner, &vm.uuid, &vm.other_config, of, store)
    };
    vms.iter().filter(|(_, vm)| is_one(vm)).collect()
}

/// Whether a snapshot VM is a reserved one: kind, name and origin, for tags alone are inherited by copies.
fn is_reserved(vm: &Vm, source: Option<&Vm>) -> bool {
    let of = vm.other_config.get(TAG_REFERENCE);
    vm.is_a_snapshot
        && job_of_reserved(vm).is_some()
        && of.is_some_and(|of| source.is_none_or(|source| source.uuid.as_str() == of))
}

/// The job in a reserved snapshot's name.
fn job_of_reserved(vm: &Vm) -> Option<&str> {
    let stem = vm.name_label.strip_prefix("abd-").and_then(|rest| rest.strip_suffix(RESERVED_SUFFIX));
    stem.filter(|job| uuid::Uuid::parse_str(job).is_ok())
}

async fn remove_reserved(pool: &Pool, reference: &Ref<Vm>, vm: &Vm, removed: &mut Removed) {
    let object = format!("reserved snapshot {}", vm.uuid);
    let disks = match disks_of(pool, vm, |_| true).await {
        Ok(disks) => disks,
        Err(error) => return removed.leftovers.push(format!("{object}: {}", error.chain())),
    };
    // Its disks are found through it, so it goes last.
    let mut all_gone = true;
    for disk in &disks {
        let destroyed = destroy_vdi(pool, disk).await;
        all_gone &= destroyed.is_ok();
        removed.note(format!("disk {disk} of a reserved snapshot"), destroyed);
    }
    if all_gone {
        removed.note(object, destroy_vm(pool, reference).await);
    }
}

/// Removes this installation's references whose VM or disk is gone, for nothing can be listed from them any more, and
/// what an interrupted rotation left of one.
///
/// A job of another process may start or end meanwhile. Its journal is there before its first disk, so a disk that is
/// seen and whose job has no journal afterwards belongs to none that runs; and what the disk is then is asked again,
/// because a job that ended in between has made it what it is to be.
///
/// # Errors
/// Where the pool cannot be asked; single objects that resist are listed in `removed`.
pub async fn remove_stale(pool: &Pool, journals: &Path, removed: &mut Removed) -> Result<()> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let present: BTreeSet<&str> = vms.values().map(|vm| vm.uuid.as_str()).collect();
    let is_free = |job: Option<&str>| job.is_none_or(|job| !journal::path(journals, job).exists());
    for (reference, vm) in &vms {
        if is_reserved(vm, vms.get(&vm.snapshot_of))
            && is_stale(&pool.owner, &vm.uuid, &vm.other_config, &present)
            && is_free(job_of_reserved(vm))
        {
            remove_reserved(pool, reference, vm, removed).await;
        }
    }
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let present: BTreeSet<&str> = vdis.values().map(|vdi| vdi.uuid.as_str()).collect();
    for (reference, vdi) in &vdis {
        if removable(&pool.owner, vdi, &present).is_none() || !is_free(job_of_vdi(vdi)) {
            continue;
        }
        let now = crate::removal::present(pool.client.get_record::<Vdi>(reference).await);
        let Some(now) = now.context(|| format!("look at VDI {}", vdi.uuid))? else { continue };
        if let Some(what) = removable(&pool.owner, &now, &present) {
            removed.note(format!("{what} {}", now.uuid), destroy_vdi(pool, now.uuid.as_str()).await);
        }
    }
    Ok(())
}

/// The job that a VDI names, where that can be the name of a journal.
fn job_of_vdi(vdi: &Vdi) -> Option<&str> {
    let job = vdi.other_config.get(TAG_JOB).map(String::as_str);
    job.filter(|job| uuid::Uuid::parse_str(job).is_ok())
}

/// What a VDI is, if it is a reference of ours that is good for nothing, and no job is at work on it.
fn removable(owner: &str, vdi: &Vdi, present: &BTreeSet<&str>) -> Option<&'static str> {
    let is_stale = || is_stale(owner, &vdi.uuid, &vdi.other_config, present);
    match () {
        () if vdi.kind == VdiType::CbtMetadata && is_stale() => Some("reference of a disk that is gone"),
        () if is_unfinished(owner, vdi) => Some("unfinished reference"),
        () => None,
    }
}

/// Whether tags are those of a reference of ours to something that is not there any more.
fn is_stale(owner: &str, uuid: &Uuid, tags: &StringMap, present: &BTreeSet<&str>) -> bool {
    !is_copy(uuid, tags)
        && tags.get(TAG_OWNER).is_some_and(|found| found == owner)
        && tags.get(TAG_REFERENCE).is_some_and(|of| !present.contains(of.as_str()))
}

/// Whether a VDI is a snapshot's disk that was to become a reference, still has its data, and is in no snapshot VM:
/// the rotation that tagged it did not come to its end, and its journal is gone. A snapshot of a disk that was
/// reverted to a reserved snapshot has the same tags.
fn is_unfinished(owner: &str, vdi: &Vdi) -> bool {
    vdi.is_a_snapshot
        && vdi.kind != VdiType::CbtMetadata
        && vdi.vbds.is_empty()
        && !is_copy(&vdi.uuid, &vdi.other_config)
        && vdi.other_config.get(TAG_OWNER).is_some_and(|found| found == owner)
        && vdi.other_config.contains_key(TAG_REFERENCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::TAG_SELF;

    const VM: &str = "11111111-1111-4111-8111-111111111111";
    const JOB: &str = "22222222-2222-4222-8222-222222222222";

    fn reserved() -> Vm {
        Vm {
            is_a_snapshot: true,
            name_label: reserved_name(JOB),
            other_config: StringMap::from([(TAG_REFERENCE.into(), VM.into())]),
            ..Vm::default()
        }
    }

    #[test]
    fn only_a_snapshot_with_our_name_of_the_vm_it_names_is_reserved() {
        let of = |uuid: &str| Vm { uuid: uuid.parse().expect("uuid"), ..Vm::default() };
        assert!(is_reserved(&reserved(), Some(&of(VM))));
        assert!(is_reserved(&reserved(), None), "its VM is gone");
        assert!(!is_reserved(&reserved(), Some(&of(JOB))), "a snapshot of a copy inherits the tags");
        assert!(!is_reserved(&Vm { is_a_snapshot: false, ..reserved() }, None), "a clone of it");
        assert!(!is_reserved(&Vm { name_label: "before the update".into(), ..reserved() }, None));
        assert!(!is_reserved(&Vm { name_label: "abd-mine-reserved".into(), ..reserved() }, None));
        assert!(!is_reserved(&Vm { other_config: StringMap::new(), ..reserved() }, None));
    }

    #[test]
    fn what_is_kept_is_told_with_its_owner_and_its_time_and_copies_are_not() {
        let tags = |owner: &str, of: &str| {
            StringMap::from([
                (TAG_OWNER.into(), owner.into()),
                (TAG_REFERENCE.into(), of.into()),
                (TAG_STORE.into(), "store".into()),
                (TAG_JOB.into(), JOB.into()),
            ])
        };
        let vdi = |uuid: &str, kind, other_config| Vdi {
            uuid: uuid.parse().expect("uuid"),
            kind,
            other_config,
            snapshot_time: "20250102T03:04:05Z".into(),
            ..Vdi::default()
        };
        let mut copied = tags("me", "disk");
        copied.insert(TAG_SELF.into(), VM.into());
        let vdis = [
            vdi(VM, VdiType::CbtMetadata, tags("me", "disk")),
            vdi("11111111-1111-4111-8111-111111111112", VdiType::CbtMetadata, tags("you", "disk")),
            vdi("11111111-1111-4111-8111-111111111113", VdiType::CbtMetadata, copied),
            vdi("11111111-1111-4111-8111-111111111114", VdiType::User, tags("me", "disk")),
            vdi("11111111-1111-4111-8111-111111111115", VdiType::CbtMetadata, StringMap::new()),
        ];
        let vdis = vdis.into_iter().enumerate();
        let vdis = vdis.map(|(at, vdi)| (Ref::from_opaque(format!("OpaqueRef:{at}")), vdi)).collect();
        let mut snapshot = reserved();
        snapshot.other_config.extend([(TAG_OWNER.into(), "me".into()), (TAG_STORE.into(), "store".into())]);
        snapshot.snapshot_time = "19700101T00:00:00Z".into();
        let vms = [(Ref::from_opaque("OpaqueRef:s"), snapshot)].into();
        let found = kept(&vms, &vdis);
        let short: Vec<_> = found.iter().map(|one| (one.kind, one.owner.as_str(), one.of.as_str())).collect();
        assert_eq!(
            short,
            [
                (KeptKind::Reserved, "me", VM),
                (KeptKind::Reference, "me", "disk"),
                (KeptKind::Reference, "you", "disk"),
            ]
        );
        assert_eq!(found[0].job.as_deref(), Some(JOB), "from its name");
        assert_eq!(found[0].taken, None, "the epoch is no time");
        assert!(found[1].taken.is_some() && found[1].job.as_deref() == Some(JOB));
    }

    #[test]
    fn a_reference_is_known_by_owner_disk_and_store() {
        let tags = StringMap::from([
            (TAG_OWNER.into(), "me".into()),
            (TAG_REFERENCE.into(), "disk".into()),
            (TAG_STORE.into(), "store".into()),
        ]);
        let uuid: Uuid = VM.parse().expect("uuid");
        assert!(is_reference("me", &uuid, &tags, "disk", "store"));
        assert!(!is_reference("you", &uuid, &tags, "disk", "store"));
        assert!(!is_reference("me", &uuid, &tags, "other", "store"));
        assert!(!is_reference("me", &uuid, &tags, "disk", "elsewhere"));
        let mut own = tags;
        own.insert(TAG_SELF.into(), VM.into());
        assert!(is_reference("me", &uuid, &own, "disk", "store"));
        assert!(!is_reference("me", &JOB.parse().expect("uuid"), &own, "disk", "store"), "a copy");
    }

    #[test]
    fn only_a_snapshots_disk_without_a_vm_is_an_unfinished_reference() {
        let tags = StringMap::from([(TAG_OWNER.into(), "me".into()), (TAG_REFERENCE.into(), "disk".into())]);
        let vdi = Vdi { is_a_snapshot: true, other_config: tags, ..Vdi::default() };
        assert!(is_unfinished("me", &vdi));
        assert!(!is_unfinished("you", &vdi));
        let mut inherited = vdi.clone();
        inherited.other_config.insert(TAG_SELF.into(), VM.into());
        assert!(!is_unfinished("me", &inherited), "a snapshot of a disk that was reverted to a reserved one");
        assert!(!is_unfinished("me", &Vdi { kind: VdiType::CbtMetadata, ..vdi.clone() }));
        assert!(!is_unfinished("me", &Vdi { is_a_snapshot: false, ..vdi.clone() }), "a copy of it");
        let used = Vdi { vbds: vec![Ref::from_opaque(String::from("OpaqueRef:v"))], ..vdi };
        assert!(!is_unfinished("me", &used), "in a reserved snapshot");
    }
}
