//! Encrypted stores: what opens them, what is seen without a key, and what is found when they are damaged.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{
    Access, Backend, Depth, Error, ErrorKind, GcOptions, KdfCost, NewAccess, Passphrase, Scope, SlotKind,
    Store, VerifyReport,
};
use age::secrecy::ExposeSecret;
use seal::{PackIndex, PackKind, PackWriter, Sealed};
use std::sync::Arc;
use support::memory::Memory;
use support::{backup, disk, pack_disk, restore, store_disk};

/// What a guest wrote, what its VM is called, and what must never be seen.
const MARKER: &[u8] = b"what nobody may read: 4711-0815";
/// What costs nothing: a passphrase is guessed here once or twice, and never by a stranger.
const CHEAP: KdfCost = KdfCost { memory_kib: 8, passes: 1, lanes: 1 };

fn new_passphrase(text: &str) -> NewAccess {
    NewAccess::Passphrase { passphrase: Passphrase::new(text.into()), cost: CHEAP }
}

fn passphrase(text: &str) -> Access {
    Access::Passphrase(Passphrase::new(text.into()))
}

fn encrypted() -> (Arc<Memory>, Store) {
    let memory = Arc::new(Memory::default());
    let store = Store::init_encrypted_on(memory.clone(), &[new_passphrase("first passphrase")]).unwrap();
    (memory, store)
}

fn open(memory: &Arc<Memory>, text: &str) -> Result<Store, Error> {
    unlocked(locked(memory), &passphrase(text))
}

fn unlocked(mut store: Store, access: &Access) -> Result<Store, Error> {
    store.unlock(access).map(|()| store)
}

fn locked(memory: &Arc<Memory>) -> Store {
    Store::open_on(memory.clone()).unwrap()
}

fn marked_disk() -> Vec<u8> {
    let mut bytes = disk(1, 5 * 65536 + 512);
    // In a block that nothing compresses and in one that shrinks.
    for at in [100, 65536 + 100] {
        bytes[at..at + MARKER.len()].copy_from_slice(MARKER);
    }
    bytes
}

fn verify(store: &Store, depth: Depth) -> VerifyReport {
    store.verify(&Scope::All, depth, &|_| ()).unwrap()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|part| part == wanted)
}

#[test]
fn a_disk_comes_back_with_the_passphrase_and_is_seen_nowhere() {
    let (memory, store) = encrypted();
    let bytes = marked_disk();
    let point = backup(&store, "a-secret-vm", &bytes).unwrap();
    let key = store.master_key_bytes().unwrap().unwrap().0;
    drop(store);
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, object) in memory.objects() {
        for secret in [MARKER, b"secret-vm", b"vcpus", b"first passphrase", &key, hex.as_bytes()] {
            assert!(!contains(&object, secret), "{name} shows {:?}", String::from_utf8_lossy(secret));
        }
    }
    let store = open(&memory, "first passphrase").unwrap();
    let stored = store.point(point).unwrap();
    assert_eq!(stored.point.vm.name, "name of a-secret-vm");
    assert!(!stored.is_locked());
    assert!(restore(&store, &stored.point.disks[0].tree).unwrap() == bytes);
    let report = verify(&store, Depth::EveryByte);
    assert!(report.is_clean() && report.blocks > 0 && report.unopened == 0, "{report:?}");
    // What is there is found again and not stored twice.
    let before = store.usage();
    store_disk(&store, &bytes).unwrap();
    let nodes_only = before.packs + 1;
    assert_eq!((store.usage().packs, store.usage().blocks), (nodes_only, before.blocks));
    assert!(!format!("{store:?} {:?}", store.master_key_bytes()).contains(&hex[..8]));
}

#[test]
fn a_locked_store_checks_lists_and_cleans_and_shows_nothing() {
    let (memory, store) = encrypted();
    let (first, mut half) = (marked_disk(), marked_disk());
    half[65536..].fill(0);
    let gone = backup(&store, "first", &first).unwrap();
    let kept = backup(&store, "half", &half).unwrap();
    drop(store);
    let store = Arc::new(locked(&memory));
    assert!(store.is_encrypted() && store.is_locked());
    let points = store.points().unwrap();
    assert!(points.damaged.is_empty());
    for stored in &points.points {
        assert!(stored.is_locked() && stored.point.vm.name == "(locked)", "{stored:?}");
        assert_eq!(stored.point.created, "2026-11-03T10:20:30Z");
        assert_eq!(stored.point.disks[0].tree.id(store.id_key()), stored.point.disks[0].tree_id);
    }
    for depth in [Depth::Structure, Depth::EveryByte] {
        let report = verify(&store, depth);
        assert!(report.is_clean() && report.blocks == 0 && report.nodes > 0, "{report:?}");
        assert_eq!(report.unopened > 0, depth == Depth::EveryByte);
    }
    let tree = points.points[0].point.disks[0].tree;
    let error = restore(&store, &tree).unwrap_err();
    assert!(matches!(error, Error::Damaged { source: seal::Error::Locked, .. }), "{error:?}");
    let again = backup(&store, "third", &[0; 512]).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Locked);
    // A collector without the key moves what is needed of a pack to another one.
    store.remove_point(gone).unwrap();
    let found = store.collect(&GcOptions { sparse_percent: 90, ..GcOptions::default() }, &|_, _| ()).unwrap();
    assert!(found.repacked == 1 && found.removed > 0, "{found:?}");
    drop(store);
    assert!(verify(&locked(&memory), Depth::EveryByte).is_clean());
    let store = open(&memory, "first passphrase").unwrap();
    assert!(verify(&store, Depth::EveryByte).is_clean());
    let stored = store.point(kept).unwrap();
    assert!(restore(&store, &stored.point.disks[0].tree).unwrap() == half);
    assert!(store.statistics(&|_, _| ()).unwrap().stored.get() > 0);
}

#[test]
fn what_does_not_open_a_store_is_told_what_would() {
    let (memory, store) = encrypted();
    drop(store);
    let error = open(&memory, "another passphrase").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(error.to_string().contains("the passphrase does not open its only key slot"), "{error}");
    let (identity, _) = identity();
    let error = unlocked(locked(&memory), &identity).unwrap_err();
    assert!(error.to_string().contains("no key slot for identity"), "{error}");
    let (other, other_store) = encrypted();
    let kit = other_store.recovery_kit().unwrap();
    let error = unlocked(locked(&memory), &Access::kit(&kit).unwrap()).unwrap_err();
    assert!(error.to_string().contains("is that of store"), "{error}");
    // Slots of another store open nothing here, also where it has the same passphrase.
    let slot = other.objects().into_iter().find(|(key, _)| key.starts_with("keys/")).unwrap();
    let mine = memory.objects().into_iter().find(|(key, _)| key.starts_with("keys/")).unwrap();
    memory.delete(&mine.0).unwrap();
    memory.put(&slot.0, &slot.1).unwrap();
    let error = open(&memory, "first passphrase").unwrap_err();
    assert!(error.to_string().contains("it belongs to store"), "{error}");
    let plain = Store::init_on(Arc::new(Memory::default())).unwrap();
    assert!(!unlocked(plain, &passphrase("any passphrase")).unwrap().is_locked());
}

/// An identity of age, as `age-keygen` writes it, and its recipient.
fn identity() -> (Access, String) {
    let identity = age::x25519::Identity::generate();
    let secret = identity.to_string();
    let text = format!("# created\n\n{}\n", secret.expose_secret());
    (Access::identities(&text).unwrap(), identity.to_public().to_string())
}

#[test]
fn recipients_open_a_store_and_kits_open_one_whose_slots_are_lost() {
    let (access, recipient) = identity();
    let memory = Arc::new(Memory::default());
    let new = [NewAccess::Recipient(recipient), new_passphrase("first passphrase")];
    let store = Store::init_encrypted_on(memory.clone(), &new).unwrap();
    let bytes = marked_disk();
    let point = backup(&store, "vm", &bytes).unwrap();
    let kit = store.recovery_kit().unwrap();
    drop(store);
    let store = unlocked(locked(&memory), &access).unwrap();
    let slots = store.key_slots().unwrap().slots;
    let opened = slots.iter().find(|slot| Some(slot.id) == store.opened_by()).unwrap();
    assert!(matches!(opened.kind, SlotKind::Recipient { .. }));
    drop(store);
    for (key, _) in memory.objects().into_iter().filter(|(key, _)| key.starts_with("keys/")) {
        memory.delete(&key).unwrap();
    }
    assert_eq!(open(&memory, "first passphrase").unwrap_err().kind(), ErrorKind::WrongKey);
    let store = unlocked(locked(&memory), &Access::kit(&kit).unwrap()).unwrap();
    let stored = store.point(point).unwrap();
    assert!(restore(&store, &stored.point.disks[0].tree).unwrap() == bytes);
    store.add_key(&new_passphrase("another passphrase"), "after the fire").unwrap();
    drop(store);
    assert!(open(&memory, "another passphrase").is_ok());
}

#[test]
fn a_changed_passphrase_opens_and_the_former_does_not() {
    let (memory, store) = encrypted();
    let bytes = marked_disk();
    let point = backup(&store, "vm", &bytes).unwrap();
    let store = {
        drop(store);
        open(&memory, "first passphrase").unwrap()
    };
    let old = store.opened_by().unwrap();
    for short in ["", "sieben7"] {
        let error = store.replace_key(old, &new_passphrase(short), "").unwrap_err();
        assert!(error.to_string().contains("at least 8 characters"), "{error}");
    }
    let new = store.replace_key(old, &new_passphrase("second passphrase"), "since May").unwrap();
    let slots = store.key_slots().unwrap().slots;
    assert_eq!(slots.iter().map(|slot| (slot.id, &*slot.label)).collect::<Vec<_>>(), [(new, "since May")]);
    let error = store.remove_key(new).unwrap_err();
    assert!(error.to_string().contains("is the last key slot"), "{error}");
    assert!(store.remove_key(old).unwrap_err().to_string().contains("there is no key slot"));
    drop(store);
    assert_eq!(open(&memory, "first passphrase").unwrap_err().kind(), ErrorKind::WrongKey);
    let store = open(&memory, "second passphrase").unwrap();
    assert!(restore(&store, &store.point(point).unwrap().point.disks[0].tree).unwrap() == bytes);
}

#[test]
fn what_is_encrypted_in_another_way_than_the_store_is_refused() {
    let (memory, store) = encrypted();
    let plain = Store::init_on(Arc::new(Memory::default())).unwrap();
    let bytes = marked_disk();
    let clear = pack_disk(plain.id_key(), &bytes, None, &mut |_| false).data.remove(0);
    let sealed = pack_disk(store.id_key(), &bytes, None, &mut |_| false).data.remove(0);
    for (store, pack) in [(&store, &clear), (&locked(&memory), &clear), (&plain, &sealed)] {
        let error = store.add_pack(pack.id, &pack.bytes).unwrap_err();
        assert!(matches!(error, Error::BadPack { source: seal::Error::Pack { .. }, .. }), "{error:?}");
    }
    // A block under another's id: who has no key takes it, who has one refuses it, and later finds it.
    let index = PackIndex::from_pack(&sealed.bytes).unwrap();
    let mut writer = PackWriter::moving(index.cipher.unwrap(), 1 << 20);
    let (first, second) = (&index.entries[0], &index.entries[1]);
    let Sealed { bytes, .. } = first.sealed(&sealed.bytes).unwrap();
    writer.push(second.id, 65536, Sealed { codec: first.codec, lock: first.lock, bytes });
    let lying = writer.finish();
    assert_eq!(PackIndex::from_pack(&lying.bytes).unwrap().kind, PackKind::Data);
    let error = store.add_pack(lying.id, &lying.bytes).unwrap_err();
    assert!(matches!(error, Error::BadPack { source: seal::Error::Forged, .. }), "{error:?}");
    locked(&memory).add_pack(lying.id, &lying.bytes).unwrap();
    let report = verify(&open(&memory, "first passphrase").unwrap(), Depth::EveryByte);
    assert_eq!(report.findings.len(), 1, "{report:?}");
}

/// Every byte of what is small, and a sample of the blocks; with the key and, but for what only the key can prove, without.
#[test]
fn a_flipped_byte_in_every_object_is_found_with_the_key_and_without() {
    let (memory, store) = encrypted();
    backup(&store, "vm", &disk(1, 65536 + 700)).unwrap();
    drop(store);
    let objects = memory.objects();
    assert!(objects.iter().any(|(key, _)| key.starts_with("keys/")));
    for (key, bytes) in &objects {
        let step = if key.starts_with("packs/") { bytes.len() / 40 } else { bytes.len() / 150 };
        for at in (0..bytes.len()).step_by(step.max(1)) {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            let others = objects.iter().filter(|(other, _)| other != key).cloned();
            let memory = Arc::new(Memory::of(others.chain([(key.clone(), bad)])));
            // A config that is damaged does not open; a slot that is leaves the kit, which the key below stands for.
            let Ok(locked) = Store::open_on(memory.clone()) else {
                assert_eq!(key, "config.json");
                continue;
            };
            let found = verify(&locked, Depth::EveryByte);
            assert!(!found.is_clean(), "byte {at} of {key}, without the key");
            let opened = unlocked(locked, &passphrase("first passphrase"));
            match opened {
                Ok(store) => assert!(!verify(&store, Depth::EveryByte).is_clean(), "byte {at} of {key}"),
                Err(error) => assert!(key.starts_with("keys/"), "{key}: {error}"),
            }
        }
    }
}

#[test]
fn a_point_whose_outside_is_not_its_inside_is_damaged() {
    let (memory, store) = encrypted();
    let (first, second) = (marked_disk(), disk(9, 3 * 65536));
    let ids = [backup(&store, "first", &first).unwrap(), backup(&store, "second", &second).unwrap()];
    let read = |id: ads::PointId| {
        let bytes = memory.get(&format!("points/{id}.json"), 1 << 20).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    };
    // The names of the first with the disks of the second: who has no key cannot tell.
    let mut swapped = read(ids[1]);
    swapped["sealed"] = read(ids[0])["sealed"].clone();
    let bytes = serde_json::to_vec_pretty(&swapped).unwrap();
    memory.put(&format!("points/{}.json", blake3::hash(&bytes)), &bytes).unwrap();
    assert_eq!(locked(&memory).points().unwrap().damaged.len(), 0);
    let found = store.points().unwrap();
    assert_eq!((found.points.len(), found.damaged.len()), (2, 1));
    assert!(found.damaged[0].reason.contains("something else"), "{:?}", found.damaged);
}

#[test]
fn a_store_that_nobody_could_open_is_not_made() {
    for access in [&[][..], &[new_passphrase("short")], &[NewAccess::Recipient("age1nobody".into())]] {
        let memory = Arc::new(Memory::default());
        let error = Store::init_encrypted_on(memory.clone(), access).unwrap_err();
        assert!(matches!(error, Error::KeyRefused { .. }), "{error:?}");
        assert_eq!(memory.objects(), []);
    }
}
