//! Object storage: servers that none of us wrote pass the suite of all backends, and what fails in passing is no failure.
//! Without `ABD_FOREIGN_DIR` these tests say that they are skipped.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Backend, CopyOptions, Depth, ErrorKind, GcOptions, Place, Probe, Scope, Store};
use std::cell::Cell;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use support::cluster::Cluster;
use support::memory::Memory;
use support::servers::{ACCESS_KEY, Kind, Proxy, SECRET_KEY, Server, Trouble, store_at};
use support::{GO_ON, backup, chain, disk, restore, suite};
use tempfile::TempDir;

/// A server and a file with its keys.
struct Bench {
    server: Server,
    dir: TempDir,
}

impl Bench {
    fn start(kind: Kind) -> Option<Self> {
        let server = Server::start(kind)?;
        let dir = TempDir::new().unwrap();
        credentials(&dir);
        Some(Self { server, dir })
    }

    fn address(&self, prefix: &str) -> String {
        self.keyed(&self.server.store(prefix))
    }

    fn keyed(&self, address: &str) -> String {
        format!("{address}&credentials={}", self.dir.path().join("credentials").display())
    }
}

/// A file with the servers' keys.
fn credentials(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("credentials");
    let text = format!("[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n");
    std::fs::write(&path, text).unwrap();
    path
}

fn backend(address: &str) -> Arc<dyn Backend> {
    address.parse::<Place>().unwrap().backend().unwrap()
}

fn run_suite(bench: &Bench) {
    let count = Cell::new(0);
    suite::run(&|| {
        count.set(count.get() + 1);
        backend(&bench.address(&format!("suite/{}", count.get())))
    });
}

#[test]
fn rclone_passes_the_suite_and_ignores_conditions() {
    let Some(bench) = Bench::start(Kind::Rclone) else { return };
    run_suite(&bench);
    let probe = Probe::run(&*backend(&bench.address("probe"))).unwrap();
    println!("rclone: {probe:?}");
}

#[test]
fn seaweedfs_passes_the_suite() {
    let Some(bench) = Bench::start(Kind::Seaweed) else { return };
    run_suite(&bench);
    let probe = Probe::run(&*backend(&bench.address("probe"))).unwrap();
    println!("SeaweedFS: {probe:?}");
    wrong_keys_and_buckets_are_told(&bench);
}

/// Objects are kept by two of three servers: a store lives on while one of them is dead.
#[test]
fn several_nodes_pass_the_suite_and_one_of_them_may_die_in_between() {
    let Some(mut cluster) = Cluster::start() else { return };
    let dir = TempDir::new().unwrap();
    let keys = credentials(&dir);
    let address = |prefix: &str| format!("{}&credentials={}", cluster.store(prefix), keys.display());
    let count = Cell::new(0);
    suite::run(&|| {
        count.set(count.get() + 1);
        backend(&address(&format!("suite/{}", count.get())))
    });
    let place: Place = address("dying").parse().unwrap();
    let store = Store::init_at(&place).unwrap();
    let first = disk(1, 60 * 65536 + 512);
    let before = backup(&store, "before", &first).unwrap();
    cluster.stop_node(1);
    // By who had it open, and by who opens it.
    let second = disk(2, 60 * 65536 + 512);
    let during = backup(&store, "during", &second).unwrap();
    drop(store);
    let store = Arc::new(Store::open_at(&place).unwrap());
    assert!(store.skipped_packs().is_empty(), "{:?}", store.skipped_packs());
    for (id, bytes) in [(before, &first), (during, &second)] {
        assert!(restore(&store, &store.point(id).unwrap().point.disks[0].tree).unwrap() == *bytes);
    }
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    // And it is cleaned, and copied away.
    store.remove_point(before).unwrap();
    assert!(store.collect(&GcOptions::default(), &|_, _| ()).unwrap().removed > 0);
    let there = Arc::new(store.init_copy_on(Arc::new(Memory::default())).unwrap());
    let copied = store.copy_to(&there, &CopyOptions::default(), &GO_ON).unwrap();
    assert_eq!((copied.copied.len(), copied.stopped.is_none()), (1, true), "{copied:?}");
    assert!(there.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap().is_clean());
}

fn wrong_keys_and_buckets_are_told(bench: &Bench) {
    let other = bench.dir.path().join("other");
    std::fs::write(&other, "[default]\naws_access_key_id=nobody\naws_secret_access_key=x\n").unwrap();
    let address = format!("{}&credentials={}", bench.server.store("x"), other.display());
    let error = Store::open_at(&address.parse().unwrap()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{}", chain(&error));
    assert!(chain(&error).contains("s3://bucket/x/config.json"), "{}", chain(&error));
    let address = bench.address("x").replace("s3://bucket/", "s3://no-such-bucket/");
    let error = Store::init_at(&address.parse().unwrap()).map(drop).unwrap_err();
    assert!(chain(&error).contains("no-such-bucket"), "{}", chain(&error));
}

/// The server's certificate is known from a file, and where it is not, nothing is sent.
#[test]
fn a_certificate_of_ones_own_is_trusted_where_it_is_named() {
    let dir = TempDir::new().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (certificate, key) =
        (file("cert.pem", made.cert.pem()), file("key.pem", made.signing_key.serialize_pem()));
    let Some(server) = Server::start_with(Kind::Rclone, &["--cert", &certificate, "--key", &key]) else {
        return;
    };
    let keys = format!("[default]\naws_access_key_id={ACCESS_KEY}\naws_secret_access_key={SECRET_KEY}\n");
    let keys = file("credentials", keys);
    let address = format!("{}&credentials={keys}", server.store("tls").replace("http://", "https://"));
    let error = Store::open_at(&address.parse().unwrap()).map(drop).unwrap_err();
    assert!(chain(&error).contains("ertificate"), "{}", chain(&error));
    let store = Store::init_at(&format!("{address}&ca={certificate}").parse().unwrap()).unwrap();
    backup(&store, "vm", &disk(1, 65536)).unwrap();
}

/// Every third request fails in one of the four ways; nobody who uses the store notices.
#[test]
fn what_fails_in_passing_is_tried_again_and_nothing_is_lost() {
    const ALL: [Trouble; 4] = [Trouble::Internal, Trouble::SlowDown, Trouble::Cut, Trouble::LostAnswer];
    let Some(bench) = Bench::start(Kind::Rclone) else { return };
    let proxy = Proxy::start(bench.server.address, 3, &ALL);
    let address = bench.keyed(&store_at(proxy.address, "troubled"));
    let place: Place = address.parse().unwrap();
    let bytes = disk(1, 12 * 65536 + 512);
    let store = Store::init_at(&place).unwrap();
    let id = backup(&store, "vm", &bytes).unwrap();
    drop(store);
    let store = Store::open_at(&place).unwrap();
    assert!(store.skipped_packs().is_empty(), "{:?}", store.skipped_packs());
    assert!(restore(&store, &store.point(id).unwrap().point.disks[0].tree).unwrap() == bytes);
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    // What the server holds is looked at without the trouble.
    let direct = Store::open_on(backend(&bench.address("troubled"))).unwrap();
    assert!(direct.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap().is_clean());
    let large: Vec<u8> = (0..18_000_000_u32).map(|at| (at >> 3) as u8).collect();
    let through = backend(&address);
    through.put("packs/00/large", &large).unwrap();
    assert!(through.get("packs/00/large", 64 << 20).unwrap() == large);
    let struck = proxy.struck.load(Ordering::SeqCst);
    println!("{struck} requests were troubled");
    assert!(struck > 12, "each trouble came several times");
}

/// A server that refuses for good: the error names the object and what was said, in bounded time.
#[test]
fn a_server_that_is_not_there_is_an_error_with_its_address() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = TempDir::new().unwrap();
    let keys = dir.path().join("credentials");
    std::fs::write(&keys, "[default]\naws_access_key_id=a\naws_secret_access_key=b\n").unwrap();
    let address = format!("{}&credentials={}", store_at(closed, "x"), keys.display());
    let error = Store::open_at(&address.parse().unwrap()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(chain(&error).contains("s3://bucket/x/config.json"), "{}", chain(&error));
}
