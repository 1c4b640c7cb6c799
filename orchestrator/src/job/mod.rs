//! Jobs: one VM, one delegate, one journal. Backup and restore differ in what the delegate is ordered to do;
//! how it is made, watched and removed is the same.

pub mod backup;
pub(crate) mod changes;
mod commit;
mod delegate;
pub mod diagnose;
pub mod placement;
pub mod restore;
pub(crate) mod snapshot;
mod source;
mod watch;

use crate::cleanup::{self, Removed};
use crate::error::{Error, Kind, Result};
use crate::journal::{Entry, Journal};
use crate::kept;
use crate::networks::Card;
use crate::pool::Pool;
use crate::reconcile;
use crate::report::{DelegateSummary, DiskSummary, Event, JobSummary, Report};
use crate::spec::JobOptions;
use crate::template::{self, TemplateAt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use xapi::{Network, Ref};

/// What one delegate may have: more disks than an HVM guest shows reliably are refused before anything is made.
pub const MAX_DISKS: usize = 16;
/// First position for a job's disks: positions 0 to 3 are also emulated IDE disks on older hosts.
pub const FIRST_POSITION: u16 = 4;

/// How often a delegate reports, in milliseconds: often enough for a progress bar, and for both sides to
/// notice each other's death well within the watchdog's time.
const PROGRESS_MS: u16 = 1000;

/// Everything that the jobs of one run share.
pub struct Run {
    /// Uuid of the run.
    pub id: String,
    /// The pool.
    pub pool: Pool,
    /// The store.
    pub store: Arc<ads::Store>,
    /// Its service for delegates.
    pub service: ads::Service,
    /// Templates of our version, each with its storage: at least one.
    pub templates: Vec<TemplateAt>,
    /// The cards that delegates get.
    pub cards: Vec<Card>,
    /// URL at which delegates reach the service.
    pub url: String,
    /// Where journals stand.
    pub journals: PathBuf,
    /// Where events go.
    pub report: Arc<Report>,
    /// Turns true when the run is to stop.
    pub cancel: tokio::sync::watch::Receiver<bool>,
    /// Name of the job file that the run does; none where a person named the VMs.
    pub name: Option<String>,
    /// Bytes of a pack.
    pub pack_size: u32,
}

impl Run {
    /// The networks that delegates are on.
    pub fn networks(&self) -> Vec<Ref<Network>> {
        self.cards.iter().map(|card| card.network.clone()).collect()
    }
}

/// Packs that delegates make: two of them are in memory at once.
pub const DEFAULT_PACK_SIZE: u32 = 16 << 20;

/// How a job ended.
#[derive(Clone, Debug)]
pub struct JobResult {
    /// The job's uuid; empty where it did not start.
    pub job: String,
    /// The VM's name.
    pub subject: String,
    /// What its end means.
    pub end: End,
    /// What it did, where it did its work.
    pub summary: Option<JobSummary>,
    /// What happened, where it did not.
    pub error: Option<String>,
    /// What to do about that.
    pub remedy: Option<String>,
    /// A short code where the delegate gave one.
    pub code: Option<String>,
    /// Objects that could not be removed from the pool.
    pub leftovers: Vec<String>,
    /// Odd things on the way.
    pub warnings: Vec<String>,
}

/// What a job's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All is well.
    Done,
    /// The work is done; something is still in the pool.
    Leftovers,
    /// The work is done, and an audit puts earlier restore points in doubt.
    Alarm,
    /// The work is done, but for parts of a disk that could not be read.
    BadBlocks,
    /// It was left out, as configured: see the error for why. Nothing was touched.
    Skipped,
    /// It failed.
    Failed(Kind),
}

impl End {
    /// For the exit code; none where all is well.
    pub fn kind(self) -> Option<Kind> {
        match self {
            End::Done => None,
            End::Leftovers => Some(Kind::Leftovers),
            End::Alarm => Some(Kind::Alarm),
            End::BadBlocks => Some(Kind::BadBlocks),
            End::Skipped => Some(Kind::NothingDone),
            End::Failed(kind) => Some(kind),
        }
    }
}

impl JobResult {
    /// A job that could not even write its journal. Tells it as well.
    pub(crate) fn not_started(run: &Run, subject: &str, error: &Error) -> Self {
        run.report.event(&Event::JobFailed {
            job: String::new(),
            subject: subject.to_owned(),
            code: None,
            error: error.chain(),
            remedy: error.remedy_text().map(str::to_owned),
            leftovers: Vec::new(),
        });
        Self {
            job: String::new(),
            subject: subject.to_owned(),
            end: End::Failed(error.kind()),
            summary: None,
            error: Some(error.chain()),
            remedy: error.remedy_text().map(str::to_owned),
            code: None,
            leftovers: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

/// A failed job.
#[derive(Debug)]
pub struct Failure {
    /// What happened.
    pub error: Error,
    /// The code that the delegate gave.
    pub code: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, code: None }
    }
}

/// One job while it runs.
struct Job<'a> {
    run: &'a Run,
    /// The run's pool, with this job's tag on the tasks that it starts.
    pool: Pool,
    id: String,
    subject: String,
    options: &'a JobOptions,
    /// Of this job's random choices.
    seed: u64,
    journal: Journal,
    warnings: Mutex<Vec<String>>,
    /// What the job could not remove although its work is done.
    left: Mutex<Vec<String>>,
    /// The delegate that has a journal of its own, where the pool keeps delegates.
    holding: tokio::sync::Mutex<Option<kept::Holding>>,
    /// How far its last delegate came.
    trace: Mutex<watch::Trace>,
}

impl Job<'_> {
    /// The templates as they are now: the run may have begun hours ago, before an upgrade.
    async fn templates(&self) -> Result<Vec<TemplateAt>> {
        template::unchanged(&self.pool, &self.run.templates).await
    }

    fn trace(&self) -> std::sync::MutexGuard<'_, watch::Trace> {
        self.trace.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the job's delegates need of their hosts.
    fn demand(&self) -> placement::Demand {
        let delegate = &self.options.delegate;
        placement::Demand {
            networks: self.run.networks(),
            footprint: crate::preflight::footprint(delegate.memory, delegate.vcpus),
        }
    }
}

impl<'a> Job<'a> {
    /// Starts the journal of a job.
    fn start(run: &'a Run, subject: &str, subject_id: &str, options: &'a JobOptions) -> Result<Self> {
        let uuid = uuid::Uuid::new_v4();
        let id = uuid.to_string();
        let first = Entry::Started {
            job: id.clone(),
            pool: run.pool.config.name.clone(),
            pool_uuid: run.pool.config.uuid.clone(),
            subject: subject_id.to_owned(),
        };
        let journal = Journal::start(&run.journals, &id, &first)?;
        run.report.event(&Event::JobStarted { job: id.clone(), subject: subject.to_owned() });
        let (seed, _) = uuid.as_u64_pair();
        let warnings = Mutex::default();
        let pool = run.pool.for_job(&id);
        Ok(Self {
            run,
            pool,
            id,
            subject: subject.to_owned(),
            options,
            seed,
            journal,
            warnings,
            left: Mutex::default(),
            holding: tokio::sync::Mutex::default(),
            trace: Mutex::default(),
        })
    }

    fn step(&self, step: &str) {
        tracing::info!(job = %self.id, step);
        self.run.report.event(&Event::Step {
            job: self.id.clone(),
            subject: self.subject.clone(),
            step: step.to_owned(),
        });
    }

    fn warn(&self, message: String) {
        tracing::warn!(job = %self.id, "{message}");
        self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(message.clone());
        self.run.report.event(&Event::Warning { job: Some(self.id.clone()), message });
    }

    /// Notes what stays in the pool for `abd reconcile`.
    fn leave(&self, object: String) {
        self.warn(format!("not removed, run `abd reconcile`: {object}"));
        self.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(object);
    }

    fn check_cancelled(&self) -> Result<()> {
        if *self.run.cancel.borrow() {
            return Err(cancelled());
        }
        Ok(())
    }

    /// Waits for something that may hang for as long as the pool does; a request to stop ends that. What the pool was
    /// asked for goes on there, and the clean-up looks for it.
    async fn unless_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut cancel = self.run.cancel.clone();
        tokio::select! {
            biased;
            result = work => result,
            () = requested(&mut cancel) => Err(cancelled().open()),
        }
    }

    fn result(&self, end: End) -> JobResult {
        let warnings = self.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        JobResult {
            job: self.id.clone(),
            subject: self.subject.clone(),
            end,
            summary: None,
            error: None,
            remedy: None,
            code: None,
            leftovers: Vec::new(),
            warnings,
        }
    }

    /// The end of a job that left nothing behind.
    fn succeeded(self, summary: JobSummary) -> JobResult {
        let end = end_of(&summary).unwrap_or(End::Done);
        let result = JobResult { summary: Some(summary), ..self.result(end) };
        if let Err(error) = self.journal.finish() {
            tracing::warn!("{}", error.chain());
        }
        result
    }

    /// The end of a job that did not begin.
    fn skipped(self, why: &crate::preflight::Finding) -> JobResult {
        self.run.report.event(&Event::JobSkipped {
            job: self.id.clone(),
            subject: self.subject.clone(),
            reason: why.message.clone(),
            remedy: why.remedy.clone(),
        });
        let result = JobResult {
            error: Some(why.message.clone()),
            remedy: why.remedy.clone(),
            ..self.result(End::Skipped)
        };
        if let Err(error) = self.journal.finish() {
            tracing::warn!("{}", error.chain());
        }
        result
    }

    /// The end of a job whose work is done and whose journal stays for `reconcile`.
    fn left_something(self, summary: JobSummary) -> JobResult {
        let end = end_of(&summary).unwrap_or(End::Leftovers);
        let mut leftovers =
            std::mem::take(&mut *self.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        if leftovers.is_empty() {
            leftovers.push("something of this job; the warnings name it".into());
        }
        JobResult { summary: Some(summary), leftovers, ..self.result(end) }
    }

    /// Removes what a failed job made and reports it.
    async fn abandon(self, failure: Failure, entries: &[Entry]) -> JobResult {
        self.step("clean up");
        // The pool may be at it still, and what it makes shall not appear behind the clean-up.
        let busy = match failure.error.is_open() {
            true => reconcile::settle_job(&self.pool, &self.id).await,
            false => Ok(Vec::new()),
        };
        let busy = busy.unwrap_or_else(|error| vec![format!("nobody knows what: {}", error.chain())]);
        // The delegate first: it holds the snapshot's disks.
        let of_delegate = match self.holding.lock().await.take() {
            Some(holding) => kept::discard(&self.pool, holding, failure.error.is_open()).await.leftovers,
            None => Vec::new(),
        };
        let removed = cleanup::remove_job(&self.pool, &self.id, entries).await;
        let kind = failure.error.kind();
        let mut leftovers = match &removed {
            Ok(Removed { leftovers, .. }) => leftovers.clone(),
            Err(error) => vec![format!("unknown: {}", error.chain())],
        };
        leftovers.extend(of_delegate);
        leftovers.extend(busy.iter().map(|operation| format!("still under way in the pool: {operation}")));
        // The call may have reached the pool although its answer did not reach us.
        let unsettled = removed.is_ok_and(|removed| cleanup::is_unsettled(entries, &removed));
        if failure.error.is_open() && unsettled {
            leftovers.push("what was being made when the pool went silent may still appear".into());
        }
        let remedy = match failure.error.remedy_text() {
            Some(remedy) => Some(remedy.to_owned()),
            None if !leftovers.is_empty() => Some("run `abd reconcile` when the pool answers again".into()),
            None => None,
        };
        self.run.report.event(&Event::JobFailed {
            job: self.id.clone(),
            subject: self.subject.clone(),
            code: failure.code.clone(),
            error: failure.error.chain(),
            remedy: remedy.clone(),
            leftovers: leftovers.clone(),
        });
        let result = JobResult {
            error: Some(failure.error.chain()),
            remedy,
            code: failure.code,
            leftovers: leftovers.clone(),
            ..self.result(End::Failed(kind))
        };
        let closed = if leftovers.is_empty() {
            self.journal.finish()
        } else {
            self.journal.write(&Entry::Failed { reason: failure.error.chain() })
        };
        if let Err(error) = closed {
            tracing::warn!("{}", error.chain());
        }
        result
    }
}

/// Ends when the run is to stop; never where nobody can ask for it any more.
async fn requested(cancel: &mut tokio::sync::watch::Receiver<bool>) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a job's work came to, where it is not simply done. A restore of what could not be read once is a good one.
fn end_of(summary: &JobSummary) -> Option<End> {
    match () {
        () if !summary.alarms.is_empty() => Some(End::Alarm),
        () if summary.kind == "backup" && summary.bad().next().is_some() => Some(End::BadBlocks),
        () => None,
    }
}

/// The error of a run that was stopped by its user.
pub(crate) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "stopped on request")
}

/// What delegates counted of each disk.
fn counts_of(disks: &[DiskSummary]) -> Vec<wire::DiskCounts> {
    disks.iter().map(|disk| disk.counts).collect()
}

fn summary_of(claim: Option<&wire::Claim>, usage: wire::Usage, reused: u32) -> DelegateSummary {
    let mut summary = DelegateSummary {
        reused,
        worker_peak: usage.worker_peak.get(),
        available_low: usage.available_low.get(),
        cpu_ms: usage.cpu_ms,
        ..DelegateSummary::default()
    };
    if let Some(claim) = claim {
        summary.agent.clone_from(&claim.agent);
        summary.engine.clone_from(&claim.engine);
        summary.boot_ms = claim.boot_ms;
        summary.claim_ms = claim.claim_ms;
        summary.memory = claim.memory.get();
    }
    summary
}

/// Runs a blocking store call off the async runtime.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ads::Error> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| Error::new(Kind::Failed, "a store operation was stopped").because(error))?
        .map_err(crate::catalog::store_error)
}
