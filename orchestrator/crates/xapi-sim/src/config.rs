//! What a simulator is started with.

use crate::flavour::Flavour;
use crate::guest::Engine;
use std::{path::PathBuf, time::Duration};

/// Everything that can be chosen at start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the simulator's state: disks, logs, guests. Made when missing.
    pub dir: PathBuf,
    /// The release to imitate.
    pub flavour: Flavour,
    /// Whether `/jsonrpc` exists; `false` makes clients fall back to XML-RPC.
    pub json: bool,
    /// The one user with a password.
    pub user: String,
    /// Its password.
    pub password: String,
    /// How long a wrong password is left waiting. Real servers: 5 s.
    pub login_delay: Duration,
    /// Number of hosts, each with a local storage repository.
    pub hosts: usize,
    /// Size of each storage repository in bytes.
    pub sr_capacity: u64,
    /// How long disks stay busy after their guest halted.
    pub detach_lag: Duration,
    /// How long a guest has to acknowledge a clean shutdown. Real servers: 60 s.
    pub shutdown_ack: Duration,
    /// How long a clean shutdown may take in total. Real servers: 1200 s.
    pub shutdown_limit: Duration,
    /// How long `VDI.data_destroy` waits for the VBDs to go. Real servers: 4 s.
    pub data_destroy_wait: Duration,
    /// What runs our delegates: VMs that are clones of the appliance's template. All other guests boot in QEMU.
    pub delegates: Engine,
    /// Whether the log tells what every disk held at each snapshot of a VM; see `lab::contents`. Each snapshot then costs
    /// one reading of its disks.
    pub snapshot_digests: bool,
    /// Whether asynchronous calls wait until a test lets them run, one by one.
    pub step: bool,
    /// Path of the Unix socket; `None` puts `xapi.sock` into `dir`.
    pub socket: Option<PathBuf>,
    /// Fixed loopback ports for HTTPS, HTTP and the lab; 0 picks free ones.
    pub ports: [u16; 3],
}

impl Config {
    /// The defaults for a state directory: newest release, user `root` with password `password`, no login delay.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            flavour: Flavour::newest(),
            json: true,
            user: "root".into(),
            password: "password".into(),
            login_delay: Duration::ZERO,
            hosts: 1,
            sr_capacity: 1 << 42,
            detach_lag: Duration::ZERO,
            shutdown_ack: Duration::from_secs(60),
            shutdown_limit: Duration::from_secs(1200),
            data_destroy_wait: Duration::from_secs(4),
            delegates: Engine::Qemu,
            snapshot_digests: false,
            step: false,
            socket: None,
            ports: [0; 3],
        }
    }
}
