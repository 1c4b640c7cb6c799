//! Proof that a tree is whole: every node and block below it is in the store, at a place where it fits.
//!
//! A first full backup of a disk of 1 TiB has 16 million blocks to look up while its job waits, so that this is done on
//! all cores, on threads of its own: packs of other jobs that wait to be checked are not held up.

use super::Store;
use super::nodes::slot_of;
use crate::error::sentence;
use crate::{Error, ErrorKind};
use blocks::{BLOCK_SIZE, BlockIndex, ByteOffset, MAX_DISK_SIZE};
use rayon::prelude::*;
use seal::{BlockId, FAN_OUT, Node, NodeId, PackKind, Tree, TreeId};

/// What the base has where the walk is.
#[derive(Clone, Copy)]
enum Base {
    /// Nothing.
    Absent,
    /// The base has fewer levels: its root stands further down at index 0.
    Below,
    /// This node.
    Node(NodeId),
}

struct Walk<'a> {
    store: &'a Store,
    tree: Tree,
    base: Option<Tree>,
    /// The base's last block where the disk has grown since: its size there is another one, so that the
    /// same id is wrong at this place.
    grown: Option<BlockIndex>,
}

impl Store {
    /// Checks that every node and block of `tree` is in the store, and gives the id that proves the disk.
    /// What `tree` shares with `base`, a tree that was finished earlier, is not walked again.
    ///
    /// # Errors
    /// [`Error::NotWhole`] with the disk's offset and what is missing there.
    pub fn finish_tree(&self, tree: Tree, base: Option<Tree>) -> Result<TreeId, Error> {
        if tree.size > MAX_DISK_SIZE {
            let reason = format!("a disk of {} is over the limit of {MAX_DISK_SIZE}", tree.size);
            return Err(Error::NotWhole { offset: ByteOffset::new(0), reason });
        }
        // A base of a larger disk proves nothing about where blocks end, and where packs were lost since the
        // base was finished, it proves nothing at all.
        let losses = base.is_some() && self.has_losses()?;
        let base = base.filter(|base| base.size <= tree.size && self.skipped.is_empty() && !losses);
        let grown = base
            .filter(|base| base.size < tree.size && base.size.get() % BLOCK_SIZE != 0)
            .map(|base| BlockIndex::new(base.size.blocks_floor().get()));
        let walk = Walk { store: self, tree, base, grown };
        if let Some(root) = tree.root {
            self.walkers()?.install(|| walk.visit(root, tree.levels(), 0, walk.base_at_root()))?;
        }
        let id = tree.id(&self.id_key);
        self.finished.lock().expect("no panic while it is locked").insert(id);
        Ok(id)
    }

    /// Whether a block fits at a place of a disk, and why not.
    pub(super) fn check_block(&self, tree: &Tree, block: BlockIndex, id: BlockId) -> Result<(), String> {
        let Some(expected) = tree.size.block_size_at(block) else {
            return Err(format!("block {id} lies past the end of the disk"));
        };
        let Some(at) = self.packs.find(PackKind::Data, id.as_bytes()) else {
            return Err(format!("block {id} is not in the store"));
        };
        let found = match at.whole {
            true => BLOCK_SIZE,
            // Only the last block of a disk may be short: the entry is read for one block per disk.
            false if expected.get() != BLOCK_SIZE => {
                self.packs.plain_size(at).map(u64::from).map_err(|error| sentence(&error))?
            }
            false => return Err(format!("block {id} is shorter than its place")),
        };
        match found == expected.get() {
            true => Ok(()),
            false => Err(format!("block {id} has {found} bytes, its place has {}", expected.get())),
        }
    }
}

impl Walk<'_> {
    fn base_at_root(&self) -> Base {
        match self.base {
            Some(Tree { root: Some(root), size }) => {
                if seal::levels(size) == self.tree.levels() {
                    Base::Node(root)
                } else {
                    Base::Below
                }
            }
            _ => Base::Absent,
        }
    }

    fn visit(&self, id: NodeId, level: u8, index: u64, base: Base) -> Result<(), Error> {
        let covers_growth = self.grown.is_some_and(|block| block.get() / FAN_OUT.pow(level.into()) == index);
        if matches!(base, Base::Node(base) if base == id) && !covers_growth {
            return Ok(());
        }
        let node = self.node(id, level, index)?;
        let base_node = match base {
            Base::Node(base) => Some(self.node(base, level, index)?),
            _ => None,
        };
        let base_node = base_node.as_ref();
        if level == 1 {
            let blocks = (0..FAN_OUT).map(|slot| BlockIndex::new(index * FAN_OUT + slot));
            return blocks.into_iter().try_for_each(|block| self.check_slot(&node, base_node, block));
        }
        // The first in disk order, so that the same damage is always told the same way.
        let children = (0..FAN_OUT).into_par_iter();
        let failed = children.find_map_first(|slot| {
            let child = node.child(slot_of(slot))?;
            let at = index * FAN_OUT + slot;
            self.visit_child(child, level - 1, at, self.base_below(base, base_node, level - 1, at)).err()
        });
        failed.map_or(Ok(()), Err)
    }

    fn visit_child(&self, child: NodeId, level: u8, index: u64, base: Base) -> Result<(), Error> {
        if first_block(level, index) >= self.tree.size.blocks_ceil().get() {
            let reason = format!("tree node {child} lies past the end of the disk");
            return Err(Error::NotWhole { offset: node_offset(level, index), reason });
        }
        self.visit(child, level, index, base)
    }

    fn check_slot(&self, node: &Node, base: Option<&Node>, block: BlockIndex) -> Result<(), Error> {
        let slot = slot_of(block.get());
        let Some(id) = node.block(slot) else { return Ok(()) };
        if base.is_some_and(|base| base.block(slot) == Some(id)) && self.grown != Some(block) {
            return Ok(());
        }
        self.store
            .check_block(&self.tree, block, id)
            .map_err(|reason| Error::NotWhole { offset: offset_of(block), reason })
    }

    fn base_below(&self, base: Base, node: Option<&Node>, level: u8, index: u64) -> Base {
        match (base, node) {
            (Base::Node(_), Some(node)) => node.child(slot_of(index)).map_or(Base::Absent, Base::Node),
            (Base::Below, _) if index == 0 => match self.base {
                Some(base) if base.levels() == level => base.root.map_or(Base::Absent, Base::Node),
                _ => Base::Below,
            },
            _ => Base::Absent,
        }
    }

    fn node(&self, id: NodeId, level: u8, index: u64) -> Result<Node, Error> {
        self.store.read_node(id).map(|node| Node::clone(&node)).map_err(|error| match error.kind() {
            ErrorKind::Missing | ErrorKind::Damaged => {
                Error::NotWhole { offset: node_offset(level, index), reason: sentence(&error) }
            }
            _ => error,
        })
    }
}

/// Position of a block that lies on a disk of at most [`MAX_DISK_SIZE`], or in its last node.
pub(super) fn offset_of(block: BlockIndex) -> ByteOffset {
    block.to_offset().expect("a node's blocks are bounded by MAX_DISK_SIZE and the fan-out")
}

/// First block below a node.
pub(super) fn first_block(level: u8, index: u64) -> u64 {
    index * FAN_OUT.pow(level.into())
}

/// Where a node's part of the disk begins.
pub(super) fn node_offset(level: u8, index: u64) -> ByteOffset {
    offset_of(BlockIndex::new(first_block(level, index)))
}
