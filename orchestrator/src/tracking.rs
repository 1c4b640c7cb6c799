//! Which blocks of a disk must be read: one function takes the facts and says what, and why.
//!
//! Unknown means read it. A bitmap is only ever used together with the base whose reference it was listed
//! from; without such a pair everything is read, and compared with the base where there is one.
//!
//! Every decision has a [`Cause`], a stable code that stands in the output, the JSON, the restore point and the
//! metrics, and a sentence for people.

pub use ads::DiskMode as Mode;
use blocks::{BlockCount, BlockIndex, BlockRange, ByteCount, ChangedBlocks, MAX_DISK_SIZE};
use seal::Tree;
use wire::Start;

/// Why a disk is read as it is. The codes are stable; programs may depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The pool listed what changed.
    ChangesListed,
    /// The difference of two snapshots showed what may have changed.
    VhdDifference,
    /// No restore point has this disk.
    FirstBackup,
    /// The run was told to start from nothing.
    FullRequested,
    /// The store has damaged packs: every block is offered again.
    StoreDamaged,
    /// The disk is smaller than its base.
    DiskShrank,
    /// A VM's memory; it is different each time.
    MemoryImage,
    /// The job was told not to use change tracking.
    TrackingOff,
    /// The pool's licence has no change tracking.
    TrackingUnlicensed,
    /// The storage, or this kind of disk, has no change tracking.
    TrackingUnsupported,
    /// Change tracking could not be switched on.
    TrackingFailed,
    /// The last backup left no reference: tracking was switched on since.
    NoReference,
    /// The reference is gone from the pool.
    ReferenceMissing,
    /// The pool cannot relate the reference to the disk any more.
    ReferenceUnusable,
    /// The pool's log of changes was damaged; it was started anew.
    TrackingInconsistent,
    /// The pool could not be asked.
    ListingFailed,
    /// What the pool listed does not fit the disk.
    ListingUnusable,
    /// The base has zeros where the disk could not be read, in more places than it lists.
    BadBlocks,
    /// An earlier run, or this one, caught the tracking missing writes.
    AuditAlarm,
}

impl Cause {
    /// The code, as it stands in JSON, restore points and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Cause::ChangesListed => "changes-listed",
            Cause::VhdDifference => "vhd-difference",
            Cause::FirstBackup => "first-backup",
            Cause::FullRequested => "full-requested",
            Cause::StoreDamaged => "store-damaged",
            Cause::DiskShrank => "disk-shrank",
            Cause::MemoryImage => "memory-image",
            Cause::TrackingOff => "tracking-off",
            Cause::TrackingUnlicensed => "tracking-unlicensed",
            Cause::TrackingUnsupported => "tracking-unsupported",
            Cause::TrackingFailed => "tracking-failed",
            Cause::NoReference => "no-reference",
            Cause::ReferenceMissing => "reference-missing",
            Cause::ReferenceUnusable => "reference-unusable",
            Cause::TrackingInconsistent => "tracking-inconsistent",
            Cause::ListingFailed => "listing-failed",
            Cause::ListingUnusable => "listing-unusable",
            Cause::BadBlocks => "bad-blocks",
            Cause::AuditAlarm => "audit-alarm",
        }
    }

    /// Whether a job that demands change tracking may go on: a disk has to be read whole once, and a person may
    /// ask for it.
    pub const fn is_allowed_with_required_tracking(self) -> bool {
        matches!(
            self,
            Cause::ChangesListed
                | Cause::VhdDifference
                | Cause::FirstBackup
                | Cause::FullRequested
                | Cause::DiskShrank
                | Cause::MemoryImage
        )
    }
}

/// Why the pool does not track the changes of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untracked {
    /// The job was told so.
    ByOption,
    /// Not in the licence.
    Unlicensed,
    /// Not on this storage, or not for this kind of disk.
    Unsupported,
    /// The release is older than change tracking (XenServer before 7.3).
    OldRelease,
    /// Not a disk but a VM's memory.
    Memory,
    /// Something else; the pool's words.
    Failed(String),
}

impl Untracked {
    /// The code and a clause for people.
    pub fn explain(&self) -> (Cause, String) {
        match self {
            Untracked::ByOption => (Cause::TrackingOff, "change tracking is not used, as asked".into()),
            Untracked::Unlicensed => {
                (Cause::TrackingUnlicensed, "the pool's licence has no change tracking".into())
            }
            Untracked::Unsupported => {
                (Cause::TrackingUnsupported, "this storage or disk has no change tracking".into())
            }
            Untracked::OldRelease => {
                (Cause::TrackingUnsupported, "this release of the pool has no change tracking".into())
            }
            Untracked::Memory => (Cause::MemoryImage, "a VM's memory".into()),
            Untracked::Failed(why) => {
                (Cause::TrackingFailed, format!("change tracking cannot be switched on: {why}"))
            }
        }
    }
}

/// What a disk held when it was backed up last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Its content.
    pub tree: Tree,
    /// What of it could not be read and is zeros in the content. It is read again, whether it changed or not.
    pub bad: wire::BadRanges,
}

impl Base {
    /// What a restore point has of a disk.
    pub fn of(disk: &ads::PointDisk) -> Self {
        Self { tree: disk.tree, bad: disk.bad.clone() }
    }
}

/// One listing of changes: from a reference to a later state of `size`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Size of the disk at the end of the hop.
    pub size: ByteCount,
    /// The bitmap as XAPI gives it.
    pub bitmap: Vec<u8>,
}

/// What came of asking for the changes since the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// Bitmaps that lead from the base's reference to this snapshot, in order: one, or several where other
    /// references stand in between.
    Tracked(Vec<Hop>),
    /// The parts in which this snapshot's chain differs from the reference's.
    Difference(Allocated),
    /// There is no list, and this is why.
    Unknown(Cause, String),
}

/// Parts of a disk that a VHD holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocated {
    /// Size of the disk by the VHD.
    pub disk_size: ByteCount,
    /// Bytes of each part.
    pub block_size: ByteCount,
    /// Positions, ascending.
    pub blocks: Vec<u32>,
}

/// What came of asking which parts of the disk were ever written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// These.
    Listed(Allocated),
    /// It is not known, and this is why.
    Unknown(String),
}

/// Where the backup of a disk could start from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// An earlier backup, and what is known to have changed since: one value, so that changes never stand next to
    /// a base that they do not belong to.
    Base(Base, Changes),
    /// Nothing, why, and which parts of the disk were ever written.
    Nothing(Cause, String, Allocation),
}

/// Everything the decision depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Size of the snapshot's disk.
    pub size: ByteCount,
    /// Where to start from.
    pub origin: Origin,
}

/// How a disk is read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// For the order.
    pub start: Start,
    /// The blocks to read, where not all are.
    pub bitmap: Option<ChangedBlocks>,
    /// `cbt`, `vhd-diff`, `scan` or `full`.
    pub mode: Mode,
    /// Why, as a code.
    pub cause: Cause,
    /// Why, as one clause for people.
    pub reason: String,
}

/// The word for a mode in output, as in the restore point.
pub const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Cbt => "cbt",
        Mode::VhdDiff => "vhd-diff",
        Mode::Scan => "scan",
        Mode::Full => "full",
    }
}

impl Decision {
    /// Bytes that will be read; the last block counts as whole.
    pub fn planned(&self, size: ByteCount) -> ByteCount {
        let whole = self.bitmap.as_ref().and_then(|bitmap| bitmap.count().to_bytes());
        whole.map_or(size, |planned| planned.min(size))
    }
}

/// Decides how to read a disk.
pub fn decide(facts: Facts) -> Decision {
    let size = facts.size;
    match facts.origin {
        Origin::Base(base, _) if base.tree.size > size => full(
            size,
            Cause::DiskShrank,
            format!("the disk shrank from {} to {size}", base.tree.size),
            Allocation::Unknown("every block is read".into()),
        ),
        Origin::Base(base, changes) => incremental(size, &base, changes),
        Origin::Nothing(cause, why, allocation) => full(size, cause, why, allocation),
    }
}

fn incremental(size: ByteCount, base: &Base, changes: Changes) -> Decision {
    let scan = |cause, reason| Decision {
        start: Start::Compare { base: base.tree },
        bitmap: None,
        mode: Mode::Scan,
        cause,
        reason,
    };
    if !base.bad.is_complete() && !matches!(changes, Changes::Unknown(..)) {
        let why = format!("the last backup could not read {}, and they are not all listed", base.bad);
        return scan(Cause::BadBlocks, why);
    }
    let (listed, mode, cause, mut reason) = match changes {
        Changes::Unknown(cause, why) => return scan(cause, why),
        Changes::Tracked(hops) => {
            let reason = match hops.len() {
                1 => "changes listed by the pool".to_owned(),
                several => format!("changes listed by the pool in {several} steps"),
            };
            (tracked(size, &hops), Mode::Cbt, Cause::ChangesListed, reason)
        }
        Changes::Difference(parts) => {
            let reason = "changes by the difference to the reserved snapshot".to_owned();
            (allocated(size, &parts), Mode::VhdDiff, Cause::VhdDifference, reason)
        }
    };
    let mut bitmap = match listed {
        Ok(bitmap) => bitmap,
        Err(why) => {
            return scan(Cause::ListingUnusable, format!("the pool's list of changes cannot be used: {why}"));
        }
    };
    if base.tree.size < size {
        bitmap.insert_growth(base.tree.size);
        reason = format!("{reason}, and the disk grew from {}", base.tree.size);
    }
    if !base.bad.is_empty() {
        base.bad.insert_into(&mut bitmap);
        reason = format!("{reason}, and what could not be read last time: {}", base.bad);
    }
    Decision { start: Start::Changed { base: base.tree }, bitmap: Some(bitmap), mode, cause, reason }
}

/// Everything that any of the hops lists. What a disk gained on the way counts as changed: the pool lists only what
/// was written there.
fn tracked(size: ByteCount, hops: &[Hop]) -> Result<ChangedBlocks, String> {
    let mut all = ChangedBlocks::none(size).map_err(|error| error.to_string())?;
    if hops.last().is_none_or(|last| last.size != size) {
        return Err(format!("it does not end at a disk of {size}"));
    }
    let mut before = None;
    for hop in hops {
        if before.is_some_and(|before| hop.size < before) {
            return Err(format!("the disk shrank to {} on the way", hop.size));
        }
        let mut bitmap =
            ChangedBlocks::from_xapi(&hop.bitmap, hop.size).map_err(|error| error.to_string())?;
        if let Some(before) = before.filter(|before| *before < hop.size) {
            bitmap.insert_growth(before);
        }
        all.union(&bitmap);
        before = Some(hop.size);
    }
    Ok(all)
}

fn full(size: ByteCount, cause: Cause, why: String, allocation: Allocation) -> Decision {
    let listed = match allocation {
        Allocation::Listed(parts) => allocated(size, &parts),
        Allocation::Unknown(why) => Err(why),
    };
    match listed {
        Ok(bitmap) => Decision {
            start: Start::Allocated,
            reason: format!("{why}; skips unallocated space"),
            bitmap: Some(bitmap),
            mode: Mode::Full,
            cause,
        },
        Err(reason) => Decision {
            start: Start::Nothing,
            bitmap: None,
            mode: Mode::Full,
            cause,
            reason: if reason.is_empty() { why } else { format!("{why}; {reason}") },
        },
    }
}

fn allocated(size: ByteCount, parts: &Allocated) -> Result<ChangedBlocks, String> {
    let Allocated { disk_size, block_size, blocks } = parts;
    let per_block = block_size.blocks_floor().get();
    if *disk_size != size || per_block == 0 || block_size.get() % blocks::BLOCK_SIZE != 0 {
        return Err(format!("the VHD is of a disk of {disk_size}"));
    }
    let mut bitmap = ChangedBlocks::none(size).map_err(|error| error.to_string())?;
    for block in blocks {
        let start = u64::from(*block).checked_mul(per_block).filter(|start| *start < MAX_DISK_SIZE.get());
        let start = start.ok_or("the VHD reaches past the largest disk")?;
        bitmap.insert_range(BlockRange { start: BlockIndex::new(start), count: BlockCount::new(per_block) });
    }
    Ok(bitmap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::{BLOCK_SIZE, BadRanges, ByteOffset, ByteRange};

    fn disk(blocks: u64) -> ByteCount {
        ByteCount::new(blocks * BLOCK_SIZE)
    }

    fn since(base: u64, changes: Changes) -> Decision {
        since_base(Base { tree: Tree { size: disk(base), root: None }, bad: BadRanges::default() }, changes)
    }

    fn since_base(base: Base, changes: Changes) -> Decision {
        decide(Facts { size: disk(16), origin: Origin::Base(base, changes) })
    }

    fn tracked(bitmap: &[u8]) -> Changes {
        Changes::Tracked(vec![Hop { size: disk(16), bitmap: bitmap.to_vec() }])
    }

    fn parts(of: u64, blocks: &[u32]) -> Allocated {
        Allocated { disk_size: disk(of), block_size: disk(8), blocks: blocks.to_vec() }
    }

    #[test]
    fn a_bitmap_with_its_base_is_cbt() {
        let decision = since(16, tracked(&[0x80, 0x01]));
        assert_eq!((decision.mode, decision.cause.code()), (Mode::Cbt, "changes-listed"));
        assert_eq!(decision.planned(disk(16)), disk(2));
        assert!(matches!(decision.start, Start::Changed { .. }));
    }

    #[test]
    fn what_could_not_be_read_last_time_is_read_again_though_it_did_not_change() {
        let bad = |count, ranges: &[u64]| {
            let range = |at: &u64| ByteRange { offset: ByteOffset::new(*at), size: ByteCount::new(512) };
            let ranges: Vec<_> = ranges.iter().map(range).collect();
            Base {
                tree: Tree { size: disk(16), root: None },
                bad: BadRanges { bytes: ByteCount::new(512 * count), count, ranges },
            }
        };
        let decision = since_base(bad(2, &[3 * BLOCK_SIZE + 512, 9 * BLOCK_SIZE]), tracked(&[0x80, 0x01]));
        assert_eq!((decision.mode, decision.cause.code()), (Mode::Cbt, "changes-listed"));
        let bitmap = decision.bitmap.expect("a list");
        let read: Vec<u64> = (0..16).filter(|block| bitmap.contains(BlockIndex::new(*block))).collect();
        assert_eq!(read, [0, 3, 9, 15]);
        assert!(decision.reason.contains("1.00 KiB in 2 places"), "{}", decision.reason);
        // Where not all of them are known, all is read.
        let decision = since_base(bad(2, &[512]), tracked(&[0x80, 0x01]));
        assert_eq!((decision.mode, decision.cause.code()), (Mode::Scan, "bad-blocks"));
    }

    #[test]
    fn growth_is_always_read() {
        let decision = since(8, tracked(&[0x80, 0x00]));
        assert_eq!(decision.planned(disk(16)), disk(9));
        assert!(decision.reason.contains("grew"), "{}", decision.reason);
    }

    #[test]
    fn several_hops_are_one_list_with_the_growth_between_them() {
        let hops = vec![
            Hop { size: disk(8), bitmap: vec![0x40] },
            Hop { size: disk(12), bitmap: vec![0x80, 0x00] },
            Hop { size: disk(16), bitmap: vec![0x00, 0x01] },
        ];
        let decision = since(8, Changes::Tracked(hops));
        assert_eq!(decision.mode, Mode::Cbt);
        let bitmap = decision.bitmap.expect("a list");
        let read: Vec<u64> = (0..16).filter(|block| bitmap.contains(BlockIndex::new(*block))).collect();
        assert_eq!(read, [0, 1, 8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn a_list_that_ends_elsewhere_or_shrinks_on_the_way_is_not_used() {
        let hop = |size, bytes: &[u8]| Hop { size: disk(size), bitmap: bytes.to_vec() };
        for hops in [vec![], vec![hop(8, &[0])], vec![hop(24, &[0; 3]), hop(16, &[0; 2])]] {
            let decision = since(8, Changes::Tracked(hops));
            assert_eq!((decision.mode, decision.cause), (Mode::Scan, Cause::ListingUnusable));
        }
    }

    #[test]
    fn without_a_usable_list_everything_is_compared() {
        let gone = Changes::Unknown(Cause::ReferenceMissing, "the reference is gone".into());
        let shorter = tracked(&[0]);
        let other_disk = Changes::Difference(parts(15, &[0]));
        for (changes, cause) in [
            (gone, Cause::ReferenceMissing),
            (shorter, Cause::ListingUnusable),
            (other_disk, Cause::ListingUnusable),
        ] {
            let decision = since(16, changes);
            assert_eq!((decision.mode, decision.cause), (Mode::Scan, cause));
            assert_eq!(decision.planned(disk(16)), disk(16));
            assert!(decision.bitmap.is_none());
        }
    }

    #[test]
    fn a_difference_of_snapshots_is_read_in_its_granules() {
        let decision = since(16, Changes::Difference(parts(16, &[1])));
        assert_eq!((decision.mode, decision.planned(disk(16))), (Mode::VhdDiff, disk(8)));
    }

    #[test]
    fn a_shrunk_disk_and_a_first_backup_are_full() {
        let shrunk = since(17, tracked(&[0; 2]));
        assert_eq!((shrunk.start, shrunk.cause), (Start::Nothing, Cause::DiskShrank));
        let first = |allocation| {
            let origin = Origin::Nothing(Cause::FirstBackup, "first backup".into(), allocation);
            decide(Facts { size: disk(16), origin })
        };
        assert_eq!(first(Allocation::Unknown("not a VHD".into())).start, Start::Nothing);
        let decision = first(Allocation::Listed(parts(16, &[1])));
        assert_eq!((decision.start.clone(), decision.planned(disk(16))), (Start::Allocated, disk(8)));
        assert_eq!(first(Allocation::Listed(parts(15, &[]))).start, Start::Nothing);
    }
}
