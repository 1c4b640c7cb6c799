//! Leases of others, which a server keeps for them: each says whose it is, and only he may renew it or give it back.

use super::lease::LookFor;
use super::records::{self, LeaseRecord, counter_key, id_in, lease_key, write};
use crate::Error;
use crate::store::{Store, time};
use uuid::Uuid;

/// Most bytes of a lease: the trees of thousands of disks.
pub(crate) const MAX_LEASE: u64 = 1 << 20;
/// Most bytes of a counter.
pub(crate) const MAX_COUNTER: u64 = 32;
/// Longest text that says who somebody is.
const MAX_OWNER: usize = 200;

impl Store {
    /// Keeps a lease for a holder, whom people know by `name`. The same again changes nothing.
    pub(crate) fn lend(&self, id: Uuid, bytes: &[u8], holder: &str, name: &str) -> Result<(), Error> {
        let refused = |reason: String| Err(Error::LeaseRefused { reason });
        let mut record: LeaseRecord = match serde_json::from_slice(bytes) {
            Ok(record) => record,
            Err(error) => return refused(format!("it cannot be read: {error}")),
        };
        records::check_version("the lease", record.version)?;
        if record.owner.len() > MAX_OWNER || record.owner.chars().any(char::is_control) {
            return refused(format!("its owner has no name of at most {MAX_OWNER} bytes"));
        }
        if time::sort_key(&record.created).is_none() {
            return refused(format!("'{}' is no time", record.created));
        }
        record.owner = format!("{} of {name}", record.owner);
        record.holder = Some(holder.to_owned());
        match records::read::<LeaseRecord>(&*self.backend, &lease_key(id))? {
            Some(found) if found == record => return Ok(()),
            Some(_) => return refused("there is another one with this id".into()),
            None => {}
        }
        // A tree that is not whole would stop every collection.
        let strange = self.with_known_points(|known| {
            let held = |tree| known.values().any(|point| point.trees.contains(tree));
            record.trees.iter().any(|tree| tree.root.is_some() && !held(tree))
        })?;
        if strange {
            return refused("it starts from a tree that is in no restore point".into());
        }
        write(&*self.backend, &lease_key(id), &record)?;
        self.look_again(LookFor::Removed)
    }

    /// Moves the counter of a lease.
    pub(crate) fn renew(&self, id: Uuid, bytes: &[u8]) -> Result<(), Error> {
        let counter = serde_json::from_slice::<u64>(bytes);
        let counter = counter.map_err(|error| Error::LeaseRefused { reason: error.to_string() })?;
        write(&*self.backend, &counter_key(id), &counter)
    }

    /// Whose lease it is: `None` where there is none, and nobody's where somebody works with the store directly.
    pub(crate) fn holder(&self, id: Uuid) -> Result<Option<Option<String>>, Error> {
        let found = records::read::<LeaseRecord>(&*self.backend, &lease_key(id))?;
        Ok(found.map(|record| record.holder))
    }

    /// The leases that are there.
    pub(crate) fn lease_ids(&self) -> Result<Vec<Uuid>, Error> {
        let objects = self.backend.list(records::LEASES)?;
        Ok(objects.iter().filter_map(|object| id_in(&object.key, ".json")).collect())
    }

    pub(crate) fn has_lease(&self, id: Uuid) -> Result<bool, Error> {
        Ok(self.backend.head(&lease_key(id))?.is_some())
    }

    /// Gives a lease back, and its counter.
    pub(crate) fn give_back(&self, id: Uuid) -> Result<(), Error> {
        self.backend.delete(&lease_key(id))?;
        self.backend.delete(&counter_key(id))
    }
}

/// The lease that a key names, and whether it is its counter.
pub(crate) fn lease_named(key: &str) -> Option<(Uuid, bool)> {
    let id = id_in(key, ".json").or(id_in(key, ".counter"))?;
    match key {
        _ if key == lease_key(id) => Some((id, false)),
        _ if key == counter_key(id) => Some((id, true)),
        _ => None,
    }
}
