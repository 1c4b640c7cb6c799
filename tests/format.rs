//! A store is read by `format/read_store.py`, which was written from FORMAT.md alone and shares no code with the product.
//! `ABD_FOREIGN_DIR` holds the Python that has its packages.

use e2e::{Lab, noise, sparse_digest, text};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The reader, or why it cannot run here.
struct Reader {
    python: PathBuf,
}

impl Reader {
    fn new() -> Option<Self> {
        let Some(dir) = std::env::var_os("ABD_FOREIGN_DIR") else {
            println!("skipped: ABD_FOREIGN_DIR is not set");
            return None;
        };
        let python = Path::new(&dir).join("venv/bin/python");
        let has =
            Command::new(&python).args(["-c", "import blake3, zstandard, cryptography, argon2"]).output();
        if !has.is_ok_and(|output| output.status.success()) {
            println!(
                "skipped: the Python packages blake3, zstandard, cryptography and argon2-cffi are not installed"
            );
            return None;
        }
        Some(Self { python })
    }

    /// With the passphrase of an encrypted store.
    fn read_with(&self, passphrase: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("format/read_store.py");
        let mut python = Command::new(&self.python);
        python.arg("-B").arg(script).args(arguments).env("ABD_STORE_PASSPHRASE", passphrase);
        python.output().expect("Python starts")
    }

    fn read(&self, arguments: &[&str]) -> Output {
        self.run("read_store.py", arguments)
    }

    fn run(&self, script: &str, arguments: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("format").join(script);
        Command::new(&self.python).arg("-B").arg(script).args(arguments).output().expect("Python starts")
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_reader_that_knows_the_document_alone_restores_every_disk() {
    let (Some(reader), Some(lab)) = (Reader::new(), Lab::quick(&[])) else { return };
    // More blocks than a node has children, an odd end, and one with nothing in it.
    let vm = lab.vm("web01", &[(17 << 20) + 512, 512, 4 << 20]);
    lab.write(&vm.vdis[0], 0, &noise(1, 300_000));
    lab.write(&vm.vdis[0], 9 << 20, &text(2, 3_000_000));
    lab.write(&vm.vdis[0], (17 << 20) + 100, &[7; 412]);
    lab.write(&vm.vdis[1], 0, &noise(3, 512));
    let mut held = Vec::new();
    for round in 0..2 {
        lab.backup(&[&vm]).ok();
        held.push(vm.vdis.iter().map(|vdi| lab.digest(vdi)).collect::<Vec<_>>());
        lab.write(&vm.vdis[0], 5 << 20, &noise(10 + round, 100_000));
    }
    let store = lab.store();
    let store = store.to_str().expect("a path of ours");
    let list = reader.read(&[store]);
    assert!(list.status.success() && said(&list).contains("web01"), "{}", said(&list));
    let points = lab.points(&vm.uuid);
    assert_eq!(points.len(), held.len());
    for (stored, held) in points.iter().zip(held) {
        assert_eq!(stored.point.disks.len(), held.len());
        for (at, disk) in stored.point.disks.iter().enumerate() {
            let file = lab.path("read.img");
            let name = file.to_str().expect("a path of ours");
            let output = reader.read(&[store, &stored.id.to_string(), &at.to_string(), name]);
            assert!(output.status.success(), "{}", said(&output));
            let bytes = std::fs::read(&file).expect("written");
            let found = json!({"size": bytes.len(), "sparse_sha256": sparse_digest(&bytes)});
            let live = vm.vdis.iter().position(|vdi| *vdi == disk.vdi).expect("a disk of the VM");
            assert_eq!(found, held[live], "disk {at} of {}", stored.id);
        }
    }
}

#[test]
fn a_reader_that_knows_the_document_alone_restores_from_an_encrypted_store() {
    let (Some(reader), Some(lab)) = (Reader::new(), Lab::quick(&[])) else { return };
    let passphrase = "the passphrase of this test";
    let abd = |arguments: &[&str]| {
        let mut command = lab.command(arguments);
        command.env("ABD_STORE_PASSPHRASE", passphrase);
        lab.finish(command).ok()
    };
    abd(&["store", "init", "--encrypt", "--kdf-memory", "1"]);
    let vm = lab.vm("web01", &[(5 << 20) + 512]);
    lab.write(&vm.vdis[0], 0, &noise(1, 300_000));
    lab.write(&vm.vdis[0], 2 << 20, &text(2, 1_000_000));
    abd(&["backup", "web01"]);
    let list = abd(&["list"]).answer()["points"].clone();
    let point = list[0]["id"].as_str().expect("an id").to_owned();
    let store = lab.store();
    let store = store.to_str().expect("a path of ours");
    let list = reader.read_with(passphrase, &[store]);
    assert!(list.status.success() && said(&list).contains("web01"), "{}", said(&list));
    let file = lab.path("read.img");
    let name = file.to_str().expect("a path of ours");
    let output = reader.read_with(passphrase, &[store, &point, "0", name]);
    assert!(output.status.success(), "{}", said(&output));
    let bytes = std::fs::read(&file).expect("written");
    let found = json!({"size": bytes.len(), "sparse_sha256": sparse_digest(&bytes)});
    assert_eq!(found, lab.digest(&vm.vdis[0]));
    let refused = reader.read_with("another passphrase", &[store]);
    assert!(!refused.status.success() && said(&refused).contains("opens no key slot"), "{}", said(&refused));
}

#[test]
fn a_reader_that_knows_the_document_alone_finds_a_flipped_bit_in_every_kind_of_file() {
    let (Some(reader), Some(lab)) = (Reader::new(), Lab::quick(&[])) else { return };
    let vm = lab.vm("web01", &[2 << 20]);
    lab.write(&vm.vdis[0], 0, &noise(1, 200_000));
    lab.backup(&[&vm]).ok();
    let store = lab.store();
    let name = store.to_str().expect("a path of ours");
    let entries = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).expect("a folder of the store");
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let packs = entries(store.join("packs")).into_iter().flat_map(entries);
    let mut files = vec![store.join("config.json")];
    files.extend(packs.chain(entries(store.join("points"))));
    assert!(files.len() >= 4, "a configuration, two packs and a point: {files:?}");
    for file in files {
        let whole = std::fs::read(&file).expect("a file of the store");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        std::fs::write(&file, &flipped).expect("written");
        let output = reader.read(&[name]);
        assert!(!output.status.success(), "{} is damaged and nobody noticed", file.display());
        std::fs::write(&file, &whole).expect("written");
    }
    assert!(reader.read(&[name]).status.success());
}

/// Each file below a directory, with its bytes.
fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below it").to_owned();
                found.insert(name, std::fs::read(path).expect("readable"));
            }
        }
    }
    found
}

/// Stores that exist must be read for ever, so what the program is tested with does not change unnoticed.
#[test]
fn the_objects_that_are_kept_are_those_that_the_document_gives() {
    let Some(reader) = Reader::new() else { return };
    let kept = golden();
    let dir = tempfile::tempdir().expect("a directory");
    for script in ["write_objects.py", "write_sealed.py"] {
        let output = reader.run(script, &[dir.path().to_str().expect("a path of ours")]);
        assert!(output.status.success(), "{script}: {}", said(&output));
    }
    let (kept, written) = (contents(&kept), contents(dir.path()));
    let names = |found: &BTreeMap<PathBuf, Vec<u8>>| found.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&kept), names(&written));
    for (name, bytes) in kept {
        assert!(written[&name] == bytes, "{}", name.display());
    }
}

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../orchestrator/crates/ads/tests/fixtures/golden")
}

/// Both were written from the document alone, so what one writes and the other reads is what the document says.
#[test]
fn a_reader_that_knows_the_document_alone_reads_the_encrypted_store_that_is_kept() {
    let Some(reader) = Reader::new() else { return };
    let about = std::fs::read(golden().join("sealed.json")).expect("readable");
    let about: serde_json::Value = serde_json::from_slice(&about).expect("JSON");
    let passphrase = about["passphrase"].as_str().expect("text");
    let store = golden().join("sealed");
    let store = store.to_str().expect("a path of ours");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("read.img");
    let name = file.to_str().expect("a path of ours");
    let (point, expected) =
        about["points"].as_object().expect("points").iter().next_back().expect("there are some");
    for (at, digest) in expected["sha256"].as_array().expect("disks").iter().enumerate() {
        let output = reader.read_with(passphrase, &[store, point, &at.to_string(), name]);
        assert!(output.status.success(), "{}", said(&output));
        let bytes = std::fs::read(&file).expect("written");
        let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, &found, "disk {at}");
    }
}
