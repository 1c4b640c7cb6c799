//! Whether another machine has an IPv4 address, and telling the others that we have it now (RFC 5227, shortened).

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::card::Card;
use super::frame::{ETHER_ARP, arp_conflict, arp_request};
use super::packet::{self, BROADCAST_MAC};

/// Probes sent; one may be lost while a switch learns our port.
const PROBES: u32 = 3;
/// Wait after each. RFC 5227 waits seconds; a throw-away VM cannot, and a machine on the link answers within a few ms.
const PROBE_WAIT: Duration = Duration::from_millis(80);
/// Announcements, as in the RFC. They matter here: the next appliance gets the same address with another MAC.
const ANNOUNCEMENTS: u32 = 2;

/// The MAC of the machine that has `address`, if it is not us.
pub(super) fn owner_of(card: &Card, address: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
    let socket = packet::open(card, ETHER_ARP)?;
    let probe = arp_request(card.mac, Ipv4Addr::UNSPECIFIED, address);
    let mut buffer = [0u8; 64];
    for _ in 0..PROBES {
        packet::send(&socket, card, ETHER_ARP, BROADCAST_MAC, &probe)?;
        let until = Instant::now() + PROBE_WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if let Some(size) = packet::receive(&socket, &mut buffer, left)?
                && let Some(mac) = arp_conflict(&buffer[..size], address, card.mac)
            {
                return Ok(Some(mac));
            }
        }
    }
    Ok(None)
}

/// Tells everybody on the link which MAC the address belongs to.
pub(super) fn announce(card: &Card, address: Ipv4Addr) -> io::Result<()> {
    let socket = packet::open(card, ETHER_ARP)?;
    let packet = arp_request(card.mac, address, address);
    for _ in 0..ANNOUNCEMENTS {
        packet::send(&socket, card, ETHER_ARP, BROADCAST_MAC, &packet)?;
    }
    Ok(())
}
