//! A peer for tests: a small HTTP server whose answers each test writes by hand.
//!
//! It shares no code with the crate, so that a misunderstanding shows.

// Each test program uses its own part.
#![allow(dead_code, unreachable_pub)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value as Json, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

pub const SESSION: &str = "OpaqueRef:5e551017-5ec2-4e75-8e55-100000000000";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Such as `POST /jsonrpc HTTP/1.1`.
    pub line: String,
    pub head: String,
    pub body: Vec<u8>,
}

impl Request {
    /// Method and parameters of a JSON call.
    pub fn call(&self) -> (String, Vec<Json>) {
        let call: Json = serde_json::from_slice(&self.body).expect("a JSON call");
        assert_eq!(call["jsonrpc"], "2.0");
        let method = call["method"].as_str().expect("method").to_owned();
        (method, call["params"].as_array().expect("params").clone())
    }

    pub fn id(&self) -> Json {
        let call: Json = serde_json::from_slice(&self.body).expect("a JSON call");
        call["id"].clone()
    }
}

/// What to do with a request.
pub enum Answer {
    /// These bytes, then more requests.
    Bytes(Vec<u8>),
    /// These bytes, then the end of the connection.
    Last(Vec<u8>),
    /// Nothing, for ever.
    Silence,
}

/// Answers requests.
pub type Handler = dyn Fn(&Request) -> Answer + Send + Sync;

/// A running peer.
#[derive(Clone)]
pub struct Peer {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
    pub requests: Arc<Mutex<Vec<Request>>>,
    tasks: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Peer {
    pub async fn start(handler: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", handler).await
    }

    pub async fn start_at(
        address: &str,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.expect("bind");
        let mut peer = Self::detached();
        peer.address = listener.local_addr().expect("address");
        let (clone, handler) = (peer.clone(), Arc::new(handler));
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                clone.serve(stream, handler.clone());
            }
        });
        peer.tasks.lock().expect("no panic").push(accepting.abort_handle());
        peer
    }

    pub fn detached() -> Self {
        Self {
            address: ([127, 0, 0, 1], 0).into(),
            connections: Arc::default(),
            requests: Arc::default(),
            tasks: Arc::default(),
        }
    }

    /// As if the machine lost its power: nothing listens any more, open connections end.
    pub async fn stop(&self) {
        for task in self.tasks.lock().expect("no panic").drain(..) {
            task.abort();
        }
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    pub fn serve<S>(&self, stream: S, handler: Arc<Handler>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let requests = self.requests.clone();
        let serving = tokio::spawn(async move {
            let mut stream = stream;
            while let Some(request) = read_request(&mut stream).await {
                requests.lock().expect("no panic").push(request.clone());
                match handler(&request) {
                    Answer::Bytes(bytes) => {
                        if stream.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                    Answer::Last(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.shutdown().await;
                        return;
                    }
                    Answer::Silence => std::future::pending().await,
                }
            }
        });
        self.tasks.lock().expect("no panic").push(serving.abort_handle());
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Methods of all JSON calls so far.
    pub fn methods(&self) -> Vec<String> {
        let requests = self.requests.lock().expect("no panic");
        requests
            .iter()
            .filter(|request| request.line.contains("/jsonrpc"))
            .map(|request| request.call().0)
            .collect()
    }
}

/// Head and body.
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Request> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("text");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse().expect("a number"))
    });
    assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "hosts refuse chunked bodies");
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    Some(Request { line: head.lines().next().unwrap_or_default().to_owned(), head, body })
}

pub fn http(status: &str, content_type: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Result of a scripted call: a value, or a code with its parameters.
pub type Outcome = Result<Json, Vec<&'static str>>;

/// Answers JSON calls; login and logout by itself.
pub fn json_api(
    script: impl Fn(&str, &[Json]) -> Outcome + Send + Sync + 'static,
) -> impl Fn(&Request) -> Answer {
    move |request| {
        let (method, params) = request.call();
        let outcome = match method.as_str() {
            "session.login_with_password" => {
                script(&method, &params).map(|value| if value.is_null() { json!(SESSION) } else { value })
            }
            "session.logout" => Ok(json!("")),
            _ => script(&method, &params),
        };
        let reply = match outcome {
            Ok(result) => json!({"jsonrpc": "2.0", "result": result, "id": request.id()}),
            Err(words) => json!({"jsonrpc": "2.0", "id": request.id(),
                "error": {"code": 1, "message": words[0], "data": words[1..]}}),
        };
        Answer::Bytes(http("200 OK", "application/json", reply.to_string()))
    }
}

pub fn options(url: &str) -> xapi::Options {
    let password = xapi::Secret::new("correct horse");
    let credentials = xapi::Credentials::Password { user: "root".to_owned(), password };
    xapi::Options::new(url.parse().expect("an address"), credentials)
}

/// The task that scripted calls answer with.
pub const TASK: &str = "OpaqueRef:7a5c0000-0000-0000-0000-000000000001";

pub fn task_record(status: &str, result: &str, error: &[&str]) -> Json {
    json!({"uuid": "7a5c0000-0000-0000-0000-000000000002", "name_label": "a task", "status": status,
        "progress": 1, "result": result, "error_info": error})
}

pub async fn client(peer: &Peer) -> xapi::Client {
    let mut options = options(&peer.url());
    options.timeouts.event = std::time::Duration::from_millis(200);
    xapi::Client::connect(options).await.expect("login")
}

/// Answers what every test needs; the rest is the script's.
pub fn api(
    script: impl Fn(&str, &[Json]) -> Option<Outcome> + Send + Sync + 'static,
) -> impl Fn(&Request) -> Answer {
    json_api(move |method, params| {
        if let Some(outcome) = script(method, params) {
            return outcome;
        }
        match method {
            "session.login_with_password" => Ok(json!(null)),
            "task.create" => Ok(json!(TASK)),
            "task.destroy" | "task.cancel" | "task.set_status" | "task.add_to_other_config" => Ok(json!("")),
            "event.from" => Ok(json!({"events": [], "token": "1,1", "valid_ref_counts": {}})),
            other => panic!("{other}"),
        }
    })
}
