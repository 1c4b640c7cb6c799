//! What a job says that it was bound by: one part of the way is made so slow that nothing else matters.

use crate::lab::{Ended, Lab, Machine, backup, disk, size_of};
use crate::proxy;
use abd_appliance::worker::Identity;
use ads::{FileOps, LocalFiles};
use blocks::ByteCount;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::{Account, BackupDisk, Bound, RestoreDisk, Stage, Start, Work, account};

const MIB: u64 = 1 << 20;

/// What a slow disk takes for each of 16 answers.
const PAUSE: Duration = Duration::from_millis(100);

/// A store that takes this long to sync a file.
#[derive(Debug)]
struct SlowFiles(Duration);

impl FileOps for SlowFiles {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        LocalFiles.create_dir(path)
    }

    fn create_file(&self, path: &Path) -> io::Result<File> {
        LocalFiles.create_file(path)
    }

    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        LocalFiles.write(file, bytes)
    }

    fn sync_file(&self, file: &File) -> io::Result<()> {
        std::thread::sleep(self.0);
        LocalFiles.sync_file(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalFiles.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        LocalFiles.sync_dir(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        LocalFiles.remove(path)
    }
}

/// A disk of 4 MiB, of which 2 MiB are shipped.
fn small_disk(lab: &Lab) -> (std::path::PathBuf, Vec<BackupDisk>) {
    let path = lab.path("disk");
    disk(&path, 4 * MIB, &(0..64).collect::<Vec<_>>());
    let disks = vec![BackupDisk { userdevice: 4, size: size_of(&path), start: Start::Nothing, audit: None }];
    (path, disks)
}

/// The account of the whole job.
#[track_caller]
fn account_of(ended: &Ended) -> Account {
    ended.outcome.as_ref().expect("the job is done");
    let done = ended.done.as_ref().expect("told");
    account::sum(done.passes.iter().map(|pass| &pass.account))
}

#[track_caller]
fn assert_bound(account: &Account, bound: Bound) {
    let verdict = account.verdict();
    println!("{} {verdict:?}", verdict.words());
    assert_eq!(verdict.bound, bound, "{account:#?}");
}

/// Runs a job whose way to the store lets so many bytes through in a second.
fn run_through(lab: &Lab, rate: u64, work: Work, path: &Path) -> Ended {
    let slow = proxy::start_slow(lab.address(), rate);
    let (job, handle) = lab.open(work, vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let mut assignment = lab.assignment(&job);
    assignment.addresses = vec![slow];
    lab.follow(handle, &assignment, &identity, Machine::new([(4, path)]))
}

#[test]
fn a_slow_store_is_named() {
    let lab = Lab::over(Arc::new(SlowFiles(Duration::from_millis(500))));
    let (path, disks) = small_disk(&lab);
    let account = account_of(&lab.run(backup(disks), vec![None], Machine::new([(4, path.as_path())])));
    assert_bound(&account, Bound::Store);
    let busy = |stage| account.stage(stage).map_or(Duration::ZERO, |one| one.busy);
    assert!(busy(Stage::Store) > busy(Stage::Verify), "writing, not checking: {account:#?}");
}

#[test]
fn a_slow_disk_is_named_whichever_engine_reads_it() {
    for io_uring in [true, false] {
        let lab = Lab::new();
        let (path, disks) = small_disk(&lab);
        let machine = Machine { io_uring, pause: PAUSE, ..Machine::new([(4, path.as_path())]) };
        let account = account_of(&lab.run(backup(disks), vec![None], machine));
        assert_bound(&account, Bound::DiskRead);
        let read = account.stage(Stage::Read).expect("it was read");
        assert!(read.busy >= PAUSE * 16 && read.bytes.get() == 4 * MIB, "{account:#?}");
        let hash = account.stage(Stage::Hash).expect("it was hashed");
        assert!(hash.starved > hash.busy, "the rest waits for it: {account:#?}");
    }
}

#[test]
fn a_slow_network_is_named_in_both_directions() {
    let lab = Lab::new();
    let (path, disks) = small_disk(&lab);
    let ended = run_through(&lab, 2 * MIB, backup(disks), &path);
    assert_bound(&account_of(&ended), Bound::Network);
    let tree = ended.trees[0];
    let target = lab.path("target");
    disk(&target, tree.size.get(), &[]);
    let disks =
        vec![RestoreDisk { userdevice: 4, device: tree.size, size: tree.size, root: tree.root, blank: true }];
    let ended = run_through(&lab, 2 * MIB, Work::Restore { disks }, &target);
    let account = account_of(&ended);
    assert_bound(&account, Bound::Network);
    for stage in [Stage::Open, Stage::Write] {
        let bytes = account.stage(stage).map(|one| one.bytes.get());
        assert!(bytes.is_some_and(|bytes| bytes >= 2 * MIB), "{stage:?} {account:#?}");
    }
}

#[test]
fn a_rate_that_was_asked_for_is_named_and_no_disk_blamed_for_it() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 6 * MIB, &[]);
    let disks = vec![BackupDisk { userdevice: 4, size: size_of(&path), start: Start::Nothing, audit: None }];
    // The first second's worth is free.
    let mut work = backup(disks);
    if let Work::Backup { rate_limit, .. } = &mut work {
        *rate_limit = Some(ByteCount::new(2 * MIB));
    }
    let account = account_of(&lab.run(work, vec![None], Machine::new([(4, path.as_path())])));
    assert_bound(&account, Bound::RateLimit);
    let read = account.stage(Stage::Read).expect("it was read");
    assert!(read.held >= Duration::from_secs(1) && read.bytes.get() == 6 * MIB, "{account:#?}");
}

#[test]
fn every_stage_of_every_disk_is_accounted_for() {
    let lab = Lab::new();
    let paths = ["a", "b"].map(|name| lab.path(name));
    let blocks: Vec<_> = (0..80).collect();
    paths.iter().for_each(|path| disk(path, 100 << 16, &blocks));
    let disk =
        |userdevice, path| BackupDisk { userdevice, size: size_of(path), start: Start::Nothing, audit: None };
    let disks = vec![disk(4, &paths[0]), disk(5, &paths[1])];
    let machine = Machine::new([(4, paths[0].as_path()), (5, paths[1].as_path())]);
    let ended = lab.run(backup(disks), vec![None, None], machine);
    ended.outcome.expect("backup");
    let done = ended.done.expect("told");
    assert_eq!(done.passes.iter().map(|pass| (pass.disk, pass.pass)).collect::<Vec<_>>(), [(0, 0), (1, 0)]);
    let first = &done.passes[0].account;
    let bytes = |stage| first.stage(stage).map_or(0, |one| one.bytes.get());
    assert_eq!(
        (bytes(Stage::Read), bytes(Stage::Hash), bytes(Stage::Judge)),
        (100 << 16, 100 << 16, 100 << 16)
    );
    assert_eq!((bytes(Stage::Seal), bytes(Stage::Pack)), (80 << 16, done.disks[0].sealed.get()));
    assert!(
        bytes(Stage::Network) > bytes(Stage::Pack),
        "the nodes' pack and the trailers are on their way too"
    );
    // The second disk is the first once more.
    let second = &done.passes[1].account;
    assert!(second.stage(Stage::Seal).is_none_or(|seal| seal.bytes.get() == 0), "{second:#?}");
    for account in [first, second] {
        for one in account.stages.iter().filter(|one| one.threads > 0) {
            let sum = one.busy + one.starved + one.blocked + one.held;
            assert!(sum <= account.wall * u32::from(one.threads), "{one:?} of {:?}", account.wall);
        }
        let read = account.stage(Stage::Read).expect("it was read");
        assert!(read.depth_max >= 1 && read.depth_sum >= read.depth_count, "{read:?}");
    }
}
