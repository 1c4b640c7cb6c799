//! What a job was told, where the pool cannot do it, or makes it hard.

use super::{Bench, MIB, causes, modes};
use ads::DiskKind;
use e2e::{Api, Inventory, Lab, Output, Vm, noise};
use serde_json::json;

impl Bench {
    fn backup_with(&self, options: &[&str]) -> Output {
        let arguments: Vec<&str> = ["backup", self.vm.uuid.as_str()].iter().chain(options).copied().collect();
        self.lab.abd(&arguments)
    }

    /// Destroys the references, as another program's clean-up does.
    fn lose_references(&self) {
        for vdi in Inventory::take(&self.lab).references(&self.vm).all("VDI") {
            self.lab.destroy_vdi(vdi["uuid"].as_str().expect("a uuid"));
        }
    }
}

#[test]
fn a_job_that_demands_change_tracking_refuses_to_read_everything() {
    let Some(mut bench) = Bench::new(&[]) else { return };
    // A disk has to be read whole once.
    bench.assert_good(bench.backup_with(&["--require-cbt"]));
    bench.write();
    bench.assert_good(bench.backup_with(&["--require-cbt"]));
    bench.lose_references();
    bench.before = Inventory::take(&bench.lab);
    let points = bench.lab.points(&bench.vm.uuid).len();
    let run = bench.backup_with(&["--require-cbt"]);
    run.fails_with(1);
    run.says("cannot be listed and the job demands it")
        .says("is gone from the pool")
        .says("run once without");
    assert_eq!(bench.lab.points(&bench.vm.uuid).len(), points);
    bench.assert_clean();
    bench.assert_next_run_is("scan");
    bench.write();
    let run = bench.assert_good(bench.backup_with(&["--require-cbt"]));
    assert_eq!(modes(&run), ["cbt", "cbt"]);
}

#[test]
fn a_job_without_change_tracking_switches_nothing_on_and_keeps_nothing() {
    let Some(mut bench) = Bench::new(&[]) else { return };
    bench.assert_good(bench.backup_with(&["--cbt", "off"]));
    bench.write();
    let run = bench.assert_good(bench.backup_with(&["--cbt", "off"]));
    assert_eq!((modes(&run), causes(&run)), (vec!["scan"; 2], vec!["tracking-off"; 2]));
    let now = Inventory::take(&bench.lab);
    assert_eq!(now.reference_counts(&bench.vm), [0, 0]);
    assert!(now.all("VDI").all(|vdi| vdi["cbt_enabled"] == false));
    bench.assert_next_run_is("scan");
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_host_that_cannot_quiesce_makes_a_plain_snapshot_and_says_so() {
    let Some(mut bench) = Bench::new(&[]) else { return };
    let run = bench.backup_with(&["--quiesce"]).ok();
    run.says("is not quiesced, its disks are as after a power cut");
    assert!(!bench.lab.points(&bench.vm.uuid)[0].point.quiesced);
    bench.assert_stored();
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

/// A VM whose guest agent can quiesce it, on a release that has that.
fn quiescing() -> Option<Bench> {
    let lab = Lab::quick(&["--flavour", "xs-7.6"])?;
    let disks = json!([{"name": "system", "size": 2 * MIB}]);
    let made = json!({"name": "web01", "disks": disks, "running": true, "quiesce": true});
    Some(Bench::of_made(lab, &made))
}

#[test]
fn a_guest_that_can_is_quiesced() {
    let Some(mut bench) = quiescing() else { return };
    bench.assert_good(bench.backup_with(&["--quiesce"]));
    assert!(bench.lab.points(&bench.vm.uuid)[0].point.quiesced);
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_guest_that_fails_to_quiesce_is_backed_up_as_after_a_power_cut() {
    let Some(mut bench) = quiescing() else { return };
    let refusal = ["VM_SNAPSHOT_WITH_QUIESCE_FAILED", "OpaqueRef:x", "VSS timed out"];
    bench.fault(json!({"method": "VM.snapshot_with_quiesce", "error": refusal}));
    let run = bench.backup_with(&["--quiesce"]).ok();
    run.says("is not quiesced").says("VM_SNAPSHOT_WITH_QUIESCE_FAILED");
    assert!(!bench.lab.points(&bench.vm.uuid)[0].point.quiesced);
    bench.assert_stored();
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_checkpoint_has_the_memory_beside_the_disks_and_the_vm_runs_on() {
    let Some(mut bench) = Bench::new(&["--snapshot-digests"]) else { return };
    let run = bench.backup_with(&["--checkpoint"]).ok();
    assert_eq!(modes(&run).len(), 3, "two disks and the memory");
    let log = bench.lab.log();
    let content = log.iter().rfind(|entry| entry["kind"] == "snapshot-content").expect("a checkpoint");
    let point = &bench.lab.points(&bench.vm.uuid)[0].point;
    assert!(point.checkpoint);
    let (memory, disks): (Vec<_>, Vec<_>) =
        point.disks.iter().partition(|disk| disk.kind == DiskKind::Suspend);
    let stored = bench.lab.stored_digest(memory[0]);
    assert_eq!(stored["sparse_sha256"], content["suspend_image"]["digest"], "{content:#}");
    for (disk, vdi) in disks.iter().zip(&bench.vm.vdis) {
        assert_eq!(bench.lab.stored_digest(disk), bench.lab.digest(vdi));
    }
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

#[test]
fn a_checkpoint_of_a_vm_that_is_off_is_a_snapshot_and_says_so() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    let mut bench = Bench::of(lab, vm);
    let run = bench.backup_with(&["--checkpoint"]).ok();
    run.says("a snapshot without memory is made");
    bench.assert_stored();
    bench.assert_clean();
    bench.assert_next_run_is("cbt");
}

/// A VM with four disks, of which three are to be left out, each by another of its traits.
fn excluding(flavour: &str) -> Option<(Bench, Vec<String>)> {
    let lab = Lab::quick(&["--flavour", flavour])?;
    let vm = lab.vm_with("web01", &[2 * MIB, MIB, MIB, MIB], true);
    for (at, vdi) in (1..).zip(&vm.vdis) {
        lab.write(vdi, 0, &noise(at, 100_000));
    }
    let api = Api::new(&lab);
    api.call("VDI.add_tags", json!([api.find("VDI", &vm.vdis[1]), "scratch"]));
    let options = ["tag:scratch".to_owned(), "position:2".to_owned(), format!("uuid:{}", vm.vdis[3])];
    let options = options.into_iter().flat_map(|disk| ["--exclude-disk".to_owned(), disk]).collect();
    let kept = Vm { vdis: vec![vm.vdis[0].clone()], ..vm };
    drop(api);
    Some((Bench::of(lab, kept), options))
}

#[test]
fn disks_that_are_left_out_are_not_read_and_nothing_stays_of_them() {
    // Before 8.2 they are in the snapshot all the same.
    for (flavour, next) in [("xcp-8.3", "cbt"), ("xs-7.6", "cbt"), ("xs-7.2", "vhd-diff")] {
        let Some((mut bench, options)) = excluding(flavour) else { return };
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        for expected in ["full", next, next] {
            bench.write();
            let run = bench.assert_good(bench.backup_with(&options));
            assert_eq!(modes(&run), [expected], "{flavour}");
        }
    }
}
