//! Removing what a job made in a pool. Used at the end of a job and by `abd reconcile`; every step may find
//! its work done, so it can be repeated at will.
//!
//! A VM is ours if its kind and its name, which holds the job's random uuid, are those that a job gives, and if it
//! carries our tags or, where a crash came before them, its origin is the announced one. Tags alone prove nothing:
//! whoever clones our snapshot inherits them.

use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::pool::{Pool, TAG_DELEGATE, TAG_JOB, TAG_OWNER, TAG_REFERENCE, TAG_RESTORED};
use crate::references;
use crate::retry::{is_gone, until_free};
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
    pub(crate) fn note(&mut self, object: String, result: Result<bool>) {
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
            Entry::Vdi { uuid } if restored => {
                removed.note(format!("mark on restored disk {uuid}"), hand_over(pool, uuid).await);
            }
            Entry::Committed { vdis, reserve, .. } => {
                references::rotate(pool, job, vdis, reserve.as_ref(), &mut removed).await;
            }
            _ => {}
        }
    }
    if !committed && !restored {
        remove_tagged_vdis(pool, job, &mut removed).await?;
    }
    Ok(removed)
}

/// Whether the last call that was announced may still bring its object about: nothing says that it came to an end.
pub fn is_unsettled(entries: &[Entry]) -> bool {
    let mut open = false;
    for entry in entries {
        match entry {
            Entry::SnapshotIntent { .. } | Entry::DelegateIntent { .. } | Entry::VdiIntent { .. } => {
                open = true
            }
            Entry::Snapshot { .. } | Entry::Delegate { .. } | Entry::Vdi { .. } => open = false,
            _ => {}
        }
    }
    open
}

/// Whether a VM is this job's snapshot or delegate. A tag alone does not make it ours: a VM that somebody clones
/// from our snapshot inherits the tags. Kind, name and origin must be those that were announced as well.
fn is_ours(pool: &Pool, job: &str, vm: &Vm, entries: &[Entry], source: Option<&Vm>) -> bool {
    let tagged = is_tagged(&vm.other_config, &pool.owner, job);
    if vm.is_a_snapshot {
        let announced = entries.iter().any(|entry| match entry {
            Entry::SnapshotIntent { vm, .. } => source.is_some_and(|source| source.uuid.as_str() == vm),
            _ => false,
        });
        return vm.name_label == snapshot_name(job) && (tagged || announced);
    }
    let announced = entries.iter().any(|entry| matches!(entry, Entry::DelegateIntent { .. }))
        && !vm.other_config.contains_key(TAG_JOB);
    vm.name_label == delegate_name(job)
        && vm.other_config.contains_key(xva::TEMPLATE_KEY)
        && (tagged || announced)
}

/// Removes the job's delegate and snapshot VMs. Their disks are tagged first, so that they are found again
/// whatever happens in between.
async fn remove_vms(pool: &Pool, job: &str, entries: &[Entry], removed: &mut Removed) -> Result<()> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let reserved = entries.iter().find_map(|entry| match entry {
        Entry::Committed { reserve, .. } => reserve.as_ref().map(|reserve| reserve.snapshot.as_str()),
        _ => None,
    });
    for (reference, vm) in &vms {
        let stays = reserved == Some(vm.uuid.as_str());
        if stays || !is_ours(pool, job, vm, entries, vms.get(&vm.snapshot_of)) {
            continue;
        }
        let (what, disks) = if vm.is_a_snapshot {
            ("snapshot", disks_of(pool, vm, |_| true).await?)
        } else {
            ("delegate", disks_of(pool, vm, |vbd| vbd.userdevice == "0").await?)
        };
        let committed = entries.iter().any(|entry| matches!(entry, Entry::Committed { .. }));
        if !(committed && vm.is_a_snapshot) {
            for uuid in &disks {
                tag_vdi(pool, uuid, job, !vm.is_a_snapshot).await?;
            }
        }
        removed.note(format!("{what} {} ({})", vm.name_label, vm.uuid), destroy_vm(pool, reference).await);
        if !vm.is_a_snapshot {
            remove_vdis(pool, &disks, "delegate's disk", removed).await;
        }
    }
    Ok(())
}

/// Marks a VDI as made by a job.
///
/// # Errors
/// What the pool refuses.
pub async fn tag_vdi(pool: &Pool, uuid: &str, job: &str, of_delegate: bool) -> Result<()> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(()) };
    let mut all = tags(pool, job);
    if of_delegate {
        all.insert(TAG_DELEGATE.into(), job.to_owned());
    }
    for (key, value) in all {
        pool.client.add_to_other_config(&vdi, &key, &value).await.context(|| format!("tag VDI {uuid}"))?;
    }
    Ok(())
}

/// Uuids of the VDIs behind a VM's disks that pass the test.
///
/// # Errors
/// Where one cannot be looked at: a list with holes would leave disks behind.
pub async fn disks_of(pool: &Pool, vm: &Vm, wanted: impl Fn(&Vbd) -> bool) -> Result<Vec<String>> {
    let mut uuids = Vec::new();
    for vbd in &vm.vbds {
        let vbd = match pool.client.get_record::<Vbd>(vbd).await {
            Ok(vbd) => vbd,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error).context(|| format!("look at the disks of {}", vm.name_label)),
        };
        if vbd.kind != VbdType::Disk || vbd.vdi.is_null() || !wanted(&vbd) {
            continue;
        }
        match pool.client.get_record::<Vdi>(&vbd.vdi).await {
            Ok(vdi) => uuids.push(vdi.uuid.to_string()),
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error).context(|| format!("look at the disks of {}", vm.name_label)),
        }
    }
    Ok(uuids)
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

/// Takes our mark off a restored VDI: it belongs to the user. `false` where it carries none.
///
/// # Errors
/// What the pool refuses.
pub async fn hand_over(pool: &Pool, uuid: &str) -> Result<bool> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(false) };
    let record = pool.client.get_record::<Vdi>(&vdi).await.context(|| format!("look at VDI {uuid}"))?;
    for key in [TAG_JOB, TAG_OWNER] {
        pool.client.remove_from_other_config(&vdi, key).await.context(|| format!("hand over VDI {uuid}"))?;
    }
    Ok(record.other_config.contains_key(TAG_JOB))
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

/// Removes VDIs that carry the job's tags, are of a kind that a job makes, and are in nobody's use.
async fn remove_tagged_vdis(pool: &Pool, job: &str, removed: &mut Removed) -> Result<()> {
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let ours: Vec<String> = vdis
        .values()
        .filter(|vdi| is_tagged(&vdi.other_config, &pool.owner, job) && is_made_by_jobs(vdi))
        .map(|vdi| vdi.uuid.to_string())
        .collect();
    remove_vdis(pool, &ours, "disk", removed).await;
    Ok(())
}

/// Whether a tagged VDI is a snapshot's disk, a delegate's, or one that was being restored into; not a reference, not
/// a copy that inherited the tags, and not one that a VM still has.
pub fn is_made_by_jobs(vdi: &Vdi) -> bool {
    let reference = vdi.kind == VdiType::CbtMetadata || vdi.other_config.contains_key(TAG_REFERENCE);
    let made = vdi.is_a_snapshot
        || vdi.other_config.contains_key(TAG_DELEGATE)
        || vdi.other_config.contains_key(TAG_RESTORED);
    made && !reference && vdi.vbds.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_ends_with_an_intent_is_unsettled() {
        let intent = Entry::DelegateIntent { name: "abd-j".into() };
        let made = Entry::Delegate { uuid: "u".into(), vdis: vec![] };
        let failed = Entry::Failed { reason: "r".into() };
        assert!(!is_unsettled(&[]));
        assert!(is_unsettled(&[intent.clone(), failed.clone()]));
        assert!(!is_unsettled(&[intent.clone(), made.clone(), failed]));
        assert!(is_unsettled(&[intent.clone(), made, intent]));
    }

    #[test]
    fn only_vdis_that_jobs_make_and_nobody_uses_are_taken_for_ours() {
        let tagged = |extra: &str| Vdi {
            other_config: StringMap::from([(TAG_JOB.into(), "j".into()), (extra.into(), "x".into())]),
            ..Vdi::default()
        };
        assert!(is_made_by_jobs(&tagged(TAG_RESTORED)));
        assert!(is_made_by_jobs(&tagged(TAG_DELEGATE)));
        assert!(!is_made_by_jobs(&tagged("other")), "a copy of our snapshot's disk inherits its tags");
        assert!(is_made_by_jobs(&Vdi { is_a_snapshot: true, ..tagged("other") }));
        assert!(!is_made_by_jobs(&Vdi { is_a_snapshot: true, ..tagged(TAG_REFERENCE) }));
        let used = Vdi { vbds: vec![Ref::from_opaque(String::from("OpaqueRef:v"))], ..tagged(TAG_RESTORED) };
        assert!(!is_made_by_jobs(&used));
    }
}
