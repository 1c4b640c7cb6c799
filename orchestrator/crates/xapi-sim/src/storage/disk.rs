//! Disk files: sparse raw images whose holes stay holes.
//!
//! Owns reading, writing, copying and measuring them; a copy costs what the file holds, not what it could hold.
//! Knows no VDI record.

use ring::digest::{Context, SHA256};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, ioctl_ficlone, seek};
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// The block of change tracking and of the lab's own comparisons.
pub(crate) const GRANULE: u64 = 65_536;
/// Buffer of every loop over a file.
const CHUNK: usize = 1 << 20;

/// Opens a disk for reading and writing.
pub(crate) fn open(path: &Path) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Makes an empty disk of `size` bytes. An existing file is an error.
pub(crate) fn create(path: &Path, size: u64) -> Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.set_len(size)
}

/// Bytes the file occupies.
pub(crate) fn occupied(path: &Path) -> u64 {
    std::fs::metadata(path).map(|m| m.blocks() * 512).unwrap_or(0)
}

/// The parts of a file that are not holes, as (offset, end).
pub(crate) fn extents(file: &File) -> Result<Vec<(u64, u64)>> {
    let size = file.metadata()?.len();
    let mut parts = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        parts.push((start, end));
        at = end;
    }
    Ok(parts)
}

/// Copies a disk with its holes; the target has the source's size afterwards.
pub(crate) fn copy(source: &Path, target: &Path) -> Result<()> {
    let from = File::open(source)?;
    let to = OpenOptions::new().read(true).write(true).create_new(true).open(target)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    to.set_len(from.metadata()?.len())?;
    copy_extents(&from, &to)
}

/// Copies the data of one disk over another that is as large and holds nothing.
pub(crate) fn copy_extents(from: &File, to: &File) -> Result<()> {
    for (start, end) in extents(from)? {
        let (mut read, mut written) = (start, start);
        while read < end {
            let wanted = usize::try_from(end - read).unwrap_or(usize::MAX).min(1 << 30);
            match copy_file_range(from, Some(&mut read), to, Some(&mut written), wanted) {
                Ok(0) => return Err(Error::from(ErrorKind::UnexpectedEof)),
                Ok(_) => {}
                // Across file systems, or a file system without the call.
                Err(_) => return copy_by_hand(from, to, read, end),
            }
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, start: u64, end: u64) -> Result<()> {
    each_chunk(from, start, end, |at, bytes| to.write_all_at(bytes, at))?;
    for (start, end) in extents(from)?.into_iter().filter(|(start, _)| *start >= end) {
        each_chunk(from, start, end, |at, bytes| to.write_all_at(bytes, at))?;
    }
    Ok(())
}

fn each_chunk(
    file: &File,
    start: u64,
    end: u64,
    mut work: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..count], at)?;
        work(at, &buffer[..count])?;
        at += count as u64;
    }
    Ok(())
}

/// Makes a range read as zeros and gives its space back.
pub(crate) fn zero(file: &File, offset: u64, length: u64) -> Result<()> {
    if length == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(file, flags, offset, length).map_err(Error::from)
}

/// Whether every byte is zero. Compared piece by piece with zeros: fast in unoptimised builds too.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    static ZEROS: [u8; GRANULE as usize] = [0; GRANULE as usize];
    bytes.chunks(ZEROS.len()).all(|piece| piece == &ZEROS[..piece.len()])
}

/// SHA-256 of the whole disk, holes hashed as zeros, in lower-case hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<(u64, String)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut context = Context::new(&SHA256);
    let zeros = vec![0; CHUNK];
    let mut at = 0;
    for (start, end) in extents(&file)?.into_iter().chain([(size, size)]) {
        while at < start {
            let count = usize::try_from(start - at).unwrap_or(CHUNK).min(CHUNK);
            context.update(&zeros[..count]);
            at += count as u64;
        }
        each_chunk(&file, start, end, |_, bytes| {
            context.update(bytes);
            Ok(())
        })?;
        at = end;
    }
    Ok((size, hex(context.finish().as_ref())))
}

/// Calls `work` with the index and bytes of every granule that is not all zeros.
pub(crate) fn each_granule(path: &Path, mut work: impl FnMut(u64, &[u8])) -> Result<()> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut next = 0;
    for (start, end) in extents(&file)? {
        // Holes begin and end at file-system blocks; widen to granules and never visit one twice.
        let first = (start / GRANULE * GRANULE).max(next);
        let last = end.div_ceil(GRANULE).saturating_mul(GRANULE).min(size);
        if first >= last {
            continue;
        }
        each_chunk(&file, first, last, |at, bytes| {
            for (index, granule) in bytes.chunks(GRANULE as usize).enumerate() {
                if !is_zero(granule) {
                    work(at / GRANULE + index as u64, granule);
                }
            }
            Ok(())
        })?;
        next = last;
    }
    Ok(())
}

/// A digest of the non-zero granules with their positions and the size: equal for equal disks, cheap for sparse ones.
pub(crate) fn sparse_sha256(path: &Path) -> Result<String> {
    let mut context = Context::new(&SHA256);
    context.update(&std::fs::metadata(path)?.len().to_le_bytes());
    each_granule(path, |index, bytes| {
        context.update(&index.to_le_bytes());
        context.update(bytes);
    })?;
    Ok(hex(context.finish().as_ref()))
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn copying_a_huge_sparse_disk_costs_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        create(&a, 2 << 40).unwrap();
        let file = open(&a).unwrap();
        for offset in [0, 1 << 30, (2 << 40) - 512] {
            file.write_all_at(&[7; 512], offset).unwrap();
        }
        let started = Instant::now();
        copy(&a, &b).unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        assert!(occupied(&b) < 1 << 20);
        assert_eq!(sparse_sha256(&a).unwrap(), sparse_sha256(&b).unwrap());
        let mut last = [0; 512];
        open(&b).unwrap().read_exact_at(&mut last, (2 << 40) - 512).unwrap();
        assert_eq!(last, [7; 512]);
    }

    #[test]
    fn the_digest_counts_holes_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        create(&path, 3).unwrap();
        // sha256 of three zero bytes, from sha256sum.
        let expected = "709e80c88487a2411e1ee4dfb9f22a861492d20c4765150c0c794abd70f8147c";
        assert_eq!(sha256(&path).unwrap(), (3, expected.to_owned()));
    }

    #[test]
    fn granules_are_visited_once_and_only_when_not_zero() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        create(&path, 5 * GRANULE + 100).unwrap();
        let file = open(&path).unwrap();
        file.write_all_at(&[1; 4096], GRANULE).unwrap();
        file.write_all_at(&[1; 4096], 2 * GRANULE - 4096).unwrap();
        file.write_all_at(&[0; 4096], 3 * GRANULE).unwrap();
        file.write_all_at(&[9; 100], 5 * GRANULE).unwrap();
        let mut seen = Vec::new();
        each_granule(&path, |index, bytes| seen.push((index, bytes.len()))).unwrap();
        assert_eq!(seen, [(1, 65_536), (5, 100)]);
    }
}
