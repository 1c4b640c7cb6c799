//! Several who use one store, one operation of its backend at a time, in an order that a seed draws.
//!
//! Everybody runs on a thread of his own and waits before each operation until it is his turn; a turn is given only when
//! all wait. The same seed gives the same order.

use super::memory::Memory;
use ads::{Backend, Error, Listed, Object, Presence};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Numbers from a seed.
#[derive(Debug, Clone)]
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % limit
    }
}

#[derive(Debug)]
struct State {
    /// Who has not left.
    live: BTreeSet<usize>,
    waiting: BTreeSet<usize>,
    turn: Option<usize>,
    draw: Draw,
    given: u64,
}

/// Gives turns.
#[derive(Debug)]
pub struct Turns {
    /// Until then everybody goes on as he likes.
    begun: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

impl Turns {
    pub fn new(actors: usize, seed: u64) -> Arc<Self> {
        let state = State {
            live: (0..actors).collect(),
            waiting: BTreeSet::new(),
            turn: None,
            draw: Draw(seed),
            given: 0,
        };
        Arc::new(Self { begun: AtomicBool::new(true), state: Mutex::new(state), changed: Condvar::new() })
    }

    /// As [`new`](Self::new), but turns are given only from [`begin`](Self::begin) on.
    pub fn later(actors: usize, seed: u64) -> Arc<Self> {
        let turns = Self::new(actors, seed);
        turns.begun.store(false, Ordering::SeqCst);
        turns
    }

    pub fn begin(&self) {
        self.begun.store(true, Ordering::SeqCst);
    }

    fn give(&self, state: &mut State) {
        if state.turn.is_none() && !state.live.is_empty() && state.waiting == state.live {
            let at = state.draw.below(state.waiting.len() as u64) as usize;
            state.turn = state.waiting.iter().nth(at).copied();
            state.given += 1;
            self.changed.notify_all();
        }
    }

    fn wait(&self, actor: usize) {
        if !self.begun.load(Ordering::SeqCst) {
            return;
        }
        let mut state = self.state.lock().unwrap();
        state.waiting.insert(actor);
        self.give(&mut state);
        while state.turn != Some(actor) {
            state = self.changed.wait(state).unwrap();
        }
        state.waiting.remove(&actor);
        state.turn = None;
    }

    fn leave(&self, actor: usize) {
        let mut state = self.state.lock().unwrap();
        state.live.remove(&actor);
        self.give(&mut state);
    }

    /// How many turns there were.
    pub fn given(&self) -> u64 {
        self.state.lock().unwrap().given
    }
}

/// One actor's way to the store. Dropping it leaves.
#[derive(Debug)]
pub struct Turned {
    pub inner: Arc<Memory>,
    pub turns: Arc<Turns>,
    pub actor: usize,
    /// What others have below these prefixes is not seen in a listing: a rule that is not kept.
    pub blind: &'static [&'static str],
    /// Keys that were written this way.
    pub own: Mutex<BTreeSet<String>>,
}

/// Leaves when it is dropped, also in a panic.
pub struct Leaver(pub Arc<Turns>, pub usize);

impl Drop for Leaver {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

impl Turned {
    fn turn(&self) -> &Memory {
        self.turns.wait(self.actor);
        &self.inner
    }
}

impl Backend for Turned {
    fn root(&self) -> PathBuf {
        self.inner.root()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.own.lock().unwrap().insert(key.to_owned());
        self.turn().put(key, bytes)
    }

    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.turn().get(key, limit)
    }

    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        self.turn().open(key)
    }

    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.turn().head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut found = self.turn().list(prefix)?;
        if self.blind.contains(&prefix) {
            let own = self.own.lock().unwrap();
            found.retain(|object| own.contains(&object.key));
        }
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.turn().delete(key)
    }

    fn is_vacant(&self) -> Result<bool, Error> {
        self.inner.is_vacant()
    }

    fn prepare(&self) -> Result<(), Error> {
        self.inner.prepare()
    }

    fn enter(&self, alone: bool) -> Result<Presence, Error> {
        self.inner.enter(alone)
    }

    fn parallel_reads(&self) -> usize {
        1
    }
}
