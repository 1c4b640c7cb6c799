//! The order: everything that an ABD needs to know, sent once, inside TLS.

use blocks::{Audit, BLOCK_SIZE, ByteCount};
use seal::{IdKey, MasterKey, NodeId, Tree};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

/// Most disks in one order: XAPI has positions for 254, an HVM guest is sure to see 250 of them.
pub const MAX_DISKS: usize = 250;

/// Lowest limit of the reading rate, in bytes per second: below one block per second an order would be no work.
pub const MIN_RATE_LIMIT: ByteCount = ByteCount::new(BLOCK_SIZE);

/// The complete description of an ABD's work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The job's uuid, the same as in XenStore.
    pub job: String,
    /// The store's id key.
    pub id_key: IdKeyBytes,
    /// The master key of an encrypted store.
    pub master_key: Option<MasterKeyBytes>,
    /// The ABD powers itself off after this many seconds without progress or without an answer.
    pub watchdog_s: u16,
    /// Progress is reported this often.
    pub progress_ms: u16,
    /// What to do.
    pub work: Work,
}

/// 32 secret bytes that are not shown in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdKeyBytes(pub [u8; 32]);

impl std::fmt::Debug for IdKeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdKeyBytes(..)")
    }
}

/// 32 bytes that open all of a store. Not shown in logs, and wiped from memory when they are dropped.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterKeyBytes(pub [u8; 32]);

impl std::fmt::Debug for MasterKeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKeyBytes(..)")
    }
}

impl Drop for MasterKeyBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Order {
    /// The keys that the order carries.
    pub fn keys(&self) -> IdKey {
        match &self.master_key {
            None => IdKey::new(&self.id_key.0),
            Some(master) => IdKey::encrypted(&self.id_key.0, MasterKey::new(master.0)),
        }
    }
}

/// The kinds of work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Read disks into the store.
    Backup {
        /// zstd level for blocks.
        level: i8,
        /// Packs are ended at this many bytes.
        pack_size: u32,
        /// Bytes per second that are read at most, all disks together and audits included: at least
        /// [`MIN_RATE_LIMIT`]. None, or 0, is as fast as it goes.
        rate_limit: Option<ByteCount>,
        /// Reads less where the disks answer slowly; as fast as `rate_limit` allows where absent.
        throttle: Option<Throttle>,
        /// Whether a backup goes on without what cannot be read: zeros stand there, and [`crate::DiskDone::bad`] says
        /// where. Else the first such part ends the job.
        skip_bad_blocks: bool,
        /// The disks, in the order in which they are read.
        disks: Vec<BackupDisk>,
    },
    /// Write disks from the store.
    Restore {
        /// The disks, in the order in which they are written.
        disks: Vec<RestoreDisk>,
    },
    /// Measure what a job would meet, and say it with [`crate::PATH_DIAGNOSIS`]. Touches no disk but the ABD's own, and
    /// nothing in the store.
    Diagnose {
        /// Bytes of the ABD's own disk that are read at most.
        read: ByteCount,
        /// Bytes that are sent with [`crate::PATH_SINK`] at most: no more than [`crate::MAX_SINK`].
        send: ByteCount,
    },
}

/// How reading gives way to others who use the same disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// The latency of reads, in milliseconds, above which less is read: within [`Throttle::LATENCY_MS`].
    pub latency_ms: u32,
    /// Bytes per second that are read all the same: at least [`MIN_RATE_LIMIT`].
    pub floor: ByteCount,
}

impl Throttle {
    /// Below a millisecond every disk is too slow; above ten seconds none is, or it is dead.
    pub const LATENCY_MS: std::ops::RangeInclusive<u32> = 1..=10_000;

    /// What is wrong with it.
    pub fn fault(&self) -> Option<&'static str> {
        if !Self::LATENCY_MS.contains(&self.latency_ms) {
            return Some("its throttle has a latency that is not 1 ms to 10 s");
        }
        (self.floor < MIN_RATE_LIMIT).then_some("its throttle has a floor of less than 64 KiB per second")
    }
}

/// A disk to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupDisk {
    /// XAPI's `userdevice` of the VBD on the ABD; at least 4.
    pub userdevice: u16,
    /// What the device must measure, in bytes.
    pub size: ByteCount,
    /// Where to start from.
    pub start: Start,
    /// Which of the blocks that are not in the bitmap are read as well and compared with the base; only for a start
    /// with a bitmap. One that differs is an alarm: then the whole disk is read and compared.
    pub audit: Option<Audit>,
}

impl BackupDisk {
    /// What is wrong with the audit: it needs a bitmap, and cannot be of more than everything.
    pub fn audit_fault(&self) -> Option<&'static str> {
        let audit = self.audit?;
        if !self.start.has_bitmap() {
            return Some("an audit without a bitmap: all of it is read anyway");
        }
        (audit.parts_per_million > Audit::ALL).then_some("an audit of more than a million parts per million")
    }
}

/// Where the backup of a disk starts: the base and what changed since come as one value, so that a bitmap
/// cannot stand beside a base it does not belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Start {
    /// Nothing is known: read every block.
    Nothing,
    /// Nothing is in the store, and only the blocks of the bitmap were ever written; the rest reads as
    /// zeros. The bitmap is fetched with [`crate::PATH_BITMAP`].
    Allocated,
    /// The disk was `base` once: read every block, ship what differs.
    Compare {
        /// The tree of the base.
        base: Tree,
    },
    /// The disk was `base`, and only the blocks of the bitmap may differ from it. The bitmap is fetched
    /// with [`crate::PATH_BITMAP`].
    Changed {
        /// The tree of the base.
        base: Tree,
    },
}

impl Start {
    /// The tree that the new one is built on.
    pub fn base(&self) -> Option<Tree> {
        match self {
            Start::Nothing | Start::Allocated => None,
            Start::Compare { base } | Start::Changed { base } => Some(*base),
        }
    }

    /// Whether a bitmap of blocks to read goes with it.
    pub fn has_bitmap(&self) -> bool {
        matches!(self, Start::Allocated | Start::Changed { .. })
    }
}

/// A disk to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoreDisk {
    /// XAPI's `userdevice` of the VBD on the ABD; at least 4.
    pub userdevice: u16,
    /// What the device must measure, in bytes: storage may round a disk up.
    pub device: ByteCount,
    /// Size of the disk that is restored; the rest of the device is left as it is.
    pub size: ByteCount,
    /// What it shall hold.
    pub root: Option<NodeId>,
    /// Whether the disk is known to read as zeros, so that zeros need not be written.
    pub blank: bool,
}

impl RestoreDisk {
    /// The tree of the disk.
    pub fn tree(&self) -> Tree {
        Tree { size: self.size, root: self.root }
    }
}
