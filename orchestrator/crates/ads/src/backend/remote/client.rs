//! Requests to `abd serve`: blocking outside, on a small runtime of its own inside.

use super::super::Listed;
use super::super::s3::Ranges;
use super::address::AbdAddress;
use crate::Error;
use crate::serve::Standing;
use crate::serve::protocol::{ABOUT, Failure, LISTS, MAX_FAILURE, OBJECTS, ROOT, SIZES};
use bytes::{Bytes, BytesMut};
use pin::Identity;
use reqwest::header::{CONTENT_LENGTH, IF_NONE_MATCH, RANGE};
use reqwest::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Runtime;

/// Threads that move bytes.
const THREADS: usize = 2;
/// Tries after the first, of every request: with the pauses some 40 seconds, in which a server is started anew.
const RETRIES: u32 = 9;
/// The same before the server was ever reached: who named a wrong port wants to know at once.
const FIRST_RETRIES: u32 = 2;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer. A server walks a whole tree before it takes a restore point.
const SILENCE_LIMIT: Duration = Duration::from_secs(600);
/// Sent bytes that nobody acknowledges for this long are lost: the server or the way to it is gone.
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A connection that was not used for so long is closed, before the server does it.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// Most bytes of a list: ten million packs.
const MAX_LIST: u64 = 1 << 30;
/// Most bytes of a small answer.
const MAX_ANSWER: u64 = 64 << 10;

/// Why a request was not done.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The server said no, in these words.
    Denied(String),
    Io(io::Error),
}

impl Trouble {
    fn other(text: impl Into<String>) -> Self {
        Self::Io(io::Error::other(text.into()))
    }

    fn into_io(self) -> io::Error {
        match self {
            Self::Denied(reason) => io::Error::new(io::ErrorKind::PermissionDenied, reason),
            Self::Io(error) => error,
        }
    }
}

/// What is asked for; repeated as it is.
#[derive(Clone, Debug)]
struct Question {
    method: Method,
    path: String,
    range: Option<(u64, u64)>,
    body: Option<Bytes>,
    only_new: bool,
    /// Most bytes of an answer.
    limit: u64,
}

impl Question {
    fn new(method: Method, path: String, limit: u64) -> Self {
        Self { method, path, range: None, body: None, only_new: false, limit }
    }
}

/// How a request went, where there is an answer.
enum Answer {
    Bytes(Bytes),
    NotFound,
    TooLarge,
    Exists,
    PastTheEnd,
}

/// One try.
enum Failed {
    /// Another one may go well.
    Passing(Trouble),
    ForGood(Trouble),
}

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    /// What to say to a machine that the server does not know.
    own_key: String,
    reached: Arc<AtomicBool>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

impl Client {
    pub(super) fn new(address: &AbdAddress, identity: &Identity) -> Result<Self, Error> {
        let failed = |source: io::Error| Error::Remote {
            what: "set up a client for",
            place: address.to_string().into(),
            source,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("abd-store")
            .enable_all()
            .build()
            .map_err(failed)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(identity.client_config(address.key)?)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .tcp_keepalive(KEEP_ALIVE)
            .tcp_user_timeout(UNACKNOWLEDGED_LIMIT)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE_LIMIT)
            .build()
            .map_err(|error| failed(io::Error::other(error)))?;
        Ok(Self {
            http,
            base: format!("https://{}:{}{ROOT}", address.host, address.port),
            own_key: identity.fingerprint().to_string(),
            reached: Arc::default(),
            runtime: Some(runtime),
        })
    }

    pub(super) fn put(&self, key: &str, bytes: &[u8], only_new: bool) -> Result<bool, Trouble> {
        let mut question = Question::new(Method::PUT, format!("{OBJECTS}{key}"), MAX_ANSWER);
        question.body = Some(Bytes::copy_from_slice(bytes));
        question.only_new = only_new;
        match self.ask(question)? {
            Answer::Bytes(_) => Ok(true),
            Answer::Exists if only_new => Ok(false),
            _ => Err(Trouble::other("the server gave an answer that does not fit")),
        }
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), Trouble> {
        let question = Question::new(Method::DELETE, format!("{OBJECTS}{key}"), MAX_ANSWER);
        match self.ask(question)? {
            Answer::Bytes(_) | Answer::NotFound => Ok(()),
            _ => Err(Trouble::other("the server gave an answer that does not fit")),
        }
    }

    pub(super) fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Trouble> {
        let question = Question::new(Method::GET, format!("{OBJECTS}{key}"), limit);
        match self.ask(question)? {
            Answer::Bytes(bytes) => Ok(bytes.into()),
            other => Err(other.unwanted()),
        }
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<u64>, Trouble> {
        let question = Question::new(Method::GET, format!("{SIZES}{key}"), MAX_ANSWER);
        match self.ask(question)? {
            Answer::Bytes(bytes) => parsed(&bytes).map(Some),
            Answer::NotFound => Ok(None),
            other => Err(other.unwanted()),
        }
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Vec<Listed>, Trouble> {
        let question = Question::new(Method::GET, format!("{LISTS}{prefix}"), MAX_LIST);
        let bytes = match self.ask(question)? {
            Answer::Bytes(bytes) => bytes,
            other => return Err(other.unwanted()),
        };
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| parsed(line).map(|(size, key)| Listed { key, size })).collect()
    }

    pub(super) fn about(&self) -> Result<Standing, Trouble> {
        match self.ask(Question::new(Method::GET, ABOUT.to_owned(), MAX_ANSWER))? {
            Answer::Bytes(bytes) => parsed(&bytes),
            other => Err(other.unwanted()),
        }
    }

    /// Asks until there is an answer, on the runtime. Unlike `block_on` this may be called from anywhere.
    fn ask(&self, question: Question) -> Result<Answer, Trouble> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let (http, url, own_key, reached) = (
            self.http.clone(),
            format!("{}{}", self.base, question.path),
            self.own_key.clone(),
            self.reached.clone(),
        );
        let work = async move {
            // Nobody waits any more when the process ends.
            let _ = sender.send(persist(&http, &url, &question, &own_key, &reached).await);
        };
        self.runtime.as_ref().expect("there until it is dropped").spawn(work);
        receiver.recv().map_err(|_| Trouble::other("the request was given up"))?
    }
}

impl Ranges for Client {
    fn get_range(&self, key: &str, offset: u64, wanted: u64, needed: u64) -> io::Result<Bytes> {
        let mut question = Question::new(Method::GET, format!("{OBJECTS}{key}"), wanted);
        question.range = Some((offset, offset.saturating_add(wanted).saturating_sub(1)));
        match self.ask(question).map_err(Trouble::into_io)? {
            Answer::Bytes(bytes) if bytes.len() as u64 >= needed => Ok(bytes),
            Answer::Bytes(_) | Answer::PastTheEnd => Err(io::ErrorKind::UnexpectedEof.into()),
            other => Err(other.unwanted().into_io()),
        }
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

impl Answer {
    fn unwanted(self) -> Trouble {
        match self {
            Self::NotFound => Trouble::Io(io::ErrorKind::NotFound.into()),
            Self::TooLarge => Trouble::Io(io::ErrorKind::FileTooLarge.into()),
            Self::Exists => Trouble::Io(io::ErrorKind::AlreadyExists.into()),
            Self::PastTheEnd => Trouble::Io(io::ErrorKind::UnexpectedEof.into()),
            Self::Bytes(_) => Trouble::other("the server gave an answer that does not fit"),
        }
    }
}

fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(bytes)
        .map_err(|error| Trouble::other(format!("the server's answer does not parse: {error}")))
}

async fn persist(
    http: &reqwest::Client,
    url: &str,
    question: &Question,
    own_key: &str,
    reached: &AtomicBool,
) -> Result<Answer, Trouble> {
    let mut pause = FIRST_PAUSE;
    let mut tried = 0;
    loop {
        let failed = once(http, url, question, own_key, reached).await;
        let most = if reached.load(Ordering::Relaxed) { RETRIES } else { FIRST_RETRIES };
        match failed {
            Ok(answer) => return Ok(answer),
            Err(Failed::Passing(trouble)) if tried < most => {
                tracing::info!(url, error = ?trouble, "trying again");
            }
            Err(Failed::Passing(trouble) | Failed::ForGood(trouble)) => return Err(trouble),
        }
        tried += 1;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn once(
    http: &reqwest::Client,
    url: &str,
    question: &Question,
    own_key: &str,
    reached: &AtomicBool,
) -> Result<Answer, Failed> {
    let mut request = http.request(question.method.clone(), url);
    if let Some((first, last)) = question.range {
        request = request.header(RANGE, format!("bytes={first}-{last}"));
    }
    if question.only_new {
        request = request.header(IF_NONE_MATCH, "*");
    }
    if let Some(body) = &question.body {
        request = request.header(CONTENT_LENGTH, body.len()).body(body.clone());
    }
    let response = request.send().await.map_err(|error| network(&error))?;
    reached.store(true, Ordering::Relaxed);
    let status = response.status();
    if status.is_success() {
        return receive(response, question.limit).await;
    }
    match status {
        StatusCode::PRECONDITION_FAILED => return Ok(Answer::Exists),
        StatusCode::RANGE_NOT_SATISFIABLE => return Ok(Answer::PastTheEnd),
        _ => {}
    }
    let body = receive(response, MAX_FAILURE as u64).await;
    let failure = match &body {
        Ok(Answer::Bytes(bytes)) => serde_json::from_slice::<Failure>(bytes).ok(),
        _ => None,
    };
    let Some(Failure { code, message }) = failure else {
        return Err(Failed::Passing(Trouble::other(format!("the server answered {status}"))));
    };
    match status {
        StatusCode::NOT_FOUND if code == "not-found" && question.body.is_none() => Ok(Answer::NotFound),
        StatusCode::UNAUTHORIZED => Err(Failed::ForGood(Trouble::Denied(format!(
            "{message}; there, run `abd serve client add NAME --role orchestrator --key {own_key}`"
        )))),
        StatusCode::INSUFFICIENT_STORAGE => {
            Err(Failed::ForGood(Trouble::Io(io::Error::new(io::ErrorKind::StorageFull, message))))
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::REQUEST_TIMEOUT => {
            Err(Failed::Passing(Trouble::other(message)))
        }
        status if status.is_client_error() => Err(Failed::ForGood(Trouble::Denied(message))),
        _ => Err(Failed::Passing(Trouble::other(message))),
    }
}

/// A failure below HTTP. Who has another key will have it the next time too.
fn network(error: &reqwest::Error) -> Failed {
    let text = crate::error::sentence(error);
    let trouble = Trouble::other(text.clone());
    match text.contains("the peer's key is") {
        true => Failed::ForGood(trouble),
        false => Failed::Passing(trouble),
    }
}

async fn receive(mut response: Response, limit: u64) -> Result<Answer, Failed> {
    let announced = response.content_length();
    if announced.is_some_and(|size| size > limit) {
        return Ok(Answer::TooLarge);
    }
    let mut bytes = BytesMut::with_capacity(usize::try_from(announced.unwrap_or(0)).unwrap_or(0));
    while let Some(piece) = response.chunk().await.map_err(|error| network(&error))? {
        if (bytes.len() + piece.len()) as u64 > limit {
            return Ok(Answer::TooLarge);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Answer::Bytes(bytes.freeze()))
}
