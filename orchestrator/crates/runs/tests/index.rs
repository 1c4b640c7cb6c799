//! The index against a map that remembers everything, and what becomes of its files when they are damaged, cut off, or
//! somebody else's.

#![allow(clippy::unwrap_used, missing_docs)]

use proptest::prelude::*;
use runs::{Damaged, Files, Index, Limits, Location, NOWHERE, PackAbout, Prefix, SystemFiles};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

const OWNER: [u8; 16] = [7; 16];
const SMALL: Limits = Limits { table: 64, near: 512 };

fn id(number: u64) -> [u8; 32] {
    // Half of the ids share their first bytes with others, so that order and fences are put to the test.
    let mut bytes = [0; 32];
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&if number.is_multiple_of(2) { mixed } else { number % 5 }.to_be_bytes());
    bytes[8..16].copy_from_slice(&(number + 1).to_le_bytes());
    bytes
}

fn prefix(number: u64) -> Prefix {
    id(number)[..16].try_into().unwrap()
}

/// What a store is to its index: packs with the numbers of their objects.
#[derive(Default)]
struct Store {
    packs: BTreeMap<[u8; 32], Vec<u64>>,
}

/// An index, and the number that each pack has in it.
struct Opened {
    index: Index,
    numbers: BTreeMap<[u8; 32], u32>,
}

impl Store {
    fn add(&mut self, name: u64, objects: Vec<u64>) -> [u8; 32] {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&name.to_le_bytes());
        self.packs.insert(id, objects);
        id
    }

    fn about(&self, id: [u8; 32]) -> PackAbout {
        let entries = u32::try_from(self.packs[&id].len()).unwrap();
        PackAbout { id, size: 100 + entries, entries, kind: 1 }
    }

    fn tell(&self, opened: &mut Opened, id: [u8; 32]) {
        let next = u32::try_from(opened.numbers.len()).unwrap();
        let number = *opened.numbers.entry(id).or_insert(next);
        let mut objects = self.packs[&id].iter().map(|object| (prefix(*object), object % 3 == 0));
        opened.index.insert(number, self.about(id), &mut objects);
    }

    /// As a store opens its index: attaches runs, tells what no run has. Gives how many packs it had to tell.
    fn open_with(&self, dir: &Path, limits: Limits, files: Arc<dyn Files>) -> (Opened, usize) {
        let index = Index::with_files(OWNER, Some(dir), limits, files);
        let mut opened = Opened { index, numbers: BTreeMap::new() };
        for run in opened.index.runs() {
            let mut numbers = Vec::new();
            for pack in run.packs() {
                let known = self.packs.contains_key(&pack.id) && !opened.numbers.contains_key(&pack.id);
                let next = u32::try_from(opened.numbers.len()).unwrap();
                numbers.push(if known { next } else { NOWHERE });
                if known {
                    opened.numbers.insert(pack.id, next);
                }
            }
            opened.index.attach(run, numbers);
        }
        let missing: Vec<_> =
            self.packs.keys().filter(|id| !opened.numbers.contains_key(*id)).copied().collect();
        for id in &missing {
            self.tell(&mut opened, *id);
        }
        (opened, missing.len())
    }

    fn open(&self, dir: &Path) -> (Opened, usize) {
        self.open_with(dir, SMALL, Arc::new(Faulty::none()))
    }

    /// All places of an object. Runs that are damaged are told anew, as a store does.
    fn find(&self, opened: &mut Opened, object: u64, healed: &mut usize) -> BTreeSet<Location> {
        loop {
            let mut found = BTreeSet::new();
            match opened.index.find(&id(object), &mut |at| _ = found.insert(at)) {
                Ok(()) => return found,
                Err(damaged) => {
                    *healed += 1;
                    self.heal(opened, &damaged);
                }
            }
        }
    }

    fn heal(&self, opened: &mut Opened, damaged: &Damaged) {
        let members = opened.index.members(damaged);
        let ids: Vec<_> =
            opened.numbers.iter().filter(|(_, number)| members.contains(number)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.tell(opened, id));
        opened.index.discard(damaged);
    }

    /// What [`find`](Self::find) must give.
    fn expected(&self, opened: &Opened, object: u64) -> BTreeSet<Location> {
        let mut found = BTreeSet::new();
        for (id, objects) in &self.packs {
            if let (Some(pack), Some(at)) =
                (opened.numbers.get(id), objects.iter().position(|one| *one == object))
            {
                let entry = u32::try_from(at).unwrap();
                found.insert(Location { pack: *pack, entry, whole: object.is_multiple_of(3) });
            }
        }
        found
    }

    fn check(&self, opened: &mut Opened, objects: impl Iterator<Item = u64>) -> usize {
        let mut healed = 0;
        for object in objects {
            let found = self.find(opened, object, &mut healed);
            assert_eq!(found, self.expected(opened, object), "object {object}");
        }
        healed
    }
}

fn run_files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

/// Packs of 20 objects each, every tenth object also in the pack before.
fn filled(packs: u64) -> Store {
    let mut store = Store::default();
    for name in 0..packs {
        let objects = (name * 20..name * 20 + 20).chain((name > 0).then(|| name * 20 - 10)).collect();
        store.add(name, objects);
    }
    store
}

#[derive(Clone, Debug)]
enum Step {
    /// A pack with these objects, by this process.
    Add(Vec<u64>),
    /// A pack by another process, which the index hears of when it is opened.
    AddElsewhere(Vec<u64>),
    /// One of the packs goes.
    Remove(usize),
    Flush,
    Reopen,
    /// Another process opens the index, writes a run of all that it knows, and ends.
    Other,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let objects =
        || proptest::collection::btree_set(0u64..400, 1..40).prop_map(|set| set.into_iter().collect());
    let step = prop_oneof![
        4 => objects().prop_map(Step::Add),
        1 => objects().prop_map(Step::AddElsewhere),
        1 => any::<usize>().prop_map(Step::Remove),
        2 => Just(Step::Flush),
        2 => Just(Step::Reopen),
        1 => Just(Step::Other),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_told_is_found_and_nothing_else(steps in steps()) {
        let dir = TempDir::new().unwrap();
        let mut store = Store::default();
        let mut opened = store.open(dir.path()).0;
        for (name, step) in (0..).zip(steps) {
            match step {
                Step::Add(objects) => {
                    let id = store.add(name, objects);
                    store.tell(&mut opened, id);
                }
                Step::AddElsewhere(objects) => _ = store.add(name, objects),
                Step::Remove(which) if !store.packs.is_empty() => {
                    let id = *store.packs.keys().nth(which % store.packs.len()).unwrap();
                    store.packs.remove(&id);
                    // Until it is opened again the index still tells of it; its owner knows that it is gone.
                    opened = store.open(dir.path()).0;
                }
                Step::Remove(_) => {}
                Step::Flush => _ = opened.index.flush(),
                Step::Reopen => opened = store.open(dir.path()).0,
                Step::Other => {
                    let other = store.open(dir.path()).0;
                    other.index.flush();
                }
            }
            let known = store.check(&mut opened, 0..20);
            prop_assert_eq!(known, 0, "nothing was damaged");
        }
        store.check(&mut opened, 0..400);
    }
}

#[test]
fn a_store_that_is_opened_again_is_told_nothing_anew() {
    let dir = TempDir::new().unwrap();
    let store = filled(100);
    let (opened, told) = store.open(dir.path());
    assert_eq!(told, 100);
    opened.index.flush();
    let found = opened.index.numbers();
    assert_eq!((found.in_table, found.in_runs), (0, 100 * 21 - 1));
    drop(opened);
    let (mut opened, told) = store.open(dir.path());
    assert_eq!(told, 0);
    assert_eq!(store.check(&mut opened, 0..3000), 0);
    assert_eq!(opened.index.count(1, 100 * 21 - 1), 2000, "each object once");
}

#[test]
fn runs_stay_few_and_files_that_became_part_of_others_go() {
    let dir = TempDir::new().unwrap();
    let mut store = Store::default();
    let mut opened = store.open(dir.path()).0;
    for name in 0..200 {
        let id = store.add(name, (name * 64..name * 64 + 64).collect());
        store.tell(&mut opened, id);
        opened.index.settle();
        let numbers = opened.index.numbers();
        assert!(numbers.runs < 8, "{numbers:?}");
        assert!(numbers.in_table < 128, "{numbers:?}");
        assert_eq!(run_files(dir.path()).len() as u64, numbers.runs);
    }
    assert_eq!(store.check(&mut opened, 0..200 * 64 + 500), 0);
}

#[test]
fn memory_stays_where_its_limits_are_however_much_is_told() {
    let dir = TempDir::new().unwrap();
    let limits = Limits { table: 10_000, near: 10_000 };
    let index = Index::with_files(OWNER, Some(dir.path()), limits, Arc::new(Faulty::none()));
    let mut most = 0;
    for number in 0..150u32 {
        let about = PackAbout {
            id: *blake3::hash(&number.to_le_bytes()).as_bytes(),
            size: 1,
            entries: 1000,
            kind: 1,
        };
        let ids: Vec<[u8; 32]> =
            (0..1000u32).map(|at| *blake3::hash(&(number * 1000 + at).to_le_bytes()).as_bytes()).collect();
        index.insert(number, about, &mut ids.iter().map(|id| (id[..16].try_into().unwrap(), true)));
        // In its own order, as data that comes again does: the neighbourhood fills too.
        for id in &ids[..100] {
            let mut found = 0;
            index.find(id, &mut |_| found += 1).unwrap();
            assert_eq!(found, 1);
        }
        most = most.max(index.numbers().memory);
    }
    index.settle();
    let (told, tables) = (150_000, (10_000 + 10_000) * 36 + 4 * 256 * 16 * 24);
    let filters = told * 13 / 10 + 150 * 16;
    assert!(most <= tables + 2 * filters, "{most} bytes");
    // And what stays of it all is about a byte an object.
    assert!(index.numbers().memory < tables + filters, "{:?}", index.numbers());
}

#[test]
fn data_that_comes_again_reads_few_pages() {
    let dir = TempDir::new().unwrap();
    let mut store = filled(50);
    store.add(99, vec![1_000_000]);
    let (opened, _) =
        store.open_with(dir.path(), Limits { table: 1 << 20, near: 4096 }, Arc::new(Faulty::none()));
    opened.index.flush();
    let find = |object| {
        let mut found = 0;
        opened.index.find(&id(object), &mut |_| found += 1).map(|()| found)
    };
    for object in 0..4 {
        assert!(find(object).unwrap() >= 1);
    }
    // The pages are gone: what is near is still told.
    let file = &run_files(dir.path())[0];
    File::options().write(true).open(file).unwrap().set_len(0).unwrap();
    assert!((4..10).all(|object| find(object) == Ok(1)));
    assert!(find(900).is_err());
}

#[test]
fn damage_at_every_byte_gives_a_rebuild_and_never_a_wrong_answer() {
    let dir = TempDir::new().unwrap();
    let store = filled(4);
    let open =
        |dir: &Path| store.open_with(dir, Limits { table: 1 << 20, near: 512 }, Arc::new(Faulty::none()));
    let (opened, _) = open(dir.path());
    opened.index.flush();
    drop(opened);
    let [file] = &run_files(dir.path())[..] else { panic!("one run") };
    let whole = fs::read(file).unwrap();
    let (mut at_open, mut by_questions) = (0, 0);
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        fs::write(file, &bytes).unwrap();
        let (mut opened, told) = open(dir.path());
        let healed = store.check(&mut opened, (0..80).step_by(4).chain(1000..1004));
        at_open += usize::from(told == 4);
        by_questions += usize::from(healed > 0);
        assert!(told == 4 || healed > 0, "byte {at} of {}: nobody noticed", whole.len());
        drop(opened);
        for path in run_files(dir.path()) {
            fs::remove_file(path).unwrap();
        }
    }
    assert!(at_open > 300 && by_questions > 4000, "{at_open}, {by_questions}");
    for size in (0..whole.len()).step_by(97) {
        fs::write(file, &whole[..size]).unwrap();
        let (mut opened, told) = open(dir.path());
        assert_eq!(told, 4, "cut to {size}");
        assert_eq!(store.check(&mut opened, 0..180), 0);
        drop(opened);
        for path in run_files(dir.path()) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// Dies, or fails once, at the n-th operation. Syncs nothing: nothing here takes power away.
#[derive(Debug)]
struct Faulty {
    at: u64,
    dies: bool,
    count: AtomicU64,
}

impl Faulty {
    fn none() -> Self {
        Self { at: u64::MAX, dies: false, count: AtomicU64::new(0) }
    }

    fn step(&self) -> io::Result<bool> {
        let now = self.count.fetch_add(1, Ordering::SeqCst);
        match now == self.at || (self.dies && now > self.at) {
            true => Err(io::Error::from(io::ErrorKind::StorageFull)),
            false => Ok(true),
        }
    }
}

impl Files for Faulty {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        SystemFiles.create_dir(path)
    }
    fn create(&self, path: &Path) -> io::Result<File> {
        self.step()?;
        SystemFiles.create(path)
    }
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.step() {
            SystemFiles.write(file, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        SystemFiles.write(file, bytes)
    }
    fn sync(&self, _file: &File) -> io::Result<()> {
        self.step().map(drop)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        SystemFiles.rename(from, to)
    }
    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        self.step().map(drop)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        SystemFiles.remove(path)
    }
}

#[test]
fn death_or_a_full_disk_at_every_step_costs_nothing_but_time() {
    let mut steps = 0;
    for (dies, at) in [true, false].into_iter().flat_map(|dies| (0..400).map(move |at| (dies, at))) {
        let dir = TempDir::new().unwrap();
        let faulty = Arc::new(Faulty { at, dies, count: AtomicU64::new(0) });
        let mut store = Store::default();
        let mut opened = store.open_with(dir.path(), SMALL, faulty.clone()).0;
        // Enough for runs that become one.
        for name in 0..9 {
            let id = store.add(name, (name * 40..name * 40 + 70).collect());
            store.tell(&mut opened, id);
        }
        opened.index.settle();
        assert_eq!(store.check(&mut opened, (0..400).step_by(23)), 0, "the one who failed knows all");
        drop(opened);
        let (mut opened, _) = store.open(dir.path());
        assert_eq!(store.check(&mut opened, (0..400).step_by(23)), 0, "operation {at}");
        assert!(run_files(dir.path()).iter().all(|path| path.extension().unwrap() == "run1"), "leftovers go");
        if faulty.count.load(Ordering::SeqCst) <= at {
            steps += at;
            if !dies {
                println!("{steps} operations failed, each once for good and once alone");
                assert!(steps > 80, "{steps}");
                return;
            }
        }
    }
    panic!("it takes more than 400 operations");
}

#[test]
fn a_run_of_another_store_is_not_believed() {
    let dir = TempDir::new().unwrap();
    let store = filled(5);
    let other = Index::new([8; 16], Some(dir.path()), SMALL);
    let about = store.about(*store.packs.keys().next().unwrap());
    other.insert(0, about, &mut (900..921).map(|object| (prefix(object), true)));
    assert!(other.flush());
    let (mut opened, told) = store.open(dir.path());
    assert_eq!(told, 5, "nothing was taken over");
    assert_eq!(store.check(&mut opened, 0..1000), 0);
}

#[test]
fn two_processes_write_and_read_one_cache_at_once() {
    let dir = TempDir::new().unwrap();
    let mut store = filled(20);
    let (mut first, _) = store.open(dir.path());
    let (mut second, _) = store.open(dir.path());
    for name in 100..140 {
        let id = store.add(name, (name * 70..name * 70 + 70).collect());
        let opened = if name % 2 == 0 { &mut first } else { &mut second };
        store.tell(opened, id);
        opened.index.settle();
        store.check(&mut first, (0..400).step_by(9));
        store.check(&mut second, (0..400).step_by(9));
    }
    drop((first, second));
    let (mut third, _) = store.open(dir.path());
    assert_eq!(store.check(&mut third, (0..400).chain(7000..9900)), 0);
}

#[test]
fn without_a_directory_everything_stays_in_memory() {
    let store = filled(30);
    let index = Index::new(OWNER, None, SMALL);
    let mut opened = Opened { index, numbers: BTreeMap::new() };
    for id in store.packs.keys() {
        store.tell(&mut opened, *id);
    }
    assert!(!opened.index.flush());
    assert_eq!(store.check(&mut opened, 0..700), 0);
}
