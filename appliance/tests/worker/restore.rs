//! Disks out of the store.

use crate::lab::{Lab, Machine, assert_same, disk, size_of};
use blocks::{BLOCK_SIZE, ByteCount};
use std::fs::File;
use wire::{RestoreDisk, Start, Work};

fn saved(lab: &Lab, size: u64, written: &[u64]) -> (seal::Tree, std::path::PathBuf) {
    let path = lab.path("disk");
    disk(&path, size, written);
    (lab.back_up(&path, Start::Nothing, None).0, path)
}

#[test]
fn a_blank_disk_gets_only_what_is_not_zero() {
    let lab = Lab::new();
    let written: Vec<u64> = (10..400).filter(|block| block % 3 != 0).chain([600]).collect();
    let (tree, path) = saved(&lab, 600 * BLOCK_SIZE + 512, &written);
    let target = lab.path("target");
    File::create(&target).expect("create").set_len(tree.size.get()).expect("size");
    let counts = lab.restore(tree, &target, true);
    assert_same(&path, &target);
    assert_eq!(counts.moved.get(), (written.len() as u64 - 1) * BLOCK_SIZE + 512);
    assert_eq!(counts.zero.get(), 0);
}

#[test]
fn a_disk_that_is_not_blank_is_written_to_its_last_byte() {
    let lab = Lab::new();
    let (tree, path) = saved(&lab, 300 * BLOCK_SIZE + 1024, &[0, 1, 2, 50, 255, 256]);
    let target = lab.path("target");
    std::fs::write(&target, vec![0xff; tree.size.get() as usize]).expect("fill");
    let counts = lab.restore(tree, &target, false);
    assert_same(&path, &target);
    assert_eq!(counts.moved, size_of(&target));
    assert_eq!(counts.zero.get(), size_of(&target).get() - 6 * BLOCK_SIZE);
}

#[test]
fn disks_of_zeros_and_of_one_sector() {
    let lab = Lab::new();
    let (tree, path) = saved(&lab, 5 * BLOCK_SIZE + 512, &[]);
    let target = lab.path("target");
    std::fs::write(&target, vec![7; tree.size.get() as usize]).expect("fill");
    lab.restore(tree, &target, false);
    assert_same(&path, &target);
    assert_eq!(lab.restore(tree, &target, true).moved.get(), 0);
    let (tree, path) = saved(&lab, 512, &[0]);
    std::fs::write(&target, vec![7; 512]).expect("fill");
    lab.restore(tree, &target, true);
    assert_same(&path, &target);
}

#[test]
fn a_device_that_storage_rounded_up_keeps_what_lies_behind_the_disk() {
    let lab = Lab::new();
    let (tree, path) = saved(&lab, 3 * BLOCK_SIZE + 512, &[0, 3]);
    let (size, device) = (tree.size, ByteCount::new(5 * BLOCK_SIZE));
    let target = lab.path("target");
    std::fs::write(&target, vec![7; device.get() as usize]).expect("fill");
    let order = |device| {
        let disks = vec![RestoreDisk { userdevice: 4, device, size, root: tree.root, blank: false }];
        lab.run(Work::Restore { disks }, vec![None], Machine::new([(4, target.as_path())])).outcome
    };
    order(device).expect("restore");
    let found = std::fs::read(&target).expect("read");
    let (restored, behind) = found.split_at(size.get() as usize);
    assert!(restored == std::fs::read(&path).expect("read"));
    assert!(behind.iter().all(|byte| *byte == 7));
    assert_eq!(order(size).expect_err("the device is larger").code(), "disk-size");
    assert_eq!(order(ByteCount::new(512)).expect_err("does not fit").code(), "order-refused");
}
