//! The stream between a guest's port and its store.
//!
//! Owns the socket to QEMU's virtio-serial port and the rules for a guest that misbehaves or goes away
//! and comes back. Promises: ends only when QEMU does. A guest that announces an oversized payload is
//! never served again: oxenstored marks such a domain as bad for the rest of its life.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;

use super::server::{Change, Domain};
use super::tree::Refusal;
use super::wire::Decoder;
use crate::guest::GuestEvent;

/// Bytes taken from the guest at once. Small, so that no guest makes the server hold much.
const READ_SIZE: usize = 8192;

/// A domain's store, used by the guest's stream and by the simulator.
#[derive(Debug)]
pub(crate) struct Shared {
    domain: Mutex<Domain>,
    wake: Notify,
}

impl Shared {
    pub(crate) fn new(domain: Domain) -> Shared {
        Shared { domain: Mutex::new(domain), wake: Notify::new() }
    }

    /// Writes one key as the toolstack and wakes the guest's watches.
    pub(crate) fn write(&self, path: &str, value: &str) -> Result<(), Refusal> {
        let written = self.lock().write_as_toolstack(path, value);
        self.wake.notify_one();
        written
    }

    /// Replaces a subtree as the toolstack and wakes the guest's watches.
    pub(crate) fn replace(&self, prefix: &str, values: &BTreeMap<String, String>) -> Result<(), Refusal> {
        let replaced = self.lock().replace_as_toolstack(prefix, values);
        self.wake.notify_one();
        replaced
    }

    pub(crate) fn collect(&self, prefix: &str) -> BTreeMap<String, String> {
        self.lock().collect(prefix)
    }

    pub(crate) fn forget_before(&self, moment: SystemTime) {
        self.lock().forget_before(moment);
    }

    fn lock(&self) -> MutexGuard<'_, Domain> {
        // A panic elsewhere leaves a whole tree: every change is made on a copy first.
        self.domain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves the guest until the stream ends. Waits for `events` to take what the guest changed, so a slow
/// simulator slows the guest instead of losing anything.
pub(crate) async fn serve(shared: &Shared, stream: UnixStream, events: &Sender<GuestEvent>) {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let mut session = Session::default();
    let mut bytes = vec![0; READ_SIZE];
    loop {
        let count = tokio::select! {
            read = from_guest.read(&mut bytes) => match read {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            },
            () = shared.wake.notified() => 0,
        };
        session.take(&bytes[..count], shared.lock().forgotten_before(), SystemTime::now());
        loop {
            let changes = session.next_changes(shared);
            if flush(shared, &mut to_guest).await.is_err() {
                // QEMU is gone; what it sent before is still to be read.
                tracing::debug!("the guest's store port took no more answers");
            }
            let Some(changes) = changes else { break };
            for Change { path, value } in changes {
                // Nobody listens any more: the guest's tree itself is still right.
                let _ = events.send(GuestEvent::XenStoreChanged { path, value }).await;
            }
        }
    }
}

async fn flush(shared: &Shared, to_guest: &mut (impl AsyncWriteExt + Unpin)) -> std::io::Result<()> {
    loop {
        let Some(message) = shared.lock().pop() else {
            return Ok(());
        };
        to_guest.write_all(&message.to_bytes()).await?;
    }
}

/// One stream's reading side.
#[derive(Debug)]
struct Session {
    decoder: Decoder,
    /// The guest broke the protocol: its bytes are thrown away.
    is_refused: bool,
    /// When the frame that is not whole yet began.
    began: SystemTime,
}

impl Default for Session {
    fn default() -> Session {
        Session { decoder: Decoder::default(), is_refused: false, began: SystemTime::UNIX_EPOCH }
    }
}

impl Session {
    /// Takes bytes; a frame that began before the port was last closed will not be finished.
    fn take(&mut self, bytes: &[u8], closed: SystemTime, now: SystemTime) {
        if closed >= self.began {
            self.decoder.clear();
        }
        if !self.decoder.is_inside_frame() {
            self.began = now;
        }
        if !self.is_refused {
            self.decoder.push(bytes);
        }
    }

    /// Serves one request; `None` when there is no whole one.
    fn next_changes(&mut self, shared: &Shared) -> Option<Vec<Change>> {
        match self.decoder.next_message() {
            Ok(Some(message)) => Some(shared.lock().handle(message, SystemTime::now())),
            Ok(None) => None,
            Err(oversize) => {
                tracing::warn!(
                    announced = oversize.announced,
                    "the guest broke the XenStore protocol and is not served any more"
                );
                self.is_refused = true;
                self.decoder.clear();
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::Arc;

    use tokio::sync::mpsc;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::guest::xenstore::domain::bare_config;

    /// The guest's end of a served port.
    struct Port {
        shared: Arc<Shared>,
        guest: UnixStream,
        events: mpsc::Receiver<GuestEvent>,
        server: JoinHandle<()>,
    }

    impl Port {
        fn open() -> Port {
            let shared = Arc::new(Shared::new(Domain::build(7, &bare_config()).unwrap()));
            let (guest, host) = UnixStream::pair().unwrap();
            let (sender, events) = mpsc::channel(1);
            let served = Arc::clone(&shared);
            let server = tokio::spawn(async move { serve(&served, host, &sender).await });
            Port { shared, guest, events, server }
        }

        async fn send(&mut self, kind: u8, payload: &[u8]) {
            let length = u8::try_from(payload.len()).unwrap();
            let header = [kind, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, length, 0, 0, 0];
            self.guest.write_all(&[&header, payload].concat()).await.unwrap();
        }

        /// Kind and payload of the next frame.
        async fn receive(&mut self) -> (u8, Vec<u8>) {
            let mut header = [0; 16];
            self.guest.read_exact(&mut header).await.unwrap();
            let mut payload = vec![0; usize::from(header[12])];
            self.guest.read_exact(&mut payload).await.unwrap();
            (header[0], payload)
        }
    }

    #[tokio::test]
    async fn a_served_guest_reads_writes_and_is_woken() {
        let mut port = Port::open();
        port.send(2, b"name\0").await;
        assert_eq!(port.receive().await, (2, b"abd-test".to_vec()));
        port.send(4, b"control/shutdown\0t\0").await;
        assert_eq!(port.receive().await, (4, b"OK\0".to_vec()));
        assert_eq!(port.receive().await, (15, b"control/shutdown\0t\0".to_vec()));
        port.shared.write("control/shutdown", "poweroff").unwrap();
        assert_eq!(port.receive().await, (15, b"control/shutdown\0t\0".to_vec()));
        // More changes than the channel holds: the guest waits, nothing is lost.
        for index in 0..5 {
            port.send(11, format!("data/x\0{index}").as_bytes()).await;
        }
        for index in 0..5 {
            assert_eq!(port.receive().await, (11, b"OK\0".to_vec()));
            let value = Some(index.to_string());
            let event = GuestEvent::XenStoreChanged { path: "data/x".to_owned(), value };
            assert_eq!(port.events.recv().await, Some(event));
        }
        drop(port.guest);
        port.server.await.unwrap();
        assert_eq!(port.events.recv().await, None);
    }

    #[tokio::test]
    async fn a_guest_that_breaks_the_protocol_is_not_served_again() {
        let mut port = Port::open();
        port.guest.write_all(&[0xff; 20]).await.unwrap();
        port.send(11, b"data/x\0v").await;
        port.guest.shutdown().await.unwrap();
        port.server.await.unwrap();
        assert_eq!(port.events.recv().await, None);
        let mut answers = Vec::new();
        port.guest.read_to_end(&mut answers).await.unwrap();
        assert!(answers.is_empty());
        assert!(port.shared.collect("data/x").is_empty());
    }

    #[tokio::test]
    async fn what_was_written_before_the_end_is_served() {
        let mut port = Port::open();
        port.send(11, b"vm-data/abd/state\0finished").await;
        drop(port.guest);
        let event = port.events.recv().await;
        assert!(matches!(event, Some(GuestEvent::XenStoreChanged { .. })), "{event:?}");
        port.server.await.unwrap();
    }
}
