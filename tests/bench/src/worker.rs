//! The worker as a process of its own: the appliance's job, without an appliance around it.

use crate::machine::{Machine, used};
use crate::{Error, io};
use abd_appliance::worker::{Assignment, DEFAULT_WATCHDOG, Identity, perform};
use clap::Args;
use pin::Fingerprint;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// What a real appliance learns from XenStore, and its disk.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    job: String,
    #[arg(long)]
    address: SocketAddr,
    /// Fingerprint of the service's key.
    #[arg(long)]
    key: String,
    #[arg(long)]
    disk: PathBuf,
    /// Read and write without io_uring.
    #[arg(long)]
    no_io_uring: bool,
}

/// Does the job. The first line of output is the fingerprint of the worker's own key.
pub(crate) fn run(arguments: &Arguments) -> Result<Value, Error> {
    let Arguments { job, address, key, disk, no_io_uring } = arguments;
    let key: Fingerprint = key.parse().map_err(|error| Error::Job(format!("--key {key}: {error}")))?;
    let identity = Identity::generate()?;
    println!("{}", identity.fingerprint());
    std::io::stdout().flush().map_err(io("say our key"))?;
    let orchestrator_key = *key.as_bytes();
    let assignment = Assignment {
        job: job.clone(),
        addresses: vec![*address],
        orchestrator_key,
        watchdog: DEFAULT_WATCHDOG,
    };
    perform(&assignment, &identity, Arc::new(Machine::new(disk, !no_io_uring)))?;
    Ok(json!({ "used": used() }))
}
