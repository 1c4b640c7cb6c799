//! A running VM: a real guest where the VM has something to boot, nothing but a name where it has not.
//!
//! Ties a guest's events to its records: `vm-data` back into `VM.xenstore_data`, agent keys into the guest metrics, the
//! end of the guest into a halted VM. A VM is halted exactly once, whoever notices first.

use crate::failure::{Failure, Outcome};
use crate::guest::{Guest, GuestConfig, GuestError, GuestEvent, start};
use crate::sim::Context;
use crate::vm::{metrics, power};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{OnceCell, mpsc};

/// Events of one guest that wait to be read; a full channel stops only that guest's XenStore.
const EVENTS_WAITING: usize = 256;

/// One running VM.
#[derive(Debug)]
pub(crate) struct Domain {
    pub(crate) vm: String,
    guest: Option<Guest>,
    /// Filled once the VM has been made halted.
    halted: OnceCell<()>,
}

impl Domain {
    /// A VM that runs without a process.
    pub(crate) fn without_guest(vm: &str) -> Self {
        Self { vm: vm.to_owned(), guest: None, halted: OnceCell::new() }
    }

    /// Starts a real guest; its events are read by a task of their own from `listen` on.
    pub(crate) async fn boot(vm: &str, config: GuestConfig) -> Outcome<(Self, mpsc::Receiver<GuestEvent>)> {
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING);
        let guest = start(config, sender).await.map_err(|e| Failure::internal(chain(&e)))?;
        Ok((Self { vm: vm.to_owned(), guest: Some(guest), halted: OnceCell::new() }, receiver))
    }

    /// Whether a real guest runs.
    pub(crate) fn is_real(&self) -> bool {
        self.guest.is_some()
    }

    /// The domain number that the guest sees.
    pub(crate) fn id(&self) -> Option<u32> {
        self.guest.as_ref().map(Guest::domain_id)
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.guest.as_ref().map(Guest::pid)
    }

    pub(crate) fn console_log(&self) -> Option<PathBuf> {
        self.guest.as_ref().map(Guest::console_log)
    }

    /// Stops the guest's processors, so that a copy of its disk is of one instant.
    pub(crate) async fn freeze(&self) -> Outcome<()> {
        match &self.guest {
            Some(guest) => forgive_end(guest.pause().await),
            None => Ok(()),
        }
    }

    /// Lets the guest's processors run again.
    pub(crate) async fn thaw(&self) -> Outcome<()> {
        match &self.guest {
            Some(guest) => forgive_end(guest.resume().await),
            None => Ok(()),
        }
    }

    /// Pulls or plugs the network cables.
    pub(crate) async fn set_link(&self, up: bool) -> Outcome<()> {
        match &self.guest {
            Some(guest) => guest.set_link(up).await.map_err(|e| Failure::internal(chain(&e))),
            None => Ok(()),
        }
    }

    pub(crate) async fn request_shutdown(&self) {
        if let Some(guest) = &self.guest {
            guest.request_shutdown().await;
        }
    }

    /// Whether the guest has taken the shutdown request out of its store.
    pub(crate) fn acknowledged_shutdown(&self) -> bool {
        self.tree("control/shutdown").get("control/shutdown").is_none_or(String::is_empty)
    }

    pub(crate) async fn kill(&self) {
        if let Some(guest) = &self.guest {
            guest.kill().await;
        }
    }

    /// A part of the guest's store, by paths relative to its home.
    pub(crate) fn tree(&self, prefix: &str) -> BTreeMap<String, String> {
        self.guest.as_ref().map(|g| g.xenstore_tree(prefix)).unwrap_or_default()
    }

    pub(crate) async fn replace_tree(&self, prefix: &str, tree: BTreeMap<String, String>) {
        if let Some(guest) = &self.guest {
            guest.replace_tree(prefix, tree).await;
        }
    }
}

/// A guest that ended on its own while we asked something of it is no failure: its end is told elsewhere.
fn forgive_end(result: Result<(), GuestError>) -> Outcome<()> {
    match result {
        Ok(()) | Err(GuestError::Ended) => Ok(()),
        Err(error) => Err(Failure::internal(chain(&error))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}

/// Reads a guest's events until it is gone, then halts its VM.
pub(crate) fn listen(context: &Context, domain: &Arc<Domain>, mut events: mpsc::Receiver<GuestEvent>) {
    let (context, domain) = (context.clone(), domain.clone());
    tokio::spawn(async move {
        let mut description = String::from("the guest's events ended");
        while let Some(event) = events.recv().await {
            match event {
                GuestEvent::XenStoreChanged { path, .. } => metrics::store_changed(&context, &domain, &path),
                GuestEvent::Exited { description: text } => {
                    description = text;
                    break;
                }
            }
        }
        let uuid = context.with(|s| s.db.text("VM", &domain.vm, "uuid"));
        context.sim.log.add("guest-exit", json!({"vm": uuid, "description": description}));
        halt(&context, &domain).await;
    });
}

/// Makes the VM halted once its guest is gone; later callers wait for the first.
pub(crate) async fn halt(context: &Context, domain: &Arc<Domain>) {
    domain.halted.get_or_init(|| power::halted(context, domain)).await;
}
