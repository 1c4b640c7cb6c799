//! Puts numbered things that threads finish in any order back into their order.

use std::collections::VecDeque;

/// Holds what overtook its predecessors. How much that can be is for the user to bound; memory is kept for the most
/// there ever was, so that nothing is allocated in the long run.
pub(crate) struct Reorder<T> {
    next: u64,
    /// What has the numbers from `next` on; the first is never there.
    early: VecDeque<Option<T>>,
}

impl<T> Reorder<T> {
    /// Starts at number 0.
    pub(crate) fn new() -> Self {
        Self { next: 0, early: VecDeque::new() }
    }

    /// Takes what has a number that was not there before. What is in order now comes from [`next`](Self::next).
    ///
    /// # Panics
    /// If a number comes twice.
    pub(crate) fn put(&mut self, number: u64, item: T) {
        let ahead = number.checked_sub(self.next).expect("every number comes once");
        let ahead = usize::try_from(ahead).expect("bounded by the user");
        if self.early.len() <= ahead {
            self.early.resize_with(ahead + 1, || None);
        }
        assert!(self.early[ahead].replace(item).is_none(), "every number comes once");
    }

    /// The next in order, if it is here.
    pub(crate) fn next(&mut self) -> Option<T> {
        self.early.front()?.as_ref()?;
        self.next += 1;
        self.early.pop_front().flatten()
    }

    /// Whether nothing waits for a predecessor.
    pub(crate) fn is_empty(&self) -> bool {
        self.early.is_empty()
    }

    /// How many came out.
    pub(crate) fn count(&self) -> u64 {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn whatever_the_order_they_come_out_in_theirs(numbers in Just((0u64..40).collect::<Vec<_>>()).prop_shuffle()) {
            let mut reorder = Reorder::new();
            let mut out = Vec::new();
            for number in numbers {
                reorder.put(number, number);
                while let Some(next) = reorder.next() {
                    out.push(next);
                }
            }
            prop_assert!(reorder.is_empty());
            prop_assert_eq!(reorder.count(), 40);
            prop_assert_eq!(out, (0..40).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_has_no_predecessor_waits() {
        let mut reorder = Reorder::new();
        reorder.put(1, 'b');
        assert_eq!((reorder.next(), reorder.is_empty()), (None, false));
        reorder.put(0, 'a');
        assert_eq!([reorder.next(), reorder.next(), reorder.next()], [Some('a'), Some('b'), None]);
    }
}
