//! The order without disks: what is measured, and how a way that leads nowhere is told apart.

use crate::lab::{Lab, Machine, disk};
use abd_appliance::worker::{Error, Identity, perform};
use blocks::{BLOCK_SIZE, ByteCount};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use wire::Work;

const SEND: u64 = 5 << 20;

fn diagnose(read: u64) -> Work {
    Work::Diagnose { read: ByteCount::new(read), send: ByteCount::new(SEND) }
}

#[test]
fn a_diagnosis_reads_its_own_disk_sends_what_is_thrown_away_and_keeps_nothing() {
    let lab = Lab::new();
    let path = lab.path("own");
    disk(&path, 30 * BLOCK_SIZE + 512, &[1, 2, 3]);
    for (io_uring, read, expected) in [(true, 1 << 30, 30 * BLOCK_SIZE + 512), (false, 100_000, 100_000)] {
        let machine = Machine { io_uring, ..Machine::new([(0, path.as_path())]) };
        let ended = lab.run(diagnose(read), Vec::new(), machine);
        ended.outcome.expect("diagnosed");
        let done = ended.done.expect("told");
        assert_eq!((done.outcome, done.disks.len()), (Ok(()), 0));
        let told = ended.diagnosis.expect("told");
        assert_eq!(told.read.expect("read").bytes, ByteCount::new(expected));
        let send = told.send.expect("sent");
        assert_eq!(send.bytes, ByteCount::new(SEND));
        assert!(send.micros > 0 && send.slowest_us <= send.micros && send.per_second().is_some(), "{send:?}");
        let connect = told.connect.expect("connected");
        assert_eq!(connect.address, lab.address().to_string());
        assert!(connect.tls_us > 0 && told.round_trip_us.expect("calls") > 0);
        assert!(told.processors > 0 && told.clock_ms > 1_700_000_000_000);
        assert_eq!(told.milestones, [wire::Milestone { name: "up".into(), at_ms: 7 }]);
    }
    let report = lab.store.verify(&ads::Scope::All, ads::Depth::EveryByte, &|_| {}).expect("verify");
    assert_eq!(report.packs, 0, "{report:?}");
}

#[test]
fn what_cannot_be_measured_is_said_and_the_rest_is_measured() {
    let lab = Lab::new();
    let missing = lab.run(diagnose(1 << 20), Vec::new(), Machine::new([])).diagnosis.expect("told");
    assert_eq!(missing.read.expect_err("no disk").code, "disk-missing");
    assert_eq!(missing.send.expect("sent").bytes, ByteCount::new(SEND));
    let path = lab.path("own");
    disk(&path, 4 * BLOCK_SIZE, &[0]);
    let gone = Path::new(&path);
    let mut machine = Machine::new([(0, gone)]);
    machine.disks.insert(0, lab.dir.path().to_owned());
    let unreadable = lab.run(diagnose(1 << 20), Vec::new(), machine).diagnosis.expect("told");
    assert_eq!(unreadable.read.expect_err("a directory").code, "read-error");
}

#[test]
fn more_to_send_than_anybody_may_is_refused() {
    let lab = Lab::new();
    let send = ByteCount::new(wire::MAX_SINK.get() + 1);
    let granted = lab.try_open(Work::Diagnose { read: ByteCount::new(0), send }, Vec::new());
    assert!(granted.is_err());
}

/// The code of a first call to an address where no orchestrator is.
fn first_call(lab: &Lab, address: SocketAddr) -> Error {
    let identity = Identity::generate().expect("key");
    let mut assignment = lab.assignment("00000000-0000-4000-8000-000000000000");
    assignment.addresses = vec![address];
    assignment.watchdog = Duration::from_secs(3);
    perform(&assignment, &identity, Arc::new(Machine::new([]))).expect_err("nobody there")
}

#[test]
fn a_first_call_that_gets_nowhere_says_how_far_it_came() {
    let lab = Lab::new();
    // Where nobody listens any more.
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let error = first_call(&lab, closed);
    assert_eq!(error.code(), "port-refused", "{error}");
    assert!(error.to_string().contains(&closed.to_string()), "{error}");
    // Somebody who hangs up.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let other = listener.local_addr().expect("an address");
    std::thread::spawn(move || listener.incoming().for_each(drop));
    assert_eq!(first_call(&lab, other).code(), "no-tls");
    // Nothing can be sent there: a broadcast address takes no connections.
    let nowhere = "255.255.255.255:9".parse().expect("an address");
    assert_eq!(first_call(&lab, nowhere).code(), "no-route");
}
