//! Repositories over the control port: new ones, their size, and the shortening of chains where it waits to be asked.
//!
//! ```text
//! POST /lab/sr                            {"name", "type", "shared"?, "host"?, "capacity"?, "default"?}
//! POST /lab/sr/UUID/coalesce              shortens its chains now
//! POST /lab/sr/UUID/capacity?bytes=N      makes it smaller or larger
//! ```

use super::{Answer, bad, json_body, not_found, number};
use crate::config::SrSpec;
use crate::failure::Outcome;
use crate::http::wire::{Head, Stream};
use crate::sim::Context;
use crate::storage::{hidden, repository, space};
use serde_json::{Value, json};

/// Answers a request about repositories; `rest` is the path behind `/lab/sr`.
pub(super) async fn serve(
    context: &Context,
    method: &str,
    rest: &[&str],
    head: &Head,
    stream: &mut Stream,
) -> Outcome<Answer> {
    match (method, rest) {
        ("POST", []) => {
            let spec = serde_json::from_value(json_body(head, stream).await?);
            add(context, &spec.map_err(|e| bad(e.to_string()))?).map(Answer::Json)
        }
        ("POST", [uuid, "coalesce"]) => context.with(|s| {
            let sr = s.db.by_ref_or_uuid("SR", uuid)?;
            let removed = hidden::coalesce(&context.sim.config, s, &sr);
            Ok(Answer::Json(json!({"removed": removed})))
        }),
        ("POST", [uuid, "capacity"]) => {
            let bytes = number(head, "bytes")?.ok_or_else(|| bad("bytes is missing"))?;
            context.with(|s| {
                let sr = s.db.by_ref_or_uuid("SR", uuid)?;
                s.db.put("SR", &sr, "physical_size", space::size_value(bytes));
                Ok(Answer::Json(json!({"capacity": bytes})))
            })
        }
        _ => Err(not_found(head)),
    }
}

fn add(context: &Context, spec: &SrSpec) -> Outcome<Value> {
    context.with(|s| {
        let reference = repository::add(s, &context.sim.config, spec)?;
        Ok(json!({"ref": reference, "uuid": s.db.text("SR", &reference, "uuid")}))
    })
}
