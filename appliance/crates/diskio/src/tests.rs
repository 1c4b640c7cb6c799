//! Both engines against the same files, with a kernel that answers short, late or not at all.

mod bad;

use crate::pread::Pread;
use crate::seam::{self, Asked, Seam};
use crate::uring::{Ring, Uring};
use crate::{Care, Choice, Error, Filled, Pool, ReadEngine, Source, engine, probe};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ByteRange, ChangedBlocks, Read, ReadPlan};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

/// Gives short answers and spurious interruptions, from a seed.
struct Rough {
    state: u64,
}

impl Rough {
    fn boxed(seed: u64) -> Box<dyn Seam> {
        Box::new(Self { state: seed | 1 })
    }

    fn next(&mut self) -> u64 {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
}

impl Seam for Rough {
    fn clip(&mut self, size: usize) -> usize {
        if self.next().is_multiple_of(3) { (self.next() as usize % size).max(1) } else { size }
    }

    fn answer(&mut self, _asked: Asked, result: i32) -> i32 {
        match self.next() % 8 {
            0 => -libc::EINTR,
            1 => -libc::EAGAIN,
            _ => result,
        }
    }
}

/// Answers every operation alike.
struct Always(i32);

impl Seam for Always {
    fn answer(&mut self, _asked: Asked, _result: i32) -> i32 {
        self.0
    }
}

/// A file of `size` bytes that are all told apart.
fn file(dir: &Path, size: u64) -> PathBuf {
    let path = dir.join("disk");
    let bytes: Vec<u8> = (0..size).map(|at| (at ^ (at >> 8) ^ (at >> 16).wrapping_mul(31)) as u8).collect();
    std::fs::write(&path, bytes).expect("temporary file");
    path
}

/// What came out of an engine: the reads with their bytes, in the order of the plan, and what was given up.
type Collected = (Vec<(Read, Vec<u8>)>, Vec<ByteRange>);

fn collect(
    mut engine: Box<dyn ReadEngine + '_>,
    plan: &mut dyn Iterator<Item = Read>,
) -> Result<Collected, Error> {
    let mut found = Vec::new();
    while let Some(next) = engine.next(plan) {
        let Filled { sequence, read, buffer, bad, .. } = next?;
        found.push((sequence, read, buffer.to_vec(), bad));
    }
    found.sort_by_key(|(sequence, ..)| *sequence);
    let sequences: Vec<u64> = found.iter().map(|(sequence, ..)| *sequence).collect();
    assert_eq!(sequences, (0..found.len() as u64).collect::<Vec<_>>(), "every read once");
    let (mut reads, mut bad) = (Vec::new(), Vec::new());
    for (_, read, bytes, given_up) in found {
        reads.push((read, bytes));
        bad.extend(given_up);
    }
    Ok((reads, bad))
}

fn source(path: &Path) -> Source {
    Source::open(path, "xvde").expect("open")
}

/// Waits for nothing, and behind a seam.
fn care(seam: Box<dyn Seam>) -> Care<'static> {
    Care::new(|_| true).with_seam(seam)
}

/// Both engines on one file, the ring's `None` where this machine has none.
fn engines<'a>(path: &Path, pool: &Pool, care: impl Fn() -> Care<'a>) -> Vec<Box<dyn ReadEngine + 'a>> {
    let mut engines: Vec<Box<dyn ReadEngine + 'a>> =
        vec![Box::new(Pread::new(source(path), pool, "oracle", care()))];
    match probe() {
        Ok(()) => {
            let ring = Ring::new(&source(path), pool).expect("a ring");
            engines.push(Box::new(Uring::new(ring, care())));
        }
        Err(why) => println!("skipped: io_uring: {why}"),
    }
    engines
}

fn whole(size: u64, pool: &Pool) -> (ChangedBlocks, ByteCount, ByteCount) {
    let size = ByteCount::new(size);
    (ChangedBlocks::all(size).expect("small"), size, ByteCount::new(pool.buffer_size() as u64))
}

fn expect_error(path: &Path, planned: u64, seam: impl Fn() -> Box<dyn Seam>, check: impl Fn(Error)) {
    let pool = Pool::new(4 << 16, 1 << 16);
    let (changed, size, max) = whole(planned, &pool);
    for engine in engines(path, &pool, || care(seam())) {
        let name = engine.name().to_owned();
        match collect(engine, &mut ReadPlan::new(&changed, size, max)) {
            Err(error) => check(error),
            Ok(_) => panic!("{name} read what is not there"),
        }
        assert_eq!(pool.free(), pool.count(), "{name} gave its buffers back");
    }
}

#[test]
fn a_plan_that_pauses_is_read_to_its_end() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 20 * BLOCK_SIZE);
    let pool = Pool::new(4 << 16, 1 << 16);
    let (changed, size, max) = whole(20 * BLOCK_SIZE, &pool);
    for mut engine in engines(&path, &pool, || care(seam::none())) {
        let mut plan = ReadPlan::new(&changed, size, max).peekable();
        let (mut found, mut calls) = (Vec::new(), 0);
        while plan.peek().is_some() {
            // Every third time there is nothing to read yet.
            let mut pausing = std::iter::from_fn(|| {
                calls += 1;
                if calls % 3 == 0 { None } else { plan.next() }
            });
            while let Some(filled) = engine.next(&mut pausing) {
                let Filled { sequence, read, .. } = filled.expect("read");
                found.push((sequence, read.range.start.get()));
            }
        }
        found.sort_unstable();
        assert_eq!(found, (0..20).map(|block| (block, block)).collect::<Vec<_>>(), "{}", engine.name());
        assert_eq!(pool.free(), pool.count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn engines_give_the_planned_bytes_whatever_the_kernel_answers(
        blocks in proptest::collection::btree_set(0u64..60, 0..40),
        tail in prop_oneof![Just(BLOCK_SIZE), 1u64..BLOCK_SIZE, (1u64..128).prop_map(|n| n * 512)],
        read_blocks in 1usize..5,
        buffers in 1usize..9,
        seed in any::<u64>(),
        rough in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().expect("directory");
        let size = ByteCount::new(59 * BLOCK_SIZE + tail);
        let path = file(dir.path(), size.get());
        let bytes = std::fs::read(&path).expect("read");
        let mut changed = ChangedBlocks::none(size).expect("small");
        blocks.iter().for_each(|block| { changed.insert(BlockIndex::new(*block)); });
        let read_size = read_blocks << 16;
        let pool = Pool::new(buffers * read_size, read_size);
        let plan = || ReadPlan::new(&changed, size, ByteCount::new(read_size as u64));
        let expected: Vec<(Read, Vec<u8>)> = plan()
            .map(|read| (read, bytes[read.offset.get() as usize..][..read.size.get() as usize].to_vec()))
            .collect();
        for engine in engines(&path, &pool, || care(if rough { Rough::boxed(seed) } else { seam::none() })) {
            let name = engine.name().to_owned();
            let (found, _) = collect(engine, &mut plan()).expect("reads");
            prop_assert!(found == expected, "{} differs", name);
            prop_assert_eq!(pool.free(), pool.count());
        }
    }
}

#[test]
fn a_disk_that_shrank_is_an_error_that_says_where() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 2 * BLOCK_SIZE + 1000);
    expect_error(&path, 4 * BLOCK_SIZE, seam::none, |error| {
        let text = error.to_string();
        assert!(text.starts_with("xvde ends at 0x2") || text.starts_with("xvde ends at 0x3"), "{text}");
        assert!(text.ends_with("it shrank while it was read"), "{text}");
    });
}

#[test]
fn a_failed_read_names_device_offset_and_size() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), BLOCK_SIZE);
    expect_error(
        &path,
        BLOCK_SIZE,
        || Box::new(Always(-libc::EIO)),
        |error| {
            assert!(error.to_string().starts_with("read xvde at 0x0, "), "{error}");
            let source = std::error::Error::source(&error).expect("kept").to_string();
            assert!(source.starts_with("Input/output error"), "{source}");
        },
    );
}

#[test]
fn endless_interruptions_end_after_the_named_limit() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), BLOCK_SIZE);
    expect_error(
        &path,
        BLOCK_SIZE,
        || Box::new(Always(-libc::EINTR)),
        |error| {
            assert!(matches!(error, Error::Read { .. }), "{error}");
        },
    );
}

#[test]
fn a_direct_read_that_is_refused_goes_through_the_page_cache() {
    struct Refuse(bool);
    impl Seam for Refuse {
        fn answer(&mut self, _asked: Asked, result: i32) -> i32 {
            if std::mem::replace(&mut self.0, false) { -libc::EINVAL } else { result }
        }
    }
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 3 * BLOCK_SIZE);
    if !source(&path).is_direct() {
        println!("skipped: no O_DIRECT on this file system");
        return;
    }
    let pool = Pool::new(1 << 16, 1 << 16);
    let (changed, size, max) = whole(3 * BLOCK_SIZE, &pool);
    for engine in engines(&path, &pool, || care(Box::new(Refuse(true)))) {
        let (found, _) = collect(engine, &mut ReadPlan::new(&changed, size, max)).expect("reads");
        let bytes: Vec<u8> = found.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert!(bytes == std::fs::read(&path).expect("read"));
    }
}

#[test]
fn an_engine_dropped_in_mid_flight_gives_its_buffers_back() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 16 * BLOCK_SIZE);
    let pool = Pool::new(8 << 16, 1 << 16);
    let (changed, size, max) = whole(16 * BLOCK_SIZE, &pool);
    for mut engine in engines(&path, &pool, || care(seam::none())) {
        let first = engine.next(&mut ReadPlan::new(&changed, size, max)).expect("a read").expect("good");
        drop(engine);
        assert_eq!(first.buffer.len(), 1 << 16);
        drop(first);
        assert_eq!(pool.free(), pool.count());
    }
}

/// The plan is asked before the pool: whoever holds the last buffers until the end of the disk must see the end.
#[test]
fn the_end_of_the_plan_needs_no_buffer() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), BLOCK_SIZE);
    let pool = Pool::new(1 << 16, 1 << 16);
    let (changed, size, max) = whole(BLOCK_SIZE, &pool);
    for mut engine in engines(&path, &pool, || care(seam::none())) {
        let mut plan = ReadPlan::new(&changed, size, max);
        let held = engine.next(&mut plan).expect("a read").expect("good");
        assert!(engine.next(&mut plan).is_none());
        drop(held);
    }
}

#[test]
fn the_fallback_says_why_it_is_used() {
    let dir = tempfile::tempdir().expect("directory");
    let path = file(dir.path(), 1);
    let pool = Pool::new(1 << 16, 1 << 16);
    assert_eq!(engine(source(&path), &pool, Choice::Pread, Care::default()).name(), "pread: asked for");
    let missing = Source::open(&dir.path().join("none"), "xvdf").expect_err("not there");
    assert!(missing.to_string().starts_with("open "), "{missing}");
}
