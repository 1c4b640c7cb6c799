//! Differencing chains: which 2 MiB blocks each node of a copy-on-write tree holds, as VHD storage keeps them.
//!
//! Only what a differencing export needs: the blocks between two disks. The contents stay in the flat files.

use std::collections::{BTreeSet, HashMap};

/// Block size of a dynamic VHD.
pub(crate) const BLOCK: u64 = 2 << 20;

#[derive(Debug, Default)]
struct Node {
    parent: Option<usize>,
    blocks: BTreeSet<u32>,
}

/// All chains. Nodes are never removed: a tree costs a few bytes per written block.
#[derive(Debug, Default)]
pub(crate) struct Chains {
    nodes: Vec<Node>,
    leaves: HashMap<String, usize>,
}

impl Chains {
    fn add(&mut self, parent: Option<usize>) -> usize {
        self.nodes.push(Node { parent, blocks: BTreeSet::new() });
        self.nodes.len() - 1
    }

    /// A disk without a parent.
    pub(crate) fn create(&mut self, vdi: &str) {
        let node = self.add(None);
        self.leaves.insert(vdi.to_owned(), node);
    }

    /// `copy` now shares everything `source` holds; both go on in nodes of their own.
    pub(crate) fn split(&mut self, source: &str, copy: &str) {
        let shared = self.leaves.get(source).copied();
        for vdi in [source, copy] {
            let node = self.add(shared);
            self.leaves.insert(vdi.to_owned(), node);
        }
    }

    pub(crate) fn delete(&mut self, vdi: &str) {
        self.leaves.remove(vdi);
    }

    /// Whether writes to the disk matter for a later difference.
    pub(crate) fn has_parent(&self, vdi: &str) -> bool {
        self.leaves.get(vdi).is_some_and(|n| self.nodes[*n].parent.is_some())
    }

    /// Records a write of `length` bytes at `offset`.
    pub(crate) fn record(&mut self, vdi: &str, offset: u64, length: u64) {
        let Some(node) = self.leaves.get(vdi) else { return };
        let range = offset / BLOCK..offset.saturating_add(length).div_ceil(BLOCK);
        self.nodes[*node].blocks.extend(range.filter_map(|b| u32::try_from(b).ok()));
    }

    fn path(&self, vdi: &str) -> Option<Vec<usize>> {
        let mut path = vec![*self.leaves.get(vdi)?];
        while let Some(parent) = self.nodes[path[path.len() - 1]].parent {
            path.push(parent);
        }
        Some(path)
    }

    /// The blocks in which two disks may differ: everything above their common ancestor on both sides.
    /// `None` when they have no common ancestor.
    pub(crate) fn difference(&self, base: &str, target: &str) -> Option<BTreeSet<u32>> {
        let (base, target) = (self.path(base)?, self.path(target)?);
        let common = *target.iter().find(|n| base.contains(n))?;
        let above = |path: Vec<usize>| path.into_iter().take_while(move |n| *n != common);
        Some(above(base).chain(above(target)).flat_map(|n| self.nodes[n].blocks.iter().copied()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_cover_both_branches_above_the_common_ancestor() {
        let mut chains = Chains::default();
        chains.create("live");
        chains.record("live", 0, 10 * BLOCK);
        chains.split("live", "s1");
        chains.record("live", BLOCK - 1, 2);
        chains.split("live", "s2");
        chains.record("live", 5 * BLOCK, 1);
        assert_eq!(chains.difference("s1", "s2").unwrap().into_iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(chains.difference("s1", "live").unwrap().into_iter().collect::<Vec<_>>(), [0, 1, 5]);
        assert_eq!(chains.difference("live", "s2").unwrap().into_iter().collect::<Vec<_>>(), [5]);
        chains.create("other");
        assert!(chains.difference("s1", "other").is_none());
    }
}
