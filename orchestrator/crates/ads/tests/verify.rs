//! Verification finds every damaged byte, names the object, and says who suffers.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Affected, Damage, Depth, PointId, Scope, Store, VerifyProgress, VerifyReport};
use seal::{PackIndex, PackKind, Tree};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use support::memory::Memory;
use support::{Packed, backup, disk, pack_disk, point, store_disk};
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

/// A point of two disks of a few hundred sealed bytes, so that every byte of the store can be tried: a block that both
/// have, at different places, a hole, and a short end. Gives the disks' trees.
fn tiny_store(store: &Store) -> (PointId, Vec<Tree>) {
    let mut block = vec![0; 65536];
    block[5] = 1;
    let first: Vec<u8> = [block.clone(), vec![0; 65536], vec![2; 512]].concat();
    let second: Vec<u8> = [vec![0; 65536], block].concat();
    let trees = vec![store_disk(store, &first).unwrap(), store_disk(store, &second).unwrap()];
    (store.commit_point(&point(store, "vm", WHEN, &trees)).unwrap(), trees)
}

/// Where the disks of [`tiny_store`] suffer when the bytes `at` of a pack are wrong: disk, offset, size.
fn suffers(pack: &[u8], at: usize, trees: &[Tree]) -> Vec<(u16, u64, u64)> {
    let index = PackIndex::from_pack(pack).unwrap();
    let hit: Vec<_> = index
        .entries
        .iter()
        .filter(|entry| (entry.offset as usize..(entry.offset + entry.sealed_size) as usize).contains(&at))
        .collect();
    // Outside of every object the pack as a whole is lost.
    let hit = if hit.is_empty() { index.entries.iter().collect() } else { hit };
    let mut found: Vec<_> = match index.kind {
        PackKind::Tree => hit
            .iter()
            .filter_map(|entry| trees.iter().position(|tree| tree.root.unwrap().as_bytes() == &entry.id))
            .map(|disk| (disk as u16, 0, trees[disk].size.get()))
            .collect(),
        PackKind::Data => hit
            .iter()
            .flat_map(|entry| match entry.plain_size {
                512 => vec![(0, 131_072, 512)],
                _ => vec![(0, 0, 65536), (1, 65536, 65536)],
            })
            .collect(),
    };
    found.sort_unstable();
    found
}

#[test]
fn every_flipped_byte_is_found_and_named_with_the_points_disks_and_offsets_that_suffer() {
    let original = Arc::new(Memory::default());
    let store = Store::init_on(original.clone()).unwrap();
    let (id, trees) = tiny_store(&store);
    drop(store);
    let objects = original.objects();
    assert_eq!(objects.len(), 5, "a config, a pack of blocks, two of nodes, a point");
    let (mut tried, mut harmless, mut placed) = (0, 0, 0);
    for (victim, good) in &objects {
        let name = victim.rsplit('/').next().unwrap().trim_end_matches(".json");
        // What is no pack is proven as a whole, so that one bit of each byte will do.
        let flips: &[u8] = if victim.starts_with("packs/") { &[0x01, 0x80] } else { &[0x20] };
        for (at, flip) in (0..good.len()).flat_map(|at| flips.iter().map(move |flip| (at, *flip))) {
            let mut bad = good.clone();
            bad[at] ^= flip;
            let changed = objects
                .iter()
                .map(|(key, bytes)| (key.clone(), if key == victim { bad.clone() } else { bytes.clone() }));
            tried += 1;
            let store = match Store::open_on(Arc::new(Memory::of(changed))) {
                Ok(store) => store,
                Err(error) => {
                    assert!(error.to_string().contains(name), "{name} byte {at}: {error}");
                    continue;
                }
            };
            let findings = verify(&store, Depth::EveryByte).findings;
            let named = findings.iter().find(|finding| finding.to_string().contains(name));
            let named = named.unwrap_or_else(|| panic!("{name} byte {at} ^ {flip:#x}: {findings:?}"));
            if !victim.starts_with("packs/") {
                continue;
            }
            let affects = findings.iter().flat_map(|finding| &finding.affects);
            let mut hit: Vec<_> = affects
                .map(|hit| {
                    assert_eq!((hit.point, hit.vm.as_str()), (id, "name of vm"));
                    (hit.userdevice, hit.offset.get(), hit.size.get())
                })
                .collect();
            hit.sort_unstable();
            // The salt of a pack says nothing: the pack is not what it was, and all disks are.
            if hit.is_empty() && named.reason.contains("every object in it opens") {
                assert!((11..16).contains(&at), "{name} byte {at} ^ {flip:#x}: {findings:?}");
                harmless += 1;
                continue;
            }
            placed += 1;
            assert_eq!(hit, suffers(good, at, &trees), "{name} byte {at} ^ {flip:#x}: {findings:?}");
        }
    }
    println!("{tried} flips, {placed} of them placed on disks, {harmless} harmless to every disk");
    assert!(tried > 2500 && placed > 20 * harmless, "{tried} flips, {placed} placed, {harmless} harmless");
    let store = Store::open_on(original).unwrap();
    let report = verify(&store, Depth::EveryByte);
    assert!(report.is_clean());
    assert_eq!((report.points, report.disks, report.packs, report.blocks, report.nodes), (1, 2, 3, 2, 2));
}

#[test]
fn a_pin_that_cannot_be_read_is_a_finding_and_holds() {
    let (_dir, store) = store();
    let id = backup(&store, "vm", &disk(1, 65536)).unwrap();
    store.pin(id, "for the audit").unwrap();
    assert!(verify(&store, Depth::Structure).is_clean());
    let (pin, stray) = (store.dir().join(format!("pins/{id}.json")), store.dir().join("pins/notes"));
    fs::write(&pin, "{").unwrap();
    fs::write(&stray, "").unwrap();
    let found: Vec<_> =
        verify(&store, Depth::Structure).findings.into_iter().map(|found| found.damage).collect();
    assert_eq!(found, [Damage::Pin { path: pin }, Damage::StrayFile { path: stray }]);
    assert!(matches!(store.remove_point(id), Err(ads::Error::PointPinned { .. })));
}

/// A store with two points of a disk that differ in one block, and a third of another disk.
struct Zoo {
    _dir: TempDir,
    store: Store,
    path: PathBuf,
    first: Vec<u8>,
    /// The packs of the first disk; packing it again would give others.
    packed: Packed,
}

fn zoo() -> Zoo {
    let (dir, store) = store();
    let first = disk(1, 300 * 65536 + 512);
    let mut second = first.clone();
    second[299 * 65536] ^= 1;
    let packed = pack_disk(store.id_key(), &first, None, &mut |_| false);
    for pack in packed.data.iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    store.finish_tree(packed.tree, None).unwrap();
    store.commit_point(&point(&store, "a", WHEN, &[packed.tree])).unwrap();
    for (vm, when, bytes) in [("a", "2026-11-04T00:00:00Z", &second), ("b", WHEN, &disk(7, 4 * 65536))] {
        let tree = store_disk(&store, bytes).unwrap();
        store.commit_point(&point(&store, vm, when, &[tree])).unwrap();
    }
    let path = store.dir().to_owned();
    Zoo { _dir: dir, store, path, first, packed }
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
    let packed = &zoo.packed;
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
        let packed = &zoo.packed;
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
fn a_part_reads_its_own_packs_and_tells_which_of_them_are_whole() {
    let zoo = zoo();
    let mut ids: Vec<_> = zoo.store.pack_sizes().into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    let hurt = zoo.packed.data[0].id;
    let mut bad = zoo.packed.data[0].bytes.clone();
    bad[100] ^= 1;
    fs::write(pack_path(&zoo.path, hurt), bad).unwrap();
    let part = |chosen: &(dyn Fn(seal::PackId) -> bool + Sync)| {
        let done = Mutex::new(BTreeSet::new());
        let tell = |id| assert!(done.lock().unwrap().insert(id), "once");
        let report = zoo.store.verify_part(&Scope::All, Depth::EveryByte, chosen, &tell, &|_| ()).unwrap();
        (report, done.into_inner().unwrap())
    };
    let (report, done) = part(&|id| id == ids[0] || id == hurt);
    assert_eq!((report.packs, report.findings.len(), report.disks), (2, 1, 3), "{report:?}");
    assert_eq!(done, BTreeSet::from([ids[0]]), "what is damaged is not done");
    let (report, done) = part(&|id| id != hurt);
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(done, ids.iter().copied().filter(|id| *id != hurt).collect());
}

#[test]
fn what_could_not_be_read_from_a_disk_is_told_and_is_no_finding() {
    let (_dir, store) = store();
    let tree = store_disk(&store, &disk(1, 3 * 65536)).unwrap();
    let mut made = point(&store, "worn", WHEN, &[tree]);
    let range = wire::ByteRange { offset: blocks::ByteOffset::new(512), size: blocks::ByteCount::new(1024) };
    made.disks[0].bad = wire::BadRanges { bytes: range.size, count: 1, ranges: vec![range] };
    let id = store.commit_point(&made).unwrap();
    let report = verify(&store, Depth::Structure);
    assert!(report.is_clean());
    let [known] = &report.known_bad[..] else { panic!("{report:?}") };
    assert_eq!((known.point, known.offset.get(), known.size.get()), (id, 512, 1024));
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
