//! What is counted is what sets of ids say: each object of each point by itself, without any sharing of walks.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{PointId, Statistics, Store};
use blocks::BLOCK_SIZE;
use seal::{FAN_OUT, NodeId, PackIndex, PackKind};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use support::{disk, files, point, store_disk};
use tempfile::TempDir;

type Id = [u8; 32];

fn index(pack: &Path) -> PackIndex {
    PackIndex::from_pack(&fs::read(pack).unwrap()).unwrap()
}

/// Stored and plain size of each object, from the packs' own indexes.
fn sizes(store: &Store) -> BTreeMap<(u8, Id), (u64, u64)> {
    let mut found = BTreeMap::new();
    for file in files(&store.dir().join("packs")) {
        let index = index(&file);
        for entry in index.entries {
            let sizes = (u64::from(entry.sealed_size), u64::from(entry.plain_size));
            found.insert((index.kind as u8, entry.id), sizes);
        }
    }
    found
}

/// Every object below a node, and how many blocks stand there.
fn below(store: &Store, id: NodeId, level: u8, found: &mut BTreeSet<(u8, Id)>) -> u64 {
    found.insert((PackKind::Tree as u8, *id.as_bytes()));
    let node = store.read_node(id).unwrap();
    let slots = 0..usize::try_from(FAN_OUT).unwrap();
    let children = slots.clone().filter_map(|slot| node.child(slot)).filter(|_| level > 1);
    let mut count = children.map(|child| below(store, child, level - 1, found)).sum();
    for block in slots.filter_map(|slot| node.block(slot)).filter(|_| level == 1) {
        found.insert((PackKind::Data as u8, *block.as_bytes()));
        count += 1;
    }
    count
}

struct Truth {
    vm: String,
    reaches: BTreeSet<(u8, Id)>,
    full: u64,
}

fn truths(store: &Store) -> BTreeMap<PointId, Truth> {
    let points = store.points().unwrap().points;
    let truth = |stored: &ads::StoredPoint| {
        let mut reaches = BTreeSet::new();
        let trees = stored.point.disks.iter().map(|disk| disk.tree).filter(|tree| tree.root.is_some());
        let blocks: u64 =
            trees.map(|tree| below(store, tree.root.unwrap(), tree.levels(), &mut reaches)).sum();
        (stored.id, Truth { vm: stored.point.vm.uuid.clone(), reaches, full: blocks * BLOCK_SIZE })
    };
    points.iter().map(truth).collect()
}

fn check(store: &Store, found: &Statistics) {
    let (sizes, truths) = (sizes(store), truths(store));
    let sealed = |ids: &BTreeSet<(u8, Id)>| ids.iter().map(|id| sizes[id].0).sum::<u64>();
    let plain = |ids: &BTreeSet<(u8, Id)>| {
        let blocks = ids.iter().filter(|(kind, _)| *kind == PackKind::Data as u8);
        blocks.map(|id| sizes[id].1).sum::<u64>()
    };
    let union = |wanted: &dyn Fn(&PointId, &Truth) -> bool| {
        let chosen = truths.iter().filter(|(id, truth)| wanted(id, truth));
        chosen.flat_map(|(_, truth)| truth.reaches.iter().copied()).collect::<BTreeSet<_>>()
    };
    assert_eq!(found.points.len(), truths.len());
    for one in &found.points {
        let truth = &truths[&one.id];
        let others = union(&|id, _| *id != one.id);
        let own = truth.reaches.difference(&others).copied().collect();
        assert_eq!((one.full.get(), one.exclusive.get()), (truth.full, sealed(&own)));
        assert!(!one.incomplete);
    }
    for vm in &found.vms {
        let (own, others) = (union(&|_, truth| truth.vm == vm.vm), union(&|_, truth| truth.vm != vm.vm));
        let only = own.difference(&others).copied().collect();
        assert_eq!((vm.unique.get(), vm.stored.get()), (plain(&own), sealed(&own)), "{}", vm.vm);
        assert_eq!(vm.exclusive.get(), sealed(&only), "{}", vm.vm);
        let points = truths.values().filter(|truth| truth.vm == vm.vm);
        assert_eq!(vm.full.get(), points.map(|truth| truth.full).sum::<u64>());
    }
    let all = union(&|_, _| true);
    assert_eq!((found.unique.get(), found.stored.get()), (plain(&all), sealed(&all)));
    let indexes = files(&store.dir().join("packs")).into_iter().map(|file| index(&file));
    let everything =
        indexes.flat_map(|index| index.entries).map(|entry| u64::from(entry.sealed_size)).sum::<u64>();
    assert_eq!(found.unreached.get(), everything - sealed(&all));
    assert_eq!((found.unreadable, found.packs), (0, store.usage().bytes));
}

#[test]
fn what_points_and_vms_take_is_what_their_sets_of_objects_take() {
    let dir = TempDir::new().unwrap();
    let store = Store::init(&dir.path().join("store")).unwrap();
    check(&store, &store.statistics(&|_, _| {}).unwrap());
    // Two levels of nodes; some versions share leaves, some blocks within a leaf, some nothing.
    let first = disk(1, 600 * 65536 + 512);
    let mut second = first.clone();
    second[5 * 65536..6 * 65536].copy_from_slice(&disk(2, 65536));
    let mut third = second.clone();
    third[500 * 65536..501 * 65536].fill(0);
    let (small, other) = (disk(1, 65536 * 3), disk(9, 65536 * 40));
    let trees =
        [first, second, third, small, other, vec![0; 65536]].map(|bytes| store_disk(&store, &bytes).unwrap());
    let mut ids = Vec::new();
    let days = ["a 0 3", "a 1", "a 1", "b 1 4", "a 2 0", "c 5", "b 2", "a 0 3"];
    for (day, words) in (1..).zip(days) {
        let mut words = words.split(' ');
        let vm = words.next().unwrap();
        let disks: Vec<_> = words.map(|at| trees[at.parse::<usize>().unwrap()]).collect();
        let created = format!("2026-11-{day:02}T00:00:00Z");
        ids.push(store.commit_point(&point(&store, vm, &created, &disks)).unwrap());
    }
    let last = Cell::new((0, 0));
    let found = store.statistics(&|done, total| last.set((done, total))).unwrap();
    assert_eq!(last.get(), (16, 16));
    check(&store, &found);
    let without = &found.vms.iter().find(|vm| vm.vm == "c").unwrap();
    assert_eq!((without.stored.get(), without.full.get()), (0, 0), "a disk of zeros takes nothing");
    for id in ids.into_iter().take(5) {
        store.remove_point(id).unwrap();
        check(&store, &store.statistics(&|_, _| {}).unwrap());
    }
}

#[test]
fn what_is_lost_is_said_of_every_point_that_needs_it_and_does_not_end_the_count() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store");
    let store = Store::init(&path).unwrap();
    let lost = store_disk(&store, &disk(1, 65536 * 300)).unwrap();
    let data: Vec<_> =
        files(&path.join("packs")).into_iter().filter(|file| index(file).kind == PackKind::Data).collect();
    let whole = store_disk(&store, &disk(2, 65536 * 30)).unwrap();
    let commit = |(day, tree)| {
        let created = format!("2026-11-{day:02}T00:00:00Z");
        store.commit_point(&point(&store, "vm", &created, &[tree])).unwrap()
    };
    let ids = [(1, lost), (2, whole), (3, lost)].map(commit);
    drop(store);
    fs::remove_file(&data[0]).unwrap();
    let store = Store::open(&path).unwrap();
    let found = store.statistics(&|_, _| {}).unwrap();
    let is_incomplete = |id| found.points.iter().find(|one| one.id == id).unwrap().incomplete;
    assert_eq!(ids.map(is_incomplete), [true, false, true]);
}

#[test]
fn what_is_lost_is_said_and_does_not_end_the_count() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store");
    let store = Store::init(&path).unwrap();
    let ids = [disk(1, 65536 * 30), disk(2, 65536 * 30)]
        .map(|bytes| support::backup(&store, "vm", &bytes).unwrap());
    let packs = files(&path.join("packs"));
    drop(store);
    fs::remove_file(packs.iter().find(|file| index(file).kind == PackKind::Tree).unwrap()).unwrap();
    let store = Store::open(&path).unwrap();
    let found = store.statistics(&|_, _| {}).unwrap();
    let incomplete: Vec<_> =
        ids.iter().map(|id| found.points.iter().find(|one| one.id == *id).unwrap().incomplete).collect();
    assert_eq!(incomplete.iter().filter(|incomplete| **incomplete).count(), 1, "{incomplete:?}");
}
