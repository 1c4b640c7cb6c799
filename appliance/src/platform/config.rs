//! The settings of the job, from `vm-data/abd/*` in XenStore to a typed value.
//!
//! Promises: every value is checked; a wrong one is an error that names key and value. Never: guesses a replacement.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::xenstore::{self, XenStore};
use wire::KEY_PREFIX;

/// The version of these keys that we understand: orchestrator and appliance are built together.
pub const VERSION: u16 = wire::PROTOCOL_VERSION;
/// Addresses of the orchestrator that are tried.
pub const URLS_MAX: usize = 8;
/// Network cards that are configured: XenServer gives a VM at most seven.
pub const NICS_MAX: u32 = 7;
/// Addresses or gateways per card.
const ADDRESSES_MAX: usize = 8;
/// Smallest MTU that IPv4 allows to rely on, and largest that Ethernet cards take.
const MTU: std::ops::RangeInclusive<u32> = 576..=9216;

/// Everything the appliance is told before it has a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// Version of the keys: [`VERSION`].
    pub version: u16,
    /// The job's uuid, lower case.
    pub job: String,
    /// Where the orchestrator listens, in the order to try.
    pub urls: Vec<SocketAddr>,
    /// SHA-256 of the orchestrator's TLS public key (SPKI DER).
    pub orchestrator_key: [u8; 32],
    /// The watchdog's time, where it is said before the order.
    pub watchdog: Option<Duration>,
    /// One entry per network card, at least one.
    pub nics: Vec<NicSettings>,
}

/// How one network card is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicSettings {
    /// XAPI's device number of the VIF.
    pub index: u32,
    /// Where IPv4 addresses come from.
    pub mode: Mode,
    /// Overrides what the card says, and is the most that DHCP may say.
    pub mtu: Option<u32>,
    /// True: take IPv6 addresses and routes from router advertisements.
    pub ipv6_auto: bool,
}

/// Where addresses come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// DHCPv4.
    Dhcp,
    /// These and no others.
    Static {
        /// At least one, of either family.
        addresses: Vec<Cidr>,
        /// At most one per family is used as default route.
        gateways: Vec<IpAddr>,
    },
}

/// An address of ours with the size of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// Leading bits that name the network.
    pub prefix: u8,
}

/// A setting that is missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A key that must be there is not.
    #[error("{KEY_PREFIX}/{key} is missing")]
    Missing {
        /// Relative to `vm-data/abd`.
        key: String,
    },
    /// A value that cannot be used.
    #[error("{KEY_PREFIX}/{key} is {value:?}: {reason}")]
    Bad {
        /// Relative to `vm-data/abd`.
        key: String,
        /// As it stands there.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// An address that cannot be ours.
    #[error("{KEY_PREFIX}/{key} has {value:?}: {reason}")]
    BadAddress {
        /// Relative to `vm-data/abd`.
        key: String,
        /// The address.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Written by another version of the orchestrator.
    #[error(
        "{KEY_PREFIX}/version is {value:?}, this appliance understands {VERSION}: import the template that belongs to the orchestrator"
    )]
    Version {
        /// As it stands there.
        value: String,
    },
    /// XenStore does not answer.
    #[error(transparent)]
    XenStore(#[from] xenstore::Error),
}

impl Error {
    /// Short code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Missing { .. } | Error::Bad { .. } => "bad-config",
            Error::BadAddress { .. } => "bad-address",
            Error::Version { .. } => "version",
            Error::XenStore(_) => "xenstore",
        }
    }
}

/// Where keys are read from: XenStore, or a table in tests.
pub trait Keys {
    /// The value of a key below `vm-data/abd`.
    fn get(&self, key: &str) -> Result<Option<String>, xenstore::Error>;
    /// The children of a key below `vm-data/abd`.
    fn list(&self, key: &str) -> Result<Vec<String>, xenstore::Error>;
}

impl Keys for XenStore {
    fn get(&self, key: &str) -> Result<Option<String>, xenstore::Error> {
        self.read_optional(&format!("{KEY_PREFIX}/{key}"))
    }

    fn list(&self, key: &str) -> Result<Vec<String>, xenstore::Error> {
        Ok(self.directory(&format!("{KEY_PREFIX}/{key}"))?.unwrap_or_default())
    }
}

impl BootConfig {
    /// Reads and checks every key.
    pub fn read(keys: &impl Keys) -> Result<BootConfig, Error> {
        let version = required(keys, "version")?;
        if version != VERSION.to_string() {
            return Err(Error::Version { value: version });
        }
        let job = required(keys, "job")?;
        if !is_uuid(&job) {
            return Err(bad("job", &job, "not a uuid"));
        }
        Ok(BootConfig {
            version: VERSION,
            job: job.to_ascii_lowercase(),
            urls: urls(&required(keys, "url")?)?,
            orchestrator_key: digest("orchestrator-key", &required(keys, "orchestrator-key")?)?,
            watchdog: watchdog(keys)?,
            nics: nics(keys)?,
        })
    }

    /// True if an address of the orchestrator is IPv4.
    pub fn needs_v4(&self) -> bool {
        self.urls.iter().any(SocketAddr::is_ipv4)
    }

    /// True if an address of the orchestrator is IPv6.
    pub fn needs_v6(&self) -> bool {
        self.urls.iter().any(SocketAddr::is_ipv6)
    }
}

impl Cidr {
    /// True if `other` lies in the same network.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                u32::from(a) & mask == u32::from(b) & mask
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                u128::from(a) & mask == u128::from(b) & mask
            }
            _ => false,
        }
    }
}

fn required(keys: &impl Keys, key: &str) -> Result<String, Error> {
    keys.get(key)?.ok_or_else(|| Error::Missing { key: key.to_owned() })
}

fn bad(key: &str, value: &str, reason: &'static str) -> Error {
    Error::Bad { key: key.to_owned(), value: value.to_owned(), reason }
}

fn watchdog(keys: &impl Keys) -> Result<Option<Duration>, Error> {
    let Some(value) = keys.get("watchdog")? else { return Ok(None) };
    match value.parse::<u16>() {
        Ok(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds.into()))),
        _ => Err(bad("watchdog", &value, "not a number of seconds from 1 to 65535")),
    }
}

fn is_uuid(text: &str) -> bool {
    let dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| if dash(at) { b == b'-' } else { b.is_ascii_hexdigit() })
}

fn digest(key: &str, text: &str) -> Result<[u8; 32], Error> {
    let wrong = || bad(key, text, "not 64 hexadecimal digits");
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut bytes = [0u8; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

fn urls(text: &str) -> Result<Vec<SocketAddr>, Error> {
    let list = text.split_ascii_whitespace().map(|one| {
        let address =
            one.strip_prefix("https://").ok_or_else(|| bad("url", one, "does not start with https://"))?;
        let address = address.strip_suffix('/').unwrap_or(address);
        let parsed: SocketAddr = address
            .parse()
            .map_err(|_| bad("url", one, "not https://ADDRESS:PORT with a literal address"))?;
        let ip = parsed.ip();
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if parsed.port() == 0 || ip.is_unspecified() || ip.is_multicast() || link_local {
            return Err(bad("url", one, "not an address that can be connected to"));
        }
        Ok(parsed)
    });
    let list: Vec<_> = list.collect::<Result<_, _>>()?;
    match list.len() {
        0 => Err(bad("url", text, "empty")),
        1..=URLS_MAX => Ok(list),
        _ => Err(bad("url", text, "more than 8 addresses")),
    }
}

fn nics(keys: &impl Keys) -> Result<Vec<NicSettings>, Error> {
    let mut indexes = Vec::new();
    for name in keys.list("net")? {
        match name.parse::<u32>() {
            Ok(index) if index < NICS_MAX && index.to_string() == name => indexes.push(index),
            _ => return Err(bad("net", &name, "not a network card number (0 to 6)")),
        }
    }
    indexes.sort_unstable();
    if indexes.is_empty() {
        indexes.push(0);
    }
    indexes.into_iter().map(|index| nic(keys, index)).collect()
}

fn nic(keys: &impl Keys, index: u32) -> Result<NicSettings, Error> {
    let key = |name: &str| format!("net/{index}/{name}");
    let text = |name: &str| keys.get(&key(name));
    let mode = match text("mode")?.as_deref() {
        None | Some("dhcp") => Mode::Dhcp,
        Some("static") => {
            let addresses = list(&key("address"), &required(keys, &key("address"))?, cidr)?;
            if addresses.is_empty() {
                return Err(Error::Missing { key: key("address") });
            }
            let gateways = list(&key("gateway"), &text("gateway")?.unwrap_or_default(), gateway)?;
            Mode::Static { addresses, gateways }
        }
        Some(other) => return Err(bad(&key("mode"), other, "neither dhcp nor static")),
    };
    let mtu = match text("mtu")? {
        None => None,
        Some(value) => match value.parse::<u32>() {
            Ok(mtu) if MTU.contains(&mtu) => Some(mtu),
            _ => return Err(bad(&key("mtu"), &value, "not a number from 576 to 9216")),
        },
    };
    let ipv6_auto = match text("ipv6")?.as_deref() {
        None | Some("auto") => true,
        Some("off") => false,
        Some(other) => return Err(bad(&key("ipv6"), other, "neither auto nor off")),
    };
    if let Mode::Static { addresses, .. } = &mode
        && !ipv6_auto
        && let Some(v6) = addresses.iter().find(|c| c.address.is_ipv6())
    {
        let value = v6.address.to_string();
        return Err(Error::BadAddress {
            key: key("address"),
            value,
            reason: "IPv6 is switched off for this card",
        });
    }
    Ok(NicSettings { index, mode, mtu, ipv6_auto })
}

fn list<T>(key: &str, text: &str, parse: fn(&str) -> Result<T, &'static str>) -> Result<Vec<T>, Error> {
    let parts: Vec<_> = text.split_ascii_whitespace().collect();
    if parts.len() > ADDRESSES_MAX {
        return Err(bad(key, text, "more than 8 addresses"));
    }
    let wrong =
        |part: &str, reason| Error::BadAddress { key: key.to_owned(), value: part.to_owned(), reason };
    parts.into_iter().map(|part| parse(part).map_err(|reason| wrong(part, reason))).collect()
}

fn cidr(text: &str) -> Result<Cidr, &'static str> {
    let (address, prefix) = text.split_once('/').ok_or("not ADDRESS/PREFIX")?;
    let address: IpAddr = address.parse().map_err(|_| "not an IP address")?;
    let prefix: u8 = prefix.parse().map_err(|_| "not a prefix length")?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    if prefix == 0 || prefix > longest {
        return Err("not a prefix length");
    }
    usable(address)?;
    if let IpAddr::V4(v4) = address
        && prefix < 31
    {
        let host = u32::from(v4) & (u32::MAX >> prefix);
        if host == 0 {
            return Err("the address of the network, not of a machine in it");
        }
        if host == u32::MAX >> prefix {
            return Err("the broadcast address of the network");
        }
    }
    Ok(Cidr { address, prefix })
}

fn gateway(text: &str) -> Result<IpAddr, &'static str> {
    let address: IpAddr = text.parse().map_err(|_| "not an IP address")?;
    usable(address).map(|()| address)
}

/// Whether one machine can have this address.
fn usable(address: IpAddr) -> Result<(), &'static str> {
    let special = match address {
        IpAddr::V4(v4) => v4.octets()[0] == 0 || v4 == Ipv4Addr::BROADCAST,
        IpAddr::V6(v6) => v6 == Ipv6Addr::UNSPECIFIED,
    };
    if special || address.is_multicast() || address.is_loopback() {
        return Err("not the address of a single machine");
    }
    Ok(())
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
