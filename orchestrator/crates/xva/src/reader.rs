//! Reading: one pass, in the order of the file, every byte checked before it is handed out.
//!
//! The rules are the importer's: chunk numbers rise, numbers left out are zeros of the size of the first
//! chunk in the file, the first chunk is present and the chunks cover the disk exactly.

use std::io::{self, Read, Write};

use crate::checksum::{DiskDigest, sha1_hex, xxh64_hex};
use crate::description::{Description, Disk, describe, read_description};
use crate::node::Node;
use crate::ustar::{self, BLOCK, Header, Parsed};
use crate::{CHUNK_LIMIT_BYTES, Error, OVA_XML_LIMIT_BYTES, Result};

/// Zeros are written out in pieces of this size.
const ZERO_STEP: usize = 1 << 16;

/// An XVA being read.
#[derive(Debug)]
pub struct Reader<R> {
    input: Input<R>,
    description: Description,
}

/// Bytes of one disk, in order.
enum Piece<'a> {
    Bytes(&'a [u8]),
    Zeros(u64),
}

impl<R: Read> Reader<R> {
    /// Reads `ova.xml`, the first member.
    pub fn open(inner: R) -> Result<Self> {
        let mut input = Input { inner, offset: 0, member: "the first header".to_owned() };
        let Some(header) = input.first_header()? else {
            return Err(Error::NotXva { why: "it is an empty tar file" });
        };
        if header.name != "ova.xml" {
            return Err(Error::Member { found: header.name, expected: "ova.xml".to_owned() });
        }
        if header.bytes > OVA_XML_LIMIT_BYTES {
            return Err(Error::Limit {
                what: "ova.xml".to_owned(),
                found: header.bytes,
                limit: OVA_XML_LIMIT_BYTES,
            });
        }
        let content = input.content(header.bytes)?;
        let text = String::from_utf8(content).map_err(|_| describe("the file", "it is not UTF-8 text"))?;
        let root = Node::from_xml(&text).map_err(|why| describe("the file", why))?;
        Ok(Self { input, description: read_description(&root)? })
    }

    /// What `ova.xml` says.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Reads the whole file: order, coverage, every checksum, and the template's digest when it has one.
    pub fn verify(self) -> Result<Description> {
        self.run(|_, _| Ok(()))
    }

    /// Like [`verify`](Self::verify), and writes one disk out, zeros included. `index` counts
    /// [`Description::disks`] from 0. After an error `out` holds a part of the disk.
    pub fn extract_disk<W: Write>(self, index: usize, out: &mut W) -> Result<Description> {
        let count = self.description.disks.len();
        let Some(disk) = self.description.disks.get(index).map(|disk| disk.id.clone()) else {
            return Err(Error::NoSuchDisk { index, count });
        };
        let failed = |source| Error::Extract { disk: disk.clone(), source };
        let description = self.run(|at, piece| match piece {
            _ if at != index => Ok(()),
            Piece::Bytes(bytes) => out.write_all(bytes).map_err(failed),
            Piece::Zeros(count) => write_zeros(out, count).map_err(failed),
        })?;
        out.flush().map_err(failed)?;
        Ok(description)
    }

    fn run(mut self, mut sink: impl FnMut(usize, Piece<'_>) -> Result<()>) -> Result<Description> {
        let expected_digest = self.description.digest.clone().filter(|_| self.description.disks.len() == 1);
        let mut unit = None;
        for (index, disk) in self.description.disks.iter().enumerate() {
            let mut digest = expected_digest.as_ref().map(|_| DiskDigest::new());
            read_disk(&mut self.input, disk, &mut unit, |piece| {
                match (&piece, &mut digest) {
                    (Piece::Bytes(bytes), Some(digest)) => digest.update(bytes),
                    (Piece::Zeros(count), Some(digest)) => digest.update_zeros(*count),
                    (_, None) => {}
                }
                sink(index, piece)
            })?;
            if let (Some(digest), Some(expected)) = (digest, &expected_digest) {
                let found = digest.finish_hex();
                if found != *expected {
                    return Err(Error::Digest { disk: disk.id.clone(), expected: expected.clone(), found });
                }
            }
        }
        if let Some(header) = self.input.header()? {
            return Err(Error::Member { found: header.name, expected: "the end of the file".to_owned() });
        }
        Ok(self.description)
    }
}

/// Reads all chunks of a disk. `unit` is the size of the first chunk of the file.
fn read_disk<R: Read>(
    input: &mut Input<R>,
    disk: &Disk,
    unit: &mut Option<u64>,
    mut sink: impl FnMut(Piece<'_>) -> Result<()>,
) -> Result<()> {
    let mut covered = 0_u64;
    let mut next_number = 0_u64;
    while covered < disk.size_bytes {
        let expected = || format!("a chunk of disk {}", disk.id);
        let Some(header) = input.header()? else {
            return Err(Error::Member { found: "the end of the file".to_owned(), expected: expected() });
        };
        let Some(number) = chunk_number(&header.name, &disk.id) else {
            return Err(Error::Member { found: header.name, expected: expected() });
        };
        let bad = |why| Error::Chunk { member: header.name.clone(), why };
        if header.bytes > CHUNK_LIMIT_BYTES {
            return Err(Error::Limit {
                what: header.name.clone(),
                found: header.bytes,
                limit: CHUNK_LIMIT_BYTES,
            });
        }
        let skipped = number.checked_sub(next_number).ok_or_else(|| bad("its number does not rise"))?;
        if next_number == 0 && skipped > 0 {
            return Err(bad("the first chunk of the disk is missing"));
        }
        let zeros = match (skipped, *unit) {
            (0, _) => 0,
            (_, None) => return Err(bad("it follows a gap, but no chunk before it gives the chunk size")),
            (_, Some(unit)) => {
                skipped.checked_mul(unit).ok_or_else(|| bad("it lies beyond the end of its disk"))?
            }
        };
        let end = covered.checked_add(zeros).and_then(|at| at.checked_add(header.bytes));
        let end = end
            .filter(|end| *end <= disk.size_bytes)
            .ok_or_else(|| bad("it lies beyond the end of its disk"))?;
        let content = input.content(header.bytes)?;
        check(input, &header.name, &content)?;
        if zeros > 0 {
            sink(Piece::Zeros(zeros))?;
        }
        sink(Piece::Bytes(&content))?;
        // An empty chunk keeps a slow connection alive; it uses up a number and nothing else.
        if header.bytes > 0 && unit.is_none() {
            *unit = Some(header.bytes);
        }
        covered = end;
        next_number = number + 1;
    }
    Ok(())
}

/// Reads the member after a chunk and compares.
fn check<R: Read>(input: &mut Input<R>, chunk: &str, content: &[u8]) -> Result<()> {
    let expected_name = || format!("{chunk}.checksum");
    let Some(header) = input.header()? else {
        return Err(Error::Member { found: "the end of the file".to_owned(), expected: expected_name() });
    };
    let (algorithm, found): (_, fn(&[u8]) -> String) = match header.name.strip_prefix(chunk) {
        Some(".checksum") => ("SHA-1", sha1_hex),
        Some(".xxhash") => ("XXH64", xxh64_hex),
        _ => return Err(Error::Member { found: header.name, expected: expected_name() }),
    };
    let found = found(content);
    if header.bytes != found.len() as u64 {
        return Err(Error::Chunk { member: header.name, why: "a checksum of this kind has another length" });
    }
    let expected = String::from_utf8_lossy(&input.content(header.bytes)?).into_owned();
    if expected.eq_ignore_ascii_case(&found) {
        return Ok(());
    }
    Err(Error::Checksum {
        member: chunk.to_owned(),
        algorithm,
        expected: expected.escape_debug().to_string(),
        found,
    })
}

fn chunk_number(name: &str, disk_id: &str) -> Option<u64> {
    let digits = name.strip_prefix(disk_id)?.strip_prefix('/')?;
    (digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

fn write_zeros<W: Write>(out: &mut W, mut count: u64) -> io::Result<()> {
    static ZEROS: [u8; ZERO_STEP] = [0; ZERO_STEP];
    while count > 0 {
        let step = count.min(ZERO_STEP as u64);
        out.write_all(&ZEROS[..step as usize])?;
        count -= step;
    }
    Ok(())
}

/// The file, with the position and the member for errors.
#[derive(Debug)]
struct Input<R> {
    inner: R,
    offset: u64,
    member: String,
}

impl<R: Read> Input<R> {
    /// The first header, with the mistakes people make.
    fn first_header(&mut self) -> Result<Option<Header>> {
        let block = self.block()?;
        let why = match block {
            [0x1f, 0x8b, ..] => {
                Some("it is compressed with gzip; unpack it first (gzip -dc FILE > FILE.xva)")
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                Some("it is compressed with zstd; unpack it first (zstd -dc FILE > FILE.xva)")
            }
            _ if ustar::decode(&block).is_err() => Some("it does not begin with a tar header"),
            _ => None,
        };
        match why {
            Some(why) => Err(Error::NotXva { why }),
            None => self.parse(&block),
        }
    }

    /// The next header, none at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let block = self.block()?;
        self.parse(&block)
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        Ok(block)
    }

    fn parse(&mut self, block: &[u8; BLOCK]) -> Result<Option<Header>> {
        let offset = self.offset - BLOCK as u64;
        let parsed =
            ustar::decode(block).map_err(|why| Error::Header { offset, after: self.member.clone(), why })?;
        match parsed {
            Parsed::Member(header) => {
                self.member = format!("member {}", header.name);
                Ok(Some(header))
            }
            Parsed::End => {
                self.member = "the end mark".to_owned();
                match self.block()?.iter().all(|byte| *byte == 0) {
                    true => Ok(None),
                    false => Err(Error::Header {
                        offset: offset + BLOCK as u64,
                        after: "a block of zeros".to_owned(),
                        why: "the end mark is not two blocks of zeros",
                    }),
                }
            }
        }
    }

    /// A member's bytes. The caller has checked the size against a limit.
    fn content(&mut self, bytes: u64) -> Result<Vec<u8>> {
        let mut content = vec![0; usize::try_from(bytes).expect("limits are far below the address space")];
        self.fill(&mut content)?;
        let mut padding = [0; BLOCK];
        self.fill(&mut padding[..ustar::padding(bytes)])?;
        Ok(content)
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            match self.inner.read(buffer) {
                Ok(0) => return Err(Error::Truncated { offset: self.offset, member: self.member.clone() }),
                Ok(count) => {
                    self.offset += count as u64;
                    buffer = &mut buffer[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Input { offset: self.offset, source }),
            }
        }
        Ok(())
    }
}
