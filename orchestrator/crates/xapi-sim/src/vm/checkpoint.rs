//! `VM.checkpoint`: a snapshot with memory. The VM is suspended to an image on a repository, its disks and the image are
//! snapshot, and it goes on.
//!
//! The image is not a guest's memory but a pattern that only depends on the VM, so that a test can tell it from zeros.

use super::copying::{self, Kind};
use super::{create, rules};
use crate::failure::{Failure, Outcome};
use crate::operation::Operation;
use crate::rpc::value::{NULL, Value};
use crate::sim::{Context, Sim};
use crate::storage::backend::Role;
use crate::storage::{disk, space, sr, vdi};
use crate::store::db::Db;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// One granule in so many bytes of memory holds data; the rest stays a hole, so that images are quickly made.
const STRIDE: u64 = 4 << 20;

/// `VM.checkpoint`: answers the snapshot, which is `Suspended` where the VM was running.
pub(crate) async fn checkpoint(context: &Context, vm: &str, name: &str) -> Outcome<String> {
    let _running =
        Operation::begin(context, "VM", vm, "checkpoint", |s| rules::assert_allowed(s, vm, "checkpoint"))?;
    if context.with(|s| s.db.text("VM", vm, "power_state")) != "Running" {
        return copying::copy_now(context, vm, name, &Kind::Checkpoint).await;
    }
    let domain = context.with(|s| s.domains.get(vm).cloned());
    if let Some(domain) = &domain {
        domain.freeze().await?;
    }
    let made = suspended(context, vm, name).await;
    if let Some(domain) = &domain {
        domain.thaw().await?;
    }
    made
}

/// Makes the snapshot while the VM is suspended, and has it run again in any case.
async fn suspended(context: &Context, vm: &str, name: &str) -> Outcome<String> {
    let image = save_memory(context, vm).await?;
    context.with(|s| {
        s.db.put("VM", vm, "suspend_VDI", Value::text(&image));
        s.db.put("VM", vm, "power_state", Value::text("Suspended"));
    });
    let made = copying::copy_now(context, vm, name, &Kind::Checkpoint).await;
    context.with(|s| {
        s.db.put("VM", vm, "suspend_VDI", Value::null_ref());
        // The guest may have ended meanwhile; a halted VM stays halted.
        if s.db.text("VM", vm, "power_state") == "Suspended" {
            s.db.put("VM", vm, "power_state", Value::text("Running"));
        }
        vdi::forget(context, s, &image)
    })?;
    made
}

/// Writes the memory image of a running VM and answers its disk.
async fn save_memory(context: &Context, vm: &str) -> Outcome<String> {
    let (repository, memory, uuid) = context.with(|s| -> Outcome<_> {
        let memory = u64::try_from(s.db.int("VM", vm, "memory_static_max")).unwrap_or_default();
        Ok((suspend_sr(&s.db, vm)?, memory, s.db.text("VM", vm, "uuid")))
    })?;
    // What the toolstack reserves: memory with a fifth and a twentieth more, and 100 MiB (`Xapi_xenops.suspend`).
    let size = memory / 100 * 126 + (100 << 20);
    let mut record =
        create::disk_record(&repository, i64::try_from(size).unwrap_or(i64::MAX), "Suspend image");
    record.insert("name_description".into(), Value::text("Suspend image"));
    record.insert("type".into(), Value::text("suspend"));
    let full = |failure: Failure| match failure.code() {
        "SR_BACKEND_FAILURE_44" => Failure::new("SR_SUSPEND_SPACE_INSUFFICIENT", [repository.clone()]),
        _ => failure,
    };
    context.with(|s| {
        let bytes = space::backend(&s.db, &repository).node_bytes(size, memory.div_ceil(STRIDE), Role::Live);
        space::assert_free(&context.sim.config, s, &repository, bytes).map_err(full)
    })?;
    let image = vdi::create(context, &record).await.map_err(full)?;
    let path = context.with(|s| vdi::path_of(&context.sim.config, &s.db, &image));
    let written = Sim::blocking(move || fill(&path, memory, &uuid)).await;
    context.with(|s| {
        if written.is_err() {
            vdi::forget(context, s, &image)?;
        }
        let node = s.db.text("VDI", &image, "uuid");
        for at in (0..memory).step_by(stride()) {
            s.chains.record(&node, at, disk::GRANULE);
        }
        space::refresh(&context.sim.config, s, &repository);
        Ok(())
    })?;
    written.map_err(|e| Failure::disk("write the suspend image", &e))?;
    Ok(image)
}

fn stride() -> usize {
    usize::try_from(STRIDE).expect("it is 4 MiB")
}

/// Writes a granule of pattern at every stride of the image.
fn fill(path: &Path, memory: u64, seed: &str) -> std::io::Result<()> {
    let file = disk::open(path)?;
    let mut pattern = vec![0; usize::try_from(disk::GRANULE).expect("it is 64 KiB")];
    for at in (0..memory).step_by(stride()) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(seed.as_bytes()).update(&at.to_le_bytes()).finalize_xof().fill(&mut pattern);
        file.write_all_at(&pattern, at)?;
    }
    Ok(())
}

/// Where memory goes: the VM's own choice, the pool's, the host's; each only if the host sees it
/// (`Helpers.choose_suspend_sr`).
fn suspend_sr(db: &Db, vm: &str) -> Outcome<String> {
    let host = db.text("VM", vm, "resident_on");
    let pool = db.refs("pool").into_iter().next().unwrap_or_default();
    let candidates = [
        db.text("VM", vm, "suspend_SR"),
        db.text("pool", &pool, "suspend_image_SR"),
        db.text("host", &host, "suspend_image_sr"),
    ];
    let usable = |repository: &String| sr::visible(db, repository, &host);
    candidates.into_iter().find(usable).ok_or_else(|| Failure::new("VM_NO_SUSPEND_SR", [vm]))
}

/// A suspended VM that is shut down loses its memory image; destroying it does not delete the image.
pub(crate) fn discard_memory(context: &Context, vm: &str) -> Outcome<()> {
    context.with(|s| {
        if s.db.text("VM", vm, "power_state") != "Suspended" {
            return Ok(());
        }
        let image = s.db.text("VM", vm, "suspend_VDI");
        if image != NULL && s.db.exists("VDI", &image) {
            vdi::forget(context, s, &image)?;
        }
        s.db.put("VM", vm, "suspend_VDI", Value::null_ref());
        for vbd in s.db.list("VM", vm, "VBDs") {
            s.db.put("VBD", &vbd, "currently_attached", Value::Bool(false));
        }
        s.db.put("VM", vm, "power_state", Value::text("Halted"));
        Ok(())
    })
}
