//! What a pool holds at one moment, and how two moments differ.

use crate::{Lab, Vm};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Classes whose objects a job may leave. Sessions and tasks are not among them: the pool ends both by itself.
const CLASSES: [&str; 4] = ["VM", "VBD", "VIF", "VDI"];

/// Objects by class and uuid.
#[derive(Clone, Debug, PartialEq)]
pub struct Inventory(BTreeMap<String, BTreeMap<String, Value>>);

impl Inventory {
    /// What there is now.
    pub fn take(lab: &Lab) -> Self {
        let all = lab.inventory();
        let of_class = |class: &str| {
            let objects = all[class].as_array().expect("a list").iter();
            // The storage's own nodes come and go as it likes.
            let objects = objects.filter(|object| object["managed"] != false);
            objects.map(|object| (text(object, "uuid").to_owned(), object.clone())).collect()
        };
        Self(CLASSES.iter().map(|class| ((*class).to_owned(), of_class(class))).collect())
    }

    /// The objects of a class.
    pub fn all(&self, class: &str) -> impl Iterator<Item = &Value> {
        self.0[class].values()
    }

    /// One object.
    pub fn get(&self, class: &str, uuid: &str) -> Option<&Value> {
        self.0[class].get(uuid)
    }

    /// Uuids of the VDIs behind a VM's disks.
    pub fn disks_of(&self, vm: &str) -> Vec<String> {
        let vbds = self.all("VBD").filter(|vbd| vbd["VM"] == vm);
        vbds.map(|vbd| text(vbd, "VDI").to_owned()).filter(|vdi| self.get("VDI", vdi).is_some()).collect()
    }

    /// Without the objects of another one, by uuid.
    pub fn without(&self, others: &Self) -> Self {
        self.filtered(|class, uuid| others.get(class, uuid).is_none())
    }

    /// These VMs with everything that belongs to them, and these VDIs.
    pub fn of(&self, vms: &[String], vdis: &[String]) -> Self {
        let disks: BTreeSet<String> =
            vms.iter().flat_map(|vm| self.disks_of(vm)).chain(vdis.iter().cloned()).collect();
        self.filtered(|class, uuid| match class {
            "VM" => vms.iter().any(|vm| vm == uuid),
            "VDI" => disks.contains(uuid),
            _ => vms.iter().any(|vm| vm == text(&self.0[class][uuid], "VM")),
        })
    }

    /// The objects of one class whose uuids pass a test.
    pub fn select(&self, class: &str, wanted: impl Fn(&str) -> bool) -> Self {
        self.filtered(|found, uuid| found == class && wanted(uuid))
    }

    fn filtered(&self, stays: impl Fn(&str, &str) -> bool) -> Self {
        let of_class = |class: &String, objects: &BTreeMap<String, Value>| {
            let kept = objects.iter().filter(|(uuid, _)| stays(class, uuid));
            kept.map(|(uuid, object)| (uuid.clone(), object.clone())).collect()
        };
        Self(self.0.iter().map(|(class, objects)| (class.clone(), of_class(class, objects))).collect())
    }

    /// What jobs keep between runs for a VM: references of its disks, and its reserved snapshot with its disks.
    pub fn references(&self, vm: &Vm) -> Self {
        let reserved: BTreeSet<&str> =
            self.all("VM").filter(|found| is_reserved(found, vm)).map(|found| text(found, "uuid")).collect();
        let disks: BTreeSet<String> = reserved.iter().flat_map(|vm| self.disks_of(vm)).collect();
        self.filtered(|class, uuid| {
            let object = &self.0[class][uuid];
            match class {
                "VM" => reserved.contains(uuid),
                "VDI" => disks.contains(uuid) || is_reference(object, vm),
                _ => reserved.contains(text(object, "VM")),
            }
        })
    }

    /// For each disk of the VM the number of references to it.
    pub fn reference_counts(&self, vm: &Vm) -> Vec<usize> {
        let reserved = self.all("VM").filter(|found| is_reserved(found, vm)).count();
        let of_disk = |disk: &String| {
            let metadata = self.all("VDI").filter(|vdi| is_reference(vdi, vm));
            metadata.filter(|vdi| vdi["other_config"]["abd:reference"] == disk.as_str()).count()
        };
        vm.vdis.iter().map(|disk| of_disk(disk) + reserved).collect()
    }

    /// What jobs left of what a VM has, or took from it, since `before`: nothing but one reference of each disk may stay.
    pub fn leftovers(&self, before: &Self, vm: &Vm) -> Vec<String> {
        let mut wrong = Vec::new();
        let counts = self.reference_counts(vm).into_iter().zip(before.reference_counts(vm));
        for (disk, (count, old)) in vm.vdis.iter().zip(counts) {
            if count > 1 || count < old {
                wrong.push(format!("{count} references of disk {disk}, {old} before"));
            }
        }
        let old = before.without(&before.references(vm));
        wrong.extend(self.without(&self.references(vm)).differences(&old));
        wrong
    }

    /// How this differs from `before`, a line for each object. Whether changes of a disk are tracked does not count:
    /// jobs switch that on.
    pub fn differences(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        for (class, objects) in &self.0 {
            let old = &before.0[class];
            for (uuid, object) in objects {
                match old.get(uuid) {
                    None => lines.push(format!("left: {class} {object}")),
                    Some(was) if comparable(was) != comparable(object) => {
                        lines.push(format!("changed: {class} {was} is {object}"));
                    }
                    Some(_) => {}
                }
            }
            let lost = old.iter().filter(|(uuid, _)| !objects.contains_key(*uuid));
            lines.extend(lost.map(|(_, object)| format!("lost: {class} {object}")));
        }
        lines
    }
}

fn comparable(object: &Value) -> Map<String, Value> {
    let mut members = object.as_object().expect("an object").clone();
    members.remove("cbt_enabled");
    members
}

fn is_reference(vdi: &Value, vm: &Vm) -> bool {
    let of = &vdi["other_config"]["abd:reference"];
    vdi["type"] == "cbt_metadata" && vm.vdis.iter().any(|disk| of == disk.as_str())
}

fn is_reserved(found: &Value, vm: &Vm) -> bool {
    found["is_a_snapshot"] == true
        && found["snapshot_of"] == vm.uuid.as_str()
        && text(found, "name_label").starts_with("abd-")
        && text(found, "name_label").ends_with("-reserved")
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member].as_str().unwrap_or_else(|| panic!("no {member} in {object}"))
}
