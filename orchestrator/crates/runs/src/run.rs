//! Reading a run.

use crate::filter::{self, Shape};
use crate::format::{self, *};
use crate::table::{Slot, WHOLE};
use crate::{Location, NOWHERE, PackAbout, Prefix, RUN_ENDING};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Twins that are kept in memory, 16 MiB of them; a run with more reads pages where others ask the neighbourhood.
const MAX_TWINS: u64 = 1 << 20;

/// A run whose footer and packs are proven. Its pages are when they are read.
pub(crate) struct Run {
    file: File,
    pub(crate) path: PathBuf,
    pub(crate) footer: Footer,
    /// The reader's number of each pack; [`NOWHERE`] for one that is not there, or is told by another run.
    numbers: Vec<u32>,
    /// Those that are somewhere, sorted.
    members: Vec<u32>,
    /// Where each pack's ids begin, and where the last one's end.
    ids_at: Vec<u64>,
    ids_end: u64,
    /// Entries of the packs that are somewhere.
    pub(crate) live: u64,
    lookup: OnceLock<Result<Lookup, String>>,
    broken: OnceLock<String>,
}

/// What finds pages.
pub(crate) struct Lookup {
    fences: Vec<u32>,
    stretches: Vec<Stretch>,
    fingerprints: Vec<u8>,
    /// Sorted; none where there are too many.
    twins: Option<Vec<Prefix>>,
}

struct Stretch {
    first: u64,
    shape: Shape,
    at: usize,
}

/// A run that was found and not taken into use yet.
pub struct Found {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) footer: Footer,
    pub(crate) packs: Vec<PackAbout>,
}

impl Found {
    /// Opens a run of `owner`; says why it is not usable.
    pub(crate) fn open(path: &Path, owner: &[u8; 16]) -> Result<Self, String> {
        let text = |error: io::Error| error.to_string();
        let file = File::open(path).map_err(text)?;
        let size = file.metadata().map_err(text)?.len();
        let end = size.checked_sub(FOOTER as u64).ok_or("it is cut off")?;
        let mut bytes = [0; FOOTER];
        file.read_exact_at(&mut bytes, end).map_err(text)?;
        let footer = Footer::from_bytes(&bytes)?;
        if footer.owner != *owner {
            return Err("it belongs to another store".into());
        }
        let tail = footer.lookup_size().saturating_add(footer.packs_size());
        let packs_at = end.checked_sub(tail).ok_or("it is cut off")?;
        let bytes = read(&file, packs_at, footer.packs_size())?;
        if blake3::hash(&bytes) != footer.packs_hash {
            return Err("its list of packs is damaged".into());
        }
        let packs: Option<Vec<PackAbout>> = bytes.as_chunks().0.iter().map(format::pack_from_bytes).collect();
        let packs = packs.ok_or("it has a pack with too many entries")?;
        let expected = footer.pages() * PAGE as u64 + Footer::ids_size(&packs) + tail + FOOTER as u64;
        if expected != size {
            return Err(format!("it has {size} bytes, not {expected}"));
        }
        Ok(Self { file, path: path.to_owned(), footer, packs })
    }

    /// The packs it tells of.
    pub fn packs(&self) -> &[PackAbout] {
        &self.packs
    }

    /// Objects in it.
    pub fn entries(&self) -> u64 {
        self.footer.entries
    }

    pub(crate) fn with_numbers(self, numbers: Vec<u32>) -> Run {
        assert_eq!(numbers.len(), self.packs.len(), "a number for each pack");
        let mut at = self.footer.pages() * PAGE as u64;
        let ids_at = self.packs.iter().map(|pack| {
            let here = at;
            at += ids_size(pack.entries) as u64;
            here
        });
        let ids_at = ids_at.collect();
        let live =
            |(pack, number): (&PackAbout, &u32)| if *number == NOWHERE { 0 } else { u64::from(pack.entries) };
        let live = self.packs.iter().zip(&numbers).map(live).sum();
        let mut members: Vec<u32> = numbers.iter().copied().filter(|number| *number != NOWHERE).collect();
        members.sort_unstable();
        Run {
            file: self.file,
            path: self.path,
            footer: self.footer,
            live,
            numbers,
            members,
            ids_at,
            ids_end: at,
            lookup: OnceLock::new(),
            broken: OnceLock::new(),
        }
    }
}

impl Run {
    /// Numbers of its packs that are somewhere, ascending.
    pub(crate) fn members(&self) -> &[u32] {
        &self.members
    }

    pub(crate) fn covers(&self, pack: u32) -> bool {
        self.members.binary_search(&pack).is_ok()
    }

    /// Numbers by the place in this run.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.numbers
    }

    /// Its packs, read again.
    pub(crate) fn packs(&self) -> Result<Vec<PackAbout>, String> {
        let bytes = read(&self.file, self.ids_end, self.footer.packs_size())?;
        if blake3::hash(&bytes) != self.footer.packs_hash {
            return Err("its list of packs is damaged".into());
        }
        let packs: Option<Vec<PackAbout>> = bytes.as_chunks().0.iter().map(format::pack_from_bytes).collect();
        packs.ok_or_else(|| "it has a pack with too many entries".into())
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        let packs = self.numbers.len() * 4 + self.members.len() * 4 + self.ids_at.len() * 8;
        let lookup = match self.lookup.get() {
            Some(Ok(found)) => {
                found.fences.len() * 4
                    + found.stretches.len() * size_of::<Stretch>()
                    + found.fingerprints.len()
                    + found.twins.as_ref().map_or(0, Vec::len) * PREFIX
            }
            _ => 0,
        };
        packs + lookup
    }

    /// What finds pages, read and proven with the first question.
    pub(crate) fn lookup(&self) -> Result<&Lookup, String> {
        if let Some(reason) = self.broken.get() {
            return Err(reason.clone());
        }
        self.lookup.get_or_init(|| self.read_lookup()).as_ref().map_err(Clone::clone)
    }

    fn read_lookup(&self) -> Result<Lookup, String> {
        let footer = &self.footer;
        let size = footer.lookup_size();
        let bytes = read(&self.file, self.ids_end + footer.packs_size(), size)?;
        if blake3::hash(&bytes) != footer.lookup_hash {
            return Err("its filters are damaged".into());
        }
        Lookup::from_bytes(&bytes, footer)
    }

    /// Every place of an object in packs that are somewhere, by one or two pages.
    pub(crate) fn search(
        &self,
        lookup: &Lookup,
        prefix: &Prefix,
        visit: &mut dyn FnMut(Hit),
    ) -> Result<(), String> {
        for stretch in lookup.stretches_for(prefix) {
            if !lookup.may_hold(stretch, prefix) {
                continue;
            }
            let start = stretch * STRETCH_PAGES;
            let end = (start + STRETCH_PAGES).min(lookup.fences.len());
            let wanted = fence(prefix);
            let after = lookup.fences[start..end].partition_point(|first| *first < wanted) + start;
            let mut page = after.saturating_sub(1).max(start);
            while page < end && (page < after || lookup.fences[page] == wanted) {
                self.search_page(page as u64, prefix, visit)?;
                page += 1;
            }
        }
        Ok(())
    }

    fn search_page(&self, page: u64, prefix: &Prefix, visit: &mut dyn FnMut(Hit)) -> Result<(), String> {
        let mut bytes = [0; PAGE];
        self.file.read_exact_at(&mut bytes, page * PAGE as u64).map_err(|error| error.to_string())?;
        if !is_sealed(&bytes, page) {
            return Err(format!("its page {page} is damaged"));
        }
        let entries: &[[u8; ENTRY]] = bytes[..self.entries_of(page) * ENTRY].as_chunks().0;
        let first = entries.partition_point(|entry| entry[..PREFIX] < prefix[..]);
        for entry in entries[first..].iter().take_while(|entry| entry[..PREFIX] == prefix[..]) {
            let local = read_u32(entry, 16);
            let number = *self.numbers.get(local as usize).ok_or("it names a pack that it has not")?;
            if number != NOWHERE {
                let slot = Slot { prefix: *prefix, pack: number, entry: read_u32(entry, 20) };
                visit(Hit { local, at: slot.location() });
            }
        }
        Ok(())
    }

    fn entries_of(&self, page: u64) -> usize {
        let left = self.footer.entries - page * PAGE_ENTRIES as u64;
        usize::try_from(left).map_or(PAGE_ENTRIES, |left| left.min(PAGE_ENTRIES))
    }

    /// Reads pages `first ..`, at most `most`, as slots with the pack's place in this run.
    pub(crate) fn read_pages(&self, first: u64, most: u64, slots: &mut Vec<Slot>) -> Result<u64, String> {
        let count = self.footer.pages().saturating_sub(first).min(most);
        let bytes = read(&self.file, first * PAGE as u64, count * PAGE as u64)?;
        for (page, bytes) in (first..).zip(bytes.chunks_exact(PAGE)) {
            if !is_sealed(bytes, page) {
                return Err(format!("its page {page} is damaged"));
            }
            for entry in bytes[..self.entries_of(page) * ENTRY].as_chunks::<ENTRY>().0 {
                let pack = read_u32(entry, 16);
                if pack as usize >= self.numbers.len() {
                    return Err("it names a pack that it has not".into());
                }
                let prefix = entry[..PREFIX].try_into().expect("16 bytes");
                slots.push(Slot { prefix, pack, entry: read_u32(entry, 20) });
            }
        }
        Ok(count)
    }

    /// The bytes of a pack's ids, proven.
    pub(crate) fn ids_bytes(&self, local: u32, entries: u32) -> Result<Vec<u8>, String> {
        let at = *self.ids_at.get(local as usize).ok_or("it has no such pack")?;
        let bytes = read(&self.file, at, ids_size(entries) as u64)?;
        match is_sealed(&bytes, local.into()) {
            true => Ok(bytes),
            false => Err(format!("the ids of its pack {local} are damaged")),
        }
    }

    /// Lets the next question fail: somebody else found that it is damaged.
    pub(crate) fn give_up(&self, reason: &str) {
        // The first reason is as good.
        let _ = self.broken.set(reason.to_owned());
    }

    /// Everything that is in one of its packs.
    pub(crate) fn ids(&self, local: u32) -> Result<Vec<Slot>, String> {
        let number = *self.numbers.get(local as usize).ok_or("it has no such pack")?;
        let at = self.ids_at[local as usize];
        let end = self.ids_at.get(local as usize + 1).copied().unwrap_or(self.ids_end);
        let entries = entries_in(end - at).ok_or("a pack's ids have an odd size")?;
        let bytes = self.ids_bytes(local, entries)?;
        Ok(slots_of(&bytes, number, entries))
    }
}

/// A place and the pack's number in the run.
#[derive(Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) local: u32,
    pub(crate) at: Location,
}

/// How many entries a pack with so many bytes of ids has.
fn entries_in(size: u64) -> Option<u32> {
    // 16 bytes and a bit each, and the sum: 129 bits.
    let bits = size.checked_sub(SUM as u64)?.checked_mul(8)?;
    let guess = u32::try_from(bits / 129).ok()?;
    (guess.saturating_sub(1)..=guess.saturating_add(1)).find(|count| ids_size(*count) as u64 == size)
}

fn slots_of(bytes: &[u8], pack: u32, entries: u32) -> Vec<Slot> {
    let (prefixes, bits) = bytes.split_at(entries as usize * PREFIX);
    let slot = |(prefix, at): (&Prefix, u32)| {
        let whole = bits[at as usize / 8] >> (at % 8) & 1 == 1;
        Slot { prefix: *prefix, pack, entry: at | if whole { WHOLE } else { 0 } }
    };
    // Zeros stand where a pack has an object for the second time.
    prefixes.as_chunks().0.iter().zip(0..).filter(|(prefix, _)| **prefix != [0; PREFIX]).map(slot).collect()
}

impl Lookup {
    fn from_bytes(bytes: &[u8], footer: &Footer) -> Result<Self, String> {
        let pages = usize::try_from(footer.pages()).map_err(|_| "it is too long for this machine")?;
        let (fences, rest) = bytes.split_at(pages * FENCE);
        let (stretches, rest) = rest.split_at(footer.stretches as usize * STRETCH);
        let count = usize::try_from(footer.fingerprints).map_err(|_| "it is too long for this machine")?;
        let (fingerprints, twins) = rest.split_at(count);
        let mut at = 0usize;
        let mut found = Vec::new();
        for bytes in stretches.as_chunks().0 {
            let (first, shape) = stretch_from_bytes(bytes).ok_or("a filter has an odd shape")?;
            found.push(Stretch { first, shape, at });
            at = at.saturating_add(shape.size());
        }
        if at != count {
            return Err("its filters have another size than they say".into());
        }
        Ok(Self {
            fences: fences.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect(),
            stretches: found,
            fingerprints: fingerprints.to_vec(),
            twins: (footer.twin_count() <= MAX_TWINS).then(|| twins.as_chunks().0.to_vec()),
        })
    }

    /// Stretches that a prefix may be in: one, or those that begin with the same eight bytes.
    fn stretches_for(&self, prefix: &Prefix) -> std::ops::Range<usize> {
        let head = head(prefix);
        let end = self.stretches.partition_point(|stretch| stretch.first <= head);
        let mut first = end.saturating_sub(1);
        while first > 0 && self.stretches[first].first == head {
            first -= 1;
        }
        first..end
    }

    fn may_hold(&self, stretch: usize, prefix: &Prefix) -> bool {
        let Stretch { shape, at, .. } = &self.stretches[stretch];
        filter::may_hold(shape, &self.fingerprints[*at..*at + shape.size()], key(prefix))
    }

    /// Whether an object stands in one pack of the run at most.
    pub(crate) fn has_no_twin(&self, prefix: &Prefix) -> bool {
        self.twins.as_ref().is_some_and(|twins| twins.binary_search(prefix).is_err())
    }
}

fn read(file: &File, at: u64, size: u64) -> Result<Vec<u8>, String> {
    let text = |error: io::Error| error.to_string();
    // Not more memory than there can be bytes, whatever a damaged number says.
    let left = file.metadata().map_err(text)?.len().saturating_sub(at);
    if size > left {
        return Err("it is cut off".into());
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| "it is too long for this machine")?];
    file.read_exact_at(&mut bytes, at).map_err(text)?;
    Ok(bytes)
}

/// Runs of `owner` in a directory, longest first. What is damaged, or another's, is removed or left out.
pub(crate) fn find(dir: &Path, owner: &[u8; 16], remove: &dyn Fn(&Path)) -> (Vec<Found>, bool) {
    let (mut found, mut vanished) = (Vec::new(), false);
    let Ok(entries) = fs::read_dir(dir) else { return (found, false) };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|end| end != RUN_ENDING) {
            continue;
        }
        match Found::open(&path, owner) {
            Ok(run) => found.push(run),
            Err(_) if !path.exists() => vanished = true,
            Err(reason) => {
                tracing::warn!(run = %path.display(), reason, "a part of the index is not usable and is made anew");
                remove(&path);
            }
        }
    }
    found.sort_by(|a, b| (b.footer.entries, &a.path).cmp(&(a.footer.entries, &b.path)));
    (found, vanished)
}
