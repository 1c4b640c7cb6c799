//! The network cable of a delegate that is a process: every connection goes through here and stops while it is pulled.
//!
//! Nothing is closed when the cable is pulled, and nothing arrives: what either side sends waits, as it would wait to
//! be sent again on a real network. A cable may be slow: all that passes it shares its rate.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener};
use std::num::NonZeroU64;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Duration, Instant, sleep_until};

/// Bytes under way in one direction of one connection.
const BUFFER_SIZE: usize = 64 << 10;

/// Puts a cable between this process and each of `targets`; answers the addresses to connect to instead.
pub(super) fn lay(
    targets: &[SocketAddr],
    link: watch::Receiver<bool>,
    rate: Option<NonZeroU64>,
) -> io::Result<Vec<SocketAddr>> {
    let mut ends = Vec::new();
    let mut sockets = Vec::new();
    for target in targets {
        let socket = match target {
            SocketAddr::V4(_) => StdListener::bind((Ipv4Addr::LOCALHOST, 0))?,
            SocketAddr::V6(_) => StdListener::bind((Ipv6Addr::LOCALHOST, 0))?,
        };
        socket.set_nonblocking(true)?;
        ends.push(socket.local_addr()?);
        sockets.push((socket, *target));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = move || {
        let wire = Rc::new(Wire { rate, free_at: Cell::new(Instant::now()) });
        LocalSet::new().block_on(&runtime, async {
            for (socket, target) in sockets {
                spawn_local(listen(socket, target, link.clone(), wire.clone()));
            }
            std::future::pending::<()>().await;
        });
    };
    std::thread::Builder::new().name("cable".to_owned()).spawn(body)?;
    Ok(ends)
}

/// What all connections share.
struct Wire {
    /// Bytes per second.
    rate: Option<NonZeroU64>,
    /// When everything that was sent so far has passed.
    free_at: Cell<Instant>,
}

impl Wire {
    /// Waits until so many bytes have passed.
    async fn pass(&self, count: usize) {
        let Some(rate) = self.rate else { return };
        let micros = (count as u64).saturating_mul(1_000_000) / rate;
        let arrived = self.free_at.get().max(Instant::now()) + Duration::from_micros(micros);
        self.free_at.set(arrived);
        sleep_until(arrived).await;
    }
}

async fn listen(socket: StdListener, target: SocketAddr, link: watch::Receiver<bool>, wire: Rc<Wire>) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return eprintln!("the cable to {target} is broken: {error}"),
    };
    loop {
        match listener.accept().await {
            Ok((near, _)) => drop(spawn_local(carry(near, target, link.clone(), wire.clone()))),
            Err(error) => eprintln!("the cable to {target} took no connection: {error}"),
        }
    }
}

/// Carries one connection. Where the far end is not there, the near one is closed: the worker takes it for
/// unreachable.
async fn carry(near: TcpStream, target: SocketAddr, mut link: watch::Receiver<bool>, wire: Rc<Wire>) {
    if wait_for(&mut link).await.is_err() {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    for end in [&near, &far] {
        // A refusal costs speed, nothing else.
        let _ = end.set_nodelay(true);
    }
    let (from_near, to_near) = near.into_split();
    let (from_far, to_far) = far.into_split();
    tokio::join!(pump(from_near, to_far, link.clone(), &wire), pump(from_far, to_near, link, &wire));
}

async fn wait_for(link: &mut watch::Receiver<bool>) -> Result<(), watch::error::RecvError> {
    link.wait_for(|is_up| *is_up).await.map(drop)
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut link: watch::Receiver<bool>, wire: &Wire) {
    let mut buffer = vec![0; BUFFER_SIZE];
    loop {
        // A broken connection and a closed one are told on the same way: by closing.
        let count = from.read(&mut buffer).await.unwrap_or(0);
        wire.pass(count).await;
        if wait_for(&mut link).await.is_err() {
            return;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            break;
        }
    }
    // The other side may be gone already.
    let _ = to.shutdown().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream as StdStream;
    use std::time::Duration;

    #[test]
    fn nothing_passes_a_pulled_cable_and_nothing_is_lost() {
        let far = StdListener::bind("127.0.0.1:0").unwrap();
        let (plug, link) = watch::channel(true);
        let ends = lay(&[far.local_addr().unwrap()], link, None).unwrap();
        let mut near = StdStream::connect(ends[0]).unwrap();
        let (mut peer, _) = far.accept().unwrap();
        let mut byte = [0];
        near.write_all(b"1").unwrap();
        peer.read_exact(&mut byte).unwrap();
        plug.send_replace(false);
        near.write_all(b"2").unwrap();
        peer.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(peer.read_exact(&mut byte).is_err(), "a byte passed the pulled cable");
        peer.set_read_timeout(None).unwrap();
        plug.send_replace(true);
        peer.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"2");
        drop(near);
        assert_eq!(peer.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn what_passes_a_slow_cable_takes_its_time() {
        let far = StdListener::bind("127.0.0.1:0").unwrap();
        let (_plug, link) = watch::channel(true);
        let ends = lay(&[far.local_addr().unwrap()], link, NonZeroU64::new(1_000_000)).unwrap();
        let mut near = StdStream::connect(ends[0]).unwrap();
        let (mut peer, _) = far.accept().unwrap();
        let began = std::time::Instant::now();
        near.write_all(&[1; 100_000]).unwrap();
        peer.read_exact(&mut [0; 100_000]).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(100), "{:?}", began.elapsed());
    }

    #[test]
    fn where_nobody_listens_the_connection_is_closed() {
        let gone = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (_plug, link) = watch::channel(true);
        let ends = lay(&[gone], link, None).unwrap();
        let mut near = StdStream::connect(ends[0]).unwrap();
        let mut byte = [0];
        assert!(matches!(near.read(&mut byte), Ok(0) | Err(_)));
    }
}
