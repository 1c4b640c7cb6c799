//! Where a test bed stands between an engine and the kernel: to play a device that answers short, late, or not at all.

use blocks::ByteOffset;

/// One operation as the kernel was asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Where on the device.
    pub offset: ByteOffset,
    /// How many bytes.
    pub size: usize,
}

/// Sees every operation before and after the kernel.
pub trait Seam: Send {
    /// How many of `size` bytes to ask for; at least 1.
    fn clip(&mut self, size: usize) -> usize {
        size
    }

    /// What to take for the kernel's answer: bytes, or a negative errno.
    fn answer(&mut self, _asked: Asked, result: i32) -> i32 {
        result
    }
}

struct None;

impl Seam for None {}

/// The seam that changes nothing.
pub(crate) fn none() -> Box<dyn Seam> {
    Box::new(None)
}
