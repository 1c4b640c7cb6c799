//! What leases and condemned lists say.

use crate::Error;
use crate::backend::{Backend, file_name};
use seal::{PackId, Tree};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Leases are below it, and beside each its counter.
pub(super) const LEASES: &str = "leases/";
/// Lists of condemned packs are below it.
pub(super) const CONDEMNED: &str = "condemned/";
/// Changes before packs are removed; who remembers another one looks which packs are left.
pub(in crate::store) const GENERATION: &str = "gc/generation.json";

/// Most bytes of a record that are read: a list of a million packs.
const MAX_RECORD: u64 = 128 << 20;
/// Packs in one list.
pub(super) const MAX_CONDEMNED: usize = 500_000;
const VERSION: u32 = 1;

/// Somebody works with the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LeaseRecord {
    pub(super) version: u32,
    /// Who, for people.
    pub(super) owner: String,
    /// When, for people.
    pub(super) created: String,
    /// Trees that he starts from.
    pub(super) trees: Vec<Tree>,
    /// The key of the client for whom a server keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) holder: Option<String>,
}

impl LeaseRecord {
    pub(super) fn new(owner: &str, created: String, trees: Vec<Tree>) -> Self {
        Self { version: VERSION, owner: owner.to_owned(), created, trees, holder: None }
    }
}

/// Packs that nobody needed when they were looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct CondemnedRecord {
    pub(super) version: u32,
    /// Seconds since 1970 by the collector's clock.
    pub(super) created: u64,
    pub(super) packs: Vec<PackName>,
    /// Leases that were there after this list was first written, with their counters; none where the collector died
    /// before he looked.
    pub(super) leases: Option<BTreeMap<Uuid, u64>>,
}

impl CondemnedRecord {
    pub(super) fn new(created: u64, packs: &[PackId]) -> Self {
        let packs = packs.iter().copied().map(PackName).collect();
        Self { version: VERSION, created, packs, leases: None }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = PackId> {
        self.packs.iter().map(|pack| pack.0)
    }

    pub(super) fn is_older_than(&self, grace: Duration, now: u64) -> bool {
        now >= self.created.saturating_add(grace.as_secs())
    }
}

/// A pack's id as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackName(pub(super) PackId);

impl Serialize for PackName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for PackName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

pub(super) fn lease_key(id: Uuid) -> String {
    format!("{LEASES}{id}.json")
}

pub(super) fn counter_key(id: Uuid) -> String {
    format!("{LEASES}{id}.counter")
}

pub(super) fn condemned_key(id: Uuid) -> String {
    format!("{CONDEMNED}{id}.json")
}

/// The id in a key with this ending.
pub(super) fn id_in(key: &str, ending: &str) -> Option<Uuid> {
    file_name(key).strip_suffix(ending)?.parse().ok()
}

pub(super) fn write<T: Serialize>(backend: &dyn Backend, key: &str, record: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(record)
        .map_err(|error| Error::NotCollected { reason: format!("{key} cannot be written: {error}") })?;
    backend.put(key, &bytes)
}

/// Reads a record; `None` where it is gone.
pub(super) fn read<T: serde::de::DeserializeOwned>(
    backend: &dyn Backend,
    key: &str,
) -> Result<Option<T>, Error> {
    let bytes = match backend.get(key, MAX_RECORD) {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let read = serde_json::from_slice(&bytes).map(Some);
    read.map_err(|error| Error::NotCollected { reason: format!("{key} cannot be read: {error}") })
}

pub(super) fn check_version(key: &str, version: u32) -> Result<(), Error> {
    if version == VERSION {
        return Ok(());
    }
    Err(Error::NotCollected {
        reason: format!("{key} has version {version}, which this program does not know"),
    })
}

/// Every lease, with its counter. A lease that cannot be understood is an error: somebody relies on it.
pub(super) fn leases(backend: &dyn Backend) -> Result<BTreeMap<Uuid, (LeaseRecord, u64)>, Error> {
    let mut found = BTreeMap::new();
    for object in backend.list(LEASES)? {
        let Some(id) = id_in(&object.key, ".json") else { continue };
        let Some(record) = read::<LeaseRecord>(backend, &object.key)? else { continue };
        check_version(&object.key, record.version)?;
        // A counter that is missing was not written yet.
        let counter = read::<u64>(backend, &counter_key(id))?.unwrap_or(0);
        found.insert(id, (record, counter));
    }
    Ok(found)
}

/// Counters whose leases are gone.
pub(super) fn lost_counters(backend: &dyn Backend) -> Result<Vec<Uuid>, Error> {
    let keys: Vec<String> = backend.list(LEASES)?.into_iter().map(|object| object.key).collect();
    let lost = keys.iter().filter_map(|key| id_in(key, ".counter"));
    Ok(lost.filter(|id| keys.binary_search(&lease_key(*id)).is_err()).collect())
}

/// Every condemned list.
pub(super) fn condemned(backend: &dyn Backend) -> Result<BTreeMap<Uuid, CondemnedRecord>, Error> {
    let mut found = BTreeMap::new();
    for object in backend.list(CONDEMNED)? {
        let Some(id) = id_in(&object.key, ".json") else { continue };
        let Some(record) = read::<CondemnedRecord>(backend, &object.key)? else { continue };
        check_version(&object.key, record.version)?;
        found.insert(id, record);
    }
    Ok(found)
}

/// The generation of the packs; nothing before the first collection.
pub(in crate::store) fn generation(backend: &dyn Backend) -> Result<Option<Uuid>, Error> {
    read(backend, GENERATION)
}
