//! Wrong input: one clear error that names the object and the remedy, its exit code, and nothing changed.

use e2e::{Lab, Options, noise, text};
use std::fs;

const MIB: u64 = 1 << 20;

fn unknown_pool() -> Option<Lab> {
    Lab::with(Options { without_pool: true, without_template: true, ..Default::default() })
}

#[test]
fn a_wrong_password() {
    let Some(lab) = unknown_pool() else { return };
    let file = lab.path("wrong");
    fs::write(&file, "not the password\n").expect("written");
    let (url, file) = (lab.url(), file.display().to_string());
    let before = lab.inventory();
    let text = lab.abd(&lab.pool_arguments(&url, &lab.ports.fingerprint, &file)).fails_with(4);
    assert!(text.contains("password"), "{text}");
    assert_eq!(lab.inventory(), before);
    lab.abd(&["backup", "web01"]).fails_with(3);
}

#[test]
fn an_unreachable_pool() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("web01", &[MIB]);
    // Port 1 of loopback: nobody listens there.
    let password = lab.ports.password_file.display().to_string();
    let mut arguments = lab.pool_arguments("https://127.0.0.1:1", &lab.ports.fingerprint, &password);
    let name = arguments.iter().position(|argument| *argument == "lab").expect("its name");
    arguments[name] = "other";
    let text = lab.abd(&arguments).fails_with(5);
    assert!(text.contains("127.0.0.1:1"), "{text}");
    lab.backup(&[&vm]).ok();
}

#[test]
fn a_certificate_that_is_not_trusted_and_one_that_changed() {
    let Some(lab) = unknown_pool() else { return };
    let (url, password) = (lab.url(), lab.ports.password_file.display().to_string());
    // Nobody is there to ask: the fingerprint is shown, and nothing is recorded.
    let text = lab.abd(&["pool", "add", &url, "--password-file", &password]).fails_with(6);
    let shown = lab.ports.fingerprint.replace(':', "").to_lowercase();
    assert!(text.contains(&shown), "{text}");
    let other = "ab".repeat(32);
    let text = lab.abd(&lab.pool_arguments(&url, &other, &password)).fails_with(6);
    assert!(text.contains(&other) && text.contains(&shown), "both fingerprints are named: {text}");
    let list = lab.abd(&["pool", "list"]).ok();
    assert_eq!(list.answer()["pools"], serde_json::json!([]));
}

#[test]
fn a_template_that_is_missing_truncated_or_of_another_version() {
    let Some(lab) = Lab::with(Options { without_template: true, ..Default::default() }) else { return };
    let vm = lab.vm("web01", &[MIB]);
    let before = lab.inventory();
    let text = lab.backup(&[&vm]).fails_with(7);
    assert!(text.contains("abd template import"), "{text}");

    let whole = fs::read(lab.template()).expect("built");
    for (name, bytes) in
        [("cut.xva", &whole[..whole.len() / 2]), ("short.xva", &whole[..700]), ("empty.xva", &[][..])]
    {
        let path = lab.path(name).display().to_string();
        fs::write(&path, bytes).expect("written");
        let text = lab.abd(&["template", "import", &path]).fails_with(7);
        assert!(text.contains(name), "{text}");
    }
    let mut flipped = whole.clone();
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    let path = lab.path("flipped.xva").display().to_string();
    fs::write(&path, &flipped).expect("written");
    lab.abd(&["template", "import", &path]).fails_with(7);
    let text = lab.abd(&["template", "import", "/nonexistent.xva"]).fails_with(7);
    assert!(text.contains("/nonexistent.xva"), "{text}");
    assert_eq!(lab.inventory(), before, "nothing was imported");

    // A template of an older version, as an upgrade of the orchestrator leaves it.
    lab.abd(&["template", "import", &lab.template()]).ok();
    let list = lab.abd(&["template", "list"]).ok();
    let uuid = list.answer()["templates"][0]["uuid"].as_str().expect("a uuid").to_owned();
    lab.set_vm_other_config(&uuid, "abd:template", "0.0.1");
    let text = lab.backup(&[&vm]).fails_with(7);
    assert!(text.contains("0.0.1") && text.contains("abd template import"), "{text}");
}

#[test]
fn a_vm_name_that_matches_none_or_two() {
    let Some(lab) = Lab::start() else { return };
    let first = lab.vm("twin", &[MIB]);
    let second = lab.vm("twin", &[MIB]);
    let before = lab.inventory();
    let text = lab.abd(&["backup", "nobody"]).fails_with(3);
    assert!(text.contains("'nobody'"), "{text}");
    let text = lab.abd(&["backup", "twin"]).fails_with(3);
    assert!(text.contains(&first.uuid) && text.contains(&second.uuid), "{text}");
    assert_eq!(lab.inventory(), before);
    lab.abd(&["backup", &second.uuid]).ok();
}

#[test]
fn a_store_that_is_full() {
    let Some(lab) = Lab::start() else { return };
    let mount = lab.path("full");
    fs::create_dir(&mount).expect("a directory");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&mount)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        println!("skipped: a small tmpfs cannot be mounted here (needs root)");
        return;
    }
    let unmount = Unmount(mount.clone());
    let vm = lab.vm("big", &[40 * MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 36 * MIB as usize));
    let before = lab.inventory();
    let store = mount.join("store").display().to_string();
    let text = lab.abd(&["--store", &store, "backup", "big", "--init-store"]).fails_with(9);
    assert!(text.contains(&store) && text.contains("make room"), "{text}");
    lab.assert_clean(&before);
    let verify = lab.abd(&["--store", &store, "verify", "--read-data"]).ok();
    assert_eq!(verify.answer()["clean"], true);
    lab.backup(&[&vm]).ok();
    drop(unmount);
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_pack_that_is_damaged_is_found_and_never_restored() {
    let Some(lab) = Lab::start() else { return };
    let vm = lab.vm("hurt", &[8 * MIB]);
    lab.write(&vm.vdis[0], 2 * MIB, &text(1, 4 * MIB as usize));
    lab.backup(&[&vm]).ok();
    let before = lab.inventory();
    let pack = largest_pack(&lab.store().join("packs"));
    let mut bytes = fs::read(&pack).expect("a pack");
    bytes[2000] ^= 0x10;
    fs::write(&pack, &bytes).expect("written");

    let output = lab.abd(&["verify", "--read-data"]);
    let text = output.fails_with(10);
    assert!(text.contains("damaged"), "{text}");
    let all = format!("{:?}", output.events);
    assert!(all.contains("hurt") && all.contains("offset"), "the VM and the place are named: {all}");

    let list = lab.abd(&["list"]).ok();
    let point = list.answer()["points"][0]["id"].as_str().expect("an id").to_owned();
    let output = lab.abd(&["restore", &point]);
    assert_ne!(output.code, 0, "a damaged block must not be restored: {:?}", output.events);
    lab.assert_clean(&before);
}

#[test]
fn a_directory_that_is_no_store_and_a_point_that_is_none() {
    let Some(lab) = Lab::start() else { return };
    let other = lab.path("photos");
    fs::create_dir(&other).expect("a directory");
    fs::write(other.join("cat.jpg"), b"meow").expect("written");
    let other = other.display().to_string();
    let vm = lab.vm("web01", &[MIB]);
    let text = lab.abd(&["--store", &other, "backup", "web01", "--init-store"]).fails_with(8);
    assert!(text.contains(&other), "{text}");
    // A mount point whose file system is not there looks like an empty directory.
    let empty = lab.path("mnt");
    fs::create_dir(&empty).expect("a directory");
    let text = lab.abd(&["--store", &empty.display().to_string(), "backup", "web01"]).fails_with(8);
    assert!(text.contains("--init-store"), "{text}");
    let text = lab.abd(&["list"]).fails_with(8);
    assert!(text.contains("--store"), "{text}");
    lab.backup(&[&vm]).ok();
    let text = lab.abd(&["show", "0000000000"]).fails_with(3);
    assert!(text.contains("0000000000") && text.contains("abd list"), "{text}");
}

/// The pack file with the most bytes.
fn largest_pack(directory: &std::path::Path) -> std::path::PathBuf {
    let mut packs: Vec<_> = fs::read_dir(directory)
        .expect("packs")
        .flatten()
        .flat_map(|shard| fs::read_dir(shard.path()).expect("a shard").flatten())
        .map(|pack| pack.path())
        .collect();
    packs.sort_by_key(|pack| fs::metadata(pack).expect("a pack").len());
    packs.pop().expect("at least one")
}
