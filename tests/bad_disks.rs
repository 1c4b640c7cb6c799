//! Disks that cannot be read everywhere, with delegates that are processes: their disks have a medium that can be bad.

use e2e::{Lab, Vm, noise};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;
const BLOCK: u64 = 65536;
/// What every device reads at once.
const UNIT: u64 = 4096;

/// Makes parts of a disk's medium unreadable; none heals it.
fn damage(lab: &Lab, vdi: &str, bad: &[(u64, u64)]) {
    lab.post(&format!("/lab/vdi/{vdi}/surface"), Some(&json!({"bad": bad})));
}

/// A VM whose second disk is noise, and the bytes of that.
fn worn(lab: &Lab) -> (Vm, Vec<u8>) {
    let vm = lab.vm("worn", &[MIB as u64, 4 * MIB as u64]);
    let bytes = noise(7, 2 * MIB);
    lab.write(&vm.vdis[1], 0, &bytes);
    (vm, bytes)
}

fn points(lab: &Lab) -> Vec<Value> {
    lab.abd(&["list", "worn"]).ok().answer()["points"].as_array().expect("a list").clone()
}

fn text(lab: &Lab, arguments: &[&str]) -> String {
    let output = lab.plain_command(arguments).output().expect("abd starts");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn a_disk_that_cannot_be_read_fails_the_job_and_is_named_with_the_place() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (vm, _) = worn(&lab);
    let before = lab.inventory();
    damage(&lab, &vm.vdis[1], &[(9 * BLOCK + 2 * UNIT, UNIT)]);
    let said = lab.backup(&[&vm]).fails_with(1);
    for part in ["worn disk 1", "position 1", &vm.vdis[1], "0x92000", "--skip-bad-blocks"] {
        assert!(said.contains(part), "'{part}' is not in: {said}");
    }
    assert!(points(&lab).is_empty(), "no copy with holes is taken for a whole one");
    lab.assert_clean(&before);
}

#[test]
fn with_leave_the_rest_is_saved_loudly_and_the_next_backup_heals_it() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let (vm, mut bytes) = worn(&lab);
    let before = lab.inventory();
    // The end of one block and the start of the next, which is also the border of two reads.
    let (start, size) = (20 * BLOCK - UNIT, 2 * UNIT);
    damage(&lab, &vm.vdis[1], &[(start, size)]);
    let saved = lab.abd(&["backup", "worn", "--skip-bad-blocks"]);
    assert_eq!(saved.code, 15, "{:#?}", saved.events);

    // In the run's output and its summary.
    let expected = json!({"bytes": size, "count": 1, "ranges": [{"offset": start, "size": size}]});
    let event = saved.all("bad-blocks")[0].clone();
    assert_eq!((&event["vdi"], &event["bad"]), (&vm.vdis[1].clone().into(), &expected), "{event}");
    assert_eq!(saved.job("worn")["disks"][1]["bad"], expected);
    assert!(saved.job("worn")["disks"][0]["bad"].is_null());
    let summary = saved.all("run-summary")[0];
    assert_eq!((&summary["result"], &summary["counts"]["bad_blocks"]), (&"bad-blocks".into(), &1.into()));
    assert_eq!(summary["vms"][0]["disks"][1]["bad"], size);

    // In every listing.
    let point = points(&lab)[0].clone();
    assert_eq!((&point["bad"], &point["disks"][1]["bad"]), (&size.into(), &expected), "{point}");
    let id = point["id"].as_str().expect("an id").to_owned();
    assert!(text(&lab, &["list"]).contains("BAD 8.00 KiB"), "{}", text(&lab, &["list"]));
    let shown = text(&lab, &["show", &id]);
    assert!(shown.contains(&format!("8.00 KiB at byte {start}")), "{shown}");

    // Before a restore, which gives all that could be read.
    let restored = lab.abd(&["restore", &id, "--disk", "1"]).ok();
    assert!(restored.warnings()[0].starts_with("BAD BLOCKS: 8.00 KiB"), "{:?}", restored.warnings());
    let target = restored.job("worn")["disks"][0]["vdi"].as_str().expect("a uuid").to_owned();
    let found = std::fs::read(lab.disk_file(&target)).expect("the restored disk");
    bytes[start as usize..(start + size) as usize].fill(0);
    assert!(found[..bytes.len()] == bytes && found[bytes.len()..].iter().all(|byte| *byte == 0));

    // While it stays bad the next backup says so again, though nothing changed.
    assert_eq!(lab.abd(&["backup", "worn", "--skip-bad-blocks"]).code, 15);
    assert_eq!(points(&lab)[1]["disks"][1]["bad"], expected);

    // Once it can be read it is read, and nothing else: no audit takes it for a forgotten write.
    damage(&lab, &vm.vdis[1], &[]);
    let healed = lab.backup(&[&vm]).ok();
    let disk = &healed.job("worn")["disks"][1];
    let read = disk["moved"].as_u64().expect("a number") - disk["audited"].as_u64().expect("a number");
    assert_eq!((&disk["mode"], read, &disk["mismatched"]), (&"cbt".into(), 2 * BLOCK, &0.into()), "{disk}");
    assert!(disk["reason"].as_str().is_some_and(|why| why.contains("could not be read last time")), "{disk}");
    assert_eq!(points(&lab)[2]["bad"], 0);
    lab.assert_restores(&vm);
    lab.assert_store_whole();
    lab.assert_clean(&before);
}
