//! What must hold after every run: restore points that are true, users who have everything, and a pool without
//! leftovers.

use super::run::Ended;
use ads::{DiskMode, PointDisk, PointId, Store, StoredPoint};
use e2e::{Expected, Model, list, stored_digest};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

const TAG_REFERENCE: &str = "abd:reference";
/// End of the name of a reserved snapshot.
const RESERVED: &str = "-reserved";

/// What is compared, and with what.
pub(super) struct Checks {
    store: PathBuf,
    /// Objects of the pool that are there without users and without jobs.
    furniture: BTreeSet<String>,
    /// By uuid of the VM, what its next restore point must hold.
    expected: BTreeMap<String, BTreeMap<String, Expected>>,
    seen: BTreeSet<PointId>,
    /// Our sessions, and tasks, that a run left without having had a chance to end them.
    left: Left,
    points: u64,
    modes: BTreeMap<&'static str, u64>,
}

/// What the pool keeps for its clients until it forgets it by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    sessions: usize,
    tasks: usize,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sessions and {} tasks", self.sessions, self.tasks)
    }
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let modes: Vec<_> = self.modes.iter().map(|(mode, count)| format!("{mode} {count}")).collect();
        write!(f, "{} restore points compared, modes {}", self.points, modes.join(", "))
    }
}

impl Checks {
    /// Of a pool in which there is nothing yet but its furniture.
    pub(super) fn new(inventory: &Value, store: PathBuf) -> Self {
        let classes = ["VM", "VBD", "VIF", "VDI"];
        let uuids = classes.iter().flat_map(|class| list(inventory, class)).map(uuid);
        Self {
            store,
            furniture: uuids.collect(),
            expected: BTreeMap::new(),
            seen: BTreeSet::new(),
            left: Left::default(),
            points: 0,
            modes: BTreeMap::new(),
        }
    }

    /// The next restore points of these VMs must hold what they have now.
    /// Disks at the position `exclude` are left out.
    pub(super) fn expect(&mut self, model: &mut Model, vms: &[usize], exclude: Option<u64>) {
        let expected = |vm: &usize| {
            let mut disks = model.expected(*vm);
            disks.retain(|_, disk| Some(disk.position) != exclude);
            (model.uuid(*vm).to_owned(), disks)
        };
        self.expected = vms.iter().map(expected).collect();
    }

    /// Compares every restore point that was not there before.
    pub(super) fn compare(&mut self, ended: &Ended) -> Result<(), String> {
        let fresh = self.fresh()?;
        if !fresh.is_empty() {
            let store = Store::open(&self.store).map_err(|error| format!("open the store: {error}"))?;
            if let Some(pack) = store.skipped_packs().first() {
                return Err(format!("a pack cannot be used: {pack:?}"));
            }
            for id in fresh {
                let stored = store.point(id).map_err(|error| format!("read a restore point: {error}"))?;
                self.point(&store, &stored, ended).map_err(|what| {
                    format!("restore point {id} of {}: {what}\n{}", stored.point.vm.name, ended.text())
                })?;
                self.seen.insert(id);
            }
        }
        let is_there = |point: &str| point.parse().is_ok_and(|id| self.seen.contains(&id));
        let said = ended.all("job-done").filter_map(|job| job["point"].as_str());
        match said.into_iter().find(|point| !is_there(point)) {
            Some(point) => Err(format!("job done, but restore point {point} is not in the store")),
            None => Ok(()),
        }
    }

    /// Whether there was a restore point yet.
    pub(super) fn has_points(&self) -> bool {
        !self.seen.is_empty()
    }

    /// Restore points that were not there before.
    fn fresh(&self) -> Result<Vec<PointId>, String> {
        let Ok(files) = std::fs::read_dir(self.store.join("points")) else { return Ok(Vec::new()) };
        let mut fresh = Vec::new();
        for file in files {
            let path = file.map_err(|error| format!("list restore points: {error}"))?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let id = name.parse().map_err(|_| format!("{} is no restore point", path.display()))?;
            if !self.seen.contains(&id) {
                fresh.push(id);
            }
        }
        Ok(fresh)
    }

    fn point(&mut self, store: &Store, stored: &StoredPoint, ended: &Ended) -> Result<(), String> {
        let vm = stored.point.vm.uuid.as_str();
        let expected = self.expected.get(vm).ok_or("the VM was not backed up in this run")?;
        let has: BTreeSet<&str> = stored.point.disks.iter().map(|disk| disk.vdi.as_str()).collect();
        let wants: BTreeSet<&str> = expected.keys().map(String::as_str).collect();
        if has != wants {
            return Err(format!("it has the disks {has:?}, the VM had {wants:?}"));
        }
        let mut snapshots =
            ended.log.iter().filter(|entry| entry["kind"] == "snapshot-content" && entry["vm"] == vm);
        let snapshot = snapshots.next_back().ok_or("the simulator saw no snapshot of the VM")?;
        for disk in &stored.point.disks {
            same(store, disk, &expected[&disk.vdi], snapshot)
                .map_err(|what| format!("disk {} ({:?}, {}): {what}", disk.vdi, disk.mode, disk.reason))?;
            *self.modes.entry(mode(disk.mode)).or_default() += 1;
        }
        self.points += 1;
        Ok(())
    }

    /// The newest restore point of a VM gets the time that it would have had if the clock of this machine had been
    /// set back an hour before its run.
    pub(super) fn set_clock_back(&mut self, vm: &str) -> Result<(), String> {
        let store = Store::open(&self.store).map_err(|error| format!("open the store: {error}"))?;
        let newest = store.latest_point(vm).map_err(|error| format!("list restore points: {error}"))?;
        let Some(StoredPoint { id, mut point }) = newest else { return Ok(()) };
        let day = point.created.get(..10).ok_or("a time without a date")?.to_owned();
        let hour: u32 =
            point.created.get(11..13).and_then(|hour| hour.parse().ok()).ok_or("a time without hours")?;
        // In the first hour of a day there is no earlier one: whoever runs this at midnight sees nothing.
        point.created = format!("{day}T{:02}{}", hour.saturating_sub(1), &point.created[13..]);
        store.remove_point(id).map_err(|error| format!("remove a restore point: {error}"))?;
        let id = store.commit_point(&point).map_err(|error| format!("commit a restore point: {error}"))?;
        self.seen.insert(id);
        Ok(())
    }

    /// Users have everything they had.
    pub(super) fn users(&self, model: &Model, inventory: &Value) -> Result<(), String> {
        match model.missing(inventory).as_slice() {
            [] => Ok(()),
            missing => Err(format!("lost from the pool: {}", missing.join("; "))),
        }
    }

    /// Sessions and tasks do not pile up: a run that came to its end leaves none, and one that was killed or cut off
    /// no more than those it had.
    pub(super) fn sessions(&mut self, inventory: &Value, jobs: usize, cut_off: bool) -> Result<(), String> {
        let now = Left {
            sessions: list(inventory, "session").filter(|session| session["originator"] == "abd").count(),
            tasks: list(inventory, "task").count(),
        };
        let before = std::mem::replace(&mut self.left, now);
        let allowed = match cut_off {
            // One session; for each job one call that the pool works at, and one transfer.
            true => Left { sessions: before.sessions + 1, tasks: before.tasks + 2 * jobs },
            false => before,
        };
        if now.sessions > allowed.sessions || now.tasks > allowed.tasks {
            return Err(format!("left in the pool: {now}, before the run {before}"));
        }
        Ok(())
    }

    /// What is left of runs that were killed.
    pub(super) fn left(&self) -> Left {
        self.left
    }

    /// Nothing of ours is there but references: one at most for each disk that exists, or one reserved snapshot for
    /// each VM.
    pub(super) fn leftovers(&self, model: &Model, inventory: &Value) -> Result<(), String> {
        let reserved: BTreeMap<String, &Value> = list(inventory, "VM")
            .filter(|vm| vm["name_label"].as_str().is_some_and(|name| name.ends_with(RESERVED)))
            .map(|vm| (uuid(vm), vm))
            .collect();
        let mut per_vm: BTreeMap<&str, u64> = BTreeMap::new();
        for vm in reserved.values() {
            *per_vm.entry(vm["other_config"][TAG_REFERENCE].as_str().unwrap_or("(untagged)")).or_default() +=
                1;
        }
        let of_reserved = |object: &Value| reserved.contains_key(object["VM"].as_str().unwrap_or_default());
        let vdis_of_reserved: BTreeSet<&str> = list(inventory, "VBD")
            .filter(|vbd| of_reserved(vbd))
            .filter_map(|vbd| vbd["VDI"].as_str())
            .collect();
        let mut per_disk: BTreeMap<&str, u64> = BTreeMap::new();
        for class in ["VM", "VBD", "VIF", "VDI"] {
            for object in list(inventory, class) {
                let id = uuid(object);
                // The storage's own: what disks and snapshots have in common.
                let hidden = object["managed"] == false;
                if hidden || self.furniture.contains(&id) || model.owns(class, object) {
                    continue;
                }
                let kept = match class {
                    "VM" => reserved.contains_key(&id),
                    "VDI" => vdis_of_reserved.contains(id.as_str()) || object["type"] == "cbt_metadata",
                    _ => of_reserved(object),
                };
                if !kept {
                    return Err(format!("left in the pool: {class} {object:#}"));
                }
                if class == "VDI" && object["type"] == "cbt_metadata" {
                    let live = object["other_config"][TAG_REFERENCE].as_str().unwrap_or("(untagged)");
                    *per_disk.entry(live).or_default() += 1;
                }
            }
        }
        let many = per_vm.iter().chain(&per_disk).find(|(_, count)| **count > 1);
        if let Some((of, count)) = many {
            return Err(format!("{count} references of {of}"));
        }
        Ok(())
    }
}

/// Whether the restore point's disk holds what the simulator says the snapshot held, and what the users wrote.
fn same(store: &Store, disk: &PointDisk, expected: &Expected, snapshot: &Value) -> Result<(), String> {
    let digest = stored_digest(store, disk).map_err(|error| format!("read it from the store: {error}"))?;
    let disks = snapshot["disks"].as_array().ok_or("the simulator's log is not understood")?;
    let held = disks.iter().find(|held| held["vdi"] == disk.vdi.as_str());
    let held = held.ok_or("the snapshot has no such disk")?;
    let size = disk.tree.size.get();
    if held["size"] != size || expected.size != size {
        return Err(format!(
            "it has {size} bytes, the snapshot {}, the disk {}",
            held["size"], expected.size
        ));
    }
    if held["digest"] != digest.as_str() {
        return Err(format!(
            "it differs from what it held at its snapshot: {digest}, not {}",
            held["digest"]
        ));
    }
    if expected.digest != digest {
        return Err(format!("it differs from what users wrote: {digest}, not {}", expected.digest));
    }
    if u64::from(disk.userdevice) != expected.position {
        return Err(format!("its position is {}, not {}", disk.userdevice, expected.position));
    }
    match &disk.reference {
        Some(reference) if held["snapshot_vdi"] != reference.as_str() => {
            Err(format!("its reference is {reference}, the snapshot's disk {}", held["snapshot_vdi"]))
        }
        _ => Ok(()),
    }
}

fn mode(mode: DiskMode) -> &'static str {
    match mode {
        DiskMode::Cbt => "cbt",
        DiskMode::VhdDiff => "vhd-diff",
        DiskMode::Scan => "scan",
        DiskMode::Full => "full",
    }
}

fn uuid(object: &Value) -> String {
    object["uuid"].as_str().unwrap_or_default().to_owned()
}
