//! Disks of the order: from a userdevice number to a block device that is what the order says.
//!
//! Owns: the mapping and the checks. Facts: on Xen a frontend disk hangs under a device named `vbd-<XenStore number>`;
//! in the lab a virtio disk carries the serial `vbd-<userdevice>`.
//! Promises: a disk is handed out only if its size is the expected one, to the byte, and if a disk that is to be read
//! cannot be written. Never: derives a disk from a device letter or from an order of appearance; opens it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use blocks::ByteCount;

/// Bytes that sysfs counts disks in, whatever the disk's own sector size is.
const SYSFS_SECTOR: u64 = 512;
/// How long a disk may take to appear: Xen's frontends connect one after the other while the worker already runs.
pub const APPEAR_LIMIT: Duration = Duration::from_secs(10);
/// Position of the disk that an appliance is started from.
pub const OWN_USERDEVICE: u32 = 0;
/// XenStore's numbers of that position: that of the first IDE disk in HVM guests, of `xvda` in others.
const OWN_NUMBERS: [u32; 2] = [768, 202 * 256];
/// Pause between looks.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Highest userdevice XenStore's numbering has room for.
const USERDEVICE_MAX: u32 = (1 << 20) - 1;

/// A disk that was found and checked. Not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// XAPI's position of the disk.
    pub userdevice: u32,
    /// The kernel's name, e.g. `xvde`.
    pub name: String,
    /// The device to open, e.g. `/dev/xvde`.
    pub node: PathBuf,
    /// Its size.
    pub size: ByteCount,
    /// True if the hypervisor lets nobody write to it.
    pub read_only: bool,
}

/// Why a disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device belongs to the userdevice.
    #[error("no disk at userdevice {userdevice} (XenStore device {number}) after {} s; disks seen: {seen}", .waited.as_secs())]
    Missing {
        /// XAPI's position.
        userdevice: u32,
        /// XenStore's device number.
        number: u32,
        /// How long it was waited for.
        waited: Duration,
        /// The disks that are there.
        seen: String,
    },
    /// The device has no size: its backend is not connected or has no medium.
    #[error("disk {name} at userdevice {userdevice} has no size: its backend is not connected")]
    Empty {
        /// XAPI's position.
        userdevice: u32,
        /// The kernel's name.
        name: String,
    },
    /// The device is another disk than the order means.
    #[error("disk {name} at userdevice {userdevice} has {} bytes, the order says {}", .found.get(), .expected.get())]
    Size {
        /// XAPI's position.
        userdevice: u32,
        /// The kernel's name.
        name: String,
        /// Size in the order.
        expected: ByteCount,
        /// Size of the device.
        found: ByteCount,
    },
    /// A disk that is to be read can be written.
    #[error("disk {name} at userdevice {userdevice} is writable, a disk to read must be attached read-only")]
    Writable {
        /// XAPI's position.
        userdevice: u32,
        /// The kernel's name.
        name: String,
    },
    /// A disk that is to be written cannot be.
    #[error(
        "disk {name} at userdevice {userdevice} is read-only, a disk to restore to must be attached read-write"
    )]
    ReadOnly {
        /// XAPI's position.
        userdevice: u32,
        /// The kernel's name.
        name: String,
    },
    /// None that this machine could have been started from.
    #[error("this machine has no disk of its own (at userdevice {OWN_USERDEVICE}); disks seen: {seen}")]
    NoOwn {
        /// The disks that are there.
        seen: String,
    },
    /// A userdevice that cannot exist.
    #[error("userdevice {userdevice} is not a disk position (0 to {USERDEVICE_MAX})")]
    BadUserdevice {
        /// The number.
        userdevice: u32,
    },
    /// The kernel does not tell what it must.
    #[error("read {}", .path.display())]
    Sysfs {
        /// The attribute.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel tells nonsense.
    #[error("{} says {value:?}, not a number", .path.display())]
    BadAttribute {
        /// The attribute.
        path: PathBuf,
        /// What it holds.
        value: String,
    },
}

impl Error {
    /// Short code for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Error::Missing { .. } | Error::NoOwn { .. } | Error::BadUserdevice { .. } => "disk-missing",
            Error::Empty { .. } => "disk-empty",
            Error::Size { .. } => "disk-size",
            Error::Writable { .. } => "disk-writable",
            Error::ReadOnly { .. } => "disk-read-only",
            Error::Sysfs { .. } | Error::BadAttribute { .. } => "disk-unknown",
        }
    }
}

/// What a disk is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// Finds disks below a root directory (`/` outside of tests).
#[derive(Debug, Clone)]
pub struct Disks {
    root: PathBuf,
    limit: Duration,
}

impl Default for Disks {
    fn default() -> Disks {
        Disks { root: PathBuf::from("/"), limit: APPEAR_LIMIT }
    }
}

impl Disks {
    /// Looks below `root`, waiting up to `limit` for a disk to appear.
    pub fn new(root: impl Into<PathBuf>, limit: Duration) -> Disks {
        Disks { root: root.into(), limit }
    }

    /// The disk to read from: there, of that size, and read-only.
    pub fn open_source(&self, userdevice: u32, size: ByteCount) -> Result<Disk, Error> {
        check(self.find(userdevice)?, size, Use::Read)
    }

    /// The disk to write to: there, of that size, and writable.
    pub fn open_target(&self, userdevice: u32, size: ByteCount) -> Result<Disk, Error> {
        check(self.find(userdevice)?, size, Use::Write)
    }

    /// The disk that this machine was started from. It is there by now, or not at all.
    pub fn find_own(&self) -> Result<Disk, Error> {
        for number in OWN_NUMBERS {
            if let Some(disk) = look(&self.root, OWN_USERDEVICE, number)?.filter(|disk| disk.size.get() > 0) {
                return Ok(disk);
            }
        }
        let seen = block_names(&self.root)?.join(" ");
        Err(Error::NoOwn { seen: if seen.is_empty() { "none".to_owned() } else { seen } })
    }

    /// The disk at a userdevice, as soon as it is there and has a size.
    pub fn find(&self, userdevice: u32) -> Result<Disk, Error> {
        let number = xenstore_number(userdevice).ok_or(Error::BadUserdevice { userdevice })?;
        let until = Instant::now() + self.limit;
        loop {
            let found = look(&self.root, userdevice, number)?;
            let late = Instant::now() >= until;
            match found {
                Some(disk) if disk.size.get() > 0 => return Ok(disk),
                Some(disk) if late => return Err(Error::Empty { userdevice, name: disk.name }),
                None if late => {
                    let seen = block_names(&self.root)?.join(" ");
                    let seen = if seen.is_empty() { "none".to_owned() } else { seen };
                    return Err(Error::Missing { userdevice, number, waited: self.limit, seen });
                }
                _ => thread::sleep(LOOK_PAUSE),
            }
        }
    }
}

/// XenStore's number of a userdevice on an HVM guest: the first four are IDE disks, then xvd with 16 minors each, then
/// the extended scheme with 256.
pub fn xenstore_number(userdevice: u32) -> Option<u32> {
    match userdevice {
        0 => Some(768),
        1 => Some(832),
        2 => Some(5632),
        3 => Some(5696),
        4..=15 => Some(202 * 256 + userdevice * 16),
        16..=USERDEVICE_MAX => Some((1 << 28) + userdevice * 256),
        _ => None,
    }
}

fn check(disk: Disk, expected: ByteCount, purpose: Use) -> Result<Disk, Error> {
    let (userdevice, name) = (disk.userdevice, disk.name.clone());
    if disk.size != expected {
        return Err(Error::Size { userdevice, name, expected, found: disk.size });
    }
    match (purpose, disk.read_only) {
        (Use::Read, false) => Err(Error::Writable { userdevice, name }),
        (Use::Write, true) => Err(Error::ReadOnly { userdevice, name }),
        _ => Ok(disk),
    }
}

fn look(root: &Path, userdevice: u32, number: u32) -> Result<Option<Disk>, Error> {
    for name in block_names(root)? {
        let dir = root.join("sys/block").join(&name);
        if !is_xen_disk(&dir, number) && !is_lab_disk(&dir, userdevice) {
            continue;
        }
        let sectors = number_in(&dir.join("size"))?;
        let size = ByteCount::new(sectors.saturating_mul(SYSFS_SECTOR));
        let read_only = number_in(&dir.join("ro"))? != 0;
        let node = root.join("dev").join(&name);
        return Ok(Some(Disk { userdevice, name, node, size, read_only }));
    }
    Ok(None)
}

fn is_xen_disk(dir: &Path, number: u32) -> bool {
    let device = dir.join("device");
    let wanted = format!("vbd-{number}");
    let by_link = fs::read_link(&device).is_ok_and(|to| to.file_name().is_some_and(|n| n == wanted.as_str()));
    by_link
        || fs::read_to_string(device.join("nodename"))
            .is_ok_and(|n| n.trim() == format!("device/vbd/{number}"))
}

fn is_lab_disk(dir: &Path, userdevice: u32) -> bool {
    fs::read_to_string(dir.join("serial")).is_ok_and(|s| s.trim() == format!("vbd-{userdevice}"))
}

fn block_names(root: &Path) -> Result<Vec<String>, Error> {
    let path = root.join("sys/block");
    let entries = fs::read_dir(&path).map_err(|source| Error::Sysfs { path, source })?;
    let mut names: Vec<_> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn number_in(path: &Path) -> Result<u64, Error> {
    let text = fs::read_to_string(path).map_err(|source| Error::Sysfs { path: path.to_owned(), source })?;
    let value = text.trim();
    value.parse().map_err(|_| Error::BadAttribute { path: path.to_owned(), value: value.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Fake {
            let fake = Fake(tempfile::tempdir().unwrap());
            fs::create_dir_all(fake.0.path().join("sys/block")).unwrap();
            fake
        }

        fn disk(&self, name: &str, sectors: &str, ro: &str) -> PathBuf {
            let dir = self.0.path().join("sys/block").join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("size"), sectors).unwrap();
            fs::write(dir.join("ro"), ro).unwrap();
            dir
        }

        fn lab(&self, name: &str, userdevice: u32, sectors: &str, ro: &str) {
            fs::write(self.disk(name, sectors, ro).join("serial"), format!("vbd-{userdevice}\n")).unwrap();
        }

        fn xen(&self, name: &str, number: u32, sectors: &str, ro: &str) {
            let device = self.0.path().join(format!("sys/devices/vbd-{number}"));
            fs::create_dir_all(&device).unwrap();
            symlink(device, self.disk(name, sectors, ro).join("device")).unwrap();
        }

        fn disks(&self) -> Disks {
            Disks::new(self.0.path(), Duration::ZERO)
        }
    }

    #[test]
    fn the_own_disk_is_found_in_every_kind_of_guest_and_never_another() {
        for number in OWN_NUMBERS {
            let fake = Fake::new();
            fake.xen("xvde", 51776, "8", "1");
            let error = fake.disks().find_own().unwrap_err();
            assert_eq!((error.code(), error.to_string().contains("xvde")), ("disk-missing", true), "{error}");
            fake.xen("xvda", number, "8", "0");
            assert_eq!(fake.disks().find_own().unwrap().name, "xvda");
        }
        let fake = Fake::new();
        fake.lab("vda", 0, "2048", "0");
        assert_eq!(fake.disks().find_own().unwrap().size, ByteCount::new(1 << 20));
    }

    #[test]
    fn xenstore_numbers_of_known_positions() {
        let known =
            [(0, 768), (3, 5696), (4, 51776), (5, 51792), (15, 51952), (16, 268_439_552), (26, 268_442_112)];
        for (userdevice, number) in known {
            assert_eq!(xenstore_number(userdevice), Some(number), "{userdevice}");
        }
        assert!(xenstore_number(USERDEVICE_MAX).is_some());
        assert_eq!(xenstore_number(USERDEVICE_MAX + 1), None);
        assert_eq!(xenstore_number(u32::MAX), None);
    }

    #[test]
    fn disks_are_found_by_number_and_serial_not_by_letter() {
        let fake = Fake::new();
        fake.lab("vda", 5, "2048", "1");
        fake.lab("vdb", 4, "1", "1");
        fake.xen("xvda", 51808, "4096", "0");
        let disk = fake.disks().open_source(4, ByteCount::new(512)).unwrap();
        assert_eq!((disk.name.as_str(), disk.node), ("vdb", fake.0.path().join("dev/vdb")));
        assert_eq!(fake.disks().open_target(6, ByteCount::new(2 << 20)).unwrap().name, "xvda");
    }

    #[test]
    fn a_serial_that_only_starts_alike_is_another_disk() {
        let fake = Fake::new();
        fake.lab("vda", 41, "8", "1");
        let error = fake.disks().open_source(4, ByteCount::new(4096)).unwrap_err();
        assert_eq!(error.code(), "disk-missing");
        assert_eq!(
            error.to_string(),
            "no disk at userdevice 4 (XenStore device 51776) after 0 s; disks seen: vda"
        );
    }

    #[test]
    fn a_wrong_size_is_refused_to_the_byte() {
        let fake = Fake::new();
        fake.lab("vda", 4, "2049", "1");
        let error = fake.disks().open_source(4, ByteCount::new(1 << 20)).unwrap_err();
        assert_eq!(error.code(), "disk-size");
        assert_eq!(error.to_string(), "disk vda at userdevice 4 has 1049088 bytes, the order says 1048576");
    }

    #[test]
    fn sources_must_be_read_only_and_targets_writable() {
        let fake = Fake::new();
        fake.lab("vda", 4, "8", "0");
        fake.lab("vdb", 5, "8", "1");
        assert_eq!(fake.disks().open_source(4, ByteCount::new(4096)).unwrap_err().code(), "disk-writable");
        assert_eq!(fake.disks().open_target(5, ByteCount::new(4096)).unwrap_err().code(), "disk-read-only");
    }

    #[test]
    fn a_disk_without_a_size_is_its_own_error() {
        let fake = Fake::new();
        fake.lab("vda", 4, "0", "1");
        assert_eq!(fake.disks().open_source(4, ByteCount::new(0)).unwrap_err().code(), "disk-empty");
    }

    #[test]
    fn nonsense_in_sysfs_is_an_error_that_names_the_file() {
        let fake = Fake::new();
        fake.lab("vda", 4, "many", "1");
        let error = fake.disks().open_source(4, ByteCount::new(1)).unwrap_err();
        assert!(error.to_string().ends_with("sys/block/vda/size says \"many\", not a number"), "{error}");
    }

    #[test]
    fn a_disk_that_appears_late_is_waited_for() {
        let fake = Fake::new();
        let disks = Disks::new(fake.0.path(), Duration::from_secs(60));
        let waiting = thread::spawn(move || disks.open_source(4, ByteCount::new(4096)));
        fake.lab("vda", 4, "8", "1");
        // The serial is written last, so a look in between sees no disk yet.
        assert_eq!(waiting.join().unwrap().unwrap().name, "vda");
    }
}
