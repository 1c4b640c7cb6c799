//! Going through every disk of restore points: what they lack, and where on which disk that hurts.

use crate::store::nodes::slot_of;
use crate::store::points::{PointDisk, StoredPoint};
use crate::store::report::{Affected, Damage, Finding};
use crate::store::tree::{first_block, node_offset, offset_of};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount, ByteOffset, MAX_DISK_SIZE};
use seal::{BlockId, FAN_OUT, Node, NodeId};
use std::collections::HashSet;

/// Who says what is there.
pub(super) trait Stock {
    /// A node, proven; none where it is lost.
    fn node(&mut self, id: NodeId) -> Option<Node>;
    /// Whether a block is there.
    fn block(&mut self, id: BlockId) -> bool;
}

/// What a survey found.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// What cannot be read, neighbours merged.
    pub(super) affects: Vec<Affected>,
    /// Ranges that were left out of `affects`.
    pub(super) more: u64,
    /// The points that lack anything, by their places among those that were surveyed.
    pub(super) points: Vec<usize>,
}

/// Goes through all disks of the points. Nodes below which nothing is lacking are gone through once.
pub(super) fn survey(points: &[StoredPoint], stock: &mut dyn Stock) -> Losses {
    let mut losses = Losses::default();
    let mut whole = HashSet::new();
    for (place, point) in points.iter().enumerate() {
        let before = losses.affects.len();
        for disk in &point.point.disks {
            let mut walk = Walk {
                point,
                disk,
                stock,
                whole: &mut whole,
                finding: Finding::new(Damage::Tree { id: disk.tree_id }, ""),
            };
            if disk.tree.size > MAX_DISK_SIZE {
                walk.lacks(0, disk.tree.size.get());
            } else if let Some(root) = disk.tree.root {
                walk.visit(root, disk.tree.levels(), 0);
            }
            losses.affects.append(&mut walk.finding.affects);
            losses.more += walk.finding.more_affected;
        }
        if losses.affects.len() > before {
            losses.points.push(place);
        }
    }
    losses
}

struct Walk<'a> {
    point: &'a StoredPoint,
    disk: &'a PointDisk,
    stock: &'a mut dyn Stock,
    whole: &'a mut HashSet<NodeId>,
    finding: Finding,
}

impl Walk<'_> {
    /// Whether everything below a node is there.
    fn visit(&mut self, id: NodeId, level: u8, index: u64) -> bool {
        if self.whole.contains(&id) {
            return true;
        }
        let Some(node) = self.stock.node(id) else {
            return self.lacks(node_offset(level, index).get(), FAN_OUT.pow(level.into()) * BLOCK_SIZE);
        };
        let mut whole = true;
        for slot in 0..FAN_OUT {
            let at = index * FAN_OUT + slot;
            if level > 1 {
                let Some(child) = node.child(slot_of(slot)) else { continue };
                // What lies past the end of a disk is for `verify` to complain about.
                let is_inside = first_block(level - 1, at) < self.disk.tree.size.blocks_ceil().get();
                whole &= !is_inside || self.visit(child, level - 1, at);
            } else if let Some(block) = node.block(slot_of(slot)) {
                whole &=
                    self.stock.block(block) || self.lacks(offset_of(BlockIndex::new(at)).get(), BLOCK_SIZE);
            }
        }
        if whole {
            self.whole.insert(id);
        }
        whole
    }

    fn lacks(&mut self, offset: u64, span: u64) -> bool {
        let left = self.disk.tree.size.get().saturating_sub(offset);
        self.finding.affect(Affected {
            point: self.point.id,
            vm: self.point.point.vm.name.clone(),
            vdi: self.disk.vdi.clone(),
            userdevice: self.disk.userdevice,
            offset: ByteOffset::new(offset),
            size: ByteCount::new(span.min(left)),
        });
        false
    }
}
