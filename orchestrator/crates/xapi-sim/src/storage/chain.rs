//! Differencing chains: which 2 MiB blocks each node of a copy-on-write tree holds, as VHD storage keeps them, and the
//! garbage collection that makes chains short again.
//!
//! Every node is known by the uuid of its VDI record. Leaves are disks that somebody uses; hidden nodes hold what their
//! children share. The contents stay in the flat files of the leaves; a node only says where something was written.

use std::collections::{BTreeSet, HashMap};

/// Block size of a dynamic VHD.
pub(crate) const BLOCK: u64 = 2 << 20;
/// Longest chain, the leaf included, that may still be snapshot or cloned: `MAX_CHAIN_SIZE` of the storage manager's
/// `vhdutil.py`.
pub(crate) const MAX_DEPTH: usize = 30;

#[derive(Debug, Default)]
struct Node {
    parent: Option<String>,
    blocks: BTreeSet<u32>,
    hidden: bool,
}

/// All chains, by the uuids of their VDIs.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    nodes: HashMap<String, Node>,
}

impl Chains {
    /// A disk without a parent.
    pub(crate) fn create(&mut self, vdi: &str) {
        self.nodes.insert(vdi.to_owned(), Node::default());
    }

    /// `copy` now shares everything that `source` holds: both go on as empty children of a hidden `base`. Answers
    /// whether the base was needed: an empty child of another node is skipped, as `vhd-util snapshot` does.
    pub(crate) fn split(&mut self, source: &str, copy: &str, base: &str) -> bool {
        let Some(node) = self.nodes.get_mut(source) else { return false };
        if node.blocks.is_empty() && node.parent.is_some() {
            let parent = node.parent.clone();
            self.nodes.insert(copy.to_owned(), Node { parent, ..Node::default() });
            return false;
        }
        let child = || Node { parent: Some(base.to_owned()), ..Node::default() };
        let shared = std::mem::replace(node, child());
        self.nodes.insert(copy.to_owned(), child());
        self.nodes.insert(base.to_owned(), Node { hidden: true, ..shared });
        true
    }

    /// The leaf is gone; what it shared stays until it is collected.
    pub(crate) fn delete(&mut self, vdi: &str) {
        self.nodes.remove(vdi);
    }

    /// The node that a node differs from.
    pub(crate) fn parent(&self, vdi: &str) -> Option<&str> {
        self.nodes.get(vdi)?.parent.as_deref()
    }

    /// Whether writes to the disk matter for a later difference.
    pub(crate) fn has_parent(&self, vdi: &str) -> bool {
        self.parent(vdi).is_some()
    }

    /// Nodes from the disk down to the root, both included; a disk that has no chain counts as its own root.
    pub(crate) fn depth(&self, vdi: &str) -> usize {
        self.path(vdi).map_or(1, |path| path.len())
    }

    /// How many blocks a node holds itself.
    pub(crate) fn block_count(&self, vdi: &str) -> u64 {
        self.nodes.get(vdi).map_or(0, |node| node.blocks.len() as u64)
    }

    /// How many blocks a write would add to a node.
    pub(crate) fn missing(&self, vdi: &str, offset: u64, length: u64) -> u64 {
        let Some(node) = self.nodes.get(vdi) else { return 0 };
        block_range(offset, length).filter(|block| !node.blocks.contains(block)).count() as u64
    }

    /// Records a write of `length` bytes at `offset`.
    pub(crate) fn record(&mut self, vdi: &str, offset: u64, length: u64) {
        if let Some(node) = self.nodes.get_mut(vdi) {
            node.blocks.extend(block_range(offset, length));
        }
    }

    fn path<'a>(&'a self, vdi: &'a str) -> Option<Vec<&'a str>> {
        self.nodes.get(vdi)?;
        let mut path = vec![vdi];
        while let Some(parent) = self.parent(path[path.len() - 1]) {
            path.push(parent);
        }
        Some(path)
    }

    /// The blocks in which two disks may differ: everything above their common ancestor on both sides.
    /// `None` when they have no common ancestor.
    pub(crate) fn difference(&self, base: &str, target: &str) -> Option<BTreeSet<u32>> {
        let (base, target) = (self.path(base)?, self.path(target)?);
        let common = *target.iter().find(|node| base.contains(node))?;
        let above = |path: Vec<&str>| -> BTreeSet<u32> {
            let nodes = path.into_iter().take_while(|node| *node != common);
            nodes.filter_map(|node| self.nodes.get(node)).flat_map(|n| n.blocks.iter().copied()).collect()
        };
        Some(&above(base) | &above(target))
    }

    /// Does all that the garbage collector of a repository with these `members` has to do, and answers the hidden nodes
    /// that are gone. The three kinds of work are those of the storage manager's `cleanup.py`: hidden nodes without
    /// children are deleted, a hidden node that is its parent's only child is merged into the parent, and so is a leaf.
    pub(crate) fn coalesce(&mut self, members: &[String]) -> Vec<String> {
        let mut gone = Vec::new();
        let mut present: BTreeSet<&String> = members.iter().filter(|m| self.nodes.contains_key(*m)).collect();
        while let Some(removed) = self.coalesce_one(&present) {
            present.remove(&removed);
            gone.push(removed);
        }
        gone
    }

    fn coalesce_one(&mut self, members: &BTreeSet<&String>) -> Option<String> {
        let mut children: HashMap<&str, Vec<&String>> = HashMap::new();
        for member in members {
            if let Some(parent) = self.parent(member) {
                children.entry(parent).or_default().push(member);
            }
        }
        let hidden = |node: &str| self.nodes.get(node).is_some_and(|n| n.hidden);
        let only_child = |node: &str| match self.parent(node).and_then(|p| children.get(p)) {
            Some(siblings) => siblings.len() == 1,
            None => false,
        };
        let garbage = members.iter().find(|m| hidden(m.as_str()) && !children.contains_key(m.as_str()));
        if let Some(garbage) = garbage {
            let garbage = (*garbage).clone();
            self.nodes.remove(&garbage);
            return Some(garbage);
        }
        let inner = members.iter().find(|m| hidden(m.as_str()) && only_child(m.as_str()));
        if let Some(inner) = inner {
            let inner = (*inner).clone();
            let orphans: Vec<String> =
                children.get(inner.as_str()).into_iter().flatten().map(|c| (*c).clone()).collect();
            let node = self.nodes.remove(&inner)?;
            if let Some(parent) = node.parent.as_ref().and_then(|p| self.nodes.get_mut(p)) {
                parent.blocks.extend(node.blocks);
            }
            for orphan in orphans {
                if let Some(child) = self.nodes.get_mut(&orphan) {
                    child.parent.clone_from(&node.parent);
                }
            }
            return Some(inner);
        }
        let leaf = members.iter().find(|m| !hidden(m.as_str()) && only_child(m.as_str()))?;
        let parent = self.parent(leaf)?.to_owned();
        let merged = self.nodes.remove(&parent)?;
        let leaf = self.nodes.get_mut(*leaf)?;
        leaf.blocks.extend(merged.blocks);
        leaf.parent = merged.parent;
        Some(parent)
    }
}

/// The blocks that a range touches.
fn block_range(offset: u64, length: u64) -> impl Iterator<Item = u32> {
    let range = offset / BLOCK..offset.saturating_add(length).div_ceil(BLOCK);
    range.filter_map(|block| u32::try_from(block).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(set: Option<BTreeSet<u32>>) -> Vec<u32> {
        set.unwrap().into_iter().collect()
    }

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|name| (*name).to_owned()).collect()
    }

    /// `live` with snapshots `s1` (before block 1 changed) and `s2` (before block 5 changed).
    fn two_snapshots() -> Chains {
        let mut chains = Chains::default();
        chains.create("live");
        chains.record("live", 0, 10 * BLOCK);
        assert!(chains.split("live", "s1", "b1"));
        chains.record("live", BLOCK - 1, 2);
        assert!(chains.split("live", "s2", "b2"));
        chains.record("live", 5 * BLOCK, 1);
        chains
    }

    #[test]
    fn differences_cover_both_branches_above_the_common_ancestor() {
        let mut chains = two_snapshots();
        assert_eq!(blocks(chains.difference("s1", "s2")), [0, 1]);
        assert_eq!(blocks(chains.difference("s1", "live")), [0, 1, 5]);
        assert_eq!(blocks(chains.difference("live", "s2")), [5]);
        chains.create("other");
        assert!(chains.difference("s1", "other").is_none());
        assert_eq!((chains.parent("s1"), chains.parent("b2")), (Some("b1"), Some("b1")));
        assert_eq!((chains.depth("s1"), chains.depth("live"), chains.depth("other")), (2, 3, 1));
    }

    #[test]
    fn an_empty_child_is_no_base() {
        let mut chains = Chains::default();
        chains.create("live");
        // Without a parent even an empty disk is one.
        assert!(chains.split("live", "s1", "b1"));
        assert!(!chains.split("live", "s2", "b2"));
        assert_eq!((chains.parent("live"), chains.parent("s2")), (Some("b1"), Some("b1")));
        assert_eq!(chains.depth("live"), 2);
    }

    #[test]
    fn a_deleted_snapshot_leaves_a_single_child_until_it_is_collected() {
        let mut chains = two_snapshots();
        let members = names(&["live", "s1", "s2", "b1", "b2"]);
        assert!(chains.coalesce(&members).is_empty());
        chains.delete("s2");
        assert_eq!(chains.depth("live"), 3);
        // b2 goes into the leaf or into b1; either way s1 and the live disk differ in the same blocks.
        assert_eq!(chains.coalesce(&members), ["b2"]);
        assert_eq!(chains.depth("live"), 2);
        assert_eq!(blocks(chains.difference("s1", "live")), [0, 1, 5]);
        chains.delete("s1");
        assert_eq!(chains.coalesce(&members), ["b1"]);
        assert_eq!((chains.depth("live"), chains.block_count("live")), (1, 10));
        chains.split("live", "clone", "b3");
        chains.delete("live");
        chains.delete("clone");
        assert_eq!(chains.coalesce(&names(&["b3"])), ["b3"]);
    }

    #[test]
    fn inner_nodes_merge_towards_the_root() {
        let mut chains = two_snapshots();
        chains.split("live", "s3", "b3");
        // b1 keeps only b2, which keeps two children: b2 merges into b1 and the children move.
        chains.delete("s1");
        let members = names(&["live", "s2", "s3", "b1", "b2", "b3"]);
        assert_eq!(chains.coalesce(&members), ["b2"]);
        assert_eq!((chains.parent("s2"), chains.parent("b3")), (Some("b1"), Some("b1")));
        assert_eq!(blocks(chains.difference("s2", "s3")), [5]);
        assert_eq!(chains.block_count("b1"), 10);
    }

    #[test]
    fn a_write_adds_only_the_blocks_that_are_missing() {
        let mut chains = Chains::default();
        chains.create("live");
        assert_eq!(chains.missing("live", BLOCK - 1, 2), 2);
        chains.record("live", 0, 1);
        assert_eq!((chains.missing("live", BLOCK - 1, 2), chains.missing("live", 0, 0)), (1, 0));
    }
}
