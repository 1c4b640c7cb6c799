//! Verdicts: by hand from tables, and of a simulated pipeline whose slowest part is known.

use super::*;
use proptest::prelude::*;

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A second of a backup on two processors, of which each stage has these milliseconds busy per thread.
struct Second {
    read: u64,
    held: u64,
    hash: u64,
    seal: u64,
    cpu: u64,
    pack_blocked: u64,
    ask: u64,
    ask_store: u64,
    /// Places for packs that were taken, in thousandths of two.
    full: u64,
    network: u64,
    verify: u64,
    store: u64,
}

const CALM: Second = Second {
    read: 100,
    held: 0,
    hash: 50,
    seal: 100,
    cpu: 300,
    pack_blocked: 0,
    ask: 20,
    ask_store: 5,
    full: 50,
    network: 50,
    verify: 20,
    store: 20,
};

impl Second {
    fn account(&self) -> Account {
        let stage = |stage, threads: u16, busy| StageAccount {
            threads,
            busy: ms(busy) * u32::from(threads),
            ..StageAccount::new(stage)
        };
        let network = StageAccount {
            places: 2,
            busy: ms(self.network),
            depth_sum: self.full * 2,
            depth_count: 1000,
            depth_max: 2,
            ..StageAccount::new(Stage::Network)
        };
        let far = |stage, busy| StageAccount { places: 2, busy: ms(busy), ..StageAccount::new(stage) };
        Account {
            wall: ms(1000),
            processors: 2,
            stages: vec![
                StageAccount { held: ms(self.held), ..stage(Stage::Read, 1, self.read) },
                StageAccount { cpu: ms(self.cpu / 4), ..stage(Stage::Hash, 2, self.hash) },
                StageAccount { blocked: ms(self.ask_store), ..stage(Stage::Ask, 1, self.ask) },
                StageAccount { cpu: ms(self.cpu - self.cpu / 4), ..stage(Stage::Seal, 2, self.seal) },
                StageAccount { blocked: ms(self.pack_blocked), ..stage(Stage::Pack, 1, 10) },
                network,
                far(Stage::Verify, self.verify),
                far(Stage::Store, self.store),
            ],
        }
    }

    #[track_caller]
    fn is(&self, words: &str) {
        let account = self.account();
        assert_eq!(account.verdict().words(), words, "{account:#?}");
    }
}

#[test]
fn what_is_busy_nearly_always_is_named() {
    Second { read: 950, ..CALM }.is("bound by reading the disk");
    Second { held: 950, ..CALM }.is("bound by the limits on reading (asked for)");
    Second { seal: 950, cpu: 1400, ..CALM }.is("bound by compressing (processor)");
    Second { hash: 900, ..CALM }.is("bound by hashing (processor)");
}

#[test]
fn packs_that_are_waited_for_are_the_networks_or_the_stores() {
    let shipping = Second { pack_blocked: 900, full: 950, network: 900, ..CALM };
    shipping.is("bound by the network");
    Second { network: 50, store: 850, ..shipping }.is("bound by the store");
    Second { network: 50, verify: 850, ..shipping }.is("bound by the store (checking packs)");
    // A packer that is always filling one pack while two are on their way waits for none, and yet holds nobody up.
    Second { pack_blocked: 0, ..shipping }.is("bound by the network");
    // One pack of which everything depends, at the end of a short job.
    Second { full: 500, ..shipping }.is("bound by the network");
}

#[test]
fn answers_that_are_waited_for_are_the_networks_or_the_stores() {
    Second { ask: 900, ..CALM }.is("bound by the network");
    Second { ask_store: 900, ..CALM }.is("bound by the store");
}

#[test]
fn processors_that_are_used_up_outrank_what_only_seems_busy() {
    let crowded = Second { read: 990, hash: 900, seal: 980, cpu: 1900, network: 990, full: 900, ..CALM };
    crowded.is("bound by compressing (processor)");
    Second { cpu: 900, ..crowded }.is("bound by no single part");
}

#[test]
fn a_thread_that_has_no_time_left_to_carry_calls_is_not_the_network() {
    let mut account = Second { pack_blocked: 900, full: 950, network: 900, ..CALM }.account();
    let network = account.stages.iter_mut().find(|one| one.stage == Stage::Network).expect("it is there");
    network.cpu = ms(950);
    assert_eq!(account.verdict().words(), "bound by sending and receiving (processor)");
}

#[test]
fn two_that_are_about_as_slow_and_a_job_of_many_small_waits_have_no_name() {
    Second { read: 950, seal: 940, ..CALM }.is("bound by no single part");
    Second { read: 300, ask: 300, ..CALM }.is("bound by no single part");
    assert_eq!(Account::default().verdict().words(), "bound by no single part");
}

#[test]
fn a_restore_is_bound_by_what_its_openers_or_its_writer_wait_for() {
    let account = |open_starved, open_busy, write_busy, network, store| {
        let stage = |stage, busy| StageAccount { threads: 1, busy: ms(busy), ..StageAccount::new(stage) };
        Account {
            wall: ms(1000),
            processors: 2,
            stages: vec![
                stage(Stage::Network, network),
                stage(Stage::Store, store),
                StageAccount { starved: ms(open_starved), ..stage(Stage::Open, open_busy) },
                stage(Stage::Write, write_busy),
            ],
        }
    };
    let words = |account: Account| account.verdict().words();
    assert_eq!(words(account(900, 50, 50, 800, 100)), "bound by the network");
    assert_eq!(words(account(900, 50, 50, 100, 800)), "bound by the store");
    assert_eq!(words(account(20, 50, 900, 800, 100)), "bound by writing the disk");
    assert_eq!(words(account(20, 930, 50, 800, 100)), "bound by decompressing and checking (processor)");
}

#[test]
fn accounts_of_disks_add_up_to_the_jobs() {
    let one = CALM.account();
    let mut two = Second { read: 700, ..CALM }.account();
    two.stages.retain(|stage| stage.stage != Stage::Hash);
    let sum = sum([&two, &one]);
    assert_eq!((sum.wall, sum.stages.len()), (ms(2000), 8));
    assert!(sum.stages.is_sorted_by_key(|stage| stage.stage));
    assert_eq!(sum.stage(Stage::Read).map(|read| (read.busy, read.threads)), Some((ms(800), 1)));
    assert_eq!(sum.stage(Stage::Hash).map(|hash| (hash.busy, hash.threads)), Some((ms(100), 2)));
}

#[test]
fn rates_and_depths_are_means() {
    let seal = StageAccount {
        threads: 2,
        busy: ms(4000),
        bytes: ByteCount::new(3000),
        depth_sum: 5,
        depth_count: 2,
        ..StageAccount::new(Stage::Seal)
    };
    // Both threads were busy for two seconds.
    assert_eq!(seal.rate(), Some(ByteCount::new(1500)));
    assert_eq!(seal.depth_mean_hundredths(), 250);
    assert_eq!(StageAccount::new(Stage::Seal).rate(), None);
    assert_eq!(StageAccount::new(Stage::Seal).depth_mean_hundredths(), 0);
}

/// Reads of a simulated job, and how many of them make a pack.
const READS: usize = 400;
const READS_PER_PACK: usize = 8;
/// Packs on their way at once.
const PLACES: usize = 2;

/// The parts of a simulated backup; each takes so many microseconds per read when it never waits.
const PARTS: [(Stage, Bound); 7] = [
    (Stage::Read, Bound::DiskRead),
    (Stage::Hash, Bound::Processor),
    (Stage::Judge, Bound::Processor),
    (Stage::Seal, Bound::Processor),
    (Stage::Pack, Bound::Processor),
    (Stage::Network, Bound::Network),
    (Stage::Store, Bound::Store),
];

/// One stage of the simulation: when each of its threads is free, and what it did.
struct Sim {
    account: StageAccount,
    service: u64,
    free: Vec<u64>,
    /// When it took each item.
    took: Vec<u64>,
}

impl Sim {
    fn new(stage: Stage, threads: usize, period: u64) -> Self {
        let account =
            StageAccount { threads: u16::try_from(threads).expect("few"), ..StageAccount::new(stage) };
        Self { account, service: period * threads as u64, free: vec![0; threads], took: Vec::new() }
    }

    /// The next item comes at `ready`; gives the thread that takes it, and when it is done with it.
    fn work(&mut self, ready: u64, service: u64) -> (usize, u64) {
        let thread = (0..self.free.len()).min_by_key(|thread| self.free[*thread]).expect("a thread");
        let start = ready.max(self.free[thread]);
        self.account.starved += Duration::from_micros(start - self.free[thread]);
        self.account.busy += Duration::from_micros(service);
        self.took.push(start);
        (thread, start + service)
    }

    /// Its item goes on at `gone`: until then the thread holds it.
    fn hand_on(&mut self, thread: usize, done: u64, gone: u64) {
        self.account.blocked += Duration::from_micros(gone - done);
        self.free[thread] = gone;
    }
}

/// Runs `READS` reads through the pipeline: `periods` by part, `threads` for hashing and sealing, `room` between two
/// stages; `jitter` moves each service time by up to a quarter.
fn simulate(periods: [u64; 7], threads: usize, room: usize, jitter: &[u64]) -> Account {
    let mut stages: Vec<Sim> = PARTS[..5]
        .iter()
        .zip(periods)
        .map(|((stage, _), period)| {
            let count = if matches!(stage, Stage::Hash | Stage::Seal) { threads } else { 1 };
            Sim::new(*stage, count, period)
        })
        .collect();
    let per_pack = READS_PER_PACK as u64;
    let (transfer, write) = (periods[5] * per_pack, periods[6] * per_pack);
    let (mut network, mut store) = (StageAccount::new(Stage::Network), StageAccount::new(Stage::Store));
    let (mut link_free, mut store_free, mut answered) = (0, 0, vec![0; PLACES]);
    let mut end = 0;
    for item in 0..READS {
        let mut ready = 0;
        let mut waiting: Option<(usize, usize, u64)> = None;
        for at in 0..stages.len() {
            let service = stages[at].service;
            // Two neighbours together take what two without jitter take.
            let jitter = jitter[(item / 2 * 7 + at) % jitter.len()];
            let service = service * if item % 2 == 0 { 100 - jitter } else { 100 + jitter } / 100;
            let (thread, done) = stages[at].work(ready, service);
            if let Some((before, before_thread, before_done)) = waiting {
                // A stage holds its item until there is room for it in the queue.
                let taken: u64 = item.checked_sub(room).map_or(0, |earlier| stages[at].took[earlier]);
                let gone = u64::max(before_done, taken);
                stages[before].hand_on(before_thread, before_done, gone);
            }
            waiting = Some((at, thread, done));
            ready = done;
        }
        let Some((at, thread, done)) = waiting else { unreachable!() };
        let mut gone = done;
        if (item + 1) % READS_PER_PACK == 0 {
            let pack = item / READS_PER_PACK;
            gone = done.max(answered[pack % PLACES]);
            let arrived = link_free.max(gone) + transfer;
            link_free = arrived;
            let durable = store_free.max(arrived) + write;
            store_free = durable;
            answered[pack % PLACES] = durable;
            network.busy += Duration::from_micros(arrived - gone);
            store.busy += Duration::from_micros(durable - arrived);
            network.depth_sum += durable - gone;
            end = durable;
        }
        stages[at].hand_on(thread, done, gone);
    }
    network.places = PLACES as u16;
    network.depth_count = end;
    let mut stages: Vec<StageAccount> = stages.into_iter().map(|sim| sim.account).collect();
    stages.extend([network, store]);
    // So many processors that they are never used up.
    Account { wall: Duration::from_micros(end), processors: 64, stages }
}

proptest! {
    /// Whatever the other parts do: the slowest is named where it is slower than every other by half.
    #[test]
    fn the_slowest_part_of_a_pipeline_is_named(
        slowest in 0usize..7,
        others in proptest::array::uniform7(1u64..=1000),
        threads in 1usize..4,
        room in 1usize..4,
        jitter in proptest::collection::vec(0u64..=25, 1..50),
    ) {
        let mut periods = others;
        periods[slowest] = 1500;
        let account = simulate(periods, threads, room, &jitter);
        let verdict = account.verdict();
        let (stage, bound) = PARTS[slowest];
        prop_assert_eq!((verdict.bound, verdict.stage), (bound, Some(stage)), "{:?} {:#?}", periods, account);
    }
}
