//! A pool that changes in the middle: sessions that end, masters that move, hosts that fall silent.

mod peer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peer::{Answer, Outcome, Peer, Request, TASK, http, json_api, options, task_record};
use serde_json::{Value as Json, json};
use xapi::{Client, Effect, Event, Kind, Options, PowerState, Ref, Vm};

const POOL: &str = "b0b00000-0000-4000-8000-000000000001";

/// A host that is the master or not, with sessions that it forgets.
#[derive(Default)]
struct Host {
    /// Address of the master, where that is another one.
    master: Mutex<Option<&'static str>>,
    session: Mutex<Option<String>>,
    logins: AtomicUsize,
    /// Calls that came past the check of the session.
    executed: Mutex<Vec<String>>,
}

impl Host {
    fn slave(self: Arc<Self>, master: &'static str) -> Arc<Self> {
        *self.master.lock().expect("no panic") = Some(master);
        self
    }

    /// The pool, whose members are 127.0.0.1 and 127.0.0.2.
    fn answer(
        &self,
        method: &str,
        params: &[Json],
        script: impl Fn(&str, &[Json]) -> Option<Outcome>,
    ) -> Outcome {
        if let Some(master) = *self.master.lock().expect("no panic") {
            return Err(vec!["HOST_IS_SLAVE", master]);
        }
        let mut session = self.session.lock().expect("no panic");
        if method == "session.login_with_password" {
            let number = self.logins.fetch_add(1, Ordering::SeqCst);
            *session = Some(format!("OpaqueRef:session-{number}"));
            return Ok(json!(session.clone()));
        }
        if session.as_deref() != params[0].as_str() {
            // A peer's outcome has static words.
            let given = params[0].as_str().expect("a session").to_owned();
            return Err(vec!["SESSION_INVALID", given.leak()]);
        }
        self.executed.lock().expect("no panic").push(method.to_owned());
        if let Some(outcome) = script(method, params) {
            return outcome;
        }
        Ok(match method {
            "pool.get_all" => json!(["OpaqueRef:pool"]),
            "pool.get_all_records" => json!({"OpaqueRef:pool": {"uuid": POOL, "master": "OpaqueRef:h1"}}),
            "host.get_all_records" => {
                json!({"OpaqueRef:h1": {"address": "127.0.0.1"}, "OpaqueRef:h2": {"address": "127.0.0.2"}})
            }
            "VM.get_by_name_label" => json!([]),
            "event.from" => json!({"events": [], "token": "1,1", "valid_ref_counts": {}}),
            _ => json!(""),
        })
    }

    fn forget_sessions(&self) {
        *self.session.lock().expect("no panic") = None;
    }

    fn executed(&self, method: &str) -> usize {
        self.executed.lock().expect("no panic").iter().filter(|call| *call == method).count()
    }

    fn handler(self: &Arc<Self>) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
        self.scripted(|_, _| None)
    }

    fn scripted(
        self: &Arc<Self>,
        script: impl Fn(&str, &[Json]) -> Option<Outcome> + Send + Sync + 'static,
    ) -> impl Fn(&Request) -> Answer + Send + Sync + 'static {
        let host = self.clone();
        json_api(move |method, params| host.answer(method, params, &script))
    }
}

fn hasty(peer: &Peer) -> Options {
    let mut options = options(&peer.url());
    options.timeouts.event = Duration::from_millis(200);
    options.timeouts.outage = Duration::from_millis(300);
    options.timeouts.connect = Duration::from_millis(500);
    options
}

/// Two members; the first is the master.
async fn pair() -> (Arc<Host>, Peer, Arc<Host>, Peer) {
    let first = Arc::<Host>::default();
    let second = Arc::<Host>::default().slave("127.0.0.1");
    let first_peer = Peer::start(first.handler()).await;
    let address = format!("127.0.0.2:{}", first_peer.address.port());
    let second_peer = Peer::start_at(&address, second.handler()).await;
    (first, first_peer, second, second_peer)
}

fn vm() -> Ref<Vm> {
    Ref::from_opaque("OpaqueRef:1")
}

#[tokio::test]
async fn an_ended_session_is_renewed_and_the_change_made_once() {
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.handler()).await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    host.forget_sessions();
    client.set_name_label(&vm(), "x").await.expect("sent again under another session");
    host.forget_sessions();
    client.get_by_name_label::<Vm>("x").await.expect("read again");
    assert_eq!((host.executed("VM.set_name_label"), host.logins.load(Ordering::SeqCst)), (1, 3));
    client.close().await.expect("logout");
}

#[tokio::test]
async fn a_pool_that_never_accepts_its_sessions_is_given_up() {
    let peer = Peer::start(json_api(|method, params| match method {
        "session.login_with_password" => Ok(json!(null)),
        _ => Err(vec!["SESSION_INVALID", params[0].as_str().expect("session").to_owned().leak()]),
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let error = client.set_name_label(&vm(), "x").await.expect_err("endless");
    assert_eq!((error.kind(), error.effect()), (&Kind::SessionInvalid, Effect::None));
    assert!(!format!("{error:?}").contains(peer::SESSION), "{error:?}");
    assert_eq!(peer.methods().iter().filter(|method| *method == "VM.set_name_label").count(), 5);
}

#[tokio::test]
async fn an_invalid_session_of_somebody_else_is_the_operations_own_failure() {
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.scripted(|method, _| match method {
        "VM.set_name_label" => Some(Err(vec!["SESSION_INVALID", "OpaqueRef:internal"])),
        _ => None,
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let error = client.set_name_label(&vm(), "x").await.expect_err("it may have been half done");
    assert_eq!((error.kind(), error.effect()), (&Kind::SessionInvalid, Effect::Failed));
    client.get_by_name_label::<Vm>("x").await.expect("our session is still good");
    assert_eq!((host.executed("VM.set_name_label"), host.logins.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_master_that_hands_over_is_followed() {
    let (first, first_peer, second, second_peer) = pair().await;
    let client = Client::connect(hasty(&first_peer)).await.expect("login");
    *first.master.lock().expect("no panic") = Some("127.0.0.2");
    *second.master.lock().expect("no panic") = None;
    client.set_name_label(&vm(), "x").await.expect("made at the new master");
    assert_eq!(client.endpoint().await.address(), second_peer.address.to_string());
    assert_eq!((first.executed("VM.set_name_label"), second.executed("VM.set_name_label")), (0, 1));
    client.close().await.expect("logout");
}

#[tokio::test]
async fn members_are_asked_where_the_master_fell_silent() {
    let (first, first_peer, second, second_peer) = pair().await;
    let client = Client::connect(hasty(&first_peer)).await.expect("login");
    client.learn_pool().await.expect("learned");
    first_peer.stop().await;
    let takes_over = {
        let second = second.clone();
        tokio::spawn(async move {
            // The members need their time to elect another master.
            tokio::time::sleep(Duration::from_millis(50)).await;
            *second.master.lock().expect("no panic") = None;
        })
    };
    let waits = client.clone();
    let other = tokio::spawn(async move { waits.get_by_name_label::<Vm>("x").await });
    client.set_name_label(&vm(), "x").await.expect_err("the connection was cut, or nobody was there");
    takes_over.await.expect("no panic");
    other.await.expect("no panic").expect("the read waits until there is a master");
    client.set_name_label(&vm(), "x").await.expect("made at the new master");
    assert_eq!(client.endpoint().await.address(), second_peer.address.to_string());
    assert_eq!(first.executed("VM.set_name_label"), 0);
    assert_eq!(second.logins.load(Ordering::SeqCst), 1, "one search serves every call");
    client.close().await.expect("logout");
}

#[tokio::test]
async fn configured_members_serve_where_the_known_address_is_dead() {
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.handler()).await;
    let mut options = options("http://127.0.0.1:1");
    options.members = vec![peer.url().parse().expect("address")];
    let client = Client::connect(options.clone()).await.expect("login");
    assert_eq!(client.endpoint().await.address(), peer.address.to_string());
    client.close().await.expect("logout");
    peer.stop().await;
    let error = Client::connect(options).await.expect_err("nobody is there");
    assert_eq!(error.to_string(), "session.login_with_password: http://127.0.0.1:1 cannot be reached");
}

#[tokio::test]
async fn an_outage_ends_in_an_error_and_later_calls_do_not_wait_again() {
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.handler()).await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    peer.stop().await;
    let started = std::time::Instant::now();
    let error = client.get_by_name_label::<Vm>("x").await.expect_err("dead");
    assert_eq!(error.kind(), &Kind::Unreachable, "{error}");
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    let started = std::time::Instant::now();
    let error = client.vm_destroy(&vm()).await.expect_err("dead");
    assert_eq!((error.kind(), error.effect()), (&Kind::Unreachable, Effect::None));
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
    client.close().await.expect_err("nobody takes the goodbye");
    client.close().await.expect("twice is once");
    let error = client.get_by_name_label::<Vm>("x").await.expect_err("closed");
    assert!(!error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_change_whose_fate_is_unknown_is_not_repeated() {
    let host = Arc::<Host>::default();
    let cut = Arc::new(AtomicUsize::new(0));
    let (count, api) = (cut.clone(), host.handler());
    let peer = Peer::start(move |request| match request.call().0.as_str() {
        // Taken in, never answered.
        "VM.destroy" | "VM.get_record" => {
            count.fetch_add(1, Ordering::SeqCst);
            Answer::Last(Vec::new())
        }
        _ => api(request),
    })
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let error = client.vm_destroy(&vm()).await.expect_err("cut off");
    assert_eq!((error.kind(), error.effect()), (&Kind::Unreachable, Effect::Unknown), "{error:?}");
    assert!(!error.is_certainly_not_executed());
    assert_eq!(cut.load(Ordering::SeqCst), 1);
    // A read is made again, but not for ever.
    let error = client.get_record(&vm()).await.expect_err("cut off every time");
    assert_eq!(error.kind(), &Kind::Unreachable);
    assert_eq!(cut.load(Ordering::SeqCst), 6);
    // The session outlived the broken connections.
    client.get_by_name_label::<Vm>("x").await.expect("the pool is there");
    assert_eq!(host.logins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_goes_silent_is_replaced() {
    let host = Arc::<Host>::default();
    let (asked, api) = (AtomicUsize::new(0), host.handler());
    let peer = Peer::start(move |request| match request.call().0.as_str() {
        // The first question disappears, as behind a firewall that forgot the connection.
        "VM.get_by_name_label" if asked.fetch_add(1, Ordering::SeqCst) == 0 => Answer::Silence,
        _ => api(request),
    })
    .await;
    let mut options = hasty(&peer);
    options.timeouts.call = Duration::from_millis(100);
    let client = Client::connect(options).await.expect("login");
    client.get_by_name_label::<Vm>("x").await.expect("asked again");
    assert_eq!(host.logins.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_host_that_starts_is_waited_for() {
    let host = Arc::<Host>::default();
    let booting = AtomicUsize::new(0);
    let peer = Peer::start(host.scripted(move |method, _| {
        let early = matches!(method, "VM.set_name_label" | "pool.get_all")
            && booting.fetch_add(1, Ordering::SeqCst) < 3;
        early.then(|| Err(vec!["HOST_STILL_BOOTING"]))
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    client.set_name_label(&vm(), "x").await.expect("made when the toolstack was up");
}

#[tokio::test]
async fn a_new_master_without_a_pin_is_named_at_once() {
    let first = Arc::<Host>::default();
    let certificate = rcgen::generate_simple_self_signed(["x".to_owned()]).expect("certificate");
    let peer = tls_peer("127.0.0.1:0", &certificate, first.clone()).await;
    let address = format!("127.0.0.2:{}", peer.address.port());
    let _second = tls_peer(&address, &certificate, Arc::default()).await;
    let mut options = hasty(&peer);
    options.endpoint = format!("https://{}", peer.address).parse().expect("address");
    options.timeouts.outage = Duration::from_secs(60);
    let pin = xapi::probe(&options.endpoint).await.expect("certificate");
    options.pins = Arc::new(BTreeMap::from([(options.endpoint.address(), pin)]));
    let client = Client::connect(options).await.expect("login");
    *first.master.lock().expect("no panic") = Some("127.0.0.2");
    let error = client.set_name_label(&vm(), "x").await.expect_err("not pinned");
    let expected = Kind::TlsUntrusted { address, found: pin };
    assert_eq!((error.kind(), error.effect()), (&expected, Effect::None), "{error}");
}

async fn tls_peer(address: &str, made: &rcgen::CertifiedKey<rcgen::KeyPair>, host: Arc<Host>) -> Peer {
    use tokio_rustls::rustls;
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("certificate");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
    let mut peer = Peer::detached();
    peer.address = listener.local_addr().expect("address");
    let server = peer.clone();
    tokio::spawn(async move {
        let handler: Arc<peer::Handler> = Arc::new(host.handler());
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                server.serve(stream, handler.clone());
            }
        }
    });
    peer
}

#[tokio::test]
async fn a_host_that_left_the_pool_is_not_taken_for_it() {
    let (_first, first_peer, second, second_peer) = pair().await;
    let client = Client::connect(hasty(&first_peer)).await.expect("login");
    client.learn_pool().await.expect("learned");
    // The second host was ejected: it is the master of a pool of its own, with the same password.
    second_peer.stop().await;
    *second.master.lock().expect("no panic") = None;
    let other = second.scripted(|method, _| match method {
        "pool.get_all_records" => {
            Some(Ok(json!({"OpaqueRef:pool": {"uuid": "00000000-0000-4000-8000-00000000beef"}})))
        }
        _ => None,
    });
    let ejected = Peer::start_at(&second_peer.address.to_string(), other).await;
    first_peer.stop().await;
    let error = client.vm_destroy(&vm()).await.expect_err("our pool is away");
    assert!(!matches!(error.kind(), Kind::Other), "{error}");
    let error = client.vm_destroy(&vm()).await.expect_err("our pool is away");
    assert!(error.to_string().contains("answers for another pool"), "{error}");
    assert_eq!(second.executed("VM.destroy"), 0);
    let goodbyes = ejected.methods().into_iter().filter(|method| method == "session.logout").count();
    assert_eq!(goodbyes, second.logins.load(Ordering::SeqCst), "no session is left there");
}

#[tokio::test]
async fn a_task_is_waited_for_under_another_session() {
    let host = Arc::<Host>::default();
    let (forget, reads) = (host.clone(), AtomicUsize::new(0));
    let peer = Peer::start({
        let api = host.scripted(move |method, _| match method {
            "Async.VM.snapshot" => Some(Ok(json!(TASK))),
            "task.get_record" => Some(Ok(match reads.fetch_add(1, Ordering::SeqCst) {
                0 => task_record("pending", "", &[]),
                _ => task_record("success", "<value>OpaqueRef:snapshot</value>", &[]),
            })),
            _ => None,
        });
        move |request| {
            let answer = api(request);
            if request.call().0 == "Async.VM.snapshot" {
                forget.forget_sessions();
            }
            answer
        }
    })
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let snapshot = client.vm_snapshot(&vm(), "s", &[]).await.expect("the task went on");
    assert_eq!(snapshot.as_str(), "OpaqueRef:snapshot");
    assert_eq!((host.executed("Async.VM.snapshot"), host.executed("task.destroy")), (1, 1));
}

#[tokio::test]
async fn a_task_that_the_pool_forgot_leaves_the_outcome_open() {
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.scripted(|method, _| match method {
        "Async.VM.hard_shutdown" => Some(Ok(json!(TASK))),
        "task.get_record" | "task.destroy" => Some(Err(vec!["HANDLE_INVALID", "task", TASK])),
        _ => None,
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let error = client.vm_hard_shutdown(&vm()).await.expect_err("forgotten");
    // Not that the VM does not exist.
    assert_eq!((error.kind(), error.effect()), (&Kind::Lost, Effect::Unknown), "{error:?}");
    assert!(
        error.to_string().starts_with("VM.hard_shutdown: the pool has forgotten the operation"),
        "{error}"
    );
}

fn vm_event(power_state: &str) -> Json {
    json!({"id": "1", "timestamp": "0.0", "class": "vm", "operation": "mod", "ref": "OpaqueRef:1",
        "snapshot": {"power_state": power_state}})
}

#[tokio::test]
async fn a_stream_of_events_starts_over_with_a_new_session() {
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.scripted(|method, params| match method {
        // The token of the first session is ahead of what the restarted toolstack counts.
        "event.from" => Some(match params[2].as_str().expect("token") {
            "" => Ok(json!({"events": [vm_event("Halted")], "token": "900,0", "valid_ref_counts": {}})),
            _ => Ok(json!({"events": [], "token": "900,0", "valid_ref_counts": {}})),
        }),
        _ => None,
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let mut events = client.events(&["vm"]);
    assert!(matches!(events.next().await.expect("event"), Event::Changed(_)));
    host.forget_sessions();
    assert_eq!(events.next().await.expect("event"), Event::Resync);
    assert!(matches!(events.next().await.expect("event"), Event::Changed(_)), "everything follows again");
}

#[tokio::test]
async fn repeated_and_foreign_events_do_no_harm() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.scripted(move |method, _| match method {
        "VM.get_record" => Some(Ok(json!({"power_state": "Halted"}))),
        "event.from" => {
            let mut other = vm_event("Running");
            other["ref"] = json!("OpaqueRef:2");
            let events = match count.fetch_add(1, Ordering::SeqCst) {
                // The same state twice, then somebody else's, then the same answer again and again.
                0 => vec![vm_event("Halted"), vm_event("Halted"), other],
                1..4 => vec![vm_event("Halted")],
                _ => vec![vm_event("Running")],
            };
            Some(Ok(json!({"events": events, "token": "1,1", "valid_ref_counts": {}})))
        }
        _ => None,
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let running = |vm: &Vm| vm.power_state == PowerState::Running;
    let started = std::time::Instant::now();
    client.wait_vm(&vm(), running, Duration::from_secs(20)).await.expect("the VM, not the other one");
    let questions = asked.load(Ordering::SeqCst);
    // A token that does not move is not asked about at full speed.
    assert!(
        u128::try_from(questions).expect("few") * 100 <= started.elapsed().as_millis() + 300,
        "{questions}"
    );
}

#[tokio::test]
async fn events_that_are_always_lost_leave_reading() {
    let reads = AtomicUsize::new(0);
    let host = Arc::<Host>::default();
    let peer = Peer::start(host.scripted(move |method, _| match method {
        "VM.get_record" => {
            let state = if reads.fetch_add(1, Ordering::SeqCst) < 2 { "Running" } else { "Halted" };
            Some(Ok(json!({"power_state": state})))
        }
        "event.from" => Some(Err(vec!["EVENTS_LOST"])),
        _ => None,
    }))
    .await;
    let client = Client::connect(hasty(&peer)).await.expect("login");
    let halted = |vm: &Vm| vm.power_state == PowerState::Halted;
    client.wait_vm(&vm(), halted, Duration::from_secs(20)).await.expect("seen by reading");
}

#[tokio::test]
async fn a_wait_ends_in_time_although_the_pool_is_silent() {
    let host = Arc::<Host>::default();
    let api = host.handler();
    let peer = Peer::start(move |request| match request.call().0.as_str() {
        "VM.get_record" => Answer::Bytes(http("503 Service Unavailable", "text/plain", "later")),
        _ => api(request),
    })
    .await;
    let mut options = hasty(&peer);
    options.timeouts.outage = Duration::from_secs(600);
    let client = Client::connect(options).await.expect("login");
    let vm = vm();
    let waited = client.wait_vm(&vm, |_| true, Duration::ZERO);
    let error =
        tokio::time::timeout(Duration::from_secs(30), waited).await.expect("in time").expect_err("503");
    assert!(matches!(error.kind(), Kind::Unreachable | Kind::Timeout), "{error}");
}
