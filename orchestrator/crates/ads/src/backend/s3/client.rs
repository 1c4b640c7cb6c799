//! Requests to object storage, through `object_store`: blocking outside, on a small runtime of its own inside.

use super::super::Listed;
use super::address::{S3Address, Style};
use super::credentials::{self, Source};
use super::reader::Ranges;
use async_trait::async_trait;
use bytes::Bytes;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use object_store::path::Path as Key;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload, RetryConfig,
};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// Threads that move bytes; packs are proven elsewhere.
const THREADS: usize = 2;
/// What goes up in one request: a pack of the default size does.
const SINGLE_PUT: usize = 17 << 20;
/// Parts of larger ones. S3 asks for 5 MiB or more.
const PART: usize = 8 << 20;
/// Parts under way at once.
const PARTS_AT_ONCE: usize = 4;

/// Tries after the first, of every request: with the pauses half a minute, for a job would rather wait than fail.
const RETRIES: usize = 8;
/// The same before the server was ever reached: who named a wrong port wants to know at once.
const FIRST_RETRIES: usize = 3;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// No new try after this time, however long each took.
const RETRY_TIME: Duration = Duration::from_secs(180);
/// Whole readings of an object or a list whose body is cut again and again, where the request itself has been retried.
const READS: usize = 3;

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer; the whole sending of a request counts as one. 17 MiB in five minutes are 60 KB/s.
const SILENCE_LIMIT: Duration = Duration::from_secs(300);
/// Sent bytes that nobody acknowledges for this long are lost: the server or the way to it is gone.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Most of an error's text; servers answer with pages of XML.
const MAX_TEXT: usize = 600;

#[derive(Debug)]
pub(super) struct Client {
    /// For requests before the server was reached, and after.
    stores: [AmazonS3; 2],
    reached: AtomicBool,
    prefix: String,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Client {
    pub(super) fn new(address: &S3Address) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("s3")
            .enable_all()
            .build()?;
        let env = |name: &str| std::env::var(name).ok();
        let stores = [build(address, &env, FIRST_RETRIES)?, build(address, &env, RETRIES)?];
        Ok(Self {
            stores,
            reached: AtomicBool::new(false),
            prefix: address.prefix.clone(),
            runtime: Some(runtime),
        })
    }

    /// Runs a request on the runtime and waits for it. Unlike `block_on` this may be called from anywhere.
    fn wait<T: Send + 'static>(
        &self,
        request: impl Future<Output = io::Result<T>> + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.runtime.as_ref().expect("there until it is dropped").spawn(async move {
            // Nobody waits any more when the process ends.
            let _ = sender.send(request.await);
        });
        let outcome = receiver.recv().map_err(|_| io::Error::other("the request was given up"))?;
        let answered = outcome.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::NotFound);
        self.reached.fetch_or(answered, Ordering::Relaxed);
        outcome
    }

    fn store(&self) -> AmazonS3 {
        self.stores[usize::from(self.reached.load(Ordering::Relaxed))].clone()
    }

    fn key(&self, key: &str) -> io::Result<Key> {
        let whole = match (self.prefix.as_str(), key) {
            ("", key) => key.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, key) => format!("{prefix}/{key}"),
        };
        Key::parse(whole.trim_end_matches('/')).map_err(io::Error::other)
    }

    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let (store, key, bytes) = (self.store(), self.key(key)?, Bytes::copy_from_slice(bytes));
        self.wait(async move {
            let size = bytes.len();
            match size > SINGLE_PUT {
                false => store.put(&key, PutPayload::from_bytes(bytes)).await.map(drop).map_err(said)?,
                true => put_in_parts(&store, &key, bytes).await?,
            }
            prove(&store, &key, size).await
        })
    }

    /// Whether it was written. A server that ignores the condition writes always.
    pub(super) fn put_new(&self, key: &str, bytes: &[u8]) -> io::Result<bool> {
        let (store, key, bytes) = (self.store(), self.key(key)?, Bytes::copy_from_slice(bytes));
        self.wait(async move {
            let size = bytes.len();
            let payload = PutPayload::from_bytes(bytes);
            match store.put_opts(&key, payload.clone(), PutOptions::from(PutMode::Create)).await {
                Ok(_) => {}
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    return Ok(false);
                }
                Err(
                    object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. },
                ) => {
                    store.put(&key, payload).await.map_err(said)?;
                }
                Err(error) => return Err(said(error)),
            }
            prove(&store, &key, size).await.map(|()| true)
        })
    }

    pub(super) fn get(&self, key: &str, limit: u64) -> io::Result<Vec<u8>> {
        let (store, key) = (self.store(), self.key(key)?);
        self.wait(async move {
            let bytes = read(&store, &key, GetOptions::default(), Some(limit)).await?;
            Ok(bytes.into())
        })
    }

    pub(super) fn head(&self, key: &str) -> io::Result<Option<u64>> {
        let (store, key) = (self.store(), self.key(key)?);
        self.wait(async move {
            match store.head(&key).await {
                Ok(about) => Ok(Some(about.size)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(said(error)),
            }
        })
    }

    /// The objects below a prefix, sorted; with a limit, the first ones that the server gives.
    pub(super) fn list(&self, prefix: &str, limit: usize) -> io::Result<Vec<Listed>> {
        let (store, below) = (self.store(), self.key(prefix)?);
        let cut = if self.prefix.is_empty() { 0 } else { self.prefix.len() + 1 };
        self.wait(async move {
            let mut tried = 0;
            loop {
                tried += 1;
                match list(&store, &below, cut, limit).await {
                    // A list whose body is cut is not read again by `object_store`, unlike an object.
                    Err(error) if error.kind() == io::ErrorKind::Other && tried < READS => {
                        tracing::info!(prefix = %below, %error, "the list was cut; listing again");
                    }
                    outcome => return outcome,
                }
            }
        })
    }

    pub(super) fn delete(&self, key: &str) -> io::Result<()> {
        let (store, key) = (self.store(), self.key(key)?);
        self.wait(async move {
            match store.delete(&key).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(said(error)),
            }
        })
    }
}

impl Ranges for Client {
    fn get_range(&self, key: &str, offset: u64, wanted: u64, needed: u64) -> io::Result<Bytes> {
        let (store, key) = (self.store(), self.key(key)?);
        self.wait(async move {
            let range = GetRange::Bounded(offset..offset.saturating_add(wanted));
            let options = GetOptions { range: Some(range), ..GetOptions::default() };
            match read(&store, &key, options, None).await {
                Ok(bytes) if (needed..=wanted).contains(&(bytes.len() as u64)) => Ok(bytes),
                Ok(bytes) if bytes.len() as u64 > wanted => Err(io::Error::other(format!(
                    "the server gave {} bytes, {wanted} were asked for",
                    bytes.len()
                ))),
                Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
                // A range past the end is an error like others; the size tells it apart.
                Err(error) => match store.head(&key).await {
                    Ok(about) if about.size < offset.saturating_add(needed) => {
                        Err(io::ErrorKind::UnexpectedEof.into())
                    }
                    _ => Err(error),
                },
            }
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // A runtime must not be waited for from within another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn next<S: futures_core::Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| std::pin::Pin::new(&mut *stream).poll_next(context)).await
}

/// Asks the server for the size of what it took: an object counts as written only when it is seen.
async fn prove(store: &AmazonS3, key: &Key, size: usize) -> io::Result<()> {
    let seen = store.head(key).await.map_err(said)?.size;
    match seen == size as u64 {
        true => Ok(()),
        false => Err(io::Error::other(format!("the server took {size} bytes and shows {seen}"))),
    }
}

async fn put_in_parts(store: &AmazonS3, key: &Key, bytes: Bytes) -> io::Result<()> {
    let size = bytes.len();
    let mut upload = store.put_multipart(key).await.map_err(said)?;
    match send_parts(&mut *upload, bytes).await {
        Ok(()) => Ok(()),
        // The answer to the last request may be lost: then the object is there, and asking again finds no upload.
        Err(_) if prove(store, key, size).await.is_ok() => Ok(()),
        Err(error) => {
            // Parts that stay behind cost money; a rule of the bucket can remove them.
            if let Err(error) = upload.abort().await {
                tracing::warn!(object = %key, %error, "an upload in parts could not be given up");
            }
            Err(error)
        }
    }
}

async fn send_parts(upload: &mut dyn MultipartUpload, mut bytes: Bytes) -> io::Result<()> {
    let mut sending = JoinSet::new();
    while !bytes.is_empty() {
        if sending.len() >= PARTS_AT_ONCE {
            joined(sending.join_next().await)?;
        }
        let part = bytes.split_to(PART.min(bytes.len()));
        sending.spawn(upload.put_part(PutPayload::from_bytes(part)));
    }
    while !sending.is_empty() {
        joined(sending.join_next().await)?;
    }
    upload.complete().await.map(drop).map_err(said)
}

fn joined(part: Option<Result<object_store::Result<()>, tokio::task::JoinError>>) -> io::Result<()> {
    match part {
        Some(Ok(outcome)) => outcome.map_err(said),
        Some(Err(error)) => Err(io::Error::other(error)),
        None => Ok(()),
    }
}

async fn list(store: &AmazonS3, below: &Key, cut: usize, limit: usize) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    let mut pages = store.list(Some(below));
    while let Some(about) = next(&mut pages).await {
        let about = about.map_err(said)?;
        let key = about.location.as_ref().get(cut..).unwrap_or_default();
        found.push(Listed { key: key.to_owned(), size: about.size });
        if found.len() >= limit {
            break;
        }
    }
    found.sort();
    Ok(found)
}

/// Reads an object or a part of it, again where its body is cut.
async fn read(store: &AmazonS3, key: &Key, options: GetOptions, limit: Option<u64>) -> io::Result<Bytes> {
    let mut tried = 0;
    loop {
        tried += 1;
        let answer = store.get_opts(key, options.clone()).await.map_err(said)?;
        if limit.is_some_and(|limit| answer.meta.size > limit) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        match answer.bytes().await {
            Ok(bytes) => return Ok(bytes),
            Err(error) if tried >= READS => return Err(said(error)),
            Err(error) => tracing::info!(object = %key, %error, "the answer was cut; reading again"),
        }
    }
}

/// What `object_store` says, with the kind that callers ask for.
fn said(error: object_store::Error) -> io::Error {
    use object_store::Error as E;
    let text: String = crate::error::sentence(&error).chars().take(MAX_TEXT).collect();
    // Servers have no common word for it: HTTP, MinIO, and what others were seen to say.
    let full = ["507 ", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded", "no space left"];
    let kind = match error {
        E::NotFound { .. } => io::ErrorKind::NotFound,
        E::AlreadyExists { .. } | E::Precondition { .. } => io::ErrorKind::AlreadyExists,
        E::PermissionDenied { .. } | E::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        E::NotSupported { .. } | E::NotImplemented { .. } => io::ErrorKind::Unsupported,
        _ if full.iter().any(|word| text.contains(word)) => io::ErrorKind::StorageFull,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, text)
}

fn build(
    address: &S3Address,
    env: &dyn Fn(&str) -> Option<String>,
    max_retries: usize,
) -> io::Result<AmazonS3> {
    let from_env = |names: &[&str]| names.iter().find_map(|name| env(name).filter(|value| !value.is_empty()));
    let endpoint =
        address.endpoint.clone().or_else(|| from_env(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
    let plain = endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
    let (style, url) = address.target(endpoint.as_deref());
    let mut builder =
        match credentials::find(address.credentials.as_deref(), address.profile.as_deref(), env)? {
            Source::Ambient => AmazonS3Builder::from_env(),
            Source::File(keys) => {
                let builder =
                    AmazonS3Builder::new().with_access_key_id(keys.id).with_secret_access_key(keys.secret);
                match keys.token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
        };
    builder = builder
        .with_bucket_name(&address.bucket)
        .with_virtual_hosted_style_request(style == Style::Virtual)
        .with_allow_http(plain)
        // One request each: some servers know no other, and what is removed one by one is few.
        .with_disable_bulk_delete(true)
        .with_retry(retries(max_retries));
    if let Some(region) = address.region.clone().or_else(|| from_env(&["AWS_REGION", "AWS_DEFAULT_REGION"])) {
        builder = builder.with_region(region);
    }
    if let Some(url) = url {
        builder = builder.with_config(object_store::aws::AmazonS3ConfigKey::S3Endpoint, url);
    }
    let ca = address.ca.clone().or_else(|| from_env(&["AWS_CA_BUNDLE"]).map(Into::into));
    let connector = Connector { client: http_client(ca.as_deref(), plain)? };
    builder.with_http_connector(connector).build().map_err(said)
}

fn retries(max_retries: usize) -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig { init_backoff: FIRST_PAUSE, max_backoff: LONGEST_PAUSE, base: 2.0 },
        max_retries,
        retry_timeout: RETRY_TIME,
    }
}

/// Gives `object_store` our HTTP client: its own takes another TLS.
#[derive(Debug)]
struct Connector {
    client: reqwest::Client,
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Tolerant(self.client.clone())))
    }
}

/// Passes requests on, and mends what servers are known to answer wrongly.
#[derive(Debug)]
struct Tolerant(reqwest::Client);

#[async_trait]
impl HttpService for Tolerant {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let ranged = request.headers().contains_key(RANGE);
        let mut answer = HttpService::call(&self.0, request).await?;
        // rclone gives a part, with its place, and calls it the whole. The place is checked by who asked.
        if ranged && answer.status() == StatusCode::OK && answer.headers().contains_key(CONTENT_RANGE) {
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        Ok(answer)
    }
}

fn http_client(ca: Option<&Path>, plain: bool) -> io::Result<reqwest::Client> {
    reqwest::Client::builder()
        .user_agent(concat!("abd/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(SILENCE_LIMIT)
        .tcp_user_timeout(UNACKNOWLEDGED_LIMIT)
        .tcp_keepalive(KEEP_ALIVE)
        .tls_backend_preconfigured(tls(ca, plain)?)
        .build()
        .map_err(io::Error::other)
}

/// The certificates of the system, and those of `ca`.
fn tls(ca: Option<&Path>, plain: bool) -> io::Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    // Single certificates that cannot be used are no obstacle; none at all is.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca {
        let failed =
            |reason: String| io::Error::other(format!("read certificates of {}: {reason}", path.display()));
        let mut count = 0;
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))? {
            let certificate = certificate.map_err(|error| failed(error.to_string()))?;
            roots.add(certificate).map_err(|error| failed(error.to_string()))?;
            count += 1;
        }
        if count == 0 {
            return Err(failed("there is none in it".into()));
        }
    }
    if roots.is_empty() && !plain {
        return Err(io::Error::other(
            "this machine trusts no certificate: install ca-certificates, or name a file with the option ca",
        ));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ca.pem");
        assert!(tls(Some(&path), true).expect_err("missing").to_string().contains("ca.pem"));
        std::fs::write(&path, "no certificate\n").expect("written");
        assert!(tls(Some(&path), true).expect_err("empty").to_string().contains("there is none in it"));
    }

    #[test]
    fn a_full_server_is_told_apart() {
        let generic = |text: &str| object_store::Error::Generic {
            store: "S3",
            source: Box::new(io::Error::other(text.to_owned())),
        };
        assert_eq!(said(generic("status code: 507 Insufficient")).kind(), io::ErrorKind::StorageFull);
        assert_eq!(said(generic("<Code>XMinioStorageFull</Code>")).kind(), io::ErrorKind::StorageFull);
        assert_eq!(said(generic("500 Internal")).kind(), io::ErrorKind::Other);
        assert!(said(generic(&"x".repeat(5000))).to_string().len() <= MAX_TEXT);
    }
}
