//! The plain engine: one `pread` after the other. The oracle that io_uring is tested against, and what is used where
//! a kernel has io_uring disabled. Also how both engines read again what failed.

use crate::care::{Care, is_unreadable};
use crate::pool::Buffer;
use crate::seam::{Asked, Seam};
use crate::source::{next_step, size_of};
use crate::{Error, Filled, Pool, RETRY_LIMIT, ReadEngine, Source, Timing};
use blocks::{ByteOffset, ByteRange, Read};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

pub(crate) struct Pread<'a> {
    source: Source,
    pool: Pool,
    name: String,
    next_sequence: u64,
    care: Care<'a>,
}

/// Why a part of a read is not there.
pub(crate) enum Fault {
    /// The device says that it cannot read there; another or a smaller try may help.
    Unreadable(io::Error),
    /// Nothing helps.
    Failed(Error),
}

impl<'a> Pread<'a> {
    pub(crate) fn new(source: Source, pool: &Pool, why: &str, care: Care<'a>) -> Self {
        Self { source, pool: pool.clone(), name: format!("pread: {why}"), next_sequence: 0, care }
    }

    /// Fills a buffer; gives the parts that were given up, and how long it took.
    fn fill(&mut self, read: &Read, buffer: &mut Buffer) -> Result<(Vec<ByteRange>, Option<Timing>), Error> {
        let size = size_of(read);
        assert!(size <= self.pool.buffer_size(), "a read fits a buffer");
        let began = (self.care.clock)();
        let mut failed = false;
        let bad = match fill(&mut self.source, self.care.seam.as_mut(), read, 0..size, buffer) {
            Ok(()) => Vec::new(),
            Err(Fault::Unreadable(error)) => {
                failed = true;
                self.care.read_again(&mut self.source, read, buffer, error)?
            }
            Err(Fault::Failed(error)) => return Err(error),
        };
        buffer.set_len(size);
        let latency = (self.care.clock)().saturating_sub(began);
        Ok((bad, (!failed).then_some(Timing { began, at_least: latency, at_most: latency })))
    }
}

/// Reads a part of a read into its place in the buffer.
pub(crate) fn fill(
    source: &mut Source,
    seam: &mut dyn Seam,
    read: &Read,
    part: Range<usize>,
    buffer: &mut Buffer,
) -> Result<(), Fault> {
    let (mut done, mut retries) = (part.start, 0);
    while done < part.end {
        let step = next_step(read, done..part.end, source.direct.is_some(), |size| seam.clip(size));
        let file = match &source.direct {
            Some(direct) if step.direct => direct,
            _ => &source.buffered,
        };
        let asked = Asked { offset: ByteOffset::new(step.offset), size: step.size };
        let result = file.read_at(buffer.room(done, done + step.size), step.offset);
        match seam.answer(asked, to_raw(result)) {
            0 => return Err(Fault::Failed(source.ended(read, done))),
            count if count > 0 => {
                done += count.unsigned_abs() as usize;
                retries = 0;
            }
            errno if step.direct && -errno == libc::EINVAL => source.direct = None,
            errno if is_transient(-errno) && retries < RETRY_LIMIT => retries += 1,
            errno => return Err(fault(source, read, -errno)),
        }
    }
    Ok(())
}

/// Reads one sector of a read, past the page cache where that is possible: the cache reads whole pages. `None` where
/// the device does not read so little at once.
pub(crate) fn sector(
    source: &Source,
    seam: &mut dyn Seam,
    read: &Read,
    part: Range<usize>,
    buffer: &mut Buffer,
) -> Option<Result<(), Fault>> {
    let offset = read.offset.get() + part.start as u64;
    let asked = Asked { offset: ByteOffset::new(offset), size: part.len() };
    let file = source.direct.as_ref().unwrap_or(&source.buffered);
    for _ in 0..RETRY_LIMIT {
        let result = file.read_at(buffer.room(part.start, part.end), offset);
        match seam.answer(asked, to_raw(result)) {
            0 => return Some(Err(Fault::Failed(source.ended(read, part.start)))),
            count if count.unsigned_abs() as usize == part.len() && count > 0 => return Some(Ok(())),
            errno if -errno == libc::EINVAL && source.direct.is_some() => return None,
            // Cut short or interrupted: a sector is read whole or not at all.
            errno if errno > 0 || is_transient(-errno) => {}
            errno => return Some(Err(fault(source, read, -errno))),
        }
    }
    Some(Err(fault(source, read, libc::EIO)))
}

fn fault(source: &Source, read: &Read, errno: i32) -> Fault {
    let error = io::Error::from_raw_os_error(errno);
    if is_unreadable(errno) { Fault::Unreadable(error) } else { Fault::Failed(source.failed(read, error)) }
}

/// Errors after which the same operation is simply tried again.
pub(crate) fn is_transient(errno: i32) -> bool {
    errno == libc::EINTR || errno == libc::EAGAIN
}

/// As io_uring reports it: bytes, or a negative errno.
fn to_raw(result: io::Result<usize>) -> i32 {
    match result {
        Ok(count) => i32::try_from(count).expect("buffers are far below 2 GiB"),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

impl ReadEngine for Pread<'_> {
    fn next(&mut self, plan: &mut dyn Iterator<Item = Read>) -> Option<Result<Filled, Error>> {
        let read = plan.next()?;
        let mut buffer = self.pool.take();
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let filled = self.fill(&read, &mut buffer);
        Some(filled.map(|(bad, timing)| Filled { sequence, read, buffer, bad, timing }))
    }

    fn name(&self) -> &str {
        &self.name
    }
}
