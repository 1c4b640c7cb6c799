//! The session over the life of a client: lost, found again, moved to another master.
//!
//! XAPI keeps sessions and tasks in the master's memory. A toolstack that restarts, or another host that becomes
//! the master, forgets both; a broken connection alone ends neither. So after a silence the old session is tried
//! before a new one is made: sessions that are left behind count against a limit of the pool. Where the master
//! stays silent, other members are asked who the master is: a member answers every login with its master's address.
//!
//! One outage is waited out once, for [`Timeouts::outage`](crate::Timeouts::outage) from its beginning, by however
//! many calls; calls that come later try once and fail at once.

use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::client::{exchange, observe};
use crate::endpoint::Endpoint;
use crate::error::{Effect, Error, Kind, Result};
use crate::http::Http;
use crate::login::{Link, log_in};
use crate::observer::Call;
use crate::options::{Credentials, Options, Protocol};
use crate::record::{Class, Uuid};
use crate::records::Pool;
use crate::value::Value;

/// Pause between two rounds of looking for the master: a restarting toolstack is not to be crowded.
const ROUND_PAUSE: Duration = Duration::from_secs(2);

/// Fewest rounds in an outage, however short it may be.
const ROUNDS: u32 = 5;

/// Members asked in one round. Any live member knows the master; the next round asks others.
const MEMBERS_PER_ROUND: usize = 3;

/// Longest that a host may take to say whether it still knows our session, or who the master is.
const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// Longest that a member may take to accept a connection. Dead ones must not keep us from the live.
const KNOCK_LIMIT: Duration = Duration::from_secs(3);

/// Most members of a pool that are remembered: XAPI's own limit is 64.
const MEMBER_LIMIT: usize = 64;

/// How a link was lost.
#[derive(Debug)]
pub(crate) enum Loss {
    /// The pool ended the session.
    Ended,
    /// The host is no longer the master; this one is.
    Moved(String),
    /// It did not answer as it should; silent since then.
    Silent(Instant),
}

impl Loss {
    /// What an error says about the link that it came over, if anything.
    pub(crate) fn of(error: &Error, asked: Instant) -> Option<Self> {
        match error.kind() {
            Kind::SessionInvalid if error.is_certainly_not_executed() => Some(Self::Ended),
            // About another session, such as one of the pool's own.
            Kind::SessionInvalid => Some(Self::Silent(Instant::now())),
            Kind::Slave { master } => Some(Self::Moved(master.clone())),
            Kind::Unreachable | Kind::Timeout if error.code().is_empty() => Some(Self::Silent(asked)),
            Kind::HostAway if error.is_certainly_not_executed() => Some(Self::Silent(asked)),
            _ => None,
        }
    }
}

/// The client's session, whichever it is now.
pub(crate) struct Sessions {
    options: Options,
    state: tokio::sync::Mutex<State>,
    pool: StdMutex<KnownPool>,
}

/// The options for a host that may well be dead.
fn impatient(options: &Options) -> Options {
    let mut options = options.clone();
    options.timeouts.connect = options.timeouts.connect.min(KNOCK_LIMIT);
    options.timeouts.call = options.timeouts.call.min(PROBE_LIMIT);
    options
}

/// A link that was made in haste, with the patience that its calls deserve.
fn settled(options: &Options, mut link: Link) -> Result<Link> {
    let endpoint = link.http.endpoint().clone();
    let pin = options.pins.pin(&endpoint.address());
    link.http = Http::new(endpoint, pin, options.timeouts.connect)?;
    Ok(link)
}

/// What was learned about the pool, so that it is found and recognised again.
#[derive(Default)]
struct KnownPool {
    uuid: Option<Uuid>,
    members: Vec<Endpoint>,
}

enum State {
    Open(Arc<Link>),
    Lost(Lost),
    Closed,
}

struct Lost {
    /// The link, while the pool may still know its session.
    old: Option<Arc<Link>>,
    /// Where the master was last, or is said to be.
    master: Endpoint,
    since: Instant,
    /// Members asked so far, over all rounds.
    asked: usize,
}

impl Sessions {
    /// Logs in.
    pub(crate) async fn open(options: Options) -> Result<Self> {
        let link = match observed_log_in(&options, &options.endpoint).await {
            Err(error) if is_silence(&error) => {
                let others = impatient(&options);
                let members = options.members.iter().filter(|member| **member != options.endpoint);
                let mut found = None;
                for member in members.take(MEMBERS_PER_ROUND) {
                    found = observed_log_in(&others, member).await.ok();
                    if found.is_some() {
                        break;
                    }
                }
                // The error is about the address that the caller knows.
                settled(&options, found.ok_or(error)?)?
            }
            done => done?,
        };
        let pool = StdMutex::new(KnownPool { uuid: None, members: options.members.clone() });
        Ok(Self { options, state: tokio::sync::Mutex::new(State::Open(Arc::new(link))), pool })
    }

    /// The last link, to log out over; none if there is none or the client is closed already.
    pub(crate) async fn close(&self) -> Option<Arc<Link>> {
        match std::mem::replace(&mut *self.state.lock().await, State::Closed) {
            State::Open(link) => Some(link),
            State::Lost(lost) => lost.old,
            State::Closed => None,
        }
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) async fn endpoint(&self) -> Endpoint {
        match &*self.state.lock().await {
            State::Open(link) => link.http.endpoint().clone(),
            State::Lost(lost) => lost.master.clone(),
            State::Closed => self.options.endpoint.clone(),
        }
    }

    pub(crate) async fn protocol(&self) -> Option<Protocol> {
        match &*self.state.lock().await {
            State::Open(link) => Some(link.protocol),
            _ => None,
        }
    }

    /// Remembers which pool this is and who its members are.
    pub(crate) fn remember(&self, uuid: Uuid, addresses: impl Iterator<Item = String>) {
        let of = |address: String| self.options.endpoint.master(&address);
        let known = addresses.filter(|address| !address.is_empty()).map(of);
        let mut pool = self.known_pool();
        pool.uuid = Some(uuid);
        let configured = self.options.members.iter().cloned();
        pool.members.clear();
        for member in known.chain(configured).take(MEMBER_LIMIT) {
            if !pool.members.contains(&member) {
                pool.members.push(member);
            }
        }
    }

    fn known_pool(&self) -> MutexGuard<'_, KnownPool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The link, found again where it was lost. Waits no longer than the outage may last.
    pub(crate) async fn link(&self) -> Result<Arc<Link>> {
        loop {
            let error = {
                let mut state = self.state.lock().await;
                let lost = match &mut *state {
                    State::Open(link) => return Ok(link.clone()),
                    State::Closed => return Err(Error::new(Kind::Input, "", "this client is closed")),
                    State::Lost(lost) => lost,
                };
                match self.find(lost).await {
                    Ok(link) => {
                        *state = State::Open(link.clone());
                        return Ok(link);
                    }
                    // What waited for the link was not sent.
                    Err((error, last_word)) => {
                        if last_word || lost.since.elapsed() >= self.options.timeouts.outage {
                            return Err(error.with_effect(Effect::None));
                        }
                        error
                    }
                }
            };
            tracing::debug!("the pool does not answer: {error}");
            tokio::time::sleep(ROUND_PAUSE.min(self.options.timeouts.outage / ROUNDS)).await;
        }
    }

    /// Gives a link up, unless another call has done so already.
    pub(crate) async fn lose(&self, link: &Arc<Link>, loss: Loss) {
        let mut state = self.state.lock().await;
        if !matches!(&*state, State::Open(open) if Arc::ptr_eq(open, link)) {
            return;
        }
        let endpoint = link.http.endpoint();
        let (old, master, since) = match loss {
            Loss::Ended => (None, endpoint.clone(), Instant::now()),
            Loss::Moved(address) => (None, self.moved(endpoint, &address), Instant::now()),
            Loss::Silent(since) => (Some(link.clone()), endpoint.clone(), since),
        };
        *state = State::Lost(Lost { old, master, since, asked: 0 });
    }

    /// Where to go when a host names the master. The socket of a control domain leads there by itself.
    fn moved(&self, from: &Endpoint, address: &str) -> Endpoint {
        match self.options.credentials {
            Credentials::Local => from.clone(),
            Credentials::Password { .. } => from.master(address),
        }
    }

    /// One round of looking for the master. The error says whether asking again is useless.
    async fn find(&self, lost: &mut Lost) -> std::result::Result<Arc<Link>, (Error, bool)> {
        let mut worst = None;
        if let Some(old) = lost.old.clone() {
            match self.probe(&old).await {
                Ok(()) => return Ok(old),
                Err(error) => match Loss::of(&error, Instant::now()) {
                    Some(Loss::Silent(_)) | None => worst = Some(error),
                    Some(Loss::Ended) => lost.old = None,
                    Some(Loss::Moved(address)) => {
                        lost.master = self.moved(&lost.master, &address);
                        lost.old = None;
                    }
                },
            }
        }
        for endpoint in self.candidates(lost) {
            let known_master = lost.old.is_none() && endpoint == lost.master;
            let entered = match known_master {
                true => self.enter(&self.options, &endpoint).await,
                false => {
                    let entered = self.enter(&impatient(&self.options), &endpoint).await;
                    entered.and_then(|link| settled(&self.options, link))
                }
            };
            match entered {
                Ok(link) => {
                    if let Some(old) =
                        lost.old.take().filter(|old| old.http.endpoint() == link.http.endpoint())
                    {
                        let session = [Value::from(old.session.as_str())];
                        // It answers again, and has two sessions of ours now. What fails here costs one until it expires.
                        let _ = exchange(&self.options, &old, "session.logout", &session, PROBE_LIMIT).await;
                    }
                    if *link.http.endpoint() != lost.master {
                        tracing::info!("the pool's master is now {}", link.http.endpoint());
                    }
                    return Ok(Arc::new(link));
                }
                Err(error) => {
                    if is_last_word(&error, &endpoint, lost) {
                        return Err((error, true));
                    }
                    // Why the master cannot be used says more than who else is silent.
                    let telling = !is_silence(&error);
                    worst = worst.filter(|_| !telling).or(Some(error));
                }
            }
        }
        let silent = || Error::new(Kind::Unreachable, "", format!("{} does not answer", lost.master));
        Err((worst.unwrap_or_else(silent), false))
    }

    /// Where to log in in this round.
    fn candidates(&self, lost: &mut Lost) -> Vec<Endpoint> {
        let mut candidates = Vec::new();
        if lost.old.is_none() {
            candidates.push(lost.master.clone());
        }
        // Nobody else lets us in without a password.
        if self.options.credentials == Credentials::Local {
            return candidates;
        }
        let pool = self.known_pool();
        let others: Vec<&Endpoint> = std::iter::once(&self.options.endpoint)
            .chain(&pool.members)
            .filter(|member| **member != lost.master)
            .collect();
        for index in 0..others.len().min(MEMBERS_PER_ROUND) {
            let member = others[(lost.asked + index) % others.len()];
            if !candidates.contains(member) {
                candidates.push(member.clone());
            }
        }
        lost.asked = lost.asked.wrapping_add(MEMBERS_PER_ROUND);
        candidates
    }

    /// Whether the pool still knows the session of a link. Every answer that came past the check of the session says
    /// that it does.
    async fn probe(&self, link: &Link) -> Result<()> {
        let session = [Value::from(link.session.as_str())];
        match exchange(&self.options, link, "pool.get_all", &session, PROBE_LIMIT).await {
            Err(error) if error.code().is_empty() || Loss::of(&error, Instant::now()).is_some() => Err(error),
            _ => Ok(()),
        }
    }

    /// Logs in and makes sure that it is the same pool: a host that left it has become the master of its own.
    async fn enter(&self, options: &Options, endpoint: &Endpoint) -> Result<Link> {
        let link = observed_log_in(options, endpoint).await?;
        let Some(expected) = self.known_pool().uuid.clone() else { return Ok(link) };
        const METHOD: &str = "pool.get_all_records";
        let session = [Value::from(link.session.as_str())];
        let answer = exchange(&self.options, &link, METHOD, &session, PROBE_LIMIT).await;
        let found = answer.map(|answer| {
            let records = answer.as_struct().into_iter().flat_map(|records| records.values());
            records.filter_map(|record| Pool::from_record(record).ok()).map(|pool| pool.uuid).next()
        });
        let error = match found {
            Ok(Some(found)) if found == expected => return Ok(link),
            Ok(_) => Error::new(
                Kind::Protocol,
                "connect",
                format!("{} answers for another pool", link.http.endpoint()),
            ),
            Err(error) => error,
        };
        // The session is of no use, and the first error counts.
        let _ = exchange(&self.options, &link, "session.logout", &session, PROBE_LIMIT).await;
        Err(error)
    }
}

/// Whether nobody is there to say anything.
fn is_silence(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unreachable | Kind::Timeout | Kind::HostAway)
}

/// Whether an error at a candidate will not pass by itself: the password is refused, or the host that is said to be
/// the master shows a certificate that is not trusted. Other members may have their own troubles.
fn is_last_word(error: &Error, candidate: &Endpoint, lost: &Lost) -> bool {
    match error.kind() {
        Kind::Auth => true,
        Kind::TlsUntrusted { address, .. } | Kind::TlsChanged { address, .. } => {
            *address != candidate.address() || (lost.old.is_none() && *candidate == lost.master)
        }
        _ => false,
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
