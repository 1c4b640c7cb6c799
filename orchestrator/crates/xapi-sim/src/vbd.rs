//! The VBD calls: positions, sharing, plugging.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::guest::device_number;
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{Args, Context, State};
use crate::storage::vdi;
use crate::store::db::{Db, text_of};
use crate::vm::rules;

/// The highest position of a guest's disk.
const MAX_POSITION: u16 = 254;
/// VDI types that can be attached; change-tracking metadata cannot.
const ATTACHABLE: [&str; 8] =
    ["system", "user", "ephemeral", "suspend", "crashdump", "metadata", "rrd", "pvs_cache"];

pub(crate) async fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    let done = |()| Value::void();
    match name {
        "create" => create(context, args.map(0)).map(Value::Text),
        "destroy" => destroy(context, args.text(0)).map(done),
        "plug" => plug(context, args.text(0)).map(done),
        "unplug" => unplug(context, args.text(0), false).map(done),
        "unplug_force" => unplug(context, args.text(0), true).map(done),
        "set_mode" => set_mode(context, args).map(done),
        "assert_attachable" => context.with(|s| assert_pluggable(s, args.text(0))).map(done),
        "insert" => insert_medium(context, args.text(0), args.text(1)).map(done),
        "eject" => eject(context, args.text(0)).map(done),
        _ => Err(unknown("VBD", name)),
    }
}

fn create(context: &Context, given: &Record) -> Outcome<String> {
    let mut record = vdi::constructed("VBD", given)?;
    record.insert("currently_attached".into(), Value::Bool(false));
    record.insert("device".into(), Value::text(""));
    let (vm, disk) = (text_of(&record, "VM"), text_of(&record, "VDI"));
    let (kind, mode) = (text_of(&record, "type"), text_of(&record, "mode"));
    let empty = record.get("empty") == Some(&Value::Bool(true));
    context.with(|s| {
        let db = &mut s.db;
        db.get("VM", &vm)?;
        if kind == "CD" && mode == "RW" {
            return Err(Failure::bare("VBD_CDS_MUST_BE_READONLY"));
        }
        if kind != "CD" && empty {
            return Err(Failure::new("VBD_NOT_REMOVABLE_MEDIA", ["in constructor"]));
        }
        if !empty {
            db.get("VDI", &disk)?;
            assert_vdi_fits(db, &disk, &mode)?;
        }
        let mut position = text_of(&record, "userdevice");
        if position == "autodetect" {
            let free = free_positions(db, &vm)?.into_iter().next();
            position = free.ok_or_else(|| Failure::new("INVALID_DEVICE", [position]))?;
        }
        check_position(db, &vm, &position, None)?;
        record.insert("userdevice".into(), Value::text(position));
        Ok(insert(db, record))
    })
}

fn assert_vdi_fits(db: &Db, disk: &str, mode: &str) -> Outcome<()> {
    let kind = db.text("VDI", disk, "type");
    if !ATTACHABLE.contains(&kind.as_str()) {
        return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [disk, &kind]));
    }
    if mode == "RW" && db.flag("VDI", disk, "read_only") {
        return Err(Failure::new("VDI_READONLY", [disk]));
    }
    Ok(())
}

/// Adds a VBD record with metrics of its own.
pub(crate) fn insert(db: &mut Db, mut record: Record) -> String {
    let metrics = db.create("VBD_metrics", Db::blank("VBD_metrics"));
    record.insert("metrics".into(), Value::text(metrics));
    record.insert("unpluggable".into(), Value::Bool(record.get("unpluggable") != Some(&Value::Bool(false))));
    db.create("VBD", record)
}

/// Removes a VBD record and its metrics.
pub(crate) fn remove(db: &mut Db, vbd: &str) {
    let metrics = db.text("VBD", vbd, "metrics");
    db.remove("VBD_metrics", &metrics);
    db.remove("VBD", vbd);
}

/// Whether a position is valid and free on the VM; `this` is the VBD that may hold it already.
pub(crate) fn check_position(db: &Db, vm: &str, position: &str, this: Option<&str>) -> Outcome<()> {
    let number = position_number(position).ok_or_else(|| Failure::new("INVALID_DEVICE", [position]))?;
    let taken = |vbd: &String| {
        this != Some(vbd.as_str()) && position_number(&db.text("VBD", vbd, "userdevice")) == Some(number)
    };
    if db.list("VM", vm, "VBDs").iter().any(taken) {
        return Err(Failure::new("DEVICE_ALREADY_EXISTS", [position]));
    }
    Ok(())
}

/// A position as a number: decimal, or a Linux name (`xvda`, `sdb`, `hdc`).
fn position_number(position: &str) -> Option<u16> {
    if !position.is_empty() && position.bytes().all(|b| b.is_ascii_digit()) {
        return position.parse().ok().filter(|n| *n <= MAX_POSITION);
    }
    let letters = ["xvd", "sd", "hd"].iter().find_map(|prefix| position.strip_prefix(prefix))?;
    if letters.is_empty() || letters.len() > 2 || !letters.bytes().all(|b| b.is_ascii_lowercase()) {
        return None;
    }
    let number = letters.bytes().fold(0u16, |sum, b| sum * 26 + u16::from(b - b'a') + 1) - 1;
    Some(number).filter(|n| *n <= MAX_POSITION)
}

/// The free positions of a VM, lowest first.
pub(crate) fn free_positions(db: &Db, vm: &str) -> Outcome<Vec<String>> {
    db.get("VM", vm)?;
    let vbds = db.list("VM", vm, "VBDs");
    let used: Vec<u16> =
        vbds.iter().filter_map(|v| position_number(&db.text("VBD", v, "userdevice"))).collect();
    Ok((0..=MAX_POSITION).filter(|n| !used.contains(n)).map(|n| n.to_string()).collect())
}

/// `VDI_IN_USE` when the disk of this VBD may not be used beside those who use it now.
pub(crate) fn assert_shareable(db: &Db, vbd: &str) -> Outcome<()> {
    let disk = db.text("VBD", vbd, "VDI");
    if disk == NULL || db.flag("VDI", &disk, "sharable") {
        return Ok(());
    }
    let writes = |v: &String| db.text("VBD", v, "mode") == "RW";
    let counts = |v: &String| {
        let vm = db.text("VBD", v, "VM");
        v.as_str() != vbd
            && !db.flag("VM", &vm, "is_control_domain")
            && db.text("VM", &vm, "power_state") != "Suspended"
    };
    let others: Vec<String> = vdi::active_vbds(db, &disk).into_iter().filter(counts).collect();
    let conflict = others.iter().any(writes) || (writes(&vbd.to_owned()) && !others.is_empty());
    if conflict { Err(Failure::new("VDI_IN_USE", [disk])) } else { Ok(()) }
}

/// Marks a VBD attached, with the lock the storage driver leaves on the disk.
pub(crate) fn attach(db: &mut Db, vbd: &str) {
    let position = position_number(&db.text("VBD", vbd, "userdevice")).unwrap_or_default();
    db.put("VBD", vbd, "device", Value::text(linux_name(position)));
    db.put("VBD", vbd, "currently_attached", Value::Bool(true));
    let runtime = [("vdi-type", "vhd".to_owned()), ("device-number", device_number(position).to_string())];
    db.put("VBD", vbd, "runtime_properties", Value::text_map(runtime));
    let (disk, mode) = (db.text("VBD", vbd, "VDI"), db.text("VBD", vbd, "mode"));
    if let Some(host) = db.refs("host").into_iter().next() {
        db.put_key("VDI", &disk, "sm_config", &format!("host_{host}"), Some(Value::text(mode)));
    }
}

/// Marks a VBD detached.
pub(crate) fn detach(state: &mut State, vbd: &str) {
    let disk = state.db.text("VBD", vbd, "VDI");
    let writer = state.db.text("VBD", vbd, "mode") == "RW";
    let attached = state.db.flag("VBD", vbd, "currently_attached");
    state.db.put("VBD", vbd, "currently_attached", Value::Bool(false));
    state.db.put("VBD", vbd, "device", Value::text(""));
    state.db.put("VBD", vbd, "runtime_properties", Value::Map(Record::new()));
    if attached && writer {
        state.baselines.detach(&disk);
    }
    if vdi::active_vbds(&state.db, &disk).is_empty() {
        for host in state.db.refs("host") {
            state.db.put_key("VDI", &disk, "sm_config", &format!("host_{host}"), None);
        }
    }
}

fn linux_name(position: u16) -> String {
    let (mut rest, mut letters) = (position + 1, Vec::new());
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + u8::try_from(rest % 26).unwrap_or_default()));
        rest /= 26;
    }
    let letters: String = letters.into_iter().rev().collect();
    format!("xvd{letters}")
}

/// The checks of `VBD.plug`.
fn assert_pluggable(state: &State, vbd: &str) -> Outcome<()> {
    let db = &state.db;
    db.get("VBD", vbd)?;
    let (vm, disk) = (db.text("VBD", vbd, "VM"), db.text("VBD", vbd, "VDI"));
    rules::assert_state(db, &vm, &["Running"])?;
    if db.flag("VBD", vbd, "currently_attached") {
        return Err(Failure::new("DEVICE_ALREADY_ATTACHED", [vbd]));
    }
    for operation in db.map("VM", &vm, "current_operations").values().filter_map(Value::as_text) {
        if matches!(operation, "clean_shutdown" | "hard_shutdown" | "shutdown" | "suspend" | "pause") {
            return Err(Failure::not_allowed(format!("VM is in the middle of {operation}")));
        }
    }
    if rules::is_hvm(db, &vm) {
        assert_hvm_hotplug(db, &vm, vbd)?;
    }
    if disk != NULL && !db.flag("VDI", &disk, "managed") {
        return Err(Failure::new("VDI_NOT_MANAGED", [vbd]));
    }
    assert_shareable(db, vbd)
}

fn assert_hvm_hotplug(db: &Db, vm: &str, vbd: &str) -> Outcome<()> {
    let metrics = db.text("VM", vm, "guest_metrics");
    if !db.flag("VM_guest_metrics", &metrics, "PV_drivers_detected") {
        return Err(Failure::new("VM_MISSING_PV_DRIVERS", [vm]));
    }
    if db.text("VM_guest_metrics", &metrics, "can_use_hotplug_vbd") == "no" {
        return Err(Failure::not_allowed("VM states it does not support VBD hotplug."));
    }
    if db.text("VBD", vbd, "type") == "Disk" && db.text("VBD", vbd, "mode") == "RO" {
        return Err(Failure::new("DISK_VBD_MUST_BE_READWRITE_FOR_HVM", [vbd]));
    }
    Ok(())
}

fn plug(context: &Context, vbd: &str) -> Outcome<()> {
    context.with(|s| {
        assert_pluggable(s, vbd)?;
        let vm = s.db.text("VBD", vbd, "VM");
        if s.domains.get(&vm).is_some_and(|d| d.is_real()) {
            // A lab guest gets its disks at the start; its machine has no slot for more.
            return Err(Failure::internal("the lab cannot hot-plug disks into a real guest"));
        }
        attach(&mut s.db, vbd);
        Ok(())
    })
}

fn unplug(context: &Context, vbd: &str, force: bool) -> Outcome<()> {
    context.with(|s| {
        s.db.get("VBD", vbd)?;
        let vm = s.db.text("VBD", vbd, "VM");
        if !s.db.flag("VBD", vbd, "unpluggable") {
            return Err(Failure::new("VBD_NOT_UNPLUGGABLE", [vbd]));
        }
        rules::assert_state(&s.db, &vm, &["Running"])?;
        if !s.db.flag("VBD", vbd, "currently_attached") {
            return Err(Failure::new("DEVICE_ALREADY_DETACHED", [vbd]));
        }
        if !force && s.domains.get(&vm).is_some_and(|d| d.is_real()) {
            return Err(Failure::new("DEVICE_DETACH_REJECTED", ["VBD", vbd, ""]));
        }
        detach(s, vbd);
        Ok(())
    })
}

fn destroy(context: &Context, vbd: &str) -> Outcome<()> {
    context.with(|s| {
        s.db.get("VBD", vbd)?;
        if s.db.flag("VBD", vbd, "currently_attached") {
            let (this, vm) = (s.db.text("VBD", vbd, "uuid"), s.db.text("VBD", vbd, "VM"));
            let vm = s.db.text("VM", &vm, "uuid");
            return Err(Failure::not_allowed(format!("VBD '{this}' still attached to '{vm}'")));
        }
        remove(&mut s.db, vbd);
        Ok(())
    })
}

fn set_mode(context: &Context, args: &Args) -> Outcome<()> {
    let vbd = args.text(0);
    context.with(|s| {
        s.db.get("VBD", vbd)?;
        rules::assert_state(&s.db, &s.db.text("VBD", vbd, "VM"), &["Halted"])?;
        let disk = s.db.text("VBD", vbd, "VDI");
        if disk != NULL {
            assert_vdi_fits(&s.db, &disk, args.text(1))?;
        }
        s.db.put("VBD", vbd, "mode", args.0[1].clone());
        Ok(())
    })
}

fn assert_removable(db: &Db, vbd: &str) -> Outcome<()> {
    db.get("VBD", vbd)?;
    if db.text("VBD", vbd, "type") == "Disk" {
        return Err(Failure::new("VBD_NOT_REMOVABLE_MEDIA", [vbd]));
    }
    Ok(())
}

fn insert_medium(context: &Context, vbd: &str, disk: &str) -> Outcome<()> {
    context.with(|s| {
        assert_removable(&s.db, vbd)?;
        s.db.get("VDI", disk)?;
        if !s.db.flag("VBD", vbd, "empty") {
            return Err(Failure::new("VBD_NOT_EMPTY", [vbd]));
        }
        s.db.put("VBD", vbd, "VDI", Value::text(disk));
        s.db.put("VBD", vbd, "empty", Value::Bool(false));
        Ok(())
    })
}

fn eject(context: &Context, vbd: &str) -> Outcome<()> {
    context.with(|s| {
        assert_removable(&s.db, vbd)?;
        if s.db.flag("VBD", vbd, "empty") {
            return Err(Failure::new("VBD_IS_EMPTY", [vbd]));
        }
        s.db.put("VBD", vbd, "VDI", Value::null_ref());
        s.db.put("VBD", vbd, "empty", Value::Bool(true));
        Ok(())
    })
}

/// What may be called on a VBD as it is.
pub(crate) fn allowed_operations(db: &Db, vbd: &str) -> Vec<String> {
    let vm = db.text("VBD", vbd, "VM");
    let running = db.text("VM", &vm, "power_state") == "Running";
    let attached = db.flag("VBD", vbd, "currently_attached");
    let mut allowed = vec!["attach"];
    match (running, attached) {
        (true, true) => allowed.extend(["unplug", "unplug_force", "pause"]),
        (true, false) => allowed.push("plug"),
        (false, _) => {}
    }
    if db.text("VBD", vbd, "type") == "CD" {
        allowed.push(if db.flag("VBD", vbd, "empty") { "insert" } else { "eject" });
    }
    allowed.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_numbers_or_linux_names() {
        for (text, number) in [("0", 0), ("254", 254), ("xvda", 0), ("hdd", 3), ("xvde", 4), ("xvdaa", 26)] {
            assert_eq!(position_number(text), Some(number), "{text}");
        }
        for text in ["255", "", "-1", "x", "xvd", "xvdA", "xvdzzz", "99999999999"] {
            assert_eq!(position_number(text), None, "{text}");
        }
        assert_eq!(linux_name(4), "xvde");
        assert_eq!(linux_name(25), "xvdz");
        assert_eq!(linux_name(26), "xvdaa");
    }
}
