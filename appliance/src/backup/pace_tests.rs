//! The buckets by themselves, and the adaptive rate against a model of a disk that others use too.

use super::*;
use blocks::{BLOCK_SIZE, ChangedBlocks, ReadPlan};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::VecDeque;

const MIB: u64 = 1 << 20;
const READ: u64 = 256 << 10;

/// Reads a whole disk at a rate, sleeping as told and in addition as `naps` say; gives the start and size of each
/// read in nanoseconds and bytes.
fn starts(rate: u64, disk: ByteCount, read_size: u64, naps: &[u64]) -> Vec<(u128, u64)> {
    let changed = ChangedBlocks::all(disk).expect("small");
    let clock = Cell::new(Duration::from_secs(5));
    let mut pace = Pace::new(Some(ByteCount::new(rate)), None);
    let mut plan = pace.slow(ReadPlan::new(&changed, disk, ByteCount::new(read_size)), || clock.get());
    let mut naps = naps.iter();
    let mut found = Vec::new();
    while let Some(pause) = plan.pause() {
        clock.set(clock.get() + pause);
        found.extend(plan.next().map(|read| (clock.get().as_nanos(), read.size.get())));
        clock.set(clock.get() + Duration::from_millis(naps.next().copied().unwrap_or(0)));
    }
    found
}

#[test]
fn a_disk_takes_its_size_by_the_rate_less_the_first_second() {
    let found = starts(MIB, ByteCount::new(20 * MIB), MIB / 4, &[]);
    assert_eq!(found.len(), 80);
    // The first 4 are the full bucket; the 80th starts when the 79 before it are paid for.
    let took = found[79].0 - found[0].0;
    assert_eq!(took, 75 * 250_000_000);
}

#[test]
fn no_rate_and_a_rate_of_0_are_no_limit() {
    for rate in [None, Some(ByteCount::new(0))] {
        let mut pace = Pace::new(rate, None);
        pace.pay(ByteCount::new(u64::MAX), Duration::ZERO);
        assert_eq!(pace.wait(Duration::ZERO), (Duration::ZERO, false));
    }
}

#[test]
fn time_held_back_is_counted_and_other_delays_are_not() {
    let disk = ByteCount::new(2 * MIB);
    let changed = ChangedBlocks::all(disk).expect("small");
    let clock = Cell::new(Duration::from_secs(5));
    let mut pace = Pace::new(Some(ByteCount::new(MIB)), None);
    let mut plan = pace.slow(ReadPlan::new(&changed, disk, ByteCount::new(MIB)), || clock.get());
    assert!(plan.next().is_some() && plan.next().is_some(), "a full bucket, and not in debt after it");
    let changed = ChangedBlocks::all(disk).expect("small");
    let mut plan = pace.slow(ReadPlan::new(&changed, disk, ByteCount::new(MIB)), || clock.get());
    assert!(plan.next().is_none(), "in debt for a second");
    clock.set(clock.get() + Duration::from_secs(9));
    assert!(plan.next().is_some());
    let account = pace.take_account();
    assert_eq!((account.limited_ms, account.throttled_ms), (1000, 0));
    assert_eq!(pace.take_account(), Pacing::default());
}

/// A disk that answers one read after the other, each in the time that `service` says for the moment.
struct Model<S: Fn(Duration) -> Duration> {
    service: S,
    clock: Duration,
    free_at: Duration,
    in_flight: VecDeque<(Duration, Duration, u64)>,
}

/// What came of a stretch of reading: bytes, and the latency of each read.
#[derive(Default)]
struct Stretch {
    bytes: u64,
    latencies: Vec<Duration>,
}

impl Stretch {
    fn rate(&self, time: Duration) -> u64 {
        self.bytes * 1000 / time.as_millis() as u64
    }

    fn share_above(&self, target: Duration) -> f64 {
        let above = self.latencies.iter().filter(|latency| **latency > target).count();
        above as f64 / self.latencies.len().max(1) as f64
    }
}

impl<S: Fn(Duration) -> Duration> Model<S> {
    fn new(service: S) -> Self {
        Self { service, clock: Duration::ZERO, free_at: Duration::ZERO, in_flight: VecDeque::new() }
    }

    /// Reads for so long with as many reads in flight as the engine has.
    fn read_for(&mut self, pace: &mut Pace, time: Duration) -> Stretch {
        let until = self.clock + time;
        let mut stretch = Stretch::default();
        while self.clock < until {
            while self.in_flight.len() < diskio::QUEUE_DEPTH && pace.may_start(self.clock) {
                pace.pay(ByteCount::new(READ), self.clock);
                let begins = self.free_at.max(self.clock);
                self.free_at = begins + (self.service)(begins);
                self.in_flight.push_back((self.clock, self.free_at, READ));
            }
            let (pause, _) = pace.wait(self.clock);
            let resumes = (self.in_flight.len() < diskio::QUEUE_DEPTH).then_some(self.clock + pause);
            let answered = self.in_flight.front().map(|(_, done, _)| *done);
            self.clock = resumes.into_iter().chain(answered).min().expect("one of the two");
            while let Some((began, done, size)) =
                self.in_flight.pop_front_if(|(_, done, _)| *done <= self.clock)
            {
                stretch.bytes += size;
                stretch.latencies.push(done - began);
                if let Some((throttle, _)) = &mut pace.throttle {
                    throttle.observe(Sample::exact(began, done - began, ByteCount::new(size)), self.clock);
                }
            }
        }
        stretch
    }
}

fn adaptive(latency_ms: u32, floor: u64, limit: Option<u64>) -> Pace {
    let throttle = wire::Throttle { latency_ms, floor: ByteCount::new(floor) };
    Pace::new(limit.map(ByteCount::new), Some(throttle))
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// 250 MiB/s for us while nobody else reads; a tenth of it while others do.
fn busy_from_60_to_120(now: Duration) -> Duration {
    if now >= seconds(60) && now < seconds(120) {
        Duration::from_millis(10)
    } else {
        Duration::from_millis(1)
    }
}

#[test]
fn it_stays_below_the_target_gives_way_to_others_and_comes_back_when_they_are_gone() {
    let target = Duration::from_millis(20);
    let mut pace = adaptive(20, 4 * MIB, None);
    let mut disk = Model::new(busy_from_60_to_120);
    disk.read_for(&mut pace, seconds(20));
    let alone = disk.read_for(&mut pace, seconds(40));
    disk.read_for(&mut pace, seconds(5));
    let beside = disk.read_for(&mut pace, seconds(55));
    disk.read_for(&mut pace, seconds(40));
    let again = disk.read_for(&mut pace, seconds(20));
    // Without a throttle 32 reads in flight wait 32 and 320 ms.
    for (stretch, what) in [(&alone, "alone"), (&beside, "beside"), (&again, "again")] {
        assert!(stretch.share_above(target) < 0.15, "{what}: {}", stretch.share_above(target));
    }
    assert!(alone.rate(seconds(40)) > 125 * MIB, "{}", alone.rate(seconds(40)) / MIB);
    assert!((8 * MIB..26 * MIB).contains(&beside.rate(seconds(55))), "{}", beside.rate(seconds(55)) / MIB);
    assert!(again.rate(seconds(20)) > 125 * MIB, "{}", again.rate(seconds(20)) / MIB);
    let account = pace.take_account();
    assert!(account.cuts > 0 && account.throttled_ms > 1000, "{account:?}");
}

#[test]
fn of_the_fixed_limit_and_the_adaptive_rate_the_lower_one_wins() {
    let mut disk = Model::new(|_| Duration::from_millis(1));
    let mut pace = adaptive(20, 4 * MIB, Some(30 * MIB));
    disk.read_for(&mut pace, seconds(10));
    let limited = disk.read_for(&mut pace, seconds(20)).rate(seconds(20));
    assert!((29 * MIB..=31 * MIB).contains(&limited), "{}", limited / MIB);
    // 12.5 MiB/s is all that this one has; a limit above it changes nothing.
    let mut disk = Model::new(|_| Duration::from_millis(20));
    let mut pace = adaptive(50, MIB, Some(30 * MIB));
    disk.read_for(&mut pace, seconds(20));
    let throttled = disk.read_for(&mut pace, seconds(40));
    assert!(throttled.share_above(Duration::from_millis(50)) < 0.3);
    assert!(throttled.rate(seconds(40)) < 13 * MIB);
    assert!(pace.take_account().throttled_ms > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// However slow the disk, and however it comes and goes: what is allowed never falls below the floor, and what is
    /// read follows as far as the disk gives it.
    #[test]
    fn it_never_reads_slower_than_the_floor_where_the_disk_gives_it(
        service_us in 500u64..30_000,
        others in 1u64..20,
        period_s in 2u64..20,
        latency_ms in 1u32..200,
        floor in 256 << 10..16 * MIB,
    ) {
        let service = Duration::from_micros(service_us);
        let mut disk = Model::new(|now: Duration| {
            if (now.as_secs() / period_s).is_multiple_of(2) { service } else { service * u32::try_from(others).expect("small") }
        });
        let mut pace = adaptive(latency_ms, floor, None);
        disk.read_for(&mut pace, seconds(10));
        let rate = disk.read_for(&mut pace, seconds(40)).rate(seconds(40));
        let slowest = READ * 1_000_000 / (service_us * others);
        prop_assert!(rate >= floor.min(slowest) * 9 / 10, "{} below {}", rate, floor.min(slowest));
        prop_assert!(pace.throttle.as_ref().expect("set").0.rate().get() >= floor);
    }

    /// In no window more than its length and a second are read, and one read; and whatever the pauses, the reading
    /// never falls behind what is allowed by more than the pauses themselves.
    #[test]
    fn no_window_has_more_than_its_share_and_nothing_is_lost(
        rate in BLOCK_SIZE..8 << 20,
        size in 1u64..200 * BLOCK_SIZE,
        read_blocks in 1u64..5,
        naps in proptest::collection::vec(0u64..3000, 0..40),
    ) {
        let found = starts(rate, ByteCount::new(size), read_blocks * BLOCK_SIZE, &naps);
        prop_assert_eq!(found.iter().map(|(_, size)| size).sum::<u64>(), size);
        for first in 0..found.len() {
            let mut bytes = 0;
            for (at, size) in &found[first..] {
                bytes += size;
                let allowed = u128::from(rate) * (at - found[first].0 + 1_000_000_000) / 1_000_000_000;
                prop_assert!(u128::from(bytes) <= allowed + u128::from(read_blocks * BLOCK_SIZE));
            }
        }
        let took = found[found.len() - 1].0 - found[0].0;
        let slowest = u128::from(size) * 1_000_000_000 / u128::from(rate)
            + u128::from(naps.iter().sum::<u64>()) * 1_000_000 + found.len() as u128;
        prop_assert!(took <= slowest, "{} over {}", took, slowest);
    }
}
