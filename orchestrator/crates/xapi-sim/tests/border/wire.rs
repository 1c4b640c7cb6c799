//! What stands on the wire, written down by hand from the published protocol.

use crate::support::{self, Lab, read_answer};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use xapi_sim::Flavour;

fn xml_call(lab: &Lab, path: &str, method: &str, params: &[&str]) -> support::Answer {
    let params: String = params.iter().map(|p| format!("<param><value>{p}</value></param>")).collect();
    let body = format!(
        "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>"
    );
    lab.http("POST", path, &[], body.as_bytes())
}

#[test]
fn xml_rpc_is_answered_at_any_path_in_status_envelopes() {
    let lab = Lab::new();
    for path in ["/", "/RPC2", "/xmlrpc"] {
        let answer = xml_call(&lab, path, "session.login_with_password", &["root", "password"]);
        assert_eq!(answer.header("content-type").unwrap(), "text/xml");
        let text = answer.text();
        let start = "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name>\
            <value>Success</value></member><member><name>Value</name><value>OpaqueRef:";
        assert!(text.starts_with(start), "{text}");
        assert!(
            text.ends_with("</value></member></struct></value></param></params></methodResponse>"),
            "{text}"
        );
    }
    let refused = xml_call(&lab, "/", "session.login_with_password", &["root", "wrong"]).text();
    assert!(
        refused.contains(
            "<member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name>\
        <value><array><data><value>SESSION_AUTHENTICATION_FAILED</value><value>root</value>"
        ),
        "{refused}"
    );
    let listed = xml_call(&lab, "/", "system.listMethods", &[]).text();
    assert!(
        listed
            .starts_with("<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value>")
    );
    assert!(listed.contains("<value>VM.snapshot</value>") && !listed.contains("Async."));
}

#[test]
fn xml_scalars_are_untyped_but_for_booleans_dates_and_doubles() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, _) = client.vm(json!({"name": "web01", "memory": 268435456}));
    let record = xml_call(&lab, "/", "VM.get_record", &[&client.session, &vm]).text();
    for part in [
        "<name>memory_static_max</name><value>268435456</value>",
        "<name>is_a_template</name><value><boolean>0</boolean></value>",
        "<name>HVM_shadow_multiplier</name><value><double>1</double></value>",
        "<name>snapshot_time</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value>",
        "<name>resident_on</name><value>OpaqueRef:NULL</value>",
        "<name>tags</name><value><array><data></data></array></value>",
        "<name>xenstore_data</name><value><struct></struct></value>",
        "<name>domid</name><value>-1</value>",
    ] {
        assert!(record.contains(part), "{part} in {record}");
    }
    // Integers are accepted as strings, and events count in <i4>.
    xml_call(&lab, "/", "VM.set_user_version", &[&client.session, &vm, "7"]);
    assert_eq!(client.call("VM.get_user_version", json!([vm])), json!(7));
    let batch = xml_call(
        &lab,
        "/",
        "event.from",
        &[&client.session, "<array><data><value>vm</value></data></array>", "", "<double>0.1</double>"],
    );
    assert!(batch.text().contains("<name>vm</name><value><i4>3</i4></value>"), "{}", batch.text());
}

#[test]
fn json_rpc_speaks_both_versions() {
    let lab = Lab::new();
    let post = |body: Value| lab.http("POST", "/jsonrpc", &[], body.to_string().as_bytes());
    let v1 = post(json!({"method": "session.login_with_password", "params": ["root", "wrong"], "id": "a"}));
    assert_eq!(v1.header("content-type").unwrap(), "application/json");
    let v1: Value = serde_json::from_slice(&v1.body).unwrap();
    assert_eq!((&v1["result"], &v1["id"]), (&Value::Null, &json!("a")));
    assert_eq!(v1["error"][0], "SESSION_AUTHENTICATION_FAILED");
    let v2 = post(json!({"jsonrpc": "2.0", "method": "VM.get_all", "params": ["OpaqueRef:x"], "id": 4}));
    let v2: Value = serde_json::from_slice(&v2.body).unwrap();
    let expected = json!({"jsonrpc": "2.0", "id": 4,
        "error": {"code": 1, "message": "SESSION_INVALID", "data": ["OpaqueRef:x"]}});
    assert_eq!(v2, expected);
    for bad in [
        json!({"jsonrpc": "3.0", "method": "m", "id": 1}),
        json!({"jsonrpc": "2.0", "method": "m", "id": null}),
    ] {
        assert_eq!(post(bad).status, 500);
    }
}

#[test]
fn old_servers_answer_json_errors_as_arrays_and_lack_newer_calls() {
    let lab = Lab::with(|c| c.flavour = Flavour::by_name("xs-7.2").unwrap());
    let answer = lab.http(
        "POST",
        "/jsonrpc",
        &[],
        br#"{"jsonrpc":"2.0","method":"VM.get_all","params":["x"],"id":1}"#,
    );
    let reply: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(reply["error"], json!(["SESSION_INVALID", "x"]));
    let session = lab.http(
        "POST",
        "/jsonrpc",
        &[],
        br#"{"jsonrpc":"2.0","method":"session.login_with_password","params":["root","password"],"id":1}"#,
    );
    let session: Value = serde_json::from_slice(&session.body).unwrap();
    let session = session["result"].clone();
    let error = |method: &str, params: Value| {
        let body = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1});
        let answer = lab.http("POST", "/jsonrpc", &[], body.to_string().as_bytes());
        serde_json::from_slice::<Value>(&answer.body).unwrap()["error"].clone()
    };
    assert_eq!(
        error("VDI.enable_cbt", json!([session, "x"])),
        json!(["MESSAGE_METHOD_UNKNOWN", "VDI.enable_cbt"])
    );
    assert_eq!(
        error("VM.snapshot", json!([session, "x", "name", []])),
        json!(["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3"])
    );
}

#[test]
fn a_server_without_json_rpc_answers_in_xml() {
    let lab = Lab::with(|c| c.json = false);
    let answer = lab.http("POST", "/jsonrpc", &[], br#"{"jsonrpc":"2.0","method":"VM.get_all","id":1}"#);
    assert_eq!((answer.status, answer.header("content-type").unwrap().as_str()), (404, "text/xml"));
}

#[test]
fn calls_are_refused_in_the_documented_ways() {
    let lab = Lab::new();
    let client = lab.login();
    let code = |method: &str, params: Value| client.refused(method, params);
    assert_eq!(code("VM.frobnicate", json!([])), ["MESSAGE_METHOD_UNKNOWN", "VM.frobnicate"]);
    assert_eq!(code("Async.VM.get_uuid", json!(["x"])), ["MESSAGE_METHOD_UNKNOWN", "Async.VM.get_uuid"]);
    assert_eq!(code("VM.start", json!(["x"])), ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.start", "3", "1"]);
    assert_eq!(code("VM.start", json!(["x", "yes", false])), ["FIELD_TYPE_ERROR", "start_paused"]);
    assert_eq!(code("VM.get_record", json!(["OpaqueRef:x"])), ["HANDLE_INVALID", "VM", "OpaqueRef:x"]);
    assert_eq!(code("VM.get_by_uuid", json!(["x"])), ["UUID_INVALID", "VM", "x"]);
    let pool = client.call("pool.get_all", json!([]))[0].clone();
    client.call("pool.add_to_other_config", json!([pool, "k", "v"]));
    let duplicate = code("pool.add_to_other_config", json!([pool, "k", "w"]));
    assert_eq!(duplicate, ["MAP_DUPLICATE_KEY", "pool", "other_config", pool.as_str().unwrap(), "k"]);
    client.call("pool.remove_from_other_config", json!([pool, "absent"]));
    client.call("session.logout", json!([]));
    assert_eq!(code("VM.get_all", json!([])), ["SESSION_INVALID", &client.session]);
    let large = vec![b' '; 307_201];
    assert_eq!(lab.http("POST", "/", &[], &large).status, 413);
    assert_eq!(lab.http("GET", "/nothing", &[], &[]).status, 404);
}

#[test]
fn the_unix_socket_asks_for_no_password_but_tcp_does_after_a_delay() {
    let lab = Lab::with(|c| c.login_delay = Duration::from_millis(300));
    let started = Instant::now();
    assert_eq!(
        lab.call_raw("session.login_with_password", json!(["root", ""])).unwrap_err()[0],
        "SESSION_AUTHENTICATION_FAILED"
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
    let body = json!({"method": "session.login_with_password", "params": ["root", ""], "id": 1}).to_string();
    let mut stream = UnixStream::connect(&lab.ports().socket).unwrap();
    let head = format!(
        "POST /jsonrpc HTTP/1.1\r\nhost: local\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    let reply: Value = serde_json::from_slice(&read_answer(stream).body).unwrap();
    assert!(reply["result"].as_str().unwrap().starts_with("OpaqueRef:"));
}

#[test]
fn every_listed_call_has_code_behind_it() {
    let lab = Lab::new();
    let client = lab.login();
    let names = lab.call_raw("system.listMethods", json!([])).unwrap();
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert!(names.len() > 500, "{}", names.len());
    // Arguments of every type, so that each call gets past its type checks with one of them.
    let candidates = [
        json!("OpaqueRef:x"),
        json!(1),
        json!(1.5),
        json!(true),
        json!([]),
        json!({}),
        json!("20240420T12:00:00Z"),
    ];
    for name in names {
        if matches!(
            name,
            "session.logout"
                | "system.listMethods"
                | "event.next"
                | "event.from"
                | "session.login_with_password"
        ) {
            continue;
        }
        let mut params: Vec<Value> = Vec::new();
        let mut tried = vec![0usize];
        for _ in 0..200 {
            params.resize(tried.len() - 1, Value::Null);
            for (slot, choice) in params.iter_mut().zip(&tried) {
                *slot = candidates[*choice % candidates.len()].clone();
            }
            match client.try_call(name, Value::Array(params.clone())) {
                Err(e) if e[0] == "MESSAGE_METHOD_UNKNOWN" => panic!("{name} is listed but unknown"),
                Err(e) if e[0] == "MESSAGE_PARAMETER_COUNT_MISMATCH" => tried.push(0),
                // The first parameter that is still wrong gets the next candidate.
                Err(e) if e[0] == "FIELD_TYPE_ERROR" => {
                    let wrong = tried.len().saturating_sub(2);
                    let mut slot = wrong;
                    while tried[slot] + 1 == candidates.len() && slot > 0 {
                        tried[slot] = 0;
                        slot -= 1;
                    }
                    tried[slot] += 1;
                    if tried[0] > candidates.len() {
                        break;
                    }
                }
                _ => break,
            }
        }
    }
}
