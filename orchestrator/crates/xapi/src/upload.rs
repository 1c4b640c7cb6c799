//! What is sent to a data handler: contents of a known length, as a body that reports its progress and waits a
//! moment for a redirect.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::error::{Error, Kind, Result};

/// How long a body waits for a redirect. A host that takes it costs this much once per transfer.
const REDIRECT_GRACE: Duration = Duration::from_millis(300);

/// Piece in which a body is sent.
const PIECE_BYTES: usize = 256 << 10;

type Reader = Pin<Box<dyn AsyncRead + Send + Sync>>;
type Open = Arc<dyn Fn() -> io::Result<Reader> + Send + Sync>;

/// Contents to send, with their length. They are opened again when a host redirects.
#[derive(Clone)]
pub struct Upload {
    bytes: u64,
    open: Open,
}

impl Upload {
    pub(crate) fn length(&self) -> u64 {
        self.bytes
    }

    /// The contents from their beginning, as a body.
    pub(crate) fn contents(
        &self,
        stopped: Arc<AtomicBool>,
        sent: Arc<AtomicU64>,
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> io::Result<Contents> {
        let grace = Some(Box::pin(sleep(REDIRECT_GRACE)));
        Ok(Contents { reader: (self.open)()?, left: self.bytes, last: None, grace, stopped, sent, progress })
    }

    /// A file as it is now.
    pub fn file(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let failed =
            |error| Error::new(Kind::Input, "upload", format!("read {}", path.display())).with_source(error);
        let bytes = std::fs::metadata(&path).map_err(failed)?.len();
        let open = move || Ok(Box::pin(tokio::fs::File::from_std(std::fs::File::open(&path)?)) as Reader);
        Ok(Self { bytes, open: Arc::new(open) })
    }

    /// Bytes in memory.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        let bytes: Bytes = bytes.into();
        let length = bytes.len() as u64;
        Self { bytes: length, open: Arc::new(move || Ok(Box::pin(io::Cursor::new(bytes.clone())) as Reader)) }
    }

    /// Anything else of known length. A reader that gives less or more is an error.
    pub fn reader<R, F>(length: u64, open: F) -> Self
    where
        R: AsyncRead + Send + Sync + 'static,
        F: Fn() -> io::Result<R> + Send + Sync + 'static,
    {
        Self { bytes: length, open: Arc::new(move || Ok(Box::pin(open()?) as Reader)) }
    }
}

/// Ends a body when nobody waits for the answer any more. The connection itself would go on sending.
pub(crate) struct StopOnDrop(pub(crate) Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A body of known length that reports its progress.
pub(crate) struct Contents {
    reader: Reader,
    left: u64,
    /// The last piece, until the reader is known to end with it.
    last: Option<Bytes>,
    grace: Option<Pin<Box<Sleep>>>,
    stopped: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Contents {
    /// Reports a piece that goes out.
    fn count(&self, piece: Bytes) -> Frame<Bytes> {
        let length = piece.len() as u64;
        let sent = self.sent.fetch_add(length, Ordering::Relaxed) + length;
        (self.progress)(sent);
        Frame::data(piece)
    }
}

impl HttpBody for Contents {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Some(grace) = &mut this.grace {
            ready!(grace.as_mut().poll(cx));
            this.grace = None;
        }
        if this.stopped.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err(io::Error::other("the transfer was broken off"))));
        }
        if this.left == 0 {
            return Poll::Ready(None);
        }
        // What the reader has beyond the announced length is noticed before the last piece goes out: the host would
        // take a whole body for the right one.
        if let Some(last) = this.last.take() {
            let mut byte = [0];
            let mut beyond = ReadBuf::new(&mut byte);
            match this.reader.as_mut().poll_read(cx, &mut beyond) {
                Poll::Pending => {
                    this.last = Some(last);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Ok(())) if beyond.filled().is_empty() => {
                    this.left = 0;
                    return Poll::Ready(Some(Ok(this.count(last))));
                }
                Poll::Ready(Ok(())) => {
                    let why = "the contents are longer than was announced";
                    return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::InvalidData, why))));
                }
            }
        }
        // One piece at most, so the count fits.
        let want = this.left.min(PIECE_BYTES as u64) as usize;
        let mut piece = BytesMut::zeroed(want);
        let mut buffer = ReadBuf::new(&mut piece);
        match ready!(this.reader.as_mut().poll_read(cx, &mut buffer)) {
            Err(error) => return Poll::Ready(Some(Err(error))),
            Ok(()) if buffer.filled().is_empty() => {
                let why = format!("the contents end {} bytes too early", this.left);
                return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))));
            }
            Ok(()) => {}
        }
        let count = buffer.filled().len();
        piece.truncate(count);
        let piece = piece.freeze();
        if this.left == count as u64 {
            this.last = Some(piece);
            return self.poll_frame(cx);
        }
        this.left -= count as u64;
        Poll::Ready(Some(Ok(this.count(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.grace.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
