//! Why there is no network: sentences for people, codes for programs.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::card::mac_text;
use super::dhcp::Trouble;

/// Each names the card, so that an admin knows which VIF to look at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM has no such card.
    #[error("no network card {number} after {} s (cards seen: {seen}): the VM needs a VIF with that number", .waited.as_secs())]
    NoCard {
        /// XAPI's device number of the VIF.
        number: u32,
        /// How long it was waited for.
        waited: Duration,
        /// The cards that are there.
        seen: String,
    },
    /// The card is not connected to anything.
    #[error("no link on {card}: cable not connected")]
    NoLink {
        /// The kernel's name.
        card: String,
    },
    /// No server gave us an address.
    #[error("no DHCP lease on {card} after {} s: {trouble}", .waited.as_secs())]
    NoLease {
        /// The kernel's name.
        card: String,
        /// Since the link came up.
        waited: Duration,
        /// What was seen meanwhile.
        trouble: DhcpTrouble,
    },
    /// Another machine answers for our address.
    #[error("{address} on {card} is in use by another machine{}", owner_text(.owner))]
    AddressInUse {
        /// The kernel's name.
        card: String,
        /// The address.
        address: IpAddr,
        /// The other machine's MAC, where it is known.
        owner: Option<[u8; 6]>,
    },
    /// No router gave us an IPv6 address.
    #[error("no IPv6 address on {card} after {} s: no router advertised a network", .waited.as_secs())]
    NoAdvertisement {
        /// The kernel's name.
        card: String,
        /// Since the link came up.
        waited: Duration,
    },
    /// The settings leave this family out.
    #[error("the orchestrator's address is {family}, but the settings of {card} give it no {family} address")]
    FamilyOff {
        /// The kernel's name.
        card: String,
        /// IPv4 or IPv6.
        family: &'static str,
    },
    /// The kernel refused a setting.
    #[error("{card}: {what}")]
    Setting {
        /// The kernel's name.
        card: String,
        /// What was to be set.
        what: String,
        /// Why it was not.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("start the network thread")]
    Thread(#[source] io::Error),
    /// None of the cards came to a result in time. A bug, turned into an error.
    #[error("the network was not ready after {} s", .waited.as_secs())]
    Slow {
        /// How long it was waited for.
        waited: Duration,
    },
}

/// What a DHCP client saw instead of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DhcpTrouble {
    /// Nothing.
    #[error("no server answered")]
    Silence,
    /// A refusal.
    #[error("server {} refused{}", server_text(.server), words_text(.words))]
    Refused {
        /// The server.
        server: Option<Ipv4Addr>,
        /// Its reason, often empty.
        words: String,
    },
    /// An offer that no machine can take.
    #[error("a server offered {address}, which is not the address of a machine, or did not name itself")]
    BadOffer {
        /// The address.
        address: Ipv4Addr,
    },
}

impl Error {
    /// Short code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Error::NoCard { .. } => "no-nic",
            Error::NoLink { .. } => "no-link",
            Error::NoLease { .. } => "no-dhcp-lease",
            Error::AddressInUse { .. } => "address-in-use",
            Error::NoAdvertisement { .. } => "no-ipv6-address",
            Error::FamilyOff { .. } => "bad-address",
            Error::Setting { .. } | Error::Thread(_) | Error::Slow { .. } => "network",
        }
    }

    /// The reason why DHCP gave no address on `card` in the time `waited`.
    pub(super) fn no_lease(card: &str, waited: Duration, trouble: &Trouble) -> Error {
        let card = card.to_owned();
        let trouble = match trouble {
            Trouble::InUse(address, mac) => {
                return Error::AddressInUse { card, address: (*address).into(), owner: Some(*mac) };
            }
            Trouble::Silence => DhcpTrouble::Silence,
            Trouble::Refused(server, words) => DhcpTrouble::Refused { server: *server, words: words.clone() },
            Trouble::BadOffer(address) => DhcpTrouble::BadOffer { address: *address },
        };
        Error::NoLease { card, waited, trouble }
    }
}

fn owner_text(owner: &Option<[u8; 6]>) -> String {
    owner.map(|mac| format!(", MAC {}", mac_text(mac))).unwrap_or_default()
}

fn server_text(server: &Option<Ipv4Addr>) -> String {
    server.map_or_else(|| "without a name".to_owned(), |s| s.to_string())
}

fn words_text(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" ({words})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAITED: Duration = Duration::from_secs(20);

    #[test]
    fn dhcp_troubles_as_sentences() {
        let text = |trouble: Trouble| Error::no_lease("eth0", WAITED, &trouble).to_string();
        assert_eq!(text(Trouble::Silence), "no DHCP lease on eth0 after 20 s: no server answered");
        assert_eq!(
            text(Trouble::Refused(Some([192, 0, 2, 1].into()), "pool empty".to_owned())),
            "no DHCP lease on eth0 after 20 s: server 192.0.2.1 refused (pool empty)"
        );
        let in_use =
            Error::no_lease("eth0", WAITED, &Trouble::InUse([192, 0, 2, 7].into(), [2, 0, 0, 0, 0, 9]));
        assert_eq!(in_use.code(), "address-in-use");
        assert_eq!(
            in_use.to_string(),
            "192.0.2.7 on eth0 is in use by another machine, MAC 02:00:00:00:00:09"
        );
    }

    #[test]
    fn a_missing_cable_is_called_that() {
        let error = Error::NoLink { card: "eth0".to_owned() };
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            ("no-link", "no link on eth0: cable not connected")
        );
    }
}
