//! `abd serve`: offers the store to other machines, and says who may do what there.

use super::Session;
use super::jobs::watch_signals;
use crate::catalog;
use crate::clients::{self, ClientsFile};
use crate::error::{Error, Kind, Result};
use crate::report::table;
use ads::{Client, GcOptions, Guard, Place, Role, ServeLimits, Server, Store};
use blocks::ByteCount;
use clap::{Args, Subcommand};
use pin::Fingerprint;
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// The first collection comes after this time at the latest: a server that is often started anew has its turn, too.
const FIRST_COLLECTION: Duration = Duration::from_secs(3600);

/// How the store is offered.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct ServeArgs {
    /// Where to listen; once for each address.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7465")]
    listen: Vec<SocketAddr>,
    /// Remove nothing for anybody, whatever its role. Leases of jobs are given back all the same.
    #[arg(long)]
    append_only: bool,
    /// Keep every restore point for so many days, whoever wants to remove it. Written into the store, and only ever raised.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_525))]
    keep_at_least: Option<u32>,
    /// Free what no restore point needs, as `abd store gc` does, every so often; such as 24h.
    #[arg(long, value_name = "AGE", value_parser = crate::spec::parse_age)]
    gc_every: Option<Duration>,
    /// Most that one client may send, and receive, such as 50MiB/s.
    #[arg(long, value_name = "RATE", value_parser = crate::spec::parse_rate)]
    client_rate: Option<ByteCount>,
    /// Make the store where its place is vacant.
    #[arg(long)]
    init_store: bool,
    #[command(subcommand)]
    command: Option<ServeCommand>,
}

impl ServeArgs {
    /// Whether it runs until it is told to stop.
    pub(super) fn is_lasting(&self) -> bool {
        self.command.is_none()
    }
}

/// What there is to do beside serving.
#[derive(Debug, Subcommand)]
enum ServeCommand {
    /// Print this server's key, and the address that clients name.
    #[command(after_help = "Example:\n  abd serve key")]
    Key,
    /// Say who may do what. A running server takes note at once.
    #[command(subcommand)]
    Client(ClientCommand),
}

#[derive(Debug, Subcommand)]
enum ClientCommand {
    /// Make a client known by the key that `abd store client-key` prints there.
    #[command(
        after_help = "Example:\n  abd serve client add dc1 --role orchestrator --key 3f2a90c1b4d2…\n\nRoles:\n  reader        reads, restores, verifies\n  orchestrator  backs up too; removes nothing\n  admin         removes restore points and pins as well"
    )]
    Add {
        /// What to call it.
        name: String,
        /// SHA-256 of its public key, 64 hexadecimal digits.
        #[arg(long)]
        key: Fingerprint,
        /// What it may do: reader, orchestrator or admin.
        #[arg(long)]
        role: Role,
    },
    /// List the clients.
    #[command(after_help = "Example:\n  abd serve client list")]
    List,
    /// Forget a client. What it has put stays.
    #[command(after_help = "Example:\n  abd serve client remove dc1")]
    Remove {
        /// What it is called.
        name: String,
    },
}

pub(super) async fn run(session: &Session, args: ServeArgs) -> Result<()> {
    match &args.command {
        None => serve(session, &args).await,
        Some(ServeCommand::Key) => key(session),
        Some(ServeCommand::Client(command)) => client(session, command),
    }
}

fn key_file(session: &Session) -> PathBuf {
    session.state.serve_directory().join("key.pem")
}

fn clients_file(session: &Session) -> PathBuf {
    session.state.serve_directory().join("clients.toml")
}

/// Prints the key of this machine as a client of others.
pub(super) fn client_key(session: &Session) -> Result<()> {
    let key = ads::identity_in(&session.state.client_key_path()).map_err(catalog::store_error)?.fingerprint();
    let add = format!("abd serve client add {} --role orchestrator --key {key}", host_name());
    session.report.answer(&json!({"key": key.to_string(), "add": add}), || {
        format!("{key}\non the machine with the store: {add}")
    });
    Ok(())
}

fn key(session: &Session) -> Result<()> {
    let key = ads::identity_in(&key_file(session)).map_err(catalog::store_error)?.fingerprint();
    let address = format!("abd://{}:{}?key={key}", host_name(), ads::DEFAULT_PORT);
    session.report.answer(&json!({"key": key.to_string(), "store": address}), || {
        format!("{key}\nfor clients: --store '{address}'")
    });
    Ok(())
}

fn client(session: &Session, command: &ClientCommand) -> Result<()> {
    let path = clients_file(session);
    let value =
        |client: &Client| json!({"name": client.name, "role": client.role, "key": client.key.to_string()});
    match command {
        ClientCommand::Add { name, key, role } => {
            let client = Client { name: name.clone(), key: *key, role: *role };
            let value = value(&client);
            clients::add(&path, client)?;
            session.report.answer(&value, || format!("'{name}' may come as {role}"));
        }
        ClientCommand::List => {
            let found = clients::load(&path)?;
            let value = json!({"clients": found.iter().map(value).collect::<Vec<_>>()});
            session.report.answer(&value, || match found.as_slice() {
                [] => "no client is known; `abd serve client add` makes one known".into(),
                found => {
                    let row = |client: &Client| {
                        vec![client.name.clone(), client.role.to_string(), client.key.to_string()]
                    };
                    table(&["NAME", "ROLE", "KEY"], &found.iter().map(row).collect::<Vec<_>>())
                }
            });
        }
        ClientCommand::Remove { name } => {
            let removed = clients::remove(&path, name)?;
            session.report.answer(&value(&removed), || format!("'{name}' is not let in any more"));
        }
    }
    Ok(())
}

async fn serve(session: &Session, args: &ServeArgs) -> Result<()> {
    if let Ok(Place::Served(_)) = Place::from_path(&session.store) {
        return Err(Error::new(Kind::Usage, "the store is on another machine already")
            .remedy("name the directory or the bucket that it is in with --store"));
    }
    let stopped = watch_signals();
    let path = session.store.clone();
    let there = move || (!catalog::is_vacant(&path)).then(|| catalog::open_locked(&path)).transpose();
    let there = tokio::task::spawn_blocking(there)
        .await
        .map_err(|error| Error::new(Kind::Failed, "opening the store was stopped").because(error))??;
    let store = match there {
        // Without a key, where it is encrypted: a server has no need of it.
        Some(store) => store,
        None => super::jobs::open_store(session, &session.store, args.init_store).await?,
    };
    let raised = store.clone();
    let days = args.keep_at_least;
    let floor = super::retention::blocking(move || {
        if let Some(days) = days {
            raised.raise_floor(days).map_err(catalog::store_error)?;
        }
        raised.floor_days().map_err(catalog::store_error)
    })
    .await?;
    let known = Arc::new(ClientsFile::open(clients_file(session))?);
    let count = clients::load(&clients_file(session))?.len();
    let identity = ads::identity_in(&key_file(session)).map_err(catalog::store_error)?;
    let guard = Guard::new(store.clone(), Arc::new(move |key| known.find(key)), args.append_only);
    let limits = ServeLimits { rate: args.client_rate, ..ServeLimits::default() };
    let server = Server::start(Arc::new(guard), &identity, &args.listen, limits)
        .await
        .map_err(catalog::store_error)?;
    announce(session, args, &server, (&store, floor, count));
    let collecting = args.gc_every.map(|every| collect_every(session, store, every));
    let mut stop = stopped.clone();
    tokio::select! {
        // An error means that nobody is there any more to tell.
        _ = stop.wait_for(|stop| *stop) => {}
        () = async { match collecting { Some(collecting) => collecting.await, None => std::future::pending().await } } => {}
    }
    tracing::info!("stopping");
    server.stop().await;
    Ok(())
}

fn announce(
    session: &Session,
    args: &ServeArgs,
    server: &Server,
    (store, floor, count): (&Store, u32, usize),
) {
    let port = server.addresses().first().map_or(ads::DEFAULT_PORT, SocketAddr::port);
    let address = format!("abd://{}:{port}?key={}", host_name(), server.fingerprint());
    let value = json!({
        "event": "serving", "store": store.id(), "place": store.dir(), "addresses": server.addresses(),
        "key": server.fingerprint().to_string(), "client_store": address, "clients": count,
        "append_only": args.append_only, "keep_at_least_days": floor,
    });
    session.report.answer(&value, || {
        let at: Vec<String> = server.addresses().iter().map(ToString::to_string).collect();
        let rules = match (args.append_only, floor) {
            (true, _) => ", and removes nothing".into(),
            (false, 0) => String::new(),
            (false, days) => format!(", and keeps everything for {days} days"),
        };
        format!(
            "serves {} at {} for {count} clients{rules}\nfor clients: --store '{address}'",
            store.dir().display(),
            at.join(", ")
        )
    });
}

/// Collects again and again. Each time the store is opened anew, as by a program of its own; the one that serves takes note
/// of what is gone.
async fn collect_every(session: &Session, serving: Arc<Store>, every: Duration) {
    let mut pause = every.min(FIRST_COLLECTION);
    loop {
        tokio::time::sleep(pause).await;
        pause = every;
        let (path, serving) = (session.store.clone(), serving.clone());
        let work = move || {
            let store = catalog::open_locked(&path)?;
            let found = store.collect(&GcOptions::default(), &|_, _| {}).map_err(catalog::store_error)?;
            serving.refresh().map_err(catalog::store_error)?;
            Ok::<_, Error>(found)
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(found)) => {
                tracing::info!(removed = found.removed, freed = %found.freed, waiting = found.waiting, "collected");
                if session.json {
                    let value = json!({
                        "event": "collected", "removed": found.removed, "freed": found.freed,
                        "waiting": found.waiting, "waits_for": found.waits_for,
                    });
                    session.report.answer(&value, String::new);
                }
            }
            Ok(Err(error)) => tracing::error!(error = %error.chain(), "nothing was collected"),
            Err(error) => tracing::error!(%error, "the collection was stopped"),
        }
    }
}

/// What this machine calls itself; a word to be replaced where it does not.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" | "(none)" => "HOST".into(),
        name => name.to_owned(),
    }
}
