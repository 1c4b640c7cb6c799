//! From a decoded call to its answer: look-up, log, faults, parameter count and types, session, then the class.

use crate::failure::{Failure, Outcome};
use crate::faults::{Fault, When};
use crate::http::routes::Entry;
use crate::lab::contents;
use crate::lab::fate::host_address;
use crate::rpc::{Request, json, value::Value};
use crate::sim::{Args, Context, Sim};
use crate::store::coerce::coerce;
use crate::store::methods::{Action, Method, names};
use crate::{event, generic, messages, network, pool, rbac, session, storage, task, vbd, vif, vm, writes};
use serde_json::json;
use std::sync::Arc;

/// What the HTTP layer has to send back.
#[derive(Debug)]
pub(crate) enum Reply {
    Outcome(Outcome<Value>),
    /// Without the `Status` envelope in XML-RPC.
    Bare(Value),
    /// Nothing: cut the connection.
    Drop,
    /// Nothing, ever: the connection stays until the client closes it.
    Freeze,
}

/// Answers one call.
pub(crate) async fn call(sim: &Arc<Sim>, request: Request, entry: Entry) -> Reply {
    if entry.host != sim.master() {
        let master = host_address(sim.master()).to_string();
        return failed(sim, &request.method, Failure::new("HOST_IS_SLAVE", [master]));
    }
    if request.method == "system.listMethods" {
        sim.log.add("call", json!({"method": request.method, "write": false}));
        return Reply::Bare(Value::texts(names(&sim.methods)));
    }
    let (name, asynchronous) = match request.method.strip_prefix("Async.") {
        Some(name) => (name, true),
        None => (request.method.as_str(), false),
    };
    let found = sim.methods.get(name).filter(|m| m.asynchronous || !asynchronous).cloned();
    let session_uuid = log_call(sim, &request, found.as_ref());
    let Some(method) = found else {
        return failed(
            sim,
            &request.method,
            Failure::new("MESSAGE_METHOD_UNKNOWN", [request.method.clone()]),
        );
    };
    let fault = sim.faults().strike(&request.method);
    if let Some(fault) = &fault {
        tokio::time::sleep(fault.delay()).await;
        if fault.drops(When::Before) {
            sim.log.add("fault", json!({"method": request.method, "what": "drop before"}));
            return Reply::Drop;
        }
        if fault.freezes(When::Before) {
            log_frozen(sim, &request.method, fault);
            return Reply::Freeze;
        }
    }
    let after = fault.clone().filter(|f| f.drops(When::After) || f.freezes(When::After));
    let prepared = prepare(sim, &method, request.params, entry.trusted);
    let outcome = match prepared {
        Err(failure) => Err(failure),
        Ok((context, args)) if asynchronous => {
            let label = format!("Async.{name}");
            let work = move |context: Context| async move { faulty(&context, &method, args, fault).await };
            Ok(Value::text(task::spawn(&context, &label, work)))
        }
        Ok((context, args)) => faulty(&context, &method, args, fault).await,
    };
    if let Err(failure) = &outcome {
        sim.log.add(
            "failure",
            json!({"method": request.method, "session": session_uuid, "error": failure.list()}),
        );
    }
    match after {
        None => Reply::Outcome(outcome),
        Some(fault) if fault.freeze => {
            if let (true, Ok(task)) = (asynchronous, &outcome) {
                task::finished(sim, task.as_text().unwrap_or_default()).await;
            }
            log_frozen(sim, &request.method, &fault);
            Reply::Freeze
        }
        Some(_) => {
            sim.log.add("fault", json!({"method": request.method, "what": "drop after"}));
            Reply::Drop
        }
    }
}

/// The moment a test waits for: what it wants of the client that will never be answered, it does now.
pub(crate) fn log_frozen(sim: &Sim, method: &str, fault: &Fault) {
    sim.log.add("frozen", json!({"method": method, "n": fault.seen}));
}

fn failed(sim: &Sim, method: &str, failure: Failure) -> Reply {
    sim.log.add("failure", json!({"method": method, "error": failure.list()}));
    Reply::Outcome(Err(failure))
}

/// Runs a call with the fault that strikes it.
async fn faulty(context: &Context, method: &Method, args: Args, fault: Option<Fault>) -> Outcome<Value> {
    let Some(failure) = fault.as_ref().and_then(Fault::failure) else {
        let answer = run(context, method, args).await?;
        let double = fault.is_some_and(|f| f.double_events) && method.name == "from";
        return Ok(if double { event::doubled(answer) } else { answer });
    };
    if fault.is_some_and(|f| f.when == When::After) {
        run(context, method, args).await?;
    }
    Err(failure)
}

/// Runs a call that the simulator makes for itself, by its full name.
pub(crate) async fn run_own(context: &Context, name: &str, args: Vec<Value>) -> Outcome<Value> {
    let method =
        context.sim.methods.get(name).ok_or_else(|| Failure::new("MESSAGE_METHOD_UNKNOWN", [name]))?.clone();
    run(context, &method, Args(args)).await
}

async fn run(context: &Context, method: &Method, args: Args) -> Outcome<Value> {
    let name = method.name.as_str();
    if !matches!(method.action, Action::Custom | Action::Create | Action::Destroy) {
        return generic::call(context, method, &args).await;
    }
    match method.class.name.as_str() {
        "session" => session::call(context, name, &args).await,
        "task" => task::call(context, name, &args),
        "event" => event::call(context, name, &args).await,
        "VM" => {
            let answer = vm::call(context, name, &args).await?;
            let vm = args.0.first().and_then(Value::as_text).unwrap_or_default();
            contents::note(context, name, vm, &answer).await?;
            Ok(answer)
        }
        "VBD" => vbd::call(context, name, &args).await,
        "VDI" => storage::vdi::call(context, name, &args).await,
        "SR" | "PBD" => storage::sr::call(context, &method.class.name, name, &args),
        "VIF" => vif::call(context, name, &args),
        "network" => network::call(context, name, &args),
        "message" => messages::call(context, name, &args),
        "pool" | "host" | "console" => pool::call(context, &method.class.name, name, &args),
        _ => Err(unknown(&method.class.name, name)),
    }
}

/// The answer for a message that a class does not know.
pub(crate) fn unknown(class: &str, name: &str) -> Failure {
    Failure::new("MESSAGE_METHOD_UNKNOWN", [format!("{class}.{name}")])
}

/// Checks count, types and session, in the order real servers do.
fn prepare(
    sim: &Arc<Sim>,
    method: &Method,
    mut given: Vec<Value>,
    trusted: bool,
) -> Outcome<(Context, Args)> {
    let hidden = usize::from(method.session);
    let required = method.params.iter().filter(|p| !p.optional).count();
    let received = given.len().saturating_sub(hidden);
    if given.len() < hidden || received < required || received > method.params.len() {
        let full = format!("{}.{}", method.class.name, method.name);
        let counts = [full, required.to_string(), received.to_string()];
        return Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", counts));
    }
    let session = if method.session { given.remove(0) } else { Value::void() };
    let session = session.as_text().ok_or_else(|| Failure::field_type("session_id"))?.to_owned();
    let mut given = given.into_iter();
    let mut args = Vec::with_capacity(method.params.len());
    for param in &method.params {
        args.push(match given.next() {
            Some(value) => coerce(value, &param.kind, &param.name)?,
            None => param.kind.empty(),
        });
    }
    let context = Context { sim: sim.clone(), session, task: None, trusted };
    if method.session {
        session::check(&context)?;
        rbac::check(&context, method)?;
    }
    Ok((context, Args(args)))
}

/// Writes the call into the log and answers the uuid of its session.
fn log_call(sim: &Sim, request: &Request, method: Option<&Method>) -> String {
    let hidden = usize::from(method.is_none_or(|m| m.session));
    let session = request.params.first().and_then(Value::as_text).unwrap_or_default();
    let uuid = if hidden == 1 { sim.with(|s| s.db.text("session", session, "uuid")) } else { String::new() };
    let shown = |(index, value): (usize, &Value)| {
        let name = method.and_then(|m| m.params.get(index)).map_or("", |p| p.name.as_str());
        // A call nobody knows may hold anything, so nothing of it is kept.
        if method.is_none() || name.contains("pwd") { json!("(hidden)") } else { json::to_json(value) }
    };
    let params: Vec<_> = request.params.iter().skip(hidden).enumerate().map(shown).collect();
    let write = writes::may_change(&request.method);
    sim.log.add("call", json!({"method": request.method, "session": uuid, "params": params, "write": write}));
    uuid
}
