//! Repositories: who sees them, what disks cost on them, and the chains behind snapshots.

use crate::support::{Client, Lab};
use serde_json::{Value, json};
use xapi_sim::Coalesce;

const MIB: i64 = 1 << 20;
const GIB: i64 = 1 << 30;

fn lab(hosts: usize, srs: &[&str]) -> Lab {
    Lab::with(|config| {
        config.hosts = hosts;
        config.srs = srs.iter().map(|spec| spec.parse().unwrap()).collect();
    })
}

fn manual() -> Lab {
    Lab::with(|config| config.coalesce = Coalesce::Manual)
}

fn sr(client: &Client<'_>, name: &str) -> Value {
    client.call("SR.get_by_name_label", json!([name]))[0].clone()
}

fn used(client: &Client<'_>, sr: &Value) -> i64 {
    client.call("SR.get_physical_utilisation", json!([sr])).as_i64().unwrap()
}

fn vm_on(client: &Client<'_>, sr: &str, size: i64) -> (String, String) {
    let (vm, disks) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": size, "sr": sr}]}));
    (vm, disks[0].clone())
}

/// The hidden nodes of the pool.
fn hidden(client: &Client<'_>) -> Vec<(String, Value)> {
    let all = client.call("VDI.get_all_records", json!([]));
    let hidden = all.as_object().unwrap().iter().filter(|(_, record)| record["managed"] == false);
    hidden.map(|(reference, record)| (reference.clone(), record.clone())).collect()
}

fn parent(client: &Client<'_>, vdi: &str) -> Value {
    client.call("VDI.get_sm_config", json!([vdi]))["vhd-parent"].clone()
}

fn coalesce(lab: &Lab, client: &Client<'_>, sr: &Value) -> Value {
    let uuid = client.text("SR.get_uuid", json!([sr]));
    lab.control().json("POST", &format!("/lab/sr/{uuid}/coalesce"), None).unwrap()["removed"].clone()
}

#[test]
fn shared_repositories_are_seen_by_every_host_and_local_ones_by_theirs() {
    let lab = lab(3, &["name=nfs,type=nfs", "name=second,type=lvm,host=2,capacity=10G"]);
    let client = lab.login();
    let hosts_of = |sr: &Value| -> Vec<Value> {
        let pbds = client.call("SR.get_PBDs", json!([sr]));
        let host = |pbd: &Value| client.call("PBD.get_host", json!([pbd]));
        pbds.as_array().unwrap().iter().map(host).collect()
    };
    let (nfs, second) = (sr(&client, "nfs"), sr(&client, "second"));
    assert_eq!(hosts_of(&nfs).len(), 3);
    assert_eq!(client.call("SR.get_shared", json!([nfs])), true);
    let record = client.call("SR.get_record", json!([second]));
    assert_eq!((&record["type"], &record["shared"]), (&json!("lvm"), &json!(false)));
    assert_eq!((&record["physical_size"], &record["content_type"]), (&json!(10 * GIB), &json!("user")));
    assert_eq!(record["sm_config"]["allocation"], "thick");
    let host = hosts_of(&second);
    assert_eq!(client.call("host.get_name_label", json!([host[0]])), "lab-host-2");

    let (everywhere, _) = vm_on(&client, "nfs", GIB);
    assert_eq!(client.call("VM.get_possible_hosts", json!([everywhere])).as_array().unwrap().len(), 3);
    let (there, _) = vm_on(&client, "second", GIB);
    assert_eq!(client.call("VM.get_possible_hosts", json!([there])), json!(host));
}

#[test]
fn a_repository_and_a_host_can_be_chosen_while_the_pool_runs() {
    let lab = lab(2, &[]);
    let client = lab.login();
    let made = lab
        .control()
        .json("POST", "/lab/sr", Some(&json!({"name": "san", "type": "lvmoiscsi", "default": true})))
        .unwrap();
    assert_eq!(made["ref"], sr(&client, "san"));
    let wanted = json!({"name": "w", "running": true, "host": "lab-host-2", "disks": [
        {"name": "a", "size": MIB}, {"name": "b", "size": MIB, "sr": made["uuid"]}]});
    let (vm, disks) = client.vm(wanted);
    let srs: Vec<Value> = disks.iter().map(|d| client.call("VDI.get_SR", json!([d]))).collect();
    assert_eq!(srs, [made["ref"].clone(), made["ref"].clone()]);
    let host = client.call("host.get_by_name_label", json!(["lab-host-2"]))[0].clone();
    let record = client.call("VM.get_record", json!([vm]));
    assert_eq!((&record["resident_on"], &record["affinity"]), (&host, &host));
    let unknown = lab.control().json("POST", "/lab/sr", Some(&json!({"name": "x", "type": "tape"})));
    assert!(unknown.unwrap_err().to_string().contains("known: ext"));
}

#[test]
fn a_snapshot_on_thick_storage_costs_another_full_disk() {
    let lab = lab(1, &["name=thick,type=lvm,capacity=25G"]);
    let client = lab.login();
    let thick = sr(&client, "thick");
    let (vm, disk) = vm_on(&client, "thick", 10 * GIB);
    // All of it, its table for 2 TiB, and a bitmap per block; in volumes of 4 MiB.
    let full = 10_766_778_368;
    assert_eq!(client.call("VDI.get_physical_utilisation", json!([disk])), json!(full));
    client.write(&disk, 0, &[1; 3 << 20]);
    let snapshot = client.text("VM.snapshot", json!([vm, "one"]));
    let copy = client.snapshot_disk(&snapshot, &disk);
    let (base, record) = hidden(&client).remove(0);
    // Volumes say what they hold.
    assert_eq!(record["sm_config"], json!({"vdi_type": "vhd"}));
    let live = client.call("VDI.get_sm_config", json!([disk]));
    assert_eq!(live, json!({"vdi_type": "vhd", "vhd-parent": record["uuid"]}));
    // Two blocks with their bitmaps on top of 4.1 MiB of table, in 4 MiB; the snapshot has only the table.
    assert_eq!(record["physical_utilisation"], json!(12 * MIB), "{base}");
    assert_eq!(client.call("VDI.get_physical_utilisation", json!([copy])), json!(8 * MIB));
    assert_eq!(used(&client, &thick), full + 20 * MIB);
    // A clone can be written to, so it costs a full disk too; and so does growth.
    client.call("VDI.clone", json!([copy]));
    assert_eq!(used(&client, &thick), 2 * full + 20 * MIB);
    assert_eq!(client.code("VDI.resize", json!([disk, 20 * GIB])), "SR_BACKEND_FAILURE_44");
}

#[test]
fn a_full_disk_on_thick_storage_needs_its_size_again_for_each_snapshot() {
    let lab = lab(1, &["name=thick,type=lvmohba,capacity=100M"]);
    let client = lab.login();
    let (vm, disk) = vm_on(&client, "thick", 32 * MIB);
    client.write(&disk, 0, &[1; 32 << 20]);
    let thick = sr(&client, "thick");
    assert_eq!(used(&client, &thick), 40 * MIB);
    client.call("VM.snapshot", json!([vm, "one"]));
    assert_eq!(used(&client, &thick), (40 + 40 + 8) * MIB);
    // The live disk is as good as empty now, but its room is taken.
    client.write(&disk, 0, &[2; 32 << 20]);
    let refused = client.refused("VM.snapshot", json!([vm, "two"]));
    assert_eq!(refused, ["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""]);
    assert_eq!(client.code("VDI.snapshot", json!([disk])), "SR_BACKEND_FAILURE_44");
    assert_eq!(client.code("VDI.clone", json!([disk])), "SR_BACKEND_FAILURE_44");
    assert_eq!(client.call("VM.get_snapshots", json!([vm])).as_array().unwrap().len(), 1);
    let uuid = client.text("SR.get_uuid", json!([thick]));
    lab.control().json("POST", &format!("/lab/sr/{uuid}/capacity?bytes={}", 200 * MIB), None).unwrap();
    client.call("VM.snapshot", json!([vm, "two"]));
}

#[test]
fn reading_a_thick_snapshot_does_not_inflate_it_and_writing_does() {
    let lab = lab(1, &["name=thick,type=lvm"]);
    let client = lab.login();
    let (vm, disk) = vm_on(&client, "thick", GIB);
    let snapshot = client.text("VM.snapshot", json!([vm, "s"]));
    let copy = client.snapshot_disk(&snapshot, &disk);
    let attached = |mode: &str| {
        let (reader, _) = client.vm(json!({"name": mode}));
        client.call("VBD.create", json!([client.vbd(&reader, &copy, "4", mode)]));
        client.call("VM.start", json!([reader, false, false]));
        client.call("SR.scan", json!([sr(&client, "thick")]));
        let size = client.call("VDI.get_physical_utilisation", json!([copy])).as_i64().unwrap();
        client.call("VM.hard_shutdown", json!([reader]));
        size
    };
    assert_eq!(attached("RO"), 8 * MIB);
    assert!(attached("RW") > GIB);
    assert_eq!(attached("RO"), 8 * MIB);
}

#[test]
fn thin_storage_holds_what_was_written_in_blocks_of_2_mib() {
    let lab = lab(1, &["name=thin,type=nfs,capacity=20M"]);
    let client = lab.login();
    let thin = sr(&client, "thin");
    let (vm, disk) = vm_on(&client, "thin", GIB);
    let empty = used(&client, &thin);
    assert_eq!(empty, 8192);
    client.write(&disk, 0, &[1; 512]);
    client.write(&disk, 100 << 20, &[1; 512]);
    client.call("SR.scan", json!([thin]));
    assert_eq!(used(&client, &thin), empty + 2 * (2 * MIB + 4096));
    // The frozen part stays where it is; both children are empty.
    client.call("VM.snapshot", json!([vm, "s"]));
    assert_eq!(used(&client, &thin), 3 * empty + 2 * (2 * MIB + 4096));
    let record = client.call("SR.get_record", json!([thin]));
    assert_eq!(record["virtual_allocation"], json!(2 * GIB));
}

#[test]
fn raw_repositories_have_neither_snapshots_nor_change_tracking() {
    let lab = lab(1, &["name=lun,type=iscsi", "name=library,type=iso"]);
    let client = lab.login();
    let lun = sr(&client, "lun").as_str().unwrap().to_owned();
    let (vm, disk) = vm_on(&client, "lun", GIB);
    assert_eq!(client.call("VDI.get_physical_utilisation", json!([disk])), json!(GIB));
    assert_eq!(client.call("VDI.get_sm_config", json!([disk])), json!({}));
    let refused = ["SR_OPERATION_NOT_SUPPORTED", &lun];
    assert_eq!(client.refused("VDI.snapshot", json!([disk])), refused);
    assert_eq!(client.refused("VM.snapshot", json!([vm, "s"])), refused);
    assert_eq!(client.refused("VDI.enable_cbt", json!([disk])), refused);
    let wanted = json!({"name": "v", "disks": [{"name": "d", "size": MIB, "sr": "library"}]});
    assert!(lab.control().json("POST", "/lab/vm", Some(&wanted)).is_err());
}

#[test]
fn a_snapshot_leaves_a_base_that_both_disks_name_as_their_parent() {
    let lab = manual();
    let client = lab.login();
    let (vm, disks) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": 8 * MIB}]}));
    let disk = &disks[0];
    // A repository on files does not say that its disks are VHDs.
    assert_eq!(client.call("VDI.get_sm_config", json!([disk])), json!({}));
    client.write(disk, 0, &[1; 512]);
    let first = client.text("VM.snapshot", json!([vm, "1"]));
    let first_disk = client.snapshot_disk(&first, disk);
    let (base, record) = hidden(&client).remove(0);
    for (field, value) in [
        ("name_label", json!("base copy")),
        ("read_only", json!(true)),
        ("virtual_size", json!(8 * MIB)),
        ("is_a_snapshot", json!(false)),
        ("VBDs", json!([])),
        ("allowed_operations", json!([])),
        ("sm_config", json!({})),
        ("location", record["uuid"].clone()),
    ] {
        assert_eq!(record[field], value, "{field}");
    }
    assert_eq!(
        (parent(&client, disk), parent(&client, &first_disk)),
        (record["uuid"].clone(), record["uuid"].clone())
    );
    for (method, params) in [
        ("VDI.destroy", json!([base])),
        ("VDI.snapshot", json!([base])),
        ("VDI.clone", json!([base])),
        ("VDI.resize", json!([base, GIB])),
        ("VDI.copy", json!([base, record["SR"]])),
        ("VDI.data_destroy", json!([base])),
    ] {
        assert_eq!(client.refused(method, params), ["VDI_NOT_MANAGED", &base], "{method}");
    }
    // Nothing was written since, so a second snapshot shares the same base; after a write there is one more.
    client.call("VM.snapshot", json!([vm, "2"]));
    assert_eq!(hidden(&client).len(), 1);
    client.write(disk, 4 << 20, &[1; 512]);
    client.call("VM.snapshot", json!([vm, "3"]));
    let bases = hidden(&client);
    assert_eq!(bases.len(), 2);
    let upper = bases.iter().find(|(reference, _)| *reference != base).unwrap();
    assert_eq!(upper.1["sm_config"]["vhd-parent"], record["uuid"]);
    assert_eq!(parent(&client, disk), upper.1["uuid"]);
}

#[test]
fn deleted_snapshots_leave_a_backlog_until_storage_coalesces() {
    let lab = manual();
    let client = lab.login();
    let (vm, disks) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": 64 * MIB}]}));
    let home = client.call("VDI.get_SR", json!([disks[0]]));
    let bytes: Vec<u8> = (0..1 << 16).map(|i| (i % 251) as u8).collect();
    for round in 0..5u64 {
        client.write(&disks[0], round * (4 << 20), &bytes);
        let snapshot = client.text("VM.snapshot", json!([vm, "s"]));
        let disk = client.snapshot_disk(&snapshot, &disks[0]);
        client.call("VM.destroy", json!([snapshot]));
        client.call("VDI.destroy", json!([disk]));
    }
    assert_eq!(hidden(&client).len(), 5);
    let before = used(&client, &home);
    assert_eq!(coalesce(&lab, &client, &home), 5);
    assert!(hidden(&client).is_empty() && used(&client, &home) < before);
    assert_eq!(parent(&client, &disks[0]), Value::Null);
    assert_eq!(client.read(&disks[0], 4 << 20, 1 << 16), bytes);
    assert_eq!(coalesce(&lab, &client, &home), 0);
}

#[test]
fn a_chain_of_thirty_refuses_the_next_snapshot() {
    let lab = manual();
    let client = lab.login();
    let (vm, disks) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": 4 * MIB}]}));
    let home = client.call("VDI.get_SR", json!([disks[0]]));
    for _ in 0..29 {
        client.write(&disks[0], 0, &[1; 512]);
        let copy = client.text("VDI.snapshot", json!([disks[0]]));
        client.call("VDI.destroy", json!([copy]));
    }
    assert_eq!(hidden(&client).len(), 29);
    let refused = client.refused("VDI.snapshot", json!([disks[0]]));
    assert_eq!(refused, ["SR_BACKEND_FAILURE_109", "", "The snapshot chain is too long", ""]);
    assert_eq!(client.code("VM.snapshot", json!([vm, "s"])), "SR_BACKEND_FAILURE_109");
    assert_eq!(client.code("VDI.clone", json!([disks[0]])), "SR_BACKEND_FAILURE_109");
    coalesce(&lab, &client, &home);
    client.call("VM.snapshot", json!([vm, "s"]));
}

#[test]
fn storage_that_coalesces_at_once_leaves_nothing_behind() {
    let lab = Lab::new();
    let client = lab.login();
    let (vm, disks) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": 8 * MIB}], "cbt": true}));
    let mut last = Vec::new();
    for round in 0..3u64 {
        client.write(&disks[0], round << 21, &[1; 512]);
        let snapshot = client.text("VM.snapshot", json!([vm, "s"]));
        last.push((snapshot.clone(), client.snapshot_disk(&snapshot, &disks[0])));
    }
    assert_eq!(hidden(&client).len(), 3);
    // Dropping the data is enough; what remains for change tracking is no node of a chain.
    for (snapshot, disk) in &last {
        client.call("VM.destroy", json!([snapshot]));
        client.call("VDI.data_destroy", json!([disk]));
    }
    assert!(hidden(&client).is_empty());
    assert_eq!((parent(&client, &last[0].1), parent(&client, &disks[0])), (Value::Null, Value::Null));
    assert_eq!(client.changed(&last[0].1, &last[2].1), [32, 64]);
}

#[test]
fn sizes_are_rounded_to_whole_blocks_where_that_is_wanted() {
    let lab = Lab::with(|config| config.round_sizes = true);
    let client = lab.login();
    let (_, disks) = client.vm(json!({"name": "v", "disks": [{"name": "d", "size": (4 << 20) + 1}]}));
    let size = || client.call("VDI.get_virtual_size", json!([disks[0]]));
    assert_eq!(size(), json!(6 * MIB));
    client.call("VDI.resize", json!([disks[0], (6 << 20) + 512]));
    assert_eq!(size(), json!(8 * MIB));
    assert_eq!(client.code("VDI.resize", json!([disks[0], 3i64 << 40])), "SR_BACKEND_FAILURE_79");
}
