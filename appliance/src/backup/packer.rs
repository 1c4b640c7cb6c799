//! Fills packs with sealed blocks and sends them.

use super::stages::{Around, SealedBlocks};
use crate::worker::{Error, Meter, PendingPack, Queue, Run};
use blocks::ByteCount;
use seal::{Cipher, PackKind, PackWriter, Sealed};
use std::collections::VecDeque;
use std::sync::mpsc::SyncSender;
use wire::Stage;

/// Packs on their way at once: one crosses the network while the store syncs the other.
pub(super) const IN_FLIGHT: usize = 2;
/// A pack is ended at this many blocks too: its index is held in memory beside it.
const MAX_BLOCKS: usize = 16 << 10;

/// What the packer is told.
pub(super) enum ToPacker {
    /// So many candidates are in the store already.
    Known(u64),
    /// Blocks to ship.
    Sealed(SealedBlocks),
    /// Answer once `issued` candidates are known or durable.
    Barrier {
        /// Candidates of the disk that were ever issued.
        issued: u64,
        /// Where to answer.
        reply: SyncSender<()>,
    },
}

/// The packer of one disk.
pub(super) struct Packer<'a> {
    run: &'a Run,
    meter: Meter<'a>,
    disk: u16,
    around: &'a Around,
    spare: &'a mut Vec<Vec<u8>>,
    /// Packs whose memory exists: spare, being filled, or on their way.
    allocated: usize,
    writer: Option<PackWriter>,
    in_flight: VecDeque<PendingPack>,
    /// Candidates that are known, or in a pack.
    settled: u64,
}

impl<'a> Packer<'a> {
    /// For the calling thread.
    pub(super) fn new(run: &'a Run, disk: u16, around: &'a Around, spare: &'a mut Vec<Vec<u8>>) -> Self {
        let allocated = spare.len();
        let meter = run.ledger.meter(Stage::Pack);
        Self {
            run,
            meter,
            disk,
            around,
            spare,
            allocated,
            writer: None,
            in_flight: VecDeque::new(),
            settled: 0,
        }
    }

    /// Works until every sender is gone.
    pub(super) fn run(mut self, queue: &Queue<ToPacker>) -> Result<(), Error> {
        let mut barrier: Option<(u64, SyncSender<()>)> = None;
        while let Some(message) = self.meter.take(queue) {
            match message {
                ToPacker::Known(count) => self.settled += count,
                ToPacker::Sealed(blocks) => self.push(blocks)?,
                ToPacker::Barrier { issued, reply } => barrier = Some((issued, reply)),
            }
            if let Some((_, reply)) = barrier.take_if(|(issued, _)| *issued == self.settled) {
                self.send()?;
                while !self.in_flight.is_empty() {
                    self.wait_oldest()?;
                }
                // Nobody waits any more: the judge failed, and its error is reported.
                let _ = reply.send(());
            }
        }
        Ok(())
    }

    fn push(&mut self, mut sealed: SealedBlocks) -> Result<(), Error> {
        let (mut plain_size, mut sealed_size) = (0, 0);
        self.settled += sealed.blocks.len() as u64;
        for block in sealed.blocks.drain(..) {
            let full = |writer: &PackWriter| {
                !writer.has_room(self.run.budget.pack_size) || writer.len() >= MAX_BLOCKS
            };
            if self.writer.as_ref().is_some_and(full) {
                self.send()?;
            }
            let bytes = &sealed.bytes[block.at];
            let writer = self.writer()?;
            writer.push(*block.id.as_bytes(), block.plain_size, Sealed::clear(block.codec, bytes));
            plain_size += block.plain_size as u64;
            sealed_size += bytes.len() as u64;
        }
        self.around.sealed.give(sealed);
        self.meter.count_all(sealed_size);
        self.run.count(self.disk, |counts| {
            counts.shipped = counts.shipped.saturating_add(ByteCount::new(plain_size));
            counts.sealed = counts.sealed.saturating_add(ByteCount::new(sealed_size));
        });
        Ok(())
    }

    /// The pack being filled; waits for memory where all packs are on their way.
    fn writer(&mut self) -> Result<&mut PackWriter, Error> {
        if self.writer.is_none() {
            if self.spare.is_empty() && self.allocated >= self.run.budget.packs {
                self.wait_oldest()?;
            }
            let memory = self.spare.pop().unwrap_or_else(|| {
                self.allocated += 1;
                Vec::new()
            });
            self.writer = Some(self.fresh_writer(memory)?);
        }
        Ok(self.writer.as_mut().expect("made above"))
    }

    fn fresh_writer(&self, memory: Vec<u8>) -> Result<PackWriter, Error> {
        let size = self.run.budget.pack_size;
        let memory = if memory.capacity() < size { Vec::with_capacity(size) } else { memory };
        Ok(match self.run.key.master() {
            None => PackWriter::reusing(PackKind::Data, memory),
            Some(master) => PackWriter::sealing(master.pack_seal(Cipher::fastest())?, memory),
        })
    }

    /// Ends the pack being filled and sends it.
    fn send(&mut self) -> Result<(), Error> {
        let Some(writer) = self.writer.take() else { return Ok(()) };
        let pack = writer.finish();
        while self.in_flight.len() >= IN_FLIGHT {
            self.wait_oldest()?;
        }
        self.in_flight.push_back(self.run.link.put_pack(pack));
        Ok(())
    }

    fn wait_oldest(&mut self) -> Result<(), Error> {
        if let Some(oldest) = self.in_flight.pop_front() {
            self.meter.busy();
            let memory = oldest.wait();
            self.meter.blocked();
            let memory = memory?;
            self.spare.push(memory);
            self.run.outside.tick();
        }
        Ok(())
    }
}
