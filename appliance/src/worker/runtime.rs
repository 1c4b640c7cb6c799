//! The asynchronous runtime: tokio on io_uring where the kernel has it, plain tokio elsewhere.

use super::Error;
use std::future::Future;
use tokio::task::LocalSet;

/// Runs the one thread of the asynchronous side.
pub(crate) enum Runtime {
    Ring(tokio_uring::Runtime),
    Plain(tokio::runtime::Runtime),
}

impl Runtime {
    /// A runtime, and why it is not on io_uring if it is not.
    pub(crate) fn new() -> Result<(Self, Option<String>), Error> {
        let why = match diskio::probe() {
            Ok(()) => match tokio_uring::Runtime::new(&tokio_uring::builder()) {
                Ok(runtime) => return Ok((Self::Ring(runtime), None)),
                Err(error) => format!("tokio-uring cannot be set up: {error}"),
            },
            Err(why) => why,
        };
        Ok((Self::plain()?, Some(why)))
    }

    /// A runtime without io_uring.
    pub(crate) fn plain() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|source| Error::Start { what: "runtime", source })?;
        Ok(Self::Plain(runtime))
    }

    /// Whether files can be written with io_uring.
    pub(crate) fn has_ring(&self) -> bool {
        matches!(self, Self::Ring(_))
    }

    pub(crate) fn block_on<F: Future>(&self, work: F) -> F::Output {
        match self {
            Self::Ring(runtime) => runtime.block_on(work),
            Self::Plain(runtime) => LocalSet::new().block_on(runtime, work),
        }
    }
}
