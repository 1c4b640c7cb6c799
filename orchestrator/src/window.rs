//! The backup window: the times of the week at which jobs may start, in local time.
//!
//! A span such as `Mon-Fri 22:00-06:00` opens on its days and may end on the next one. Openings are computed as
//! instants, one per day, so that a change of the clock neither loses nor doubles one: a time that the clock
//! jumps over counts as that much later, a time that it shows twice means the first.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{ToSpan, Zoned};
use std::fmt;
use std::str::FromStr;

/// Minutes in a day: the end `24:00`.
const DAY_MINUTES: u16 = 24 * 60;
/// Days that are looked at around now: every span opens within a week, and one that began yesterday may be open.
const LOOK_BACK_DAYS: i64 = 1;
const LOOK_AHEAD_DAYS: i64 = 8;

/// Names of the days as they are written, Monday first.
const DAYS: [(&str, &str); 7] = [
    ("Mon", "monday"),
    ("Tue", "tuesday"),
    ("Wed", "wednesday"),
    ("Thu", "thursday"),
    ("Fri", "friday"),
    ("Sat", "saturday"),
    ("Sun", "sunday"),
];

/// When jobs may start: in any of its spans. Never without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    spans: Vec<Span>,
}

/// One span of the day, on some days of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// On which days it opens, Monday first.
    days: [bool; 7],
    /// Minutes after midnight.
    start: u16,
    /// Minutes after midnight, at most [`DAY_MINUTES`]; of the next day where not after `start`.
    end: u16,
}

/// What the window says of an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Jobs may start until then. A window that never closes says a time some days ahead.
    Open {
        /// The first instant outside.
        until: Zoned,
    },
    /// No job may start.
    Closed {
        /// When it opens next.
        opens: Zoned,
    },
}

impl Window {
    /// A window of these spans; `None` where there are none.
    pub fn new(spans: Vec<Span>) -> Option<Self> {
        (!spans.is_empty()).then_some(Self { spans })
    }

    /// Whether it is open at `now`, by the clock of `now`'s time zone.
    pub fn state(&self, now: &Zoned) -> State {
        let mut openings: Vec<(Zoned, Zoned)> = (-LOOK_BACK_DAYS..=LOOK_AHEAD_DAYS)
            .filter_map(|days| now.date().checked_add(days.days()).ok())
            .flat_map(|date| self.spans.iter().filter_map(move |span| span.on(date, now.time_zone())))
            .collect();
        openings.sort();
        // Spans that touch or overlap are one opening.
        let mut until: Option<Zoned> = None;
        for (start, end) in &openings {
            let reached = until.as_ref().unwrap_or(now);
            if start <= reached && end > reached {
                until = Some(end.clone());
            }
        }
        match until {
            Some(until) => State::Open { until },
            None => State::Closed {
                // Only at the very end of the calendar is there none.
                opens: openings
                    .into_iter()
                    .map(|(start, _)| start)
                    .find(|start| start > now)
                    .unwrap_or(now.clone()),
            },
        }
    }
}

impl Span {
    /// Its opening on a date, if it has one.
    fn on(&self, date: Date, zone: &TimeZone) -> Option<(Zoned, Zoned)> {
        let day = usize::try_from(date.weekday().to_monday_zero_offset()).ok()?;
        if !*self.days.get(day)? {
            return None;
        }
        let last = if self.end > self.start { date } else { date.tomorrow().ok()? };
        let start = instant(date, self.start, zone)?;
        let end = instant(last, self.end, zone)?;
        if end > start {
            return Some((start, end));
        }
        // The clock jumps over all of it or over its start: it keeps its length.
        let end = start.checked_add(i64::from(self.end.checked_sub(self.start)?).minutes()).ok()?;
        Some((start, end))
    }
}

/// The instant of a time of day, given in minutes after midnight.
fn instant(date: Date, minutes: u16, zone: &TimeZone) -> Option<Zoned> {
    let (date, minutes) = if minutes == DAY_MINUTES { (date.tomorrow().ok()?, 0) } else { (date, minutes) };
    let (hour, minute) = (i8::try_from(minutes / 60).ok()?, i8::try_from(minutes % 60).ok()?);
    date.at(hour, minute, 0, 0).to_zoned(zone.clone()).ok()
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "write `22:00-06:00`, or `Mon-Fri 22:00-06:00` for some days";
        let (days, times) = match text.trim().rsplit_once(' ') {
            Some((days, times)) => (parse_days(days)?, times),
            None => ([true; 7], text.trim()),
        };
        let (start, end) =
            times.split_once('-').ok_or_else(|| format!("'{text}' is not a span of time; {FORM}"))?;
        let (start, end) = (parse_time(start)?, parse_time(end)?);
        if start == DAY_MINUTES {
            return Err(format!("'{text}' starts at 24:00; {FORM}"));
        }
        if start == end {
            return Err(format!("'{text}' ends when it starts; for the whole day write 00:00-24:00"));
        }
        Ok(Self { days, start, end })
    }
}

fn parse_time(text: &str) -> Result<u16, String> {
    let wrong = || format!("'{text}' is not a time of day; write 00:00 to 24:00");
    let (hours, minutes) = text.split_once(':').ok_or_else(wrong)?;
    let digits = |part: &str| part.len() <= 2 && part.bytes().all(|b| b.is_ascii_digit());
    if !digits(hours) || minutes.len() != 2 || !digits(minutes) {
        return Err(wrong());
    }
    let (hours, minutes): (u16, u16) =
        (hours.parse().map_err(|_| wrong())?, minutes.parse().map_err(|_| wrong())?);
    let total = hours * 60 + minutes;
    if minutes < 60 && total <= DAY_MINUTES { Ok(total) } else { Err(wrong()) }
}

/// Reads `Mon-Fri`, `Sat,Sun`, `Fri-Mon,Wed`.
fn parse_days(text: &str) -> Result<[bool; 7], String> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (parse_day(first)?, parse_day(last)?);
        let mut day = first;
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Ok(days)
}

fn parse_day(text: &str) -> Result<usize, String> {
    let wanted = text.trim().to_ascii_lowercase();
    DAYS.iter().position(|(short, long)| wanted == short.to_ascii_lowercase() || wanted == *long).ok_or_else(
        || format!("'{}' is not a day of the week; write Mon, Tue, Wed, Thu, Fri, Sat or Sun", text.trim()),
    )
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != [true; 7] {
            let names: Vec<_> =
                DAYS.iter().zip(self.days).filter(|(_, open)| *open).map(|((name, _), _)| *name).collect();
            write!(f, "{} ", names.join(","))?;
        }
        let (start, end) = (self.start, self.end);
        write!(f, "{:02}:{:02}-{:02}:{:02}", start / 60, start % 60, end / 60, end % 60)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, span) in self.spans.iter().enumerate() {
            if index > 0 {
                f.write_str(" or ")?;
            }
            span.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::civil::datetime;

    /// Central Europe: the clock jumps from 2:00 to 3:00 on 29 March 2026 and back from 3:00 on 25 October 2026.
    fn zone() -> TimeZone {
        TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").expect("zone")
    }

    fn window(spans: &[&str]) -> Window {
        let spans = spans.iter().map(|span| span.parse().expect(span)).collect();
        Window::new(spans).expect("spans")
    }

    fn at(month: i8, day: i8, hour: i8, minute: i8) -> Zoned {
        datetime(2026, month, day, hour, minute, 0, 0).to_zoned(zone()).expect("time")
    }

    fn open_until(window: &Window, now: &Zoned) -> Option<Zoned> {
        match window.state(now) {
            State::Open { until } => Some(until),
            State::Closed { .. } => None,
        }
    }

    fn opens(window: &Window, now: &Zoned) -> Zoned {
        match window.state(now) {
            State::Closed { opens } => opens,
            State::Open { until } => panic!("open until {until}"),
        }
    }

    #[test]
    fn a_window_across_midnight_is_open_on_both_sides_of_it() {
        let night = window(&["22:00-06:00"]);
        assert_eq!(opens(&night, &at(6, 1, 21, 59)), at(6, 1, 22, 0));
        assert_eq!(open_until(&night, &at(6, 1, 22, 0)), Some(at(6, 2, 6, 0)));
        assert_eq!(open_until(&night, &at(6, 2, 5, 59)), Some(at(6, 2, 6, 0)));
        assert_eq!(opens(&night, &at(6, 2, 6, 0)), at(6, 2, 22, 0));
    }

    #[test]
    fn days_are_those_on_which_it_opens() {
        // 1 June 2026 is a Monday.
        let week = window(&["Mon-Fri 22:00-06:00"]);
        assert_eq!(open_until(&week, &at(6, 6, 3, 0)), Some(at(6, 6, 6, 0)), "Friday's, on Saturday morning");
        assert_eq!(opens(&week, &at(6, 6, 23, 0)), at(6, 8, 22, 0), "not on Saturday");
        assert_eq!(opens(&week, &at(6, 8, 3, 0)), at(6, 8, 22, 0), "Sunday's never opened");
    }

    #[test]
    fn spans_that_touch_are_one_opening() {
        let two = window(&["Mon-Fri 22:00-06:00", "Sat,Sun 00:00-24:00"]);
        assert_eq!(open_until(&two, &at(6, 5, 23, 0)), Some(at(6, 8, 0, 0)), "through the weekend");
        let always = window(&["00:00-24:00"]);
        let until = open_until(&always, &at(6, 1, 12, 0)).expect("open");
        assert!(until > at(6, 8, 0, 0), "{until}");
    }

    #[test]
    fn a_clock_that_jumps_ahead_loses_no_window() {
        let night = window(&["22:00-06:00"]);
        let until = open_until(&night, &at(3, 28, 22, 0)).expect("open");
        assert_eq!(at(3, 28, 22, 0).duration_until(&until).as_hours(), 7);
        // Wholly within the hour that does not exist: as long, an hour later.
        let gone = window(&["02:15-02:45"]);
        assert_eq!(opens(&gone, &at(3, 29, 1, 0)), at(3, 29, 3, 15));
        assert_eq!(open_until(&gone, &at(3, 29, 3, 20)), Some(at(3, 29, 3, 45)));
        // Only its start does not exist.
        let half = window(&["02:30-03:15"]);
        assert_eq!(open_until(&half, &at(3, 29, 3, 40)), Some(at(3, 29, 4, 15)));
    }

    #[test]
    fn a_clock_that_goes_back_opens_no_window_twice() {
        let early = window(&["02:15-02:45"]);
        let first = at(10, 25, 2, 15);
        let until = open_until(&early, &first).expect("open");
        assert_eq!(first.duration_until(&until).as_mins(), 30);
        let second = first.checked_add(1.hour()).expect("time");
        assert_eq!((second.hour(), second.minute()), (2, 15), "the clock shows it again");
        assert_eq!(opens(&early, &second), at(10, 26, 2, 15));
    }

    #[test]
    fn what_is_wrong_with_a_window_is_said() {
        for (text, expected) in [
            ("", "not a span"),
            ("22:00", "not a span"),
            ("22-6", "not a time"),
            ("22:00-25:00", "00:00 to 24:00"),
            ("22:60-23:00", "not a time"),
            ("+2:00-3:00", "not a time"),
            ("10:00-10:00", "00:00-24:00"),
            ("24:00-06:00", "starts at 24:00"),
            ("Mo 22:00-06:00", "day of the week"),
            ("Mon-Fry 22:00-06:00", "day of the week"),
        ] {
            let error = text.parse::<Span>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_span_survives_its_text() {
        for text in ["22:00-06:00", "Mon,Tue,Wed,Thu,Fri 22:00-24:00", "Mon,Fri,Sat,Sun 00:00-01:30"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
        }
        assert_eq!(
            "fri-Monday 0:00-1:30".parse::<Span>().expect("span").to_string(),
            "Mon,Fri,Sat,Sun 00:00-01:30"
        );
    }
}
