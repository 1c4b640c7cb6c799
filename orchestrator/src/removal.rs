//! Removing one object from a pool: a VM, a disk.
//!
//! What the pool makes us wait for is waited for (see [`crate::retry`]); what resists is reported with what to do
//! about it. A call may have had its effect although it failed, so every attempt looks first.

use crate::error::{Context, Error, Kind, Result};
use crate::ownership::{Mark, mark_of};
use crate::pool::Pool;
use crate::retry::{Patience, is_gone};
use std::collections::BTreeSet;
use std::time::Duration;
use xapi::{Host, HostMetrics, PowerState, Ref, Uuid, Vbd, Vdi, Vm};

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

    pub(crate) fn note_all(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.leftovers.extend(other.leftovers);
    }
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
        // The snapshot of a VM with its memory is suspended; halting it removes the memory.
        let at_rest = record.power_state == PowerState::Halted;
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
pub(crate) async fn refuse_used(pool: &Pool, vdi: &Vdi) -> Result<()> {
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
pub(crate) async fn users_of(pool: &Pool, vdi: &Vdi) -> Result<Vec<Vm>> {
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

/// A VDI by uuid; `None` where it is gone.
///
/// # Errors
/// Where the pool cannot be asked.
pub async fn find_vdi(pool: &Pool, uuid: &str) -> Result<Option<Ref<Vdi>>> {
    present(pool.client.get_by_uuid::<Vdi>(&parsed(uuid)?).await).context(|| format!("look for VDI {uuid}"))
}

pub(crate) fn parsed(uuid: &str) -> Result<Uuid> {
    uuid.parse().map_err(|_| Error::new(Kind::Usage, format!("'{uuid}' is not the uuid of a VDI")))
}

/// What was asked for, if it exists.
pub(crate) fn present<T>(found: Result<T, xapi::Error>) -> Result<Option<T>, xapi::Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
