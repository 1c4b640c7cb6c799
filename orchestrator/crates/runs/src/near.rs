//! What stands beside objects that were asked for lately.
//!
//! Data that is backed up again is met in the order in which it came, so that whoever asks for one object of a pack asks
//! for the others next. After a second hit close to the first all ids of the pack are read at once, and questions about
//! them read no pages any more.

use crate::run::Run;
use crate::table::{Slot, Table};
use crate::{Location, Prefix};
use std::collections::HashSet;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Packs whose first hit is remembered: some for each of the many who ask at once. Few, so that questions in no order,
/// which come to the same pack again by chance, do not read whole packs.
const SEEN: usize = 64;
/// Entries between two hits that count as being in a pack's order.
const CLOSE: u32 = 32;
const LOCKED: &str = "no panic while the neighbourhood is locked";

/// Ids of whole packs, in two generations.
pub(crate) struct Near {
    /// Most objects in one generation.
    half: usize,
    parts: RwLock<Parts>,
    /// Last hits: the pack's number, and above it the entry's, plus one.
    seen: Vec<AtomicU64>,
}

struct Parts {
    young: Part,
    old: Part,
}

struct Part {
    table: Table,
    packs: HashSet<u32>,
    count: usize,
}

impl Part {
    fn new() -> Self {
        Self { table: Table::new(), packs: HashSet::new(), count: 0 }
    }
}

impl Near {
    /// Holds at most so many objects.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            half: most / 2,
            parts: RwLock::new(Parts { young: Part::new(), old: Part::new() }),
            seen: (0..SEEN).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Places of an object in packs that are near.
    pub(crate) fn find(&self, prefix: &Prefix) -> Vec<Location> {
        let parts = self.parts.read().expect(LOCKED);
        let mut found = Vec::new();
        for part in [&parts.young, &parts.old] {
            if part.count > 0 {
                part.table.find(prefix, &mut |at| found.push(at));
            }
        }
        found
    }

    /// An object was found by reading a page: the second time at about one place of a pack, all of it is read.
    pub(crate) fn touch(&self, run: &Run, local: u32, at: Location) -> Result<(), String> {
        let number = at.pack;
        let hit = (u64::from(at.entry) + 1) << 32 | u64::from(number);
        let last = self.seen[number as usize % SEEN].swap(hit, Ordering::Relaxed);
        let apart = (last >> 32).abs_diff(hit >> 32);
        if last >> 32 == 0 || last & u64::from(u32::MAX) != u64::from(number) || apart > u64::from(CLOSE) {
            return Ok(());
        }
        {
            let parts = self.parts.read().expect(LOCKED);
            if parts.young.packs.contains(&number) || parts.old.packs.contains(&number) {
                return Ok(());
            }
        }
        let slots = run.ids(local)?;
        if slots.len() <= self.half {
            self.add(number, &slots);
        }
        Ok(())
    }

    fn add(&self, number: u32, slots: &[Slot]) {
        let mut parts = self.parts.write().expect(LOCKED);
        if parts.young.count + slots.len() > self.half {
            parts.old = std::mem::replace(&mut parts.young, Part::new());
        }
        let young = &mut parts.young;
        if young.packs.insert(number) {
            young.count += slots.len();
            slots.iter().for_each(|slot| _ = young.table.insert(*slot));
        }
    }

    pub(crate) fn memory(&self) -> usize {
        let parts = self.parts.read().expect(LOCKED);
        parts.young.table.memory() + parts.old.table.memory()
    }
}
