//! Faults on request: by call name and count, errors, delays, cut and frozen connections, events lost and doubled;
//! guests without a network cable.

use crate::failure::Failure;
use crate::writes;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where in a call a fault strikes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum When {
    /// Before anything was done.
    #[default]
    Before,
    /// After everything was done: the effect stays, the caller sees the error.
    After,
}

/// One planned fault, as `POST /lab/faults` takes it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Call name (`VDI.snapshot`, with or without `Async.`) or handler (`PUT /import`); `*` is every call.
    pub method: String,
    /// With `*`: calls that do not count, by name.
    #[serde(default)]
    pub except: Vec<String>,
    /// Only calls that may change something count: all but questions, sessions, events. Data handlers do.
    #[serde(default)]
    pub writes: bool,
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
    /// Answer nothing, and leave the connection open until the client closes it: the moment to kill the client.
    /// Struck `after`, an asynchronous call's task has finished, and so has a data handler's.
    #[serde(default)]
    pub freeze: bool,
    /// `event.from`: so many events, from this call on, are never told to anybody who waits for them.
    #[serde(default)]
    pub lose_events: u64,
    /// `event.from`: every event of this answer stands in it twice.
    #[serde(default)]
    pub double_events: bool,
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
    /// Matching calls so far; shown by `GET /lab/faults`.
    #[serde(skip_deserializing)]
    pub(crate) seen: u64,
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
        let method = name(method);
        let is_named = match self.method.as_str() {
            "*" => !self.except.iter().any(|e| name(e) == method),
            one => name(one) == method,
        };
        is_named && (!self.writes || writes::may_change(&method))
    }

    /// Whether it freezes the call at this point.
    pub(crate) fn freezes(&self, when: When) -> bool {
        self.freeze && self.when == when
    }

    /// Whether it cuts the connection at this point.
    pub(crate) fn drops(&self, when: When) -> bool {
        self.drop && self.when == when
    }

    fn first(&self) -> u64 {
        self.nth.unwrap_or(1).max(1)
    }
}

/// All planned faults.
#[derive(Debug)]
pub(crate) struct Faults {
    planned: Vec<Fault>,
    /// Events that nobody is told any more.
    events_to_lose: u64,
    /// Whether guests that start now get a network cable.
    pub(crate) dhcp: bool,
    /// Whether the pool may use change tracking.
    pub(crate) cbt_licensed: bool,
    /// How far the hosts' clocks are ahead of this machine's; negative: behind.
    pub(crate) clock_offset_s: i64,
}

impl Default for Faults {
    fn default() -> Self {
        Self { planned: Vec::new(), events_to_lose: 0, dhcp: true, cbt_licensed: true, clock_offset_s: 0 }
    }
}

impl Faults {
    pub(crate) fn plan(&mut self, fault: Fault) {
        self.planned.push(fault);
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// What has not struck yet, or not for the last time.
    pub(crate) fn planned(&self) -> &[Fault] {
        &self.planned
    }

    /// How many of `count` events are lost, from now on one less for each.
    pub(crate) fn lose_events(&mut self, count: usize) -> usize {
        let lost = usize::try_from(self.events_to_lose).unwrap_or(usize::MAX).min(count);
        self.events_to_lose -= lost as u64;
        lost
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
        self.events_to_lose += struck.as_ref().map_or(0, |fault| fault.lose_events);
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
    fn all_calls_but_some_and_writes_alone_can_be_counted() {
        let mut faults = Faults::default();
        let except = vec!["event.from".to_owned(), "Async.VM.start".to_owned()];
        faults.plan(Fault { method: "*".into(), except, nth: Some(2), drop: true, ..Fault::default() });
        for method in ["event.from", "VM.get_record", "VM.start", "event.from"] {
            assert!(faults.strike(method).is_none(), "{method}");
        }
        assert_eq!(faults.strike("session.logout").unwrap().seen, 2);
        faults.plan(Fault { method: "*".into(), writes: true, nth: Some(2), drop: true, ..Fault::default() });
        for method in ["VM.get_record", "PUT /import", "VDI.list_changed_blocks", "session.logout"] {
            assert!(faults.strike(method).is_none(), "{method}");
        }
        assert_eq!(faults.planned()[0].seen, 1);
        assert!(faults.strike("Async.VM.snapshot").is_some());
        assert!(faults.planned().is_empty());
    }

    #[test]
    fn events_are_lost_once() {
        let mut faults = Faults::default();
        faults.plan(Fault { method: "event.from".into(), lose_events: 3, ..Fault::default() });
        assert_eq!(faults.lose_events(5), 0);
        faults.strike("event.from").unwrap();
        assert_eq!((faults.lose_events(2), faults.lose_events(2), faults.lose_events(2)), (2, 1, 0));
    }

    #[test]
    fn a_count_strikes_that_many_calls_in_a_row() {
        let mut faults = Faults::default();
        faults.plan(Fault { method: "*".into(), count: Some(3), drop: true, ..Fault::default() });
        assert_eq!((0..5).filter(|_| faults.strike("VM.start").is_some()).count(), 3);
    }
}
