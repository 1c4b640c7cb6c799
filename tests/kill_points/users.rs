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
        Self(Inventory::take(lab).of(&[], &[]))
    }

    /// Users who come while a job is there, or has just died:
    /// - one clones our snapshots into VMs of their own,
    /// - one calls a VM as our delegate is called, and its snapshot as ours is,
    /// - one has a disk with our tags, and a snapshot of it without a VM.
    pub(super) fn come(lab: &Lab, vm: &Vm, job: &str) -> Self {
        let api = Api::new(lab);
        let is_ours = |found: &&Value| {
            found["is_a_snapshot"] == true
                && found["name_label"].as_str().is_some_and(|name| name.starts_with("abd-"))
                && found["snapshot_of"] == vm.uuid.as_str()
        };
        let mut vms: Vec<String> = Inventory::take(lab)
            .all("VM")
            .filter(is_ours)
            .map(|snapshot| lab.clone_vm(snapshot["uuid"].as_str().expect("a uuid"), "made from a snapshot"))
            .collect();

        let name = format!("abd-{job}");
        let named = lab.vm(&name, &[MIB]);
        let snapshot =
            api.call("VM.snapshot", json!([api.find("VM", &named.uuid), format!("{name}-snapshot")]));
        vms.extend([named.uuid.clone(), api.uuid("VM", &snapshot)]);

        let owner = fs::read_to_string(lab.path("state").join("owner")).expect("the installation's id");
        let tagged = api.call("VDI.clone", json!([api.find("VDI", &named.vdis[0]), {}]));
        for (key, value) in [("abd:job", job), ("abd:owner", owner.trim())] {
            api.call("VDI.add_to_other_config", json!([tagged, key, value]));
        }
        let snapshot = api.call("VDI.snapshot", json!([tagged, {}]));
        let mut vdis = vec![tagged, snapshot];
        for vm in &vms {
            let memory = api.call("VM.get_suspend_VDI", json!([api.find("VM", vm)]));
            vdis.extend(Some(memory).filter(|vdi| *vdi != "OpaqueRef:NULL"));
        }
        let vdis: Vec<String> = vdis.iter().map(|vdi| api.uuid("VDI", vdi)).collect();
        Self(Inventory::take(lab).of(&vms, &vdis))
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
        for vm in self.0.all("VM") {
            let reference = api.find("VM", vm["uuid"].as_str().expect("a uuid"));
            if vm["power_state"] == "Suspended" && vm["is_a_snapshot"] == false {
                // Its memory goes with that.
                api.call("VM.hard_shutdown", json!([reference]));
            }
            api.call("VM.destroy", json!([reference]));
        }
        let now = Inventory::take(lab);
        for vdi in self.0.all("VDI").map(|vdi| vdi["uuid"].as_str().expect("a uuid")) {
            if now.get("VDI", vdi).is_some() {
                api.call("VDI.destroy", json!([api.find("VDI", vdi)]));
            }
        }
    }
}
