//! Whether a run may hold an id: a binary fuse filter of 8 bits for each stretch of a run.
//!
//! After Graf and Lemire, "Binary Fuse Filters: Fast and Smaller Than Xor Filters" (2022), with three positions a key. One
//! of 256 ids that are not there is taken for one that may be. A filter is made for a stretch at a time, because making
//! it takes 20 bytes a key, and a run must be writable in little memory however long it is.

/// Tries with other seeds; each fails with a chance of one in some hundred.
const TRIES: u64 = 64;
/// Tries after which keys are suspected to be there twice, which no seed can help.
const TRIES_WITH_TWINS: u64 = 4;
/// Longest segment: two bits of the position come from each of the hash's ends.
const MAX_SEGMENT: u32 = 1 << 18;

/// How the positions of a key are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) seed: u64,
    /// A power of two.
    pub(crate) segment: u32,
    /// Where the last first position is.
    pub(crate) span: u32,
}

impl Shape {
    /// Bytes of fingerprints. None: there is no filter, and every key may be there.
    pub(crate) fn size(&self) -> usize {
        if self.span == 0 { 0 } else { self.span as usize + 2 * self.segment as usize }
    }

    /// Whether positions stay within [`size`](Self::size), whatever the hash.
    pub(crate) fn is_sound(&self) -> bool {
        self.span == 0
            || (self.segment.is_power_of_two()
                && self.segment <= MAX_SEGMENT
                && self.span.is_multiple_of(self.segment)
                && self.span <= 1 << 30)
    }

    fn positions(&self, hash: u64) -> [usize; 3] {
        let first = (u128::from(hash) * u128::from(self.span)) >> 64;
        let first = usize::try_from(first).expect("below the span, which is 32 bits");
        let (segment, mask) = (self.segment as usize, u64::from(self.segment - 1));
        let low = |bits: u64| usize::try_from(bits & mask).expect("below 2^18");
        // Changing low bits only, a position stays in its segment; three segments that follow each other have one each.
        [first, (first + segment) ^ low(hash >> 18), (first + 2 * segment) ^ low(hash)]
    }
}

/// Spreads a key over 64 bits.
fn mix(key: u64, seed: u64) -> u64 {
    let mut hash = key.wrapping_add(seed);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

fn fingerprint(hash: u64) -> u8 {
    (hash ^ (hash >> 32)).to_le_bytes()[0]
}

/// Whether a key may be among those that the filter was made of.
pub(crate) fn may_hold(shape: &Shape, fingerprints: &[u8], key: u64) -> bool {
    if shape.span == 0 {
        return true;
    }
    let hash = mix(key, shape.seed);
    let [a, b, c] = shape.positions(hash);
    fingerprints[a] ^ fingerprints[b] ^ fingerprints[c] == fingerprint(hash)
}

fn shape_for(count: usize) -> Shape {
    let size = f64::from(u32::try_from(count).expect("a stretch is far below 2^32"));
    let exponent = (size.ln() / 3.33_f64.ln() + 2.25).floor().clamp(2.0, 18.0);
    let mut segment = 4u32;
    while f64::from(segment) < 2f64.powf(exponent) {
        segment *= 2;
    }
    let factor = (0.875 + 0.25 * 1e6_f64.ln() / size.max(2.0).ln()).max(1.125);
    let mut span = segment;
    while f64::from(span) + 2.0 * f64::from(segment) < size * factor {
        span += segment;
    }
    Shape { seed: 0, segment, span }
}

/// Makes filters, in memory that is used again.
#[derive(Default)]
pub(crate) struct Builder {
    hashes: Vec<u64>,
    counts: Vec<u8>,
    alone: Vec<usize>,
    order: Vec<(u64, u8)>,
}

impl Builder {
    /// A filter of these keys, appended to `fingerprints`. Where none can be made every key may be there.
    pub(crate) fn build(&mut self, keys: &mut Vec<u64>, fingerprints: &mut Vec<u8>) -> Shape {
        if keys.is_empty() {
            return Shape::default();
        }
        let mut shape = shape_for(keys.len());
        for attempt in 1..=TRIES {
            if attempt == TRIES_WITH_TWINS {
                keys.sort_unstable();
                keys.dedup();
                shape = shape_for(keys.len());
            }
            shape.seed = attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if self.peel(keys, &shape) {
                self.assign(&shape, fingerprints);
                return shape;
            }
        }
        Shape::default()
    }

    /// Finds an order in which each key has a position to itself.
    fn peel(&mut self, keys: &[u64], shape: &Shape) -> bool {
        self.hashes.clear();
        self.hashes.resize(shape.size(), 0);
        self.counts.clear();
        self.counts.resize(shape.size(), 0);
        self.alone.clear();
        self.order.clear();
        for key in keys {
            let hash = mix(*key, shape.seed);
            for (which, at) in (0u8..).zip(shape.positions(hash)) {
                let Some(count) = self.counts[at].checked_add(4) else { return false };
                // The low two bits say, of one that is alone, which of its positions this is.
                self.counts[at] = count ^ which;
                self.hashes[at] ^= hash;
            }
        }
        self.alone.extend((0..shape.size()).filter(|at| self.counts[*at] >> 2 == 1));
        while let Some(at) = self.alone.pop() {
            if self.counts[at] >> 2 != 1 {
                continue;
            }
            let (hash, found) = (self.hashes[at], self.counts[at] & 3);
            self.order.push((hash, found));
            for (which, other) in (0u8..).zip(shape.positions(hash)) {
                self.counts[other] = (self.counts[other] - 4) ^ which;
                self.hashes[other] ^= hash;
                if self.counts[other] >> 2 == 1 {
                    self.alone.push(other);
                }
            }
        }
        self.order.len() == keys.len()
    }

    fn assign(&self, shape: &Shape, fingerprints: &mut Vec<u8>) {
        let start = fingerprints.len();
        fingerprints.resize(start + shape.size(), 0);
        let values = &mut fingerprints[start..];
        for (hash, which) in self.order.iter().rev() {
            let at = shape.positions(*hash);
            let own = at[usize::from(*which)];
            values[own] = 0;
            values[own] = fingerprint(*hash) ^ values[at[0]] ^ values[at[1]] ^ values[at[2]];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(count: u64) -> Vec<u64> {
        (0..count).map(|number| mix(number, 99)).collect()
    }

    #[test]
    fn every_key_may_be_there_and_few_others() {
        for count in [1u64, 2, 3, 10, 1000, 100_000] {
            let mut bytes = vec![7; 3];
            let made = keys(count);
            let shape = Builder::default().build(&mut made.clone(), &mut bytes);
            assert!(shape.is_sound() && shape.size() == bytes.len() - 3, "{shape:?}");
            assert!(made.iter().all(|key| may_hold(&shape, &bytes[3..], *key)), "{count}");
            let wrong =
                (0..100_000u64).filter(|key| may_hold(&shape, &bytes[3..], mix(*key, 1 << 50))).count();
            assert!(wrong < 600, "{wrong} of 100000 with {count} keys");
        }
    }

    #[test]
    fn a_stretch_takes_little_more_than_a_byte_a_key() {
        let shape = shape_for(crate::format::STRETCH_ENTRIES);
        let share = shape.size() * 100 / crate::format::STRETCH_ENTRIES;
        assert!((112..=122).contains(&share), "{share} %");
    }

    #[test]
    fn keys_that_are_there_twice_make_a_filter_too() {
        let mut twins = [keys(500), keys(500)].concat();
        let mut bytes = Vec::new();
        let shape = Builder::default().build(&mut twins, &mut bytes);
        assert_ne!(shape.size(), 0);
        assert!(keys(500).iter().all(|key| may_hold(&shape, &bytes, *key)));
    }

    #[test]
    fn without_keys_or_filter_everything_may_be_there() {
        let shape = Builder::default().build(&mut Vec::new(), &mut Vec::new());
        assert!(shape.size() == 0 && may_hold(&shape, &[], 1));
    }
}
