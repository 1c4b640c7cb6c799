//! What is kept between runs: shown by `doctor`, let go of by `release`, and in the way of forgetting a pool.

use crate::headless::results;
use e2e::Lab;
use serde_json::json;

const MIB: u64 = 1 << 20;

#[test]
fn a_pool_is_forgotten_only_when_nothing_of_ours_is_kept_there_or_it_is_to_stay() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let before = lab.inventory();
    let vm = lab.vm("web01", &[MIB]);
    lab.backup(&[&vm]).ok();
    let doctor = lab.abd(&["doctor"]).ok();
    let findings = doctor.answer()["findings"].as_array().expect("a list").clone();
    let kept = findings.iter().find(|finding| finding["code"] == "references").expect("said");
    assert!(kept["message"].as_str().is_some_and(|text| text.contains("1 references, 0 reserved")), "{kept}");

    let refused = lab.abd(&["pool", "remove", "lab"]).fails_with(11);
    assert!(refused.contains("abd release --all --pool lab"), "{refused}");
    // Nobody is there to be asked.
    let shown = lab.abd(&["release", "web01"]);
    assert!(shown.events.iter().any(|event| event["kept"][0]["vm"] == "web01"), "{:?}", shown.events);
    shown.fails_with(12);
    lab.abd(&["release", "mail", "--yes"]).fails_with(3);
    let released = lab.abd(&["release", "web01", "--yes"]).ok();
    assert_eq!(released.answer()["removed"].as_array().map(Vec::len), Some(1), "{:?}", released.answer());
    assert_eq!(released.answer()["leftovers"], json!([]));
    let disks = |inventory: &serde_json::Value| inventory["VDI"].as_array().map(Vec::len).expect("a list");
    assert_eq!(disks(&lab.inventory()), disks(&before) + 1, "only the VM's own disk");

    let again = lab.backup(&[&vm]).ok();
    assert_eq!(results(&again), ["web01 done"]);
    assert_eq!(
        again.answer()["vms"][0]["disks"][0]["mode"],
        "scan",
        "everything is read: {:?}",
        again.answer()
    );
    let forgotten = lab.abd(&["pool", "remove", "lab", "--keep-references"]).ok();
    assert_eq!(forgotten.answer(), &json!({"removed": "lab", "references": 1}));
}
