//! PID 1's world as tables: file systems, device nodes, kernel settings, and the reason for each line.

use std::fs;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::platform::console;

/// One file system to mount.
struct Mount {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    options: Option<&'static str>,
    /// Without a required one nothing works: power off.
    required: bool,
}

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);
const CLOSED: MsFlags = QUIET.union(MsFlags::MS_NODEV);

const MOUNTS: [Mount; 5] = [
    // Starting ourselves again (/proc/self/exe), memory figures, IPv6 addresses, kernel settings.
    Mount { source: "proc", target: "/proc", kind: "proc", flags: CLOSED, options: None, required: true },
    // Which disk and which network card is which.
    Mount { source: "sysfs", target: "/sys", kind: "sysfs", flags: CLOSED, options: None, required: true },
    // Nodes of disks, consoles and the XenStore device, made by the kernel.
    Mount {
        source: "dev",
        target: "/dev",
        kind: "devtmpfs",
        flags: QUIET,
        options: Some("mode=0755"),
        required: true,
    },
    // Room for a file that a library insists on. Small: it is memory of the VM.
    Mount {
        source: "run",
        target: "/run",
        kind: "tmpfs",
        flags: CLOSED,
        options: Some("mode=0755,size=1m"),
        required: false,
    },
    // The old name of the XenStore device; kernels that have /dev/xen/xenbus do not need it.
    Mount {
        source: "xenfs",
        target: "/proc/xen",
        kind: "xenfs",
        flags: CLOSED,
        options: None,
        required: false,
    },
];

/// Device nodes that must exist whatever devtmpfs made: path, major, minor.
const NODES: [(&str, u64, u64); 3] = [
    // Where a person reads what happens.
    ("/dev/console", 5, 1),
    // Standard library and worker open it.
    ("/dev/null", 1, 3),
    // Randomness for DHCP transaction numbers.
    ("/dev/urandom", 1, 9),
];

/// Kernel settings: file under /proc/sys, value. All optional.
const SETTINGS: [(&str, &str); 4] = [
    // A dead kernel does not stay: -1 restarts at once and the toolstack destroys the VM.
    ("kernel/panic", "-1"),
    // A broken kernel must not go on reading disks.
    ("kernel/panic_on_oops", "1"),
    // A hung disk shows up on the console while the watchdog still waits. 0 where the kernel has no such check.
    ("kernel/hung_task_timeout_secs", "60"),
    // Messages of ours that go through the kernel's log are not dropped.
    ("kernel/printk_devkmsg", "on"),
];

/// What kept the machine from getting ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A required file system.
    #[error("mount {kind} on {target}")]
    Mount {
        /// Its type.
        kind: &'static str,
        /// Where.
        target: &'static str,
        /// Why.
        source: Errno,
    },
}

/// Mounts everything, makes missing nodes, applies the settings, names the machine.
pub(crate) fn prepare() -> Result<(), Error> {
    for entry in &MOUNTS {
        // Exists in the image or is made by an earlier line; if neither, the mount says so.
        let _ = fs::create_dir(entry.target);
        match mount(Some(entry.source), entry.target, Some(entry.kind), entry.flags, entry.options) {
            // EBUSY: already mounted there, by the kernel itself.
            Ok(()) | Err(Errno::EBUSY) => {}
            Err(source) if entry.required => {
                return Err(Error::Mount { kind: entry.kind, target: entry.target, source });
            }
            // Optional: whoever needs it says what is missing.
            Err(_) => {}
        }
    }
    for (path, major, minor) in NODES {
        if !Path::new(path).exists() {
            // Whoever opens it says what is missing.
            let _ = mknod(path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(major, minor));
        }
    }
    for (name, value) in SETTINGS {
        // A kernel without the setting is as good as one that has it.
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    if let Err(error) = nix::unistd::sethostname("abd") {
        console::line(&format!("host name not set: {error}"));
    }
    Ok(())
}
