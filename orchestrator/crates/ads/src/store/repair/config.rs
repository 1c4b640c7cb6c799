//! What a store cannot be opened without: `config.json`, and the generation of its packs.
//!
//! The id key is the one value in a store that nothing else could prove, so that a config from elsewhere is believed only
//! after its key has opened something that is in this store.

use super::report::{Deed, Origin};
use crate::Error;
use crate::backend::{Backend, CONFIG, POINTS, pack_key};
use crate::error::sentence;
use crate::ingest::check_object;
use crate::store::config::{Config, MAX_CONFIG_SIZE};
use crate::store::{Store, gc, packs, points};
use seal::{IdKey, MAX_PACK_SIZE, Opener, PackId, PackIndex};
use std::sync::Arc;

/// Whole packs that are looked at for an object that proves a key.
const MAX_WITNESSES: usize = 8;

impl Store {
    /// Mends what a store cannot be opened without, before it is opened. `from` is a second store whose blocks have the same
    /// ids. Nothing is done where the store can be opened.
    ///
    /// # Errors
    /// [`Error::OtherStore`] where the second store's key does not open what is here; what is wrong with the config where
    /// there is nothing to mend it from; else what the backend says.
    pub fn mend(backend: &Arc<dyn Backend>, from: Option<&Store>, dry_run: bool) -> Result<Vec<Deed>, Error> {
        let mut deeds = Vec::new();
        deeds.extend(mend_config(&**backend, from, dry_run)?);
        match gc::generation(&**backend) {
            Err(Error::NotCollected { .. }) => {
                if !dry_run {
                    gc::renew_generation(&**backend)?;
                }
                deeds.push(Deed::Generation { path: backend.place(gc::GENERATION) });
            }
            other => drop(other?),
        }
        Ok(deeds)
    }
}

fn mend_config(backend: &dyn Backend, from: Option<&Store>, dry_run: bool) -> Result<Option<Deed>, Error> {
    let path = backend.place(CONFIG);
    let (reason, bytes, from) = match Config::read(backend) {
        Ok(config) => {
            let bytes = config.to_bytes();
            if backend.get(CONFIG, MAX_CONFIG_SIZE)? == bytes {
                return Ok(None);
            }
            // Its values are proven by its check.
            ("it is not as it was written, although its values are".to_owned(), bytes, Origin::Itself)
        }
        Err(error @ (Error::Config { .. } | Error::NotAStore { .. })) => {
            let Some(from) = from else { return Err(error) };
            (sentence(&error), config_from(backend, from)?, Origin::SecondStore)
        }
        Err(error) => return Err(error),
    };
    if !dry_run {
        // Whatever is there is damaged, and may still be of use to somebody.
        if let Ok(old) = backend.get(CONFIG, MAX_CONFIG_SIZE) {
            backend.put(&super::quarantine_key(CONFIG), &old)?;
        }
        backend.put(CONFIG, &bytes)?;
    }
    Ok(Some(Deed::Config { path, reason, from }))
}

/// The config that a second store's key gives to what is here. The store's own id stands in its restore points.
fn config_from(backend: &dyn Backend, from: &Store) -> Result<Vec<u8>, Error> {
    let refused = |reason: &str| Error::OtherStore { dir: from.dir().to_owned(), reason: reason.to_owned() };
    if !opens_something(backend, &from.id_key)? {
        return Err(refused("its id key opens nothing of what is here"));
    }
    let mut id = from.config.id;
    for object in backend.list(POINTS)? {
        if let Ok((stored, _)) = points::read_point(backend, &object.key, from.is_encrypted().then_some(None))
        {
            id = stored.point.store;
            break;
        }
    }
    match id == from.config.id {
        true => from.backend.get(CONFIG, MAX_CONFIG_SIZE),
        false => Ok(Config { id, ..from.config.clone() }.to_bytes()),
    }
}

/// Whether an object of a pack of this store has the id that this key gives it.
fn opens_something(backend: &dyn Backend, key: &IdKey) -> Result<bool, Error> {
    let mut opener = Opener::new()?;
    let mut witnesses = 0;
    for (id, _) in packs::list(backend)?.packs {
        let Ok(bytes) = backend.get(&pack_key(id), MAX_PACK_SIZE as u64) else { continue };
        if PackId::of(&bytes) != id {
            continue;
        }
        let Ok(index) = PackIndex::from_pack(&bytes) else { continue };
        let mut first = index.entries.iter().take(1);
        if first.any(|entry| check_object(key, &bytes, index.kind, entry, &mut opener).is_ok()) {
            return Ok(true);
        }
        witnesses += 1;
        if witnesses == MAX_WITNESSES {
            break;
        }
    }
    Ok(false)
}
