//! What happens to a pool that nobody asked for: sessions lost, hosts that restart, a master that changes, tracking
//! that breaks.

use super::disks::Disk;
use super::{bad, number};
use crate::domain::halt;
use crate::failure::Outcome;
use crate::http::wire::Head;
use crate::rpc::value::Value as ApiValue;
use crate::sim::{Context, State};
use crate::storage::surface::Surface;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Every session ends at once, as when the toolstack restarts. Who waits for events is told so.
pub(super) fn drop_sessions(context: &Context) -> Value {
    let count = context.with(|s| {
        let sessions = s.db.refs("session");
        sessions.iter().for_each(|session| s.db.remove("session", session));
        sessions.len()
    });
    note(context, json!({"what": "sessions dropped", "count": count}));
    json!({"dropped": count})
}

fn note(context: &Context, members: Value) {
    context.sim.log.add("fate", members);
}

/// A host goes down from one moment to the next: its guests vanish, and nothing can be started on it. It comes back
/// after `down_ms`, or, where that is not given, with `boot`. The API goes on answering, also when the host is the
/// master.
pub(super) async fn reboot(context: &Context, uuid: &str, head: &Head) -> Outcome<Value> {
    let down_ms = number(head, "down_ms")?;
    let (host, domains) = context.with(|s| -> Outcome<_> {
        let host = s.db.by_ref_or_uuid("host", uuid)?;
        set_up(s, &host, false);
        let residents = s.db.list("host", &host, "resident_VMs");
        let domains: Vec<_> = residents.iter().filter_map(|vm| s.domains.get(vm).cloned()).collect();
        Ok((host, domains))
    })?;
    note(context, json!({"what": "host down", "host": uuid, "guests": domains.len()}));
    for domain in &domains {
        domain.kill().await;
        halt(context, domain).await;
    }
    if let Some(down_ms) = down_ms {
        let context = context.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(down_ms)).await;
            come_back(&context, &host);
        });
    }
    Ok(json!({"guests": domains.len()}))
}

/// A host that went down is back.
pub(super) fn boot(context: &Context, uuid: &str) -> Outcome<Value> {
    let host = context.with(|s| s.db.by_ref_or_uuid("host", uuid))?;
    come_back(context, &host);
    Ok(json!({}))
}

fn come_back(context: &Context, host: &str) {
    let uuid = context.with(|s| {
        set_up(s, host, true);
        s.db.text("host", host, "uuid")
    });
    note(context, json!({"what": "host up", "host": uuid}));
}

fn set_up(state: &mut State, host: &str, up: bool) {
    let metrics = state.db.text("host", host, "metrics");
    state.db.put("host", host, "enabled", ApiValue::Bool(up));
    state.db.put("host_metrics", &metrics, "live", ApiValue::Bool(up));
}

/// Another host becomes the master: the one named, or else the next one. Sessions and tasks live in the master's memory
/// alone, so they are gone; the endpoint that was the master's answers `HOST_IS_SLAVE` with the address of the other,
/// which answers on the same ports.
pub(super) fn change_master(context: &Context, head: &Head) -> Outcome<Value> {
    let (number, address) = context.with(|s| -> Outcome<_> {
        let old = context.sim.master();
        let hosts = context.sim.config.hosts.max(1);
        let number = match head.query("host") {
            None => (old + 1) % hosts,
            Some(uuid) => host_number(s, &s.db.by_ref_or_uuid("host", uuid)?)?,
        };
        if number == old {
            return Err(bad("that host is the master; a pool of several hosts is made with serve --hosts N"));
        }
        let host = (s.db.refs("host").into_iter())
            .find(|host| host_number(s, host).is_ok_and(|found| found == number))
            .ok_or_else(|| bad(format!("host {} does not exist any more", number + 1)))?;
        for class in ["session", "task"] {
            for gone in s.db.refs(class) {
                s.db.remove(class, &gone);
            }
        }
        for pool in s.db.refs("pool") {
            s.db.put("pool", &pool, "master", ApiValue::text(&host));
        }
        context.sim.set_master(number);
        Ok((number, s.db.text("host", &host, "address")))
    })?;
    note(context, json!({"what": "master changed", "address": address}));
    Ok(json!({"host": number + 1, "address": address}))
}

/// The number of a host, from 0, which is in its name.
fn host_number(state: &State, host: &str) -> Outcome<usize> {
    let name = state.db.text("host", host, "hostname");
    let number = name.rsplit('-').next().and_then(|text| text.parse::<usize>().ok());
    number.and_then(|n| n.checked_sub(1)).ok_or_else(|| bad(format!("host {name} has no number")))
}

impl Disk {
    /// Change tracking breaks, `how` it does:
    /// `inconsistent` (the default): the log is there and known to be wrong, error 459;
    /// `off`: the log is gone and tracking is off, as the storage driver leaves it when it attaches the disk after a
    /// crash of its host;
    /// `restarted`: the same, and somebody has switched tracking on again, so that earlier snapshots are unrelated,
    /// error 460.
    pub(super) fn reset_tracking(&self, head: &Head) -> Outcome<Value> {
        let how = head.query("how").unwrap_or("inconsistent");
        self.context.with(|s| {
            if !s.cbt.tracked(&self.uuid) {
                return Err(bad("changes of this disk are not tracked"));
            }
            match how {
                "inconsistent" => s.cbt.mark_inconsistent(&self.uuid),
                "off" => {
                    s.cbt.disable(&self.uuid);
                    s.db.put("VDI", &self.vdi, "cbt_enabled", ApiValue::Bool(false));
                }
                "restarted" => {
                    s.cbt.disable(&self.uuid);
                    s.cbt.enable(&self.uuid, self.size);
                }
                other => return Err(bad(format!("how={other} is none of inconsistent, off, restarted"))),
            }
            Ok(())
        })?;
        note(&self.context, json!({"what": "tracking reset", "vdi": self.uuid, "how": how}));
        Ok(json!({"how": how}))
    }

    /// Replaces what is wrong with the medium under the disk and its snapshots; `{}` heals it. A delegate sees what there
    /// is when it starts.
    pub(super) fn damage(&self, wanted: Value) -> Outcome<Value> {
        let surface: Surface = serde_json::from_value(wanted.clone()).map_err(|e| bad(e.to_string()))?;
        self.context.with(|s| s.surfaces.set(&self.uuid, surface));
        note(&self.context, json!({"what": "medium changed", "vdi": self.uuid, "surface": wanted}));
        Ok(json!({}))
    }

    /// The log of the live disk forgets what was written to a range: the fault that nobody is told of.
    pub(super) fn forget_changes(&self, head: &Head) -> Outcome<Value> {
        let offset = number(head, "offset")?.unwrap_or(0);
        let size = number(head, "size")?.unwrap_or(self.size);
        let forgotten = self.context.with(|s| -> Outcome<u64> {
            if !s.cbt.tracked(&self.uuid) {
                return Err(bad("changes of this disk are not tracked"));
            }
            Ok(s.cbt.forget(&self.uuid, offset, size))
        })?;
        note(&self.context, json!({"what": "changes forgotten", "vdi": self.uuid, "blocks": forgotten}));
        Ok(json!({"blocks": forgotten}))
    }
}

/// Where a host of the pool listens: the first on 127.0.0.1, each further one on the next address.
pub(crate) fn host_address(number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap_or(u32::MAX);
    Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST).saturating_add(number))
}

/// Gives every host the address at which it listens.
pub(crate) fn set_addresses(state: &mut State) {
    for host in state.db.refs("host") {
        let Ok(number) = host_number(state, &host) else { continue };
        let address = host_address(number).to_string();
        state.db.put("host", &host, "address", ApiValue::text(&address));
        for pif in state.db.list("host", &host, "PIFs") {
            if state.db.flag("PIF", &pif, "management") {
                state.db.put("PIF", &pif, "IP", ApiValue::text(&address));
            }
        }
    }
}
