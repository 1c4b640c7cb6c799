//! Every prefix of what a backup writes, torn and with unsynced parts lost: the store opens and what was committed is
//! whole. `support/crash.rs` has the model; a scenario for another kind of writing is a function here.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Access, Backend, CopyOptions, Depth, GcOptions, KdfCost, LocalBackend, NewAccess, Passphrase,
    RepairOptions, Scope, Store,
};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use support::crash::{Recorder, Step, matrix, matrix_of};
use support::memory::{Between, Change, Loss, Memory};
use support::{GO_ON, backup, disk};
use tempfile::TempDir;

type Scenario = fn(&Path, &Arc<Recorder>);

/// Makes a store and backs up into it: a disk, the same with a block changed, another disk.
fn backups(root: &Path, recorder: &Arc<Recorder>) {
    let store = Store::init_with(root, recorder.clone()).unwrap();
    let mut bytes = disk(1, 12 * 65536 + 512);
    recorder.committed(backup(&store, "first", &bytes).unwrap(), &bytes);
    bytes[3 * 65536 + 5] ^= 1;
    recorder.committed(backup(&store, "first again", &bytes).unwrap(), &bytes);
    let other = disk(2, 5 * 65536);
    recorder.committed(backup(&store, "second", &other).unwrap(), &other);
}

/// The same, by one process after the other, and a point that is pinned, let go of and forgotten between.
fn reopened_and_forgotten(root: &Path, recorder: &Arc<Recorder>) {
    drop(Store::init_with(root, recorder.clone()).unwrap());
    let store = Store::open_with(root, recorder.clone()).unwrap();
    let (first, second) = (disk(3, 3 * 65536), disk(4, 2 * 65536));
    let id = backup(&store, "first", &first).unwrap();
    recorder.committed(id, &first);
    drop(store);
    let store = Store::open_with(root, recorder.clone()).unwrap();
    store.pin(id, "kept").unwrap();
    store.pin(id, "kept on").unwrap();
    store.unpin(id).unwrap();
    recorder.removed(id);
    store.remove_point(id).unwrap();
    recorder.committed(backup(&store, "second", &second).unwrap(), &second);
    recorder.committed(backup(&store, "first", &first).unwrap(), &first);
}

/// A point is forgotten and what it had is freed, some of it out of a pack that is needed in part; then a backup again.
fn collected(root: &Path, recorder: &Arc<Recorder>) {
    let store = Arc::new(Store::init_with(root, recorder.clone()).unwrap());
    let (first, second) = (disk(5, 6 * 65536), disk(6, 2 * 65536));
    let mut half = first.clone();
    half[65536..].fill(0);
    let id = backup(&store, "first", &first).unwrap();
    recorder.committed(id, &first);
    recorder.committed(backup(&store, "half of it", &half).unwrap(), &half);
    recorder.removed(id);
    store.remove_point(id).unwrap();
    let found = store.collect(&GcOptions::default(), &|_, _| ()).unwrap();
    assert!(found.removed > 1 && found.repacked == 1 && found.waiting == 0, "{found:?}");
    recorder.committed(backup(&store, "second", &second).unwrap(), &second);
}

/// A pack is damaged where no object is, and one of tree nodes too; both are repaired, and a backup follows.
fn repaired(root: &Path, recorder: &Arc<Recorder>) {
    let store = Store::init_with(root, recorder.clone()).unwrap();
    let (first, second) = (disk(7, 6 * 65536), disk(8, 2 * 65536));
    recorder.committed(backup(&store, "first", &first).unwrap(), &first);
    recorder.committed(backup(&store, "second", &second).unwrap(), &second);
    drop(store);
    recorder.hurt(true);
    let backend = LocalBackend::with_ops(root, recorder.clone());
    for pack in backend.list("packs/").unwrap().iter().step_by(2) {
        let mut bytes = backend.get(&pack.key, u64::MAX).unwrap();
        bytes[12] ^= 1;
        backend.put(&pack.key, &bytes).unwrap();
    }
    let store = Arc::new(Store::open_with(root, recorder.clone()).unwrap());
    let found = store.repair(RepairOptions::default(), None, &|_| ()).unwrap();
    assert!(found.is_whole() && found.deeds.len() > 2 && found.waiting == 0, "{found:?}");
    recorder.hurt(false);
    recorder.committed(backup(&store, "first again", &first).unwrap(), &first);
}

/// A copy of another place of the store, by one process after the other: of two points, of one more that shares most of its
/// blocks, of one that was removed here and is asked for again after what it needed was collected.
fn copied(root: &Path, recorder: &Arc<Recorder>) {
    let source = Arc::new(Store::init_on(Arc::new(Memory::default())).unwrap());
    let open = || Arc::new(Store::open_with(root, recorder.clone()).unwrap());
    let mut bytes = disk(7, 6 * 65536 + 512);
    let first = backup(&source, "first", &bytes).unwrap();
    let other = disk(8, 2 * 65536);
    let second = backup(&source, "second", &other).unwrap();
    let there = source.init_copy_on(Arc::new(LocalBackend::with_ops(root, recorder.clone()))).unwrap();
    let copy = |there: Arc<Store>, options: CopyOptions, count: usize| {
        let report = source.copy_to(&there, &options, &GO_ON).unwrap();
        assert!(report.copied.len() == count && report.stopped.is_none(), "{report:?}");
    };
    copy(Arc::new(there), CopyOptions::default(), 2);
    recorder.committed(first, &bytes);
    recorder.committed(second, &other);
    bytes[3 * 65536 + 5] ^= 1;
    let third = backup(&source, "first again", &bytes).unwrap();
    copy(open(), CopyOptions::default(), 1);
    recorder.committed(third, &bytes);
    let there = open();
    recorder.removed(second);
    there.remove_point(second).unwrap();
    assert!(there.collect(&GcOptions::default(), &|_, _| ()).unwrap().removed > 0);
    copy(open(), CopyOptions { all: true, ..CopyOptions::default() }, 1);
    recorder.committed(second, &other);
}

fn record(scenario: Scenario) -> (TempDir, PathBuf, Vec<Step>) {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("store");
    let recorder = Arc::new(Recorder::default());
    scenario(&root, &recorder);
    (dir, root, recorder.steps())
}

#[test]
fn whatever_a_crash_leaves_of_the_files_opens_and_is_whole() {
    for (name, scenario) in [
        ("backups", backups as Scenario),
        ("reopened and forgotten", reopened_and_forgotten),
        ("collected", collected),
        ("repaired", repaired),
        ("copied", copied),
    ] {
        let (_dir, root, steps) = record(scenario);
        let tried = matrix(&root, &steps).unwrap_or_else(|reason| panic!("{name}: {reason}"));
        println!("{name}: {} crash points, {} different states", tried.steps, tried.states);
        assert!(tried.steps > 50 && tried.states > 40, "{tried:?}");
    }
}

const CHEAP: KdfCost = KdfCost { memory_kib: 8, passes: 1, lanes: 1 };

/// Makes an encrypted store, backs up, changes the passphrase and backs up again.
fn key_changed(root: &Path, recorder: &Arc<Recorder>) {
    let new = |text: &str| {
        let passphrase = Passphrase::new(text.to_owned());
        NewAccess::Passphrase { passphrase, cost: CHEAP }
    };
    let backend = Arc::new(LocalBackend::with_ops(root, recorder.clone()));
    drop(Store::init_encrypted_on(backend.clone(), &[new("the former passphrase")]).unwrap());
    let access = Access::Passphrase(Passphrase::new("the former passphrase".into()));
    let mut store = Store::open_on(backend).unwrap();
    store.unlock(&access).unwrap();
    let (first, second) = (disk(7, 2 * 65536), disk(8, 65536));
    recorder.committed(backup(&store, "first", &first).unwrap(), &first);
    store.replace_key(store.opened_by().unwrap(), &new("the later passphrase"), "").unwrap();
    recorder.committed(backup(&store, "second", &second).unwrap(), &second);
}

#[test]
fn whatever_a_crash_leaves_of_a_key_change_opens_with_one_of_the_passphrases() {
    let (_dir, root, steps) = record(key_changed);
    let access = |text: &str| Access::Passphrase(Passphrase::new(text.to_owned()));
    let accesses = [access("the former passphrase"), access("the later passphrase")];
    let opened = Mutex::new([0; 2]);
    let either = |mut store: Store| {
        let with: Vec<bool> = accesses.iter().map(|access| store.unlock(access).is_ok()).collect();
        let mut opened = opened.lock().unwrap();
        for (count, with) in opened.iter_mut().zip(&with) {
            *count += usize::from(*with);
        }
        if with.contains(&true) { Ok(store) } else { Err("neither passphrase opens it".into()) }
    };
    let tried = matrix_of(&root, &steps, &either).unwrap();
    println!("key change: {} crash points, {} different states", tried.steps, tried.states);
    let opened = *opened.lock().unwrap();
    assert!(tried.steps > 50 && opened.iter().all(|count| *count > 5), "{tried:?}, {opened:?}");
    // One that removes the slot before the other is durable must not pass.
    let removed =
        |step: &Step| matches!(step, Step::Remove(path) if path.parent().unwrap().ends_with("keys"));
    let mut early = steps.clone();
    let at = early.iter().position(removed).unwrap();
    let remove = early.remove(at);
    let written = early
        .iter()
        .rposition(|step| matches!(step, Step::Rename(_, to) if to.parent().unwrap().ends_with("keys")));
    early.insert(written.unwrap(), remove);
    matrix_of(&root, &early, &either).expect_err("a slot is removed first");
}

/// A store that leaves out a step or takes them in another order must not pass.
#[test]
fn the_matrix_notices_every_step_that_is_left_out() {
    let (_dir, root, steps) = record(backups);
    let without = |left_out: fn(&Step) -> bool| -> Vec<Step> {
        steps.iter().filter(|step| !left_out(step)).cloned().collect()
    };
    let no_file_sync = without(|step| matches!(step, Step::SyncFile(_)));
    let no_pack_sync =
        without(|step| matches!(step, Step::SyncDir(dir) if dir.parent().unwrap().ends_with("packs")));
    let no_point_sync = without(|step| matches!(step, Step::SyncDir(dir) if dir.ends_with("points")));
    let no_dir_of_packs = without(|step| matches!(step, Step::SyncDir(dir) if dir.ends_with("packs")));
    for (name, steps) in [
        ("files are not synced", no_file_sync),
        ("directories of packs are not synced", no_pack_sync),
        ("the directory of points is not synced", no_point_sync),
        ("new directories are not made durable", no_dir_of_packs),
    ] {
        let reason = matrix(&root, &steps).expect_err(name);
        println!("{name}: {reason}");
    }
    // A point before its packs.
    let mut early = steps.clone();
    let point = early.iter().position(|step| matches!(step, Step::Rename(_, to) if to.extension().is_some_and(|end| end == "json") && to.parent().unwrap().ends_with("points"))).unwrap();
    let made = early.iter().rposition(|step| matches!((step, &steps[point]), (Step::CreateFile(path), Step::Rename(from, _)) if path == from)).unwrap();
    let moved: Vec<Step> = early.drain(made..=point).collect();
    let first_pack = early
        .iter()
        .position(|step| matches!(step, Step::Rename(_, to) if to.parent().unwrap().parent().is_some_and(|above| above.ends_with("packs"))))
        .unwrap();
    early.splice(first_pack..first_pack, moved);
    println!("a point comes before its packs: {}", matrix(&root, &early).expect_err("a point comes first"));
}

/// Object storage: an object is there whole or not at all, and an answer means that it is durable.
#[test]
fn every_prefix_of_the_objects_opens_and_is_whole() {
    let memory = Arc::new(Memory::default());
    let between = Between::new(memory, Loss::None);
    let store = Store::init_on(between.clone()).unwrap();
    let mut committed = Vec::new();
    for (number, vm) in ["a", "b", "c"].iter().enumerate() {
        let id = backup(&store, vm, &disk(number as u64, (number + 3) * 65536)).unwrap();
        committed.push((between.changes().len(), id));
    }
    let changes = between.changes();
    for count in 0..=changes.len() {
        let memory = Memory::default();
        for change in &changes[..count] {
            match change {
                Change::Put(key, bytes) => memory.put(key, bytes).unwrap(),
                Change::Delete(key) => memory.delete(key).unwrap(),
            }
        }
        let promised: Vec<_> = committed.iter().filter(|(at, _)| *at <= count).map(|(_, id)| *id).collect();
        let store = match Store::open_on(Arc::new(memory)) {
            Ok(store) => store,
            Err(error) => {
                assert!(count == 0, "{error}");
                continue;
            }
        };
        let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
        assert!(report.is_clean(), "after {count} changes: {:?}", report.findings);
        assert!(promised.iter().all(|id| store.point(*id).is_ok()), "after {count} changes");
    }
    println!("objects: {} crash points", changes.len());
    assert!(changes.len() > 9);
}
