//! Which blocks of a disk must be read: one function takes the facts and says what and why.
//!
//! Unknown means read it. A bitmap is only ever used together with the base whose reference it was listed
//! from; without such a pair everything is read, and compared with the base where there is one.

pub use ads::DiskMode as Mode;
use blocks::{BlockCount, BlockIndex, BlockRange, ByteCount, ChangedBlocks, MAX_DISK_SIZE};
use seal::Tree;
use wire::Start;

/// The newest restore point's record of the same live VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// What the disk held.
    pub tree: Tree,
}

/// What came of asking the pool for the changes since the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// The bitmap from the base's reference to this snapshot, as XAPI gives it.
    Listed(Vec<u8>),
    /// There is none, and this is why.
    Unknown(String),
}

/// What came of asking which parts of the disk were ever written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Allocated blocks of `block_size` bytes each, ascending, of a disk of `disk_size` bytes.
    Listed {
        /// Size of the disk by the listing.
        disk_size: ByteCount,
        /// Bytes of each allocated block.
        block_size: ByteCount,
        /// Positions.
        blocks: Vec<u32>,
    },
    /// It is not known, and this is why.
    Unknown(String),
}

/// Everything the decision depends on.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Size of the snapshot's disk.
    pub size: ByteCount,
    /// Where an incremental could start from.
    pub base: Option<Base>,
    /// Changes since the base; only looked at where there is one.
    pub changes: Changes,
    /// Allocated parts; only looked at where there is no base.
    pub allocation: Allocation,
}

/// How a disk is read, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// For the order.
    pub start: Start,
    /// The blocks to read, where not all are.
    pub bitmap: Option<ChangedBlocks>,
    /// `cbt`, `scan` or `full`.
    pub mode: Mode,
    /// One clause for people.
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
    let Facts { size, base, changes, allocation } = facts;
    match base {
        Some(base) if base.tree.size > size => full(
            size,
            Allocation::Unknown("every block is read".into()),
            format!("the disk shrank from {} to {size}", base.tree.size),
        ),
        Some(base) => incremental(size, &base, changes),
        None => full(size, allocation, "first backup of this disk".into()),
    }
}

fn incremental(size: ByteCount, base: &Base, changes: Changes) -> Decision {
    let scan = |reason: String| Decision {
        start: Start::Compare { base: base.tree },
        bitmap: None,
        mode: Mode::Scan,
        reason,
    };
    let bytes = match changes {
        Changes::Unknown(why) => return scan(why),
        Changes::Listed(bytes) => bytes,
    };
    let mut bitmap = match ChangedBlocks::from_xapi(&bytes, size) {
        Ok(bitmap) => bitmap,
        Err(error) => return scan(format!("the pool's bitmap cannot be used: {error}")),
    };
    let mut reason = "changes listed by the pool".to_owned();
    if base.tree.size < size {
        bitmap.insert_growth(base.tree.size);
        reason = format!("changes listed by the pool, and the disk grew from {}", base.tree.size);
    }
    Decision { start: Start::Changed { base: base.tree }, bitmap: Some(bitmap), mode: Mode::Cbt, reason }
}

fn full(size: ByteCount, allocation: Allocation, why: String) -> Decision {
    match allocated(size, allocation) {
        Ok(bitmap) => Decision {
            start: Start::Allocated,
            reason: format!("{why}; skips unallocated space"),
            bitmap: Some(bitmap),
            mode: Mode::Full,
        },
        Err(reason) => Decision {
            start: Start::Nothing,
            bitmap: None,
            mode: Mode::Full,
            reason: if reason.is_empty() { why } else { format!("{why}; {reason}") },
        },
    }
}

fn allocated(size: ByteCount, allocation: Allocation) -> Result<ChangedBlocks, String> {
    let (disk_size, block_size, blocks) = match allocation {
        Allocation::Listed { disk_size, block_size, blocks } => (disk_size, block_size, blocks),
        Allocation::Unknown(why) => return Err(why),
    };
    let per_block = block_size.blocks_floor().get();
    if disk_size != size || per_block == 0 || block_size.get() % blocks::BLOCK_SIZE != 0 {
        return Err(format!("its allocation is of a disk of {disk_size}"));
    }
    let mut bitmap = ChangedBlocks::none(size).map_err(|error| error.to_string())?;
    for block in blocks {
        let start = u64::from(block).checked_mul(per_block).filter(|start| *start < MAX_DISK_SIZE.get());
        let start = start.ok_or("its allocation lies past the largest disk")?;
        bitmap.insert_range(BlockRange { start: BlockIndex::new(start), count: BlockCount::new(per_block) });
    }
    Ok(bitmap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use blocks::BLOCK_SIZE;

    fn disk(blocks: u64) -> ByteCount {
        ByteCount::new(blocks * BLOCK_SIZE)
    }

    fn facts(base: Option<u64>, changes: Changes) -> Facts {
        Facts {
            size: disk(16),
            base: base.map(|blocks| Base { tree: Tree { size: disk(blocks), root: None } }),
            changes,
            allocation: Allocation::Unknown("not a VHD".into()),
        }
    }

    #[test]
    fn a_bitmap_with_its_base_is_cbt() {
        let decision = decide(facts(Some(16), Changes::Listed(vec![0x80, 0x01])));
        assert_eq!(decision.mode, Mode::Cbt);
        assert_eq!(decision.planned(disk(16)), disk(2));
        assert!(matches!(decision.start, Start::Changed { .. }));
    }

    #[test]
    fn growth_is_always_read() {
        let decision = decide(facts(Some(8), Changes::Listed(vec![0x80, 0x00])));
        assert_eq!(decision.planned(disk(16)), disk(9));
        assert!(decision.reason.contains("grew"), "{}", decision.reason);
    }

    #[test]
    fn without_a_usable_bitmap_everything_is_compared() {
        for changes in [Changes::Unknown("the reference is gone".into()), Changes::Listed(vec![0])] {
            let decision = decide(facts(Some(16), changes));
            assert_eq!(decision.mode, Mode::Scan);
            assert_eq!(decision.planned(disk(16)), disk(16));
            assert!(decision.bitmap.is_none());
        }
    }

    #[test]
    fn a_shrunk_disk_and_a_first_backup_are_full() {
        assert_eq!(decide(facts(Some(17), Changes::Listed(vec![0; 2]))).start, Start::Nothing);
        let mut first = facts(None, Changes::Unknown(String::new()));
        assert_eq!(decide(first.clone()).start, Start::Nothing);
        first.allocation = Allocation::Listed { disk_size: disk(16), block_size: disk(8), blocks: vec![1] };
        let decision = decide(first.clone());
        assert_eq!((decision.start.clone(), decision.planned(disk(16))), (Start::Allocated, disk(8)));
        first.allocation = Allocation::Listed { disk_size: disk(15), block_size: disk(8), blocks: vec![] };
        assert_eq!(decide(first).start, Start::Nothing);
    }
}
