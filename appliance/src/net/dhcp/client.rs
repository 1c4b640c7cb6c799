//! The DHCP client as a state machine: messages and time in, actions out. No I/O, no clock of its own (RFC 2131, 4.4).
//!
//! ```text
//! Selecting --offer--> Requesting --ack--> Probing --free--> Bound --T1--> Renewing --T2--> Rebinding
//!     ^                    |                  |                ^               |                |
//!     |<---- nak, silence--+<-- in use -------+                +----- ack -----+------ ack -----+
//!     +<------------------------------------------------------------- nak, lease over ---------+
//! ```
//!
//! Promises: never asks more often than [`FIRST_RETRY`]; never keeps an address beyond its lease.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::message::{Answer, Kind, LeasedRoute, Request};
use crate::platform::config::Cidr;

/// The first message right after a link comes up is often lost, so the second comes soon.
pub(super) const FIRST_RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(16);
/// Requests for an offered address before we look for another server.
const REQUEST_TRIES: u32 = 4;
/// Pause after a NAK, so that a broken server is not asked in a tight loop.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Pause after declining an address (RFC 2131, 3.1.5): servers set declined addresses aside, and something that answers
/// for every address must not use up all of them.
const DECLINED_PAUSE: Duration = Duration::from_secs(10);
/// Least pause between two attempts to renew. RFC 2131 says 60 s; a job must notice an answer sooner.
const RENEW_RETRY_MIN: Duration = Duration::from_secs(10);
/// Leases shorter than this are treated as this long: nothing sensible renews several times a second.
const LEASE_MIN: Duration = Duration::from_secs(10);
/// A server that names no lease time.
const LEASE_DEFAULT_S: u32 = 3600;
/// RFC 2131: no end.
const LEASE_INFINITE_S: u32 = u32::MAX;
/// Smallest MTU that is believed (RFC 791 asks every machine to take 576 bytes).
const MTU_MIN: u16 = 576;

/// What the server gave us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) struct Lease {
    pub(in crate::net) cidr: Cidr,
    pub(in crate::net) routes: Vec<LeasedRoute>,
    pub(in crate::net) mtu: Option<u16>,
    pub(in crate::net) server: Option<Ipv4Addr>,
    /// `None`: for ever.
    pub(in crate::net) duration: Option<Duration>,
}

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Action {
    /// Send to everybody. From an address if we have one, else as a raw packet.
    Broadcast(Vec<u8>),
    /// Send to the server.
    Unicast(Ipv4Addr, Vec<u8>),
    /// Find out whether another machine has this address; then call [`Client::probed`].
    Probe(Ipv4Addr),
    /// Use this lease: newly got, or renewed, perhaps with other routes.
    Bind(Lease),
    /// Stop using the address. The machine looks for a new one by itself.
    Unbind(Unbound),
}

/// Why a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) enum Unbound {
    /// Nobody renewed it in time.
    Expired,
    /// The server took it back.
    Refused,
}

/// What went wrong lately, for a message to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Trouble {
    /// No server answered so far.
    Silence,
    /// A server refused, in its words.
    Refused(Option<Ipv4Addr>, String),
    /// Another machine, with this MAC, has the address that was offered.
    InUse(Ipv4Addr, [u8; 6]),
    /// A server offered an address that cannot be used.
    BadOffer(Ipv4Addr),
}

enum State {
    Selecting,
    Requesting { offer: Answer, tries: u32 },
    Probing { lease: Lease, answer_to_keep: Times },
    Bound { lease: Lease, times: Times },
    Renewing { lease: Lease, times: Times },
    Rebinding { lease: Lease, times: Times },
}

/// Moments of a lease. `None`: never.
#[derive(Debug, Clone, Copy)]
struct Times {
    renew: Option<Duration>,
    rebind: Option<Duration>,
    expire: Option<Duration>,
}

/// The machine. All times are measured from one arbitrary moment, by the caller.
pub(in crate::net) struct Client {
    mac: [u8; 6],
    random: u64,
    state: State,
    transaction: u32,
    began: Duration,
    retry: Duration,
    wake: Option<Duration>,
    trouble: Trouble,
}

impl Client {
    /// `seed` makes transaction numbers and jitter differ between machines.
    pub(in crate::net) fn new(mac: [u8; 6], seed: u64, now: Duration) -> Client {
        let mut client = Client {
            mac,
            random: seed | 1,
            state: State::Selecting,
            transaction: 0,
            began: now,
            retry: FIRST_RETRY,
            wake: None,
            trouble: Trouble::Silence,
        };
        client.select(now, Duration::ZERO);
        client
    }

    /// When [`Client::tick`] is due, `None` if only a message can change anything.
    pub(in crate::net) fn wake_at(&self) -> Option<Duration> {
        self.wake
    }

    /// What went wrong lately.
    pub(in crate::net) fn trouble(&self) -> &Trouble {
        &self.trouble
    }

    /// True while there is an address to use.
    pub(in crate::net) fn is_bound(&self) -> bool {
        matches!(self.state, State::Bound { .. } | State::Renewing { .. } | State::Rebinding { .. })
    }

    /// True while answers are expected.
    pub(in crate::net) fn is_listening(&self) -> bool {
        !matches!(self.state, State::Bound { .. } | State::Probing { .. })
    }

    /// Time passed.
    pub(in crate::net) fn tick(&mut self, now: Duration) -> Vec<Action> {
        if self.wake.is_none_or(|wake| now < wake) {
            return Vec::new();
        }
        match std::mem::replace(&mut self.state, State::Selecting) {
            State::Selecting => {
                let message = self.request(Kind::Discover, now);
                self.wait_longer(now);
                vec![Action::Broadcast(message.encode())]
            }
            State::Requesting { tries, .. } if tries >= REQUEST_TRIES => {
                self.select(now, Duration::ZERO);
                self.tick(now)
            }
            State::Requesting { offer, tries } => {
                let message = self.take_up(&offer, now);
                self.state = State::Requesting { offer, tries: tries + 1 };
                self.wait_longer(now);
                vec![Action::Broadcast(message.encode())]
            }
            state @ State::Probing { .. } => {
                // Waits for the driver's word, not for time.
                self.state = state;
                self.wake = None;
                Vec::new()
            }
            State::Bound { lease, times } => {
                // The first attempt for this lease starts a new exchange.
                self.transaction = self.next_random() as u32;
                self.began = now;
                self.keep(lease, times, now)
            }
            State::Renewing { lease, times } | State::Rebinding { lease, times } => {
                self.keep(lease, times, now)
            }
        }
    }

    /// A message arrived.
    pub(in crate::net) fn message(&mut self, bytes: &[u8], now: Duration) -> Vec<Action> {
        let Some(answer) = Answer::parse(bytes) else { return Vec::new() };
        if answer.transaction != self.transaction || answer.mac != self.mac {
            return Vec::new();
        }
        match (std::mem::replace(&mut self.state, State::Selecting), answer.kind) {
            (State::Selecting, Kind::Offer) => {
                if !is_usable(answer.address) || answer.server.is_none() {
                    self.trouble = Trouble::BadOffer(answer.address);
                    return Vec::new();
                }
                self.retry = FIRST_RETRY;
                self.wake = Some(now);
                self.state = State::Requesting { offer: answer, tries: 0 };
                self.tick(now)
            }
            (State::Requesting { offer, .. }, Kind::Ack)
                if is_usable(answer.address) && answer.server.is_none_or(|s| Some(s) == offer.server) =>
            {
                let (lease, times) = lease_of(&answer, &offer, now);
                let address = answer.address;
                self.state = State::Probing { lease, answer_to_keep: times };
                self.wake = None;
                vec![Action::Probe(address)]
            }
            (State::Requesting { offer, .. }, Kind::Nak) if answer.server == offer.server => {
                self.refused(&answer, now);
                Vec::new()
            }
            (State::Renewing { lease, .. } | State::Rebinding { lease, .. }, Kind::Ack)
                if IpAddr::V4(answer.address) == lease.cidr.address =>
            {
                let (renewed, times) = lease_of(&answer, &answer, now);
                self.bind(renewed, times)
            }
            (State::Renewing { .. } | State::Rebinding { .. }, Kind::Nak) => {
                self.refused(&answer, now);
                vec![Action::Unbind(Unbound::Refused)]
            }
            (state, _) => {
                self.state = state;
                Vec::new()
            }
        }
    }

    /// The answer to [`Action::Probe`]: the machine that has the address, if any.
    pub(in crate::net) fn probed(&mut self, owner: Option<[u8; 6]>, now: Duration) -> Vec<Action> {
        match (std::mem::replace(&mut self.state, State::Selecting), owner) {
            (State::Probing { lease, answer_to_keep }, None) => self.bind(lease, answer_to_keep),
            (State::Probing { lease, .. }, Some(mac)) => {
                let IpAddr::V4(address) = lease.cidr.address else { return Vec::new() };
                self.trouble = Trouble::InUse(address, mac);
                let mut decline = self.request(Kind::Decline, now);
                decline.requested = Some(address);
                decline.server = lease.server;
                self.select(now, DECLINED_PAUSE);
                vec![Action::Broadcast(decline.encode())]
            }
            (state, _) => {
                self.state = state;
                Vec::new()
            }
        }
    }

    fn bind(&mut self, lease: Lease, times: Times) -> Vec<Action> {
        self.trouble = Trouble::Silence;
        self.wake = times.renew;
        self.state = State::Bound { lease: lease.clone(), times };
        vec![Action::Bind(lease)]
    }

    /// Renews, rebinds or gives up a lease, whichever is due.
    fn keep(&mut self, lease: Lease, times: Times, now: Duration) -> Vec<Action> {
        if times.expire.is_some_and(|at| now >= at) {
            self.select(now, Duration::ZERO);
            let mut actions = vec![Action::Unbind(Unbound::Expired)];
            actions.extend(self.tick(now));
            return actions;
        }
        let mut message = self.request(Kind::Request, now);
        if let IpAddr::V4(address) = lease.cidr.address {
            message.current = Some(address);
        }
        let rebinding = times.rebind.is_some_and(|at| now >= at);
        let next = if rebinding { times.expire } else { times.rebind };
        // RFC 2131, 4.4.5: half of what is left until the next stage, but not too often.
        let left = next.map_or(RETRY_MAX, |at| at.saturating_sub(now));
        self.wake = Some((now + (left / 2).max(RENEW_RETRY_MIN)).min(next.unwrap_or(Duration::MAX)));
        let bytes = message.encode();
        match lease.server.filter(|_| !rebinding) {
            Some(server) => {
                self.state = State::Renewing { lease, times };
                vec![Action::Unicast(server, bytes)]
            }
            None => {
                self.state = State::Rebinding { lease, times };
                vec![Action::Broadcast(bytes)]
            }
        }
    }

    /// Begins from nothing after `pause`.
    fn select(&mut self, now: Duration, pause: Duration) {
        self.state = State::Selecting;
        self.transaction = self.next_random() as u32;
        self.began = now;
        self.retry = FIRST_RETRY;
        self.wake = Some(now + pause);
    }

    fn refused(&mut self, answer: &Answer, now: Duration) {
        self.trouble = Trouble::Refused(answer.server, answer.text.clone().unwrap_or_default());
        self.select(now, REFUSED_PAUSE);
    }

    fn take_up(&mut self, offer: &Answer, now: Duration) -> Request {
        let mut message = self.request(Kind::Request, now);
        message.requested = Some(offer.address);
        message.server = offer.server;
        message
    }

    fn request(&self, kind: Kind, now: Duration) -> Request {
        let seconds = u16::try_from(now.saturating_sub(self.began).as_secs()).unwrap_or(u16::MAX);
        let (transaction, mac) = (self.transaction, self.mac);
        Request { kind, transaction, seconds, mac, current: None, requested: None, server: None }
    }

    /// Doubles the pause, give or take a tenth, so that machines started together do not ask together for ever.
    fn wait_longer(&mut self, now: Duration) {
        let tenth = self.retry / 10;
        let jitter = tenth.mul_f64((self.next_random() % 2001) as f64 / 1000.0);
        self.wake = Some(now + self.retry - tenth + jitter);
        self.retry = (self.retry * 2).min(RETRY_MAX);
    }

    /// xorshift64: enough for numbers that need only differ.
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// The lease in an ACK. What the ACK leaves out is as in the offer.
fn lease_of(ack: &Answer, offer: &Answer, now: Duration) -> (Lease, Times) {
    let seconds = ack.lease_s.or(offer.lease_s).unwrap_or(LEASE_DEFAULT_S);
    let duration = (seconds != LEASE_INFINITE_S).then(|| Duration::from_secs(seconds.into()).max(LEASE_MIN));
    let times = match duration {
        None => Times { renew: None, rebind: None, expire: None },
        Some(whole) => {
            let rebind =
                ack.rebind_s.map(|s| Duration::from_secs(s.into())).filter(|t| *t < whole && !t.is_zero());
            let rebind = rebind.unwrap_or(whole * 7 / 8);
            let renew =
                ack.renew_s.map(|s| Duration::from_secs(s.into())).filter(|t| *t < rebind && !t.is_zero());
            let renew = renew.unwrap_or((whole / 2).min(rebind));
            Times { renew: Some(now + renew), rebind: Some(now + rebind), expire: Some(now + whole) }
        }
    };
    let prefix = ack.prefix.or(offer.prefix).unwrap_or_else(|| class_prefix(ack.address));
    let routes = if ack.routes.is_empty() { offer.routes.clone() } else { ack.routes.clone() };
    let lease = Lease {
        cidr: Cidr { address: IpAddr::V4(ack.address), prefix },
        routes,
        mtu: ack.mtu.or(offer.mtu).filter(|mtu| *mtu >= MTU_MIN),
        server: ack.server.or(offer.server),
        duration,
    };
    (lease, times)
}

/// The network size of the old address classes, for servers that send no mask.
fn class_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..=127 => 8,
        128..=191 => 16,
        _ => 24,
    }
}

/// Whether one machine can have this address.
fn is_usable(address: Ipv4Addr) -> bool {
    !(address.octets()[0] == 0
        || address.is_loopback()
        || address.is_multicast()
        || address.octets()[0] >= 240)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
