//! Changed-block tracking: `cbt-util` and the storage manager's VDI driver.
//!
//! - Every tracked VDI has a log: a bitmap of what was written since the log began, and links to its neighbours.
//! - A snapshot takes the live disk's log over; the live disk gets an empty one that follows it.
//! - Deleting a tracked snapshot adds its bits to the log that follows, and links the neighbours.
//! - Growing extends the live log with zero bits: nothing was written there.
//! - Switching tracking off cuts the link to the live log; a log that begins later follows nothing.
//! - A list of changes is the sum of all logs behind `from`, up to and with that of `to`, in the size of `to`'s.

use super::{Content, SECTORS_PER_BLOCK};

/// A snapshot that is still there, with or without its data.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) content: Content,
    log: Option<usize>,
}

#[derive(Clone, Debug, Default)]
struct Log {
    bits: Vec<bool>,
    child: Option<usize>,
    parent: Option<usize>,
}

/// A disk under tracking.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) live: Content,
    pub(crate) snapshots: Vec<Snapshot>,
    logs: Vec<Log>,
    live_log: Option<usize>,
}

impl Disk {
    /// A disk that is tracked from the start.
    pub(crate) fn new(sectors: usize) -> Self {
        let live = Content::new(sectors);
        let mut disk = Self { live, snapshots: Vec::new(), logs: Vec::new(), live_log: None };
        disk.begin_log(None);
        disk
    }

    fn begin_log(&mut self, parent: Option<usize>) {
        let index = self.logs.len();
        self.logs.push(Log { bits: vec![false; self.live.block_count()], child: None, parent });
        if let Some(parent) = parent {
            self.logs[parent].child = Some(index);
        }
        self.live_log = Some(index);
    }

    pub(crate) fn write(&mut self, start: usize, count: usize) {
        let written = self.live.write(start, count);
        let (Some(log), false) = (self.live_log, written.is_empty()) else { return };
        let blocks = written.start / SECTORS_PER_BLOCK..=(written.end - 1) / SECTORS_PER_BLOCK;
        self.logs[log].bits[blocks].fill(true);
    }

    pub(crate) fn grow(&mut self, sectors: usize) {
        self.live.grow(sectors);
        if let Some(log) = self.live_log {
            self.logs[log].bits.resize(self.live.block_count(), false);
        }
    }

    pub(crate) fn snapshot(&mut self) {
        let log = self.live_log;
        self.snapshots.push(Snapshot { content: self.live.clone(), log });
        if log.is_some() {
            self.begin_log(log);
        }
    }

    pub(crate) fn switch_off(&mut self) {
        if let Some(parent) = self.live_log.take().and_then(|log| self.logs[log].parent) {
            self.logs[parent].child = None;
        }
    }

    pub(crate) fn switch_on(&mut self) {
        if self.live_log.is_none() {
            self.begin_log(None);
        }
    }

    /// Takes a snapshot and its log away.
    pub(crate) fn delete(&mut self, at: usize) {
        let Some(log) = self.snapshots.remove(at).log else { return };
        let Log { bits, child, parent } = std::mem::take(&mut self.logs[log]);
        if let Some(child) = child {
            for (into, bit) in self.logs[child].bits.iter_mut().zip(&bits) {
                *into |= bit;
            }
            self.logs[child].parent = parent;
        }
        if let Some(parent) = parent {
            self.logs[parent].child = child;
        }
    }

    /// `VDI.list_changed_blocks`, most significant bit first, with noise in the padding; `None` where the two are not
    /// related.
    pub(crate) fn list_changed(&self, from: &Snapshot, to: &Snapshot) -> Option<Vec<u8>> {
        let (mut at, to_log) = (from.log?, to.log?);
        let mut bits = vec![false; self.logs[to_log].bits.len()];
        while at != to_log {
            at = self.logs[at].child?;
            for (into, bit) in bits.iter_mut().zip(&self.logs[at].bits) {
                *into |= bit;
            }
        }
        // A disk is not listed against itself.
        (from.log != to.log).then(|| {
            let mut bytes = vec![0; bits.len().div_ceil(8)];
            let padding = bits.len()..bytes.len() * 8;
            let set = (0..bits.len()).filter(|block| bits[*block]).chain(padding);
            set.for_each(|block| bytes[block / 8] |= 0x80 >> (block % 8));
            bytes
        })
    }
}
