//! Networks that break, passing bytes on until a number of them has gone by, and networks that are far away.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) connections: Arc<AtomicU64>,
}

/// Passes connections on to `to`. After `cut_after` bytes all of them break; fresh ones are taken only if `heals`.
pub(crate) fn start(to: SocketAddr, cut_after: i64, heals: bool) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let left = Arc::new(AtomicI64::new(cut_after));
    let cut = Arc::new(AtomicBool::new(false));
    let connections = Arc::new(AtomicU64::new(0));
    let counter = connections.clone();
    thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) else { continue };
            if cut.load(Ordering::SeqCst) && !heals {
                continue;
            }
            counter.fetch_add(1, Ordering::SeqCst);
            let born_after_cut = cut.load(Ordering::SeqCst);
            for (from, into) in [(&near, &far), (&far, &near)] {
                let (from, into) = (from.try_clone().expect("clone"), into.try_clone().expect("clone"));
                let (left, cut) = (left.clone(), cut.clone());
                thread::spawn(move || pump(from, into, &left, &cut, born_after_cut));
            }
        }
    });
    Proxy { address, connections }
}

/// Passes connections on to `to`, all of them together no faster than `rate` bytes in a second.
pub(crate) fn start_slow(to: SocketAddr, rate: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    let free_at = Arc::new(Mutex::new(Instant::now()));
    thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) else { continue };
            for (from, into) in [(&near, &far), (&far, &near)] {
                let (from, into) = (from.try_clone().expect("clone"), into.try_clone().expect("clone"));
                let free_at = free_at.clone();
                thread::spawn(move || crawl(from, into, rate, &free_at));
            }
        }
    });
    address
}

fn crawl(mut from: TcpStream, mut into: TcpStream, rate: u64, free_at: &Mutex<Instant>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let arrives = {
            let mut free_at = free_at.lock().expect("not poisoned");
            *free_at = (*free_at).max(Instant::now()) + Duration::from_secs(1) * count as u32 / rate as u32;
            *free_at
        };
        thread::sleep(arrives.saturating_duration_since(Instant::now()));
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Both may be closed already.
    let _ = (from.shutdown(Shutdown::Both), into.shutdown(Shutdown::Both));
}

fn pump(mut from: TcpStream, mut into: TcpStream, left: &AtomicI64, cut: &AtomicBool, born_after_cut: bool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if left.fetch_sub(count as i64, Ordering::SeqCst) < count as i64 {
            cut.store(true, Ordering::SeqCst);
        }
        if cut.load(Ordering::SeqCst) && !born_after_cut {
            break;
        }
        if into.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Both may be closed already.
    let _ = (from.shutdown(Shutdown::Both), into.shutdown(Shutdown::Both));
}

/// Pieces on their way at once: more than a link of 20 ms holds at any speed seen here.
const PIECES: usize = 4096;

/// Passes connections on to `to`; every byte takes `delay`, and any number of them is on its way at once.
pub(crate) fn far_away(to: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) else { continue };
            for (from, into) in [(&near, &far), (&far, &near)] {
                // Small answers must not wait for more to come.
                from.set_nodelay(true).expect("option");
                let (from, into) = (from.try_clone().expect("clone"), into.try_clone().expect("clone"));
                thread::spawn(move || carry(from, into, delay));
            }
        }
    });
    address
}

fn carry(mut from: TcpStream, mut into: TcpStream, delay: Duration) {
    let (under_way, arriving) = sync_channel::<(Instant, Vec<u8>)>(PIECES);
    thread::spawn(move || {
        while let Ok((due, bytes)) = arriving.recv() {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if into.write_all(&bytes).is_err() {
                break;
            }
        }
        // May be closed already.
        let _ = into.shutdown(Shutdown::Write);
    });
    let mut buffer = vec![0; 128 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if under_way.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}
