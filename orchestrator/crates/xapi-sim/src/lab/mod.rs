//! The control port: plays the administrator who has VMs, the users inside them who write to their disks, and fate.
//!
//! Plain HTTP on loopback, JSON in and out. Nothing here exists on a real server.
//!
//! | route below `/lab` | does |
//! |---|---|
//! | `POST vm` | makes a sample VM: name, disks, cbt, running, tags and more in the body |
//! | `.. sr` | storage repositories: see [`storage`] |
//! | `POST network` | another network, with adapters: see [`networks`] |
//! | `PUT vdi/ID?offset=` | writes the body to a disk as its VM's user would |
//! | `GET vdi/ID?offset=&length=` | reads it |
//! | `POST vdi/ID/zero?offset=&length=`, `POST vdi/ID/resize?size=` | zeroes a range, grows the disk |
//! | `GET vdi/ID/digest?sparse=1` | size and digests: see [`contents`] |
//! | `GET vdi/ID/path` | the raw file behind it |
//! | `POST vdi/ID/surface` | what is wrong with the medium of a disk and its snapshots, for delegates that are processes |
//! | `POST vdi/ID/cbt-reset?how=`, `POST vdi/ID/cbt-forget?offset=&size=` | breaks change tracking: see [`fate`] |
//! | `POST guest/ID/kill`, `POST guest/ID/link?up=` | kills a guest, pulls (0) or plugs (1) its network cable |
//! | `GET guest/ID/console` | what it printed |
//! | `GET inventory` | everything the pool holds |
//! | `GET log?since=` | the event log, one object per line; `seq` counts from 0 |
//! | `GET calls?since=` | of it the calls and data requests, each with `write`: whether it may change something |
//! | `POST faults`, `GET faults` | plans a [`Fault`] or sets switches; what has not struck yet |
//! | `POST sessions/drop` | ends every session |
//! | `POST host/ID/reboot?down_ms=`, `POST host/ID/boot` | takes a host down, brings it back |
//! | `POST master?host=` | makes another host the master |
//! | `POST step?on=`, `POST step?n=`, `GET step` | single steps of asynchronous calls: see [`steps`] |
//! | `POST shutdown` | ends the simulator |

pub(crate) mod client;
pub(crate) mod contents;
mod disks;
pub(crate) mod fate;
mod guests;
mod inventory;
mod networks;
mod steps;
mod storage;
mod vms;

use crate::failure::{Failure, Outcome};
use crate::faults::Fault;
use crate::http::wire::{Head, Stream, close, read_head, respond};
use crate::licence;
use crate::rpc::value::Value as ApiValue;
use crate::sim::{Context, Sim};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// Largest JSON body.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// What a control request answers.
#[derive(Debug)]
enum Answer {
    Json(Value),
    /// One JSON value per line.
    Lines(Vec<Value>),
    Text(Vec<u8>),
    /// Bytes of a disk.
    Bytes(Vec<u8>),
}

/// Serves one connection until it closes.
pub(crate) async fn serve(sim: Arc<Sim>, mut stream: Stream) -> std::io::Result<()> {
    while let Some(head) = read_head(&mut stream).await? {
        let outcome = route(&sim, &head, &mut stream).await;
        let failed = outcome.is_err();
        let (status, kind, body) = match outcome {
            Ok(Answer::Json(value)) => (200, "application/json", value.to_string().into_bytes()),
            Ok(Answer::Lines(lines)) => {
                let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
                (200, "application/x-ndjson", text.into_bytes())
            }
            Ok(Answer::Text(text)) => (200, "text/plain", text),
            Ok(Answer::Bytes(bytes)) => (200, "application/octet-stream", bytes),
            Err(failure) => {
                let status = if failure.code() == "NOT_FOUND" { 404 } else { 400 };
                (status, "application/json", json!({"error": failure.list()}).to_string().into_bytes())
            }
        };
        // After a failure the body may not have been read, so the connection cannot go on.
        let keep_alive = head.keep_alive && !failed;
        respond(&mut stream, status, &[("content-type", kind)], &body, keep_alive).await?;
        if !keep_alive {
            close(stream).await;
            return Ok(());
        }
    }
    Ok(())
}

async fn route(sim: &Arc<Sim>, head: &Head, stream: &mut Stream) -> Outcome<Answer> {
    let context = Context::own(sim);
    let path: Vec<&str> = head.path.trim_matches('/').split('/').collect();
    match (head.method.as_str(), &path[..]) {
        ("POST", ["lab", "vm"]) => {
            let wanted = json_body(head, stream).await?;
            vms::create(&context, wanted).await.map(Answer::Json)
        }
        (method, ["lab", "sr", rest @ ..]) => storage::serve(&context, method, rest, head, stream).await,
        ("POST", ["lab", "network"]) => {
            let wanted = json_body(head, stream).await?;
            networks::create(&context, wanted).map(Answer::Json)
        }
        ("GET", ["lab", "inventory"]) => Ok(Answer::Json(sim.with(|s| inventory::take(s)))),
        ("GET", ["lab", "log"]) => Ok(Answer::Lines(sim.log.since(number(head, "since")?.unwrap_or(0)))),
        ("GET", ["lab", "calls"]) => {
            let all = sim.log.since(number(head, "since")?.unwrap_or(0));
            Ok(Answer::Lines(
                all.into_iter().filter(|e| e["kind"] == "call" || e["kind"] == "http").collect(),
            ))
        }
        ("GET", ["lab", "faults"]) => Ok(Answer::Json(planned(sim))),
        ("POST", ["lab", "faults"]) => {
            let wanted = json_body(head, stream).await?;
            plan(sim, wanted).map(|()| Answer::Json(json!({})))
        }
        ("POST", ["lab", "sessions", "drop"]) => Ok(Answer::Json(fate::drop_sessions(&context))),
        ("POST", ["lab", "host", uuid, "reboot"]) => {
            fate::reboot(&context, uuid, head).await.map(Answer::Json)
        }
        ("POST", ["lab", "host", uuid, "boot"]) => fate::boot(&context, uuid).map(Answer::Json),
        ("POST", ["lab", "master"]) => fate::change_master(&context, head).map(Answer::Json),
        ("GET", ["lab", "step"]) => Ok(Answer::Json(steps::show(sim))),
        ("POST", ["lab", "step"]) => steps::advance(sim, head).await.map(Answer::Json),
        ("POST", ["lab", "shutdown"]) => {
            sim.stop.notify_one();
            Ok(Answer::Json(json!({})))
        }
        (method, ["lab", "vdi", uuid, rest @ ..]) => {
            let disk = disks::Disk::find(&context, uuid)?;
            match (method, rest) {
                ("PUT", []) => disk.write(head, stream).await.map(Answer::Json),
                ("GET", []) => disk.read(head).await.map(Answer::Bytes),
                ("POST", ["zero"]) => disk.zero(head).await.map(Answer::Json),
                ("GET", ["digest"]) => disk.digest(head).await.map(Answer::Json),
                ("POST", ["resize"]) => disk.resize(head).map(Answer::Json),
                ("POST", ["surface"]) => {
                    let wanted = json_body(head, stream).await?;
                    disk.damage(wanted).map(Answer::Json)
                }
                ("POST", ["cbt-reset"]) => disk.reset_tracking(head).map(Answer::Json),
                ("POST", ["cbt-forget"]) => disk.forget_changes(head).map(Answer::Json),
                ("GET", ["path"]) => Ok(Answer::Json(json!({"path": disk.path()}))),
                _ => Err(not_found(head)),
            }
        }
        (method, ["lab", "guest", uuid, action]) => match (method, *action) {
            ("POST", "kill") => guests::kill(&context, uuid).await.map(Answer::Json),
            ("POST", "link") => guests::link(&context, uuid, head).await.map(Answer::Json),
            ("GET", "console") => guests::console(&context, uuid).map(Answer::Text),
            _ => Err(not_found(head)),
        },
        _ => Err(not_found(head)),
    }
}

fn not_found(head: &Head) -> Failure {
    Failure::new("NOT_FOUND", [format!("{} {}", head.method, head.path)])
}

fn bad(text: impl Into<String>) -> Failure {
    Failure::new("BAD_REQUEST", [text.into()])
}

/// A number of the query, in decimal.
fn number(head: &Head, name: &str) -> Outcome<Option<u64>> {
    match head.query(name) {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| bad(format!("{name}={text} is not a number"))),
    }
}

async fn json_body(head: &Head, stream: &mut Stream) -> Outcome<Value> {
    let length = head.content_length().ok_or_else(|| bad("Content-Length is missing"))?;
    if length > MAX_JSON_BYTES {
        return Err(bad("the body is too large"));
    }
    let mut body = vec![0; usize::try_from(length).expect("the length is limited")];
    stream.read_exact(&mut body).await.map_err(|e| bad(format!("read the body: {e}")))?;
    serde_json::from_slice(&body).map_err(|e| bad(format!("the body is not the expected JSON: {e}")))
}

/// What has not struck yet, and how the switches stand.
fn planned(sim: &Sim) -> Value {
    let faults = sim.faults();
    json!({
        "planned": faults.planned(),
        "dhcp": faults.dhcp,
        "cbt_licensed": faults.cbt_licensed,
        "clock_offset_s": faults.clock_offset_s,
    })
}

/// Faults and switches; several may stand in one object.
fn plan(sim: &Sim, wanted: Value) -> Outcome<()> {
    let Value::Object(mut wanted) = wanted else { return Err(bad("an object is expected")) };
    let mut faults = sim.faults();
    if wanted.remove("clear") == Some(Value::Bool(true)) {
        faults.clear();
    }
    if let Some(on) = wanted.remove("dhcp") {
        faults.dhcp = on.as_bool().ok_or_else(|| bad("dhcp must be true or false"))?;
    }
    if let Some(on) = wanted.remove("cbt_licensed") {
        faults.cbt_licensed = on.as_bool().ok_or_else(|| bad("cbt_licensed must be true or false"))?;
    }
    if let Some(seconds) = wanted.remove("clock_offset_s") {
        faults.clock_offset_s =
            seconds.as_i64().ok_or_else(|| bad("clock_offset_s must be a number of seconds"))?;
    }
    let capacity = wanted.remove("sr_capacity");
    if !wanted.is_empty() {
        let fault: Fault = serde_json::from_value(Value::Object(wanted)).map_err(|e| bad(e.to_string()))?;
        faults.plan(fault);
    }
    let licensed = faults.cbt_licensed;
    drop(faults);
    sim.with(|s| licence::apply(s, &sim.config.flavour, licensed));
    if let Some(bytes) = capacity {
        let bytes = bytes.as_i64().ok_or_else(|| bad("sr_capacity must be a number of bytes"))?;
        sim.with(|s| {
            for repository in s.db.refs("SR") {
                s.db.put("SR", &repository, "physical_size", ApiValue::Int(bytes));
            }
        });
    }
    Ok(())
}
