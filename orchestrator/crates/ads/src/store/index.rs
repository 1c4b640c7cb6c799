//! Where each block or node stands: the index of a store, kept beside it or in a cache directory of this machine.
//!
//! What is there is a cache: it tells which of the packs that were listed need not be read to know what is in them. A
//! pack is named by the hash of its bytes, so that what was true of it stays true; one that is not listed any more, or has
//! another size, is not believed to be there whatever the index says.

pub(crate) use runs::Location;

use crate::backend::Backend;
use runs::{Index, Limits};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Name of the environment variable that says where the indexes of stores are kept which cannot have theirs beside them.
pub const CACHE_VARIABLE: &str = "ABD_CACHE_DIR";

/// Packs whose ends are read one by one each time before they get a run of their own: 2 GiB of blocks, which a disk tells
/// in some milliseconds.
const FEWEST_PACKS: u64 = 128;

/// How the index of a store is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexOptions {
    /// The directory for indexes of stores that are on other machines or cannot be written; where none is said,
    /// `ABD_CACHE_DIR`, `/var/cache/abd` for root, else `abd` below `$XDG_CACHE_HOME` or `~/.cache`.
    pub directory: Option<PathBuf>,
    /// Objects that are held in memory before they are written.
    pub table: usize,
    /// Objects of packs that were asked about lately.
    pub near: usize,
    /// Packs that may be unknown to the index when a store is opened; with more of them it is written.
    pub fewest_packs: u64,
}

impl Default for IndexOptions {
    fn default() -> Self {
        let Limits { table, near } = Limits::default();
        Self { directory: None, table, near, fewest_packs: FEWEST_PACKS }
    }
}

impl IndexOptions {
    /// Where the cache of a store is: beside it, else in a directory for this store at this place.
    pub(crate) fn cache_of(&self, backend: &dyn Backend, store: Uuid) -> Option<PathBuf> {
        let dir = backend.cache_dir().or_else(|| {
            let place = blake3::hash(backend.root().as_os_str().as_encoded_bytes()).to_hex();
            let name = format!("{}-{}", store.simple(), &place.as_str()[..16]);
            Some(self.directory.clone().or_else(default_directory)?.join("stores").join(name))
        });
        Some(dir?.join("index"))
    }

    pub(crate) fn index(&self, cache: Option<&Path>, store: Uuid) -> Index {
        let limits = Limits { table: self.table, near: self.near };
        Index::new(*store.as_bytes(), cache, limits)
    }
}

/// None where nobody has a home: then the index is in memory only.
fn default_directory() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(directory) = variable(CACHE_VARIABLE) {
        return Some(directory);
    }
    if rustix::process::geteuid().is_root() {
        return Some("/var/cache/abd".into());
    }
    let cache = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
    Some(cache.or_else(|| Some(variable("HOME")?.join(".cache")))?.join("abd"))
}
