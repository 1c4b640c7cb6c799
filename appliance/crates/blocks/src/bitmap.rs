//! The changed-block bitmap: which blocks of one disk must be read.
//!
//! One bit per block, in `u64` words, bit 0 of word 0 is block 0. The bytes that XAPI's
//! `VDI.list_changed_blocks` gives are most significant bit first; they are turned once, on the way in.
//! Bits past the end of the disk are always zero, so a count is a plain popcount.

use crate::units::{BlockCount, BlockIndex, BlockRange, ByteCount, MAX_DISK_SIZE};

/// A set of blocks of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangedBlocks {
    words: Vec<u64>,
    blocks: BlockCount,
}

/// Why a bitmap was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// Not one bit per block of the disk.
    #[error("changed-block bitmap has {found} bytes, a disk of {size} needs {expected}")]
    Length {
        /// Bytes that a bitmap of the disk has.
        expected: usize,
        /// Bytes that were given.
        found: usize,
        /// Size of the disk.
        size: ByteCount,
    },
    /// The disk is larger than any this program handles.
    #[error("a disk of {size} is over the limit of {MAX_DISK_SIZE}")]
    DiskTooLarge {
        /// Size of the disk.
        size: ByteCount,
    },
}

impl ChangedBlocks {
    /// No block of a disk of `size`.
    ///
    /// # Errors
    /// [`BitmapError::DiskTooLarge`] over [`MAX_DISK_SIZE`].
    pub fn none(size: ByteCount) -> Result<Self, BitmapError> {
        if size > MAX_DISK_SIZE {
            return Err(BitmapError::DiskTooLarge { size });
        }
        let blocks = size.blocks_ceil();
        let words =
            usize::try_from(blocks.get().div_ceil(64)).map_err(|_| BitmapError::DiskTooLarge { size })?;
        Ok(Self { words: vec![0; words], blocks })
    }

    /// Every block of a disk of `size`.
    ///
    /// # Errors
    /// [`BitmapError::DiskTooLarge`] over [`MAX_DISK_SIZE`].
    pub fn all(size: ByteCount) -> Result<Self, BitmapError> {
        let mut bitmap = Self::none(size)?;
        bitmap.words.fill(u64::MAX);
        bitmap.clear_past_end();
        Ok(bitmap)
    }

    /// From the decoded bytes of `VDI.list_changed_blocks` for a disk of `size`: most significant bit of
    /// byte 0 is block 0. Set bits past the end of the disk are padding and are dropped.
    ///
    /// # Errors
    /// [`BitmapError::Length`] unless there is exactly one bit per block, rounded up to a byte.
    pub fn from_xapi(bytes: &[u8], size: ByteCount) -> Result<Self, BitmapError> {
        let mut bitmap = Self::none(size)?;
        let expected = Self::xapi_size(bitmap.blocks);
        if bytes.len() != expected {
            return Err(BitmapError::Length { expected, found: bytes.len(), size });
        }
        // Read as one big-endian number, block 0 is the highest bit: turned around, it is the lowest.
        let (whole, rest) = bytes.as_chunks();
        for (word, eight) in bitmap.words.iter_mut().zip(whole) {
            *word = u64::from_be_bytes(*eight).reverse_bits();
        }
        if let Some(word) = bitmap.words.get_mut(whole.len()) {
            let mut eight = [0; 8];
            eight[..rest.len()].copy_from_slice(rest);
            *word = u64::from_be_bytes(eight).reverse_bits();
        }
        bitmap.clear_past_end();
        Ok(bitmap)
    }

    /// The same bytes that [`from_xapi`](Self::from_xapi) reads.
    pub fn to_xapi(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.words.len() * 8];
        for (eight, word) in bytes.as_chunks_mut().0.iter_mut().zip(&self.words) {
            *eight = word.reverse_bits().to_be_bytes();
        }
        bytes.truncate(Self::xapi_size(self.blocks));
        bytes
    }

    /// No block of the same disk.
    pub(crate) fn same_disk(&self) -> Self {
        Self { words: vec![0; self.words.len()], blocks: self.blocks }
    }

    /// How many blocks the disk has, changed or not.
    pub fn blocks(&self) -> BlockCount {
        self.blocks
    }

    /// How many blocks are in the set.
    pub fn count(&self) -> BlockCount {
        BlockCount::new(self.words.iter().map(|word| u64::from(word.count_ones())).sum())
    }

    /// Whether a block is in the set; false past the end.
    pub fn contains(&self, block: BlockIndex) -> bool {
        self.word_of(block).is_some_and(|(word, bit)| self.words[word] & bit != 0)
    }

    /// Whether any block of `range` is in the set.
    pub fn intersects(&self, range: BlockRange) -> bool {
        self.find(range.start.get(), range.end().get(), true).is_some()
    }

    /// Puts a block into the set; past the end nothing happens and `false` comes back.
    pub fn insert(&mut self, block: BlockIndex) -> bool {
        match self.word_of(block) {
            Some((word, bit)) => {
                self.words[word] |= bit;
                true
            }
            None => false,
        }
    }

    /// Puts every block of `range` that the disk has into the set.
    pub fn insert_range(&mut self, range: BlockRange) {
        self.fill(range.start.get(), range.end().get());
    }

    /// Sets the bits of blocks `start .. end`, as far as the disk has them: whole words but for the two at the edges.
    fn fill(&mut self, start: u64, end: u64) {
        let end = end.min(self.blocks.get());
        if start >= end {
            return;
        }
        let word = |block: u64| usize::try_from(block / 64).expect("bounded by MAX_DISK_SIZE");
        let (first, last) = (word(start), word(end - 1));
        let from = u64::MAX << (start % 64);
        let to = u64::MAX >> (63 - (end - 1) % 64);
        if first == last {
            self.words[first] |= from & to;
            return;
        }
        self.words[first] |= from;
        self.words[first + 1..last].fill(u64::MAX);
        self.words[last] |= to;
    }

    /// Adds every block of `other`, which may belong to another state of the same disk. Of an earlier, smaller
    /// one nothing is known about what was gained since: that is [`insert_growth`](Self::insert_growth)'s. Blocks of a
    /// larger one that this disk does not have are dropped.
    pub fn union(&mut self, other: &ChangedBlocks) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        self.clear_past_end();
    }

    /// Marks everything that the disk gained since it had `base` bytes. The base's last block, where it
    /// was short, has grown too and counts as changed: its bytes differ in number.
    pub fn insert_growth(&mut self, base: ByteCount) {
        self.fill(base.blocks_floor().get(), self.blocks.get());
    }

    /// The set as runs of neighbours, ascending.
    pub fn runs(&self) -> Runs<'_> {
        Runs { bitmap: self, next: 0, member: true }
    }

    /// The blocks that are not in the set, in the same way.
    pub(crate) fn gaps(&self) -> Runs<'_> {
        Runs { bitmap: self, next: 0, member: false }
    }

    fn xapi_size(blocks: BlockCount) -> usize {
        usize::try_from(blocks.get().div_ceil(8)).expect("bounded by MAX_DISK_SIZE")
    }

    fn word_of(&self, block: BlockIndex) -> Option<(usize, u64)> {
        if block.get() >= self.blocks.get() {
            return None;
        }
        let word = usize::try_from(block.get() / 64).expect("bounded by MAX_DISK_SIZE");
        Some((word, 1 << (block.get() % 64)))
    }

    fn clear_past_end(&mut self) {
        let used = self.blocks.get() % 64;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= (1 << used) - 1;
        }
    }

    /// First block of `from .. end` whose membership is `member`, as far as the disk has them. Looks no further than
    /// `end`: in a bitmap of a large disk with few blocks the next member may be megabytes away.
    fn find(&self, from: u64, end: u64, member: bool) -> Option<u64> {
        let end = end.min(self.blocks.get());
        if from >= end {
            return None;
        }
        let first = usize::try_from(from / 64).expect("bounded by MAX_DISK_SIZE");
        let last = usize::try_from((end - 1) / 64).expect("bounded by MAX_DISK_SIZE");
        let mut mask = u64::MAX << (from % 64);
        for (word, at) in self.words[first..=last].iter().zip(from / 64..) {
            let bits = if member { *word } else { !*word } & mask;
            if bits != 0 {
                let found = at * 64 + u64::from(bits.trailing_zeros());
                return (found < end).then_some(found);
            }
            mask = u64::MAX;
        }
        None
    }
}

/// Runs of neighbouring blocks of a [`ChangedBlocks`], ascending, never touching each other.
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    bitmap: &'a ChangedBlocks,
    next: u64,
    /// Whether the blocks of the set are meant, or the others.
    member: bool,
}

impl Iterator for Runs<'_> {
    type Item = BlockRange;

    fn next(&mut self) -> Option<BlockRange> {
        let blocks = self.bitmap.blocks.get();
        let start = self.bitmap.find(self.next, blocks, self.member)?;
        let end = self.bitmap.find(start, blocks, !self.member).unwrap_or(blocks);
        self.next = end;
        Some(BlockRange { start: BlockIndex::new(start), count: BlockCount::new(end - start) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BLOCK_SIZE;
    use proptest::prelude::*;

    fn disk(blocks: u64) -> ByteCount {
        ByteCount::new(blocks * BLOCK_SIZE)
    }

    /// Written by hand from XAPI's description: blocks 0, 9 and 17 of a disk of 18 blocks, and noise in
    /// the padding of the last byte.
    #[test]
    fn xapi_bitmap_is_most_significant_bit_first() {
        let bytes = [0b1000_0000, 0b0100_0000, 0b0111_1111];
        let bitmap = ChangedBlocks::from_xapi(&bytes, disk(18)).expect("three bytes fit 18 blocks");
        let found: Vec<u64> = (0..24).filter(|block| bitmap.contains(BlockIndex::new(*block))).collect();
        assert_eq!(found, [0, 9, 17]);
        assert_eq!(bitmap.count().get(), 3);
        assert_eq!(bitmap.to_xapi(), [0b1000_0000, 0b0100_0000, 0b0100_0000]);
    }

    #[test]
    fn bitmap_of_wrong_length_is_refused() {
        let error = ChangedBlocks::from_xapi(&[0; 2], disk(17)).expect_err("17 blocks need 3 bytes");
        assert_eq!(error, BitmapError::Length { expected: 3, found: 2, size: disk(17) });
        assert!(ChangedBlocks::none(ByteCount::new(u64::MAX)).is_err());
    }

    #[test]
    fn bitmap_keeps_last_partial_block() {
        let size = ByteCount::new(2 * BLOCK_SIZE + 1);
        let bitmap = ChangedBlocks::all(size).expect("small");
        assert_eq!(bitmap.blocks().get(), 3);
        assert!(bitmap.contains(BlockIndex::new(2)));
        assert!(!bitmap.contains(BlockIndex::new(3)));
    }

    #[test]
    fn growth_counts_the_short_last_block_as_changed() {
        let mut bitmap = ChangedBlocks::none(disk(4)).expect("small");
        bitmap.insert_growth(ByteCount::new(BLOCK_SIZE + 512));
        let runs: Vec<_> = bitmap.runs().collect();
        assert_eq!(runs, [BlockRange { start: BlockIndex::new(1), count: BlockCount::new(3) }]);
        let mut exact = ChangedBlocks::none(disk(4)).expect("small");
        exact.insert_growth(disk(4));
        assert_eq!(exact.count().get(), 0);
    }

    proptest! {
        #[test]
        fn bytes_round_trip_and_runs_cover_exactly_the_set(
            blocks in 0u64..700,
            seed in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let size = disk(blocks);
            let needed = blocks.div_ceil(8) as usize;
            let bytes: Vec<u8> = (0..needed).map(|i| seed.get(i % seed.len().max(1)).copied().unwrap_or(0)).collect();
            let bitmap = ChangedBlocks::from_xapi(&bytes, size).expect("right length");
            let again = ChangedBlocks::from_xapi(&bitmap.to_xapi(), size).expect("own bytes");
            prop_assert_eq!(&bitmap, &again);

            let by_runs: Vec<u64> = bitmap.runs().flat_map(|run| run.blocks()).map(BlockIndex::get).collect();
            let by_bytes: Vec<u64> = (0..blocks)
                .filter(|b| bytes[(b / 8) as usize] & (0x80 >> (b % 8)) != 0)
                .collect();
            prop_assert_eq!(by_runs.len() as u64, bitmap.count().get());
            for (start, count) in [(0, 1), (blocks / 2, 7), (blocks / 3, 200), (blocks, 1), (blocks + 100, 9)] {
                let range = BlockRange { start: BlockIndex::new(start), count: BlockCount::new(count) };
                let expected = by_bytes.iter().any(|block| (start..start + count).contains(block));
                prop_assert_eq!(bitmap.intersects(range), expected);
            }
            prop_assert_eq!(by_runs, by_bytes);
        }

        #[test]
        fn a_range_is_what_its_blocks_are_one_by_one(blocks in 0u64..300, start in 0u64..320, count in 0u64..320) {
            let range = BlockRange { start: BlockIndex::new(start), count: BlockCount::new(count) };
            let mut whole = ChangedBlocks::none(disk(blocks)).expect("small");
            whole.insert_range(range);
            let mut single = ChangedBlocks::none(disk(blocks)).expect("small");
            range.blocks().for_each(|block| { single.insert(block); });
            prop_assert_eq!(whole, single);
        }

        #[test]
        fn union_is_the_set_union(a in proptest::collection::vec(0u64..300, 0..40), b in proptest::collection::vec(0u64..300, 0..40)) {
            let mut left = ChangedBlocks::none(disk(200)).expect("small");
            let mut right = ChangedBlocks::none(disk(300)).expect("small");
            a.iter().for_each(|x| { left.insert(BlockIndex::new(*x)); });
            b.iter().for_each(|x| { right.insert(BlockIndex::new(*x)); });
            left.union(&right);
            for block in 0..320 {
                let expected = block < 200 && (a.contains(&block) || b.contains(&block));
                prop_assert_eq!(left.contains(BlockIndex::new(block)), expected);
            }
        }
    }
}
