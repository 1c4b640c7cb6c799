//! IPv4 and UDP headers around a DHCP message, and ARP packets. No I/O. Facts: RFC 768, 791, 826, 5227.
//!
//! Needed because a card without an address has no sockets that could carry these.

use std::net::Ipv4Addr;

/// EtherType of IPv4.
pub(super) const ETHER_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub(super) const ETHER_ARP: u16 = 0x0806;
/// The port DHCP servers listen on.
pub(super) const SERVER_PORT: u16 = 67;
/// The port DHCP clients listen on.
pub(super) const CLIENT_PORT: u16 = 68;

const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_UDP: u8 = 17;
const TIME_TO_LIVE: u8 = 64;
const DO_NOT_FRAGMENT: u16 = 0x4000;
const ARP_SIZE: usize = 28;

/// A broadcast UDP packet from the client port of a machine without an address to the server port.
pub(super) fn broadcast_to_server(payload: &[u8]) -> Vec<u8> {
    let udp_size = (UDP_HEADER + payload.len()) as u16;
    let (source, destination) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let mut udp = Vec::with_capacity(usize::from(udp_size));
    for field in [CLIENT_PORT, SERVER_PORT, udp_size, 0] {
        udp.extend_from_slice(&field.to_be_bytes());
    }
    udp.extend_from_slice(payload);
    let mut pseudo = Vec::from(source.octets());
    pseudo.extend_from_slice(&destination.octets());
    pseudo.extend_from_slice(&[0, PROTOCOL_UDP]);
    pseudo.extend_from_slice(&udp_size.to_be_bytes());
    pseudo.extend_from_slice(&udp);
    // RFC 768: a sum of zero is sent as all ones, zero means "none".
    let sum = match checksum(&pseudo) {
        0 => u16::MAX,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());

    let mut ip = vec![0x45, 0];
    for field in [IP_HEADER as u16 + udp_size, 0, DO_NOT_FRAGMENT] {
        ip.extend_from_slice(&field.to_be_bytes());
    }
    ip.extend_from_slice(&[TIME_TO_LIVE, PROTOCOL_UDP, 0, 0]);
    ip.extend_from_slice(&source.octets());
    ip.extend_from_slice(&destination.octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(&udp);
    ip
}

/// The payload of a UDP packet from the server port to the client port, `None` for any other packet.
///
/// The UDP checksum is not looked at: between machines of one host it is often left unfinished, because the packet
/// never meets a wire.
pub(super) fn payload_to_client(packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IP_HEADER {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff;
    if *packet.get(9)? != PROTOCOL_UDP || fragment != 0 || checksum(packet.get(..header)?) != 0 {
        return None;
    }
    let udp = packet.get(header..total)?;
    let field = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    if field(0)? != SERVER_PORT || field(2)? != CLIENT_PORT {
        return None;
    }
    udp.get(UDP_HEADER..usize::from(field(4)?))
}

/// The Internet checksum (RFC 1071): 0 over data that contains its own right checksum.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|c| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// "Who has `target`?" A sender address of zero is a probe (RFC 5227), our own an announcement.
pub(super) fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, address lengths 6 and 4, operation 1 = request.
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend_from_slice(&mac);
    packet.extend_from_slice(&sender.octets());
    packet.extend_from_slice(&[0; 6]);
    packet.extend_from_slice(&target.octets());
    packet
}

/// The other machine that has, or is about to take, the address `ours`, if this ARP packet shows one.
pub(super) fn arp_conflict(packet: &[u8], ours: Ipv4Addr, our_mac: [u8; 6]) -> Option<[u8; 6]> {
    let packet = packet.first_chunk::<ARP_SIZE>()?;
    if packet[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let mac = [packet[8], packet[9], packet[10], packet[11], packet[12], packet[13]];
    let sender = Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17]);
    let target = Ipv4Addr::new(packet[24], packet[25], packet[26], packet[27]);
    let probes_ours = sender.is_unspecified() && target == ours && packet[6..8] == [0, 1];
    (mac != our_mac && (sender == ours || probes_ours)).then_some(mac)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

    /// Turns a packet of ours into one a server could have sent.
    fn from_server(payload: &[u8]) -> Vec<u8> {
        let mut packet = broadcast_to_server(payload);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet
    }

    /// The example of the IPv4 header in public texts on the checksum: sum 0xb861.
    #[test]
    fn golden_checksum() {
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        assert_eq!(checksum(&header), 0);
        let mut without = header;
        without[10..12].fill(0);
        assert_eq!(checksum(&without), 0xb861);
    }

    #[test]
    fn golden_broadcast_headers() {
        let packet = broadcast_to_server(b"odd");
        #[rustfmt::skip]
        assert_eq!(packet, [
            0x45, 0, 0, 31,  0, 0, 0x40, 0,  64, 17, 0x3a, 0xcf,  0, 0, 0, 0,  255, 255, 255, 255,
            0, 68, 0, 67,  0, 11, 0x2b, 0xed,  b'o', b'd', b'd',
        ]);
    }

    #[test]
    fn only_whole_packets_from_server_to_client_count() {
        let good = from_server(b"dhcp");
        assert_eq!(payload_to_client(&good), Some(&b"dhcp"[..]));
        let mut padded = good.clone();
        padded.extend_from_slice(&[0; 18]);
        assert_eq!(payload_to_client(&padded), Some(&b"dhcp"[..]), "Ethernet pads short frames");
        assert_eq!(payload_to_client(&good[..good.len() - 1]), None);
        assert_eq!(payload_to_client(&broadcast_to_server(b"dhcp")), None, "our own ports");
        for (at, value) in [(0, 0x65), (0, 0x44), (9, 6), (6, 0x20), (11, 0)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(payload_to_client(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn golden_probe() {
        let probe = arp_request(MAC, Ipv4Addr::UNSPECIFIED, OURS);
        assert_eq!(
            probe,
            [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 7]
        );
    }

    #[test]
    fn a_conflict_is_another_machine_with_or_probing_for_our_address() {
        let request = |mac, sender: [u8; 4], target: Ipv4Addr| arp_request(mac, sender.into(), target);
        assert_eq!(
            arp_conflict(&request(OTHER, OURS.octets(), [192, 0, 2, 1].into()), OURS, MAC),
            Some(OTHER)
        );
        assert_eq!(arp_conflict(&request(OTHER, [0; 4], OURS), OURS, MAC), Some(OTHER));
        assert_eq!(arp_conflict(&request(MAC, [0; 4], OURS), OURS, MAC), None, "our own probe");
        assert_eq!(
            arp_conflict(&request(OTHER, [192, 0, 2, 1], OURS), OURS, MAC),
            None,
            "somebody asks for us"
        );
    }

    proptest! {
        #[test]
        fn any_packet_is_survived(packet in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = payload_to_client(&packet);
            let _ = arp_conflict(&packet, OURS, MAC);
        }

        #[test]
        fn payloads_come_back(payload in proptest::collection::vec(any::<u8>(), 0..600)) {
            let packet = from_server(&payload);
            prop_assert_eq!(payload_to_client(&packet), Some(&payload[..]));
        }
    }
}
