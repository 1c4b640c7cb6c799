//! The decision how to read a disk, against a model of the pool's tracking: whatever happened to the disk since its
//! base, what is decided to be read covers every block that differs.
//!
//! The model is that of `blocks`' own tests, which prove the arithmetic; here it is the decision that is on trial.

#[path = "../../appliance/crates/blocks/tests/model/mod.rs"]
mod model;

use abd_orchestrator::tracking::{
    Allocated, Allocation, Base, Cause, Changes, Decision, Facts, Hop, Mode, Origin, decide,
};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ChangedBlocks};
use model::{Content, SECTORS_PER_BLOCK, cbt, vhd};
use proptest::prelude::*;
use seal::Tree;
use wire::Start;

/// One thing that happens to a disk. Positions and choices are taken modulo what there is.
#[derive(Clone, Debug)]
enum Event {
    Write { start: usize, count: usize },
    Grow { sectors: usize },
    Snapshot,
    TrackingOff,
    TrackingOn,
    Delete { which: usize },
    Revert { which: usize },
    Coalesce,
}

fn history(longest_write: usize, most_growth: usize) -> impl Strategy<Value = Vec<Event>> {
    let which = any::<u16>().prop_map(usize::from);
    let event = prop_oneof![
        8 => (any::<u32>(), 1..=longest_write)
            .prop_map(|(start, count)| Event::Write { start: start as usize, count }),
        2 => (1..=most_growth).prop_map(|sectors| Event::Grow { sectors }),
        6 => Just(Event::Snapshot),
        1 => Just(Event::TrackingOff),
        2 => Just(Event::TrackingOn),
        1 => which.clone().prop_map(|which| Event::Delete { which }),
        1 => which.prop_map(|which| Event::Revert { which }),
        1 => Just(Event::Coalesce),
    ];
    proptest::collection::vec(event, 1..60)
}

/// The blocks that a delegate reads for a decision.
fn read_blocks(decision: &Decision, disk: &Content) -> ChangedBlocks {
    match &decision.bitmap {
        Some(bitmap) => {
            assert!(decision.start.has_bitmap(), "a bitmap is used");
            ChangedBlocks::from_xapi(&bitmap.to_xapi(), disk.size()).expect("of the disk's size")
        }
        None => {
            assert!(!decision.start.has_bitmap(), "no bitmap is missing");
            ChangedBlocks::all(disk.size()).expect("small")
        }
    }
}

/// Every block that differs from what the delegate starts from is read: the two together are the disk.
fn check(decision: &Decision, base: &Content, disk: &Content) -> Result<(), TestCaseError> {
    let read = read_blocks(decision, disk);
    let empty = Content::new(0);
    let start = match decision.start {
        Start::Nothing | Start::Allocated => &empty,
        Start::Compare { base: tree } | Start::Changed { base: tree } => {
            prop_assert_eq!(tree.size, base.size(), "the base of the facts");
            base
        }
    };
    for block in disk.differs_from(start) {
        prop_assert!(read.contains(BlockIndex::new(block as u64)), "block {} is not read", block);
    }
    let sector = |block: BlockIndex| (block.get() as usize * SECTORS_PER_BLOCK).min(disk.len());
    let parts: Vec<_> = read.runs().map(|run| sector(run.start)..sector(run.end())).collect();
    prop_assert_eq!(&disk.rebuilt_from(start, &parts)[..], disk.sectors());
    Ok(())
}

fn base_of(content: &Content) -> Base {
    Base { tree: Tree { size: content.size(), root: None }, bad: wire::BadRanges::default() }
}

fn parts(disk: &Content, granules: &[usize]) -> Allocated {
    Allocated {
        disk_size: disk.size(),
        block_size: ByteCount::new(vhd::BLOCKS_PER_GRANULE as u64 * BLOCK_SIZE),
        blocks: granules.iter().map(|granule| u32::try_from(*granule).expect("small")).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn listed_changes_are_read_over_any_references_between(
        sectors in 1usize..3000,
        events in history(600, 400),
        choice: u64,
    ) {
        let mut disk = cbt::Disk::new(sectors);
        for event in &events {
            match event {
                Event::Write { start, count } => disk.write(*start, *count),
                Event::Grow { sectors } => disk.grow(*sectors),
                Event::Snapshot => disk.snapshot(),
                Event::TrackingOff => disk.switch_off(),
                Event::TrackingOn => disk.switch_on(),
                Event::Delete { which } if !disk.snapshots.is_empty() => {
                    disk.delete(which % disk.snapshots.len());
                }
                _ => {}
            }
        }
        let snapshots = &disk.snapshots;
        for from in 0..snapshots.len() {
            for to in from + 1..snapshots.len() {
                let way: Vec<usize> = (from..=to)
                    .filter(|at| *at == from || *at == to || choice >> (at % 64) & 1 == 1)
                    .collect();
                let hops: Option<Vec<Hop>> = way.windows(2).map(|hop| {
                    let (here, there) = (&snapshots[hop[0]], &snapshots[hop[1]]);
                    let bitmap = disk.list_changed(here, there)?;
                    Some(Hop { size: there.content.size(), bitmap })
                }).collect();
                let (changes, mode) = match hops {
                    Some(hops) => (Changes::Tracked(hops), Mode::Cbt),
                    None => (Changes::Unknown(Cause::ReferenceUnusable, "not related".into()), Mode::Scan),
                };
                let (base, now) = (&snapshots[from].content, &snapshots[to].content);
                let origin = Origin::Base(base_of(base), changes);
                let decision = decide(Facts { size: now.size(), origin });
                prop_assert_eq!(decision.mode, mode, "an honest list is used: {}", &decision.reason);
                check(&decision, base, now)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn differences_and_allocations_of_vhds_are_read(
        sectors in 1usize..20_000,
        events in history(5000, 6000),
    ) {
        let mut disk = vhd::Disk::new(sectors);
        for event in &events {
            let some = |which: &usize, disk: &vhd::Disk| which % disk.snapshots.len();
            match event {
                Event::Write { start, count } => disk.write(*start, *count),
                Event::Grow { sectors } => disk.grow(*sectors),
                Event::Snapshot => disk.snapshot(),
                Event::Delete { which } if !disk.snapshots.is_empty() => disk.delete(some(which, &disk)),
                Event::Revert { which } if !disk.snapshots.is_empty() => disk.revert(some(which, &disk)),
                Event::Coalesce => disk.coalesce(),
                _ => {}
            }
        }
        for now in &disk.snapshots {
            for base in &disk.snapshots {
                let changes = Changes::Difference(parts(&now.content, &disk.difference(base, now)));
                let origin = Origin::Base(base_of(&base.content), changes);
                let decision = decide(Facts { size: now.content.size(), origin });
                let shrank = base.content.size() > now.content.size();
                prop_assert_eq!(decision.mode, if shrank { Mode::Full } else { Mode::VhdDiff });
                check(&decision, &base.content, &now.content)?;
            }
            let listed = Allocation::Listed(parts(&now.content, &disk.allocated(now)));
            let origin = Origin::Nothing(Cause::FirstBackup, "first".into(), listed);
            let decision = decide(Facts { size: now.content.size(), origin });
            prop_assert_eq!(&decision.start, &Start::Allocated);
            let read = read_blocks(&decision, &now.content);
            for block in 0..now.content.block_count() {
                let is_zero = now.content.block(block).iter().all(|sector| *sector == 0);
                prop_assert!(is_zero || read.contains(BlockIndex::new(block as u64)), "block {}", block);
            }
        }
    }
}
