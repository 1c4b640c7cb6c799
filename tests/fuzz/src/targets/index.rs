//! Runs: the files in which a store's index of packs stands on disk. A cache, which may be damaged in any way.

use runs::{Index, Limits, PackAbout, Prefix};
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use xxhash_rust::xxh64::xxh64;

const OWNER: [u8; 16] = [7; 16];
const LIMITS: Limits = Limits { table: 1 << 20, near: 512 };
const NAME: &str = "a.run1";
/// The layout of a run (`orchestrator/crates/runs/src/format.rs`).
const PAGE: usize = 4096;
const PAGE_ENTRIES: u64 = 170;
const ENTRY: usize = 24;
const SUM: usize = 8;
const PACK: usize = 48;
const FOOTER: usize = 168;
const STRETCH_PAGES: u64 = 1542;
/// Objects that are asked for of those that the first page names.
const ASKED: usize = 16;

thread_local! {
    static DIR: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// A run, as it is and with every sum that it should have: found, taken into use, and asked.
pub fn index_runs(data: &[u8]) {
    DIR.with_borrow_mut(|dir| {
        let dir = dir.get_or_insert_with(a_directory).path();
        let _ = ask(dir, data);
        if let Some(run) = with_right_sums(data) {
            let _ = ask(dir, &run);
        }
    });
}

fn a_directory() -> tempfile::TempDir {
    let shared_memory = Path::new("/dev/shm");
    let dir = match shared_memory.is_dir() {
        true => tempfile::tempdir_in(shared_memory),
        false => tempfile::tempdir(),
    };
    dir.expect("a directory can be made")
}

/// Gives how many places were found.
fn ask(dir: &Path, run: &[u8]) -> usize {
    let path = dir.join(NAME);
    fs::write(&path, run).expect("a file can be written");
    let index = Index::new(OWNER, Some(dir), LIMITS);
    let (mut packs, mut places) = (0, 0);
    for found in index.runs() {
        packs = u32::try_from(found.packs().len()).expect("a run is short here");
        index.attach(found, (0..packs).collect());
    }
    assert!(packs > 0 || !path.exists(), "what cannot be used goes");
    let named = run.chunks_exact(ENTRY).take(ASKED).filter_map(|entry| entry.first_chunk().copied());
    // Twice: what stands beside the first is read with the second.
    for prefix in named.chain([prefix(3), prefix(4)]).flat_map(|prefix: Prefix| [prefix, prefix]) {
        let mut id = [0; 32];
        id[..16].copy_from_slice(&prefix);
        let asked = index.find(&id, &mut |at| {
            assert!(at.pack < packs, "a pack that it was told of");
            places += 1;
        });
        if let Err(damaged) = asked {
            assert!(!damaged.reason.is_empty());
            assert!(index.members(&damaged).iter().all(|pack| *pack < packs));
            index.discard(&damaged);
            assert!(!path.exists(), "what is given up goes");
        }
    }
    let _ = (index.numbers(), index.count(1, 100));
    drop(index);
    // It may have gone already.
    let _ = fs::remove_file(&path);
    places
}

fn prefix(number: u8) -> Prefix {
    *blake3::hash(&[number]).as_bytes().first_chunk().expect("32 bytes")
}

/// A run of two packs with an object in common, of more than one page.
pub(crate) fn a_run() -> Vec<u8> {
    let dir = a_directory();
    let index = Index::new(OWNER, Some(dir.path()), LIMITS);
    for (number, first, last) in [(0, 0, 120), (1, 120, 240)] {
        let about = PackAbout {
            id: [u8::try_from(number).expect("small") + 1; 32],
            size: 9000,
            entries: 121,
            kind: 1,
        };
        index.insert(number, about, &mut (first..=last).map(|at| (prefix(at), at.is_multiple_of(3))));
    }
    assert!(index.flush());
    index.settle();
    let written = fs::read_dir(dir.path()).expect("listed").map(|entry| entry.expect("readable").path());
    let run = written.filter(|path| path.extension().is_some_and(|end| end == "run1")).map(fs::read).next();
    run.expect("one was written").expect("readable")
}

/// The run with the sums and hashes that its parts should have, where they are as long as its footer says.
pub(crate) fn with_right_sums(run: &[u8]) -> Option<Vec<u8>> {
    let mut right = run.to_vec();
    let footer_at = run.len().checked_sub(FOOTER)?;
    let number = |at: usize| u64::from_le_bytes(run[footer_at + at..][..8].try_into().expect("8 bytes"));
    let short =
        |at: usize| u64::from(u32::from_le_bytes(run[footer_at + at..][..4].try_into().expect("4 bytes")));
    let (entries, packs, fingerprints) = (number(24), short(32), number(40));
    let pages = entries.div_ceil(PAGE_ENTRIES);
    let twins = number(48).checked_add(number(56))?.checked_mul(16)?;
    let lookup = pages.checked_mul(4)?.checked_add(short(36).checked_mul(24)?)?.checked_add(fingerprints)?;
    let lookup = usize::try_from(lookup.checked_add(twins)?).ok()?;
    let lookup_at = footer_at.checked_sub(lookup)?;
    let packs_at = lookup_at.checked_sub(usize::try_from(packs).ok()?.checked_mul(PACK)?)?;
    let mut at = 0;
    for page in 0..pages.min(STRETCH_PAGES) {
        seal(right.get_mut(at..at + PAGE)?, page);
        at += PAGE;
    }
    for pack in 0..usize::try_from(packs).ok()? {
        let entries = run[packs_at + pack * PACK + 36..].first_chunk()?;
        let entries = u32::from_le_bytes(*entries) as usize;
        let size = entries * 16 + entries.div_ceil(8) + SUM;
        // Where it does not fit, the size of the whole is wrong too.
        let Some(ids) = right.get_mut(at..at + size) else { break };
        seal(ids, pack as u64);
        at += size;
    }
    let [packs, lookup] = [packs_at..lookup_at, lookup_at..footer_at].map(|part| blake3::hash(&run[part]));
    let footer = &mut right[footer_at..];
    footer[64..96].copy_from_slice(packs.as_bytes());
    footer[96..128].copy_from_slice(lookup.as_bytes());
    let own = blake3::hash(&footer[..128]);
    footer[128..160].copy_from_slice(own.as_bytes());
    Some(right)
}

fn seal(bytes: &mut [u8], number: u64) {
    let at = bytes.len() - SUM;
    let sum = xxh64(&bytes[..at], number);
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_is_as_it_should_be_is_asked_and_one_with_a_wrong_sum_is_not() {
        let (dir, run) = (a_directory(), a_run());
        assert!(ask(dir.path(), &run) > ASKED);
        let mut wrong = run.clone();
        let last = wrong.len() - FOOTER - 1;
        wrong[last] ^= 1;
        assert_eq!(ask(dir.path(), &wrong), 0);
        assert!(with_right_sums(&wrong).is_some_and(|right| ask(dir.path(), &right) > 0));
    }
}
