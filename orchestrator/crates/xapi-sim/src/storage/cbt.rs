//! Changed-block tracking: one log per tracked VDI, chained parent to child as the storage driver chains its files.
//!
//! A log holds the writes since the previous log point, one bit per 64 KiB, least significant bit first as on a real
//! host's disk; callers of the API get each byte reversed. The size that counts is the log's own.

use super::disk::GRANULE;
use crate::failure::{Failure, Outcome};
use base64::Engine;
use std::collections::HashMap;

/// One log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    parent: Option<String>,
    child: Option<String>,
    size: u64,
    bits: Vec<u8>,
    /// Known to miss writes: the host went down while the disk was open.
    inconsistent: bool,
}

impl Log {
    fn new(size: u64) -> Self {
        Self { parent: None, child: None, size, bits: vec![0; bytes_for(size)], inconsistent: false }
    }

    fn grow(&mut self, size: u64) {
        self.size = size;
        self.bits.resize(bytes_for(size), 0);
    }

    fn set(&mut self, granule: u64) {
        let index = usize::try_from(granule / 8).expect("a bitmap fits in memory");
        self.bits[index] |= 1 << (granule % 8);
    }
}

/// Bytes of a bitmap for a disk of `size` bytes: both roundings are up.
fn bytes_for(size: u64) -> usize {
    usize::try_from(size.div_ceil(GRANULE).div_ceil(8)).expect("a bitmap fits in memory")
}

/// All logs by the uuid of their VDI.
#[derive(Debug, Default)]
pub(crate) struct Logs(HashMap<String, Log>);

impl Logs {
    /// Starts a log of its own for a VDI.
    pub(crate) fn enable(&mut self, vdi: &str, size: u64) {
        self.0.entry(vdi.to_owned()).or_insert_with(|| Log::new(size));
    }

    /// Drops the VDI's log and cuts it off from what came before.
    pub(crate) fn disable(&mut self, vdi: &str) {
        if let Some(log) = self.0.remove(vdi) {
            self.point_child(log.parent.as_deref(), None);
            self.point_parent(log.child.as_deref(), None);
        }
    }

    pub(crate) fn tracked(&self, vdi: &str) -> bool {
        self.0.contains_key(vdi)
    }

    /// The live log becomes the snapshot's; the live VDI goes on with an empty one behind it.
    pub(crate) fn snapshot(&mut self, live: &str, snapshot: &str) {
        let Some(mut log) = self.0.remove(live) else { return };
        let size = log.size;
        self.point_child(log.parent.as_deref(), Some(snapshot));
        log.child = Some(live.to_owned());
        self.0.insert(snapshot.to_owned(), log);
        let fresh = Log { parent: Some(snapshot.to_owned()), ..Log::new(size) };
        self.0.insert(live.to_owned(), fresh);
    }

    /// The VDI goes away: its writes move into its child, so that differences stay computable across it.
    pub(crate) fn delete(&mut self, vdi: &str) {
        let Some(log) = self.0.remove(vdi) else { return };
        self.point_child(log.parent.as_deref(), log.child.as_deref());
        if let Some(child) = log.child.as_ref().and_then(|c| self.0.get_mut(c)) {
            child.parent = log.parent;
            child.bits.iter_mut().zip(&log.bits).for_each(|(to, from)| *to |= from);
            child.inconsistent |= log.inconsistent;
        }
    }

    /// The VDI grew.
    pub(crate) fn resize(&mut self, vdi: &str, size: u64) {
        if let Some(log) = self.0.get_mut(vdi) {
            log.grow(size);
        }
    }

    /// Records a write of `length` bytes at `offset`.
    pub(crate) fn record(&mut self, vdi: &str, offset: u64, length: u64) {
        let Some(log) = self.0.get_mut(vdi) else { return };
        let end = offset.saturating_add(length).min(log.size);
        for granule in offset / GRANULE..end.div_ceil(GRANULE) {
            log.set(granule);
        }
    }

    /// The log is known to miss writes from now on.
    pub(crate) fn mark_inconsistent(&mut self, vdi: &str) {
        if let Some(log) = self.0.get_mut(vdi) {
            log.inconsistent = true;
        }
    }

    /// Forgets the writes to the granules of a range; answers how many it knew of.
    pub(crate) fn forget(&mut self, vdi: &str, offset: u64, length: u64) -> u64 {
        let Some(log) = self.0.get_mut(vdi) else { return 0 };
        let end = offset.saturating_add(length).min(log.size);
        let mut forgotten = 0;
        for granule in offset / GRANULE..end.div_ceil(GRANULE) {
            let index = usize::try_from(granule / 8).expect("a bitmap fits in memory");
            let bit = 1 << (granule % 8);
            forgotten += u64::from(log.bits[index] & bit != 0);
            log.bits[index] &= !bit;
        }
        forgotten
    }

    /// The bitmap of what changed after `from` up to and including `to`, most significant bit first.
    pub(crate) fn changed(&self, from: &str, to: &str) -> Outcome<Vec<u8>> {
        let refuse =
            |why: &str| Failure::storage(460, "Failed to calculate changed blocks for given VDIs.", why);
        if from == to {
            return Err(refuse("Source and target VDI are same"));
        }
        let unrelated = || refuse("Source and target VDI are unrelated");
        let target = self.0.get(to).ok_or_else(unrelated)?;
        let mut at = self.0.get(from).ok_or_else(unrelated)?;
        let mut bits = vec![0; target.bits.len()];
        let mut shrank = false;
        let mut inconsistent = false;
        loop {
            let name = at.child.as_deref().ok_or_else(unrelated)?;
            at = self.0.get(name).ok_or_else(unrelated)?;
            shrank |= at.size > target.size;
            inconsistent |= at.inconsistent;
            bits.iter_mut().zip(&at.bits).for_each(|(to, from): (&mut u8, _)| *to |= from);
            if name == to {
                break;
            }
        }
        if shrank || inconsistent {
            let why = if shrank { "the disk shrank" } else { "the log was not closed" };
            return Err(Failure::storage(459, "Changed blocks metadata is inconsistent", why));
        }
        Ok(bits.into_iter().map(u8::reverse_bits).collect())
    }

    fn point_child(&mut self, vdi: Option<&str>, child: Option<&str>) {
        if let Some(log) = vdi.and_then(|v| self.0.get_mut(v)) {
            log.child = child.map(str::to_owned);
        }
    }

    fn point_parent(&mut self, vdi: Option<&str>, parent: Option<&str>) {
        if let Some(log) = vdi.and_then(|v| self.0.get_mut(v)) {
            log.parent = parent.map(str::to_owned);
        }
    }
}

/// The form in which the API hands a bitmap out.
pub(crate) fn encode(bitmap: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bitmap)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = GRANULE;

    fn code(outcome: Outcome<Vec<u8>>) -> String {
        outcome.unwrap_err().code().to_owned()
    }

    #[test]
    fn the_first_block_is_the_most_significant_bit_of_the_first_byte() {
        let mut logs = Logs::default();
        logs.enable("live", 20 * K);
        logs.snapshot("live", "s1");
        for block in [0, 1, 9, 19] {
            logs.record("live", block * K + 5, 1);
        }
        logs.snapshot("live", "s2");
        // 11000000 01000000 00010000, written down by hand.
        assert_eq!(logs.changed("s1", "s2").unwrap(), [0xc0, 0x40, 0x10]);
        assert_eq!(encode(&[0xc0, 0x40, 0x10]), "wEAQ");
    }

    #[test]
    fn writes_between_points_add_up_along_the_chain() {
        let mut logs = Logs::default();
        logs.enable("live", 8 * K);
        logs.record("live", 0, 8 * K);
        logs.snapshot("live", "s1");
        logs.record("live", K - 1, 2);
        logs.snapshot("live", "s2");
        logs.record("live", 7 * K, K);
        logs.snapshot("live", "s3");
        logs.record("live", 3 * K, 1);
        assert_eq!(logs.changed("s1", "s2").unwrap(), [0b1100_0000]);
        assert_eq!(logs.changed("s2", "s3").unwrap(), [0b0000_0001]);
        assert_eq!(logs.changed("s1", "s3").unwrap(), [0b1100_0001]);
        assert_eq!(logs.changed("s1", "live").unwrap(), [0b1101_0001]);
        assert_eq!(code(logs.changed("s3", "s1")), "SR_BACKEND_FAILURE_460");
        assert_eq!(code(logs.changed("s1", "s1")), "SR_BACKEND_FAILURE_460");
        assert_eq!(code(logs.changed("s1", "nobody")), "SR_BACKEND_FAILURE_460");
    }

    #[test]
    fn deleting_in_the_middle_keeps_the_differences() {
        let mut logs = Logs::default();
        logs.enable("live", 8 * K);
        logs.snapshot("live", "s1");
        logs.record("live", 2 * K, 1);
        logs.snapshot("live", "s2");
        logs.record("live", 4 * K, 1);
        logs.snapshot("live", "s3");
        logs.delete("s2");
        assert_eq!(logs.changed("s1", "s3").unwrap(), [0b0010_1000]);
        logs.delete("s3");
        assert_eq!(logs.changed("s1", "live").unwrap(), [0b0010_1000]);
    }

    #[test]
    fn growing_extends_the_earlier_part_with_zero_bits() {
        let mut logs = Logs::default();
        logs.enable("live", 8 * K);
        logs.snapshot("live", "s1");
        logs.record("live", 0, 1);
        logs.snapshot("live", "s2");
        logs.resize("live", 9 * K + 1);
        logs.record("live", 9 * K, 1);
        logs.snapshot("live", "s3");
        assert_eq!(logs.changed("s1", "s2").unwrap(), [0b1000_0000]);
        assert_eq!(logs.changed("s1", "s3").unwrap(), [0b1000_0000, 0b0100_0000]);
    }

    #[test]
    fn a_log_that_was_not_closed_spoils_every_difference_across_it_and_no_later_one() {
        let mut logs = Logs::default();
        logs.enable("live", 8 * K);
        logs.snapshot("live", "s1");
        logs.mark_inconsistent("live");
        logs.snapshot("live", "s2");
        logs.snapshot("live", "s3");
        assert_eq!(code(logs.changed("s1", "s2")), "SR_BACKEND_FAILURE_459");
        assert_eq!(code(logs.changed("s1", "s3")), "SR_BACKEND_FAILURE_459");
        assert_eq!(logs.changed("s2", "s3").unwrap(), [0]);
        logs.delete("s2");
        assert_eq!(code(logs.changed("s1", "s3")), "SR_BACKEND_FAILURE_459");
    }

    #[test]
    fn forgotten_writes_are_no_differences() {
        let mut logs = Logs::default();
        logs.enable("live", 20 * K);
        logs.snapshot("live", "s1");
        logs.record("live", 0, 20 * K);
        assert_eq!(logs.forget("live", 2 * K + 1, K), 2);
        assert_eq!(logs.forget("live", 19 * K, u64::MAX), 1);
        assert_eq!(logs.changed("s1", "live").unwrap(), [0b1100_1111, 0xff, 0b1110_0000]);
    }

    #[test]
    fn switching_tracking_off_makes_later_snapshots_unrelated() {
        let mut logs = Logs::default();
        logs.enable("live", 8 * K);
        logs.snapshot("live", "s1");
        logs.disable("live");
        logs.enable("live", 8 * K);
        logs.snapshot("live", "s2");
        assert_eq!(code(logs.changed("s1", "s2")), "SR_BACKEND_FAILURE_460");
        assert!(logs.tracked("s1") && logs.tracked("s2"));
    }

    #[test]
    fn one_sector_and_exact_sizes_have_the_documented_lengths() {
        for (size, bytes) in [(512, 1), (8 * K, 1), (8 * K + 1, 2), (2 << 40, 4 << 20)] {
            assert_eq!(bytes_for(size), bytes);
        }
    }
}
