//! What clients may cost: connections, memory, time and bandwidth.

use super::denied::Denied;
use blocks::ByteCount;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

/// Memory of bodies is counted in these.
const UNIT: u64 = 1 << 20;
/// How long a call waits for its turn before the client is told to ask again.
const TURN_LIMIT: Duration = Duration::from_secs(60);
/// Least rate at which a body must come, or an answer be taken, beside [`ServeLimits::stall`]: who is slower holds memory for
/// nothing. A pack of 16 MiB may take nine minutes, which the slowest uplinks need.
const LEAST_RATE: u64 = 32 << 10;

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct ServeLimits {
    /// Connections in all.
    pub connections: usize,
    /// Of these, connections whose key is not known.
    pub strangers: usize,
    /// Of these, connections of one client.
    pub connections_per_client: usize,
    /// Calls of one client that are worked on at once.
    pub calls_per_client: usize,
    /// Lists of one client that are made at once: each holds all names in memory.
    pub lists_per_client: usize,
    /// Bytes of objects in memory, over all clients.
    pub memory: ByteCount,
    /// The same of one client; at least the largest pack.
    pub memory_per_client: ByteCount,
    /// Bytes that one client may send, and receive, in a second. None is without a limit.
    pub rate: Option<ByteCount>,
    /// A connection on which a started call or answer does not move for this long is closed.
    pub stall: Duration,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            strangers: 32,
            connections_per_client: 64,
            calls_per_client: 16,
            lists_per_client: 2,
            memory: ByteCount::new(384 << 20),
            memory_per_client: ByteCount::new(96 << 20),
            rate: None,
            stall: Duration::from_secs(30),
        }
    }
}

/// What one client has of the server.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) connections: Arc<Semaphore>,
    pub(super) calls: Arc<Semaphore>,
    pub(super) lists: Arc<Semaphore>,
    pub(super) memory: Arc<Semaphore>,
    pub(super) rate: Rate,
}

impl Seat {
    pub(super) fn new(limits: &ServeLimits) -> Self {
        Self {
            connections: Arc::new(Semaphore::new(limits.connections_per_client)),
            calls: Arc::new(Semaphore::new(limits.calls_per_client.max(1))),
            lists: Arc::new(Semaphore::new(limits.lists_per_client.max(1))),
            memory: memory(limits.memory_per_client),
            rate: Rate::new(limits.rate),
        }
    }
}

/// Memory for bodies; the largest always fits.
pub(super) fn memory(bytes: ByteCount) -> Arc<Semaphore> {
    let units = bytes.get().max(super::protocol::MAX_OBJECT).div_ceil(UNIT).min(1 << 20);
    Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1 << 20)))
}

/// Units that a body of this size takes, at least one.
pub(super) fn units(size: u64) -> u32 {
    u32::try_from(size.div_ceil(UNIT).max(1)).unwrap_or(u32::MAX)
}

/// A turn, within the time that clients wait for one.
pub(super) async fn turn(semaphore: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, Denied> {
    match timeout(TURN_LIMIT, semaphore.clone().acquire_many_owned(count)).await {
        Ok(Ok(permit)) => Ok(permit),
        // Semaphores of this crate are never closed.
        Ok(Err(_)) | Err(_) => Err(Denied::busy()),
    }
}

/// Until when a body of a size must be through.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    pub(super) stall: Duration,
    end: Instant,
}

impl Deadline {
    pub(super) fn new(stall: Duration, size: u64) -> Self {
        Self { stall, end: Instant::now() + stall + Duration::from_secs(size / LEAST_RATE) }
    }

    /// What we made the client wait does not count.
    pub(super) fn extend(&mut self, by: Duration) {
        self.end += by;
    }

    /// Until when the next piece must be through.
    pub(super) fn next(&self) -> Instant {
        self.end.min(Instant::now() + self.stall)
    }
}

/// Spreads bytes over time.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: Option<u64>,
    /// When what was let through so far is through.
    free_at: Mutex<Instant>,
}

impl Rate {
    fn new(rate: Option<ByteCount>) -> Self {
        let per_second = rate.map(|rate| rate.get().max(1));
        Self { per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes may pass; gives how long that was.
    pub(super) async fn pass(&self, bytes: usize) -> Duration {
        let Some(per_second) = self.per_second else { return Duration::ZERO };
        let now = Instant::now();
        let micros = (bytes as u64).saturating_mul(1_000_000) / per_second;
        let until = {
            let mut free_at = self.free_at.lock().expect("no panic while it is locked");
            let began = (*free_at).max(now);
            *free_at = began + Duration::from_micros(micros);
            began
        };
        sleep_until(until).await;
        until.saturating_duration_since(now)
    }
}
