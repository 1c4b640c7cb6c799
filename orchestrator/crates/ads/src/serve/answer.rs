//! The calls: what each costs, and its answer.

use super::body::{self, Answer, Piece};
use super::call::Call;
use super::denied::Denied;
use super::limits::{Deadline, Seat, turn, units};
use super::protocol::{Client, MAX_OBJECT};
use super::{Offer, Shared};
use crate::backend::{Listed, Object};
use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use pin::Fingerprint;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout_at;

/// An object is read and given in pieces of this size.
const PIECE: u64 = 1 << 20;
/// The same of a list.
const LIST_PIECE: usize = 64 << 10;
/// Memory that one answer takes: a piece that waits, one that is read.
const ANSWER_SIZE: u64 = 2 * PIECE;
/// Bytes of a refused stranger's call that are read along.
const STRANGER_BODY: u64 = 64 << 10;

/// Answers one call.
pub(super) async fn answer(
    shared: Arc<Shared>,
    peer: Fingerprint,
    request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    let (head, mut body) = request.into_parts();
    let Some(client) = shared.offer.client(peer) else {
        let message = format!("the server does not know the key {peer}");
        let deadline = Deadline::new(shared.limits.stall, 0);
        body::drain(&mut body, STRANGER_BODY, &shared.stranger.rate, deadline).await;
        let mut refused = refused(&Denied::new(401, "unknown-key", message));
        refused.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(refused);
    };
    let seat = shared.seat(peer);
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let outcome = match Call::decode(&head.method, path, &head.headers) {
        Ok(call) => run(&shared, &seat, &client, call, &mut body).await,
        Err(denied) => Err(denied),
    };
    Ok(match outcome {
        Ok(response) => response,
        Err(denied) => {
            note(&client, &head.method, path, &denied);
            // Who was too slow is not waited for again.
            if denied.status != 408 {
                let size = body.size_hint().lower().min(MAX_OBJECT);
                let deadline = Deadline::new(shared.limits.stall, size);
                body::drain(&mut body, MAX_OBJECT, &seat.rate, deadline).await;
            }
            refused(&denied)
        }
    })
}

/// Who was refused what: a client that has gone wrong, or was stolen, shows here first.
fn note(client: &Client, method: &hyper::Method, path: &str, denied: &Denied) {
    let path: String = path.chars().take(120).collect();
    let Denied { status, code, message } = denied;
    match status {
        404 => tracing::debug!(client = %client.name, %method, path, code, message, "not done"),
        _ => {
            tracing::warn!(client = %client.name, key = %client.key, %method, path, code, message, "not done")
        }
    }
}

fn refused(denied: &Denied) -> Response<Answer> {
    let mut response = Response::new(Answer::whole(denied.to_bytes()));
    *response.status_mut() = StatusCode::from_u16(denied.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn run(
    shared: &Arc<Shared>,
    seat: &Arc<Seat>,
    client: &Client,
    call: Call,
    body: &mut Incoming,
) -> Result<Response<Answer>, Denied> {
    let turn = turn(&seat.calls, 1).await?;
    let whole = |bytes: Vec<u8>| Response::new(Answer::whole(bytes));
    match call {
        Call::About => {
            let client = client.clone();
            let standing = blocking(shared, move |offer| offer.standing(&client)).await?;
            Ok(whole(json(&standing)?))
        }
        Call::Size { key } => {
            let size = blocking(shared, move |offer| Ok(offer.backend().head(&key)?)).await?;
            Ok(whole(json(&size.ok_or_else(Denied::not_found)?)?))
        }
        Call::List { prefix } => list(shared, seat, prefix, turn).await,
        Call::Get { key, range } => get(shared, seat, key, range, turn).await,
        Call::Put { key, size, only_new } => {
            put(shared, seat, client, (key, size, only_new), body, turn).await
        }
        Call::Delete { key } => {
            let client = client.clone();
            blocking(shared, move |offer| offer.delete(&client, &key)).await?;
            Ok(whole(Vec::new()))
        }
    }
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, Denied> {
    serde_json::to_vec(value).map_err(|error| Denied::new(500, "store-error", error.to_string()))
}

async fn put(
    shared: &Arc<Shared>,
    seat: &Arc<Seat>,
    client: &Client,
    (key, size, only_new): (String, u64, bool),
    body: &mut Incoming,
    turn_taken: OwnedSemaphorePermit,
) -> Result<Response<Answer>, Denied> {
    let most = shared.offer.most(client, &key)?;
    if size > most {
        return Err(Denied::too_large(size, most));
    }
    // Before the first byte is read: until then TCP holds the sender back.
    let own = turn(&seat.memory, units(size)).await?;
    let all = turn(&shared.memory, units(size)).await?;
    let bytes = body::read(body, size, &seat.rate, Deadline::new(shared.limits.stall, size)).await?;
    let client = client.clone();
    // The permits go along: who goes away in the middle does not make room for another while his work still runs.
    let written = blocking(shared, move |offer| {
        let outcome = offer.put(&client, &key, &bytes, only_new);
        drop((bytes, own, all, turn_taken));
        outcome
    })
    .await?;
    match written {
        true => Ok(Response::new(Answer::whole(Bytes::new()))),
        false => Err(Denied::new(412, "exists", "there is such an object")),
    }
}

/// What is read of an object, and its first piece.
struct Opened {
    object: Arc<dyn Object>,
    offset: u64,
    size: u64,
    first: Bytes,
}

async fn get(
    shared: &Arc<Shared>,
    seat: &Arc<Seat>,
    key: String,
    range: Option<(u64, u64)>,
    turn_taken: OwnedSemaphorePermit,
) -> Result<Response<Answer>, Denied> {
    let own = turn(&seat.memory, units(ANSWER_SIZE)).await?;
    let all = turn(&shared.memory, units(ANSWER_SIZE)).await?;
    let opened = blocking(shared, move |offer| open(offer, &key, range)).await?;
    let mut response = Response::new(Answer::Whole(None));
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let (sender, answer) = Answer::pieces(Some(opened.size));
    *response.body_mut() = answer;
    let deadline = Deadline::new(shared.limits.stall, opened.size);
    let seat = seat.clone();
    tokio::spawn(async move {
        give(opened, &sender, &seat, deadline).await;
        drop((own, all, turn_taken));
    });
    Ok(response)
}

/// Finds out how much there is to give, and reads the first piece of it.
fn open(offer: &dyn Offer, key: &str, range: Option<(u64, u64)>) -> Result<Opened, Denied> {
    let backend = offer.backend();
    let past_the_end = || Denied::new(416, "past-the-end", "the object ends before");
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Denied::not_found(),
        io::ErrorKind::UnexpectedEof => past_the_end(),
        _ => Denied::new(500, "store-error", error.to_string()),
    };
    let read = |object: &dyn Object, offset: u64, size: u64| {
        let mut bytes = vec![0; usize::try_from(size.min(PIECE)).expect("a piece fits")];
        object.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
    };
    let object = backend.open(key)?;
    let (offset, wanted) = range.map_or((0, u64::MAX), |(first, last)| (first, last - first + 1));
    if wanted <= PIECE {
        match read(&*object, offset, wanted) {
            Ok(first) => return Ok(Opened { object, offset, size: wanted, first }),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(failed(error)),
            // Less is there: what there is, is given.
            Err(_) => {}
        }
    }
    let whole = backend.head(key)?.ok_or_else(Denied::not_found)?;
    let size = whole.saturating_sub(offset).min(wanted);
    match size {
        0 if range.is_some() => Err(past_the_end()),
        size if size > MAX_OBJECT => {
            Err(Denied::new(500, "store-error", "the object is larger than any may be"))
        }
        size => {
            let first = read(&*object, offset, size).map_err(failed)?;
            Ok(Opened { object, offset, size, first })
        }
    }
}

/// Gives an object piece by piece. Breaks off where something fails or the client is too slow: he sees a cut body.
async fn give(opened: Opened, sender: &Sender<Piece>, seat: &Seat, mut deadline: Deadline) {
    let Opened { object, mut offset, size, first } = opened;
    let (mut left, mut piece) = (size, first);
    loop {
        left -= piece.len() as u64;
        offset += piece.len() as u64;
        deadline.extend(seat.rate.pass(piece.len()).await);
        if !put_piece(sender, Piece::Bytes(piece), &deadline).await {
            return;
        }
        if left == 0 {
            break;
        }
        let (object, wanted) = (object.clone(), usize::try_from(left.min(PIECE)).expect("a piece fits"));
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; wanted];
            object.read_exact_at(&mut bytes, offset).map(|()| Bytes::from(bytes))
        });
        piece = match read.await {
            Ok(Ok(piece)) => piece,
            Ok(Err(error)) => return tracing::warn!(%error, "an object cannot be read to its end"),
            Err(_) => return,
        };
    }
    put_piece(sender, Piece::End, &deadline).await;
}

async fn put_piece(sender: &Sender<Piece>, piece: Piece, deadline: &Deadline) -> bool {
    matches!(timeout_at(deadline.next(), sender.send(piece)).await, Ok(Ok(())))
}

async fn list(
    shared: &Arc<Shared>,
    seat: &Arc<Seat>,
    prefix: String,
    turn_taken: OwnedSemaphorePermit,
) -> Result<Response<Answer>, Denied> {
    let own = turn(&seat.lists, 1).await?;
    let found = blocking(shared, move |offer| Ok(offer.backend().list(&prefix)?)).await?;
    let (sender, answer) = Answer::pieces(None);
    let (seat, stall) = (seat.clone(), shared.limits.stall);
    tokio::spawn(async move {
        give_list(&found, &sender, &seat, Deadline::new(stall, found.len() as u64 * 100)).await;
        drop((own, turn_taken));
    });
    Ok(Response::new(answer))
}

/// A line for each object: `[size,"key"]`.
async fn give_list(found: &[Listed], sender: &Sender<Piece>, seat: &Seat, mut deadline: Deadline) {
    let mut text = Vec::with_capacity(LIST_PIECE);
    for (at, Listed { key, size }) in found.iter().enumerate() {
        if serde_json::to_writer(&mut text, &(size, key)).is_err() {
            return;
        }
        text.push(b'\n');
        if text.len() >= LIST_PIECE || at + 1 == found.len() {
            deadline.extend(seat.rate.pass(text.len()).await);
            let piece = Piece::Bytes(std::mem::take(&mut text).into());
            if !put_piece(sender, piece, &deadline).await {
                return;
            }
        }
    }
    put_piece(sender, Piece::End, &deadline).await;
}

/// Runs work of the store off the runtime.
async fn blocking<T: Send + 'static>(
    shared: &Arc<Shared>,
    work: impl FnOnce(&dyn Offer) -> Result<T, Denied> + Send + 'static,
) -> Result<T, Denied> {
    let offer = shared.offer.clone();
    match tokio::task::spawn_blocking(move || work(&*offer)).await {
        Ok(outcome) => outcome,
        Err(error) => Err(Denied::new(500, "store-error", format!("the work was stopped: {error}"))),
    }
}
