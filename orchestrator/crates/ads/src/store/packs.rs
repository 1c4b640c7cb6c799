//! The packs of a store: their numbers in this process, loading their indexes, reading from them.
//!
//! A pack's index is trusted after its own hash was checked. What is read through it is proven by its id
//! before anybody sees it.

use super::cache::Generations;
use super::index::{IndexOptions, Location};
use super::reach::PerObject;
use crate::Error;
use crate::backend::{Backend, Listed, Object, PACKS, file_name, pack_key};
use crate::error::sentence;
use blocks::{BLOCK_SIZE, ByteCount};
use rayon::prelude::*;
use seal::{
    Codec, Entry, HEADER_SIZE, IdKey, KeyTable, KeyTablePlace, Lock, MAX_PACK_SIZE, NODE_SIZE, Opener,
    PackId, PackIndex, PackKind, Sealed, TRAILER_ENTRY_SIZE, TRAILER_FOOTER_SIZE,
};
use std::cmp::Reverse;
use std::collections::hash_map;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use uuid::Uuid;

/// Bytes of a pack's end that are read at once: the index of a 16 MiB pack of well compressed blocks.
const TAIL_GUESS: u64 = 64 << 10;
/// Packs kept open for reading.
const OPEN_PACKS: usize = 128;
/// Key tables of encrypted packs that are remembered, of mostly 36 bytes each.
const KEY_TABLES: usize = 4096;
/// Objects that nobody asked for are read along where no more of them than this stand between two that are wanted.
const MAX_GAP: u32 = 2;

/// A pack whose index is loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackRecord {
    pub(crate) id: PackId,
    pub(crate) kind: PackKind,
    pub(crate) size: u32,
    pub(crate) entries: u32,
}

/// A file below `packs/` that is not used, and why.
#[derive(Clone, Debug)]
pub struct SkippedPack {
    /// The file.
    pub path: PathBuf,
    /// Which check failed.
    pub reason: String,
}

/// Packs that are not to be relied on, by number.
#[derive(Default)]
struct Avoided {
    /// Removed by a collector.
    gone: HashSet<u32>,
    /// On their way there: what they hold is promised to nobody.
    condemned: HashSet<u32>,
}

/// How good a place a pack is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Gone,
    Condemned,
    Lasting,
}

/// What is compared between two places of an object.
type Worth = (Standing, Reverse<PackId>);

impl Avoided {
    fn standing(&self, pack: u32) -> Standing {
        match () {
            () if self.gone.contains(&pack) => Standing::Gone,
            () if self.condemned.contains(&pack) => Standing::Condemned,
            () => Standing::Lasting,
        }
    }
}

/// All packs and what is in them.
pub(crate) struct Packs {
    avoided: RwLock<Avoided>,
    /// Whether there are any: without collections nobody waits for the lock above.
    avoids: AtomicBool,
    backend: Arc<dyn Backend>,
    table: RwLock<Table>,
    index: runs::Index,
    /// Held by who reads anew what a damaged part of the index told.
    healing: Mutex<()>,
    open: Mutex<Generations<u32, Arc<dyn Object>>>,
    /// Whether packs of blocks are encrypted.
    is_encrypted: bool,
    /// What the keys of packs were made of.
    key_tables: Mutex<Generations<u32, Arc<KeyTable>>>,
}

#[derive(Default)]
struct Table {
    records: Vec<PackRecord>,
    numbers: HashMap<PackId, u32>,
}

impl Table {
    /// Gives a pack the next number; `None` where it has one.
    fn push(&mut self, record: PackRecord) -> Option<u32> {
        let number = u32::try_from(self.records.len()).expect("packs are fewer than 2^32");
        match self.numbers.entry(record.id) {
            hash_map::Entry::Occupied(_) => None,
            hash_map::Entry::Vacant(free) => {
                free.insert(number);
                self.records.push(record);
                Some(number)
            }
        }
    }
}

/// A sealed object that was read but not opened.
#[derive(Debug)]
pub(crate) struct StoredObject {
    pub(crate) pack: PackId,
    pub(crate) codec: Codec,
    pub(crate) lock: Option<Lock>,
    pub(crate) plain_size: u32,
    pub(crate) bytes: Vec<u8>,
}

/// Sealed objects that were read together, in the order asked for.
#[derive(Debug, Default)]
pub(crate) struct StoredObjects {
    /// What was read at once.
    runs: Vec<Vec<u8>>,
    objects: Vec<Option<ObjectAt>>,
}

#[derive(Clone, Debug)]
struct ObjectAt {
    codec: Codec,
    lock: Option<Lock>,
    plain_size: u32,
    run: usize,
    at: std::ops::Range<usize>,
}

/// What lies below `packs/`.
pub(crate) struct Listing {
    /// Ids, and sizes in bytes.
    pub(crate) packs: Vec<(PackId, u64)>,
    pub(crate) strays: Vec<PathBuf>,
}

const LOCKED: &str = "no panic while the table is locked";

impl Packs {
    /// Loads what the index kept of the packs that are there, and the indexes of the others. Packs that cannot be read are
    /// skipped and named.
    pub(crate) fn load(
        backend: Arc<dyn Backend>,
        store: Uuid,
        is_encrypted: bool,
        options: &IndexOptions,
        cache: Option<&Path>,
    ) -> Result<(Self, Vec<SkippedPack>), Error> {
        let index = options.index(cache, store);
        // Before the packs are listed: it tells of none that comes later.
        let kept = index.runs();
        let listing = list(&*backend)?;
        let readers = backend.parallel_reads();
        let packs = Self {
            avoided: RwLock::default(),
            avoids: AtomicBool::new(false),
            backend,
            table: RwLock::default(),
            index,
            healing: Mutex::default(),
            open: Mutex::new(Generations::new(OPEN_PACKS)),
            is_encrypted,
            key_tables: Mutex::new(Generations::new(KEY_TABLES)),
        };
        packs.attach(kept, &listing);
        let missing: Vec<_> = listing.packs.iter().filter(|(id, _)| !packs.contains(*id)).collect();
        let readers = rayon::ThreadPoolBuilder::new()
            .num_threads(readers.min(missing.len().max(1)))
            .build()
            .map_err(|error| Error::Worker { reason: error.to_string() })?;
        let failed: Vec<SkippedPack> = readers.install(|| {
            missing.par_iter().filter_map(|(id, size)| packs.load_one(*id, *size).err()).collect()
        });
        if packs.index.numbers().table_packs >= options.fewest_packs {
            packs.index.flush();
        }
        let strays =
            listing.strays.into_iter().map(|path| SkippedPack { path, reason: "not a pack's name".into() });
        let skipped: Vec<SkippedPack> = failed.into_iter().chain(strays).collect();
        for pack in &skipped {
            tracing::warn!(file = %pack.path.display(), reason = %pack.reason, "pack is not used; run verify");
        }
        Ok((packs, skipped))
    }

    /// Takes over what the index kept of packs that are still what they were.
    fn attach(&self, kept: Vec<runs::Found>, listing: &Listing) {
        if kept.is_empty() {
            return;
        }
        let there: HashMap<PackId, u64> = listing.packs.iter().copied().collect();
        for run in kept {
            let number_of = |about: &runs::PackAbout| {
                let id = PackId::from_bytes(about.id);
                let kind =
                    [PackKind::Data, PackKind::Tree].into_iter().find(|kind| *kind as u8 == about.kind)?;
                if there.get(&id) != Some(&u64::from(about.size)) {
                    return None;
                }
                self.table.write().expect(LOCKED).push(PackRecord {
                    id,
                    kind,
                    size: about.size,
                    entries: about.entries,
                })
            };
            let numbers = run.packs().iter().map(|about| number_of(about).unwrap_or(runs::NOWHERE)).collect();
            self.index.attach(run, numbers);
        }
    }

    /// Makes a pack of `size` bytes known that others may have added.
    pub(crate) fn load_one(&self, id: PackId, size: u64) -> Result<(), SkippedPack> {
        let key = pack_key(id);
        let skipped = |reason: String| SkippedPack { path: self.backend.place(&key), reason };
        let object = self.backend.open(&key).map_err(|error| skipped(sentence(&error)))?;
        let (size, index) = read_index(&*object, size).map_err(skipped)?;
        self.add(id, size, &index);
        Ok(())
    }

    /// Takes note that a pack has other bytes than before, and that its object has.
    pub(crate) fn mended(&self, id: PackId, size: u64) -> Result<(), SkippedPack> {
        let Some(number) = self.number_of(id) else { return self.load_one(id, size) };
        let key = pack_key(id);
        let object = self.backend.open(&key);
        let object = object
            .map_err(|error| SkippedPack { path: self.backend.place(&key), reason: sentence(&error) })?;
        self.open.lock().expect(LOCKED).insert(number, object);
        Ok(())
    }

    /// Makes a durable pack known. A pack that is known stays as it is.
    pub(crate) fn add(&self, id: PackId, size: u32, index: &PackIndex) {
        let entries = u32::try_from(index.entries.len()).expect("bounded by MAX_PACK_SIZE");
        let record = PackRecord { id, kind: index.kind, size, entries };
        let number = self.table.write().expect(LOCKED).push(record);
        if let Some(number) = number.or_else(|| self.came_again(id)) {
            self.tell(number, &record, index);
        }
    }

    /// The number of a pack that was removed, and is there now.
    fn came_again(&self, id: PackId) -> Option<u32> {
        let number = self.table.read().expect(LOCKED).numbers.get(&id).copied()?;
        self.avoided.write().expect(LOCKED).gone.remove(&number).then_some(number)
    }

    /// Enters a pack's objects.
    fn tell(&self, number: u32, record: &PackRecord, index: &PackIndex) {
        let PackRecord { id, kind, size, entries } = *record;
        let about = runs::PackAbout { id: *id.as_bytes(), size, entries, kind: kind as u8 };
        let whole = whole_size(kind);
        let mut objects = index.entries.iter().map(|entry| {
            let prefix = entry.id[..16].try_into().expect("16 bytes");
            (prefix, u64::from(entry.plain_size) == whole)
        });
        self.index.insert(number, about, &mut objects);
    }

    /// Reads anew from the packs what a part of the index told that cannot be read.
    fn heal(&self, damaged: &runs::Damaged) {
        let _one = self.healing.lock().expect(LOCKED);
        let members = self.index.members(damaged);
        if members.is_empty() {
            // Somebody was faster.
            return;
        }
        let (run, reason) = (damaged.path.display(), &damaged.reason);
        tracing::warn!(%run, reason, packs = members.len(), "a part of the index is damaged and is made anew");
        for number in members {
            match self.index_of(number) {
                Ok(index) => self.tell(number, &self.record(number), &index),
                Err(error) => {
                    let pack = self.backend.place(&pack_key(self.record(number).id));
                    tracing::warn!(pack = %pack.display(), %error, "pack is not used; run verify");
                }
            }
        }
        self.index.discard(damaged);
    }

    /// Takes note of condemned packs; with `list` also of packs that came and went since they were last listed.
    pub(crate) fn look_again(&self, list: bool, condemned: &HashSet<PackId>) -> Result<(), Error> {
        if list {
            // Before the list: what this process adds meanwhile is not missed in it.
            let known = self.table.read().expect(LOCKED).records.len();
            let listing = self::list(&*self.backend)?;
            let there: HashSet<PackId> = listing.packs.iter().map(|(id, _)| *id).collect();
            for (id, size) in listing.packs.iter().filter(|(id, _)| !self.contains(*id)) {
                if let Err(SkippedPack { path, reason }) = self.load_one(*id, *size) {
                    tracing::warn!(pack = %path.display(), reason, "pack is not used; run verify");
                }
            }
            let table = self.table.read().expect(LOCKED);
            let mut avoided = self.avoided.write().expect(LOCKED);
            let records = (0u32..).zip(&table.records[..known]);
            avoided.gone.extend(records.filter(|(_, record)| !there.contains(&record.id)).map(|(at, _)| at));
        }
        {
            let numbers = |id: &PackId| self.number_of(*id);
            let condemned = condemned.iter().filter_map(numbers).collect();
            self.avoided.write().expect(LOCKED).condemned = condemned;
        }
        let avoided = self.avoided.read().expect(LOCKED);
        self.avoids.store(!avoided.gone.is_empty() || !avoided.condemned.is_empty(), Ordering::Release);
        Ok(())
    }

    /// Packs that are there, by number.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        let count = u32::try_from(self.table.read().expect(LOCKED).records.len()).unwrap_or(u32::MAX);
        let avoided = self.avoided.read().expect(LOCKED);
        (0..count).filter(|number| !avoided.gone.contains(number)).collect()
    }

    /// The number of a pack that is there.
    pub(crate) fn number_of(&self, id: PackId) -> Option<u32> {
        let number = self.table.read().expect(LOCKED).numbers.get(&id).copied()?;
        (!self.avoided.read().expect(LOCKED).gone.contains(&number)).then_some(number)
    }

    /// A value for each object of each pack.
    pub(super) fn per_object(&self) -> PerObject {
        let table = self.table.read().expect(LOCKED);
        PerObject::new(table.records.iter().map(|record| record.entries as usize))
    }

    /// All bytes of a pack.
    pub(crate) fn bytes_of(&self, number: u32) -> Result<Vec<u8>, Error> {
        self.backend.get(&pack_key(self.record(number).id), MAX_PACK_SIZE as u64)
    }

    pub(crate) fn contains(&self, id: PackId) -> bool {
        self.number_of(id).is_some()
    }

    /// Where an object stands, also in a condemned pack. Of several places the one that lasts longest, or of those that last
    /// the same, in the eyes of all alike, the one in the pack with the smallest id.
    pub(crate) fn find(&self, kind: PackKind, id: &[u8; 32]) -> Option<Location> {
        let mut best = None;
        while let Err(damaged) = self.index.find(id, &mut |at| self.consider(kind, at, &mut best)) {
            self.heal(&damaged);
            best = None;
        }
        best.map(|(_, at)| at)
    }

    fn consider(&self, kind: PackKind, at: Location, best: &mut Option<(Worth, Location)>) {
        let record = self.record(at.pack);
        let standing = match self.avoids.load(Ordering::Acquire) {
            true => self.avoided.read().expect(LOCKED).standing(at.pack),
            false => Standing::Lasting,
        };
        // Nodes and blocks have ids of their own, unless somebody made one that looks like another.
        if record.kind != kind || standing == Standing::Gone {
            return;
        }
        let worth = (standing, Reverse(record.id));
        if best.is_none_or(|(found, _)| found < worth) {
            *best = Some((worth, at));
        }
    }

    fn avoids(&self, which: impl FnOnce(&Avoided) -> bool) -> bool {
        self.avoids.load(Ordering::Acquire) && which(&self.avoided.read().expect(LOCKED))
    }

    /// Where an object stands that somebody may be told to be there: in no condemned pack.
    pub(crate) fn find_lasting(&self, kind: PackKind, id: &[u8; 32]) -> Option<Location> {
        let at = self.find(kind, id)?;
        (!self.avoids(|avoided| avoided.condemned.contains(&at.pack))).then_some(at)
    }

    /// Distinct objects. One that came again much later may be counted twice.
    pub(crate) fn count(&self, kind: PackKind) -> u64 {
        let table = self.table.read().expect(LOCKED);
        let avoided = self.avoided.read().expect(LOCKED);
        let there = (0u32..).zip(&table.records);
        let there = there.filter(|(number, record)| record.kind == kind && !avoided.gone.contains(number));
        self.index.count(kind as u8, there.map(|(_, record)| u64::from(record.entries)).sum())
    }

    pub(crate) fn record(&self, number: u32) -> PackRecord {
        self.table.read().expect(LOCKED).records[number as usize]
    }

    /// A pack's index, read again.
    pub(crate) fn index_of(&self, number: u32) -> Result<PackIndex, Error> {
        let record = self.record(number);
        let object = self.open(number, record.id)?;
        read_index(&*object, record.size.into())
            .map(|(_, index)| index)
            .map_err(|reason| damaged(record.id, reason))
    }

    /// How many packs there are, and their bytes.
    pub(crate) fn totals(&self) -> (u64, ByteCount) {
        let numbers = self.numbers();
        let bytes = numbers.iter().map(|number| u64::from(self.record(*number).size)).sum();
        (numbers.len() as u64, ByteCount::new(bytes))
    }

    /// Reads an object's entry and sealed bytes.
    pub(crate) fn read(&self, kind: PackKind, id: &[u8; 32], at: Location) -> Result<StoredObject, Error> {
        let record = self.record(at.pack);
        let file = self.open(at.pack, record.id)?;
        let keys = self.key_table(&*file, at.pack, &record)?;
        let entry = self.read_entry(&*file, &record, at.entry, keys.as_deref())?;
        if entry.id != *id || record.kind != kind {
            let reason = format!("entry {} of its index is another object", at.entry);
            return Err(damaged(record.id, reason));
        }
        let mut bytes = vec![0; entry.sealed_size as usize];
        file.read_exact_at(&mut bytes, u64::from(entry.offset))
            .map_err(|error| self.read_error(record.id, error))?;
        let Entry { codec, lock, plain_size, .. } = entry;
        Ok(StoredObject { pack: record.id, codec, lock, plain_size, bytes })
    }

    /// Reads objects, and those that stand together in a pack at once.
    pub(crate) fn read_many(
        &self,
        kind: PackKind,
        wanted: &[([u8; 32], Location)],
    ) -> Result<StoredObjects, Error> {
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by_key(|at| (wanted[*at].1.pack, wanted[*at].1.entry));
        let mut found = StoredObjects { runs: Vec::new(), objects: vec![None; wanted.len()] };
        let together = |a: &usize, b: &usize| {
            let (a, b) = (wanted[*a].1, wanted[*b].1);
            a.pack == b.pack && b.entry - a.entry <= MAX_GAP + 1
        };
        for group in order.chunk_by(together) {
            self.read_run(kind, wanted, group, &mut found)?;
        }
        Ok(found)
    }

    /// Reads neighbouring objects of one pack: their entries, then their bytes.
    fn read_run(
        &self,
        kind: PackKind,
        wanted: &[([u8; 32], Location)],
        group: &[usize],
        found: &mut StoredObjects,
    ) -> Result<(), Error> {
        let entry_of = |at: &usize| wanted[*at].1.entry;
        let (first, last) = (entry_of(&group[0]), entry_of(&group[group.len() - 1]));
        let number = wanted[group[0]].1.pack;
        let record = self.record(number);
        let file = self.open(number, record.id)?;
        let keys = self.key_table(&*file, number, &record)?;
        let count = (last - first) as usize + 1;
        let entries = self.read_entries(&*file, &record, first, count, keys.as_deref())?;
        let start = entries[0].offset;
        let end = entries[entries.len() - 1];
        let size = (end.offset - start) as usize + end.sealed_size as usize;
        for at in group {
            let entry = &entries[(entry_of(at) - first) as usize];
            if entry.id != wanted[*at].0 || record.kind != kind {
                let reason = format!("entry {} of its index is another object", entry_of(at));
                return Err(damaged(record.id, reason));
            }
            let from = (entry.offset - start) as usize;
            found.objects[*at] = Some(ObjectAt {
                codec: entry.codec,
                lock: entry.lock,
                plain_size: entry.plain_size,
                run: found.runs.len(),
                at: from..from + entry.sealed_size as usize,
            });
        }
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, u64::from(start))
            .map_err(|error| self.read_error(record.id, error))?;
        found.runs.push(bytes);
        Ok(())
    }

    /// Size of an object after opening, from its entry.
    pub(crate) fn plain_size(&self, at: Location) -> Result<u32, Error> {
        let record = self.record(at.pack);
        let file = self.open(at.pack, record.id)?;
        Ok(self.read_entry(&*file, &record, at.entry, None)?.plain_size)
    }

    /// What the keys of a pack's blocks were made of; `None` where they are not encrypted. That it is damaged comes out when
    /// a block does not open.
    fn key_table(
        &self,
        file: &dyn Object,
        number: u32,
        record: &PackRecord,
    ) -> Result<Option<Arc<KeyTable>>, Error> {
        if !self.is_encrypted || record.kind == PackKind::Tree {
            return Ok(None);
        }
        let known = self.key_tables.lock().expect(LOCKED).get(&number);
        if known.is_some() {
            return Ok(known);
        }
        let damaged = |source| Error::Damaged { pack: record.id, source };
        let read = |offset: u64, size: usize| {
            let mut bytes = vec![0; size];
            file.read_exact_at(&mut bytes, offset).map_err(|error| self.read_error(record.id, error))?;
            Ok::<_, Error>(bytes)
        };
        let size = u64::from(record.size);
        let footer = read(size.saturating_sub(TRAILER_FOOTER_SIZE as u64), TRAILER_FOOTER_SIZE)?;
        let Some(place) = KeyTablePlace::from_footer(&footer, size).map_err(damaged)? else {
            return Ok(None);
        };
        let bytes = read(place.offset as u64, place.size)?;
        let keys = Arc::new(KeyTable::from_bytes(&bytes, &place).map_err(damaged)?);
        self.key_tables.lock().expect(LOCKED).insert(number, keys.clone());
        Ok(Some(keys))
    }

    fn read_entry(
        &self,
        file: &dyn Object,
        record: &PackRecord,
        at: u32,
        keys: Option<&KeyTable>,
    ) -> Result<Entry, Error> {
        self.read_entries(file, record, at, 1, keys).map(|entries| entries[0])
    }

    /// Entries out of a pack's index, at least one. The index as a whole was proven when it was loaded; since then the
    /// disk may have changed, so bounds and order are checked again.
    fn read_entries(
        &self,
        file: &dyn Object,
        record: &PackRecord,
        first: u32,
        count: usize,
        keys: Option<&KeyTable>,
    ) -> Result<Vec<Entry>, Error> {
        let tail = record.entries as usize * TRAILER_ENTRY_SIZE + TRAILER_FOOTER_SIZE;
        let index_offset = record.size as usize - tail;
        let mut bytes = vec![0; count * TRAILER_ENTRY_SIZE];
        let offset = index_offset + first as usize * TRAILER_ENTRY_SIZE;
        file.read_exact_at(&mut bytes, offset as u64).map_err(|error| self.read_error(record.id, error))?;
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for (bytes, at) in bytes.as_chunks().0.iter().zip(first..) {
            let entry = Entry::from_bytes(bytes, at, keys)
                .map_err(|source| Error::Damaged { pack: record.id, source })?;
            let end = u64::from(entry.offset) + u64::from(entry.sealed_size);
            let fits = entry.offset as usize >= HEADER_SIZE && end <= index_offset as u64;
            let follows = entries.last().is_none_or(|last| last.offset + last.sealed_size == entry.offset);
            if !fits || !follows || u64::from(entry.plain_size) > BLOCK_SIZE {
                return Err(damaged(record.id, format!("entry {at} of its index points outside")));
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn open(&self, number: u32, id: PackId) -> Result<Arc<dyn Object>, Error> {
        let cached = self.open.lock().expect(LOCKED).get(&number);
        if let Some(object) = cached {
            return Ok(object);
        }
        let object = self.backend.open(&pack_key(id))?;
        self.open.lock().expect(LOCKED).insert(number, object.clone());
        Ok(object)
    }

    fn read_error(&self, id: PackId, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(id, "it is cut off".into()),
            _ => Error::Io { what: "read", path: self.backend.place(&pack_key(id)), source: error },
        }
    }
}

impl StoredObject {
    /// Opens and proves a block.
    pub(crate) fn open_block(&self, key: &IdKey, id: seal::BlockId) -> Result<Vec<u8>, Error> {
        let mut opener = Opener::new()?;
        opener
            .open_block(key, id, self.sealed(), self.plain_size as usize)
            .map(<[u8]>::to_vec)
            .map_err(|source| Error::Damaged { pack: self.pack, source })
    }

    /// Opens and proves a node.
    pub(crate) fn open_node(&self, key: &IdKey, id: seal::NodeId) -> Result<seal::Node, Error> {
        let mut opener = Opener::new()?;
        let damaged = |source| Error::Damaged { pack: self.pack, source };
        let plain = opener.open(self.sealed(), self.plain_size as usize).map_err(damaged)?;
        let found = key.node_id(plain);
        if found != id {
            return Err(damaged(seal::Error::NodeId { expected: id, found }));
        }
        seal::Node::from_bytes(plain).map_err(damaged)
    }

    fn sealed(&self) -> Sealed<'_> {
        Sealed { codec: self.codec, lock: self.lock, bytes: &self.bytes }
    }
}

impl StoredObjects {
    /// The objects as messages have them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = wire::SealedBlock<'_>> {
        self.objects.iter().flatten().map(|object| wire::SealedBlock {
            codec: object.codec as u8,
            lock: object.lock.map(Into::into),
            plain_size: object.plain_size,
            bytes: &self.runs[object.run][object.at.clone()],
        })
    }
}

/// Plain size of the ordinary object of a kind.
pub(crate) fn whole_size(kind: PackKind) -> u64 {
    match kind {
        PackKind::Data => BLOCK_SIZE,
        PackKind::Tree => NODE_SIZE as u64,
    }
}

/// Reads and checks the end of a pack of `size` bytes: its size and its index.
pub(crate) fn read_index(object: &dyn Object, size: u64) -> Result<(u32, PackIndex), String> {
    if size > MAX_PACK_SIZE as u64 || size < (HEADER_SIZE + TRAILER_FOOTER_SIZE) as u64 {
        return Err(format!("{size} bytes is no pack's size"));
    }
    let read_tail = |bytes: u64| {
        let mut tail = vec![0; usize::try_from(bytes).expect("bounded by MAX_PACK_SIZE")];
        object.read_exact_at(&mut tail, size - bytes).map_err(|error| error.to_string())?;
        Ok::<_, String>(tail)
    };
    let mut tail = read_tail(size.min(TAIL_GUESS))?;
    let footer = &tail[tail.len() - TRAILER_FOOTER_SIZE..];
    let needed = PackIndex::tail_size(footer, size).map_err(|error| error.to_string())?;
    if needed > tail.len() {
        tail = read_tail(needed as u64)?;
    }
    let index =
        PackIndex::from_tail(&tail[tail.len() - needed..], size).map_err(|error| error.to_string())?;
    Ok((u32::try_from(size).expect("bounded by MAX_PACK_SIZE"), index))
}

/// Every object below `packs/` that is not in quarantine, sorted. What has no pack's name is a stray.
pub(crate) fn list(backend: &dyn Backend) -> Result<Listing, Error> {
    let mut listing = Listing { packs: Vec::new(), strays: Vec::new() };
    // Before the packs: what was saved out of a pack is there before the pack is in quarantine.
    let quarantined = super::repair::quarantined(backend)?;
    for Listed { key, size } in backend.list(PACKS)? {
        match file_name(&key).parse::<PackId>() {
            Ok(id) if pack_key(id) == key && quarantined.contains(&id) => {}
            Ok(id) if pack_key(id) == key => listing.packs.push((id, size)),
            _ => listing.strays.push(backend.place(&key)),
        }
    }
    Ok(listing)
}

fn damaged(pack: PackId, reason: String) -> Error {
    Error::Damaged { pack, source: seal::Error::Pack { reason } }
}
