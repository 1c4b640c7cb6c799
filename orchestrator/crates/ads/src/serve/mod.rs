//! `abd serve`: one machine holds the store for several. `SERVE.md` describes the protocol.
//!
//! Owns listeners and connections, and what each client may cost. Promises: a call is answered only for a key that is
//! known, and only as the [`Offer`] allows; who is slow is cut, and holds no more memory than its share; bytes from outside
//! never panic. What may be done to a store is decided in [`Guard`], on this side, and never by the client.
//!
//! ```text
//! protocol  what both sides say        call    a request, understood or refused      body     bounded reading, answers in pieces
//! limits    what clients may cost      answer  the calls                             denied   why a call is not done
//! guard     what each client may do to a store
//! ```

mod answer;
mod body;
mod call;
mod denied;
mod guard;
mod limits;
pub(crate) mod protocol;

pub use call::Call;
pub use denied::Denied;
pub use guard::{Clients, Guard};
pub use limits::ServeLimits;
pub use protocol::{Client, Role, Standing};

use crate::Error;
use crate::backend::Backend;
use crate::service::Stalled;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use limits::Seat;
use pin::{Fingerprint, Identity};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// A TLS handshake is a few packets and two signatures.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Between two calls of a client.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// Between two calls of a connection whose key is not known.
const STRANGER_IDLE_LIMIT: Duration = Duration::from_secs(15);
/// A call's header has a path, a host, a length and a few that clients add.
const MAX_HEADERS: usize = 32;
/// Bytes of headers, and what HTTP buffers of a body: more is left to TCP, which slows the sender down.
const HTTP_BUFFER: usize = 64 << 10;
/// Pause after the system refused to accept a connection, for instance because files ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// What is under way when the server is told to stop gets so much time.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// What is offered, and to whom. All methods block, but for [`client`](Self::client) and [`most`](Self::most).
pub trait Offer: Send + Sync {
    /// Who has this key; `None` for a key that is not known. Asked before every call.
    fn client(&self, key: Fingerprint) -> Option<Client>;

    /// Where the objects are. Every client may read them.
    fn backend(&self) -> &dyn Backend;

    /// What a client may do.
    ///
    /// # Errors
    /// What the store said.
    fn standing(&self, client: &Client) -> Result<Standing, Denied>;

    /// Most bytes that this client may write under a key.
    ///
    /// # Errors
    /// Where it may write none at all.
    fn most(&self, client: &Client, key: &str) -> Result<u64, Denied>;

    /// Writes an object, whole and durable; with `only_new` unless there is one of its key. Whether it was written.
    ///
    /// # Errors
    /// Why not.
    fn put(&self, client: &Client, key: &str, bytes: &[u8], only_new: bool) -> Result<bool, Denied>;

    /// Removes an object.
    ///
    /// # Errors
    /// Why not.
    fn delete(&self, client: &Client, key: &str) -> Result<(), Denied>;
}

/// The running server. Dropping it closes every connection.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    fingerprint: Fingerprint,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
}

/// What every connection needs.
struct Shared {
    offer: Arc<dyn Offer>,
    limits: ServeLimits,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    /// Bytes of objects, in units.
    memory: Arc<Semaphore>,
    seats: Mutex<HashMap<Fingerprint, Arc<Seat>>>,
    /// The seat of all who are not known.
    stranger: Seat,
}

impl Shared {
    /// What a known client has. There are as many as were ever known while this process runs.
    fn seat(&self, key: Fingerprint) -> Arc<Seat> {
        let mut seats = self.seats.lock().expect("no panic while they are locked");
        seats.entry(key).or_insert_with(|| Arc::new(Seat::new(&self.limits))).clone()
    }
}

impl Server {
    /// Listens on every address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Listen`] naming the address, [`Error::Tls`].
    pub async fn start(
        offer: Arc<dyn Offer>,
        identity: &Identity,
        listen: &[SocketAddr],
        limits: ServeLimits,
    ) -> Result<Self, Error> {
        let tls = TlsAcceptor::from(Arc::new(identity.server_config()?));
        let shared = Arc::new(Shared {
            offer,
            limits,
            connections: Arc::new(Semaphore::new(limits.connections)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            memory: limits::memory(limits.memory),
            seats: Mutex::default(),
            stranger: Seat::new(&limits),
        });
        let mut bound = Vec::new();
        for address in listen {
            let failed = |source| Error::Listen { address: *address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            bound.push((listener.local_addr().map_err(failed)?, listener));
        }
        let (stop, stopped) = watch::channel(false);
        let addresses = bound.iter().map(|(address, _)| *address).collect();
        let listen =
            |(_, listener)| tokio::spawn(accept(listener, tls.clone(), shared.clone(), stopped.clone()));
        let listeners = bound.into_iter().map(listen).collect();
        Ok(Self { addresses, fingerprint: identity.fingerprint(), stop, listeners })
    }

    /// What a client must know to trust this server.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Where it listens, with the real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Takes no further call, lets those that run come to their end for a while, and closes every connection.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for listener in self.listeners.drain(..) {
            // A listener that panicked has closed its connections as well.
            let _ = listener.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        let permit = shared.connections.clone().acquire_owned();
        let accepted = tokio::select! {
            () = told(&mut stopped) => break,
            Some(_) = connections.join_next() => continue,
            accepted = async { (permit.await, listener.accept().await) } => accepted,
        };
        let (Ok(permit), accepted) = accepted else { break };
        match accepted {
            Ok((stream, address)) => {
                let serve = serve(stream, address, tls.clone(), shared.clone(), stopped.clone());
                connections.spawn(async move {
                    serve.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(STOP_LIMIT, all).await.is_err() {
        tracing::warn!("calls that did not come to their end are cut");
    }
}

/// One connection from its first byte to its last.
async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    // Answers are small and waited for. Where it cannot be set, they are only slower.
    let _ = stream.set_nodelay(true);
    let stream = Stalled::new(stream, shared.limits.stall);
    let stream = match timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS"),
        Err(_) => return tracing::debug!(%address, "no TLS within the limit"),
    };
    let Some(peer) = pin::peer(stream.get_ref().1) else {
        return tracing::debug!(%address, "no key");
    };
    let (places, idle) = match shared.offer.client(peer) {
        Some(_) => (shared.seat(peer).connections.clone(), IDLE_LIMIT),
        None => {
            tracing::warn!(%address, key = %peer, "a key that is not known");
            (shared.strangers.clone(), STRANGER_IDLE_LIMIT)
        }
    };
    let Ok(_place) = places.try_acquire_owned() else {
        return tracing::warn!(%address, key = %peer, "too many connections with this key");
    };
    let handler = hyper::service::service_fn(|request| answer::answer(shared.clone(), peer, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HTTP_BUFFER)
        .serve_connection(TokioIo::new(stream), handler);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = told(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%address, %error, "connection ended");
    }
}

/// Comes back when the server is to stop.
async fn told(stopped: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, which is the same.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
