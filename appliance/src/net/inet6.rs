//! IPv6 as the kernel does it: settings of a card, and the addresses it has with their state.

use std::fs;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";
/// Of the thread that reads, as the settings above are: a test has a network of its own.
const ADDRESSES: &str = "/proc/thread-self/net/if_inet6";
/// Flags in the address list (linux/if_addr.h).
const DAD_FAILED: u8 = 0x08;
const TENTATIVE: u8 = 0x40;
/// Metric of card 0's routes through routers; that of card N is N more. What the kernel gives to routes from router
/// advertisements by itself (IP6_RT_PRIO_USER).
pub(super) const METRIC: u32 = 1024;
/// Scopes in the address list that reach beyond the link: global, and the old site-local.
const ROUTED: [u8; 2] = [0x00, 0x40];

/// What the kernel is to do about IPv6 on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Policy {
    /// Nothing.
    Off,
    /// Addresses and routes from router advertisements.
    Auto,
    /// Our own addresses, routes from router advertisements.
    OwnAddresses,
    /// Our own addresses and routes.
    OwnEverything,
}

/// How far an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Usable,
    /// The kernel still asks whether another machine has it.
    Checking,
    /// Another machine has it.
    Duplicate,
}

/// True if the kernel speaks IPv6.
pub(super) fn is_supported() -> bool {
    Path::new(SETTINGS).exists()
}

/// Applies a policy to the card of this number, before it goes up.
pub(super) fn configure(card: &str, policy: Policy, number: u32) -> io::Result<()> {
    let (off, advertised, addresses) = match policy {
        Policy::Off => ("1", "0", "0"),
        Policy::Auto => ("0", "1", "1"),
        Policy::OwnAddresses => ("0", "1", "0"),
        Policy::OwnEverything => ("0", "0", "0"),
    };
    let dir = Path::new(SETTINGS).join(card);
    // One stable address is wanted, and the router's answer soon: a job waits for it. Optional settings.
    let metric = METRIC.saturating_add(number).to_string();
    for (name, value) in [
        ("use_tempaddr", "0"),
        ("router_solicitation_delay", "0"),
        ("router_solicitation_interval", "1"),
        // Of several cards the first has the default route.
        ("ra_defrtr_metric", &metric),
    ] {
        let _ = fs::write(dir.join(name), value);
    }
    fs::write(dir.join("accept_ra"), advertised)?;
    fs::write(dir.join("autoconf"), addresses)?;
    fs::write(dir.join("disable_ipv6"), off)
}

/// The card's addresses that other links can reach, with their state.
pub(super) fn addresses(card: &str) -> Vec<(Ipv6Addr, Readiness)> {
    // No file: no IPv6, no addresses.
    parse(&fs::read_to_string(ADDRESSES).unwrap_or_default(), card)
}

/// Lines of `address index prefix scope flags name`, numbers in hexadecimal.
pub(super) fn parse(text: &str, card: &str) -> Vec<(Ipv6Addr, Readiness)> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u128::from_str_radix(fields.next()?, 16).ok()?;
        let scope = u8::from_str_radix(fields.nth(2)?, 16).ok()?;
        let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
        let readiness = match flags {
            f if f & DAD_FAILED != 0 => Readiness::Duplicate,
            f if f & TENTATIVE != 0 => Readiness::Checking,
            _ => Readiness::Usable,
        };
        (ROUTED.contains(&scope) && fields.next() == Some(card))
            .then_some((Ipv6Addr::from(address), readiness))
    };
    text.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = "\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000505400fffe123456 02 40 20 80     eth0
fec0000000000000505400fffe123456 02 40 00 00     eth0
20010db8000000000000000000000007 02 40 00 c0     eth0
20010db8000000000000000000000008 02 40 00 c8     eth0
20010db8000000000000000000000009 03 40 00 80     eth1
";

    #[test]
    fn only_reachable_addresses_of_the_card_are_listed_with_their_state() {
        let list = parse(LIST, "eth0");
        let expected = [
            ("fec0::5054:ff:fe12:3456", Readiness::Usable),
            ("2001:db8::7", Readiness::Checking),
            ("2001:db8::8", Readiness::Duplicate),
        ];
        assert_eq!(list, expected.map(|(a, r)| (a.parse().unwrap(), r)));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "\\PC{0,200}") {
            let _ = parse(&text, "eth0");
        }
    }
}
