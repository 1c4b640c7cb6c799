//! Incrementals: what is read is what changed, and nothing that the store has is shipped again.

use e2e::{Lab, Vm, noise, text};
use serde_json::Value;

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 65536;

/// Backs a VM up and gives its first disk's result.
fn backup(lab: &Lab, vm: &Vm) -> Value {
    lab.backup(&[vm]).ok().job(&vm.name)["disks"][0].clone()
}

/// Bytes that were read because they changed, without those that an audit read.
fn read(disk: &Value) -> u64 {
    let number = |key: &str| disk[key].as_u64().expect("a number");
    number("moved") - number("audited")
}

#[test]
fn a_cbt_run_reads_exactly_the_changed_granules_and_ships_no_more() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("cbt", &[24 * MIB + 512]);
    lab.write(&vm.vdis[0], 0, &text(1, 9 * MIB as usize));
    let before = lab.inventory();
    assert_eq!(backup(&lab, &vm)["mode"], "full");

    // Nothing changed: nothing is read.
    let nothing = backup(&lab, &vm);
    assert_eq!((&nothing["mode"], read(&nothing), &nothing["shipped"]), (&"cbt".into(), 0, &0.into()));

    // Three granules: one write inside granule 2, one across the border of 40 and 41, and one sector that is the
    // short last block.
    lab.write(&vm.vdis[0], 2 * BLOCK + 17, &noise(1, 1000));
    lab.write(&vm.vdis[0], 41 * BLOCK - 10, &noise(2, 20));
    lab.write(&vm.vdis[0], 24 * MIB, &noise(3, 512));
    let changed = backup(&lab, &vm);
    assert_eq!(changed["mode"], "cbt", "{changed}");
    assert_eq!(read(&changed), 3 * BLOCK + 512, "{changed}");
    assert!(changed["shipped"].as_u64().expect("a number") <= 3 * BLOCK + 512, "{changed}");
    lab.assert_restores(&vm);

    // Granules that were written with what they held before are read and not shipped.
    lab.write(&vm.vdis[0], 2 * BLOCK + 17, &noise(1, 1000));
    let same = backup(&lab, &vm);
    assert_eq!((read(&same), &same["shipped"]), (BLOCK, &0.into()), "{same}");
    lab.assert_restores(&vm);
    lab.assert_store_whole();
    lab.assert_clean(&before);
}

#[test]
fn a_sparse_disk_of_2_tib_takes_seconds_and_no_more_memory() {
    let Some(lab) = Lab::start() else { return };
    // The largest that a VHD repository holds: "2 TiB" less its metadata.
    let size = 2040 << 30;
    let vm = lab.vm("huge", &[size]);
    for at in [0, 700 << 30, size - MIB] {
        lab.write(&vm.vdis[0], at, &noise(at + 1, 200_000));
    }
    let before = lab.inventory();
    let first = backup(&lab, &vm);
    assert!(read(&first) <= 8 * MIB, "unallocated space is skipped: {first}");
    lab.write(&vm.vdis[0], (1 << 40) + 5, &noise(9, 100));
    let output = lab.backup(&[&vm]).ok();
    let job = output.job("huge");
    assert_eq!(job["disks"][0]["mode"], "cbt");
    assert_eq!(read(&job["disks"][0]), BLOCK);
    let peak = job["delegate"]["worker_peak"].as_u64().expect("a number");
    println!(
        "measured: incremental of a 2 TiB disk in {} ms, worker's peak {} KiB",
        job["elapsed_ms"],
        peak / 1024
    );
    assert!(peak <= 64 * MIB, "the worker's budget does not depend on the disk: {peak}");
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
}

#[test]
fn a_disk_that_grew_is_read_where_it_is_new() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("grown", &[10 * MIB + 512]);
    lab.write(&vm.vdis[0], 0, &text(1, 3 * MIB as usize));
    backup(&lab, &vm);
    lab.resize(&vm.vdis[0], 20 * MIB);
    lab.write(&vm.vdis[0], 19 * MIB, &noise(1, 5000));
    let grown = backup(&lab, &vm);
    assert_eq!(grown["mode"], "cbt", "{grown}");
    // From the short last block on, which begins at 10 MiB.
    assert_eq!(read(&grown), 10 * MIB, "{grown}");
    lab.assert_restores(&vm);
}

#[test]
fn a_lost_reference_means_a_scan_with_its_reason_and_the_next_run_has_one_again() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("lost", &[6 * MIB]);
    lab.write(&vm.vdis[0], 0, &text(1, 2 * MIB as usize));
    backup(&lab, &vm);
    // Another installation's doctor removes the reference.
    let inventory = lab.inventory();
    let vdis = inventory["VDI"].as_array().expect("a list");
    let reference = vdis.iter().find(|vdi| vdi["type"] == "cbt_metadata").expect("a reference");
    let reference = reference["uuid"].as_str().expect("a uuid").to_owned();
    lab.destroy_vdi(&reference);
    lab.write(&vm.vdis[0], MIB, &noise(1, 100));
    let scan = backup(&lab, &vm);
    assert_eq!(scan["mode"], "scan", "{scan}");
    assert!(scan["reason"].as_str().expect("a text").contains(&reference), "{scan}");
    assert_eq!((&scan["moved"], &scan["shipped"]), (&(6 * MIB).into(), &BLOCK.into()));
    lab.write(&vm.vdis[0], 3 * MIB, &noise(2, 100));
    assert_eq!(backup(&lab, &vm)["mode"], "cbt");
    lab.assert_restores(&vm);
}

#[test]
fn a_pool_without_change_tracking_lists_changes_from_its_reserved_snapshot() {
    let options = e2e::Options { sim: vec!["--flavour".into(), "xs-7.2".into()], ..Default::default() };
    let Some(lab) = Lab::with(options) else { return };
    let vm = lab.vm("old", &[4 * MIB]);
    lab.write(&vm.vdis[0], 0, &text(1, MIB as usize));
    backup(&lab, &vm);
    lab.write(&vm.vdis[0], 2 * MIB, &noise(1, 100));
    let changed = backup(&lab, &vm);
    // One part of 2 MiB, of which one block is new.
    assert_eq!(
        (&changed["mode"], &changed["cause"], read(&changed), &changed["shipped"]),
        (&"vhd-diff".into(), &"vhd-difference".into(), 2 * MIB, &BLOCK.into()),
        "{changed}"
    );
    lab.assert_restores(&vm);
}
