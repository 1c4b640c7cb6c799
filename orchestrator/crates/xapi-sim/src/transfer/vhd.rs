//! The VHD file: footer copy, dynamic header, allocation table, blocks, footer. All numbers big endian.
//!
//! ```text
//!    0  footer copy, 512 bytes, "conectix"
//!  512  dynamic header, 1024 bytes, "cxsparse"
//! 1536  one empty sector
//! 2048  BAT: one u32 sector number per 2 MiB block, 0xffffffff = not in this file; padded to 512
//!       per block: sector bitmap, 512 bytes of ones; 2 MiB of data
//!  end  footer, 512 bytes
//! ```

use crate::storage::chain::BLOCK;
use std::collections::BTreeSet;
use uuid::Uuid;

/// A listed block is sent whole.
pub(super) const SECTOR_BITMAP: [u8; 512] = [0xff; 512];

const SECTOR: u64 = 512;
const HEADER_OFFSET: u64 = 512;
const BAT_OFFSET: u64 = 2048;
const UNUSED: u32 = u32::MAX;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;

/// One file.
#[derive(Debug)]
pub(super) struct Layout {
    /// Size of the disk in bytes.
    pub(super) size: u64,
    pub(super) uuid: String,
    /// Uuid of the base of a differencing file.
    pub(super) parent: Option<String>,
    /// The blocks it holds.
    pub(super) blocks: BTreeSet<u32>,
}

impl Layout {
    fn entries(&self) -> u32 {
        u32::try_from(self.size.div_ceil(BLOCK)).expect("a VHD is at most 2040 GiB")
    }

    /// Everything before the first block.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut out = self.footer();
        out.extend(self.header());
        out.resize(usize::try_from(BAT_OFFSET).expect("it is 2048"), 0);
        let table_bytes = (u64::from(self.entries()) * 4).next_multiple_of(SECTOR);
        let mut next = (BAT_OFFSET + table_bytes) / SECTOR;
        let per_block = 1 + BLOCK / SECTOR;
        for block in 0..self.entries() {
            let entry = if self.blocks.contains(&block) {
                let at = u32::try_from(next).expect("a VHD of 2040 GiB has fewer sectors than that");
                next += per_block;
                at
            } else {
                UNUSED
            };
            out.extend(entry.to_be_bytes());
        }
        out.resize(usize::try_from(BAT_OFFSET + table_bytes).expect("a table fits in memory"), 0xff);
        out
    }

    /// The footer, which also stands at the start of the file.
    pub(super) fn footer(&self) -> Vec<u8> {
        let mut out = vec![0; 512];
        put(&mut out, 0, b"conectix");
        put(&mut out, 8, &2u32.to_be_bytes());
        put(&mut out, 12, &0x0001_0000u32.to_be_bytes());
        put(&mut out, 16, &HEADER_OFFSET.to_be_bytes());
        put(&mut out, 28, b"tap\0");
        put(&mut out, 32, &0x0001_0003u32.to_be_bytes());
        put(&mut out, 40, &self.size.to_be_bytes());
        put(&mut out, 48, &self.size.to_be_bytes());
        put(&mut out, 56, &geometry(self.size));
        let kind = if self.parent.is_some() { DIFFERENCING } else { DYNAMIC };
        put(&mut out, 60, &kind.to_be_bytes());
        put(&mut out, 68, &uuid_bytes(&self.uuid));
        let sum = checksum(&out);
        put(&mut out, 64, &sum);
        out
    }

    fn header(&self) -> Vec<u8> {
        let mut out = vec![0; 1024];
        put(&mut out, 0, b"cxsparse");
        put(&mut out, 8, &u64::MAX.to_be_bytes());
        put(&mut out, 16, &BAT_OFFSET.to_be_bytes());
        put(&mut out, 24, &0x0001_0000u32.to_be_bytes());
        put(&mut out, 28, &self.entries().to_be_bytes());
        put(&mut out, 32, &u32::try_from(BLOCK).expect("a block is 2 MiB").to_be_bytes());
        if let Some(parent) = &self.parent {
            put(&mut out, 40, &uuid_bytes(parent));
            let name: Vec<u8> = format!("{parent}.vhd").encode_utf16().flat_map(u16::to_be_bytes).collect();
            put(&mut out, 64, &name);
        }
        let sum = checksum(&out);
        put(&mut out, 36, &sum);
        out
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

fn uuid_bytes(text: &str) -> [u8; 16] {
    text.parse::<Uuid>().map(|u| *u.as_bytes()).unwrap_or_default()
}

/// Ones' complement of the byte sum; the field itself must still be zero.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    let sum: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
    (!sum).to_be_bytes()
}

/// Cylinders, heads and sectors, by the published algorithm of the format.
fn geometry(size: u64) -> [u8; 4] {
    let total = (size / SECTOR).min(65_535 * 16 * 255);
    let (heads, sectors, tracks);
    if total >= 65_535 * 16 * 63 {
        (heads, sectors, tracks) = (16, 255, total / 255);
    } else {
        let mut s = 17;
        let mut t = total / 17;
        let mut h = t.div_ceil(1024).max(4);
        if t >= h * 1024 || h > 16 {
            (s, h) = (31, 16);
            t = total / 31;
        }
        if t >= h * 1024 {
            (s, h) = (63, 16);
            t = total / 63;
        }
        (heads, sectors, tracks) = (h, s, t);
    }
    let cylinders = u16::try_from(tracks / heads).unwrap_or(u16::MAX).to_be_bytes();
    let small = |n: u64| u8::try_from(n).unwrap_or(u8::MAX);
    [cylinders[0], cylinders[1], small(heads), small(sectors)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn head_and_footer_follow_the_format() {
        let layout = Layout {
            size: 5 * BLOCK + 512,
            uuid: Uuid::from_u128(1).to_string(),
            parent: Some(Uuid::from_u128(2).to_string()),
            blocks: [1, 5].into_iter().collect(),
        };
        let (head, footer) = (layout.head(), layout.footer());
        assert_eq!(footer.len(), 512);
        assert_eq!(&head[..512], &footer[..]);
        assert_eq!((&head[..8], &head[512..520]), (&b"conectix"[..], &b"cxsparse"[..]));
        assert_eq!(u32_at(&footer, 60), 4);
        assert_eq!(u64::from_be_bytes(footer[48..56].try_into().unwrap()), 5 * BLOCK + 512);
        assert_eq!((u32_at(&head, 512 + 28), u32_at(&head, 512 + 32)), (6, 0x0020_0000));
        assert_eq!(head[512 + 40 + 15], 2);
        assert_eq!(&head[512 + 64..512 + 68], &[0, b'0', 0, b'0']);
        let bat: Vec<u32> = (0..6).map(|i| u32_at(&head, 2048 + 4 * i)).collect();
        assert_eq!(bat, [UNUSED, 5, UNUSED, UNUSED, UNUSED, 5 + 4097]);
        assert_eq!(head.len(), 2560);
        let mut summed = footer.clone();
        summed[64..68].fill(0);
        let sum: u32 = summed.iter().map(|b| u32::from(*b)).sum();
        assert_eq!(!sum, u32_at(&footer, 64));
    }

    #[test]
    fn geometry_of_known_sizes() {
        // Values that qemu-img writes for these sizes.
        assert_eq!(geometry(64 << 20), [0x03, 0xc3, 8, 17]);
        assert_eq!(geometry(2040 << 30), [0xff, 0xff, 16, 255]);
    }
}
