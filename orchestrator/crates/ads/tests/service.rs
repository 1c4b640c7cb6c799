//! The service as an ABD sees it, over real TLS: a whole backup, a restore, and everything that is refused.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Depth, JobEvent, JobGrant, JobHandle, Limits, Scope, Service, Store};
use blocks::ByteCount;
use hyper::Method;
use pin::Identity;
use seal::{PackKind, PackWriter, Sealed, Tree};
use std::net::SocketAddr;
use std::sync::Arc;
use support::client::{Abd, backup_work, counts, order, restore_work};
use support::{disk, point};
use tempfile::TempDir;
use wire::*;

struct Bench {
    _dir: TempDir,
    store: Arc<Store>,
    service: Service,
}

async fn bench() -> Bench {
    bench_with(Limits::default()).await
}

async fn bench_with(limits: Limits) -> Bench {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let identity = Identity::generate().unwrap();
    let service = Service::start_with_limits(store.clone(), identity, &[listen], limits).await.unwrap();
    Bench { _dir: dir, store, service }
}

impl Bench {
    fn open(&self, job: &str, work: Work) -> JobHandle {
        self.open_with(job, work, None)
    }

    fn open_with(&self, job: &str, work: Work, bitmap: Option<Vec<u8>>) -> JobHandle {
        let count = match &work {
            Work::Backup { disks, .. } => disks.len(),
            Work::Restore { disks } => disks.len(),
            Work::Diagnose { .. } => 0,
        };
        let mut bitmaps = vec![None; count];
        if let Some(first) = bitmaps.first_mut() {
            *first = bitmap;
        }
        let order = order(&self.store, job, work);
        self.service.open_job(JobGrant { job: job.into(), order, bitmaps }).unwrap()
    }

    async fn abd(&self, job: &JobHandle, name: &str) -> (Abd, Order) {
        let mut abd = Abd::connect(&self.service).await;
        job.admit(abd.key()).unwrap();
        let order = abd.claim(name).await.unwrap();
        (abd, order)
    }
}

fn code<T>(refused: Result<T, (u16, Failure)>) -> (u16, String) {
    let (status, failure) = refused.err().expect("refused");
    assert!(!failure.message.is_empty());
    (status, failure.code)
}

fn done(disks: usize) -> JobDone {
    JobDone {
        outcome: Ok(()),
        disk: None,
        disks: vec![DiskCounts::default(); disks],
        usage: Usage::default(),
        passes: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_goes_in_and_comes_out() {
    let bench = bench().await;
    let first = disk(1, 40 * 65536 + 1536);
    let second = disk(2, 512);
    let zeros = vec![0; 3 << 20];
    let sizes = [first.len(), second.len(), zeros.len()];
    let job = bench.open("job-1", backup_work(&sizes.map(|size| (size, Start::Nothing))));
    let (mut abd, got) = bench.abd(&job, "job-1").await;
    assert!(matches!(job.events().recv().await, Some(JobEvent::Claimed(claim)) if claim.job == "job-1"));
    let mut trees = Vec::new();
    for (index, bytes) in (0u16..).zip([&first, &second, &zeros]) {
        let (packed, answer) = abd.backup_disk(&got, index, bytes).await;
        assert_eq!(answer.tree, packed.tree.id(bench.store.id_key()));
        let event = job.events().recv().await.unwrap();
        let expected = JobEvent::DiskSealed {
            disk: index,
            tree: packed.tree,
            id: answer.tree,
            counts: counts(bytes.len()),
            bad: BadRanges::default(),
            pacing: Pacing::default(),
        };
        assert_eq!(event, expected);
        trees.push(packed.tree);
    }
    let answer: ProgressAnswer = abd.ask(PATH_JOB_DONE, &done(3)).await.unwrap();
    assert!(!answer.stop);
    assert!(matches!(job.events().recv().await, Some(JobEvent::Done(done)) if done.outcome == Ok(())));
    assert!(job.last_contact().is_some());
    job.close();
    assert_eq!(job.events().recv().await, None);
    assert_eq!(code(abd.claim("job-1").await), (410, "job-over".into()));

    let store = bench.store.clone();
    let id = store.commit_point(&point(&store, "vm-1", "2026-11-03T10:20:30Z", &trees)).unwrap();
    assert_eq!(store.latest_point("vm-1").unwrap().unwrap().id, id);
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);

    let job = bench.open("job-2", restore_work(&trees));
    let (mut abd, got) = bench.abd(&job, "job-2").await;
    for (index, bytes) in (0u16..).zip([&first, &second, &zeros]) {
        assert!(abd.restore_disk(&got, index).await == *bytes, "disk {index} differs");
    }
    bench.service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incremental_ships_only_what_changed_and_stands_alone() {
    let bench = bench().await;
    let mut bytes = disk(3, 600 * 65536 + 512);
    let job = bench.open("full", backup_work(&[(bytes.len(), Start::Nothing)]));
    let (mut abd, got) = bench.abd(&job, "full").await;
    let (base, _) = abd.backup_disk(&got, 0, &bytes).await;

    bytes[300 * 65536] ^= 1;
    bytes.extend_from_slice(&[7; 70_000]);
    let bitmap = blocks::ChangedBlocks::all(ByteCount::new(bytes.len() as u64)).unwrap().to_xapi();
    let work = backup_work(&[(bytes.len(), Start::Changed { base: base.tree })]);
    let job = bench.open_with("incremental", work, Some(bitmap.clone()));
    let (mut abd, got) = bench.abd(&job, "incremental").await;
    let answer = abd.raw(Method::POST, PATH_BITMAP, encode(&BitmapQuestion { disk: 0 }).into()).await;
    assert_eq!(answer.unwrap(), bitmap);
    let (packed, _) = abd.backup_disk(&got, 0, &bytes).await;
    let shipped: usize =
        packed.data.iter().map(|pack| seal::PackIndex::from_pack(&pack.bytes).unwrap().entries.len()).sum();
    assert_eq!(shipped, 3, "the changed block, the one that grew, and the one behind it");
    assert!(!job.promised_packs().is_empty(), "known blocks hold their packs");
    assert!(support::restore(&bench.store, &packed.tree).unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_jobs_and_versions_are_told_apart() {
    let bench = bench().await;
    let job = bench.open("mine", backup_work(&[(512, Start::Nothing)]));
    let other = bench.open("other", backup_work(&[(512, Start::Nothing)]));
    let mut abd = Abd::connect(&bench.service).await;
    assert_eq!(code(abd.claim("mine").await), (401, "unknown-key".into()));
    job.admit(abd.key()).unwrap();
    job.admit(abd.key()).unwrap();
    assert!(other.admit(abd.key()).unwrap_err().to_string().contains("another job"));
    let stranger = Identity::generate().unwrap().fingerprint();
    assert!(job.admit(stranger).unwrap_err().to_string().contains("not admitted"));

    assert_eq!(code(abd.claim("other").await), (403, "wrong-job".into()));
    let mut claim = Abd::claim_of("mine");
    claim.protocol = 9;
    let (status, failure) = abd.ask::<_, Order>(PATH_CLAIM, &claim).await.unwrap_err();
    assert_eq!((status, failure.code.as_str()), (400, "protocol-version"));
    let ours = format!("version {}", wire::PROTOCOL_VERSION);
    assert!(failure.message.contains("version 9") && failure.message.contains(&ours), "{failure}");
    assert_eq!(code(abd.raw(Method::POST, PATH_PROGRESS, "".into()).await), (403, "not-in-order".into()));
    let order = abd.claim("mine").await.unwrap();
    assert_eq!(abd.claim("mine").await.unwrap(), order, "same key, same order");

    let wrong = Identity::generate().unwrap();
    let address = bench.service.addresses()[0];
    let server = Identity::generate().unwrap().fingerprint();
    assert!(Abd::connect_to(address, server, wrong).await.is_err(), "another server key is not talked to");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_in_rounds_has_a_key_and_events_for_each() {
    let bench = bench().await;
    let bytes = [disk(30, 3 * 65536), disk(31, 2 * 65536 + 512)];
    let mut keys: Vec<pin::Fingerprint> = Vec::new();
    let mut earlier: Vec<Abd> = Vec::new();
    let mut handles = Vec::new();
    for (round, bytes) in bytes.iter().enumerate() {
        let job = bench.open("job", backup_work(&[(bytes.len(), Start::Nothing)]));
        for key in &keys {
            let error = job.admit(*key).unwrap_err().to_string();
            assert!(error.contains("a job that is closed"), "{error}");
        }
        // A connection of an earlier round is still open, and its ABD still wants to work.
        for abd in &mut earlier {
            assert_eq!(code(abd.claim("job").await), (410, "job-over".into()));
            let known = KnownQuestion { ids: Vec::new() };
            assert_eq!(code(abd.ask::<_, KnownAnswer>(PATH_KNOWN, &known).await).1, "job-over");
        }
        let (mut abd, got) = bench.abd(&job, "job").await;
        assert_eq!(got.work, backup_work(&[(bytes.len(), Start::Nothing)]), "the order of this round");
        let (packed, _) = abd.backup_disk(&got, 0, bytes).await;
        let _: ProgressAnswer = abd.ask(PATH_JOB_DONE, &done(1)).await.unwrap();
        job.close();
        let mut events = Vec::new();
        while let Some(event) = job.events().recv().await {
            events.push(event);
        }
        assert!(
            matches!(
                &events[..],
                [JobEvent::Claimed(_), JobEvent::DiskSealed { tree, .. }, JobEvent::Done(_)]
                    if *tree == packed.tree
            ),
            "round {round}: {events:?}"
        );
        keys.push(abd.key());
        earlier.push(abd);
        // Kept beyond the next round's start: closing a job a second time must not close its successor.
        handles.push(job);
    }
    let last = bench.open("job", backup_work(&[(512, Start::Nothing)]));
    drop(handles);
    bench.abd(&last, "job").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opening_of_an_open_job_changes_nothing_for_the_first() {
    let bench = bench().await;
    let job = bench.open("job", backup_work(&[(512, Start::Nothing)]));
    let (mut abd, _) = bench.abd(&job, "job").await;
    let order = order(&bench.store, "job", backup_work(&[(512, Start::Nothing)]));
    let second = bench.service.open_job(JobGrant { job: "job".into(), order, bitmaps: vec![None] });
    assert!(second.unwrap_err().to_string().contains("open already"));
    let stranger = Identity::generate().unwrap().fingerprint();
    assert!(job.admit(stranger).is_err(), "its ABD is the only one still");
    abd.claim("job").await.unwrap();
    job.close();
    assert_eq!(code(abd.claim("job").await), (410, "job-over".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abd_stays_within_its_order() {
    let bench = bench().await;
    let bytes = disk(5, 3 * 65536);
    let foreign = support::store_disk(&bench.store, &disk(6, 3 * 65536)).unwrap();
    let job = bench.open("backup", backup_work(&[(bytes.len(), Start::Nothing)]));
    let (mut abd, got) = bench.abd(&job, "backup").await;
    let nodes = |disk| NodesQuestion { disk, level: 1, first: 0, count: 1 };
    assert_eq!(code(abd.ask::<_, NodesAnswer>(PATH_NODES, &nodes(0)).await).1, "not-in-order");
    assert_eq!(code(abd.ask::<_, NodesAnswer>(PATH_NODES, &nodes(1)).await).1, "not-in-order");
    let question = BlocksQuestion { disk: 0, blocks: vec![support::block(0)] };
    assert_eq!(code(abd.ask::<_, ProgressAnswer>(PATH_BLOCKS, &question).await).1, "not-in-order");
    let bitmap = BitmapQuestion { disk: 0 };
    assert_eq!(code(abd.ask::<_, ProgressAnswer>(PATH_BITMAP, &bitmap).await).1, "not-in-order");
    let finished = |disk, size: usize, tree: Tree| DiskDone {
        disk,
        size: ByteCount::new(size as u64),
        root: tree.root,
        counts: DiskCounts::default(),
        bad: BadRanges::default(),
        pacing: Pacing::default(),
    };
    let call = finished(7, bytes.len(), foreign);
    assert_eq!(code(abd.ask::<_, DiskAnswer>(PATH_DISK_DONE, &call).await).1, "not-in-order");
    let call = finished(0, bytes.len() + 512, foreign);
    assert_eq!(code(abd.ask::<_, DiskAnswer>(PATH_DISK_DONE, &call).await).1, "not-in-order");
    assert_eq!(code(abd.ask::<_, ProgressAnswer>(PATH_JOB_DONE, &done(1)).await).1, "not-in-order");

    let packed = support::pack_disk(bench.store.id_key(), &bytes, None, &mut |_| false);
    for pack in &packed.nodes {
        abd.put(pack).await.unwrap();
    }
    let call = finished(0, bytes.len(), packed.tree);
    // The order says to read the disk whole.
    let bad = BadRanges {
        bytes: ByteCount::new(512),
        count: 1,
        ranges: vec![ByteRange { offset: blocks::ByteOffset::new(0), size: ByteCount::new(512) }],
    };
    let partial = DiskDone { bad, ..call.clone() };
    assert_eq!(code(abd.ask::<_, DiskAnswer>(PATH_DISK_DONE, &partial).await).1, "not-in-order");
    let (status, failure) = abd.ask::<_, DiskAnswer>(PATH_DISK_DONE, &call).await.unwrap_err();
    assert_eq!((status, failure.code.as_str()), (409, "missing-block"));
    assert!(failure.message.contains("at 0x0 of the disk"), "{failure}");
    abd.backup_disk(&got, 0, &disk(9, 3 * 65536)).await;
    for pack in &packed.data {
        abd.put(pack).await.unwrap();
    }
    assert_eq!(code(abd.ask::<_, DiskAnswer>(PATH_DISK_DONE, &call).await).1, "not-in-order");

    let restore = bench.open("restore", restore_work(&[foreign]));
    let (mut abd, _) = bench.abd(&restore, "restore").await;
    assert_eq!(code(abd.put(&packed.data[0]).await).1, "not-in-order");
    let known = KnownQuestion { ids: Vec::new() };
    assert_eq!(code(abd.ask::<_, KnownAnswer>(PATH_KNOWN, &known).await).1, "not-in-order");
    let call = finished(0, 3 * 65536, packed.tree);
    assert_eq!(code(abd.ask::<_, DiskAnswer>(PATH_DISK_DONE, &call).await).1, "not-in-order");
    let call = finished(0, 3 * 65536, foreign);
    let answer: DiskAnswer = abd.ask(PATH_DISK_DONE, &call).await.unwrap();
    assert_eq!(answer.tree, foreign.id(bench.store.id_key()));
    for blocks in [vec![0, 0], vec![1, 0], vec![6], (0..65).collect(), vec![u64::MAX]] {
        let blocks = blocks.into_iter().map(support::block).collect();
        let question = BlocksQuestion { disk: 0, blocks };
        assert_eq!(code(abd.ask::<_, ProgressAnswer>(PATH_BLOCKS, &question).await).1, "bad-message");
    }
    for (level, first, count) in [(0, 0, 1), (2, 0, 1), (255, 0, 1), (1, 0, MAX_NODES as u16 + 1)] {
        let question = NodesQuestion { disk: 0, level, first, count };
        assert_eq!(code(abd.ask::<_, NodesAnswer>(PATH_NODES, &question).await).1, "bad-message");
    }
    let question = NodesQuestion { disk: 0, level: 1, first: u64::MAX, count: 64 };
    assert_eq!(abd.ask::<_, NodesAnswer>(PATH_NODES, &question).await.unwrap().nodes, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_packs_are_refused_and_leave_nothing() {
    let bench = bench().await;
    let bytes = disk(8, 5 * 65536);
    let job = bench.open("job", backup_work(&[(bytes.len(), Start::Nothing)]));
    let (mut abd, _) = bench.abd(&job, "job").await;
    let good = support::pack_disk(bench.store.id_key(), &bytes, None, &mut |_| false).data.remove(0);

    let mut lying = PackWriter::new(PackKind::Data, 1000);
    let id = *bench.store.id_key().block_id(b"what it says").as_bytes();
    lying.push(id, 15, Sealed::clear(seal::Codec::Stored, b"what it is not."));
    let mut zeros = PackWriter::new(PackKind::Data, 1000);
    let id = *bench.store.id_key().block_id(&[0; 512]).as_bytes();
    zeros.push(id, 512, Sealed::clear(seal::Codec::Stored, &[0; 512]));
    let mut block_as_node = PackWriter::new(PackKind::Tree, 1000);
    let id = *bench.store.id_key().node_id(b"short").as_bytes();
    block_as_node.push(id, 5, Sealed::clear(seal::Codec::Stored, b"short"));
    let cut = good.bytes[..good.bytes.len() - 1].to_vec();
    let truncated = seal::Pack { id: seal::PackId::of(&cut), bytes: cut };
    let misnamed = seal::Pack { id: seal::PackId::of(b"other"), bytes: good.bytes.clone() };
    let empty = seal::Pack { id: seal::PackId::of(b""), bytes: Vec::new() };
    for (pack, says) in [
        (lying.finish(), "damaged"),
        (zeros.finish(), "all zeros"),
        (block_as_node.finish(), "tree node has 5 bytes"),
        (truncated, "not a whole pack"),
        (misnamed, "its bytes have the id"),
        (empty, "not a whole pack"),
    ] {
        let (status, failure) = abd.put(&pack).await.unwrap_err();
        assert_eq!((status, failure.code.as_str()), (422, "bad-pack"), "{failure}");
        assert!(
            failure.message.contains(says) && failure.message.contains(&pack.id.to_string()),
            "{failure}"
        );
    }
    assert_eq!(support::files(bench.store.dir()), [bench.store.dir().join("config.json")]);
    assert_eq!(abd.put(&good).await.unwrap().stored.get(), good.bytes.len() as u64);
    assert_eq!(abd.put(&good).await.unwrap().stored.get(), 0, "the second time it is there");
    assert!(matches!(job.events().recv().await, Some(JobEvent::Claimed(_))));
    assert!(matches!(job.events().recv().await, Some(JobEvent::Refused { code, .. }) if code == "bad-pack"));
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_gets_an_answer() {
    let bench = bench().await;
    let job = bench.open("job", backup_work(&[(512, Start::Nothing)]));
    let (mut abd, _) = bench.abd(&job, "job").await;
    for path in
        [PATH_CLAIM, PATH_KNOWN, PATH_NODES, PATH_BLOCKS, PATH_DISK_DONE, PATH_PROGRESS, PATH_JOB_DONE]
    {
        for body in [&b""[..], &[0xff; 300], &[0x80; 9]] {
            let refused = code(abd.raw(Method::POST, path, body.to_vec().into()).await);
            assert!(["bad-message", "protocol-version"].contains(&refused.1.as_str()), "{path} {refused:?}");
        }
        assert_eq!(code(abd.raw(Method::GET, path, "".into()).await), (405, "bad-message".into()));
    }
    assert_eq!(code(abd.raw(Method::POST, "/etc/passwd", "".into()).await), (404, "bad-message".into()));
    let path = format!("{PATH_PACKS}../../config.json");
    assert_eq!(code(abd.raw(Method::PUT, &path, "x".into()).await), (400, "bad-message".into()));
    let many = KnownQuestion { ids: vec![seal::BlockId::from_bytes([1; 32]); MAX_KNOWN_IDS + 1] };
    assert_eq!(code(abd.ask::<_, KnownAnswer>(PATH_KNOWN, &many).await).1, "bad-message");
    assert_eq!(code(abd.raw(Method::POST, PATH_KNOWN, vec![0; 600 << 10].into()).await).0, 413);
    let mut events = 0;
    job.close();
    while job.events().recv().await.is_some() {
        events += 1;
    }
    assert!(events <= 40, "{events} events of one confused ABD");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_merged_and_stop_is_told() {
    let bench = bench().await;
    let job = bench.open("job", backup_work(&[(512, Start::Nothing)]));
    let (mut abd, _) = bench.abd(&job, "job").await;
    for moved in 0..100 {
        let progress = Progress { disks: vec![counts(moved)], usage: Usage::default() };
        let answer: ProgressAnswer = abd.ask(PATH_PROGRESS, &progress).await.unwrap();
        assert!(!answer.stop);
    }
    assert!(matches!(job.events().recv().await, Some(JobEvent::Claimed(_))));
    let Some(JobEvent::Progress(latest)) = job.events().recv().await else { panic!("progress") };
    assert_eq!(latest.disks[0].moved.get(), 99);
    job.stop();
    let progress = Progress { disks: vec![counts(100)], usage: Usage::default() };
    let answer: ProgressAnswer = abd.ask(PATH_PROGRESS, &progress).await.unwrap();
    assert!(answer.stop);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_clients_at_once_share_their_blocks() {
    // Room for one pack at a time: the others wait for it.
    let limits = Limits { ingest: ByteCount::new(0), packs_per_job: 1, ..Limits::default() };
    let bench = Arc::new(bench_with(limits).await);
    let shared_part = disk(10, 30 * 65536);
    let mut tasks = Vec::new();
    for number in 0..3u64 {
        let bench = bench.clone();
        let mut bytes = shared_part.clone();
        bytes.extend(disk(20 + number, 20 * 65536 + 512));
        tasks.push(tokio::spawn(async move {
            let name = format!("job-{number}");
            let job = bench.open(&name, backup_work(&[(bytes.len(), Start::Nothing)]));
            let (mut abd, got) = bench.abd(&job, &name).await;
            let key = got.keys();
            let packed = support::pack_disk(&key, &bytes, None, &mut |_| false);
            for pack in packed.data.iter().chain(&packed.nodes) {
                abd.put(pack).await.unwrap();
            }
            let done = DiskDone {
                disk: 0,
                size: packed.tree.size,
                root: packed.tree.root,
                counts: DiskCounts::default(),
                bad: BadRanges::default(),
                pacing: Pacing::default(),
            };
            let answer: DiskAnswer = abd.ask(PATH_DISK_DONE, &done).await.unwrap();
            assert_eq!(answer.tree, packed.tree.id(&key));
            assert!(support::restore(&bench.store, &packed.tree).unwrap() == bytes);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let report = bench.store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_move_is_let_go() {
    let stall = std::time::Duration::from_millis(200);
    let bench = bench_with(Limits { stall, connections: 1, ..Limits::default() }).await;
    let job = bench.open("job", backup_work(&[(512, Start::Nothing)]));
    let identity = Identity::generate().unwrap();
    job.admit(identity.fingerprint()).unwrap();
    let config = identity.client_config(bench.service.fingerprint()).unwrap();
    let stream = tokio::net::TcpStream::connect(bench.service.addresses()[0]).await.unwrap();
    let name = tokio_rustls::rustls::pki_types::ServerName::try_from(pin::SERVER_NAME).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = tls.connect(name, stream).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream
        .write_all(b"POST /abd/v1/claim HTTP/1.1\r\nhost: abd\r\ncontent-length: 100\r\n\r\nx")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&answer));
    // The only connection is free again.
    let mut abd = Abd::connect(&bench.service).await;
    assert_eq!(code(abd.claim("job").await), (401, "unknown-key".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_that_contradict_themselves_are_refused() {
    let bench = bench().await;
    let open = |job: &str, order: Order, bitmaps| {
        bench
            .service
            .open_job(JobGrant { job: job.into(), order, bitmaps })
            .map(drop)
            .unwrap_err()
            .to_string()
    };
    let base = Tree { size: ByteCount::new(65537), root: None };
    let changed = || order(&bench.store, "job", backup_work(&[(65537, Start::Changed { base })]));
    assert!(open("other", changed(), vec![Some(vec![0])]).contains("for job job"));
    assert!(open("job", changed(), vec![]).contains("0 bitmaps for 1 disks"));
    assert!(open("job", changed(), vec![None]).contains("not there"));
    assert!(open("job", changed(), vec![Some(vec![0; 9])]).contains("9 bytes"));
    let plain = order(&bench.store, "job", backup_work(&[(512, Start::Nothing)]));
    assert!(open("job", plain.clone(), vec![Some(vec![0])]).contains("does not use"));
    let smaller = order(&bench.store, "job", backup_work(&[(512, Start::Compare { base })]));
    assert!(open("job", smaller, vec![None]).contains("its base"));
    let mut limited = plain.clone();
    let Work::Backup { rate_limit, disks, .. } = &mut limited.work else { panic!("a backup") };
    *rate_limit = Some(ByteCount::new(65_535));
    let mut audited = disks.clone();
    assert!(open("job", limited.clone(), vec![None]).contains("rate limit"));
    audited[0].audit = Some(Audit::with_seed(1));
    limited.work = Work::Backup {
        level: 1,
        pack_size: 1 << 20,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks: false,
        disks: audited,
    };
    assert!(open("job", limited, vec![None]).contains("audit without a bitmap"));
    let mut foreign = plain.clone();
    foreign.id_key.0[0] ^= 1;
    assert!(open("job", foreign, vec![None]).contains("another store"));
    let kept =
        bench.service.open_job(JobGrant { job: "job".into(), order: plain.clone(), bitmaps: vec![None] });
    assert!(open("job", plain.clone(), vec![None]).contains("open already"));
    drop(kept);
    let again = bench.service.open_job(JobGrant { job: "job".into(), order: plain, bitmaps: vec![None] });
    assert!(again.is_ok(), "a job that was closed can be opened again");
}
