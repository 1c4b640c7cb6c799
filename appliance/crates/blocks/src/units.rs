//! Unit types: a byte is never mistaken for a block, a count never for a position.
//!
//! All arithmetic is checked: `checked_*` returns `None`, everything else panics only on a programming
//! error that `overflow-checks` would also have caught.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Bytes in a block: the granule of XAPI's changed-block tracking and our unit of deduplication.
pub const BLOCK_SIZE: u64 = 64 * 1024;

/// Largest disk accepted anywhere: 64 TiB. XenServer's own limit is 2 TiB for VHD and 16 TiB for newer
/// formats; the bound keeps a hostile size from turning into a huge bitmap (128 MiB at this size).
pub const MAX_DISK_SIZE: ByteCount = ByteCount::new(64 << 40);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteCount(u64);

/// A position on a disk, in bytes from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ByteOffset(u64);

/// A number of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockCount(u64);

/// A block's position on its disk, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(u64);

/// Neighbouring blocks: `count` of them from `start` on. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: BlockIndex,
    /// How many blocks, at least one.
    pub count: BlockCount,
}

impl ByteCount {
    /// Wraps a number of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Blocks that a disk of this size has; a short last block counts as one.
    pub const fn blocks_ceil(self) -> BlockCount {
        BlockCount(self.0.div_ceil(BLOCK_SIZE))
    }

    /// Whole blocks in this many bytes.
    pub const fn blocks_floor(self) -> BlockCount {
        BlockCount(self.0 / BLOCK_SIZE)
    }

    /// Size in memory, or `None` where this machine could not address it.
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// Bytes of block `index` on a disk of this size: 64 KiB, less for a short last block, `None` past
    /// the end.
    pub fn block_size_at(self, index: BlockIndex) -> Option<ByteCount> {
        let start = index.0.checked_mul(BLOCK_SIZE)?;
        let left = self.0.checked_sub(start)?;
        (left > 0).then(|| ByteCount(left.min(BLOCK_SIZE)))
    }

    /// Sum, or `None` on overflow.
    pub fn checked_add(self, other: ByteCount) -> Option<ByteCount> {
        self.0.checked_add(other.0).map(ByteCount)
    }

    /// Sum that stops at the maximum: for counters shown to people.
    pub fn saturating_add(self, other: ByteCount) -> ByteCount {
        ByteCount(self.0.saturating_add(other.0))
    }
}

impl ByteOffset {
    /// Wraps a position in bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The position in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The block that holds this byte.
    pub const fn block_floor(self) -> BlockIndex {
        BlockIndex(self.0 / BLOCK_SIZE)
    }

    /// Position `count` further on, or `None` on overflow.
    pub fn checked_add(self, count: ByteCount) -> Option<ByteOffset> {
        self.0.checked_add(count.0).map(ByteOffset)
    }
}

impl BlockCount {
    /// Wraps a number of blocks.
    pub const fn new(blocks: u64) -> Self {
        Self(blocks)
    }

    /// The number of blocks.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes of this many whole blocks, or `None` on overflow.
    pub fn to_bytes(self) -> Option<ByteCount> {
        self.0.checked_mul(BLOCK_SIZE).map(ByteCount)
    }
}

impl BlockIndex {
    /// Wraps a block position.
    pub const fn new(index: u64) -> Self {
        Self(index)
    }

    /// The block position.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// First byte of the block, or `None` on overflow.
    pub fn to_offset(self) -> Option<ByteOffset> {
        self.0.checked_mul(BLOCK_SIZE).map(ByteOffset)
    }
}

impl BlockRange {
    /// The block after the last one.
    pub fn end(self) -> BlockIndex {
        BlockIndex(self.start.0 + self.count.0)
    }

    /// The blocks one by one.
    pub fn blocks(self) -> impl Iterator<Item = BlockIndex> {
        (self.start.0..self.start.0 + self.count.0).map(BlockIndex)
    }
}

/// Binary prefixes, two significant decimals: `1.50 GiB`.
impl fmt::Display for ByteCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PREFIXES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let mut value = self.0 as f64 / 1024.0;
        let mut prefix = 0;
        while value >= 1024.0 && prefix + 1 < PREFIXES.len() {
            value /= 1024.0;
            prefix += 1;
        }
        write!(f, "{value:.2} {}", PREFIXES[prefix])
    }
}

/// Hexadecimal, as addresses are shown: `0x40000`.
impl fmt::Display for ByteOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for BlockCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_at_every_edge() {
        let size = ByteCount::new(BLOCK_SIZE + 512);
        assert_eq!(size.blocks_ceil(), BlockCount::new(2));
        assert_eq!(size.blocks_floor(), BlockCount::new(1));
        assert_eq!(size.block_size_at(BlockIndex::new(0)), Some(ByteCount::new(BLOCK_SIZE)));
        assert_eq!(size.block_size_at(BlockIndex::new(1)), Some(ByteCount::new(512)));
        assert_eq!(size.block_size_at(BlockIndex::new(2)), None);
        assert_eq!(size.block_size_at(BlockIndex::new(u64::MAX)), None);
        assert_eq!(ByteCount::new(0).blocks_ceil(), BlockCount::new(0));
        assert_eq!(ByteCount::new(0).block_size_at(BlockIndex::new(0)), None);
        assert_eq!(ByteCount::new(u64::MAX).blocks_ceil().get(), u64::MAX / BLOCK_SIZE + 1);
    }

    #[test]
    fn byte_counts_read_well() {
        assert_eq!(ByteCount::new(512).to_string(), "512 B");
        assert_eq!(ByteCount::new(BLOCK_SIZE).to_string(), "64.00 KiB");
        assert_eq!(ByteCount::new(3 << 39).to_string(), "1.50 TiB");
    }
}
