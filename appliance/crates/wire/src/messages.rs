//! Questions, answers and reports. All calls go from the ABD to the orchestrator.

use crate::account::PassAccount;
use blocks::{BadRanges, BlockIndex, ByteCount};
use seal::{BlockId, Cipher, Codec, KEY_SALT_SIZE, Lock, NodeId, Sealed, Tree, TreeId};
use serde::{Deserialize, Serialize};

/// `POST`, [`Claim`] to [`crate::Order`]: the first call. Repeating it gives the same order to the same key.
pub const PATH_CLAIM: &str = "/abd/v1/claim";
/// `POST`, [`BitmapQuestion`] to the raw bitmap, most significant bit first as XAPI gives it.
pub const PATH_BITMAP: &str = "/abd/v1/bitmap";
/// `POST`, [`KnownQuestion`] to [`KnownAnswer`].
pub const PATH_KNOWN: &str = "/abd/v1/known";
/// `POST`, [`NodesQuestion`] to [`NodesAnswer`].
pub const PATH_NODES: &str = "/abd/v1/nodes";
/// `POST`, [`BlocksQuestion`] to [`BlocksAnswer`].
pub const PATH_BLOCKS: &str = "/abd/v1/blocks";
/// `PUT` with the pack id behind it, raw pack bytes to [`PackAnswer`], once the pack is durable.
pub const PATH_PACKS: &str = "/abd/v1/packs/";
/// `POST`, [`DiskDone`] to [`DiskAnswer`], once the whole tree is durable.
pub const PATH_DISK_DONE: &str = "/abd/v1/disk-done";
/// `POST`, [`Progress`] to [`ProgressAnswer`].
pub const PATH_PROGRESS: &str = "/abd/v1/progress";
/// `POST`, [`JobDone`] to [`ProgressAnswer`]: the last call.
pub const PATH_JOB_DONE: &str = "/abd/v1/job-done";

/// Most ids in one [`KnownQuestion`]: 64 MiB of disk.
pub const MAX_KNOWN_IDS: usize = 1024;
/// Most nodes in one [`NodesQuestion`]: 512 KiB.
pub const MAX_NODES: usize = 256;
/// Most blocks in one [`BlocksQuestion`]: 4 MiB of plain bytes.
pub const MAX_BLOCKS: usize = 64;

/// The ABD presents itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// [`crate::PROTOCOL_VERSION`] of the ABD. First, so that any later version can be told apart.
    pub protocol: u16,
    /// The job from XenStore.
    pub job: String,
    /// Version of the ABD's program.
    pub agent: String,
    /// From the start of the kernel to user space, and to this call.
    pub boot_ms: u32,
    /// From the start of the kernel to this call.
    pub claim_ms: u32,
    /// Memory that the kernel sees, in bytes.
    pub memory: ByteCount,
    /// How disks will be read, and why: for instance `io_uring` or `pread: io_uring is disabled`.
    pub engine: String,
}

/// Asks for the blocks to read of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BitmapQuestion {
    /// Position in the order's list of disks.
    pub disk: u16,
}

/// Asks which blocks the store has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownQuestion {
    /// At most [`MAX_KNOWN_IDS`].
    pub ids: Vec<BlockId>,
}

/// For each id of the question, in order. "Known" is a promise: the store keeps the block at least until
/// the job ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownAnswer {
    /// As many as were asked about.
    pub known: Vec<bool>,
}

/// Asks for neighbouring nodes of the tree that the order names for a disk: its base, or what to restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesQuestion {
    /// Position in the order's list of disks.
    pub disk: u16,
    /// Level of the nodes, 1 is above the blocks.
    pub level: u8,
    /// First node.
    pub first: u64,
    /// At most [`MAX_NODES`].
    pub count: u16,
}

/// The nodes asked for that are not absent, ascending.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodesAnswer {
    /// Ascending; what is missing here is absent in the tree.
    pub nodes: Vec<NodeBytes>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeBytes {
    /// Its index on its level.
    pub index: u64,
    /// Its bytes.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

/// Asks for blocks of the tree that the order names for a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocksQuestion {
    /// Position in the order's list of disks.
    pub disk: u16,
    /// Ascending, at most [`MAX_BLOCKS`], none absent.
    pub blocks: Vec<BlockIndex>,
}

/// The blocks asked for, in order. Their bytes are borrowed from where they were read, or from the message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlocksAnswer<'a> {
    /// As many as were asked for.
    #[serde(borrow)]
    pub blocks: Vec<SealedBlock<'a>>,
}

/// A block as it is stored. The ABD opens it and checks its id against the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedBlock<'a> {
    /// [`seal::Codec`] as a byte.
    pub codec: u8,
    /// How it is encrypted; none where it is not.
    pub lock: Option<BlockLock>,
    /// Bytes after opening.
    pub plain_size: u32,
    /// The stored bytes.
    #[serde(borrow, with = "serde_bytes")]
    pub bytes: &'a [u8],
}

/// How a block is encrypted: all that its key and nonce are made of, but for the store's master key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockLock {
    /// [`seal::Cipher`] as a byte.
    pub cipher: u8,
    /// The salt of its pack's key.
    pub salt: [u8; KEY_SALT_SIZE],
    /// The number of its nonce.
    pub counter: u32,
}

impl From<Lock> for BlockLock {
    fn from(Lock { cipher, salt, counter }: Lock) -> Self {
        Self { cipher: cipher as u8, salt, counter }
    }
}

impl SealedBlock<'_> {
    /// What opens it.
    ///
    /// # Errors
    /// What `seal` says of a codec or a cipher that it does not know.
    pub fn sealed(&self) -> Result<Sealed<'_>, seal::Error> {
        let codec = Codec::from_byte(self.codec)?;
        let lock = self.lock.map(|BlockLock { cipher, salt, counter }| {
            Ok(Lock { cipher: Cipher::from_byte(cipher)?, salt, counter })
        });
        Ok(Sealed { codec, lock: lock.transpose()?, bytes: self.bytes })
    }
}

/// A pack was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackAnswer {
    /// Bytes that the store gained; 0 where it had the pack.
    pub stored: ByteCount,
}

/// A disk was read to its end, and every pack of it was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskDone {
    /// Position in the order's list of disks.
    pub disk: u16,
    /// The new tree's size.
    pub size: ByteCount,
    /// The new tree's root.
    pub root: Option<NodeId>,
    /// What the disk took.
    pub counts: DiskCounts,
    /// What could not be read, where the order allows that: zeros in the tree. Nothing of a restore.
    pub bad: BadRanges,
    /// How fast it was read, and what held the reader back on purpose. Nothing of a restore.
    pub pacing: Pacing,
}

/// How fast a disk was read, and what held the reader back on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pacing {
    /// From the first read to the last, in milliseconds.
    pub reading_ms: u64,
    /// Of these, held back to keep the order's `rate_limit`.
    pub limited_ms: u64,
    /// Of these, held back because the disk answered slowly.
    pub throttled_ms: u64,
    /// How often the adaptive rate was cut.
    pub cuts: u32,
    /// The lowest adaptive rate, in bytes per second; none where it was never cut.
    pub lowest_rate: Option<ByteCount>,
    /// The highest latency of reads in microseconds, as the 90th percentile of a quarter of a second; none where nobody
    /// asked for it.
    pub peak_latency_us: Option<u64>,
}

impl Pacing {
    /// Whether the reader was held back.
    pub fn is_held_back(&self) -> bool {
        self.limited_ms > 0 || self.throttled_ms > 0
    }
}

/// For people: what held the reader back.
impl std::fmt::Display for Pacing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |ms: u64| format!("{}.{} s", ms / 1000, ms % 1000 / 100);
        write!(f, "held back for {}", seconds(self.limited_ms.saturating_add(self.throttled_ms)))?;
        write!(f, " of {}", seconds(self.reading_ms))?;
        match (self.limited_ms, self.throttled_ms) {
            (0, _) => write!(f, " because it answered slowly")?,
            (_, 0) => write!(f, " by the rate limit")?,
            (limited, _) => write!(f, ", of which {} by the rate limit", seconds(limited))?,
        }
        if let Some(lowest) = self.lowest_rate {
            write!(f, ", down to {lowest}/s")?;
        }
        if let Some(peak) = self.peak_latency_us.filter(|_| self.throttled_ms > 0) {
            write!(f, ", latency up to {}.{} ms", peak / 1000, peak % 1000 / 100)?;
        }
        Ok(())
    }
}

impl DiskDone {
    /// The new tree.
    pub fn tree(&self) -> Tree {
        Tree { size: self.size, root: self.root }
    }
}

/// The store has every node and block of the tree, durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAnswer {
    /// The id that proves the disk.
    pub tree: TreeId,
}

/// Counts of one disk. Every moved byte of a backup is either audited, or zero, unchanged, known or shipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounts {
    /// Bytes that the plan covers: what will be read or written.
    pub planned: ByteCount,
    /// Bytes read from, or written to, the device.
    pub moved: ByteCount,
    /// Of these, zeros.
    pub zero: ByteCount,
    /// Plain bytes that equal the base.
    pub unchanged: ByteCount,
    /// Plain bytes that the store had from elsewhere, or that stand twice on the disk.
    pub known: ByteCount,
    /// Plain bytes that were shipped.
    pub shipped: ByteCount,
    /// The same after sealing.
    pub sealed: ByteCount,
    /// Nodes that were shipped.
    pub nodes: u64,
    /// Of the moved bytes, those that only an audit read: they were compared with the base and are in none of the
    /// counts between. Restore points of earlier versions have no audit.
    #[serde(default)]
    pub audited: ByteCount,
    /// Of the audited bytes, those that differ from the base. More than 0 is an alarm: the disk was then read a
    /// second time, all of it.
    #[serde(default)]
    pub mismatched: ByteCount,
    /// The first block of these.
    #[serde(default)]
    pub first_mismatch: Option<BlockIndex>,
}

/// How far the work is. The answer is also the proof to the ABD that its orchestrator is alive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Counts of each disk of the order so far.
    pub disks: Vec<DiskCounts>,
    /// Resources used so far.
    pub usage: Usage,
}

/// What the ABD shall do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressAnswer {
    /// Stop now: the job was cancelled or has failed elsewhere.
    pub stop: bool,
}

/// Resources of the ABD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Most memory that the worker held (`VmHWM`).
    pub worker_peak: ByteCount,
    /// Least memory that the kernel had available, as far as seen.
    pub available_low: ByteCount,
    /// Processor time of the worker in milliseconds.
    pub cpu_ms: u64,
    /// Milliseconds since the kernel started.
    pub uptime_ms: u64,
}

/// The ABD's last words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDone {
    /// How it ended.
    pub outcome: Result<(), Failure>,
    /// The disk that it failed at, where it was one: a position in the order's list of disks.
    pub disk: Option<u16>,
    /// Counts of each disk of the order.
    pub disks: Vec<DiskCounts>,
    /// Resources used.
    pub usage: Usage,
    /// What the time of each pass over a disk was spent on, in their order; also of those before a failure.
    pub passes: Vec<PassAccount>,
}

/// Why something was refused or failed; also the body of every answer that is not 200.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// A short code in kebab case, for programs.
    pub code: String,
    /// One sentence that names the object, for people.
    pub message: String,
}

impl Failure {
    /// A failure with a code and a sentence.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}
