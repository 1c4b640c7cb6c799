//! Where tests stand between an engine and the kernel.

/// Sees every operation before and after the kernel.
pub(crate) trait Seam: Send {
    /// How many of `size` bytes to ask for; at least 1.
    fn clip(&mut self, size: usize) -> usize {
        size
    }

    /// What to take for the kernel's answer: bytes, or a negative errno.
    fn answer(&mut self, result: i32) -> i32 {
        result
    }
}

struct None;

impl Seam for None {}

/// The seam that changes nothing.
pub(crate) fn none() -> Box<dyn Seam> {
    Box::new(None)
}
