//! Which restore points stay. Rules that count periods, as admins know them from other programs.
//!
//! Owns: the decision. Promises: it is a pure function of points, rules and a time zone; the newest point stays, and so
//! do pinned ones, and one that says of another that it is in doubt as long as that one stays. Never: removes a
//! point ([`apply`] does), or frees a block.
//!
//! ```text
//! apply      the points of a store: grouped, decided, removed        calendar   the same as a picture, and years ahead
//! ```

pub mod apply;
pub mod calendar;
#[cfg(test)]
mod tests;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::BTreeSet;
use std::time::Duration;

/// How many points stay, by what they stand for. What is absent keeps nothing by itself.
///
/// A period counts only where it has a point, so that a machine that was off for a month loses nothing meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// The newest points.
    pub last: Option<u32>,
    /// The newest point of each of so many hours.
    pub hourly: Option<u32>,
    /// The newest point of each of so many days.
    pub daily: Option<u32>,
    /// The newest point of each of so many weeks, Monday to Sunday.
    pub weekly: Option<u32>,
    /// The newest point of each of so many months.
    pub monthly: Option<u32>,
    /// The newest point of each of so many years.
    pub yearly: Option<u32>,
    /// Every point that is at most so much older than the newest one. Counted from that one and not from now: where
    /// backups have stopped, nothing may run out.
    pub within: Option<Duration>,
}

impl Rules {
    /// Whether there is no rule at all: then everything stays.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn periods(&self) -> [(Reason, Option<u32>); 5] {
        [
            (Reason::Hourly, self.hourly),
            (Reason::Daily, self.daily),
            (Reason::Weekly, self.weekly),
            (Reason::Monthly, self.monthly),
            (Reason::Yearly, self.yearly),
        ]
    }
}

/// What a decision needs to know of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<I> {
    /// Its name.
    pub id: I,
    /// When it was made; `None` where that cannot be read.
    pub created: Option<Timestamp>,
    /// Whether a later audit doubts it, or parts of a disk are missing in it. Such a point takes no place that a
    /// good one could have.
    pub doubtful: bool,
    /// Whether somebody asked for it to stay.
    pub pinned: bool,
    /// Points that this one says are in doubt.
    pub marks: Vec<I>,
}

/// Why a point stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The next incremental backup starts from it.
    Newest,
    /// Somebody pinned it.
    Pinned,
    /// It says of a point that stays that it is in doubt.
    Marks,
    /// Its time cannot be read, so that no rule can judge it.
    NoTime,
    /// There are no rules.
    NoRule,
    /// Among the last ones.
    Last,
    /// Young enough.
    Within,
    /// The newest of its hour.
    Hourly,
    /// The newest of its day.
    Daily,
    /// The newest of its week.
    Weekly,
    /// The newest of its month.
    Monthly,
    /// The newest of its year.
    Yearly,
}

impl Reason {
    /// A word for people and programs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Newest => "newest",
            Self::Pinned => "pinned",
            Self::Marks => "marks-doubts",
            Self::NoTime => "no-time",
            Self::NoRule => "no-rule",
            Self::Last => "last",
            Self::Within => "within",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

/// Why each candidate stays, in the candidates' order; one without a reason goes.
///
/// To be asked with at least one rule: without any, only those stay that need none.
pub fn decide<I: Copy + Ord>(
    candidates: &[Candidate<I>],
    rules: &Rules,
    zone: &TimeZone,
) -> Vec<Vec<Reason>> {
    let mut reasons: Vec<Vec<Reason>> = vec![Vec::new(); candidates.len()];
    // Newest first. Of two of the same second the order of their names decides, so that it is always the same.
    let mut order: Vec<(Timestamp, usize)> =
        candidates.iter().enumerate().filter_map(|(at, one)| Some((one.created?, at))).collect();
    order.sort_by_key(|(created, at)| std::cmp::Reverse((*created, candidates[*at].id)));
    for (at, one) in candidates.iter().enumerate() {
        if one.created.is_none() {
            reasons[at].push(Reason::NoTime);
        }
        if one.pinned {
            reasons[at].push(Reason::Pinned);
        }
    }
    if let Some((newest, at)) = order.first() {
        reasons[*at].push(Reason::Newest);
        keep_last(candidates, &order, rules.last, &mut reasons);
        if let Some(within) = rules.within {
            let oldest = newest.checked_sub(within).unwrap_or(Timestamp::MIN);
            for (_, at) in order.iter().filter(|(created, _)| *created >= oldest) {
                reasons[*at].push(Reason::Within);
            }
        }
        for (reason, count) in rules.periods() {
            if let Some(count) = count {
                keep_periods(candidates, &order, reason, count, zone, &mut reasons);
            }
        }
    }
    keep_marks(candidates, &mut reasons);
    reasons
}

/// So many good ones, and the doubtful ones between them.
fn keep_last<I>(
    candidates: &[Candidate<I>],
    order: &[(Timestamp, usize)],
    count: Option<u32>,
    reasons: &mut [Vec<Reason>],
) {
    let mut left = count.unwrap_or(0);
    for (_, at) in order {
        if left == 0 {
            return;
        }
        reasons[*at].push(Reason::Last);
        if !candidates[*at].doubtful {
            left -= 1;
        }
    }
}

/// The newest good one of each period; the newest at all where none is good.
fn keep_periods<I>(
    candidates: &[Candidate<I>],
    order: &[(Timestamp, usize)],
    reason: Reason,
    count: u32,
    zone: &TimeZone,
    reasons: &mut [Vec<Reason>],
) {
    let same = |(one, _): &(Timestamp, usize), other: &(Timestamp, usize)| {
        period(*one, reason, zone) == period(other.0, reason, zone)
    };
    for group in order.chunk_by(same).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        let good = group.iter().find(|(_, at)| !candidates[*at].doubtful);
        let (_, at) = good.unwrap_or(&group[0]);
        reasons[*at].push(reason);
    }
}

/// What tells the periods of a kind apart. An hour that a clock has twice is two hours.
fn period(time: Timestamp, reason: Reason, zone: &TimeZone) -> (i16, i16, i32) {
    let local = zone.to_datetime(time);
    let week = local.date().iso_week_date();
    let (year, month) = (local.year(), i16::from(local.month()));
    match reason {
        Reason::Weekly => (week.year(), i16::from(week.week()), 0),
        Reason::Monthly => (year, month, 0),
        Reason::Yearly => (year, 0, 0),
        Reason::Daily => (year, local.day_of_year(), 0),
        _ => {
            let offset_hours = zone.to_offset(time).seconds().div_euclid(3600);
            (year, local.day_of_year(), i32::from(local.hour()) * 100 + offset_hours)
        }
    }
}

/// A point's doubts about others live nowhere else: it stays as long as one of those does.
fn keep_marks<I: Copy + Ord>(candidates: &[Candidate<I>], reasons: &mut [Vec<Reason>]) {
    let mut staying: BTreeSet<I> = BTreeSet::new();
    loop {
        staying.extend(
            candidates.iter().zip(&*reasons).filter(|(_, why)| !why.is_empty()).map(|(one, _)| one.id),
        );
        let mut more = false;
        for (one, why) in candidates.iter().zip(reasons.iter_mut()) {
            let marks_one_that_stays = one.marks.iter().any(|marked| staying.contains(marked));
            if marks_one_that_stays && !why.contains(&Reason::Marks) {
                more |= why.is_empty();
                why.push(Reason::Marks);
            }
        }
        if !more {
            return;
        }
    }
}
