//! The judge: takes hashed reads in disk order, compares them with the base, builds the tree, and decides which
//! blocks the store must be asked about. Blocks that an audit sampled are compared and nothing else; those of them that
//! cannot be read stay as the base has them.

use super::packer::ToPacker;
use super::recent::Recent;
use super::stages::{Around, Batch, Candidate, Hashed};
use crate::worker::{Error, Feed, Meter, NodesAhead, Queue, Reorder, Run};
use blocks::{
    BLOCK_SIZE, BadGatherer, BadRanges, BlockIndex, ByteCount, ByteOffset, ByteRange, ChangedBlocks,
};
use diskio::{Filled, Pool};
use seal::{FAN_OUT, Node, NodeId, PackKind, PackWriter, Sealer, Tree, TreeBuilder};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use wire::{KnownQuestion, PATH_KNOWN, Stage, StageAccount};

/// A disk that is read gives something more often than this; one that does not is slower than any question.
const LULL: Duration = Duration::from_millis(5);

/// Who waits for packs looks up this often.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Judges the reads of one disk.
pub(super) struct Judge<'a> {
    pub(super) run: &'a Run,
    pub(super) disk: u16,
    /// Bytes that the plan covers.
    pub(super) planned: ByteCount,
    pub(super) pool: &'a Pool,
    pub(super) recent: &'a mut Recent,
    pub(super) builder: TreeBuilder,
    pub(super) nodes: NodesAhead<'a>,
    pub(super) outlet: Outlet<'a>,
    /// The blocks of an audit.
    pub(super) sample: Option<&'a ChangedBlocks>,
    /// Whether one of them differed.
    pub(super) doubt: bool,
    /// What could not be read of the others.
    pub(super) bad: BadGatherer,
}

/// What a pass over a disk gave.
pub(super) struct Verdict {
    /// The disk's tree, all of it durable in the store.
    pub(super) tree: Tree,
    /// Where zeros stand in it because the disk could not be read.
    pub(super) bad: BadRanges,
}

/// Plain bytes of one read, by what became of them; what is in none of these is on its way to the store.
#[derive(Default)]
struct Tally {
    zero: u64,
    unchanged: u64,
    known: u64,
    audited: u64,
    mismatched: u64,
    first_mismatch: Option<BlockIndex>,
}

/// A read's buffer: of the judge alone, or shared with candidates.
enum Chunk {
    Own(Filled),
    Shared(Arc<Filled>),
}

impl Chunk {
    fn share(self) -> (Self, Arc<Filled>) {
        let shared = match self {
            Self::Own(filled) => Arc::new(filled),
            Self::Shared(shared) => shared,
        };
        (Self::Shared(shared.clone()), shared)
    }
}

/// The leaf that the current blocks belong to.
struct OpenLeaf {
    index: u64,
    node: Node,
}

impl Judge<'_> {
    /// Judges until the reads end; gives the disk's tree, all of it durable in the store. None where an audited
    /// block differs from the base; what was found to be new is then durable too, because the memory of what was
    /// shipped goes on to the next pass.
    pub(super) fn run(mut self, hashed: &Queue<Hashed>) -> Result<Option<Verdict>, Error> {
        let ledger = &self.run.ledger;
        let mut meter = ledger.meter(Stage::Judge);
        // Reads that overtook an earlier one; each holds a buffer, so the pool bounds them.
        let mut reads = Reorder::new();
        let mut judged = 0;
        let mut leaf = None;
        while let Some(next) = self.next(hashed, &mut meter)? {
            meter.count(next.filled.buffer.len());
            reads.put(next.filled.sequence, next);
            while let Some(next) = reads.next() {
                judged += next.filled.read.size.get();
                self.judge(next, &mut leaf)?;
            }
        }
        // The reader or a hasher failed, and says why itself. A tree is finished only over all that was planned.
        if !reads.is_empty() || judged != self.planned.get() {
            return Err(Error::Aborted);
        }
        self.close(&mut leaf)?;
        let Self { builder, mut nodes, mut outlet, doubt, bad, .. } = self;
        let tree = if doubt {
            outlet.settle_blocks()?;
            None
        } else {
            let tree = builder.finish(&mut nodes, &mut |id, node| outlet.emit(id, node))?;
            outlet.send_nodes()?;
            Some(tree)
        };
        let asked = nodes.waited() + outlet.asked;
        meter.was_not_busy(asked, outlet.settled + outlet.shipped);
        ledger.asked(asked);
        ledger.add(&StageAccount { blocked: outlet.shipped, ..StageAccount::new(Stage::Pack) });
        Ok(tree.map(|tree| Verdict { tree, bad: bad.finish() }))
    }

    /// The next read. Where none comes for a while and no buffer is free, a batch that holds some is sent off: the
    /// reader may be waiting for them. Not at once: the reader takes every free buffer for reads to come, and small
    /// questions would each wait for the network.
    fn next(&mut self, hashed: &Queue<Hashed>, meter: &mut Meter<'_>) -> Result<Option<Hashed>, Error> {
        self.run.check()?;
        meter.busy();
        let next = hashed.recv_timeout(LULL);
        meter.starved();
        match next {
            Ok((next, depth)) => {
                meter.depth(depth);
                return Ok(Some(next));
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if self.pool.free() == 0 {
            self.outlet.ask()?;
        }
        Ok(meter.take(hashed))
    }

    fn judge(&mut self, hashed: Hashed, leaf: &mut Option<OpenLeaf>) -> Result<(), Error> {
        let Hashed { mut filled, mut ids } = hashed;
        let (size, read) = (filled.buffer.len(), filled.read);
        let unreadable = std::mem::take(&mut filled.bad);
        // Shared by its candidates; most reads of a quiet disk have none.
        let mut chunk = Chunk::Own(filled);
        let mut tally = Tally::default();
        let offsets = (0..size).step_by(BLOCK_SIZE as usize);
        for ((block, id), at) in read.range.blocks().zip(ids.drain(..)).zip(offsets) {
            let end = size.min(at + BLOCK_SIZE as usize);
            let (node, slot) = self.leaf(block.get(), leaf)?;
            let old = node.block(slot);
            let plain_size = (end - at) as u64;
            let sampled = self.sample.is_some_and(|sample| sample.contains(block));
            if !unreadable.is_empty() {
                let start = read.offset.get() + at as u64;
                let bad = unreadable.iter().filter_map(|range| part_within(*range, start, plain_size));
                if sampled && bad.clone().next().is_some() {
                    tally.unchanged += plain_size;
                    continue;
                }
                bad.for_each(|range| self.bad.push(range));
            }
            if sampled {
                tally.audited += plain_size;
                if id != old {
                    tally.mismatched += plain_size;
                    tally.first_mismatch = tally.first_mismatch.or(Some(block));
                }
                continue;
            }
            match id {
                None => tally.zero += plain_size,
                Some(_) if id == old => tally.unchanged += plain_size,
                Some(_) => {}
            }
            if id == old {
                continue;
            }
            node.set_block(slot, id);
            let Some(id) = id else { continue };
            if self.recent.insert(id) {
                let shared;
                (chunk, shared) = chunk.share();
                self.outlet.offer(Candidate { id, chunk: shared, at: at..end })?;
            } else {
                tally.known += plain_size;
            }
        }
        self.outlet.around.ids.give(ids);
        self.doubt |= tally.first_mismatch.is_some();
        self.count(read.size, &tally);
        Ok(())
    }

    fn count(&self, moved: ByteCount, tally: &Tally) {
        let add = |count: &mut ByteCount, bytes| *count = count.saturating_add(ByteCount::new(bytes));
        self.run.count(self.disk, |counts| {
            add(&mut counts.moved, moved.get());
            add(&mut counts.zero, tally.zero);
            add(&mut counts.unchanged, tally.unchanged);
            add(&mut counts.known, tally.known);
            add(&mut counts.audited, tally.audited);
            add(&mut counts.mismatched, tally.mismatched);
            counts.first_mismatch = counts.first_mismatch.or(tally.first_mismatch);
        });
    }

    /// The leaf of a block and the block's slot in it; closes the leaf before.
    fn leaf<'l>(
        &mut self,
        block: u64,
        leaf: &'l mut Option<OpenLeaf>,
    ) -> Result<(&'l mut Node, usize), Error> {
        let index = block / FAN_OUT;
        if leaf.as_ref().is_none_or(|open| open.index != index) {
            self.close(leaf)?;
            let outlet = &mut self.outlet;
            let node =
                self.builder.base_leaf(index, &mut self.nodes, &mut |id, node| outlet.emit(id, node))?;
            *leaf = Some(OpenLeaf { index, node });
        }
        let open = leaf.as_mut().expect("opened above");
        Ok((&mut open.node, (block % FAN_OUT) as usize))
    }

    fn close(&mut self, leaf: &mut Option<OpenLeaf>) -> Result<(), Error> {
        let Some(OpenLeaf { index, node }) = leaf.take() else { return Ok(()) };
        let outlet = &mut self.outlet;
        self.builder.put_leaf(index, &node, &mut self.nodes, &mut |id, node| outlet.emit(id, node))
    }
}

/// The part of a range that lies within the `size` bytes at `start`.
fn part_within(range: ByteRange, start: u64, size: u64) -> Option<ByteRange> {
    let from = range.offset.get().max(start);
    let to = range.offset.get().saturating_add(range.size.get()).min(start + size);
    (from < to).then(|| ByteRange { offset: ByteOffset::new(from), size: ByteCount::new(to - from) })
}

/// What leaves the judge: blocks to ask about, and tree nodes.
pub(super) struct Outlet<'a> {
    run: &'a Run,
    disk: u16,
    around: &'a Around,
    batches: Feed<Batch>,
    packer: Feed<ToPacker>,
    batch: Vec<Candidate>,
    /// Reads whose buffers the batch holds.
    held: usize,
    issued: u64,
    sealer: Sealer,
    tree_pack: Option<PackWriter>,
    /// Waited for earlier questions to be answered.
    asked: Duration,
    /// Waited for the blocks of the disk to be durable.
    settled: Duration,
    /// Waited for packs of nodes to be durable.
    shipped: Duration,
}

impl<'a> Outlet<'a> {
    pub(super) fn new(
        run: &'a Run,
        disk: u16,
        around: &'a Around,
        level: i32,
        batches: Feed<Batch>,
        packer: Feed<ToPacker>,
    ) -> Result<Self, Error> {
        let sealer = Sealer::new(level)?;
        Ok(Self {
            run,
            disk,
            around,
            batches,
            packer,
            batch: Vec::new(),
            held: 0,
            issued: 0,
            sealer,
            tree_pack: None,
            asked: Duration::ZERO,
            settled: Duration::ZERO,
            shipped: Duration::ZERO,
        })
    }

    /// Takes a block that differs from the base.
    fn offer(&mut self, candidate: Candidate) -> Result<(), Error> {
        if self.batch.last().is_none_or(|last| !Arc::ptr_eq(&last.chunk, &candidate.chunk)) {
            self.held += 1;
        }
        self.batch.push(candidate);
        self.issued += 1;
        let budget = &self.run.budget;
        if self.batch.len() >= budget.known_batch || self.held >= budget.read_buffers / 3 {
            self.ask()?;
        }
        Ok(())
    }

    /// Asks the store about the blocks gathered so far.
    fn ask(&mut self) -> Result<(), Error> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.held = 0;
        let next = self.around.candidates.take(Vec::new);
        let candidates = std::mem::replace(&mut self.batch, next);
        let ids = candidates.iter().map(|candidate| candidate.id).collect();
        let answer = self.run.link.start(PATH_KNOWN, &KnownQuestion { ids });
        let began = Instant::now();
        let sent = self.batches.send(Batch { candidates, answer });
        self.asked += began.elapsed();
        sent.map_err(|_| Error::Aborted)
    }

    /// Takes a node that is not in the store.
    fn emit(&mut self, id: NodeId, node: &Node) -> Result<(), Error> {
        let limit = self.run.budget.tree_pack_size;
        if self.tree_pack.as_ref().is_some_and(|pack| !pack.has_room(limit)) {
            self.send_nodes()?;
        }
        let pack = self.tree_pack.get_or_insert_with(|| PackWriter::new(PackKind::Tree, limit));
        let sealed = self.sealer.seal(node.as_bytes())?;
        pack.push(*id.as_bytes(), node.as_bytes().len(), sealed);
        Ok(())
    }

    /// Sends the nodes gathered so far, once everything below them is durable.
    fn send_nodes(&mut self) -> Result<(), Error> {
        self.settle_blocks()?;
        let Some(pack) = self.tree_pack.take() else { return Ok(()) };
        let count = pack.len() as u64;
        let pack = self.run.link.put_pack(pack.finish());
        let began = Instant::now();
        pack.wait()?;
        self.shipped += began.elapsed();
        self.run.count(self.disk, |counts| counts.nodes += count);
        Ok(())
    }

    /// Waits until every block that was ever offered is durable in the store.
    fn settle_blocks(&mut self) -> Result<(), Error> {
        self.ask()?;
        let (reply, done) = sync_channel(1);
        let barrier = ToPacker::Barrier { issued: self.issued, reply };
        self.packer.send(barrier).map_err(|_| Error::Aborted)?;
        let began = Instant::now();
        let settled = loop {
            match done.recv_timeout(LOOK_UP) {
                Ok(()) => break Ok(()),
                // A stage between here and the packer may have failed: what the packer counts on will not come.
                Err(RecvTimeoutError::Timeout) => self.run.check()?,
                Err(RecvTimeoutError::Disconnected) => break Err(Error::Aborted),
            }
        };
        self.settled += began.elapsed();
        settled
    }
}
