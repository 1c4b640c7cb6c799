//! One or more jobs from start to end, in either way.

use crate::engine::Engine;
use crate::machine::{Machine, used};
use crate::{Error, io, saved};
use abd_appliance::worker::perform_here;
use ads::{JobEvent, JobGrant, JobHandle, Service, Store};
use blocks::ByteCount;
use clap::{Args, ValueEnum};
use pin::Identity;
use seal::Tree;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::{Account, BackupDisk, DiskCounts, JobDone, Order, RestoreDisk, StageAccount, Start, Work};

/// As the product's default.
const PACK_SIZE: u32 = 16 << 20;
const MIB: u32 = 1 << 20;
const WATCHDOG_S: u16 = 90;
const PROGRESS_MS: u16 = 1000;
const USERDEVICE: u16 = 4;

/// Where the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// In the worker's process.
    Engine,
    /// Behind its service, over TLS; the worker is another process.
    Worker,
}

#[derive(Debug, Args)]
struct Common {
    #[arg(long)]
    way: Way,
    /// Directory of the store.
    #[arg(long)]
    store: PathBuf,
    /// Program that is started as the worker; this one where it is not given.
    #[arg(long)]
    worker: Option<PathBuf>,
    /// Read and write without io_uring.
    #[arg(long)]
    no_io_uring: bool,
    /// With the engine: keep packs as they come, without looking at them. Measures the engine alone.
    #[arg(long)]
    believe: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BackupArguments {
    #[command(flatten)]
    common: Common,
    /// An image; given several times, there is a job for each, all at once.
    #[arg(long = "disk", required = true)]
    disks: Vec<PathBuf>,
    /// Where the tree is kept, as often as --disk.
    #[arg(long = "tree", required = true)]
    trees: Vec<PathBuf>,
    /// The tree to compare with.
    #[arg(long)]
    base: Option<PathBuf>,
    /// XAPI's bitmap of what may differ from the base, or without a base of what was ever written.
    #[arg(long)]
    bitmap: Option<PathBuf>,
    /// zstd level.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    level: i8,
    /// Size at which packs are ended, in MiB: 1 to 64.
    #[arg(long, default_value_t = PACK_SIZE / MIB, value_parser = clap::value_parser!(u32).range(1..=64))]
    pack_size: u32,
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    #[command(flatten)]
    common: Common,
    #[arg(long)]
    tree: PathBuf,
    /// The image to write; made, of the disk's size, where it does not exist.
    #[arg(long)]
    target: PathBuf,
}

/// One job to run.
struct Task {
    disk: PathBuf,
    work: Work,
    bitmap: Option<Vec<u8>>,
}

/// What a job said at its end.
struct Ended {
    tree: Tree,
    done: JobDone,
}

pub(crate) fn back_up(arguments: &BackupArguments) -> Result<Value, Error> {
    let BackupArguments { common, disks, trees, base, bitmap, level, pack_size } = arguments;
    if disks.len() != trees.len() {
        return Err(Error::Job("as many --tree as --disk are needed".into()));
    }
    let base = base.as_deref().map(saved::read).transpose()?;
    let bitmap = match bitmap {
        Some(path) => Some(std::fs::read(path).map_err(io(format!("read {}", path.display())))?),
        None => None,
    };
    let start = match (base, &bitmap) {
        (None, None) => Start::Nothing,
        (None, Some(_)) => Start::Allocated,
        (Some(base), None) => Start::Compare { base },
        (Some(base), Some(_)) => Start::Changed { base },
    };
    let task = |disk: &PathBuf| {
        let disks = vec![BackupDisk {
            userdevice: USERDEVICE,
            size: size_of(disk)?,
            start: start.clone(),
            audit: None,
        }];
        let work = Work::Backup {
            level: *level,
            pack_size: *pack_size * MIB,
            rate_limit: None,
            throttle: None,
            skip_bad_blocks: false,
            disks,
        };
        Ok(Task { disk: disk.clone(), work, bitmap: bitmap.clone() })
    };
    let tasks = disks.iter().map(task).collect::<Result<Vec<_>, Error>>()?;
    let (ended, value) = run(common, tasks)?;
    for (ended, path) in ended.iter().zip(trees) {
        saved::write(path, &ended.tree)?;
    }
    Ok(value)
}

pub(crate) fn restore(arguments: &RestoreArguments) -> Result<Value, Error> {
    let RestoreArguments { common, tree, target } = arguments;
    let tree = saved::read(tree)?;
    let named = || format!("make {}", target.display());
    let fresh = std::fs::File::options().write(true).create_new(true).open(target);
    let blank = fresh.is_ok();
    if let Ok(file) = fresh {
        file.set_len(tree.size.get()).map_err(io(named()))?;
    }
    let disks = vec![RestoreDisk {
        userdevice: USERDEVICE,
        device: tree.size,
        size: tree.size,
        root: tree.root,
        blank,
    }];
    let task = Task { disk: target.clone(), work: Work::Restore { disks }, bitmap: None };
    run(common, vec![task]).map(|(_, value)| value)
}

fn run(common: &Common, tasks: Vec<Task>) -> Result<(Vec<Ended>, Value), Error> {
    let is_fresh = std::fs::read_dir(&common.store).map_or(true, |mut entries| entries.next().is_none());
    let store = if is_fresh { Store::init(&common.store)? } else { Store::open(&common.store)? };
    let store = Arc::new(store);
    let before = store.usage();
    let (ended, workers) = match common.way {
        Way::Engine => (run_here(&store, tasks, common)?, Vec::new()),
        Way::Worker => run_apart(&store, tasks, common)?,
    };
    let after = store.usage();
    let counts: Vec<Value> = ended.iter().map(|ended| counts_of(&ended.done)).collect();
    let value = json!({
        "stored": after.bytes.get() - before.bytes.get(),
        "packs": after.packs - before.packs,
        "jobs": counts,
        "this": used(),
        "workers": workers,
    });
    Ok((ended, value))
}

/// One job after the other in this process.
fn run_here(store: &Arc<Store>, tasks: Vec<Task>, common: &Common) -> Result<Vec<Ended>, Error> {
    let mut all = Vec::new();
    for (number, Task { disk, work, bitmap }) in tasks.into_iter().enumerate() {
        let job = job_name(number);
        let order = order(store, &job, work);
        let believed = common.believe.then(Mutex::default);
        let store = store.clone();
        let engine = Arc::new(Engine { store, order, bitmap, heard: Mutex::default(), believed });
        perform_here(&job, engine.clone(), Arc::new(Machine::new(&disk, !common.no_io_uring)))?;
        let heard = std::mem::take(&mut *engine.heard.lock().expect("the job is over"));
        all.push(ended(heard)?);
    }
    Ok(all)
}

/// All jobs at once, each in a process of its own.
fn run_apart(
    store: &Arc<Store>,
    tasks: Vec<Task>,
    common: &Common,
) -> Result<(Vec<Ended>, Vec<Value>), Error> {
    let mut words = match &common.worker {
        Some(program) => vec![program.as_os_str().to_owned()],
        None => vec![std::env::current_exe().map_err(io("find this program"))?.into_os_string()],
    };
    words.push("worker".into());
    if common.no_io_uring {
        words.push("--no-io-uring".into());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(io("start threads"))?;
    let listen = ["127.0.0.1:0".parse().expect("an address")];
    let service = runtime.block_on(Service::start(store.clone(), Identity::generate()?, &listen))?;
    let mut running = Vec::new();
    for (number, task) in tasks.into_iter().enumerate() {
        running.push(start(&runtime, &service, store, &words, job_name(number), task)?);
    }
    let (mut all, mut workers) = (Vec::new(), Vec::new());
    for (handle, child, output) in running {
        workers.push(finish(child, output)?);
        all.push(runtime.block_on(listen_to(handle))?);
    }
    Ok((all, workers))
}

type Running = (JobHandle, Child, BufReader<ChildStdout>);

fn start(
    runtime: &tokio::runtime::Runtime,
    service: &Service,
    store: &Store,
    words: &[OsString],
    job: String,
    task: Task,
) -> Result<Running, Error> {
    let Task { disk, work, bitmap } = task;
    let order = order(store, &job, work);
    let _guard = runtime.enter();
    let handle = service.open_job(JobGrant { job: job.clone(), order, bitmaps: vec![bitmap] })?;
    let mut child = Command::new(&words[0])
        .args(&words[1..])
        .args(["--job", &job, "--address", &service.addresses()[0].to_string()])
        .args(["--key", &service.fingerprint().to_string(), "--disk"])
        .arg(disk)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(io(format!("start {}", words[0].display())))?;
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut key = String::new();
    output.read_line(&mut key).map_err(io("read the worker's key"))?;
    let key = key.trim().parse().map_err(|_| Error::Job("the worker did not say its key".into()))?;
    handle.admit(key)?;
    Ok((handle, child, output))
}

/// What the worker says it used.
fn finish(mut child: Child, mut output: BufReader<ChildStdout>) -> Result<Value, Error> {
    let mut text = String::new();
    output.read_to_string(&mut text).map_err(io("read what the worker says"))?;
    let status = child.wait().map_err(io("wait for the worker"))?;
    if !status.success() {
        return Err(Error::Job(format!("the worker failed: {status}")));
    }
    serde_json::from_str(&text).map_err(|error| Error::Job(format!("the worker said {text:?}: {error}")))
}

async fn listen_to(handle: JobHandle) -> Result<Ended, Error> {
    let mut heard = (None, None);
    handle.close();
    while let Some(event) = handle.events().recv().await {
        match event {
            JobEvent::DiskSealed { tree, .. } => heard.0 = Some(tree),
            JobEvent::Done(done) => heard.1 = Some(done),
            _ => {}
        }
    }
    ended(heard)
}

fn ended(heard: (Option<Tree>, Option<JobDone>)) -> Result<Ended, Error> {
    match heard {
        (Some(tree), Some(done)) => Ok(Ended { tree, done }),
        _ => Err(Error::Job("the job ended without a word".into())),
    }
}

fn order(store: &Store, job: &str, work: Work) -> Order {
    let id_key = store.id_key_bytes();
    Order {
        job: job.to_owned(),
        id_key,
        master_key: None,
        watchdog_s: WATCHDOG_S,
        progress_ms: PROGRESS_MS,
        work,
    }
}

fn job_name(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

fn size_of(path: &Path) -> Result<ByteCount, Error> {
    let facts = std::fs::metadata(path).map_err(io(format!("look at {}", path.display())))?;
    Ok(ByteCount::new(facts.len()))
}

fn counts_of(done: &JobDone) -> Value {
    let all: Vec<Value> = done.disks.iter().map(counts).collect();
    let passes: Vec<Value> = done.passes.iter().map(|pass| stages(&pass.account)).collect();
    json!({
        "disks": all, "passes": passes,
        "cpu_ms": done.usage.cpu_ms, "peak_kib": done.usage.worker_peak.get() / 1024,
    })
}

/// What the worker says its time was spent on.
fn stages(account: &Account) -> Value {
    let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
    let row = |one: &StageAccount| {
        json!({
            "stage": one.stage, "threads": one.threads, "busy_s": seconds(one.busy), "cpu_s": seconds(one.cpu),
            "starved_s": seconds(one.starved), "blocked_s": seconds(one.blocked), "bytes": one.bytes.get(),
        })
    };
    let rows: Vec<Value> = account.stages.iter().map(row).collect();
    json!({ "wall_s": seconds(account.wall), "bound": account.verdict().words(), "stages": rows })
}

fn counts(counts: &DiskCounts) -> Value {
    let DiskCounts { planned, moved, zero, unchanged, known, shipped, sealed, nodes, .. } = counts;
    json!({
        "planned": planned.get(), "moved": moved.get(), "zero": zero.get(), "unchanged": unchanged.get(),
        "known": known.get(), "shipped": shipped.get(), "sealed": sealed.get(), "nodes": nodes,
    })
}
