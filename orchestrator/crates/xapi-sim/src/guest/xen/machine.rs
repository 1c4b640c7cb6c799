//! The machine under the guests: its agent, its xenstored, and QEMU's control channel for hot-plugging disks.

use super::agent::{Agent, COMMAND_LIMIT};
use super::store::{Client, StoreError};
use crate::guest::qmp::Qmp;
use crate::guest::{GuestDisk, GuestError};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;

/// How long the machine may take until it answers: it boots, or another simulator has it.
const CONNECT_LIMIT: Duration = Duration::from_secs(600);
/// Disks that all guests together can have; 0 is the kernel of PV guests.
const LUNS: std::ops::RangeInclusive<u16> = 1..=64;
/// How much of the console an error carries.
const CONSOLE_LINES: usize = 12;
/// How much of the console is read for that.
const CONSOLE_BYTES: u64 = 8192;
/// How often and with what pause an image is asked to be closed: ten seconds in all, where milliseconds are usual.
const PULL_TRIES: u32 = 200;
const PULL_PAUSE: Duration = Duration::from_millis(50);
/// What QEMU says of an image that is not there.
const NO_NODE: &str = "Failed to find node";
/// SCSI disks of the machine, by their number.
const DISKS: &str = "/sys/class/scsi_device/0:0:0:";

/// What the control domain and the hypervisor said.
#[derive(Debug, Clone)]
pub(super) struct Console(PathBuf);

impl Console {
    /// Of no machine.
    #[cfg(test)]
    pub(super) fn none() -> Console {
        Console(PathBuf::new())
    }

    /// Its last lines.
    pub(super) fn tail(&self) -> String {
        let text = crate::guest::supervisor::last_bytes(&self.0, CONSOLE_BYTES).unwrap_or_default();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(CONSOLE_LINES)..].join("\n")
    }

    pub(super) fn lost(&self, what: &str) -> GuestError {
        GuestError::Xen { what: what.to_owned(), console: self.tail() }
    }
}

/// A machine that was connected to.
#[derive(Debug)]
pub(super) struct Machine {
    agent: Agent,
    pub(super) store: Client,
    qmp: Qmp,
    /// The process number of the QEMU that is the machine.
    pub(super) pid: u32,
    used: Mutex<BTreeSet<u16>>,
    pub(super) console: Console,
}

/// A disk that the machine has; the guest's is given from there.
#[derive(Debug)]
pub(super) struct Plugged {
    lun: u16,
    /// Its place in the guest.
    pub(super) userdevice: u16,
    /// Its file in the control domain.
    pub(super) device: String,
}

impl Machine {
    /// Waits for the machine and takes it, without what another simulator left on it.
    pub(super) async fn connect(directory: &Path) -> Result<Machine, GuestError> {
        let console = Console(directory.join("console.log"));
        let failed = |name: &'static str| {
            let console = console.clone();
            move |error: io::Error| console.lost(&format!("{name} cannot be connected to: {error}"))
        };
        // Whoever has the agent has the machine.
        let stream = connect(directory, "agent.sock").await.map_err(failed("agent.sock"))?;
        let agent = Agent::start(stream, console.clone());
        agent.run("true", CONNECT_LIMIT).await?;
        let stream = connect(directory, "xenstore.sock").await.map_err(failed("xenstore.sock"))?;
        let store = Client::start(stream);
        store.list("/local/domain").await.map_err(|error| refused(&console, "/local/domain", &error))?;
        let stream = connect(directory, "qmp.sock").await.map_err(failed("qmp.sock"))?;
        let pid =
            stream.peer_cred().ok().and_then(|peer| u32::try_from(peer.pid()?).ok()).unwrap_or_default();
        let (qmp, _) = Qmp::start(stream).await?;
        let machine = Machine { agent, store, qmp, pid, used: Mutex::default(), console };
        machine.clear().await?;
        Ok(machine)
    }

    /// Runs a command line in the control domain.
    pub(super) async fn run(&self, line: &str) -> Result<String, GuestError> {
        self.agent.run(line, COMMAND_LIMIT).await
    }

    /// From here on the control domain destroys every guest when the connection ends.
    async fn clear(&self) -> Result<(), GuestError> {
        self.run("touch /run/guests; destroy-guests").await?;
        for lun in LUNS {
            self.pull(lun).await;
        }
        Ok(())
    }

    /// Gives the machine these disks, all or none.
    pub(super) async fn plug(&self, disks: &[GuestDisk]) -> Result<Vec<Plugged>, GuestError> {
        let mut plugged = Vec::new();
        for disk in disks {
            match self.plug_one(disk).await {
                Ok(one) => plugged.push(one),
                Err(error) => {
                    self.unplug(&plugged).await;
                    return Err(error);
                }
            }
        }
        Ok(plugged)
    }

    async fn plug_one(&self, disk: &GuestDisk) -> Result<Plugged, GuestError> {
        let lun = self.take_lun().ok_or_else(|| self.console.lost("it has no room for another disk"))?;
        let outcome = async {
            let locking = if disk.read_only { "off" } else { "auto" };
            let file = json!({
                "driver": "file", "filename": disk.path, "locking": locking, "read-only": disk.read_only,
                "discard": "unmap",
            });
            let node = json!({
                "driver": "raw", "node-name": node_name(lun), "read-only": disk.read_only, "discard": "unmap",
                "file": file,
            });
            self.qmp.execute("blockdev-add", node).await?;
            let device = json!({
                "driver": "scsi-hd", "bus": "disks.0", "lun": lun, "drive": node_name(lun),
                "id": device_name(lun), "serial": format!("lun-{lun}"),
            });
            self.qmp.execute("device_add", device).await?;
            // The kernel finds it by itself; the file appears a moment later.
            let found = format!(
                "n=0; until set -- {DISKS}{lun}/device/block/* && [ -b \"/dev/${{1##*/}}\" ]; \
                 do n=$((n+1)); [ $n -lt 300 ] || exit 1; usleep 100000; done; echo \"${{1##*/}}\""
            );
            self.run(&found).await
        };
        match outcome.await {
            Ok(name) => {
                let device = format!("/dev/{}", name.trim());
                Ok(Plugged { lun, userdevice: disk.userdevice, device })
            }
            Err(error) => {
                self.release(lun).await;
                Err(error)
            }
        }
    }

    /// Takes disks away that no guest uses any more.
    pub(super) async fn unplug(&self, disks: &[Plugged]) {
        for disk in disks {
            self.release(disk.lun).await;
        }
    }

    async fn release(&self, lun: u16) {
        // The kernel lets go first, with everything written; one that never came is fine.
        let node = format!("{DISKS}{lun}/device/delete");
        if let Err(error) = self.run(&format!("[ ! -e {node} ] || echo 1 > {node}")).await {
            tracing::warn!(lun, %error, "a disk is still in use");
        }
        self.pull(lun).await;
        self.used().remove(&lun);
    }

    /// From the machine, whether it is there or not. QEMU lets go of an image a moment after its device is gone.
    async fn pull(&self, lun: u16) {
        // One that is not there is an error and what is wanted.
        let _ = self.qmp.execute("device_del", json!({ "id": device_name(lun) })).await;
        for _ in 0..PULL_TRIES {
            match self.qmp.execute("blockdev-del", json!({ "node-name": node_name(lun) })).await {
                Err(GuestError::Refused { description, .. }) if !description.contains(NO_NODE) => {
                    tracing::debug!(lun, description, "a disk's image is still open");
                }
                _ => return,
            }
            tokio::time::sleep(PULL_PAUSE).await;
        }
        tracing::warn!(lun, "a disk's image stayed open");
    }

    fn take_lun(&self) -> Option<u16> {
        let mut used = self.used();
        let lun = LUNS.into_iter().find(|lun| !used.contains(lun))?;
        used.insert(lun);
        Some(lun)
    }

    fn used(&self) -> MutexGuard<'_, BTreeSet<u16>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What xenstored did not do, as an error of the machine.
pub(super) fn refused(console: &Console, path: &str, error: &StoreError) -> GuestError {
    match error {
        StoreError::Refused(errno) => console.lost(&format!("xenstored refused {path}: {errno}")),
        StoreError::Lost => console.lost("xenstored does not answer any more"),
    }
}

fn node_name(lun: u16) -> String {
    format!("image{lun}")
}

fn device_name(lun: u16) -> String {
    format!("disk{lun}")
}

/// The name the kernel gets is short however deep the directory lies: a socket's name has room for 107 bytes.
async fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    let opened = Arc::new(File::open(directory)?);
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", opened.as_raw_fd())).await
}
