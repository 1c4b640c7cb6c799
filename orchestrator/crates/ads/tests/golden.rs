//! Objects that were not written by this program: a whole store, and one object for each way of being wrong. They are
//! kept as they are in `fixtures/golden`; `tests/format/write_objects.py` wrote them by FORMAT.md alone. A store that
//! exists must be read by every later program: where a test of this file fails, change the program and not the files.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{Depth, GcOptions, Scope, Store};
use seal::PackId;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden().join(name)).unwrap()).unwrap()
}

/// A copy of the store, so that nothing that is done to it lasts.
fn copy() -> TempDir {
    fn below(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => below(&entry.path(), &to.join(entry.file_name())),
                false => fs::write(to.join(entry.file_name()), fs::read(entry.path()).unwrap()).unwrap(),
            }
        }
    }
    let dir = TempDir::new().unwrap();
    below(&golden().join("store"), dir.path());
    dir
}

fn sha256(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_store_of_another_writer_is_read_in_full() {
    let dir = copy();
    let store = Store::open(dir.path()).unwrap();
    assert!(store.skipped_packs().is_empty());
    let expected = json("store.json");
    let points = store.points().unwrap();
    assert!(points.damaged.is_empty(), "{:?}", points.damaged);
    assert_eq!(points.points.len(), expected.as_object().unwrap().len());
    for stored in &points.points {
        let expected = &expected[stored.id.to_string()];
        assert_eq!(expected["version"], stored.point.version);
        let disks = stored.point.disks.iter().map(|disk| support::restore(&store, &disk.tree).unwrap());
        let found: Vec<String> = disks.map(|bytes| sha256(&bytes)).collect();
        assert_eq!(expected["sha256"], serde_json::json!(found), "{}", stored.id);
        let known_bad = if stored.point.version >= 3 { 512 } else { 0 };
        assert_eq!(stored.point.disks[0].bad.bytes.get(), known_bad);
    }
    let newest = points.points.last().unwrap().id;
    assert!(store.pins().unwrap().contains_key(&newest));
    let report = store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn a_collector_keeps_all_that_another_writer_wrote() {
    let dir = copy();
    let before = support::files(dir.path());
    let store = Arc::new(Store::open(dir.path()).unwrap());
    for _ in 0..3 {
        let options = GcOptions { grace: Duration::ZERO, ..GcOptions::default() };
        store.collect(&options, &|_, _| ()).unwrap();
    }
    drop(store);
    let after = support::files(dir.path());
    let lost: Vec<_> = before.iter().filter(|file| !after.contains(file)).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

/// What a reader says about the store with this object in it.
fn complaint(what: &str, bytes: &[u8]) -> String {
    let dir = copy();
    match what {
        "config" => {
            fs::write(dir.path().join("config.json"), bytes).unwrap();
            Store::open(dir.path()).unwrap_err().to_string()
        }
        "pack" => {
            let store = Store::open(dir.path()).unwrap();
            let id = PackId::of(bytes);
            let refused = support::chain(&store.add_pack(id, bytes).unwrap_err());
            // Somebody else may have put it there all the same.
            let path = dir.path().join(format!("packs/{}/{id}", &id.to_string()[..2]));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
            assert!(is_found(dir.path()), "verify does not see it");
            refused
        }
        "point" => {
            let name = blake3::hash(bytes).to_hex();
            fs::write(dir.path().join(format!("points/{name}.json")), bytes).unwrap();
            let store = Store::open(dir.path()).unwrap();
            let report = store.verify(&Scope::All, Depth::Structure, &|_| ()).unwrap();
            report.findings.iter().map(|finding| format!("{}; ", finding.reason)).collect()
        }
        _ => panic!("what is a {what}?"),
    }
}

fn is_found(dir: &Path) -> bool {
    let store = Store::open(dir).unwrap();
    !store.verify(&Scope::All, Depth::EveryByte, &|_| ()).unwrap().is_clean()
}

#[test]
fn every_defect_is_refused_in_words_that_say_which() {
    let table = json("defects.json");
    let table = table.as_array().unwrap();
    assert_eq!(table.len(), fs::read_dir(golden().join("defects")).unwrap().count());
    for row in table {
        let [what, file, says] = ["what", "file", "says"].map(|member| row[member].as_str().unwrap());
        let said = complaint(what, &fs::read(golden().join("defects").join(file)).unwrap());
        assert!(said.contains(says), "{file}: '{says}' is not in: {said}");
    }
}
