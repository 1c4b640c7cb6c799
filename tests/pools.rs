//! Ways to a pool: the local socket, and hosts that speak XML-RPC only.

use e2e::{Lab, Options, text};

const MIB: u64 = 1 << 20;

#[test]
fn the_local_socket_needs_no_password() {
    let Some(lab) = Lab::with(Options { without_pool: true, without_template: true, ..Default::default() })
    else {
        return;
    };
    let socket = lab.ports.socket.display().to_string();
    lab.abd(&[
        "pool",
        "add",
        "--local",
        "--socket",
        &socket,
        "--name",
        "here",
        "--advertise",
        "10.0.2.2",
        "--listen",
        "127.0.0.1:0",
    ])
    .ok();
    lab.abd(&["template", "import", &lab.template()]).ok();
    let vm = lab.vm("local", &[2 * MIB]);
    lab.write(&vm.vdis[0], 0, &text(1, 100_000));
    let before = lab.inventory();
    lab.backup(&[&vm]).ok();
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
}

#[test]
fn a_host_that_speaks_only_xml_rpc_works_the_same() {
    let Some(lab) = Lab::with(Options { sim: vec!["--no-json".into()], ..Default::default() }) else {
        return;
    };
    let vm = lab.vm("xml", &[2 * MIB]);
    lab.write(&vm.vdis[0], 0, &text(1, 100_000));
    let before = lab.inventory();
    lab.backup(&[&vm]).ok();
    lab.assert_restores(&vm);
    lab.assert_clean(&before);
    let doctor = lab.abd(&["doctor"]).ok();
    assert!(doctor.answer().to_string().contains("Xml"), "{:?}", doctor.answer());
}

#[test]
fn templates_are_imported_once_listed_and_removed() {
    let Some(lab) = Lab::start() else { return };
    let again = lab.abd(&["template", "import", &lab.template()]).ok();
    assert_eq!(again.answer()["imported"], false);
    let list = lab.abd(&["template", "list"]).ok();
    assert_eq!(list.answer()["templates"].as_array().expect("a list").len(), 1);
    lab.abd(&["template", "remove"]).ok();
    let inventory = lab.inventory();
    assert_eq!(inventory["VDI"], serde_json::json!([]), "the template's disk goes with it");
    let list = lab.abd(&["pool", "list"]).ok();
    assert_eq!(list.answer()["pools"][0]["name"], "lab");
    lab.abd(&["pool", "remove", "lab"]).ok();
    lab.abd(&["template", "list"]).fails_with(3);
}
