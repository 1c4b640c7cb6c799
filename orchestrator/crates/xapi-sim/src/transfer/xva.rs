//! The contents of an XVA: `ova.xml` as objects, then the chunks of every disk with their checksums.

use super::tar::{Member, Tar};
use crate::failure::{Failure, Outcome};
use crate::rpc::value::{Record, Value};
use crate::rpc::xml;
use crate::storage::disk::hex;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use std::io::Read;

const FIRST_MEMBER: &str = "ova.xml";
const MAX_XML_BYTES: u64 = 64 << 20;

/// One record of `ova.xml`.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) class: String,
    pub(super) id: String,
    pub(super) record: Record,
}

/// `ova.xml`.
#[derive(Debug)]
pub(super) struct Manifest {
    pub(super) objects: Vec<Object>,
}

/// Chunks of disks, in the order of the stream.
pub(super) struct Chunks<'a, R> {
    tar: &'a mut Tar<R>,
    /// A header that was read but belongs to the next disk.
    ahead: Option<Member>,
    ended: bool,
    force: bool,
    /// Names of chunks whose checksum was wrong, when `force` ignores them.
    pub(super) ignored: Vec<String>,
    /// Size of the very first chunk: the unit of skipped ones.
    unit: Option<u64>,
}

fn generic(text: impl Into<String>) -> Failure {
    Failure::new("IMPORT_ERROR_GENERIC", [text.into()])
}

/// Reads the first member and checks that this server can import what it describes.
pub(super) fn manifest<R: Read>(tar: &mut Tar<R>, own_version: (i64, i64)) -> Outcome<Manifest> {
    let member = tar.next()?.ok_or_else(|| Failure::bare("IMPORT_ERROR_PREMATURE_EOF"))?;
    if member.name != FIRST_MEMBER {
        return Err(Failure::new("IMPORT_ERROR_UNEXPECTED_FILE", [FIRST_MEMBER, &member.name]));
    }
    if member.size > MAX_XML_BYTES {
        return Err(generic("ova.xml is too large"));
    }
    let bytes = tar.contents(&member)?;
    let text = String::from_utf8(bytes).map_err(|_| generic("ova.xml is not UTF-8"))?;
    let root = xml::decode_value(&text).map_err(|e| generic(format!("ova.xml: {e}")))?;
    let root = root.as_map().ok_or_else(|| generic("ova.xml: a struct is expected"))?;
    check_version(root, own_version)?;
    let objects =
        root.get("objects").and_then(Value::as_list).ok_or_else(|| generic("ova.xml: no objects"))?;
    Ok(Manifest { objects: objects.iter().map(object).collect::<Outcome<_>>()? })
}

fn check_version(root: &Record, own: (i64, i64)) -> Outcome<()> {
    let version =
        root.get("version").and_then(Value::as_map).ok_or_else(|| generic("ova.xml: no version"))?;
    let number = |name: &str| match version.get(name) {
        Some(Value::Int(n)) => Ok(*n),
        Some(Value::Text(text)) => text.trim().parse().map_err(|_| generic(format!("ova.xml: bad {name}"))),
        _ => Err(generic(format!("ova.xml: no {name}"))),
    };
    for name in ["hostname", "date", "product_version", "product_brand", "build_number"] {
        version.get(name).and_then(Value::as_text).ok_or_else(|| generic(format!("ova.xml: no {name}")))?;
    }
    if (number("xapi_major")?, number("xapi_minor")?) > own {
        return Err(Failure::bare("IMPORT_INCOMPATIBLE_VERSION"));
    }
    match number("export_vsn")? {
        2 => Ok(()),
        _ => Err(generic("only export_vsn 2 (inline checksums) is supported")),
    }
}

fn object(value: &Value) -> Outcome<Object> {
    let map = value.as_map().ok_or_else(|| generic("ova.xml: an object is no struct"))?;
    let text = |name: &str| {
        let found = map.get(name).and_then(Value::as_text).map(str::to_owned);
        found.ok_or_else(|| generic(format!("ova.xml: an object without {name}")))
    };
    let record = map
        .get("snapshot")
        .and_then(Value::as_map)
        .ok_or_else(|| generic("ova.xml: an object without snapshot"))?;
    Ok(Object { class: text("class")?, id: text("id")?, record: record.clone() })
}

impl<'a, R: Read> Chunks<'a, R> {
    pub(super) fn new(tar: &'a mut Tar<R>, force: bool) -> Self {
        Self { tar, ahead: None, ended: false, force, ignored: Vec::new(), unit: None }
    }

    fn next_header(&mut self) -> Outcome<Option<Member>> {
        if let Some(member) = self.ahead.take() {
            return Ok(Some(member));
        }
        if self.ended {
            return Ok(None);
        }
        let next = self.tar.next()?;
        self.ended = next.is_none();
        Ok(next)
    }

    /// Reads all chunks of one disk; `write` gets the offset and the bytes. Skipped chunks are left as they are.
    pub(super) fn disk(
        &mut self,
        id: &str,
        size: u64,
        mut write: impl FnMut(u64, &[u8]) -> Outcome<()>,
    ) -> Outcome<()> {
        let mut expected = 0u64;
        let mut offset = 0u64;
        while offset < size {
            let wanted = format!("{id}/{expected:08}");
            let Some(member) = self.next_header()? else {
                return Err(Failure::bare("IMPORT_ERROR_PREMATURE_EOF"));
            };
            let number = chunk_number(&member.name, id)
                .filter(|n| *n >= expected && (*n == expected || expected > 0))
                .ok_or_else(|| Failure::new("IMPORT_ERROR_UNEXPECTED_FILE", [wanted, member.name.clone()]))?;
            let unit = *self.unit.get_or_insert(member.size);
            offset = (number - expected)
                .checked_mul(unit)
                .and_then(|skipped| offset.checked_add(skipped))
                .ok_or_else(|| generic("a chunk number is too large"))?;
            if member.size > size.saturating_sub(offset).next_multiple_of(512) {
                return Err(Failure::new(
                    "VDI_IO_ERROR",
                    [format!("{} is past the end of the disk", member.name)],
                ));
            }
            let bytes = self.tar.contents(&member)?;
            self.checksum(&member.name, &bytes)?;
            let inside = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len());
            write(offset, &bytes[..inside])?;
            offset += bytes.len() as u64;
            expected = number + 1;
        }
        Ok(())
    }

    /// Every chunk is followed by its checksum: SHA-1 in lower case or XXH64 in upper case.
    fn checksum(&mut self, name: &str, bytes: &[u8]) -> Outcome<()> {
        let member = self.next_header()?.ok_or_else(|| Failure::bare("IMPORT_ERROR_PREMATURE_EOF"))?;
        let computed = if member.name == format!("{name}.checksum") {
            hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref())
        } else if member.name == format!("{name}.xxhash") {
            format!("{:016X}", xxhash_rust::xxh64::xxh64(bytes, 0))
        } else {
            return Err(Failure::new(
                "IMPORT_ERROR_UNEXPECTED_FILE",
                [format!("{name}.checksum"), member.name],
            ));
        };
        let stored = self.tar.contents(&member)?;
        if stored == computed.as_bytes() {
            return Ok(());
        }
        if self.force {
            self.ignored.push(name.to_owned());
            return Ok(());
        }
        tracing::warn!(name, computed, "checksum mismatch");
        Err(Failure::bare("IMPORT_ERROR_SOME_CHECKSUMS_FAILED"))
    }

    /// Nothing may follow the last disk.
    pub(super) fn finish(mut self) -> Outcome<Vec<String>> {
        match self.next_header()? {
            None => Ok(self.ignored),
            Some(member) => Err(Failure::new("IMPORT_ERROR_UNEXPECTED_FILE", ["the end", &member.name])),
        }
    }
}

fn chunk_number(name: &str, id: &str) -> Option<u64> {
    let number = name.strip_prefix(id)?.strip_prefix('/')?;
    (number.len() >= 8 && number.bytes().all(|b| b.is_ascii_digit())).then(|| number.parse().ok())?
}
