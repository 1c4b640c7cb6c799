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
    Snapshot {
        /// Disks to leave out.
        ignored: Vec<String>,
        /// Whether the guest's agent brings its applications to rest first.
        quiesced: bool,
    },
    /// A snapshot with memory, of a VM that has just been suspended.
    Checkpoint,
    Clone,
    Copy {
        sr: Option<String>,
    },
}

impl Kind {
    fn operation(&self) -> &'static str {
        match self {
            Self::Snapshot { quiesced: false, .. } => "snapshot",
            Self::Snapshot { quiesced: true, .. } => "snapshot_with_quiesce",
            Self::Checkpoint => "checkpoint",
            Self::Clone => "clone",
            Self::Copy { .. } => "copy",
        }
    }

    fn is_snapshot(&self) -> bool {
        matches!(self, Self::Snapshot { .. } | Self::Checkpoint)
    }

    /// The state of a copy of a VM in `state`, by `Xapi_vm_clone.clone`.
    fn state_of_copy(&self, state: &str) -> &'static str {
        match (self, state) {
            (Self::Checkpoint | Self::Clone | Self::Copy { .. }, "Suspended") => "Suspended",
            _ => "Halted",
        }
    }
}

/// Copies a VM and answers the new one.
pub(crate) async fn copy(context: &Context, vm: &str, name: &str, kind: &Kind) -> Outcome<String> {
    let operation = kind.operation();
    let _running = Operation::begin(context, "VM", vm, operation, |s| assert_allowed(s, vm, operation))?;
    copy_now(context, vm, name, kind).await
}

/// Copies a VM that is marked as being copied already.
pub(crate) async fn copy_now(context: &Context, vm: &str, name: &str, kind: &Kind) -> Outcome<String> {
    let mut disks = HashMap::new();
    let copied = match copy_disks(context, vm, kind, &mut disks).await {
        Ok(()) => copy_memory(context, vm, kind).await,
        Err(failure) => Err(failure),
    };
    match copied {
        Ok(memory) => Ok(context.with(|s| copy_records(s, vm, name, kind, &disks, memory))),
        Err(failure) => {
            context.with(|s| {
                for disk in disks.values() {
                    // The failure being answered matters more than a file that could not be deleted.
                    let _ = vdi::forget(context, s, disk);
                }
            });
            Err(failure)
        }
    }
}

/// Copies the memory image of a suspended VM, where the copy is to have one.
async fn copy_memory(context: &Context, vm: &str, kind: &Kind) -> Outcome<Option<String>> {
    let memory = context.with(|s| s.db.text("VM", vm, "suspend_VDI"));
    if matches!(memory.as_str(), "" | NULL) {
        return Ok(None);
    }
    Ok(match kind {
        Kind::Snapshot { .. } => None,
        Kind::Checkpoint => Some(cloning::derive(context, &memory, DiskKind::Snapshot).await?),
        Kind::Clone => Some(cloning::derive(context, &memory, DiskKind::Clone).await?),
        Kind::Copy { .. } => {
            let sr = context.with(|s| s.db.text("VDI", &memory, "SR"));
            Some(cloning::copy(context, &memory, &sr, None).await?)
        }
    })
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
            Kind::Snapshot { ignored, .. } if ignored.contains(&source) => continue,
            Kind::Snapshot { .. } | Kind::Checkpoint => {
                cloning::derive(context, &source, DiskKind::Snapshot).await?
            }
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
    memory: Option<String>,
) -> String {
    let snapshot = kind.is_snapshot();
    let mut record = copied_vm(&state.db, vm, name, kind);
    if let Some(memory) = memory {
        record.insert("suspend_VDI".into(), Value::text(memory));
    }
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

fn copied_vm(db: &Db, vm: &str, name: &str, kind: &Kind) -> Record {
    let snapshot = kind.is_snapshot();
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
    put("power_state", Value::text(kind.state_of_copy(&state)));
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
        let quiesced = matches!(kind, Kind::Snapshot { quiesced: true, .. });
        let disks = if quiesced { "quiesced" } else { "crash_consistent" };
        // A checkpoint suspends a running VM first and tells what it was before.
        let before = if *kind == Kind::Checkpoint && state == "Suspended" { "Running" } else { &state };
        put(
            "snapshot_info",
            Value::text_map([("power-state-at-snapshot", before), ("disk-snapshot-type", disks)]),
        );
        if quiesced {
            put("transportable_snapshot_id", Value::text(Uuid::new_v4().to_string()));
        }
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
    let db = &state.db;
    let is_disk = db.text("VBD", vbd, "type") == "Disk";
    if is_disk && !disks.contains_key(vbd) && db.text("VBD", vbd, "VDI") != NULL {
        // Its disk was left out on request, and so is the VBD.
        return;
    }
    let copy = duplicate_vbd(state, vbd, vm, disks.get(vbd).map(String::as_str));
    // Real servers keep the attachments of a suspended VM, of its copy too, so that they can be told at resuming.
    if state.db.text("VM", vm, "power_state") == "Suspended" {
        let attached = Value::Bool(state.db.flag("VBD", vbd, "currently_attached"));
        state.db.put("VBD", &copy, "currently_attached", attached);
    }
    if is_disk && snapshot {
        state.db.put("VBD", &copy, "other_config", Value::text_map([("owner", "")]));
    }
}

/// A copy of a VBD on another VM, perhaps with another disk, attached to nothing.
pub(crate) fn duplicate_vbd(state: &mut State, vbd: &str, vm: &str, disk: Option<&str>) -> String {
    let mut record = state.db.row("VBD", vbd).map(|r| r.record.clone()).unwrap_or_default();
    if let Some(disk) = disk {
        record.insert("VDI".into(), Value::text(disk));
    }
    record.insert("uuid".into(), Value::text(Uuid::new_v4().to_string()));
    record.insert("VM".into(), Value::text(vm));
    record.insert("currently_attached".into(), Value::Bool(false));
    record.insert("current_operations".into(), Value::Map(Record::new()));
    record.insert("runtime_properties".into(), Value::Map(Record::new()));
    record.insert("device".into(), Value::text(""));
    crate::vbd::insert(&mut state.db, record)
}

/// A copy of a VIF on another VM; that of a snapshot keeps its address.
pub(crate) fn copy_vif(state: &mut State, vif: &str, vm: &str, snapshot: bool) {
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
