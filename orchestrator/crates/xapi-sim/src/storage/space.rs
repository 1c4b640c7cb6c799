//! What the disks of a repository take, and whether more fits.

use super::backend::{Backend, Layout, Role};
use super::{track, vdi};
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::rpc::value::Value;
use crate::sim::State;
use crate::store::db::Db;

/// A size as the API carries it.
pub(crate) fn size_value(bytes: u64) -> Value {
    Value::Int(i64::try_from(bytes).unwrap_or(i64::MAX))
}

/// The type of a repository. Every record is made with a known one.
pub(crate) fn backend(db: &Db, sr: &str) -> Backend {
    let file = Backend { name: "file", layout: Layout::File, shared: false };
    Backend::by_name(&db.text("SR", sr, "type")).unwrap_or(file)
}

/// What a disk's node is at the moment.
pub(crate) fn role(db: &Db, vdi: &str) -> Role {
    if !db.flag("VDI", vdi, "managed") {
        Role::Hidden
    } else if db.flag("VDI", vdi, "is_a_snapshot") && !vdi::written_to(db, vdi) {
        Role::Snapshot
    } else {
        Role::Live
    }
}

/// Size of a disk in bytes.
pub(crate) fn virtual_size(db: &Db, vdi: &str) -> u64 {
    u64::try_from(db.int("VDI", vdi, "virtual_size")).unwrap_or_default()
}

/// Reckons every disk of a repository and writes the sums into its record.
pub(crate) fn refresh(config: &Config, state: &mut State, sr: &str) {
    let backend = backend(&state.db, sr);
    let (mut used, mut promised) = (0u64, 0u64);
    for vdi in state.db.list("SR", sr, "VDIs") {
        let bytes = disk_bytes(config, state, backend, &vdi);
        let uuid = state.db.text("VDI", &vdi, "uuid");
        used += bytes + if state.cbt.tracked(&uuid) { backend.log_bytes() } else { 0 };
        // The storage manager counts what users were promised, not the nodes in between.
        if state.db.flag("VDI", &vdi, "managed") {
            promised += virtual_size(&state.db, &vdi);
        }
        state.db.put("VDI", &vdi, "physical_utilisation", size_value(bytes));
    }
    state.db.put("SR", sr, "physical_utilisation", size_value(used));
    state.db.put("SR", sr, "virtual_allocation", size_value(promised));
}

fn disk_bytes(config: &Config, state: &mut State, backend: Backend, vdi: &str) -> u64 {
    if state.db.text("VDI", vdi, "type") == "cbt_metadata" {
        return 0;
    }
    track::note_guest_writes(config, state, vdi);
    let blocks = state.chains.block_count(&state.db.text("VDI", vdi, "uuid"));
    backend.node_bytes(virtual_size(&state.db, vdi), blocks, role(&state.db, vdi))
}

/// Error 44 when the repository has no room for `bytes` more.
pub(crate) fn assert_free(config: &Config, state: &mut State, sr: &str, bytes: u64) -> Outcome<()> {
    refresh(config, state, sr);
    let used = state.db.int("SR", sr, "physical_utilisation");
    let wanted = i64::try_from(bytes).unwrap_or(i64::MAX);
    if used.saturating_add(wanted) > state.db.int("SR", sr, "physical_size") {
        return Err(Failure::storage(44, "There is insufficient space", ""));
    }
    Ok(())
}

/// Error 44 when an empty disk of that size does not fit.
pub(crate) fn assert_free_for_disk(config: &Config, state: &mut State, sr: &str, size: u64) -> Outcome<()> {
    let bytes = backend(&state.db, sr).node_bytes(size, 0, Role::Live);
    assert_free(config, state, sr, bytes)
}

/// Error 44 when a disk may not become so large.
pub(crate) fn assert_free_for_growth(
    config: &Config,
    state: &mut State,
    vdi: &str,
    size: u64,
) -> Outcome<()> {
    let sr = state.db.text("VDI", vdi, "SR");
    let (backend, role) = (backend(&state.db, &sr), role(&state.db, vdi));
    let before = backend.node_bytes(virtual_size(&state.db, vdi), 0, role);
    let after = backend.node_bytes(size, 0, role);
    assert_free(config, state, &sr, after.saturating_sub(before))
}

/// Error 44 when a disk has no room for a snapshot (`snapshot`) or a clone.
pub(crate) fn assert_free_for_split(
    config: &Config,
    state: &mut State,
    vdi: &str,
    snapshot: bool,
) -> Outcome<()> {
    let sr = state.db.text("VDI", vdi, "SR");
    let backend = backend(&state.db, &sr);
    let copy = if snapshot { Role::Snapshot } else { Role::Live };
    let blocks = state.chains.block_count(&state.db.text("VDI", vdi, "uuid"));
    let bytes = backend.split_bytes(virtual_size(&state.db, vdi), blocks, role(&state.db, vdi), copy);
    assert_free(config, state, &sr, bytes)
}

/// Error 44 when what is about to be written makes the disk larger than the repository can hold. A thick disk has its
/// room already.
pub(crate) fn assert_free_for_write(
    config: &Config,
    state: &mut State,
    vdi: &str,
    offset: u64,
    length: u64,
) -> Outcome<()> {
    let sr = state.db.text("VDI", vdi, "SR");
    let backend = backend(&state.db, &sr);
    let missing = state.chains.missing(&state.db.text("VDI", vdi, "uuid"), offset, length);
    if backend.layout != Layout::File || missing == 0 {
        return Ok(());
    }
    let (size, role) = (virtual_size(&state.db, vdi), role(&state.db, vdi));
    let bytes = backend.node_bytes(size, missing, role) - backend.node_bytes(size, 0, role);
    assert_free(config, state, &sr, bytes)
}
