//! Disks and their two trackings as XenServer's storage keeps them, written down from its sources and sharing nothing
//! with the crate under test.
//!
//! `cbt`: a log per snapshot, chained. `vhd`: a tree of files that each hold whole granules.

pub(crate) mod cbt;
pub(crate) mod vhd;

use std::collections::BTreeSet;
use std::ops::Range;

pub(crate) const SECTOR: usize = 512;
pub(crate) const SECTORS_PER_BLOCK: usize = 128;

/// What a disk holds: one number per sector, 0 for zeros.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Content {
    sectors: Vec<u32>,
    stamp: u32,
}

impl Content {
    pub(crate) fn new(sectors: usize) -> Self {
        Self { sectors: vec![0; sectors], stamp: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.sectors.len()
    }

    pub(crate) fn size(&self) -> blocks::ByteCount {
        blocks::ByteCount::new((self.len() * SECTOR) as u64)
    }

    pub(crate) fn block_count(&self) -> usize {
        self.len().div_ceil(SECTORS_PER_BLOCK)
    }

    pub(crate) fn grow(&mut self, sectors: usize) {
        self.sectors.resize(self.len() + sectors, 0);
    }

    /// Writes `count` sectors from `start` on, as far as there are; gives those that were written. One write in four
    /// writes zeros, and a second write of the same stamp changes nothing: both are tracked all the same.
    pub(crate) fn write(&mut self, start: usize, count: usize) -> Range<usize> {
        if self.sectors.is_empty() {
            return 0..0;
        }
        let start = start % self.len();
        let end = self.len().min(start + count);
        self.stamp += 1;
        let stamp = if self.stamp.is_multiple_of(4) { 0 } else { self.stamp / 2 };
        self.sectors[start..end].fill(stamp);
        start..end
    }

    pub(crate) fn block(&self, index: usize) -> &[u32] {
        let start = (index * SECTORS_PER_BLOCK).min(self.len());
        &self.sectors[start..self.len().min(start + SECTORS_PER_BLOCK)]
    }

    /// Blocks whose bytes, or whose number of bytes, are not those of `base`.
    pub(crate) fn differs_from(&self, base: &Content) -> BTreeSet<usize> {
        (0..self.block_count()).filter(|block| self.block(*block) != base.block(*block)).collect()
    }

    /// What a backup makes of `base` that reads these parts of this disk.
    pub(crate) fn rebuilt_from(&self, base: &Content, read: &[Range<usize>]) -> Vec<u32> {
        let mut rebuilt = base.sectors.clone();
        rebuilt.resize(self.len(), 0);
        for range in read {
            rebuilt[range.clone()].copy_from_slice(&self.sectors[range.clone()]);
        }
        rebuilt
    }

    pub(crate) fn sectors(&self) -> &[u32] {
        &self.sectors
    }
}
