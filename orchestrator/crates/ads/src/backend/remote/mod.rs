//! A store that `abd serve` offers on another machine.
//!
//! ```text
//! address    host, port and the server's key      client   requests, retries, limits
//! identity   this machine's own key, in a file
//! ```
//!
//! Promises: talks only to the one key that the address names; what fails in passing (a connection that breaks, a server
//! that is started anew, "too busy") is tried again, a bounded number of times. Never: decides what this machine may do.
//! The server does, and what it refuses is [`Error::Denied`] with its words.

mod address;
mod client;
mod identity;

pub use address::{AbdAddress, DEFAULT_PORT};
pub use identity::{identity_in, use_identity_file};

use super::s3::Stretches;
use super::{Backend, Listed, Object, Presence, TMP};
use crate::Error;
use crate::serve::Standing;
use client::{Client, Trouble};
use std::path::PathBuf;
use std::sync::Arc;

/// Small reads under way at once: each waits for an answer from another machine. A server gives a client that many turns.
const PARALLEL_READS: usize = 16;

/// A store on another machine.
#[derive(Debug)]
pub struct RemoteBackend {
    address: AbdAddress,
    client: Arc<Client>,
}

impl RemoteBackend {
    /// The store at an address. Contacts nobody. Makes this machine's key where it has none.
    ///
    /// # Errors
    /// [`Error::KeyFile`] where the key cannot be read or made; [`Error::Remote`], [`Error::Tls`].
    pub fn new(address: &AbdAddress) -> Result<Self, Error> {
        let file = address.identity.as_deref().or(identity::usual());
        let Some(file) = file else {
            let reason = "it names no identity=FILE with this machine's key".into();
            return Err(Error::Address { text: address.to_string(), reason });
        };
        let client = Client::new(address, &identity_in(file)?)?;
        Ok(Self { address: address.clone(), client: Arc::new(client) })
    }

    fn error(&self, what: &'static str, key: &str, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Denied(reason) => Error::Denied { what, place: self.place(key), reason },
            Trouble::Io(source) if source.kind() == std::io::ErrorKind::StorageFull => {
                Error::Full { dir: self.root(), source }
            }
            Trouble::Io(source) => Error::Remote { what, place: self.place(key), source },
        }
    }
}

impl Backend for RemoteBackend {
    fn root(&self) -> PathBuf {
        self.address.to_string().into()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.client.put(key, bytes, false).map(drop).map_err(|trouble| self.error("write", key, trouble))
    }

    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool, Error> {
        self.client.put(key, bytes, true).map_err(|trouble| self.error("write", key, trouble))
    }

    fn get(&self, key: &str, limit: u64) -> Result<Vec<u8>, Error> {
        self.client.get(key, limit).map_err(|trouble| self.error("read", key, trouble))
    }

    fn open(&self, key: &str) -> Result<Arc<dyn Object>, Error> {
        Ok(Arc::new(Stretches::new(self.client.clone(), key)))
    }

    fn head(&self, key: &str) -> Result<Option<u64>, Error> {
        self.client.size(key).map_err(|trouble| self.error("look at", key, trouble))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.client.list(prefix).map_err(|trouble| self.error("list", prefix, trouble))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.client.delete(key).map_err(|trouble| self.error("remove", key, trouble))
    }

    fn is_vacant(&self) -> Result<bool, Error> {
        // Servers have a store: the whole list is for the one that has none.
        Ok(self.head(super::CONFIG)?.is_none() && self.list("")?.is_empty())
    }

    fn prepare(&self) -> Result<(), Error> {
        let exists = |reason| Err(Error::Exists { dir: self.root(), reason });
        if self.head(super::CONFIG)?.is_some() {
            return exists("it holds a store already".into());
        }
        match self.list("")?.iter().find(|object| !object.key.starts_with(TMP)) {
            None => Ok(()),
            Some(object) => exists(format!("it is not empty, it holds {}", object.key)),
        }
    }

    fn enter(&self, _alone: bool) -> Result<Presence, Error> {
        Ok(Box::new(()))
    }

    fn parallel_reads(&self) -> usize {
        PARALLEL_READS
    }

    fn standing(&self) -> Result<Option<Standing>, Error> {
        self.client.about().map(Some).map_err(|trouble| self.error("ask", "", trouble))
    }
}
