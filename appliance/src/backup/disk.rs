//! One disk from its device to its sealed tree.

use super::Carry;
use super::judge::{Judge, Outlet};
use super::packer::Packer;
use super::stages::{hash, read, seal, sift};
use crate::worker::{Error, NodesAhead, Patience, Run, threads};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ChangedBlocks, ReadPlan};
use diskio::{Choice, Source};
use seal::{Tree, TreeBuilder};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;
use wire::{BackupDisk, BitmapQuestion, DiskAnswer, DiskDone, PATH_BITMAP, PATH_DISK_DONE};

/// Backs up one disk. On return the store has its whole tree.
pub(super) fn back_up(
    run: &Run,
    carry: &mut Carry,
    level: i32,
    index: u16,
    disk: &BackupDisk,
) -> Result<(), Error> {
    let device = run.outside.source(disk.userdevice, disk.size)?;
    let source = Source::open(&device.node, &device.name)?;
    let changed = blocks_to_read(run, index, disk)?;
    let planned = planned_bytes(&changed, disk.size);
    run.count(index, |counts| counts.planned = planned);
    let choice = if run.outside.may_use_io_uring() { Choice::Best } else { Choice::Pread };
    let engine = diskio::engine(source, &carry.pool, choice);
    run.outside.line(&format!("disk {}: reads {planned} of {} by {}", device.name, disk.size, engine.name()));
    let tree = pipeline(run, carry, level, index, disk, &changed, engine)?;
    let counts = run.counts()[usize::from(index)];
    let done = DiskDone { disk: index, size: tree.size, root: tree.root, counts };
    let answer: DiskAnswer = run.link.ask_patiently(PATH_DISK_DONE, &done, Patience::Long)?;
    let ours = tree.id(&run.key);
    if answer.tree != ours {
        return Err(Error::TreeId { userdevice: disk.userdevice, store: answer.tree, ours });
    }
    Ok(())
}

fn blocks_to_read(run: &Run, index: u16, disk: &BackupDisk) -> Result<ChangedBlocks, Error> {
    let bad = |source| Error::Bitmap { userdevice: disk.userdevice, source };
    if !disk.start.has_bitmap() {
        return ChangedBlocks::all(disk.size).map_err(bad);
    }
    // Its size is known, so a larger answer is cut off before it takes memory.
    let size = usize::try_from(disk.size.blocks_ceil().get().div_ceil(8)).expect("bounded by MAX_DISK_SIZE");
    let bytes = run.link.ask_raw(PATH_BITMAP, &BitmapQuestion { disk: index }, size)?;
    let mut changed = ChangedBlocks::from_xapi(&bytes, disk.size).map_err(bad)?;
    // What the disk gained was in no base, whatever the bitmap says. Asked first: of a disk that did not grow,
    // `insert_growth` would mark a short last block.
    if let Some(base) = disk.start.base().filter(|base| base.size < disk.size) {
        changed.insert_growth(base.size);
    }
    Ok(changed)
}

fn planned_bytes(changed: &ChangedBlocks, size: ByteCount) -> ByteCount {
    let whole = changed.count().get() * BLOCK_SIZE;
    let last = size.blocks_ceil().get().saturating_sub(1);
    let last_size = size.block_size_at(BlockIndex::new(last)).map_or(BLOCK_SIZE, ByteCount::get);
    let short = if changed.contains(BlockIndex::new(last)) { BLOCK_SIZE - last_size } else { 0 };
    ByteCount::new(whole - short)
}

fn pipeline(
    run: &Run,
    carry: &mut Carry,
    level: i32,
    index: u16,
    disk: &BackupDisk,
    changed: &ChangedBlocks,
    engine: Box<dyn diskio::ReadEngine>,
) -> Result<Tree, Error> {
    let base = disk.start.base();
    let builder = TreeBuilder::new(run.key.clone(), disk.size, base)
        .map_err(|source| Error::Base { userdevice: disk.userdevice, source })?;
    let max_read = ByteCount::new(run.budget.read_size as u64);
    let plan = ReadPlan::new(changed, disk.size, max_read);
    let threads_count = run.budget.threads;
    let (chunks_in, chunks) = sync_channel(threads_count);
    let (hashed_in, hashed) = sync_channel(threads_count);
    let (batches_in, batches) = sync_channel(run.budget.known_in_flight.saturating_sub(2));
    let (unknown_in, unknown) = sync_channel(threads_count);
    let (packer_in, to_packer) = sync_channel(threads_count);
    let (chunks, unknown) = (Arc::new(Mutex::new(chunks)), Arc::new(Mutex::new(unknown)));
    let outlet = Outlet::new(run, index, level, batches_in, packer_in.clone())?;
    let nodes = NodesAhead::new(&run.link, index, Some(changed));
    let Carry { pool, recent, spare } = carry;
    let planned = planned_bytes(changed, disk.size);
    let judge = Judge { run, disk: index, planned, pool, recent, builder, nodes, outlet };
    thread::scope(|scope| {
        // A stage owns its ends of the queues, and the shared ones are dropped with the last stage that uses them:
        // when one stops, its neighbours see their queue end.
        let mut stages = Vec::new();
        let started = (|| {
            stages.push(threads::start(scope, "reader", move || read(run, engine, plan, &chunks_in))?);
            for _ in 0..threads_count {
                let (chunks, hashed) = (chunks.clone(), hashed_in.clone());
                stages.push(threads::start(scope, "hasher", move || hash(&run.key, &chunks, &hashed))?);
                let (unknown, packer) = (unknown.clone(), packer_in.clone());
                stages.push(threads::start(scope, "sealer", move || seal(level, &unknown, &packer))?);
            }
            let packer = packer_in.clone();
            stages.push(threads::start(scope, "sifter", move || {
                sift(run, index, &batches, &unknown_in, &packer)
            })?);
            let packer = Packer::new(run, index, spare);
            stages.push(threads::start(scope, "packer", move || packer.run(&to_packer))?);
            Ok(())
        })();
        drop((chunks, unknown, hashed_in, packer_in));
        let outcome = match started {
            Ok(()) => judge.run(&hashed),
            Err(error) => {
                drop(judge);
                Err(error)
            }
        };
        drop(hashed);
        threads::join(outcome, stages)
    })
}
