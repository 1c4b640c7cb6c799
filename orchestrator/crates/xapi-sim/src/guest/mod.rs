//! A real guest for a simulated VM: its machine, its disks, its network cable and its XenStore.
//!
//! Owns the process and everything it needs in the work directory. With the engine [`Engine::Qemu`] the guest boots by
//! firmware from its own disk, finds a disk by the virtio serial `vbd-<userdevice>`, and speaks XenStore's wire
//! protocol on the virtio-serial port `abd.xenstore`. With [`Engine::Process`] it is the appliance's worker without a
//! machine around it. With [`Engine::Xen`] it is a domain on a real Xen; see `xen`.
//!
//! Promises: no guest process outlives the simulator or the [`Guest`] that stands for it; a [`Guest`] that was
//! started sends [`GuestEvent::Exited`] exactly once, after the last change the guest made; a start that
//! fails leaves no process and sends nothing. Nothing the guest does can stop the simulator.
//!
//! Never does: hardware acceleration (always TCG), or writing to a disk given as read-only. See `qemu`
//! for what the guest's network reaches.
//!
//! Environment: `ABD_QEMU` names the QEMU to use instead of the first `qemu-system-x86_64` in `PATH` (a
//! wrapper script has to `exec` it), `ABD_OVMF` the firmware of UEFI guests.

mod delegate;
mod process;
mod qemu;
mod qmp;
mod supervisor;
mod xen;
mod xenstore;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::storage::surface::Surface;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use qmp::Qmp;
use xenstore::Shared;

pub use delegate::{SUBCOMMAND as DELEGATE_SUBCOMMAND, run as run_delegate};
pub use xen::{XenKind, XenLab};
pub use xenstore::device_number;
#[doc(hidden)]
pub use xenstore::fuzzing;

/// Smallest memory a guest is started with; below it no firmware loads a kernel.
const MEMORY_MIN: u64 = 32 << 20;
/// Sizes of disks are whole sectors of this many bytes.
const SECTOR_SIZE: u64 = 512;

/// What runs a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// An emulated machine that boots the guest's own disk.
    Qemu,
    /// The appliance's worker as a process. Only for delegates: nothing is booted.
    Process {
        /// The simulator's own program, which is a delegate when called as [`DELEGATE_SUBCOMMAND`].
        program: PathBuf,
        /// Bytes per second that its network lets through, in both directions together; no limit where absent.
        network_rate: Option<NonZeroU64>,
    },
    /// A domain on a real Xen.
    Xen {
        /// How it runs there.
        kind: XenKind,
        /// The machine.
        lab: XenLab,
    },
}

/// How a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS: the first sector of the boot disk.
    Bios,
    /// OVMF: `\EFI\BOOT\BOOTX64.EFI` on the boot disk.
    Uefi,
}

/// Everything a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// The VM's name, for the guest's store and for people who look at processes.
    pub name: String,
    /// What runs it.
    pub engine: Engine,
    /// Memory in bytes.
    pub memory: u64,
    /// Number of processors.
    pub vcpus: u32,
    /// How it boots.
    pub firmware: Firmware,
    /// Its disks, in any order.
    pub disks: Vec<GuestDisk>,
    /// Its network cards, in any order.
    pub nics: Vec<GuestNic>,
    /// What stands in its store from the start, by path relative to the domain's home.
    pub xenstore: BTreeMap<String, String>,
    /// A directory for sockets and logs, made if it is missing. Two guests never share one.
    pub work_dir: PathBuf,
    /// Whether the network cables are plugged in at the start.
    pub link_up: bool,
}

/// A disk of a guest: a raw image.
#[derive(Debug, Clone)]
pub struct GuestDisk {
    /// Its place, as in `VBD.userdevice`.
    pub userdevice: u16,
    /// The image. It must not be moved while the guest runs.
    pub path: PathBuf,
    /// Whether the guest must not write to it. Such an image may be used by several guests at once.
    pub read_only: bool,
    /// Whether firmware may boot from it; with several, the lowest `userdevice` comes first.
    pub bootable: bool,
    /// What is wrong with its medium, for a delegate that is a process.
    pub surface: Surface,
}

/// A network card of a guest.
#[derive(Debug, Clone)]
pub struct GuestNic {
    /// Its place, as in `VIF.device`.
    pub device: u16,
    /// Its address, as six hex pairs with colons.
    pub mac: String,
}

/// Something that happened in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest changed its store. Changes made from outside are told by xenstored only, which does not know who wrote.
    XenStoreChanged {
        /// Relative to the domain's home.
        path: String,
        /// The value, read as UTF-8 with replacements; `None` when the node and all below it are gone.
        value: Option<String>,
    },
    /// The guest is gone. Sent exactly once, after everything else.
    Exited {
        /// How it ended, for people.
        description: String,
    },
}

/// Why a guest was not started or not controlled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A program or file that guests need is not on this machine.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// The configuration cannot be a guest.
    #[error("guest {guest} cannot be started: {what}")]
    Config {
        /// The guest's name.
        guest: String,
        /// What is wrong.
        what: String,
    },
    /// The operating system refused something.
    #[error("{action} for guest {guest}")]
    System {
        /// What was tried.
        action: &'static str,
        /// The guest's name.
        guest: String,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended before the guest ran.
    #[error("guest {guest} did not start: {description}")]
    NotStarted {
        /// The guest's name.
        guest: String,
        /// How QEMU ended and what it said last.
        description: String,
    },
    /// QEMU answered a command with an error.
    #[error("QEMU refused {command}: {description}")]
    Refused {
        /// The QMP command.
        command: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU does not answer.
    #[error("{what} did not come within {seconds} s")]
    Silent {
        /// What was waited for.
        what: String,
        /// For how long.
        seconds: u64,
    },
    /// The Xen machine does not do what it should.
    #[error("the Xen lab: {what}\nits console ends with:\n{console}")]
    Xen {
        /// What went wrong.
        what: String,
        /// The last lines of its console.
        console: String,
    },
    /// The guest has ended.
    #[error("the guest has ended")]
    Ended,
    /// A path or value cannot stand in the guest's store.
    #[error("{path} cannot be written to the guest's XenStore: {errno}")]
    Store {
        /// The path.
        path: String,
        /// XenStore's name of the error.
        errno: &'static str,
    },
}

/// A guest that was started. Dropping it kills the guest.
#[derive(Debug)]
pub struct Guest {
    name: String,
    pid: u32,
    domain_id: u32,
    console_log: PathBuf,
    reins: Reins,
    kill: mpsc::Sender<()>,
    has_ended: watch::Receiver<bool>,
}

/// How a running guest is held.
#[derive(Debug)]
enum Reins {
    Qemu { qmp: Qmp, nics: Vec<String>, store: Arc<Shared> },
    Process { signals: mpsc::Sender<delegate::SignalRequest>, store: Arc<Shared> },
    Xen { domain: xen::Reins, mirror: Arc<xen::Mirror> },
}

/// Starts a guest. Returns once its processors run; what happens then comes through `events`, which
/// has to be read: a full channel stops the guest's XenStore.
pub async fn start(config: GuestConfig, events: mpsc::Sender<GuestEvent>) -> Result<Guest, GuestError> {
    check(&config)?;
    let started = match &config.engine {
        Engine::Qemu => {
            let programs = qemu::Programs::find(config.firmware)?;
            let (domain_id, store) = own_store(&config)?;
            let started = supervisor::start(&config, &programs, Arc::clone(&store), events).await?;
            let nics = config.nics.iter().map(qemu::nic_name).collect();
            let reins = Reins::Qemu { qmp: started.qmp, nics, store };
            (started.pid, domain_id, started.kill, started.has_ended, reins)
        }
        Engine::Process { program, network_rate } => {
            let (domain_id, store) = own_store(&config)?;
            let started =
                delegate::start(&config, program, *network_rate, Arc::clone(&store), events).await?;
            let reins = Reins::Process { signals: started.signals, store };
            (started.pid, domain_id, started.kill, started.has_ended, reins)
        }
        Engine::Xen { kind, lab } => {
            let started = xen::start(&config, *kind, lab, events).await?;
            let reins = Reins::Xen { domain: started.reins, mirror: started.mirror };
            (started.pid, started.domain_id, started.kill, started.has_ended, reins)
        }
    };
    let (pid, domain_id, kill, has_ended, reins) = started;
    let console_log = config.work_dir.join(qemu::CONSOLE_LOG);
    let guest = Guest { name: config.name, pid, domain_id, console_log, reins, kill, has_ended };
    tracing::info!(guest = guest.name, domain = domain_id, pid = guest.pid, "guest started");
    Ok(guest)
}

/// The store of a guest that has none of its own, and the domain number in it.
fn own_store(config: &GuestConfig) -> Result<(u32, Arc<Shared>), GuestError> {
    /// Domain numbers are never used twice, as on a host. The control domain has 0.
    static NEXT_DOMAIN: AtomicU32 = AtomicU32::new(1);
    let domain_id = NEXT_DOMAIN.fetch_add(1, Ordering::Relaxed);
    let domain = xenstore::Domain::build(domain_id, config).map_err(|refusal| GuestError::Config {
        guest: config.name.clone(),
        what: format!("its XenStore cannot be filled: {}", refusal.name()),
    })?;
    Ok((domain_id, Arc::new(Shared::new(domain))))
}

impl Guest {
    /// The process number of what runs it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The domain's number in XenStore.
    pub fn domain_id(&self) -> u32 {
        self.domain_id
    }

    /// The file that gets what firmware and kernel write to the serial port.
    pub fn console_log(&self) -> PathBuf {
        self.console_log.clone()
    }

    /// Plugs or unplugs the network cables of all cards.
    pub async fn set_link(&self, up: bool) -> Result<(), GuestError> {
        match &self.reins {
            Reins::Qemu { qmp, nics, .. } => {
                for nic in nics {
                    qmp.execute("set_link", json!({ "name": nic, "up": up })).await?;
                }
                Ok(())
            }
            Reins::Xen { domain, .. } => domain.set_link(up).await,
            Reins::Process { store: own, .. } => {
                let path = delegate::LINK_KEY;
                let store = |refusal: xenstore::Refusal| GuestError::Store {
                    path: path.to_owned(),
                    errno: refusal.name(),
                };
                own.write(path, delegate::link_value(up)).map_err(store)
            }
        }
    }

    /// Asks the guest to power itself off, by `control/shutdown` in its store. Whether and when it does
    /// is up to the guest.
    pub async fn request_shutdown(&self) {
        match &self.reins {
            Reins::Qemu { store, .. } | Reins::Process { store, .. } => {
                if let Err(refusal) = store.write("control/shutdown", "poweroff") {
                    let errno = refusal.name();
                    tracing::error!(guest = self.name, errno, "control/shutdown was not written");
                }
            }
            Reins::Xen { domain, .. } => {
                // It may have ended by itself.
                if let Err(error) = domain.request_shutdown().await {
                    tracing::warn!(guest = self.name, %error, "the domain was not asked to shut down");
                }
            }
        }
    }

    /// Kills the guest without warning and waits until it is gone. One that has ended is fine.
    pub async fn kill(&self) {
        // A kill is on its way already, or the guest has ended.
        let _ = self.kill.try_send(());
        // An error means that the supervisor has ended, and it ends after the guest.
        let _ = self.has_ended.clone().wait_for(|ended| *ended).await;
    }

    /// Stops the guest's processors.
    pub async fn pause(&self) -> Result<(), GuestError> {
        match &self.reins {
            Reins::Qemu { qmp, .. } => qmp.execute("stop", json!({})).await.map(|_| ()),
            Reins::Process { signals, .. } => delegate::signal(signals, Signal::STOP).await,
            Reins::Xen { domain, .. } => domain.pause().await,
        }
    }

    /// Lets the guest's processors run again.
    pub async fn resume(&self) -> Result<(), GuestError> {
        match &self.reins {
            Reins::Qemu { qmp, .. } => qmp.execute("cont", json!({})).await.map(|_| ()),
            Reins::Process { signals, .. } => delegate::signal(signals, Signal::CONT).await,
            Reins::Xen { domain, .. } => domain.resume().await,
        }
    }

    /// The node `prefix` of the guest's store and all nodes below it, by path relative to the domain's
    /// home (`vm-data/abd/state`); nodes without a value are there with an empty one. The empty prefix
    /// gives everything. It can be asked after the end of the guest too.
    pub fn xenstore_tree(&self, prefix: &str) -> BTreeMap<String, String> {
        match &self.reins {
            Reins::Qemu { store, .. } | Reins::Process { store, .. } => store.collect(prefix),
            Reins::Xen { mirror, .. } => mirror.collect(prefix),
        }
    }

    /// Removes the node `prefix` with all below it and writes `tree` there instead, as the toolstack
    /// does. Paths in `tree` are relative to the domain's home, as [`Guest::xenstore_tree`] gives them,
    /// and must lie under `prefix`; if one does not, nothing changes and the refusal is logged.
    pub async fn replace_tree(&self, prefix: &str, tree: BTreeMap<String, String>) {
        let replaced = match &self.reins {
            Reins::Qemu { store, .. } | Reins::Process { store, .. } => {
                store.replace(prefix, &tree).map_err(|refusal| refusal.name())
            }
            Reins::Xen { mirror, .. } => mirror.replace(prefix, &tree).await,
        };
        if let Err(errno) = replaced {
            tracing::error!(guest = self.name, prefix, errno, "the subtree was not replaced");
        }
    }
}

/// Refuses what QEMU or the guest would choke on later.
fn check(config: &GuestConfig) -> Result<(), GuestError> {
    let wrong = |what: String| GuestError::Config { guest: config.name.clone(), what };
    if config.memory < MEMORY_MIN {
        return Err(wrong(format!("{} bytes of memory are less than {MEMORY_MIN}", config.memory)));
    }
    if config.vcpus == 0 {
        return Err(wrong("it has no processor".to_owned()));
    }
    if config.disks.len() > qemu::DISKS_MAX || config.nics.len() > qemu::NICS_MAX {
        return Err(wrong(format!(
            "{} disks and {} network cards are more than {} and {}",
            config.disks.len(),
            config.nics.len(),
            qemu::DISKS_MAX,
            qemu::NICS_MAX
        )));
    }
    let mut places = BTreeSet::new();
    for disk in &config.disks {
        if !places.insert(disk.userdevice) {
            return Err(wrong(format!("two disks have userdevice {}", disk.userdevice)));
        }
        let found = disk.path.metadata().map_err(|source| GuestError::System {
            action: "opening a disk image",
            guest: config.name.clone(),
            source: io::Error::new(source.kind(), format!("{}: {source}", disk.path.display())),
        })?;
        if found.len() == 0 || found.len() % SECTOR_SIZE != 0 {
            let (path, size) = (disk.path.display(), found.len());
            return Err(wrong(format!("disk image {path} of {size} bytes is not a number of whole sectors")));
        }
        if disk.path.to_str().is_none() {
            return Err(wrong(format!("the name of disk image {} is not UTF-8", disk.path.display())));
        }
    }
    let mut places = BTreeSet::new();
    for nic in &config.nics {
        if !places.insert(nic.device) || usize::from(nic.device) >= qemu::NICS_MAX {
            return Err(wrong(format!("network card {} is there twice or out of range", nic.device)));
        }
        if !is_mac(&nic.mac) {
            return Err(wrong(format!("{:?} is not a network card's address", nic.mac)));
        }
    }
    Ok(())
}

fn is_mac(text: &str) -> bool {
    let is_pair = |pair: &str| pair.len() == 2 && pair.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.split(':').count() == 6 && text.split(':').all(is_pair)
}
