//! Packs: immutable objects with many sealed blocks and their own index.
//!
//! ```text
//! header   16   magic "ABDPACK1" 8 | version 1 | kind 1 | encryption 1 | salt 5
//! blocks        sealed bytes, back to back
//! index    48 x entries: id 32 | offset u32 | sealed size u32 | plain size u32 | codec u8 | zero 3
//! footer   56   BLAKE3 of (index, footer from "index offset" on) 32
//!               | index offset u32 | entries u32 | version 1 | kind 1 | encryption 1 | zero 5 | magic "ABDPEND1" 8
//! ```
//! Little-endian. The index stands behind the blocks because a pack is written in one pass; its own hash
//! lets a reader trust the index after reading only the end of the pack, and find damage in it apart from
//! damage in a block.

use crate::codec::{Codec, Sealed};
use crate::{Error, PackId};
use std::hash::{BuildHasher, RandomState};

/// Bytes before the first sealed block.
pub const HEADER_SIZE: usize = 16;
/// Bytes of one index entry.
pub const TRAILER_ENTRY_SIZE: usize = 48;
/// Bytes at the end of every pack.
pub const TRAILER_FOOTER_SIZE: usize = 56;
/// Largest pack that is accepted: four times the default of 16 MiB, so that one pack always fits in memory.
pub const MAX_PACK_SIZE: usize = 64 << 20;

const HEADER_MAGIC: &[u8; 8] = b"ABDPACK1";
const FOOTER_MAGIC: &[u8; 8] = b"ABDPEND1";
const VERSION: u8 = 1;
const NOT_ENCRYPTED: u8 = 0;
/// Random bytes in a header.
const SALT_SIZE: usize = 5;
/// Where in the footer its hash ends.
const HASH_SIZE: usize = 32;

const _: () = assert!(HEADER_SIZE == 8 + 1 + 1 + 1 + SALT_SIZE);
const _: () = assert!(TRAILER_ENTRY_SIZE == 32 + 4 + 4 + 4 + 1 + 3);
const _: () = assert!(TRAILER_FOOTER_SIZE == HASH_SIZE + 4 + 4 + 1 + 1 + 1 + 5 + 8);
const _: () = assert!(MAX_PACK_SIZE <= u32::MAX as usize);

/// What a pack holds. Blocks and tree nodes never share one: trees are read without the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PackKind {
    /// Blocks of disks; ids are block ids.
    Data = 1,
    /// Tree nodes; ids are node ids.
    Tree = 2,
}

/// Where a sealed block stands in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Block id or node id, as the pack's kind says.
    pub id: [u8; 32],
    /// First byte in the pack.
    pub offset: u32,
    /// Stored bytes.
    pub sealed_size: u32,
    /// Bytes after opening.
    pub plain_size: u32,
    /// How to open.
    pub codec: Codec,
}

/// A finished pack.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Its name.
    pub id: PackId,
    /// All of its bytes.
    pub bytes: Vec<u8>,
}

/// Fills one pack in memory.
#[derive(Debug)]
pub struct PackWriter {
    kind: PackKind,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// The checked index of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackIndex {
    /// What the pack holds.
    pub kind: PackKind,
    /// Its blocks in stored order.
    pub entries: Vec<Entry>,
}

impl PackKind {
    fn from_byte(byte: u8) -> Result<Self, Error> {
        match byte {
            1 => Ok(Self::Data),
            2 => Ok(Self::Tree),
            _ => Err(bad(format!("kind {byte} is not known to this version"))),
        }
    }
}

impl Entry {
    /// Reads one entry of a pack's index. Whether it fits its pack is for the caller to check; the index as a
    /// whole is read with [`PackIndex::from_tail`].
    ///
    /// # Errors
    /// [`Error::Codec`] for a codec of a later version.
    pub fn from_bytes(bytes: &[u8; TRAILER_ENTRY_SIZE]) -> Result<Self, Error> {
        Ok(Self {
            id: bytes[..32].try_into().expect("32 bytes"),
            offset: read_u32(bytes, 32),
            sealed_size: read_u32(bytes, 36),
            plain_size: read_u32(bytes, 40),
            codec: Codec::from_byte(bytes[44])?,
        })
    }

    /// The entry's stored bytes within its whole pack.
    ///
    /// # Errors
    /// [`Error::Pack`] if the pack is shorter than the entry says.
    pub fn sealed<'a>(&self, pack: &'a [u8]) -> Result<Sealed<'a>, Error> {
        let start = self.offset as usize;
        let bytes = pack
            .get(start..start.saturating_add(self.sealed_size as usize))
            .ok_or_else(|| bad(format!("block at {start} reaches past the end")))?;
        Ok(Sealed { codec: self.codec, bytes })
    }
}

impl PackWriter {
    /// An empty pack with room for `capacity` bytes.
    pub fn new(kind: PackKind, capacity: usize) -> Self {
        Self::reusing(kind, Vec::with_capacity(capacity.min(MAX_PACK_SIZE)))
    }

    /// An empty pack in the memory of one that is done with.
    pub fn reusing(kind: PackKind, bytes: Vec<u8>) -> Self {
        Self::salted(kind, bytes, random_salt())
    }

    /// An empty pack with a salt that is given: the same blocks make the same pack.
    fn salted(kind: PackKind, mut bytes: Vec<u8>, salt: [u8; SALT_SIZE]) -> Self {
        bytes.clear();
        bytes.extend_from_slice(HEADER_MAGIC);
        bytes.extend_from_slice(&[VERSION, kind as u8, NOT_ENCRYPTED]);
        bytes.extend_from_slice(&salt);
        Self { kind, bytes, entries: Vec::new() }
    }

    /// Size that the pack would have if it were finished now.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.entries.len() * TRAILER_ENTRY_SIZE + TRAILER_FOOTER_SIZE
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many blocks were added.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether another block of up to 64 KiB still fits below `limit`.
    pub fn has_room(&self, limit: usize) -> bool {
        self.size() + blocks::BLOCK_SIZE as usize + TRAILER_ENTRY_SIZE <= limit.min(MAX_PACK_SIZE)
    }

    /// Adds a sealed block.
    ///
    /// # Panics
    /// If the pack would grow over [`MAX_PACK_SIZE`]; ask [`has_room`](Self::has_room) first.
    pub fn push(&mut self, id: [u8; 32], plain_size: usize, sealed: Sealed<'_>) {
        assert!(
            self.size() + sealed.bytes.len() + TRAILER_ENTRY_SIZE <= MAX_PACK_SIZE,
            "has_room was asked first"
        );
        let fits = "bounded by MAX_PACK_SIZE";
        self.entries.push(Entry {
            id,
            offset: u32::try_from(self.bytes.len()).expect(fits),
            sealed_size: u32::try_from(sealed.bytes.len()).expect(fits),
            plain_size: u32::try_from(plain_size).expect(fits),
            codec: sealed.codec,
        });
        self.bytes.extend_from_slice(sealed.bytes);
    }

    /// Writes the index and the footer.
    pub fn finish(mut self) -> Pack {
        let index_offset = self.bytes.len();
        for entry in &self.entries {
            self.bytes.extend_from_slice(&entry.id);
            for number in [entry.offset, entry.sealed_size, entry.plain_size] {
                self.bytes.extend_from_slice(&number.to_le_bytes());
            }
            self.bytes.extend_from_slice(&[entry.codec as u8, 0, 0, 0]);
        }
        let mut end = Vec::with_capacity(TRAILER_FOOTER_SIZE - HASH_SIZE);
        for number in [index_offset, self.entries.len()] {
            let number = u32::try_from(number).expect("bounded by MAX_PACK_SIZE");
            end.extend_from_slice(&number.to_le_bytes());
        }
        end.extend_from_slice(&[VERSION, self.kind as u8, NOT_ENCRYPTED, 0, 0, 0, 0, 0]);
        end.extend_from_slice(FOOTER_MAGIC);
        let hash = trailer_hash(&self.bytes[index_offset..], &end);
        self.bytes.extend_from_slice(hash.as_bytes());
        self.bytes.extend_from_slice(&end);
        Pack { id: PackId::of(&self.bytes), bytes: self.bytes }
    }
}

impl PackIndex {
    /// Bytes at the end of a pack of `pack_size` bytes that [`from_tail`](Self::from_tail) needs, from the
    /// pack's last [`TRAILER_FOOTER_SIZE`] bytes.
    ///
    /// # Errors
    /// [`Error::Pack`] if these are no footer of such a pack.
    pub fn tail_size(footer: &[u8], pack_size: u64) -> Result<usize, Error> {
        let pack_size = usize::try_from(pack_size)
            .ok()
            .filter(|size| *size <= MAX_PACK_SIZE)
            .ok_or_else(|| bad(format!("{pack_size} bytes is over the limit of {MAX_PACK_SIZE}")))?;
        if footer.len() != TRAILER_FOOTER_SIZE || pack_size < HEADER_SIZE + TRAILER_FOOTER_SIZE {
            return Err(bad(format!("{pack_size} bytes is too short")));
        }
        if &footer[48..] != FOOTER_MAGIC {
            return Err(bad("it does not end with a footer; it is cut off or no pack".into()));
        }
        if footer[40] != VERSION {
            return Err(bad(format!("version {} is not known to this version", footer[40])));
        }
        if footer[42] != NOT_ENCRYPTED {
            return Err(bad("it is encrypted in a way this version does not know".into()));
        }
        let offset = read_u32(footer, 32) as usize;
        let entries = read_u32(footer, 36) as usize;
        let tail = entries
            .checked_mul(TRAILER_ENTRY_SIZE)
            .and_then(|index| index.checked_add(TRAILER_FOOTER_SIZE))
            .filter(|tail| offset >= HEADER_SIZE && offset.checked_add(*tail) == Some(pack_size))
            .ok_or_else(|| bad(format!("an index of {entries} entries at {offset} does not fit")))?;
        Ok(tail)
    }

    /// Reads and checks the index from the last [`tail_size`](Self::tail_size) bytes of a pack.
    ///
    /// # Errors
    /// [`Error::Pack`] naming the failed check.
    pub fn from_tail(tail: &[u8], pack_size: u64) -> Result<Self, Error> {
        let footer_at = tail
            .len()
            .checked_sub(TRAILER_FOOTER_SIZE)
            .ok_or_else(|| bad(format!("{} bytes is too short", tail.len())))?;
        let (index, footer) = tail.split_at(footer_at);
        if Self::tail_size(footer, pack_size)? != tail.len() {
            return Err(bad("the index has another size than the footer says".into()));
        }
        let hash = trailer_hash(index, &footer[HASH_SIZE..]);
        if hash.as_bytes() != &footer[..HASH_SIZE] {
            return Err(bad("the index is damaged: its hash does not match".into()));
        }
        let kind = PackKind::from_byte(footer[41])?;
        let index_offset = read_u32(footer, 32);
        let mut entries = Vec::with_capacity(index.len() / TRAILER_ENTRY_SIZE);
        let mut next = HEADER_SIZE as u32;
        for bytes in index.chunks_exact(TRAILER_ENTRY_SIZE) {
            let entry = Entry::from_bytes(bytes.try_into().expect("chunks of this size"))?;
            let end = entry.offset.checked_add(entry.sealed_size);
            if entry.offset != next || end.is_none_or(|end| end > index_offset) {
                return Err(bad(format!("block at {} overlaps or leaves a gap", entry.offset)));
            }
            if u64::from(entry.plain_size) > blocks::BLOCK_SIZE {
                return Err(bad(format!("block at {} is over 64 KiB", entry.offset)));
            }
            next = end.expect("checked above");
            entries.push(entry);
        }
        if next != index_offset {
            return Err(bad(format!("{} bytes belong to no block", index_offset - next)));
        }
        Ok(Self { kind, entries })
    }

    /// Reads and checks the index of a whole pack, and its header.
    ///
    /// # Errors
    /// [`Error::Pack`] naming the failed check. Blocks are not opened.
    pub fn from_pack(pack: &[u8]) -> Result<Self, Error> {
        let size = pack.len() as u64;
        let footer = &pack[pack.len().saturating_sub(TRAILER_FOOTER_SIZE)..];
        let tail = Self::tail_size(footer, size)?;
        let index = Self::from_tail(&pack[pack.len() - tail..], size)?;
        index.check_header(&pack[..HEADER_SIZE])?;
        Ok(index)
    }

    /// Whether a pack's first [`HEADER_SIZE`] bytes go with its index. The salt says nothing: only the pack's id proves it.
    ///
    /// # Errors
    /// [`Error::Pack`] where they do not.
    pub fn check_header(&self, header: &[u8]) -> Result<(), Error> {
        let expected = [HEADER_MAGIC, &[VERSION, self.kind as u8, NOT_ENCRYPTED][..]].concat();
        match header.len() == HEADER_SIZE && header.starts_with(&expected) {
            true => Ok(()),
            false => Err(bad("its header does not match its footer".into())),
        }
    }
}

/// So that a pack's name never comes again: of one that was removed, nobody can tell when the last program that is about to
/// remove it has done so.
fn random_salt() -> [u8; SALT_SIZE] {
    // Keys from the system for each thread, and other ones each time.
    let random = RandomState::new().hash_one(0u8).to_le_bytes();
    [random[0], random[1], random[2], random[3], random[4]]
}

fn trailer_hash(index: &[u8], end: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(index);
    hasher.update(end);
    hasher.finalize()
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn bad(reason: String) -> Error {
    Error::Pack { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdKey, Opener, Sealer};
    use proptest::prelude::*;

    fn sample() -> Pack {
        let mut writer = PackWriter::salted(PackKind::Data, Vec::new(), [0; SALT_SIZE]);
        writer.push([1; 32], 3, Sealed { codec: Codec::Stored, bytes: b"abc" });
        writer.push([2; 32], 5, Sealed { codec: Codec::Stored, bytes: b"defgh" });
        writer.finish()
    }

    /// The bytes of FORMAT.md's example, made by hand; the hashes with Python's `blake3` package.
    #[test]
    fn golden_pack() {
        let pack = sample();
        let mut expected = b"ABDPACK1\x01\x01\0\0\0\0\0\0abcdefgh".to_vec();
        for (id, offset, size) in [(1u8, 16u8, 3u8), (2, 19, 5)] {
            expected.extend([id; 32]);
            expected.extend([offset, 0, 0, 0, size, 0, 0, 0, size, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!(&pack.bytes[..expected.len()], expected);
        let footer = &pack.bytes[expected.len()..];
        assert_eq!(&footer[32..], b"\x18\0\0\0\x02\0\0\0\x01\x01\0\0\0\0\0\0ABDPEND1");
        assert_eq!(pack.id.to_string(), GOLDEN_ID);
        let second = Entry::from_bytes(expected[24 + 48..][..48].try_into().expect("an entry"));
        assert_eq!(second, Ok(PackIndex::from_pack(&pack.bytes).expect("whole").entries[1]));
    }
    const GOLDEN_ID: &str = "58daebe13897f91a57687c7f8e25ebc4375d188f6c6505a59377186dfce0ba8b";

    #[test]
    fn every_flipped_byte_outside_the_blocks_is_found_in_the_index() {
        let pack = sample().bytes;
        // The salt and the blocks are proven by other means.
        for at in (0..pack.len()).filter(|at| !(11..24).contains(at)) {
            let mut bad = pack.clone();
            bad[at] ^= 0x41;
            assert!(PackIndex::from_pack(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_same_blocks_twice_are_two_packs() {
        let pack = || {
            let mut writer = PackWriter::new(PackKind::Data, 100);
            writer.push([1; 32], 3, Sealed { codec: Codec::Stored, bytes: b"abc" });
            writer.finish()
        };
        let (first, second) = (pack(), pack());
        assert_ne!(first.id, second.id);
        assert_eq!(PackIndex::from_pack(&first.bytes), PackIndex::from_pack(&second.bytes));
    }

    #[test]
    fn every_truncation_is_refused() {
        let pack = sample().bytes;
        for size in 0..pack.len() {
            assert!(PackIndex::from_pack(&pack[..size]).is_err(), "size {size}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(PackIndex::from_pack(&bytes).is_err());
            prop_assert!(PackIndex::from_tail(&bytes, 400).is_err());
        }

        #[test]
        fn packs_round_trip(plains in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..500), 0..20)) {
            let key = IdKey::new(&[3; 32]);
            let mut sealer = Sealer::new(1).expect("sealer");
            let mut writer = PackWriter::new(PackKind::Data, 1 << 16);
            for plain in &plains {
                let id = key.block_id(plain);
                let sealed = sealer.seal(plain).expect("seal");
                writer.push(*id.as_bytes(), plain.len(), sealed);
            }
            let size = writer.size();
            let pack = writer.finish();
            prop_assert_eq!(size, pack.bytes.len());
            let index = PackIndex::from_pack(&pack.bytes).expect("own pack");
            prop_assert_eq!(index.entries.len(), plains.len());
            let mut opener = Opener::new().expect("opener");
            for (entry, plain) in index.entries.iter().zip(&plains) {
                let sealed = entry.sealed(&pack.bytes).expect("inside");
                prop_assert_eq!(opener.open(sealed, entry.plain_size as usize).expect("opens"), &plain[..]);
            }
        }
    }
}
