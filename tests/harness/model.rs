//! What users and administrators do to the VMs of a simulated pool, drawn from a seed, and what every disk holds
//! because of it.
//!
//! Owns: the users' VMs, disks and snapshots, each disk's bytes as they must be, and the record of what was done.
//! Promises: the same seed makes the same requests, as far as the pool's own state (references that `abd` left) is
//! the same. Never: looks into `abd` or its store.

use crate::admin::{Admin, NULL};
use crate::content::{noise, text};
use crate::draw::Draw;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// The block of change tracking and of the simulator's digests.
const GRANULE: usize = 65_536;
const SECTOR: u64 = 512;
/// Largest disk, also when it grows.
const LARGEST: u64 = 8 << 20;
/// Most disks of a VM.
const MOST_DISKS: usize = 4;
/// Most snapshots that users keep at a time, in all: each holds copies of its disks in this process too.
const MOST_SNAPSHOTS: usize = 5;
/// Most disks that belong to no VM for a while.
const MOST_SHELVED: usize = 3;
/// Positions that users' disks take.
const POSITIONS: u64 = 8;
/// Tag of our references with the uuid of the live disk or VM.
const TAG_REFERENCE: &str = "abd:reference";

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

/// Things that happen to VMs between backups.
#[derive(Clone, Copy, Debug)]
enum Change {
    Write,
    WriteSame,
    WriteAll,
    Zero,
    Grow,
    Add,
    Remove,
    Shelve,
    Unshelve,
    Reorder,
    Replace,
    SwitchTrackingOff,
    ResetTracking,
    DestroyReference,
    Snapshot,
    RemoveSnapshot,
    Revert,
    Power,
}

/// How often each happens.
const CHANGES: &[(Change, u64)] = &[
    (Change::Write, 50),
    (Change::WriteSame, 8),
    (Change::WriteAll, 4),
    (Change::Zero, 8),
    (Change::Grow, 5),
    (Change::Add, 3),
    (Change::Remove, 3),
    (Change::Shelve, 3),
    (Change::Unshelve, 3),
    (Change::Reorder, 4),
    (Change::Replace, 3),
    (Change::SwitchTrackingOff, 3),
    (Change::ResetTracking, 3),
    (Change::DestroyReference, 4),
    (Change::Snapshot, 3),
    (Change::RemoveSnapshot, 3),
    (Change::Revert, 2),
    (Change::Power, 5),
];

/// The users' side of a pool.
#[derive(Debug)]
pub struct Model {
    admin: Admin,
    draw: Draw,
    repository: String,
    tracks: bool,
    vms: Vec<UserVm>,
    shelf: Vec<Disk>,
    /// Numbers contents and names.
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

    /// Lets something happen to some VM.
    pub fn change(&mut self) {
        let change = self.draw.weighted(CHANGES);
        let vm = self.draw.index(self.vms.len());
        let disk = self.draw.index(self.vms[vm].disks.len());
        match change {
            Change::Write => self.write(vm, disk),
            Change::WriteSame => self.write_same(vm, disk),
            Change::WriteAll => self.write_all(vm, disk),
            Change::Zero => self.zero(vm, disk),
            Change::Grow => self.grow(vm, disk),
            Change::Add => self.add(vm),
            Change::Remove => self.remove(vm, disk),
            Change::Shelve => self.shelve(vm, disk),
            Change::Unshelve => self.unshelve(vm),
            Change::Reorder => self.reorder(vm),
            Change::Replace => self.replace(vm, disk),
            Change::SwitchTrackingOff => self.switch_tracking_off(vm, disk),
            Change::ResetTracking => self.reset_tracking(vm, disk),
            Change::DestroyReference => self.destroy_reference(),
            Change::Snapshot => self.snapshot(vm),
            Change::RemoveSnapshot => self.remove_snapshot(vm),
            Change::Revert => self.revert(vm),
            Change::Power => self.power(vm),
        }
    }

    /// Writes somewhere on a disk of this VM.
    pub fn write_somewhere(&mut self, vm: usize) {
        let disk = self.draw.index(self.vms[vm].disks.len());
        self.write(vm, disk);
    }

    /// Changes a block of every disk of a VM behind the back of change tracking: a defect of the pool.
    pub fn write_untracked(&mut self, vm: usize) {
        for at in 0..self.vms[vm].disks.len() {
            let uuid = self.vms[vm].disks[at].disk.uuid.clone();
            let bytes = self.content(SECTOR);
            let path = self.admin.lab("GET", &format!("/lab/vdi/{uuid}/path"), None);
            let path = path["path"].as_str().expect("a path").to_owned();
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("the disk's file");
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("written");
            self.vms[vm].disks[at].disk.put(0, &bytes);
            self.note(vm, format!("{SECTOR} bytes written to the start of {uuid} that nobody tracks"));
        }
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

/// What happens, one function each.
impl Model {
    fn make_vm(&mut self, name: &str) {
        let made = self.admin.lab("POST", "/lab/vm", Some(&json!({"name": name, "disks": []})));
        self.vms.push(UserVm {
            name: name.to_owned(),
            uuid: words(&made["uuid"]),
            reference: words(&made["ref"]),
            disks: Vec::new(),
            running: false,
            snapshots: Vec::new(),
        });
        let vm = self.vms.len() - 1;
        for _ in 0..self.draw.between(1, MOST_DISKS as u64) {
            self.add(vm);
        }
        if self.draw.once_in(3) {
            self.power(vm);
        }
    }

    /// A size of whole sectors, mostly small, mostly not of whole blocks.
    fn size(&mut self) -> u64 {
        let largest = self.draw.weighted(&[(512 << 10, 5), (2 << 20, 4), (LARGEST, 1)]);
        let sectors = self.draw.between(GRANULE as u64 / SECTOR, largest / SECTOR);
        match self.draw.once_in(4) {
            true => (sectors * SECTOR).next_multiple_of(GRANULE as u64),
            false => sectors * SECTOR,
        }
    }

    fn content(&mut self, size: u64) -> Vec<u8> {
        self.made += 1;
        let size = usize::try_from(size).expect("disks are small");
        match self.draw.below(4) {
            0 => text(self.made, size),
            // The same bytes again and again, so that different disks have equal blocks.
            1 => vec![u8::try_from(self.draw.between(1, 3)).expect("a digit"); size],
            _ => noise(self.made, size),
        }
    }

    /// A range of a disk: mostly small, sometimes across many blocks.
    fn range(&mut self, vm: usize, disk: usize) -> (u64, u64) {
        let size = self.vms[vm].disks[disk].disk.bytes.len() as u64;
        let longest =
            self.draw.weighted(&[(SECTOR, 4), (GRANULE as u64, 3), (10 * GRANULE as u64, 2), (size, 1)]);
        let offset = self.draw.below(size);
        let length = self.draw.between(1, longest.min(size - offset));
        (offset, length)
    }

    fn put(&mut self, vm: usize, disk: usize, offset: u64, bytes: &[u8]) {
        let target = &mut self.vms[vm].disks[disk].disk;
        self.admin.write(&target.uuid, offset, bytes);
        target.put(offset, bytes);
    }

    fn write(&mut self, vm: usize, disk: usize) {
        let (offset, length) = self.range(vm, disk);
        let bytes = self.content(length);
        self.put(vm, disk, offset, &bytes);
        let uuid = self.vms[vm].disks[disk].disk.uuid.clone();
        self.note(vm, format!("{length} bytes written at {offset} of {uuid}"));
    }

    fn write_same(&mut self, vm: usize, disk: usize) {
        let (offset, length) = self.range(vm, disk);
        let target = &self.vms[vm].disks[disk].disk;
        let at = usize::try_from(offset).expect("disks are small");
        let same = target.bytes[at..at + usize::try_from(length).expect("disks are small")].to_vec();
        let uuid = target.uuid.clone();
        self.put(vm, disk, offset, &same);
        self.note(vm, format!("{length} bytes rewritten as they were at {offset} of {uuid}"));
    }

    fn write_all(&mut self, vm: usize, disk: usize) {
        let size = self.vms[vm].disks[disk].disk.bytes.len() as u64;
        let bytes = self.content(size);
        self.put(vm, disk, 0, &bytes);
        let uuid = self.vms[vm].disks[disk].disk.uuid.clone();
        self.note(vm, format!("all {size} bytes of {uuid} written"));
    }

    fn zero(&mut self, vm: usize, disk: usize) {
        let (offset, length) = self.range(vm, disk);
        let target = &mut self.vms[vm].disks[disk].disk;
        let uuid = target.uuid.clone();
        self.admin.lab("POST", &format!("/lab/vdi/{uuid}/zero?offset={offset}&length={length}"), None);
        target.put(offset, &vec![0; usize::try_from(length).expect("disks are small")]);
        self.note(vm, format!("{length} bytes zeroed at {offset} of {uuid}"));
    }

    fn grow(&mut self, vm: usize, disk: usize) {
        let more = self.draw.between(1, 2 * GRANULE as u64 / SECTOR) * SECTOR;
        let target = &mut self.vms[vm].disks[disk].disk;
        let size = (target.bytes.len() as u64 + more).min(LARGEST);
        self.admin.lab("POST", &format!("/lab/vdi/{}/resize?size={size}", target.uuid), None);
        target.bytes.resize(usize::try_from(size).expect("disks are small"), 0);
        target.digest = None;
        let uuid = target.uuid.clone();
        self.note(vm, format!("{uuid} grown to {size} bytes"));
    }

    fn add(&mut self, vm: usize) {
        if self.vms[vm].disks.len() >= MOST_DISKS {
            return;
        }
        let Some(position) = self.free_position(vm) else { return };
        let size = self.size();
        self.made += 1;
        let record = json!({
            "name_label": format!("disk {}", self.made), "name_description": "", "SR": self.repository,
            "virtual_size": size, "type": "user", "sharable": false, "read_only": false, "other_config": {},
        });
        let reference = words(&self.admin.call("VDI.create", &[record]));
        let disk = Disk {
            uuid: self.admin.text("VDI.get_uuid", &reference),
            reference,
            bytes: vec![0; usize::try_from(size).expect("disks are small")],
            digest: None,
        };
        let uuid = disk.uuid.clone();
        self.attach(vm, disk, position);
        self.note(vm, format!("{uuid} of {size} bytes added at position {position}"));
        if self.draw.below(4) > 0 {
            let at = self.vms[vm].disks.len() - 1;
            self.write(vm, at);
        }
    }

    fn free_position(&mut self, vm: usize) -> Option<u64> {
        let taken: Vec<u64> = self.vms[vm].disks.iter().map(|at| at.position).collect();
        let free: Vec<u64> = (0..POSITIONS).filter(|position| !taken.contains(position)).collect();
        (!free.is_empty()).then(|| *self.draw.pick(&free))
    }

    fn attach(&mut self, vm: usize, disk: Disk, position: u64) {
        self.halt(vm);
        let record = json!({
            "VM": self.vms[vm].reference, "VDI": disk.reference, "userdevice": position.to_string(),
            "bootable": position == 0, "mode": "RW", "type": "Disk", "empty": false, "unpluggable": true,
            "other_config": {"owner": ""}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        });
        let vbd = words(&self.admin.call("VBD.create", &[record]));
        self.vms[vm].disks.push(Attached { disk, vbd, position });
    }

    fn detach(&mut self, vm: usize, disk: usize) -> Disk {
        self.halt(vm);
        let at = self.vms[vm].disks.remove(disk);
        self.admin.call("VBD.destroy", &[json!(at.vbd)]);
        at.disk
    }

    fn remove(&mut self, vm: usize, disk: usize) {
        if self.vms[vm].disks.len() < 2 {
            return;
        }
        let disk = self.detach(vm, disk);
        self.admin.call("VDI.destroy", &[json!(disk.reference)]);
        self.note(vm, format!("{} removed", disk.uuid));
    }

    fn shelve(&mut self, vm: usize, disk: usize) {
        if self.vms[vm].disks.len() < 2 || self.shelf.len() >= MOST_SHELVED {
            return;
        }
        let disk = self.detach(vm, disk);
        self.note(vm, format!("{} detached", disk.uuid));
        self.shelf.push(disk);
    }

    /// A detached disk comes back, to its VM or to another.
    fn unshelve(&mut self, vm: usize) {
        if self.shelf.is_empty() || self.vms[vm].disks.len() >= MOST_DISKS {
            return;
        }
        let Some(position) = self.free_position(vm) else { return };
        let disk = self.shelf.remove(0);
        let uuid = disk.uuid.clone();
        self.attach(vm, disk, position);
        self.note(vm, format!("{uuid} attached at position {position}"));
        if self.draw.once_in(2) {
            let at = self.vms[vm].disks.len() - 1;
            self.write(vm, at);
        }
    }

    /// All disks change their places.
    fn reorder(&mut self, vm: usize) {
        let mut disks = Vec::new();
        while !self.vms[vm].disks.is_empty() {
            let disk = self.draw.index(self.vms[vm].disks.len());
            disks.push(self.detach(vm, disk));
        }
        for disk in disks {
            let position = self.free_position(vm).expect("there are more positions than disks");
            let uuid = disk.uuid.clone();
            self.attach(vm, disk, position);
            self.note(vm, format!("{uuid} moved to position {position}"));
        }
    }

    /// Another disk, with nothing or other things on it, takes the place of one.
    fn replace(&mut self, vm: usize, disk: usize) {
        if self.vms[vm].disks.len() == MOST_DISKS {
            self.remove(vm, disk);
            return self.add(vm);
        }
        let position = self.vms[vm].disks[disk].position;
        let old = self.detach(vm, disk);
        self.add(vm);
        self.admin.call("VDI.destroy", &[json!(old.reference)]);
        self.note(vm, format!("{} at position {position} replaced", old.uuid));
    }

    fn switch_tracking_off(&mut self, vm: usize, disk: usize) {
        if !self.tracks {
            return;
        }
        let reference = self.vms[vm].disks[disk].disk.reference.clone();
        self.admin.call("VDI.disable_cbt", &[json!(reference)]);
        let uuid = self.vms[vm].disks[disk].disk.uuid.clone();
        self.note(vm, format!("change tracking of {uuid} switched off"));
    }

    fn reset_tracking(&mut self, vm: usize, disk: usize) {
        if !self.tracks {
            return;
        }
        let reference = self.vms[vm].disks[disk].disk.reference.clone();
        if self.admin.call("VDI.get_cbt_enabled", &[json!(reference)]) != true {
            return;
        }
        let uuid = self.vms[vm].disks[disk].disk.uuid.clone();
        self.admin.call("VDI.disable_cbt", &[json!(reference)]);
        if self.draw.once_in(2) {
            self.write(vm, disk);
        }
        self.admin.call("VDI.enable_cbt", &[json!(reference)]);
        self.note(vm, format!("change tracking of {uuid} switched off and on"));
    }

    /// Somebody tidies up what `abd` needs.
    fn destroy_reference(&mut self) {
        let inventory = self.admin.lab("GET", "/lab/inventory", None);
        let all: Vec<&Value> = list(&inventory, "VDI").collect();
        let of = |vdi: &&&Value| vdi["other_config"][TAG_REFERENCE].is_string();
        // In the order of the users' disks: uuids are not drawn from the seed.
        let order: Vec<&str> =
            self.vms.iter().flat_map(|vm| &vm.disks).map(|at| at.disk.uuid.as_str()).collect();
        let mut found: Vec<(usize, String)> = all
            .iter()
            .filter(of)
            .filter_map(|vdi| {
                let live = vdi["other_config"][TAG_REFERENCE].as_str()?;
                Some((order.iter().position(|uuid| *uuid == live)?, words(&vdi["uuid"])))
            })
            .collect();
        found.sort();
        if found.is_empty() {
            return;
        }
        let (_, uuid) = self.draw.pick(&found).clone();
        let reference = self.admin.call("VDI.get_by_uuid", &[json!(uuid)]);
        self.admin.call("VDI.destroy", &[reference]);
        self.transcript.push(format!("reference {uuid} destroyed"));
    }

    fn snapshot(&mut self, vm: usize) {
        let kept: usize = self.vms.iter().map(|vm| vm.snapshots.len()).sum();
        if kept >= MOST_SNAPSHOTS {
            return;
        }
        self.made += 1;
        let name = format!("{} before change {}", self.vms[vm].name, self.made);
        let reference = words(&self.admin.call("VM.snapshot", &[json!(self.vms[vm].reference), json!(name)]));
        let uuid = self.admin.text("VM.get_uuid", &reference);
        let mut disks = Vec::new();
        for vbd in self.admin.call("VM.get_VBDs", &[json!(reference)]).as_array().expect("a list") {
            let record = self.admin.call("VBD.get_record", std::slice::from_ref(vbd));
            let (vdi, position) = (words(&record["VDI"]), words(&record["userdevice"]));
            assert_ne!(vdi, NULL, "a snapshot's drive without a disk");
            let position: u64 = position.parse().expect("a number");
            let live = self.vms[vm].disks.iter().find(|at| at.position == position);
            let bytes = live.expect("a snapshot has the disks of its VM").disk.bytes.clone();
            disks.push((vdi.clone(), self.admin.text("VDI.get_uuid", &vdi), position, bytes));
        }
        disks.sort_by_key(|(_, _, position, _)| *position);
        self.note(vm, format!("snapshot {uuid} made"));
        self.vms[vm].snapshots.push(UserSnapshot { reference, uuid, disks });
    }

    fn remove_snapshot(&mut self, vm: usize) {
        let Some(snapshot) = self.vms[vm].snapshots.pop() else { return };
        self.admin.call("VM.destroy", &[json!(snapshot.reference)]);
        for (vdi, _, _, _) in &snapshot.disks {
            self.admin.call("VDI.destroy", &[json!(vdi)]);
        }
        self.note(vm, format!("snapshot {} removed", snapshot.uuid));
    }

    /// The VM goes back to a snapshot: as the API does it, by other disks in the place of its disks.
    fn revert(&mut self, vm: usize) {
        let Some(snapshot) = self.vms[vm].snapshots.pop() else { return };
        while !self.vms[vm].disks.is_empty() {
            let old = self.detach(vm, 0);
            self.admin.call("VDI.destroy", &[json!(old.reference)]);
        }
        for (vdi, _, position, bytes) in &snapshot.disks {
            let reference = words(&self.admin.call("VDI.clone", &[json!(vdi)]));
            let uuid = self.admin.text("VDI.get_uuid", &reference);
            self.attach(vm, Disk { uuid, reference, bytes: bytes.clone(), digest: None }, *position);
        }
        self.note(vm, format!("reverted to snapshot {}", snapshot.uuid));
        self.vms[vm].snapshots.push(snapshot);
    }

    fn power(&mut self, vm: usize) {
        if self.vms[vm].running {
            return self.halt(vm);
        }
        let reference = json!(self.vms[vm].reference);
        self.admin.call("VM.start", &[reference, json!(false), json!(false)]);
        self.vms[vm].running = true;
        self.note(vm, "started".to_owned());
    }

    fn halt(&mut self, vm: usize) {
        if !self.vms[vm].running {
            return;
        }
        self.admin.call("VM.hard_shutdown", &[json!(self.vms[vm].reference)]);
        self.vms[vm].running = false;
        self.note(vm, "switched off".to_owned());
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

/// The digest that the simulator gives of a disk's blocks that are not zeros.
#[derive(Debug)]
pub struct SparseDigest(Sha256);

impl SparseDigest {
    /// Of a disk of this size.
    pub fn new(size: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(size.to_le_bytes());
        Self(hash)
    }

    /// The next block that is not all zeros; its number counts from the start of the disk.
    pub fn block(&mut self, index: u64, bytes: &[u8]) {
        self.0.update(index.to_le_bytes());
        self.0.update(bytes);
    }

    /// The digest in hexadecimal.
    pub fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The digest of a disk that is in memory.
fn sparse_digest(bytes: &[u8]) -> String {
    static ZEROS: [u8; GRANULE] = [0; GRANULE];
    let mut digest = SparseDigest::new(bytes.len() as u64);
    for (index, block) in (0u64..).zip(bytes.chunks(GRANULE)) {
        if block != &ZEROS[..block.len()] {
            digest.block(index, block);
        }
    }
    digest.finish()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_knows_size_place_and_content_and_no_zeros() {
        let mut bytes = vec![0; 3 * GRANULE + 5];
        let empty = sparse_digest(&bytes);
        // From sha256sum, of the size alone.
        assert_eq!(empty, SparseDigest::new(bytes.len() as u64).finish());
        assert_ne!(sparse_digest(&bytes[1..]), empty);
        bytes[GRANULE] = 1;
        let one = sparse_digest(&bytes);
        bytes.swap(GRANULE, 2 * GRANULE);
        assert_ne!(sparse_digest(&bytes), one);
        bytes[2 * GRANULE] = 0;
        assert_eq!(sparse_digest(&bytes), empty);
    }
}
