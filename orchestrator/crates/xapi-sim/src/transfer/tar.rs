//! Reading plain ustar streams, by hand: what a real server's reader accepts and no more.

use crate::failure::{Failure, Outcome};
use std::io::Read;

const BLOCK: usize = 512;
/// A tar member larger than this is no part of an XVA.
const MAX_MEMBER_BYTES: u64 = 1 << 30;

/// The header of one member.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) name: String,
    pub(super) size: u64,
}

/// A stream of members.
pub(super) struct Tar<R> {
    stream: R,
    /// Padding of the member that was read last.
    padding: u64,
}

fn eof() -> Failure {
    Failure::bare("IMPORT_ERROR_PREMATURE_EOF")
}

impl<R: Read> Tar<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream, padding: 0 }
    }

    pub(super) fn into_inner(self) -> R {
        self.stream
    }

    /// The next member, or `None` at the two zero blocks of the end.
    pub(super) fn next(&mut self) -> Outcome<Option<Member>> {
        let padding = std::mem::take(&mut self.padding);
        self.read_exact(&mut vec![0; usize::try_from(padding).unwrap_or_default()])?;
        let mut block = [0; BLOCK];
        self.read_exact(&mut block)?;
        if block.iter().all(|b| *b == 0) {
            self.read_exact(&mut block)?;
            return Ok(None);
        }
        let bad =
            |what: &str| Failure::new("IMPORT_ERROR_GENERIC", [format!("malformed tar header: {what}")]);
        let stored = octal(&block[148..156]).ok_or_else(|| bad("checksum"))?;
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(i, b)| if (148..156).contains(&i) { 32 } else { (*b).into() })
            .sum();
        if sum != stored {
            return Err(bad("the checksum does not match"));
        }
        let name = text(&block[..100]).ok_or_else(|| bad("name"))?;
        let prefix = if &block[257..262] == b"ustar" {
            text(&block[345..500]).ok_or_else(|| bad("prefix"))?
        } else {
            String::new()
        };
        let size = octal(&block[124..136]).ok_or_else(|| bad("size"))?;
        if size > MAX_MEMBER_BYTES {
            return Err(bad("the member is too large"));
        }
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        Ok(Some(Member { name, size }))
    }

    /// The contents of the member whose header was read last. Must follow it.
    pub(super) fn contents(&mut self, member: &Member) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        let count = (&mut self.stream).take(member.size).read_to_end(&mut bytes).map_err(|_| eof())?;
        if count as u64 != member.size {
            return Err(eof());
        }
        self.padding = member.size.next_multiple_of(BLOCK as u64) - member.size;
        Ok(bytes)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Outcome<()> {
        self.stream.read_exact(buffer).map_err(|_| eof())
    }
}

fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok().map(str::to_owned)
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = text(field)?;
    u64::from_str_radix(text.trim_matches([' ', '\0']), 8).ok()
}
