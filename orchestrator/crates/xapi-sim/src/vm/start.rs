//! Starting a VM: where it can run, what it may share, and the guest that boots from its disks.

use super::{limits, metrics, rules};
use crate::domain::{Domain, listen};
use crate::failure::{Failure, Outcome};
use crate::guest::{Engine, Firmware, GuestConfig, GuestDisk, GuestNic};
use crate::operation::Operation;
use crate::rpc::value::{NULL, Value};
use crate::sim::{Context, State, now};
use crate::storage::{sr, surface, track, vdi};
use crate::store::db::Db;
use crate::vbd;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

/// `other_config` key of VMs that run without a process: samples that are "on" but have nothing to boot.
pub(crate) const GUEST_KEY: &str = "lab:guest";
/// `other_config` key by which clones of the appliance's template are known. It stands in the template's XVA, whose
/// writer (`xva::TEMPLATE_KEY`) must not be shared with what reads it here.
const TEMPLATE_KEY: &str = "abd:template";
/// Memory of a control domain.
const CONTROL_DOMAIN_BYTES: i64 = 2 << 30;

/// `VM.start` and `VM.start_on`.
pub(crate) async fn start(
    context: &Context,
    vm: &str,
    on: Option<&str>,
    paused: bool,
    operation: &str,
) -> Outcome<()> {
    let _running =
        Operation::begin(context, "VM", vm, operation, |s| rules::assert_allowed(s, vm, operation))?;
    let (host, attached) = context.with(|s| {
        let host = choose_host(&s.db, vm, on)?;
        let attached = attach_disks(&mut s.db, vm)?;
        s.db.put("VM", vm, "resident_on", Value::text(&host));
        Ok((host, attached))
    })?;
    let outcome = launch(context, vm, paused).await;
    if let Err(failure) = outcome {
        context.with(|s| {
            for vbd in &attached {
                vbd::detach(s, vbd);
            }
            s.db.put("VM", vm, "resident_on", Value::null_ref());
        });
        return Err(failure);
    }
    let uuid = context.with(|s| s.db.text("VM", vm, "uuid"));
    tracing::info!(vm = uuid, host, "VM started");
    Ok(())
}

async fn launch(context: &Context, vm: &str, paused: bool) -> Outcome<()> {
    let wanted = context.with(|s| guest_config(context, s, vm))?;
    let dhcp = context.sim.faults().dhcp;
    let (domain, events) = match wanted {
        None => (Arc::new(Domain::without_guest(vm)), None),
        Some(mut config) => {
            config.link_up = dhcp;
            watch_disks(context, vm).await?;
            let (domain, events) = Domain::boot(vm, config).await?;
            (Arc::new(domain), Some(events))
        }
    };
    if paused {
        domain.freeze().await?;
    }
    context.with(|s| running(s, vm, &domain, paused));
    let pid = domain.pid();
    let (uuid, name) = context.with(|s| (s.db.text("VM", vm, "uuid"), s.db.text("VM", vm, "name_label")));
    context.sim.log.add("guest-start", json!({"vm": uuid, "name": name, "pid": pid, "link_up": dhcp}));
    if let Some(events) = events {
        listen(context, &domain, events);
    }
    Ok(())
}

/// Takes digests of the disks that a real guest may write to and whose changes somebody will ask for.
async fn watch_disks(context: &Context, vm: &str) -> Outcome<()> {
    let disks = context.with(|s| {
        let vbds = s.db.list("VM", vm, "VBDs");
        let writable = vbds.iter().filter(|v| s.db.text("VBD", v, "mode") == "RW");
        writable.map(|v| s.db.text("VBD", v, "VDI")).filter(|v| v != NULL).collect::<Vec<_>>()
    });
    for disk in disks {
        context.with(|s| s.baselines.attach(&disk));
        track::observe(context, &disk).await?;
    }
    Ok(())
}

fn running(state: &mut State, vm: &str, domain: &Arc<Domain>, paused: bool) {
    let id = domain.id().map_or(state.next_domid, i64::from);
    state.next_domid = state.next_domid.max(id) + 1;
    state.domains.insert(vm.to_owned(), domain.clone());
    metrics::create(state, vm, !domain.is_real());
    let db = &mut state.db;
    db.put("VM", vm, "domid", Value::Int(id));
    db.put("VM", vm, "power_state", Value::text(if paused { "Paused" } else { "Running" }));
    let metrics = db.text("VM", vm, "metrics");
    db.put("VM_metrics", &metrics, "start_time", now());
    db.put("VM_metrics", &metrics, "last_updated", now());
    for vif in db.list("VM", vm, "VIFs") {
        db.put("VIF", &vif, "currently_attached", Value::Bool(true));
    }
}

/// Attaches every disk of the VM, or none of them.
fn attach_disks(db: &mut Db, vm: &str) -> Outcome<Vec<String>> {
    let vbds: Vec<String> =
        db.list("VM", vm, "VBDs").into_iter().filter(|v| !db.flag("VBD", v, "empty")).collect();
    for vbd in &vbds {
        vbd::assert_shareable(db, vbd)?;
        if db.text("VDI", &db.text("VBD", vbd, "VDI"), "type") == "cbt_metadata" {
            let vdi = db.text("VBD", vbd, "VDI");
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), "cbt_metadata"]));
        }
    }
    for vbd in &vbds {
        vbd::attach(db, vbd);
    }
    Ok(vbds)
}

/// The hosts that see every disk of the VM.
pub(crate) fn possible_hosts(db: &Db, vm: &str) -> Outcome<Vec<String>> {
    db.get("VM", vm)?;
    Ok(db.refs("host").into_iter().filter(|host| assert_can_boot_here(db, vm, host).is_ok()).collect())
}

/// Whether a host is up, sees every disk, and has the memory.
pub(crate) fn assert_can_boot_here(db: &Db, vm: &str, host: &str) -> Outcome<()> {
    db.get("VM", vm)?;
    db.get("host", host)?;
    if !db.flag("host", host, "enabled") {
        return Err(Failure::new("HOST_DISABLED", [host]));
    }
    for vbd in db.list("VM", vm, "VBDs") {
        let vdi = db.text("VBD", &vbd, "VDI");
        let repository = db.text("VDI", &vdi, "SR");
        if vdi != NULL && !sr::visible(db, &repository, host) {
            return Err(Failure::new("VM_REQUIRES_SR", [vm, &repository]));
        }
    }
    for vif in db.list("VM", vm, "VIFs") {
        let network = db.text("VIF", &vif, "network");
        let reached = |pif: &String| db.text("PIF", pif, "host") == host;
        let pifs = db.list("network", &network, "PIFs");
        if !pifs.is_empty() && !pifs.iter().any(reached) {
            return Err(Failure::new("VM_REQUIRES_NETWORK", [vm, &network]));
        }
    }
    let needed = db.int("VM", vm, "memory_static_max") + limits::memory_overhead();
    let available = free_memory(db, host);
    if needed > available {
        return Err(Failure::new("HOST_NOT_ENOUGH_FREE_MEMORY", [needed.to_string(), available.to_string()]));
    }
    Ok(())
}

/// Memory that no running VM holds.
pub(crate) fn free_memory(db: &Db, host: &str) -> i64 {
    let metrics = db.text("host", host, "metrics");
    let resident = db.list("host", host, "resident_VMs");
    let runs = |vm: &&String| {
        !db.flag("VM", vm, "is_control_domain") && db.text("VM", vm, "power_state") != "Halted"
    };
    let held: i64 = resident
        .iter()
        .filter(runs)
        .map(|vm| db.int("VM", vm, "memory_static_max") + limits::memory_overhead())
        .sum();
    db.int("host_metrics", &metrics, "memory_total") - CONTROL_DOMAIN_BYTES - held
}

fn choose_host(db: &Db, vm: &str, on: Option<&str>) -> Outcome<String> {
    if let Some(host) = on {
        assert_can_boot_here(db, vm, host)?;
        return Ok(host.to_owned());
    }
    let possible = possible_hosts(db, vm)?;
    let affinity = db.text("VM", vm, "affinity");
    if possible.contains(&affinity) {
        return Ok(affinity);
    }
    if let [only] = &db.refs("host")[..]
        && possible.is_empty()
    {
        // With a single host the server says what that host lacks.
        assert_can_boot_here(db, vm, only)?;
    }
    possible.into_iter().next().ok_or_else(|| Failure::bare("NO_HOSTS_AVAILABLE"))
}

/// What to boot, or `None` for a VM that runs without a process.
fn guest_config(context: &Context, state: &State, vm: &str) -> Outcome<Option<GuestConfig>> {
    let db = &state.db;
    let other = db.map("VM", vm, "other_config");
    if other.get(GUEST_KEY).and_then(Value::as_text) == Some("none") {
        return Ok(None);
    }
    let disks = guest_disks(context, state, vm)?;
    if !rules::is_hvm(db, vm) || !disks.iter().any(|d| d.bootable) {
        return Ok(None);
    }
    let boot = db.map("VM", vm, "HVM_boot_params");
    let uefi = boot.get("firmware").and_then(Value::as_text) == Some("uefi");
    let uuid = db.text("VM", vm, "uuid");
    let is_delegate = other.contains_key(TEMPLATE_KEY);
    Ok(Some(GuestConfig {
        name: db.text("VM", vm, "name_label"),
        engine: if is_delegate { context.sim.config.delegates.clone() } else { Engine::Qemu },
        memory: u64::try_from(db.int("VM", vm, "memory_static_max")).unwrap_or_default(),
        vcpus: u32::try_from(db.int("VM", vm, "VCPUs_at_startup")).unwrap_or(1).max(1),
        firmware: if uefi { Firmware::Uefi } else { Firmware::Bios },
        disks,
        nics: guest_nics(db, vm),
        xenstore: initial_store(db, vm),
        work_dir: context.sim.config.dir.join("guests").join(uuid),
        link_up: true,
    }))
}

fn guest_disks(context: &Context, state: &State, vm: &str) -> Outcome<Vec<GuestDisk>> {
    let db = &state.db;
    let mut disks = Vec::new();
    for vbd in db.list("VM", vm, "VBDs") {
        let vdi = db.text("VBD", &vbd, "VDI");
        if vdi == NULL || db.text("VBD", &vbd, "type") != "Disk" {
            continue;
        }
        let position = db.text("VBD", &vbd, "userdevice");
        let userdevice = position.parse().map_err(|_| Failure::new("INVALID_DEVICE", [position]))?;
        disks.push(GuestDisk {
            userdevice,
            path: vdi::path_of(&context.sim.config, db, &vdi),
            read_only: db.text("VBD", &vbd, "mode") == "RO",
            bootable: db.flag("VBD", &vbd, "bootable"),
            surface: surface::under(state, &vdi),
        });
    }
    Ok(disks)
}

fn guest_nics(db: &Db, vm: &str) -> Vec<GuestNic> {
    let nic = |vif: String| {
        let device = db.text("VIF", &vif, "device").parse().ok()?;
        Some(GuestNic { device, mac: db.text("VIF", &vif, "MAC") })
    };
    db.list("VM", vm, "VIFs").into_iter().filter_map(nic).collect()
}

/// What reaches the guest: only keys under `vm-data/` and `FIST/`; others are ignored, as on real hosts.
fn initial_store(db: &Db, vm: &str) -> BTreeMap<String, String> {
    let reaches = |key: &str| key.starts_with("vm-data/") || key.starts_with("FIST/");
    let text = |(key, value): (String, Value)| Some((key, value.as_text()?.to_owned()));
    let given =
        db.map("VM", vm, "xenstore_data").into_iter().filter(|(key, _)| reaches(key)).filter_map(text);
    let mut store: BTreeMap<String, String> = given.collect();
    store.insert("vm".into(), format!("/vm/{}", db.text("VM", vm, "uuid")));
    for (key, value) in db.map("VM", vm, "platform") {
        store.insert(format!("platform/{key}"), value.as_text().unwrap_or_default().to_owned());
    }
    store
}
