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
    for (family, wanted) in [("ipv4", true), ("ipv6", false)] {
        let base = format!("attr/vif/{nic}/{family}");
        xenstore.remove(&base)?;
        for (index, address) in addresses.iter().filter(|a| a.is_ipv4() == wanted).enumerate() {
            xenstore.write(&format!("{base}/{index}"), &address.to_string())?;
        }
    }
    touch(xenstore)
}

/// Older toolstacks look at the keys above only when this one changes.
fn touch(xenstore: &XenStore) -> Result<(), Error> {
    xenstore.write("data/updated", "1")
}
