//! What jobs need, whatever they do, and `abd restore`.

use super::{RestoreArgs, Session, find_sr};
use crate::config::PoolConfig;
use crate::error::{Error, Kind, Result};
use crate::job::{DEFAULT_PACK_SIZE, End, Run, restore};
use crate::networks::Card;
use crate::pool::Pool;
use crate::report::Event;
use crate::spec::JobOptions;
use crate::{catalog, template};
use std::net::{Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// What restore points and locks call a run.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// Its uuid.
    pub run: String,
    /// Name of its job file.
    pub name: Option<String>,
}

/// Opens the store, and makes it where that is asked for.
pub(super) async fn open_store(session: &Session, directory: &Path, create: bool) -> Result<Arc<ads::Store>> {
    let owned = directory.to_owned();
    let opened = tokio::task::spawn_blocking(move || catalog::open(&owned, create)).await;
    let (store, made) = opened
        .map_err(|error| Error::new(Kind::Failed, "opening the store was stopped").because(error))??;
    if made {
        let message = format!("made a store at {}", directory.display());
        session.report.event(&Event::Note { message });
    }
    Ok(store)
}

/// What earlier jobs left in a pool.
#[derive(Debug, Default)]
pub(super) struct Residue {
    /// Whether something is still there that could not be removed.
    pub is_there: bool,
    /// What was told about it.
    pub warnings: Vec<String>,
}

/// Connects to a pool, removes what dead jobs left in it, and starts the store's service for its delegates: what jobs in it need.
pub(super) async fn enter_pool(
    session: &Session,
    config: PoolConfig,
    store: Arc<ads::Store>,
    identity: &Identity,
    cancel: watch::Receiver<bool>,
) -> Result<(Run, Residue)> {
    let pool = Pool::connect(&session.state, config).await?;
    let residue = clean_up_after_dead_jobs(session, &pool).await;
    match prepare_with(&pool, store).await {
        Ok((templates, cards, service, url)) => {
            let run = Run {
                id: identity.run.clone(),
                pool,
                store: service.1,
                service: service.0,
                templates,
                cards,
                url,
                journals: session.state.journal_directory(),
                report: session.report.clone(),
                cancel,
                name: identity.name.clone(),
                pack_size: DEFAULT_PACK_SIZE,
            };
            Ok((run, residue))
        }
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

type Prepared = (Vec<template::TemplateAt>, Vec<Card>, (ads::Service, Arc<ads::Store>), String);

async fn prepare_with(pool: &Pool, store: Arc<ads::Store>) -> Result<Prepared> {
    let templates = template::usable(pool).await?;
    let cards = pool.delegate_cards().await?;
    let listen = pool.config.listen.unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let identity = pin::Identity::generate()
        .map_err(|error| Error::new(Kind::Failed, "cannot make a key").because(error))?;
    let service = ads::Service::start(store.clone(), identity, &[listen]).await.map_err(|error| {
        Error::new(Kind::Usage, format!("cannot listen at {listen} for delegates"))
            .because(error)
            .remedy("name a free address and port with `abd pool set --listen`")
    })?;
    let address = service.addresses().first().copied().unwrap_or(listen);
    let url = format!("https://{}", pool.advertised(address).await?);
    Ok((templates, cards, (service, store), url))
}

/// Removes what dead jobs left in the pool before new ones start. What resists does not keep them from running.
async fn clean_up_after_dead_jobs(session: &Session, pool: &Pool) -> Residue {
    let mut residue = Residue::default();
    let mut warn = |message: String| {
        session.report.event(&Event::Warning { job: None, message: message.clone() });
        residue.warnings.push(message);
    };
    match crate::reconcile::run(&session.state, pool).await {
        Ok(outcome) => {
            let (jobs, removed) = (outcome.jobs.len(), outcome.removed);
            if jobs > 0 {
                let message =
                    format!("cleaned up after {jobs} dead jobs: {} objects removed", removed.objects.len());
                session.report.event(&Event::Note { message });
            }
            let name = &pool.config.name;
            for leftover in &removed.leftovers {
                warn(format!("still in pool '{name}', of an earlier job: {leftover}"));
            }
            residue.is_there = !removed.leftovers.is_empty();
        }
        Err(error) => warn(format!("cannot clean up after dead jobs: {}", error.chain())),
    }
    residue
}

/// Turns true at the first SIGINT or SIGTERM. The second ends the process at once; the journal stays whole.
pub(super) fn watch_signals() -> watch::Receiver<bool> {
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            tracing::warn!("signals cannot be watched: stopping will not clean up");
            return;
        };
        for _ in 0..2 {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if sender.send_replace(true) {
                break;
            }
            eprintln!("abd: stopping and cleaning up; once more to stop at once");
        }
        std::process::exit(i32::from(Kind::Cancelled.exit_code()));
    });
    receiver
}

pub(super) async fn restore(session: &Session, args: RestoreArgs) -> Result<()> {
    let mut options = JobOptions::default();
    args.delegate.apply(&mut options.delegate);
    let config = session.state.pool(args.pool.as_deref())?;
    let store = open_store(session, &session.store, false).await?;
    let identity = Identity { run: uuid::Uuid::new_v4().to_string(), name: None };
    let (run, _) = enter_pool(session, config, store, &identity, watch_signals()).await?;
    let result = async {
        let (store, id) = (run.store.clone(), args.point.clone());
        let found = move || Ok((store.find_point(&id)?, catalog::Doubts::of(&store.points()?.points)));
        let (point, doubts) = tokio::task::spawn_blocking(found)
            .await
            .map_err(|error| {
                Error::new(Kind::Failed, "looking for the restore point was stopped").because(error)
            })?
            .map_err(catalog::store_error)?;
        let count = point.point.disks.len();
        if doubts.concern(&point) {
            let message = format!(
                "restore point {} is suspect: an audit found later that change tracking had missed writes before it; \
                 the next point of the VM is whole",
                point.id.short()
            );
            session.report.event(&Event::Warning { job: None, message });
        }
        // A memory image is no disk for a VM: it is restored only where it is named.
        let of_the_vm = |disk: &usize| point.point.disks[*disk].kind == ads::DiskKind::User;
        let disks = match args.disk.as_slice() {
            [] => (0..count).filter(of_the_vm).collect(),
            named => named.to_vec(),
        };
        if let Some(bad) = disks.iter().find(|disk| **disk >= count) {
            return Err(Error::new(
                Kind::NotFound,
                format!("restore point {} has no disk {bad}", point.id.short()),
            )
            .remedy(format!("its disks are 0 to {}; see `abd show`", count.saturating_sub(1))));
        }
        for message in catalog::bad_warnings(&point, &disks) {
            session.report.event(&Event::Warning { job: None, message });
        }
        let sr = find_sr(&run.pool, args.sr.as_deref()).await?;
        match restore::run(&run, restore::Request { point, disks, sr }, &options).await.end {
            End::Done => Ok(()),
            end => Err(not_done(end.kind())),
        }
    };
    let result = result.await;
    run.pool.close().await;
    result
}

/// The error of a restore that did not end well.
fn not_done(kind: Option<Kind>) -> Error {
    match kind {
        Some(Kind::Leftovers) => {
            Error::new(Kind::Leftovers, "the disks are restored, something is left in the pool")
                .remedy("run `abd reconcile`")
        }
        kind => Error::new(kind.unwrap_or(Kind::Failed), "the restore failed"),
    }
}
