//! The simulator's digest of a disk, of anything that stands for a disk.

use sha2::{Digest, Sha256};

/// The block of the digest, of change tracking and of the store.
pub(crate) const GRANULE: usize = 65_536;

/// The digest that the simulator gives of a disk's blocks that are not zeros.
#[derive(Debug)]
pub(crate) struct SparseDigest(Sha256);

impl SparseDigest {
    /// Of a disk of this size.
    pub(crate) fn new(size: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(size.to_le_bytes());
        Self(hash)
    }

    /// The next block that is not all zeros; its number counts from the start of the disk.
    pub(crate) fn block(&mut self, index: u64, bytes: &[u8]) {
        self.0.update(index.to_le_bytes());
        self.0.update(bytes);
    }

    /// The digest in hexadecimal.
    pub(crate) fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The simulator's digest of a disk that is in memory: its size, and its blocks that are not zeros.
pub fn sparse_digest(bytes: &[u8]) -> String {
    static ZEROS: [u8; GRANULE] = [0; GRANULE];
    let mut digest = SparseDigest::new(bytes.len() as u64);
    for (index, block) in (0u64..).zip(bytes.chunks(GRANULE)) {
        if block != &ZEROS[..block.len()] {
            digest.block(index, block);
        }
    }
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_knows_size_place_and_content_and_no_zeros() {
        let mut bytes = vec![0; 3 * GRANULE + 5];
        let empty = sparse_digest(&bytes);
        // From sha256sum, of the size alone.
        assert_eq!(empty, SparseDigest::new(bytes.len() as u64).finish());
        assert_ne!(sparse_digest(&bytes[1..]), empty);
        bytes[GRANULE] = 1;
        let one = sparse_digest(&bytes);
        bytes.swap(GRANULE, 2 * GRANULE);
        assert_ne!(sparse_digest(&bytes), one);
        bytes[2 * GRANULE] = 0;
        assert_eq!(sparse_digest(&bytes), empty);
    }
}
