//! What a call sends: read in pieces, bounded in size and time.

use super::routes::Refusal;
use blocks::ByteCount;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use seal::MAX_PACK_SIZE;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::timeout;

/// Largest question: the last words about 250 disks, each with the accounts of two passes (of some 500 bytes), are below.
pub(super) const MAX_QUESTION: usize = 512 << 10;
/// Packs in memory are counted in these.
pub(super) const INGEST_UNIT: u64 = 1 << 20;
/// Units of the largest pack.
pub(super) const MAX_PACK_UNITS: usize = MAX_PACK_SIZE.div_ceil(INGEST_UNIT as usize);
/// Least units that a pack counts for: many small ones would otherwise be many blocking threads.
const LEAST_UNITS: usize = 4;

/// Memory of packs that is kept for the next ones: what one job has on its way, whatever the number of jobs.
const KEPT_PACKS: usize = 2;
/// Memory of packs above the default size is not kept.
const KEPT_PACK_SIZE: usize = 17 << 20;

/// Memory of packs that were taken in. Fresh pages for every pack would cost a tenth of what checking it costs.
#[derive(Debug, Default)]
pub(super) struct Kept {
    packs: Mutex<Vec<Vec<u8>>>,
}

impl Kept {
    /// Memory for a pack, perhaps with room in it.
    pub(super) fn take(&self) -> Vec<u8> {
        self.packs.lock().expect("no panic while it is locked").pop().unwrap_or_default()
    }

    /// Keeps memory, if there is not enough already.
    pub(super) fn give(&self, bytes: Vec<u8>) {
        let mut packs = self.packs.lock().expect("no panic while it is locked");
        if packs.len() < KEPT_PACKS && bytes.capacity() <= KEPT_PACK_SIZE {
            packs.push(bytes);
        }
    }
}

/// Units of this many bytes.
pub(super) fn ingest_units(bytes: ByteCount) -> usize {
    usize::try_from(bytes.get().div_ceil(INGEST_UNIT)).unwrap_or(usize::MAX).min(1 << 20)
}

/// The length that a pack's call announces. A pack without one could not be weighed before it is read.
pub(super) fn pack_size(body: &Incoming) -> Result<usize, Refusal> {
    let size = body.size_hint().exact().ok_or_else(|| {
        Refusal::new(StatusCode::LENGTH_REQUIRED, "bad-message", "a pack needs a Content-Length")
    })?;
    usize::try_from(size).ok().filter(|size| *size <= MAX_PACK_SIZE).ok_or_else(|| {
        let message = format!("a pack of {size} bytes is over the limit of {MAX_PACK_SIZE}");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "bad-pack", message)
    })
}

/// Permits that a pack of this size needs.
pub(super) fn pack_units(size: usize) -> u32 {
    let units = size.div_ceil(INGEST_UNIT as usize).max(LEAST_UNITS);
    u32::try_from(units).expect("bounded by MAX_PACK_SIZE")
}

/// Reads a body of at most `limit` bytes; between two pieces at most `stall` may pass. `bytes` is memory to use, if it has
/// room.
pub(super) async fn read(
    body: &mut Incoming,
    limit: usize,
    stall: Duration,
    mut bytes: Vec<u8>,
) -> Result<Vec<u8>, Refusal> {
    let too_large = || {
        let message = format!("a body of more than {limit} bytes is not read here");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "bad-message", message)
    };
    let expected = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if expected > limit {
        return Err(too_large());
    }
    bytes.clear();
    bytes.reserve_exact(expected);
    while let Some(piece) = next_piece(body, stall).await? {
        if bytes.len() + piece.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

/// Reads a body whose size was announced and keeps nothing of it.
pub(super) async fn forget(body: &mut Incoming, stall: Duration) -> Result<(), Refusal> {
    while next_piece(body, stall).await?.is_some() {}
    Ok(())
}

/// The next piece of a body; none at its end. It must come within `stall`.
async fn next_piece(body: &mut Incoming, stall: Duration) -> Result<Option<Bytes>, Refusal> {
    loop {
        match timeout(stall, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(piece) = frame.into_data() {
                    return Ok(Some(piece));
                }
            }
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => {
                let message = format!("the body cannot be read: {error}");
                return Err(Refusal::new(StatusCode::BAD_REQUEST, "cut-message", message));
            }
            Err(_) => {
                let message = format!("nothing of the body came for {} s", stall.as_secs());
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, "bad-message", message));
            }
        }
    }
}

/// Reads the rest of a refused call's body and forgets it: a sender who finds the connection closed while he still
/// writes would never see the answer.
pub(super) async fn drain(body: &mut Incoming, limit: usize, stall: Duration) {
    let mut left = limit;
    while let Ok(Some(Ok(frame))) = timeout(stall, body.frame()).await {
        let size = frame.data_ref().map_or(0, |piece| piece.len());
        if size > left {
            return;
        }
        left -= size;
    }
}
