//! Storage repositories: a directory each, with a capacity that is only accounted, and the PBDs that plug them.

use crate::config::Config;
use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{NULL, Value};
use crate::sim::{Args, Context, State};
use crate::storage::{disk, vdi};
use crate::store::db::Db;
use std::path::PathBuf;

/// What a dynamic VHD costs before it holds anything: headers, allocation table and bitmaps, rounded up.
const EMPTY_DISK_BYTES: u64 = 64 * 1024;

pub(crate) fn call(context: &Context, class: &str, name: &str, args: &Args) -> Outcome<Value> {
    match (class, name) {
        ("SR", "scan" | "update") => {
            context.with(|s| {
                s.db.get("SR", args.text(0))?;
                assert_plugged(&s.db, args.text(0))?;
                refresh(&context.sim.config, s, args.text(0));
                Ok(())
            })?;
            Ok(Value::void())
        }
        ("SR", "get_supported_types") => Ok(Value::texts(["ext"])),
        ("SR", "set_name_label") => set(context, args, "name_label"),
        ("SR", "set_name_description") => set(context, args, "name_description"),
        ("SR", "set_shared") => set(context, args, "shared"),
        ("PBD", "plug") => plug(context, args.text(0), true),
        ("PBD", "unplug") => plug(context, args.text(0), false),
        ("PBD", "create") => create_pbd(context, args),
        ("PBD", "destroy") => destroy_pbd(context, args.text(0)),
        _ => Err(unknown(class, name)),
    }
}

fn set(context: &Context, args: &Args, field: &str) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("SR", args.text(0))?;
        s.db.put("SR", args.text(0), field, args.0[1].clone());
        Ok(Value::void())
    })
}

/// Directory of a repository.
pub(crate) fn directory(config: &Config, db: &Db, sr: &str) -> PathBuf {
    config.dir.join("sr").join(db.text("SR", sr, "uuid"))
}

/// `SR_HAS_NO_PBDS` unless some host has the repository plugged.
pub(crate) fn assert_plugged(db: &Db, sr: &str) -> Outcome<()> {
    let pbds = db.list("SR", sr, "PBDs");
    if pbds.iter().any(|p| db.flag("PBD", p, "currently_attached")) {
        Ok(())
    } else {
        Err(Failure::new("SR_HAS_NO_PBDS", [sr]))
    }
}

/// Whether a host has the repository plugged.
pub(crate) fn visible(db: &Db, sr: &str, host: &str) -> bool {
    let on_host = |p: &String| db.text("PBD", p, "host") == host && db.flag("PBD", p, "currently_attached");
    db.list("SR", sr, "PBDs").iter().any(on_host)
}

/// Measures every disk of a repository and writes the sums into its record.
pub(crate) fn refresh(config: &Config, state: &mut State, sr: &str) {
    let (mut used, mut promised) = (0u64, 0i64);
    for vdi in state.db.list("SR", sr, "VDIs") {
        let occupied = disk::occupied(&vdi::path_of(config, &state.db, &vdi));
        used += occupied;
        promised = promised.saturating_add(state.db.int("VDI", &vdi, "virtual_size"));
        state.db.put("VDI", &vdi, "physical_utilisation", size_value(occupied));
    }
    state.db.put("SR", sr, "physical_utilisation", size_value(used));
    state.db.put("SR", sr, "virtual_allocation", Value::Int(promised));
}

/// A size as the API carries it.
pub(crate) fn size_value(bytes: u64) -> Value {
    Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// Error 44 when the repository has no room for `bytes` more.
pub(crate) fn assert_space(config: &Config, state: &mut State, sr: &str, bytes: u64) -> Outcome<()> {
    refresh(config, state, sr);
    let used = state.db.int("SR", sr, "physical_utilisation");
    let wanted = i64::try_from(bytes).unwrap_or(i64::MAX);
    if used.saturating_add(wanted) > state.db.int("SR", sr, "physical_size") {
        return Err(Failure::storage(44, "There is insufficient space", ""));
    }
    Ok(())
}

/// Error 44 when not even an empty disk fits.
pub(crate) fn assert_space_for_disk(config: &Config, state: &mut State, sr: &str) -> Outcome<()> {
    assert_space(config, state, sr, EMPTY_DISK_BYTES)
}

fn plug(context: &Context, pbd: &str, up: bool) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("PBD", pbd)?;
        let sr = s.db.text("PBD", pbd, "SR");
        if !up && s.db.list("SR", &sr, "VDIs").iter().any(|v| !vdi::active_vbds(&s.db, v).is_empty()) {
            return Err(Failure::new("SR_DEVICE_IN_USE", [sr]));
        }
        s.db.put("PBD", pbd, "currently_attached", Value::Bool(up));
        Ok(Value::void())
    })
}

fn create_pbd(context: &Context, args: &Args) -> Outcome<Value> {
    let record = super::vdi::constructed("PBD", args.map(0))?;
    context.with(|s| {
        s.db.get("SR", &crate::store::db::text_of(&record, "SR"))?;
        s.db.get("host", &crate::store::db::text_of(&record, "host"))?;
        Ok(Value::text(s.db.create("PBD", record)))
    })
}

fn destroy_pbd(context: &Context, pbd: &str) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("PBD", pbd)?;
        if s.db.flag("PBD", pbd, "currently_attached") {
            return Err(Failure::not_allowed("PBD is currently attached"));
        }
        s.db.remove("PBD", pbd);
        Ok(Value::void())
    })
}

/// The repository to use where the caller named none.
pub(crate) fn default_sr(db: &Db) -> Outcome<String> {
    let pool = db.refs("pool").into_iter().next().unwrap_or_default();
    let sr = db.text("pool", &pool, "default_SR");
    if sr == NULL || !db.exists("SR", &sr) {
        return Err(Failure::new("DEFAULT_SR_NOT_FOUND", [sr]));
    }
    Ok(sr)
}
