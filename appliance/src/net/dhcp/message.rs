//! DHCPv4 messages: what we send, what we understand of an answer. No I/O. Facts: RFC 2131, 2132, 3396, 3442.
//!
//! Never panics on an answer; an option with a wrong length counts as absent, a message without what makes it an
//! answer is `None`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// Fixed part of a message, up to and with the magic cookie.
const FIXED_SIZE: usize = 240;
/// The least that some servers take: the fixed part and 60 bytes of options (BOOTP's size).
const SIZE_MIN: usize = 300;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
const BOOT_REQUEST: u8 = 1;
const BOOT_REPLY: u8 = 2;
const ETHERNET: u8 = 1;
/// Asks the server to answer by broadcast: before we have an address we cannot take other packets from every driver.
const BROADCAST_FLAG: u16 = 0x8000;
/// Largest message we take: what fits an Ethernet frame.
const MESSAGE_SIZE_MAX: u16 = 1472;

/// Routes in option 121, routers in option 3: more than any subnet has.
const ROUTES_MAX: usize = 32;

mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const MTU: u8 = 26;
    pub(super) const REQUESTED_ADDRESS: u8 = 50;
    pub(super) const LEASE_TIME: u8 = 51;
    pub(super) const OVERLOAD: u8 = 52;
    pub(super) const KIND: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const WANTED: u8 = 55;
    pub(super) const TEXT: u8 = 56;
    pub(super) const SIZE_MAX: u8 = 57;
    pub(super) const RENEW_TIME: u8 = 58;
    pub(super) const REBIND_TIME: u8 = 59;
    pub(super) const VENDOR: u8 = 60;
    pub(super) const ROUTES: u8 = 121;
    pub(super) const END: u8 = 255;
}

/// DHCP message types (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
}

/// What we send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) struct Request {
    pub(in crate::net) kind: Kind,
    pub(in crate::net) transaction: u32,
    /// Seconds since we began to ask.
    pub(in crate::net) seconds: u16,
    pub(in crate::net) mac: [u8; 6],
    /// Our address, when renewing one that we have.
    pub(in crate::net) current: Option<Ipv4Addr>,
    /// The address that we take up or decline.
    pub(in crate::net) requested: Option<Ipv4Addr>,
    pub(in crate::net) server: Option<Ipv4Addr>,
}

impl Request {
    pub(in crate::net) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![BOOT_REQUEST, ETHERNET, 6, 0];
        bytes.extend_from_slice(&self.transaction.to_be_bytes());
        bytes.extend_from_slice(&self.seconds.to_be_bytes());
        let flags = if self.current.is_some() { 0 } else { BROADCAST_FLAG };
        bytes.extend_from_slice(&flags.to_be_bytes());
        bytes.extend_from_slice(&self.current.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes.resize(28, 0);
        bytes.extend_from_slice(&self.mac);
        bytes.resize(FIXED_SIZE - COOKIE.len(), 0);
        bytes.extend_from_slice(&COOKIE);
        let mut add = |code: u8, value: &[u8]| {
            bytes.extend_from_slice(&[code, value.len() as u8]);
            bytes.extend_from_slice(value);
        };
        add(option::KIND, &[self.kind as u8]);
        if let Some(server) = self.server {
            add(option::SERVER, &server.octets());
        }
        if let Some(requested) = self.requested {
            add(option::REQUESTED_ADDRESS, &requested.octets());
        }
        if self.kind != Kind::Decline {
            add(option::SIZE_MAX, &MESSAGE_SIZE_MAX.to_be_bytes());
            add(option::VENDOR, b"abd");
            add(option::HOST_NAME, b"abd");
            // RFC 3442: whoever asks for classless routes asks for them before the router.
            let wanted = [
                option::MASK,
                option::ROUTES,
                option::ROUTER,
                option::MTU,
                option::LEASE_TIME,
                option::SERVER,
                option::RENEW_TIME,
                option::REBIND_TIME,
            ];
            add(option::WANTED, &wanted);
        }
        bytes.push(option::END);
        bytes.resize(bytes.len().max(SIZE_MIN), 0);
        bytes
    }
}

/// A route of option 121, or the default route of option 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) struct LeasedRoute {
    pub(in crate::net) network: Ipv4Addr,
    pub(in crate::net) prefix: u8,
    /// `None`: on the link itself.
    pub(in crate::net) gateway: Option<Ipv4Addr>,
}

/// What we understand of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) struct Answer {
    pub(in crate::net) kind: Kind,
    pub(in crate::net) transaction: u32,
    pub(in crate::net) mac: [u8; 6],
    /// The address that is offered or given.
    pub(in crate::net) address: Ipv4Addr,
    pub(in crate::net) server: Option<Ipv4Addr>,
    pub(in crate::net) prefix: Option<u8>,
    pub(in crate::net) routes: Vec<LeasedRoute>,
    pub(in crate::net) mtu: Option<u16>,
    pub(in crate::net) lease_s: Option<u32>,
    pub(in crate::net) renew_s: Option<u32>,
    pub(in crate::net) rebind_s: Option<u32>,
    /// The server's own words, mostly in a refusal.
    pub(in crate::net) text: Option<String>,
}

impl Answer {
    /// Reads an OFFER, ACK or NAK; `None` for anything else.
    pub(in crate::net) fn parse(bytes: &[u8]) -> Option<Answer> {
        let (fixed, rest) = bytes.split_first_chunk::<FIXED_SIZE>()?;
        if fixed[..3] != [BOOT_REPLY, ETHERNET, 6] || fixed[FIXED_SIZE - 4..] != COOKIE {
            return None;
        }
        let mut options = Options::default();
        options.take(rest);
        let overload = options.number::<1>(option::OVERLOAD).map_or(0, |[o]| o);
        // RFC 3396: the file field comes before the server name field.
        if overload & 1 != 0 {
            options.take(&fixed[108..236]);
        }
        if overload & 2 != 0 {
            options.take(&fixed[44..108]);
        }
        let [kind] = options.number(option::KIND)?;
        let kind = match kind {
            2 => Kind::Offer,
            5 => Kind::Ack,
            6 => Kind::Nak,
            _ => return None,
        };
        let quad = |at: usize| [fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]];
        Some(Answer {
            kind,
            transaction: u32::from_be_bytes(quad(4)),
            mac: [fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]],
            address: quad(16).into(),
            server: options.number(option::SERVER).map(Ipv4Addr::from),
            prefix: options.number(option::MASK).and_then(prefix_of),
            routes: options.routes(),
            mtu: options.number(option::MTU).map(u16::from_be_bytes),
            lease_s: options.number(option::LEASE_TIME).map(u32::from_be_bytes),
            renew_s: options.number(option::RENEW_TIME).map(u32::from_be_bytes),
            rebind_s: options.number(option::REBIND_TIME).map(u32::from_be_bytes),
            text: options
                .values
                .get(&option::TEXT)
                .map(|t| String::from_utf8_lossy(t).trim_end_matches('\0').to_owned()),
        })
    }
}

/// Options of all fields of one message; parts of one option are joined (RFC 3396).
#[derive(Default)]
struct Options {
    values: BTreeMap<u8, Vec<u8>>,
}

impl Options {
    fn take(&mut self, mut field: &[u8]) {
        while let Some((&code, rest)) = field.split_first() {
            match code {
                0 => field = rest,
                option::END => return,
                _ => {
                    let Some((&size, rest)) = rest.split_first() else { return };
                    let Some(value) = rest.get(..usize::from(size)) else { return };
                    self.values.entry(code).or_default().extend_from_slice(value);
                    field = &rest[usize::from(size)..];
                }
            }
        }
    }

    fn number<const N: usize>(&self, code: u8) -> Option<[u8; N]> {
        self.values.get(&code)?.as_slice().try_into().ok()
    }

    /// RFC 3442: with option 121 there, option 3 does not count.
    fn routes(&self) -> Vec<LeasedRoute> {
        if let Some(routes) = self.values.get(&option::ROUTES).and_then(|v| classless_routes(v)) {
            return routes;
        }
        let routers = self.values.get(&option::ROUTER).map(Vec::as_slice).unwrap_or_default();
        let first = routers.first_chunk::<4>().map(|r| Ipv4Addr::from(*r)).filter(|r| !r.is_unspecified());
        let default =
            |gateway| LeasedRoute { network: Ipv4Addr::UNSPECIFIED, prefix: 0, gateway: Some(gateway) };
        first.map(default).into_iter().collect()
    }
}

/// Option 121: prefix length, the bytes of the network that count, router; repeated.
fn classless_routes(mut value: &[u8]) -> Option<Vec<LeasedRoute>> {
    let mut routes = Vec::new();
    while let Some((&prefix, rest)) = value.split_first() {
        let count = usize::from(prefix).div_ceil(8);
        if prefix > 32 || routes.len() == ROUTES_MAX {
            return None;
        }
        let mut network = [0u8; 4];
        network[..count].copy_from_slice(rest.get(..count)?);
        let gateway = rest.get(count..count + 4)?;
        let gateway = Ipv4Addr::new(gateway[0], gateway[1], gateway[2], gateway[3]);
        // Bits beyond the prefix do not belong to the network; the kernel refuses them.
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        let network = Ipv4Addr::from(u32::from_be_bytes(network) & mask);
        routes.push(LeasedRoute { network, prefix, gateway: Some(gateway).filter(|g| !g.is_unspecified()) });
        value = &rest[count + 4..];
    }
    (!routes.is_empty()).then_some(routes)
}

/// Prefix length of a subnet mask; `None` if its ones are not in front.
fn prefix_of(mask: [u8; 4]) -> Option<u8> {
    let mask = u32::from_be_bytes(mask);
    let ones = mask.leading_ones();
    (mask.count_ones() == ones && ones > 0).then_some(ones as u8)
}

#[cfg(test)]
pub(in crate::net) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server's message, made here by hand: not by the code under test.
    pub(in crate::net) fn answer(
        kind: u8,
        transaction: u32,
        mac: [u8; 6],
        address: [u8; 4],
        options: &[&[u8]],
    ) -> Vec<u8> {
        let mut bytes = vec![2, 1, 6, 0];
        bytes.extend_from_slice(&transaction.to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&address);
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&mac);
        bytes.resize(236, 0);
        bytes.extend_from_slice(&[99, 130, 83, 99, 53, 1, kind]);
        for option in options {
            bytes.extend_from_slice(option);
        }
        bytes.push(255);
        bytes
    }

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    #[test]
    fn golden_discover() {
        let discover = Request {
            kind: Kind::Discover,
            transaction: 0x1122_3344,
            seconds: 3,
            mac: MAC,
            current: None,
            requested: None,
            server: None,
        };
        let bytes = discover.encode();
        assert_eq!(bytes[..12], [1, 1, 6, 0, 0x11, 0x22, 0x33, 0x44, 0, 3, 0x80, 0]);
        assert_eq!(bytes[28..34], MAC);
        assert!(bytes[34..236].iter().all(|&b| b == 0));
        #[rustfmt::skip]
        assert_eq!(bytes[236..271], [
            99, 130, 83, 99,  53, 1, 1,  57, 2, 5, 192,  60, 3, b'a', b'b', b'd',  12, 3, b'a', b'b', b'd',
            55, 8, 1, 121, 3, 26, 51, 54, 58, 59,  255, 0, 0, 0,
        ]);
        assert_eq!(bytes.len(), 300);
    }

    #[test]
    fn golden_request_and_renewal() {
        let mut request = Request {
            kind: Kind::Request,
            transaction: 1,
            seconds: 0,
            mac: MAC,
            current: None,
            requested: Some([192, 0, 2, 7].into()),
            server: Some([192, 0, 2, 1].into()),
        };
        assert_eq!(request.encode()[240..255], [53, 1, 3, 54, 4, 192, 0, 2, 1, 50, 4, 192, 0, 2, 7]);
        request.current = request.requested.take();
        request.server = None;
        let renewal = request.encode();
        assert_eq!(renewal[10..16], [0, 0, 192, 0, 2, 7], "no broadcast flag, our address in ciaddr");
        assert_eq!(renewal[240..245], [53, 1, 3, 57, 2]);
    }

    #[test]
    fn a_full_answer_is_understood() {
        let bytes = answer(
            5,
            9,
            MAC,
            [192, 0, 2, 7],
            &[
                &[1, 4, 255, 255, 255, 0],
                &[3, 8, 192, 0, 2, 1, 192, 0, 2, 2],
                &[26, 2, 0x05, 0xdc],
                &[51, 4, 0, 0, 0x0e, 0x10],
                &[54, 4, 192, 0, 2, 1],
                &[58, 4, 0, 0, 0x07, 0x08],
                &[59, 4, 0, 0, 0x0c, 0x4e],
                &[56, 2, b'o', b'k'],
            ],
        );
        let got = Answer::parse(&bytes).unwrap();
        let default =
            LeasedRoute { network: [0, 0, 0, 0].into(), prefix: 0, gateway: Some([192, 0, 2, 1].into()) };
        assert_eq!(
            (got.kind, got.transaction, got.mac, got.address),
            (Kind::Ack, 9, MAC, [192, 0, 2, 7].into())
        );
        assert_eq!((got.prefix, got.mtu, got.routes.as_slice()), (Some(24), Some(1500), &[default][..]));
        assert_eq!((got.lease_s, got.renew_s, got.rebind_s), (Some(3600), Some(1800), Some(3150)));
        assert_eq!(got.text.as_deref(), Some("ok"));
    }

    #[test]
    fn classless_routes_replace_the_router_and_may_come_in_parts() {
        let bytes = answer(
            2,
            9,
            MAC,
            [192, 0, 2, 7],
            &[
                &[3, 4, 192, 0, 2, 99],
                // 198.51.100.0/23 via 192.0.2.2 (with a stray host bit), split in the middle; 203.0.113.8/30 on the link; default.
                &[121, 5, 23, 198, 51, 101, 192],
                &[121, 3, 0, 2, 2],
                &[121, 14, 30, 203, 0, 113, 8, 0, 0, 0, 0, 0, 192, 0, 2, 1],
            ],
        );
        let routes = Answer::parse(&bytes).unwrap().routes;
        let route = |network: [u8; 4], prefix, gateway: Option<[u8; 4]>| LeasedRoute {
            network: network.into(),
            prefix,
            gateway: gateway.map(Into::into),
        };
        let expected = [
            route([198, 51, 100, 0], 23, Some([192, 0, 2, 2])),
            route([203, 0, 113, 8], 30, None),
            route([0, 0, 0, 0], 0, Some([192, 0, 2, 1])),
        ];
        assert_eq!(routes, expected);
    }

    #[test]
    fn options_in_the_overloaded_fields_are_read() {
        let mut bytes = answer(5, 9, MAC, [192, 0, 2, 7], &[&[52, 1, 3]]);
        bytes[108..114].copy_from_slice(&[1, 4, 255, 255, 0, 0]);
        bytes[114] = 255;
        bytes[44..50].copy_from_slice(&[54, 4, 192, 0, 2, 1]);
        bytes[50] = 255;
        let got = Answer::parse(&bytes).unwrap();
        assert_eq!((got.prefix, got.server), (Some(16), Some([192, 0, 2, 1].into())));
    }

    #[test]
    fn damaged_options_count_as_absent() {
        let bytes = answer(
            5,
            9,
            MAC,
            [192, 0, 2, 7],
            &[&[1, 4, 255, 0, 255, 0], &[51, 2, 1, 1], &[121, 2, 33, 0], &[54, 200, 1]],
        );
        let got = Answer::parse(&bytes).unwrap();
        assert_eq!((got.prefix, got.lease_s, got.server, got.routes.len()), (None, None, None, 0));
    }

    #[test]
    fn what_is_no_answer_is_none() {
        let good = answer(2, 9, MAC, [192, 0, 2, 7], &[]);
        assert!(Answer::parse(&good).is_some());
        assert!(Answer::parse(&good[..239]).is_none());
        for (at, value) in [(0, 1), (1, 6), (2, 8), (236, 0), (242, 3)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(Answer::parse(&bad).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Answer::parse(&bytes);
        }

        #[test]
        fn any_options_are_survived(options in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Answer::parse(&answer(5, 1, MAC, [192, 0, 2, 7], &[&options]));
        }

        #[test]
        fn any_classless_routes_are_survived(value in proptest::collection::vec(any::<u8>(), 0..255)) {
            for route in classless_routes(&value).unwrap_or_default() {
                prop_assert!(route.prefix <= 32);
            }
        }
    }
}
