//! The command line: what was typed, and which part does it.

mod commands;
mod copy;
mod doctor;
mod jobs;
mod options;
mod plan;
mod pools;
mod release;
mod repair;
mod retention;
mod run;
mod serve;
mod stats;
mod store;
mod store_key;
mod templates;
mod verify;
mod work;

use crate::config::State;
use crate::error::{Context, Error, Kind, Result};
use crate::networks::DelegateNetwork;
use crate::pool::Pool;
use crate::printable::{LogLine, printable, printable_lines};
use crate::report::Report;
use clap::{Args, Parser, Subcommand};
use options::{DelegateArgs, JobArgs, RunFlags};
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use store::StoreCommand;
use templates::TemplateCommand;
use xapi::{Ref, Sr};

const EXIT_CODES: &str = "\
Exit codes:
  0  done                                    8  store unusable
  1  a job failed or was left out            9  store full
  2  wrong usage                            10  damaged data
  3  no such VM, pool or restore point      11  leftovers in the pool
  4  credentials refused                    12  nothing done
  5  pool unreachable                       13  ALARM: an audit failed
  6  certificate not trusted or changed     14  another run is active
  7  template missing or outdated           15  BAD BLOCKS: saved, but for them
                                           130  stopped by a signal";

/// Agentless backup for XenServer and XCP-ng.
#[derive(Debug, Parser)]
#[command(name = "abd", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// One JSON object per line on standard output, for programs.
    #[arg(long, global = true)]
    json: bool,

    /// Directory for pools and journals [default: /var/lib/abd for root].
    #[arg(long, global = true, env = "ABD_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,

    /// The data store: a directory, s3://BUCKET/PREFIX?OPTIONS, or abd://HOST?key=KEY for one that `abd serve` offers
    /// [default: `store` in the state directory].
    #[arg(long, global = true, env = "ABD_STORE", value_name = "PLACE")]
    store: Option<PathBuf>,

    #[command(flatten)]
    key: crate::store_key::KeyArgs,

    /// More log lines on standard error; twice for every call.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Add, list and remove pools.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Build, sign, check, import, list and remove the appliance template.
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Back up VMs, each by its own delegate, all at once.
    #[command(
        after_help = "Example:\n  abd backup web01 db01 mail01\n  abd --json backup --pool dc1 7a9c…-uuid | jq ."
    )]
    Backup(Box<BackupArgs>),
    /// Run a job file: for cron and systemd timers, and by hand.
    ///
    /// Options that are given here go before those of the file, for every VM.
    #[command(
        after_help = "Example:\n  abd run /etc/abd/nightly.toml\n  abd run nightly.toml --dry-run\n  abd run --keys\n\norchestrator/README.md has a whole job file, the exit codes and units for systemd."
    )]
    Run(Box<RunArgs>),
    /// Print what a backup would do, call by call, and change nothing.
    ///
    /// Takes the options of `abd backup`, or a job file, and asks what a job asks: which hosts its delegates would run
    /// on, how each disk would be read and why, how much that is, and every call that would change something in the pool,
    /// in order. What changed since the last backup is only known once there is a snapshot, so those numbers come from
    /// earlier runs and say so.
    #[command(
        after_help = "Example:\n  abd plan web01\n  abd plan --job /etc/abd/nightly.toml\n  abd --json plan web01 | jq -r '.plans[].steps[].call'"
    )]
    Plan(Box<PlanArgs>),
    /// List restore points.
    #[command(after_help = "Example:\n  abd list web01")]
    List {
        /// Only of this VM, by name or uuid.
        vm: Option<String>,
    },
    /// Show one restore point.
    #[command(after_help = "Example:\n  abd show 3f2a90c1b4d2")]
    Show {
        /// Its id, or the beginning of it.
        point: String,
    },
    /// Restore a restore point's disks into new VDIs.
    #[command(
        after_help = "Example:\n  abd restore 3f2a90c1b4d2\n  abd restore 3f2a --disk 0 --sr 'Local storage'"
    )]
    Restore(RestoreArgs),
    /// Count what VMs and restore points take in the store, and what removing them would free.
    #[command(
        after_help = "Example:\n  abd stats\n  abd stats web01 --points\n  abd --json stats | jq '.vms[] | {vm, stored}'"
    )]
    Stats {
        /// Only this VM, by name or uuid.
        vm: Option<String>,
        /// Each restore point too.
        #[arg(long)]
        points: bool,
    },
    /// Remove restore points that no rule keeps. Asks first.
    ///
    /// Each VM is judged by itself, and of each VM the points of each job. A rule counts only periods that have a point.
    /// The newest point always stays, and so do pinned ones. A point that is in doubt or lacks parts of a disk does not
    /// take the place of a good one.
    #[command(
        after_help = "Example:\n  abd prune web01 --keep-daily 7 --keep-weekly 4 --keep-monthly 12 --dry-run\n  abd prune --all --keep-within 30d --keep-yearly 10 --yes\n  abd prune --every 1d --for 2y --keep-daily 7 --keep-monthly 12"
    )]
    Prune(Box<retention::PruneArgs>),
    /// Remove restore points by name. Asks first.
    #[command(after_help = "Example:\n  abd remove 3f2a90c1b4d2")]
    Remove(retention::RemoveArgs),
    /// Make a restore point stay, whatever rules say.
    #[command(after_help = "Example:\n  abd pin 3f2a90c1b4d2 --note 'before the migration'")]
    Pin {
        /// Its id, or the beginning of it.
        point: String,
        /// Why, in a few words.
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Let rules decide about a restore point again.
    #[command(after_help = "Example:\n  abd unpin 3f2a90c1b4d2")]
    Unpin {
        /// Its id, or the beginning of it.
        point: String,
    },
    /// Check restore points: that everything they need is there, or every byte.
    ///
    /// A large store can be read in parts: a sample, one of several parts, or in turns of which each reads what was read longest
    /// ago. That everything is there is checked all the same.
    #[command(
        after_help = "Example:\n  abd verify --read-data\n  abd verify --rotate 30\n  abd verify --part 3/7\n  abd verify --sample 5"
    )]
    Verify(verify::VerifyArgs),
    /// Make, describe and try the data store.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Offer the store to other machines over TLS, until stopped.
    ///
    /// Each client is known by its key and has a role. Nothing but `abd serve client` makes one known. Clients name the store
    /// as --store 'abd://HOST:7465?key=KEY'.
    #[command(
        after_help = "Example:\n  abd --store /srv/abd serve --gc-every 24h --keep-at-least 30\n  abd serve client add dc1 --role orchestrator --key 3f2a90c1b4d2…\n  abd serve key"
    )]
    Serve(Box<serve::ServeArgs>),
    /// Remove what dead jobs left in the pools. Can be run at any time.
    #[command(after_help = "Example:\n  abd reconcile")]
    Reconcile {
        /// Only this pool.
        #[arg(long)]
        pool: Option<String>,
    },
    /// Let go of what is kept in the pools between runs for VMs that are not backed up any more.
    ///
    /// Removes the references and reserved snapshots of this installation, after showing them. Restore points stay;
    /// the next backup of such a VM reads everything. `abd doctor` says how many there are.
    #[command(
        after_help = "Example:\n  abd release web01\n  abd release --all --pool dc1 --yes\n  abd --json release --all | jq '.kept[]'"
    )]
    Release(ReleaseArgs),
    /// Look for what would keep jobs from working. Changes nothing, unless it is to start delegates.
    ///
    /// Looks at this machine, the store and each pool, and says of every VM what keeps it from being backed up, or of
    /// the named ones all there is to say. Every finding has a code; orchestrator/FINDINGS.md explains them.
    ///
    /// With --delegate a real delegate without a job is started on each host that would run jobs, one after the other. It
    /// says how long it took to boot, which address it got, and how fast it reads its own disk and sends to this machine;
    /// or where it is stuck, and what to do. The store is not touched, and nothing is left in the pool.
    #[command(
        after_help = "Example:\n  abd doctor\n  abd doctor web01 db01\n  abd --json doctor --strict | jq '.findings[] | select(.level != \"ok\")'\n  abd doctor --delegate\n  abd doctor --delegate dc1 --host xen-3\n\nExit codes:\n  0  nothing keeps jobs from working     1  a delegate failed, or another error\n  7  template missing or outdated       11  something of a delegate is still in the pool\n  Others as of every command: that of the first of the worst findings. `abd --help` lists them."
    )]
    Doctor(Box<doctor::DoctorArgs>),
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Trust a pool's certificate and remember the pool.
    #[command(
        after_help = "Example:\n  abd pool add https://10.0.0.11 --user root --password-file /etc/abd/pool.password\n  abd pool add --local --advertise 10.0.0.11"
    )]
    Add(PoolAddArgs),
    /// Change what is known of a pool.
    #[command(
        after_help = "Example:\n  abd pool set dc1 --keep-idle 2 --keep-idle-for 1h\n  abd pool set dc1 --keep-idle 0\n  abd pool set dc1 --network storage,address=10.9.0.5/24 --network Management --advertise 10.9.0.1"
    )]
    Set {
        /// The pool's name.
        name: String,
        #[command(flatten)]
        reach: ReachArgs,
        /// Put delegates on the management network alone, as is the default.
        #[arg(long, conflicts_with = "network")]
        management_network: bool,
        #[command(flatten)]
        keep: KeepArgs,
    },
    /// List the pools.
    #[command(after_help = "Example:\n  abd pool list")]
    List,
    /// Forget a pool. Nothing in it is changed.
    #[command(after_help = "Example:\n  abd release --all --pool dc1\n  abd pool remove dc1")]
    Remove {
        /// The pool's name.
        name: String,
        /// Forget it even though references or reserved snapshots of ours are in it.
        #[arg(long)]
        keep_references: bool,
    },
}

#[derive(Debug, Args)]
struct PoolAddArgs {
    /// https://HOST[:PORT] of the pool's coordinator.
    #[arg(required_unless_present = "local", conflicts_with = "local")]
    url: Option<String>,
    /// Use XAPI's socket on this host: for running in a control domain, without a password.
    #[arg(long)]
    local: bool,
    /// XAPI's socket, with --local.
    #[arg(long, default_value = "/var/lib/xcp/xapi", value_name = "PATH", requires = "local")]
    socket: PathBuf,
    /// Name for commands [default: the pool's own name].
    #[arg(long)]
    name: Option<String>,
    /// User of the pool.
    #[arg(long, default_value = "root")]
    user: String,
    /// File whose first line is the password. Without it: $ABD_PASSWORD or systemd's credential abd-<pool>.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// SHA-256 of the certificate, where you know it; else it is shown and asked about.
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    keep: KeepArgs,
}

/// How delegates reach this machine.
#[derive(Clone, Debug, Args)]
struct ReachArgs {
    /// Address at which delegates reach this machine.
    #[arg(long, value_name = "ADDRESS")]
    advertise: Option<IpAddr>,
    /// Address and port to listen at for delegates [default: all addresses, any port].
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Network for delegates, by name or uuid [default: the management network]. Several times for several cards: the
    /// first is card 0 and has the default route. After a comma what its card is told, such as
    /// `storage,address=10.9.0.5/24,gateway=10.9.0.1` or `storage,ipv6=off`; else DHCP and router advertisements.
    #[arg(long, value_name = "NETWORK[,SETTING...]")]
    network: Vec<DelegateNetwork>,
}

/// Whether delegates are kept for later jobs.
#[derive(Clone, Debug, Args)]
struct KeepArgs {
    /// Keep up to this many delegates per host, halted, for later jobs; 0 throws every one away [default: 0].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=64))]
    keep_idle: Option<u32>,
    /// How long each of them is kept after its job [default: 30min].
    #[arg(long, value_name = "DURATION", value_parser = crate::spec::parse_pause)]
    keep_idle_for: Option<Duration>,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The job file. `abd run --keys` prints what can stand in it.
    #[arg(required_unless_present = "keys", value_name = "JOBFILE")]
    file: Option<PathBuf>,
    /// Print every key of a job file with its default and what is allowed.
    #[arg(long)]
    keys: bool,
    #[command(flatten)]
    jobs: JobArgs,
    #[command(flatten)]
    flags: RunFlags,
}

#[derive(Debug, Args)]
struct BackupArgs {
    /// VMs, by name, uuid or pattern.
    #[arg(required_unless_present = "tag")]
    vms: Vec<String>,
    /// VMs with this tag.
    #[arg(long)]
    tag: Vec<String>,
    /// Leave out VMs of this name or pattern.
    #[arg(long, value_name = "NAME")]
    exclude: Vec<String>,
    /// The pool, where more than one is known.
    #[arg(long)]
    pool: Option<String>,
    #[command(flatten)]
    jobs: JobArgs,
    #[command(flatten)]
    flags: RunFlags,
}

#[derive(Debug, Args)]
struct PlanArgs {
    /// VMs, by name, uuid or pattern.
    #[arg(required_unless_present_any = ["tag", "job"])]
    vms: Vec<String>,
    /// VMs with this tag.
    #[arg(long)]
    tag: Vec<String>,
    /// Leave out VMs of this name or pattern.
    #[arg(long, value_name = "NAME")]
    exclude: Vec<String>,
    /// The pool, where more than one is known.
    #[arg(long)]
    pool: Option<String>,
    /// The VMs and options of this job file.
    #[arg(long, value_name = "JOBFILE", conflicts_with_all = ["vms", "tag", "exclude", "pool"])]
    job: Option<PathBuf>,
    #[command(flatten)]
    jobs: JobArgs,
}

#[derive(Debug, Args)]
struct ReleaseArgs {
    /// VMs by name or uuid, also such as are gone; or disks or references by uuid.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    vms: Vec<String>,
    /// Everything that is kept.
    #[arg(long)]
    all: bool,
    /// Only in this pool.
    #[arg(long)]
    pool: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Args)]
struct RestoreArgs {
    /// The restore point's id, or the beginning of it.
    point: String,
    /// Only these disks, by their number in `abd show`.
    #[arg(long, value_name = "NUMBER")]
    disk: Vec<usize>,
    /// Storage repository for the new VDIs, by name or uuid [default: the pool's default].
    #[arg(long)]
    sr: Option<String>,
    /// The pool, where more than one is known.
    #[arg(long)]
    pool: Option<String>,
    /// Show what the time of each disk was spent on, and what it was bound by. `--json` always says so.
    #[arg(long)]
    report: bool,
    #[command(flatten)]
    delegate: DelegateArgs,
}

/// What every command needs.
struct Session {
    state: State,
    store: PathBuf,
    /// Whether nobody named another.
    default_store: bool,
    report: Arc<Report>,
    json: bool,
}

async fn connect(session: &Session, name: Option<&str>) -> Result<Pool> {
    Pool::connect(&session.state, session.state.pool(name)?).await
}

/// Asks a person at a terminal; nobody there means no.
fn confirm(session: &Session, question: &str) -> Result<bool> {
    if session.json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    let failed = |error| Error::new(Kind::Usage, "cannot ask").because(error);
    eprint!("{}", printable_lines(question));
    std::io::stderr().flush().map_err(failed)?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).map_err(failed)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
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

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let lasting = matches!(&cli.command, Command::Serve(args) if args.is_lasting());
    init_logging(cli.verbose, lasting);
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print_error(&error, json);
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let state = State::open(cli.state_dir.unwrap_or_else(State::default_directory))?;
    ads::use_identity_file(state.client_key_path());
    crate::store_key::tell(cli.key);
    let default_store = cli.store.is_none();
    let store = cli.store.unwrap_or_else(|| state.default_store());
    // Where a run's output goes to a mail or a file, its summary says it all; what happens goes to the log.
    let quiet = matches!(cli.command, Command::Run(_) | Command::Doctor(_))
        && cli.verbose == 0
        && !std::io::stdout().is_terminal();
    let detailed = match &cli.command {
        Command::Backup(args) => args.flags.report,
        Command::Run(args) => args.flags.report,
        Command::Restore(args) => args.report,
        _ => false,
    };
    let report = Report::new(cli.json).detailed(detailed || cli.verbose > 0);
    let report = Arc::new(if quiet { report.quiet() } else { report });
    let session = Session { state, store, default_store, report, json: cli.json };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Failed, "cannot start threads").because(error))?;
    let result = runtime.block_on(commands::dispatch(&session, cli.command));
    // A blocking read of the store must not hold the process back once the answer is known.
    runtime.shutdown_background();
    result
}

/// One error object on standard output for programs, or the chain and the remedy on standard error.
fn print_error(error: &Error, json: bool) {
    if json {
        let value = serde_json::json!({
            "event": "error", "error": error.chain(), "remedy": error.remedy_text(),
            "exit_code": error.kind().exit_code(),
        });
        // Nobody may be reading any more.
        let _ = writeln!(std::io::stdout(), "{value}");
        return;
    }
    eprintln!("abd: {}", printable(&error.chain()));
    if let Some(remedy) = error.remedy_text() {
        eprintln!("     what to do: {}", printable(remedy));
    }
}

/// What runs until it is stopped says what it does, where others only say what goes wrong.
fn init_logging(verbose: u8, lasting: bool) {
    let level = match verbose {
        0 if lasting => "warn,ads::serve=info,abd_orchestrator=info",
        0 => "error",
        1 => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("ABD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // Without colors: a filter that lets those of the log through lets those of a VM's name through.
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(|| LogLine).init();
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_help_names_every_exit_code() {
        for kind in Kind::ALL {
            let code = kind.exit_code().to_string();
            assert!(EXIT_CODES.split_whitespace().any(|word| word == code), "{kind:?}");
        }
    }

    #[test]
    fn every_command_shows_an_example() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                command.get_subcommands().for_each(check);
            } else {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Example"), "{} has no example", command.get_name());
            }
        }
        check(&Cli::command());
    }
}
