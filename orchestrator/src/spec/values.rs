//! Values that people write as text: sizes, rates, durations, shares.

use blocks::ByteCount;
use std::time::Duration;

/// Units of sizes, the longest first where one ends like another.
const UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// Slowest rate limit: a block a second. A delegate that is slower than that cannot be told from one that hangs.
const LEAST_RATE: u64 = blocks::BLOCK_SIZE;

/// Longest duration that is accepted anywhere: more than a week of waiting is a typing error.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads `512 MiB`, `2GiB`, `50 MB`. A number without a unit is refused: nobody would know which.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn parse_size(text: &str) -> Result<ByteCount, String> {
    let wrong = || format!("'{text}' is not a size; write a whole number and a unit, as in `512 MiB`");
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(*factor).map(ByteCount::new).ok_or_else(|| format!("'{text}' is too large"))
}

/// Reads `50 MiB/s`; the `/s` may be left out.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn parse_rate(text: &str) -> Result<ByteCount, String> {
    let size = text.trim();
    let rate = parse_size(size.strip_suffix("/s").unwrap_or(size))
        .map_err(|_| format!("'{text}' is not a rate; write it as in `50 MiB/s`"))?;
    if rate.get() < LEAST_RATE {
        return Err(format!("'{text}' is too slow to be told from a standstill; at least 64 KiB/s"));
    }
    Ok(rate)
}

/// Reads `90 s`, `30 min`, `1h 30m`, up to a week.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a duration; write it as in `90 s`, `30 min` or `2 h`");
    let parsed: jiff::SignedDuration = text.trim().parse().map_err(|_| wrong())?;
    let duration = Duration::try_from(parsed).map_err(|_| format!("'{text}' is less than nothing"))?;
    if duration > LONGEST {
        return Err(format!("'{text}' is more than a week"));
    }
    Ok(duration)
}

/// Longest age: no backup is kept longer.
const MAX_AGE_YEARS: u64 = 200;

/// Reads an age of restore points: `36 h`, `30 d`, `8 w` or `1 y`. A year has 365 days.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not an age; write it as in `36 h`, `30 d`, `8 w` or `1 y`");
    let trimmed = text.trim();
    let digits = trimmed.find(|at: char| !at.is_ascii_digit()).ok_or_else(wrong)?;
    let (count, unit) = trimmed.split_at(digits);
    let hours = match unit.trim() {
        "h" => 1,
        "d" => 24,
        "w" => 7 * 24,
        "y" => 365 * 24,
        _ => return Err(wrong()),
    };
    let count: u64 = count.parse().map_err(|_| wrong())?;
    let hours = count.saturating_mul(hours);
    if !(1..=MAX_AGE_YEARS * 365 * 24).contains(&hours) {
        return Err(format!("'{text}' is outside of 1 h to {MAX_AGE_YEARS} y"));
    }
    Ok(Duration::from_secs(hours * 3600))
}

/// Reads a duration of whole seconds within bounds.
pub(super) fn parse_seconds(text: &str, least: u64, most: u64) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration.subsec_nanos() != 0 || !(least..=most).contains(&duration.as_secs()) {
        return Err(format!("'{text}' is outside of {least} s to {most} s, in whole seconds"));
    }
    Ok(duration)
}

/// Reads a latency of reads: 1 ms to 10 s, in whole milliseconds.
///
/// # Errors
/// What is wrong, and the bounds.
pub(super) fn parse_latency(text: &str) -> Result<u32, String> {
    let wrong = || format!("'{text}' is outside of 1 ms to 10 s, in whole milliseconds");
    let duration = parse_duration(text)?;
    let ms = u32::try_from(duration.as_millis()).map_err(|_| wrong())?;
    let is_whole = duration.subsec_nanos() % 1_000_000 == 0;
    if is_whole && wire::Throttle::LATENCY_MS.contains(&ms) { Ok(ms) } else { Err(wrong()) }
}

/// Longest pause before a retry, wait for a coalesce, or time of a hook: a day.
const DAY_SECONDS: u64 = 24 * 3600;

/// Reads a pause before a retry: 1 s to a day.
///
/// # Errors
/// What is wrong, and the bounds.
pub fn parse_pause(text: &str) -> Result<Duration, String> {
    parse_seconds(text, 1, DAY_SECONDS)
}

/// Reads how long something is waited for: up to a day.
///
/// # Errors
/// What is wrong, and the bounds.
pub fn parse_wait(text: &str) -> Result<Duration, String> {
    parse_seconds(text, 0, DAY_SECONDS)
}

/// Reads a share in percent, such as `0.1`, as parts per million. Digits past the fourth are refused, not rounded.
///
/// # Errors
/// What is wrong, and the bounds.
pub fn parse_percent(text: &str) -> Result<u32, String> {
    let wrong = || format!("'{text}' is not a share in percent; write 0 to 100, in steps of 0.0001");
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let fraction = fraction.trim_end_matches('0');
    if !digits(whole) || !(fraction.is_empty() || digits(fraction)) || fraction.len() > 4 {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let fraction: u32 = format!("{fraction:0<4}").parse().map_err(|_| wrong())?;
    let parts = whole.checked_mul(10_000).and_then(|whole| whole.checked_add(fraction)).ok_or_else(wrong)?;
    if parts > super::WHOLE_PPM { Err(wrong()) } else { Ok(parts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit_and_keep_every_byte() {
        for (text, bytes) in [
            ("512 MiB", 512 << 20),
            ("2gib", 2 << 30),
            ("50 MB", 50_000_000),
            ("0 B", 0),
            ("16777215 TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(ByteCount::new(bytes)), "{text}");
        }
        for text in ["", "512", "MiB", "-1 MiB", "1.5 GiB", "1 MiB/s", "1 mib b", "16777216 TiB", "1 XiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_sizes_a_second_and_never_a_standstill() {
        assert_eq!(parse_rate("50 MiB/s"), Ok(ByteCount::new(50 << 20)));
        assert_eq!(parse_rate("64 KiB"), Ok(ByteCount::new(64 << 10)));
        for text in ["0 B/s", "63 KiB/s", "50", "50 MiB/min"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_need_a_unit_and_end_at_a_week() {
        for (text, seconds) in [("90 s", 90), ("30 min", 1800), ("1h 30m", 5400), ("168 hours", 604_800)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "90", "-1 s", "169 h", "soon", "1 month"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert!(parse_seconds("10 s", 10, 20).is_ok() && parse_seconds("20 s", 10, 20).is_ok());
        for text in ["9 s", "21 s", "10500 ms"] {
            assert!(parse_seconds(text, 10, 20).is_err(), "{text}");
        }
    }

    #[test]
    fn latencies_are_whole_milliseconds_within_bounds() {
        for (text, ms) in [("1 ms", 1), ("20ms", 20), ("10 s", 10_000)] {
            assert_eq!(parse_latency(text), Ok(ms), "{text}");
        }
        for text in ["0 ms", "20", "500 us", "1.5 ms", "10001 ms", "1 h"] {
            assert!(parse_latency(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_have_one_unit_and_bounds() {
        let hours = |text: &str| parse_age(text).map(|age| age.as_secs() / 3600);
        for (text, expected) in [("36 h", 36), ("30d", 720), (" 8 w ", 1344), ("1y", 8760)] {
            assert_eq!(hours(text), Ok(expected), "{text}");
        }
        for wrong in
            ["", "d", "30", "1 month", "1d 2h", "-1d", "0 d", "201 y", "99999999999999999999 y", "1\u{b2} d"]
        {
            assert!(hours(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn percents_are_exact_in_parts_per_million() {
        for (text, parts) in [
            ("0", 0),
            ("0.1", 1000),
            ("0.0001", 1),
            ("1", 10_000),
            ("100", 1_000_000),
            ("12.50", 125_000),
            ("0.10000", 1000),
        ] {
            assert_eq!(parse_percent(text), Ok(parts), "{text}");
        }
        for text in ["", ".", "-0.1", "100.0001", "0.00001", "1e-1", "nan", "inf", "1.2.3", "99999999999"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }
}
