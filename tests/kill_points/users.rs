//! What users of the pool have that looks like ours: copies that inherited our tags, objects with our names. A job, its
//! clean-up and `abd reconcile` must leave all of it alone.

use e2e::{Api, Inventory, Lab, Vm};
use serde_json::{Value, json};
use std::fs;

const MIB: u64 = 1 << 20;

/// Objects of users, as they were made.
pub(super) struct Users(Inventory);

impl Users {
    pub(super) fn nobody(lab: &Lab) -> Self {
        let now = Inventory::take(lab);
        Self(now.since(&now))
    }

    /// Users who come while a job is there, or has just died:
    /// - one clones our snapshots into VMs of their own,
    /// - one calls a VM as our delegate is called, and its snapshot as ours is,
    /// - one has a disk with our tags.
    pub(super) fn come(lab: &Lab, vm: &Vm, job: &str) -> Self {
        let before = Inventory::take(lab);
        let api = Api::new(lab);
        let is_ours = |found: &&Value| {
            found["is_a_snapshot"] == true
                && found["name_label"].as_str().is_some_and(|name| name.starts_with("abd-"))
                && found["snapshot_of"] == vm.uuid.as_str()
        };
        for snapshot in before.all("VM").filter(is_ours) {
            lab.clone_vm(snapshot["uuid"].as_str().expect("a uuid"), "made from a snapshot");
        }

        let name = format!("abd-{job}");
        let named = lab.vm(&name, &[MIB]);
        api.call("VM.snapshot", json!([api.find("VM", &named.uuid), format!("{name}-snapshot")]));

        let owner = fs::read_to_string(lab.path("state").join("owner")).expect("the installation's id");
        let tagged = api.call("VDI.clone", json!([api.find("VDI", &named.vdis[0]), {}]));
        for (key, value) in [("abd:job", job), ("abd:owner", owner.trim())] {
            api.call("VDI.add_to_other_config", json!([tagged, key, value]));
        }
        Self(Inventory::take(lab).since(&before))
    }

    /// How the pool differs from what these users had, and the pool without them.
    pub(super) fn inspect(&self, now: &Inventory) -> (Vec<String>, Inventory) {
        let others = now.without(&self.0);
        let theirs = now.without(&others);
        (theirs.differences(&self.0), others)
    }

    /// They remove what they have.
    pub(super) fn leave(self, lab: &Lab) {
        let api = Api::new(lab);
        for class in ["VM", "VDI"] {
            for object in self.0.all(class) {
                let reference = api.find(class, object["uuid"].as_str().expect("a uuid"));
                api.call(&format!("{class}.destroy"), json!([reference]));
            }
        }
    }
}
