//! The floor of a store: how long every restore point stays, whoever wants to remove it.
//!
//! `floor.json` is `{"version": 1, "days": 30}`. It is only ever raised; who wants it gone removes the object by hand,
//! where the store is, and knows what he does.
//!
//! # Time
//!
//! A point's age is the time from its `created` to the `created` of the newest point, and no more than to what the clock
//! says. So a clock that jumps ahead makes no point older: it takes a backup too, and a server takes no point from its
//! future. Where no backups come any more, what the floor held last is held for good.

use super::points::PointId;
use super::{Store, timestamp};
use crate::Error;
use crate::error::sentence;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

const FLOOR: &str = "floor.json";
const MAX_FLOOR: u64 = 1 << 10;
const VERSION: u32 = 1;
const DAY: Duration = Duration::from_secs(24 * 3600);
/// A century.
const MOST_DAYS: u32 = 36_525;

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    days: u32,
}

impl Store {
    /// Restore points younger than so many days are not removed; 0 where nothing is said.
    ///
    /// # Errors
    /// [`Error::FloorUnreadable`], or what the backend says. No permission to remove anything.
    pub fn floor_days(&self) -> Result<u32, Error> {
        let unreadable = |reason: String| Error::FloorUnreadable { path: self.backend.place(FLOOR), reason };
        let bytes = match self.backend.get(FLOOR, MAX_FLOOR) {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => return Ok(0),
            Err(error) => return Err(error),
        };
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| unreadable(sentence(&error)))?;
        match document.version {
            VERSION => Ok(document.days),
            other => Err(unreadable(format!("version {other} is not known to this program"))),
        }
    }

    /// Raises the floor.
    ///
    /// # Errors
    /// [`Error::FloorStands`] where it is higher already, or what the backend says.
    pub fn raise_floor(&self, days: u32) -> Result<(), Error> {
        let found = self.floor_days()?;
        if days < found || days > MOST_DAYS {
            return Err(Error::FloorStands { path: self.backend.place(FLOOR), found, wanted: days });
        }
        if days == found {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&Document { version: VERSION, days })
            .map_err(|error| Error::Worker { reason: error.to_string() })?;
        self.backend.put(FLOOR, &bytes)
    }

    /// Refuses to remove a point that is too young. `clock` is what the time is at most.
    pub(super) fn check_floor(&self, id: PointId, clock: SystemTime) -> Result<(), Error> {
        let days = self.floor_days()?;
        if days == 0 {
            return Ok(());
        }
        let refused = |until: String| Err(Error::FloorHolds { id, days, until });
        let (newest, created) = self.with_known_points(|known| {
            let newest = known.values().map(|point| point.created).max();
            (newest, known.get(&id).map(|point| point.created))
        })?;
        let (Some(newest), Some(created)) = (newest, created) else {
            return refused("it can be read".into());
        };
        let Some(until) = created.checked_add(DAY * days) else { return refused("the end of time".into()) };
        match until <= newest.min(clock) {
            true => Ok(()),
            false => refused(timestamp(until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{PointPool, PointVm, RestorePoint};
    use std::time::UNIX_EPOCH;

    fn day(number: u32) -> SystemTime {
        UNIX_EPOCH + DAY * (20_000 + number)
    }

    fn commit(store: &Store, number: u32) -> PointId {
        let nobody = String::new;
        let point = RestorePoint {
            version: RestorePoint::VERSION,
            job: nobody(),
            job_name: None,
            run: nobody(),
            created: timestamp(day(number)),
            store: store.id(),
            pool: PointPool { uuid: nobody(), name: nobody() },
            vm: PointVm { uuid: nobody(), name: nobody(), metadata: serde_json::Value::Null },
            disks: Vec::new(),
            base: None,
            quiesced: false,
            checkpoint: false,
        };
        store.commit_point(&point).expect("a point")
    }

    #[test]
    fn a_point_is_as_old_as_the_clock_and_the_newest_point_both_say() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::init(&dir.path().join("store")).expect("a store");
        store.raise_floor(7).expect("raised");
        let first = commit(&store, 0);
        commit(&store, 2);
        let held =
            |clock| matches!(store.remove_point_at(first, clock), Err(Error::FloorHolds { days: 7, .. }));
        assert!(held(day(10_000)), "a clock that jumps ahead, and no backup from then");
        let last = commit(&store, 7);
        assert!(held(day(6)), "a backup from the future, by the clock");
        assert!(held(day(7) - Duration::from_secs(1)));
        store.remove_point_at(first, day(7)).expect("seven days are over");
        let newest = store.remove_point_at(last, day(10_000));
        assert!(matches!(newest, Err(Error::FloorHolds { .. })), "{newest:?}");
    }

    #[test]
    fn a_floor_that_cannot_be_read_keeps_everything() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::init(&dir.path().join("store")).expect("a store");
        let id = commit(&store, 0);
        for wrong in ["", "{}", "{\"version\":2,\"days\":1}", "{\"version\":1,\"days\":-1}"] {
            store.backend.put(FLOOR, wrong.as_bytes()).expect("written");
            let error = store.remove_point_at(id, day(10_000)).expect_err(wrong);
            assert!(matches!(error, Error::FloorUnreadable { .. }), "{error}");
            store.raise_floor(30).expect_err(wrong);
        }
        assert!(matches!(store.raise_floor(u32::MAX), Err(Error::FloorUnreadable { .. })));
        store.backend.delete(FLOOR).expect("by hand");
        assert!(matches!(store.raise_floor(u32::MAX), Err(Error::FloorStands { found: 0, .. })));
        store.remove_point_at(id, day(0)).expect("there is no floor");
    }
}
