//! `GET /export_raw_vdi`: a disk as raw bytes or as a dynamic or differencing VHD.

use super::{Transfer, vhd};
use crate::failure::{Failure, Outcome};
use crate::http::wire::{BlockingWriter, Head, Stream};
use crate::rpc::value::Value;
use crate::sim::{Context, Sim};
use crate::storage::chain::BLOCK;
use crate::storage::{disk, hidden, sr, track, vdi};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

const CHUNK: usize = 1 << 20;
/// Above this a VHD cannot describe the disk.
const MAX_VHD_BYTES: u64 = 2040 << 30;

/// A disk attached to the control domain for the time of a transfer.
pub(super) struct Held {
    context: Context,
    vdi: String,
}

impl Held {
    pub(super) fn new(context: &Context, vdi: &str) -> Self {
        context.with(|s| *s.exports.entry(vdi.to_owned()).or_insert(0) += 1);
        Self { context: context.clone(), vdi: vdi.to_owned() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.context.with(|s| {
            if let Some(count) = s.exports.get_mut(&self.vdi) {
                *count -= 1;
                if *count == 0 {
                    s.exports.remove(&self.vdi);
                }
            }
        });
    }
}

/// What to send.
struct Plan {
    file: File,
    size: u64,
    /// For VHD: identity, base identity, and the blocks.
    vhd: Option<vhd::Layout>,
    held: Vec<Held>,
}

pub(super) async fn serve(transfer: &Transfer, mut stream: Stream, head: &Head) -> std::io::Result<Stream> {
    let context = &transfer.context;
    let format = head.param("format").unwrap_or_else(|| "raw".into());
    let content_type = match format.as_str() {
        "raw" => "application/octet-stream",
        "vhd" => "application/vhd",
        _ => return transfer.refuse(stream, 404, Failure::internal("unknown format")).await,
    };
    let named = head.param("vdi").unwrap_or_default();
    let (target, base) = match context.with(|s| -> Outcome<_> {
        let target = s.db.by_ref_or_uuid("VDI", &named)?;
        let base = head.param("base").map(|b| s.db.by_ref_or_uuid("VDI", &b)).transpose()?;
        Ok((target, base))
    }) {
        Ok(found) => found,
        Err(failure) => return transfer.refuse(stream, 404, failure).await,
    };
    transfer.accept(&mut stream, content_type).await?;
    if transfer.strikes_before() {
        transfer.finish(Ok(Value::void()));
        return Ok(stream);
    }
    let (stream, outcome) = match plan(context, &target, base.as_deref(), format == "vhd").await {
        Err(failure) => (stream, Err(failure)),
        Ok(plan) => {
            let mut writer = BlockingWriter::new(stream, transfer.fault.cut_after);
            let inner = context.clone();
            let work = move || {
                let sent = send(&inner, &mut writer, &plan).map(|()| Value::void());
                drop(plan.held);
                (writer.into_stream(), sent)
            };
            Sim::blocking(work).await
        }
    };
    transfer.finish(outcome);
    Ok(stream)
}

async fn plan(context: &Context, target: &str, base: Option<&str>, as_vhd: bool) -> Outcome<Plan> {
    let disks: Vec<&str> = std::iter::once(target).chain(base).collect();
    for disk in &disks {
        context.with(|s| {
            vdi::refuse_type(&s.db, disk, &["cbt_metadata"])?;
            hidden::assert_managed(&s.db, disk)?;
            if vdi::written_to(&s.db, disk) {
                return Err(Failure::new("VDI_IN_USE", [*disk]));
            }
            sr::assert_plugged(&s.db, &s.db.text("VDI", disk, "SR"))
        })?;
    }
    let held = disks.iter().map(|disk| Held::new(context, disk)).collect();
    for disk in &disks {
        track::settle(context, disk).await?;
    }
    let path = context.with(|s| vdi::path_of(&context.sim.config, &s.db, target));
    let file = File::open(&path).map_err(|e| Failure::disk("open the disk", &e))?;
    let size = file.metadata().map_err(|e| Failure::disk("open the disk", &e))?.len();
    if !as_vhd {
        return Ok(Plan { file, size, vhd: None, held });
    }
    if size > MAX_VHD_BYTES {
        return Err(Failure::new("VDI_TOO_LARGE", [target, &MAX_VHD_BYTES.to_string()]));
    }
    let uuid = |vdi: &str| context.with(|s| s.db.text("VDI", vdi, "uuid"));
    let blocks = match base {
        Some(base) => {
            let (base, target) = (uuid(base), uuid(target));
            let found = context.with(|s| s.chains.difference(&base, &target));
            found.ok_or_else(|| Failure::internal("the disks have no common ancestor"))?
        }
        None => written_blocks(&file).map_err(|e| Failure::disk("read the disk", &e))?,
    };
    let parent = base.map(uuid);
    let blocks = blocks.into_iter().filter(|b| u64::from(*b) * BLOCK < size).collect();
    let layout = vhd::Layout { size, uuid: uuid(target), parent, blocks };
    Ok(Plan { file, size, vhd: Some(layout), held })
}

/// The blocks that are not only holes.
fn written_blocks(file: &File) -> std::io::Result<BTreeSet<u32>> {
    let mut blocks = BTreeSet::new();
    for (start, end) in disk::extents(file)? {
        blocks.extend((start / BLOCK..end.div_ceil(BLOCK)).filter_map(|b| u32::try_from(b).ok()));
    }
    Ok(blocks)
}

fn send(context: &Context, writer: &mut impl Write, plan: &Plan) -> Outcome<()> {
    let failed = |e: std::io::Error| Failure::new("VDI_IO_ERROR", [e.to_string()]);
    match &plan.vhd {
        None => send_range(context, writer, plan, 0, plan.size)?,
        Some(layout) => {
            writer.write_all(&layout.head()).map_err(failed)?;
            for block in &layout.blocks {
                writer.write_all(&vhd::SECTOR_BITMAP).map_err(failed)?;
                let start = u64::from(*block) * BLOCK;
                let end = (start + BLOCK).min(plan.size);
                send_range(context, writer, plan, start, end)?;
                // The last block of a disk is whole in the file and zero behind the disk's end.
                let rest = usize::try_from(start + BLOCK - end).unwrap_or_default();
                writer.write_all(&vec![0; rest]).map_err(failed)?;
            }
            writer.write_all(&layout.footer()).map_err(failed)?;
        }
    }
    writer.flush().map_err(failed)
}

fn send_range(context: &Context, writer: &mut impl Write, plan: &Plan, start: u64, end: u64) -> Outcome<()> {
    let failed = |e: std::io::Error| Failure::new("VDI_IO_ERROR", [e.to_string()]);
    let mut buffer = vec![0; CHUNK];
    let mut at = start;
    while at < end {
        context.check_cancelled()?;
        let count = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
        plan.file.read_exact_at(&mut buffer[..count], at).map_err(failed)?;
        writer.write_all(&buffer[..count]).map_err(failed)?;
        at += count as u64;
        context.progress(at as f64 / plan.size as f64);
    }
    Ok(())
}
