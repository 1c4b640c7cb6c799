//! An encrypted store, from the command that makes it to the kit that opens it when all else is lost.

use e2e::{Lab, Output, Vm, noise, text};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

const PASSPHRASE: &str = "the passphrase of these tests";
const MARKER: &[u8] = b"what nobody may read: 4711-0815";
const NAME: &str = "hidden-web01";

/// `abd` with a passphrase in its environment.
fn abd(lab: &Lab, passphrase: &str, arguments: &[&str]) -> Output {
    let mut command = lab.command(arguments);
    command.env("ABD_STORE_PASSPHRASE", passphrase);
    lab.finish(command)
}

/// A lab with an encrypted store, and a VM that was backed up in full and then by what changed.
fn backed_up() -> Option<(Lab, Vm)> {
    let lab = Lab::quick(&[])?;
    abd(&lab, PASSPHRASE, &["store", "init", "--encrypt", "--kdf-memory", "1"]).ok();
    assert_eq!(lab.abd(&["store", "info"]).ok().answer()["encrypted"], true);
    let vm = lab.vm(NAME, &[(6 << 20) + 512, 1 << 20]);
    lab.write(&vm.vdis[0], 0, &noise(1, 300_000));
    lab.write(&vm.vdis[0], 2 << 20, &text(2, 700_000));
    lab.write(&vm.vdis[0], (3 << 20) + 77, MARKER);
    abd(&lab, PASSPHRASE, &["backup", NAME]).ok();
    lab.write(&vm.vdis[0], (1 << 20) + 5, MARKER);
    let second = abd(&lab, PASSPHRASE, &["backup", NAME]).ok();
    assert_eq!(second.job(NAME)["disks"][0]["mode"], "cbt", "{}", second.job(NAME));
    Some((lab, vm))
}

fn newest_point(list: &Output) -> String {
    let points = list.answer()["points"].as_array().expect("a list");
    points.last().expect("a point")["id"].as_str().expect("an id").to_owned()
}

#[track_caller]
fn assert_restores(lab: &Lab, vm: &Vm, run: &dyn Fn(&[&str]) -> Output) {
    let point = newest_point(&run(&["list", NAME]).ok());
    let restored = run(&["restore", &point]).ok();
    let disks = restored.job(NAME)["disks"].as_array().expect("a list").clone();
    assert_eq!(disks.len(), vm.vdis.len());
    for (vdi, restored) in vm.vdis.iter().zip(&disks) {
        let copy = restored["vdi"].as_str().expect("a uuid");
        assert_eq!(lab.digest(copy), lab.digest(vdi), "{restored}");
    }
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|part| part == wanted)
}

/// The master key, as the kit prints it.
fn key_of(kit: &str) -> Vec<u8> {
    let lines = kit.lines().filter(|line| line.starts_with("key "));
    let digits: String =
        lines.flat_map(|line| line.split_whitespace().skip(2).take(4)).collect::<Vec<_>>().concat();
    let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hexadecimal digits");
    (0..64).step_by(2).map(byte).collect()
}

fn kit(lab: &Lab) -> String {
    let exported = abd(lab, PASSPHRASE, &["store", "key", "export"]).ok();
    exported.answer()["kit"].as_str().expect("text").to_owned()
}

#[test]
fn an_encrypted_backup_comes_back_and_shows_itself_nowhere() {
    let Some((lab, vm)) = backed_up() else { return };
    assert_restores(&lab, &vm, &|arguments| abd(&lab, PASSPHRASE, arguments));
    let verified = abd(&lab, PASSPHRASE, &["verify", "--read-data"]).ok();
    assert_eq!((&verified.answer()["clean"], &verified.answer()["unopened"]), (&true.into(), &0.into()));
    let key = key_of(&kit(&lab));
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let everywhere = [MARKER, &key, hex.as_bytes(), PASSPHRASE.as_bytes()];
    let state = lab.path("state");
    for path in files(&state).into_iter().chain([lab.path("sim.log")]) {
        let bytes = fs::read(&path).expect("a file");
        for secret in everywhere {
            assert!(
                !contains(&bytes, secret),
                "{} shows {:?}",
                path.display(),
                String::from_utf8_lossy(secret)
            );
        }
        assert!(!path.starts_with(lab.store()) || !contains(&bytes, NAME.as_bytes()), "{}", path.display());
    }
    let pool = lab.inventory().to_string();
    assert!(!contains(pool.as_bytes(), hex.as_bytes()) && !contains(pool.as_bytes(), PASSPHRASE.as_bytes()));
}

#[test]
fn without_its_key_a_store_is_checked_and_cleaned_and_gives_nothing_away() {
    let Some((lab, vm)) = backed_up() else { return };
    for arguments in [&["backup", NAME][..], &["show", "abcd"], &["store", "key", "export"]] {
        let said = lab.abd(arguments).fails_with(4);
        assert!(said.contains("is encrypted") && said.contains("--store-passphrase-file"), "{said}");
    }
    let said = abd(&lab, "some other passphrase", &["backup", NAME]).fails_with(4);
    assert!(said.contains("does not open its only key slot"), "{said}");
    let list = lab.abd(&["list"]).ok();
    let points = list.answer()["points"].as_array().expect("a list").clone();
    assert_eq!(points.len(), 2);
    assert!(points.iter().all(|point| !point.to_string().contains(NAME)), "{points:?}");
    let verified = lab.abd(&["verify", "--read-data"]).ok();
    assert!(verified.answer()["unopened"].as_u64() > Some(0), "{}", verified.answer());
    let first = points[0]["id"].as_str().expect("an id").to_owned();
    abd(&lab, PASSPHRASE, &["remove", &first, "--yes"]).ok();
    let collected = lab.abd(&["store", "gc", "--repack-below", "100"]).ok();
    assert!(collected.answer()["removed"].as_u64() > Some(0), "{}", collected.answer());
    assert_restores(&lab, &vm, &|arguments| abd(&lab, PASSPHRASE, arguments));
    abd(&lab, PASSPHRASE, &["verify", "--read-data"]).ok();
}

#[test]
fn a_changed_passphrase_and_a_recovery_kit_open_the_store_and_the_former_does_not() {
    let Some((lab, vm)) = backed_up() else { return };
    let paper = lab.path("kit.txt");
    fs::write(&paper, kit(&lab)).expect("written");
    let file = lab.path("new-passphrase");
    fs::write(&file, "a later passphrase\n").expect("written");
    let file = file.to_str().expect("a path of ours");
    let change = ["store", "key", "change", "--kdf-memory", "1", "--new-passphrase-file", file];
    let changed = abd(&lab, PASSPHRASE, &change).ok();
    abd(&lab, PASSPHRASE, &["store", "key", "export"]).fails_with(4);
    let slots = lab.abd(&["store", "key", "list"]).ok().answer()["slots"].clone();
    let ids: Vec<&Value> = slots.as_array().expect("a list").iter().map(|slot| &slot["id"]).collect();
    assert_eq!(ids, [&changed.answer()["added"]]);
    let last = changed.answer()["added"].as_str().expect("an id").to_owned();
    let later = |arguments: &[&str]| lab.abd(&[&["--store-passphrase-file", file], arguments].concat());
    let said = later(&["store", "key", "remove", &last]).fails_with(8);
    assert!(said.contains("is the last key slot"), "{said}");
    assert_restores(&lab, &vm, &later);
    for slot in files(&lab.store().join("keys")) {
        fs::remove_file(slot).expect("removed");
    }
    later(&["show", "abcd"]).fails_with(4);
    let paper = paper.to_str().expect("a path of ours");
    assert_restores(&lab, &vm, &|arguments| lab.abd(&[&["--recovery-kit", paper], arguments].concat()));
}
