//! Runs jobs under the queue's limits: starts them, tries failed ones again after a pause, and stops starting them when
//! the backup window closes or the user asks.
//!
//! Knows nothing of what a job is. Promises: every task has exactly one fate; a task that was started is waited for,
//! also while the run stops, so that it can clean up.

use crate::queue::{Needs, Queue, Ticket};
use crate::spec::{Limits, WindowEnd};
use crate::window::{State, Window};
use jiff::Zoned;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

/// The window is looked at this often at least: a machine that slept, or whose clock was set, is noticed by then.
const WINDOW_CHECK: Duration = Duration::from_secs(60);
/// Longest pause before a further try: the pause doubles, and an hour says that it is not a passing failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// One job to be done.
#[derive(Clone, Debug)]
pub struct Task {
    /// What it takes while it runs.
    pub needs: Needs,
    /// How often it is tried again.
    pub retries: u32,
    /// Pause before the first further try; it doubles each time.
    pub retry_pause: Duration,
}

/// A try of a job that starts now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Try {
    /// The task's place in the list.
    pub task: usize,
    /// Which try it is, from 1.
    pub number: u32,
    /// The host that has room for its delegate.
    pub host: Option<String>,
}

/// What became of a task.
#[derive(Debug)]
pub enum Fate<R> {
    /// It ended, by this result of its last try.
    Ended {
        /// The result.
        result: R,
        /// How many tries there were.
        tries: u32,
    },
    /// Its last try broke off by a fault of ours, with this message.
    Broken(String),
    /// The window closed before it could start. It opens again then.
    WindowClosed(Box<Zoned>),
    /// The user stopped the run before it could start.
    Cancelled,
    /// Its delegate is larger than the budget for all of them.
    TooLarge,
}

/// A task is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Again {
    /// The task's place in the list.
    pub task: usize,
    /// Which try it will be.
    pub number: u32,
    /// In how long.
    pub pause: Duration,
}

/// The frame in which tasks run.
pub struct Frame<'a> {
    /// How many at once.
    pub limits: Limits,
    /// When they may start.
    pub window: Option<&'a Window>,
    /// What becomes of running ones when the window closes.
    pub window_end: WindowEnd,
    /// The time, by the clock on the wall.
    pub now: &'a dyn Fn() -> Zoned,
    /// Turns true when the user stops the run.
    pub cancel: watch::Receiver<bool>,
    /// What running jobs watch: set to true when they are to stop.
    pub stop: &'a watch::Sender<bool>,
}

/// How all tasks ended.
#[derive(Debug)]
pub struct Ends<R> {
    /// The fate of each task, in the order of the list.
    pub fates: Vec<Fate<R>>,
    /// Whether running jobs were stopped because the window closed.
    pub stopped_by_window: bool,
}

/// Runs all tasks to their fates. Must run within a [`LocalSet`](tokio::task::LocalSet).
///
/// `start` begins a try; `is_passing` says whether trying again can help; `again` hears of it.
pub async fn run<R: 'static, F: Future<Output = R> + 'static>(
    frame: Frame<'_>,
    tasks: &[Task],
    start: impl Fn(Try) -> F,
    is_passing: impl Fn(&R) -> bool,
    again: impl Fn(Again),
) -> Ends<R> {
    let mut books = Books::new(frame.limits, tasks);
    let mut cancel = frame.cancel.clone();
    let (mut cancelled, mut stopped_by_window) = (*cancel.borrow(), false);
    loop {
        let window = frame.window.map(|window| window.state(&(frame.now)()));
        if cancelled {
            frame.stop.send_replace(true);
            books.give_up(|| Fate::Cancelled);
        } else if let Some(State::Closed { opens }) = &window {
            books.give_up(|| Fate::WindowClosed(Box::new(opens.clone())));
            if frame.window_end == WindowEnd::Stop && !books.running.is_empty() {
                stopped_by_window = true;
                frame.stop.send_replace(true);
            }
        } else {
            books.start_all(&start);
        }
        if books.running.is_empty() && books.pausing.is_empty() {
            break;
        }
        let wake = books.wake(window.is_some());
        tokio::select! {
            Some(ended) = books.running.join_next_with_id() => {
                let left = time_left(window.as_ref(), &(frame.now)());
                let may_retry = !cancelled && !stopped_by_window;
                if let Some(next) = books.ended(ended, tasks, may_retry.then_some(left), &is_passing) {
                    again(next);
                }
            }
            () = sleep_until(wake) => books.resume(tasks),
            () = turned_true(&mut cancel), if !cancelled => cancelled = true,
        }
    }
    Ends {
        fates: books.fates.into_iter().map(|fate| fate.unwrap_or(Fate::Cancelled)).collect(),
        stopped_by_window,
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}

async fn turned_true(cancel: &mut watch::Receiver<bool>) {
    if cancel.wait_for(|cancelled| *cancelled).await.is_err() {
        // Nobody is left who could ask.
        std::future::pending().await
    }
}

/// How long jobs may still start; no end where there is no window.
fn time_left(window: Option<&State>, now: &Zoned) -> Duration {
    match window {
        None => Duration::MAX,
        Some(State::Open { until }) => Duration::try_from(now.duration_until(until)).unwrap_or_default(),
        Some(State::Closed { .. }) => Duration::ZERO,
    }
}

/// A task between two tries.
struct Pausing<R> {
    task: usize,
    /// The try that comes.
    number: u32,
    due: Instant,
    /// What the last one gave.
    result: R,
}

/// What runs, waits and has ended.
struct Books<R> {
    queue: Queue,
    /// The task and the number of the try behind each ticket.
    tickets: HashMap<Ticket, (usize, u32)>,
    running: JoinSet<R>,
    started: HashMap<Id, Ticket>,
    pausing: Vec<Pausing<R>>,
    /// Results of earlier tries of tasks that wait in the queue again.
    earlier: HashMap<usize, (R, u32)>,
    fates: Vec<Option<Fate<R>>>,
}

impl<R: 'static> Books<R> {
    fn new(limits: Limits, tasks: &[Task]) -> Self {
        let mut books = Self {
            queue: Queue::new(limits),
            tickets: HashMap::new(),
            running: JoinSet::new(),
            started: HashMap::new(),
            pausing: Vec::new(),
            earlier: HashMap::new(),
            fates: tasks.iter().map(|_| None).collect(),
        };
        for (index, task) in tasks.iter().enumerate() {
            books.push(index, 1, &task.needs);
        }
        books
    }

    fn push(&mut self, task: usize, number: u32, needs: &Needs) {
        match self.queue.push(needs.clone()) {
            Some(ticket) => {
                self.tickets.insert(ticket, (task, number));
            }
            None => self.fates[task] = Some(Fate::TooLarge),
        }
    }

    fn start_all<F: Future<Output = R> + 'static>(&mut self, start: &impl Fn(Try) -> F) {
        while let Some(grant) = self.queue.start_next() {
            let Some(&(task, number)) = self.tickets.get(&grant.ticket) else { continue };
            self.earlier.remove(&task);
            let handle = self.running.spawn_local(start(Try { task, number, host: grant.host }));
            self.started.insert(handle.id(), grant.ticket);
        }
    }

    /// Ends the waiting of every task that does not run: one that was tried has its last result as its fate.
    fn give_up(&mut self, fate: impl Fn() -> Fate<R>) {
        for pausing in self.pausing.drain(..) {
            let Pausing { task, number, result, .. } = pausing;
            self.fates[task] = Some(Fate::Ended { result, tries: number - 1 });
        }
        for ticket in self.queue.drain() {
            let Some((task, _)) = self.tickets.remove(&ticket) else { continue };
            self.fates[task] = Some(match self.earlier.remove(&task) {
                Some((result, tries)) => Fate::Ended { result, tries },
                None => fate(),
            });
        }
    }

    /// Books the end of a try. `left` is how long jobs may still start, none where no further one may.
    fn ended(
        &mut self,
        ended: Result<(Id, R), JoinError>,
        tasks: &[Task],
        left: Option<Duration>,
        is_passing: &impl Fn(&R) -> bool,
    ) -> Option<Again> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, Ok(result)),
            Err(error) => (error.id(), Err(error)),
        };
        let ticket = self.started.remove(&id)?;
        self.queue.release(ticket);
        let (task, number) = self.tickets.remove(&ticket)?;
        let result = match result {
            Ok(result) => result,
            Err(error) => {
                tracing::error!("a job ended by itself: {error}");
                self.fates[task] = Some(Fate::Broken(error.to_string()));
                return None;
            }
        };
        let pause = pause(tasks[task].retry_pause, number);
        if number > tasks[task].retries || left.is_none_or(|left| pause >= left) || !is_passing(&result) {
            self.fates[task] = Some(Fate::Ended { result, tries: number });
            return None;
        }
        let number = number + 1;
        self.pausing.push(Pausing { task, number, due: Instant::now() + pause, result });
        Some(Again { task, number, pause })
    }

    /// When something is to be done although nothing has ended.
    fn wake(&self, has_window: bool) -> Option<Instant> {
        let check = has_window.then(|| Instant::now() + WINDOW_CHECK);
        self.pausing.iter().map(|pausing| pausing.due).chain(check).min()
    }

    /// Puts tasks whose pause is over back into the queue.
    fn resume(&mut self, tasks: &[Task]) {
        let now = Instant::now();
        let (due, pausing) = std::mem::take(&mut self.pausing).into_iter().partition(|one| one.due <= now);
        self.pausing = pausing;
        for Pausing { task, number, result, .. } in due {
            self.push(task, number, &tasks[task].needs);
            self.earlier.insert(task, (result, number - 1));
        }
    }
}

/// The pause after a try: it doubles each time, up to [`LONGEST_PAUSE`], and is never shortened to that.
fn pause(first: Duration, number: u32) -> Duration {
    let factor = 2_u32.saturating_pow(number.saturating_sub(1));
    first.saturating_mul(factor).min(LONGEST_PAUSE.max(first))
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
