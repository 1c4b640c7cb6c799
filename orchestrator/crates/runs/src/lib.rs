//! An index of 16-byte prefixes of ids to places in packs: a cache on disk, in little memory.
//!
//! Owns: the files `*.run1` in its directory, their format (`format`) and their life. Knows nothing of stores: packs
//! have an id and a number that the owner gave them for as long as the process lives.
//!
//! Promises: what [`Index::find`] visits was told to the index, by this process or by the one that wrote a run,
//! and every pack that was told or attached is found; a run that is damaged is an error that names it, never a wrong
//! answer; memory is bounded by [`Limits`] plus what is said below; a run appears under its name whole and synced. Any
//! number of processes may use one directory at once: a run never changes, and one that is removed while it is open
//! stays readable. There is no lock on which anything rests.
//!
//! Never: maps files into memory; says what is in a pack that its owner has not numbered: whoever opens a run says
//! which of its packs are still there.
//!
//! # How it works
//!
//! What is new lies in a hash table. When that is full it becomes a run: sorted, immutable, with a filter. Four runs of
//! about the same length become one, so that there are few; large ones in a thread of their own. A question asks the
//! table, then each run's filter, and reads a page of 4 KiB where a filter says that the object may be there. After two
//! hits close to each other in a pack its neighbourhood is read, and the next questions read no page.
//!
//! # Memory
//!
//! The table takes 28 to 35 bytes an object and holds [`Limits::table`] objects, twice that while a run is written. The
//! neighbourhood takes as much an object, for [`Limits::near`] of them. A run takes 1.2 bytes an object for its filter
//! and 16 bytes a pack, and its filter twice while it becomes part of a longer one. Without a directory there are no runs,
//! and the table grows as long as there is something to add.

#![forbid(unsafe_code)]

mod files;
mod filter;
mod format;
mod index;
mod near;
mod run;
mod table;
mod writer;

pub use files::{Files, SystemFiles};
pub use index::{Damaged, Index, Numbers};
pub use run::Found;

/// The first 16 bytes of an id. Ids are hashes: 128 bits name an object.
pub type Prefix = [u8; 16];

/// Number of a pack that is not there.
pub const NOWHERE: u32 = u32::MAX;

/// Ending of a run's file; another version of the format has another one.
const RUN_ENDING: &str = "run1";

/// Where an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Number of the pack in this process.
    pub pack: u32,
    /// Position in the pack's own index.
    pub entry: u32,
    /// Whether it has the full size of its kind.
    pub whole: bool,
}

/// A pack, for who must know whether it is still the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackAbout {
    /// Its id.
    pub id: [u8; 32],
    /// Its bytes.
    pub size: u32,
    /// Objects in it.
    pub entries: u32,
    /// What it holds; the owner's word.
    pub kind: u8,
}

/// How much memory an index may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Objects in the table before they become a run.
    pub table: usize,
    /// Objects in the neighbourhood.
    pub near: usize,
}

impl Default for Limits {
    /// A million objects each, 64 GiB of blocks: about 70 MiB in all.
    fn default() -> Self {
        Self { table: 1 << 20, near: 1 << 20 }
    }
}
