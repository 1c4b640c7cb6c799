//! Making a storage repository: its record, its PBDs, its directory.

use super::backend::{Backend, Layout};
use super::space::size_value;
use super::sr;
use crate::config::{Config, SrSpec};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{Record, Value};
use crate::sim::State;
use crate::store::db::Db;

/// Name of the host with that number, counted from 1.
pub(crate) fn host_name(number: usize) -> String {
    format!("lab-host-{number}")
}

/// Adds a repository to the pool and answers its reference.
pub(crate) fn add(state: &mut State, config: &Config, spec: &SrSpec) -> Outcome<String> {
    let backend = Backend::by_name(&spec.kind).ok_or_else(|| {
        Failure::new("SR_UNKNOWN_DRIVER", [format!("{} (known: {})", spec.kind, Backend::names())])
    })?;
    let shared = spec.shared.unwrap_or(backend.shared);
    let hosts = if shared { state.db.refs("host") } else { vec![one_host(&state.db, spec.host)?] };
    let content = if backend.layout == Layout::Iso { "iso" } else { "user" };
    let repository = state.db.create(
        "SR",
        filled(
            "SR",
            [
                ("name_label", Value::text(&spec.name)),
                ("type", Value::text(backend.name)),
                ("content_type", Value::text(content)),
                ("shared", Value::Bool(shared)),
                ("sm_config", Value::text_map(sm_config(backend.name).iter().copied())),
                ("physical_size", size_value(spec.capacity.unwrap_or(config.sr_capacity))),
            ],
        ),
    );
    for host in hosts {
        let pbd = filled(
            "PBD",
            [
                ("host", Value::text(host)),
                ("SR", Value::text(&repository)),
                ("device_config", Value::text_map(device_config(backend.name).iter().copied())),
                ("currently_attached", Value::Bool(true)),
            ],
        );
        state.db.create("PBD", pbd);
    }
    let directory = sr::directory(config, &state.db, &repository);
    std::fs::create_dir_all(&directory).map_err(|e| Failure::disk("create the directory of an SR", &e))?;
    if spec.default {
        for pool in state.db.refs("pool") {
            state.db.put("pool", &pool, "default_SR", Value::text(&repository));
        }
    }
    Ok(repository)
}

fn one_host(db: &Db, number: Option<usize>) -> Outcome<String> {
    let name = host_name(number.unwrap_or(1));
    let found = db.find("host", "name_label", &name).into_iter().next();
    found.ok_or_else(|| Failure::invalid_value("host", name))
}

fn filled<const N: usize>(class: &str, members: [(&str, Value); N]) -> Record {
    let mut record = Db::blank(class);
    record.extend(members.map(|(name, value)| (name.to_owned(), value)));
    record
}

/// What a host needs to reach a repository of that type; the values are examples.
fn device_config(kind: &str) -> &'static [(&'static str, &'static str)] {
    match kind {
        "nfs" => &[("server", "192.0.2.10"), ("serverpath", "/export/lab"), ("nfsversion", "3")],
        "smb" => &[("server", r"\\192.0.2.10\lab"), ("username", "lab")],
        "lvmoiscsi" | "iscsi" => &[
            ("target", "192.0.2.20"),
            ("port", "3260"),
            ("targetIQN", "iqn.2026-01.test.lab:store"),
            ("SCSIid", "36001405lab0000000000000000000001"),
        ],
        "lvmohba" => &[("SCSIid", "36001405lab0000000000000000000002")],
        "file" | "udev" | "iso" => &[("location", "/srv/lab")],
        _ => &[("device", "/dev/disk/by-id/lab")],
    }
}

fn sm_config(kind: &str) -> &'static [(&'static str, &'static str)] {
    match kind {
        "lvmoiscsi" | "lvmohba" => &[("allocation", "thick"), ("use_vhd", "true"), ("multipathable", "true")],
        "lvm" => &[("allocation", "thick"), ("use_vhd", "true"), ("devserial", "scsi-lab")],
        "ext" => &[("devserial", "scsi-lab")],
        "iso" | "udev" => &[("type", "cd")],
        _ => &[],
    }
}
