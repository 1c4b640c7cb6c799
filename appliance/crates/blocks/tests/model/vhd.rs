//! Chains of VHD files: `/export_raw_vdi?format=vhd&base=`.
//!
//! - A file holds whole granules of 2 MiB; a granule that is not in it is its parent's, or zeros.
//! - A snapshot freezes the live file; the live disk goes on in a file above it. A revert goes on above an older one.
//! - Coalescing adds a frozen file to its parent, where nobody else needs the parent.
//! - A difference lists the granules in the target's files above the common ancestor, and those in the base's own.

use super::{Content, SECTORS_PER_BLOCK};
use std::collections::BTreeSet;

pub(crate) const BLOCKS_PER_GRANULE: usize = 32;
const SECTORS_PER_GRANULE: usize = BLOCKS_PER_GRANULE * SECTORS_PER_BLOCK;

#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) content: Content,
    file: usize,
}

#[derive(Debug, Default)]
struct File {
    granules: BTreeSet<usize>,
    parent: Option<usize>,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) live: Content,
    pub(crate) snapshots: Vec<Snapshot>,
    /// A file that was coalesced away stays here, unused.
    files: Vec<File>,
    live_file: usize,
}

impl Disk {
    pub(crate) fn new(sectors: usize) -> Self {
        let live = Content::new(sectors);
        Self { live, snapshots: Vec::new(), files: vec![File::default()], live_file: 0 }
    }

    fn go_on_above(&mut self, parent: usize) {
        self.live_file = self.files.len();
        self.files.push(File { granules: BTreeSet::new(), parent: Some(parent) });
    }

    pub(crate) fn write(&mut self, start: usize, count: usize) {
        let written = self.live.write(start, count);
        if !written.is_empty() {
            let granules = written.start / SECTORS_PER_GRANULE..=(written.end - 1) / SECTORS_PER_GRANULE;
            self.files[self.live_file].granules.extend(granules);
        }
    }

    pub(crate) fn grow(&mut self, sectors: usize) {
        self.live.grow(sectors);
    }

    pub(crate) fn snapshot(&mut self) {
        self.snapshots.push(Snapshot { content: self.live.clone(), file: self.live_file });
        self.go_on_above(self.live_file);
    }

    /// The live disk becomes what a snapshot was. Stamps go on, or later writes could look like older ones.
    pub(crate) fn revert(&mut self, to: usize) {
        let stamp = self.live.stamp;
        self.live = Content { stamp, ..self.snapshots[to].content.clone() };
        self.go_on_above(self.snapshots[to].file);
    }

    pub(crate) fn delete(&mut self, at: usize) {
        self.snapshots.remove(at);
    }

    /// Adds every file to its parent that can be.
    pub(crate) fn coalesce(&mut self) {
        while let Some(file) = (0..self.files.len()).find(|file| self.can_coalesce(*file)) {
            let parent = self.files[file].parent.take().expect("checked");
            let granules = std::mem::take(&mut self.files[file].granules);
            self.files[parent].granules.extend(granules);
            for child in &mut self.files {
                if child.parent == Some(file) {
                    child.parent = Some(parent);
                }
            }
            for snapshot in &mut self.snapshots {
                if snapshot.file == file {
                    snapshot.file = parent;
                }
            }
        }
    }

    fn can_coalesce(&self, file: usize) -> bool {
        let Some(parent) = self.files[file].parent else { return false };
        let siblings = self.files.iter().filter(|other| other.parent == Some(parent)).count();
        let wanted = self.snapshots.iter().any(|snapshot| snapshot.file == parent);
        file != self.live_file && siblings == 1 && !wanted
    }

    fn chain(&self, file: usize) -> Vec<usize> {
        std::iter::successors(Some(file), |file| self.files[*file].parent).collect()
    }

    /// Granules that were ever written: the block allocation table of a whole export.
    pub(crate) fn allocated(&self, of: &Snapshot) -> Vec<usize> {
        let granules: BTreeSet<usize> =
            self.chain(of.file).iter().flat_map(|file| self.files[*file].granules.iter().copied()).collect();
        self.within(of, granules)
    }

    /// A table has an entry for each granule of its disk and no more.
    fn within(&self, of: &Snapshot, granules: BTreeSet<usize>) -> Vec<usize> {
        let count = of.content.len().div_ceil(SECTORS_PER_GRANULE);
        granules.into_iter().filter(|granule| *granule < count).collect()
    }

    /// Granules of `to` that may differ from `from`: the entries of the block allocation table.
    pub(crate) fn difference(&self, from: &Snapshot, to: &Snapshot) -> Vec<usize> {
        let (ours, theirs) = (self.chain(to.file), self.chain(from.file));
        let own = |chain: &[usize], other: &[usize]| -> BTreeSet<usize> {
            let above = chain.iter().filter(|file| !other.contains(file));
            above.flat_map(|file| self.files[*file].granules.iter().copied()).collect()
        };
        self.within(to, &own(&ours, &theirs) | &own(&theirs, &ours))
    }
}
