//! What fate does to guests: kills them, pulls their cables; and what their consoles said.

use super::{bad, number};
use crate::domain::{Domain, halt};
use crate::failure::{Failure, Outcome};
use crate::http::wire::Head;
use crate::sim::Context;
use serde_json::{Value, json};
use std::sync::Arc;

/// The console's last part is enough; firmware can be talkative.
const MAX_CONSOLE_BYTES: usize = 4 << 20;

fn domain(context: &Context, uuid: &str) -> Outcome<Arc<Domain>> {
    context.with(|s| {
        let vm = s.db.by_ref_or_uuid("VM", uuid)?;
        s.domains.get(&vm).cloned().ok_or_else(|| bad("the VM is not running"))
    })
}

/// The domain crashes: its machine is gone from one moment to the next.
pub(super) async fn kill(context: &Context, uuid: &str) -> Outcome<Value> {
    let domain = domain(context, uuid)?;
    domain.kill().await;
    halt(context, &domain).await;
    Ok(json!({}))
}

pub(super) async fn link(context: &Context, uuid: &str, head: &Head) -> Outcome<Value> {
    let up = number(head, "up")?.ok_or_else(|| bad("up is missing"))? != 0;
    domain(context, uuid)?.set_link(up).await?;
    Ok(json!({"up": up}))
}

/// The console of a running guest, or of the last one this VM had.
pub(super) fn console(context: &Context, uuid: &str) -> Outcome<Vec<u8>> {
    let path = match domain(context, uuid) {
        Ok(domain) => domain.console_log().ok_or_else(|| bad("the VM runs without a process"))?,
        // The VM may have been destroyed meanwhile, so its directory is found by name alone.
        Err(_) if uuid.parse::<uuid::Uuid>().is_ok() => {
            context.sim.config.dir.join("guests").join(uuid).join("console.log")
        }
        Err(failure) => return Err(failure),
    };
    let mut text =
        std::fs::read(&path).map_err(|e| Failure::new("NOT_FOUND", [format!("{}: {e}", path.display())]))?;
    if text.len() > MAX_CONSOLE_BYTES {
        text.drain(..text.len() - MAX_CONSOLE_BYTES);
    }
    Ok(text)
}
