//! A store, wherever its backend keeps the objects.
//!
//! ```text
//! config     what the store is            cache    what was used lately
//! packs      the packs and their indexes  index    where the index from id to place is kept
//! nodes      reading blocks and trees     tree     proof that a tree is whole
//! points     restore points               verify   what is damaged, and who suffers
//! pins       points that must stay         statistics  what VMs and points take
//! floor      how long all points stay      admit       what others send through a server
//! known      points in short
//! kept       copies of points that were read before
//! repair     mends what can be, and says what is lost
//! gc         freeing what nobody needs     copy     the same store in another place
//! keys       who can open it               sealed_point  restore points of an encrypted store
//! ```

mod admit;
mod cache;
mod config;
mod copy;
mod floor;
mod gc;
mod index;
mod kept;
mod keys;
mod known;
mod nodes;
mod packs;
mod pins;
mod points;
mod reach;
mod repair;
mod report;
mod sealed_point;
mod statistics;
mod time;
mod tree;
mod verify;

pub use config::FORMAT_VERSION;
pub use copy::{CopiedPoint, CopyOptions, CopyProgress, CopyReport, OmittedPoint};
pub use gc::{GcOptions, GcReport, Lease};
pub(crate) use gc::{MAX_COUNTER, MAX_LEASE, lease_named};
pub use index::{CACHE_VARIABLE, IndexOptions};
pub use keys::{Access, DamagedSlot, KdfCost, KeySlot, KeySlots, NewAccess, Passphrase, SlotKind};
pub use nodes::NodeReader;
pub use packs::SkippedPack;
pub use pins::Pin;
pub(crate) use pins::{MAX_PIN_SIZE, pin_key};
pub use points::{
    DamagedPoint, DiskKind, DiskMode, PointDisk, PointId, PointPool, PointVm, Points, RestorePoint,
    StoredPoint,
};
pub(crate) use points::{MAX_POINT_SIZE, point_key};
pub use repair::{Deed, Origin, RepairOptions, RepairProgress, RepairReport};
pub use report::{Affected, Damage, Depth, Finding, Scope, VerifyProgress, VerifyReport};
pub use statistics::{PointStatistics, Statistics, VmStatistics};
pub use time::timestamp;

use crate::Error;
use crate::backend::{Backend, CONFIG, FileOps, LocalBackend, Place, Presence, Probe, pack_key};
use crate::serve::Standing;
use blocks::ByteCount;
use cache::Generations;
use config::Config;
use packs::Packs;
use rayon::ThreadPool;
use seal::{BlockId, IdKey, Node, NodeId, PackId, PackIndex, PackKind, TreeId};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use uuid::Uuid;

/// A store, open for reading and adding. All methods block.
pub struct Store {
    pub(crate) backend: Arc<dyn Backend>,
    root: PathBuf,
    config: Config,
    pub(crate) id_key: IdKey,
    pub(crate) packs: Packs,
    skipped: Vec<SkippedPack>,
    kept: kept::KeptPoints,
    node_cache: Mutex<Generations<NodeId, Arc<Node>>>,
    /// Trees proven whole by this process.
    finished: Mutex<HashSet<TreeId>>,
    /// What this process knows of collections.
    generation: gc::Generation,
    /// Restore points in short.
    known: Mutex<known::KnownPoints>,
    /// Threads that walk trees, started with the first one.
    walkers: OnceLock<ThreadPool>,
    /// The key slot that opened it.
    opened_by: Option<Uuid>,
    _presence: Presence,
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Packs whose index could be read.
    pub packs: u64,
    /// Their bytes.
    pub bytes: ByteCount,
    /// Distinct blocks in them.
    pub blocks: u64,
    /// Distinct tree nodes in them.
    pub nodes: u64,
    /// Files below `packs/` that could not be used.
    pub skipped: u64,
}

impl Store {
    /// Makes a store in `dir`, which is absent or empty, and opens it. Directories and files are readable
    /// by their owner only.
    ///
    /// # Errors
    /// [`Error::Exists`] where something is in the way, [`Error::Full`], or what the file system says.
    pub fn init(dir: &Path) -> Result<Self, Error> {
        Self::init_on(Arc::new(LocalBackend::new(dir)))
    }

    /// [`init`](Self::init) with other writing operations.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_with(dir: &Path, ops: Arc<dyn FileOps>) -> Result<Self, Error> {
        Self::init_on(Arc::new(LocalBackend::with_ops(dir, ops)))
    }

    /// Makes a store at a place where nothing is, and opens it. What is on another machine is probed first.
    ///
    /// # Errors
    /// As [`init`](Self::init); [`Error::Unfit`] where the place does not do what a store needs.
    pub fn init_at(place: &Place) -> Result<Self, Error> {
        let backend = place.backend()?;
        if place.is_remote() {
            backend.prepare()?;
            Probe::run(&*backend)?;
        }
        Self::init_on(backend)
    }

    /// Makes a store on a backend on which nothing is, and opens it.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_on(backend: Arc<dyn Backend>) -> Result<Self, Error> {
        {
            let _alone = backend.enter(true)?;
            backend.prepare()?;
            put_config(&*backend, &Config::generate(None)?)?;
        }
        Self::open_on(backend)
    }

    /// Opens the store in `dir` and loads the index of every pack that the store's own index does not tell yet. Packs that
    /// cannot be read are left out and named by [`skipped_packs`](Self::skipped_packs); their blocks count as unknown.
    ///
    /// # Errors
    /// [`Error::NotAStore`], [`Error::Config`], [`Error::Unsupported`], [`Error::Busy`], or what the file
    /// system says.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_on(Arc::new(LocalBackend::new(dir)))
    }

    /// [`open`](Self::open) with other writing operations.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(dir: &Path, ops: Arc<dyn FileOps>) -> Result<Self, Error> {
        Self::open_on(Arc::new(LocalBackend::with_ops(dir, ops)))
    }

    /// Opens the store at a place.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_at(place: &Place) -> Result<Self, Error> {
        Self::open_on(place.backend()?)
    }

    /// Opens the store on a backend. One that is encrypted is locked at first: see [`unlock`](Self::unlock).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(backend: Arc<dyn Backend>) -> Result<Self, Error> {
        Self::open_indexed(backend, &IndexOptions::default())
    }

    /// [`open_on`](Self::open_on) with another way to keep the index.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_indexed(backend: Arc<dyn Backend>, options: &IndexOptions) -> Result<Self, Error> {
        let config = Config::read(&*backend)?;
        let id = config.id;
        let presence = backend.enter(false)?;
        // Before the packs: what is removed after this is noticed.
        let generation = gc::generation(&*backend)?;
        let cache = options.cache_of(&*backend, config.id);
        let encrypted = config.master_check.is_some();
        let (packs, skipped) = Packs::load(backend.clone(), config.id, encrypted, options, cache.as_deref())?;
        let id_key = match encrypted {
            false => IdKey::new(&config.id_key),
            true => IdKey::locked(&config.id_key),
        };
        Ok(Self {
            id_key,
            config,
            packs,
            skipped,
            kept: kept::KeptPoints::new(cache, id),
            node_cache: Mutex::new(Generations::new(nodes::CACHED_NODES)),
            finished: Mutex::default(),
            generation: Mutex::new(generation),
            known: Mutex::default(),
            walkers: OnceLock::new(),
            opened_by: None,
            root: backend.root(),
            backend,
            _presence: presence,
        })
    }

    /// The store's directory, or its address in object storage.
    pub fn dir(&self) -> &Path {
        &self.root
    }

    /// Tries whether the place of the store still does what a store needs. Writes and removes an object under `tmp/`.
    ///
    /// # Errors
    /// What the backend says, or [`Error::Unfit`] with what it did wrong.
    pub fn probe(&self) -> Result<Probe, Error> {
        Probe::run(&*self.backend)
    }

    /// What this machine may do, where a server decides about that.
    ///
    /// # Errors
    /// What the server said.
    pub fn standing(&self) -> Result<Option<Standing>, Error> {
        self.backend.standing()
    }

    /// The store's own id.
    pub fn id(&self) -> Uuid {
        self.config.id
    }

    /// The keys that ids are made with.
    pub fn id_key(&self) -> &IdKey {
        &self.id_key
    }

    /// The secret that an order carries.
    pub fn id_key_bytes(&self) -> wire::IdKeyBytes {
        wire::IdKeyBytes(self.config.id_key)
    }

    /// How much the store holds.
    pub fn usage(&self) -> Usage {
        let (packs, bytes) = self.packs.totals();
        Usage {
            packs,
            bytes,
            blocks: self.packs.count(PackKind::Data),
            nodes: self.packs.count(PackKind::Tree),
            skipped: self.skipped.len() as u64,
        }
    }

    /// Every pack whose index could be read, with its size.
    pub fn pack_sizes(&self) -> Vec<(PackId, ByteCount)> {
        let records = self.packs.numbers().into_iter().map(|number| self.packs.record(number));
        records.map(|record| (record.id, ByteCount::new(record.size.into()))).collect()
    }

    /// Files below `packs/` that could not be used when the store was opened.
    pub fn skipped_packs(&self) -> &[SkippedPack] {
        &self.skipped
    }

    /// Whether a block is in the store, and will stay while the caller's lease lasts.
    pub fn has_block(&self, id: &BlockId) -> bool {
        self.packs.find_lasting(PackKind::Data, id.as_bytes()).is_some()
    }

    /// Whether a tree node is in the store.
    pub fn has_node(&self, id: &NodeId) -> bool {
        self.packs.find(PackKind::Tree, id.as_bytes()).is_some()
    }

    /// Name of the pack that holds a block, where it will stay.
    pub(crate) fn pack_of(&self, id: &BlockId) -> Option<PackId> {
        Some(self.packs.record(self.packs.find_lasting(PackKind::Data, id.as_bytes())?.pack).id)
    }

    /// Forgets which trees are whole, and nodes that are in memory but perhaps not in the store any more.
    fn forget_proofs(&self) {
        self.finished.lock().expect("no panic while it is locked").clear();
        *self.node_cache.lock().expect("no panic while it is locked") = Generations::new(nodes::CACHED_NODES);
    }

    fn walkers(&self) -> Result<&ThreadPool, Error> {
        if let Some(walkers) = self.walkers.get() {
            return Ok(walkers);
        }
        let walkers = rayon::ThreadPoolBuilder::new()
            .build()
            .map_err(|error| Error::Worker { reason: error.to_string() })?;
        Ok(self.walkers.get_or_init(|| walkers))
    }

    /// Writes a checked pack durably and makes it known.
    pub(crate) fn keep_pack(&self, id: PackId, bytes: &[u8], index: &PackIndex) -> Result<(), Error> {
        self.backend.put(&pack_key(id), bytes)?;
        self.packs.add(id, u32::try_from(bytes.len()).expect("bounded by MAX_PACK_SIZE"), index);
        Ok(())
    }
}

/// Makes a place a store. Last of all: until it is there, the place is none, and `init` can be run again.
fn put_config(backend: &dyn Backend, config: &Config) -> Result<(), Error> {
    match backend.put_new(CONFIG, &config.to_bytes())? {
        true => Ok(()),
        false => {
            let reason = "somebody else made a store there just now".into();
            Err(Error::Exists { dir: backend.root(), reason })
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({} at {})", self.id(), self.dir().display())
    }
}
