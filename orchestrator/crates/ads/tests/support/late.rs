//! A backend whose lists lack what others did a moment ago, as those of some object storage; everything else is current.

use super::memory::Memory;
use ads::{Backend, Error, Listed, Object, Presence};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What all see, sooner or later.
#[derive(Debug)]
pub struct Shared {
    memory: Arc<Memory>,
    lag: Duration,
    /// What there was after each change, by when that was.
    history: Mutex<Vec<(Instant, Vec<Listed>)>>,
}

impl Shared {
    pub fn new(memory: Arc<Memory>, lag: Duration) -> Arc<Self> {
        let now = memory.list("").unwrap();
        // Long enough ago for everybody to see it.
        let began = Instant::now().checked_sub(lag).expect("the machine runs for longer");
        Arc::new(Self { memory, lag, history: Mutex::new(vec![(began, now)]) })
    }

    /// The view of one machine, which sees at once what it does itself.
    pub fn machine(self: &Arc<Self>) -> Arc<Late> {
        Arc::new(Late { shared: self.clone(), own: Mutex::default() })
    }

    fn changed(&self) {
        let now = self.memory.list("").unwrap();
        self.history.lock().unwrap().push((Instant::now(), now));
    }

    fn late_list(&self) -> Vec<Listed> {
        let history = self.history.lock().unwrap();
        let seen = history.iter().rev().find(|(at, _)| at.elapsed() >= self.lag);
        seen.expect("the first is old enough").1.clone()
    }
}

#[derive(Debug)]
pub struct Late {
    shared: Arc<Shared>,
    /// What this machine wrote, and removed.
    own: Mutex<BTreeMap<String, Option<u64>>>,
}

impl Backend for Late {
    fn root(&self) -> PathBuf {
        self.shared.memory.root()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.own.lock().unwrap().insert(key.to_owned(), Some(bytes.len() as u64));
        self.shared.memory.put(key, bytes)?;
        self.shared.changed();
        Ok(())
    }

    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.shared.memory.get(key, limit)
    }

    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        self.shared.memory.open(key)
    }

    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.shared.memory.head(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut found: BTreeMap<String, u64> =
            self.shared.late_list().into_iter().map(|object| (object.key, object.size)).collect();
        for (key, size) in self.own.lock().unwrap().iter() {
            match size {
                Some(size) => found.insert(key.clone(), *size),
                None => found.remove(key),
            };
        }
        let below = found.into_iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(below.map(|(key, size)| Listed { key, size }).collect())
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.own.lock().unwrap().insert(key.to_owned(), None);
        self.shared.memory.delete(key)?;
        self.shared.changed();
        Ok(())
    }

    fn is_vacant(&self) -> Result<bool, Error> {
        self.shared.memory.is_vacant()
    }

    fn prepare(&self) -> Result<(), Error> {
        self.shared.memory.prepare()
    }

    fn enter(&self, alone: bool) -> Result<Presence, Error> {
        self.shared.memory.enter(alone)
    }
}
