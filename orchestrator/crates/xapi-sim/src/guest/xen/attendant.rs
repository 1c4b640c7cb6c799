//! The life of one domain, from its first instruction to [`GuestEvent::Exited`].

use super::create::console_log;
use super::machine::{Machine, Plugged};
use super::mirror::Mirror;
use super::store::Changes;
use crate::guest::GuestEvent;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

pub(super) struct Attendant {
    /// The guest's own name, for people.
    pub(super) guest: String,
    /// The domain's name.
    pub(super) name: String,
    pub(super) domain_id: u32,
    pub(super) machine: Arc<Machine>,
    pub(super) mirror: Arc<Mirror>,
    pub(super) disks: Vec<Plugged>,
    pub(super) console_log: PathBuf,
    pub(super) events: mpsc::Sender<GuestEvent>,
}

impl Attendant {
    /// Attends to the domain until it is gone, then tells so.
    pub(super) async fn run(
        self,
        changes: Arc<Changes>,
        mut killed: mpsc::Receiver<()>,
        ended: watch::Sender<bool>,
    ) {
        let mut is_killed = false;
        let is_there = loop {
            tokio::select! {
                changed = changes.take() => {
                    let Some(paths) = changed else { break false };
                    match self.tell(paths).await {
                        Ok(true) => {}
                        Ok(false) => break true,
                        Err(()) => break false,
                    }
                }
                // Nothing received: the guest's owner dropped it.
                _ = killed.recv(), if !is_killed => {
                    is_killed = true;
                    // It may have ended at the same moment.
                    let line = format!("xl destroy {} 2>/dev/null; true", self.domain_id);
                    if let Err(error) = self.machine.run(&line).await {
                        tracing::error!(guest = self.guest, %error, "the domain was not destroyed");
                        break false;
                    }
                }
            }
        };
        let how = if is_there { self.clear(is_killed).await } else { "the Xen lab ended".to_owned() };
        // Whoever waits in `kill` may be the one who reads `events`: tell them first.
        ended.send_replace(true);
        tracing::info!(guest = self.guest, how, "guest ended");
        // Nobody listens any more.
        let _ = self.events.send(GuestEvent::Exited { description: how }).await;
    }

    /// Takes over what changed. Says whether the domain is still there; an error means that the machine is gone.
    async fn tell(&self, paths: std::collections::BTreeSet<String>) -> Result<bool, ()> {
        for absolute in paths {
            let Some(path) = self.mirror.relative(&absolute) else { continue };
            let exists = match self.mirror.refresh(path).await {
                Ok(exists) => exists,
                Err(super::store::StoreError::Lost) => return Err(()),
                Err(super::store::StoreError::Refused(errno)) => {
                    tracing::warn!(guest = self.guest, path, errno, "a changed node cannot be read");
                    continue;
                }
            };
            if path.is_empty() {
                if !exists {
                    return Ok(false);
                }
                continue;
            }
            let value = self.mirror.value(path);
            // Nobody listens any more: the mirror itself is still right.
            let _ = self.events.send(GuestEvent::XenStoreChanged { path: path.to_owned(), value }).await;
        }
        Ok(true)
    }

    /// Brings the console home and the disks back. Says how the domain ended.
    async fn clear(&self, is_killed: bool) -> String {
        self.machine.store.unwatch(self.mirror.home()).await;
        let name = &self.name;
        let console = self.machine.run(&format!("cat {} 2>/dev/null; true", console_log(name))).await;
        let console = console.unwrap_or_else(|error| format!("the console was not saved: {error}"));
        if let Err(error) = std::fs::write(&self.console_log, console) {
            tracing::warn!(guest = self.guest, %error, "the console was not saved");
        }
        let line = format!(
            "kill $(cat /run/{name}.tail) 2>/dev/null; \
             grep 'has shut down, reason code' /var/log/xen/xl-{name}.log | tail -n 1; rm -f /run/{name}.*"
        );
        let said = self.machine.run(&line).await.unwrap_or_default();
        self.machine.unplug(&self.disks).await;
        describe(&said, is_killed)
    }
}

/// From what `xl` noted: `Domain 3 has shut down, reason code 0 0x0`.
fn describe(noted: &str, is_killed: bool) -> String {
    let code = noted.split("reason code ").nth(1).and_then(|rest| rest.split_whitespace().next());
    match code {
        Some("0") => "the guest powered itself off".to_owned(),
        Some("1") => "the guest asked for a restart, or its kernel panicked".to_owned(),
        Some("3") => "the guest's kernel crashed".to_owned(),
        Some(code) => format!("the domain ended with reason {code}"),
        None if is_killed => "the domain was destroyed".to_owned(),
        None => "the domain was destroyed by somebody else".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[test]
    fn the_end_is_told_in_words() {
        let noted = "Domain 3 has shut down, reason code 0 0x0\n";
        assert_eq!(describe(noted, true), "the guest powered itself off");
        assert_eq!(
            describe("Domain 3 has shut down, reason code 1 0x1", false),
            "the guest asked for a restart, or its kernel panicked"
        );
        assert_eq!(describe("", true), "the domain was destroyed");
        assert_eq!(describe("", false), "the domain was destroyed by somebody else");
    }
}
