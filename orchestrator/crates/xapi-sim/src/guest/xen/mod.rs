//! Guests on a real Xen, started with `xl` in a control domain that another process runs (`scripts/xen-lab`).
//!
//! Owns the connection to that machine and the guests on it. A guest has a real xenstored, blkback and netback; its
//! disks are hot-plugged into the machine as SCSI disks, read-only ones without a way to write to them. Its network is
//! the machine's bridge, whose uplink is QEMU's user network: 10.0.2.2 is the host's loopback, as for a guest in QEMU.
//!
//! Promises: what [`super`] promises. In addition to what the guest changes in its store, changes from outside are told
//! too: xenstored does not say who wrote. One simulator has the machine at a time; the next waits.
//!
//! Never does: start the machine, or keep anything on it: at the start of a connection, and at its end, every guest is
//! destroyed.

mod agent;
mod attendant;
mod create;
mod machine;
mod mirror;
mod recipe;
mod store;

use super::{GuestConfig, GuestError, GuestEvent};
use machine::Machine;
pub(super) use mirror::Mirror;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{OnceCell, mpsc, watch};

/// How a guest runs on Xen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XenKind {
    /// Paravirtualised: the image's kernel and initramfs, no firmware, no emulated device.
    Pv,
    /// The same kernel in a hardware container.
    Pvh,
    /// A PC with firmware, which boots the guest's own disk.
    Hvm,
}

impl XenKind {
    /// The word that `xl` has for it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            XenKind::Pv => "pv",
            XenKind::Pvh => "pvh",
            XenKind::Hvm => "hvm",
        }
    }
}

/// A Xen machine that runs elsewhere. It is connected to when the first guest starts.
#[derive(Debug, Clone)]
pub struct XenLab(Arc<Lab>);

#[derive(Debug)]
struct Lab {
    directory: PathBuf,
    machine: OnceCell<Arc<Machine>>,
}

impl XenLab {
    /// The machine whose sockets are in this directory.
    pub fn at(directory: impl Into<PathBuf>) -> XenLab {
        XenLab(Arc::new(Lab { directory: directory.into(), machine: OnceCell::new() }))
    }

    fn directory(&self) -> &Path {
        &self.0.directory
    }

    async fn machine(&self) -> Result<Arc<Machine>, GuestError> {
        let connect = async || Machine::connect(self.directory()).await.map(Arc::new);
        self.0.machine.get_or_try_init(connect).await.cloned()
    }
}

impl PartialEq for XenLab {
    fn eq(&self, other: &XenLab) -> bool {
        self.directory() == other.directory()
    }
}

impl Eq for XenLab {}

/// A guest that runs.
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) domain_id: u32,
    pub(super) reins: Reins,
    pub(super) mirror: Arc<Mirror>,
    pub(super) kill: mpsc::Sender<()>,
    pub(super) has_ended: watch::Receiver<bool>,
}

/// Starts a guest. Made by a task of its own, so that whoever loses patience leaves no half-made domain.
pub(super) async fn start(
    config: &GuestConfig,
    kind: XenKind,
    lab: &XenLab,
    events: mpsc::Sender<GuestEvent>,
) -> Result<Started, GuestError> {
    let machine = lab.machine().await?;
    let config = config.clone();
    let made = tokio::spawn(async move { create::create(&machine, &config, kind, events).await });
    made.await.map_err(|_| GuestError::Ended)?
}

/// How a running domain is held.
#[derive(Debug)]
pub(super) struct Reins {
    machine: Arc<Machine>,
    domain_id: u32,
    nics: Vec<u16>,
}

impl Reins {
    /// The handshake of a clean shutdown, as `xl shutdown` does it.
    pub(super) async fn request_shutdown(&self) -> Result<(), GuestError> {
        self.xl("shutdown").await
    }

    pub(super) async fn pause(&self) -> Result<(), GuestError> {
        self.xl("pause").await
    }

    pub(super) async fn resume(&self) -> Result<(), GuestError> {
        self.xl("unpause").await
    }

    pub(super) async fn set_link(&self, up: bool) -> Result<(), GuestError> {
        let state = if up { "up" } else { "down" };
        for nic in &self.nics {
            self.machine.run(&format!("ip link set vif{}.{nic} {state}", self.domain_id)).await?;
        }
        Ok(())
    }

    async fn xl(&self, verb: &str) -> Result<(), GuestError> {
        self.machine.run(&format!("xl {verb} {}", self.domain_id)).await.map(drop)
    }
}
