//! The few requests to the kernel's network configuration that we need: a card up, an address, a route.
//!
//! Owns: the encoder of these rtnetlink messages and the reader of their acknowledgements. Each request waits for its
//! acknowledgement. Layouts: rtnetlink(7), netlink(7); all fields in host byte order, attributes padded to four bytes.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::platform::config::Cidr;

const HEADER_SIZE: usize = 16;
/// linux/rtnetlink.h: the gateway is on the link whatever the addresses say.
const RTNH_F_ONLINK: u32 = 4;
/// Seconds until the kernel must have answered; it answers within the call, so this only guards against a bug.
const ANSWER_WAIT_S: i64 = 5;
/// Answers to other requests that are skipped while waiting for ours.
const STRAY_MAX: u32 = 64;

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    /// The network reached; prefix 0 is the default route.
    pub(super) network: IpAddr,
    /// Leading bits of `network` that count.
    pub(super) prefix: u8,
    /// The router, `None` if the network is on the link itself.
    pub(super) gateway: Option<IpAddr>,
    /// True if the router is outside of our own networks but on the link all the same.
    pub(super) on_link: bool,
    /// Of several routes to one network that with the lowest is used.
    pub(super) metric: u32,
}

/// A connection to the kernel's network configuration.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn open() -> io::Result<Netlink> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_WAIT_S, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Switches a card on.
    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        self.request(&link_up(index))
    }

    /// Sets the largest packet that a card sends.
    pub(super) fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.request(&link_mtu(index, mtu))
    }

    /// Gives a card an address. That it has it already is no error.
    pub(super) fn add_address(&mut self, index: u32, cidr: Cidr) -> io::Result<()> {
        self.request(&address(libc::RTM_NEWADDR, index, cidr))
    }

    /// Takes an address from a card. That it has none such is no error.
    pub(super) fn remove_address(&mut self, index: u32, cidr: Cidr) -> io::Result<()> {
        match self.request(&address(libc::RTM_DELADDR, index, cidr)) {
            Err(e) if e.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(()),
            other => other,
        }
    }

    /// Adds a route through a card, in place of one to the same network with the same metric.
    pub(super) fn add_route(&mut self, index: u32, to: Route) -> io::Result<()> {
        self.request(&route(index, to))
    }

    fn request(&mut self, message: &Message) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        send(self.socket.as_raw_fd(), &message.encode(self.sequence), MsgFlags::empty())?;
        let mut buffer = [0u8; 8192];
        for _ in 0..STRAY_MAX {
            let size = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            match acknowledgement(&buffer[..size], self.sequence) {
                Some(0) => return Ok(()),
                Some(errno) => return Err(Errno::from_raw(errno).into()),
                None => {}
            }
        }
        Err(Errno::EPROTO.into())
    }
}

/// A request before it has its number.
struct Message {
    kind: u16,
    flags: i32,
    body: Vec<u8>,
}

impl Message {
    fn encode(&self, sequence: u32) -> Vec<u8> {
        let size = (HEADER_SIZE + self.body.len()) as u32;
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | self.flags) as u16;
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.body.len());
        bytes.extend_from_slice(&size.to_ne_bytes());
        bytes.extend_from_slice(&self.kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&sequence.to_ne_bytes());
        // Port 0: the kernel knows whose socket it is.
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        self.body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }
}

/// struct ifinfomsg: family u8, pad u8, type u16, index i32, flags u32, change mask u32.
fn link(index: u32, flags: u32, change: u32) -> Message {
    let mut body = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for field in [index, flags, change] {
        body.extend_from_slice(&field.to_ne_bytes());
    }
    Message { kind: libc::RTM_NEWLINK, flags: 0, body }
}

fn link_up(index: u32) -> Message {
    let up = libc::IFF_UP as u32;
    link(index, up, up)
}

fn link_mtu(index: u32, mtu: u32) -> Message {
    link(index, 0, 0).attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())
}

/// struct ifaddrmsg: family u8, prefix length u8, flags u8, scope u8, index u32.
fn address(kind: u16, index: u32, cidr: Cidr) -> Message {
    let flags = if kind == libc::RTM_NEWADDR { libc::NLM_F_CREATE | libc::NLM_F_REPLACE } else { 0 };
    let mut body = vec![family(cidr.address), cidr.prefix, 0, libc::RT_SCOPE_UNIVERSE];
    body.extend_from_slice(&index.to_ne_bytes());
    let message = Message { kind, flags, body };
    match cidr.address {
        // IFA_LOCAL is our address, IFA_ADDRESS the peer's: the same on anything but a point-to-point link.
        IpAddr::V4(v4) => {
            let message =
                message.attribute(libc::IFA_LOCAL, &v4.octets()).attribute(libc::IFA_ADDRESS, &v4.octets());
            if cidr.prefix < 31 {
                let broadcast = u32::from(v4) | (u32::MAX >> cidr.prefix);
                return message.attribute(libc::IFA_BROADCAST, &broadcast.to_be_bytes());
            }
            message
        }
        IpAddr::V6(v6) => message.attribute(libc::IFA_ADDRESS, &v6.octets()),
    }
}

/// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type: u8 each; flags u32.
fn route(index: u32, to: Route) -> Message {
    let scope = if to.gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let mut body = vec![
        family(to.network),
        to.prefix,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        scope,
        libc::RTN_UNICAST,
    ];
    let flags = if to.on_link { RTNH_F_ONLINK } else { 0 };
    body.extend_from_slice(&flags.to_ne_bytes());
    let mut message =
        Message { kind: libc::RTM_NEWROUTE, flags: libc::NLM_F_CREATE | libc::NLM_F_REPLACE, body };
    if to.prefix > 0 {
        message = message.attribute(libc::RTA_DST, &octets(to.network));
    }
    if let Some(gateway) = to.gateway {
        message = message.attribute(libc::RTA_GATEWAY, &octets(gateway));
    }
    message
        .attribute(libc::RTA_OIF, &index.to_ne_bytes())
        .attribute(libc::RTA_PRIORITY, &to.metric.to_ne_bytes())
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The errno (0: success) in the acknowledgement of request `sequence`, if these bytes are it.
pub(super) fn acknowledgement(bytes: &[u8], sequence: u32) -> Option<i32> {
    let word = |at: usize| bytes.get(at..at + 4).map(|b| [b[0], b[1], b[2], b[3]]);
    let kind = u16::from_ne_bytes([*bytes.get(4)?, *bytes.get(5)?]);
    if i32::from(kind) != libc::NLMSG_ERROR || u32::from_ne_bytes(word(8)?) != sequence {
        return None;
    }
    // The kernel gives the errno negated.
    Some(i32::from_ne_bytes(word(16)?).saturating_neg())
}

#[cfg(test)]
pub(in crate::net) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// linux/if_link.h and linux/veth.h.
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const VETH_INFO_PEER: u16 = 1;

    impl Netlink {
        /// Makes two cards with a cable between them.
        pub(in crate::net) fn add_cable(&mut self, ends: [(u32, &str, [u8; 6]); 2]) -> io::Result<()> {
            let [near, far] = ends.map(|(index, name, mac)| {
                link(index, 0, 0)
                    .attribute(libc::IFLA_IFNAME, format!("{name}\0").as_bytes())
                    .attribute(libc::IFLA_ADDRESS, &mac)
            });
            let blank = || Message { kind: 0, flags: 0, body: Vec::new() };
            let peer = blank().attribute(VETH_INFO_PEER, &far.body).body;
            let kind = blank().attribute(IFLA_INFO_KIND, b"veth").attribute(IFLA_INFO_DATA, &peer).body;
            let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
            self.request(&Message { flags, ..near.attribute(libc::IFLA_LINKINFO, &kind) })
        }
    }

    fn cidr(text: &str) -> Cidr {
        let (address, prefix) = text.split_once('/').unwrap();
        Cidr { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    /// Hand-made from rtnetlink(7) for a little-endian machine.
    #[cfg(target_endian = "little")]
    #[test]
    fn golden_messages() {
        let add = address(libc::RTM_NEWADDR, 2, cidr("192.0.2.7/24")).encode(1);
        #[rustfmt::skip]
        assert_eq!(add, [
            48, 0, 0, 0,  20, 0,  0x05, 0x05,  1, 0, 0, 0,  0, 0, 0, 0,
            2, 24, 0, 0,  2, 0, 0, 0,
            8, 0, 2, 0,  192, 0, 2, 7,
            8, 0, 1, 0,  192, 0, 2, 7,
            8, 0, 4, 0,  192, 0, 2, 255,
        ]);
        let to = Route {
            network: "0.0.0.0".parse().unwrap(),
            prefix: 0,
            gateway: Some("192.0.2.1".parse().unwrap()),
            on_link: false,
            metric: 1025,
        };
        #[rustfmt::skip]
        assert_eq!(route(2, to).encode(3), [
            52, 0, 0, 0,  24, 0,  0x05, 0x05,  3, 0, 0, 0,  0, 0, 0, 0,
            2, 0, 0, 0,  254, 3, 0, 1,  0, 0, 0, 0,
            8, 0, 5, 0,  192, 0, 2, 1,
            8, 0, 4, 0,  2, 0, 0, 0,
            8, 0, 6, 0,  1, 4, 0, 0,
        ]);
    }

    #[test]
    fn acknowledgements_are_matched_by_number() {
        let mut bytes = vec![0u8; 36];
        bytes[4] = libc::NLMSG_ERROR as u8;
        bytes[8..12].copy_from_slice(&7u32.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        assert_eq!(acknowledgement(&bytes, 7), Some(libc::EEXIST));
        assert_eq!(acknowledgement(&bytes, 8), None);
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = acknowledgement(&bytes, 0);
        }
    }

    /// In a network namespace of this thread's own, on its loopback card.
    #[test]
    fn the_kernel_takes_the_requests() {
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            println!("skipped: no network namespace for this test: {error}");
            return;
        }
        let mut netlink = Netlink::open().unwrap();
        netlink.set_up(1).unwrap();
        netlink.set_mtu(1, 1400).unwrap();
        netlink.add_address(1, cidr("192.0.2.7/24")).unwrap();
        netlink.add_address(1, cidr("192.0.2.7/24")).unwrap();
        netlink.add_address(1, cidr("2001:db8::7/64")).unwrap();
        let v4 = |a: &str, prefix, gateway: Option<&str>, on_link| Route {
            network: a.parse().unwrap(),
            prefix,
            gateway: gateway.map(|g| g.parse().unwrap()),
            on_link,
            metric: 1024,
        };
        netlink.add_route(1, v4("0.0.0.0", 0, Some("192.0.2.1"), false)).unwrap();
        netlink.add_route(1, v4("198.51.100.0", 24, Some("203.0.113.1"), true)).unwrap();
        netlink.add_route(1, v4("203.0.113.0", 24, None, false)).unwrap();
        netlink.add_route(1, v4("2001:db8:1::", 48, None, false)).unwrap();
        let routes = std::fs::read_to_string("/proc/thread-self/net/route").unwrap();
        assert!(routes.contains("lo\t00000000\t010200C0"), "{routes}");
        let v6 = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(v6.contains("20010db8000000000000000000000007"), "{v6}");
        netlink.remove_address(1, cidr("192.0.2.7/24")).unwrap();
        netlink.remove_address(1, cidr("192.0.2.7/24")).unwrap();
        let error = netlink.add_address(99, cidr("192.0.2.9/24")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
