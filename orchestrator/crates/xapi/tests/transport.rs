//! Sessions, encodings, trust and limits against a peer that answers as hosts do, or as they should not.

mod peer;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peer::{Answer, Peer, SESSION, http, json_api, options};
use serde_json::json;
use xapi::{Call, Client, Credentials, Kind, Observer, Protocol, Ref, Value, Verdict, Vm};

#[tokio::test]
async fn calls_go_out_as_json_on_one_connection() {
    let peer = Peer::start(json_api(|method, params| match method {
        "session.login_with_password" => {
            assert_eq!(params, [json!("root"), json!("correct horse"), json!("1.0"), json!("abd")]);
            Ok(json!(null))
        }
        "VM.get_all_records" => {
            assert_eq!(params, [json!(SESSION)]);
            Ok(json!({"OpaqueRef:1": {"name_label": "web01", "power_state": "Running", "memory_static_max": 1 << 30}}))
        }
        "VM.set_name_label" => {
            assert_eq!(params, [json!(SESSION), json!("OpaqueRef:1"), json!("web02")]);
            Ok(json!(""))
        }
        other => panic!("{other}"),
    }))
    .await;
    let client = Client::connect(options(&peer.url())).await.expect("login");
    assert_eq!(client.protocol().await, Some(Protocol::Json));
    let vms = client.get_all_records::<Vm>().await.expect("records");
    let (vm, record) = vms.first_key_value().expect("one");
    assert_eq!(
        (vm.as_str(), record.name_label.as_str(), record.memory_static_max),
        ("OpaqueRef:1", "web01", 1 << 30)
    );
    client.set_name_label(vm, "web02").await.expect("set");
    client.close().await.expect("logout");
    client.close().await.expect("a second close is no error");
    assert_eq!(peer.connections.load(Ordering::SeqCst), 1);
    assert_eq!(peer.methods().last().map(String::as_str), Some("session.logout"));
    let error = client.get_all_records::<Vm>().await.expect_err("closed");
    assert_eq!(error.to_string(), "VM.get_all_records: this client is closed");
}

const XML_SESSION: &str = "<methodResponse><params><param><value><struct><member><name>Status</name><value>Success\
     </value></member><member><name>Value</name><value>OpaqueRef:xml</value></member></struct></value></param></params>\
     </methodResponse>";

async fn speaks_xml_after(json_answer: Vec<u8>) {
    let peer = Peer::start(move |request| match request.line.as_str() {
        "POST /jsonrpc HTTP/1.1" => Answer::Bytes(json_answer.clone()),
        "POST / HTTP/1.1" => {
            let text = String::from_utf8(request.body.clone()).expect("text");
            if text.contains("<methodName>VM.get_by_name_label</methodName>") {
                assert!(text.contains(
                    "<param><value>OpaqueRef:xml</value></param><param><value>a&amp;b</value></param>"
                ));
                let reply = XML_SESSION
                    .replace("OpaqueRef:xml", "<array><data><value>OpaqueRef:9</value></data></array>");
                return Answer::Bytes(http("200 OK", "text/xml", reply));
            }
            Answer::Bytes(http("200 OK", "text/xml", XML_SESSION))
        }
        other => panic!("{other}"),
    })
    .await;
    let client = Client::connect(options(&peer.url())).await.expect("login");
    assert_eq!(client.protocol().await, Some(Protocol::Xml));
    assert_eq!(client.get_by_name_label::<Vm>("a&b").await.expect("refs"), [Ref::from_opaque("OpaqueRef:9")]);
    client.close().await.expect("logout");
}

#[tokio::test]
async fn hosts_without_json_are_spoken_to_in_xml() {
    speaks_xml_after(http("404 Not Found", "text/html", "<html>no such thing</html>")).await;
    speaks_xml_after(http("500 Internal Server Error", "text/html", "<html>oops</html>")).await;
    speaks_xml_after(http("200 OK", "text/xml", "<methodResponse><fault/></methodResponse>")).await;
}

#[tokio::test]
async fn a_wrong_password_is_tried_once() {
    let peer = Peer::start(json_api(|_, _| {
        Err(vec!["SESSION_AUTHENTICATION_FAILED", "root", "Authentication failure"])
    }))
    .await;
    let error = Client::connect(options(&peer.url())).await.expect_err("refused");
    assert_eq!(error.kind(), &Kind::Auth);
    assert!(error.to_string().contains("the pool refuses user \"root\": check the name and the password"));
    assert!(!format!("{error:?}").contains("correct horse"));
    assert_eq!(peer.methods().len(), 1);
}

#[tokio::test]
async fn hosts_that_know_no_originator_get_none() {
    let peer = Peer::start(json_api(|_, params| match params.len() {
        3 => Ok(json!(null)),
        _ => Err(vec!["MESSAGE_PARAMETER_COUNT_MISMATCH", "session.login_with_password", "3", "4"]),
    }))
    .await;
    Client::connect(options(&peer.url())).await.expect("login").close().await.expect("logout");
}

#[tokio::test]
async fn the_master_is_followed() {
    let member = Peer::start(json_api(|_, _| Err(vec!["HOST_IS_SLAVE", "127.0.0.2"]))).await;
    // The same port on another loopback address, as all hosts of a pool have theirs.
    let address = format!("127.0.0.2:{}", member.address.port());
    let master = Peer::start_at(&address, json_api(|_, _| Ok(json!(null)))).await;
    let client = Client::connect(options(&member.url())).await.expect("login");
    assert_eq!(client.endpoint().await.address(), master.address.to_string());
    client.close().await.expect("logout");
    assert_eq!(member.methods(), ["session.login_with_password"]);
    assert_eq!(master.methods(), ["session.login_with_password", "session.logout"]);
}

#[tokio::test]
async fn masters_that_name_each_other_end_in_an_error() {
    let peer = Peer::start(json_api(|_, _| Err(vec!["HOST_IS_SLAVE", "127.0.0.1"]))).await;
    let error = Client::connect(options(&peer.url())).await.expect_err("a circle");
    assert_eq!(error.kind(), &Kind::Unreachable);
    assert!(error.to_string().contains("changing its master"));
    assert_eq!(peer.methods().len(), 4);
}

#[tokio::test]
async fn garbage_is_a_protocol_error() {
    for body in ["", "hello", "{", "[]", "{\"id\":1}", "<html>", "<methodResponse/>", "\u{0}\u{0}"] {
        for kind in ["application/json", "text/html", "text/xml"] {
            let answer = http("200 OK", kind, body);
            let peer = Peer::start(move |_| Answer::Bytes(answer.clone())).await;
            let error = Client::connect(options(&peer.url())).await.expect_err("garbage");
            assert_eq!(error.kind(), &Kind::Protocol, "{body:?} as {kind}: {error}");
        }
    }
    let peer = Peer::start(|_| Answer::Last(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())).await;
    let error = Client::connect(options(&peer.url())).await.expect_err("no HTTP");
    assert_eq!(error.kind(), &Kind::Unreachable);
    let peer = Peer::start(|_| Answer::Bytes(http("503 Service Unavailable", "text/plain", "later"))).await;
    let error = Client::connect(options(&peer.url())).await.expect_err("no toolstack");
    assert_eq!(error.kind(), &Kind::Unreachable, "{error}");
    assert!(error.to_string().contains("the toolstack is not running"));
}

#[tokio::test]
async fn replies_and_requests_have_limits() {
    let announced =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n".to_vec();
    let mut endless = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n".to_vec();
    endless.resize(1 << 20, b' ');
    for answer in [announced, endless] {
        let peer = Peer::start(move |_| Answer::Last(answer.clone())).await;
        let mut small = options(&peer.url());
        small.limits.reply_bytes = 1000;
        let error = Client::connect(small).await.expect_err("too long");
        assert_eq!(error.kind(), &Kind::Limit, "{error}");
    }
    let peer = Peer::start(json_api(|_, _| Ok(json!(null)))).await;
    let client = Client::connect(options(&peer.url())).await.expect("login");
    let error = client.set_name_label::<Vm>(&Ref::null(), &"x".repeat(400_000)).await.expect_err("too long");
    assert_eq!(error.kind(), &Kind::Limit);
    assert_eq!(peer.methods().len(), 1);
    client.close().await.expect("logout");
}

#[tokio::test]
async fn silence_and_closed_doors_are_told_apart() {
    let peer = Peer::start(|_| Answer::Silence).await;
    let mut hasty = options(&peer.url());
    hasty.timeouts.call = Duration::from_millis(100);
    let error = Client::connect(hasty).await.expect_err("silence");
    assert_eq!(error.kind(), &Kind::Timeout);
    // Port 1 of the loopback network: nothing listens.
    let error = Client::connect(options("http://127.0.0.1:1")).await.expect_err("closed");
    assert_eq!(error.kind(), &Kind::Unreachable);
    assert_eq!(error.to_string(), "session.login_with_password: http://127.0.0.1:1 cannot be reached");
    let error = Client::connect(options("no-such-host.invalid")).await.expect_err("no such name");
    assert_eq!(error.kind(), &Kind::Unreachable);
}

#[tokio::test]
async fn the_local_socket_needs_no_password() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("xapi");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    let peer = Peer::detached();
    let server = peer.clone();
    tokio::spawn(async move {
        let handler: Arc<peer::Handler> = Arc::new(json_api(|method, params| {
            if method == "session.login_with_password" {
                assert_eq!(params[..2], [json!("root"), json!("")]);
            }
            Ok(json!(null))
        }));
        while let Ok((stream, _)) = listener.accept().await {
            server.serve(stream, handler.clone());
        }
    });
    let endpoint = path.display().to_string().parse().expect("a path");
    let client = Client::connect(xapi::Options::new(endpoint, Credentials::Local)).await.expect("login");
    client.close().await.expect("logout");
    assert_eq!(peer.methods(), ["session.login_with_password", "session.logout"]);

    let mut remote = options("http://127.0.0.1:1");
    remote.credentials = Credentials::Local;
    assert_eq!(Client::connect(remote).await.expect_err("not local").kind(), &Kind::Auth);
}

/// Serves JSON over TLS with this certificate.
async fn tls_peer(certificate: tokio_rustls::rustls::sign::CertifiedKey) -> Peer {
    use tokio_rustls::rustls;
    #[derive(Debug)]
    struct Fixed(Arc<rustls::sign::CertifiedKey>);
    impl rustls::server::ResolvesServerCert for Fixed {
        fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
            Some(self.0.clone())
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Fixed(Arc::new(certificate))));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let mut peer = Peer::detached();
    peer.address = listener.local_addr().expect("address");
    let server = peer.clone();
    tokio::spawn(async move {
        let handler: Arc<peer::Handler> = Arc::new(json_api(|_, _| Ok(json!(null))));
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                server.serve(stream, handler.clone());
            }
        }
    });
    peer
}

fn certified(der: Vec<u8>, pkcs8: Vec<u8>) -> tokio_rustls::rustls::sign::CertifiedKey {
    use tokio_rustls::rustls;
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(pkcs8.into());
    let key = rustls::crypto::ring::sign::any_supported_type(&key).expect("key");
    rustls::sign::CertifiedKey::new(vec![der.into()], key)
}

async fn trusts_by_pin_only(peer: &Peer) {
    let address = peer.address.to_string();
    let url = format!("https://{address}");
    let endpoint = url.parse().expect("address");
    let found = xapi::probe(&endpoint).await.expect("a certificate");

    let error = Client::connect(options(&url)).await.expect_err("not pinned");
    assert_eq!(error.kind(), &Kind::TlsUntrusted { address: address.clone(), found });
    assert!(error.to_string().contains(&found.to_string()));

    let expected = "ab".repeat(32).parse().expect("hex");
    let mut wrong = options(&url);
    wrong.pins = Arc::new(BTreeMap::from([(address.clone(), expected)]));
    let error = Client::connect(wrong).await.expect_err("another certificate");
    assert_eq!(error.kind(), &Kind::TlsChanged { address: address.clone(), expected, found });
    assert!(
        error.to_string().contains(&expected.to_string()) && error.to_string().contains(&found.to_string())
    );
    assert_eq!(peer.methods(), [""; 0], "nothing was said to a server without trust");

    let mut right = options(&url);
    right.pins = Arc::new(move |asked: &str| (asked == address).then_some(found));
    let client = Client::connect(right).await.expect("login");
    client.close().await.expect("logout");
}

#[tokio::test]
async fn certificates_are_trusted_by_pin_only() {
    let made = rcgen::generate_simple_self_signed(["another-name".to_owned()]).expect("certificate");
    let peer = tls_peer(certified(made.cert.der().to_vec(), made.signing_key.serialize_der())).await;
    trusts_by_pin_only(&peer).await;
}

#[tokio::test]
async fn version_1_certificates_of_old_hosts_work() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let script = "openssl req -batch -new -newkey rsa:2048 -nodes -keyout k.pem -subj /CN=old -out r.csr &&
        openssl x509 -req -days 9 -in r.csr -signkey k.pem -outform DER -out c.der &&
        openssl pkcs8 -topk8 -nocrypt -in k.pem -outform DER -out k.der";
    let made = std::process::Command::new("sh").args(["-c", script]).current_dir(folder.path()).output();
    if !made.is_ok_and(|output| output.status.success()) {
        println!("skipped: no openssl to make a certificate with");
        return;
    }
    let read = |name| std::fs::read(folder.path().join(name)).expect("made by openssl");
    trusts_by_pin_only(&tls_peer(certified(read("c.der"), read("k.der"))).await).await;
}

#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<String>>,
    refuse_changes: bool,
}

impl Observer for Recorder {
    fn before(&self, call: &Call<'_>) -> Verdict {
        match self.refuse_changes && call.mutating {
            true => Verdict::Refuse("this is a plan".to_owned()),
            false => Verdict::Proceed,
        }
    }

    fn after(&self, call: &Call<'_>, outcome: Result<&Value, &xapi::Error>, _elapsed: Duration) {
        self.seen.lock().expect("no panic").push(format!(
            "{} {:?} {}",
            call.method,
            call.params,
            outcome.is_ok()
        ));
    }
}

#[tokio::test]
async fn the_observer_sees_calls_but_no_secrets() {
    let peer = Peer::start(json_api(|method, _| match method {
        "session.login_with_password" => Ok(json!(null)),
        _ => Err(vec!["INTERNAL_ERROR", "in session OpaqueRef:5e551017-5ec2-4e75-8e55-100000000000"]),
    }))
    .await;
    let recorder = Arc::new(Recorder::default());
    let mut watched = options(&peer.url());
    watched.observer = Some(recorder.clone());
    let client = Client::connect(watched).await.expect("login");
    let error =
        client.set_name_label::<Vm>(&Ref::from_opaque("OpaqueRef:1"), "x").await.expect_err("scripted");
    client.close().await.expect("logout");
    let seen = recorder.seen.lock().expect("no panic").join("\n");
    let expected = "session.login_with_password [String(\"root\")] true\n\
         VM.set_name_label [String(\"OpaqueRef:1\"), String(\"x\")] false\n\
         session.logout [] true";
    assert_eq!(seen, expected);
    for shown in [seen, format!("{error:?} {error} {client:?}")] {
        assert!(!shown.contains(SESSION) && !shown.contains("correct horse"), "{shown}");
    }
    assert!(error.to_string().contains("in session (session)"));
}

#[tokio::test]
async fn the_observer_can_refuse_changes() {
    let peer = Peer::start(json_api(|method, _| match method {
        "session.login_with_password" => Ok(json!(null)),
        "VM.get_by_name_label" => Ok(json!([])),
        other => panic!("{other} was sent"),
    }))
    .await;
    let mut planning = options(&peer.url());
    planning.observer = Some(Arc::new(Recorder { refuse_changes: true, ..Recorder::default() }));
    let client = Client::connect(planning).await.expect("login");
    client.get_by_name_label::<Vm>("x").await.expect("reads go on");
    let error = client.vm_destroy(&Ref::from_opaque("OpaqueRef:1")).await.expect_err("refused");
    assert_eq!((error.kind(), error.to_string().as_str()), (&Kind::Refused, "VM.destroy: this is a plan"));
    client.close().await.expect("logout");
}
