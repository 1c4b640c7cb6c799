//! What the toolstack writes into a domain's store before the guest runs.
//!
//! The subtrees a guest may write and the keys of a frontend are those of xenopsd.

use super::server::Domain;
use super::tree::{DomainId, Path, Permissions, Refusal, Tree};
use crate::guest::GuestConfig;

/// Subtrees of the home that belong to the guest.
pub(crate) const GUEST_WRITABLE: [&str; 11] = [
    "attr",
    "control",
    "data",
    "device",
    "drivers",
    "error",
    "feature",
    "hvmloader",
    "messages",
    "rrd",
    "vm-data",
];

/// A guest-writable subtree whose parent is not.
const GUEST_WRITABLE_ATTR: &str = "xenserver/attr";

/// `XenbusStateInitialising`. A lab guest has no frontend driver that would move it on.
const STATE_INITIALISING: &str = "1";

/// XenStore's number of the disk at `userdevice` of an HVM guest: the first four are IDE disks, then come
/// `xvd` disks in the two encodings of Xen's public header `io/blkif.h`.
pub fn device_number(userdevice: u16) -> u32 {
    const IDE: [u32; 4] = [3 << 8, (3 << 8) | 64, 22 << 8, (22 << 8) | 64];
    let slot = u32::from(userdevice);
    match userdevice {
        0..4 => IDE[usize::from(userdevice)],
        4..16 => (202 << 8) | (slot << 4),
        _ => (1 << 28) | (slot << 8),
    }
}

impl Domain {
    /// The store of a guest that is about to start.
    pub(crate) fn build(number: u32, config: &GuestConfig) -> Result<Domain, Refusal> {
        let mut builder = Builder { id: DomainId(number), home: DomainId(number).home(), tree: Tree::new() };
        builder.home_tree(config)?;
        for disk in &config.disks {
            builder.disk(disk.userdevice, disk.read_only)?;
        }
        for nic in &config.nics {
            builder.nic(nic.device, &nic.mac)?;
        }
        for (path, value) in &config.xenstore {
            builder.write(path, value)?;
        }
        Ok(Domain::new(builder.id, builder.tree))
    }
}

struct Builder {
    id: DomainId,
    home: Path,
    tree: Tree,
}

impl Builder {
    fn home_tree(&mut self, config: &GuestConfig) -> Result<(), Refusal> {
        self.directory("", Permissions::readable_by(self.id))?;
        let memory_kib = (config.memory / 1024).to_string();
        self.write("domid", &self.id.0.to_string())?;
        self.write("name", &config.name)?;
        self.write("memory/target", &memory_kib)?;
        self.write("memory/static-max", &memory_kib)?;
        for index in 0..config.vcpus {
            self.write(&format!("cpu/{index}/availability"), "online")?;
        }
        for writable in GUEST_WRITABLE.into_iter().chain([GUEST_WRITABLE_ATTR]) {
            self.directory(writable, Permissions::owned_by(self.id))?;
        }
        self.write("control/platform-feature-xs_reset_watches", "1")
    }

    fn disk(&mut self, userdevice: u16, read_only: bool) -> Result<(), Refusal> {
        let number = device_number(userdevice).to_string();
        let mode = if read_only { "r" } else { "w" };
        let keys = [("device-type", "disk"), ("mode", mode), ("virtual-device", number.as_str())];
        self.device("vbd", &number, &keys)
    }

    fn nic(&mut self, device: u16, mac: &str) -> Result<(), Refusal> {
        let number = device.to_string();
        self.device("vif", &number, &[("handle", number.as_str()), ("mac", mac)])
    }

    fn device(&mut self, class: &str, number: &str, keys: &[(&str, &str)]) -> Result<(), Refusal> {
        let backend = format!("/local/domain/0/backend/{class}/{}/{number}", self.id.0);
        let common = [("backend", backend.as_str()), ("backend-id", "0"), ("state", STATE_INITIALISING)];
        for (key, value) in common.iter().chain(keys) {
            self.write(&format!("device/{class}/{number}/{key}"), value)?;
        }
        Ok(())
    }

    fn directory(&mut self, relative: &str, permissions: Permissions) -> Result<(), Refusal> {
        let path = match relative {
            "" => self.home.clone(),
            _ => self.home.join(relative)?,
        };
        self.tree.make_directory(DomainId::CONTROL, &path)?;
        self.tree.set_permissions(DomainId::CONTROL, &path, permissions)
    }

    fn write(&mut self, relative: &str, value: &str) -> Result<(), Refusal> {
        let path = self.home.join(relative.trim_matches('/'))?;
        self.tree.write(DomainId::CONTROL, &path, value.as_bytes())
    }
}

/// A configuration with nothing in it, for tests of the store.
#[cfg(test)]
pub(super) fn bare_config() -> GuestConfig {
    GuestConfig {
        name: "abd-test".to_owned(),
        engine: crate::guest::Engine::Qemu,
        memory: 128 << 20,
        vcpus: 1,
        firmware: crate::guest::Firmware::Bios,
        disks: Vec::new(),
        nics: Vec::new(),
        xenstore: std::collections::BTreeMap::new(),
        work_dir: std::path::PathBuf::new(),
        link_up: true,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::guest::{GuestDisk, GuestNic};

    #[test]
    fn device_numbers_follow_the_three_encodings() {
        let known = [
            (0, 768),
            (1, 832),
            (2, 5632),
            (3, 5696),
            (4, 51776),
            (15, 51952),
            (16, 268_439_552),
            (255, 268_500_736),
        ];
        for (userdevice, number) in known {
            assert_eq!(device_number(userdevice), number, "userdevice {userdevice}");
        }
    }

    #[test]
    fn the_first_tree_holds_devices_and_what_the_simulator_gave() {
        let mut config = bare_config();
        config.disks.push(GuestDisk {
            userdevice: 4,
            path: "/nowhere".into(),
            read_only: true,
            bootable: false,
            surface: crate::storage::surface::Surface::default(),
        });
        config.nics.push(GuestNic { device: 0, mac: "02:00:00:00:00:01".to_owned() });
        config.xenstore.insert("vm-data/abd/version".to_owned(), "1".to_owned());
        let domain = Domain::build(7, &config).unwrap();
        let tree = domain.collect("");
        let expected = [
            ("name", "abd-test"),
            ("domid", "7"),
            ("memory/target", "131072"),
            ("device/vbd/51776/virtual-device", "51776"),
            ("device/vbd/51776/device-type", "disk"),
            ("device/vbd/51776/mode", "r"),
            ("device/vif/0/mac", "02:00:00:00:00:01"),
            ("vm-data/abd/version", "1"),
            ("vm-data", ""),
            ("control", ""),
        ];
        for (path, value) in expected {
            assert_eq!(tree.get(path).map(String::as_str), Some(value), "{path}");
        }
        assert_eq!(
            domain.collect("vm-data").into_keys().collect::<Vec<_>>(),
            ["vm-data", "vm-data/abd", "vm-data/abd/version"]
        );
        assert!(domain.collect("vm-dat").is_empty());
    }
}
