//! What a repair did, or would do.

use crate::store::{Affected, PointId};
use blocks::ByteCount;
use seal::PackId;
use std::fmt;
use std::path::PathBuf;

/// How a repair is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Restore points that are damaged and can be had from nowhere leave the store; what only they need may be freed then.
    pub give_up_points: bool,
    /// Restore points that the second store has and this one has not come here too. They may have been removed on purpose.
    pub missing_points: bool,
}

/// Where something that is whole came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The store's own: values that could still be read.
    Itself,
    /// The second store.
    SecondStore,
}

/// One thing that was done, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// `config.json` was written anew.
    Config {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
        /// Where the values came from.
        from: Origin,
    },
    /// `gc/generation.json` could not be read and was written anew; nothing is lost by that.
    Generation {
        /// The file.
        path: PathBuf,
    },
    /// A damaged pack has the bytes again that its name says.
    PackWhole {
        /// The pack.
        id: PackId,
        /// What was wrong with it.
        reason: String,
        /// Where they came from.
        from: Origin,
    },
    /// A damaged pack is not part of the store any more.
    PackQuarantined {
        /// The pack.
        id: PackId,
        /// What was wrong with it.
        reason: String,
        /// Objects of it that were written into new packs.
        saved: u64,
        /// Objects of it that stand elsewhere too.
        elsewhere: u64,
        /// Objects of it that are lost with it; none where its index is damaged, so that nobody can count them.
        lost: Option<u64>,
    },
    /// A pack that was put into quarantine earlier was removed: nobody uses it any more. Its copy stays in quarantine.
    PackRemoved {
        /// The pack.
        id: PackId,
    },
    /// A pack in quarantine has the bytes again that its name says, and is part of the store again.
    PackReleased {
        /// The pack.
        id: PackId,
    },
    /// Blocks and tree nodes that were lost came from a second store.
    Fetched {
        /// Blocks.
        blocks: u64,
        /// Tree nodes.
        nodes: u64,
    },
    /// A damaged or missing restore point is whole again.
    PointBack {
        /// The point.
        id: PointId,
        /// What was wrong with it.
        reason: String,
        /// Where it came from.
        from: Origin,
    },
    /// A damaged restore point left the store.
    PointQuarantined {
        /// The file.
        path: PathBuf,
        /// What was wrong with it.
        reason: String,
    },
    /// A damaged restore point stays as it is: nothing has it, and what it needs stays in the store with it.
    PointLeft {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// How far a repair is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairProgress {
    /// Packs read.
    pub packs_done: u64,
    /// Packs to read.
    pub packs: u64,
    /// Their bytes, those that are done.
    pub bytes_done: ByteCount,
    /// Their bytes.
    pub bytes: ByteCount,
}

/// The result of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Packs that were read.
    pub packs: u64,
    /// Restore points that were gone through.
    pub points: u64,
    /// What was done, in this order.
    pub deeds: Vec<Deed>,
    /// Bytes of packs that were written.
    pub written: ByteCount,
    /// What cannot be read after it. The next backup that meets the same blocks ships them again.
    pub affects: Vec<Affected>,
    /// Ranges that were left out of `affects`; their disks are in it.
    pub more_affected: u64,
    /// Damaged packs that are in quarantine and still at their old places too.
    pub waiting: u64,
    /// Who may still read there, in words.
    pub waits_for: Vec<String>,
}

impl RepairReport {
    /// Whether every restore point can be read in full.
    pub fn is_whole(&self) -> bool {
        let left = |deed: &Deed| matches!(deed, Deed::PointLeft { .. } | Deed::PointQuarantined { .. });
        self.affects.is_empty() && !self.deeds.iter().any(left)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Itself => "what could still be read of it",
            Self::SecondStore => "the second store",
        })
    }
}

/// One sentence.
impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { path, reason, from } => {
                write!(f, "{}: written anew from {from}; it was damaged: {reason}", path.display())
            }
            Self::Generation { path } => write!(f, "{}: written anew; it was damaged", path.display()),
            Self::PackWhole { id, reason, from } => {
                write!(f, "pack {id}: made whole from {from}; it was damaged: {reason}")
            }
            Self::PackQuarantined { id, reason, saved, elsewhere, lost } => {
                write!(f, "pack {id}: put into quarantine, {saved} objects of it saved into new packs")?;
                if *elsewhere > 0 {
                    write!(f, ", {elsewhere} stand elsewhere too")?;
                }
                match lost {
                    Some(0) => {}
                    Some(lost) => write!(f, ", {lost} lost")?,
                    None => f.write_str(", what else was in it nobody can tell")?,
                }
                write!(f, "; it is damaged: {reason}")
            }
            Self::PackRemoved { id } => {
                write!(f, "pack {id}: removed from its place, nobody reads there any more; quarantine has it")
            }
            Self::PackReleased { id } => write!(f, "pack {id}: is whole again, and leaves the quarantine"),
            Self::Fetched { blocks, nodes } => {
                write!(f, "{blocks} blocks and {nodes} tree nodes that were lost: from the second store")
            }
            Self::PointBack { id, reason, from } => {
                write!(f, "restore point {}: written anew from {from}; it was damaged: {reason}", id.short())
            }
            Self::PointQuarantined { path, reason } => {
                write!(f, "{}: put into quarantine; it is damaged: {reason}", path.display())
            }
            Self::PointLeft { path, reason } => {
                write!(f, "{}: left as it is, nothing has a copy of it: {reason}", path.display())
            }
        }
    }
}
