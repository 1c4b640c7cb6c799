//! A disk as its VM's user sees it: reads and writes that change tracking notices.

use super::{bad, number};
use crate::failure::{Failure, Outcome};
use crate::http::wire::{Head, Stream};
use crate::sim::{Context, Sim, State};
use crate::storage::{disk, vdi};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tokio::io::AsyncReadExt;

/// One read answers at most so much.
const MAX_READ_BYTES: u64 = 256 << 20;
/// Buffer of a write.
const CHUNK: usize = 1 << 20;

/// One disk.
pub(super) struct Disk {
    pub(super) context: Context,
    pub(super) vdi: String,
    pub(super) uuid: String,
    path: PathBuf,
    pub(super) size: u64,
}

impl Disk {
    pub(super) fn find(context: &Context, uuid: &str) -> Outcome<Self> {
        context.with(|s| {
            let vdi = s.db.by_ref_or_uuid("VDI", uuid)?;
            if s.db.text("VDI", &vdi, "type") == "cbt_metadata" {
                return Err(Failure::new("VDI_INCOMPATIBLE_TYPE", [vdi.as_str(), "cbt_metadata"]));
            }
            Ok(Self {
                uuid: s.db.text("VDI", &vdi, "uuid"),
                path: vdi::path_of(&context.sim.config, &s.db, &vdi),
                size: u64::try_from(s.db.int("VDI", &vdi, "virtual_size")).unwrap_or_default(),
                context: context.clone(),
                vdi,
            })
        })
    }

    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// A range of the query that lies inside the disk; an absent length is the rest.
    fn range(&self, head: &Head) -> Outcome<(u64, u64)> {
        let offset = number(head, "offset")?.unwrap_or(0);
        let rest =
            self.size.checked_sub(offset).ok_or_else(|| bad("the offset is past the end of the disk"))?;
        let length = number(head, "length")?.unwrap_or(rest);
        if length > rest {
            return Err(bad(format!(
                "{offset} + {length} is past the end of the disk ({} bytes)",
                self.size
            )));
        }
        Ok((offset, length))
    }

    fn assert_writable(&self) -> Outcome<()> {
        let real = |s: &mut State| vdi::writing_domain(s, &self.vdi).is_some_and(|d| d.is_real());
        if self.context.with(real) {
            return Err(bad("a real guest is writing to this disk"));
        }
        Ok(())
    }

    fn record(&self, offset: u64, length: u64) {
        self.context.with(|s| {
            s.cbt.record(&self.uuid, offset, length);
            s.chains.record(&self.uuid, offset, length);
        });
    }

    pub(super) async fn write(&self, head: &Head, stream: &mut Stream) -> Outcome<Value> {
        self.assert_writable()?;
        let length = head.content_length().ok_or_else(|| bad("Content-Length is missing"))?;
        let offset = number(head, "offset")?.unwrap_or(0);
        if offset.checked_add(length).is_none_or(|end| end > self.size) {
            return Err(bad(format!(
                "{offset} + {length} is past the end of the disk ({} bytes)",
                self.size
            )));
        }
        let file = disk::open(&self.path).map_err(|e| Failure::disk("open the disk", &e))?;
        let mut buffer = vec![0; CHUNK];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let count = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            stream.read_exact(&mut buffer[..count]).await.map_err(|e| bad(format!("read the body: {e}")))?;
            file.write_all_at(&buffer[..count], at).map_err(|e| Failure::disk("write the disk", &e))?;
            self.record(at, count as u64);
            at += count as u64;
        }
        Ok(json!({"offset": offset, "length": length}))
    }

    pub(super) async fn zero(&self, head: &Head) -> Outcome<Value> {
        self.assert_writable()?;
        let (offset, length) = self.range(head)?;
        let file = disk::open(&self.path).map_err(|e| Failure::disk("open the disk", &e))?;
        disk::zero(&file, offset, length).map_err(|e| Failure::disk("zero the disk", &e))?;
        self.record(offset, length);
        Ok(json!({"offset": offset, "length": length}))
    }

    pub(super) async fn read(&self, head: &Head) -> Outcome<Vec<u8>> {
        let (offset, length) = self.range(head)?;
        if length > MAX_READ_BYTES {
            return Err(bad(format!("at most {MAX_READ_BYTES} bytes at a time")));
        }
        let path = self.path.clone();
        let work = move || {
            let mut bytes = vec![0; usize::try_from(length).expect("the length is limited")];
            let file = std::fs::File::open(path)?;
            file.read_exact_at(&mut bytes, offset).map(|()| bytes)
        };
        Sim::blocking(work).await.map_err(|e| Failure::disk("read the disk", &e))
    }

    /// `sparse=1` leaves out the plain SHA-256, which takes long on huge disks.
    pub(super) async fn digest(&self, head: &Head) -> Outcome<Value> {
        let sparse_only = head.query("sparse").is_some_and(|v| v != "0");
        let (path, size) = (self.path.clone(), self.size);
        let work = move || {
            let sparse = disk::sparse_sha256(&path)?;
            if sparse_only {
                return Ok(json!({"size": size, "sparse_sha256": sparse}));
            }
            let (size, plain) = disk::sha256(&path)?;
            Ok(json!({"size": size, "sha256": plain, "sparse_sha256": sparse}))
        };
        Sim::blocking(work).await.map_err(|e: std::io::Error| Failure::disk("read the disk", &e))
    }

    pub(super) fn resize(&self, head: &Head) -> Outcome<Value> {
        self.assert_writable()?;
        let size = number(head, "size")?.ok_or_else(|| bad("size is missing"))?;
        let wanted = i64::try_from(size).map_err(|_| bad("the disk is too large"))?;
        vdi::resize(&self.context, &self.vdi, wanted, false)?;
        Ok(json!({"size": size}))
    }
}
