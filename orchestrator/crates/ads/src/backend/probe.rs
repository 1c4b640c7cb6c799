//! Tries whether a backend gives what it must: for `init`, before a store is trusted to it, and for people.

use super::{Backend, Listed, TMP};
use crate::Error;
use std::io;

/// Bytes of the object that is tried: more than a server keeps inline, less than anybody minds.
const SIZE: usize = 70_000;

/// What a backend was seen to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Whether it refuses to write what is there when asked to. Nothing rests on it.
    pub conditional_puts: bool,
}

impl Probe {
    /// Writes, reads, lists, overwrites and removes an object under `tmp/`.
    ///
    /// # Errors
    /// What the backend said, or [`Error::Unfit`] with what it did wrong.
    pub fn run(backend: &dyn Backend) -> Result<Self, Error> {
        let key = format!("{TMP}probe-{}", uuid::Uuid::new_v4().simple());
        let outcome = Self::with(backend, &key);
        let removed = remove(backend, &key);
        let probe = outcome?;
        removed?;
        Ok(probe)
    }

    fn with(backend: &dyn Backend, key: &str) -> Result<Self, Error> {
        let unfit = |what: &'static str| Error::Unfit { place: backend.root(), what };
        let first: Vec<u8> = (0..=u8::MAX).cycle().take(SIZE).collect();
        if backend.head(key)?.is_some() {
            return Err(unfit("it shows an object that was never written"));
        }
        match backend.get(key, SIZE as u64) {
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(unfit("it gives an object that was never written")),
        }
        if !backend.put_new(key, &first)? {
            return Err(unfit("it refuses to write an object that is not there"));
        }
        if backend.get(key, SIZE as u64)? != first {
            return Err(unfit("it gives other bytes than were written"));
        }
        if backend.head(key)? != Some(SIZE as u64) {
            return Err(unfit("it gives another size than was written"));
        }
        let mut part = vec![0; SIZE / 3];
        backend
            .open(key)?
            .read_exact_at(&mut part, 1000)
            .map_err(|source| read_failed(backend, key, source))?;
        if part[..] != first[1000..1000 + part.len()] {
            return Err(unfit("it gives another part of an object than was asked for"));
        }
        if !listed(backend, key, SIZE as u64)? {
            return Err(unfit("it does not list an object that was written"));
        }
        let conditional_puts = !backend.put_new(key, &first)?;
        let second = vec![7; 100];
        backend.put(key, &second)?;
        if backend.get(key, SIZE as u64)? != second {
            return Err(unfit("it gives old bytes after an object was written again"));
        }
        Ok(Self { conditional_puts })
    }
}

fn listed(backend: &dyn Backend, key: &str, size: u64) -> Result<bool, Error> {
    Ok(backend.list(TMP)?.contains(&Listed { key: key.to_owned(), size }))
}

fn remove(backend: &dyn Backend, key: &str) -> Result<(), Error> {
    backend.delete(key)?;
    backend.delete(key)?;
    match backend.head(key)? {
        None => Ok(()),
        Some(_) => Err(Error::Unfit { place: backend.root(), what: "it shows an object that was removed" }),
    }
}

fn read_failed(backend: &dyn Backend, key: &str, source: io::Error) -> Error {
    Error::Io { what: "read", path: backend.place(key), source }
}
