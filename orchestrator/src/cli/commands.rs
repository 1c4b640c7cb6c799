//! The commands.

use super::{
    BackupArgs, Command, DelegateArgs, PoolAddArgs, PoolCommand, RestoreArgs, Session, TemplateCommand,
};
use crate::config::PoolConfig;
use crate::error::{Context, Error, Kind, Result};
use crate::job::{self, Run, Settings, restore};
use crate::pool::{Pool, connect_with, parse_endpoint};
use crate::report::{Event, table};
use crate::{catalog, doctor, reconcile, template};
use base64::Engine as _;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use xapi::{Credentials, Endpoint, Fingerprint, Ref, Sr, Vm};

pub(super) async fn dispatch(session: &Session, command: Command) -> Result<()> {
    match command {
        Command::Pool(PoolCommand::Add(args)) => pool_add(session, args).await,
        Command::Pool(PoolCommand::List) => pool_list(session),
        Command::Pool(PoolCommand::Remove { name }) => pool_remove(session, &name),
        Command::Template(command) => template_command(session, command).await,
        Command::Backup(args) => backup(session, args).await,
        Command::Restore(args) => restore_command(session, args).await,
        Command::List { vm } => {
            let (store, _) = catalog::open(&session.store, false)?;
            catalog::list(&store, vm.as_deref(), &session.report)
        }
        Command::Show { point } => {
            let (store, _) = catalog::open(&session.store, false)?;
            catalog::show(&store.find_point(&point).map_err(catalog::store_error)?, &session.report);
            Ok(())
        }
        Command::Verify { points, read_data } => {
            let (store, report) = (session.store.clone(), session.report.clone());
            let verify = move || {
                let (store, _) = catalog::open(&store, false)?;
                catalog::verify(&store, &points, read_data, &report)
            };
            tokio::task::spawn_blocking(verify)
                .await
                .map_err(|error| Error::new(Kind::Failed, "the check was stopped").because(error))?
        }
        Command::Reconcile { pool } => reconcile_command(session, pool.as_deref()).await,
        Command::Doctor { pool } => {
            let pools = match pool {
                Some(name) => vec![session.state.pool(Some(&name))?],
                None => session.state.pools()?,
            };
            doctor::run(&session.state, pools, &session.store, &session.report).await
        }
    }
}

async fn pool_add(session: &Session, args: PoolAddArgs) -> Result<()> {
    let mut pools = session.state.pools()?;
    let (endpoint, text) = match &args.url {
        Some(url) => (parse_endpoint(url)?, url.clone()),
        None => (Endpoint::Unix(args.socket.clone()), format!("unix:{}", args.socket.display())),
    };
    let mut certificates = BTreeMap::new();
    if let Endpoint::Https { .. } = endpoint {
        let fingerprint = trust(&endpoint, args.fingerprint.as_deref(), session.json).await?;
        certificates.insert(endpoint.address(), fingerprint.to_string());
    }
    let password_file = match args.password_file {
        Some(path) => Some(std::path::absolute(&path).map_err(|error| {
            Error::new(Kind::Usage, format!("cannot find {}", path.display())).because(error)
        })?),
        None => None,
    };
    let local = matches!(endpoint, Endpoint::Unix(_));
    let mut config = PoolConfig {
        name: args.name.clone().unwrap_or_default(),
        uuid: String::new(),
        endpoint: text,
        user: if local { String::new() } else { args.user },
        password_file,
        certificates,
        advertise: args.advertise,
        listen: args.listen,
        network: args.network,
    };
    let credentials = if local {
        Credentials::Local
    } else {
        Credentials::Password { user: config.user.clone(), password: config.password()? }
    };
    let client = connect_with(endpoint, credentials, &config.certificates).await?;
    let found = client.pool().await;
    if !local {
        pin_hosts(&client, &mut config.certificates).await;
    }
    if let Err(error) = client.close().await {
        tracing::warn!("cannot log out: {error}");
    }
    let (_, record) = found.context(|| "ask for the pool".into())?;
    config.uuid = record.uuid.to_string();
    if config.name.is_empty() {
        config.name =
            if record.name_label.trim().is_empty() { "pool".into() } else { record.name_label.clone() };
    }
    if let Some(present) = pools.iter().find(|pool| pool.name == config.name || pool.uuid == config.uuid) {
        return Err(Error::new(
            Kind::Usage,
            format!("pool '{}' ({}) is known already", present.name, present.uuid),
        )
        .remedy(format!("remove it first: abd pool remove {}", present.name)));
    }
    let (name, uuid) = (config.name.clone(), config.uuid.clone());
    pools.push(config);
    session.state.save_pools(pools)?;
    session.report.answer(&json!({"name": name, "uuid": uuid}), || {
        format!("pool '{name}' ({uuid}) added; next: abd template import FILE.xva")
    });
    Ok(())
}

/// Records the certificates of all hosts of the pool, as the trusted one tells them: a call may be redirected to any of
/// them, and any may become the coordinator. Hosts that do not tell are left out.
async fn pin_hosts(client: &xapi::Client, certificates: &mut BTreeMap<String, String>) {
    let hosts = match client.get_all_records::<xapi::Host>().await {
        Ok(hosts) => hosts,
        Err(error) => return tracing::warn!("only one certificate is recorded: {error}"),
    };
    for (reference, host) in hosts {
        let asked = client.call("host.get_server_certificate", vec![reference.as_str().into()]).await;
        let der = asked.ok().and_then(|value| pem_to_der(value.as_str()?));
        let Some(der) = der.filter(|_| !host.address.is_empty()) else { continue };
        let address = Endpoint::Https { host: host.address.clone(), port: HTTPS_PORT }.address();
        certificates.entry(address).or_insert_with(|| pin::Fingerprint::of(&der).to_string());
    }
}

/// The bytes of the first certificate in PEM text.
fn pem_to_der(pem: &str) -> Option<Vec<u8>> {
    let body = pem.split_once("-----BEGIN CERTIFICATE-----")?.1.split_once("-----END CERTIFICATE-----")?.0;
    let packed: String = body.split_whitespace().collect();
    base64::engine::general_purpose::STANDARD.decode(packed).ok()
}

/// The certificate to pin: the one that was named, or the one that a person confirms.
async fn trust(endpoint: &Endpoint, named: Option<&str>, json: bool) -> Result<Fingerprint> {
    if let Some(text) = named {
        return text.parse().map_err(|_| {
            Error::new(Kind::Usage, format!("'{text}' is not a SHA-256 fingerprint"))
                .remedy("give 64 hexadecimal digits, with or without colons")
        });
    }
    let found = xapi::probe(endpoint).await?;
    let address = endpoint.address();
    if json || !std::io::stdin().is_terminal() {
        return Err(Error::new(
            Kind::Certificate,
            format!("the certificate of {address} is not trusted yet: {found}"),
        )
        .remedy(format!("compare it on the host, then add --fingerprint {found}")));
    }
    eprintln!("{address} shows a certificate with the SHA-256 fingerprint\n  {found}");
    eprintln!(
        "Compare it on the host: openssl x509 -in /etc/xensource/xapi-ssl.pem -noout -fingerprint -sha256"
    );
    eprint!("Trust it? [y/N] ");
    std::io::stderr().flush().map_err(|error| Error::new(Kind::Usage, "cannot ask").because(error))?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Error::new(Kind::Usage, "cannot ask").because(error))?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(found);
    }
    Err(Error::new(Kind::Certificate, format!("the certificate of {address} was not trusted")))
}

fn pool_list(session: &Session) -> Result<()> {
    let pools = session.state.pools()?;
    session.report.answer(&json!({"pools": pools}), || {
        let rows: Vec<_> = pools
            .iter()
            .map(|pool| vec![pool.name.clone(), pool.endpoint.clone(), pool.user.clone(), pool.uuid.clone()])
            .collect();
        table(&["NAME", "ENDPOINT", "USER", "UUID"], &rows)
    });
    Ok(())
}

fn pool_remove(session: &Session, name: &str) -> Result<()> {
    let config = session.state.pool(Some(name))?;
    let (live, dead) = crate::journal::scan(&session.state.journal_directory())?;
    let dead = dead.iter().filter(|journal| reconcile::belongs_to(journal, &config.uuid)).count();
    if dead > 0 || !live.is_empty() {
        let message =
            format!("{} jobs run and {dead} ended without cleaning up in pool '{name}'", live.len());
        return Err(
            Error::new(Kind::Leftovers, message).remedy("wait for the jobs and run `abd reconcile` first")
        );
    }
    let mut pools = session.state.pools()?;
    pools.retain(|pool| pool.name != name);
    session.state.save_pools(pools)?;
    session.report.answer(&json!({"removed": name}), || format!("pool '{name}' forgotten"));
    Ok(())
}

async fn template_command(session: &Session, command: TemplateCommand) -> Result<()> {
    match command {
        TemplateCommand::Build { disk, out } => {
            let built = template::build(&disk, &out)?;
            session.report.answer(&built, || {
                let size = blocks::ByteCount::new(built.size);
                format!("{}: {size}, version {}, disk {}", built.path.display(), built.version, built.digest)
            });
            Ok(())
        }
        TemplateCommand::Import { file, pool, sr } => {
            let pool = connect(session, pool.as_deref()).await?;
            let result = async {
                let sr = find_sr(&pool, sr.as_deref()).await?;
                template::import(&pool, &file, Some(&sr), &session.report).await
            };
            let result = result.await;
            pool.close().await;
            let (template, imported) = result?;
            session.report.answer(
                &json!({"uuid": template.uuid, "version": template.version, "imported": imported}),
                || {
                    let what = if imported { "imported" } else { "was there already" };
                    format!("template {} {what}: {}", template.version, template.uuid)
                },
            );
            Ok(())
        }
        TemplateCommand::List { pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let templates = template::list(&pool).await;
            pool.close().await;
            let rows: Vec<_> = templates?
                .into_iter()
                .map(|template| vec![template.uuid, template.version, template.digest])
                .collect();
            let value = rows.iter().map(|row| json!({"uuid": row[0], "version": row[1], "digest": row[2]}));
            session.report.answer(&json!({"templates": value.collect::<Vec<_>>()}), || {
                table(&["UUID", "VERSION", "DISK"], &rows)
            });
            Ok(())
        }
        TemplateCommand::Remove { uuid, pool } => {
            let pool = connect(session, pool.as_deref()).await?;
            let result = remove_templates(&pool, uuid.as_deref()).await;
            pool.close().await;
            let removed = result?;
            session
                .report
                .answer(&json!({"removed": removed}), || format!("{} templates removed", removed.len()));
            Ok(())
        }
    }
}

async fn remove_templates(pool: &Pool, uuid: Option<&str>) -> Result<Vec<String>> {
    let mut templates = template::list(pool).await?;
    templates.retain(|template| uuid.is_none_or(|uuid| template.uuid == uuid));
    if let (Some(uuid), true) = (uuid, templates.is_empty()) {
        return Err(Error::new(Kind::NotFound, format!("no template of ours has the uuid {uuid}"))
            .remedy("see `abd template list`"));
    }
    for template in &templates {
        template::remove(pool, template).await?;
    }
    Ok(templates.into_iter().map(|template| template.uuid).collect())
}

async fn connect(session: &Session, name: Option<&str>) -> Result<Pool> {
    Pool::connect(&session.state, session.state.pool(name)?).await
}

/// A storage repository by name or uuid, or the pool's default.
async fn find_sr(pool: &Pool, wanted: Option<&str>) -> Result<Ref<Sr>> {
    let Some(wanted) = wanted else {
        let (_, record) = pool.client.pool().await.context(|| "ask for the pool".into())?;
        if record.default_sr.is_null() {
            return Err(Error::new(Kind::NotFound, "the pool has no default storage repository")
                .remedy("name one with --sr"));
        }
        return Ok(record.default_sr);
    };
    let srs = pool.client.get_all_records::<Sr>().await.context(|| "list storage".into())?;
    let mut found = srs.into_iter().filter(|(_, sr)| sr.uuid.as_str() == wanted || sr.name_label == wanted);
    match (found.next(), found.next()) {
        (Some((reference, _)), None) => Ok(reference),
        (None, _) => Err(Error::new(Kind::NotFound, format!("no storage repository is named '{wanted}'"))
            .remedy("see `xe sr-list`")),
        _ => Err(Error::new(Kind::NotFound, format!("more than one storage repository is named '{wanted}'"))
            .remedy("give its uuid")),
    }
}

/// Port of XAPI on every host.
const HTTPS_PORT: u16 = 443;
/// MTU of a network that does not say.
const DEFAULT_MTU: u32 = 1500;

/// Connects, opens the store and starts its service: what a run of jobs needs.
async fn prepare(session: &Session, args: &DelegateArgs, settings: Settings, create: bool) -> Result<Run> {
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
        Ok((template, network, service, url)) => Ok(Run {
            id: uuid::Uuid::new_v4().to_string(),
            pool,
            store: service.1,
            service: service.0,
            template,
            network: network.0,
            network_mtu: u32::try_from(network.1.mtu).unwrap_or(DEFAULT_MTU),
            url,
            journals: session.state.journal_directory(),
            report: session.report.clone(),
            cancel: watch_signals(),
            settings,
        }),
        Err(error) => {
            pool.close().await;
            Err(error)
        }
    }
}

type Prepared =
    (template::Template, (Ref<xapi::Network>, xapi::Network), (ads::Service, Arc<ads::Store>), String);

async fn prepare_with(session: &Session, pool: &Pool, store: Arc<ads::Store>) -> Result<Prepared> {
    warn_of_dead_jobs(session);
    let template = template::find(pool).await?;
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
    Ok((template, network, (service, store), url))
}

fn warn_of_dead_jobs(session: &Session) {
    if let Ok((_, dead)) = crate::journal::scan(&session.state.journal_directory())
        && !dead.is_empty()
    {
        let message = format!("{} earlier jobs ended without cleaning up; run `abd reconcile`", dead.len());
        session.report.event(&Event::Warning { job: None, message });
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

fn settings(args: &DelegateArgs) -> Settings {
    let mut net = Vec::new();
    if !args.delegate_address.is_empty() {
        net.push(("mode".into(), "static".into()));
        net.push(("address".into(), args.delegate_address.join(" ")));
        let gateways: Vec<_> = args.delegate_gateway.iter().map(ToString::to_string).collect();
        if !gateways.is_empty() {
            net.push(("gateway".into(), gateways.join(" ")));
        }
    }
    Settings {
        memory: args.delegate_memory << 20,
        vcpus: args.delegate_vcpus,
        watchdog: Duration::from_secs(args.watchdog.into()),
        boot_limit: Duration::from_secs(args.boot_limit),
        net,
        ..Settings::default()
    }
}

async fn backup(session: &Session, args: BackupArgs) -> Result<()> {
    let settings = Settings {
        level: args.level,
        enable_cbt: !args.no_enable_cbt,
        full: args.full,
        read_unallocated: args.read_unallocated,
        ..settings(&args.delegate)
    };
    if !settings.net.is_empty() && args.vms.len() > 1 && args.jobs > 1 {
        return Err(Error::new(Kind::Usage, "one fixed address cannot serve several delegates at once")
            .remedy("add --jobs 1, or use DHCP"));
    }
    let run =
        Arc::new(prepare(session, &args.delegate, settings, args.init_store || session.default_store).await?);
    let result = tokio::task::LocalSet::new().run_until(backup_all(&run, &args)).await;
    run.pool.close().await;
    result
}

async fn backup_all(run: &Arc<Run>, args: &BackupArgs) -> Result<()> {
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
        let (run, permits) = (run.clone(), permits.clone());
        // Jobs wait for the pool and the delegates; hashing happens in the service's own threads.
        tasks.spawn_local(async move {
            let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            if *run.cancel.borrow() {
                return Err(Kind::Cancelled);
            }
            job::backup::run(&run, &reference, &record).await
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

/// The error of a run: the kind of its failed jobs where they agree.
fn outcome(count: usize, failed: &[Kind]) -> Result<()> {
    let Some(first) = failed.first() else { return Ok(()) };
    if failed.iter().all(|kind| *kind == Kind::Leftovers) {
        let message = format!("all {count} jobs did their work, {} left something in the pool", failed.len());
        return Err(Error::new(Kind::Leftovers, message).remedy("run `abd reconcile`"));
    }
    let failed: Vec<_> = failed.iter().filter(|kind| **kind != Kind::Leftovers).collect();
    let first = failed.first().copied().unwrap_or(first);
    let kind = if failed.iter().all(|kind| *kind == first) { *first } else { Kind::Failed };
    Err(Error::new(kind, format!("{} of {count} jobs failed", failed.len())))
}

async fn restore_command(session: &Session, args: RestoreArgs) -> Result<()> {
    let run = prepare(session, &args.delegate, settings(&args.delegate), false).await?;
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
        match restore::run(&run, restore::Request { point, disks, sr }).await {
            Ok(()) => Ok(()),
            Err(kind) => outcome(1, &[kind]),
        }
    };
    let result = result.await;
    run.pool.close().await;
    result
}

async fn reconcile_command(session: &Session, name: Option<&str>) -> Result<()> {
    let pools = match name {
        Some(name) => vec![session.state.pool(Some(name))?],
        None => session.state.pools()?,
    };
    let mut total = reconcile::Outcome::default();
    let mut failed = None;
    for config in pools {
        match reconcile_pool(session, config).await {
            Ok(outcome) => {
                total.live = outcome.live;
                total.jobs.extend(outcome.jobs);
                total.removed.objects.extend(outcome.removed.objects);
                total.removed.leftovers.extend(outcome.removed.leftovers);
            }
            // The other pools are cleaned all the same.
            Err(error) => {
                session.report.event(&Event::Warning { job: None, message: error.chain() });
                failed.get_or_insert(error);
            }
        }
    }
    let value = json!({
        "jobs": total.jobs, "running": total.live, "removed": total.removed.objects,
        "leftovers": total.removed.leftovers,
    });
    session.report.answer(&value, || {
        let mut text =
            format!("{} dead jobs, {} objects removed", total.jobs.len(), total.removed.objects.len());
        for object in &total.removed.objects {
            text.push_str(&format!("\nremoved  {object}"));
        }
        for object in &total.removed.leftovers {
            text.push_str(&format!("\nSTILL THERE  {object}"));
        }
        text
    });
    reconcile::check(&total)?;
    failed.map_or(Ok(()), Err)
}

async fn reconcile_pool(session: &Session, config: PoolConfig) -> Result<reconcile::Outcome> {
    let pool = Pool::connect(&session.state, config).await?;
    let result = reconcile::run(&session.state, &pool).await;
    pool.close().await;
    result
}
