//! Predictions from hand-made facts. Whole plans are compared with the backups that follow them end to end.

use super::*;
use crate::preflight::may_be_called;
use crate::preflight::sample::Sample;
use crate::spec::CbtMode;
use serde_json::{Value, json};
use xapi::{Ref as XRef, Vdi, VdiType};

const MIB: u64 = 1 << 20;
const DISK: u64 = 10 << 30;
const STORE: &str = "99999999-9999-4999-8999-999999999999";

/// One earlier backup of the sample's disk.
struct Earlier {
    mode: &'static str,
    cause: &'static str,
    reference: Option<String>,
    size: u64,
    moved: u64,
    audited: u64,
    sealed: u64,
}

impl Default for Earlier {
    fn default() -> Self {
        Self {
            mode: "cbt",
            cause: "changes-listed",
            reference: None,
            size: DISK,
            moved: 0,
            audited: 0,
            sealed: 0,
        }
    }
}

fn past(sample: &Sample, earlier: Vec<Earlier>) -> Past {
    let (vm, vdi) = (sample.vm().uuid.to_string(), sample.disk(0).uuid.to_string());
    let point = |(number, one): (usize, Earlier)| -> StoredPoint {
        let disk = json!({
            "vdi": vdi, "name": "root", "userdevice": 0, "bootable": true,
            "tree": {"size": one.size, "root": Value::Null}, "tree_id": "00".repeat(32),
            "mode": one.mode, "reason": "", "cause": one.cause, "reference": one.reference,
            "counts": {
                "planned": 0, "moved": one.moved, "zero": 0, "unchanged": 0, "known": 0, "shipped": 0,
                "sealed": one.sealed, "nodes": 0, "audited": one.audited,
            },
        });
        let record = json!({
            "version": 2, "job": "j", "run": "r", "created": "2026-01-01T00:00:00Z", "store": STORE,
            "pool": {"uuid": "p", "name": "dc1"}, "vm": {"uuid": vm, "name": "web01", "metadata": {}},
            "disks": [disk], "base": Value::Null,
        });
        StoredPoint {
            id: format!("{number:064x}").parse().expect("an id"),
            point: serde_json::from_value(record).expect("a restore point"),
        }
    };
    Past {
        store: Some(STORE.into()),
        points: earlier.into_iter().enumerate().map(point).collect(),
        damaged: None,
        lacking: std::collections::BTreeSet::new(),
    }
}

/// A reference of ours in the pool; gives its uuid.
fn reference(sample: &mut Sample, kind: VdiType) -> String {
    let uuid = sample.uuid();
    let live = sample.disk(0).uuid.to_string();
    let tags = [("abd:owner", sample.facts.owner.as_str()), ("abd:reference", &live), ("abd:store", STORE)];
    let vdi = Vdi {
        uuid: uuid.clone(),
        kind,
        is_a_snapshot: true,
        other_config: tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        ..Vdi::default()
    };
    sample.facts.vdis.insert(XRef::from_opaque(format!("OpaqueRef:{uuid}")), vdi);
    uuid.to_string()
}

fn plan(sample: &Sample, past: &Past, options: &JobOptions) -> Plan {
    of_vm(&sample.facts, past, &sample.vm, sample.vm(), options)
}

fn tracked(mut sample: Sample) -> Sample {
    sample.disk_mut(0).cbt_enabled = true;
    sample
}

fn calls(plan: &Plan) -> Vec<&str> {
    plan.steps.iter().map(|step| step.call.as_str()).collect()
}

#[test]
fn what_a_plan_calls_is_what_the_doctor_asks_permission_for() {
    let checkpoint = JobOptions { checkpoint: true, ..JobOptions::default() };
    let mut with_memory = Sample::new();
    with_memory.vm_mut().power_state = xapi::PowerState::Running;
    with_memory.vm_mut().resident_on = with_memory.host.clone();
    with_memory.vm_mut().suspend_sr = with_memory.sr.clone();
    let mut old = Sample::new();
    old.host_mut().api_version_minor = 7;
    let mut again = tracked(Sample::new());
    let uuid = reference(&mut again, VdiType::CbtMetadata);
    let second = past(&again, vec![Earlier { reference: Some(uuid), ..Earlier::default() }]);
    for (sample, past, options) in [
        (&Sample::new(), &Past::default(), &JobOptions::default()),
        (&with_memory, &Past::default(), &checkpoint),
        (&old, &Past::default(), &JobOptions::default()),
        (&again, &second, &JobOptions::default()),
    ] {
        let plan = plan(sample, past, options);
        assert!(plan.steps.len() > 20, "{plan:#?}");
        for call in calls(&plan) {
            let name = call.strip_prefix("Async.").unwrap_or(call);
            let name = name.strip_prefix("GET /").map_or(name.to_owned(), |path| format!("http/get_{path}"));
            assert!(may_be_called(&name), "{name} is in no list of permissions");
        }
    }
}

#[test]
fn a_disk_starts_from_the_newest_point_whose_reference_is_there() {
    let mut sample = tracked(Sample::new());
    let uuid = reference(&mut sample, VdiType::CbtMetadata);
    let gone = "88888888-8888-4888-8888-888888888888".to_owned();
    // The older state was smaller: what was gained since counts as changed.
    let older = Earlier { reference: Some(uuid.clone()), size: DISK / 2, ..Earlier::default() };
    let newer = Earlier { reference: Some(gone.clone()), ..Earlier::default() };
    let found = plan(&sample, &past(&sample, vec![older, newer]), &JobOptions::default());
    assert_eq!((found.disks[0].mode, found.disks[0].cause), ("cbt", "changes-listed"));
    assert!(found.disks[0].reason.contains("grew from 5.00 GiB"), "{}", found.disks[0].reason);
    let listed = found.steps.iter().find(|step| step.call == "VDI.list_changed_blocks").expect("listed");
    assert_eq!(listed.detail, format!("since reference {uuid}"));
    let missing = past(&sample, vec![Earlier { reference: Some(gone), ..Earlier::default() }]);
    let missing = plan(&sample, &missing, &JobOptions::default());
    assert_eq!((missing.disks[0].mode, missing.disks[0].cause), ("scan", "reference-missing"));
    assert!(!calls(&missing).contains(&"VDI.list_changed_blocks"));
}

#[test]
fn nothing_before_an_alarm_is_asked_about() {
    let mut sample = tracked(Sample::new());
    let uuid = reference(&mut sample, VdiType::CbtMetadata);
    let before = Earlier { reference: Some(uuid), ..Earlier::default() };
    let alarm = Earlier { mode: "scan", cause: "audit-alarm", ..Earlier::default() };
    let plan = plan(&sample, &past(&sample, vec![before, alarm]), &JobOptions::default());
    assert_eq!((plan.disks[0].mode, plan.disks[0].cause), ("scan", "audit-alarm"));
}

#[test]
fn options_and_the_stores_state_decide_as_in_a_job() {
    let mut sample = tracked(Sample::new());
    let uuid = reference(&mut sample, VdiType::CbtMetadata);
    let mut past = past(&sample, vec![Earlier { reference: Some(uuid), ..Earlier::default() }]);
    let of = |past: &Past, options: JobOptions| {
        let plan = plan(&sample, past, &options);
        (plan.disks[0].mode, plan.disks[0].cause)
    };
    assert_eq!(of(&past, JobOptions::default()), ("cbt", "changes-listed"));
    assert_eq!(of(&past, JobOptions { full: true, ..JobOptions::default() }), ("full", "full-requested"));
    let off = JobOptions { cbt: CbtMode::Off, ..JobOptions::default() };
    assert_eq!(of(&past, off), ("scan", "tracking-off"));
    past.damaged = Some("pack".into());
    assert_eq!(of(&past, JobOptions::default()), ("full", "store-damaged"));
    past.damaged = None;
    past.lacking = past.points.iter().map(|stored| stored.point.vm.uuid.clone()).collect();
    assert_eq!(of(&past, JobOptions::default()), ("full", "store-damaged"), "what was lost is shipped again");
}

#[test]
fn what_tracked_runs_read_is_the_mean_of_the_last_ones_without_their_audits() {
    let mut sample = tracked(Sample::new());
    let uuid = reference(&mut sample, VdiType::CbtMetadata);
    let run = |moved: u64, sealed: u64| Earlier {
        moved: (moved + 4) * MIB,
        audited: 4 * MIB,
        sealed: sealed * MIB,
        reference: Some(uuid.clone()),
        ..Earlier::default()
    };
    let first =
        Earlier { mode: "full", cause: "first-backup", moved: DISK, sealed: DISK, ..Earlier::default() };
    let none = plan(
        &sample,
        &past(&sample, vec![Earlier { reference: Some(uuid.clone()), ..first }]),
        &JobOptions::default(),
    );
    assert_eq!(none.disks[0].mode, "cbt");
    assert_eq!((none.disks[0].reads.bytes, none.disks[0].reads.at_most.get()), (None, DISK));
    let some = plan(&sample, &past(&sample, vec![run(10, 4), run(20, 6)]), &JobOptions::default());
    assert_eq!(some.disks[0].reads.bytes, Some(ByteCount::new(15 * MIB)));
    assert_eq!(some.disks[0].ships.bytes, Some(ByteCount::new(5 * MIB)));
    assert_eq!(some.disks[0].reads.basis, "as the last 2 such runs on average");
    // Only the last seven.
    let many = (0..8).map(|at| run(if at == 0 { 800 } else { 7 }, 1)).collect();
    let many = plan(&sample, &past(&sample, many), &JobOptions::default());
    assert_eq!(many.disks[0].reads.bytes, Some(ByteCount::new(7 * MIB)));
}

#[test]
fn a_scan_reads_all_and_a_first_backup_what_the_storage_holds() {
    let mut sample = Sample::new();
    let first = plan(&sample, &Past::default(), &JobOptions::default());
    assert_eq!(
        (first.disks[0].mode, first.disks[0].reads.bytes),
        ("full", None),
        "the storage does not tell"
    );
    let base = sample.hidden(&[]);
    sample.set_parent(0, &base);
    sample.disk_mut(0).physical_utilisation = 3 * MIB;
    sample.vdi_mut(&base).physical_utilisation = 5 * MIB;
    let held = plan(&sample, &Past::default(), &JobOptions::default());
    assert_eq!(held.disks[0].reads.bytes, Some(ByteCount::new(8 * MIB)), "the disk and what it stands on");
    sample.vdi_mut(&base).physical_utilisation = 2 * DISK;
    let most = plan(&sample, &Past::default(), &JobOptions::default());
    assert_eq!(most.disks[0].reads.bytes, Some(ByteCount::new(DISK)), "never more than the disk");
    let all = JobOptions { read_unallocated: true, ..JobOptions::default() };
    let all = plan(&sample, &Past::default(), &all);
    assert_eq!(all.disks[0].reads.bytes, Some(ByteCount::new(DISK)));
    assert_eq!(all.disks[0].audit, ByteCount::new(0), "nothing is left to audit");
}

#[test]
fn a_job_that_demands_tracking_and_cannot_have_it_ends_after_the_listing() {
    let sample = tracked(Sample::new());
    let past = past(&sample, vec![Earlier::default()]);
    let options = JobOptions { require_cbt: true, ..JobOptions::default() };
    let refused = plan(&sample, &past, &options);
    assert_eq!(refused.disks[0].cause, "no-reference");
    assert!(refused.notes[0].contains("demands change tracking"), "{:?}", refused.notes);
    assert!(!calls(&refused).contains(&"Async.VM.clone"), "no delegate is made");
    assert!(calls(&plan(&sample, &past, &JobOptions::default())).contains(&"Async.VM.clone"));
}

#[test]
fn a_job_that_is_held_has_a_plan_and_one_that_is_skipped_has_none() {
    let mut sample = Sample::new();
    let oldest = sample.hidden(&[]);
    let middle = sample.hidden(&[&oldest]);
    sample.set_parent(0, &middle);
    let held = plan(&sample, &Past::default(), &JobOptions::default());
    assert_eq!(held.verdict, Verdict::Wait);
    assert!(!held.steps.is_empty());
    let options = JobOptions { coalesce: crate::spec::CoalescePolicy::Skip, ..JobOptions::default() };
    let skipped = plan(&sample, &Past::default(), &options);
    assert_eq!((skipped.verdict, skipped.steps.len()), (Verdict::Skip, 0));
    let said = text(&[skipped]);
    assert!(said.contains("the job would be left out this time"), "{said}");
}

#[test]
fn a_pool_without_a_template_refuses_every_job() {
    let mut sample = Sample::new();
    sample.without_template();
    let refused = plan(&sample, &Past::default(), &JobOptions::default());
    assert_eq!((refused.verdict, refused.steps.len()), (Verdict::Refuse, 0));
    assert_eq!(refused.findings[0].code, crate::preflight::Code::Template);
}
