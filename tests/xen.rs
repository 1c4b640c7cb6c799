//! The appliance as a guest of a real Xen: its orders through xenstored, its disks through blkback, its data through
//! netback. Every kind of guest that a pool has had.

use e2e::{Api, Delegates, Lab, Options, noise, text};
use serde_json::json;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 65536;
/// From the pool's call to the end of the domain. It takes a second or two; machines under load are given plenty.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(30);

fn lab(kind: &'static str) -> Option<Lab> {
    Lab::with(Options { delegates: Delegates::Xen(kind), ..Options::default() })
}

/// A full backup, an incremental after three writes, and a restore, which is compared byte for byte.
fn backs_up_and_restores(kind: &'static str) {
    let Some(lab) = lab(kind) else { return };
    let begun = Instant::now();
    // The last block is short. Two disks, so that order and position matter.
    let vm = lab.vm("real", &[12 * MIB + 512, 3 * MIB]);
    lab.write(&vm.vdis[0], 0, &text(1, 2_000_000));
    lab.write(&vm.vdis[0], 9 * MIB + 77, &noise(2, 3_000_000));
    lab.write(&vm.vdis[1], 5 * BLOCK, &text(3, 500_000));
    let before = lab.inventory();

    let full = lab.backup(&[&vm]).ok();
    for disk in full.job("real")["disks"].as_array().expect("a list") {
        assert_eq!(disk["mode"], "full", "{disk}");
    }
    let full_s = begun.elapsed().as_secs();

    lab.write(&vm.vdis[0], 2 * BLOCK + 17, &noise(4, 1000));
    lab.write(&vm.vdis[0], 41 * BLOCK - 10, &noise(5, 20));
    lab.write(&vm.vdis[0], 12 * MIB, &noise(6, 512));
    let changed = lab.backup(&[&vm]).ok();
    let disk = &changed.job("real")["disks"][0];
    let number = |key: &str| disk[key].as_u64().expect("a number");
    assert_eq!(disk["mode"], "cbt", "{disk}");
    assert_eq!(number("moved") - number("audited"), 3 * BLOCK + 512, "{disk}");
    let incremental_s = begun.elapsed().as_secs() - full_s;

    let delegate = &changed.job("real")["delegate"];
    println!(
        "measured: {kind}: full backup {full_s} s, incremental {incremental_s} s, user space after {} ms, order claimed after {} ms",
        delegate["boot_ms"], delegate["claim_ms"]
    );
    lab.assert_restores(&vm);
    lab.assert_store_whole();
    lab.assert_clean(&before);
}

#[test]
fn a_paravirtualised_delegate_backs_up_and_restores_every_byte() {
    backs_up_and_restores("xen-pv");
}

#[test]
fn a_pvh_delegate_backs_up_and_restores_every_byte() {
    backs_up_and_restores("xen-pvh");
}

#[test]
fn a_delegate_booted_by_bios_from_its_template_backs_up_and_restores_every_byte() {
    backs_up_and_restores("xen-hvm");
}

/// UEFI firmware finds the same disk's boot loader by itself.
#[test]
fn a_delegate_booted_by_uefi_from_its_template_backs_up_and_restores_every_byte() {
    let Some(lab) = lab("xen-hvm") else { return };
    lab.boot_delegates_by_uefi();
    let vm = lab.vm("uefi", &[4 * MIB + 512]);
    lab.write(&vm.vdis[0], MIB, &text(1, 2_000_000));
    lab.write(&vm.vdis[0], 4 * MIB, &noise(2, 512));
    let before = lab.inventory();

    let backup = lab.backup(&[&vm]).ok();
    let delegate = &backup.job("uefi")["delegate"];
    println!("measured: xen-hvm by UEFI: order claimed after {} ms", delegate["claim_ms"]);
    let console = lab.consoles();
    assert!(console.contains("EFI v2"), "the kernel was not started by UEFI:\n{console}");
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
}

/// The handshake: the pool writes `control/shutdown`, the guest's kernel takes it and runs `/sbin/poweroff`.
fn shut_down_by_the_pool(kind: &'static str) {
    let Some(lab) = lab(kind) else { return };
    let vm = lab.vm("victim", &[64 * MIB]);
    // More than netback carries in the time that this takes.
    lab.write(&vm.vdis[0], 0, &noise(1, 60 * MIB as usize));
    let before = lab.inventory();
    let mut run = lab.spawn(&["backup", "victim"]);
    run.until_working();
    let api = Api::new(&lab);
    let asked = Instant::now();
    api.call("VM.clean_shutdown", json!([api.find("VM", &lab.delegate())]));
    let took = asked.elapsed();
    drop(api);
    println!("measured: {kind}: off {} ms after the pool asked", took.as_millis());
    assert!(took < SHUTDOWN_LIMIT, "{took:?}");
    let log = lab.log();
    let end = log.iter().rfind(|entry| entry["kind"] == "guest-exit").expect("the guest ended");
    assert_eq!(end["description"], "the guest powered itself off");

    let text = run.finish().fails_with(1);
    assert!(text.contains("the appliance was asked to shut down before the job was done"), "{text}");
    lab.assert_store_whole();
    lab.assert_clean(&before);
}

#[test]
fn a_paravirtualised_delegate_that_the_pool_shuts_down_says_so() {
    shut_down_by_the_pool("xen-pv");
}

#[test]
fn a_pvh_delegate_that_the_pool_shuts_down_says_so() {
    shut_down_by_the_pool("xen-pvh");
}

#[test]
fn a_delegate_booted_by_bios_that_the_pool_shuts_down_says_so() {
    shut_down_by_the_pool("xen-hvm");
}
