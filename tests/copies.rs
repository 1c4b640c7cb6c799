//! `abd store copy`, and `copy_to` in job files: the same store in another place. Delegates are processes.

use e2e::{Lab, Output, Vm, noise, text};
use serde_json::Value;
use std::path::Path;

const MIB: u64 = 1 << 20;

fn at(lab: &Lab, store: &Path, arguments: &[&str]) -> Output {
    let mut command = lab.command(arguments);
    command.env("ABD_STORE", store);
    lab.finish(command)
}

/// Ids of what a copy moved.
fn copied(output: &Output) -> Vec<String> {
    let list = output.answer()["copied"].as_array().expect("a list");
    list.iter().map(|point| point["id"].as_str().expect("an id").to_owned()).collect()
}

/// Restores the newest point of the VM out of a store, and compares every disk.
#[track_caller]
fn assert_restores_from(lab: &Lab, store: &Path, vm: &Vm) {
    let list = at(lab, store, &["list", &vm.name]).ok();
    let points = list.answer()["points"].as_array().expect("a list").clone();
    let point = points.last().expect("a point")["id"].as_str().expect("text").to_owned();
    let restore = at(lab, store, &["restore", &point]).ok();
    let disks = restore.job(&vm.name)["disks"].as_array().expect("a list").clone();
    for (vdi, disk) in vm.vdis.iter().zip(&disks) {
        assert_eq!(lab.digest(disk["vdi"].as_str().expect("text")), lab.digest(vdi), "{disk}");
    }
}

#[test]
fn a_copy_restores_the_same_bytes_and_only_what_is_new_follows() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (web, db) = (lab.vm("web01", &[9 * MIB, MIB + 512]), lab.vm("db01", &[2 * MIB]));
    lab.write(&web.vdis[0], 0, &noise(1, 3_000_000));
    lab.write(&web.vdis[1], MIB, &[7; 512]);
    lab.write(&db.vdis[0], 0, &text(2, 300_000));
    lab.backup(&[&web, &db]).ok();
    let there = lab.path("there");
    let name = there.display().to_string();
    let copy = |more: &[&str]| lab.abd(&[&["store", "copy", &name], more].concat());

    let planned = copy(&["--dry-run"]).ok();
    assert_eq!((copied(&planned).len(), there.exists()), (2, false));
    let first = copy(&["--limit", "500M"]).ok();
    assert_eq!(copied(&first), copied(&planned));
    assert_eq!(first.answer()["made"], true);
    let bytes = |output: &Output| output.answer()["bytes"].as_u64().expect("a number");
    assert!(bytes(&first) > 3_000_000, "{:#}", first.answer());
    let again = copy(&[]).ok();
    assert_eq!((copied(&again).len(), bytes(&again), &again.answer()["present"]), (0, 0, &2.into()));
    assert_restores_from(&lab, &there, &web);

    lab.write(&web.vdis[0], 5 * MIB, &noise(3, 100_000));
    lab.backup(&[&web]).ok();
    let increment = copy(&[]).ok();
    assert_eq!(copied(&increment).len(), 1);
    assert!(bytes(&increment) < 400_000, "{:#}", increment.answer());
    assert_restores_from(&lab, &there, &web);
    assert_restores_from(&lab, &there, &db);
    let verify = at(&lab, &there, &["verify", "--read-data"]).ok();
    assert_eq!(verify.answer()["clean"], true);
    // The next backup may go there: it is the same store, and starts from the same points.
    lab.write(&web.vdis[0], 0, &noise(4, 70_000));
    let backup = at(&lab, &there, &["backup", "web01"]).ok();
    assert_eq!(backup.job("web01")["disks"][0]["mode"], "cbt", "{}", backup.job("web01"));
    // And comes back from there after the disk of the first place died.
    std::fs::remove_dir_all(lab.store()).expect("removed");
    let home = lab.store().display().to_string();
    assert_eq!(copied(&at(&lab, &there, &["store", "copy", &home]).ok()).len(), 4);
    lab.assert_store_whole();
    lab.assert_restores(&web);

    // People read the same, and a pipe sees no progress.
    let told = lab.plain_command(&["store", "copy", &name]).output().expect("it runs");
    let told = String::from_utf8(told.stdout).expect("text");
    assert_eq!(told, format!("0 restore points copied to {name}, 0 B\n4 are there already\n"));
}

#[test]
fn what_cannot_be_copied_is_said_with_what_to_do() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    lab.write(&vm.vdis[0], 0, &noise(1, 300_000));
    lab.backup(&[&vm]).ok();
    let (other, home) = (lab.path("other"), lab.store());
    at(&lab, &other, &["store", "init"]).ok();
    let text = lab.abd(&["store", "copy", &other.display().to_string()]).fails_with(8);
    assert!(text.contains("holds another store") && text.contains("where nothing is"), "{text}");
    let text = lab.abd(&["store", "copy", &home.display().to_string()]).fails_with(8);
    assert!(text.contains("the store itself"), "{text}");
    let text =
        lab.abd(&["store", "copy", &lab.path("x").display().to_string(), "--vm", "nobody"]).fails_with(3);
    assert!(text.contains("of a VM 'nobody'"), "{text}");
    let file = lab.path("full");
    std::fs::create_dir(&file).expect("made");
    std::fs::write(file.join("letters"), "x").expect("written");
    let text = lab.abd(&["store", "copy", &file.display().to_string()]).fails_with(8);
    assert!(text.contains("something else than a store"), "{text}");

    // A flipped byte in a block: its point is named, and the code is that of damage.
    for pack in packs(&home) {
        let mut bytes = std::fs::read(&pack).expect("read");
        // Kind 1: blocks. The first one begins behind the header.
        if bytes[9] == 1 {
            bytes[16 + 50] ^= 1;
            std::fs::write(&pack, bytes).expect("written");
        }
    }
    let output = lab.abd(&["store", "copy", &lab.path("there").display().to_string()]);
    let text = output.fails_with(10);
    assert!(text.contains("1 restore points are damaged"), "{text}");
    let answer = output.events.iter().find(|event| event["omitted"].is_array()).expect("an answer");
    let reason = answer["omitted"][0]["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("block ") && reason.contains(" of disk '"), "{reason}");
}

fn packs(store: &Path) -> Vec<std::path::PathBuf> {
    let below =
        |dir: &Path| std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("one").path());
    below(&store.join("packs")).flat_map(|dir| below(&dir).collect::<Vec<_>>()).collect()
}

#[test]
fn a_job_file_copies_what_its_vms_have_and_answers_for_it() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (web, db) = (lab.vm("web01", &[MIB]), lab.vm("db01", &[MIB]));
    lab.write(&web.vdis[0], 0, &text(1, 100_000));
    lab.backup(&[&web, &db]).ok();
    let (first, second) = (lab.path("first"), lab.path("second"));
    let (summary, file) = (lab.path("summary.json"), lab.path("nightly.toml").display().to_string());
    let job = format!(
        "[select]\nnames = \"web01\"\n[run]\ncopy_to = [\"{}\", \"{}\"]\ncopy_limit = \"1 GiB/s\"\nsummary_json = \"{}\"\n",
        first.display(),
        second.display(),
        summary.display()
    );
    std::fs::write(&file, job).expect("written");
    let told = || -> Value { serde_json::from_slice(&std::fs::read(&summary).expect("read")).expect("JSON") };

    lab.write(&web.vdis[0], 0, &text(2, 100_000));
    lab.abd(&["run", &file]).ok();
    let copies = told()["copies"].clone();
    assert_eq!((&copies[0]["points"], &copies[1]["points"]), (&2.into(), &2.into()), "{copies:#}");
    assert_eq!(copies[1]["to"], second.display().to_string());
    assert_restores_from(&lab, &first, &web);
    let of_others = at(&lab, &first, &["list", "db01"]).ok();
    assert_eq!(of_others.answer()["points"].as_array().map(Vec::len), Some(0), "not this file's VM");

    // One of the places is away: the backup is made, the other copy too, and the code says that something is wrong.
    std::fs::rename(&first, lab.path("away")).expect("renamed");
    std::fs::write(&first, "a file").expect("written");
    let output = lab.abd(&["run", &file]);
    let text = output.fails_with(8);
    assert!(text.contains(&first.display().to_string()), "{text}");
    let summary = told();
    assert_eq!((&summary["counts"]["done"], &summary["exit_code"]), (&1.into(), &8.into()), "{summary:#}");
    assert!(summary["copies"][0]["error"].is_string(), "{summary:#}");
    assert_eq!((&summary["copies"][1]["points"], &summary["copies"][1]["error"]), (&1.into(), &Value::Null));
    // It is back: the next run makes up for it.
    std::fs::remove_file(&first).expect("removed");
    std::fs::rename(lab.path("away"), &first).expect("renamed");
    lab.abd(&["run", &file]).ok();
    let copies = told()["copies"].clone();
    assert_eq!((&copies[0]["points"], &copies[1]["points"]), (&2.into(), &1.into()), "{copies:#}");
    lab.assert_store_whole();
}
