//! Every writing operation fails once, and every one is once the last: the store is whole afterwards.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Depth, Error, ErrorKind, PointId, Scope, Store};
use std::path::Path;
use std::sync::Arc;
use support::faults::{Fault, Faulty};
use support::{backup, chain, disk, files, restore};
use tempfile::TempDir;

/// More operations than anything here takes; reaching it means that a loop does not end.
const MOST_OPERATIONS: u64 = 1000;

fn clean(dir: &Path) -> Store {
    let store = Store::open(dir).unwrap();
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(store.skipped_packs().len(), 0);
    assert!(files(&dir.join("tmp")).is_empty(), "leftovers are cleared");
    store
}

fn second_disk() -> Vec<u8> {
    disk(2, 20 * 65536 + 512)
}

/// A store with one backup, then a second backup that meets a fault.
fn backup_with_fault(dir: &Path, at: u64, fault: Fault) -> (Arc<Faulty>, Result<PointId, Error>) {
    let store = Store::init(dir).unwrap();
    backup(&store, "first", &disk(1, 10 * 65536)).unwrap();
    drop(store);
    let faulty = Faulty::new(at, fault);
    let store = Store::open_with(dir, faulty.clone()).unwrap();
    let outcome = backup(&store, "second", &second_disk());
    (faulty, outcome)
}

#[test]
fn death_after_every_step_leaves_a_store_that_verifies() {
    let mut with_second = 0;
    for at in 0..MOST_OPERATIONS {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store");
        let (faulty, outcome) = backup_with_fault(&path, at, Fault::Death);
        assert_eq!(outcome.is_err(), faulty.struck(), "operation {at}");
        let store = clean(&path);
        assert!(store.latest_point("first").unwrap().is_some());
        if let Some(second) = store.latest_point("second").unwrap() {
            with_second += 1;
            assert!(restore(&store, &second.point.disks[0].tree).unwrap() == second_disk());
        }
        // The next run succeeds, whatever was left.
        let id = backup(&store, "second", &second_disk()).unwrap();
        assert!(store.point(id).is_ok());
        if !faulty.struck() {
            assert!(at > 20, "the fault was tried at every operation, {at} in all");
            assert!(with_second >= 1);
            return;
        }
    }
    panic!("the backup takes more than {MOST_OPERATIONS} operations");
}

#[test]
fn a_full_disk_at_every_step_is_named_and_leaves_nothing_behind() {
    for at in 0..MOST_OPERATIONS {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store");
        let (faulty, outcome) = backup_with_fault(&path, at, Fault::NoSpace);
        if !faulty.struck() {
            outcome.unwrap();
            assert!(at > 20, "the fault was tried at every operation, {at} in all");
            return;
        }
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full, "operation {at}: {}", chain(&error));
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        assert!(files(&path.join("tmp")).is_empty(), "operation {at} left a file under tmp/");
        let store = clean(&path);
        assert!(
            store.latest_point("second").unwrap().is_none(),
            "operation {at}: what failed does not exist"
        );
        backup(&store, "second", &second_disk()).unwrap();
    }
    panic!("the backup takes more than {MOST_OPERATIONS} operations");
}

#[test]
fn init_can_be_repeated_after_death_at_every_step() {
    for at in 0..MOST_OPERATIONS {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store");
        let faulty = Faulty::new(at, Fault::Death);
        let outcome = Store::init_with(&path, faulty.clone()).map(drop);
        if !faulty.struck() {
            outcome.unwrap();
            return;
        }
        match Store::open(&path) {
            Ok(store) => assert!(store.points().unwrap().points.is_empty()),
            Err(_) => drop(Store::init(&path).unwrap()),
        }
        clean(&path);
    }
    panic!("init takes more than {MOST_OPERATIONS} operations");
}
