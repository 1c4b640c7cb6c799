//! Jobs: one VM, one delegate, one journal. Backup and restore differ in what the delegate is ordered to do;
//! how it is made, watched and removed is the same.

pub mod backup;
mod delegate;
pub mod restore;

use crate::cleanup::{self, Removed};
use crate::error::{Error, Kind, Result};
use crate::journal::{Entry, Journal};
use crate::pool::Pool;
use crate::report::{DelegateSummary, Event, Report};
use crate::template::Template;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
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
    /// The template that delegates are cloned from.
    pub template: Template,
    /// The network that delegates use.
    pub network: Ref<Network>,
    /// Its MTU in bytes.
    pub network_mtu: u32,
    /// URL at which delegates reach the service.
    pub url: String,
    /// Where journals stand.
    pub journals: PathBuf,
    /// Where events go.
    pub report: Arc<Report>,
    /// Turns true when the run is to stop.
    pub cancel: tokio::sync::watch::Receiver<bool>,
    /// Options.
    pub settings: Settings,
}

/// Options of a run that concern its delegates.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Memory of a delegate in bytes.
    pub memory: u64,
    /// Processors of a delegate.
    pub vcpus: u32,
    /// zstd level.
    pub level: i8,
    /// Bytes of a pack.
    pub pack_size: u32,
    /// A delegate that hears nothing or gets nowhere for this long powers itself off.
    pub watchdog: Duration,
    /// How long a delegate may take from start to its first call.
    pub boot_limit: Duration,
    /// Whether change tracking is switched on where it is off.
    pub enable_cbt: bool,
    /// Whether no earlier restore point is started from.
    pub full: bool,
    /// Whether a first backup reads unallocated space too.
    pub read_unallocated: bool,
    /// Static network settings of the delegate, by key below `vm-data/abd/net/0/`; DHCP where empty.
    pub net: Vec<(String, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: crate::template::DEFAULT_MEMORY,
            vcpus: 1,
            level: seal::DEFAULT_LEVEL as i8,
            pack_size: 16 << 20,
            watchdog: Duration::from_secs(90),
            boot_limit: Duration::from_secs(300),
            enable_cbt: true,
            full: false,
            read_unallocated: false,
            net: Vec::new(),
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
    id: String,
    subject: String,
    journal: Journal,
}

impl<'a> Job<'a> {
    /// Starts the journal of a job.
    fn start(run: &'a Run, subject: &str, subject_id: &str) -> Result<Self> {
        let id = uuid::Uuid::new_v4().to_string();
        let first = Entry::Started {
            job: id.clone(),
            pool: run.pool.config.name.clone(),
            pool_uuid: run.pool.config.uuid.clone(),
            subject: subject_id.to_owned(),
        };
        let journal = Journal::start(&run.journals, &id, &first)?;
        run.report.event(&Event::JobStarted { job: id.clone(), subject: subject.to_owned() });
        Ok(Self { run, id, subject: subject.to_owned(), journal })
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
        self.run.report.event(&Event::Warning { job: Some(self.id.clone()), message });
    }

    fn check_cancelled(&self) -> Result<()> {
        if *self.run.cancel.borrow() {
            return Err(cancelled());
        }
        Ok(())
    }

    /// Removes what a failed job made and reports it. Gives back the failure's kind.
    async fn abandon(self, failure: Failure, entries: &[Entry]) -> Kind {
        self.step("clean up");
        let removed = cleanup::remove_job(&self.run.pool, &self.id, entries).await;
        let kind = failure.error.kind();
        let mut leftovers = match &removed {
            Ok(Removed { leftovers, .. }) => leftovers.clone(),
            Err(error) => vec![format!("unknown: {}", error.chain())],
        };
        // The call may have reached the pool although its answer did not reach us.
        let found = removed.is_ok_and(|removed| !removed.objects.is_empty());
        if kind == Kind::Unreachable && cleanup::is_unsettled(entries) && !found {
            leftovers.push("what was being made when the pool went silent may still appear".into());
        }
        self.run.report.event(&Event::JobFailed {
            job: self.id.clone(),
            subject: self.subject.clone(),
            code: failure.code,
            error: failure.error.chain(),
            remedy: match failure.error.remedy_text() {
                Some(remedy) => Some(remedy.to_owned()),
                None if !leftovers.is_empty() => {
                    Some("run `abd reconcile` when the pool answers again".into())
                }
                None => None,
            },
            leftovers: leftovers.clone(),
        });
        let closed = if leftovers.is_empty() {
            self.journal.finish()
        } else {
            self.journal.write(&Entry::Failed { reason: failure.error.chain() })
        };
        if let Err(error) = closed {
            tracing::warn!("{}", error.chain());
        }
        kind
    }
}

/// The error of a run that was stopped by its user.
pub(crate) fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "stopped on request")
}

fn summary_of(claim: Option<&wire::Claim>, usage: wire::Usage) -> DelegateSummary {
    let mut summary = DelegateSummary {
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
