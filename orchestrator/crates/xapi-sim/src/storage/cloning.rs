//! Making disks out of disks: snapshot, clone, copy. The record, the file, the change-tracking log and the chain move
//! together; a failure leaves none of them behind.

use super::chain::MAX_DEPTH;
use super::{disk, hidden, space, sr, track, vdi};
use crate::domain::Domain;
use crate::failure::{Failure, Outcome};
use crate::operation::{Operation, refuse_overlap};
use crate::rpc::value::{EPOCH, Record, Value};
use crate::sim::{Context, Sim, State, now};
use crate::store::db::{Db, text_of};
use std::sync::Arc;
use uuid::Uuid;

/// What kind of child a disk gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Snapshot,
    Clone,
}

impl Kind {
    fn operation(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Clone => "clone",
        }
    }
}

/// `VDI.snapshot` and `VDI.clone`: a new disk on the same repository with the same contents.
pub(crate) async fn derive(context: &Context, source: &str, kind: Kind) -> Outcome<String> {
    let operation = kind.operation();
    let _running = Operation::begin(context, "VDI", source, operation, |s| {
        s.db.get("VDI", source)?;
        vdi::refuse_type(&s.db, source, &["cbt_metadata"])?;
        refuse_overlap(s, "VDI", source, |other| matches!(other, "clone" | "copy"))?;
        assert_splittable(context, s, source, kind)
    })?;
    // A paused guest stays paused.
    let domain = context.with(|s| {
        let running = |d: &Arc<Domain>| s.db.text("VM", &d.vm, "power_state") == "Running";
        vdi::writing_domain(s, source).filter(running)
    });
    if let Some(domain) = &domain {
        domain.freeze().await?;
    }
    let outcome = copy_now(context, source, kind).await;
    if let Some(domain) = &domain {
        domain.thaw().await?;
    }
    outcome
}

/// Refuses what the storage manager would: nodes of its own, repositories without snapshots, chains that are too long,
/// no room.
fn assert_splittable(context: &Context, state: &mut State, source: &str, kind: Kind) -> Outcome<()> {
    let sr = state.db.text("VDI", source, "SR");
    hidden::assert_managed(&state.db, source)?;
    sr::assert_plugged(&state.db, &sr)?;
    if !space::backend(&state.db, &sr).is_vhd() {
        return Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr]));
    }
    if state.chains.depth(&state.db.text("VDI", source, "uuid")) >= MAX_DEPTH {
        return Err(Failure::storage(109, "The snapshot chain is too long", ""));
    }
    space::assert_free_for_split(&context.sim.config, state, source, kind == Kind::Snapshot)
}

async fn copy_now(context: &Context, source: &str, kind: Kind) -> Outcome<String> {
    track::settle(context, source).await?;
    let config = context.sim.config.clone();
    let record = context.with(|s| derived(&s.db, source, kind))?;
    let uuid = text_of(&record, "uuid");
    let (from, to) = context.with(|s| {
        let from = vdi::path_of(&config, &s.db, source);
        let to = sr::directory(&config, &s.db, &s.db.text("VDI", source, "SR")).join(format!("{uuid}.raw"));
        (from, to)
    });
    let target = to.clone();
    let copied = Sim::blocking(move || disk::copy(&from, &target)).await;
    if let Err(error) = copied {
        // Removing what was never finished; the error that matters is the one above.
        let _ = std::fs::remove_file(&to);
        return Err(Failure::disk("copy the disk", &error));
    }
    let copy = context.with(|s| {
        let live = s.db.text("VDI", source, "uuid");
        if kind == Kind::Snapshot {
            s.cbt.snapshot(&live, &uuid);
        }
        let sr = s.db.text("VDI", source, "SR");
        let reference = s.db.create("VDI", record);
        let base = Uuid::new_v4().to_string();
        if s.chains.split(&live, &uuid, &base) {
            hidden::add(s, &base, source);
        }
        hidden::relink(s, &sr);
        space::refresh(&config, s, &sr);
        reference
    });
    // The live disk goes on in a new log and a new chain node. Its guest is still frozen, so nothing it writes from
    // here on escapes the comparison.
    track::observe(context, source).await?;
    Ok(copy)
}

fn derived(db: &Db, source: &str, kind: Kind) -> Outcome<Record> {
    let mut record = db.get("VDI", source)?.clone();
    let uuid = Uuid::new_v4().to_string();
    let snapshot = kind == Kind::Snapshot;
    let mut put = |name: &str, value: Value| record.insert(name.to_owned(), value);
    put("uuid", Value::text(&uuid));
    put("location", Value::text(&uuid));
    put("VBDs", Value::List(vec![]));
    put("crash_dumps", Value::List(vec![]));
    put("snapshots", Value::List(vec![]));
    put("current_operations", Value::Map(Record::new()));
    put("is_a_snapshot", Value::Bool(snapshot));
    put("snapshot_of", if snapshot { Value::text(source) } else { Value::null_ref() });
    put("snapshot_time", if snapshot { now() } else { Value::Date(EPOCH.into()) });
    let tracked = db.flag("VDI", source, "cbt_enabled");
    put("cbt_enabled", Value::Bool(snapshot && tracked));
    put("sm_config", vdi::fresh_sm_config(db, &db.text("VDI", source, "SR")));
    Ok(record)
}

/// `VDI.copy`: the contents as a disk of their own, perhaps on another repository, perhaps into an existing disk.
pub(crate) async fn copy(context: &Context, source: &str, sr: &str, into: Option<&str>) -> Outcome<String> {
    let _running = Operation::begin(context, "VDI", source, "copy", |s| {
        s.db.get("VDI", source)?;
        vdi::refuse_type(&s.db, source, &["cbt_metadata"])?;
        hidden::assert_managed(&s.db, source)?;
        if vdi::written_to(&s.db, source) {
            return Err(Failure::new("VDI_IN_USE", [source, "copy"]));
        }
        refuse_overlap(s, "VDI", source, |other| matches!(other, "clone" | "copy"))
    })?;
    copy_contents(context, source, sr, into).await
}

/// The contents of a disk that its VM may be using, as a disk on another repository.
pub(crate) async fn copy_live(context: &Context, source: &str, sr: &str) -> Outcome<String> {
    let _running =
        Operation::begin(context, "VDI", source, "mirror", |s| refuse_overlap(s, "VDI", source, |_| false))?;
    copy_contents(context, source, sr, None).await
}

async fn copy_contents(context: &Context, source: &str, sr: &str, into: Option<&str>) -> Outcome<String> {
    let size = context.with(|s| s.db.int("VDI", source, "virtual_size"));
    let target = match into {
        Some(target) => target.to_owned(),
        None => {
            let mut record = context.with(|s| s.db.get("VDI", source).cloned())?;
            record.insert("SR".into(), Value::text(sr));
            vdi::create(context, &record).await?
        }
    };
    let config = context.sim.config.clone();
    let (from, to) = context.with(|s| {
        if s.db.int("VDI", &target, "virtual_size") < size {
            return Err(Failure::storage(79, "VDI Invalid size", "the target is smaller than the source"));
        }
        let from = vdi::path_of(&config, &s.db, source);
        space::assert_free_for_write(&config, s, &target, 0, disk::occupied(&from))?;
        Ok((from, vdi::path_of(&config, &s.db, &target)))
    })?;
    let copied = Sim::blocking(move || {
        let to = disk::open(&to)?;
        disk::zero(&to, 0, to.metadata()?.len())?;
        disk::copy_extents(&std::fs::File::open(&from)?, &to)?;
        disk::extents(&to)
    })
    .await;
    context.with(|s| {
        let (uuid, size) = (s.db.text("VDI", &target, "uuid"), u64::try_from(size).unwrap_or_default());
        s.cbt.record(&uuid, 0, size);
        match (&copied, into) {
            // A fresh disk holds what was copied; in one that existed, what it held before was cleared as well.
            (Ok(extents), None) => extents.iter().for_each(|(at, end)| s.chains.record(&uuid, *at, end - at)),
            _ => s.chains.record(&uuid, 0, size),
        }
        let sr = s.db.text("VDI", &target, "SR");
        space::refresh(&config, s, &sr);
    });
    copied.map_err(|e| Failure::disk("copy the disk", &e))?;
    Ok(target)
}
