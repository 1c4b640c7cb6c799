//! `PUT /import`: an XVA becomes VMs.

use super::Transfer;
use super::body::Body;
use super::objects::{Imported, create_all};
use super::tar::Tar;
use super::xva::{Chunks, manifest};
use crate::failure::{Failure, Outcome};
use crate::http::wire::{BlockingBody, Head, Stream};
use crate::lab::fate::host_address;
use crate::rpc::value::{Record, Value};
use crate::sim::{Context, Sim};
use crate::storage::{disk, space, sr, vdi};
use std::os::unix::fs::FileExt;
use tokio::runtime::Handle;

pub(super) async fn serve(transfer: &Transfer, mut stream: Stream, head: &Head) -> std::io::Result<Stream> {
    let context = &transfer.context;
    let Some(length) = head.content_length().filter(|_| !head.is_chunked()) else {
        let failure = Failure::bare("IMPORT_ERROR_CANNOT_HANDLE_CHUNKED");
        return transfer.refuse(stream, 403, failure).await;
    };
    let target = match target_sr(context, head) {
        Ok(target) => target,
        Err(failure) => return transfer.refuse(stream, 400, failure).await,
    };
    transfer.accept(&mut stream, "application/octet-stream").await?;
    let options = Options { sr: target, force: head.flag("force"), restore: head.flag("restore") };
    let body = BlockingBody::new(stream, length);
    let inner = context.clone();
    let stop = transfer.strikes_before();
    let work =
        move || if stop { (body.into_stream(), Ok(Value::void())) } else { run(&inner, body, &options) };
    let (stream, outcome) = Sim::blocking(work).await;
    transfer.finish(outcome);
    Ok(stream)
}

/// Where a host sends an import for storage that it does not see: to one that does, with the same path and query
/// (`import.ml`). None where it may be served here, or nobody sees the storage.
pub(super) fn elsewhere(context: &Context, head: &Head, host: usize) -> Option<String> {
    if head.path != "/import" {
        return None;
    }
    let sr = target_sr(context, head).ok()?;
    let address = context.with(|s| {
        let here = s.db.find("host", "address", &host_address(host).to_string());
        if here.iter().any(|host| sr::visible(&s.db, &sr, host)) {
            return None;
        }
        let other = s.db.refs("host").into_iter().find(|host| sr::visible(&s.db, &sr, host))?;
        Some(s.db.text("host", &other, "address"))
    })?;
    // A lab's hosts share a port that is not the usual one.
    let port = head.header("host").and_then(|host| host.rsplit_once(':')).map(|(_, port)| format!(":{port}"));
    Some(format!("https://{address}{}{}", port.unwrap_or_default(), head.target))
}

struct Options {
    sr: String,
    force: bool,
    restore: bool,
}

fn target_sr(context: &Context, head: &Head) -> Outcome<String> {
    context.with(|s| {
        let sr = match (head.param("sr_id"), head.param("sr_uuid")) {
            (Some(reference), _) => {
                s.db.get("SR", &reference)?;
                reference
            }
            (None, Some(uuid)) => s.db.by_uuid("SR", &uuid)?,
            (None, None) => sr::default_sr(&s.db)?,
        };
        if s.db.text("SR", &sr, "content_type") == "iso" {
            return Err(Failure::new("SR_OPERATION_NOT_SUPPORTED", [sr]));
        }
        Ok(sr)
    })
}

/// Reads the whole stream on a blocking thread and gives the connection back.
fn run(context: &Context, body: BlockingBody, options: &Options) -> (Stream, Outcome<Value>) {
    let mut body = body;
    let mut made = Imported::default();
    let outcome = read(context, &mut body, options, &mut made);
    if outcome.is_err() && !options.force {
        made.undo(context);
    }
    let vms = outcome.map(|()| Value::texts(made.vms.iter().cloned()));
    (body.into_stream(), vms)
}

fn read(context: &Context, body: &mut BlockingBody, options: &Options, made: &mut Imported) -> Outcome<()> {
    let broken = |e: std::io::Error| Failure::new("IMPORT_ERROR_GENERIC", [e.to_string()]);
    let mut tar = Tar::new(Body::open(body).map_err(broken)?);
    let api = context.sim.config.flavour.api;
    let manifest = manifest(&mut tar, (api.major.into(), api.minor.into()))?;
    let creating = create_all(context, &manifest, &options.sr, options.restore, made);
    Handle::current().block_on(creating)?;
    if let Some(task) = &context.task {
        let done = Some(Value::text("complete"));
        context.with(|s| s.db.put_key("task", task, "other_config", "object_creation", done));
    }
    let mut chunks = Chunks::new(&mut tar, options.force);
    let count = made.disks.len().max(1) as f64;
    for (index, target) in made.disks.iter().enumerate() {
        fill(context, &mut chunks, target)?;
        context.progress((index + 1) as f64 / count);
    }
    let ignored = chunks.finish()?;
    if !ignored.is_empty() {
        tracing::warn!(count = ignored.len(), "checksum errors were ignored on request");
    }
    // What a compressed stream still holds after the archive does not matter.
    tar.into_inner().into_inner();
    context.with(|s| {
        for target in &made.disks {
            s.db.put_key("VDI", &target.vdi, "sm_config", "import_task", None);
        }
        for vm in &made.vms {
            s.db.put("VM", vm, "current_operations", Value::Map(Record::new()));
        }
        sr::refresh(&context.sim.config, s, &options.sr);
    });
    Ok(())
}

fn fill<R: std::io::Read>(
    context: &Context,
    chunks: &mut Chunks<'_, R>,
    target: &super::objects::Disk,
) -> Outcome<()> {
    let path = context.with(|s| vdi::path_of(&context.sim.config, &s.db, &target.vdi));
    let uuid = context.with(|s| s.db.text("VDI", &target.vdi, "uuid"));
    let file = disk::open(&path).map_err(|e| Failure::disk("open the disk", &e))?;
    chunks.disk(&target.id, target.size, |offset, bytes| {
        context.check_cancelled()?;
        if disk::is_zero(bytes) {
            return Ok(());
        }
        let length = bytes.len() as u64;
        context.with(|s| {
            space::assert_free_for_write(&context.sim.config, s, &target.vdi, offset, length)?;
            s.chains.record(&uuid, offset, length);
            Ok(())
        })?;
        file.write_all_at(bytes, offset).map_err(|e| Failure::new("VDI_IO_ERROR", [e.to_string()]))
    })
}
