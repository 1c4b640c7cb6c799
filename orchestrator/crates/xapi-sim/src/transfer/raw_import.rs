//! `PUT /import_raw_vdi`: raw bytes over an existing disk.

use super::Transfer;
use super::export::Held;
use crate::failure::{Failure, Outcome};
use crate::http::wire::{BlockingBody, Head, Stream};
use crate::rpc::value::Value;
use crate::sim::{Context, Sim};
use crate::storage::{disk, hidden, space, sr, vdi};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

const CHUNK: usize = 1 << 20;

pub(super) async fn serve(transfer: &Transfer, mut stream: Stream, head: &Head) -> std::io::Result<Stream> {
    let context = &transfer.context;
    let Some(length) = head.content_length().filter(|_| !head.is_chunked()) else {
        let failure = Failure::internal("import_raw_vdi cannot handle chunked encoding");
        return transfer.refuse(stream, 404, failure).await;
    };
    if head.param("format").is_some_and(|f| f != "raw") {
        return transfer.refuse(stream, 404, Failure::internal("unknown format")).await;
    }
    let named = head.param("vdi").unwrap_or_default();
    let target = match context.with(|s| s.db.by_ref_or_uuid("VDI", &named)) {
        Ok(target) => target,
        Err(failure) => return transfer.refuse(stream, 404, failure).await,
    };
    transfer.accept(&mut stream, "application/octet-stream").await?;
    if transfer.strikes_before() {
        transfer.finish(Ok(Value::void()));
        return Ok(stream);
    }
    let prepared = prepare(context, &target);
    let (stream, outcome) = match prepared {
        Err(failure) => (stream, Err(failure)),
        Ok((held, file, size)) => {
            let body = BlockingBody::new(stream, length);
            let inner = context.clone();
            let work = move || {
                let mut body = body;
                let outcome = write(&inner, &mut body, &target, &file, size, length);
                drop(held);
                (body.into_stream(), outcome.map(|()| Value::void()))
            };
            Sim::blocking(work).await
        }
    };
    transfer.finish(outcome);
    Ok(stream)
}

fn prepare(context: &Context, target: &str) -> Outcome<(Held, File, u64)> {
    context.with(|s| {
        vdi::refuse_type(&s.db, target, &["cbt_metadata"])?;
        hidden::assert_managed(&s.db, target)?;
        if !vdi::active_vbds(&s.db, target).is_empty() {
            return Err(Failure::new("VDI_IN_USE", [target]));
        }
        if s.db.flag("VDI", target, "read_only") {
            return Err(Failure::new("VDI_READONLY", [target]));
        }
        sr::assert_plugged(&s.db, &s.db.text("VDI", target, "SR"))
    })?;
    let held = Held::new(context, target);
    let path = context.with(|s| vdi::path_of(&context.sim.config, &s.db, target));
    let file = disk::open(&path).map_err(|e| Failure::disk("open the disk", &e))?;
    let size = file.metadata().map_err(|e| Failure::disk("open the disk", &e))?.len();
    Ok((held, file, size))
}

fn write(
    context: &Context,
    body: &mut BlockingBody,
    target: &str,
    file: &File,
    size: u64,
    length: u64,
) -> Outcome<()> {
    let failed = |text: String| Failure::new("VDI_IO_ERROR", [text]);
    if length > size {
        return Err(failed(format!("{length} bytes do not fit into {size}")));
    }
    let (uuid, repository) =
        context.with(|s| (s.db.text("VDI", target, "uuid"), s.db.text("VDI", target, "SR")));
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        context.check_cancelled()?;
        let count = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
        body.read_exact(&mut buffer[..count]).map_err(|e| failed(e.to_string()))?;
        let bytes = &buffer[..count];
        if disk::is_zero(bytes) {
            disk::zero(file, at, count as u64).map_err(|e| failed(e.to_string()))?;
        } else {
            context
                .with(|s| space::assert_free_for_write(&context.sim.config, s, target, at, count as u64))?;
            file.write_all_at(bytes, at).map_err(|e| failed(e.to_string()))?;
        }
        context.with(|s| {
            s.cbt.record(&uuid, at, count as u64);
            s.chains.record(&uuid, at, count as u64);
        });
        at += count as u64;
        context.progress(at as f64 / length as f64);
    }
    context.with(|s| sr::refresh(&context.sim.config, s, &repository));
    Ok(())
}
