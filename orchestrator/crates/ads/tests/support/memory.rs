//! A backend in memory, one that fails, and one that remembers what was written in which order.

use ads::{Backend, Error, Listed, Object, Presence};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

type Objects = BTreeMap<String, Arc<Vec<u8>>>;

/// Keeps objects in memory.
#[derive(Debug, Default)]
pub struct Memory {
    objects: Mutex<Objects>,
}

#[derive(Debug)]
struct Bytes(Arc<Vec<u8>>);

impl Object for Bytes {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let at = offset as usize;
        let part = self.0.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(part);
        Ok(())
    }
}

impl Memory {
    pub fn of(objects: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let objects = objects.into_iter().map(|(key, bytes)| (key, Arc::new(bytes))).collect();
        Self { objects: Mutex::new(objects) }
    }

    pub fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let objects = self.objects.lock().unwrap();
        objects.iter().map(|(key, bytes)| (key.clone(), bytes.to_vec())).collect()
    }

    fn find(&self, key: &str) -> Result<Arc<Vec<u8>>, Error> {
        let found = self.objects.lock().unwrap().get(key).cloned();
        found.ok_or_else(|| Error::Io {
            what: "read",
            path: self.place(key),
            source: io::ErrorKind::NotFound.into(),
        })
    }
}

impl Backend for Memory {
    fn root(&self) -> PathBuf {
        "memory".into()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.objects.lock().unwrap().insert(key.to_owned(), Arc::new(bytes.to_vec()));
        Ok(())
    }

    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let found = self.find(key)?;
        match found.len() as u64 <= limit {
            true => Ok(found.to_vec()),
            false => Err(Error::Io {
                what: "read",
                path: self.place(key),
                source: io::ErrorKind::FileTooLarge.into(),
            }),
        }
    }

    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        Ok(Arc::new(Bytes(self.find(key)?)))
    }

    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        Ok(self.objects.lock().unwrap().get(key).map(|bytes| bytes.len() as u64))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let objects = self.objects.lock().unwrap();
        let below = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(below.map(|(key, bytes)| Listed { key: key.clone(), size: bytes.len() as u64 }).collect())
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.objects.lock().unwrap().remove(key);
        Ok(())
    }

    fn is_vacant(&self) -> Result<bool, Error> {
        Ok(self.objects.lock().unwrap().is_empty())
    }

    fn prepare(&self) -> Result<(), Error> {
        match self.objects.lock().unwrap().keys().next() {
            None => Ok(()),
            Some(key) => Err(Error::Exists { dir: self.root(), reason: format!("it holds {key}") }),
        }
    }

    fn enter(&self, _alone: bool) -> Result<Presence, Error> {
        Ok(Box::new(()))
    }
}

/// What a backend was asked to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Put(String, Vec<u8>),
    Delete(String),
}

/// What becomes of the n-th change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Nothing is lost.
    None,
    /// It is not done, and said to have failed; and all after it.
    From(u64),
    /// It alone is not done.
    One(u64),
    /// It is done, and said to have failed: the answer was lost.
    Answer(u64),
}

/// Passes everything on, remembers changes, and loses some.
#[derive(Debug)]
pub struct Between {
    inner: Arc<dyn Backend>,
    loss: Loss,
    count: AtomicU64,
    changes: Mutex<Vec<Change>>,
}

impl Between {
    pub fn new(inner: Arc<dyn Backend>, loss: Loss) -> Arc<Self> {
        Arc::new(Self { inner, loss, count: AtomicU64::new(0), changes: Mutex::default() })
    }

    pub fn changes(&self) -> Vec<Change> {
        self.changes.lock().unwrap().clone()
    }

    /// Whether something was lost.
    pub fn struck(&self) -> bool {
        let count = self.count.load(Ordering::SeqCst);
        match self.loss {
            Loss::None => false,
            Loss::From(at) | Loss::One(at) | Loss::Answer(at) => count > at,
        }
    }

    fn change(&self, change: Change, key: &str) -> Result<(), Error> {
        let now = self.count.fetch_add(1, Ordering::SeqCst);
        let lost = || {
            Err(Error::Io {
                what: "change",
                path: self.place(key),
                source: io::ErrorKind::ConnectionReset.into(),
            })
        };
        match self.loss {
            Loss::From(at) if now >= at => return lost(),
            Loss::One(at) if now == at => return lost(),
            _ => {}
        }
        match &change {
            Change::Put(key, bytes) => self.inner.put(key, bytes)?,
            Change::Delete(key) => self.inner.delete(key)?,
        }
        self.changes.lock().unwrap().push(change);
        if self.loss == Loss::Answer(now) { lost() } else { Ok(()) }
    }
}

impl Backend for Between {
    fn root(&self) -> PathBuf {
        self.inner.root()
    }
    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.change(Change::Put(key.to_owned(), bytes.to_vec()), key)
    }
    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.inner.get(key, limit)
    }
    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        self.inner.open(key)
    }
    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<(), Error> {
        self.change(Change::Delete(key.to_owned()), key)
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
}
