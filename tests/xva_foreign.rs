//! XVA files across a border: our template read by `format/read_xva.py`, which drives tar, sha1sum and Python's XML-RPC
//! and shares no code with the product; and a file of the npm package `@xen-orchestra/xva` read by our reader.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use xva::Reader;

const MIB: usize = 1 << 20;

fn image(name: &str) -> Option<PathBuf> {
    match env::var_os("ABD_IMAGE_DIR") {
        Some(dir) => Some(Path::new(&dir).join(name)),
        None => {
            println!("skipped: ABD_IMAGE_DIR is not set; run scripts/test");
            None
        }
    }
}

fn read_by_others(xva: &Path, disk: &Path) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("format/read_xva.py");
    Command::new(script).args([xva, disk]).output().expect("Python starts")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn tar_sha1sum_and_xml_rpc_find_our_template_whole() {
    let (Some(xva), Some(disk)) = (image("abd.xva"), image("abd.img")) else { return };
    let output = read_by_others(&xva, &disk);
    assert!(output.status.success(), "{}", said(&output));
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    let ours = Reader::open(fs::File::open(&xva).expect("built")).expect("an XVA").verify().expect("whole");
    assert_eq!(answer["size"], ours.disks[0].size_bytes);
    assert_eq!(answer["sha256"].as_str(), ours.digest.as_deref());
}

#[test]
fn they_see_a_flipped_bit_in_a_chunk_and_a_name_that_leads_nowhere() {
    let (Some(xva), Some(disk)) = (image("abd.xva"), image("abd.img")) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let good = fs::read(&xva).expect("built");
    let damaged = dir.path().join("damaged.xva");
    let mut bytes = good.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).expect("writable");
    let output = read_by_others(&damaged, &disk);
    assert!(!output.status.success() && said(&output).contains("sha1sum: "), "{}", said(&output));

    let at = good.windows(5).rposition(|text| text == b"Ref:3" as &[u8]);
    let at = at.expect("the description names its repository");
    let mut bytes = good;
    bytes[at + 4] = b'9';
    fs::write(&damaged, bytes).expect("writable");
    let output = read_by_others(&damaged, &disk);
    assert!(!output.status.success() && said(&output).contains("Ref:9"), "{}", said(&output));
}

#[test]
fn an_xva_that_xen_orchestra_wrote_is_read_byte_for_byte() {
    let modules = env::var_os("ABD_FOREIGN_DIR").map(|dir| Path::new(&dir).join("node/node_modules"));
    let Some(modules) = modules.filter(|modules| modules.join("@xen-orchestra/xva").is_dir()) else {
        println!("skipped: @xen-orchestra/xva is not installed; scripts/lib/foreign-clients does that");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../orchestrator/crates/xapi-sim/tests/foreign/xen-orchestra-xva.mjs");
    let dir = tempfile::tempdir().expect("a directory");
    let (disk, xva) = (dir.path().join("disk.img"), dir.path().join("vm.xva"));
    let mut held = vec![0_u8; 4 * MIB];
    held[..70_000].fill(3);
    held[2 * MIB + 5..2 * MIB + 9].fill(4);
    fs::write(&disk, &held).expect("writable");
    let output =
        Command::new("node").arg(script).args([&modules, &disk, &xva]).output().expect("node starts");
    assert!(output.status.success(), "{}", said(&output));

    let open = || Reader::open(fs::File::open(&xva).expect("written")).expect("an XVA");
    let description = open().verify().expect("every checksum is right");
    assert_eq!(description.disks.len(), 1, "{description:?}");
    let mut read = Vec::new();
    open().extract_disk(0, &mut read).expect("a whole disk");
    assert!(read == held);
}
