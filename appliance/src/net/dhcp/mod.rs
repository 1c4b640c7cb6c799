//! DHCPv4 on one card: [`client`] decides, this drives it with sockets and time.
//!
//! Owns: the sockets. Until there is an address they carry whole packets, because the kernel would drop ours; to
//! renew, an ordinary UDP socket. Promises: while nothing is asked, nothing is open. Never: listens for requests.

mod client;
mod message;

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

pub(super) use client::{Action, Client, Lease, Trouble, Unbound};
pub(super) use message::LeasedRoute;
#[cfg(test)]
pub(super) use message::tests::answer as answer_for_tests;

use super::arp;
use super::card::Card;
use super::frame::{CLIENT_PORT, ETHER_IPV4, SERVER_PORT, broadcast_to_server, payload_to_client};
use super::packet::{self, BROADCAST_MAC};
use crate::platform::clock;

/// Largest packet that is read; a DHCP message we allow is smaller.
const PACKET_MAX: usize = 2048;
/// Packets that are read before time is looked at again: a flood must not stop the retries.
const BURST_MAX: u32 = 64;

/// What changed for the card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Use this lease from now on.
    Bind(Lease),
    /// Stop using the address.
    Unbind(Unbound),
}

enum Socket {
    Closed,
    /// Carries whole IPv4 packets.
    Raw(OwnedFd),
    Udp(UdpSocket),
}

/// A DHCP client at work.
pub(super) struct Driver {
    card: Card,
    client: Client,
    socket: Socket,
}

impl Driver {
    pub(super) fn new(card: Card, seed: u64) -> Driver {
        let client = Client::new(card.mac, seed, clock::uptime());
        Driver { card, client, socket: Socket::Closed }
    }

    /// What went wrong lately.
    pub(super) fn trouble(&self) -> &Trouble {
        self.client.trouble()
    }

    /// Does what is due, then waits for messages, `wait` at most.
    pub(super) fn step(&mut self, wait: Duration) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        let actions = self.client.tick(clock::uptime());
        self.perform(actions, &mut changes)?;
        let now = clock::uptime();
        let wait = self.client.wake_at().map_or(wait, |wake| wait.min(wake.saturating_sub(now)));
        if !changes.is_empty() {
            return Ok(changes);
        }
        if !self.client.is_listening() {
            self.socket = Socket::Closed;
            thread::sleep(wait);
            return Ok(changes);
        }
        let mut buffer = [0u8; PACKET_MAX];
        let mut wait = wait;
        for _ in 0..BURST_MAX {
            let Some(size) = self.receive(&mut buffer, wait)? else { break };
            let payload = match &self.socket {
                Socket::Raw(_) => payload_to_client(&buffer[..size]),
                _ => Some(&buffer[..size]),
            };
            if let Some(payload) = payload {
                let actions = self.client.message(payload, clock::uptime());
                self.perform(actions, &mut changes)?;
            }
            wait = Duration::ZERO;
        }
        Ok(changes)
    }

    fn perform(&mut self, actions: Vec<Action>, changes: &mut Vec<Change>) -> io::Result<()> {
        let mut queue = VecDeque::from(actions);
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Broadcast(bytes) if self.client.is_bound() => {
                    self.send_udp(Ipv4Addr::BROADCAST, &bytes)?
                }
                Action::Broadcast(bytes) => self.send_raw(&bytes)?,
                Action::Unicast(server, bytes) => self.send_udp(server, &bytes)?,
                Action::Probe(address) => {
                    let owner = arp::owner_of(&self.card, address)?;
                    queue.extend(self.client.probed(owner, clock::uptime()));
                }
                Action::Bind(lease) => changes.push(Change::Bind(lease)),
                Action::Unbind(why) => changes.push(Change::Unbind(why)),
            }
        }
        Ok(())
    }

    fn send_raw(&mut self, message: &[u8]) -> io::Result<()> {
        if !matches!(self.socket, Socket::Raw(_)) {
            self.socket = Socket::Raw(packet::open(&self.card, ETHER_IPV4)?);
        }
        let Socket::Raw(socket) = &self.socket else { return Ok(()) };
        packet::send(socket, &self.card, ETHER_IPV4, BROADCAST_MAC, &broadcast_to_server(message))
    }

    fn send_udp(&mut self, to: Ipv4Addr, message: &[u8]) -> io::Result<()> {
        if !matches!(self.socket, Socket::Udp(_)) {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT))?;
            setsockopt(&socket, sockopt::BindToDevice, &self.card.name.clone().into())?;
            socket.set_broadcast(true)?;
            self.socket = Socket::Udp(socket);
        }
        let Socket::Udp(socket) = &self.socket else { return Ok(()) };
        match socket.send_to(message, (to, SERVER_PORT)) {
            // No way to the server now: the same as a lost message, the machine asks again.
            Err(e) if matches!(e.kind(), ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable) => {
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Bytes of the next packet, `None` after `wait`.
    fn receive(&mut self, buffer: &mut [u8], wait: Duration) -> io::Result<Option<usize>> {
        match &self.socket {
            Socket::Closed => {
                thread::sleep(wait);
                Ok(None)
            }
            Socket::Raw(socket) => packet::receive(socket, buffer, wait),
            Socket::Udp(socket) => {
                // Zero would mean "for ever".
                socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
                match socket.recv_from(buffer) {
                    Ok((size, SocketAddr::V4(from))) if from.port() == SERVER_PORT => Ok(Some(size)),
                    // From another port: an empty message, which is no answer.
                    Ok(_) => Ok(Some(0)),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
                    // A server that is gone answers with an ICMP error.
                    Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(Some(0)),
                    Err(e) => Err(e),
                }
            }
        }
    }
}
