//! Restore points as documents: what stands in them, and which versions are read.

#![allow(clippy::unwrap_used)]

mod support;

use ads::{DiskKind, DiskMode, ErrorKind, PointId, RestorePoint, Store};
use blocks::{BlockIndex, ByteCount};
use std::fs;
use support::{disk, point, store_disk};
use tempfile::TempDir;

const WHEN: &str = "2026-11-03T10:20:30Z";
/// As the first version of this program wrote it.
const VERSION_1: &str = include_str!("fixtures/point-version-1.json");

fn store() -> (TempDir, Store) {
    let dir = TempDir::new().unwrap();
    let store = Store::init(&dir.path().join("store")).unwrap();
    (dir, store)
}

/// Puts a document among the restore points, under its right name.
fn place(store: &Store, text: &str) -> PointId {
    let name = blake3::hash(text.as_bytes()).to_hex();
    fs::write(store.dir().join(format!("points/{name}.json")), text).unwrap();
    name.parse().unwrap()
}

#[test]
fn a_point_of_version_1_is_read_and_its_missing_members_mean_nothing_special() {
    let (_dir, store) = store();
    let id = place(&store, VERSION_1);
    let found = store.latest_point("a9b1f9b6-8c8b-4ba3-8f0e-2df2ee2cfa0c").unwrap().unwrap();
    assert_eq!((found.id, found.point.version), (id, 1));
    assert_eq!((found.point.quiesced, found.point.checkpoint, found.point.job_name), (false, false, None));
    let disk = &found.point.disks[0];
    assert_eq!((disk.kind, disk.mode, disk.cause.as_str()), (DiskKind::User, DiskMode::Scan, ""));
    assert!(disk.suspect.is_empty());
    let counts = disk.counts;
    assert_eq!((counts.audited.get(), counts.mismatched.get(), counts.first_mismatch), (0, 0, None));
    assert_eq!(counts.zero.get(), 1 << 30);
}

#[test]
fn a_later_version_is_refused_by_number_and_not_called_damage_of_a_member() {
    let (_dir, store) = store();
    let id = place(&store, &VERSION_1.replace("\"version\": 1", "\"version\": 4").replace("scan", "psychic"));
    let error = store.point(id).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("version 4 is not known"), "{error}");
}

#[test]
fn what_an_alarm_leaves_in_a_point_is_written_and_read_back() {
    let (_dir, store) = store();
    let tree = store_disk(&store, &disk(1, 5 * 65536)).unwrap();
    let earlier = store.commit_point(&point(&store, "vm", WHEN, &[tree])).unwrap();
    let mut alarm = point(&store, "vm", "2026-11-04T10:20:30Z", &[tree, tree]);
    (alarm.job_name, alarm.quiesced, alarm.checkpoint) = (Some("nightly".into()), true, true);
    (alarm.disks[0].mode, alarm.disks[0].cause) = (DiskMode::VhdDiff, "reserved-snapshot".into());
    alarm.disks[0].counts.audited = ByteCount::new(131_072);
    alarm.disks[0].counts.mismatched = ByteCount::new(65_536);
    alarm.disks[0].counts.first_mismatch = Some(BlockIndex::new(4));
    alarm.disks[0].suspect = vec![earlier];
    alarm.disks[1].kind = DiskKind::Suspend;
    let id = store.commit_point(&alarm).unwrap();
    assert_eq!(store.point(id).unwrap().point, alarm);

    let bytes = fs::read(store.dir().join(format!("points/{id}.json"))).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(json["version"], ads::RestorePoint::VERSION);
    assert_eq!((&json["job_name"], &json["quiesced"]), (&"nightly".into(), &true.into()));
    assert_eq!(json["checkpoint"], true);
    let first = &json["disks"][0];
    assert_eq!((&first["mode"], &first["cause"]), (&"vhd-diff".into(), &"reserved-snapshot".into()));
    assert_eq!((&first["kind"], &json["disks"][1]["kind"]), (&"user".into(), &"suspend".into()));
    assert_eq!(first["counts"]["first_mismatch"], 4);
    assert_eq!(first["suspect"], serde_json::json!([earlier.to_string()]));
}

#[test]
fn modes_are_written_as_before() {
    for (mode, name) in [
        (DiskMode::Cbt, "cbt"),
        (DiskMode::VhdDiff, "vhd-diff"),
        (DiskMode::Scan, "scan"),
        (DiskMode::Full, "full"),
    ] {
        assert_eq!(serde_json::to_value(mode).unwrap(), name);
    }
}

#[test]
fn a_cause_for_programs_is_a_word_and_not_a_sentence() {
    let (_dir, store) = store();
    let tree = store_disk(&store, &disk(1, 65536)).unwrap();
    for (cause, ok) in [("", true), ("reference-gone2", true), ("It broke.", false), ("a_b", false)] {
        let mut point: RestorePoint = point(&store, "vm", WHEN, &[tree]);
        point.disks[0].cause = cause.into();
        let outcome = store.commit_point(&point).map_err(|error| error.kind());
        assert_eq!(outcome.is_ok(), ok, "'{cause}'");
        assert!(outcome.is_ok() || outcome == Err(ErrorKind::Refused));
    }
}
