//! One row per release: what a client finds there, and what it does not.

use crate::support::{Client, Lab};
use serde_json::{Value, json};
use xapi_sim::Flavour;

/// What a release has. The versions in which things appeared stand in the public data model.
struct Row {
    flavour: &'static str,
    api: &'static str,
    json: bool,
    cbt: bool,
    domain_type: bool,
    nvram: bool,
    quiesce: bool,
    ignore_vdis: bool,
    /// Whether errors of version 2 calls are objects.
    errors_v2: bool,
}

const fn row(flavour: &'static str, api: &'static str, has: [bool; 7]) -> Row {
    let [json, cbt, domain_type, nvram, quiesce, ignore_vdis, errors_v2] = has;
    Row { flavour, api, json, cbt, domain_type, nvram, quiesce, ignore_vdis, errors_v2 }
}

const N: bool = false;
const Y: bool = true;

#[rustfmt::skip]
const ROWS: &[Row] = &[
    //  release              JSON CBT type NVRAM quiesce ignore errors
    row("xs-6.5", "2.3",     [N,   N,  N,   N,    Y,      N,     N]),
    row("xs-7.2", "2.7",     [Y,   N,  N,   N,    Y,      N,     N]),
    row("xs-7.3", "2.8",     [Y,   Y,  N,   N,    Y,      N,     Y]),
    row("xs-7.6", "2.11",    [Y,   Y,  Y,   N,    Y,      N,     Y]),
    row("ch-8.0", "2.12",    [Y,   Y,  Y,   Y,    Y,      N,     Y]),
    row("ch-8.2", "2.15",    [Y,   Y,  Y,   Y,    N,      N,     Y]),
    row("xcp-8.2", "2.15",   [Y,   Y,  Y,   Y,    N,      N,     Y]),
    row("xs-8", "2.21",      [Y,   Y,  Y,   Y,    N,      Y,     Y]),
    row("xcp-8.3", "2.21",   [Y,   Y,  Y,   Y,    N,      Y,     Y]),
];

const CBT_CALLS: [&str; 4] =
    ["VDI.enable_cbt", "VDI.disable_cbt", "VDI.data_destroy", "VDI.list_changed_blocks"];

fn has(record: &Value, field: &str) -> bool {
    record.as_object().unwrap().contains_key(field)
}

fn calls(lab: &Lab) -> Vec<String> {
    let listed = lab.call_raw("system.listMethods", json!([])).unwrap();
    listed.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn sample(client: &Client<'_>) -> (String, Vec<String>) {
    client
        .vm(json!({"name": "v", "running": true, "quiesce": true, "disks": [{"name": "d", "size": 65_536}]}))
}

#[test]
fn each_release_has_its_own_calls_parameters_and_members() {
    for row in ROWS {
        let name = row.flavour;
        // The test speaks JSON; whether the release does is asked by a test of its own.
        let lab = Lab::with(|config| config.flavour = Flavour::by_name(name).unwrap());
        let client = lab.login();
        let (vm, disks) = sample(&client);

        let hosts = client.call("host.get_all_records", json!([]));
        let host = hosts.as_object().unwrap().values().next().unwrap();
        assert_eq!(host["software_version"]["xapi"], row.api, "{name}");

        let listed = calls(&lab);
        for call in CBT_CALLS {
            assert_eq!(listed.iter().any(|known| known == call), row.cbt, "{name} {call}");
        }
        assert_eq!(listed.contains(&"network.add_purpose".into()), row.cbt, "{name}");
        for call in ["VM.checkpoint", "VM.revert", "VDI.pool_migrate", "VM.snapshot_with_quiesce"] {
            assert!(listed.contains(&call.into()), "{name} {call}");
        }

        let vdi = client.call("VDI.get_record", json!([disks[0]]));
        assert_eq!(has(&vdi, "cbt_enabled"), row.cbt, "{name}");
        let record = client.call("VM.get_record", json!([vm]));
        assert_eq!(
            (has(&record, "domain_type"), has(&record, "NVRAM")),
            (row.domain_type, row.nvram),
            "{name}"
        );

        let enabled = client.try_call("VDI.enable_cbt", json!([disks[0]]));
        match enabled {
            Ok(_) => assert!(row.cbt, "{name}"),
            Err(error) => {
                assert_eq!(
                    (error, row.cbt),
                    (vec!["MESSAGE_METHOD_UNKNOWN".into(), "VDI.enable_cbt".into()], false)
                );
            }
        }

        client.call("VM.snapshot", json!([vm, "two parameters"]));
        match client.try_call("VM.snapshot", json!([vm, "three", []])) {
            Ok(_) => assert!(row.ignore_vdis, "{name}"),
            Err(error) => {
                let mismatch = ["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3"];
                assert_eq!((error, row.ignore_vdis), (mismatch.map(str::to_owned).to_vec(), false), "{name}");
            }
        }
        let quiesced = client.try_call("VM.snapshot_with_quiesce", json!([vm, "q"]));
        assert_eq!(quiesced.is_ok(), row.quiesce, "{name}");
        let checkpoint = client.text("VM.checkpoint", json!([vm, "c"]));
        assert_eq!(client.text("VM.get_power_state", json!([checkpoint])), "Suspended", "{name}");

        let bad =
            json!({"jsonrpc": "2.0", "method": "VM.get_uuid", "params": [client.session, "x"], "id": 1});
        let answer = lab.http("POST", "/jsonrpc", &[], bad.to_string().as_bytes());
        let answer: Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!(answer["error"].is_object(), row.errors_v2, "{name}");
    }
}

#[test]
fn a_release_without_json_answers_as_its_web_server_does() {
    for row in ROWS {
        let lab = Lab::with(|config| {
            config.flavour = Flavour::by_name(row.flavour).unwrap();
            config.json = config.flavour.json;
        });
        let call = json!({"jsonrpc": "2.0", "method": "session.login_with_password", "params": ["root", "password"], "id": 1});
        let answer = lab.http("POST", "/jsonrpc", &[], call.to_string().as_bytes());
        let kind = answer.header("content-type").unwrap();
        assert_eq!(kind.contains("json"), row.json, "{} answers {kind}", row.flavour);
        if !row.json {
            assert!(kind.contains("text/xml"), "{kind}");
        }
    }
}
