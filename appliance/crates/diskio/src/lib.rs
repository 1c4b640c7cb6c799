//! Reading disks: a plan of reads goes in, filled buffers come out.
//!
//! Owns: the buffer pool, the opening of devices for reading, and two engines behind [`ReadEngine`]: io_uring, and
//! plain `pread` as its oracle and fallback. Promises: every buffer that comes out holds exactly the bytes of its
//! read; memory is fixed when the pool is made; an operation owns its buffer until the kernel is done with it; short
//! reads are completed and a disk that ends too early is an error; what cannot be read is tried again, narrowed down,
//! and then an error or, where that was asked for, zeros with a list of where they stand. Never: writes, looks at what
//! it read, reads what was not planned.
//!
//! Gaps between blocks of a plan are not read through. Measured with this crate on a virtio disk (O_DIRECT, 32 reads in
//! flight, a machine with other work, four rounds in turn): every second block of 4 GiB took 2.0 to 3.8 s (median 3.3 s);
//! with the gaps read through, three blocks in one read of 256 KiB at most, 2.4 to 4.2 s (median 2.8 s); clusters of
//! blocks at random with one-block gaps 0.09 to 0.66 s and 0.16 to 0.34 s. One and the same plan read twice differed by
//! as much as a factor of three meanwhile, so nothing is shown to be gained, and what is read stays what was asked for.
//!
//! This is the one crate with `unsafe`: the pool's memory, and the ring that the kernel writes it through.

mod care;
mod error;
mod pool;
mod pread;
mod seam;
mod source;
mod uring;

pub use care::{Care, RETRY_PAUSES, bad_limit};
pub use error::Error;
pub use pool::{Buffer, Pool};
pub use seam::{Asked, Seam};
pub use source::Source;

use blocks::{ByteRange, Read};
use std::time::Duration;

/// Reads kept in flight by the io_uring engine, pool permitting: from 16 on a disk gives all it has.
pub const QUEUE_DEPTH: usize = 32;

/// How often one operation may be told "interrupted" or "again" in a row before it counts as failed.
pub const RETRY_LIMIT: u32 = 64;

/// A finished read.
#[derive(Debug)]
pub struct Filled {
    /// Position of the read in the plan, from 0.
    pub sequence: u64,
    /// What was read.
    pub read: Read,
    /// Its bytes, as many as `read.size` says.
    pub buffer: Buffer,
    /// Parts of the disk that could not be read and were given up, ascending: zeros in the buffer.
    pub bad: Vec<ByteRange>,
    /// How long it took; none where it failed at first and was read again.
    pub timing: Option<Timing>,
}

/// How long a read took, by the clock of [`Care`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// When the kernel was asked.
    pub began: Duration,
    /// It took at least so long: it was not there when answers were last looked for.
    pub at_least: Duration,
    /// And at most so long: then it was found.
    pub at_most: Duration,
}

/// Carries out a plan of reads.
pub trait ReadEngine: Send {
    /// The next finished read, in any order; `None` when the plan is empty and nothing is in flight. Takes reads
    /// from the plan as buffers become free, and waits for the pool where it must. After `None` it can be asked
    /// again: a plan may pause.
    ///
    /// # Errors
    /// What the device says, naming device, offset and size. The engine is of no use afterwards.
    fn next(&mut self, plan: &mut dyn Iterator<Item = Read>) -> Option<Result<Filled, Error>>;

    /// Name of the engine for people; the fallback also says why it is used.
    fn name(&self) -> &str;
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// io_uring where the kernel has it, `pread` elsewhere.
    Best,
    /// `pread`, whatever the kernel has.
    Pread,
}

/// Whether io_uring can be used here.
///
/// # Errors
/// Why not, in a few words.
pub fn probe() -> Result<(), String> {
    uring::probe()
}

/// An engine for one disk; its buffers come from `pool`.
pub fn engine<'a>(source: Source, pool: &Pool, choice: Choice, care: Care<'a>) -> Box<dyn ReadEngine + 'a> {
    let why = match choice {
        Choice::Pread => "asked for".to_owned(),
        Choice::Best => match probe().and_then(|()| uring::Ring::new(&source, pool)) {
            Ok(ring) => return Box::new(uring::Uring::new(ring, care)),
            Err(why) => why,
        },
    };
    Box::new(pread::Pread::new(source, pool, &why, care))
}

#[cfg(test)]
mod tests;
