//! Opening a store of many blocks: without its index, with it, and how much memory stays.

use crate::measure::{Clock, PACK_ENTRIES, disk, id, memory};
use crate::{Error, io};
use ads::Store;
use seal::{Codec, PackKind, PackWriter, Sealed};
use serde_json::{Value, json};
use std::path::Path;

pub(crate) fn rebuild(entries: u64, dir: &Path) -> Result<Value, Error> {
    let root = dir.join("store");
    drop(Store::init(&root)?);
    // Written past the store, which would sync each and prove what is in it: blocks of one byte each.
    for number in 0..entries.div_ceil(PACK_ENTRIES) {
        let mut writer = PackWriter::new(PackKind::Data, 64 << 10);
        for object in number * PACK_ENTRIES..((number + 1) * PACK_ENTRIES).min(entries) {
            writer.push(id(object), 1, Sealed::clear(Codec::Stored, &[1]));
        }
        let pack = writer.finish();
        let name = pack.id.to_string();
        let above = root.join("packs").join(&name[..2]);
        std::fs::create_dir_all(&above).map_err(io("make a directory of packs"))?;
        std::fs::write(above.join(name), &pack.bytes).map_err(io("write a pack"))?;
    }
    let clock = Clock::start();
    let store = Store::open(&root)?;
    let lost = clock.stop(entries);
    check(&store, entries)?;
    let building = memory("VmHWM");
    drop(store);
    let clock = Clock::start();
    let store = Store::open(&root)?;
    let there = clock.stop(entries);
    check(&store, entries)?;
    let found = json!({
        "entries": entries, "packs": store.usage().packs, "open without index": lost, "open with index": there,
        "memory_building": building, "memory_serving": memory("RssAnon"), "index": disk(&root.join("index"))?,
    });
    Ok(found)
}

fn check(store: &Store, entries: u64) -> Result<(), Error> {
    for n in 0..1000 {
        let number = n * (entries / 1000).max(1);
        let there = store.has_block(&seal::BlockId::from_bytes(id(number)));
        if there != (number < entries) {
            return Err(Error::Wrong("the store's answer is wrong".into()));
        }
    }
    Ok(())
}
