//! Removing what a job made in a pool. Used at the end of a job and by `abd reconcile`; every step may find
//! its work done, so it can be repeated at will.
//!
//! Whose an object is, is decided in [`crate::ownership`]. Disks that somebody else's VM uses are left alone even
//! where they are ours. What the pool makes us wait for is waited for (see [`crate::retry`]); what resists is
//! reported with what to do about it.

use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::ownership::{
    Mark, is_jobs_vdi, is_jobs_vm, is_marked, mark, mark_of, unmark, was_made_a_template,
};
use crate::pool::{Pool, TAG_DELEGATE, TAG_JOB, TAG_RESTORED};
use crate::references;
use crate::retry::{Patience, is_gone};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use xapi::{Host, HostMetrics, PowerState, Ref, Uuid, Vbd, VbdType, Vdi, Vm};

pub use crate::ownership::{delegate_name, snapshot_name, tags};

/// How long a VM may take to halt after a hard shutdown.
const HALT_LIMIT: Duration = Duration::from_secs(120);

/// How often a VM is halted before it is destroyed: something that starts it again and again is not ours to fight.
const MAX_HALTS: u32 = 3;

/// What removing brought about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// What was removed, for people.
    pub objects: Vec<String>,
    /// What could not be removed, and why.
    pub leftovers: Vec<String>,
}

impl Removed {
    /// Notes how the removal of one object ended; `false` for one that was gone already.
    pub fn note(&mut self, object: String, result: Result<bool>) {
        match result {
            Ok(true) => self.objects.push(object),
            Ok(false) => {}
            Err(error) => {
                let remedy = error.remedy_text().map(|remedy| format!("; {remedy}")).unwrap_or_default();
                self.leftovers.push(format!("{object}: {}{remedy}", error.chain()));
            }
        }
    }

    fn note_all(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.leftovers.extend(other.leftovers);
    }
}

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

/// Halts and destroys a VM record; its VDIs stay. `false` where it is gone already.
///
/// Goes by the VM's state, which is looked at before every step: it may halt, or be removed, by itself. Where its
/// host has been away for long and the pool has declared it dead, the VM is declared halted as well: the pool cannot
/// halt it, and a delegate powers itself off when it hears of nobody.
///
/// # Errors
/// What the pool refuses to the last try.
pub async fn destroy_vm(pool: &Pool, vm: &Ref<Vm>) -> Result<bool> {
    let client = &pool.client;
    let (mut patience, mut away) = (Patience::new(pool.waits.detach), Patience::new(pool.waits.host_away));
    let (mut existed, mut halts) = (false, 0);
    loop {
        let looked = present(client.get_record::<Vm>(vm).await).context(|| "look at the VM".into())?;
        let Some(record) = looked else { return Ok(existed) };
        existed = true;
        // The snapshot of a VM with its memory is suspended, and can go as it is.
        let at_rest = record.power_state == PowerState::Halted
            || (record.is_a_snapshot && record.power_state == PowerState::Suspended);
        if !at_rest && halts == MAX_HALTS {
            return Err(Error::new(Kind::Leftovers, format!("it was halted {halts} times and runs again"))
                .remedy("see in XenCenter what starts it, then run `abd reconcile`"));
        }
        let step = if at_rest { client.vm_destroy(vm).await } else { halt(pool, vm).await };
        let Err(error) = step else {
            halts += 1;
            continue;
        };
        let what = if at_rest { "destroy" } else { "power off" };
        let goes_on = match error.kind() {
            // The next look says what became of it.
            xapi::Kind::HandleInvalid => patience.pause().await,
            _ if error.code() == "VM_BAD_POWER_STATE" => patience.pause().await,
            xapi::Kind::HostAway if !at_rest => {
                away.waits_out(what, &error).await || declare_halted(pool, vm, &record).await?
            }
            _ => patience.waits_out(what, &error).await,
        };
        if !goes_on {
            return Err(error).context(|| what.into());
        }
    }
}

/// Ends a VM at once and waits until it is halted.
async fn halt(pool: &Pool, vm: &Ref<Vm>) -> Result<(), xapi::Error> {
    pool.client.vm_hard_shutdown(vm).await?;
    pool.client.wait_vm(vm, |vm| vm.power_state == PowerState::Halted, HALT_LIMIT).await.map(drop)
}

/// Declares a VM halted whose host is dead. Only one that carries our mark, and only where the pool agrees that the
/// host is dead: XAPI refuses the call for a host that lives.
async fn declare_halted(pool: &Pool, vm: &Ref<Vm>, record: &Vm) -> Result<bool> {
    let looking = || "look at the VM's host".to_owned();
    let host = present(pool.client.get_record::<Host>(&record.resident_on).await).context(looking)?;
    let name = host.as_ref().map_or("of the VM", |host| host.name_label.as_str());
    let live = match &host {
        Some(host) => {
            let metrics =
                present(pool.client.get_record::<HostMetrics>(&host.metrics).await).context(looking)?;
            metrics.is_none_or(|metrics| metrics.live)
        }
        None => false,
    };
    let stays = |why: String| {
        Err(Error::new(Kind::Leftovers, why)
            .remedy("when the host is back, or the pool has declared it dead, run `abd reconcile`"))
    };
    if live {
        return stays(format!("host {name} does not answer its pool"));
    }
    if !matches!(mark_of(&pool.owner, &record.uuid, &record.other_config), Mark::Ours { .. }) {
        return stays(format!("host {name} is down"));
    }
    tracing::warn!(vm = %record.uuid, host = name, "the host is dead: the VM is declared halted");
    match pool.client.vm_power_state_reset(vm).await {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(true),
        Err(error) => stays(format!("host {name} is down, and the pool does not give the VM up: {error}")),
    }
}

/// Destroys VDIs by uuid, noting each, and gives those that stay. All are tried in turns until the last has given in or the time for it is over: what
/// keeps one of them usually keeps the others.
pub async fn remove_vdis(
    pool: &Pool,
    uuids: &[String],
    what: &str,
    removed: &mut Removed,
) -> BTreeSet<String> {
    let mut stay = BTreeSet::new();
    let mut patience = Patience::new(pool.waits.detach);
    let mut open: Vec<(&String, bool)> = uuids.iter().map(|uuid| (uuid, false)).collect();
    while !open.is_empty() {
        let mut refused = Vec::new();
        for (uuid, tried) in std::mem::take(&mut open) {
            match try_destroy_vdi(pool, uuid).await {
                // The call before may have had its effect although it failed.
                Attempt::Ended(Ok(done)) => removed.note(format!("{what} {uuid}"), Ok(done || tried)),
                Attempt::Ended(error) => {
                    stay.insert(uuid.clone());
                    removed.note(format!("{what} {uuid}"), error);
                }
                Attempt::Again(error) => refused.push((uuid, error)),
            }
        }
        if refused.is_empty() {
            break;
        }
        if !patience.pause().await {
            for (uuid, error) in refused {
                stay.insert(uuid.clone());
                removed.note(format!("{what} {uuid}"), Err(error));
            }
            break;
        }
        open = refused.into_iter().map(|(uuid, _)| (uuid, true)).collect();
    }
    stay
}

/// Destroys a VDI; `false` where it is gone already.
///
/// # Errors
/// What the pool refuses to the last try.
pub async fn destroy_vdi(pool: &Pool, uuid: &str) -> Result<bool> {
    let mut patience = Patience::new(pool.waits.detach);
    let mut tried = false;
    loop {
        match try_destroy_vdi(pool, uuid).await {
            Attempt::Ended(outcome) => return outcome.map(|done| done || tried),
            Attempt::Again(error) => {
                if !patience.pause().await {
                    return Err(error);
                }
                tried = true;
            }
        }
    }
}

/// How one attempt to destroy a VDI ended.
enum Attempt {
    Ended(Result<bool>),
    /// Refused for a reason that passes by itself.
    Again(Error),
}

async fn try_destroy_vdi(pool: &Pool, uuid: &str) -> Attempt {
    let refused = |error: xapi::Error| {
        let passes = crate::retry::passing(&error).is_some() || is_gone(&error);
        if passes {
            tracing::debug!(vdi = uuid, "destroy: {error}");
        }
        let error = Err::<bool, _>(error).context(|| "destroy".into());
        match error {
            Err(error) if passes => Attempt::Again(error),
            other => Attempt::Ended(other),
        }
    };
    let looked = async {
        let Some(vdi) = find_vdi(pool, uuid).await? else { return Ok(None) };
        let record = present(pool.client.get_record::<Vdi>(&vdi).await);
        let Some(record) = record.context(|| "look at it".into())? else { return Ok(None) };
        refuse_used(pool, &record).await?;
        Ok(Some(vdi))
    };
    match looked.await {
        Err(error) => Attempt::Ended(Err(error)),
        Ok(None) => Attempt::Ended(Ok(false)),
        Ok(Some(vdi)) => match pool.client.vdi_destroy(&vdi).await {
            Ok(()) => Attempt::Ended(Ok(true)),
            Err(error) => refused(error),
        },
    }
}

/// An error if somebody else's VM has the VDI: destroying it would take it away from there, drive and all.
async fn refuse_used(pool: &Pool, vdi: &Vdi) -> Result<()> {
    match users_of(pool, vdi).await?.first() {
        None => Ok(()),
        Some(user) => Err(Error::new(
            Kind::Leftovers,
            format!("it is attached to VM '{}' ({}), which is not ours", user.name_label, user.uuid),
        )
        .remedy("detach it there and run `abd reconcile`")),
    }
}

/// VMs of others that have a VDI. Those of control domains come and go with exports; a snapshot's are no use of it.
async fn users_of(pool: &Pool, vdi: &Vdi) -> Result<Vec<Vm>> {
    let looking = || format!("look who uses VDI {}", vdi.uuid);
    let mut users = Vec::new();
    for vbd in &vdi.vbds {
        let Some(vbd) = present(pool.client.get_record::<Vbd>(vbd).await).context(looking)? else { continue };
        let Some(vm) = present(pool.client.get_record::<Vm>(&vbd.vm).await).context(looking)? else {
            continue;
        };
        let ours = matches!(mark_of(&pool.owner, &vm.uuid, &vm.other_config), Mark::Ours { .. });
        if !(ours || vm.is_control_domain || vm.is_a_snapshot) {
            users.push(vm);
        }
    }
    Ok(users)
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

/// A VDI by uuid; `None` where it is gone.
///
/// # Errors
/// Where the pool cannot be asked.
pub async fn find_vdi(pool: &Pool, uuid: &str) -> Result<Option<Ref<Vdi>>> {
    present(pool.client.get_by_uuid::<Vdi>(&parsed(uuid)?).await).context(|| format!("look for VDI {uuid}"))
}

fn parsed(uuid: &str) -> Result<Uuid> {
    uuid.parse().map_err(|_| Error::new(Kind::Usage, format!("'{uuid}' is not the uuid of a VDI")))
}

/// What was asked for, if it exists.
fn present<T>(found: Result<T, xapi::Error>) -> Result<Option<T>, xapi::Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
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

    #[test]
    fn a_leftover_says_what_to_do() {
        let mut removed = Removed::default();
        let error = Error::new(Kind::Leftovers, "it is in use").remedy("detach it");
        removed.note("disk d".into(), Err(error));
        removed.note("disk e".into(), Ok(false));
        removed.note("disk f".into(), Ok(true));
        assert_eq!(removed.leftovers, ["disk d: it is in use; detach it"]);
        assert_eq!(removed.objects, ["disk f"]);
    }
}
