//! The same with embedded databases: 32 bytes of id to 16 bytes of place, a durable commit every 16384.

use crate::Error;
use crate::measure::{Clock, QUESTIONS, disk, drawn, id, memory};
use serde_json::{Value, json};
use std::path::Path;

/// Entries of a commit: about what a delegate ships in a few seconds.
const COMMIT: u64 = 16_384;
/// redb's own cache.
const REDB_CACHE: usize = 32 << 20;
/// LMDB must be told how large its file may become: per entry.
const MAP_EACH: u64 = 256;

fn peer(error: impl std::fmt::Display) -> Error {
    Error::Peer(error.to_string())
}

fn place(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Asks for what is there and for what is not.
fn questions(
    entries: u64,
    ask: &dyn Fn(u64) -> Result<Option<[u8; 16]>, Error>,
) -> Result<(Value, Value), Error> {
    let clock = Clock::start();
    for n in 0..QUESTIONS {
        let number = drawn(n, entries);
        if ask(number)? != Some(place(number)) {
            return Err(Error::Wrong("an answer is wrong".into()));
        }
    }
    let hit = clock.stop(QUESTIONS);
    let clock = Clock::start();
    for n in 0..QUESTIONS {
        if ask((1 << 50) + n)?.is_some() {
            return Err(Error::Wrong("an answer is wrong".into()));
        }
    }
    Ok((hit, clock.stop(QUESTIONS)))
}

fn stretches(entries: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    (0..entries.div_ceil(COMMIT)).map(move |at| at * COMMIT..((at + 1) * COMMIT).min(entries))
}

pub(crate) fn redb(entries: u64, dir: &Path) -> Result<Value, Error> {
    use redb::{Database, ReadableDatabase, TableDefinition};
    const TABLE: TableDefinition<'_, [u8; 32], [u8; 16]> = TableDefinition::new("blocks");
    let clock = Clock::start();
    let base = Database::builder().set_cache_size(REDB_CACHE).create(dir.join("redb")).map_err(peer)?;
    for stretch in stretches(entries) {
        let write = base.begin_write().map_err(peer)?;
        {
            let mut table = write.open_table(TABLE).map_err(peer)?;
            for number in stretch {
                table.insert(id(number), place(number)).map_err(peer)?;
            }
        }
        write.commit().map_err(peer)?;
    }
    let insert = clock.stop(entries);
    let building = memory("VmHWM");
    let read = base.begin_read().map_err(peer)?;
    let table = read.open_table(TABLE).map_err(peer)?;
    let ask = |number| Ok(table.get(id(number)).map_err(peer)?.map(|found| found.value()));
    let (hit, miss) = questions(entries, &ask)?;
    Ok(json!({
        "engine": "redb", "entries": entries, "insert": insert, "hit": hit, "miss": miss, "memory_building": building,
        "memory_serving": memory("VmRSS"), "disk": disk(dir)?,
    }))
}

pub(crate) fn heed(entries: u64, dir: &Path) -> Result<Value, Error> {
    use heed::types::Bytes;
    use heed::{Database, EnvOpenOptions};
    let clock = Clock::start();
    let size = usize::try_from(entries * MAP_EACH + (64 << 20)).map_err(peer)?;
    let mut options = EnvOpenOptions::new();
    options.map_size(size);
    // SAFETY: the directory was empty, so that the file is LMDB's own, and no other process opens or changes it.
    let base = unsafe { options.open(dir) }.map_err(peer)?;
    let mut write = base.write_txn().map_err(peer)?;
    let table: Database<Bytes, Bytes> = base.create_database(&mut write, None).map_err(peer)?;
    write.commit().map_err(peer)?;
    for stretch in stretches(entries) {
        let mut write = base.write_txn().map_err(peer)?;
        for number in stretch {
            table.put(&mut write, &id(number), &place(number)).map_err(peer)?;
        }
        write.commit().map_err(peer)?;
    }
    let insert = clock.stop(entries);
    let building = memory("VmHWM");
    let read = base.read_txn().map_err(peer)?;
    let ask = |number| {
        let found = table.get(&read, &id(number)).map_err(peer)?;
        found.map(|bytes| bytes.try_into().map_err(peer)).transpose()
    };
    let (hit, miss) = questions(entries, &ask)?;
    Ok(json!({
        "engine": "heed (LMDB)", "entries": entries, "insert": insert, "hit": hit, "miss": miss,
        "memory_building": building, "memory_serving": memory("VmRSS"), "disk": disk(dir)?,
    }))
}
