//! Backup: from disks to packs in the store.
//!
//! Stages, each on threads of its own, with bounded queues between them:
//!
//! ```text
//! read (1, io_uring) → zero test and id (n) → judge (1) → known? (1) → seal (n) → pack and send (1)
//!                                               └ tree nodes, sent after the blocks below them
//! ```
//! Promises: reads exactly the planned blocks, once; a tree node leaves this machine only after every block below it
//! was acknowledged as durable. Never: writes to a disk.

mod disk;
mod judge;
mod packer;
mod recent;
mod stages;

use crate::worker::{Error, Run};
use diskio::Pool;
use recent::Recent;
use wire::BackupDisk;

/// What goes from disk to disk.
struct Carry {
    pool: Pool,
    recent: Recent,
    /// Memory of packs, kept for the next ones.
    spare: Vec<Vec<u8>>,
}

/// Backs up the disks of an order, one after the other.
pub(crate) fn run(run: &Run, level: i32, disks: &[BackupDisk]) -> Result<(), Error> {
    let budget = &run.budget;
    let mut carry = Carry {
        pool: Pool::new(budget.read_buffers * budget.read_size, budget.read_size),
        recent: Recent::new(budget.remembered_ids),
        spare: Vec::new(),
    };
    for (disk, index) in disks.iter().zip(0..) {
        disk::back_up(run, &mut carry, level, index, disk)?;
    }
    Ok(())
}
