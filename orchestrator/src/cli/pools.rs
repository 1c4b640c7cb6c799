//! `abd pool`: which pools are known, and which certificates are trusted.

use super::{KeepArgs, PoolAddArgs, PoolCommand, ReachArgs, Session};
use crate::cleanup::Removed;
use crate::config::{DEFAULT_KEEP_IDLE_FOR_S, PoolConfig};
use crate::error::{Context, Error, Kind, Result};
use crate::kept;
use crate::networks;
use crate::pool::{Pool, connect_with, parse_endpoint, pem_to_der};
use crate::reconcile;
use crate::report::table;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use xapi::{Credentials, Endpoint, Fingerprint};

/// Port of XAPI on every host.
const HTTPS_PORT: u16 = 443;

pub(super) async fn run(session: &Session, command: PoolCommand) -> Result<()> {
    match command {
        PoolCommand::Add(args) => pool_add(session, args).await,
        PoolCommand::Set { name, reach, management_network, keep } => {
            pool_set(session, &name, &reach, management_network, &keep).await
        }
        PoolCommand::List => pool_list(session),
        PoolCommand::Remove { name, keep_references } => pool_remove(session, &name, keep_references).await,
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
        advertise: None,
        listen: None,
        networks: Vec::new(),
        keep_idle: 0,
        keep_idle_for_s: DEFAULT_KEEP_IDLE_FOR_S,
    };
    apply_reach(&args.reach, &mut config)?;
    apply(&args.keep, &mut config);
    let credentials = if local {
        Credentials::Local
    } else {
        Credentials::Password { user: config.user.clone(), password: config.password()? }
    };
    let client = connect_with(endpoint, credentials, &config.certificates, None).await?;
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

fn apply(keep: &KeepArgs, config: &mut PoolConfig) {
    config.keep_idle = keep.keep_idle.unwrap_or(config.keep_idle);
    config.keep_idle_for_s = keep.keep_idle_for.map_or(config.keep_idle_for_s, |time| time.as_secs());
}

/// Takes over what was said about how delegates reach this machine.
fn apply_reach(reach: &ReachArgs, config: &mut PoolConfig) -> Result<()> {
    networks::check(&reach.network)?;
    config.advertise = reach.advertise.or(config.advertise);
    config.listen = reach.listen.or(config.listen);
    if !reach.network.is_empty() {
        config.networks.clone_from(&reach.network);
    }
    Ok(())
}

/// Changes a pool's settings. Kept delegates that they do not allow any more are removed at once.
async fn pool_set(
    session: &Session,
    name: &str,
    reach: &ReachArgs,
    management_network: bool,
    keep: &KeepArgs,
) -> Result<()> {
    let before = session.state.pool(Some(name))?;
    let says_keep = keep.keep_idle.is_some() || keep.keep_idle_for.is_some();
    let says_reach = reach.advertise.is_some() || reach.listen.is_some() || !reach.network.is_empty();
    if !says_keep && !says_reach && !management_network {
        return Err(Error::new(Kind::Usage, "nothing is to be changed").remedy(
            "say --keep-idle COUNT, --network NETWORK, --advertise ADDRESS or --listen ADDRESS:PORT",
        ));
    }
    let mut config = before.clone();
    apply(keep, &mut config);
    apply_reach(reach, &mut config)?;
    if management_network {
        config.networks.clear();
    }
    let mut pools = session.state.pools()?;
    for pool in pools.iter_mut().filter(|pool| pool.name == name) {
        pool.clone_from(&config);
    }
    session.state.save_pools(pools)?;
    // Kept ones have cards on the networks of before.
    let moved = config.networks != before.networks;
    let removed = drop_kept(session, config.clone(), moved).await?;
    let value = json!({
        "name": name, "keep_idle": config.keep_idle, "keep_idle_for_s": config.keep_idle_for_s,
        "networks": config.networks, "advertise": config.advertise, "listen": config.listen,
        "removed": removed.objects,
    });
    session.report.answer(&value, || settings_text(&config, says_reach || management_network, says_keep));
    Ok(())
}

/// What was set, for people.
fn settings_text(config: &PoolConfig, reach: bool, keep: bool) -> String {
    let mut lines = Vec::new();
    let name = &config.name;
    if reach {
        match config.networks.as_slice() {
            [] => lines.push(format!("pool '{name}': delegates are on the management network")),
            networks => lines.extend(networks.iter().enumerate().map(|(number, network)| {
                let route = if number == 0 { ", which has the default route" } else { "" };
                format!("pool '{name}': delegates are on '{network}' with card {number}{route}")
            })),
        }
        let said = |what: Option<String>| what.unwrap_or_else(|| "found out by each run".to_owned());
        let address = said(config.advertise.map(|address| address.to_string()));
        lines.push(format!("pool '{name}': the address of this machine for delegates: {address}"));
    }
    match config.keep_idle {
        _ if !keep => {}
        0 => lines.push(format!("pool '{name}': delegates are thrown away after their jobs")),
        count => lines.push(format!(
            "pool '{name}': up to {count} delegates per host are kept for {} s",
            config.keep_idle_for_s
        )),
    }
    lines.join("\n")
}

/// Removes kept delegates from a pool: those that its settings do not allow, or all. Asks the pool only if there are any.
async fn drop_kept(session: &Session, config: PoolConfig, all: bool) -> Result<Removed> {
    let journals = session.state.journal_directory();
    let mut removed = Removed::default();
    let idle = crate::journal::scan(&journals)?.idle;
    if !idle.iter().any(|journal| reconcile::belongs_to(journal, &config.uuid)) {
        return Ok(removed);
    }
    drop(idle);
    let name = config.name.clone();
    let remedy = "run `abd reconcile` when the pool answers again";
    let pool = Pool::connect(&session.state, config).await.map_err(|error| {
        Error::new(error.kind(), format!("kept delegates stay in pool '{name}' for now: {}", error.chain()))
            .remedy(remedy)
    })?;
    let trimmed = kept::trim(&pool, &journals, all, &mut removed).await;
    pool.close().await;
    trimmed?;
    match removed.leftovers.first() {
        None => Ok(removed),
        Some(first) => Err(Error::new(Kind::Leftovers, format!("a kept delegate stays: {first}"))
            .remedy("see what holds it in XenCenter, then run `abd reconcile`")),
    }
}

/// Records the certificates of all hosts of the pool, as the trusted one tells them: a call may be redirected to any of
/// them, and any may become the coordinator, which is looked for on the pool's own port. Hosts that do not tell are left
/// out.
async fn pin_hosts(client: &xapi::Client, certificates: &mut BTreeMap<String, String>) {
    let hosts = match client.get_all_records::<xapi::Host>().await {
        Ok(hosts) => hosts,
        Err(error) => return tracing::warn!("only one certificate is recorded: {error}"),
    };
    let pool_port = match client.endpoint().await {
        Endpoint::Https { port, .. } => port,
        _ => HTTPS_PORT,
    };
    for (reference, host) in hosts {
        let asked = client.call("host.get_server_certificate", vec![reference.as_str().into()]).await;
        let der = asked.ok().and_then(|value| pem_to_der(value.as_str()?));
        let Some(der) = der.filter(|_| !host.address.is_empty()) else { continue };
        for port in [pool_port, HTTPS_PORT] {
            let address = Endpoint::Https { host: host.address.clone(), port }.address();
            certificates.entry(address).or_insert_with(|| pin::Fingerprint::of(&der).to_string());
        }
    }
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

async fn pool_remove(session: &Session, name: &str, keep_references: bool) -> Result<()> {
    let config = session.state.pool(Some(name))?;
    drop_kept(session, config.clone(), true).await?;
    let crate::journal::Scan { live, dead, .. } = crate::journal::scan(&session.state.journal_directory())?;
    let dead = dead.iter().filter(|journal| reconcile::belongs_to(journal, &config.uuid)).count();
    if dead > 0 || !live.is_empty() {
        let message =
            format!("{} jobs run and {dead} ended without cleaning up in pool '{name}'", live.len());
        return Err(
            Error::new(Kind::Leftovers, message).remedy("wait for the jobs and run `abd reconcile` first")
        );
    }
    let kept = count_kept(session, config).await;
    if let Ok(count) = kept
        && count > 0
        && !keep_references
    {
        let message = format!("{count} references and reserved snapshots of ours are in pool '{name}'");
        return Err(Error::new(Kind::Leftovers, message).remedy(format!(
            "remove them first: abd release --all --pool {name}; or leave them there with --keep-references"
        )));
    }
    let mut pools = session.state.pools()?;
    pools.retain(|pool| pool.name != name);
    session.state.save_pools(pools)?;
    let value = json!({"removed": name, "references": kept.as_ref().ok()});
    session.report.answer(&value, || match &kept {
        Ok(0) => format!("pool '{name}' forgotten"),
        Ok(count) => format!("pool '{name}' forgotten; {count} references and reserved snapshots stay in it"),
        Err(error) => format!(
            "pool '{name}' forgotten; references and reserved snapshots may remain in it, for it cannot be asked: {}",
            error.chain()
        ),
    });
    Ok(())
}

/// How many references and reserved snapshots of ours are in a pool.
async fn count_kept(session: &Session, config: PoolConfig) -> Result<usize> {
    let pool = Pool::connect_read_only(&session.state, config).await?;
    let found = crate::release::look(&pool, &[]).await;
    pool.close().await;
    Ok(found?.len())
}
