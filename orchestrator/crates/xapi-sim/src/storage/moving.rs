//! `VDI.pool_migrate`: a disk of a VM moves to another repository and is another VDI there.

use super::{cloning, hidden, sr, vdi};
use crate::failure::{Failure, Outcome};
use crate::operation::Operation;
use crate::rpc::value::Value;
use crate::sim::{Context, State};
use crate::vm::rules;

/// Moves a disk and answers the VDI that it is from now on.
pub(crate) async fn pool_migrate(context: &Context, disk: &str, target: &str) -> Outcome<String> {
    let vm = context.with(|s| owner(s, disk, target))?;
    let _running = Operation::begin(context, "VM", &vm, "migrate_send", |s| {
        rules::assert_allowed(s, &vm, "migrate_send")
    })?;
    let moved = cloning::copy_live(context, disk, target).await?;
    context.with(|s| {
        for vbd in s.db.list("VDI", disk, "VBDs") {
            s.db.put("VBD", &vbd, "VDI", Value::text(&moved));
        }
        for snapshot in s.db.list("VDI", disk, "snapshots") {
            s.db.put("VDI", &snapshot, "snapshot_of", Value::text(&moved));
        }
        vdi::forget(context, s, disk)
    })?;
    Ok(moved)
}

/// The VM whose disk it is; refuses what cannot be moved.
fn owner(state: &State, disk: &str, target: &str) -> Outcome<String> {
    let db = &state.db;
    db.get("VDI", disk)?;
    db.get("SR", target)?;
    hidden::assert_managed(db, disk)?;
    let vbd = db.list("VDI", disk, "VBDs").into_iter().next();
    let vbd = vbd.ok_or_else(|| Failure::new("VDI_NEEDS_VM_FOR_MIGRATE", [disk]))?;
    vdi::refuse_type(db, disk, &["cbt_metadata"])?;
    vdi::refuse_tracked(db, disk)?;
    let vm = db.text("VBD", &vbd, "VM");
    let host = db.text("VM", &vm, "resident_on");
    if db.exists("host", &host) && !sr::visible(db, target, &host) {
        return Err(Failure::new("VM_REQUIRES_SR", [vm.as_str(), target]));
    }
    if vdi::writing_domain(state, disk).is_some_and(|domain| domain.is_real()) {
        // Its machine holds the file open and cannot be told to use another.
        return Err(Failure::internal("the lab cannot move the disk of a real guest"));
    }
    Ok(vm)
}
