//! The calls of `PROTOCOL.md`: who may make them, what they cost, and their answers.

use super::session::{Access, Session};
use super::{Shared, body, diagnosis};
use crate::error::{Error, ErrorKind, sentence};
use blocks::BlockIndex;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use pin::Fingerprint;
use seal::{MAX_PACK_SIZE, PackId, Tree};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wire::{
    BitmapQuestion, BlocksQuestion, Claim, DiskAnswer, DiskDone, Failure, JobDone, KnownAnswer,
    KnownQuestion, MAX_BLOCKS, MAX_KNOWN_IDS, MAX_NODES, NodeBytes, NodesAnswer, NodesQuestion,
    PROTOCOL_VERSION, PackAnswer, Progress, ProgressAnswer, Spent,
};

/// A call that is not answered with what it asked for.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    failure: Failure,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, failure: Failure::new(code, message) }
    }

    pub(super) fn bad_message(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-message", message)
    }

    pub(super) fn not_in_order(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "not-in-order", message)
    }

    fn over() -> Self {
        Self::new(StatusCode::GONE, "job-over", "the job is over; power off")
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (status, code) = match error.kind() {
            ErrorKind::Full => (StatusCode::INSUFFICIENT_STORAGE, "store-full"),
            ErrorKind::BadPack => (StatusCode::UNPROCESSABLE_ENTITY, "bad-pack"),
            ErrorKind::Missing => (StatusCode::CONFLICT, "missing-block"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "store-error"),
        };
        Self::new(status, code, sentence(&error))
    }
}

impl From<wire::Error> for Refusal {
    fn from(error: wire::Error) -> Self {
        Self::bad_message(error.to_string())
    }
}

/// Where the time of one call goes.
struct Clock {
    since: Instant,
    spent: Spent,
}

impl Clock {
    fn start() -> Self {
        Self { since: Instant::now(), spent: Spent::default() }
    }

    /// How much has passed since the last question.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now.duration_since(self.since);
        self.since = now;
        lap
    }
}

/// Answers one call.
pub(super) async fn answer(
    shared: Arc<Shared>,
    peer: Fingerprint,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut clock = Clock::start();
    let (head, mut body) = request.into_parts();
    let mut drained = MAX_PACK_SIZE;
    let outcome = match shared.registry.access(peer) {
        Access::Unknown => {
            drained = body::MAX_QUESTION;
            let message = format!("the key {peer} is not admitted yet; ask again");
            Err(Refusal::new(StatusCode::UNAUTHORIZED, "unknown-key", message))
        }
        Access::Over => Err(Refusal::over()),
        Access::Open(session) => {
            session.touch();
            let outcome = route(&shared, &session, &head, &mut body, &mut clock).await;
            session.touch();
            if let Err(Refusal { failure, .. }) = &outcome {
                session.refused(&failure.code, &failure.message);
            }
            outcome
        }
    };
    let (status, answer) = match outcome {
        Ok(answer) => (StatusCode::OK, answer),
        Err(Refusal { status, failure }) => {
            body::drain(&mut body, drained, shared.limits.stall).await;
            (status, wire::encode(&failure).into())
        }
    };
    let mut response = Response::new(Full::new(answer));
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::try_from(clock.spent.to_header()) {
        response.headers_mut().insert(wire::HEADER_SPENT, value);
    }
    Ok(response)
}

async fn route(
    shared: &Shared,
    session: &Arc<Session>,
    head: &Parts,
    body: &mut Incoming,
    clock: &mut Clock,
) -> Result<Bytes, Refusal> {
    let path = head.uri.path();
    if let Some(id) = path.strip_prefix(wire::PATH_PACKS) {
        expect_method(head, &Method::PUT)?;
        return put_pack(shared, session, id, body, clock).await;
    }
    expect_method(head, &Method::POST)?;
    if path == wire::PATH_SINK {
        expect_claimed(session)?;
        let answer = diagnosis::sink(session, body, shared.limits.stall).await;
        clock.spent.receive = clock.lap();
        return answer;
    }
    let body = body::read(body, body::MAX_QUESTION, shared.limits.stall, Vec::new()).await?;
    clock.spent.receive = clock.lap();
    let answer = ask(shared, session, path, &body).await;
    clock.spent.work = clock.lap();
    answer
}

/// The calls that only ask or tell.
async fn ask(shared: &Shared, session: &Arc<Session>, path: &str, body: &[u8]) -> Result<Bytes, Refusal> {
    if path == wire::PATH_CLAIM {
        return claim(session, body);
    }
    expect_claimed(session)?;
    match path {
        wire::PATH_BITMAP => bitmap(session, &wire::decode(body)?),
        wire::PATH_KNOWN => known(shared, session, &wire::decode(body)?),
        wire::PATH_NODES => nodes(shared, session, wire::decode(body)?).await,
        wire::PATH_BLOCKS => blocks(shared, session, wire::decode(body)?).await,
        wire::PATH_DISK_DONE => disk_done(shared, session, wire::decode(body)?).await,
        wire::PATH_DIAGNOSIS => diagnosis::diagnosis(session, wire::decode(body)?),
        wire::PATH_PROGRESS => progress(session, wire::decode(body)?),
        wire::PATH_JOB_DONE => job_done(session, wire::decode(body)?),
        _ => {
            let path: String = path.chars().take(80).collect();
            Err(Refusal::new(StatusCode::NOT_FOUND, "bad-message", format!("there is no call {path}")))
        }
    }
}

fn expect_method(head: &Parts, method: &Method) -> Result<(), Refusal> {
    if head.method == method {
        return Ok(());
    }
    let message = format!("this call is made with {method}");
    Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "bad-message", message))
}

fn expect_claimed(session: &Session) -> Result<(), Refusal> {
    match session.is_claimed() {
        true => Ok(()),
        false => Err(Refusal::not_in_order("the order was not claimed yet")),
    }
}

fn claim(session: &Session, body: &[u8]) -> Result<Bytes, Refusal> {
    // Before anything else: a later version may say the rest differently.
    let protocol = wire::claim_protocol(body)?;
    if protocol != PROTOCOL_VERSION {
        let message = format!(
            "the appliance speaks protocol version {protocol}, this orchestrator version {PROTOCOL_VERSION}: \
             import the template that belongs to this orchestrator"
        );
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "protocol-version", message));
    }
    let claim: Claim = wire::decode(body)?;
    if claim.job != session.job {
        let named: String = claim.job.chars().take(80).collect();
        let message = format!("this key belongs to job {}, not to '{named}'", session.job);
        return Err(Refusal::new(StatusCode::FORBIDDEN, "wrong-job", message));
    }
    session.claimed(claim);
    Ok(session.order_bytes.clone())
}

fn bitmap(session: &Session, question: &BitmapQuestion) -> Result<Bytes, Refusal> {
    let bitmap = session.bitmaps.get(usize::from(question.disk)).cloned().flatten();
    bitmap.ok_or_else(|| Refusal::not_in_order(format!("disk {} has no bitmap", question.disk)))
}

fn known(shared: &Shared, session: &Session, question: &KnownQuestion) -> Result<Bytes, Refusal> {
    expect_backup(session)?;
    if question.ids.len() > MAX_KNOWN_IDS {
        return Err(Refusal::bad_message(format!(
            "{} ids at once, {MAX_KNOWN_IDS} at most",
            question.ids.len()
        )));
    }
    let packs: Vec<Option<PackId>> = question.ids.iter().map(|id| shared.store.pack_of(id)).collect();
    session.promise(packs.iter().flatten().copied());
    Ok(wire::encode(&KnownAnswer { known: packs.iter().map(Option::is_some).collect() }).into())
}

async fn nodes(shared: &Shared, session: &Arc<Session>, question: NodesQuestion) -> Result<Bytes, Refusal> {
    let tree = readable_tree(session, question.disk)?;
    if usize::from(question.count) > MAX_NODES {
        return Err(Refusal::bad_message(format!("{} nodes at once, {MAX_NODES} at most", question.count)));
    }
    if !(1..=tree.levels()).contains(&question.level) {
        let message = format!("level {} of a tree with {} levels", question.level, tree.levels());
        return Err(Refusal::bad_message(message));
    }
    let store = shared.store.clone();
    let permit = read_permit(session).await?;
    blocking(permit, move || {
        let found = store.nodes_at(&tree, question.level, question.first, question.count.into())?;
        let nodes =
            found.into_iter().map(|(index, node)| NodeBytes { index, bytes: node.as_bytes().to_vec() });
        Ok(wire::encode(&NodesAnswer { nodes: nodes.collect() }).into())
    })
    .await
}

async fn blocks(shared: &Shared, session: &Arc<Session>, question: BlocksQuestion) -> Result<Bytes, Refusal> {
    let Some(disk) = session.restore_disk(question.disk) else {
        return Err(Refusal::not_in_order(format!("disk {} is not one to restore", question.disk)));
    };
    let tree = disk.tree();
    if question.blocks.len() > MAX_BLOCKS || !question.blocks.is_sorted_by(|a, b| a < b) {
        return Err(Refusal::bad_message(format!("blocks must ascend, {MAX_BLOCKS} at most")));
    }
    let store = shared.store.clone();
    let permit = read_permit(session).await?;
    blocking(permit, move || {
        let absent = |block: BlockIndex| Refusal::bad_message(format!("block {block} of the disk is absent"));
        let ids = store.blocks_at(&tree, &question.blocks)?;
        let ids = ids.into_iter().zip(&question.blocks).map(|(id, block)| id.ok_or_else(|| absent(*block)));
        Ok(store.blocks_message(&ids.collect::<Result<Vec<_>, _>>()?)?.into())
    })
    .await
}

async fn put_pack(
    shared: &Shared,
    session: &Arc<Session>,
    id: &str,
    body: &mut Incoming,
    clock: &mut Clock,
) -> Result<Bytes, Refusal> {
    expect_claimed(session)?;
    expect_backup(session)?;
    let id: PackId = id.parse().map_err(|error| Refusal::bad_message(format!("{error}")))?;
    let size = body::pack_size(body)?;
    // Both before the first byte is read: until then TCP holds the sender back.
    let turn = permit(&session.packs, 1).await?;
    let memory = permit(&shared.ingest, body::pack_units(size)).await?;
    if session.is_closed() {
        return Err(Refusal::over());
    }
    clock.spent.wait = clock.lap();
    let bytes = body::read(body, size, shared.limits.stall, shared.kept.take()).await?;
    clock.spent.receive = clock.lap();
    let (store, kept) = (shared.store.clone(), shared.kept.clone());
    let work = move || {
        let receipt = store.add_pack(id, &bytes);
        kept.give(bytes);
        Ok(receipt?)
    };
    let receipt = blocking((turn, memory), work).await?;
    clock.spent.work = receipt.checked_in;
    clock.spent.write = receipt.kept_in;
    // For a thread to do it, and for this task to go on.
    let waited = clock.lap().saturating_sub(receipt.checked_in).saturating_sub(receipt.kept_in);
    clock.spent.wait = clock.spent.wait.saturating_add(waited);
    Ok(wire::encode(&PackAnswer { stored: receipt.stored }).into())
}

async fn disk_done(shared: &Shared, session: &Arc<Session>, done: DiskDone) -> Result<Bytes, Refusal> {
    let tree = done.tree();
    let (expected, base) = match (session.backup_disk(done.disk), session.restore_disk(done.disk)) {
        (Some(disk), _) => (disk.size, disk.start.base()),
        (None, Some(disk)) if disk.tree() == tree => (disk.size, Some(tree)),
        (None, Some(_)) => {
            let message = format!("disk {} is to hold another tree", done.disk);
            return Err(Refusal::not_in_order(message));
        }
        (None, None) => return Err(no_disk(done.disk)),
    };
    if tree.size != expected {
        let message = format!("disk {} has {expected}, the tree says {}", done.disk, tree.size);
        return Err(Refusal::not_in_order(message));
    }
    if session.sealed(done.disk).is_some_and(|sealed| sealed != tree) {
        let message = format!("disk {} is finished with another tree", done.disk);
        return Err(Refusal::not_in_order(message));
    }
    if !done.bad.is_empty() && !session.may_skip_bad_blocks() {
        let message = format!("disk {} was to be read whole, {} of it are missing", done.disk, done.bad);
        return Err(Refusal::not_in_order(message));
    }
    if let Some(fault) = done.bad.fault(tree.size) {
        return Err(Refusal::bad_message(format!("unreadable parts of disk {}: {fault}", done.disk)));
    }
    let (store, session) = (shared.store.clone(), session.clone());
    let permit = read_permit(&session).await?;
    blocking(permit, move || {
        let id = store.finish_tree(tree, base)?;
        session.seal(done, id);
        Ok(wire::encode(&DiskAnswer { tree: id }).into())
    })
    .await
}

fn progress(session: &Session, progress: Progress) -> Result<Bytes, Refusal> {
    expect_counts(session, progress.disks.len())?;
    session.progress(progress);
    Ok(wire::encode(&ProgressAnswer { stop: session.is_stopped() }).into())
}

fn job_done(session: &Session, done: JobDone) -> Result<Bytes, Refusal> {
    expect_counts(session, done.disks.len())?;
    let unfinished = (0..).take(session.disk_count()).find(|disk| session.sealed(*disk).is_none());
    if let (Ok(()), true, Some(disk)) = (&done.outcome, session.is_backup(), unfinished) {
        return Err(Refusal::not_in_order(format!("disk {disk} is not finished")));
    }
    if done.outcome.is_ok() && session.lacks_diagnosis() {
        return Err(Refusal::not_in_order("the diagnosis was not told"));
    }
    session.done(done);
    Ok(wire::encode(&ProgressAnswer { stop: session.is_stopped() }).into())
}

fn expect_counts(session: &Session, found: usize) -> Result<(), Refusal> {
    match session.disk_count() {
        count if count == found => Ok(()),
        count => Err(Refusal::bad_message(format!("counts of {found} disks, the order has {count}"))),
    }
}

fn expect_backup(session: &Session) -> Result<(), Refusal> {
    match session.is_backup() {
        true => Ok(()),
        false => Err(Refusal::not_in_order("the order is no backup")),
    }
}

/// The one tree of a disk that an ABD may read: its base, or what to restore.
fn readable_tree(session: &Session, disk: u16) -> Result<Tree, Refusal> {
    match (session.backup_disk(disk), session.restore_disk(disk)) {
        (_, Some(disk)) => Ok(disk.tree()),
        (Some(backup), None) => {
            backup.start.base().ok_or_else(|| Refusal::not_in_order(format!("disk {disk} has no base")))
        }
        (None, None) => Err(no_disk(disk)),
    }
}

fn no_disk(disk: u16) -> Refusal {
    Refusal::not_in_order(format!("the order has no disk {disk}"))
}

async fn read_permit(session: &Session) -> Result<OwnedSemaphorePermit, Refusal> {
    permit(&session.reads, 1).await
}

pub(super) async fn permit(semaphore: &Arc<Semaphore>, count: u32) -> Result<OwnedSemaphorePermit, Refusal> {
    // Semaphores of this crate are never closed.
    semaphore.clone().acquire_many_owned(count).await.map_err(|_| Refusal::over())
}

/// Runs work of the store off the runtime. The permits go along: a caller who goes away in the middle does
/// not make room for another while his work still runs.
async fn blocking<P: Send + 'static, T: Send + 'static>(
    permits: P,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let work = tokio::task::spawn_blocking(move || {
        let outcome = work();
        drop(permits);
        outcome
    });
    match work.await {
        Ok(outcome) => outcome,
        Err(error) => Err(Error::Worker { reason: error.to_string() }.into()),
    }
}
