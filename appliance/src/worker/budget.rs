//! How much memory each part of the job may hold. Nothing in it depends on the size of a disk, but for the bitmap:
//! 2 MiB per TiB.

use blocks::ByteCount;

/// The worker takes at most this share of the memory that is available when the order arrives: three quarters; the
/// rest is for sockets and what the kernel needs to write pages out.
const SHARE: (usize, usize) = (3, 4);
/// No less, even where the kernel cannot say what is available: the job would not move.
const MIN_TOTAL: usize = 40 << 20;
/// No more: measured, more buffers make nothing faster.
const MAX_TOTAL: usize = 160 << 20;
/// What does not scale: the program itself, stacks, connections, zstd contexts, nodes read ahead, the ids of what
/// was shipped, the tree pack being filled, sealed blocks on their way to the packer, the index of the pack being filled.
const FIXED: usize = 16 << 20;
/// One read. On the way to a disk 256 KiB reads at a depth of 16 and more get all it has.
const READ_SIZE: usize = 256 << 10;
/// Buffers beyond the queue depth hold what is being hashed and what the store is being asked about.
const MAX_READ_BUFFERS: usize = 48;
const MIN_READ_BUFFERS: usize = 16;
/// Packs in memory: one being filled and two on their way.
const MAX_PACKS: usize = 3;
const MIN_PACKS: usize = 2;
/// No pack below: the store would drown in files.
const MIN_PACK_SIZE: usize = 1 << 20;
/// Blocks in one answer when restoring: 2 MiB of plain bytes.
const ANSWER_BLOCKS: usize = 32;
/// A load of a restore at worst: an answer that does not compress, and its blocks opened.
const LOAD_SIZE: usize = 2 * ANSWER_BLOCKS * (64 << 10);
/// Loads: three being written and two waiting for it, two being opened, and three answers on their way.
const MAX_LOADS: usize = 10;

const _: () = assert!(ANSWER_BLOCKS <= wire::MAX_BLOCKS);

/// Threads per stage: a VM of ours has one or two processors, and each sealer has 1 MiB of contexts.
const MAX_THREADS: usize = 4;

/// Sizes and counts of all buffers of one job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes of one read.
    pub read_size: usize,
    /// Buffers for reads.
    pub read_buffers: usize,
    /// Packs are ended at this many bytes.
    pub pack_size: usize,
    /// Packs in memory at once, the one being filled included.
    pub packs: usize,
    /// Blocks in one question to the store.
    pub known_batch: usize,
    /// Questions about blocks on their way at once.
    pub known_in_flight: usize,
    /// Tree packs are ended at this many bytes.
    pub tree_pack_size: usize,
    /// Ids of blocks that were shipped lately, to find second copies.
    pub remembered_ids: usize,
    /// Blocks in one answer, when restoring.
    pub answer_blocks: usize,
    /// Such answers at once, on their way, opened, or being written.
    pub loads: usize,
    /// Threads that hash, and threads that seal or open.
    pub threads: usize,
}

impl Budget {
    /// For a machine with this much memory available and this many processors, and an order's pack size.
    pub fn new(available: ByteCount, processors: usize, pack_size: usize) -> Self {
        let total =
            (available.to_usize().unwrap_or(usize::MAX) / SHARE.1 * SHARE.0).clamp(MIN_TOTAL, MAX_TOTAL);
        let left = total - FIXED;
        let min_reads = MIN_READ_BUFFERS * READ_SIZE;
        let pack_size = pack_size.min((left - min_reads) / MIN_PACKS).max(MIN_PACK_SIZE);
        // A third pack only where it does not cost reads.
        let packs = if left >= MAX_PACKS * pack_size + MAX_READ_BUFFERS / 2 * READ_SIZE {
            MAX_PACKS
        } else {
            MIN_PACKS
        };
        let read_buffers = ((left - packs * pack_size) / READ_SIZE).clamp(MIN_READ_BUFFERS, MAX_READ_BUFFERS);
        let threads = processors.clamp(1, MAX_THREADS);
        Self {
            read_size: READ_SIZE,
            read_buffers,
            pack_size,
            packs,
            // At most a third of all buffers wait in one question even if each gives it a single block.
            known_batch: (read_buffers * 4 / 3).min(wire::MAX_KNOWN_IDS),
            known_in_flight: 3,
            tree_pack_size: 2 << 20,
            remembered_ids: 16 << 10,
            answer_blocks: ANSWER_BLOCKS,
            loads: (left / LOAD_SIZE).clamp(2, MAX_LOADS),
            threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_of_128_mib_gets_two_packs_of_16_mib_within_64_mib() {
        let budget = Budget::new(ByteCount::new(84 << 20), 1, 16 << 20);
        assert_eq!((budget.packs, budget.pack_size, budget.threads), (2, 16 << 20, 1));
        let held = budget.packs * budget.pack_size + budget.read_buffers * budget.read_size;
        assert!(held + FIXED <= 64 << 20, "{held}");
        assert!(budget.loads * LOAD_SIZE + FIXED <= 64 << 20, "{}", budget.loads);
    }

    #[test]
    fn a_pack_that_does_not_fit_is_made_smaller() {
        let budget = Budget::new(ByteCount::new(0), 0, 64 << 20);
        assert!(
            budget.packs * budget.pack_size + budget.read_buffers * budget.read_size + FIXED <= MIN_TOTAL
        );
        assert_eq!(budget.threads, 1);
    }

    #[test]
    fn much_memory_gives_a_third_pack_and_no_more() {
        let budget = Budget::new(ByteCount::new(u64::MAX), 64, 16 << 20);
        assert_eq!((budget.packs, budget.threads, budget.read_buffers), (3, MAX_THREADS, MAX_READ_BUFFERS));
    }
}
