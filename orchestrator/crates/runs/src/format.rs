//! The bytes of a run.
//!
//! ```text
//! pages         4096 x n: 170 entries of 24 bytes, zero 8, XXH64 of what is before it with the page's number as seed 8
//!               entry: prefix 16 | pack u32 | entry u32, top bit: full size
//! packs' ids    for each pack: prefix 16 x entries | a bit for each entry: full size | XXH64, seed the pack's number 8
//! packs         48 x packs: id 32 | size u32 | entries u32 | kind u8 | zero 7
//! fences        4 x pages: first four bytes of the page's first prefix
//! stretches     24 x stretches: first eight bytes of its first prefix | seed u64 | segment u32 | span u32
//! fingerprints  of the stretches' filters, back to back
//! twins         16 x twins: prefixes that stand in several of the packs, once for each place after the first
//! footer        168: magic "ABDRUN01" 8 | owner 16 | entries u64 | packs u32 | stretches u32 | fingerprints u64
//!               | twins in packs of kind 1 u64 | of kind 2 u64 | BLAKE3 of packs 32 | BLAKE3 of fences to twins 32
//!               | BLAKE3 of the footer before it 32 | magic "ABDRUNEN" 8
//! ```
//! Numbers are little-endian; prefixes sort as bytes. Pages come first because a run is written in one pass, and what is
//! needed to find them stands together at the end. A page proves itself, because reading all of a run to believe one page
//! of it would take what the run is there to save. A stretch is 1542 pages, so that a filter can be made while writing.

use crate::PackAbout;
use crate::filter::Shape;
use xxhash_rust::xxh64::xxh64;

pub(crate) const PAGE: usize = 4096;
pub(crate) const ENTRY: usize = 24;
pub(crate) const PREFIX: usize = 16;
/// Entries of a page.
pub(crate) const PAGE_ENTRIES: usize = 170;
/// Pages that have a filter together: about 2^18 entries.
pub(crate) const STRETCH_PAGES: usize = 1542;
pub(crate) const STRETCH_ENTRIES: usize = STRETCH_PAGES * PAGE_ENTRIES;
pub(crate) const PACK: usize = 48;
pub(crate) const FENCE: usize = 4;
pub(crate) const STRETCH: usize = 24;
pub(crate) const SUM: usize = 8;
/// Kinds of packs that are counted apart; a kind that is not known counts as the last.
pub(crate) const KINDS: usize = 2;
pub(crate) const FOOTER: usize = 168;
const MAGIC: &[u8; 8] = b"ABDRUN01";
const END: &[u8; 8] = b"ABDRUNEN";

/// Most entries of one pack: 64 MiB at 48 bytes each.
const MAX_PACK_ENTRIES: u32 = 1 << 21;
/// Most entries of a run: so that nothing below overflows. 2^40 blocks of 64 KiB are 64 EiB.
const MAX_ENTRIES: u64 = 1 << 40;

const _: () = assert!(PAGE_ENTRIES * ENTRY + 8 + SUM == PAGE);
const _: () = assert!(PACK == 32 + 4 + 4 + 1 + 7 && STRETCH == 8 + 8 + 4 + 4);
const _: () = assert!(FOOTER == 8 + 16 + 8 + 4 + 4 + 8 + 16 + 32 * 3 + 8);

/// How much of everything a run has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) owner: [u8; 16],
    pub(crate) entries: u64,
    pub(crate) packs: u32,
    pub(crate) stretches: u32,
    pub(crate) fingerprints: u64,
    /// By kind.
    pub(crate) twins: [u64; KINDS],
    pub(crate) packs_hash: [u8; 32],
    pub(crate) lookup_hash: [u8; 32],
}

impl Footer {
    pub(crate) fn to_bytes(self) -> [u8; FOOTER] {
        let mut bytes = Vec::with_capacity(FOOTER);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.owner);
        bytes.extend_from_slice(&self.entries.to_le_bytes());
        bytes.extend_from_slice(&self.packs.to_le_bytes());
        bytes.extend_from_slice(&self.stretches.to_le_bytes());
        bytes.extend_from_slice(&self.fingerprints.to_le_bytes());
        self.twins.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
        bytes.extend_from_slice(&self.packs_hash);
        bytes.extend_from_slice(&self.lookup_hash);
        let own = blake3::hash(&bytes);
        bytes.extend_from_slice(own.as_bytes());
        bytes.extend_from_slice(END);
        bytes.try_into().expect("the sizes add up")
    }

    /// Reads a footer; says why it is none.
    pub(crate) fn from_bytes(bytes: &[u8; FOOTER]) -> Result<Self, &'static str> {
        if &bytes[..8] != MAGIC || &bytes[FOOTER - 8..] != END {
            return Err("it does not end like a run of this version");
        }
        if blake3::hash(&bytes[..128]) != bytes[128..160] {
            return Err("its footer is damaged");
        }
        let found = Self {
            owner: bytes[8..24].try_into().expect("16 bytes"),
            entries: read_u64(bytes, 24),
            packs: read_u32(bytes, 32),
            stretches: read_u32(bytes, 36),
            fingerprints: read_u64(bytes, 40),
            twins: [read_u64(bytes, 48), read_u64(bytes, 56)],
            packs_hash: bytes[64..96].try_into().expect("32 bytes"),
            lookup_hash: bytes[96..128].try_into().expect("32 bytes"),
        };
        let most = found.entries.max(found.fingerprints / 64);
        let twins = found.twins[0].saturating_add(found.twins[1]);
        let stretches = found.pages().div_ceil(STRETCH_PAGES as u64);
        if most > MAX_ENTRIES || twins > found.entries || u64::from(found.stretches) != stretches {
            return Err("its footer contradicts itself");
        }
        Ok(found)
    }

    pub(crate) fn pages(&self) -> u64 {
        self.entries.div_ceil(PAGE_ENTRIES as u64)
    }

    /// Bytes of the packs' ids.
    pub(crate) fn ids_size(packs: &[PackAbout]) -> u64 {
        packs.iter().map(|pack| ids_size(pack.entries) as u64).sum()
    }

    /// Bytes from the fences to the twins.
    pub(crate) fn lookup_size(&self) -> u64 {
        self.pages() * FENCE as u64
            + u64::from(self.stretches) * STRETCH as u64
            + self.fingerprints
            + self.twin_count() * PREFIX as u64
    }

    pub(crate) fn twin_count(&self) -> u64 {
        self.twins[0] + self.twins[1]
    }

    pub(crate) fn packs_size(&self) -> u64 {
        u64::from(self.packs) * PACK as u64
    }
}

/// Bytes of one pack's ids.
pub(crate) fn ids_size(entries: u32) -> usize {
    let entries = entries as usize;
    entries * PREFIX + entries.div_ceil(8) + SUM
}

/// Where a kind of pack is counted.
pub(crate) fn slot_of_kind(kind: u8) -> usize {
    if kind == 1 { 0 } else { 1 }
}

pub(crate) fn pack_to_bytes(pack: &PackAbout) -> [u8; PACK] {
    let mut bytes = [0; PACK];
    bytes[..32].copy_from_slice(&pack.id);
    bytes[32..36].copy_from_slice(&pack.size.to_le_bytes());
    bytes[36..40].copy_from_slice(&pack.entries.to_le_bytes());
    bytes[40] = pack.kind;
    bytes
}

/// `None` where a pack cannot have so many entries.
pub(crate) fn pack_from_bytes(bytes: &[u8; PACK]) -> Option<PackAbout> {
    let entries = read_u32(bytes, 36);
    (entries <= MAX_PACK_ENTRIES).then(|| PackAbout {
        id: bytes[..32].try_into().expect("32 bytes"),
        size: read_u32(bytes, 32),
        entries,
        kind: bytes[40],
    })
}

pub(crate) fn stretch_to_bytes(first: u64, shape: &Shape) -> [u8; STRETCH] {
    let mut bytes = [0; STRETCH];
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    bytes[8..16].copy_from_slice(&shape.seed.to_le_bytes());
    bytes[16..20].copy_from_slice(&shape.segment.to_le_bytes());
    bytes[20..24].copy_from_slice(&shape.span.to_le_bytes());
    bytes
}

pub(crate) fn stretch_from_bytes(bytes: &[u8; STRETCH]) -> Option<(u64, Shape)> {
    let shape = Shape { seed: read_u64(bytes, 8), segment: read_u32(bytes, 16), span: read_u32(bytes, 20) };
    shape.is_sound().then(|| (read_u64(bytes, 0), shape))
}

/// Writes a page's sum behind its entries.
pub(crate) fn seal(bytes: &mut [u8], number: u64) {
    let at = bytes.len() - SUM;
    let sum = xxh64(&bytes[..at], number);
    bytes[at..].copy_from_slice(&sum.to_le_bytes());
}

/// Whether bytes are what was sealed under this number.
pub(crate) fn is_sealed(bytes: &[u8], number: u64) -> bool {
    let at = bytes.len() - SUM;
    xxh64(&bytes[..at], number) == read_u64(bytes, at)
}

/// The first eight bytes of a prefix, which sort as it does.
pub(crate) fn head(prefix: &[u8; 16]) -> u64 {
    u64::from_be_bytes(prefix[..8].try_into().expect("8 bytes"))
}

/// The first four.
pub(crate) fn fence(prefix: &[u8; 16]) -> u32 {
    u32::from_be_bytes(prefix[..4].try_into().expect("4 bytes"))
}

/// What a filter knows a prefix by.
pub(crate) fn key(prefix: &[u8; 16]) -> u64 {
    let tail = u64::from_be_bytes(prefix[8..].try_into().expect("8 bytes"));
    head(prefix) ^ tail.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

pub(crate) fn read_u64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}
