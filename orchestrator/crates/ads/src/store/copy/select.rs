//! Which points are copied.

use super::super::points::point_key;
use super::super::{PointId, Points, StoredPoint, time};
use super::{CopyOptions, OmittedPoint};
use crate::Error;
use crate::backend::Backend;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The points of the other place.
#[derive(Default)]
pub(super) struct There {
    ids: HashSet<PointId>,
    /// The newest of each VM, by its uuid.
    newest: HashMap<String, StoredPoint>,
}

/// What a copy is about.
#[derive(Default)]
pub(super) struct Selection {
    /// To be copied, oldest first.
    pub(super) points: Vec<StoredPoint>,
    /// Points there that share most with them.
    pub(super) bases: Vec<StoredPoint>,
    /// Wanted, and there already.
    pub(super) present: Vec<PointId>,
    /// Not wanted because the VM has a newer one there.
    pub(super) older: u64,
    /// Nobody knows whether they are wanted.
    pub(super) unreadable: Vec<OmittedPoint>,
}

type Key = Option<(String, String)>;

fn key(stored: &StoredPoint) -> Key {
    time::sort_key(&stored.point.created)
}

impl There {
    pub(super) fn add(&mut self, stored: StoredPoint) {
        self.ids.insert(stored.id);
        let vm = &stored.point.vm.uuid;
        if self.newest.get(vm).is_none_or(|newest| key(newest) < key(&stored)) {
            self.newest.insert(vm.clone(), stored);
        }
    }

    /// Whether the VM has a newer one there.
    fn outdates(&self, stored: &StoredPoint) -> bool {
        self.newest.get(&stored.point.vm.uuid).is_some_and(|newest| key(stored) < key(newest))
    }
}

/// Chooses among the points that are here.
pub(super) fn choose(
    here: Points,
    there: There,
    options: &CopyOptions,
    backend: &dyn Backend,
) -> Result<Selection, Error> {
    let mut found = Selection::default();
    let wanted = wanted(&here.points, options)?;
    let named = !options.points.is_empty();
    for damaged in here.damaged {
        found.unreadable.push(OmittedPoint {
            place: damaged.path,
            vm: String::new(),
            reason: damaged.reason,
        });
    }
    if let Some(id) = options.points.iter().find(|id| !wanted.contains(id)) {
        // It may be among the damaged ones; they are named by their objects.
        let place = backend.place(&point_key(*id));
        if !found.unreadable.iter().any(|omitted| omitted.place == place) {
            return Err(Error::PointNotFound { wanted: id.to_string() });
        }
    }
    if named {
        let asked: HashSet<_> = options.points.iter().map(|id| backend.place(&point_key(*id))).collect();
        found.unreadable.retain(|omitted| asked.contains(&omitted.place));
    }
    for stored in here.points {
        if !wanted.contains(&stored.id) {
            continue;
        }
        match () {
            () if there.ids.contains(&stored.id) => found.present.push(stored.id),
            () if !named && !options.all && there.outdates(&stored) => found.older += 1,
            () => found.points.push(stored),
        }
    }
    let vms: HashSet<&str> = found.points.iter().map(|stored| stored.point.vm.uuid.as_str()).collect();
    found.bases =
        there.newest.into_iter().filter(|(vm, _)| vms.contains(vm.as_str())).map(|(_, base)| base).collect();
    Ok(found)
}

/// What the options name, and what says of those that they are in doubt.
fn wanted(here: &[StoredPoint], options: &CopyOptions) -> Result<HashSet<PointId>, Error> {
    if !options.points.is_empty() {
        let mut wanted: HashSet<PointId> = options.points.iter().copied().collect();
        wanted.retain(|id| here.iter().any(|stored| stored.id == *id));
        // Newest first: who says it may be doubted himself.
        for stored in here.iter().rev() {
            let mut doubted = stored.point.disks.iter().flat_map(|disk| &disk.suspect);
            if doubted.any(|id| wanted.contains(id)) {
                wanted.insert(stored.id);
            }
        }
        return Ok(wanted);
    }
    let is = |stored: &StoredPoint, vm: &String| stored.point.vm.name == *vm || stored.point.vm.uuid == *vm;
    if let Some(vm) = options.vms.iter().find(|vm| !here.iter().any(|stored| is(stored, vm))) {
        return Err(Error::NoPointOf { vm: vm.clone() });
    }
    let mut groups: BTreeMap<&str, Vec<PointId>> = BTreeMap::new();
    for stored in here {
        if options.vms.is_empty() || options.vms.iter().any(|vm| is(stored, vm)) {
            groups.entry(&stored.point.vm.uuid).or_default().push(stored.id);
        }
    }
    let newest = |ids: Vec<PointId>| {
        let skipped = options.last.map_or(0, |last| ids.len().saturating_sub(last));
        ids.into_iter().skip(skipped)
    };
    Ok(groups.into_values().flat_map(newest).collect())
}
