//! The list of restore points that lack something: what tells a job that it must not start from one of them.
//!
//! `quarantine/lost.json` is written by a repair that could not make everything whole, and removed by one that finds
//! nothing lacking. Without it jobs would trust what a point says it has: a block that did not change is not offered again.

use super::quarantine_key;
use crate::Error;
use crate::backend::Backend;
use crate::error::sentence;
use crate::store::{PointId, Store, StoredPoint};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

const NAME: &str = "lost.json";
const VERSION: u32 = 1;
/// Most bytes of the list that are read: some hundred thousand points.
const MAX_SIZE: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    points: BTreeSet<PointId>,
}

/// Writes which points lack something; removes the list where none does.
pub(super) fn write(backend: &dyn Backend, points: &[PointId]) -> Result<(), Error> {
    let key = quarantine_key(NAME);
    if points.is_empty() {
        return match backend.head(&key)? {
            Some(_) => backend.delete(&key),
            None => Ok(()),
        };
    }
    let record = Record { version: VERSION, points: points.iter().copied().collect() };
    let bytes = serde_json::to_vec(&record)
        .map_err(|error| Error::NotRepaired { reason: format!("{key} cannot be written: {error}") })?;
    backend.put(&key, &bytes)
}

impl Store {
    /// Whether a repair left restore points that lack something.
    pub(in crate::store) fn has_losses(&self) -> Result<bool, Error> {
        self.backend.head(&quarantine_key(NAME)).map(|found| found.is_some())
    }

    /// The first of these points that lacks something, with what, as far as the last repair could tell: no backup may
    /// start from it. Points that were healed since count as whole.
    ///
    /// # Errors
    /// What the backend says.
    pub fn first_lacking<'a>(
        &self,
        points: impl IntoIterator<Item = &'a StoredPoint>,
    ) -> Result<Option<(&'a StoredPoint, String)>, Error> {
        let bytes = match self.backend.get(&quarantine_key(NAME), MAX_SIZE) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        // A list that cannot be read lists all: each of them is looked at.
        let listed = serde_json::from_slice::<Record>(&bytes).ok().filter(|list| list.version == VERSION);
        for point in points {
            if listed.as_ref().is_some_and(|list| !list.points.contains(&point.id)) {
                continue;
            }
            let lacks = point.point.disks.iter().find_map(|disk| self.finish_tree(disk.tree, None).err());
            match lacks {
                Some(error @ (Error::NotWhole { .. } | Error::Damaged { .. })) => {
                    return Ok(Some((point, sentence(&error))));
                }
                Some(error) => return Err(error),
                None => {}
            }
        }
        Ok(None)
    }
}
