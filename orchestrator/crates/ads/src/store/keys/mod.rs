//! Who can open an encrypted store: its key slots.
//!
//! ```text
//! slot     keys/<uuid>.json: the master key, wrapped for one passphrase or one recipient
//! access   what somebody has: a passphrase, identities of age, a recovery kit
//! kit      the master key on paper
//! ```
//!
//! The master key never changes, and blocks are never encrypted again: who is to lose access loses his slot. A slot is
//! written once. A passphrase is changed by writing another slot, opening it as it was read back, and only then removing
//! the first; whatever step that dies at, one of the two opens the store. The last slot cannot be removed.

mod access;
mod kit;
mod slot;

pub use access::{Access, KdfCost, NewAccess, Passphrase};
pub use slot::{KeySlot, SlotKind};

use super::config::Config;
use super::{Store, put_config};
use crate::Error;
use crate::backend::{Backend, KEYS, Place, Probe, file_name};
use crate::error::sentence;
use seal::{IdKey, MasterKey, PackKind};
use slot::{MAX_SLOT_SIZE, slot_key};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Most slots of a store: each passphrase that is tried costs its time for each of them.
const MAX_SLOTS: usize = 64;

/// A file in `keys/` that is not a slot of this store.
#[derive(Clone, Debug)]
pub struct DamagedSlot {
    /// The slot that its name says; none where it says none.
    pub id: Option<Uuid>,
    /// The file.
    pub path: PathBuf,
    /// Which check failed.
    pub reason: String,
}

/// All key slots of a store.
#[derive(Clone, Debug, Default)]
pub struct KeySlots {
    /// Those that can be read, oldest first.
    pub slots: Vec<KeySlot>,
    /// The others.
    pub damaged: Vec<DamagedSlot>,
}

impl Store {
    /// Makes an encrypted store at a place where nothing is, and opens it. It can be opened with each of `access`.
    ///
    /// # Errors
    /// As [`init_at`](Self::init_at); [`Error::KeyRefused`] where there is no access, or one is no good.
    pub fn init_encrypted_at(place: &Place, access: &[NewAccess]) -> Result<Self, Error> {
        let backend = place.backend()?;
        if place.is_remote() {
            backend.prepare()?;
            Probe::run(&*backend)?;
        }
        Self::init_encrypted_on(backend, access)
    }

    /// Makes an encrypted store on a backend on which nothing is, and opens it.
    ///
    /// # Errors
    /// As [`init_encrypted_at`](Self::init_encrypted_at).
    pub fn init_encrypted_on(backend: Arc<dyn Backend>, access: &[NewAccess]) -> Result<Self, Error> {
        if access.is_empty() || access.len() > MAX_SLOTS {
            let reason = format!("{} passphrases and recipients; 1 to {MAX_SLOTS} are needed", access.len());
            return Err(Error::KeyRefused { reason });
        }
        let master = MasterKey::generate().map_err(|error| Error::Worker { reason: error.to_string() })?;
        {
            let _alone = backend.enter(true)?;
            backend.prepare()?;
            let config = Config::generate(Some(&master))?;
            // Before the config: a store that nobody can open must not come to be.
            for new in access {
                write_slot(&*backend, config.id, &master, new, "")?;
            }
            put_config(&*backend, &config)?;
        }
        let mut store = Self::open_on(backend)?;
        store.take_master(master, None)?;
        Ok(store)
    }

    /// Whether its blocks and restore points are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.config.master_check.is_some()
    }

    /// Whether it is encrypted and its key is not at hand: then trees can be walked and packs kept, moved and removed, and
    /// nothing that an ABD read can be seen.
    pub fn is_locked(&self) -> bool {
        self.id_key.is_locked()
    }

    /// Whether what stands in packs of a kind can be opened.
    pub(crate) fn can_open(&self, kind: PackKind) -> bool {
        kind == PackKind::Tree || !self.is_locked()
    }

    /// The slot that opened it; none where a recovery kit did, or it was made by this process.
    pub fn opened_by(&self) -> Option<Uuid> {
        self.opened_by
    }

    /// Opens an encrypted store; another one stays as it is.
    ///
    /// # Errors
    /// [`Error::WrongKey`] where this opens none of its slots, or what the backend says. The store stays locked.
    pub fn unlock(&mut self, access: &Access) -> Result<(), Error> {
        if !self.is_encrypted() {
            return Ok(());
        }
        let (master, slot) = self.master_by(access)?;
        self.take_master(master, slot)
    }

    /// Opens an encrypted store with its master key.
    fn take_master(&mut self, master: MasterKey, opened_by: Option<Uuid>) -> Result<(), Error> {
        if self.config.master_check != Some(master.check()) {
            return Err(self.wrong_key("the key is not this store's".into()));
        }
        self.id_key = IdKey::encrypted(&self.config.id_key, master);
        self.opened_by = opened_by;
        Ok(())
    }

    /// Whether an order goes with this store: it carries the key of one that is encrypted, and none of another. A service
    /// whose store is locked need not be told the key; then the delegate has it from elsewhere.
    pub(crate) fn has_master(&self, found: Option<&wire::MasterKeyBytes>) -> bool {
        match (found, &self.config.master_check) {
            (None, None) => true,
            (Some(key), Some(check)) => MasterKey::new(key.0).check() == *check,
            (None, Some(_)) => self.is_locked(),
            (Some(_), None) => false,
        }
    }

    fn wrong_key(&self, reason: String) -> Error {
        Error::WrongKey { dir: self.dir().to_owned(), reason }
    }

    /// The master key, or why it is needed.
    pub(crate) fn master(&self) -> Result<&MasterKey, Error> {
        self.id_key.master().ok_or_else(|| Error::KeyNeeded { dir: self.dir().to_owned() })
    }

    fn master_by(&self, access: &Access) -> Result<(MasterKey, Option<Uuid>), Error> {
        if let Access::Kit(kit) = access {
            let (store, master) = (kit.store(), kit.master());
            if store != self.id() {
                let reason =
                    format!("the recovery kit is that of store {store}, this is store {}", self.id());
                return Err(self.wrong_key(reason));
            }
            return Ok((master.clone(), None));
        }
        let found = self.key_slots()?;
        let mut tried = 0;
        for slot in found.slots.iter().filter(|slot| access.is_for(&slot.kind)).take(MAX_SLOTS) {
            tried += 1;
            if let Some(master) = slot.open(self.id(), access)? {
                return Ok((master, Some(slot.id)));
            }
        }
        let what = access.name();
        let mut reason = match tried {
            0 => format!("it has no key slot for {what}"),
            1 => format!("the {what} does not open its only key slot of this kind"),
            _ => format!("the {what} opens none of its {tried} key slots of this kind"),
        };
        if let Some(damaged) = found.damaged.first() {
            let (count, path) = (found.damaged.len(), damaged.path.display());
            reason += &format!("; {count} key slots cannot be read, the first is {path}: {}", damaged.reason);
        }
        Err(self.wrong_key(reason))
    }

    /// Who can open the store, and the files among them that cannot be read.
    ///
    /// # Errors
    /// What the backend says.
    pub fn key_slots(&self) -> Result<KeySlots, Error> {
        let mut found = KeySlots::default();
        for object in self.backend.list(KEYS)? {
            match self.read_slot(&object.key) {
                Ok(slot) => found.slots.push(slot),
                // Removed by somebody after it was listed.
                Err(_) if self.backend.head(&object.key)?.is_none() => {}
                Err(reason) => {
                    let path = self.backend.place(&object.key);
                    found.damaged.push(DamagedSlot { id: slot::named_by(&object.key), path, reason });
                }
            }
        }
        found.slots.sort_by(|a, b| (&a.created, a.id).cmp(&(&b.created, b.id)));
        Ok(found)
    }

    /// What below `keys/` is not as it should be: where, and why; `true` where a slot is named.
    pub(super) fn odd_key_slots(&self) -> Result<Vec<(PathBuf, String, bool)>, Error> {
        let found = self.key_slots()?;
        let mut odd: Vec<_> =
            found.damaged.into_iter().map(|slot| (slot.path, slot.reason, slot.id.is_some())).collect();
        if !self.is_encrypted() {
            let reason = || "the store is not encrypted".to_owned();
            odd.extend(
                found.slots.iter().map(|slot| (self.backend.place(&slot_key(slot.id)), reason(), false)),
            );
        }
        Ok(odd)
    }

    fn read_slot(&self, key: &str) -> Result<KeySlot, String> {
        let id = slot::named_by(key).ok_or("its name is not a key slot's")?;
        let bytes = self.backend.get(key, MAX_SLOT_SIZE).map_err(|error| sentence(&error))?;
        let slot = KeySlot::from_bytes(&bytes)?;
        if slot.id != id {
            return Err(format!("it says that it is key slot {}", slot.id));
        }
        if slot.store != self.id() {
            return Err(format!("it belongs to store {}", slot.store));
        }
        Ok(slot)
    }

    /// Lets somebody else open the store. On return his slot is durable, and was opened as far as that can be.
    ///
    /// # Errors
    /// [`Error::KeyNeeded`] where the store is locked or not encrypted, [`Error::KeyRefused`] for a passphrase that is too
    /// short, a recipient that is none, or where there are too many; what the backend says.
    pub fn add_key(&self, new: &NewAccess, label: &str) -> Result<Uuid, Error> {
        let master = self.master()?;
        let count = self.backend.list(KEYS)?.len();
        if count >= MAX_SLOTS {
            let reason = format!("there are {count} key slots, {MAX_SLOTS} are the most; remove one");
            return Err(Error::KeyRefused { reason });
        }
        write_slot(&*self.backend, self.id(), master, new, label)
    }

    /// Lets somebody open the store in place of who had a slot, which is removed once the new one is durable and was opened.
    ///
    /// # Errors
    /// As [`add_key`](Self::add_key) and [`remove_key`](Self::remove_key). Then the first slot is still there.
    pub fn replace_key(&self, old: Uuid, new: &NewAccess, label: &str) -> Result<Uuid, Error> {
        let added = self.add_key(new, label)?;
        self.remove_key(old)?;
        Ok(added)
    }

    /// Takes a slot away. Who knows the master key, from a recovery kit or because he remembered it, still has it.
    ///
    /// # Errors
    /// [`Error::KeyRefused`] where it is the last one that can be read, or none; what the backend says.
    pub fn remove_key(&self, id: Uuid) -> Result<(), Error> {
        let found = self.key_slots()?;
        let known = found.slots.iter().any(|slot| slot.id == id);
        if !known && found.damaged.iter().all(|slot| slot.id != Some(id)) {
            return Err(Error::KeyRefused { reason: format!("there is no key slot {id}") });
        }
        if !found.slots.iter().any(|slot| slot.id != id) {
            let reason = format!("{id} is the last key slot; without it nobody could open the store");
            return Err(Error::KeyRefused { reason });
        }
        let key = slot_key(id);
        let bytes = self.backend.get(&key, MAX_SLOT_SIZE)?;
        self.backend.delete(&key)?;
        // Two who each remove one of the last two at the same time must not both have their way.
        if known && self.key_slots()?.slots.is_empty() {
            self.backend.put(&key, &bytes)?;
            let reason = format!("{id} is the last key slot; somebody else removed the others just now");
            return Err(Error::KeyRefused { reason });
        }
        Ok(())
    }

    /// Gives a copy of the store the slots that it has now.
    pub(super) fn copy_key_slots(&self, to: &dyn Backend) -> Result<(), Error> {
        for slot in self.key_slots()?.slots {
            to.put(&slot_key(slot.id), &slot.to_bytes())?;
        }
        Ok(())
    }

    /// The master key to be printed and locked away, with all that is needed to use it.
    ///
    /// # Errors
    /// [`Error::KeyNeeded`].
    pub fn recovery_kit(&self) -> Result<Zeroizing<String>, Error> {
        Ok(kit::print(self.id(), self.dir(), self.master()?))
    }

    /// The secret that an order carries; none of a store that is not encrypted.
    ///
    /// # Errors
    /// [`Error::KeyNeeded`] where the store is locked.
    pub fn master_key_bytes(&self) -> Result<Option<wire::MasterKeyBytes>, Error> {
        match self.is_encrypted() {
            true => Ok(Some(wire::MasterKeyBytes(*self.master()?.as_bytes()))),
            false => Ok(None),
        }
    }
}

/// Writes a slot, reads it back and opens it.
fn write_slot(
    backend: &dyn Backend,
    store: Uuid,
    master: &MasterKey,
    new: &NewAccess,
    label: &str,
) -> Result<Uuid, Error> {
    let slot = KeySlot::new(store, master, new, label)?;
    let key = slot_key(slot.id);
    backend.put(&key, &slot.to_bytes())?;
    let unlike = |reason: String| Error::BadSlot { path: backend.place(&key), reason };
    let found = KeySlot::from_bytes(&backend.get(&key, MAX_SLOT_SIZE)?).map_err(unlike)?;
    let opens = match new {
        NewAccess::Passphrase { passphrase, .. } => {
            found.open(store, &Access::Passphrase(passphrase.clone()))?.as_ref() == Some(master)
        }
        // Only the recipient can open it.
        NewAccess::Recipient(_) => true,
    };
    match opens && found == slot {
        true => Ok(slot.id),
        false => Err(unlike("it was read back as another than was written".into())),
    }
}

/// The place of a file among people's words.
fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The name of an object below `keys/`.
fn stem(key: &str) -> Option<&str> {
    file_name(key).strip_suffix(".json")
}
