//! Change tracking that breaks: the run says so, reads what it must, and leaves a reference that works.

use super::{Bench, causes, modes};
use e2e::{Api, Inventory, noise};
use serde_json::{Value, json};

/// Breaks the tracking of every disk.
fn reset(bench: &Bench, how: &str) {
    for vdi in &bench.vm.vdis {
        bench.lab.post(&format!("/lab/vdi/{vdi}/cbt-reset?how={how}"), None);
    }
}

/// The references in the pool.
fn references(bench: &Bench) -> Vec<String> {
    let inventory = Inventory::take(&bench.lab);
    let references = inventory.references(&bench.vm);
    references.all("VDI").map(|vdi| vdi["uuid"].as_str().expect("a uuid").to_owned()).collect()
}

#[test]
fn a_damaged_log_of_changes_is_started_anew_in_the_same_run() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    reset(&bench, "inconsistent");
    let run = bench.backup().ok();
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["tracking-inconsistent"; 2]));
    run.says("change tracking of web01 is started anew").says("SR_BACKEND_FAILURE_459");
    bench.assert_stored();
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_reference_that_the_pool_cannot_relate_means_a_scan_with_its_reason() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    reset(&bench, "restarted");
    let run = bench.assert_good(bench.backup());
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["reference-unusable"; 2]));
    run.says("the pool cannot relate the reference").says("SR_BACKEND_FAILURE_460");
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_reference_that_is_useless_twice_in_a_row_makes_tracking_start_anew() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    reset(&bench, "restarted");
    bench.assert_good(bench.backup());
    bench.write();
    reset(&bench, "restarted");
    let run = bench.backup().ok();
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["tracking-inconsistent"; 2]));
    run.says("for the second time in a row");
    bench.assert_stored();
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn tracking_that_the_storage_switched_off_is_switched_on_again() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    reset(&bench, "off");
    let run = bench.assert_good(bench.backup());
    assert_eq!(modes(&run), ["scan"; 2]);
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_reference_that_somebody_removed_is_named_and_made_anew() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let references = references(&bench);
    for reference in &references {
        bench.lab.destroy_vdi(reference);
    }
    let run = bench.assert_good(bench.backup());
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["reference-missing"; 2]));
    for reference in references {
        run.says(&format!("the reference VDI {reference} is gone from the pool"));
    }
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_vm_that_was_reverted_has_other_disks_and_is_read_whole() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    let api = Api::new(&bench.lab);
    let vm = api.find("VM", &bench.vm.uuid);
    let snapshot = api.call("VM.snapshot", json!([vm, "before the update"]));
    bench.write();
    api.call("VM.revert", json!([snapshot]));
    let vbds = api.call("VM.get_VBDs", json!([vm]));
    let mut disks: Vec<(String, String)> = vbds
        .as_array()
        .expect("a list")
        .iter()
        .map(|vbd| {
            let vdi = api.call("VBD.get_VDI", json!([vbd]));
            let device = api.call("VBD.get_userdevice", json!([vbd]));
            (device.as_str().expect("a text").to_owned(), api.uuid("VDI", &vdi))
        })
        .collect();
    disks.sort();
    bench.vm.vdis = disks.into_iter().map(|(_, vdi)| vdi).collect();
    // The references of the disks that are gone go with the next clean-up.
    bench.lab.abd(&["reconcile"]).ok();
    bench.before = Inventory::take(&bench.lab);
    let run = bench.assert_good(bench.backup());
    assert_eq!((modes(&run), causes(&run)), (vec!["full"; 2], vec!["first-backup"; 2]));
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_licence_without_change_tracking_is_named_and_everything_is_compared() {
    let Some(mut bench) = Bench::new(&[]) else { return };
    bench.fault(json!({"cbt_licensed": false}));
    assert_eq!(modes(&bench.backup().ok()), ["full"; 2]);
    bench.write();
    let run = bench.backup().ok();
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["tracking-unlicensed"; 2]));
    run.says("licence has no change tracking");
    bench.assert_stored();
    bench.assert_clean();
    // A licence with it is applied.
    bench.fault(json!({"cbt_licensed": true}));
    bench.assert_next_run_is("scan");
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_reserved_snapshot_that_somebody_removed_is_named_and_made_anew() {
    let Some(mut bench) = Bench::new(&["--flavour", "xs-7.2"]) else { return };
    bench.backup().ok();
    bench.write();
    let inventory = Inventory::take(&bench.lab).references(&bench.vm);
    let api = Api::new(&bench.lab);
    for (class, member) in [("VM", "uuid"), ("VDI", "uuid")] {
        for object in inventory.all(class) {
            let reference = api.find(class, object[member].as_str().expect("a uuid"));
            api.call(&format!("{class}.destroy"), json!([reference]));
        }
    }
    let run = bench.backup().ok();
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["reference-missing"; 2]));
    run.says("of the reserved snapshot is gone from the pool; a new one is made");
    bench.assert_stored();
    bench.assert_clean();
    bench.assert_next_run_is("vhd-diff");
}

#[test]
fn a_pool_before_change_tracking_keeps_one_reserved_snapshot_and_reads_the_difference() {
    let Some(mut bench) = Bench::new(&["--flavour", "xs-7.2"]) else { return };
    assert_eq!(modes(&bench.backup().ok()), ["full"; 2]);
    for _ in 0..3 {
        bench.assert_next_run_is("vhd-diff");
        let counts = Inventory::take(&bench.lab).reference_counts(&bench.vm);
        assert_eq!(counts, [1, 1]);
    }
}

#[test]
fn writes_that_tracking_missed_raise_an_alarm_and_the_backup_is_whole_all_the_same() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    bench.assert_next_run_is("cbt");
    // The guest writes to every part of the disk, and the log forgets it.
    let vdi = bench.vm.vdis[0].clone();
    bench.lab.write(&vdi, 0, &noise(9, 3 << 20));
    bench.lab.post(&format!("/lab/vdi/{vdi}/cbt-forget"), None);
    let earlier: Vec<_> = bench.lab.points(&bench.vm.uuid).iter().map(|stored| stored.id).collect();
    let run = bench.backup();
    run.fails_with(13);
    let alarms = run.all("alarm");
    assert_eq!(alarms.len(), 1, "{:#?}", run.events);
    assert!(alarms[0]["message"].as_str().expect("a text").contains("were not tracked"), "{alarms:?}");
    assert_eq!(causes(&run), ["audit-alarm", "changes-listed"]);
    bench.assert_stored();
    // The points since the last one that read everything are marked, and those before are not.
    let points = bench.lab.points(&bench.vm.uuid);
    let suspect = &points.last().expect("a restore point").point.disks[0].suspect;
    assert_eq!(suspect, &earlier[1..].iter().rev().copied().collect::<Vec<_>>());
    let list: Value = bench.lab.abd(&["list"]).ok().answer().clone();
    assert!(list.to_string().contains("suspect"), "{list:#}");
    bench.lab.abd(&["reconcile"]).ok();
    bench.write();
    let run = bench.backup().ok();
    assert_eq!(modes(&run), ["scan", "cbt"]);
    bench.assert_stored();
    bench.assert_next_run_is("cbt");
    bench.lab.assert_store_whole();
}

#[test]
fn a_point_dated_in_the_future_is_never_joined_with_the_changes_of_another() {
    let Some(mut bench) = Bench::new(&[]) else { return };
    bench.backup().ok();
    // The clock was fast when the first point was made: by time it stays the newest for ever.
    let store = ads::Store::open(&bench.lab.store()).expect("the store opens");
    let first = bench.lab.points(&bench.vm.uuid).remove(0);
    let mut point = first.point.clone();
    point.created = "2099-01-01T00:00:00Z".into();
    store.commit_point(&point).expect("committed");
    store.remove_point(first.id).expect("removed");
    drop(store);
    for _ in 0..3 {
        bench.write();
        let run = bench.backup().ok();
        let made = run.job("web01")["point"].as_str().expect("an id").to_owned();
        let points = bench.lab.points(&bench.vm.uuid);
        let point = points.iter().find(|stored| stored.id.to_string() == made).expect("the point");
        for disk in &point.point.disks {
            assert_eq!(bench.lab.stored_digest(disk), bench.lab.digest(&disk.vdi), "{disk:?}");
        }
    }
}

#[test]
fn a_list_of_disks_that_is_refused_leaves_one_reference_for_each_disk() {
    let Some(mut bench) = Bench::tracked(&[]) else { return };
    for nth in 1.. {
        let refusal = ["INTERNAL_ERROR", "the lab says so"];
        bench.fault(json!({"method": "VDI.get_all_records", "nth": nth, "error": refusal}));
        let run = bench.backup();
        if bench.lab.get("/lab/faults")["planned"] != json!([]) {
            assert!(
                nth > 3,
                "a job asks for its disks, for the references that it replaces, and for leftovers"
            );
            return;
        }
        println!("VDI.get_all_records {nth} refused: {} {:?}", run.code, run.warnings());
        let wanted = bench.vm.vdis.len();
        assert!(run.code != 0 || references(&bench).len() == wanted, "{nth}");
        bench.lab.abd(&["reconcile"]).ok();
        assert_eq!(references(&bench).len(), wanted, "{nth}, after a clean-up");
        bench.write();
    }
}
