//! The client: requests from any thread, answers and watch events sorted by one reading thread.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::wire::{self, Decoder, Kind, Packet, REQUEST_PAYLOAD_MAX, WireError, payload_of, strings};
use super::{Error, VALUE_MAX};

/// Longest path we send; the protocol allows 2048 for relative ones, ours are far shorter.
const PATH_MAX: usize = 512;
/// Attempts of a transaction before it is given up: other writers in our own subtree are rare and quick.
const TRANSACTION_TRIES: u32 = 8;
/// Events that wait for one watcher. More fold into these: whoever has one waiting re-reads the node anyway.
const EVENTS_WAITING_MAX: usize = 16;
/// Pause between looks at a closed connection that may come back.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What the end of the byte stream means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndOfFile {
    /// The peer is gone for good.
    Final,
    /// The lab's port reads as empty while its host side is not connected; it may come back.
    Retry,
}

/// How a connection behaves.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Longest wait for one answer.
    pub timeout: Duration,
    /// What an empty read means.
    pub end_of_file: EndOfFile,
    /// First request number. Two processes that use one port after the other start at different ones, so that a late
    /// answer to the first is never taken for one to the second.
    pub first_request_id: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { timeout: Duration::from_secs(5), end_of_file: EndOfFile::Final, first_request_id: 1 }
    }
}

/// A connection to XenStore. Clones share it.
#[derive(Clone)]
pub struct XenStore {
    shared: Arc<Shared>,
}

/// A node under a watched path changed, appeared or went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The node, written as the watch was: relative stays relative.
    pub path: String,
}

/// A registered watch. Dropping it removes it.
pub struct Watch {
    store: XenStore,
    path: String,
    token: String,
    events: Receiver<Event>,
}

/// Requests that XenStore applies together or not at all.
pub struct Transaction<'a> {
    store: &'a XenStore,
    id: u32,
}

struct Shared {
    writer: Mutex<Box<dyn Write + Send>>,
    state: Mutex<State>,
    /// Held for a whole WATCH or UNWATCH: Linux answers them with request number 0, so only one may be under way.
    watching: Mutex<()>,
    timeout: Duration,
}

type Answer = Result<Packet, Failure>;

/// Why the reading thread gave up on a request.
enum Failure {
    Closed,
    Io(ErrorKind),
    Wire(WireError),
}

struct State {
    next_request_id: u32,
    next_token: u32,
    pending: HashMap<u32, (Kind, SyncSender<Answer>)>,
    watches: HashMap<String, (String, SyncSender<Event>)>,
    /// Set when nothing will ever be answered again.
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing here leaves its data half changed when it panics, so a poisoned lock is as good as another.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl XenStore {
    /// Speaks XenStore over any stream. `reader` and `writer` are its two ends, e.g. a file and its clone.
    pub fn over<R, W>(reader: R, writer: W, options: Options) -> io::Result<XenStore>
    where
        R: Read + Send + 'static,
        W: Write + Send + 'static,
    {
        let shared = Arc::new(Shared {
            writer: Mutex::new(Box::new(writer)),
            state: Mutex::new(State {
                next_request_id: options.first_request_id,
                next_token: 1,
                pending: HashMap::new(),
                watches: HashMap::new(),
                closed: false,
            }),
            watching: Mutex::new(()),
            timeout: options.timeout,
        });
        let for_reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("xenstore".to_owned())
            .spawn(move || for_reader.read_forever(reader, options.end_of_file))?;
        Ok(XenStore { shared })
    }

    /// The value of a node. It must be text.
    pub fn read(&self, path: &str) -> Result<String, Error> {
        self.read_in(0, path)
    }

    /// The value of a node, `None` if there is no such node.
    pub fn read_optional(&self, path: &str) -> Result<Option<String>, Error> {
        absent_as_none(self.read(path))
    }

    /// Sets a node, making it and its parents. At most [`VALUE_MAX`] bytes.
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.write_in(0, path, value)
    }

    /// The names of a node's children, `None` if there is no such node.
    pub fn directory(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        self.directory_in(0, path)
    }

    /// Removes a node with everything under it. A node that is not there is no error.
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.remove_in(0, path)
    }

    /// Watches a node and everything under it. One event comes at once, so that a change just before is not missed.
    pub fn watch(&self, path: &str) -> Result<Watch, Error> {
        check_path(path)?;
        let (sender, events) = mpsc::sync_channel(EVENTS_WAITING_MAX);
        let token = {
            let mut state = lock(&self.shared.state);
            let token = format!("abd-{}", state.next_token);
            state.next_token += 1;
            state.watches.insert(token.clone(), (path.to_owned(), sender));
            token
        };
        let watch = Watch { store: self.clone(), path: path.to_owned(), token, events };
        self.set_watch(Kind::WATCH, &watch.path, &watch.token)?;
        Ok(watch)
    }

    /// Runs `body` in a transaction, again if other writers disturbed it, a bounded number of times.
    /// Requests inside go through the [`Transaction`]; an error of `body` drops what it wrote.
    pub fn transaction<T>(
        &self,
        mut body: impl FnMut(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..TRANSACTION_TRIES {
            let started = self.request(Kind::TRANSACTION_START, 0, "", payload_of(&[""]))?;
            let id =
                started.text().and_then(|t| t.parse().ok()).ok_or_else(|| not_text("transaction number"))?;
            let outcome = body(&Transaction { store: self, id });
            let word = if outcome.is_ok() { "T" } else { "F" };
            let ended = self.request(Kind::TRANSACTION_END, id, "", payload_of(&[word]));
            match (outcome, ended) {
                (Ok(value), Ok(_)) => return Ok(value),
                (Ok(_), Err(e)) if e.is_conflict() => {}
                (Err(e), _) if e.is_conflict() => {}
                (Ok(_), Err(e)) | (Err(e), _) => return Err(e),
            }
        }
        Err(Error::Conflict { tries: TRANSACTION_TRIES })
    }

    fn read_in(&self, transaction: u32, path: &str) -> Result<String, Error> {
        let answer = self.request(Kind::READ, transaction, path, payload_of(&[path]))?;
        // A value has no NUL at its end, unlike most payloads.
        String::from_utf8(answer.payload).map_err(|_| not_text(path))
    }

    fn write_in(&self, transaction: u32, path: &str, value: &str) -> Result<(), Error> {
        if value.len() > VALUE_MAX {
            let (operation, size) = (Kind::WRITE.name(), value.len());
            return Err(Error::TooLong { operation, path: path.to_owned(), size, limit: VALUE_MAX });
        }
        let mut payload = payload_of(&[path]);
        payload.extend_from_slice(value.as_bytes());
        self.request(Kind::WRITE, transaction, path, payload).map(drop)
    }

    fn directory_in(&self, transaction: u32, path: &str) -> Result<Option<Vec<String>>, Error> {
        let Some(answer) =
            absent_as_none(self.request(Kind::DIRECTORY, transaction, path, payload_of(&[path])))?
        else {
            return Ok(None);
        };
        let names =
            strings(&answer.payload).map(|name| String::from_utf8(name.to_vec()).map_err(|_| not_text(path)));
        names.collect::<Result<_, _>>().map(Some)
    }

    fn remove_in(&self, transaction: u32, path: &str) -> Result<(), Error> {
        absent_as_none(self.request(Kind::REMOVE, transaction, path, payload_of(&[path]))).map(drop)
    }

    fn set_watch(&self, kind: Kind, path: &str, token: &str) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.shared.watching);
        self.request(kind, 0, path, payload_of(&[path, token])).map(drop)
    }

    fn request(
        &self,
        kind: Kind,
        transaction_id: u32,
        path: &str,
        payload: Vec<u8>,
    ) -> Result<Packet, Error> {
        if kind != Kind::TRANSACTION_START && kind != Kind::TRANSACTION_END {
            check_path(path)?;
        }
        let (operation, size) = (kind.name(), payload.len());
        if size > REQUEST_PAYLOAD_MAX {
            return Err(Error::TooLong {
                operation,
                path: path.to_owned(),
                size,
                limit: REQUEST_PAYLOAD_MAX,
            });
        }
        let (request_id, answers) = self.shared.expect_answer(kind).ok_or_else(|| closed(kind, path))?;
        let bytes = Packet { kind, request_id, transaction_id, payload }.encode();
        // One write call for the whole message: the device takes it whole or not at all.
        if let Err(source) = lock(&self.shared.writer).write_all(&bytes) {
            self.shared.forget(request_id);
            return Err(Error::Io { operation, path: path.to_owned(), source });
        }
        let waited = self.shared.timeout;
        let packet = match answers.recv_timeout(waited) {
            Ok(Ok(packet)) => packet,
            Ok(Err(failure)) => return Err(failure.into_error(operation, path)),
            Err(RecvTimeoutError::Disconnected) => return Err(closed(kind, path)),
            Err(RecvTimeoutError::Timeout) => {
                self.shared.forget(request_id);
                return Err(Error::Timeout { operation, path: path.to_owned(), waited });
            }
        };
        match packet.kind {
            Kind::ERROR => {
                let code = packet.text().unwrap_or("an unreadable error").to_owned();
                Err(Error::Refused { operation, path: path.to_owned(), code })
            }
            answered if answered == kind => Ok(packet),
            other => Err(Error::WrongAnswer { operation, path: path.to_owned(), kind: other.0 }),
        }
    }
}

impl Transaction<'_> {
    /// As [`XenStore::read`].
    pub fn read(&self, path: &str) -> Result<String, Error> {
        self.store.read_in(self.id, path)
    }

    /// As [`XenStore::read_optional`].
    pub fn read_optional(&self, path: &str) -> Result<Option<String>, Error> {
        absent_as_none(self.read(path))
    }

    /// As [`XenStore::write`].
    pub fn write(&self, path: &str, value: &str) -> Result<(), Error> {
        self.store.write_in(self.id, path, value)
    }

    /// As [`XenStore::directory`].
    pub fn directory(&self, path: &str) -> Result<Option<Vec<String>>, Error> {
        self.store.directory_in(self.id, path)
    }

    /// As [`XenStore::remove`].
    pub fn remove(&self, path: &str) -> Result<(), Error> {
        self.store.remove_in(self.id, path)
    }
}

impl Watch {
    /// The next event, `None` after `timeout`. Also `None`, at once, when the connection is closed for good.
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        self.events.recv_timeout(timeout).ok()
    }

    /// False once no event can come any more.
    pub fn is_alive(&self) -> bool {
        !lock(&self.store.shared.state).closed
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.store.shared.state).watches.remove(&self.token);
        // Lost: nothing. An event for a token that nobody has is ignored.
        let _ = self.store.set_watch(Kind::UNWATCH, &self.path, &self.token);
    }
}

impl Failure {
    fn into_error(self, operation: &'static str, path: &str) -> Error {
        let path = path.to_owned();
        match self {
            Failure::Closed => Error::Disconnected { operation, path },
            Failure::Io(kind) => Error::Io { operation, path, source: kind.into() },
            Failure::Wire(source) => Error::Wire { operation, path, source },
        }
    }
}

impl Shared {
    /// Registers a request; `None` if the connection is closed.
    fn expect_answer(&self, kind: Kind) -> Option<(u32, Receiver<Answer>)> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let mut state = lock(&self.state);
        if state.closed {
            return None;
        }
        let id = state.next_request_id;
        // 0 is what Linux puts into its answers to watch requests.
        state.next_request_id = id.checked_add(1).unwrap_or(1);
        state.pending.insert(id, (kind, sender));
        Some((id, receiver))
    }

    fn forget(&self, request_id: u32) {
        lock(&self.state).pending.remove(&request_id);
    }

    fn read_forever(&self, mut reader: impl Read, end_of_file: EndOfFile) {
        let mut decoder = Decoder::default();
        let mut buffer = [0u8; wire::HEADER_SIZE + wire::PAYLOAD_MAX];
        let mut away = false;
        loop {
            match reader.read(&mut buffer) {
                Ok(0) if end_of_file == EndOfFile::Final => return self.close(&|| Failure::Closed),
                Ok(0) => {
                    away = true;
                    decoder.clear();
                    self.fail_pending(&|| Failure::Closed);
                    thread::sleep(RECONNECT_PAUSE);
                    continue;
                }
                Ok(size) => decoder.push(&buffer[..size]),
                // A reader with a time limit of its own says "nothing yet" with these.
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => return self.close(&|| Failure::Io(e.kind())),
            }
            if std::mem::take(&mut away) {
                self.register_watches_again();
            }
            loop {
                match decoder.next_packet() {
                    Ok(Some(packet)) => self.dispatch(packet),
                    Ok(None) => break,
                    // There is no way to find the next message in such a stream.
                    Err(e) => return self.close(&|| Failure::Wire(e)),
                }
            }
        }
    }

    fn dispatch(&self, packet: Packet) {
        let mut state = lock(&self.state);
        if packet.kind == Kind::WATCH_EVENT {
            let mut parts = strings(&packet.payload);
            let (path, token) = (parts.next(), parts.next());
            let text =
                |part: Option<&[u8]>| part.and_then(|p| std::str::from_utf8(p).ok().map(str::to_owned));
            if let (Some(path), Some(token)) = (text(path), text(token))
                && let Some((_, sender)) = state.watches.get(&token)
            {
                // Full: the watcher has events waiting and will look again. Disconnected: it is just being dropped.
                let _ = sender.try_send(Event { path });
            }
            return;
        }
        let waiting = state.pending.remove(&packet.request_id).or_else(|| {
            // Linux answers watch requests itself and leaves the number at 0. At most one is under way.
            let id = *state
                .pending
                .iter()
                .find(|(_, (kind, _))| packet.request_id == 0 && *kind == packet.kind)?
                .0;
            state.pending.remove(&id)
        });
        if let Some((_, sender)) = waiting {
            // The asker may have given up this moment: then nobody misses the answer.
            let _ = sender.try_send(Ok(packet));
        }
    }

    fn register_watches_again(&self) {
        let watches: Vec<_> =
            lock(&self.state).watches.iter().map(|(t, (p, _))| (t.clone(), p.clone())).collect();
        for (token, path) in watches {
            let payload = payload_of(&[&path, &token]);
            // Number 0 and no one waiting: the answer is dropped. A failed write shows up at the next request.
            let packet = Packet { kind: Kind::WATCH, request_id: 0, transaction_id: 0, payload };
            let _ = lock(&self.writer).write_all(&packet.encode());
        }
    }

    fn fail_pending(&self, failure: &dyn Fn() -> Failure) {
        for (_, (_, sender)) in lock(&self.state).pending.drain() {
            // The asker may have given up this moment.
            let _ = sender.try_send(Err(failure()));
        }
    }

    fn close(&self, failure: &dyn Fn() -> Failure) {
        {
            let mut state = lock(&self.state);
            state.closed = true;
            // Their channels end, so no watcher waits for an event that cannot come.
            state.watches.clear();
        }
        self.fail_pending(failure);
    }
}

fn closed(kind: Kind, path: &str) -> Error {
    Error::Disconnected { operation: kind.name(), path: path.to_owned() }
}

fn not_text(path: &str) -> Error {
    Error::NotText { path: path.to_owned() }
}

fn absent_as_none<T>(answer: Result<T, Error>) -> Result<Option<T>, Error> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

fn check_path(path: &str) -> Result<(), Error> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b"-/_@".contains(&b);
    let shape = !path.is_empty() && path.len() <= PATH_MAX && !path.ends_with('/') && !path.contains("//");
    if shape && path.bytes().all(legal) { Ok(()) } else { Err(Error::BadPath { path: path.to_owned() }) }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
