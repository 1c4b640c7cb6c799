//! Restore points: the records that make backups exist.
//!
//! A point's file is named by the hash of its bytes and never changes. It is written last; before that every
//! disk's tree was proven to be in the store.

use super::config::Config;
use super::{Store, kept, sealed_point, time};
use crate::Error;
use crate::backend::{Backend, Listed, POINTS, file_name};
use crate::error::sentence;
use rayon::prelude::*;
use seal::{MasterKey, Tree, TreeId};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::SystemTime;
use uuid::Uuid;

/// Largest restore point that is written or read: a VM's metadata and 250 disks take a few hundred KiB.
pub(crate) const MAX_POINT_SIZE: u64 = 16 << 20;
/// Points whose bytes are held at once: some MiB.
const BATCH: usize = 512;
/// Points that are read one after the other wherever they are.
const FEW_POINTS: usize = 4;
/// A backend that is worth no more reads at once than this is as near as a disk: threads would cost more than they give.
const LOCAL_READS: usize = 8;
/// Fewest digits that name a point.
const SHORTEST_PREFIX: usize = 4;
/// Digits of [`PointId::short`].
const SHORT_DIGITS: usize = 12;

/// BLAKE3-256 (no key) of a restore point's file; its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointId([u8; 32]);

/// The record that makes a backup exist. Members with a default are absent in points of earlier versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestorePoint {
    /// [`RestorePoint::VERSION`]; of a point that was read, the version it was written with.
    pub version: u32,
    /// The job that made it.
    pub job: String,
    /// What the admin calls such jobs; none where the VM was named at a shell.
    #[serde(default)]
    pub job_name: Option<String>,
    /// The run that the job belonged to.
    pub run: String,
    /// When, as [`timestamp`](crate::timestamp) gives it.
    pub created: String,
    /// The store's id.
    pub store: Uuid,
    /// Where the VM lived.
    pub pool: PointPool,
    /// The VM.
    pub vm: PointVm,
    /// Its disks.
    pub disks: Vec<PointDisk>,
    /// The point that the job started from.
    pub base: Option<PointId>,
    /// Whether the guest wrote out its files before the snapshot.
    #[serde(default)]
    pub quiesced: bool,
    /// Whether the VM's memory belongs to it: a disk of the kind [`DiskKind::Suspend`].
    #[serde(default)]
    pub checkpoint: bool,
}

/// A restore point's pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointPool {
    /// XAPI's uuid.
    pub uuid: String,
    /// Its name.
    pub name: String,
}

/// A restore point's VM.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PointVm {
    /// XAPI's uuid.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// What is needed to make it again.
    pub metadata: serde_json::Value,
}

/// A restore point's disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointDisk {
    /// Uuid of the live VDI; of a memory image its own.
    pub vdi: String,
    /// Its name.
    pub name: String,
    /// What it is to the VM.
    #[serde(default)]
    pub kind: DiskKind,
    /// Its position on the VM; without meaning for a memory image.
    pub userdevice: u16,
    /// Whether the VM boots from it.
    pub bootable: bool,
    /// Its content.
    pub tree: Tree,
    /// What proves the content.
    pub tree_id: TreeId,
    /// How it was read.
    pub mode: DiskMode,
    /// Why in this way, for people.
    pub reason: String,
    /// The same for programs: a stable word in kebab case, or empty.
    #[serde(default)]
    pub cause: String,
    /// What the job counted.
    pub counts: wire::DiskCounts,
    /// The VDI in the pool to list the next changes from.
    pub reference: Option<String>,
    /// The point that this disk's changes were listed or compared against; of points of version 1 the point's own
    /// base.
    #[serde(default)]
    pub base: Option<PointId>,
    /// Earlier points whose content of this disk is in doubt: they were made by a tracking that this job's audit
    /// caught forgetting writes.
    #[serde(default)]
    pub suspect: Vec<PointId>,
    /// What could not be read: zeros stand there. The next backup must read it again, whatever change tracking says.
    #[serde(default)]
    pub bad: wire::BadRanges,
}

/// What a disk is to its VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskKind {
    /// A disk that the guest sees.
    #[default]
    User,
    /// The memory of the VM at a checkpoint; no guest may see it as a disk.
    Suspend,
}

/// How a disk was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskMode {
    /// The blocks that changed-block tracking listed.
    Cbt,
    /// The granules that a differencing VHD lists against the reserved snapshot.
    VhdDiff,
    /// Every block, compared with the base.
    Scan,
    /// Every block.
    Full,
}

/// A restore point and its name.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPoint {
    /// Its name.
    pub id: PointId,
    /// What it says.
    pub point: RestorePoint,
}

/// A file in `points/` that is not a restore point.
#[derive(Clone, Debug)]
pub struct DamagedPoint {
    /// The file.
    pub path: PathBuf,
    /// Which check failed.
    pub reason: String,
}

/// All restore points of a store.
#[derive(Clone, Debug, Default)]
pub struct Points {
    /// Those that can be read, oldest first.
    pub points: Vec<StoredPoint>,
    /// The others.
    pub damaged: Vec<DamagedPoint>,
}

impl RestorePoint {
    /// The version that this program writes. A program that knows only version 1 must not read it: it would give a
    /// memory image to a VM as a disk. One that knows only version 2 would leave zeros for ever where a disk could not
    /// be read once.
    pub const VERSION: u32 = 3;
    /// The oldest version that this program reads.
    pub const OLDEST_VERSION: u32 = 1;
}

impl PointId {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub(super) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 12 hexadecimal digits, as shown to people.
    pub fn short(&self) -> String {
        self.to_string().chars().take(SHORT_DIGITS).collect()
    }
}

/// 64 lower-case hexadecimal digits.
impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PointId({self})")
    }
}

impl FromStr for PointId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        blake3::Hash::from_hex(text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_| Error::PointNotFound { wanted: text.chars().take(80).collect() })
    }
}

impl Serialize for PointId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PointId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Store {
    /// Makes a backup exist. Every disk's tree is proven to be in the store first, unless
    /// [`finish_tree`](Store::finish_tree) did so in this process. The same point twice is one point.
    ///
    /// # Errors
    /// [`Error::PointRefused`] where the point contradicts itself or the store, [`Error::NotFinished`] naming
    /// the disk that is not whole, [`Error::Full`] or what the file system says. Then no point exists.
    pub fn commit_point(&self, point: &RestorePoint) -> Result<PointId, Error> {
        let refused = |reason: String| Err(Error::PointRefused { reason });
        if point.version != RestorePoint::VERSION {
            return refused(format!("its version is {}, not {}", point.version, RestorePoint::VERSION));
        }
        if point.store != self.id() {
            return refused(format!("it belongs to store {}, this is {}", point.store, self.id()));
        }
        if time::sort_key(&point.created).is_none() {
            return refused(format!("'{}' is not a time like 2026-11-03T10:20:30Z", point.created));
        }
        for disk in &point.disks {
            if !disk.cause.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
                return refused(format!(
                    "the cause '{}' of VDI {} is not in kebab case",
                    disk.cause, disk.vdi
                ));
            }
            if let Some(fault) = disk.bad.fault(disk.tree.size) {
                return refused(format!("the unreadable parts of VDI {} have {fault}", disk.vdi));
            }
            self.check_finished(disk)?;
        }
        let bytes = match (self.is_encrypted(), serde_json::to_vec_pretty(point)) {
            (true, _) => sealed_point::seal(point, self.master()?)?,
            (false, Ok(bytes)) => bytes,
            (false, Err(error)) => return refused(format!("it cannot be written as JSON: {error}")),
        };
        if bytes.len() as u64 > MAX_POINT_SIZE {
            return refused(format!("it takes {} bytes, over {MAX_POINT_SIZE}", bytes.len()));
        }
        let id = PointId::of(&bytes);
        self.check_unchanged()?;
        self.write_point(id, &bytes)?;
        Ok(id)
    }

    /// Writes a point that was checked, or leaves what was there.
    pub(super) fn write_point(&self, id: PointId, bytes: &[u8]) -> Result<(), Error> {
        let key = point_key(id);
        let known = self.read_point(&key).is_ok();
        // Also where it is known: who wrote it may have died before it was durable.
        if let Err(error) = self.backend.put(&key, bytes) {
            // The last step may have failed after the name was given: then what failed must not exist.
            if !known && self.backend.head(&key)?.is_some() {
                self.backend.delete(&key)?;
            }
            return Err(error);
        }
        Ok(())
    }

    /// Refuses a store that is not the one that was opened: its file system was mounted anew, or two programs made one
    /// at the same time where no lock is. What was added since went elsewhere, or has ids of another key.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        let found = Config::read(&*self.backend)?;
        match found == self.config {
            true => Ok(()),
            false => Err(Error::Changed { dir: self.dir().to_owned() }),
        }
    }

    pub(super) fn check_finished(&self, disk: &PointDisk) -> Result<(), Error> {
        let not_finished = |source| Error::NotFinished { vdi: disk.vdi.clone(), source: Box::new(source) };
        let found = disk.tree.id(&self.id_key);
        if found != disk.tree_id {
            return Err(not_finished(Error::TreeId { expected: disk.tree_id, found }));
        }
        if self.finished.lock().expect("no panic while it is locked").contains(&found) {
            return Ok(());
        }
        self.finish_tree(disk.tree, None).map(|_| ()).map_err(not_finished)
    }

    /// All restore points, oldest first, and the files among them that cannot be read. Points that were read before come from
    /// copies that prove themselves.
    ///
    /// # Errors
    /// [`Error::Io`] where the directory cannot be listed.
    pub fn points(&self) -> Result<Points, Error> {
        self.list_points(true)
    }

    /// [`points`](Self::points), each read from the store.
    pub(super) fn points_as_stored(&self) -> Result<Points, Error> {
        self.list_points(false)
    }

    fn list_points(&self, from_copies: bool) -> Result<Points, Error> {
        let mut found = Points::default();
        let listed = self.backend.list(POINTS)?;
        let mut known = HashSet::new();
        if from_copies && listed.len() >= kept::FEWEST {
            self.take_copies(&listed, &mut found.points);
            known = found.points.iter().map(|stored| stored.id).collect();
        }
        let is_known = |object: &Listed| id_of(&object.key).is_some_and(|id| known.contains(&id));
        let rest: Vec<String> =
            listed.into_iter().filter(|object| !is_known(object)).map(|object| object.key).collect();
        let mut copies = if from_copies && rest.len() >= kept::FEWEST { self.kept.write() } else { None };
        for keys in rest.chunks(BATCH) {
            for (key, outcome) in keys.iter().zip(self.read_points(keys)?) {
                match outcome {
                    Ok((point, bytes)) => {
                        if copies.as_mut().is_some_and(|copies| copies.push(point.id, &bytes).is_err()) {
                            // Nothing is lost but time.
                            copies = None;
                        }
                        found.points.push(point);
                    }
                    // Removed by somebody after it was listed.
                    Err(_) if self.backend.head(key)?.is_none() => {}
                    Err(reason) => {
                        found.damaged.push(DamagedPoint { path: self.backend.place(key), reason });
                    }
                }
            }
        }
        if let Some(Err(error)) = copies.as_mut().map(kept::Writing::finish) {
            kept::complain(self.dir(), &error);
        }
        found.points.sort_by_cached_key(|stored| (time::sort_key(&stored.point.created), stored.id));
        Ok(found)
    }

    /// Adds those points of a list of which there are copies.
    fn take_copies(&self, listed: &[Listed], found: &mut Vec<StoredPoint>) {
        let sizes: HashMap<PointId, u64> =
            listed.iter().filter_map(|object| Some((id_of(&object.key)?, object.size))).collect();
        let mut batch: Vec<(PointId, Vec<u8>)> = Vec::new();
        let sealed = self.sealed();
        let mut parse = |batch: &mut Vec<(PointId, Vec<u8>)>| {
            // What this program cannot read is read again from the store, which says why.
            found.par_extend(batch.par_drain(..).filter_map(|(id, bytes)| {
                let point = parse_point(&bytes, sealed).ok()?;
                Some(StoredPoint { id, point })
            }));
        };
        let kept = self.kept.take(&mut sizes.clone(), &mut |id, bytes| {
            batch.push((id, bytes));
            if batch.len() >= BATCH {
                parse(&mut batch);
            }
        });
        parse(&mut batch);
        self.kept.gather(&kept, &|id, size| sizes.get(&id) == Some(&size));
    }

    /// One restore point.
    ///
    /// # Errors
    /// [`Error::PointNotFound`], [`Error::PointDamaged`].
    pub fn point(&self, id: PointId) -> Result<StoredPoint, Error> {
        let key = point_key(id);
        match self.read_point(&key) {
            Ok(stored) => Ok(stored),
            Err(_) if self.backend.head(&key)?.is_none() => {
                Err(Error::PointNotFound { wanted: id.to_string() })
            }
            Err(reason) => Err(Error::PointDamaged { path: self.backend.place(&key), reason }),
        }
    }

    /// The restore point whose id begins with `prefix`, at least 4 hexadecimal digits.
    ///
    /// # Errors
    /// [`Error::PointNotFound`], [`Error::PointAmbiguous`], [`Error::PointDamaged`].
    pub fn find_point(&self, prefix: &str) -> Result<StoredPoint, Error> {
        let wanted = prefix.to_ascii_lowercase();
        let mut ids = Vec::new();
        if wanted.len() >= SHORTEST_PREFIX {
            for object in self.backend.list(POINTS)? {
                ids.extend(id_of(&object.key).filter(|id| id.to_string().starts_with(&wanted)));
            }
        }
        match ids[..] {
            [] => Err(Error::PointNotFound { wanted: prefix.chars().take(80).collect() }),
            [id] => self.point(id),
            [first, second, ..] => {
                Err(Error::PointAmbiguous { wanted: prefix.to_owned(), count: ids.len(), first, second })
            }
        }
    }

    /// The newest restore point of a VM.
    ///
    /// # Errors
    /// [`Error::Io`] where the points cannot be listed. Damaged ones are passed over.
    pub fn latest_point(&self, vm_uuid: &str) -> Result<Option<StoredPoint>, Error> {
        Ok(self.points()?.points.into_iter().rfind(|stored| stored.point.vm.uuid == vm_uuid))
    }

    /// Forgets a restore point. Its blocks stay.
    ///
    /// # Errors
    /// [`Error::PointNotFound`], [`Error::PointPinned`], [`Error::FloorHolds`], or what the file system says.
    pub fn remove_point(&self, id: PointId) -> Result<(), Error> {
        self.remove_point_at(id, SystemTime::now())
    }

    /// The same by a clock that the caller trusts.
    pub(crate) fn remove_point_at(&self, id: PointId, clock: SystemTime) -> Result<(), Error> {
        if self.is_pinned(id)? {
            return Err(Error::PointPinned { id });
        }
        let key = point_key(id);
        match self.backend.head(&key)? {
            Some(_) => {
                self.check_floor(id, clock)?;
                self.backend.delete(&key)
            }
            None => Err(Error::PointNotFound { wanted: id.to_string() }),
        }
    }

    /// Removes a point that the caller has just put, and that may not be whole.
    pub(super) fn take_back(&self, id: PointId) -> Result<(), Error> {
        self.backend.delete(&point_key(id))
    }

    /// Reads points, several at once where each has a long way.
    fn read_points(&self, keys: &[String]) -> Result<Vec<ReadPoint>, Error> {
        let few = keys.len() < FEW_POINTS;
        let sealed = self.sealed();
        let read = |key: &String| read_point(&*self.backend, key, sealed);
        if few || self.backend.parallel_reads() <= LOCAL_READS {
            return Ok(keys.iter().map(read).collect());
        }
        let readers = rayon::ThreadPoolBuilder::new()
            .num_threads(self.backend.parallel_reads())
            .build()
            .map_err(|error| Error::Worker { reason: error.to_string() })?;
        Ok(readers.install(|| keys.par_iter().map(read).collect()))
    }

    /// How its points are read.
    pub(super) fn sealed(&self) -> Sealing<'_> {
        self.is_encrypted().then(|| self.id_key.master())
    }

    /// Reads a restore point and checks it against its name.
    fn read_point(&self, key: &str) -> Result<StoredPoint, String> {
        read_point(&*self.backend, key, self.sealed()).map(|(point, _)| point)
    }
}

/// Whether points are encrypted, and with which key where it is known.
pub(super) type Sealing<'a> = Option<Option<&'a MasterKey>>;

/// A point with its bytes, or what is wrong with it.
type ReadPoint = Result<(StoredPoint, Vec<u8>), String>;

pub(crate) fn point_key(id: PointId) -> String {
    format!("{POINTS}{id}.json")
}

/// The id that a key says; `None` for any other key.
pub(super) fn id_of(key: &str) -> Option<PointId> {
    let id = named_by(key)?;
    (key == point_key(id)).then_some(id)
}

/// The point that the last part of a key names.
pub(super) fn named_by(key: &str) -> Option<PointId> {
    let id: PointId = file_name(key).strip_suffix(".json")?.parse().ok()?;
    (file_name(key) == format!("{id}.json")).then_some(id)
}

pub(super) fn read_point(backend: &dyn Backend, key: &str, sealed: Sealing<'_>) -> ReadPoint {
    let id = id_of(key).ok_or("its name is not a restore point's")?;
    let bytes = backend.get(key, MAX_POINT_SIZE).map_err(|error| sentence(&error))?;
    let found = PointId::of(&bytes);
    if found != id {
        return Err(format!("its bytes have the id {found}"));
    }
    Ok((StoredPoint { id, point: parse_point(&bytes, sealed)? }, bytes))
}

/// Reads a point's bytes, of any version that this program knows.
pub(super) fn parse_point(bytes: &[u8], sealed: Sealing<'_>) -> Result<RestorePoint, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let version: Version = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if !(RestorePoint::OLDEST_VERSION..=RestorePoint::VERSION).contains(&version.version) {
        return Err(format!("version {} is not known to this program; use a newer one", version.version));
    }
    match sealed {
        Some(key) => sealed_point::open(bytes, key),
        None => serde_json::from_slice(bytes).map_err(|error| error.to_string()),
    }
}
