//! The accounting of the data path: what each stage's time was spent on, and what a job was bound by.
//!
//! A stage is one kind of work on one or more threads, between bounded queues. Its time is `busy`, or it waits: for
//! input (`starved`), for room behind it (`blocked`), or on purpose (`held`). So the stage that the others wait for is
//! the one that hardly waits itself, and [`Account::verdict`] looks for it. Everything here is pure: numbers come in,
//! the verdict goes out.

use blocks::ByteCount;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// From this share of the wall time on a part can be what a job was bound by, in thousandths.
pub const BINDING_SHARE: u16 = 500;
/// It must also be this much busier than the next part, in hundredths: below, two parts were about equally slow.
pub const BINDING_MARGIN: u32 = 120;
/// From this share on the processors were used up, in thousandths: whatever seems busy then may only be waiting for
/// one. The rest is what switching between threads leaves.
pub const SATURATED_SHARE: u16 = 900;

/// One kind of work of the data path, in the order in which a backup's data meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Reading the disk. `held` is what the rate limit cost; its depth is reads under way.
    Read,
    /// Zero test and block ids.
    Hash,
    /// Comparing with the base and building the tree.
    Judge,
    /// Waiting for answers without which nothing goes on: what the store has, nodes of a base, the end of a tree. `busy`
    /// is the network's part of that, `blocked` the store's; its depth is questions on their way.
    Ask,
    /// Compressing.
    Seal,
    /// Filling packs. `blocked` is the time in which every pack was on its way.
    Pack,
    /// Packs or blocks on their way, less what the store did meanwhile: busy while there is one. Its depth is how many.
    Network,
    /// The store checking packs.
    Verify,
    /// The store writing and syncing packs, or reading blocks, and the wait for its turn.
    Store,
    /// Decompressing and checking blocks of a restore. `starved` is the wait for blocks.
    Open,
    /// Writing the disk of a restore.
    Write,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Stage; 11] = [
        Stage::Read,
        Stage::Hash,
        Stage::Judge,
        Stage::Ask,
        Stage::Seal,
        Stage::Pack,
        Stage::Network,
        Stage::Verify,
        Stage::Store,
        Stage::Open,
        Stage::Write,
    ];

    /// Its name in tables, JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Read => "read",
            Stage::Hash => "hash",
            Stage::Judge => "judge",
            Stage::Ask => "ask",
            Stage::Seal => "seal",
            Stage::Pack => "pack",
            Stage::Network => "network",
            Stage::Verify => "verify",
            Stage::Store => "store",
            Stage::Open => "open",
            Stage::Write => "write",
        }
    }

    /// What it does, where it is the processor that does it.
    const fn processing(self) -> Option<&'static str> {
        match self {
            Stage::Hash => Some("hashing"),
            Stage::Judge => Some("comparing with the base"),
            Stage::Seal => Some("compressing"),
            Stage::Pack => Some("filling packs"),
            Stage::Open => Some("decompressing and checking"),
            Stage::Network => Some("sending and receiving"),
            _ => None,
        }
    }
}

/// What one stage did. Times are summed over its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageAccount {
    /// Which.
    pub stage: Stage,
    /// Threads that worked on it at once; 0 where it is calls.
    pub threads: u16,
    /// Calls that can be on their way at once; 0 where it is no calls.
    pub places: u16,
    /// At work.
    pub busy: Duration,
    /// Waiting for input.
    pub starved: Duration,
    /// Waiting for room in what comes behind, or for buffers.
    pub blocked: Duration,
    /// Waiting because it was asked to.
    pub held: Duration,
    /// Processor time, part of `busy` mostly.
    pub cpu: Duration,
    /// Bytes that it worked on, as they came in.
    pub bytes: ByteCount,
    /// What waited before it or was under way in it: the sum over `depth_count` looks.
    pub depth_sum: u64,
    /// Looks at that.
    pub depth_count: u64,
    /// Most that was seen.
    pub depth_max: u32,
}

impl StageAccount {
    /// A stage that did nothing so far.
    pub const fn new(stage: Stage) -> Self {
        Self {
            stage,
            threads: 0,
            places: 0,
            busy: Duration::ZERO,
            starved: Duration::ZERO,
            blocked: Duration::ZERO,
            held: Duration::ZERO,
            cpu: Duration::ZERO,
            bytes: ByteCount::new(0),
            depth_sum: 0,
            depth_count: 0,
            depth_max: 0,
        }
    }

    /// Bytes per second while busy; `None` where it was not busy or has no bytes.
    pub fn rate(&self) -> Option<ByteCount> {
        // Several threads are busy at once: their time is that of one.
        let micros = self.busy.as_micros() / u128::from(self.threads.max(1));
        if micros == 0 || self.bytes.get() == 0 {
            return None;
        }
        let rate = u128::from(self.bytes.get()) * 1_000_000 / micros;
        Some(ByteCount::new(u64::try_from(rate).unwrap_or(u64::MAX)))
    }

    /// Mean of what waited before it or was under way, in hundredths.
    pub fn depth_mean_hundredths(&self) -> u64 {
        let sum = u128::from(self.depth_sum) * 100;
        let mean = sum.checked_div(u128::from(self.depth_count)).unwrap_or(0);
        u64::try_from(mean).unwrap_or(u64::MAX)
    }

    /// Takes in times and counts of another part of the same stage; how many threads or places it has is for the caller.
    pub fn add(&mut self, other: &Self) {
        self.busy = self.busy.saturating_add(other.busy);
        self.starved = self.starved.saturating_add(other.starved);
        self.blocked = self.blocked.saturating_add(other.blocked);
        self.held = self.held.saturating_add(other.held);
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.depth_sum = self.depth_sum.saturating_add(other.depth_sum);
        self.depth_count = self.depth_count.saturating_add(other.depth_count);
        self.depth_max = self.depth_max.max(other.depth_max);
    }

    /// How full its places were on average, in thousandths; 0 where it has none.
    fn fullness(&self) -> u16 {
        let whole = u128::from(self.depth_count) * u128::from(self.places);
        let share = (u128::from(self.depth_sum) * 1000).checked_div(whole).unwrap_or(0);
        u16::try_from(share.min(1000)).unwrap_or(1000)
    }

    /// Share of `wall` that `time` of this stage's threads is, in thousandths.
    pub fn share(&self, time: Duration, wall: Duration) -> u16 {
        permille(time, wall.saturating_mul(u32::from(self.threads.max(1))))
    }
}

/// What the data path did in a stretch of time: of one pass over a disk, of a disk, or of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// How long it took.
    pub wall: Duration,
    /// Processors of the machine.
    pub processors: u16,
    /// Each stage that took part, at most once, in order.
    pub stages: Vec<StageAccount>,
}

/// The account of one pass over a disk of the order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassAccount {
    /// Position in the order's list of disks.
    pub disk: u16,
    /// From 0. A second pass reads the whole disk after an audit failed.
    pub pass: u8,
    /// What it did.
    pub account: Account,
}

/// What a job was bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    /// The disk that is read.
    DiskRead,
    /// The disk that is written.
    DiskWrite,
    /// The processors of the delegate.
    Processor,
    /// The way to the store and back.
    Network,
    /// The store: checking, writing, reading.
    Store,
    /// The rate that was asked for.
    RateLimit,
    /// No single part.
    Nothing,
}

impl Bound {
    /// Its name in JSON and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Bound::DiskRead => "disk-read",
            Bound::DiskWrite => "disk-write",
            Bound::Processor => "processor",
            Bound::Network => "network",
            Bound::Store => "store",
            Bound::RateLimit => "rate-limit",
            Bound::Nothing => "nothing",
        }
    }
}

/// A [`Bound`] with what makes it so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is.
    pub bound: Bound,
    /// The stage that shows it, where there is one.
    pub stage: Option<Stage>,
    /// Share of the wall time in which that part was what the others waited for, in thousandths.
    pub share: u16,
}

impl Verdict {
    /// The verdict in words.
    pub fn words(&self) -> String {
        match (self.bound, self.stage) {
            (Bound::DiskRead, _) => "bound by reading the disk".into(),
            (Bound::DiskWrite, _) => "bound by writing the disk".into(),
            (Bound::Processor, stage) => match stage.and_then(Stage::processing) {
                Some(what) => format!("bound by {what} (processor)"),
                None => "bound by the processor".into(),
            },
            (Bound::Network, _) => "bound by the network".into(),
            (Bound::Store, Some(Stage::Verify)) => "bound by the store (checking packs)".into(),
            (Bound::Store, _) => "bound by the store".into(),
            (Bound::RateLimit, _) => "bound by the limits on reading (asked for)".into(),
            (Bound::Nothing, _) => "bound by no single part".into(),
        }
    }
}

impl Account {
    /// A stage's account; `None` where it took no part.
    pub fn stage(&self, stage: Stage) -> Option<&StageAccount> {
        self.stages.iter().find(|one| one.stage == stage)
    }

    /// Takes in what was done after this, as of the next disk.
    pub fn add(&mut self, later: &Self) {
        self.wall = self.wall.saturating_add(later.wall);
        self.processors = self.processors.max(later.processors);
        for other in &later.stages {
            let at = self.stages.partition_point(|one| one.stage < other.stage);
            if self.stages.get(at).is_none_or(|one| one.stage != other.stage) {
                self.stages.insert(at, StageAccount::new(other.stage));
            }
            self.stages[at].add(other);
            self.stages[at].threads = self.stages[at].threads.max(other.threads);
            self.stages[at].places = self.stages[at].places.max(other.places);
        }
    }

    /// Processor time of all stages.
    pub fn cpu(&self) -> Duration {
        self.stages.iter().fold(Duration::ZERO, |sum, one| sum.saturating_add(one.cpu))
    }

    /// What this was bound by.
    ///
    /// Each part has a share of the wall time in which the others waited for it:
    ///
    /// - the disk, and every stage on the processor: its busy time by the number of its threads. Such a stage waits
    ///   when it has nothing to do, so being busy nearly always means that what is before it is blocked and what is
    ///   behind it is starved;
    /// - the rate limit: the time that the reader waited for it;
    /// - network and store: calls overlap with each other and with everything else, so that one of them is on its way
    ///   says little. What counts is how full their places were, or the time in which somebody had to wait: the packer
    ///   because every pack was on its way (an opener because its blocks were), and whoever needed an answer. Which of
    ///   the two it was follows from what the store says that it did;
    /// - the processors as a whole: where they are used up, every stage seems busy while it waits for one, and the
    ///   stage that took the most of them is named.
    ///
    /// The largest share names the verdict where it is at least [`BINDING_SHARE`] and [`BINDING_MARGIN`] times the next.
    pub fn verdict(&self) -> Verdict {
        let nothing = Verdict { bound: Bound::Nothing, stage: None, share: 0 };
        if self.wall.is_zero() {
            return nothing;
        }
        let used = permille(self.cpu(), self.wall.saturating_mul(u32::from(self.processors.max(1))));
        if used >= SATURATED_SHARE {
            return Verdict { bound: Bound::Processor, stage: self.hungriest(), share: used };
        }
        let mut parts = self.parts();
        parts.sort_by_key(|part| std::cmp::Reverse(part.share));
        let share = |at: usize| parts.get(at).map_or(0, |part| u32::from(part.share));
        match parts.first() {
            Some(first) if first.share >= BINDING_SHARE && share(0) * 100 >= share(1) * BINDING_MARGIN => {
                *first
            }
            Some(first) => Verdict { bound: Bound::Nothing, share: first.share, ..nothing },
            None => nothing,
        }
    }

    /// The parts that can bind, each with its share.
    fn parts(&self) -> Vec<Verdict> {
        let share = |stage, time: fn(&StageAccount) -> Duration| {
            self.stage(stage).map_or(0, |one| one.share(time(one), self.wall))
        };
        let busy = |stage| share(stage, |one| one.busy);
        let part = |bound, stage, share| Verdict { bound, stage: Some(stage), share };
        let mut parts = vec![
            part(Bound::DiskRead, Stage::Read, busy(Stage::Read)),
            part(Bound::DiskWrite, Stage::Write, busy(Stage::Write)),
            part(Bound::RateLimit, Stage::Read, share(Stage::Read, |one| one.held)),
        ];
        let processing = [Stage::Hash, Stage::Judge, Stage::Seal, Stage::Pack, Stage::Open];
        let processing = processing.into_iter();
        parts.extend(
            processing.map(|stage| part(Bound::Processor, stage, busy(stage))).max_by_key(|part| part.share),
        );
        let waited = share(Stage::Pack, |one| one.blocked)
            + share(Stage::Open, |one| one.starved)
            + share(Stage::Ask, |one| one.busy.saturating_add(one.blocked));
        let full = |stage| self.stage(stage).map_or(0, StageAccount::fullness);
        let waited = waited.max(full(Stage::Network)).max(full(Stage::Ask));
        parts.push(Verdict { share: waited.min(1000), ..self.far_part() });
        parts
    }

    /// Whose time calls were: the network's or the store's, by the same margin as for everything. One thread carries
    /// all of them: where it has no time left, the network is not what they wait for.
    fn far_part(&self) -> Verdict {
        let of = |stage, time: fn(&StageAccount) -> Duration| {
            self.stage(stage).map_or(Duration::ZERO, time).as_nanos()
        };
        let busy = |stage| of(stage, |one| one.busy);
        let network = busy(Stage::Network) + busy(Stage::Ask);
        let (verify, store) = (busy(Stage::Verify), busy(Stage::Store));
        let in_store = verify + store + of(Stage::Ask, |one| one.blocked);
        let exceeds =
            |one: u128, other: u128| one.saturating_mul(100) >= other.saturating_mul(BINDING_MARGIN.into());
        let carrier = self.stage(Stage::Network).map_or(Duration::ZERO, |one| one.cpu);
        let (bound, stage) = if exceeds(network, in_store) {
            let is_used_up = permille(carrier, self.wall) >= SATURATED_SHARE;
            (if is_used_up { Bound::Processor } else { Bound::Network }, Some(Stage::Network))
        } else if exceeds(in_store, network) {
            (Bound::Store, Some(if verify > store { Stage::Verify } else { Stage::Store }))
        } else {
            (Bound::Nothing, None)
        };
        Verdict { bound, stage, share: 0 }
    }

    /// The stage that took the most processor time, among those that a verdict can name.
    fn hungriest(&self) -> Option<Stage> {
        let processing = self.stages.iter().filter(|one| one.stage.processing().is_some());
        processing.max_by_key(|one| one.cpu).map(|one| one.stage)
    }
}

/// The accounts of all passes as one.
pub fn sum<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> Account {
    accounts.into_iter().fold(Account::default(), |mut sum, one| {
        sum.add(one);
        sum
    })
}

/// `part` of `whole` in thousandths, at most 1000; 0 where there is no whole.
fn permille(part: Duration, whole: Duration) -> u16 {
    let share = (part.as_nanos().saturating_mul(1000)).checked_div(whole.as_nanos()).unwrap_or(0);
    u16::try_from(share.min(1000)).unwrap_or(1000)
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
