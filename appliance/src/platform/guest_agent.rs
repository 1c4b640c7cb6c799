//! The few keys by which XAPI recognises a guest agent: version, addresses, name of the system.
//!
//! Facts: the toolstack's guest-agent reader (`xapi_guest_agent.ml`). Without these a pool shows the VM as one without
//! drivers and without an address. Nothing in the job depends on them, so failures are not reported.

use std::fs;
use std::net::IpAddr;

use super::xenstore::{Error, XenStore, cut_to_value};

/// Says that a guest agent is here.
pub fn announce(xenstore: &XenStore, version: &str) -> Result<(), Error> {
    let mut numbers = version.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    for key in ["MajorVersion", "MinorVersion", "MicroVersion"] {
        xenstore.write(&format!("attr/PVAddons/{key}"), &numbers.next().unwrap_or(0).to_string())?;
    }
    xenstore.write("attr/PVAddons/BuildVersion", "0")?;
    xenstore.write("attr/PVAddons/Installed", "1")?;
    xenstore.write("data/os_name", &format!("Backup delegate {version}"))?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    xenstore.write("data/os_uname", cut_to_value(kernel.trim()))?;
    for kind in ["vbd", "vif"] {
        xenstore.write(&format!("feature/hotplug/{kind}"), "1")?;
    }
    touch(xenstore)
}

/// Shows the addresses of VIF `nic`, as they are now.
pub fn addresses(xenstore: &XenStore, nic: u32, addresses: &[IpAddr]) -> Result<(), Error> {
    for stale in [format!("attr/vif/{nic}"), format!("attr/eth{nic}")] {
        xenstore.remove(&stale)?;
    }
    for (key, value) in address_keys(nic, addresses) {
        xenstore.write(&key, &value)?;
    }
    touch(xenstore)
}

/// The keys of a VIF's addresses: those by VIF, and those by interface, which are all that toolstacks of XenServer 6.5
/// look for. Later ones ignore these where there are any by VIF.
fn address_keys(nic: u32, addresses: &[IpAddr]) -> Vec<(String, String)> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.iter().partition(|address| address.is_ipv4());
    let mut keys = Vec::new();
    for (index, address) in v4.iter().enumerate() {
        keys.push((format!("attr/vif/{nic}/ipv4/{index}"), address.to_string()));
    }
    keys.extend(v4.first().map(|address| (format!("attr/eth{nic}/ip"), address.to_string())));
    for (index, address) in v6.iter().enumerate() {
        keys.push((format!("attr/vif/{nic}/ipv6/{index}"), address.to_string()));
        keys.push((format!("attr/eth{nic}/ipv6/{index}/addr"), address.to_string()));
    }
    keys
}

/// Older toolstacks look at the keys above only when this one changes.
fn touch(xenstore: &XenStore) -> Result<(), Error> {
    xenstore.write("data/updated", "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_toolstack_finds_the_addresses() {
        let addresses = ["2001:db8::7", "192.0.2.7", "192.0.2.8"].map(|text| text.parse().unwrap());
        let keys = address_keys(2, &addresses);
        let expected = [
            ("attr/vif/2/ipv4/0", "192.0.2.7"),
            ("attr/vif/2/ipv4/1", "192.0.2.8"),
            ("attr/eth2/ip", "192.0.2.7"),
            ("attr/vif/2/ipv6/0", "2001:db8::7"),
            ("attr/eth2/ipv6/0/addr", "2001:db8::7"),
        ];
        assert_eq!(keys, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!(address_keys(0, &[]), []);
    }
}
