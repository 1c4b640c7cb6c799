//! What is known of the restore points without reading them again: they never change.

use super::points::{PointId, id_of};
use super::{Store, time};
use crate::Error;
use crate::backend::POINTS;
use seal::Tree;
use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

/// Points that are read one by one where they are fresh; more are read all together.
const FEW: usize = 32;

/// A restore point, in short.
#[derive(Clone, Debug)]
pub(crate) struct KnownPoint {
    pub(crate) created: SystemTime,
    /// The trees of its disks.
    pub(crate) trees: Vec<Tree>,
}

pub(super) type KnownPoints = BTreeMap<PointId, KnownPoint>;

impl Store {
    /// Looks at all restore points that are there now and can be read.
    pub(crate) fn with_known_points<T>(
        &self,
        look: impl FnOnce(&BTreeMap<PointId, KnownPoint>) -> T,
    ) -> Result<T, Error> {
        let mut known = self.known.lock().expect("no panic while they are locked");
        let listed: HashSet<PointId> =
            self.backend.list(POINTS)?.iter().filter_map(|object| id_of(&object.key)).collect();
        known.retain(|id, _| listed.contains(id));
        let fresh: Vec<PointId> = listed.into_iter().filter(|id| !known.contains_key(id)).collect();
        let read = match fresh.len() {
            0..=FEW => fresh.iter().filter_map(|id| self.point(*id).ok()).collect(),
            _ => self.points()?.points,
        };
        for stored in read {
            let Some(created) = time::parse(&stored.point.created) else { continue };
            let trees = stored.point.disks.iter().map(|disk| disk.tree).collect();
            known.insert(stored.id, KnownPoint { created, trees });
        }
        Ok(look(&known))
    }
}
