//! Clients that none of us wrote log in and list the VMs. `ABD_FOREIGN_DIR` holds them: `venv/` with the PyPI package
//! `XenAPI`, `node/node_modules/` with the npm package `xen-api`.

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
