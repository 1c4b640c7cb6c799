//! The control port.

use crate::support::Lab;
use serde_json::{Value, json};

fn fault(lab: &Lab, fault: Value) {
    lab.control().json("POST", "/lab/faults", Some(&fault)).unwrap();
}

#[test]
fn planned_errors_strike_before_or_after_the_effect() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}]}));
    let snapshots = || client.call("VM.get_snapshots", json!([vm])).as_array().unwrap().len();
    fault(
        &lab,
        json!({"method": "VM.snapshot", "nth": 2, "error": ["SR_BACKEND_FAILURE_44", "", "full", ""]}),
    );
    client.call("VM.snapshot", json!([vm, "one"]));
    assert_eq!(client.refused("VM.snapshot", json!([vm, "two"])), ["SR_BACKEND_FAILURE_44", "", "full", ""]);
    assert_eq!(snapshots(), 1);
    fault(&lab, json!({"method": "VM.snapshot", "when": "after", "error": ["INTERNAL_ERROR", "late"]}));
    let task = client.text("Async.VM.snapshot", json!([vm, "three"]));
    assert_eq!(client.wait(&task)["error_info"], json!(["INTERNAL_ERROR", "late"]));
    assert_eq!(snapshots(), 2);
    client.call("VM.snapshot", json!([vm, "four"]));
}

#[test]
fn a_connection_can_be_cut_before_and_after_the_effect() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    let cut = |name: &str| {
        let call = json!({"jsonrpc": "2.0", "method": "VM.set_name_label", "params": [client.session, vm, name], "id": 1});
        assert_eq!(lab.http("POST", "/jsonrpc", &[], call.to_string().as_bytes()).status, 0);
        client.text("VM.get_name_label", json!([vm]))
    };
    fault(&lab, json!({"method": "VM.set_name_label", "drop": true}));
    assert_eq!(cut("web02"), "web01");
    fault(&lab, json!({"method": "VM.set_name_label", "drop": true, "when": "after"}));
    assert_eq!(cut("web02"), "web02");
}

#[test]
fn data_handlers_can_redirect_and_answer_a_page_inside_a_page() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 4096}]}));
    let target = format!("/export_raw_vdi?vdi={}&session_id={}", disks[0], client.session);
    fault(&lab, json!({"method": "GET /export_raw_vdi", "redirect": "https://198.51.100.1/export_raw_vdi"}));
    let answer = lab.http("GET", &target, &[], &[]);
    assert_eq!(
        (answer.status, answer.header("location").unwrap().as_str()),
        (302, "https://198.51.100.1/export_raw_vdi")
    );
    fault(
        &lab,
        json!({"method": "GET /export_raw_vdi", "page_in_body": true, "error": ["VDI_IO_ERROR", "x"]}),
    );
    let answer = lab.http("GET", &target, &[], &[]);
    assert!(answer.status == 200 && answer.body.starts_with(b"HTTP/1.1 500"));
    assert_eq!(client.wait(&answer.header("task-id").unwrap())["error_info"], json!(["VDI_IO_ERROR", "x"]));
}

#[test]
fn the_log_tells_everything_but_secrets() {
    let lab = Lab::new();
    // Logged in with the password that stands in the ports' file, which must not stand in the log.
    let right = lab.call_raw("session.login_with_password", json!(["root", "password"])).unwrap();
    let right = right.as_str().unwrap().trim_start_matches("OpaqueRef:").to_owned();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}]}));
    client.call("VM.set_name_label", json!([vm, "web02"]));
    client.call("VM.destroy", json!([vm]));
    let secret =
        lab.call_raw("session.login_with_password", json!(["root", "a wrong password"])).unwrap_err();
    assert_eq!(secret[0], "SESSION_AUTHENTICATION_FAILED");
    lab.http("GET", &format!("/export_raw_vdi?vdi=x&session_id={}", client.session), &[], &[]);
    client.call("session.logout", json!([]));
    let log = lab.control().lines("/lab/log").unwrap();
    let text: String = log.iter().map(Value::to_string).collect();
    for secret in
        ["\"password\"", "a wrong password", &right, client.session.trim_start_matches("OpaqueRef:")]
    {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
    let has = |wanted: &dyn Fn(&Value) -> bool| assert!(log.iter().any(wanted), "{text}");
    has(&|e| {
        e["kind"] == "call" && e["method"] == "VM.set_name_label" && e["params"] == json!([vm, "web02"])
    });
    has(&|e| e["kind"] == "create" && e["class"] == "VM" && e["ref"] == json!(vm));
    has(&|e| e["kind"] == "destroy" && e["class"] == "VM" && e["ref"] == json!(vm));
    has(&|e| e["kind"] == "failure" && e["error"][0] == "SESSION_AUTHENTICATION_FAILED");
    has(&|e| e["kind"] == "http" && e["method"] == "GET /export_raw_vdi");
    let numbers: Vec<u64> = log.iter().map(|e| e["seq"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|w| w[0] + 1 == w[1]));
    let file = std::fs::read_to_string(lab.dir.path().join("events.jsonl")).unwrap();
    assert!(file.lines().count() >= log.len());
}

#[test]
fn the_inventory_is_the_same_after_everything_was_undone() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) =
        client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}], "tags": ["sample"]}));
    let inventory = || lab.control().json("GET", "/lab/inventory", None).unwrap();
    let before = inventory();
    assert_eq!(before["VM"].as_array().unwrap().iter().filter(|v| v["tags"] == json!(["sample"])).count(), 1);
    let snapshot = client.text("VM.snapshot", json!([vm, "snap"]));
    assert_ne!(inventory(), before);
    let disk = client.snapshot_disk(&snapshot, &disks[0]);
    client.call("VM.destroy", json!([snapshot]));
    client.call("VDI.destroy", json!([disk]));
    assert_eq!(inventory(), before);
}

#[test]
fn disks_can_be_compared_by_digest() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client
        .vm(json!({"name": "d", "disks": [{"name": "a", "size": 70_000}, {"name": "b", "size": 70_000}]}));
    let digest = |vdi: &str| lab.control().json("GET", &format!("/lab/vdi/{vdi}/digest"), None).unwrap();
    assert_eq!(digest(&disks[0]), digest(&disks[1]));
    client.write(&disks[0], 69_999, &[1]);
    assert_ne!(digest(&disks[0])["sha256"], digest(&disks[1])["sha256"]);
    assert_ne!(digest(&disks[0])["sparse_sha256"], digest(&disks[1])["sparse_sha256"]);
    assert_eq!(digest(&disks[0])["size"], 70_000);
    let past = lab.control().bytes("PUT", &format!("/lab/vdi/{}?offset=70000", disks[0]), &[1]);
    assert!(past.unwrap_err().to_string().contains("past the end"));
}
