//! The networks that delegates are on: as an admin names them, and as cards of a delegate.
//!
//! Owns the text form `NAME[,address=CIDR]...[,gateway=ADDRESS]...[,ipv6=off]` of the command line and of `pools.toml`,
//! and what a delegate is told about each of its cards. Promises: the first network named is card 0 and goes first
//! wherever several cards would do, for the default route as well; no two cards are on one network, where either could
//! answer for the other.

use crate::error::{Context, Error, Kind, Result};
use crate::pool::Pool;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use xapi::{Network, Pif, Ref, StringMap};

/// Most networks of a delegate: XenServer offers a VM seven positions, and an appliance takes no more.
pub const MAX_NETWORKS: usize = 7;
/// Most addresses and most gateways of a card that an appliance takes.
const MAX_ADDRESSES: usize = 8;
/// MTUs that an appliance takes.
const MTUS: std::ops::RangeInclusive<u32> = 576..=9216;
/// Bytes, where a network does not say what an adapter takes.
const DEFAULT_MTU: u32 = 1500;
/// How the text form goes on after the name, for messages.
const FORM: &str = "NAME[,address=CIDR][,gateway=ADDRESS][,ipv6=off]";

/// A network as `abd pool add --network` names it, with what the delegate's card there is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DelegateNetwork {
    /// Name or uuid.
    pub name: String,
    /// Fixed addresses in CIDR form; DHCP where there is none.
    pub addresses: Vec<String>,
    /// Gateways that go with them.
    pub gateways: Vec<IpAddr>,
    /// Whether routers' advertisements give the card IPv6 addresses and routes.
    pub ipv6: bool,
}

/// A card of a delegate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// XAPI's position of the VIF.
    pub number: u32,
    /// Where it is plugged in.
    pub network: Ref<Network>,
    /// The network's name.
    pub name: String,
    /// The network's MTU in bytes.
    pub mtu: u32,
    /// Its settings by key below `vm-data/abd/net/<number>/`.
    pub settings: Vec<(String, String)>,
}

impl DelegateNetwork {
    /// Whether only one delegate at a time can have its card.
    pub fn is_fixed(&self) -> bool {
        !self.addresses.is_empty()
    }

    fn settings(&self) -> Vec<(String, String)> {
        let mut settings = address_settings(&self.addresses, &self.gateways);
        if settings.is_empty() {
            // The number of each card has to stand there even where nothing else is said about it.
            settings.push(("mode".to_owned(), "dhcp".to_owned()));
        }
        if !self.ipv6 {
            settings.push(("ipv6".to_owned(), "off".to_owned()));
        }
        settings
    }
}

/// Fixed addresses as a card's settings; none for DHCP.
pub fn address_settings(addresses: &[String], gateways: &[IpAddr]) -> Vec<(String, String)> {
    if addresses.is_empty() {
        return Vec::new();
    }
    let mut settings =
        vec![("mode".to_owned(), "static".to_owned()), ("address".to_owned(), addresses.join(" "))];
    if !gateways.is_empty() {
        let gateways: Vec<_> = gateways.iter().map(ToString::to_string).collect();
        settings.push(("gateway".to_owned(), gateways.join(" ")));
    }
    settings
}

impl FromStr for DelegateNetwork {
    type Err = String;

    /// Options are taken off the end, so that a name may have commas of its own.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mut network =
            Self { name: String::new(), addresses: Vec::new(), gateways: Vec::new(), ipv6: true };
        let mut rest = text;
        while let Some((before, option)) = rest.rsplit_once(',') {
            let Some((key, value)) = option.split_once('=') else { break };
            match key {
                "address" => network.addresses.insert(0, crate::spec::parse_cidr(value)?),
                "gateway" => {
                    let gateway = value.parse().map_err(|_| format!("'{value}' is not an address"))?;
                    network.gateways.insert(0, gateway);
                }
                "ipv6" if value == "off" => network.ipv6 = false,
                "ipv6" if value == "auto" => {}
                _ => {
                    return Err(format!(
                        "'{option}' is nothing that can be said about a network: write {FORM}, or the uuid of a \
                         network whose name has such a part"
                    ));
                }
            }
            rest = before;
        }
        rest.clone_into(&mut network.name);
        if network.name.trim().is_empty() {
            return Err(format!("'{text}' names no network: write {FORM}"));
        }
        if network.addresses.is_empty() && !network.gateways.is_empty() {
            return Err("a gateway goes with an address: DHCP gives its own".to_owned());
        }
        if network.addresses.len() > MAX_ADDRESSES || network.gateways.len() > MAX_ADDRESSES {
            return Err(format!("a card takes at most {MAX_ADDRESSES} addresses and as many gateways"));
        }
        let has_v6 = network.addresses.iter().any(|cidr| cidr.contains(':'));
        if has_v6 && !network.ipv6 {
            return Err("ipv6=off and an IPv6 address exclude each other".to_owned());
        }
        Ok(network)
    }
}

impl fmt::Display for DelegateNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.addresses.iter().try_for_each(|cidr| write!(f, ",address={cidr}"))?;
        self.gateways.iter().try_for_each(|gateway| write!(f, ",gateway={gateway}"))?;
        if self.ipv6 { Ok(()) } else { f.write_str(",ipv6=off") }
    }
}

impl TryFrom<String> for DelegateNetwork {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<DelegateNetwork> for String {
    fn from(network: DelegateNetwork) -> Self {
        network.to_string()
    }
}

/// Refuses a list of networks that no delegate can have.
///
/// # Errors
/// [`Kind::Usage`] saying which.
pub fn check(networks: &[DelegateNetwork]) -> Result<()> {
    if networks.len() > MAX_NETWORKS {
        let message =
            format!("{} networks are more than a delegate has cards: {MAX_NETWORKS}", networks.len());
        return Err(Error::new(Kind::Usage, message).remedy("name those over which it reaches this machine"));
    }
    for (at, network) in networks.iter().enumerate() {
        if networks[..at].iter().any(|earlier| earlier.name == network.name) {
            return Err(twice(Kind::Usage, &network.name, &network.name));
        }
    }
    Ok(())
}

fn twice(kind: Kind, one: &str, other: &str) -> Error {
    let message = format!("delegates would have two cards on one network: '{one}' and '{other}'");
    Error::new(kind, message)
        .remedy("name each network once with `abd pool set --network`; a card may have several addresses")
}

impl Pool {
    /// The cards that delegates get: on the networks of the configuration in their order, else one on the management
    /// network.
    ///
    /// # Errors
    /// [`Kind::NotFound`] naming what was looked for.
    pub async fn delegate_cards(&self) -> Result<Vec<Card>> {
        let networks = self.client.get_all_records::<Network>().await.context(|| "list networks".into())?;
        if !self.config.networks.is_empty() {
            return cards_on(&networks, &self.config.networks, &self.config.name);
        }
        let pifs = self.client.get_all_records::<Pif>().await.context(|| "list network interfaces".into())?;
        let management = pifs.into_values().find(|pif| pif.management).map(|pif| pif.network);
        let found = management.and_then(|wanted| networks.iter().find(|(r, _)| **r == wanted));
        let (reference, record) = found.ok_or_else(|| {
            Error::new(Kind::NotFound, "the pool shows no management network").remedy(format!(
                "name the network for delegates: abd pool set {} --network NETWORK",
                self.config.name
            ))
        })?;
        let settings = vec![("mode".to_owned(), "dhcp".to_owned())];
        Ok(vec![card(0, reference, record, settings)])
    }
}

fn card(number: u32, network: &Ref<Network>, record: &Network, settings: Vec<(String, String)>) -> Card {
    Card {
        number,
        network: network.clone(),
        name: record.name_label.clone(),
        mtu: u32::try_from(record.mtu).unwrap_or(DEFAULT_MTU),
        settings,
    }
}

fn cards_on(
    networks: &BTreeMap<Ref<Network>, Network>,
    wanted: &[DelegateNetwork],
    pool: &str,
) -> Result<Vec<Card>> {
    let mut cards: Vec<Card> = Vec::new();
    for (number, one) in (0..).zip(wanted) {
        let name = &one.name;
        let mut found = networks.iter().filter(|(_, n)| n.uuid.as_str() == name || n.name_label == *name);
        let (reference, record) = match (found.next(), found.next()) {
            (Some(network), None) => network,
            (None, _) => {
                let message = format!("no network of the pool is named '{name}'");
                return Err(Error::new(Kind::NotFound, message).remedy(format!(
                    "see `xe network-list`; name another: abd pool set {pool} --network NETWORK"
                )));
            }
            _ => {
                let message = format!("more than one network is named '{name}'");
                return Err(Error::new(Kind::NotFound, message)
                    .remedy(format!("give its uuid: abd pool set {pool} --network UUID")));
            }
        };
        if let Some(earlier) = cards.iter().position(|card| card.network == *reference) {
            return Err(twice(Kind::NotFound, &wanted[earlier].name, name));
        }
        cards.push(card(number, reference, record, one.settings()));
    }
    Ok(cards)
}

/// What a delegate is told about its cards, by key. `first` goes before what the pool's configuration says about the
/// addresses of card 0.
pub fn xenstore_keys(cards: &[Card], first: &[(String, String)]) -> StringMap {
    let mut keys = StringMap::new();
    for card in cards {
        let addresses = ["mode", "address", "gateway"];
        let replaced = card.number == 0 && !first.is_empty();
        let own = card.settings.iter().filter(|(key, _)| !(replaced && addresses.contains(&key.as_str())));
        let given = first.iter().filter(|_| replaced);
        // The MTU of the network; none where no appliance takes it.
        let mtu = MTUS.contains(&card.mtu).then(|| ("mtu".to_owned(), card.mtu.to_string()));
        for (key, value) in own.chain(given).chain(mtu.as_ref()) {
            keys.insert(format!("{}/{}/{key}", wire::KEY_NET, card.number), value.clone());
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> DelegateNetwork {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_said_about_a_network_is_read_and_written_the_same() {
        for text in [
            "storage",
            "VLAN 20, backup",
            "storage,address=10.9.0.5/24",
            "storage,address=10.9.0.5/24,address=fd00::5/64,gateway=10.9.0.1,gateway=fd00::1",
            "Pool-wide network associated with eth0,ipv6=off",
        ] {
            assert_eq!(parsed(text).to_string(), text);
        }
        assert_eq!(parsed("VLAN 20, backup,ipv6=auto").name, "VLAN 20, backup");
        assert_eq!(parsed("storage,gateway=10.9.0.1,address=10.9.0.5/24").gateways.len(), 1);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        for (text, part) in [
            ("", "names no network"),
            (",address=10.9.0.5/24", "names no network"),
            ("storage,address=10.9.0.5", "CIDR"),
            ("storage,gateway=10.9.0.1", "goes with an address"),
            ("storage,address=10.9.0.5/24,gateway=router", "not an address"),
            ("storage,mtu=9000", "'mtu=9000' is nothing that can be said"),
            ("storage,ipv6=on", "'ipv6=on'"),
            ("storage,address=fd00::5/64,ipv6=off", "exclude each other"),
        ] {
            let error = text.parse::<DelegateNetwork>().expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let many = "n".to_owned() + &",address=10.9.0.5/24".repeat(9);
        assert!(many.parse::<DelegateNetwork>().expect_err("nine").contains("at most 8"));
        let eight: Vec<_> = (0..8).map(|n| parsed(&format!("n{n}"))).collect();
        assert!(
            check(&eight).expect_err("eight cards").to_string().contains("more than a delegate has cards")
        );
        check(&eight[..7]).expect("seven");
        assert!(
            check(&[parsed("a"), parsed("b"), parsed("a")]).expect_err("twice").to_string().contains("'a'")
        );
    }

    fn networks() -> BTreeMap<Ref<Network>, Network> {
        let record = |name: &str, uuid: &str, mtu| Network {
            name_label: name.into(),
            uuid: uuid.parse().expect("a uuid"),
            mtu,
            ..Network::default()
        };
        let uuid = |n: u32| format!("00000000-0000-0000-0000-{n:012}");
        let all = [
            ("a", record("Management", &uuid(1), 1500)),
            ("b", record("storage", &uuid(2), 9000)),
            ("c", record("guests", &uuid(3), 1500)),
            ("d", record("guests", &uuid(4), 65_536)),
        ];
        all.map(|(name, record)| (Ref::from_opaque(format!("OpaqueRef:{name}")), record)).into()
    }

    fn on(wanted: &[&str]) -> Result<Vec<Card>> {
        cards_on(&networks(), &wanted.iter().map(|text| parsed(text)).collect::<Vec<_>>(), "dc1")
    }

    #[test]
    fn cards_are_numbered_in_the_order_of_the_networks() {
        let cards = on(&["storage,address=10.9.0.5/24", "Management"]).expect("two cards");
        let told: Vec<_> = cards.iter().map(|card| (card.number, card.name.as_str(), card.mtu)).collect();
        assert_eq!(told, [(0, "storage", 9000), (1, "Management", 1500)]);
    }

    #[test]
    fn a_network_that_is_missing_ambiguous_or_named_twice_is_told() {
        for (wanted, kind, part) in [
            (["Management", "backup"], Kind::NotFound, "no network of the pool is named 'backup'"),
            (["Management", "guests"], Kind::NotFound, "more than one network is named 'guests'"),
            (
                ["storage", "00000000-0000-0000-0000-000000000002"],
                Kind::NotFound,
                "on one network: 'storage' and '0000",
            ),
        ] {
            let error = on(&wanted).expect_err(part);
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(part) && error.remedy_text().is_some(), "{error}");
        }
        on(&["00000000-0000-0000-0000-000000000003"]).expect("by its uuid");
    }

    #[test]
    fn each_card_has_keys_of_its_own_and_the_jobs_address_is_that_of_the_first() {
        let cards =
            on(&["storage,address=10.9.0.5/24,gateway=10.9.0.1,ipv6=off", "Management"]).expect("two");
        let keys = |first: &[(String, String)]| -> Vec<String> {
            let keys = xenstore_keys(&cards, first).into_iter();
            keys.map(|(key, value)| format!("{}={value}", key.trim_start_matches("vm-data/abd/net/")))
                .collect()
        };
        assert_eq!(
            keys(&[]),
            [
                "0/address=10.9.0.5/24",
                "0/gateway=10.9.0.1",
                "0/ipv6=off",
                "0/mode=static",
                "0/mtu=9000",
                "1/mode=dhcp",
                "1/mtu=1500"
            ]
        );
        let job = address_settings(&["10.9.0.77/24".to_owned()], &[]);
        assert_eq!(
            keys(&job),
            [
                "0/address=10.9.0.77/24",
                "0/ipv6=off",
                "0/mode=static",
                "0/mtu=9000",
                "1/mode=dhcp",
                "1/mtu=1500"
            ]
        );
    }

    #[test]
    fn an_mtu_that_no_appliance_takes_is_not_told() {
        let odd = on(&["00000000-0000-0000-0000-000000000004"]).expect("a card");
        assert_eq!(xenstore_keys(&odd, &[]).len(), 1);
    }
}
