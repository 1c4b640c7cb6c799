//! Pins: restore points that are not removed until somebody lets go of them.
//!
//! A pin stands beside the point, because a point never changes. One whose file is damaged holds all the same.

use super::points::{PointId, named_by};
use super::{Store, timestamp};
use crate::Error;
use crate::backend::PINS;
use crate::error::sentence;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

/// Longest note in bytes.
const MAX_NOTE: usize = 1000;
/// Most bytes of a pin that are read.
pub(crate) const MAX_PIN_SIZE: u64 = 16 << 10;

/// Why a restore point stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// When it was pinned, as [`timestamp`](crate::timestamp) gives it.
    #[serde(default)]
    pub created: String,
    /// In somebody's words.
    #[serde(default)]
    pub note: String,
}

impl Store {
    /// Makes a restore point stay until [`unpin`](Self::unpin); a pin that is there gets the new note.
    ///
    /// # Errors
    /// [`Error::PointNotFound`], [`Error::PinRefused`] for a note of more than 1000 bytes, or what the file system
    /// says.
    pub fn pin(&self, id: PointId, note: &str) -> Result<(), Error> {
        self.point(id)?;
        if note.len() > MAX_NOTE {
            let reason = format!("the note has {} bytes, {MAX_NOTE} are the most", note.len());
            return Err(Error::PinRefused { reason });
        }
        let pin = Pin { created: timestamp(SystemTime::now()), note: note.to_owned() };
        let bytes = serde_json::to_vec_pretty(&pin)
            .map_err(|error| Error::PinRefused { reason: error.to_string() })?;
        self.backend.put(&pin_key(id), &bytes)
    }

    /// Lets go of a restore point; whether it was pinned.
    ///
    /// # Errors
    /// What the file system says.
    pub fn unpin(&self, id: PointId) -> Result<bool, Error> {
        match self.is_pinned(id)? {
            true => self.backend.delete(&pin_key(id)).map(|()| true),
            false => Ok(false),
        }
    }

    /// All pins, also of points that are gone.
    ///
    /// # Errors
    /// [`Error::Io`] where they cannot be listed.
    pub fn pins(&self) -> Result<BTreeMap<PointId, Pin>, Error> {
        let objects = self.backend.list(PINS)?;
        Ok(objects
            .iter()
            .filter_map(|object| Some((named_by(&object.key)?, self.read_pin(&object.key))))
            .collect())
    }

    /// Pins that cannot be read, and what is no pin: where it stands, and why; `true` where a point is named.
    pub(super) fn odd_pins(&self) -> Result<Vec<(PathBuf, String, bool)>, Error> {
        let mut odd = Vec::new();
        for object in self.backend.list(PINS)? {
            let named = named_by(&object.key).is_some();
            let reason = match self.backend.get(&object.key, MAX_PIN_SIZE) {
                _ if !named => "it has not the name of a pin".into(),
                Ok(bytes) => match serde_json::from_slice::<Pin>(&bytes) {
                    Ok(_) => continue,
                    Err(error) => format!("{error}; the point stays pinned"),
                },
                Err(error) => sentence(&error),
            };
            odd.push((self.backend.place(&object.key), reason, named));
        }
        Ok(odd)
    }

    /// An error is no permission to remove the point.
    pub(super) fn is_pinned(&self, id: PointId) -> Result<bool, Error> {
        self.backend.head(&pin_key(id)).map(|found| found.is_some())
    }

    fn read_pin(&self, key: &str) -> Pin {
        let bytes = self.backend.get(key, MAX_PIN_SIZE).ok();
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }
}

pub(crate) fn pin_key(id: PointId) -> String {
    format!("{PINS}{id}.json")
}
