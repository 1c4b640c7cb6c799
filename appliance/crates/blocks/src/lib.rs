//! Units, ranges, the changed-block bitmap and the read plan. No I/O.
//!
//! Owns: the meaning of "block" (64 KiB of a disk at a 64 KiB boundary) and the arithmetic on byte and
//! block positions. Promises: no operation here silently wraps, and nothing allocates more than one bit per
//! block of a disk. Never: reads, writes, or knows where bytes come from.

#![forbid(unsafe_code)]

mod audit;
mod bad;
mod bitmap;
mod plan;
mod units;

pub use audit::Audit;
pub use bad::{BadGatherer, BadRanges, ByteRange};
pub use bitmap::{BitmapError, ChangedBlocks, Runs};
pub use plan::{Read, ReadPlan};
pub use units::{BLOCK_SIZE, BlockCount, BlockIndex, BlockRange, ByteCount, ByteOffset, MAX_DISK_SIZE};
