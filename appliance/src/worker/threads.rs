//! Small help for stages that run on threads of their own.

use super::Error;
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Starts one stage.
pub(crate) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    what: &'static str,
    stage: impl FnOnce() -> Result<(), Error> + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, Result<(), Error>>, Error> {
    let builder = Builder::new().name(what.into());
    builder.spawn_scoped(scope, stage).map_err(|source| Error::Start { what, source })
}

/// Waits for all stages. Their first real error comes out, else `outcome`: a stage that was cut off by another's
/// failure only says [`Error::Aborted`].
pub(crate) fn join<T>(
    outcome: Result<T, Error>,
    stages: Vec<ScopedJoinHandle<'_, Result<(), Error>>>,
) -> Result<T, Error> {
    stages.into_iter().fold(outcome, |outcome, stage| {
        let ended = stage.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match (outcome, ended) {
            (Ok(value), Ok(())) => Ok(value),
            (Ok(_) | Err(Error::Aborted), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
        }
    })
}
