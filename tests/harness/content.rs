//! Bytes for disks: the same for the same seed, and not compressible or compressible as asked.

/// Incompressible bytes: a 64-bit xorshift, by seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// Compressible bytes in which no two 64 KiB blocks are equal: numbered lines.
pub fn text(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 64);
    let mut line = 0u64;
    while bytes.len() < size {
        bytes.extend_from_slice(
            format!("{seed} line {line} of a file that compresses well enough\n").as_bytes(),
        );
        line += 1;
    }
    bytes.truncate(size);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_reproducible_and_differs_by_seed() {
        assert_eq!(noise(1, 100), noise(1, 100));
        assert_ne!(noise(1, 100), noise(2, 100));
        assert_eq!(text(1, 65).len(), 65);
    }
}
