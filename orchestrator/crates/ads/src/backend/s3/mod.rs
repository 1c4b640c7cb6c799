//! A store in a bucket of S3-compatible object storage.
//!
//! ```text
//! address       bucket, prefix and options       client   certificates, limits, signing
//! credentials   the usual places                 reader   parts of an object, with a little reading ahead
//! ```
//!
//! Promises: an object counts as written only after the server was asked for it and told its size; what fails in passing
//! (5xx, "slow down", a cut connection, a lost answer) is tried again, a bounded number of times; an upload in parts that
//! fails is given up at the server. Never: takes a conditional write for a lock. Some servers ignore the condition.

mod address;
mod client;
mod credentials;
mod reader;

pub use address::S3Address;
pub(super) use reader::{Ranges, Stretches};

use super::{Backend, KEYS, Listed, Object, Presence, TMP};
use crate::Error;
use client::Client;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Small reads under way at once: each waits tens of milliseconds for its answer.
const PARALLEL_READS: usize = 32;

/// A store in a bucket.
#[derive(Debug)]
pub struct S3Backend {
    address: S3Address,
    client: Arc<Client>,
}

impl S3Backend {
    /// The store at an address. Contacts nobody.
    ///
    /// # Errors
    /// [`Error::Remote`] where credentials or certificates are missing or cannot be read.
    pub fn new(address: &S3Address) -> Result<Self, Error> {
        let client = Client::new(address).map_err(|source| Error::Remote {
            what: "set up a client for",
            place: address.to_string().into(),
            source,
        })?;
        Ok(Self { address: address.clone(), client: Arc::new(client) })
    }

    fn error(&self, what: &'static str, key: &str, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull => Error::Full { dir: self.root(), source },
            _ => Error::Remote { what, place: self.place(key), source },
        }
    }
}

impl Backend for S3Backend {
    fn root(&self) -> PathBuf {
        self.address.to_string().into()
    }

    fn place(&self, key: &str) -> PathBuf {
        format!("{}/{key}", self.address).into()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.client.put(key, bytes).map_err(|error| self.error("write", key, error))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, Error> {
        self.client.put_new(key, bytes).map_err(|error| self.error("write", key, error))
    }

    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.client.get(key, limit).map_err(|error| self.error("read", key, error))
    }

    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        Ok(Arc::new(Stretches::new(self.client.clone(), key)))
    }

    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.client.head(key).map_err(|error| self.error("look at", key, error))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.client.list(prefix, usize::MAX).map_err(|error| self.error("list", prefix, error))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.client.delete(key).map_err(|error| self.error("remove", key, error))
    }

    fn is_vacant(&self) -> Result<bool, Error> {
        let found = self.client.list("", 1).map_err(|error| self.error("list", "", error))?;
        Ok(found.is_empty())
    }

    fn prepare(&self) -> Result<(), Error> {
        // What a probe left is no obstacle, nor is a key that opens nothing; there are never many.
        let found = self.client.list("", 100).map_err(|error| self.error("list", "", error))?;
        let harmless = |key: &str| key.starts_with(TMP) || key.starts_with(KEYS);
        match found.iter().find(|object| !harmless(&object.key)) {
            None => Ok(()),
            Some(object) if object.key == super::CONFIG => {
                Err(Error::Exists { dir: self.root(), reason: "it holds a store already".into() })
            }
            Some(object) => {
                let reason = format!("it is not empty, it holds {}", self.place(&object.key).display());
                Err(Error::Exists { dir: self.root(), reason })
            }
        }
    }

    fn enter(&self, _alone: bool) -> Result<Presence, Error> {
        Ok(Box::new(()))
    }

    fn parallel_reads(&self) -> usize {
        PARALLEL_READS
    }
}
