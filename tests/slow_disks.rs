//! Disks that answer slowly, with delegates that are processes: the medium under their disks can be slow.

use e2e::{Lab, noise};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("no number: {value}"))
}

#[test]
fn a_slow_disk_is_given_way_to_and_the_results_say_what_that_cost() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("slow", &[8 * MIB as u64]);
    lab.write(&vm.vdis[0], 0, &noise(3, 8 * MIB));
    // 12.5 MiB/s at most, in reads of 256 KiB that take 20 ms each.
    lab.post(&format!("/lab/vdi/{}/surface", vm.vdis[0]), Some(&json!({"service_us": 20_000})));
    let run = lab.abd(&["backup", "slow", "--throttle-latency", "5", "--throttle-floor", "6MiB/s"]).ok();
    let disk = &run.job("slow")["disks"][0];
    let pacing = &disk["pacing"];
    assert!(number(&pacing["cuts"]) > 0 && number(&pacing["throttled_ms"]) > 0, "{pacing}");
    assert!(number(&pacing["lowest_rate"]) >= 6 << 20, "{pacing}");
    assert!(number(&pacing["peak_latency_us"]) >= 20_000, "{pacing}");
    assert!(number(&pacing["reading_ms"]) >= 640, "32 reads of 20 ms: {pacing}");
    let row = &run.all("run-summary")[0]["vms"][0]["disks"][0];
    assert_eq!(row["throttled_ms"], pacing["throttled_ms"]);
    lab.assert_restores(&vm);

    // A latency that no read comes near holds nobody back.
    let run = lab.abd(&["backup", "slow", "--full", "--throttle-latency", "10000"]).ok();
    let pacing = &run.job("slow")["disks"][0]["pacing"];
    assert_eq!((&pacing["cuts"], &pacing["lowest_rate"]), (&0.into(), &Value::Null), "{pacing}");
}
