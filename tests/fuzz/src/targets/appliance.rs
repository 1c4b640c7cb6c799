//! What an appliance reads before it has spoken to anybody it can trust: XenStore, the link, DHCP, its own worker.

use super::piece;
use abd_appliance::fuzzing;
use abd_appliance::init::lifeline::Frames;
use abd_appliance::platform::BootConfig;
use abd_appliance::platform::config::Keys;
use abd_appliance::platform::xenstore::wire::{Decoder, strings};
use abd_appliance::platform::xenstore::{EndOfFile, Error, Options, XenStore};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// XenStore's byte stream, in pieces of the size of the first byte: whole packets, and each encodes to what it was.
pub fn xenstore_messages(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else { return };
    let mut decoder = Decoder::default();
    let mut encoded = Vec::new();
    for bytes in stream.chunks(usize::from(*size).max(1)) {
        decoder.push(bytes);
        while let Ok(Some(packet)) = decoder.next_packet() {
            let _ = packet.text();
            assert!(strings(&packet.payload).all(|part| !part.contains(&0)), "strings end at a NUL");
            encoded.extend(packet.encode());
        }
    }
    assert!(stream.starts_with(&encoded), "what was decoded encodes to what was there");
}

/// What XenStore answers to a client that reads, lists, watches and commits: a piece for each of its requests.
pub fn xenstore_answers(mut data: &[u8]) {
    let stream = Scripted::default();
    let mut pieces = Vec::new();
    while let Some(piece) = piece(&mut data) {
        pieces.push(piece.to_vec());
    }
    pieces.reverse();
    stream.lock().to_come = pieces;
    let options =
        Options { timeout: Duration::from_millis(5), end_of_file: EndOfFile::Final, first_request_id: 1 };
    let store = XenStore::over(stream.clone(), stream.clone(), options).expect("a thread can be started");
    let _ = store.read("vm-data/abd/job");
    let _ = store.directory("vm-data/abd/net");
    if let Ok(watch) = store.watch("control/shutdown") {
        let _ = watch.next(Duration::ZERO);
    }
    let _ = store.transaction(|within| within.write("data/updated", "1"));
    stream.lock().ended = true;
    stream.woken.notify_all();
}

/// A stream whose other end answers each write with the next piece, and is gone after the last.
#[derive(Clone, Default)]
struct Scripted {
    state: Arc<Mutex<State>>,
    woken: Arc<Condvar>,
}

#[derive(Default)]
struct State {
    /// Last first.
    to_come: Vec<Vec<u8>>,
    ready: Vec<u8>,
    ended: bool,
}

impl Scripted {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds this lock")
    }
}

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let waiting = |state: &mut State| state.ready.is_empty() && !state.ended;
        let mut state =
            self.woken.wait_while(self.lock(), waiting).expect("nothing panics while it holds this lock");
        let size = state.ready.len().min(buffer.len());
        buffer[..size].copy_from_slice(&state.ready[..size]);
        state.ready.drain(..size);
        Ok(size)
    }
}

impl Write for Scripted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        match state.to_come.pop() {
            Some(piece) => state.ready.extend(piece),
            None => state.ended = true,
        }
        self.woken.notify_all();
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a guest may write to the lab's XenStore: frames, paths, permissions, transactions.
pub fn xenstore_requests(data: &[u8]) {
    xapi_sim::guest::fuzzing::requests(data);
}

/// A DHCP client with a server that says anything.
pub fn dhcp_exchanges(data: &[u8]) {
    fuzzing::dhcp_exchange(data);
}

/// One packet from the link, or an answer of the kernel's.
pub fn link_packets(data: &[u8]) {
    fuzzing::link_packets(data);
}

/// What stands under `vm-data/abd`, as lines `key=value`.
pub fn boot_settings(data: &[u8]) {
    struct Lines(BTreeMap<String, String>);
    impl Keys for Lines {
        fn get(&self, key: &str) -> Result<Option<String>, Error> {
            Ok(self.0.get(key).cloned())
        }

        fn list(&self, key: &str) -> Result<Vec<String>, Error> {
            let below = |name: &String| {
                let rest = name.strip_prefix(key)?.strip_prefix('/')?;
                Some(rest.split('/').next().unwrap_or(rest).to_owned())
            };
            let mut names: Vec<_> = self.0.keys().filter_map(below).collect();
            names.dedup();
            Ok(names)
        }
    }
    let text = String::from_utf8_lossy(data);
    let lines = text.split('\n').filter_map(|line| line.split_once('='));
    let keys = Lines(lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect());
    match BootConfig::read(&keys) {
        Ok(config) => {
            assert!(!config.urls.is_empty() && !config.nics.is_empty(), "{config:?}");
            assert_eq!(config.job.len(), 36, "{config:?}");
            let _ = (config.needs_v4(), config.needs_v6());
        }
        Err(error) => assert!(!error.code().is_empty() && !error.to_string().is_empty()),
    }
}

/// What the worker tells PID 1 through its pipe.
pub fn worker_frames(data: &[u8]) {
    let mut frames = Frames::default();
    for bytes in data.chunks(7) {
        frames.push(bytes);
        while frames.next_frame().is_some() {}
    }
}
