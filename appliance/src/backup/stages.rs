//! The stages around the judge: reading, hashing, asking the store, sealing.

use super::pace::Pace;
use super::packer::ToPacker;
use crate::worker::{Error, Feed, Meter, Pending, Queue, Run, Spares};
use blocks::{BLOCK_SIZE, ByteCount, Read};
use diskio::{Filled, Pool, ReadEngine};
use seal::{BlockId, Codec, IdKey, SEAL_ROOM, Sealer, is_zero};
use std::cell::Cell;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::{KnownAnswer, PATH_KNOWN, Stage};

/// A reader that waits to keep its rate looks up this often: a stop must not wait, and the watchdog must not bark.
const LOOK_UP: Duration = Duration::from_millis(100);

/// A read with the ids of its blocks; zero blocks have none.
pub(super) struct Hashed {
    pub(super) filled: Filled,
    pub(super) ids: Vec<Option<BlockId>>,
}

/// A block that differs from the base and that this job has not met lately. It holds on to its read's buffer.
pub(super) struct Candidate {
    pub(super) id: BlockId,
    pub(super) chunk: Arc<Filled>,
    pub(super) at: Range<usize>,
}

/// Candidates that the store is being asked about.
pub(super) struct Batch {
    pub(super) candidates: Vec<Candidate>,
    pub(super) answer: Pending,
}

/// Sealed blocks in one piece of memory.
#[derive(Default)]
pub(super) struct SealedBlocks {
    /// As long as was ever needed; what blocks do not point to is left from before.
    pub(super) bytes: Vec<u8>,
    pub(super) blocks: Vec<SealedAt>,
}

/// Memory that goes around between the stages.
#[derive(Default)]
pub(super) struct Around {
    /// For the ids of a read.
    pub(super) ids: Spares<Vec<Option<BlockId>>>,
    /// For candidates in a question, and those of them that the store does not have.
    pub(super) candidates: Spares<Vec<Candidate>>,
    /// For sealed blocks.
    pub(super) sealed: Spares<SealedBlocks>,
}

pub(super) struct SealedAt {
    pub(super) id: BlockId,
    pub(super) plain_size: usize,
    pub(super) codec: Codec,
    pub(super) at: Range<usize>,
}

impl Candidate {
    pub(super) fn plain(&self) -> &[u8] {
        &self.chunk.buffer[self.at.clone()]
    }
}

/// Reads the plan. `unreadable` says of which disk a failed read is.
pub(super) fn read(
    run: &Run,
    mut engine: Box<dyn ReadEngine + '_>,
    plan: impl Iterator<Item = Read>,
    pace: &mut Pace,
    pool: &Pool,
    chunks: &Feed<Filled>,
    unreadable: impl Fn(diskio::Error) -> Error,
) -> Result<(), Error> {
    let mut meter = run.ledger.meter(Stage::Read);
    let mut plan = pace.slow(plan, || run.outside.uptime());
    // Reads that were begun and not handed on.
    let under_way = Cell::new(0);
    // Buffers that are all in use are a wait for those behind the reader, and no reading.
    let mut waited = pool.waited();
    loop {
        // The plan is told of each read, so it is lent for one at a time.
        while let Some(filled) = engine
            .next(&mut std::iter::from_fn(|| plan.next().inspect(|_| under_way.set(under_way.get() + 1))))
        {
            let waited_before = std::mem::replace(&mut waited, pool.waited());
            meter.busy_but_blocked(waited.saturating_sub(waited_before));
            run.check()?;
            let filled = filled.map_err(&unreadable)?;
            meter.count(filled.buffer.len());
            meter.depth(under_way.get());
            under_way.set(under_way.get().saturating_sub(1));
            plan.observe(&filled);
            meter.put(chunks, filled).map_err(|_| Error::Aborted)?;
        }
        meter.busy();
        let Some(pause) = plan.pause() else { return Ok(()) };
        rest(run, pause)?;
        meter.held();
    }
}

/// Waits because it was asked to, or because a disk needs time: that counts as progress.
pub(super) fn rest(run: &Run, mut left: Duration) -> Result<(), Error> {
    loop {
        run.check()?;
        run.outside.tick();
        if left.is_zero() {
            return Ok(());
        }
        let step = left.min(LOOK_UP);
        run.outside.sleep(step);
        left -= step;
    }
}

/// Zero test and id of every block.
pub(super) fn hash(
    key: &IdKey,
    mut meter: Meter<'_>,
    around: &Around,
    chunks: &Mutex<Queue<Filled>>,
    hashed: &Feed<Hashed>,
) -> Result<(), Error> {
    while let Some(filled) = meter.take_shared(chunks) {
        meter.count(filled.buffer.len());
        let blocks = filled.buffer.chunks(BLOCK_SIZE as usize);
        let mut ids = around.ids.take(Vec::new);
        ids.extend(blocks.map(|plain| (!is_zero(plain)).then(|| key.block_id(plain))));
        meter.put(hashed, Hashed { filled, ids }).map_err(|_| Error::Aborted)?;
    }
    Ok(())
}

/// Takes the store's answers and passes on what it does not have, a read's blocks at a time.
pub(super) fn sift(
    run: &Run,
    disk: u16,
    around: &Around,
    batches: &Queue<Batch>,
    unknown: &Feed<Vec<Candidate>>,
    packer: &Feed<ToPacker>,
) -> Result<(), Error> {
    while let Ok((Batch { mut candidates, answer }, _)) = batches.recv() {
        let KnownAnswer { known } = answer.wait(PATH_KNOWN)?;
        if known.len() != candidates.len() {
            let (expected, found) = (candidates.len(), known.len());
            return Err(Error::AnswerCount { call: PATH_KNOWN, expected, found });
        }
        let (mut known_count, mut known_size) = (0, 0);
        let mut group = around.candidates.take(Vec::new);
        for (candidate, known) in candidates.drain(..).zip(known) {
            if known {
                known_count += 1;
                known_size += candidate.at.len() as u64;
                continue;
            }
            if group.first().is_some_and(|first| !Arc::ptr_eq(&first.chunk, &candidate.chunk)) {
                let next = around.candidates.take(Vec::new);
                unknown.send(std::mem::replace(&mut group, next)).map_err(|_| Error::Aborted)?;
            }
            group.push(candidate);
        }
        around.candidates.give(candidates);
        if group.is_empty() {
            around.candidates.give(group);
        } else {
            unknown.send(group).map_err(|_| Error::Aborted)?;
        }
        if known_count > 0 {
            run.count(disk, |counts| counts.known = counts.known.saturating_add(ByteCount::new(known_size)));
            packer.send(ToPacker::Known(known_count)).map_err(|_| Error::Aborted)?;
        }
    }
    Ok(())
}

/// Compresses what is to be shipped; the buffers of the reads are free afterwards.
pub(super) fn seal(
    level: i32,
    mut meter: Meter<'_>,
    around: &Around,
    unknown: &Mutex<Queue<Vec<Candidate>>>,
    packer: &Feed<ToPacker>,
) -> Result<(), Error> {
    let mut sealer = Sealer::new(level)?;
    while let Some(mut candidates) = meter.take_shared(unknown) {
        let mut out = around.sealed.take(SealedBlocks::default);
        let room = candidates.len() * SEAL_ROOM;
        if out.bytes.len() < room {
            out.bytes.resize(room, 0);
        }
        let mut start = 0;
        for candidate in candidates.drain(..) {
            let (codec, size) = sealer.seal_into(candidate.plain(), &mut out.bytes[start..])?;
            let (plain_size, at) = (candidate.at.len(), start..start + size);
            start = at.end;
            meter.count(plain_size);
            out.blocks.push(SealedAt { id: candidate.id, plain_size, codec, at });
        }
        around.candidates.give(candidates);
        meter.put(packer, ToPacker::Sealed(out)).map_err(|_| Error::Aborted)?;
    }
    Ok(())
}
