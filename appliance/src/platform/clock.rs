//! Time since the kernel started, and the named moments of a boot.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::console;

/// Milestones kept; a job has about a dozen.
const MILESTONES_MAX: usize = 64;

/// Time since the kernel started, with the time that the VM was suspended.
pub fn uptime() -> Duration {
    // The call fails only for clocks that the kernel does not have; every kernel we boot has this one.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Processor time of this process, of all its threads.
pub fn cpu_time() -> Duration {
    // As above.
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

/// Named moments, each written to the console when it is reached. Clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Milestones {
    reached: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Milestones {
    /// Notes that `name` was reached now.
    pub fn mark(&self, name: &str) {
        self.note(name, uptime());
        console::line(name);
    }

    /// Notes a moment that others measured, without a console line.
    pub fn note(&self, name: &str, at: Duration) {
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if reached.len() < MILESTONES_MAX {
            reached.push((name.to_owned(), at));
        }
    }

    /// All moments in the order they were reached, as time since the kernel started.
    pub fn list(&self) -> Vec<(String, Duration)> {
        self.reached.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
