//! Nodes of the tree that the order names for a disk, fetched ahead of their use.
//!
//! A node above the leaves says which of its children exist, so that exactly those are asked for that will be needed:
//! all of them when a whole tree is walked, those above changed blocks when it is built upon.

use super::{Error, Link, Pending};
use blocks::{BlockCount, BlockIndex, BlockRange, ChangedBlocks};
use seal::{FAN_OUT, MAX_LEVELS, Node, NodeId, NodeSource};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};
use wire::{NodesAnswer, NodesQuestion, PATH_NODES};

/// Nodes in one question: all children of one node, 128 KiB of answer.
const BATCH: u64 = FAN_OUT;
/// Questions of one level on their way at once.
const IN_FLIGHT: usize = 4;
/// Nodes that nobody asked for are taken along where they stand between two that are needed and are not more than
/// this: 16 KiB cost less than another question.
const MAX_GAP: u64 = 8;

const _: () = assert!(BATCH as usize <= wire::MAX_NODES);

/// A [`NodeSource`] over the link.
pub(crate) struct NodesAhead<'a> {
    link: &'a Link,
    disk: u16,
    /// Nodes above none of these blocks are not needed; `None` needs all.
    needed: Option<&'a ChangedBlocks>,
    levels: Vec<Level>,
    waited: Duration,
}

/// All of them ascending.
#[derive(Default)]
struct Level {
    expected: VecDeque<u64>,
    asked: VecDeque<Asked>,
    here: BTreeMap<u64, Vec<u8>>,
}

struct Asked {
    first: u64,
    count: u64,
    answer: Pending,
}

impl Asked {
    fn range(&self) -> Range<u64> {
        self.first..self.first + self.count
    }
}

impl<'a> NodesAhead<'a> {
    pub(crate) fn new(link: &'a Link, disk: u16, needed: Option<&'a ChangedBlocks>) -> Self {
        let levels = (0..MAX_LEVELS).map(|_| Level::default()).collect();
        Self { link, disk, needed, levels, waited: Duration::ZERO }
    }

    /// How long answers were waited for.
    pub(crate) fn waited(&self) -> Duration {
        self.waited
    }

    fn is_needed(&self, level: u8, index: u64) -> bool {
        let reach = FAN_OUT.pow(u32::from(level));
        let range = |start| BlockRange { start: BlockIndex::new(start), count: BlockCount::new(reach) };
        let start = index.checked_mul(reach);
        self.needed.is_none_or(|needed| start.is_some_and(|start| needed.intersects(range(start))))
    }

    fn ask(&self, level: u8, first: u64, count: u64) -> Asked {
        let count_sent = u16::try_from(count).expect("at most BATCH");
        let question = NodesQuestion { disk: self.disk, level, first, count: count_sent };
        Asked { first, count, answer: self.link.start(PATH_NODES, &question) }
    }

    /// Keeps questions about expected nodes on their way.
    fn ask_ahead(&mut self, level: u8) {
        let at = usize::from(level - 1);
        while self.levels[at].asked.len() < IN_FLIGHT {
            let expected = &mut self.levels[at].expected;
            let Some(first) = expected.pop_front() else { return };
            let mut last = first;
            while let Some(next) = expected.front().copied() {
                if next - last > MAX_GAP + 1 || next - first >= BATCH {
                    break;
                }
                last = next;
                expected.pop_front();
            }
            let asked = self.ask(level, first, last - first + 1);
            self.levels[at].asked.push_back(asked);
        }
    }

    /// The bytes of a node, after those of all nodes before it on its level were dropped: nobody goes back.
    fn fetch(&mut self, level: u8, index: u64) -> Result<Option<Vec<u8>>, Error> {
        let at = usize::from(level - 1);
        let this = &mut self.levels[at];
        this.here = this.here.split_off(&index);
        while this.expected.front().is_some_and(|expected| *expected < index) {
            this.expected.pop_front();
        }
        let covered = this.asked.iter().any(|asked| asked.range().contains(&index));
        if !covered && !this.here.contains_key(&index) && this.expected.front() != Some(&index) {
            let asked = self.ask(level, index, 1);
            self.levels[at].asked.push_front(asked);
        }
        loop {
            self.ask_ahead(level);
            let this = &mut self.levels[at];
            if let Some(bytes) = this.here.remove(&index) {
                return Ok(Some(bytes));
            }
            let Some(asked) = this.asked.pop_front() else { return Ok(None) };
            let range = asked.range();
            let began = Instant::now();
            let answer: NodesAnswer = asked.answer.wait(PATH_NODES)?;
            self.waited += began.elapsed();
            // What was not asked for is not kept: memory is bounded by our questions, not by the answers.
            let nodes =
                answer.nodes.into_iter().filter(|node| node.index >= index && range.contains(&node.index));
            self.levels[at].here.extend(nodes.map(|node| (node.index, node.bytes)));
        }
    }

    fn expect_children(&mut self, node: &Node, level: u8, index: u64) {
        let children = (0..FAN_OUT).filter(|slot| node.child(*slot as usize).is_some());
        let needed: Vec<u64> = children
            .map(|slot| index * FAN_OUT + slot)
            .filter(|child| self.is_needed(level - 1, *child))
            .collect();
        self.levels[usize::from(level - 2)].expected.extend(needed);
        self.ask_ahead(level - 1);
    }
}

impl NodeSource for NodesAhead<'_> {
    type Error = Error;

    fn node(&mut self, _id: NodeId, level: u8, index: u64) -> Result<Node, Error> {
        let found = self.fetch(level, index)?;
        let found = found.ok_or(Error::MissingNode { disk: self.disk, level, index })?;
        let node = Node::from_bytes(&found)?;
        if level > 1 {
            self.expect_children(&node, level, index);
        }
        Ok(node)
    }
}
