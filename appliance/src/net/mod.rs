//! The network of the appliance: links, addresses and routes, kept alive for the whole job.
//!
//! Owns: one thread per card that configures it ([`nic`]) and renews what must be renewed; the list of what is in use.
//! Promises: an error names the card and what to look at; every wait has a limit; a lost lease or cable is noticed and
//! told. Never: resolves names, listens on a port, changes a card that has no settings, but for
//! the loopback card, which it switches on.

mod arp;
mod card;
mod dhcp;
mod error;
mod frame;
pub(crate) mod fuzzing;
mod inet6;
mod netlink;
mod nic;
mod packet;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use error::{DhcpTrouble, Error};

use crate::platform::{BootConfig, Milestones};

/// Longest wait for all cards together. Each card comes to a result sooner: its limits add up to less.
const UP_LIMIT: Duration = Duration::from_secs(60);

/// The running network. Clones share it.
#[derive(Clone)]
pub struct Network {
    shared: Arc<Shared>,
}

/// Tells when addresses or links change. Each one sees every change that comes after it was made.
pub struct Changes {
    shared: Arc<Shared>,
    seen: u64,
}

/// Address families that are of use to reach the orchestrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

struct Shared {
    cards: Mutex<Cards>,
    changed: Condvar,
}

struct Cards {
    generation: u64,
    list: Vec<CardStatus>,
}

/// What one card's thread tells the rest.
#[derive(Debug, Default)]
struct CardStatus {
    /// XAPI's device number of the VIF.
    number: u32,
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    failed_v4: Option<Error>,
    failed_v6: Option<Error>,
    trouble: Option<String>,
}

impl Network {
    /// Configures every card of the settings and returns when the orchestrator can be reached by one of its addresses,
    /// as far as our own side goes. What is not ready yet goes on in the background.
    pub fn up(config: &BootConfig, milestones: Milestones) -> Result<Network, Error> {
        nic::switch_on_loopback();
        let wanted = Families { v4: config.needs_v4(), v6: config.needs_v6() };
        let list =
            config.nics.iter().map(|nic| CardStatus { number: nic.index, ..CardStatus::default() }).collect();
        let shared =
            Arc::new(Shared { cards: Mutex::new(Cards { generation: 0, list }), changed: Condvar::new() });
        for (position, settings) in config.nics.iter().enumerate() {
            let board = nic::Board::new(Arc::clone(&shared), position);
            let task = nic::Task::new(settings.clone(), PathBuf::from("/"), board, milestones.clone());
            thread::Builder::new()
                .name(format!("nic-{}", settings.index))
                .spawn(move || task.run())
                .map_err(Error::Thread)?;
        }
        let network = Network { shared };
        network.wait_ready(wanted, UP_LIMIT)?;
        milestones.mark("network up");
        Ok(network)
    }

    /// All addresses in use, IPv4 first.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let cards = self.shared.lock();
        let v4 = cards.list.iter().flat_map(|card| card.v4.iter());
        v4.chain(cards.list.iter().flat_map(|card| card.v6.iter())).copied().collect()
    }

    /// The addresses of each card, by XAPI's device number of the VIF.
    pub fn addresses_by_nic(&self) -> Vec<(u32, Vec<IpAddr>)> {
        let cards = self.shared.lock();
        cards
            .list
            .iter()
            .map(|card| (card.number, card.v4.iter().chain(&card.v6).copied().collect()))
            .collect()
    }

    /// What is wrong with the network just now, as a sentence. To be added to the error of a broken connection.
    pub fn trouble(&self) -> Option<String> {
        let cards = self.shared.lock();
        let all: Vec<&str> = cards.list.iter().filter_map(|card| card.trouble.as_deref()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Changes from now on.
    pub fn changes(&self) -> Changes {
        let seen = self.shared.lock().generation;
        Changes { shared: Arc::clone(&self.shared), seen }
    }

    fn wait_ready(&self, wanted: Families, limit: Duration) -> Result<(), Error> {
        let until = Instant::now() + limit;
        let mut cards = self.shared.lock();
        loop {
            if cards.list.iter().any(|card| card.is_ready(wanted)) {
                return Ok(());
            }
            if cards.list.iter().all(|card| card.has_failed(wanted)) {
                let reason = cards.list.iter_mut().find_map(|card| card.take_failure(wanted));
                return Err(reason.unwrap_or(Error::Slow { waited: limit }));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Slow { waited: limit });
            }
            let waited = self.shared.changed.wait_timeout(cards, left);
            cards = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Changes {
    /// Waits for a change since the last call; false after `limit` without one.
    pub fn wait(&mut self, limit: Duration) -> bool {
        let cards = self.shared.lock();
        let unchanged = |cards: &mut Cards| cards.generation == self.seen;
        let (cards, waited) = self
            .shared
            .changed
            .wait_timeout_while(cards, limit, unchanged)
            .unwrap_or_else(PoisonError::into_inner);
        self.seen = cards.generation;
        !waited.timed_out()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Cards> {
        // A status is replaced field by field, each whole: a panic in between leaves nothing broken.
        self.cards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, position: usize, edit: impl FnOnce(&mut CardStatus)) {
        let mut cards = self.lock();
        if let Some(card) = cards.list.get_mut(position) {
            edit(card);
        }
        cards.generation += 1;
        self.changed.notify_all();
    }
}

impl CardStatus {
    fn is_ready(&self, wanted: Families) -> bool {
        (wanted.v4 && !self.v4.is_empty()) || (wanted.v6 && !self.v6.is_empty())
    }

    fn has_failed(&self, wanted: Families) -> bool {
        (!wanted.v4 || self.failed_v4.is_some()) && (!wanted.v6 || self.failed_v6.is_some())
    }

    fn take_failure(&mut self, wanted: Families) -> Option<Error> {
        let v4 = if wanted.v4 { self.failed_v4.take() } else { None };
        v4.or_else(|| if wanted.v6 { self.failed_v6.take() } else { None })
    }
}

#[cfg(test)]
mod blocked_tests;
#[cfg(test)]
mod cable_tests;

#[cfg(test)]
mod tests {
    use super::*;

    fn network(cards: usize) -> Network {
        let list = (0..cards).map(|n| CardStatus { number: n as u32, ..CardStatus::default() }).collect();
        Network {
            shared: Arc::new(Shared {
                cards: Mutex::new(Cards { generation: 0, list }),
                changed: Condvar::new(),
            }),
        }
    }

    fn no_link(card: &str) -> Option<Error> {
        Some(Error::NoLink { card: card.to_owned() })
    }

    const V4: Families = Families { v4: true, v6: false };
    const BOTH: Families = Families { v4: true, v6: true };

    #[test]
    fn one_address_of_a_wanted_family_is_enough() {
        let network = network(2);
        network.shared.change(0, |card| card.failed_v4 = no_link("eth0"));
        network.shared.change(1, |card| card.v6 = vec!["2001:db8::7".parse().unwrap()]);
        assert!(matches!(network.wait_ready(V4, Duration::ZERO), Err(Error::Slow { .. })));
        network.wait_ready(BOTH, Duration::ZERO).unwrap();
        network.shared.change(1, |card| card.v4 = vec!["192.0.2.7".parse().unwrap()]);
        network.wait_ready(V4, Duration::ZERO).unwrap();
        let all: Vec<IpAddr> = vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        assert_eq!(network.addresses(), all);
    }

    #[test]
    fn the_first_cards_reason_is_told_once_all_have_failed() {
        let network = network(2);
        network.shared.change(0, |card| card.failed_v4 = no_link("eth0"));
        network.shared.change(1, |card| card.failed_v4 = no_link("eth1"));
        let error = network.wait_ready(V4, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "no link on eth0: cable not connected");
    }

    #[test]
    fn a_change_between_two_waits_is_not_missed() {
        let network = network(1);
        let mut changes = network.changes();
        assert!(!changes.wait(Duration::ZERO));
        network.shared.change(0, |card| card.trouble = Some("no link on eth0".to_owned()));
        assert!(changes.wait(Duration::ZERO));
        assert!(!changes.wait(Duration::ZERO));
        assert_eq!(network.trouble().as_deref(), Some("no link on eth0"));
    }
}
