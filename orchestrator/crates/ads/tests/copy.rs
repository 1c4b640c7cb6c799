//! Copying a store to another place: what comes there is what was here, only what is missing is moved, and whoever dies
//! or stumbles over damage on the way leaves whole points only.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Backend, CopyOptions, CopyReport, Depth, Error, ErrorKind, GcOptions, Listed, LocalBackend, Object,
    PointId, Presence, Scope, Store,
};
use blocks::ByteCount;
use seal::FAN_OUT;
use std::collections::BTreeSet;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::faults::{Fault, Faulty};
use support::memory::{Between, Change, Loss, Memory};
use support::{GO_ON, chain, disk, pack_disk, point, restore, store_disk};
use tempfile::TempDir;

const BLOCK: usize = 65536;

/// A store in memory.
fn source() -> (Arc<Memory>, Arc<Store>) {
    let memory = Arc::new(Memory::default());
    (memory.clone(), Arc::new(Store::init_on(memory).unwrap()))
}

fn open(memory: &Arc<Memory>) -> Arc<Store> {
    Arc::new(Store::open_on(memory.clone()).unwrap())
}

/// Another place of it, where nothing is yet.
fn other_place(store: &Store) -> (Arc<Memory>, Arc<Store>) {
    let memory = Arc::new(Memory::default());
    (memory.clone(), Arc::new(store.init_copy_on(memory).unwrap()))
}

/// A restore point of a VM, at a minute.
fn backup(store: &Store, vm: &str, minute: u32, bytes: &[u8]) -> PointId {
    let tree = store_disk(store, bytes).unwrap();
    store.commit_point(&point(store, vm, &format!("2026-11-03T10:{minute:02}:00Z"), &[tree])).unwrap()
}

fn copy(from: &Arc<Store>, to: &Arc<Store>) -> CopyReport {
    with(from, to, &CopyOptions::default())
}

fn with(from: &Arc<Store>, to: &Arc<Store>, options: &CopyOptions) -> CopyReport {
    from.copy_to(to, options, &GO_ON).unwrap()
}

fn ids(report: &CopyReport) -> Vec<PointId> {
    report.copied.iter().map(|copied| copied.id).collect()
}

/// It is whole, and a point reads as these bytes.
fn reads(store: &Store, id: PointId, bytes: &[u8]) -> bool {
    restore(store, &store.point(id).unwrap().point.disks[0].tree).unwrap() == bytes
}

fn is_clean(store: &Store) -> bool {
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    println!("{:?}", report.findings);
    report.is_clean()
}

fn keys(memory: &Memory, prefix: &str) -> BTreeSet<String> {
    memory.objects().into_iter().map(|(key, _)| key).filter(|key| key.starts_with(prefix)).collect()
}

#[test]
fn what_is_copied_reads_the_same_and_a_second_copy_moves_nothing() {
    // Several leaves, of which two disks share none, and most of their blocks.
    let (memory, store) = source();
    let first = disk(1, 700 * BLOCK + 512);
    let mut second = first.clone();
    (0..700).step_by(FAN_OUT as usize).for_each(|at| second[at * BLOCK + 9] ^= 1);
    let third = disk(2, 5 * BLOCK);
    let points = [
        (backup(&store, "a", 1, &first), first),
        (backup(&store, "a", 2, &second), second),
        (backup(&store, "b", 3, &third), third),
    ];
    let (copied, there) = other_place(&store);
    let report = copy(&store, &there);
    assert_eq!(ids(&report), points.each_ref().map(|(id, _)| *id), "{report:?}");
    assert!(report.omitted.is_empty() && report.stopped.is_none(), "{report:?}");
    // The same store: the same config, points and packs, and nothing is left of the work.
    assert!(memory.objects() == copied.objects());
    let again = copy(&store, &open(&copied));
    assert_eq!((ids(&again), again.present, again.packs, again.bytes.get()), (vec![], 3, 0, 0), "{again:?}");
    assert!(memory.objects() == copied.objects());
    // And what was copied can be opened without what it was copied from, and copied on.
    drop((store, memory, there));
    let there = open(&copied);
    assert!(is_clean(&there));
    let (_, back) = other_place(&there);
    assert_eq!(copy(&there, &back).copied.len(), 3);
    for (id, bytes) in &points {
        assert!(reads(&there, *id, bytes) && reads(&back, *id, bytes), "{id}");
    }
}

#[test]
fn an_increment_moves_its_blocks_and_nodes_and_no_others() {
    let (memory, store) = source();
    let mut bytes = disk(1, 700 * BLOCK);
    let first = backup(&store, "a", 1, &bytes);
    let (copied, there) = other_place(&store);
    copy(&store, &there);
    let before = keys(&copied, "packs/");
    bytes[300 * BLOCK + 9] ^= 1;
    bytes[301 * BLOCK + 9] ^= 1;
    // As a delegate does it: with the nodes that changed.
    let base = store.point(first).unwrap().point.disks[0].tree;
    let root = store.read_node(base.root.unwrap()).unwrap();
    let mut nodes = support::Nodes::default();
    nodes.0.insert(base.root.unwrap(), seal::Node::clone(&root));
    for child in (0..FAN_OUT as usize).filter_map(|slot| root.child(slot)) {
        nodes.0.insert(child, seal::Node::clone(&*store.read_node(child).unwrap()));
    }
    let packed = pack_disk(store.id_key(), &bytes, Some((base, nodes)), &mut |id| store.has_block(id));
    for pack in packed.data.iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    let second = store.commit_point(&point(&store, "a", "2026-11-03T11:00:00Z", &[packed.tree])).unwrap();
    // By a process that knows nothing of the first copy, and does not look at what did not change.
    let there = open(&copied);
    let here = open(&memory);
    let report = copy(&here, &there);
    assert_eq!(ids(&report), [second]);
    let size: usize = packed.data.iter().chain(&packed.nodes).map(|pack| pack.bytes.len()).sum();
    assert_eq!((report.bytes.get(), report.packs), (size as u64, 2), "{report:?}");
    assert_eq!(keys(&copied, "packs/").len(), before.len() + 2);
    assert!(reads(&there, second, &bytes) && is_clean(&there));
}

#[test]
fn a_plan_tells_the_points_and_about_the_bytes_and_writes_nothing() {
    let (memory, store) = source();
    for minute in 0..3 {
        backup(&store, "a", minute, &disk(minute.into(), 20 * BLOCK));
    }
    let before = memory.objects();
    let vacant = store.plan_copy(None, &CopyOptions::default(), &GO_ON).unwrap();
    let (copied, there) = other_place(&store);
    let empty = copied.objects();
    let planned = store.plan_copy(Some(&there), &CopyOptions::default(), &GO_ON).unwrap();
    assert!((memory.objects(), copied.objects()) == (before, empty));
    let done = copy(&store, &there);
    assert_eq!((ids(&vacant), ids(&planned)), (ids(&done), ids(&done)));
    let sum = |report: &CopyReport| report.copied.iter().map(|point| point.bytes.get()).sum::<u64>();
    assert_eq!((sum(&vacant), sum(&planned)), (done.bytes.get(), done.bytes.get()));
    let nothing = store.plan_copy(Some(&there), &CopyOptions::default(), &GO_ON).unwrap();
    assert_eq!((nothing.copied.len(), nothing.present), (0, 3));
}

/// Everything that came before somebody died is whole, and nothing of it is moved a second time.
#[test]
fn a_copy_that_died_at_any_write_goes_on_where_it_was() {
    let (_memory, store) = source();
    let mut points = Vec::new();
    for (minute, vm) in [(1, "a"), (2, "b"), (3, "a")] {
        let bytes = disk(minute, (9 + minute as usize) * BLOCK);
        points.push((backup(&store, vm, u32::try_from(minute).unwrap(), &bytes), bytes));
    }
    let (whole, there) = other_place(&store);
    let moved = copy(&store, &there).bytes;
    let mut tried = 0;
    for loss in [Loss::From, Loss::One, Loss::Answer] {
        for at in 0.. {
            let memory = Arc::new(Memory::default());
            let between = Between::new(memory.clone(), loss(at));
            let first = store
                .init_copy_on(between.clone())
                .map(|there| store.copy_to(&Arc::new(there), &CopyOptions::default(), &GO_ON));
            if !between.struck() {
                break;
            }
            tried += 1;
            let first = match first {
                // The config did not come.
                Err(_) => continue,
                Ok(outcome) => outcome.map_or(0, |report| report.bytes.get()),
            };
            let there = open(&memory);
            assert!(is_clean(&there), "after change {at}");
            let came = there.points().unwrap().points.len();
            let arrived: u64 =
                keys(&memory, "packs/").iter().map(|key| memory.head(key).unwrap().unwrap()).sum();
            assert!(arrived >= first, "what is told to be there is there");
            let rest = copy(&store, &there);
            assert_eq!((rest.copied.len() + came, rest.stopped.is_none()), (3, true), "{rest:?}");
            assert_eq!(rest.bytes.get() + arrived, moved.get(), "after change {at}: nothing twice");
            assert_eq!(keys(&memory, "packs/"), keys(&whole, "packs/"));
            assert!(points.iter().all(|(id, bytes)| reads(&there, *id, bytes)));
        }
    }
    println!("a copy: {tried} deaths");
    assert!(tried > 30);
}

/// Flips a byte in the stored bytes of a block.
fn damage(memory: &Memory, store: &Store, plain: &[u8]) -> seal::BlockId {
    let id = store.id_key().block_id(plain);
    for key in keys(memory, "packs/") {
        let mut bytes = memory.get(&key, 64 << 20).unwrap();
        let index = seal::PackIndex::from_pack(&bytes).unwrap();
        if let Some(entry) = index.entries.iter().find(|entry| entry.id == *id.as_bytes()) {
            bytes[entry.offset as usize + 3] ^= 1;
            memory.put(&key, &bytes).unwrap();
            return id;
        }
    }
    panic!("no pack has it");
}

#[test]
fn of_a_damaged_store_the_points_that_are_whole_are_copied_and_the_others_named() {
    let (memory, store) = source();
    let first = disk(1, 12 * BLOCK);
    let mut second = first.clone();
    second[3 * BLOCK..4 * BLOCK].fill(7);
    let a = backup(&store, "a", 1, &first);
    let b = backup(&store, "a", 2, &second);
    let c = backup(&store, "b", 3, &disk(5, 4 * BLOCK));
    // Only the first disk has it; its pack holds much that the second one needs too.
    let id = damage(&memory, &store, &first[3 * BLOCK..4 * BLOCK]);
    let here = open(&memory);
    let (_, there) = other_place(&here);
    let report = copy(&here, &there);
    assert_eq!(ids(&report), [b, c], "{report:?}");
    let [omitted] = &report.omitted[..] else { panic!("{report:?}") };
    assert!(omitted.place.to_str().unwrap().contains(&a.to_string()));
    assert_eq!(omitted.vm, "name of a");
    for word in [id.to_string().as_str(), "0x30000 of disk 'disk 0'", "damaged"] {
        assert!(omitted.reason.contains(word), "'{}' does not say {word}", omitted.reason);
    }
    assert!(is_clean(&there) && reads(&there, b, &second));
    assert_eq!(there.points().unwrap().points.len(), 2);
    // Where it is whole there, nothing here needs to be.
    let (memory, store) = source();
    backup(&store, "a", 1, &first);
    let (_, there) = other_place(&store);
    copy(&store, &there);
    damage(&memory, &store, &first[5 * BLOCK..6 * BLOCK]);
    let other = backup(&store, "b", 2, &first);
    assert_eq!(ids(&copy(&open(&memory), &there)), [other]);
    assert!(is_clean(&there) && reads(&there, other, &first));
}

#[test]
fn every_object_that_is_missing_or_damaged_is_noticed_and_nothing_that_is_broken_arrives() {
    let (memory, store) = source();
    let bytes = disk(1, 6 * BLOCK);
    let a = backup(&store, "a", 1, &bytes);
    let b = backup(&store, "b", 2, &disk(2, 3 * BLOCK));
    let objects = memory.objects();
    for (key, whole) in objects.iter().filter(|(key, _)| key.starts_with('p')) {
        for cut in [None, Some(whole.len() / 2), Some(whole.len() - 5), Some(3)] {
            let damaged = Arc::new(Memory::of(objects.clone()));
            let here = open(&damaged);
            match cut {
                None => damaged.delete(key).unwrap(),
                Some(at) => {
                    let mut bytes = whole.clone();
                    bytes[at] ^= 0x10;
                    damaged.put(key, &bytes).unwrap();
                }
            }
            // By somebody who opened it before, and by one who opens it after.
            for here in [here, open(&damaged)] {
                let (_, there) = other_place(&here);
                let report = copy(&here, &there);
                assert!(report.stopped.is_none(), "{report:?}");
                assert!(is_clean(&there), "{key} {cut:?}");
                let points = there.points().unwrap().points;
                assert_eq!(points.len(), report.copied.len(), "{report:?}");
                // A flip in the salt of a header leaves every object whole.
                let is_salt = cut == Some(3) && key.starts_with("packs/");
                let gone = cut.is_none() && key.starts_with("points/");
                assert!(points.len() == 1 || is_salt, "{key} {cut:?}: {report:?}");
                assert!(report.omitted.len() == 2 - points.len() || gone, "{key} {cut:?}: {report:?}");
                assert!(points.iter().all(|stored| [a, b].contains(&stored.id)));
            }
        }
    }
}

#[test]
fn points_that_were_removed_there_stay_away_unless_they_are_asked_for() {
    let (_, store) = source();
    let a: Vec<PointId> =
        (0..4).map(|minute| backup(&store, "a", minute, &disk(minute.into(), 2 * BLOCK))).collect();
    let b = backup(&store, "b", 10, &disk(9, 2 * BLOCK));
    let (_, there) = other_place(&store);
    let last = with(&store, &there, &CopyOptions { last: Some(2), ..CopyOptions::default() });
    assert_eq!((ids(&last), last.older), (vec![a[2], a[3], b], 0));
    let again = copy(&store, &there);
    assert_eq!((ids(&again), again.present, again.older), (vec![], 3, 2));
    there.remove_point(a[2]).unwrap();
    let of_a = |all| CopyOptions { vms: vec!["name of a".into()], all, ..CopyOptions::default() };
    let again = with(&store, &there, &of_a(false));
    assert_eq!((ids(&again), again.present, again.older), (vec![], 1, 3));
    let named = CopyOptions { points: vec![a[1]], ..CopyOptions::default() };
    assert_eq!(ids(&with(&store, &there, &named)), [a[1]]);
    assert_eq!(ids(&with(&store, &there, &of_a(true))), [a[0], a[2]]);
    // One that is there only is left alone, also where it is the newest of its VM.
    let only = backup(&there, "b", 30, &disk(30, BLOCK));
    let newer = backup(&store, "b", 40, &disk(31, BLOCK));
    assert_eq!(ids(&copy(&store, &there)), [newer]);
    assert!(there.point(only).is_ok() && store.point(only).is_err());
    // And comes back, where it is asked for in the other direction.
    let back = with(&there, &store, &CopyOptions { points: vec![only], ..CopyOptions::default() });
    assert_eq!(ids(&back), [only]);
    let unknown = CopyOptions { vms: vec!["nobody".into()], ..CopyOptions::default() };
    let error = store.copy_to(&there, &unknown, &GO_ON).unwrap_err();
    assert_eq!(error.to_string(), "no restore point is of a VM 'nobody'");
}

#[test]
fn a_point_in_doubt_brings_along_what_says_so() {
    let (_, store) = source();
    let bytes = disk(1, 2 * BLOCK);
    let doubted = backup(&store, "a", 1, &bytes);
    let tree = store_disk(&store, &bytes).unwrap();
    let mut says_so = point(&store, "a", "2026-11-03T11:00:00Z", &[tree]);
    says_so.disks[0].suspect = vec![doubted];
    let says_so = store.commit_point(&says_so).unwrap();
    let (_, there) = other_place(&store);
    let report = with(&store, &there, &CopyOptions { points: vec![doubted], ..CopyOptions::default() });
    assert_eq!(ids(&report), [doubted, says_so]);
}

#[test]
fn pins_are_copied_where_that_is_asked_for() {
    let (_, store) = source();
    let a = backup(&store, "a", 1, &disk(1, BLOCK));
    let b = backup(&store, "b", 2, &disk(2, BLOCK));
    store.pin(a, "before the migration").unwrap();
    let (_, there) = other_place(&store);
    assert_eq!(copy(&store, &there).pins, 0);
    assert!(there.pins().unwrap().is_empty());
    store.pin(b, "").unwrap();
    there.pin(b, "there").unwrap();
    let options = CopyOptions { pins: true, ..CopyOptions::default() };
    assert_eq!((with(&store, &there, &options).pins, with(&store, &there, &options).pins), (1, 0));
    let pins = there.pins().unwrap();
    assert_eq!((&pins[&a], pins[&b].note.as_str()), (&store.pins().unwrap()[&a], "there"));
}

#[test]
fn another_store_and_the_store_itself_are_refused() {
    let (_, store) = source();
    backup(&store, "a", 1, &disk(1, BLOCK));
    let (_, other) = source();
    let error = store.copy_to(&other, &CopyOptions::default(), &GO_ON).unwrap_err();
    assert!(
        matches!(error, Error::AnotherStore { found, expected, .. } if found == other.id() && expected == store.id())
    );
    assert!(other.points().unwrap().points.is_empty());
    let error = store.init_copy_on(Arc::new(Memory::of([("x".into(), vec![])]))).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    let dir = TempDir::new().unwrap();
    let (here, alias) = (dir.path().join("here"), dir.path().join("alias"));
    let store = Arc::new(Store::init(&here).unwrap());
    std::os::unix::fs::symlink(&here, &alias).unwrap();
    for path in [here, alias] {
        let same = Arc::new(Store::open(&path).unwrap());
        let error = store.copy_to(&same, &CopyOptions::default(), &GO_ON).unwrap_err();
        assert!(matches!(error, Error::SamePlace { .. }), "{error}");
    }
}

/// A disk that is full, or fails, at each of its operations: what was told to be there is, and room makes it go on.
#[test]
fn a_full_place_ends_the_copy_and_keeps_what_came_before() {
    let (_, store) = source();
    let points: Vec<_> = (0..3u8)
        .map(|number| {
            let bytes = disk(number.into(), 8 * BLOCK);
            (backup(&store, "a", number.into(), &bytes), bytes)
        })
        .collect();
    let mut stopped = 0;
    for at in (0..).step_by(7) {
        let dir = TempDir::new().unwrap();
        let root = dir.path().join("store");
        let faulty = Faulty::new(at, Fault::NoSpace);
        let backend = Arc::new(LocalBackend::with_ops(&root, faulty.clone()));
        let outcome = store
            .init_copy_on(backend)
            .and_then(|there| store.copy_to(&Arc::new(there), &CopyOptions::default(), &GO_ON));
        let copied = match outcome {
            Ok(report) => {
                if let Some(error) = &report.stopped {
                    assert_eq!(error.kind(), ErrorKind::Full, "{}", chain(error));
                    stopped += 1;
                }
                report.copied.len()
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Full, "{}", chain(&error));
                0
            }
        };
        if !faulty.struck() {
            break;
        }
        let Ok(there) = Store::open(&root) else {
            assert_eq!(copied, 0);
            continue;
        };
        let there = Arc::new(there);
        assert!(is_clean(&there) && there.points().unwrap().points.len() >= copied);
        copy(&store, &there);
        assert!(points.iter().all(|(id, bytes)| reads(&there, *id, bytes)));
    }
    assert!(stopped > 3, "{stopped}");
}

/// A place where nothing can be removed or written again, as its owner wants it against ransomware.
#[derive(Debug)]
struct AppendOnly {
    inner: Arc<Memory>,
    refused: Mutex<Vec<String>>,
}

impl AppendOnly {
    fn refuse(&self, what: &'static str, key: &str) -> Error {
        self.refused.lock().unwrap().push(key.to_owned());
        Error::Remote { what, place: key.into(), source: io::ErrorKind::PermissionDenied.into() }
    }
}

impl Backend for AppendOnly {
    fn root(&self) -> PathBuf {
        "append-only".into()
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        match self.inner.head(key)? {
            None => self.inner.put(key, bytes),
            Some(_) => Err(self.refuse("write", key)),
        }
    }
    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.inner.get(key, limit)
    }
    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        self.inner.open(key)
    }
    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        Err(self.refuse("remove", key))
    }
    fn is_vacant(&self) -> Result<bool, Error> {
        self.inner.is_vacant()
    }
    fn prepare(&self) -> Result<(), Error> {
        self.inner.prepare()
    }
    fn enter(&self, alone: bool) -> Result<Presence, Error> {
        self.inner.enter(alone)
    }
}

#[test]
fn where_nothing_can_be_removed_only_the_lease_stays() {
    let (_, store) = source();
    let bytes = disk(1, 9 * BLOCK);
    let a = backup(&store, "a", 1, &bytes);
    store.pin(a, "").unwrap();
    let memory = Arc::new(Memory::default());
    let backend = Arc::new(AppendOnly { inner: memory.clone(), refused: Mutex::default() });
    let there = Arc::new(store.init_copy_on(backend.clone()).unwrap());
    let options = CopyOptions { pins: true, ..CopyOptions::default() };
    let report = with(&store, &there, &options);
    assert_eq!((ids(&report), report.pins, report.stopped.is_none()), (vec![a], 1, true));
    let refused = backend.refused.lock().unwrap().clone();
    assert!(refused.iter().all(|key| key.starts_with("leases/")) && !refused.is_empty(), "{refused:?}");
    assert_eq!(keys(&memory, "leases/").len(), 1, "its lease");
    // A second one writes nothing but its own.
    let report = with(&store, &Arc::new(Store::open_on(backend.clone()).unwrap()), &options);
    assert_eq!((report.present, report.bytes.get(), report.stopped.is_none()), (1, 0, true));
    // Who may remove finds them dead after the grace.
    let owner = open(&memory);
    for day in [0, 2] {
        let now = std::time::SystemTime::now() + Duration::from_secs(day * 86_400);
        owner.collect(&GcOptions { now, ..GcOptions::default() }, &|_, _| ()).unwrap();
    }
    assert!(keys(&memory, "leases/").is_empty());
    assert!(reads(&owner, a, &bytes) && is_clean(&owner));
}

/// A collector there that was held up before it removes a pack must not meet a later one of the same name.
#[test]
fn a_pack_that_was_removed_there_comes_back_under_another_name() {
    let (_, store) = source();
    let bytes = disk(1, 9 * BLOCK);
    let a = backup(&store, "a", 1, &bytes);
    let (memory, there) = other_place(&store);
    // Knows of nothing that comes later, unless it looks.
    let early = open(&memory);
    copy(&store, &there);
    let first = keys(&memory, "packs/");
    there.remove_point(a).unwrap();
    let all = CopyOptions { all: true, ..CopyOptions::default() };
    // Condemned, while somebody is there: what is on its way out counts as missing.
    let busy = there.lease("somebody", &[]).unwrap();
    let collector = open(&memory);
    assert!(collector.collect(&GcOptions::default(), &|_, _| ()).unwrap().waiting > 0);
    let report = with(&store, &early, &all);
    assert_eq!((ids(&report), report.packs), (vec![a], 0), "{report:?}");
    let second: BTreeSet<String> = keys(&memory, "packs/").difference(&first).cloned().collect();
    assert!(!second.is_empty());
    drop(busy);
    open(&memory).collect(&GcOptions::default(), &|_, _| ()).unwrap();
    assert!(keys(&memory, "packs/") == second && is_clean(&open(&memory)));
    // Removed: the names are free again, and are not used.
    open(&memory).remove_point(a).unwrap();
    for _ in 0..2 {
        open(&memory).collect(&GcOptions::default(), &|_, _| ()).unwrap();
    }
    assert!(keys(&memory, "packs/").is_empty());
    let there = open(&memory);
    let report = with(&store, &there, &all);
    assert_eq!((ids(&report), report.packs), (vec![a], 0));
    assert!(keys(&memory, "packs/").is_disjoint(&first) && keys(&memory, "packs/").is_disjoint(&second));
    assert!(reads(&there, a, &bytes) && is_clean(&there));
}

/// Of a pack that little is needed of, only that is moved.
#[test]
fn what_nobody_needs_is_not_moved() {
    let (_, store) = source();
    let large = disk(1, 40 * BLOCK);
    let mut small = vec![0; 40 * BLOCK];
    small[..BLOCK].copy_from_slice(&large[..BLOCK]);
    small[30 * BLOCK..31 * BLOCK].copy_from_slice(&large[30 * BLOCK..31 * BLOCK]);
    backup(&store, "large", 1, &large);
    let id = backup(&store, "small", 2, &small);
    let (memory, there) = other_place(&store);
    let options = CopyOptions { vms: vec!["small".into()], ..CopyOptions::default() };
    let report = with(&store, &there, &options);
    assert!(report.bytes.get() < 160_000, "{report:?}");
    assert!(reads(&there, id, &small) && is_clean(&there));
    let written: u64 = keys(&memory, "packs/").iter().map(|key| memory.head(key).unwrap().unwrap()).sum();
    assert_eq!(written, report.bytes.get());
}

#[test]
fn a_limit_holds_back_and_progress_is_told() {
    let (_, store) = source();
    backup(&store, "a", 1, &disk(1, 15 * BLOCK));
    let (memory, there) = other_place(&store);
    let options = CopyOptions { limit: Some(ByteCount::new(1 << 20)), ..CopyOptions::default() };
    let told = Mutex::new(Vec::new());
    let began = Instant::now();
    let report = store
        .copy_to(&there, &options, &|at| {
            told.lock().unwrap().push((at.done, at.count, at.moved.get(), at.planned.get()));
            ControlFlow::Continue(())
        })
        .unwrap();
    let took = began.elapsed();
    let packs = keys(&memory, "packs/");
    let largest = packs.iter().map(|key| memory.head(key).unwrap().unwrap()).max().unwrap();
    // The last one may go at once.
    let least = Duration::from_secs_f64((report.bytes.get() - largest) as f64 / f64::from(1 << 20));
    assert!(took >= least && least > Duration::from_millis(50), "{took:?} is less than {least:?}");
    let told = told.into_inner().unwrap();
    assert!(told.is_sorted_by_key(|at| at.2) && told.iter().all(|at| (at.0, at.1) == (0, 1) && at.2 <= at.3));
    assert_eq!(told.last().unwrap().2, report.bytes.get());
}

#[test]
fn who_ends_a_copy_gets_what_came_and_leaves_no_lease() {
    let (_, store) = source();
    for minute in 0..3 {
        backup(&store, "a", minute, &disk(minute.into(), 9 * BLOCK));
    }
    let mut ended = 0;
    for after in 0.. {
        let (memory, there) = other_place(&store);
        let told = Mutex::new(0);
        let count = |_: &ads::CopyProgress<'_>| {
            let mut told = told.lock().unwrap();
            *told += 1;
            if *told > after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let report = store.copy_to(&there, &CopyOptions::default(), &count).unwrap();
        assert!(is_clean(&open(&memory)) && keys(&memory, "leases/").is_empty());
        assert_eq!(open(&memory).points().unwrap().points.len(), report.copied.len());
        match report.stopped {
            None => break,
            Some(error) => assert!(matches!(error, Error::Interrupted), "{error}"),
        }
        ended += 1;
    }
    assert!(ended > 10, "{ended}");
}

/// What a copy writes, in the order in which it does: blocks, nodes, the point.
#[test]
fn points_come_last_and_nodes_after_blocks() {
    let (_, store) = source();
    backup(&store, "a", 1, &disk(1, 20 * BLOCK));
    backup(&store, "b", 2, &disk(2, 20 * BLOCK));
    let between = Between::new(Arc::new(Memory::default()), Loss::None);
    let there = Arc::new(store.init_copy_on(between.clone()).unwrap());
    copy(&store, &there);
    let kinds: String = between
        .changes()
        .iter()
        .filter_map(|change| match change {
            Change::Put(key, bytes) if key.starts_with("packs/") => {
                Some(if bytes[9] == 1 { 'd' } else { 'n' })
            }
            Change::Put(key, _) if key.starts_with("points/") => Some('p'),
            _ => None,
        })
        .collect();
    let mut order = kinds.chars().collect::<Vec<_>>();
    order.dedup();
    assert_eq!(order.into_iter().collect::<String>(), "dnpdnp", "{kinds}");
}
