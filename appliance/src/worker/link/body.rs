//! A request's body: shared memory, handed to HTTP in pieces.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of one piece. Pieces are copies: a connection then never holds more than a few of them, and the pack's memory
/// is free the moment its answer is there. The copy costs a hundredth of what compressing the bytes cost.
const PIECE: usize = 64 << 10;

/// The body of a call; repeating the call makes another from the same memory.
pub(crate) struct Shared {
    bytes: Option<Arc<Vec<u8>>>,
    sent: usize,
}

impl Shared {
    pub(crate) fn new(bytes: Arc<Vec<u8>>) -> Self {
        Self { bytes: Some(bytes), sent: 0 }
    }

    fn left(&self) -> usize {
        self.bytes.as_ref().map_or(0, |bytes| bytes.len() - self.sent)
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = self.left().min(PIECE);
        let Some(bytes) = self.bytes.clone().filter(|_| size > 0) else { return Poll::Ready(None) };
        let piece = Bytes::copy_from_slice(&bytes[self.sent..self.sent + size]);
        self.sent += size;
        if self.left() == 0 {
            self.bytes = None;
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left() as u64)
    }
}
