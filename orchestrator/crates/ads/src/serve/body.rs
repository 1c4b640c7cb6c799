//! Bodies: what a call sends, in bounded time and memory, and what an answer gives, piece by piece.

use super::denied::Denied;
use super::limits::{Deadline, Rate};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout_at;

/// Reads a body of exactly `size` bytes.
pub(super) async fn read(
    body: &mut Incoming,
    size: u64,
    rate: &Rate,
    mut deadline: Deadline,
) -> Result<Vec<u8>, Denied> {
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    while let Some(piece) = next_piece(body, &deadline).await? {
        if (bytes.len() + piece.len()) as u64 > size {
            return Err(Denied::bad("the body has more bytes than were announced"));
        }
        deadline.extend(rate.pass(piece.len()).await);
        bytes.extend_from_slice(&piece);
    }
    match bytes.len() as u64 == size {
        true => Ok(bytes),
        false => Err(Denied::bad(format!("the body ended after {} of {size} bytes", bytes.len()))),
    }
}

/// Reads the rest of a refused call's body and forgets it: a sender who finds the connection closed while he still writes
/// would never see the answer.
pub(super) async fn drain(body: &mut Incoming, limit: u64, rate: &Rate, mut deadline: Deadline) {
    let mut left = limit;
    while let Ok(Some(piece)) = next_piece(body, &deadline).await {
        deadline.extend(rate.pass(piece.len()).await);
        left = match left.checked_sub(piece.len() as u64) {
            Some(left) => left,
            None => return,
        };
    }
}

async fn next_piece(body: &mut Incoming, deadline: &Deadline) -> Result<Option<Bytes>, Denied> {
    loop {
        match timeout_at(deadline.next(), body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                return Err(Denied::new(400, "cut-body", format!("the body cannot be read: {error}")));
            }
            Err(_) => {
                return Err(Denied::new(408, "too-slow", "the body did not come fast enough"));
            }
        }
    }
}

/// A piece of an answer that is given bit by bit.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// Nothing is missing.
    End,
}

/// The body of an answer.
#[derive(Debug)]
pub(super) enum Answer {
    Whole(Option<Bytes>),
    /// Pieces; how many bytes are to come, where that is known. One that breaks off without an end is told to be cut.
    Pieces {
        pieces: Receiver<Piece>,
        left: Option<u64>,
    },
}

impl Answer {
    pub(super) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    /// An answer that is given bit by bit, and where to put the bits. One waits while one is on its way.
    pub(super) fn pieces(size: Option<u64>) -> (Sender<Piece>, Self) {
        let (sender, pieces) = channel(1);
        (sender, Self::Pieces { pieces, left: size })
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces { pieces, left } => match pieces.poll_recv(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Piece::End)) => Poll::Ready(None),
                Poll::Ready(Some(Piece::Bytes(bytes))) => {
                    if let Some(left) = left {
                        *left = left.saturating_sub(bytes.len() as u64);
                    }
                    Poll::Ready(Some(Ok(Frame::data(bytes))))
                }
                Poll::Ready(None) => Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Pieces { left: Some(left), .. } => SizeHint::with_exact(*left),
            Self::Pieces { left: None, .. } => SizeHint::default(),
        }
    }
}
