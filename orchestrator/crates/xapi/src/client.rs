//! The client: calls, and what becomes of them while the pool changes under our feet.
//!
//! A call is repeated only where that is right: a read always, a change only if it was certainly not executed.
//! Where the session lives meanwhile is the business of [`crate::session`].

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::endpoint::Endpoint;
use crate::error::{Effect, Error, Kind, Result};
use crate::login::{Failure, Link, rpc};
use crate::observer::{Call, Observer, Verdict, is_read};
use crate::options::{Options, Protocol, Timeouts};
use crate::record::StringMap;
use crate::session::{Loss, Sessions};
use crate::value::Value;

/// How often one call is made again. A master that moves costs two or three: the broken connection, the old session,
/// a host that is no longer the master. More is a call that breaks the pool, not a pool that changes.
const REPEAT_LIMIT: u32 = 4;

/// Longest goodbye. The pool ends forgotten sessions by itself after a day.
const LOGOUT_LIMIT: Duration = Duration::from_secs(20);

/// A session with a pool. Clones share it.
#[derive(Clone)]
pub struct Client {
    sessions: Arc<Sessions>,
    /// Entries for `other_config` of the tasks that this clone starts.
    task_tags: Arc<StringMap>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.options().endpoint).finish()
    }
}

impl Client {
    /// Logs in, at the master if the endpoint is another member, and at one of [`Options::members`] where the
    /// endpoint does not answer.
    pub async fn connect(options: Options) -> Result<Self> {
        let task_tags = Arc::new(options.task_tags.clone());
        Ok(Self { sessions: Arc::new(Sessions::open(options).await?), task_tags })
    }

    /// The same session, with other tags on the tasks that are started through it.
    #[must_use]
    pub fn with_task_tags(&self, task_tags: StringMap) -> Self {
        Self { sessions: self.sessions.clone(), task_tags: Arc::new(task_tags) }
    }

    /// Logs out. Calls of any clone fail from now on. Closing twice is no error.
    pub async fn close(&self) -> Result<()> {
        let Some(link) = self.sessions.close().await else { return Ok(()) };
        let params = [Value::from(link.session.as_str())];
        let call = Call { method: "session.logout", params: &[], mutating: false };
        let timeout = self.timeouts().call.min(LOGOUT_LIMIT);
        match self.observed(&call, self.exchange(&link, call.method, &params, timeout)).await {
            // The session is gone either way.
            Err(error) if matches!(error.kind(), Kind::SessionInvalid | Kind::Slave { .. }) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The master's endpoint, or where it was last.
    pub async fn endpoint(&self) -> Endpoint {
        self.sessions.endpoint().await
    }

    /// The encoding in use; none while there is no session.
    pub async fn protocol(&self) -> Option<Protocol> {
        self.sessions.protocol().await
    }

    pub(crate) fn options(&self) -> &Options {
        self.sessions.options()
    }

    pub(crate) fn timeouts(&self) -> Timeouts {
        self.options().timeouts
    }

    pub(crate) fn task_tags(&self) -> &StringMap {
        &self.task_tags
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Makes a call. The session is put before `params`.
    pub async fn call(&self, method: &str, params: Vec<Value>) -> Result<Value> {
        let timeouts = self.timeouts();
        // Listing the changes of a large disk reads its log from the storage.
        let quick = is_read(method) && method != "VDI.list_changed_blocks";
        let timeout = if quick { timeouts.call } else { timeouts.operation };
        let call = Call { method, params: &params, mutating: !is_read(method) };
        let arguments = |link: &Link| {
            let session = Value::from(link.session.as_str());
            std::iter::once(session).chain(params.iter().cloned()).collect()
        };
        self.observed(&call, self.over_links(method, arguments, timeout)).await
    }

    /// A call about the session it is made with. The session is no parameter that an observer may see.
    pub(crate) async fn call_on_own_session(&self, method: &str) -> Result<Value> {
        let call = Call { method, params: &[], mutating: !is_read(method) };
        let arguments = |link: &Link| vec![link.session.as_str().into(), link.session.as_str().into()];
        self.observed(&call, self.over_links(method, arguments, self.timeouts().call)).await
    }

    /// Runs something under the observer's eyes.
    pub(crate) async fn observed(
        &self,
        call: &Call<'_>,
        work: impl Future<Output = Result<Value>>,
    ) -> Result<Value> {
        observe(self.options().observer.as_deref(), call, work).await
    }

    /// The connection; waits out an outage.
    pub(crate) async fn link(&self) -> Result<Arc<Link>> {
        self.sessions.link().await
    }

    /// Makes a call over the link of the day. `arguments` gives all parameters for a link.
    pub(crate) async fn over_links(
        &self,
        method: &str,
        mut arguments: impl FnMut(&Link) -> Vec<Value>,
        timeout: Duration,
    ) -> Result<Value> {
        let mut repeats = 0;
        loop {
            let link = self.link().await.map_err(|error| error.with_method(method))?;
            let asked = Instant::now();
            let error = match self.exchange(&link, method, &arguments(&link), timeout).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let Some(loss) = Loss::of(&error, asked) else { return Err(error) };
            self.sessions.lose(&link, loss).await;
            let may_repeat = is_read(method) || error.is_certainly_not_executed();
            if !may_repeat || repeats == REPEAT_LIMIT {
                return Err(error);
            }
            tracing::debug!(method, "made again: {error}");
            repeats += 1;
        }
    }

    /// One request and its answer. Says of refusals that come before any execution that they do.
    pub(crate) async fn exchange(
        &self,
        link: &Link,
        method: &str,
        params: &[Value],
        timeout: Duration,
    ) -> Result<Value> {
        exchange(self.options(), link, method, params, timeout).await
    }
}

/// One request and its answer.
///
/// XAPI checks the session before it looks at anything else: `SESSION_INVALID` about our own session and
/// `HOST_IS_SLAVE` mean that nothing was done, and a host that starts refuses every call with `HOST_STILL_BOOTING`.
/// The same codes inside a task, or about another session, are failures of the operation itself.
pub(crate) async fn exchange(
    options: &Options,
    link: &Link,
    method: &str,
    params: &[Value],
    timeout: Duration,
) -> Result<Value> {
    let limits = (options.limits.reply_bytes, options.limits.request_bytes);
    let outcome = rpc(&link.http, link.protocol, method, params, timeout, limits).await;
    outcome.map_err(|(Failure::Error(error) | Failure::NotSpoken(error))| {
        let ours = error.params().first().is_some_and(|session| *session == link.session);
        let turned_away = match error.code() {
            "SESSION_INVALID" => ours,
            "HOST_IS_SLAVE" | "HOST_STILL_BOOTING" => true,
            _ => false,
        };
        let error = if turned_away { error.with_effect(Effect::None) } else { error };
        error.without(&link.session)
    })
}

pub(crate) async fn observe(
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
