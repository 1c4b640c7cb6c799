//! The listening sockets: HTTP, HTTPS with a certificate made at the start, and the trusted Unix socket.

use super::wire::Stream;
use crate::Error;
use crate::storage::disk::hex;
use ring::digest::{SHA256, digest};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::io::BufReader;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// Connections of one socket that are served at the same time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 512;

/// A self-signed server identity.
pub(crate) struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) pem: String,
    /// SHA-256 of the certificate, as colon-separated upper-case hexadecimal.
    pub(crate) fingerprint: String,
}

/// Makes a certificate for loopback names.
pub(crate) fn identity() -> Result<Identity, Error> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "lab-host-1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(Error::Certificate)?;
    let der = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![der.clone()], key)?;
    let hash = hex(digest(&SHA256, &der).as_ref()).to_uppercase();
    let pairs: Vec<&str> = (0..hash.len()).step_by(2).map(|i| &hash[i..i + 2]).collect();
    Ok(Identity {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        pem: made.cert.pem(),
        fingerprint: pairs.join(":"),
    })
}

/// How often another free port is tried where an address had its own use for the first.
const PORT_TRIES: usize = 8;

/// Listens on the same port of every address; 0 picks one that is free on all of them.
pub(crate) async fn bind(addresses: &[Ipv4Addr], port: u16) -> Result<(Vec<TcpListener>, u16), Error> {
    let mut tries = if port == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match bind_all(addresses, port).await {
            Err(_) if tries > 0 => {}
            outcome => return outcome,
        }
    }
}

async fn bind_all(addresses: &[Ipv4Addr], mut port: u16) -> Result<(Vec<TcpListener>, u16), Error> {
    let mut listeners = Vec::new();
    for address in addresses {
        let address = SocketAddr::from((*address, port));
        let failed = |source| Error::Listen { address: address.to_string(), source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        port = listener.local_addr().map_err(failed)?.port();
        listeners.push(listener);
    }
    Ok((listeners, port))
}

/// Listens on a Unix socket; one left over from an earlier run is replaced.
pub(crate) fn bind_unix(path: &Path) -> Result<UnixListener, Error> {
    if path.exists() {
        std::fs::remove_file(path).map_err(Error::file("remove", path))?;
    }
    UnixListener::bind(path).map_err(|source| Error::Listen { address: path.display().to_string(), source })
}

/// Serves every connection of a socket with `serve`, until aborted; the connections go with it.
pub(crate) fn spawn<L, S, F>(listener: L, serve: S) -> AbortHandle
where
    L: Accept,
    S: Fn(Stream) -> F + Clone + Send + 'static,
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= MAX_CONNECTIONS {
                connections.join_next().await;
            }
            while connections.try_join_next().is_some() {}
            let Ok(connecting) = listener.accept().await else { continue };
            let serve = serve.clone();
            connections.spawn(async move {
                // A broken connection is the peer's business; there is nobody to report it to.
                let Ok(stream) = connecting.await else { return };
                if let Err(error) = serve(stream).await {
                    tracing::debug!(%error, "connection ended");
                }
            });
        }
    });
    task.abort_handle()
}

/// A socket that hands out connections.
pub(crate) trait Accept: Send + 'static {
    /// A connection that may still have to shake hands.
    type Connecting: Future<Output = std::io::Result<Stream>> + Send + 'static;
    fn accept(&self) -> impl Future<Output = std::io::Result<Self::Connecting>> + Send;
}

type Ready = std::future::Ready<std::io::Result<Stream>>;

impl Accept for TcpListener {
    type Connecting = Ready;
    async fn accept(&self) -> std::io::Result<Ready> {
        let (stream, _) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(std::future::ready(Ok(BufReader::new(Box::new(stream)))))
    }
}

impl Accept for UnixListener {
    type Connecting = Ready;
    async fn accept(&self) -> std::io::Result<Ready> {
        let (stream, _) = UnixListener::accept(self).await?;
        Ok(std::future::ready(Ok(BufReader::new(Box::new(stream)))))
    }
}

/// A TCP socket behind TLS.
pub(crate) struct TlsListener {
    pub(crate) listener: TcpListener,
    pub(crate) acceptor: TlsAcceptor,
}

impl Accept for TlsListener {
    type Connecting = std::pin::Pin<Box<dyn Future<Output = std::io::Result<Stream>> + Send>>;
    async fn accept(&self) -> std::io::Result<Self::Connecting> {
        let (stream, _) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        let accepting = self.acceptor.accept(stream);
        Ok(Box::pin(async move {
            let stream: Box<dyn super::wire::Io> = Box::new(accepting.await?);
            Ok(BufReader::new(stream))
        }))
    }
}
