//! What all threads of a job share: the counts, the reason to stop, and the limits.

use super::meter::{Ledger, Pass};
use super::{Budget, Error, Link, Outside};
use crate::platform::memory::Memory;
use blocks::ByteCount;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use seal::IdKey;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use wire::{DiskCounts, Usage};

/// One job at work.
pub(crate) struct Run {
    pub(crate) link: Link,
    pub(crate) outside: Arc<dyn Outside>,
    pub(crate) key: IdKey,
    pub(crate) budget: Budget,
    /// Whether the asynchronous side can write files with io_uring.
    pub(crate) has_ring: bool,
    /// What the time of each pass is spent on.
    pub(crate) ledger: Ledger,
    counts: Mutex<Vec<DiskCounts>>,
    halted: AtomicBool,
    reason: Mutex<Option<Error>>,
    available_low_kib: AtomicU64,
}

impl Run {
    pub(crate) fn new(
        link: Link,
        outside: Arc<dyn Outside>,
        key: IdKey,
        budget: Budget,
        has_ring: bool,
        disks: usize,
    ) -> Self {
        Self {
            link,
            outside,
            key,
            budget,
            has_ring,
            ledger: Ledger::default(),
            counts: Mutex::new(vec![DiskCounts::default(); disks]),
            halted: AtomicBool::new(false),
            reason: Mutex::new(None),
            available_low_kib: AtomicU64::new(u64::MAX),
        }
    }

    /// Changes the counts of a disk, which is progress.
    pub(crate) fn count(&self, disk: u16, change: impl FnOnce(&mut DiskCounts)) {
        change(&mut self.lock_counts()[usize::from(disk)]);
        self.outside.tick();
    }

    pub(crate) fn counts(&self) -> Vec<DiskCounts> {
        self.lock_counts().clone()
    }

    /// A pass over a disk begins; it ends when what this gives is dropped. `places` are those for packs (or blocks) on
    /// their way at once.
    pub(crate) fn pass(&self, disk: u16, places: usize) -> RunningPass<'_> {
        let count = |places| u16::try_from(places).unwrap_or(u16::MAX);
        let places = (count(places), count(self.budget.known_in_flight));
        RunningPass { run: self, pass: Some(self.ledger.begin(disk, self.link.tally())), places }
    }

    /// Makes every stage stop at its next step; the first reason is kept.
    pub(crate) fn halt(&self, reason: Error) {
        let mut kept = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.is_none() {
            *kept = Some(reason);
        }
        self.halted.store(true, Ordering::Release);
    }

    /// Passes the outcome of a stage on. An error makes every other stage stop at its next step, too: one that waits for
    /// what this one would have brought would wait forever.
    pub(crate) fn or_abort<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        outcome.inspect_err(|_| self.halted.store(true, Ordering::Release))
    }

    /// An error if the job was halted.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.halted.load(Ordering::Acquire) { Err(Error::Aborted) } else { Ok(()) }
    }

    /// Why the job was halted.
    pub(crate) fn take_reason(&self) -> Option<Error> {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Resources used so far.
    pub(crate) fn usage(&self) -> Usage {
        let Memory { available_kib, worker_peak_kib, .. } = self.outside.memory();
        let low = self.available_low_kib.fetch_min(available_kib, Ordering::Relaxed).min(available_kib);
        let cpu_ms = getrusage(UsageWho::RUSAGE_SELF)
            .map(|used| used.user_time().num_milliseconds() + used.system_time().num_milliseconds());
        Usage {
            worker_peak: kib(worker_peak_kib),
            available_low: kib(low),
            // Fails only for a `who` that does not exist.
            cpu_ms: cpu_ms.ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
            uptime_ms: u64::try_from(self.outside.uptime().as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn lock_counts(&self) -> MutexGuard<'_, Vec<DiskCounts>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pass over a disk, while it goes on.
pub(crate) struct RunningPass<'a> {
    run: &'a Run,
    pass: Option<Pass>,
    places: (u16, u16),
}

impl Drop for RunningPass<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.run.ledger.end(pass, self.run.link.tally(), self.places);
        }
    }
}

fn kib(count: u64) -> ByteCount {
    ByteCount::new(count.saturating_mul(1024))
}
