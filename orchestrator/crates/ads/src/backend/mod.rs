//! Where a store keeps its objects: one trait, and the backends behind it.
//!
//! ```text
//! local     a directory: temporary file, sync, rename, sync of the directory; the lock
//! files     the file system's operations, one by one
//! s3        a bucket of S3-compatible object storage
//! remote    a store that `abd serve` offers on another machine
//! place     what a user writes, `/srv/store`, `s3://bucket/prefix` or `abd://host?key=…`, to a backend
//! probe     tries whether a backend gives what it must
//! ```
//!
//! # What a backend must give
//!
//! An object has a flat key of lower-case ASCII letters, digits, `.`, `-` and `/`, at most [`MAX_KEY`] bytes, and no two
//! keys of a store differ only in their case. When [`put`](Backend::put) returns, the object is durable and every
//! reader and lister sees it; before that, and where it fails, a reader sees all of it or nothing. Nothing more is
//! asked: a store writes an object once, names packs and points by the hash of their bytes, and needs neither locks nor
//! conditional writes to stay whole.

pub(crate) mod files;
pub(crate) mod local;
mod place;
mod probe;
mod remote;
mod s3;

pub use files::{FileOps, LocalFiles};
pub use local::LocalBackend;
pub use place::Place;
pub use probe::Probe;
pub use remote::{AbdAddress, DEFAULT_PORT, RemoteBackend, identity_in, use_identity_file};
pub use s3::{S3Address, S3Backend};

use crate::Error;
use crate::serve::Standing;
use seal::PackId;
use std::any::Any;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest key: `packs/`, two digits, a slash and 64 digits are 73 bytes; a point's is 76.
pub const MAX_KEY: usize = 128;

/// What the store is.
pub(crate) const CONFIG: &str = "config.json";
/// Packs are below it.
pub(crate) const PACKS: &str = "packs/";
/// Restore points are below it.
pub(crate) const POINTS: &str = "points/";
/// Pins are below it.
pub(crate) const PINS: &str = "pins/";
/// Below it are copies of damaged objects; a pack that is there is not part of the store any more.
pub(crate) const QUARANTINE: &str = "quarantine/";
/// Key slots of an encrypted store are below it.
pub(crate) const KEYS: &str = "keys/";
/// What is below it may be deleted when no job runs.
pub(crate) const TMP: &str = "tmp/";

/// Packs whose ends a backend with short ways reads at once: disks like some depth, memory stays small.
const PARALLEL_READS: usize = 8;

/// The key of a pack.
pub(crate) fn pack_key(id: PackId) -> String {
    let name = id.to_string();
    format!("{PACKS}{}/{name}", &name[..2])
}

/// The last part of a key.
pub(crate) fn file_name(key: &str) -> &str {
    key.rsplit('/').next().unwrap_or(key)
}

/// An object of a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its key. What another program left in a directory is listed too, also where its name could be no key.
    pub key: String,
    /// Its bytes.
    pub size: u64,
}

/// An object that is read in parts.
pub trait Object: Send + Sync + std::fmt::Debug {
    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] where the object ends before; else what the system said.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// Held while a store is used; see [`Backend::enter`].
pub type Presence = Box<dyn Any + Send + Sync>;

/// Where a store keeps its objects. All methods block, and can be called from any thread.
///
/// Errors name the operation and the object. Where an object is missing, [`Error::is_not_found`] says so.
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Where everything is, for people: a directory, or an address without its options.
    fn root(&self) -> PathBuf;

    /// Where an object stands, for people.
    fn place(&self, key: &str) -> PathBuf {
        self.root().join(key)
    }

    /// Writes an object, whole and durable, in place of one of the same key.
    ///
    /// # Errors
    /// [`Error::Full`], or what the system said. The object is then as before, or all of the new one is there.
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Writes an object unless one of its key is seen, and says whether it was written. This is no lock: of two who
    /// do so at once both may be told that they wrote.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, Error> {
        if self.head(key)?.is_some() {
            return Ok(false);
        }
        self.put(key, bytes).map(|()| true)
    }

    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// Not found; an object that is larger; what the system said.
    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error>;

    /// Opens an object for reading parts of it. Whether it exists may come out only then.
    ///
    /// # Errors
    /// Not found, or what the system said.
    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error>;

    /// An object's size; `None` where there is none.
    ///
    /// # Errors
    /// What the system said.
    fn head(&self, key: &str) -> Result<Option<u64>, Error>;

    /// The objects whose keys begin with `prefix`, which is empty or ends in a slash; sorted.
    ///
    /// # Errors
    /// What the system said.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error>;

    /// Removes an object for good. One that is not there is as good as removed.
    ///
    /// # Errors
    /// What the system said.
    fn delete(&self, key: &str) -> Result<(), Error>;

    /// Whether nothing is there at all, so that a store may be made.
    ///
    /// # Errors
    /// What the system said.
    fn is_vacant(&self) -> Result<bool, Error>;

    /// Makes ready for a new store, as far as that needs something.
    ///
    /// # Errors
    /// [`Error::Exists`] where something is in the way; what the system said.
    fn prepare(&self) -> Result<(), Error>;

    /// Says that the store is in use, and clears what dead writers left where that can be told. With `alone` fails where
    /// somebody else is seen. Backends on other machines see nobody: no promise of the store rests on this.
    ///
    /// # Errors
    /// [`Error::Busy`], or what the system said.
    fn enter(&self, alone: bool) -> Result<Presence, Error>;

    /// Whether a list or a look may be older than what another machine has written: network file systems remember directories
    /// for a minute.
    fn may_be_stale(&self) -> bool {
        false
    }

    /// What this client may do, where a server decides about that; `None` where the place itself does.
    ///
    /// # Errors
    /// What the server said.
    fn standing(&self) -> Result<Option<Standing>, Error> {
        Ok(None)
    }

    /// A directory of this machine that belongs to the place, below which caches may be kept; none where it is on another
    /// machine or cannot be written.
    fn cache_dir(&self) -> Option<PathBuf> {
        None
    }

    /// How many small reads are worth having under way at once.
    fn parallel_reads(&self) -> usize {
        PARALLEL_READS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_below_their_limit_and_have_no_upper_case() {
        let key = pack_key(PackId::of(b"x"));
        assert!(key.len() <= MAX_KEY);
        assert!(key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'/'));
        assert_eq!(file_name(&key).len(), 64);
    }
}
