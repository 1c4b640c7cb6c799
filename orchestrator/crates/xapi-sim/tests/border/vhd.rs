//! VHDs as a foreign tool sees them: `qemu-img` recognises an export, finds the blocks in it that the chain names, and
//! gets the disk's bytes out of it.

use crate::support::{Client, Lab};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: u64 = 2 << 20;

/// What `qemu-img` prints; `None` with a reason where it is not installed.
fn qemu_img(arguments: &[&str]) -> Option<String> {
    match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "qemu-img {arguments:?}: {said}");
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: qemu-img is not installed");
            None
        }
        Err(error) => panic!("qemu-img: {error}"),
    }
}

fn export(lab: &Lab, client: &Client<'_>, vdi: &str, base: Option<&str>, name: &str) -> PathBuf {
    let base = base.map(|base| format!("&base={base}")).unwrap_or_default();
    let target = format!("/export_raw_vdi?vdi={vdi}&format=vhd&session_id={}{base}", client.session);
    let answer = lab.http("GET", &target, &[], &[]);
    let task = client.wait(&answer.header("task-id").unwrap());
    assert_eq!(task["status"], "success", "{task}");
    let path = lab.dir.path().join(name);
    std::fs::write(&path, &answer.body).unwrap();
    path
}

/// The blocks that a file's allocation table names.
fn table(file: &Path, count: usize) -> Vec<u64> {
    let bytes = std::fs::read(file).unwrap();
    let entry = |block: &usize| {
        let at = 2048 + 4 * block;
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) != u32::MAX
    };
    (0..count).filter(entry).map(|block| block as u64).collect()
}

/// The blocks in which a foreign reader finds data.
fn mapped(file: &str) -> Option<Vec<u64>> {
    let map: Value = serde_json::from_str(&qemu_img(&["map", "--output=json", "-f", "vpc", file])?).unwrap();
    let mut blocks = Vec::new();
    for part in map.as_array().unwrap().iter().filter(|part| part["data"] == true) {
        let (start, length) = (part["start"].as_u64().unwrap(), part["length"].as_u64().unwrap());
        blocks.extend(start / BLOCK..(start + length).div_ceil(BLOCK));
    }
    Some(blocks)
}

#[test]
fn a_differencing_export_is_a_vhd_with_the_blocks_of_the_chain() {
    let lab = Lab::new();
    let client = lab.login();
    // A geometry of whole cylinders, so that every reader agrees about the size.
    let size = 17 * BLOCK;
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": size}]}));
    let live = &disks[0];
    client.write(live, 0, &[1; 4096]);
    let first = client.text("VDI.snapshot", json!([live]));
    client.write(live, 3 * BLOCK - 512, &[2; 1024]);
    let middle = client.text("VDI.snapshot", json!([live]));
    client.write(live, size - 512, &[3; 512]);
    let second = client.text("VDI.snapshot", json!([live]));

    let both = export(&lab, &client, &second, Some(&first), "both.vhd");
    assert_eq!(table(&both, 17), [2, 3, 16]);
    assert_eq!(table(&export(&lab, &client, &second, Some(&middle), "late.vhd"), 17), [16]);
    // A snapshot in between is gone and its node coalesced; the difference is the same.
    client.call("VDI.destroy", json!([middle]));
    assert_eq!(table(&export(&lab, &client, &second, Some(&first), "again.vhd"), 17), [2, 3, 16]);

    let path = both.to_str().unwrap();
    let Some(info) = qemu_img(&["info", "--output=json", path]) else { return };
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!((&info["format"], &info["virtual-size"]), (&json!("vpc"), &json!(size)));
    assert_eq!(mapped(path).unwrap(), [2, 3, 16]);
    let raw = lab.dir.path().join("both.raw");
    qemu_img(&["convert", "-f", "vpc", "-O", "raw", path, raw.to_str().unwrap()]).unwrap();
    let bytes = std::fs::read(&raw).unwrap();
    for block in [2, 3, 16] {
        let at = block * BLOCK;
        let expected = client.read(&second, at, BLOCK);
        assert!(bytes[usize::try_from(at).unwrap()..][..expected.len()] == expected, "block {block}");
    }
}

#[test]
fn a_full_export_converts_to_the_disk_it_was_made_of() {
    let lab = Lab::new();
    let client = lab.login();
    let size = 17 * BLOCK;
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": size}]}));
    let pattern: Vec<u8> = (0..3 << 20).map(|i: u32| (i / 512 % 253) as u8).collect();
    client.write(&disks[0], 5 * BLOCK + 512, &pattern);
    let vhd = export(&lab, &client, &disks[0], None, "full.vhd");
    let raw = lab.dir.path().join("full.raw");
    let convert = ["convert", "-f", "vpc", "-O", "raw", vhd.to_str().unwrap(), raw.to_str().unwrap()];
    if qemu_img(&convert).is_none() {
        return;
    }
    assert!(std::fs::read(&raw).unwrap() == client.read(&disks[0], 0, size));
}
