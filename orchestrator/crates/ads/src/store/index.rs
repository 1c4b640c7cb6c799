//! Where each block or node stands: 16 bytes of its id to a pack number and an entry number.
//!
//! Owns a hash table of its own because memory decides how large a store a small host can serve: 24 bytes
//! a slot, tables between 68 and 85 % full, split into shards that grow one at a time. Ids are keyed hashes
//! of content, so their bytes serve as the hash, and 128 bits of them name an object. Whoever reads compares the
//! whole id with the pack's entry.

use std::sync::RwLock;

const SHARDS: usize = 256;
const FIRST_SLOTS: usize = 16;
/// Full at 17/20 = 85 %: linear probing still finds most ids in two cache lines there.
const FULL: (usize, usize) = (17, 20);

/// The top bit of an entry number: the object is a whole block of 64 KiB, or a node. A pack of 64 MiB has
/// less than 2^21 entries.
const WHOLE: u32 = 1 << 31;

/// Where an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Number of the pack in this process.
    pub(crate) pack: u32,
    /// Position in the pack's index.
    pub(crate) entry: u32,
    /// Whether it has the full size: 64 KiB for a block. Only the last block of a disk may be shorter.
    pub(crate) whole: bool,
}

/// A set of locations by id, for many readers and writers.
pub(crate) struct Index {
    shards: Vec<RwLock<Shard>>,
}

#[derive(Clone, Copy)]
struct Slot {
    prefix: [u8; 16],
    pack: u32,
    /// `u32::MAX`: empty.
    entry: u32,
}

const EMPTY: Slot = Slot { prefix: [0; 16], pack: 0, entry: u32::MAX };
const _: () = assert!(size_of::<Slot>() == 24);

#[derive(Default)]
struct Shard {
    slots: Vec<Slot>,
    used: usize,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    /// The object's place, if known.
    pub(crate) fn get(&self, id: &[u8; 32]) -> Option<Location> {
        self.shard(id).read().expect("no panic while a shard is locked").get(&prefix(id))
    }

    /// Adds an object. One that is known keeps its first place; then `false` comes back.
    pub(crate) fn insert(&self, id: &[u8; 32], location: Location) -> bool {
        assert!(location.entry < WHOLE - 1, "a pack has less entries");
        self.shard(id).write().expect("no panic while a shard is locked").insert(Slot {
            prefix: prefix(id),
            pack: location.pack,
            entry: location.entry | if location.whole { WHOLE } else { 0 },
        })
    }

    /// Gives a known object another place.
    pub(crate) fn replace(&self, id: &[u8; 32], location: Location) {
        self.shard(id).write().expect("no panic while a shard is locked").replace(Slot {
            prefix: prefix(id),
            pack: location.pack,
            entry: location.entry | if location.whole { WHOLE } else { 0 },
        });
    }

    /// How many objects are known.
    pub(crate) fn len(&self) -> u64 {
        self.shards
            .iter()
            .map(|shard| shard.read().expect("no panic while a shard is locked").used as u64)
            .sum()
    }

    fn shard(&self, id: &[u8; 32]) -> &RwLock<Shard> {
        &self.shards[usize::from(id[31]) % SHARDS]
    }
}

fn prefix(id: &[u8; 32]) -> [u8; 16] {
    id[..16].try_into().expect("16 bytes")
}

impl Shard {
    fn get(&self, prefix: &[u8; 16]) -> Option<Location> {
        if self.slots.is_empty() {
            return None;
        }
        let slot = &self.slots[self.find(prefix)];
        (slot.entry != EMPTY.entry).then_some(Location {
            pack: slot.pack,
            entry: slot.entry & !WHOLE,
            whole: slot.entry & WHOLE != 0,
        })
    }

    fn insert(&mut self, new: Slot) -> bool {
        if self.used * FULL.1 >= self.slots.len() * FULL.0 {
            self.grow();
        }
        let at = self.find(&new.prefix);
        if self.slots[at].entry != EMPTY.entry {
            return false;
        }
        self.slots[at] = new;
        self.used += 1;
        true
    }

    fn replace(&mut self, new: Slot) {
        if !self.slots.is_empty() {
            let at = self.find(&new.prefix);
            if self.slots[at].entry != EMPTY.entry {
                self.slots[at] = new;
            }
        }
    }

    /// The slot of a prefix, or the empty one where it belongs. There is always one: see [`FULL`].
    fn find(&self, prefix: &[u8; 16]) -> usize {
        let hash = u64::from_le_bytes(prefix[..8].try_into().expect("8 bytes"));
        let scaled = (u128::from(hash) * self.slots.len() as u128) >> 64;
        let mut at = usize::try_from(scaled).expect("below the number of slots");
        while self.slots[at].entry != EMPTY.entry && self.slots[at].prefix != *prefix {
            at += 1;
            if at == self.slots.len() {
                at = 0;
            }
        }
        at
    }

    /// By a quarter: the table is at least 68 % full afterwards, and only one shard is held twice.
    fn grow(&mut self) {
        let slots = (self.slots.len() + self.slots.len() / 4).max(FIRST_SLOTS);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        for slot in old.into_iter().filter(|slot| slot.entry != EMPTY.entry) {
            let at = self.find(&slot.prefix);
            self.slots[at] = slot;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> [u8; 32] {
        *blake3::hash(&number.to_le_bytes()).as_bytes()
    }

    fn place(number: u32) -> Location {
        Location { pack: number / 7, entry: number % 1000, whole: number.is_multiple_of(3) }
    }

    #[test]
    fn finds_exactly_what_was_added() {
        let index = Index::new();
        for number in 0..100_000 {
            assert_eq!(index.get(&id(number)), None);
            assert!(index.insert(&id(number), place(number)));
        }
        for number in 0..100_000 {
            assert_eq!(index.get(&id(number)), Some(place(number)));
        }
        assert!((100_000..200_000).all(|number| index.get(&id(number)).is_none()));
        assert_eq!(index.len(), 100_000);
    }

    #[test]
    fn the_first_place_stays() {
        let index = Index::new();
        assert!(index.insert(&id(1), place(1)));
        assert!(!index.insert(&id(1), place(2)));
        assert_eq!(index.get(&id(1)), Some(place(1)));
    }

    #[test]
    fn hostile_neighbours_are_told_apart() {
        let index = Index::new();
        let mut ids = Vec::new();
        for last in 0..200 {
            let mut id = [0xff; 32];
            id[15] = last;
            id[31] = 1;
            ids.push(id);
        }
        for (number, id) in (0..).zip(&ids) {
            assert!(index.insert(id, place(number)));
        }
        for (number, id) in (0..).zip(&ids) {
            assert_eq!(index.get(id), Some(place(number)));
        }
    }

    #[test]
    fn memory_is_what_the_crate_page_says() {
        let index = Index::new();
        (0..200_000).for_each(|number| {
            index.insert(&id(number), place(number));
        });
        let slots: usize = index.shards.iter().map(|shard| shard.read().expect("lock").slots.len()).sum();
        let bytes = slots * size_of::<Slot>();
        assert!((28..=36).contains(&(bytes / 200_000)), "{} bytes per block", bytes / 200_000);
    }
}
