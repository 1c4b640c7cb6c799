//! What the stages of the data path spend their time on: one [`Meter`] per thread and stage, and the [`Ledger`] where
//! they end.
//!
//! A meter is local to its thread: it looks at the clock two or three times for each item (256 KiB) and takes no lock
//! until it ends. The numbers are judged in `wire::account`.

use super::link::Tally;
use blocks::ByteCount;
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvError, RecvTimeoutError, SendError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Account, PassAccount, Stage, StageAccount};

/// Where the meters of one job end.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    open: Mutex<Vec<StageAccount>>,
    passes: Mutex<Vec<PassAccount>>,
}

/// One pass over a disk, while it goes on.
pub(crate) struct Pass {
    disk: u16,
    began: Instant,
    tally: Tally,
}

/// The time of one thread in one stage. Every moment belongs to what is said at its end.
pub(crate) struct Meter<'l> {
    ledger: Option<&'l Ledger>,
    account: StageAccount,
    since: Instant,
    cpu: Duration,
}

impl Ledger {
    /// A pass begins; `tally` is what the link did so far.
    pub(crate) fn begin(&self, disk: u16, tally: Tally) -> Pass {
        self.open().clear();
        Pass { disk, began: Instant::now(), tally }
    }

    /// A pass has ended, well or not: its meters are here. `places` are those for packs (or blocks) and for questions.
    pub(crate) fn end(&self, pass: Pass, tally: Tally, places: (u16, u16)) {
        let wall = pass.began.elapsed();
        let stages = std::mem::take(&mut *self.open());
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let processors = u16::try_from(processors).unwrap_or(u16::MAX);
        let mut account = Account { wall, processors, stages };
        account.stages.sort_by_key(|stage| stage.stage);
        for stage in &mut account.stages {
            // What another thread waited for in the name of this stage, its own one spent without input.
            let left = wall * u32::from(stage.threads);
            let left = left.saturating_sub(stage.busy + stage.blocked + stage.held);
            stage.starved = stage.starved.min(left);
        }
        tally.since(&pass.tally).enter(&mut account, places);
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        let number = passes.iter().filter(|one| one.disk == pass.disk).count();
        let number = u8::try_from(number).unwrap_or(u8::MAX);
        passes.push(PassAccount { disk: pass.disk, pass: number, account });
    }

    /// All passes so far.
    pub(crate) fn passes(&self) -> Vec<PassAccount> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A meter for the calling thread.
    pub(crate) fn meter(&self, stage: Stage) -> Meter<'_> {
        let account = StageAccount { threads: 1, ..StageAccount::new(stage) };
        Meter { ledger: Some(self), account, since: Instant::now(), cpu: thread_time() }
    }

    /// A wait for an answer without which nothing goes on.
    pub(crate) fn ask<T>(&self, wait: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let answer = wait();
        self.asked(began.elapsed());
        answer
    }

    /// So long an answer was waited for.
    pub(crate) fn asked(&self, time: Duration) {
        self.add(&StageAccount { busy: time, ..StageAccount::new(Stage::Ask) });
    }

    /// Adds to what a stage is to be accounted for, beside its meters.
    pub(crate) fn add(&self, account: &StageAccount) {
        let mut open = self.open();
        match open.iter_mut().find(|one| one.stage == account.stage) {
            Some(one) => {
                one.add(account);
                one.threads = one.threads.saturating_add(account.threads);
            }
            None => open.push(*account),
        }
    }

    fn open(&self) -> MutexGuard<'_, Vec<StageAccount>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Meter<'static> {
    /// A meter of work that shares its thread with others, so that its processor time is not known.
    pub(crate) fn loose(stage: Stage) -> Self {
        let account = StageAccount { threads: 1, ..StageAccount::new(stage) };
        Meter { ledger: None, account, since: Instant::now(), cpu: Duration::ZERO }
    }

    /// What it was spent on.
    pub(crate) fn finish(mut self) -> StageAccount {
        self.busy();
        self.account
    }
}

impl Meter<'_> {
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now.duration_since(self.since);
        self.since = now;
        lap
    }

    /// What has passed was work.
    pub(crate) fn busy(&mut self) {
        let lap = self.lap();
        self.account.busy += lap;
    }

    /// What has passed was work, but for `waited`: that was for room.
    pub(crate) fn busy_but_blocked(&mut self, waited: Duration) {
        let lap = self.lap();
        let waited = waited.min(lap);
        self.account.blocked += waited;
        self.account.busy += lap - waited;
    }

    /// What has passed was spent waiting for input.
    pub(crate) fn starved(&mut self) {
        let lap = self.lap();
        self.account.starved += lap;
    }

    /// What has passed was spent waiting for room.
    pub(crate) fn blocked(&mut self) {
        let lap = self.lap();
        self.account.blocked += lap;
    }

    /// What has passed was spent waiting on purpose.
    pub(crate) fn held(&mut self) {
        let lap = self.lap();
        self.account.held += lap;
    }

    /// Of what was said to be work, so much was a wait for room, and so much is nobody's.
    pub(crate) fn was_not_busy(&mut self, blocked: Duration, idle: Duration) {
        self.busy();
        let blocked = blocked.min(self.account.busy);
        self.account.busy = (self.account.busy - blocked).saturating_sub(idle);
        self.account.blocked += blocked;
    }

    /// Bytes that were worked on.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.count_all(bytes as u64);
    }

    /// The same of a sum.
    pub(crate) fn count_all(&mut self, bytes: u64) {
        self.account.bytes = self.account.bytes.saturating_add(ByteCount::new(bytes));
    }

    /// How much waits before this stage, or is under way in it.
    pub(crate) fn depth(&mut self, depth: u32) {
        self.account.depth_sum += u64::from(depth);
        self.account.depth_count += 1;
        self.account.depth_max = self.account.depth_max.max(depth);
    }

    /// The next item of a queue; `None` when it has ended. The time since the last word is work, the rest is starved.
    pub(crate) fn take<T>(&mut self, queue: &Queue<T>) -> Option<T> {
        self.busy();
        let item = queue.recv().ok();
        self.starved();
        let (item, depth) = item?;
        self.depth(depth);
        Some(item)
    }

    /// As [`take`](Self::take), of a queue that several threads take from.
    pub(crate) fn take_shared<T>(&mut self, queue: &Mutex<Queue<T>>) -> Option<T> {
        self.busy();
        let item = queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok();
        self.starved();
        let (item, depth) = item?;
        self.depth(depth);
        Some(item)
    }

    /// Hands an item on. The time since the last word is work, the rest is blocked.
    pub(crate) fn put<T>(&mut self, queue: &Feed<T>, item: T) -> Result<(), SendError<T>> {
        self.busy();
        let sent = queue.send(item);
        self.blocked();
        sent
    }
}

/// The end of a stage on a thread: what is not said yet was work.
impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.busy();
        if let Some(ledger) = self.ledger {
            self.account.cpu = thread_time().saturating_sub(self.cpu);
            ledger.add(&self.account);
        }
    }
}

/// A bounded queue that knows how many items are in it, or wait to get in.
pub(crate) fn queue<T>(bound: usize) -> (Feed<T>, Queue<T>) {
    let (sender, receiver) = sync_channel(bound);
    let depth = Arc::new(AtomicU32::new(0));
    (Feed { sender, depth: depth.clone() }, Queue { receiver, depth })
}

/// The end of a queue where items go in.
pub(crate) struct Feed<T> {
    sender: SyncSender<T>,
    depth: Arc<AtomicU32>,
}

/// The end where they come out.
pub(crate) struct Queue<T> {
    receiver: Receiver<T>,
    depth: Arc<AtomicU32>,
}

impl<T> Clone for Feed<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), depth: self.depth.clone() }
    }
}

impl<T> Feed<T> {
    pub(crate) fn send(&self, item: T) -> Result<(), SendError<T>> {
        self.depth.fetch_add(1, Ordering::Relaxed);
        self.sender.send(item)
    }
}

impl<T> Queue<T> {
    /// The next item, and how many there were with it.
    pub(crate) fn recv(&self) -> Result<(T, u32), RecvError> {
        self.receiver.recv().map(|item| (item, self.taken()))
    }

    /// The same without waiting longer than this.
    pub(crate) fn recv_timeout(&self, limit: Duration) -> Result<(T, u32), RecvTimeoutError> {
        self.receiver.recv_timeout(limit).map(|item| (item, self.taken()))
    }

    fn taken(&self) -> u32 {
        self.depth.fetch_sub(1, Ordering::Relaxed)
    }
}

/// Processor time of the calling thread so far.
pub(crate) fn thread_time() -> Duration {
    // Fails only for a clock that does not exist.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    const PAUSE: Duration = Duration::from_millis(20);

    fn stage(ledger: &Ledger, stage: Stage) -> StageAccount {
        *ledger.open().iter().find(|one| one.stage == stage).expect("it is there")
    }

    #[test]
    fn every_moment_belongs_to_what_is_said_at_its_end() {
        let ledger = Ledger::default();
        let began = Instant::now();
        let mut meter = ledger.meter(Stage::Read);
        for part in [Meter::busy, Meter::starved, Meter::blocked, Meter::held] {
            sleep(PAUSE);
            part(&mut meter);
        }
        sleep(2 * PAUSE);
        meter.busy_but_blocked(PAUSE);
        sleep(2 * PAUSE);
        meter.was_not_busy(PAUSE, PAUSE);
        meter.count(3);
        drop(meter);
        let whole = began.elapsed();
        let found = stage(&ledger, Stage::Read);
        assert!(found.busy >= PAUSE && found.starved >= PAUSE && found.held >= PAUSE, "{found:?}");
        assert!(found.blocked >= 3 * PAUSE, "{found:?}");
        let sum = found.busy + found.starved + found.blocked + found.held;
        assert!(sum >= 7 * PAUSE && sum + PAUSE <= whole, "what is nobody's is in none: {found:?}");
        assert_eq!((found.threads, found.bytes), (1, ByteCount::new(3)));
    }

    #[test]
    fn threads_of_a_stage_add_up_and_a_queue_knows_its_depth() {
        let ledger = Ledger::default();
        let (feed, queue) = queue(4);
        let mut before = ledger.meter(Stage::Read);
        (0..3).for_each(|item| before.put(&feed, item).expect("room"));
        drop((before, feed));
        let queue = Mutex::new(queue);
        let mut first = ledger.meter(Stage::Hash);
        assert_eq!(first.take_shared(&queue), Some(0));
        let mut second = ledger.meter(Stage::Hash);
        assert_eq!([(); 3].map(|()| second.take_shared(&queue)), [Some(1), Some(2), None]);
        drop((first, second));
        let found = stage(&ledger, Stage::Hash);
        assert_eq!((found.threads, found.depth_sum, found.depth_count, found.depth_max), (2, 6, 3, 3));
    }

    #[test]
    fn work_of_a_thread_is_its_processor_time_too() {
        let ledger = Ledger::default();
        let meter = ledger.meter(Stage::Seal);
        let until = thread_time() + PAUSE;
        while thread_time() < until {
            std::hint::spin_loop();
        }
        drop(meter);
        let found = stage(&ledger, Stage::Seal);
        assert!(found.cpu >= PAUSE && found.busy >= found.cpu - Duration::from_millis(1), "{found:?}");
    }
}
