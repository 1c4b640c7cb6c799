//! Network cards as sysfs shows them: which is which, its MAC, its link.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// ARPHRD_ETHER.
const ETHERNET: &str = "1";

/// One network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    /// The kernel's name, e.g. `eth0`.
    pub(super) name: String,
    /// The kernel's number of it.
    pub(super) index: u32,
    /// Its hardware address.
    pub(super) mac: [u8; 6],
    dir: PathBuf,
}

impl Card {
    /// The card of VIF `number`.
    ///
    /// On Xen its device is named `vif-<number>`. A lab guest has plain virtio cards: the number is their order.
    pub(super) fn find(root: &Path, number: u32) -> Option<Card> {
        let cards = Card::all(root);
        let wanted = format!("vif-{number}");
        let is_it = |card: &&Card| {
            fs::read_link(card.dir.join("device"))
                .is_ok_and(|to| to.file_name().is_some_and(|n| n == wanted.as_str()))
        };
        let any_vif = cards.iter().any(|card| card.is_vif());
        let found = if any_vif { cards.iter().find(is_it) } else { cards.get(number as usize) };
        found.cloned()
    }

    /// Names of all cards.
    pub(super) fn names(root: &Path) -> Vec<String> {
        Card::all(root).into_iter().map(|card| card.name).collect()
    }

    /// True if a cable is connected. Only meaningful once the card is up.
    pub(super) fn has_link(&self) -> bool {
        fs::read_to_string(self.dir.join("carrier")).is_ok_and(|c| c.trim() == "1")
    }

    /// The number as system calls want it.
    pub(super) fn index_signed(&self) -> io::Result<i32> {
        i32::try_from(self.index).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    fn is_vif(&self) -> bool {
        let device = fs::read_link(self.dir.join("device")).unwrap_or_default();
        device.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with("vif-"))
    }

    /// Ethernet cards with a device behind them, in the kernel's order.
    fn all(root: &Path) -> Vec<Card> {
        let entries = fs::read_dir(root.join("sys/class/net")).into_iter().flatten().flatten();
        let mut cards: Vec<Card> = entries.filter_map(|e| Card::read(e.path())).collect();
        cards.sort_by_key(|card| card.index);
        cards
    }

    fn read(dir: PathBuf) -> Option<Card> {
        let attribute = |name: &str| fs::read_to_string(dir.join(name)).ok();
        // Without a device: a tunnel or bridge that some kernels bring along.
        if attribute("type")?.trim() != ETHERNET || fs::symlink_metadata(dir.join("device")).is_err() {
            return None;
        }
        let name = dir.file_name()?.to_str()?.to_owned();
        let index = attribute("ifindex")?.trim().parse().ok()?;
        let mac = parse_mac(attribute("address")?.trim())?;
        Some(Card { name, index, mac, dir })
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0u8; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// A MAC as people write it.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn card(root: &Path, name: &str, index: u32, device: Option<&str>) {
        let dir = root.join("sys/class/net").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("type"), if device.is_some() { "1\n" } else { "772\n" }).unwrap();
        fs::write(dir.join("ifindex"), format!("{index}\n")).unwrap();
        fs::write(dir.join("address"), format!("52:54:00:00:00:{index:02x}\n")).unwrap();
        fs::write(dir.join("carrier"), "1\n").unwrap();
        if let Some(device) = device {
            symlink(device, dir.join("device")).unwrap();
        }
    }

    #[test]
    fn on_xen_the_vif_number_decides() {
        let root = tempfile::tempdir().unwrap();
        card(root.path(), "lo", 1, None);
        card(root.path(), "eth0", 2, Some("../../../vif-1"));
        card(root.path(), "eth1", 3, Some("../../../vif-0"));
        assert_eq!(Card::find(root.path(), 0).unwrap().name, "eth1");
        assert_eq!(Card::find(root.path(), 1).unwrap().name, "eth0");
        assert_eq!(Card::find(root.path(), 2), None);
    }

    #[test]
    fn in_the_lab_the_order_decides() {
        let root = tempfile::tempdir().unwrap();
        card(root.path(), "lo", 1, None);
        card(root.path(), "eth0", 2, Some("../../../virtio0"));
        let found = Card::find(root.path(), 0).unwrap();
        assert_eq!((found.name.as_str(), found.index, found.mac), ("eth0", 2, [0x52, 0x54, 0, 0, 0, 2]));
        assert!(found.has_link());
        assert_eq!(Card::names(root.path()), ["eth0"]);
        assert_eq!(Card::find(root.path(), 1), None);
    }

    #[test]
    fn macs() {
        assert_eq!(parse_mac("52:54:00:12:34:5f"), Some([0x52, 0x54, 0, 0x12, 0x34, 0x5f]));
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "zz:54:00:12:34:56"] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
        assert_eq!(mac_text([2, 0, 0, 0, 0, 0xab]), "02:00:00:00:00:ab");
    }
}
