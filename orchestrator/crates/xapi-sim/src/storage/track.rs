//! Finds what a real guest wrote: digests of a disk's granules are taken when the guest gets the disk and compared
//! when somebody needs to know. A guest's writes never pass through the simulator, so there is no other record.

use super::disk;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::sim::{Context, Sim, State};
use crate::storage::vdi::path_of;
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Granule index to digest; an absent granule is all zeros.
type Digests = HashMap<u64, [u8; 32]>;

/// The disks that guests may be writing to, by VDI reference.
#[derive(Debug, Default)]
pub(crate) struct Baselines(HashMap<String, Option<Digests>>);

impl Baselines {
    /// The disk is open read-write in a real guest.
    pub(crate) fn attach(&mut self, vdi: &str) {
        self.0.insert(vdi.to_owned(), None);
    }

    pub(crate) fn detach(&mut self, vdi: &str) {
        self.0.remove(vdi);
    }

    /// Whether a real guest may be writing to the disk.
    pub(crate) fn attached(&self, vdi: &str) -> bool {
        self.0.contains_key(vdi)
    }

    /// Attached, but without a baseline.
    fn unobserved(&self, vdi: &str) -> bool {
        matches!(self.0.get(vdi), Some(None))
    }
}

/// Notes in the chain what a real guest has made of a disk's holes so far, for the accounting of space: what it wrote
/// shows as data in the file.
pub(crate) fn note_guest_writes(config: &Config, state: &mut State, vdi: &str) {
    if state.baselines.attached(vdi) {
        note_contents(config, state, vdi);
    }
}

/// Notes everything that a disk's file holds as written to its node.
pub(crate) fn note_contents(config: &Config, state: &mut State, vdi: &str) {
    let uuid = state.db.text("VDI", vdi, "uuid");
    // What the file of a child holds may be its parent's.
    if state.chains.has_parent(&uuid) {
        return;
    }
    let extents = File::open(path_of(config, &state.db, vdi)).and_then(|file| disk::extents(&file));
    match extents {
        Ok(extents) => extents.iter().for_each(|(at, end)| state.chains.record(&uuid, *at, end - at)),
        Err(error) => tracing::warn!(uuid, %error, "the disk's file could not be measured"),
    }
}

/// Takes the baseline of a disk that a guest may write to, where its writes matter and none was taken yet.
pub(crate) async fn observe(context: &Context, vdi: &str) -> Outcome<()> {
    let Some(path) = context.with(|s| wanted(s, context, vdi)) else { return Ok(()) };
    let digests = digests_of(path).await?;
    context.with(|s| s.baselines.0.insert(vdi.to_owned(), Some(digests)));
    Ok(())
}

fn wanted(state: &State, context: &Context, vdi: &str) -> Option<PathBuf> {
    let uuid = state.db.text("VDI", vdi, "uuid");
    let matters = state.cbt.tracked(&uuid) || state.chains.has_parent(&uuid);
    (matters && state.baselines.unobserved(vdi)).then(|| path_of(&context.sim.config, &state.db, vdi))
}

/// Records what the guest wrote since the baseline was taken. Without a baseline, nothing was asked for.
pub(crate) async fn settle(context: &Context, vdi: &str) -> Outcome<()> {
    let taken = context.with(|s| s.baselines.0.get_mut(vdi).and_then(Option::take));
    let Some(before) = taken else {
        context.with(|s| note_guest_writes(&context.sim.config, s, vdi));
        return Ok(());
    };
    let path = context.with(|s| path_of(&context.sim.config, &s.db, vdi));
    let after = match digests_of(path).await {
        Ok(after) => after,
        Err(failure) => {
            // What changed is unknown now, so everything did.
            context.with(|s| {
                let uuid = s.db.text("VDI", vdi, "uuid");
                let size = u64::try_from(s.db.int("VDI", vdi, "virtual_size")).unwrap_or_default();
                s.cbt.record(&uuid, 0, size);
                s.chains.record(&uuid, 0, size);
            });
            return Err(failure);
        }
    };
    context.with(|s| {
        let uuid = s.db.text("VDI", vdi, "uuid");
        let changed =
            after.iter().filter(|(index, digest)| before.get(index) != Some(digest)).map(|(index, _)| *index);
        let cleared = before.keys().filter(|index| !after.contains_key(index)).copied();
        for index in changed.chain(cleared) {
            s.cbt.record(&uuid, index * disk::GRANULE, disk::GRANULE);
            s.chains.record(&uuid, index * disk::GRANULE, disk::GRANULE);
        }
        if let Some(slot) = s.baselines.0.get_mut(vdi) {
            *slot = Some(after);
        }
    });
    Ok(())
}

async fn digests_of(path: PathBuf) -> Outcome<Digests> {
    let work = move || digests(&path).map_err(|e| Failure::disk("read the disk of a guest", &e));
    Sim::blocking(work).await
}

fn digests(path: &Path) -> std::io::Result<Digests> {
    let mut all = Digests::new();
    disk::each_granule(path, |index, bytes| {
        all.insert(index, *blake3::hash(bytes).as_bytes());
    })?;
    Ok(all)
}
