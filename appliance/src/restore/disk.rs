//! One disk from its tree to its device.

use super::stages::{Part, Ready, Stretch, Target, feed, open};
use super::writer::{Load, WriteOrder, write_plainly};
use crate::worker::{Errand, Error, Feed, NodesAhead, Patience, Run, queue, threads};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount};
use seal::{FAN_OUT, Node, walk_leaves};
use std::fs::OpenOptions;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use wire::{
    BlocksQuestion, DiskAnswer, DiskDone, PATH_BLOCKS, PATH_DISK_DONE, RestoreDisk, Stage, StageAccount,
};

/// Loads that wait for the writer: as many as it writes at once would be more than enough.
const WAITING: usize = 2;
/// A walk that waits for a load looks up this often: the stage that would bring it may have failed.
const LOOK_UP: Duration = Duration::from_millis(100);

/// Restores one disk. On return every byte of it is on the device, synced.
pub(super) fn restore(run: &Run, index: u16, disk: &RestoreDisk) -> Result<(), Error> {
    let account = run.pass(index, run.budget.loads);
    let device = run.outside.target(disk.userdevice, disk.device)?;
    let file = OpenOptions::new().write(true).open(&device.node).map_err(|source| Error::Target {
        device: device.name.clone(),
        operation: "open for writing",
        source,
    })?;
    let how = if run.has_ring { "io_uring" } else { "pwrite" };
    run.outside.line(&format!("disk {}: writes up to {} by {how}", device.name, disk.size));
    run.count(index, |counts| counts.planned = disk.size);
    let (loads, queue) = tokio::sync::mpsc::channel(WAITING);
    let (done, outcome) = sync_channel(1);
    let written = Arc::new(AtomicU64::new(0));
    let (back, spare) = sync_channel(run.budget.loads);
    (0..run.budget.loads).for_each(|_| back.send(Load::default()).expect("the other end is here"));
    let order = WriteOrder { file, device: device.name.clone(), queue, back, written: written.clone(), done };
    let target = Target { run, device: &device.name, size: disk.size };
    let sink = Sink { run, index, loads, written };
    pipeline(&target, index, disk, sink, order, spare, &outcome)?;
    let done = DiskDone {
        disk: index,
        size: disk.size,
        root: disk.root,
        counts: run.counts()[usize::from(index)],
        bad: wire::BadRanges::default(),
        pacing: wire::Pacing::default(),
    };
    let _: DiskAnswer = run.ledger.ask(|| run.link.ask_patiently(PATH_DISK_DONE, &done, Patience::Long))?;
    drop(account);
    Ok(())
}

/// Where checked stretches go.
struct Sink<'a> {
    run: &'a Run,
    index: u16,
    loads: tokio::sync::mpsc::Sender<Load>,
    written: Arc<AtomicU64>,
}

impl Sink<'_> {
    fn write(&self, ready: Ready) -> Result<(), Error> {
        self.loads.blocking_send(ready.load).map_err(|_| Error::Aborted)?;
        self.run.count(self.index, |counts| {
            counts.shipped = counts.shipped.saturating_add(ByteCount::new(ready.plain));
            counts.sealed = counts.sealed.saturating_add(ByteCount::new(ready.sealed));
            counts.zero = counts.zero.saturating_add(ByteCount::new(ready.zeros));
            counts.moved = ByteCount::new(self.written.load(Ordering::Relaxed));
        });
        Ok(())
    }
}

fn pipeline(
    target: &Target<'_>,
    index: u16,
    disk: &RestoreDisk,
    sink: Sink<'_>,
    order: WriteOrder,
    spare: Receiver<Load>,
    outcome: &Receiver<Result<StageAccount, Error>>,
) -> Result<(), Error> {
    let run = target.run;
    let (stretches_in, stretches) = queue(run.budget.loads);
    let stretches = Arc::new(Mutex::new(stretches));
    let (ready_in, ready) = queue(1);
    let written = sink.written.clone();
    thread::scope(|scope| {
        let mut stages = Vec::new();
        let walked = (|| {
            if run.has_ring {
                if !run.link.send(Errand::Write(order)) {
                    return Err(Error::Aborted);
                }
            } else {
                stages.push(threads::start(scope, "writer", move || {
                    let done = order.done.clone();
                    // The outcome goes the same way as the ring's.
                    let _ = done.send(write_plainly(order));
                    Ok(())
                })?);
            }
            for _ in 0..run.budget.threads {
                let (stretches, ready) = (stretches.clone(), ready_in.clone());
                stages.push(threads::start(scope, "opener", move || {
                    open(target, run.ledger.meter(Stage::Open), &stretches, &ready)
                })?);
            }
            let (fed_in, fed) = sync_channel(1);
            stages.push(threads::start(scope, "feeder", move || {
                let count = feed(&ready, |ready| sink.write(ready))?;
                // Nobody waits any more: the walk failed, and its error is reported.
                let _ = fed_in.send(count);
                Ok(())
            })?);
            drop((stretches, ready_in));
            let walk = Walk {
                run,
                index,
                size: disk.size,
                blank: disk.blank,
                spare,
                out: stretches_in,
                state: State::default(),
            };
            walk.run(disk).map(|count| (count, fed))
        })();
        // The writer ends when the feeder is gone, with or without all pieces: what it says counts only if all were
        // fed.
        let complete = walked.and_then(|(count, fed)| all_fed(count, &fed));
        let complete = complete.and_then(|()| outcome.recv().unwrap_or(Err(Error::Aborted)));
        let complete = complete.map(|writer| run.ledger.add(&writer));
        let complete = match complete {
            // Perhaps it was the writer that failed: its word comes once the feeder has let go of the queue.
            Err(Error::Aborted) => Err(outcome.recv().ok().and_then(Result::err).unwrap_or(Error::Aborted)),
            other => other,
        };
        threads::join(complete, stages)
    })?;
    run.count(index, |counts| counts.moved = ByteCount::new(written.load(Ordering::Relaxed)));
    Ok(())
}

fn all_fed(count: u64, fed: &mpsc::Receiver<u64>) -> Result<(), Error> {
    match fed.recv() {
        Ok(found) if found == count => Ok(()),
        _ => Err(Error::Aborted),
    }
}

/// Walks the tree and cuts the disk into stretches.
struct Walk<'a> {
    run: &'a Run,
    index: u16,
    size: ByteCount,
    blank: bool,
    /// Loads that are free.
    spare: Receiver<Load>,
    out: Feed<Stretch>,
    state: State,
}

#[derive(Default)]
struct State {
    parts: Vec<Part>,
    blocks: Vec<BlockIndex>,
    /// Stretches sent.
    sent: u64,
    /// Everything before this byte is in a stretch, or is left out as blank.
    reached: u64,
}

impl Walk<'_> {
    /// Walks all of it; returns how many stretches there were.
    fn run(mut self, disk: &RestoreDisk) -> Result<u64, Error> {
        let mut nodes = NodesAhead::new(&self.run.link, self.index, None);
        walk_leaves(&self.run.key, &disk.tree(), &mut nodes, &mut |index, leaf| self.visit(index, leaf))?;
        self.run.ledger.asked(nodes.waited());
        self.leave_zeros(self.size.get());
        self.send()?;
        Ok(self.state.sent)
    }

    fn visit(&mut self, index: u64, leaf: &Node) -> Result<(), Error> {
        self.run.check()?;
        for slot in 0..FAN_OUT {
            let block = BlockIndex::new(index * FAN_OUT + slot);
            let Some(id) = leaf.block(slot as usize) else { continue };
            let Some(size) = self.size.block_size_at(block) else {
                return Err(Error::Order {
                    reason: format!("its tree has block {block}, the disk ends before"),
                });
            };
            let offset = block.get() * BLOCK_SIZE;
            self.leave_zeros(offset);
            self.state.reached = offset + size.get();
            self.state.parts.push(Part::Block(block, id));
            self.state.blocks.push(block);
            if self.state.blocks.len() == self.run.budget.answer_blocks {
                self.send()?;
            }
        }
        Ok(())
    }

    /// Zeros from what was reached up to `end`.
    fn leave_zeros(&mut self, end: u64) {
        let size = end - self.state.reached;
        if size == 0 {
            return;
        }
        if self.blank {
            // The plan shrinks by what needs no write, so that it equals what is written in the end.
            self.run.count(self.index, |counts| {
                counts.planned = ByteCount::new(counts.planned.get().saturating_sub(size));
            });
        } else {
            self.state.parts.push(Part::Zeros(self.state.reached, size));
        }
        self.state.reached = end;
    }

    fn send(&mut self) -> Result<(), Error> {
        if self.state.parts.is_empty() {
            return Ok(());
        }
        let mut load = self.spare_load()?;
        std::mem::swap(&mut load.parts, &mut self.state.parts);
        let question = BlocksQuestion { disk: self.index, blocks: std::mem::take(&mut self.state.blocks) };
        let answer = (!question.blocks.is_empty()).then(|| {
            let memory = std::mem::take(&mut load.answer);
            self.run.link.start_into(PATH_BLOCKS, &question, memory)
        });
        self.state.blocks = question.blocks;
        self.state.blocks.clear();
        let stretch = Stretch { sequence: self.state.sent, load, answer };
        self.state.sent += 1;
        self.out.send(stretch).map_err(|_| Error::Aborted)
    }

    /// A load that is free; waits until one was written.
    fn spare_load(&self) -> Result<Load, Error> {
        loop {
            match self.spare.recv_timeout(LOOK_UP) {
                Ok(load) => return Ok(load),
                Err(RecvTimeoutError::Timeout) => self.run.check()?,
                // The writer is gone, and says why itself.
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Aborted),
            }
        }
    }
}
