//! A delegate without a machine: the appliance's own code as a process of this one.
//!
//! Owns the process and its end. The process gets its XenStore as its standard input, the same bytes a guest gets on
//! its port, and its disks by name; everything else (see [`appliance`]) it does as PID 1 and its worker do. A whole job
//! takes milliseconds instead of the seconds that firmware, kernel and emulation take, so that tests can run
//! hundreds.
//!
//! Promises: the process dies with the simulator, also when that is killed; to the API the VM behaves as a guest
//! does: it reports, it can be paused, shut down, killed, cut off, and it is halted once the process is gone.
//!
//! Never does: anything a real appliance does not do, network and disks apart. What it shows of the product is the
//! worker and the protocol; kernel, devices and DHCP are shown by guests in QEMU.

mod appliance;
mod cable;

pub use appliance::run;

use super::qemu::CONSOLE_LOG;
use super::supervisor::with_last_words;
use super::xenstore::{Shared, serve};
use super::{GuestConfig, GuestError, GuestEvent, process};
use crate::storage::surface::Surface;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

/// The hidden subcommand under which the simulator's program is a delegate.
pub const SUBCOMMAND: &str = "delegate";
/// Whether the network cable is plugged in, in the guest's store outside of what the API shows.
pub(super) const LINK_KEY: &str = "lab/link";

/// What the process is told on its command line.
#[derive(Debug, Serialize, Deserialize)]
struct Machine {
    /// Memory of the VM in bytes; the worker takes a share of it.
    memory: u64,
    disks: Vec<MachineDisk>,
    /// The positions of its network cards, rising.
    nics: Vec<u8>,
    network_rate: Option<NonZeroU64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct MachineDisk {
    userdevice: u16,
    path: PathBuf,
    read_only: bool,
    surface: Surface,
}

/// A request to stop the process or to let it go on, and who waits for it.
pub(super) type SignalRequest = (Signal, oneshot::Sender<()>);

/// A delegate that runs.
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) signals: mpsc::Sender<SignalRequest>,
    pub(super) kill: mpsc::Sender<()>,
    pub(super) has_ended: watch::Receiver<bool>,
}

/// Starts the process and what attends to it.
pub(super) async fn start(
    config: &GuestConfig,
    program: &Path,
    network_rate: Option<NonZeroU64>,
    store: Arc<Shared>,
    events: mpsc::Sender<GuestEvent>,
) -> Result<Started, GuestError> {
    let system = |action: &'static str| {
        move |source: io::Error| GuestError::System { action, guest: config.name.clone(), source }
    };
    store
        .write(LINK_KEY, link_value(config.link_up))
        .map_err(|refusal| GuestError::Store { path: LINK_KEY.to_owned(), errno: refusal.name() })?;
    std::fs::create_dir_all(&config.work_dir).map_err(system("making the work directory"))?;
    let log = config.work_dir.join(CONSOLE_LOG);
    let console = File::create(&log).map_err(system("making the console log"))?;
    let (ours, theirs) = StdUnixStream::pair().map_err(system("making its XenStore"))?;
    ours.set_nonblocking(true).map_err(system("making its XenStore"))?;
    let stream = UnixStream::from_std(ours).map_err(system("making its XenStore"))?;
    // Positions were checked to be below 7.
    let mut nics: Vec<u8> = config.nics.iter().filter_map(|nic| nic.device.try_into().ok()).collect();
    nics.sort_unstable();
    let machine = Machine {
        memory: config.memory,
        disks: config
            .disks
            .iter()
            .map(|disk| MachineDisk {
                userdevice: disk.userdevice,
                path: disk.path.clone(),
                read_only: disk.read_only,
                surface: disk.surface.clone(),
            })
            .collect(),
        nics,
        network_rate,
    };
    let machine = serde_json::to_string(&machine).expect("paths were checked to be text");

    let mut command = Command::new(program);
    command
        .args([SUBCOMMAND, &machine])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(console.try_clone().map_err(system("making the console log"))?)
        .stderr(console)
        // An interrupt typed at the simulator's terminal is the simulator's to handle.
        .process_group(0)
        .kill_on_drop(true);
    let child = process::spawn(command).await.map_err(system("starting the delegate"))?;
    let pid = child.id().ok_or(GuestError::Ended)?;

    let (kill, killed) = mpsc::channel(1);
    let (signals, requests) = mpsc::channel(1);
    let (ended, has_ended) = watch::channel(false);
    let port = {
        let events = events.clone();
        tokio::spawn(async move { serve(&store, stream, &events).await })
    };
    let attendant = Attendant { name: config.name.clone(), log, child, port, events };
    tokio::spawn(attendant.run(killed, requests, ended));
    Ok(Started { pid, signals, kill, has_ended })
}

/// Sends a signal to a delegate that may have ended; returns once it was sent.
pub(super) async fn signal(signals: &mpsc::Sender<SignalRequest>, signal: Signal) -> Result<(), GuestError> {
    let (done, sent) = oneshot::channel();
    signals.send((signal, done)).await.map_err(|_| GuestError::Ended)?;
    sent.await.map_err(|_| GuestError::Ended)
}

/// What stands under [`LINK_KEY`].
pub(super) const fn link_value(up: bool) -> &'static str {
    if up { "1" } else { "0" }
}

struct Attendant {
    name: String,
    log: PathBuf,
    child: Child,
    port: JoinHandle<()>,
    events: mpsc::Sender<GuestEvent>,
}

impl Attendant {
    /// Attends to the process until it ends, then tells so.
    async fn run(
        mut self,
        mut killed: mpsc::Receiver<()>,
        mut requests: mpsc::Receiver<SignalRequest>,
        ended: watch::Sender<bool>,
    ) {
        let mut is_killed = false;
        let status = loop {
            tokio::select! {
                status = self.child.wait() => break status,
                // Nothing received: the guest's owner dropped it.
                _ = killed.recv(), if !is_killed => {
                    is_killed = true;
                    if let Err(error) = self.child.start_kill() {
                        tracing::warn!(guest = self.name, %error, "the delegate cannot be killed, it may have ended");
                    }
                }
                Some((signal, done)) = requests.recv() => {
                    self.send(signal);
                    // The asker may have been aborted.
                    let _ = done.send(());
                }
            }
        };
        // Whoever waits in `kill` may be the one who reads `events`: tell them first.
        ended.send_replace(true);
        if self.port.await.is_err() {
            tracing::error!(guest = self.name, "the guest's XenStore server panicked");
        }
        let how = match status {
            Ok(status) if status.success() => "the guest powered itself off".to_owned(),
            // Killed: what it said last has nothing to do with its end.
            Ok(status) if status.code().is_none() => process::describe("the delegate", status),
            Ok(status) => with_last_words(process::describe("the delegate", status), &self.log),
            Err(error) => format!("the delegate's end was not seen: {error}"),
        };
        tracing::info!(guest = self.name, how, "guest ended");
        // Nobody listens any more.
        let _ = self.events.send(GuestEvent::Exited { description: how }).await;
    }

    /// The process was not waited for yet, so its number is still its own.
    fn send(&self, signal: Signal) {
        let pid = self.child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let Some(pid) = pid else { return };
        if let Err(error) = kill_process(pid, signal) {
            tracing::warn!(guest = self.name, %error, ?signal, "the delegate took no signal");
        }
    }
}
