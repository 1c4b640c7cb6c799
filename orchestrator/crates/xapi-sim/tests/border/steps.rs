//! Single-step mode.

use crate::support::Lab;
use serde_json::{Value, json};

fn post(lab: &Lab, path: &str) -> Value {
    lab.control().json("POST", path, None).unwrap()
}

#[test]
fn asynchronous_calls_run_one_by_one_when_a_test_says_so() {
    let lab = Lab::with(|config| config.step = true);
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}]}));
    let snapshots = || client.call("VM.get_snapshots", json!([vm])).as_array().unwrap().len();
    let status = |task: &str| client.text("task.get_status", json!([task]));
    let first = client.text("Async.VM.snapshot", json!([vm, "one"]));
    let second = client.text("Async.VM.snapshot", json!([vm, "two"]));
    let third = client.text("Async.VM.snapshot", json!([vm, "three"]));
    // Calls that are answered at once do not wait.
    client.call("VM.set_name_label", json!([vm, "web02"]));
    assert_eq!((snapshots(), status(&first).as_str()), (0, "pending"));
    let waiting = lab.control().json("GET", "/lab/step", None).unwrap()["waiting"].clone();
    let names = |list: &Value| list.as_array().unwrap().iter().map(|t| t["task"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&waiting), [json!(first), json!(second), json!(third)]);

    let stepped = post(&lab, "/lab/step");
    assert_eq!(stepped["ran"], json!([{"task": first, "name": "Async.VM.snapshot", "status": "success"}]));
    assert_eq!((snapshots(), status(&second).as_str()), (1, "pending"));
    client.call("task.cancel", json!([second]));
    let stepped = post(&lab, "/lab/step?n=9");
    assert_eq!(names(&stepped["ran"]), [json!(second), json!(third)]);
    assert_eq!(stepped["ran"][0]["status"], "cancelled");
    assert_eq!((snapshots(), names(&stepped["waiting"])), (2, vec![]));
}

#[test]
fn stepping_can_begin_and_end_at_any_time() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    let refused = lab.control().json("POST", "/lab/step", None).unwrap_err().to_string();
    assert!(refused.contains("--step"), "{refused}");
    assert_eq!(post(&lab, "/lab/step?on=1")["on"], true);
    let task = client.text("Async.VM.clone", json!([vm, "copy"]));
    assert_eq!(client.text("task.get_status", json!([task])), "pending");
    assert_eq!(post(&lab, "/lab/step?on=0")["on"], false);
    assert_eq!(client.wait(&task)["status"], "success");
}
