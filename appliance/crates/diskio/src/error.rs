//! Why a disk could not be read.

use blocks::{ByteCount, ByteOffset};
use std::io;
use std::path::PathBuf;

/// A failed operation on a disk.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device cannot be opened.
    #[error("open {} for reading", .path.display())]
    Open {
        /// What was opened.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device refused or failed a read.
    #[error("read {device} at {offset}, {size}")]
    Read {
        /// Name of the device.
        device: String,
        /// Where.
        offset: ByteOffset,
        /// How much.
        size: ByteCount,
        /// What the kernel said.
        source: io::Error,
    },
    /// More of the device cannot be read than may be left out.
    #[error(
        "{bad} of {device} cannot be read, the last at {offset}, and {limit} may be left out at most: it is not saved \
         by leaving out a few blocks"
    )]
    Unreadable {
        /// Name of the device.
        device: String,
        /// What could not be read until then.
        bad: ByteCount,
        /// How much may be left out.
        limit: ByteCount,
        /// Where the limit was passed.
        offset: ByteOffset,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whoever runs the engine did not want to go on.
    #[error("reading {device} was stopped")]
    Stopped {
        /// Name of the device.
        device: String,
    },
    /// The device ends before the plan does.
    #[error(
        "{device} ends at {end}, {missing} of the read at {offset} are missing: it shrank while it was read"
    )]
    Ended {
        /// Name of the device.
        device: String,
        /// The read's start.
        offset: ByteOffset,
        /// Where the bytes ended.
        end: ByteOffset,
        /// Bytes that did not come.
        missing: ByteCount,
    },
    /// The ring itself failed.
    #[error("io_uring on {device}: {operation}")]
    Ring {
        /// Name of the device.
        device: String,
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
