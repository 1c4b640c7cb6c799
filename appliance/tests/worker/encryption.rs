//! Disks into an encrypted store and out of it: the worker holds the key, the service need not.

use crate::backup::check;
use crate::lab::{Lab, assert_same, bitmap, disk, size_of, write_blocks};
use ads::{Access, LocalBackend, Store};
use blocks::BLOCK_SIZE;
use std::fs::File;
use std::sync::Arc;
use wire::Start;

#[test]
fn what_the_worker_encrypts_it_restores_and_nothing_of_it_is_in_the_store() {
    let lab = Lab::encrypted();
    let path = lab.path("disk");
    disk(&path, 300 * BLOCK_SIZE + 512, &(0..301).filter(|block| block % 4 != 0).collect::<Vec<_>>());
    let mut bytes = std::fs::read(&path).expect("read");
    let marker = b"what nobody may read: 4711-0815";
    bytes[5 * 65536 + 7..][..marker.len()].copy_from_slice(marker);
    std::fs::write(&path, &bytes).expect("write");
    let (base, counts) = lab.back_up(&path, Start::Nothing, None);
    check(&lab, &base, &path);
    assert!(counts.shipped.get() > 0);
    write_blocks(&path, &[3, 5, 300], 2);
    let map = bitmap(size_of(&path), &[3, 5, 6, 300]);
    let (tree, counts) = lab.back_up(&path, Start::Changed { base }, Some(&map));
    check(&lab, &tree, &path);
    assert_eq!((counts.shipped.get(), counts.unchanged.get()), (2 * BLOCK_SIZE + 512, BLOCK_SIZE));
    let (again, counts) = lab.back_up(&path, Start::Nothing, None);
    assert_eq!((again, counts.shipped.get()), (tree, 0));
    let target = lab.path("target");
    File::create(&target).expect("create").set_len(tree.size.get()).expect("size");
    lab.restore(tree, &target, true);
    assert_same(&path, &target);
    let mut packs = 0;
    for folder in std::fs::read_dir(lab.path("store/packs")).expect("packs") {
        for pack in std::fs::read_dir(folder.expect("folder").path()).expect("folder") {
            let pack = std::fs::read(pack.expect("pack").path()).expect("pack");
            assert!(!pack.windows(marker.len()).any(|part| part == marker));
            packs += 1;
        }
    }
    assert!(packs > 2);
    // The same bytes with the kit, in another process's eyes.
    let kit = lab.store.recovery_kit().expect("unlocked");
    let mut other = Store::open_on(Arc::new(LocalBackend::new(&lab.path("store")))).expect("opens");
    other.unlock(&Access::kit(&kit).expect("a kit")).expect("unlocks");
    let id = other.blocks_at(&tree, &[blocks::BlockIndex::new(5)]).expect("tree")[0].expect("written");
    let block = std::fs::read(&path).expect("read")[5 * 65536..6 * 65536].to_vec();
    assert!(other.read_block(id).expect("opens") == block);
}
