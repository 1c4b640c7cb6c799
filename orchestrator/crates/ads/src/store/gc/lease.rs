//! Leases: who works with a store says so first, and commits under it.

use super::records::{self, LeaseRecord, counter_key, lease_key, write};
use crate::Error;
use crate::store::{PointId, RestorePoint, Store, StoredPoint, timestamp};
use seal::PackId;
use std::collections::HashSet;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

/// How often a lease's counter is moved: many times within any sensible grace.
const RENEWAL: Duration = Duration::from_secs(600);

/// What is looked for beside condemned lists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum LookFor {
    /// Packs that were removed, where any were.
    Removed,
    /// Packs that came too.
    AllPacks,
}

/// A lease on a store. Dropping it gives it back.
#[derive(Debug)]
#[must_use = "dropping the lease gives it back"]
pub struct Lease {
    store: Arc<Store>,
    id: Uuid,
    /// Dropped to end the thread that renews it.
    stop: Option<Sender<()>>,
    renewer: Option<JoinHandle<()>>,
}

impl Store {
    /// Says that `owner` works with the store from now on, and starts from these restore points. What is in the store and
    /// is not condemned stays until the lease is given back, and so does all that these points need.
    ///
    /// # Errors
    /// [`Error::PointNotFound`] where one of the points was removed meanwhile: look again. Else what the backend says.
    pub fn lease(self: &Arc<Self>, owner: &str, starts: &[&StoredPoint]) -> Result<Lease, Error> {
        let id = Uuid::new_v4();
        let trees =
            starts.iter().flat_map(|stored| stored.point.disks.iter().map(|disk| disk.tree)).collect();
        let record = LeaseRecord::new(owner, timestamp(SystemTime::now()), trees);
        write(&*self.backend, &lease_key(id), &record)?;
        let (stop, stopped) = channel();
        let store = self.clone();
        let renew = move || {
            let mut counter = 0u64;
            while stopped.recv_timeout(RENEWAL) == Err(RecvTimeoutError::Timeout) {
                counter += 1;
                // One that is missed changes nothing; the next one comes long before the grace is over.
                if let Err(error) = write(&*store.backend, &counter_key(id), &counter) {
                    tracing::warn!(lease = %id, %error, "the lease was not renewed");
                }
            }
        };
        let lease =
            Lease { store: self.clone(), id, stop: Some(stop), renewer: Some(std::thread::spawn(renew)) };
        // What the points need may have come after this store was opened.
        let look = if starts.is_empty() { LookFor::Removed } else { LookFor::AllPacks };
        self.look_again(look)?;
        for stored in starts {
            self.point(stored.id)?;
        }
        Ok(lease)
    }

    /// Takes note of what other processes added and collected since the store was opened.
    ///
    /// # Errors
    /// What the backend says.
    pub fn refresh(&self) -> Result<(), Error> {
        self.look_again(LookFor::AllPacks)
    }

    /// Finds what was in packs that are gone where it is now.
    pub(in crate::store) fn look_elsewhere(&self) -> Result<(), Error> {
        self.look_again(LookFor::AllPacks)
    }

    /// Takes note of what collectors did since the store was opened: condemned packs are promised to nobody, removed ones
    /// are forgotten. In this order: a list is taken away only after its packs and a new generation.
    pub(in crate::store) fn look_again(&self, look: LookFor) -> Result<(), Error> {
        let lists = records::condemned(&*self.backend)?;
        let condemned: HashSet<PackId> =
            lists.values().flat_map(|list| list.packs.iter().map(|pack| pack.0)).collect();
        let generation = records::generation(&*self.backend)?;
        let mut known = self.generation.lock().expect("no panic while it is locked");
        let changed = *known != generation;
        if changed {
            // Proofs of earlier trees rested on packs that may be gone.
            self.forget_proofs();
        }
        self.packs.look_again(changed || look != LookFor::Removed, &condemned)?;
        *known = generation;
        Ok(())
    }
}

impl Lease {
    /// Its id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// [`Store::commit_point`] under the lease.
    ///
    /// # Errors
    /// As there; [`Error::LeaseLost`] where a collector took this one for dead. Then there is no point.
    pub fn commit(&self, point: &RestorePoint) -> Result<PointId, Error> {
        self.check()?;
        let id = self.store.commit_point(point)?;
        // After the point: a collector that takes the lease away later than this looks for points after that.
        if let Err(lost) = self.check() {
            self.store.take_back(id)?;
            return Err(lost);
        }
        Ok(id)
    }

    /// Whether somebody who has opened `other` sees it: then that is the same store at the same place.
    pub(in crate::store) fn is_seen_in(&self, other: &Store) -> Result<bool, Error> {
        Ok(other.backend.head(&lease_key(self.id))?.is_some())
    }

    /// Whether nobody took it away.
    pub(in crate::store) fn check(&self) -> Result<(), Error> {
        match self.store.backend.head(&lease_key(self.id))? {
            Some(_) => Ok(()),
            None => Err(Error::LeaseLost { dir: self.store.dir().to_owned() }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewer) = self.renewer.take() {
            // It holds nothing that a panic could have broken.
            let _ = renewer.join();
        }
        for key in [lease_key(self.id), counter_key(self.id)] {
            // One that stays is taken for dead after the grace.
            if let Err(error) = self.store.backend.delete(&key) {
                tracing::warn!(lease = %self.id, %error, "the lease was not given back");
            }
        }
    }
}

/// What a store remembers of collections.
pub(in crate::store) type Generation = Mutex<Option<Uuid>>;
