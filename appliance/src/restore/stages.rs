//! The stages between the tree and the disk.

use super::writer::{Load, Piece};
use crate::worker::{Error, Feed, Meter, Pending, Queue, Reorder, Run};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ByteOffset};
use seal::{BlockId, Opener};
use std::sync::Mutex;
use wire::{BlocksAnswer, PATH_BLOCKS, SealedBlock};

/// Largest write that neighbouring blocks are merged into.
const MAX_WRITE: usize = 1 << 20;

/// A stretch of the disk, ascending.
pub(super) struct Stretch {
    pub(super) sequence: u64,
    pub(super) load: Load,
    /// The blocks among the load's parts, on their way.
    pub(super) answer: Option<Pending>,
}

/// What a stretch is made of.
pub(super) enum Part {
    /// A block that the store has.
    Block(BlockIndex, BlockId),
    /// Bytes that read as zeros: offset and size.
    Zeros(u64, u64),
}

/// A stretch that is checked and ready to be written.
pub(super) struct Ready {
    pub(super) sequence: u64,
    pub(super) load: Load,
    /// Plain bytes that came from the store, and their sealed size.
    pub(super) plain: u64,
    pub(super) sealed: u64,
    pub(super) zeros: u64,
}

/// The disk that is restored to.
pub(super) struct Target<'a> {
    pub(super) run: &'a Run,
    pub(super) device: &'a str,
    pub(super) size: ByteCount,
}

/// Opens blocks, checks every one against its id.
pub(super) fn open(
    target: &Target<'_>,
    mut meter: Meter<'_>,
    stretches: &Mutex<Queue<Stretch>>,
    ready: &Feed<Ready>,
) -> Result<(), Error> {
    let mut opener = Opener::new()?;
    while let Some(stretch) = meter.take_shared(stretches) {
        target.run.check()?;
        // Without this stretch its load does not come back, and the walk would wait for it.
        let opened = target.run.or_abort(open_stretch(target, &mut meter, stretch, &mut opener))?;
        meter.put(ready, opened).map_err(|_| Error::Aborted)?;
    }
    Ok(())
}

fn open_stretch(
    target: &Target<'_>,
    meter: &mut Meter<'_>,
    stretch: Stretch,
    opener: &mut Opener,
) -> Result<Ready, Error> {
    let Stretch { sequence, mut load, answer } = stretch;
    let expected = load.parts.iter().filter(|part| matches!(part, Part::Block(..))).count();
    let mut ready = Ready { sequence, load: Load::default(), plain: 0, sealed: 0, zeros: 0 };
    if let Some(answer) = answer {
        let answer = answer.wait_raw();
        meter.starved();
        load.answer = answer?;
        load.make_room(expected * BLOCK_SIZE as usize);
    }
    let Load { parts, answer, memory, pieces } = &mut load;
    let answer: BlocksAnswer<'_> = match expected {
        0 => BlocksAnswer { blocks: Vec::new() },
        _ => wire::decode(answer).map_err(|source| Error::Answer { call: PATH_BLOCKS.to_owned(), source })?,
    };
    if answer.blocks.len() != expected {
        return Err(Error::AnswerCount { call: PATH_BLOCKS, expected, found: answer.blocks.len() });
    }
    let mut blocks = answer.blocks.iter();
    let mut filled = 0;
    for part in parts.drain(..) {
        match part {
            Part::Zeros(offset, size) => {
                ready.zeros += size;
                pieces.push(Piece::Zeros(offset, size));
            }
            Part::Block(index, id) => {
                let sealed = blocks.next().expect("counted above");
                ready.sealed += sealed.bytes.len() as u64;
                meter.count(sealed.bytes.len());
                let offset = index.get() * BLOCK_SIZE;
                let opened = open_block(target, index, id, sealed, opener, &mut memory[filled..]);
                let size = opened.map_err(|source| Error::Damaged {
                    device: target.device.to_owned(),
                    block: index,
                    offset: ByteOffset::new(offset),
                    id,
                    source: Box::new(source),
                })?;
                ready.plain += size as u64;
                append(pieces, offset, filled, size);
                filled += size;
            }
        }
    }
    meter.count_all(ready.sealed);
    Ok(Ready { load, ..ready })
}

/// Opens a block to the start of `room`; gives its size.
fn open_block(
    target: &Target<'_>,
    index: BlockIndex,
    id: BlockId,
    sealed: &SealedBlock<'_>,
    opener: &mut Opener,
    room: &mut [u8],
) -> Result<usize, seal::Error> {
    let size = target.size.block_size_at(index).and_then(ByteCount::to_usize);
    // The id alone would not tell: a shorter block has an id too.
    let size =
        size.filter(|size| *size == sealed.plain_size as usize).ok_or_else(|| seal::Error::Sealed {
            reason: format!("{} plain bytes do not fit block {index} of the disk", sealed.plain_size),
        })?;
    opener.open_block_into(&target.run.key, id, sealed.sealed()?, &mut room[..size])?;
    Ok(size)
}

/// Adds the bytes at `at` of the load to the last piece where they follow it, so that writes are large.
fn append(pieces: &mut Vec<Piece>, offset: u64, at: usize, size: usize) {
    match pieces.last_mut() {
        Some(Piece::Bytes(start, bytes))
            if *start + bytes.len() as u64 == offset && bytes.len() + size <= MAX_WRITE =>
        {
            bytes.end += size;
        }
        _ => pieces.push(Piece::Bytes(offset, at..at + size)),
    }
}

/// Puts stretches back in order and hands their pieces to the writer. Returns how many stretches there were.
pub(super) fn feed(
    ready: &Queue<Ready>,
    mut write: impl FnMut(Ready) -> Result<(), Error>,
) -> Result<u64, Error> {
    // Bounded by the loads: the walk takes them in order, so that the next stretch always has one.
    let mut stretches = Reorder::new();
    while let Ok((next, _)) = ready.recv() {
        stretches.put(next.sequence, next);
        while let Some(next) = stretches.next() {
            write(next)?;
        }
    }
    if stretches.is_empty() { Ok(stretches.count()) } else { Err(Error::Aborted) }
}
