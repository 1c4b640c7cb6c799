//! Verification finds every damaged byte, names the object, and says who suffers.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Affected, Damage, Depth, Scope, Store, VerifyProgress, VerifyReport};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use support::{backup, disk, files, pack_disk, point, store_disk};
use tempfile::TempDir;

const WHEN: &str = "2026-11-03T10:20:30Z";

fn store() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::init(&dir.path().join("store")).unwrap();
    (dir, store)
}

fn verify(store: &Store, depth: Depth) -> VerifyReport {
    store.verify(&Scope::All, depth, &|_| ()).unwrap()
}

/// A disk of a few hundred sealed bytes, so that every byte of the store can be tried.
fn tiny_disk() -> Vec<u8> {
    let mut bytes = vec![0; 2 * 65536 + 512];
    bytes[5] = 1;
    bytes[2 * 65536 + 100] = 2;
    bytes
}

#[test]
fn every_flipped_byte_is_found_and_its_file_is_named() {
    let (_dir, store) = store();
    let path = store.dir().to_owned();
    let id = backup(&store, "vm", &tiny_disk()).unwrap();
    drop(store);
    let mut tried = 0;
    for file in files(&path) {
        let name = file.file_stem().unwrap().to_str().unwrap().to_owned();
        let good = fs::read(&file).unwrap();
        for at in 0..good.len() {
            for flip in [0x01, 0x20, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                fs::write(&file, &bad).unwrap();
                tried += 1;
                let store = match Store::open(&path) {
                    Ok(store) => store,
                    Err(error) => {
                        assert!(error.to_string().contains(&name), "{name} byte {at}: {error}");
                        continue;
                    }
                };
                let report = verify(&store, Depth::EveryByte);
                let named = report.findings.iter().find(|finding| finding.to_string().contains(&name));
                assert!(named.is_some(), "{name} byte {at} ^ {flip:#x}: {:?}", report.findings);
                if file.starts_with(path.join("packs")) {
                    let suffers = report.findings.iter().flat_map(|finding| &finding.affects);
                    let harmless =
                        named.is_some_and(|finding| finding.reason.contains("every object in it opens"));
                    assert!(harmless || suffers.count() > 0, "{name} byte {at}: {:?}", report.findings);
                }
            }
        }
        fs::write(&file, &good).unwrap();
    }
    assert!(tried > 4000, "only {tried} flips");
    let store = Store::open(&path).unwrap();
    let report = verify(&store, Depth::EveryByte);
    assert!(report.is_clean());
    assert_eq!((report.points, report.disks, report.packs, report.blocks, report.nodes), (1, 1, 2, 2, 1));
    assert!(store.point(id).is_ok());
}

/// A store with two points of a disk that differ in one block, and a third of another disk.
struct Zoo {
    _dir: TempDir,
    store: Store,
    path: PathBuf,
    first: Vec<u8>,
}

fn zoo() -> Zoo {
    let (dir, store) = store();
    let first = disk(1, 300 * 65536 + 512);
    let mut second = first.clone();
    second[299 * 65536] ^= 1;
    for (vm, when, bytes) in
        [("a", WHEN, &first), ("a", "2026-11-04T00:00:00Z", &second), ("b", WHEN, &disk(7, 4 * 65536))]
    {
        let tree = store_disk(&store, bytes).unwrap();
        store.commit_point(&point(&store, vm, when, &[tree])).unwrap();
    }
    let path = store.dir().to_owned();
    Zoo { _dir: dir, store, path, first }
}

fn pack_path(store: &Path, id: seal::PackId) -> PathBuf {
    let name = id.to_string();
    store.join("packs").join(&name[..2]).join(name)
}

fn ranges(affects: &[Affected]) -> Vec<(String, u64, u64)> {
    let mut found: Vec<_> =
        affects.iter().map(|hit| (hit.vm.clone(), hit.offset.get(), hit.size.get())).collect();
    found.sort();
    found
}

#[test]
fn a_damaged_block_names_the_points_disks_and_offsets_that_suffer() {
    let zoo = zoo();
    let packed = pack_disk(zoo.store.id_key(), &zoo.first, None, &mut |_| false);
    let index = seal::PackIndex::from_pack(&packed.data[0].bytes).unwrap();
    let victim = seal::BlockId::from_bytes(index.entries[1].id);
    let mut bad = packed.data[0].bytes.clone();
    bad[index.entries[1].offset as usize + 9] ^= 0x10;
    fs::write(pack_path(&zoo.path, packed.data[0].id), bad).unwrap();
    let report = verify(&zoo.store, Depth::EveryByte);
    let [finding] = &report.findings[..] else { panic!("{:?}", report.findings) };
    let expected =
        Damage::Objects { pack: packed.data[0].id, blocks: vec![victim], nodes: Vec::new(), more: 0 };
    assert_eq!(finding.damage, expected);
    let at = zoo.first.chunks(65536).position(|block| zoo.store.id_key().block_id(block) == victim).unwrap();
    let offset = at as u64 * 65536;
    assert_eq!(
        ranges(&finding.affects),
        [("name of a".into(), offset, 65536), ("name of a".into(), offset, 65536)],
        "both points of the disk"
    );
    assert!(zoo.store.read_block(victim).is_err());
    assert!(verify(&zoo.store, Depth::Structure).is_clean(), "structure does not open blocks");

    let b = zoo.store.latest_point("b").unwrap().unwrap().id;
    let report = zoo.store.verify(&Scope::Points(vec![b]), Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "the other disk does not need that pack: {:?}", report.findings);
    assert_eq!((report.points, report.disks), (1, 1));
    let a = zoo.store.latest_point("a").unwrap().unwrap().id;
    let report = zoo.store.verify(&Scope::Points(vec![a]), Depth::EveryByte, &|_| ()).unwrap();
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].affects.iter().all(|hit| hit.point == a));
}

#[test]
fn lost_packs_are_found_at_both_depths() {
    for depth in [Depth::Structure, Depth::EveryByte] {
        let zoo = zoo();
        let packed = pack_disk(zoo.store.id_key(), &zoo.first, None, &mut |_| false);
        let finding_of = |id| {
            let damage = Damage::Pack { id, path: pack_path(&zoo.path, id) };
            let findings = verify(&zoo.store, depth).findings;
            findings.into_iter().find(|finding| finding.damage == damage).expect("the pack is named")
        };
        let cut = &packed.data[1];
        fs::write(pack_path(&zoo.path, cut.id), &cut.bytes[..cut.bytes.len() - 7]).unwrap();
        let points =
            |affects: &[Affected]| affects.iter().map(|hit| hit.point).collect::<BTreeSet<_>>().len();
        assert_eq!(points(&finding_of(cut.id).affects), 2, "both points need its blocks");
        let [node_pack] = &packed.nodes[..] else { panic!("one pack of nodes") };
        fs::remove_file(pack_path(&zoo.path, node_pack.id)).unwrap();
        let hit = ranges(&finding_of(node_pack.id).affects);
        assert!(
            hit.contains(&("name of a".into(), 0, zoo.first.len() as u64)),
            "the whole first point: {hit:?}"
        );
        // After reopening the packs are unknown, and still named.
        let path = zoo.path.clone();
        drop(zoo.store);
        let store = Store::open(&path).unwrap();
        let report = verify(&store, depth);
        let text: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert!(text.iter().any(|line| line.contains(&cut.id.to_string())), "{text:?}");
        assert!(text.iter().any(|line| line.contains("is not in the store")), "{text:?}");
        assert!(report.findings.iter().any(|finding| !finding.affects.is_empty()), "{text:?}");
    }
}

#[test]
fn points_that_are_damaged_and_files_that_are_strange_are_findings() {
    let zoo = zoo();
    let lost = zoo.store.latest_point("b").unwrap().unwrap().id;
    let file = zoo.path.join(format!("points/{lost}.json"));
    fs::write(&file, "{}").unwrap();
    let stray = zoo.path.join("packs/notes.txt");
    fs::write(&stray, "hello").unwrap();
    let report = verify(&zoo.store, Depth::Structure);
    let damages: Vec<_> = report.findings.iter().map(|finding| finding.damage.clone()).collect();
    assert_eq!(damages, [Damage::Point { path: file }, Damage::StrayFile { path: stray }]);
    let report = zoo.store.verify(&Scope::Points(vec![lost]), Depth::Structure, &|_| ()).unwrap();
    assert_eq!(report.findings.len(), 1);
}

#[test]
fn progress_ends_with_everything_done() {
    let zoo = zoo();
    let seen = Mutex::new(Vec::new());
    let report =
        zoo.store.verify(&Scope::All, Depth::EveryByte, &|now| seen.lock().unwrap().push(now)).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let seen = seen.into_inner().unwrap();
    let whole = |now: &VerifyProgress| {
        (now.packs_done, now.bytes_done, now.disks_done) == (now.packs, now.bytes, now.disks)
    };
    assert!(whole(seen.last().unwrap()), "{:?}", seen.last());
    assert_eq!(seen.last().unwrap().disks, 3);
    assert!(report.bytes_read.get() > 0);
}
