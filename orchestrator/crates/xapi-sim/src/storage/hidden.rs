//! The nodes of a chain that no user sees as disks: VDI records with `managed=false`, and `sm_config["vhd-parent"]` on
//! every node that has a parent. Keeps the records in step with the chains.

use super::{space, vdi};
use crate::config::{Coalesce, Config};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::Value;
use crate::sim::State;
use crate::store::db::Db;

/// Name of every hidden node, as the storage manager gives it.
const NAME: &str = "base copy";

/// `VDI_NOT_MANAGED` for a node that only storage itself may touch.
pub(crate) fn assert_managed(db: &Db, vdi: &str) -> Outcome<()> {
    if db.flag("VDI", vdi, "managed") { Ok(()) } else { Err(Failure::new("VDI_NOT_MANAGED", [vdi])) }
}

/// Adds the record of the node that a disk and its copy now share.
pub(crate) fn add(state: &mut State, uuid: &str, source: &str) {
    let mut record = Db::blank("VDI");
    for field in ["SR", "virtual_size"] {
        record.extend(
            state.db.row("VDI", source).and_then(|r| r.record.get(field)).map(|v| (field.into(), v.clone())),
        );
    }
    for (field, value) in [
        ("uuid", Value::text(uuid)),
        ("location", Value::text(uuid)),
        ("name_label", Value::text(NAME)),
        ("type", Value::text("user")),
        ("read_only", Value::Bool(true)),
        ("managed", Value::Bool(false)),
        ("sm_config", vdi::fresh_sm_config(&state.db, &state.db.text("VDI", source, "SR"))),
    ] {
        record.insert(field.into(), value);
    }
    state.db.create("VDI", record);
}

/// Writes into every record of a repository whom its node differs from now.
pub(crate) fn relink(state: &mut State, sr: &str) {
    for vdi in state.db.list("SR", sr, "VDIs") {
        let uuid = state.db.text("VDI", &vdi, "uuid");
        let parent = state.chains.parent(&uuid).map(Value::text);
        state.db.put_key("VDI", &vdi, "sm_config", "vhd-parent", parent);
    }
}

/// Shortens the chains of a repository where that happens by itself.
pub(crate) fn coalesce_if_automatic(config: &Config, state: &mut State, sr: &str) {
    if config.coalesce == Coalesce::Auto {
        coalesce(config, state, sr);
    }
}

/// Shortens the chains of a repository and answers how many nodes that has removed.
pub(crate) fn coalesce(config: &Config, state: &mut State, sr: &str) -> usize {
    let records = state.db.list("SR", sr, "VDIs");
    let members: Vec<String> = records.iter().map(|vdi| state.db.text("VDI", vdi, "uuid")).collect();
    let gone = state.chains.coalesce(&members);
    for (vdi, uuid) in records.iter().zip(&members) {
        if gone.contains(uuid) {
            state.db.remove("VDI", vdi);
        }
    }
    relink(state, sr);
    space::refresh(config, state, sr);
    gone.len()
}
