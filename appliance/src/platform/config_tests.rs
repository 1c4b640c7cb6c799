//! Settings good and bad, from a table instead of XenStore.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone)]
struct Table(BTreeMap<String, String>);

impl Keys for Table {
    fn get(&self, key: &str) -> Result<Option<String>, xenstore::Error> {
        Ok(self.0.get(key).cloned())
    }

    fn list(&self, key: &str) -> Result<Vec<String>, xenstore::Error> {
        let prefix = format!("{key}/");
        let mut names: Vec<_> = self
            .0
            .keys()
            .filter_map(|k| Some(k.strip_prefix(&prefix)?.split('/').next()?.to_owned()))
            .collect();
        names.dedup();
        Ok(names)
    }
}

fn good() -> Table {
    let (key, version) = ("00ff".repeat(16), VERSION.to_string());
    let entries = [
        ("version", version.as_str()),
        ("job", "0A1b2c3d-0000-4000-8000-00000000000f"),
        ("url", "https://192.0.2.10:8443 https://[2001:db8::10]:8443/"),
        ("orchestrator-key", key.as_str()),
    ];
    Table(entries.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect())
}

fn with(changes: &[(&str, &str)]) -> Result<BootConfig, Error> {
    let mut table = good();
    for (key, value) in changes {
        table.0.insert(key.to_string(), value.to_string());
    }
    BootConfig::read(&table)
}

fn message(changes: &[(&str, &str)]) -> String {
    with(changes).unwrap_err().to_string()
}

#[test]
fn the_least_there_must_be() {
    let config = BootConfig::read(&good()).unwrap();
    assert_eq!(config.job, "0a1b2c3d-0000-4000-8000-00000000000f");
    assert_eq!(config.urls, ["192.0.2.10:8443".parse().unwrap(), "[2001:db8::10]:8443".parse().unwrap()]);
    assert_eq!(config.orchestrator_key[..4], [0x00, 0xff, 0x00, 0xff]);
    assert_eq!(config.nics, [NicSettings { index: 0, mode: Mode::Dhcp, mtu: None, ipv6_auto: true }]);
    assert!(config.needs_v4() && config.needs_v6());
    assert_eq!(config.watchdog, None);
    assert_eq!(with(&[("watchdog", "20")]).unwrap().watchdog, Some(std::time::Duration::from_secs(20)));
}

#[test]
fn a_static_card_with_both_families() {
    let config = with(&[
        ("net/0/mode", "static"),
        ("net/0/address", "192.0.2.7/24 2001:db8::7/64"),
        ("net/0/gateway", "192.0.2.1 fe80::1"),
        ("net/0/mtu", "9000"),
        ("net/2/ipv6", "off"),
    ])
    .unwrap();
    let Mode::Static { addresses, gateways } = &config.nics[0].mode else { panic!("{config:?}") };
    assert_eq!(addresses[1], Cidr { address: "2001:db8::7".parse().unwrap(), prefix: 64 });
    assert_eq!(gateways.len(), 2);
    assert_eq!((config.nics[0].mtu, config.nics[1].index, config.nics[1].ipv6_auto), (Some(9000), 2, false));
}

#[test]
fn every_missing_key_is_named() {
    for key in ["version", "job", "url", "orchestrator-key"] {
        let mut table = good();
        table.0.remove(key);
        let error = BootConfig::read(&table).unwrap_err();
        assert_eq!(error.to_string(), format!("vm-data/abd/{key} is missing"));
        assert_eq!(error.code(), "bad-config");
    }
    let error = with(&[("net/0/mode", "static")]).unwrap_err();
    assert_eq!(error.to_string(), "vm-data/abd/net/0/address is missing");
}

#[test]
fn bad_values_are_named_with_their_key() {
    let cases = [
        ("job", "web01", "vm-data/abd/job is \"web01\": not a uuid"),
        (
            "url",
            "http://192.0.2.1:80",
            "vm-data/abd/url is \"http://192.0.2.1:80\": does not start with https://",
        ),
        (
            "url",
            "https://backup.example:8443",
            "vm-data/abd/url is \"https://backup.example:8443\": not https://ADDRESS:PORT with a literal address",
        ),
        (
            "url",
            "https://[fe80::1]:8443",
            "vm-data/abd/url is \"https://[fe80::1]:8443\": not an address that can be connected to",
        ),
        ("url", " ", "vm-data/abd/url is \" \": empty"),
        ("orchestrator-key", "00ff", "vm-data/abd/orchestrator-key is \"00ff\": not 64 hexadecimal digits"),
        ("watchdog", "0", "vm-data/abd/watchdog is \"0\": not a number of seconds from 1 to 65535"),
        ("net/0/mode", "bootp", "vm-data/abd/net/0/mode is \"bootp\": neither dhcp nor static"),
        ("net/0/mtu", "100", "vm-data/abd/net/0/mtu is \"100\": not a number from 576 to 9216"),
        ("net/0/ipv6", "on", "vm-data/abd/net/0/ipv6 is \"on\": neither auto nor off"),
        ("net/7/mtu", "1500", "vm-data/abd/net is \"7\": not a network card number (0 to 6)"),
        ("net/00/mtu", "1500", "vm-data/abd/net is \"00\": not a network card number (0 to 6)"),
    ];
    for (key, value, expected) in cases {
        assert_eq!(message(&[(key, value)]), expected);
    }
    assert_eq!(with(&[("version", "1")]).unwrap_err().code(), "version");
}

#[test]
fn addresses_that_no_machine_can_have_are_refused() {
    let cases = [
        "192.0.2.7",
        "192.0.2.7/33",
        "192.0.2.7/0",
        "192.0.2.0/24",
        "192.0.2.255/24",
        "127.0.0.1/8",
        "0.0.0.7/24",
        "224.0.0.1/24",
        "2001:db8::1/129",
        "::1/128",
        "::/64",
        "ff02::1/64",
        "web01/24",
    ];
    for bad in cases {
        let error = with(&[("net/0/mode", "static"), ("net/0/address", bad)]).unwrap_err();
        assert_eq!(error.code(), "bad-address", "{bad}");
        assert!(error.to_string().contains(bad), "{error}");
    }
    for fine in ["192.0.2.0/31", "192.0.2.7/32", "2001:db8::/128"] {
        with(&[("net/0/mode", "static"), ("net/0/address", fine)]).unwrap();
    }
    let off = [("net/0/mode", "static"), ("net/0/address", "2001:db8::7/64"), ("net/0/ipv6", "off")];
    assert_eq!(with(&off).unwrap_err().code(), "bad-address");
    let nine = "https://192.0.2.1:1 ".repeat(9);
    assert!(message(&[("url", &nine)]).ends_with("more than 8 addresses"));
}

#[test]
fn a_network_contains_its_own_addresses_only() {
    let net = cidr("192.0.2.7/24").unwrap();
    assert!(net.contains("192.0.2.1".parse().unwrap()) && !net.contains("192.0.3.1".parse().unwrap()));
    assert!(!cidr("192.0.2.7/32").unwrap().contains("192.0.2.6".parse().unwrap()));
    assert!(!net.contains("2001:db8::1".parse().unwrap()));
    assert!(cidr("2001:db8::7/64").unwrap().contains("2001:db8::ffff".parse().unwrap()));
}

proptest! {
    #[test]
    fn any_text_is_an_error_or_a_setting(key in 0usize..6, value in "\\PC{0,80}") {
        let keys = ["version", "job", "url", "orchestrator-key", "net/0/address", "net/0/gateway"];
        let _ = with(&[("net/0/mode", "static"), ("net/0/address", "192.0.2.7/24"), (keys[key], &value)]);
    }
}
