//! Single-step mode: a test, not the clock, decides when an asynchronous call runs.

use super::{bad, number};
use crate::failure::Outcome;
use crate::http::wire::Head;
use crate::sim::Sim;
use crate::task;
use serde_json::{Value, json};

/// Whether tasks wait, and which.
pub(super) fn show(sim: &Sim) -> Value {
    let waiting = sim.steps.waiting();
    let waiting: Vec<Value> =
        waiting.iter().map(|(task, name)| json!({"task": task, "name": name})).collect();
    json!({"on": sim.steps.is_on(), "waiting": waiting})
}

/// `on=1` and `on=0` switch; otherwise the next `n` tasks run, one after the other, each to its end. `n` absent is one,
/// and fewer may be waiting.
pub(super) async fn advance(sim: &Sim, head: &Head) -> Outcome<Value> {
    if let Some(on) = number(head, "on")? {
        sim.steps.switch(on != 0);
        return Ok(show(sim));
    }
    if !sim.steps.is_on() {
        return Err(bad("nothing waits for a step: start with serve --step, or POST /lab/step?on=1"));
    }
    let mut ran = Vec::new();
    for _ in 0..number(head, "n")?.unwrap_or(1) {
        let Some(turn) = sim.steps.next() else { break };
        if turn.go.send(()).is_ok() {
            task::finished(sim, &turn.task).await;
        }
        let status = sim.with(|s| s.db.text("task", &turn.task, "status"));
        ran.push(json!({"task": turn.task, "name": turn.label, "status": status}));
    }
    let mut answer = show(sim);
    answer["ran"] = json!(ran);
    Ok(answer)
}
