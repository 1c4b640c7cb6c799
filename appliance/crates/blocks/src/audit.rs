//! The audit's sample: unchanged blocks that are read again, to catch a tracking that forgets writes.
//!
//! Which blocks are drawn is decided by a seed alone, the same on every machine, so that an alarm can be repeated.
//! One pass over the disk's blocks takes each with probability "still wanted / still to come" (selection sampling):
//! every set of the wanted size is equally likely, no block comes twice, and nothing is held but the result.

use crate::bitmap::ChangedBlocks;
use crate::units::{BlockCount, BlockIndex};
use serde::{Deserialize, Serialize};

/// How the sample of one disk is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Where the random numbers start. Another one each time, or the same blocks would be read in every run.
    pub seed: u64,
    /// Share of the unchanged blocks, rounded up to whole blocks.
    pub parts_per_million: u32,
    /// At least so many, as far as there are unchanged blocks.
    pub minimum: BlockCount,
}

impl Audit {
    /// All blocks, as parts per million.
    pub const ALL: u32 = 1_000_000;
    /// 0.1 %: 1 GiB of reading per TiB. A tracking that forgets one write in a thousand is caught in a few runs, and
    /// a run is not slowed down by much.
    pub const DEFAULT_PARTS_PER_MILLION: u32 = 1_000;
    /// 4 MiB: costs nothing, and finds gross errors on small disks.
    pub const DEFAULT_MINIMUM: BlockCount = BlockCount::new(64);

    /// An audit of the default size.
    pub const fn with_seed(seed: u64) -> Self {
        let (parts_per_million, minimum) = (Self::DEFAULT_PARTS_PER_MILLION, Self::DEFAULT_MINIMUM);
        Self { seed, parts_per_million, minimum }
    }

    /// How many of `unchanged` blocks are read again.
    pub fn count(&self, unchanged: BlockCount) -> BlockCount {
        let all = u128::from(unchanged.get());
        let share = (all * u128::from(self.parts_per_million)).div_ceil(u128::from(Self::ALL));
        let wanted = share.max(u128::from(self.minimum.get())).min(all);
        BlockCount::new(u64::try_from(wanted).expect("at most as many as there are"))
    }

    /// The sample: blocks of the disk that are not in `changed`.
    pub fn sample(&self, changed: &ChangedBlocks) -> ChangedBlocks {
        let mut sample = changed.same_disk();
        let mut to_come = changed.blocks().get() - changed.count().get();
        let mut wanted = self.count(BlockCount::new(to_come)).get();
        let mut random = SplitMix64(self.seed);
        for run in changed.gaps() {
            for block in run.blocks() {
                if wanted == 0 {
                    return sample;
                }
                if random.below(to_come) < wanted {
                    insert(&mut sample, block);
                    wanted -= 1;
                }
                to_come -= 1;
            }
        }
        sample
    }
}

fn insert(sample: &mut ChangedBlocks, block: BlockIndex) {
    assert!(sample.insert(block), "a gap ends with the disk");
}

/// SplitMix64 by Sebastiano Vigna (public domain, <https://prng.di.unimi.it/splitmix64.c>): a counter and a mixing
/// function. Good enough to draw samples, and three lines on every platform.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, each equally likely: Lemire's multiplication, and another try for the few values
    /// that would make small results more likely. `limit` is above 0.
    fn below(&mut self, limit: u64) -> u64 {
        loop {
            let product = u128::from(self.next()) * u128::from(limit);
            let lower = product & u128::from(u64::MAX);
            // The second comparison is the exact one; it takes a division that is hardly ever needed.
            if lower >= u128::from(limit) || lower >= u128::from(limit.wrapping_neg() % limit) {
                return u64::try_from(product >> 64).expect("the upper half of 128 bits");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{BLOCK_SIZE, BlockRange, ByteCount};
    use proptest::prelude::*;

    fn disk(blocks: u64) -> ByteCount {
        ByteCount::new(blocks * BLOCK_SIZE)
    }

    fn drawn(sample: &ChangedBlocks) -> Vec<u64> {
        sample.runs().flat_map(BlockRange::blocks).map(BlockIndex::get).collect()
    }

    fn some(seed: u64, count: u64) -> Audit {
        Audit { seed, parts_per_million: 0, minimum: BlockCount::new(count) }
    }

    /// The numbers that the author's C program prints for this seed.
    #[test]
    fn the_generator_is_splitmix64() {
        let mut random = SplitMix64(1_234_567);
        let first = [0; 5].map(|_| random.next());
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!(first, expected);
    }

    #[test]
    fn the_sample_has_a_thousandth_and_at_least_64_blocks() {
        let audit = Audit::with_seed(7);
        for (unchanged, expected) in
            [(0, 0), (1, 1), (63, 63), (64, 64), (64_000, 64), (64_001, 65), (1 << 30, 1_073_742)]
        {
            assert_eq!(audit.count(BlockCount::new(unchanged)).get(), expected, "of {unchanged}");
        }
        let more_than_all = Audit { parts_per_million: u32::MAX, ..audit };
        assert_eq!(more_than_all.count(BlockCount::new(u64::MAX)).get(), u64::MAX);
        assert_eq!(some(7, 0).count(BlockCount::new(1 << 30)).get(), 0);
    }

    /// Pinned: another sample for the same seed would make old alarms unrepeatable.
    #[test]
    fn a_seed_draws_the_same_blocks_for_ever() {
        let changed = ChangedBlocks::none(disk(1000)).expect("small");
        assert_eq!(drawn(&some(42, 5).sample(&changed)), [171, 215, 564, 718, 808]);
    }

    #[test]
    fn a_disk_that_changed_everywhere_has_no_sample() {
        for blocks in [0, 1, 64, 65] {
            let all = ChangedBlocks::all(disk(blocks)).expect("small");
            assert_eq!(Audit::with_seed(1).sample(&all).count().get(), 0);
        }
    }

    /// Every block must come up about equally often: 4000 draws of 10 out of 100 give each 400, with a standard
    /// deviation of 19. Five of them are far outside of chance, and the seeds are fixed.
    #[test]
    fn every_unchanged_block_is_equally_likely() {
        let mut changed = ChangedBlocks::none(disk(150)).expect("small");
        (0..50).for_each(|third| assert!(changed.insert(BlockIndex::new(third * 3))));
        let mut hits = vec![0u32; 150];
        for seed in 0..4000 {
            drawn(&some(seed, 10).sample(&changed)).iter().for_each(|block| hits[*block as usize] += 1);
        }
        for (block, hits) in hits.iter().enumerate() {
            match block % 3 {
                0 => assert_eq!(*hits, 0, "block {block} changed"),
                _ => assert!((305..=495).contains(hits), "block {block} was drawn {hits} times"),
            }
        }
    }

    proptest! {
        #[test]
        fn a_sample_is_of_unchanged_blocks_of_the_disk_and_of_the_right_size(
            set in proptest::collection::btree_set(0u64..700, 0..700),
            last in 1u64..=BLOCK_SIZE,
            seed: u64,
            parts_per_million in 0u32..=Audit::ALL,
            minimum in 0u64..800,
        ) {
            let mut changed = ChangedBlocks::none(ByteCount::new(699 * BLOCK_SIZE + last)).expect("small");
            set.iter().for_each(|block| assert!(changed.insert(BlockIndex::new(*block))));
            let audit = Audit { seed, parts_per_million, minimum: BlockCount::new(minimum) };
            let sample = audit.sample(&changed);
            let unchanged = 700 - set.len() as u64;
            let share = (unchanged * u64::from(parts_per_million)).div_ceil(1_000_000);
            prop_assert_eq!(sample.count().get(), share.max(minimum).min(unchanged));
            prop_assert_eq!(sample.blocks(), changed.blocks());
            prop_assert!(drawn(&sample).iter().all(|block| *block < 700 && !set.contains(block)));
            prop_assert_eq!(&audit.sample(&changed), &sample);
            let mut both = changed.clone();
            both.union(&sample);
            prop_assert_eq!(both.count().get(), changed.count().get() + sample.count().get());
        }
    }
}
