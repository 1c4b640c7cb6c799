//! Which job may start next: a fair queue under limits, as plain data. It makes no calls and knows no time.
//!
//! Jobs start in the order in which they came. A job that cannot start is overtaken only by jobs that use nothing of
//! what it waits for, so that one slow storage repository holds up nobody else. What it does not wait for yet may be
//! taken meanwhile, and that could go on for ever where it waits for two things in turn: so a job that was overtaken
//! [`PATIENCE`] times keeps a claim on everything it needs. Then it starts at the latest when the jobs before it have
//! started and those that ran until then have ended, whatever comes in behind it.

use crate::spec::Limits;
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

/// How often a job is overtaken before everything it needs is kept for it: often enough that a run over several
/// storage repositories keeps all of them busy, seldom enough that nobody waits for half of a large run.
const PATIENCE: u32 = 16;

/// What one job takes while it runs. Names are keys: uuids, or anything that is the same for the same thing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The pool.
    pub pool: String,
    /// The storage repositories that its delegate reads from.
    pub storage: BTreeSet<String>,
    /// The hosts that its delegate can run on, the best first. Where there is none, no host's limit counts.
    pub hosts: Vec<String>,
    /// Memory of its delegate.
    pub memory: ByteCount,
    /// Whether its delegate has a fixed address of the pool's configuration, which no two can have at once.
    pub fixed_address: bool,
}

/// A job in the queue. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// A job that may start now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which; to be [released](Queue::release) when it has ended.
    pub ticket: Ticket,
    /// The host that has room for its delegate.
    pub host: Option<String>,
}

/// The queue.
#[derive(Clone, Debug)]
pub struct Queue {
    limits: Limits,
    patience: u32,
    next: u64,
    waiting: VecDeque<Waiting>,
    running: BTreeMap<Ticket, Running>,
}

#[derive(Clone, Debug)]
struct Waiting {
    ticket: Ticket,
    needs: Needs,
    /// How many later jobs have started.
    overtaken: u32,
}

#[derive(Clone, Debug)]
struct Running {
    needs: Needs,
    host: Option<String>,
}

/// Something of which there is a limited amount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Resource<'a> {
    /// Jobs of the run.
    Run,
    /// Bytes of memory of all delegates.
    Memory,
    /// Jobs in a pool.
    Pool(&'a str),
    /// The fixed addresses of a pool's delegates.
    Addresses(&'a str),
    /// Jobs on a storage repository.
    Storage(&'a str),
    /// Delegates on a host.
    Host(&'a str),
}

/// What is taken of each resource, by running jobs and by claims of waiting ones.
struct Ledger<'a> {
    limits: &'a Limits,
    taken: HashMap<Resource<'a>, u64>,
}

impl Queue {
    /// An empty queue. A limit of zero would be a queue that never moves; [`Limits`] are at least one.
    pub fn new(limits: Limits) -> Self {
        Self { limits, patience: PATIENCE, next: 0, waiting: VecDeque::new(), running: BTreeMap::new() }
    }

    /// Puts a job at the end. `None` where it could not even run alone: its delegate is larger than the budget.
    pub fn push(&mut self, needs: Needs) -> Option<Ticket> {
        Ledger::new(&self.limits).room_for(&needs)?;
        let ticket = Ticket(self.next);
        self.next += 1;
        self.waiting.push_back(Waiting { ticket, needs, overtaken: 0 });
        Some(ticket)
    }

    /// The job that may start now, which counts as running from here on. To be called until there is none.
    pub fn start_next(&mut self) -> Option<Grant> {
        let mut ledger = Ledger::new(&self.limits);
        for job in self.running.values() {
            ledger.take(&job.needs, job.host.as_deref());
        }
        let mut found = None;
        for (index, job) in self.waiting.iter().enumerate() {
            if ledger.is_full() {
                break;
            }
            if let Some(host) = ledger.room_for(&job.needs) {
                found = Some((index, host.map(str::to_owned)));
                break;
            }
            ledger.claim(&job.needs, job.overtaken >= self.patience);
        }
        let (index, host) = found?;
        for earlier in self.waiting.iter_mut().take(index) {
            earlier.overtaken = earlier.overtaken.saturating_add(1);
        }
        let Waiting { ticket, needs, .. } = self.waiting.remove(index)?;
        self.running.insert(ticket, Running { needs, host: host.clone() });
        Some(Grant { ticket, host })
    }

    /// Gives back what an ended job had. A ticket that does not run changes nothing.
    pub fn release(&mut self, ticket: Ticket) {
        self.running.remove(&ticket);
    }

    /// Takes every job that has not started out of the queue, the first first.
    pub fn drain(&mut self) -> Vec<Ticket> {
        self.waiting.drain(..).map(|job| job.ticket).collect()
    }

    /// How many jobs wait.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// How many jobs run.
    pub fn running_count(&self) -> usize {
        self.running.len()
    }
}

impl<'a> Ledger<'a> {
    fn new(limits: &'a Limits) -> Self {
        Self { limits, taken: HashMap::new() }
    }

    /// How much of a resource there is.
    fn limit(&self, resource: Resource<'_>) -> u64 {
        match resource {
            Resource::Run => self.limits.max_jobs.into(),
            Resource::Memory => self.limits.delegate_memory_budget.map_or(u64::MAX, ByteCount::get),
            Resource::Pool(_) => self.limits.max_jobs_per_pool.map_or(u64::MAX, u64::from),
            Resource::Addresses(_) => 1,
            Resource::Storage(_) => self.limits.max_jobs_per_sr.into(),
            Resource::Host(_) => self.limits.max_jobs_per_host.into(),
        }
    }

    fn has(&self, resource: Resource<'_>, amount: u64) -> bool {
        let taken = self.taken.get(&resource).copied().unwrap_or(0);
        taken.checked_add(amount).is_some_and(|sum| sum <= self.limit(resource))
    }

    fn add(&mut self, resource: Resource<'a>, amount: u64) {
        let taken = self.taken.entry(resource).or_insert(0);
        *taken = taken.saturating_add(amount);
    }

    /// Whether no job at all can start.
    fn is_full(&self) -> bool {
        !self.has(Resource::Run, 1)
    }

    /// Everything a job takes but its host.
    fn fixed(needs: &Needs) -> impl Iterator<Item = (Resource<'_>, u64)> {
        [(Resource::Run, 1), (Resource::Memory, needs.memory.get()), (Resource::Pool(&needs.pool), 1)]
            .into_iter()
            .chain(needs.storage.iter().map(|sr| (Resource::Storage(sr), 1)))
            .chain(needs.fixed_address.then_some((Resource::Addresses(&needs.pool), 1)))
    }

    /// Whether a job can start, and on which of its hosts.
    fn room_for<'n>(&self, needs: &'n Needs) -> Option<Option<&'n str>> {
        if !Self::fixed(needs).all(|(resource, amount)| self.has(resource, amount)) {
            return None;
        }
        if needs.hosts.is_empty() {
            return Some(None);
        }
        self.free_host(needs).map(Some)
    }

    fn free_host<'n>(&self, needs: &'n Needs) -> Option<&'n str> {
        needs.hosts.iter().map(String::as_str).find(|host| self.has(Resource::Host(host), 1))
    }

    fn take(&mut self, needs: &'a Needs, host: Option<&'a str>) {
        for (resource, amount) in Self::fixed(needs) {
            self.add(resource, amount);
        }
        if let Some(host) = host {
            self.add(Resource::Host(host), 1);
        }
    }

    /// Keeps for a blocked job what it waits for, or all it needs: then also the best of its hosts that has room. Where
    /// none has, it waits for all of them.
    fn claim(&mut self, needs: &'a Needs, everything: bool) {
        let host = self.free_host(needs);
        for (resource, amount) in Self::fixed(needs) {
            if everything || !self.has(resource, amount) {
                self.add(resource, amount);
            }
        }
        match host {
            Some(host) if everything => self.add(Resource::Host(host), 1),
            Some(_) => {}
            None => needs.hosts.iter().for_each(|host| self.add(Resource::Host(host), 1)),
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
