//! Doors for `tests/fuzz`: packets from the link and answers of DHCP servers, without a card.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::dhcp::{Action, Client};
use super::frame::{arp_conflict, payload_to_client};
use super::{inet6, netlink};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
/// Where the transaction's number and our card's address stand in a DHCP message (RFC 2131, figure 1).
const TRANSACTION: std::ops::Range<usize> = 4..8;
const CARD: std::ops::Range<usize> = 28..34;

/// One packet, taken for everything that the appliance reads packets as.
pub fn link_packets(bytes: &[u8]) {
    if let Some(payload) = payload_to_client(bytes) {
        assert!(payload.len() < bytes.len(), "the headers are no payload");
    }
    if let Some(mac) = arp_conflict(bytes, OURS, MAC) {
        assert_ne!(mac, MAC, "nobody is in conflict with himself");
    }
    let _ = netlink::acknowledgement(bytes, 1);
    let _ = inet6::parse(&String::from_utf8_lossy(bytes), "eth0");
}

/// A whole exchange with a DHCP server: steps of one byte for what happens, two for a size, and that many bytes.
///
/// The transaction's number and the card are put into most messages, because no server's answer passes without them and
/// no search would find them.
pub fn dhcp_exchange(mut steps: &[u8]) {
    let mut now = Duration::from_secs(1);
    let mut client = Client::new(MAC, 7, now);
    let mut transaction = [0; 4];
    let mut actions = client.tick(now);
    loop {
        for action in actions.drain(..) {
            match action {
                Action::Broadcast(message) | Action::Unicast(_, message) => {
                    assert!(message.len() >= 300, "relays drop shorter messages");
                    transaction.copy_from_slice(&message[TRANSACTION]);
                }
                Action::Bind(lease) => {
                    let IpAddr::V4(address) = lease.cidr.address else { panic!("DHCPv4 gave {lease:?}") };
                    assert!(!address.is_unspecified() && !address.is_multicast(), "{lease:?}");
                    assert!((1..=32).contains(&lease.cidr.prefix), "{lease:?}");
                    assert!(lease.routes.iter().all(|route| route.prefix <= 32), "{lease:?}");
                }
                Action::Probe(_) | Action::Unbind(_) => {}
            }
        }
        let Some(([kind, low, high], rest)) = steps.split_first_chunk() else { return };
        let size = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (body, rest) = rest.split_at(size);
        steps = rest;
        actions = match kind % 4 {
            0 => {
                let mut message = body.to_vec();
                if message.len() >= CARD.end {
                    message[TRANSACTION].copy_from_slice(&transaction);
                    message[CARD].copy_from_slice(&MAC);
                }
                client.message(&message, now)
            }
            1 => client.message(body, now),
            2 => {
                let millis = body.first_chunk().map_or(500, |bytes| u32::from_le_bytes(*bytes));
                now += Duration::from_millis(millis.into());
                client.tick(now)
            }
            _ => client.probed(body.first_chunk().copied(), now),
        };
    }
}
