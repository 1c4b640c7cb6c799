//! The calls of an ABD that only measures: bounded, for its own order alone, and without a trace in the store.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{JobEvent, JobGrant, JobHandle, Service, Store};
use blocks::ByteCount;
use bytes::Bytes;
use hyper::Method;
use pin::Identity;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::client::{Abd, Refused, backup_work, order};
use tempfile::TempDir;
use wire::*;

const SEND: u64 = 8 << 20;

struct Bench {
    dir: TempDir,
    store: Arc<Store>,
    service: Service,
}

impl Bench {
    async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = Arc::new(Store::init(&dir.path().join("store")).unwrap());
        let listen = "127.0.0.1:0".parse().unwrap();
        let identity = Identity::generate().unwrap();
        let service = Service::start(store.clone(), identity, &[listen]).await.unwrap();
        Self { dir, store, service }
    }

    fn grant(&self, work: Work, bitmaps: Vec<Option<Vec<u8>>>) -> JobGrant {
        JobGrant { job: "job".into(), order: order(&self.store, "job", work), bitmaps }
    }

    async fn abd(&self, work: Work, bitmaps: Vec<Option<Vec<u8>>>) -> (JobHandle, Abd) {
        let job = self.service.open_job(self.grant(work, bitmaps)).unwrap();
        let abd = Abd::connect(&self.service).await;
        job.admit(abd.key()).unwrap();
        (job, abd)
    }

    fn files(&self) -> BTreeSet<PathBuf> {
        fn walk(dir: &Path, found: &mut BTreeSet<PathBuf>) {
            for item in std::fs::read_dir(dir).unwrap() {
                let path = item.unwrap().path();
                if path.is_dir() {
                    walk(&path, found);
                }
                found.insert(path);
            }
        }
        let mut found = BTreeSet::new();
        walk(self.dir.path(), &mut found);
        found
    }
}

fn diagnose() -> Work {
    Work::Diagnose { read: ByteCount::new(1 << 20), send: ByteCount::new(SEND) }
}

fn nothing_measured() -> Diagnosis {
    let none = || Failure::new("none", "not measured");
    Diagnosis {
        clock_ms: 1,
        processors: 1,
        milestones: Vec::new(),
        connect: Err(none()),
        round_trip_us: Err(none()),
        read: Err(none()),
        send: Err(none()),
    }
}

fn done() -> JobDone {
    JobDone { outcome: Ok(()), disk: None, disks: Vec::new(), usage: Usage::default(), passes: Vec::new() }
}

async fn sink(abd: &mut Abd, size: usize) -> Result<u64, Refused> {
    let body = abd.raw(Method::POST, PATH_SINK, Bytes::from(vec![0; size])).await?;
    Ok(decode::<SinkAnswer>(&body).unwrap().taken.get())
}

fn code<T>(refused: Result<T, Refused>) -> (u16, String) {
    let (status, failure) = refused.err().expect("refused");
    (status, failure.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_thrown_away_up_to_twice_of_what_the_order_says() {
    let bench = Bench::new().await;
    let before = bench.files();
    let (_job, mut abd) = bench.abd(diagnose(), Vec::new()).await;
    assert_eq!(code(sink(&mut abd, 1).await), (403, "not-in-order".into()), "not claimed yet");
    abd.claim("job").await.unwrap();
    assert_eq!(code(sink(&mut abd, MAX_SINK_PIECE + 1).await), (413, "bad-message".into()));
    assert_eq!(sink(&mut abd, 0).await.unwrap(), 0);
    for piece in 1..=2 * SEND / MAX_SINK_PIECE as u64 {
        assert_eq!(sink(&mut abd, MAX_SINK_PIECE).await.unwrap(), piece * MAX_SINK_PIECE as u64);
    }
    assert_eq!(code(sink(&mut abd, 1).await), (403, "not-in-order".into()));
    assert_eq!(bench.files(), before, "nothing of it is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diagnosis_is_told_once_and_before_the_last_word() {
    let bench = Bench::new().await;
    let (job, mut abd) = bench.abd(diagnose(), Vec::new()).await;
    abd.claim("job").await.unwrap();
    let early = abd.ask::<_, ProgressAnswer>(PATH_JOB_DONE, &done()).await;
    assert_eq!(code(early), (403, "not-in-order".into()));
    let milestone = Milestone { name: "up".into(), at_ms: 1 };
    let long = Diagnosis { milestones: vec![milestone; MAX_MILESTONES + 1], ..nothing_measured() };
    assert_eq!(code(abd.ask::<_, ProgressAnswer>(PATH_DIAGNOSIS, &long).await), (400, "bad-message".into()));
    for clock_ms in [1, 2] {
        let diagnosis = Diagnosis { clock_ms, ..nothing_measured() };
        let _: ProgressAnswer = abd.ask(PATH_DIAGNOSIS, &diagnosis).await.unwrap();
    }
    let _: ProgressAnswer = abd.ask(PATH_JOB_DONE, &done()).await.unwrap();
    job.close();
    let mut heard = Vec::new();
    while let Some(event) = job.events().recv().await {
        heard.push(event);
    }
    let told = heard.iter().filter(|event| matches!(event, JobEvent::Diagnosed(_)));
    assert_eq!(told.collect::<Vec<_>>(), [&JobEvent::Diagnosed(nothing_measured())]);
    assert!(matches!(heard.last(), Some(JobEvent::Done(_))), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_abd_with_a_job_can_neither_send_nor_diagnose_and_one_without_has_no_disks() {
    let bench = Bench::new().await;
    let (job, mut abd) = bench.abd(backup_work(&[(512, Start::Nothing)]), vec![None]).await;
    abd.claim("job").await.unwrap();
    assert_eq!(code(sink(&mut abd, 1).await), (403, "not-in-order".into()));
    let told = abd.ask::<_, ProgressAnswer>(PATH_DIAGNOSIS, &nothing_measured()).await;
    assert_eq!(code(told), (403, "not-in-order".into()));
    drop(job);

    let (_job, mut abd) = bench.abd(diagnose(), Vec::new()).await;
    abd.claim("job").await.unwrap();
    let known = abd.ask::<_, KnownAnswer>(PATH_KNOWN, &KnownQuestion { ids: Vec::new() }).await;
    assert_eq!(code(known), (403, "not-in-order".into()));
    let question = NodesQuestion { disk: 0, level: 1, first: 0, count: 1 };
    let nodes = abd.ask::<_, NodesAnswer>(PATH_NODES, &question).await;
    assert_eq!(code(nodes), (403, "not-in-order".into()));
    let put = abd.raw(Method::PUT, &format!("{PATH_PACKS}{}", "0".repeat(64)), Bytes::new()).await;
    assert_eq!(code(put), (403, "not-in-order".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_diagnosis_that_sends_too_much_or_has_bitmaps_is_not_granted() {
    let bench = Bench::new().await;
    let much = Work::Diagnose { read: ByteCount::new(0), send: ByteCount::new(MAX_SINK.get() + 1) };
    for (work, bitmaps, part) in [(much, Vec::new(), "is to send"), (diagnose(), vec![None], "no bitmaps")] {
        let error = bench.service.open_job(bench.grant(work, bitmaps)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}
