//! Pausing and ending a VM.

use super::metrics;
use super::rules::assert_allowed;
use crate::domain::{Domain, halt};
use crate::failure::{Failure, Outcome};
use crate::operation::Operation;
use crate::rpc::value::{NULL, Value};
use crate::sim::{Context, State};
use crate::storage::{sr, track};
use crate::vbd;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a clean shutdown looks whether the guest has answered; guests tell nobody when they clear the request.
const POLL: Duration = Duration::from_millis(50);

fn domain_of(context: &Context, vm: &str) -> Option<Arc<Domain>> {
    context.with(|s| s.domains.get(vm).cloned())
}

pub(crate) async fn pause(context: &Context, vm: &str) -> Outcome<()> {
    let _running = Operation::begin(context, "VM", vm, "pause", |s| assert_allowed(s, vm, "pause"))?;
    if let Some(domain) = domain_of(context, vm) {
        domain.freeze().await?;
    }
    context.with(|s| change_state(s, vm, "Running", "Paused"));
    Ok(())
}

pub(crate) async fn unpause(context: &Context, vm: &str) -> Outcome<()> {
    let _running = Operation::begin(context, "VM", vm, "unpause", |s| assert_allowed(s, vm, "unpause"))?;
    if let Some(domain) = domain_of(context, vm) {
        domain.thaw().await?;
    }
    context.with(|s| change_state(s, vm, "Paused", "Running"));
    Ok(())
}

/// The guest may have ended meanwhile; a halted VM stays halted.
fn change_state(state: &mut State, vm: &str, from: &str, to: &str) {
    if state.db.text("VM", vm, "power_state") == from {
        state.db.put("VM", vm, "power_state", Value::text(to));
    }
}

pub(crate) async fn hard_shutdown(context: &Context, vm: &str, operation: &str) -> Outcome<()> {
    let _running = Operation::begin(context, "VM", vm, operation, |s| assert_allowed(s, vm, operation))?;
    kill(context, vm).await;
    Ok(())
}

async fn kill(context: &Context, vm: &str) {
    if let Some(domain) = domain_of(context, vm) {
        domain.kill().await;
        halt(context, &domain).await;
    }
}

pub(crate) async fn clean_shutdown(context: &Context, vm: &str) -> Outcome<()> {
    let begun =
        Operation::begin(context, "VM", vm, "clean_shutdown", |s| assert_allowed(s, vm, "clean_shutdown"));
    let _running = begun?;
    let Some(domain) = domain_of(context, vm) else { return Ok(()) };
    if !domain.is_real() {
        halt(context, &domain).await;
        return Ok(());
    }
    let config = &context.sim.config;
    let started = Instant::now();
    domain.request_shutdown().await;
    while domain_of(context, vm).is_some() {
        context.check_cancelled()?;
        if !domain.acknowledged_shutdown() && started.elapsed() > config.shutdown_ack {
            return Err(Failure::new("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", [vm]));
        }
        if started.elapsed() > config.shutdown_limit {
            return Err(Failure::new(
                "VM_SHUTDOWN_TIMEOUT",
                [vm, &config.shutdown_limit.as_secs_f64().to_string()],
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    halt(context, &domain).await;
    Ok(())
}

/// Clean, and hard when that does not work.
pub(crate) async fn shutdown(context: &Context, vm: &str) -> Outcome<()> {
    context.with(|s| assert_allowed(s, vm, "shutdown"))?;
    match clean_shutdown(context, vm).await {
        Ok(()) => Ok(()),
        Err(failure) if failure.code() == "TASK_CANCELLED" => Err(failure),
        Err(_) => hard_shutdown(context, vm, "hard_shutdown").await,
    }
}

pub(crate) async fn power_state_reset(context: &Context, vm: &str) -> Outcome<()> {
    context.with(|s| {
        assert_allowed(s, vm, "power_state_reset")?;
        if s.db.flag("VM", vm, "is_control_domain") {
            return Err(Failure::not_allowed("the control domain cannot be reset"));
        }
        Ok(())
    })?;
    kill(context, vm).await;
    context.with(|s| force_halted(context, s, vm));
    Ok(())
}

/// The end of a running VM, called once per domain after its guest is gone.
pub(crate) async fn halted(context: &Context, domain: &Arc<Domain>) {
    let vm = &domain.vm;
    let disks = context.with(|s| {
        let vbds = s.db.list("VM", vm, "VBDs");
        vbds.iter().map(|v| s.db.text("VBD", v, "VDI")).filter(|v| v != NULL).collect::<Vec<_>>()
    });
    for disk in disks {
        if let Err(failure) = track::settle(context, &disk).await {
            tracing::error!(%failure, "what the guest wrote could not be found out");
        }
    }
    context.with(|s| {
        metrics::copy_back(s, domain);
        s.domains.remove(vm);
        force_halted(context, s, vm);
    });
}

fn force_halted(context: &Context, state: &mut State, vm: &str) {
    for vbd in state.db.list("VM", vm, "VBDs") {
        let disk = state.db.text("VBD", &vbd, "VDI");
        let lag = context.sim.config.detach_lag;
        if state.db.flag("VBD", &vbd, "currently_attached") && disk != NULL && !lag.is_zero() {
            state.lagging.insert(disk, std::time::Instant::now() + lag);
        }
        vbd::detach(state, &vbd);
    }
    for repository in repositories(state, vm) {
        sr::refresh(&context.sim.config, state, &repository);
    }
    let db = &mut state.db;
    for vif in db.list("VM", vm, "VIFs") {
        db.put("VIF", &vif, "currently_attached", Value::Bool(false));
    }
    let guest_metrics = db.text("VM", vm, "guest_metrics");
    db.remove("VM_guest_metrics", &guest_metrics);
    db.put("VM", vm, "guest_metrics", Value::null_ref());
    db.put("VM", vm, "domid", Value::Int(-1));
    db.put("VM", vm, "resident_on", Value::null_ref());
    db.put("VM", vm, "power_state", Value::text("Halted"));
}

fn repositories(state: &State, vm: &str) -> Vec<String> {
    let vbds = state.db.list("VM", vm, "VBDs");
    let of = |vbd: &String| state.db.text("VDI", &state.db.text("VBD", vbd, "VDI"), "SR");
    let mut all: Vec<String> = vbds.iter().map(of).filter(|sr| !sr.is_empty()).collect();
    all.sort();
    all.dedup();
    all
}

/// `VM.set_xenstore_data` on a running VM: the guest's whole `vm-data` tree is replaced.
pub(crate) async fn replace_xenstore_data(context: &Context, vm: &str) {
    let Some(domain) = domain_of(context, vm) else { return };
    let data = context.with(|s| s.db.map("VM", vm, "xenstore_data"));
    let keys = data.into_iter().filter(|(key, _)| key.starts_with("vm-data/"));
    let tree: BTreeMap<String, String> =
        keys.filter_map(|(key, value)| Some((key, value.as_text()?.to_owned()))).collect();
    domain.replace_tree("vm-data", tree).await;
}
