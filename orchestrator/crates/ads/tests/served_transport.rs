//! The way to `abd serve` and back: the suite of all backends over it, and everything that goes wrong on it.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Backend, ErrorKind, ServeLimits, Store};
use std::cell::RefCell;
use std::sync::Arc;
use support::memory::Memory;
use support::served::{Everything, Served};
use support::{backup, chain, disk, restore, suite};

fn serve(backend: Arc<dyn Backend>) -> Served {
    Served::start(Arc::new(Everything { backend }), ServeLimits::default())
}

#[test]
fn what_is_behind_a_server_passes_the_suite() {
    let servers = RefCell::new(Vec::new());
    suite::run(&|| {
        let served = serve(Arc::new(Memory::default()));
        let backend = served.backend("client");
        servers.borrow_mut().push(served);
        backend
    });
}

#[test]
fn another_key_than_the_servers_is_named_and_nothing_is_sent() {
    let served = serve(Arc::new(Memory::default()));
    let wrong = served.address("client").replace(&served.key.to_string(), &"ab".repeat(32));
    let error = Store::open_at(&wrong.parse().unwrap()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{}", chain(&error));
    let text = chain(&error);
    assert!(text.contains(&served.key.to_string()) && text.contains(&"ab".repeat(32)), "{text}");
    assert!(text.contains("abd://127.0.0.1"), "{text}");
}

#[test]
fn a_server_that_is_not_there_is_an_error_with_its_address() {
    let mut served = serve(Arc::new(Memory::default()));
    let place = served.place("client");
    served.stop();
    let error = Store::open_at(&place).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote, "{}", chain(&error));
    assert!(chain(&error).contains("abd://127.0.0.1"), "{}", chain(&error));
}

/// A job goes on where its server is started anew.
#[test]
fn a_server_that_is_started_anew_is_found_again() {
    let memory: Arc<dyn Backend> = Arc::new(Memory::default());
    let mut served = serve(memory.clone());
    let at = served.server.as_ref().unwrap().addresses()[0];
    let bytes = disk(1, 12 * 65536 + 512);
    let store = Store::init_at(&served.place("client")).unwrap();
    served.stop();
    let identity = served.identity("server");
    let again = std::thread::scope(|scope| {
        let job = scope.spawn(|| backup(&store, "vm", &bytes).unwrap());
        let offer = Arc::new(Everything { backend: memory });
        let listen = [at];
        let start = ads::Server::start(offer, &identity, &listen, ServeLimits::default());
        served.server = Some(served.runtime.block_on(start).unwrap());
        job.join().unwrap()
    });
    let tree = store.point(again).unwrap().point.disks[0].tree;
    assert!(restore(&store, &tree).unwrap() == bytes);
}
