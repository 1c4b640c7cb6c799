//! The stages between the tree and the disk.

use super::writer::Piece;
use crate::worker::{Error, Pending, Reorder, Run, threads};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ByteOffset};
use seal::{BlockId, Codec, Opener, Sealed};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender};
use wire::{BlocksAnswer, PATH_BLOCKS, SealedBlock};

/// Largest write that neighbouring blocks are merged into.
const MAX_WRITE: usize = 1 << 20;

/// A stretch of the disk, ascending.
pub(super) struct Stretch {
    pub(super) sequence: u64,
    pub(super) parts: Vec<Part>,
    /// The blocks of `parts`, on their way.
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
    pub(super) pieces: Vec<Piece>,
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
    stretches: &Mutex<Receiver<Stretch>>,
    ready: &SyncSender<Ready>,
) -> Result<(), Error> {
    let mut opener = Opener::new()?;
    while let Some(stretch) = threads::take(stretches) {
        target.run.check()?;
        let opened = open_stretch(target, stretch, &mut opener)?;
        ready.send(opened).map_err(|_| Error::Aborted)?;
    }
    Ok(())
}

fn open_stretch(target: &Target<'_>, stretch: Stretch, opener: &mut Opener) -> Result<Ready, Error> {
    let answer: BlocksAnswer = match stretch.answer {
        Some(answer) => answer.wait(PATH_BLOCKS)?,
        None => BlocksAnswer { blocks: Vec::new() },
    };
    let expected = stretch.parts.iter().filter(|part| matches!(part, Part::Block(..))).count();
    if answer.blocks.len() != expected {
        return Err(Error::AnswerCount { call: PATH_BLOCKS, expected, found: answer.blocks.len() });
    }
    let mut ready = Ready { sequence: stretch.sequence, pieces: Vec::new(), plain: 0, sealed: 0, zeros: 0 };
    let mut blocks = answer.blocks.into_iter();
    for part in stretch.parts {
        match part {
            Part::Zeros(offset, size) => {
                ready.zeros += size;
                ready.pieces.push(Piece::Zeros(offset, size));
            }
            Part::Block(index, id) => {
                let sealed = blocks.next().expect("counted above");
                ready.sealed += sealed.bytes.len() as u64;
                let offset = index.get() * BLOCK_SIZE;
                let plain =
                    open_block(target, index, id, &sealed, opener).map_err(|source| Error::Damaged {
                        device: target.device.to_owned(),
                        block: index,
                        offset: ByteOffset::new(offset),
                        id,
                        source: Box::new(source),
                    })?;
                ready.plain += plain.len() as u64;
                append(&mut ready.pieces, offset, plain);
            }
        }
    }
    Ok(ready)
}

fn open_block<'o>(
    target: &Target<'_>,
    index: BlockIndex,
    id: BlockId,
    sealed: &'o SealedBlock,
    opener: &'o mut Opener,
) -> Result<&'o [u8], seal::Error> {
    let size = target.size.block_size_at(index).and_then(ByteCount::to_usize);
    // The id alone would not tell: a shorter block has an id too.
    let size =
        size.filter(|size| *size == sealed.plain_size as usize).ok_or_else(|| seal::Error::Sealed {
            reason: format!("{} plain bytes do not fit block {index} of the disk", sealed.plain_size),
        })?;
    let codec = Codec::from_byte(sealed.codec)?;
    opener.open_block(&target.run.key, id, Sealed { codec, bytes: &sealed.bytes }, size)
}

/// Adds bytes to the last piece where they follow it, so that writes are large.
fn append(pieces: &mut Vec<Piece>, offset: u64, plain: &[u8]) {
    if let Some(Piece::Bytes(start, bytes)) = pieces.last_mut()
        && *start + bytes.len() as u64 == offset
        && bytes.len() + plain.len() <= MAX_WRITE
    {
        bytes.extend_from_slice(plain);
        return;
    }
    let mut bytes = Vec::with_capacity(MAX_WRITE.min(plain.len() * 4));
    bytes.extend_from_slice(plain);
    pieces.push(Piece::Bytes(offset, bytes));
}

/// Puts stretches back in order and hands their pieces to the writer. Returns how many stretches there were.
pub(super) fn feed(
    ready: &Receiver<Ready>,
    mut write: impl FnMut(Ready) -> Result<(), Error>,
) -> Result<u64, Error> {
    // Bounded by the openers: each has one stretch at a time.
    let mut stretches = Reorder::new();
    while let Ok(next) = ready.recv() {
        stretches.put(next.sequence, next);
        while let Some(next) = stretches.next() {
            write(next)?;
        }
    }
    if stretches.is_empty() { Ok(stretches.count()) } else { Err(Error::Aborted) }
}
