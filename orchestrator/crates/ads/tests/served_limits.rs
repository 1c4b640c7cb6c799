//! What clients may cost a server: who is slow, sends too much, or sends nonsense is cut, and nobody else notices.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Backend, Role, ServeLimits, timestamp};
use blocks::ByteCount;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use support::memory::Memory;
use support::served::{Everything, Served, Vault};
use support::{disk, point, store_disk};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Far over everything that is waited for here, on a machine that has a lot to do.
const PATIENCE: Duration = Duration::from_secs(60);

fn limits(stall_ms: u64) -> ServeLimits {
    ServeLimits { stall: Duration::from_millis(stall_ms), ..ServeLimits::default() }
}

fn put_head(key: &str, size: u64) -> String {
    format!("PUT /abd/1/objects/{key} HTTP/1.1\r\nhost: abd\r\ncontent-length: {size}\r\n\r\n")
}

fn pack_key() -> String {
    format!("packs/ab/{}", "ab".repeat(32))
}

/// What the server says until it closes the connection.
async fn hear(stream: &mut TlsStream<TcpStream>) -> String {
    let mut bytes = Vec::new();
    // A connection that is cut has no clean end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("the server closes it");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn who_sends_nothing_more_or_drop_by_drop_is_cut() {
    let vault = Vault::on(Arc::new(Memory::default()), false, limits(300));
    vault.client("client", Role::Orchestrator);
    let (mut silent, mut dripping) = (vault.served.raw("client"), vault.served.raw("client"));
    vault.served.runtime.block_on(async {
        silent.write_all(put_head(&pack_key(), 1 << 20).as_bytes()).await.unwrap();
        silent.write_all(&[1; 1000]).await.unwrap();
        let said = hear(&mut silent).await;
        assert!(said.contains("408") && said.contains("too-slow"), "{said}");
        // Each drop comes in time, all of them do not.
        dripping.write_all(put_head(&pack_key(), 1000).as_bytes()).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(dripping);
        let drip = tokio::spawn(async move {
            while writer.write_all(&[1]).await.is_ok() && writer.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut said = [0; 12];
        timeout(PATIENCE, reader.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(&said, b"HTTP/1.1 408");
        drip.abort();
    });
}

#[test]
fn who_does_not_take_his_answer_is_cut_and_his_turn_is_free_again() {
    let memory = Arc::new(Memory::default());
    memory.put("packs/00/large", &vec![7; 40 << 20]).unwrap();
    let limits = ServeLimits { calls_per_client: 1, ..limits(300) };
    let served = Served::start(Arc::new(Everything { backend: memory }), limits);
    let mut deaf = served.raw("client");
    let ask = "GET /abd/1/objects/packs/00/large HTTP/1.1\r\nhost: abd\r\n\r\n";
    served.runtime.block_on(deaf.write_all(ask.as_bytes())).unwrap();
    let mut first = [0; 100];
    served.runtime.block_on(deaf.read_exact(&mut first)).unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"));
    // The only turn is his until he is cut.
    let door = served.backend("client");
    assert_eq!(door.head("packs/00/large").unwrap(), Some(40 << 20));
    let rest = served.runtime.block_on(hear(&mut deaf));
    assert!(rest.len() < 40 << 20, "the answer was cut");
}

#[test]
fn who_announces_packs_and_sends_none_holds_his_own_share_and_nobody_elses() {
    let limits = ServeLimits {
        memory: ByteCount::new(160 << 20),
        memory_per_client: ByteCount::new(64 << 20),
        ..limits(60_000)
    };
    let vault = Vault::on(Arc::new(Memory::default()), false, limits);
    vault.client("greedy", Role::Orchestrator);
    let mut held: Vec<_> = (0..8).map(|_| vault.served.raw("greedy")).collect();
    vault.served.runtime.block_on(async {
        for stream in &mut held {
            stream.write_all(put_head(&pack_key(), 64 << 20).as_bytes()).await.unwrap();
            stream.write_all(&[1; 100]).await.unwrap();
        }
    });
    let store = Arc::new(ads::Store::open_on(vault.client("honest", Role::Orchestrator)).unwrap());
    let lease = store.lease("job", &[]).unwrap();
    let tree = store_disk(&store, &disk(1, 9 * 65536)).unwrap();
    lease.commit(&point(&store, "vm", &timestamp(SystemTime::now()), &[tree])).unwrap();
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read() {
    let vault = Vault::start();
    vault.client("client", Role::Orchestrator);
    for (key, size) in [(pack_key(), (64 << 20) + 1), (format!("pins/{}.json", "ab".repeat(32)), 1 << 20)] {
        let mut stream = vault.served.raw("client");
        vault.served.runtime.block_on(async {
            stream.write_all(put_head(&key, size).as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let said = hear(&mut stream).await;
            assert!(said.starts_with("HTTP/1.1 413") && said.contains("too-large"), "{said}");
        });
    }
}

#[test]
fn nonsense_ends_its_own_connection_and_nothing_else() {
    let vault = Vault::start();
    let door = vault.client("client", Role::Reader);
    let at = vault.served.server.as_ref().unwrap().addresses()[0];
    let many = "x: y\r\n".repeat(100);
    let long = format!("GET /abd/1/objects/{} HTTP/1.1\r\nhost: abd\r\n\r\n", "a".repeat(100_000));
    let said = [
        "\0\0\0\0\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".into(),
        format!("GET /abd/1/about HTTP/1.1\r\nhost: abd\r\n{many}\r\n"),
        long,
        "PUT /abd/1/objects/a HTTP/1.1\r\nhost: abd\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n".into(),
        "GET /abd/1/objects/../../etc/passwd HTTP/1.1\r\nhost: abd\r\nconnection: close\r\n\r\n".into(),
    ];
    for text in said {
        let mut stream = vault.served.raw("client");
        vault.served.runtime.block_on(async {
            // It may be closed before all of this is said.
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
            let heard = hear(&mut stream).await;
            assert!(heard.is_empty() || heard.starts_with("HTTP/1.1 4"), "{heard}");
        });
    }
    vault.served.runtime.block_on(async {
        let mut plain = TcpStream::connect(at).await.unwrap();
        plain.write_all(b"GET /abd/1/about HTTP/1.1\r\n\r\n").await.unwrap();
        let mut bytes = Vec::new();
        let _ = timeout(PATIENCE, plain.read_to_end(&mut bytes)).await.unwrap();
        assert!(!bytes.starts_with(b"HTTP"), "no word without TLS");
    });
    assert!(door.get("config.json", 10_000).is_ok());
}

#[test]
fn a_rate_spreads_what_a_client_sends_over_time() {
    let rate = Some(ByteCount::new(1 << 20));
    let limits = ServeLimits { rate, ..ServeLimits::default() };
    let served = Served::start(Arc::new(Everything { backend: Arc::new(Memory::default()) }), limits);
    let door = served.backend("client");
    let began = Instant::now();
    door.put("packs/00/a", &vec![1; 1 << 20]).unwrap();
    door.put("packs/00/b", b"b").unwrap();
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
}
