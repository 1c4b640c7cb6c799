//! What `xl` is told about a guest.

use super::XenKind;
use super::machine::Plugged;
use crate::guest::{Firmware, GuestConfig, GuestNic};

/// Where the control domain keeps the image's kernel and initramfs.
const KERNEL: &str = "/lab/vmlinuz";
const INITRAMFS: &str = "/lab/initramfs.zst";
/// Places of emulated disks.
const EMULATED: u16 = 4;
/// The one bridge of the lab.
const BRIDGE: &str = "xenbr0";

/// The lines of the configuration file. `name` has to be plain.
pub(super) fn lines(config: &GuestConfig, kind: XenKind, name: &str, disks: &[Plugged]) -> Vec<String> {
    let mut lines = vec![
        format!("name = \"{name}\""),
        format!("type = \"{}\"", kind.word()),
        format!("memory = {}", config.memory.div_ceil(1 << 20)),
        format!("vcpus = {}", config.vcpus),
    ];
    if let Some(uuid) = config.xenstore.get("vm").and_then(|path| path.strip_prefix("/vm/"))
        && uuid::Uuid::try_parse(uuid).is_ok()
    {
        lines.push(format!("uuid = \"{uuid}\""));
    }
    for event in ["poweroff", "reboot", "crash", "watchdog", "soft_reset"] {
        lines.push(format!("on_{event} = \"destroy\""));
    }
    let first = disks.iter().filter(|disk| !is_attached_later(kind, disk));
    let first: Vec<String> = first.map(|disk| format!("'{}'", self::disk(config, disk))).collect();
    lines.push(format!("disk = [ {} ]", first.join(", ")));
    let nic = |card: &GuestNic| format!("'devid={},mac={},bridge={BRIDGE},type=vif'", card.device, card.mac);
    let nics: Vec<String> = config.nics.iter().map(nic).collect();
    lines.push(format!("vif = [ {} ]", nics.join(", ")));
    match kind {
        XenKind::Pv | XenKind::Pvh => {
            lines.push(format!("kernel = \"{KERNEL}\""));
            lines.push(format!("ramdisk = \"{INITRAMFS}\""));
            // The image's own command line ends with a serial port, which these guests do not have.
            lines.push("extra = \"console=hvc0\"".to_owned());
        }
        XenKind::Hvm => lines.extend(hvm(config.firmware).map(str::to_owned)),
    }
    lines
}

/// What `xl` is told about a disk.
pub(super) fn disk(config: &GuestConfig, plugged: &Plugged) -> String {
    let given = config.disks.iter().find(|disk| disk.userdevice == plugged.userdevice);
    let access = if given.is_some_and(|disk| disk.read_only) { "r" } else { "w" };
    format!("format=raw,vdev={},access={access},target={}", place(plugged.userdevice), plugged.device)
}

/// A PC's first four disks are emulated as well as paravirtual. `xl` would emulate later ones too, which no host does,
/// and its device model has no read-only ones.
pub(super) fn is_attached_later(kind: XenKind, disk: &Plugged) -> bool {
    kind == XenKind::Hvm && disk.userdevice >= EMULATED
}

/// AHCI, because a host without hardware virtualisation takes a minute for each boot from an IDE disk: every word
/// that SeaBIOS reads from one is a way to the device model and back.
fn hvm(firmware: Firmware) -> [&'static str; 8] {
    let firmware = match firmware {
        Firmware::Bios => "firmware = \"bios\"",
        Firmware::Uefi => "firmware = \"ovmf\"",
    };
    [
        firmware,
        "boot = \"c\"",
        "hdtype = \"ahci\"",
        "xen_platform_pci = 1",
        "vga = \"none\"",
        "vnc = 0",
        "sdl = 0",
        "usb = 0",
    ]
}

/// `xvda` and so on; after `xvdz` comes `xvdaa`.
fn place(userdevice: u16) -> String {
    let letter = |index: u16| char::from(b'a' + u8::try_from(index).expect("below 26"));
    match userdevice / 26 {
        0 => format!("xvd{}", letter(userdevice % 26)),
        upper => format!("xvd{}{}", letter((upper - 1) % 26), letter(userdevice % 26)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_named_as_the_kernel_names_them() {
        let known = [(0, "xvda"), (4, "xvde"), (25, "xvdz"), (26, "xvdaa"), (255, "xvdiv")];
        for (userdevice, name) in known {
            assert_eq!(place(userdevice), name);
        }
    }
}
