//! Lists that lack what others did a moment ago: jobs and readers lose nothing by them, and a collection that is told how late
//! they are waits for as long. One that is not told is caught.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Depth, Error, ErrorKind, GcOptions, GcReport, PointId, Scope, Store};
use std::sync::Arc;
use std::time::Duration;
use support::late::Shared;
use support::memory::Memory;
use support::{backup, disk, pack_disk, point, restore};

const BLOCK: usize = 65536;
/// How late lists are where somebody waits for them.
const LAG: Duration = Duration::from_millis(150);
/// Where nobody does: longer than any test.
const LONG: Duration = Duration::from_secs(600);

struct World {
    memory: Arc<Memory>,
    shared: Arc<Shared>,
}

impl World {
    /// A store out of which a point was removed long ago, so that all of its packs are garbage.
    fn with_garbage(bytes: &[u8], lag: Duration) -> Self {
        let memory = Arc::new(Memory::default());
        let store = Store::init_on(memory.clone()).unwrap();
        let old = backup(&store, "old", bytes).unwrap();
        store.remove_point(old).unwrap();
        Self { shared: Shared::new(memory.clone(), lag), memory }
    }

    fn machine(&self) -> Arc<Store> {
        Arc::new(Store::open_on(self.shared.machine()).unwrap())
    }

    fn collect(&self, lists_lag: Duration) -> Result<GcReport, Error> {
        self.machine().collect(&GcOptions { lists_lag, ..GcOptions::default() }, &|_, _| ())
    }

    /// Looked at with lists that are current.
    fn is_whole(&self, id: Result<PointId, Error>) -> bool {
        let store = Store::open_on(self.memory.clone()).unwrap();
        let clean = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap().is_clean();
        clean && id.is_ok_and(|id| store.point(id).is_ok())
    }
}

/// A job that begins a moment before the collection, unseen by it, and is told that the store has its blocks.
fn job_before_a_collection(lag: Duration, lists_lag: Duration) -> bool {
    let bytes = disk(1, 6 * BLOCK);
    let world = World::with_garbage(&bytes, lag);
    let job = world.machine();
    let lease = job.lease("job", &[]).unwrap();
    let packed = pack_disk(job.id_key(), &bytes, None, &mut |id| job.has_block(id));
    assert!(packed.data.is_empty(), "all of it is known");
    world.collect(lists_lag).unwrap();
    for pack in &packed.nodes {
        job.add_pack(pack.id, &pack.bytes).unwrap();
    }
    let committed = job
        .finish_tree(packed.tree, None)
        .and_then(|_| lease.commit(&point(&job, "a", "2026-11-03T10:20:30Z", &[packed.tree])));
    drop(lease);
    world.is_whole(committed)
}

/// A job that was waited for, and commits a moment before the collection that removes what was condemned.
fn point_before_a_collection(lag: Duration, lists_lag: Duration) -> bool {
    let bytes = disk(1, 6 * BLOCK);
    let world = World::with_garbage(&bytes, lag);
    let job = world.machine();
    let lease = job.lease("job", &[]).unwrap();
    // By somebody who sees all, so that the job's lease is in the list.
    let all = Arc::new(Store::open_on(world.memory.clone()).unwrap());
    assert!(all.collect(&GcOptions::default(), &|_, _| ()).unwrap().waiting > 0);
    let world = World { shared: Shared::new(world.memory.clone(), lag), ..world };
    let packed = pack_disk(job.id_key(), &bytes, None, &mut |id| job.has_block(id));
    assert!(packed.data.is_empty(), "all of it was promised before it was condemned");
    let collector = world.machine();
    let writer = world.machine();
    for pack in &packed.nodes {
        writer.add_pack(pack.id, &pack.bytes).unwrap();
    }
    writer.finish_tree(packed.tree, None).unwrap();
    let committed = writer.commit_point(&point(&job, "a", "2026-11-03T10:20:30Z", &[packed.tree]));
    drop(lease);
    let options = GcOptions { lists_lag, ..GcOptions::default() };
    match collector.collect(&options, &|_, _| ()) {
        Ok(_) => {}
        // The point is seen, and its nodes not yet: another collection sees both.
        Err(error) => assert_eq!(error.kind(), ErrorKind::Damaged, "{error}"),
    }
    world.is_whole(committed)
}

#[test]
fn a_collection_that_waits_for_late_lists_takes_nothing_away() {
    assert!(job_before_a_collection(LAG, LAG));
    assert!(point_before_a_collection(LAG, LAG));
}

#[test]
fn a_collection_that_does_not_wait_is_caught() {
    assert!(!job_before_a_collection(LONG, Duration::ZERO));
    assert!(!point_before_a_collection(LONG, Duration::ZERO));
}

/// Who does not see what others wrote just now writes it again, or looks again; what he commits is whole.
#[test]
fn jobs_and_readers_lose_nothing_by_late_lists() {
    let memory = Arc::new(Memory::default());
    drop(Store::init_on(memory.clone()).unwrap());
    let world = World { shared: Shared::new(memory.clone(), LONG), memory };
    let bytes = disk(2, 9 * BLOCK);
    let first = backup(&world.machine(), "a", &bytes).unwrap();
    // Nothing of it is seen, but for what is asked for by name.
    let other = world.machine();
    assert_eq!((other.points().unwrap().points.len(), other.usage().packs), (0, 0));
    assert_eq!(other.point(first).unwrap().id, first);
    let error = restore(&other, &other.point(first).unwrap().point.disks[0].tree).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Missing, "not yet, and nothing wrong is read");
    // The same blocks come a second time, and the same point is one point.
    assert_eq!(backup(&other, "a", &bytes).unwrap(), first);
    let second = backup(&other, "b", &bytes).unwrap();
    assert!(world.is_whole(Ok(first)) && world.is_whole(Ok(second)));
    // A point that is removed is not read, however long it is listed.
    other.remove_point(second).unwrap();
    let seen = world.machine().points().unwrap();
    assert!(seen.points.iter().all(|stored| stored.id != second) && seen.damaged.is_empty());
}
