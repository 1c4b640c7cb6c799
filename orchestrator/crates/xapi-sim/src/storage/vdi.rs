//! The VDI calls: creation, destruction, resizing, change tracking, and who may use a disk when.

use super::backend::{Backend, Layout};
use super::cloning::{self, Kind};
use super::{cbt, disk, hidden, moving, space, sr, track};
use crate::config::Config;
use crate::dispatch::unknown;
use crate::domain::Domain;
use crate::failure::{Failure, Outcome};
use crate::operation::{Operation, refuse_overlap};
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{Args, Context, State};
use crate::store::coerce::coerce;
use crate::store::db::{Db, text_of};
use crate::store::schema::{Qualifier, schema};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};

/// What real servers write into `other_config` when a snapshot's data is dropped.
const NO_CONTENT: &str = "/No content: this is a cbt_metadata VDI/";

pub(crate) async fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    let done = |()| Value::void();
    match name {
        "create" => create(context, args.map(0)).await.map(Value::Text),
        "destroy" | "forget" => destroy(context, args.text(0), name).map(done),
        "snapshot" => cloning::derive(context, args.text(0), Kind::Snapshot).await.map(Value::Text),
        "clone" => cloning::derive(context, args.text(0), Kind::Clone).await.map(Value::Text),
        "copy" => copy(context, args).await,
        "pool_migrate" => moving::pool_migrate(context, args.text(0), args.text(1)).await.map(Value::Text),
        "resize" => resize(context, args.text(0), args.int(1), true).map(done),
        "enable_cbt" => switch_cbt(context, args.text(0), true).await.map(done),
        "disable_cbt" => switch_cbt(context, args.text(0), false).await.map(done),
        "data_destroy" => data_destroy(context, args.text(0)).await.map(done),
        "list_changed_blocks" => list_changed_blocks(context, args.text(0), args.text(1)).map(Value::Text),
        "update" => context.with(|s| s.db.get("VDI", args.text(0)).map(|_| Value::void())),
        "set_on_boot" => {
            context.with(|s| refuse_tracked(&s.db, args.text(0)))?;
            set(context, args, "on_boot")
        }
        "set_name_label"
        | "set_name_description"
        | "set_read_only"
        | "set_sharable"
        | "set_allow_caching" => set(context, args, &name[4..]),
        _ => Err(unknown("VDI", name)),
    }
}

fn set(context: &Context, args: &Args, field: &str) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("VDI", args.text(0))?;
        s.db.put("VDI", args.text(0), field, args.0[1].clone());
        Ok(Value::void())
    })
}

/// The disk file of a VDI.
pub(crate) fn path_of(config: &Config, db: &Db, vdi: &str) -> PathBuf {
    let sr = db.text("VDI", vdi, "SR");
    sr::directory(config, db, &sr).join(format!("{}.raw", db.text("VDI", vdi, "uuid")))
}

/// A record for a constructor: defaults, then what the caller named, each member in its declared type.
pub(crate) fn constructed(class: &str, given: &Record) -> Outcome<Record> {
    let mut record = Db::blank(class);
    let fields = schema().class(class).map(|c| c.fields.as_slice()).unwrap_or_default();
    for field in fields.iter().filter(|f| f.qualifier != Qualifier::Runtime) {
        match given.get(&field.name) {
            Some(value) => {
                record.insert(field.name.clone(), coerce(value.clone(), &field.kind, &field.name)?);
            }
            None if field.default.is_none() => return Err(Failure::field_type(&field.name)),
            None => {}
        }
    }
    Ok(record)
}

/// `VDI.create`.
pub(crate) async fn create(context: &Context, given: &Record) -> Outcome<String> {
    let mut record = constructed("VDI", given)?;
    let (uuid, sr) = (text_of(&record, "uuid"), text_of(&record, "SR"));
    let size = match record.get("virtual_size") {
        Some(Value::Int(size)) if *size > 0 => u64::try_from(*size).unwrap_or_default(),
        _ => return Err(Failure::storage(79, "VDI Invalid size", "the size must be positive")),
    };
    record.insert("location".into(), Value::text(&uuid));
    record.insert("managed".into(), Value::Bool(true));
    record.insert("cbt_enabled".into(), Value::Bool(false));
    let config = &context.sim.config;
    context.with(|s| {
        s.db.get("SR", &sr)?;
        sr::assert_plugged(&s.db, &sr)?;
        let backend = space::backend(&s.db, &sr);
        if backend.layout == Layout::Iso {
            return Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr.clone()]));
        }
        let size = given_size(config, backend, size)?;
        space::assert_free_for_disk(config, s, &sr, size)?;
        let path = sr::directory(config, &s.db, &sr).join(format!("{uuid}.raw"));
        disk::create(&path, size).map_err(|e| Failure::disk("create the disk", &e))?;
        if backend.is_vhd() {
            s.chains.create(&uuid);
        }
        record.insert("virtual_size".into(), space::size_value(size));
        record.insert("sm_config".into(), fresh_sm_config(&s.db, &sr));
        let reference = s.db.create("VDI", record);
        space::refresh(config, s, &sr);
        Ok(reference)
    })
}

/// The size that a repository gives when so much is asked for.
fn given_size(config: &Config, backend: Backend, asked: u64) -> Outcome<u64> {
    if !config.round_sizes {
        return Ok(asked);
    }
    backend.rounded(asked).ok_or_else(|| {
        let limits = "VDI size must be between 1 MB and 2088960 MB";
        Failure::storage(79, "VDI Invalid size", limits)
    })
}

/// What the storage manager notes on a disk that it has just made. Only repositories on volumes say that it is a VHD;
/// those on files take that for granted (`FileSR.py` notes only `type=raw`, of raw disks).
pub(crate) fn fresh_sm_config(db: &Db, sr: &str) -> Value {
    let says = space::backend(db, sr).layout == Layout::Lvm;
    Value::text_map(says.then_some(("vdi_type", "vhd")))
}

/// The VBDs that keep a disk in use: attached ones of VMs that are no snapshots.
pub(crate) fn active_vbds(db: &Db, vdi: &str) -> Vec<String> {
    let of_snapshot = |vbd: &String| db.flag("VM", &db.text("VBD", vbd, "VM"), "is_a_snapshot");
    attached_vbds(db, vdi).into_iter().filter(|vbd| !of_snapshot(vbd)).collect()
}

/// All attached VBDs of a disk; those of a checkpoint count as attached as long as its record exists.
fn attached_vbds(db: &Db, vdi: &str) -> Vec<String> {
    let attached = |vbd: &String| db.flag("VBD", vbd, "currently_attached");
    db.list("VDI", vdi, "VBDs").into_iter().filter(attached).collect()
}

/// Whether a guest has the disk open for writing.
pub(crate) fn written_to(db: &Db, vdi: &str) -> bool {
    active_vbds(db, vdi).iter().any(|vbd| db.text("VBD", vbd, "mode") == "RW")
}

/// The guest that has the disk open for writing; a paused one too.
pub(crate) fn writing_domain(state: &State, vdi: &str) -> Option<Arc<Domain>> {
    let writer = |vbd: &String| state.db.text("VBD", vbd, "mode") == "RW";
    let vbd = active_vbds(&state.db, vdi).into_iter().find(writer)?;
    state.domains.get(&state.db.text("VBD", &vbd, "VM")).cloned()
}

/// `VDI_INCOMPATIBLE_TYPE` for the given types.
pub(crate) fn refuse_type(db: &Db, vdi: &str, types: &[&str]) -> Outcome<()> {
    let kind = db.text("VDI", vdi, "type");
    if types.contains(&kind.as_str()) {
        return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi, &kind]));
    }
    Ok(())
}

/// `VDI_CBT_ENABLED` for a tracked disk.
pub(crate) fn refuse_tracked(db: &Db, vdi: &str) -> Outcome<()> {
    if db.flag("VDI", vdi, "cbt_enabled") {
        return Err(Failure::new("VDI_CBT_ENABLED", [vdi]));
    }
    Ok(())
}

fn refuse_in_use(state: &mut State, vdi: &str, operation: &str) -> Outcome<()> {
    // Bitmaps may be listed although a checkpoint's record claims the disk (`Xapi_vdi.check_operation_error`).
    let users = match operation {
        "list_changed_blocks" => active_vbds(&state.db, vdi),
        _ => attached_vbds(&state.db, vdi),
    };
    if !users.is_empty() || state.lags(vdi) || state.exports.contains_key(vdi) {
        return Err(Failure::new("VDI_IN_USE", [vdi, operation]));
    }
    Ok(())
}

fn destroy(context: &Context, vdi: &str, operation: &str) -> Outcome<()> {
    context.with(|s| {
        s.db.get("VDI", vdi)?;
        let sr = s.db.text("VDI", vdi, "SR");
        refuse_in_use(s, vdi, operation)?;
        refuse_overlap(s, "VDI", vdi, |_| false)?;
        hidden::assert_managed(&s.db, vdi)?;
        if s.db.text("VDI", vdi, "type") == "rrd" {
            return Err(Failure::new("VDI_HAS_RRDS", [vdi]));
        }
        sr::assert_plugged(&s.db, &sr)?;
        forget(context, s, vdi)
    })
}

/// Removes a disk with everything that hangs on it, whoever uses it.
pub(crate) fn forget(context: &Context, state: &mut State, vdi: &str) -> Outcome<()> {
    let config = &context.sim.config;
    remove_file(config, &state.db, vdi)?;
    let (uuid, sr) = (state.db.text("VDI", vdi, "uuid"), state.db.text("VDI", vdi, "SR"));
    state.cbt.delete(&uuid);
    state.chains.delete(&uuid);
    state.baselines.detach(vdi);
    for vbd in state.db.list("VDI", vdi, "VBDs") {
        crate::vbd::remove(&mut state.db, &vbd);
    }
    state.db.remove("VDI", vdi);
    hidden::coalesce_if_automatic(config, state, &sr);
    space::refresh(config, state, &sr);
    Ok(())
}

fn remove_file(config: &Config, db: &Db, vdi: &str) -> Outcome<()> {
    match std::fs::remove_file(path_of(config, db, vdi)) {
        Ok(()) => Ok(()),
        // A cbt_metadata disk has no file any more.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Failure::disk("delete the disk", &error)),
    }
}

async fn copy(context: &Context, args: &Args) -> Outcome<Value> {
    let given = |index: usize| Some(args.text(index)).filter(|r| *r != NULL && !r.is_empty());
    cloning::copy(context, args.text(0), args.text(1), given(3)).await.map(Value::Text)
}

/// Grows a disk. `offline` refuses while somebody uses it, as the API does.
pub(crate) fn resize(context: &Context, vdi: &str, size: i64, offline: bool) -> Outcome<()> {
    let config = &context.sim.config;
    context.with(|s| {
        s.db.get("VDI", vdi)?;
        refuse_type(&s.db, vdi, &["cbt_metadata"])?;
        if offline {
            refuse_in_use(s, vdi, "resize")?;
        }
        refuse_overlap(s, "VDI", vdi, |_| false)?;
        hidden::assert_managed(&s.db, vdi)?;
        if size < s.db.int("VDI", vdi, "virtual_size") {
            return Err(Failure::storage(79, "VDI Invalid size", "shrinking not allowed"));
        }
        let sr = s.db.text("VDI", vdi, "SR");
        let asked = u64::try_from(size).unwrap_or_default();
        let bytes = given_size(config, space::backend(&s.db, &sr), asked)?;
        space::assert_free_for_growth(config, s, vdi, bytes)?;
        let file =
            disk::open(&path_of(config, &s.db, vdi)).map_err(|e| Failure::disk("open the disk", &e))?;
        file.set_len(bytes).map_err(|e| Failure::disk("resize the disk", &e))?;
        let uuid = s.db.text("VDI", vdi, "uuid");
        s.cbt.resize(&uuid, bytes);
        s.db.put("VDI", vdi, "virtual_size", space::size_value(bytes));
        space::refresh(config, s, &sr);
        Ok(())
    })
}

async fn switch_cbt(context: &Context, vdi: &str, on: bool) -> Outcome<()> {
    let licensed = context.sim.faults().cbt_licensed;
    let changed = context.with(|s| {
        s.db.get("VDI", vdi)?;
        if on && !licensed {
            return Err(Failure::new("LICENSE_RESTRICTION", ["CBT"]));
        }
        let sr = s.db.text("VDI", vdi, "SR");
        if !space::backend(&s.db, &sr).is_vhd() {
            return Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr]));
        }
        hidden::assert_managed(&s.db, vdi)?;
        let kind = s.db.text("VDI", vdi, "type");
        if !matches!(kind.as_str(), "user" | "system") {
            return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi, &kind]));
        }
        if s.db.flag("VDI", vdi, "is_a_snapshot") {
            return Err(Failure::not_allowed(format!("VDI is a snapshot: {vdi}")));
        }
        if s.db.text("VDI", vdi, "on_boot") == "reset" {
            return Err(Failure::bare("VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"));
        }
        if s.db.flag("VDI", vdi, "cbt_enabled") == on {
            return Ok(false);
        }
        let uuid = s.db.text("VDI", vdi, "uuid");
        let size = u64::try_from(s.db.int("VDI", vdi, "virtual_size")).unwrap_or_default();
        if on {
            s.cbt.enable(&uuid, size)
        } else {
            s.cbt.disable(&uuid)
        }
        s.db.put("VDI", vdi, "cbt_enabled", Value::Bool(on));
        Ok(true)
    })?;
    if changed && on {
        track::observe(context, vdi).await?;
    }
    Ok(())
}

async fn data_destroy(context: &Context, vdi: &str) -> Outcome<()> {
    let done = context.with(|s| {
        s.db.get("VDI", vdi)?;
        hidden::assert_managed(&s.db, vdi)?;
        if !s.db.flag("VDI", vdi, "is_a_snapshot") {
            return Err(Failure::not_allowed(format!("VDI is not a snapshot: {vdi}")));
        }
        if !s.db.flag("VDI", vdi, "cbt_enabled") {
            return Err(Failure::new("VDI_NO_CBT_METADATA", [vdi]));
        }
        Ok(s.db.text("VDI", vdi, "type") == "cbt_metadata")
    })?;
    if done {
        return Ok(());
    }
    let _running =
        Operation::begin(context, "VDI", vdi, "data_destroy", |s| refuse_overlap(s, "VDI", vdi, |_| false))?;
    wait_for_vbds(context, vdi).await?;
    context.with(|s| {
        if s.lags(vdi) || s.exports.contains_key(vdi) {
            return Err(Failure::new("VDI_IN_USE", [vdi, "data_destroy"]));
        }
        remove_file(&context.sim.config, &s.db, vdi)?;
        s.db.put("VDI", vdi, "type", Value::text("cbt_metadata"));
        s.db.put_key("VDI", vdi, "other_config", "content_id", Some(Value::text(NO_CONTENT)));
        let (uuid, sr) = (s.db.text("VDI", vdi, "uuid"), s.db.text("VDI", vdi, "SR"));
        s.chains.delete(&uuid);
        hidden::coalesce_if_automatic(&context.sim.config, s, &sr);
        hidden::relink(s, &sr);
        space::refresh(&context.sim.config, s, &sr);
        Ok(())
    })
}

/// Waits until no VBD record names the disk.
async fn wait_for_vbds(context: &Context, vdi: &str) -> Outcome<()> {
    let deadline = Instant::now() + context.sim.config.data_destroy_wait;
    let mut changes = context.sim.changes.subscribe();
    loop {
        changes.borrow_and_update();
        if context.with(|s| s.db.list("VDI", vdi, "VBDs").is_empty()) {
            return Ok(());
        }
        if timeout_at(deadline, changes.changed()).await.is_err() {
            return Err(Failure::new("VDI_IN_USE", [vdi, "data_destroy"]));
        }
    }
}

fn list_changed_blocks(context: &Context, from: &str, to: &str) -> Outcome<String> {
    context.with(|s| {
        s.db.get("VDI", from)?;
        s.db.get("VDI", to)?;
        // Only the target is checked; the earlier disk may be in use.
        refuse_in_use(s, to, "list_changed_blocks")?;
        let (from, to) = (s.db.text("VDI", from, "uuid"), s.db.text("VDI", to, "uuid"));
        s.cbt.changed(&from, &to).map(|bitmap| cbt::encode(&bitmap))
    })
}

/// What may be called on a disk as it is.
pub(crate) fn allowed_operations(db: &Db, vdi: &str) -> Vec<String> {
    let used = !active_vbds(db, vdi).is_empty();
    let metadata = db.text("VDI", vdi, "type") == "cbt_metadata";
    let snapshot = db.flag("VDI", vdi, "is_a_snapshot");
    let tracked = db.flag("VDI", vdi, "cbt_enabled");
    if !db.flag("VDI", vdi, "managed") {
        return Vec::new();
    }
    let mut allowed = vec!["forget", "update", "generate_config"];
    if !metadata {
        allowed.extend(["snapshot", "clone"]);
        if !used {
            allowed.extend(["copy", "resize"]);
        }
        if !snapshot {
            allowed.extend(["enable_cbt", "disable_cbt"]);
        }
        if !tracked {
            allowed.push("set_on_boot");
        }
    }
    if !used {
        allowed.push("destroy");
        if tracked {
            allowed.push("list_changed_blocks");
        }
        if tracked && snapshot {
            allowed.push("data_destroy");
        }
    }
    allowed.into_iter().map(str::to_owned).collect()
}
