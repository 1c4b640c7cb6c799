//! Logging in: which encoding the host speaks, which host is the master.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::StatusCode;

use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::http::{Answer, Http};
use crate::options::{Credentials, Options, Protocol};
use crate::value::Value;
use crate::xml::Reply;
use crate::{json, xml};

/// Most `HOST_IS_SLAVE` answers that are followed: a pool names its master at once, a second one is a
/// failover in progress.
const MASTER_LIMIT: usize = 3;

const LOGIN: &str = "session.login_with_password";

/// A logged-in connection to a master. Not for debug output: it holds the session.
pub(crate) struct Link {
    pub(crate) http: Http,
    pub(crate) protocol: Protocol,
    pub(crate) session: String,
    /// Tells links apart: what one master said of its history means nothing to the next.
    pub(crate) number: u64,
}

/// Why an RPC has no result.
pub(crate) enum Failure {
    Error(Error),
    /// The host does not speak this encoding.
    NotSpoken(Error),
}

/// Logs in at the endpoint or at the master it names.
pub(crate) async fn log_in(options: &Options, start: &Endpoint) -> Result<Link> {
    let mut endpoint = start.clone();
    for _ in 0..=MASTER_LIMIT {
        let http =
            Http::new(endpoint.clone(), options.pins.pin(&endpoint.address()), options.timeouts.connect)?;
        match log_in_at(options, &http).await {
            Ok((protocol, session)) => {
                static NUMBER: AtomicU64 = AtomicU64::new(1);
                let number = NUMBER.fetch_add(1, Ordering::Relaxed);
                return Ok(Link { http, protocol, session, number });
            }
            Err(error) => match error.kind() {
                Kind::Slave { master } => endpoint = endpoint.master(master),
                _ => return Err(error),
            },
        }
    }
    let detail = format!(
        "{start} and the hosts it leads to each name another master; the pool is changing its master"
    );
    Err(Error::new(Kind::Unreachable, LOGIN, detail))
}

async fn log_in_at(options: &Options, http: &Http) -> Result<(Protocol, String)> {
    let (user, password) = match &options.credentials {
        Credentials::Password { user, password } => (user.as_str(), password.expose()),
        // The socket's owner is trusted; the name is that of the session.
        Credentials::Local => match http.endpoint() {
            Endpoint::Unix(_) => ("root", ""),
            other => {
                let detail = format!("{other} is not the local socket: a user and a password are needed");
                return Err(Error::new(Kind::Auth, LOGIN, detail));
            }
        },
    };
    let mut params = vec![user.into(), password.into(), "1.0".into(), options.originator.as_str().into()];
    let limits = (options.limits.reply_bytes, options.limits.request_bytes);
    for protocol in [Protocol::Json, Protocol::Xml] {
        let mut outcome = rpc(http, protocol, LOGIN, &params, options.timeouts.call, limits).await;
        if matches!(&outcome, Err(Failure::Error(error)) if error.code() == "MESSAGE_PARAMETER_COUNT_MISMATCH")
        {
            // Old hosts know no originator.
            params.truncate(3);
            outcome = rpc(http, protocol, LOGIN, &params, options.timeouts.call, limits).await;
        }
        match outcome {
            Ok(Value::String(session)) if !session.is_empty() => return Ok((protocol, session)),
            Ok(other) => {
                let detail =
                    format!("{} answers with {} and not with a session", http.endpoint(), other.kind_name());
                return Err(Error::new(Kind::Protocol, LOGIN, detail));
            }
            Err(Failure::NotSpoken(_)) if protocol == Protocol::Json => {}
            Err(Failure::NotSpoken(error) | Failure::Error(error)) => return Err(error),
        }
    }
    unreachable!("the last encoding returns")
}

/// One RPC with its parameters as they go out, session included.
pub(crate) async fn rpc(
    http: &Http,
    protocol: Protocol,
    method: &str,
    params: &[Value],
    timeout: Duration,
    (reply_limit, request_limit): (usize, usize),
) -> std::result::Result<Value, Failure> {
    /// Ids only tell replies apart.
    static ID: AtomicU64 = AtomicU64::new(1);
    let id = ID.fetch_add(1, Ordering::Relaxed);
    let (path, content_type, body) = match protocol {
        Protocol::Json => ("/jsonrpc", "application/json", json::encode(method, params, id)),
        Protocol::Xml => {
            let body = xml::encode(method, params)
                .map_err(|why| Failure::Error(Error::new(Kind::Input, method, why)))?;
            ("/", "text/xml", body)
        }
    };
    if body.len() > request_limit {
        let detail = format!("the request has {} bytes, the pool takes {request_limit}", body.len());
        return Err(Failure::Error(Error::new(Kind::Limit, method, detail)));
    }
    let answer =
        http.post(method, path, content_type, body, timeout, reply_limit).await.map_err(Failure::Error)?;
    let reply = decode(protocol, &answer, id).map_err(|why| {
        let detail = format!(
            "{} answers HTTP {}, but not as XAPI does: {why}",
            http.endpoint(),
            answer.status.as_u16()
        );
        let error = Error::new(Kind::Protocol, method, detail);
        match protocol == Protocol::Json && is_another_language(&answer) {
            true => Failure::NotSpoken(error),
            false
                if answer.status.is_server_error() && answer.status != StatusCode::INTERNAL_SERVER_ERROR =>
            {
                let detail = format!(
                    "{} answers HTTP {}: the toolstack is not running",
                    http.endpoint(),
                    answer.status.as_u16()
                );
                Failure::Error(Error::new(Kind::Unreachable, method, detail))
            }
            false => Failure::Error(error),
        }
    })?;
    match reply {
        Reply::Success(value) => Ok(value),
        Reply::Failure { code, params } => Err(Failure::Error(Error::from_xapi(method, code, params))),
    }
}

/// Hosts without JSON-RPC answer its path as XML, with a 404, or with a page of HTML.
fn is_another_language(answer: &Answer) -> bool {
    let markup = answer.content_type.contains("xml") || answer.content_type.contains("html");
    let statuses = [
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::INTERNAL_SERVER_ERROR,
        StatusCode::NOT_IMPLEMENTED,
    ];
    markup || statuses.contains(&answer.status)
}

fn decode(protocol: Protocol, answer: &Answer, id: u64) -> std::result::Result<Reply, String> {
    if !answer.status.is_success() {
        return Err("an RPC is answered with 200".to_owned());
    }
    match protocol {
        Protocol::Json => json::decode(&answer.body, id),
        Protocol::Xml => xml::decode(&answer.body),
    }
}
