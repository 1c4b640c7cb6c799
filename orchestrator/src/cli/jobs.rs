//! `abd backup` and `abd restore`: what a run of jobs needs, and how it ends.

use super::{BackupArgs, DelegateArgs, RestoreArgs, Session, find_sr};
use crate::error::{Context, Error, Kind, Result};
use crate::job::{self, DEFAULT_PACK_SIZE, End, JobResult, Run, restore};
use crate::pool::Pool;
use crate::report::Event;
use crate::spec::{CbtMode, DelegateOptions, JobOptions};
use crate::{catalog, template};
use blocks::ByteCount;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use xapi::{Ref, Vm};

/// MTU of a network that does not say.
const DEFAULT_MTU: u32 = 1500;

/// Connects, opens the store and starts its service: what a run of jobs needs.
async fn prepare(session: &Session, args: &DelegateArgs, create: bool) -> Result<Run> {
    let config = session.state.pool(args.pool.as_deref())?;
    let directory = session.store.clone();
    let opened = tokio::task::spawn_blocking(move || catalog::open(&directory, create)).await;
    let (store, made) = opened
        .map_err(|error| Error::new(Kind::Failed, "opening the store was stopped").because(error))??;
    if made {
        let message = format!("made a store at {}", session.store.display());
        session.report.event(&Event::Note { message });
    }
    let pool = Pool::connect(&session.state, config).await?;
    match prepare_with(session, &pool, store).await {
        Ok((templates, network, service, url)) => Ok(Run {
            id: uuid::Uuid::new_v4().to_string(),
            pool,
            store: service.1,
            service: service.0,
            templates,
            network: network.0,
            network_mtu: u32::try_from(network.1.mtu).unwrap_or(DEFAULT_MTU),
            url,
            journals: session.state.journal_directory(),
            report: session.report.clone(),
            cancel: watch_signals(),
            name: None,
            pack_size: DEFAULT_PACK_SIZE,
        }),
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

type Prepared =
    (Vec<template::TemplateAt>, (Ref<xapi::Network>, xapi::Network), (ads::Service, Arc<ads::Store>), String);

async fn prepare_with(session: &Session, pool: &Pool, store: Arc<ads::Store>) -> Result<Prepared> {
    clean_up_after_dead_jobs(session, pool).await;
    let templates = template::usable(pool).await?;
    let network = pool.delegate_network().await?;
    let listen = pool.config.listen.unwrap_or_else(|| SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)));
    let identity = pin::Identity::generate()
        .map_err(|error| Error::new(Kind::Failed, "cannot make a key").because(error))?;
    let service = ads::Service::start(store.clone(), identity, &[listen]).await.map_err(|error| {
        Error::new(Kind::Usage, format!("cannot listen at {listen} for delegates"))
            .because(error)
            .remedy("name a free address and port with `abd pool add --listen`")
    })?;
    let address = service.addresses().first().copied().unwrap_or(listen);
    let url = format!("https://{}", pool.advertised(address).await?);
    Ok((templates, network, (service, store), url))
}

/// Removes what dead jobs left in the pool before new ones start. What resists does not keep them from running.
async fn clean_up_after_dead_jobs(session: &Session, pool: &Pool) {
    let warn = |message| session.report.event(&Event::Warning { job: None, message });
    match crate::reconcile::run(&session.state, pool).await {
        Ok(outcome) => {
            let (jobs, removed) = (outcome.jobs.len(), outcome.removed);
            if jobs > 0 {
                let message =
                    format!("cleaned up after {jobs} dead jobs: {} objects removed", removed.objects.len());
                session.report.event(&Event::Note { message });
            }
            for leftover in removed.leftovers {
                warn(format!("still in the pool: {leftover}"));
            }
        }
        Err(error) => warn(format!("cannot clean up after dead jobs: {}", error.chain())),
    }
}

/// Turns true at the first SIGINT or SIGTERM. The second ends the process at once; the journal stays whole.
fn watch_signals() -> watch::Receiver<bool> {
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

fn delegate(args: &DelegateArgs) -> DelegateOptions {
    DelegateOptions {
        memory: ByteCount::new(args.delegate_memory << 20),
        vcpus: args.delegate_vcpus,
        watchdog: Duration::from_secs(args.watchdog.into()),
        boot_limit: Duration::from_secs(args.boot_limit),
        addresses: args.delegate_address.clone(),
        gateways: args.delegate_gateway.clone(),
    }
}

pub(super) async fn backup(session: &Session, args: BackupArgs) -> Result<()> {
    let options = JobOptions {
        level: args.level,
        cbt: if args.no_enable_cbt { CbtMode::Off } else { CbtMode::Auto },
        full: args.full,
        read_unallocated: args.read_unallocated,
        delegate: delegate(&args.delegate),
        ..JobOptions::default()
    };
    if !options.delegate.addresses.is_empty() && args.vms.len() > 1 && args.jobs > 1 {
        return Err(Error::new(Kind::Usage, "one fixed address cannot serve several delegates at once")
            .remedy("add --jobs 1, or use DHCP"));
    }
    let run = Arc::new(prepare(session, &args.delegate, args.init_store || session.default_store).await?);
    let result = tokio::task::LocalSet::new().run_until(backup_all(&run, &args, &options)).await;
    run.pool.close().await;
    result
}

async fn backup_all(run: &Arc<Run>, args: &BackupArgs, options: &JobOptions) -> Result<()> {
    // Every name is checked before the first snapshot is made.
    let all = run.pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let mut vms: Vec<(Ref<Vm>, Vm)> = Vec::new();
    for name in &args.vms {
        let found = run.pool.find_vm(name, &all).await?;
        if !vms.iter().any(|(reference, _)| *reference == found.0) {
            vms.push(found);
        }
    }
    let permits = Arc::new(Semaphore::new(usize::try_from(args.jobs).unwrap_or(1)));
    let mut tasks = tokio::task::JoinSet::new();
    let count = vms.len();
    for (reference, record) in vms {
        let (run, permits, options) = (run.clone(), permits.clone(), options.clone());
        // Jobs wait for the pool and the delegates; hashing happens in the service's own threads.
        tasks.spawn_local(async move {
            let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            if *run.cancel.borrow() {
                return Err(Kind::Cancelled);
            }
            result(&job::backup::run(&run, &reference, &record, &options, None).await)
        });
    }
    let mut failed = Vec::new();
    while let Some(result) = tasks.join_next().await {
        match result {
            Ok(Ok(())) => {}
            Ok(Err(kind)) => failed.push(kind),
            Err(error) => {
                tracing::error!("a job ended by itself: {error}");
                failed.push(Kind::Failed);
            }
        }
    }
    outcome(count, &failed)
}

fn result(job: &JobResult) -> Result<(), Kind> {
    job.end.kind().map_or(Ok(()), Err)
}

/// The error of a run: the kind of its failed jobs where they agree.
fn outcome(count: usize, failed: &[Kind]) -> Result<()> {
    let Some(first) = failed.first() else { return Ok(()) };
    if failed.contains(&Kind::Alarm) {
        let message = "an audit failed: earlier restore points are in doubt, the new ones are whole";
        return Err(Error::new(Kind::Alarm, message).remedy("see `abd list`, which marks them"));
    }
    if failed.iter().all(|kind| *kind == Kind::Leftovers) {
        let message = format!("all {count} jobs did their work, {} left something in the pool", failed.len());
        return Err(Error::new(Kind::Leftovers, message).remedy("run `abd reconcile`"));
    }
    let failed: Vec<_> = failed.iter().filter(|kind| **kind != Kind::Leftovers).collect();
    let first = failed.first().copied().unwrap_or(first);
    let kind = if failed.iter().all(|kind| *kind == first) { *first } else { Kind::Failed };
    Err(Error::new(kind, format!("{} of {count} jobs failed", failed.len())))
}

pub(super) async fn restore(session: &Session, args: RestoreArgs) -> Result<()> {
    let options = JobOptions { delegate: delegate(&args.delegate), ..JobOptions::default() };
    let run = prepare(session, &args.delegate, false).await?;
    let result = async {
        let (store, id) = (run.store.clone(), args.point.clone());
        let point = tokio::task::spawn_blocking(move || store.find_point(&id))
            .await
            .map_err(|error| {
                Error::new(Kind::Failed, "looking for the restore point was stopped").because(error)
            })?
            .map_err(catalog::store_error)?;
        let count = point.point.disks.len();
        let disks = if args.disk.is_empty() { (0..count).collect() } else { args.disk.clone() };
        if let Some(bad) = disks.iter().find(|disk| **disk >= count) {
            return Err(Error::new(
                Kind::NotFound,
                format!("restore point {} has no disk {bad}", point.id.short()),
            )
            .remedy(format!("its disks are 0 to {}; see `abd show`", count.saturating_sub(1))));
        }
        let sr = find_sr(&run.pool, args.sr.as_deref()).await?;
        match restore::run(&run, restore::Request { point, disks, sr }, &options).await.end {
            End::Done => Ok(()),
            end => outcome(1, &Vec::from_iter(end.kind())),
        }
    };
    let result = result.await;
    run.pool.close().await;
    result
}
