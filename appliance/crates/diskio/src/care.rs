//! What an engine does about a read that fails: tries again with growing pauses, then narrows it down to the sectors
//! that cannot be read, and gives up or goes on without them, as it was told.
//!
//! Both engines come here with a read whose buffer they own, so what is saved and what is not never depends on the
//! engine. Promises: a bounded number of tries and of bytes given up; whatever could not be read is zeros in the
//! buffer and stands in the list of the read; a wait is never longer than a second without asking whether to go on.

use crate::Error;
use crate::pool::{ALIGNMENT, Buffer};
use crate::pread::{self, Fault};
use crate::seam::{self, Seam};
use crate::source::{SECTOR, Source, size_of};
use blocks::{ByteCount, ByteOffset, ByteRange, Read};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

/// Pauses before a failed read is tried again: a path that fails over, a device that resets or a moment of trouble on
/// the storage network passes soon, and what is below tries again for longer. 1 s in all, far below the least time of
/// a watchdog (10 s).
pub const RETRY_PAUSES: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(300),
    Duration::from_millis(500),
];

/// Given up at most, whatever the size of the disk: a disk with more damage than this is not to be saved by leaving
/// out blocks.
const MOST_BAD: u64 = 64 << 20;
/// And at most this share of the disk, in parts of a hundred, as long as that is more than `LEAST_BAD`.
const BAD_PERCENT: u64 = 1;
/// So much may be given up on a small disk; of a tiny one half.
const LEAST_BAD: u64 = 1 << 20;

/// Bytes of a disk of `size` that may be unreadable before a backup of "the rest" would be a lie.
pub fn bad_limit(size: ByteCount) -> ByteCount {
    let size = size.get();
    ByteCount::new((size / 100 * BAD_PERCENT).clamp(LEAST_BAD, MOST_BAD).min(size / 2))
}

/// How an engine deals with what cannot be read, and what it needs from whoever runs it.
pub struct Care<'a> {
    /// So many bytes may be given up; none: the first one is an error.
    pub give_up: Option<ByteCount>,
    /// Waits, and says whether to go on. Also asked, with no time to wait, between the tries of a failed read.
    pub rest: Box<dyn FnMut(Duration) -> bool + Send + 'a>,
    /// The time, from any beginning.
    pub clock: Box<dyn Fn() -> Duration + Send + 'a>,
    /// What stands between the engine and the kernel.
    pub seam: Box<dyn Seam>,
    /// Bytes given up so far.
    pub(crate) given_up: ByteCount,
}

impl<'a> Care<'a> {
    /// Gives up nothing. `rest` waits, and says whether to go on.
    pub fn new(rest: impl FnMut(Duration) -> bool + Send + 'a) -> Self {
        let began = Instant::now();
        Self {
            give_up: None,
            rest: Box::new(rest),
            clock: Box::new(move || began.elapsed()),
            seam: seam::none(),
            given_up: ByteCount::new(0),
        }
    }

    /// Goes on without what cannot be read, up to so many bytes.
    #[must_use]
    pub fn giving_up(self, limit: Option<ByteCount>) -> Self {
        Self { give_up: limit, ..self }
    }

    /// Takes the time of reads by another clock.
    #[must_use]
    pub fn with_clock(self, clock: impl Fn() -> Duration + Send + 'a) -> Self {
        Self { clock: Box::new(clock), ..self }
    }

    /// Puts something between the engine and the kernel.
    #[must_use]
    pub fn with_seam(self, seam: Box<dyn Seam>) -> Self {
        Self { seam, ..self }
    }

    /// Reads again what the kernel failed to read into `buffer`; `failure` is what it said. Gives the parts that could
    /// not be read, which are zeros in the buffer.
    pub(crate) fn read_again(
        &mut self,
        source: &mut Source,
        read: &Read,
        buffer: &mut Buffer,
        failure: io::Error,
    ) -> Result<Vec<ByteRange>, Error> {
        let whole = 0..size_of(read);
        let mut salvage = Salvage { care: self, source, read, buffer, last: failure, bad: Vec::new() };
        for pause in RETRY_PAUSES {
            if salvage.try_after(pause, whole.clone())? {
                return Ok(Vec::new());
            }
        }
        salvage.narrow(whole)?;
        Ok(salvage.bad)
    }
}

/// Waits without being asked anything.
impl Default for Care<'_> {
    fn default() -> Self {
        Self::new(|pause| {
            std::thread::sleep(pause);
            true
        })
    }
}

/// Errors that speak of the medium or the way to it: another try may help, and a smaller read may. Xen's block
/// frontend knows no other than EIO; the rest are what Linux makes of the answers of disks and multipath devices.
pub(crate) fn is_unreadable(errno: i32) -> bool {
    const ALL: [i32; 6] =
        [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EREMOTEIO, libc::ETIMEDOUT, libc::ENOLINK];
    ALL.contains(&errno)
}

/// One read that failed.
struct Salvage<'s, 'a> {
    care: &'s mut Care<'a>,
    source: &'s mut Source,
    read: &'s Read,
    buffer: &'s mut Buffer,
    /// What the kernel said last.
    last: io::Error,
    bad: Vec<ByteRange>,
}

impl Salvage<'_, '_> {
    /// Tries a part of the read once more; whether it is there now.
    fn try_after(&mut self, pause: Duration, part: Range<usize>) -> Result<bool, Error> {
        if !(self.care.rest)(pause) {
            return Err(Error::Stopped { device: self.source.name.clone() });
        }
        let filled = pread::fill(self.source, self.care.seam.as_mut(), self.read, part, self.buffer);
        self.judge(filled)
    }

    fn judge(&mut self, filled: Result<(), Fault>) -> Result<bool, Error> {
        match filled {
            Ok(()) => Ok(true),
            Err(Fault::Unreadable(error)) => {
                self.last = error;
                Ok(false)
            }
            Err(Fault::Failed(error)) => Err(error),
        }
    }

    /// Halves a part that cannot be read as a whole, down to what a device reads at once.
    fn narrow(&mut self, part: Range<usize>) -> Result<(), Error> {
        if part.len() <= ALIGNMENT {
            return self.sectors(part);
        }
        let middle = part.start + (part.len() / 2).next_multiple_of(ALIGNMENT);
        for half in [part.start..middle, middle..part.end] {
            if !half.is_empty() && !self.try_after(Duration::ZERO, half.clone())? {
                self.narrow(half)?;
            }
        }
        Ok(())
    }

    /// Reads a part of at most 4 KiB by sectors, where the device has smaller ones.
    fn sectors(&mut self, part: Range<usize>) -> Result<(), Error> {
        for start in part.clone().step_by(SECTOR) {
            let sector = start..part.end.min(start + SECTOR);
            if !(self.care.rest)(Duration::ZERO) {
                return Err(Error::Stopped { device: self.source.name.clone() });
            }
            let read =
                pread::sector(self.source, self.care.seam.as_mut(), self.read, sector.clone(), self.buffer);
            match read {
                // Its sectors are as large as this part.
                None => return self.give_up(part),
                Some(filled) => {
                    if !self.judge(filled)? {
                        self.give_up(sector)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn give_up(&mut self, part: Range<usize>) -> Result<(), Error> {
        let offset = ByteOffset::new(self.read.offset.get() + part.start as u64);
        let size = ByteCount::new(part.len() as u64);
        let device = self.source.name.clone();
        // The kernel's words are used up here; another error would have its own.
        let source = std::mem::replace(&mut self.last, io::Error::from_raw_os_error(libc::EIO));
        let Some(limit) = self.care.give_up else {
            return Err(Error::Read { device, offset, size, source });
        };
        let bad = self.care.given_up.saturating_add(size);
        if bad > limit {
            return Err(Error::Unreadable { device, bad, limit, offset, source });
        }
        self.last = source;
        self.care.given_up = bad;
        self.buffer.room(part.start, part.end).fill(0);
        match self.bad.last_mut() {
            Some(last) if last.offset.checked_add(last.size) == Some(offset) => {
                last.size = last.size.saturating_add(size);
            }
            _ => self.bad.push(ByteRange { offset, size }),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_given_up_is_a_hundredth_within_bounds_and_never_most_of_a_disk() {
        for (size, limit) in [
            (0, 0),
            (512, 256),
            (1 << 20, 1 << 19),
            (8 << 20, 1 << 20),
            (400 << 20, 4 << 20),
            (1 << 40, 64 << 20),
            (u64::MAX, 64 << 20),
        ] {
            assert_eq!(bad_limit(ByteCount::new(size)), ByteCount::new(limit), "of {size}");
        }
    }

    #[test]
    fn all_pauses_together_are_far_below_the_least_watchdog() {
        assert!(RETRY_PAUSES.iter().sum::<Duration>() < Duration::from_secs(2));
        assert!(RETRY_PAUSES.is_sorted());
    }
}
