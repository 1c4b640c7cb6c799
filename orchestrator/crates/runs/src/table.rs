//! What is not in a run yet: a hash table of 16 bytes of an id to where the object stands.
//!
//! 24 bytes a slot, tables between 68 and 85 % full, split into shards that grow one at a time. Ids are keyed hashes
//! of content, so their bytes serve as the hash. An object that stands in several packs has a slot for each.

use crate::{Location, Prefix};
use std::sync::RwLock;

const SHARDS: usize = 256;
const FIRST_SLOTS: usize = 16;
/// Full at 17/20 = 85 %: linear probing still finds most ids in two cache lines there.
const FULL: (usize, usize) = (17, 20);

/// The top bit of an entry number: the object has its full size.
pub(crate) const WHOLE: u32 = 1 << 31;

/// Locations by prefix, for many readers and writers.
pub(crate) struct Table {
    shards: Vec<RwLock<Shard>>,
}

/// One object in one pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) prefix: Prefix,
    pub(crate) pack: u32,
    /// With [`WHOLE`]. `u32::MAX`: empty.
    pub(crate) entry: u32,
}

/// What became of an object that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Added {
    /// It stands nowhere else.
    First,
    /// It stands in another pack too.
    Twin,
    /// It stands in this pack already, and keeps its place.
    Known,
}

const EMPTY: Slot = Slot { prefix: [0; 16], pack: 0, entry: u32::MAX };
const _: () = assert!(size_of::<Slot>() == 24);
const LOCKED: &str = "no panic while a shard is locked";

#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    used: usize,
}

impl Slot {
    pub(crate) fn new(prefix: Prefix, at: Location) -> Self {
        assert!(at.entry < WHOLE - 1, "a pack has less entries");
        Self { prefix, pack: at.pack, entry: at.entry | if at.whole { WHOLE } else { 0 } }
    }

    pub(crate) fn location(&self) -> Location {
        Location { pack: self.pack, entry: self.entry & !WHOLE, whole: self.entry & WHOLE != 0 }
    }
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    /// Every place of an object.
    pub(crate) fn find(&self, prefix: &Prefix, visit: &mut dyn FnMut(Location)) {
        self.shard(prefix).read().expect(LOCKED).find(prefix, &mut |slot| visit(slot.location()));
    }

    /// Adds an object, once for each pack.
    pub(crate) fn insert(&self, slot: Slot) -> Added {
        self.shard(&slot.prefix).write().expect(LOCKED).insert(slot)
    }

    /// How many slots are used.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().expect(LOCKED).used).sum()
    }

    /// Bytes that it takes.
    pub(crate) fn memory(&self) -> usize {
        let slots = |shard: &RwLock<Shard>| shard.read().expect(LOCKED).slots.capacity();
        self.shards.iter().map(slots).sum::<usize>() * size_of::<Slot>()
    }

    /// All that is in it, by prefix, then by pack.
    pub(crate) fn sorted(&self) -> Vec<Slot> {
        let mut all: Vec<Slot> = Vec::with_capacity(self.len());
        for shard in &self.shards {
            let shard = shard.read().expect(LOCKED);
            all.extend(shard.slots.iter().filter(|slot| slot.entry != EMPTY.entry));
        }
        all.sort_unstable_by_key(|slot| (u128::from_be_bytes(slot.prefix), slot.pack));
        all
    }

    fn shard(&self, prefix: &Prefix) -> &RwLock<Shard> {
        &self.shards[usize::from(prefix[15]) % SHARDS]
    }
}

impl Shard {
    fn find(&self, prefix: &Prefix, visit: &mut dyn FnMut(&Slot)) {
        if self.slots.is_empty() {
            return;
        }
        let mut at = self.first(prefix);
        while self.slots[at].entry != EMPTY.entry {
            if self.slots[at].prefix == *prefix {
                visit(&self.slots[at]);
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
    }

    fn insert(&mut self, new: Slot) -> Added {
        if self.used * FULL.1 >= self.slots.len() * FULL.0 {
            self.grow();
        }
        let (mut at, mut added) = (self.first(&new.prefix), Added::First);
        while self.slots[at].entry != EMPTY.entry {
            if self.slots[at].prefix == new.prefix {
                if self.slots[at].pack == new.pack {
                    return Added::Known;
                }
                added = Added::Twin;
            }
            at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
        }
        self.slots[at] = new;
        self.used += 1;
        added
    }

    /// Where a prefix belongs.
    fn first(&self, prefix: &Prefix) -> usize {
        let hash = u64::from_le_bytes(prefix[..8].try_into().expect("8 bytes"));
        let scaled = (u128::from(hash) * self.slots.len() as u128) >> 64;
        usize::try_from(scaled).expect("below the number of slots")
    }

    /// By a quarter: the table is at least 68 % full afterwards, and only one shard is held twice.
    fn grow(&mut self) {
        let slots = (self.slots.len() + self.slots.len() / 4).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        for slot in old.into_iter().filter(|slot| slot.entry != EMPTY.entry) {
            let mut at = self.first(&slot.prefix);
            while self.slots[at].entry != EMPTY.entry {
                at = if at + 1 == self.slots.len() { 0 } else { at + 1 };
            }
            self.slots[at] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(number: u32) -> Prefix {
        blake3::hash(&number.to_le_bytes()).as_bytes()[..16].try_into().expect("16 bytes")
    }

    fn place(number: u32) -> Location {
        Location { pack: number / 7, entry: number % 1000, whole: number.is_multiple_of(3) }
    }

    fn all(table: &Table, prefix: &Prefix) -> Vec<Location> {
        let mut found = Vec::new();
        table.find(prefix, &mut |at| found.push(at));
        found
    }

    #[test]
    fn finds_exactly_what_was_added() {
        let table = Table::new();
        for number in 0..100_000 {
            assert_eq!(all(&table, &prefix(number)), []);
            assert_eq!(table.insert(Slot::new(prefix(number), place(number))), Added::First);
        }
        assert!((0..100_000).all(|number| all(&table, &prefix(number)) == [place(number)]));
        assert!((100_000..200_000).all(|number| all(&table, &prefix(number)).is_empty()));
        assert_eq!(table.len(), 100_000);
    }

    #[test]
    fn an_object_has_a_place_in_each_pack_once() {
        let table = Table::new();
        let at = |pack, entry| Location { pack, entry, whole: true };
        assert_eq!(table.insert(Slot::new(prefix(1), at(1, 5))), Added::First);
        assert_eq!(table.insert(Slot::new(prefix(1), at(2, 6))), Added::Twin);
        assert_eq!(table.insert(Slot::new(prefix(1), at(1, 7))), Added::Known);
        assert_eq!(all(&table, &prefix(1)), [at(1, 5), at(2, 6)]);
    }

    #[test]
    fn hostile_neighbours_are_told_apart() {
        let table = Table::new();
        let ids: Vec<Prefix> = (0..200)
            .map(|last| [[0xff; 14].as_slice(), &[last, 1]].concat().try_into().expect("16"))
            .collect();
        for (number, id) in (0..).zip(&ids) {
            assert_eq!(table.insert(Slot::new(*id, place(number))), Added::First);
        }
        for (number, id) in (0..).zip(&ids) {
            assert_eq!(all(&table, id), [place(number)]);
        }
    }

    #[test]
    fn memory_is_what_the_crate_page_says() {
        let table = Table::new();
        (0..200_000).for_each(|number| {
            table.insert(Slot::new(prefix(number), place(number)));
        });
        let each = table.memory() / 200_000;
        assert!((28..=36).contains(&each), "{each} bytes per object");
    }
}
