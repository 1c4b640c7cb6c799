//! Audits: blocks that the tracking calls unchanged are read again.
//!
//! The contract under test is narrow. A block that changed is either in the bitmap, or in the sample, or it is missing
//! in the tree: an audit finds a tracking that forgets, it does not make up for one.

use crate::backup::{check, read_back};
use crate::lab::{Lab, Machine, backup, bitmap, disk, noise, size_of, write_blocks};
use blocks::{BLOCK_SIZE, BlockCount, BlockIndex, ByteCount, ChangedBlocks};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use wire::{Audit, BackupDisk, DiskCounts, Start};

const EVERYTHING: Audit = Audit { seed: 1, parts_per_million: Audit::ALL, minimum: BlockCount::new(0) };

fn some(seed: u64, count: u64) -> Audit {
    Audit { seed, parts_per_million: 0, minimum: BlockCount::new(count) }
}

/// A disk of noise with a short last block, and its base.
fn saved(lab: &Lab, blocks: u64) -> (PathBuf, seal::Tree) {
    let path = lab.path("disk");
    disk(&path, (blocks - 1) * BLOCK_SIZE + 3 * 512, &(0..blocks).collect::<Vec<_>>());
    let (base, _) = lab.back_up(&path, Start::Nothing, None);
    (path, base)
}

fn mismatch(counts: &DiskCounts) -> (u64, Option<u64>) {
    (counts.mismatched.get(), counts.first_mismatch.map(BlockIndex::get))
}

#[test]
fn a_sample_that_equals_the_base_costs_its_reading_and_nothing_else() {
    let lab = Lab::new();
    let (path, base) = saved(&lab, 700);
    write_blocks(&path, &[3, 300], 2);
    let map = bitmap(size_of(&path), &[3, 4, 300]);
    let plain = lab.back_up(&path, Start::Changed { base }, Some(&map));
    for count in [1, 64, 300] {
        let (tree, counts) =
            lab.back_up_audited(&path, Start::Changed { base }, Some(&map), Some(some(7, count)));
        assert_eq!(tree, plain.0);
        check(&lab, &tree, &path);
        let sampled = some(7, count).sample(&map);
        let short = if sampled.contains(BlockIndex::new(699)) { BLOCK_SIZE - 3 * 512 } else { 0 };
        assert_eq!(counts.audited.get(), count * BLOCK_SIZE - short);
        assert_eq!(counts.moved.get(), plain.1.moved.get() + counts.audited.get());
        assert_eq!(counts.unchanged, plain.1.unchanged);
        assert_eq!(mismatch(&counts), (0, None));
    }
}

#[test]
fn forgotten_writes_are_found_and_the_disk_is_read_whole() {
    let lab = Lab::new();
    let (path, base) = saved(&lab, 700);
    // 3 and 4 were listed; 257, 500 and the short last block were forgotten, and so was one that became zeros.
    write_blocks(&path, &[3, 4, 257, 500, 699], 2);
    let file = File::options().write(true).open(&path).expect("open");
    file.write_all_at(&[0; BLOCK_SIZE as usize], 600 * BLOCK_SIZE).expect("zero");
    let map = bitmap(size_of(&path), &[3, 4]);
    let (tree, counts) = lab.back_up_audited(&path, Start::Changed { base }, Some(&map), Some(EVERYTHING));
    check(&lab, &tree, &path);
    let size = size_of(&path).get();
    assert_eq!(mismatch(&counts), (3 * BLOCK_SIZE + 3 * 512, Some(257)));
    assert_eq!(counts.audited.get(), size - 2 * BLOCK_SIZE);
    assert_eq!(counts.moved.get(), 2 * size, "both passes");
    assert_eq!(counts.shipped.get(), 4 * BLOCK_SIZE + 3 * 512, "nothing is shipped twice");
    assert_eq!(counts.zero.get(), BLOCK_SIZE);
    // The tree is the one that a backup from nothing makes, and the first pass left nothing half-done.
    assert_eq!(lab.back_up(&path, Start::Nothing, None).0, tree);
    let report = lab.store.verify(&ads::Scope::All, ads::Depth::EveryByte, &|_| {}).expect("verify");
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn what_the_first_pass_found_new_is_durable_before_the_second_counts_on_it() {
    let lab = Lab::new();
    let (path, base) = saved(&lab, 600);
    // Listed changes in many leaves, none of which fills a pack; the mismatch is the last block.
    let listed: Vec<u64> = (0..590).step_by(3).collect();
    write_blocks(&path, &listed, 2);
    write_blocks(&path, &[599], 2);
    let map = bitmap(size_of(&path), &listed);
    let (tree, counts) = lab.back_up_audited(&path, Start::Changed { base }, Some(&map), Some(EVERYTHING));
    check(&lab, &tree, &path);
    assert_eq!(counts.shipped.get(), listed.len() as u64 * BLOCK_SIZE + 3 * 512);
    assert_eq!(counts.known.get(), listed.len() as u64 * BLOCK_SIZE);
}

/// Whether a forgotten write is noticed depends on the seed alone. Where it is, the tree is right; where it is not,
/// the tree has the base's block: nobody read the disk's.
#[test]
fn a_forgotten_write_outside_of_the_sample_is_missing_in_the_tree() {
    let lab = Lab::new();
    let (path, base) = saved(&lab, 300);
    write_blocks(&path, &[8, 123], 2);
    let map = bitmap(size_of(&path), &[8]);
    let hits = |seed: &u64| some(*seed, 64).sample(&map).contains(BlockIndex::new(123));
    let hit = (0..).find(hits).expect("one in five");
    let miss = (0..).find(|seed| !hits(seed)).expect("four in five");

    let start = Start::Changed { base };
    let (tree, counts) = lab.back_up_audited(&path, start.clone(), Some(&map), Some(some(hit, 64)));
    check(&lab, &tree, &path);
    assert_eq!(mismatch(&counts), (BLOCK_SIZE, Some(123)));
    assert_eq!(counts.audited.get().div_ceil(BLOCK_SIZE), 64);

    let (tree, counts) = lab.back_up_audited(&path, start, Some(&map), Some(some(miss, 64)));
    assert_eq!(mismatch(&counts), (0, None));
    let found = std::fs::read(read_back(&lab, &tree, "found")).expect("read");
    let block = |index: u64| &found[(index * BLOCK_SIZE) as usize..][..BLOCK_SIZE as usize];
    assert!(block(8) == noise(2 << 40 | 9, BLOCK_SIZE as usize), "listed, so read");
    assert!(block(123) == noise(1 << 40 | 124, BLOCK_SIZE as usize), "still the base's");
}

#[test]
fn blocks_that_are_said_to_be_unallocated_must_be_zeros() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 600 * BLOCK_SIZE + 512, &[1, 2, 300, 600]);
    let size = size_of(&path);
    let map = bitmap(size, &[1, 2, 300, 600]);
    let (right, counts) = lab.back_up_audited(&path, Start::Allocated, Some(&map), Some(EVERYTHING));
    check(&lab, &right, &path);
    assert_eq!(mismatch(&counts), (0, None));
    assert_eq!((counts.audited.get(), counts.moved), (597 * BLOCK_SIZE, size));
    let map = bitmap(size, &[1, 2]);
    let (tree, counts) = lab.back_up_audited(&path, Start::Allocated, Some(&map), Some(EVERYTHING));
    assert_eq!(tree, right);
    assert_eq!(mismatch(&counts), (BLOCK_SIZE + 512, Some(300)));
}

#[test]
fn what_a_disk_gained_is_read_and_not_audited() {
    let lab = Lab::new();
    let (path, base) = saved(&lab, 200);
    File::options().write(true).open(&path).expect("open").set_len(300 * BLOCK_SIZE).expect("grow");
    write_blocks(&path, &[299], 2);
    let none = bitmap(size_of(&path), &[]);
    let (tree, counts) = lab.back_up_audited(&path, Start::Changed { base }, Some(&none), Some(EVERYTHING));
    check(&lab, &tree, &path);
    // The base's short last block belongs to what was gained.
    assert_eq!(counts.audited.get(), 199 * BLOCK_SIZE);
    assert_eq!((counts.moved.get(), mismatch(&counts)), (300 * BLOCK_SIZE, (0, None)));

    write_blocks(&path, &[0], 3);
    let (tree, counts) = lab.back_up_audited(&path, Start::Changed { base }, Some(&none), Some(EVERYTHING));
    check(&lab, &tree, &path);
    assert_eq!(mismatch(&counts), (BLOCK_SIZE, Some(0)));
}

#[test]
fn an_alarm_on_one_disk_is_that_disks_alone() {
    let lab = Lab::new();
    let paths = ["a", "b", "c"].map(|name| lab.path(name));
    let mut disks = Vec::new();
    for (userdevice, path) in (4..).zip(&paths) {
        disk(path, 100 * BLOCK_SIZE, &(0..100).collect::<Vec<_>>());
        let (base, _) = lab.back_up(path, Start::Nothing, None);
        let (size, start) = (size_of(path), Start::Changed { base });
        disks.push(BackupDisk { userdevice, size, start, audit: Some(EVERYTHING) });
    }
    write_blocks(&paths[1], &[50], 2);
    let none = ChangedBlocks::none(ByteCount::new(100 * BLOCK_SIZE)).expect("small").to_xapi();
    let machine = Machine::new((4..).zip(paths.iter().map(PathBuf::as_path)));
    let ended = lab.run(backup(disks), vec![Some(none); 3], machine);
    ended.outcome.expect("an alarm is not a failure");
    let counts = ended.done.expect("told").disks;
    let found: Vec<_> = counts.iter().map(mismatch).collect();
    assert_eq!(found, [(0, None), (BLOCK_SIZE, Some(50)), (0, None)]);
    for (tree, path) in ended.trees.iter().zip(&paths) {
        check(&lab, tree, path);
    }
}

#[test]
fn an_order_that_audits_without_a_bitmap_is_not_even_opened() {
    let lab = Lab::new();
    let disks = vec![BackupDisk {
        userdevice: 4,
        size: ByteCount::new(512),
        start: Start::Nothing,
        audit: Some(EVERYTHING),
    }];
    let error = lab.try_open(backup(disks), vec![None]).expect_err("refused");
    assert!(error.to_string().contains("audit without a bitmap"), "{error}");
}
