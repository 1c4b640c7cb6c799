//! Disks that come and go, many of them, and in several places.

use super::{Bench, MIB, causes, modes};
use e2e::{Api, Inventory, Lab, Vm, noise};
use serde_json::{Value, json};

/// Gives a VM another disk at a position. Gives its uuid.
fn add_disk(api: &Api, vm: &Vm, position: u32, size: u64) -> String {
    let pool = api.call("pool.get_all_records", json!([]));
    let sr = pool.as_object().expect("records").values().next().expect("a pool")["default_SR"].clone();
    let vdi = api.call(
        "VDI.create",
        json!([{
            "name_label": format!("disk {position}"), "name_description": "", "SR": sr,
            "virtual_size": size, "type": "user", "sharable": false, "read_only": false,
            "other_config": {}, "xenstore_data": {}, "sm_config": {}, "tags": [],
        }]),
    );
    attach(api, vm, position, &vdi);
    api.uuid("VDI", &vdi)
}

fn attach(api: &Api, vm: &Vm, position: u32, vdi: &Value) {
    api.call(
        "VBD.create",
        json!([{
            "VM": api.find("VM", &vm.uuid), "VDI": vdi, "userdevice": position.to_string(),
            "bootable": false, "mode": "RW", "type": "Disk", "unpluggable": true, "empty": false,
            "other_config": {}, "qos_algorithm_type": "", "qos_algorithm_params": {},
        }]),
    );
}

/// Takes a disk from its VM; the disk stays.
fn detach(api: &Api, vdi: &str) -> Value {
    let vdi = api.find("VDI", vdi);
    for vbd in api.call("VDI.get_VBDs", json!([vdi])).as_array().expect("a list") {
        api.call("VBD.destroy", json!([vbd]));
    }
    vdi
}

/// A VM that is switched off, so that its disks can be moved, backed up once.
fn halted(sizes: &[u64]) -> Option<Bench> {
    let lab = Lab::quick(&[])?;
    let vm = lab.vm("web01", sizes);
    for (at, vdi) in (1..).zip(&vm.vdis) {
        lab.write(vdi, 0, &noise(at, 100_000));
    }
    let bench = Bench::of(lab, vm);
    bench.backup().ok();
    Some(bench)
}

#[test]
fn a_disk_that_was_added_is_read_whole_and_the_others_are_not() {
    let Some(mut bench) = halted(&[2 * MIB, MIB]) else { return };
    let added = add_disk(&Api::new(&bench.lab), &bench.vm, 7, 3 * MIB);
    bench.lab.write(&added, 0, &noise(7, 100_000));
    bench.vm.vdis.push(added);
    bench.before = Inventory::take(&bench.lab);
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), ["cbt", "cbt", "full"]);
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_disk_that_was_removed_is_no_longer_backed_up_and_its_reference_goes_when_it_is_destroyed() {
    let Some(mut bench) = halted(&[2 * MIB, MIB]) else { return };
    let api = Api::new(&bench.lab);
    let vdi = detach(&api, &bench.vm.vdis.remove(0));
    bench.before = Inventory::take(&bench.lab);
    assert_eq!(modes(&bench.assert_good(bench.backup())), ["cbt"]);
    api.call("VDI.destroy", json!([vdi]));
    let reconciled = bench.lab.abd(&["reconcile"]).ok();
    assert_eq!(reconciled.answer()["removed"].as_array().expect("a list").len(), 1);
    bench.before = Inventory::take(&bench.lab);
    bench.assert_next_run_is("cbt");
}

#[test]
fn disks_that_changed_places_are_not_mistaken_for_each_other() {
    let Some(mut bench) = halted(&[2 * MIB, 2 * MIB]) else { return };
    let api = Api::new(&bench.lab);
    let disks: Vec<Value> = bench.vm.vdis.iter().map(|vdi| detach(&api, vdi)).collect();
    for (position, vdi) in (0..).zip(disks.iter().rev()) {
        attach(&api, &bench.vm, position, vdi);
    }
    bench.vm.vdis.reverse();
    bench.before = Inventory::take(&bench.lab);
    bench.write();
    assert_eq!(modes(&bench.assert_good(bench.backup())), ["cbt", "cbt"]);
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_disk_that_grew_is_read_where_it_is_new() {
    let Some(mut bench) = halted(&[2 * MIB + 512, MIB]) else { return };
    bench.lab.resize(&bench.vm.vdis[0], 5 * MIB);
    bench.lab.write(&bench.vm.vdis[0], 4 * MIB, &noise(1, 5000));
    bench.before = Inventory::take(&bench.lab);
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), ["cbt", "cbt"]);
    run.says("and the disk grew from");
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_disk_that_was_replaced_at_its_place_is_another_disk() {
    let Some(mut bench) = halted(&[2 * MIB, MIB]) else { return };
    let api = Api::new(&bench.lab);
    let old = detach(&api, &bench.vm.vdis[1]);
    api.call("VDI.destroy", json!([old]));
    bench.vm.vdis[1] = add_disk(&api, &bench.vm, 1, MIB);
    bench.lab.write(&bench.vm.vdis[1], 0, &noise(3, 50_000));
    bench.lab.abd(&["reconcile"]).ok();
    bench.before = Inventory::take(&bench.lab);
    let run = bench.assert_good(bench.backup());
    assert_eq!((modes(&run), causes(&run)), (vec!["cbt", "full"], vec!["changes-listed", "first-backup"]));
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_vm_with_twenty_disks_is_read_by_two_delegates_over_one_snapshot() {
    let Some(mut bench) = Bench::with_disks(&[], &[MIB; 20]) else { return };
    let count = |bench: &Bench, method: &str| {
        let named = |entry: &&Value| entry["method"].as_str().is_some_and(|found| found.ends_with(method));
        bench.lab.log().iter().filter(|entry| entry["kind"] == "call").filter(named).count()
    };
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), vec!["full"; 20]);
    run.says("delegate 2 of 2");
    assert_eq!((count(&bench, "VM.snapshot"), count(&bench, "VM.clone")), (1, 2));
    bench.assert_next_run_is("cbt");
}

#[test]
fn disks_on_local_storage_of_two_hosts_are_read_on_each() {
    let Some(lab) = Lab::quick(&["--hosts", "2"]) else { return };
    let locals = lab.local_storage();
    assert_eq!(locals.len(), 2, "a local repository on each host");
    for sr in &locals {
        lab.abd(&["template", "import", &lab.template(), "--sr", sr]).ok();
    }
    let disks: Vec<Value> = (0..)
        .zip(&locals)
        .map(|(at, sr)| json!({"name": format!("disk {at}"), "size": 2 * MIB, "sr": sr}))
        .collect();
    let mut bench = Bench::of_made(lab, &json!({"name": "web01", "disks": disks}));
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), ["full", "full"]);
    run.says("delegate 2 of 2");
    bench.assert_next_run_is("cbt");
}

#[test]
fn two_stores_of_one_vm_have_references_of_their_own() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let other = bench.lab.path("other").display().to_string();
    let into_other =
        |bench: &Bench| bench.lab.abd(&["--store", &other, "backup", "--init-store", &bench.vm.uuid]).ok();
    assert_eq!(modes(&into_other(&bench)), ["full", "full"]);
    let counts = |bench: &Bench| Inventory::take(&bench.lab).reference_counts(&bench.vm);
    assert_eq!(counts(&bench), [2, 2]);
    for _ in 0..2 {
        bench.write();
        assert_eq!(modes(&bench.backup().ok()), ["cbt", "cbt"]);
        bench.assert_stored();
        bench.write();
        assert_eq!(modes(&into_other(&bench)), ["cbt", "cbt"]);
        assert_eq!(counts(&bench), [2, 2], "each store keeps one and drops only its own");
    }
    bench.lab.abd(&["--store", &other, "verify", "--read-data"]).ok();
    let left = Inventory::take(&bench.lab);
    let left = left.without(&left.references(&bench.vm));
    assert_eq!(left.differences(&bench.before), [""; 0]);
}
