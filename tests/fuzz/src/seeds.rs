//! What a search starts from: for each target a few inputs that are as they should be.

use crate::targets::{
    a_document, a_run, golden, golden_files, identity_text, sealed, some_config, with_right_hash,
    with_right_lines, with_right_slot_check, with_right_sums,
};
use blocks::{Audit, BadRanges, BlockCount, BlockIndex, ByteCount, ByteOffset, ByteRange};
use seal::{BlockId, Codec, IdKey, NodeId, PackKind, PackWriter, Sealed, Sealer, Tree, TreeId};
use serde::Serialize;
use std::time::Duration;
use wire::{
    Account, BackupDisk, BitmapQuestion, BlocksAnswer, BlocksQuestion, Claim, Connect, Diagnosis, DiskAnswer,
    DiskCounts, DiskDone, Failure, IdKeyBytes, JobDone, KnownAnswer, KnownQuestion, Milestone, NodeBytes,
    NodesAnswer, NodesQuestion, Order, Pacing, PackAnswer, PassAccount, Progress, ProgressAnswer,
    RestoreDisk, SealedBlock, Speed, Spent, Stage, StageAccount, Start, Throttle, Usage, Work,
};

const JOB: &str = "4bd9a1a4-6f0f-4d64-bd6e-2f4c0d1f9f10";
const ROOT: NodeId = NodeId::from_bytes([5; 32]);
const GIB: ByteCount = ByteCount::new(1 << 30);

fn tagged(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], body].concat()
}

fn pieces(parts: &[&[u8]]) -> Vec<u8> {
    let piece = |part: &&[u8]| {
        let size = u16::try_from(part.len()).expect("seeds are short");
        [&size.to_le_bytes()[..], part].concat()
    };
    parts.iter().flat_map(piece).collect()
}

/// A XenStore packet (`xen/include/public/io/xs_wire.h`): kind, request, transaction, size, payload.
fn packet(kind: u32, request: u32, transaction: u32, payload: &[u8]) -> Vec<u8> {
    let size = u32::try_from(payload.len()).expect("seeds are short");
    let header = [kind, request, transaction, size].map(u32::to_le_bytes).concat();
    [&header, payload].concat()
}

pub(crate) fn xenstore_messages() -> Vec<Vec<u8>> {
    let read = packet(2, 5, 0, b"vm-data/abd/job\0");
    let refused = packet(16, 5, 0, b"ENOENT\0");
    let event = packet(15, 0, 0, b"control/shutdown\0abd-001\0");
    vec![tagged(200, &[read, refused].concat()), tagged(3, &event)]
}

pub(crate) fn xenstore_answers() -> Vec<Vec<u8>> {
    let value = packet(2, 1, 0, JOB.as_bytes());
    let names = packet(1, 2, 0, b"0\x001\0");
    let watched = [packet(4, 3, 0, b"OK\0"), packet(15, 0, 0, b"control/shutdown\0abd-1\0")].concat();
    let unwatched = packet(5, 4, 0, b"OK\0");
    let started = packet(6, 5, 0, b"9\0");
    let written = packet(11, 6, 9, b"OK\0");
    let again = packet(16, 7, 9, b"EAGAIN\0");
    vec![
        pieces(&[
            &value,
            &names,
            &watched,
            &unwatched,
            &started,
            &written,
            &again,
            &packet(6, 8, 0, b"10\0"),
        ]),
        pieces(&[&packet(16, 1, 0, b"ENOENT\0"), &packet(16, 2, 0, b"EACCES\0")]),
    ]
}

pub(crate) fn xenstore_requests() -> Vec<Vec<u8>> {
    let one_by_one = [
        packet(2, 1, 0, b"vm-data/abd/version\0"),
        packet(1, 2, 0, b"/local/domain/1\0"),
        packet(4, 3, 0, b"data\0token\0"),
        packet(11, 4, 0, b"data/updated\x001"),
        packet(12, 5, 0, b"data/a/b\0"),
        packet(14, 6, 0, b"data/a\0n1\0r0\0"),
        packet(3, 7, 0, b"data/a\0"),
        packet(13, 8, 0, b"data/a\0"),
        packet(5, 9, 0, b"data\0token\0"),
        packet(10, 10, 0, b"1\0"),
    ];
    let transaction = [
        packet(6, 1, 0, b"\0"),
        packet(11, 2, 1, b"data/x\0y"),
        packet(2, 3, 1, b"data/x\0"),
        packet(7, 4, 1, b"T\0"),
    ];
    vec![one_by_one.concat(), transaction.concat()]
}

/// An answer of a DHCP server (RFC 2131): fixed part, cookie, options.
fn dhcp(kind: u8, options: &[&[u8]]) -> Vec<u8> {
    let mut message = vec![2, 1, 6, 0];
    message.resize(16, 0);
    message.extend([192, 0, 2, 7]);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, kind]);
    options.iter().for_each(|option| message.extend(*option));
    message.push(255);
    message
}

fn steps(steps: &[(u8, &[u8])]) -> Vec<u8> {
    steps.iter().flat_map(|(kind, body)| [vec![*kind], pieces(&[body])].concat()).collect()
}

pub(crate) fn dhcp_exchanges() -> Vec<Vec<u8>> {
    let server: &[u8] = &[54, 4, 192, 0, 2, 1];
    let mask: &[u8] = &[1, 4, 255, 255, 255, 0];
    let routes: &[u8] = &[121, 13, 0, 192, 0, 2, 1, 24, 10, 1, 2, 192, 0, 2, 9];
    let lease: &[u8] = &[51, 4, 0, 0, 0, 60];
    let offer = dhcp(2, &[server, mask, lease]);
    let ack = dhcp(5, &[server, mask, routes, lease, &[26, 2, 5, 220], &[58, 4, 0, 0, 0, 30]]);
    let nak = dhcp(6, &[server, &[56, 2, b'n', b'o']]);
    let later = 31_000_u32.to_le_bytes();
    vec![
        steps(&[(0, &offer), (0, &ack), (3, &[]), (2, &later), (0, &ack), (2, &later), (0, &nak)]),
        steps(&[(0, &offer), (0, &ack), (3, &[2, 0, 0, 0, 0, 9]), (2, &later)]),
        steps(&[(2, &[]), (0, &offer), (0, &nak), (2, &later), (0, &dhcp(2, &[server, &[52, 1, 3]]))]),
    ]
}

pub(crate) fn link_packets() -> Vec<Vec<u8>> {
    let arp = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9, 192, 0, 2, 7, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1];
    // From the server's port to the client's; the header's checksum is right.
    let udp = [
        &[0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x3a, 0xcf, 0, 0, 0, 0, 255, 255, 255, 255][..],
        &[0, 67, 0, 68, 0, 11, 0, 0, b'o', b'd', b'd'],
    ];
    let mut acknowledged = vec![36, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    acknowledged.extend((-17_i32).to_le_bytes());
    acknowledged.resize(36, 0);
    let addresses = b"fe80000000000000505400fffe123456 02 40 20 80     eth0\n\
        20010db8000000000000000000000007 02 40 00 c0     eth0\n";
    vec![arp, udp.concat(), acknowledged, addresses.to_vec()]
}

pub(crate) fn boot_settings() -> Vec<Vec<u8>> {
    let common = format!(
        "version={}\njob={JOB}\nurl=https://192.0.2.1:8443/ https://[2001:db8::1]:443\norchestrator-key={}\n",
        wire::PROTOCOL_VERSION,
        "0f".repeat(32)
    );
    let fixed = "net/0/mode=static\nnet/0/address=192.0.2.7/24 2001:db8::7/64\nnet/0/gateway=192.0.2.1\n\
        net/0/mtu=9000\nnet/0/ipv6=auto\nnet/1/mode=dhcp\nnet/1/ipv6=off";
    vec![common.clone().into_bytes(), (common + fixed).into_bytes()]
}

pub(crate) fn worker_frames() -> Vec<Vec<u8>> {
    vec![b"T\0\0L\x04\0\x5a\0\0\0E\x07\0no\0lackD\0\0W\0\0".to_vec(), b"?\x02\0abT\0\0".to_vec()]
}

fn order(work: Work) -> Vec<u8> {
    let id_key = IdKeyBytes([3; 32]);
    wire::encode(&Order { job: JOB.into(), id_key, master_key: None, watchdog_s: 90, progress_ms: 500, work })
}

pub(crate) fn orders() -> Vec<Vec<u8>> {
    let base = Tree { size: GIB, root: Some(ROOT) };
    let audit = Audit { seed: 9, parts_per_million: 1000, minimum: BlockCount::new(64) };
    let disk = |userdevice, start, audit| BackupDisk { userdevice, size: GIB, start, audit };
    let backup = |rate_limit, throttle, disks| Work::Backup {
        level: 1,
        pack_size: 16 << 20,
        rate_limit,
        throttle,
        skip_bad_blocks: true,
        disks,
    };
    let throttle = Throttle { latency_ms: 20, floor: ByteCount::new(4 << 20) };
    let changed = disk(4, Start::Changed { base }, Some(audit));
    let others = vec![
        disk(5, Start::Nothing, None),
        disk(6, Start::Allocated, None),
        disk(7, Start::Compare { base }, None),
    ];
    let restored = RestoreDisk { userdevice: 4, device: GIB, size: GIB, root: Some(ROOT), blank: true };
    vec![
        order(backup(Some(ByteCount::new(1 << 20)), Some(throttle), vec![changed])),
        order(backup(None, None, others)),
        order(Work::Restore { disks: vec![restored] }),
    ]
}

fn question(tag: u8, message: &impl Serialize) -> Vec<u8> {
    tagged(tag, &wire::encode(message))
}

pub(crate) fn store_questions() -> Vec<Vec<u8>> {
    let claim = Claim {
        protocol: wire::PROTOCOL_VERSION,
        job: JOB.into(),
        agent: "0.1.0".into(),
        boot_ms: 900,
        claim_ms: 1700,
        memory: ByteCount::new(120 << 20),
        engine: "io_uring".into(),
    };
    let counts = DiskCounts { planned: GIB, moved: GIB, nodes: 3, ..DiskCounts::default() };
    let range = |at, size| ByteRange { offset: ByteOffset::new(at), size: ByteCount::new(size) };
    let bad = BadRanges {
        ranges: vec![range(4096, 512), range(65536, 4096)],
        bytes: ByteCount::new(4608),
        count: 2,
    };
    let pacing = Pacing { reading_ms: 5000, limited_ms: 200, lowest_rate: Some(GIB), ..Pacing::default() };
    let done = DiskDone { disk: 0, size: GIB, root: Some(ROOT), counts, bad, pacing };
    let usage = Usage { worker_peak: ByteCount::new(40 << 20), cpu_ms: 4000, ..Usage::default() };
    let second = Duration::from_secs(1);
    let stage = |stage| StageAccount {
        stage,
        threads: 1,
        places: 4,
        busy: second,
        starved: second / 2,
        blocked: second / 3,
        held: Duration::ZERO,
        cpu: second / 4,
        bytes: GIB,
        depth_sum: 30,
        depth_count: 10,
        depth_max: 4,
    };
    let stages = vec![stage(Stage::Read), stage(Stage::Network)];
    let account = Account { wall: second * 2, processors: 1, stages };
    let passes = vec![PassAccount { disk: 0, pass: 0, account }];
    let failure = Failure::new("read", "read xvde at 0x40000, 1 MiB: input/output error");
    let job_done = |outcome, passes| JobDone { outcome, disk: Some(0), disks: vec![counts], usage, passes };
    vec![
        question(0, &claim),
        question(1, &BitmapQuestion { disk: 1 }),
        question(2, &KnownQuestion { ids: vec![BlockId::from_bytes([1; 32]), BlockId::from_bytes([2; 32])] }),
        question(3, &NodesQuestion { disk: 0, level: 1, first: 7, count: 64 }),
        question(4, &BlocksQuestion { disk: 0, blocks: vec![BlockIndex::new(3), BlockIndex::new(900)] }),
        question(5, &done),
        question(6, &Progress { disks: vec![counts], usage }),
        question(7, &job_done(Ok(()), passes)),
        question(7, &job_done(Err(failure), Vec::new())),
    ]
}

pub(crate) fn store_answers() -> Vec<Vec<u8>> {
    let mut sealer = Sealer::new(seal::DEFAULT_LEVEL).expect("zstd has memory");
    let plain = [b'x'; 4096];
    let sealed = sealer.seal(&plain).expect("a block can be sealed").bytes.to_vec();
    let blocks = vec![
        SealedBlock { codec: Codec::Zstd as u8, lock: None, plain_size: 4096, bytes: &sealed },
        SealedBlock { codec: Codec::Stored as u8, lock: None, plain_size: 3, bytes: b"abc" },
    ];
    let spent = Spent { work: Duration::from_micros(1500), ..Spent::default() };
    vec![
        question(0, &KnownAnswer { known: vec![true, false, true] }),
        question(1, &NodesAnswer { nodes: vec![NodeBytes { index: 7, bytes: vec![1; 64] }] }),
        question(2, &BlocksAnswer { blocks }),
        question(3, &PackAnswer { stored: GIB }),
        question(4, &DiskAnswer { tree: TreeId::from_bytes([9; 32]) }),
        question(5, &ProgressAnswer { stop: true }),
        question(6, &Failure::new("bad-message", "no")),
        tagged(7, spent.to_header().as_bytes()),
    ]
}

pub(crate) fn cbt_bitmaps() -> Vec<Vec<u8>> {
    let disk = |blocks: u64, more: u64, bitmap: &[u8]| {
        [&(blocks * blocks::BLOCK_SIZE + more).to_le_bytes()[..], bitmap].concat()
    };
    vec![
        disk(18, 0, &[0x80, 0x40, 0x7f]),
        disk(128, 512, &[0xff; 17]),
        disk(700, 0, &[0x0f; 88]),
        disk(0, 0, &[]),
    ]
}

fn pack(kind: PackKind, plains: &[&[u8]]) -> Vec<u8> {
    let key = IdKey::new(&[7; 32]);
    let mut sealer = Sealer::new(seal::DEFAULT_LEVEL).expect("zstd has memory");
    let mut writer = PackWriter::new(kind, 4096);
    for plain in plains {
        let id = *key.block_id(plain).as_bytes();
        let sealed = sealer.seal(plain).expect("a block can be sealed");
        writer.push(id, plain.len(), sealed);
    }
    writer.push([9; 32], 3, Sealed::clear(Codec::Stored, b"raw"));
    let mut bytes = writer.finish().bytes;
    // The salt, which nothing but the pack's name depends on: seeds are the same each time.
    bytes[11..seal::HEADER_SIZE].fill(0);
    bytes
}

pub(crate) fn packs() -> Vec<Vec<u8>> {
    let packs = vec![pack(PackKind::Data, &[&[1; 700], b"some text"]), pack(PackKind::Tree, &[&[0; 8192]])];
    for pack in &packs {
        assert_eq!(with_right_hash(pack).as_ref(), Some(pack), "the hash is where FORMAT.md says");
    }
    packs
}

pub(crate) fn trees() -> Vec<Vec<u8>> {
    let leaf = |index: u32, slot, content| [&index.to_le_bytes()[..], &[slot, content]].concat();
    let small = [GIB.get().to_le_bytes().to_vec(), leaf(0, 0, 1), leaf(0, 255, 2), leaf(9, 4, 3)];
    let large = [(900 * GIB.get()).to_le_bytes().to_vec(), leaf(1, 1, 1), leaf(57_000, 2, 2), leaf(3, 3, 0)];
    vec![small.concat(), large.concat()]
}

pub(crate) fn store_files() -> Vec<Vec<u8>> {
    let point = include_bytes!("../../../orchestrator/crates/ads/tests/fixtures/point-version-1.json");
    let [data, tree] = packs().try_into().expect("two packs");
    let config = some_config();
    let place = tempfile::tempdir().expect("a directory can be made");
    drop(ads::Store::init(place.path()).expect("a store can be made"));
    std::fs::write(place.path().join("config.json"), &config).expect("a file can be written");
    assert!(ads::Store::open(place.path()).is_ok(), "the config is one");
    vec![tagged(0, &config), tagged(1, &config), tagged(2, point), tagged(3, &data), tagged(3, &tree)]
}

pub(crate) fn diagnoses() -> Vec<Vec<u8>> {
    let speed = Speed { bytes: GIB, micros: 9_000_000, slowest_us: 70_000 };
    let failure =
        || Failure { code: "read-failed".into(), message: "read xvda at 0x0: input/output error".into() };
    let sound = Diagnosis {
        clock_ms: 1_800_000_000_250,
        processors: 2,
        milestones: vec![Milestone { name: "network up".into(), at_ms: 1200 }],
        connect: Ok(Connect { address: "10.0.2.2:8443".into(), tcp_us: 300, tls_us: 4000 }),
        round_trip_us: Ok(250),
        read: Ok(speed),
        send: Ok(Speed { bytes: ByteCount::new(4096), ..speed }),
    };
    let failed = Diagnosis {
        connect: Err(failure()),
        round_trip_us: Err(failure()),
        read: Err(failure()),
        send: Err(failure()),
        ..sound.clone()
    };
    vec![wire::encode(&sound), wire::encode(&failed)]
}

pub(crate) fn collection_records() -> Vec<Vec<u8>> {
    let json = |tag, value: serde_json::Value| tagged(tag, value.to_string().as_bytes());
    let packs = super::targets::golden_packs();
    vec![
        // Every pack of the store, all of them needed, long ago, and nobody to wait for.
        json(0, serde_json::json!({"version": 1, "created": 0, "packs": packs, "leases": {}})),
        json(0, serde_json::json!({"version": 1, "created": 0, "packs": packs, "leases": {JOB: 3}})),
        tagged(1, &super::targets::some_lease()),
        tagged(2, b"3"),
        json(3, serde_json::json!(JOB)),
        json(4, serde_json::json!({"note": "before the migration", "created": "2026-11-03T10:00:00Z"})),
    ]
}

/// The slot of the store that another program made, those that are wrong, and an identity.
pub(crate) fn key_slots() -> Vec<Vec<u8>> {
    let slots = golden_files("sealed/keys", "");
    for slot in &slots {
        assert!(with_right_slot_check(slot) == *slot, "the check is made as FORMAT.md says");
    }
    let wrong = golden_files("sealed-defects", "slot-");
    let identity = format!("# created\n\n{}\n", identity_text());
    let slots = slots.iter().chain(&wrong).flat_map(|slot| [tagged(0, slot), tagged(1, slot)]);
    slots.chain([tagged(2, identity.as_bytes())]).collect()
}

pub(crate) fn recovery_kits() -> Vec<Vec<u8>> {
    let kit = golden("sealed-kit.txt");
    let text = std::str::from_utf8(&kit).expect("text");
    let digits = |text: &str| text.split_whitespace().collect::<String>();
    assert_eq!(digits(&with_right_lines(text)), digits(text), "checksums are made as FORMAT.md says");
    let wrong = golden_files("sealed-defects", "kit-");
    [&kit].into_iter().chain(&wrong).flat_map(|kit| [tagged(0, kit), tagged(1, kit)]).collect()
}

pub(crate) fn sealed_points() -> Vec<Vec<u8>> {
    let document = a_document().to_string();
    let ours = sealed(document.as_bytes()).expect("it can be encrypted");
    let points =
        golden_files("sealed/points", "").into_iter().chain(golden_files("sealed-defects", "point-"));
    let points: Vec<_> = points.map(|point| tagged(0, &point)).collect();
    let others = [tagged(0, &ours), tagged(1, document.as_bytes()), tagged(2, &ours)];
    points.into_iter().chain(others).collect()
}

pub(crate) fn encrypted_packs() -> Vec<Vec<u8>> {
    let packs = golden_files("sealed/packs", "");
    for pack in &packs {
        assert_eq!(with_right_hash(pack).as_ref(), Some(pack), "the hash is where FORMAT.md says");
    }
    let wrong = ["pack-", "clear-pack-"].map(|begin| golden_files("sealed-defects", begin)).concat();
    packs.into_iter().chain(wrong).collect()
}

pub(crate) fn index_runs() -> Vec<Vec<u8>> {
    let run = a_run();
    assert!(with_right_sums(&run).as_ref() == Some(&run), "sums are where the layout says");
    vec![run]
}

/// One of each call, as clients make them.
pub(crate) fn served_requests() -> Vec<Vec<u8>> {
    let id = "ab".repeat(32);
    let calls = [
        "GET /abd/1/about".to_owned(),
        "GET /abd/1/lists/packs/".into(),
        format!("GET /abd/1/sizes/points/{id}.json"),
        format!("GET /abd/1/objects/packs/ab/{id}\nrange: bytes=65536-131071"),
        format!("PUT /abd/1/objects/packs/ab/{id}\ncontent-length: 16777216"),
        "PUT /abd/1/objects/config.json\nif-none-match: *\ncontent-length: 300".into(),
        format!("DELETE /abd/1/objects/pins/{id}.json"),
    ];
    calls.into_iter().map(String::into_bytes).collect()
}

/// The description of a template of ours, for a disk of two sectors.
fn ova_xml() -> String {
    let appliance = xva::Appliance::new("abd", "0.1.0");
    let plan = xva::Plan::new(&appliance, &mut std::io::Cursor::new([0])).expect("a plan of one chunk");
    // Another key, so that no digest of the whole disk stands in the way.
    plan.ova_xml().replace("1048576", "1024").replace(xva::DIGEST_KEY, "abd:nothing")
}

pub(crate) fn xva_files() -> Vec<Vec<u8>> {
    let xml = ova_xml();
    let mut file = tar::Builder::new(Vec::new());
    let zeros = [0; 512];
    let members: [(&str, &[u8]); 5] = [
        ("ova.xml", xml.as_bytes()),
        ("Ref:2/00000000", &zeros),
        ("Ref:2/00000000.checksum", b"5c3eb80066420002bc3dcc7ca4ab6efad7ed4ae5"),
        ("Ref:2/00000001", &zeros),
        ("Ref:2/00000001.checksum", b"5c3eb80066420002bc3dcc7ca4ab6efad7ed4ae5"),
    ];
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        file.append_data(&mut header, name, content).expect("memory takes every write");
    }
    vec![file.into_inner().expect("memory takes every write")]
}

pub(crate) fn ova_descriptions() -> Vec<Vec<u8>> {
    let foreign = include_bytes!("../../../orchestrator/crates/xva/tests/fixtures/foreign-ova.xml");
    vec![ova_xml().into_bytes(), foreign.to_vec()]
}

pub(crate) fn vhd_heads() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../orchestrator/crates/xapi/tests/fixtures/dynamic-9m-block-2.vhd-head")
            .to_vec(),
    ]
}

pub(crate) fn pool_answers() -> Vec<Vec<u8>> {
    let record = r#"{"uuid":"4bd9a1a4-6f0f-4d64-bd6e-2f4c0d1f9f10","name_label":"web01","power_state":"Halted","VBDs":["OpaqueRef:1"],"virtual_size":"8388608","read_only":true,"other_config":{"a":"b"},"snapshot_time":"20240420T12:00:00Z","progress":0.5}"#;
    let xml = "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value></member><member><name>Value</name><value><struct><member><name>virtual_size</name><value>8388608</value></member><member><name>read_only</name><value><boolean>1</boolean></value></member><member><name>tags</name><value><array><data><value>x</value></data></array></value></member></struct></value></member></struct></value></param></params></methodResponse>";
    let fault = "<methodResponse><fault><value><struct><member><name>faultCode</name><value><int>1</int></value></member><member><name>faultString</name><value>no</value></member></struct></value></fault></methodResponse>";
    let json = |body: &str| tagged(0, body.as_bytes());
    vec![
        json(&format!(r#"{{"jsonrpc":"2.0","result":{record},"id":1}}"#)),
        json(r#"{"jsonrpc":"2.0","error":{"code":1,"message":"HANDLE_INVALID","data":["VM","x"]},"id":1}"#),
        json(r#"{"result":null,"error":["HANDLE_INVALID","VM","x"],"id":"1"}"#),
        tagged(1, xml.as_bytes()),
        tagged(1, fault.as_bytes()),
        tagged(2, b"<value><array><data><value>OpaqueRef:1</value></data></array></value>"),
    ]
}

pub(crate) fn job_files() -> Vec<Vec<u8>> {
    let manual = include_str!("../../../orchestrator/README.md");
    let example = manual.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let example = example.expect("the manual opens with a whole job file");
    let hooks = "pools = [\"a\"]\n[select]\nuuids = \"4bd9a1a4-6f0f-4d64-bd6e-2f4c0d1f9f10\"\n[options]\n\
        before_job = { command = [\"/bin/true\"], timeout = \"5 s\", on_failure = \"warn\" }\n\
        exclude_disks = [\"position:3\"]\n[run]\nafter_run = \"echo done\"\n";
    let texts = [example, hooks, "Mon-Fri 22:00-06:00", "512 MiB", "30 min", "0.25", "192.0.2.7/24"];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}

#[cfg(test)]
mod tests {
    use crate::TARGETS;

    #[test]
    fn seeds_are_the_same_each_time() {
        for target in TARGETS {
            assert!(!(target.seeds)().is_empty(), "{}", target.name);
            assert!((target.seeds)() == (target.seeds)(), "{}", target.name);
        }
    }
}
