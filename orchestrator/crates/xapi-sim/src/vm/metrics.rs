//! What a guest reports through its store: `vm-data` into `VM.xenstore_data`, agent keys into the guest metrics.

use crate::domain::Domain;
use crate::rpc::value::{NULL, Record, Value};
use crate::sim::{Context, State, now};
use crate::store::db::Db;
use std::collections::BTreeMap;

/// `data/` keys that become `os_version`, as the toolstack knows them.
const OS_KEYS: [(&str, &str); 5] = [
    ("data/os_name", "name"),
    ("data/os_uname", "uname"),
    ("data/os_distro", "distro"),
    ("data/os_majorver", "major"),
    ("data/os_minorver", "minor"),
];
const VERSION_KEYS: [(&str, &str); 4] = [
    ("attr/PVAddons/MajorVersion", "major"),
    ("attr/PVAddons/MinorVersion", "minor"),
    ("attr/PVAddons/MicroVersion", "micro"),
    ("attr/PVAddons/BuildVersion", "build"),
];

/// `other_config` key of sample VMs whose agent can quiesce the guest for a snapshot.
pub(crate) const QUIESCE_KEY: &str = "lab:quiesce";

/// Makes the guest metrics of a VM that starts. A VM without a process counts as one with drivers, so that it can be
/// shut down cleanly.
pub(crate) fn create(state: &mut State, vm: &str, with_drivers: bool) {
    let mut record = Db::blank("VM_guest_metrics");
    record.insert("last_updated".into(), now());
    for field in ["can_use_hotplug_vbd", "can_use_hotplug_vif"] {
        record.insert(field.into(), Value::text("unspecified"));
    }
    if with_drivers {
        record.insert("PV_drivers_detected".into(), Value::Bool(true));
        let quiesces = state.db.map("VM", vm, "other_config").contains_key(QUIESCE_KEY);
        let says = [Some("feature-shutdown"), quiesces.then_some("feature-snapshot")];
        let other = says.into_iter().flatten().map(|feature| (feature, "1"));
        record.insert("other".into(), Value::text_map(other));
        record.insert("live".into(), Value::Bool(true));
    }
    let metrics = state.db.create("VM_guest_metrics", record);
    state.db.put("VM", vm, "guest_metrics", Value::text(metrics));
}

/// The guest changed its store.
pub(crate) fn store_changed(context: &Context, domain: &Domain, path: &str) {
    context.with(|s| {
        if path == "vm-data" || path.starts_with("vm-data/") {
            copy_back(s, domain);
        } else {
            report(s, domain);
        }
    });
}

/// Copies the guest's whole `vm-data` tree into the VM's record. Directories are keys with an empty value.
pub(crate) fn copy_back(state: &mut State, domain: &Domain) {
    if !domain.is_real() {
        return;
    }
    let mut data: Record = state.db.map("VM", &domain.vm, "xenstore_data");
    data.retain(|key, _| !key.starts_with("vm-data/"));
    let tree = domain.tree("vm-data").into_iter().filter(|(path, _)| path != "vm-data");
    data.extend(tree.map(|(path, value)| (path, Value::Text(value))));
    state.db.put("VM", &domain.vm, "xenstore_data", Value::Map(data));
}

fn report(state: &mut State, domain: &Domain) {
    let metrics = state.db.text("VM", &domain.vm, "guest_metrics");
    if metrics == NULL || metrics.is_empty() {
        return;
    }
    let tree = domain.tree("");
    let text = |key: &str| tree.get(key).map(String::as_str).unwrap_or_default();
    let pick = |keys: &[(&str, &str)]| {
        let found = keys.iter().filter_map(|(key, name)| Some((*name, tree.get(*key)?.as_str())));
        Value::text_map(found)
    };
    let versions = pick(&VERSION_KEYS);
    let has_version = versions.as_map().is_some_and(|v| v.contains_key("major") && v.contains_key("minor"));
    // XenbusStateConnected of any frontend.
    let connected = tree
        .iter()
        .any(|(path, value)| path.starts_with("device/") && path.ends_with("/state") && value == "4");
    let hotplug = |key: &str| match text(key) {
        "1" => "yes",
        "0" => "no",
        _ => "unspecified",
    };
    let fields = [
        ("os_version", pick(&OS_KEYS)),
        ("PV_drivers_version", versions),
        ("networks", networks(&tree)),
        ("other", controls(&tree)),
        ("PV_drivers_detected", Value::Bool(has_version || connected)),
        ("can_use_hotplug_vbd", Value::text(hotplug("feature/hotplug/vbd"))),
        ("can_use_hotplug_vif", Value::text(hotplug("feature/hotplug/vif"))),
        ("live", Value::Bool(true)),
    ];
    let before = state.db.generation();
    for (field, value) in fields {
        state.db.put("VM_guest_metrics", &metrics, field, value);
    }
    if state.db.generation() != before {
        state.db.put("VM_guest_metrics", &metrics, "last_updated", now());
    }
}

/// Direct children of `control`, by their bare names.
fn controls(tree: &BTreeMap<String, String>) -> Value {
    let child = |(path, value): (&String, &String)| {
        let name = path.strip_prefix("control/")?;
        (!name.contains('/')).then(|| (name.to_owned(), value.clone()))
    };
    Value::text_map(tree.iter().filter_map(child))
}

/// `attr/vif/<n>/ipv4/<m>` and `attr/vif/<n>/ipv6/<m>`; only where there are none of these the old `attr/eth<n>/ip` and
/// `attr/eth<n>/ipv6/<m>/addr`.
fn networks(tree: &BTreeMap<String, String>) -> Value {
    let mut found = BTreeMap::new();
    let by_vif = tree.keys().any(|path| path.starts_with("attr/vif/"));
    for (path, value) in tree.iter().filter(|(_, value)| !value.is_empty()) {
        let parts: Vec<&str> = path.split('/').collect();
        match parts[..] {
            ["attr", "vif", device, family @ ("ipv4" | "ipv6"), index] => {
                found.insert(format!("{device}/{family}/{index}"), value.clone());
                if (family, index) == ("ipv4", "0") {
                    found.insert(format!("{device}/ip"), value.clone());
                }
            }
            ["attr", interface, ref rest @ ..] if !by_vif => {
                let Some(device) = interface.strip_prefix("eth") else { continue };
                match rest {
                    ["ip"] => {
                        found.insert(format!("{device}/ip"), value.clone());
                        found.insert(format!("{device}/ipv4/0"), value.clone());
                    }
                    ["ipv6", index, "addr"] => {
                        found.insert(format!("{device}/ipv6/{index}"), value.clone());
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }
    Value::text_map(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_keys_become_networks_and_controls() {
        let tree: BTreeMap<String, String> = [
            ("attr/eth0/ip", "192.0.2.99"),
            ("attr/vif/0/ipv4/0", "192.0.2.7"),
            ("attr/vif/0/ipv6/1", "2001:db8::7"),
            ("control/feature-poweroff", "1"),
            ("control/deep/er", "x"),
        ]
        .into_iter()
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
        let expected = [("0/ip", "192.0.2.7"), ("0/ipv4/0", "192.0.2.7"), ("0/ipv6/1", "2001:db8::7")];
        assert_eq!(networks(&tree), Value::text_map(expected));
        assert_eq!(controls(&tree), Value::text_map([("feature-poweroff", "1")]));
        let old = [("attr/eth1/ip", "192.0.2.7"), ("attr/eth1/ipv6/0/addr", "2001:db8::7")];
        let old = old.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        let expected = [("1/ip", "192.0.2.7"), ("1/ipv4/0", "192.0.2.7"), ("1/ipv6/0", "2001:db8::7")];
        assert_eq!(networks(&old), Value::text_map(expected));
    }
}
