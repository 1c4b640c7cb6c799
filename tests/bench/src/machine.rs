//! The machine around a worker: files for disks, the memory of a real appliance, a real clock.

use abd_appliance::platform::memory::{self, Memory};
use abd_appliance::platform::{Disk, State, clock, devices};
use abd_appliance::worker::Outside;
use blocks::ByteCount;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What kernel and initramfs leave of an appliance's 128 MiB: measured in the image.
pub(crate) const AVAILABLE: ByteCount = ByteCount::new(84 << 20);

/// One disk, and nothing to report to.
pub(crate) struct Machine {
    disk: PathBuf,
    io_uring: bool,
    started: Duration,
}

impl Machine {
    pub(crate) fn new(disk: &Path, io_uring: bool) -> Self {
        Self { disk: disk.to_owned(), io_uring, started: clock::uptime() }
    }

    fn open(&self, userdevice: u16, expected: ByteCount) -> Result<Disk, devices::Error> {
        let node = self.disk.clone();
        let found = std::fs::metadata(&node)
            .map_err(|source| devices::Error::Sysfs { path: node.clone(), source })?
            .len();
        let (userdevice, name, found) = (u32::from(userdevice), "disk".to_owned(), ByteCount::new(found));
        if found != expected {
            return Err(devices::Error::Size { userdevice, name, expected, found });
        }
        Ok(Disk { userdevice, name, node, size: found, read_only: false })
    }
}

impl Outside for Machine {
    fn state(&self, _state: State) {}

    fn tick(&self) {}

    fn set_watchdog(&self, _limit: Duration) {}

    fn milestone(&self, _name: &str) {}

    fn line(&self, text: &str) {
        eprintln!("{text}");
    }

    fn network_trouble(&self) -> Option<String> {
        None
    }

    fn source(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        self.open(userdevice, size)
    }

    fn target(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        self.open(userdevice, size)
    }

    fn memory(&self) -> Memory {
        Memory { available_kib: AVAILABLE.get() / 1024, ..memory::now() }
    }

    fn boot_time(&self) -> Duration {
        Duration::ZERO
    }

    fn may_use_io_uring(&self) -> bool {
        self.io_uring
    }

    fn uptime(&self) -> Duration {
        clock::uptime().saturating_sub(self.started)
    }
}

/// What a process has used so far.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Used {
    pub(crate) user_ms: i64,
    pub(crate) system_ms: i64,
    pub(crate) peak_kib: u64,
}

/// What this process has used so far.
pub(crate) fn used() -> Used {
    let (user_ms, system_ms) = getrusage(UsageWho::RUSAGE_SELF)
        .map_or((0, 0), |used| (used.user_time().num_milliseconds(), used.system_time().num_milliseconds()));
    Used { user_ms, system_ms, peak_kib: memory::now().worker_peak_kib }
}
