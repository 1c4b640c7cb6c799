//! The job: claims the order, reads or writes the disks of it, says how it ended.
//!
//! Owns: the link to the orchestrator and the memory of a job. Threads read, hash, seal and write; one more thread
//! runs everything asynchronous. Promises: memory does not grow with the disks (2 MiB of bitmap per TiB apart); every
//! failure is told to the orchestrator while the link works, and to XenStore always. Never: trusts an order, an
//! answer or a disk without checking it.

mod budget;
mod diagnose;
mod error;
mod job;
mod link;
mod meter;
mod nodes;
mod order;
mod outside;
mod reorder;
mod run;
mod runtime;
mod spares;
pub(crate) mod threads;

pub use budget::Budget;
pub use error::{Error, Reach};
pub use job::{Assignment, DEFAULT_WATCHDOG, perform, perform_here};
pub use link::Exchange;
pub use outside::Outside;
pub use pin::Identity;

pub(crate) use link::{Errand, Link, Patience, Pending, PendingPack};
pub(crate) use meter::{Feed, Meter, Queue, queue};
pub(crate) use nodes::NodesAhead;
pub(crate) use order::check as check_order;
pub(crate) use reorder::Reorder;
pub(crate) use run::Run;
#[cfg(test)]
pub(crate) use runtime::Runtime;
pub(crate) use spares::Spares;

use crate::platform::{ExitReason, Reporter, WorkerEnv};
use std::sync::Arc;

/// Makes this appliance's key pair and publishes its digest, before the network is touched.
///
/// # Errors
/// Where the kernel has no randomness to make a key from.
pub fn announce(reporter: &Reporter) -> Result<Identity, crate::Error> {
    let identity = Identity::generate().map_err(Error::from)?;
    reporter.key(identity.fingerprint().as_bytes());
    Ok(identity)
}

/// Does the job. The outcome is reported when it returns.
pub fn run(env: WorkerEnv, identity: Identity) -> ExitReason {
    let reporter = env.reporter.clone();
    let assignment = Assignment {
        job: env.config.job.clone(),
        addresses: env.config.urls.clone(),
        orchestrator_key: env.config.orchestrator_key,
        watchdog: env.config.watchdog.unwrap_or(DEFAULT_WATCHDOG),
    };
    match perform(&assignment, &identity, Arc::new(env)) {
        Ok(()) => {
            reporter.finished();
            ExitReason::Finished
        }
        Err(error) => {
            reporter.fail(&error.into());
            ExitReason::Failed
        }
    }
}
