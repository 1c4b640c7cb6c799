//! What goes into the file: the appliance as its author sees it, and the records of `ova.xml`.
//!
//! The records hold every member that some importer from XenServer 6.5 to today needs; newer importers take
//! the rest from their defaults, older ones ignore what they do not know. Dates are the epoch and uuids
//! derive from the content, so that equal input gives equal bytes; an import gives every object a fresh uuid
//! anyway. There is no VIF: an import would create a network of that name where none fits.

use std::collections::BTreeMap;

use crate::checksum::{hex, sha256_16};
use crate::node::{Node, is_writable};
use crate::{Error, Result};

/// `other_config` key that holds the template's version.
pub const TEMPLATE_KEY: &str = "abd:template";
/// `other_config` key that holds the SHA-256 of the boot disk, 64 hex digits.
pub const DIGEST_KEY: &str = "abd:digest";

pub(crate) const VM_ID: &str = "Ref:0";
pub(crate) const VBD_ID: &str = "Ref:1";
pub(crate) const VDI_ID: &str = "Ref:2";
const SR_ID: &str = "Ref:3";
const NULL: &str = "OpaqueRef:NULL";
const EPOCH: &str = "19700101T00:00:00Z";

/// How the appliance boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS: runs on every host from XenServer 6.5 on.
    Bios,
    /// OVMF: Citrix Hypervisor 8.0 and later.
    Uefi,
}

/// A template VM with one boot disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appliance {
    /// `name_label` of the template.
    pub name: String,
    /// `name_description` of the template.
    pub description: String,
    /// Version, kept in `other_config` under [`TEMPLATE_KEY`].
    pub version: String,
    /// Memory in bytes, for all four limits.
    pub memory_bytes: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Boot mode.
    pub firmware: Firmware,
    /// Entries of `platform` that replace or extend the defaults.
    pub platform: BTreeMap<String, String>,
    /// Entries of `other_config` besides those this crate sets.
    pub other_config: BTreeMap<String, String>,
}

impl Appliance {
    /// An appliance with 256 MiB of memory and one CPU that boots by BIOS.
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            version: version.into(),
            memory_bytes: 256 << 20,
            vcpus: 1,
            firmware: Firmware::Bios,
            platform: BTreeMap::new(),
            other_config: BTreeMap::new(),
        }
    }

    /// `ova.xml` for this appliance with a boot disk of this size and digest.
    pub(crate) fn ova_xml(&self, disk_bytes: u64, digest_hex: &str) -> Result<String> {
        self.check()?;
        let version = Node::record([
            ("hostname", Node::text("")),
            ("date", Node::text("1970-01-01")),
            ("product_version", Node::text("")),
            ("product_brand", Node::text("")),
            ("build_number", Node::text("")),
            // An importer refuses a version above its own.
            ("xapi_major", Node::number(1)),
            ("xapi_minor", Node::number(0)),
            // 2: each chunk is followed by its checksum.
            ("export_vsn", Node::number(2)),
        ]);
        let objects = vec![
            object("SR", SR_ID, sr(disk_bytes, digest_hex)),
            object("VDI", VDI_ID, self.vdi(disk_bytes, digest_hex)),
            object("VM", VM_ID, self.vm(digest_hex)),
            object("VBD", VBD_ID, vbd(digest_hex)),
        ];
        Ok(Node::record([("version", version), ("objects", Node::Array(objects))]).to_xml())
    }

    fn check(&self) -> Result<()> {
        let fail = |field, why| Err(Error::Appliance { field, why });
        let texts = [("name", &self.name), ("description", &self.description), ("version", &self.version)];
        for (field, text) in texts {
            if !is_writable(text) {
                return fail(field, "has a control character");
            }
        }
        if self.name.is_empty() || self.version.is_empty() {
            return fail("name or version", "is empty");
        }
        for (field, map) in [("platform", &self.platform), ("other_config", &self.other_config)] {
            if map.iter().any(|(key, value)| key.is_empty() || !is_writable(key) || !is_writable(value)) {
                return fail(field, "has an empty key or a control character");
            }
        }
        if self.memory_bytes < 32 << 20 || self.vcpus == 0 {
            return fail("memory or vcpus", "is too small to start a VM");
        }
        // The toolstack refuses BIOS with the UEFI device model.
        let model = self.platform.get("device-model").map(String::as_str);
        if self.firmware == Firmware::Bios && model == Some("qemu-upstream-uefi") {
            return fail("platform", "names the UEFI device model, but the firmware is BIOS");
        }
        Ok(())
    }

    fn platform(&self) -> BTreeMap<String, String> {
        let mut platform: BTreeMap<String, String> = [
            ("acpi", "1"),
            ("apic", "true"),
            ("hpet", "true"),
            ("nx", "true"),
            ("pae", "true"),
            ("timeoffset", "0"),
            ("vga", "std"),
            ("videoram", "8"),
            ("viridian", "false"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        if self.firmware == Firmware::Uefi {
            platform.insert("device-model".to_owned(), "qemu-upstream-uefi".to_owned());
            platform.insert("secureboot".to_owned(), "false".to_owned());
        }
        platform.extend(self.platform.clone());
        platform
    }

    fn other_config(&self, digest_hex: &str) -> BTreeMap<String, String> {
        let mut config = self.other_config.clone();
        config.extend([
            (TEMPLATE_KEY.to_owned(), self.version.clone()),
            (DIGEST_KEY.to_owned(), digest_hex.to_owned()),
            ("HideFromXenCenter".to_owned(), "true".to_owned()),
            // Empty: provisioning a clone runs no installer.
            ("install-methods".to_owned(), String::new()),
            ("mac_seed".to_owned(), derived_uuid(digest_hex, "mac_seed")),
        ]);
        config
    }

    fn vm(&self, digest_hex: &str) -> Node {
        let firmware = match self.firmware {
            Firmware::Bios => "bios",
            Firmware::Uefi => "uefi",
        };
        let boot = [("firmware".to_owned(), firmware.to_owned()), ("order".to_owned(), "c".to_owned())];
        let memory = || Node::number(self.memory_bytes);
        let vcpus = || Node::number(u64::from(self.vcpus));
        Node::record([
            ("uuid", Node::text(derived_uuid(digest_hex, "VM"))),
            ("allowed_operations", Node::empty_set()),
            ("current_operations", Node::empty_map()),
            ("power_state", Node::text("Halted")),
            ("name_label", Node::text(&self.name)),
            ("name_description", Node::text(&self.description)),
            ("user_version", Node::number(1)),
            ("is_a_template", Node::Bool(true)),
            ("is_default_template", Node::Bool(false)),
            ("suspend_VDI", Node::text(NULL)),
            ("resident_on", Node::text(NULL)),
            ("affinity", Node::text(NULL)),
            ("memory_overhead", Node::number(0)),
            ("memory_target", memory()),
            ("memory_static_max", memory()),
            ("memory_dynamic_max", memory()),
            ("memory_dynamic_min", memory()),
            ("memory_static_min", memory()),
            ("VCPUs_params", Node::empty_map()),
            ("VCPUs_max", vcpus()),
            ("VCPUs_at_startup", vcpus()),
            // An appliance that reboots or crashes has lost its work: it ends.
            ("actions_after_softreboot", Node::text("destroy")),
            ("actions_after_shutdown", Node::text("destroy")),
            ("actions_after_reboot", Node::text("destroy")),
            ("actions_after_crash", Node::text("destroy")),
            ("consoles", Node::empty_set()),
            ("VIFs", Node::empty_set()),
            ("VBDs", Node::Array(vec![Node::text(VBD_ID)])),
            ("VUSBs", Node::empty_set()),
            ("crash_dumps", Node::empty_set()),
            ("VTPMs", Node::empty_set()),
            ("PV_bootloader", Node::text("")),
            ("PV_kernel", Node::text("")),
            ("PV_ramdisk", Node::text("")),
            ("PV_args", Node::text("")),
            ("PV_bootloader_args", Node::text("")),
            ("PV_legacy_args", Node::text("")),
            ("HVM_boot_policy", Node::text("BIOS order")),
            ("HVM_boot_params", Node::map(&BTreeMap::from(boot))),
            ("HVM_shadow_multiplier", Node::Double("1")),
            ("platform", Node::map(&self.platform())),
            ("PCI_bus", Node::text("")),
            ("other_config", Node::map(&self.other_config(digest_hex))),
            ("domid", Node::text("-1")),
            ("domarch", Node::text("")),
            ("last_boot_CPU_flags", Node::empty_map()),
            ("is_control_domain", Node::Bool(false)),
            ("metrics", Node::text(NULL)),
            ("guest_metrics", Node::text(NULL)),
            ("last_booted_record", Node::text("")),
            ("recommendations", Node::text("")),
            ("xenstore_data", Node::empty_map()),
            ("ha_always_run", Node::Bool(false)),
            ("ha_restart_priority", Node::text("")),
            ("is_a_snapshot", Node::Bool(false)),
            ("snapshot_of", Node::text(NULL)),
            ("snapshots", Node::empty_set()),
            ("snapshot_time", Node::Date(EPOCH)),
            ("transportable_snapshot_id", Node::text("")),
            ("blobs", Node::empty_map()),
            ("tags", Node::empty_set()),
            ("blocked_operations", Node::empty_map()),
            ("snapshot_info", Node::empty_map()),
            ("snapshot_metadata", Node::text("")),
            // Without a parent member an importer takes the file for one from before ballooning and
            // replaces the memory limits.
            ("parent", Node::text(NULL)),
            ("children", Node::empty_set()),
            ("bios_strings", Node::empty_map()),
            ("protection_policy", Node::text(NULL)),
            ("is_snapshot_from_vmpp", Node::Bool(false)),
            ("snapshot_schedule", Node::text(NULL)),
            ("is_vmss_snapshot", Node::Bool(false)),
            ("appliance", Node::text(NULL)),
            ("start_delay", Node::number(0)),
            ("shutdown_delay", Node::number(0)),
            ("order", Node::number(0)),
            ("VGPUs", Node::empty_set()),
            ("attached_PCIs", Node::empty_set()),
            ("suspend_SR", Node::text(NULL)),
            ("version", Node::number(0)),
            ("generation_id", Node::text("")),
            ("hardware_platform_version", Node::number(0)),
            ("has_vendor_device", Node::Bool(false)),
            ("requires_reboot", Node::Bool(false)),
            ("reference_label", Node::text("")),
            ("domain_type", Node::text("hvm")),
            ("NVRAM", Node::empty_map()),
        ])
    }

    fn vdi(&self, disk_bytes: u64, digest_hex: &str) -> Node {
        let uuid = derived_uuid(digest_hex, "VDI");
        Node::record([
            ("uuid", Node::text(&uuid)),
            ("name_label", Node::text(format!("{} boot disk", self.name))),
            ("name_description", Node::text("")),
            ("allowed_operations", Node::empty_set()),
            ("current_operations", Node::empty_map()),
            ("SR", Node::text(SR_ID)),
            ("VBDs", Node::Array(vec![Node::text(VBD_ID)])),
            ("crash_dumps", Node::empty_set()),
            ("virtual_size", Node::number(disk_bytes)),
            ("physical_utilisation", Node::number(disk_bytes)),
            ("type", Node::text("user")),
            ("sharable", Node::Bool(false)),
            ("read_only", Node::Bool(false)),
            ("other_config", Node::empty_map()),
            ("storage_lock", Node::Bool(false)),
            ("location", Node::text(uuid)),
            ("managed", Node::Bool(true)),
            ("missing", Node::Bool(false)),
            ("parent", Node::text(NULL)),
            ("xenstore_data", Node::empty_map()),
            ("sm_config", Node::empty_map()),
            ("is_a_snapshot", Node::Bool(false)),
            ("snapshot_of", Node::text(NULL)),
            ("snapshots", Node::empty_set()),
            ("snapshot_time", Node::Date(EPOCH)),
            ("tags", Node::empty_set()),
            ("allow_caching", Node::Bool(false)),
            ("on_boot", Node::text("persist")),
            ("metadata_of_pool", Node::text(NULL)),
            ("metadata_latest", Node::Bool(false)),
            ("is_tools_iso", Node::Bool(false)),
            ("cbt_enabled", Node::Bool(false)),
        ])
    }
}

fn object(class: &str, id: &str, snapshot: Node) -> Node {
    Node::record([("class", Node::text(class)), ("id", Node::text(id)), ("snapshot", snapshot)])
}

fn vbd(digest_hex: &str) -> Node {
    let owner = BTreeMap::from([("owner".to_owned(), String::new())]);
    Node::record([
        ("uuid", Node::text(derived_uuid(digest_hex, "VBD"))),
        ("allowed_operations", Node::empty_set()),
        ("current_operations", Node::empty_map()),
        ("VM", Node::text(VM_ID)),
        ("VDI", Node::text(VDI_ID)),
        ("device", Node::text("")),
        ("userdevice", Node::text("0")),
        ("bootable", Node::Bool(true)),
        ("mode", Node::text("RW")),
        ("type", Node::text("Disk")),
        ("unpluggable", Node::Bool(true)),
        ("storage_lock", Node::Bool(false)),
        ("empty", Node::Bool(false)),
        ("other_config", Node::map(&owner)),
        ("currently_attached", Node::Bool(false)),
        ("status_code", Node::number(0)),
        ("status_detail", Node::text("")),
        ("runtime_properties", Node::empty_map()),
        ("qos_algorithm_type", Node::text("")),
        ("qos_algorithm_params", Node::empty_map()),
        ("qos_supported_algorithms", Node::empty_set()),
        ("metrics", Node::text(NULL)),
    ])
}

fn sr(disk_bytes: u64, digest_hex: &str) -> Node {
    Node::record([
        ("uuid", Node::text(derived_uuid(digest_hex, "SR"))),
        ("name_label", Node::text("where the appliance was built")),
        ("name_description", Node::text("")),
        ("allowed_operations", Node::empty_set()),
        ("current_operations", Node::empty_map()),
        ("VDIs", Node::Array(vec![Node::text(VDI_ID)])),
        ("PBDs", Node::empty_set()),
        ("virtual_allocation", Node::number(disk_bytes)),
        ("physical_utilisation", Node::number(disk_bytes)),
        ("physical_size", Node::number(disk_bytes)),
        ("type", Node::text("ext")),
        // Anything but "iso": an importer looks for ISO libraries by this word.
        ("content_type", Node::text("user")),
        ("shared", Node::Bool(false)),
        ("other_config", Node::empty_map()),
        ("tags", Node::empty_set()),
        ("sm_config", Node::empty_map()),
        ("blobs", Node::empty_map()),
        ("local_cache_enabled", Node::Bool(false)),
        ("introduced_by", Node::text(NULL)),
        ("clustered", Node::Bool(false)),
        ("is_tools_sr", Node::Bool(false)),
    ])
}

/// A name-based uuid: the same content and role always give the same one.
fn derived_uuid(digest_hex: &str, role: &str) -> String {
    let mut bytes = sha256_16(format!("abd appliance {role} {digest_hex}").as_bytes());
    bytes[6] = 0x50 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    let digits = hex(&bytes);
    format!("{}-{}-{}-{}-{}", &digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_decides_the_boot_fields() {
        let digest = "0".repeat(64);
        let mut appliance = Appliance::new("t", "1");
        let bios = appliance.ova_xml(1 << 20, &digest).expect("valid");
        assert!(bios.contains("<name>firmware</name><value>bios</value>") && !bios.contains("device-model"));
        appliance.firmware = Firmware::Uefi;
        let uefi = appliance.ova_xml(1 << 20, &digest).expect("valid");
        assert!(uefi.contains("<name>firmware</name><value>uefi</value>"));
        assert!(uefi.contains("<name>device-model</name><value>qemu-upstream-uefi</value>"));
        appliance.firmware = Firmware::Bios;
        appliance.platform.insert("device-model".to_owned(), "qemu-upstream-uefi".to_owned());
        assert!(appliance.ova_xml(1 << 20, &digest).is_err());
    }

    #[test]
    fn bad_fields_are_named() {
        let mut appliance = Appliance::new("t", "1");
        appliance.description = "bell\u{7}".to_owned();
        let error = appliance.ova_xml(1 << 20, "").expect_err("control character");
        assert_eq!(error.to_string(), "appliance field description: has a control character");
    }

    #[test]
    fn uuids_have_their_form_and_differ_by_role() {
        let vm = derived_uuid("ab", "VM");
        assert_eq!(vm.len(), 36);
        assert_eq!(&vm[14..15], "5");
        assert_ne!(vm, derived_uuid("ab", "VDI"));
    }
}
