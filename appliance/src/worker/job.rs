//! The job from the first call to the last word.

use super::link::{Errand, Exchange, Patience, Settings, serve, serve_here};
use super::run::Run;
use super::runtime::Runtime;
use super::{Budget, Error, Identity, Link, Outside, diagnose, order};
use crate::platform::State;
use crate::{backup, chain, restore};
use blocks::ByteCount;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use wire::{Claim, Failure, JobDone, Order, Progress, ProgressAnswer, Work};

/// The watchdog's time where nothing says it: PROTOCOL.md's and PID 1's default.
pub const DEFAULT_WATCHDOG: Duration = Duration::from_secs(90);
/// The orchestrator reads our key from XenStore; until then it knows nobody.
const CLAIM_LIMIT: Duration = Duration::from_secs(60);
const CLAIM_PAUSE: Duration = Duration::from_millis(250);
/// Errands that wait for the asynchronous side; it takes them at once.
const ERRANDS: usize = 16;
/// HTTP status of a key that the orchestrator does not know.
const UNKNOWN_KEY: u16 = 401;

/// Which job, and whose.
#[derive(Clone, Debug)]
pub struct Assignment {
    /// The job's uuid.
    pub job: String,
    /// Where the orchestrator listens, in the order to try.
    pub addresses: Vec<SocketAddr>,
    /// SHA-256 of its TLS key.
    pub orchestrator_key: [u8; 32],
    /// The watchdog's time until the order says it.
    pub watchdog: Duration,
}

/// Does the job and tells the orchestrator how it ended.
///
/// # Errors
/// Why it failed. The orchestrator was told, if it could be.
pub fn perform(assignment: &Assignment, identity: &Identity, outside: Arc<dyn Outside>) -> Result<(), Error> {
    let pin = pin::Fingerprint::from_bytes(assignment.orchestrator_key);
    let watchdog_ms = u64::try_from(assignment.watchdog.as_millis()).unwrap_or(u64::MAX);
    let watchdog_ms = Arc::new(AtomicU64::new(watchdog_ms));
    let settings = Settings {
        addresses: assignment.addresses.clone(),
        tls: Arc::new(identity.client_config(pin)?),
        watchdog_ms: watchdog_ms.clone(),
        outside: outside.clone(),
    };
    start(&assignment.job, outside, watchdog_ms, Way::Network(settings))
}

/// [`perform`] without a network: `exchange` answers for the orchestrator, in this process.
///
/// # Errors
/// As [`perform`].
pub fn perform_here(job: &str, exchange: Arc<dyn Exchange>, outside: Arc<dyn Outside>) -> Result<(), Error> {
    let watchdog_ms = Arc::new(AtomicU64::new(DEFAULT_WATCHDOG.as_millis() as u64));
    start(job, outside, watchdog_ms, Way::Here(exchange))
}

/// Where calls go.
enum Way {
    Network(Settings),
    Here(Arc<dyn Exchange>),
}

fn start(job: &str, outside: Arc<dyn Outside>, watchdog_ms: Arc<AtomicU64>, way: Way) -> Result<(), Error> {
    let (runtime, why_plain) = match outside.may_use_io_uring() {
        true => Runtime::new()?,
        false => (Runtime::plain()?, Some("asked for".to_owned())),
    };
    let engine = why_plain.map_or_else(|| "io_uring".to_owned(), |why| format!("pread: {why}"));
    let (errands, queue) = mpsc::channel::<Errand>(ERRANDS);
    let conductor = Conductor {
        job: job.to_owned(),
        engine,
        link: Link::new(errands),
        outside,
        watchdog_ms,
        has_ring: runtime.has_ring(),
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("job".into());
        let thread = thread.spawn_scoped(scope, move || conductor.conduct());
        let thread = thread.map_err(|source| Error::Start { what: "thread", source })?;
        // Ends when the conductor is gone, and with it the last link.
        match way {
            Way::Network(settings) => runtime.block_on(serve(settings, queue)),
            Way::Here(exchange) => runtime.block_on(serve_here(exchange, queue)),
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

struct Conductor {
    job: String,
    engine: String,
    link: Link,
    outside: Arc<dyn Outside>,
    watchdog_ms: Arc<AtomicU64>,
    has_ring: bool,
}

impl Conductor {
    fn conduct(self) -> Result<(), Error> {
        self.outside.state(State::Connecting);
        let order = self.claim()?;
        self.outside.state(State::Claimed);
        self.outside.milestone("order claimed");
        let memory = self.outside.memory();
        let available = ByteCount::new(memory.available_kib.saturating_mul(1024));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        let (pack_size, disks) = match &order.work {
            Work::Backup { pack_size, disks, .. } => (*pack_size as usize, disks.len()),
            Work::Restore { disks } => (0, disks.len()),
            Work::Diagnose { .. } => (0, 0),
        };
        let budget = Budget::new(available, processors, pack_size);
        let run =
            Run::new(self.link.clone(), self.outside.clone(), order.keys(), budget, self.has_ring, disks);
        let outcome = order::check(&order, &self.job).and_then(|()| self.work(&order, &run));
        self.say_goodbye(outcome, &run)
    }

    /// Asks for the order until the orchestrator knows our key.
    fn claim(&self) -> Result<Order, Error> {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let began = Instant::now();
        loop {
            let claim = Claim {
                protocol: wire::PROTOCOL_VERSION,
                job: self.job.clone(),
                agent: env!("CARGO_PKG_VERSION").to_owned(),
                boot_ms: ms(self.outside.boot_time()),
                claim_ms: ms(self.outside.uptime()),
                memory: ByteCount::new(self.outside.memory().total_kib.saturating_mul(1024)),
                engine: self.engine.clone(),
            };
            match self.link.ask(wire::PATH_CLAIM, &claim) {
                Err(Error::Refused { status: UNKNOWN_KEY, .. }) if began.elapsed() < CLAIM_LIMIT => {
                    thread::sleep(CLAIM_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    fn work(&self, order: &Order, run: &Run) -> Result<(), Error> {
        let watchdog = Duration::from_secs(u64::from(order.watchdog_s));
        self.watchdog_ms.store(u64::from(order.watchdog_s) * 1000, Ordering::Relaxed);
        self.outside.set_watchdog(watchdog);
        self.outside.state(State::Working);
        let every = Duration::from_millis(u64::from(order.progress_ms));
        thread::scope(|scope| {
            let (done, wait) = sync_channel::<()>(0);
            let reports = thread::Builder::new().name("progress".into());
            let reports = reports
                .spawn_scoped(scope, move || report(run, every, &wait))
                .map_err(|source| Error::Start { what: "progress report", source })?;
            let outcome = match &order.work {
                Work::Backup { level, rate_limit, throttle, skip_bad_blocks, disks, .. } => {
                    backup::run(run, i32::from(*level), *rate_limit, *throttle, *skip_bad_blocks, disks)
                }
                Work::Restore { disks } => restore::run(run, disks),
                Work::Diagnose { read, send } => diagnose::run(run, *read, *send),
            };
            drop(done);
            reports.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // What halted the job comes before the confusion that it caused.
            outcome.map_err(|error| run.take_reason().unwrap_or(error))
        })
    }

    /// Tells the orchestrator how the job ended. A success that it was not told of is none.
    fn say_goodbye(&self, outcome: Result<(), Error>, run: &Run) -> Result<(), Error> {
        let failure = outcome.as_ref().err().map(|error| Failure::new(error.code(), chain(error)));
        let patience = if failure.is_some() { Patience::LastWord } else { Patience::Long };
        let last_word = JobDone {
            outcome: failure.map_or(Ok(()), Err),
            disk: outcome.as_ref().err().and_then(Error::disk),
            disks: run.counts(),
            usage: run.usage(),
            passes: run.ledger.passes(),
        };
        let told: Result<ProgressAnswer, Error> =
            self.link.ask_patiently(wire::PATH_JOB_DONE, &last_word, patience);
        outcome.and(told.map(|_| ()))
    }
}

/// Reports progress until the work is over; every answer proves that the orchestrator is alive.
fn report(run: &Run, every: Duration, work: &Receiver<()>) {
    while let Err(RecvTimeoutError::Timeout) = work.recv_timeout(every) {
        let progress = Progress { disks: run.counts(), usage: run.usage() };
        match run.link.ask::<ProgressAnswer>(wire::PATH_PROGRESS, &progress) {
            Ok(ProgressAnswer { stop: false }) => {}
            Ok(ProgressAnswer { stop: true }) => return run.halt(Error::Stopped),
            Err(error) => return run.halt(error),
        }
    }
}
