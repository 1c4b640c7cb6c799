//! The index: its table, its runs, and when the one becomes the other.

use crate::format::{KINDS, slot_of_kind};
use crate::near::Near;
use crate::run::{self, Found, Run};
use crate::table::{Added, Slot, Table};
use crate::writer::{self, Failed};
use crate::{Files, Limits, Location, PackAbout, Prefix, SystemFiles};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, TryLockError};
use std::thread::JoinHandle;

/// Runs of about one length that become one.
const FAN_IN: usize = 4;
/// Shortest length of runs that counts as one of its own.
const SHORTEST: u64 = 1 << 16;
/// Most objects of runs that become one at once, in a second or two; more do so in a thread.
const AT_ONCE: u64 = 4 << 20;
/// How often a directory is looked at again because a run in it vanished meanwhile.
const LOOKS: usize = 3;
const LOCKED: &str = "no panic while the index is locked";

/// An index. Dropping it gives up a long merge, which the next one who adds something does.
pub struct Index {
    inner: Arc<Inner>,
    merger: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    owner: [u8; 16],
    dir: Option<PathBuf>,
    files: Arc<dyn Files>,
    limits: Limits,
    tables: RwLock<Tables>,
    near: Near,
    /// Held by who writes the table.
    flushing: Mutex<()>,
    merging: Mutex<()>,
    /// Objects in the table with which it is written.
    full_at: AtomicUsize,
    stop: AtomicBool,
}

struct Tables {
    memory: Arc<Memory>,
    /// What is being written.
    frozen: Option<Arc<Memory>>,
    runs: Vec<Arc<Run>>,
}

/// Packs that are in no run.
struct Memory {
    table: Table,
    packs: Mutex<BTreeMap<u32, PackAbout>>,
    count: AtomicUsize,
    twins: [AtomicU64; KINDS],
}

/// A run that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// Its file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// How large an index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Objects in the table.
    pub in_table: u64,
    /// Packs in the table.
    pub table_packs: u64,
    /// Objects in runs.
    pub in_runs: u64,
    /// Runs.
    pub runs: u64,
    /// Bytes of memory, in all.
    pub memory: u64,
    /// Of that for runs: what grows with the objects in them.
    pub runs_memory: u64,
}

impl Memory {
    fn new() -> Self {
        Self {
            table: Table::new(),
            packs: Mutex::default(),
            count: AtomicUsize::new(0),
            twins: Default::default(),
        }
    }

    fn packs(&self) -> MutexGuard<'_, BTreeMap<u32, PackAbout>> {
        self.packs.lock().expect(LOCKED)
    }

    /// Adds a pack unless it is there.
    fn add(&self, number: u32, about: PackAbout, slots: &mut dyn Iterator<Item = Slot>) {
        if self.packs().insert(number, about).is_some() {
            return;
        }
        let (mut count, mut twins) = (0, 0);
        for slot in slots {
            match self.table.insert(slot) {
                Added::First => count += 1,
                Added::Twin => (count, twins) = (count + 1, twins + 1),
                Added::Known => twins += 1,
            }
        }
        self.count.fetch_add(count, Ordering::Relaxed);
        self.twins[slot_of_kind(about.kind)].fetch_add(twins, Ordering::Relaxed);
    }
}

impl Index {
    /// An index of `owner`, in `dir` where one is given. What is there is not used before it is
    /// [attached](Self::attach).
    pub fn new(owner: [u8; 16], dir: Option<&Path>, limits: Limits) -> Self {
        Self::with_files(owner, dir, limits, Arc::new(SystemFiles))
    }

    /// [`new`](Self::new) with other writing operations.
    pub fn with_files(owner: [u8; 16], dir: Option<&Path>, limits: Limits, files: Arc<dyn Files>) -> Self {
        if let Some(dir) = dir {
            writer::clean(&*files, dir);
        }
        let tables = Tables { memory: Arc::new(Memory::new()), frozen: None, runs: Vec::new() };
        let inner = Inner {
            owner,
            dir: dir.map(Path::to_owned),
            files,
            limits,
            tables: RwLock::new(tables),
            near: Near::new(limits.near),
            flushing: Mutex::default(),
            merging: Mutex::default(),
            full_at: AtomicUsize::new(limits.table.max(1)),
            stop: AtomicBool::new(false),
        };
        Self { inner: Arc::new(inner), merger: Mutex::default() }
    }

    /// Runs that are in the directory, longest first. Those that are damaged are removed. To be asked before packs are
    /// listed: then a run tells of no pack that is not listed yet.
    pub fn runs(&self) -> Vec<Found> {
        let Some(dir) = &self.inner.dir else { return Vec::new() };
        let remove = |path: &Path| self.inner.remove(path);
        for _ in 1..LOOKS {
            // Else somebody made one of several meanwhile.
            if let (found, false) = run::find(dir, &self.inner.owner, &remove) {
                return found;
            }
        }
        run::find(dir, &self.inner.owner, &remove).0
    }

    /// Takes a run into use, with a number for each of its packs: [`NOWHERE`](crate::NOWHERE) for one that is not there,
    /// or that another run tells of. One without any pack is removed.
    pub fn attach(&self, run: Found, numbers: Vec<u32>) {
        let run = run.with_numbers(numbers);
        match run.members().is_empty() {
            true => self.inner.remove(&run.path),
            false => self.inner.tables.write().expect(LOCKED).runs.push(Arc::new(run)),
        }
    }

    /// Tells of a pack: the prefix of each of its objects, as many as `about` says and in its own order, and whether it has
    /// the full size. Where the table is full it becomes a run.
    pub fn insert(&self, number: u32, about: PackAbout, objects: &mut dyn Iterator<Item = (Prefix, bool)>) {
        let mut slots = (0..about.entries)
            .zip(objects)
            .map(|(entry, (prefix, whole))| Slot::new(prefix, Location { pack: number, entry, whole }));
        let count = {
            // Held until all of it is there: a pack is in one table as a whole.
            let tables = self.inner.tables.read().expect(LOCKED);
            tables.memory.add(number, about, &mut slots);
            tables.memory.count.load(Ordering::Relaxed)
        };
        if count >= self.inner.full_at.load(Ordering::Relaxed) {
            self.flush();
        }
    }

    /// Visits every place of an object in every pack that was told or attached.
    ///
    /// # Errors
    /// A run that cannot be read. What was visited until then is right, but perhaps not all.
    pub fn find(&self, id: &[u8; 32], visit: &mut dyn FnMut(Location)) -> Result<(), Damaged> {
        let prefix: Prefix = id[..16].try_into().expect("16 bytes");
        let tables = self.inner.tables.read().expect(LOCKED);
        tables.memory.table.find(&prefix, visit);
        if let Some(frozen) = &tables.frozen {
            frozen.table.find(&prefix, visit);
        }
        if tables.runs.is_empty() {
            return Ok(());
        }
        let near = self.inner.near.find(&prefix);
        for run in &tables.runs {
            let damaged = |reason| Damaged { path: run.path.clone(), reason };
            let lookup = run.lookup().map_err(damaged)?;
            if let Some(at) = near.iter().find(|at| run.covers(at.pack))
                && lookup.has_no_twin(&prefix)
            {
                visit(*at);
                continue;
            }
            let mut hits = Vec::new();
            run.search(lookup, &prefix, &mut |hit| hits.push(hit)).map_err(damaged)?;
            for hit in hits {
                visit(hit.at);
                self.inner.near.touch(run, hit.local, hit.at).map_err(damaged)?;
            }
        }
        Ok(())
    }

    /// Numbers of the packs that a damaged run tells of; none where it is not in use any more.
    pub fn members(&self, damaged: &Damaged) -> Vec<u32> {
        let tables = self.inner.tables.read().expect(LOCKED);
        let run = tables.runs.iter().find(|run| run.path == damaged.path);
        run.map_or_else(Vec::new, |run| run.members().to_vec())
    }

    /// Gives up a damaged run. What it told of must have been told anew before.
    pub fn discard(&self, damaged: &Damaged) {
        self.inner.tables.write().expect(LOCKED).runs.retain(|run| run.path != damaged.path);
        self.inner.remove(&damaged.path);
    }

    /// Makes what is in the table a run, and of several runs one; whether a run was written. Where it cannot be written,
    /// the table stays, and is tried again when as much again was added.
    pub fn flush(&self) -> bool {
        let written = self.inner.flush();
        if written {
            self.merge();
        }
        written
    }

    /// Makes one of several runs as long as there are enough alike; large ones in a thread.
    fn merge(&self) {
        let inner = &self.inner;
        if !inner.merge_all(AT_ONCE) || inner.pick(u64::MAX).is_none() {
            return;
        }
        let mut merger = self.merger.lock().expect(LOCKED);
        if merger.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let inner = inner.clone();
        let run = move || _ = inner.merge_all(u64::MAX);
        match std::thread::Builder::new().name("index".into()).spawn(run) {
            Ok(running) => *merger = Some(running),
            Err(error) => tracing::warn!(%error, "runs of the index stay many: no thread could be started"),
        }
    }

    /// Waits until nothing is being made of runs any more.
    pub fn settle(&self) {
        let running = self.merger.lock().expect(LOCKED).take();
        if let Some(running) = running {
            // It holds nothing that a panic could have broken.
            let _ = running.join();
        }
    }

    /// Distinct objects of packs of a kind. One that stands in packs of different runs counts for each.
    pub fn count(&self, kind: u8, entries: u64) -> u64 {
        let slot = slot_of_kind(kind);
        let tables = self.inner.tables.read().expect(LOCKED);
        let of = |memory: &Arc<Memory>| memory.twins[slot].load(Ordering::Relaxed);
        let twins = of(&tables.memory)
            + tables.frozen.as_ref().map_or(0, of)
            + tables.runs.iter().map(|run| run.footer.twins[slot]).sum::<u64>();
        entries.saturating_sub(twins)
    }

    /// How large it is.
    pub fn numbers(&self) -> Numbers {
        let tables = self.inner.tables.read().expect(LOCKED);
        let memories = [Some(&tables.memory), tables.frozen.as_ref()];
        let mut found = Numbers { memory: self.inner.near.memory() as u64, ..Numbers::default() };
        for memory in memories.into_iter().flatten() {
            found.in_table += memory.count.load(Ordering::Relaxed) as u64;
            found.table_packs += memory.packs().len() as u64;
            found.memory += memory.table.memory() as u64;
        }
        for run in &tables.runs {
            found.runs += 1;
            found.in_runs += run.footer.entries;
            found.runs_memory += run.memory() as u64;
        }
        found.memory += found.runs_memory;
        found
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        self.settle();
    }
}

impl Inner {
    fn flush(&self) -> bool {
        let Some(dir) = &self.dir else { return false };
        let count = |tables: &Tables| tables.memory.count.load(Ordering::Relaxed);
        // Who finds somebody at it goes on, unless the table is twice what it may be.
        let too_full = count(&self.tables.read().expect(LOCKED)) >= self.limits.table.saturating_mul(2);
        let _alone = match self.flushing.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::WouldBlock) if !too_full => return false,
            Err(_) => self.flushing.lock().expect(LOCKED),
        };
        let frozen = {
            let mut tables = self.tables.write().expect(LOCKED);
            if count(&tables) == 0 {
                return false;
            }
            let frozen = std::mem::replace(&mut tables.memory, Arc::new(Memory::new()));
            tables.frozen = Some(frozen.clone());
            frozen
        };
        let slots = frozen.table.sorted();
        let outcome = writer::write_table(&*self.files, dir, self.owner, &slots, &frozen.packs());
        let mut tables = self.tables.write().expect(LOCKED);
        tables.frozen = None;
        match outcome {
            Ok(run) => {
                tables.runs.push(Arc::new(run));
                self.full_at.store(self.limits.table.max(1), Ordering::Relaxed);
                true
            }
            Err(failed) => {
                // Back into the table, with what came meanwhile.
                tables.memory.take_back(&frozen, &slots);
                let again = count(&tables).saturating_add(self.limits.table);
                self.full_at.store(again, Ordering::Relaxed);
                warn(dir, &failed);
                false
            }
        }
    }

    /// Runs that should become one, with at most so many objects: of the shortest length of which there are enough; or one
    /// of which most is gone.
    fn pick(&self, most: u64) -> Option<Vec<Arc<Run>>> {
        let tables = self.tables.read().expect(LOCKED);
        let mut classes: BTreeMap<u32, Vec<Arc<Run>>> = BTreeMap::new();
        for run in &tables.runs {
            let length = (run.live / SHORTEST).max(1).ilog(FAN_IN as u64);
            classes.entry(length).or_default().push(run.clone());
        }
        let small = |runs: &Vec<Arc<Run>>| runs.iter().map(|run| run.live).sum::<u64>() <= most;
        let hollow = |run: &&Arc<Run>| run.live < run.footer.entries / 2;
        classes
            .into_values()
            .find(|runs| runs.len() >= FAN_IN && small(runs))
            .or_else(|| Some(vec![tables.runs.iter().find(hollow)?.clone()]).filter(small))
    }

    /// Makes one of several runs until there is nothing to do; whether none failed.
    fn merge_all(&self, most: u64) -> bool {
        let Some(dir) = &self.dir else { return true };
        let Ok(_alone) = self.merging.try_lock() else { return true };
        while let Some(runs) = self.pick(most) {
            match writer::merge(&*self.files, dir, self.owner, &runs, &self.stop) {
                Ok(merged) => {
                    {
                        let mut tables = self.tables.write().expect(LOCKED);
                        // One that was found damaged meanwhile was told anew, and is told twice now.
                        tables.runs.retain(|run| !runs.iter().any(|old| Arc::ptr_eq(run, old)));
                        tables.runs.push(Arc::new(merged));
                    }
                    runs.iter().for_each(|old| self.remove(&old.path));
                }
                Err(Failed::Stopped) => return false,
                Err(failed) => {
                    // The next question finds it, and whoever asks makes it anew.
                    if let Failed::Damaged(path, reason) = &failed {
                        runs.iter().filter(|run| run.path == *path).for_each(|run| run.give_up(reason));
                    }
                    warn(dir, &failed);
                    return false;
                }
            }
        }
        true
    }

    fn remove(&self, path: &Path) {
        match self.files.remove(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(run = %path.display(), %error, "a run of the index stays"),
        }
    }
}

impl Memory {
    fn take_back(&self, other: &Self, slots: &[Slot]) {
        for slot in slots {
            self.table.insert(*slot);
        }
        self.packs().append(&mut other.packs());
        self.count.fetch_add(slots.len(), Ordering::Relaxed);
        for (twins, more) in self.twins.iter().zip(&other.twins) {
            twins.fetch_add(more.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

fn warn(dir: &Path, failed: &Failed) {
    let reason = match failed {
        Failed::Io(error) => error.to_string(),
        Failed::Damaged(path, reason) => format!("{}: {reason}", path.display()),
        Failed::Stopped => return,
    };
    tracing::warn!(directory = %dir.display(), reason, "the index was not written; it stays in memory");
}
