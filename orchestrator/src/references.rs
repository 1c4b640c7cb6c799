//! References: what stays in a pool between runs, so that the changes of a disk can be listed.
//!
//! Where the pool tracks changes, a reference is the VDI of an old snapshot without its data (`cbt_metadata`), one
//! for each disk and store. Before XenServer 7.3 it is a whole snapshot of the VM, the *reserved snapshot*.
//!
//! Promises: an old reference goes only once its successor is one; nothing is destroyed that does not carry this
//! installation's tags, of the right kind and name. Every step may find its work done.

use crate::cleanup::{Removed, destroy_vdi, destroy_vm, disks_of, find_vdi};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{Keep, Reserve, Rotation};
use crate::ownership::is_copy;
use crate::pool::{Pool, TAG_JOB, TAG_OWNER, TAG_REFERENCE, TAG_STORE};
use crate::retry::{is_gone, until_free};
use std::collections::{BTreeMap, BTreeSet};
use xapi::{Ref, StringMap, Uuid, Vdi, VdiType, Vm};

/// End of a reserved snapshot's name; its beginning is the name of the job that made it.
const RESERVED_SUFFIX: &str = "-reserved";

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
    for rotation in rotations {
        let object = format!("snapshot disk {}", rotation.vdi);
        let done = match rotation.keep {
            Keep::Metadata => make_reference(pool, rotation).await,
            Keep::Snapshot => tag_reference(pool, rotation).await.map(|_| false),
            Keep::Nothing => destroy_vdi(pool, &rotation.vdi).await,
        };
        let succeeded = done.is_ok();
        removed.note(object, done);
        for old in rotation.replaces.iter().filter(|_| succeeded) {
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

/// Takes the data out of a snapshot VDI and leaves its change-tracking metadata, tagged as a reference. `true` where
/// there was data.
async fn make_reference(pool: &Pool, rotation: &Rotation) -> Result<bool> {
    let uuid = &rotation.vdi;
    let Some((vdi, record)) = tag_reference(pool, rotation).await? else { return Ok(false) };
    if record.kind == VdiType::CbtMetadata {
        return Ok(false);
    }
    until_free(
        || format!("remove the data of snapshot VDI {uuid}"),
        async || pool.client.vdi_data_destroy(&vdi).await,
    )
    .await?;
    Ok(true)
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
    for (reference, vm) in kept.into_iter().filter(|(_, vm)| vm.uuid.as_str() != newest.snapshot) {
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
    let stem = vm.name_label.strip_prefix("abd-").and_then(|rest| rest.strip_suffix(RESERVED_SUFFIX));
    vm.is_a_snapshot
        && stem.is_some_and(|job| uuid::Uuid::parse_str(job).is_ok())
        && of.is_some_and(|of| source.is_none_or(|source| source.uuid.as_str() == of))
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
/// what an interrupted rotation left of one. Disks of the jobs in `live` are not looked at.
///
/// # Errors
/// Where the pool cannot be asked; single objects that resist are listed in `removed`.
pub async fn remove_stale(pool: &Pool, live: &[String], removed: &mut Removed) -> Result<()> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let present: BTreeSet<&str> = vms.values().map(|vm| vm.uuid.as_str()).collect();
    for (reference, vm) in &vms {
        if is_reserved(vm, vms.get(&vm.snapshot_of))
            && is_stale(&pool.owner, &vm.uuid, &vm.other_config, &present)
        {
            remove_reserved(pool, reference, vm, removed).await;
        }
    }
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let present: BTreeSet<&str> = vdis.values().map(|vdi| vdi.uuid.as_str()).collect();
    for vdi in vdis.values() {
        let of_live_job = vdi.other_config.get(TAG_JOB).is_some_and(|job| live.contains(job));
        let what = match () {
            () if of_live_job => continue,
            () if vdi.kind == VdiType::CbtMetadata
                && is_stale(&pool.owner, &vdi.uuid, &vdi.other_config, &present) =>
            {
                "reference of a disk that is gone"
            }
            () if is_unfinished(&pool.owner, vdi) => "unfinished reference",
            () => continue,
        };
        removed.note(format!("{what} {}", vdi.uuid), destroy_vdi(pool, vdi.uuid.as_str()).await);
    }
    Ok(())
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
