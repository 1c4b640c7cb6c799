//! What the store says of the time that it spent on a call: the header `Server-Timing`, as the W3C's recommendation of
//! that name has it: `receive;dur=1.250, wait;dur=0.000, work;dur=20.125, write;dur=4.500`, in milliseconds.
//!
//! A header and no part of the answers: so it is the same for every call, raw ones too.

use std::time::Duration;

/// Name of the header.
pub const HEADER_SPENT: &str = "server-timing";

/// Longest header that is read.
const MAX_SIZE: usize = 512;

/// How long the store spent on a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Waiting for the bytes of the call: the network's time.
    pub receive: Duration,
    /// Waiting for its turn, before the bytes are read and after.
    pub wait: Duration,
    /// Checking a pack; looking up and reading for other calls.
    pub work: Duration,
    /// Writing and syncing.
    pub write: Duration,
}

impl Spent {
    /// What was the store's, and not the network's.
    pub fn in_store(&self) -> Duration {
        self.wait.saturating_add(self.work).saturating_add(self.write)
    }

    /// The header's value; times are rounded down to a microsecond.
    pub fn to_header(&self) -> String {
        let part = |name: &str, time: Duration| {
            let micros = time.as_micros();
            format!("{name};dur={}.{:03}", micros / 1000, micros % 1000)
        };
        [
            part("receive", self.receive),
            part("wait", self.wait),
            part("work", self.work),
            part("write", self.write),
        ]
        .join(", ")
    }

    /// From a header's value. What is not known or not readable counts as no time: only a report rests on it.
    pub fn from_header(value: &str) -> Self {
        let mut spent = Self::default();
        if value.len() > MAX_SIZE {
            return spent;
        }
        for metric in value.split(',') {
            let mut parts = metric.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let time = parts.find_map(|part| part.strip_prefix("dur=")).and_then(milliseconds);
            let place = match name {
                "receive" => &mut spent.receive,
                "wait" => &mut spent.wait,
                "work" => &mut spent.work,
                "write" => &mut spent.write,
                _ => continue,
            };
            *place = time.unwrap_or_default();
        }
        spent
    }
}

/// Milliseconds with at most three digits behind the point; further ones are dropped.
fn milliseconds(text: &str) -> Option<Duration> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let micros: u64 = format!("{:0<3}", fraction.get(..3).unwrap_or(fraction)).parse().ok()?;
    whole.checked_mul(1000)?.checked_add(micros).map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn golden_header() {
        let spent = Spent {
            receive: Duration::from_micros(1250),
            wait: Duration::ZERO,
            work: Duration::from_micros(20_125),
            write: Duration::from_secs(4),
        };
        let text = "receive;dur=1.250, wait;dur=0.000, work;dur=20.125, write;dur=4000.000";
        assert_eq!(spent.to_header(), text);
        assert_eq!(Spent::from_header(text), spent);
        assert_eq!(spent.in_store(), Duration::from_micros(4_020_125));
    }

    #[test]
    fn what_others_write_in_that_header_is_passed_over() {
        let found =
            Spent::from_header(r#"cache;desc="Cache Read";dur=23.2, work;desc=x;dur=5, write, wait;dur=-1"#);
        assert_eq!(found, Spent { work: Duration::from_millis(5), ..Spent::default() });
        assert_eq!(Spent::from_header(&"work;dur=1,".repeat(100)), Spent::default());
    }

    proptest! {
        #[test]
        fn headers_round_trip(micros in any::<[u32; 4]>()) {
            let [receive, wait, work, write] = micros.map(|micros| Duration::from_micros(micros.into()));
            let spent = Spent { receive, wait, work, write };
            prop_assert_eq!(Spent::from_header(&spent.to_header()), spent);
        }

        #[test]
        fn no_header_panics(text in ".*", digits in "[0-9.]*") {
            let _ = Spent::from_header(&text);
            let _ = Spent::from_header(&format!("work;dur={digits}"));
        }
    }
}
