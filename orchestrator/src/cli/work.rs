//! The middle of a run: from job file and pools to the end of every VM's job.

use super::Session;
use super::jobs::{Identity, enter_pool, open_store};
use super::options::JobArgs;
use crate::attempt::{Subject, is_passing};
use crate::error::{Error, Kind, Result};
use crate::job::{Run, placement};
use crate::preflight::{self, Facts, Finding, Level};
use crate::queue::Needs;
use crate::report::Event;
use crate::schedule::{self, Again, Ends, Fate, Frame, Task, Try};
use crate::selection::{Candidate, Choice, Missing, Strictness, choose};
use crate::spec::RunSpec;
use crate::summary::VmSummary;
use jiff::Zoned;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;
use xapi::{Ref, Sr, Vm};

/// What is to be done.
pub(super) struct Work<'a> {
    pub spec: &'a RunSpec,
    pub strictness: Strictness,
    /// What the command line adds to every job.
    pub flags: &'a JobArgs,
    /// What this process does, for those that meet its locks.
    pub what: &'a str,
    pub store: &'a Path,
    /// Whether the store is made where its directory is missing or empty.
    pub create_store: bool,
    pub identity: Identity,
    /// The time by the local clock.
    pub now: &'a dyn Fn() -> Zoned,
    /// Turns true when the user stops the run.
    pub cancel: watch::Receiver<bool>,
}

/// What came of it.
#[derive(Default)]
pub(super) struct Worked {
    /// Names of the pools that were entered.
    pub pools: Vec<String>,
    pub vms: Vec<VmSummary>,
    pub warnings: Vec<String>,
    /// Whether something of earlier jobs is still in a pool; the warnings name it.
    pub has_old_leftovers: bool,
    /// What failed that is no job. Other pools' jobs ran all the same.
    pub failure: Option<Error>,
}

impl Worked {
    fn fail(&mut self, report: &crate::report::Report, error: Error) {
        if self.failure.is_none() {
            self.failure = Some(error);
        } else {
            let message = error.chain();
            report.event(&Event::Warning { job: None, message: message.clone() });
            self.warnings.push(message);
        }
    }
}

/// A pool with what was read from it.
struct Entered {
    run: Arc<Run>,
    facts: Facts,
}

/// A VM that could be backed up: its pool's place in the list, and its record there.
type Place<'a> = (usize, &'a Ref<Vm>, &'a Vm);

/// Does the work. Must run within a [`LocalSet`](tokio::task::LocalSet).
pub(super) async fn work(session: &Session, work: Work<'_>) -> Worked {
    let mut worked = Worked::default();
    let (stop, stopped) = watch::channel(false);
    let entered = match enter_pools(session, &work, &stopped, &mut worked).await {
        Ok(entered) => entered,
        Err(error) => {
            worked.fail(&session.report, error);
            return worked;
        }
    };
    let runs: Vec<_> = entered.iter().map(|one| one.run.clone()).collect();
    worked.pools = runs.iter().map(|run| run.pool.config.name.clone()).collect();
    match plan(session, &work, entered, &mut worked) {
        Ok(Planned { subjects, tasks, missing }) => {
            run_tasks(session, &work, &stop, subjects, &tasks, &mut worked).await;
            worked.vms.extend(missing);
        }
        Err(error) => worked.fail(&session.report, error),
    }
    for run in runs {
        run.pool.close().await;
    }
    worked
}

/// Opens the store and every pool. A pool that cannot be entered keeps no other one from its jobs.
async fn enter_pools(
    session: &Session,
    work: &Work<'_>,
    stopped: &watch::Receiver<bool>,
    worked: &mut Worked,
) -> Result<Vec<Entered>> {
    let names: Vec<Option<&str>> = match work.spec.pools.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    let configs = names.into_iter().map(|name| session.state.pool(name)).collect::<Result<Vec<_>>>()?;
    let store = open_store(session, work.store, work.create_store).await?;
    let mut entered = Vec::new();
    for config in configs {
        let name = config.name.clone();
        let run = match enter_pool(session, config, store.clone(), &work.identity, stopped.clone()).await {
            Ok((run, residue)) => {
                worked.has_old_leftovers |= residue.is_there;
                worked.warnings.extend(residue.warnings);
                Arc::new(run)
            }
            Err(error) => {
                worked.fail(&session.report, error);
                continue;
            }
        };
        match check_pool(session, &run, work).await {
            Ok((facts, warnings)) => {
                for finding in warnings {
                    let message = format!("pool '{name}': {}", finding.message);
                    session.report.event(&Event::Warning { job: None, message: message.clone() });
                    worked.warnings.push(message);
                }
                entered.push(Entered { run, facts });
            }
            Err(error) => {
                run.pool.close().await;
                worked.fail(&session.report, error);
            }
        }
    }
    if entered.is_empty()
        && let Some(error) = worked.failure.take()
    {
        return Err(error);
    }
    Ok(entered)
}

/// Looks at a pool as `abd doctor` does, and refuses where its jobs would fail.
async fn check_pool(session: &Session, run: &Run, work: &Work<'_>) -> Result<(Facts, Vec<Finding>)> {
    let mut facts = Facts::for_pool(&run.pool).await?;
    facts.live_jobs = crate::journal::scan(&session.state.journal_directory())?.owners();
    let mut findings = preflight::check_pool(&facts, &work.spec.options, SystemTime::now());
    if let Some(error) = preflight::refusal(&findings) {
        return Err(error);
    }
    findings.retain(|finding| finding.level == Level::Warning);
    Ok((facts, findings))
}

/// The jobs of a run, each as what it does and what it needs, and the rows of VMs that are named and not there.
struct Planned {
    subjects: Vec<Rc<Subject>>,
    tasks: Vec<Task>,
    missing: Vec<VmSummary>,
}

fn plan(session: &Session, work: &Work<'_>, entered: Vec<Entered>, worked: &mut Worked) -> Result<Planned> {
    let pools: Vec<_> = entered.iter().map(|one| (one.run.pool.config.name.as_str(), &one.facts)).collect();
    let (places, chosen) = select(&pools, work.spec, work.strictness, work.flags)?;
    for message in &chosen.warnings {
        session.report.event(&Event::Warning { job: None, message: message.clone() });
    }
    worked.warnings.extend(chosen.warnings.iter().cloned());
    let locks = session.state.lock_directory();
    let mut subjects = Vec::new();
    let mut tasks = Vec::new();
    for choice in chosen.choices {
        let (pool, vm, record) = places[choice.index];
        let Entered { run, facts } = &entered[pool];
        tasks.push(Task {
            needs: needs(facts, record, &choice),
            retries: choice.options.retries,
            retry_pause: choice.options.retry_pause,
        });
        subjects.push(Rc::new(Subject {
            run: run.clone(),
            vm: vm.clone(),
            record: record.clone(),
            options: choice.options,
            locks: locks.clone(),
            what: work.what.to_owned(),
        }));
    }
    let missing =
        chosen.missing.iter().map(|one| missing_row(session, one, &worked.pools, worked.failure.as_ref()));
    Ok(Planned { subjects, tasks, missing: missing.collect() })
}

/// The row of a VM that is named and not there. Where a pool could not be entered it may be in that one, and what kept
/// us out is why there is no restore point.
fn missing_row(session: &Session, one: &Missing, pools: &[String], failure: Option<&Error>) -> VmSummary {
    let error = match failure {
        None => Error::new(Kind::NotFound, one.message.clone())
            .remedy("correct the job file, or take it out; `xe vm-list` or XenCenter shows the names"),
        Some(failure) => {
            Error::new(failure.kind(), format!("{} in the pools that could be entered", one.message))
        }
    };
    session.report.event(&Event::JobFailed {
        job: String::new(),
        subject: one.name.clone(),
        code: None,
        error: error.chain(),
        remedy: error.remedy_text().map(str::to_owned),
        leftovers: Vec::new(),
    });
    VmSummary {
        vm: one.name.clone(),
        uuid: if one.is_uuid { one.name.clone() } else { String::new() },
        pool: if pools.len() == 1 && failure.is_none() { pools[0].clone() } else { String::new() },
        ..VmSummary::failed(&error)
    }
}

/// Chooses among the VMs of all pools.
pub(super) fn select<'a>(
    pools: &[(&'a str, &'a Facts)],
    spec: &RunSpec,
    strictness: Strictness,
    flags: &JobArgs,
) -> Result<(Vec<Place<'a>>, crate::selection::Chosen)> {
    let mut places = Vec::new();
    let mut candidates = Vec::new();
    for (index, (name, facts)) in pools.iter().enumerate() {
        for (reference, record) in facts.candidates() {
            if let Some(candidate) = Candidate::of(name, record) {
                places.push((index, reference, record));
                candidates.push(candidate);
            }
        }
    }
    let chosen = choose(spec, &candidates, strictness, &|options| flags.apply(options))?;
    Ok((places, chosen))
}

/// What a job takes while it runs.
fn needs(facts: &Facts, vm: &Vm, choice: &Choice) -> Needs {
    let disks = facts.disks(vm).into_iter().filter(|disk| !preflight::is_excluded(disk, &choice.options));
    let storage: Vec<Ref<Sr>> = disks.map(|disk| disk.vdi.sr.clone()).collect();
    // Where no host sees all of it, the job has delegates on several, one after the other, and no host's limit counts.
    let suitable =
        facts.site(|reference, _| facts.is_usable(reference)).candidates(&storage, facts.templates());
    let mut hosts = placement::preference(None, Some(vm));
    hosts.retain(|host| suitable.contains(host));
    hosts.extend(suitable);
    let mut seen = BTreeSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    Needs {
        pool: facts.pool.uuid.to_string(),
        storage: storage.iter().map(ToString::to_string).collect(),
        hosts: hosts.iter().map(ToString::to_string).collect(),
        memory: choice.options.delegate.memory,
        fixed_address: facts.fixed_addresses,
    }
}

async fn run_tasks(
    session: &Session,
    work: &Work<'_>,
    stop: &watch::Sender<bool>,
    subjects: Vec<Rc<Subject>>,
    tasks: &[Task],
    worked: &mut Worked,
) {
    // What any try left in the pool is still there after a later one did better.
    let left: Rc<RefCell<BTreeMap<usize, BTreeSet<String>>>> = Rc::default();
    let frame = Frame {
        limits: work.spec.run.limits,
        window: work.spec.run.window.as_ref(),
        window_end: work.spec.run.window_end,
        now: work.now,
        cancel: work.cancel.clone(),
        stop,
    };
    let start = |one: Try| {
        let (subject, left) = (subjects[one.task].clone(), left.clone());
        async move {
            let host = one.host.map(Ref::from_opaque);
            let summary = subject.attempt(host.as_ref()).await;
            if !summary.leftovers.is_empty() {
                left.borrow_mut().entry(one.task).or_default().extend(summary.leftovers.iter().cloned());
            }
            summary
        }
    };
    let again = |again: Again| {
        let Again { task, number, pause } = again;
        let name = &subjects[task].record.name_label;
        let message = format!("{name} is tried again in {} s (try {number})", pause.as_secs());
        session.report.event(&Event::Note { message });
    };
    let Ends { fates, stopped_by_window } = schedule::run(frame, tasks, start, is_passing, again).await;
    let mut left = left.borrow_mut();
    for (index, (fate, subject)) in fates.into_iter().zip(&subjects).enumerate() {
        let mut summary = summed(fate, subject, stopped_by_window);
        summary.leftovers = left.remove(&index).unwrap_or_default().into_iter().collect();
        worked.vms.push(summary);
    }
}

/// The row of a VM, by its fate.
fn summed(fate: Fate<VmSummary>, subject: &Subject, stopped_by_window: bool) -> VmSummary {
    match fate {
        Fate::Ended { mut result, tries } => {
            if stopped_by_window && result.kind == Some(Kind::Cancelled) {
                let error = Error::new(Kind::Failed, "stopped: the backup window closed")
                    .remedy("make the window longer, or say window_end = \"finish\"");
                result = VmSummary { job: result.job, warnings: result.warnings, ..subject.failed(&error) };
            }
            result.tries = tries;
            result
        }
        Fate::Broken(message) => subject.failed(
            &Error::new(Kind::Failed, format!("the job broke off by a fault of abd itself: {message}"))
                .remedy("run `abd reconcile`; the log has more"),
        ),
        Fate::WindowClosed(opens) => subject.skipped(closed_until(&opens), None),
        Fate::Cancelled => subject.skipped("the run was stopped before it started", None),
        Fate::TooLarge => subject.failed(
            &Error::new(Kind::Usage, "its delegate's memory is more than delegate_memory_budget")
                .remedy("give the run a larger budget, or the delegate less memory"),
        ),
    }
}

/// That the window is closed, and until when.
pub(super) fn closed_until(opens: &Zoned) -> String {
    format!("the backup window is closed; it opens at {}", opens.strftime("%a %Y-%m-%d %H:%M"))
}
