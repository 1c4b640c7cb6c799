//! A client of the real xenstored, as the control domain.
//!
//! Owns the connection. Promises: one request at a time, each answered or failed; a watch collects the paths that
//! changed and forgets none, however slow its reader is.

use crate::guest::xenstore::wire::{Decoder, Message, kind};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::timeout;

/// Requests that wait for their turn.
const REQUESTS_MAX: usize = 64;
/// How long an answer may take. They take milliseconds; a machine under load is given plenty.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Bytes read at once: two of the largest frames.
const READ_SIZE: usize = 8192;

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StoreError {
    /// xenstored's name of the error.
    Refused(String),
    /// The connection is gone.
    Lost,
}

struct Ask {
    kind: u32,
    payload: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, StoreError>>,
}

type Watches = Arc<Mutex<BTreeMap<String, Arc<Changes>>>>;

/// Paths below a watched one that changed and were not taken yet.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Pending {
    paths: BTreeSet<String>,
    is_closed: bool,
}

impl Changes {
    /// Waits for changes and takes them; `None` once the connection is gone. May be dropped half-way without loss.
    pub(super) async fn take(&self) -> Option<BTreeSet<String>> {
        loop {
            {
                let mut pending = lock(&self.pending);
                if !pending.paths.is_empty() {
                    return Some(std::mem::take(&mut pending.paths));
                }
                if pending.is_closed {
                    return None;
                }
            }
            self.wake.notified().await;
        }
    }

    fn add(&self, path: &str) {
        lock(&self.pending).paths.insert(path.to_owned());
        self.wake.notify_one();
    }

    fn close(&self) {
        lock(&self.pending).is_closed = true;
        self.wake.notify_one();
    }
}

/// Asks xenstored.
#[derive(Debug, Clone)]
pub(super) struct Client {
    asks: mpsc::Sender<Ask>,
    watches: Watches,
}

impl Client {
    pub(super) fn start(stream: UnixStream) -> Client {
        let (asks, next) = mpsc::channel(REQUESTS_MAX);
        let watches = Watches::default();
        let served = watches.clone();
        tokio::spawn(async move {
            converse(stream, next, &served).await;
            lock(&served).values().for_each(|changes| changes.close());
        });
        Client { asks, watches }
    }

    /// The value of a node, `None` where there is none.
    pub(super) async fn read(&self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        absent_is_none(self.ask(kind::READ, &[path.as_bytes(), b"\0"]).await)
    }

    /// Names of a node's children, `None` where there is no such node.
    pub(super) async fn list(&self, path: &str) -> Result<Option<Vec<String>>, StoreError> {
        let found = absent_is_none(self.ask(kind::DIRECTORY, &[path.as_bytes(), b"\0"]).await)?;
        let names = |bytes: Vec<u8>| {
            let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
        };
        Ok(found.map(names))
    }

    pub(super) async fn write(&self, path: &str, value: &str) -> Result<(), StoreError> {
        self.ask(kind::WRITE, &[path.as_bytes(), b"\0", value.as_bytes()]).await.map(drop)
    }

    /// Removes a node and all below; one that is not there is fine.
    pub(super) async fn remove(&self, path: &str) -> Result<(), StoreError> {
        absent_is_none(self.ask(kind::RM, &[path.as_bytes(), b"\0"]).await).map(drop)
    }

    /// Makes a node that a domain owns, or gives it one that is there.
    pub(super) async fn make_owned(&self, path: &str, domain: u32) -> Result<(), StoreError> {
        self.ask(kind::MKDIR, &[path.as_bytes(), b"\0"]).await?;
        let owner = format!("n{domain}");
        self.ask(kind::SET_PERMS, &[path.as_bytes(), b"\0", owner.as_bytes(), b"\0"]).await.map(drop)
    }

    /// Watches a node and all below. The node itself counts as changed at once. The watch ends with the connection.
    pub(super) async fn watch(&self, path: &str) -> Result<Arc<Changes>, StoreError> {
        let changes = Arc::new(Changes::default());
        lock(&self.watches).insert(path.to_owned(), changes.clone());
        self.ask(kind::WATCH, &[path.as_bytes(), b"\0", path.as_bytes(), b"\0"]).await?;
        Ok(changes)
    }

    /// Ends a watch.
    pub(super) async fn unwatch(&self, path: &str) {
        lock(&self.watches).remove(path);
        // What comes all the same is for nobody and passed over.
        let _ = self.ask(kind::UNWATCH, &[path.as_bytes(), b"\0", path.as_bytes(), b"\0"]).await;
    }

    async fn ask(&self, kind: u32, parts: &[&[u8]]) -> Result<Vec<u8>, StoreError> {
        let payload = parts.concat();
        if payload.len() > crate::guest::xenstore::wire::PAYLOAD_MAX {
            return Err(StoreError::Refused("E2BIG".to_owned()));
        }
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask { kind, payload, answer }).await.map_err(|_| StoreError::Lost)?;
        answered.await.map_err(|_| StoreError::Lost)?
    }
}

fn absent_is_none(outcome: Result<Vec<u8>, StoreError>) -> Result<Option<Vec<u8>>, StoreError> {
    match outcome {
        Ok(bytes) => Ok(Some(bytes)),
        Err(StoreError::Refused(errno)) if errno == "ENOENT" => Ok(None),
        Err(error) => Err(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing is done under these locks that could leave half a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Carries requests out and answers and events in, until the machine closes the connection or a request is not
/// answered. The kernel's xenbus device takes one message at a time, so the next is sent after the answer.
async fn converse(stream: UnixStream, mut asks: mpsc::Receiver<Ask>, watches: &Watches) {
    let (mut from, mut to) = stream.into_split();
    let mut decoder = Decoder::default();
    let mut bytes = vec![0; READ_SIZE];
    let mut request = 0_u32;
    let mut waiting: Option<oneshot::Sender<Result<Vec<u8>, StoreError>>> = None;
    loop {
        tokio::select! {
            read = from.read(&mut bytes) => {
                let Ok(count @ 1..) = read else { return };
                decoder.push(&bytes[..count]);
                loop {
                    match decoder.next_message() {
                        Ok(Some(message)) => receive(message, request, &mut waiting, watches),
                        Ok(None) => break,
                        Err(_) => return,
                    }
                }
            }
            ask = asks.recv(), if waiting.is_none() => {
                let Some(ask) = ask else { return };
                request = request.wrapping_add(1);
                let message = Message { kind: ask.kind, request, transaction: 0, payload: ask.payload };
                match timeout(ANSWER_LIMIT, to.write_all(&message.to_bytes())).await {
                    Ok(Ok(())) => waiting = Some(ask.answer),
                    _ => return,
                }
            }
        }
    }
}

fn receive(
    message: Message,
    request: u32,
    waiting: &mut Option<oneshot::Sender<Result<Vec<u8>, StoreError>>>,
    watches: &Watches,
) {
    if message.kind == kind::WATCH_EVENT {
        let mut words = message.payload.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        if let (Some(path), Some(token)) = (words.next(), words.next())
            && let Some(changes) = lock(watches).get(token.as_ref())
        {
            changes.add(&path);
        }
        return;
    }
    // Another number: the answer to a connection before this one.
    if message.request == request
        && let Some(waiting) = waiting.take()
    {
        let outcome = match message.kind {
            kind::ERROR => {
                let name = message.payload.strip_suffix(b"\0").unwrap_or(&message.payload);
                Err(StoreError::Refused(String::from_utf8_lossy(name).into_owned()))
            }
            _ => Ok(message.payload),
        };
        // The asker gave up waiting.
        let _ = waiting.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn frame(kind: u32, request: u32, payload: &[u8]) -> Vec<u8> {
        Message { kind, request, transaction: 0, payload: payload.to_vec() }.to_bytes()
    }

    #[tokio::test]
    async fn answers_errors_and_events_find_their_reader() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let client = Client::start(ours);
        let script = tokio::spawn(async move {
            let answers = [
                frame(kind::WATCH, 1, b"OK\0"),
                [
                    // A stray event, a stale answer, two changes and the answer.
                    frame(kind::WATCH_EVENT, 0, b"/a\0other\0"),
                    frame(kind::READ, 77, b"stale"),
                    frame(kind::WATCH_EVENT, 0, b"/home/x\0/home\0"),
                    frame(kind::WATCH_EVENT, 0, b"/home/y\0/home\0"),
                    frame(kind::READ, 2, b"v"),
                ]
                .concat(),
                frame(kind::ERROR, 3, b"ENOENT\0"),
                frame(kind::ERROR, 4, b"EACCES\0"),
                frame(kind::DIRECTORY, 5, b"a\0b\0"),
            ];
            for answer in answers {
                let mut header = [0; 16];
                theirs.read_exact(&mut header).await.unwrap();
                let mut payload = vec![0; usize::from(header[12])];
                theirs.read_exact(&mut payload).await.unwrap();
                theirs.write_all(&answer).await.unwrap();
            }
        });
        let changes = client.watch("/home").await.unwrap();
        assert_eq!(client.read("/home/x").await.unwrap().unwrap(), b"v");
        assert_eq!(client.read("/home/z").await.unwrap(), None);
        assert_eq!(client.write("/home/z", "").await, Err(StoreError::Refused("EACCES".to_owned())));
        assert_eq!(client.list("/home").await.unwrap().unwrap(), ["a", "b"]);
        let paths = changes.take().await.unwrap();
        assert_eq!(paths.into_iter().collect::<Vec<_>>(), ["/home/x", "/home/y"]);
        script.await.unwrap();
        // The other side is gone.
        assert_eq!(changes.take().await, None);
        assert_eq!(client.read("/").await, Err(StoreError::Lost));
    }
}
