//! What a worker needs at most: measured in a process of its own, so that the store's memory is not counted.

use crate::counting;
use crate::lab::{Heard, Lab, Machine, backup, bitmap, disk, size_of, write_blocks};
use crate::proxy;
use abd_appliance::platform::memory;
use abd_appliance::worker::{Assignment, Identity, perform};
use blocks::{BLOCK_SIZE, BlockCount};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Audit, BackupDisk, RestoreDisk, Start, Work};

/// What a worker may hold in a VM of 128 MiB, the program included.
const LIMIT_KIB: u64 = 64 << 10;
const TIB: u64 = 1 << 40;

/// What came out of a worker process.
struct Measured {
    tree: seal::Tree,
    counts: wire::DiskCounts,
    peak_kib: u64,
    wall: Duration,
    cpu_ms: u64,
    /// Allocations of the stages, and of the thread that has the network.
    allocations: (u64, u64),
}

/// The worker process: this test, started again by [`measure`].
#[test]
#[ignore = "is the worker process of other tests"]
fn worker_process() {
    let Ok(settings) = std::env::var("ABD_TEST_WORKER") else { return };
    let words: Vec<&str> = settings.split(' ').collect();
    let [job, address, key, disk, report] = words[..] else { panic!("five words") };
    let identity = Identity::generate().expect("key");
    std::fs::write(format!("{report}.key.tmp"), identity.fingerprint().to_string()).expect("key");
    std::fs::rename(format!("{report}.key.tmp"), format!("{report}.key")).expect("key");
    let pin: pin::Fingerprint = key.parse().expect("fingerprint");
    let assignment = Assignment {
        job: job.to_owned(),
        addresses: vec![address.parse().expect("address")],
        orchestrator_key: *pin.as_bytes(),
        watchdog: abd_appliance::worker::DEFAULT_WATCHDOG,
    };
    counting::this_is_the_network();
    perform(&assignment, &identity, Arc::new(Machine::new([(4, Path::new(disk))]))).expect("job");
    let (peak_kib, (stages, network)) = (memory::now().worker_peak_kib, counting::so_far());
    std::fs::write(report, format!("{peak_kib} {stages} {network}")).expect("report");
}

/// Runs one job in a process of its own.
fn measure(lab: &Lab, work: Work, bitmap: Option<Vec<u8>>, path: &Path) -> Measured {
    measure_at(lab, lab.address(), work, bitmap, path)
}

/// [`measure`] with another way to the store.
fn measure_at(lab: &Lab, address: SocketAddr, work: Work, bitmap: Option<Vec<u8>>, path: &Path) -> Measured {
    let (job, handle) = lab.open(work, vec![bitmap]);
    let report = lab.path("report");
    let key_file = PathBuf::from(format!("{}.key", report.display()));
    // Of the run before; there is none the first time.
    let _ = std::fs::remove_file(&key_file);
    let settings =
        format!("{job} {address} {} {} {}", lab.service.fingerprint(), path.display(), report.display());
    let began = Instant::now();
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["memory::worker_process", "--exact", "--ignored", "--nocapture"])
        .env("ABD_TEST_WORKER", settings)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("worker process");
    let key = loop {
        if let Ok(key) = std::fs::read_to_string(&key_file) {
            break key;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the worker process made no key");
        std::thread::sleep(Duration::from_millis(5));
    };
    handle.admit(key.parse().expect("fingerprint")).expect("admitted");
    let output = child.wait_with_output().expect("worker process");
    let wall = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report = std::fs::read_to_string(&report).expect("report");
    let numbers: Vec<u64> = report.split(' ').map(|number| number.parse().expect("a number")).collect();
    let [peak_kib, stages, network] = numbers[..] else { panic!("three numbers") };
    let Heard { done, trees, .. } = lab.finish(handle);
    let done = done.expect("told");
    let (tree, counts, cpu_ms) = (trees[0], done.disks[0], done.usage.cpu_ms);
    Measured { tree, counts, peak_kib, wall, cpu_ms, allocations: (stages, network) }
}

fn disk_of(path: &Path, start: Start) -> Work {
    audited_disk_of(path, start, None)
}

fn audited_disk_of(path: &Path, start: Start, audit: Option<Audit>) -> Work {
    backup(vec![BackupDisk { userdevice: 4, size: size_of(path), start, audit }])
}

#[test]
fn two_tib_with_few_blocks_take_seconds_and_no_more_memory() {
    let lab = Lab::new();
    let path = lab.path("disk");
    let written: Vec<u64> = (0..300).map(|n| n * 111_000 + n).collect();
    disk(&path, 2 * TIB, &written);
    let size = size_of(&path);
    let map = bitmap(size, &written).to_xapi();
    let first = measure(&lab, disk_of(&path, Start::Allocated), Some(map), &path);
    assert_eq!(first.counts.moved.get(), 300 * BLOCK_SIZE);
    let changed: Vec<u64> = written.iter().copied().step_by(10).chain([(2 * TIB / BLOCK_SIZE) - 1]).collect();
    write_blocks(&path, &changed, 2);
    let map = bitmap(size, &changed).to_xapi();
    let second = measure(&lab, disk_of(&path, Start::Changed { base: first.tree }), Some(map), &path);
    assert_eq!(second.counts.moved.get(), 31 * BLOCK_SIZE);
    assert_eq!(second.counts.shipped.get(), 31 * BLOCK_SIZE);
    // The audit's sample is a second bitmap of the disk's size.
    let audit = Audit { seed: 1, parts_per_million: 0, minimum: BlockCount::new(1000) };
    let map = bitmap(size, &[]).to_xapi();
    let work = audited_disk_of(&path, Start::Changed { base: second.tree }, Some(audit));
    let audited = measure(&lab, work, Some(map), &path);
    assert_eq!((audited.tree, audited.counts.audited.get()), (second.tree, 1000 * BLOCK_SIZE));
    let target = lab.path("target");
    disk(&target, 2 * TIB, &[]);
    let (size, root) = (second.tree.size, second.tree.root);
    let disks = vec![RestoreDisk { userdevice: 4, device: size, size, root, blank: true }];
    let third = measure(&lab, Work::Restore { disks }, None, &target);
    assert_eq!(third.counts.moved.get(), 301 * BLOCK_SIZE);
    let map = bitmap(size, &written.iter().chain(&changed).copied().collect::<Vec<_>>()).to_xapi();
    let fourth = measure(&lab, disk_of(&target, Start::Allocated), Some(map), &target);
    assert_eq!((fourth.tree, fourth.counts.shipped.get()), (second.tree, 0), "the restored disk is the same");
    for (what, run) in
        [("allocated", &first), ("changed", &second), ("audited", &audited), ("restore", &third)]
    {
        println!("2 TiB, {what}: {} KiB peak, {:?}, {} ms of processor", run.peak_kib, run.wall, run.cpu_ms);
        assert!(run.peak_kib <= LIMIT_KIB, "{what} took {} KiB", run.peak_kib);
        assert!(run.wall < Duration::from_secs(60), "{what} took {:?}", run.wall);
    }
}

#[test]
fn a_full_backup_and_a_restore_with_packs_of_16_mib_stay_within_the_limit() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 3000 * BLOCK_SIZE, &(0..3000).collect::<Vec<_>>());
    let full = measure(&lab, disk_of(&path, Start::Nothing), None, &path);
    let target = lab.path("target");
    disk(&target, 3000 * BLOCK_SIZE, &[]);
    let disks = vec![RestoreDisk {
        userdevice: 4,
        device: full.tree.size,
        size: full.tree.size,
        root: full.tree.root,
        blank: false,
    }];
    let restore = measure(&lab, Work::Restore { disks }, None, &target);
    crate::lab::assert_same(&path, &target);
    for (what, run) in [("full", &full), ("restore", &restore)] {
        println!(
            "188 MiB, {what}: {} KiB peak, {:?}, {} ms of processor",
            run.peak_kib, run.wall, run.cpu_ms
        );
        assert!(run.peak_kib <= LIMIT_KIB, "{what} took {} KiB", run.peak_kib);
    }
}

/// What every further MiB of a disk costs in allocations, once the buffers are there: the difference between a disk and
/// one twice its size. The thread that has the network makes TLS records and HTTP messages, and is only held to sanity.
#[test]
fn a_longer_disk_needs_next_to_no_more_allocations() {
    const MIB: u64 = 96;
    // Where there is news, one for each read, of which there are 4 per MiB: its buffer is shared by its blocks. Then a
    // question to the store every 4 MiB and a tree node every 16, each a dozen for its messages.
    const MOST_PER_MIB: (u64, u64) = (10, 200);
    // No reports: their number would be that of the seconds.
    let mut lab = Lab::new();
    lab.progress_ms = 5000;
    let sizes = [MIB, 2 * MIB].map(|mib| (mib, lab.path(&format!("disk{mib}"))));
    for (mib, path) in &sizes {
        // Other blocks on each, or the second would have nothing to ship.
        let size = mib << 20;
        disk(path, size, &[]);
        write_blocks(path, &(0..size / BLOCK_SIZE).collect::<Vec<_>>(), *mib);
    }
    let full = sizes.each_ref().map(|(_, path)| measure(&lab, disk_of(path, Start::Nothing), None, path));
    let scan = [0, 1].map(|at| {
        let (_, path) = &sizes[at];
        measure(&lab, disk_of(path, Start::Compare { base: full[at].tree }), None, path)
    });
    let target = lab.path("target");
    let restore = full.each_ref().map(|Measured { tree, .. }| {
        disk(&target, tree.size.get(), &[]);
        let (size, root) = (tree.size, tree.root);
        let disks = vec![RestoreDisk { userdevice: 4, device: size, size, root, blank: true }];
        measure(&lab, Work::Restore { disks }, None, &target)
    });
    for (what, [short, long]) in [("full", full), ("scan", scan), ("restore", restore)] {
        let per_mib = |count: fn(&Measured) -> u64| count(&long).saturating_sub(count(&short)) / MIB;
        let found = (per_mib(|run| run.allocations.0), per_mib(|run| run.allocations.1));
        println!("{what}: {} and {} allocations per MiB in stages and network", found.0, found.1);
        assert!(found.0 <= MOST_PER_MIB.0 && found.1 <= MOST_PER_MIB.1, "{what}: {found:?} per MiB");
    }
}

/// How fast it is: `ABD_BENCH_DISK=<file> cargo test --release ... -- --ignored --nocapture speed`. With
/// `ABD_BENCH_DELAY_MS` every byte takes that long, in each direction.
#[test]
#[ignore = "a measurement; needs ABD_BENCH_DISK"]
fn speed_of_a_full_backup_and_a_restore() {
    let Ok(path) = std::env::var("ABD_BENCH_DISK") else {
        println!("skipped: ABD_BENCH_DISK names no file");
        return;
    };
    let path = PathBuf::from(path);
    let lab = Lab::new();
    let delay_ms = std::env::var("ABD_BENCH_DELAY_MS").map(|ms| ms.parse().expect("milliseconds"));
    let address =
        delay_ms.map_or(lab.address(), |ms| proxy::far_away(lab.address(), Duration::from_millis(ms)));
    let measure = |lab: &Lab, work, bitmap, path: &Path| measure_at(lab, address, work, bitmap, path);
    let say = |what: &str, run: &Measured| {
        let rate = size_of(&path).get() as f64 / 1e6 / run.wall.as_secs_f64();
        println!(
            "{what}: {rate:.0} MB/s, {:?}, worker {} ms of processor, {} KiB peak, {:?}",
            run.wall, run.cpu_ms, run.peak_kib, run.counts
        );
    };
    let full = measure(&lab, disk_of(&path, Start::Nothing), None, &path);
    say("full", &full);
    say("scan", &measure(&lab, disk_of(&path, Start::Compare { base: full.tree }), None, &path));
    let target = lab.path("target");
    disk(&target, size_of(&path).get(), &[]);
    let disks = vec![RestoreDisk {
        userdevice: 4,
        device: full.tree.size,
        size: full.tree.size,
        root: full.tree.root,
        blank: true,
    }];
    say("restore", &measure(&lab, Work::Restore { disks }, None, &target));
    crate::lab::assert_same(&path, &target);
}
