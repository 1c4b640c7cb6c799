//! `abd plan` says what the backup that follows it does: the same calls in the same order, and the same reasons.
//! Delegates are processes here: what they do to disks is shown elsewhere.

use crate::preflight::{calls_since, now};
use e2e::{Lab, Output, Vm, noise};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// Plans, checks that this changed nothing, backs up, and compares. Gives the plan of the VM and the backup.
#[track_caller]
fn plan_and_back_up(lab: &Lab, vm: &Vm, options: &[&str]) -> (Value, Output) {
    let arguments = |command: &'static str| {
        let mut all = vec![command, vm.name.as_str()];
        all.extend(options);
        all
    };
    let (before, since) = (lab.inventory(), now(lab));
    let planned = lab.abd(&arguments("plan")).ok();
    assert_eq!(lab.inventory(), before, "a plan changes nothing");
    assert_eq!(calls_since(lab, since), Vec::<String>::new(), "a plan calls nothing that could");
    let plan = planned.answer()["plans"][0].clone();

    let since = now(lab);
    let backup = lab.abd(&arguments("backup")).ok();
    let steps = plan["steps"].as_array().expect("a list");
    let expected: Vec<&str> = steps.iter().map(|step| step["call"].as_str().expect("a text")).collect();
    assert_eq!(calls_since(lab, since), expected, "{options:?}");

    // The steps have the names that the job gives them, in its order.
    let mut named: Vec<&str> = steps.iter().map(|step| step["step"].as_str().expect("a text")).collect();
    named.dedup();
    let events = backup.all("step");
    let mut of_job = events.iter().map(|event| event["step"].as_str().expect("a text"));
    let is_in_order = named.iter().all(|step| of_job.any(|name| name == *step));
    assert!(is_in_order, "{named:?} are no steps of {events:?}");

    // The decisions are those of the job.
    let decisions = |value: &Value| json!([value["mode"], value["cause"], value["reason"]]);
    let of_plan: Vec<Value> = plan["disks"].as_array().expect("a list").iter().map(decisions).collect();
    let of_job: Vec<Value> = backup.all("disk-plan").into_iter().map(decisions).collect();
    assert_eq!(of_plan, of_job, "{options:?}");
    (plan, backup)
}

fn modes(plan: &Value) -> Vec<&str> {
    plan["disks"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|disk| disk["mode"].as_str().expect("text"))
        .collect()
}

#[test]
fn full_and_tracked_backups_do_what_their_plan_says() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[8 * MIB, 4 * MIB]);
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(modes(&plan), ["full", "full"]);
    assert_eq!(plan["verdict"], "go");
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(modes(&plan), ["cbt", "cbt"]);
    let (plan, _) = plan_and_back_up(&lab, &vm, &["--full"]);
    assert_eq!(modes(&plan), ["full", "full"]);
    let (plan, _) = plan_and_back_up(&lab, &vm, &["--cbt", "off"]);
    assert_eq!(modes(&plan), ["scan", "scan"]);
    // That left no reference, and removed the one before.
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(modes(&plan), ["scan", "scan"]);
    assert_eq!(plan["disks"][0]["cause"], "reference-missing");
}

#[test]
fn a_reference_that_somebody_removed_is_missed_by_plan_and_backup_alike() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[4 * MIB]);
    lab.backup(&[&vm]).ok();
    let reference = lab.inventory()["VDI"].as_array().expect("a list").clone();
    let reference = reference.iter().find(|vdi| vdi["type"] == "cbt_metadata").expect("a reference");
    lab.destroy_vdi(reference["uuid"].as_str().expect("a text"));
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(plan["disks"][0]["cause"], "reference-missing");
}

#[test]
fn pools_before_change_tracking_do_what_their_plan_says() {
    for flavour in ["xs-6.5", "xs-7.2"] {
        let Some(lab) = Lab::quick(&["--flavour", flavour]) else { return };
        let vm = lab.vm("old", &[8 * MIB, 4 * MIB]);
        let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
        assert_eq!(modes(&plan), ["full", "full"], "{flavour}");
        for _ in 0..2 {
            let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
            assert_eq!(modes(&plan), ["vhd-diff", "vhd-diff"], "{flavour}");
        }
    }
}

#[test]
fn a_licence_without_tracking_is_foreseen() {
    let Some(lab) = Lab::quick(&["--flavour", "xs-7.3"]) else { return };
    lab.post("/lab/faults", Some(&json!({"cbt_licensed": false})));
    let vm = lab.vm("web01", &[4 * MIB]);
    plan_and_back_up(&lab, &vm, &[]);
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(plan["disks"][0]["cause"], "tracking-unlicensed");
}

#[test]
fn disks_that_are_left_out_are_in_the_snapshots_of_old_releases_only() {
    for flavour in ["xs-7.3", "xcp-8.3"] {
        let Some(lab) = Lab::quick(&["--flavour", flavour]) else { return };
        let vm = lab.vm("web01", &[4 * MIB, 4 * MIB]);
        let without = ["--exclude-disk", "position:1"];
        let (plan, _) = plan_and_back_up(&lab, &vm, &without);
        assert_eq!(modes(&plan), ["full"], "{flavour}");
        plan_and_back_up(&lab, &vm, &without);
    }
}

#[test]
fn checkpoints_and_quiesced_snapshots_do_what_their_plan_says() {
    let Some(new) = Lab::quick(&[]) else { return };
    let vm = new.vm_with("web01", &[4 * MIB], true);
    let (plan, _) = plan_and_back_up(&new, &vm, &["--checkpoint"]);
    assert_eq!(plan["disks"][1]["name"], "memory");
    plan_and_back_up(&new, &vm, &["--checkpoint"]);
    plan_and_back_up(&new, &vm, &["--quiesce"]);
    let Some(old) = Lab::quick(&["--flavour", "xs-7.6"]) else { return };
    let vm = old.vm_with("web01", &[4 * MIB], true);
    plan_and_back_up(&old, &vm, &["--quiesce"]);
}

#[test]
fn several_delegates_do_what_their_plan_says() {
    let Some(lab) = Lab::quick(&["--hosts", "2", "--sr", "name=second,type=ext,host=2"]) else { return };
    let many = lab.vm("many", &[MIB; 17]);
    let (plan, _) = plan_and_back_up(&lab, &many, &["--delegate-vcpus", "2"]);
    assert_eq!(plan["hosts"], json!(["lab-host-1", "lab-host-1"]));

    let template = lab.template();
    lab.abd(&["template", "import", &template, "--sr", "second"]).ok();
    let disks = json!([{"name": "a", "size": MIB}, {"name": "b", "size": MIB, "sr": "second"}]);
    let made = lab.post("/lab/vm", Some(&json!({"name": "spread", "disks": disks})));
    let spread =
        Vm { name: "spread".into(), uuid: made["uuid"].as_str().expect("text").into(), vdis: vec![] };
    let (plan, _) = plan_and_back_up(&lab, &spread, &[]);
    let mut hosts: Vec<_> = plan["hosts"].as_array().expect("a list").iter().map(Value::to_string).collect();
    hosts.sort();
    assert_eq!(hosts, ["\"lab-host-1\"", "\"lab-host-2\""]);
}

#[test]
fn numbers_are_exact_where_they_can_be_and_say_where_they_come_from() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[16 * MIB]);
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(plan["disks"][0]["ships"]["at_most"], 16 * MIB);
    // The second tracked run is like the first one, as far as anybody can know.
    lab.write(&vm.vdis[0], 0, &noise(1, 3 * MIB as usize));
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(plan["disks"][0]["reads"]["bytes"], Value::Null, "nothing is known yet");
    assert_eq!(plan["disks"][0]["reads"]["at_most"], 16 * MIB);
    lab.write(&vm.vdis[0], 8 * MIB, &noise(2, MIB as usize));
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(plan["disks"][0]["reads"]["bytes"], 3 * MIB);
    assert_eq!(plan["disks"][0]["reads"]["basis"], "as the last such run");
    let (plan, _) = plan_and_back_up(&lab, &vm, &[]);
    assert_eq!(plan["disks"][0]["reads"]["bytes"], 2 * MIB, "the mean of 3 and 1 MiB");
    // The audit's size is known to the block: all unchanged ones up to 64.
    let (plan, run) = plan_and_back_up(&lab, &vm, &["--cbt", "off"]);
    assert_eq!(plan["disks"][0]["reads"]["bytes"], 16 * MIB);
    assert_eq!(run.job("web01")["disks"][0]["moved"], plan["disks"][0]["reads"]["bytes"]);
    assert_eq!(plan["disks"][0]["audit"], 0);
}

#[test]
fn a_job_that_would_be_refused_has_a_plan_without_calls() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[MIB]);
    let reference = lab.api("VM.get_by_uuid", json!([vm.uuid]));
    lab.api("VM.set_blocked_operations", json!([reference, {"snapshot": "frozen by ops"}]));
    let planned = lab.abd(&["plan", "web01"]);
    let backup = lab.abd(&["backup", "web01"]);
    assert_eq!(planned.code, backup.code, "{:#?}", planned.events);
    let plan = &planned.all("error").len();
    assert_eq!(*plan, 1);
    let plan = &planned.events[0]["plans"][0];
    assert_eq!((&plan["verdict"], &plan["steps"]), (&json!("refuse"), &json!([])));
    assert_eq!(plan["findings"][0]["code"], "vm-blocked");
    assert!(backup.fails_with(planned.code).contains("frozen by ops"));
}

#[test]
fn the_text_fits_a_terminal_and_names_the_objects() {
    let Some(lab) = Lab::quick(&[]) else { return };
    lab.vm("web01", &[8 * MIB, 4 * MIB]);
    let output = lab.plain_command(&["plan", "web01"]).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    for part in [
        "disk 'web01 disk 0', 8.00 MiB: full",
        "first backup of this disk",
        "VM.snapshot *               VM 'web01'",
        "VBD.create                  snapshot of 'web01 disk 1': read-only, at position 5",
        "on host 'lab-host-1'",
        "nothing was changed now",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}
