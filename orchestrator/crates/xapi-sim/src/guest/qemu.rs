//! The QEMU command line of a guest.
//!
//! Owns where QEMU and firmware are found and which devices a guest gets. Promises: the same guest gives
//! the same command line, no name or path in it can be read as an option, and acceleration is always
//! TCG: a `/dev/kvm` that opens is not one that works.
//!
//! A guest's network is QEMU's user-mode stack: the guest gets an address by DHCP or by router
//! advertisement and sees the host's loopback as 10.0.2.2 and fec0::2. That stack also carries the guest
//! to whatever the host can reach; a lab guest has nothing to look for there.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Firmware, GuestConfig, GuestDisk, GuestError, GuestNic};

/// The program's name where `ABD_QEMU` is not set.
const QEMU: &str = "qemu-system-x86_64";
/// Environment variable with the path of QEMU.
const QEMU_VARIABLE: &str = "ABD_QEMU";
/// Environment variable with the path of a UEFI firmware image.
const UEFI_VARIABLE: &str = "ABD_OVMF";
/// Where Debian's `ovmf` keeps the image that needs no separate variable store.
const UEFI_PATHS: [&str; 2] = ["/usr/share/ovmf/OVMF.fd", "/usr/share/qemu/OVMF.fd"];
/// From util-linux; see [`super::process`].
const SETPRIV: &str = "setpriv";

/// The processor a guest sees.
///
/// TCG emulates SSE2 well and what came later badly, so that code which picks its path by what the
/// processor offers is slower on a richer one. MiB/s seen on one core of an EPYC host:
///
/// | | `qemu64` | with SSSE3 | with SSE4, AES, BMI | `max` |
/// |---|---|---|---|---|
/// | BLAKE3 | 106 | 105 | 54 | 66 |
/// | ChaCha20-Poly1305 | 119 | 40 | 54 | 63 |
/// | AES-256-GCM | 19 | 4 | 46 | 44 |
/// | zstd -1 | 50 | 40 | 50 | 43 |
///
/// BMI2 and POPCNT alone changed nothing.
const CPU: &str = "qemu64";

/// Disks a guest can have: the machine has 32 PCI slots and needs some for itself.
pub(super) const DISKS_MAX: usize = 24;
/// Network cards a guest can have, as XAPI allows.
pub(super) const NICS_MAX: usize = 7;

/// Socket of QEMU's control channel, in the work directory.
pub(super) const QMP_SOCKET: &str = "qmp.sock";
/// Socket behind the guest's XenStore port, in the work directory.
pub(super) const XENSTORE_SOCKET: &str = "xenstore.sock";
/// What the guest wrote to its serial port.
pub(super) const CONSOLE_LOG: &str = "console.log";
/// What QEMU itself had to say.
pub(super) const QEMU_LOG: &str = "qemu.log";

/// The name by which the guest finds its XenStore port.
const XENSTORE_PORT: &str = "abd.xenstore";

/// What has to be on the machine for a guest to start.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) setpriv: PathBuf,
    pub(super) qemu: PathBuf,
    uefi: Option<PathBuf>,
}

impl Programs {
    /// Finds them, or says which one is missing and what to do.
    pub(super) fn find(firmware: Firmware) -> Result<Programs, GuestError> {
        let missing = |what: &str, remedy: &str| GuestError::Missing {
            what: what.to_owned(),
            remedy: remedy.to_owned(),
        };
        let qemu = match std::env::var_os(QEMU_VARIABLE) {
            Some(named) => Some(PathBuf::from(&named)).filter(|path| is_program(path)).ok_or_else(|| {
                let what = format!("QEMU at {QEMU_VARIABLE}={}", named.display());
                missing(&what, "let the variable name an executable file")
            })?,
            None => in_path(QEMU).ok_or_else(|| {
                let remedy = format!("install it, or set {QEMU_VARIABLE} to its path");
                missing(QEMU, &remedy)
            })?,
        };
        let setpriv = in_path(SETPRIV).ok_or_else(|| missing(SETPRIV, "install util-linux"))?;
        let uefi = match firmware {
            Firmware::Bios => None,
            Firmware::Uefi => Some(find_uefi().ok_or_else(|| {
                let remedy = format!("install ovmf, or set {UEFI_VARIABLE} to the image");
                missing("a UEFI firmware image", &remedy)
            })?),
        };
        Ok(Programs { setpriv, qemu, uefi })
    }

    /// Arguments of `setpriv`: QEMU with the guest's machine. Paths of sockets and logs are relative to
    /// the work directory, in which it has to run.
    pub(super) fn arguments(&self, config: &GuestConfig) -> Vec<OsString> {
        let mut line = Line::default();
        for word in ["--pdeathsig", "KILL", "--"] {
            line.0.push(word.into());
        }
        line.0.push(self.qemu.clone().into());
        self.machine(&mut line, config);
        channels(&mut line);
        for disk in &config.disks {
            add_disk(&mut line, disk);
        }
        for nic in &config.nics {
            add_nic(&mut line, nic);
        }
        line.0
    }

    fn machine(&self, line: &mut Line, config: &GuestConfig) {
        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.flag("-no-reboot");
        // Stopped, until the cables are as they shall be.
        line.flag("-S");
        line.option("-machine", "pc,graphics=off");
        line.option("-accel", "tcg");
        line.option("-cpu", CPU);
        line.option("-m", format!("size={}k", config.memory / 1024));
        line.option("-smp", config.vcpus.to_string());
        line.option("-rtc", "base=utc");
        line.option("-display", "none");
        line.option("-vga", "none");
        line.option("-boot", "menu=off,strict=on");
        if let Some(uefi) = &self.uefi {
            line.option("-bios", uefi.clone());
        }
        // The guest's name is for people who look at the process list.
        line.option("-name", format!("guest={}", config.name.replace(',', ",,")));
    }
}

fn channels(line: &mut Line) {
    line.option("-chardev", format!("socket,id=qmp,path={QMP_SOCKET},server=off"));
    line.option("-mon", "chardev=qmp,mode=control");
    line.option("-chardev", format!("file,id=console,path={CONSOLE_LOG}"));
    line.option("-serial", "chardev:console");
    line.json("-object", json!({ "qom-type": "rng-builtin", "id": "entropy" }));
    line.json("-device", json!({ "driver": "virtio-rng-pci", "rng": "entropy" }));
    line.option("-chardev", format!("socket,id=xenstore,path={XENSTORE_SOCKET},server=off"));
    line.json("-device", json!({ "driver": "virtio-serial-pci", "id": "ports", "max_ports": 2 }));
    // QEMU tells of a port's closing only when the port has an id.
    let port = json!({
        "driver": "virtserialport", "id": "xenstore-port", "bus": "ports.0", "chardev": "xenstore", "name": XENSTORE_PORT,
    });
    line.json("-device", port);
}

/// A disk the guest finds by its serial number. Nobody locks a source: the snapshot's file may be read by
/// others at the same time. What the guest discards leaves a hole in the file.
fn add_disk(line: &mut Line, disk: &GuestDisk) {
    let node = format!("disk{}", disk.userdevice);
    let locking = if disk.read_only { "off" } else { "auto" };
    let file = json!({
        "driver": "file", "filename": disk.path, "locking": locking, "read-only": disk.read_only,
        "discard": "unmap",
    });
    let blockdev = json!({
        "driver": "raw", "node-name": node, "read-only": disk.read_only, "discard": "unmap", "file": file,
    });
    line.json("-blockdev", blockdev);
    let mut device = json!({
        "driver": "virtio-blk-pci", "drive": node, "id": format!("vbd{}", disk.userdevice),
        "serial": format!("vbd-{}", disk.userdevice),
    });
    if disk.bootable {
        device["bootindex"] = json!(u32::from(disk.userdevice) + 1);
    }
    line.json("-device", device);
}

/// A card without a boot ROM: a lab guest never boots from the network, and the ROM is another package.
/// Each card has a network of its own, the first QEMU's usual one.
fn add_nic(line: &mut Line, nic: &GuestNic) {
    let device = nic.device;
    let network = format!(
        "user,id=net{device},net=10.0.{v4}.0/24,host=10.0.{v4}.2,ipv6-net=fec0:0:0:{device:x}::/64",
        v4 = u32::from(device) + 2
    );
    line.option("-netdev", network);
    let card = json!({
        "driver": "virtio-net-pci", "netdev": format!("net{device}"), "id": nic_name(nic), "mac": nic.mac,
        "romfile": "",
    });
    line.json("-device", card);
}

/// The card's name towards QEMU.
pub(super) fn nic_name(nic: &GuestNic) -> String {
    format!("nic{}", nic.device)
}

#[derive(Default)]
struct Line(Vec<OsString>);

impl Line {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn option(&mut self, name: &str, value: impl Into<OsString>) {
        self.0.push(name.into());
        self.0.push(value.into());
    }

    fn json(&mut self, name: &str, value: Value) {
        self.option(name, value.to_string());
    }
}

fn find_uefi() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(UEFI_VARIABLE) {
        return Some(PathBuf::from(named)).filter(|path| path.is_file());
    }
    UEFI_PATHS.iter().map(PathBuf::from).find(|path| path.is_file())
}

fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
