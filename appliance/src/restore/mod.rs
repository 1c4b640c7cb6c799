//! Restore: from the store to disks.
//!
//! ```text
//! walk the tree (1) → ask for blocks (several on their way) → open and check ids (n) → write in order (io_uring)
//! ```
//! Promises: a byte is written only after the block it came from was checked against the id in the tree; what is not
//! in the tree is written as zeros, unless the disk is known to be blank; a disk counts as done after its fsync.
//! Never: writes outside the disk of the order. Blocks are opened where they are written from, and all memory comes
//! back to where it is filled again.
//!
//! Writes go through the page cache: it takes any size, the kernel keeps dirty pages within a share of the memory,
//! and the fsync at the end reports every write that failed behind it.

mod disk;
mod stages;
mod writer;

pub(crate) use writer::{WriteOrder, write};

use crate::worker::{Error, Run};
use wire::RestoreDisk;

/// Writes the disks of an order, one after the other.
pub(crate) fn run(run: &Run, disks: &[RestoreDisk]) -> Result<(), Error> {
    for (disk, index) in disks.iter().zip(0..) {
        disk::restore(run, index, disk)?;
    }
    Ok(())
}
