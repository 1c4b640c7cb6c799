//! Writing a run, in one pass and little memory: its filters and fences, about 1.2 bytes an object, are held until its end.

use crate::filter::Builder;
use crate::format::*;
use crate::run::{Found, Run};
use crate::table::{Slot, WHOLE};
use crate::{Files, NOWHERE, PackAbout, Prefix, RUN_ENDING};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that are given to the system at once.
const CHUNK: usize = 1 << 20;
/// Pages of a run that are read at once when runs become one.
const READ_PAGES: u64 = 64;
/// Ending of a file that is not whole yet.
const PART_ENDING: &str = "part";

/// Why no run was written.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The directory.
    Io(io::Error),
    /// A run that was to become part of it.
    Damaged(PathBuf, String),
    /// It was told to stop.
    Stopped,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

struct Writer<'a> {
    files: &'a dyn Files,
    file: File,
    part: PathBuf,
    chunk: Vec<u8>,
    page: Vec<u8>,
    footer: Footer,
    kinds: Vec<u8>,
    fences: Vec<u8>,
    stretches: Vec<u8>,
    fingerprints: Vec<u8>,
    twins: Vec<u8>,
    last: Option<Prefix>,
    /// Of the stretch that is being filled.
    keys: Vec<u64>,
    first: u64,
    builder: Builder,
}

impl<'a> Writer<'a> {
    fn new(files: &'a dyn Files, dir: &Path, owner: [u8; 16], packs: &[PackAbout]) -> io::Result<Self> {
        files.create_dir(dir)?;
        let part = dir.join(uuid::Uuid::new_v4().simple().to_string()).with_extension(PART_ENDING);
        Ok(Self {
            files,
            file: files.create(&part)?,
            part,
            chunk: Vec::with_capacity(CHUNK + PAGE),
            page: Vec::with_capacity(PAGE),
            footer: Footer { owner, ..Footer::default() },
            kinds: packs.iter().map(|pack| pack.kind).collect(),
            fences: Vec::new(),
            stretches: Vec::new(),
            fingerprints: Vec::new(),
            twins: Vec::new(),
            last: None,
            keys: Vec::with_capacity(STRETCH_ENTRIES),
            first: 0,
            builder: Builder::default(),
        })
    }

    /// Adds an object, in order; its pack is the place in the run's list.
    fn push(&mut self, slot: &Slot) -> io::Result<()> {
        let Slot { prefix, pack, entry } = slot;
        if self.page.is_empty() {
            self.fences.extend_from_slice(&fence(prefix).to_le_bytes());
        }
        if self.keys.is_empty() && self.footer.entries.is_multiple_of(STRETCH_ENTRIES as u64) {
            self.first = head(prefix);
        }
        if self.last == Some(*prefix) {
            self.twins.extend_from_slice(prefix);
            self.footer.twins[slot_of_kind(self.kinds[*pack as usize])] += 1;
        }
        // A twin that begins a stretch is a key of that one too.
        if self.last != Some(*prefix) || self.keys.is_empty() {
            self.keys.push(key(prefix));
        }
        self.last = Some(*prefix);
        self.page.extend_from_slice(prefix);
        self.page.extend_from_slice(&pack.to_le_bytes());
        self.page.extend_from_slice(&entry.to_le_bytes());
        self.footer.entries += 1;
        if self.page.len() == PAGE_ENTRIES * ENTRY {
            self.end_page()?;
        }
        if self.footer.entries.is_multiple_of(STRETCH_ENTRIES as u64) {
            self.end_stretch();
        }
        Ok(())
    }

    fn end_page(&mut self) -> io::Result<()> {
        let number = self.footer.pages() - 1;
        self.page.resize(PAGE, 0);
        seal(&mut self.page, number);
        let page = std::mem::take(&mut self.page);
        self.write(&page)?;
        self.page = page;
        self.page.clear();
        Ok(())
    }

    fn end_stretch(&mut self) {
        let shape = self.builder.build(&mut self.keys, &mut self.fingerprints);
        self.stretches.extend_from_slice(&stretch_to_bytes(self.first, &shape));
        self.footer.stretches += 1;
        self.keys.clear();
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.chunk.extend_from_slice(bytes);
        if self.chunk.len() >= CHUNK { self.write_chunk() } else { Ok(()) }
    }

    fn write_chunk(&mut self) -> io::Result<()> {
        self.files.write(&mut self.file, &self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    /// Writes what stands behind the pages, and gives the file its name.
    fn finish(
        mut self,
        dir: &Path,
        packs: Vec<PackAbout>,
        ids: &mut dyn FnMut(u32) -> Result<Vec<u8>, Failed>,
    ) -> Result<Found, Failed> {
        if !self.page.is_empty() {
            self.end_page()?;
        }
        if !self.keys.is_empty() {
            self.end_stretch();
        }
        for local in 0..u32::try_from(packs.len()).expect("pack numbers are 32 bits") {
            let mut bytes = ids(local)?;
            seal(&mut bytes, local.into());
            self.write(&bytes)?;
        }
        let list: Vec<u8> = packs.iter().flat_map(pack_to_bytes).collect();
        self.footer.packs = u32::try_from(packs.len()).expect("pack numbers are 32 bits");
        self.footer.fingerprints = self.fingerprints.len() as u64;
        self.footer.packs_hash = blake3::hash(&list).into();
        let mut hasher = blake3::Hasher::new();
        let parts = [&mut self.fences, &mut self.stretches, &mut self.fingerprints, &mut self.twins];
        let parts = parts.map(std::mem::take);
        parts.iter().for_each(|part| _ = hasher.update(part));
        self.footer.lookup_hash = hasher.finalize().into();
        self.write(&list)?;
        parts.iter().try_for_each(|part| self.write(part))?;
        let footer = self.footer.to_bytes();
        self.write(&footer)?;
        self.write_chunk()?;
        self.files.sync(&self.file)?;
        let path = self.part.with_extension(RUN_ENDING);
        self.files.rename(&self.part, &path)?;
        // Before what it stands for is removed.
        self.files.sync_dir(dir)?;
        Ok(Found { file: self.file, path, footer: self.footer, packs })
    }
}

/// Runs a write; what it leaves where it fails is removed.
fn written(
    files: &dyn Files,
    dir: &Path,
    owner: [u8; 16],
    packs: Vec<PackAbout>,
    write: &mut dyn FnMut(&mut Writer<'_>) -> Result<(), Failed>,
    ids: &mut dyn FnMut(u32) -> Result<Vec<u8>, Failed>,
) -> Result<Found, Failed> {
    let mut writer = Writer::new(files, dir, owner, &packs)?;
    let part = writer.part.clone();
    let outcome = match write(&mut writer) {
        Ok(()) => writer.finish(dir, packs, ids),
        Err(failed) => Err(failed),
    };
    if outcome.is_err() {
        // One that stays is removed by the next who opens the cache.
        let _ = files.remove(&part);
    }
    outcome
}

/// Writes what is in memory, in order; slots have the reader's numbers, `packs` too.
pub(crate) fn write_table(
    files: &dyn Files,
    dir: &Path,
    owner: [u8; 16],
    slots: &[Slot],
    packs: &BTreeMap<u32, PackAbout>,
) -> Result<Run, Failed> {
    let numbers: Vec<u32> = packs.keys().copied().collect();
    let locals: HashMap<u32, u32> = numbers.iter().copied().zip(0..).collect();
    let abouts: Vec<PackAbout> = packs.values().copied().collect();
    let counts: Vec<u32> = abouts.iter().map(|about| about.entries).collect();
    // What the packs hold in their own order: 16 bytes an object beside the 24 of the slots.
    let ids: RefCell<Vec<Vec<u8>>> =
        RefCell::new(counts.iter().map(|count| vec![0; ids_size(*count)]).collect());
    let found = written(
        files,
        dir,
        owner,
        abouts,
        &mut |writer| {
            let mut ids = ids.borrow_mut();
            for slot in slots {
                let local = locals[&slot.pack];
                let (bytes, entry) = (&mut ids[local as usize], (slot.entry & !WHOLE) as usize);
                bytes[entry * PREFIX..][..PREFIX].copy_from_slice(&slot.prefix);
                if slot.entry & WHOLE != 0 {
                    bytes[counts[local as usize] as usize * PREFIX + entry / 8] |= 1 << (entry % 8);
                }
                writer.push(&Slot { pack: local, ..*slot })?;
            }
            Ok(())
        },
        &mut |local| Ok(std::mem::take(&mut ids.borrow_mut()[local as usize])),
    )?;
    Ok(found.with_numbers(numbers))
}

/// One run that is read from its start.
struct Input<'a> {
    run: &'a Run,
    /// Places in the new run, by the place in this.
    locals: Vec<u32>,
    page: u64,
    slots: Vec<Slot>,
    at: usize,
}

impl Input<'_> {
    /// The next one that is to be kept.
    fn head(&mut self) -> Result<Option<Slot>, Failed> {
        loop {
            while let Some(slot) = self.slots.get(self.at) {
                let local = self.locals[slot.pack as usize];
                if local != NOWHERE {
                    return Ok(Some(Slot { pack: local, ..*slot }));
                }
                self.at += 1;
            }
            self.slots.clear();
            self.at = 0;
            let damaged = |reason| Failed::Damaged(self.run.path.clone(), reason);
            let read = self.run.read_pages(self.page, READ_PAGES, &mut self.slots).map_err(damaged)?;
            if read == 0 {
                return Ok(None);
            }
            self.page += read;
        }
    }
}

/// Writes what several runs have, without what is nowhere any more.
pub(crate) fn merge(
    files: &dyn Files,
    dir: &Path,
    owner: [u8; 16],
    runs: &[Arc<Run>],
    stop: &AtomicBool,
) -> Result<Run, Failed> {
    let (mut numbers, mut abouts, mut sources, mut inputs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for run in runs {
        let packs = run.packs().map_err(|reason| Failed::Damaged(run.path.clone(), reason))?;
        let mut locals = vec![NOWHERE; packs.len()];
        for ((local, new), (about, number)) in (0u32..).zip(&mut locals).zip(packs.iter().zip(run.numbers()))
        {
            if *number != NOWHERE {
                *new = u32::try_from(numbers.len()).expect("pack numbers are 32 bits");
                numbers.push(*number);
                abouts.push(*about);
                sources.push((run, local));
            }
        }
        inputs.push(Input { run, locals, page: 0, slots: Vec::new(), at: 0 });
    }
    let packs = abouts.clone();
    let found = written(
        files,
        dir,
        owner,
        abouts,
        &mut |writer| {
            let mut heads: Vec<Option<(u128, Slot)>> = Vec::with_capacity(inputs.len());
            let keyed = |slot: Slot| (u128::from_be_bytes(slot.prefix), slot);
            for input in &mut inputs {
                heads.push(input.head()?.map(keyed));
            }
            loop {
                let least =
                    heads.iter().enumerate().filter_map(|(at, head)| Some((head.as_ref()?.0, at))).min();
                let Some((_, at)) = least else { return Ok(()) };
                if let Some((_, slot)) = &heads[at] {
                    writer.push(slot)?;
                }
                inputs[at].at += 1;
                heads[at] = inputs[at].head()?.map(keyed);
                if writer.page.is_empty() && stop.load(Ordering::Relaxed) {
                    return Err(Failed::Stopped);
                }
            }
        },
        &mut |local| {
            let (run, old) = sources[local as usize];
            let entries = packs[local as usize].entries;
            run.ids_bytes(old, entries).map_err(|reason| Failed::Damaged(run.path.clone(), reason))
        },
    )?;
    Ok(found.with_numbers(numbers))
}

/// Removes what writers left who died: files that nobody has locked.
pub(crate) fn clean(files: &dyn Files, dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|end| end == PART_ENDING)
            && File::open(&path).is_ok_and(|file| file.try_lock().is_ok())
        {
            // What cannot be removed is in nobody's way.
            let _ = files.remove(&path);
        }
    }
}
