//! One disk from its device to its sealed tree: in one pass, or in two where an audit finds that the first was told
//! too little.

use super::Carry;
use super::judge::{Judge, Outlet, Verdict};
use super::packer::{IN_FLIGHT, Packer};
use super::stages::{hash, read, rest, seal, sift};
use crate::platform::Disk;
use crate::worker::{Error, NodesAhead, Patience, Run, queue, threads};
use blocks::{BLOCK_SIZE, BadGatherer, BlockIndex, ByteCount, ChangedBlocks, ReadPlan};
use diskio::{Care, Choice, Source};
use seal::TreeBuilder;
use std::sync::{Arc, Mutex};
use std::thread;
use wire::{
    BackupDisk, BitmapQuestion, DiskAnswer, DiskCounts, DiskDone, PATH_BITMAP, PATH_DISK_DONE, Stage,
};

/// The backup of one disk.
pub(super) struct DiskBackup<'a> {
    pub(super) run: &'a Run,
    pub(super) level: i32,
    /// Position in the order's list of disks.
    pub(super) index: u16,
    pub(super) disk: &'a BackupDisk,
    /// Whether to go on without what cannot be read.
    pub(super) skip_bad_blocks: bool,
}

/// What one pass reads.
struct Scope {
    /// Every block that is read.
    blocks: ChangedBlocks,
    /// Those among them that are read only to be compared with the base.
    sample: Option<ChangedBlocks>,
}

impl DiskBackup<'_> {
    /// Backs up the disk. On return the store has its whole tree.
    pub(super) fn run(&self, carry: &mut Carry) -> Result<(), Error> {
        let (run, disk) = (self.run, self.disk);
        let device = run.outside.source(disk.userdevice, disk.size)?;
        let mut account = run.pass(self.index, IN_FLIGHT);
        let Verdict { tree, bad } = match self.pass(carry, &device, &self.scope()?)? {
            Some(verdict) => verdict,
            None => {
                drop(account);
                account = run.pass(self.index, IN_FLIGHT);
                let scope = Scope { blocks: self.all()?, sample: None };
                self.pass(carry, &device, &scope)?.expect("without a sample nothing is in doubt")
            }
        };
        let pacing = carry.pace.take_account();
        if pacing.is_held_back() {
            run.outside.line(&format!("disk {}: {pacing}", device.name));
        }
        let (counts, root) = (self.counts(), tree.root);
        let done = DiskDone { disk: self.index, size: tree.size, root, counts, bad, pacing };
        let answer: DiskAnswer =
            run.ledger.ask(|| run.link.ask_patiently(PATH_DISK_DONE, &done, Patience::Long))?;
        drop(account);
        let ours = tree.id(&run.key);
        if answer.tree != ours {
            return Err(Error::TreeId { userdevice: disk.userdevice, store: answer.tree, ours });
        }
        Ok(())
    }

    fn counts(&self) -> DiskCounts {
        self.run.counts()[usize::from(self.index)]
    }

    fn all(&self) -> Result<ChangedBlocks, Error> {
        ChangedBlocks::all(self.disk.size).map_err(|source| self.bad_bitmap(source))
    }

    fn bad_bitmap(&self, source: blocks::BitmapError) -> Error {
        Error::Bitmap { userdevice: self.disk.userdevice, source }
    }

    /// What the order asks for.
    fn scope(&self) -> Result<Scope, Error> {
        let disk = self.disk;
        if !disk.start.has_bitmap() {
            return Ok(Scope { blocks: self.all()?, sample: None });
        }
        let mut blocks = self.changed()?;
        let sample = disk.audit.map(|audit| audit.sample(&blocks));
        if let Some(sample) = &sample {
            blocks.union(sample);
        }
        Ok(Scope { blocks, sample })
    }

    /// The order's bitmap, and what the disk gained.
    fn changed(&self) -> Result<ChangedBlocks, Error> {
        let disk = self.disk;
        // Its size is known, so a larger answer is cut off before it takes memory.
        let size =
            usize::try_from(disk.size.blocks_ceil().get().div_ceil(8)).expect("bounded by MAX_DISK_SIZE");
        let run = self.run;
        let bytes =
            run.ledger.ask(|| run.link.ask_raw(PATH_BITMAP, &BitmapQuestion { disk: self.index }, size))?;
        let mut changed =
            ChangedBlocks::from_xapi(&bytes, disk.size).map_err(|source| self.bad_bitmap(source))?;
        // What the disk gained was in no base, whatever the bitmap says. Asked first: of a disk that did not grow,
        // `insert_growth` would mark a short last block.
        if let Some(base) = disk.start.base().filter(|base| base.size < disk.size) {
            changed.insert_growth(base.size);
        }
        Ok(changed)
    }

    /// Reads once and gives the tree; `None` where a sampled block differs from the base. Then the tree is worth
    /// nothing, but every block that differed is durable in the store all the same.
    fn pass(&self, carry: &mut Carry, device: &Disk, scope: &Scope) -> Result<Option<Verdict>, Error> {
        let (run, size) = (self.run, self.disk.size);
        let planned = byte_count(&scope.blocks, size);
        run.count(self.index, |counts| counts.planned = counts.planned.saturating_add(planned));
        let source = Source::open(&device.node, &device.name).map_err(|source| self.unreadable(source))?;
        let choice = if run.outside.may_use_io_uring() { Choice::Best } else { Choice::Pread };
        let give_up = self.skip_bad_blocks.then(|| diskio::bad_limit(size));
        let mut care = Care::new(|pause| rest(run, pause).is_ok())
            .giving_up(give_up)
            .with_clock(|| run.outside.uptime());
        if let Some(seam) = run.outside.seam(self.disk.userdevice) {
            care = care.with_seam(seam);
        }
        let engine = diskio::engine(source, &carry.pool, choice, care);
        let (name, how) = (&device.name, engine.name());
        let line = match &scope.sample {
            None => format!("disk {name}: reads {planned} of {size} by {how}"),
            Some(sample) => {
                let audited = byte_count(sample, size);
                format!("disk {name}: reads {planned} of {size} by {how}, {audited} of it to audit")
            }
        };
        run.outside.line(&line);
        let verdict = self.pipeline(carry, scope, planned, engine)?;
        if scope.sample.is_some() {
            run.outside.line(&format!("disk {name}: {}", audit_result(&self.counts())));
        }
        if let Some(Verdict { bad, .. }) = verdict.as_ref().filter(|verdict| !verdict.bad.is_empty()) {
            run.outside.line(&format!("disk {name}: CANNOT BE READ: {bad}; zeros are saved there"));
        }
        Ok(verdict)
    }

    fn unreadable(&self, source: diskio::Error) -> Error {
        Error::Read { disk: self.index, userdevice: self.disk.userdevice, source }
    }

    fn pipeline(
        &self,
        carry: &mut Carry,
        scope: &Scope,
        planned: ByteCount,
        engine: Box<dyn diskio::ReadEngine + '_>,
    ) -> Result<Option<Verdict>, Error> {
        let Self { run, level, index, disk, .. } = *self;
        let builder = TreeBuilder::new(run.key.clone(), disk.size, disk.start.base())
            .map_err(|source| Error::Base { userdevice: disk.userdevice, source })?;
        let max_read = ByteCount::new(run.budget.read_size as u64);
        let plan = ReadPlan::new(&scope.blocks, disk.size, max_read);
        let threads_count = run.budget.threads;
        let (chunks_in, chunks) = queue(threads_count);
        let (hashed_in, hashed) = queue(threads_count);
        let (batches_in, batches) = queue(run.budget.known_in_flight.saturating_sub(2));
        let (unknown_in, unknown) = queue(threads_count);
        let (packer_in, to_packer) = queue(threads_count);
        let (chunks, unknown) = (Arc::new(Mutex::new(chunks)), Arc::new(Mutex::new(unknown)));
        let Carry { pool, recent, spare, around, pace } = carry;
        let (around, pool) = (&*around, &*pool);
        let outlet = Outlet::new(run, index, around, level, batches_in, packer_in.clone())?;
        let nodes = NodesAhead::new(&run.link, index, Some(&scope.blocks));
        let sample = scope.sample.as_ref();
        let judge = Judge {
            run,
            disk: index,
            planned,
            pool,
            recent,
            builder,
            nodes,
            outlet,
            sample,
            doubt: false,
            bad: BadGatherer::default(),
        };
        let unreadable = |source| self.unreadable(source);
        thread::scope(|scope| {
            // A stage owns its ends of the queues, and the shared ones are dropped with the last stage that uses
            // them: when one stops, its neighbours see their queue end.
            let mut stages = Vec::new();
            let started = (|| {
                stages.push(threads::start(scope, "reader", move || {
                    read(run, engine, plan, pace, pool, &chunks_in, unreadable)
                })?);
                for _ in 0..threads_count {
                    let (chunks, hashed) = (chunks.clone(), hashed_in.clone());
                    stages.push(threads::start(scope, "hasher", move || {
                        hash(&run.key, run.ledger.meter(Stage::Hash), around, &chunks, &hashed)
                    })?);
                    let (unknown, packer) = (unknown.clone(), packer_in.clone());
                    stages.push(threads::start(scope, "sealer", move || {
                        run.or_abort(seal(level, run.ledger.meter(Stage::Seal), around, &unknown, &packer))
                    })?);
                }
                let packer = packer_in.clone();
                stages.push(threads::start(scope, "sifter", move || {
                    run.or_abort(sift(run, index, around, &batches, &unknown_in, &packer))
                })?);
                stages.push(threads::start(scope, "packer", move || {
                    Packer::new(run, index, around, spare).run(&to_packer)
                })?);
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
}

/// Bytes of a set of blocks on a disk of `size`.
fn byte_count(blocks: &ChangedBlocks, size: ByteCount) -> ByteCount {
    let whole = blocks.count().get() * BLOCK_SIZE;
    let last = size.blocks_ceil().get().saturating_sub(1);
    let last_size = size.block_size_at(BlockIndex::new(last)).map_or(BLOCK_SIZE, ByteCount::get);
    let short = if blocks.contains(BlockIndex::new(last)) { BLOCK_SIZE - last_size } else { 0 };
    ByteCount::new(whole - short)
}

/// What an audit found, for people.
fn audit_result(counts: &DiskCounts) -> String {
    let DiskCounts { audited, mismatched, first_mismatch, .. } = counts;
    match first_mismatch {
        None => format!("audit of {audited}: all of it is as in the base"),
        Some(first) => format!(
            "AUDIT ALARM: {mismatched} of {audited} differ from the base and were not listed as changed, first block \
             {first}; the whole disk is read"
        ),
    }
}
