//! The io_uring engine: many reads in flight into registered buffers of a registered file.
//!
//! An operation owns its buffer from submission to completion: it lives in `in_flight`, and the engine neither gives
//! it out nor drops it before the kernel has answered. If the ring fails while reads are in flight, their buffers are
//! leaked rather than handed to somebody else.

use crate::care::{Care, is_unreadable};
use crate::pool::Buffer;
use crate::pread::is_transient;
use crate::seam::Asked;
use crate::source::{Step, next_step, size_of};
use crate::{Error, Filled, Pool, QUEUE_DEPTH, RETRY_LIMIT, ReadEngine, Source, Timing};
use blocks::{ByteOffset, Read};
use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Indexes in the ring's table of registered files.
const BUFFERED: types::Fixed = types::Fixed(0);
const DIRECT: types::Fixed = types::Fixed(1);

/// A ring that knows a disk and the pool's buffers.
pub(crate) struct Ring {
    // Before the pool: fields are dropped in order, and closing the ring unregisters the pool's memory.
    ring: IoUring,
    source: Source,
    pool: Pool,
    depth: usize,
    registered: bool,
    name: String,
}

pub(crate) struct Uring<'a> {
    // Before the pool, as above.
    ring: IoUring,
    source: Source,
    pool: Pool,
    registered: bool,
    name: String,
    in_flight: Vec<Option<Operation>>,
    in_flight_count: usize,
    ready: VecDeque<Filled>,
    /// Taken from the plan, waiting for a buffer.
    planned: Option<Read>,
    next_sequence: u64,
    care: Care<'a>,
    /// When the ring was last seen without an answer.
    looked: Duration,
}

struct Operation {
    sequence: u64,
    read: Read,
    buffer: Buffer,
    done: usize,
    retries: u32,
    step: Step,
    /// When the kernel was asked first.
    began: Duration,
}

/// Whether a ring can be made and knows the operations that are used.
pub(crate) fn probe() -> Result<(), String> {
    let ring = IoUring::new(2).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS) => "this kernel has no io_uring".to_owned(),
        Some(libc::EPERM) => "io_uring is disabled on this kernel".to_owned(),
        _ => format!("io_uring cannot be set up: {error}"),
    })?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| format!("io_uring has no probe: {error}"))?;
    for (code, name) in [(opcode::Read::CODE, "read"), (opcode::ReadFixed::CODE, "read-fixed")] {
        if !probe.is_supported(code) {
            return Err(format!("io_uring of this kernel has no {name}"));
        }
    }
    Ok(())
}

impl Ring {
    pub(crate) fn new(source: &Source, pool: &Pool) -> Result<Self, String> {
        let depth = QUEUE_DEPTH.min(pool.count());
        let entries = u32::try_from(depth).expect("QUEUE_DEPTH is small");
        let ring = IoUring::new(entries).map_err(|error| format!("io_uring cannot be set up: {error}"))?;
        let source =
            source.try_clone().map_err(|error| format!("no file descriptor for io_uring: {error}"))?;
        let buffered = source.buffered.as_raw_fd();
        let direct = source.direct.as_ref().map_or(buffered, AsRawFd::as_raw_fd);
        ring.submitter()
            .register_files(&[buffered, direct])
            .map_err(|error| format!("io_uring cannot register the disk: {error}"))?;
        let vectors: Vec<libc::iovec> = pool
            .starts()
            .map(|start| libc::iovec { iov_base: start.as_ptr().cast(), iov_len: pool.buffer_size() })
            .collect();
        // SAFETY: the memory belongs to the pool; `pool` below keeps it alive for as long as the ring.
        let outcome = unsafe { ring.submitter().register_buffers(&vectors) };
        // Without registration (a low RLIMIT_MEMLOCK) reads are the same, only a little dearer.
        let name = match &outcome {
            Ok(()) => "io_uring".to_owned(),
            Err(error) => format!("io_uring without registered buffers: {error}"),
        };
        Ok(Self { ring, source, pool: pool.clone(), depth, registered: outcome.is_ok(), name })
    }
}

impl<'a> Uring<'a> {
    pub(crate) fn new(ring: Ring, care: Care<'a>) -> Self {
        let Ring { ring, source, pool, depth, registered, name } = ring;
        Self {
            ring,
            source,
            pool,
            registered,
            name,
            in_flight: (0..depth).map(|_| None).collect(),
            in_flight_count: 0,
            ready: VecDeque::with_capacity(depth),
            planned: None,
            next_sequence: 0,
            care,
            looked: Duration::ZERO,
        }
    }

    /// Takes reads from the plan for as long as there are buffers and room in the ring.
    fn submit_planned(&mut self, plan: &mut dyn Iterator<Item = Read>) -> Result<(), Error> {
        let mut pushed = false;
        while self.in_flight_count < self.in_flight.len() {
            let Some(read) = self.planned.take().or_else(|| plan.next()) else { break };
            // With nothing in flight and nothing to give out only others can free a buffer.
            let idle = self.in_flight_count == 0 && self.ready.is_empty();
            let buffer = match self.pool.try_take() {
                Some(buffer) => buffer,
                None if idle => self.pool.take(),
                None => {
                    self.planned = Some(read);
                    break;
                }
            };
            assert!(size_of(&read) <= self.pool.buffer_size(), "a read fits a buffer");
            let sequence = self.next_sequence;
            self.next_sequence += 1;
            let slot = self.in_flight.iter().position(Option::is_none).expect("counted above");
            self.in_flight_count += 1;
            pushed = true;
            let step = self.step(&read, 0);
            let began = (self.care.clock)();
            self.push(slot, Operation { sequence, read, buffer, done: 0, retries: 0, step, began })?;
        }
        if pushed { self.submit() } else { Ok(()) }
    }

    /// Tells the kernel of what is queued: the device works while those that are ready are being used.
    fn submit(&mut self) -> Result<(), Error> {
        match self.ring.submit() {
            Ok(_) => Ok(()),
            // The next wait submits it.
            Err(error) if is_busy(&error) => Ok(()),
            Err(error) => Err(self.ring_failed("submit", error)),
        }
    }

    /// What to ask for after `done` bytes of a read.
    fn step(&mut self, read: &Read, done: usize) -> Step {
        let can_direct = self.source.direct.is_some();
        next_step(read, done..size_of(read), can_direct, |size| self.care.seam.clip(size))
    }

    /// Queues the step of an operation, which owns its buffer from here on.
    fn push(&mut self, slot: usize, mut operation: Operation) -> Result<(), Error> {
        let step = operation.step;
        let file = if step.direct { DIRECT } else { BUFFERED };
        let pointer = operation.buffer.pointer(operation.done).as_ptr();
        let size = u32::try_from(step.size).expect("buffers are far below 4 GiB");
        let entry: squeue::Entry = if self.registered {
            let index =
                u16::try_from(operation.buffer.index()).expect("register_buffers takes at most 16384");
            opcode::ReadFixed::new(file, pointer, size, index).offset(step.offset).build()
        } else {
            opcode::Read::new(file, pointer, size).offset(step.offset).build()
        };
        let entry = entry.user_data(slot as u64);
        self.in_flight[slot] = Some(operation);
        // SAFETY: the kernel writes `size` bytes at `pointer` until its completion; they lie inside the buffer, which
        // `in_flight[slot]` owns until `complete` takes it out, or until Drop leaks it.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // Never full: the ring has an entry for every slot, and a slot has one operation at a time.
        pushed.map_err(|_| self.ring_failed("queue a read", io::ErrorKind::WouldBlock.into()))
    }

    /// Submits what is queued and waits for at least one answer.
    fn wait(&mut self) -> Result<(), Error> {
        let mut retries = 0;
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => return Ok(()),
                Err(error) if retries < RETRY_LIMIT && is_busy(&error) => retries += 1,
                Err(error) => return Err(self.ring_failed("submit and wait", error)),
            }
        }
    }

    /// Takes the answers that are there.
    fn complete_answered(&mut self) -> Result<(), Error> {
        loop {
            let next: Option<cqueue::Entry> = self.ring.completion().next();
            let Some(answer) = next else {
                self.looked = (self.care.clock)();
                return Ok(());
            };
            self.complete(&answer)?;
        }
    }

    fn complete(&mut self, answer: &cqueue::Entry) -> Result<(), Error> {
        let slot = usize::try_from(answer.user_data()).expect("a slot's number");
        let mut operation = self.in_flight[slot].take().expect("the kernel answers every operation once");
        self.in_flight_count -= 1;
        let Step { offset, size, direct } = operation.step;
        let asked = Asked { offset: ByteOffset::new(offset), size };
        let (mut bad, mut failed) = (Vec::new(), false);
        let read_size = size_of(&operation.read);
        let found = (self.care.clock)();
        let result = self.care.seam.answer(asked, answer.result());
        // What a test bed adds is as good as time in the kernel.
        let answered = (self.care.clock)();
        match result {
            0 => return Err(self.source.ended(&operation.read, operation.done)),
            count if count > 0 => {
                operation.done += count.unsigned_abs() as usize;
                operation.retries = 0;
            }
            // The file system opened with O_DIRECT but does not read that way.
            errno if direct && -errno == libc::EINVAL => self.source.direct = None,
            errno if is_transient(-errno) && operation.retries < RETRY_LIMIT => operation.retries += 1,
            // The kernel is done with the buffer. Other reads stay in flight meanwhile.
            errno if is_unreadable(-errno) => {
                let Operation { read, buffer, .. } = &mut operation;
                let failure = io::Error::from_raw_os_error(-errno);
                bad = self.care.read_again(&mut self.source, read, buffer, failure)?;
                operation.done = read_size;
                failed = true;
            }
            errno => return Err(self.source.failed(&operation.read, io::Error::from_raw_os_error(-errno))),
        }
        if operation.done < read_size {
            operation.step = self.step(&operation.read, operation.done);
            self.in_flight_count += 1;
            return self.push(slot, operation);
        }
        let Operation { sequence, read, mut buffer, began, .. } = operation;
        buffer.set_len(read_size);
        let added = answered.saturating_sub(found);
        let timing = (!failed).then(|| Timing {
            began,
            at_least: self.looked.saturating_sub(began).saturating_add(added),
            at_most: answered.saturating_sub(began),
        });
        self.ready.push_back(Filled { sequence, read, buffer, bad, timing });
        Ok(())
    }

    fn advance(&mut self, plan: &mut dyn Iterator<Item = Read>) -> Result<Option<Filled>, Error> {
        loop {
            self.submit_planned(plan)?;
            if let Some(filled) = self.ready.pop_front() {
                return Ok(Some(filled));
            }
            if self.in_flight_count == 0 {
                return Ok(None);
            }
            // What came while nobody looked, before what comes from now on.
            self.complete_answered()?;
            if self.ready.is_empty() && self.in_flight_count > 0 {
                self.wait()?;
                // Nothing was there until just now.
                self.looked = (self.care.clock)();
                self.complete_answered()?;
            }
        }
    }

    fn ring_failed(&self, operation: &'static str, source: io::Error) -> Error {
        Error::Ring { device: self.source.name.clone(), operation, source }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|errno| is_transient(errno) || errno == libc::EBUSY)
}

impl ReadEngine for Uring<'_> {
    fn next(&mut self, plan: &mut dyn Iterator<Item = Read>) -> Option<Result<Filled, Error>> {
        self.advance(plan).transpose()
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Uring<'_> {
    fn drop(&mut self) {
        while self.in_flight_count > 0 {
            if self.wait().is_err() {
                break;
            }
            while let Some(answer) = self.ring.completion().next() {
                let slot = usize::try_from(answer.user_data()).expect("a slot's number");
                self.in_flight[slot] = None;
                self.in_flight_count -= 1;
            }
        }
        // Only after a failed wait: the kernel may still write to these.
        self.in_flight.drain(..).flatten().for_each(|operation| std::mem::forget(operation.buffer));
    }
}
