//! What the job needs from the machine around it, so that a test can be that machine.

use crate::platform::{Disk, State, WorkerEnv, clock, devices, memory};
use blocks::ByteCount;
use std::time::Duration;

/// The machine around the job.
pub trait Outside: Send + Sync + 'static {
    /// Says how far the job is.
    fn state(&self, state: State);
    /// Progress was made, or the orchestrator answered.
    fn tick(&self);
    /// The watchdog's time.
    fn set_watchdog(&self, limit: Duration);
    /// A named moment.
    fn milestone(&self, name: &str);
    /// A line for people who look at the console.
    fn line(&self, text: &str);
    /// What is wrong with the network just now.
    fn network_trouble(&self) -> Option<String>;
    /// The disk to read from at a userdevice.
    ///
    /// # Errors
    /// Where it is not there, of another size, or writable.
    fn source(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error>;
    /// The disk to write to at a userdevice.
    ///
    /// # Errors
    /// Where it is not there, of another size, or not writable.
    fn target(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error>;
    /// The disk that the machine itself was started from, whatever it measures.
    ///
    /// # Errors
    /// Where there is none.
    fn own_disk(&self) -> Result<Disk, devices::Error> {
        Err(devices::Error::NoOwn { seen: "none".to_owned() })
    }
    /// What was reached when, since the kernel's start.
    fn milestones(&self) -> Vec<(String, Duration)> {
        Vec::new()
    }
    /// What stands between a disk and those who read it, where this is a test bed.
    fn seam(&self, _userdevice: u16) -> Option<Box<dyn diskio::Seam>> {
        None
    }
    /// Memory of the machine and of this process.
    fn memory(&self) -> memory::Memory;
    /// Time from the kernel's start to user space.
    fn boot_time(&self) -> Duration;
    /// Whether io_uring may be used where the kernel has it.
    fn may_use_io_uring(&self) -> bool {
        true
    }
    /// Time since the kernel's start.
    fn uptime(&self) -> Duration {
        clock::uptime()
    }
    /// Lets that much of [`uptime`](Self::uptime) go by.
    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

impl Outside for WorkerEnv {
    fn state(&self, state: State) {
        self.reporter.state(state);
    }

    fn tick(&self) {
        self.ticker.tick();
    }

    fn set_watchdog(&self, limit: Duration) {
        self.ticker.set_limit(limit);
    }

    fn milestone(&self, name: &str) {
        self.milestones.mark(name);
    }

    fn line(&self, text: &str) {
        crate::platform::console::line(text);
    }

    fn network_trouble(&self) -> Option<String> {
        self.network.trouble()
    }

    fn source(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        self.disks.open_source(u32::from(userdevice), size)
    }

    fn target(&self, userdevice: u16, size: ByteCount) -> Result<Disk, devices::Error> {
        self.disks.open_target(u32::from(userdevice), size)
    }

    fn own_disk(&self) -> Result<Disk, devices::Error> {
        self.disks.find_own()
    }

    fn milestones(&self) -> Vec<(String, Duration)> {
        self.milestones.list()
    }

    fn memory(&self) -> memory::Memory {
        memory::now()
    }

    fn boot_time(&self) -> Duration {
        self.milestones.list().first().map_or(Duration::ZERO, |(_, at)| *at)
    }
}
