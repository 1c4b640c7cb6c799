//! The records of a pool that nobody has used yet: hosts with their control domains, a local repository each, one
//! network, and a default template as every product ships some.

use super::db::Db;
use crate::config::{Config, SrSpec};
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{State, now};
use crate::storage::backend::BACKENDS;
use crate::storage::repository;
use crate::{Error, flavour::Flavour, licence};

/// Memory of every host.
const HOST_BYTES: i64 = 64 << 30;

/// Fills an empty store.
pub(crate) fn seed(state: &mut State, config: &Config) -> Result<(), Error> {
    let network = state.db.create(
        "network",
        filled(
            "network",
            [
                ("name_label", Value::text("Pool-wide network associated with eth0")),
                ("bridge", Value::text("xenbr0")),
                ("managed", Value::Bool(true)),
            ],
        ),
    );
    add_drivers(state, &config.flavour);
    let mut first = None;
    for index in 0..config.hosts.max(1) {
        let host = add_host(state, config, index, &network);
        let repository = repository::add(state, config, &local(index)).map_err(Error::Seed)?;
        first.get_or_insert((host, repository));
    }
    let (master, default_sr) = first.expect("there is at least one host");
    for field in ["suspend_image_sr", "crash_dump_sr"] {
        state.db.put("host", &master, field, Value::text(&default_sr));
    }
    state.db.create(
        "pool",
        filled(
            "pool",
            [
                ("name_label", Value::text("lab pool")),
                ("master", Value::text(&master)),
                ("default_SR", Value::text(&default_sr)),
                ("suspend_image_SR", Value::text(&default_sr)),
                ("crash_dump_SR", Value::text(NULL)),
            ],
        ),
    );
    for spec in &config.srs {
        repository::add(state, config, spec).map_err(Error::Seed)?;
    }
    licence::apply(state, &config.flavour, true);
    add_default_template(state);
    Ok(())
}

/// One record for each kind of repository.
fn add_drivers(state: &mut State, flavour: &Flavour) {
    for backend in BACKENDS {
        let features = backend.features(flavour.tracks_changes());
        let names = Value::texts(features.iter().map(|(name, _)| *name));
        let versions = features.into_iter().map(|(name, version)| (name.to_owned(), Value::Int(version)));
        let record = filled(
            "SM",
            [
                ("name_label", Value::text(backend.name)),
                ("type", Value::text(backend.name)),
                ("version", Value::text("3.0")),
                ("required_api_version", Value::text("1.0")),
                ("capabilities", names),
                ("features", Value::Map(versions.collect())),
            ],
        );
        state.db.create("SM", record);
    }
}

/// The local repository that every host has.
fn local(index: usize) -> SrSpec {
    SrSpec {
        name: if index == 0 { "Local storage".to_owned() } else { format!("Local storage {}", index + 1) },
        kind: "ext".into(),
        shared: Some(false),
        host: Some(index + 1),
        capacity: None,
        default: false,
    }
}

fn filled<const N: usize>(class: &str, members: [(&str, Value); N]) -> Record {
    let mut record = Db::blank(class);
    record.extend(members.map(|(name, value)| (name.to_owned(), value)));
    record
}

fn add_host(state: &mut State, config: &Config, index: usize, network: &str) -> String {
    let name = repository::host_name(index + 1);
    let metrics = filled(
        "host_metrics",
        [("memory_total", Value::Int(HOST_BYTES)), ("live", Value::Bool(true)), ("last_updated", now())],
    );
    let metrics = state.db.create("host_metrics", metrics);
    let host = state.db.create("host", host_record(&config.flavour, &name, &metrics));
    let cpu = filled("host_cpu", [("host", Value::text(&host)), ("vendor", Value::text("GenuineIntel"))]);
    state.db.create("host_cpu", cpu);
    let mac = crate::vif::generated_mac("lab", &index.to_string());
    let link = [("carrier", Value::Bool(true)), ("speed", Value::Int(10_000)), ("last_updated", now())];
    let link = state.db.create("PIF_metrics", filled("PIF_metrics", link));
    state.db.create(
        "PIF",
        filled(
            "PIF",
            [
                ("device", Value::text("eth0")),
                ("network", Value::text(network)),
                ("host", Value::text(&host)),
                ("MAC", Value::text(mac)),
                ("metrics", Value::text(link)),
                ("MTU", Value::Int(1500)),
                ("VLAN", Value::Int(-1)),
                ("physical", Value::Bool(true)),
                ("management", Value::Bool(true)),
                ("IP", Value::text("127.0.0.1")),
                ("netmask", Value::text("255.0.0.0")),
                ("ip_configuration_mode", Value::text("Static")),
            ],
        ),
    );
    let control = add_control_domain(state, &name, &host);
    state.db.put("host", &host, "control_domain", Value::text(control));
    host
}

fn host_record(flavour: &Flavour, name: &str, metrics: &str) -> Record {
    filled(
        "host",
        [
            ("name_label", Value::text(name)),
            ("hostname", Value::text(name)),
            ("address", Value::text("127.0.0.1")),
            ("enabled", Value::Bool(true)),
            ("metrics", Value::text(metrics)),
            ("API_version_major", Value::Int(flavour.api.major.into())),
            ("API_version_minor", Value::Int(flavour.api.minor.into())),
            ("API_version_vendor", Value::text("XenSource")),
            ("software_version", flavour.software_version(name)),
            ("capabilities", Value::texts(["xen-3.0-x86_64", "hvm-3.0-x86_32", "hvm-3.0-x86_64"])),
            (
                "cpu_info",
                Value::text_map([("cpu_count", "2"), ("socket_count", "1"), ("vendor", "GenuineIntel")]),
            ),
        ],
    )
}

fn add_control_domain(state: &mut State, name: &str, host: &str) -> String {
    let record = filled(
        "VM",
        [
            ("name_label", Value::text(format!("Control domain on host: {name}"))),
            ("is_control_domain", Value::Bool(true)),
            ("power_state", Value::text("Running")),
            ("domid", Value::Int(0)),
            ("resident_on", Value::text(host)),
            ("affinity", Value::text(host)),
            ("domain_type", Value::text("pv")),
            ("memory_static_max", Value::Int(2 << 30)),
            ("memory_dynamic_max", Value::Int(2 << 30)),
            ("memory_dynamic_min", Value::Int(2 << 30)),
            ("VCPUs_max", Value::Int(2)),
            ("VCPUs_at_startup", Value::Int(2)),
        ],
    );
    crate::vm::create::insert(state, record)
}

fn add_default_template(state: &mut State) {
    let record = filled(
        "VM",
        [
            ("name_label", Value::text("Other install media")),
            ("is_a_template", Value::Bool(true)),
            ("is_default_template", Value::Bool(true)),
            ("power_state", Value::text("Halted")),
            ("domid", Value::Int(-1)),
            ("domain_type", Value::text("hvm")),
            ("HVM_boot_policy", Value::text("BIOS order")),
            ("HVM_boot_params", Value::text_map([("order", "cdn"), ("firmware", "bios")])),
            ("memory_static_min", Value::Int(128 << 20)),
            ("memory_static_max", Value::Int(1 << 30)),
            ("memory_dynamic_min", Value::Int(1 << 30)),
            ("memory_dynamic_max", Value::Int(1 << 30)),
            ("VCPUs_max", Value::Int(1)),
            ("VCPUs_at_startup", Value::Int(1)),
            ("actions_after_shutdown", Value::text("destroy")),
            ("actions_after_reboot", Value::text("restart")),
            ("actions_after_crash", Value::text("restart")),
            (
                "other_config",
                Value::text_map([
                    ("default_template", "true"),
                    ("mac_seed", "6d7dff6f-3a0a-4f2e-9bd1-0c2f8ea2d1a1"),
                ]),
            ),
        ],
    );
    crate::vm::create::insert(state, record);
}
