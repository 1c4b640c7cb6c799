//! The same image, booted by UEFI instead of BIOS.

use e2e::{Lab, text};
use std::path::Path;

const MIB: u64 = 1 << 20;
/// Where Debian and Ubuntu have it.
const OVMF: &str = "/usr/share/ovmf/OVMF.fd";

#[test]
fn the_templates_disk_boots_by_uefi_too_and_does_a_job() {
    if std::env::var_os("ABD_OVMF").is_none() && !Path::new(OVMF).exists() {
        println!("skipped: there is no OVMF; scripts/setup installs it");
        return;
    }
    let Some(lab) = Lab::start() else { return };
    lab.boot_delegates_by_uefi();
    let vm = lab.vm("uefi", &[4 * MIB]);
    lab.write(&vm.vdis[0], MIB, &text(1, 100_000));
    let before = lab.inventory();

    let backup = lab.backup(&[&vm]).ok();
    let delegate = &backup.job("uefi")["delegate"];
    println!("measured: order claimed {} ms after the kernel's start", delegate["claim_ms"]);
    let console = lab.consoles();
    assert!(console.contains("EFI v2"), "the kernel was not started by UEFI:\n{console}");
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
}
