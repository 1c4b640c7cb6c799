//! Writing pieces of a disk in the order in which they come: with io_uring on the asynchronous side, or with `pwrite`
//! on a thread.

use crate::worker::Error;
use blocks::{ByteCount, ByteOffset};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;

/// Writes on their way at once; they go to the page cache, more would only hold memory.
const IN_FLIGHT: usize = 4;
/// Zeros of one write.
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

/// What to write.
pub(crate) enum Piece {
    /// These bytes.
    Bytes(u64, Vec<u8>),
    /// So many zeros.
    Zeros(u64, u64),
}

/// A disk to write, and where its pieces come from. Ends when the queue does.
pub(crate) struct WriteOrder {
    pub(crate) file: File,
    pub(crate) device: String,
    pub(crate) queue: Receiver<Piece>,
    /// Bytes written so far.
    pub(crate) written: Arc<AtomicU64>,
    /// Told the outcome, after the fsync.
    pub(crate) done: SyncSender<Result<(), Error>>,
}

/// Carries out an order on a tokio-uring runtime.
pub(crate) async fn write(order: WriteOrder) {
    let WriteOrder { file, device, queue, written, done } = order;
    let outcome = write_with_ring(file, &device, queue, written).await;
    // Nobody waits any more: the job has failed elsewhere.
    let _ = done.send(outcome);
}

async fn write_with_ring(
    file: File,
    device: &str,
    mut queue: Receiver<Piece>,
    written: Arc<AtomicU64>,
) -> Result<(), Error> {
    let file = Rc::new(tokio_uring::fs::File::from_std(file));
    let mut in_flight: JoinSet<(u64, u64, io::Result<()>)> = JoinSet::new();
    let settle = |outcome: (u64, u64, io::Result<()>)| match outcome {
        (_, size, Ok(())) => {
            written.fetch_add(size, Ordering::Relaxed);
            Ok(())
        }
        (offset, size, Err(source)) => Err(failed(device, offset, size, source)),
    };
    while let Some(piece) = queue.recv().await {
        for (offset, part) in parts(piece) {
            while in_flight.len() >= IN_FLIGHT {
                let ended = in_flight.join_next().await.expect("not empty");
                settle(ended.expect("writes do not panic"))?;
            }
            let file = file.clone();
            in_flight.spawn_local(async move {
                match part {
                    Part::Bytes(bytes) => {
                        let size = bytes.len() as u64;
                        (offset, size, file.write_all_at(bytes, offset).await.0)
                    }
                    Part::Zeros(zeros) => {
                        (offset, zeros.len() as u64, file.write_all_at(zeros, offset).await.0)
                    }
                }
            });
        }
    }
    while let Some(ended) = in_flight.join_next().await {
        settle(ended.expect("writes do not panic"))?;
    }
    file.sync_all().await.map_err(|source| not_synced(device, source))
}

/// Carries out an order with `pwrite`; for a thread.
pub(crate) fn write_plainly(order: WriteOrder) -> Result<(), Error> {
    let WriteOrder { file, device, mut queue, written, .. } = order;
    while let Some(piece) = queue.blocking_recv() {
        for (offset, part) in parts(piece) {
            let bytes = match &part {
                Part::Bytes(bytes) => &bytes[..],
                Part::Zeros(zeros) => zeros,
            };
            let size = bytes.len() as u64;
            file.write_all_at(bytes, offset).map_err(|source| failed(&device, offset, size, source))?;
            written.fetch_add(size, Ordering::Relaxed);
        }
    }
    file.sync_all().map_err(|source| not_synced(&device, source))
}

enum Part {
    Bytes(Vec<u8>),
    Zeros(&'static [u8]),
}

fn parts(piece: Piece) -> Box<dyn Iterator<Item = (u64, Part)>> {
    match piece {
        Piece::Bytes(offset, bytes) => Box::new(std::iter::once((offset, Part::Bytes(bytes)))),
        Piece::Zeros(offset, size) => {
            let step = ZEROS.len() as u64;
            Box::new((0..size.div_ceil(step)).map(move |part| {
                let at = part * step;
                let size = usize::try_from(step.min(size - at)).expect("at most 1 MiB");
                (offset + at, Part::Zeros(&ZEROS[..size]))
            }))
        }
    }
}

fn failed(device: &str, offset: u64, size: u64, source: io::Error) -> Error {
    let (offset, size) = (ByteOffset::new(offset), ByteCount::new(size));
    Error::Write { device: device.to_owned(), offset, size, source }
}

fn not_synced(device: &str, source: io::Error) -> Error {
    Error::Target { device: device.to_owned(), operation: "bring all writes onto", source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Runtime;
    use std::sync::mpsc::sync_channel;

    fn order(file: &File, pieces: Vec<Piece>) -> (WriteOrder, std::sync::mpsc::Receiver<Result<(), Error>>) {
        let (queue_in, queue) = tokio::sync::mpsc::channel(16);
        pieces.into_iter().for_each(|piece| queue_in.try_send(piece).expect("room"));
        let (done, outcome) = sync_channel(1);
        let file = file.try_clone().expect("clone");
        (WriteOrder { file, device: "xvde".into(), queue, written: Arc::default(), done }, outcome)
    }

    fn pieces() -> Vec<Piece> {
        let bytes = |value: u8, size| vec![value; size];
        vec![
            Piece::Bytes(0, bytes(1, 70_000)),
            Piece::Zeros(70_000, 3 << 20),
            Piece::Bytes(4 << 20, bytes(2, 512)),
        ]
    }

    #[test]
    fn both_writers_leave_the_same_bytes() {
        let mut expected = vec![9u8; (4 << 20) + 512];
        expected[..70_000].fill(1);
        expected[70_000..70_000 + (3 << 20)].fill(0);
        expected[4 << 20..].fill(2);
        let fresh = || {
            let file = tempfile::NamedTempFile::new().expect("file");
            std::fs::write(file.path(), vec![9u8; (4 << 20) + 512]).expect("fill");
            file
        };
        let plain = fresh();
        let (job, _) = order(plain.as_file(), pieces());
        let written = job.written.clone();
        write_plainly(job).expect("writes");
        assert!(std::fs::read(plain.path()).expect("read") == expected);
        assert_eq!(written.load(Ordering::Relaxed), 70_000 + (3 << 20) + 512);
        let (runtime, why) = Runtime::new().expect("runtime");
        if let Some(why) = why {
            println!("skipped: io_uring: {why}");
            return;
        }
        let ring = fresh();
        let (job, outcome) = order(ring.as_file(), pieces());
        let written = job.written.clone();
        runtime.block_on(write(job));
        outcome.recv().expect("told").expect("writes");
        assert!(std::fs::read(ring.path()).expect("read") == expected);
        assert_eq!(written.load(Ordering::Relaxed), 70_000 + (3 << 20) + 512);
    }

    #[test]
    fn a_failed_write_names_device_offset_and_size() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let read_only = File::open(file.path()).expect("open");
        let (job, _) = order(&read_only, vec![Piece::Bytes(65536, vec![1; 512])]);
        let plain = write_plainly(job).expect_err("read-only");
        assert_eq!(plain.to_string(), "write xvde at 0x10000, 512 B");
        let (runtime, why) = Runtime::new().expect("runtime");
        if why.is_none() {
            let (job, outcome) = order(&read_only, vec![Piece::Zeros(65536, 512)]);
            runtime.block_on(write(job));
            let ring = outcome.recv().expect("told").expect_err("read-only");
            assert_eq!(ring.to_string(), plain.to_string());
        }
    }
}
