//! The head of a VHD: which 2 MiB blocks it holds.
//!
//! A differencing export between two snapshots holds a block for every part of the disk that may differ, so
//! the allocation table alone is a map of changes, for hosts that cannot track them otherwise. All numbers are
//! big-endian.
//!
//! ```text
//! footer copy, 512 bytes at 0            header, 1024 bytes at 512
//!   0  8  "conectix"                       0  8  "cxsparse"
//!  12  4  version, 1.0                    16  8  offset of the table
//!  16  8  offset of the header            24  4  version, 1.0
//!  48  8  size of the disk                28  4  entries of the table
//!  60  4  type: 3 dynamic, 4 differencing 32  4  bytes per block
//!  64  4  checksum                        36  4  checksum
//! table: one sector offset per block, 0xffffffff for a block that is not there
//! ```

const FOOTER: usize = 512;
const HEADER: usize = 1024;
const VERSION: u32 = 0x0001_0000;
const ABSENT: u32 = 0xffff_ffff;

/// Largest distance of the table from the start: hosts put at most parent locators before it.
const TABLE_OFFSET_LIMIT: u64 = 1 << 20;

/// Largest table: a disk of 2040 GiB, the most that hosts export, has 1,044,480 blocks.
const ENTRY_LIMIT: u32 = 1 << 21;

/// What a VHD says about its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhdHead {
    /// Size of the disk in bytes.
    pub disk_bytes: u64,
    /// Size of a block in bytes, 2 MiB from every known host.
    pub block_bytes: u32,
    /// Whether it holds only the difference to another disk.
    pub differencing: bool,
    /// Indexes of the blocks that are there, rising.
    pub blocks: Vec<u32>,
}

/// How far the parser got.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// So many bytes from the start are needed.
    Need(usize),
    Done(VhdHead),
}

/// Reads the head from the first bytes of a VHD. The error says what is wrong.
pub(crate) fn parse(bytes: &[u8]) -> Result<Progress, String> {
    if bytes.len() < FOOTER + HEADER {
        return Ok(Progress::Need(FOOTER + HEADER));
    }
    let (footer, rest) = bytes.split_at(FOOTER);
    let header = &rest[..HEADER];
    expect(&footer[..8] == b"conectix", "it does not begin with a VHD footer")?;
    expect(checksum(footer, 64) == number_u32(footer, 64), "the footer's checksum does not fit")?;
    expect(number_u32(footer, 12) == VERSION, "the footer's version is not 1.0")?;
    let differencing = match number_u32(footer, 60) {
        3 => false,
        4 => true,
        other => return Err(format!("type {other} has no table of blocks")),
    };
    expect(number_u64(footer, 16) == FOOTER as u64, "the header does not follow the footer")?;
    expect(&header[..8] == b"cxsparse", "there is no header")?;
    expect(checksum(header, 36) == number_u32(header, 36), "the header's checksum does not fit")?;
    expect(number_u32(header, 24) == VERSION, "the header's version is not 1.0")?;

    let disk_bytes = number_u64(footer, 48);
    let block_bytes = number_u32(header, 32);
    let entries = number_u32(header, 28);
    expect(block_bytes.is_power_of_two() && block_bytes >= 4096, "the block size makes no sense")?;
    let block_count = disk_bytes.div_ceil(u64::from(block_bytes));
    expect(entries <= ENTRY_LIMIT, "the table is larger than that of any disk")?;
    expect(u64::from(entries) >= block_count, "the table is too short for the disk")?;
    let table = number_u64(header, 16);
    expect(
        (FOOTER + HEADER) as u64 <= table && table <= TABLE_OFFSET_LIMIT,
        "the table's place makes no sense",
    )?;
    let table = usize::try_from(table).expect("checked against a small limit");
    let end = table + 4 * usize::try_from(entries).expect("checked against a small limit");
    let Some(table) = bytes.get(table..end) else { return Ok(Progress::Need(end)) };

    let mut blocks = Vec::new();
    for (index, entry) in (0_u32..).zip(table.chunks_exact(4)) {
        let sector = number_u32(entry, 0);
        if sector == ABSENT {
            continue;
        }
        expect(u64::from(index) < block_count, "the table has a block beyond the end of the disk")?;
        expect(u64::from(sector) * 512 >= end as u64, "the table places a block inside the head")?;
        blocks.push(index);
    }
    Ok(Progress::Done(VhdHead { disk_bytes, block_bytes, differencing, blocks }))
}

fn expect(condition: bool, otherwise: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn number_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn number_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Ones' complement of the sum of all bytes, the field itself as zero.
fn checksum(bytes: &[u8], field: usize) -> u32 {
    let sum: u32 = bytes.iter().map(|byte| u32::from(*byte)).sum();
    let own: u32 = bytes[field..field + 4].iter().map(|byte| u32::from(*byte)).sum();
    !(sum - own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Made by `qemu-img create -f vpc -o force_size=on x.vhd 9M` and one write of 64 KiB at 4 MiB.
    const DYNAMIC: &[u8] = include_bytes!("../tests/fixtures/dynamic-9m-block-2.vhd-head");

    fn put(bytes: &mut [u8], at: usize, value: u32) {
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// A differencing VHD as hosts stream it: table at 2048, blocks 0 and 3 of 5.
    fn differencing() -> Vec<u8> {
        let mut bytes = vec![0; 2048];
        bytes[..8].copy_from_slice(b"conectix");
        put(&mut bytes, 12, VERSION);
        bytes[16..24].copy_from_slice(&512_u64.to_be_bytes());
        bytes[48..56].copy_from_slice(&(9_u64 << 20).to_be_bytes());
        put(&mut bytes, 60, 4);
        bytes[512..520].copy_from_slice(b"cxsparse");
        bytes[528..536].copy_from_slice(&2048_u64.to_be_bytes());
        put(&mut bytes, 512 + 24, VERSION);
        put(&mut bytes, 512 + 28, 5);
        put(&mut bytes, 512 + 32, 2 << 20);
        for entry in [5, ABSENT, ABSENT, 4102, ABSENT] {
            bytes.extend(u32::to_be_bytes(entry));
        }
        bytes.resize(2560, 0xff);
        seal(&mut bytes);
        bytes
    }

    fn seal(bytes: &mut [u8]) {
        let footer = checksum(&bytes[..512], 64);
        put(bytes, 64, footer);
        let header = checksum(&bytes[512..1536], 36);
        put(bytes, 512 + 36, header);
    }

    #[test]
    fn a_differencing_head_lists_its_blocks() {
        let expected =
            VhdHead { disk_bytes: 9 << 20, block_bytes: 2 << 20, differencing: true, blocks: vec![0, 3] };
        assert_eq!(parse(&differencing()), Ok(Progress::Done(expected)));
    }

    #[test]
    fn a_foreign_head_is_read() {
        let Ok(Progress::Done(head)) = parse(DYNAMIC) else { panic!("{:?}", parse(DYNAMIC)) };
        assert_eq!((head.disk_bytes, head.block_bytes), (9 << 20, 2 << 20));
        assert_eq!((head.differencing, head.blocks), (false, vec![2]));
    }

    #[test]
    fn a_short_head_says_how_much_is_needed() {
        let bytes = differencing();
        assert_eq!(parse(&[]), Ok(Progress::Need(1536)));
        assert_eq!(parse(&bytes[..1536]), Ok(Progress::Need(2068)));
        assert_eq!(parse(&bytes[..2067]), Ok(Progress::Need(2068)));
        assert!(matches!(parse(&bytes[..2068]), Ok(Progress::Done(_))));
    }

    #[test]
    fn every_defect_is_named() {
        let defect = |change: fn(&mut Vec<u8>), reseal: bool| {
            let mut bytes = differencing();
            change(&mut bytes);
            if reseal {
                seal(&mut bytes);
            }
            parse(&bytes).expect_err("defect")
        };
        assert!(defect(|bytes| bytes[0] = b'x', true).contains("footer"));
        assert!(defect(|bytes| bytes[50] ^= 1, false).contains("footer's checksum"));
        assert!(defect(|bytes| bytes[600] ^= 1, false).contains("header's checksum"));
        assert!(defect(|bytes| put(bytes, 60, 2), true).contains("type 2"));
        assert!(defect(|bytes| put(bytes, 512 + 28, 4), true).contains("too short"));
        assert!(defect(|bytes| put(bytes, 512 + 28, u32::MAX), true).contains("larger than"));
        assert!(defect(|bytes| put(bytes, 512 + 32, 0), true).contains("block size"));
        assert!(defect(|bytes| put(bytes, 512 + 16, 1), true).contains("place"));
        assert!(defect(|bytes| put(bytes, 2048, 1), true).contains("inside the head"));
        let beyond = |bytes: &mut Vec<u8>| bytes[48..56].copy_from_slice(&(6_u64 << 20).to_be_bytes());
        assert!(defect(beyond, true).contains("beyond the end"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0_usize..2560, value in any::<u8>(), reseal in any::<bool>(), cut in 0_usize..2561) {
            let mut bytes = differencing();
            bytes[at] = value;
            if reseal {
                seal(&mut bytes);
            }
            let _ = parse(&bytes[..cut]);
        }
    }
}
