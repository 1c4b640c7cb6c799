//! The data handlers. The XVA files are put together here by hand, byte by byte.

use crate::support::{Client, Lab};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

fn tar_member(out: &mut Vec<u8>, name: &str, contents: &[u8]) {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", contents.len()).as_bytes());
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend(header);
    out.extend(contents);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn member(name: &str, value: &str) -> String {
    format!("<member><name>{name}</name><value>{value}</value></member>")
}

fn record(strings: &[(&str, &str)], others: &[(&str, &str)]) -> String {
    let all: String = strings.iter().chain(others).map(|(n, v)| member(n, v)).collect();
    format!("<struct>{all}</struct>")
}

const EMPTY_MAP: &str = "<struct></struct>";
const FALSE: &str = "<boolean>0</boolean>";
const TRUE: &str = "<boolean>1</boolean>";

fn object(class: &str, id: &str, snapshot: &str) -> String {
    format!(
        "<value><struct>{}{}{}</struct></value>",
        member("class", class),
        member("id", id),
        member("snapshot", snapshot)
    )
}

fn ova(disk_size: usize, minor: &str) -> String {
    let null = "OpaqueRef:NULL";
    let vm = record(
        &[
            ("uuid", "11111111-1111-1111-1111-111111111111"),
            ("name_label", "imported"),
            ("user_version", "1"),
            ("resident_on", null),
            ("affinity", null),
            ("memory_static_max", "134217728"),
            ("parent", null),
            ("memory_dynamic_max", "134217728"),
            ("memory_dynamic_min", "134217728"),
            ("memory_static_min", "67108864"),
            ("VCPUs_max", "1"),
            ("VCPUs_at_startup", "1"),
            ("actions_after_shutdown", "destroy"),
            ("actions_after_reboot", "destroy"),
            ("actions_after_crash", "destroy"),
            ("PV_bootloader", ""),
            ("PV_kernel", ""),
            ("PV_ramdisk", ""),
            ("PV_args", ""),
            ("PV_bootloader_args", ""),
            ("PV_legacy_args", ""),
            ("HVM_boot_policy", "BIOS order"),
            ("PCI_bus", ""),
            ("domid", "-1"),
            ("domarch", ""),
            ("metrics", null),
            ("guest_metrics", null),
            ("recommendations", ""),
            ("power_state", "Halted"),
        ],
        &[
            ("is_a_template", TRUE),
            ("is_control_domain", FALSE),
            ("VCPUs_params", EMPTY_MAP),
            ("platform", EMPTY_MAP),
            ("HVM_boot_params", &record(&[("order", "c"), ("firmware", "bios")], &[])),
            ("other_config", &record(&[("abd:template", "1"), ("default_template", "true")], &[])),
        ],
    );
    let vbd = record(
        &[
            ("uuid", "22222222-2222-2222-2222-222222222222"),
            ("VM", "Ref:1"),
            ("VDI", "Ref:2"),
            ("userdevice", "0"),
            ("device", "xvda"),
            ("mode", "RW"),
            ("type", "Disk"),
            ("status_code", "0"),
            ("status_detail", ""),
            ("qos_algorithm_type", ""),
        ],
        &[
            ("bootable", TRUE),
            ("storage_lock", FALSE),
            ("empty", FALSE),
            ("other_config", EMPTY_MAP),
            ("runtime_properties", EMPTY_MAP),
            ("qos_algorithm_params", EMPTY_MAP),
            ("qos_supported_algorithms", "<array><data></data></array>"),
        ],
    );
    let vdi = record(
        &[
            ("uuid", "33333333-3333-3333-3333-333333333333"),
            ("name_label", "boot"),
            ("SR", "Ref:4"),
            ("virtual_size", &disk_size.to_string()),
            ("physical_utilisation", "0"),
            ("type", "user"),
            ("parent", null),
        ],
        &[
            ("sharable", FALSE),
            ("read_only", FALSE),
            ("storage_lock", FALSE),
            ("managed", TRUE),
            ("missing", FALSE),
            ("other_config", EMPTY_MAP),
        ],
    );
    let version = record(
        &[
            ("hostname", "h"),
            ("date", "2026-01-01"),
            ("product_version", "8.0"),
            ("product_brand", "b"),
            ("build_number", "1"),
            ("xapi_major", "1"),
            ("xapi_minor", minor),
            ("export_vsn", "2"),
        ],
        &[],
    );
    let objects =
        [object("VM", "Ref:1", &vm), object("VDI", "Ref:2", &vdi), object("VBD", "Ref:3", &vbd)].concat();
    let objects = format!("<array><data>{objects}</data></array>");
    format!("<value><struct>{}{}</struct></value>", member("version", &version), member("objects", &objects))
}

fn sha1(bytes: &[u8]) -> String {
    digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// First, third and a short last chunk of a disk; the second is left out.
fn xva() -> (Vec<u8>, Vec<u8>) {
    let mut disk = vec![0u8; 3 * MIB + 512];
    disk[..MIB].fill(1);
    disk[2 * MIB..3 * MIB].fill(3);
    disk[3 * MIB..].fill(4);
    let mut file = Vec::new();
    tar_member(&mut file, "ova.xml", ova(disk.len(), "0").as_bytes());
    for (number, range) in [(0, 0..MIB), (2, 2 * MIB..3 * MIB), (3, 3 * MIB..disk.len())] {
        let chunk = &disk[range];
        tar_member(&mut file, &format!("Ref:2/{number:08}"), chunk);
        tar_member(&mut file, &format!("Ref:2/{number:08}.checksum"), sha1(chunk).as_bytes());
    }
    file.resize(file.len() + 1024, 0);
    (file, disk)
}

fn import(lab: &Lab, client: &Client<'_>, query: &str, body: &[u8]) -> (crate::support::Answer, Value) {
    let task = client.text("task.create", json!(["import", ""]));
    let target = format!("/import?session_id={}&task_id={task}{query}", client.session);
    let answer = lab.http("PUT", &target, &[], body);
    let record = client.wait(&task);
    client.call("task.destroy", json!([task]));
    (answer, record)
}

fn count(client: &Client<'_>, class: &str) -> usize {
    client.call(&format!("{class}.get_all"), json!([])).as_array().unwrap().len()
}

#[test]
fn an_xva_becomes_a_vm_of_this_pool() {
    let lab = Lab::new();
    let client = lab.login();
    let (file, disk) = xva();
    for (name, body) in
        [("plain", file.clone()), ("zstd", zstd::encode_all(&file[..], 1).unwrap()), ("gzip", gzip(&file))]
    {
        let (answer, task) = import(&lab, &client, "", &body);
        assert_eq!((answer.status, &task["status"]), (200, &json!("success")), "{name}: {task}");
        let result = task["result"].as_str().unwrap();
        let vm = result
            .strip_prefix("<value><array><data><value>")
            .unwrap()
            .strip_suffix("</value></data></array></value>")
            .unwrap();
        let record = client.call("VM.get_record", json!([vm]));
        assert_eq!((&record["name_label"], &record["is_a_template"]), (&json!("imported"), &json!(true)));
        assert_ne!(record["uuid"], "11111111-1111-1111-1111-111111111111");
        assert_eq!(record["domain_type"], "hvm");
        assert_eq!(record["platform"]["device-model"], "qemu-upstream-compat");
        let other = &record["other_config"];
        assert_eq!((&other["abd:template"], &other["default_template"]), (&json!("1"), &Value::Null));
        assert!(other["mac_seed"].is_string());
        let vbd = client.call("VBD.get_record", json!([record["VBDs"][0]]));
        assert_eq!((&vbd["device"], &vbd["bootable"]), (&json!(""), &json!(true)));
        let vdi = vbd["VDI"].as_str().unwrap();
        assert_eq!(client.read(vdi, 0, disk.len() as u64), disk);
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn broken_files_fail_the_task_and_leave_nothing() {
    let lab = Lab::new();
    let client = lab.login();
    let (good, _) = xva();
    let before = (count(&client, "VM"), count(&client, "VDI"), count(&client, "VBD"));
    let find = |needle: &[u8]| good.windows(needle.len()).position(|w| w == needle).unwrap();
    let mut bad_sum = good.clone();
    let at = find(b"Ref:2/00000002.checksum") + 512;
    bad_sum[at] = if bad_sum[at] == b'0' { b'1' } else { b'0' };
    let mut wrong_first = Vec::new();
    tar_member(&mut wrong_first, "first", b"x");
    let mut newer = Vec::new();
    tar_member(
        &mut newer,
        "ova.xml",
        ova(512, "0")
            .replace("<name>xapi_major</name><value>1<", "<name>xapi_major</name><value>99<")
            .as_bytes(),
    );
    let mut unexpected = good[..good.len() - 1024].to_vec();
    tar_member(&mut unexpected, "Ref:9/00000000", &[0; 512]);
    unexpected.resize(unexpected.len() + 1024, 0);
    let cases: [(&str, &[u8], &str); 6] = [
        ("checksum", &bad_sum, "IMPORT_ERROR_SOME_CHECKSUMS_FAILED"),
        ("cut", &good[..good.len() / 2], "IMPORT_ERROR_PREMATURE_EOF"),
        ("empty", &[], "IMPORT_ERROR_PREMATURE_EOF"),
        ("first member", &wrong_first, "IMPORT_ERROR_UNEXPECTED_FILE"),
        ("newer", &newer, "IMPORT_INCOMPATIBLE_VERSION"),
        ("more members", &unexpected, "IMPORT_ERROR_UNEXPECTED_FILE"),
    ];
    for (name, body, code) in cases {
        let (answer, task) = import(&lab, &client, "", body);
        // The status says nothing: the headers went out before the body was looked at.
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(
            (&task["status"], &task["error_info"][0]),
            (&json!("failure"), &json!(code)),
            "{name}: {task}"
        );
        assert_eq!((count(&client, "VM"), count(&client, "VDI"), count(&client, "VBD")), before, "{name}");
    }
    let (_, forced) = import(&lab, &client, "&force=true", &bad_sum);
    assert_eq!(forced["status"], "success");
}

#[test]
fn transfers_need_credentials_and_a_length() {
    let lab = Lab::new();
    let client = lab.login();
    let task = client.text("task.create", json!(["import", ""]));
    assert_eq!(lab.http("PUT", &format!("/import?task_id={task}"), &[], b"x").status, 401);
    assert_eq!(client.wait(&task)["error_info"][0], "SESSION_AUTHENTICATION_FAILED");
    let chunked = lab.http(
        "PUT",
        &format!("/import?session_id={}", client.session),
        &[("transfer-encoding", "chunked")],
        b"0\r\n\r\n",
    );
    assert_eq!(chunked.status, 403);
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": 1024}]}));
    let target = format!("/import_raw_vdi?vdi={}", disks[0]);
    assert_eq!(
        lab.http(
            "PUT",
            &target,
            &[("transfer-encoding", "chunked"), ("cookie", &format!("session_id={}", client.session))],
            b"0\r\n\r\n"
        )
        .status,
        404
    );
    // Basic credentials make a session for this request alone, and a task of the server's own is named in a header.
    let sessions =
        || lab.control().json("GET", "/lab/inventory", None).unwrap()["session"].as_array().unwrap().len();
    let before = sessions();
    let answer = lab.http("PUT", &target, &[("authorization", "Basic cm9vdDpwYXNzd29yZA==")], &[9; 1024]);
    let made = client.wait(&answer.header("task-id").unwrap());
    assert_eq!(made["status"], "success", "{made}");
    assert_eq!(sessions(), before);
    assert_eq!(client.read(&disks[0], 0, 1024), [9; 1024]);
}

#[test]
fn raw_disks_go_out_and_come_in_byte_for_byte() {
    let lab = Lab::new();
    let client = lab.login();
    let size = 3 * 65_536 + 512;
    let (vm, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": size}], "cbt": true}));
    let bytes: Vec<u8> = (0..size).map(|i| (i / 512 % 251) as u8).collect();
    let first = client.text("VDI.snapshot", json!([disks[0]]));
    let target = format!("/import_raw_vdi?format=raw&vdi={}&session_id={}", disks[0], client.session);
    let answer = lab.http("PUT", &target, &[], &bytes);
    client.wait(&answer.header("task-id").unwrap());
    let second = client.text("VDI.snapshot", json!([disks[0]]));
    assert_eq!(client.changed(&first, &second), [0, 1, 2, 3]);
    let uuid = client.text("VDI.get_uuid", json!([second]));
    let answer =
        lab.http("GET", &format!("/export_raw_vdi?vdi={uuid}&session_id={}", client.session), &[], &[]);
    assert_eq!(answer.header("content-type").unwrap(), "application/octet-stream");
    assert!(answer.body == bytes);
    client.call("VM.start", json!([vm, false, false]));
    let refused = lab.http("PUT", &target, &[], &bytes);
    assert_eq!(
        client.wait(&refused.header("task-id").unwrap())["error_info"],
        json!(["VDI_IN_USE", disks[0]])
    );
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

#[test]
fn a_differencing_vhd_lists_the_blocks_between_two_snapshots() {
    const BLOCK: u64 = 2 << 20;
    let lab = Lab::new();
    let client = lab.login();
    let size = 5 * BLOCK + 512;
    let (_, disks) = client.vm(json!({"name": "d", "disks": [{"name": "d", "size": size}]}));
    client.write(&disks[0], 0, &[1; 4096]);
    client.write(&disks[0], 2 * BLOCK, &[1; 4096]);
    let first = client.text("VDI.snapshot", json!([disks[0]]));
    client.write(&disks[0], 3 * BLOCK - 1, &[2; 2]);
    client.write(&disks[0], size - 512, &[5; 512]);
    let second = client.text("VDI.snapshot", json!([disks[0]]));
    let export = |query: &str| {
        let target = format!("/export_raw_vdi?vdi={second}&format=vhd&session_id={}{query}", client.session);
        let answer = lab.http("GET", &target, &[], &[]);
        assert_eq!(answer.header("content-type").unwrap(), "application/vhd");
        answer.body
    };
    let bat =
        |file: &[u8]| -> Vec<usize> { (0..6).filter(|i| be32(file, 2048 + 4 * i) != u32::MAX).collect() };
    let full = export("");
    assert_eq!((bat(&full), be32(&full, 60)), (vec![0, 2, 3, 5], 3));
    let diff = export(&format!("&base={first}"));
    assert_eq!((bat(&diff), be32(&diff, 60)), (vec![2, 3, 5], 4));
    assert_eq!(diff.len() as u64, 2560 + 3 * (512 + BLOCK) + 512);
    assert_eq!(diff[..512], diff[diff.len() - 512..]);
    let data = be32(&diff, 2048 + 4 * 2) as usize * 512;
    assert_eq!(diff[data..data + 512], [0xff; 512]);
    assert_eq!(diff[data + 512..data + 512 + 4096], [1; 4096]);
    assert_eq!(diff[data + 512 + BLOCK as usize - 1], 2);
    let unknown = lab.http(
        "GET",
        &format!("/export_raw_vdi?vdi={second}&format=xyz&session_id={}", client.session),
        &[],
        &[],
    );
    assert_eq!(unknown.status, 404);
}
