//! The adaptive reading rate: as fast as the source's reads stay below a latency, and never below a floor.
//!
//! Production and backup share a disk. When it has more to do than it can, every read waits longer, theirs and ours: so
//! the latency of our own reads tells how they fare. Windows of a quarter of a second are judged by the 90th percentile:
//! a mean hides the tail that users feel, a maximum is noise. Above the target the rate is cut to a half (far above) or
//! to seven tenths; below it, and where the rate was what held the reader back, it grows by a fixed step, and at the
//! start it doubles. Additive growth and multiplicative cuts are what lets several delegates on one disk come to a fair
//! share without knowing of each other.
//!
//! Reads that began before a cut say nothing about the rate after it and are passed over. The clock comes in as an
//! argument.

use blocks::ByteCount;
use std::time::Duration;

/// Windows are no shorter: a few reads at the slowest rate, and time for a cut to show.
const WINDOW: Duration = Duration::from_millis(250);
/// Nor do they have fewer reads than this, so that one odd read is no percentile.
const WINDOW_READS: usize = 8;
/// But a window does not wait longer than this for them: reads that slow are answer enough.
const LONGEST_WINDOW: Duration = Duration::from_secs(2);
/// Latencies that are kept of a window; of more the first ones count.
const MOST_READS: usize = 256;
/// Where it starts: no burst for a disk array, and a few windows away from all that it has.
const START: u64 = 32 << 20;
/// Growth from window to window.
const STEP: u64 = 2 << 20;
/// No disk is faster; keeps the sums small.
const CEILING: u64 = 1 << 40;

/// A read that was answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// When it began.
    pub(super) began: Duration,
    /// It took at least so long.
    pub(super) at_least: Duration,
    /// And at most so long: nobody looked for its answer in between.
    pub(super) at_most: Duration,
    /// Its bytes.
    pub(super) size: ByteCount,
}

/// The rate, and what it follows.
#[derive(Debug)]
pub(super) struct Throttle {
    target: Duration,
    floor: u64,
    rate: u64,
    /// Until the first cut the rate doubles.
    is_starting: bool,
    window: Window,
    /// Reads that began before are not looked at.
    since: Duration,
    account: Account,
}

/// What the rate went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// How often it was cut.
    pub(super) cuts: u32,
    /// The lowest that it came to; none where it was not cut.
    pub(super) lowest: Option<ByteCount>,
    /// The highest latency, as the 90th percentile of a window; none before the first window.
    pub(super) peak: Option<Duration>,
}

#[derive(Debug)]
struct Window {
    began: Option<Duration>,
    latencies: Vec<Duration>,
    bytes: u64,
}

impl Throttle {
    /// Keeps the latency of reads at `target` without going below `floor` bytes per second.
    pub(super) fn new(target: Duration, floor: ByteCount) -> Self {
        let floor = floor.get().clamp(1, CEILING);
        let rate = START.max(floor);
        let window = Window { began: None, latencies: Vec::with_capacity(MOST_READS), bytes: 0 };
        Self {
            target,
            floor,
            rate,
            is_starting: true,
            window,
            since: Duration::ZERO,
            account: Account::default(),
        }
    }

    /// Bytes per second that are allowed now.
    pub(super) fn rate(&self) -> ByteCount {
        ByteCount::new(self.rate)
    }

    /// What it went through since the last time this was asked.
    pub(super) fn take_account(&mut self) -> Account {
        std::mem::take(&mut self.account)
    }

    /// Takes in a read that was answered by `now`.
    pub(super) fn observe(&mut self, sample: Sample, now: Duration) {
        // One that is at most as slow as allowed is a good one, and one that is slower at the least is a bad one. Of
        // another, whose answer may have waited for the reader, nothing is known.
        let latency = match () {
            () if sample.at_most <= self.target => Some(sample.at_most),
            () if sample.at_least > self.target => Some(sample.at_least),
            () => None,
        };
        let window = &mut self.window;
        let began = *window.began.get_or_insert(self.since.max(sample.began));
        window.bytes = window.bytes.saturating_add(sample.size.get());
        if let Some(latency) = latency.filter(|_| sample.began >= self.since)
            && window.latencies.len() < MOST_READS
        {
            window.latencies.push(latency);
        }
        let open_for = now.saturating_sub(began);
        let count = window.latencies.len();
        let is_full = open_for >= WINDOW && count >= WINDOW_READS;
        if is_full || (open_for >= LONGEST_WINDOW && count > 0) {
            self.close(now, open_for);
        }
    }

    fn close(&mut self, now: Duration, open_for: Duration) {
        let achieved = per_second(self.window.bytes, open_for);
        let latency = percentile_90(&mut self.window.latencies);
        self.account.peak = self.account.peak.max(Some(latency));
        if latency > self.target {
            // What was read, not what was allowed: a cut of a rate that nobody used would change nothing.
            let from = self.rate.min(achieved.max(self.floor));
            let cut = if latency > self.target * 2 { from / 2 } else { from / 10 * 7 };
            self.rate = cut.max(self.floor);
            let now_allowed = self.rate();
            self.account.lowest =
                Some(self.account.lowest.map_or(now_allowed, |lowest| lowest.min(now_allowed)));
            self.account.cuts = self.account.cuts.saturating_add(1);
            self.is_starting = false;
            self.since = now;
        } else if achieved >= self.rate / 2 {
            // A rate that is not used up says nothing about a higher one.
            let grown = if self.is_starting { self.rate.saturating_mul(2) } else { self.rate + STEP };
            self.rate = grown.min(CEILING);
        }
        self.window.began = Some(now);
        self.window.latencies.clear();
        self.window.bytes = 0;
    }

    /// Begins a new window: another disk is read.
    pub(super) fn start_anew(&mut self) {
        self.window.began = None;
        self.window.latencies.clear();
        self.window.bytes = 0;
    }
}

/// Bytes in a time, as a rate.
fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    u64::try_from(rate).unwrap_or(u64::MAX).min(CEILING)
}

/// The latency that nine of ten stay within. There is at least one.
fn percentile_90(latencies: &mut [Duration]) -> Duration {
    latencies.sort_unstable();
    let at = (latencies.len() * 9).div_ceil(10).saturating_sub(1);
    latencies.get(at).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    impl Sample {
        pub(crate) fn exact(began: Duration, latency: Duration, size: ByteCount) -> Self {
            Self { began, at_least: latency, at_most: latency, size }
        }
    }

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// Reads of 256 KiB that follow each other at the throttle's own rate, for so long.
    fn feed(throttle: &mut Throttle, now: &mut Duration, time: Duration, latency: Duration) {
        let until = *now + time;
        while *now < until {
            let size = ByteCount::new(256 << 10);
            let sample = Sample::exact(*now, latency, size);
            *now +=
                Duration::from_nanos(size.get() * 1_000_000_000 / throttle.rate().get()).max(latency / 32);
            throttle.observe(sample, *now);
        }
    }

    #[test]
    fn it_doubles_at_the_start_and_grows_by_steps_after_a_cut() {
        let mut throttle = Throttle::new(ms(20), ByteCount::new(4 * MIB));
        let mut now = Duration::ZERO;
        feed(&mut throttle, &mut now, ms(1200), ms(2));
        assert!(throttle.rate().get() >= 4 * START, "{}", throttle.rate());
        assert_eq!(throttle.account.cuts, 0);
        let fast = throttle.rate().get();
        while throttle.account.cuts == 0 {
            feed(&mut throttle, &mut now, ms(50), ms(30));
        }
        let cut = throttle.rate().get();
        assert!(cut < fast * 3 / 4, "{cut} of {fast}");
        feed(&mut throttle, &mut now, ms(2200), ms(2));
        let grown = throttle.rate().get();
        assert!(grown > cut && grown <= cut + 9 * STEP, "{grown} after {cut}");
    }

    #[test]
    fn it_never_goes_below_its_floor() {
        let floor = 4 * MIB;
        let mut throttle = Throttle::new(ms(5), ByteCount::new(floor));
        let mut now = Duration::ZERO;
        feed(&mut throttle, &mut now, Duration::from_secs(60), ms(400));
        let account = throttle.take_account();
        assert_eq!((throttle.rate().get(), account.lowest), (floor, Some(ByteCount::new(floor))));
        assert!(account.cuts > 2);
        assert_eq!(account.peak, Some(ms(400)));
        // A floor above the start is where it starts.
        assert_eq!(Throttle::new(ms(5), ByteCount::new(90 * MIB)).rate().get(), 90 * MIB);
    }

    #[test]
    fn one_odd_read_among_many_changes_nothing() {
        let mut throttle = Throttle::new(ms(20), ByteCount::new(4 * MIB));
        let mut now = Duration::ZERO;
        for read in 0..400 {
            let latency = if read % 20 == 7 { ms(500) } else { ms(1) };
            let sample = Sample::exact(now, latency, ByteCount::new(256 << 10));
            now += ms(8);
            throttle.observe(sample, now);
        }
        assert_eq!(throttle.account.cuts, 0);
    }

    #[test]
    fn what_was_found_late_is_no_slow_read() {
        let mut throttle = Throttle::new(ms(20), ByteCount::new(4 * MIB));
        let mut now = Duration::ZERO;
        for _ in 0..1000 {
            let size = ByteCount::new(256 << 10);
            let sample = Sample { began: now, at_least: ms(1), at_most: ms(900), size };
            now += ms(8);
            throttle.observe(sample, now);
        }
        assert_eq!((throttle.account.cuts, throttle.rate().get()), (0, START));
    }

    #[test]
    fn reads_of_before_a_cut_do_not_cut_again() {
        let mut throttle = Throttle::new(ms(10), ByteCount::new(MIB));
        let mut now = Duration::ZERO;
        while throttle.account.cuts == 0 {
            feed(&mut throttle, &mut now, ms(10), ms(100));
        }
        let (rate, cut_at) = (throttle.rate(), now);
        // 32 reads were in flight at the cut, and come in over seconds.
        for _ in 0..32 {
            now += ms(100);
            let size = ByteCount::new(256 << 10);
            throttle.observe(Sample::exact(ms(1), now, size), now);
        }
        assert_eq!((throttle.account.cuts, throttle.rate()), (1, rate), "cut at {cut_at:?}");
    }
}
