//! What a client is told before it connects: where, who, whom to trust, how long, how much.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::endpoint::Endpoint;
use crate::observer::Observer;
use crate::record::StringMap;
use crate::tls::PinLookup;

/// Encoding of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// JSON-RPC 2.0.
    Json,
    /// XML-RPC.
    Xml,
}

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// A user of the pool.
    Password {
        /// Name, often `root`.
        user: String,
        /// Password.
        password: Secret,
    },
    /// Whoever may open the Unix socket.
    Local,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To connect, TLS included.
    pub connect: Duration,
    /// For a call that only reads.
    pub call: Duration,
    /// For a call that changes something, and for its task. Storage can take many minutes.
    pub operation: Duration,
    /// For the transfer of a disk or a template.
    pub transfer: Duration,
    /// Without progress a transfer ends after this.
    pub stall: Duration,
    /// Longest wait for one event, after which the object itself is read: events can be lost.
    pub event: Duration,
    /// How long the client looks for a pool that went silent in the middle, before a call fails.
    pub outage: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            call: Duration::from_secs(120),
            operation: Duration::from_secs(3600),
            transfer: Duration::from_secs(6 * 3600),
            stall: Duration::from_secs(300),
            event: Duration::from_secs(30),
            // A toolstack restarts in a minute; the election of another master under HA takes two or three.
            outage: Duration::from_secs(300),
        }
    }
}

/// How large things may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Reply to a call. All VM records of the largest pools stay below 100 MB.
    pub reply_bytes: usize,
    /// Request of a call. XAPI itself takes 300 KiB.
    pub request_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reply_bytes: 256 << 20, request_bytes: 300 << 10 }
    }
}

/// Everything needed to connect.
#[derive(Clone)]
pub struct Options {
    /// Where to.
    pub endpoint: Endpoint,
    /// Who.
    pub credentials: Credentials,
    /// Name under which the pool lists our sessions. It keeps 500 of each name and drops the oldest.
    pub originator: String,
    /// Other members of the pool, to be asked where `endpoint` does not answer.
    pub members: Vec<Endpoint>,
    /// Pins of all hosts that may become involved.
    pub pins: Arc<dyn PinLookup>,
    /// Sees every call.
    pub observer: Option<Arc<dyn Observer>>,
    /// Entries for `other_config` of every task made for this client, to find it after a crash.
    pub task_tags: StringMap,
    /// Times.
    pub timeouts: Timeouts,
    /// Sizes.
    pub limits: Limits,
}

impl Options {
    /// Without pins, observer and tags, with the default times and limits.
    pub fn new(endpoint: Endpoint, credentials: Credentials) -> Self {
        Self {
            endpoint,
            credentials,
            originator: "abd".to_owned(),
            members: Vec::new(),
            pins: Arc::new(std::collections::BTreeMap::new()),
            observer: None,
            task_tags: StringMap::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}
