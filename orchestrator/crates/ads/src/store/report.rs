//! What a verification found: what is damaged, and which restore points, disks and offsets suffer from it.

use super::points::PointId;
use blocks::{ByteCount, ByteOffset};
use seal::{BlockId, NodeId, PackId, TreeId};
use std::fmt;
use std::path::PathBuf;

/// Damaged objects of one pack that are listed by id; the rest is counted.
const MAX_LISTED: usize = 100;
/// Ranges of one disk that are listed for one finding; the rest is counted. Every disk that suffers has at
/// least one.
const MAX_RANGES: usize = 64;

/// What to verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every file of the store.
    All,
    /// These restore points and the packs that they need.
    Points(Vec<PointId>),
}

/// How closely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Every index and every tree; blocks only by being there. Reads about 1 % of the store.
    Structure,
    /// Every byte: packs are hashed, every block is opened and hashed.
    EveryByte,
}

/// How far a verification is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifyProgress {
    /// Packs checked.
    pub packs_done: u64,
    /// Packs to check.
    pub packs: u64,
    /// Their bytes, those that are done.
    pub bytes_done: ByteCount,
    /// Their bytes.
    pub bytes: ByteCount,
    /// Disks of restore points walked.
    pub disks_done: u64,
    /// Disks to walk.
    pub disks: u64,
}

/// What is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// `config.json`.
    Config {
        /// The file.
        path: PathBuf,
    },
    /// A pack as a whole: gone, cut off, or its index is damaged.
    Pack {
        /// Its name.
        id: PackId,
        /// The file.
        path: PathBuf,
    },
    /// Objects in a pack whose index is whole.
    Objects {
        /// The pack.
        pack: PackId,
        /// The first damaged blocks.
        blocks: Vec<BlockId>,
        /// The first damaged nodes.
        nodes: Vec<NodeId>,
        /// How many more there are.
        more: u64,
    },
    /// A disk that needs objects which no readable pack has, or that does not hold together.
    Tree {
        /// The disk's tree.
        id: TreeId,
    },
    /// A restore point's file.
    Point {
        /// The file.
        path: PathBuf,
    },
    /// A pin's file; the point stays all the same.
    Pin {
        /// The file.
        path: PathBuf,
    },
    /// A key slot's file: who has what it was for cannot open the store with it.
    KeySlot {
        /// The file.
        path: PathBuf,
    },
    /// A file that does not belong there; nothing is lost.
    StrayFile {
        /// The file.
        path: PathBuf,
    },
}

/// A stretch of a disk that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affected {
    /// The restore point.
    pub point: PointId,
    /// Its VM's name.
    pub vm: String,
    /// The disk.
    pub vdi: String,
    /// The disk's position on the VM.
    pub userdevice: u16,
    /// First byte.
    pub offset: ByteOffset,
    /// How many bytes.
    pub size: ByteCount,
}

/// One damaged thing and everything that suffers from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What is damaged.
    pub damage: Damage,
    /// Which check failed.
    pub reason: String,
    /// What cannot be read because of it, neighbours merged.
    pub affects: Vec<Affected>,
    /// Ranges that were left out of `affects`; their disks are in it.
    pub more_affected: u64,
}

/// The result of a verification.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Restore points looked at.
    pub points: u64,
    /// Their disks.
    pub disks: u64,
    /// Packs checked.
    pub packs: u64,
    /// Blocks opened and hashed; 0 at [`Depth::Structure`].
    pub blocks: u64,
    /// Blocks that could not be opened, because the store is encrypted and locked: that their bytes are those that were
    /// written is all that was checked.
    pub unopened: u64,
    /// Nodes opened and hashed.
    pub nodes: u64,
    /// Bytes of packs that were read.
    pub bytes_read: ByteCount,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be read from the disks when the points were made, and is zeros in them. The store is not at fault.
    pub known_bad: Vec<Affected>,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }
}

impl Finding {
    pub(super) fn new(damage: Damage, reason: impl Into<String>) -> Self {
        Self { damage, reason: reason.into(), affects: Vec::new(), more_affected: 0 }
    }

    /// Adds a stretch, merged with its neighbour where it has one.
    pub(super) fn affect(&mut self, hit: Affected) {
        let mut ranges = 0;
        for known in self.affects.iter_mut().rev() {
            let same = (&known.point, &known.vdi, known.userdevice) == (&hit.point, &hit.vdi, hit.userdevice);
            if !same {
                continue;
            }
            ranges += 1;
            if known.offset.checked_add(known.size) == Some(hit.offset) {
                known.size = known.size.saturating_add(hit.size);
                return;
            }
        }
        match ranges < MAX_RANGES {
            true => self.affects.push(hit),
            false => self.more_affected += 1,
        }
    }
}

impl Damage {
    /// Adds a damaged object to an [`Damage::Objects`].
    pub(super) fn add_object(&mut self, block: Option<BlockId>, node: Option<NodeId>) {
        let Self::Objects { blocks, nodes, more, .. } = self else { return };
        if blocks.len() + nodes.len() >= MAX_LISTED {
            *more += 1;
            return;
        }
        blocks.extend(block);
        nodes.extend(node);
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config { path } | Self::Point { path } | Self::Pin { path } | Self::KeySlot { path } => {
                write!(f, "{} is damaged", path.display())
            }
            Self::Pack { id, .. } => write!(f, "pack {id} is damaged"),
            Self::Objects { pack, blocks, nodes, more } => {
                write!(
                    f,
                    "pack {pack} holds {} damaged objects",
                    (blocks.len() + nodes.len()) as u64 + more
                )?;
                let first = blocks.first().map(|id| format!(", the first is block {id}"));
                let first = first.or(nodes.first().map(|id| format!(", the first is tree node {id}")));
                f.write_str(&first.unwrap_or_default())
            }
            Self::Tree { id } => write!(f, "disk {id} is not whole"),
            Self::StrayFile { path } => write!(f, "{} does not belong there", path.display()),
        }
    }
}

/// One sentence, without what suffers.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.damage, self.reason)
    }
}

/// One line, for instance `point 3f2a91b07c55, web01, disk 0 (<vdi>) at 0x40000, 64.00 KiB`.
impl fmt::Display for Affected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { point, vm, vdi, userdevice, offset, size } = self;
        write!(f, "point {}, {vm}, disk {userdevice} ({vdi}) at {offset}, {size}", point.short())
    }
}
