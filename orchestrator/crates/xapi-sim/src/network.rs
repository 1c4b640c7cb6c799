//! The network calls.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::rpc::value::Value;
use crate::sim::{Args, Context};
use crate::storage::vdi;
use crate::store::db::text_of;

pub(crate) fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    match name {
        "create" => create(context, args),
        "destroy" => context.with(|s| {
            s.db.get("network", args.text(0))?;
            if !s.db.list("network", args.text(0), "PIFs").is_empty() {
                return Err(Failure::new("NETWORK_CONTAINS_PIF", s.db.list("network", args.text(0), "PIFs")));
            }
            if !s.db.list("network", args.text(0), "VIFs").is_empty() {
                return Err(Failure::new("NETWORK_CONTAINS_VIF", s.db.list("network", args.text(0), "VIFs")));
            }
            s.db.remove("network", args.text(0));
            Ok(Value::void())
        }),
        "add_purpose" => edit_purpose(context, args, true),
        "remove_purpose" => edit_purpose(context, args, false),
        "set_default_locking_mode" => context.with(|s| {
            s.db.get("network", args.text(0))?;
            s.db.put("network", args.text(0), "default_locking_mode", args.0[1].clone());
            Ok(Value::void())
        }),
        _ => Err(unknown("network", name)),
    }
}

fn create(context: &Context, args: &Args) -> Outcome<Value> {
    let mut record = vdi::constructed("network", args.map(0))?;
    if text_of(&record, "bridge").is_empty() {
        let count = context.with(|s| s.db.refs("network").len());
        record.insert("bridge".into(), Value::text(format!("xapi{count}")));
    }
    Ok(Value::text(context.with(|s| s.db.create("network", record))))
}

/// A pool may serve disks with or without TLS, never both.
fn edit_purpose(context: &Context, args: &Args, add: bool) -> Outcome<Value> {
    let purpose = args.text(1);
    context.with(|s| {
        s.db.get("network", args.text(0))?;
        let opposite = if purpose == "nbd" { "insecure_nbd" } else { "nbd" };
        let networks = s.db.refs("network");
        if add && networks.iter().any(|n| s.db.list("network", n, "purpose").iter().any(|p| p == opposite)) {
            return Err(Failure::new("NETWORK_INCOMPATIBLE_PURPOSES", [purpose, opposite]));
        }
        let mut purposes = s.db.list("network", args.text(0), "purpose");
        purposes.retain(|p| p != purpose);
        if add {
            purposes.push(purpose.to_owned());
        }
        s.db.put("network", args.text(0), "purpose", Value::texts(purposes));
        Ok(Value::void())
    })
}
