//! Runs on paused time: every wait is over as soon as nothing else happens, and takes exactly as long as it says.

use super::*;
use jiff::civil::datetime;
use jiff::tz::TimeZone;
use std::cell::RefCell;
use std::rc::Rc;

/// What a job of the tests does: how long each try takes, and whether it ends well.
#[derive(Clone)]
struct Script(Vec<(u64, bool)>);

#[derive(Debug, PartialEq)]
enum Result {
    Well,
    Badly,
    Stopped,
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn task(retries: u32) -> Task {
    Task { needs: Needs::default(), retries, retry_pause: seconds(60) }
}

/// A run whose clock says 22:00 at its beginning.
struct Run {
    limits: Limits,
    window: Option<Window>,
    window_end: WindowEnd,
    /// When the user asks to stop.
    cancel_after: Option<Duration>,
}

impl Default for Run {
    fn default() -> Self {
        let limits = Limits { max_jobs: 1, ..Limits::default() };
        Self { limits, window: None, window_end: WindowEnd::Finish, cancel_after: None }
    }
}

struct Seen {
    ends: Ends<Result>,
    /// `start 0.1 @ 60`: task, try and second.
    log: Vec<String>,
    took: u64,
}

impl Run {
    async fn play(self, tasks: &[Task], scripts: &[Script]) -> Seen {
        let begin = Instant::now();
        let clock = || {
            let evening = datetime(2026, 6, 1, 22, 0, 0, 0).to_zoned(TimeZone::UTC).expect("time");
            evening.checked_add(begin.elapsed()).expect("time")
        };
        let (canceller, cancel) = watch::channel(false);
        let (stop, _) = watch::channel(false);
        let log = Rc::new(RefCell::new(Vec::new()));
        let write = |line: String| log.borrow_mut().push(format!("{line} @ {}", begin.elapsed().as_secs()));
        let start = |one: Try| {
            write(format!("start {}.{}", one.task, one.number));
            let place = usize::try_from(one.number - 1).expect("few");
            let (takes, well) = scripts[one.task].0.get(place).copied().unwrap_or((1, true));
            let mut stop = stop.subscribe();
            async move {
                tokio::select! {
                    () = tokio::time::sleep(seconds(takes)) => if well { Result::Well } else { Result::Badly },
                    _ = stop.wait_for(|stop| *stop) => {
                        // Cleaning up takes its time.
                        tokio::time::sleep(seconds(5)).await;
                        Result::Stopped
                    }
                }
            }
        };
        let frame = Frame {
            limits: self.limits,
            window: self.window.as_ref(),
            window_end: self.window_end,
            now: &clock,
            cancel,
            stop: &stop,
        };
        let set = tokio::task::LocalSet::new();
        if let Some(after) = self.cancel_after {
            set.spawn_local(async move {
                tokio::time::sleep(after).await;
                canceller.send_replace(true);
            });
        }
        let passing = |result: &Result| *result == Result::Badly;
        let again = |again: Again| {
            write(format!("again {}.{} in {}", again.task, again.number, again.pause.as_secs()))
        };
        let ends = set.run_until(run(frame, tasks, start, passing, again)).await;
        let log = log.borrow().clone();
        Seen { ends, log, took: begin.elapsed().as_secs() }
    }
}

fn fates(seen: &Seen) -> Vec<String> {
    let text = |fate: &Fate<Result>| match fate {
        Fate::Ended { result, tries } => format!("{result:?} {tries}"),
        Fate::Broken(_) => "broken".into(),
        Fate::WindowClosed(opens) => format!("closed until {:02}:{:02}", opens.hour(), opens.minute()),
        Fate::Cancelled => "cancelled".into(),
        Fate::TooLarge => "too large".into(),
    };
    seen.ends.fates.iter().map(text).collect()
}

fn script(tries: &[(u64, bool)]) -> Script {
    Script(tries.to_vec())
}

fn window(text: &str) -> Option<Window> {
    Window::new(vec![text.parse().expect("a span")])
}

#[tokio::test(start_paused = true)]
async fn failed_jobs_are_tried_again_behind_the_others_with_longer_pauses() {
    let tasks = [task(2), task(0)];
    let scripts = [script(&[(10, false), (10, false), (10, true)]), script(&[(100, true)])];
    let seen = Run::default().play(&tasks, &scripts).await;
    assert_eq!(fates(&seen), ["Well 3", "Well 1"]);
    assert_eq!(
        seen.log,
        [
            "start 0.1 @ 0",
            "again 0.2 in 60 @ 10",
            "start 1.1 @ 10",
            "start 0.2 @ 110",
            "again 0.3 in 120 @ 120",
            "start 0.3 @ 240"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn tries_end_with_the_last_result_and_are_not_wasted_on_what_stays_wrong() {
    let tasks = [task(1), task(0)];
    let scripts = [script(&[(1, false), (1, false), (1, true)]), script(&[(1, false)])];
    let seen = Run::default().play(&tasks, &scripts).await;
    assert_eq!(fates(&seen), ["Badly 2", "Badly 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_closing_window_lets_running_jobs_finish_and_starts_no_more() {
    let night = Run { window: window("22:00-22:10"), ..Run::default() };
    let seen = night
        .play(&[task(0), task(0), task(0)], &[script(&[(400, true)]), script(&[(400, true)]), script(&[])])
        .await;
    assert_eq!(fates(&seen), ["Well 1", "Well 1", "closed until 22:00"]);
    assert_eq!((seen.took, seen.ends.stopped_by_window), (800, false));
}

#[tokio::test(start_paused = true)]
async fn a_closing_window_can_stop_running_jobs_which_clean_up() {
    let night = Run { window: window("22:00-22:10"), window_end: WindowEnd::Stop, ..Run::default() };
    let seen = night.play(&[task(3), task(0)], &[script(&[(4000, true)]), script(&[])]).await;
    assert_eq!(fates(&seen), ["Stopped 1", "closed until 22:00"]);
    assert_eq!((seen.took, seen.ends.stopped_by_window), (605, true));
}

#[tokio::test(start_paused = true)]
async fn outside_of_the_window_nothing_starts() {
    let day = Run { window: window("06:00-12:00"), ..Run::default() };
    let seen = day.play(&[task(0)], &[script(&[])]).await;
    assert_eq!((fates(&seen), seen.took, seen.log.len()), (vec!["closed until 06:00".to_owned()], 0, 0));
}

#[tokio::test(start_paused = true)]
async fn no_try_is_planned_for_after_the_window() {
    let night = Run { window: window("22:00-22:02"), ..Run::default() };
    let seen = night.play(&[task(5)], &[script(&[(80, false)])]).await;
    assert_eq!((fates(&seen), seen.took), (vec!["Badly 1".to_owned()], 80));
}

#[tokio::test(start_paused = true)]
async fn cancelling_stops_running_jobs_waits_for_them_and_starts_no_more() {
    let tasks = [task(3), task(3), task(3)];
    let scripts = [script(&[(10, false)]), script(&[(1000, true)]), script(&[])];
    let user = Run { cancel_after: Some(seconds(50)), ..Run::default() };
    let seen = user.play(&tasks, &scripts).await;
    assert_eq!(fates(&seen), ["Badly 1", "Stopped 1", "cancelled"]);
    assert_eq!(seen.took, 55);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_panics_takes_no_other_one_along() {
    let (stop, _) = watch::channel(false);
    let (_canceller, cancel) = watch::channel(false);
    let now = || datetime(2026, 6, 1, 22, 0, 0, 0).to_zoned(TimeZone::UTC).expect("time");
    let limits = Limits { max_jobs: 1, ..Limits::default() };
    let frame = Frame { limits, window: None, window_end: WindowEnd::Finish, now: &now, cancel, stop: &stop };
    let start = |one: Try| async move { assert_ne!(one.task, 0, "a fault of ours") };
    let tasks = [task(9), task(9)];
    let ends = tokio::task::LocalSet::new().run_until(run(frame, &tasks, start, |()| false, |_| {})).await;
    assert!(matches!(ends.fates.as_slice(), [Fate::Broken(_), Fate::Ended { tries: 1, .. }]), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delegate_over_the_budget_is_refused_and_the_others_run() {
    use blocks::ByteCount;
    let limits = Limits { delegate_memory_budget: Some(ByteCount::new(9)), ..Limits::default() };
    let large = Task { needs: Needs { memory: ByteCount::new(10), ..Needs::default() }, ..task(0) };
    let seen = Run { limits, ..Run::default() }.play(&[large, task(0)], &[script(&[]), script(&[])]).await;
    assert_eq!(fates(&seen), ["too large", "Well 1"]);
}

#[test]
fn pauses_double_up_to_an_hour() {
    let pauses: Vec<_> = (1..=10).map(|number| pause(seconds(300), number).as_secs()).collect();
    assert_eq!(pauses, [300, 600, 1200, 2400, 3600, 3600, 3600, 3600, 3600, 3600]);
    assert_eq!(pause(seconds(7200), 2), seconds(7200));
    assert_eq!(pause(Duration::MAX, u32::MAX), Duration::MAX);
}
