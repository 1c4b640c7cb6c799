//! The two byte streams to XenStore: Xen's character device and, in the lab, a virtio-serial port.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{EndOfFile, Error, Options, XenStore};

/// Name of the virtio-serial port that carries XenStore in the lab.
pub const PORT_NAME: &str = "abd.xenstore";

/// Xen's device: the name of today and the one before it.
const XENBUS: [&str; 2] = ["dev/xen/xenbus", "proc/xen/xenbus"];
const PORTS: &str = "sys/class/virtio-ports";
/// Pause between looks for a device or a peer.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// Longest wait for room in the port. Its host side reads all the time; a full port means that it hangs.
const WRITE_WAIT_MS: u16 = 2_000;
/// How often a reader that waits for data looks whether the host side is still there.
const READ_WAIT_MS: u16 = 500;
/// What the host still sends to a former user of the port arrives within this time.
const DRAIN_WAIT_MS: u16 = 5;
/// Reads while draining: bounds the time against a peer that never stops sending.
const DRAIN_READS_MAX: u32 = 64;

/// Which of the two worlds this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bus {
    /// A Xen guest: disks and network come from Xen's drivers, the kernel obeys `control/shutdown`.
    Xen,
    /// A QEMU guest of the lab: virtio devices, nobody but us obeys `control/shutdown`.
    Lab,
}

/// Finds XenStore and connects to it, waiting up to `limit` for the device and once more for the peer behind it.
///
/// `root` is `/` outside of tests.
pub fn open(root: &Path, limit: Duration, options: Options) -> Result<(XenStore, Bus), Error> {
    let until = Instant::now() + limit;
    loop {
        if let Some(path) = XENBUS.iter().map(|p| root.join(p)).find(|p| p.exists()) {
            return open_xenbus(&path, options).map(|store| (store, Bus::Xen));
        }
        if let Some(path) = find_port(root) {
            return open_port(&path, limit, options).map(|store| (store, Bus::Lab));
        }
        if Instant::now() >= until {
            return Err(Error::NoTransport { waited: limit });
        }
        thread::sleep(LOOK_PAUSE);
    }
}

/// The device node of the port named [`PORT_NAME`], if the kernel shows one.
fn find_port(root: &Path) -> Option<PathBuf> {
    for entry in fs::read_dir(root.join(PORTS)).ok()?.flatten() {
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let node = root.join("dev").join(entry.file_name());
        if name.trim_end() == PORT_NAME && node.exists() {
            return Some(node);
        }
    }
    None
}

fn open_xenbus(path: &Path, options: Options) -> Result<XenStore, Error> {
    let open_error = |source| Error::Open { path: path.display().to_string(), source };
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(open_error)?;
    let writer = file.try_clone().map_err(open_error)?;
    XenStore::over(file, writer, Options { end_of_file: EndOfFile::Final, ..options }).map_err(open_error)
}

fn open_port(path: &Path, limit: Duration, options: Options) -> Result<XenStore, Error> {
    let open_error = |source| Error::Open { path: path.display().to_string(), source };
    let until = Instant::now() + limit;
    let file = loop {
        let opened = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path);
        match opened {
            Ok(file) => break file,
            // The port has one user at a time; the kernel frees it a moment after the former one died.
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                thread::sleep(LOOK_PAUSE)
            }
            Err(e) => return Err(open_error(e)),
        }
    };
    let mut port = Port { file };
    while !port.has_peer().map_err(open_error)? {
        if Instant::now() >= until {
            return Err(Error::NoPeer { path: path.display().to_string(), waited: limit });
        }
        thread::sleep(LOOK_PAUSE);
    }
    port.drain();
    let writer = Port { file: port.file.try_clone().map_err(open_error)? };
    XenStore::over(port, writer, Options { end_of_file: EndOfFile::Retry, ..options }).map_err(open_error)
}

/// A virtio-serial port. Always non-blocking underneath: a blocking write would hang while nobody is behind it.
struct Port {
    file: File,
}

impl Port {
    fn wait(&self, events: PollFlags, wait_ms: u16) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(self.file.as_fd(), events)];
        poll(&mut fds, PollTimeout::from(wait_ms))?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }

    fn has_peer(&self) -> io::Result<bool> {
        Ok(!self.wait(PollFlags::POLLOUT, 0)?.contains(PollFlags::POLLHUP))
    }

    /// Drops what was meant for a process that used the port before.
    fn drain(&mut self) {
        let mut buffer = [0u8; 4096];
        for _ in 0..DRAIN_READS_MAX {
            let ready = self.wait(PollFlags::POLLIN, DRAIN_WAIT_MS).unwrap_or(PollFlags::empty());
            if !ready.contains(PollFlags::POLLIN) || !matches!(self.file.read(&mut buffer), Ok(1..)) {
                return;
            }
        }
    }
}

impl Read for Port {
    /// `Ok(0)`: nobody behind the port. `WouldBlock`: somebody, with nothing to say for a while.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let ready = self.wait(PollFlags::POLLIN, READ_WAIT_MS)?;
        if ready.contains(PollFlags::POLLIN) {
            return self.file.read(buffer);
        }
        if ready.contains(PollFlags::POLLHUP) { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) }
    }
}

impl Write for Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ready = self.wait(PollFlags::POLLOUT, WRITE_WAIT_MS)?;
        if ready.contains(PollFlags::POLLHUP) {
            return Err(ErrorKind::NotConnected.into());
        }
        if !ready.contains(PollFlags::POLLOUT) {
            return Err(ErrorKind::TimedOut.into());
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name_not_its_number() {
        let root = tempfile::tempdir().unwrap();
        for (port, name) in [("vport0p1", "org.qemu.guest_agent.0\n"), ("vport1p2", "abd.xenstore\n")] {
            let class = root.path().join(PORTS).join(port);
            fs::create_dir_all(&class).unwrap();
            fs::write(class.join("name"), name).unwrap();
        }
        assert_eq!(find_port(root.path()), None, "the node does not exist yet");
        fs::create_dir_all(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/vport1p2"), "").unwrap();
        assert_eq!(find_port(root.path()), Some(root.path().join("dev/vport1p2")));
    }

    #[test]
    fn no_transport_is_an_error_that_says_what_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let error = open(root.path(), Duration::ZERO, Options::default()).err().unwrap();
        assert!(error.to_string().contains("/dev/xen/xenbus"), "{error}");
    }
}
