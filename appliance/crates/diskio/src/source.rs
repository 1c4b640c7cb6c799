//! A disk opened for reading, and the cutting of one read into operations that the device takes.

use crate::Error;
use crate::pool::ALIGNMENT;
use blocks::{ByteCount, ByteOffset, Read};
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The least that a disk reads at once. Many read 4 KiB.
pub(crate) const SECTOR: usize = 512;

/// A disk or a file, open read-only: once past the page cache where the file system takes that, and once through it
/// for what is not aligned.
#[derive(Debug)]
pub struct Source {
    pub(crate) name: String,
    pub(crate) direct: Option<File>,
    pub(crate) buffered: File,
}

/// The next operation of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) direct: bool,
    pub(crate) offset: u64,
    pub(crate) size: usize,
}

impl Source {
    /// Opens `path`, called `name` in errors.
    ///
    /// # Errors
    /// [`Error::Open`].
    pub fn open(path: &Path, name: &str) -> Result<Self, Error> {
        let open = |flags| OpenOptions::new().read(true).custom_flags(flags).open(path);
        let buffered = open(0).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        // Not every file system has O_DIRECT; reading through the page cache gives the same bytes.
        let direct = open(libc::O_DIRECT).ok();
        Ok(Self { name: name.to_owned(), direct, buffered })
    }

    /// Whether reads pass by the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        let direct = self.direct.as_ref().map(File::try_clone).transpose()?;
        Ok(Self { name: self.name.clone(), direct, buffered: self.buffered.try_clone()? })
    }

    pub(crate) fn failed(&self, read: &Read, source: std::io::Error) -> Error {
        Error::Read { device: self.name.clone(), offset: read.offset, size: read.size, source }
    }

    pub(crate) fn ended(&self, read: &Read, done: usize) -> Error {
        Error::Ended {
            device: self.name.clone(),
            offset: read.offset,
            end: ByteOffset::new(read.offset.get() + done as u64),
            missing: ByteCount::new(read.size.get() - done as u64),
        }
    }
}

/// What to ask for of the bytes `left` of `read` that are still missing: whole 4 KiB units directly, the rest through
/// the page cache, because `O_DIRECT` takes neither a size nor an offset in between.
pub(crate) fn next_step(
    read: &Read,
    left: Range<usize>,
    can_direct: bool,
    clip: impl FnOnce(usize) -> usize,
) -> Step {
    assert!(!left.is_empty(), "a finished read has no next step");
    let offset = read.offset.get() + left.start as u64;
    let aligned = offset.is_multiple_of(ALIGNMENT as u64) && left.start.is_multiple_of(ALIGNMENT);
    let left = left.len();
    let direct = can_direct && aligned && left >= ALIGNMENT;
    let size = if direct {
        let whole = left / ALIGNMENT * ALIGNMENT;
        (clip(whole).min(whole) / ALIGNMENT).max(1) * ALIGNMENT
    } else {
        clip(left).clamp(1, left)
    };
    Step { direct, offset, size }
}

/// Size of a read in memory.
///
/// # Panics
/// Never for a plan: its reads are bounded by the buffer size.
pub(crate) fn size_of(read: &Read) -> usize {
    read.size.to_usize().expect("reads are bounded by the pool's buffer size")
}
