//! What each client may do to a store. Nothing here rests on what a client says of itself.
//!
//! ```text
//!                     reader     orchestrator                            admin
//! read, list          yes        yes                                     yes
//! own leases          yes        yes                                     yes
//! packs               -          add, if every block in it fits          as an orchestrator
//! restore points      -          add, if every disk is whole             and remove, but for pins and the floor
//! pins                -          add                                     and change and remove
//! anything else       -          -                                       -
//! ```
//!
//! An object is never written in place of another, and nobody touches another's lease. A restore point is put under a
//! lease; where a collector took that away meanwhile, the point is taken back, here, before anybody is told of it. Who learns
//! only afterwards that his lease is gone may take back what he has just put himself.

use super::Offer;
use super::denied::Denied;
use super::protocol::{Client, Role, Standing};
use crate::backend::{Backend, pack_key};
use crate::store::{
    MAX_COUNTER, MAX_LEASE, MAX_PIN_SIZE, MAX_POINT_SIZE, Pin, PointId, Store, lease_named, pin_key,
    point_key,
};
use pin::Fingerprint;
use seal::{MAX_PACK_SIZE, PackId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// How long after it was put a point may be taken back. A client does so within a second.
const TAKE_BACK: Duration = Duration::from_secs(600);
/// Leases of one client: a job, a restore or a look has one each.
const MOST_LEASES: usize = 256;
/// How far the system's clock may run ahead of this process's own, by correction.
const CLOCK_DRIFT: Duration = Duration::from_secs(3600);

/// Says who has a key.
pub type Clients = Arc<dyn Fn(Fingerprint) -> Option<Client> + Send + Sync>;

/// A store, and what may be done to it.
pub struct Guard {
    store: Arc<Store>,
    clients: Clients,
    append_only: bool,
    /// When this process began, by the system's clock and by one that does not jump.
    began: (SystemTime, Instant),
    memory: Mutex<Memory>,
}

/// What happened lately.
#[derive(Default)]
struct Memory {
    /// Points that were put, by whom and under which leases.
    put: HashMap<PointId, Put>,
    /// Leases that their holders gave back.
    given_back: HashMap<Uuid, Instant>,
    /// Whose a lease is; that never changes.
    holders: HashMap<Uuid, Option<String>>,
}

struct Put {
    by: Fingerprint,
    at: Instant,
    leases: Vec<Uuid>,
}

/// What a key names, of what clients may write or remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Pack(PackId),
    Point(PointId),
    Pin(PointId),
    Lease(Uuid),
    Counter(Uuid),
}

impl Named {
    fn of(key: &str) -> Option<Self> {
        let name = crate::backend::file_name(key);
        let point = name.strip_suffix(".json").and_then(|id| id.parse::<PointId>().ok());
        if let Some(id) = point {
            return match key {
                _ if key == point_key(id) => Some(Self::Point(id)),
                _ if key == pin_key(id) => Some(Self::Pin(id)),
                _ => None,
            };
        }
        if let Some((id, is_counter)) = lease_named(key) {
            return Some(if is_counter { Self::Counter(id) } else { Self::Lease(id) });
        }
        let id = name.parse::<PackId>().ok()?;
        (key == pack_key(id)).then_some(Self::Pack(id))
    }
}

fn forbidden(client: &Client, what: &str) -> Denied {
    Denied::new(
        403,
        "forbidden",
        format!("'{}' is a client of the role {}, which {what}", client.name, client.role),
    )
}

fn conflict(message: impl Into<String>) -> Denied {
    Denied::new(409, "conflict", message)
}

impl Guard {
    /// With `append_only` nothing is removed, by nobody, but leases.
    pub fn new(store: Arc<Store>, clients: Clients, append_only: bool) -> Self {
        let began = (SystemTime::now(), Instant::now());
        Self { store, clients, append_only, began, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        let mut memory = self.memory.lock().expect("no panic while it is locked");
        memory.put.retain(|_, put| put.at.elapsed() < TAKE_BACK);
        memory.given_back.retain(|_, at| at.elapsed() < TAKE_BACK);
        memory
    }

    /// What the time is at most: a system's clock that jumps ahead while this process runs is not followed.
    fn clock(&self) -> SystemTime {
        let (system, own) = self.began;
        SystemTime::now().min(system + own.elapsed() + CLOCK_DRIFT)
    }

    /// Whether a client may write what a key names.
    fn may_put(&self, client: &Client, key: &str) -> Result<Named, Denied> {
        let adds = client.role >= Role::Orchestrator;
        match Named::of(key) {
            Some(named @ (Named::Lease(_) | Named::Counter(_))) => Ok(named),
            Some(named) if adds => Ok(named),
            Some(_) => Err(forbidden(client, "only reads")),
            None => Err(forbidden(
                client,
                "writes packs, restore points, pins and its own leases, and nothing else",
            )),
        }
    }

    fn put_point(&self, client: &Client, id: PointId, bytes: &[u8]) -> Result<(), Denied> {
        // Its name proves it: who sends it again has it already.
        if self.store.backend.head(&point_key(id))?.is_some() {
            return Ok(());
        }
        let leases = self.leases_of(client)?;
        if leases.is_empty() {
            return Err(Denied::new(409, "no-lease", "a restore point is put under a lease: take one first"));
        }
        self.store.admit_point(id, bytes, self.clock())?;
        if self.is_one_lost(&leases)? {
            self.store.backend.delete(&point_key(id))?;
            return Err(Denied::new(
                409,
                "lease-lost",
                "the job was taken for dead and the store was cleaned meanwhile; there is no restore point",
            ));
        }
        tracing::info!(client = %client.name, point = %id.short(), "restore point taken");
        self.memory().put.insert(id, Put { by: client.key, at: Instant::now(), leases });
        Ok(())
    }

    /// Whether a lease is gone that its holder has not given back.
    fn is_one_lost(&self, leases: &[Uuid]) -> Result<bool, Denied> {
        for id in leases {
            if !self.store.has_lease(*id)? && !self.memory().given_back.contains_key(id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn put_pin(&self, client: &Client, id: PointId, bytes: &[u8]) -> Result<(), Denied> {
        let key = pin_key(id);
        serde_json::from_slice::<Pin>(bytes)
            .map_err(|error| Denied::bad(format!("it is no pin: {error}")))?;
        if self.store.backend.head(&point_key(id))?.is_none() {
            return Err(conflict("there is no such restore point"));
        }
        if self.store.backend.head(&key)?.is_some() {
            if self.store.backend.get(&key, MAX_PIN_SIZE).is_ok_and(|found| found == bytes) {
                return Ok(());
            }
            if client.role < Role::Admin || self.append_only {
                return Err(conflict("the point is pinned already; only an admin changes the note"));
            }
        }
        self.store.backend.put(&key, bytes)?;
        tracing::info!(client = %client.name, point = %id.short(), "pinned");
        Ok(())
    }

    fn put_lease(&self, client: &Client, id: Uuid, bytes: &[u8]) -> Result<(), Denied> {
        let own = self.leases_of(client)?;
        if own.len() >= MOST_LEASES && !own.contains(&id) {
            return Err(conflict(format!("the client has {} leases; more are not given", own.len())));
        }
        Ok(self.store.lend(id, bytes, &client.key.to_string(), &client.name)?)
    }

    fn put_counter(&self, client: &Client, id: Uuid, bytes: &[u8]) -> Result<(), Denied> {
        match self.holder(id)? {
            None => Err(Denied::new(409, "lease-lost", "there is no such lease any more")),
            Some(holder) if holder.as_deref() == Some(&*client.key.to_string()) => {
                Ok(self.store.renew(id, bytes)?)
            }
            Some(_) => Err(forbidden(client, "does not touch the leases of others")),
        }
    }

    /// Whose a lease is; `None` where there is none.
    fn holder(&self, id: Uuid) -> Result<Option<Option<String>>, Denied> {
        Ok(self.store.holder(id)?)
    }

    fn leases_of(&self, client: &Client) -> Result<Vec<Uuid>, Denied> {
        let there = self.store.lease_ids()?;
        let mut holders = {
            let mut memory = self.memory();
            memory.holders.retain(|id, _| there.contains(id));
            memory.holders.clone()
        };
        for id in &there {
            if !holders.contains_key(id)
                && let Some(holder) = self.holder(*id)?
            {
                holders.insert(*id, holder);
            }
        }
        let own = client.key.to_string();
        let of_client = |id: &Uuid| holders.get(id).is_some_and(|holder| holder.as_deref() == Some(&*own));
        let found = there.iter().copied().filter(of_client).collect();
        self.memory().holders = holders;
        Ok(found)
    }

    fn give_back(&self, client: &Client, id: Uuid) -> Result<(), Denied> {
        match self.holder(id)? {
            // A counter without a lease is anybody's to clear.
            None => {}
            Some(holder) if holder.as_deref() == Some(&*client.key.to_string()) => {
                self.memory().given_back.insert(id, Instant::now());
            }
            Some(_) => return Err(forbidden(client, "does not touch the leases of others")),
        }
        Ok(self.store.give_back(id)?)
    }

    fn remove_point(&self, client: &Client, id: PointId) -> Result<(), Denied> {
        if self.append_only {
            return Err(Denied::new(403, "append-only", "this server removes nothing"));
        }
        if self.may_take_back(client, id)? {
            tracing::warn!(client = %client.name, point = %id.short(), "restore point taken back: its lease was lost");
            return Ok(self.store.backend.delete(&point_key(id))?);
        }
        if client.role < Role::Admin {
            return Err(forbidden(client, "removes no restore points"));
        }
        match self.store.remove_point_at(id, self.clock()) {
            Ok(()) => tracing::info!(client = %client.name, point = %id.short(), "restore point removed"),
            Err(crate::Error::PointNotFound { .. }) => {}
            Err(error @ crate::Error::FloorHolds { .. }) => {
                return Err(Denied::new(403, "floor", error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Whether the client has just put this point itself, under a lease that a collector took away.
    fn may_take_back(&self, client: &Client, id: PointId) -> Result<bool, Denied> {
        let leases = match self.memory().put.get(&id) {
            Some(put) if put.by == client.key => put.leases.clone(),
            _ => return Ok(false),
        };
        self.is_one_lost(&leases)
    }

    fn remove_pin(&self, client: &Client, id: PointId) -> Result<(), Denied> {
        if self.append_only {
            return Err(Denied::new(403, "append-only", "this server removes nothing"));
        }
        if client.role < Role::Admin {
            return Err(forbidden(client, "removes no pins"));
        }
        self.store.backend.delete(&pin_key(id))?;
        tracing::info!(client = %client.name, point = %id.short(), "unpinned");
        Ok(())
    }
}

impl Offer for Guard {
    fn client(&self, key: Fingerprint) -> Option<Client> {
        (self.clients)(key)
    }

    fn backend(&self) -> &dyn Backend {
        &*self.store.backend
    }

    fn standing(&self, client: &Client) -> Result<Standing, Denied> {
        Ok(Standing {
            client: client.name.clone(),
            role: client.role,
            append_only: self.append_only,
            keep_at_least_days: self.store.floor_days()?,
        })
    }

    fn most(&self, client: &Client, key: &str) -> Result<u64, Denied> {
        Ok(match self.may_put(client, key)? {
            Named::Pack(_) => MAX_PACK_SIZE as u64,
            Named::Point(_) => MAX_POINT_SIZE,
            Named::Pin(_) => MAX_PIN_SIZE,
            Named::Lease(_) => MAX_LEASE,
            Named::Counter(_) => MAX_COUNTER,
        })
    }

    fn put(&self, client: &Client, key: &str, bytes: &[u8], only_new: bool) -> Result<bool, Denied> {
        let named = self.may_put(client, key)?;
        if only_new && self.store.backend.head(key)?.is_some() {
            return Ok(false);
        }
        match named {
            Named::Pack(id) => self.store.admit_pack(id, bytes).map(drop)?,
            Named::Point(id) => self.put_point(client, id, bytes)?,
            Named::Pin(id) => self.put_pin(client, id, bytes)?,
            Named::Lease(id) => self.put_lease(client, id, bytes)?,
            Named::Counter(id) => self.put_counter(client, id, bytes)?,
        }
        Ok(true)
    }

    fn delete(&self, client: &Client, key: &str) -> Result<(), Denied> {
        match Named::of(key) {
            Some(Named::Point(id)) => self.remove_point(client, id),
            Some(Named::Pin(id)) => self.remove_pin(client, id),
            Some(Named::Lease(id) | Named::Counter(id)) => self.give_back(client, id),
            Some(Named::Pack(_)) => {
                Err(forbidden(client, "removes no packs: the server collects what nobody needs"))
            }
            None => Err(forbidden(client, "does not remove that")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_keys_name_something() {
        let (hex, id) = ("ab".repeat(32), Uuid::new_v4());
        let point: PointId = hex.parse().expect("an id");
        assert_eq!(Named::of(&format!("points/{hex}.json")), Some(Named::Point(point)));
        assert_eq!(Named::of(&format!("pins/{hex}.json")), Some(Named::Pin(point)));
        assert!(matches!(Named::of(&format!("packs/ab/{hex}")), Some(Named::Pack(_))));
        assert_eq!(Named::of(&format!("leases/{id}.json")), Some(Named::Lease(id)));
        assert_eq!(Named::of(&format!("leases/{id}.counter")), Some(Named::Counter(id)));
        for key in [
            "config.json".to_owned(),
            "floor.json".to_owned(),
            "gc/generation.json".to_owned(),
            format!("condemned/{id}.json"),
            format!("packs/cd/{hex}"),
            format!("packs/{hex}"),
            format!("packs/ab/{hex}.json"),
            format!("points/{hex}"),
            format!("points/x/{hex}.json"),
            format!("leases/x/{id}.json"),
            format!("leases/{}.json", id.simple()),
            format!("tmp/{hex}"),
            format!("tmp/{hex}.json"),
            format!("index/{hex}"),
        ] {
            assert_eq!(Named::of(&key), None, "{key}");
        }
    }
}
