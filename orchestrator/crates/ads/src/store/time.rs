//! The time of a restore point as RFC 3339 text in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time as a restore point's `created` says it: `2026-11-03T10:20:30.123Z`. Times before 1970 become 1970.
pub fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86400, since.as_secs() % 86400);
    let (year, month, day) = civil(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let second = second % 60;
    let milli = since.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// Year, month and day of a day counted from 1970-01-01: the years are counted from March on, so that the
/// leap day is the last of its year.
fn civil(days: u64) -> (u64, u64, u64) {
    let day = days + 719_468; // From 0000-03-01.
    let era = day / 146_097;
    let day = day % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let in_month = day - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 { (year, month + 3) } else { (year + 1, month - 9) };
    (year + era * 400, month, in_month)
}

/// The whole second of a time in UTC; `None` for text that is none, and for times before 1970.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let (whole, _) = sort_key(text)?;
    let number = |from: usize, to: usize| whole.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Counted from March on, as in `civil`.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year.checked_sub(1)?, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    let seconds = number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    UNIX_EPOCH.checked_add(Duration::from_secs(days * 86400 + seconds))
}

/// What times are ordered by; `None` for text that is no time in UTC.
pub(crate) fn sort_key(text: &str) -> Option<(String, String)> {
    let body = text.strip_suffix('Z')?;
    let (whole, fraction) = body.split_once('.').map_or((body, None), |(whole, rest)| (whole, Some(rest)));
    let shape = b"dddd-dd-ddTdd:dd:dd";
    let fits = whole.len() == shape.len()
        && whole.bytes().zip(shape).all(|(found, want)| match want {
            b'd' => found.is_ascii_digit(),
            want => found == *want,
        });
    let number = |at: usize| whole[at..at + 2].parse::<u8>().ok();
    let fits = fits
        && (1..=12).contains(&number(5)?)
        && (1..=31).contains(&number(8)?)
        && number(11)? < 24
        && number(14)? < 60
        && number(17)? <= 60;
    let digits = fraction.unwrap_or("0");
    let fits = fits && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    fits.then(|| (whole.to_owned(), digits.trim_end_matches('0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_those_of_the_date_command() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_709_251_200, "2024-03-01T00:00:00.000Z"),
            (1_793_701_230, "2026-11-03T10:20:30.000Z"),
            (4_102_444_799, "2099-12-31T23:59:59.000Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), text);
            assert_eq!(parse(text), Some(time), "{text}");
        }
    }

    #[test]
    fn times_are_ordered_with_and_without_a_fraction() {
        let ordered = [
            "2026-11-03T10:20:30Z",
            "2026-11-03T10:20:30.05Z",
            "2026-11-03T10:20:30.5Z",
            "2026-11-03T10:20:31Z",
        ];
        assert!(ordered.is_sorted_by_key(|text| sort_key(text).expect("a time")));
        for bad in [
            "",
            "Z",
            "2026-11-03 10:20:30Z",
            "2026-11-03T10:20:30+01:00",
            "2026-13-03T10:20:30Z",
            "2026-11-03T10:20:30.Z",
        ] {
            assert_eq!(sort_key(bad), None, "{bad}");
        }
    }
}
