//! Backup: from disks to packs in the store.
//!
//! Stages, each on threads of its own, with bounded queues between them:
//!
//! ```text
//! read (1, io_uring) → zero test and id (n) → judge (1) → known? (1) → seal (n) → pack and send (1)
//!                                               └ tree nodes, sent after the blocks below them
//! ```
//! Promises: reads exactly the planned blocks, once, no faster than the order and, where it says so, the latency of the disk allow; compares what an audit sampled
//! with the base, and reads the whole disk where that is not as it was said to be; what cannot be read ends the job, or
//! is zeros in the tree and stands in the disk's report; a tree node leaves this machine only after every block below it
//! was acknowledged as durable. Never: writes to a disk.

mod disk;
mod judge;
mod pace;
mod packer;
mod recent;
mod stages;
mod throttle;

use crate::worker::{Error, Run};
use blocks::ByteCount;
use disk::DiskBackup;
use diskio::Pool;
use pace::Pace;
use recent::Recent;
use stages::Around;
use wire::BackupDisk;

/// What goes from disk to disk.
struct Carry {
    pool: Pool,
    recent: Recent,
    /// Memory of packs, kept for the next ones.
    spare: Vec<Vec<u8>>,
    around: Around,
    pace: Pace,
}

/// Backs up the disks of an order, one after the other.
pub(crate) fn run(
    run: &Run,
    level: i32,
    rate_limit: Option<ByteCount>,
    throttle: Option<wire::Throttle>,
    skip_bad_blocks: bool,
    disks: &[BackupDisk],
) -> Result<(), Error> {
    let budget = &run.budget;
    let mut carry = Carry {
        pool: Pool::new(budget.read_buffers * budget.read_size, budget.read_size),
        recent: Recent::new(budget.remembered_ids),
        spare: Vec::new(),
        around: Around::default(),
        pace: Pace::new(rate_limit, throttle),
    };
    for (disk, index) in disks.iter().zip(0..) {
        DiskBackup { run, level, index, disk, skip_bad_blocks }.run(&mut carry)?;
    }
    Ok(())
}
