//! Which call is legal when.

use crate::support::{Client, Lab, NULL};
use serde_json::{Value, json};
use std::time::Duration;

fn running(client: &Client<'_>) -> (String, Vec<String>) {
    client.vm(json!({"name": "on", "disks": [{"name": "root", "size": 1 << 20}], "running": true}))
}

fn halted(client: &Client<'_>) -> (String, Vec<String>) {
    client.vm(json!({"name": "off", "disks": [{"name": "root", "size": 1 << 20}]}))
}

#[test]
fn wrong_power_states_name_what_was_expected_and_what_is() {
    let lab = Lab::new();
    let client = lab.login();
    let ((on, _), (off, _)) = (running(&client), halted(&client));
    let refused = |method: &str, params: Value| client.refused(method, params);
    assert_eq!(
        refused("VM.start", json!([on, false, false])),
        ["VM_BAD_POWER_STATE", &on, "halted", "running"]
    );
    assert_eq!(refused("VM.clone", json!([on, "x"])), ["VM_BAD_POWER_STATE", &on, "halted", "running"]);
    let expected = ["VM_BAD_POWER_STATE", &off, "paused, suspended, running", "halted"];
    assert_eq!(refused("VM.hard_shutdown", json!([off])), expected);
    assert_eq!(refused("VM.clean_shutdown", json!([off])), ["VM_BAD_POWER_STATE", &off, "running", "halted"]);
    assert_eq!(
        refused("VM.destroy", json!([on])),
        ["VM_BAD_POWER_STATE", &on, "halted, suspended", "running"]
    );
    client.call("VM.pause", json!([on]));
    assert_eq!(client.call("VM.get_power_state", json!([on])), "Paused");
    client.call("VM.unpause", json!([on]));
    client.call("VM.clean_shutdown", json!([on]));
    assert_eq!(client.call("VM.get_power_state", json!([on])), "Halted");
    assert_eq!(client.call("VM.get_domid", json!([on])), json!(-1));
}

#[test]
fn snapshots_and_templates_permit_only_their_own_operations() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = halted(&client);
    let snapshot = client.text("VM.snapshot", json!([vm, "snap"]));
    let record = client.call("VM.get_record", json!([snapshot]));
    assert_eq!((&record["is_a_snapshot"], &record["is_a_template"]), (&json!(true), &json!(true)));
    assert_eq!((&record["snapshot_of"], &record["power_state"]), (&json!(vm), &json!("Halted")));
    assert_eq!(client.text("VM.get_parent", json!([vm])), snapshot);
    let copy = client.snapshot_disk(&snapshot, &disks[0]);
    assert_eq!(client.call("VDI.get_is_a_snapshot", json!([copy])), true);
    assert_eq!(
        client.refused("VM.start", json!([snapshot, false, false])),
        ["VM_IS_SNAPSHOT", &snapshot, "start"]
    );
    assert_eq!(client.refused("VM.provision", json!([snapshot])), ["VM_IS_SNAPSHOT", &snapshot, "provision"]);
    assert_eq!(client.refused("VM.provision", json!([vm])), ["PROVISION_ONLY_ALLOWED_ON_TEMPLATE"]);
    client.call("VM.set_is_a_template", json!([vm, true]));
    assert_eq!(client.refused("VM.start", json!([vm, false, false])), ["VM_IS_TEMPLATE", &vm, "start"]);
    let clone = client.text("VM.clone", json!([vm, "clone"]));
    let record = client.call("VM.get_record", json!([clone]));
    assert_eq!(record["is_a_template"], json!(true));
    assert_eq!(record["other_config"]["base_template_name"], "off");
    assert_ne!(
        record["other_config"]["mac_seed"],
        client.call("VM.get_other_config", json!([vm]))["mac_seed"]
    );
    client.call("VM.provision", json!([clone]));
    assert_eq!(client.call("VM.get_is_a_template", json!([clone])), false);
    let default = client.call("VM.get_by_name_label", json!(["Other install media"]))[0].clone();
    assert_eq!(client.code("VM.destroy", json!([default])), "VM_CANNOT_DELETE_DEFAULT_TEMPLATE");
    // Destroying a VM never destroys its disks.
    client.call("VM.destroy", json!([snapshot]));
    assert_eq!(client.text("VM.get_parent", json!([vm])), NULL);
    assert_eq!(client.call("VDI.get_VBDs", json!([copy])), json!([]));
}

#[test]
fn vbd_creation_checks_position_type_and_mode() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = halted(&client);
    let create = |change: Value| {
        let mut record = client.vbd(&vm, &disks[0], "4", "RO");
        record.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        client.try_call("VBD.create", json!([record]))
    };
    let code = |change: Value| create(change).unwrap_err();
    assert_eq!(code(json!({"userdevice": "0"})), ["DEVICE_ALREADY_EXISTS", "0"]);
    assert_eq!(code(json!({"userdevice": "255"})), ["INVALID_DEVICE", "255"]);
    assert_eq!(code(json!({"userdevice": "nonsense"})), ["INVALID_DEVICE", "nonsense"]);
    assert_eq!(code(json!({"type": "CD", "mode": "RW"})), ["VBD_CDS_MUST_BE_READONLY"]);
    assert_eq!(code(json!({"empty": true})), ["VBD_NOT_REMOVABLE_MEDIA", "in constructor"]);
    assert_eq!(code(json!({"VDI": "OpaqueRef:x"})), ["HANDLE_INVALID", "VDI", "OpaqueRef:x"]);
    let vbd = create(json!({"userdevice": "autodetect"})).unwrap();
    assert_eq!(client.call("VBD.get_userdevice", json!([vbd])), "1");
    client.call("VDI.set_read_only", json!([disks[0], true]));
    assert_eq!(code(json!({"mode": "RW"})), ["VDI_READONLY", &disks[0]]);
    let allowed = client.call("VM.get_allowed_VBD_devices", json!([vm]));
    assert_eq!((&allowed[0], allowed.as_array().unwrap().len()), (&json!("2"), 253));
    client.call("VBD.destroy", json!([vbd]));
}

#[test]
fn hot_plug_refuses_read_only_disks_of_hvm_guests_and_foreign_writers() {
    let lab = Lab::new();
    let client = lab.login();
    let ((vm, _), (other, disks)) = (running(&client), halted(&client));
    let read_only = client.text("VBD.create", json!([client.vbd(&vm, &disks[0], "4", "RO")]));
    assert_eq!(
        client.refused("VBD.plug", json!([read_only])),
        ["DISK_VBD_MUST_BE_READWRITE_FOR_HVM", &read_only]
    );
    assert_eq!(client.code("VBD.set_mode", json!([read_only, "RW"])), "VM_BAD_POWER_STATE");
    client.call("VBD.destroy", json!([read_only]));
    let writable = client.text("VBD.create", json!([client.vbd(&vm, &disks[0], "4", "RW")]));
    client.call("VBD.plug", json!([writable]));
    assert_eq!(client.call("VBD.get_device", json!([writable])), "xvde");
    assert_eq!(client.refused("VBD.plug", json!([writable])), ["DEVICE_ALREADY_ATTACHED", &writable]);
    // The owner of the disk cannot start now, and the disk cannot go.
    assert_eq!(client.refused("VM.start", json!([other, false, false])), ["VDI_IN_USE", &disks[0]]);
    assert_eq!(client.refused("VDI.destroy", json!([disks[0]])), ["VDI_IN_USE", &disks[0], "destroy"]);
    assert_eq!(client.code("VBD.destroy", json!([writable])), "OPERATION_NOT_ALLOWED");
    client.call("VBD.unplug", json!([writable]));
    assert_eq!(client.refused("VBD.unplug", json!([writable])), ["DEVICE_ALREADY_DETACHED", &writable]);
    client.call("VM.start", json!([other, false, false]));
    assert_eq!(client.refused("VBD.plug", json!([writable])), ["VDI_IN_USE", &disks[0]]);
}

#[test]
fn several_readers_may_share_a_disk_but_no_writer_joins_them() {
    let lab = Lab::new();
    let client = lab.login();
    let (source, disks) = halted(&client);
    let snapshot = client.text("VM.snapshot", json!([source, "snap"]));
    let disk = client.snapshot_disk(&snapshot, &disks[0]);
    let reader = |mode: &str| {
        let (vm, _) = client.vm(json!({"name": "reader"}));
        client.call("VBD.create", json!([client.vbd(&vm, &disk, "4", mode)]));
        vm
    };
    let readers = [reader("RO"), reader("RO")];
    for vm in &readers {
        client.call("VM.start", json!([vm, false, false]));
    }
    assert_eq!(client.refused("VM.start", json!([reader("RW"), false, false])), ["VDI_IN_USE", &disk]);
    // A refused start leaves nothing attached.
    for vm in &readers {
        client.call("VM.hard_shutdown", json!([vm]));
    }
    client.call("VM.destroy", json!([snapshot]));
    client.call("VDI.destroy", json!([disk]));
}

#[test]
fn hosts_without_the_disks_or_the_memory_are_refused() {
    let lab = Lab::with(|c| c.hosts = 2);
    let client = lab.login();
    let (vm, disks) = halted(&client);
    let hosts = client.call("VM.get_possible_hosts", json!([vm]));
    assert_eq!(hosts.as_array().unwrap().len(), 1);
    let other = client
        .call("host.get_all", json!([]))
        .as_array()
        .unwrap()
        .iter()
        .find(|h| **h != hosts[0])
        .unwrap()
        .clone();
    let sr = client.text("VDI.get_SR", json!([disks[0]]));
    assert_eq!(client.refused("VM.start_on", json!([vm, other, false, false])), ["VM_REQUIRES_SR", &vm, &sr]);
    let huge = 1i64 << 40;
    client.call("VM.set_memory_limits", json!([vm, huge, huge, huge, huge]));
    assert_eq!(client.refused("VM.start", json!([vm, false, false])), ["NO_HOSTS_AVAILABLE"]);
    assert_eq!(
        client.code("VM.start_on", json!([vm, hosts[0], false, false])),
        "HOST_NOT_ENOUGH_FREE_MEMORY"
    );
    assert_eq!(client.code("VM.set_memory_limits", json!([vm, 2, 1, 1, 1])), "MEMORY_CONSTRAINT_VIOLATION");
}

#[test]
fn addresses_of_network_cards_come_from_the_seed_or_are_given() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "net"}));
    let network = client.call("network.get_by_name_label", json!(["Pool-wide network associated with eth0"]))
        [0]
    .clone();
    let vif = |device: &str, mac: &str| {
        json!([{"device": device, "network": network, "VM": vm, "MAC": mac, "MTU": 1500, "other_config": {},
            "qos_algorithm_type": "", "qos_algorithm_params": {}}])
    };
    assert_eq!(client.refused("VIF.create", vif("0", "")), ["DEVICE_ALREADY_EXISTS", "0"]);
    assert_eq!(client.refused("VIF.create", vif("1", "nonsense")), ["MAC_INVALID", "nonsense"]);
    let made = client.text("VIF.create", vif("1", ""));
    let mac = client.text("VIF.get_MAC", json!([made]));
    assert_eq!(u8::from_str_radix(&mac[..2], 16).unwrap() & 3, 2, "{mac}");
    client.call("VM.remove_from_other_config", json!([vm, "mac_seed"]));
    assert_eq!(client.refused("VIF.create", vif("2", "")), ["MAC_INVALID", ""]);
}

#[test]
fn storage_can_stay_busy_after_a_guest_has_halted() {
    let lab = Lab::with(|c| c.detach_lag = Duration::from_millis(400));
    let client = lab.login();
    let (vm, disks) = running(&client);
    client.call("VM.hard_shutdown", json!([vm]));
    client.call("VM.destroy", json!([vm]));
    assert_eq!(client.refused("VDI.destroy", json!([disks[0]])), ["VDI_IN_USE", &disks[0], "destroy"]);
    let mut tries = 0;
    while client.try_call("VDI.destroy", json!([disks[0]])).is_err() {
        tries += 1;
        assert!(tries < 100);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_full_repository_refuses_new_disks_and_snapshots() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = halted(&client);
    client.write(&disks[0], 0, &[1; 1 << 20]);
    lab.control().json("POST", "/lab/faults", Some(&json!({"sr_capacity": 1 << 20}))).unwrap();
    assert_eq!(client.code("VM.snapshot", json!([vm, "snap"])), "SR_BACKEND_FAILURE_44");
    assert_eq!(client.code("VDI.snapshot", json!([disks[0]])), "SR_BACKEND_FAILURE_44");
    assert_eq!(client.call("VM.get_snapshots", json!([vm])), json!([]));
}

#[test]
fn blocked_operations_and_running_ones_are_respected() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = halted(&client);
    client.call("VM.add_to_blocked_operations", json!([vm, "start", "MAINTENANCE"]));
    assert_eq!(
        client.refused("VM.start", json!([vm, false, false])),
        ["OPERATION_BLOCKED", &vm, "MAINTENANCE"]
    );
    client.call("VM.remove_from_blocked_operations", json!([vm, "start"]));
    let allowed = client.call("VM.get_allowed_operations", json!([vm]));
    let allowed: Vec<&str> = allowed.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert!(allowed.contains(&"start") && !allowed.contains(&"pause"), "{allowed:?}");
}

#[test]
fn a_huge_sparse_disk_snapshots_in_no_time() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) =
        client.vm(json!({"name": "huge", "disks": [{"name": "data", "size": 2u64 << 40}], "cbt": true}));
    client.write(&disks[0], (2 << 40) - 4096, &[5; 4096]);
    let started = std::time::Instant::now();
    let snapshot = client.text("VM.snapshot", json!([vm, "snap"]));
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    let disk = client.snapshot_disk(&snapshot, &disks[0]);
    assert_eq!(client.read(&disk, (2 << 40) - 4096, 4096), [5; 4096]);
    // The snapshot holds nothing itself; its allocation table alone is 4 MiB.
    assert!(client.call("VDI.get_physical_utilisation", json!([disk])).as_i64().unwrap() < 5 << 20);
}
