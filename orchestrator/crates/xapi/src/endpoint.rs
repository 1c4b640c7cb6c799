//! Where a XAPI listens.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::{Error, Kind};

const HTTPS_PORT: u16 = 443;
const HTTP_PORT: u16 = 80;

/// An address of XAPI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// HTTPS with a pinned certificate.
    Https {
        /// Name or IP literal, IPv6 without brackets.
        host: String,
        /// Usually 443.
        port: u16,
    },
    /// Plain HTTP, to this machine only: a lab.
    Http {
        /// A loopback literal or `localhost`.
        host: String,
        /// Port.
        port: u16,
    },
    /// The socket of the control domain this program runs in.
    Unix(PathBuf),
}

impl Endpoint {
    /// HTTPS on the usual port. `host` may be a bare IPv6 literal, as XAPI gives them.
    pub fn https(host: impl Into<String>) -> Self {
        Self::Https { host: host.into(), port: HTTPS_PORT }
    }

    /// `host:port` with IPv6 in brackets, or the socket's path: the key of a pin.
    pub fn address(&self) -> String {
        match self {
            Self::Https { host, port } | Self::Http { host, port } => format!("{}:{port}", bracketed(host)),
            Self::Unix(path) => path.display().to_string(),
        }
    }

    /// Start of every URL.
    pub(crate) fn base(&self) -> String {
        match self {
            Self::Https { .. } => format!("https://{}", self.address()),
            Self::Http { .. } => format!("http://{}", self.address()),
            Self::Unix(_) => "http://localhost".to_owned(),
        }
    }

    /// The master that `HOST_IS_SLAVE` names: same kind of transport, same port.
    pub(crate) fn master(&self, address: &str) -> Self {
        match self {
            Self::Https { port, .. } => Self::Https { host: address.to_owned(), port: *port },
            Self::Http { port, .. } if is_loopback(address) => {
                Self::Http { host: address.to_owned(), port: *port }
            }
            _ => Self::https(address),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            _ => f.write_str(&self.base()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::new(Kind::Input, "", format!("pool address {text:?}: {why}"));
        if let Some(path) = text.strip_prefix("unix:").or(text.starts_with('/').then_some(text)) {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(bad("the path of a Unix socket begins with /")),
            };
        }
        let (plain, rest) = match (text.strip_prefix("http://"), text.strip_prefix("https://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => (false, text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let default_port = if plain { HTTP_PORT } else { HTTPS_PORT };
        let (host, port) = split_port(rest, default_port).ok_or_else(|| bad("the port is not a number"))?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(allowed) {
            return Err(bad("give a host name or IP address, with a port if it is not the usual one"));
        }
        if host.contains(':') && host.parse::<Ipv6Addr>().is_err() {
            return Err(bad("this is neither a name nor an IPv6 address"));
        }
        if plain && !is_loopback(&host) {
            return Err(bad("plain http reaches this machine only; use https"));
        }
        Ok(if plain { Self::Http { host, port } } else { Self::Https { host, port } })
    }
}

fn split_port(rest: &str, default: u16) -> Option<(String, u16)> {
    if let Some(inner) = rest.strip_prefix('[') {
        let (host, after) = inner.split_once(']')?;
        let port = if after.is_empty() { default } else { after.strip_prefix(':')?.parse().ok()? };
        return Some((host.to_owned(), port));
    }
    match rest.split_once(':') {
        // Two colons and no brackets: an IPv6 literal.
        Some((_, port)) if port.contains(':') => Some((rest.to_owned(), default)),
        Some((host, port)) => Some((host.to_owned(), port.parse().ok()?)),
        None => Some((rest.to_owned(), default)),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        text.parse::<Endpoint>().map_or_else(|error| error.to_string(), |endpoint| endpoint.to_string())
    }

    #[test]
    fn addresses_are_understood() {
        assert_eq!(shown("xen1"), "https://xen1:443");
        assert_eq!(shown("https://xen1.lan:8443/"), "https://xen1.lan:8443");
        assert_eq!(shown("2001:db8::1"), "https://[2001:db8::1]:443");
        assert_eq!(shown("[2001:db8::1]:444"), "https://[2001:db8::1]:444");
        assert_eq!(shown("http://127.0.0.1:8080"), "http://127.0.0.1:8080");
        assert_eq!(shown("http://[::1]"), "http://[::1]:80");
        assert_eq!(shown("/var/lib/xcp/xapi"), "unix:/var/lib/xcp/xapi");
        assert_eq!(shown("unix:/tmp/x"), "unix:/tmp/x");
    }

    #[test]
    fn bad_addresses_say_why() {
        assert!(shown("http://10.0.0.1").contains("plain http reaches this machine only"));
        assert!(shown("xen1:https").contains("the port is not a number"));
        assert!(shown("").contains("give a host name"));
        assert!(shown("user@xen1").contains("give a host name"));
        assert!(shown("unix:xapi").contains("begins with /"));
        assert!(shown("a:b:c").contains("neither a name nor an IPv6 address"));
    }

    #[test]
    fn the_master_keeps_transport_and_port() {
        let member: Endpoint = "https://member:8443".parse().expect("valid");
        assert_eq!(member.master("fd00::2").address(), "[fd00::2]:8443");
        let local: Endpoint = "/var/lib/xcp/xapi".parse().expect("valid");
        assert_eq!(local.master("10.0.0.1").to_string(), "https://10.0.0.1:443");
        let lab: Endpoint = "http://127.0.0.1:99".parse().expect("valid");
        assert_eq!(lab.master("10.0.0.1").to_string(), "https://10.0.0.1:443");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse::<Endpoint>().expect("its own form"), endpoint);
            }
        }
    }
}
