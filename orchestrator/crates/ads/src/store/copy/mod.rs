//! Copying restore points to another place of the same store.
//!
//! A copy is the same store in another place: it has the same `config.json`, so that restore points, whose names are the
//! hashes of their bytes, stay as they are, and so do the ids of trees, nodes and blocks. Only what is missing there is
//! moved, in the order of every writer: packs of blocks, packs of nodes, the restore point. Oldest first, so that whoever
//! is killed goes on at the next point, and finds what came of this one in the index.
//!
//! ```text
//! select   which points               needs    what of a point is missing, by trees
//! send     moving it, proven          pace     not faster than allowed
//! ```
//!
//! # What is trusted
//!
//! Nothing that is read here goes there unproven: a pack that is moved as it is was hashed and each of its objects opened,
//! one that is not whole is taken apart and what is whole in it is moved. There, a point appears only after its trees were
//! walked there. What shares a subtree with the newest point that the VM has there is not walked again: points are whole.
//!
//! # Beside collections
//!
//! A lease here names the points that are copied, so that they stay whole although they are removed meanwhile. A lease there
//! names the points that are compared with; what is in a condemned pack there counts as missing, as it does for a job.
//!
//! Packs are moved under their own names only while nothing was ever removed there: a collector that was held up might remove a
//! pack that comes a second time. Once there was a removal (there is a generation), or where a pack of that name was seen
//! there, objects are moved into packs of new names.

mod needs;
mod pace;
mod select;
mod send;

use super::config::MAX_CONFIG_SIZE;
use super::gc::{self, Lease};
use super::pins::{MAX_PIN_SIZE, pin_key};
use super::points::{MAX_POINT_SIZE, id_of, point_key};
use super::{PointId, Store, StoredPoint};
use crate::backend::{Backend, CONFIG, POINTS, Place, Probe};
use crate::error::sentence;
use crate::{Error, ErrorKind};
use blocks::ByteCount;
use needs::{Marks, Needs};
use pace::Pace;
use seal::{PackKind, Tree};
use select::{Selection, There};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// How often points are listed again because one of them was removed before the lease named it, and walked again because
/// packs were collected meanwhile.
const TRIES: usize = 5;

/// What is copied, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CopyOptions {
    /// These points and no others, however old.
    pub points: Vec<PointId>,
    /// Else of these VMs, by name or uuid; of all where none is named.
    pub vms: Vec<String>,
    /// Of each VM only so many of the newest.
    pub last: Option<usize>,
    /// Also points that are older than the newest one that their VM has there: perhaps they were removed there.
    pub all: bool,
    /// Pins too.
    pub pins: bool,
    /// Most bytes in a second.
    pub limit: Option<ByteCount>,
}

/// A point that was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedPoint {
    /// Its id, in both places.
    pub id: PointId,
    /// Its VM's name.
    pub vm: String,
    /// When it was made.
    pub created: String,
    /// Bytes that were moved for it; without moving them, about so many.
    pub bytes: ByteCount,
}

/// A point that could not be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OmittedPoint {
    /// Its object.
    pub place: PathBuf,
    /// Its VM's name; empty where the point itself cannot be read.
    pub vm: String,
    /// What is missing or damaged.
    pub reason: String,
}

/// What was copied.
#[derive(Debug, Default)]
pub struct CopyReport {
    /// Oldest first.
    pub copied: Vec<CopiedPoint>,
    /// Those that stay out until they are mended.
    pub omitted: Vec<OmittedPoint>,
    /// How many of the wanted ones were there already.
    pub present: u64,
    /// How many are not there and older than what their VM has there: removed there, or left out once.
    pub older: u64,
    /// Pins that were copied.
    pub pins: u64,
    /// Packs that were moved as they are.
    pub packs: u64,
    /// Bytes that were written there into packs.
    pub bytes: ByteCount,
    /// Why not everything was looked at.
    pub stopped: Option<Error>,
}

/// How far a copy is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CopyProgress<'a> {
    /// The point that is being copied.
    pub point: &'a StoredPoint,
    /// Points that were looked at.
    pub done: u64,
    /// Points to be copied.
    pub count: u64,
    /// Bytes of this one that were moved.
    pub moved: ByteCount,
    /// About how many are to be moved.
    pub planned: ByteCount,
}

/// Told how far a copy is; says whether it goes on.
type OnProgress<'a> = &'a dyn Fn(&CopyProgress<'_>) -> ControlFlow<()>;

/// Why a point is not copied.
enum Trouble {
    /// It is not whole here.
    Point(String),
    /// It was removed here meanwhile.
    Gone,
    /// Nothing can be copied any more.
    Stop(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Stop(error)
    }
}

/// One copy.
struct Copier<'a> {
    from: &'a Store,
    /// None where nothing is there yet and nothing is to be.
    to: Option<&'a Store>,
    /// Whether nothing is written.
    only_planned: bool,
    progress: OnProgress<'a>,
    pace: Arc<Pace>,
    /// Whether packs may keep their names there.
    verbatim: bool,
    /// Nodes of points that are whole there.
    done: Marks,
    /// Nodes of the present point below which everything is there or on its way.
    walked: Marks,
    needs: Needs,
    /// Objects that cannot be read here, with the reason.
    lost: HashMap<[u8; 32], String>,
    /// Packs of which nothing can be read any more, by number.
    lost_packs: HashMap<u32, String>,
    /// Whether a pack here is gone since it was walked: what is needed of it is in another one then.
    moved_here: bool,
    /// Trees of points that are whole there, by VM and disk.
    bases: HashMap<(String, String), Tree>,
    moved: u64,
    planned: u64,
    report: CopyReport,
}

impl Store {
    /// Makes a place where nothing is a place of this store, and opens it.
    ///
    /// # Errors
    /// As [`init_at`](Self::init_at).
    pub fn init_copy_at(&self, place: &Place) -> Result<Self, Error> {
        let backend = place.backend()?;
        if place.is_remote() {
            backend.prepare()?;
            match Probe::run(&*backend) {
                // Nothing else of what a copy does needs the right.
                Err(error) if is_refused_removal(&error) => {
                    tracing::warn!(%place, "nothing can be removed there; what the probe wrote stays under tmp/");
                }
                other => drop(other?),
            }
        }
        self.init_copy_on(backend)
    }

    /// [`init_copy_at`](Self::init_copy_at) on a backend.
    ///
    /// # Errors
    /// As [`init_on`](Self::init_on).
    pub fn init_copy_on(&self, backend: Arc<dyn Backend>) -> Result<Self, Error> {
        self.check_unchanged()?;
        // As it is: whatever a reader needs stands in it.
        let config = self.backend.get(CONFIG, MAX_CONFIG_SIZE)?;
        {
            let _alone = backend.enter(true)?;
            backend.prepare()?;
            self.copy_key_slots(&*backend)?;
            if !backend.put_new(CONFIG, &config)? {
                let reason = "somebody else made a store there just now".into();
                return Err(Error::Exists { dir: backend.root(), reason });
            }
        }
        Self::open_on(backend)
    }

    /// Copies restore points, and what they need and is not there, to another place of this store.
    ///
    /// Where a point is not whole here it is left out and named in the report; where writing there fails, or `progress` says
    /// that it is enough, the report says so and what was copied before.
    ///
    /// # Errors
    /// [`Error::AnotherStore`], [`Error::SamePlace`], [`Error::PointNotFound`], [`Error::NoPointOf`], or what the backends
    /// say before anything was copied.
    pub fn copy_to(
        self: &Arc<Self>,
        to: &Arc<Self>,
        options: &CopyOptions,
        progress: OnProgress<'_>,
    ) -> Result<CopyReport, Error> {
        self.check_same_store(to)?;
        for _ in 1..TRIES {
            match self.try_copy(to, options, progress) {
                Err(Error::PointNotFound { .. }) => {}
                other => return other,
            }
        }
        self.try_copy(to, options, progress)
    }

    /// What [`copy_to`](Self::copy_to) would do, about, and without writing anything anywhere; `None` stands for a place
    /// where nothing is.
    ///
    /// # Errors
    /// As there.
    pub fn plan_copy(
        &self,
        to: Option<&Self>,
        options: &CopyOptions,
        progress: OnProgress<'_>,
    ) -> Result<CopyReport, Error> {
        if let Some(to) = to {
            self.check_same_store(to)?;
        }
        let chosen = self.select(to, options)?;
        let mut copier = Copier::new(self, to, &chosen, options, progress);
        copier.only_planned = true;
        copier.copy_all(&chosen, None);
        Ok(copier.report)
    }

    fn check_same_store(&self, to: &Self) -> Result<(), Error> {
        if self.id() != to.id() {
            return Err(Error::AnotherStore {
                dir: to.dir().to_owned(),
                found: to.id(),
                expected: self.id(),
            });
        }
        if self.config.id_key != to.config.id_key {
            let reason = "its id_key is not that of the store it is a copy of".into();
            return Err(Error::Config { path: to.backend.place(CONFIG), reason });
        }
        Ok(())
    }

    fn try_copy(
        self: &Arc<Self>,
        to: &Arc<Self>,
        options: &CopyOptions,
        progress: OnProgress<'_>,
    ) -> Result<CopyReport, Error> {
        let chosen = self.select(Some(to), options)?;
        let starts: Vec<&StoredPoint> = chosen.points.iter().collect();
        let own = self.lease(&format!("copy to {}", to.dir().display()), &starts)?;
        // Names prove nothing: two servers may have a bucket of the same name, and one directory several paths.
        if own.is_seen_in(to)? {
            return Err(Error::SamePlace { dir: to.dir().to_owned() });
        }
        let bases: Vec<&StoredPoint> = chosen.bases.iter().collect();
        let lease = to.lease(&format!("copy from {}", self.dir().display()), &bases)?;
        let mut copier = Copier::new(self, Some(to), &chosen, options, progress);
        // Also what came since it was opened: a pack that is condemned must not be taken for one that was never there.
        to.refresh()?;
        // Asked after the packs there were listed under the lease: what is not among them was never there.
        copier.verbatim = gc::generation(&*to.backend)?.is_none();
        copier.copy_all(&chosen, Some(&lease));
        if options.pins && copier.report.stopped.is_none() {
            copier.report.stopped = copier.copy_pins(&chosen).err();
        }
        Ok(copier.report)
    }

    fn select(&self, to: Option<&Self>, options: &CopyOptions) -> Result<Selection, Error> {
        let here = self.points()?;
        let mut there = There::default();
        let Some(to) = to else { return select::choose(here, there, options, &*self.backend) };
        let known: HashMap<PointId, &StoredPoint> =
            here.points.iter().map(|stored| (stored.id, stored)).collect();
        for object in to.backend.list(POINTS)? {
            let Some(id) = id_of(&object.key) else { continue };
            match known.get(&id) {
                // Its name says that it is the same.
                Some(stored) => there.add((*stored).clone()),
                None => match to.point(id) {
                    Ok(stored) => there.add(stored),
                    // Gone meanwhile, or damaged, which is for a verification there to say.
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Damaged) => {}
                    Err(error) => return Err(error),
                },
            }
        }
        select::choose(here, there, options, &*self.backend)
    }
}

impl<'a> Copier<'a> {
    fn new(
        from: &'a Store,
        to: Option<&'a Store>,
        chosen: &Selection,
        options: &CopyOptions,
        progress: OnProgress<'a>,
    ) -> Self {
        let mut copier = Self {
            from,
            to,
            only_planned: false,
            progress,
            pace: Arc::new(Pace::new(options.limit)),
            verbatim: false,
            done: Marks::default(),
            walked: Marks::default(),
            needs: Needs::default(),
            lost: HashMap::new(),
            lost_packs: HashMap::new(),
            moved_here: false,
            bases: HashMap::new(),
            moved: 0,
            planned: 0,
            report: CopyReport {
                omitted: chosen.unreadable.clone(),
                present: chosen.present.len() as u64,
                older: chosen.older,
                ..CopyReport::default()
            },
        };
        chosen.bases.iter().for_each(|stored| copier.enter_base(stored));
        copier
    }

    fn enter_base(&mut self, stored: &StoredPoint) {
        for disk in &stored.point.disks {
            self.bases.insert((stored.point.vm.uuid.clone(), disk.vdi.clone()), disk.tree);
        }
    }

    fn copy_all(&mut self, chosen: &Selection, lease: Option<&Lease>) {
        let count = chosen.points.len() as u64;
        for (done, stored) in (0..).zip(&chosen.points) {
            (self.moved, self.planned) = (0, 0);
            match self.copy_point(stored, done, count, lease) {
                Ok(()) => self.report.copied.push(CopiedPoint {
                    id: stored.id,
                    vm: stored.point.vm.name.clone(),
                    created: stored.point.created.clone(),
                    bytes: ByteCount::new(self.moved),
                }),
                Err(Trouble::Point(reason)) => self.report.omitted.push(OmittedPoint {
                    place: self.from.backend.place(&point_key(stored.id)),
                    vm: stored.point.vm.name.clone(),
                    reason,
                }),
                Err(Trouble::Gone) => {}
                Err(Trouble::Stop(error)) => {
                    self.report.stopped = Some(error);
                    return;
                }
            }
        }
    }

    fn copy_point(
        &mut self,
        stored: &StoredPoint,
        done: u64,
        count: u64,
        lease: Option<&Lease>,
    ) -> Result<(), Trouble> {
        let at = |moved: u64, planned: u64| CopyProgress {
            point: stored,
            done,
            count,
            moved: ByteCount::new(moved),
            planned: ByteCount::new(planned.max(moved)),
        };
        let tell = self.progress;
        let report = &|moved, planned| match tell(&at(moved, planned)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        };
        report(0, 0)?;
        let known_lost = self.count_lost();
        for _ in 0..TRIES {
            self.forget_point();
            self.walk_point(stored, report)?;
            self.send(PackKind::Data, report)?;
            if self.count_lost() == known_lost && !self.moved_here {
                self.send(PackKind::Tree, report)?;
            }
            if !std::mem::take(&mut self.moved_here) {
                break;
            }
            self.from.look_elsewhere()?;
        }
        if self.count_lost() > known_lost {
            // Another walk stops at what is lost, and says where that is.
            self.forget_point();
            self.walk_point(stored, report)?;
            return Err(Trouble::Point("something that it needs cannot be read".into()));
        }
        if let (Some(to), Some(lease)) = (self.to, lease) {
            self.adopt(to, stored, lease)?;
        }
        let walked = std::mem::take(&mut self.walked);
        self.done.merge(walked);
        self.enter_base(stored);
        Ok(())
    }

    fn count_lost(&self) -> usize {
        self.lost.len() + self.lost_packs.len()
    }

    fn forget_point(&mut self) {
        self.walked = Marks::default();
        if !self.only_planned {
            self.needs = Needs::default();
        }
    }

    /// Makes the point exist there, after its trees were walked there.
    fn adopt(&self, to: &Store, stored: &StoredPoint, lease: &Lease) -> Result<(), Trouble> {
        let here = |error: Error| match is_outage(&error) {
            true => Trouble::Stop(error),
            false => Trouble::Point(sentence(&error)),
        };
        let key = point_key(stored.id);
        let bytes = match self.from.backend.get(&key, MAX_POINT_SIZE) {
            Err(error) if error.is_not_found() => return Err(Trouble::Gone),
            other => other.map_err(here)?,
        };
        if PointId::of(&bytes) != stored.id {
            return Err(Trouble::Point("its bytes are not what its name says".into()));
        }
        for disk in &stored.point.disks {
            let base = self.bases.get(&(stored.point.vm.uuid.clone(), disk.vdi.clone())).copied();
            to.finish_tree(disk.tree, base).and_then(|_| to.check_finished(disk)).map_err(
                |error| match error.kind() {
                    ErrorKind::Missing | ErrorKind::Damaged => {
                        Trouble::Point(format!("{} of it in {}", sentence(&error), to.dir().display()))
                    }
                    _ => Trouble::Stop(error),
                },
            )?;
        }
        lease.check()?;
        to.check_unchanged()?;
        to.backend.put(&key, &bytes)?;
        // After the point: a collector that takes the lease away later than this looks for points after that.
        if let Err(lost) = lease.check() {
            to.take_back(stored.id)?;
            return Err(Trouble::Stop(lost));
        }
        Ok(())
    }

    fn copy_pins(&mut self, chosen: &Selection) -> Result<(), Error> {
        let Some(to) = self.to else { return Ok(()) };
        let copied: Vec<PointId> = self.report.copied.iter().map(|copied| copied.id).collect();
        let pins: BTreeMap<PointId, _> = self.from.pins()?;
        for id in chosen.present.iter().chain(&copied).filter(|id| pins.contains_key(id)) {
            if to.is_pinned(*id)? {
                continue;
            }
            match self.from.backend.get(&pin_key(*id), MAX_PIN_SIZE) {
                Ok(bytes) => to.backend.put(&pin_key(*id), &bytes)?,
                // Let go of meanwhile.
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            }
            self.report.pins += 1;
        }
        Ok(())
    }
}

/// Whether an error of reading says that the place cannot be reached, and nothing about the object.
fn is_outage(error: &Error) -> bool {
    error.kind() == ErrorKind::Remote && !error.is_not_found()
}

fn is_refused_removal(error: &Error) -> bool {
    match error {
        Error::Remote { what: "remove", source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
        _ => false,
    }
}
