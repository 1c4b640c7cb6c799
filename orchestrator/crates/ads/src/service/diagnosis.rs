//! The calls of an ABD that has nothing to do but to measure. They touch nothing of the store.

use super::body;
use super::routes::{Refusal, permit};
use super::session::Session;
use blocks::ByteCount;
use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use std::sync::Arc;
use std::time::Duration;
use wire::{Diagnosis, MAX_MILESTONES, MAX_SINK_PIECE, ProgressAnswer, SinkAnswer};

/// Receives a piece and throws it away. As many are received at once as packs would be.
pub(super) async fn sink(
    session: &Arc<Session>,
    body: &mut Incoming,
    stall: Duration,
) -> Result<Bytes, Refusal> {
    expect_diagnosis(session)?;
    let size = body.size_hint().exact().ok_or_else(|| {
        Refusal::new(StatusCode::LENGTH_REQUIRED, "bad-message", "a piece needs a Content-Length")
    })?;
    if size > MAX_SINK_PIECE as u64 {
        let message = format!("a piece of {size} bytes is over the limit of {MAX_SINK_PIECE}");
        return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "bad-message", message));
    }
    // Before the first byte is read: until then TCP holds the sender back.
    let _turn = permit(&session.packs, 1).await?;
    let taken = session.sink(size).ok_or_else(|| {
        Refusal::not_in_order(format!("{size} bytes more are over what the order says is sent"))
    })?;
    body::forget(body, stall).await?;
    Ok(wire::encode(&SinkAnswer { taken: ByteCount::new(taken) }).into())
}

/// Takes what was measured.
pub(super) fn diagnosis(session: &Session, diagnosis: Diagnosis) -> Result<Bytes, Refusal> {
    expect_diagnosis(session)?;
    let count = diagnosis.milestones.len();
    if count > MAX_MILESTONES {
        return Err(Refusal::bad_message(format!("{count} milestones, {MAX_MILESTONES} at most")));
    }
    session.diagnosed(diagnosis);
    Ok(wire::encode(&ProgressAnswer { stop: session.is_stopped() }).into())
}

fn expect_diagnosis(session: &Session) -> Result<(), Refusal> {
    match session.is_diagnosis() {
        true => Ok(()),
        false => Err(Refusal::not_in_order("the order is no diagnosis")),
    }
}
