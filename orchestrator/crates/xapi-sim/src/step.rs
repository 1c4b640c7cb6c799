//! Single steps: asynchronous calls wait, in the order in which they came, until a test lets the next one run.

use crate::sim::unpoison;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Tasks that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Stepper(Mutex<Steps>);

#[derive(Debug, Default)]
struct Steps {
    is_on: bool,
    waiting: VecDeque<Turn>,
}

/// A task that may run once `go` is sent.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Its reference.
    pub(crate) task: String,
    /// Its name, such as `Async.VM.snapshot`.
    pub(crate) label: String,
    pub(crate) go: oneshot::Sender<()>,
}

impl Stepper {
    /// Whether tasks wait from the start on.
    pub(crate) fn new(is_on: bool) -> Self {
        Self(Mutex::new(Steps { is_on, waiting: VecDeque::new() }))
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        unpoison(self.0.lock())
    }

    pub(crate) fn is_on(&self) -> bool {
        self.lock().is_on
    }

    /// Queues a task; what comes back is heard when its turn is, at once where nobody steps.
    pub(crate) fn queue(&self, task: &str, label: &str) -> oneshot::Receiver<()> {
        let (go, turn) = oneshot::channel();
        let mut steps = self.lock();
        if steps.is_on {
            steps.waiting.push_back(Turn { task: task.to_owned(), label: label.to_owned(), go });
        } else {
            // The receiver is right here.
            let _ = go.send(());
        }
        turn
    }

    /// Takes the task whose turn it is out of the queue.
    pub(crate) fn next(&self) -> Option<Turn> {
        self.lock().waiting.pop_front()
    }

    /// Switches stepping on or off; off, everything that waits runs.
    pub(crate) fn switch(&self, is_on: bool) {
        let mut steps = self.lock();
        steps.is_on = is_on;
        if !is_on {
            for turn in steps.waiting.drain(..) {
                // A task whose runtime is gone needs no turn.
                let _ = turn.go.send(());
            }
        }
    }

    /// References and names of the tasks that wait.
    pub(crate) fn waiting(&self) -> Vec<(String, String)> {
        self.lock().waiting.iter().map(|turn| (turn.task.clone(), turn.label.clone())).collect()
    }
}
