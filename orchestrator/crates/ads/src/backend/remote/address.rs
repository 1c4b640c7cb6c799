//! `abd://HOST[:PORT]?key=FINGERPRINT`: a store that `abd serve` offers, and the key that proves the server.

use crate::Error;
use pin::Fingerprint;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where `abd serve` listens unless told otherwise.
pub const DEFAULT_PORT: u16 = 7465;

/// A store on another machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AbdAddress {
    /// A name or an address; one of IPv6 in brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// SHA-256 of the server's public key.
    pub(super) key: Fingerprint,
    /// The file with this machine's own key, where it is another one than usual.
    pub(super) identity: Option<PathBuf>,
}

impl FromStr for AbdAddress {
    type Err = Error;

    /// What follows `abd://`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Address { text: format!("abd://{text}"), reason };
        let (place, options) = text.split_once('?').unwrap_or((text, ""));
        let (host, port) = split_port(place.strip_suffix('/').unwrap_or(place));
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(wrong(format!("'{port}' is no port"))),
            },
        };
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let fits = match inner {
            Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
                (1..=253).contains(&host.len()) && host.bytes().all(plain)
            }
        };
        if !fits {
            return Err(wrong(format!("'{host}' is no host: a name, an address, or [an IPv6 address]")));
        }
        let (mut key, mut identity) = (None, None);
        for option in options.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let again = match name {
                _ if value.is_empty() => return Err(wrong(format!("option '{name}' has no value"))),
                "key" => {
                    let value = value.parse::<Fingerprint>().map_err(|error| wrong(error.to_string()))?;
                    key.replace(value).is_some()
                }
                "identity" => identity.replace(value.into()).is_some(),
                _ => return Err(wrong(format!("there is no option '{name}'; there are key and identity"))),
            };
            if again {
                return Err(wrong(format!("option '{name}' stands there twice")));
            }
        }
        let Some(key) = key else {
            return Err(wrong("the server's key is missing: `abd serve key` prints it there".into()));
        };
        Ok(Self { host: host.to_owned(), port, key, identity })
    }
}

/// The host, and what follows the colon after it.
fn split_port(place: &str) -> (&str, Option<&str>) {
    match place.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') && (!host.contains(':') || host.ends_with(']')) => {
            (host, Some(port))
        }
        _ => (place, None),
    }
}

/// Without the options.
impl fmt::Display for AbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "abd://{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AbdAddress, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }

    #[test]
    fn addresses_name_the_server_and_its_key() {
        let key = "0a".repeat(32);
        for (text, shown) in [
            ("vault", "abd://vault:7465"),
            ("vault.lan:99", "abd://vault.lan:99"),
            ("10.0.0.9:7465/", "abd://10.0.0.9:7465"),
            ("[fd00::1]", "abd://[fd00::1]:7465"),
            ("[fd00::1]:5", "abd://[fd00::1]:5"),
        ] {
            let address = parse(&format!("{text}?key={key}&identity=/etc/abd/key.pem")).expect(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.key.to_string(), key);
            assert_eq!(address.identity, Some("/etc/abd/key.pem".into()));
        }
    }

    #[test]
    fn wrong_addresses_are_refused_with_the_reason() {
        let key = format!("key={}", "0a".repeat(32));
        for (text, reason) in [
            ("vault".to_owned(), "key is missing"),
            (format!("?{key}"), "no host"),
            (format!("a b?{key}"), "no host"),
            (format!("fd00::1?{key}"), "no host"),
            (format!("[vault]?{key}"), "no host"),
            (format!("user@vault?{key}"), "no host"),
            (format!("vault/x?{key}"), "no host"),
            (format!("vault:0?{key}"), "no port"),
            (format!("vault:70000?{key}"), "no port"),
            ("vault?key=12".into(), "64 hexadecimal digits"),
            ("vault?key".into(), "has no value"),
            (format!("vault?{key}&{key}"), "twice"),
            (format!("vault?{key}&speed=9"), "no option 'speed'"),
        ] {
            let error = parse(&text).expect_err(&text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
