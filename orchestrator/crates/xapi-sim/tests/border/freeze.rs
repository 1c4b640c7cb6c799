//! Calls that are never answered: the points at which a test kills a client.

use crate::support::{Lab, wait_for_log};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn fault(lab: &Lab, fault: Value) {
    lab.control().json("POST", "/lab/faults", Some(&fault)).unwrap();
}

/// Sends a call and does not wait for its answer.
fn send(lab: &Lab, method: &str, params: Value) -> TcpStream {
    let body = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", lab.ports().http)).unwrap();
    let head = format!("POST /jsonrpc HTTP/1.1\r\nhost: lab\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).unwrap();
    stream
}

fn assert_silent(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let error = stream.read(&mut [0]).expect_err("something was answered, or the connection was closed");
    assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
}

#[test]
fn a_call_frozen_before_its_effect_has_none() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    fault(&lab, json!({"method": "VM.set_name_label", "freeze": true}));
    let stream = send(&lab, "VM.set_name_label", json!([client.session, vm, "web02"]));
    let frozen = wait_for_log(&lab, |e| e["kind"] == "frozen");
    assert_eq!((&frozen["method"], &frozen["n"]), (&json!("VM.set_name_label"), &json!(1)));
    assert_eq!(client.text("VM.get_name_label", json!([vm])), "web01");
    assert_silent(stream);
}

#[test]
fn a_call_frozen_after_its_effect_has_it_and_asynchronous_ones_their_tasks_end() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}]}));
    fault(&lab, json!({"method": "VM.snapshot", "freeze": true, "when": "after"}));
    let stream = send(&lab, "Async.VM.snapshot", json!([client.session, vm, "snap"]));
    wait_for_log(&lab, |e| e["kind"] == "frozen" && e["method"] == "Async.VM.snapshot");
    assert_eq!(client.call("VM.get_snapshots", json!([vm])).as_array().unwrap().len(), 1);
    let tasks = client.call("task.get_all_records", json!([]));
    let made: Vec<&Value> =
        tasks.as_object().unwrap().values().filter(|t| t["name_label"] == "Async.VM.snapshot").collect();
    assert_eq!((made.len(), &made[0]["status"]), (1, &json!("success")));
    assert_silent(stream);
}

#[test]
fn the_nth_write_of_a_job_can_be_frozen_whatever_it_is() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    fault(&lab, json!({"method": "*", "writes": true, "except": ["VM.set_tags"], "nth": 2, "freeze": true}));
    client.call("VM.set_tags", json!([vm, ["a"]]));
    client.call("VM.set_name_label", json!([vm, "one"]));
    client.call("VM.get_record", json!([vm]));
    client.call("event.from", json!([["task"], "", 0.0]));
    let planned = lab.control().json("GET", "/lab/faults", None).unwrap();
    assert_eq!((&planned["planned"][0]["seen"], &planned["planned"][0]["freeze"]), (&json!(1), &json!(true)));
    let _stream = send(&lab, "VM.set_name_description", json!([client.session, vm, "two"]));
    let frozen = wait_for_log(&lab, |e| e["kind"] == "frozen");
    assert_eq!((&frozen["method"], &frozen["n"]), (&json!("VM.set_name_description"), &json!(2)));
    assert_eq!(lab.control().json("GET", "/lab/faults", None).unwrap()["planned"], json!([]));
}

#[test]
fn an_upload_frozen_after_its_effect_is_on_the_disk_and_never_answered() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 4096}]}));
    let upload = |length: usize| {
        let mut stream = TcpStream::connect(("127.0.0.1", lab.ports().http)).unwrap();
        let target = format!("/import_raw_vdi?vdi={}&session_id={}", disks[0], client.session);
        let head = format!("PUT {target} HTTP/1.1\r\nhost: lab\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &vec![7; length]].concat()).unwrap();
        stream
    };
    fault(&lab, json!({"method": "PUT /import_raw_vdi", "freeze": true}));
    let stream = upload(1024);
    wait_for_log(&lab, |e| e["kind"] == "frozen");
    assert_eq!(client.read(&disks[0], 0, 4), [0; 4]);
    assert_silent(stream);
    fault(&lab, json!({"method": "PUT /import_raw_vdi", "freeze": true, "when": "after"}));
    let stream = upload(512);
    let mut seen = 0;
    wait_for_log(&lab, |e| {
        seen += u32::from(e["kind"] == "frozen");
        seen == 2
    });
    assert_eq!(client.read(&disks[0], 510, 4), [7, 7, 0, 0]);
    assert_silent(stream);
}

#[test]
fn the_list_of_calls_tells_which_may_change_something() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}]}));
    let since = lab.control().lines("/lab/log").unwrap().len();
    client.call("VM.get_record", json!([vm]));
    client.text("Async.VM.snapshot", json!([vm, "snap"]));
    lab.http("GET", &format!("/export_raw_vdi?vdi={}&session_id={}", disks[0], client.session), &[], &[]);
    client.call("session.logout", json!([]));
    let calls = lab.control().lines(&format!("/lab/calls?since={since}")).unwrap();
    let shown: Vec<(&str, bool)> =
        calls.iter().map(|c| (c["method"].as_str().unwrap(), c["write"].as_bool().unwrap())).collect();
    let expected = [
        ("VM.get_record", false),
        ("Async.VM.snapshot", true),
        ("GET /export_raw_vdi", true),
        ("session.logout", false),
    ];
    assert_eq!(shown, expected);
}
