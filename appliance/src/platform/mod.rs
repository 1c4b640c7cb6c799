//! What the virtual machine gives us: console, clock, XenStore, disks, and the settings of the job.

pub mod clock;
pub mod config;
pub mod console;
pub mod devices;
pub mod guest_agent;
pub mod memory;
pub mod report;
pub mod shutdown;
pub mod xenstore;

pub use clock::Milestones;
pub use config::BootConfig;
pub use devices::{Disk, Disks};
pub use report::Reporter;
pub use wire::State;
pub use xenstore::XenStore;

use crate::init::lifeline::Ticker;
use crate::net::Network;

/// Everything the job needs, ready to use. Every field can be cloned cheaply.
#[derive(Clone)]
pub struct WorkerEnv {
    /// The connection to XenStore.
    pub xenstore: XenStore,
    /// Where state and errors go.
    pub reporter: Reporter,
    /// The settings that came through XenStore.
    pub config: BootConfig,
    /// Tells PID 1 that the job goes on.
    pub ticker: Ticker,
    /// The network, up.
    pub network: Network,
    /// Finds and checks disks.
    pub disks: Disks,
    /// Named moments since the kernel started.
    pub milestones: Milestones,
}

/// How the job ended. It was already reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitReason {
    /// Done, [`Reporter::finished`] said so.
    Finished,
    /// Not done, [`Reporter::failed`] said why.
    Failed,
}
