//! Storage repositories: a directory each, with a capacity that is only accounted, and the PBDs that plug them.

use super::backend::BACKENDS;
use crate::config::Config;
use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{NULL, Value};
use crate::sim::{Args, Context};
use crate::storage::vdi;
use crate::store::db::Db;
use std::path::PathBuf;

pub(crate) use super::space::refresh;

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
        ("SR", "get_supported_types") => Ok(Value::texts(BACKENDS.iter().map(|b| b.name))),
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
