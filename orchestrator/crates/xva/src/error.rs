//! What can go wrong with an XVA, each with the member it concerns and the remedy.

use std::io;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure to write or read an XVA.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk image could not be read while packing.
    #[error("read the disk image at byte {offset}")]
    Image {
        /// Position in the image.
        offset: u64,
        /// Cause.
        source: io::Error,
    },
    /// The image is empty or larger than the format can hold.
    #[error("the disk image has {bytes} bytes; an XVA disk holds 1 to {limit} bytes")]
    ImageSize {
        /// Size found.
        bytes: u64,
        /// Largest size.
        limit: u64,
    },
    /// The image is not the one that was planned.
    #[error("the disk image changed while it was packed; let nothing write to it and build again")]
    ImageChanged,
    /// A field of the appliance cannot be written.
    #[error("appliance field {field}: {why}")]
    Appliance {
        /// Field.
        field: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The XVA could not be written.
    #[error("write the XVA")]
    Output(#[source] io::Error),
    /// The XVA, or the place a disk is extracted to, failed.
    #[error("write the bytes of disk {disk}")]
    Extract {
        /// Id of the disk.
        disk: String,
        /// Cause.
        source: io::Error,
    },
    /// The XVA could not be read.
    #[error("read the XVA at byte {offset}")]
    Input {
        /// Position in the file.
        offset: u64,
        /// Cause.
        source: io::Error,
    },
    /// The file ends too early.
    #[error("the XVA ends at byte {offset}, in {member}: the file is incomplete, copy or build it again")]
    Truncated {
        /// Length of the file.
        offset: u64,
        /// Member that was being read.
        member: String,
    },
    /// The file is something else.
    #[error("this is not an XVA: {why}")]
    NotXva {
        /// What it looks like, and the remedy.
        why: &'static str,
    },
    /// A tar header makes no sense.
    #[error(
        "bad tar header at byte {offset} (after {after}): {why}; the file is damaged, copy or build it again"
    )]
    Header {
        /// Position of the header.
        offset: u64,
        /// Member before it.
        after: String,
        /// What is wrong.
        why: &'static str,
    },
    /// A member stands where another must.
    #[error(
        "{found} stands where {expected} is expected: an importer would refuse this file, build or export it again"
    )]
    Member {
        /// Name found.
        found: String,
        /// Name or description expected.
        expected: String,
    },
    /// A member's bytes are not those that were written.
    #[error(
        "member {member} is damaged: its {algorithm} is {found}, its checksum member says {expected}; copy or build the file again"
    )]
    Checksum {
        /// Name of the chunk.
        member: String,
        /// `SHA-1` or `XXH64`.
        algorithm: &'static str,
        /// Digits in the checksum member.
        expected: String,
        /// Digits computed.
        found: String,
    },
    /// A chunk does not fit its disk.
    #[error("member {member}: {why}; build or export the file again")]
    Chunk {
        /// Name of the chunk.
        member: String,
        /// What is wrong.
        why: &'static str,
    },
    /// `ova.xml` cannot be understood.
    #[error("ova.xml: {object}: {why}; build or export the file again")]
    Description {
        /// Object and field.
        object: String,
        /// What is wrong.
        why: String,
    },
    /// A disk's content is not what its template tag promises.
    #[error(
        "disk {disk} has SHA-256 {found}, the template says {expected}: do not use this file, build it again"
    )]
    Digest {
        /// Id of the disk.
        disk: String,
        /// Digest in `other_config`.
        expected: String,
        /// Digest of the bytes.
        found: String,
    },
    /// The file has fewer disks than asked for.
    #[error("the XVA has {count} disks, there is no disk number {index}")]
    NoSuchDisk {
        /// Index asked for, from 0.
        index: usize,
        /// Disks in the file.
        count: usize,
    },
    /// Something exceeds what this program takes in.
    #[error("{what} is {found}, more than the limit of {limit}")]
    Limit {
        /// What is too large.
        what: String,
        /// Size found.
        found: u64,
        /// The limit.
        limit: u64,
    },
}
