//! What happens to VMs between backups, one function each.

use super::{Attached, Disk, Model, POSITIONS, UserSnapshot, UserVm, list, words};
use crate::admin::NULL;
use crate::content::{noise, text};
use crate::digest::GRANULE;
use crate::draw::Draw;
use serde_json::{Value, json};

const SECTOR: u64 = 512;
/// Largest disk, also when it grows.
const LARGEST: u64 = 8 << 20;
/// Most disks of a VM.
const MOST_DISKS: usize = 4;
/// Most snapshots that users keep at a time, in all: each holds copies of its disks in this process too.
const MOST_SNAPSHOTS: usize = 5;
/// Most disks that belong to no VM for a while.
const MOST_SHELVED: usize = 3;
/// Tag of our references with the uuid of the live disk or VM.
const TAG_REFERENCE: &str = "abd:reference";

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

impl Model {
    /// Lets something happen to some VM.
    pub fn change(&mut self) {
        let seed = self.draw.bits();
        self.drawing_from(seed, Self::change_now);
    }

    /// Does something whose number of draws may depend on the pool, so that later draws do not.
    fn drawing_from(&mut self, seed: u64, work: impl FnOnce(&mut Self)) {
        let later = std::mem::replace(&mut self.draw, Draw::new(seed));
        work(self);
        self.draw = later;
    }

    fn change_now(&mut self) {
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

    /// Writes somewhere on a disk of this VM, drawing from a seed of its own: when it happens is up to the machine.
    pub fn write_somewhere(&mut self, vm: usize, seed: u64) {
        self.drawing_from(seed, |model| {
            let disk = model.draw.index(model.vms[vm].disks.len());
            model.write(vm, disk);
        });
    }

    /// Changes a block of every disk of a VM whose changes are tracked, behind the back of the tracking: a defect of
    /// the pool.
    pub fn write_untracked(&mut self, vm: usize) {
        for at in 0..self.vms[vm].disks.len() {
            let disk = &self.vms[vm].disks[at].disk;
            let (uuid, reference) = (disk.uuid.clone(), json!(disk.reference));
            if self.admin.call("VDI.get_cbt_enabled", &[reference]) != true {
                continue;
            }
            let bytes = self.content(SECTOR);
            let path = self.admin.lab("GET", &format!("/lab/vdi/{uuid}/path"), None);
            let path = path["path"].as_str().expect("a path").to_owned();
            let file = std::fs::OpenOptions::new().write(true).open(path).expect("the disk's file");
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("written");
            self.vms[vm].disks[at].disk.put(0, &bytes);
            self.note(vm, format!("{SECTOR} bytes written to the start of {uuid} that nobody tracks"));
        }
    }
}

/// What happens, one function each.
impl Model {
    pub(super) fn make_vm(&mut self, name: &str) {
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
        let (seed, size) = (self.draw.bits(), usize::try_from(size).expect("disks are small"));
        match self.draw.below(4) {
            0 => text(seed, size),
            // The same bytes again and again, so that different disks have equal blocks.
            1 => vec![u8::try_from(self.draw.between(1, 3)).expect("a digit"); size],
            _ => noise(seed, size),
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

    /// Change tracking breaks, in one of the ways it does, or somebody switches it off and on.
    fn reset_tracking(&mut self, vm: usize, disk: usize) {
        let how = *self.draw.pick(&["inconsistent", "off", "restarted", "by hand"]);
        let target = &self.vms[vm].disks[disk].disk;
        let (uuid, reference) = (target.uuid.clone(), json!(target.reference));
        let on = || self.admin.call("VDI.get_cbt_enabled", std::slice::from_ref(&reference)) == true;
        if !self.tracks || !on() {
            return;
        }
        if how == "by hand" {
            self.admin.call("VDI.disable_cbt", std::slice::from_ref(&reference));
            self.write(vm, disk);
            self.admin.call("VDI.enable_cbt", &[reference]);
        } else {
            self.admin.lab("POST", &format!("/lab/vdi/{uuid}/cbt-reset?how={how}"), None);
        }
        self.note(vm, format!("change tracking of {uuid} reset: {how}"));
    }

    /// Somebody tidies up what `abd` needs: a reference, a disk of a reserved snapshot, or the snapshot itself.
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
        let with =
            list(&inventory, "VBD").find(|vbd| vbd["VDI"] == uuid.as_str()).map(|vbd| vbd["VM"].clone());
        if let (Some(snapshot), true) = (with, self.draw.once_in(2)) {
            let reference = self.admin.call("VM.get_by_uuid", std::slice::from_ref(&snapshot));
            self.admin.call("VM.destroy", &[reference]);
            return self
                .transcript
                .push(format!("reserved snapshot {snapshot} destroyed, but not its disks"));
        }
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
