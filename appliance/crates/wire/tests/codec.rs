//! Golden bytes of the messages that must never change within a protocol version, and hostile input.

use blocks::{BlockCount, BlockIndex, ByteCount, ByteOffset};
use proptest::prelude::*;
use seal::{BlockId, NodeId, Tree};
use std::time::Duration;
use wire::*;

/// Made by hand from postcard's specification: varints are LEB128, strings and lists are prefixed with
/// their length, enums with their variant's index, options with 0 or 1.
#[test]
fn golden_claim() {
    let claim = Claim {
        protocol: 5,
        job: "j".into(),
        agent: "0.1".into(),
        boot_ms: 300,
        claim_ms: 1,
        memory: ByteCount::new(128 << 20),
        engine: "io_uring".into(),
    };
    let expected = b"\x05\x01j\x030.1\xac\x02\x01\x80\x80\x80\x40\x08io_uring";
    assert_eq!(encode(&claim), expected);
    assert_eq!(decode::<Claim>(expected), Ok(claim));
}

#[test]
fn the_version_of_a_claim_of_another_version_can_be_read() {
    assert_eq!(claim_protocol(b"\xac\x02what comes in version 300 is not known here"), Ok(300));
    assert!(claim_protocol(b"").is_err());
    assert!(claim_protocol(b"\xff\xff\xff\xff").is_err());
}

#[test]
fn golden_order() {
    let order = Order {
        job: "j".into(),
        id_key: IdKeyBytes([9; 32]),
        master_key: Some(MasterKeyBytes([8; 32])),
        watchdog_s: 90,
        progress_ms: 1000,
        work: Work::Backup {
            level: 1,
            pack_size: 16 << 20,
            rate_limit: Some(ByteCount::new(1 << 20)),
            throttle: Some(Throttle { latency_ms: 300, floor: ByteCount::new(65536) }),
            skip_bad_blocks: true,
            disks: vec![BackupDisk {
                userdevice: 4,
                size: ByteCount::new(65537),
                start: Start::Changed {
                    base: Tree { size: ByteCount::new(512), root: Some(NodeId::from_bytes([7; 32])) },
                },
                audit: Some(Audit { seed: 300, parts_per_million: 1000, minimum: BlockCount::new(64) }),
            }],
        },
    };
    let mut expected = b"\x01j".to_vec();
    expected.extend([9; 32]);
    expected.push(1);
    expected.extend([8; 32]);
    expected.extend(b"\x5a\xe8\x07\x00\x01\x80\x80\x80\x08");
    expected.extend(b"\x01\x80\x80\x40\x01\xac\x02\x80\x80\x04\x01\x01\x04\x81\x80\x04\x03\x80\x04\x01");
    expected.extend([7; 32]);
    expected.extend(b"\x01\xac\x02\xe8\x07\x40");
    assert_eq!(encode(&order), expected);
    assert_eq!(decode::<Order>(&expected), Ok(order));
}

#[test]
fn golden_diagnosis() {
    let work = Work::Diagnose { read: ByteCount::new(300), send: ByteCount::new(1 << 20) };
    assert_eq!(encode(&work), b"\x02\xac\x02\x80\x80\x40");
    assert_eq!(decode::<Work>(b"\x02\xac\x02\x80\x80\x40"), Ok(work));
    let diagnosis = Diagnosis {
        clock_ms: 300,
        processors: 1,
        milestones: vec![Milestone { name: "up".into(), at_ms: 2 }],
        connect: Ok(Connect { address: "a".into(), tcp_us: 3, tls_us: 4 }),
        round_trip_us: Ok(5),
        read: Err(Failure::new("c", "m")),
        send: Ok(Speed { bytes: ByteCount::new(6), micros: 7, slowest_us: 8 }),
    };
    let expected = b"\xac\x02\x01\x01\x02up\x02\x00\x01a\x03\x04\x00\x05\x01\x01c\x01m\x00\x06\x07\x08";
    assert_eq!(encode(&diagnosis), expected);
    assert_eq!(decode::<Diagnosis>(expected), Ok(diagnosis));
    assert_eq!(encode(&SinkAnswer { taken: ByteCount::new(128) }), [0x80, 1]);
}

#[test]
fn speeds_are_per_second_and_of_no_time_none() {
    let speed = |bytes, micros| Speed { bytes: ByteCount::new(bytes), micros, slowest_us: 0 }.per_second();
    assert_eq!(speed(3, 2_000_000), Some(ByteCount::new(1)));
    assert_eq!(speed(u64::MAX, 1), Some(ByteCount::new(u64::MAX)));
    assert_eq!(speed(1, 0), None);
}

#[test]
fn golden_known_and_failure() {
    let question = KnownQuestion { ids: vec![BlockId::from_bytes([1; 32])] };
    let mut expected = vec![1];
    expected.extend([1; 32]);
    assert_eq!(encode(&question), expected);
    assert_eq!(encode(&KnownAnswer { known: vec![true, false] }), [2, 1, 0]);
    assert_eq!(encode(&Failure::new("c", "m")), b"\x01c\x01m");
    assert_eq!(encode(&BlocksQuestion { disk: 0, blocks: vec![BlockIndex::new(128)] }), [0, 1, 0x80, 1]);
}

#[test]
fn golden_disk_done() {
    let done = DiskDone {
        disk: 1,
        size: ByteCount::new(512),
        root: None,
        counts: DiskCounts {
            planned: ByteCount::new(1),
            moved: ByteCount::new(2),
            zero: ByteCount::new(3),
            unchanged: ByteCount::new(4),
            known: ByteCount::new(5),
            shipped: ByteCount::new(6),
            sealed: ByteCount::new(7),
            nodes: 8,
            audited: ByteCount::new(9),
            mismatched: ByteCount::new(300),
            first_mismatch: Some(BlockIndex::new(11)),
        },
        bad: BadRanges {
            bytes: ByteCount::new(512),
            count: 1,
            ranges: vec![ByteRange { offset: ByteOffset::new(65536), size: ByteCount::new(512) }],
        },
        pacing: Pacing {
            reading_ms: 1,
            limited_ms: 2,
            throttled_ms: 3,
            cuts: 4,
            lowest_rate: Some(ByteCount::new(5)),
            peak_latency_us: None,
        },
    };
    let expected =
        b"\x01\x80\x04\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\xac\x02\x01\x0b\x80\x04\x01\x01\x80\x80\x04\x80\x04\x01\x02\x03\x04\x01\x05\x00";
    assert_eq!(encode(&done), expected);
    assert_eq!(decode::<DiskDone>(expected), Ok(done));
}

#[test]
fn golden_job_done() {
    let read = StageAccount {
        threads: 1,
        busy: Duration::new(1, 500_000_000),
        held: Duration::from_nanos(300),
        bytes: ByteCount::new(65536),
        depth_sum: 3,
        depth_count: 2,
        depth_max: 2,
        ..StageAccount::new(Stage::Read)
    };
    let account = Account { wall: Duration::new(2, 0), processors: 2, stages: vec![read] };
    let done = JobDone {
        outcome: Ok(()),
        disk: None,
        disks: Vec::new(),
        usage: Usage::default(),
        passes: vec![PassAccount { disk: 1, pass: 0, account }],
    };
    let mut expected = b"\x00\x00\x00\x00\x00\x00\x00\x01\x01\x00\x02\x00\x02\x01".to_vec();
    // The stage: its number, threads, places, then four times and the processor's, in seconds and nanoseconds.
    expected.extend(b"\x00\x01\x00\x01\x80\xca\xb5\xee\x01\x00\x00\x00\x00\x00\xac\x02\x00\x00");
    expected.extend(b"\x80\x80\x04\x03\x02\x02");
    assert_eq!(encode(&done), expected);
    assert_eq!(decode::<JobDone>(&expected), Ok(done));
}

#[test]
fn an_audit_needs_a_bitmap_and_is_of_at_most_everything() {
    let base = Tree { size: ByteCount::new(512), root: None };
    let fault = |start, parts_per_million| {
        let audit = Some(Audit { parts_per_million, ..Audit::with_seed(1) });
        BackupDisk { userdevice: 4, size: ByteCount::new(512), start, audit }.audit_fault()
    };
    for start in [Start::Allocated, Start::Changed { base }] {
        assert_eq!(fault(start.clone(), Audit::ALL), None);
        assert!(fault(start, Audit::ALL + 1).is_some_and(|fault| fault.contains("million")));
    }
    for start in [Start::Nothing, Start::Compare { base }] {
        assert!(fault(start, 1000).is_some_and(|fault| fault.contains("without a bitmap")));
    }
}

#[test]
fn golden_blocks() {
    let lock = BlockLock { cipher: 2, salt: [9; 32], counter: 300 };
    let clear = SealedBlock { codec: 1, lock: None, plain_size: 65536, bytes: b"zz" };
    let encrypted = SealedBlock { codec: 0, lock: Some(lock), plain_size: 3, bytes: b"abc" };
    let mut expected = b"\x02\x01\x00\x80\x80\x04\x02zz\x00\x01\x02".to_vec();
    expected.extend([9; 32]);
    expected.extend(b"\xac\x02\x03\x03abc");
    let answer = BlocksAnswer { blocks: vec![clear, encrypted] };
    assert_eq!(encode(&answer), expected);
    assert_eq!(decode::<BlocksAnswer<'_>>(&expected), Ok(answer));
    let sealed = encrypted.sealed().expect("both are known");
    let expected = seal::Lock { cipher: seal::Cipher::ChaCha20Poly1305, salt: [9; 32], counter: 300 };
    assert_eq!((sealed.lock, sealed.bytes), (Some(expected), &b"abc"[..]));
    let later = SealedBlock { lock: Some(BlockLock { cipher: 3, ..lock }), ..encrypted };
    assert_eq!(later.sealed().map(|sealed| sealed.bytes), Err(seal::Error::Cipher { code: 3 }));
}

#[test]
fn bytes_too_many_are_refused() {
    let error = decode::<BitmapQuestion>(&[0, 0]).expect_err("one byte is enough");
    assert!(error.to_string().contains("1 bytes too many"), "{error}");
}

#[test]
fn keys_in_an_order_are_not_shown() {
    assert_eq!(format!("{:?}", IdKeyBytes([3; 32])), "IdKeyBytes(..)");
    assert_eq!(format!("{:?}", MasterKeyBytes([3; 32])), "MasterKeyBytes(..)");
}

#[test]
fn state_names_round_trip() {
    for state in State::ALL {
        assert_eq!(State::from_name(state.name()), Some(state));
    }
    assert_eq!(State::from_name("asleep"), None);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode::<Order>(&bytes);
        let _ = decode::<Claim>(&bytes);
        let _ = decode::<NodesAnswer>(&bytes);
        let _ = decode::<BlocksAnswer>(&bytes);
        let _ = decode::<JobDone>(&bytes);
        let _ = decode::<Diagnosis>(&bytes);
        let _ = decode::<Progress>(&bytes);
        let _ = decode::<KnownQuestion>(&bytes);
    }
}
