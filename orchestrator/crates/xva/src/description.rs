//! What `ova.xml` says, as far as a reader of ours needs it.

use std::collections::BTreeMap;

use crate::appliance::{DIGEST_KEY, Firmware, TEMPLATE_KEY};
use crate::node::Node;
use crate::{DISK_COUNT_LIMIT, Error, Result};

/// Oldest export version with inline checksums.
const EXPORT_VERSION: u64 = 2;

/// What an XVA holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `name_label` of the VM.
    pub name: String,
    /// `name_description` of the VM.
    pub description: String,
    /// Version of our template, if it is one.
    pub template_version: Option<String>,
    /// SHA-256 of the boot disk as the template states it, hex digits.
    pub digest: Option<String>,
    /// Static memory maximum.
    pub memory_bytes: u64,
    /// Virtual CPUs at start.
    pub vcpus: u64,
    /// Firmware; none for a VM that is not HVM.
    pub firmware: Option<Firmware>,
    /// Whether the import gives a template.
    pub is_template: bool,
    /// The VM's `other_config`.
    pub other_config: BTreeMap<String, String>,
    /// Disks in the order of the file.
    pub disks: Vec<Disk>,
}

/// One disk of an XVA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Id in the file, the folder of its chunks.
    pub id: String,
    /// `name_label` of the VDI.
    pub name: String,
    /// Virtual size.
    pub size_bytes: u64,
    /// Position on the VM.
    pub userdevice: String,
    /// Whether the VM boots from it.
    pub bootable: bool,
}

/// Reads the root value of `ova.xml`.
pub(crate) fn read_description(root: &Node) -> Result<Description> {
    let version = root.get("version").ok_or_else(|| describe("version", "is missing"))?;
    let export_version = number(version, "version", "export_vsn")?;
    if export_version < EXPORT_VERSION {
        return Err(describe(
            "version",
            format!("export_vsn {export_version} has its checksums at the end, which is not supported"),
        ));
    }
    let Some(Node::Array(objects)) = root.get("objects") else {
        return Err(describe("objects", "is missing or not a list"));
    };
    let mut by_class: BTreeMap<&str, Vec<(&str, &Node)>> = BTreeMap::new();
    for object in objects {
        let class = object
            .get("class")
            .and_then(Node::as_text)
            .ok_or_else(|| describe("an object", "has no class"))?;
        let id =
            object.get("id").and_then(Node::as_text).ok_or_else(|| describe("an object", "has no id"))?;
        let record = object.get("snapshot").ok_or_else(|| describe(id, "has no record"))?;
        by_class.entry(class).or_default().push((id, record));
    }
    let empty = Vec::new();
    let class = |name| by_class.get(name).unwrap_or(&empty);
    let flag = |record: &Node, name| record.get(name) == Some(&Node::Bool(true));
    let vms = class("VM");
    let (vm_id, vm) = *vms
        .iter()
        .find(|(_, vm)| !flag(vm, "is_a_snapshot"))
        .or(vms.first())
        .ok_or_else(|| describe("objects", "there is no VM"))?;
    let other_config = string_map(vm, vm_id, "other_config")?;
    Ok(Description {
        name: string(vm, vm_id, "name_label")?,
        description: string(vm, vm_id, "name_description").unwrap_or_default(),
        template_version: other_config.get(TEMPLATE_KEY).cloned(),
        digest: other_config.get(DIGEST_KEY).cloned(),
        memory_bytes: number(vm, vm_id, "memory_static_max")?,
        vcpus: number(vm, vm_id, "VCPUs_at_startup")?,
        firmware: firmware(vm, vm_id),
        is_template: flag(vm, "is_a_template"),
        other_config,
        disks: read_disks(class("VBD"), class("VDI"))?,
    })
}

/// The VDIs that a disk VBD uses; those in drives come from a library, not from the file.
fn read_disks(vbds: &[(&str, &Node)], vdis: &[(&str, &Node)]) -> Result<Vec<Disk>> {
    let mut disks = BTreeMap::new();
    for (vbd_id, vbd) in vbds {
        let word = |name| vbd.get(name).and_then(Node::as_text).unwrap_or_default();
        if word("type") != "Disk" || vbd.get("empty") == Some(&Node::Bool(true)) {
            continue;
        }
        let id = string(vbd, vbd_id, "VDI")?;
        let Some((_, vdi)) = vdis.iter().find(|(vdi_id, _)| *vdi_id == id) else {
            return Err(describe(*vbd_id, format!("its VDI {id} is not in the file")));
        };
        let disk = Disk {
            name: string(vdi, &id, "name_label").unwrap_or_default(),
            size_bytes: number(vdi, &id, "virtual_size")?,
            userdevice: word("userdevice").to_owned(),
            bootable: vbd.get("bootable") == Some(&Node::Bool(true)),
            id: id.clone(),
        };
        disks.insert(id, disk);
        if disks.len() > DISK_COUNT_LIMIT {
            let limit = DISK_COUNT_LIMIT as u64;
            return Err(Error::Limit { what: "number of disks".to_owned(), found: limit + 1, limit });
        }
    }
    Ok(disks.into_values().collect())
}

fn firmware(vm: &Node, vm_id: &str) -> Option<Firmware> {
    let policy = vm.get("HVM_boot_policy").and_then(Node::as_text).unwrap_or_default();
    if policy.is_empty() {
        return None;
    }
    let params = string_map(vm, vm_id, "HVM_boot_params").unwrap_or_default();
    match params.get("firmware").map(String::as_str) {
        Some("uefi") => Some(Firmware::Uefi),
        _ => Some(Firmware::Bios),
    }
}

fn string(record: &Node, id: &str, field: &str) -> Result<String> {
    let value = record.get(field).and_then(Node::as_text);
    value.map(str::to_owned).ok_or_else(|| describe(format!("{id}.{field}"), "is missing or not a text"))
}

fn number(record: &Node, id: &str, field: &str) -> Result<u64> {
    let value = record.get(field).and_then(Node::as_text).and_then(|text| text.trim().parse().ok());
    value.ok_or_else(|| describe(format!("{id}.{field}"), "is missing or not a whole number"))
}

fn string_map(record: &Node, id: &str, field: &str) -> Result<BTreeMap<String, String>> {
    let bad = || describe(format!("{id}.{field}"), "is missing or not a map of texts");
    let Some(Node::Struct(members)) = record.get(field) else { return Err(bad()) };
    members
        .iter()
        .map(|(key, value)| Ok((key.clone(), value.as_text().ok_or_else(bad)?.to_owned())))
        .collect()
}

/// An error about an object of `ova.xml`.
pub(crate) fn describe(object: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Description { object: object.into(), why: why.into() }
}
