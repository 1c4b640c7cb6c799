//! What every backend must pass: `FORMAT.md`, "What a backend must give".

use super::{backup, disk, restore};
use ads::{Backend, Depth, Error, ErrorKind, Listed, Probe, Scope, Store};
use seal::PackKind;
use std::sync::Arc;

/// A backend on which nothing is; called once for each part of the suite.
pub type Fresh<'a> = &'a dyn Fn() -> Arc<dyn Backend>;

/// Runs the suite.
pub fn run(fresh: Fresh) {
    objects_are_written_read_listed_and_removed(&*fresh());
    a_probe_finds_nothing_wrong_and_leaves_nothing(&*fresh());
    large_objects_come_back_whole(&*fresh());
    many_objects_are_listed_to_the_last(&*fresh());
    a_store_lives_on_it(fresh());
    what_is_occupied_is_refused(fresh());
}

fn listed(key: &str, size: u64) -> Listed {
    Listed { key: key.to_owned(), size }
}

fn missing<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.expect_err("it is not there");
    assert!(error.is_not_found(), "{error:?}");
}

fn objects_are_written_read_listed_and_removed(backend: &dyn Backend) {
    assert!(backend.is_vacant().unwrap());
    backend.prepare().unwrap();
    missing(backend.get("points/a.json", 10));
    assert_eq!(backend.head("points/a.json").unwrap(), None);
    assert_eq!(backend.list("points/").unwrap(), []);
    assert_eq!(backend.list("packs/").unwrap(), []);
    let (mut byte, key) = ([0], "points/a.json");
    match backend.open(key) {
        Err(error) => assert!(error.is_not_found(), "{error:?}"),
        Ok(object) => {
            let error = object.read_exact_at(&mut byte, 0).expect_err("it is not there");
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
        }
    }
    let bytes: Vec<u8> = (0..200_000_u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let pack = "packs/ab/abcdef";
    backend.put(pack, &bytes).unwrap();
    backend.put("points/a.json", b"").unwrap();
    backend.put("points/b.json", b"two").unwrap();
    assert!(!backend.is_vacant().unwrap());
    assert_eq!(backend.head(pack).unwrap(), Some(200_000));
    assert_eq!(backend.head("points/a.json").unwrap(), Some(0));
    assert_eq!(backend.get("points/a.json", 0).unwrap(), b"");
    assert!(backend.get(pack, 200_000).unwrap() == bytes);
    let error = backend.get(pack, 199_999).expect_err("over the limit");
    assert!(!error.is_not_found(), "{error:?}");
    let object = backend.open(pack).unwrap();
    for (offset, size) in
        [(0, 1), (0, 48), (65_530, 12), (131_072, 3), (199_999, 1), (100, 150_000), (0, 200_000), (7, 0)]
    {
        let mut part = vec![0; size];
        object.read_exact_at(&mut part, offset as u64).unwrap();
        assert!(part == bytes[offset..offset + size], "{size} bytes at {offset}");
    }
    for (offset, size) in [(199_999, 2), (200_000, 1), (300_000, 40_000), (150_000, 60_000)] {
        let error = object.read_exact_at(&mut vec![0; size], offset).expect_err("past the end");
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof, "{size} bytes at {offset}: {error}");
    }
    let points = [listed("points/a.json", 0), listed("points/b.json", 3)];
    assert_eq!(backend.list("points/").unwrap(), points);
    assert_eq!(backend.list("packs/").unwrap(), [listed(pack, 200_000)]);
    // A prefix is a whole name: what begins alike and goes on is another.
    assert_eq!(backend.list("packs/a/").unwrap(), []);
    backend.put("points/b.json", b"another").unwrap();
    assert_eq!(backend.get("points/b.json", 100).unwrap(), b"another");
    assert!(backend.put_new("points/c.json", b"c").unwrap());
    assert_eq!(backend.get("points/c.json", 100).unwrap(), b"c");
    backend.delete("points/c.json").unwrap();
    backend.delete("points/c.json").unwrap();
    missing(backend.get("points/c.json", 100));
    assert_eq!(backend.list("points/").unwrap(), [listed("points/a.json", 0), listed("points/b.json", 7)]);
    assert!(backend.place(pack).to_str().unwrap().ends_with(pack));
}

fn a_probe_finds_nothing_wrong_and_leaves_nothing(backend: &dyn Backend) {
    backend.prepare().unwrap();
    Probe::run(backend).unwrap();
    assert_eq!(backend.list("tmp/").unwrap(), []);
}

fn large_objects_come_back_whole(backend: &dyn Backend) {
    backend.prepare().unwrap();
    // Over the limit of what goes up in one request, and no multiple of a part.
    let mut bytes: Vec<u8> = (0..20_000_001_u32).map(|at| (at >> 4) as u8 ^ at as u8).collect();
    bytes[19_999_999] = 42;
    backend.put("packs/00/large", &bytes).unwrap();
    assert!(backend.get("packs/00/large", 64 << 20).unwrap() == bytes);
    let mut part = vec![0; 100];
    backend.open("packs/00/large").unwrap().read_exact_at(&mut part, 19_999_901).unwrap();
    assert!(part == bytes[19_999_901..]);
}

fn many_objects_are_listed_to_the_last(backend: &dyn Backend) {
    backend.prepare().unwrap();
    // More than a server lists at once.
    let count = 1100;
    std::thread::scope(|scope| {
        for part in 0..8 {
            scope.spawn(move || {
                for number in (part..count).step_by(8) {
                    backend.put(&format!("points/{number:04}.json"), b"x").unwrap();
                }
            });
        }
    });
    let found = backend.list("points/").unwrap();
    assert_eq!(found.len(), count);
    assert!(found.is_sorted() && found[0].key == "points/0000.json", "{:?}", found[0]);
}

fn a_store_lives_on_it(backend: Arc<dyn Backend>) {
    let first = disk(1, 40 * 65536 + 512);
    let store = Store::init_on(backend.clone()).unwrap();
    let id = backup(&store, "vm", &first).unwrap();
    assert_eq!(backup(&store, "vm", &first).unwrap(), id, "the same point twice is one point");
    drop(store);
    let store = Store::open_on(backend.clone()).unwrap();
    assert!(store.skipped_packs().is_empty(), "{:?}", store.skipped_packs());
    for depth in [Depth::Structure, Depth::EveryByte] {
        let report = store.verify(&Scope::All, depth, &|_| ()).unwrap();
        assert!(report.is_clean(), "{:?}", report.findings);
    }
    let found = store.latest_point("vm").unwrap().unwrap();
    assert!(restore(&store, &found.point.disks[0].tree).unwrap() == first);
    let second = disk(2, 10 * 65536);
    let other = backup(&store, "other", &second).unwrap();
    assert_eq!(store.points().unwrap().points.len(), 2);
    assert_eq!(store.find_point(&other.short()).unwrap().id, other);
    store.pin(other, "first").unwrap();
    store.pin(other, "for the audit").unwrap();
    assert_eq!(store.pins().unwrap()[&other].note, "for the audit");
    assert!(matches!(store.remove_point(other), Err(Error::PointPinned { .. })));
    assert!(store.unpin(other).unwrap() && !store.unpin(other).unwrap());
    store.remove_point(other).unwrap();
    assert_eq!(store.point(other).unwrap_err().kind(), ErrorKind::NotFound);
    // Five points and more are read at once where the way is long.
    let ids: Vec<_> =
        (0..6).map(|number| backup(&store, &format!("vm-{number}"), &second).unwrap()).collect();
    let found = store.points().unwrap();
    assert!(ids.iter().all(|id| found.points.iter().any(|point| point.id == *id)), "{:?}", found.damaged);
    // What is damaged is named with its place. A pack of blocks: nodes were written with each backup.
    let packs = backend.list("packs/").unwrap();
    let mut read = packs.iter().map(|pack| (pack.key.clone(), backend.get(&pack.key, 64 << 20).unwrap()));
    let (key, mut bytes) = read.find(|(_, bytes)| bytes[9] == PackKind::Data as u8).unwrap();
    bytes[100] ^= 1;
    backend.put(&key, &bytes).unwrap();
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    let name = key.rsplit('/').next().unwrap();
    assert!(
        report.findings.iter().any(|finding| finding.to_string().contains(name)),
        "{:?}",
        report.findings
    );
    backend.delete(&key).unwrap();
    let report = store.verify(&Scope::All, Depth::Structure, &|_| ()).unwrap();
    let gone = report.findings.iter().find(|finding| finding.to_string().contains("not there any more"));
    assert!(gone.is_some_and(|finding| !finding.affects.is_empty()), "{:?}", report.findings);
}

fn what_is_occupied_is_refused(backend: Arc<dyn Backend>) {
    let error = Store::open_on(backend.clone()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAStore, "{error:?}");
    drop(Store::init_on(backend.clone()).unwrap());
    let error = Store::init_on(backend.clone()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists, "{error:?}");
    // Another store appears under an open one: nothing is committed into it.
    let store = Store::open_on(backend.clone()).unwrap();
    let tree = super::store_disk(&store, &disk(3, 65536)).unwrap();
    let point = super::point(&store, "vm", "2026-11-03T10:20:30Z", &[tree]);
    let config = backend.get("config.json", 10_000).unwrap();
    backend.put("config.json", &super::other_config()).unwrap();
    let error = store.commit_point(&point).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error:?}");
    assert_eq!(backend.list("points/").unwrap(), []);
    backend.put("config.json", &config).unwrap();
    store.commit_point(&point).unwrap();
}
