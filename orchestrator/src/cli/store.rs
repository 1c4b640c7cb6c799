//! `abd store`: makes the data store, says what it holds, and tries whether its place does what it must.

use super::copy::{self, CopyArgs};
use super::jobs::watch_signals;
use super::store_key::{InitArgs, KeyCommand};
use super::{Session, serve};
use crate::catalog;
use crate::error::{Error, Kind, Result};
use crate::report::{Event, Report};
use ads::{GcOptions, Place, Points, Probe, Role, Standing, Store};
use clap::Subcommand;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// What there is to do with a store itself.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Make a store where nothing is: in a directory that is missing or empty, or in a bucket below a prefix.
    #[command(
        after_help = "Example:\n  abd --store /srv/abd store init\n  abd --store 's3://backups/abd?endpoint=https://minio.lan:9000' store init\n  abd --store /srv/abd store init --encrypt"
    )]
    Init(InitArgs),
    /// Say who can open an encrypted store, and change that.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Say where the store is and how much it holds.
    #[command(after_help = "Example:\n  abd store info\n  abd --json store info | jq .bytes")]
    Info,
    /// Try whether the store's place does what it must: write, read, list, write again, remove. Looks at the packs'
    /// indexes and at the restore points too; `abd verify` looks closer.
    #[command(after_help = "Example:\n  abd store check")]
    Check,
    /// Print this machine's key, by which a server of `abd serve` knows it. Made on first use.
    #[command(after_help = "Example:\n  abd store client-key")]
    ClientKey,
    /// Free what no restore point needs any more. Backups and restores go on meanwhile.
    ///
    /// Packs that nobody needs are removed; what a job that runs right now might still refer to waits for a later collection.
    /// Packs of which little is needed are written anew without the rest. Nothing is removed where anything that is needed
    /// cannot be read.
    #[command(
        after_help = "Example:\n  abd prune --all --keep-daily 7 --yes && abd store gc\n  abd store gc --dry-run"
    )]
    Gc {
        /// Only count.
        #[arg(long)]
        dry_run: bool,
        /// Write packs anew of which less than this share is needed; 0 for none.
        #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u8).range(0..=100))]
        repack_below: u8,
        /// Take a job for dead that showed no life for this long.
        #[arg(long, value_name = "AGE", default_value = "24h", value_parser = crate::spec::parse_age)]
        grace: Duration,
        /// No other machine uses this store. To be said for a store on a network file system, and only where it is true:
        /// what another machine relies on just then might not be seen.
        #[arg(long)]
        only_here: bool,
        /// Lists of the object storage may be so old, such as 5s: another machine's newest objects may be missing from them. A
        /// collection then waits at some places for so long.
        #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = crate::spec::parse_duration)]
        lists_lag: Duration,
    },
    /// Mend what is damaged, from whatever has it, and save what still opens. Backups and restores go on meanwhile.
    ///
    /// Reads every pack. A damaged one is made whole from a second store; where nothing has it, what still opens of it is
    /// written into new packs, the damaged bytes are copied to quarantine/, and only then the pack leaves the store. What is
    /// lost is listed by VM, disk and place; the next backup of the VM reads everything and ships it again, which heals the
    /// older restore points too, as far as the disk still has the same blocks.
    #[command(
        after_help = "Example:\n  abd store repair --dry-run\n  abd store repair\n  abd store repair --from s3://offsite/abd"
    )]
    Repair(super::repair::RepairArgs),
    /// Copy restore points to another place: local to object storage, back, or to another disk.
    ///
    /// A copy is the same store in another place, with the same restore points under the same ids, and every command works
    /// on it with --store. Where nothing is, the copy makes it. Only what is missing there is moved, and every byte is
    /// checked on the way. It can be ended at any time, and goes on where it was.
    ///
    /// Of each VM the points are copied that are newer than what it has there, so that those that the rules of that place
    /// removed stay away. Points that are there only are left alone.
    #[command(
        after_help = "Example:\n  abd store copy /mnt/usb/abd\n  abd store copy 's3://backups/abd?endpoint=https://minio.lan:9000' --limit 50M\n  abd store copy /mnt/usb/abd --vm web01 --last 3 --dry-run\n  abd --store s3://backups/abd store copy /srv/abd --all"
    )]
    Copy(Box<CopyArgs>),
}

/// Does it off the runtime: a store blocks.
pub(super) async fn run(session: &Session, command: StoreCommand) -> Result<()> {
    let (path, report) = (session.store.clone(), session.report.clone());
    if let StoreCommand::ClientKey = command {
        return serve::client_key(session);
    }
    let stop = matches!(command, StoreCommand::Copy(_)).then(watch_signals);
    let work = move || match command {
        StoreCommand::ClientKey => Ok(()),
        StoreCommand::Init(args) => init(&path, &args, &report),
        StoreCommand::Key(command) => super::store_key::run(&path, &command, &report),
        StoreCommand::Info => info(&path, &report),
        StoreCommand::Check => check(&path, &report),
        StoreCommand::Gc { dry_run, repack_below, grace, only_here, lists_lag } => {
            let options = GcOptions {
                sparse_percent: repack_below,
                grace,
                dry_run,
                only_here,
                lists_lag,
                ..GcOptions::default()
            };
            gc(&path, &options, &report)
        }
        StoreCommand::Repair(args) => super::repair::repair(&path, &args, &report),
        StoreCommand::Copy(args) => {
            copy::run(&path, &args, &report, &|| stop.as_ref().is_some_and(|stop| *stop.borrow()))
        }
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Failed, "the work on the store was stopped").because(error))?
}

fn init(path: &Path, args: &InitArgs, report: &Report) -> Result<()> {
    let (store, made) = args.make(path)?;
    if !made {
        let text = format!("{} holds a store already", store.dir().display());
        return Err(Error::new(Kind::Store, text).remedy("see `abd store info`"));
    }
    let encrypted = store.is_encrypted();
    let value = json!({"store": store.id(), "place": store.dir(), "encrypted": encrypted});
    report.answer(&value, || match encrypted {
        false => format!("made a store at {}", store.dir().display()),
        true => format!(
            "made an encrypted store at {}\nprint its recovery kit now, with `abd store key export`: without a key nobody can read it",
            store.dir().display()
        ),
    });
    Ok(())
}

fn info(path: &Path, report: &Report) -> Result<()> {
    let store = catalog::open_locked(path)?;
    let points = store.points().map_err(catalog::store_error)?;
    let usage = store.usage();
    let standing = store.standing().map_err(catalog::store_error)?;
    let value = json!({
        "standing": standing, "store": store.id(), "place": store.dir(), "format": ads::FORMAT_VERSION,
        "encrypted": store.is_encrypted(), "packs": usage.packs,
        "bytes": usage.bytes, "blocks": usage.blocks, "nodes": usage.nodes, "skipped": usage.skipped,
        "points": points.points.len(), "damaged_points": points.damaged.len(),
        "oldest": points.points.first().map(|stored| &stored.point.created),
        "newest": points.points.last().map(|stored| &stored.point.created),
    });
    let encrypted = match store.is_encrypted() {
        true => "yes; `abd store key list` says what opens it",
        false => "no",
    };
    report.answer(&value, || {
        let mut lines = vec![
            ("place", store.dir().display().to_string()),
            ("id", store.id().to_string()),
            ("format", format!("version {}", ads::FORMAT_VERSION)),
            ("encrypted", encrypted.to_owned()),
            ("packs", format!("{}, {}", usage.packs, usage.bytes)),
            ("blocks", format!("{} distinct, and {} tree nodes", usage.blocks, usage.nodes)),
            ("points", described(&points)),
        ];
        if let Some(standing) = &standing {
            lines.push(("here", format!("this machine {}", permitted(standing))));
        }
        if usage.skipped > 0 {
            lines.push(("UNREADABLE", format!("{} packs; run `abd verify`", usage.skipped)));
        }
        let lines: Vec<String> =
            lines.into_iter().map(|(name, text)| format!("{name:<10}  {text}")).collect();
        lines.join("\n")
    });
    Ok(())
}

fn gc(path: &Path, options: &GcOptions, report: &Report) -> Result<()> {
    if let (Ok(Place::Served(address)), false) = (Place::from_path(path), options.dry_run) {
        let text = format!("the store at {address} is collected by its server");
        return Err(Error::new(Kind::Store, text).remedy(
            "there, run `abd serve --gc-every 24h`, or `abd store gc`; here, --dry-run counts what could go",
        ));
    }
    let store = catalog::open_locked(path)?;
    let progress = |done, total| report.event(&Event::Pieces { what: "restore points".into(), done, total });
    let found = store.collect(options, &progress).map_err(|error| match error {
        ads::Error::StaleLists { .. } => catalog::store_error(error)
            .remedy("if no other machine uses the store right now, say so with --only-here"),
        error => catalog::store_error(error),
    })?;
    let value = json!({
        "dry_run": options.dry_run, "points": found.points, "removed": found.removed, "freed": found.freed,
        "repacked": found.repacked, "written": found.written, "waiting": found.waiting,
        "waiting_bytes": found.waiting_bytes, "waits_for": found.waits_for, "dead": found.dead,
    });
    report.answer(&value, || {
        let mut lines = Vec::new();
        for dead in &found.dead {
            lines.push(format!("taken for dead: {dead}"));
        }
        if options.dry_run {
            let (count, bytes, sparse) = (found.waiting, found.waiting_bytes, found.repacked);
            lines.push(format!("{count} packs, {bytes}, could go; {sparse} of them are needed in part"));
        } else {
            let (removed, freed) = (found.removed, found.freed);
            lines.push(format!("{removed} packs removed, {freed}"));
            if found.repacked > 0 {
                let (repacked, written) = (found.repacked, found.written);
                lines.push(format!("{repacked} packs written anew with what is needed of them, {written}"));
            }
        }
        if found.waiting > 0 && !options.dry_run {
            let (count, bytes) = (found.waiting, found.waiting_bytes);
            lines.push(format!("{count} packs, {bytes}, wait for a later collection, because of:"));
            lines.extend(found.waits_for.iter().map(|who| format!("  {who}")));
        }
        lines.join("\n")
    });
    Ok(())
}

fn described(points: &Points) -> String {
    let damaged = match points.damaged.len() {
        0 => String::new(),
        count => format!(", {count} cannot be read; run `abd verify`"),
    };
    let span = match (points.points.first(), points.points.last()) {
        (Some(first), Some(last)) => format!(", from {} to {}", first.point.created, last.point.created),
        _ => String::new(),
    };
    format!("{}{span}{damaged}", points.points.len())
}

fn check(path: &Path, report: &Report) -> Result<()> {
    let store = catalog::open_locked(path)?;
    let place = match store.standing().map_err(catalog::store_error)? {
        Some(standing) => Tried::Served(standing),
        None => Tried::Probed(store.probe().map_err(catalog::store_error)?),
    };
    let points = store.points().map_err(catalog::store_error)?;
    let value = json!({
        "store": store.id(), "place": store.dir(), "conditional_puts": place.conditional_puts(),
        "standing": place.standing(),
        "skipped": store.skipped_packs().iter().map(|pack| json!({"path": pack.path, "reason": pack.reason})).collect::<Vec<_>>(),
        "damaged_points": points.damaged.iter().map(|point| json!({"path": point.path, "reason": point.reason})).collect::<Vec<_>>(),
    });
    report.answer(&value, || match &place {
        Tried::Served(standing) => {
            format!("{} is served: this machine {}", store.dir().display(), permitted(standing))
        }
        Tried::Probed(probe) => {
            let conditions = match probe.conditional_puts {
                true => "heeds conditional writes",
                false => "ignores conditional writes, which is harmless",
            };
            format!("{} does what a store needs, and {conditions}", store.dir().display())
        }
    });
    let damaged = first_damage(&store, &points);
    damaged.map_or(Ok(()), |text| {
        Err(Error::new(Kind::Damaged, text).remedy("run `abd verify --read-data` to see what suffers"))
    })
}

/// What was tried of a store's place.
enum Tried {
    /// A server says what this machine may do; whether its place is sound is for `abd store check` there.
    Served(Standing),
    Probed(Probe),
}

impl Tried {
    fn conditional_puts(&self) -> Option<bool> {
        match self {
            Self::Served(_) => None,
            Self::Probed(probe) => Some(probe.conditional_puts),
        }
    }

    fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Served(standing) => Some(standing),
            Self::Probed(_) => None,
        }
    }
}

/// What a server lets this machine do, in words.
fn permitted(standing: &Standing) -> String {
    let may = match (standing.role, standing.append_only) {
        (Role::Reader, _) => "reads",
        (Role::Orchestrator, _) | (Role::Admin, true) => "reads and adds, and removes nothing",
        (Role::Admin, false) => "reads, adds, and removes restore points and pins",
    };
    let floor = match standing.keep_at_least_days {
        0 => String::new(),
        days => format!("; everything stays for {days} days"),
    };
    format!("is '{}', of the role {}: it {may}{floor}", standing.client, standing.role)
}

fn first_damage(store: &Store, points: &Points) -> Option<String> {
    let pack = store.skipped_packs().first().map(|pack| (&pack.path, &pack.reason));
    let (path, reason) = pack.or(points.damaged.first().map(|point| (&point.path, &point.reason)))?;
    let count = store.skipped_packs().len() + points.damaged.len();
    Some(format!("{count} objects cannot be read, the first is {}: {reason}", path.display()))
}
