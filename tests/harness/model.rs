//! What users and administrators do to the VMs of a simulated pool, drawn from a seed, and what every disk holds
//! because of it.
//!
//! Owns: the users' VMs, disks and snapshots, each disk's bytes as they must be, and the record of what was done.
//! Promises: the same seed makes the same requests, as far as the pool's own state (references that `abd` left) is
//! the same. Never: looks into `abd` or its store.

mod changes;

use crate::admin::Admin;
use crate::digest::sparse_digest;
use crate::draw::Draw;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Positions that users' disks take.
pub const POSITIONS: u64 = 8;

/// A disk of a user.
#[derive(Debug)]
struct Disk {
    uuid: String,
    reference: String,
    bytes: Vec<u8>,
    digest: Option<String>,
}

/// A disk in its place on a VM.
#[derive(Debug)]
struct Attached {
    disk: Disk,
    vbd: String,
    position: u64,
}

/// A snapshot that a user made.
#[derive(Debug)]
struct UserSnapshot {
    reference: String,
    uuid: String,
    /// Disk of the snapshot (reference and uuid), position, bytes.
    disks: Vec<(String, String, u64, Vec<u8>)>,
}

/// A VM of a user.
#[derive(Debug)]
struct UserVm {
    name: String,
    uuid: String,
    reference: String,
    disks: Vec<Attached>,
    running: bool,
    snapshots: Vec<UserSnapshot>,
}

/// What a restore point must say of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Position on the VM.
    pub position: u64,
    /// Bytes.
    pub size: u64,
    /// The digest that the simulator would give (`sparse=1`).
    pub digest: String,
}

/// The users' side of a pool.
#[derive(Debug)]
pub struct Model {
    admin: Admin,
    draw: Draw,
    repository: String,
    tracks: bool,
    vms: Vec<UserVm>,
    shelf: Vec<Disk>,
    /// Numbers names.
    made: u64,
    /// What was done, one line each.
    pub transcript: Vec<String>,
}

impl Model {
    /// Makes VMs with small disks. `tracks` says whether the pool knows change tracking.
    pub fn new(admin: Admin, seed: u64, vms: usize, tracks: bool) -> Self {
        let pool = admin.call("pool.get_all", &[]);
        let repository = admin.text("pool.get_default_SR", pool[0].as_str().expect("a reference"));
        let mut model = Self {
            admin,
            draw: Draw::new(seed),
            repository,
            tracks,
            vms: Vec::new(),
            shelf: Vec::new(),
            made: 0,
            transcript: Vec::new(),
        };
        for number in 0..vms {
            model.make_vm(&format!("vm{number:02}"));
        }
        model
    }

    /// The administrator.
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// How many VMs there are.
    pub fn count(&self) -> usize {
        self.vms.len()
    }

    /// Name of a VM.
    pub fn name(&self, vm: usize) -> &str {
        &self.vms[vm].name
    }

    /// Uuid of a VM.
    pub fn uuid(&self, vm: usize) -> &str {
        &self.vms[vm].uuid
    }

    /// The VM with this name.
    pub fn by_name(&self, name: &str) -> Option<usize> {
        self.vms.iter().position(|vm| vm.name == name)
    }

    /// Whether a VM has disks at other positions than this.
    pub fn has_disks_beside(&self, vm: usize, position: u64) -> bool {
        self.vms[vm].disks.iter().any(|at| at.position != position)
    }

    /// A host went down: VMs that are off now are off.
    pub fn notice_outage(&mut self, inventory: &Value) {
        let vms = by_uuid(inventory, "VM");
        for vm in &mut self.vms {
            vm.running &= vms.get(vm.uuid.as_str()).is_some_and(|found| found["power_state"] == "Running");
        }
    }

    /// What a restore point of the VM, made of it as it is now, must hold: by uuid of the live disk.
    pub fn expected(&mut self, vm: usize) -> BTreeMap<String, Expected> {
        let disks = self.vms[vm].disks.iter_mut();
        disks
            .map(|at| {
                let size = at.disk.bytes.len() as u64;
                let expected = Expected { position: at.position, size, digest: at.disk.digest() };
                (at.disk.uuid.clone(), expected)
            })
            .collect()
    }

    /// What of the users' things is missing in an inventory, or not as they left it.
    pub fn missing(&self, inventory: &Value) -> Vec<String> {
        let vms = by_uuid(inventory, "VM");
        let vdis = by_uuid(inventory, "VDI");
        let mut missing = Vec::new();
        let mut disk = |uuid: &str, size: usize| match vdis.get(uuid) {
            Some(vdi) if vdi["virtual_size"] == size => {}
            Some(vdi) => missing.push(format!("VDI {uuid} of {size} bytes is {vdi}")),
            None => missing.push(format!("VDI {uuid}")),
        };
        for vm in &self.vms {
            vm.disks.iter().for_each(|at| disk(&at.disk.uuid, at.disk.bytes.len()));
            let kept = vm.snapshots.iter().flat_map(|snapshot| &snapshot.disks);
            kept.for_each(|(_, uuid, _, bytes)| disk(uuid, bytes.len()));
        }
        self.shelf.iter().for_each(|d| disk(&d.uuid, d.bytes.len()));
        for vm in &self.vms {
            let state = if vm.running { "Running" } else { "Halted" };
            match vms.get(vm.uuid.as_str()) {
                Some(found) if found["power_state"] == state => {}
                Some(found) => missing.push(format!("{state} {} is {}", vm.name, found["power_state"])),
                None => missing.push(vm.name.clone()),
            }
            let snapshots = vm.snapshots.iter().filter(|s| !vms.contains_key(s.uuid.as_str()));
            missing.extend(snapshots.map(|s| format!("snapshot {} of {}", s.uuid, vm.name)));
            let has: BTreeSet<_> = list(inventory, "VBD")
                .filter(|vbd| vbd["VM"] == vm.uuid.as_str())
                .map(|vbd| (words(&vbd["VDI"]), words(&vbd["userdevice"])))
                .collect();
            let wanted: BTreeSet<_> =
                vm.disks.iter().map(|at| (at.disk.uuid.clone(), at.position.to_string())).collect();
            if has != wanted {
                missing.push(format!("{} has the disks {has:?} and not {wanted:?}", vm.name));
            }
        }
        missing
    }

    /// The disks of users whose bytes are not those that users wrote.
    pub fn altered(&mut self) -> Vec<String> {
        let mut altered = Vec::new();
        let shelf = self.shelf.iter_mut();
        let attached = self.vms.iter_mut().flat_map(|vm| &mut vm.disks).map(|at| &mut at.disk);
        for disk in shelf.chain(attached) {
            let found = self.admin.lab("GET", &format!("/lab/vdi/{}/digest?sparse=1", disk.uuid), None);
            if found["sparse_sha256"] != disk.digest().as_str() {
                altered.push(disk.uuid.clone());
            }
        }
        for (reference, uuid, _, bytes) in self.vms.iter().flat_map(|vm| &vm.snapshots).flat_map(|s| &s.disks)
        {
            let found = self.admin.lab("GET", &format!("/lab/vdi/{uuid}/digest?sparse=1"), None);
            if found["sparse_sha256"] != sparse_digest(bytes).as_str() {
                altered.push(format!("{uuid} ({reference}) of a snapshot"));
            }
        }
        altered
    }

    /// Whether an object of an inventory belongs to users.
    pub fn owns(&self, class: &str, object: &Value) -> bool {
        let uuid = object["uuid"].as_str().unwrap_or_default();
        let vm = |uuid: &str| {
            self.vms.iter().any(|vm| vm.uuid == uuid || vm.snapshots.iter().any(|s| s.uuid == uuid))
        };
        match class {
            "VM" => vm(uuid),
            "VBD" | "VIF" => vm(object["VM"].as_str().unwrap_or_default()),
            "VDI" => {
                let kept = self.vms.iter().flat_map(|vm| &vm.snapshots).flat_map(|s| &s.disks);
                let attached = self.vms.iter().flat_map(|vm| &vm.disks).map(|at| &at.disk);
                attached.chain(&self.shelf).any(|disk| disk.uuid == uuid)
                    || kept.into_iter().any(|(_, kept, _, _)| kept == uuid)
            }
            _ => false,
        }
    }

    /// Whether a live disk (by uuid) exists.
    pub fn has_disk(&self, uuid: &str) -> bool {
        let attached = self.vms.iter().flat_map(|vm| &vm.disks).map(|at| &at.disk);
        attached.chain(&self.shelf).any(|disk| disk.uuid == uuid)
    }

    fn note(&mut self, vm: usize, what: String) {
        self.transcript.push(format!("{}: {what}", self.vms[vm].name));
    }
}

impl Disk {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).expect("disks are small");
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.digest = None;
    }

    fn digest(&mut self) -> String {
        self.digest.get_or_insert_with(|| sparse_digest(&self.bytes)).clone()
    }
}

/// The objects of a class in an inventory.
pub fn list<'a>(inventory: &'a Value, class: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    inventory[class].as_array().expect("a list").iter()
}

fn by_uuid<'a>(inventory: &'a Value, class: &str) -> BTreeMap<&'a str, &'a Value> {
    list(inventory, class).filter_map(|object| Some((object["uuid"].as_str()?, object))).collect()
}

fn words(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
