//! What `scripts/bench-store` measures: the index of a store, and stores of many restore points.
//!
//! | command | measures |
//! |---|---|
//! | `index` | our index, or with the feature `peers` redb and LMDB in its place: adding, questions, memory, disk |
//! | `rebuild` | opening a store whose index is lost, and one that has it |
//! | `points` | a store of many restore points: opening, listing, showing, judging, collecting |
//!
//! Prints one object of JSON; each command is a process of its own, so that its memory is its own.

// LMDB maps its file, which its crate rightly calls unsafe; see `peers`.
#![cfg_attr(not(feature = "peers"), forbid(unsafe_code))]

mod index;
mod measure;
#[cfg(feature = "peers")]
mod peers;
#[cfg(feature = "store")]
mod points;
#[cfg(feature = "store")]
mod rebuild;

use clap::{Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures the store's index and its catalogue.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Adds entries to an index and asks for them.
    Index {
        /// Which one.
        #[arg(long, value_enum, default_value = "own")]
        engine: Engine,
        /// How many.
        #[arg(long)]
        entries: u64,
        /// An empty directory for its files.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Opens a store of many blocks without its index and with it.
    Rebuild {
        /// How many blocks.
        #[arg(long)]
        entries: u64,
        /// An empty directory for the store.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Makes a store of many restore points and times what is done with it.
    Points {
        /// How many, ascending, one after the other in the same store.
        #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
        counts: Vec<u64>,
        /// An empty directory for the store.
        #[arg(long)]
        dir: PathBuf,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// Sorted runs: crate `runs`.
    Own,
    /// redb, a B-tree that copies on write.
    Redb,
    /// LMDB, through heed.
    Heed,
}

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// A file.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The store.
    #[cfg(feature = "store")]
    #[error(transparent)]
    Store(#[from] ads::Error),
    /// A codec.
    #[cfg(feature = "store")]
    #[error(transparent)]
    Seal(#[from] seal::Error),
    /// What is compared with.
    #[cfg(feature = "peers")]
    #[error("{0}")]
    Peer(String),
    /// Anything else that makes the measurement worthless.
    #[error("{0}")]
    Wrong(String),
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

fn run(command: Command) -> Result<serde_json::Value, Error> {
    match command {
        Command::Index { engine: Engine::Own, entries, dir } => index::own(entries, &dir),
        #[cfg(feature = "peers")]
        Command::Index { engine: Engine::Redb, entries, dir } => peers::redb(entries, &dir),
        #[cfg(feature = "peers")]
        Command::Index { engine: Engine::Heed, entries, dir } => peers::heed(entries, &dir),
        #[cfg(not(feature = "peers"))]
        Command::Index { .. } => Err(Error::Wrong("built without the feature `peers`".into())),
        #[cfg(feature = "store")]
        Command::Rebuild { entries, dir } => rebuild::rebuild(entries, &dir),
        #[cfg(feature = "store")]
        Command::Points { counts, dir } => points::points(&counts, &dir),
        #[cfg(not(feature = "store"))]
        Command::Rebuild { .. } | Command::Points { .. } => {
            Err(Error::Wrong("built without the feature `store`".into()))
        }
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(found) => {
            println!("{found}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            eprintln!("abd-bench-store: {error}{}", source.unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}
