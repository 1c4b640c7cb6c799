//! Checksums of members: SHA-1 and XXH64 as their checksum members spell them, SHA-256 of whole disks.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

/// Zeros are hashed in pieces of this size.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Bytes as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

/// SHA-1 as a `.checksum` member spells it. It finds damage, it proves nothing.
pub(crate) fn sha1_hex(bytes: &[u8]) -> String {
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref())
}

/// XXH64 with seed 0 as a `.xxhash` member spells it.
pub(crate) fn xxh64_hex(bytes: &[u8]) -> String {
    format!("{:016X}", xxhash_rust::xxh64::xxh64(bytes, 0))
}

/// First 16 bytes of SHA-256, for names derived from content.
pub(crate) fn sha256_16(bytes: &[u8]) -> [u8; 16] {
    let full = digest(&SHA256, bytes);
    let mut short = [0; 16];
    short.copy_from_slice(&full.as_ref()[..16]);
    short
}

/// SHA-256 over a disk, chunk by chunk.
pub(crate) struct DiskDigest(Context);

impl DiskDigest {
    pub(crate) fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn update_zeros(&mut self, mut count: u64) {
        while count > 0 {
            let step = count.min(ZEROS.len() as u64);
            self.0.update(&ZEROS[..step as usize]);
            count -= step;
        }
    }

    pub(crate) fn finish_hex(self) -> String {
        hex(self.0.finish().as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_published_ones() {
        assert_eq!(sha1_hex(b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(xxh64_hex(b""), "EF46DB3751D8E999");
        let mut whole = DiskDigest::new();
        whole.update(b"abc");
        assert_eq!(whole.finish_hex(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn zeros_hash_as_bytes() {
        let mut counted = DiskDigest::new();
        counted.update_zeros(150_000);
        let mut fed = DiskDigest::new();
        fed.update(&vec![0; 150_000]);
        assert_eq!(counted.finish_hex(), fed.finish_hex());
    }
}
