//! What the orchestrator reads: answers of a pool, heads of VHDs, XVA files, and the files that people write.

use super::tagged;
use abd_orchestrator::spec;
use abd_orchestrator::window::Span;
use xapi::fuzzing;
use xva::Reader;

/// Unit of a tar file, and where in a header its checksum stands and "ustar" does.
const TAR_BLOCK: usize = 512;
const TAR_SUM: std::ops::Range<usize> = 148..156;
const TAR_MAGIC: std::ops::Range<usize> = 257..262;
/// What is hashed over in the footer and the header of a VHD: begin, size, and the checksum's place in it.
const VHD_SUMS: [(usize, usize, usize); 2] = [(0, 512, 64), (512, 1024, 36)];

/// An answer of a pool. The first byte says which kind.
pub fn pool_answers(data: &[u8]) {
    let Some((tag, body)) = tagged(data) else { return };
    match tag % 3 {
        0 => fuzzing::json_reply(body),
        1 => fuzzing::xml_reply(body),
        _ => fuzzing::task_result(&String::from_utf8_lossy(body)),
    }
}

/// The head of a VHD, as it is and with the right checksums.
pub fn vhd_heads(data: &[u8]) {
    read_head(data);
    let mut right = data.to_vec();
    for (begin, size, at) in VHD_SUMS {
        let Some(part) = right.get_mut(begin..begin + size) else { continue };
        part[at..at + 4].fill(0);
        let sum: u32 = part.iter().map(|byte| u32::from(*byte)).sum();
        part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
    read_head(&right);
}

fn read_head(bytes: &[u8]) {
    let Some(head) = fuzzing::vhd_head(bytes) else { return };
    assert!(head.blocks.is_sorted_by(|a, b| a < b), "{head:?}");
    let last = head.blocks.last().map_or(0, |last| u64::from(*last) * u64::from(head.block_bytes));
    assert!(last <= head.disk_bytes, "a block past the end: {head:?}");
}

/// An XVA file, as it is and with the right checksums in the headers of its members.
pub fn xva_files(data: &[u8]) {
    read_xva(data);
    let mut right = data.to_vec();
    for header in right.chunks_exact_mut(TAR_BLOCK).filter(|block| &block[TAR_MAGIC] == b"ustar") {
        header[TAR_SUM].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[TAR_SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    read_xva(&right);
}

fn read_xva(bytes: &[u8]) {
    let reader = match Reader::open(bytes) {
        Ok(reader) => reader,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let expected: Vec<_> = reader.description().disks.iter().map(|disk| disk.size_bytes).collect();
    let _ = reader.verify();
    if expected.first().is_some_and(|size| *size <= crate::MAX_INPUT as u64) {
        let mut disk = Vec::new();
        let reader = Reader::open(bytes).expect("it was opened before");
        if reader.extract_disk(0, &mut disk).is_ok() {
            assert_eq!(disk.len() as u64, expected[0], "a disk that was read is whole");
        }
    }
}

/// The description that opens an XVA, without the file around it.
pub fn ova_descriptions(data: &[u8]) {
    let mut file = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    file.append_data(&mut header, "ova.xml", data).expect("memory takes every write");
    read_xva(&file.into_inner().expect("memory takes every write"));
}

/// A job file, and single values as people write them.
pub fn job_files(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match spec::parse_text("job.toml", "job", &text) {
        Ok(spec) => assert!(!spec.name.is_empty()),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let _ = text.parse::<Span>();
    let _ = spec::parse_size(&text);
    let _ = spec::parse_rate(&text);
    let _ = spec::parse_duration(&text);
    let _ = spec::parse_percent(&text);
    let _ = spec::parse_cidr(&text);
}
