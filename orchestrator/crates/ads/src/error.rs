//! Why the store or its service did not do what was asked.

use crate::store::PointId;
use blocks::ByteOffset;
use seal::{BlockId, NodeId, PackId, TreeId};
use std::io;
use std::path::{Path, PathBuf};

/// What a caller can do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no store: make one, or name the right place.
    NotAStore,
    /// Something is there already.
    Exists,
    /// Written by a later version: use a newer program.
    Unsupported,
    /// Another process has it for itself: try later.
    Busy,
    /// The file system is full: free space or add some.
    Full,
    /// Stored bytes are not what they were: run a verification.
    Damaged,
    /// A block or node that should be there is not.
    Missing,
    /// The pack that was handed in is wrong; the store is untouched.
    BadPack,
    /// No such restore point.
    NotFound,
    /// Several restore points fit.
    Ambiguous,
    /// The request itself is wrong.
    Refused,
    /// The file system or the network said no.
    Io,
    /// The object storage said no, or cannot be reached: check its address, its bucket and the credentials.
    Remote,
    /// The store is encrypted: say what opens it.
    Locked,
    /// That does not open it.
    WrongKey,
}

/// Every error of this crate. [`kind`](Error::kind) says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No `config.json`.
    #[error("{} is not a store: it has no config.json", dir.display())]
    NotAStore {
        /// The directory.
        dir: PathBuf,
    },
    /// `init` of a directory that is not empty.
    #[error("{} cannot become a store: {reason}", dir.display())]
    Exists {
        /// The directory.
        dir: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// `config.json` is not readable as one.
    #[error("{} is damaged: {reason}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// A version or an encryption that this program does not know.
    #[error("{} says {what}, which this program does not know; use a newer one", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The member and its value.
        what: String,
    },
    /// The store's lock is held by somebody who needs it alone.
    #[error("store {} is locked by another process", dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// No space, or no quota.
    #[error("store {} is full", dir.display())]
    Full {
        /// The store's directory.
        dir: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file operation failed.
    #[error("{what} {}", path.display())]
    Io {
        /// The verb.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A request to object storage failed, after it was tried again where that makes sense.
    #[error("{what} {}", place.display())]
    Remote {
        /// The verb.
        what: &'static str,
        /// The object's address.
        place: PathBuf,
        /// What the server said.
        source: io::Error,
    },
    /// An address of object storage that is none.
    #[error("'{text}' is no address of a store: {reason}")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A backend that does not do what a store needs.
    #[error("{} cannot hold a store: {what}", place.display())]
    Unfit {
        /// The directory or the address.
        place: PathBuf,
        /// What it did.
        what: &'static str,
    },
    /// A pack that was handed in is not what it claims; nothing was kept.
    #[error("pack {id} is refused")]
    BadPack {
        /// The name it came with.
        id: PackId,
        /// Which check failed.
        source: seal::Error,
    },
    /// A stored object does not hold what its name says.
    #[error("pack {pack} of the store is damaged")]
    Damaged {
        /// The pack.
        pack: PackId,
        /// Which check failed.
        source: seal::Error,
    },
    /// An object failed a check outside of any pack.
    #[error("a tree does not hold together")]
    Tree(#[from] seal::Error),
    /// A block that the index does not know.
    #[error("block {id} is not in the store")]
    NoBlock {
        /// The block.
        id: BlockId,
    },
    /// A node that the index does not know.
    #[error("tree node {id} is not in the store")]
    NoNode {
        /// The node.
        id: NodeId,
    },
    /// A tree that the store cannot serve in full.
    #[error("the tree is not whole at {offset} of the disk: {reason}")]
    NotWhole {
        /// Where on the disk.
        offset: ByteOffset,
        /// What is missing or wrong.
        reason: String,
    },
    /// A restore point whose disk is not in the store.
    #[error("no restore point can be made: disk {vdi} is not finished")]
    NotFinished {
        /// The disk.
        vdi: String,
        /// Why not.
        source: Box<Error>,
    },
    /// A restore point that contradicts itself or the store.
    #[error("no restore point can be made: {reason}")]
    PointRefused {
        /// What is wrong.
        reason: String,
    },
    /// A restore point that is pinned cannot be removed.
    #[error("restore point {id} is pinned")]
    PointPinned {
        /// The point.
        id: PointId,
    },
    /// A collector took a job for dead and may have removed what it relied on.
    #[error("{}: the job was taken for dead and the store was cleaned meanwhile; there is no restore point", dir.display())]
    LeaseLost {
        /// The store.
        dir: PathBuf,
    },
    /// Nothing is removed while somebody may need what cannot be read.
    #[error("nothing is removed: {reason}")]
    NotCollected {
        /// What is in the way.
        reason: String,
    },
    /// A collector might not see who else uses the store.
    #[error("{} is on a network file system, which may not show at once what another machine does there", dir.display())]
    StaleLists {
        /// The store.
        dir: PathBuf,
    },
    /// A pin that cannot be made.
    #[error("the restore point cannot be pinned: {reason}")]
    PinRefused {
        /// What is wrong.
        reason: String,
    },
    /// The store is not the one that was opened any more.
    #[error("{} holds another store than the one that was opened; nothing was committed", dir.display())]
    Changed {
        /// The directory or the address.
        dir: PathBuf,
    },
    /// A restore point's file is not what its name says.
    #[error("restore point {} is damaged: {reason}", path.display())]
    PointDamaged {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
    /// No restore point has this id.
    #[error("no restore point '{wanted}'")]
    PointNotFound {
        /// What was asked for.
        wanted: String,
    },
    /// Several restore points begin with these digits.
    #[error("'{wanted}' fits {count} restore points, for instance {first} and {second}; give more digits")]
    PointAmbiguous {
        /// What was asked for.
        wanted: String,
        /// How many fit.
        count: usize,
        /// One of them.
        first: PointId,
        /// Another one.
        second: PointId,
    },
    /// A tree whose id is not the one written beside it.
    #[error("the tree has the id {found}, the restore point says {expected}")]
    TreeId {
        /// What the restore point says.
        expected: TreeId,
        /// What the tree gives.
        found: TreeId,
    },
    /// A listening address could not be had.
    #[error("listen on {address}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// TLS could not be set up.
    #[error("set up TLS")]
    Tls(#[from] pin::Error),
    /// A job that cannot be opened, or a key that cannot be admitted.
    #[error("job {job}: {reason}")]
    Job {
        /// The job.
        job: String,
        /// What is wrong.
        reason: String,
    },
    /// The threads or the memory of this process gave out.
    #[error("the store's worker stopped: {reason}")]
    Worker {
        /// What happened.
        reason: String,
    },
    /// A lease that a server does not keep.
    #[error("the lease is refused: {reason}")]
    LeaseRefused {
        /// What is wrong with it.
        reason: String,
    },
    /// A restore point that is younger than anything that is removed here.
    #[error("restore point {id} stays until {until}: the store keeps everything for {days} days")]
    FloorHolds {
        /// The point.
        id: PointId,
        /// The store's floor.
        days: u32,
        /// Until when.
        until: String,
    },
    /// A floor is not lowered.
    #[error("the store keeps everything for {found} days, and that is only raised, not set to {wanted}; who must, removes {} where the store is", path.display())]
    FloorStands {
        /// The object that says so.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What was wanted.
        wanted: u32,
    },
    /// What says how long everything is kept cannot be read.
    #[error("{} cannot be read, so that no restore point is removed: {reason}", path.display())]
    FloorUnreadable {
        /// The object.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The server that holds the store does not let this machine do that.
    #[error("the server does not {what} {} for this machine: {reason}", place.display())]
    Denied {
        /// The verb.
        what: &'static str,
        /// The object's address.
        place: PathBuf,
        /// What the server said.
        reason: String,
    },
    /// A file with a key that cannot be used.
    #[error("the key in {} cannot be used: {reason}", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A second store that cannot help this one.
    #[error("{} cannot give anything back to this store: {reason}", dir.display())]
    OtherStore {
        /// The second store.
        dir: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Nothing is changed where it might do harm.
    #[error("nothing is repaired: {reason}")]
    NotRepaired {
        /// What is in the way.
        reason: String,
    },
    /// Restore points can be copied only between places of one store.
    #[error("{} holds another store, {found}; restore points of store {expected} cannot be copied there", dir.display())]
    AnotherStore {
        /// The directory or the address.
        dir: PathBuf,
        /// What is there.
        found: uuid::Uuid,
        /// What is to be copied.
        expected: uuid::Uuid,
    },
    /// A store cannot be copied onto itself.
    #[error("{} is the store itself, under this name or another", dir.display())]
    SamePlace {
        /// The directory or the address.
        dir: PathBuf,
    },
    /// Whoever wanted it wants it no more.
    #[error("stopped on request")]
    Interrupted,
    /// No restore point is of this VM.
    #[error("no restore point is of a VM '{vm}'")]
    NoPointOf {
        /// Name or uuid.
        vm: String,
    },
    /// An encrypted store, and no key.
    #[error("store {} is encrypted, and its key is not at hand", dir.display())]
    KeyNeeded {
        /// The store.
        dir: PathBuf,
    },
    /// What was given does not open the store.
    #[error("store {} stays locked: {reason}", dir.display())]
    WrongKey {
        /// The store.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// A key slot that cannot be made or removed, or something that is no key.
    #[error("{reason}")]
    KeyRefused {
        /// What is wrong.
        reason: String,
    },
    /// A key slot's file is not what was written.
    #[error("key slot {} is damaged: {reason}", path.display())]
    BadSlot {
        /// The file.
        path: PathBuf,
        /// Which check failed.
        reason: String,
    },
}

impl Error {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAStore { .. } => ErrorKind::NotAStore,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Busy { .. } => ErrorKind::Busy,
            Self::Full { .. } => ErrorKind::Full,
            Self::Config { .. }
            | Self::Damaged { .. }
            | Self::Tree(_)
            | Self::TreeId { .. }
            | Self::FloorUnreadable { .. }
            | Self::BadSlot { .. }
            | Self::PointDamaged { .. } => ErrorKind::Damaged,
            Self::KeyNeeded { .. } => ErrorKind::Locked,
            Self::WrongKey { .. } => ErrorKind::WrongKey,
            Self::NoBlock { .. } | Self::NoNode { .. } | Self::NotWhole { .. } | Self::NotFinished { .. } => {
                ErrorKind::Missing
            }
            Self::BadPack { .. } => ErrorKind::BadPack,
            Self::PointNotFound { .. } | Self::NoPointOf { .. } => ErrorKind::NotFound,
            Self::PointAmbiguous { .. } => ErrorKind::Ambiguous,
            Self::PointRefused { .. }
            | Self::PinRefused { .. }
            | Self::PointPinned { .. }
            | Self::LeaseLost { .. }
            | Self::StaleLists { .. }
            | Self::Job { .. }
            | Self::Address { .. }
            | Self::Changed { .. }
            | Self::Denied { .. }
            | Self::LeaseRefused { .. }
            | Self::FloorHolds { .. }
            | Self::FloorStands { .. }
            | Self::KeyFile { .. }
            | Self::KeyRefused { .. }
            | Self::OtherStore { .. }
            | Self::AnotherStore { .. }
            | Self::SamePlace { .. }
            | Self::Interrupted => ErrorKind::Refused,
            Self::NotRepaired { .. } => ErrorKind::Damaged,
            Self::NotCollected { .. } => ErrorKind::Damaged,
            Self::Remote { .. } | Self::Unfit { .. } => ErrorKind::Remote,
            Self::Io { .. } | Self::Listen { .. } | Self::Tls(_) | Self::Worker { .. } => ErrorKind::Io,
        }
    }

    /// Whether it says that an object is missing, and nothing worse.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Io { source, .. } | Self::Remote { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// An error of a file operation; a full file system becomes [`Error::Full`] of the store `dir`.
    pub(crate) fn io(what: &'static str, path: &Path, dir: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { dir: dir.to_owned(), source }
            }
            _ => Self::Io { what, path: path.to_owned(), source },
        }
    }
}

/// An error and all of its causes in one sentence, for answers and findings that have room for one.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
