//! One card, from nothing to addresses, and then for as long as the job lasts: renewals, cable, router advertisements.
//!
//! Runs in a thread of its own and tells everything through its [`Board`].

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::card::Card;
use super::dhcp::{Change, Driver, Lease, LeasedRoute, Unbound};
use super::inet6::{self, Policy, Readiness};
use super::netlink::{Netlink, Route};
use super::{CardStatus, Error, Shared, arp};
use crate::platform::config::{Cidr, Mode, NicSettings};
use crate::platform::{Milestones, console};

/// How long a card may take to appear.
const CARD_LIMIT: Duration = Duration::from_secs(10);
/// How long a link may take to come up.
const LINK_LIMIT: Duration = Duration::from_secs(10);
/// How long DHCP may take from the link on.
const LEASE_LIMIT: Duration = Duration::from_secs(20);
/// How long a router or the check for duplicates may take from the link on.
const INET6_LIMIT: Duration = Duration::from_secs(20);
/// Pause between looks while something is awaited, and afterwards.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
const IDLE_PAUSE: Duration = Duration::from_secs(1);
/// Pause after a socket error of DHCP; the next attempt opens a new socket.
const SOCKET_PAUSE: Duration = Duration::from_secs(1);

/// The kernel's number of the loopback card: it is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Switches the loopback card on. Over it the kernel tells a connection that no machine on the link has an address; without
/// it that looks like a firewall.
pub(super) fn switch_on_loopback() {
    let done = Netlink::open().and_then(|mut netlink| netlink.set_up(LOOPBACK));
    if let Err(error) = done {
        console::line(&format!("the loopback card stays off: {error}"));
    }
}

/// Where a card's thread tells what it has.
pub(super) struct Board {
    shared: Arc<Shared>,
    position: usize,
}

impl Board {
    pub(super) fn new(shared: Arc<Shared>, position: usize) -> Board {
        Board { shared, position }
    }

    fn change(&self, edit: impl FnOnce(&mut CardStatus)) {
        self.shared.change(self.position, edit);
    }

    fn trouble(&self, text: Option<String>) {
        if let Some(text) = &text {
            console::line(text);
        }
        self.change(|card| card.trouble = text);
    }

    fn fail_v4(&self, error: Error) {
        self.fail(error, true);
    }

    fn fail_v6(&self, error: Error) {
        self.fail(error, false);
    }

    fn fail(&self, error: Error, v4: bool) {
        self.change(|card| {
            let slot = if v4 { &mut card.failed_v4 } else { &mut card.failed_v6 };
            // The first reason is the cause.
            slot.get_or_insert(error);
        });
    }
}

/// A card to configure.
pub(super) struct Task {
    settings: NicSettings,
    root: PathBuf,
    board: Board,
    milestones: Milestones,
}

/// A card that is up.
struct Running<'a> {
    task: &'a Task,
    card: Card,
    netlink: Netlink,
    dhcp: Option<Driver>,
    leased: Option<Cidr>,
    /// Until when answers are awaited; `None` once they came or their absence was told.
    lease_until: Option<Instant>,
    inet6_until: Option<Instant>,
    inet6: Vec<IpAddr>,
    has_link: bool,
}

impl Task {
    pub(super) fn new(settings: NicSettings, root: PathBuf, board: Board, milestones: Milestones) -> Task {
        Task { settings, root, board, milestones }
    }

    /// Runs for ever, or until the card cannot be used at all.
    pub(super) fn run(self) {
        match self.start() {
            Ok(running) => running.run(),
            Err(error) => {
                let text = crate::chain(&error);
                // Both families fail for the one reason, which exists once.
                self.board.fail_v6(Error::FamilyOff {
                    card: format!("card {}", self.settings.index),
                    family: "IPv6",
                });
                self.board.fail_v4(error);
                self.board.trouble(Some(text));
            }
        }
    }

    fn start(&self) -> Result<Running<'_>, Error> {
        let card = self.find_card()?;
        let setting = |what: &str| setting(&card.name, what);
        let mut netlink = Netlink::open().map_err(setting("open the kernel's network configuration"))?;
        if inet6::is_supported() {
            inet6::configure(&card.name, self.inet6_policy(), self.settings.index)
                .map_err(setting("set up IPv6"))?;
        }
        if let Some(mtu) = self.settings.mtu {
            netlink.set_mtu(card.index, mtu).map_err(setting(&format!("set MTU {mtu}")))?;
            self.milestones.mark(&format!("MTU {mtu} on {}", card.name));
        }
        netlink.set_up(card.index).map_err(setting("switch on"))?;
        self.wait_link(&card)?;
        self.milestones.mark(&format!("link on {}", card.name));
        let mut running = Running {
            task: self,
            card,
            netlink,
            dhcp: None,
            leased: None,
            lease_until: None,
            inet6_until: None,
            inet6: Vec::new(),
            has_link: true,
        };
        running.configure()?;
        Ok(running)
    }

    fn find_card(&self) -> Result<Card, Error> {
        let until = Instant::now() + CARD_LIMIT;
        loop {
            if let Some(card) = Card::find(&self.root, self.settings.index) {
                return Ok(card);
            }
            if Instant::now() >= until {
                let names = Card::names(&self.root);
                let seen = if names.is_empty() { "none".to_owned() } else { names.join(" ") };
                return Err(Error::NoCard { number: self.settings.index, waited: CARD_LIMIT, seen });
            }
            thread::sleep(LOOK_PAUSE);
        }
    }

    fn wait_link(&self, card: &Card) -> Result<(), Error> {
        let until = Instant::now() + LINK_LIMIT;
        while !card.has_link() {
            if Instant::now() >= until {
                return Err(Error::NoLink { card: card.name.clone() });
            }
            thread::sleep(LOOK_PAUSE);
        }
        Ok(())
    }

    fn inet6_policy(&self) -> Policy {
        let (addresses, gateways) = match &self.settings.mode {
            Mode::Static { addresses, gateways } => (addresses.as_slice(), gateways.as_slice()),
            Mode::Dhcp => (&[][..], &[][..]),
        };
        if !self.settings.ipv6_auto {
            Policy::Off
        } else if gateways.iter().any(IpAddr::is_ipv6) {
            Policy::OwnEverything
        } else if addresses.iter().any(|cidr| cidr.address.is_ipv6()) {
            Policy::OwnAddresses
        } else {
            Policy::Auto
        }
    }
}

impl Running<'_> {
    fn configure(&mut self) -> Result<(), Error> {
        let name = self.card.name.clone();
        match &self.task.settings.mode {
            Mode::Dhcp => {
                self.dhcp = Some(Driver::new(self.card.clone(), seed(&self.card)));
                self.lease_until = Some(Instant::now() + LEASE_LIMIT);
            }
            Mode::Static { addresses, gateways } => self.configure_static(addresses, gateways)?,
        }
        if self.task.settings.ipv6_auto && inet6::is_supported() {
            self.inet6_until = Some(Instant::now() + INET6_LIMIT);
        } else {
            self.task.board.fail_v6(Error::FamilyOff { card: name, family: "IPv6" });
        }
        Ok(())
    }

    fn configure_static(&mut self, addresses: &[Cidr], gateways: &[IpAddr]) -> Result<(), Error> {
        let mut v4 = Vec::new();
        for cidr in addresses {
            if let IpAddr::V4(address) = cidr.address {
                let owner =
                    arp::owner_of(&self.card, address).map_err(self.setting("look for duplicates"))?;
                if owner.is_some() {
                    return Err(Error::AddressInUse {
                        card: self.card.name.clone(),
                        address: cidr.address,
                        owner,
                    });
                }
                v4.push(address);
            }
            let what = format!("add address {}/{}", cidr.address, cidr.prefix);
            self.netlink.add_address(self.card.index, *cidr).map_err(self.setting(&what))?;
        }
        for address in &v4 {
            self.announce(*address);
        }
        for route in default_routes(addresses, gateways, self.metric()) {
            let what = format!("add a route through {}", route.gateway.unwrap_or(route.network));
            self.netlink.add_route(self.card.index, route).map_err(self.setting(&what))?;
        }
        if v4.is_empty() {
            self.task.board.fail_v4(Error::FamilyOff { card: self.card.name.clone(), family: "IPv4" });
        } else {
            self.task.board.change(|card| card.v4 = v4.into_iter().map(IpAddr::V4).collect());
        }
        Ok(())
    }

    fn run(mut self) {
        loop {
            let awaiting = self.lease_until.is_some() || self.inet6_until.is_some();
            let wait = if awaiting { LOOK_PAUSE } else { IDLE_PAUSE };
            match &mut self.dhcp {
                None => thread::sleep(wait),
                Some(driver) => match driver.step(wait) {
                    Ok(changes) => changes.into_iter().for_each(|change| self.apply(change)),
                    Err(error) => {
                        let error = setting(&self.card.name, "DHCP")(error);
                        console::line(&crate::chain(&error));
                        thread::sleep(SOCKET_PAUSE);
                    }
                },
            }
            self.look_at_lease();
            self.look_at_inet6();
            self.look_at_link();
        }
    }

    fn apply(&mut self, change: Change) {
        match change {
            Change::Bind(lease) => match self.use_lease(&lease) {
                Ok(()) => {
                    self.lease_until = None;
                    self.task.board.change(|card| {
                        card.v4 = vec![lease.cidr.address];
                        card.trouble = None;
                    });
                }
                Err(error) => {
                    self.lease_until = None;
                    self.task.board.trouble(Some(crate::chain(&error)));
                    self.task.board.fail_v4(error);
                }
            },
            Change::Unbind(why) => {
                let Some(cidr) = self.leased.take() else { return };
                if let Err(error) = self.netlink.remove_address(self.card.index, cidr) {
                    console::line(&format!("{}: {} stays configured: {error}", self.card.name, cidr.address));
                }
                self.task.board.change(|card| card.v4.clear());
                let (card, address) = (&self.card.name, cidr.address);
                self.task.board.trouble(Some(match why {
                    Unbound::Expired => {
                        format!("the DHCP lease of {address} on {card} expired, no server renewed it")
                    }
                    Unbound::Refused => format!("the DHCP server took {address} on {card} back"),
                }));
            }
        }
    }

    fn use_lease(&mut self, lease: &Lease) -> Result<(), Error> {
        let (index, cidr) = (self.card.index, lease.cidr);
        let is_new = self.leased != Some(cidr);
        if let Some(mtu) = leased_mtu(lease.mtu, self.task.settings.mtu).filter(|_| is_new) {
            match self.netlink.set_mtu(index, mtu) {
                Ok(()) => self.task.milestones.mark(&format!("MTU {mtu} on {}", self.card.name)),
                Err(error) => console::line(&format!(
                    "{}: MTU {mtu} of the DHCP server not taken: {error}",
                    self.card.name
                )),
            }
        }
        let text = format!("{}/{}", cidr.address, cidr.prefix);
        self.netlink.add_address(index, cidr).map_err(self.setting(&format!("add address {text}")))?;
        self.leased = Some(cidr);
        for route in &lease.routes {
            if let Err(error) = self.netlink.add_route(index, leased_route(cidr, *route, self.metric())) {
                // Others may do; whether the orchestrator can be reached shows when it is tried.
                console::line(&format!(
                    "{}: route to {}/{} not taken: {error}",
                    self.card.name, route.network, route.prefix
                ));
            }
        }
        if is_new {
            let duration = lease.duration.map_or("for ever".to_owned(), |d| format!("for {} s", d.as_secs()));
            let server = lease.server.map_or("a server".to_owned(), |s| s.to_string());
            self.task
                .milestones
                .mark(&format!("DHCP lease {text} on {} from {server} {duration}", self.card.name));
            if let IpAddr::V4(address) = cidr.address {
                self.announce(address);
            }
        }
        Ok(())
    }

    fn look_at_lease(&mut self) {
        let Some(driver) = &self.dhcp else { return };
        if self.lease_until.is_some_and(|until| Instant::now() >= until) {
            self.lease_until = None;
            let error = Error::no_lease(&self.card.name, LEASE_LIMIT, driver.trouble());
            self.task.board.trouble(Some(error.to_string()));
            self.task.board.fail_v4(error);
        }
    }

    fn look_at_inet6(&mut self) {
        if !self.task.settings.ipv6_auto {
            return;
        }
        let card = self.card.name.clone();
        let found = inet6::addresses(&card);
        if let Some((address, _)) = found.iter().find(|(_, state)| *state == Readiness::Duplicate) {
            let address = IpAddr::V6(*address);
            self.task.board.fail_v6(Error::AddressInUse { card: card.clone(), address, owner: None });
        }
        let usable = found.into_iter().filter(|(_, state)| *state == Readiness::Usable);
        let usable: Vec<_> = usable.map(|(address, _)| IpAddr::V6(address)).collect();
        if usable != self.inet6 {
            self.inet6.clone_from(&usable);
            self.inet6_until = None;
            self.task.milestones.mark(&format!("IPv6 on {card}"));
            self.task.board.change(|card| card.v6 = usable);
        } else if self.inet6_until.is_some_and(|until| Instant::now() >= until) {
            self.inet6_until = None;
            self.task.board.fail_v6(Error::NoAdvertisement { card, waited: INET6_LIMIT });
        }
    }

    fn look_at_link(&mut self) {
        let has_link = self.card.has_link();
        if has_link == self.has_link {
            return;
        }
        self.has_link = has_link;
        let card = self.card.name.clone();
        if has_link {
            console::line(&format!("link on {card} is back"));
            self.task.board.trouble(None);
        } else {
            self.task.board.trouble(Some(Error::NoLink { card }.to_string()));
        }
    }

    /// Of the card's routes through routers: the lower the card's number, the sooner they are used.
    fn metric(&self) -> u32 {
        inet6::METRIC.saturating_add(self.task.settings.index)
    }

    fn announce(&self, address: Ipv4Addr) {
        if let Err(error) = arp::announce(&self.card, address) {
            console::line(&format!("{}: {address} not announced: {error}", self.card.name));
        }
    }

    fn setting(&self, what: &str) -> impl FnOnce(io::Error) -> Error + use<> {
        setting(&self.card.name, what)
    }
}

fn setting(card: &str, what: &str) -> impl FnOnce(io::Error) -> Error + use<> {
    let (card, what) = (card.to_owned(), what.to_owned());
    move |source| Error::Setting { card, what, source }
}

/// The first gateway of each family, reached directly if it is outside of our own networks.
fn default_routes(addresses: &[Cidr], gateways: &[IpAddr], metric: u32) -> Vec<Route> {
    let unspecified = |v4: bool| if v4 { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let first = |v4: bool| gateways.iter().copied().find(|g| g.is_ipv4() == v4);
    let route = |v4: bool| {
        let gateway = first(v4)?;
        let link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let inside = link_local || addresses.iter().any(|cidr| cidr.contains(gateway));
        Some(Route { network: unspecified(v4), prefix: 0, gateway: Some(gateway), on_link: !inside, metric })
    };
    [true, false].into_iter().filter_map(route).collect()
}

/// The MTU of a lease, where it counts: the settings know the pool's network, and DHCP can only say that the way beyond
/// is narrower.
fn leased_mtu(leased: Option<u16>, most: Option<u32>) -> Option<u32> {
    leased.map(u32::from).filter(|mtu| most.is_none_or(|most| *mtu < most))
}

fn leased_route(own: Cidr, route: LeasedRoute, metric: u32) -> Route {
    let gateway = route.gateway.map(IpAddr::V4);
    let on_link = gateway.is_some_and(|g| !own.contains(g));
    Route { network: IpAddr::V4(route.network), prefix: route.prefix, gateway, on_link, metric }
}

/// Different on each machine and at each start: random bytes, mixed with the MAC in case there are none yet.
fn seed(card: &Card) -> u64 {
    let mut bytes = [0u8; 8];
    // Without random bytes the MAC and the time still tell two machines apart.
    let _ = File::open(Path::new("/dev/urandom")).and_then(|mut f| f.read_exact(&mut bytes));
    let mac = card.mac.iter().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
    let time = crate::platform::clock::uptime().as_nanos() as u64;
    u64::from_ne_bytes(bytes) ^ mac.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        let (address, prefix) = text.split_once('/').unwrap();
        Cidr { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn one_default_route_per_family_and_foreign_gateways_are_on_the_link() {
        let addresses = [cidr("192.0.2.7/24"), cidr("2001:db8::7/64")];
        let routes = default_routes(&addresses, &ips(&["192.0.2.1", "192.0.2.2", "fe80::1"]), 1025);
        assert!(routes.iter().all(|route| route.metric == 1025));
        assert_eq!(routes.len(), 2);
        assert_eq!((routes[0].gateway, routes[0].on_link), (Some("192.0.2.1".parse().unwrap()), false));
        assert_eq!((routes[1].gateway, routes[1].on_link), (Some("fe80::1".parse().unwrap()), false));
        let routes = default_routes(&[cidr("192.0.2.7/32")], &ips(&["203.0.113.1"]), 1024);
        assert!(routes[0].on_link);
        assert!(default_routes(&addresses, &[], 1024).is_empty());
    }

    #[test]
    fn a_lease_makes_the_mtu_of_the_settings_smaller_and_never_larger() {
        assert_eq!(leased_mtu(Some(9000), None), Some(9000));
        assert_eq!(leased_mtu(Some(1400), Some(9000)), Some(1400));
        assert_eq!(leased_mtu(Some(9000), Some(1500)), None);
        assert_eq!(leased_mtu(None, Some(9000)), None);
    }

    #[test]
    fn leased_routes_keep_their_network() {
        let route = LeasedRoute {
            network: [198, 51, 100, 0].into(),
            prefix: 24,
            gateway: Some([192, 0, 2, 1].into()),
        };
        let own = cidr("192.0.2.7/24");
        let expected = Route {
            network: "198.51.100.0".parse().unwrap(),
            prefix: 24,
            gateway: Some("192.0.2.1".parse().unwrap()),
            on_link: false,
            metric: 1026,
        };
        assert_eq!(leased_route(own, route, 1026), expected);
        assert!(leased_route(cidr("192.0.2.7/32"), route, 1024).on_link);
        assert!(!leased_route(own, LeasedRoute { gateway: None, ..route }, 1024).on_link);
    }
}
