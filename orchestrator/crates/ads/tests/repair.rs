//! Repair makes whole what anything has, saves what still opens, names what is lost, and makes nothing worse.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Backend, Deed, Depth, Error, ErrorKind, GcOptions, Listed, Object, Origin, Presence, RepairOptions,
    RepairReport, Scope, Store, StoredPoint,
};
use seal::{BlockId, PackIndex, PackKind, Tree};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use support::memory::{Between, Change, Loss, Memory};
use support::{backup, disk, pack_disk, point, restore, store_disk};

const LATER: &str = "2026-11-04T10:20:30Z";
const BLOCK: usize = 65536;

fn open(memory: &Arc<Memory>) -> Arc<Store> {
    Arc::new(Store::open_on(memory.clone()).unwrap())
}

fn repaired(store: &Arc<Store>, from: Option<&Store>) -> RepairReport {
    store.repair(RepairOptions::default(), from, &|_| ()).unwrap()
}

fn is_clean(store: &Store) -> bool {
    store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap().is_clean()
}

/// Keys of packs of a kind, the largest first.
fn packs(memory: &Memory, kind: PackKind) -> Vec<String> {
    let mut found: Vec<_> = memory
        .objects()
        .into_iter()
        .filter(|(key, _)| key.starts_with("packs/"))
        .filter(|(_, bytes)| PackIndex::from_pack(bytes).is_ok_and(|index| index.kind == kind))
        .collect();
    found.sort_by_key(|(key, bytes)| (std::cmp::Reverse(bytes.len()), key.clone()));
    found.into_iter().map(|(key, _)| key).collect()
}

fn flip(memory: &Memory, key: &str, at: usize) {
    let mut bytes = memory.get(key, u64::MAX).unwrap();
    bytes[at] ^= 0x20;
    memory.put(key, &bytes).unwrap();
}

/// Two points: a disk of 12 blocks, and the same with one of them changed. Gives the first disk.
fn two_points(memory: &Arc<Memory>) -> Vec<u8> {
    let store = Store::init_on(memory.clone()).unwrap();
    let bytes = disk(1, 12 * BLOCK + 512);
    let mut second = bytes.clone();
    second[3 * BLOCK + 5] ^= 1;
    backup(&store, "vm", &bytes).unwrap();
    let tree = store_disk(&store, &second).unwrap();
    store.commit_point(&point(&store, "vm", LATER, &[tree])).unwrap();
    bytes
}

/// Damages one block of the largest pack; gives its id, and the pack's key.
fn lose_a_block(memory: &Memory) -> (BlockId, String) {
    let key = packs(memory, PackKind::Data).remove(0);
    let index = PackIndex::from_pack(&memory.get(&key, u64::MAX).unwrap()).unwrap();
    let entry = index.entries[1];
    flip(memory, &key, entry.offset as usize + entry.sealed_size as usize / 2);
    (BlockId::from_bytes(entry.id), key)
}

fn name_of(key: &str) -> &str {
    key.rsplit('/').next().unwrap()
}

fn trees(points: &[StoredPoint]) -> Vec<Tree> {
    points.iter().map(|stored| stored.point.disks[0].tree).collect()
}

#[test]
fn a_dry_run_says_what_a_repair_does_and_changes_nothing() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let (_, key) = lose_a_block(&memory);
    flip(&memory, &packs(&memory, PackKind::Data)[1], 12);
    let before = memory.objects();
    let dry = open(&memory)
        .repair(RepairOptions { dry_run: true, ..RepairOptions::default() }, None, &|_| ())
        .unwrap();
    assert!(memory.objects() == before);
    let done = repaired(&open(&memory), None);
    let planned: Vec<_> =
        done.deeds.iter().filter(|deed| !matches!(deed, Deed::PackRemoved { .. })).cloned().collect();
    assert_eq!(dry.deeds, planned);
    assert_eq!((&dry.affects, dry.points), (&done.affects, done.points));
    assert_eq!((dry.written.get(), done.written.get() > 0), (0, true));
    assert!(done.deeds.iter().any(|deed| deed.to_string().contains(name_of(&key))), "{:?}", done.deeds);
    assert!(!done.is_whole() && !dry.is_whole());
}

#[test]
fn a_lost_block_is_named_and_the_next_backup_heals_the_old_points() {
    let memory = Arc::new(Memory::default());
    let bytes = two_points(&memory);
    let (lost, key) = lose_a_block(&memory);
    let store = open(&memory);
    let report = repaired(&store, None);
    let Deed::PackQuarantined { saved, elsewhere, lost: Some(1), .. } = &report.deeds[0] else {
        panic!("{:?}", report.deeds)
    };
    assert!(*saved > 1 && *elsewhere == 0, "{report:?}");
    assert!(matches!(report.deeds[1], Deed::PackRemoved { .. }), "{report:?}");
    // Both points need it, at the same place.
    let at = bytes.chunks(BLOCK).position(|block| store.id_key().block_id(block) == lost).unwrap();
    let hits: Vec<_> = report.affects.iter().map(|hit| (hit.offset.get(), hit.size.get())).collect();
    assert_eq!(hits, [(at as u64 * 65536, 65536); 2], "{report:?}");
    assert!(memory.get(&key, u64::MAX).is_err(), "the damaged pack is gone from its place");
    assert!(memory.get(&format!("quarantine/{}", name_of(&key)), u64::MAX).is_ok());

    // Who comes later must not start from these points, and is not told that the block is there.
    let store = open(&memory);
    assert!(!store.has_block(&lost));
    let points = store.points().unwrap().points;
    assert_eq!(store.first_lacking(&points).unwrap().unwrap().0.id, points[0].id);
    let mut third = bytes.clone();
    third[7 * BLOCK..8 * BLOCK].fill(9);
    let base = trees(&points)[0];
    let error = store.finish_tree(base, Some(base)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing, "a base that is not whole proves nothing");
    assert_eq!(store.collect(&GcOptions::default(), &|_, _| ()).unwrap_err().kind(), ErrorKind::Damaged);

    let packed = pack_disk(store.id_key(), &third, None, &mut |id| store.has_block(id));
    let shipped: usize =
        packed.data.iter().map(|pack| PackIndex::from_pack(&pack.bytes).unwrap().entries.len()).sum();
    assert_eq!(shipped, 2, "the changed block and the lost one, and nothing else");
    for pack in packed.data.iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    store.finish_tree(packed.tree, None).unwrap();
    store.commit_point(&point(&store, "vm", "2026-11-05T00:00:00Z", &[packed.tree])).unwrap();

    let store = open(&memory);
    assert!(is_clean(&store));
    assert!(restore(&store, &base).unwrap() == bytes, "the oldest point is whole again");
    assert!(store.first_lacking(&points).unwrap().is_none());
    store.collect(&GcOptions::default(), &|_, _| ()).unwrap();
    assert!(repaired(&store, None).is_whole());
    assert!(memory.get("quarantine/lost.json", u64::MAX).is_err(), "nothing is lost any more");
    assert!(is_clean(&open(&memory)));
}

/// A second store with the same key and its own packs.
fn second_store(memory: &Memory, disks: &[&[u8]]) -> Arc<Store> {
    let config = memory.get("config.json", u64::MAX).unwrap();
    let second = Arc::new(Memory::of([("config.json".to_owned(), config)]));
    let store = open(&second);
    for bytes in disks {
        store_disk(&store, bytes).unwrap();
    }
    store
}

#[test]
fn a_second_store_gives_back_single_blocks_and_nodes_of_packs_that_are_gone() {
    let memory = Arc::new(Memory::default());
    let bytes = two_points(&memory);
    let mut second = bytes.clone();
    second[3 * BLOCK + 5] ^= 1;
    let from = second_store(&memory, &[&bytes, &second]);
    lose_a_block(&memory);
    // Nobody knows what was in a pack that is gone.
    for key in packs(&memory, PackKind::Tree) {
        memory.delete(&key).unwrap();
    }
    memory.delete(&packs(&memory, PackKind::Data)[0]).unwrap();
    let fetched = |report: &RepairReport| {
        let found = report.deeds.iter().find_map(|deed| match deed {
            Deed::Fetched { blocks, nodes } => Some((*blocks, *nodes)),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("{report:?}"))
    };
    let dry = RepairOptions { dry_run: true, ..RepairOptions::default() };
    let dry = open(&memory).repair(dry, Some(&from), &|_| ()).unwrap();
    let report = repaired(&open(&memory), Some(&from));
    assert_eq!(fetched(&dry), fetched(&report));
    assert!(fetched(&report).0 > 1 && fetched(&report).1 == 2, "{report:?}");
    assert!(report.is_whole() && dry.is_whole(), "{report:?}");
    let store = open(&memory);
    assert!(is_clean(&store));
    let points = store.points().unwrap().points;
    for (tree, bytes) in trees(&points).iter().zip([bytes, second]) {
        assert!(restore(&store, tree).unwrap() == bytes);
    }
}

#[test]
fn a_copy_of_the_store_gives_back_packs_points_and_the_config_as_they_were() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let before = memory.objects();
    let copy = Arc::new(Memory::of(before.clone()));
    let from = open(&copy);
    for (key, _) in before.iter().filter(|(key, _)| key != "config.json") {
        flip(&memory, key, 20);
    }
    memory.put("config.json", b"{}").unwrap();
    assert_eq!(Store::open_on(memory.clone()).unwrap_err().kind(), ErrorKind::Damaged);
    let backend: Arc<dyn Backend> = memory.clone();
    // Every pack is damaged: nothing here can prove the key.
    let error = Store::mend(&backend, Some(&from), false).unwrap_err();
    assert!(matches!(error, Error::OtherStore { .. }), "{error}");
    let key = packs(&copy, PackKind::Data).remove(0);
    memory.put(&key, &copy.get(&key, u64::MAX).unwrap()).unwrap();
    assert!(Store::mend(&backend, None, false).is_err(), "there is nothing to mend it from");
    assert_eq!(Store::mend(&backend, Some(&from), true).unwrap().len(), 1);
    assert_eq!(memory.get("config.json", 100).unwrap(), b"{}");
    let deeds = Store::mend(&backend, Some(&from), false).unwrap();
    assert!(matches!(&deeds[..], [Deed::Config { from: Origin::SecondStore, .. }]), "{deeds:?}");
    let report = repaired(&open(&memory), Some(&from));
    assert!(report.is_whole(), "{report:?}");
    let after: Vec<_> = memory
        .objects()
        .into_iter()
        .filter(|(key, _)| !key.starts_with("gc/") && !key.starts_with("quarantine/"))
        .collect();
    assert!(after == before, "every object has its bytes again");
    assert_eq!(memory.get("quarantine/config.json", 100).unwrap(), b"{}");
}

#[test]
fn the_config_from_a_store_with_another_id_says_the_id_of_the_points_that_are_here() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let good = memory.get("config.json", u64::MAX).unwrap();
    let id = open(&memory).id().to_string();
    // The same key under another id; its check is over all values.
    let mut other: serde_json::Value = serde_json::from_slice(&good).unwrap();
    other["id"] = "11111111-2222-4333-8444-555555555555".into();
    let text = ["format", "version", "id", "id_key", "encryption"]
        .map(|name| match &other[name] {
            serde_json::Value::String(text) => format!("{text}\n"),
            value => format!("{value}\n"),
        })
        .concat();
    other["check"] = blake3::hash(text.as_bytes()).to_hex().to_string().into();
    let second = Memory::of([("config.json".to_owned(), serde_json::to_vec(&other).unwrap())]);
    let from = open(&Arc::new(second));
    assert_ne!(from.id().to_string(), id);
    memory.delete("config.json").unwrap();
    let backend: Arc<dyn Backend> = memory.clone();
    Store::mend(&backend, Some(&from), false).unwrap();
    assert!(memory.get("config.json", u64::MAX).unwrap() == good);
}

#[test]
fn a_config_or_generation_that_is_not_as_it_was_written_is_written_anew() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let good = memory.get("config.json", u64::MAX).unwrap();
    let spaced = String::from_utf8(good.clone()).unwrap().replace(": ", ":  ");
    memory.put("config.json", spaced.as_bytes()).unwrap();
    memory.put("gc/generation.json", b"\"no").unwrap();
    assert!(Store::open_on(memory.clone()).is_err());
    let backend: Arc<dyn Backend> = memory.clone();
    let deeds = Store::mend(&backend, None, false).unwrap();
    assert!(
        matches!(&deeds[..], [Deed::Config { from: Origin::Itself, .. }, Deed::Generation { .. }]),
        "{deeds:?}"
    );
    assert!(memory.get("config.json", u64::MAX).unwrap() == good);
    assert!(is_clean(&open(&memory)));
    assert_eq!(Store::mend(&backend, None, false).unwrap(), []);
}

#[test]
fn a_store_with_another_id_key_gives_nothing() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let other = Store::init_on(Arc::new(Memory::default())).unwrap();
    let error = open(&memory).repair(RepairOptions::default(), Some(&other), &|_| ()).unwrap_err();
    assert!(matches!(error, Error::OtherStore { .. }), "{error}");
}

#[test]
fn a_damaged_point_comes_back_or_stays_until_it_is_given_up() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let from = open(&Arc::new(Memory::of(memory.objects())));
    let keys: Vec<_> =
        memory.objects().into_iter().map(|(key, _)| key).filter(|key| key.starts_with("points/")).collect();
    let good = memory.get(&keys[0], u64::MAX).unwrap();
    flip(&memory, &keys[0], 30);
    let report = repaired(&open(&memory), Some(&from));
    assert!(matches!(&report.deeds[..], [Deed::PointBack { .. }]) && report.is_whole(), "{report:?}");
    assert!(memory.get(&keys[0], u64::MAX).unwrap() == good);

    flip(&memory, &keys[0], 30);
    let report = repaired(&open(&memory), None);
    assert!(matches!(&report.deeds[..], [Deed::PointLeft { .. }]) && !report.is_whole(), "{report:?}");
    // It keeps what it needs from being freed.
    assert_eq!(
        open(&memory).collect(&GcOptions::default(), &|_, _| ()).unwrap_err().kind(),
        ErrorKind::Damaged
    );
    let give_up = RepairOptions { give_up_points: true, ..RepairOptions::default() };
    let report = open(&memory).repair(give_up, None, &|_| ()).unwrap();
    assert!(matches!(&report.deeds[..], [Deed::PointQuarantined { .. }]), "{report:?}");
    assert!(memory.get(&keys[0], u64::MAX).is_err());
    assert!(memory.get(&keys[0].replace("points/", "quarantine/"), u64::MAX).is_ok());
    open(&memory).collect(&GcOptions::default(), &|_, _| ()).unwrap();

    let missing = RepairOptions { missing_points: true, ..RepairOptions::default() };
    let report = open(&memory).repair(missing, Some(&from), &|_| ()).unwrap();
    assert!(report.is_whole() && memory.get(&keys[0], u64::MAX).unwrap() == good, "{report:?}");
    assert!(is_clean(&open(&memory)));
}

#[test]
fn who_reads_from_a_damaged_pack_is_waited_for() {
    let memory = Arc::new(Memory::default());
    let bytes = two_points(&memory);
    let (lost, key) = lose_a_block(&memory);
    let reader = open(&memory);
    let lease = reader.lease("restore", &[]).unwrap();
    let report = repaired(&open(&memory), None);
    assert_eq!((report.waiting, report.waits_for.len()), (1, 1), "{report:?}");
    for block in bytes.chunks(BLOCK).filter(|block| !seal::is_zero(block)) {
        let id = reader.id_key().block_id(block);
        assert_eq!(reader.read_block(id).is_ok(), id != lost, "what opened before opens still");
    }
    // Who comes now does not look there, and verify does not complain of a pack that is not part of the store.
    let later = open(&memory);
    assert!(!later.has_block(&lost) && later.skipped_packs().is_empty());
    drop(lease);
    assert!(memory.get(&key, u64::MAX).is_ok());
    let report = repaired(&open(&memory), None);
    assert!(matches!(&report.deeds[..], [Deed::PackRemoved { .. }]), "{report:?}");
    assert!(memory.get(&key, u64::MAX).is_err());
}

#[test]
fn a_pack_that_somebody_brought_back_leaves_the_quarantine() {
    let memory = Arc::new(Memory::default());
    let bytes = two_points(&memory);
    let good = Memory::of(memory.objects());
    let (_, key) = lose_a_block(&memory);
    assert!(!repaired(&open(&memory), None).is_whole());
    memory.put(&key, &good.get(&key, u64::MAX).unwrap()).unwrap();
    let report = repaired(&open(&memory), None);
    assert!(matches!(&report.deeds[..], [Deed::PackReleased { .. }]) && report.is_whole(), "{report:?}");
    let store = open(&memory);
    assert!(restore(&store, &trees(&store.points().unwrap().points)[0]).unwrap() == bytes);
}

/// Each block and node of the points that can be read: how many.
fn readable(store: &Store, wanted: &[(Tree, Vec<u8>)]) -> usize {
    let mut count = 0;
    for (tree, bytes) in wanted {
        count += tree.root.map_or(0, |root| usize::from(store.read_node(root).is_ok()));
        for block in bytes.chunks(BLOCK).filter(|block| !seal::is_zero(block)) {
            count += usize::from(store.read_block(store.id_key().block_id(block)).is_ok());
        }
    }
    count
}

#[test]
fn wherever_a_repair_dies_nothing_is_missing_that_was_there_and_the_next_one_ends_it() {
    for with_second in [false, true] {
        let memory = Arc::new(Memory::default());
        let bytes = two_points(&memory);
        let mut second = bytes.clone();
        second[3 * BLOCK + 5] ^= 1;
        let from = second_store(&memory, &[&bytes]);
        let from = with_second.then_some(&*from);
        lose_a_block(&memory);
        let nodes = packs(&memory, PackKind::Tree);
        flip(&memory, &nodes[0], 13);
        let damaged = memory.objects();
        let store = open(&memory);
        let points = store.points().unwrap().points;
        let wanted: Vec<_> = trees(&points).into_iter().zip([bytes.clone(), second.clone()]).collect();
        let before = readable(&store, &wanted);
        drop(store);
        let between = Between::new(memory.clone(), Loss::None);
        let report = repaired(&Arc::new(Store::open_on(between.clone()).unwrap()), from);
        let after = readable(&open(&memory), &wanted);
        assert_eq!((after == before, report.is_whole()), (!with_second, with_second), "{report:?}");
        let changes = between.changes();
        assert!(changes.len() > 8, "{changes:?}");
        for count in 0..=changes.len() {
            let memory = Arc::new(Memory::of(damaged.clone()));
            for change in &changes[..count] {
                match change {
                    Change::Put(key, bytes) => memory.put(key, bytes).unwrap(),
                    Change::Delete(key) => memory.delete(key).unwrap(),
                }
            }
            assert!(readable(&open(&memory), &wanted) >= before, "after {count} changes");
            // Whoever died holds a lease until a collector finds him dead.
            let leases: Vec<_> =
                memory.objects().into_iter().filter(|(key, _)| key.starts_with("leases/")).collect();
            leases.iter().for_each(|(key, _)| memory.delete(key).unwrap());
            let report = repaired(&open(&memory), from);
            assert_eq!(report.waiting, 0);
            assert_eq!(readable(&open(&memory), &wanted), after, "after {count} changes");
            assert_eq!(report.is_whole(), with_second, "after {count} changes");
            let bad = memory.objects().into_iter().filter(|(key, bytes)| {
                key.starts_with("packs/") && seal::PackId::of(bytes).to_string() != name_of(key)
            });
            assert_eq!(bad.count(), 0, "after {count} changes");
        }
        println!("{} crash points, with a second store: {with_second}", changes.len());
    }
}

/// A disk that cannot read some bytes of one object.
#[derive(Debug)]
struct Worn {
    memory: Arc<Memory>,
    key: String,
    bad: std::ops::Range<u64>,
    error: i32,
}

#[derive(Debug)]
struct WornObject(Arc<dyn Object>, std::ops::Range<u64>, i32);

impl Object for WornObject {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let end = offset + buffer.len() as u64;
        if offset < self.1.end && end > self.1.start {
            return Err(io::Error::from_raw_os_error(self.2));
        }
        self.0.read_exact_at(buffer, offset)
    }
}

impl Backend for Worn {
    fn root(&self) -> PathBuf {
        self.memory.root()
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.memory.put(key, bytes)
    }
    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        if key == self.key {
            let source = io::Error::from_raw_os_error(self.error);
            return Err(Error::Io { what: "read", path: self.place(key), source });
        }
        self.memory.get(key, limit)
    }
    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        let object = self.memory.open(key)?;
        Ok(if key == self.key { Arc::new(WornObject(object, self.bad.clone(), self.error)) } else { object })
    }
    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.memory.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.memory.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.memory.delete(key)
    }
    fn is_vacant(&self) -> Result<bool, Error> {
        self.memory.is_vacant()
    }
    fn prepare(&self) -> Result<(), Error> {
        self.memory.prepare()
    }
    fn enter(&self, alone: bool) -> Result<Presence, Error> {
        self.memory.enter(alone)
    }
}

#[test]
fn bad_sectors_cost_what_they_hold_and_a_refused_read_is_no_damage() {
    let memory = Arc::new(Memory::default());
    two_points(&memory);
    let key = packs(&memory, PackKind::Data).remove(0);
    // In the middle of the first block, which does not compress.
    let worn = |error| {
        let backend = Worn { memory: memory.clone(), key: key.clone(), bad: 9000..9001, error };
        Arc::new(Store::open_on(Arc::new(backend)).unwrap())
    };
    let before = memory.objects();
    let refused = worn(13).repair(RepairOptions::default(), None, &|_| ()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Io, "permission denied says nothing about the bytes");
    assert!(memory.objects() == before);
    let report = repaired(&worn(5), None);
    let Deed::PackQuarantined { lost: Some(1), saved, .. } = report.deeds[0] else { panic!("{report:?}") };
    assert!(saved > 1, "{report:?}");
}
