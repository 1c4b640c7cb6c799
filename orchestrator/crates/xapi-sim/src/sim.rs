//! The simulator's shared state and the one way to reach it.
//!
//! All records live behind one lock that is never held across an await or a disk copy. Leaving the lock publishes the
//! new generation to blocked `event.from` calls and writes created and destroyed objects into the log.

use crate::config::Config;
use crate::domain::Domain;
use crate::failure::Outcome;
use crate::faults::Faults;
use crate::flavour::ApiVersion;
use crate::log::EventLog;
use crate::rpc::value::{Record, Value, format_date};
use crate::step::Stepper;
use crate::storage::cbt::Logs;
use crate::storage::chain::Chains;
use crate::storage::surface::Surfaces;
use crate::storage::track::Baselines;
use crate::store::db::Db;
use crate::store::methods::{Method, methods};
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LockResult, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, watch};

/// A panic in one call must not take the simulator down: every change under the lock is complete by itself.
pub(crate) fn unpoison<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Everything behind the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) api: ApiVersion,
    pub(crate) db: Db,
    pub(crate) cbt: Logs,
    pub(crate) chains: Chains,
    pub(crate) baselines: Baselines,
    pub(crate) surfaces: Surfaces,
    /// Disks that storage still holds although their guest is gone.
    pub(crate) lagging: HashMap<String, Instant>,
    /// Disks that a data handler has attached to the control domain, with the number of transfers.
    pub(crate) exports: HashMap<String, usize>,
    pub(crate) domains: HashMap<String, Arc<Domain>>,
    /// Legacy event registrations: session to classes and generation.
    pub(crate) registrations: HashMap<String, (Vec<String>, u64)>,
    pub(crate) next_domid: i64,
}

impl State {
    fn new(api: ApiVersion) -> Self {
        Self {
            api,
            db: Db::default(),
            cbt: Logs::default(),
            chains: Chains::default(),
            baselines: Baselines::default(),
            surfaces: Surfaces::default(),
            lagging: HashMap::new(),
            exports: HashMap::new(),
            domains: HashMap::new(),
            registrations: HashMap::new(),
            next_domid: 1,
        }
    }

    /// Whether storage still holds the disk.
    pub(crate) fn lags(&mut self, vdi: &str) -> bool {
        let now = Instant::now();
        self.lagging.retain(|_, until| *until > now);
        self.lagging.contains_key(vdi)
    }
}

/// One simulated pool.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) config: Config,
    pub(crate) methods: BTreeMap<String, Method>,
    pub(crate) log: EventLog,
    pub(crate) changes: watch::Sender<u64>,
    pub(crate) stop: Notify,
    pub(crate) steps: Stepper,
    state: Mutex<State>,
    faults: Mutex<Faults>,
    password: Mutex<String>,
    certificate: OnceLock<String>,
    /// Number of the host that is the master, from 0.
    master: AtomicUsize,
}

impl Sim {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            methods: methods(config.flavour.api),
            log: EventLog::new(&config.dir.join("events.jsonl")),
            changes: watch::Sender::new(0),
            stop: Notify::new(),
            steps: Stepper::new(config.step),
            state: Mutex::new(State::new(config.flavour.api)),
            faults: Mutex::default(),
            password: Mutex::new(config.password.clone()),
            certificate: OnceLock::new(),
            master: AtomicUsize::new(0),
            config,
        }
    }

    /// Runs `work` under the lock. Must not be nested.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = unpoison(self.state.lock());
        let answer = work(&mut state);
        self.publish(&mut state);
        answer
    }

    fn publish(&self, state: &mut MutexGuard<'_, State>) {
        for (created, class, reference, uuid) in state.db.take_journal() {
            // The reference of a session is its secret.
            let reference = if class == "session" { String::new() } else { reference };
            let kind = if created { "create" } else { "destroy" };
            self.log.add(kind, json!({"class": class, "ref": reference, "uuid": uuid}));
        }
        let generation = state.db.generation();
        self.changes.send_if_modified(|seen| {
            let changed = *seen != generation;
            *seen = generation;
            changed
        });
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Faults> {
        unpoison(self.faults.lock())
    }

    pub(crate) fn password(&self) -> MutexGuard<'_, String> {
        unpoison(self.password.lock())
    }

    /// The server certificate as PEM; empty before the servers listen.
    pub(crate) fn certificate(&self) -> &str {
        self.certificate.get().map_or("", String::as_str)
    }

    /// Remembers the server certificate.
    pub(crate) fn set_certificate(&self, pem: String) {
        // A simulator listens once, so there is never a second certificate to lose.
        let _ = self.certificate.set(pem);
    }

    /// Number of the host that is the master, from 0.
    pub(crate) fn master(&self) -> usize {
        self.master.load(Ordering::SeqCst)
    }

    pub(crate) fn set_master(&self, host: usize) {
        self.master.store(host, Ordering::SeqCst);
    }

    /// Runs disk work off the async threads.
    pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        match tokio::task::spawn_blocking(work).await {
            Ok(answer) => answer,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going away and this future with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// The present as the API writes it.
pub(crate) fn now() -> Value {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
    Value::Date(format_date(seconds))
}

/// The time of a host's clock.
pub(crate) fn host_time(offset_s: i64) -> Value {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or_default();
    Value::Date(format_date(seconds.saturating_add_signed(offset_s)))
}

/// Who calls, and on behalf of which task.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) sim: Arc<Sim>,
    pub(crate) session: String,
    /// The task of an asynchronous call or of a data handler.
    pub(crate) task: Option<String>,
    /// The connection came over the Unix socket.
    pub(crate) trusted: bool,
}

impl Context {
    /// A context of the simulator itself.
    pub(crate) fn own(sim: &Arc<Sim>) -> Self {
        Self { sim: sim.clone(), session: String::new(), task: None, trusted: true }
    }

    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        self.sim.with(work)
    }

    /// `TASK_CANCELLED` once somebody asked for it.
    pub(crate) fn check_cancelled(&self) -> Outcome<()> {
        match &self.task {
            Some(task) => self.with(|s| crate::task::check_cancelled(&s.db, task)),
            None => Ok(()),
        }
    }

    /// Reports how far the task is, 0 to 1.
    pub(crate) fn progress(&self, fraction: f64) {
        if let Some(task) = &self.task {
            self.with(|s| s.db.put("task", task, "progress", Value::Float(fraction)));
        }
    }
}

/// The parameters of a call after coercion, without the session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Args(pub(crate) Vec<Value>);

const COERCED: &str = "parameters were coerced to their declared types";

impl Args {
    pub(crate) fn text(&self, index: usize) -> &str {
        self.0[index].as_text().expect(COERCED)
    }

    pub(crate) fn flag(&self, index: usize) -> bool {
        self.0[index] == Value::Bool(true)
    }

    pub(crate) fn int(&self, index: usize) -> i64 {
        match &self.0[index] {
            Value::Int(n) => *n,
            other => panic!("{COERCED}, found {other:?}"),
        }
    }

    pub(crate) fn float(&self, index: usize) -> f64 {
        match &self.0[index] {
            Value::Float(f) => *f,
            other => panic!("{COERCED}, found {other:?}"),
        }
    }

    pub(crate) fn map(&self, index: usize) -> &Record {
        self.0[index].as_map().expect(COERCED)
    }

    pub(crate) fn texts(&self, index: usize) -> Vec<String> {
        let items = self.0[index].as_list().expect(COERCED);
        items.iter().filter_map(Value::as_text).map(str::to_owned).collect()
    }
}
