//! Clients that none of us wrote log in and list the VMs, and one writes an XVA. `ABD_FOREIGN_DIR` holds them: `venv/`
//! with the PyPI package `XenAPI`, `node/node_modules/` with the npm packages `xen-api` and `@xen-orchestra/xva`.

use crate::support::Lab;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign").join(name)
}

fn installed(part: &str) -> Option<PathBuf> {
    let Some(dir) = std::env::var_os("ABD_FOREIGN_DIR") else {
        println!("skipped: ABD_FOREIGN_DIR is not set");
        return None;
    };
    let path = Path::new(&dir).join(part);
    if !path.exists() {
        println!("skipped: {} is not installed", path.display());
        return None;
    }
    Some(path)
}

fn lists_the_vms(mut command: Command) {
    let lab = Lab::new();
    lab.login().vm(json!({"name": "web01"}));
    let url = format!("https://127.0.0.1:{}", lab.ports().https);
    let output = command.args([&url, "root", "password"]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.lines().any(|line| line == "web01"), "{out}{err}");
    let sessions = lab.control().json("GET", "/lab/inventory", None).unwrap()["session"].clone();
    assert_eq!(sessions.as_array().unwrap().len(), 1, "only the test's own session is left: {sessions}");
}

#[test]
fn python_xenapi_logs_in_and_lists_the_vms() {
    let Some(python) = installed("venv/bin/python") else { return };
    let mut command = Command::new(python);
    command.arg(script("xenapi.py"));
    lists_the_vms(command);
}

#[test]
fn node_xen_api_logs_in_and_lists_the_vms() {
    let Some(modules) = installed("node/node_modules/xen-api") else { return };
    let mut command = Command::new("node");
    command.arg(script("xen-api.mjs")).arg(modules.ancestors().nth(2).unwrap());
    lists_the_vms(command);
}

#[test]
fn an_xva_that_xen_orchestra_wrote_becomes_a_vm() {
    let Some(modules) = installed("node/node_modules/@xen-orchestra/xva") else { return };
    let modules = modules.ancestors().nth(2).unwrap();
    let lab = Lab::new();
    let client = lab.login();
    // Three chunks: text, nothing, text to the last byte.
    let mut disk = vec![0_u8; 3 << 20];
    disk[..100_000].fill(7);
    disk[(3 << 20) - 512..].fill(9);
    let (image, xva) = (lab.dir.path().join("disk.img"), lab.dir.path().join("vm.xva"));
    std::fs::write(&image, &disk).unwrap();
    let output = Command::new("node")
        .arg(script("xen-orchestra-xva.mjs"))
        .args([modules, &image, &xva])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let file = std::fs::read(&xva).unwrap();
    assert!(file.len() < disk.len(), "the empty chunk is left out");
    let task = client.text("task.create", json!(["import", ""]));
    let target = format!("/import?session_id={}&task_id={task}", client.session);
    let answer = lab.http("PUT", &target, &[], &file);
    let task = client.wait(&task);
    assert_eq!((answer.status, &task["status"]), (200, &json!("success")), "{task}");
    let vm = task["result"].as_str().unwrap().trim_start_matches("<value><array><data><value>");
    let vm = vm.trim_end_matches("</value></data></array></value>");
    let record = client.call("VM.get_record", json!([vm]));
    assert_eq!(
        (&record["name_label"], &record["power_state"]),
        (&json!("by xen-orchestra"), &json!("Halted"))
    );
    let vbd = client.call("VBD.get_record", json!([record["VBDs"][0]]));
    assert_eq!(vbd["userdevice"], "1");
    assert!(client.read(vbd["VDI"].as_str().unwrap(), 0, disk.len() as u64) == disk, "every byte");

    // A changed byte in a chunk is seen by this writer's own kind of checksum.
    let mut damaged = file;
    let in_the_first_chunk = damaged.windows(64).position(|bytes| bytes == [7; 64]).unwrap();
    damaged[in_the_first_chunk] = 8;
    let task = client.text("task.create", json!(["import", ""]));
    let target = format!("/import?session_id={}&task_id={task}", client.session);
    lab.http("PUT", &target, &[], &damaged);
    let task = client.wait(&task);
    assert_eq!(task["status"], "failure", "{task}");
}
