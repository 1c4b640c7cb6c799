//! Waiting out what XAPI makes its clients wait out: which refusals pass by themselves, and for how long they are
//! waited for.
//!
//! Only for calls that may be made any number of times, such as those of a teardown: after a broken connection the
//! call may have been executed, and is made again all the same. Stop requests are not looked at: the first one asks
//! for a clean teardown.

use crate::error::{Context, Result};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;
use tokio::time::Instant;
use xapi::Kind;

/// How long a single call is made again: a coalesce or an export holds a disk for seconds, a minute at most.
pub const BRIEFLY: Duration = Duration::from_secs(120);

/// How long the steps of a teardown are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waits {
    /// The removal of a VM or of disks: on a busy LVM storage a detach lags behind the halt of its VM by minutes.
    pub detach: Duration,
    /// For a host that is away. Its toolstack restarts in a minute; this is also longer than a delegate works without
    /// an orchestrator, unless its watchdog was set to more.
    pub host_away: Duration,
    /// For the end of operations that dead jobs left under way. Most cannot be cancelled; a snapshot takes a minute
    /// or two.
    pub tasks: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self {
            detach: Duration::from_secs(300),
            host_away: Duration::from_secs(180),
            tasks: Duration::from_secs(120),
        }
    }
}

/// First pause; each further one is longer by half.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause: the pool has other things to do than to answer us.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// XAPI's codes for refusals that pass by themselves, and why they do.
const PASSING: [(&str, &str); 14] = [
    ("VDI_IN_USE", "a detach lags behind the halt of its VM, an export behind the end of its connection"),
    ("SR_DEVICE_IN_USE", "another operation holds the storage's device"),
    ("SR_BACKEND_FAILURE_46", "the storage is still closing the disk, or merging snapshots"),
    ("DEVICE_DETACH_REJECTED", "the guest still holds the disk"),
    ("DEVICE_DETACH_TIMEOUT", "the guest still holds the disk"),
    ("OTHER_OPERATION_IN_PROGRESS", "another operation on the object is under way"),
    ("TOO_MANY_PENDING_TASKS", "the pool is busy"),
    ("TOO_BUSY", "the pool is busy"),
    ("HOST_STILL_BOOTING", "the toolstack is starting"),
    ("CANNOT_CONTACT_HOST", "a toolstack is restarting, or its host is"),
    ("HOST_OFFLINE", "the host is restarting"),
    ("HOST_NOT_LIVE", "the host is restarting"),
    ("SESSION_INVALID", "the pool has ended a session"),
    ("HOST_IS_SLAVE", "another host becomes the master"),
];

/// Why a refusal passes by itself, if it does.
pub fn passing(error: &xapi::Error) -> Option<&'static str> {
    why(error.kind(), error.code())
}

fn why(kind: &Kind, code: &str) -> Option<&'static str> {
    if let Some((_, why)) = PASSING.iter().find(|(passing, _)| *passing == code) {
        return Some(why);
    }
    match kind {
        Kind::Unreachable => Some("the pool does not answer"),
        Kind::Timeout if code.is_empty() => Some("the pool did not answer in time"),
        Kind::Lost => Some("the toolstack was restarted in the middle"),
        _ => None,
    }
}

/// How long something is tried, and the pauses in between.
#[derive(Debug)]
pub struct Patience {
    deadline: Instant,
    pause: Duration,
    attempt: u32,
}

impl Patience {
    /// From now on.
    pub fn new(limit: Duration) -> Self {
        Self { deadline: Instant::now() + limit, pause: FIRST_PAUSE, attempt: 0 }
    }

    /// Pauses before the next attempt. `false`, without a pause, where the time is over.
    ///
    /// Pauses differ at random: jobs that end together shall not ask together.
    pub async fn pause(&mut self) -> bool {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        self.attempt += 1;
        tokio::time::sleep(jittered(self.pause).min(left)).await;
        self.pause = (self.pause * 3 / 2).min(LONGEST_PAUSE);
        true
    }

    /// Pauses after a refusal that passes by itself; `false` for any other, and where the time is over.
    pub async fn waits_out(&mut self, what: &str, error: &xapi::Error) -> bool {
        let Some(why) = passing(error) else { return false };
        tracing::debug!(attempt = self.attempt + 1, "{what}: {error}; {why}");
        self.pause().await
    }
}

/// Between half of a pause and all of it.
fn jittered(pause: Duration) -> Duration {
    // A fresh state hashes to another number every time: random enough, and nothing to seed.
    let part = u32::try_from(RandomState::new().hash_one(0_u8) % 512).unwrap_or(0);
    pause / 1024 * (512 + part)
}

/// Makes a call again while the pool refuses it for a reason that passes by itself, for [`BRIEFLY`]. Making the call
/// twice must do no harm.
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
    let mut patience = Patience::new(BRIEFLY);
    loop {
        match call().await {
            Err(error) if patience.waits_out(&what(), &error).await => {}
            result => return result,
        }
    }
}

/// Whether an object that a call was about no longer exists. A call that names several objects does not say here
/// which of them is gone: where that matters, look for the object itself.
pub fn is_gone(error: &xapi::Error) -> bool {
    matches!(error.kind(), Kind::HandleInvalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_declared_and_nothing_else_does() {
        assert!(why(&Kind::InUse, "VDI_IN_USE").is_some());
        assert!(why(&Kind::HostAway, "CANNOT_CONTACT_HOST").is_some());
        assert!(why(&Kind::Unreachable, "").is_some());
        assert!(why(&Kind::Timeout, "").is_some());
        assert!(why(&Kind::Lost, "").is_some());
        for (kind, code) in [
            (Kind::Auth, "RBAC_PERMISSION_DENIED"),
            (Kind::BadState, "OPERATION_BLOCKED"),
            (Kind::NoSpace, "SR_BACKEND_FAILURE_44"),
            (Kind::Missing, "VDI_MISSING"),
            (Kind::Refused, ""),
            (Kind::TlsUntrusted { address: String::new(), found: fingerprint() }, ""),
            // The guest's own time, not the pool's.
            (Kind::Timeout, "VM_SHUTDOWN_TIMEOUT"),
            (Kind::HandleInvalid, "HANDLE_INVALID"),
        ] {
            assert_eq!(why(&kind, code), None, "{kind:?} {code}");
        }
    }

    fn fingerprint() -> xapi::Fingerprint {
        xapi::Fingerprint::of_certificate(b"")
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_at_its_limit_and_pauses_grow_up_to_theirs() {
        let started = Instant::now();
        let limit = Waits::default().detach;
        let mut patience = Patience::new(limit);
        let mut pauses = Vec::new();
        loop {
            let before = Instant::now();
            if !patience.pause().await {
                break;
            }
            pauses.push(before.elapsed());
        }
        assert!(started.elapsed() >= limit && started.elapsed() < limit + Duration::from_millis(10));
        assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 3, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE + Duration::from_millis(2)));
        assert!((30..100).contains(&pauses.len()), "{}", pauses.len());
    }

    #[test]
    fn pauses_differ() {
        let all: std::collections::BTreeSet<_> = (0..64).map(|_| jittered(LONGEST_PAUSE)).collect();
        assert!(all.len() > 8, "{all:?}");
        assert!(all.iter().all(|pause| *pause >= LONGEST_PAUSE / 3 && *pause <= LONGEST_PAUSE));
    }
}
