//! Real guests, which boot a sector of our own: it writes one sector of its own disk and powers off, or sleeps.

use crate::support::{Client, Lab};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);

/// Writes its own sector to sector 300 of the first disk (granule 2), then powers off through the ACPI register.
#[rustfmt::skip]
const WRITE_AND_POWER_OFF: &[u8] = &[
    0x31, 0xc0,             // xor ax, ax
    0x8e, 0xd8,             // mov ds, ax
    0xbe, 0x16, 0x7c,       // mov si, packet
    0xb8, 0x00, 0x43,       // mov ax, 0x4300: extended write
    0xcd, 0x13,             // int 0x13, drive still in dl
    0xba, 0x04, 0x06,       // mov dx, 0x604
    0xb8, 0x00, 0x20,       // mov ax, 0x2000
    0xef,                   // out dx, ax
    0xf4,                   // hlt
    0xeb, 0xfd,             // jmp to it
    0x10, 0, 1, 0,          // packet: one sector
    0x00, 0x7c, 0, 0,       // from 0000:7c00
    0x2c, 0x01, 0, 0, 0, 0, 0, 0,
];
/// hlt; jmp to it.
const SLEEP: &[u8] = &[0xf4, 0xeb, 0xfd];

fn can_boot() -> bool {
    let named = std::env::var_os("ABD_QEMU").is_some();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named || std::env::split_paths(&path).any(|d| d.join("qemu-system-x86_64").is_file());
    if !found {
        println!("skipped: qemu-system-x86_64 is not in PATH");
    }
    found
}

fn bootable(client: &Client<'_>, code: &[u8], cbt: bool) -> (String, String) {
    let (vm, disks) =
        client.vm(json!({"name": "guest", "disks": [{"name": "boot", "size": 2 << 20}], "cbt": cbt}));
    let mut sector = code.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    client.write(&disks[0], 0, &sector);
    client.call("VM.remove_from_other_config", json!([vm, "lab:guest"]));
    client.call("VM.set_xenstore_data", json!([vm, {"vm-data/abd/job": "j", "not-for-the-guest": "x"}]));
    (vm, disks[0].clone())
}

fn wait_for(client: &Client<'_>, vm: &str, state: &str) {
    let by = Instant::now() + PATIENCE;
    let mut token = String::new();
    while client.call("VM.get_power_state", json!([vm])) != state {
        assert!(Instant::now() < by, "the VM does not become {state}");
        let batch = client.call("event.from", json!([[format!("VM/{vm}")], token, 5.0]));
        token = batch["token"].as_str().unwrap().to_owned();
    }
}

#[test]
fn what_a_guest_writes_is_found_when_it_ends_and_its_vm_is_halted() {
    if !can_boot() {
        return;
    }
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disk) = bootable(&client, WRITE_AND_POWER_OFF, true);
    let before = client.text("VDI.snapshot", json!([disk]));
    client.call("VM.start", json!([vm, false, false]));
    wait_for(&client, &vm, "Halted");
    assert_eq!(client.call("VM.get_domid", json!([vm])), json!(-1));
    let vbd = client.call("VM.get_VBDs", json!([vm]))[0].clone();
    assert_eq!(client.call("VBD.get_currently_attached", json!([vbd])), false);
    assert_eq!(client.changed(&before, &disk), [2]);
    assert_eq!(client.read(&disk, 300 * 512, 2), WRITE_AND_POWER_OFF[..2]);
    let log = lab.control().lines("/lab/log").unwrap();
    assert!(log.iter().any(|e| e["kind"] == "guest-start" && e["pid"].is_u64()));
    assert!(log.iter().any(|e| e["kind"] == "guest-exit"));
}

#[test]
fn a_running_guest_can_be_snapshot_paused_and_killed() {
    if !can_boot() {
        return;
    }
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disk) = bootable(&client, SLEEP, true);
    client.call("VM.start", json!([vm, false, false]));
    let uuid = client.text("VM.get_uuid", json!([vm]));
    assert_eq!(client.code("VM.clean_shutdown", json!([vm])), "VM_LACKS_FEATURE");
    let vbd = client.call("VM.get_VBDs", json!([vm]))[0].clone();
    assert_eq!(client.call("VBD.get_device", json!([vbd])), "xvda");
    let snapshot = client.text("VM.snapshot", json!([vm, "live"]));
    let copy = client.snapshot_disk(&snapshot, &disk);
    assert_eq!(client.read(&copy, 0, 3), SLEEP);
    // Tracking knows that the guest wrote nothing.
    client.call("VM.pause", json!([vm]));
    client.call("VM.unpause", json!([vm]));
    lab.control().json("POST", &format!("/lab/guest/{uuid}/link?up=0"), None).unwrap();
    lab.control().json("POST", &format!("/lab/guest/{uuid}/kill"), None).unwrap();
    assert_eq!(client.call("VM.get_power_state", json!([vm])), "Halted");
    assert!(client.changed(&copy, &disk).is_empty());
    let data = client.call("VM.get_xenstore_data", json!([vm]));
    assert_eq!((&data["vm-data/abd/job"], &data["not-for-the-guest"]), (&json!("j"), &json!("x")));
    lab.control().bytes("GET", &format!("/lab/guest/{uuid}/console"), &[]).unwrap();
    client.call("VM.start", json!([vm, true, false]));
    assert_eq!(client.call("VM.get_power_state", json!([vm])), "Paused");
    client.call("VM.hard_shutdown", json!([vm]));
    let metrics: Value = client.call("VM.get_guest_metrics", json!([vm]));
    assert_eq!(metrics, "OpaqueRef:NULL");
}
