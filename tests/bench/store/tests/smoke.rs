//! The benchmark of the store works, with few entries and points, and answers are checked on the way.

use std::process::Command;

fn run(arguments: &[&str]) -> serde_json::Value {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_abd-bench-store"))
        .args(arguments)
        .arg("--dir")
        .arg(dir.path())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn an_index_is_filled_opened_and_asked() {
    let found = run(&["index", "--entries", "20000"]);
    assert_eq!(found["entries"], 20_000);
    assert!(found["disk"].as_u64().is_some_and(|bytes| bytes > 20_000 * 40), "{found}");
}

#[test]
fn a_store_without_its_index_is_opened_and_has_it_the_next_time() {
    let found = run(&["rebuild", "--entries", "60000"]);
    assert_eq!(found["packs"], 150);
    assert!(found["index"].as_u64().is_some_and(|bytes| bytes > 60_000 * 40), "{found}");
}

#[test]
fn points_are_made_listed_judged_and_collected() {
    let found = run(&["points", "--counts", "41,60"]);
    let rows = found["rows"].as_array().expect("rows");
    assert_eq!(rows[1]["gc_points"], 60);
    assert!(found["collected"].as_u64().is_some_and(|packs| packs > 0), "{found}");
}
