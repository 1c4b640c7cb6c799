//! Reading trees: nodes by id with a cache, nodes by position, and whole disks.

use super::Store;
use super::packs::StoredObject;
use crate::Error;
use blocks::{BlockIndex, ByteOffset};
use seal::{BlockId, FAN_OUT, Node, NodeId, NodeSource, PackKind, Tree};
use std::io;
use std::sync::Arc;
use wire::BlocksAnswer;

/// Nodes kept in memory: 16 MiB. An ABD reads a tree in order, so that the upper nodes and one stretch of
/// the lowest level are enough.
pub(super) const CACHED_NODES: usize = 8192;

/// Bytes that an answer has for a block beside the block's own: a codec, two sizes, and how it is encrypted.
const MOST_ABOUT_A_BLOCK: usize = 64;

/// Gives the nodes of a [`Store`] to the walks of `seal`.
#[derive(Clone, Copy)]
pub struct NodeReader<'a> {
    store: &'a Store,
}

impl NodeSource for NodeReader<'_> {
    type Error = Error;

    fn node(&mut self, id: NodeId, _level: u8, _index: u64) -> Result<Node, Error> {
        self.store.read_node(id).map(|node| Node::clone(&node))
    }
}

impl Store {
    /// The store's nodes for `seal`'s walks.
    pub fn nodes(&self) -> NodeReader<'_> {
        NodeReader { store: self }
    }

    /// A block's plain bytes, proven.
    ///
    /// # Errors
    /// [`Error::NoBlock`], [`Error::Damaged`], or what the file system says.
    pub fn read_block(&self, id: BlockId) -> Result<Vec<u8>, Error> {
        self.read_stored_block(id)?.open_block(&self.id_key, id)
    }

    /// Blocks as they are stored, in the order asked for, as a [`BlocksAnswer`] on its way. Whoever opens them must
    /// check their ids.
    ///
    /// # Errors
    /// [`Error::NoBlock`], [`Error::Damaged`], or what the file system says.
    pub fn blocks_message(&self, ids: &[BlockId]) -> Result<Vec<u8>, Error> {
        let find = |id: &BlockId| {
            let at = self.packs.find(PackKind::Data, id.as_bytes()).ok_or(Error::NoBlock { id: *id })?;
            Ok((*id.as_bytes(), at))
        };
        let objects = self.or_elsewhere(|| {
            let wanted = ids.iter().map(find).collect::<Result<Vec<_>, Error>>()?;
            self.packs.read_many(PackKind::Data, &wanted)
        })?;
        let answer = BlocksAnswer { blocks: objects.iter().collect() };
        let size = answer.blocks.iter().map(|block| block.bytes.len() + MOST_ABOUT_A_BLOCK).sum();
        Ok(wire::encode_into(&answer, Vec::with_capacity(size)))
    }

    fn read_stored_block(&self, id: BlockId) -> Result<StoredObject, Error> {
        self.or_elsewhere(|| {
            let at = self.packs.find(PackKind::Data, id.as_bytes()).ok_or(Error::NoBlock { id })?;
            self.packs.read(PackKind::Data, id.as_bytes(), at)
        })
    }

    /// Reads, and once more where a pack is not there any more: a collector moved what is needed of it into another one
    /// before. Leases keep objects, and not the packs that they were in.
    fn or_elsewhere<T>(&self, read: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
        match read() {
            Err(error) if error.is_not_found() => {
                self.look_elsewhere()?;
                read()
            }
            other => other,
        }
    }

    /// A node, proven, from the cache or from its pack.
    ///
    /// # Errors
    /// [`Error::NoNode`], [`Error::Damaged`], or what the file system says.
    pub fn read_node(&self, id: NodeId) -> Result<Arc<Node>, Error> {
        let locked = "no panic while the cache is locked";
        let cached = self.node_cache.lock().expect(locked).get(&id);
        if let Some(node) = cached {
            return Ok(node);
        }
        let node = Arc::new(self.read_node_from_disk(id)?);
        self.node_cache.lock().expect(locked).insert(id, node.clone());
        Ok(node)
    }

    pub(super) fn read_node_from_disk(&self, id: NodeId) -> Result<Node, Error> {
        let stored = self.or_elsewhere(|| {
            let at = self.packs.find(PackKind::Tree, id.as_bytes()).ok_or(Error::NoNode { id })?;
            self.packs.read(PackKind::Tree, id.as_bytes(), at)
        })?;
        stored.open_node(&self.id_key, id)
    }

    /// The nodes `first .. first + count` of a level of `tree` that are not absent, ascending.
    ///
    /// # Errors
    /// The first node that is missing or damaged.
    pub fn nodes_at(
        &self,
        tree: &Tree,
        level: u8,
        first: u64,
        count: u64,
    ) -> Result<Vec<(u64, Arc<Node>)>, Error> {
        let mut found = Vec::new();
        let last = first.saturating_add(count);
        if let Some(root) = tree.root.filter(|_| (1..=tree.levels()).contains(&level)) {
            self.descend(root, tree.levels(), 0, level, first..last, &mut found)?;
        }
        Ok(found)
    }

    fn descend(
        &self,
        id: NodeId,
        at_level: u8,
        at: u64,
        level: u8,
        wanted: std::ops::Range<u64>,
        found: &mut Vec<(u64, Arc<Node>)>,
    ) -> Result<(), Error> {
        let below = FAN_OUT.pow(u32::from(at_level - level));
        if at * below >= wanted.end || (at + 1) * below <= wanted.start {
            return Ok(());
        }
        let node = self.read_node(id)?;
        if at_level == level {
            found.push((at, node));
            return Ok(());
        }
        for slot in 0..FAN_OUT {
            if let Some(child) = node.child(slot_of(slot)) {
                self.descend(child, at_level - 1, at * FAN_OUT + slot, level, wanted.clone(), found)?;
            }
        }
        Ok(())
    }

    /// The ids of blocks of a tree, ascending; `None` where one is absent.
    ///
    /// # Errors
    /// The first node on the way that is missing or damaged.
    pub fn blocks_at(&self, tree: &Tree, blocks: &[BlockIndex]) -> Result<Vec<Option<BlockId>>, Error> {
        let mut found = Vec::with_capacity(blocks.len());
        for neighbours in blocks.chunk_by(|a, b| a.get() / FAN_OUT == b.get() / FAN_OUT) {
            let leaf = self.nodes_at(tree, 1, neighbours[0].get() / FAN_OUT, 1)?;
            let leaf = leaf.first().map(|(_, leaf)| leaf);
            found.extend(
                neighbours.iter().map(|block| leaf.and_then(|leaf| leaf.block(slot_of(block.get())))),
            );
        }
        Ok(found)
    }

    /// Gives every block of a disk that is not all zeros to `sink`, ascending, proven. What is not given
    /// reads as zeros.
    ///
    /// # Errors
    /// The first block or node that is missing or damaged, [`Error::NotWhole`] where a block has another
    /// size than its place on the disk, or [`Error::Io`] with the sink's error.
    pub fn read_disk(
        &self,
        tree: &Tree,
        sink: &mut dyn FnMut(ByteOffset, &[u8]) -> io::Result<()>,
    ) -> Result<(), Error> {
        seal::walk_leaves(&self.id_key, tree, &mut self.nodes(), &mut |index, leaf| {
            for slot in 0..FAN_OUT {
                let Some(id) = leaf.block(slot_of(slot)) else { continue };
                let block = BlockIndex::new(index * FAN_OUT + slot);
                let offset = super::tree::offset_of(block);
                let plain = self.read_block(id)?;
                let expected = tree.size.block_size_at(block).map(|size| size.get());
                if expected != Some(plain.len() as u64) {
                    let reason = format!("block {id} has {} bytes, which do not fit there", plain.len());
                    return Err(Error::NotWhole { offset, reason });
                }
                sink(offset, &plain).map_err(|source| Error::Io {
                    what: "write the block at",
                    path: offset.to_string().into(),
                    source,
                })?;
            }
            Ok(())
        })
    }
}

pub(super) fn slot_of(index: u64) -> usize {
    (index % FAN_OUT) as usize
}
