//! The order without disks: measures what a job would meet, and says it.
//!
//! Promises: bounded in bytes and time, whatever the link and the disk are like; what cannot be measured is said as a
//! failure of its own, and the rest is measured all the same. Never: touches another disk than the machine's own, or
//! writes.

use super::{Error, Pending, Run};
use crate::chain;
use crate::platform::devices::OWN_USERDEVICE;
use blocks::{ByteCount, ChangedBlocks, ReadPlan};
use diskio::{Care, Choice, Pool, Source};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use wire::{
    Diagnosis, Failure, MAX_MILESTONES, MAX_SINK_PIECE, Milestone, PATH_DIAGNOSIS, PATH_SINK, ProgressAnswer,
    SinkAnswer, Speed,
};

/// Calls that carry nothing; the shortest is what the way takes.
const ROUND_TRIPS: u32 = 5;
/// Reading is not begun any more after this: a disk that is slow has shown it.
const READ_LIMIT: Duration = Duration::from_secs(10);
/// The same of sending.
const SEND_LIMIT: Duration = Duration::from_secs(10);
/// The first piece. Each is twice the one before, so that a slow link is not stuck in one for minutes.
const FIRST_PIECE: usize = 64 << 10;
/// Pieces on their way at once, as many as packs of a job.
const PIECES_IN_FLIGHT: usize = 2;

/// Measures, and tells the orchestrator.
pub(super) fn run(run: &Run, read: ByteCount, send: ByteCount) -> Result<(), Error> {
    let connect = run.link.connect().map_err(failure);
    let round_trip_us = round_trip(run).map(micros).map_err(failure);
    let read = read_own_disk(run, read).map_err(failure);
    let send = send_bytes(run, send).map_err(failure);
    // Where it was told to stop, or lost the orchestrator, that is the reason for whatever failed.
    run.check()?;
    let clock_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let diagnosis = Diagnosis {
        clock_ms: u64::try_from(clock_ms).unwrap_or(u64::MAX),
        processors: thread::available_parallelism().map_or(1, |n| u16::try_from(n.get()).unwrap_or(u16::MAX)),
        milestones: run.outside.milestones().into_iter().take(MAX_MILESTONES).map(milestone).collect(),
        connect,
        round_trip_us,
        read,
        send,
    };
    let _: ProgressAnswer = run.link.ask(PATH_DIAGNOSIS, &diagnosis)?;
    Ok(())
}

fn failure(error: Error) -> Failure {
    Failure::new(error.code(), chain(&error))
}

fn milestone((name, at): (String, Duration)) -> Milestone {
    Milestone { name, at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX) }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn round_trip(run: &Run) -> Result<Duration, Error> {
    let mut shortest = Duration::MAX;
    for _ in 0..ROUND_TRIPS {
        run.check()?;
        let began = Instant::now();
        let _: SinkAnswer = run.link.sink(Arc::default()).wait(PATH_SINK)?;
        shortest = shortest.min(began.elapsed());
    }
    Ok(shortest)
}

/// Reads the machine's own disk from its beginning, as a job would read others.
fn read_own_disk(run: &Run, most: ByteCount) -> Result<Speed, Error> {
    let userdevice = u16::try_from(OWN_USERDEVICE).expect("the first position");
    let unreadable = |source| Error::Read { disk: 0, userdevice, source };
    let disk = run.outside.own_disk()?;
    let source = Source::open(&disk.node, &disk.name).map_err(unreadable)?;
    let pool = Pool::new(run.budget.read_buffers * run.budget.read_size, run.budget.read_size);
    let rest = |pause| {
        run.outside.tick();
        run.outside.sleep(pause);
        run.check().is_ok()
    };
    let care = Care::new(rest).with_clock(|| run.outside.uptime());
    let choice = if run.outside.may_use_io_uring() { Choice::Best } else { Choice::Pread };
    let mut engine = diskio::engine(source, &pool, choice, care);
    let size = disk.size.min(most);
    let all = ChangedBlocks::all(size).map_err(|source| Error::Bitmap { userdevice, source })?;
    let plan = ReadPlan::new(&all, size, ByteCount::new(run.budget.read_size as u64));
    let (began, mut speed) = (Instant::now(), nothing());
    let mut plan = plan.take_while(|_| began.elapsed() < READ_LIMIT);
    while let Some(filled) = engine.next(&mut plan) {
        let filled = filled.map_err(unreadable)?;
        run.check()?;
        run.outside.tick();
        let took = filled.timing.map_or(0, |timing| micros(timing.at_most));
        add(&mut speed, filled.read.size, took);
    }
    speed.micros = micros(began.elapsed());
    Ok(speed)
}

/// Sends bytes that the service throws away.
fn send_bytes(run: &Run, most: ByteCount) -> Result<Speed, Error> {
    let (began, mut speed) = (Instant::now(), nothing());
    let (mut left, mut next) = (most.get(), FIRST_PIECE);
    let mut body = Arc::new(Vec::new());
    let mut under_way: VecDeque<(Instant, usize, Pending)> = VecDeque::new();
    loop {
        while under_way.len() < PIECES_IN_FLIGHT && left > 0 && began.elapsed() < SEND_LIMIT {
            let size = usize::try_from(left).unwrap_or(usize::MAX).min(next);
            if body.len() != size {
                body = Arc::new(vec![0; size]);
            }
            under_way.push_back((Instant::now(), size, run.link.sink(body.clone())));
            left -= size as u64;
            next = (next * 2).min(MAX_SINK_PIECE);
        }
        let Some((sent, size, answer)) = under_way.pop_front() else { break };
        let _: SinkAnswer = answer.wait(PATH_SINK)?;
        run.check()?;
        add(&mut speed, ByteCount::new(size as u64), micros(sent.elapsed()));
    }
    speed.micros = micros(began.elapsed());
    Ok(speed)
}

fn nothing() -> Speed {
    Speed { bytes: ByteCount::new(0), micros: 0, slowest_us: 0 }
}

fn add(speed: &mut Speed, bytes: ByteCount, took_us: u64) {
    speed.bytes = speed.bytes.saturating_add(bytes);
    speed.slowest_us = speed.slowest_us.max(took_us);
}
