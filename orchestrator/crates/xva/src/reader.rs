//! Reading: one pass, in the order of the file, every byte checked before it is handed out.
//!
//! The rules are the importer's: chunk numbers rise, numbers left out are zeros of the size of the first
//! chunk in the file, the first chunk is present and the chunks cover the disk exactly.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use crate::appliance::{DIGEST_KEY, Firmware, TEMPLATE_KEY};
use crate::checksum::{DiskDigest, sha1_hex, xxh64_hex};
use crate::node::Node;
use crate::ustar::{self, BLOCK, Header, Parsed};
use crate::{CHUNK_LIMIT_BYTES, DISK_COUNT_LIMIT, Error, OVA_XML_LIMIT_BYTES, Result};

/// Oldest export version with inline checksums.
const EXPORT_VERSION: u64 = 2;

/// Zeros are written out in pieces of this size.
const ZERO_STEP: usize = 1 << 16;

/// What an XVA holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// `name_label` of the VM.
    pub name: String,
    /// `name_description` of the VM.
    pub description: String,
    /// Version of our template, if it is one.
    pub template_version: Option<String>,
    /// SHA-256 of the boot disk as the template states it, hex digits.
    pub digest: Option<String>,
    /// Static memory maximum.
    pub memory_bytes: u64,
    /// Virtual CPUs at start.
    pub vcpus: u64,
    /// Firmware; none for a VM that is not HVM.
    pub firmware: Option<Firmware>,
    /// Whether the import gives a template.
    pub is_template: bool,
    /// The VM's `other_config`.
    pub other_config: BTreeMap<String, String>,
    /// Disks in the order of the file.
    pub disks: Vec<Disk>,
}

/// One disk of an XVA.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Id in the file, the folder of its chunks.
    pub id: String,
    /// `name_label` of the VDI.
    pub name: String,
    /// Virtual size.
    pub size_bytes: u64,
    /// Position on the VM.
    pub userdevice: String,
    /// Whether the VM boots from it.
    pub bootable: bool,
}

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

fn describe(object: impl Into<String>, why: impl Into<String>) -> Error {
    Error::Description { object: object.into(), why: why.into() }
}

fn read_description(root: &Node) -> Result<Description> {
    let version = root.get("version").ok_or_else(|| describe("version", "is missing"))?;
    let export_version = number(version, "version", "export_vsn")?;
    if export_version < EXPORT_VERSION {
        return Err(describe(
            "version",
            format!("export_vsn {export_version} has its checksums at the end, which is not supported"),
        ));
    }
    let Some(Node::Array(objects)) = root.get("objects") else {
        return Err(describe("objects", "is missing or not a list"));
    };
    let mut by_class: BTreeMap<&str, Vec<(&str, &Node)>> = BTreeMap::new();
    for object in objects {
        let class = object
            .get("class")
            .and_then(Node::as_text)
            .ok_or_else(|| describe("an object", "has no class"))?;
        let id =
            object.get("id").and_then(Node::as_text).ok_or_else(|| describe("an object", "has no id"))?;
        let record = object.get("snapshot").ok_or_else(|| describe(id, "has no record"))?;
        by_class.entry(class).or_default().push((id, record));
    }
    let empty = Vec::new();
    let class = |name| by_class.get(name).unwrap_or(&empty);
    let flag = |record: &Node, name| record.get(name) == Some(&Node::Bool(true));
    let vms = class("VM");
    let (vm_id, vm) = *vms
        .iter()
        .find(|(_, vm)| !flag(vm, "is_a_snapshot"))
        .or(vms.first())
        .ok_or_else(|| describe("objects", "there is no VM"))?;
    let other_config = string_map(vm, vm_id, "other_config")?;
    Ok(Description {
        name: string(vm, vm_id, "name_label")?,
        description: string(vm, vm_id, "name_description").unwrap_or_default(),
        template_version: other_config.get(TEMPLATE_KEY).cloned(),
        digest: other_config.get(DIGEST_KEY).cloned(),
        memory_bytes: number(vm, vm_id, "memory_static_max")?,
        vcpus: number(vm, vm_id, "VCPUs_at_startup")?,
        firmware: firmware(vm, vm_id),
        is_template: flag(vm, "is_a_template"),
        other_config,
        disks: read_disks(class("VBD"), class("VDI"))?,
    })
}

/// The VDIs that a disk VBD uses; those in drives come from a library, not from the file.
fn read_disks(vbds: &[(&str, &Node)], vdis: &[(&str, &Node)]) -> Result<Vec<Disk>> {
    let mut disks = BTreeMap::new();
    for (vbd_id, vbd) in vbds {
        let word = |name| vbd.get(name).and_then(Node::as_text).unwrap_or_default();
        if word("type") != "Disk" || vbd.get("empty") == Some(&Node::Bool(true)) {
            continue;
        }
        let id = string(vbd, vbd_id, "VDI")?;
        let Some((_, vdi)) = vdis.iter().find(|(vdi_id, _)| *vdi_id == id) else {
            return Err(describe(*vbd_id, format!("its VDI {id} is not in the file")));
        };
        let disk = Disk {
            name: string(vdi, &id, "name_label").unwrap_or_default(),
            size_bytes: number(vdi, &id, "virtual_size")?,
            userdevice: word("userdevice").to_owned(),
            bootable: vbd.get("bootable") == Some(&Node::Bool(true)),
            id: id.clone(),
        };
        disks.insert(id, disk);
        if disks.len() > DISK_COUNT_LIMIT {
            let limit = DISK_COUNT_LIMIT as u64;
            return Err(Error::Limit { what: "number of disks".to_owned(), found: limit + 1, limit });
        }
    }
    Ok(disks.into_values().collect())
}

fn firmware(vm: &Node, vm_id: &str) -> Option<Firmware> {
    let policy = vm.get("HVM_boot_policy").and_then(Node::as_text).unwrap_or_default();
    if policy.is_empty() {
        return None;
    }
    let params = string_map(vm, vm_id, "HVM_boot_params").unwrap_or_default();
    match params.get("firmware").map(String::as_str) {
        Some("uefi") => Some(Firmware::Uefi),
        _ => Some(Firmware::Bios),
    }
}

fn string(record: &Node, id: &str, field: &str) -> Result<String> {
    let value = record.get(field).and_then(Node::as_text);
    value.map(str::to_owned).ok_or_else(|| describe(format!("{id}.{field}"), "is missing or not a text"))
}

fn number(record: &Node, id: &str, field: &str) -> Result<u64> {
    let value = record.get(field).and_then(Node::as_text).and_then(|text| text.trim().parse().ok());
    value.ok_or_else(|| describe(format!("{id}.{field}"), "is missing or not a whole number"))
}

fn string_map(record: &Node, id: &str, field: &str) -> Result<BTreeMap<String, String>> {
    let bad = || describe(format!("{id}.{field}"), "is missing or not a map of texts");
    let Some(Node::Struct(members)) = record.get(field) else { return Err(bad()) };
    members
        .iter()
        .map(|(key, value)| Ok((key.clone(), value.as_text().ok_or_else(bad)?.to_owned())))
        .collect()
}
