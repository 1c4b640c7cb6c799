//! The VM calls.

pub(crate) mod checkpoint;
pub(crate) mod copying;
pub(crate) mod create;
pub(crate) mod limits;
pub(crate) mod metrics;
pub(crate) mod power;
pub(crate) mod revert;
pub(crate) mod rules;
pub(crate) mod start;

use crate::dispatch::unknown;
use crate::failure::{Failure, Outcome};
use crate::flavour::Flavour;
use crate::rpc::value::{NULL, Value};
use crate::sim::{Args, Context};
use copying::Kind;

pub(crate) async fn call(context: &Context, name: &str, args: &Args) -> Outcome<Value> {
    let done = |()| Value::void();
    match name {
        "create" => create::create(context, args.map(0)).map(Value::Text),
        "destroy" => create::destroy(context, args.text(0)).map(done),
        "snapshot" => {
            let ignored = if args.0.len() > 2 { args.texts(2) } else { Vec::new() };
            let kind = Kind::Snapshot { ignored, quiesced: false };
            copying::copy(context, args.text(0), args.text(1), &kind).await.map(Value::Text)
        }
        // The call is still listed, but no release answers it any more once it is gone (`gen_server.ml`).
        "snapshot_with_quiesce" if !Flavour::quiesces(context.sim.config.flavour.api) => {
            Err(Failure::bare("MESSAGE_REMOVED"))
        }
        "snapshot_with_quiesce" => {
            let kind = Kind::Snapshot { ignored: Vec::new(), quiesced: true };
            copying::copy(context, args.text(0), args.text(1), &kind).await.map(Value::Text)
        }
        "checkpoint" => checkpoint::checkpoint(context, args.text(0), args.text(1)).await.map(Value::Text),
        "revert" => revert::revert(context, args.text(0)).await.map(done),
        "clone" => copying::copy(context, args.text(0), args.text(1), &Kind::Clone).await.map(Value::Text),
        "copy" => {
            let sr = Some(args.text(2)).filter(|r| *r != NULL && !r.is_empty()).map(str::to_owned);
            copying::copy(context, args.text(0), args.text(1), &Kind::Copy { sr }).await.map(Value::Text)
        }
        "provision" => create::provision(context, args.text(0)).await.map(done),
        "start" => start::start(context, args.text(0), None, args.flag(1), "start").await.map(done),
        "start_on" => {
            start::start(context, args.text(0), Some(args.text(1)), args.flag(2), "start_on").await.map(done)
        }
        "pause" => power::pause(context, args.text(0)).await.map(done),
        "unpause" => power::unpause(context, args.text(0)).await.map(done),
        "clean_shutdown" => power::clean_shutdown(context, args.text(0)).await.map(done),
        "hard_shutdown" => {
            power::hard_shutdown(context, args.text(0), "hard_shutdown").await?;
            checkpoint::discard_memory(context, args.text(0)).map(done)
        }
        "shutdown" => {
            power::shutdown(context, args.text(0)).await?;
            checkpoint::discard_memory(context, args.text(0)).map(done)
        }
        "power_state_reset" => power::power_state_reset(context, args.text(0)).await.map(done),
        "get_allowed_VBD_devices" => {
            Ok(Value::texts(context.with(|s| crate::vbd::free_positions(&s.db, args.text(0)))?))
        }
        "get_allowed_VIF_devices" => {
            Ok(Value::texts(context.with(|s| crate::vif::free_positions(&s.db, args.text(0)))?))
        }
        "get_possible_hosts" => {
            Ok(Value::texts(context.with(|s| start::possible_hosts(&s.db, args.text(0)))?))
        }
        "assert_can_boot_here" => {
            context.with(|s| start::assert_can_boot_here(&s.db, args.text(0), args.text(1))).map(done)
        }
        "assert_operation_valid" => {
            context.with(|s| rules::assert_allowed(s, args.text(0), args.text(1))).map(done)
        }
        "update_allowed_operations" => context.with(|s| s.db.touch("VM", args.text(0))).map(done),
        _ => limits::call(context, name, args).unwrap_or_else(|| Err(unknown("VM", name))),
    }
}
