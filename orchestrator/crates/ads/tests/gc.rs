//! Collection beside backups, restores, removals and other collections, one operation of the backend at a time, in orders
//! that seeds draw. `SEED=7` does one again, `SEEDS=5000` more of them.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Backend, Depth, Error, ErrorKind, GcOptions, GcReport, Lease, PointId, RepairOptions, Scope, Store,
    StoredPoint,
};
use seal::Tree;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::memory::{Between, Change, Loss, Memory};
use support::turns::{Draw, Leaver, Turned, Turns};
use support::{Nodes, on_disk, pack_disk, point, restore, store_disk};
use tempfile::TempDir;

const BLOCK: usize = 65536;
const BLOCKS: u64 = 10;
/// Different blocks that there are: few, so that what one removes another wants.
const CONTENTS: u64 = 30;
const DAY: u64 = 86_400;
const GRACE: Duration = Duration::from_secs(DAY);
/// Seeds of an ordinary run.
const SEEDS: u64 = 60;

/// What was committed, by point.
type Committed = Arc<Mutex<BTreeMap<PointId, Vec<u8>>>>;

/// What goes on.
#[derive(Clone, Copy)]
struct Plan {
    /// Whether time passes between collections, so that who works is taken for dead.
    time_passes: bool,
    /// What collectors do not see.
    collectors_blind: &'static [&'static str],
    /// Whether packs are damaged where it costs nothing, and one of the collectors repairs the store instead.
    repairs: bool,
}

const HONEST: Plan = Plan { time_passes: false, collectors_blind: &[], repairs: false };

/// A disk of blocks that are drawn; most are those of `base`.
fn disk(base: Option<&[u8]>, draw: &mut Draw) -> Vec<u8> {
    let mut bytes = base.map_or_else(|| vec![0; BLOCK * BLOCKS as usize], <[u8]>::to_vec);
    for block in bytes.chunks_mut(BLOCK) {
        if base.is_none() || draw.below(3) == 0 {
            let content = draw.below(CONTENTS);
            // Zeros are a content too.
            block.fill(u8::try_from(content).unwrap());
        }
    }
    bytes
}

/// All nodes of a tree.
fn nodes(store: &Store, tree: &Tree) -> Result<Nodes, Error> {
    let mut found = Nodes::default();
    if let Some(root) = tree.root {
        found.0.insert(root, seal::Node::clone(&*store.read_node(root)?));
    }
    Ok(found)
}

fn time(number: u64) -> String {
    format!("2026-11-03T{:02}:{:02}:{:02}Z", number / 3600, number / 60 % 60, number % 60)
}

/// The id that a point will have: the hash of its document.
fn id_of(point: &ads::RestorePoint) -> PointId {
    let bytes = serde_json::to_vec_pretty(point).unwrap();
    blake3::hash(&bytes).to_hex().parse().unwrap()
}

/// Collections that may come in between.
const REPAIRS: usize = 12;

struct World {
    memory: Arc<Memory>,
    turns: Arc<Turns>,
    committed: Committed,
    clock: Mutex<u64>,
    plan: Plan,
    /// Where each actor keeps the index on disk: on odd seeds, so that both ways are played.
    index: Option<TempDir>,
}

impl World {
    fn open(&self, actor: usize, backend: Arc<dyn Backend>) -> Arc<Store> {
        let Some(dir) = &self.index else { return Arc::new(Store::open_on(backend).unwrap()) };
        // Of his own: what another wrote meanwhile would be another game each time.
        Arc::new(Store::open_indexed(backend, &on_disk(&dir.path().join(actor.to_string()))).unwrap())
    }

    fn store(&self, actor: usize, blind: &'static [&'static str]) -> Arc<Store> {
        let backend = Turned {
            inner: self.memory.clone(),
            turns: self.turns.clone(),
            actor,
            blind,
            own: Mutex::default(),
        };
        self.open(actor, Arc::new(backend))
    }

    fn tick(&self) -> String {
        let mut clock = self.clock.lock().unwrap();
        *clock += 1;
        time(*clock)
    }

    /// Takes a lease on the newest point of a VM, or none where there is none.
    fn start(store: &Arc<Store>, vm: &str) -> Result<(Lease, Option<StoredPoint>), Error> {
        loop {
            let base = store.latest_point(vm)?;
            match store.lease("job", &base.iter().collect::<Vec<_>>()) {
                Ok(lease) => return Ok((lease, base)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn back_up(&self, store: &Arc<Store>, vm: &str, draw: &mut Draw) -> Result<(), Error> {
        let (lease, base) = Self::start(store, vm)?;
        let old = base.as_ref().map(|stored| self.committed.lock().unwrap()[&stored.id].clone());
        let bytes = disk(old.as_deref(), draw);
        let tree = base.map(|stored| stored.point.disks[0].tree);
        let known = tree.map(|tree| Ok::<_, Error>((tree, nodes(store, &tree)?))).transpose()?;
        let packed = pack_disk(store.id_key(), &bytes, known, &mut |id| store.has_block(id));
        for pack in packed.data.iter().chain(&packed.nodes) {
            store.add_pack(pack.id, &pack.bytes)?;
        }
        store.finish_tree(packed.tree, tree)?;
        let point = point(store, vm, &self.tick(), &[packed.tree]);
        // Known to the test before it exists: somebody may restore it at once.
        let id = id_of(&point);
        self.committed.lock().unwrap().insert(id, bytes);
        let outcome = lease.commit(&point);
        // One in ten dies and leaves its lease.
        if draw.below(10) == 0 {
            std::mem::forget(lease);
        }
        outcome.map(drop)
    }

    fn read_back(&self, store: &Arc<Store>, draw: &mut Draw) -> Result<(), Error> {
        let points = store.points()?.points;
        let Some(stored) = points.get(draw.below(points.len().max(1) as u64) as usize) else { return Ok(()) };
        let _lease = match store.lease("restore", &[stored]) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let bytes = restore(store, &stored.point.disks[0].tree)?;
        assert!(bytes == self.committed.lock().unwrap()[&stored.id], "{} reads as something else", stored.id);
        Ok(())
    }

    fn remove_some(store: &Store, draw: &mut Draw) -> Result<(), Error> {
        let points = store.points()?.points;
        for stored in points.iter().filter(|_| draw.below(3) == 0) {
            match store.remove_point(stored.id) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Makes a pack another one than its name says, and repairs.
    fn repair(&self, store: &Arc<Store>, draw: &mut Draw) -> Result<(), Error> {
        let objects = self.memory.objects();
        let packs: Vec<_> = objects.into_iter().filter(|(key, _)| key.starts_with("packs/")).collect();
        if let Some((key, mut bytes)) = packs.into_iter().nth(draw.below(8) as usize) {
            bytes[12] ^= 1;
            self.memory.put(&key, &bytes)?;
        }
        for _ in 0..REPAIRS {
            match store.repair(RepairOptions::default(), None, &|_| ()) {
                // A collector was faster with a pack that was damaged, or condemned: whoever repairs begins again.
                Err(error) if error.is_not_found() => store.refresh()?,
                other => return other.map(drop),
            }
        }
        panic!("a repair never comes to its end")
    }

    fn collect(&self, store: &Arc<Store>, day: u64) -> Result<GcReport, Error> {
        let day = if self.plan.time_passes { day } else { 0 };
        store.collect(&options(day), &|_, _| {})
    }
}

fn options(day: u64) -> GcOptions {
    let now: SystemTime = UNIX_EPOCH + Duration::from_secs(1_800_000_000 + day * DAY * 2);
    GcOptions {
        sparse_percent: 60,
        grace: GRACE,
        dry_run: false,
        only_here: false,
        now,
        ..GcOptions::default()
    }
}

/// One actor's work; an error that his plan does not allow is the end of the test.
fn act(world: &World, actor: usize, draw: &mut Draw) -> Result<(), Error> {
    let _leaver = Leaver(world.turns.clone(), actor);
    match actor {
        0 | 1 => {
            let store = world.store(actor, &[]);
            for _ in 0..2 {
                match world.back_up(&store, ["a", "b"][actor], draw) {
                    // Taken for dead: then anything may be missing, and there must be no point.
                    Err(_) if world.plan.time_passes => {}
                    other => other?,
                }
            }
        }
        2 => {
            let store = world.store(actor, &[]);
            for _ in 0..2 {
                match world.read_back(&store, draw) {
                    Err(_) if world.plan.time_passes => {}
                    other => other?,
                }
            }
        }
        3 => {
            let store = world.store(actor, &[]);
            for _ in 0..2 {
                World::remove_some(&store, draw)?;
            }
        }
        4 if world.plan.repairs => {
            for _ in 0..3 {
                // Opened before the damage, as by somebody who comes to it in the middle of his work.
                let store = world.store(actor, &[]);
                world.repair(&store, draw)?;
            }
        }
        _ => {
            for round in 0..3 {
                let store = world.store(actor, world.plan.collectors_blind);
                match world.collect(&store, round) {
                    // A tree of somebody who was taken for dead, or who came and went while this one looked.
                    Err(error)
                        if world.plan.time_passes
                            && matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Io) => {}
                    other => drop(other?),
                }
            }
        }
    }
    Ok(())
}

/// Plays a seed; what went wrong, and how many turns there were.
fn play(seed: u64, plan: Plan) -> (Result<(), String>, u64) {
    let mut draw = Draw(seed);
    let memory = Arc::new(Memory::default());
    let committed = Committed::default();
    let turns = Turns::new(6, draw.below(u64::MAX));
    let index = (seed % 2 == 1).then(support::fast_dir);
    let world = World { memory: memory.clone(), turns, committed, clock: Mutex::new(0), plan, index };
    {
        let store = Store::init_on(memory.clone()).unwrap();
        for number in 0..6 {
            let bytes = disk(None, &mut draw);
            let tree = store_disk(&store, &bytes).unwrap();
            let vm = ["a", "b"][number % 2];
            let id = store.commit_point(&point(&store, vm, &world.tick(), &[tree])).unwrap();
            world.committed.lock().unwrap().insert(id, bytes);
            if draw.below(2) == 0 {
                store.remove_point(id).unwrap();
            }
        }
    }
    let outcome = std::thread::scope(|scope| {
        let actors: Vec<_> = (0..6)
            .map(|actor| {
                let mut draw = Draw(draw.below(u64::MAX));
                let world = &world;
                scope.spawn(move || act(world, actor, &mut draw))
            })
            .collect();
        let mut outcome = Ok(());
        for (actor, thread) in actors.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = Err(format!("actor {actor}: {}", support::chain(&error))),
                Err(_) => outcome = Err(format!("actor {actor} panicked")),
            }
        }
        outcome
    });
    let whole = outcome.and_then(|()| check(&world));
    (whole, world.turns.given())
}

/// Everything that exists is whole; and when everybody is gone, what nobody needs goes too.
fn check(world: &World) -> Result<(), String> {
    let open = || world.open(0, world.memory.clone());
    for round in 0..3u64 {
        let store = open();
        let points = store.points().unwrap().points;
        for stored in &points {
            let bytes = restore(&store, &stored.point.disks[0].tree)
                .map_err(|error| format!("round {round}: {}: {}", stored.id, support::chain(&error)))?;
            if bytes != world.committed.lock().unwrap()[&stored.id] {
                return Err(format!("{} reads as something else", stored.id));
            }
        }
        let report = store.verify(&Scope::All, Depth::EveryByte, &|_| {}).unwrap();
        if !report.is_clean() {
            return Err(format!("{:?}", report.findings));
        }
        drop(store);
        // Days later, so that those who died are known to be dead.
        open().collect(&options(10 + round), &|_, _| {}).map_err(|error| support::chain(&error))?;
    }
    let store = open();
    let left = store.statistics(&|_, _| {}).unwrap();
    let (unreached, stored) = (left.unreached.get(), left.stored.get());
    // Nothing of it stands in a pack of which less than 60 % is needed.
    if unreached * 60 > stored * 40 + 60 {
        return Err(format!("{unreached} bytes are left that nobody needs, beside {stored}"));
    }
    let objects = world.memory.objects();
    let left: Vec<_> = objects.iter().map(|(key, _)| key).filter(|key| key.starts_with("leases/")).collect();
    if !left.is_empty() {
        return Err(format!("leases of the dead are left: {left:?}"));
    }
    Ok(())
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    }
}

fn all_are_whole(name: &str, plan: Plan) {
    let mut turns = 0;
    for seed in seeds() {
        let (outcome, given) = play(seed, plan);
        turns += given;
        if let Err(wrong) = outcome {
            panic!("{name}, seed {seed}: {wrong}");
        }
    }
    println!("{name}: {turns} turns of {} seeds", seeds().count());
}

#[test]
fn nothing_that_anybody_needs_is_lost_in_any_order() {
    all_are_whole("honest", HONEST);
}

/// What opens in a damaged pack is nowhere else, and everybody is somewhere in his work.
#[test]
fn nothing_that_anybody_needs_is_lost_where_packs_are_repaired_meanwhile() {
    all_are_whole("repairs", Plan { repairs: true, ..HONEST });
}

#[test]
fn who_is_taken_for_dead_commits_nothing_and_harms_nobody() {
    all_are_whole("time passes", Plan { time_passes: true, ..HONEST });
}

/// The same with a rule that is not kept must fail, else the two above prove nothing.
#[test]
fn a_collector_that_sees_no_leases_is_caught() {
    let plan = Plan { collectors_blind: &["leases/"], ..HONEST };
    let failed = (0..SEEDS).find_map(|seed| Some((seed, play(seed, plan).0.err()?)));
    println!("no leases: {failed:?}");
    assert!(failed.is_some(), "{SEEDS} seeds saw nothing");
}

/// Somebody alone, who sees all but these.
fn alone(memory: &Arc<Memory>, blind: &'static [&'static str]) -> Arc<Store> {
    let backend =
        Turned { inner: memory.clone(), turns: Turns::new(1, 0), actor: 0, blind, own: Mutex::default() };
    Arc::new(Store::open_on(Arc::new(backend)).unwrap())
}

/// A job that begins after a pack was condemned and before it is removed wants what is in it; whether its point is whole
/// after all.
fn wants_what_is_condemned(jobs_blind: &'static [&'static str]) -> bool {
    let memory = Arc::new(Memory::default());
    let store = Arc::new(Store::init_on(memory.clone()).unwrap());
    let bytes = [vec![7; BLOCK], vec![8; BLOCK]].concat();
    let tree = store_disk(&store, &bytes).unwrap();
    let old = store.commit_point(&point(&store, "a", &time(1), &[tree])).unwrap();
    store.remove_point(old).unwrap();
    let busy = store.lease("another job", &[]).unwrap();
    let report = alone(&memory, &[]).collect(&options(0), &|_, _| {}).unwrap();
    assert_eq!((report.removed, report.waiting, report.waits_for.len()), (0, 2, 1), "{report:?}");
    drop(busy);

    let store = alone(&memory, jobs_blind);
    let lease = store.lease("job", &[]).unwrap();
    let packed = pack_disk(store.id_key(), &bytes, None, &mut |id| store.has_block(id));
    let report = alone(&memory, &[]).collect(&options(0), &|_, _| {}).unwrap();
    assert_eq!(report.removed, 2, "nobody who was there when it was condemned is there any more");
    for pack in packed.data.iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes).unwrap();
    }
    // A job whose promises are broken may see it here, or not at all.
    let finished = store.finish_tree(packed.tree, None);
    let committed = finished.and_then(|_| lease.commit(&point(&store, "a", &time(2), &[packed.tree])));
    drop(lease);
    let clean = || alone(&memory, &[]).verify(&Scope::All, Depth::EveryByte, &|_| {}).unwrap().is_clean();
    committed.is_ok() && clean()
}

#[test]
fn what_is_condemned_is_promised_to_nobody_and_a_job_that_does_not_look_is_caught() {
    assert!(wants_what_is_condemned(&[]));
    assert!(!wants_what_is_condemned(&["condemned/"]));
}

/// A collection dies after each of its changes; the next ones, days later, finish what it began and nothing is lost.
#[test]
fn a_collection_that_died_anywhere_is_finished_by_later_ones() {
    let memory = Arc::new(Memory::default());
    let store = Arc::new(Store::init_on(memory.clone()).unwrap());
    let (first, mut half) = (disk(None, &mut Draw(3)), disk(None, &mut Draw(3)));
    half[BLOCK..].fill(0);
    half[..BLOCK].fill(200);
    let old = support::backup(&store, "a", &[first, half[..BLOCK].to_vec()].concat()).unwrap();
    let kept = support::backup(&store, "b", &half).unwrap();
    store.remove_point(old).unwrap();
    let before = memory.objects();
    let between = Between::new(memory, Loss::None);
    let report = Arc::new(Store::open_on(between.clone()).unwrap()).collect(&options(0), &|_, _| {}).unwrap();
    assert!(report.removed > 1 && report.repacked > 0, "{report:?}");
    let changes = between.changes();
    for count in 0..=changes.len() {
        let memory = Arc::new(Memory::of(before.clone()));
        for change in &changes[..count] {
            match change {
                Change::Put(key, bytes) => memory.put(key, bytes).unwrap(),
                Change::Delete(key) => memory.delete(key).unwrap(),
            }
        }
        for day in 1..4 {
            let store = alone(&memory, &[]);
            store.collect(&options(day), &|_, _| {}).unwrap();
            let tree = store.point(kept).unwrap().point.disks[0].tree;
            assert!(restore(&store, &tree).unwrap() == half, "after {count} changes, day {day}");
        }
        let store = alone(&memory, &[]);
        assert!(store.verify(&Scope::All, Depth::EveryByte, &|_| {}).unwrap().is_clean());
        assert_eq!(store.statistics(&|_, _| {}).unwrap().unreached.get(), 0, "after {count} changes");
        let left: Vec<String> = memory.objects().into_iter().map(|(key, _)| key).collect();
        let is_record = |key: &&String| key.starts_with("leases/") || key.starts_with("condemned/");
        assert_eq!(left.iter().find(is_record), None, "after {count} changes");
    }
    println!("a collection: {} crash points", changes.len());
}

/// A block is in two condemned packs, and then needed after all. Two collectors, of which one knew one of the packs first
/// and the other the other, both may remove what nobody needs.
#[test]
fn of_two_condemned_copies_all_collectors_leave_the_same() {
    let bytes = vec![7; BLOCK];
    for seed in 0..SEEDS {
        let memory = Arc::new(Memory::default());
        let job = Arc::new(Store::init_on(memory.clone()).unwrap());
        let pack = || pack_disk(job.id_key(), &bytes, None, &mut |_| false);
        let packed = pack();
        // Until the second one comes before the first in every list.
        let twin = std::iter::repeat_with(pack).find(|twin| twin.data[0].id < packed.data[0].id).unwrap();
        let turns = Turns::later(2, seed);
        let open = |actor| {
            let backend = Turned {
                inner: memory.clone(),
                turns: turns.clone(),
                actor,
                blind: &[],
                own: Mutex::default(),
            };
            Arc::new(Store::open_on(Arc::new(backend)).unwrap())
        };
        let busy = job.lease("job", &[]).unwrap();
        for pack in packed.data.iter().chain(&packed.nodes) {
            job.add_pack(pack.id, &pack.bytes).unwrap();
        }
        let mut collectors = vec![open(0)];
        alone(&memory, &[]).add_pack(twin.data[0].id, &twin.data[0].bytes).unwrap();
        // Comes to know the second one while nothing is condemned yet.
        collectors[0].collect(&GcOptions { dry_run: true, ..options(0) }, &|_, _| {}).unwrap();
        collectors.push(open(1));
        let report = alone(&memory, &[]).collect(&options(0), &|_, _| {}).unwrap();
        assert_eq!((report.removed, report.waiting), (0, 3), "{report:?}");
        job.finish_tree(packed.tree, None).unwrap();
        busy.commit(&point(&job, "a", &time(1), &[packed.tree])).unwrap();
        drop(busy);
        turns.begin();
        std::thread::scope(|scope| {
            for (actor, store) in collectors.into_iter().enumerate() {
                let turns = turns.clone();
                scope.spawn(move || {
                    let _leaver = Leaver(turns, actor);
                    store.collect(&options(0), &|_, _| {}).unwrap();
                });
            }
        });
        let report = alone(&memory, &[]).verify(&Scope::All, Depth::EveryByte, &|_| {}).unwrap();
        assert!(report.is_clean() && report.points == 1, "seed {seed}: {:?}", report.findings);
    }
}

/// A lease keeps objects, and not the pack that they are in: who came after that was condemned finds them in the other one.
#[test]
fn who_reads_goes_on_where_the_pack_that_he_knew_is_gone() {
    // Which of the two packs is known first depends on their ids.
    for _ in 0..8 {
        let memory = Arc::new(Memory::default());
        let store = Arc::new(Store::init_on(memory.clone()).unwrap());
        let large = disk(None, &mut Draw(5));
        let mut small = vec![0; large.len()];
        small[..BLOCK].copy_from_slice(&large[..BLOCK]);
        let old = support::backup(&store, "a", &large).unwrap();
        let kept = store.point(support::backup(&store, "b", &small).unwrap()).unwrap();
        store.remove_point(old).unwrap();
        let reader = alone(&memory, &[]);
        let busy = store.lease("another job", &[]).unwrap();
        let report = alone(&memory, &[]).collect(&options(0), &|_, _| {}).unwrap();
        assert_eq!((report.repacked, report.removed), (1, 0), "{report:?}");
        let _lease = reader.lease("restore", &[&kept]).unwrap();
        drop(busy);
        assert!(alone(&memory, &[]).collect(&options(0), &|_, _| {}).unwrap().removed > 0);
        assert!(restore(&reader, &kept.point.disks[0].tree).unwrap() == small);
    }
}

/// Who collected goes on with the store that he had open: what he removed is no damage.
#[test]
fn after_a_collection_the_same_process_checks_and_counts_what_is_left() {
    let memory = Arc::new(Memory::default());
    let store = Arc::new(Store::init_on(memory.clone()).unwrap());
    // The first packs go, and the later numbers stay.
    let old = support::backup(&store, "a", &disk(None, &mut Draw(5))).unwrap();
    let kept = disk(None, &mut Draw(6));
    support::backup(&store, "b", &kept).unwrap();
    store.remove_point(old).unwrap();
    assert!(store.collect(&options(0), &|_, _| {}).unwrap().removed > 0);
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| {}).unwrap();
    assert!(report.is_clean(), "{:?}", report.findings);
    let counted = store.statistics(&|_, _| {}).unwrap();
    let fresh = alone(&memory, &[]).statistics(&|_, _| {}).unwrap();
    assert_eq!((counted.stored, counted.unreached), (fresh.stored, fresh.unreached));
}

#[test]
fn a_store_in_which_something_needed_is_missing_is_not_cleaned() {
    let memory = Arc::new(Memory::default());
    let store = Arc::new(Store::init_on(memory.clone()).unwrap());
    let tree = store_disk(&store, &disk(None, &mut Draw(1))).unwrap();
    store.commit_point(&point(&store, "a", &time(1), &[tree])).unwrap();
    let garbage = store_disk(&store, &disk(None, &mut Draw(2))).unwrap();
    assert_ne!(tree, garbage);
    let objects = memory.objects();
    let count =
        |memory: &Memory| memory.objects().iter().filter(|(key, _)| key.starts_with("packs/")).count();
    for (key, bytes) in objects.iter().filter(|(key, _)| key.starts_with("p")) {
        let damaged = Arc::new(Memory::of(objects.clone()));
        match key.starts_with("points/") {
            true => damaged.put(key, &bytes[1..]).unwrap(),
            false => damaged.delete(key).unwrap(),
        }
        let before = count(&damaged);
        let store = Arc::new(Store::open_on(damaged.clone()).unwrap());
        let lost = !store.verify(&Scope::All, Depth::Structure, &|_| {}).unwrap().is_clean();
        match store.collect(&options(0), &|_, _| {}) {
            Err(error) => {
                assert!(lost, "{key}: {error}");
                assert_eq!((error.kind(), count(&damaged)), (ErrorKind::Damaged, before), "{key}");
            }
            Ok(_) => assert!(!lost, "{key} is lost and the store was cleaned"),
        }
    }
    // Whole, it is: and dry runs remove nothing.
    let before = count(&memory);
    let dry = GcOptions { dry_run: true, ..options(0) };
    let found = store.collect(&dry, &|_, _| {}).unwrap();
    assert_eq!((found.removed, count(&memory)), (0, before));
    assert!(found.waiting > 0);
    let done = store.collect(&options(0), &|_, _| {}).unwrap();
    assert_eq!(done.removed, found.waiting);
    assert_eq!(count(&memory), before - usize::try_from(done.removed).unwrap());
}
