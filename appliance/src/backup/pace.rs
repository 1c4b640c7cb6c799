//! The reading rate: a token bucket that all reads of an order share.
//!
//! It holds one second's worth, and starts full. A read may start while the bucket is not in debt, and is then paid
//! for in full, however large: so in any `t` seconds at most `t + 1` seconds' worth and one read are begun, and the
//! rate holds in the long run. The clock comes in as an argument.

use blocks::{ByteCount, Read};
use std::iter::Peekable;
use std::time::Duration;

/// What the bucket holds.
const BURST: Duration = Duration::from_secs(1);

/// The bucket.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes per second; none is no limit.
    rate: Option<ByteCount>,
    /// Up to this moment everything is paid for. Before now, what lies between are tokens; after, debt.
    paid_until: Duration,
}

impl Pace {
    /// A rate of `None` or 0 is no limit.
    pub(super) fn new(rate: Option<ByteCount>) -> Self {
        Self { rate: rate.filter(|rate| rate.get() > 0), paid_until: Duration::ZERO }
    }

    /// How long until a read may start.
    fn wait(&self, now: Duration) -> Duration {
        self.paid_until.saturating_sub(now)
    }

    /// Takes the tokens of a read that starts now.
    fn pay(&mut self, size: ByteCount, now: Duration) {
        let Some(rate) = self.rate else { return };
        let nanoseconds = (u128::from(size.get()) * 1_000_000_000).div_ceil(u128::from(rate.get()));
        let price = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.paid_until = self.paid_until.max(now.saturating_sub(BURST)).saturating_add(price);
    }

    /// The reads of a plan, no faster than allowed by the clock `now`.
    pub(super) fn slow<I: Iterator<Item = Read>, C: Fn() -> Duration>(
        &mut self,
        plan: I,
        now: C,
    ) -> Paced<'_, I, C> {
        Paced { pace: self, plan: plan.peekable(), now }
    }
}

/// A plan that pauses: it gives `None` while a read would be too early, and goes on later.
pub(super) struct Paced<'p, I: Iterator<Item = Read>, C> {
    pace: &'p mut Pace,
    plan: Peekable<I>,
    now: C,
}

impl<I: Iterator<Item = Read>, C: Fn() -> Duration> Paced<'_, I, C> {
    /// How long the plan pauses; `None` at its end.
    pub(super) fn pause(&mut self) -> Option<Duration> {
        self.plan.peek().map(|_| self.pace.wait((self.now)()))
    }
}

impl<I: Iterator<Item = Read>, C: Fn() -> Duration> Iterator for Paced<'_, I, C> {
    type Item = Read;

    fn next(&mut self) -> Option<Read> {
        let now = (self.now)();
        if !self.pace.wait(now).is_zero() {
            return None;
        }
        let read = self.plan.next()?;
        self.pace.pay(read.size, now);
        Some(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{BLOCK_SIZE, ChangedBlocks, ReadPlan};
    use proptest::prelude::*;
    use std::cell::Cell;

    /// Reads a whole disk at a rate, sleeping as told and in addition as `naps` say; gives the start and size of each
    /// read in nanoseconds and bytes.
    fn starts(rate: u64, disk: ByteCount, read_size: u64, naps: &[u64]) -> Vec<(u128, u64)> {
        let changed = ChangedBlocks::all(disk).expect("small");
        let clock = Cell::new(Duration::from_secs(5));
        let mut pace = Pace::new(Some(ByteCount::new(rate)));
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
        let mib = 1 << 20;
        let found = starts(mib, ByteCount::new(20 * mib), mib / 4, &[]);
        assert_eq!(found.len(), 80);
        // The first 4 are the full bucket; the 80th starts when the 79 before it are paid for.
        let took = found[79].0 - found[0].0;
        assert_eq!(took, 75 * 250_000_000);
    }

    #[test]
    fn no_rate_and_a_rate_of_0_are_no_limit() {
        for rate in [None, Some(ByteCount::new(0))] {
            let mut pace = Pace::new(rate);
            pace.pay(ByteCount::new(u64::MAX), Duration::ZERO);
            assert_eq!(pace.wait(Duration::ZERO), Duration::ZERO);
        }
    }

    proptest! {
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
}
