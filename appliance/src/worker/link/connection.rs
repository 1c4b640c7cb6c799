//! One connection: TCP, TLS with both keys pinned, HTTP/1.1; and the note of when its last byte moved.

use super::body::Shared;
use crate::worker::Reach;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::rt::ReadBufCursor;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use std::{cell::Cell, fmt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// An address that does not answer within this is not waited for any longer; the next one is tried.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A TLS handshake is a few packets and two signatures.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// What HTTP keeps in memory per connection and direction.
const HTTP_BUFFER: usize = 128 << 10;
/// Plain bytes of one TLS record.
const RECORD: usize = 16 << 10;

/// An open connection that may carry one call at a time.
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Shared>,
    pub(crate) address: SocketAddr,
    pub(crate) moved: Moved,
    /// How long TCP took, and then TLS.
    pub(crate) took: (Duration, Duration),
}

/// When the last byte moved in either direction.
#[derive(Clone)]
pub(crate) struct Moved(Rc<Cell<Instant>>);

/// Why a connection could not be opened.
pub(crate) enum Failed {
    /// Nothing listens there, or not now: how far it came, and what happened.
    Unreachable(Reach, String),
    /// Somebody listens there who does not have the orchestrator's key.
    Pin(String),
}

impl Moved {
    fn now() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    pub(crate) fn touch(&self) {
        self.0.set(Instant::now());
    }

    pub(crate) fn at(&self) -> Instant {
        self.0.get()
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(_, reason) | Self::Pin(reason) => f.write_str(reason),
        }
    }
}

/// Opens a connection to `address` and starts the task that drives it.
pub(crate) async fn open(address: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Connection, Failed> {
    let unreachable =
        |reach, reason: &dyn fmt::Display| Failed::Unreachable(reach, format!("{address}: {reason}"));
    let began = Instant::now();
    let tcp = match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
        Err(_) => {
            let reason = format!("no answer within {} s", CONNECT_LIMIT.as_secs());
            return Err(unreachable(Reach::Silent, &reason));
        }
        Ok(Err(error)) => return Err(unreachable(Reach::of(&error), &error)),
        Ok(Ok(tcp)) => tcp,
    };
    let connected = Instant::now();
    // Questions are small and their answers are waited for. A refusal costs speed, nothing else.
    let _ = tcp.set_nodelay(true);
    let name = ServerName::try_from(pin::SERVER_NAME).expect("a constant that is a name");
    let connector = TlsConnector::from(tls.clone());
    let stream = match timeout(HANDSHAKE_LIMIT, connector.connect(name, tcp)).await {
        Err(_) => {
            let reason = format!("no TLS handshake within {} s", HANDSHAKE_LIMIT.as_secs());
            return Err(unreachable(Reach::NoTls, &reason));
        }
        Ok(Err(error)) if is_pin(&error) => return Err(Failed::Pin(format!("{address}: {error}"))),
        Ok(Err(error)) => return Err(unreachable(Reach::NoTls, &format!("TLS: {error}"))),
        Ok(Ok(stream)) => stream,
    };
    let took = (connected.duration_since(began), connected.elapsed());
    let moved = Moved::now();
    let io = Io { stream, moved: moved.clone(), scratch: vec![0; RECORD].into_boxed_slice() };
    let handshake = Builder::new().max_buf_size(HTTP_BUFFER).handshake(io);
    let (sender, driver) = handshake.await.map_err(|error| unreachable(Reach::Lost, &error))?;
    // Its errors reach the call that uses the connection; an idle one that breaks is not missed.
    tokio::task::spawn_local(async move { drop(driver.await) });
    Ok(Connection { sender, address, moved, took })
}

/// The verifier's refusal of a key is the only general error that a handshake of ours can give.
fn is_pin(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<tokio_rustls::rustls::Error>());
    matches!(inner, Some(tokio_rustls::rustls::Error::General(_)))
}

/// Lets hyper use a tokio stream.
struct Io {
    stream: TlsStream<TcpStream>,
    moved: Moved,
    /// hyper's own buffer can only be filled without `unsafe` by copying.
    scratch: Box<[u8]>,
}

impl Io {
    fn note(&self, moved: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(moved, Poll::Ready(Ok(count)) if count > 0) {
            self.moved.touch();
        }
        moved
    }
}

impl hyper::rt::Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = cursor.remaining().min(this.scratch.len());
        let mut piece = ReadBuf::new(&mut this.scratch[..room]);
        ready!(Pin::new(&mut this.stream).poll_read(context, &mut piece))?;
        cursor.put_slice(piece.filled());
        if !piece.filled().is_empty() {
            this.moved.touch();
        }
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for Io {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.note(moved)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let moved = Pin::new(&mut this.stream).poll_write_vectored(context, pieces);
        this.note(moved)
    }
}
