//! What others send to a store through `abd serve`: nothing is believed, and nothing is kept that is not whole.

use super::gc::LookFor;
use super::points::{MAX_POINT_SIZE, PointDisk, PointId, RestorePoint, parse_point};
use super::{Store, time};
use crate::backend::pack_key;
use crate::{Error, ErrorKind, PackReceipt};
use seal::{PackId, Tree};
use std::time::{Duration, SystemTime};

/// How far another machine's clock may be ahead of this one's.
const CLOCK_SLACK: Duration = Duration::from_secs(300);

impl Store {
    /// [`add_pack`](Store::add_pack) for a process that lives long: what it remembers to have may have been collected by
    /// another one.
    pub(crate) fn admit_pack(&self, id: PackId, bytes: &[u8]) -> Result<PackReceipt, Error> {
        if self.packs.contains(id) && self.backend.head(&pack_key(id))?.is_none() {
            self.look_again(LookFor::AllPacks)?;
        }
        self.add_pack(id, bytes)
    }

    /// Checks a restore point as if it had been made here, proves that every disk of it is whole, and keeps its bytes as
    /// they are. `now` is the time, for no point may come from the future: it would be the newest for good.
    pub(crate) fn admit_point(&self, id: PointId, bytes: &[u8], now: SystemTime) -> Result<(), Error> {
        let refused = |reason: String| Err(Error::PointRefused { reason });
        let found = PointId::of(bytes);
        if found != id || bytes.len() as u64 > MAX_POINT_SIZE {
            return refused(format!("its name is {id}, its bytes have the id {found}"));
        }
        let point = match parse_point(bytes, self.sealed()) {
            Ok(point) => point,
            Err(reason) => return refused(reason),
        };
        if point.store != self.id() {
            return refused(format!("it belongs to store {}, this is {}", point.store, self.id()));
        }
        match time::parse(&point.created) {
            None => return refused(format!("'{}' is not a time like 2026-11-03T10:20:30Z", point.created)),
            Some(created) if created > now + CLOCK_SLACK => {
                return refused(format!(
                    "it was made in the future, at {}: check both clocks",
                    point.created
                ));
            }
            Some(_) => {}
        }
        for disk in &point.disks {
            if let Some(fault) = disk.bad.fault(disk.tree.size) {
                return refused(format!("the unreadable parts of VDI {} have {fault}", disk.vdi));
            }
        }
        self.check_unchanged()?;
        self.look_again(LookFor::Removed)?;
        for disk in &point.disks {
            self.prove_disk(&point, disk)?;
        }
        self.write_point(id, bytes)
    }

    fn prove_disk(&self, point: &RestorePoint, disk: &PointDisk) -> Result<(), Error> {
        // Trees of points that are here were proven when those came: what is shared with them is not walked again.
        if let Some(base) = self.tree_of_base(point, disk) {
            // What is wrong with it comes out below.
            let _ = self.finish_tree(disk.tree, Some(base));
        }
        match self.check_finished(disk) {
            Err(error) if error.kind() == ErrorKind::Missing => {
                // Another server, or a program on this machine, may have added what is missing.
                self.look_again(LookFor::AllPacks)?;
                self.check_finished(disk)
            }
            outcome => outcome,
        }
    }

    fn tree_of_base(&self, point: &RestorePoint, disk: &PointDisk) -> Option<Tree> {
        let base = self.point(disk.base.or(point.base)?).ok()?;
        base.point.disks.iter().find(|other| other.vdi == disk.vdi).map(|other| other.tree)
    }
}
