//! Pins: restore points that are not removed until somebody lets go of them.
//!
//! A pin stands beside the point, because a point never changes. One whose file is damaged holds all the same.

use super::packs::entries;
use super::points::{PointId, id_of};
use super::{Store, timestamp};
use crate::Error;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Longest note in bytes.
const MAX_NOTE: usize = 1000;
/// Most bytes of a pin that are read.
const MAX_PIN_SIZE: u64 = 16 << 10;

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
        self.layout.write(&self.pin_path(id), &bytes)
    }

    /// Lets go of a restore point; whether it was pinned.
    ///
    /// # Errors
    /// What the file system says.
    pub fn unpin(&self, id: PointId) -> Result<bool, Error> {
        let path = self.pin_path(id);
        if !path.exists() {
            return Ok(false);
        }
        self.layout.remove(&path).map(|()| true)
    }

    /// All pins, also of points that are gone.
    ///
    /// # Errors
    /// [`Error::Io`] where they cannot be listed.
    pub fn pins(&self) -> Result<BTreeMap<PointId, Pin>, Error> {
        let paths = entries(&self.layout, &self.layout.pins())?;
        Ok(paths.into_iter().filter_map(|path| Some((id_of(&path)?, read_pin(&path)))).collect())
    }

    pub(super) fn is_pinned(&self, id: PointId) -> bool {
        self.pin_path(id).exists()
    }

    fn pin_path(&self, id: PointId) -> PathBuf {
        self.layout.pins().join(format!("{id}.json"))
    }
}

fn read_pin(path: &Path) -> Pin {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_PIN_SIZE).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(bytes)
    };
    read().ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}
