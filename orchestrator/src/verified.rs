//! Which packs of a store are to be read by a verification that does not read all, and when each was read last.
//!
//! A rotation reads a share of the bytes in each round, that which was read longest ago first. What was read stands in a file
//! of lines that only grows while a round goes on, so that a run that was killed loses nothing: the next one goes on with
//! the same round. Losing the file costs nothing but that everything counts as never read.
//!
//! ```text
//! round SECONDS BYTES     a round began then, and is to read so much
//! pack ID SECONDS         this pack was read in full, and nothing was wrong with it
//! done SECONDS            the round is over
//! ```
//! Times are seconds since 1970. A line that is cut off is not there.

use crate::error::{Error, Kind, Result};
use seal::PackId;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Which packs are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// So many of a hundred, drawn from a seed.
    Sample {
        /// 1 to 100.
        percent: u8,
        /// The same packs and the same seed are the same sample.
        seed: u64,
    },
    /// One of so many parts. A pack belongs to the same part for ever.
    Part {
        /// 1 to `of`.
        number: u32,
        /// How many parts there are.
        of: u32,
    },
}

impl Share {
    /// The packs that belong to it.
    pub fn choose(&self, packs: &[(PackId, u64)]) -> BTreeSet<PackId> {
        let ids = packs.iter().map(|(id, _)| *id);
        match *self {
            Share::Sample { percent, seed } => {
                let mut drawn: Vec<_> = ids.map(|id| (mixed(leading(id) ^ mixed(seed)), id)).collect();
                drawn.sort_unstable();
                let count = (drawn.len() * usize::from(percent)).div_ceil(100);
                drawn.into_iter().take(count).map(|(_, id)| id).collect()
            }
            Share::Part { number, of } => {
                let part = |id| (u128::from(leading(id)) * u128::from(of)) >> 64;
                ids.filter(|id| part(*id) + 1 == u128::from(number)).collect()
            }
        }
    }
}

/// A pack's id is a hash: its first bytes are as good as drawn.
fn leading(id: PackId) -> u64 {
    u64::from_be_bytes(*id.as_bytes().first_chunk().expect("an id has 32 bytes"))
}

/// SplitMix64.
fn mixed(seed: u64) -> u64 {
    let mut value = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// What a rotation remembers of a store.
#[derive(Debug)]
pub struct Rotation {
    path: PathBuf,
    file: Mutex<File>,
    read: BTreeMap<PackId, u64>,
    /// Begun and not over: when, and how many bytes it is to read.
    round: Option<(u64, u64)>,
}

/// What a run of a rotation reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// These packs.
    pub packs: BTreeSet<PackId>,
    /// Whether it goes on with a round that was broken off.
    pub resumed: bool,
}

impl Rotation {
    /// Opens what is remembered in a file, or begins to remember there.
    ///
    /// # Errors
    /// [`Kind::Usage`] where the file cannot be read or written.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |what: &str, error: std::io::Error| {
            Error::new(Kind::Usage, format!("{what} {}", path.display())).because(error)
        };
        if let Some(above) = path.parent() {
            fs::create_dir_all(above).map_err(|error| failed("make the directory of", error))?;
        }
        let text = match fs::read(path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("read", error)),
        };
        let (mut read, mut round) = (BTreeMap::new(), None);
        // What follows the last newline was cut off.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["round", began, bytes] => round = began.parse().ok().zip(bytes.parse().ok()),
                ["pack", id, when] => {
                    if let (Ok(id), Ok(when)) = (id.parse(), when.parse::<u64>()) {
                        read.insert(id, when);
                    }
                }
                ["done", _] => round = None,
                _ => {}
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.map_err(|error| failed("open", error))?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(|error| failed("write to", error))?;
        }
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), read, round })
    }

    /// The packs to read now: those of the round that was broken off, or of one that reads a `days`th of the bytes. At
    /// least one where there is any.
    ///
    /// # Errors
    /// [`Kind::Usage`] where the file cannot be written.
    pub fn begin(&mut self, packs: &[(PackId, u64)], days: u32, now: u64) -> Result<Turn> {
        self.forget(packs)?;
        let resumed = self.round.is_some();
        let (began, target) = match self.round {
            Some(round) => round,
            None => {
                let all: u64 = packs.iter().map(|(_, size)| size).sum();
                // After all that was read before, also within the same second or by a clock that was set back.
                let newest = self.read.values().max().map_or(0, |when| when.saturating_add(1));
                let round = (now.max(newest), all.div_ceil(u64::from(days.max(1))));
                self.say(&format!("round {} {}", round.0, round.1))?;
                self.round = Some(round);
                round
            }
        };
        let time = |id: &PackId| self.read.get(id).copied();
        let done: u64 = packs
            .iter()
            .filter(|(id, _)| time(id).is_some_and(|when| when >= began))
            .map(|(_, size)| size)
            .sum();
        let mut left: Vec<_> = packs
            .iter()
            .filter(|(id, _)| time(id).is_none_or(|when| when < began))
            .map(|(id, size)| (time(id), *id, *size))
            .collect();
        left.sort_unstable();
        let (mut sum, mut chosen) = (done, BTreeSet::new());
        for (_, id, size) in left {
            if sum >= target {
                break;
            }
            sum += size;
            chosen.insert(id);
        }
        Ok(Turn { packs: chosen, resumed })
    }

    /// Remembers that a pack was read. May be called from several threads.
    pub fn read(&self, id: PackId, now: u64) {
        let now = self.round.map_or(now, |(began, _)| now.max(began));
        // One that is not remembered is read again.
        let _ = self.say(&format!("pack {id} {now}"));
    }

    /// The round is over.
    ///
    /// # Errors
    /// [`Kind::Usage`] where the file cannot be written.
    pub fn end(&mut self, now: u64) -> Result<()> {
        self.round = None;
        self.say(&format!("done {now}"))
    }

    /// When the pack that was read longest ago was read; none where there is one that never was.
    pub fn oldest(&self, packs: &[(PackId, u64)]) -> Option<u64> {
        packs.iter().map(|(id, _)| self.read.get(id).copied()).min().flatten()
    }

    fn say(&self, line: &str) -> Result<()> {
        let mut file = self.file.lock().expect("no panic while it is written");
        file.write_all(format!("{line}\n").as_bytes()).map_err(|error| {
            Error::new(Kind::Usage, format!("write to {}", self.path.display())).because(error)
        })
    }

    /// Writes the file anew without what is said twice and without packs that are gone.
    fn forget(&mut self, packs: &[(PackId, u64)]) -> Result<()> {
        let there: BTreeSet<PackId> = packs.iter().map(|(id, _)| *id).collect();
        self.read.retain(|id, _| there.contains(id));
        let mut text: String = self.read.iter().map(|(id, when)| format!("pack {id} {when}\n")).collect();
        if let Some((began, bytes)) = self.round {
            text.push_str(&format!("round {began} {bytes}\n"));
        }
        let part = self.path.with_extension("part");
        let written = fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &self.path))
            .and_then(|()| OpenOptions::new().append(true).open(&self.path));
        let failed = |error| Error::new(Kind::Usage, format!("write {}", self.path.display())).because(error);
        self.file = Mutex::new(written.map_err(failed)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packs of 10 bytes.
    fn packs(count: u32) -> Vec<(PackId, u64)> {
        (0..count).map(|number| (PackId::of(&number.to_le_bytes()), 10)).collect()
    }

    fn rotation(dir: &Path) -> Rotation {
        Rotation::open(&dir.join("verify/state")).expect("a rotation")
    }

    #[test]
    fn parts_have_every_pack_once_and_keep_it() {
        let all = packs(100);
        let mut seen = BTreeSet::new();
        for number in 1..=7 {
            let part = Share::Part { number, of: 7 }.choose(&all);
            assert!(!part.is_empty());
            // A pack that comes changes no other one's part.
            assert!(Share::Part { number, of: 7 }.choose(&packs(200)).is_superset(&part));
            part.into_iter().for_each(|id| assert!(seen.insert(id)));
        }
        assert_eq!(seen.len(), 100);
    }

    #[test]
    fn a_sample_has_its_share_and_is_drawn_by_its_seed() {
        let all = packs(101);
        let sample = |percent, seed| Share::Sample { percent, seed }.choose(&all);
        assert_eq!(sample(10, 1), sample(10, 1));
        assert_ne!(sample(10, 1), sample(10, 2));
        assert_eq!((sample(10, 1).len(), sample(1, 1).len(), sample(100, 1).len()), (11, 2, 101));
        assert!(Share::Sample { percent: 1, seed: 1 }.choose(&[]).is_empty());
    }

    #[test]
    fn a_rotation_reads_everything_in_its_days_and_then_the_oldest() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = packs(10);
        let mut seen = BTreeSet::new();
        for day in 1..=4u64 {
            let mut rotation = rotation(dir.path());
            let turn = rotation.begin(&all, 4, day * 100).expect("begun");
            assert!(!turn.resumed && turn.packs.len() == 3, "{turn:?}");
            turn.packs.iter().for_each(|id| rotation.read(*id, day * 100 + 1));
            rotation.end(day * 100 + 2).expect("ended");
            let fresh = turn.packs.difference(&seen).count();
            assert_eq!(fresh, if day < 4 { 3 } else { 1 });
            seen.extend(turn.packs);
        }
        let rotation = rotation(dir.path());
        assert_eq!(rotation.oldest(&all), Some(101), "two of the first day's three were read again");
        assert_eq!(rotation.oldest(&packs(11)), None, "a new pack was never read");
    }

    #[test]
    fn a_round_that_was_broken_off_goes_on_where_it_stopped() {
        let dir = tempfile::tempdir().expect("a directory");
        let all = packs(10);
        let mut first = rotation(dir.path());
        let turn = first.begin(&all, 2, 100).expect("begun");
        assert_eq!(turn.packs.len(), 5);
        let read: Vec<_> = turn.packs.iter().copied().take(2).collect();
        read.iter().for_each(|id| first.read(*id, 101));
        drop(first);
        // Killed in the middle of a line.
        let path = dir.path().join("verify/state");
        let mut text = fs::read_to_string(&path).expect("a file");
        text.push_str("pack 00ff");
        fs::write(&path, text).expect("written");
        let mut second = rotation(dir.path());
        let rest = second.begin(&all, 2, 500).expect("begun");
        let expected: BTreeSet<_> = turn.packs.iter().filter(|id| !read.contains(id)).copied().collect();
        assert_eq!(rest, Turn { packs: expected, resumed: true });
        rest.packs.iter().for_each(|id| second.read(*id, 501));
        second.end(502).expect("ended");
        let mut third = rotation(dir.path());
        let other = third.begin(&all, 2, 900).expect("begun");
        assert!(!other.resumed && other.packs.is_disjoint(&turn.packs), "the other half");
    }
}
