//! What opens an encrypted store, and what is encrypted in it: key slots, recovery kits, restore points, packs.

use super::{tagged, with_right_hash};
use ads::{Access, Depth, Passphrase, Scope, SlotKind, Store};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use seal::{BlockId, IdKey, KeyTable, KeyTablePlace, MasterKey, Opener, PackIndex, PackKind, PackWriter};
use serde_json::Value;
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

/// A store that another program made (`tests/format/write_sealed.py`), and what opens it.
const GOLDEN: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../orchestrator/crates/ads/tests/fixtures/golden");
const STORE: &str = "5d1c3c60-4a0b-4f5e-9a39-0d9f5c1f7b02";
const SLOT: &str = "keys/0f3c2c9e-75a4-4a6f-9a52-0c1d5c2b7e12.json";
/// One for an identity, and its id.
const RECIPIENT_SLOT: &str = "keys/0f3c2c9e-75a4-4a6f-9a52-0c1d5c2b7e13.json";
const RECIPIENT_SLOT_ID: &[u8] = b"0f3c2c9e-75a4-4a6f-9a52-0c1d5c2b7e13";
const PASSPHRASE: &str = "Grüße aus dem Tresor";
const FIRST_BYTE_OF_MASTER: u8 = 100;
const ID_KEY: [u8; 32] = counting_from(0);
/// Most of Argon2's memory, in KiB, and passes that a search pays for.
const CHEAP: (u32, u32) = (256, 4);
/// The members of a slot in their order (FORMAT.md).
const SLOT_MEMBERS: [&str; 12] = [
    "version",
    "id",
    "store",
    "created",
    "label",
    "kind",
    "memory_kib",
    "passes",
    "lanes",
    "salt",
    "recipient",
    "sealed",
];

const fn counting_from(first: u8) -> [u8; 32] {
    let mut bytes = [first; 32];
    let mut at = 1;
    while at < 32 {
        bytes[at] = bytes[at - 1] + 1;
        at += 1;
    }
    bytes
}

fn master() -> MasterKey {
    MasterKey::new(counting_from(FIRST_BYTE_OF_MASTER))
}

/// A file of the golden directory.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(GOLDEN).join(name)).expect("the fixture can be read")
}

/// Files of the golden directory below a folder whose names begin so, in an order that is always the same.
pub(crate) fn golden_files(folder: &str, begin: &str) -> Vec<Vec<u8>> {
    let mut found = files_below(&Path::new(GOLDEN).join(folder));
    found.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)));
    found.sort();
    found.iter().map(|path| fs::read(path).expect("the fixture can be read")).collect()
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the directory can be listed");
    let below = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.expect("readable").path();
        if path.is_dir() { files_below(&path) } else { vec![path] }
    };
    entries.flat_map(below).collect()
}

/// The store without its restore points and key slots, one for each thread.
struct Place {
    dir: tempfile::TempDir,
}

thread_local! {
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

impl Place {
    fn new() -> Self {
        let shared_memory = Path::new("/dev/shm");
        let dir = match shared_memory.is_dir() {
            true => tempfile::tempdir_in(shared_memory),
            false => tempfile::tempdir(),
        };
        let place = Self { dir: dir.expect("a directory can be made") };
        let root = Path::new(GOLDEN).join("sealed");
        for path in files_below(&root) {
            let name = path.strip_prefix(&root).expect("it is below it");
            if !name.starts_with("points") && !name.starts_with("keys") {
                place.write(name, &fs::read(&path).expect("the fixture can be read"));
            }
        }
        place
    }

    fn write(&self, name: impl AsRef<Path>, bytes: &[u8]) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a name")).expect("a directory can be made");
        fs::write(path, bytes).expect("a file can be written");
    }

    fn locked(&self) -> Store {
        Store::open(self.dir.path()).expect("nothing but a slot or a point is changed")
    }

    fn unlocked(&self) -> Store {
        let kit = String::from_utf8(golden("sealed-kit.txt")).expect("text");
        let mut store = self.locked();
        store.unlock(&Access::kit(&kit).expect("a kit")).expect("it is this store's");
        store
    }
}

fn in_place(run: impl FnOnce(&Place)) {
    PLACE.with_borrow_mut(|place| run(place.get_or_insert_with(Place::new)));
}

/// The only key slot of a store, which is then listed and tried. The first byte says how: as it is, with the check that its
/// members should have and as it would be written; or whether the rest is a file of identities.
pub fn key_slots(data: &[u8]) {
    let Some((tag, bytes)) = tagged(data) else { return };
    match tag % 3 {
        0 => in_place(|place| _ = try_slot(place, bytes)),
        1 => in_place(|place| _ = try_slot(place, &with_right_slot_check(bytes))),
        _ => {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            if let Err(error) = Access::identities(text) {
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

/// Whether it opened the store.
fn try_slot(place: &Place, bytes: &[u8]) -> bool {
    let is_recipients = bytes.windows(RECIPIENT_SLOT_ID.len()).any(|part| part == RECIPIENT_SLOT_ID);
    let name = if is_recipients { RECIPIENT_SLOT } else { SLOT };
    place.write(name, bytes);
    let mut store = place.locked();
    let found = store.key_slots().expect("the directory can be listed");
    assert_eq!(found.slots.len() + found.damaged.len(), 1);
    let affordable = found.slots.iter().all(|slot| match &slot.kind {
        SlotKind::Passphrase { cost } => cost.memory_kib <= CHEAP.0 && cost.passes <= CHEAP.1,
        SlotKind::Recipient { .. } => true,
    });
    let accesses = [Access::Passphrase(Passphrase::new(PASSPHRASE.into())), identity()];
    for access in accesses.iter().filter(|_| affordable) {
        match store.unlock(access) {
            Ok(()) => assert!(!store.is_locked() && found.damaged.is_empty()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    fs::remove_file(place.dir.path().join(name)).expect("a slot is only read");
    !store.is_locked()
}

/// The identity of the store's recipient, as text.
pub(crate) fn identity_text() -> String {
    let about: Value = serde_json::from_slice(&golden("sealed.json")).expect("JSON");
    about["identity"].as_str().expect("text").to_owned()
}

fn identity() -> Access {
    Access::identities(&identity_text()).expect("an identity of age")
}

/// The slot as it would be written with these values; unchanged where it is no JSON.
pub(crate) fn with_right_slot_check(slot: &[u8]) -> Vec<u8> {
    let Ok(Value::Object(members)) = serde_json::from_slice(slot) else { return slot.to_vec() };
    let (mut text, mut hasher) = (String::from("{\n"), blake3::Hasher::new());
    for (name, value) in SLOT_MEMBERS.iter().filter_map(|name| Some((name, members.get(*name)?))) {
        text.push_str(&format!("  \"{name}\": {value},\n"));
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        hasher.update(value.as_bytes());
        hasher.update(b"\n");
    }
    text.push_str(&format!("  \"check\": \"{}\"\n}}\n", hasher.finalize().to_hex()));
    text.into_bytes()
}

/// A recovery kit, as it is or, if the first byte is odd, with the checksums that its lines should have.
pub fn recovery_kits(data: &[u8]) {
    let Some((tag, bytes)) = tagged(data) else { return };
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let text = if tag % 2 == 1 { with_right_lines(text) } else { text.to_owned() };
    match Access::kit(&text) {
        Ok(kit) => in_place(|place| {
            let mut store = place.locked();
            let opened = store.unlock(&kit).is_ok();
            assert_eq!(store.is_locked(), !opened);
            if opened {
                assert_eq!(
                    store.master_key_bytes().expect("it is open").map(|key| key.0),
                    Some(*master().as_bytes())
                );
            }
        }),
        Err(error) => {
            // What was typed is a secret with a slip in it.
            let said = error.to_string();
            let digits = |word: &&str| word.len() >= 4 && word.bytes().all(|digit| digit.is_ascii_hexdigit());
            assert!(!said.is_empty());
            assert!(!text.split_whitespace().filter(digits).any(|word| said.contains(word)), "{said}");
        }
    }
}

pub(crate) fn with_right_lines(text: &str) -> String {
    text.lines().map(|line| with_right_check(line).unwrap_or_else(|| line.to_owned()) + "\n").collect()
}

fn with_right_check(line: &str) -> Option<String> {
    let mut words = line.split_whitespace();
    let number = words.next().filter(|word| word.eq_ignore_ascii_case("key")).and_then(|_| words.next())?;
    let digits: String = words.collect();
    let digits = digits.get(..16)?;
    let bytes = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
    let mut hasher = blake3::Hasher::new_derive_key("abd 2026-11 recovery kit line");
    hasher.update(format!("{STORE}\n{number}\n").as_bytes());
    hasher.update(&bytes);
    let [first, second, ..] = *hasher.finalize().as_bytes();
    Some(format!("key {number} {digits} {first:02x}{second:02x}"))
}

/// A restore point of an encrypted store, read with the key and without. The first byte says what the rest is: the file, all
/// of what is encrypted in it, or what is not.
pub fn sealed_points(data: &[u8]) {
    let Some((tag, bytes)) = tagged(data) else { return };
    let file = match tag % 3 {
        0 => Some(bytes.to_vec()),
        1 => sealed(bytes),
        _ => around_another(bytes),
    };
    if let Some(file) = file {
        in_place(|place| _ = try_point(place, &file));
    }
}

/// Whether it could be read with the key.
fn try_point(place: &Place, file: &[u8]) -> bool {
    let name = format!("points/{}.json", blake3::hash(file).to_hex());
    place.write(&name, file);
    let read = [place.locked(), place.unlocked()].map(|store| {
        let found = store.points().expect("the directory can be listed");
        assert_eq!(found.points.len() + found.damaged.len(), 1);
        let _ = store.verify(&Scope::All, Depth::Structure, &|_| {});
        found.points.into_iter().next()
    });
    let is_read = read[1].is_some();
    if let [locked, Some(opened)] = read {
        let locked = locked.expect("who has no key reads what who has one does").point;
        let opened = opened.point;
        let trees =
            |disks: &[ads::PointDisk]| disks.iter().map(|disk| (disk.tree, disk.tree_id)).collect::<Vec<_>>();
        assert_eq!(trees(&locked.disks), trees(&opened.disks));
        assert_eq!(
            (locked.version, locked.created, locked.base),
            (opened.version, opened.created, opened.base)
        );
    }
    // A store may have put it aside.
    let _ = fs::remove_file(place.dir.path().join(name));
    is_read
}

/// A document under the store's key, with what should stand outside as far as it has it.
pub(crate) fn sealed(document: &[u8]) -> Option<Vec<u8>> {
    let salt = [9; 32];
    let secret = [*master().as_bytes(), salt].concat();
    let key = blake3::derive_key("abd 2026-11 document key ChaCha20-Poly1305", &secret);
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &key).ok()?);
    let about = format!("abd restore point\n{STORE}\n");
    let mut bytes = document.to_vec();
    let nonce = Nonce::assume_unique_for_key([0; NONCE_LEN]);
    key.seal_in_place_append_tag(nonce, Aad::from(about.as_bytes()), &mut bytes).ok()?;
    let inside: Value = serde_json::from_slice(document).unwrap_or_else(|_| a_document());
    let disks = inside["disks"].as_array().cloned().unwrap_or_default();
    let trees =
        disks.iter().map(|disk| serde_json::json!({"tree": disk["tree"], "tree_id": disk["tree_id"]}));
    let outside = serde_json::json!({
        "version": inside["version"], "store": inside["store"], "created": inside["created"], "base": inside["base"],
        "disks": trees.collect::<Vec<_>>(),
        "sealed": {"salt": "09".repeat(32), "bytes": base64::Engine::encode(&base64::prelude::BASE64_STANDARD, bytes)},
    });
    Some(outside.to_string().into_bytes())
}

/// What stands outside of one point, around what is encrypted in another.
fn around_another(outside: &[u8]) -> Option<Vec<u8>> {
    let mut outside: Value = serde_json::from_slice(outside).ok()?;
    let another: Value = serde_json::from_slice(&golden_files("sealed/points", "").pop()?).ok()?;
    outside.as_object_mut()?.insert("sealed".into(), another["sealed"].clone());
    Some(outside.to_string().into_bytes())
}

/// A restore point as it is in a store that is not encrypted, of the encrypted one.
pub(crate) fn a_document() -> Value {
    let points = golden_files("store/points", "");
    let mut document: Value = serde_json::from_slice(&points[0]).expect("a point");
    document["store"] = STORE.into();
    document
}

/// A whole pack of an encrypted store, as it is and with the right hash: its tail is read, every block is tried, and all of
/// them are moved to another pack as a collector does that has no key.
pub fn encrypted_packs(data: &[u8]) {
    let _ = read_encrypted(data);
    if let Some(sealed) = with_right_hash(data) {
        let _ = read_encrypted(&sealed);
    }
}

/// Gives how many blocks opened.
fn read_encrypted(pack: &[u8]) -> usize {
    let index = match PackIndex::from_pack(pack) {
        Ok(index) => index,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return 0;
        }
    };
    let footer = &pack[pack.len() - seal::TRAILER_FOOTER_SIZE..];
    let place = KeyTablePlace::from_footer(footer, pack.len() as u64).expect("the index was read");
    assert_eq!(place.map(|place| place.cipher), index.cipher);
    let (Some(cipher), Some(place)) = (index.cipher, place) else {
        assert!(index.entries.iter().all(|entry| entry.lock.is_none()));
        return 0;
    };
    assert!(index.kind == PackKind::Data, "nodes are never encrypted");
    let keys =
        KeyTable::from_bytes(&pack[place.offset..place.offset + place.size], &place).expect("the same bytes");
    let mut opener = Opener::new().expect("zstd has memory");
    let key = IdKey::encrypted(&ID_KEY, master());
    let mut opened = 0;
    let mut moved = PackWriter::moving(cipher, pack.len());
    for (entry, at) in index.entries.iter().zip(0..) {
        let lock = entry.lock.expect("the pack is encrypted");
        assert_eq!(keys.lock(at, lock.counter), entry.lock);
        let sealed = entry.sealed(pack).expect("an index that was read lies within its pack");
        let id = BlockId::from_bytes(entry.id);
        if let Ok(plain) = opener.open_block(&key, id, sealed, entry.plain_size as usize) {
            assert_eq!(key.block_id(plain), id);
            opened += 1;
        }
        moved.push(entry.id, entry.plain_size as usize, sealed);
    }
    let moved = PackIndex::from_pack(&moved.finish().bytes).expect("our own pack");
    assert!(moved.entries == index.entries, "blocks keep salt and counter");
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_as_it_should_be_gets_to_the_end_of_every_target() {
        let slot = golden(&format!("sealed/{SLOT}"));
        in_place(|place| {
            assert!(try_slot(place, &slot));
            assert!(try_slot(place, &golden(&format!("sealed/{RECIPIENT_SLOT}"))));
            assert!(!try_slot(place, &slot[1..]));
            for point in golden_files("sealed/points", "") {
                assert!(try_point(place, &point));
            }
            let ours = sealed(a_document().to_string().as_bytes()).expect("it can be encrypted");
            assert!(try_point(place, &ours));
            assert!(!try_point(place, &around_another(&ours).expect("JSON")));
        });
        let blocks: usize = golden_files("sealed/packs", "").iter().map(|pack| read_encrypted(pack)).sum();
        assert_eq!(blocks, 6);
    }
}
