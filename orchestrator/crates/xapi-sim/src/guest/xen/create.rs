//! Making a domain: disks, `xl create` with stopped processors, its store, its cables; then it runs.

use super::agent::quoted;
use super::attendant::Attendant;
use super::machine::{Machine, Plugged, refused};
use super::mirror::Mirror;
use super::{Reins, Started, XenKind, recipe};
use crate::guest::qemu::CONSOLE_LOG;
use crate::guest::{GuestConfig, GuestError, GuestEvent};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::{mpsc, watch};

/// Makes a domain and lets it run, or leaves nothing.
pub(super) async fn create(
    machine: &Arc<Machine>,
    config: &GuestConfig,
    kind: XenKind,
    events: mpsc::Sender<GuestEvent>,
) -> Result<Started, GuestError> {
    let system = |action: &'static str| {
        move |source: io::Error| GuestError::System { action, guest: config.name.clone(), source }
    };
    std::fs::create_dir_all(&config.work_dir).map_err(system("making the work directory"))?;
    // There from the start, as with other engines; it is filled when the domain is gone.
    std::fs::File::create(config.work_dir.join(CONSOLE_LOG)).map_err(system("making the console log"))?;
    let name = plain_name(&config.name);
    let disks = machine.plug(&config.disks).await?;
    match build(machine, config, kind, &name, &disks).await {
        Ok((reins, mirror)) => attend(machine, config, name, disks, reins, mirror, events).await,
        Err(error) => {
            abandon(machine, &name, &disks).await;
            Err(error)
        }
    }
}

async fn build(
    machine: &Arc<Machine>,
    config: &GuestConfig,
    kind: XenKind,
    name: &str,
    disks: &[Plugged],
) -> Result<(Reins, Mirror), GuestError> {
    let lines: Vec<String> =
        recipe::lines(config, kind, name, disks).iter().map(|line| quoted(line)).collect();
    let file = format!("/run/{name}.cfg");
    // The guest's console goes to the machine's as well, where it can be seen while it runs.
    let line = format!(
        "printf '%s\\n' {} > {file} && xl create -q -p {file} && \
         {{ tail -n +1 -F {log} > /dev/console 2> /dev/null & }} && echo $! > /run/{name}.tail && xl domid {name}",
        lines.join(" "),
        log = console_log(name),
    );
    let said = machine.run(&line).await?;
    for disk in disks.iter().filter(|disk| recipe::is_attached_later(kind, disk)) {
        machine.run(&format!("xl block-attach {name} {}", quoted(&recipe::disk(config, disk)))).await?;
    }
    let domain_id = said
        .split_whitespace()
        .last()
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| machine.console.lost(&format!("`xl domid` answered {said:?}")))?;
    let mirror = Mirror::new(domain_id, machine.store.clone());
    let nics = config.nics.iter().map(|card| card.device).collect();
    let reins = Reins { machine: machine.clone(), domain_id, nics };
    let filled = mirror.fill(&config.xenstore).await;
    filled.map_err(|error| refused(&machine.console, mirror.home(), &error))?;
    if !config.link_up {
        reins.set_link(false).await?;
    }
    Ok((reins, mirror))
}

async fn attend(
    machine: &Arc<Machine>,
    config: &GuestConfig,
    name: String,
    disks: Vec<Plugged>,
    reins: Reins,
    mirror: Mirror,
    events: mpsc::Sender<GuestEvent>,
) -> Result<Started, GuestError> {
    let mirror = Arc::new(mirror);
    let watched = async {
        let changes = machine.store.watch(mirror.home()).await?;
        mirror.refresh("").await?;
        Ok(changes)
    };
    let failed = |error| refused(&machine.console, mirror.home(), &error);
    let begun = match watched.await.map_err(failed) {
        Ok(changes) => reins.resume().await.map(|()| changes),
        Err(error) => Err(error),
    };
    let changes = match begun {
        Ok(changes) => changes,
        Err(error) => {
            abandon(machine, &name, &disks).await;
            return Err(error);
        }
    };
    let (kill, killed) = mpsc::channel(1);
    let (ended, has_ended) = watch::channel(false);
    let domain_id = reins.domain_id;
    let attendant = Attendant {
        guest: config.name.clone(),
        name,
        domain_id,
        machine: machine.clone(),
        mirror: mirror.clone(),
        disks,
        console_log: config.work_dir.join(CONSOLE_LOG),
        events,
    };
    tokio::spawn(attendant.run(changes, killed, ended));
    Ok(Started { pid: machine.pid, domain_id, reins, mirror, kill, has_ended })
}

/// After a start that failed.
async fn abandon(machine: &Machine, name: &str, disks: &[Plugged]) {
    let line = format!("xl destroy {name} 2>/dev/null; kill $(cat /run/{name}.tail) 2>/dev/null; true");
    if let Err(error) = machine.run(&line).await {
        tracing::warn!(name, %error, "a domain that did not start was perhaps not destroyed");
    }
    machine.unplug(disks).await;
}

/// The file in the control domain that gets what the guest writes to its console.
pub(super) fn console_log(name: &str) -> String {
    format!("/var/log/xen/guest-{name}.log")
}

/// A name that `xl` and a shell take as it is, and that no other domain has.
fn plain_name(name: &str) -> String {
    /// Names are never used twice by one simulator.
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let keep = |letter: &char| letter.is_ascii_alphanumeric() || *letter == '-';
    let kept: String = name.chars().filter(keep).take(24).collect();
    format!("g{}-{kept}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_never_the_same() {
        let (first, second) = (plain_name("a b;'\n/c"), plain_name("a b;'\n/c"));
        assert!(first.ends_with("-abc") && second.ends_with("-abc"), "{first} {second}");
        assert_ne!(first, second);
    }
}
