//! The client: options, the session, and calls.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::endpoint::Endpoint;
use crate::error::{Error, Kind, Result};
use crate::login::{Failure, Link, log_in, rpc};
use crate::observer::{Call, Observer, Verdict, is_read};
use crate::record::StringMap;
use crate::tls::PinLookup;
use crate::value::Value;

/// Pause before a read is repeated after a broken connection.
const READ_AGAIN: Duration = Duration::from_secs(1);

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
    /// How long a wait survives an unreachable pool, such as a restarted toolstack.
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
            outage: Duration::from_secs(120),
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
            pins: Arc::new(std::collections::BTreeMap::new()),
            observer: None,
            task_tags: StringMap::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

/// A session with a pool. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.0.options.endpoint).finish()
    }
}

struct Shared {
    options: Options,
    /// The connection; none after the pool ended the session, until the next call logs in.
    link: Mutex<State>,
}

enum State {
    Open(Arc<Link>),
    /// Lost; this endpoint was the last master.
    Lost(Endpoint),
    Closed,
}

impl Client {
    /// Logs in, at the master if the endpoint is another member.
    pub async fn connect(options: Options) -> Result<Self> {
        let link = observed_log_in(&options, &options.endpoint).await?;
        Ok(Self(Arc::new(Shared { options, link: Mutex::new(State::Open(Arc::new(link))) })))
    }

    /// Logs out. Calls of any clone fail from now on. Closing twice is no error.
    pub async fn close(&self) -> Result<()> {
        let state = std::mem::replace(&mut *self.0.link.lock().await, State::Closed);
        let State::Open(link) = state else { return Ok(()) };
        let params = [Value::from(link.session.as_str())];
        let call = Call { method: "session.logout", params: &[], mutating: false };
        match self.observed(&call, self.exchange(&link, call.method, &params, self.timeouts().call)).await {
            // The session is gone either way.
            Err(error) if *error.kind() == Kind::SessionInvalid => Ok(()),
            other => other.map(drop),
        }
    }

    /// The master's endpoint.
    pub async fn endpoint(&self) -> Endpoint {
        match &*self.0.link.lock().await {
            State::Open(link) => link.http.endpoint().clone(),
            State::Lost(endpoint) => endpoint.clone(),
            State::Closed => self.0.options.endpoint.clone(),
        }
    }

    /// The encoding in use; none while there is no session.
    pub async fn protocol(&self) -> Option<Protocol> {
        match &*self.0.link.lock().await {
            State::Open(link) => Some(link.protocol),
            _ => None,
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.0.options.timeouts
    }

    /// Makes a call. The session is put before `params`.
    pub async fn call(&self, method: &str, params: Vec<Value>) -> Result<Value> {
        let timeouts = self.timeouts();
        // Listing the changes of a large disk reads its log from the storage.
        let quick = is_read(method) && method != "VDI.list_changed_blocks";
        let timeout = if quick { timeouts.call } else { timeouts.operation };
        self.call_within(method, params, timeout).await
    }

    pub(crate) async fn call_within(
        &self,
        method: &str,
        params: Vec<Value>,
        timeout: Duration,
    ) -> Result<Value> {
        let call = Call { method, params: &params, mutating: !is_read(method) };
        self.observed(&call, self.call_on_link(method, Arguments::Given(&params), timeout)).await
    }

    /// A call about the session it is made with. The session is no parameter that an observer may see.
    pub(crate) async fn call_on_own_session(&self, method: &str) -> Result<Value> {
        let call = Call { method, params: &[], mutating: !is_read(method) };
        let arguments = Arguments::OwnSession;
        self.observed(&call, self.call_on_link(method, arguments, self.timeouts().call)).await
    }

    /// Runs something under the observer's eyes.
    pub(crate) async fn observed(
        &self,
        call: &Call<'_>,
        work: impl Future<Output = Result<Value>>,
    ) -> Result<Value> {
        observe(self.0.options.observer.as_deref(), call, work).await
    }

    async fn call_on_link(&self, method: &str, arguments: Arguments<'_>, timeout: Duration) -> Result<Value> {
        let link = self.link().await?;
        let error = match self.exchange(&link, method, &arguments.for_link(&link), timeout).await {
            Err(error) => error,
            done => return done,
        };
        match error.kind() {
            Kind::SessionInvalid => self.forget(&link).await,
            Kind::Unreachable if is_read(method) => tokio::time::sleep(READ_AGAIN).await,
            _ => return Err(error),
        }
        if !is_read(method) {
            return Err(error);
        }
        let link = self.link().await?;
        self.exchange(&link, method, &arguments.for_link(&link), timeout).await
    }

    /// The connection, with a fresh session if the old one was lost.
    pub(crate) async fn link(&self) -> Result<Arc<Link>> {
        let mut state = self.0.link.lock().await;
        match &*state {
            State::Open(link) => Ok(link.clone()),
            State::Lost(endpoint) => {
                let link = Arc::new(observed_log_in(&self.0.options, endpoint).await?);
                *state = State::Open(link.clone());
                Ok(link)
            }
            State::Closed => Err(Error::new(Kind::SessionInvalid, "", "this client is closed")),
        }
    }

    /// Drops a session that the pool ended, unless another call has replaced it already.
    async fn forget(&self, lost: &Arc<Link>) {
        let mut state = self.0.link.lock().await;
        if matches!(&*state, State::Open(link) if Arc::ptr_eq(link, lost)) {
            *state = State::Lost(lost.http.endpoint().clone());
        }
    }

    async fn exchange(
        &self,
        link: &Link,
        method: &str,
        params: &[Value],
        timeout: Duration,
    ) -> Result<Value> {
        let limits = self.0.options.limits;
        let limits = (limits.reply_bytes, limits.request_bytes);
        let outcome = rpc(&link.http, link.protocol, method, params, timeout, limits).await;
        outcome.map_err(|(Failure::Error(error) | Failure::NotSpoken(error))| error.without(&link.session))
    }
}

/// What follows the session in a call's parameters.
#[derive(Clone, Copy)]
enum Arguments<'a> {
    /// These.
    Given(&'a [Value]),
    /// The session once more, as the object that the call is about.
    OwnSession,
}

impl Arguments<'_> {
    /// All parameters of a call over this link.
    fn for_link(self, link: &Link) -> Vec<Value> {
        let session = Value::from(link.session.as_str());
        match self {
            Self::OwnSession => vec![session.clone(), session],
            Self::Given(params) => std::iter::once(session).chain(params.iter().cloned()).collect(),
        }
    }
}

async fn observed_log_in(options: &Options, endpoint: &Endpoint) -> Result<Link> {
    let user = match &options.credentials {
        Credentials::Password { user, .. } => user.as_str(),
        Credentials::Local => "",
    };
    let params = [Value::from(user)];
    let call = Call { method: "session.login_with_password", params: &params, mutating: false };
    let mut link = None;
    let work = async {
        link = Some(log_in(options, endpoint).await?);
        Ok(Value::Nil)
    };
    observe(options.observer.as_deref(), &call, work).await?;
    Ok(link.expect("a login that succeeds gives a link"))
}

async fn observe(
    observer: Option<&dyn Observer>,
    call: &Call<'_>,
    work: impl Future<Output = Result<Value>>,
) -> Result<Value> {
    let Some(observer) = observer else { return work.await };
    if let Verdict::Refuse(reason) = observer.before(call) {
        return Err(Error::new(Kind::Refused, call.method, reason));
    }
    let started = Instant::now();
    let outcome = work.await;
    observer.after(call, outcome.as_ref(), started.elapsed());
    outcome
}
