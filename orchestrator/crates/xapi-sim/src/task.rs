//! Tasks: the record of an asynchronous call or of a data transfer, its outcome and its cancellation.

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::rpc::{value::Value, xml};
use crate::sim::{Args, Context, Sim, now};
use crate::store::db::Db;
use std::future::Future;

pub(crate) fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    match name {
        "create" => Ok(Value::text(make(context, args.text(0), args.text(1)))),
        "cancel" => cancel(context, args.text(0)),
        "destroy" => destroy(context, args.text(0)),
        "set_status" => set(context, args, "status"),
        "set_progress" => set(context, args, "progress"),
        "set_result" => set(context, args, "result"),
        "set_error_info" => set(context, args, "error_info"),
        _ => Err(unknown("task", name)),
    }
}

/// Makes a pending task.
pub(crate) fn make(context: &Context, label: &str, description: &str) -> String {
    context.with(|s| {
        let mut record = Db::blank("task");
        let host = s.db.refs("host").into_iter().next().unwrap_or_default();
        record.insert("name_label".into(), Value::text(label));
        record.insert("name_description".into(), Value::text(description));
        record.insert("created".into(), now());
        record.insert("status".into(), Value::text("pending"));
        record.insert("resident_on".into(), Value::text(host));
        record.insert("type".into(), Value::text("<none/>"));
        record.insert("backtrace".into(), Value::text("()"));
        record.insert("allowed_operations".into(), Value::texts(["cancel"]));
        s.db.create("task", record)
    })
}

/// Makes a task and runs `work` under it in the background.
pub(crate) fn spawn<F, W>(context: &Context, label: &str, work: F) -> String
where
    F: FnOnce(Context) -> W,
    W: Future<Output = Outcome<Value>> + Send + 'static,
{
    let task = make(context, label, "");
    let inner = Context { task: Some(task.clone()), ..context.clone() };
    let turn = inner.sim.steps.queue(&task, label);
    let running = work(inner.clone());
    let reference = task.clone();
    tokio::spawn(async move {
        // A turn that never comes: the simulator is going away, and this with it.
        if turn.await.is_err() {
            return;
        }
        let outcome = match inner.check_cancelled() {
            Ok(()) => running.await,
            Err(cancelled) => Err(cancelled),
        };
        finish(&inner, &reference, outcome);
    });
    task
}

/// Waits until a task is over. One that is gone is.
pub(crate) async fn finished(sim: &Sim, task: &str) {
    let mut changes = sim.changes.subscribe();
    loop {
        changes.borrow_and_update();
        if !sim.with(|s| pending(&s.db, task)) || changes.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the outcome into a task.
pub(crate) fn finish(context: &Context, task: &str, outcome: Outcome<Value>) {
    if let Err(failure) = &outcome {
        let members = serde_json::json!({"method": "task", "ref": task, "error": failure.list()});
        context.sim.log.add("failure", members);
    }
    context.with(|s| {
        let db = &mut s.db;
        let status = match &outcome {
            Ok(_) => "success",
            Err(failure) if failure.code() == "TASK_CANCELLED" => "cancelled",
            Err(_) => "failure",
        };
        match outcome {
            Ok(value) if value == Value::void() => {}
            Ok(value) => db.put("task", task, "result", Value::text(xml::fragment(&value))),
            Err(failure) => db.put("task", task, "error_info", Value::texts(failure.list().iter().cloned())),
        }
        db.put("task", task, "progress", Value::Float(1.0));
        db.put("task", task, "finished", now());
        db.put("task", task, "allowed_operations", Value::List(Vec::new()));
        let marked =
            db.map("task", task, "current_operations").values().any(|v| v.as_text() == Some("destroy"));
        db.put("task", task, "status", Value::text(status));
        if marked {
            db.remove("task", task);
        }
    });
}

pub(crate) fn check_cancelled(db: &Db, task: &str) -> Outcome<()> {
    let asked = db.map("task", task, "current_operations").values().any(|v| v.as_text() == Some("cancel"));
    if asked { Err(Failure::new("TASK_CANCELLED", [task])) } else { Ok(()) }
}

fn pending(db: &Db, task: &str) -> bool {
    matches!(db.text("task", task, "status").as_str(), "pending" | "cancelling")
}

/// Marks the task; whoever runs it notices at its next step.
fn cancel(context: &Context, task: &str) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("task", task)?;
        if !pending(&s.db, task) {
            return Ok(Value::void());
        }
        s.db.put_key("task", task, "current_operations", "cancel", Some(Value::text("cancel")));
        s.db.put("task", task, "status", Value::text("cancelling"));
        Ok(Value::void())
    })
}

fn destroy(context: &Context, task: &str) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("task", task)?;
        if pending(&s.db, task) {
            s.db.put_key("task", task, "current_operations", "task", Some(Value::text("destroy")));
        } else {
            s.db.remove("task", task);
        }
        Ok(Value::void())
    })
}

fn set(context: &Context, args: &Args, field: &str) -> Outcome<Value> {
    context.with(|s| {
        s.db.get("task", args.text(0))?;
        s.db.put("task", args.text(0), field, args.0[1].clone());
        Ok(Value::void())
    })
}
