//! What a user's role permits, and what the pool's licence does.

use crate::support::{Client, Lab};
use serde_json::{Value, json};
use xapi_sim::Flavour;

fn lab() -> Lab {
    Lab::with(|config| {
        config.extra_users = [
            "power:one:vm-power-admin",
            "admin:two:vm-admin",
            "operator:three:vm-operator",
            "eye:four:read-only",
        ]
        .iter()
        .map(|user| user.parse().unwrap())
        .collect();
    })
}

fn denied(client: &Client<'_>, method: &str, params: Value) -> String {
    let refused = client.refused(method, params);
    assert_eq!((refused.len(), refused[0].as_str()), (3, "RBAC_PERMISSION_DENIED"), "{refused:?}");
    assert_eq!(refused[1], method.to_lowercase());
    refused[2].clone()
}

#[test]
fn a_role_is_refused_what_it_may_not_do() {
    let lab = lab();
    let root = lab.login();
    let (vm, disks) = root.vm(json!({"name": "v", "disks": [{"name": "d", "size": 65_536}], "cbt": true}));
    let (power, admin) = (lab.login_as("power", "one"), lab.login_as("admin", "two"));
    let (operator, eye) = (lab.login_as("operator", "three"), lab.login_as("eye", "four"));
    assert_eq!(eye.call("VM.get_name_label", json!([vm])), "v");
    let text = denied(&eye, "VM.start", json!([vm, false, false]));
    let roles = "pool-admin, pool-operator, vm-power-admin, vm-admin, vm-operator";
    assert_eq!(text, format!("No permission in user session. (Roles with this permission: {roles})"));
    denied(&eye, "VM.add_tags", json!([vm, "x"]));
    operator.call("VM.add_tags", json!([vm, "x"]));
    operator.call("VM.start", json!([vm, false, false]));
    denied(&operator, "VDI.snapshot", json!([disks[0]]));
    admin.call("VDI.snapshot", json!([disks[0]]));
    denied(&admin, "VM.snapshot", json!([vm, "s"]));
    let snapshot = power.text("VM.snapshot", json!([vm, "s"]));
    power.call("VM.destroy", json!([snapshot]));
    denied(&power, "SR.set_name_label", json!([root.call("VDI.get_SR", json!([disks[0]])), "x"]));
    // Asynchronously there is no task for what may not be done.
    let refused = admin.refused("Async.VM.snapshot", json!([vm, "s"]));
    assert_eq!(refused[..2], ["RBAC_PERMISSION_DENIED", "vm.snapshot"]);
    let wrong = lab.call_raw("session.login_with_password", json!(["power", "two"])).unwrap_err();
    assert_eq!(wrong[0], "SESSION_AUTHENTICATION_FAILED");
}

#[test]
fn a_session_says_what_it_may_do() {
    let lab = lab();
    let root = lab.login();
    assert_eq!(root.call("session.get_is_local_superuser", json!([root.session])), true);
    assert_eq!(root.call("session.get_rbac_permissions", json!([root.session])), json!([]));
    let power = lab.login_as("power", "one");
    let record = power.call("session.get_record", json!([power.session]));
    assert_eq!((&record["is_local_superuser"], &record["auth_user_name"]), (&json!(false), &json!("power")));
    let granted = record["rbac_permissions"].as_array().unwrap();
    for (name, has) in
        [("vm.snapshot", true), ("vdi.data_destroy", true), ("http/put_import", true), ("pbd.plug", false)]
    {
        assert_eq!(granted.contains(&json!(name)), has, "{name}");
    }
}

#[test]
fn data_handlers_ask_for_the_role_too() {
    let lab = lab();
    let root = lab.login();
    let (_, disks) = root.vm(json!({"name": "v", "disks": [{"name": "d", "size": 4096}]}));
    let export = |client: &Client<'_>| {
        let task = client.text("task.create", json!(["export", ""]));
        let target = format!("/export_raw_vdi?vdi={}&session_id={}&task_id={task}", disks[0], client.session);
        (lab.http("GET", &target, &[], &[]).status, root.wait(&task))
    };
    let (status, task) = export(&lab.login_as("operator", "three"));
    assert_eq!((status, &task["status"]), (403, &json!("failure")));
    assert_eq!(task["error_info"][0], "RBAC_PERMISSION_DENIED");
    assert_eq!(task["error_info"][1], "http/get_export_raw_vdi");
    let (status, task) = export(&lab.login_as("admin", "two"));
    assert_eq!((status, &task["status"]), (200, &json!("success")));
    // A refusal leaves no session of a request's own behind.
    let count =
        || lab.control().json("GET", "/lab/inventory", None).unwrap()["session"].as_array().unwrap().len();
    let before = count();
    let target = format!("/export_raw_vdi?vdi={}", disks[0]);
    let answer = lab.http("GET", &target, &[("authorization", "Basic ZXllOmZvdXI=")], &[]);
    assert_eq!((answer.status, count()), (403, before));
}

#[test]
fn the_licence_shows_where_clients_look_before_they_ask() {
    for (flavour, edition, lesser) in [
        ("xs-7.2", "enterprise-per-socket", "standard-per-socket"),
        ("xs-7.3", "enterprise-per-socket", "standard-per-socket"),
        ("xs-8", "premium-per-socket", "standard-per-socket"),
        ("xcp-8.3", "xcp-ng", "xcp-ng"),
    ] {
        let lab = Lab::with(|config| config.flavour = Flavour::by_name(flavour).unwrap());
        let client = lab.login();
        let first = |class: &str| {
            let all = client.call(&format!("{class}.get_all_records"), json!([]));
            all.as_object().unwrap().iter().next().map(|(r, v)| (r.clone(), v.clone())).unwrap()
        };
        let shown = || {
            let ((pool, record), (_, host)) = (first("pool"), first("host"));
            let state = client.call("pool.get_license_state", json!([pool]));
            assert_eq!(
                (&state["edition"], &state["expiry"]),
                (&host["edition"], &host["license_params"]["expiry"])
            );
            assert_eq!(record["restrictions"]["restrict_cbt"], host["license_params"]["restrict_cbt"]);
            assert_eq!(record["restrictions"]["enable_xha"], "true");
            (record["restrictions"]["restrict_cbt"].clone(), state["edition"].as_str().unwrap().to_owned())
        };
        let tracks = flavour != "xs-7.2";
        let word = |word: &str| if tracks { json!(word) } else { Value::Null };
        assert_eq!(shown(), (word("false"), edition.to_owned()), "{flavour}");
        lab.control().json("POST", "/lab/faults", Some(&json!({"cbt_licensed": false}))).unwrap();
        assert_eq!(shown(), (word("true"), lesser.to_owned()), "{flavour}");
        lab.control().json("POST", "/lab/faults", Some(&json!({"clear": true}))).unwrap();
        assert_eq!(shown(), (word("false"), edition.to_owned()), "{flavour}");
    }
}

#[test]
fn drivers_tell_what_they_can_do() {
    for (flavour, tracks) in [("xs-7.2", false), ("xcp-8.3", true)] {
        let lab = Lab::with(|config| config.flavour = Flavour::by_name(flavour).unwrap());
        let client = lab.login();
        let all = client.call("SM.get_all_records", json!([]));
        let features = |kind: &str| {
            let found = all.as_object().unwrap().values().find(|sm| sm["type"] == kind);
            found.unwrap_or_else(|| panic!("no driver {kind}"))["features"].clone()
        };
        for kind in ["ext", "nfs", "lvm", "lvmoiscsi"] {
            assert_eq!(features(kind)["VDI_SNAPSHOT"], json!(1));
            assert_eq!(features(kind)["VDI_CONFIG_CBT"].is_null(), !tracks, "{flavour} {kind}");
        }
        assert_eq!(features("iscsi")["VDI_SNAPSHOT"], Value::Null);
        assert_eq!(
            (features("nfs")["THIN_PROVISIONING"].clone(), features("lvm")["THIN_PROVISIONING"].clone()),
            (json!(1), Value::Null)
        );
    }
}
