//! The event log: every call with its parameters (never a password or a session reference), every object made or
//! removed, every guest started or ended. Tests assert on it; the demo shows it.

use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// Entries kept in memory; the file keeps all.
const ENTRIES_KEPT: usize = 200_000;

#[derive(Debug)]
struct Entries {
    next: u64,
    kept: VecDeque<Value>,
    file: Option<BufWriter<File>>,
}

/// The log of one simulator.
#[derive(Debug)]
pub(crate) struct EventLog {
    started: Instant,
    entries: Mutex<Entries>,
}

impl EventLog {
    /// Starts a log that is also written to `path`, where that can be made.
    pub(crate) fn new(path: &Path) -> Self {
        let file = File::create(path).ok().map(BufWriter::new);
        Self {
            started: Instant::now(),
            entries: Mutex::new(Entries { next: 0, kept: VecDeque::new(), file }),
        }
    }

    /// Adds an entry; `members` must be an object.
    pub(crate) fn add(&self, kind: &str, members: Value) {
        let t_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let mut entries = crate::sim::unpoison(self.entries.lock());
        let mut entry = json!({"seq": entries.next, "t_ms": t_ms, "kind": kind});
        if let (Value::Object(entry), Value::Object(members)) = (&mut entry, members) {
            entry.extend(members);
        }
        entries.next += 1;
        // A log that cannot be written must not stop the simulator; the copy in memory stays.
        if let Some(file) = &mut entries.file {
            let _ = writeln!(file, "{entry}").and_then(|()| file.flush());
        }
        if entries.kept.len() == ENTRIES_KEPT {
            entries.kept.pop_front();
        }
        entries.kept.push_back(entry);
    }

    /// The entries whose number is at least `since`.
    pub(crate) fn since(&self, since: u64) -> Vec<Value> {
        let entries = crate::sim::unpoison(self.entries.lock());
        // They are numbered without gaps.
        let first = entries.next - entries.kept.len() as u64;
        let skipped = usize::try_from(since.saturating_sub(first)).unwrap_or(usize::MAX);
        entries.kept.range(skipped.min(entries.kept.len())..).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_given_from_a_number_on_also_when_the_oldest_are_gone() {
        let log = EventLog::new(Path::new("/dev/null"));
        let numbers = |since| log.since(since).iter().map(|e| e["seq"].as_u64().unwrap()).collect::<Vec<_>>();
        assert_eq!(numbers(0), [0_u64; 0]);
        (0..3).for_each(|_| log.add("call", json!({})));
        assert_eq!(
            (numbers(0), numbers(2), numbers(3), numbers(9)),
            (vec![0, 1, 2], vec![2], vec![], vec![])
        );
        crate::sim::unpoison(log.entries.lock()).kept.pop_front();
        assert_eq!((numbers(0), numbers(1), numbers(2)), (vec![1, 2], vec![1, 2], vec![2]));
    }
}
