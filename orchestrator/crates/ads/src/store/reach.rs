//! Going through trees: which objects of the store a disk needs, each asked about once however many disks share it.

use super::Store;
use super::index::Location;
use super::nodes::slot_of;
use super::points::StoredPoint;
use blocks::BLOCK_SIZE;
use seal::{FAN_OUT, NodeId, PackKind, Tree};
use std::collections::HashMap;

/// A value for each object of the store.
pub(super) struct PerObject {
    /// By number of the pack and place in it.
    pub(super) packs: Vec<Vec<u32>>,
}

/// More than one owns it.
pub(super) const SHARED: u32 = u32::MAX;
/// Nobody owns it.
pub(super) const NOBODY: u32 = 0;

impl PerObject {
    /// For packs with so many objects each.
    pub(super) fn new(counts: impl Iterator<Item = usize>) -> Self {
        Self { packs: counts.map(|count| vec![NOBODY; count]).collect() }
    }

    /// Of an object that came later there is none.
    pub(super) fn get_mut(&mut self, at: Location) -> Option<&mut u32> {
        self.packs.get_mut(at.pack as usize)?.get_mut(at.entry as usize)
    }

    /// Lets `owner` own it too; gives what it was before.
    pub(super) fn own(&mut self, at: Location, owner: u32) -> Option<u32> {
        let value = self.get_mut(at)?;
        let before = *value;
        *value = if before == NOBODY || before == owner { owner } else { SHARED };
        Some(before)
    }

    pub(super) fn clear(&mut self) {
        self.packs.iter_mut().for_each(|pack| pack.fill(NOBODY));
    }
}

/// A walk over many trees.
pub(super) struct Walk<'a> {
    store: &'a Store,
    /// Blocks below nodes that were walked.
    counts: HashMap<NodeId, u64>,
    /// Whether anything was missing or could not be read since this was last set to false.
    pub(super) incomplete: bool,
}

impl<'a> Walk<'a> {
    pub(super) fn new(store: &'a Store) -> Self {
        Self { store, counts: HashMap::new(), incomplete: false }
    }

    /// Walks a tree as far as `enter` wants to see the children of nodes; it is asked about blocks too. Gives the number
    /// of blocks in the tree.
    pub(super) fn tree(&mut self, tree: Tree, enter: &mut impl FnMut(PackKind, Location) -> bool) -> u64 {
        tree.root.map_or(0, |root| self.node(root, tree.levels(), enter))
    }

    fn node(&mut self, id: NodeId, level: u8, enter: &mut impl FnMut(PackKind, Location) -> bool) -> u64 {
        let Some(at) = self.store.packs.find(PackKind::Tree, id.as_bytes()) else {
            self.incomplete = true;
            return 0;
        };
        let wanted = enter(PackKind::Tree, at);
        if let (false, Some(count)) = (wanted, self.counts.get(&id)) {
            return *count;
        }
        let Ok(node) = self.store.read_node(id) else {
            self.incomplete = true;
            return 0;
        };
        let mut count = 0;
        let lacked = std::mem::replace(&mut self.incomplete, false);
        for slot in 0..FAN_OUT {
            if level > 1 {
                if let Some(child) = node.child(slot_of(slot)) {
                    count += self.node(child, level - 1, enter);
                }
            } else if let Some(block) = node.block(slot_of(slot)) {
                count += 1;
                match self.store.packs.find(PackKind::Data, block.as_bytes()) {
                    Some(at) => _ = enter(PackKind::Data, at),
                    None => self.incomplete = true,
                }
            }
        }
        // Whoever needs what is missing below is to hear of it too.
        if !self.incomplete {
            self.counts.insert(id, count);
        }
        self.incomplete |= lacked;
        count
    }

    /// Walks all disks of a point; gives their plain bytes without zeros. `incomplete` is of this point then.
    pub(super) fn point(
        &mut self,
        stored: &StoredPoint,
        enter: &mut impl FnMut(PackKind, Location) -> bool,
    ) -> u64 {
        self.incomplete = false;
        let trees = stored.point.disks.iter().map(|disk| disk.tree);
        trees.map(|tree| self.tree(tree, enter)).sum::<u64>().saturating_mul(BLOCK_SIZE)
    }
}
