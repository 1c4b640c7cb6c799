//! Parts of a disk that could not be read: gathered while it is read, carried to the restore point, and read again by
//! the next backup.

use crate::bitmap::ChangedBlocks;
use crate::units::{BLOCK_SIZE, BlockCount, BlockRange, ByteCount, ByteOffset};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Neighbouring bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: ByteOffset,
    /// How many bytes, at least one.
    pub size: ByteCount,
}

/// What of a disk could not be read. A backup holds zeros there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadRanges {
    /// Bytes in all ranges, listed or not.
    pub bytes: ByteCount,
    /// How many ranges there are, listed or not.
    pub count: u64,
    /// The first [`BadRanges::MAX_LISTED`] of them: ascending, none touches the next.
    pub ranges: Vec<ByteRange>,
}

impl BadRanges {
    /// Ranges that are listed: 20 KiB in a message at most. A disk with more of them is not one with a few bad
    /// sectors, and its next backup reads it whole.
    pub const MAX_LISTED: usize = 1024;

    /// Whether all of the disk could be read.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether every range is listed.
    pub fn is_complete(&self) -> bool {
        self.count == self.ranges.len() as u64
    }

    /// Puts every block that the listed ranges touch into a set.
    pub fn insert_into(&self, blocks: &mut ChangedBlocks) {
        for range in &self.ranges {
            let start = range.offset.block_floor();
            let end = range.offset.get().saturating_add(range.size.get()).div_ceil(BLOCK_SIZE);
            blocks
                .insert_range(BlockRange { start, count: BlockCount::new(end.saturating_sub(start.get())) });
        }
    }

    /// What is wrong with ranges that somebody else says of a disk of `size`.
    pub fn fault(&self, size: ByteCount) -> Option<&'static str> {
        let (mut end, mut listed) = (None, 0_u64);
        for range in &self.ranges {
            let Some(range_end) = range.offset.checked_add(range.size) else {
                return Some("a range past all disks");
            };
            if range.size.get() == 0 || end.is_some_and(|end| range.offset <= end) {
                return Some("ranges that are empty, touch or do not ascend");
            }
            if range_end.get() > size.get() {
                return Some("a range past the end of the disk");
            }
            (end, listed) = (Some(range_end), listed + range.size.get());
        }
        let hidden = self.count.checked_sub(self.ranges.len() as u64);
        match (self.bytes.get().checked_sub(listed), hidden) {
            (Some(0), Some(0)) => None,
            (Some(bytes), Some(1..))
                if self.ranges.len() == Self::MAX_LISTED && bytes > 0 && self.bytes <= size =>
            {
                None
            }
            _ => Some("a list that is not what its sums say"),
        }
    }
}

/// For people: `8.00 KiB in 2 places, the first at 0x41000`.
impl fmt::Display for BadRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.count, self.ranges.first()) {
            (0, _) => f.write_str("nothing"),
            (1, Some(only)) => write!(f, "{} at {}", self.bytes, only.offset),
            (count, Some(first)) => {
                write!(f, "{} in {count} places, the first at {}", self.bytes, first.offset)
            }
            (count, None) => write!(f, "{} in {count} places", self.bytes),
        }
    }
}

/// Gathers bad ranges in the order of the disk.
#[derive(Clone, Debug, Default)]
pub struct BadGatherer {
    found: BadRanges,
    /// End of the last range, listed or not.
    end: Option<u64>,
}

impl BadGatherer {
    /// Takes the next range; one that begins where the last one ends is a part of it.
    ///
    /// # Panics
    /// If it begins before the last one ends.
    pub fn push(&mut self, range: ByteRange) {
        let (start, size) = (range.offset.get(), range.size.get());
        assert!(self.end.is_none_or(|end| start >= end), "ranges come in the order of the disk");
        self.found.bytes = self.found.bytes.saturating_add(range.size);
        let continues = self.end == Some(start);
        self.end = Some(start + size);
        let is_listed = self.found.is_complete();
        match self.found.ranges.last_mut() {
            Some(last) if continues && is_listed => last.size = last.size.saturating_add(range.size),
            _ if continues => {}
            _ => {
                self.found.count += 1;
                if self.found.ranges.len() < BadRanges::MAX_LISTED {
                    self.found.ranges.push(range);
                }
            }
        }
    }

    /// What was gathered.
    pub fn finish(self) -> BadRanges {
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(offset: u64, size: u64) -> ByteRange {
        ByteRange { offset: ByteOffset::new(offset), size: ByteCount::new(size) }
    }

    fn gathered(ranges: impl IntoIterator<Item = (u64, u64)>) -> BadRanges {
        let mut gatherer = BadGatherer::default();
        ranges.into_iter().for_each(|(offset, size)| gatherer.push(range(offset, size)));
        gatherer.finish()
    }

    #[test]
    fn neighbours_are_one_range_and_the_list_ends_at_its_limit() {
        let found = gathered([(512, 512), (1024, 4096), (8192, 512)]);
        assert_eq!(found.ranges, [range(512, 4608), range(8192, 512)]);
        assert_eq!((found.bytes.get(), found.count), (5120, 2));
        assert_eq!(found.to_string(), "5.00 KiB in 2 places, the first at 0x200");

        let limit = BadRanges::MAX_LISTED as u64;
        let many = gathered((0..limit + 2).flat_map(|at| [(at * 4096, 512), (at * 4096 + 512, 512)]));
        assert_eq!(
            (many.count, many.ranges.len() as u64, many.bytes.get()),
            (limit + 2, limit, (limit + 2) << 10)
        );
        assert!(!many.is_complete() && many.fault(ByteCount::new(1 << 40)).is_none());
    }

    #[test]
    fn lists_that_do_not_add_up_are_told() {
        let good = gathered([(512, 512), (4096, 512)]);
        let size = ByteCount::new(8192);
        assert_eq!(good.fault(size), None);
        assert_eq!(BadRanges::default().fault(size), None);
        let broken = |change: &dyn Fn(&mut BadRanges)| {
            let mut bad = good.clone();
            change(&mut bad);
            bad.fault(size).is_some()
        };
        assert!(broken(&|bad| bad.count = 3), "a short list of few");
        assert!(broken(&|bad| bad.count = 1), "more listed than there are");
        assert!(broken(&|bad| bad.count = 0), "none, and two listed");
        assert!(broken(&|bad| bad.bytes = ByteCount::new(1)));
        assert!(broken(&|bad| bad.ranges[1] = range(1024, 512)), "touching");
        assert!(broken(&|bad| bad.ranges[1] = range(8192, 512)), "past the end");
        assert!(broken(&|bad| bad.ranges[1] = range(u64::MAX, 512)));
        assert!(broken(&|bad| bad.ranges[1] = range(4096, 0)));
        assert!(good.fault(ByteCount::new(4096)).is_some());
    }

    #[test]
    fn every_block_that_a_range_touches_is_read_again() {
        let size = ByteCount::new(4 * BLOCK_SIZE);
        let mut blocks = ChangedBlocks::none(size).expect("small");
        gathered([(BLOCK_SIZE - 512, 1024), (3 * BLOCK_SIZE, 512)]).insert_into(&mut blocks);
        let found: Vec<u64> = blocks.runs().flat_map(BlockRange::blocks).map(|block| block.get()).collect();
        assert_eq!(found, [0, 1, 3]);
    }

    proptest! {
        #[test]
        fn what_is_gathered_is_sound_and_covers_exactly_what_came(
            pieces in proptest::collection::vec((0u64..3, 1u64..5), 0..200),
        ) {
            let (mut at, mut ranges, mut bytes) = (0, Vec::new(), 0);
            for (gap, size) in pieces {
                at += gap * 512;
                ranges.push((at, size * 512));
                at += size * 512;
                bytes += size * 512;
            }
            let found = gathered(ranges.clone());
            prop_assert_eq!(found.fault(ByteCount::new(at)), None);
            prop_assert_eq!(found.bytes.get(), bytes);
            let covers = |offset: u64| found.ranges.iter()
                .any(|range| (range.offset.get()..range.offset.get() + range.size.get()).contains(&offset));
            for sector in (0..at).step_by(512) {
                let expected = ranges.iter().any(|(start, size)| (*start..start + size).contains(&sector));
                prop_assert_eq!(covers(sector), expected);
            }
        }
    }
}
