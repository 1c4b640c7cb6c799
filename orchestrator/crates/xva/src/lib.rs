//! XVA files: the container in which a pool imports and exports virtual machines.
//!
//! Owns the byte layout of the file: the tar container, `ova.xml`, the chunks of each disk and their
//! checksums. [`Plan`] writes the appliance template; [`Reader`] reads and checks any XVA with inline
//! checksums, ours or a pool's.
//!
//! Promises: the same appliance and the same image give the same bytes, everywhere and always. The length
//! is known before the first byte is written, because a pool refuses an import of unknown length. What the
//! reader hands out was checked against its checksum. Bytes from outside never panic; they end in an
//! [`Error`] that names the member and what to do.
//!
//! Never does: talk to a pool, unpack gzip or zstd, or hold more than one chunk in memory.
//!
//! # Layout
//!
//! A plain ustar archive without directories. `ova.xml` comes first, because an importer makes the records
//! before it takes in data. Then, disk by disk in the byte order of their ids, the members `<id>/<number>`
//! (8 decimal digits, 1 MiB each, all-zero chunks left out except the first and the last), each followed at
//! once by `<id>/<number>.checksum`: 40 lower-case hex digits of SHA-1. Every product generation understands
//! SHA-1; newer pools write `.xxhash` (16 upper-case hex digits of XXH64) in its place, which the reader
//! accepts. Two blocks of zeros end the file.

#![forbid(unsafe_code)]

mod appliance;
mod checksum;
mod description;
mod error;
mod node;
mod reader;
mod ustar;
mod writer;

pub use appliance::{Appliance, DIGEST_KEY, Firmware, TEMPLATE_KEY};
pub use description::{Description, Disk};
pub use error::{Error, Result};
pub use reader::Reader;
pub use writer::Plan;

/// Size of a full chunk. The importer takes the first chunk it meets as the unit of skipped ones.
pub const CHUNK_BYTES: usize = 1 << 20;

/// Largest disk a [`Plan`] takes: chunk numbers have eight decimal digits.
pub const DISK_LIMIT_BYTES: u64 = 99_999_999 * CHUNK_BYTES as u64;

/// Largest `ova.xml` that is read. A VM with hundreds of snapshots stays far below.
pub const OVA_XML_LIMIT_BYTES: u64 = 16 << 20;

/// Largest single chunk that is read. Pools write 1 MiB.
pub const CHUNK_LIMIT_BYTES: u64 = 16 << 20;

/// Most disks in one file: 255 device positions for each of a VM and its snapshots.
pub const DISK_COUNT_LIMIT: usize = 255 * 32;
