//! The plain engine: one `pread` after the other. The oracle that io_uring is tested against, and what is used where
//! a kernel has io_uring disabled.

use crate::pool::Buffer;
use crate::seam::Seam;
use crate::source::{next_step, size_of};
use crate::{Error, Filled, Pool, RETRY_LIMIT, ReadEngine, Source};
use blocks::Read;
use std::io;
use std::os::unix::fs::FileExt;

pub(crate) struct Pread {
    source: Source,
    pool: Pool,
    name: String,
    next_sequence: u64,
    seam: Box<dyn Seam>,
}

impl Pread {
    pub(crate) fn new(source: Source, pool: &Pool, why: &str, seam: Box<dyn Seam>) -> Self {
        Self { source, pool: pool.clone(), name: format!("pread: {why}"), next_sequence: 0, seam }
    }

    fn fill(&mut self, read: &Read, buffer: &mut Buffer) -> Result<(), Error> {
        let size = size_of(read);
        assert!(size <= self.pool.buffer_size(), "a read fits a buffer");
        let (mut done, mut retries) = (0, 0);
        while done < size {
            let step = next_step(read, done, self.source.direct.is_some(), |size| self.seam.clip(size));
            let file = match &self.source.direct {
                Some(direct) if step.direct => direct,
                _ => &self.source.buffered,
            };
            let result = file.read_at(buffer.room(done, done + step.size), step.offset);
            match self.seam.answer(to_raw(result)) {
                0 => return Err(self.source.ended(read, done)),
                count if count > 0 => {
                    done += count.unsigned_abs() as usize;
                    retries = 0;
                }
                errno if step.direct && -errno == libc::EINVAL => self.source.direct = None,
                errno if is_transient(-errno) && retries < RETRY_LIMIT => retries += 1,
                errno => return Err(self.source.failed(read, io::Error::from_raw_os_error(-errno))),
            }
        }
        buffer.set_len(size);
        Ok(())
    }
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

impl ReadEngine for Pread {
    fn next(&mut self, plan: &mut dyn Iterator<Item = Read>) -> Option<Result<Filled, Error>> {
        let read = plan.next()?;
        let mut buffer = self.pool.take();
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        Some(self.fill(&read, &mut buffer).map(|()| Filled { sequence, read, buffer }))
    }

    fn name(&self) -> &str {
        &self.name
    }
}
