//! Jobs: which key may call for which, what it may do, and what the orchestrator hears of it.

use super::Shared;
use super::grant::{JobGrant, check_grant, disk_count};
use crate::Error;
use bytes::Bytes;
use pin::Fingerprint;
use seal::{PackId, Tree, TreeId};
use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;
use tokio::sync::{Notify, Semaphore};
use wire::{BackupDisk, Order, RestoreDisk, Work};

/// Keys of closed jobs that are remembered, to tell a late ABD why it is refused.
const REMEMBERED_KEYS: usize = 1024;
/// Refusals of one job that are told and logged; an ABD that goes on after that has nothing new to say.
const MAX_REFUSALS: u32 = 32;

/// What the orchestrator hears of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobEvent {
    /// The ABD has its order. Told once.
    Claimed(wire::Claim),
    /// How far it is; only the latest is kept while nobody listens.
    Progress(wire::Progress),
    /// A disk is in the store with everything it needs, or was restored. Told once per disk.
    DiskSealed {
        /// Position in the order.
        disk: u16,
        /// The disk's content.
        tree: Tree,
        /// What proves it.
        id: TreeId,
        /// What the ABD counted.
        counts: wire::DiskCounts,
        /// What it could not read, where its order allowed that.
        bad: wire::BadRanges,
        /// How fast it was read, and what held the reader back.
        pacing: wire::Pacing,
    },
    /// What it measured, where its order asks for that. Told once.
    Diagnosed(wire::Diagnosis),
    /// The ABD's last words. Told once.
    Done(wire::JobDone),
    /// A call was refused; the ABD was told the same.
    Refused {
        /// Stable, as in `PROTOCOL.md`.
        code: String,
        /// For people.
        message: String,
    },
}

/// A job's events, oldest first. Bounded: what can come often is merged or limited.
#[derive(Debug, Default)]
pub struct Events {
    queue: Mutex<Queue>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<JobEvent>,
    closed: bool,
}

impl Events {
    /// The next event; `None` once the job is closed and everything was told. For one listener.
    pub async fn recv(&self) -> Option<JobEvent> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut queue = lock(&self.queue);
                if let Some(event) = queue.events.pop_front() {
                    return Some(event);
                }
                if queue.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    fn push(&self, event: JobEvent) {
        let mut queue = lock(&self.queue);
        if queue.closed {
            return;
        }
        if let JobEvent::Progress(_) = event {
            queue.events.retain(|waiting| !matches!(waiting, JobEvent::Progress(_)));
        }
        queue.events.push_back(event);
        self.arrived.notify_one();
    }

    fn close(&self) {
        lock(&self.queue).closed = true;
        self.arrived.notify_one();
    }
}

/// One open job.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) job: String,
    pub(super) order: Order,
    pub(super) order_bytes: Bytes,
    pub(super) bitmaps: Vec<Option<Bytes>>,
    pub(super) packs: Arc<Semaphore>,
    pub(super) reads: Arc<Semaphore>,
    events: Events,
    stop: AtomicBool,
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    claimed: bool,
    diagnosed: bool,
    /// Bytes that were sent to be thrown away.
    sunk: u64,
    done: bool,
    sealed: HashMap<u16, Tree>,
    known_packs: BTreeSet<PackId>,
    last_contact: Option<Instant>,
    refusals: u32,
}

impl Session {
    /// How many disks the order has.
    pub(super) fn disk_count(&self) -> usize {
        disk_count(&self.order.work)
    }

    /// A disk of a backup order.
    pub(super) fn backup_disk(&self, disk: u16) -> Option<&BackupDisk> {
        match &self.order.work {
            Work::Backup { disks, .. } => disks.get(usize::from(disk)),
            Work::Restore { .. } | Work::Diagnose { .. } => None,
        }
    }

    /// A disk of a restore order.
    pub(super) fn restore_disk(&self, disk: u16) -> Option<&RestoreDisk> {
        match &self.order.work {
            Work::Restore { disks } => disks.get(usize::from(disk)),
            Work::Backup { .. } | Work::Diagnose { .. } => None,
        }
    }

    /// Whether the order is a diagnosis, and still waits for it.
    pub(super) fn lacks_diagnosis(&self) -> bool {
        self.is_diagnosis() && !lock(&self.state).diagnosed
    }

    pub(super) fn is_diagnosis(&self) -> bool {
        matches!(self.order.work, Work::Diagnose { .. })
    }

    /// Makes room for bytes that will be thrown away. Gives how many that are in all; none where it is no part of the
    /// order to send them.
    pub(super) fn sink(&self, count: u64) -> Option<u64> {
        let Work::Diagnose { send, .. } = &self.order.work else { return None };
        let mut state = lock(&self.state);
        let sum = state.sunk.checked_add(count)?;
        // Twice, because a call whose connection broke is repeated.
        if sum > send.get().saturating_mul(2) {
            return None;
        }
        state.sunk = sum;
        Some(sum)
    }

    pub(super) fn diagnosed(&self, diagnosis: wire::Diagnosis) {
        if !std::mem::replace(&mut lock(&self.state).diagnosed, true) {
            self.events.push(JobEvent::Diagnosed(diagnosis));
        }
    }

    /// Whether a backup may go on without what cannot be read.
    pub(super) fn may_skip_bad_blocks(&self) -> bool {
        matches!(self.order.work, Work::Backup { skip_bad_blocks: true, .. })
    }

    pub(super) fn is_backup(&self) -> bool {
        matches!(self.order.work, Work::Backup { .. })
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn is_claimed(&self) -> bool {
        lock(&self.state).claimed
    }

    pub(super) fn touch(&self) {
        lock(&self.state).last_contact = Some(Instant::now());
    }

    pub(super) fn claimed(&self, claim: wire::Claim) {
        if !std::mem::replace(&mut lock(&self.state).claimed, true) {
            tracing::info!(job = %self.job, agent = %claim.agent, engine = %claim.engine, "order claimed");
            self.events.push(JobEvent::Claimed(claim));
        }
    }

    pub(super) fn progress(&self, progress: wire::Progress) {
        self.events.push(JobEvent::Progress(progress));
    }

    /// What a disk was sealed as.
    pub(super) fn sealed(&self, disk: u16) -> Option<Tree> {
        lock(&self.state).sealed.get(&disk).copied()
    }

    pub(super) fn seal(&self, done: wire::DiskDone, id: TreeId) {
        let (disk, tree) = (done.disk, done.tree());
        if lock(&self.state).sealed.insert(disk, tree).is_none() {
            tracing::info!(job = %self.job, disk, tree = %id, "disk finished");
            let wire::DiskDone { counts, bad, pacing, .. } = done;
            self.events.push(JobEvent::DiskSealed { disk, tree, id, counts, bad, pacing });
        }
    }

    pub(super) fn done(&self, done: wire::JobDone) {
        if !std::mem::replace(&mut lock(&self.state).done, true) {
            self.events.push(JobEvent::Done(done));
        }
    }

    /// Keeps the promise of a "known": these packs must stay while the job is open.
    pub(super) fn promise(&self, packs: impl Iterator<Item = PackId>) {
        lock(&self.state).known_packs.extend(packs);
    }

    pub(super) fn refused(&self, code: &str, message: &str) {
        let refusals = {
            let mut state = lock(&self.state);
            state.refusals = state.refusals.saturating_add(1);
            state.refusals
        };
        if refusals <= MAX_REFUSALS {
            tracing::warn!(job = %self.job, code, message, "call refused");
            self.events.push(JobEvent::Refused { code: code.into(), message: message.into() });
        }
    }
}

/// Which key belongs to which job.
#[derive(Debug, Default)]
pub(super) struct Registry {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    jobs: HashMap<String, Option<Fingerprint>>,
    keys: HashMap<Fingerprint, Arc<Session>>,
    closed: VecDeque<Fingerprint>,
}

/// What a key may do.
pub(super) enum Access {
    Unknown,
    Over,
    Open(Arc<Session>),
}

impl Registry {
    pub(super) fn access(&self, key: Fingerprint) -> Access {
        let table = lock(&self.table);
        match table.keys.get(&key) {
            Some(session) => Access::Open(session.clone()),
            None if table.closed.contains(&key) => Access::Over,
            None => Access::Unknown,
        }
    }

    fn open(&self, job: &str) -> Result<(), Error> {
        match lock(&self.table).jobs.entry(job.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                Ok(())
            }
            Entry::Occupied(_) => Err(refused(job, "it is open already")),
        }
    }

    fn admit(&self, session: &Arc<Session>, key: Fingerprint) -> Result<(), Error> {
        let mut table = lock(&self.table);
        let job = &session.job;
        match (table.keys.get(&key), table.jobs.get(job)) {
            (_, None) => Err(refused(job, "it is closed")),
            (Some(other), _) if other.job == *job => Ok(()),
            (Some(_), _) => Err(refused(job, &format!("the key {key} belongs to another job"))),
            (None, Some(Some(first))) => {
                let reason = format!("its ABD has the key {first}; the key {key} is not admitted beside it");
                Err(refused(job, &reason))
            }
            (None, Some(None)) if table.closed.contains(&key) => {
                Err(refused(job, &format!("the key {key} belongs to a job that is closed")))
            }
            (None, Some(None)) => {
                table.jobs.insert(job.clone(), Some(key));
                table.keys.insert(key, session.clone());
                Ok(())
            }
        }
    }

    fn close(&self, job: &str) {
        let mut table = lock(&self.table);
        if let Some(Some(key)) = table.jobs.remove(job) {
            table.keys.remove(&key);
            table.closed.push_back(key);
            while table.closed.len() > REMEMBERED_KEYS {
                table.closed.pop_front();
            }
        }
    }
}

/// An open job. Dropping it closes the job.
#[derive(Debug)]
#[must_use = "dropping the handle closes the job"]
pub struct JobHandle {
    registry: Arc<Registry>,
    session: Arc<Session>,
}

impl JobHandle {
    pub(super) fn open(registry: Arc<Registry>, shared: &Shared, grant: JobGrant) -> Result<Self, Error> {
        check_grant(&grant, &shared.store)?;
        registry.open(&grant.job)?;
        let session = Arc::new(Session {
            order_bytes: wire::encode(&grant.order).into(),
            bitmaps: grant.bitmaps.into_iter().map(|bitmap| bitmap.map(Bytes::from)).collect(),
            job: grant.job,
            order: grant.order,
            packs: Arc::new(Semaphore::new(shared.limits.packs_per_job)),
            reads: Arc::new(Semaphore::new(shared.limits.reads_per_job)),
            events: Events::default(),
            stop: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            state: Mutex::default(),
        });
        Ok(Self { registry, session })
    }

    /// Lets the ABD with this key call for the job. The same key again changes nothing.
    ///
    /// # Errors
    /// [`Error::Job`] where the job has another key, the key another job, or the job is closed.
    pub fn admit(&self, key: Fingerprint) -> Result<(), Error> {
        self.registry.admit(&self.session, key)
    }

    /// What the job tells.
    pub fn events(&self) -> &Events {
        &self.session.events
    }

    /// When the ABD last called; `None` before its first call.
    pub fn last_contact(&self) -> Option<Instant> {
        lock(&self.session.state).last_contact
    }

    /// Packs of which blocks were answered to be known; they must stay while the job is open.
    pub fn promised_packs(&self) -> Vec<PackId> {
        lock(&self.session.state).known_packs.iter().copied().collect()
    }

    /// Tells the ABD to stop, with the answer to its next report.
    pub fn stop(&self) {
        self.session.stop.store(true, Ordering::Relaxed);
    }

    /// Ends the job: every later call of its key is answered with `job-over`.
    pub fn close(&self) {
        if !self.session.closed.swap(true, Ordering::Relaxed) {
            self.registry.close(&self.session.job);
            self.session.events.close();
        }
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        self.close();
    }
}

pub(super) fn refused(job: &str, reason: &str) -> Error {
    Error::Job { job: job.to_owned(), reason: reason.to_owned() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no panic while it is locked")
}
