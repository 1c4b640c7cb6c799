//! Our index alone: what a delegate's questions and packs do to it.

use crate::Error;
use crate::measure::{Clock, PACK_ENTRIES, QUESTIONS, disk, drawn, id, memory};
use runs::{Index, Limits, PackAbout};
use serde_json::{Value, json};
use std::path::Path;

const OWNER: [u8; 16] = *b"bench-store-----";

pub(crate) fn own(entries: u64, dir: &Path) -> Result<Value, Error> {
    let packs = u32::try_from(entries.div_ceil(PACK_ENTRIES)).map_err(|_| wrong("too many entries"))?;
    let clock = Clock::start();
    let index = Index::new(OWNER, Some(dir), Limits::default());
    for number in 0..packs {
        let first = u64::from(number) * PACK_ENTRIES;
        let here = first..(first + PACK_ENTRIES).min(entries);
        let about = PackAbout {
            id: *blake3::hash(&number.to_le_bytes()).as_bytes(),
            size: 16 << 20,
            entries: u32::try_from(here.end - here.start).map_err(|_| wrong("a pack is too large"))?,
            kind: 1,
        };
        let mut objects = here.map(|number| (id(number)[..16].try_into().expect("16 bytes"), true));
        index.insert(number, about, &mut objects);
    }
    index.flush();
    index.settle();
    let insert = clock.stop(entries);
    let building = memory("VmHWM");
    let numbers = index.numbers();
    drop(index);

    let clock = Clock::start();
    let index = Index::new(OWNER, Some(dir), Limits::default());
    let mut next = 0;
    for run in index.runs() {
        let count = u32::try_from(run.packs().len()).map_err(|_| wrong("too many packs"))?;
        index.attach(run, (next..next + count).collect());
        next += count;
    }
    if next != packs {
        return Err(wrong("the runs do not tell of all packs"));
    }
    let open = clock.stop(1);
    let clock = Clock::start();
    ask(&index, 0, Some(0))?;
    let first = clock.stop(1);

    let hit = questions(&index, QUESTIONS, Some(&|n| drawn(n, entries)))?;
    let miss = questions(&index, QUESTIONS, None)?;
    // Whole packs, one after the other, as data comes that was backed up before.
    let chosen = QUESTIONS / PACK_ENTRIES;
    let whole_packs = entries / PACK_ENTRIES;
    let again = |n: u64| drawn(n / PACK_ENTRIES, whole_packs.max(1)) * PACK_ENTRIES + n % PACK_ENTRIES;
    let repeated = questions(&index, chosen.max(1) * PACK_ENTRIES.min(entries), Some(&again))?;
    let numbers_now = index.numbers();
    Ok(json!({
        "engine": "own", "entries": entries, "insert": insert, "open": open, "first question": first, "hit": hit,
        "miss": miss, "repeated": repeated, "runs": numbers.runs, "memory_building": building,
        "memory_serving": memory("RssAnon"), "memory_index": numbers_now.memory, "memory_filters": numbers_now.runs_memory, "disk": disk(dir)?,
    }))
}

/// Asks; without numbers for what is not there.
fn questions(index: &Index, count: u64, number: Option<&dyn Fn(u64) -> u64>) -> Result<Value, Error> {
    let clock = Clock::start();
    for n in 0..count {
        match number {
            Some(number) => ask(index, number(n), Some(n))?,
            None => ask(index, (1 << 50) + n, None)?,
        }
    }
    Ok(clock.stop(count))
}

fn ask(index: &Index, number: u64, there: Option<u64>) -> Result<(), Error> {
    let mut found = 0u64;
    let mut at = 0;
    let asked = index.find(&id(number), &mut |location| {
        found += 1;
        at = u64::from(location.entry);
    });
    asked.map_err(|damaged| wrong(&damaged.reason))?;
    let right = match there {
        Some(_) => found == 1 && at == number % PACK_ENTRIES,
        None => found == 0,
    };
    if right { Ok(()) } else { Err(wrong("an answer is wrong")) }
}

fn wrong(what: &str) -> Error {
    Error::Wrong(format!("our index: {what}"))
}
