//! The read plan: changed blocks as the reads that fetch them, in order, never as a list of the disk's size.

use crate::bitmap::{ChangedBlocks, Runs};
use crate::units::{BLOCK_SIZE, BlockCount, BlockIndex, BlockRange, ByteCount, ByteOffset};

/// One read of a disk: whole blocks, the last one short only at the end of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The blocks it covers.
    pub range: BlockRange,
    /// Where it begins.
    pub offset: ByteOffset,
    /// How many bytes.
    pub size: ByteCount,
}

/// Reads that cover a set of blocks exactly: ascending, neighbours merged, none above a given size.
#[derive(Clone, Debug)]
pub struct ReadPlan<'a> {
    runs: Runs<'a>,
    rest: Option<BlockRange>,
    disk: ByteCount,
    max_blocks: u64,
}

impl<'a> ReadPlan<'a> {
    /// Plans reads of the blocks in `changed` on a disk of `disk` bytes, each of at most `max_read` bytes
    /// (rounded down to blocks, at least one block).
    ///
    /// # Panics
    /// If `changed` belongs to a disk of another size.
    pub fn new(changed: &'a ChangedBlocks, disk: ByteCount, max_read: ByteCount) -> Self {
        assert_eq!(changed.blocks(), disk.blocks_ceil(), "bitmap and disk belong together");
        Self { runs: changed.runs(), rest: None, disk, max_blocks: (max_read.get() / BLOCK_SIZE).max(1) }
    }
}

impl Iterator for ReadPlan<'_> {
    type Item = Read;

    fn next(&mut self) -> Option<Read> {
        let run = match self.rest.take() {
            Some(run) => run,
            None => self.runs.next()?,
        };
        let count = run.count.get().min(self.max_blocks);
        if count < run.count.get() {
            self.rest = Some(BlockRange {
                start: BlockIndex::new(run.start.get() + count),
                count: BlockCount::new(run.count.get() - count),
            });
        }
        let offset = run.start.to_offset().expect("bounded by MAX_DISK_SIZE");
        let whole = BlockCount::new(count).to_bytes().expect("bounded by MAX_DISK_SIZE");
        Some(Read {
            range: BlockRange { start: run.start, count: BlockCount::new(count) },
            offset,
            size: ByteCount::new(whole.get().min(self.disk.get() - offset.get())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn last_read_ends_with_the_disk() {
        let disk = ByteCount::new(3 * BLOCK_SIZE + 512);
        let changed = ChangedBlocks::all(disk).expect("small");
        let reads: Vec<_> = ReadPlan::new(&changed, disk, ByteCount::new(2 * BLOCK_SIZE)).collect();
        assert_eq!(reads.len(), 2);
        assert_eq!(reads[1].offset.get(), 2 * BLOCK_SIZE);
        assert_eq!(reads[1].size.get(), BLOCK_SIZE + 512);
    }

    proptest! {
        #[test]
        fn reads_cover_the_set_once_in_order(
            set in proptest::collection::btree_set(0u64..500, 0..200),
            tail in 1u64..=BLOCK_SIZE,
            max in 1u64..20,
        ) {
            let disk = ByteCount::new(499 * BLOCK_SIZE + tail);
            let mut changed = ChangedBlocks::none(disk).expect("small");
            set.iter().for_each(|b| { changed.insert(BlockIndex::new(*b)); });
            let mut covered = Vec::new();
            for read in ReadPlan::new(&changed, disk, ByteCount::new(max * BLOCK_SIZE)) {
                prop_assert!(read.range.count.get() <= max);
                prop_assert!(read.offset.get() + read.size.get() <= disk.get());
                prop_assert_eq!(read.offset, read.range.start.to_offset().expect("small"));
                covered.extend(read.range.blocks().map(BlockIndex::get));
            }
            prop_assert_eq!(covered, set.into_iter().collect::<Vec<_>>());
        }
    }
}
