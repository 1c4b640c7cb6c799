//! Ids of the blocks that this job shipped or found in the store lately: a second copy needs no question.

use seal::BlockId;
use std::collections::{HashSet, VecDeque};

/// A set of bounded size; the oldest ids leave first.
pub(crate) struct Recent {
    ids: HashSet<BlockId>,
    order: VecDeque<BlockId>,
    limit: usize,
}

impl Recent {
    pub(crate) fn new(limit: usize) -> Self {
        Self { ids: HashSet::new(), order: VecDeque::new(), limit }
    }

    /// Whether the id is not in the set yet; it is afterwards.
    pub(crate) fn insert(&mut self, id: BlockId) -> bool {
        if !self.ids.insert(id) {
            return false;
        }
        self.order.push_back(id);
        if self.order.len() > self.limit
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_id_is_forgotten_first_and_the_size_is_bounded() {
        let id = |n: u8| BlockId::from_bytes([n; 32]);
        let mut recent = Recent::new(2);
        assert!(recent.insert(id(1)) && recent.insert(id(2)));
        assert!(!recent.insert(id(1)));
        assert!(recent.insert(id(3)));
        assert!(!recent.insert(id(2)) && !recent.insert(id(3)));
        assert!(recent.insert(id(1)), "1 was the oldest");
        assert_eq!((recent.ids.len(), recent.order.len()), (2, 2));
    }
}
