//! Kept delegates: where a pool is configured so, a delegate that did its work is kept, halted, for a later job.
//!
//! What is kept is a clone with its boot disk and its network adapters. It does not run: a running HVM guest can be given
//! no read-only disk, so it would have to be restarted anyway. So it takes no memory, and nothing of ours runs in a
//! pool whose orchestrator is gone. It holds no key, no order and no disk of a job; the next one boots it anew.
//!
//! Each has a journal of its own from before it is made, so that it is owned at every moment: by the process that holds
//! the journal's lock; by nobody, until its time is over, where the last entry says that it is idle; and it is a
//! leftover of a dead process otherwise.
//!
//! Promises: a delegate is kept only if it is what was cloned. All that a guest can write and that outlives it is its
//! boot disk, its NVRAM and its part of XenStore; the first two are compared with the template's, the third is emptied.

mod pristine;

use self::pristine::is_pristine;
use crate::cleanup::{self, Removed, delegate_name};
use crate::config::PoolConfig;
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{self, DeadJournal, Entry, Idle, Journal};
use crate::ownership::{Mark, mark_of};
use crate::pool::{Pool, TAG_IDLE, TAG_RETIRED};
use crate::reconcile::belongs_to;
use crate::removal::present;
use crate::retry::{is_gone, until_free_raw};
use crate::template::{self, Template};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xapi::{Host, Network, PowerState, Ref, StringMap, Vbd, Vif, Vm};

/// What the journal of a kept delegate says instead of the VM that a job is for.
const SUBJECT: &str = "kept delegate";
/// One job of a process after the other looks at what is idle: while one looks, the others would see nothing, and no
/// more are kept than may be.
static LOOKING: Mutex<()> = Mutex::new(());

/// How many delegates a pool keeps, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Most that are kept of those that ran on one host.
    pub per_host: u32,
    /// How long each is kept after its job.
    pub time: Duration,
}

/// What a pool is configured for; none where delegates are thrown away, as is the default.
pub fn rule(config: &PoolConfig) -> Option<Rule> {
    (config.keep_idle > 0)
        .then(|| Rule { per_host: config.keep_idle, time: Duration::from_secs(config.keep_idle_for_s) })
}

/// A delegate that this process holds with the journal that owns it.
#[derive(Debug)]
pub struct Holding {
    /// The journal's uuid, which is in the delegate's name and tags.
    pub id: String,
    journal: Journal,
    entries: Vec<Entry>,
}

/// A kept delegate that a job takes.
#[derive(Debug)]
pub struct Taken {
    /// The journal.
    pub holding: Holding,
    /// Its VM.
    pub vm: Ref<Vm>,
    /// Its VM's record as it was found.
    pub record: Vm,
    /// Uuids of its own disks.
    pub own_vdis: Vec<String>,
}

/// What a job wants of a delegate.
#[derive(Clone, Copy, Debug)]
pub struct Want<'a> {
    /// Uuid of the job.
    pub job: &'a str,
    /// The template that it would clone.
    pub template: &'a Template,
    /// The networks that its cards are to be on, that of card 0 first.
    pub networks: &'a [Ref<Network>],
    /// Where it will run.
    pub host: Option<&'a Ref<Host>>,
}

/// What a delegate that may be kept was made of.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The template that it was cloned from.
    pub template: &'a Template,
    /// The networks that it got cards on, that of card 0 first.
    pub networks: &'a [Ref<Network>],
    /// Where it ran.
    pub host: Option<&'a Ref<Host>>,
}

impl Holding {
    /// Starts the journal of a delegate that is about to be made.
    ///
    /// # Errors
    /// [`Kind::Failed`] where it cannot be written: then nothing may be made.
    pub fn start(pool: &Pool, journals: &Path) -> Result<Self> {
        let id = uuid::Uuid::new_v4().to_string();
        let first = Entry::Started {
            job: id.clone(),
            pool: pool.config.name.clone(),
            pool_uuid: pool.config.uuid.clone(),
            subject: SUBJECT.into(),
        };
        let journal = Journal::start(journals, &id, &first)?;
        Ok(Self { id, journal, entries: vec![first] })
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// As [`Journal::write`].
    pub fn record(&mut self, entry: Entry) -> Result<()> {
        self.journal.write(&entry)?;
        self.entries.push(entry);
        Ok(())
    }
}

/// Whether a journal is that of a delegate by itself. Its VM holds the disks of the job that it worked for.
pub fn is_of_delegate(journal: &DeadJournal) -> bool {
    matches!(journal.entries.first(), Some(Entry::Started { subject, .. }) if subject == SUBJECT)
}

/// Takes a kept delegate, one from the same host first. What turns out not to be as it was left is removed.
///
/// # Errors
/// Where journals cannot be read or the pool cannot be asked.
pub async fn take(pool: &Pool, journals: &Path, want: Want<'_>) -> Result<Option<Taken>> {
    let Some(rule) = rule(&pool.config) else { return Ok(None) };
    // Each turn takes one out of those that are idle, so it ends.
    while let Some(journal) = pick(pool, journals, want, rule)? {
        let (id, entries) = (journal.job.clone(), journal.entries.clone());
        let Some(journal) = journal.resume()? else { continue };
        let mut holding = Holding { id, journal, entries };
        // From here on it is a leftover if this process dies.
        holding.record(Entry::Taken { job: want.job.to_owned() })?;
        if let Some((vm, record, own_vdis)) = sound(pool, &holding, want.networks).await? {
            let removed = pool.client.remove_from_other_config(&vm, TAG_IDLE).await;
            removed.context(|| "take the kept delegate".into())?;
            return Ok(Some(Taken { holding, vm, record, own_vdis }));
        }
        tracing::info!(delegate = %holding.id, "a kept delegate is not as it was left: it is removed");
        for leftover in discard(pool, holding, false).await.leftovers {
            tracing::warn!("not removed, run `abd reconcile`: {leftover}");
        }
    }
    Ok(None)
}

/// The journal of a kept delegate that fits, one from the same host first. All others are let go of at once: other jobs
/// look for theirs.
fn pick(pool: &Pool, journals: &Path, want: Want<'_>, rule: Rule) -> Result<Option<DeadJournal>> {
    let _one = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    let host = want.host.map(Ref::as_str);
    let fits = |journal: &DeadJournal| {
        let idle = journal.idle();
        idle.is_some_and(|idle| idle.template == want.template.uuid && in_time(idle, rule, now_s()))
    };
    let fitting = idle_of(pool, journals)?.into_iter().filter(fits);
    Ok(fitting.min_by_key(|journal| journal.idle().map(|idle| idle.host.as_str()) != host))
}

/// The delegate of a journal, if it is halted, ours, and has its own disks and cards on these networks, and nothing else.
async fn sound(
    pool: &Pool,
    holding: &Holding,
    networks: &[Ref<Network>],
) -> Result<Option<(Ref<Vm>, Vm, Vec<String>)>> {
    let looking = || "look at a kept delegate".to_owned();
    let made = holding.entries.iter().rev().find_map(|entry| match entry {
        Entry::Delegate { uuid, vdis } => Some((uuid, vdis)),
        _ => None,
    });
    let Some((uuid, own)) = made else { return Ok(None) };
    let uuid = crate::removal::parsed(uuid)?;
    let Some(vm) = present(pool.client.get_by_uuid::<Vm>(&uuid).await).context(looking)? else {
        return Ok(None);
    };
    let Some(record) = present(pool.client.get_record::<Vm>(&vm).await).context(looking)? else {
        return Ok(None);
    };
    let is_ours =
        mark_of(&pool.owner, &record.uuid, &record.other_config) == Mark::Ours { job: Some(&holding.id) };
    let at_rest = record.power_state == PowerState::Halted && record.suspend_vdi.is_null();
    if !is_ours || !at_rest || record.is_a_template || record.name_label != delegate_name(&holding.id) {
        return Ok(None);
    }
    let mut disks = cleanup::disks_of(pool, &record, |_| true).await?;
    let mut own = own.clone();
    disks.sort();
    own.sort();
    if disks != own || record.vbds.len() != own.len() || record.vifs.len() != networks.len() {
        return Ok(None);
    }
    for reference in &record.vifs {
        let vif = present(pool.client.get_record::<Vif>(reference).await).context(looking)?;
        // No two have one position, so as many as networks, each in its place, are all of them.
        let place = vif.as_ref().and_then(|vif| vif.device.parse::<usize>().ok());
        if vif.is_none()
            || place.and_then(|place| networks.get(place)) != vif.as_ref().map(|vif| &vif.network)
        {
            return Ok(None);
        }
    }
    Ok(Some((vm, record, own)))
}

/// Keeps a delegate that has halted after its work: takes everything of its job off it, proves that it is what was
/// cloned, and leaves it in the journal as idle.
///
/// # Errors
/// Why it is not kept; it is to be removed then.
pub async fn park(
    pool: &Pool,
    journals: &Path,
    holding: &mut Holding,
    vm: &Ref<Vm>,
    origin: Origin<'_>,
) -> Result<()> {
    let Origin { template, networks, host } = origin;
    let Some(rule) = rule(&pool.config) else { return Err(not_kept("the pool keeps none")) };
    let client = &pool.client;
    let looking = || "look at the delegate".to_owned();
    let record = client.get_record::<Vm>(vm).await.context(looking)?;
    if record.power_state != PowerState::Halted {
        return Err(not_kept("it has not powered itself off"));
    }
    let cloned = present(client.get_record::<Vm>(&template.reference).await).context(looking)?;
    let Some(cloned) = cloned.filter(|vm| !vm.other_config.contains_key(TAG_RETIRED)) else {
        return Err(not_kept("its template was replaced"));
    };
    if record.nvram != cloned.nvram {
        return Err(not_kept("its NVRAM is not what the template's is"));
    }
    client.vm_set_xenstore_data(vm, &StringMap::new()).await.context(|| "empty its XenStore".into())?;
    detach(pool, holding, &record).await?;
    let Some((_, _, own)) = sound(pool, holding, networks).await? else {
        return Err(not_kept("somebody changed it"));
    };
    for disk in &own {
        if !is_pristine(pool, disk, &template.digest).await? {
            return Err(not_kept("its boot disk is not what the template's is"));
        }
    }
    let until_s = now_s().saturating_add(rule.time.as_secs());
    let about =
        "Backup delegate that waits, halted, for a later job. `abd reconcile` removes it after its time.";
    client.set_name_description(vm, about).await.context(|| "describe it".into())?;
    client.add_to_other_config(vm, TAG_IDLE, &text_of(until_s)).await.context(|| "mark it".into())?;
    let host = host.map(|host| host.as_str().to_owned()).unwrap_or_default();
    let _one = LOOKING.lock().unwrap_or_else(PoisonError::into_inner);
    let there = idle_of(pool, journals)?;
    let there = there.iter().filter(|journal| journal.idle().is_some_and(|idle| idle.host == host)).count();
    if there >= usize::try_from(rule.per_host).unwrap_or(usize::MAX) {
        return Err(not_kept("enough are kept already"));
    }
    holding.record(Entry::Idle(Idle { until_s, host, template: template.uuid.clone() }))
}

fn not_kept(why: &str) -> Error {
    Error::new(Kind::Failed, format!("the delegate is not kept: {why}"))
}

/// Takes off all drives that are not the delegate's own.
async fn detach(pool: &Pool, holding: &Holding, record: &Vm) -> Result<()> {
    let own: BTreeSet<&String> = holding
        .entries
        .iter()
        .filter_map(|entry| match entry {
            Entry::Delegate { vdis, .. } => Some(vdis),
            _ => None,
        })
        .flatten()
        .collect();
    for reference in &record.vbds {
        let looked = present(pool.client.get_record::<Vbd>(reference).await);
        let Some(vbd) = looked.context(|| "look at its drives".into())? else { continue };
        let vdi = match vbd.vdi.is_null() {
            true => None,
            false => present(pool.client.get_record::<xapi::Vdi>(&vbd.vdi).await)
                .context(|| "look at its disks".into())?,
        };
        if vdi.is_some_and(|vdi| own.contains(&vdi.uuid.to_string())) {
            continue;
        }
        match until_free_raw(|| "detach".into(), async || pool.client.vbd_destroy(reference).await).await {
            Err(error) if !is_gone(&error) => {
                return Err(error).context(|| format!("take off the drive at {}", vbd.userdevice));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes a delegate with its journal. `is_open`: whether nobody knows what came of the last call; then its journal
/// stays for what may still appear.
pub async fn discard(pool: &Pool, holding: Holding, is_open: bool) -> Removed {
    let Holding { id, journal, entries } = holding;
    let mut removed = match cleanup::remove_job(pool, &id, &entries).await {
        Ok(removed) => removed,
        Err(error) => {
            Removed { leftovers: vec![format!("delegate {id}: {}", error.chain())], ..Removed::default() }
        }
    };
    if is_open && cleanup::is_unsettled(&entries, &removed) {
        removed.leftovers.push("the delegate that was being made may still appear".into());
    }
    if removed.leftovers.is_empty()
        && let Err(error) = journal.finish()
    {
        tracing::warn!("{}", error.chain());
    }
    removed
}

/// Removes the kept delegates whose time is over, whose template is not used any more, or that the pool is not
/// configured to keep; `all` of them where that is asked for. Gives how many stay.
///
/// # Errors
/// Where journals cannot be read or the pool cannot be asked.
pub async fn trim(pool: &Pool, journals: &Path, all: bool, removed: &mut Removed) -> Result<usize> {
    let idle = idle_of(pool, journals)?;
    if idle.is_empty() {
        return Ok(0);
    }
    let rule = rule(&pool.config).filter(|_| !all);
    let templates: BTreeSet<String> = match (rule, template::usable(pool).await) {
        (None, _) => BTreeSet::new(),
        (_, Ok(usable)) => usable.into_iter().map(|at| at.template.uuid).collect(),
        (_, Err(error)) if error.kind() == Kind::Template => BTreeSet::new(),
        (_, Err(error)) => return Err(error),
    };
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let names: BTreeSet<&str> = vms.values().map(|vm| vm.name_label.as_str()).collect();
    let mut stay: BTreeMap<String, u32> = BTreeMap::new();
    for journal in by_time_left(idle) {
        let count = journal.idle().map(|idle| stay.entry(idle.host.clone()).or_default());
        let stays = match (rule, journal.idle(), count) {
            (Some(rule), Some(idle), Some(count)) => {
                let wanted = templates.contains(&idle.template) && in_time(idle, rule, now_s());
                let stays =
                    wanted && *count < rule.per_host && names.contains(delegate_name(&journal.job).as_str());
                *count += u32::from(stays);
                stays
            }
            _ => false,
        };
        if stays {
            continue;
        }
        let (id, entries) = (journal.job.clone(), journal.entries.clone());
        if let Some(journal) = journal.resume()? {
            removed.note_all(discard(pool, Holding { id, journal, entries }, false).await);
        }
    }
    Ok(usize::try_from(stay.values().sum::<u32>()).unwrap_or(usize::MAX))
}

/// Those with most of their time left first.
fn by_time_left(mut idle: Vec<DeadJournal>) -> Vec<DeadJournal> {
    idle.sort_by_key(|journal| std::cmp::Reverse(journal.idle().map(|idle| idle.until_s)));
    idle
}

fn idle_of(pool: &Pool, journals: &Path) -> Result<Vec<DeadJournal>> {
    let mut idle = journal::scan(journals)?.idle;
    idle.retain(|journal| belongs_to(journal, &pool.config.uuid));
    Ok(idle)
}

/// Whether its time runs. One that ends later than any could that begins now is of a clock that was wrong, or of a
/// longer time that was configured before.
fn in_time(idle: &Idle, rule: Rule, now_s: u64) -> bool {
    now_s < idle.until_s && idle.until_s <= now_s.saturating_add(rule.time.as_secs())
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

fn text_of(until_s: u64) -> String {
    let timestamp =
        i64::try_from(until_s).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    timestamp.map_or_else(|| until_s.to_string(), |at| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_runs_out_and_no_clock_makes_it_longer() {
        let rule = Rule { per_host: 1, time: Duration::from_secs(100) };
        let idle = |until_s| Idle { until_s, host: String::new(), template: String::new() };
        assert!(in_time(&idle(1100), rule, 1000));
        assert!(in_time(&idle(1001), rule, 1000));
        assert!(!in_time(&idle(1000), rule, 1000));
        assert!(!in_time(&idle(1101), rule, 1000), "the clock was set back, or the time was made shorter");
        assert_eq!(text_of(0), "1970-01-01T00:00:00Z");
    }
}
