//! One suite for all backends that need nothing but this process; servers are in `s3.rs`.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Backend, Depth, LocalBackend, Scope, Store};
use std::cell::Cell;
use std::sync::Arc;
use support::memory::{Between, Loss, Memory};
use support::{backup, disk, restore, suite};
use tempfile::TempDir;

/// More changes than anything here makes; reaching it means that a loop does not end.
const MOST_CHANGES: u64 = 1000;

#[test]
fn a_directory_passes_the_suite() {
    let (dir, count) = (TempDir::new().unwrap(), Cell::new(0));
    suite::run(&|| {
        count.set(count.get() + 1);
        Arc::new(LocalBackend::new(&dir.path().join(count.get().to_string())))
    });
}

#[test]
fn memory_passes_the_suite() {
    suite::run(&|| Arc::new(Memory::default()));
}

#[test]
fn a_directory_that_is_a_symbolic_link_holds_a_store() {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("real")).unwrap();
    std::os::unix::fs::symlink("real", dir.path().join("link")).unwrap();
    drop(Store::init(&dir.path().join("link")).unwrap());
    assert!(Store::open(&dir.path().join("real")).is_ok());
}

/// A whole life with a change that is lost, or whose answer is: the error is told, and the next try makes it good.
fn with_loss(loss: fn(u64) -> Loss) {
    let (first, second) = (disk(1, 10 * 65536), disk(2, 20 * 65536 + 512));
    for at in 0..MOST_CHANGES {
        let memory: Arc<dyn Backend> = Arc::new(Memory::default());
        drop(Store::init_on(memory.clone()).unwrap());
        let between = Between::new(memory.clone(), loss(at));
        let store = Store::open_on(between.clone()).unwrap();
        let outcome = backup(&store, "first", &first).and_then(|_| backup(&store, "second", &second));
        assert_eq!(outcome.is_err(), between.struck(), "change {at}");
        drop(store);
        let store = Store::open_on(memory).unwrap();
        let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
        assert!(report.is_clean(), "change {at}: {:?}", report.findings);
        for (vm, bytes) in [("first", &first), ("second", &second)] {
            let id = backup(&store, vm, bytes).unwrap();
            assert!(restore(&store, &store.point(id).unwrap().point.disks[0].tree).unwrap() == *bytes);
        }
        if !between.struck() {
            assert!(at > 6, "every change was lost once, {at} in all");
            return;
        }
    }
    panic!("a backup makes more than {MOST_CHANGES} changes");
}

#[test]
fn a_change_that_is_lost_is_told_and_made_good_by_the_next_run() {
    with_loss(Loss::One);
}

#[test]
fn a_change_whose_answer_is_lost_is_told_and_made_good_by_the_next_run() {
    with_loss(Loss::Answer);
}

#[test]
fn a_backend_that_dies_for_good_leaves_a_store_that_verifies() {
    with_loss(Loss::From);
}
