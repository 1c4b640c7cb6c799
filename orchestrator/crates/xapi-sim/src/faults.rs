//! Faults on request: one-shot errors by call name and count, cut connections, guests without a network cable.

use crate::failure::Failure;
use serde::Deserialize;
use std::time::Duration;

/// Where in a call a fault strikes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Before anything was done.
    #[default]
    Before,
    /// After everything was done: the effect stays, the caller sees the error.
    After,
}

/// One planned fault, as `POST /lab/faults` takes it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Call name (`VDI.snapshot`, with or without `Async.`) or handler (`PUT /import`); `*` is every call.
    pub method: String,
    /// Strikes at the n-th matching call from now, counted from 1; absent is 1.
    pub nth: Option<u64>,
    /// How many calls in a row; absent is 1.
    pub count: Option<u64>,
    /// Before or after the effect.
    #[serde(default)]
    pub when: When,
    /// The API error to answer: code, then parameters.
    pub error: Option<Vec<String>>,
    /// Cut the connection instead of answering.
    #[serde(default)]
    pub drop: bool,
    /// Data handlers: end the body after so many bytes and cut the connection.
    pub cut_after: Option<u64>,
    /// Data handlers: answer 302 with this location.
    pub redirect: Option<String>,
    /// Data handlers: a 500 page inside the body of a 200 answer.
    #[serde(default)]
    pub page_in_body: bool,
    /// Wait so long first.
    #[serde(default)]
    pub delay_ms: u64,
    #[serde(skip)]
    seen: u64,
}

impl Fault {
    /// The error to answer, if it is one.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.error.clone().map(Failure::from_list)
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms)
    }

    fn matches(&self, method: &str) -> bool {
        let name = |s: &str| s.strip_prefix("Async.").unwrap_or(s).to_owned();
        self.method == "*" || name(&self.method) == name(method)
    }

    fn first(&self) -> u64 {
        self.nth.unwrap_or(1).max(1)
    }
}

/// All planned faults.
#[derive(Debug)]
pub(crate) struct Faults {
    planned: Vec<Fault>,
    /// Whether guests that start now get a network cable.
    pub(crate) dhcp: bool,
    /// Whether the pool may use change tracking.
    pub(crate) cbt_licensed: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self { planned: Vec::new(), dhcp: true, cbt_licensed: true }
    }
}

impl Faults {
    pub(crate) fn plan(&mut self, fault: Fault) {
        self.planned.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Counts this call and answers the fault that strikes it.
    pub(crate) fn strike(&mut self, method: &str) -> Option<Fault> {
        let mut struck = None;
        for fault in self.planned.iter_mut().filter(|f| f.matches(method)) {
            fault.seen += 1;
            if fault.seen >= fault.first() && struck.is_none() {
                struck = Some(fault.clone());
            }
        }
        self.planned.retain(|f| f.seen < f.first() + f.count.unwrap_or(1) - 1 || f.count == Some(0));
        struck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_the_nth_call_and_then_is_spent() {
        let mut faults = Faults::default();
        let error = Some(vec!["X".to_owned()]);
        faults.plan(Fault { method: "VDI.snapshot".into(), nth: Some(2), error, ..Fault::default() });
        assert!(faults.strike("VM.snapshot").is_none());
        assert!(faults.strike("Async.VDI.snapshot").is_none());
        assert_eq!(faults.strike("VDI.snapshot").unwrap().failure().unwrap().code(), "X");
        assert!(faults.strike("VDI.snapshot").is_none());
        assert!(faults.planned.is_empty());
    }

    #[test]
    fn a_count_strikes_that_many_calls_in_a_row() {
        let mut faults = Faults::default();
        faults.plan(Fault { method: "*".into(), count: Some(3), drop: true, ..Fault::default() });
        assert_eq!((0..5).filter(|_| faults.strike("VM.start").is_some()).count(), 3);
    }
}
