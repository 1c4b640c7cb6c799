//! Writing pieces of a disk in the order in which they come: with io_uring on the asynchronous side, or with `pwrite`
//! on a thread.

use super::stages::Part;
use crate::worker::{Error, Meter};
use blocks::{ByteCount, ByteOffset};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, LazyLock};
use tokio::sync::mpsc::Receiver;
use tokio::task::JoinSet;
use tokio_uring::buf::BoundedBuf;
use wire::{Stage, StageAccount};

/// Loads that are being written at once; they go to the page cache, more would only hold memory.
const IN_FLIGHT: usize = 3;
/// Zeros of one write. Not in the program, where they would be a fifth of it: asked of the kernel with the first write,
/// which gives the same page of zeros for all of them.
static ZEROS: LazyLock<Box<[u8]>> = LazyLock::new(|| vec![0; 1 << 20].into());

/// A stretch of a disk on its way from the walk to the writer and back, and all memory that it needs. How many there are
/// bounds what a restore holds.
#[derive(Default)]
pub(crate) struct Load {
    /// What the stretch is made of.
    pub(super) parts: Vec<Part>,
    /// The store's answer.
    pub(super) answer: Vec<u8>,
    /// The opened blocks. As long as was ever needed; what no piece points to is left from before.
    pub(super) memory: Vec<u8>,
    /// What is to be written.
    pub(super) pieces: Vec<Piece>,
}

/// What to write where.
pub(crate) enum Piece {
    /// These bytes of the load's memory.
    Bytes(u64, Range<usize>),
    /// So many zeros.
    Zeros(u64, u64),
}

impl Load {
    /// Sees to it that the memory has at least `size` bytes.
    pub(super) fn make_room(&mut self, size: usize) {
        if self.memory.len() < size {
            self.memory.resize(size, 0);
        }
    }
}

/// A disk to write, and where its pieces come from. Ends when the queue does.
pub(crate) struct WriteOrder {
    pub(crate) file: File,
    pub(crate) device: String,
    pub(crate) queue: Receiver<Load>,
    /// Gets back what was written; never full, there are no more loads than it has room for.
    pub(crate) back: SyncSender<Load>,
    /// Bytes written so far.
    pub(crate) written: Arc<AtomicU64>,
    /// Told the outcome, after the fsync: what the time was spent on.
    pub(crate) done: SyncSender<Result<StageAccount, Error>>,
}

/// Carries out an order on a tokio-uring runtime.
pub(crate) async fn write(order: WriteOrder) {
    let WriteOrder { file, device, queue, back, written, done } = order;
    let outcome = write_with_ring(file, &device, queue, &back, &written).await;
    // The walk must not wait for loads that nobody writes.
    drop(back);
    // Nobody waits any more: the job has failed elsewhere.
    let _ = done.send(outcome);
}

async fn write_with_ring(
    file: File,
    device: &str,
    mut queue: Receiver<Load>,
    back: &SyncSender<Load>,
    written: &Arc<AtomicU64>,
) -> Result<StageAccount, Error> {
    let mut meter = Meter::loose(Stage::Write);
    let file = Rc::new(tokio_uring::fs::File::from_std(file));
    let mut in_flight: JoinSet<Result<Load, Error>> = JoinSet::new();
    loop {
        meter.busy();
        let load = queue.recv().await;
        meter.starved();
        let Some(load) = load else { break };
        while in_flight.len() >= IN_FLIGHT {
            let ended = in_flight.join_next().await.expect("not empty");
            // The walk is over: nobody needs it any more.
            let _ = back.send(ended.expect("writes do not panic")?);
        }
        let (file, device, written) = (file.clone(), device.to_owned(), written.clone());
        in_flight.spawn_local(async move { write_load(&file, &device, load, &written).await });
    }
    while let Some(ended) = in_flight.join_next().await {
        // As above.
        let _ = back.send(ended.expect("writes do not panic")?);
    }
    file.sync_all().await.map_err(|source| not_synced(device, source))?;
    meter.count_all(written.load(Ordering::Relaxed));
    Ok(meter.finish())
}

/// Writes one load, piece by piece, and gives its memory back.
async fn write_load(
    file: &tokio_uring::fs::File,
    device: &str,
    mut load: Load,
    written: &AtomicU64,
) -> Result<Load, Error> {
    let mut memory = std::mem::take(&mut load.memory);
    for piece in load.pieces.drain(..) {
        match piece {
            Piece::Bytes(offset, at) => {
                let size = at.len() as u64;
                let (outcome, part) = file.write_all_at(memory.slice(at), offset).await;
                outcome.map_err(|source| failed(device, offset, size, source))?;
                memory = part.into_inner();
                written.fetch_add(size, Ordering::Relaxed);
            }
            Piece::Zeros(offset, size) => {
                for (offset, zeros) in zeros(offset, size) {
                    let size = zeros.len() as u64;
                    let (outcome, _) = file.write_all_at(zeros, offset).await;
                    outcome.map_err(|source| failed(device, offset, size, source))?;
                    written.fetch_add(size, Ordering::Relaxed);
                }
            }
        }
    }
    load.memory = memory;
    Ok(load)
}

/// Carries out an order with `pwrite`; for a thread.
pub(crate) fn write_plainly(order: WriteOrder) -> Result<StageAccount, Error> {
    let mut meter = Meter::loose(Stage::Write);
    let WriteOrder { file, device, mut queue, back, written, .. } = order;
    let write = |offset: u64, bytes: &[u8]| -> Result<(), Error> {
        let size = bytes.len() as u64;
        file.write_all_at(bytes, offset).map_err(|source| failed(&device, offset, size, source))?;
        written.fetch_add(size, Ordering::Relaxed);
        Ok(())
    };
    loop {
        meter.busy();
        let load = queue.blocking_recv();
        meter.starved();
        let Some(mut load) = load else { break };
        for piece in load.pieces.drain(..) {
            match piece {
                Piece::Bytes(offset, at) => write(offset, &load.memory[at])?,
                Piece::Zeros(offset, size) => {
                    zeros(offset, size).try_for_each(|(offset, zeros)| write(offset, zeros))?;
                }
            }
        }
        // The walk is over: nobody needs it any more.
        let _ = back.send(load);
    }
    file.sync_all().map_err(|source| not_synced(&device, source))?;
    meter.count_all(written.load(Ordering::Relaxed));
    Ok(meter.finish())
}

/// A range of zeros as writes of at most 1 MiB.
fn zeros(offset: u64, size: u64) -> impl Iterator<Item = (u64, &'static [u8])> {
    let step = ZEROS.len() as u64;
    (0..size.div_ceil(step)).map(move |part| {
        let at = part * step;
        let size = usize::try_from(step.min(size - at)).expect("at most 1 MiB");
        (offset + at, &ZEROS[..size])
    })
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
    use std::sync::mpsc::{self, sync_channel};

    type Ordered = (WriteOrder, mpsc::Receiver<Result<StageAccount, Error>>, mpsc::Receiver<Load>);

    fn order(file: &File, loads: Vec<Load>) -> Ordered {
        let (queue_in, queue) = tokio::sync::mpsc::channel(16);
        loads.into_iter().for_each(|load| assert!(queue_in.try_send(load).is_ok(), "room"));
        let (done, outcome) = sync_channel(1);
        let file = file.try_clone().expect("clone");
        let (back, loads_back) = sync_channel(16);
        (
            WriteOrder { file, device: "xvde".into(), queue, back, written: Arc::default(), done },
            outcome,
            loads_back,
        )
    }

    fn loads() -> Vec<Load> {
        let mut memory = vec![1; 70_000];
        memory.extend([2; 512]);
        let pieces = vec![Piece::Bytes(0, 0..70_000), Piece::Zeros(70_000, 3 << 20)];
        let more = vec![Piece::Bytes(4 << 20, 70_000..70_512)];
        vec![
            Load { memory: memory.clone(), pieces, ..Load::default() },
            Load { memory, pieces: more, ..Load::default() },
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
        let (job, _, back) = order(plain.as_file(), loads());
        let written = job.written.clone();
        write_plainly(job).expect("writes");
        assert!(std::fs::read(plain.path()).expect("read") == expected);
        assert_eq!(written.load(Ordering::Relaxed), 70_000 + (3 << 20) + 512);
        for _ in 0..2 {
            let load = back.try_recv().expect("memory comes back");
            assert_eq!((load.memory.len(), load.pieces.len()), (70_512, 0));
        }
        let (runtime, why) = Runtime::new().expect("runtime");
        if let Some(why) = why {
            println!("skipped: io_uring: {why}");
            return;
        }
        let ring = fresh();
        let (job, outcome, back) = order(ring.as_file(), loads());
        let written = job.written.clone();
        runtime.block_on(write(job));
        outcome.recv().expect("told").expect("writes");
        assert!(std::fs::read(ring.path()).expect("read") == expected);
        assert_eq!(written.load(Ordering::Relaxed), 70_000 + (3 << 20) + 512);
        for _ in 0..2 {
            let load = back.try_recv().expect("memory comes back");
            assert_eq!((load.memory.len(), load.pieces.len()), (70_512, 0));
        }
    }

    #[test]
    fn a_failed_write_names_device_offset_and_size() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let read_only = File::open(file.path()).expect("open");
        let (job, _, _) = order(
            &read_only,
            vec![Load { memory: vec![1; 512], pieces: vec![Piece::Bytes(65536, 0..512)], ..Load::default() }],
        );
        let plain = write_plainly(job).expect_err("read-only");
        assert_eq!(plain.to_string(), "write xvde at 0x10000, 512 B");
        let (runtime, why) = Runtime::new().expect("runtime");
        if why.is_none() {
            let (job, outcome, _back) =
                order(&read_only, vec![Load { pieces: vec![Piece::Zeros(65536, 512)], ..Load::default() }]);
            runtime.block_on(write(job));
            let ring = outcome.recv().expect("told").expect_err("read-only");
            assert_eq!(ring.to_string(), plain.to_string());
        }
    }
}
