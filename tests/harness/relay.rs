//! A way to the pool that can be shut: to `abd` it looks like a toolstack that restarts.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often it is looked whether the way was shut.
const LOOK: Duration = Duration::from_millis(5);

/// Carries connections to a port on loopback while it is open; refuses them while it is shut.
#[derive(Debug)]
pub struct Relay {
    target: u16,
    /// The port that leads to it.
    pub port: u16,
    open: Option<(Arc<AtomicBool>, JoinHandle<()>)>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// An open way.
    pub fn new(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("a port").port();
        let mut relay = Self { target, port, open: None, streams: Arc::default() };
        relay.listen(listener);
        relay
    }

    /// Cuts every connection and refuses new ones.
    pub fn shut(&mut self) {
        if let Some((shut, thread)) = self.open.take() {
            shut.store(true, Ordering::Relaxed);
            thread.join().expect("the listener does not panic");
        }
        for stream in self.streams().drain(..) {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Takes connections again, on the same port.
    pub fn open(&mut self) {
        self.listen(TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).expect("its own port"));
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&mut self, listener: TcpListener) {
        listener.set_nonblocking(true).expect("a socket");
        let shut = Arc::new(AtomicBool::new(false));
        let (seen, streams, target) = (shut.clone(), self.streams.clone(), self.target);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                let Ok((near, _)) = listener.accept() else {
                    std::thread::sleep(LOOK);
                    continue;
                };
                let Ok(far) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, target))) else {
                    continue;
                };
                near.set_nonblocking(false).expect("a socket");
                let all = streams.lock().unwrap_or_else(PoisonError::into_inner);
                carry(near, far, all);
            }
        });
        self.open = Some((shut, thread));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shut();
    }
}

fn carry(near: TcpStream, far: TcpStream, mut all: std::sync::MutexGuard<'_, Vec<TcpStream>>) {
    for (from, to) in [(&near, &far), (&far, &near)] {
        let copies = (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
        std::thread::spawn(move || pump(copies.0, copies.1));
    }
    all.extend([near, far]);
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(count) if count > 0 && to.write_all(&buffer[..count]).is_ok() => {}
            _ => break,
        }
    }
    for stream in [from, to] {
        // The other direction may have closed it.
        let _ = stream.shutdown(Shutdown::Both);
    }
}
