//! The data handlers: XVA import, raw and VHD export, raw import.
//!
//! As on real servers the success headers go out before the body is looked at; the outcome is in the task.

mod body;
mod export;
mod import;
mod objects;
mod raw_import;
mod tar;
mod vhd;
mod xva;

use crate::dispatch::log_frozen;
use crate::failure::{Failure, Outcome};
use crate::faults::{Fault, When};
use crate::http::routes::Entry;
use crate::http::wire::{Head, Stream, close, hold, page, respond, respond_open};
use crate::rpc::value::Value;
use crate::sim::{Context, Sim};
use crate::{rbac, session, task};
use base64::Engine;
use serde_json::json;
use std::sync::Arc;

const HTML: [(&str, &str); 1] = [("content-type", "text/html")];

/// One transfer: who asked, for which task, and the fault that strikes it.
struct Transfer {
    context: Context,
    task: String,
    fault: Fault,
    /// Nothing is answered: an upload that freezes after its effect.
    silent: bool,
    /// A session made for this request alone.
    temporary: Option<String>,
}

/// Serves one data request; the connection ends with it.
pub(crate) async fn serve(
    sim: &Arc<Sim>,
    mut stream: Stream,
    head: Head,
    entry: Entry,
) -> std::io::Result<()> {
    let trusted = entry.trusted;
    let handler = format!("{} {}", head.method, head.path);
    log(sim, &handler, &head);
    let fault = sim.faults().strike(&handler).unwrap_or_default();
    tokio::time::sleep(fault.delay()).await;
    if fault.freezes(When::Before) {
        log_frozen(sim, &handler, &fault);
        hold(stream).await;
        return Ok(());
    }
    if fault.drops(When::Before) {
        return Ok(());
    }
    if let Some(location) = &fault.redirect {
        respond(&mut stream, 302, &[("location", location)], &[], false).await?;
        close(stream).await;
        return Ok(());
    }
    let (context, temporary) = match credentials(sim, &head, trusted).await {
        Ok(found) => found,
        Err(failure) => {
            if let Some(task) = head.param("task_id") {
                task::finish(&Context::own(sim), &task, Err(failure));
            }
            respond(&mut stream, 401, &HTML, &page(401, "authentication is required"), false).await?;
            close(stream).await;
            return Ok(());
        }
    };
    if let Err(failure) = rbac::check_handler(&context, &handler) {
        if let Some(session) = &temporary {
            context.with(|s| s.db.remove("session", session));
        }
        if let Some(task) = head.param("task_id") {
            task::finish(&context, &task, Err(failure));
        }
        respond(&mut stream, 403, &HTML, &page(403, "the user's role does not permit this"), false).await?;
        close(stream).await;
        return Ok(());
    }
    if let Some(location) = import::elsewhere(&context, &head, entry.host) {
        if let Some(session) = &temporary {
            context.with(|s| s.db.remove("session", session));
        }
        respond(&mut stream, 302, &[("location", &location)], &[], false).await?;
        close(stream).await;
        return Ok(());
    }
    let adopted = head.param("task_id").filter(|t| sim.with(|s| s.db.exists("task", t)));
    let task = adopted.unwrap_or_else(|| task::make(&context, &handler, ""));
    let context = Context { task: Some(task.clone()), ..context };
    let transfer = Transfer {
        context,
        task,
        silent: fault.freeze && head.method == "PUT",
        fault: fault.clone(),
        temporary,
    };
    let stream = transfer.run(stream, &head).await?;
    if fault.freezes(When::After) {
        log_frozen(sim, &handler, &fault);
        hold(stream).await;
    } else if !fault.drops(When::After) {
        close(stream).await;
    }
    Ok(())
}

fn log(sim: &Sim, handler: &str, head: &Head) {
    let shown = head.query.iter().filter(|(name, _)| name != "session_id").cloned();
    let query: serde_json::Map<String, serde_json::Value> = shown.map(|(k, v)| (k, v.into())).collect();
    sim.log.add(
        "http",
        json!({"method": handler, "query": query, "length": head.content_length(), "write": true}),
    );
}

/// Session from cookie or query, else Basic with a session of its own; the Unix socket needs neither.
async fn credentials(sim: &Arc<Sim>, head: &Head, trusted: bool) -> Outcome<(Context, Option<String>)> {
    let refused = || Failure::new("SESSION_AUTHENTICATION_FAILED", ["", "authentication is required"]);
    let mut context = Context { trusted, ..Context::own(sim) };
    if let Some(session) = head.param("session_id") {
        context.session = session;
        if !trusted {
            session::check(&context).map_err(|_| refused())?;
        }
        return Ok((context, None));
    }
    if trusted {
        return Ok((context, None));
    }
    let encoded = head.header("authorization").and_then(|a| a.strip_prefix("Basic ")).ok_or_else(refused)?;
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).map_err(|_| refused())?;
    let text = String::from_utf8(decoded).map_err(|_| refused())?;
    let (user, password) = text.split_once(':').ok_or_else(refused)?;
    let session = session::login(&context, user, password, "Basic").await?;
    context.session.clone_from(&session);
    Ok((context, Some(session)))
}

impl Transfer {
    async fn run(self, stream: Stream, head: &Head) -> std::io::Result<Stream> {
        let stream = match (head.method.as_str(), head.path.as_str()) {
            ("PUT", "/import") => import::serve(&self, stream, head).await,
            ("PUT", "/import_raw_vdi") => raw_import::serve(&self, stream, head).await,
            _ => export::serve(&self, stream, head).await,
        };
        if let Some(session) = &self.temporary {
            self.context.with(|s| s.db.remove("session", session));
        }
        stream
    }

    /// Refuses before anything was accepted: a page and a failed task.
    async fn refuse(&self, mut stream: Stream, status: u16, failure: Failure) -> std::io::Result<Stream> {
        if !self.silent {
            respond(&mut stream, status, &HTML, &page(status, &failure.to_string()), false).await?;
        }
        task::finish(&self.context, &self.task, Err(failure));
        Ok(stream)
    }

    /// The headers that go out before the body is looked at. A frozen export is one whose body never ends.
    async fn accept(&self, stream: &mut Stream, content_type: &str) -> std::io::Result<()> {
        if self.silent {
            return Ok(());
        }
        respond_open(stream, &[("content-type", content_type), ("task-id", &self.task)]).await?;
        if self.fault.page_in_body {
            use tokio::io::AsyncWriteExt;
            stream
                .write_all(b"HTTP/1.1 500 Internal Server Error\r\ncontent-type: text/html\r\n\r\n")
                .await?;
            stream.write_all(&page(500, "planned fault")).await?;
            stream.flush().await?;
        }
        Ok(())
    }

    /// The outcome, or the planned error in its place.
    fn finish(&self, outcome: Outcome<Value>) {
        let outcome = match self.fault.failure() {
            Some(failure) => Err(failure),
            None => outcome,
        };
        task::finish(&self.context, &self.task, outcome);
    }

    /// Whether a planned error strikes before any effect.
    fn strikes_before(&self) -> bool {
        self.fault.error.is_some() && self.fault.when == When::Before
    }
}
