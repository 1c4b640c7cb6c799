//! Removing what a job made in a pool. Used at the end of a job and by `abd reconcile`; every step may find
//! its work done, so it can be repeated at will.
//!
//! Whose an object is, is decided in [`crate::ownership`]; how one object is removed, in [`crate::removal`]. Disks
//! that somebody else's VM uses are left alone even where they are ours.

use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::ownership::{is_jobs_vdi, is_jobs_vm, is_marked, mark, unmark, was_made_a_template};
use crate::pool::{Pool, TAG_DELEGATE, TAG_JOB, TAG_RESTORED};
use crate::references;
use crate::removal::{parsed, present, refuse_used, users_of};
use crate::retry::is_gone;
use std::collections::{BTreeMap, BTreeSet};
use xapi::{Ref, Vbd, VbdType, Vdi, Vm};

pub use crate::ownership::{delegate_name, snapshot_name, tags};
pub use crate::removal::{Removed, destroy_vdi, destroy_vm, find_vdi, remove_vdis};

/// Removes everything that the entries of one job's journal announce, as far as it exists, and what carries the
/// job's mark.
///
/// # Errors
/// Where the pool cannot be asked; single objects that resist are listed in the result.
pub async fn remove_job(pool: &Pool, job: &str, entries: &[Entry]) -> Result<Removed> {
    let pool = &pool.for_job(job);
    let mut removed = Removed::default();
    let committed = entries.iter().any(|entry| matches!(entry, Entry::Committed { .. }));
    let restored = entries.contains(&Entry::Restored);
    let mut held = remove_vms(pool, job, entries, &mut removed).await?;
    let free = |vdis: &[String], held: &BTreeSet<String>| {
        vdis.iter().filter(|vdi| !held.contains(*vdi)).cloned().collect::<Vec<_>>()
    };
    for entry in entries {
        match entry {
            Entry::Snapshot { vdis, .. } if !committed => {
                let vdis = free(vdis, &held);
                held.extend(remove_vdis(pool, &vdis, "snapshot's disk", &mut removed).await);
            }
            Entry::Delegate { vdis, .. } => {
                let vdis = free(vdis, &held);
                held.extend(remove_vdis(pool, &vdis, "delegate's disk", &mut removed).await);
            }
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
        let mut vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
        vdis.retain(|_, vdi| !held.contains(vdi.uuid.as_str()));
        removed.note_all(remove_marked_vdis(pool, job, &vdis).await?);
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

/// Removes the job's delegates and snapshot VMs. Their disks are marked first, so that they are found again
/// whatever happens in between. Gives the uuids of the disks that resisted, or that a VM which did still holds.
async fn remove_vms(
    pool: &Pool,
    job: &str,
    entries: &[Entry],
    removed: &mut Removed,
) -> Result<BTreeSet<String>> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let committed = entries.iter().any(|entry| matches!(entry, Entry::Committed { .. }));
    let reserved = entries.iter().find_map(|entry| match entry {
        Entry::Committed { reserve, .. } => reserve.as_ref().map(|reserve| reserve.snapshot.as_str()),
        _ => None,
    });
    let mut ours: Vec<_> = vms
        .iter()
        .filter(|(_, vm)| reserved != Some(vm.uuid.as_str()))
        .filter(|(_, vm)| is_jobs_vm(&pool.owner, job, vm, entries, vms.get(&vm.snapshot_of)))
        .collect();
    // A delegate holds the snapshot's disks.
    ours.sort_by_key(|(_, vm)| vm.is_a_snapshot);
    let mut held = BTreeSet::new();
    for (reference, vm) in ours {
        let what = if vm.is_a_snapshot { "snapshot" } else { "delegate" };
        let object = format!("{what} {} ({})", vm.name_label, vm.uuid);
        let disks = all_disks(pool, vm).await?;
        let own: Vec<&Disk> =
            disks.iter().filter(|disk| belongs_to_it(pool, job, vm, disk, entries)).collect();
        let outcome = async {
            if was_made_a_template(vm) {
                return Err(Error::new(Kind::Leftovers, "somebody made it a template")
                    .remedy("give it another name to keep it, or delete it"));
            }
            if !(committed && vm.is_a_snapshot) {
                for disk in &own {
                    let of_delegate = [(TAG_DELEGATE, job)];
                    let extra = if vm.is_a_snapshot { &of_delegate[..0] } else { &of_delegate[..] };
                    let marked = mark(pool, &disk.reference, &disk.record.uuid, job, extra).await;
                    marked.context(|| format!("tag VDI {}", disk.record.uuid))?;
                }
            }
            destroy_vm(pool, reference).await
        };
        let outcome = outcome.await;
        let gone = outcome.is_ok();
        removed.note(object, outcome);
        if !gone {
            held.extend(disks.iter().map(|disk| disk.record.uuid.to_string()));
        } else if !(committed && vm.is_a_snapshot) {
            let uuids = own.iter().map(|disk| disk.record.uuid.to_string());
            let uuids: Vec<String> = uuids.filter(|uuid| !held.contains(uuid)).collect();
            held.extend(remove_vdis(pool, &uuids, &format!("{what}'s disk"), removed).await);
        }
    }
    Ok(held)
}

/// A VDI that a VM has.
struct Disk {
    reference: Ref<Vdi>,
    record: Vdi,
    /// The drive it is in; none for a memory image.
    vbd: Option<Vbd>,
}

/// Every VDI behind a VM's disks, and its memory image.
async fn all_disks(pool: &Pool, vm: &Vm) -> Result<Vec<Disk>> {
    let looking = || format!("look at the disks of {}", vm.name_label);
    let mut found = Vec::new();
    for vbd in &vm.vbds {
        let Some(vbd) = present(pool.client.get_record::<Vbd>(vbd).await).context(looking)? else { continue };
        if vbd.kind == VbdType::Disk && !vbd.vdi.is_null() {
            found.push((vbd.vdi.clone(), Some(vbd)));
        }
    }
    if !vm.suspend_vdi.is_null() {
        found.push((vm.suspend_vdi.clone(), None));
    }
    let mut disks = Vec::new();
    for (reference, vbd) in found {
        if let Some(record) = present(pool.client.get_record::<Vdi>(&reference).await).context(looking)? {
            disks.push(Disk { reference, record, vbd });
        }
    }
    Ok(disks)
}

/// Whether a disk of our VM came with it. Of a snapshot those did that are snapshots themselves, and its memory. A delegate has the disks of others as well, and
/// one of a person's may have been put in the place of its own: what counts is the journal, the mark, or, in a fresh
/// clone that has neither yet, that it is the boot disk and nobody else's.
fn belongs_to_it(pool: &Pool, job: &str, vm: &Vm, disk: &Disk, entries: &[Entry]) -> bool {
    let Some(vbd) = disk.vbd.as_ref() else { return true };
    if vm.is_a_snapshot {
        return disk.record.is_a_snapshot;
    }
    let uuid = disk.record.uuid.as_str();
    let journalled = entries.iter().any(|entry| match entry {
        Entry::Delegate { vdis, .. } => vdis.iter().any(|vdi| vdi == uuid),
        _ => false,
    });
    let marked = is_marked(&pool.owner, &disk.record.uuid, &disk.record.other_config, job)
        && disk.record.other_config.contains_key(TAG_DELEGATE);
    let fresh = vm.is_a_template && vbd.userdevice == "0" && disk.record.vbds.len() == 1;
    journalled || marked || fresh
}

/// Marks a VDI as made by a job.
///
/// # Errors
/// What the pool refuses.
pub async fn tag_vdi(pool: &Pool, uuid: &str, job: &str, of_delegate: bool) -> Result<()> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(()) };
    let of = [(TAG_DELEGATE, job)];
    let extra = if of_delegate { &of[..] } else { &of[..0] };
    mark(pool, &vdi, &parsed(uuid)?, job, extra).await.context(|| format!("tag VDI {uuid}"))
}

/// Uuids of the VDIs behind a VM's disks that pass the test.
///
/// # Errors
/// Where one cannot be looked at: a list with holes would leave disks behind.
pub async fn disks_of(pool: &Pool, vm: &Vm, wanted: impl Fn(&Vbd) -> bool) -> Result<Vec<String>> {
    let disks = all_disks(pool, vm).await?;
    let wanted = disks.iter().filter(|disk| disk.vbd.as_ref().is_some_and(&wanted));
    Ok(wanted.map(|disk| disk.record.uuid.to_string()).collect())
}

/// Takes our mark off a restored VDI: it belongs to the user. `false` where it carries none.
///
/// # Errors
/// What the pool refuses.
pub async fn hand_over(pool: &Pool, uuid: &str) -> Result<bool> {
    let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(false) };
    let record = present(pool.client.get_record::<Vdi>(&vdi).await);
    let Some(record) = record.context(|| format!("look at VDI {uuid}"))? else { return Ok(false) };
    match unmark(pool, &vdi).await {
        Err(error) if is_gone(&error) => return Ok(false),
        done => done.context(|| format!("hand over VDI {uuid}"))?,
    }
    Ok(record.other_config.contains_key(TAG_JOB))
}

/// Removes those of the VDIs that carry the job's mark and that nobody has any more. A disk that was being restored
/// and is attached to somebody's VM is theirs from now on: it only loses the mark.
///
/// # Errors
/// Where the pool cannot be asked.
pub async fn remove_marked_vdis(pool: &Pool, job: &str, vdis: &BTreeMap<Ref<Vdi>, Vdi>) -> Result<Removed> {
    let mut removed = Removed::default();
    let mut unused = Vec::new();
    for vdi in vdis.values().filter(|vdi| is_jobs_vdi(&pool.owner, job, vdi)) {
        let uuid = vdi.uuid.to_string();
        let users = users_of(pool, vdi).await?;
        match users.first() {
            Some(user) if vdi.other_config.contains_key(TAG_RESTORED) => {
                let object = format!("mark on disk {uuid}, which VM '{}' has now", user.name_label);
                removed.note(object, hand_over(pool, &uuid).await);
            }
            Some(_) => removed.note(format!("disk {uuid}"), refuse_used(pool, vdi).await.map(|()| false)),
            // A VM of ours that could not be removed still has it, and is what is reported.
            None if !vdi.vbds.is_empty() => {}
            None => unused.push(uuid),
        }
    }
    remove_vdis(pool, &unused, "disk", &mut removed).await;
    Ok(removed)
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
}
