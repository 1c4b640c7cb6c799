//! Moving what is missing: whole packs as they are, or what is needed of them in new packs.

use super::super::gc::Mover;
use super::super::index::Location;
use super::needs::{Entries, OnBytes};
use super::{Copier, Pace, Trouble, is_outage};
use crate::error::sentence;
use crate::ingest::check_object;
use crate::store::Store;
use crate::{Error, ErrorKind};
use seal::{Entry, Opener, PackKind, Sealed};
use std::borrow::Cow;
use std::sync::Mutex;
use std::sync::mpsc::channel;

/// Packs that are under way at once, each in memory with at most 64 MiB.
const PACKS_AT_ONCE: usize = 3;
/// A pack of which at least one in so many objects is needed is moved whole: what else it holds is likely needed by the next
/// point, and packs that stay as they are cost least.
const WHOLE_FROM: usize = 2;
/// A pack of which at least one in so many objects is needed is read at once, and others object by object.
const READ_AT_ONCE_FROM: usize = 16;

/// What became of a whole pack.
enum Whole {
    /// It is there, with so many bytes.
    Moved(u64),
    /// It is not what its name says, or cannot be read: what is whole in it can still be moved.
    Damaged,
    /// Nothing can be moved any more.
    Stop(Error),
}

impl Copier<'_> {
    /// Moves what was gathered of a kind. What cannot be read here is noted in `lost`.
    pub(super) fn send(&mut self, kind: PackKind, report: OnBytes<'_>) -> Result<(), Trouble> {
        let wanted = self.needs.take(kind);
        self.planned += wanted.iter().map(|(pack, entries)| self.estimate(*pack, entries.len())).sum::<u64>();
        let Some(to) = self.to.filter(|_| !self.only_planned) else {
            self.moved = self.planned;
            return Ok(());
        };
        report(self.moved, self.planned)?;
        let (whole, mut parts): (Entries, Entries) =
            wanted.into_iter().partition(|(pack, entries)| self.goes_whole(to, *pack, entries.len()));
        self.send_whole(to, whole, &mut parts, report)?;
        self.send_parts(to, kind, parts, report)
    }

    /// About how many bytes these objects of a pack take.
    fn estimate(&self, pack: u32, count: usize) -> u64 {
        let record = self.from.packs.record(pack);
        u64::from(record.size) * count as u64 / u64::from(record.entries.max(1))
    }

    /// Whether a pack is moved as it is: under a name that was never seen there.
    fn goes_whole(&self, to: &Store, pack: u32, count: usize) -> bool {
        let record = self.from.packs.record(pack);
        self.verbatim && count * WHOLE_FROM >= record.entries as usize && !to.packs.contains(record.id)
    }

    fn wrote(&mut self, bytes: u64, report: OnBytes<'_>) -> Result<(), Error> {
        self.moved += bytes;
        self.report.bytes = self.report.bytes.saturating_add(blocks::ByteCount::new(bytes));
        report(self.moved, self.planned)
    }

    /// Moves packs, several at once; those that are damaged become `parts`.
    fn send_whole(
        &mut self,
        to: &Store,
        packs: Entries,
        parts: &mut Entries,
        report: OnBytes<'_>,
    ) -> Result<(), Trouble> {
        let from = self.from;
        let at_once = PACKS_AT_ONCE.min(from.backend.parallel_reads()).min(to.backend.parallel_reads());
        let waiting = Mutex::new(packs.into_iter());
        let pace = self.pace.clone();
        let mut stop = None;
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            for _ in 0..at_once {
                let (sender, waiting, pace) = (sender.clone(), &waiting, &pace);
                scope.spawn(move || {
                    let next = || waiting.lock().expect("no panic while it is locked").next();
                    while let Some((pack, entries)) = next() {
                        let outcome = move_whole(from, to, pack, pace);
                        let ends = matches!(outcome, Whole::Stop(_));
                        if sender.send((pack, entries, outcome)).is_err() || ends {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            for (pack, entries, outcome) in receiver {
                let ends = match outcome {
                    Whole::Moved(bytes) => {
                        self.report.packs += 1;
                        self.wrote(bytes, report).err()
                    }
                    Whole::Damaged => {
                        parts.insert(pack, entries);
                        None
                    }
                    Whole::Stop(error) => Some(error),
                };
                if let Some(error) = ends {
                    stop.get_or_insert(error);
                    // The others end after the packs that they have in hand.
                    waiting.lock().expect("no panic while it is locked").by_ref().for_each(drop);
                }
            }
        });
        stop.map_or(Ok(()), |error| Err(Trouble::Stop(error)))
    }

    /// Moves single objects into new packs, each proven.
    fn send_parts(
        &mut self,
        to: &Store,
        kind: PackKind,
        parts: Entries,
        report: OnBytes<'_>,
    ) -> Result<(), Trouble> {
        let mut mover = Mover::new(to, kind);
        let mut opener = Opener::new().map_err(Error::from)?;
        let mut written = 0;
        for (pack, entries) in parts {
            let index = match self.from.packs.index_of(pack) {
                Ok(index) => index,
                Err(error) if is_outage(&error) => return Err(Trouble::Stop(error)),
                Err(error) if error.is_not_found() => {
                    self.moved_here = true;
                    continue;
                }
                Err(error) => {
                    self.lost_packs.insert(pack, sentence(&error));
                    continue;
                }
            };
            let at_once = entries.len() * READ_AT_ONCE_FROM >= index.entries.len();
            let bytes = at_once.then(|| self.from.packs.bytes_of(pack).ok()).flatten();
            for at in entries {
                let Some(entry) = index.entries.get(at as usize) else { continue };
                if self.is_there(kind, &entry.id) {
                    continue;
                }
                match self.object(kind, pack, at, entry, bytes.as_deref(), &mut opener) {
                    Ok(object) => {
                        self.pace.wait(object.len() as u64);
                        // What is encrypted stays as it is.
                        let sealed = Sealed { codec: entry.codec, lock: entry.lock, bytes: &object };
                        mover.push(entry.id, entry.plain_size as usize, sealed)?;
                        self.wrote(mover.written().get() - written, report)?;
                        written = mover.written().get();
                    }
                    Err(error) if is_outage(&error) => return Err(Trouble::Stop(error)),
                    Err(error) if error.is_not_found() => self.moved_here = true,
                    Err(error) => drop(self.lost.insert(entry.id, sentence(&error))),
                }
            }
        }
        mover.write()?;
        Ok(self.wrote(mover.written().get() - written, report)?)
    }

    /// Sealed bytes of an object, opened and compared with its id unless the store is locked.
    fn object<'b>(
        &self,
        kind: PackKind,
        pack: u32,
        at: u32,
        entry: &Entry,
        pack_bytes: Option<&'b [u8]>,
        opener: &mut Opener,
    ) -> Result<Cow<'b, [u8]>, Error> {
        let damaged = |source| Error::Damaged { pack: self.from.packs.record(pack).id, source };
        let bytes = match pack_bytes {
            Some(bytes) => Cow::Borrowed(entry.sealed(bytes).map_err(damaged)?.bytes),
            None => {
                let at = Location { pack, entry: at, whole: false };
                Cow::Owned(self.from.packs.read(kind, &entry.id, at)?.bytes)
            }
        };
        let alone = Entry { offset: 0, ..*entry };
        if self.from.can_open(kind) {
            check_object(&self.from.id_key, &bytes, kind, &alone, opener).map_err(damaged)?;
        }
        Ok(bytes)
    }
}

/// Moves a pack as it is, after every byte of it was proven.
fn move_whole(from: &Store, to: &Store, pack: u32, pace: &Pace) -> Whole {
    let bytes = match from.packs.bytes_of(pack) {
        Ok(bytes) => bytes,
        Err(error) if is_outage(&error) => return Whole::Stop(error),
        Err(_) => return Whole::Damaged,
    };
    let id = from.packs.record(pack).id;
    pace.wait(bytes.len() as u64);
    match to.add_pack(id, &bytes) {
        Ok(_) => Whole::Moved(bytes.len() as u64),
        Err(error) if error.kind() == ErrorKind::BadPack => Whole::Damaged,
        Err(error) => Whole::Stop(error),
    }
}
