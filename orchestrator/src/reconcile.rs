//! `abd reconcile`: works through the journals of jobs that are over and looks for tagged objects without one.
//!
//! Touches an object only if it carries this installation's tag, or if a journal of this installation announced
//! it and it is still what was announced. Safe to run at any time, any number of times.

use crate::cleanup::{self, Removed};
use crate::config::State;
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{self, DeadJournal, Entry};
use crate::pool::{Pool, TAG_JOB, TAG_OWNER};
use crate::references;
use crate::retry::is_gone;
use std::collections::BTreeSet;
use std::time::Duration;
use xapi::{Vdi, Vm};

/// What a run of it did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Jobs that are running now; their objects were not touched.
    pub live: Vec<String>,
    /// Jobs whose journals were worked through.
    pub jobs: Vec<String>,
    /// What was removed and what resisted.
    pub removed: Removed,
}

/// A job whose last announced call may still be under way in the pool is looked at again until its journal is this
/// old: a snapshot of many disks on slow storage takes minutes, not hours.
const SETTLED_AFTER: Duration = Duration::from_secs(2 * 60 * 60);

/// Cleans one pool. One job that resists does not keep the others from being cleaned.
///
/// # Errors
/// Where the journals cannot be read or the pool cannot be asked.
pub async fn run(state: &State, pool: &Pool) -> Result<Outcome> {
    let (live, dead) = journal::scan(&state.journal_directory())?;
    let mut outcome = Outcome { live, ..Outcome::default() };
    for journal in dead {
        if !belongs_to(&journal, &pool.config.uuid) {
            continue;
        }
        outcome.jobs.push(journal.job.clone());
        let removed = match cleanup::remove_job(pool, &journal.job, &journal.entries).await {
            Ok(removed) => removed,
            Err(error) => {
                outcome.removed.leftovers.push(format!("job {}: {}", journal.job, error.chain()));
                continue;
            }
        };
        let clean = removed.leftovers.is_empty();
        let waits = removed.objects.is_empty()
            && cleanup::is_unsettled(&journal.entries)
            && journal.age().is_some_and(|age| age < SETTLED_AFTER);
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
        if clean && !waits {
            journal.finish()?;
        }
    }
    remove_orphans(state, pool, &mut outcome).await?;
    references::remove_stale(pool, &outcome.live, &mut outcome.removed).await?;
    Ok(outcome)
}

/// Whether a journal is of a job in the pool of this uuid.
pub fn belongs_to(journal: &DeadJournal, pool: &str) -> bool {
    match journal.entries.first() {
        Some(Entry::Started { pool_uuid, .. }) => pool_uuid == pool,
        // Killed while writing its first line: it made nothing.
        _ => true,
    }
}

/// Objects with this installation's tag and a job that has no journal: the journal was lost.
///
/// A job of another process may start or end meanwhile. Its journal is there before its first object, so an object
/// that is seen and has no journal afterwards belongs to no job that runs; and whether it still carries the tag is
/// asked again after that, because a job that ended in between has handed its disks over.
async fn remove_orphans(state: &State, pool: &Pool, outcome: &mut Outcome) -> Result<()> {
    // Jobs with a journal were dealt with by it, also where something resisted.
    let known: BTreeSet<String> = outcome.live.iter().chain(&outcome.jobs).cloned().collect();
    let orphan = |other_config: &xapi::StringMap| {
        let ours = other_config.get(TAG_OWNER).is_some_and(|owner| *owner == pool.owner);
        other_config.get(TAG_JOB).filter(|job| ours && !known.contains(job.as_str())).cloned()
    };
    let has_journal = |job: &String| journal::path(&state.journal_directory(), job).exists();
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let jobs: BTreeSet<String> = vms.values().filter_map(|vm| orphan(&vm.other_config)).collect();
    for job in jobs.iter().filter(|job| !has_journal(job)) {
        // Without a journal nothing is announced: only what carries the tag goes.
        let removed = cleanup::remove_job(pool, job, &[]).await?;
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
    }
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let seen = vdis.values().filter_map(|vdi| Some((orphan(&vdi.other_config)?, vdi.uuid.to_string())));
    for (job, uuid) in seen.filter(|(job, _)| !has_journal(job)) {
        let Some(reference) = cleanup::find_vdi(pool, &uuid).await? else { continue };
        let vdi = match pool.client.get_record::<Vdi>(&reference).await {
            Ok(vdi) => vdi,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error).context(|| format!("look at VDI {uuid}")),
        };
        if cleanup::is_made_by_jobs(&vdi) && cleanup::is_tagged(&vdi.other_config, &pool.owner, &job) {
            cleanup::remove_vdis(pool, &[uuid], "disk without a job", &mut outcome.removed).await;
        }
    }
    Ok(())
}

/// What is still in the pool, as an error for the exit code.
///
/// # Errors
/// [`Kind::Leftovers`] unless there is nothing.
pub fn check(outcome: &Outcome) -> Result<()> {
    match outcome.removed.leftovers.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(Error::new(
            Kind::Leftovers,
            format!("{} objects could not be removed, the first: {first}", outcome.removed.leftovers.len()),
        )
        .remedy("see what holds them in XenCenter, then run `abd reconcile` again")),
    }
}
