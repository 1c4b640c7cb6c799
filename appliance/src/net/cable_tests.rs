//! A card's whole thread on a cable of its own, in a network namespace: real packets, a hand-made DHCP server or router
//! at the other end, and the kernel's tables afterwards.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::card::Card;
use super::dhcp::answer_for_tests as answer;
use super::frame::ETHER_IPV4;
use super::inet6::{self, Readiness};
use super::netlink::Netlink;
use super::packet::{self, BROADCAST_MAC};
use super::{CardStatus, Cards, Error, Families, Network, Shared, nic};
use crate::platform::Milestones;
use crate::platform::config::{Cidr, Mode, NicSettings};

pub(super) const OURS: [u8; 4] = [192, 0, 2, 7];
pub(super) const SERVER: [u8; 4] = [192, 0, 2, 1];
const NEAR: (u32, &str, [u8; 6]) = (10, "abd0", [2, 0, 0, 0, 0, 0x0a]);
pub(super) const FAR: (u32, &str, [u8; 6]) = (11, "abd1", [2, 0, 0, 0, 0, 0x0b]);
pub(super) const V4: Families = Families { v4: true, v6: false };
const V6: Families = Families { v4: false, v6: true };
/// EtherType of IPv6, and where everybody on the link hears ff02::1.
const ETHER_IPV6: u16 = 0x86dd;
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Long for a loaded machine; what is waited for takes a fraction of a second.
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// A cable in a namespace of this thread's own, and a directory that stands for its sysfs.
pub(super) struct Lab {
    netlink: Netlink,
    root: tempfile::TempDir,
}

impl Lab {
    pub(super) fn new() -> Option<Lab> {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: no network namespace for this test: {error}");
            return None;
        }
        let mut netlink = Netlink::open().unwrap();
        if let Err(error) = netlink.add_cable([NEAR, FAR]) {
            println!("skipped: this kernel makes no cable: {error}");
            return None;
        }
        netlink.set_up(FAR.0).unwrap();
        let root = tempfile::tempdir().unwrap();
        for (index, name, mac) in [NEAR, FAR] {
            let dir = root.path().join("sys/class/net").join(name);
            fs::create_dir_all(&dir).unwrap();
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            for (file, value) in
                [("type", "1"), ("carrier", "1"), ("address", &mac), ("ifindex", &index.to_string())]
            {
                fs::write(dir.join(file), value).unwrap();
            }
            symlink(format!("../vif-{}", index - NEAR.0), dir.join("device")).unwrap();
        }
        Some(Lab { netlink, root })
    }

    /// Starts the near card's thread, in this thread's namespace. It runs until the process ends.
    pub(super) fn start(&self, mode: Mode, mtu: Option<u32>, ipv6_auto: bool) -> (Network, Milestones) {
        self.start_card(0, mode, mtu, ipv6_auto)
    }

    /// The same of the near card (0) or the far one (1).
    fn start_card(&self, index: u32, mode: Mode, mtu: Option<u32>, ipv6_auto: bool) -> (Network, Milestones) {
        let list = vec![CardStatus::default()];
        let cards = Mutex::new(Cards { generation: 0, list });
        let shared = Arc::new(Shared { cards, changed: Condvar::new() });
        let board = nic::Board::new(Arc::clone(&shared), 0);
        let settings = NicSettings { index, mode, mtu, ipv6_auto };
        let milestones = Milestones::default();
        let task = nic::Task::new(settings, self.root.path().to_owned(), board, milestones.clone());
        thread::spawn(move || task.run());
        (Network { shared }, milestones)
    }

    pub(super) fn far(&self) -> Card {
        Card::find(self.root.path(), 1).unwrap()
    }
}

/// Kinds of DHCP messages.
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;

/// A DHCP server of one address.
struct Server {
    card: Card,
    socket: OwnedFd,
}

impl Server {
    fn new(card: Card) -> Server {
        Server { socket: packet::open(&card, ETHER_IPV4).unwrap(), card }
    }

    /// Answers every discover with an offer and every request with an acknowledgement, until a message of this kind was
    /// seen. A client that is not answered at once asks again.
    fn serve_until(&self, wanted: u8) {
        let until = Instant::now() + LIMIT;
        let mut buffer = [0u8; 2048];
        loop {
            assert!(Instant::now() < until, "the client says nothing");
            let Some(size) = packet::receive(&self.socket, &mut buffer, Duration::from_secs(1)).unwrap()
            else {
                continue;
            };
            // IPv4 without options, UDP, to the server's port.
            let packet = &buffer[..size];
            if size < 28 + 243 || packet[9] != 17 || packet[22..24] != [0, 67] {
                continue;
            }
            let message = &packet[28..];
            let transaction = u32::from_be_bytes(message[4..8].try_into().unwrap());
            let kind = message[242];
            if let Some(reply) = [(1, 2), (3, 5)].into_iter().find(|(asked, _)| *asked == kind) {
                let answer = answer(reply.1, transaction, NEAR.2, OURS, &OPTIONS);
                packet::send(&self.socket, &self.card, ETHER_IPV4, BROADCAST_MAC, &to_client(&answer))
                    .unwrap();
            }
            if kind == wanted {
                return;
            }
        }
    }
}

/// A broadcast UDP packet of the server, made here by hand.
fn to_client(payload: &[u8]) -> Vec<u8> {
    let size = |extra: usize| u16::try_from(payload.len() + extra).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&size(28));
    packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&SERVER);
    packet.extend_from_slice(&[255; 4]);
    let sum: u32 = packet.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(&[0, 67, 0, 68]);
    packet.extend_from_slice(&size(8));
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// Lines of the kernel's table of routes: card, network, router, mask, the last three as the table has them.
fn routes() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/route").unwrap();
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {} {}", fields[0], fields[1], fields[2], fields[7])
    };
    table.lines().skip(1).map(line).collect()
}

fn hex(address: [u8; 4]) -> String {
    format!("{:08X}", u32::from_le_bytes(address))
}

const OPTIONS: [&[u8]; 6] = [
    &[54, 4, 192, 0, 2, 1],
    &[1, 4, 255, 255, 255, 0],
    &[51, 4, 0, 0, 14, 16],
    // Not looked at where there are classless routes.
    &[3, 4, 192, 0, 2, 99],
    // 198.51.100.0/24 by 192.0.2.3, everything else by 192.0.2.1.
    &[121, 13, 24, 198, 51, 100, 192, 0, 2, 3, 0, 192, 0, 2, 1],
    // An MTU of 1400.
    &[26, 2, 5, 120],
];

#[test]
fn a_lease_with_classless_routes_and_an_mtu_stands_in_the_kernel() {
    let Some(lab) = Lab::new() else { return };
    let server = Server::new(lab.far());
    let (network, milestones) = lab.start(Mode::Dhcp, Some(9000), false);
    server.serve_until(REQUEST);
    network.wait_ready(V4, LIMIT).unwrap();
    assert_eq!(network.addresses(), [IpAddr::from(OURS)]);
    let found = routes();
    for expected in [
        format!("abd0 {} {} {}", hex([192, 0, 2, 0]), hex([0; 4]), hex([255, 255, 255, 0])),
        format!("abd0 {} {} {}", hex([198, 51, 100, 0]), hex([192, 0, 2, 3]), hex([255, 255, 255, 0])),
        format!("abd0 {} {} {}", hex([0; 4]), hex(SERVER), hex([0; 4])),
    ] {
        assert!(found.contains(&expected), "{expected} in {found:#?}");
    }
    assert!(!found.iter().any(|line| line.contains(&hex([192, 0, 2, 99]))), "{found:#?}");
    let names: Vec<String> = milestones.list().into_iter().map(|(name, _)| name).collect();
    // The settings' first, then what the server says is less.
    let mtus: Vec<&String> = names.iter().filter(|name| name.starts_with("MTU")).collect();
    assert_eq!(mtus, ["MTU 9000 on abd0", "MTU 1400 on abd0"], "{names:?}");
    let mtu = fs::read_to_string("/proc/sys/net/ipv6/conf/abd0/mtu").unwrap();
    assert_eq!(mtu.trim(), "1400");
}

#[test]
fn an_address_that_another_machine_answers_for_is_declined() {
    let Some(mut lab) = Lab::new() else { return };
    lab.netlink.add_address(FAR.0, Cidr { address: OURS.into(), prefix: 24 }).unwrap();
    let server = Server::new(lab.far());
    let (network, _) = lab.start(Mode::Dhcp, None, false);
    server.serve_until(DECLINE);
    assert_eq!(network.addresses(), Vec::<IpAddr>::new());
}

#[test]
fn a_fixed_address_that_another_machine_has_is_refused_with_its_mac() {
    let Some(mut lab) = Lab::new() else { return };
    lab.netlink.add_address(FAR.0, Cidr { address: OURS.into(), prefix: 24 }).unwrap();
    let fixed = |address: [u8; 4]| Mode::Static {
        addresses: vec![Cidr { address: address.into(), prefix: 24 }],
        gateways: vec![Ipv4Addr::from(SERVER).into()],
    };
    let (network, _) = lab.start(fixed(OURS), None, false);
    let error = network.wait_ready(V4, LIMIT).unwrap_err();
    assert_eq!(error.code(), "address-in-use");
    assert!(matches!(error, Error::AddressInUse { owner: Some(mac), .. } if mac == FAR.2), "{error}");
    // A free one is taken, and the route stands.
    let (network, _) = lab.start(fixed([192, 0, 2, 8]), None, false);
    network.wait_ready(V4, LIMIT).unwrap();
    let default = format!("abd0 {} {} {}", hex([0; 4]), hex(SERVER), hex([0; 4]));
    assert!(routes().contains(&default), "{:#?}", routes());
}

/// A router's advertisement (RFC 4861, 4.2) of 2001:db8:5::/64 from fe80::b, made here by hand.
fn advertisement() -> Vec<u8> {
    let mut icmp = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // The prefix: on the link and for addresses, for an hour, preferred for half of it.
    icmp.extend_from_slice(&[3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x07, 0x08, 0, 0, 0, 0]);
    icmp.extend_from_slice(&[0x20, 0x01, 0x0d, 0xb8, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let size = u16::try_from(icmp.len()).unwrap();
    let mut ends = [0u8; 32];
    (ends[0], ends[1], ends[15]) = (0xfe, 0x80, 0x0b);
    (ends[16], ends[17], ends[31]) = (0xff, 0x02, 0x01);
    let pseudo = [&ends[..], &u32::from(size).to_be_bytes(), &[0, 0, 0, 58], &icmp].concat();
    let sum: u32 = pseudo.chunks(2).map(|two| u32::from(u16::from_be_bytes([two[0], two[1]]))).sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    [&[0x60, 0, 0, 0][..], &size.to_be_bytes(), &[58, 255], &ends, &icmp].concat()
}

#[test]
fn a_router_gives_an_ipv6_address_and_a_way() {
    let Some(lab) = Lab::new() else { return };
    let card = lab.far();
    let router = packet::open(&card, ETHER_IPV6).unwrap();
    let (network, _) = lab.start(Mode::Dhcp, None, true);
    let until = Instant::now() + LIMIT;
    // Again and again, as it asks: what comes before its link-local address is checked is dropped.
    while network.wait_ready(V6, Duration::from_millis(100)).is_err() {
        assert!(Instant::now() < until, "no address");
        packet::send(&router, &card, ETHER_IPV6, ALL_NODES_MAC, &advertisement()).unwrap();
    }
    let addresses = network.addresses();
    let [IpAddr::V6(address)] = addresses.as_slice() else { panic!("{addresses:?}") };
    assert_eq!(address.segments()[..4], [0x2001, 0x0db8, 5, 0], "{address}");
    let table = fs::read_to_string("/proc/thread-self/net/ipv6_route").unwrap();
    let through =
        |line: &str| line.starts_with(&"0".repeat(32)) && line.contains("fe80000000000000000000000000000b");
    assert!(table.lines().any(through), "{table}");
}

#[test]
fn a_fixed_ipv6_address_that_another_machine_has_is_told() {
    let Some(mut lab) = Lab::new() else { return };
    let taken = Cidr { address: "2001:db8::7".parse().unwrap(), prefix: 64 };
    lab.netlink.add_address(FAR.0, taken).unwrap();
    let until = Instant::now() + LIMIT;
    // Its own check for duplicates must be over: two that check at once both give way. The cable is up when both ends are.
    lab.netlink.set_up(NEAR.0).unwrap();
    while !matches!(inet6::addresses(FAR.1)[..], [(_, Readiness::Usable)]) {
        assert!(Instant::now() < until, "the other machine has no address");
        thread::sleep(Duration::from_millis(20));
    }
    let mode = Mode::Static { addresses: vec![taken], gateways: Vec::new() };
    let (network, _) = lab.start(mode, None, true);
    let error = network.wait_ready(V6, LIMIT).unwrap_err();
    assert_eq!(
        (error.code(), error.to_string().contains("2001:db8::7")),
        ("address-in-use", true),
        "{error}"
    );
}

/// The address from which a packet to this one would be sent.
fn way_to(target: &str) -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(target).unwrap();
    socket.local_addr().unwrap().ip()
}

#[test]
fn of_two_cards_with_a_gateway_the_first_has_the_default_route_whichever_is_up_first() {
    let Some(lab) = Lab::new() else { return };
    let fixed = |address: [u8; 4], gateway: [u8; 4]| Mode::Static {
        addresses: vec![Cidr { address: address.into(), prefix: 24 }],
        gateways: vec![Ipv4Addr::from(gateway).into()],
    };
    let second = [198, 51, 100, 7];
    let (network, _) = lab.start_card(1, fixed(second, [198, 51, 100, 1]), None, false);
    network.wait_ready(V4, LIMIT).unwrap();
    assert_eq!(way_to("203.0.113.9:1"), IpAddr::from(second), "there is no other way yet");
    let (network, _) = lab.start_card(0, fixed(OURS, SERVER), None, false);
    network.wait_ready(V4, LIMIT).unwrap();
    assert_eq!(way_to("203.0.113.9:1"), IpAddr::from(OURS));
    assert_eq!(way_to("198.51.100.50:1"), IpAddr::from(second), "its own network");
    let defaults = routes().into_iter().filter(|line| line.contains(&format!(" {} ", hex([0; 4]))));
    assert!(defaults.count() >= 2, "both stay: {:#?}", routes());
    let metric = |card: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{card}/ra_defrtr_metric"));
    if let (Ok(first), Ok(second)) = (metric(NEAR.1), metric(FAR.1)) {
        assert_eq!((first.trim(), second.trim()), ("1024", "1025"), "as for IPv6");
    }
}
