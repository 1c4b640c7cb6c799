//! What goes wrong, and how it is said.

use crate::lab::{Lab, Machine, backup, disk, size_of};
use crate::proxy;
use abd_appliance::chain;
use abd_appliance::worker::{Error, Exchange, Identity, perform_here};
use blocks::{BLOCK_SIZE, ByteCount};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use wire::{BackupDisk, Failure, IdKeyBytes, Order, ProgressAnswer, RestoreDisk, Start, Work};

fn one_disk(path: &Path) -> Work {
    backup(vec![BackupDisk { userdevice: 4, size: size_of(path), start: Start::Nothing, audit: None }])
}

fn a_disk(lab: &Lab, blocks: u64) -> PathBuf {
    let path = lab.path("disk");
    disk(&path, blocks * BLOCK_SIZE, &(0..blocks).collect::<Vec<_>>());
    path
}

#[test]
fn a_missing_disk_is_named_to_xenstore_and_to_the_orchestrator() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1);
    let ended = lab.run(one_disk(&path), vec![None], Machine::new([]));
    let error = ended.outcome.expect_err("no such disk");
    assert_eq!(error.code(), "disk-missing");
    let failure = ended.done.expect("told").outcome.expect_err("failed");
    assert_eq!((failure.code.as_str(), failure.message), ("disk-missing", error.to_string()));
}

#[test]
fn a_disk_of_another_size_is_refused() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1);
    let disks =
        vec![BackupDisk { userdevice: 4, size: ByteCount::new(512), start: Start::Nothing, audit: None }];
    let ended = lab.run(backup(disks), vec![None], Machine::new([(4, path.as_path())]));
    assert_eq!(ended.outcome.expect_err("size").code(), "disk-size");
}

#[test]
fn an_order_for_the_boot_disk_is_refused() {
    let lab = Lab::new();
    let disks = vec![RestoreDisk {
        userdevice: 0,
        device: ByteCount::new(512),
        size: ByteCount::new(512),
        root: None,
        blank: false,
    }];
    let ended = lab.run(Work::Restore { disks }, vec![None], Machine::new([]));
    assert_eq!(ended.outcome.expect_err("refused").code(), "order-refused");
    assert_eq!(ended.done.expect("told").outcome.expect_err("failed").code, "order-refused");
}

#[test]
fn another_orchestrator_key_is_an_error_at_once() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let mut assignment = lab.assignment(&job);
    assignment.orchestrator_key = *Identity::generate().expect("key").fingerprint().as_bytes();
    let began = Instant::now();
    let ended = lab.follow(handle, &assignment, &identity, Machine::new([(4, path.as_path())]));
    let error = ended.outcome.expect_err("wrong key");
    assert_eq!(error.code(), "tls-pin");
    assert!(error.to_string().contains(&lab.service.fingerprint().to_string()), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "a wrong key is not waited for");
}

#[test]
fn a_key_that_is_admitted_late_is_waited_for() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    let (assignment, fingerprint) = (lab.assignment(&job), identity.fingerprint());
    let worker = std::thread::spawn(move || {
        let machine = std::sync::Arc::new(Machine::new([(4, path.as_path())]));
        abd_appliance::worker::perform(&assignment, &identity, machine)
    });
    std::thread::sleep(Duration::from_millis(700));
    handle.admit(fingerprint).expect("admitted");
    worker.join().expect("no panic").expect("backup");
    assert_eq!(lab.finish(handle).done.expect("told").outcome, Ok(()));
}

#[test]
fn the_second_address_is_tried_when_the_first_is_dead() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let mut assignment = lab.assignment(&job);
    assignment.addresses.insert(0, "127.0.0.1:1".parse().expect("address"));
    let ended = lab.follow(handle, &assignment, &identity, Machine::new([(4, path.as_path())]));
    ended.outcome.expect("backup");
}

#[test]
fn a_connection_that_breaks_once_does_not_hurt() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1000);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let proxy = proxy::start(lab.address(), 6 << 20, true);
    let mut assignment = lab.assignment(&job);
    assignment.addresses = vec![proxy.address];
    let ended = lab.follow(handle, &assignment, &identity, Machine::new([(4, path.as_path())]));
    ended.outcome.expect("backup");
    assert!(proxy.connections.load(std::sync::atomic::Ordering::SeqCst) > 2, "it did break");
    let report = lab.store.verify(&ads::Scope::All, ads::Depth::EveryByte, &|_| {}).expect("verify");
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_connection_that_breaks_for_good_is_said_after_a_third_of_the_watchdog() {
    let lab = Lab::new();
    let path = a_disk(&lab, 1000);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let proxy = proxy::start(lab.address(), 6 << 20, false);
    let mut assignment = lab.assignment(&job);
    assignment.addresses = vec![proxy.address];
    let began = Instant::now();
    let ended = lab.follow(handle, &assignment, &identity, Machine::new([(4, path.as_path())]));
    let error = ended.outcome.expect_err("cut off");
    assert!(matches!(error, Error::Unreachable { .. }), "{}", chain(&error));
    assert_eq!(error.code(), "unreachable", "it answered before: no port is blocked");
    assert!(error.to_string().contains("no link on eth0"), "{error}");
    assert!(ended.done.is_none());
    assert!(began.elapsed() < Duration::from_secs(30));
    let report = lab.store.verify(&ads::Scope::All, ads::Depth::EveryByte, &|_| {}).expect("verify");
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_stop_ends_the_job_and_says_so() {
    let lab = Lab::new();
    let path = a_disk(&lab, 3000);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    handle.stop();
    let assignment = lab.assignment(&job);
    let ended = lab.follow(handle, &assignment, &identity, Machine::new([(4, path.as_path())]));
    assert_eq!(ended.outcome.expect_err("stopped").code(), "stopped");
    assert_eq!(ended.done.expect("told").outcome.expect_err("failed").code, "stopped");
}

#[test]
fn a_disk_that_shrinks_under_the_backup_is_a_read_error_and_seals_nothing() {
    struct Shrinking(Machine);
    // The size is right when it is looked at, the file is cut before it is opened.
    impl abd_appliance::worker::Outside for Shrinking {
        fn state(&self, state: abd_appliance::platform::State) {
            self.0.state(state);
        }
        fn tick(&self) {}
        fn set_watchdog(&self, _limit: Duration) {}
        fn milestone(&self, _name: &str) {}
        fn line(&self, _text: &str) {}
        fn network_trouble(&self) -> Option<String> {
            None
        }
        fn source(
            &self,
            userdevice: u16,
            size: ByteCount,
        ) -> Result<abd_appliance::platform::Disk, abd_appliance::platform::devices::Error> {
            let disk = self.0.source(userdevice, size)?;
            let file = std::fs::File::options().write(true).open(&disk.node).expect("open");
            file.set_len(500 * BLOCK_SIZE + 100).expect("cut");
            Ok(disk)
        }
        fn target(
            &self,
            userdevice: u16,
            size: ByteCount,
        ) -> Result<abd_appliance::platform::Disk, abd_appliance::platform::devices::Error> {
            self.0.target(userdevice, size)
        }
        fn memory(&self) -> abd_appliance::platform::memory::Memory {
            self.0.memory()
        }
        fn boot_time(&self) -> Duration {
            Duration::ZERO
        }
    }
    let lab = Lab::new();
    let path = a_disk(&lab, 1000);
    let (job, handle) = lab.open(one_disk(&path), vec![None]);
    let identity = Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let machine = std::sync::Arc::new(Shrinking(Machine::new([(4, path.as_path())])));
    let error =
        abd_appliance::worker::perform(&lab.assignment(&job), &identity, machine).expect_err("shrank");
    assert_eq!(error.code(), "read-error");
    let heard = lab.finish(handle);
    let done = heard.done.expect("told");
    let failure = done.outcome.expect_err("failed");
    assert_eq!((failure.code.as_str(), done.disk), ("read-error", Some(0)));
    assert!(failure.message.contains("it shrank while it was read"), "{failure}");
    assert!(heard.trees.is_empty());
}

/// An orchestrator that does not say which blocks it knows.
struct Secretive(Order);

impl Exchange for Secretive {
    fn answer(&self, path: &str, _body: &[u8]) -> Result<Vec<u8>, Error> {
        match path {
            wire::PATH_CLAIM => Ok(wire::encode(&self.0)),
            wire::PATH_PROGRESS | wire::PATH_JOB_DONE => Ok(wire::encode(&ProgressAnswer { stop: false })),
            _ => {
                let failure = Failure::new("store-error", "no answer");
                Err(Error::Refused { call: path.to_owned(), status: 500, failure })
            }
        }
    }
}

/// The last question of a disk is answered while nothing else is left to be done than to wait for its packs.
#[test]
fn a_refused_question_ends_a_job_that_waits_for_its_last_packs() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("disk");
    disk(&path, BLOCK_SIZE, &[0]);
    let order = Order {
        job: "a".into(),
        id_key: IdKeyBytes([1; 32]),
        master_key: None,
        watchdog_s: 60,
        progress_ms: 10_000,
        work: one_disk(&path),
    };
    let machine = Arc::new(Machine::new([(4, path.as_path())]));
    let (told, outcome) = sync_channel(1);
    std::thread::spawn(move || told.send(perform_here("a", Arc::new(Secretive(order)), machine)));
    let outcome = outcome.recv_timeout(Duration::from_secs(30)).expect("the job ends");
    assert!(matches!(outcome, Err(Error::Refused { .. })), "{outcome:?}");
}
