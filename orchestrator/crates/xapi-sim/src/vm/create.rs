//! Making and removing VM records: `create`, `destroy`, `provision`.

use super::rules::assert_allowed;
use crate::failure::{Failure, Outcome};
use crate::operation::Operation;
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{Context, State, now};
use crate::storage::vdi;
use crate::store::db::Db;
use uuid::Uuid;

/// Disks that a template may ask for at provisioning.
const MAX_PROVISION_DISKS: usize = 16;

/// `VM.create`.
pub(crate) fn create(context: &Context, given: &Record) -> Outcome<String> {
    let mut record = vdi::constructed("VM", given)?;
    super::limits::check(&record)?;
    record.insert("power_state".into(), Value::text("Halted"));
    record.insert("domid".into(), Value::Int(-1));
    record.insert("resident_on".into(), Value::null_ref());
    if let Some(Value::Map(other)) = record.get_mut("other_config") {
        other.entry("mac_seed".into()).or_insert_with(|| Value::text(Uuid::new_v4().to_string()));
    }
    Ok(context.with(|s| insert(s, record)))
}

/// Adds a VM record with metrics of its own.
pub(crate) fn insert(state: &mut State, mut record: Record) -> String {
    let mut metrics = Db::blank("VM_metrics");
    metrics.insert("install_time".into(), now());
    metrics.insert("last_updated".into(), now());
    if let Some(memory) = record.get("memory_static_max") {
        metrics.insert("memory_actual".into(), memory.clone());
    }
    let metrics = state.db.create("VM_metrics", metrics);
    record.insert("metrics".into(), Value::text(metrics));
    state.db.create("VM", record)
}

/// `VM.destroy`: the record, its devices and metrics; never a disk.
pub(crate) fn destroy(context: &Context, vm: &str) -> Outcome<()> {
    context.with(|s| {
        assert_allowed(s, vm, "destroy")?;
        remove(s, vm);
        Ok(())
    })
}

/// Removes a VM record whatever its state.
pub(crate) fn remove(state: &mut State, vm: &str) {
    let db = &mut state.db;
    for vbd in db.list("VM", vm, "VBDs") {
        crate::vbd::remove(db, &vbd);
    }
    for vif in db.list("VM", vm, "VIFs") {
        db.remove("VIF", &vif);
    }
    for console in db.list("VM", vm, "consoles") {
        db.remove("console", &console);
    }
    let parent = db.text("VM", vm, "parent");
    for child in db.list("VM", vm, "children") {
        db.put("VM", &child, "parent", Value::text(if parent.is_empty() { NULL } else { &parent }));
    }
    for (class, field) in [("VM_metrics", "metrics"), ("VM_guest_metrics", "guest_metrics")] {
        let metrics = db.text("VM", vm, field);
        db.remove(class, &metrics);
    }
    db.remove("VM", vm);
}

/// `VM.provision`: a template becomes a VM, with the disks its `other_config` asks for.
pub(crate) async fn provision(context: &Context, vm: &str) -> Outcome<()> {
    let _running = Operation::begin(context, "VM", vm, "provision", |s| assert_allowed(s, vm, "provision"))?;
    let disks = context.with(|s| s.db.map("VM", vm, "other_config").get("disks").cloned());
    if let Some(Value::Text(xml)) = disks {
        for disk in wanted_disks(&xml)? {
            add_disk(context, vm, &disk).await?;
        }
        context.with(|s| s.db.put_key("VM", vm, "other_config", "disks", None));
    }
    context.with(|s| s.db.put("VM", vm, "is_a_template", Value::Bool(false)));
    Ok(())
}

#[derive(Debug)]
struct WantedDisk {
    device: String,
    size: i64,
    sr: String,
    bootable: bool,
}

fn wanted_disks(xml: &str) -> Outcome<Vec<WantedDisk>> {
    let bad = |what: String| Failure::internal(format!("other_config:disks: {what}"));
    let document = roxmltree::Document::parse(xml).map_err(|e| bad(e.to_string()))?;
    let disks: Vec<_> = document.descendants().filter(|n| n.has_tag_name("disk")).collect();
    if disks.len() > MAX_PROVISION_DISKS {
        return Err(bad(format!("{} disks", disks.len())));
    }
    disks
        .into_iter()
        .map(|disk| {
            let get = |name: &str| disk.attribute(name).unwrap_or_default().to_owned();
            let size = get("size").parse().map_err(|_| bad("bad size".into()))?;
            Ok(WantedDisk { device: get("device"), size, sr: get("sr"), bootable: get("bootable") == "true" })
        })
        .collect()
}

async fn add_disk(context: &Context, vm: &str, disk: &WantedDisk) -> Outcome<()> {
    let sr = context.with(|s| {
        if disk.sr.is_empty() { crate::storage::sr::default_sr(&s.db) } else { s.db.by_uuid("SR", &disk.sr) }
    })?;
    let record = disk_record(&sr, disk.size, "");
    let vdi = vdi::create(context, &record).await?;
    context.with(|s| {
        let mut record = Db::blank("VBD");
        record.insert("VM".into(), Value::text(vm));
        record.insert("VDI".into(), Value::text(vdi));
        record.insert("userdevice".into(), Value::text(&disk.device));
        record.insert("bootable".into(), Value::Bool(disk.bootable));
        record.insert("mode".into(), Value::text("RW"));
        record.insert("type".into(), Value::text("Disk"));
        record.insert("other_config".into(), Value::text_map([("owner", "")]));
        crate::vbd::insert(&mut s.db, record);
    });
    Ok(())
}

/// The members `VDI.create` needs for a plain disk.
pub(crate) fn disk_record(sr: &str, size: i64, name: &str) -> Record {
    [
        ("name_label", Value::text(name)),
        ("name_description", Value::text("")),
        ("SR", Value::text(sr)),
        ("virtual_size", Value::Int(size)),
        ("type", Value::text("user")),
        ("sharable", Value::Bool(false)),
        ("read_only", Value::Bool(false)),
        ("other_config", Value::Map(Record::new())),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}
