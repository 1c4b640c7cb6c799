//! Mending a store: what is damaged is made whole from elsewhere where anything has it, what still opens is saved, and
//! what is lost becomes unknown, so that the next backup that meets the same block ships it again.
//!
//! # The order
//!
//! Everything that is good about a damaged pack is durable elsewhere before the pack stops being part of the store:
//!
//! ```text
//! 1  objects that open, and lost ones that a second store gave back, go into new packs
//! 2  quarantine/<pack id> gets the damaged bytes: from then on nobody who looks counts the pack as part of the store
//! 3  a new generation, so that everybody looks who takes a lease
//! 4  who else holds a lease? Nobody: packs/<..>/<pack id> is removed. Somebody: a later repair does it
//! ```
//!
//! A crash after any of these leaves a store in which nothing is missing that was there before.
//!
//! # Beside jobs and collectors
//!
//! A repair holds a lease. It relies on a copy of an object elsewhere only where that stands in no condemned list that was
//! there after it took the lease: a list that is written later names this lease, so that what it lists stays until the
//! repair is over, and is removed only if a later walk, to which the quarantined pack does not exist, does not need it.
//! The new packs are nobody's at first; a collector that condemns them waits for the same lease and walks again after it.
//! All that opens is saved, needed by a restore point or not: a job that runs may have been told that it is there.
//! Who took a lease, or opened the store, before (3) may still read from the damaged pack; that is why (4) waits for
//! him. A job that was told before (2) that the store has a block that is lost makes a point that lacks it, as it would have
//! without a repair; `verify` names it.
//!
//! A pack that a collector removed does not come back: what is written under the name of a pack stood there, damaged, at
//! that time.
//!
//! ```text
//! examine   which packs are bad, what still opens     survey   what restore points lack, and where that hurts
//! config    config.json, without which nothing opens  losses   the list of points that lack something
//! ```

mod config;
mod examine;
mod losses;
mod report;
mod survey;

pub use report::{Deed, Origin, RepairOptions, RepairProgress, RepairReport};

use super::gc::Mover;
use super::packs::{self, StoredObject};
use super::points::{MAX_POINT_SIZE, named_by, point_key, read_point};
use super::{Lease, PointId, Store, StoredPoint};
use crate::Error;
use crate::backend::{Backend, POINTS, QUARANTINE, file_name, pack_key};
use blocks::ByteCount;
use examine::{BadPack, Object};
use rayon::prelude::*;
use seal::{BlockId, MAX_PACK_SIZE, Node, NodeId, PackId, PackIndex, PackKind, Sealed};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use survey::{Losses, Stock};

/// Most threads; each holds one pack of up to 64 MiB.
const MAX_THREADS: usize = 16;
const LOCKED: &str = "no panic while a result is locked";

/// Packs that are in quarantine.
pub(super) fn quarantined(backend: &dyn Backend) -> Result<HashSet<PackId>, Error> {
    Ok(backend.list(QUARANTINE)?.iter().filter_map(|object| file_name(&object.key).parse().ok()).collect())
}

fn quarantine_key(name: &str) -> String {
    format!("{QUARANTINE}{name}")
}

impl Store {
    /// Mends what can be mended; jobs go on meanwhile. `from` is a second store with the same id key.
    ///
    /// # Errors
    /// [`Error::OtherStore`] for a second store with other ids, [`Error::NotRepaired`] where a repair might do harm, else what
    /// the backend says: the way to a pack that cannot be reached is no damage. Then a part of it may have been done.
    pub fn repair(
        self: &Arc<Self>,
        options: RepairOptions,
        from: Option<&Store>,
        progress: &(dyn Fn(RepairProgress) + Sync),
    ) -> Result<RepairReport, Error> {
        if self.is_encrypted() {
            // Without the key nothing would be proven, and all that is good would count as damaged.
            self.master()?;
        }
        let keys = |store: &Store| (store.config.id_key, store.config.master_check);
        if let Some(from) = from.filter(|from| keys(from) != keys(self)) {
            let reason = "its id key is another one, so that nothing in it has the ids of this one".into();
            return Err(Error::OtherStore { dir: from.dir().to_owned(), reason });
        }
        let lease = self.lease("repair", &[])?;
        let repair = Repair {
            store: self,
            from,
            options,
            lease: &lease,
            known: Known::default(),
            data: Mover::new(self, PackKind::Data),
            tree: Mover::new(self, PackKind::Tree),
            report: RepairReport::default(),
        };
        repair.run(progress)
    }
}

/// What is known of objects that are not, or not only, where the index says.
#[derive(Default)]
struct Known {
    /// In new packs, or in packs that are whole again, or would be.
    saved: HashSet<Object>,
    /// In damaged packs only, as far as their indexes say.
    lost: HashSet<Object>,
    /// Nodes among what was saved.
    nodes: HashMap<NodeId, Node>,
}

/// What becomes of a damaged pack that cannot be made whole.
struct Rescue {
    pack: BadPack,
    saved: u64,
    elsewhere: u64,
    lost: Vec<Object>,
    index_is_whole: bool,
}

struct Repair<'a> {
    store: &'a Arc<Store>,
    from: Option<&'a Store>,
    options: RepairOptions,
    lease: &'a Lease,
    known: Known,
    data: Mover<'a>,
    tree: Mover<'a>,
    report: RepairReport,
}

impl Repair<'_> {
    fn run(mut self, progress: &(dyn Fn(RepairProgress) + Sync)) -> Result<RepairReport, Error> {
        let condemned = self.store.condemned_now()?;
        self.release()?;
        let mut points = self.points()?;
        let missing = self.missing_points()?;
        let listed = packs::list(&*self.store.backend)?.packs;
        let bad = self.examine(&listed, progress)?;
        let mut left = Vec::new();
        for pack in bad {
            match self.exact_bytes(&pack)? {
                Some((bytes, from)) => self.make_whole(pack, &bytes, from)?,
                None => left.push(pack),
            }
        }
        let rescues = self.rescue(left, &listed, &condemned)?;
        points.extend(missing.iter().map(|(stored, _)| stored.clone()));
        let (blocks, nodes) = self.fetch_what_is_lost(&points)?;
        if blocks + nodes > 0 {
            self.report.deeds.push(Deed::Fetched { blocks, nodes });
        }
        self.write_packs()?;
        for (stored, bytes) in missing {
            self.bring_back(stored.id, &bytes, "it was missing".into())?;
        }
        self.quarantine(rescues)?;
        self.remove_what_nobody_reads()?;
        self.count_losses(&points)?;
        Ok(self.report)
    }

    /// Packs in quarantine whose bytes at the old place are what their names say: somebody brought them back.
    fn release(&mut self) -> Result<(), Error> {
        let backend = &*self.store.backend;
        let mut released = Vec::new();
        for id in quarantined(backend)? {
            match backend.get(&pack_key(id), MAX_PACK_SIZE as u64) {
                Ok(bytes) if PackId::of(&bytes) == id => released.push(id),
                _ => {}
            }
        }
        released.sort_unstable();
        for id in released {
            if !self.options.dry_run {
                backend.delete(&quarantine_key(&id.to_string()))?;
            }
            self.report.deeds.push(Deed::PackReleased { id });
        }
        if !self.report.deeds.is_empty() && !self.options.dry_run {
            self.store.let_all_look_again()?;
        }
        Ok(())
    }

    /// All restore points that can be read, after the damaged ones were brought back where anything has them.
    fn points(&mut self) -> Result<Vec<StoredPoint>, Error> {
        let backend = &*self.store.backend;
        let mut points = self.store.points()?.points;
        for object in backend.list(POINTS)? {
            let Err(reason) = read_point(backend, &object.key, self.store.sealed()) else { continue };
            let Some(id) = named_by(&object.key).filter(|id| point_key(*id) == object.key) else { continue };
            let path = backend.place(&object.key);
            match self.copy_of_point(id) {
                Some((stored, bytes)) => {
                    self.bring_back(id, &bytes, reason)?;
                    points.push(stored);
                }
                None if self.options.give_up_points => {
                    if !self.options.dry_run {
                        let limit = usize::try_from(MAX_POINT_SIZE).unwrap_or(usize::MAX);
                        let bytes = examine::read_what_can_be_read(backend, &object.key, limit)?;
                        backend.put(&quarantine_key(file_name(&object.key)), &bytes)?;
                        backend.delete(&object.key)?;
                    }
                    self.report.deeds.push(Deed::PointQuarantined { path, reason });
                }
                None => self.report.deeds.push(Deed::PointLeft { path, reason }),
            }
        }
        Ok(points)
    }

    /// A restore point from where it is whole.
    fn copy_of_point(&self, id: PointId) -> Option<(StoredPoint, Vec<u8>)> {
        let backend = &*self.from?.backend;
        let (stored, bytes) = read_point(backend, &point_key(id), self.store.sealed()).ok()?;
        (stored.point.store == self.store.id()).then_some((stored, bytes))
    }

    fn bring_back(&mut self, id: PointId, bytes: &[u8], reason: String) -> Result<(), Error> {
        if !self.options.dry_run {
            self.store.backend.put(&point_key(id), bytes)?;
        }
        self.report.deeds.push(Deed::PointBack { id, reason, from: Origin::SecondStore });
        Ok(())
    }

    /// Points of this store that only the second one has, where they are asked for.
    fn missing_points(&self) -> Result<Vec<(StoredPoint, Vec<u8>)>, Error> {
        let Some(from) = self.from.filter(|_| self.options.missing_points) else { return Ok(Vec::new()) };
        let mut missing = Vec::new();
        for object in from.backend.list(POINTS)? {
            let Some(id) = named_by(&object.key) else { continue };
            if self.store.backend.head(&point_key(id))?.is_none() {
                missing.extend(self.copy_of_point(id));
            }
        }
        Ok(missing)
    }

    /// Reads every pack, and gives those that are not what their names say.
    fn examine(
        &mut self,
        listed: &[(PackId, u64)],
        progress: &(dyn Fn(RepairProgress) + Sync),
    ) -> Result<Vec<BadPack>, Error> {
        let backend = &*self.store.backend;
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads.min(backend.parallel_reads()).min(MAX_THREADS))
            .build()
            .map_err(|error| Error::Worker { reason: error.to_string() })?;
        let all = RepairProgress {
            packs: listed.len() as u64,
            bytes: ByteCount::new(listed.iter().map(|(_, size)| *size).sum()),
            ..RepairProgress::default()
        };
        let now = Mutex::new(all);
        let look = |(id, size): &(PackId, u64)| {
            let found = examine::examine(backend, *id);
            let now = {
                let mut now = now.lock().expect(LOCKED);
                now.packs_done += 1;
                now.bytes_done = now.bytes_done.saturating_add(ByteCount::new(*size));
                *now
            };
            progress(now);
            found.transpose()
        };
        self.report.packs = listed.len() as u64;
        pool.install(|| listed.par_iter().filter_map(look).collect())
    }

    /// The bytes of a pack as its name says, from where anything has them.
    fn exact_bytes(&self, pack: &BadPack) -> Result<Option<(Vec<u8>, Origin)>, Error> {
        let Some(from) = self.from else { return Ok(None) };
        // One that is not there, or is damaged there too, has its objects asked for one by one.
        let bytes = from.backend.get(&pack_key(pack.id), MAX_PACK_SIZE as u64).ok();
        Ok(bytes.filter(|bytes| PackId::of(bytes) == pack.id).map(|bytes| (bytes, Origin::SecondStore)))
    }

    fn make_whole(&mut self, pack: BadPack, bytes: &[u8], from: Origin) -> Result<(), Error> {
        let id = pack.id;
        if let Ok(index) = PackIndex::from_pack(bytes) {
            self.known.saved.extend(index.entries.iter().map(|entry| (index.kind, entry.id)));
            if index.kind == PackKind::Tree && self.options.dry_run {
                for entry in &index.entries {
                    self.remember_node(entry.id, entry.sealed(bytes).ok(), entry.plain_size);
                }
            }
        }
        if !self.options.dry_run {
            self.store.backend.put(&pack_key(id), bytes)?;
            self.report.written = self.report.written.saturating_add(ByteCount::new(bytes.len() as u64));
            if let Err(skipped) = self.store.packs.mended(id, bytes.len() as u64) {
                return Err(Error::NotRepaired {
                    reason: format!("pack {id} was mended, and then: {}", skipped.reason),
                });
            }
        }
        self.report.deeds.push(Deed::PackWhole { id, reason: pack.reason, from });
        Ok(())
    }

    fn remember_node(&mut self, id: [u8; 32], sealed: Option<Sealed<'_>>, plain_size: u32) {
        let node = NodeId::from_bytes(id);
        let Some(Sealed { codec, lock, bytes }) = sealed else { return };
        let object = StoredObject { pack: PackId::of(&[]), codec, lock, plain_size, bytes: bytes.to_vec() };
        if let Ok(opened) = object.open_node(&self.store.id_key, node) {
            self.known.nodes.insert(node, opened);
        }
    }

    /// Takes what still opens out of damaged packs, and what collectors are about to remove of what does not.
    fn rescue(
        &mut self,
        bad: Vec<BadPack>,
        listed: &[(PackId, u64)],
        condemned: &HashSet<PackId>,
    ) -> Result<Vec<Rescue>, Error> {
        if bad.is_empty() {
            return Ok(Vec::new());
        }
        let backend = &*self.store.backend;
        let names: HashSet<PackId> = bad.iter().map(|pack| pack.id).collect();
        let mut contents = Vec::new();
        let mut wanted = HashSet::new();
        for pack in &bad {
            let bytes = examine::read_what_can_be_read(backend, &pack_key(pack.id), MAX_PACK_SIZE)?;
            let found = examine::contents(&self.store.id_key, &bytes)?;
            wanted.extend(found.good.iter().map(|(kind, entry)| (*kind, entry.id)));
            wanted.extend(found.lost.iter().copied());
            contents.push(found);
        }
        // Where else the same objects are, in packs that are whole.
        let mut elsewhere = HashSet::new();
        for (id, _) in listed.iter().filter(|(id, _)| !names.contains(id)) {
            let Some(number) = self.store.packs.number_of(*id) else { continue };
            let index = match self.store.packs.index_of(number) {
                Err(error) if error.is_not_found() => continue,
                other => other?,
            };
            let wanted = |entry: &&seal::Entry| wanted.contains(&(index.kind, entry.id));
            let held: Vec<_> = index.entries.iter().filter(wanted).collect();
            if !condemned.contains(id) {
                elsewhere.extend(held.iter().map(|entry| (index.kind, entry.id)));
            } else if !held.is_empty() {
                let bytes = self.store.packs.bytes_of(number)?;
                for entry in held {
                    self.keep((index.kind, entry.id), entry.sealed(&bytes).ok(), entry.plain_size)?;
                }
            }
        }
        let mut rescues = Vec::new();
        for (pack, found) in bad.into_iter().zip(contents) {
            let bytes = examine::read_what_can_be_read(backend, &pack_key(pack.id), MAX_PACK_SIZE)?;
            let mut rescue = Rescue {
                pack,
                saved: 0,
                elsewhere: 0,
                lost: found.lost,
                index_is_whole: found.index_is_whole,
            };
            for (kind, entry) in found.good {
                if elsewhere.contains(&(kind, entry.id)) {
                    rescue.elsewhere += 1;
                } else {
                    self.keep((kind, entry.id), entry.sealed(&bytes).ok(), entry.plain_size)?;
                    rescue.saved += 1;
                }
            }
            rescues.push(rescue);
        }
        self.known.saved.extend(elsewhere);
        for rescue in &mut rescues {
            let lost = std::mem::take(&mut rescue.lost);
            let (back, lost): (Vec<_>, Vec<_>) =
                lost.into_iter().partition(|object| self.known.saved.contains(object));
            rescue.elsewhere += back.len() as u64;
            self.known.lost.extend(&lost);
            rescue.lost = lost;
        }
        Ok(rescues)
    }

    /// Puts an object that was proven into a new pack, once.
    fn keep(&mut self, object: Object, sealed: Option<Sealed<'_>>, plain_size: u32) -> Result<(), Error> {
        let Some(sealed) = sealed.filter(|_| !self.known.saved.contains(&object)) else { return Ok(()) };
        let (kind, id) = object;
        if kind == PackKind::Tree {
            self.remember_node(id, Some(sealed), plain_size);
        }
        if !self.options.dry_run {
            let mover = if kind == PackKind::Data { &mut self.data } else { &mut self.tree };
            mover.push(id, plain_size as usize, sealed)?;
        }
        self.known.saved.insert(object);
        Ok(())
    }

    /// Goes through all points and asks the second store for what they lack; gives how many blocks and nodes came.
    fn fetch_what_is_lost(&mut self, points: &[StoredPoint]) -> Result<(u64, u64), Error> {
        if self.from.is_none() {
            return Ok((0, 0));
        }
        let mut fetch = Fetch { repair: self, count: (0, 0), failed: None };
        survey::survey(points, &mut fetch);
        let Fetch { count, failed, .. } = fetch;
        failed.map_or(Ok(count), Err)
    }

    /// An object of the second store as it is stored there, proven.
    fn fetch(&self, (kind, id): Object) -> Option<StoredObject> {
        let from = self.from?;
        let at = from.packs.find(kind, &id)?;
        let object = from.packs.read(kind, &id, at).ok()?;
        let is_good = match kind {
            PackKind::Data => object.open_block(&self.store.id_key, BlockId::from_bytes(id)).is_ok(),
            PackKind::Tree => object.open_node(&self.store.id_key, NodeId::from_bytes(id)).is_ok(),
        };
        is_good.then_some(object)
    }

    fn write_packs(&mut self) -> Result<(), Error> {
        for mover in [&mut self.data, &mut self.tree] {
            mover.write()?;
            self.report.written = self.report.written.saturating_add(mover.written());
        }
        Ok(())
    }

    /// After what was saved is durable: from here on the damaged packs are not part of the store.
    fn quarantine(&mut self, rescues: Vec<Rescue>) -> Result<(), Error> {
        let backend = &*self.store.backend;
        let any = !rescues.is_empty();
        for Rescue { pack: BadPack { id, reason }, saved, elsewhere, lost, index_is_whole } in rescues {
            if !self.options.dry_run {
                let bytes = examine::read_what_can_be_read(backend, &pack_key(id), MAX_PACK_SIZE)?;
                backend.put(&quarantine_key(&id.to_string()), &bytes)?;
            }
            let back = lost.iter().filter(|object| self.known.saved.contains(object)).count() as u64;
            let lost = index_is_whole.then_some(lost.len() as u64 - back);
            self.report.deeds.push(Deed::PackQuarantined { id, reason, saved, elsewhere, lost });
        }
        if any && !self.options.dry_run {
            self.store.let_all_look_again()?;
        }
        Ok(())
    }

    /// Removes packs that are in quarantine from their old places, where nobody can be reading there.
    fn remove_what_nobody_reads(&mut self) -> Result<(), Error> {
        let backend = &*self.store.backend;
        let mut there = Vec::new();
        for id in quarantined(backend)? {
            if backend.head(&pack_key(id))?.is_some() {
                there.push(id);
            }
        }
        there.sort_unstable();
        // After the quarantine was written and announced: who comes later does not look there.
        let others = self.store.others(self.lease.id())?;
        if !others.is_empty() {
            self.report.waiting = there.len() as u64;
            self.report.waits_for = if there.is_empty() { Vec::new() } else { others };
            return Ok(());
        }
        for id in there {
            // The copy is looked at first: it is what is left of the pack.
            if !self.options.dry_run && backend.head(&quarantine_key(&id.to_string()))?.is_some() {
                backend.delete(&pack_key(id))?;
                self.report.deeds.push(Deed::PackRemoved { id });
            }
        }
        Ok(())
    }

    /// Goes through all points once more, and writes down which of them lack something.
    fn count_losses(&mut self, points: &[StoredPoint]) -> Result<(), Error> {
        if !self.options.dry_run {
            // What is in the store, and not what should be.
            self.known = Known::default();
        }
        self.report.points = points.len() as u64;
        let Losses { affects, more, points: suffering } = survey::survey(points, &mut Look { repair: self });
        (self.report.affects, self.report.more_affected) = (affects, more);
        if !self.options.dry_run {
            let ids: Vec<PointId> = suffering.iter().map(|place| points[*place].id).collect();
            losses::write(&*self.store.backend, &ids)?;
        }
        Ok(())
    }

    fn node(&self, id: NodeId) -> Option<Node> {
        if let Some(node) = self.known.nodes.get(&id) {
            return Some(node.clone());
        }
        self.store.read_node_from_disk(id).ok()
    }

    fn has(&self, object: Object) -> bool {
        let (kind, id) = object;
        self.known.saved.contains(&object)
            || (!self.known.lost.contains(&object) && self.store.packs.find(kind, &id).is_some())
    }
}

/// What the store has, and would have.
struct Look<'a, 'b> {
    repair: &'a Repair<'b>,
}

impl Stock for Look<'_, '_> {
    fn node(&mut self, id: NodeId) -> Option<Node> {
        self.repair.node(id)
    }

    fn block(&mut self, id: BlockId) -> bool {
        self.repair.has((PackKind::Data, *id.as_bytes()))
    }
}

/// The same, and what it has not is asked for.
struct Fetch<'a, 'b> {
    repair: &'a mut Repair<'b>,
    count: (u64, u64),
    failed: Option<Error>,
}

impl Fetch<'_, '_> {
    fn fetch(&mut self, object: Object) -> bool {
        if self.failed.is_some() {
            return false;
        }
        let Some(found) = self.repair.fetch(object) else { return false };
        let sealed = Sealed { codec: found.codec, lock: found.lock, bytes: &found.bytes };
        match self.repair.keep(object, Some(sealed), found.plain_size) {
            Ok(()) => {}
            Err(error) => self.failed = Some(error),
        }
        match object.0 {
            PackKind::Data => self.count.0 += 1,
            PackKind::Tree => self.count.1 += 1,
        }
        true
    }
}

impl Stock for Fetch<'_, '_> {
    fn node(&mut self, id: NodeId) -> Option<Node> {
        if let Some(node) = self.repair.node(id) {
            return Some(node);
        }
        self.fetch((PackKind::Tree, *id.as_bytes()));
        self.repair.node(id)
    }

    fn block(&mut self, id: BlockId) -> bool {
        let object = (PackKind::Data, *id.as_bytes());
        self.repair.has(object) || self.fetch(object)
    }
}
