//! A store with its service, files as disks, and the machine around the job.

use abd_appliance::platform::memory::{self, Memory};
use abd_appliance::platform::{Disk, State, devices};
use abd_appliance::worker::{Assignment, DEFAULT_WATCHDOG, Error, Identity, Outside, perform};
use ads::{
    FileOps, JobEvent, JobGrant, JobHandle, KdfCost, LocalBackend, LocalFiles, NewAccess, Passphrase,
    Service, Store,
};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ChangedBlocks};
use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use wire::{Audit, BackupDisk, Claim, DiskCounts, JobDone, Order, RestoreDisk, Start, Work};

/// An orchestrator's half of the world.
pub(crate) struct Lab {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) service: Service,
    pub(crate) runtime: tokio::runtime::Runtime,
    /// How often a job reports, in milliseconds.
    pub(crate) progress_ms: u16,
    next_job: AtomicU64,
}

/// The appliance's half.
pub(crate) struct Machine {
    pub(crate) disks: HashMap<u16, PathBuf>,
    pub(crate) available: ByteCount,
    pub(crate) states: Mutex<Vec<State>>,
    pub(crate) ticks: AtomicU64,
    pub(crate) io_uring: bool,
    /// A clock that moves only while the reader waits, instead of the machine's.
    pub(crate) clock: Option<Arc<Mutex<Duration>>>,
    /// What cannot be read of each disk: offset and size in bytes.
    pub(crate) bad: HashMap<u16, Vec<(u64, u64)>>,
    /// How long every disk takes for an answer, in addition.
    pub(crate) pause: Duration,
}

/// A medium of which parts cannot be read, and that takes its time for every answer.
struct PoorMedium {
    bad: Vec<(u64, u64)>,
    pause: Duration,
}

impl diskio::Seam for PoorMedium {
    fn answer(&mut self, asked: diskio::Asked, result: i32) -> i32 {
        std::thread::sleep(self.pause);
        let (start, end) = (asked.offset.get(), asked.offset.get() + asked.size as u64);
        let is_hit = self.bad.iter().any(|(offset, size)| *offset < end && start < offset + size);
        // EIO.
        if is_hit { -5 } else { result }
    }
}

/// What the orchestrator heard of a job.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) claim: Option<Claim>,
    pub(crate) done: Option<JobDone>,
    pub(crate) trees: Vec<seal::Tree>,
    pub(crate) bad: Vec<wire::BadRanges>,
    pub(crate) diagnosis: Option<wire::Diagnosis>,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Result<(), Error>,
    pub(crate) claim: Option<Claim>,
    pub(crate) done: Option<JobDone>,
    pub(crate) trees: Vec<seal::Tree>,
    pub(crate) bad: Vec<wire::BadRanges>,
    pub(crate) states: Vec<State>,
    pub(crate) diagnosis: Option<wire::Diagnosis>,
}

pub(crate) const WATCHDOG_S: u16 = 6;

impl Lab {
    pub(crate) fn new() -> Self {
        Self::over(Arc::new(LocalFiles))
    }

    /// With a store that writes by other operations.
    pub(crate) fn over(files: Arc<dyn FileOps>) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = Store::init_with(&dir.path().join("store"), files).expect("store");
        Self::around(dir, store)
    }

    /// With an encrypted store.
    pub(crate) fn encrypted() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let passphrase = Passphrase::new("a passphrase for tests".into());
        let cost = KdfCost { memory_kib: 8, passes: 1, lanes: 1 };
        let backend = Arc::new(LocalBackend::new(&dir.path().join("store")));
        let new = [NewAccess::Passphrase { passphrase, cost }];
        let store = Store::init_encrypted_on(backend, &new).expect("store");
        Self::around(dir, store)
    }

    fn around(dir: tempfile::TempDir, store: Store) -> Self {
        let store = Arc::new(store);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("runtime");
        let identity = Identity::generate().expect("key");
        let listen = ["127.0.0.1:0".parse().expect("address")];
        let service = runtime.block_on(Service::start(store.clone(), identity, &listen)).expect("service");
        Self { dir, store, service, runtime, progress_ms: 50, next_job: AtomicU64::new(1) }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.service.addresses()[0]
    }

    pub(crate) fn assignment(&self, job: &str) -> Assignment {
        let orchestrator_key = *self.service.fingerprint().as_bytes();
        Assignment {
            job: job.to_owned(),
            addresses: vec![self.address()],
            orchestrator_key,
            watchdog: DEFAULT_WATCHDOG,
        }
    }

    pub(crate) fn open(&self, work: Work, bitmaps: Vec<Option<Vec<u8>>>) -> (String, JobHandle) {
        self.try_open(work, bitmaps).expect("job")
    }

    pub(crate) fn try_open(
        &self,
        work: Work,
        bitmaps: Vec<Option<Vec<u8>>>,
    ) -> Result<(String, JobHandle), ads::Error> {
        let number = self.next_job.fetch_add(1, Ordering::Relaxed);
        let job = format!("00000000-0000-4000-8000-{number:012}");
        let id_key = self.store.id_key_bytes();
        let master_key = self.store.master_key_bytes().expect("not locked");
        let progress_ms = self.progress_ms;
        let order = Order { job: job.clone(), id_key, master_key, watchdog_s: WATCHDOG_S, progress_ms, work };
        let _guard = self.runtime.enter();
        let handle = self.service.open_job(JobGrant { job: job.clone(), order, bitmaps })?;
        Ok((job, handle))
    }

    /// Waits until a job reports bytes; gives how many.
    pub(crate) fn wait_for_progress(&self, handle: &JobHandle) -> u64 {
        self.runtime.block_on(async {
            loop {
                let event = handle.events().recv().await.expect("the job is open");
                if let JobEvent::Progress(progress) = event
                    && progress.disks[0].moved.get() > 0
                {
                    return progress.disks[0].moved.get();
                }
            }
        })
    }

    /// Runs a job to its end as an appliance would.
    pub(crate) fn run(&self, work: Work, bitmaps: Vec<Option<Vec<u8>>>, machine: Machine) -> Ended {
        let (job, handle) = self.open(work, bitmaps);
        let identity = Identity::generate().expect("key");
        handle.admit(identity.fingerprint()).expect("admitted");
        self.follow(handle, &self.assignment(&job), &identity, machine)
    }

    pub(crate) fn follow(
        &self,
        handle: JobHandle,
        assignment: &Assignment,
        identity: &Identity,
        machine: Machine,
    ) -> Ended {
        let machine = Arc::new(machine);
        let outcome = perform(assignment, identity, machine.clone());
        let Heard { claim, done, trees, bad, diagnosis } = self.finish(handle);
        let states = machine.states.lock().expect("not poisoned").clone();
        Ended { outcome, claim, done, trees, bad, states, diagnosis }
    }

    /// Closes the job and reads what it said.
    pub(crate) fn finish(&self, handle: JobHandle) -> Heard {
        let mut heard = Heard::default();
        handle.close();
        self.runtime.block_on(async {
            while let Some(event) = handle.events().recv().await {
                match event {
                    JobEvent::Claimed(claim) => heard.claim = Some(claim),
                    JobEvent::Done(last) => heard.done = Some(last),
                    JobEvent::Diagnosed(diagnosis) => heard.diagnosis = Some(diagnosis),
                    JobEvent::DiskSealed { tree, bad, .. } => {
                        heard.trees.push(tree);
                        heard.bad.push(bad);
                    }
                    _ => {}
                }
            }
        });
        heard
    }

    /// Backs up one file; checks that it worked and that the counts add up.
    pub(crate) fn back_up(
        &self,
        path: &Path,
        start: Start,
        bitmap: Option<&ChangedBlocks>,
    ) -> (seal::Tree, DiskCounts) {
        self.back_up_audited(path, start, bitmap, None)
    }

    /// [`back_up`](Self::back_up) with an audit.
    pub(crate) fn back_up_audited(
        &self,
        path: &Path,
        start: Start,
        bitmap: Option<&ChangedBlocks>,
        audit: Option<Audit>,
    ) -> (seal::Tree, DiskCounts) {
        let size = size_of(path);
        let disks = vec![BackupDisk { userdevice: 4, size, start, audit }];
        let bitmaps = vec![bitmap.map(ChangedBlocks::to_xapi)];
        let ended = self.run(backup(disks), bitmaps, Machine::new([(4, path)]));
        ended.outcome.expect("backup");
        let done = ended.done.expect("job-done");
        assert_eq!(done.outcome, Ok(()));
        let counts = done.disks[0];
        let parts = [counts.zero, counts.unchanged, counts.known, counts.shipped, counts.audited];
        assert_eq!(parts.iter().map(|part| part.get()).sum::<u64>(), counts.moved.get(), "{counts:?}");
        assert_eq!(counts.planned, counts.moved);
        (ended.trees[0], counts)
    }

    pub(crate) fn restore(&self, tree: seal::Tree, path: &Path, blank: bool) -> DiskCounts {
        let disks =
            vec![RestoreDisk { userdevice: 4, device: tree.size, size: tree.size, root: tree.root, blank }];
        let ended = self.run(Work::Restore { disks }, vec![None], Machine::new([(4, path)]));
        ended.outcome.expect("restore");
        let counts = ended.done.expect("job-done").disks[0];
        assert_eq!(counts.planned, counts.moved);
        counts
    }
}

impl Machine {
    pub(crate) fn new<'p>(disks: impl IntoIterator<Item = (u16, &'p Path)>) -> Self {
        let disks = disks.into_iter().map(|(userdevice, path)| (userdevice, path.to_owned())).collect();
        Self {
            disks,
            available: ByteCount::new(84 << 20),
            states: Mutex::default(),
            ticks: AtomicU64::new(0),
            io_uring: true,
            clock: None,
            bad: HashMap::new(),
            pause: Duration::ZERO,
        }
    }

    fn disk(&self, userdevice: u16, expected: ByteCount) -> Result<Disk, devices::Error> {
        let userdevice_wide = u32::from(userdevice);
        let node = self.disks.get(&userdevice).cloned().ok_or_else(|| devices::Error::Missing {
            userdevice: userdevice_wide,
            number: devices::xenstore_number(userdevice_wide).unwrap_or(0),
            waited: Duration::ZERO,
            seen: "none".into(),
        })?;
        let (name, found) = (format!("disk{userdevice}"), size_of(&node));
        if found != expected {
            return Err(devices::Error::Size { userdevice: userdevice_wide, name, expected, found });
        }
        Ok(Disk { userdevice: userdevice_wide, name, node, size: found, read_only: false })
    }
}

impl Outside for Machine {
    fn state(&self, state: State) {
        self.states.lock().expect("not poisoned").push(state);
    }

    fn tick(&self) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }

    fn set_watchdog(&self, _limit: Duration) {}

    fn milestone(&self, _name: &str) {}

    fn line(&self, text: &str) {
        println!("{text}");
    }

    fn network_trouble(&self) -> Option<String> {
        Some("no link on eth0".into())
    }

    fn source(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        self.disk(userdevice, size)
    }

    fn target(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        self.disk(userdevice, size)
    }

    fn own_disk(&self) -> Result<Disk, devices::Error> {
        let seen = || devices::Error::NoOwn { seen: "none".to_owned() };
        let node = self.disks.get(&0).ok_or_else(seen)?.clone();
        let size = size_of(&node);
        Ok(Disk { userdevice: 0, name: "own".to_owned(), node, size, read_only: false })
    }

    fn milestones(&self) -> Vec<(String, Duration)> {
        vec![("up".to_owned(), Duration::from_millis(7))]
    }

    fn seam(&self, userdevice: u16) -> Option<Box<dyn diskio::Seam>> {
        let bad = self.bad.get(&userdevice);
        let medium = PoorMedium { bad: bad.cloned().unwrap_or_default(), pause: self.pause };
        (bad.is_some() || !self.pause.is_zero()).then(|| Box::new(medium) as Box<dyn diskio::Seam>)
    }

    fn memory(&self) -> Memory {
        Memory { available_kib: self.available.get() / 1024, ..memory::now() }
    }

    fn may_use_io_uring(&self) -> bool {
        self.io_uring
    }

    fn boot_time(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn uptime(&self) -> Duration {
        match &self.clock {
            Some(clock) => *clock.lock().expect("not poisoned"),
            None => abd_appliance::platform::clock::uptime(),
        }
    }

    fn sleep(&self, time: Duration) {
        match &self.clock {
            Some(clock) => *clock.lock().expect("not poisoned") += time,
            None => std::thread::sleep(time),
        }
    }
}

pub(crate) fn backup(disks: Vec<BackupDisk>) -> Work {
    Work::Backup {
        level: 1,
        pack_size: 16 << 20,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks: false,
        disks,
    }
}

pub(crate) fn size_of(path: &Path) -> ByteCount {
    ByteCount::new(std::fs::metadata(path).expect("file").len())
}

/// Bytes that repeat nowhere and compress to about a half.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; size];
    for eight in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let size = eight.len();
        eight.copy_from_slice(&(state & 0x00ff_00ff_00ff_00ff).to_le_bytes()[..size]);
    }
    bytes
}

/// A sparse file of `size` bytes with noise in the blocks named.
pub(crate) fn disk(path: &Path, size: u64, written: &[u64]) {
    let file = File::create(path).expect("create");
    file.set_len(size).expect("size");
    write_blocks(path, written, 1);
}

/// Fills blocks with noise of a seed.
pub(crate) fn write_blocks(path: &Path, blocks: &[u64], seed: u64) {
    let file = File::options().write(true).open(path).expect("open");
    let size = size_of(path);
    for block in blocks {
        let count = size.block_size_at(BlockIndex::new(*block)).expect("on the disk").get() as usize;
        file.write_all_at(&noise(seed << 40 | (block + 1), count), block * BLOCK_SIZE).expect("write");
    }
}

pub(crate) fn bitmap(size: ByteCount, blocks: &[u64]) -> ChangedBlocks {
    let mut bitmap = ChangedBlocks::none(size).expect("small");
    blocks.iter().for_each(|block| assert!(bitmap.insert(BlockIndex::new(*block))));
    bitmap
}

pub(crate) fn assert_same(left: &Path, right: &Path) {
    assert_eq!(size_of(left), size_of(right));
    let (a, b) = (File::open(left).expect("open"), File::open(right).expect("open"));
    let size = size_of(left).get();
    let step = 4u64 << 20;
    let (mut left, mut right) = (vec![0; step as usize], vec![0; step as usize]);
    for at in (0..size).step_by(step as usize) {
        let count = step.min(size - at) as usize;
        a.read_exact_at(&mut left[..count], at).expect("read");
        b.read_exact_at(&mut right[..count], at).expect("read");
        assert!(left[..count] == right[..count], "difference in the 4 MiB at {at:#x}");
    }
}
