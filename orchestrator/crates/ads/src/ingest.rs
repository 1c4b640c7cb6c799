//! Taking in packs: nothing is believed.
//!
//! A pack is kept only after its name was checked against its bytes, its index against its hash, and every
//! object in it was opened and hashed. Blocks of an encrypted store that is locked cannot be: that they are what their ids
//! say is proven by whoever has the key, when he restores or verifies. This happens on all cores: the thread pool of `rayon` is the bound.

use crate::Error;
use crate::store::Store;
use blocks::ByteCount;
use rayon::prelude::*;
use seal::{Entry, IdKey, NODE_SIZE, NodeId, Opener, PackId, PackIndex, PackKind, is_zero};
use std::time::{Duration, Instant};

/// Objects that one thread checks with one opener: 4 MiB of plain bytes.
const BATCH: usize = 64;

/// A pack was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackReceipt {
    /// Bytes that the store gained; 0 where it had the pack.
    pub stored: ByteCount,
    /// Blocks in the pack.
    pub blocks: u64,
    /// Tree nodes in the pack.
    pub nodes: u64,
    /// How long checking it took.
    pub checked_in: Duration,
    /// How long writing and syncing it took.
    pub kept_in: Duration,
}

impl Store {
    /// Checks every byte of a pack and keeps it. When this returns, the pack is durable and its objects are
    /// known.
    ///
    /// # Errors
    /// [`Error::BadPack`] naming the first check that failed, [`Error::Full`], or what the file system
    /// says. The store is then as it was.
    pub fn add_pack(&self, id: PackId, bytes: &[u8]) -> Result<PackReceipt, Error> {
        let began = Instant::now();
        let refused = |source| Error::BadPack { id, source };
        let found = PackId::of(bytes);
        if found != id {
            return Err(refused(seal::Error::PackId { expected: id, found }));
        }
        let index = PackIndex::from_pack(bytes).map_err(refused)?;
        check_encryption(&index, self.is_encrypted()).map_err(refused)?;
        if self.can_open(index.kind) {
            check_objects(&self.id_key, bytes, &index).map_err(refused)?;
        }
        let count = index.entries.len() as u64;
        let (blocks, nodes) = match index.kind {
            PackKind::Data => (count, 0),
            PackKind::Tree => (0, count),
        };
        let checked_in = began.elapsed();
        let mut stored = ByteCount::new(0);
        if !self.packs.contains(id) {
            self.keep_pack(id, bytes, &index)?;
            stored = ByteCount::new(bytes.len() as u64);
        }
        let kept_in = began.elapsed().saturating_sub(checked_in);
        Ok(PackReceipt { stored, blocks, nodes, checked_in, kept_in })
    }
}

/// Blocks are encrypted where the store is, and only there; nodes never.
pub(crate) fn check_encryption(index: &PackIndex, encrypted: bool) -> Result<(), seal::Error> {
    let reason = match (index.kind, index.cipher, encrypted) {
        (PackKind::Data, None, true) => "its blocks are not encrypted, and the store is",
        (PackKind::Data, Some(_), false) => "its blocks are encrypted, and the store is not",
        _ => return Ok(()),
    };
    Err(seal::Error::Pack { reason: reason.into() })
}

fn check_objects(key: &IdKey, pack: &[u8], index: &PackIndex) -> Result<(), seal::Error> {
    index.entries.par_chunks(BATCH).try_for_each(|entries| {
        let mut opener = Opener::new()?;
        entries.iter().try_for_each(|entry| check_object(key, pack, index.kind, entry, &mut opener))
    })
}

/// Opens one object of a whole pack and compares its bytes with its id.
pub(crate) fn check_object(
    key: &IdKey,
    pack: &[u8],
    kind: PackKind,
    entry: &Entry,
    opener: &mut Opener,
) -> Result<(), seal::Error> {
    let sealed = entry.sealed(pack)?;
    let plain = match kind {
        PackKind::Data => {
            let id = seal::BlockId::from_bytes(entry.id);
            opener.open_block(key, id, sealed, entry.plain_size as usize)?
        }
        PackKind::Tree => {
            let plain = opener.open(sealed, entry.plain_size as usize)?;
            if plain.len() != NODE_SIZE {
                return Err(seal::Error::NodeSize { expected: NODE_SIZE, found: plain.len() });
            }
            let (expected, found) = (NodeId::from_bytes(entry.id), key.node_id(plain));
            if found != expected {
                return Err(seal::Error::NodeId { expected, found });
            }
            plain
        }
    };
    // Zeros are absent everywhere; a second way to say them would give one disk two tree ids.
    if is_zero(plain) {
        return Err(seal::Error::Pack { reason: format!("the object at {} is all zeros", entry.offset) });
    }
    Ok(())
}
