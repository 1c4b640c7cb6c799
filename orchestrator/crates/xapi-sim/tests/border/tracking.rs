//! Changed blocks, through the API alone.

use crate::support::{Client, Lab, base64};
use serde_json::{Value, json};

const K: u64 = 65_536;

fn tracked(client: &Client<'_>, blocks: u64) -> (String, String) {
    let (vm, disks) =
        client.vm(json!({"name": "t", "disks": [{"name": "d", "size": blocks * K}], "cbt": true}));
    (vm, disks[0].clone())
}

fn snapshot(client: &Client<'_>, vm: &str, live: &str) -> (String, String) {
    let snapshot = client.text("VM.snapshot", json!([vm, "snap"]));
    let disk = client.snapshot_disk(&snapshot, live);
    (snapshot, disk)
}

#[test]
fn the_bitmap_starts_with_the_most_significant_bit() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 20);
    let (_, first) = snapshot(&client, &vm, &live);
    for block in [0, 1, 9, 19] {
        client.write(&live, block * K + 100, &[1]);
    }
    let (_, second) = snapshot(&client, &vm, &live);
    // Bits 0, 1, 9 and 19, written down by hand: 11000000 01000000 00010000.
    assert_eq!(client.text("VDI.list_changed_blocks", json!([first, second])), "wEAQ");
    assert_eq!(client.changed(&first, &second), [0, 1, 9, 19]);
}

#[test]
fn a_write_across_a_border_and_a_discard_are_both_changes() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 8);
    client.write(&live, 0, &vec![7; 8 * K as usize]);
    let (_, first) = snapshot(&client, &vm, &live);
    client.write(&live, 2 * K - 1, &[1, 1]);
    lab.control().json("POST", &format!("/lab/vdi/{live}/zero?offset={}&length={K}", 5 * K), None).unwrap();
    let (_, second) = snapshot(&client, &vm, &live);
    assert_eq!(client.changed(&first, &second), [1, 2, 5]);
    assert_eq!(client.read(&second, 5 * K, 4), [0; 4]);
    assert_eq!(client.read(&first, 5 * K, 4), [7; 4]);
}

#[test]
fn data_destroy_keeps_the_differences_and_refuses_what_it_must() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 8);
    let (first_vm, first) = snapshot(&client, &vm, &live);
    assert_eq!(client.code("VDI.data_destroy", json!([live])), "OPERATION_NOT_ALLOWED");
    assert_eq!(client.refused("VDI.data_destroy", json!([first])), ["VDI_IN_USE", &first, "data_destroy"]);
    client.call("VM.destroy", json!([first_vm]));
    client.call("VDI.data_destroy", json!([first]));
    client.call("VDI.data_destroy", json!([first]));
    let record = client.call("VDI.get_record", json!([first]));
    assert_eq!((&record["type"], &record["cbt_enabled"]), (&json!("cbt_metadata"), &json!(true)));
    assert_eq!(record["physical_utilisation"], json!(0));
    client.write(&live, 3 * K, &[1]);
    let (_, second) = snapshot(&client, &vm, &live);
    assert_eq!(client.changed(&first, &second), [3]);
    for (method, params) in [
        ("VDI.clone", json!([first])),
        ("VDI.snapshot", json!([first])),
        ("VDI.resize", json!([first, 1 << 30])),
        ("VDI.enable_cbt", json!([first])),
        ("VBD.create", json!([client.vbd(&vm, &first, "4", "RO")])),
    ] {
        assert_eq!(
            client.refused(method, params),
            ["VDI_INCOMPATIBLE_TYPE", &first, "cbt_metadata"],
            "{method}"
        );
    }
    client.call("VDI.destroy", json!([first]));
}

#[test]
fn a_snapshot_without_tracking_has_no_metadata_to_keep() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = client.vm(json!({"name": "t", "disks": [{"name": "d", "size": K}]}));
    let (_, disk) = snapshot(&client, &vm, &disks[0]);
    assert_eq!(client.refused("VDI.data_destroy", json!([disk])), ["VDI_NO_CBT_METADATA", &disk]);
    let refused = client.refused("VDI.list_changed_blocks", json!([disk, disks[0]]));
    assert_eq!(refused[0], "SR_BACKEND_FAILURE_460");
    assert!(refused[2].contains("Source and target VDI are unrelated"), "{refused:?}");
}

#[test]
fn only_the_target_must_be_detached() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 8);
    let (_, first) = snapshot(&client, &vm, &live);
    let (_, second) = snapshot(&client, &vm, &live);
    let reader = |disk: &str| {
        let (reader, _) = client.vm(json!({"name": "reader"}));
        client.call("VBD.create", json!([client.vbd(&reader, disk, "4", "RO")]));
        client.call("VM.start", json!([reader, false, false]));
        reader
    };
    let of_first = reader(&first);
    assert!(client.changed(&first, &second).is_empty());
    client.call("VM.hard_shutdown", json!([of_first]));
    reader(&second);
    let refused = client.refused("VDI.list_changed_blocks", json!([first, second]));
    assert_eq!(refused, ["VDI_IN_USE", &second, "list_changed_blocks"]);
}

#[test]
fn growth_shows_only_what_was_written_and_deletion_in_the_middle_loses_nothing() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 8);
    let (first_vm, first) = snapshot(&client, &vm, &live);
    client.write(&live, 0, &[1]);
    let (middle_vm, middle) = snapshot(&client, &vm, &live);
    client.call("VDI.resize", json!([live, 20 * K + 512]));
    assert_eq!(client.code("VDI.resize", json!([live, K])), "SR_BACKEND_FAILURE_79");
    client.write(&live, 20 * K, &[1; 512]);
    let (_, last) = snapshot(&client, &vm, &live);
    assert_eq!(client.changed(&first, &middle), [0]);
    assert_eq!(client.changed(&first, &last), [0, 20]);
    // 21 blocks, the last one partial: three bytes.
    assert_eq!(base64(&client.text("VDI.list_changed_blocks", json!([first, last]))).len(), 3);
    client.call("VM.destroy", json!([middle_vm]));
    client.call("VDI.destroy", json!([middle]));
    assert_eq!(client.changed(&first, &last), [0, 20]);
    assert_eq!(client.code("VDI.list_changed_blocks", json!([last, first])), "SR_BACKEND_FAILURE_460");
    client.call("VM.destroy", json!([first_vm]));
}

#[test]
fn switching_tracking_off_cuts_the_chain_and_clones_are_not_tracked() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 8);
    let (_, first) = snapshot(&client, &vm, &live);
    let enabled = |vdi: &str| client.call("VDI.get_cbt_enabled", json!([vdi])) == json!(true);
    let clone = client.text("VDI.clone", json!([live]));
    let copy = client.text("VDI.copy", json!([live, client.call("VDI.get_SR", json!([live]))]));
    assert!(enabled(&live) && enabled(&first) && !enabled(&clone) && !enabled(&copy));
    assert_eq!(client.refused("VDI.set_on_boot", json!([live, "reset"])), ["VDI_CBT_ENABLED", &live]);
    assert_eq!(client.code("VDI.disable_cbt", json!([first])), "OPERATION_NOT_ALLOWED");
    client.call("VDI.disable_cbt", json!([live]));
    client.call("VDI.enable_cbt", json!([live]));
    let (_, second) = snapshot(&client, &vm, &live);
    assert_eq!(client.code("VDI.list_changed_blocks", json!([first, second])), "SR_BACKEND_FAILURE_460");
}

#[test]
fn without_the_licence_tracking_can_only_be_switched_off() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, live) = tracked(&client, 1);
    lab.control().json("POST", "/lab/faults", Some(&json!({"cbt_licensed": false}))).unwrap();
    client.call("VDI.disable_cbt", json!([live]));
    let refused: Vec<String> = client.refused("VDI.enable_cbt", json!([live]));
    assert_eq!(refused, ["LICENSE_RESTRICTION", "CBT"]);
}

#[test]
fn an_export_keeps_the_bitmap_away_as_an_attachment_does() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, live) = tracked(&client, 64);
    let (_, first) = snapshot(&client, &vm, &live);
    let (_, second) = snapshot(&client, &vm, &live);
    let raw: Value = json!({"method": "GET /export_raw_vdi", "cut_after": 10});
    lab.control().json("POST", "/lab/faults", Some(&raw)).unwrap();
    let target = format!("/export_raw_vdi?vdi={second}&session_id={}", client.session);
    assert_eq!(lab.http("GET", &target, &[], &[]).body.len(), 10);
    // The transfer has ended, whatever its end, and the disk is free again.
    assert!(client.changed(&first, &second).is_empty());
}
