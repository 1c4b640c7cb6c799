//! The tree over a disk's block ids.
//!
//! A node of level 1 holds the ids of [`FAN_OUT`] neighbouring blocks, a node of level n + 1 the ids of
//! [`FAN_OUT`] neighbouring nodes of level n. Node (level, index) stands for blocks
//! `index * FAN_OUT^level ..`. A child that is all zeros on the disk is absent: 32 zero bytes. A node whose
//! children are all absent is itself absent. Subtrees that did not change keep their ids, so that an
//! incremental stores only the nodes above changed blocks.

use crate::{BlockId, Error, IdKey, NodeId, TreeId};
use blocks::ByteCount;
use serde::{Deserialize, Serialize};

/// Children of a node: of the sizes that keep trees shallow the one that costs an incremental least, see `FORMAT.md`.
pub const FAN_OUT: u64 = 64;
/// Bytes of every node.
pub const NODE_SIZE: usize = FAN_OUT as usize * 32;
/// Most levels: those of the largest disk.
pub const MAX_LEVELS: u8 = 5;

const ABSENT: [u8; 32] = [0; 32];

const _: () = assert!(NODE_SIZE == 2048);
const _: () = assert!(blocks::MAX_DISK_SIZE.blocks_ceil().get() <= FAN_OUT.pow(MAX_LEVELS as u32));

/// A disk's content as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Size of the disk.
    pub size: ByteCount,
    /// The top node; `None` where every byte is zero.
    pub root: Option<NodeId>,
}

/// One node: [`FAN_OUT`] child ids.
#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    bytes: Box<[u8; NODE_SIZE]>,
}

/// Gives the nodes of one tree by id. The position is a hint for sources that read ahead.
pub trait NodeSource {
    /// What can go wrong.
    type Error: From<Error>;

    /// The bytes of node `id`, which stands at (`level`, `index`) of its tree. Callers check the id.
    ///
    /// # Errors
    /// Where the node cannot be had.
    fn node(&mut self, id: NodeId, level: u8, index: u64) -> Result<Node, Self::Error>;
}

/// A tree that cannot be made or walked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The base belongs to a larger disk.
    #[error("the base tree is of a disk of {base}, the disk has only {size}")]
    Shrunk {
        /// Size of the base.
        base: ByteCount,
        /// Size of the disk.
        size: ByteCount,
    },
}

impl Tree {
    /// The id that proves this disk.
    pub fn id(&self, key: &IdKey) -> TreeId {
        key.tree_id(self.size.get(), self.root)
    }

    /// Levels of nodes; at least one.
    pub fn levels(&self) -> u8 {
        levels(self.size)
    }
}

/// Levels of nodes above the blocks of a disk of `size`: 1 up to 4 MiB, 2 up to 256 MiB, 3 up to 16 GiB, 4 up to 1 TiB.
pub fn levels(size: ByteCount) -> u8 {
    let blocks = size.blocks_ceil().get();
    let mut levels = 1;
    let mut reach = FAN_OUT;
    while reach < blocks {
        reach = reach.saturating_mul(FAN_OUT);
        levels += 1;
    }
    levels
}

impl Default for Node {
    fn default() -> Self {
        Self { bytes: Box::new([0; NODE_SIZE]) }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let present = (0..FAN_OUT as usize).filter(|slot| self.slot(*slot) != &ABSENT).count();
        write!(f, "Node({present} children)")
    }
}

impl Node {
    /// From exactly [`NODE_SIZE`] bytes.
    ///
    /// # Errors
    /// [`Error::NodeSize`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let bytes: [u8; NODE_SIZE] =
            bytes.try_into().map_err(|_| Error::NodeSize { expected: NODE_SIZE, found: bytes.len() })?;
        Ok(Self { bytes: Box::new(bytes) })
    }

    /// All bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..]
    }

    /// The node's id; `None` where all children are absent.
    pub fn id(&self, key: &IdKey) -> Option<NodeId> {
        (!crate::is_zero(self.as_bytes())).then(|| key.node_id(self.as_bytes()))
    }

    /// Child block of a level 1 node.
    ///
    /// # Panics
    /// If `slot` is not below [`FAN_OUT`].
    pub fn block(&self, slot: usize) -> Option<BlockId> {
        present(self.slot(slot)).map(BlockId::from_bytes)
    }

    /// Child node of a node above level 1.
    ///
    /// # Panics
    /// If `slot` is not below [`FAN_OUT`].
    pub fn child(&self, slot: usize) -> Option<NodeId> {
        present(self.slot(slot)).map(NodeId::from_bytes)
    }

    /// Sets a child block of a level 1 node.
    ///
    /// # Panics
    /// If `slot` is not below [`FAN_OUT`].
    pub fn set_block(&mut self, slot: usize, id: Option<BlockId>) {
        self.set(slot, id.map_or(ABSENT, |id| *id.as_bytes()));
    }

    fn set_child(&mut self, slot: usize, id: Option<NodeId>) {
        self.set(slot, id.map_or(ABSENT, |id| *id.as_bytes()));
    }

    fn slot(&self, slot: usize) -> &[u8; 32] {
        self.bytes[slot * 32..slot * 32 + 32].try_into().expect("32 bytes")
    }

    fn set(&mut self, slot: usize, id: [u8; 32]) {
        self.bytes[slot * 32..slot * 32 + 32].copy_from_slice(&id);
    }
}

fn present(id: &[u8; 32]) -> Option<[u8; 32]> {
    (id != &ABSENT).then_some(*id)
}

/// Builds a disk's tree from its changed level 1 nodes, given in ascending order. Holds one node per level,
/// whatever the size of the disk.
#[derive(Debug)]
pub struct TreeBuilder {
    key: IdKey,
    size: ByteCount,
    /// Nodes above the root of a base that has fewer levels: not in the store yet.
    wrappers: Vec<(NodeId, Node)>,
    wrappers_emitted: bool,
    /// The open node of level n stands at n - 2: level 1 nodes come in finished.
    open: Vec<Option<Open>>,
    /// Starts as the base's root, brought up to this disk's number of levels.
    root: Option<NodeId>,
    next_leaf: u64,
}

#[derive(Debug)]
struct Open {
    index: u64,
    node: Node,
}

impl TreeBuilder {
    /// A tree for a disk of `size` that starts as `base`, or as all zeros.
    ///
    /// # Errors
    /// [`TreeError::Shrunk`] if the base is larger than the disk.
    pub fn new(key: IdKey, size: ByteCount, base: Option<Tree>) -> Result<Self, TreeError> {
        let top = levels(size);
        let mut root = None;
        let mut wrappers = Vec::new();
        if let Some(base) = base {
            if base.size > size {
                return Err(TreeError::Shrunk { base: base.size, size });
            }
            root = base.root;
            for _ in base.levels()..top {
                let mut node = Node::default();
                node.set_child(0, root);
                root = node.id(&key);
                wrappers.extend(root.map(|id| (id, node)));
            }
        }
        let open = (1..top).map(|_| None).collect();
        Ok(Self { key, size, wrappers, wrappers_emitted: false, open, root, next_leaf: 0 })
    }

    /// The base's level 1 node at `index`, or an empty one. Ask in ascending order, before
    /// [`put_leaf`](Self::put_leaf) of the same index.
    ///
    /// # Errors
    /// What the source or `emit` says.
    pub fn base_leaf<S: NodeSource>(
        &mut self,
        index: u64,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<Node, S::Error> {
        let id = self.current_id(1, index, source, emit)?;
        self.load(id, 1, index, source)
    }

    /// Replaces the level 1 node at `index` (blocks `index * FAN_OUT ..`). `emit` gets every node that is not
    /// in the base, children before parents.
    ///
    /// # Errors
    /// What the source or `emit` says.
    ///
    /// # Panics
    /// If `index` does not rise from call to call, or lies past the end of the disk.
    pub fn put_leaf<S: NodeSource>(
        &mut self,
        index: u64,
        leaf: &Node,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        assert!(index >= self.next_leaf, "leaves come in ascending order");
        assert!(index < self.size.blocks_ceil().get().div_ceil(FAN_OUT), "leaf is past the end");
        self.next_leaf = index + 1;
        self.emit_wrappers(emit)?;
        self.put(1, index, leaf, source, emit)
    }

    /// Closes the open nodes and gives the tree.
    ///
    /// # Errors
    /// What the source or `emit` says.
    pub fn finish<S: NodeSource>(
        mut self,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<Tree, S::Error> {
        self.emit_wrappers(emit)?;
        for level in 2..=self.top() {
            self.close(level, source, emit)?;
        }
        Ok(Tree { size: self.size, root: self.root })
    }

    fn top(&self) -> u8 {
        levels(self.size)
    }

    fn emit_wrappers<E>(&mut self, emit: &mut impl FnMut(NodeId, &Node) -> Result<(), E>) -> Result<(), E> {
        if !std::mem::replace(&mut self.wrappers_emitted, true) {
            self.wrappers.iter().try_for_each(|(id, node)| emit(*id, node))?;
        }
        Ok(())
    }

    /// Id that the tree under construction has at (`level`, `index`) so far.
    fn current_id<S: NodeSource>(
        &mut self,
        level: u8,
        index: u64,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<Option<NodeId>, S::Error> {
        if level == self.top() {
            return Ok(self.root);
        }
        let parent = self.open_at(level + 1, index / FAN_OUT, source, emit)?;
        Ok(parent.child(slot_of(index)))
    }

    fn put<S: NodeSource>(
        &mut self,
        level: u8,
        index: u64,
        node: &Node,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        let id = node.id(&self.key);
        if id == self.current_id(level, index, source, emit)? {
            return Ok(());
        }
        if let Some(id) = id {
            emit(id, node)?;
        }
        if level == self.top() {
            self.root = id;
        } else {
            self.open_at(level + 1, index / FAN_OUT, source, emit)?.set_child(slot_of(index), id);
        }
        Ok(())
    }

    /// The open node at (`level`, `index`); closes its predecessor and loads the base's where needed.
    fn open_at<S: NodeSource>(
        &mut self,
        level: u8,
        index: u64,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<&mut Node, S::Error> {
        let at = usize::from(level - 2);
        if self.open[at].as_ref().is_none_or(|open| open.index != index) {
            self.close(level, source, emit)?;
            let id = self.current_id(level, index, source, emit)?;
            let node = self.load(id, level, index, source)?;
            self.open[at] = Some(Open { index, node });
        }
        Ok(&mut self.open[at].as_mut().expect("opened above").node)
    }

    fn close<S: NodeSource>(
        &mut self,
        level: u8,
        source: &mut S,
        emit: &mut impl FnMut(NodeId, &Node) -> Result<(), S::Error>,
    ) -> Result<(), S::Error> {
        match self.open[usize::from(level - 2)].take() {
            Some(open) => self.put(level, open.index, &open.node, source, emit),
            None => Ok(()),
        }
    }

    fn load<S: NodeSource>(
        &self,
        id: Option<NodeId>,
        level: u8,
        index: u64,
        source: &mut S,
    ) -> Result<Node, S::Error> {
        let Some(id) = id else { return Ok(Node::default()) };
        match self.wrappers.iter().find(|(wrapper, _)| *wrapper == id) {
            Some((_, node)) => Ok(node.clone()),
            None => checked_node(&self.key, id, level, index, source),
        }
    }
}

/// Visits every level 1 node that is not absent, ascending, checking every node on the way.
///
/// # Errors
/// What the source or the visitor says.
pub fn walk_leaves<S: NodeSource>(
    key: &IdKey,
    tree: &Tree,
    source: &mut S,
    visit: &mut impl FnMut(u64, &Node) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    match tree.root {
        Some(root) => walk(key, root, tree.levels(), 0, source, visit),
        None => Ok(()),
    }
}

fn walk<S: NodeSource>(
    key: &IdKey,
    id: NodeId,
    level: u8,
    index: u64,
    source: &mut S,
    visit: &mut impl FnMut(u64, &Node) -> Result<(), S::Error>,
) -> Result<(), S::Error> {
    let node = checked_node(key, id, level, index, source)?;
    if level == 1 {
        return visit(index, &node);
    }
    for slot in 0..FAN_OUT as usize {
        if let Some(child) = node.child(slot) {
            walk(key, child, level - 1, index * FAN_OUT + slot as u64, source, visit)?;
        }
    }
    Ok(())
}

fn checked_node<S: NodeSource>(
    key: &IdKey,
    id: NodeId,
    level: u8,
    index: u64,
    source: &mut S,
) -> Result<Node, S::Error> {
    let node = source.node(id, level, index)?;
    let found = key.node_id(node.as_bytes());
    if found == id { Ok(node) } else { Err(Error::NodeId { expected: id, found }.into()) }
}

fn slot_of(index: u64) -> usize {
    (index % FAN_OUT) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, HashMap};

    #[derive(Default)]
    struct Store {
        nodes: HashMap<NodeId, Node>,
        fetched: usize,
    }

    impl NodeSource for Store {
        type Error = Error;
        fn node(&mut self, id: NodeId, _level: u8, _index: u64) -> Result<Node, Error> {
            self.fetched += 1;
            Ok(self.nodes.get(&id).expect("node was emitted before it is asked for").clone())
        }
    }

    type Content = BTreeMap<u64, u8>;

    fn block(key: &IdKey, value: u8) -> Option<BlockId> {
        (value != 0).then(|| key.block_id(&[value]))
    }

    /// Applies `changes` to `base`, returns the tree and how many nodes it added.
    fn build(
        key: &IdKey,
        store: &mut Store,
        size: ByteCount,
        base: Option<Tree>,
        changes: &Content,
    ) -> (Tree, usize) {
        let mut builder = TreeBuilder::new(key.clone(), size, base).expect("no shrink");
        let mut leaves: BTreeMap<u64, Vec<(usize, u8)>> = BTreeMap::new();
        for (index, value) in changes {
            leaves.entry(index / FAN_OUT).or_default().push((slot_of(*index), *value));
        }
        let mut added = HashMap::new();
        let mut emit = |id: NodeId, node: &Node| {
            added.insert(id, node.clone());
            Ok(())
        };
        for (index, blocks) in leaves {
            let mut leaf = builder.base_leaf(index, store, &mut emit).expect("base");
            for (slot, value) in blocks {
                leaf.set_block(slot, block(key, value));
            }
            builder.put_leaf(index, &leaf, store, &mut emit).expect("put");
        }
        let tree = builder.finish(store, &mut emit).expect("finish");
        let count = added.len();
        store.nodes.extend(added);
        (tree, count)
    }

    fn read(key: &IdKey, store: &mut Store, tree: &Tree) -> BTreeMap<u64, BlockId> {
        let mut found = BTreeMap::new();
        walk_leaves(key, tree, store, &mut |index, leaf| {
            for slot in 0..FAN_OUT as usize {
                if let Some(id) = leaf.block(slot) {
                    found.insert(index * FAN_OUT + slot as u64, id);
                }
            }
            Ok(())
        })
        .expect("walk");
        found
    }

    fn disk(blocks: u64) -> ByteCount {
        ByteCount::new(blocks * blocks::BLOCK_SIZE)
    }

    #[test]
    fn levels_at_every_edge() {
        for (blocks, expected) in
            [(0, 1), (1, 1), (64, 1), (65, 2), (4096, 2), (4097, 3), (1 << 24, 4), ((1 << 24) + 1, 5)]
        {
            assert_eq!(levels(disk(blocks)), expected, "{blocks} blocks");
        }
        assert_eq!(levels(blocks::MAX_DISK_SIZE), MAX_LEVELS);
    }

    #[test]
    fn a_disk_of_zeros_has_no_nodes() {
        let key = IdKey::new(&[1; 32]);
        let (tree, added) = build(&key, &mut Store::default(), disk(1 << 24), None, &Content::from([(5, 0)]));
        assert_eq!((tree.root, added), (None, 0));
    }

    #[test]
    fn one_changed_block_adds_one_node_per_level() {
        let key = IdKey::new(&[1; 32]);
        let mut store = Store::default();
        let first: Content = (0..200_000).step_by(35).map(|i| (i, 1)).collect();
        let (base, _) = build(&key, &mut store, disk(200_000), None, &first);
        store.fetched = 0;
        let (tree, added) = build(&key, &mut store, disk(200_000), Some(base), &Content::from([(70_000, 9)]));
        assert_eq!(added, 3);
        assert_eq!(store.fetched, 3);
        assert_ne!(tree.id(&key), base.id(&key));
        let (same, added) = build(&key, &mut store, disk(200_000), Some(base), &Content::from([(70, 1)]));
        assert_eq!((same, added), (base, 0));
    }

    #[test]
    fn a_base_of_a_larger_disk_is_refused() {
        let base = Tree { size: disk(2), root: None };
        let error = TreeBuilder::new(IdKey::new(&[1; 32]), disk(1), Some(base)).expect_err("shrunk");
        assert_eq!(error, TreeError::Shrunk { base: disk(2), size: disk(1) });
    }

    #[test]
    fn a_damaged_node_is_named() {
        let key = IdKey::new(&[1; 32]);
        let mut store = Store::default();
        let (tree, _) = build(&key, &mut store, disk(1), None, &Content::from([(0, 1)]));
        let root = tree.root.expect("not zero");
        store.nodes.insert(root, Node::default());
        let error = walk_leaves(&key, &tree, &mut store, &mut |_, _| Ok(())).expect_err("damaged");
        assert!(matches!(error, Error::NodeId { expected, .. } if expected == root));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        /// Whatever the history of changes and growth, the tree equals one built from scratch.
        #[test]
        fn history_does_not_matter(
            steps in proptest::collection::vec(
                (0u64..90_000, proptest::collection::btree_map(0u64..90_000, 0u8..4, 0..30)), 1..6),
        ) {
            let key = IdKey::new(&[1; 32]);
            let mut store = Store::default();
            let mut base = None;
            let mut content = Content::new();
            let mut blocks = 1;
            for (grow, changes) in steps {
                blocks = blocks.max(grow);
                let changes: Content = changes.into_iter().filter(|(index, _)| *index < blocks).collect();
                let (tree, _) = build(&key, &mut store, disk(blocks), base, &changes);
                content.extend(changes);
                base = Some(tree);
            }
            let tree = base.expect("at least one step");
            let mut fresh = Store::default();
            let (scratch, _) = build(&key, &mut fresh, disk(blocks), None, &content);
            prop_assert_eq!(tree.id(&key), scratch.id(&key));
            let expected: BTreeMap<u64, BlockId> =
                content.iter().filter_map(|(i, v)| Some((*i, block(&key, *v)?))).collect();
            prop_assert_eq!(read(&key, &mut store, &tree), expected);
        }
    }
}
