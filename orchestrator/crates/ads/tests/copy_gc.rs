//! Copies between two places of a store, in both directions, beside backups, removals and collections in both: one operation
//! of a backend at a time, in orders that seeds draw. `SEED=7` does one again, `SEEDS=5000` more of them.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{CopyOptions, Depth, Error, ErrorKind, GcOptions, PointId, Scope, Store};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::memory::Memory;
use support::turns::{Draw, Leaver, Turned, Turns};
use support::{GO_ON, chain, pack_disk, point, restore, store_disk};

const BLOCK: usize = 65536;
const BLOCKS: u64 = 6;
/// Different blocks that there are: few, so that what one removes another wants.
const CONTENTS: u64 = 12;
const DAY: u64 = 86_400;
const GRACE: Duration = Duration::from_secs(DAY);
/// Seeds of an ordinary run.
const SEEDS: u64 = 12;
const ACTORS: usize = 6;

/// What goes on.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Whether time passes between collections, so that who works is taken for dead.
    time_passes: bool,
    /// What collectors do not see.
    collectors_blind: &'static [&'static str],
    /// What who copies does not see.
    copiers_blind: &'static [&'static str],
}

struct World {
    /// The two places.
    places: [Arc<Memory>; 2],
    turns: Arc<Turns>,
    committed: Mutex<BTreeMap<PointId, Vec<u8>>>,
    clock: AtomicU64,
    plan: Plan,
}

impl World {
    fn store(&self, place: usize, actor: usize, blind: &'static [&'static str]) -> Arc<Store> {
        let inner = self.places[place].clone();
        let turned = Turned { inner, turns: self.turns.clone(), actor, blind, own: Mutex::default() };
        Arc::new(Store::open_on(Arc::new(turned)).unwrap())
    }

    fn back_up(&self, store: &Arc<Store>, vm: &str, draw: &mut Draw) -> Result<(), Error> {
        let lease = store.lease("job", &[])?;
        let bytes = disk(draw);
        let packed = pack_disk(store.id_key(), &bytes, None, &mut |id| store.has_block(id));
        for pack in packed.data.iter().chain(&packed.nodes) {
            store.add_pack(pack.id, &pack.bytes)?;
        }
        store.finish_tree(packed.tree, None)?;
        let minute = self.clock.fetch_add(1, Ordering::SeqCst);
        let created = format!("2026-11-03T{:02}:{:02}:00Z", minute / 60, minute % 60);
        let point = point(store, vm, &created, &[packed.tree]);
        let id = blake3::hash(&serde_json::to_vec_pretty(&point).unwrap()).to_hex().parse().unwrap();
        // Known to the test before it exists: somebody may copy it at once.
        self.committed.lock().unwrap().insert(id, bytes);
        lease.commit(&point).map(drop)
    }

    fn copy(&self, actor: usize, from: usize, draw: &mut Draw) -> Result<(), Error> {
        let blind = self.plan.copiers_blind;
        let (here, there) = (self.store(from, actor, &[]), self.store(1 - from, actor, blind));
        let options = CopyOptions { all: draw.below(2) == 0, ..CopyOptions::default() };
        let report = match here.copy_to(&there, &options, &GO_ON) {
            // Removed again and again before a lease could name it.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match report.stopped {
            Some(error) => Err(error),
            None => {
                assert!(report.omitted.is_empty() || self.plan.time_passes, "{:?}", report.omitted);
                Ok(())
            }
        }
    }

    fn remove_some(store: &Store, draw: &mut Draw) -> Result<(), Error> {
        for stored in store.points()?.points.iter().filter(|_| draw.below(2) == 0) {
            match store.remove_point(stored.id) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }
}

fn disk(draw: &mut Draw) -> Vec<u8> {
    let block = |_| vec![u8::try_from(draw.below(CONTENTS)).unwrap(); BLOCK];
    (0..BLOCKS).flat_map(block).collect()
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

fn act(world: &World, actor: usize, draw: &mut Draw) -> Result<(), Error> {
    let _leaver = Leaver(world.turns.clone(), actor);
    for round in 0..3 {
        let outcome = match actor {
            0 => world.back_up(&world.store(0, actor, &[]), "a", draw),
            1 => world.copy(actor, 0, draw),
            2 => world.copy(actor, 1, draw),
            3 => World::remove_some(&world.store((round % 2) as usize, actor, &[]), draw),
            _ => {
                let day = if world.plan.time_passes { round } else { 0 };
                let store = world.store(actor - 4, actor, world.plan.collectors_blind);
                store.collect(&options(day), &|_, _| {}).map(drop)
            }
        };
        match outcome {
            // Taken for dead: then anything may be missing, and there must be no point.
            Err(_) if world.plan.time_passes => {}
            other => other?,
        }
    }
    Ok(())
}

/// Plays a seed; what went wrong, and how many turns there were.
fn play(seed: u64, plan: Plan) -> (Result<(), String>, u64) {
    let mut draw = Draw(seed);
    let places = [Arc::new(Memory::default()), Arc::new(Memory::default())];
    let first = Arc::new(Store::init_on(places[0].clone()).unwrap());
    let second = Arc::new(first.init_copy_on(places[1].clone()).unwrap());
    let turns = Turns::new(ACTORS, draw.below(u64::MAX));
    let world = World { places, turns, committed: Mutex::default(), clock: AtomicU64::new(0), plan };
    for store in [&first, &second, &first] {
        for vm in ["a", "b"] {
            let bytes = disk(&mut draw);
            let tree = store_disk(store, &bytes).unwrap();
            let minute = world.clock.fetch_add(1, Ordering::SeqCst);
            let created = format!("2026-11-03T00:{minute:02}:00Z");
            let id = store.commit_point(&point(store, vm, &created, &[tree])).unwrap();
            world.committed.lock().unwrap().insert(id, bytes);
        }
        first.copy_to(&second, &CopyOptions::default(), &GO_ON).unwrap();
    }
    for store in [first, second] {
        World::remove_some(&store, &mut draw).unwrap();
    }
    let outcome = std::thread::scope(|scope| {
        let actors: Vec<_> = (0..ACTORS)
            .map(|actor| {
                let (world, mut draw) = (&world, Draw(draw.below(u64::MAX)));
                scope.spawn(move || act(world, actor, &mut draw))
            })
            .collect();
        let mut outcome = Ok(());
        for (actor, thread) in actors.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => outcome = Err(format!("actor {actor}: {}", chain(&error))),
                Err(_) => outcome = Err(format!("actor {actor} panicked")),
            }
        }
        outcome
    });
    let whole = outcome.and_then(|()| (0..2).try_for_each(|place| check(&world, place)));
    (whole, world.turns.given())
}

/// Everything that exists is whole, and when everybody is gone nothing is left of their work.
fn check(world: &World, place: usize) -> Result<(), String> {
    let open = || Arc::new(Store::open_on(world.places[place].clone()).unwrap());
    for round in 0..3 {
        let store = open();
        for stored in store.points().unwrap().points {
            let bytes = restore(&store, &stored.point.disks[0].tree)
                .map_err(|error| format!("place {place}: {}: {}", stored.id, chain(&error)))?;
            if bytes != world.committed.lock().unwrap()[&stored.id] {
                return Err(format!("place {place}: {} reads as something else", stored.id));
            }
        }
        let report = store.verify(&Scope::All, Depth::EveryByte, &|_| {}).unwrap();
        if !report.is_clean() {
            return Err(format!("place {place}: {:?}", report.findings));
        }
        open().collect(&options(10 + round), &|_, _| {}).map_err(|error| chain(&error))?;
    }
    let left: Vec<String> = world.places[place].objects().into_iter().map(|(key, _)| key).collect();
    match left.iter().find(|key| key.starts_with("leases/")) {
        None => Ok(()),
        Some(lease) => Err(format!("place {place}: {lease} is left")),
    }
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
fn copies_in_both_directions_lose_nothing_to_collections_in_either_place() {
    all_are_whole("honest", Plan::default());
}

#[test]
fn a_copy_that_is_taken_for_dead_makes_no_point_that_is_not_whole() {
    all_are_whole("time passes", Plan { time_passes: true, ..Plan::default() });
}

/// The same with a rule that is not kept must fail, else the two above prove nothing.
#[test]
fn a_collector_that_sees_no_leases_and_a_copy_that_sees_no_condemned_lists_are_caught() {
    for plan in [
        Plan { collectors_blind: &["leases/"], ..Plan::default() },
        Plan { copiers_blind: &["condemned/"], ..Plan::default() },
    ] {
        let failed = (0..SEEDS * 10).find_map(|seed| Some((seed, play(seed, plan).0.err()?)));
        println!("{failed:?}");
        assert!(failed.is_some(), "{SEEDS} seeds saw nothing");
    }
}
