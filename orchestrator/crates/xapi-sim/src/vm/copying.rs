//! Making VMs out of VMs: snapshot, clone, copy. Disks first, one after the other; then the records. A failure removes
//! the disks made so far.

use super::{create, rules::assert_allowed};
use crate::failure::Outcome;
use crate::operation::Operation;
use crate::rpc::value::{EPOCH, NULL, Record, Value};
use crate::sim::{Context, State, now};
use crate::storage::cloning::{self, Kind as DiskKind};
use crate::storage::vdi;
use crate::store::db::{Db, text_of};
use std::collections::HashMap;
use uuid::Uuid;

/// Which copy is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Snapshot { ignored: Vec<String> },
    Clone,
    Copy { sr: Option<String> },
}

impl Kind {
    fn operation(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "snapshot",
            Self::Clone => "clone",
            Self::Copy { .. } => "copy",
        }
    }
}

/// Copies a VM and answers the new one.
pub(crate) async fn copy(context: &Context, vm: &str, name: &str, kind: &Kind) -> Outcome<String> {
    let operation = kind.operation();
    let _running = Operation::begin(context, "VM", vm, operation, |s| assert_allowed(s, vm, operation))?;
    let mut disks = HashMap::new();
    if let Err(failure) = copy_disks(context, vm, kind, &mut disks).await {
        context.with(|s| {
            for disk in disks.values() {
                // The failure being answered matters more than a file that could not be deleted.
                let _ = vdi::forget(context, s, disk);
            }
        });
        return Err(failure);
    }
    Ok(context.with(|s| copy_records(s, vm, name, kind, &disks)))
}

/// Copies every disk of the VM; `disks` maps VBD to the copy.
async fn copy_disks(
    context: &Context,
    vm: &str,
    kind: &Kind,
    disks: &mut HashMap<String, String>,
) -> Outcome<()> {
    let vbds = context.with(|s| s.db.list("VM", vm, "VBDs"));
    let count = vbds.len().max(1) as f64;
    for (index, vbd) in vbds.iter().enumerate() {
        context.check_cancelled()?;
        let (disk, source) = context.with(|s| (s.db.text("VBD", vbd, "type"), s.db.text("VBD", vbd, "VDI")));
        if disk != "Disk" || source == NULL {
            continue;
        }
        let made = match kind {
            Kind::Snapshot { ignored } if ignored.contains(&source) => continue,
            Kind::Snapshot { .. } => cloning::derive(context, &source, DiskKind::Snapshot).await?,
            Kind::Clone => cloning::derive(context, &source, DiskKind::Clone).await?,
            Kind::Copy { sr } => {
                let sr = sr.clone().unwrap_or_else(|| context.with(|s| s.db.text("VDI", &source, "SR")));
                cloning::copy(context, &source, &sr, None).await?
            }
        };
        disks.insert(vbd.clone(), made);
        context.progress((index + 1) as f64 / count);
    }
    Ok(())
}

fn copy_records(
    state: &mut State,
    vm: &str,
    name: &str,
    kind: &Kind,
    disks: &HashMap<String, String>,
) -> String {
    let snapshot = matches!(kind, Kind::Snapshot { .. });
    let record = copied_vm(&state.db, vm, name, snapshot);
    let copy = create::insert(state, record);
    for vbd in state.db.list("VM", vm, "VBDs") {
        copy_vbd(state, &vbd, &copy, disks, snapshot);
    }
    for vif in state.db.list("VM", vm, "VIFs") {
        copy_vif(state, &vif, &copy, snapshot);
    }
    if snapshot {
        state.db.put("VM", vm, "parent", Value::text(&copy));
    }
    copy
}

fn copied_vm(db: &Db, vm: &str, name: &str, snapshot: bool) -> Record {
    let mut record = db.row("VM", vm).map(|r| r.record.clone()).unwrap_or_default();
    let template = db.flag("VM", vm, "is_a_template");
    let state = db.text("VM", vm, "power_state");
    let mut put = |name: &str, value: Value| record.insert(name.to_owned(), value);
    put("uuid", Value::text(Uuid::new_v4().to_string()));
    put("name_label", Value::text(name));
    for many in ["VBDs", "VIFs", "consoles", "snapshots", "children", "VTPMs", "crash_dumps"] {
        put(many, Value::List(vec![]));
    }
    put("current_operations", Value::Map(Record::new()));
    put("blocked_operations", Value::Map(Record::new()));
    put("power_state", Value::text("Halted"));
    put("domid", Value::Int(-1));
    put("resident_on", Value::null_ref());
    put("guest_metrics", Value::null_ref());
    put("suspend_VDI", Value::null_ref());
    put("is_a_snapshot", Value::Bool(snapshot));
    put("snapshot_of", if snapshot { Value::text(vm) } else { Value::null_ref() });
    put("snapshot_time", if snapshot { now() } else { Value::Date(EPOCH.into()) });
    put("snapshot_info", Value::Map(Record::new()));
    put("is_default_template", Value::Bool(false));
    put("generation_id", Value::text(generation_id()));
    if snapshot {
        put("is_a_template", Value::Bool(true));
        let info = [("power-state-at-snapshot", state.as_str()), ("disk-snapshot-type", "crash_consistent")];
        put("snapshot_info", Value::text_map(info));
    } else {
        put("parent", Value::null_ref());
        let other = cloned_other_config(db, vm, template);
        put("other_config", Value::Map(other));
    }
    record
}

fn cloned_other_config(db: &Db, vm: &str, template: bool) -> Record {
    let mut other = db.map("VM", vm, "other_config");
    other.remove("default_template");
    other.remove("xensource_internal");
    other.insert("mac_seed".into(), Value::text(Uuid::new_v4().to_string()));
    if template {
        other.insert("base_template_name".into(), Value::text(db.text("VM", vm, "name_label")));
    }
    other
}

fn generation_id() -> String {
    let bits = Uuid::new_v4().as_u128();
    format!("{}:{}", bits as u64 as i64, (bits >> 64) as u64 as i64)
}

fn copy_vbd(state: &mut State, vbd: &str, vm: &str, disks: &HashMap<String, String>, snapshot: bool) {
    let Some(mut record) = state.db.row("VBD", vbd).map(|r| r.record.clone()) else { return };
    let is_disk = text_of(&record, "type") == "Disk";
    if is_disk && !disks.contains_key(vbd) && text_of(&record, "VDI") != NULL {
        // Its disk was left out on request, and so is the VBD.
        return;
    }
    if let Some(disk) = disks.get(vbd) {
        record.insert("VDI".into(), Value::text(disk));
    }
    record.insert("uuid".into(), Value::text(Uuid::new_v4().to_string()));
    record.insert("VM".into(), Value::text(vm));
    record.insert("currently_attached".into(), Value::Bool(false));
    record.insert("current_operations".into(), Value::Map(Record::new()));
    record.insert("runtime_properties".into(), Value::Map(Record::new()));
    record.insert("device".into(), Value::text(""));
    if is_disk && snapshot {
        record.insert("other_config".into(), Value::text_map([("owner", "")]));
    }
    crate::vbd::insert(&mut state.db, record);
}

fn copy_vif(state: &mut State, vif: &str, vm: &str, snapshot: bool) {
    let Some(mut record) = state.db.row("VIF", vif).map(|r| r.record.clone()) else { return };
    record.insert("uuid".into(), Value::text(Uuid::new_v4().to_string()));
    record.insert("VM".into(), Value::text(vm));
    record.insert("currently_attached".into(), Value::Bool(false));
    record.insert("current_operations".into(), Value::Map(Record::new()));
    if !snapshot {
        let seed = state.db.map("VM", vm, "other_config");
        let seed = seed.get("mac_seed").and_then(Value::as_text).unwrap_or_default().to_owned();
        let mac = crate::vif::generated_mac(&seed, &text_of(&record, "device"));
        record.insert("MAC".into(), Value::text(mac));
        record.insert("MAC_autogenerated".into(), Value::Bool(true));
    }
    state.db.create("VIF", record);
}
