//! What a job and a run may be told: every option with its default, its unit and its bounds. The command line and
//! job files both end here; nothing behind this module knows which of them an option came from.
//!
//! Owns: the options' types, their texts and their bounds. Promises: a value of these types is within its bounds.
//! Never: reads a pool, a clock or a store.

mod disks;
#[cfg(test)]
mod documents;
mod file;
mod reader;
mod settings;
mod values;

pub use disks::{DiskFacts, DiskFilter, Pattern};
pub use file::{Key, Override, RunSpec, Selection, keys, parse_text, read_file};
pub use settings::parse_cidr;
pub use values::{parse_age, parse_duration, parse_pause, parse_percent, parse_rate, parse_size, parse_wait};

use crate::retention::Rules;
use crate::window::Window;
use blocks::ByteCount;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// zstd levels that a delegate takes.
pub const LEVELS: RangeInclusive<i8> = -7..=19;
/// Longest snapshot chain that XenServer's storage takes.
pub const CHAIN_LIMIT: u32 = 30;
/// Memory of a delegate: a kernel and its initramfs do not fit in less, and more than this is a typing error.
pub const DELEGATE_MEMORY: RangeInclusive<u64> = (64 << 20)..=(64 << 30);
/// Most jobs at once that a limit may say.
pub const MAX_JOBS: i64 = 64;
/// Most points that one rule keeps: more than any schedule makes.
pub const MAX_KEEP: i64 = 100_000;
/// Most times that a job is tried again.
pub const MAX_RETRIES: u32 = 10;
/// One million: a share of this many parts per million is everything.
pub const WHOLE_PPM: u32 = 1_000_000;

/// Everything that one job may be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobOptions {
    /// Whether change tracking is used and switched on.
    pub cbt: CbtMode,
    /// Fail instead of reading everything where changes cannot be listed. A disk's first backup may be full.
    pub require_cbt: bool,
    /// Start from no earlier restore point: every block is offered to the store again.
    pub full: bool,
    /// Read unallocated space too on a first backup.
    pub read_unallocated: bool,
    /// zstd level, within [`LEVELS`].
    pub level: i8,
    /// How many "unchanged" blocks are read again and compared.
    pub audit: AuditOptions,
    /// Disks that are left out.
    pub exclude_disks: Vec<DiskFilter>,
    /// Ask the guest to settle its file systems for the snapshot, where the host can; a plain snapshot, with a
    /// warning, where it cannot.
    pub quiesce: bool,
    /// Keep the memory too: a checkpoint instead of a snapshot; its suspend image is backed up like a disk.
    pub checkpoint: bool,
    /// Most bytes per second that a delegate reads from its disks; no limit where absent. Never zero.
    pub rate_limit: Option<ByteCount>,
    /// Read less where the disks answer slowly; never where absent.
    pub throttle: Option<ThrottleOptions>,
    /// Go on without parts of a disk that cannot be read: zeros are saved there.
    pub skip_bad_blocks: bool,
    /// What happens while storage of the VM coalesces.
    pub coalesce: CoalescePolicy,
    /// No snapshot is made that would give a disk a longer chain than this, at most [`CHAIN_LIMIT`].
    pub max_chain: u32,
    /// Make the snapshot although its storage may not have the room for it: thick storage is asked for the full size
    /// of every disk, and needs less where a disk holds little.
    pub ignore_space: bool,
    /// How often a failed job is tried again, where trying again can help.
    pub retries: u32,
    /// Pause before the first further try; each further one doubles it.
    pub retry_pause: Duration,
    /// Which restore points of the VM stay after the job; all of them where there is no rule.
    pub keep: Rules,
    /// Commands around the job, on this machine.
    pub hooks: JobHooks,
    /// The delegate.
    pub delegate: DelegateOptions,
}

impl Default for JobOptions {
    fn default() -> Self {
        Self {
            cbt: CbtMode::Auto,
            require_cbt: false,
            full: false,
            read_unallocated: false,
            level: 1,
            audit: AuditOptions::default(),
            exclude_disks: Vec::new(),
            quiesce: false,
            checkpoint: false,
            rate_limit: None,
            throttle: None,
            skip_bad_blocks: false,
            coalesce: CoalescePolicy::default(),
            // XenServer refuses at 30; the rest is for snapshots of people and of other programs.
            max_chain: 24,
            ignore_space: false,
            retries: 1,
            retry_pause: Duration::from_secs(60),
            keep: Rules::default(),
            hooks: JobHooks::default(),
            delegate: DelegateOptions::default(),
        }
    }
}

/// Whether change tracking is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CbtMode {
    /// Use it, and switch it on where that is possible.
    #[default]
    Auto,
    /// The same; where it cannot be switched on, that is a warning.
    On,
    /// Neither use it nor switch it on: everything is read and compared, and no reference is kept.
    Off,
}

/// A random sample of blocks that change tracking calls unchanged is read again and compared with the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// Share of the unchanged blocks, in parts per million; 0 switches the audit off, whatever `minimum` says.
    pub parts_per_million: u32,
    /// Least number of blocks per disk; all of them where the disk has fewer.
    pub minimum: u32,
    /// Seed of the sample, to repeat one; a new one for each job where absent.
    pub seed: Option<u64>,
}

impl Default for AuditOptions {
    fn default() -> Self {
        Self { parts_per_million: 1000, minimum: 64, seed: None }
    }
}

impl AuditOptions {
    /// Whether there is an audit.
    pub const fn is_on(self) -> bool {
        self.parts_per_million > 0
    }
}

/// How a delegate gives way to others who use the same disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottleOptions {
    /// The latency of reads above which less is read, in whole milliseconds; within [`wire::Throttle::LATENCY_MS`].
    pub latency_ms: u32,
    /// Bytes per second that are read all the same.
    pub floor: ByteCount,
}

impl ThrottleOptions {
    /// Slow enough to be hardly felt by any storage; a disk of 100 GiB takes seven hours.
    pub const DEFAULT_FLOOR: ByteCount = ByteCount::new(4 << 20);

    /// With the default floor.
    pub const fn with_latency_ms(latency_ms: u32) -> Self {
        Self { latency_ms, floor: Self::DEFAULT_FLOOR }
    }
}

/// What a job does while storage of its VM coalesces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoalescePolicy {
    /// Wait, at most this long; then the job is skipped.
    Wait {
        /// Longest wait.
        limit: Duration,
    },
    /// Skip the job.
    Skip,
    /// Make a snapshot all the same, as long as the chain has room.
    Ignore,
}

impl CoalescePolicy {
    /// How long a job waits where nothing else is said: a coalesce of a busy disk takes minutes, not hours.
    pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30 * 60);
}

impl Default for CoalescePolicy {
    fn default() -> Self {
        Self::Wait { limit: Self::DEFAULT_LIMIT }
    }
}

/// Options of the delegate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelegateOptions {
    /// Memory, within [`DELEGATE_MEMORY`], a multiple of 1 MiB.
    pub memory: ByteCount,
    /// Processors, 1 to 16.
    pub vcpus: u32,
    /// A delegate that hears nothing or gets nowhere for this long powers itself off. Whole seconds, at least 10.
    pub watchdog: Duration,
    /// How long it may take from its start to its first call. Whole seconds, 10 to 3600.
    pub boot_limit: Duration,
    /// Fixed addresses in CIDR form instead of DHCP. They serve one delegate at a time.
    pub addresses: Vec<String>,
    /// Gateways that go with them.
    pub gateways: Vec<IpAddr>,
}

impl Default for DelegateOptions {
    fn default() -> Self {
        Self {
            memory: ByteCount::new(crate::template::DEFAULT_MEMORY),
            vcpus: 1,
            watchdog: Duration::from_secs(90),
            boot_limit: Duration::from_secs(300),
            addresses: Vec::new(),
            gateways: Vec::new(),
        }
    }
}

/// Commands around one job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobHooks {
    /// Before the job. If it fails, the job is not started and counts as failed, unless it only warns.
    pub before_job: Option<Hook>,
    /// After the job, however it ended. If it fails, that is a warning, unless it says otherwise.
    pub after_job: Option<Hook>,
}

/// A command on the machine that runs `abd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// What is run.
    pub command: HookCommand,
    /// It and everything it started are killed after this long.
    pub timeout: Duration,
    /// What its failure means.
    pub on_failure: HookFailure,
}

impl Hook {
    /// How long a hook may take where nothing else is said.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5 * 60);
}

/// How a hook's command is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HookCommand {
    /// A program and its arguments; never empty.
    Program(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// What the failure of a hook means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookFailure {
    /// What it stands before is not started; what it stands around counts as failed.
    Abort,
    /// A warning.
    Warn,
}

/// How many jobs run at once, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most jobs of the run at once; each has a delegate of its own.
    pub max_jobs: u32,
    /// Most jobs at once in one pool; no limit of its own where absent.
    pub max_jobs_per_pool: Option<u32>,
    /// Most delegates at once on one host.
    pub max_jobs_per_host: u32,
    /// Most jobs at once that read from one storage repository.
    pub max_jobs_per_sr: u32,
    /// Most memory that all delegates of the run have together; no limit of its own where absent.
    pub delegate_memory_budget: Option<ByteCount>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_jobs: 4,
            max_jobs_per_pool: None,
            // As many as the run has: what limits a pool of one host is the run's own limit.
            max_jobs_per_host: 4,
            // Sequential readers slow each other down on shared storage, and production with them.
            max_jobs_per_sr: 4,
            delegate_memory_budget: None,
        }
    }
}

/// Everything that a run is told beside its jobs' options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunOptions {
    /// How many jobs run at once.
    pub limits: Limits,
    /// When jobs may start; at any time where absent.
    pub window: Option<Window>,
    /// What becomes of running jobs when the window closes.
    pub window_end: WindowEnd,
    /// Before the first job. If it fails, no job is started, unless it only warns.
    pub before_run: Option<Hook>,
    /// After the last job.
    pub after_run: Option<Hook>,
    /// Other places of the store, to which the VMs' restore points are copied after the last job.
    pub copy_to: Vec<PathBuf>,
    /// Most bytes in a second of such a copy.
    pub copy_limit: Option<ByteCount>,
    /// File for the summary as text.
    pub summary: Option<PathBuf>,
    /// File for the summary as JSON.
    pub summary_json: Option<PathBuf>,
    /// File for the results as metrics.
    pub metrics: Option<PathBuf>,
}

/// What becomes of running jobs when the backup window closes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WindowEnd {
    /// They finish; no further one starts.
    #[default]
    Finish,
    /// They are stopped, clean up, and count as failed.
    Stop,
}

impl JobOptions {
    /// Refuses options that contradict each other.
    ///
    /// # Errors
    /// A clause that names both.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.require_cbt && self.cbt == CbtMode::Off {
            return Err("require_cbt needs change tracking, and cbt = false forbids it");
        }
        if self.require_cbt && self.full {
            return Err("full reads everything, and require_cbt forbids that");
        }
        if self.quiesce && self.checkpoint {
            return Err(
                "a checkpoint keeps the memory and cannot be quiesced: quiesce and checkpoint exclude each other",
            );
        }
        if self.delegate.addresses.is_empty() && !self.delegate.gateways.is_empty() {
            return Err("delegate_gateways go with delegate_addresses");
        }
        Ok(())
    }

    /// Refuses options that the limits of the run make impossible.
    ///
    /// # Errors
    /// A clause that names both.
    pub fn check_within(&self, limits: &Limits) -> Result<(), &'static str> {
        if !self.delegate.addresses.is_empty() && limits.max_jobs > 1 {
            return Err(
                "fixed delegate_addresses serve one delegate at a time: they need max_jobs = 1, or use DHCP",
            );
        }
        if limits.delegate_memory_budget.is_some_and(|budget| budget < self.delegate.memory) {
            return Err("one delegate's memory is more than delegate_memory_budget");
        }
        Ok(())
    }
}
