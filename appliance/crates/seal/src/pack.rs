//! Packs: immutable objects with many sealed blocks and their own index.
//!
//! ```text
//! header   16   magic "ABDPACK1" 8 | version 1 | kind 1 | encryption 1 | salt 5
//! blocks        sealed bytes, back to back
//! keys     36 x segments: first entry u32 | salt 32; where blocks are encrypted
//! index    48 x entries: id 32 | offset u32 | sealed size u32 | plain size u32 | codec u8 | counter u24
//! footer   56   BLAKE3 of (keys, index, footer from "index offset" on) 32 | index offset u32 | entries u32
//!               | version 1 | kind 1 | encryption 1 | segments u32 | zero 1 | magic "ABDPEND1" 8
//! ```
//! Little-endian. The index stands behind the blocks because a pack is written in one pass; its own hash
//! lets a reader trust the index after reading only the end of the pack, and find damage in it apart from
//! damage in a block.

use crate::codec::{Codec, Sealed};
use crate::keytable::{KeyTable, SEGMENT_SIZE};
use crate::secret::{About, KEY_SALT_SIZE, MAX_COUNTER, PackSeal, TAG_SIZE};
use crate::{Cipher, Error, Lock, PackId};
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
const _: () = assert!(TRAILER_FOOTER_SIZE == HASH_SIZE + 4 + 4 + 1 + 1 + 1 + 4 + 1 + 8);
const _: () = assert!(MAX_PACK_SIZE <= u32::MAX as usize);
const _: () = assert!(SEGMENT_SIZE == 4 + KEY_SALT_SIZE);
// A pack cannot have more blocks than there are nonces for.
const _: () = assert!(MAX_PACK_SIZE / TRAILER_ENTRY_SIZE <= MAX_COUNTER as usize);

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
    /// How it is encrypted: of a block of an encrypted pack whose key table was read.
    pub lock: Option<Lock>,
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
    secrecy: Secrecy,
}

/// What a writer does about encryption.
#[derive(Debug)]
pub(crate) enum Secrecy {
    /// Nothing.
    Clear,
    /// Encrypts what it is given.
    Sealing(Box<PackSeal>, KeyTable),
    /// Is given what is encrypted, and keeps it as it is.
    Moving(KeyTable),
}

impl Secrecy {
    fn keys(&self) -> Option<&KeyTable> {
        match self {
            Self::Clear => None,
            Self::Sealing(_, keys) | Self::Moving(keys) => Some(keys),
        }
    }

    fn has_nonce(&self) -> bool {
        match self {
            Self::Sealing(seal, _) => seal.has_nonce(),
            Self::Clear | Self::Moving(_) => true,
        }
    }

    /// Most that a block takes beside its own bytes and its entry.
    fn room(&self) -> usize {
        if matches!(self, Self::Clear) { 0 } else { TAG_SIZE + SEGMENT_SIZE }
    }
}

/// The checked index of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackIndex {
    /// What the pack holds.
    pub kind: PackKind,
    /// How its blocks are encrypted; none where they are not.
    pub cipher: Option<Cipher>,
    /// Its blocks in stored order.
    pub entries: Vec<Entry>,
}

/// What a footer says, and does not contradict itself in.
pub(crate) struct FooterParts {
    pub(crate) index_offset: usize,
    pub(crate) entries: usize,
    pub(crate) cipher: Option<Cipher>,
    pub(crate) segments: usize,
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
    /// Reads one entry, the number `at`, of a pack's index, with the key table of an encrypted pack. Whether it fits its pack
    /// is for the caller to check; the index as a whole is read with [`PackIndex::from_tail`].
    ///
    /// # Errors
    /// [`Error::Codec`] for a codec of a later version.
    pub fn from_bytes(
        bytes: &[u8; TRAILER_ENTRY_SIZE],
        at: u32,
        keys: Option<&KeyTable>,
    ) -> Result<Self, Error> {
        Ok(Self {
            id: bytes[..32].try_into().expect("32 bytes"),
            offset: read_u32(bytes, 32),
            sealed_size: read_u32(bytes, 36),
            plain_size: read_u32(bytes, 40),
            codec: Codec::from_byte(bytes[44])?,
            lock: keys.and_then(|keys| keys.lock(at, read_counter(bytes))),
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
        Ok(Sealed { codec: self.codec, lock: self.lock, bytes })
    }
}

impl PackWriter {
    /// An empty pack with room for `capacity` bytes.
    pub fn new(kind: PackKind, capacity: usize) -> Self {
        Self::reusing(kind, Vec::with_capacity(capacity.min(MAX_PACK_SIZE)))
    }

    /// An empty pack in the memory of one that is done with.
    pub fn reusing(kind: PackKind, bytes: Vec<u8>) -> Self {
        Self::salted(kind, Secrecy::Clear, bytes, random_salt())
    }

    /// An empty pack of blocks that are encrypted as they are added, in the memory of one that is done with.
    pub fn sealing(seal: PackSeal, bytes: Vec<u8>) -> Self {
        let keys = KeyTable::new(seal.cipher());
        Self::salted(PackKind::Data, Secrecy::Sealing(Box::new(seal), keys), bytes, random_salt())
    }

    /// An empty pack for blocks that were encrypted with this cipher before, and stay as they are: no key is needed.
    pub fn moving(cipher: Cipher, capacity: usize) -> Self {
        let bytes = Vec::with_capacity(capacity.min(MAX_PACK_SIZE));
        Self::salted(PackKind::Data, Secrecy::Moving(KeyTable::new(cipher)), bytes, random_salt())
    }

    /// An empty pack with a salt that is given: the same blocks make the same pack.
    pub(crate) fn salted(
        kind: PackKind,
        secrecy: Secrecy,
        mut bytes: Vec<u8>,
        salt: [u8; SALT_SIZE],
    ) -> Self {
        bytes.clear();
        bytes.extend_from_slice(HEADER_MAGIC);
        bytes.extend_from_slice(&[VERSION, kind as u8, encryption_byte(secrecy.keys())]);
        bytes.extend_from_slice(&salt);
        Self { kind, bytes, entries: Vec::new(), secrecy }
    }

    /// Size that the pack would have if it were finished now.
    pub fn size(&self) -> usize {
        let keys = self.secrecy.keys().map_or(0, |keys| keys.len() * SEGMENT_SIZE);
        self.bytes.len() + keys + self.entries.len() * TRAILER_ENTRY_SIZE + TRAILER_FOOTER_SIZE
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
        let block = blocks::BLOCK_SIZE as usize + TRAILER_ENTRY_SIZE + self.secrecy.room();
        self.size() + block <= limit.min(MAX_PACK_SIZE) && self.secrecy.has_nonce()
    }

    /// Adds a sealed block; of a pack that is [`sealing`](Self::sealing) one that is not yet encrypted, of one that is
    /// [`moving`](Self::moving) one that is.
    ///
    /// # Panics
    /// If the pack would grow over [`MAX_PACK_SIZE`], ask [`has_room`](Self::has_room) first; if the block is encrypted in
    /// another way than the pack.
    pub fn push(&mut self, id: [u8; 32], plain_size: usize, sealed: Sealed<'_>) {
        let room = sealed.bytes.len() + TRAILER_ENTRY_SIZE + self.secrecy.room();
        assert!(self.size() + room <= MAX_PACK_SIZE, "has_room was asked first");
        let fits = "bounded by MAX_PACK_SIZE";
        let at = u32::try_from(self.entries.len()).expect(fits);
        let start = self.bytes.len();
        let plain_size = u32::try_from(plain_size).expect(fits);
        self.bytes.extend_from_slice(sealed.bytes);
        let lock = match (&mut self.secrecy, sealed.lock) {
            (Secrecy::Clear, None) => None,
            (Secrecy::Sealing(seal, keys), None) => {
                let about = About::new(&id, plain_size, sealed.codec);
                let (tag, counter) = seal.seal(&about, &mut self.bytes[start..]);
                self.bytes.extend_from_slice(&tag);
                if at == 0 {
                    keys.begin(at, seal.salt());
                }
                keys.lock(at, counter)
            }
            (Secrecy::Moving(keys), Some(lock)) if lock.cipher == keys.cipher() => {
                // Within a segment the counters ascend: then nobody needs a key to see that none comes twice.
                let ascends = self
                    .entries
                    .last()
                    .and_then(|last| last.lock)
                    .is_some_and(|last| last.counter < lock.counter);
                if keys.last_salt() != Some(&lock.salt) || !ascends {
                    keys.begin(at, lock.salt);
                }
                Some(lock)
            }
            _ => panic!("a block is encrypted in another way than its pack"),
        };
        self.entries.push(Entry {
            id,
            offset: u32::try_from(start).expect(fits),
            sealed_size: u32::try_from(self.bytes.len() - start).expect(fits),
            plain_size,
            codec: sealed.codec,
            lock,
        });
    }

    /// Writes the index and the footer.
    pub fn finish(mut self) -> Pack {
        let tail = self.bytes.len();
        if let Some(keys) = self.secrecy.keys() {
            keys.write(&mut self.bytes);
        }
        let index_offset = self.bytes.len();
        for entry in &self.entries {
            self.bytes.extend_from_slice(&entry.id);
            for number in [entry.offset, entry.sealed_size, entry.plain_size] {
                self.bytes.extend_from_slice(&number.to_le_bytes());
            }
            let counter = entry.lock.map_or(0, |lock| lock.counter).to_le_bytes();
            self.bytes.extend_from_slice(&[entry.codec as u8, counter[0], counter[1], counter[2]]);
        }
        let mut end = Vec::with_capacity(TRAILER_FOOTER_SIZE - HASH_SIZE);
        for number in [index_offset, self.entries.len()] {
            let number = u32::try_from(number).expect("bounded by MAX_PACK_SIZE");
            end.extend_from_slice(&number.to_le_bytes());
        }
        let keys = self.secrecy.keys();
        end.extend_from_slice(&[VERSION, self.kind as u8, encryption_byte(keys)]);
        let segments = u32::try_from(keys.map_or(0, KeyTable::len)).expect("bounded by MAX_PACK_SIZE");
        end.extend_from_slice(&segments.to_le_bytes());
        end.push(0);
        end.extend_from_slice(FOOTER_MAGIC);
        let hash = trailer_hash(&self.bytes[tail..], &end);
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
        let parts = footer_parts(footer, pack_size)?;
        Ok(parts.segments * SEGMENT_SIZE + parts.entries * TRAILER_ENTRY_SIZE + TRAILER_FOOTER_SIZE)
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
        let (tail, footer) = tail.split_at(footer_at);
        let parts = footer_parts(footer, pack_size)?;
        let keys_size = parts.segments * SEGMENT_SIZE;
        if tail.len() != keys_size + parts.entries * TRAILER_ENTRY_SIZE {
            return Err(bad("the index has another size than the footer says".into()));
        }
        let hash = trailer_hash(tail, &footer[HASH_SIZE..]);
        if hash.as_bytes() != &footer[..HASH_SIZE] {
            return Err(bad("the index is damaged: its hash does not match".into()));
        }
        let kind = PackKind::from_byte(footer[41])?;
        if kind == PackKind::Tree && parts.cipher.is_some() {
            return Err(bad("it holds nodes, and they are never encrypted".into()));
        }
        let count = read_u32(footer, 36);
        let (keys, index) = tail.split_at(keys_size);
        let keys = parts.cipher.map(|cipher| KeyTable::parse(keys, cipher, count)).transpose()?;
        // Both fit: the footer was checked against the pack's size, at most MAX_PACK_SIZE.
        let blocks_end = read_u32(footer, 32) - keys_size as u32;
        let mut entries: Vec<Entry> = Vec::with_capacity(parts.entries);
        let mut next = HEADER_SIZE as u32;
        for (bytes, at) in index.as_chunks().0.iter().zip(0..) {
            let entry = Entry::from_bytes(bytes, at, keys.as_ref())?;
            check_counter(bytes, &entry, entries.last(), keys.as_ref().is_some_and(|keys| keys.begins(at)))?;
            let end = entry.offset.checked_add(entry.sealed_size);
            if entry.offset != next || end.is_none_or(|end| end > blocks_end) {
                return Err(bad(format!("block at {} overlaps or leaves a gap", entry.offset)));
            }
            if u64::from(entry.plain_size) > blocks::BLOCK_SIZE {
                return Err(bad(format!("block at {} is over 64 KiB", entry.offset)));
            }
            next = end.expect("checked above");
            entries.push(entry);
        }
        if next != blocks_end {
            return Err(bad(format!("{} bytes belong to no block", blocks_end - next)));
        }
        Ok(Self { kind, cipher: parts.cipher, entries })
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
        let expected = [HEADER_MAGIC, &[VERSION, self.kind as u8, cipher_byte(self.cipher)][..]].concat();
        match header.len() == HEADER_SIZE && header.starts_with(&expected) {
            true => Ok(()),
            false => Err(bad("its header does not match its footer".into())),
        }
    }
}

/// Checks a footer against itself and the size of its pack.
pub(crate) fn footer_parts(footer: &[u8], pack_size: u64) -> Result<FooterParts, Error> {
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
    let cipher = match footer[42] {
        NOT_ENCRYPTED => None,
        code => Some(
            Cipher::from_byte(code)
                .map_err(|_| bad("it is encrypted in a way this version does not know".into()))?,
        ),
    };
    let index_offset = read_u32(footer, 32) as usize;
    let (entries, segments) = (read_u32(footer, 36) as usize, read_u32(footer, 43) as usize);
    let index =
        entries.checked_mul(TRAILER_ENTRY_SIZE).and_then(|size| size.checked_add(TRAILER_FOOTER_SIZE));
    let keys = segments.checked_mul(SEGMENT_SIZE).and_then(|size| size.checked_add(HEADER_SIZE));
    let fits = index.and_then(|size| index_offset.checked_add(size)) == Some(pack_size)
        && keys.is_some_and(|least| index_offset >= least)
        && segments <= entries
        && (cipher.is_some() || segments == 0);
    if !fits {
        return Err(bad(format!("an index of {entries} entries at {index_offset} does not fit")));
    }
    Ok(FooterParts { index_offset, entries, cipher, segments })
}

/// Whether an entry's counter is one that its writer can have given: none without encryption, and ascending within a
/// segment, so that no key meets a nonce twice within the pack.
fn check_counter(
    bytes: &[u8; TRAILER_ENTRY_SIZE],
    entry: &Entry,
    before: Option<&Entry>,
    begins: bool,
) -> Result<(), Error> {
    let counter = read_counter(bytes);
    let fits = match entry.lock {
        None => counter == 0,
        Some(_) if begins => true,
        Some(_) => before.and_then(|before| before.lock).is_some_and(|before| before.counter < counter),
    };
    let tag_fits = entry.lock.is_none() || entry.sealed_size as usize >= TAG_SIZE;
    match fits && tag_fits {
        true => Ok(()),
        false => {
            Err(bad(format!("the nonce of the block at {} is {counter}, which cannot be", entry.offset)))
        }
    }
}

fn read_counter(entry: &[u8; TRAILER_ENTRY_SIZE]) -> u32 {
    u32::from_le_bytes([entry[45], entry[46], entry[47], 0])
}

fn cipher_byte(cipher: Option<Cipher>) -> u8 {
    cipher.map_or(NOT_ENCRYPTED, |cipher| cipher as u8)
}

fn encryption_byte(keys: Option<&KeyTable>) -> u8 {
    cipher_byte(keys.map(KeyTable::cipher))
}

/// So that a pack's name never comes again: of one that was removed, nobody can tell when the last program that is about to
/// remove it has done so.
fn random_salt() -> [u8; SALT_SIZE] {
    // Keys from the system for each thread, and other ones each time.
    let random = RandomState::new().hash_one(0u8).to_le_bytes();
    [random[0], random[1], random[2], random[3], random[4]]
}

fn trailer_hash(tables: &[u8], end: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tables);
    hasher.update(end);
    hasher.finalize()
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn bad(reason: String) -> Error {
    Error::Pack { reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdKey, Opener, Sealer};
    use proptest::prelude::*;

    fn sample() -> Pack {
        let mut writer = PackWriter::salted(PackKind::Data, Secrecy::Clear, Vec::new(), [0; SALT_SIZE]);
        writer.push([1; 32], 3, Sealed::clear(Codec::Stored, b"abc"));
        writer.push([2; 32], 5, Sealed::clear(Codec::Stored, b"defgh"));
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
        let second = Entry::from_bytes(expected[24 + 48..][..48].try_into().expect("an entry"), 1, None);
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
            writer.push([1; 32], 3, Sealed::clear(Codec::Stored, b"abc"));
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
