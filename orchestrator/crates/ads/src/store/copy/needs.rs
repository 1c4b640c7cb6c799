//! What a point needs and the other place lacks, found by trees.

use super::super::index::Location;
use super::super::nodes::slot_of;
use super::super::tree::{node_offset, offset_of};
use super::super::{PointDisk, StoredPoint};
use super::{Copier, Trouble, is_outage};
use crate::Error;
use crate::error::sentence;
use blocks::{BlockIndex, ByteOffset, MAX_DISK_SIZE};
use seal::{BlockId, FAN_OUT, Node, NodeId, PackKind, Tree};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Objects that are gathered before they are moved: 64 GiB of blocks, and some 10 MiB of memory.
const MOST_GATHERED: usize = 1 << 20;

/// Numbers of entries, by number of the pack here.
pub(super) type Entries = BTreeMap<u32, Vec<u32>>;

/// Told how many bytes of how many were moved. An error ends the copy.
pub(super) type OnBytes<'a> = &'a dyn Fn(u64, u64) -> Result<(), Error>;

/// A bit for each object of this store.
#[derive(Default)]
pub(super) struct Marks {
    packs: HashMap<u32, Vec<u64>>,
}

impl Marks {
    /// Sets it; whether it was not set.
    pub(super) fn set(&mut self, at: Location) -> bool {
        let words = self.packs.entry(at.pack).or_default();
        let (word, bit) = place(at.entry);
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        let before = words[word];
        words[word] |= bit;
        before & bit == 0
    }

    fn has(&self, at: Location) -> bool {
        let (word, bit) = place(at.entry);
        self.packs.get(&at.pack).and_then(|words| words.get(word)).is_some_and(|found| found & bit != 0)
    }

    /// Sets all that `other` has.
    pub(super) fn merge(&mut self, other: Self) {
        for (pack, bits) in other.packs {
            let words = self.packs.entry(pack).or_default();
            if words.len() < bits.len() {
                words.resize(bits.len(), 0);
            }
            words.iter_mut().zip(bits).for_each(|(word, bits)| *word |= bits);
        }
    }
}

fn place(entry: u32) -> (usize, u64) {
    ((entry / u64::BITS) as usize, 1 << (entry % u64::BITS))
}

/// What is to be moved.
#[derive(Default)]
pub(super) struct Needs {
    seen: Marks,
    data: Entries,
    data_count: usize,
    nodes: Entries,
}

impl Needs {
    fn add(&mut self, kind: PackKind, at: Location) {
        if !self.seen.set(at) {
            return;
        }
        let entries = match kind {
            PackKind::Data => {
                self.data_count += 1;
                &mut self.data
            }
            PackKind::Tree => &mut self.nodes,
        };
        entries.entry(at.pack).or_default().push(at.entry);
    }

    /// What was gathered of a kind since this was last called.
    pub(super) fn take(&mut self, kind: PackKind) -> Entries {
        match kind {
            PackKind::Data => {
                self.data_count = 0;
                std::mem::take(&mut self.data)
            }
            PackKind::Tree => std::mem::take(&mut self.nodes),
        }
    }
}

/// Where a walk is.
struct Walk<'a> {
    disk: &'a PointDisk,
    report: OnBytes<'a>,
}

impl Walk<'_> {
    fn lacks(&self, what: &str, offset: ByteOffset, reason: &str) -> Trouble {
        Trouble::Point(format!("{what} at {offset} of disk '{}' cannot be read: {reason}", self.disk.name))
    }
}

impl Copier<'_> {
    /// Gathers what is missing of a point. Where much is, blocks are moved meanwhile.
    pub(super) fn walk_point(&mut self, stored: &StoredPoint, report: OnBytes<'_>) -> Result<(), Trouble> {
        for disk in &stored.point.disks {
            let size = disk.tree.size;
            if size > MAX_DISK_SIZE {
                return Err(Trouble::Point(format!("disk '{}' of {size} is over the limit", disk.name)));
            }
            let base = self.bases.get(&(stored.point.vm.uuid.clone(), disk.vdi.clone())).copied();
            if let Some(root) = disk.tree.root {
                let base = self.comparable(&disk.tree, base);
                self.visit(root, disk.tree.levels(), 0, base, &Walk { disk, report })?;
            }
        }
        Ok(())
    }

    /// The root of a tree that is whole there and stands for the same part of a disk. Where packs there cannot be read,
    /// nothing is whole for certain.
    fn comparable(&self, tree: &Tree, base: Option<Tree>) -> Option<NodeId> {
        let base = base.filter(|base| base.levels() == tree.levels())?;
        self.to.is_some_and(|to| to.skipped.is_empty()).then_some(base.root)?
    }

    fn visit(
        &mut self,
        id: NodeId,
        level: u8,
        index: u64,
        base: Option<NodeId>,
        walk: &Walk<'_>,
    ) -> Result<(), Trouble> {
        if base == Some(id) {
            return Ok(());
        }
        let here = self.from.packs.find(PackKind::Tree, id.as_bytes());
        if here.is_some_and(|at| self.done.has(at) || self.walked.has(at)) {
            return Ok(());
        }
        let lacks = |reason: &str| walk.lacks(&format!("tree node {id}"), node_offset(level, index), reason);
        let is_there = self.is_there(PackKind::Tree, id.as_bytes());
        if !is_there {
            let at = self.readable(id.as_bytes(), here).map_err(lacks)?;
            self.needs.add(PackKind::Tree, at);
        }
        let node = match self.node(id, is_there) {
            Ok(node) => node,
            Err(error) if is_outage(&error) => return Err(Trouble::Stop(error)),
            Err(error) => return Err(lacks(&sentence(&error))),
        };
        // Of the lowest nodes each block is looked up there, which costs less than reading another node.
        let base = base.filter(|_| level > 1).and_then(|base| self.node(base, true).ok());
        for slot in (0..FAN_OUT).map(slot_of) {
            let at = index * FAN_OUT + slot as u64;
            if level == 1 {
                if let Some(block) = node.block(slot) {
                    self.need_block(block, BlockIndex::new(at), walk)?;
                }
            } else if let Some(child) = node.child(slot) {
                let base = base.as_ref().and_then(|base| base.child(slot));
                self.visit(child, level - 1, at, base, walk)?;
            }
        }
        if let Some(at) = here {
            self.walked.set(at);
        }
        Ok(())
    }

    fn need_block(&mut self, id: BlockId, block: BlockIndex, walk: &Walk<'_>) -> Result<(), Trouble> {
        if self.is_there(PackKind::Data, id.as_bytes()) {
            return Ok(());
        }
        let lacks = |reason: &str| walk.lacks(&format!("block {id}"), offset_of(block), reason);
        let at = self.from.packs.find(PackKind::Data, id.as_bytes());
        let at = self.readable(id.as_bytes(), at).map_err(lacks)?;
        self.needs.add(PackKind::Data, at);
        if self.needs.data_count >= MOST_GATHERED {
            self.send(PackKind::Data, walk.report)?;
        }
        Ok(())
    }

    /// The place of an object here, unless nothing can be read there, and why.
    fn readable(&self, id: &[u8; 32], at: Option<Location>) -> Result<Location, &str> {
        let at = at.ok_or("it is not in the store")?;
        let lost = self.lost.get(id).or_else(|| self.lost_packs.get(&at.pack));
        lost.map_or(Ok(at), |reason| Err(reason))
    }

    /// Whether an object is there and will stay while the lease lasts.
    pub(super) fn is_there(&self, kind: PackKind, id: &[u8; 32]) -> bool {
        self.to.is_some_and(|to| to.packs.find_lasting(kind, id).is_some())
    }

    /// A node, from here or, where it is damaged here, from there.
    fn node(&self, id: NodeId, is_there: bool) -> Result<Arc<Node>, Error> {
        let here = self.from.read_node(id);
        match (here, self.to) {
            (Err(_), Some(to)) if is_there => to.read_node(id),
            (here, _) => here,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(pack: u32, entry: u32) -> Location {
        Location { pack, entry, whole: true }
    }

    #[test]
    fn marks_are_of_one_object_each_and_can_be_joined() {
        let (mut first, mut second) = (Marks::default(), Marks::default());
        assert!(first.set(at(1, 63)) && first.set(at(1, 64)) && first.set(at(9, 500)));
        assert!(!first.set(at(1, 64)));
        assert!(second.set(at(1, 200)) && second.set(at(2, 0)));
        first.merge(second);
        for (pack, entry) in [(1, 63), (1, 64), (9, 500), (1, 200), (2, 0)] {
            assert!(first.has(at(pack, entry)), "{entry} of {pack}");
        }
        for (pack, entry) in [(1, 62), (1, 65), (1, 201), (2, 1), (3, 0), (9, 10_000)] {
            assert!(!first.has(at(pack, entry)), "{entry} of {pack}");
        }
    }
}
