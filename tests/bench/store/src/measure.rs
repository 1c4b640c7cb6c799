//! Time, memory and disk, and the ids that are asked for.

use crate::{Error, io};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Questions of each kind.
pub(crate) const QUESTIONS: u64 = 300_000;
/// Objects of a pack: 16 MiB of blocks that compress to about 40 KiB.
pub(crate) const PACK_ENTRIES: u64 = 400;

/// A stretch of work.
pub(crate) struct Clock {
    wall: Instant,
    cpu_us: i64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { wall: Instant::now(), cpu_us: cpu_us() }
    }

    /// Wall and processor time, in all and for each of `count`.
    pub(crate) fn stop(self, count: u64) -> Value {
        let wall_us = self.wall.elapsed().as_secs_f64() * 1e6;
        let cpu_us = cpu_us().saturating_sub(self.cpu_us) as f64;
        let each = count.max(1) as f64;
        json!({
            "count": count, "wall_s": wall_us / 1e6, "cpu_s": cpu_us / 1e6,
            "wall_us_each": wall_us / each, "cpu_us_each": cpu_us / each,
        })
    }
}

/// Of this process, with the system's part.
fn cpu_us() -> i64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |used| {
        used.user_time().num_microseconds().saturating_add(used.system_time().num_microseconds())
    })
}

/// Memory in bytes, by a line of `/proc/self/status`: `VmHWM` is the most so far, `RssAnon` what is not a file's now.
pub(crate) fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Bytes that files below a directory take on the disk.
pub(crate) fn disk(dir: &Path) -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in std::fs::read_dir(dir).map_err(io(format!("list {}", dir.display())))? {
        let entry = entry.map_err(io("list"))?;
        let about = entry.metadata().map_err(io("look at a file"))?;
        sum += if about.is_dir() { disk(&entry.path())? } else { about.blocks() * 512 };
    }
    Ok(sum)
}

/// The id of an object: as even as a hash, and made in a few nanoseconds.
pub(crate) fn id(number: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (at, part) in (1u64..).zip(bytes.as_chunks_mut::<8>().0) {
        let mut value = number.wrapping_mul(4).wrapping_add(at).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *part = (value ^ (value >> 31)).to_le_bytes();
    }
    bytes
}

/// The n-th of numbers below `below` that follow no order.
pub(crate) fn drawn(n: u64, below: u64) -> u64 {
    let bytes = id(n.wrapping_add(1 << 60));
    u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) % below.max(1)
}
