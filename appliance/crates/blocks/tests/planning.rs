//! What is planned to be read always covers what differs from the base, for any history of writes, growth, snapshots,
//! resets and removals.
//!
//! The plan is made as the orchestrator and the appliance make it: lists of changes united, the growth added, split
//! into reads. Two things are checked of each: base and reads together are the disk, sector by sector, with every
//! block re-read whose length changed; and nothing is read that was neither written nor gained.

mod model;

use blocks::{BLOCK_SIZE, BlockCount, BlockIndex, BlockRange, ByteCount, ChangedBlocks, ReadPlan};
use model::{Content, SECTOR, SECTORS_PER_BLOCK, cbt, vhd};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

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
    let some = any::<u16>().prop_map(usize::from);
    let event = prop_oneof![
        8 => (any::<u32>(), 1..=longest_write)
            .prop_map(|(start, count)| Event::Write { start: start as usize, count }),
        2 => (1..=most_growth).prop_map(|sectors| Event::Grow { sectors }),
        6 => Just(Event::Snapshot),
        1 => Just(Event::TrackingOff),
        2 => Just(Event::TrackingOn),
        1 => some.clone().prop_map(|which| Event::Delete { which }),
        1 => some.prop_map(|which| Event::Revert { which }),
        1 => Just(Event::Coalesce),
    ];
    proptest::collection::vec(event, 1..60)
}

/// The parts of the disk that a plan reads, in sectors, as the reads say it in bytes.
fn reads(changed: &ChangedBlocks, disk: &Content, max_read: u64) -> Vec<Range<usize>> {
    let sector = |bytes: u64| {
        assert!(bytes.is_multiple_of(SECTOR as u64), "reads are of whole sectors");
        bytes as usize / SECTOR
    };
    let mut found: Vec<Range<usize>> = Vec::new();
    for read in ReadPlan::new(changed, disk.size(), ByteCount::new(max_read)) {
        let start = sector(read.offset.get());
        found.push(start..start + sector(read.size.get()));
    }
    assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start), "ascending, nothing twice");
    assert!(found.last().is_none_or(|last| last.end <= disk.len()), "within the disk");
    found
}

fn blocks_of(reads: &[Range<usize>]) -> BTreeSet<usize> {
    reads
        .iter()
        .flat_map(|read| read.start / SECTORS_PER_BLOCK..read.end.div_ceil(SECTORS_PER_BLOCK))
        .collect()
}

/// Checks a plan from `base` to `disk`; `listed` is what any honest list may have named.
fn check(
    base: &Content,
    disk: &Content,
    mut changed: ChangedBlocks,
    listed: &BTreeSet<usize>,
    max_read: u64,
) -> Result<(), TestCaseError> {
    if base.size() < disk.size() {
        changed.insert_growth(base.size());
    }
    // The bitmap crosses the wire, and the appliance adds the growth once more.
    let sent = changed.to_xapi();
    let mut received = ChangedBlocks::from_xapi(&sent, disk.size()).expect("own bytes");
    if base.size() < disk.size() {
        received.insert_growth(base.size());
    }
    prop_assert_eq!(&received, &changed);
    let reads = reads(&received, disk, max_read);
    prop_assert_eq!(&disk.rebuilt_from(base, &reads)[..], disk.sectors());
    let planned = blocks_of(&reads);
    prop_assert_eq!(received.count().get(), planned.len() as u64);
    let missed: Vec<_> = disk.differs_from(base).difference(&planned).copied().collect();
    prop_assert!(missed.is_empty(), "differ and are not read: {:?}", missed);
    let gained = base.len() / SECTORS_PER_BLOCK..disk.block_count();
    let gained = if base.len() < disk.len() { gained } else { 0..0 };
    let idle: Vec<_> =
        planned.iter().filter(|block| !listed.contains(block) && !gained.contains(block)).collect();
    prop_assert!(idle.is_empty(), "read and neither written nor gained: {:?}", idle);
    Ok(())
}

/// The blocks of granules on a disk; the second set also has those past its end.
fn granules(granules: &[usize], disk: &Content) -> (ChangedBlocks, BTreeSet<usize>) {
    let mut changed = ChangedBlocks::none(disk.size()).expect("small");
    let mut listed = BTreeSet::new();
    for granule in granules {
        let start = granule * vhd::BLOCKS_PER_GRANULE;
        let count = BlockCount::new(vhd::BLOCKS_PER_GRANULE as u64);
        changed.insert_range(BlockRange { start: BlockIndex::new(start as u64), count });
        listed.extend(start..start + vhd::BLOCKS_PER_GRANULE);
    }
    (changed, listed)
}

/// A tracked disk after a history, with all blocks that were written between two of its snapshots.
struct Tracked {
    disk: cbt::Disk,
    /// For each snapshot that is there, how many events were before it.
    moments: Vec<usize>,
    /// For each event, the blocks that it wrote.
    written: Vec<BTreeSet<usize>>,
}

impl Tracked {
    fn new(sectors: usize, events: &[Event]) -> Self {
        let mut this = Self { disk: cbt::Disk::new(sectors), moments: Vec::new(), written: Vec::new() };
        for event in events {
            let before = this.disk.live.clone();
            match event {
                Event::Write { start, count } => this.disk.write(*start, *count),
                Event::Grow { sectors } => this.disk.grow(*sectors),
                Event::Snapshot => {
                    this.disk.snapshot();
                    this.moments.push(this.written.len());
                }
                Event::TrackingOff => this.disk.switch_off(),
                Event::TrackingOn => this.disk.switch_on(),
                Event::Delete { which } if !this.moments.is_empty() => {
                    let which = which % this.moments.len();
                    this.disk.delete(which);
                    this.moments.remove(which);
                }
                Event::Delete { .. } | Event::Revert { .. } | Event::Coalesce => {}
            }
            let touched = match event {
                Event::Write { start, count } if before.len() > 0 => {
                    let start = start % before.len();
                    let end = before.len().min(start + count);
                    (start / SECTORS_PER_BLOCK..end.div_ceil(SECTORS_PER_BLOCK)).collect()
                }
                _ => BTreeSet::new(),
            };
            this.written.push(touched);
        }
        this
    }

    fn written_between(&self, from: usize, to: usize) -> BTreeSet<usize> {
        self.written[self.moments[from]..self.moments[to]].iter().flatten().copied().collect()
    }
}

/// Way points from one snapshot to a later one: some of those between, as `choice` has bits.
fn way(from: usize, to: usize, choice: u64) -> Vec<usize> {
    (from..=to).filter(|at| *at == from || *at == to || choice >> (at % 64) & 1 == 1).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// From any snapshot to any later one, straight or over references between them.
    #[test]
    fn tracked_changes_cover_what_differs(
        sectors in 0usize..3000,
        events in history(600, 400),
        choice: u64,
        max_read in 1u64..5,
    ) {
        let tracked = Tracked::new(sectors, &events);
        let snapshots = &tracked.disk.snapshots;
        for from in 0..snapshots.len() {
            for to in from + 1..snapshots.len() {
                let (base, disk) = (&snapshots[from].content, &snapshots[to].content);
                let mut changed = ChangedBlocks::none(disk.size()).expect("small");
                let way = way(from, to, choice);
                let known = way.windows(2).all(|hop| {
                    let (here, there) = (&snapshots[hop[0]], &snapshots[hop[1]]);
                    let Some(listed) = tracked.disk.list_changed(here, there) else { return false };
                    let size = there.content.size();
                    changed.union(&ChangedBlocks::from_xapi(&listed, size).expect("its size"));
                    true
                });
                // Not related: the disk is read whole, which covers everything.
                let changed = if known { changed } else { ChangedBlocks::all(disk.size()).expect("small") };
                let mut listed = tracked.written_between(from, to);
                listed.extend((0..disk.block_count()).filter(|_| !known));
                check(base, disk, changed, &listed, max_read * BLOCK_SIZE)?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// From any snapshot to any other one, older ones included: a revert goes back and on from there.
    #[test]
    fn differences_of_vhds_cover_what_differs(
        sectors in 0usize..20_000,
        events in history(5000, 6000),
        max_read in 1u64..40,
    ) {
        let mut disk = vhd::Disk::new(sectors);
        for event in &events {
            let some = |which: &usize, disk: &vhd::Disk| which % disk.snapshots.len().max(1);
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
        for snapshot in &disk.snapshots {
            // What was never written needs no base.
            let content = &snapshot.content;
            let (allocated, _) = granules(&disk.allocated(snapshot), content);
            let reads = reads(&allocated, content, max_read * BLOCK_SIZE);
            let rebuilt = content.rebuilt_from(&Content::new(0), &reads);
            prop_assert_eq!(&rebuilt[..], content.sectors());
        }
        for base in &disk.snapshots {
            // A disk that shrank, by a revert, is backed up in full.
            for target in disk.snapshots.iter().filter(|target| target.content.len() >= base.content.len()) {
                let (changed, listed) = granules(&disk.difference(base, target), &target.content);
                check(&base.content, &target.content, changed, &listed, max_read * BLOCK_SIZE)?;
            }
        }
    }

    /// A union knows the size of its own disk only: what a larger disk has beyond is dropped, bits of a smaller one
    /// are taken as they are.
    #[test]
    fn a_union_keeps_its_own_size(
        own in 0u64..300, other in 0u64..300,
        a in proptest::collection::btree_set(0u64..300, 0..60),
        b in proptest::collection::btree_set(0u64..300, 0..60),
        short in 1u64..=BLOCK_SIZE,
    ) {
        let set = |blocks: u64, of: &BTreeSet<u64>| {
            let size = ByteCount::new((blocks * BLOCK_SIZE).saturating_sub(BLOCK_SIZE - short));
            let mut set = ChangedBlocks::none(size).expect("small");
            of.iter().for_each(|block| { set.insert(BlockIndex::new(*block)); });
            set
        };
        let mut both = set(own, &a);
        both.union(&set(other, &b));
        prop_assert_eq!(both.blocks(), set(own, &a).blocks());
        let found: BTreeSet<u64> = both.runs().flat_map(BlockRange::blocks).map(BlockIndex::get).collect();
        let expected = a.iter().filter(|block| **block < own).chain(b.iter().filter(|block| **block < other.min(own)));
        prop_assert_eq!(found, expected.copied().collect::<BTreeSet<_>>());
        prop_assert_eq!(both.count().get(), both.runs().map(|run| run.count.get()).sum::<u64>());
        prop_assert_eq!(both.to_xapi().len() as u64, own.div_ceil(8));
    }
}
