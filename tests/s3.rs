//! The store in object storage: whole backups, restores and checks, on servers that none of us wrote.

use crate::servers::{ACCESS_KEY, Kind, Proxy, SECRET_KEY, Server, Trouble, store_at};
use e2e::{Lab, Output, Vm, noise, text};
use serde_json::Value;
use std::net::SocketAddr;

/// A file with the server's keys, and the store's address on the server behind `address`.
fn place(lab: &Lab, address: SocketAddr) -> String {
    let keys = lab.path("keys");
    let text = format!("[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n");
    std::fs::write(&keys, text).expect("written");
    format!("{}&credentials={}", store_at(address, "abd/lab"), keys.display())
}

fn abd(lab: &Lab, store: &str, arguments: &[&str]) -> Output {
    let mut command = lab.command(arguments);
    command.env("ABD_STORE", store);
    lab.finish(command)
}

/// Restores the newest point of the VM and compares every disk.
fn assert_restores(lab: &Lab, store: &str, vm: &Vm) {
    let list = abd(lab, store, &["list", &vm.name]).ok();
    let points = list.answer()["points"].as_array().expect("a list").clone();
    let point = points.last().expect("a point")["id"].as_str().expect("text").to_owned();
    let restore = abd(lab, store, &["restore", &point]).ok();
    let disks = restore.job(&vm.name)["disks"].as_array().expect("a list").clone();
    assert_eq!(disks.len(), vm.vdis.len());
    for (vdi, disk) in vm.vdis.iter().zip(&disks) {
        assert_eq!(lab.digest(disk["vdi"].as_str().expect("text")), lab.digest(vdi), "{disk}");
    }
}

fn vm(lab: &Lab) -> Vm {
    let vm = lab.vm("web01", &[(20 << 20) + 512, 512]);
    lab.write(&vm.vdis[0], 0, &noise(1, 300_000));
    lab.write(&vm.vdis[0], 9 << 20, &text(2, 3_000_000));
    lab.write(&vm.vdis[0], (20 << 20) + 100, &[7; 412]);
    lab.write(&vm.vdis[1], 0, &noise(3, 512));
    vm
}

#[test]
fn backups_restores_and_checks_in_object_storage() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let Some(server) = Server::start(Kind::Seaweed) else { return };
    let (store, vm) = (place(&lab, server.address), vm(&lab));
    let text = abd(&lab, &store, &["backup", "web01"]).fails_with(8);
    assert!(text.contains("store init") && text.contains("s3://bucket/abd/lab"), "{text}");
    abd(&lab, &store, &["store", "init"]).ok();
    let text = abd(&lab, &store, &["store", "init"]).fails_with(8);
    assert!(text.contains("holds a store already"), "{text}");
    abd(&lab, &store, &["backup", "web01"]).ok();
    assert_restores(&lab, &store, &vm);
    // Only what changed goes there the second time; named in a job file.
    lab.write(&vm.vdis[0], 5 << 20, &noise(4, 100_000));
    let file = lab.path("job.toml");
    let job = format!("name = \"s3\"\nstore = \"{store}\"\n[select]\nnames = [\"web01\"]\n");
    std::fs::write(&file, job).expect("written");
    let run = lab.abd(&["run", &file.display().to_string()]).ok();
    assert_eq!(run.job("web01")["disks"][0]["mode"], "cbt", "{}", run.job("web01"));
    assert_restores(&lab, &store, &vm);
    let verify = abd(&lab, &store, &["verify", "--read-data"]).ok();
    assert_eq!(verify.answer()["clean"], true);
    let info = abd(&lab, &store, &["store", "info"]).ok();
    let Value::Object(info) = info.answer() else { panic!("an object") };
    assert_eq!((&info["points"], &info["place"]), (&2.into(), &"s3://bucket/abd/lab".into()));
    abd(&lab, &store, &["store", "check"]).ok();
    abd(&lab, &store, &["doctor"]).ok();
    let text = abd(&lab, "s3://bucket/x?speed=9", &["list"]).fails_with(8);
    assert!(text.contains("no option 'speed'"), "{text}");
}

#[test]
fn a_backup_over_a_server_that_fails_now_and_then_is_whole() {
    const ALL: [Trouble; 4] = [Trouble::SlowDown, Trouble::LostAnswer, Trouble::Internal, Trouble::Cut];
    let Some(lab) = Lab::quick(&[]) else { return };
    let Some(server) = Server::start(Kind::Rclone) else { return };
    let proxy = Proxy::start(server.address, 4, &ALL);
    let (store, vm) = (place(&lab, proxy.address), vm(&lab));
    abd(&lab, &store, &["backup", "web01", "--init-store"]).ok();
    assert_restores(&lab, &store, &vm);
    let direct = place(&lab, server.address);
    assert_eq!(abd(&lab, &direct, &["verify", "--read-data"]).ok().answer()["clean"], true);
}
