//! What the log says of the disks' contents at a snapshot.

use crate::support::{Lab, wait_for_log};
use ring::digest::{SHA256, digest};
use serde_json::json;

const BLOCK: usize = 64 << 10;

/// The digest as its definition has it, of bytes.
fn digest_of(disk: &[u8]) -> String {
    let mut text = (disk.len() as u64).to_le_bytes().to_vec();
    for (index, block) in disk.chunks(BLOCK).enumerate().filter(|(_, b)| b.iter().any(|byte| *byte != 0)) {
        text.extend((index as u64).to_le_bytes());
        text.extend(block);
    }
    digest(&SHA256, &text).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_log_tells_what_each_disk_held_at_a_snapshot_and_anybody_can_compute_it() {
    let lab = Lab::with(|config| config.snapshot_digests = true);
    let client = lab.login();
    let size = 3 * BLOCK + 512;
    let (vm, disks) = client.vm(json!({"name": "web01", "disks": [
        {"name": "a", "size": size}, {"name": "b", "size": 4096}]}));
    let mut held = vec![0; size];
    held[2 * BLOCK + 5] = 1;
    held[size - 1] = 2;
    client.write(&disks[0], 0, &held);
    let snapshot = client.text("Async.VM.snapshot", json!([vm, "snap"]));
    assert_eq!(client.wait(&snapshot)["status"], "success");
    client.write(&disks[0], 0, &[9; 100]);
    let entry = wait_for_log(&lab, |e| e["kind"] == "snapshot-content");
    let uuid = |class: &str, reference: &str| client.text(&format!("{class}.get_uuid"), json!([reference]));
    assert_eq!(entry["vm"], json!(uuid("VM", &vm)));
    let snapshots = client.call("VM.get_snapshots", json!([vm]));
    let snapshot = snapshots[0].as_str().unwrap();
    assert_eq!(entry["snapshot"], json!(uuid("VM", snapshot)));
    for (disk, held) in [(&disks[0], &held[..]), (&disks[1], &[0; 4096])] {
        let listed = entry["disks"].as_array().unwrap().iter().find(|d| d["vdi"] == json!(uuid("VDI", disk)));
        let frozen = client.snapshot_disk(snapshot, disk);
        let expected = json!({"vdi": uuid("VDI", disk), "snapshot_vdi": uuid("VDI", &frozen),
            "size": held.len(), "digest": digest_of(held)});
        assert_eq!(listed, Some(&expected));
        let route = format!("/lab/vdi/{frozen}/digest?sparse=1");
        let asked = lab.control().json("GET", &route, None).unwrap();
        assert_eq!(asked["sparse_sha256"], json!(digest_of(held)));
    }
}

#[test]
fn nobody_pays_for_contents_that_were_not_asked_for() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "disks": [{"name": "a", "size": 4096}]}));
    client.call("VM.snapshot", json!([vm, "snap"]));
    let log = lab.control().lines("/lab/log").unwrap();
    assert!(!log.iter().any(|e| e["kind"] == "snapshot-content"));
}
