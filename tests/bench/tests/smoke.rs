//! The benchmark works: on a small disk, our own rows alone, with programs that are not built for speed.

use std::path::Path;
use std::process::Command;

#[test]
fn the_benchmark_measures_our_rows_and_compares_every_restore() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the repository");
    let dir = tempfile::tempdir().expect("a directory");
    let json = dir.path().join("result.json");
    let output = Command::new(tree.join("scripts/bench"))
        .args(["--quick", "--size-mib", "64", "--only", "ours", "--no-install", "--program"])
        .arg(env!("CARGO_BIN_EXE_abd-bench"))
        .arg("--json")
        .arg(&json)
        .output()
        .expect("scripts/bench starts");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("target, abd worker+ADS"), "{text}");
    let result: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("a result")).expect("JSON");
    let changed = result["disk"]["counts"]["changed_granules"].as_u64().expect("a number");
    for way in ["abd engine", "abd worker+ADS"] {
        let rows = &result["rounds"][0][way];
        for step in ["full", "same", "incr", "restore"] {
            assert!(rows[step]["wall_s"].as_f64().is_some_and(|wall| wall > 0.0), "{way} {step}: {rows}");
        }
        assert_eq!(rows["same"]["stored"], 0, "{way}: nothing changed");
        let moved = &rows["incr"]["parts"]["jobs"][0]["disks"][0]["moved"];
        assert_eq!(moved, &(changed * 65_536), "{way}: what the bitmap lists is what is read");
    }
}
