//! VHDs that a foreign tool made: the client must list exactly the blocks that were written. `qemu-img` and `qemu-io`
//! make the images; a differencing one, which they cannot make, is derived from one of theirs.

mod peer;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use peer::{Answer, Peer, Request, api, client, task_record};
use xapi::{Ref, VhdHead};

const MIB: u64 = 1 << 20;

/// Runs one of QEMU's disk tools; `None` with a reason where it is not installed.
fn run(tool: &str, arguments: &[&str]) -> Option<()> {
    match Command::new(tool).args(arguments).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{tool} {arguments:?}: {said}");
            Some(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// An empty dynamic VHD of that size.
fn created(directory: &Path, size: &str) -> Option<PathBuf> {
    let image = directory.join("made.vhd");
    run(
        "qemu-img",
        &["create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", text(&image), size],
    )?;
    Some(image)
}

/// What the client reads of a VHD that a host streams.
async fn head_of(image: Vec<u8>) -> VhdHead {
    let calls = api(|method, _| match method {
        "task.get_record" => Some(Ok(task_record("success", "", &[]))),
        _ => None,
    });
    let peer = Peer::start(move |request: &Request| {
        if !request.line.starts_with("GET /export_raw_vdi") {
            return calls(request);
        }
        let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/vhd\r\n\r\n";
        Answer::Last([&head[..], &image].concat())
    })
    .await;
    let client = client(&peer).await;
    client.export_vdi_vhd_head(&Ref::from_opaque("OpaqueRef:2"), None).await.expect("a head")
}

#[tokio::test]
async fn blocks_that_qemu_wrote_are_listed_and_no_others() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(image) = created(directory.path(), "64M") else { return };
    let bytes = || std::fs::read(&image).expect("the image");
    assert_eq!(head_of(bytes()).await.blocks, Vec::<u32>::new());
    // Block 0's first and last sector, one write across blocks 6 and 7, the last sector of the disk.
    let writes =
        ["write -P 1 0 512", "write -P 2 2096640 512", "write -P 3 14M-64k 128k", "write -P 4 67108352 512"];
    for write in writes.map(|write| write.replace("14M-64k", &(14 * MIB - (64 << 10)).to_string())) {
        if run("qemu-io", &["-f", "vpc", "-c", &write, text(&image)]).is_none() {
            return;
        }
    }
    let expected = VhdHead {
        disk_bytes: 64 * MIB,
        block_bytes: 2 << 20,
        differencing: false,
        blocks: vec![0, 6, 7, 31],
    };
    assert_eq!(head_of(bytes()).await, expected);
}

#[tokio::test]
async fn a_converted_raw_disk_lists_the_blocks_that_hold_something() {
    let directory = tempfile::tempdir().expect("a directory");
    let raw = directory.path().join("disk.raw");
    let file = File::create(&raw).expect("created");
    // The size is no multiple of a block: the last one is partial.
    file.set_len(21 * MIB).expect("sized");
    for (offset, length) in [(3 * MIB, 1), (8 * MIB - 1, 2), (21 * MIB - 512, 512)] {
        let bytes = vec![0xa5; usize::try_from(length).expect("small")];
        file.write_all_at(&bytes, offset).expect("written");
    }
    let image = directory.path().join("converted.vhd");
    let options = "subformat=dynamic,force_size=on";
    let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", options, text(&raw), text(&image)];
    if run("qemu-img", &convert).is_none() {
        return;
    }
    let head = head_of(std::fs::read(&image).expect("the image")).await;
    assert_eq!((head.disk_bytes, head.blocks), (21 * MIB, vec![1, 3, 4, 10]));
}

#[tokio::test]
async fn a_differencing_footer_over_foreign_blocks_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let Some(image) = created(directory.path(), "16M") else { return };
    if run("qemu-io", &["-f", "vpc", "-c", "write -P 9 10M 64k", text(&image)]).is_none() {
        return;
    }
    let mut bytes = std::fs::read(&image).expect("the image");
    let end = bytes.len() - 512;
    for footer in [0, end] {
        assert_eq!(bytes[footer..footer + 8], *b"conectix");
        bytes[footer + 60..footer + 64].copy_from_slice(&4_u32.to_be_bytes());
        seal(&mut bytes[footer..footer + 512], 64);
    }
    // The parent: uuid and name, as a host writes them.
    let header = 512;
    bytes[header + 40..header + 56].copy_from_slice(&[0x42; 16]);
    let name: Vec<u8> = "parent.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    bytes[header + 64..header + 64 + name.len()].copy_from_slice(&name);
    seal(&mut bytes[header..header + 1024], 36);
    let expected =
        VhdHead { disk_bytes: 16 * MIB, block_bytes: 2 << 20, differencing: true, blocks: vec![5] };
    assert_eq!(head_of(bytes).await, expected);
}

/// Writes the checksum of a structure: ones' complement of the sum of its bytes, the field itself as zero.
fn seal(structure: &mut [u8], field: usize) {
    structure[field..field + 4].fill(0);
    let sum: u32 = structure.iter().map(|byte| u32::from(*byte)).sum();
    structure[field..field + 4].copy_from_slice(&(!sum).to_be_bytes());
}
