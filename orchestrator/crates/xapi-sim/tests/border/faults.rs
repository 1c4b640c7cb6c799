//! Each fault that a test can ask for, named for what a client sees.

use crate::support::{Client, Lab, exchange_at, wait_for_log};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

fn post(lab: &Lab, path: &str, body: Option<Value>) -> Value {
    lab.control().json("POST", path, body.as_ref()).unwrap()
}

fn fault(lab: &Lab, fault: Value) {
    post(lab, "/lab/faults", Some(fault));
}

/// References of the VM events of an answer of `event.from`, in order, and its token.
fn vms(client: &Client<'_>, token: &str, timeout: f64) -> (Vec<String>, String) {
    let batch = client.call("event.from", json!([["vm"], token, timeout]));
    let events = batch["events"].as_array().unwrap().iter();
    let found = events.map(|event| event["ref"].as_str().unwrap().to_owned()).collect();
    (found, batch["token"].as_str().unwrap().to_owned())
}

#[test]
fn a_delayed_call_comes_late_and_once() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    fault(&lab, json!({"method": "VM.get_name_label", "delay_ms": 80}));
    let began = Instant::now();
    client.call("VM.get_name_label", json!([vm]));
    assert!(began.elapsed() >= Duration::from_millis(80));
    assert_eq!(lab.control().json("GET", "/lab/faults", None).unwrap()["planned"], json!([]));
}

#[test]
fn a_fault_that_has_not_struck_is_listed() {
    let lab = Lab::new();
    fault(&lab, json!({"method": "VM.destroy", "nth": 3, "drop": true}));
    let listed = lab.control().json("GET", "/lab/faults", None).unwrap();
    let planned = &listed["planned"][0];
    assert_eq!(
        (&planned["method"], &planned["nth"], &planned["seen"]),
        (&json!("VM.destroy"), &json!(3), &json!(0))
    );
    assert_eq!((&listed["dhcp"], &listed["clock_offset_s"]), (&json!(true), &json!(0)));
    post(&lab, "/lab/faults", Some(json!({"clear": true})));
    assert_eq!(lab.control().json("GET", "/lab/faults", None).unwrap()["planned"], json!([]));
}

#[test]
fn an_event_can_be_told_twice() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    let (_, token) = vms(&client, "", 0.0);
    client.call("VM.set_name_label", json!([vm, "web02"]));
    fault(&lab, json!({"method": "event.from", "double_events": true}));
    let (twice, token) = vms(&client, &token, 0.0);
    assert_eq!(twice, [vm.clone(), vm.clone()]);
    client.call("VM.set_name_label", json!([vm, "web03"]));
    assert_eq!(vms(&client, &token, 0.0).0, [vm]);
}

#[test]
fn lost_events_are_never_told_and_the_wait_goes_on() {
    let lab = Lab::new();
    let client = lab.login();
    let (first, _) = client.vm(json!({"name": "web01"}));
    let (second, _) = client.vm(json!({"name": "web02"}));
    let (_, token) = vms(&client, "", 0.0);
    client.call("VM.set_name_label", json!([first, "x"]));
    client.call("VM.set_name_label", json!([second, "y"]));
    fault(&lab, json!({"method": "event.from", "lose_events": 2}));
    let (none, token) = vms(&client, &token, 0.05);
    assert!(none.is_empty(), "{none:?}");
    client.call("VM.set_name_label", json!([second, "z"]));
    assert_eq!(vms(&client, &token, 0.0).0, [second]);
}

#[test]
fn a_server_can_say_that_it_lost_events() {
    let lab = Lab::new();
    let client = lab.login();
    fault(&lab, json!({"method": "event.from", "error": ["EVENTS_LOST"]}));
    assert_eq!(client.code("event.from", json!([["vm"], "", 0.0])), "EVENTS_LOST");
    vms(&client, "", 0.0);
}

#[test]
fn an_upload_is_accepted_with_200_and_its_task_fails() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 4096}]}));
    let target = format!("/import_raw_vdi?vdi={}&session_id={}", disks[0], client.session);
    for (when, held) in [("before", 0), ("after", 7)] {
        fault(&lab, json!({"method": "PUT /import_raw_vdi", "when": when, "error": ["VDI_IO_ERROR", "x"]}));
        let answer = lab.http("PUT", &target, &[], &[7; 512]);
        assert_eq!(answer.status, 200);
        let task = client.wait(&answer.header("task-id").unwrap());
        assert_eq!(
            (&task["status"], &task["error_info"]),
            (&json!("failure"), &json!(["VDI_IO_ERROR", "x"]))
        );
        assert_eq!(client.read(&disks[0], 0, 1), [held], "{when}");
    }
}

#[test]
fn a_data_handler_can_be_cut_off_before_and_after_its_effect() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 4096}]}));
    let target = format!("/import_raw_vdi?vdi={}&session_id={}", disks[0], client.session);
    for (when, held) in [("before", 0), ("after", 7)] {
        fault(&lab, json!({"method": "PUT /import_raw_vdi", "when": when, "drop": true}));
        lab.http("PUT", &target, &[], &[7; 512]);
        assert_eq!(client.read(&disks[0], 0, 1), [held], "{when}");
    }
}

#[test]
fn all_sessions_can_be_lost_at_once_and_waiters_are_told() {
    let lab = Lab::new();
    let client = lab.login();
    let other = lab.login();
    let (_, token) = vms(&client, "", 0.0);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.code("event.from", json!([["vm"], token, 60.0])));
        wait_for_log(&lab, |e| e["kind"] == "call" && e["params"][2] == json!(60.0));
        assert_eq!(post(&lab, "/lab/sessions/drop", None)["dropped"], 2);
        assert_eq!(waiting.join().unwrap(), "SESSION_INVALID");
    });
    assert_eq!(client.code("VM.get_all", json!([])), "SESSION_INVALID");
    lab.login().call("VM.get_all", json!([]));
}

#[test]
fn a_host_that_restarts_takes_its_guests_down_and_starts_none_until_it_is_back() {
    let lab = Lab::with(|config| config.hosts = 2);
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "running": true,
        "disks": [{"name": "d", "size": 4096}]}));
    let host = client.text("VM.get_resident_on", json!([vm]));
    let uuid = client.text("host.get_uuid", json!([host]));
    let metrics = client.text("host.get_metrics", json!([host]));
    assert_eq!(post(&lab, &format!("/lab/host/{uuid}/reboot"), None)["guests"], 1);
    assert_eq!(client.text("VM.get_power_state", json!([vm])), "Halted");
    assert_eq!(client.call("host.get_enabled", json!([host])), false);
    assert_eq!(client.call("host_metrics.get_live", json!([metrics])), false);
    assert_eq!(client.code("VM.start_on", json!([vm, host, false, false])), "HOST_DISABLED");
    let vbd = client.call("VM.get_VBDs", json!([vm]))[0].clone();
    assert_eq!(client.call("VBD.get_currently_attached", json!([vbd])), false);
    post(&lab, &format!("/lab/host/{uuid}/boot"), None);
    client.call("VM.start_on", json!([vm, host, false, false]));
    post(&lab, &format!("/lab/host/{uuid}/reboot?down_ms=1"), None);
    wait_for_log(&lab, |e| {
        e["what"] == "host up" && e["seq"].as_u64() > Some(0) && {
            client.call("host.get_enabled", json!([host])) == json!(true)
        }
    });
    assert_eq!(client.text("VM.get_power_state", json!([vm])), "Halted");
    assert_eq!(client.call("host_metrics.get_live", json!([metrics])), true);
}

#[test]
fn every_host_listens_and_only_the_master_answers() {
    let lab = Lab::with(|config| config.hosts = 2);
    let at = |address: Ipv4Addr, method: &str, params: Value| -> Value {
        let body = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).to_string();
        let to = (address, lab.ports().http).into();
        let answer = exchange_at(to, "POST", "/jsonrpc", &[], body.as_bytes());
        serde_json::from_slice(&answer.body).unwrap_or_else(|_| panic!("{}", answer.text()))
    };
    let slave = |reply: &Value| (reply["error"]["message"].clone(), reply["error"]["data"].clone());
    let log_in = |address| at(address, "session.login_with_password", json!(["root", "password"]));
    let (first, second) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
    let session = log_in(first)["result"].clone();
    assert_eq!(slave(&log_in(second)), (json!("HOST_IS_SLAVE"), json!(["127.0.0.1"])));

    assert_eq!(post(&lab, "/lab/master", None), json!({"host": 2, "address": "127.0.0.2"}));
    assert_eq!(
        slave(&at(first, "VM.get_all", json!([session]))),
        (json!("HOST_IS_SLAVE"), json!(["127.0.0.2"]))
    );
    assert_eq!(at(second, "VM.get_all", json!([session]))["error"]["message"], "SESSION_INVALID");
    let session = log_in(second)["result"].clone();
    let pools = at(second, "pool.get_all_records", json!([session]))["result"].clone();
    let pool = pools.as_object().unwrap().values().next().unwrap().clone();
    let address = at(second, "host.get_address", json!([session, pool["master"]]))["result"].clone();
    assert_eq!(address, "127.0.0.2");
    let uuid = at(second, "host.get_all_records", json!([session]))["result"].clone();
    let uuid =
        uuid.as_object().unwrap().values().find(|h| h["hostname"] == "lab-host-1").unwrap()["uuid"].clone();
    post(&lab, &format!("/lab/master?host={}", uuid.as_str().unwrap()), None);
    assert!(log_in(first)["result"].is_string());
}

#[test]
fn a_pool_of_one_has_no_other_master() {
    let lab = Lab::new();
    let error = lab.control().json("POST", "/lab/master", None).unwrap_err().to_string();
    assert!(error.contains("--hosts"), "{error}");
}

#[test]
fn tracking_that_broke_says_459_and_tracking_that_began_again_460() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 1 << 20}], "cbt": true}));
    let disk = &disks[0];
    let snapshot = || client.text("VDI.snapshot", json!([disk]));
    let between = |from: &str, to: &str| client.code("VDI.list_changed_blocks", json!([from, to]));
    let reset = |how: &str| post(&lab, &format!("/lab/vdi/{disk}/cbt-reset{how}"), None);
    let first = snapshot();
    reset("");
    let second = snapshot();
    assert_eq!(between(&first, &second), "SR_BACKEND_FAILURE_459");
    assert!(client.changed(&second, disk).is_empty());
    reset("?how=restarted");
    let third = snapshot();
    assert_eq!(between(&second, &third), "SR_BACKEND_FAILURE_460");
    assert_eq!(client.call("VDI.get_cbt_enabled", json!([disk])), true);
    reset("?how=off");
    assert_eq!(client.call("VDI.get_cbt_enabled", json!([disk])), false);
    let refused = lab.control().json("POST", &format!("/lab/vdi/{disk}/cbt-reset"), None).unwrap_err();
    assert!(refused.to_string().contains("not tracked"), "{refused}");
}

#[test]
fn a_log_can_forget_blocks_without_anybody_knowing() {
    let lab = Lab::new();
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 1 << 20}], "cbt": true}));
    let before = client.text("VDI.snapshot", json!([disks[0]]));
    for block in [1, 3, 4] {
        client.write(&disks[0], block << 16, &[1; 100]);
    }
    let path = format!("/lab/vdi/{}/cbt-forget?offset={}&size={}", disks[0], 3 << 16, 1 << 16);
    assert_eq!(post(&lab, &path, None)["blocks"], 1);
    assert_eq!(client.changed(&before, &disks[0]), [1, 4]);
    assert_eq!(client.read(&disks[0], 3 << 16, 1), [1]);
}

#[test]
fn the_clocks_of_the_hosts_can_be_wrong() {
    let lab = Lab::new();
    let client = lab.login();
    let host = client.call("host.get_all", json!([]))[0].clone();
    let day = |text: String| text[..8].to_owned();
    let now = day(client.text("host.get_servertime", json!([host])));
    fault(&lab, json!({"clock_offset_s": -40 * 86_400}));
    let then = day(client.text("host.get_servertime", json!([host])));
    assert!(then < now, "{then} {now}");
    fault(&lab, json!({"clock_offset_s": 0}));
    assert!(day(client.text("host.get_servertime", json!([host]))) >= now);
}
