//! The way to the orchestrator: calls by threads, carried out by one asynchronous task per call.
//!
//! Promises: every call ends, with an answer or an error, within named limits; a connection that breaks is opened
//! again and the call repeated, for a third of the watchdog's time. Never: talks to a key other than the one from
//! XenStore.

mod body;
mod connection;
mod dispatcher;
mod exchange;
mod tally;

pub(crate) use dispatcher::{Errand, Settings, serve};
pub use exchange::Exchange;
pub(crate) use exchange::serve_here;
pub(crate) use tally::Tally;
use tally::{Purpose, SharedTally};

use super::Error;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use tokio::sync::mpsc::Sender;

/// How long an answer may be quiet, no byte moving in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// A third of the watchdog's time: the orchestrator only looks something up.
    Short,
    /// The watchdog's time: the orchestrator writes to its disks before it answers.
    Long,
    /// A few seconds: the last words of a job that has failed, perhaps because of this very link.
    LastWord,
}

/// One call on its way to the task that carries it out.
pub(crate) struct Call {
    pub(crate) method: hyper::Method,
    pub(crate) path: String,
    pub(crate) body: Arc<Vec<u8>>,
    pub(crate) max_answer: usize,
    pub(crate) patience: Patience,
    /// For the answer; what it has room for need not be allocated.
    pub(crate) memory: RefCell<Vec<u8>>,
    pub(crate) purpose: Purpose,
    pub(crate) tally: SharedTally,
    pub(crate) reply: SyncSender<Result<Vec<u8>, Error>>,
}

/// Makes calls. Clones share the connections.
#[derive(Clone)]
pub(crate) struct Link {
    errands: Sender<Errand>,
    tally: SharedTally,
}

/// An answer that is on its way.
pub(crate) struct Pending {
    reply: Receiver<Result<Vec<u8>, Error>>,
}

/// The answer to a pack, and the pack's memory, which is needed until then in case the connection breaks.
pub(crate) struct PendingPack {
    answer: Pending,
    bytes: Arc<Vec<u8>>,
}

impl Link {
    pub(crate) fn new(errands: Sender<Errand>) -> Self {
        Self { errands, tally: SharedTally::default() }
    }

    /// What calls cost up to now.
    pub(crate) fn tally(&self) -> Tally {
        self.tally.now()
    }

    /// Asks and waits.
    pub(crate) fn ask<A: DeserializeOwned>(&self, path: &str, question: &impl Serialize) -> Result<A, Error> {
        self.start(path, question).wait(path)
    }

    /// As [`ask`](Self::ask), where the orchestrator has much to do before it answers.
    pub(crate) fn ask_patiently<A: DeserializeOwned>(
        &self,
        path: &str,
        question: &impl Serialize,
        patience: Patience,
    ) -> Result<A, Error> {
        self.post(path, wire::encode(question), wire::MAX_MESSAGE_SIZE, patience).wait(path)
    }

    /// Asks and returns at once.
    pub(crate) fn start(&self, path: &str, question: &impl Serialize) -> Pending {
        self.start_into(path, question, Vec::new())
    }

    /// [`start`](Self::start) with memory for the answer, to be waited for with [`Pending::wait_raw`].
    pub(crate) fn start_into(&self, path: &str, question: &impl Serialize, memory: Vec<u8>) -> Pending {
        let (path, body) = (path.to_owned(), Arc::new(wire::encode(question)));
        self.call(hyper::Method::POST, path, body, wire::MAX_MESSAGE_SIZE, Patience::Short, memory)
    }

    /// Asks for an answer that is no message, of at most `max_answer` bytes.
    pub(crate) fn ask_raw(
        &self,
        path: &str,
        question: &impl Serialize,
        max_answer: usize,
    ) -> Result<Vec<u8>, Error> {
        self.post(path, wire::encode(question), max_answer, Patience::Short).wait_raw()
    }

    /// Sends a pack and returns at once.
    pub(crate) fn put_pack(&self, pack: seal::Pack) -> PendingPack {
        let path = format!("{}{}", wire::PATH_PACKS, pack.id);
        let bytes = Arc::new(pack.bytes);
        let answer = self.call(
            hyper::Method::PUT,
            path,
            bytes.clone(),
            wire::MAX_MESSAGE_SIZE,
            Patience::Long,
            Vec::new(),
        );
        PendingPack { answer, bytes }
    }

    /// Sends bytes that are thrown away, and returns at once.
    pub(crate) fn sink(&self, bytes: Arc<Vec<u8>>) -> Pending {
        let path = wire::PATH_SINK.to_owned();
        self.call(hyper::Method::POST, path, bytes, wire::MAX_MESSAGE_SIZE, Patience::Short, Vec::new())
    }

    /// Opens a connection, whether one is needed or not, and says what it took.
    pub(crate) fn connect(&self) -> Result<wire::Connect, Error> {
        let (reply, answer) = sync_channel(1);
        // Where the other side is gone the reply is dropped, and the wait says so.
        let _ = self.send(Errand::Connect(reply));
        answer.recv().map_err(|_| Error::Aborted)?
    }

    /// Hands work to the asynchronous side. `false` if it is gone.
    pub(crate) fn send(&self, errand: Errand) -> bool {
        self.errands.blocking_send(errand).is_ok()
    }

    fn post(&self, path: &str, body: Vec<u8>, max_answer: usize, patience: Patience) -> Pending {
        self.call(hyper::Method::POST, path.to_owned(), Arc::new(body), max_answer, patience, Vec::new())
    }

    fn call(
        &self,
        method: hyper::Method,
        path: String,
        body: Arc<Vec<u8>>,
        max_answer: usize,
        patience: Patience,
        memory: Vec<u8>,
    ) -> Pending {
        let memory = RefCell::new(memory);
        let (reply, answer) = sync_channel(1);
        // Where the other side is gone the reply's sender is dropped with the call, and the wait says so.
        let (purpose, tally) = (purpose(&path), self.tally.clone());
        let call = Call { method, path, body, max_answer, patience, memory, purpose, tally, reply };
        let _ = self.send(Errand::Call(call));
        Pending { reply: answer }
    }
}

fn purpose(path: &str) -> Purpose {
    match path {
        wire::PATH_BLOCKS => Purpose::Transfer,
        wire::PATH_KNOWN | wire::PATH_NODES | wire::PATH_BITMAP | wire::PATH_DISK_DONE => Purpose::Question,
        path if path.starts_with(wire::PATH_PACKS) => Purpose::Transfer,
        _ => Purpose::Aside,
    }
}

impl Pending {
    /// Waits for a message.
    pub(crate) fn wait<A: DeserializeOwned>(self, path: &str) -> Result<A, Error> {
        let body = self.wait_raw()?;
        wire::decode(&body).map_err(|source| Error::Answer { call: path.to_owned(), source })
    }

    /// Waits for the answer's bytes.
    pub(crate) fn wait_raw(self) -> Result<Vec<u8>, Error> {
        self.reply.recv().map_err(|_| Error::Aborted)?
    }
}

impl PendingPack {
    /// Waits until the pack is durable; gives its memory back, empty if a connection still holds it.
    pub(crate) fn wait(self) -> Result<Vec<u8>, Error> {
        let _answer: wire::PackAnswer = self.answer.wait(wire::PATH_PACKS)?;
        Ok(Arc::try_unwrap(self.bytes).unwrap_or_default())
    }
}
