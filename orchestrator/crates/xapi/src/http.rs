//! HTTP to one endpoint: requests, limits, and errors that name the address.

use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, COOKIE, LOCATION};
use reqwest::{Body, Method, Response, StatusCode, Url};
use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::tls::{Fingerprint, Pinned};

/// Idle connections are closed before the host's own limit.
const IDLE: Duration = Duration::from_secs(20);

/// Keeps a connection alive in NAT tables while a call blocks for minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// HTTP client of one endpoint.
#[derive(Debug, Clone)]
pub(crate) struct Http {
    endpoint: Endpoint,
    client: reqwest::Client,
    pinned: Option<Arc<Pinned>>,
}

/// A complete answer to an RPC.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: String,
    pub(crate) body: Vec<u8>,
}

impl Http {
    pub(crate) fn new(endpoint: Endpoint, pin: Option<Fingerprint>, connect: Duration) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("abd-xapi/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(connect)
            .pool_idle_timeout(IDLE)
            .tcp_keepalive(KEEP_ALIVE);
        let (pinned, config) = Pinned::config(endpoint.address(), pin)?;
        builder = builder.tls_backend_preconfigured(config);
        if let Endpoint::Unix(path) = &endpoint {
            builder = builder.unix_socket(path.clone());
        }
        let client = builder.build().map_err(|error| {
            Error::new(Kind::Input, "connect", format!("no HTTP client for {endpoint} can be set up"))
                .with_source(error)
        })?;
        let pinned = matches!(endpoint, Endpoint::Https { .. }).then_some(pinned);
        Ok(Self { endpoint, client, pinned })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Connects and asks for nothing in particular.
    pub(crate) async fn touch(&self) -> Result<()> {
        let request = self.client.head(format!("{}/", self.endpoint.base())).timeout(Duration::from_secs(20));
        request.send().await.map(drop).map_err(|error| self.failed("connect", error))
    }

    /// Sends an RPC and reads the whole answer, up to a limit.
    pub(crate) async fn post(
        &self,
        method: &str,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
        timeout: Duration,
        limit: usize,
    ) -> Result<Answer> {
        let request = self
            .client
            .post(format!("{}{path}", self.endpoint.base()))
            .header(CONTENT_TYPE, content_type)
            .timeout(timeout)
            .body(body);
        let mut response = request.send().await.map_err(|error| self.failed(method, error))?;
        let status = response.status();
        let content_type = header(&response, CONTENT_TYPE.as_str());
        let body = self.read_up_to(method, &mut response, limit).await?;
        Ok(Answer { status, content_type, body })
    }

    /// Starts a request to a data handler. The session goes in a cookie, so that no URL holds it.
    pub(crate) async fn handler(
        &self,
        what: &str,
        method: Method,
        url: Url,
        session: &str,
        body: Option<Body>,
        timeout: Duration,
    ) -> Result<Response> {
        let mut request =
            self.client.request(method, url).header(COOKIE, format!("session_id={session}")).timeout(timeout);
        if let Some(body) = body {
            request = request.body(body);
        }
        request.send().await.map_err(|error| self.failed(what, error))
    }

    /// URL of a data handler.
    pub(crate) fn url(&self, path: &str, query: &[(&str, &str)]) -> Result<Url> {
        let mut url: Url = format!("{}{path}", self.endpoint.base())
            .parse()
            .map_err(|_| Error::new(Kind::Input, path, format!("{} is not part of a URL", self.endpoint)))?;
        url.query_pairs_mut().extend_pairs(query);
        Ok(url)
    }

    /// The rest of a body; longer than the limit is an error.
    pub(crate) async fn read_up_to(
        &self,
        method: &str,
        response: &mut Response,
        limit: usize,
    ) -> Result<Vec<u8>> {
        let too_long = |found: u64| {
            let detail =
                format!("{} answers with {found} bytes or more; the limit is {limit}", self.endpoint);
            Error::new(Kind::Limit, method, detail)
        };
        if let Some(length) = response.content_length().filter(|length| *length > limit as u64) {
            return Err(too_long(length));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(method, error))? {
            if body.len() + chunk.len() > limit {
                return Err(too_long((body.len() + chunk.len()) as u64));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(crate) fn failed(&self, method: &str, error: reqwest::Error) -> Error {
        // The URL of a redirect may carry a session.
        let error = error.without_url();
        let refusal =
            self.pinned.as_ref().filter(|_| error.is_connect()).and_then(|pinned| pinned.take_refusal());
        let (kind, detail) = match refusal {
            Some(Kind::TlsUntrusted { address, found }) => {
                let detail = format!(
                    "the certificate of {address} is not pinned; its SHA-256 is {found}. Compare it with the host's own and pin it"
                );
                (Kind::TlsUntrusted { address, found }, detail)
            }
            Some(Kind::TlsChanged { address, expected, found }) => {
                let detail = format!(
                    "the certificate of {address} has changed: pinned is {expected}, the server shows {found}. \
                     If the host was reinstalled or its certificate renewed, pin it again; otherwise do not connect"
                );
                (Kind::TlsChanged { address, expected, found }, detail)
            }
            _ if error.is_timeout() && !error.is_connect() => {
                (Kind::Timeout, format!("{} did not answer in time", self.endpoint))
            }
            _ if error.is_connect() => (Kind::Unreachable, format!("{} cannot be reached", self.endpoint)),
            _ => (Kind::Unreachable, format!("the connection to {} broke", self.endpoint)),
        };
        Error::new(kind, method, detail).with_source(error)
    }
}

/// A header's text, empty when absent or not text.
pub(crate) fn header(response: &Response, name: &str) -> String {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// Where a redirect leads: endpoint, path and query.
pub(crate) fn redirect_of(response: &Response) -> Option<std::result::Result<(Endpoint, Url), String>> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = header(response, LOCATION.as_str());
    let parsed = location.parse::<Url>().ok().and_then(|url| {
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        let port = url.port_or_known_default()?;
        let text = format!("{}://{}", url.scheme(), Endpoint::Https { host, port }.address());
        Some((text.parse::<Endpoint>().ok()?, url))
    });
    // Only the path is shown: the query may carry a session.
    Some(parsed.ok_or_else(|| location.split('?').next().unwrap_or_default().to_owned()))
}
