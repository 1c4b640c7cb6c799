//! The asynchronous side: takes calls, gives each a connection, repeats what broke.

use super::body::Shared;
use super::connection::{Connection, Failed, Moved, open};
use super::{Call, Patience};
use crate::restore::WriteOrder;
use crate::worker::{Error, Outside, Reach};
use hyper::body::{Body, Incoming};
use hyper::{Request, Response, StatusCode, header};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::rustls::ClientConfig;
use wire::{Connect, Spent};

/// Connections at once: two packs, a few questions, the progress report.
const CONNECTIONS: usize = 8;
/// Idle connections that are kept; a third pack or a burst of questions is rare.
const IDLE_CONNECTIONS: usize = 4;
/// Pause before a broken call is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Quiet time that the last words of a failed job get.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer other than 200 that is read: a code and a sentence.
const MAX_FAILURE: usize = 16 << 10;

/// What the asynchronous side does for threads.
pub(crate) enum Errand {
    /// Call the orchestrator.
    Call(Call),
    /// Write to a disk with io_uring.
    Write(WriteOrder),
    /// Open a connection, whether one is needed or not, and say what it took.
    Connect(SyncSender<Result<Connect, Error>>),
}

/// What every connection needs.
pub(crate) struct Settings {
    /// Where the orchestrator listens, in the order to try.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Pins the orchestrator's key and shows ours.
    pub(crate) tls: Arc<ClientConfig>,
    /// The watchdog's time in milliseconds: the default until the order says it.
    pub(crate) watchdog_ms: Arc<AtomicU64>,
    /// Told of every successful exchange.
    pub(crate) outside: Arc<dyn Outside>,
}

struct Dispatcher {
    settings: Settings,
    idle: RefCell<Vec<Connection>>,
    /// The address that worked last is tried first.
    preferred: Cell<usize>,
    permits: Semaphore,
    /// Whether the orchestrator ever answered.
    has_met: Cell<bool>,
}

/// An answer, and what the store says that it took.
struct Answer {
    body: Vec<u8>,
    spent: Spent,
}

/// Why one try of a call did not give an answer.
enum Broken {
    /// Worth another try: how far it came, and what happened.
    Link(Reach, String),
    /// Never to be tried again.
    Final(Error),
}

/// Carries out errands until every sender is gone.
pub(crate) async fn serve(settings: Settings, mut errands: Receiver<Errand>) {
    let dispatcher = Rc::new(Dispatcher {
        settings,
        idle: RefCell::default(),
        preferred: Cell::new(0),
        permits: Semaphore::new(CONNECTIONS),
        has_met: Cell::new(false),
    });
    while let Some(errand) = errands.recv().await {
        match errand {
            Errand::Call(call) => {
                let dispatcher = dispatcher.clone();
                tokio::task::spawn_local(async move {
                    let began = call.tally.begin(call.purpose);
                    let (answer, spent) = match dispatcher.call(&call).await {
                        Ok(Answer { body, spent }) => (Ok(body), spent),
                        Err(error) => (Err(error), Spent::default()),
                    };
                    let size = call.body.len() + answer.as_ref().map_or(0, Vec::len);
                    call.tally.end(call.purpose, began, size, spent);
                    let Call { body, reply, .. } = call;
                    // Before the answer: who waits for it wants the memory back.
                    drop(body);
                    // Nobody waits any more: the job has failed elsewhere.
                    let _ = reply.send(answer);
                });
            }
            Errand::Connect(reply) => {
                let dispatcher = dispatcher.clone();
                tokio::task::spawn_local(async move {
                    // Nobody waits any more: the job has failed elsewhere.
                    let _ = reply.send(dispatcher.connect().await);
                });
            }
            Errand::Write(order) => drop(tokio::task::spawn_local(crate::restore::write(order))),
        }
    }
}

impl Dispatcher {
    /// Tries until there is an answer, or for a third of the watchdog's time after the first failure.
    async fn call(&self, call: &Call) -> Result<Answer, Error> {
        let _permit = self.permits.acquire().await.expect("never closed");
        let mut first_failure = None;
        loop {
            let (reach, reason) = match self.attempt(call).await {
                Ok(answer) => {
                    self.has_met.set(true);
                    self.settings.outside.tick();
                    return answer;
                }
                Err(Broken::Final(error)) => return Err(error),
                Err(Broken::Link(reach, reason)) => (reach, reason),
            };
            let since = *first_failure.get_or_insert_with(Instant::now);
            if since.elapsed() + RETRY_PAUSE > self.reconnect_limit(call.patience) {
                return Err(self.unreachable(&call.path, since, reach, reason));
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    fn unreachable(&self, call: &str, since: Instant, reach: Reach, reason: String) -> Error {
        let network = self.settings.outside.network_trouble();
        let reason = network.map_or(reason.clone(), |trouble| format!("{reason} ({trouble})"));
        // What an orchestrator that answered before can be told by is that it does no more.
        let reach = if self.has_met.get() { Reach::Lost } else { reach };
        Error::Unreachable { call: call.to_owned(), seconds: since.elapsed().as_secs(), reason, reach }
    }

    /// Opens a connection and keeps it for later.
    async fn connect(&self) -> Result<Connect, Error> {
        let began = Instant::now();
        match self.fresh().await {
            Ok(connection) => {
                let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                let (tcp, tls) = connection.took;
                let address = connection.address.to_string();
                self.keep(connection);
                Ok(Connect { address, tcp_us: micros(tcp), tls_us: micros(tls) })
            }
            Err(Broken::Link(reach, reason)) => Err(self.unreachable("a connection", began, reach, reason)),
            Err(Broken::Final(error)) => Err(error),
        }
    }

    fn watchdog(&self) -> Duration {
        Duration::from_millis(self.settings.watchdog_ms.load(Ordering::Relaxed))
    }

    fn reconnect_limit(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Short | Patience::Long => self.watchdog() / 3,
            Patience::LastWord => LAST_WORD_LIMIT,
        }
    }

    fn quiet_limit(&self, patience: Patience) -> Duration {
        match patience {
            Patience::Short => self.watchdog() / 3,
            Patience::Long => self.watchdog(),
            Patience::LastWord => LAST_WORD_LIMIT,
        }
    }

    /// One try. An answer that is a refusal is an answer.
    async fn attempt(&self, call: &Call) -> Result<Result<Answer, Error>, Broken> {
        let mut connection = self.connection().await?;
        let limit = self.quiet_limit(call.patience);
        connection.moved.touch();
        let outcome = unless_quiet(connection.moved.clone(), limit, exchange(&mut connection, call)).await;
        match outcome {
            None => {
                let seconds = limit.as_secs();
                Err(Broken::Link(Reach::Lost, format!("{} was quiet for {seconds} s", connection.address)))
            }
            Some(Err(broken)) => Err(broken),
            Some(Ok(answer)) => {
                self.keep(connection);
                Ok(answer)
            }
        }
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_CONNECTIONS && !connection.sender.is_closed() {
            idle.push(connection);
        }
    }

    /// An idle connection that still stands, or a fresh one to the first address that answers.
    async fn connection(&self) -> Result<Connection, Broken> {
        loop {
            let Some(mut connection) = self.idle.borrow_mut().pop() else { break };
            if let Ok(Ok(())) = timeout(RETRY_PAUSE, connection.sender.ready()).await {
                return Ok(connection);
            }
        }
        self.fresh().await
    }

    /// A fresh connection to the first address that answers.
    async fn fresh(&self) -> Result<Connection, Broken> {
        let addresses = &self.settings.addresses;
        let (mut reasons, mut furthest, mut pin) = (Vec::new(), Reach::NoRoute, None);
        for turn in 0..addresses.len() {
            let at = (self.preferred.get() + turn) % addresses.len();
            match open(addresses[at], &self.settings.tls).await {
                Ok(connection) => {
                    self.preferred.set(at);
                    return Ok(connection);
                }
                Err(Failed::Pin(reason)) => pin = Some(reason),
                Err(Failed::Unreachable(reach, reason)) => {
                    furthest = furthest.max(reach);
                    reasons.push(reason);
                }
            }
        }
        // A wrong key does not become right by waiting, and trying on would only hide it.
        match pin {
            Some(reason) => Err(Broken::Final(Error::TlsPin { reason })),
            None => Err(Broken::Link(furthest, reasons.join("; "))),
        }
    }
}

/// The future's output, or `None` once no byte has moved for `limit`.
async fn unless_quiet<T>(moved: Moved, limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut quiet = pin!(async {
        while moved.at().elapsed() < limit {
            sleep_until(moved.at() + limit).await;
        }
    });
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => quiet.as_mut().poll(context).map(|()| None),
    })
    .await
}

async fn exchange(connection: &mut Connection, call: &Call) -> Result<Result<Answer, Error>, Broken> {
    let broken = |error: hyper::Error| Broken::Link(Reach::Lost, crate::chain(&error));
    let request = Request::builder()
        .method(call.method.clone())
        .uri(&call.path)
        .header(header::HOST, connection.address.to_string())
        .body(Shared::new(call.body.clone()))
        .expect("path and address are valid in a header");
    let response = connection.sender.send_request(request).await.map_err(broken)?;
    let status = response.status();
    if status == StatusCode::OK {
        let spent = response.headers().get(wire::HEADER_SPENT).and_then(|value| value.to_str().ok());
        let spent = spent.map(Spent::from_header).unwrap_or_default();
        let memory = call.memory.take();
        return match read(response, call.max_answer, memory).await.map_err(broken)? {
            Some(body) => Ok(Ok(Answer { body, spent })),
            None => Err(Broken::Final(Error::AnswerSize { call: call.path.clone(), limit: call.max_answer })),
        };
    }
    let body = read(response, MAX_FAILURE, Vec::new()).await.map_err(broken)?;
    let failure = body.and_then(|body| wire::decode::<wire::Failure>(&body).ok());
    let failure = failure.unwrap_or_else(|| wire::Failure::new("refused", format!("HTTP status {status}")));
    Ok(Err(Error::Refused { call: call.path.clone(), status: status.as_u16(), failure }))
}

/// The whole body; `None` if it is larger than `limit`.
async fn read(
    response: Response<Incoming>,
    limit: usize,
    mut bytes: Vec<u8>,
) -> Result<Option<Vec<u8>>, hyper::Error> {
    let mut body = response.into_body();
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > limit {
        return Ok(None);
    }
    bytes.clear();
    bytes.reserve(announced);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        if let Ok(piece) = frame?.into_data() {
            if bytes.len() + piece.len() > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&piece);
        }
    }
    Ok(Some(bytes))
}
