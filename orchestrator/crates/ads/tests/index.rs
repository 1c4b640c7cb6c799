//! The index on disk as a store uses it: what it saves, and that nothing it says is believed which is not so any more.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Backend, Depth, Error, GcOptions, IndexOptions, Listed, LocalBackend, Object, Presence, Scope, Store,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::memory::Memory;
use support::{backup, disk, fast_dir, files, on_disk, point, restore, store_disk};
use tempfile::TempDir;

/// Counts the packs that were opened; is on another machine, so that its index is in the cache directory.
#[derive(Debug)]
struct Counting {
    inner: Arc<dyn Backend>,
    root: PathBuf,
    opened: AtomicU64,
    /// Objects that were read whole.
    got: AtomicU64,
}

impl Counting {
    fn new(inner: Arc<dyn Backend>, root: &str) -> Arc<Self> {
        Arc::new(Self { inner, root: root.into(), opened: AtomicU64::new(0), got: AtomicU64::new(0) })
    }

    fn opened(&self) -> u64 {
        self.opened.swap(0, Ordering::SeqCst)
    }

    fn got(&self) -> u64 {
        self.got.swap(0, Ordering::SeqCst)
    }
}

impl Backend for Counting {
    fn root(&self) -> PathBuf {
        self.root.clone()
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.inner.put(key, bytes)
    }
    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.got.fetch_add(1, Ordering::SeqCst);
        self.inner.get(key, limit)
    }
    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.inner.open(key)
    }
    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.inner.delete(key)
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

/// A store in memory with a backup of each of these disks; and how many packs that are.
fn filled(disks: u64) -> (Arc<Memory>, u64) {
    let memory = Arc::new(Memory::default());
    let store = Store::init_on(memory.clone()).unwrap();
    for seed in 0..disks {
        backup(&store, &format!("vm-{seed}"), &disk(seed, 9 * 65536)).unwrap();
    }
    let packs = store.usage().packs;
    (memory, packs)
}

fn is_whole(store: &Store, disks: u64) {
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    for seed in 0..disks {
        let point = store.latest_point(&format!("vm-{seed}")).unwrap().unwrap();
        assert!(restore(store, &point.point.disks[0].tree).unwrap() == disk(seed, 9 * 65536), "disk {seed}");
    }
}

#[test]
fn opening_reads_only_the_ends_of_packs_that_are_new() {
    let cache = fast_dir();
    let (memory, packs) = filled(5);
    let counting = Counting::new(memory.clone(), "there");
    let options = on_disk(cache.path());
    let store = Store::open_indexed(counting.clone(), &options).unwrap();
    assert_eq!(counting.opened(), packs, "there was no index");
    drop(store);
    let store = Store::open_indexed(counting.clone(), &options).unwrap();
    assert_eq!(counting.opened(), 0, "the index tells all of it");
    let usage = store.usage();
    is_whole(&store, 5);
    drop(store);
    counting.opened();
    backup(&Store::open_on(memory).unwrap(), "vm-5", &disk(5, 9 * 65536)).unwrap();
    let store = Store::open_indexed(counting.clone(), &options).unwrap();
    let new = store.usage().packs - packs;
    assert!(new > 0);
    assert_eq!(counting.opened(), new, "only what came since then");
    assert!(store.usage().blocks > usage.blocks && store.usage().nodes > usage.nodes);
    is_whole(&store, 6);
}

#[test]
fn a_few_packs_are_read_as_they_always_were_and_nothing_is_written() {
    let cache = fast_dir();
    let (memory, packs) = filled(3);
    let counting = Counting::new(memory, "there");
    let options = IndexOptions { directory: Some(cache.path().to_owned()), ..IndexOptions::default() };
    for _ in 0..2 {
        is_whole(&Store::open_indexed(counting.clone(), &options).unwrap(), 3);
        assert!(counting.opened() >= packs);
    }
    assert!(files(cache.path()).is_empty());
}

#[test]
fn what_is_not_listed_any_more_is_not_found_whatever_the_index_says() {
    let cache = fast_dir();
    let (memory, packs) = filled(2);
    let options = on_disk(cache.path());
    let store = Store::open_indexed(memory.clone(), &options).unwrap();
    let bytes = disk(0, 9 * 65536);
    let id = store.id_key().block_id(&bytes[..65536]);
    assert!(store.has_block(&id));
    drop(store);
    // Not by a collector, which says so: as somebody does who moves files away.
    for (key, _) in memory.objects().iter().filter(|(key, _)| key.starts_with("packs/")) {
        memory.delete(key).unwrap();
    }
    let store = Store::open_indexed(memory.clone(), &options).unwrap();
    assert!(!store.has_block(&id) && store.usage().packs == 0 && store.usage().blocks == 0, "of {packs}");
    assert!(store.read_block(id).is_err());
    // And it comes back by a backup.
    store_disk(&store, &bytes).unwrap();
    assert!(store.has_block(&id));
    drop(store);
    assert!(Store::open_indexed(memory, &options).unwrap().has_block(&id));
}

#[test]
fn a_pack_of_another_size_is_not_the_one_that_the_index_knows() {
    let cache = fast_dir();
    let (memory, _) = filled(1);
    let options = on_disk(cache.path());
    drop(Store::open_indexed(memory.clone(), &options).unwrap());
    let objects = memory.objects();
    let (key, bytes) = objects.iter().find(|(key, _)| key.starts_with("packs/")).unwrap();
    memory.put(key, &bytes[..bytes.len() - 1]).unwrap();
    let store = Store::open_indexed(memory, &options).unwrap();
    assert_eq!(store.skipped_packs().len(), 1, "cut off, so that it was read and refused");
}

#[test]
fn an_index_that_is_damaged_anywhere_costs_only_time() {
    let cache = fast_dir();
    let (memory, _) = filled(3);
    let options = on_disk(cache.path());
    drop(Store::open_indexed(memory.clone(), &options).unwrap());
    let [file] = &files(cache.path())[..] else { panic!("one run") };
    let whole = fs::read(file).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 60) {
        let mut bytes = whole.clone();
        bytes[at..].iter_mut().take(40).for_each(|byte| *byte ^= 0x55);
        fs::write(file, &bytes).unwrap();
        let store = Store::open_indexed(memory.clone(), &options).unwrap();
        is_whole(&store, 3);
        drop(store);
        for path in files(cache.path()) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn two_places_of_one_store_have_an_index_each() {
    let cache = fast_dir();
    let (memory, packs) = filled(2);
    let copy = Arc::new(Memory::default());
    for (key, bytes) in memory.objects().iter().filter(|(key, _)| !key.starts_with("packs/0")) {
        copy.put(key, bytes).unwrap();
    }
    let options = on_disk(cache.path());
    for (backend, root) in [(memory, "here"), (copy as Arc<Memory>, "there")] {
        let counting = Counting::new(backend, root);
        let store = Store::open_indexed(counting.clone(), &options).unwrap();
        assert_eq!(
            counting.opened(),
            store.usage().packs,
            "{root}: the other one's index says nothing of it"
        );
        assert!(store.usage().packs <= packs);
        drop(store);
        drop(Store::open_indexed(counting.clone(), &options).unwrap());
        assert_eq!(counting.opened(), 0, "{root}: its own does");
    }
    assert_eq!(fs::read_dir(cache.path().join("stores")).unwrap().count(), 2);
}

#[test]
fn a_store_in_a_directory_has_its_index_beside_it_and_goes_on_without() {
    let dir = fast_dir();
    let path = dir.path().join("store");
    let store = Store::init(&path).unwrap();
    backup(&store, "vm-0", &disk(0, 9 * 65536)).unwrap();
    drop(store);
    let options = IndexOptions { fewest_packs: 1, ..IndexOptions::default() };
    let open = || Store::open_indexed(Arc::new(LocalBackend::new(&path)), &options).unwrap();
    drop(open());
    assert_eq!(files(&path.join("index")).len(), 1);
    is_whole(&open(), 1);
    fs::remove_dir_all(path.join("index")).unwrap();
    is_whole(&open(), 1);
    // Something is in the way: the store does without.
    fs::remove_dir_all(path.join("index")).unwrap();
    fs::write(path.join("index"), b"").unwrap();
    is_whole(&open(), 1);
}

/// A job that runs beside a collector in another process, both with their index on disk.
#[test]
fn what_a_collector_took_away_is_not_promised_by_an_index_that_is_older() {
    let caches = [fast_dir(), fast_dir()];
    let (memory, _) = filled(3);
    let open =
        |cache: &TempDir| Arc::new(Store::open_indexed(memory.clone(), &on_disk(cache.path())).unwrap());
    drop((open(&caches[0]), open(&caches[1])));
    let job = open(&caches[0]);
    let collector = open(&caches[1]);
    let gone = collector.latest_point("vm-0").unwrap().unwrap();
    collector.remove_point(gone.id).unwrap();
    let report = collector.collect(&GcOptions::default(), &|_, _| ()).unwrap();
    assert!(report.removed > 0 && report.waiting == 0, "{report:?}");
    let lease = job.lease("job", &[]).unwrap();
    let bytes = disk(0, 9 * 65536);
    assert!(!job.has_block(&job.id_key().block_id(&bytes[..65536])));
    let tree = store_disk(&job, &bytes).unwrap();
    assert!(restore(&job, &tree).unwrap() == bytes);
    drop(lease);
    for cache in &caches {
        let store = open(cache);
        assert!(restore(&store, &tree).unwrap() == bytes);
    }
}

#[test]
fn a_cache_is_named_by_its_store_and_the_place_of_that() {
    let cache = fast_dir();
    let (memory, _) = filled(1);
    let store =
        Store::open_indexed(Counting::new(memory, "s3://bucket/there"), &on_disk(cache.path())).unwrap();
    let names: Vec<PathBuf> =
        fs::read_dir(cache.path().join("stores")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let place = blake3::hash(b"s3://bucket/there").to_hex();
    assert_eq!(
        names[0].file_name().unwrap().to_str().unwrap(),
        format!("{}-{}", store.id().simple(), &place.as_str()[..16])
    );
    assert!(Path::new(&names[0]).join("index").is_dir());
}

/// A store with so many points over one disk.
fn pointed(count: u64) -> Arc<Memory> {
    let memory = Arc::new(Memory::default());
    let store = Store::init_on(memory.clone()).unwrap();
    add_points(&store, 0..count);
    memory
}

fn add_points(store: &Store, numbers: std::ops::Range<u64>) {
    let tree = store_disk(store, &disk(1, 3 * 65536)).unwrap();
    for number in numbers {
        let created = format!("2026-11-03T{:02}:{:02}:{:02}Z", number / 3600, number / 60 % 60, number % 60);
        store.commit_point(&point(store, &format!("vm-{}", number % 4), &created, &[tree])).unwrap();
    }
}

fn copies(cache: &Path) -> Vec<PathBuf> {
    files(cache).into_iter().filter(|path| path.extension().is_some_and(|end| end == "points1")).collect()
}

#[test]
fn points_that_were_read_once_are_not_read_again() {
    let cache = fast_dir();
    let memory = pointed(100);
    let counting = Counting::new(memory.clone(), "there");
    let open = || Store::open_indexed(counting.clone(), &on_disk(cache.path())).unwrap();
    let store = open();
    counting.got();
    let expected = Store::open_on(memory.clone()).unwrap().points().unwrap().points;
    assert_eq!(store.points().unwrap().points, expected);
    assert_eq!(counting.got(), 100);
    assert_eq!(store.points().unwrap().points, expected);
    assert_eq!(counting.got(), 0, "copies of all");
    let other = open();
    counting.got();
    // Some go, some come, by another process.
    let elsewhere = Store::open_on(memory.clone()).unwrap();
    expected.iter().take(70).for_each(|stored| elsewhere.remove_point(stored.id).unwrap());
    add_points(&elsewhere, 100..140);
    let expected = elsewhere.points().unwrap().points;
    assert_eq!(expected.len(), 70);
    assert_eq!(other.points().unwrap().points, expected);
    assert_eq!(counting.got(), 40, "only what came");
    assert_eq!(other.points().unwrap().points, expected);
    assert_eq!((counting.got(), copies(cache.path()).len()), (0, 2));
    // Most of the copies are of points that are gone: one file is made of what is left.
    let rest: Vec<_> = expected.iter().skip(1).map(|stored| stored.id).collect();
    rest.iter().for_each(|id| elsewhere.remove_point(*id).unwrap());
    add_points(&elsewhere, 200..240);
    for _ in 0..3 {
        assert_eq!(other.points().unwrap().points, elsewhere.points().unwrap().points);
    }
    let size: u64 = copies(cache.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let points: usize = memory
        .objects()
        .iter()
        .filter(|(key, _)| key.starts_with("points/"))
        .map(|(_, bytes)| bytes.len())
        .sum();
    assert!(size < 3 * points as u64, "{size} bytes of copies for {points}");
}

#[test]
fn a_copy_of_a_point_that_is_damaged_anywhere_is_not_believed() {
    let cache = fast_dir();
    let memory = pointed(32);
    let open = || Store::open_indexed(memory.clone(), &on_disk(cache.path())).unwrap();
    let expected = open().points().unwrap().points;
    let [file] = &copies(cache.path())[..] else { panic!("one file") };
    let whole = fs::read(file).unwrap();
    let store = open();
    for at in (0..200).chain((200..whole.len()).step_by(389)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(file, &bytes).unwrap();
        assert_eq!(store.points().unwrap().points, expected, "byte {at}");
        fs::write(file, &whole[..at]).unwrap();
        assert_eq!(store.points().unwrap().points, expected, "cut to {at}");
        for path in copies(cache.path()).iter().filter(|path| *path != file) {
            fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn verify_and_whoever_asks_for_one_point_read_the_store_and_not_a_copy() {
    let cache = fast_dir();
    let memory = pointed(40);
    let store = Store::open_indexed(memory.clone(), &on_disk(cache.path())).unwrap();
    let damaged = store.points().unwrap().points[7].id;
    let key = format!("points/{damaged}.json");
    let mut bytes = memory.get(&key, 1 << 20).unwrap();
    bytes[9] ^= 1;
    memory.put(&key, &bytes).unwrap();
    assert!(matches!(store.point(damaged), Err(Error::PointDamaged { .. })));
    let report = store.verify(&Scope::All, Depth::Structure, &|_| ()).unwrap();
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    // One of another size is seen by everybody.
    bytes.push(b' ');
    memory.put(&key, &bytes).unwrap();
    assert_eq!(store.points().unwrap().damaged.len(), 1);
}
