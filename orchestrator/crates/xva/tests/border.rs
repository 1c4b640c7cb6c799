//! The crate's border: what it writes is what pools read, what it reads is checked to the last byte.

use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use xva::{Appliance, CHUNK_BYTES, Error, Plan, Reader};

/// Three chunks and a bit; the second and third are zero.
fn image() -> Vec<u8> {
    let mut image = vec![0; 3 * CHUNK_BYTES + 700];
    image[..9].copy_from_slice(b"boot code");
    image[3 * CHUNK_BYTES + 600] = 7;
    image
}

fn pack(image: &[u8]) -> (Plan, Vec<u8>) {
    let mut appliance = Appliance::new("appliance", "0.1.0");
    appliance.description = "reads & ships <disks>".to_owned();
    let mut image = Cursor::new(image);
    let plan = Plan::new(&appliance, &mut image).expect("plan");
    let mut out = Vec::new();
    plan.write(&mut image, &mut out).expect("write");
    (plan, out)
}

fn read(bytes: &[u8]) -> Result<xva::Description, Error> {
    Reader::open(bytes)?.verify()
}

fn message(bytes: &[u8]) -> String {
    read(bytes).expect_err("the file is bad").to_string()
}

/// Position of a member's header and the size of its content.
fn find(file: &[u8], name: &str) -> (usize, usize) {
    let mut at = 0;
    loop {
        let header = &file[at..at + 512];
        let size = std::str::from_utf8(&header[124..135]).expect("octal");
        let size = usize::from_str_radix(size, 8).expect("octal");
        if header[..name.len()] == *name.as_bytes() && header[name.len()] == 0 {
            return (at, size);
        }
        at += 512 + size.div_ceil(512) * 512;
    }
}

/// The file without one member.
fn without(file: &[u8], name: &str) -> Vec<u8> {
    let (at, size) = find(file, name);
    let mut cut = file[..at].to_vec();
    cut.extend(&file[at + 512 + size.div_ceil(512) * 512..]);
    cut
}

#[test]
fn what_is_written_is_read_back() {
    let (plan, file) = pack(&image());
    assert_eq!(plan.content_length(), file.len() as u64);
    let reader = Reader::open(&file[..]).expect("open");
    let description = reader.description().clone();
    assert_eq!(description.name, "appliance");
    assert_eq!(description.description, "reads & ships <disks>");
    assert_eq!(description.template_version.as_deref(), Some("0.1.0"));
    assert_eq!(description.digest.as_deref(), Some(plan.digest_hex()));
    assert_eq!(description.firmware, Some(xva::Firmware::Bios));
    assert!(description.is_template);
    assert_eq!(description.disks.len(), 1);
    assert_eq!(description.disks[0].size_bytes, 4 * CHUNK_BYTES as u64);
    assert_eq!((description.disks[0].userdevice.as_str(), description.disks[0].bootable), ("0", true));

    let mut disk = Vec::new();
    assert_eq!(reader.extract_disk(0, &mut disk).expect("extract"), description);
    let mut padded = image();
    padded.resize(4 * CHUNK_BYTES, 0);
    assert!(disk == padded, "the disk differs from the image");
}

#[test]
fn bytes_are_the_same_every_time() {
    let (first, second) = (pack(&image()).1, pack(&image()).1);
    assert!(first == second);
}

#[test]
fn zero_chunks_are_left_out_except_first_and_last() {
    let names = |file: &[u8]| {
        let mut names = Vec::new();
        let mut at = 0;
        while file[at] != 0 {
            let end = file[at..].iter().position(|byte| *byte == 0).expect("NUL");
            names.push(String::from_utf8(file[at..at + end].to_vec()).expect("text"));
            let size = std::str::from_utf8(&file[at + 124..at + 135]).expect("octal");
            at += 512 + usize::from_str_radix(size, 8).expect("octal").div_ceil(512) * 512;
        }
        names
    };
    let expected =
        ["ova.xml", "Ref:2/00000000", "Ref:2/00000000.checksum", "Ref:2/00000003", "Ref:2/00000003.checksum"];
    assert_eq!(names(&pack(&image()).1), expected);
    assert_eq!(names(&pack(&[0]).1), expected[..3]);
    assert_eq!(names(&pack(&vec![0; 4 * CHUNK_BYTES]).1), expected);
}

#[test]
fn an_image_that_changes_is_an_error() {
    let plan = Plan::new(&Appliance::new("a", "1"), &mut Cursor::new(image())).expect("plan");
    let mut other = image();
    other[2 * CHUNK_BYTES] = 1;
    let error = plan.write(&mut Cursor::new(other), &mut Vec::new()).expect_err("changed");
    assert!(matches!(error, Error::ImageChanged));
}

#[test]
fn an_empty_image_is_an_error() {
    let error = Plan::new(&Appliance::new("a", "1"), &mut Cursor::new(Vec::new())).expect_err("empty");
    assert!(matches!(error, Error::ImageSize { bytes: 0, .. }));
}

#[test]
fn every_kind_of_damage_is_named() {
    let (_, good) = pack(&image());

    let mut flipped = good.clone();
    let (at, _) = find(&good, "Ref:2/00000003");
    flipped[at + 512 + 600] ^= 1;
    assert!(message(&flipped).starts_with("member Ref:2/00000003 is damaged: its SHA-1 is "));

    let mut flipped = good.clone();
    let (at, _) = find(&good, "Ref:2/00000000.checksum");
    flipped[at + 512] ^= 1;
    assert!(message(&flipped).starts_with("member Ref:2/00000000 is damaged"));

    let (at, _) = find(&good, "Ref:2/00000003");
    assert_eq!(
        message(&good[..at + 1000]),
        format!(
            "the XVA ends at byte {}, in member Ref:2/00000003: the file is incomplete, copy or build it again",
            at + 1000
        )
    );
    assert!(message(&good[..good.len() - 1]).contains("in the end mark"));
    assert!(message(&good[..good.len() - 1024]).contains("in member Ref:2/00000003.checksum"));

    let mut header = good.clone();
    header[at + 3] = b'x';
    assert!(
        message(&header).contains("after member Ref:2/00000000.checksum): the header checksum does not fit")
    );

    let lost = without(&good, "Ref:2/00000003.checksum");
    assert!(
        message(&lost).starts_with("the end of the file stands where Ref:2/00000003.checksum is expected")
    );
    let lost = without(&without(&good, "Ref:2/00000003"), "Ref:2/00000003.checksum");
    assert_eq!(
        message(&lost),
        "the end of the file stands where a chunk of disk Ref:2 is expected: an importer would refuse this file, \
         build or export it again"
    );
    let lost = without(&without(&good, "Ref:2/00000000"), "Ref:2/00000000.checksum");
    assert!(message(&lost).starts_with("member Ref:2/00000003: the first chunk of the disk is missing"));
    assert!(
        message(&without(&good, "ova.xml")).starts_with("Ref:2/00000000 stands where ova.xml is expected")
    );

    assert!(message(&[0x1f, 0x8b].repeat(512)).contains("gzip -dc"));
    assert!(message(&[0x28, 0xb5, 0x2f, 0xfd].repeat(512)).contains("zstd -dc"));
    assert!(message(&[b'x'; 2000]).contains("does not begin with a tar header"));
    assert!(message(b"").contains("ends at byte 0"));
}

#[test]
fn a_foreign_export_is_read() {
    // Made by hand after a pool's export: two disks, ids in text order, XXH64, a keep-alive chunk, a gap, a
    // last chunk that is short, a drive that is not in the file.
    let file = foreign();
    let description = read(&file).expect("valid");
    assert_eq!(description.name, "web01");
    assert_eq!((description.memory_bytes, description.vcpus), (1 << 30, 2));
    assert_eq!(description.firmware, Some(xva::Firmware::Uefi));
    assert_eq!(description.template_version, None);
    let ids: Vec<_> = description.disks.iter().map(|disk| (disk.id.as_str(), disk.size_bytes)).collect();
    assert_eq!(ids, [("Ref:10", 4608), ("Ref:9", 512)]);

    let mut disk = Vec::new();
    Reader::open(&file[..]).expect("open").extract_disk(0, &mut disk).expect("extract");
    let expected = [vec![1; 1024], vec![0; 2048], vec![2; 1024], vec![3; 512]].concat();
    assert_eq!(disk, expected);
    let mut disk = Vec::new();
    Reader::open(&file[..]).expect("open").extract_disk(1, &mut disk).expect("extract");
    assert_eq!(disk, vec![9; 512]);
    let error =
        Reader::open(&file[..]).expect("open").extract_disk(2, &mut Vec::new()).expect_err("two disks");
    assert_eq!(error.to_string(), "the XVA has 2 disks, there is no disk number 2");
}

fn foreign() -> Vec<u8> {
    let mut tar = Vec::new();
    let mut add = |name: &str, content: &[u8]| {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000600");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = b'0';
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend(header);
        tar.extend(content);
        tar.resize(tar.len().div_ceil(512) * 512, 0);
    };
    add("ova.xml", include_bytes!("fixtures/foreign-ova.xml"));
    // XXH64 values computed with another implementation.
    add("Ref:10/00000000", &[1; 1024]);
    add("Ref:10/00000000.xxhash", b"80FD103205DB55C9");
    add("Ref:10/00000003", &[2; 1024]);
    add("Ref:10/00000003.xxhash", b"2601EE70F345882A");
    add("Ref:10/00000004", b"");
    add("Ref:10/00000004.xxhash", b"EF46DB3751D8E999");
    add("Ref:10/00000005", &[3; 512]);
    add("Ref:10/00000005.checksum", b"e1e3532bc4020f739e5fce797a6c2231b4c8a090");
    add("Ref:9/00000000", &[9; 512]);
    add("Ref:9/00000000.checksum", b"4187f7bcd1c4aa129c0d3ac86c6c3385c0cc75fd");
    tar.extend([0; 1024]);
    tar
}

#[test]
fn other_programs_agree() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("appliance.xva");
    std::fs::write(&path, pack(&image()).1).expect("write");

    let listing = run(Command::new("tar").arg("tf").arg(&path)).expect("tar is on every test machine");
    assert_eq!(listing.lines().next(), Some("ova.xml"));
    assert_eq!(listing.lines().count(), 5);
    run(Command::new("tar").arg("xf").arg(&path).arg("-C").arg(folder.path())).expect("tar");
    for chunk in ["Ref:2/00000000", "Ref:2/00000003"] {
        let sum = run(Command::new("sha1sum").arg(folder.path().join(chunk))).expect("sha1sum");
        let member =
            std::fs::read_to_string(folder.path().join(format!("{chunk}.checksum"))).expect("member");
        assert_eq!(sum.split(' ').next().expect("digits").trim_start_matches('\\'), member);
    }
    python_reads(&folder.path().join("ova.xml"));
}

/// Python's own XML-RPC client reads `ova.xml` and finds what an importer looks for.
fn python_reads(ova: &Path) {
    let script = r#"
import sys, xmlrpc.client
text = open(sys.argv[1], encoding="utf-8").read()
wrapped = "<methodResponse><params><param>" + text + "</param></params></methodResponse>"
((value,), _) = xmlrpc.client.loads(wrapped)
assert value["version"]["export_vsn"] == "2", value["version"]
objects = {o["class"]: o["snapshot"] for o in value["objects"]}
assert set(objects) == {"VM", "VBD", "VDI", "SR"}, objects.keys()
vm = objects["VM"]
assert vm["is_a_template"] is True and vm["power_state"] == "Halted"
assert vm["name_description"] == "reads & ships <disks>"
assert vm["HVM_boot_params"] == {"order": "c", "firmware": "bios"}
assert vm["other_config"]["HideFromXenCenter"] == "true"
assert vm["VIFs"] == [] and vm["parent"] == "OpaqueRef:NULL"
assert int(objects["VDI"]["virtual_size"]) % (1 << 20) == 0
assert objects["VBD"]["userdevice"] == "0" and objects["VBD"]["bootable"] is True
print("ok")
"#;
    match run(Command::new("python3").arg("-c").arg(script).arg(ova)) {
        Ok(output) => assert_eq!(output.trim(), "ok"),
        Err(why) if why.contains("No such file") => println!("skipped: python3 is not installed"),
        Err(why) => panic!("{why}"),
    }
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn the_description_is_pinned() {
    let (plan, _) = pack(&[0x5a; 1000]);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/ova.xml");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, plan.ova_xml()).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(path).expect("golden file");
    assert!(plan.ova_xml() == golden, "ova.xml changed; if that is meant, run with BLESS=1 and say why");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_flipped_byte_never_passes_as_another_disk(at in 0_usize..6_000, bit in 0_u8..8) {
        // Headers, ova.xml and the first bytes of the first chunk.
        let image = [0x5a; 3000];
        let (_, good) = pack(&image);
        let mut bad = good.clone();
        bad[at] ^= 1 << bit;
        let mut disk = Vec::new();
        if Reader::open(&bad[..]).and_then(|reader| reader.extract_disk(0, &mut disk)).is_ok() {
            prop_assert!(disk[..3000] == image && disk[3000..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn no_truncation_passes(cut in 1_usize..2_000_000) {
        let (_, good) = pack(&[0x5a; 3000]);
        prop_assert!(read(&good[..good.len().saturating_sub(cut)]).is_err());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        prop_assert!(read(&bytes).is_err());
    }

    #[test]
    fn every_image_round_trips(
        size in 1_usize..2_500_000,
        marks in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 0..8),
    ) {
        let mut image = vec![0; size];
        for (at, byte) in marks {
            let at = at.index(size);
            image[at] = byte;
        }
        let (plan, file) = pack(&image);
        prop_assert_eq!(plan.content_length(), file.len() as u64);
        let mut disk = Vec::new();
        Reader::open(&file[..]).and_then(|reader| reader.extract_disk(0, &mut disk)).expect("valid");
        prop_assert!(disk[..size] == image[..] && disk.len() % CHUNK_BYTES == 0);
    }
}
