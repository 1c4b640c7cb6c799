//! `abd reconcile`: works through the journals of jobs that are over and looks for tagged objects without one.
//!
//! Touches an object only if it carries this installation's tag, or if a journal of this installation announced
//! it and it is still what was announced. Safe to run at any time, any number of times.

use crate::cleanup::{self, Removed};
use crate::config::State;
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{self, DeadJournal, Entry};
use crate::pool::{Pool, TAG_JOB, TAG_OWNER};
use std::collections::BTreeSet;
use xapi::{Vdi, VdiType, Vm};

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

/// Cleans one pool.
///
/// # Errors
/// Where the journals cannot be read or the pool cannot be asked.
pub async fn run(state: &State, pool: &Pool) -> Result<Outcome> {
    let (live, dead) = journal::scan(&state.journal_directory())?;
    let mut outcome = Outcome { live, ..Outcome::default() };
    for journal in dead {
        if !belongs_to(&journal, pool) {
            continue;
        }
        let removed = cleanup::remove_job(pool, &journal.job, &journal.entries)
            .await
            .context(|| format!("job {}", journal.job))?;
        let clean = removed.leftovers.is_empty();
        outcome.jobs.push(journal.job.clone());
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
        if clean {
            journal.finish()?;
        }
    }
    remove_orphans(pool, &mut outcome).await?;
    Ok(outcome)
}

fn belongs_to(journal: &DeadJournal, pool: &Pool) -> bool {
    match journal.entries.first() {
        Some(Entry::Started { pool_uuid, .. }) => *pool_uuid == pool.config.uuid,
        // Killed while writing its first line: it made nothing.
        _ => true,
    }
}

/// Objects with this installation's tag and a job that has no journal: the journal was lost.
async fn remove_orphans(pool: &Pool, outcome: &mut Outcome) -> Result<()> {
    // Jobs with a journal were dealt with by it, also where something resisted.
    let known: BTreeSet<String> = outcome.live.iter().chain(&outcome.jobs).cloned().collect();
    let orphan = |other_config: &xapi::StringMap| {
        let ours = other_config.get(TAG_OWNER).is_some_and(|owner| *owner == pool.owner);
        other_config.get(TAG_JOB).filter(|job| ours && !known.contains(job.as_str())).cloned()
    };
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let jobs: BTreeSet<String> = vms.values().filter_map(|vm| orphan(&vm.other_config)).collect();
    for job in &jobs {
        // Without a journal nothing is announced: only what carries the tag goes.
        let removed = cleanup::remove_job(pool, job, &[]).await?;
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
    }
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let orphans: Vec<String> = vdis
        .values()
        .filter(|vdi| vdi.kind != VdiType::CbtMetadata && orphan(&vdi.other_config).is_some())
        .map(|vdi| vdi.uuid.to_string())
        .collect();
    cleanup::remove_vdis(pool, &orphans, "disk without a job", &mut outcome.removed).await;
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
