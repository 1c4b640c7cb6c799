//! Which handler a request of the API ports reaches.

use super::wire::{Head, Stream, close, hold, page, read_head, respond};
use crate::dispatch::{self, Reply};
use crate::rpc::{json, xml};
use crate::sim::Sim;
use crate::transfer;
use std::io::Result;
use std::sync::Arc;
use tokio::io::AsyncReadExt;

/// Largest body of a call: 300 KiB, as on real servers.
const MAX_CALL_BYTES: u64 = 300 * 1024;

/// The way by which a connection came in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Number of the host that it reached, from 0.
    pub(crate) host: usize,
    /// The Unix socket: whoever may open it is root.
    pub(crate) trusted: bool,
}

/// Serves one connection until it closes.
pub(crate) async fn serve(sim: Arc<Sim>, mut stream: Stream, entry: Entry) -> Result<()> {
    while let Some(head) = read_head(&mut stream).await? {
        let keep_alive = head.keep_alive;
        match (head.method.as_str(), head.path.as_str()) {
            ("POST", _) => match call(&sim, &mut stream, &head, entry).await? {
                Then::GoOn => {}
                Then::Cut => return Ok(()),
                Then::Hold => {
                    hold(stream).await;
                    return Ok(());
                }
            },
            ("PUT", "/import" | "/import_raw_vdi") | ("GET", "/export_raw_vdi") => {
                return transfer::serve(&sim, stream, head, entry).await;
            }
            _ => {
                respond(&mut stream, 404, &[("content-type", "text/html")], &page(404, &head.path), false)
                    .await?;
                close(stream).await;
                return Ok(());
            }
        }
        if !keep_alive {
            close(stream).await;
            return Ok(());
        }
    }
    Ok(())
}

/// What becomes of a connection after a call.
enum Then {
    GoOn,
    /// Closed at once.
    Cut,
    /// Never used again, and open until the client closes it.
    Hold,
}

/// Answers one call.
async fn call(sim: &Arc<Sim>, stream: &mut Stream, head: &Head, entry: Entry) -> Result<Then> {
    let html = [("content-type", "text/html")];
    let Some(length) = head.content_length() else {
        respond(stream, 411, &html, &page(411, "Content-Length is required"), false).await?;
        return Ok(Then::Cut);
    };
    if length > MAX_CALL_BYTES {
        respond(stream, 413, &html, &page(413, "the request body is too large"), false).await?;
        return Ok(Then::Cut);
    }
    let mut body = vec![0; usize::try_from(length).expect("the length is limited")];
    stream.read_exact(&mut body).await?;
    if head.path == "/jsonrpc" {
        return json_call(sim, stream, head, &body, entry).await;
    }
    match xml::decode(&body) {
        Err(text) => {
            respond(stream, 500, &html, &page(500, &text), head.keep_alive).await?;
            Ok(Then::GoOn)
        }
        Ok(request) => {
            let (outcome, bare) = match dispatch::call(sim, request, entry).await {
                Reply::Drop => return Ok(Then::Cut),
                Reply::Freeze => return Ok(Then::Hold),
                Reply::Outcome(outcome) => (outcome, false),
                Reply::Bare(value) => (Ok(value), true),
            };
            let answer = xml::encode(&outcome, bare);
            respond(stream, 200, &[("content-type", "text/xml")], &answer, head.keep_alive).await?;
            Ok(Then::GoOn)
        }
    }
}

async fn json_call(
    sim: &Arc<Sim>,
    stream: &mut Stream,
    head: &Head,
    body: &[u8],
    entry: Entry,
) -> Result<Then> {
    if !sim.config.json {
        // Servers without JSON-RPC take the path for one more XML-RPC path and say so in their own encoding.
        let failure = crate::Failure::internal("the request is not XML-RPC");
        let answer = xml::encode(&Err(failure), false);
        respond(stream, 404, &[("content-type", "text/xml")], &answer, head.keep_alive).await?;
        return Ok(Then::GoOn);
    }
    let envelope = match json::decode(body) {
        Ok(envelope) => envelope,
        Err(text) => {
            respond(stream, 500, &[("content-type", "text/html")], &page(500, &text), head.keep_alive)
                .await?;
            return Ok(Then::GoOn);
        }
    };
    let outcome = match dispatch::call(sim, envelope.request, entry).await {
        Reply::Drop => return Ok(Then::Cut),
        Reply::Freeze => return Ok(Then::Hold),
        Reply::Outcome(outcome) => outcome,
        Reply::Bare(value) => Ok(value),
    };
    let old = sim.config.flavour.json2_error_array();
    let answer = json::encode(envelope.version, &envelope.id, &outcome, old);
    respond(stream, 200, &[("content-type", "application/json")], &answer, head.keep_alive).await?;
    Ok(Then::GoOn)
}
