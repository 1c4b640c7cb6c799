//! What can go wrong between a program and XenStore.

use std::io;
use std::time::Duration;

use super::wire::WireError;

/// Every message starts with the word XenStore, so that a reader knows which of the VM's channels failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither Xen's device nor the lab's port exists.
    #[error("XenStore: neither /dev/xen/xenbus nor a virtio port named abd.xenstore appeared within {} s; this image runs as a VM on XenServer or XCP-ng", .waited.as_secs())]
    NoTransport {
        /// How long it was looked for.
        waited: Duration,
    },
    /// The device is there and cannot be opened.
    #[error("XenStore: open {path}")]
    Open {
        /// The device.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody on the other side of the lab's port.
    #[error("XenStore: nobody answers behind {path} after {} s", .waited.as_secs())]
    NoPeer {
        /// The device.
        path: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// XenStore refused the request; `code` is its name of the errno, e.g. `ENOENT`, `EACCES`.
    #[error("XenStore: {operation} {path}: refused with {code}")]
    Refused {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
        /// Name of the errno.
        code: String,
    },
    /// The device failed.
    #[error("XenStore: {operation} {path}")]
    Io {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// No answer in time.
    #[error("XenStore: {operation} {path}: no answer within {} ms", .waited.as_millis())]
    Timeout {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The other side went away.
    #[error("XenStore: {operation} {path}: the connection was closed")]
    Disconnected {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
    },
    /// The request does not fit into a message, or the value is longer than we allow ourselves.
    #[error("XenStore: {operation} {path}: {size} bytes, the limit is {limit}")]
    TooLong {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
        /// Bytes it would need.
        size: usize,
        /// Bytes there may be.
        limit: usize,
    },
    /// Not a path that XenStore could hold.
    #[error("XenStore: {path:?} is not a XenStore path")]
    BadPath {
        /// The path.
        path: String,
    },
    /// A value that is not UTF-8.
    #[error("XenStore: the value of {path} is not text")]
    NotText {
        /// The node.
        path: String,
    },
    /// An answer that does not belong to the request.
    #[error("XenStore: {operation} {path}: answered with message type {kind}")]
    WrongAnswer {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
        /// The answer's type.
        kind: u32,
    },
    /// The byte stream makes no sense.
    #[error("XenStore: {operation} {path}")]
    Wire {
        /// What was asked.
        operation: &'static str,
        /// Of which node.
        path: String,
        /// Why.
        source: WireError,
    },
    /// A transaction met other writers every time.
    #[error("XenStore: a transaction was disturbed by other writers {tries} times in a row")]
    Conflict {
        /// Attempts made.
        tries: u32,
    },
}

impl Error {
    /// True if XenStore says that the node does not exist.
    pub fn is_absent(&self) -> bool {
        matches!(self, Error::Refused { code, .. } if code == "ENOENT")
    }

    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Error::Refused { code, .. } if code == "EAGAIN")
    }
}
