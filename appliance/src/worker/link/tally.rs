//! What calls cost: how many were on their way, and whose time it was.
//!
//! Kept by the one thread that carries calls out, looked at from the others when a pass begins and ends.

use super::super::meter::thread_time;
use blocks::ByteCount;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Account, Spent, Stage, StageAccount};

/// What a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Brings packs to the store or blocks from it.
    Transfer,
    /// Asks for what the work goes on with.
    Question,
    /// Anything else: nobody's work waits for it.
    Aside,
}

/// The tally that both sides share.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedTally(Arc<Mutex<Tally>>);

/// What all calls cost so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    transfers: Flow,
    questions: Flow,
    /// Processor time of the thread that carries calls out.
    cpu: Duration,
}

/// Calls of one purpose.
#[derive(Clone, Copy, Debug, Default)]
struct Flow {
    under_way: u32,
    most: u32,
    /// When the number of those under way last changed.
    changed: Option<Instant>,
    /// Time in which there was one at least.
    active: Duration,
    /// Their times on the way, added up.
    summed: Duration,
    network: Duration,
    verify: Duration,
    store: Duration,
    bytes: u64,
}

impl SharedTally {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What all calls cost up to now.
    pub(crate) fn now(&self) -> Tally {
        let mut tally = self.lock();
        let now = Instant::now();
        tally.transfers.pass(now);
        tally.questions.pass(now);
        *tally
    }

    /// A call begins.
    pub(super) fn begin(&self, purpose: Purpose) -> Instant {
        let now = Instant::now();
        if let Some(flow) = self.lock().flow(purpose) {
            flow.pass(now);
            flow.under_way += 1;
            flow.most = flow.most.max(flow.under_way);
        }
        now
    }

    /// A call that began at `began` has ended; `spent` is what the store says of it.
    pub(super) fn end(&self, purpose: Purpose, began: Instant, bytes: usize, spent: Spent) {
        let cpu = thread_time();
        let mut tally = self.lock();
        tally.cpu = cpu;
        tally.end(purpose, began, bytes, spent);
    }

    /// A call that began at `began` has ended, and went over no network.
    pub(super) fn end_here(&self, purpose: Purpose, began: Instant, bytes: usize) {
        let spent = Spent { work: began.elapsed(), ..Spent::default() };
        self.lock().end(purpose, began, bytes, spent);
    }
}

impl Tally {
    fn end(&mut self, purpose: Purpose, began: Instant, bytes: usize, spent: Spent) {
        let now = Instant::now();
        let Some(flow) = self.flow(purpose) else { return };
        flow.pass(now);
        flow.under_way = flow.under_way.saturating_sub(1);
        let took = now.duration_since(began);
        // The store's clock is another one: what it says is at most what we saw.
        let in_store = spent.in_store().min(took);
        let verify =
            if purpose == Purpose::Transfer && !spent.write.is_zero() { spent.work } else { Duration::ZERO };
        let verify = verify.min(in_store);
        flow.network += took - in_store;
        flow.verify += verify;
        flow.store += in_store - verify;
        flow.bytes += bytes as u64;
    }

    fn flow(&mut self, purpose: Purpose) -> Option<&mut Flow> {
        match purpose {
            Purpose::Transfer => Some(&mut self.transfers),
            Purpose::Question => Some(&mut self.questions),
            Purpose::Aside => None,
        }
    }

    /// What was added since an earlier moment. Most at once is that of the whole job.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            transfers: self.transfers.since(&earlier.transfers),
            questions: self.questions.since(&earlier.questions),
            cpu: self.cpu.saturating_sub(earlier.cpu),
        }
    }

    /// Enters the stages that lie outside of this machine into an account that has those inside of it. What
    /// threads waited for answers is split between network and store as the questions' times are.
    pub(crate) fn enter(&self, account: &mut Account, places: (u16, u16)) {
        let Self { transfers, questions, cpu } = self;
        if let Some(ask) = account.stages.iter_mut().find(|one| one.stage == Stage::Ask) {
            ask.blocked = questions.share(ask.busy, |flow| flow.verify + flow.store);
            ask.busy = ask.busy.saturating_sub(ask.blocked);
        }
        let part = |stage, of: fn(&Flow) -> Duration| StageAccount {
            places: places.0,
            busy: transfers.share(transfers.active, of),
            bytes: ByteCount::new(transfers.bytes),
            ..StageAccount::new(stage)
        };
        let [network, verify, store] = [
            part(Stage::Network, |flow| flow.network),
            part(Stage::Verify, |flow| flow.verify),
            part(Stage::Store, |flow| flow.store),
        ];
        let network = StageAccount { cpu: *cpu, ..transfers.depth(account.wall, network) };
        let parts = [network, verify, store];
        let used = parts.into_iter().filter(|part| !part.busy.is_zero());
        let mut entered = Account { stages: used.collect(), ..Account::default() };
        if !questions.summed.is_zero() {
            let ask = StageAccount { places: places.1, ..StageAccount::new(Stage::Ask) };
            entered.stages.insert(0, questions.depth(account.wall, ask));
        }
        account.add(&entered);
    }
}

impl Flow {
    /// Time passes up to `now`.
    fn pass(&mut self, now: Instant) {
        if let (Some(changed), 1..) = (self.changed, self.under_way) {
            let time = now.saturating_duration_since(changed);
            self.active += time;
            self.summed += time.saturating_mul(self.under_way);
        }
        self.changed = Some(now);
    }

    fn since(&self, earlier: &Self) -> Self {
        Self {
            active: self.active.saturating_sub(earlier.active),
            summed: self.summed.saturating_sub(earlier.summed),
            network: self.network.saturating_sub(earlier.network),
            verify: self.verify.saturating_sub(earlier.verify),
            store: self.store.saturating_sub(earlier.store),
            bytes: self.bytes.saturating_sub(earlier.bytes),
            ..*self
        }
    }

    /// The part of `time` that `of` is in what the calls took.
    fn share(&self, time: Duration, of: fn(&Self) -> Duration) -> Duration {
        let sum = self.network + self.verify + self.store;
        if sum.is_zero() { Duration::ZERO } else { time.mul_f64(of(self).as_secs_f64() / sum.as_secs_f64()) }
    }

    /// A stage with how many calls were on their way in `wall`.
    fn depth(&self, wall: Duration, stage: StageAccount) -> StageAccount {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        StageAccount {
            depth_sum: micros(self.summed),
            depth_count: micros(wall),
            depth_max: self.most,
            ..stage
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    fn stage(account: &Account, stage: Stage) -> StageAccount {
        *account.stage(stage).expect("it took part")
    }

    #[test]
    fn the_time_of_transfers_is_split_by_what_the_store_says() {
        let mut flow =
            Flow { network: ms(300), verify: ms(600), store: ms(100), bytes: 7, ..Flow::default() };
        (flow.active, flow.summed, flow.most) = (ms(500), ms(1000), 2);
        let tally = Tally { transfers: flow, ..Tally::default() };
        let mut account = Account { wall: ms(2000), ..Account::default() };
        tally.enter(&mut account, (2, 3));
        let network = stage(&account, Stage::Network);
        assert_eq!((network.busy, network.places), (ms(150), 2));
        assert_eq!((network.depth_mean_hundredths(), network.depth_max), (50, 2));
        assert_eq!(stage(&account, Stage::Verify).busy, ms(300));
        assert_eq!(stage(&account, Stage::Store).bytes, ByteCount::new(7));
        assert!(account.stage(Stage::Ask).is_none(), "nothing was asked");
    }

    #[test]
    fn the_wait_for_answers_is_split_as_the_questions_are() {
        let questions = Flow { network: ms(30), store: ms(10), summed: ms(40), ..Flow::default() };
        let tally = Tally { questions, ..Tally::default() };
        let ask = StageAccount { threads: 1, busy: ms(20), ..StageAccount::new(Stage::Ask) };
        let mut account = Account { wall: ms(400), stages: vec![ask], ..Account::default() };
        tally.enter(&mut account, (2, 3));
        assert!(account.stage(Stage::Network).is_none(), "no pack was sent");
        let ask = stage(&account, Stage::Ask);
        assert_eq!((ask.busy, ask.blocked), (ms(15), ms(5)));
        assert_eq!((ask.busy, ask.threads, ask.places, ask.depth_mean_hundredths()), (ms(15), 1, 3, 10));
    }

    #[test]
    fn calls_that_overlap_are_active_once_and_summed_twice() {
        let shared = SharedTally::default();
        let first = shared.begin(Purpose::Transfer);
        let second = shared.begin(Purpose::Transfer);
        std::thread::sleep(ms(20));
        let spent = Spent { work: ms(10), write: Duration::from_secs(9), ..Spent::default() };
        shared.end(Purpose::Transfer, first, 5, spent);
        shared.end(Purpose::Transfer, second, 5, Spent::default());
        std::thread::sleep(ms(20));
        let Tally { transfers: flow, .. } = shared.now();
        assert!(flow.active >= ms(20) && flow.summed >= flow.active * 2 - ms(1), "{flow:?}");
        assert_eq!((flow.most, flow.under_way, flow.bytes, flow.verify), (2, 0, 10, ms(10)));
        let split = flow.network + flow.verify + flow.store;
        assert!(split <= flow.summed + ms(1), "no more than was seen, whatever the store says: {flow:?}");
    }
}
