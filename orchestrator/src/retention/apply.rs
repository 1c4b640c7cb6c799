//! Retention on a store: its points grouped by VM and job, decided, and removed.

use super::{Candidate, Reason, Rules, decide as judge};
use crate::catalog::{Doubts, store_error};
use crate::error::Result;
use ads::{ErrorKind, PointId, Store, StoredPoint};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::collections::{BTreeMap, BTreeSet};

/// Which points the rules are for. Each VM is judged by itself, and of each VM the points of each job.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// VMs by name or uuid; all of them where none is named.
    pub vms: Vec<String>,
    /// Only points of jobs of this name; of all jobs where `None`. `Some(None)` are those that were made at a shell.
    pub job: Option<Option<String>>,
}

impl Scope {
    fn covers(&self, stored: &StoredPoint) -> bool {
        let vm = &stored.point.vm;
        let of_vm =
            self.vms.is_empty() || self.vms.iter().any(|named| *named == vm.name || *named == vm.uuid);
        of_vm && self.job.as_ref().is_none_or(|job| *job == stored.point.job_name)
    }
}

/// A point and why it stays; one without a reason goes.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The point.
    pub stored: StoredPoint,
    /// Why it stays.
    pub reasons: Vec<Reason>,
}

impl Judged {
    /// Whether it stays.
    pub fn stays(&self) -> bool {
        !self.reasons.is_empty()
    }

    /// When it was made.
    pub fn created(&self) -> Option<Timestamp> {
        created(&self.stored)
    }
}

/// The points of one VM and one job, oldest first.
#[derive(Clone, Debug)]
pub struct Group {
    /// Uuid of the VM's pool.
    pub pool: String,
    /// The VM's uuid.
    pub vm: String,
    /// The VM's name in its newest point.
    pub name: String,
    /// The job's name; none for points made at a shell.
    pub job: Option<String>,
    /// The points.
    pub points: Vec<Judged>,
}

/// Judges the points of a store, oldest first; without any rule all of them stay.
pub fn decide(
    points: &[StoredPoint],
    pins: &BTreeSet<PointId>,
    scope: &Scope,
    rules: &Rules,
    zone: &TimeZone,
) -> Vec<Group> {
    let doubts = Doubts::of(points);
    let mut groups: BTreeMap<_, Vec<Candidate<PointId>>> = BTreeMap::new();
    for stored in points.iter().filter(|stored| scope.covers(stored)) {
        let point = &stored.point;
        let key = (point.pool.uuid.as_str(), point.vm.uuid.as_str(), point.job_name.as_deref());
        groups.entry(key).or_default().push(Candidate {
            id: stored.id,
            created: created(stored),
            doubtful: doubts.concern(stored) || point.disks.iter().any(|disk| !disk.bad.is_empty()),
            pinned: pins.contains(&stored.id),
            marks: marks(stored).collect(),
        });
    }
    let mut reasons: BTreeMap<PointId, Vec<Reason>> = BTreeMap::new();
    if !rules.is_empty() {
        for group in groups.values() {
            let why = judge(group, rules, zone);
            reasons.extend(group.iter().map(|one| one.id).zip(why));
        }
        keep_marks_across(points, &mut reasons);
    }
    let by_id: BTreeMap<PointId, &StoredPoint> = points.iter().map(|stored| (stored.id, stored)).collect();
    let mut judged = |one: &Candidate<PointId>| {
        let without_rules = || vec![Reason::NoRule];
        let reasons = reasons.remove(&one.id).unwrap_or_else(without_rules);
        Judged { stored: by_id[&one.id].clone(), reasons }
    };
    let mut found = Vec::new();
    for ((pool, vm, job), group) in &groups {
        let points: Vec<Judged> = group.iter().map(&mut judged).collect();
        let name = points.last().map(|last| last.stored.point.vm.name.clone()).unwrap_or_default();
        let job = job.map(str::to_owned);
        found.push(Group { pool: (*pool).to_owned(), vm: (*vm).to_owned(), name, job, points });
    }
    found
}

/// A point may doubt one of another job, or one that the rules are not for.
fn keep_marks_across(points: &[StoredPoint], reasons: &mut BTreeMap<PointId, Vec<Reason>>) {
    loop {
        let goes = |id: &PointId| reasons.get(id).is_some_and(Vec::is_empty);
        let staying: BTreeSet<PointId> =
            points.iter().map(|stored| stored.id).filter(|id| !goes(id)).collect();
        let saved: Vec<PointId> = points
            .iter()
            .filter(|stored| goes(&stored.id) && marks(stored).any(|marked| staying.contains(&marked)))
            .map(|stored| stored.id)
            .collect();
        if saved.is_empty() {
            return;
        }
        for id in saved {
            reasons.entry(id).or_default().push(Reason::Marks);
        }
    }
}

/// Removes points, oldest first, so that one that doubts others outlives them; gives those that are gone. One that
/// somebody else removed meanwhile is gone too; one that the store's floor keeps is left for a later time.
///
/// # Errors
/// What the store says of the first that could not be removed; those before it are gone.
pub fn remove<'a>(store: &Store, points: impl IntoIterator<Item = &'a Judged>) -> Result<Vec<PointId>> {
    let mut doomed: Vec<&Judged> = points.into_iter().filter(|judged| !judged.stays()).collect();
    doomed.sort_by_key(|judged| (judged.created(), judged.stored.id));
    let mut gone = Vec::new();
    for judged in doomed {
        let id = judged.stored.id;
        match store.remove_point(id) {
            Ok(()) => gone.push(id),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            // The store keeps everything for longer than the rules: it goes when its time has come.
            Err(ads::Error::FloorHolds { .. }) => {}
            Err(error) => return Err(store_error(error)),
        }
    }
    Ok(gone)
}

/// Applies a job's rules to the points of its VM that jobs of its name made; gives how many stay, and those that are
/// gone.
///
/// # Errors
/// What the store says.
pub fn after_job(
    store: &Store,
    vm: &str,
    job: Option<String>,
    rules: &Rules,
    zone: &TimeZone,
) -> Result<(usize, Vec<PointId>)> {
    let all = store.points().map_err(store_error)?;
    let pins = store.pins().map_err(store_error)?;
    let scope = Scope { vms: vec![vm.to_owned()], job: Some(job) };
    let groups = decide(&all.points, &pins.into_keys().collect(), &scope, rules, zone);
    let points = || groups.iter().flat_map(|group| &group.points);
    let gone = remove(store, points())?;
    Ok((points().filter(|judged| judged.stays()).count(), gone))
}

/// Points that this one says are in doubt.
pub fn marks(stored: &StoredPoint) -> impl Iterator<Item = PointId> {
    stored.point.disks.iter().flat_map(|disk| disk.suspect.iter().copied())
}

fn created(stored: &StoredPoint) -> Option<Timestamp> {
    stored.point.created.parse().ok()
}
