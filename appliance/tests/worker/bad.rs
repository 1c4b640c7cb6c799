//! Disks that cannot be read everywhere.

use crate::backup::read_back;
use crate::lab::{Ended, Lab, Machine, bitmap, disk, size_of};
use blocks::{BLOCK_SIZE, BlockCount, ChangedBlocks};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::{Audit, BackupDisk, Start, Work};

/// What every device reads at once.
const UNIT: u64 = 4096;

/// Backs up two disks of which the second has bad parts, by a clock that the pauses move on.
fn back_up(lab: &Lab, paths: [&Path; 2], bad: &[(u64, u64)], skip_bad_blocks: bool, io_uring: bool) -> Ended {
    let disk =
        |userdevice, path| BackupDisk { userdevice, size: size_of(path), start: Start::Nothing, audit: None };
    let disks = vec![disk(4, paths[0]), disk(5, paths[1])];
    let work = Work::Backup {
        level: 1,
        pack_size: 1 << 20,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks,
        disks,
    };
    lab.run(work, vec![None, None], machine(paths, bad, io_uring))
}

fn machine(paths: [&Path; 2], bad: &[(u64, u64)], io_uring: bool) -> Machine {
    Machine {
        io_uring,
        bad: HashMap::from([(5, bad.to_vec())]),
        clock: Some(Arc::new(Mutex::new(Duration::ZERO))),
        ..Machine::new([(4, paths[0]), (5, paths[1])])
    }
}

#[test]
fn what_cannot_be_read_is_zeros_and_everything_else_is_saved() {
    let lab = Lab::new();
    let paths = ["sound", "worn"].map(|name| lab.path(name));
    let paths = [paths[0].as_path(), paths[1].as_path()];
    disk(paths[0], 3 * BLOCK_SIZE, &[0, 1, 2]);
    disk(paths[1], 40 * BLOCK_SIZE + 1536, &(0..41).collect::<Vec<_>>());
    // A whole block, the border of two reads, and the short end of the disk.
    let bad = [(2 * BLOCK_SIZE, BLOCK_SIZE), (8 * BLOCK_SIZE - UNIT, 2 * UNIT), (40 * BLOCK_SIZE, 1536)];
    let mut expected = std::fs::read(paths[1]).expect("read");
    for (offset, size) in bad {
        expected[offset as usize..(offset + size) as usize].fill(0);
    }
    for io_uring in [true, false] {
        let ended = back_up(&lab, paths, &bad, true, io_uring);
        ended.outcome.expect("saved");
        assert!(ended.bad[0].is_empty());
        let found: Vec<_> =
            ended.bad[1].ranges.iter().map(|range| (range.offset.get(), range.size.get())).collect();
        assert_eq!(found, bad, "io_uring: {io_uring}");
        let saved = read_back(&lab, &ended.trees[1], "saved");
        assert!(std::fs::read(saved).expect("read") == expected, "io_uring: {io_uring}");
        let counts = ended.done.expect("told").disks[1];
        assert_eq!(counts.moved, size_of(paths[1]), "what was left out counts as read: {counts:?}");
    }
}

#[test]
fn without_leave_the_job_ends_at_the_disk_and_says_where() {
    let lab = Lab::new();
    let paths = ["sound", "worn"].map(|name| lab.path(name));
    let paths = [paths[0].as_path(), paths[1].as_path()];
    paths.iter().for_each(|path| disk(path, 10 * BLOCK_SIZE, &[0, 9]));
    for io_uring in [true, false] {
        let ended = back_up(&lab, paths, &[(7 * BLOCK_SIZE + UNIT, UNIT)], false, io_uring);
        let error = ended.outcome.expect_err("it cannot be read");
        assert_eq!(error.code(), "read-error");
        let done = ended.done.expect("told");
        assert_eq!((done.disk, ended.trees.len()), (Some(1), 1));
        let failure = done.outcome.expect_err("failed");
        assert!(failure.message.contains("read disk5 at 0x71000, "), "{failure}");
        assert!(failure.message.contains("Input/output error"), "{failure}");
    }
}

/// The tracking says that the block did not change, so the base's copy of it is better than none.
#[test]
fn a_sampled_block_that_cannot_be_read_is_no_alarm_and_stays_as_the_base_has_it() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 40 * BLOCK_SIZE, &(0..40).collect::<Vec<_>>());
    let (base, _) = lab.back_up(&path, Start::Nothing, None);
    let map = bitmap(size_of(&path), &[3]);
    let audit = Audit { seed: 1, parts_per_million: Audit::ALL, minimum: BlockCount::new(0) };
    let disks = vec![BackupDisk {
        userdevice: 5,
        size: size_of(&path),
        start: Start::Changed { base },
        audit: Some(audit),
    }];
    let work = Work::Backup {
        level: 1,
        pack_size: 1 << 20,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks: true,
        disks,
    };
    let machine = machine([path.as_path(); 2], &[(20 * BLOCK_SIZE, UNIT)], true);
    let ended = lab.run(work, vec![Some(ChangedBlocks::to_xapi(&map))], machine);
    ended.outcome.expect("no alarm");
    let counts = ended.done.expect("told").disks[0];
    assert_eq!((counts.audited.get(), counts.mismatched.get()), (38 * BLOCK_SIZE, 0), "{counts:?}");
    assert_eq!((ended.trees[0], ended.bad[0].is_empty()), (base, true));
}
