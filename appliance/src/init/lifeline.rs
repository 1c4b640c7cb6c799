//! The pipe from the worker to PID 1: signs of life, the time limit, the final word.
//!
//! One frame is `kind u8, size u16 little-endian, payload`; a frame is written with one call and is shorter than
//! PIPE_BUF, so frames of several threads never mix. The pipe's end means that the worker is gone.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::platform::clock;

/// Time without a sign of life after which PID 1 gives up, until the order sets another.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(90);
/// No limit below: one slow read of a busy storage takes that long.
pub const LIMIT_MIN: Duration = Duration::from_secs(5);
/// No limit above: a VM without a sign of life for a day helps nobody.
pub const LIMIT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Ticks closer together than this tell PID 1 nothing; they would only wake it.
const TICK_PAUSE: Duration = Duration::from_millis(200);

/// Longest text in a frame. With the header far below PIPE_BUF (4096).
const TEXT_MAX: usize = 1500;
const HEADER_SIZE: usize = 3;

/// What the worker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Progress was made.
    Tick,
    /// From now on this long without a tick is the end.
    Limit(Duration),
    /// Why the job fails: code, message.
    Error(String, String),
    /// The job is done, in case this process cannot say so itself.
    Done,
    /// The last state stands in XenStore; PID 1 has nothing to add.
    FinalWord,
}

impl Frame {
    fn encode(&self) -> Vec<u8> {
        let (kind, payload) = match self {
            Frame::Tick => (b'T', Vec::new()),
            Frame::Limit(limit) => {
                (b'L', limit.as_millis().min(u128::from(u64::MAX)).to_string().into_bytes())
            }
            Frame::Error(code, message) => (b'E', format!("{code}\0{message}").into_bytes()),
            Frame::Done => (b'D', Vec::new()),
            Frame::FinalWord => (b'W', Vec::new()),
        };
        let size = payload.len().min(TEXT_MAX);
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(size as u16).to_le_bytes());
        bytes.extend_from_slice(&payload[..size]);
        bytes
    }

    /// `None`: nothing that a worker of this version says; ignored.
    fn decode(kind: u8, payload: &[u8]) -> Option<Frame> {
        match kind {
            b'T' => Some(Frame::Tick),
            b'L' => {
                let ms: u64 = std::str::from_utf8(payload).ok()?.parse().ok()?;
                Some(Frame::Limit(Duration::from_millis(ms).clamp(LIMIT_MIN, LIMIT_MAX)))
            }
            b'E' => {
                let text = String::from_utf8_lossy(payload);
                let (code, message) = text.split_once('\0')?;
                Some(Frame::Error(code.to_owned(), message.to_owned()))
            }
            b'D' => Some(Frame::Done),
            b'W' => Some(Frame::FinalWord),
            _ => None,
        }
    }
}

/// PID 1's side: bytes to frames.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: Vec<u8>,
}

impl Frames {
    /// Takes bytes as they came from the pipe.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> Option<Frame> {
        loop {
            let (header, rest) = self.buffer.split_first_chunk::<HEADER_SIZE>()?;
            let (kind, size) = (header[0], usize::from(u16::from_le_bytes([header[1], header[2]])));
            let frame = Frame::decode(kind, rest.get(..size)?);
            self.buffer.drain(..HEADER_SIZE + size);
            if frame.is_some() {
                return frame;
            }
        }
    }
}

/// The worker's side. Clones write to the same pipe. Without a pipe (tests, tools) it does nothing.
#[derive(Debug, Clone, Default)]
pub struct Ticker {
    pipe: Option<Arc<File>>,
    last_tick_ms: Arc<AtomicU64>,
}

impl Ticker {
    /// Takes the pipe that PID 1 handed over as standard input.
    pub(crate) fn from_stdin() -> std::io::Result<Ticker> {
        let pipe = std::io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Ticker { pipe: Some(Arc::new(File::from(pipe))), last_tick_ms: Arc::default() })
    }

    /// Tells PID 1 that the job goes on: progress was made, or the orchestrator answered. Never call it on a timer.
    /// Cheap enough for every block.
    pub fn tick(&self) {
        let now_ms = u64::try_from(clock::uptime().as_millis()).unwrap_or(u64::MAX);
        let last_ms = self.last_tick_ms.load(Ordering::Relaxed);
        if last_ms == 0 || now_ms.saturating_sub(last_ms) >= TICK_PAUSE.as_millis() as u64 {
            self.last_tick_ms.store(now_ms, Ordering::Relaxed);
            self.send(&Frame::Tick);
        }
    }

    /// Sets the time limit, within [`LIMIT_MIN`] and [`LIMIT_MAX`]. Counts as a tick.
    pub fn set_limit(&self, limit: Duration) {
        self.send(&Frame::Limit(limit));
    }

    /// Tells PID 1 why the job fails, in case this process cannot say it itself.
    pub(crate) fn error(&self, code: &str, message: &str) {
        self.send(&Frame::Error(code.to_owned(), message.to_owned()));
    }

    /// Tells PID 1 that the job is done, in case this process cannot say it itself.
    pub(crate) fn done(&self) {
        self.send(&Frame::Done);
    }

    /// Tells PID 1 that nothing is left to say.
    pub(crate) fn final_word(&self) {
        self.send(&Frame::FinalWord);
    }

    fn send(&self, frame: &Frame) {
        if let Some(pipe) = &self.pipe {
            // The pipe does not block. Full: PID 1 has thousands of ticks to read. Broken: PID 1 is powering off.
            let _ = pipe.as_ref().write(&frame.encode());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frames_of(bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Frames::default();
        frames.push(bytes);
        std::iter::from_fn(|| frames.next_frame()).collect()
    }

    #[test]
    fn frames_come_back_in_order() {
        let sent = [
            Frame::Tick,
            Frame::Limit(Duration::from_secs(30)),
            Frame::Error("panic".to_owned(), "worker panicked".to_owned()),
            Frame::Done,
            Frame::FinalWord,
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
        assert_eq!(frames_of(&bytes), sent);
    }

    #[test]
    fn limits_are_kept_sensible() {
        assert_eq!(frames_of(&Frame::Limit(Duration::ZERO).encode()), [Frame::Limit(LIMIT_MIN)]);
        assert_eq!(frames_of(&Frame::Limit(Duration::MAX).encode()), [Frame::Limit(LIMIT_MAX)]);
    }

    #[test]
    fn a_long_message_still_fits_one_atomic_write() {
        let frame = Frame::Error("panic".to_owned(), "ü".repeat(3000)).encode();
        assert!(frame.len() < 4096);
        assert_eq!(frames_of(&frame).len(), 1);
    }

    #[test]
    fn unknown_frames_are_skipped() {
        assert_eq!(frames_of(b"?\x01\0xT\0\0"), [Frame::Tick]);
    }

    #[test]
    fn a_ticker_without_a_pipe_does_nothing() {
        Ticker::default().tick();
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            let _ = frames_of(&bytes);
        }
    }
}
