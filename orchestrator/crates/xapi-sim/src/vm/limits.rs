//! The setters of memory, processors and boot fields, which have rules of their own.

use super::rules::{assert_allowed, assert_state};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{Record, Value};
use crate::sim::{Args, Context, State};

/// Answers a call of this module, or `None` for any other.
pub(crate) fn call(context: &Context, name: &str, args: &Args) -> Option<Outcome<Value>> {
    let vm = || args.text(0);
    let memory = |changes: &[(&str, i64)]| Some(set_memory(context, vm(), changes));
    match name {
        "set_memory_limits" => memory(&[
            ("memory_static_min", args.int(1)),
            ("memory_static_max", args.int(2)),
            ("memory_dynamic_min", args.int(3)),
            ("memory_dynamic_max", args.int(4)),
        ]),
        "set_memory" => memory(&[
            ("memory_static_max", args.int(1)),
            ("memory_dynamic_min", args.int(1)),
            ("memory_dynamic_max", args.int(1)),
        ]),
        "set_memory_static_range" => {
            memory(&[("memory_static_min", args.int(1)), ("memory_static_max", args.int(2))])
        }
        "set_memory_dynamic_range" => {
            memory(&[("memory_dynamic_min", args.int(1)), ("memory_dynamic_max", args.int(2))])
        }
        "set_memory_static_min"
        | "set_memory_static_max"
        | "set_memory_dynamic_min"
        | "set_memory_dynamic_max" => memory(&[(&name[4..], args.int(1))]),
        "set_VCPUs_max" | "set_VCPUs_at_startup" => Some(set_vcpus(context, vm(), &name[4..], args.int(1))),
        "compute_memory_overhead" => {
            Some(context.with(|s| s.db.get("VM", vm()).map(|_| Value::Int(memory_overhead()))))
        }
        "set_HVM_boot_policy" => Some(set_boot_policy(context, vm(), args)),
        "set_domain_type" => Some(set_domain_type(context, vm(), args)),
        "set_NVRAM" => Some(edit_nvram(context, vm(), |_| Ok(args.map(1).clone()))),
        "add_to_NVRAM" => Some(edit_nvram(context, vm(), |mut map| {
            if map.contains_key(args.text(1)) {
                return Err(Failure::new("MAP_DUPLICATE_KEY", ["VM", "NVRAM", vm(), args.text(1)]));
            }
            map.insert(args.text(1).to_owned(), args.0[2].clone());
            Ok(map)
        })),
        "remove_from_NVRAM" => Some(edit_nvram(context, vm(), |mut map| {
            map.remove(args.text(1));
            Ok(map)
        })),
        "set_actions_after_crash"
        | "set_has_vendor_device"
        | "set_ha_restart_priority"
        | "set_ha_always_run"
        | "set_order"
        | "set_start_delay"
        | "set_shutdown_delay" => Some(put(context, vm(), &name[4..], args.0[1].clone())),
        _ => None,
    }
}

/// What the device model and page tables of a guest cost the host.
pub(crate) fn memory_overhead() -> i64 {
    11 << 20
}

fn put(context: &Context, vm: &str, field: &str, value: Value) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("VM", vm)?;
        s.db.put("VM", vm, field, value);
        Ok(Value::void())
    })
}

/// The order that memory limits must have: static_min <= dynamic_min <= dynamic_max <= static_max.
pub(crate) fn check(record: &Record) -> Outcome<()> {
    let get = |name: &str| match record.get(name) {
        Some(Value::Int(n)) => *n,
        _ => 0,
    };
    let limits = [
        get("memory_static_min"),
        get("memory_dynamic_min"),
        get("memory_dynamic_max"),
        get("memory_static_max"),
    ];
    if limits[0] < 0 || limits.windows(2).any(|pair| pair[0] > pair[1]) {
        let rule = "Memory limits must satisfy: static_min <= dynamic_min <= dynamic_max <= static_max";
        return Err(Failure::new("MEMORY_CONSTRAINT_VIOLATION", [rule]));
    }
    Ok(())
}

fn set_memory(context: &Context, vm: &str, changes: &[(&str, i64)]) -> Outcome<Value> {
    context.with(|s| {
        assert_allowed(s, vm, "changing_memory_limits")?;
        let mut record = s.db.get("VM", vm)?.clone();
        for (field, value) in changes {
            record.insert((*field).to_owned(), Value::Int(*value));
        }
        check(&record)?;
        for (field, value) in changes {
            s.db.put("VM", vm, field, Value::Int(*value));
        }
        Ok(Value::void())
    })
}

fn set_vcpus(context: &Context, vm: &str, field: &str, count: i64) -> Outcome<Value> {
    context.with(|s| {
        assert_allowed(s, vm, "changing_VCPUs")?;
        let (max, startup) = match field {
            "VCPUs_max" => (count, s.db.int("VM", vm, "VCPUs_at_startup")),
            _ => (s.db.int("VM", vm, "VCPUs_max"), count),
        };
        if count < 1 || startup > max {
            return Err(Failure::invalid_value(field, count.to_string()));
        }
        s.db.put("VM", vm, field, Value::Int(count));
        Ok(Value::void())
    })
}

fn set_boot_policy(context: &Context, vm: &str, args: &Args) -> Outcome<Value> {
    context.with(|s| {
        assert_state(&s.db, vm, &["Halted"])?;
        s.db.put("VM", vm, "HVM_boot_policy", args.0[1].clone());
        let kind = if args.text(1).is_empty() { "pv" } else { "hvm" };
        s.db.put("VM", vm, "domain_type", Value::text(kind));
        Ok(Value::void())
    })
}

fn set_domain_type(context: &Context, vm: &str, args: &Args) -> Outcome<Value> {
    context.with(|s| {
        assert_state(&s.db, vm, &["Halted"])?;
        s.db.put("VM", vm, "domain_type", args.0[1].clone());
        let policy = if args.text(1) == "hvm" { "BIOS order" } else { "" };
        s.db.put("VM", vm, "HVM_boot_policy", Value::text(policy));
        Ok(Value::void())
    })
}

fn edit_nvram(context: &Context, vm: &str, edit: impl FnOnce(Record) -> Outcome<Record>) -> Outcome<Value> {
    let work = |s: &mut State| {
        assert_allowed(s, vm, "changing_NVRAM")?;
        let map = edit(s.db.map("VM", vm, "NVRAM"))?;
        s.db.put("VM", vm, "NVRAM", Value::Map(map));
        Ok(Value::void())
    };
    context.with(work)
}
