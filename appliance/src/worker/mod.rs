//! The job. So far it brings no work of its own: it says that it was given no order and ends.

use std::fmt;

use crate::platform::{ExitReason, Reporter, State, WorkerEnv};

/// Who we are towards the orchestrator.
#[derive(Debug)]
pub struct Identity;

/// Why the job failed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(Refusal);

/// What the orchestrator would not give us.
#[derive(Debug)]
pub struct Refusal;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this appliance can boot and reach its network, but carries no backup engine")
    }
}

impl Error {
    /// Short code for programs.
    pub fn code(&self) -> &'static str {
        "order-refused"
    }
}

/// Called before the network is touched.
pub fn announce(_reporter: &Reporter) -> Result<Identity, crate::Error> {
    Ok(Identity)
}

/// Called with the network up.
pub fn run(env: WorkerEnv, _identity: Identity) -> ExitReason {
    env.reporter.state(State::Connecting);
    env.ticker.tick();
    env.reporter.fail(&Error(Refusal).into());
    ExitReason::Failed
}
