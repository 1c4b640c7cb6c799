//! Which VM operation is legal when, and which error says that it is not.
//!
//! The order of the checks is the toolstack's: blocked operations, power state, operations in progress, template rules,
//! snapshot rules, guest features.

use crate::failure::{Failure, Outcome};
use crate::flavour::Flavour;
use crate::operation::refuse_overlap;
use crate::rpc::value::Value;
use crate::sim::State;
use crate::store::db::Db;

/// Power states in which an operation is legal; `None` is any.
fn power_states(operation: &str, snapshot: bool) -> Option<&'static [&'static str]> {
    match operation {
        "start"
        | "start_on"
        | "provision"
        | "changing_VCPUs"
        | "changing_memory_limits"
        | "changing_static_range" => Some(&["Halted"]),
        "clone" | "copy" if snapshot => Some(&["Halted", "Suspended"]),
        "clone" | "copy" => Some(&["Halted"]),
        "hard_shutdown" | "shutdown" | "checkpoint" => Some(&["Paused", "Suspended", "Running"]),
        "clean_shutdown" | "pause" | "snapshot_with_quiesce" => Some(&["Running"]),
        "migrate_send" => Some(&["Halted", "Suspended", "Running"]),
        "unpause" => Some(&["Paused"]),
        "destroy" | "export" | "create_template" | "make_into_template" => Some(&["Halted", "Suspended"]),
        _ => None,
    }
}

const TEMPLATE_PERMITS: [&str; 8] = [
    "clone",
    "copy",
    "export",
    "metadata_export",
    "provision",
    "changing_VCPUs",
    "changing_memory_limits",
    "changing_NVRAM",
];
const SNAPSHOT_PERMITS: [&str; 7] =
    ["revert", "clone", "copy", "export", "destroy", "hard_shutdown", "metadata_export"];
/// What `VM.allowed_operations` is made of.
const LISTED: [&str; 18] = [
    "snapshot",
    "snapshot_with_quiesce",
    "checkpoint",
    "revert",
    "clone",
    "copy",
    "export",
    "metadata_export",
    "provision",
    "start",
    "start_on",
    "pause",
    "unpause",
    "clean_shutdown",
    "hard_shutdown",
    "shutdown",
    "destroy",
    "changing_VCPUs",
];

/// Refuses an operation that is illegal on the VM as it is.
pub(crate) fn assert_allowed(state: &State, vm: &str, operation: &str) -> Outcome<()> {
    let db = &state.db;
    db.get("VM", vm)?;
    if let Some(code) = db.map("VM", vm, "blocked_operations").get(operation) {
        return Err(Failure::new("OPERATION_BLOCKED", [vm, code.as_text().unwrap_or_default()]));
    }
    let (template, snapshot) = (db.flag("VM", vm, "is_a_template"), db.flag("VM", vm, "is_a_snapshot"));
    assert_power_state(db, vm, power_states(operation, snapshot))?;
    refuse_overlap(state, "VM", vm, |running| may_overlap(running, operation))?;
    if template && !snapshot {
        assert_template_permits(db, vm, operation)?;
    }
    if snapshot && !SNAPSHOT_PERMITS.contains(&operation) {
        return Err(Failure::new("VM_IS_SNAPSHOT", [vm, operation]));
    }
    match operation {
        "provision" if !template => Err(Failure::bare("PROVISION_ONLY_ALLOWED_ON_TEMPLATE")),
        "revert" if !snapshot => Err(Failure::bare("REVERT_ONLY_ALLOWED_ON_SNAPSHOT")),
        "snapshot" | "checkpoint" => assert_disks_persist(db, vm),
        "snapshot_with_quiesce" if !can_quiesce(state, vm) => {
            Err(Failure::new("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", [vm]))
        }
        "snapshot_with_quiesce" => assert_disks_persist(db, vm),
        "clean_shutdown" if !can_shut_down(db, vm) => Err(Failure::new("VM_LACKS_FEATURE", [vm])),
        _ => Ok(()),
    }
}

fn assert_power_state(db: &Db, vm: &str, expected: Option<&[&str]>) -> Outcome<()> {
    let actual = db.text("VM", vm, "power_state");
    match expected {
        Some(states) if !states.contains(&actual.as_str()) => Err(Failure::new(
            "VM_BAD_POWER_STATE",
            [vm, &states.join(", ").to_lowercase(), &actual.to_lowercase()],
        )),
        _ => Ok(()),
    }
}

/// `VM_BAD_POWER_STATE` unless the VM is in one of the states.
pub(crate) fn assert_state(db: &Db, vm: &str, expected: &[&str]) -> Outcome<()> {
    db.get("VM", vm)?;
    assert_power_state(db, vm, Some(expected))
}

fn may_overlap(running: &str, wanted: &str) -> bool {
    let copying = |op: &str| matches!(op, "clone" | "copy" | "export");
    (copying(running) && copying(wanted))
        || (matches!(running, "snapshot" | "checkpoint") && matches!(wanted, "snapshot" | "checkpoint"))
        || (running == "snapshot_with_quiesce" && wanted == "snapshot")
        || (wanted == "hard_shutdown" && running != "hard_shutdown")
        || (wanted == "shutdown" && running != "shutdown" && running != "hard_shutdown")
}

fn assert_template_permits(db: &Db, vm: &str, operation: &str) -> Outcome<()> {
    let default = db.flag("VM", vm, "is_default_template");
    match operation {
        "destroy" if default => Err(Failure::new("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", [vm])),
        "destroy" => Ok(()),
        _ if TEMPLATE_PERMITS.contains(&operation) => Ok(()),
        _ => Err(Failure::new("VM_IS_TEMPLATE", [vm, operation])),
    }
}

fn assert_disks_persist(db: &Db, vm: &str) -> Outcome<()> {
    for vbd in db.list("VM", vm, "VBDs") {
        if db.text("VDI", &db.text("VBD", &vbd, "VDI"), "on_boot") == "reset" {
            return Err(Failure::bare("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"));
        }
    }
    if !db.list("VM", vm, "VUSBs").is_empty() {
        return Err(Failure::new("VM_HAS_VUSBS", [vm]));
    }
    Ok(())
}

/// Whether a quiesced snapshot can be asked for: the release still has it, and an agent in the guest says it can do its
/// part (`xapi_vm_lifecycle.ml` of those releases).
fn can_quiesce(state: &State, vm: &str) -> bool {
    let metrics = state.db.text("VM", vm, "guest_metrics");
    let other = state.db.map("VM_guest_metrics", &metrics, "other");
    let says = ["feature-quiesce", "feature-snapshot"].iter().any(|key| other.contains_key(*key));
    Flavour::quiesces(state.api) && says
}

/// PV and PVH guests are assumed to be able to; HVM guests must have said so.
fn can_shut_down(db: &Db, vm: &str) -> bool {
    if !is_hvm(db, vm) {
        return true;
    }
    let metrics = db.text("VM", vm, "guest_metrics");
    let other = db.map("VM_guest_metrics", &metrics, "other");
    let says = |key: &str| other.get(key).and_then(Value::as_text) == Some("1");
    db.flag("VM_guest_metrics", &metrics, "PV_drivers_detected")
        || says("feature-shutdown")
        || says("feature-poweroff")
}

/// Whether the VM boots through emulated firmware; a release without domain types derives it from the boot policy.
pub(crate) fn is_hvm(db: &Db, vm: &str) -> bool {
    match db.text("VM", vm, "domain_type").as_str() {
        "hvm" => true,
        "" | "unspecified" => !db.text("VM", vm, "HVM_boot_policy").is_empty(),
        _ => false,
    }
}

/// What `VM.allowed_operations` answers.
pub(crate) fn allowed_operations(state: &State, vm: &str) -> Vec<String> {
    LISTED.iter().filter(|op| assert_allowed(state, vm, op).is_ok()).map(|op| (*op).to_owned()).collect()
}

/// `VM.set_is_a_template`.
pub(crate) fn check_template_flag(db: &Db, vm: &str, value: &Value) -> Outcome<()> {
    if db.flag("VM", vm, "is_a_snapshot") {
        return Err(Failure::new("VM_IS_SNAPSHOT", [vm, "make_into_template"]));
    }
    if *value == Value::Bool(true) {
        return assert_state(db, vm, &["Halted", "Suspended"]);
    }
    if db.flag("VM", vm, "is_default_template") {
        return Err(Failure::new("VM_IS_TEMPLATE", [vm, "make_into_template"]));
    }
    Ok(())
}

/// A BIOS guest cannot have the device model of UEFI guests.
pub(crate) fn check_platform(db: &Db, vm: &str, value: &Value) -> Outcome<()> {
    let Some(platform) = value.as_map() else { return Ok(()) };
    let model = platform.get("device-model").and_then(Value::as_text).unwrap_or_default();
    let boot = db.map("VM", vm, "HVM_boot_params");
    let firmware = boot.get("firmware").and_then(Value::as_text).unwrap_or("bios");
    if model == "qemu-upstream-uefi" && firmware == "bios" {
        return Err(Failure::invalid_value("platform.device-model", model));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_follow_the_toolstack() {
        assert!(may_overlap("clone", "export") && may_overlap("snapshot", "snapshot"));
        assert!(may_overlap("checkpoint", "snapshot") && !may_overlap("checkpoint", "clone"));
        assert!(
            may_overlap("clean_shutdown", "hard_shutdown") && !may_overlap("hard_shutdown", "hard_shutdown")
        );
        assert!(!may_overlap("snapshot", "clone") && !may_overlap("start", "start"));
    }
}
