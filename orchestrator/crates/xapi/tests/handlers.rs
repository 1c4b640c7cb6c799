//! Data handlers against a scripted peer.

mod peer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peer::{Answer, Peer, Request, SESSION, TASK, api, client, task_record};
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use xapi::{Kind, Ref, Upload};

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
async fn contents_that_are_too_long_never_arrive_whole() {
    let arrived = Arc::new(AtomicU64::new(0));
    let count = arrived.clone();
    let peer = upload_peer(
        "127.0.0.1:0",
        import_api(task_record("failure", "", &["IMPORT_ERROR_PREMATURE_EOF"])),
        move |_, mut stream| {
            let count = count.clone();
            async move {
                let mut rest = Vec::new();
                let _ = stream.read_to_end(&mut rest).await;
                count.store(rest.len() as u64, Ordering::SeqCst);
            }
        },
    )
    .await;
    let client = client(&peer).await;
    // A file that grew after it was looked at.
    let upload = Upload::reader(1000, || Ok(std::io::Cursor::new(vec![1; 1001])));
    client.import_xva(upload, None, |_| {}).await.expect_err("too long");
    assert!(arrived.load(Ordering::SeqCst) < 1000, "the host would have taken it for whole");
}

#[tokio::test]
async fn a_refusal_in_the_middle_of_a_body_is_told() {
    let peer = upload_peer(
        "127.0.0.1:0",
        import_api(task_record("failure", "", &["RBAC_PERMISSION_DENIED", "http/put_import", ""])),
        |_, mut stream| async move {
            // Some of it is taken, then the host has seen enough.
            let mut some = [0; 100_000];
            stream.read_exact(&mut some).await.expect("body");
            let _ = stream
                .write_all(b"HTTP/1.1 403 Forbidden\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
                .await;
            let _ = stream.shutdown().await;
        },
    )
    .await;
    let client = client(&peer).await;
    let error =
        client.import_xva(Upload::bytes(vec![1; 50_000_000]), None, |_| {}).await.expect_err("refused");
    assert_eq!((error.kind(), error.code()), (&Kind::Auth, "RBAC_PERMISSION_DENIED"), "{error}");
}

#[tokio::test]
async fn a_host_that_takes_no_more_ends_the_transfer() {
    let mut stalled = peer::options("http://127.0.0.1:1");
    let peer =
        upload_peer("127.0.0.1:0", import_api(task_record("pending", "", &[])), |_, stream| async move {
            tokio::time::sleep(Duration::from_secs(600)).await;
            drop(stream);
        })
        .await;
    stalled.endpoint = peer.url().parse().expect("address");
    stalled.timeouts.stall = Duration::from_millis(700);
    let client = xapi::Client::connect(stalled).await.expect("login");
    let error =
        client.import_xva(Upload::bytes(vec![1; 50_000_000]), None, |_| {}).await.expect_err("stalled");
    assert_eq!(error.kind(), &Kind::Timeout, "{error}");
    assert!(error.to_string().contains("took no more bytes after"), "{error}");
    // Nobody else would ever end the task.
    assert!(peer.methods().contains(&"task.cancel".to_owned()), "{:?}", peer.methods());
}

async fn failing_export(outcome: Json, answer: Vec<u8>) -> xapi::Error {
    let peer = upload_peer("127.0.0.1:0", import_api(outcome), move |_, mut stream| {
        let answer = answer.clone();
        async move {
            stream.write_all(&answer).await.expect("sent");
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let client = client(&peer).await;
    let error =
        client.export_vdi_vhd_head(&Ref::from_opaque("OpaqueRef:2"), None).await.expect_err("scripted");
    assert!(peer.methods().contains(&"task.destroy".to_owned()));
    error
}

#[tokio::test]
async fn an_export_that_breaks_off_is_an_error_with_its_tasks_reason() {
    let gone = task_record("failure", "", &["VDI_MISSING", "OpaqueRef:sr", "OpaqueRef:2"]);
    let whole = include_bytes!("fixtures/dynamic-9m-block-2.vhd-head");
    let cut = [OK_HEAD, &whole[..1000]].concat();
    assert_eq!(failing_export(gone.clone(), cut.clone()).await.kind(), &Kind::Missing);
    let short = b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nconectix".to_vec();
    assert_eq!(failing_export(gone.clone(), short).await.kind(), &Kind::Missing);
    let page = [OK_HEAD, b"HTTP/1.1 500 Internal Server Error\r\n\r\n<html>"].concat();
    assert_eq!(failing_export(gone, page.clone()).await.kind(), &Kind::Missing);
    // The task has nothing to say.
    let well = task_record("success", "", &[]);
    let error = failing_export(well.clone(), page).await;
    assert!(error.to_string().contains("breaks off: HTTP/1.1 500 Internal Server Error"), "{error}");
    let error = failing_export(well, cut).await;
    assert!(error.to_string().contains("it ends after 1000 bytes"), "{error}");
    let error = failing_export(
        task_record("cancelled", "", &[]),
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
    )
    .await;
    assert_eq!(error.kind(), &Kind::Cancelled);
}

#[tokio::test]
async fn an_export_follows_the_host_with_the_storage() {
    let master = upload_peer(
        "127.0.0.1:0",
        import_api(task_record("failure", "", &["VDI_IO_ERROR", "Broken pipe"])),
        |head, mut stream| async move {
            let query = head.lines().next().expect("line").split(' ').nth(1).expect("path").to_owned();
            let port = stream.local_addr().expect("address").port();
            let reply = format!(
                "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.2:{port}{query}\r\ncontent-length: 0\r\n\r\n"
            );
            stream.write_all(reply.as_bytes()).await.expect("sent");
        },
    )
    .await;
    let _storage = upload_peer(
        &format!("127.0.0.2:{}", master.address.port()),
        |request| panic!("{request:?}"),
        |head, mut stream| async move {
            assert!(head.starts_with("GET /export_raw_vdi?vdi=OpaqueRef%3A2&format=vhd&task_id="), "{head}");
            stream.write_all(OK_HEAD).await.expect("sent");
            stream.write_all(include_bytes!("fixtures/dynamic-9m-block-2.vhd-head")).await.expect("sent");
            let _ = stream.shutdown().await;
        },
    )
    .await;
    let client = client(&master).await;
    let head = client.export_vdi_vhd_head(&Ref::from_opaque("OpaqueRef:2"), None).await.expect("a head");
    assert_eq!(head.blocks, [2]);
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
