//! Disks with sectors that cannot be read: what is tried, what is saved, what is said.

use super::*;
use crate::{RETRY_PAUSES, bad_limit};
use blocks::ByteOffset;
use std::collections::BTreeSet;
use std::time::Duration;

/// What every device reads at once: bad parts in these units are the same for all of them.
const UNIT: u64 = 4096;

/// A surface with bad units.
struct Surface {
    bad: BTreeSet<u64>,
    /// They can be read after so many failures in all.
    failures_left: u32,
    /// Whether what stands before a bad unit is given first, as a short answer.
    short_first: bool,
    rough: Option<Rough>,
}

impl Surface {
    fn boxed(bad: &[u64]) -> Box<dyn Seam> {
        let bad = bad.iter().copied().collect();
        Box::new(Self { bad, failures_left: u32::MAX, short_first: false, rough: None })
    }
}

impl Seam for Surface {
    fn clip(&mut self, size: usize) -> usize {
        self.rough.as_mut().map_or(size, |rough| rough.clip(size))
    }

    fn answer(&mut self, asked: Asked, result: i32) -> i32 {
        let result = self.rough.as_mut().map_or(result, |rough| rough.answer(asked, result));
        let Ok(count) = u64::try_from(result) else { return result };
        let start = asked.offset.get();
        let units = start / UNIT..(start + count).div_ceil(UNIT);
        let Some(first) = self.bad.range(units).next().filter(|_| self.failures_left > 0) else {
            return result;
        };
        let before = (first * UNIT).saturating_sub(start);
        if self.short_first && before > 0 {
            return before as i32;
        }
        self.failures_left -= 1;
        -libc::EIO
    }
}

fn range(offset: u64, size: u64) -> ByteRange {
    ByteRange { offset: ByteOffset::new(offset), size: ByteCount::new(size) }
}

/// Neighbours joined.
fn joined(ranges: impl IntoIterator<Item = ByteRange>) -> Vec<ByteRange> {
    let mut gatherer = blocks::BadGatherer::default();
    ranges.into_iter().for_each(|range| gatherer.push(range));
    gatherer.finish().ranges
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn engines_save_everything_but_the_bad_sectors_whatever_the_kernel_answers(
        blocks in proptest::collection::btree_set(0u64..60, 0..40),
        tail in prop_oneof![Just(BLOCK_SIZE), (1u64..128).prop_map(|n| n * 512)],
        bad in proptest::collection::btree_set(0u64..60 * BLOCK_SIZE / UNIT, 0..60),
        read_blocks in 1usize..5,
        buffers in 1usize..9,
        seed in any::<u64>(),
        rough in any::<bool>(),
        short_first in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().expect("directory");
        let size = ByteCount::new(59 * BLOCK_SIZE + tail);
        let path = file(dir.path(), size.get());
        let mut bytes = std::fs::read(&path).expect("read");
        let mut changed = ChangedBlocks::none(size).expect("small");
        blocks.iter().for_each(|block| { changed.insert(BlockIndex::new(*block)); });
        let mut expected_bad = Vec::new();
        for start in bad.iter().map(|unit| unit * UNIT).filter(|start| *start < size.get()) {
            let end = size.get().min(start + UNIT);
            bytes[start as usize..end as usize].fill(0);
            if blocks.contains(&(start / BLOCK_SIZE)) {
                expected_bad.push(range(start, end - start));
            }
        }
        let expected_bad = joined(expected_bad);
        let read_size = read_blocks << 16;
        let pool = Pool::new(buffers * read_size, read_size);
        let plan = || ReadPlan::new(&changed, size, ByteCount::new(read_size as u64));
        let expected: Vec<(Read, Vec<u8>)> = plan()
            .map(|read| (read, bytes[read.offset.get() as usize..][..read.size.get() as usize].to_vec()))
            .collect();
        let surface = || -> Box<dyn Seam> {
            let rough = rough.then_some(Rough { state: seed | 1 });
            Box::new(Surface { bad: bad.clone(), failures_left: u32::MAX, short_first, rough })
        };
        for engine in engines(&path, &pool, || care(surface()).giving_up(Some(size))) {
            let name = engine.name().to_owned();
            let (found, given_up) = collect(engine, &mut plan()).expect("reads");
            prop_assert!(found == expected, "{} differs", name);
            prop_assert_eq!(joined(given_up), expected_bad.clone(), "{}", name);
            prop_assert_eq!(pool.free(), pool.count());
        }
    }
}

#[test]
fn trouble_that_passes_costs_pauses_and_nothing_else() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 2 * BLOCK_SIZE);
    let pool = Pool::new(2 << 16, 1 << 16);
    let (changed, size, max) = whole(2 * BLOCK_SIZE, &pool);
    let passing = || -> Box<dyn Seam> {
        let failures_left = RETRY_PAUSES.len() as u32;
        Box::new(Surface { bad: [17].into(), failures_left, short_first: false, rough: None })
    };
    let waited = std::sync::Mutex::new(Vec::new());
    let patient = || {
        let wait = |pause: Duration| {
            waited.lock().expect("no panic").push(pause);
            true
        };
        Care::new(wait).with_seam(passing())
    };
    for engine in engines(&path, &pool, patient) {
        let (found, given_up) = collect(engine, &mut ReadPlan::new(&changed, size, max)).expect("reads");
        let bytes: Vec<u8> = found.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!(bytes == std::fs::read(&path).expect("read") && given_up.is_empty());
        assert_eq!(std::mem::take(&mut *waited.lock().expect("no panic")), RETRY_PAUSES);
    }
}

#[test]
fn without_leave_to_go_on_the_first_bad_sector_is_named() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 4 * BLOCK_SIZE);
    expect_error(
        &path,
        4 * BLOCK_SIZE,
        || Surface::boxed(&[37, 40]),
        |error| {
            let Error::Read { offset, .. } = &error else { panic!("{error}") };
            assert_eq!(offset.get(), 37 * UNIT, "{error}");
            let source = std::error::Error::source(&error).expect("kept").to_string();
            assert!(source.starts_with("Input/output error"), "{source}");
        },
    );
}

/// 512 bytes where the device or the file system reads so little at once, else the 4 KiB around them.
#[test]
fn as_little_is_given_up_as_the_device_can_read_around() {
    struct Sector;
    impl Seam for Sector {
        fn answer(&mut self, asked: Asked, result: i32) -> i32 {
            let bad = 9 * UNIT + 512;
            let asked = asked.offset.get()..asked.offset.get() + asked.size as u64;
            if result > 0 && asked.start < bad + 512 && bad < asked.end { -libc::EIO } else { result }
        }
    }
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), BLOCK_SIZE);
    let pool = Pool::new(1 << 16, 1 << 16);
    let (changed, size, max) = whole(BLOCK_SIZE, &pool);
    for engine in engines(&path, &pool, || care(Box::new(Sector)).giving_up(Some(size))) {
        let (_, given_up) = collect(engine, &mut ReadPlan::new(&changed, size, max)).expect("reads");
        let sector = [range(9 * UNIT + 512, 512)];
        let unit = [range(9 * UNIT, UNIT)];
        assert!(given_up == sector || given_up == unit, "{given_up:?}");
    }
}

#[test]
fn a_disk_that_answers_nothing_is_not_saved_as_zeros() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 40 * BLOCK_SIZE);
    let pool = Pool::new(4 << 16, 1 << 16);
    let (changed, size, max) = whole(40 * BLOCK_SIZE, &pool);
    let dead = || care(Box::new(Always(-libc::EIO))).giving_up(Some(bad_limit(size)));
    for engine in engines(&path, &pool, dead) {
        let error = collect(engine, &mut ReadPlan::new(&changed, size, max)).expect_err("a dead disk");
        let Error::Unreadable { bad, limit, .. } = &error else { panic!("{error}") };
        assert!(bad > limit && bad.get() <= limit.get() + UNIT, "{error}");
        assert_eq!(pool.free(), pool.count());
    }
}

#[test]
fn a_job_that_is_stopped_waits_for_no_disk() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), BLOCK_SIZE);
    let pool = Pool::new(1 << 16, 1 << 16);
    let (changed, size, max) = whole(BLOCK_SIZE, &pool);
    let stopped = || Care::new(|_| false).with_seam(Surface::boxed(&[3])).giving_up(Some(size));
    for engine in engines(&path, &pool, stopped) {
        let error = collect(engine, &mut ReadPlan::new(&changed, size, max)).expect_err("stopped");
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
    }
}

/// What is not the medium's fault is no bad sector, whatever may be given up.
#[test]
fn only_the_medium_can_have_bad_sectors() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), BLOCK_SIZE);
    let pool = Pool::new(1 << 16, 1 << 16);
    let (changed, size, max) = whole(BLOCK_SIZE, &pool);
    for errno in [libc::EBADF, libc::EFAULT, libc::ENXIO, libc::EPERM] {
        let care = || care(Box::new(Always(-errno))).giving_up(Some(size));
        for engine in engines(&path, &pool, care) {
            let error = collect(engine, &mut ReadPlan::new(&changed, size, max)).expect_err("an error");
            assert!(matches!(error, Error::Read { .. }), "{error}");
        }
    }
    // A device that shrank while it was read is one that ends too early, with and without leave to go on.
    let planned = ByteCount::new(3 * BLOCK_SIZE);
    let changed = ChangedBlocks::all(planned).expect("small");
    for engine in engines(&path, &pool, || care(Surface::boxed(&[1])).giving_up(Some(planned))) {
        let error = collect(engine, &mut ReadPlan::new(&changed, planned, max)).expect_err("it shrank");
        assert!(matches!(error, Error::Ended { .. }), "{error}");
    }
}
