//! Turning the records of an XVA into objects of this pool, as a normal (not restoring) import does: new identities,
//! references mapped, what belongs to the other pool dropped.

use super::xva::{Manifest, Object};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{Context, State};
use crate::storage::vdi;
use crate::store::coerce::coerce;
use crate::store::db::{Db, text_of};
use crate::store::schema::schema;
use crate::vm::create;
use std::collections::BTreeMap;
use uuid::Uuid;

/// A disk to fill.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) id: String,
    pub(super) vdi: String,
    pub(super) size: u64,
}

/// What an import has made so far; undone when it fails.
#[derive(Debug, Default)]
pub(super) struct Imported {
    pub(super) vms: Vec<String>,
    /// In the order of their chunks: by the text of their ids.
    pub(super) disks: Vec<Disk>,
    networks: Vec<String>,
}

impl Imported {
    /// Removes everything again.
    pub(super) fn undo(&self, context: &Context) {
        context.with(|s| {
            for vm in &self.vms {
                create::remove(s, vm);
            }
            for disk in &self.disks {
                // The failure being answered matters more than a file that could not be deleted.
                let _ = vdi::forget(context, s, &disk.vdi);
            }
            for network in &self.networks {
                s.db.remove("network", network);
            }
        });
    }
}

/// Makes the objects of a manifest. On failure `made` holds what has to be undone.
pub(super) async fn create_all(
    context: &Context,
    manifest: &Manifest,
    sr: &str,
    restore: bool,
    made: &mut Imported,
) -> Outcome<()> {
    let of = |class: &'static str| manifest.objects.iter().filter(move |o| o.class == class);
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    let mut disks: Vec<&Object> = of("VDI").filter(|o| is_disk(manifest, o)).collect();
    disks.sort_by(|a, b| a.id.cmp(&b.id));
    for object in disks {
        let disk = create_disk(context, object, sr).await?;
        map.insert(object.id.clone(), disk.vdi.clone());
        made.disks.push(disk);
    }
    context.with(|s| {
        for object in of("VM") {
            let vm = create_vm(s, object, restore, context.task.as_deref())?;
            map.insert(object.id.clone(), vm.clone());
            made.vms.push(vm);
        }
        for object in of("network") {
            let network = find_network(s, object, made)?;
            map.insert(object.id.clone(), network);
        }
        for object in of("VBD") {
            create_vbd(s, object, &map)?;
        }
        for object in of("VIF") {
            create_vif(s, object, &map, restore)?;
        }
        link_snapshots(s, manifest, &map);
        Ok(())
    })
}

/// Only disks that a VBD of type Disk names have contents in the file.
fn is_disk(manifest: &Manifest, vdi: &Object) -> bool {
    let names = |o: &Object| text_of(&o.record, "VDI") == vdi.id && text_of(&o.record, "type") == "Disk";
    manifest.objects.iter().any(|o| o.class == "VBD" && names(o))
}

/// The members of a record in their declared types; those without default must be there.
fn typed(object: &Object) -> Outcome<Record> {
    let mut record = Db::blank(&object.class);
    let class = schema().class(&object.class);
    for field in class.map(|c| c.fields.as_slice()).unwrap_or_default() {
        match object.record.get(&field.name) {
            Some(value) => {
                record.insert(field.name.clone(), coerce(value.clone(), &field.kind, &field.name)?);
            }
            None if required(&object.class, &field.name) => {
                return Err(Failure::field_type(&field.name));
            }
            None => {}
        }
    }
    Ok(record)
}

/// Members that have no default in the data model; a server refuses a record without them.
fn required(class: &str, field: &str) -> bool {
    let names: &[&str] = match class {
        "VM" => &[
            "uuid",
            "user_version",
            "is_a_template",
            "resident_on",
            "affinity",
            "memory_static_max",
            "memory_dynamic_max",
            "memory_dynamic_min",
            "memory_static_min",
            "VCPUs_params",
            "VCPUs_max",
            "VCPUs_at_startup",
            "actions_after_shutdown",
            "actions_after_reboot",
            "actions_after_crash",
            "PV_bootloader",
            "PV_kernel",
            "PV_ramdisk",
            "PV_args",
            "PV_bootloader_args",
            "PV_legacy_args",
            "HVM_boot_policy",
            "HVM_boot_params",
            "platform",
            "PCI_bus",
            "other_config",
            "domid",
            "domarch",
            "is_control_domain",
            "metrics",
            "guest_metrics",
            "recommendations",
        ],
        "VBD" => &[
            "uuid",
            "VM",
            "VDI",
            "userdevice",
            "bootable",
            "mode",
            "type",
            "storage_lock",
            "empty",
            "other_config",
            "status_code",
            "status_detail",
            "runtime_properties",
            "qos_algorithm_type",
            "qos_algorithm_params",
            "qos_supported_algorithms",
        ],
        "VIF" => &[
            "uuid",
            "device",
            "network",
            "VM",
            "MAC",
            "MTU",
            "other_config",
            "status_code",
            "status_detail",
            "runtime_properties",
            "qos_algorithm_type",
            "qos_algorithm_params",
            "qos_supported_algorithms",
        ],
        "VDI" => &[
            "uuid",
            "SR",
            "virtual_size",
            "physical_utilisation",
            "type",
            "sharable",
            "read_only",
            "other_config",
            "storage_lock",
            "managed",
            "missing",
            "parent",
        ],
        "network" => &["uuid", "other_config"],
        _ => &[],
    };
    names.contains(&field)
}

async fn create_disk(context: &Context, object: &Object, sr: &str) -> Outcome<Disk> {
    let mut record = typed(object)?;
    let size = match record.get("virtual_size") {
        Some(Value::Int(size)) if *size > 0 => u64::try_from(*size).unwrap_or_default(),
        _ => return Err(Failure::field_type("virtual_size")),
    };
    record.insert("SR".into(), Value::text(sr));
    let vdi = vdi::create(context, &record).await?;
    if let Some(task) = &context.task {
        context.with(|s| s.db.put_key("VDI", &vdi, "sm_config", "import_task", Some(Value::text(task))));
    }
    Ok(Disk { id: object.id.clone(), vdi, size })
}

fn create_vm(state: &mut State, object: &Object, restore: bool, task: Option<&str>) -> Outcome<String> {
    let mut record = typed(object)?;
    let mut put = |name: &str, value: Value| record.insert(name.to_owned(), value);
    put("uuid", Value::text(Uuid::new_v4().to_string()));
    for many in ["VBDs", "VIFs", "VTPMs", "consoles", "snapshots", "children", "crash_dumps"] {
        put(many, Value::List(vec![]));
    }
    for reference in
        ["resident_on", "affinity", "guest_metrics", "suspend_VDI", "appliance", "parent", "snapshot_of"]
    {
        put(reference, Value::null_ref());
    }
    // Until its disks are whole nothing else may be done with it (`import.ml`: `complete_import` ends this).
    put("current_operations", Value::text_map(task.map(|task| (task, "import"))));
    put("power_state", Value::text("Halted"));
    put("domid", Value::Int(-1));
    put("version", Value::Int(0));
    put("is_default_template", Value::Bool(false));
    let policy = text_of(&record, "HVM_boot_policy");
    if matches!(text_of(&record, "domain_type").as_str(), "" | "unspecified") {
        let kind = if policy.is_empty() { "pv" } else { "hvm" };
        record.insert("domain_type".into(), Value::text(kind));
    }
    edit_maps(&mut record, restore, task);
    crate::vm::limits::check(&record)?;
    Ok(create::insert(state, record))
}

fn edit_maps(record: &mut Record, restore: bool, task: Option<&str>) {
    let uefi = matches!(record.get("HVM_boot_params"), Some(Value::Map(boot))
        if boot.get("firmware").and_then(Value::as_text) == Some("uefi"));
    let hvm = text_of(record, "domain_type") == "hvm";
    if let Some(Value::Map(other)) = record.get_mut("other_config") {
        other.remove("default_template");
        other.remove("is_default_template");
        if !restore {
            other.insert("mac_seed".into(), Value::text(Uuid::new_v4().to_string()));
        }
        if let Some(task) = task {
            other.insert("import_task".into(), Value::text(task));
        }
    }
    if let Some(Value::Map(platform)) = record.get_mut("platform")
        && hvm
    {
        let model = if uefi { "qemu-upstream-uefi" } else { "qemu-upstream-compat" };
        platform.entry("device-model".into()).or_insert_with(|| Value::text(model));
    }
}

/// By name, then by bridge, else a new internal network.
fn find_network(state: &mut State, object: &Object, made: &mut Imported) -> Outcome<String> {
    let record = typed(object)?;
    for field in ["name_label", "bridge"] {
        let wanted = text_of(&record, field);
        if let Some(found) =
            state.db.find("network", field, &wanted).into_iter().next().filter(|_| !wanted.is_empty())
        {
            return Ok(found);
        }
    }
    let mut fresh = Db::blank("network");
    for field in ["name_label", "name_description", "MTU", "other_config"] {
        fresh.extend(record.get(field).map(|value| (field.to_owned(), value.clone())));
    }
    let count = state.db.refs("network").len();
    fresh.insert("bridge".into(), Value::text(format!("xapi{count}")));
    let network = state.db.create("network", fresh);
    made.networks.push(network.clone());
    Ok(network)
}

fn mapped(map: &BTreeMap<String, String>, id: &str) -> Outcome<String> {
    map.get(id).cloned().ok_or_else(|| Failure::new("IMPORT_ERROR_FAILED_TO_FIND_OBJECT", [id]))
}

fn create_vbd(state: &mut State, object: &Object, map: &BTreeMap<String, String>) -> Outcome<()> {
    let mut record = typed(object)?;
    let vm = mapped(map, &text_of(&record, "VM"))?;
    let disk = text_of(&record, "VDI");
    let vdi = match (text_of(&record, "type").as_str(), disk.as_str()) {
        (_, "" | NULL) => NULL.to_owned(),
        ("Disk", id) => match map.get(id) {
            Some(found) => found.clone(),
            None => return Err(Failure::bare("IMPORT_ERROR_ATTACHED_DISKS_NOT_FOUND")),
        },
        // A medium of the other pool: the drive comes along empty.
        _ => NULL.to_owned(),
    };
    record.insert("empty".into(), Value::Bool(vdi == NULL));
    record.insert("VDI".into(), Value::text(vdi));
    crate::vbd::check_position(&state.db, &vm, &text_of(&record, "userdevice"), None)?;
    record.insert("VM".into(), Value::text(vm));
    record.insert("uuid".into(), Value::text(Uuid::new_v4().to_string()));
    record.insert("device".into(), Value::text(""));
    record.insert("currently_attached".into(), Value::Bool(false));
    record.insert("current_operations".into(), Value::Map(Record::new()));
    record.insert("runtime_properties".into(), Value::Map(Record::new()));
    crate::vbd::insert(&mut state.db, record);
    Ok(())
}

fn create_vif(
    state: &mut State,
    object: &Object,
    map: &BTreeMap<String, String>,
    restore: bool,
) -> Outcome<()> {
    let mut record = typed(object)?;
    let vm = mapped(map, &text_of(&record, "VM"))?;
    let network = mapped(map, &text_of(&record, "network"))?;
    if !restore {
        let other = state.db.map("VM", &vm, "other_config");
        let seed = other.get("mac_seed").and_then(Value::as_text).unwrap_or_default();
        let mac = crate::vif::generated_mac(seed, &text_of(&record, "device"));
        record.insert("MAC".into(), Value::text(mac));
        record.insert("MAC_autogenerated".into(), Value::Bool(true));
    }
    record.insert("VM".into(), Value::text(vm));
    record.insert("network".into(), Value::text(network));
    record.insert("uuid".into(), Value::text(Uuid::new_v4().to_string()));
    record.insert("currently_attached".into(), Value::Bool(false));
    record.insert("current_operations".into(), Value::Map(Record::new()));
    state.db.create("VIF", record);
    Ok(())
}

/// Links among the imported VMs survive; links to anything else do not.
fn link_snapshots(state: &mut State, manifest: &Manifest, map: &BTreeMap<String, String>) {
    for object in manifest.objects.iter().filter(|o| o.class == "VM") {
        let Some(vm) = map.get(&object.id) else { continue };
        for field in ["snapshot_of", "parent"] {
            if let Some(target) = map.get(&text_of(&object.record, field)) {
                state.db.put("VM", vm, field, Value::text(target));
            }
        }
    }
}
