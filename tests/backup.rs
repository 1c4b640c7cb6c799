//! Full backups and restores: every byte of every kind of disk comes back.

use e2e::{Lab, noise, text};

const MIB: u64 = 1 << 20;

#[test]
fn two_disks_of_odd_sizes_come_back_byte_for_byte() {
    let Some(lab) = Lab::start() else { return };
    // 24 MiB and three sectors: the last block is short. 10 MiB and one block and a half.
    let sizes = [24 * MIB + 3 * 512, 10 * MIB + 98304];
    let vm = lab.vm("odd", &sizes);
    lab.write(&vm.vdis[0], 0, &text(1, 5_000_000));
    lab.write(&vm.vdis[0], 17 * MIB + 1234, &noise(2, 3_000_000));
    lab.write(&vm.vdis[0], sizes[0] - 700, &noise(3, 700));
    lab.write(&vm.vdis[1], 65536 * 3, &text(4, 400_000));
    lab.write(&vm.vdis[1], sizes[1] - 98304, &noise(5, 98304));
    let before = lab.inventory();

    let backup = lab.backup(&[&vm]).ok();
    let job = backup.job("odd");
    for (disk, size) in job["disks"].as_array().expect("a list").iter().zip(sizes) {
        assert_eq!(disk["size"], size);
        assert_eq!(disk["mode"], "full");
        assert_eq!(disk["moved"], disk["planned"], "{disk}");
        assert!(disk["sealed"].as_u64() <= disk["shipped"].as_u64(), "{disk}");
    }
    let restore = lab.assert_restores(&vm);
    assert_eq!(restore.job("odd")["kind"], "restore");
    lab.assert_store_whole();
    lab.assert_clean(&before);
}

#[test]
fn reading_unallocated_space_too_gives_the_same_disk() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("whole", &[8 * MIB + 512]);
    lab.write(&vm.vdis[0], 3 * MIB, &text(1, 100_000));
    let skipping = lab.backup(&[&vm]).ok();
    let skipping = skipping.job("whole")["disks"][0].clone();
    // Another store knows no base: everything is read.
    let store = lab.path("second store").display().to_string();
    let whole = lab.abd(&["--store", &store, "backup", "whole", "--init-store", "--read-unallocated"]).ok();
    let whole = whole.job("whole")["disks"][0].clone();
    assert_eq!(whole["moved"], 8 * MIB + 512);
    assert!(skipping["moved"].as_u64() < whole["moved"].as_u64(), "{skipping}");
    assert_eq!(whole["shipped"], skipping["shipped"]);
}

#[test]
fn a_disk_of_zeros_and_a_disk_of_one_sector_come_back() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("small", &[16 * MIB, 512]);
    lab.write(&vm.vdis[1], 0, &noise(7, 512));
    let before = lab.inventory();
    let backup = lab.backup(&[&vm]).ok();
    let disks = &backup.job("small")["disks"];
    assert_eq!(disks[0]["shipped"], 0);
    assert_eq!(disks[0]["nodes"], 0);
    assert_eq!(disks[1]["shipped"], 512);
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
}

#[test]
fn a_running_vm_is_backed_up_without_touching_it() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm_with("running", &[8 * MIB], true);
    lab.write(&vm.vdis[0], 100, &text(1, 200_000));
    let before = lab.inventory();
    lab.backup(&[&vm]).ok();
    let state = |inventory: &serde_json::Value| {
        let vms = inventory["VM"].as_array().expect("a list");
        vms.iter().find(|found| found["uuid"] == vm.uuid.as_str()).expect("the VM")["power_state"].clone()
    };
    assert_eq!(state(&before), "Running");
    assert_eq!(state(&lab.inventory()), "Running");
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
}

#[test]
fn the_appliance_works_in_128_mib_and_its_numbers_are_recorded() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("numbers", &[48 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 40 * MIB as usize));
    let backup = lab.backup(&[&vm]).ok();
    let delegate = &backup.job("numbers")["delegate"];
    let number = |name: &str| delegate[name].as_u64().expect("a number");
    let size = |path: &str| std::fs::metadata(path).expect("built").len();
    let xva = lab.template();
    println!(
        "measured: template {} bytes, user space after {} ms, order claimed after {} ms, worker's peak {} KiB, \
         {} KiB of {} KiB still available at the lowest, engine {}",
        size(&xva),
        number("boot_ms"),
        number("claim_ms"),
        number("worker_peak") / 1024,
        number("available_low") / 1024,
        number("memory") / 1024,
        delegate["engine"]
    );
    assert!(number("memory") < 128 * MIB, "the guest has more than 128 MiB");
    assert!(number("worker_peak") <= 64 * MIB, "the worker's budget is 64 MiB");
    assert!(size(&xva) <= 12 * MIB, "the template's budget is 12 MiB");
    assert!(delegate["engine"].as_str().expect("a text").starts_with("io_uring"), "{delegate}");
}
