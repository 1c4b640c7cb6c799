//! Tasks, events and records against a scripted peer.

mod peer;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use peer::{Peer, SESSION, TASK, api, client, options, task_record};
use serde_json::{Value as Json, json};
use xapi::{Client, Event, Kind, Operation, PowerState, Ref, Upload, VbdCreate, VbdMode, VbdType, Vdi, Vm};

#[tokio::test]
async fn long_operations_run_as_tasks_and_leave_none() {
    let peer = Peer::start(api(|method, params| match method {
        "Async.VM.clone" => {
            assert_eq!(params, [json!(SESSION), json!("OpaqueRef:1"), json!("copy")]);
            Some(Ok(json!(TASK)))
        }
        "task.get_record" => Some(Ok(task_record("success", "<value>OpaqueRef:2</value>", &[]))),
        _ => None,
    }))
    .await;
    let mut tagged = options(&peer.url());
    tagged.task_tags.insert("abd:owner".to_owned(), "me".to_owned());
    let client = Client::connect(tagged).await.expect("login");
    let clone = client.vm_clone(&Ref::from_opaque("OpaqueRef:1"), "copy").await.expect("cloned");
    assert_eq!(clone.as_str(), "OpaqueRef:2");
    client.close().await.expect("logout");
    let expected =
        ["Async.VM.clone", "task.add_to_other_config", "task.get_record", "task.destroy", "session.logout"];
    assert_eq!(peer.methods()[1..], expected);
}

#[tokio::test]
async fn a_failed_task_is_the_operations_error() {
    let peer = Peer::start(api(|method, _| match method {
        "Async.VM.start" => Some(Ok(json!(TASK))),
        "task.get_record" => {
            Some(Ok(task_record("failure", "", &["VM_BAD_POWER_STATE", "OpaqueRef:1", "halted", "running"])))
        }
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let error = client.vm_start(&Ref::from_opaque("OpaqueRef:1")).await.expect_err("scripted");
    assert_eq!(error.kind(), &Kind::BadState);
    assert_eq!(error.to_string(), "VM.start: VM OpaqueRef:1 must be halted, but it is running");
    assert!(peer.methods().contains(&"task.destroy".to_owned()));
}

#[tokio::test]
async fn an_operation_that_takes_too_long_is_cancelled() {
    let peer = Peer::start(api(|method, _| match method {
        "Async.VM.clean_shutdown" => Some(Ok(json!(TASK))),
        "task.get_record" => Some(Ok(task_record("pending", "", &[]))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let params = vec![(&Ref::<Vm>::from_opaque("OpaqueRef:1")).into()];
    let error = client.call_async("VM.clean_shutdown", params, Duration::ZERO).await.expect_err("too long");
    assert_eq!((error.kind(), error.method()), (&Kind::Timeout, "VM.clean_shutdown"));
    assert_eq!(peer.methods()[peer.methods().len() - 2..], ["task.cancel", "task.destroy"]);
}

#[tokio::test]
async fn a_snapshot_falls_back_to_two_parameters() {
    let peer = Peer::start(api(|method, params| match (method, params.len()) {
        ("Async.VM.snapshot", 4) => {
            Some(Err(vec!["MESSAGE_PARAMETER_COUNT_MISMATCH", "VM.snapshot", "2", "3"]))
        }
        ("Async.VM.snapshot", 3) => Some(Ok(json!(TASK))),
        ("task.get_record", _) => Some(Ok(task_record("success", "<value>OpaqueRef:5</value>", &[]))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let ignore = [Ref::<Vdi>::from_opaque("OpaqueRef:d")];
    let snapshot =
        client.vm_snapshot(&Ref::from_opaque("OpaqueRef:1"), "s", &ignore).await.expect("snapshot");
    assert_eq!(snapshot.as_str(), "OpaqueRef:5");
}

#[tokio::test]
async fn records_go_out_complete() {
    let peer = Peer::start(api(|method, params| match method {
        "VBD.create" => {
            let expected = json!({"VM": "OpaqueRef:1", "VDI": "OpaqueRef:d", "userdevice": "4", "bootable": false,
                "mode": "RO", "type": "Disk", "unpluggable": true, "empty": false, "other_config": {},
                "qos_algorithm_type": "", "qos_algorithm_params": {}});
            assert_eq!(params[1], expected);
            Some(Ok(json!("OpaqueRef:b")))
        }
        "VDI.list_changed_blocks" => Some(Ok(json!("gEE="))),
        "VM.add_to_other_config" if params[3] == "new" => {
            static FIRST: AtomicUsize = AtomicUsize::new(0);
            match FIRST.fetch_add(1, Ordering::SeqCst) {
                0 => Some(Err(vec!["MAP_DUPLICATE_KEY", "VM", "other_config", "OpaqueRef:1", "k"])),
                _ => Some(Ok(json!(""))),
            }
        }
        "VM.remove_from_other_config" => Some(Ok(json!(""))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let (vm, vdi) = (Ref::<Vm>::from_opaque("OpaqueRef:1"), Ref::<Vdi>::from_opaque("OpaqueRef:d"));
    let vbd = VbdCreate {
        vm: vm.clone(),
        vdi: vdi.clone(),
        userdevice: 4,
        bootable: false,
        mode: VbdMode::ReadOnly,
        kind: VbdType::Disk,
        other_config: Default::default(),
    };
    assert_eq!(client.vbd_create(&vbd).await.expect("created").as_str(), "OpaqueRef:b");
    assert_eq!(client.vdi_list_changed_blocks(&vdi, &vdi).await.expect("bitmap"), [0x80, 0x41]);
    client.add_to_other_config(&vm, "k", "new").await.expect("replaced");
    let expected = ["VM.add_to_other_config", "VM.remove_from_other_config", "VM.add_to_other_config"];
    assert_eq!(peer.methods()[peer.methods().len() - 3..], expected);
}

#[tokio::test]
async fn calls_of_preflight_go_out_as_the_model_says() {
    let peer = Peer::start(api(|method, params| {
        let expected = match method {
            "host.get_servertime" => json!([SESSION, "OpaqueRef:h"]),
            "VM.assert_can_boot_here" => json!([SESSION, "OpaqueRef:1", "OpaqueRef:h"]),
            "VM.power_state_reset" => json!([SESSION, "OpaqueRef:1"]),
            "Async.VM.checkpoint" | "Async.VM.snapshot_with_quiesce" => json!([SESSION, "OpaqueRef:1", "s"]),
            // The session is its own object.
            "session.get_record" => json!([SESSION, SESSION]),
            "task.get_record" => {
                return Some(Ok(task_record("success", "<value>OpaqueRef:s</value>", &[])));
            }
            _ => return None,
        };
        assert_eq!(json!(params), expected, "{method}");
        Some(match method {
            "host.get_servertime" => Ok(json!("20240420T12:00:00Z")),
            "VM.assert_can_boot_here" => Err(vec!["HOST_NOT_ENOUGH_FREE_MEMORY", "2", "1"]),
            "Async.VM.checkpoint" => Ok(json!(TASK)),
            "Async.VM.snapshot_with_quiesce" => Err(vec!["MESSAGE_REMOVED"]),
            "session.get_record" => {
                Ok(json!({"originator": "abd", "is_local_superuser": false, "rbac_permissions": ["vm.snapshot"]}))
            }
            _ => Ok(json!("")),
        })
    }))
    .await;
    let client = client(&peer).await;
    let (vm, host) = (Ref::<Vm>::from_opaque("OpaqueRef:1"), Ref::from_opaque("OpaqueRef:h"));
    let time = client.host_get_servertime(&host).await.expect("a time");
    assert_eq!(Some(time), xapi::timestamp("20240420T12:00:00Z"));
    let error = client.vm_assert_can_boot_here(&vm, &host).await.expect_err("scripted");
    assert_eq!(error.kind(), &Kind::NoHost);
    client.vm_power_state_reset(&vm).await.expect("reset");
    assert_eq!(client.vm_checkpoint(&vm, "s").await.expect("checkpoint").as_str(), "OpaqueRef:s");
    let error = client.vm_snapshot_with_quiesce(&vm, "s").await.expect_err("removed in 8.1");
    assert_eq!(error.kind(), &Kind::NotSupported);
    let session = client.session().await.expect("our session");
    assert_eq!((session.originator.as_str(), session.rbac_permissions.len()), ("abd", 1));
}

#[tokio::test]
async fn events_are_typed_and_lost_ones_are_announced() {
    let peer = Peer::start(api(|method, params| {
        if method != "event.from" {
            return None;
        }
        assert_eq!(params[1], json!(["vm"]));
        assert!(params[3].is_f64(), "the timeout is a double");
        let event = |operation: &str, snapshot: Json| {
            json!({"id": "1", "timestamp": "0.0", "class": "vm", "operation": operation, "ref": "OpaqueRef:1",
                "snapshot": snapshot})
        };
        Some(match params[2].as_str().expect("token") {
            "" => Ok(json!({"events": [event("add", json!({"power_state": "Halted"}))], "token": "a", "valid_ref_counts": {}})),
            "a" => Err(vec!["EVENTS_LOST"]),
            other => panic!("{other}"),
        })
    }))
    .await;
    let client = client(&peer).await;
    let mut events = client.events(&["vm"]);
    let Event::Changed(change) = events.next().await.expect("event") else { panic!("no change") };
    assert_eq!(change.operation, Operation::Add);
    let (vm, record) = change.as_record::<Vm>().expect("a VM").expect("readable");
    assert_eq!((vm.as_str(), record.power_state), ("OpaqueRef:1", PowerState::Halted));
    assert!(change.as_record::<Vdi>().is_none());
    assert_eq!(events.next().await.expect("event"), Event::Resync);
    assert!(matches!(events.next().await.expect("event"), Event::Changed(_)), "everything follows again");
}

fn running(vm: &xapi::Vm) -> bool {
    vm.power_state == PowerState::Running
}

#[tokio::test]
async fn waiting_uses_events_and_survives_their_loss() {
    // The event never comes: only the record shows the change, from its third reading on.
    let reads = AtomicUsize::new(0);
    let peer = Peer::start(api(move |method, params| match method {
        "event.from" => {
            assert_eq!(params[1], json!(["vm/OpaqueRef:1"]));
            Some(Ok(json!({"events": [], "token": "1", "valid_ref_counts": {}})))
        }
        "VM.get_record" => match reads.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Some(Ok(json!({"power_state": "Halted"}))),
            _ => Some(Ok(json!({"power_state": "Running", "domid": "7"}))),
        },
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let vm = Ref::from_opaque("OpaqueRef:1");
    let record = client.wait_vm(&vm, running, Duration::from_secs(30)).await.expect("running");
    assert_eq!(record.domid, 7);
}

#[tokio::test]
async fn waiting_for_what_is_gone_ends() {
    let peer = Peer::start(api(|method, _| match method {
        "event.from" => Some(Ok(json!({"token": "1", "valid_ref_counts": {}, "events": [
            {"id": "1", "timestamp": "0.0", "class": "vm", "operation": "mod", "ref": "OpaqueRef:1", "snapshot": {}},
            {"id": "2", "timestamp": "0.0", "class": "vm", "operation": "del", "ref": "OpaqueRef:1"}]}))),
        "VM.get_record" => Some(Ok(json!({"power_state": "Halted"}))),
        _ => None,
    }))
    .await;
    let client = client(&peer).await;
    let error = client.wait_vm(&Ref::from_opaque("OpaqueRef:1"), running, Duration::from_secs(30)).await;
    let error = error.expect_err("gone");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (&Kind::HandleInvalid, "wait: VM OpaqueRef:1 does not exist")
    );
}

#[tokio::test]
async fn waiting_has_an_end() {
    let peer = Peer::start(api(|method, _| {
        (method == "VM.get_record").then(|| Ok(json!({"power_state": "Halted"})))
    }))
    .await;
    let client = client(&peer).await;
    let error = client.wait_vm(&Ref::from_opaque("OpaqueRef:1"), running, Duration::from_millis(300)).await;
    assert_eq!(error.expect_err("never").kind(), &Kind::Timeout);
}

/// Callers run jobs on several threads.
#[test]
fn futures_can_be_sent_between_threads() {
    fn sendable<T: Send>(_: impl FnOnce(Client) -> T) {}
    sendable(|client| async move { client.wait_vm(&Ref::null(), running, Duration::ZERO).await });
    sendable(|client| async move { client.import_xva(Upload::bytes(vec![]), None, |_| {}).await });
    sendable(|client| async move { client.export_vdi_vhd_head(&Ref::null(), None).await });
    sendable(|client| async move { client.vm_clone(&Ref::null(), "x").await });
    sendable(|client| async move { client.events(&["vm"]).next().await });
    sendable(|client| async move { client.close().await });
}
