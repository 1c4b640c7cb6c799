//! The store in a directory: making, opening, points, trees, two processes at once.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Depth, Error, ErrorKind, Scope, Store};
use blocks::{BLOCK_SIZE, ByteCount};
use seal::{FAN_OUT, PackKind, Tree};
use std::fs;
use std::path::Path;
use support::{backup, chain, disk, files, pack_disk, point, restore, store_disk};
use tempfile::TempDir;

const WHEN: &str = "2026-11-03T10:20:30Z";

fn store() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::init(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn open_error(dir: &Path) -> Error {
    Store::open(dir).map(drop).unwrap_err()
}

#[test]
fn what_was_stored_is_there_after_reopening() {
    let (dir, store) = store();
    let path = store.dir().to_owned();
    let bytes = disk(1, 300 * 65536 + 1024);
    let id = backup(&store, "vm", &bytes).unwrap();
    let (key, usage) = (store.id_key_bytes(), store.usage());
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!((store.id_key_bytes(), store.usage()), (key, usage));
    let stored = store.point(id).unwrap();
    assert!(restore(&store, &stored.point.disks[0].tree).unwrap() == bytes);
    assert_eq!(store.find_point(&id.short()).unwrap(), stored);
    drop(dir);
}

#[test]
fn a_store_is_private_to_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, store) = store();
    backup(&store, "vm", &disk(1, 65536)).unwrap();
    for path in files(store.dir()) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
    assert_eq!(fs::metadata(store.dir()).unwrap().permissions().mode() & 0o077, 0);
}

#[test]
fn directories_that_are_no_store_are_named() {
    let dir = TempDir::new().unwrap();
    let error = open_error(dir.path());
    assert_eq!(error.kind(), ErrorKind::NotAStore);
    assert!(error.to_string().contains(&dir.path().display().to_string()));
    fs::write(dir.path().join("something"), "else").unwrap();
    let error = Store::init(dir.path()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.to_string().contains("something"), "{error}");
    let inner = dir.path().join("a");
    drop(Store::init(&inner).unwrap());
    assert_eq!(Store::init(&inner).map(drop).unwrap_err().kind(), ErrorKind::Exists);
}

#[test]
fn configs_of_other_versions_and_damaged_ones_are_told_apart() {
    let (_dir, store) = store();
    let (dir, config) = (store.dir().to_owned(), store.dir().join("config.json"));
    drop(store);
    let good = fs::read_to_string(&config).unwrap();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from));
        fs::write(&config, good.replace(from, to)).unwrap();
        let error = open_error(&dir);
        assert!(error.to_string().contains("config.json"), "{error}");
        (error.kind(), error.to_string())
    };
    let (kind, text) = with("\"version\": 1", "\"version\": 2, \"more\": true");
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("version 2"), "{text}");
    let (kind, text) = with("\"none\"", "\"aes\"");
    assert_eq!(kind, ErrorKind::Unsupported);
    assert!(text.contains("encryption 'aes'"), "{text}");
    for (from, to) in [("\"abd store\"", "\"other\""), ("\"id_key\": \"", "\"id_key\": \"0"), ("{", "")] {
        assert_eq!(with(from, to).0, ErrorKind::Damaged, "{from}");
    }
    fs::write(&config, &good).unwrap();
    assert!(Store::open(&dir).is_ok());
}

#[test]
fn points_are_found_listed_and_forgotten() {
    let (_dir, store) = store();
    let tree = store_disk(&store, &disk(1, 5 * 65536)).unwrap();
    let mut ids = Vec::new();
    for (vm, when) in [("a", WHEN), ("b", "2026-11-01T00:00:00Z"), ("a", "2026-11-03T10:20:30.5Z")] {
        ids.push(store.commit_point(&point(&store, vm, when, &[tree])).unwrap());
    }
    let same = store.commit_point(&point(&store, "a", WHEN, &[tree])).unwrap();
    assert_eq!(same, ids[0], "the same point twice is one point");
    let listed: Vec<_> = store.points().unwrap().points.iter().map(|stored| stored.id).collect();
    assert_eq!(listed, [ids[1], ids[0], ids[2]]);
    assert_eq!(store.latest_point("a").unwrap().unwrap().id, ids[2]);
    assert_eq!(store.latest_point("c").unwrap(), None);
    assert_eq!(store.find_point(&ids[1].to_string()).unwrap().id, ids[1]);
    for bad in ["", "abc", "zzzz", "0000000000000000", "../config"] {
        assert_eq!(store.find_point(bad).unwrap_err().kind(), ErrorKind::NotFound, "{bad}");
    }
    let strange = store.dir().join("points/strange");
    fs::write(&strange, "{}").unwrap();
    let damaged = store.dir().join(format!("points/{}.json", ids[1]));
    fs::write(&damaged, "{}").unwrap();
    let found = store.points().unwrap();
    assert_eq!((found.points.len(), found.damaged.len()), (2, 2));
    assert!(found.damaged.iter().any(|point| point.path == damaged));
    assert_eq!(store.point(ids[1]).unwrap_err().kind(), ErrorKind::Damaged);
    store.remove_point(ids[0]).unwrap();
    assert_eq!(store.point(ids[0]).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.remove_point(ids[0]).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_pinned_point_is_not_removed_even_where_its_pin_is_damaged() {
    let (_dir, store) = store();
    let tree = store_disk(&store, &disk(1, 65536)).unwrap();
    let id = store.commit_point(&point(&store, "a", WHEN, &[tree])).unwrap();
    assert!(!store.unpin(id).unwrap());
    store.pin(id, "first").unwrap();
    store.pin(id, "second").unwrap();
    assert_eq!(store.pins().unwrap()[&id].note, "second");
    assert_eq!(store.pin(id, &"x".repeat(1001)).unwrap_err().kind(), ErrorKind::Refused);
    fs::write(store.dir().join(format!("pins/{id}.json")), "rubbish").unwrap();
    fs::write(store.dir().join("pins/stray"), "").unwrap();
    assert_eq!(store.pins().unwrap().len(), 1);
    assert_eq!(store.remove_point(id).unwrap_err().kind(), ErrorKind::Refused);
    assert!(store.unpin(id).unwrap());
    store.remove_point(id).unwrap();
    assert_eq!(store.pin(id, "").unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn an_ambiguous_prefix_names_two_points() {
    let (_dir, store) = store();
    let mut points = Vec::new();
    // Four digits out of 65,536: with 600 points some pair meets (the chance of none is one in 10^120).
    for number in 0..600 {
        let id = store.commit_point(&point(&store, &format!("vm-{number}"), WHEN, &[])).unwrap();
        points.push(id.to_string());
    }
    points.sort();
    let pair = points.windows(2).find(|pair| pair[0][..4] == pair[1][..4]);
    let Some(pair) = pair else {
        println!("skipped: no two points begin alike");
        return;
    };
    let error = store.find_point(&pair[0][..4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Ambiguous);
    assert!(error.to_string().contains(&pair[0]), "{error}");
}

#[test]
fn points_that_contradict_the_store_are_refused() {
    let (_dir, store) = store();
    let tree = store_disk(&store, &disk(1, 5 * 65536)).unwrap();
    let good = point(&store, "vm", WHEN, &[tree]);
    let mut refused = Vec::new();
    for change in 0..6 {
        let mut bad = good.clone();
        match change {
            0 => bad.version = ads::RestorePoint::VERSION + 1,
            5 => bad.version = ads::RestorePoint::OLDEST_VERSION,
            1 => bad.store = "00000000-0000-4000-8000-000000000000".parse().unwrap(),
            2 => bad.created = "yesterday".into(),
            3 => bad.disks[0].tree.size = ByteCount::new(5 * 65536 + 1),
            _ => bad.disks[0].tree_id = seal::TreeId::from_bytes([1; 32]),
        }
        refused.push(store.commit_point(&bad).unwrap_err().kind());
    }
    assert_eq!(
        refused,
        [
            ErrorKind::Refused,
            ErrorKind::Refused,
            ErrorKind::Refused,
            ErrorKind::Missing,
            ErrorKind::Missing,
            ErrorKind::Refused
        ]
    );
    assert!(store.points().unwrap().points.is_empty());
}

#[test]
fn trees_that_are_not_whole_are_refused_with_the_place() {
    let (_dir, store) = store();
    let bytes = disk(1, 600 * 65536 + 512);
    let packed = pack_disk(store.id_key(), &bytes, None, &mut |_| false);
    let missing = packed.data.len() - 1;
    for pack in packed.data[..missing].iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    let error = store.finish_tree(packed.tree, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing);
    assert!(error.to_string().contains("at 0x"), "{error}");
    let committed = store.commit_point(&point(&store, "vm", WHEN, &[packed.tree])).unwrap_err();
    assert!(chain(&committed).contains("vdi-0-of-vm"), "{}", chain(&committed));
    assert!(chain(&committed).contains("not in the store"), "{}", chain(&committed));
    let nowhere = Tree { size: packed.tree.size, root: Some(seal::NodeId::from_bytes([9; 32])) };
    assert_eq!(store.finish_tree(nowhere, None).unwrap_err().kind(), ErrorKind::Missing);
    let huge = Tree { size: ByteCount::new(u64::MAX), root: None };
    assert_eq!(store.finish_tree(huge, None).unwrap_err().kind(), ErrorKind::Missing);
    // The same nodes under another size: blocks past the end, and a last block that does not fit.
    for size in [600 * 65536 + 1, 600 * 65536, 601 * 65536, 602 * 65536, 512 * 65536] {
        let other = Tree { size: ByteCount::new(size), root: packed.tree.root };
        assert_eq!(store.finish_tree(other, None).unwrap_err().kind(), ErrorKind::Missing, "{size}");
    }
    let last = &packed.data[missing];
    store.add_pack(last.id, &last.bytes).unwrap();
    store.finish_tree(packed.tree, None).unwrap();
}

/// A base is trusted only where its blocks still have the same size on the disk.
#[test]
fn a_short_block_does_not_survive_growth() {
    let (_dir, store) = store();
    for blocks in [2, FAN_OUT - 1, FAN_OUT, FAN_OUT + 44] {
        let size = blocks * BLOCK_SIZE + 512;
        let mut bytes = disk(blocks, size as usize);
        bytes[(blocks * BLOCK_SIZE) as usize] = 1;
        let base = store_disk(&store, &bytes).unwrap();
        // What a careless ABD would name: the base's blocks, although the disk has grown.
        let grown = ByteCount::new(size + 64 * FAN_OUT * BLOCK_SIZE);
        let mut nodes = support::Nodes::default();
        collect(&store, &base, &mut nodes);
        let mut fresh = Vec::new();
        let mut emit = |id: seal::NodeId, node: &seal::Node| {
            fresh.push((id, node.clone()));
            Ok::<(), seal::Error>(())
        };
        let mut builder = seal::TreeBuilder::new(store.id_key().clone(), grown, Some(base)).unwrap();
        let leaf = builder.base_leaf(0, &mut nodes, &mut emit).unwrap();
        builder.put_leaf(0, &leaf, &mut nodes, &mut emit).unwrap();
        let tree = builder.finish(&mut nodes, &mut emit).unwrap();
        let mut packer = support::Packer::new(PackKind::Tree, store.id_key());
        fresh.iter().for_each(|(id, node)| packer.push(*id.as_bytes(), node.as_bytes()));
        for pack in packer.finish() {
            store.add_pack(pack.id, &pack.bytes).unwrap();
        }
        for base in [None, Some(base)] {
            let error = store.finish_tree(tree, base).unwrap_err();
            assert!(error.to_string().contains("shorter than its place"), "{error}");
        }
    }
}

fn collect(store: &Store, tree: &Tree, nodes: &mut support::Nodes) {
    fn below(store: &Store, id: seal::NodeId, level: u8, nodes: &mut support::Nodes) {
        let node = store.read_node(id).unwrap();
        if level > 1 {
            (0..FAN_OUT as usize)
                .filter_map(|slot| node.child(slot))
                .for_each(|id| below(store, id, level - 1, nodes));
        }
        nodes.0.insert(id, seal::Node::clone(&node));
    }
    below(store, tree.root.unwrap(), tree.levels(), nodes);
}

/// What is the same as in the base is not walked again: its nodes need not even be readable.
#[test]
fn only_what_is_new_is_walked() {
    let (_dir, store) = store();
    let mut bytes = disk(1, 700 * 65536);
    let first = pack_disk(store.id_key(), &bytes, None, &mut |_| false);
    for pack in first.data.iter().chain(&first.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    bytes[0] ^= 1;
    let mut nodes = support::Nodes::default();
    collect(&store, &first.tree, &mut nodes);
    let path = store.dir().to_owned();
    let second = pack_disk(store.id_key(), &bytes, Some((first.tree, nodes)), &mut |id| store.has_block(id));
    drop(store);
    // All blocks of the first backup disappear; a walk that came near them would notice.
    for pack in &first.data {
        let name = pack.id.to_string();
        fs::remove_file(path.join("packs").join(&name[..2]).join(&name)).unwrap();
    }
    let store = Store::open(&path).unwrap();
    for pack in second.data.iter().chain(&second.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    store.finish_tree(second.tree, Some(first.tree)).unwrap();
    assert_eq!(store.finish_tree(second.tree, None).unwrap_err().kind(), ErrorKind::Missing);
}

#[test]
fn a_pack_that_cannot_be_read_at_open_counts_as_unknown_and_can_be_shipped_again() {
    let (_dir, store) = store();
    let path = store.dir().to_owned();
    let bytes = disk(1, 40 * 65536);
    let packed = pack_disk(store.id_key(), &bytes, None, &mut |_| false);
    for pack in packed.data.iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    let id = store.commit_point(&point(&store, "vm", WHEN, &[packed.tree])).unwrap();
    drop(store);
    let name = packed.data[0].id.to_string();
    let file = path.join("packs").join(&name[..2]).join(&name);
    fs::write(&file, &packed.data[0].bytes[..1000]).unwrap();
    let store = Store::open(&path).unwrap();
    assert_eq!(store.skipped_packs().len(), 1);
    assert_eq!(store.skipped_packs()[0].path, file);
    let tree = store.point(id).unwrap().point.disks[0].tree;
    assert_eq!(restore(&store, &tree).unwrap_err().kind(), ErrorKind::Missing);
    assert_eq!(
        store.finish_tree(tree, Some(tree)).unwrap_err().kind(),
        ErrorKind::Missing,
        "a base proves nothing where packs were lost"
    );
    let report = store.verify(&Scope::All, Depth::Structure, &|_| ()).unwrap();
    assert!(report.findings.iter().any(|finding| finding.to_string().contains(&name)), "{report:?}");
    let hit = report.findings.iter().flat_map(|finding| &finding.affects).next().unwrap();
    assert_eq!((hit.point, hit.userdevice, hit.offset.get()), (id, 0, 0));
    let again = pack_disk(store.id_key(), &bytes, None, &mut |id| store.has_block(id));
    for pack in again.data.iter().chain(&again.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    assert!(restore(&store, &tree).unwrap() == bytes);
}

/// Run again as another process by the test below.
#[test]
#[ignore = "the other process of two_processes_share_a_directory"]
fn other_process() {
    let Ok(dir) = std::env::var("ADS_TEST_DIR") else { return };
    let store = Store::open(Path::new(&dir)).unwrap();
    backup(&store, "theirs", &disk(2, 50 * 65536)).unwrap();
    // What the first process has not finished must be left alone.
    assert!(Path::new(&dir).join("tmp/unfinished").exists());
}

#[test]
fn two_processes_share_a_directory() {
    let (_dir, store) = store();
    let path = store.dir().to_owned();
    fs::write(path.join("tmp/unfinished"), "half").unwrap();
    let mut other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "other_process", "--ignored"])
        .env("ADS_TEST_DIR", &path)
        .spawn()
        .unwrap();
    let ours = disk(1, 50 * 65536);
    backup(&store, "ours", &ours).unwrap();
    assert!(other.wait().unwrap().success());
    let theirs = store.latest_point("theirs").unwrap().expect("their point is seen at once").point;
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    drop(store);
    let store = Store::open(&path).unwrap();
    assert!(restore(&store, &theirs.disks[0].tree).unwrap() == disk(2, 50 * 65536));
    assert!(!path.join("tmp/unfinished").exists(), "who is alone clears what the dead left");
}

#[test]
fn a_store_in_use_by_one_alone_is_busy() {
    let (_dir, store) = store();
    assert!(Store::open(store.dir()).is_ok(), "sharing is possible");
    assert_eq!(Store::init(store.dir()).map(drop).unwrap_err().kind(), ErrorKind::Busy);
}
