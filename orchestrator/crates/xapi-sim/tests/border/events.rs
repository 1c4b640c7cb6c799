//! Events and tasks.

use crate::support::Lab;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[test]
fn an_empty_token_lists_everything_and_the_next_one_only_changes() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    let all = client.call("event.from", json!([["*"], "", 5.0]));
    let events = all["events"].as_array().unwrap();
    assert!(events.iter().all(|e| e["operation"] == "add" && e["snapshot"].is_object()));
    let classes: Vec<&str> = events.iter().map(|e| e["class"].as_str().unwrap()).collect();
    assert!(classes.contains(&"vm") && classes.contains(&"pool") && !classes.contains(&"session"));
    assert_eq!(all["valid_ref_counts"]["vm"], json!(3));
    let token = all["token"].as_str().unwrap();
    assert_eq!((token.len(), &token[20..21]), (41, ","));
    client.call("VM.set_name_label", json!([vm, "web02"]));
    client.call("VM.set_name_description", json!([vm, "second"]));
    let next = client.call("event.from", json!([["vm"], token, 5.0]));
    let events = next["events"].as_array().unwrap();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!((&events[0]["operation"], &events[0]["ref"]), (&json!("mod"), &json!(vm)));
    assert_eq!(events[0]["snapshot"]["name_label"], "web02");
    client.call("VM.destroy", json!([vm]));
    let gone = client.call("event.from", json!([[format!("VM/{vm}")], next["token"], 5.0]));
    assert_eq!(gone["events"][0]["operation"], "del");
    assert_eq!(gone["events"][0].get("snapshot"), None);
}

#[test]
fn a_call_without_news_blocks_until_there_is_some_or_time_is_up() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    let (other, _) = client.vm(json!({"name": "db01"}));
    let token = client.text("event.inject", json!(["pool", client.call("pool.get_all", json!([]))[0]]));
    let started = Instant::now();
    let own = format!("vm/{vm}");
    let empty = client.call("event.from", json!([[own], token, 0.3]));
    assert_eq!(empty["events"], json!([]));
    assert!(started.elapsed() >= Duration::from_millis(300));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.call("event.from", json!([[own], empty["token"], 30.0])));
        // What does not match must not end the wait.
        client.call("VM.set_name_label", json!([other, "db02"]));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!waiting.is_finished());
        client.call("VM.set_name_label", json!([vm, "web02"]));
        let batch = waiting.join().unwrap();
        assert_eq!(batch["events"].as_array().unwrap().len(), 1);
    });
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn an_injected_event_comes_back_with_its_own_token() {
    let lab = Lab::new();
    let client = lab.login();
    let pool = client.call("pool.get_all", json!([]))[0].clone();
    let token = client.call("event.inject", json!(["pool", pool]));
    let batch = client.call("event.from", json!([["pool"], token, 5.0]));
    assert_eq!(batch["events"][0]["ref"], pool);
    assert_eq!(
        client.refused("event.inject", json!(["pool", "OpaqueRef:x"])),
        ["HANDLE_INVALID", "pool", "OpaqueRef:x"]
    );
    assert_eq!(
        client.refused("event.from", json!([["*"], "nonsense", 1.0])),
        ["EVENT_FROM_TOKEN_PARSE_FAILURE", "nonsense"]
    );
    assert_eq!(
        client.refused("event.from", json!([["a/b/c"], "", 1.0])),
        ["EVENT_SUBSCRIPTION_PARSE_FAILURE", "a/b/c"]
    );
}

#[test]
fn asynchronous_calls_end_in_their_task() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": 4096}]}));
    let task = client.text("Async.VM.clone", json!([vm, "copy"]));
    let record = client.wait(&task);
    assert_eq!((&record["status"], &record["name_label"]), (&json!("success"), &json!("Async.VM.clone")));
    let result = record["result"].as_str().unwrap();
    let clone = result.strip_prefix("<value>").unwrap().strip_suffix("</value>").unwrap();
    assert_eq!(client.call("VM.get_name_label", json!([clone])), "copy");
    let void = client.text("Async.VM.destroy", json!([clone]));
    assert_eq!(client.wait(&void)["result"], "");
    let failing = client.text("Async.VM.start", json!(["OpaqueRef:x", false, false]));
    let record = client.wait(&failing);
    assert_eq!(
        (&record["status"], &record["error_info"]),
        (&json!("failure"), &json!(["HANDLE_INVALID", "VM", "OpaqueRef:x"]))
    );
    for task in [task, void, failing] {
        client.call("task.destroy", json!([task]));
        assert_eq!(client.code("task.get_record", json!([task])), "HANDLE_INVALID");
    }
}

#[test]
fn a_pending_task_that_is_destroyed_goes_away_when_it_ends() {
    let lab = Lab::new();
    let client = lab.login();
    let task = client.text("task.create", json!(["mine", "made by hand"]));
    assert_eq!(client.call("task.get_status", json!([task])), "pending");
    client.call("task.destroy", json!([task]));
    assert_eq!(client.call("task.get_current_operations", json!([task])), json!({"task": "destroy"}));
    client.call("task.cancel", json!([task]));
    assert_eq!(client.call("task.get_status", json!([task])), "cancelling");
    client.call("task.set_status", json!([task, "cancelled"]));
    client.call("task.destroy", json!([task]));
    assert_eq!(client.code("task.get_status", json!([task])), "HANDLE_INVALID");
}

#[test]
fn the_legacy_form_of_events_still_works() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01"}));
    assert_eq!(client.code("event.next", json!([])), "SESSION_NOT_REGISTERED");
    client.call("event.register", json!([["vm"]]));
    client.call("VM.set_name_label", json!([vm, "web02"]));
    let events: Value = client.call("event.next", json!([]));
    assert_eq!(events[0]["ref"], json!(vm));
}
