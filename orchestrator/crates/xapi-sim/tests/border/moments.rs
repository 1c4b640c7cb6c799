//! Moments of a VM other than the plain snapshot, and the ways back to one.

use crate::support::{Client, Lab, NULL};
use serde_json::{Value, json};
use xapi_sim::Flavour;

const K: u64 = 65_536;

fn old(name: &str) -> Lab {
    Lab::with(|config| config.flavour = Flavour::by_name(name).unwrap())
}

fn running(client: &Client<'_>) -> (String, Vec<String>) {
    let disks = json!([{"name": "root", "size": 8 * K}, {"name": "data", "size": 8 * K}]);
    client.vm(json!({"name": "on", "disks": disks, "running": true, "cbt": true, "memory": 64 << 20}))
}

fn record(client: &Client<'_>, class: &str, reference: &Value) -> Value {
    client.call(&format!("{class}.get_record"), json!([reference]))
}

#[test]
fn a_checkpoint_keeps_the_memory_and_the_vm_runs_on() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = running(&client);
    client.write(&disks[0], 0, &[7; 512]);
    let checkpoint = client.text("VM.checkpoint", json!([vm, "with memory"]));
    let snapshot = record(&client, "VM", &json!(checkpoint));
    for (field, value) in [
        ("name_label", json!("with memory")),
        ("power_state", json!("Suspended")),
        ("is_a_snapshot", json!(true)),
        ("snapshot_of", json!(vm)),
        (
            "snapshot_info",
            json!({"power-state-at-snapshot": "Running", "disk-snapshot-type": "crash_consistent"}),
        ),
        ("domid", json!(-1)),
    ] {
        assert_eq!(snapshot[field], value, "{field}");
    }
    let live = record(&client, "VM", &json!(vm));
    assert_eq!((&live["power_state"], &live["suspend_VDI"]), (&json!("Running"), &json!(NULL)));
    assert_eq!(live["parent"], json!(checkpoint));
    let image = record(&client, "VDI", &snapshot["suspend_VDI"]);
    assert_eq!((&image["type"], &image["name_label"]), (&json!("suspend"), &json!("Suspend image")));
    assert_eq!((&image["is_a_snapshot"], &image["VBDs"]), (&json!(true), &json!([])));
    // Memory, a fifth and a twentieth more, and 100 MiB.
    assert_eq!(image["virtual_size"], json!((64 << 20) / 100 * 126 + (100 << 20)));
    let memory = client.read(snapshot["suspend_VDI"].as_str().unwrap(), 0, K);
    assert!(memory.chunks(512).all(|sector| sector.iter().any(|byte| *byte != 0)));
    let disk = client.snapshot_disk(&checkpoint, &disks[0]);
    assert_eq!(client.read(&disk, 0, 512), [7; 512]);
    // Nothing but the snapshot's own image is left of the memory.
    let images = client.call("VDI.get_all_records", json!([]));
    let images = images.as_object().unwrap().values();
    assert_eq!(images.filter(|vdi| vdi["type"] == "suspend").count(), 1);
}

#[test]
fn the_record_of_a_checkpoint_claims_its_disks_but_not_their_bitmaps() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = running(&client);
    let before = client.text("VM.snapshot", json!([vm, "before"]));
    let before = client.snapshot_disk(&before, &disks[0]);
    client.write(&disks[0], 3 * K, &[1]);
    let checkpoint = client.text("VM.checkpoint", json!([vm, "c"]));
    let disk = client.snapshot_disk(&checkpoint, &disks[0]);
    let vbd = client.call("VDI.get_VBDs", json!([disk]))[0].clone();
    assert_eq!(client.call("VBD.get_currently_attached", json!([vbd])), true);
    assert_eq!(client.changed(&before, &disk), [3]);
    assert_eq!(client.refused("VDI.destroy", json!([disk])), ["VDI_IN_USE", &disk, "destroy"]);
    // Another VM may read it all the same.
    let (reader, _) = client.vm(json!({"name": "reader"}));
    client.call("VBD.create", json!([client.vbd(&reader, &disk, "4", "RO")]));
    client.call("VM.start", json!([reader, false, false]));
    client.call("VM.hard_shutdown", json!([reader]));
    client.call("VM.destroy", json!([reader]));
    // Destroying the record leaves all disks, the memory image too.
    let image = client.text("VM.get_suspend_VDI", json!([checkpoint]));
    client.call("VM.destroy", json!([checkpoint]));
    assert_eq!(client.call("VDI.get_type", json!([image])), "suspend");
    client.call("VDI.destroy", json!([image]));
    client.call("VDI.destroy", json!([disk]));
}

#[test]
fn shutting_a_checkpoint_down_drops_its_memory() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = running(&client);
    let checkpoint = client.text("VM.checkpoint", json!([vm, "c"]));
    let image = client.text("VM.get_suspend_VDI", json!([checkpoint]));
    client.call("VM.hard_shutdown", json!([checkpoint]));
    assert_eq!(client.code("VDI.get_type", json!([image])), "HANDLE_INVALID");
    let snapshot = record(&client, "VM", &json!(checkpoint));
    assert_eq!((&snapshot["power_state"], &snapshot["suspend_VDI"]), (&json!("Halted"), &json!(NULL)));
}

#[test]
fn a_checkpoint_that_finds_no_room_leaves_nothing_and_the_vm_running() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = running(&client);
    let inventory = || lab.control().json("GET", "/lab/inventory", None).unwrap();
    let before = inventory();
    let sr = client.call("pool.get_all_records", json!([]));
    let sr = sr.as_object().unwrap().values().next().unwrap()["suspend_image_SR"].clone();
    lab.control().json("POST", "/lab/faults", Some(&json!({"sr_capacity": 1 << 13}))).unwrap();
    let refused = client.refused("VM.checkpoint", json!([vm, "c"]));
    assert_eq!(refused, ["SR_SUSPEND_SPACE_INSUFFICIENT", sr.as_str().unwrap()]);
    // Here the image fits, but the snapshots of the disks do not.
    let used = client.call("SR.get_physical_utilisation", json!([sr])).as_i64().unwrap();
    let image = 4096 + (64 / 4) * ((2 << 20) + 4096);
    lab.control().json("POST", "/lab/faults", Some(&json!({"sr_capacity": used + image + 4096}))).unwrap();
    assert_eq!(client.code("VM.checkpoint", json!([vm, "c"])), "SR_BACKEND_FAILURE_44");
    assert_eq!(inventory(), before);
    assert_eq!(client.call("VM.get_power_state", json!([vm])), "Running");
    let (halted, _) = client.vm(json!({"name": "off"}));
    assert_eq!(client.code("VM.checkpoint", json!([halted, "c"])), "VM_BAD_POWER_STATE");
}

#[test]
fn a_quiesced_snapshot_needs_an_old_release_and_an_agent() {
    for (flavour, has_it) in
        [("xs-6.5", true), ("xs-7.2", true), ("ch-8.0", true), ("ch-8.2", false), ("xcp-8.3", false)]
    {
        let lab = old(flavour);
        let client = lab.login();
        let vm = |quiesce: bool, running: bool| {
            client.vm(json!({"name": "v", "quiesce": quiesce, "running": running})).0
        };
        let (able, unable, off) = (vm(true, true), vm(false, true), vm(true, false));
        let offered = |vm: &str| {
            let allowed = client.call("VM.get_allowed_operations", json!([vm]));
            allowed.as_array().unwrap().contains(&json!("snapshot_with_quiesce"))
        };
        assert_eq!((offered(&able), offered(&unable)), (has_it, false), "{flavour}");
        let unsupported = |vm: &str| vec!["VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED".to_owned(), vm.to_owned()];
        let quiesce = |vm: &str| client.try_call("VM.snapshot_with_quiesce", json!([vm, "q"]));
        let check = json!([unable, "snapshot_with_quiesce"]);
        assert_eq!(client.refused("VM.assert_operation_valid", check), unsupported(&unable), "{flavour}");
        if has_it {
            assert_eq!(quiesce(&unable).unwrap_err(), unsupported(&unable), "{flavour}");
            assert_eq!(quiesce(&off).unwrap_err()[0], "VM_BAD_POWER_STATE", "{flavour}");
            let snapshot = record(&client, "VM", &quiesce(&able).unwrap());
            assert_eq!(snapshot["snapshot_info"]["disk-snapshot-type"], "quiesced");
            assert_ne!(snapshot["transportable_snapshot_id"], "");
        } else {
            assert_eq!(quiesce(&able).unwrap_err(), ["MESSAGE_REMOVED"], "{flavour}");
        }
    }
}

#[test]
fn a_reverted_vm_has_other_disks_without_tracking() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = running(&client);
    client.write(&disks[0], 0, &[1; 512]);
    let first = client.text("VM.snapshot", json!([vm, "first"]));
    client.write(&disks[0], 0, &[2; 512]);
    let second = client.text("VM.snapshot", json!([vm, "second"]));
    let of = |snapshot: &str| client.snapshot_disk(snapshot, &disks[0]);
    let (first_disk, second_disk) = (of(&first), of(&second));
    let mac = |vm: &str| client.text("VIF.get_MAC", json!([client.call("VM.get_VIFs", json!([vm]))[0]]));
    let address = mac(&vm);
    let (name, uuid) =
        (client.text("VM.get_name_label", json!([vm])), client.text("VM.get_uuid", json!([vm])));

    client.call("VM.revert", json!([first]));
    let live = record(&client, "VM", &json!(vm));
    assert_eq!((&live["power_state"], &live["parent"]), (&json!("Halted"), &json!(first)));
    assert_eq!((&live["name_label"], &live["uuid"]), (&json!(name), &json!(uuid)));
    assert_eq!((&live["is_a_template"], &live["is_a_snapshot"]), (&json!(false), &json!(false)));
    assert_eq!(mac(&vm), address);
    assert_eq!(client.code("VDI.get_uuid", json!([disks[0]])), "HANDLE_INVALID");
    let disk_of = |vbd: &Value| client.text("VBD.get_VDI", json!([vbd]));
    let now: Vec<String> = live["VBDs"].as_array().unwrap().iter().map(disk_of).collect();
    assert_eq!(now.len(), 2);
    let root = now.iter().find(|vdi| client.read(vdi, 0, 512) == [1; 512]).expect("the reverted disk");
    assert_eq!(client.call("VDI.get_cbt_enabled", json!([root])), false);
    // Every snapshot of the old disk is one of the new disk, but no bitmap leads from them to later ones.
    for snapshot in [&first_disk, &second_disk] {
        assert_eq!(client.text("VDI.get_snapshot_of", json!([snapshot])), *root);
    }
    let third = client.text("VM.snapshot", json!([vm, "third"]));
    let third = client.snapshot_disk(&third, root);
    assert_eq!(client.code("VDI.list_changed_blocks", json!([second_disk, third])), "SR_BACKEND_FAILURE_460");
    assert_eq!(client.refused("VM.revert", json!([vm])), ["REVERT_ONLY_ALLOWED_ON_SNAPSHOT"]);
}

#[test]
fn reverting_keeps_disks_that_came_later_and_memory_that_was_saved() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = running(&client);
    let checkpoint = client.text("VM.checkpoint", json!([vm, "c"]));
    let sr = client.call("VDI.get_SR", json!([disks[0]]));
    let added = client.text(
        "VDI.create",
        json!([{"name_label": "later", "name_description": "", "SR": sr, "virtual_size": 4096, "type": "user",
            "sharable": false, "read_only": false, "other_config": {}}]),
    );
    client.call("VBD.create", json!([client.vbd(&vm, &added, "5", "RW")]));
    client.call("VM.revert", json!([checkpoint]));
    let live = record(&client, "VM", &json!(vm));
    assert_eq!((&live["power_state"], live["VBDs"].as_array().unwrap().len()), (&json!("Suspended"), 2));
    assert_eq!(client.call("VDI.get_VBDs", json!([added])), json!([]));
    let (saved, restored) =
        (client.text("VM.get_suspend_VDI", json!([checkpoint])), live["suspend_VDI"].as_str().unwrap());
    assert_ne!(saved, restored);
    assert_eq!(client.read(&saved, 0, K), client.read(restored, 0, K));
    client.call("VM.hard_shutdown", json!([vm]));
    client.call("VM.start", json!([vm, false, false]));
}

#[test]
fn a_revert_without_room_says_so() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": K}]}));
    let snapshot = client.text("VM.snapshot", json!([vm, "s"]));
    lab.control().json("POST", "/lab/faults", Some(&json!({"sr_capacity": 1}))).unwrap();
    assert_eq!(client.code("VM.revert", json!([snapshot])), "SR_BACKEND_FAILURE_44");
}

#[test]
fn a_tracked_disk_cannot_move_and_a_moved_one_is_another_vdi() {
    let lab = Lab::with(|config| {
        config.hosts = 2;
        config.srs = vec!["name=nfs,type=nfs".parse().unwrap(), "name=far,type=ext,host=2".parse().unwrap()];
    });
    let client = lab.login();
    let (vm, disks) = running(&client);
    client.write(&disks[0], K, &[5; 512]);
    let snapshot = client.text("VDI.snapshot", json!([disks[0]]));
    let sr = |name: &str| client.call("SR.get_by_name_label", json!([name]))[0].clone();
    let (nfs, far) = (sr("nfs"), sr("far"));
    let go = |disk: &str, sr: &Value| client.try_call("VDI.pool_migrate", json!([disk, sr, {}]));
    assert_eq!(go(&disks[0], &nfs).unwrap_err(), ["VDI_CBT_ENABLED", &disks[0]]);
    assert_eq!(go(&snapshot, &nfs).unwrap_err(), ["VDI_NEEDS_VM_FOR_MIGRATE", &snapshot]);
    client.call("VDI.disable_cbt", json!([disks[0]]));
    assert_eq!(go(&disks[0], &far).unwrap_err(), ["VM_REQUIRES_SR", &vm, far.as_str().unwrap()]);
    let moved = go(&disks[0], &nfs).unwrap();
    let record = record(&client, "VDI", &moved);
    assert_eq!((&record["SR"], &record["cbt_enabled"]), (&nfs, &json!(false)));
    assert_eq!(client.read(moved.as_str().unwrap(), K, 512), [5; 512]);
    assert_eq!(client.code("VDI.get_uuid", json!([disks[0]])), "HANDLE_INVALID");
    assert_eq!(client.call("VDI.get_snapshot_of", json!([snapshot])), moved);
    let vbd = record["VBDs"][0].clone();
    assert_eq!(client.call("VBD.get_VM", json!([vbd])), json!(vm));
    assert_eq!(client.call("VBD.get_currently_attached", json!([vbd])), true);
}
