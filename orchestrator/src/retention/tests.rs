//! The decision, on times written by hand.

use super::calendar::{Calendar, simulate};
use super::*;
use jiff::SignedDuration;
use proptest::prelude::*;

fn time(text: &str) -> Timestamp {
    format!("{text}:00Z").parse().expect(text)
}

fn good(id: usize, created: &str) -> Candidate<usize> {
    Candidate { id, created: Some(time(created)), doubtful: false, pinned: false, marks: Vec::new() }
}

fn series(times: &[&str]) -> Vec<Candidate<usize>> {
    times.iter().enumerate().map(|(id, created)| good(id, created)).collect()
}

fn kept(points: &[Candidate<usize>], rules: &Rules) -> Vec<usize> {
    let why = decide(points, rules, &TimeZone::UTC);
    (0..points.len()).filter(|at| !why[*at].is_empty()).collect()
}

fn rules(change: impl FnOnce(&mut Rules)) -> Rules {
    let mut rules = Rules::default();
    change(&mut rules);
    rules
}

#[test]
fn the_newest_of_each_period_stays_and_empty_periods_do_not_count() {
    let points = series(&[
        "2026-01-10T01:00",
        "2026-01-10T23:00",
        // Nothing for two months.
        "2026-03-12T01:00",
        "2026-03-13T01:00",
        "2026-03-13T02:00",
    ]);
    assert_eq!(kept(&points, &rules(|r| r.daily = Some(3))), [1, 2, 4]);
    assert_eq!(kept(&points, &rules(|r| r.monthly = Some(2))), [1, 4]);
    assert_eq!(kept(&points, &rules(|r| r.hourly = Some(2))), [3, 4]);
    assert_eq!(kept(&points, &rules(|r| r.last = Some(2))), [3, 4]);
    assert_eq!(kept(&points, &rules(|r| r.yearly = Some(1))), [4]);
}

#[test]
fn weeks_begin_on_monday_and_the_first_may_belong_to_the_year_before() {
    // 2027-01-03 is a Sunday in week 53 of 2026; 2026-12-28 the Monday of that week.
    let points = series(&["2026-12-27T12:00", "2026-12-28T12:00", "2027-01-03T12:00", "2027-01-04T12:00"]);
    assert_eq!(kept(&points, &rules(|r| r.weekly = Some(2))), [2, 3]);
    assert_eq!(kept(&points, &rules(|r| r.weekly = Some(3))), [0, 2, 3]);
}

#[test]
fn an_age_is_counted_from_the_newest_point_so_that_nothing_runs_out_when_backups_stop() {
    let points = series(&["2020-01-01T00:00", "2020-01-30T00:00", "2020-02-01T00:00"]);
    let week = rules(|r| r.within = Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(kept(&points, &week), [1, 2]);
}

#[test]
fn days_are_those_of_the_time_zone_and_a_repeated_hour_is_two() {
    let zone = TimeZone::get("Europe/Berlin").expect("known");
    // 23:30 in Berlin on the first, 00:30 on the second.
    let points = series(&["2026-01-01T22:30", "2026-01-01T23:30"]);
    let daily = rules(|r| r.daily = Some(2));
    let why = decide(&points, &daily, &zone);
    assert!(why.iter().all(|why| why.contains(&Reason::Daily)), "{why:?}");
    assert_eq!(kept(&points, &daily), [1]);
    // 02:30 summer time and 02:30 winter time.
    let points = series(&["2026-10-25T00:30", "2026-10-25T01:30"]);
    let why = decide(&points, &rules(|r| r.hourly = Some(2)), &zone);
    assert!(why.iter().all(|why| why.contains(&Reason::Hourly)), "{why:?}");
}

#[test]
fn a_doubtful_point_takes_no_place_that_a_good_one_could_have() {
    let mut points =
        series(&["2026-01-01T00:00", "2026-01-02T00:00", "2026-01-02T12:00", "2026-01-03T00:00"]);
    points[2].doubtful = true;
    assert_eq!(kept(&points, &rules(|r| r.daily = Some(2))), [1, 3]);
    assert_eq!(kept(&points, &rules(|r| r.last = Some(2))), [1, 2, 3]);
    // Better than nothing of that day.
    points[1].doubtful = true;
    assert_eq!(kept(&points, &rules(|r| r.daily = Some(2))), [2, 3]);
}

#[test]
fn pins_unreadable_times_and_the_newest_stay() {
    let mut points =
        series(&["2026-01-01T00:00", "2026-01-02T00:00", "2026-01-03T00:00", "2026-01-04T00:00"]);
    points[0].pinned = true;
    points[1].created = None;
    points[3].doubtful = true;
    assert_eq!(kept(&points, &Rules::default()), [0, 1, 3]);
}

#[test]
fn what_doubts_others_outlives_them() {
    let mut points =
        series(&["2026-01-01T00:00", "2026-02-02T00:00", "2026-02-03T00:00", "2026-02-04T00:00"]);
    points[0].doubtful = true;
    points[1].marks = vec![0];
    // One that is kept for its marks only has its own doubts kept as well.
    points[1].doubtful = true;
    points[2].marks = vec![1];
    assert_eq!(kept(&points, &rules(|r| r.monthly = Some(2))), [0, 1, 2, 3]);
    assert_eq!(kept(&points, &rules(|r| r.monthly = Some(1))), [3]);
}

#[test]
fn a_calendar_shows_a_month_in_a_line() {
    let mut calendar = Calendar::default();
    for (created, kept) in [
        ("2026-02-01T01:00", true),
        ("2026-02-01T02:00", true),
        ("2026-02-03T01:00", false),
        ("2026-02-28T01:00", true),
        ("2026-04-30T01:00", false),
    ] {
        calendar.add(time(created), kept, &TimeZone::UTC);
    }
    let drawn = calendar.draw();
    let lines: Vec<&str> = drawn.lines().collect();
    assert_eq!(lines[0], "         1   5    10   15   20   25   30");
    assert_eq!(lines[1], "2026-02  2.-........................1     3");
    assert_eq!(lines[2], "2026-04  .............................-   0");
    assert_eq!(lines.len(), 4);
}

#[test]
fn two_years_of_daily_backups_leave_what_the_rules_say() {
    let keep = rules(|r| (r.daily, r.weekly, r.monthly, r.yearly) = (Some(7), Some(4), Some(12), Some(5)));
    let day = SignedDuration::from_hours(24);
    let found = simulate(&keep, day, day * 729, time("2024-01-01T01:00"), &TimeZone::UTC).expect("small");
    assert_eq!(found.made, 730);
    // The last day is 2025-12-30, a Tuesday. 24th to 30th of December daily; Sundays the 14th and 21st (the 28th is among
    // the days, the week of the 30th too); the last days of January to November 2025; December 31st of 2024.
    assert_eq!(found.left, 7 + 2 + 11 + 1);
    assert!(found.most <= found.left + 3, "{}", found.most);
    assert!(simulate(&keep, day, day * 100_000, time("2024-01-01T01:00"), &TimeZone::UTC).is_err());
    assert!(
        simulate(&keep, SignedDuration::from_secs(1), day, time("2024-01-01T01:00"), &TimeZone::UTC).is_err()
    );
}

proptest! {
    /// Applying rules again changes nothing, whatever was removed in between, and more generous rules keep no less.
    #[test]
    fn pruning_is_stable_and_generous_rules_keep_more(
        hours in proptest::collection::btree_set(0i64..20_000, 1..60),
        doubtful in any::<u64>(),
        counts in proptest::array::uniform6(0u32..6),
    ) {
        let points: Vec<Candidate<usize>> = hours.iter().enumerate().map(|(id, hour)| Candidate {
            id,
            created: Timestamp::from_second(1_700_000_000 + hour * 3600).ok(),
            doubtful: doubtful >> (id % 64) & 1 == 1,
            pinned: false,
            marks: Vec::new(),
        }).collect();
        let some = |count: u32| (count > 0).then_some(count);
        let [last, hourly, daily, weekly, monthly, yearly] = counts.map(some);
        let rules = Rules { last, hourly, daily, weekly, monthly, yearly, within: None };
        let first = kept(&points, &rules);
        let left: Vec<Candidate<usize>> = first.iter().map(|at| points[*at].clone()).collect();
        prop_assert_eq!(kept(&left, &rules).len(), left.len());
        let more = Rules { daily: Some(daily.unwrap_or(0) + 1), ..rules };
        let generous = kept(&points, &more);
        prop_assert!(first.iter().all(|at| generous.contains(at)));
        prop_assert!(first.contains(&(points.len() - 1)));
    }
}
