//! The HTTPS service for ABDs: `wire`'s `PROTOCOL.md`, server side.
//!
//! Owns listeners, connections, and what each of them may cost. Promises: a call is answered only for a key
//! that was admitted to an open job, and only within that job's order; bytes from outside never panic.
//! Blocking work of the store runs on tokio's blocking threads, never on the runtime's own; how much runs at once is
//! bounded by [`Limits`].
//!
//! ```text
//! session   jobs, their keys, their events        routes   the calls
//! grant     what a job may do                     stall    connections that do not move
//! body      bounded reading of what a call sends
//! diagnosis the calls that only measure
//! ```

mod body;
mod diagnosis;
mod grant;
mod routes;
mod session;
mod stall;

pub use grant::JobGrant;
pub use session::{Events, JobEvent, JobHandle};

use crate::Error;
use crate::store::Store;
use blocks::ByteCount;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin::{Fingerprint, Identity};
use session::{Access, Registry};
pub(crate) use stall::Stalled;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

/// A TLS handshake is a few packets and two signatures.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Between two calls of a connection whose key belongs to a job. An ABD reports every few seconds, but keeps
/// more connections than that needs.
const IDLE_LIMIT: Duration = Duration::from_secs(120);
/// Between two calls of a connection whose key is not known yet.
const STRANGER_IDLE_LIMIT: Duration = Duration::from_secs(15);
/// A call's header has a path, a host and a length.
const MAX_HEADERS: usize = 32;
/// Bytes of headers, and what HTTP buffers of a body: more is left to TCP, which slows the sender down.
const HTTP_BUFFER: usize = 64 << 10;
/// Pause after the system refused to accept a connection, for instance because files ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections in all. Three ABDs with four connections each use 12.
    pub connections: usize,
    /// Of these, connections whose key belongs to no job.
    pub strangers: usize,
    /// Bytes of packs in memory, over all jobs. At least one pack is always let in.
    pub ingest: ByteCount,
    /// Packs of one job that are taken in at once.
    pub packs_per_job: usize,
    /// Calls of one job that read from the store at once; each answers up to 4 MiB.
    pub reads_per_job: usize,
    /// A connection on which a started call or answer does not move for this long is closed.
    pub stall: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            strangers: 64,
            ingest: ByteCount::new(192 << 20),
            packs_per_job: 2,
            reads_per_job: 4,
            stall: Duration::from_secs(30),
        }
    }
}

/// The running service. Dropping it closes every connection.
#[derive(Debug)]
pub struct Service {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    fingerprint: Fingerprint,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
}

/// What every connection needs.
#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    registry: Arc<Registry>,
    limits: Limits,
    connections: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    /// Packs in memory, in units of [`body::INGEST_UNIT`].
    ingest: Arc<Semaphore>,
    kept: Arc<body::Kept>,
}

impl Service {
    /// Listens on every address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`Error::Listen`] naming the address, [`Error::Tls`].
    pub async fn start(store: Arc<Store>, identity: Identity, listen: &[SocketAddr]) -> Result<Self, Error> {
        Self::start_with_limits(store, identity, listen, Limits::default()).await
    }

    /// [`start`](Self::start) with other limits.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with_limits(
        store: Arc<Store>,
        identity: Identity,
        listen: &[SocketAddr],
        limits: Limits,
    ) -> Result<Self, Error> {
        let tls = TlsAcceptor::from(Arc::new(identity.server_config()?));
        let shared = Arc::new(Shared {
            store,
            registry: Arc::default(),
            limits,
            connections: Arc::new(Semaphore::new(limits.connections)),
            strangers: Arc::new(Semaphore::new(limits.strangers)),
            ingest: Arc::new(Semaphore::new(body::ingest_units(limits.ingest).max(body::MAX_PACK_UNITS))),
            kept: Arc::default(),
        });
        let mut bound = Vec::new();
        for address in listen {
            let failed = |source| Error::Listen { address: *address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            bound.push((listener.local_addr().map_err(failed)?, listener));
        }
        let (stop, stopped) = watch::channel(false);
        let mut service = Self {
            shared: shared.clone(),
            addresses: bound.iter().map(|(address, _)| *address).collect(),
            fingerprint: identity.fingerprint(),
            stop,
            listeners: Vec::new(),
        };
        for (_, listener) in bound {
            let accept = accept(listener, tls.clone(), shared.clone(), stopped.clone());
            service.listeners.push(tokio::spawn(accept));
        }
        Ok(service)
    }

    /// What an ABD must know to trust this service.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Where it listens, with the real ports.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Opens a job. Nobody can call for it until a key was [admitted](JobHandle::admit). A job that was closed can be
    /// opened again, for a next round with other disks: its events start anew, and the key of an earlier round is
    /// neither let in nor admitted.
    ///
    /// # Errors
    /// [`Error::Job`] where the grant contradicts itself, or the job is open already.
    pub fn open_job(&self, grant: JobGrant) -> Result<JobHandle, Error> {
        JobHandle::open(self.shared.registry.clone(), &self.shared, grant)
    }

    /// Closes listeners and connections. A pack that was received in full is still taken in.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for listener in self.listeners.drain(..) {
            // A listener that panicked has closed its connections as well.
            let _ = listener.await;
        }
    }
}

impl Drop for Service {
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
            _ = stopped.wait_for(|stopped| *stopped) => return,
            Some(_) = connections.join_next() => continue,
            accepted = async { (permit.await, listener.accept().await) } => accepted,
        };
        let (Ok(permit), accepted) = accepted else { return };
        match accepted {
            Ok((stream, address)) => {
                let (tls, shared) = (tls.clone(), shared.clone());
                connections.spawn(async move {
                    serve(stream, address, tls, shared).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection from its first byte to its last.
async fn serve(stream: TcpStream, address: SocketAddr, tls: TlsAcceptor, shared: Arc<Shared>) {
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
    let mut stranger = None;
    let mut idle = IDLE_LIMIT;
    if matches!(shared.registry.access(peer), Access::Unknown) {
        let Ok(permit) = shared.strangers.clone().try_acquire_owned() else {
            return tracing::debug!(%address, "too many connections with unknown keys");
        };
        stranger = Some(permit);
        idle = STRANGER_IDLE_LIMIT;
    }
    let handler = hyper::service::service_fn(|request| routes::answer(shared.clone(), peer, request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_headers(MAX_HEADERS)
        .max_buf_size(HTTP_BUFFER)
        .serve_connection(TokioIo::new(stream), handler)
        .await;
    if let Err(error) = served {
        tracing::debug!(%address, %error, "connection ended");
    }
    drop(stranger);
}
