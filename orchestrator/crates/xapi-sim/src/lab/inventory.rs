//! Everything the pool holds, in a form that two moments can be compared by.

use crate::rpc::json::to_json;
use crate::sim::State;
use serde_json::{Map, Value, json};

/// Members shown per class; references become uuids, so that nothing depends on where an object came from.
const SHOWN: &[(&str, &[&str])] = &[
    (
        "VM",
        &[
            "uuid",
            "name_label",
            "power_state",
            "is_a_template",
            "is_a_snapshot",
            "is_control_domain",
            "snapshot_of",
            "other_config",
            "tags",
        ],
    ),
    ("VBD", &["uuid", "VM", "VDI", "userdevice", "mode", "currently_attached", "other_config"]),
    ("VIF", &["uuid", "VM", "network", "device", "MAC", "currently_attached", "other_config"]),
    (
        "VDI",
        &[
            "uuid",
            "name_label",
            "SR",
            "type",
            "managed",
            "virtual_size",
            "is_a_snapshot",
            "snapshot_of",
            "cbt_enabled",
            "other_config",
            "tags",
        ],
    ),
    ("task", &["uuid", "name_label", "status", "other_config"]),
    ("session", &["uuid", "auth_user_name", "originator", "other_config"]),
];

/// The inventory: class to list of objects, each ordered by uuid.
pub(super) fn take(state: &State) -> Value {
    let mut classes = Map::new();
    for (class, fields) in SHOWN {
        let mut objects: Vec<Value> =
            state.db.refs(class).iter().map(|r| object(state, class, r, fields)).collect();
        objects.sort_by_key(|o| o["uuid"].as_str().unwrap_or_default().to_owned());
        classes.insert((*class).to_owned(), Value::Array(objects));
    }
    Value::Object(classes)
}

fn object(state: &State, class: &str, reference: &str, fields: &[&str]) -> Value {
    let Some(row) = state.db.row(class, reference) else { return Value::Null };
    let mut object = Map::new();
    for field in fields {
        let value = row.record.get(*field).map_or(Value::Null, to_json);
        let target = match *field {
            "VM" => Some("VM"),
            "VDI" => Some("VDI"),
            "SR" => Some("SR"),
            "network" => Some("network"),
            "snapshot_of" => Some(class),
            _ => None,
        };
        let value = match (target, value.as_str()) {
            (Some(target), Some(reference)) => {
                // A reference to something that is gone stays visible as such.
                let gone = || json!(if reference == crate::rpc::value::NULL { "" } else { "gone" });
                state
                    .db
                    .row(target, reference)
                    .map_or_else(gone, |_| json!(state.db.text(target, reference, "uuid")))
            }
            _ => value,
        };
        object.insert((*field).to_owned(), value);
    }
    Value::Object(object)
}
