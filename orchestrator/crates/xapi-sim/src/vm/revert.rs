//! `VM.revert`: a VM becomes what one of its snapshots is. Its disks are destroyed and clones of the snapshot's take their
//! place, so they are other VDIs afterwards, without change tracking, and every snapshot of a disk becomes one of the
//! disk that replaced it (`xapi_vm_snapshot.ml`).

use super::{checkpoint, copying, power, rules};
use crate::failure::{Failure, Outcome};
use crate::operation::Operation;
use crate::rpc::value::{NULL, Value};
use crate::sim::{Context, State};
use crate::storage::cloning::{self, Kind};
use crate::storage::vdi;
use crate::store::db::Db;

/// Members that a VM keeps when it becomes its snapshot.
const KEPT: &[&str] = &[
    "uuid",
    "name_label",
    "is_a_snapshot",
    "is_a_template",
    "is_default_template",
    "snapshot_of",
    "snapshot_time",
    "snapshot_info",
    "snapshot_metadata",
    "transportable_snapshot_id",
    "snapshots",
    "suspend_VDI",
    "power_state",
    "parent",
    "children",
    "current_operations",
    "allowed_operations",
    "blocked_operations",
    "metrics",
    "guest_metrics",
    "resident_on",
    "scheduled_to_be_resident_on",
    "affinity",
    "tags",
    "domid",
    "consoles",
    "VBDs",
    "VIFs",
    "VTPMs",
    "VUSBs",
    "VGPUs",
    "attached_PCIs",
    "protection_policy",
    "snapshot_schedule",
    "generation_id",
];

/// Makes a VM what it was when the snapshot was taken.
pub(crate) async fn revert(context: &Context, snapshot: &str) -> Outcome<()> {
    let _from = Operation::begin(context, "VM", snapshot, "revert", |s| {
        rules::assert_allowed(s, snapshot, "revert")
    })?;
    let vm = context.with(|s| s.db.text("VM", snapshot, "snapshot_of"));
    let failed = || Failure::new("VM_REVERT_FAILED", [snapshot, &vm]);
    let _to = Operation::begin(context, "VM", &vm, "reverting", |s| {
        s.db.get("VM", &vm).map_err(|_| failed())?;
        rules::assert_allowed(s, &vm, "reverting")
    })?;
    stop(context, &vm).await?;
    context.with(|s| copy_fields(s, snapshot, &vm));
    let power_state = match replace_devices(context, snapshot, &vm).await {
        Ok(()) => context.with(|s| s.db.text("VM", snapshot, "power_state")),
        Err(failure) => {
            tracing::warn!(%failure, "a revert failed half-way");
            let passed = ["SR_BACKEND_FAILURE_44", "SR_BACKEND_FAILURE_109", "VDI_INCOMPATIBLE_TYPE"];
            return Err(if passed.contains(&failure.code()) { failure } else { failed() });
        }
    };
    context.with(|s| {
        s.db.put("VM", &vm, "parent", Value::text(snapshot));
        s.db.put("VM", &vm, "power_state", Value::text(power_state));
    });
    Ok(())
}

/// A VM that runs is shut down first, whatever it is doing.
async fn stop(context: &Context, vm: &str) -> Outcome<()> {
    match context.with(|s| s.db.text("VM", vm, "power_state")).as_str() {
        "Halted" => Ok(()),
        "Suspended" => checkpoint::discard_memory(context, vm),
        _ => power::hard_shutdown(context, vm, "hard_shutdown").await,
    }
}

fn copy_fields(state: &mut State, snapshot: &str, vm: &str) {
    let Some(record) = state.db.row("VM", snapshot).map(|r| r.record.clone()) else { return };
    for (field, value) in record.into_iter().filter(|(field, _)| !KEPT.contains(&field.as_str())) {
        state.db.put("VM", vm, &field, value);
    }
}

/// Disks and network cards: the VM's own go, copies of the snapshot's come.
async fn replace_devices(context: &Context, snapshot: &str, vm: &str) -> Outcome<()> {
    remove_disks(context, snapshot, vm)?;
    for vbd in context.with(|s| s.db.list("VM", snapshot, "VBDs")) {
        let source = context.with(|s| s.db.text("VBD", &vbd, "VDI"));
        let is_disk = context.with(|s| s.db.text("VBD", &vbd, "type")) == "Disk" && source != NULL;
        let clone = match is_disk {
            true => Some(cloning::derive(context, &source, Kind::Clone).await?),
            false => None,
        };
        context.with(|s| {
            if let Some(clone) = &clone {
                adopt_snapshots(&mut s.db, &source, clone);
            }
            copying::duplicate_vbd(s, &vbd, vm, clone.as_deref());
        });
    }
    let memory = context.with(|s| s.db.text("VM", snapshot, "suspend_VDI"));
    let memory = match memory.as_str() {
        "" | NULL => NULL.to_owned(),
        image => cloning::derive(context, image, Kind::Clone).await?,
    };
    context.with(|s| {
        s.db.put("VM", vm, "suspend_VDI", Value::text(memory));
        for vif in s.db.list("VM", vm, "VIFs") {
            s.db.remove("VIF", &vif);
        }
        for vif in s.db.list("VM", snapshot, "VIFs") {
            copying::copy_vif(s, &vif, vm, true);
        }
    });
    Ok(())
}

/// Removes the VM's VBDs, and its disks but for those that the snapshot knows nothing of: these stay, unattached.
fn remove_disks(context: &Context, snapshot: &str, vm: &str) -> Outcome<()> {
    context.with(|s| {
        let disk = |vbd: &String| s.db.text("VBD", vbd, "VDI");
        let known: Vec<String> = s.db.list("VM", snapshot, "VBDs").iter().map(disk).collect();
        let known: Vec<String> = known.iter().map(|vdi| s.db.text("VDI", vdi, "snapshot_of")).collect();
        for vbd in s.db.list("VM", vm, "VBDs") {
            let disk = s.db.text("VBD", &vbd, "VDI");
            crate::vbd::remove(&mut s.db, &vbd);
            if !known.contains(&disk) {
                continue;
            }
            if s.exports.contains_key(&disk) {
                return Err(Failure::new("VDI_IN_USE", [disk.as_str(), "destroy"]));
            }
            s.lagging.remove(&disk);
            vdi::forget(context, s, &disk)?;
        }
        Ok(())
    })
}

/// All snapshots of the disk that `source` is a snapshot of become snapshots of `clone`.
fn adopt_snapshots(db: &mut Db, source: &str, clone: &str) {
    let original = db.text("VDI", source, "snapshot_of");
    if matches!(original.as_str(), "" | NULL) {
        return;
    }
    for snapshot in db.find("VDI", "snapshot_of", &original) {
        db.put("VDI", &snapshot, "snapshot_of", Value::text(clone));
    }
}
