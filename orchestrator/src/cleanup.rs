//! Removing what a job made in a pool. Used at the end of a job and by `abd reconcile`; every step may find
//! its work done, so it can be repeated at will.
//!
//! An object is ours if it carries our tags, or if it was made by an announced call and the crash came before
//! the tag: then its name holds the job's random uuid and its origin is the announced one.

use crate::error::{Context, Error, Kind, Result};
use crate::journal::{Entry, Rotation};
use crate::pool::{Pool, TAG_JOB, TAG_OWNER, TAG_REFERENCE, TAG_STORE};
use crate::retry::{is_gone, until_free};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use xapi::{PowerState, Ref, StringMap, Uuid, Vbd, VbdType, Vdi, VdiType, Vm};

/// How long a VM may take to halt after a hard shutdown.
const HALT_LIMIT: Duration = Duration::from_secs(120);

/// Name of a job's delegate, and the beginning of the names of everything it makes.
pub fn delegate_name(job: &str) -> String {
    format!("abd-{job}")
}

/// Name of a job's VM snapshot.
pub fn snapshot_name(job: &str) -> String {
    format!("abd-{job}-snapshot")
}

/// The tags of an object that belongs to a job.
pub fn tags(pool: &Pool, job: &str) -> StringMap {
    StringMap::from([(TAG_JOB.into(), job.into()), (TAG_OWNER.into(), pool.owner.clone())])
}

/// Whether an object carries the tags of this installation and of this job.
pub fn is_tagged(other_config: &StringMap, owner: &str, job: &str) -> bool {
    other_config.get(TAG_OWNER).is_some_and(|found| found == owner)
        && other_config.get(TAG_JOB).is_some_and(|found| found == job)
}

/// What removing brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// What was removed, for people.
    pub objects: Vec<String>,
    /// What could not be removed, and why.
    pub leftovers: Vec<String>,
}

impl Removed {
    fn note(&mut self, object: String, result: Result<bool>) {
        match result {
            Ok(true) => self.objects.push(object),
            Ok(false) => {}
            Err(error) => self.leftovers.push(format!("{object}: {}", error.chain())),
        }
    }
}

/// Removes everything that the entries of one job's journal announce, as far as it exists.
///
/// # Errors
/// Where the pool cannot be asked; single objects that resist are listed in the result.
pub async fn remove_job(pool: &Pool, job: &str, entries: &[Entry]) -> Result<Removed> {
    let mut removed = Removed::default();
    let committed = entries.iter().any(|entry| matches!(entry, Entry::Committed { .. }));
    let restored = entries.contains(&Entry::Restored);
    remove_vms(pool, job, entries, &mut removed).await?;
    for entry in entries {
        match entry {
            Entry::Snapshot { vdis, .. } if !committed => {
                remove_vdis(pool, vdis, "snapshot disk", &mut removed).await
            }
            Entry::Delegate { vdis, .. } => remove_vdis(pool, vdis, "delegate's disk", &mut removed).await,
            Entry::Vdi { uuid } if !restored => {
                remove_vdis(pool, std::slice::from_ref(uuid), "half-restored disk", &mut removed).await;
            }
            Entry::Committed { vdis, .. } => rotate(pool, job, vdis, &mut removed).await,
            _ => {}
        }
    }
    if !restored && entries.iter().any(|entry| matches!(entry, Entry::VdiIntent { .. })) {
        remove_tagged_vdis(pool, job, &mut removed).await?;
    }
    Ok(removed)
}

/// Removes the job's delegate and snapshot VMs. Disks of a snapshot that no entry names yet go with it.
async fn remove_vms(pool: &Pool, job: &str, entries: &[Entry], removed: &mut Removed) -> Result<()> {
    let named: BTreeSet<&str> = entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Snapshot { uuid, .. } | Entry::Delegate { uuid, .. } => Some(uuid.as_str()),
            _ => None,
        })
        .collect();
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    for (reference, vm) in &vms {
        let tagged = is_tagged(&vm.other_config, &pool.owner, job);
        let announced = entries.iter().find(|entry| match entry {
            Entry::SnapshotIntent { vm: source, name } => {
                vm.is_a_snapshot
                    && vm.name_label == *name
                    && vms.get(&vm.snapshot_of).is_some_and(|of| of.uuid.as_str() == source)
            }
            Entry::DelegateIntent { name } => {
                !vm.is_a_snapshot
                    && vm.name_label == *name
                    && vm.other_config.contains_key(xva::TEMPLATE_KEY)
                    && vm.other_config.get(TAG_JOB).is_none_or(|found| found == job)
            }
            _ => false,
        });
        if !tagged && announced.is_none() && !named.contains(vm.uuid.as_str()) {
            continue;
        }
        // A VM that an entry names but that lost its tag and its name is no longer surely ours.
        if !tagged && announced.is_none() {
            removed.leftovers.push(format!("VM {} ({}) lost its tags; look at it", vm.name_label, vm.uuid));
            continue;
        }
        if vm.is_a_snapshot {
            let known = entries.iter().any(|entry| matches!(entry, Entry::Snapshot { .. }));
            let disks = if known { Vec::new() } else { disks_of(pool, vm, |_| true).await };
            removed
                .note(format!("snapshot {} ({})", vm.name_label, vm.uuid), destroy_vm(pool, reference).await);
            remove_vdis(pool, &disks, "snapshot disk", removed).await;
        } else {
            let known = entries.iter().any(|entry| matches!(entry, Entry::Delegate { .. }));
            let own = if known { Vec::new() } else { disks_of(pool, vm, |vbd| vbd.userdevice == "0").await };
            removed
                .note(format!("delegate {} ({})", vm.name_label, vm.uuid), destroy_vm(pool, reference).await);
            remove_vdis(pool, &own, "delegate's disk", removed).await;
        }
    }
    Ok(())
}

/// Uuids of the VDIs behind a VM's disks that pass the test. A disk that cannot be read is left out: it is
/// found again by its tag or not ours.
pub async fn disks_of(pool: &Pool, vm: &Vm, wanted: impl Fn(&Vbd) -> bool) -> Vec<String> {
    let mut uuids = Vec::new();
    for vbd in &vm.vbds {
        let Ok(vbd) = pool.client.get_record::<Vbd>(vbd).await else { continue };
        if vbd.kind == VbdType::Disk
            && !vbd.vdi.is_null()
            && wanted(&vbd)
            && let Ok(vdi) = pool.client.get_record::<Vdi>(&vbd.vdi).await
        {
            uuids.push(vdi.uuid.to_string());
        }
    }
    uuids
}

/// Halts and destroys a VM record; its VDIs stay. `false` where it is gone already.
///
/// # Errors
/// What the pool refuses to the last try.
pub async fn destroy_vm(pool: &Pool, vm: &Ref<Vm>) -> Result<bool> {
    let client = &pool.client;
    let record = match client.get_record::<Vm>(vm).await {
        Ok(record) => record,
        Err(error) if is_gone(&error) => return Ok(false),
        Err(error) => return Err(error).context(|| "look at the VM".into()),
    };
    if record.power_state != PowerState::Halted {
        let halt = until_free(
            || "power off".into(),
            async || match client.vm_hard_shutdown(vm).await {
                // It powered itself off in between.
                Err(error) if is_gone(&error) || error.code() == "VM_BAD_POWER_STATE" => Ok(()),
                result => result,
            },
        );
        halt.await?;
        match client.wait_vm(vm, |vm| vm.power_state == PowerState::Halted, HALT_LIMIT).await {
            Ok(_) => {}
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(error).context(|| "wait for it to halt".into()),
        }
    }
    let destroy = until_free(
        || "destroy".into(),
        async || match client.vm_destroy(vm).await {
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        },
    );
    destroy.await.map(|()| true)
}

/// Destroys VDIs by uuid, noting each.
pub async fn remove_vdis(pool: &Pool, uuids: &[String], what: &str, removed: &mut Removed) {
    for uuid in uuids {
        removed.note(format!("{what} {uuid}"), destroy_vdi(pool, uuid).await);
    }
}

/// Destroys a VDI; `false` where it is gone already.
///
/// # Errors
/// What the pool refuses to the last try.
pub async fn destroy_vdi(pool: &Pool, uuid: &str) -> Result<bool> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(false) };
    let destroy = until_free(
        || "destroy".into(),
        async || match pool.client.vdi_destroy(&vdi).await {
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        },
    );
    destroy.await.map(|()| true)
}

/// A VDI by uuid; `None` where it is gone.
///
/// # Errors
/// Where the pool cannot be asked.
pub async fn find_vdi(pool: &Pool, uuid: &str) -> Result<Option<Ref<Vdi>>> {
    let parsed: Uuid =
        uuid.parse().map_err(|_| Error::new(Kind::Usage, format!("'{uuid}' is not the uuid of a VDI")))?;
    match pool.client.get_by_uuid::<Vdi>(&parsed).await {
        Ok(vdi) => Ok(Some(vdi)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error).context(|| format!("look for VDI {uuid}")),
    }
}

async fn remove_tagged_vdis(pool: &Pool, job: &str, removed: &mut Removed) -> Result<()> {
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let ours: Vec<String> = vdis
        .values()
        .filter(|vdi| is_tagged(&vdi.other_config, &pool.owner, job))
        .map(|vdi| vdi.uuid.to_string())
        .collect();
    remove_vdis(pool, &ours, "half-restored disk", removed).await;
    Ok(())
}

/// Turns the snapshot's disks into references, or removes them, and drops the references they replace. An
/// old reference goes only once its successor is one.
pub async fn rotate(pool: &Pool, job: &str, rotations: &[Rotation], removed: &mut Removed) {
    for rotation in rotations {
        let object = format!("snapshot disk {}", rotation.vdi);
        let done = if rotation.keep_reference {
            make_reference(pool, rotation).await
        } else {
            destroy_vdi(pool, &rotation.vdi).await
        };
        let succeeded = done.is_ok();
        removed.note(object, done);
        for old in rotation.replaces.iter().filter(|_| succeeded) {
            let result = drop_reference(pool, old).await;
            removed.note(format!("old reference {old}"), result);
        }
    }
    tracing::debug!(job, "references rotated");
}

/// Takes the data out of a snapshot VDI and leaves its change-tracking metadata, tagged as a reference.
async fn make_reference(pool: &Pool, rotation: &Rotation) -> Result<bool> {
    let uuid = &rotation.vdi;
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(false) };
    let record = pool.client.get_record::<Vdi>(&vdi).await.context(|| format!("look at VDI {uuid}"))?;
    for (key, value) in [(TAG_REFERENCE, &rotation.live), (TAG_STORE, &rotation.store)] {
        pool.client.add_to_other_config(&vdi, key, value).await.context(|| format!("tag VDI {uuid}"))?;
    }
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

/// Uuids of the references that this installation keeps for a live VDI and a store, but for `newest`.
pub fn references_of(
    pool: &Pool,
    vdis: &BTreeMap<Ref<Vdi>, Vdi>,
    live: &str,
    store: &str,
    newest: &str,
) -> Vec<String> {
    let is =
        |vdi: &Vdi, key: &str, value: &str| vdi.other_config.get(key).is_some_and(|found| found == value);
    vdis.values()
        .filter(|vdi| vdi.uuid.as_str() != newest && vdi.kind == VdiType::CbtMetadata)
        .filter(|vdi| {
            is(vdi, TAG_OWNER, &pool.owner) && is(vdi, TAG_REFERENCE, live) && is(vdi, TAG_STORE, store)
        })
        .map(|vdi| vdi.uuid.to_string())
        .collect()
}

/// Destroys a reference if it is one of ours.
async fn drop_reference(pool: &Pool, uuid: &str) -> Result<bool> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(false) };
    let record = pool.client.get_record::<Vdi>(&vdi).await.context(|| format!("look at VDI {uuid}"))?;
    let ours = record.other_config.get(TAG_OWNER).is_some_and(|owner| *owner == pool.owner);
    if !ours || record.kind != VdiType::CbtMetadata {
        tracing::warn!(vdi = uuid, "a recorded reference is not ours any more; it stays");
        return Ok(false);
    }
    destroy_vdi(pool, uuid).await
}
