//! Writing: one pass over the image to plan, one to write.
//!
//! The plan knows the length of the file before a byte is written, which an HTTP import needs. The second
//! pass hashes again: an image that changed in between is an error, not a file with a false digest.

use std::io::{Read, Seek, SeekFrom, Write};

use crate::appliance::{Appliance, VDI_ID};
use crate::checksum::{DiskDigest, sha1_hex};
use crate::ustar::{self, BLOCK};
use crate::{CHUNK_BYTES, DISK_LIMIT_BYTES, Error, Result};

/// Length of a `.checksum` member.
const CHECKSUM_BYTES: u64 = 40;

/// Everything about the file but its chunks.
#[derive(Debug, Clone)]
pub struct Plan {
    ova_xml: String,
    digest_hex: String,
    /// One entry per chunk: whether the file holds it.
    kept: Vec<bool>,
}

impl Plan {
    /// Reads the image once, from its start. Its size is rounded up to whole chunks with zeros.
    pub fn new<R: Read + Seek>(appliance: &Appliance, image: &mut R) -> Result<Self> {
        let image_bytes =
            image.seek(SeekFrom::End(0)).map_err(|source| Error::Image { offset: 0, source })?;
        if image_bytes == 0 || image_bytes > DISK_LIMIT_BYTES {
            return Err(Error::ImageSize { bytes: image_bytes, limit: DISK_LIMIT_BYTES });
        }
        let chunk_count = image_bytes.div_ceil(CHUNK_BYTES as u64);
        let mut digest = DiskDigest::new();
        let mut kept = Vec::new();
        let mut chunks = Chunks::new(image)?;
        for index in 0..chunk_count {
            let chunk = chunks.next()?;
            digest.update(chunk);
            // The importer needs the first and the last chunk even when they are zero.
            let at_end = index == 0 || index + 1 == chunk_count;
            kept.push(at_end || chunk.iter().any(|byte| *byte != 0));
        }
        let digest_hex = digest.finish_hex();
        let ova_xml = appliance.ova_xml(chunk_count * CHUNK_BYTES as u64, &digest_hex)?;
        Ok(Self { ova_xml, digest_hex, kept })
    }

    /// Length of the whole file.
    pub fn content_length(&self) -> u64 {
        let chunk = ustar::member_bytes(CHUNK_BYTES as u64) + ustar::member_bytes(CHECKSUM_BYTES);
        let kept = self.kept.iter().filter(|kept| **kept).count() as u64;
        ustar::member_bytes(self.ova_xml.len() as u64) + kept * chunk + 2 * BLOCK as u64
    }

    /// SHA-256 of the disk with its padding, 64 lower-case hex digits.
    pub fn digest_hex(&self) -> &str {
        &self.digest_hex
    }

    /// Size of the disk: the image rounded up to whole chunks.
    pub fn disk_bytes(&self) -> u64 {
        self.kept.len() as u64 * CHUNK_BYTES as u64
    }

    /// The description that opens the file.
    pub fn ova_xml(&self) -> &str {
        &self.ova_xml
    }

    /// Writes the file. After an error `out` holds a useless part of it: write to a temporary name.
    pub fn write<R: Read + Seek, W: Write>(&self, image: &mut R, out: &mut W) -> Result<()> {
        write_member(out, "ova.xml", self.ova_xml.as_bytes())?;
        let mut digest = DiskDigest::new();
        let mut chunks = Chunks::new(image)?;
        for (index, kept) in self.kept.iter().enumerate() {
            let chunk = chunks.next()?;
            digest.update(chunk);
            if *kept {
                let name = format!("{VDI_ID}/{index:08}");
                write_member(out, &name, chunk)?;
                write_member(out, &format!("{name}.checksum"), sha1_hex(chunk).as_bytes())?;
            }
        }
        if digest.finish_hex() != self.digest_hex {
            return Err(Error::ImageChanged);
        }
        out.write_all(&[0; 2 * BLOCK]).map_err(Error::Output)?;
        out.flush().map_err(Error::Output)
    }
}

fn write_member<W: Write>(out: &mut W, name: &str, content: &[u8]) -> Result<()> {
    let length = content.len() as u64;
    out.write_all(&ustar::encode(name, length)).map_err(Error::Output)?;
    out.write_all(content).map_err(Error::Output)?;
    out.write_all(&[0; BLOCK][..ustar::padding(length)]).map_err(Error::Output)
}

/// The image as chunks of equal size; past its end come zeros.
struct Chunks<'a, R> {
    image: &'a mut R,
    offset: u64,
    buffer: Vec<u8>,
}

impl<'a, R: Read + Seek> Chunks<'a, R> {
    fn new(image: &'a mut R) -> Result<Self> {
        image.rewind().map_err(|source| Error::Image { offset: 0, source })?;
        Ok(Self { image, offset: 0, buffer: vec![0; CHUNK_BYTES] })
    }

    fn next(&mut self) -> Result<&[u8]> {
        self.buffer.clear();
        let count = self
            .image
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut self.buffer)
            .map_err(|source| Error::Image { offset: self.offset, source })?;
        self.offset += count as u64;
        self.buffer.resize(CHUNK_BYTES, 0);
        Ok(&self.buffer)
    }
}
