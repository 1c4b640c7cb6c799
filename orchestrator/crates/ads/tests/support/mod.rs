//! A test's own ABD: packs a synthetic disk as `FORMAT.md` says, and speaks `PROTOCOL.md` over real TLS.

#![allow(dead_code, reason = "every test file uses another part of it")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

pub mod client;
pub mod cluster;
pub mod crash;
pub mod faults;
pub mod late;
pub mod memory;
pub mod served;
pub mod servers;
pub mod suite;
pub mod turns;

use ads::{DiskKind, DiskMode, PointDisk, PointId, PointPool, PointVm, RestorePoint, Store};
use blocks::{BLOCK_SIZE, BlockIndex, ByteCount};
use seal::{
    BlockId, Cipher, Error, FAN_OUT, IdKey, MasterKey, Node, NodeId, NodeSource, Pack, PackKind, PackWriter,
    Sealer, Tree, TreeBuilder, is_zero,
};
use std::collections::HashMap;

/// Small packs, so that a small disk needs several.
pub const PACK_SIZE: usize = 256 << 10;

/// For copies that nobody ends.
pub const GO_ON: fn(&ads::CopyProgress<'_>) -> std::ops::ControlFlow<()> =
    |_| std::ops::ControlFlow::Continue(());

/// A disk as packs, ready to be sent.
pub struct Packed {
    pub tree: Tree,
    pub data: Vec<Pack>,
    pub nodes: Vec<Pack>,
}

/// Nodes of a base that were fetched before.
#[derive(Default, Clone)]
pub struct Nodes(pub HashMap<NodeId, Node>);

impl NodeSource for Nodes {
    type Error = Error;
    fn node(&mut self, id: NodeId, _level: u8, _index: u64) -> Result<Node, Error> {
        Ok(self.0.get(&id).expect("the base's nodes were fetched").clone())
    }
}

/// A disk whose blocks are made of a seed: some compress, some do not, every seventh is zero.
pub fn disk(seed: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for (index, block) in bytes.chunks_mut(BLOCK_SIZE as usize).enumerate() {
        if index % 7 == 6 {
            continue;
        }
        let noisy = if index % 3 == 0 { block.len() } else { 64.min(block.len()) };
        for byte in &mut block[..noisy] {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 24) as u8;
        }
        block[0] = 1;
    }
    bytes
}

/// Seals a disk; blocks that `known` says are there are left out.
pub fn pack_disk(
    key: &IdKey,
    bytes: &[u8],
    base: Option<(Tree, Nodes)>,
    known: &mut dyn FnMut(&BlockId) -> bool,
) -> Packed {
    let size = ByteCount::new(bytes.len() as u64);
    let (base, mut source) = match base {
        Some((tree, nodes)) => (Some(tree), nodes),
        None => (None, Nodes::default()),
    };
    let mut data = Packer::new(PackKind::Data, key);
    let mut fresh = Vec::new();
    let mut builder = TreeBuilder::new(key.clone(), size, base).unwrap();
    let mut sent = HashMap::new();
    let leaf_bytes = (FAN_OUT * BLOCK_SIZE) as usize;
    for (index, part) in bytes.chunks(leaf_bytes).enumerate() {
        let mut emit = |id: NodeId, node: &Node| {
            fresh.push((id, node.clone()));
            Ok(())
        };
        let mut leaf = builder.base_leaf(index as u64, &mut source, &mut emit).unwrap();
        for (slot, block) in part.chunks(BLOCK_SIZE as usize).enumerate() {
            if is_zero(block) {
                leaf.set_block(slot, None);
                continue;
            }
            let id = key.block_id(block);
            let unchanged = leaf.block(slot) == Some(id);
            leaf.set_block(slot, Some(id));
            if !unchanged && sent.insert(id, ()).is_none() && !known(&id) {
                data.push(*id.as_bytes(), block);
            }
        }
        builder.put_leaf(index as u64, &leaf, &mut source, &mut emit).unwrap();
    }
    let mut emit = |id: NodeId, node: &Node| {
        fresh.push((id, node.clone()));
        Ok(())
    };
    let tree = builder.finish(&mut source, &mut emit).unwrap();
    let mut nodes = Packer::new(PackKind::Tree, key);
    for (id, node) in &fresh {
        nodes.push(*id.as_bytes(), node.as_bytes());
    }
    Packed { tree, data: data.finish(), nodes: nodes.finish() }
}

/// Writes packs of [`PACK_SIZE`], encrypted where the store is.
pub struct Packer {
    kind: PackKind,
    master: Option<MasterKey>,
    writer: PackWriter,
    sealer: Sealer,
    done: Vec<Pack>,
}

impl Packer {
    pub fn new(kind: PackKind, key: &IdKey) -> Self {
        let master = key.master().filter(|_| kind == PackKind::Data).cloned();
        let writer = writer(kind, master.as_ref());
        Self { kind, master, writer, sealer: Sealer::new(1).unwrap(), done: Vec::new() }
    }

    pub fn push(&mut self, id: [u8; 32], plain: &[u8]) {
        if !self.writer.has_room(PACK_SIZE) {
            let full = std::mem::replace(&mut self.writer, writer(self.kind, self.master.as_ref()));
            self.done.push(full.finish());
        }
        self.writer.push(id, plain.len(), self.sealer.seal(plain).unwrap());
    }

    pub fn finish(mut self) -> Vec<Pack> {
        if !self.writer.is_empty() {
            self.done.push(self.writer.finish());
        }
        self.done
    }
}

fn writer(kind: PackKind, master: Option<&MasterKey>) -> PackWriter {
    match master {
        Some(master) => PackWriter::sealing(master.pack_seal(Cipher::fastest()).unwrap(), Vec::new()),
        None => PackWriter::new(kind, PACK_SIZE),
    }
}

/// Puts a disk into a store without a service, and gives its tree.
pub fn store_disk(store: &Store, bytes: &[u8]) -> Result<Tree, ads::Error> {
    let packed = pack_disk(store.id_key(), bytes, None, &mut |id| store.has_block(id));
    for pack in packed.data.iter().chain(&packed.nodes) {
        store.add_pack(pack.id, &pack.bytes)?;
    }
    store.finish_tree(packed.tree, None)?;
    Ok(packed.tree)
}

/// A restore point over these trees.
pub fn point(store: &Store, vm: &str, created: &str, trees: &[Tree]) -> RestorePoint {
    let disks = (0..).zip(trees).map(|(userdevice, tree)| PointDisk {
        vdi: format!("vdi-{userdevice}-of-{vm}"),
        name: format!("disk {userdevice}"),
        userdevice,
        kind: DiskKind::User,
        bootable: userdevice == 0,
        tree: *tree,
        tree_id: tree.id(store.id_key()),
        mode: DiskMode::Full,
        reason: "first backup".into(),
        cause: "first-backup".into(),
        counts: wire::DiskCounts::default(),
        reference: None,
        base: None,
        suspect: Vec::new(),
        bad: wire::BadRanges::default(),
    });
    RestorePoint {
        version: RestorePoint::VERSION,
        job: "job".into(),
        job_name: None,
        run: "run".into(),
        created: created.into(),
        store: store.id(),
        pool: PointPool { uuid: "pool-uuid".into(), name: "pool".into() },
        vm: PointVm {
            uuid: vm.into(),
            name: format!("name of {vm}"),
            metadata: serde_json::json!({"vcpus": 2}),
        },
        disks: disks.collect(),
        base: None,
        quiesced: false,
        checkpoint: false,
    }
}

/// Stores a disk and commits a restore point over it.
pub fn backup(store: &Store, vm: &str, bytes: &[u8]) -> Result<PointId, ads::Error> {
    let tree = store_disk(store, bytes)?;
    store.commit_point(&point(store, vm, "2026-11-03T10:20:30Z", &[tree]))
}

/// A disk read back out of a store.
pub fn restore(store: &Store, tree: &Tree) -> Result<Vec<u8>, ads::Error> {
    let mut bytes = vec![0; tree.size.to_usize().unwrap()];
    store.read_disk(tree, &mut |offset, plain| {
        let at = offset.get() as usize;
        bytes[at..at + plain.len()].copy_from_slice(plain);
        Ok(())
    })?;
    Ok(bytes)
}

/// An index that is written to disk with every pack that is new when a store is opened, below `dir`.
pub fn on_disk(dir: &std::path::Path) -> ads::IndexOptions {
    ads::IndexOptions { directory: Some(dir.to_owned()), table: 64, near: 64, fewest_packs: 1 }
}

/// A directory in memory where there is one: for what is synced often and need not outlive the machine.
pub fn fast_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Every file below a directory.
pub fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

/// The config of some other store.
pub fn other_config() -> Vec<u8> {
    use ads::Backend;
    let memory = std::sync::Arc::new(memory::Memory::default());
    drop(Store::init_on(memory.clone()).unwrap());
    memory.get("config.json", 10_000).unwrap()
}

pub fn block(index: u64) -> BlockIndex {
    BlockIndex::new(index)
}

/// The error with all of its causes, as the binary would print it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
