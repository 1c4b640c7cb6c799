//! Numbers drawn from a seed: the same seed draws the same numbers, on every machine.

use std::time::{SystemTime, UNIX_EPOCH};

/// The seed that `SEED` asks for, `random` for a new one; else `default`, so that a change lands or not by the same draw.
pub fn seed(default: u64) -> u64 {
    match std::env::var("SEED").as_deref() {
        Ok("random") => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
            now.as_secs() ^ u64::from(now.subsec_nanos())
        }
        Ok(text) if !text.is_empty() => {
            text.parse().unwrap_or_else(|_| panic!("SEED={text} is neither a number nor `random`"))
        }
        _ => default,
    }
}

/// A source of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// The source of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is not 0. The bias is far below what a test could see.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// A position in a list of this length, which is not empty.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a length")
    }

    /// A number of the range, ends included.
    pub fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    /// True once in `of` draws.
    pub fn once_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// One of a list of things and their weights.
    pub fn weighted<T: Copy>(&mut self, list: &[(T, u64)]) -> T {
        let mut at = self.below(list.iter().map(|(_, weight)| weight).sum());
        for (thing, weight) in list {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *thing,
            }
        }
        unreachable!("the number is below the sum of the weights")
    }

    /// `count` different positions in a list of `length`, in the order they were drawn.
    pub fn some_of(&mut self, length: usize, count: usize) -> Vec<usize> {
        let mut left: Vec<usize> = (0..length).collect();
        (0..count.min(length)).map(|_| left.swap_remove(self.index(left.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_numbers_again() {
        let mut draw = Draw::new(0);
        // The first numbers of splitmix64 for seed 0, as its author published them.
        assert_eq!(draw.bits(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(draw.bits(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn weights_decide_and_nothing_is_drawn_twice() {
        let mut draw = Draw::new(1);
        assert!((0..100).all(|_| draw.weighted(&[('a', 0), ('b', 3)]) == 'b'));
        let mut all = draw.some_of(9, 20);
        all.sort_unstable();
        assert_eq!(all, (0..9).collect::<Vec<_>>());
    }
}
