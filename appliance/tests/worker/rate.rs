//! How fast disks are read at most, by a clock that moves only while the reader waits.

use crate::lab::{Lab, Machine, disk, size_of};
use blocks::{BLOCK_SIZE, ByteCount};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use wire::{BackupDisk, Start, Work};

const MIB: u64 = 1 << 20;

fn work(disks: Vec<BackupDisk>, rate_limit: u64) -> Work {
    Work::Backup {
        level: 1,
        pack_size: 1 << 20,
        rate_limit: Some(ByteCount::new(rate_limit)),
        throttle: None,
        skip_bad_blocks: false,
        disks,
    }
}

#[test]
fn the_disks_of_an_order_share_its_rate() {
    for io_uring in [true, false] {
        let lab = Lab::new();
        let paths = ["a", "b"].map(|name| lab.path(name));
        paths.iter().for_each(|path| disk(path, 6 * MIB, &(0..96).collect::<Vec<_>>()));
        let size = size_of(&paths[0]);
        let disks =
            [4, 5].map(|userdevice| BackupDisk { userdevice, size, start: Start::Nothing, audit: None });
        let clock = Arc::new(Mutex::new(Duration::ZERO));
        let machine = Machine {
            io_uring,
            clock: Some(clock.clone()),
            ..Machine::new([(4, paths[0].as_path()), (5, paths[1].as_path())])
        };
        let ended = lab.run(work(disks.to_vec(), MIB), vec![None, None], machine);
        ended.outcome.expect("backup");
        let counts = ended.done.expect("told").disks;
        assert_eq!(counts.iter().map(|counts| counts.moved.get()).sum::<u64>(), 12 * MIB);
        // 48 reads of 256 KiB, each of which waits until those before it are paid for.
        let took = *clock.lock().expect("not poisoned");
        assert_eq!(took, Duration::from_millis(47 * 250), "io_uring: {io_uring}");
    }
}

#[test]
fn a_reader_that_waits_shows_signs_of_life_and_stops_when_told() {
    let lab = Lab::new();
    let path = lab.path("disk");
    disk(&path, 400 * BLOCK_SIZE, &(0..400).collect::<Vec<_>>());
    let disks = vec![BackupDisk { userdevice: 4, size: size_of(&path), start: Start::Nothing, audit: None }];
    // By the machine's clock this would take more than six minutes, far over the watchdog's time.
    let (job, handle) = lab.open(work(disks, BLOCK_SIZE), vec![None]);
    let identity = abd_appliance::worker::Identity::generate().expect("key");
    handle.admit(identity.fingerprint()).expect("admitted");
    let machine = Arc::new(Machine::new([(4, path.as_path())]));
    let began = Instant::now();
    let error = std::thread::scope(|scope| {
        let assignment = lab.assignment(&job);
        let (identity, outside) = (&identity, machine.clone());
        let worker = scope.spawn(move || abd_appliance::worker::perform(&assignment, identity, outside));
        // The bytes that came before the wait, and then only signs of life.
        let moved = lab.wait_for_progress(&handle);
        let ticks = machine.ticks.load(Ordering::Relaxed);
        while machine.ticks.load(Ordering::Relaxed) < ticks + 5 {
            assert!(began.elapsed() < Duration::from_secs(60), "no sign of life");
            std::thread::yield_now();
        }
        assert!(moved < 400 * BLOCK_SIZE);
        handle.stop();
        worker.join().expect("no panic").expect_err("stopped")
    });
    assert_eq!(error.code(), "stopped");
    assert!(began.elapsed() < Duration::from_secs(60), "a stop is not waited for");
    drop(lab.finish(handle));
}
