//! Waiting out what XAPI makes its clients wait out, with named limits.

use crate::error::{Context, Result};
use std::time::Duration;

/// How often a call that is refused for a passing reason is made.
const TRIES: u32 = 12;
/// First pause; each further one is longer by half, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A detach lags behind the halt of a VM by seconds at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Makes a call again while the pool says that something is in use or under way, for half a minute in all.
///
/// # Errors
/// The last refusal, with the words of `what`.
pub async fn until_free<T>(
    what: impl Fn() -> String,
    call: impl AsyncFnMut() -> Result<T, xapi::Error>,
) -> Result<T> {
    until_free_raw(&what, call).await.context(what)
}

/// [`until_free`], for callers that must tell refusals apart.
///
/// # Errors
/// The last refusal.
pub async fn until_free_raw<T>(
    what: impl Fn() -> String,
    mut call: impl AsyncFnMut() -> Result<T, xapi::Error>,
) -> Result<T, xapi::Error> {
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        match call().await {
            Err(error) if attempt < TRIES && is_passing(&error) => {
                tracing::debug!(attempt, "{}: {error}", what());
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(LONGEST_PAUSE);
            }
            result => return result,
        }
    }
    unreachable!("the loop ends with its last attempt")
}

fn is_passing(error: &xapi::Error) -> bool {
    matches!(error.kind(), xapi::Kind::InUse)
        || error.is_retryable()
        || matches!(error.code(), "OTHER_OPERATION_IN_PROGRESS" | "VDI_IN_USE" | "TOO_MANY_PENDING_TASKS")
}

/// Whether the object that a call was about no longer exists: for clean-up that is success.
pub fn is_gone(error: &xapi::Error) -> bool {
    matches!(error.kind(), xapi::Kind::HandleInvalid) || error.code() == "UUID_INVALID"
}
