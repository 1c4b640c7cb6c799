//! Retention as a picture: which days still have restore points, and what rules would leave of years to come.

use super::{Candidate, Rules, decide};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

/// Most backups that are played through: ten years of four a day.
const MAX_SIMULATED: usize = 15_000;

/// A day of the picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Day {
    /// Points that stay.
    pub kept: u32,
    /// Points that go.
    pub removed: u32,
}

/// Points by the day they were made on, in a time zone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calendar {
    days: BTreeMap<Date, Day>,
}

impl Calendar {
    /// Adds a point.
    pub fn add(&mut self, created: Timestamp, kept: bool, zone: &TimeZone) {
        let day = self.days.entry(zone.to_datetime(created).date()).or_default();
        if kept {
            day.kept += 1;
        } else {
            day.removed += 1;
        }
    }

    /// One line for each month that has a point, a column for each of its days: a digit is how many points stay (`+`
    /// for ten and more), `-` that all of them go, `.` that there is none.
    pub fn draw(&self) -> String {
        let mut months: BTreeMap<(i16, i8), Vec<(Date, Day)>> = BTreeMap::new();
        for (date, day) in &self.days {
            months.entry((date.year(), date.month())).or_default().push((*date, *day));
        }
        let mut text = String::from("         1   5    10   15   20   25   30");
        for ((year, month), days) in months {
            let length = days.first().map_or(31, |(date, _)| date.days_in_month());
            let mut line: Vec<char> = (0..length).map(|_| '.').collect();
            let mut kept = 0;
            for (date, day) in days {
                kept += day.kept;
                let place = usize::from(date.day().unsigned_abs()).saturating_sub(1);
                line[place] = match day.kept {
                    0 => '-',
                    1..=9 => char::from_digit(day.kept, 10).unwrap_or('+'),
                    _ => '+',
                };
            }
            let line: String = line.into_iter().collect();
            text.push_str(&format!("\n{year:04}-{month:02}  {line:<31}  {kept}"));
        }
        text.push_str("\na digit: points that stay on that day; -: made and removed; .: none");
        text
    }
}

/// Plays backups through, one each `every`, for `span` from `start`, with the rules applied after each; gives what is there
/// at the end and how many there were at most.
///
/// # Errors
/// What is asked for too much, or too little.
pub fn simulate(
    rules: &Rules,
    every: SignedDuration,
    span: SignedDuration,
    start: Timestamp,
    zone: &TimeZone,
) -> Result<Simulated, String> {
    if every < SignedDuration::from_mins(1) {
        return Err("backups less than a minute apart are not played through".into());
    }
    let count = span.as_secs() / every.as_secs() + 1;
    let count = usize::try_from(count).ok().filter(|count| *count <= MAX_SIMULATED).ok_or_else(|| {
        format!("{count} backups are more than the {MAX_SIMULATED} that are played through")
    })?;
    let mut simulated = Simulated { calendar: Calendar::default(), left: 0, most: 0, made: count };
    let (mut there, mut time): (Vec<Candidate<usize>>, _) = (Vec::new(), start);
    for number in 0..count {
        there.push(Candidate {
            id: number,
            created: Some(time),
            doubtful: false,
            pinned: false,
            marks: Vec::new(),
        });
        simulated.most = simulated.most.max(there.len());
        if !rules.is_empty() {
            let reasons = decide(&there, rules, zone);
            let mut stays = reasons.iter().map(|why| !why.is_empty());
            there.retain(|one| {
                let stays = stays.next().unwrap_or(true);
                if let (false, Some(created)) = (stays, one.created) {
                    simulated.calendar.add(created, false, zone);
                }
                stays
            });
        }
        time = time.checked_add(every).map_err(|error| error.to_string())?;
    }
    there
        .iter()
        .filter_map(|one| one.created)
        .for_each(|created| simulated.calendar.add(created, true, zone));
    simulated.left = there.len();
    Ok(simulated)
}

/// What [`simulate`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulated {
    /// The days.
    pub calendar: Calendar,
    /// Points at the end.
    pub left: usize,
    /// Most points at any time.
    pub most: usize,
    /// Backups that were played through.
    pub made: usize,
}
