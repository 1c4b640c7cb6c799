//! Objects that were not written by this program: whole stores, in the clear and encrypted, and one object for each way of
//! being wrong. They are kept as they are in `fixtures/golden`; `tests/format/write_objects.py` and `write_sealed.py` wrote
//! them by FORMAT.md alone. A store that exists must be read by every later program: where a test of this file fails, change
//! the program and not the files.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Access, Depth, Error, GcOptions, Passphrase, PointId, Scope, Store, VerifyReport};
use seal::{Cipher, PackId, PackIndex};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden().join(name)).unwrap()).unwrap()
}

/// A copy of a store, so that nothing that is done to it lasts.
fn copy(store: &str) -> TempDir {
    fn below(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => below(&entry.path(), &to.join(entry.file_name())),
                false => fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap(),
            }
        }
    }
    // In memory: hundreds of stores are made here, and none need outlive the machine.
    let shared_memory = Path::new("/dev/shm");
    let dir = if shared_memory.is_dir() { TempDir::new_in(shared_memory) } else { TempDir::new() };
    let dir = dir.unwrap();
    below(&golden().join(store), dir.path());
    dir
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn verify(store: &Store, depth: Depth) -> VerifyReport {
    store.verify(&Scope::All, depth, &|_| ()).unwrap()
}

/// Every reason of a verification.
fn findings(store: &Store, depth: Depth) -> String {
    verify(store, depth).findings.iter().map(|finding| format!("{}; ", finding.reason)).collect()
}

/// Every disk of every point has the bytes that its writer knows.
fn assert_read_in_full(store: &Store, expected: &Value) {
    assert!(store.skipped_packs().is_empty());
    let points = store.points().unwrap();
    assert!(points.damaged.is_empty(), "{:?}", points.damaged);
    assert_eq!(points.points.len(), expected.as_object().unwrap().len());
    for stored in &points.points {
        let expected = &expected[stored.id.to_string()];
        assert_eq!(expected["version"], stored.point.version);
        assert_eq!(stored.point.vm.name, "web01");
        let disks = stored.point.disks.iter().map(|disk| support::restore(store, &disk.tree).unwrap());
        let found: Vec<String> = disks.map(|bytes| sha256(&bytes)).collect();
        assert_eq!(expected["sha256"], serde_json::json!(found), "{}", stored.id);
        let known_bad = if stored.point.version >= 3 { 512 } else { 0 };
        assert_eq!(stored.point.disks[0].bad.bytes.get(), known_bad);
    }
    let report = verify(store, Depth::EveryByte);
    assert!(report.is_clean() && report.blocks > 0 && report.unopened == 0, "{report:?}");
}

#[test]
fn a_store_of_another_writer_is_read_in_full() {
    let dir = copy("store");
    let store = Store::open(dir.path()).unwrap();
    assert_read_in_full(&store, &json("store.json"));
    let newest = store.points().unwrap().points.last().unwrap().id;
    assert!(store.pins().unwrap().contains_key(&newest));
}

fn passphrase() -> Access {
    Access::Passphrase(Passphrase::new(json("sealed.json")["passphrase"].as_str().unwrap().into()))
}

fn identity() -> Access {
    Access::identities(json("sealed.json")["identity"].as_str().unwrap()).unwrap()
}

fn kit() -> Access {
    Access::kit(&fs::read_to_string(golden().join("sealed-kit.txt")).unwrap()).unwrap()
}

fn unlocked(dir: &Path, access: &Access) -> Result<Store, Error> {
    let mut store = Store::open(dir)?;
    store.unlock(access).map(|()| store)
}

#[test]
fn an_encrypted_store_of_another_writer_is_read_in_full_by_passphrase_identity_and_kit() {
    let dir = copy("sealed");
    let expected = json("sealed.json");
    for access in [passphrase(), identity(), kit()] {
        let store = unlocked(dir.path(), &access).unwrap();
        assert!(store.is_encrypted() && !store.is_locked());
        assert_read_in_full(&store, &expected["points"]);
        let slots = store.key_slots().unwrap();
        assert!(slots.damaged.is_empty());
        assert_eq!(slots.slots.len(), 2);
        let opened_by = match access {
            Access::Passphrase(_) => expected["slot"].as_str(),
            Access::Identities(_) => expected["recipient_slot"].as_str(),
            Access::Kit(_) => None,
        };
        assert_eq!(store.opened_by().map(|id| id.to_string()).as_deref(), opened_by);
        // What we would print is what the other writer did, among words.
        let (ours, theirs) =
            (store.recovery_kit().unwrap(), fs::read(golden().join("sealed-kit.txt")).unwrap());
        for line in String::from_utf8(theirs).unwrap().lines() {
            let digits = |text: &str| text.split_whitespace().collect::<String>();
            assert!(ours.lines().any(|our| digits(our) == digits(line)), "{line}");
        }
    }
    let wrong = Access::Passphrase(Passphrase::new("Grüsse aus dem Tresor".into()));
    assert!(matches!(unlocked(dir.path(), &wrong), Err(Error::WrongKey { .. })));
    // What this test is about is there: both ciphers, and blocks that a collector moved.
    let packs = support::files(&dir.path().join("packs")).into_iter().map(|path| fs::read(path).unwrap());
    let packs: Vec<PackIndex> = packs.map(|bytes| PackIndex::from_pack(&bytes).unwrap()).collect();
    let with = |cipher| packs.iter().filter(move |pack| pack.cipher == cipher);
    assert_eq!(
        [Some(Cipher::Aes256Gcm), Some(Cipher::ChaCha20Poly1305), None].map(|cipher| with(cipher).count()),
        [2, 1, 1]
    );
    let salts = |pack: &PackIndex| pack.entries.iter().map(|entry| entry.lock.unwrap().salt).collect();
    assert!(with(Some(Cipher::Aes256Gcm)).any(|pack| {
        let salts: std::collections::HashSet<_> = salts(pack);
        salts.len() == 2
    }));
}

#[test]
fn who_has_no_key_checks_another_writers_store_and_sees_no_name() {
    let dir = copy("sealed");
    let store = Store::open(dir.path()).unwrap();
    assert!(store.is_locked());
    let points = store.points().unwrap();
    assert!(points.damaged.is_empty() && points.points.len() == 3);
    for stored in &points.points {
        assert!(stored.is_locked());
        assert_eq!((&*stored.point.vm.name, &*stored.point.pool.name), ("(locked)", "(locked)"));
        for disk in &stored.point.disks {
            assert_eq!(disk.name, "(locked)");
            assert_eq!(disk.tree.id(store.id_key()), disk.tree_id);
        }
        let refused = support::restore(&store, &stored.point.disks[0].tree).unwrap_err();
        assert!(matches!(refused, Error::Damaged { source: seal::Error::Locked, .. }), "{refused:?}");
    }
    for depth in [Depth::Structure, Depth::EveryByte] {
        let report = verify(&store, depth);
        assert!(report.is_clean() && report.nodes > 0 && report.blocks == 0, "{report:?}");
        assert_eq!(report.unopened > 0, depth == Depth::EveryByte);
    }
    for file in support::files(dir.path()) {
        let bytes = fs::read(&file).unwrap();
        for secret in [&b"web01"[..], b"system", b"nightly", b"Tresor", &[0x11; 64]] {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret), "{}", file.display());
        }
    }
}

#[test]
fn a_collector_keeps_all_that_another_writer_wrote_and_needs_no_key() {
    for name in ["store", "sealed"] {
        let dir = copy(name);
        let before = support::files(dir.path());
        let store = Arc::new(Store::open(dir.path()).unwrap());
        assert_eq!(store.is_locked(), name == "sealed");
        for _ in 0..3 {
            // What stands in two packs is needed in one: a pack of which too little is would be written anew.
            let options = GcOptions { grace: Duration::ZERO, sparse_percent: 0, ..GcOptions::default() };
            store.collect(&options, &|_, _| ()).unwrap();
        }
        drop(store);
        let after = support::files(dir.path());
        let lost: Vec<_> = before.iter().filter(|file| !after.contains(file)).collect();
        assert!(lost.is_empty(), "{lost:?}");
    }
}

/// What is in a store beside packs and points: other writers' leases, lists, floor and quarantine mean what ours do.
#[test]
fn a_store_that_another_writer_works_with_is_read_and_nothing_is_taken_from_under_him() {
    let dir = copy("busy");
    let expected = json("busy.json");
    let id = |member: &str| expected[member].as_str().unwrap();
    let pack_file = |id: &str| dir.path().join(format!("packs/{}/{id}", &id[..2]));
    let uncommitted = expected["uncommitted"].as_array().unwrap();
    let uncommitted: Vec<_> = uncommitted.iter().map(|id| pack_file(id.as_str().unwrap())).collect();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    // The quarantined pack is damaged where it stands, and no part of the store.
    assert!(pack_file(id("quarantined")).exists());
    assert_eq!((store.usage().packs, store.usage().skipped), (5, 0));
    assert!(verify(&store, Depth::EveryByte).is_clean());
    assert_eq!(expected["floor_days"], store.floor_days().unwrap());
    let point: PointId = id("whole").parse().unwrap();
    let refused = store.remove_point(point).unwrap_err();
    assert!(matches!(refused, Error::FloorHolds { days: 30, .. }), "{refused}");

    let hour = Duration::from_secs(3600);
    let condemned_at = Duration::from_secs(expected["condemned_at"].as_u64().unwrap());
    let collect = |after: Duration| {
        let now = SystemTime::UNIX_EPOCH + condemned_at + after;
        store.collect(&GcOptions { now, ..GcOptions::default() }, &|_, _| ()).unwrap()
    };
    let found = collect(hour);
    assert!(found.removed == 0 && found.dead.is_empty() && found.waits_for.len() == 2, "{found:?}");
    assert!(pack_file(id("unneeded")).exists() && uncommitted.iter().all(|pack| pack.exists()));
    // A day later the leases have not moved: they are the dead's.
    let found = collect(50 * hour);
    assert!(found.removed == 3 && found.dead.len() == 2, "{found:?}");
    assert!(!pack_file(id("unneeded")).exists() && uncommitted.iter().all(|pack| !pack.exists()));
    assert!(verify(&store, Depth::EveryByte).is_clean(), "a condemned pack that is needed stays");

    // Of two points that lack the same, a backup finds that out of the one that the list names.
    let points = store.points().unwrap().points;
    let lacking = |store: &Store, which: &str| {
        let chosen = points.iter().filter(|stored| stored.id.to_string() == which);
        store.first_lacking(chosen).unwrap().map(|(stored, _)| stored.id.to_string())
    };
    assert_eq!(lacking(&store, id("lost")), None, "it was healed");
    drop(store);
    fs::remove_file(pack_file(id("kept"))).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(lacking(&store, id("lost")).as_deref(), Some(id("lost")));
    assert_eq!(lacking(&store, id("whole")), None);
}

/// Puts a pack where it belongs, as somebody may who has no part in this program.
fn place_pack(dir: &Path, bytes: &[u8]) {
    let id = PackId::of(bytes).to_string();
    let path = dir.join(format!("packs/{}/{id}", &id[..2]));
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn place_point(dir: &Path, bytes: &[u8]) {
    fs::write(dir.join(format!("points/{}.json", blake3::hash(bytes).to_hex())), bytes).unwrap();
}

/// What a reader says about the store with this object in it.
fn complaint(what: &str, bytes: &[u8]) -> String {
    let dir = copy("store");
    match what {
        "config" => {
            fs::write(dir.path().join("config.json"), bytes).unwrap();
            Store::open(dir.path()).unwrap_err().to_string()
        }
        "pack" => {
            let store = Store::open(dir.path()).unwrap();
            let refused = support::chain(&store.add_pack(PackId::of(bytes), bytes).unwrap_err());
            place_pack(dir.path(), bytes);
            let store = Store::open(dir.path()).unwrap();
            assert!(!verify(&store, Depth::EveryByte).is_clean(), "verify does not see it");
            refused
        }
        "point" => {
            place_point(dir.path(), bytes);
            findings(&Store::open(dir.path()).unwrap(), Depth::Structure)
        }
        "slot" => {
            let dir = dir.path();
            fs::create_dir_all(dir.join("keys")).unwrap();
            fs::write(
                dir.join(format!("keys/{}.json", json("sealed.json")["slot"].as_str().unwrap())),
                bytes,
            )
            .unwrap();
            findings(&Store::open(dir).unwrap(), Depth::Structure)
        }
        _ => panic!("what is a {what}?"),
    }
}

/// What a reader with the key says about the encrypted store with this object in it, and what one without; nothing where
/// that one sees nothing wrong.
fn complaints(what: &str, bytes: &[u8]) -> [Option<String>; 2] {
    if let Some(what) = what.strip_prefix("clear-") {
        return [Some(complaint(what, bytes)), None];
    }
    let dir = copy("sealed");
    let some = |text: String| (!text.is_empty()).then_some(text);
    match what {
        "config" => {
            fs::write(dir.path().join("config.json"), bytes).unwrap();
            let locked = Store::open(dir.path()).err().map(|error| error.to_string());
            [unlocked(dir.path(), &passphrase()).err().map(|error| error.to_string()), locked]
        }
        "slot" => {
            let slot = format!("keys/{}.json", json("sealed.json")["slot"].as_str().unwrap());
            fs::write(dir.path().join(slot), bytes).unwrap();
            let refused = unlocked(dir.path(), &passphrase()).unwrap_err();
            assert!(matches!(refused, Error::WrongKey { .. }), "{refused:?}");
            // Whoever has the kit still reads everything.
            let store = unlocked(dir.path(), &kit()).unwrap();
            let [by_kit, locked] =
                [&store, &Store::open(dir.path()).unwrap()].map(|store| findings(store, Depth::EveryByte));
            assert_eq!(by_kit, locked);
            [Some(refused.to_string()), some(locked)]
        }
        "kit" => {
            let opened = Access::kit(std::str::from_utf8(bytes).unwrap());
            let refused = opened.and_then(|kit| unlocked(dir.path(), &kit)).unwrap_err();
            [Some(refused.to_string()), None]
        }
        "pack" => [Some(passphrase()), None].map(|access| {
            let dir = copy("sealed");
            let open = || match &access {
                Some(access) => unlocked(dir.path(), access).unwrap(),
                None => Store::open(dir.path()).unwrap(),
            };
            let refused = open().add_pack(PackId::of(bytes), bytes).err();
            place_pack(dir.path(), bytes);
            let report = verify(&open(), Depth::EveryByte);
            assert_eq!(report.is_clean(), refused.is_none(), "{report:?} after {refused:?}");
            refused.map(|error| support::chain(&error))
        }),
        "point" => {
            place_point(dir.path(), bytes);
            let stores = [unlocked(dir.path(), &passphrase()).unwrap(), Store::open(dir.path()).unwrap()];
            stores.map(|store| some(findings(&store, Depth::Structure)))
        }
        _ => panic!("what is a {what}?"),
    }
}

/// The rows of a table of defects, with the bytes of each; every file of the directory has one.
fn defects(name: &str) -> Vec<(Value, Vec<u8>)> {
    let dir = golden().join(name);
    let table = json(&format!("{name}.json"));
    let table = table.as_array().unwrap();
    assert_eq!(table.len(), fs::read_dir(&dir).unwrap().count());
    let bytes = |row: &Value| fs::read(dir.join(row["file"].as_str().unwrap())).unwrap();
    table.iter().map(|row| (row.clone(), bytes(row))).collect()
}

#[test]
fn every_defect_is_refused_in_words_that_say_which() {
    for (row, bytes) in defects("defects") {
        let [what, file, says] = ["what", "file", "says"].map(|member| row[member].as_str().unwrap());
        let said = complaint(what, &bytes);
        assert!(said.contains(says), "{file}: '{says}' is not in: {said}");
    }
}

#[test]
fn every_defect_of_an_encrypted_store_is_refused_with_the_key_and_where_it_can_be_without() {
    for (row, bytes) in defects("sealed-defects") {
        let [what, file] = ["what", "file"].map(|member| row[member].as_str().unwrap());
        let expected = ["says", "says_without_key"].map(|member| row[member].as_str());
        for (who, (says, said)) in
            ["with", "without"].iter().zip(expected.iter().zip(complaints(what, &bytes)))
        {
            match (says, &said) {
                (Some(says), Some(said)) => {
                    assert!(said.contains(says), "{file}, {who} the key: '{says}' is not in: {said}");
                }
                _ => assert_eq!(says.is_some(), said.is_some(), "{file}, {who} the key: {said:?}"),
            }
        }
    }
}
