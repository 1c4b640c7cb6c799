//! What is wrong with the medium under a disk. A disk and its snapshots lie on one medium, so its faults are kept by the
//! disk that VMs write to.
//!
//! Only delegates that are processes see them: they read through it. A guest in QEMU gets a sound disk.

use crate::sim::State;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

/// `EIO`: all that Xen's block frontend ever says.
const EIO: i32 = 5;

/// The faults of one medium, as the control port is told them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surface {
    /// Parts that cannot be read: offset and size in bytes.
    #[serde(default)]
    pub bad: Vec<(u64, u64)>,
    /// Microseconds that it takes for each read, one after the other.
    #[serde(default)]
    pub service_us: u64,
}

/// The faults of all media, by uuid of the disk that is written to.
#[derive(Debug, Default)]
pub(crate) struct Surfaces(HashMap<String, Surface>);

impl Surfaces {
    /// Replaces the faults of a disk's medium; none heal it.
    pub(crate) fn set(&mut self, uuid: &str, surface: Surface) {
        self.0.insert(uuid.to_owned(), surface);
    }
}

/// The medium under a disk or a snapshot of it.
pub(crate) fn under(state: &State, vdi: &str) -> Surface {
    let find = |vdi: &str| state.surfaces.0.get(&state.db.text("VDI", vdi, "uuid"));
    let original = state.db.text("VDI", vdi, "snapshot_of");
    let inherited = || find(&original).filter(|_| state.db.exists("VDI", &original));
    find(vdi).or_else(inherited).cloned().unwrap_or_default()
}

impl diskio::Seam for Surface {
    fn answer(&mut self, asked: diskio::Asked, result: i32) -> i32 {
        // Who reads finds out later: for that reader the answers come one after the other, as from a slow disk.
        std::thread::sleep(Duration::from_micros(self.service_us));
        let Ok(size) = u64::try_from(result) else { return result };
        let (start, end) = (asked.offset.get(), asked.offset.get() + size);
        let is_hit = |(offset, size): &(u64, u64)| *offset < end && start < offset.saturating_add(*size);
        if self.bad.iter().any(is_hit) { -EIO } else { result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use diskio::Seam;

    #[test]
    fn only_reads_that_touch_a_bad_part_fail() {
        let mut surface = Surface { bad: vec![(4096, 512), (u64::MAX, 1)], ..Surface::default() };
        let mut read = |offset, size: usize| {
            let asked = diskio::Asked { offset: blocks::ByteOffset::new(offset), size };
            surface.answer(asked, i32::try_from(size).expect("small"))
        };
        assert_eq!((read(0, 4096), read(4608, 512)), (4096, 512));
        assert_eq!((read(0, 4097), read(4607, 1), read(4096, 4096)), (-EIO, -EIO, -EIO));
        let asked = diskio::Asked { offset: blocks::ByteOffset::new(0), size: 8192 };
        assert_eq!(surface.answer(asked, -4), -4, "what fails otherwise fails so");
        assert_eq!(surface.answer(asked, 4096), 4096, "what was not given is not bad");
    }
}
