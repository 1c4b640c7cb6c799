//! Sample VMs with disks that hold whatever the caller's files hold.

use super::bad;
use crate::dispatch::run_own;
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{Context, Sim};
use crate::storage::{disk, sr, track, vdi};
use crate::store::db::Db;
use crate::vm::{create, metrics::QUIESCE_KEY, start::GUEST_KEY};
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Memory of a sample VM that does not say.
const DEFAULT_MEMORY: i64 = 256 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedVm {
    name: String,
    #[serde(default)]
    disks: Vec<WantedDisk>,
    #[serde(default)]
    cbt: bool,
    #[serde(default)]
    running: bool,
    memory: Option<i64>,
    #[serde(default)]
    tags: Vec<String>,
    /// Whether its agent can quiesce it for a snapshot, where the release has that.
    #[serde(default)]
    quiesce: bool,
    /// Name or uuid of the host it prefers and, when it runs, runs on.
    host: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedDisk {
    name: String,
    /// Absent: the size of the file.
    size: Option<u64>,
    file: Option<PathBuf>,
    /// Name or uuid of its repository; absent: the pool's default.
    sr: Option<String>,
}

/// Makes a VM with its disks; one that runs does so without a process.
pub(super) async fn create(context: &Context, wanted: serde_json::Value) -> Outcome<serde_json::Value> {
    let wanted: WantedVm = serde_json::from_value(wanted).map_err(|e| bad(e.to_string()))?;
    let host = wanted.host.as_ref().map(|host| context.with(|s| named(&s.db, "host", host))).transpose()?;
    let vm = create::create(context, &vm_record(&wanted, host.as_deref()))?;
    let mut uuids = Vec::new();
    for (index, disk) in wanted.disks.iter().enumerate() {
        let vdi = add_disk(context, disk, index, &vm).await?;
        if wanted.cbt {
            run_own(context, "VDI.enable_cbt", vec![Value::text(&vdi)]).await?;
        }
        uuids.push(context.with(|s| s.db.text("VDI", &vdi, "uuid")));
    }
    if let Some(network) = context.with(|s| s.db.refs("network").into_iter().next()) {
        run_own(context, "VIF.create", vec![Value::Map(vif_record(&vm, &network))]).await?;
    }
    if wanted.running {
        let no = Value::Bool(false);
        let vm = Value::text(&vm);
        match host {
            None => run_own(context, "VM.start", vec![vm, no.clone(), no]).await?,
            Some(host) => {
                run_own(context, "VM.start_on", vec![vm, Value::text(host), no.clone(), no]).await?
            }
        };
    }
    let uuid = context.with(|s| s.db.text("VM", &vm, "uuid"));
    Ok(json!({"uuid": uuid, "ref": vm, "vdis": uuids}))
}

/// The object of that name or uuid.
fn named(db: &Db, class: &str, text: &str) -> Outcome<String> {
    match db.find(class, "name_label", text).into_iter().next() {
        Some(found) => Ok(found),
        None => db.by_ref_or_uuid(class, text),
    }
}

fn vm_record(wanted: &WantedVm, host: Option<&str>) -> Record {
    let memory = wanted.memory.unwrap_or(DEFAULT_MEMORY);
    let text = |text: &str| Value::text(text);
    let other =
        [Some((GUEST_KEY, "none")), wanted.quiesce.then_some((QUIESCE_KEY, "true"))].into_iter().flatten();
    [
        ("name_label", text(&wanted.name)),
        ("name_description", text("sample VM of the lab")),
        ("user_version", Value::Int(1)),
        ("is_a_template", Value::Bool(false)),
        ("affinity", text(host.unwrap_or(NULL))),
        ("memory_static_min", Value::Int(memory)),
        ("memory_static_max", Value::Int(memory)),
        ("memory_dynamic_min", Value::Int(memory)),
        ("memory_dynamic_max", Value::Int(memory)),
        ("VCPUs_params", Value::Map(Record::new())),
        ("VCPUs_max", Value::Int(1)),
        ("VCPUs_at_startup", Value::Int(1)),
        ("actions_after_shutdown", text("destroy")),
        ("actions_after_reboot", text("restart")),
        ("actions_after_crash", text("restart")),
        ("PV_bootloader", text("")),
        ("PV_kernel", text("")),
        ("PV_ramdisk", text("")),
        ("PV_args", text("")),
        ("PV_bootloader_args", text("")),
        ("PV_legacy_args", text("")),
        ("HVM_boot_policy", text("BIOS order")),
        ("HVM_boot_params", Value::text_map([("order", "c"), ("firmware", "bios")])),
        ("domain_type", text("hvm")),
        (
            "platform",
            Value::text_map([("acpi", "1"), ("apic", "true"), ("pae", "true"), ("viridian", "false")]),
        ),
        ("PCI_bus", text("")),
        ("other_config", Value::text_map(other)),
        ("recommendations", text("")),
        ("tags", Value::texts(wanted.tags.iter().cloned())),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn vif_record(vm: &str, network: &str) -> Record {
    [
        ("device", Value::text("0")),
        ("network", Value::text(network)),
        ("VM", Value::text(vm)),
        ("MAC", Value::text("")),
        ("MTU", Value::Int(1500)),
        ("other_config", Value::Map(Record::new())),
        ("qos_algorithm_type", Value::text("")),
        ("qos_algorithm_params", Value::Map(Record::new())),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

fn vbd_record(vm: &str, vdi: &str, index: usize) -> Record {
    [
        ("VM", Value::text(vm)),
        ("VDI", Value::text(vdi)),
        ("userdevice", Value::text(index.to_string())),
        ("bootable", Value::Bool(index == 0)),
        ("mode", Value::text("RW")),
        ("type", Value::text("Disk")),
        ("empty", Value::Bool(false)),
        ("other_config", Value::text_map([("owner", "")])),
        ("qos_algorithm_type", Value::text("")),
        ("qos_algorithm_params", Value::Map(Record::new())),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

async fn add_disk(context: &Context, wanted: &WantedDisk, index: usize, vm: &str) -> Outcome<String> {
    let size = match (wanted.size, &wanted.file) {
        (Some(size), _) => size,
        (None, Some(file)) => {
            std::fs::metadata(file).map_err(|e| bad(format!("{}: {e}", file.display())))?.len()
        }
        (None, None) => return Err(bad(format!("disk {} has neither size nor file", wanted.name))),
    };
    let repository = context.with(|s| match &wanted.sr {
        Some(sr) => named(&s.db, "SR", sr),
        None => sr::default_sr(&s.db),
    })?;
    let size = i64::try_from(size).map_err(|_| bad("the disk is too large"))?;
    let vdi = vdi::create(context, &create::disk_record(&repository, size, &wanted.name)).await?;
    if let Some(file) = &wanted.file {
        let path = context.with(|s| vdi::path_of(&context.sim.config, &s.db, &vdi));
        let source = file.clone();
        Sim::blocking(move || fill(&source, &path)).await?;
        context.with(|s| track::note_contents(&context.sim.config, s, &vdi));
    }
    run_own(context, "VBD.create", vec![Value::Map(vbd_record(vm, &vdi, index))]).await?;
    context.with(|s| sr::refresh(&context.sim.config, s, &repository));
    Ok(vdi)
}

fn fill(source: &Path, target: &Path) -> Outcome<()> {
    let wrong = |e: std::io::Error| Failure::new("BAD_REQUEST", [format!("{}: {e}", source.display())]);
    let from = std::fs::File::open(source).map_err(wrong)?;
    let to = disk::open(target).map_err(wrong)?;
    let (have, room) = (from.metadata().map_err(wrong)?.len(), to.metadata().map_err(wrong)?.len());
    if have > room {
        return Err(bad(format!("{} is larger than its disk: {have} > {room} bytes", source.display())));
    }
    disk::copy_extents(&from, &to).map_err(wrong)
}
