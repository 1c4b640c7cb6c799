//! Disks into the store.

use crate::lab::{Lab, Machine, assert_same, backup, bitmap, disk, noise, size_of, write_blocks};
use abd_appliance::platform::State;
use blocks::{BLOCK_SIZE, ByteOffset, ChangedBlocks};
use seal::FAN_OUT;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use wire::{BackupDisk, RestoreDisk, Start, Work};

/// Reads a tree back with the store's own reader.
pub(crate) fn read_back(lab: &Lab, tree: &seal::Tree, name: &str) -> PathBuf {
    let path = lab.path(name);
    let file = File::create(&path).expect("create");
    file.set_len(tree.size.get()).expect("size");
    let mut sink = |offset: ByteOffset, plain: &[u8]| file.write_all_at(plain, offset.get());
    lab.store.read_disk(tree, &mut sink).expect("read back");
    path
}

pub(crate) fn check(lab: &Lab, tree: &seal::Tree, path: &Path) {
    assert_same(path, &read_back(lab, tree, "read-back"));
}

#[test]
fn full_backup_of_an_odd_disk_equals_the_disk() {
    let lab = Lab::new();
    let path = lab.path("disk");
    // 700 blocks are eleven leaves; the last block is short, and some are zero.
    let written: Vec<u64> = (0..700).filter(|block| block % 5 != 0).chain([700]).collect();
    disk(&path, 700 * BLOCK_SIZE + 3 * 512, &written);
    let (tree, counts) = lab.back_up(&path, Start::Nothing, None);
    check(&lab, &tree, &path);
    assert_eq!(counts.moved, size_of(&path));
    assert_eq!(counts.zero.get(), 140 * BLOCK_SIZE);
    assert_eq!(counts.nodes, 12);
    assert!(counts.sealed < counts.shipped);
}

#[test]
fn without_io_uring_the_same_comes_out_and_the_claim_says_why() {
    let lab = Lab::new();
    let (path, target) = (lab.path("disk"), lab.path("target"));
    disk(&path, 300 * BLOCK_SIZE + 512, &(0..301).filter(|block| block % 4 != 0).collect::<Vec<_>>());
    let plain = |path: &Path| Machine { io_uring: false, ..Machine::new([(4, path)]) };
    let disks = vec![BackupDisk { userdevice: 4, size: size_of(&path), start: Start::Nothing, audit: None }];
    let ended = lab.run(backup(disks), vec![None], plain(&path));
    ended.outcome.expect("backup");
    assert_eq!(ended.claim.expect("claimed").engine, "pread: asked for");
    std::fs::write(&target, vec![0xff; size_of(&path).get() as usize]).expect("fill");
    let tree = ended.trees[0];
    let disks = vec![RestoreDisk {
        userdevice: 4,
        device: tree.size,
        size: tree.size,
        root: tree.root,
        blank: false,
    }];
    lab.run(Work::Restore { disks }, vec![None], plain(&target)).outcome.expect("restore");
    assert_same(&path, &target);
}

#[test]
fn states_are_passed_in_order() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 512, &[0]);
    let disks = vec![BackupDisk { userdevice: 4, size: size_of(&path), start: Start::Nothing, audit: None }];
    let ended = lab.run(backup(disks), vec![None], Machine::new([(4, path.as_path())]));
    ended.outcome.expect("backup");
    assert_eq!(ended.states, [State::Connecting, State::Claimed, State::Working]);
}

#[test]
fn a_disk_of_one_sector_and_a_disk_of_zeros() {
    let lab = Lab::new();
    let sector = lab.path("sector");
    disk(&sector, 512, &[0]);
    let (tree, counts) = lab.back_up(&sector, Start::Nothing, None);
    check(&lab, &tree, &sector);
    assert_eq!((counts.moved.get(), counts.shipped.get(), counts.nodes), (512, 512, 1));
    let zeros = lab.path("zeros");
    disk(&zeros, 300 * BLOCK_SIZE, &[]);
    let (tree, counts) = lab.back_up(&zeros, Start::Nothing, None);
    assert_eq!((tree.root, counts.zero, counts.nodes), (None, size_of(&zeros), 0));
}

#[test]
fn incremental_reads_exactly_the_changed_granules() {
    let lab = Lab::new();
    let path = lab.path("disk");
    let size = 900 * BLOCK_SIZE + 512;
    disk(&path, size, &(0..901).collect::<Vec<_>>());
    let (base, _) = lab.back_up(&path, Start::Nothing, None);
    // Really changed, only touched (rewritten alike), zeroed, and the short last block.
    let changed = [3, 4, 5, 300, 899, 900];
    write_blocks(&path, &changed, 2);
    let file = File::options().write(true).open(&path).expect("open");
    file.write_all_at(&vec![0; BLOCK_SIZE as usize], 7 * BLOCK_SIZE).expect("zero");
    let map = bitmap(size_of(&path), &[3, 4, 5, 7, 20, 21, 300, 899, 900]);
    let (tree, counts) = lab.back_up(&path, Start::Changed { base }, Some(&map));
    check(&lab, &tree, &path);
    assert_eq!(counts.moved.get(), 8 * BLOCK_SIZE + 512);
    assert_eq!(counts.unchanged.get(), 2 * BLOCK_SIZE);
    assert_eq!(counts.zero.get(), BLOCK_SIZE);
    assert_eq!(counts.shipped.get(), 5 * BLOCK_SIZE + 512);
    assert_eq!(counts.nodes, 4);
    let nothing = ChangedBlocks::none(size_of(&path)).expect("small");
    let (same, counts) = lab.back_up(&path, Start::Changed { base: tree }, Some(&nothing));
    assert_eq!((same, counts.moved.get()), (tree, 0));
}

#[test]
fn a_scan_ships_only_what_differs_and_a_second_full_ships_nothing() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 600 * BLOCK_SIZE, &(0..600).collect::<Vec<_>>());
    let (base, _) = lab.back_up(&path, Start::Nothing, None);
    write_blocks(&path, &[0, 599], 2);
    let (tree, counts) = lab.back_up(&path, Start::Compare { base }, None);
    check(&lab, &tree, &path);
    assert_eq!((counts.unchanged.get(), counts.shipped.get()), (598 * BLOCK_SIZE, 2 * BLOCK_SIZE));
    let (again, counts) = lab.back_up(&path, Start::Nothing, None);
    assert_eq!((again, counts.known, counts.shipped.get()), (tree, size_of(&path), 0));
}

#[test]
fn second_copies_within_a_job_are_shipped_once() {
    let lab = Lab::new();
    let (first, second) = (lab.path("first"), lab.path("second"));
    disk(&first, 40 * BLOCK_SIZE, &[]);
    let file = File::options().write(true).open(&first).expect("open");
    for block in 0..40 {
        file.write_all_at(&noise(block % 10 + 1, BLOCK_SIZE as usize), block * BLOCK_SIZE).expect("write");
    }
    std::fs::copy(&first, &second).expect("copy");
    let disks = [4, 9].map(|userdevice| BackupDisk {
        userdevice,
        size: size_of(&first),
        start: Start::Nothing,
        audit: None,
    });
    let machine = Machine::new([(4, first.as_path()), (9, second.as_path())]);
    let ended = lab.run(backup(disks.to_vec()), vec![None, None], machine);
    ended.outcome.expect("backup");
    let disks = ended.done.expect("done").disks;
    assert_eq!((disks[0].shipped.get(), disks[0].known.get()), (10 * BLOCK_SIZE, 30 * BLOCK_SIZE));
    assert_eq!((disks[1].shipped.get(), disks[1].known.get()), (0, 40 * BLOCK_SIZE));
    assert_eq!(ended.trees[0], ended.trees[1]);
    check(&lab, &ended.trees[1], &second);
}

#[test]
fn a_disk_that_grew_over_levels_keeps_its_base() {
    // From one level to two, and from two to three; the base's last block is short.
    for (before, after) in [(200u64, 300u64), (65_500, 65_600)] {
        let lab = Lab::new();
        let path = lab.path("disk");
        disk(&path, before * BLOCK_SIZE + 1024, &[1, 2, 3, before]);
        let map = bitmap(size_of(&path), &[1, 2, 3, before]);
        let (base, _) = lab.back_up(&path, Start::Allocated, Some(&map));
        File::options().write(true).open(&path).expect("open").set_len(after * BLOCK_SIZE).expect("grow");
        write_blocks(&path, &[2, after - 1], 2);
        // The bitmap knows nothing of the growth: the worker adds it.
        let map = bitmap(size_of(&path), &[2]);
        let (tree, counts) = lab.back_up(&path, Start::Changed { base }, Some(&map));
        assert_eq!(counts.moved.get(), (after - before + 1) * BLOCK_SIZE);
        let file = File::open(&path).expect("open");
        let mut found = Vec::new();
        let mut sink = |offset: ByteOffset, plain: &[u8]| {
            let mut bytes = vec![0; plain.len()];
            file.read_exact_at(&mut bytes, offset.get())?;
            assert!(bytes == plain, "at {offset}");
            found.push(offset.block_floor().get());
            Ok(())
        };
        lab.store.read_disk(&tree, &mut sink).expect("read back");
        assert_eq!(found, [1, 2, 3, before, after - 1]);
    }
}

#[test]
fn many_small_packs_and_tree_packs_keep_their_order() {
    let lab = Lab::new();
    let path = lab.path("disk");
    // One block for each leaf, so that tree packs of 2 MiB fill while data packs are few.
    let written: Vec<u64> = (0..1400).map(|leaf| leaf * FAN_OUT + leaf % FAN_OUT).collect();
    disk(&path, 1400 * FAN_OUT * BLOCK_SIZE, &written);
    let map = bitmap(size_of(&path), &written);
    let disks =
        vec![BackupDisk { userdevice: 4, size: size_of(&path), start: Start::Allocated, audit: None }];
    let work = Work::Backup {
        level: 1,
        pack_size: 1 << 20,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks: false,
        disks,
    };
    let ended = lab.run(work, vec![Some(map.to_xapi())], Machine::new([(4, path.as_path())]));
    ended.outcome.expect("backup");
    let counts = ended.done.expect("done").disks[0];
    assert_eq!(counts.nodes, 1400 + 22 + 1);
    let report = lab.store.verify(&ads::Scope::All, ads::Depth::EveryByte, &|_| {}).expect("verify");
    assert!(report.is_clean(), "{report:?}");
    // And an incremental over it fetches base nodes all over the tree.
    let changed: Vec<u64> = written.iter().copied().step_by(7).collect();
    write_blocks(&path, &changed, 5);
    let map = bitmap(size_of(&path), &changed);
    let (tree, counts) = lab.back_up(&path, Start::Changed { base: ended.trees[0] }, Some(&map));
    assert_eq!(counts.shipped.get(), 200 * BLOCK_SIZE);
    let mut found = 0;
    let mut sink = |offset: ByteOffset, plain: &[u8]| {
        found += 1;
        let block = offset.block_floor().get();
        let seed = if changed.contains(&block) { 5 } else { 1 };
        assert!(plain == noise(seed << 40 | (block + 1), BLOCK_SIZE as usize), "block {block}");
        Ok(())
    };
    lab.store.read_disk(&tree, &mut sink).expect("read back");
    assert_eq!(found, 1400);
}
