//! A request's body: shared memory, handed to HTTP in pieces.

use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// Bytes of one piece: TLS encrypts what it is given at once, and keeps that in memory until it is sent.
const PIECE: usize = 64 << 10;

/// The body of a call; repeating the call makes another from the same memory. Pieces are views of it, which a connection
/// lets go of once they are encrypted: before there can be an answer to the whole.
pub(crate) struct Shared {
    left: Bytes,
}

/// The memory of a body, as HTTP wants to own it.
struct Owner(Arc<Vec<u8>>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Shared {
    pub(crate) fn new(bytes: Arc<Vec<u8>>) -> Self {
        Self { left: Bytes::from_owner(Owner(bytes)) }
    }
}

impl Body for Shared {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let size = self.left.len().min(PIECE);
        if size == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(self.left.split_to(size)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}
