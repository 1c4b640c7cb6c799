//! Tasks, events and data handlers against a scripted peer.

mod peer;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peer::{Answer, Outcome, Peer, Request, SESSION, json_api, options};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xapi::{Client, Event, Kind, Operation, PowerState, Ref, Upload, VbdCreate, VbdMode, VbdType, Vdi, Vm};

const TASK: &str = "OpaqueRef:7a5c0000-0000-0000-0000-000000000001";

fn task_record(status: &str, result: &str, error: &[&str]) -> Json {
    json!({"uuid": "7a5c0000-0000-0000-0000-000000000002", "name_label": "a task", "status": status,
        "progress": 1, "result": result, "error_info": error})
}

async fn client(peer: &Peer) -> Client {
    let mut options = options(&peer.url());
    options.timeouts.event = Duration::from_millis(200);
    Client::connect(options).await.expect("login")
}

/// Answers what every test needs; the rest is the script's.
fn api(
    script: impl Fn(&str, &[Json]) -> Option<Outcome> + Send + Sync + 'static,
) -> impl Fn(&Request) -> Answer {
    json_api(move |method, params| {
        if let Some(outcome) = script(method, params) {
            return outcome;
        }
        match method {
            "session.login_with_password" => Ok(json!(null)),
            "task.create" => Ok(json!(TASK)),
            "task.destroy" | "task.cancel" | "task.add_to_other_config" => Ok(json!("")),
            "event.from" => Ok(json!({"events": [], "token": "1,1", "valid_ref_counts": {}})),
            other => panic!("{other}"),
        }
    })
}

#[tokio::test]
async fn long_operations_run_as_tasks_and_leave_none() {
    let peer = Peer::start(api(|method, params| match method {
        "Async.VM.clone" => {
            assert_eq!(params, [json!(SESSION), json!("OpaqueRef:1"), json!("copy")]);
            Some(Ok(json!(TASK)))
        }
        "task.get_record" => Some(Ok(task_record("success", "<value>OpaqueRef:2</value>", &[]))),
        _ => None,
    }))
    .await;
    let mut tagged = options(&peer.url());
    tagged.task_tags.insert("abd:owner".to_owned(), "me".to_owned());
    let client = Client::connect(tagged).await.expect("login");
    let clone = client.vm_clone(&Ref::from_opaque("OpaqueRef:1"), "copy").await.expect("cloned");
    assert_eq!(clone.as_str(), "OpaqueRef:2");
    client.close().await.expect("logout");
    let expected =
        ["Async.VM.clone", "task.add_to_other_config", "task.get_record", "task.destroy", "session.logout"];
    assert_eq!(peer.methods()[1..], expected);
}

#[tokio::test]
async fn a_failed_task_is_the_operations_error() {
    let peer = Peer::start(api(|method, _| match method {
        "Async.VM.start" => Some(Ok(json!(TASK))),
        "task.get_record" => {
            Some(Ok(task_record("failure", "", &["VM_BAD_POWER_STATE", "OpaqueRef:1", "halted", "running"])))
        }
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let error = client.vm_start(&Ref::from_opaque("OpaqueRef:1")).await.expect_err("scripted");
    assert_eq!(error.kind(), &Kind::BadState);
    assert_eq!(error.to_string(), "VM.start: VM OpaqueRef:1 must be halted, but it is running");
    assert!(peer.methods().contains(&"task.destroy".to_owned()));
}

#[tokio::test]
async fn an_operation_that_takes_too_long_is_cancelled() {
    let peer = Peer::start(api(|method, _| match method {
        "Async.VM.clean_shutdown" => Some(Ok(json!(TASK))),
        "task.get_record" => Some(Ok(task_record("pending", "", &[]))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let params = vec![(&Ref::<Vm>::from_opaque("OpaqueRef:1")).into()];
    let error = client.call_async("VM.clean_shutdown", params, Duration::ZERO).await.expect_err("too long");
    assert_eq!((error.kind(), error.method()), (&Kind::Timeout, "VM.clean_shutdown"));
    assert_eq!(peer.methods()[peer.methods().len() - 2..], ["task.cancel", "task.destroy"]);
}

#[tokio::test]
async fn a_snapshot_falls_back_to_two_parameters() {
    let peer = Peer::start(api(|method, params| match (method, params.len()) {
        ("Async.VM.snapshot", 4) => {
            Some(Err(vec!["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3"]))
        }
        ("Async.VM.snapshot", 3) => Some(Ok(json!(TASK))),
        ("task.get_record", _) => Some(Ok(task_record("success", "<value>OpaqueRef:5</value>", &[]))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let ignore = [Ref::<Vdi>::from_opaque("OpaqueRef:d")];
    let snapshot =
        client.vm_snapshot(&Ref::from_opaque("OpaqueRef:1"), "s", &ignore).await.expect("snapshot");
    assert_eq!(snapshot.as_str(), "OpaqueRef:5");
}

#[tokio::test]
async fn records_go_out_complete() {
    let peer = Peer::start(api(|method, params| match method {
        "VBD.create" => {
            let expected = json!({"VM": "OpaqueRef:1", "VDI": "OpaqueRef:d", "userdevice": "4", "bootable": false,
                "mode": "RO", "type": "Disk", "unpluggable": true, "empty": false, "other_config": {},
                "qos_algorithm_type": "", "qos_algorithm_params": {}});
            assert_eq!(params[1], expected);
            Some(Ok(json!("OpaqueRef:b")))
        }
        "VDI.list_changed_blocks" => Some(Ok(json!("gEE="))),
        "VM.add_to_other_config" if params[3] == "new" => {
            static FIRST: AtomicUsize = AtomicUsize::new(0);
            match FIRST.fetch_add(1, Ordering::SeqCst) {
                0 => Some(Err(vec!["MAP_DUPLICATE_KEY", "VM", "other_config", "OpaqueRef:1", "k"])),
                _ => Some(Ok(json!(""))),
            }
        }
        "VM.remove_from_other_config" => Some(Ok(json!(""))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let (vm, vdi) = (Ref::<Vm>::from_opaque("OpaqueRef:1"), Ref::<Vdi>::from_opaque("OpaqueRef:d"));
    let vbd = VbdCreate {
        vm: vm.clone(),
        vdi: vdi.clone(),
        userdevice: 4,
        bootable: false,
        mode: VbdMode::ReadOnly,
        kind: VbdType::Disk,
        other_config: Default::default(),
    };
    assert_eq!(client.vbd_create(&vbd).await.expect("created").as_str(), "OpaqueRef:b");
    assert_eq!(client.vdi_list_changed_blocks(&vdi, &vdi).await.expect("bitmap"), [0x80, 0x41]);
    client.add_to_other_config(&vm, "k", "new").await.expect("replaced");
    let expected = ["VM.add_to_other_config", "VM.remove_from_other_config", "VM.add_to_other_config"];
    assert_eq!(peer.methods()[peer.methods().len() - 3..], expected);
}

#[tokio::test]
async fn events_are_typed_and_lost_ones_are_announced() {
    let peer = Peer::start(api(|method, params| {
        if method != "event.from" {
            return None;
        }
        assert_eq!(params[1], json!(["vm"]));
        assert!(params[3].is_f64(), "the timeout is a double");
        let event = |operation: &str, snapshot: Json| {
            json!({"id": "1", "timestamp": "0.0", "class": "vm", "operation": operation, "ref": "OpaqueRef:1",
                "snapshot": snapshot})
        };
        Some(match params[2].as_str().expect("token") {
            "" => Ok(json!({"events": [event("add", json!({"power_state": "Halted"}))], "token": "a", "valid_ref_counts": {}})),
            "a" => Err(vec!["EVENTS_LOST"]),
            other => panic!("{other}"),
        })
    }))
    .await;
    let client = client(&peer).await;
    let mut events = client.events(&["vm"]);
    let Event::Changed(change) = events.next().await.expect("event") else { panic!("no change") };
    assert_eq!(change.operation, Operation::Add);
    let (vm, record) = change.as_record::<Vm>().expect("a VM").expect("readable");
    assert_eq!((vm.as_str(), record.power_state), ("OpaqueRef:1", PowerState::Halted));
    assert!(change.as_record::<Vdi>().is_none());
    assert_eq!(events.next().await.expect("event"), Event::Resync);
    assert!(matches!(events.next().await.expect("event"), Event::Changed(_)), "everything follows again");
}

fn running(vm: &xapi::Vm) -> bool {
    vm.power_state == PowerState::Running
}

#[tokio::test]
async fn waiting_uses_events_and_survives_their_loss() {
    // The event never comes: only the record shows the change, from its third reading on.
    let reads = AtomicUsize::new(0);
    let peer = Peer::start(api(move |method, params| match method {
        "event.from" => {
            assert_eq!(params[1], json!(["vm/OpaqueRef:1"]));
            Some(Ok(json!({"events": [], "token": "1", "valid_ref_counts": {}})))
        }
        "VM.get_record" => match reads.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Some(Ok(json!({"power_state": "Halted"}))),
            _ => Some(Ok(json!({"power_state": "Running", "domid": "7"}))),
        },
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let vm = Ref::from_opaque("OpaqueRef:1");
    let record = client.wait_vm(&vm, running, Duration::from_secs(30)).await.expect("running");
    assert_eq!(record.domid, 7);
}

#[tokio::test]
async fn waiting_for_what_is_gone_ends() {
    let peer = Peer::start(api(|method, _| match method {
        "event.from" => Some(Ok(json!({"token": "1", "valid_ref_counts": {}, "events": [
            {"id": "1", "timestamp": "0.0", "class": "vm", "operation": "mod", "ref": "OpaqueRef:1", "snapshot": {}},
            {"id": "2", "timestamp": "0.0", "class": "vm", "operation": "del", "ref": "OpaqueRef:1"}]}))),
        "VM.get_record" => Some(Ok(json!({"power_state": "Halted"}))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let error = client.wait_vm(&Ref::from_opaque("OpaqueRef:1"), running, Duration::from_secs(30)).await;
    let error = error.expect_err("gone");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (&Kind::HandleInvalid, "wait: VM OpaqueRef:1 does not exist")
    );
}

#[tokio::test]
async fn waiting_has_an_end() {
    let peer = Peer::start(api(|method, _| {
        (method == "VM.get_record").then(|| Ok(json!({"power_state": "Halted"})))
    }))
    .await;
    let client = client(&peer).await;
    let error = client.wait_vm(&Ref::from_opaque("OpaqueRef:1"), running, Duration::from_millis(300)).await;
    assert_eq!(error.expect_err("never").kind(), &Kind::Timeout);
}

/// A peer that answers calls itself and gives uploads to `upload` after their head.
async fn upload_peer<F>(
    address: &str,
    calls: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    upload: impl Fn(String, tokio::net::TcpStream) -> F + Send + Sync + 'static,
) -> Peer
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
    let mut peer = Peer::detached();
    peer.address = listener.local_addr().expect("address");
    let server = peer.clone();
    let calls: Arc<peer::Handler> = Arc::new(calls);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut first = [0; 4];
            stream.peek(&mut first).await.expect("a request");
            if &first == b"POST" {
                server.serve(stream, calls.clone());
                continue;
            }
            let mut stream = stream;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.expect("a head"));
            }
            tokio::spawn(upload(String::from_utf8(head).expect("text"), stream));
        }
    });
    peer
}

const OK_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n\r\n";

fn import_api(outcome: Json) -> impl Fn(&Request) -> Answer {
    api(move |method, _| match method {
        "task.get_record" => Some(Ok(outcome.clone())),
        _ => None,
    })
}

#[tokio::test]
async fn an_import_follows_the_redirect_before_it_sends() {
    let size = 3_000_000_u64;
    let received = Arc::new(AtomicU64::new(0));
    let count = received.clone();
    let master = upload_peer(
        "127.0.0.1:0",
        import_api(task_record(
            "success",
            "<value><array><data><value>OpaqueRef:vm</value></data></array></value>",
            &[],
        )),
        |head, mut stream| async move {
            let query = head.lines().next().expect("line").split(' ').nth(1).expect("path").to_owned();
            let location =
                format!("http://127.0.0.2:{}{query}", stream.local_addr().expect("address").port());
            let reply = format!(
                "HTTP/1.1 302 Found\r\nLocation: {location}\r\nConnection: close\r\ncontent-length: 0\r\n\r\n"
            );
            stream.write_all(reply.as_bytes()).await.expect("sent");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty(), "{} bytes went to the wrong host", rest.len());
        },
    )
    .await;
    let storage = upload_peer(
        &format!("127.0.0.2:{}", master.address.port()),
        |request| panic!("{request:?}"),
        move |head, mut stream| {
            let count = count.clone();
            async move {
                assert!(
                    head.starts_with(&format!(
                        "PUT /import?sr_id=OpaqueRef%3Asr&task_id={} ",
                        TASK.replace(':', "%3A")
                    )),
                    "{head}"
                );
                assert!(head.to_ascii_lowercase().contains(&format!("content-length: {size}\r\n")), "{head}");
                assert!(
                    head.to_ascii_lowercase()
                        .contains(&format!("cookie: session_id={}\r\n", SESSION.to_ascii_lowercase()))
                );
                // Success comes before the body.
                stream.write_all(OK_HEAD).await.expect("sent");
                let mut buffer = vec![0; 65536];
                while count.load(Ordering::SeqCst) < size {
                    let got = stream.read(&mut buffer).await.expect("body");
                    assert!(got > 0, "the body ends too early");
                    assert!(buffer[..got].iter().all(|byte| *byte == 0x5a));
                    count.fetch_add(got as u64, Ordering::SeqCst);
                }
                let _ = stream.shutdown().await;
            }
        },
    )
    .await;
    assert_eq!(storage.address.port(), master.address.port());
    let client = client(&master).await;
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = steps.clone();
    let upload = Upload::bytes(vec![0x5a; usize::try_from(size).expect("small")]);
    let vms = client
        .import_xva(upload, Some(&Ref::from_opaque("OpaqueRef:sr")), move |sent| {
            seen.lock().expect("no panic").push(sent)
        })
        .await
        .expect("imported");
    assert_eq!(vms, [Ref::from_opaque("OpaqueRef:vm")]);
    assert_eq!(received.load(Ordering::SeqCst), size);
    let steps = steps.lock().expect("no panic");
    assert!(steps.is_sorted() && steps.last() == Some(&size) && steps.len() > 3, "{steps:?}");
    assert!(master.methods().contains(&"task.destroy".to_owned()));
}

async fn failing_import(outcome: Json, answer: &'static [u8]) -> xapi::Error {
    let peer = upload_peer("127.0.0.1:0", import_api(outcome), move |_, mut stream| async move {
        stream.write_all(answer).await.expect("sent");
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(2), stream.read_to_end(&mut rest)).await;
    })
    .await;
    let client = client(&peer).await;
    let file = tempfile::NamedTempFile::new().expect("temporary file");
    std::fs::write(file.path(), vec![1; 700_000]).expect("write");
    let upload = Upload::file(file.path()).expect("readable");
    let error = client.import_xva(upload, None, |_| {}).await.expect_err("scripted");
    assert_eq!(peer.methods().last().map(String::as_str), Some("task.destroy"));
    error
}

#[tokio::test]
async fn an_imports_outcome_is_its_tasks() {
    let checksums = task_record("failure", "", &["IMPORT_ERROR_SOME_CHECKSUMS_FAILED"]);
    let error = failing_import(checksums.clone(), OK_HEAD).await;
    assert_eq!(error.to_string(), "/import: the pool reports IMPORT_ERROR_SOME_CHECKSUMS_FAILED");
    // The page of an error behind the head of a success.
    let page =
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nHTTP/1.1 500 Internal Server Error\r\n\r\n<html>";
    let error = failing_import(checksums.clone(), page).await;
    assert_eq!(error.code(), "IMPORT_ERROR_SOME_CHECKSUMS_FAILED");
    let error = failing_import(
        task_record("cancelled", "", &[]),
        b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(error.kind(), &Kind::Cancelled);
    // A broken connection: the task says why.
    let full = task_record("failure", "", &["SR_BACKEND_FAILURE_44", "", "full", ""]);
    assert_eq!(failing_import(full, b"").await.kind(), &Kind::NoSpace);
}

#[tokio::test]
async fn contents_that_are_too_short_are_noticed() {
    let peer = upload_peer(
        "127.0.0.1:0",
        import_api(task_record("failure", "", &["IMPORT_ERROR_PREMATURE_EOF"])),
        |_, mut stream| async move {
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
        },
    )
    .await;
    let client = client(&peer).await;
    let upload = Upload::reader(1000, || Ok(std::io::Cursor::new(vec![1; 10])));
    let error = client.import_xva(upload, None, |_| {}).await.expect_err("too short");
    assert_eq!(error.code(), "IMPORT_ERROR_PREMATURE_EOF");
    assert_eq!(Upload::file("/no/such/file").map(drop).expect_err("no file").kind(), &Kind::Input);
}

#[tokio::test]
async fn a_vhd_head_is_read_and_the_rest_refused() {
    let sent = Arc::new(AtomicU64::new(0));
    let count = sent.clone();
    let peer = upload_peer(
        "127.0.0.1:0",
        import_api(task_record("failure", "", &["VDI_IO_ERROR", "Broken pipe"])),
        move |head, mut stream| {
            let count = count.clone();
            async move {
                assert!(
                    head.starts_with(
                        "GET /export_raw_vdi?vdi=OpaqueRef%3A2&format=vhd&base=OpaqueRef%3A1&task_id="
                    ),
                    "{head}"
                );
                stream.write_all(OK_HEAD).await.expect("sent");
                stream.write_all(include_bytes!("fixtures/dynamic-9m-block-2.vhd-head")).await.expect("sent");
                // A terabyte would follow.
                while stream.write_all(&[0; 65536]).await.is_ok() {
                    count.fetch_add(65536, Ordering::SeqCst);
                }
            }
        },
    )
    .await;
    let client = client(&peer).await;
    let (base, vdi) = (Ref::from_opaque("OpaqueRef:1"), Ref::from_opaque("OpaqueRef:2"));
    let head = client.export_vdi_vhd_head(&vdi, Some(&base)).await.expect("a head");
    assert_eq!((head.disk_bytes, head.block_bytes, head.blocks), (9 << 20, 2 << 20, vec![2]));
    assert!(sent.load(Ordering::SeqCst) < 64 << 20);
    assert_eq!(peer.methods().last().map(String::as_str), Some("task.destroy"));
}

#[tokio::test]
async fn an_export_that_is_no_vhd_is_an_error() {
    let peer = upload_peer(
        "127.0.0.1:0",
        import_api(task_record("failure", "", &["VDI_TOO_LARGE", "OpaqueRef:2", "1"])),
        |_, mut stream| async move {
            stream.write_all(OK_HEAD).await.expect("sent");
            stream.write_all(&[b'x'; 4000]).await.expect("sent");
        },
    )
    .await;
    let client = client(&peer).await;
    let error = client.export_vdi_vhd_head(&Ref::from_opaque("OpaqueRef:2"), None).await.expect_err("no VHD");
    assert_eq!(error.code(), "VDI_TOO_LARGE");
}

/// Callers run jobs on several threads.
#[test]
fn futures_can_be_sent_between_threads() {
    fn sendable<T: Send>(_: impl FnOnce(Client) -> T) {}
    sendable(|client| async move { client.wait_vm(&Ref::null(), running, Duration::ZERO).await });
    sendable(|client| async move { client.import_xva(Upload::bytes(vec![]), None, |_| {}).await });
    sendable(|client| async move { client.export_vdi_vhd_head(&Ref::null(), None).await });
    sendable(|client| async move { client.vm_clone(&Ref::null(), "x").await });
    sendable(|client| async move { client.events(&["vm"]).next().await });
    sendable(|client| async move { client.close().await });
}
