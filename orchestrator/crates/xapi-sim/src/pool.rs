//! The pool, host and console calls.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::licence;
use crate::rpc::value::Value;
use crate::sim::{Args, Context, host_time};
use crate::storage::vdi;
use crate::store::methods::names;
use crate::vm::{limits, start};

pub(crate) fn call(context: &Context, class: &str, name: &str, args: &Args) -> Outcome<Value> {
    match (class, name) {
        ("pool", "get_license_state") => {
            context.with(|s| s.db.get("pool", args.text(0)).map(|_| licence::state(s)))
        }
        ("pool" | "host", "has_extension") => Ok(Value::Bool(false)),
        ("pool", "sync_database") => Ok(Value::void()),
        ("host", "list_methods") => Ok(Value::texts(names(&context.sim.methods))),
        ("host", _) => host_call(context, name, args),
        ("console", "create") => {
            let record = vdi::constructed("console", args.map(0))?;
            Ok(Value::text(context.with(|s| s.db.create("console", record))))
        }
        ("console", "destroy") => context.with(|s| {
            s.db.get("console", args.text(0))?;
            s.db.remove("console", args.text(0));
            Ok(Value::void())
        }),
        _ => Err(unknown(class, name)),
    }
}

fn host_call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    let host = args.text(0);
    context.with(|s| {
        s.db.get("host", host)?;
        match name {
            "get_servertime" | "get_server_localtime" => Ok(host_time(context.sim.faults().clock_offset_s)),
            "get_server_certificate" => Ok(Value::text(context.sim.certificate())),
            "compute_free_memory" => Ok(Value::Int(start::free_memory(&s.db, host))),
            "compute_memory_overhead" => Ok(Value::Int(limits::memory_overhead())),
            "get_management_interface" => {
                let pifs = s.db.list("host", host, "PIFs");
                let found = pifs.into_iter().find(|p| s.db.flag("PIF", p, "management"));
                found
                    .map(Value::Text)
                    .ok_or_else(|| Failure::new("HOST_HAS_NO_MANAGEMENT_IP", Vec::<String>::new()))
            }
            "enable" | "disable" => {
                s.db.put("host", host, "enabled", Value::Bool(name == "enable"));
                Ok(Value::void())
            }
            _ => Err(unknown("host", name)),
        }
    })
}
