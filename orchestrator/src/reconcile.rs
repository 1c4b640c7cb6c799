//! `abd reconcile`: works through the journals of jobs that are over and looks for marked objects without one.
//!
//! Touches an object only if it carries this installation's mark, or if a journal of this installation announced
//! it and it is still what was announced. Safe to run at any time, any number of times, next to jobs that run.
//!
//! A killed process leaves more than objects: operations of its jobs may still be under way in the pool. Those are
//! ended or waited for before anything is looked at, so that nothing appears behind our back.

use crate::cleanup::{self, Removed};
use crate::config::State;
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{self, DeadJournal, Entry, Scan};
use crate::kept;
use crate::ownership::{self, Mark};
use crate::pool::{Pool, TAG_JOB, TAG_TASK};
use crate::references;
use crate::retry::{Patience, is_gone, until_free};
use crate::template;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use xapi::{Ref, Task, TaskStatus, Vdi, Vm};

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

/// How long the disks of a job are tried that died longer ago than a detach ever takes: what holds them now is not
/// about to let go, and every run of backups begins with this.
const LATE_DETACH: Duration = Duration::from_secs(20);

/// What the names of the pool's own operations begin with. Tasks with other names were made by a client for a transfer.
const OPERATION: &str = "Async.";

/// Cleans one pool. One job that resists does not keep the others from being cleaned.
///
/// # Errors
/// Where the journals cannot be read or the pool cannot be asked.
pub async fn run(state: &State, pool: &Pool) -> Result<Outcome> {
    let journals = state.journal_directory();
    let mut outcome = Outcome::default();
    kept::trim(pool, &journals, false, &mut outcome.removed).await?;
    // Kept delegates that stay are let go of at once: a job may want one.
    let Scan { live, dead, .. } = journal::scan(&journals)?;
    outcome.live = live;
    // Locked as long as they are held: nobody else works through them.
    let mut dead: Vec<DeadJournal> =
        dead.into_iter().filter(|journal| belongs_to(journal, &pool.config.uuid)).collect();
    // A delegate with a journal of its own holds the disks of a snapshot that is in its job's.
    dead.sort_by_key(|journal| !kept::is_of_delegate(journal));
    let ours: BTreeSet<&str> = dead.iter().map(|journal| journal.job.as_str()).collect();
    let busy = settle_tasks(pool, &journals, &ours).await?;
    for (job, operations) in &busy {
        let operations = operations.join(", ");
        outcome.removed.leftovers.push(format!("job {job}: still under way in the pool: {operations}"));
    }
    for journal in dead {
        outcome.jobs.push(journal.job.clone());
        let old = journal.age().is_none_or(|age| age > pool.waits.detach);
        let waiting = if old { &patient_no_more(pool) } else { pool };
        let removed = match cleanup::remove_job(waiting, &journal.job, &journal.entries).await {
            Ok(removed) => removed,
            Err(error) => {
                outcome.removed.leftovers.push(format!("job {}: {}", journal.job, error.chain()));
                continue;
            }
        };
        let clean = removed.leftovers.is_empty() && !busy.contains_key(&journal.job);
        let waits = cleanup::is_unsettled(&journal.entries, &removed)
            && journal.age().is_some_and(|age| age < SETTLED_AFTER);
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
        if clean && !waits {
            journal.finish()?;
        }
    }
    let pool = &patient_no_more(pool);
    remove_orphans(&journals, pool, &mut outcome).await?;
    references::remove_stale(pool, &journals, &mut outcome.removed).await?;
    template::sweep(pool, &mut outcome.removed).await?;
    Ok(outcome)
}

fn patient_no_more(pool: &Pool) -> Pool {
    let mut waits = pool.waits;
    waits.detach = waits.detach.min(LATE_DETACH);
    pool.with_waits(waits)
}

/// Ends or waits for the operations that jobs which are over left under way in the pool. Gives those that go on
/// nevertheless, by job.
///
/// A task is such a job's if it carries the job's tag and the job has a journal that could be locked, or none at
/// all: the journal of a job that runs is there before its first task.
async fn settle_tasks(
    pool: &Pool,
    journals: &Path,
    dead: &BTreeSet<&str>,
) -> Result<BTreeMap<String, Vec<String>>> {
    settle(pool, |job| dead.contains(job) || !journal::path(journals, job).exists()).await
}

/// Ends or waits for the operations that one job, which does nothing else any more, left under way in the pool: it did
/// not hear what became of a call. Gives those that go on nevertheless.
///
/// # Errors
/// Where the pool cannot be asked.
pub(crate) async fn settle_job(pool: &Pool, job: &str) -> Result<Vec<String>> {
    Ok(settle(pool, |found| found == job).await?.remove(job).unwrap_or_default())
}

async fn settle(pool: &Pool, is_over: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<String>>> {
    let mut patience = Patience::new(pool.waits.tasks);
    let mut cancelled = BTreeSet::new();
    loop {
        let tasks =
            until_free(|| "list tasks".into(), async || pool.client.get_all_records::<Task>().await).await?;
        let (running, transfers): (Vec<_>, Vec<_>) = tasks
            .iter()
            .filter(|(_, task)| matches!(task.status, TaskStatus::Pending | TaskStatus::Cancelling))
            .filter_map(|(reference, task)| Some((reference, task, job_of_task(&pool.owner, task)?)))
            .filter(|(_, _, job)| is_over(job))
            .partition(|(_, task, _)| task.name_label.starts_with(OPERATION));
        for (reference, task, job) in transfers {
            if cancelled.insert(reference.clone()) {
                end_transfer(pool, reference, task, job).await;
            }
        }
        for (reference, task, job) in &running {
            if !cancelled.insert((*reference).clone()) {
                continue;
            }
            tracing::info!(job = %job, task = %task.name_label, "an operation of a dead job is under way: it is ended");
            match pool.client.task_cancel(reference).await {
                Err(error) if !is_gone(&error) => tracing::debug!(job = %job, "{error}"),
                _ => {}
            }
        }
        if running.is_empty() || !patience.pause().await {
            let mut busy = BTreeMap::<String, Vec<String>>::new();
            for (_, task, job) in running {
                busy.entry(job.to_owned()).or_default().push(task.name_label.clone());
            }
            return Ok(busy);
        }
    }
}

/// Ends the task of a transfer whose client is dead. A handler that took it up has lost its connection and lets go of the
/// disk, which is waited for where it is removed; where none did, nobody else ends the task. What goes wrong here costs
/// a line in the pool's list of tasks.
async fn end_transfer(pool: &Pool, reference: &Ref<Task>, task: &Task, job: &str) {
    tracing::info!(job, task = %task.name_label, "the task of a transfer of a dead job is ended");
    let ended = async {
        pool.client.task_set_status(reference, &TaskStatus::Cancelled).await?;
        pool.client.task_destroy(reference).await
    };
    if let Err(error) = ended.await {
        tracing::debug!(job, "{error}");
    }
}

/// Whether a journal is of a job in the pool of this uuid.
pub fn belongs_to(journal: &DeadJournal, pool: &str) -> bool {
    match journal.entries.first() {
        Some(Entry::Started { pool_uuid, .. }) => pool_uuid == pool,
        // Killed while writing its first line: it made nothing.
        _ => true,
    }
}

/// The job of this installation that started a task.
fn job_of_task<'a>(owner: &str, task: &'a Task) -> Option<&'a str> {
    let (found, job) = task.other_config.get(TAG_TASK)?.split_once('/')?;
    // It is part of a file's name from here on.
    (found == owner && uuid::Uuid::parse_str(job).is_ok()).then_some(job)
}

/// Objects with this installation's mark and a job that has no journal: the journal was lost.
///
/// A job of another process may start or end meanwhile. Its journal is there before its first object, so an object
/// that is seen and has no journal afterwards belongs to no job that runs; and whether it still carries the mark is
/// asked again after that, because a job that ended in between has handed its disks over.
async fn remove_orphans(journals: &Path, pool: &Pool, outcome: &mut Outcome) -> Result<()> {
    // Jobs with a journal were dealt with by it, also where something resisted.
    let known: BTreeSet<String> = outcome.live.iter().chain(&outcome.jobs).cloned().collect();
    let lost = |job: &str| !known.contains(job) && !journal::path(journals, job).exists();
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let jobs: BTreeSet<&str> =
        vms.values().filter_map(|vm| job_of(pool, vm)).filter(|job| lost(job)).collect();
    for job in jobs {
        // Without a journal nothing is announced: only what carries the mark goes.
        let removed = cleanup::remove_job(pool, job, &[]).await?;
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
    }
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    let jobs: BTreeSet<String> = vdis
        .values()
        .filter_map(|vdi| {
            vdi.other_config.get(TAG_JOB).filter(|job| ownership::is_jobs_vdi(&pool.owner, job, vdi))
        })
        .filter(|job| lost(job))
        .cloned()
        .collect();
    if jobs.is_empty() {
        return Ok(());
    }
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list VDIs".into())?;
    for job in jobs {
        let removed = cleanup::remove_marked_vdis(&pool.for_job(&job), &job, &vdis).await?;
        outcome.removed.objects.extend(removed.objects);
        outcome.removed.leftovers.extend(removed.leftovers);
    }
    Ok(())
}

/// The job that a VM of ours was made for, from its mark or from its name.
fn job_of<'a>(pool: &Pool, vm: &'a Vm) -> Option<&'a str> {
    match ownership::mark_of(&pool.owner, &vm.uuid, &vm.other_config) {
        Mark::Ours { job } => job.or_else(|| ownership::job_of_name(vm)),
        _ => None,
    }
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
