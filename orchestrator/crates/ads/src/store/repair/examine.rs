//! Looking at packs: which are not what their names say, and what still opens in those.

use crate::Error;
use crate::backend::{Backend, pack_key};
use crate::error::sentence;
use crate::ingest::check_object;
use seal::{
    Entry, HEADER_SIZE, IdKey, MAX_PACK_SIZE, Opener, PackId, PackIndex, PackKind, TRAILER_ENTRY_SIZE,
    TRAILER_FOOTER_SIZE,
};
use std::io;

/// Bytes that are read at once where a disk cannot read all of an object: the smallest part that one bad sector costs.
const PIECE: usize = 4096;

/// Objects that are tried at most where a pack's index is damaged: no honest pack has as many.
const MAX_TRIES: u32 = 1 << 20;

/// An object of the store, by its kind and id.
pub(super) type Object = (PackKind, [u8; 32]);

/// A pack that is not what its name says.
#[derive(Debug)]
pub(super) struct BadPack {
    pub(super) id: PackId,
    /// Which check failed.
    pub(super) reason: String,
}

/// What is in a damaged pack.
#[derive(Default)]
pub(super) struct Contents {
    /// What opens and proves its id.
    pub(super) good: Vec<(PackKind, Entry)>,
    /// What does not. Of a pack whose index is damaged nobody can tell what else was in it.
    pub(super) lost: Vec<Object>,
    pub(super) index_is_whole: bool,
}

/// Whether a pack is what its name says; `None` where it is, or is gone.
pub(super) fn examine(backend: &dyn Backend, id: PackId) -> Result<Option<BadPack>, Error> {
    let bad = |reason: String| Ok(Some(BadPack { id, reason }));
    match backend.get(&pack_key(id), MAX_PACK_SIZE as u64) {
        Ok(bytes) if PackId::of(&bytes) == id => Ok(None),
        Ok(bytes) => bad(match PackIndex::from_pack(&bytes) {
            Ok(_) => format!("its bytes have the id {}", PackId::of(&bytes)),
            Err(error) => error.to_string(),
        }),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) if is_damage(&error) => bad(sentence(&error)),
        Err(error) => Err(error),
    }
}

/// Whether an error says that the bytes themselves are bad, and not that the way to them is.
fn is_damage(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    is_bad_medium(source) || source.kind() == io::ErrorKind::FileTooLarge
}

fn is_bad_medium(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// All that can be read of an object of at most `limit` bytes; zeros where the disk cannot. What lies past the limit is
/// left out.
pub(super) fn read_what_can_be_read(
    backend: &dyn Backend,
    key: &str,
    limit: usize,
) -> Result<Vec<u8>, Error> {
    match backend.get(key, limit as u64) {
        Err(error) if is_damage(&error) => {}
        other => return other,
    }
    let size = backend.head(key)?.unwrap_or(0).min(limit as u64);
    let object = backend.open(key)?;
    let mut bytes = vec![0; usize::try_from(size).expect("bounded by the limit")];
    for (piece, at) in bytes.chunks_mut(PIECE).zip((0..).step_by(PIECE)) {
        match object.read_exact_at(piece, at) {
            Ok(()) => {}
            Err(error) if is_bad_medium(&error) => piece.fill(0),
            Err(source) => return Err(Error::Io { what: "read", path: backend.place(key), source }),
        }
    }
    Ok(bytes)
}

/// What of a damaged pack still opens. Nothing is believed: what is given was proven by its id.
pub(super) fn contents(key: &IdKey, pack: &[u8]) -> Result<Contents, Error> {
    let mut opener = Opener::new()?;
    let Some(index) = index_of(pack) else { return Ok(by_search(key, pack, &mut opener)) };
    let mut found = Contents { index_is_whole: true, ..Contents::default() };
    for entry in index.entries {
        match check_object(key, pack, index.kind, &entry, &mut opener) {
            Ok(()) => found.good.push((index.kind, entry)),
            Err(_) => found.lost.push((index.kind, entry.id)),
        }
    }
    Ok(found)
}

/// A pack's index, also where its header is damaged.
fn index_of(pack: &[u8]) -> Option<PackIndex> {
    let size = pack.len() as u64;
    let footer = pack.get(pack.len().checked_sub(TRAILER_FOOTER_SIZE)?..)?;
    let tail = PackIndex::tail_size(footer, size).ok()?;
    PackIndex::from_tail(&pack[pack.len() - tail..], size).ok()
}

/// Objects whose entries can be found without a whole index: everything that looks like an entry is tried, from the end on,
/// as far as no object that opened reaches. Every place is tried, because a pack that is cut off ends anywhere.
fn by_search(key: &IdKey, pack: &[u8], opener: &mut Opener) -> Contents {
    let mut found = Contents::default();
    let mut floor = HEADER_SIZE;
    let mut tries = MAX_TRIES;
    let mut at = pack.len().saturating_sub(TRAILER_ENTRY_SIZE);
    while at >= floor && tries > 0 {
        let entry = pack[at..].first_chunk().and_then(|bytes| Entry::from_bytes(bytes, 0, None).ok());
        let proven = entry.filter(|entry| is_plausible(entry, at)).and_then(|entry| {
            tries -= 1;
            let kinds = [PackKind::Data, PackKind::Tree].into_iter();
            let kind =
                kinds.into_iter().find(|kind| check_object(key, pack, *kind, &entry, opener).is_ok())?;
            Some((kind, entry))
        });
        match proven {
            Some((kind, entry)) => {
                floor = floor.max(entry.offset as usize + entry.sealed_size as usize);
                found.good.push((kind, entry));
                at = at.saturating_sub(TRAILER_ENTRY_SIZE);
            }
            None => at -= 1,
        }
    }
    found
}

/// Whether an entry that stands at `at` could be one.
fn is_plausible(entry: &Entry, at: usize) -> bool {
    let end = u64::from(entry.offset) + u64::from(entry.sealed_size);
    entry.offset as usize >= HEADER_SIZE
        && end <= at as u64
        && entry.sealed_size > 0
        && u64::from(entry.plain_size) <= blocks::BLOCK_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;
    use seal::{PackWriter, Sealer};

    fn sample(key: &IdKey) -> (Vec<u8>, Vec<[u8; 32]>) {
        let mut sealer = Sealer::new(1).expect("a context");
        let mut writer = PackWriter::new(PackKind::Data, 1 << 20);
        let mut ids = Vec::new();
        for number in 1..=5u8 {
            let plain: Vec<u8> = (0..5000u32).map(|at| (at % 251) as u8 ^ number).collect();
            let id = key.block_id(&plain);
            writer.push(*id.as_bytes(), plain.len(), sealer.seal(&plain).expect("sealed"));
            ids.push(*id.as_bytes());
        }
        (writer.finish().bytes, ids)
    }

    fn saved(key: &IdKey, pack: &[u8]) -> usize {
        contents(key, pack).expect("an opener").good.len()
    }

    #[test]
    fn whatever_byte_is_bad_all_but_one_object_are_saved() {
        let key = IdKey::new(&[7; 32]);
        let (pack, ids) = sample(&key);
        for at in 0..pack.len() {
            let mut bad = pack.clone();
            bad[at] ^= 0x10;
            assert!(saved(&key, &bad) >= ids.len() - 1, "byte {at}: {} are saved", saved(&key, &bad));
        }
    }

    #[test]
    fn what_the_rest_of_a_cut_index_names_is_saved() {
        let key = IdKey::new(&[7; 32]);
        let (pack, ids) = sample(&key);
        let index = pack.len() - TRAILER_FOOTER_SIZE - ids.len() * TRAILER_ENTRY_SIZE;
        for entries in 0..=ids.len() {
            for more in [0, 1, TRAILER_ENTRY_SIZE - 1] {
                let cut = &pack[..index + entries * TRAILER_ENTRY_SIZE + more];
                assert_eq!(saved(&key, cut), entries, "{more} bytes after {entries} entries");
            }
        }
        assert_eq!(saved(&key, &[]), 0);
        assert_eq!(saved(&key, &pack[..20]), 0);
    }
}
