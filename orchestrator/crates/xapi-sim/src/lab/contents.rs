//! What the disks of a VM held at each of its snapshots, in the log: against it a test holds what was restored.
//!
//! The digest of a disk is that of `GET /lab/vdi/<uuid>/digest?sparse=1`, so that a test can compute it of anything
//! that stands for a disk, a tree of blocks for instance. It is the SHA-256, in lower-case hexadecimal, of
//!
//! ```text
//! size of the disk in bytes        u64, little-endian
//! for every 64 KiB block of it that is not all zeros, by rising index:
//!     index of the block           u64, little-endian
//!     its bytes                    64 KiB, or what is left of the disk for the last one
//! ```

use crate::failure::{Failure, Outcome};
use crate::rpc::value::{NULL, Value};
use crate::sim::{Context, Sim, State};
use crate::storage::{disk, vdi};
use serde_json::{Map, json};
use std::path::PathBuf;

/// Calls that make a snapshot of a VM and answer its reference.
const SNAPSHOTS: [&str; 3] = ["snapshot", "snapshot_with_quiesce", "checkpoint"];

/// A disk of a snapshot.
struct Disk {
    /// The live disk it was taken of; of a suspend image, its own.
    live: String,
    uuid: String,
    size: i64,
    path: PathBuf,
}

/// After a call of class VM that made a snapshot: writes what its disks hold into the log, where that is wanted.
pub(crate) async fn note(context: &Context, method: &str, vm: &str, answer: &Value) -> Outcome<()> {
    if !context.sim.config.snapshot_digests || !SNAPSHOTS.contains(&method) {
        return Ok(());
    }
    let snapshot = answer.as_text().unwrap_or_default();
    let (vm, uuid, disks, suspended) = context.with(|s| {
        let vbds = s.db.list("VM", snapshot, "VBDs");
        let disks: Vec<String> =
            vbds.iter().map(|vbd| s.db.text("VBD", vbd, "VDI")).filter(|vdi| is_disk(s, vdi)).collect();
        let disks: Vec<Disk> = disks.iter().map(|vdi| find(context, s, vdi)).collect();
        let image = s.db.text("VM", snapshot, "suspend_VDI");
        let suspended = is_disk(s, &image).then(|| find(context, s, &image));
        (s.db.text("VM", vm, "uuid"), s.db.text("VM", snapshot, "uuid"), disks, suspended)
    });
    let mut entry = Map::new();
    entry.insert("vm".into(), json!(vm));
    entry.insert("snapshot".into(), json!(uuid));
    let mut shown = Vec::new();
    for disk in disks {
        shown.push(describe(disk).await?);
    }
    entry.insert("disks".into(), json!(shown));
    if let Some(image) = suspended {
        entry.insert("suspend_image".into(), describe(image).await?);
    }
    context.sim.log.add("snapshot-content", serde_json::Value::Object(entry));
    Ok(())
}

fn is_disk(state: &State, vdi: &str) -> bool {
    vdi != NULL && state.db.exists("VDI", vdi)
}

fn find(context: &Context, state: &State, vdi: &str) -> Disk {
    let live = state.db.text("VDI", vdi, "snapshot_of");
    let live = if is_disk(state, &live) { live } else { vdi.to_owned() };
    Disk {
        live: state.db.text("VDI", &live, "uuid"),
        uuid: state.db.text("VDI", vdi, "uuid"),
        size: state.db.int("VDI", vdi, "virtual_size"),
        path: vdi::path_of(&context.sim.config, &state.db, vdi),
    }
}

async fn describe(disk: Disk) -> Outcome<serde_json::Value> {
    let path = disk.path;
    let digest = Sim::blocking(move || disk::sparse_sha256(&path)).await;
    let digest = digest.map_err(|e| Failure::disk("read the snapshot", &e))?;
    Ok(json!({"vdi": disk.live, "snapshot_vdi": disk.uuid, "size": disk.size, "digest": digest}))
}
