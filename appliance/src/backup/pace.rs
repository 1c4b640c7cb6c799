//! The reading rate: token buckets that all reads of an order share, one for the fixed limit and one for the adaptive
//! rate. A read starts when both allow it, so the lower rate wins.
//!
//! A bucket starts full. A read may start while it is not in debt, and is then paid for in full, however large: so of
//! the fixed limit in any `t` seconds at most `t + 1` seconds' worth and one read are begun, and the rate holds in the long
//! run. The adaptive rate has a small bucket: a burst is what it is there to prevent. The clock comes in as an argument.

use super::throttle::{Sample, Throttle};
use blocks::{ByteCount, Read};
use diskio::Filled;
use std::iter::Peekable;
use std::time::Duration;
use wire::Pacing;

/// What the bucket of the fixed limit holds.
const BURST: Duration = Duration::from_secs(1);
/// And that of the adaptive rate: a few reads, and the jitter of whoever sleeps.
const SMALL_BURST: Duration = Duration::from_millis(50);

/// Tokens of a rate that may change.
#[derive(Debug)]
struct Bucket {
    /// What it holds when full.
    burst: Duration,
    /// Up to this moment everything is paid for. Before now, what lies between are tokens; after, debt.
    paid_until: Duration,
}

impl Bucket {
    fn new(burst: Duration) -> Self {
        Self { burst, paid_until: Duration::ZERO }
    }

    /// How long until a read may start.
    fn wait(&self, now: Duration) -> Duration {
        self.paid_until.saturating_sub(now)
    }

    /// Takes the tokens of a read that starts now.
    fn pay(&mut self, size: ByteCount, rate: ByteCount, now: Duration) {
        let nanoseconds = (u128::from(size.get()) * 1_000_000_000).div_ceil(u128::from(rate.get().max(1)));
        let price = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.paid_until = self.paid_until.max(now.saturating_sub(self.burst)).saturating_add(price);
    }
}

/// The rates of an order.
#[derive(Debug)]
pub(super) struct Pace {
    /// The fixed limit in bytes per second.
    limit: Option<(ByteCount, Bucket)>,
    /// The adaptive rate.
    throttle: Option<(Throttle, Bucket)>,
    /// Since when a read is held back, for how long that was necessary, and whether by the adaptive rate.
    held: Option<(Duration, Duration, bool)>,
    /// Held back by the fixed limit, and by the adaptive rate.
    limited: Duration,
    throttled: Duration,
    /// First and last sign of reading.
    span: Option<(Duration, Duration)>,
}

impl Pace {
    /// A limit of `None` or 0 is none.
    pub(super) fn new(limit: Option<ByteCount>, throttle: Option<wire::Throttle>) -> Self {
        let limit = limit.filter(|rate| rate.get() > 0).map(|rate| (rate, Bucket::new(BURST)));
        let throttle = throttle.map(|throttle| {
            let target = Duration::from_millis(u64::from(throttle.latency_ms));
            (Throttle::new(target, throttle.floor), Bucket::new(SMALL_BURST))
        });
        Self { limit, throttle, held: None, limited: Duration::ZERO, throttled: Duration::ZERO, span: None }
    }

    /// How long until a read may start, and whether it is the adaptive rate that makes it wait.
    fn wait(&self, now: Duration) -> (Duration, bool) {
        let limit = self.limit.as_ref().map_or(Duration::ZERO, |(_, bucket)| bucket.wait(now));
        let throttle = self.throttle.as_ref().map_or(Duration::ZERO, |(_, bucket)| bucket.wait(now));
        (limit.max(throttle), throttle > limit)
    }

    /// Whether a read may start now; notes since when not.
    fn may_start(&mut self, now: Duration) -> bool {
        let (wait, by_throttle) = self.wait(now);
        if !wait.is_zero() {
            self.held.get_or_insert((now, wait, by_throttle));
            return false;
        }
        if let Some((since, wait, by_throttle)) = self.held.take() {
            // Whoever came back later than necessary was busy with something else.
            let held = wait.min(now.saturating_sub(since));
            let sum = if by_throttle { &mut self.throttled } else { &mut self.limited };
            *sum = sum.saturating_add(held);
        }
        true
    }

    fn pay(&mut self, size: ByteCount, now: Duration) {
        self.span.get_or_insert((now, now));
        if let Some((rate, bucket)) = &mut self.limit {
            bucket.pay(size, *rate, now);
        }
        if let Some((throttle, bucket)) = &mut self.throttle {
            bucket.pay(size, throttle.rate(), now);
        }
    }

    /// Takes in a read that was answered by `now`.
    fn observe(&mut self, filled: &Filled, now: Duration) {
        if let Some((_, last)) = &mut self.span {
            *last = now;
        }
        if let (Some((throttle, _)), Some(timing)) = (&mut self.throttle, filled.timing) {
            let diskio::Timing { began, at_least, at_most } = timing;
            throttle.observe(Sample { began, at_least, at_most, size: filled.read.size }, now);
        }
    }

    /// What came of it since the last time this was asked. The rate itself goes on from disk to disk.
    pub(super) fn take_account(&mut self) -> Pacing {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let (first, last) = self.span.take().unwrap_or_default();
        let throttle = self.throttle.as_mut().map(|(throttle, _)| throttle);
        let throttled = throttle.map(Throttle::take_account).unwrap_or_default();
        Pacing {
            reading_ms: ms(last.saturating_sub(first)),
            limited_ms: ms(std::mem::take(&mut self.limited)),
            throttled_ms: ms(std::mem::take(&mut self.throttled)),
            cuts: throttled.cuts,
            lowest_rate: throttled.lowest,
            peak_latency_us: throttled.peak.map(|peak| u64::try_from(peak.as_micros()).unwrap_or(u64::MAX)),
        }
    }

    /// The reads of a plan, no faster than allowed by the clock `now`.
    pub(super) fn slow<I: Iterator<Item = Read>, C: Fn() -> Duration>(
        &mut self,
        plan: I,
        now: C,
    ) -> Paced<'_, I, C> {
        if let Some((throttle, _)) = &mut self.throttle {
            throttle.start_anew();
        }
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
        self.plan.peek().map(|_| self.pace.wait((self.now)()).0)
    }

    /// Takes in a read that was answered.
    pub(super) fn observe(&mut self, filled: &Filled) {
        self.pace.observe(filled, (self.now)());
    }
}

impl<I: Iterator<Item = Read>, C: Fn() -> Duration> Iterator for Paced<'_, I, C> {
    type Item = Read;

    fn next(&mut self) -> Option<Read> {
        let now = (self.now)();
        self.plan.peek()?;
        if !self.pace.may_start(now) {
            return None;
        }
        let read = self.plan.next()?;
        self.pace.pay(read.size, now);
        Some(read)
    }
}

#[cfg(test)]
#[path = "pace_tests.rs"]
mod tests;
