//! The key table of an encrypted pack: what the key of each of its blocks was made of.
//!
//! ```text
//! segment 36   first entry u32 | salt 32
//! ```
//! A segment lasts until the next one begins. A pack that was written in one go has one; one that a collector filled with
//! what it moved out of other packs has one for each of those. The table stands between the blocks and the index, so that
//! the index is found from the end of a pack as in one that is not encrypted.

use crate::pack::bad;
use crate::secret::KEY_SALT_SIZE;
use crate::{Cipher, Error, Lock};

/// Bytes of one segment.
pub const SEGMENT_SIZE: usize = 4 + KEY_SALT_SIZE;

/// The checked key table of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyTable {
    cipher: Cipher,
    /// The first entry of each segment, ascending, and its salt.
    segments: Vec<(u32, [u8; KEY_SALT_SIZE])>,
}

/// Where a key table stands, as the footer of its pack says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTablePlace {
    /// How the pack's blocks are encrypted.
    pub cipher: Cipher,
    /// First byte in the pack.
    pub offset: usize,
    /// Its bytes.
    pub size: usize,
    /// Entries of the pack's index.
    entries: u32,
}

impl KeyTablePlace {
    /// From a pack's last [`TRAILER_FOOTER_SIZE`](crate::TRAILER_FOOTER_SIZE) bytes; `None` where its blocks are not encrypted.
    ///
    /// # Errors
    /// As [`PackIndex::tail_size`](crate::PackIndex::tail_size).
    pub fn from_footer(footer: &[u8], pack_size: u64) -> Result<Option<Self>, Error> {
        let parts = crate::pack::footer_parts(footer, pack_size)?;
        Ok(parts.cipher.map(|cipher| {
            let size = parts.segments * SEGMENT_SIZE;
            let entries = u32::try_from(parts.entries).expect("bounded by MAX_PACK_SIZE");
            Self { cipher, offset: parts.index_offset - size, size, entries }
        }))
    }
}

impl KeyTable {
    pub(crate) fn new(cipher: Cipher) -> Self {
        Self { cipher, segments: Vec::new() }
    }

    /// Reads and checks the bytes at a place.
    ///
    /// # Errors
    /// [`Error::Pack`] where they are no such table.
    pub fn from_bytes(bytes: &[u8], place: &KeyTablePlace) -> Result<Self, Error> {
        if bytes.len() != place.size {
            return Err(bad(format!("its key table has {} bytes instead of {}", bytes.len(), place.size)));
        }
        Self::parse(bytes, place.cipher, place.entries)
    }

    pub(crate) fn parse(bytes: &[u8], cipher: Cipher, entries: u32) -> Result<Self, Error> {
        let mut segments: Vec<(u32, [u8; KEY_SALT_SIZE])> = Vec::with_capacity(bytes.len() / SEGMENT_SIZE);
        for segment in bytes.chunks_exact(SEGMENT_SIZE) {
            let (first, salt) = segment.split_at(4);
            let first = u32::from_le_bytes(first.try_into().expect("4 bytes"));
            let fits = match segments.last() {
                None => first == 0,
                Some((before, _)) => first > *before,
            };
            if !fits || first >= entries {
                return Err(bad(format!("a segment of its key table begins at entry {first}")));
            }
            segments.push((first, salt.try_into().expect("32 bytes")));
        }
        if segments.is_empty() && entries > 0 {
            return Err(bad("it is encrypted and has no key table".into()));
        }
        Ok(Self { cipher, segments })
    }

    pub(crate) fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// How many segments there are.
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(crate) fn begin(&mut self, first: u32, salt: [u8; KEY_SALT_SIZE]) {
        self.segments.push((first, salt));
    }

    /// The salt of the last segment.
    pub(crate) fn last_salt(&self) -> Option<&[u8; KEY_SALT_SIZE]> {
        self.segments.last().map(|(_, salt)| salt)
    }

    pub(crate) fn write(&self, bytes: &mut Vec<u8>) {
        for (first, salt) in &self.segments {
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(salt);
        }
    }

    /// How the entry `at` of the index was encrypted, whose counter is given.
    pub fn lock(&self, at: u32, counter: u32) -> Option<Lock> {
        let after = self.segments.partition_point(|(first, _)| *first <= at);
        let (_, salt) = self.segments.get(after.checked_sub(1)?)?;
        Some(Lock { cipher: self.cipher, salt: *salt, counter })
    }

    /// Whether an entry begins a segment.
    pub(crate) fn begins(&self, at: u32) -> bool {
        self.segments.binary_search_by_key(&at, |(first, _)| *first).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pack::Secrecy;
    use crate::{
        BlockId, Codec, IdKey, MasterKey, Opener, Pack, PackIndex, PackKind, PackWriter, Sealed, Sealer,
        TRAILER_ENTRY_SIZE, TRAILER_FOOTER_SIZE,
    };

    const PLAINS: [&[u8]; 3] = [b"abc", &[7; 5000], b"something else"];

    fn key() -> IdKey {
        IdKey::encrypted(&[1; 32], MasterKey::new([7; 32]))
    }

    fn pack(cipher: Cipher, plains: &[&[u8]]) -> Pack {
        let (key, mut sealer) = (key(), Sealer::new(1).expect("sealer"));
        let seal = key.master().expect("encrypted").pack_seal(cipher).expect("randomness");
        let mut writer = PackWriter::sealing(seal, Vec::new());
        for plain in plains {
            let sealed = sealer.seal(plain).expect("seal");
            writer.push(*key.block_id(plain).as_bytes(), plain.len(), sealed);
        }
        let size = writer.size();
        let pack = writer.finish();
        assert_eq!(size, pack.bytes.len());
        pack
    }

    /// Opens every block; the first error ends it.
    fn open(key: &IdKey, pack: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
        let index = PackIndex::from_pack(pack)?;
        let mut opener = Opener::new()?;
        let open = |entry: &crate::Entry| {
            let id = BlockId::from_bytes(entry.id);
            opener.open_block(key, id, entry.sealed(pack)?, entry.plain_size as usize).map(<[u8]>::to_vec)
        };
        index.entries.iter().map(open).collect()
    }

    /// The bytes of FORMAT.md, made with Python's `blake3` and `cryptography` packages.
    #[test]
    fn golden_encrypted_pack() {
        let seal = MasterKey::new([7; 32]).salted_seal(Cipher::Aes256Gcm, [9; 32]);
        let keys = KeyTable::new(Cipher::Aes256Gcm);
        let mut writer =
            PackWriter::salted(PackKind::Data, Secrecy::Sealing(Box::new(seal), keys), Vec::new(), [0; 5]);
        writer.push([1; 32], 3, Sealed::clear(Codec::Stored, b"abc"));
        writer.push([2; 32], 5, Sealed::clear(Codec::Stored, b"defgh"));
        let pack = writer.finish();
        let hex: String = pack.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN_PACK);
        assert_eq!(pack.id.to_string(), GOLDEN_ID);
    }
    const GOLDEN_PACK: &str = "4142445041434b310101010000000000e54093bb820a4bf2a8eeaaaa2f65bee6d48c258feeeff069bf67f8deaabbd552339eda7eead2f9c4000000000909090909090909090909090909090909090909090909090909090909090909010101010101010101010101010101010101010101010101010101010101010110000000130000000300000000000000020202020202020202020202020202020202020202020202020202020202020223000000150000000500000000010000b9b3e3dbeecc24c2c142345ec9142f5d1e3641f57e3f7c9cae6f859c86eb287b5c00000002000000010101010000000041424450454e4431";
    const GOLDEN_ID: &str = "09178f725f82034a6d062c8225fe23e01ee0ebe2757d5144f0217c0fa1d587d4";

    #[test]
    fn encrypted_packs_round_trip_and_show_nothing() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let pack = pack(cipher, &PLAINS);
            assert_eq!(PackIndex::from_pack(&pack.bytes).expect("whole").cipher, Some(cipher));
            assert_eq!(open(&key(), &pack.bytes).expect("opens"), PLAINS);
            assert!(!pack.bytes.windows(14).any(|bytes| bytes == PLAINS[2]));
            assert_eq!(open(&IdKey::locked(&[1; 32]), &pack.bytes), Err(Error::Locked));
            let other = IdKey::encrypted(&[1; 32], MasterKey::new([8; 32]));
            assert_eq!(open(&other, &pack.bytes), Err(Error::Forged));
        }
    }

    #[test]
    fn blocks_open_in_place_too() {
        let pack = pack(Cipher::fastest(), &PLAINS);
        let index = PackIndex::from_pack(&pack.bytes).expect("whole");
        let mut opener = Opener::new().expect("opener");
        for (entry, plain) in index.entries.iter().zip(PLAINS) {
            let mut room = vec![0; plain.len()];
            let sealed = entry.sealed(&pack.bytes).expect("inside");
            let id = BlockId::from_bytes(entry.id);
            assert_eq!(opener.open_block_into(&key(), id, sealed, &mut room), Ok(()));
            assert_eq!(room, plain);
            let locked = opener.open_block_into(&IdKey::locked(&[1; 32]), id, sealed, &mut room);
            assert_eq!(locked, Err(Error::Locked));
        }
    }

    /// The salt in the header is proven by the pack's name.
    #[test]
    fn every_flipped_byte_of_an_encrypted_pack_is_found() {
        let pack = pack(Cipher::fastest(), &PLAINS).bytes;
        for at in (0..pack.len()).filter(|at| !(11..16).contains(at)) {
            let mut bad = pack.clone();
            bad[at] ^= 0x41;
            assert!(open(&key(), &bad).is_err(), "byte {at}");
        }
        for size in 0..pack.len() {
            assert!(open(&key(), &pack[..size]).is_err(), "size {size}");
        }
    }

    #[test]
    fn the_same_block_twice_is_not_the_same_bytes() {
        let pack = pack(Cipher::fastest(), &[PLAINS[2], PLAINS[2]]);
        let index = PackIndex::from_pack(&pack.bytes).expect("whole");
        let bytes = |at: usize| index.entries[at].sealed(&pack.bytes).expect("inside").bytes;
        assert_ne!(bytes(0), bytes(1));
    }

    fn moved(cipher: Cipher, from: &[(&Pack, &[usize])]) -> Pack {
        let mut writer = PackWriter::moving(cipher, 1000);
        for (pack, entries) in from {
            let index = PackIndex::from_pack(&pack.bytes).expect("whole");
            for at in *entries {
                let entry = &index.entries[*at];
                let sealed = entry.sealed(&pack.bytes).expect("inside");
                writer.push(entry.id, entry.plain_size as usize, sealed);
            }
        }
        let size = writer.size();
        let pack = writer.finish();
        assert_eq!(size, pack.bytes.len());
        pack
    }

    #[test]
    fn who_has_no_key_moves_blocks_to_other_packs_and_they_open_there() {
        let cipher = Cipher::ChaCha20Poly1305;
        let (first, second) = (pack(cipher, &PLAINS), pack(cipher, &[b"one", b"two", b"three"]));
        let one = moved(cipher, &[(&first, &[0, 2]), (&second, &[1]), (&first, &[1])]);
        let expected = [PLAINS[0], PLAINS[2], b"two", PLAINS[1]];
        assert_eq!(open(&key(), &one.bytes).expect("opens"), expected);
        // And on to another one, with more segments than one pack.
        let again = moved(cipher, &[(&one, &[1, 2, 3]), (&second, &[0, 2])]);
        let expected = [PLAINS[2], b"two", PLAINS[1], b"one", b"three"];
        assert_eq!(open(&key(), &again.bytes).expect("opens"), expected);
        let index = PackIndex::from_pack(&again.bytes).expect("whole");
        let locks: Vec<_> = index.entries.iter().map(|entry| entry.lock.expect("encrypted")).collect();
        let met: std::collections::HashSet<_> = locks.iter().map(|lock| (lock.salt, lock.counter)).collect();
        assert_eq!(met.len(), 5);
    }

    #[test]
    #[should_panic(expected = "in another way than its pack")]
    fn a_writer_for_encrypted_blocks_takes_no_other() {
        PackWriter::moving(Cipher::Aes256Gcm, 100).push([1; 32], 3, Sealed::clear(Codec::Stored, b"abc"));
    }

    /// Changes the tail of a pack and makes its hash right again.
    fn forged(pack: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut bad = pack.to_vec();
        let footer = bad.len() - TRAILER_FOOTER_SIZE;
        let place = KeyTablePlace::from_footer(&bad[footer..], bad.len() as u64).expect("footer");
        let tail = place.expect("encrypted").offset;
        change(&mut bad[tail..footer]);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bad[tail..footer]);
        hasher.update(&bad[footer + 32..]);
        bad[footer..footer + 32].copy_from_slice(hasher.finalize().as_bytes());
        bad
    }

    #[test]
    fn a_pack_that_would_use_a_nonce_twice_is_refused_without_a_key() {
        let pack = pack(Cipher::fastest(), &PLAINS).bytes;
        assert_eq!(forged(&pack, |_| ()), pack);
        let counter = |entry: usize| SEGMENT_SIZE + entry * TRAILER_ENTRY_SIZE + 45;
        for value in [0, 1] {
            let bad = forged(&pack, |tail| tail[counter(2)] = value);
            assert!(matches!(PackIndex::from_pack(&bad), Err(Error::Pack { .. })), "{value}");
        }
        // One that only skips nonces may be a moved one; then its blocks do not open.
        let bad = forged(&pack, |tail| tail[counter(2)] = 9);
        assert_eq!(open(&key(), &bad), Err(Error::Forged));
    }

    #[test]
    fn a_key_table_that_makes_no_sense_is_refused() {
        let pack = pack(Cipher::fastest(), &PLAINS).bytes;
        let bad = forged(&pack, |tail| tail[0] = 1);
        assert!(matches!(PackIndex::from_pack(&bad), Err(Error::Pack { .. })));
        let one = moved(Cipher::fastest(), &[(&self::pack(Cipher::fastest(), &PLAINS), &[1, 0])]).bytes;
        assert!(PackIndex::from_pack(&one).is_ok());
        for first in [0, 2, 9] {
            let bad = forged(&one, |tail| tail[SEGMENT_SIZE] = first);
            assert!(matches!(PackIndex::from_pack(&bad), Err(Error::Pack { .. })), "{first}");
        }
    }

    #[test]
    fn a_block_in_another_ones_place_is_found() {
        let pack = pack(Cipher::fastest(), &[b"one", b"two"]).bytes;
        // What a locked store cannot see: the ids of two blocks of the same size change places.
        let bad = forged(&pack, |tail| {
            let (first, second) = tail[SEGMENT_SIZE..].split_at_mut(TRAILER_ENTRY_SIZE);
            first[..32].swap_with_slice(&mut second[..32]);
        });
        assert!(PackIndex::from_pack(&bad).is_ok());
        assert_eq!(open(&key(), &bad), Err(Error::Forged));
    }
}
