//! `abd plan`: what a backup would do, before it does it: every call that changes something in the pool, the calls
//! that ask for changes, in order, and per disk how it would be read, why, and how much.
//!
//! Owns: the prediction. It takes the facts of the preflight and the store's restore points, asks the same functions
//! that a job asks (the gate, the placement, [`tracking::decide`](crate::tracking::decide)), and assumes that every
//! call works. An end-to-end test compares the list with what the simulator saw of the backup that followed.
//!
//! Promises: changes nothing; the session refuses every call that would. Never says a number without where it comes
//! from: what changed since the last backup is only known once there is a snapshot.

mod estimate;
mod predict;
mod steps;
#[cfg(test)]
mod tests;
mod text;

pub use estimate::Expected;
pub use steps::Step;
pub use text::text;

use crate::job::changes::History;
use crate::preflight::{self, Facts, Finding, Level, Outlook};
use crate::spec::JobOptions;
use crate::tracking;
use ads::StoredPoint;
use blocks::ByteCount;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::SystemTime;
use xapi::{Ref, Vm};

/// What the store knows.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// Its id; none where there is no store yet.
    pub store: Option<String>,
    /// Its restore points, oldest first.
    pub points: Vec<StoredPoint>,
    /// A pack that cannot be read.
    pub damaged: Option<String>,
    /// Uuids of VMs of which a restore point lacks something, by the last repair.
    pub lacking: BTreeSet<String>,
}

impl Past {
    /// Reads the store, if there is one. Blocks.
    ///
    /// # Errors
    /// Where there is a store and it cannot be read.
    pub fn read(directory: &Path) -> crate::error::Result<Self> {
        if crate::catalog::is_vacant(directory) {
            return Ok(Self::default());
        }
        let (store, _) = crate::catalog::open(directory, false)?;
        let points = store.points().map_err(crate::catalog::store_error)?.points;
        Ok(Self {
            store: Some(store.id().to_string()),
            damaged: store.skipped_packs().first().map(|pack| pack.path.display().to_string()),
            lacking: lacking(&store, &points)?,
            points,
        })
    }
}

/// The VMs that the last repair left with points that lack something.
fn lacking(store: &ads::Store, points: &[StoredPoint]) -> crate::error::Result<BTreeSet<String>> {
    let mut vms: BTreeSet<String> = points.iter().map(|stored| stored.point.vm.uuid.clone()).collect();
    if store.first_lacking(points).map_err(crate::catalog::store_error)?.is_none() {
        vms.clear();
    }
    let lacks = |vm: &String| {
        let own = points.iter().filter(|stored| stored.point.vm.uuid == *vm);
        store.first_lacking(own).map(|found| found.is_some())
    };
    let mut found = BTreeSet::new();
    for vm in vms {
        if lacks(&vm).map_err(crate::catalog::store_error)? {
            found.insert(vm);
        }
    }
    Ok(found)
}

/// How a disk would be read.
#[derive(Clone, Debug, Serialize)]
pub struct DiskPlan {
    /// Its name.
    pub name: String,
    /// Uuid of the live VDI; empty for the memory of a checkpoint, which does not exist yet.
    pub vdi: String,
    /// Its size in bytes.
    pub size: ByteCount,
    /// `cbt`, `vhd-diff`, `scan` or `full`.
    pub mode: &'static str,
    /// Why, as a code.
    pub cause: &'static str,
    /// Why, as a clause.
    pub reason: String,
    /// What is read of it, the audit not counted.
    pub reads: Expected,
    /// What an audit reads again.
    pub audit: ByteCount,
    /// What is shipped to the store.
    pub ships: Expected,
}

/// What would become of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It would start.
    Go,
    /// It would wait for storage that merges snapshots first.
    Wait,
    /// It would be left out, because storage merges snapshots.
    Skip,
    /// It would be refused.
    Refuse,
}

/// What a backup of one VM would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The pool's name.
    pub pool: String,
    /// The VM's name.
    pub vm: String,
    /// Its uuid.
    pub uuid: String,
    /// What would become of the job.
    pub verdict: Verdict,
    /// Findings that lead to the verdict, or that are worth a look.
    pub findings: Vec<Finding>,
    /// Each disk; empty where the job would not start.
    pub disks: Vec<DiskPlan>,
    /// Names of the hosts on which delegates would run, one after the other.
    pub hosts: Vec<String>,
    /// The calls, in order; empty where the job would not start.
    pub steps: Vec<Step>,
    /// What to know besides.
    pub notes: Vec<String>,
}

/// Predicts the backup of one VM.
pub fn of_vm(facts: &Facts, past: &Past, reference: &Ref<Vm>, vm: &Vm, options: &JobOptions) -> Plan {
    let mut plan = Plan {
        pool: facts.name.clone(),
        vm: vm.name_label.clone(),
        uuid: vm.uuid.to_string(),
        verdict: Verdict::Go,
        findings: Vec::new(),
        disks: Vec::new(),
        hosts: Vec::new(),
        steps: Vec::new(),
        notes: Vec::new(),
    };
    let mut of_pool = preflight::check_pool(facts, options, SystemTime::now());
    of_pool.retain(|finding| finding.level == Level::Error);
    let outlook = match of_pool.is_empty() {
        true => preflight::outlook(facts, reference, vm, options),
        false => Outlook::Refuse(of_pool),
    };
    match outlook {
        Outlook::Go(warnings) => plan.findings = warnings,
        Outlook::Wait(held) => (plan.verdict, plan.findings) = (Verdict::Wait, vec![held]),
        Outlook::Skip(held) => (plan.verdict, plan.findings) = (Verdict::Skip, vec![held]),
        Outlook::Refuse(errors) => (plan.verdict, plan.findings) = (Verdict::Refuse, errors),
    }
    if matches!(plan.verdict, Verdict::Skip | Verdict::Refuse) {
        return plan;
    }
    let lacking = past.lacking.get(vm.uuid.as_str()).map(String::as_str);
    let damaged = past.damaged.as_deref().or(lacking);
    let history = History::new(past.points.clone(), vm.uuid.as_str(), options.full, damaged);
    let shot = predict::Shot::of(facts, vm, options);
    let disks = predict::disks(facts, &history, past, vm, options, &shot);
    let storage: Vec<_> = disks.iter().map(|disk| disk.sr.clone()).collect();
    let rounds = match preflight::rounds_of(facts, &storage, vm, options) {
        Ok(rounds) => rounds,
        Err(error) => {
            plan.verdict = Verdict::Refuse;
            plan.notes.push(error.chain());
            return plan;
        }
    };
    let name =
        |host: &Ref<xapi::Host>| facts.hosts.get(host).map_or_else(String::new, |h| h.name_label.clone());
    plan.hosts = rounds.iter().map(|round| name(&round.host)).collect();
    let demands = |disk: &predict::Disk| {
        options.require_cbt && !disk.decision.cause.is_allowed_with_required_tracking()
    };
    let refused = disks.iter().find(|disk| demands(disk));
    let past_listing = refused.is_none();
    if let Some(disk) = refused {
        plan.notes.push(format!(
            "the job demands change tracking and changes of '{}' cannot be listed ({}): it would find that out after \
             the calls below, remove the snapshot and fail",
            disk.name, disk.decision.reason
        ));
    }
    plan.steps = steps::steps(facts, vm, options, &shot, &disks, past_listing.then_some(&rounds[..]));
    plan.notes.extend(predict::notes(facts, &disks));
    plan.disks = disks
        .into_iter()
        .map(|disk| DiskPlan {
            mode: tracking::mode_name(disk.decision.mode),
            cause: disk.decision.cause.code(),
            reason: disk.decision.reason,
            name: disk.name,
            vdi: disk.uuid,
            size: disk.size,
            reads: disk.reads,
            audit: disk.audit,
            ships: disk.ships,
        })
        .collect();
    plan
}
