//! What an ABD without a job measures: `abd doctor --delegate`.

use crate::Failure;
use blocks::ByteCount;
use serde::{Deserialize, Serialize};

/// `POST`, raw bytes to [`SinkAnswer`]: they are thrown away. Needs a `Content-Length`.
pub const PATH_SINK: &str = "/abd/v1/sink";
/// `POST`, [`Diagnosis`] to [`crate::ProgressAnswer`], once.
pub const PATH_DIAGNOSIS: &str = "/abd/v1/diagnosis";

/// Most bytes of one call of [`PATH_SINK`]: several such pieces on their way are little of an ABD's memory.
pub const MAX_SINK_PIECE: usize = 4 << 20;
/// Most bytes that an order may have sent: a few seconds of a fast network. A service takes twice of what its order says,
/// because a call whose connection broke is repeated.
pub const MAX_SINK: ByteCount = ByteCount::new(1 << 30);
/// Most moments in one [`Diagnosis`].
pub const MAX_MILESTONES: usize = 64;

/// Bytes were received and thrown away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkAnswer {
    /// All of the job so far.
    pub taken: ByteCount,
}

/// What an ABD measured. What could not be measured is a failure of its own, and the rest is there all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Its clock when this was sent: milliseconds since 1970.
    pub clock_ms: u64,
    /// Processors that it has.
    pub processors: u16,
    /// What was reached when, in that order; at most [`MAX_MILESTONES`].
    pub milestones: Vec<Milestone>,
    /// A connection that was opened anew.
    pub connect: Result<Connect, Failure>,
    /// The shortest of several calls that carry nothing, in microseconds.
    pub round_trip_us: Result<u64, Failure>,
    /// Reading its own disk.
    pub read: Result<Speed, Failure>,
    /// Sending to the service.
    pub send: Result<Speed, Failure>,
}

/// A named moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Milestone {
    /// What was reached, for people.
    pub name: String,
    /// Milliseconds since the kernel started.
    pub at_ms: u64,
}

/// What opening a connection took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connect {
    /// Where it leads: address and port.
    pub address: String,
    /// Until TCP was connected, in microseconds.
    pub tcp_us: u64,
    /// From there until both keys were checked, in microseconds.
    pub tls_us: u64,
}

/// How much was moved in what time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// Bytes.
    pub bytes: ByteCount,
    /// From the first to the last, in microseconds.
    pub micros: u64,
    /// The longest that one piece took, in microseconds.
    pub slowest_us: u64,
}

impl Speed {
    /// Bytes per second; none where no time was measured.
    pub fn per_second(&self) -> Option<ByteCount> {
        let rate = u128::from(self.bytes.get()) * 1_000_000 / std::num::NonZeroU128::new(self.micros.into())?;
        Some(ByteCount::new(u64::try_from(rate).unwrap_or(u64::MAX)))
    }
}
