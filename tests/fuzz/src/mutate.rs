//! A search without sight: inputs changed in the ways in which formats break, the same ones for the same seed.
//!
//! It knows what most formats are made of: sizes, counts and offsets of one to eight bytes in either order, pieces that
//! can be left out, doubled, swapped or taken from another input, and words of text. What it does not see is which
//! branches an input takes; for that there is libFuzzer (`scripts/fuzz`).

use crate::MAX_INPUT;

/// Most changes that are made to one input: further ones only make noise of it.
const CHANGES: u64 = 6;
/// Numbers at which code goes wrong.
const EDGES: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// The source of changes.
pub struct Mutator {
    state: u64,
}

impl Mutator {
    /// The same seed gives the same inputs.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// One of `corpus`, changed, perhaps with a part of another one.
    ///
    /// # Panics
    /// If the corpus is empty.
    pub fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[self.below(corpus.len())].clone();
        for _ in 0..=self.next() % CHANGES {
            self.change(&mut input, corpus);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let (at, end) = self.range(input.len());
        match self.next() % 10 {
            0 if !input.is_empty() => {
                let at = self.below(input.len());
                input[at] ^= 1 << (self.next() % 8);
            }
            1 if !input.is_empty() => {
                let at = self.below(input.len());
                input[at] = self.byte();
            }
            2 | 3 => self.number(input, at),
            4 => drop(input.drain(at..end)),
            5 => {
                let part = input[at..end].to_vec();
                input.splice(at..at, part);
            }
            6 => {
                let count = 1 + self.below(16);
                let byte = self.byte();
                input.splice(at..at, std::iter::repeat_n(byte, count));
            }
            7 => input.truncate(at),
            8 => {
                let other = &corpus[self.below(corpus.len())];
                let (from, to) = self.range(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
            _ => {
                let (from, to) = self.range(input.len());
                let part = input[from..to].to_vec();
                let to = (at + part.len()).min(input.len());
                input[at..to].copy_from_slice(&part[..to - at]);
            }
        }
    }

    /// Puts a number at `at`: an edge, or what stands there and a little more or less.
    fn number(&mut self, input: &mut [u8], at: usize) {
        let width = (1 << (self.next() % 4)).min(input.len() - at);
        let field = &mut input[at..at + width];
        let little = self.next().is_multiple_of(2);
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(field);
        if !little {
            bytes[..width].reverse();
        }
        let there = u64::from_le_bytes(bytes);
        let number = match self.next() % 3 {
            0 => EDGES[self.below(EDGES.len())],
            1 => there.wrapping_add(self.next() % 16),
            _ => there.wrapping_sub(self.next() % 16),
        };
        bytes = number.to_le_bytes();
        if !little {
            bytes[..width].reverse();
        }
        field.copy_from_slice(&bytes[..width]);
    }

    /// A part of something of `size`: mostly short.
    fn range(&mut self, size: usize) -> (usize, usize) {
        let at = self.below(size + 1);
        let most = if self.next().is_multiple_of(4) { size } else { 16 };
        (at, at + self.below((size - at).min(most) + 1))
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).expect("64-bit sizes");
        usize::try_from(self.next() % limit).expect("below a size")
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_again_and_another_one_others() {
        let corpus = [b"some bytes".to_vec(), Vec::new(), vec![0; 300]];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..1000).map(|_| mutator.input(&corpus)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(1).iter().any(|input| input.len() > 300), "inputs grow");
        assert!(inputs(1).iter().all(|input| input.len() <= MAX_INPUT));
    }
}
