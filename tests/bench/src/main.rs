//! The data path without a pool: what `scripts/bench` measures of ours.
//!
//! | command | runs |
//! |---|---|
//! | `backup`, `restore` with `--way engine` | the worker's stages and the store in this process, no network between |
//! | the same with `--way worker` | the store's service in this process, and a process of its own for each worker |
//! | `worker` | such a process: started by the above, with everything it needs in its arguments |
//! | `blake3` | one pass of the hash over a file by one thread: a floor to compare with |
//!
//! Owns no part of the path: reading, hashing, sealing, shipping and keeping are the product's own code. Prints one
//! object of JSON: counts, CPU time and peak memory of each process. Wall time is measured by who starts it.

#![forbid(unsafe_code)]

mod engine;
mod floor;
mod job;
mod machine;
mod saved;
mod worker;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures the data path.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Back up disk images into a store, one job for each image.
    Backup(job::BackupArguments),
    /// Restore one disk image from a store.
    Restore(job::RestoreArguments),
    /// Do the job that is described by the arguments (started by `backup` and `restore`).
    Worker(worker::Arguments),
    /// Hash a file once with one thread.
    Blake3 {
        /// The file.
        file: PathBuf,
    },
}

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A file, a process or a thread.
    #[error("{what}")]
    Io {
        /// What was tried, with the object's name.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] ads::Error),
    /// The worker, in this process.
    #[error(transparent)]
    Worker(#[from] abd_appliance::worker::Error),
    /// No key pair.
    #[error(transparent)]
    Key(#[from] pin::Error),
    /// Anything else that makes the measurement worthless.
    #[error("{0}")]
    Job(String),
}

/// Names what was tried.
fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Backup(arguments) => job::back_up(&arguments),
        Command::Restore(arguments) => job::restore(&arguments),
        Command::Worker(arguments) => worker::run(&arguments),
        Command::Blake3 { file } => floor::blake3(&file),
    };
    match outcome {
        Ok(value) => {
            println!("{value}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("abd-bench: {}", abd_appliance::chain(&error));
            ExitCode::FAILURE
        }
    }
}
