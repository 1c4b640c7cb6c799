//! Not faster than allowed.

use blocks::ByteCount;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Holds back who asks, so that on the average no more than a limit is moved.
pub(super) struct Pace {
    bytes_per_second: Option<u64>,
    /// When the next bytes may go.
    next: Mutex<Instant>,
}

impl Pace {
    pub(super) fn new(limit: Option<ByteCount>) -> Self {
        Self { bytes_per_second: limit.map(|limit| limit.get().max(1)), next: Mutex::new(Instant::now()) }
    }

    /// Waits until `bytes` may be moved. They go at once then: whoever watches sees one pack, and a pause.
    pub(super) fn wait(&self, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let now = Instant::now();
        let due = {
            let mut next = self.next.lock().expect("no panic while it is locked");
            let due = (*next).max(now);
            *next = due + time_for(bytes, rate);
            due
        };
        std::thread::sleep(due.saturating_duration_since(now));
    }
}

fn time_for(bytes: u64, rate: u64) -> Duration {
    let whole = Duration::from_secs(bytes / rate);
    let nanos = u128::from(bytes % rate) * 1_000_000_000 / u128::from(rate);
    whole + Duration::from_nanos(u64::try_from(nanos).expect("less than a second"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_as_long_as_the_rate_says() {
        assert_eq!(time_for(0, 7), Duration::ZERO);
        assert_eq!(time_for(50 << 20, 50 << 20), Duration::from_secs(1));
        assert_eq!(time_for(3, 2), Duration::from_millis(1500));
        assert_eq!(time_for(u64::MAX, u64::MAX), Duration::from_secs(1));
        assert!(time_for(u64::MAX - 1, u64::MAX) < Duration::from_secs(1));
    }

    #[test]
    fn who_asks_again_waits_for_what_went_before_and_without_a_limit_nobody() {
        let pace = Pace::new(Some(ByteCount::new(1000)));
        let began = Instant::now();
        pace.wait(100);
        pace.wait(50);
        pace.wait(1);
        assert!(began.elapsed() >= Duration::from_millis(150));
        Pace::new(None).wait(u64::MAX);
    }
}
