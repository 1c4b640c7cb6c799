//! What the store reads: packs, trees, and the files of a directory that somebody else may have written to.

use super::tagged;
use ads::{Depth, Scope, Store};
use blocks::ByteCount;
use seal::{
    BlockId, Error, FAN_OUT, IdKey, Node, NodeId, NodeSource, Opener, PackId, PackIndex, TRAILER_FOOTER_SIZE,
    TreeBuilder, walk_leaves,
};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Key of every id here.
const KEY: [u8; 32] = [7; 32];
/// Where in a pack's footer the hash ends that stands over the tables and the rest of the footer (FORMAT.md).
const HASH_SIZE: usize = 32;
/// Where in it the number of blocks stands.
const ENTRIES: std::ops::Range<usize> = 36..40;
/// And where the number of segments of the key table, which stands before the index.
const SEGMENTS: std::ops::Range<usize> = 43..47;
const ENTRY_SIZE: usize = seal::TRAILER_ENTRY_SIZE;
/// Children of a node.
const SLOTS: usize = FAN_OUT as usize;
/// Largest disk of [`trees`]: three levels.
const TREE_DISK: u64 = 1 << 40;

/// A whole pack, as it is and with the right hash over its index; every block in it is opened.
pub fn packs(data: &[u8]) {
    read_pack(data);
    if let Some(sealed) = with_right_hash(data) {
        read_pack(&sealed);
    }
}

fn read_pack(pack: &[u8]) {
    let index = match PackIndex::from_pack(pack) {
        Ok(index) => index,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let mut opener = Opener::new().expect("zstd has memory");
    for entry in &index.entries {
        let sealed = entry.sealed(pack).expect("an index that was read lies within its pack");
        if let Ok(plain) = opener.open(sealed, entry.plain_size as usize) {
            assert_eq!(plain.len(), entry.plain_size as usize);
        }
    }
}

/// The pack with the hash that its index should have.
pub(crate) fn with_right_hash(pack: &[u8]) -> Option<Vec<u8>> {
    let footer_at = pack.len().checked_sub(TRAILER_FOOTER_SIZE)?;
    let footer = &pack[footer_at..];
    let entries = u32::from_le_bytes(footer[ENTRIES].try_into().ok()?) as usize;
    let segments = u32::from_le_bytes(footer[SEGMENTS].try_into().ok()?) as usize;
    let tables = entries.checked_mul(ENTRY_SIZE)?.checked_add(segments.checked_mul(seal::SEGMENT_SIZE)?)?;
    let tables_at = footer_at.checked_sub(tables)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&pack[tables_at..footer_at]);
    hasher.update(&footer[HASH_SIZE..]);
    let mut right = pack.to_vec();
    right[footer_at..footer_at + HASH_SIZE].copy_from_slice(hasher.finalize().as_bytes());
    Some(right)
}

/// Nodes by id, in memory.
#[derive(Default)]
struct Nodes(BTreeMap<NodeId, Node>);

impl NodeSource for Nodes {
    type Error = Error;

    fn node(&mut self, id: NodeId, _: u8, _: u64) -> Result<Node, Error> {
        let absent = || Error::Sealed { reason: "there is no such node".into() };
        self.0.get(&id).cloned().ok_or_else(absent)
    }
}

/// A tree: eight bytes of the disk's size, then leaves of four bytes of index, one of slot, one of content. Built,
/// walked, and walked again with one node damaged.
pub fn trees(data: &[u8]) {
    let _ = Node::from_bytes(data);
    let Some((size, rest)) = data.split_first_chunk() else { return };
    let size = ByteCount::new(u64::from_le_bytes(*size) % TREE_DISK);
    let key = IdKey::new(&KEY);
    let leaf_count = size.blocks_ceil().get().div_ceil(FAN_OUT);
    let mut leaves: BTreeMap<u64, Node> = BTreeMap::new();
    for one in rest.as_chunks::<6>().0.iter().take(64) {
        let [a, b, c, d, slot, content] = *one;
        let Some(index) = u64::from(u32::from_le_bytes([a, b, c, d])).checked_rem(leaf_count) else { return };
        let id = (content > 0).then(|| BlockId::from_bytes([content; 32]));
        leaves.entry(index).or_default().set_block(usize::from(slot) % SLOTS, id);
    }
    let mut nodes = Nodes::default();
    let mut built = Vec::new();
    let mut emit = |id: NodeId, node: &Node| {
        built.push((id, node.clone()));
        Ok(())
    };
    let mut builder = TreeBuilder::new(key.clone(), size, None).expect("no base, no fault");
    for (index, leaf) in &leaves {
        builder.put_leaf(*index, leaf, &mut nodes, &mut emit).expect("a tree without a base reads nothing");
    }
    let tree = builder.finish(&mut nodes, &mut emit).expect("a tree without a base reads nothing");
    nodes.0.extend(built);
    leaves.retain(|_, leaf| leaf.id(&key).is_some());
    let mut walked = BTreeMap::new();
    let mut visit = |index: u64, node: &Node| {
        walked.insert(index, node.clone());
        Ok(())
    };
    walk_leaves(&key, &tree, &mut nodes, &mut visit).expect("every node is there");
    assert!(walked == leaves, "a tree holds what was put in");

    let damaged = data.len() % nodes.0.len().max(1);
    let Some((id, node)) = nodes.0.iter().nth(damaged).map(|(id, node)| (*id, node.clone())) else { return };
    let mut bytes = node.as_bytes().to_vec();
    bytes[usize::from(data[0])] ^= 1;
    let node = Node::from_bytes(&bytes).expect("as many bytes as before");
    nodes.0.insert(id, node);
    let found = walk_leaves(&key, &tree, &mut nodes, &mut |_, _| Ok(()));
    assert!(found.is_err(), "a damaged node is found");
}

/// A store in memory-backed files, one for each thread: what a target changes in it, it puts back.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    config: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let shared_memory = Path::new("/dev/shm");
        let dir = match shared_memory.is_dir() {
            true => tempfile::tempdir_in(shared_memory),
            false => tempfile::tempdir(),
        };
        let dir = dir.expect("a directory can be made");
        drop(Store::init(&dir.path().join("store")).expect("a store can be made"));
        let config = some_config();
        fs::write(dir.path().join("store/config.json"), &config).expect("a file can be written");
        Self { dir, config }
    }

    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// A config, the same one each time, with the key that every id here is made with.
pub(crate) fn some_config() -> Vec<u8> {
    let key: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
    let members = serde_json::json!({
        "format": "abd store", "version": 1, "id": "4bd9a1a4-6f0f-4d64-bd6e-2f4c0d1f9f10", "id_key": key,
        "encryption": "none",
    });
    with_right_check(members.to_string().as_bytes())
}

/// One file of a store's directory, which is then opened, listed and verified. The first byte says which: the config,
/// a restore point, a pack.
pub fn store_files(data: &[u8]) {
    let Some((tag, bytes)) = tagged(data) else { return };
    PLACE.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(Place::new);
        match tag % 4 {
            0 => with_file(place, "config.json", bytes),
            1 => with_file(place, "config.json", &with_right_check(bytes)),
            2 => {
                let id = blake3::hash(bytes).to_hex();
                with_file(place, &format!("points/{id}.json"), bytes);
            }
            _ => {
                let pack = with_right_hash(bytes).unwrap_or_else(|| bytes.to_vec());
                let id = PackId::of(&pack).to_string();
                let below = place.store().join("packs").join(&id[..2]);
                fs::create_dir_all(&below).expect("a directory can be made");
                with_file(place, &format!("packs/{}/{id}", &id[..2]), &pack);
                // Whatever is in it by now: the next input begins with none.
                let _ = fs::remove_dir_all(&below);
            }
        }
    });
}

fn with_file(place: &Place, name: &str, bytes: &[u8]) {
    let path = place.store().join(name);
    fs::write(&path, bytes).expect("a file can be written");
    if let Ok(store) = Store::open(&place.store()) {
        let points = store.points().expect("the directory can be listed");
        assert!(points.points.len() + points.damaged.len() <= 1);
        for depth in [Depth::Structure, Depth::EveryByte] {
            let _ = store.verify(&Scope::All, depth, &|_| {});
        }
    }
    match name {
        "config.json" => fs::write(&path, &place.config).expect("a file can be written"),
        // A store may have put it aside.
        _ => drop(fs::remove_file(&path)),
    }
}

/// The config with the check that its members should have.
fn with_right_check(config: &[u8]) -> Vec<u8> {
    let Ok(mut members) = serde_json::from_slice::<serde_json::Value>(config) else { return config.to_vec() };
    let member = |name: &str| match &members[name] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let text = ["format", "version", "id", "id_key", "encryption"].map(member).join("\n");
    if let Some(members) = members.as_object_mut() {
        members.insert("check".into(), blake3::hash(format!("{text}\n").as_bytes()).to_hex().as_str().into());
    }
    members.to_string().into_bytes()
}
