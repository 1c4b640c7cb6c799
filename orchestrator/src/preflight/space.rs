//! What a snapshot costs on its storage, and whether there is room for it.
//!
//! Thick storage (LVM) gives the disk a new volume of its full size and a small one to the snapshot, and shrinks the
//! old one to what it holds. How much that is nobody outside can see, so the full size is asked for:
//!
//! ```text
//! thick   for each disk  size + VHD overhead, rounded up to 4 MiB  +  8 MiB snapshot  +  8 MiB journals
//! thin    for each disk  VHD overhead of two new nodes  +  what the guest writes while the job runs:
//!                        the larger of 256 MiB and of the usual change (what the newest incremental restore
//!                        point read; 1 % of the disk where there is none), at most the disk's size
//! both    the delegate's clone of the template's disk, where it is on the same storage
//! ```
//!
//! After that a reserve must be left: 5 % of the storage, at most 32 GiB. Without it there is a warning: a merge
//! needs room too. The sizes of volumes and overheads are those of the storage manager
//! (<https://github.com/xapi-project/sm>: LVHDSR, lvhdutil, vhdutil).

use super::chains::snapshotted;
use super::facts::{Disk, Facts};
use super::finding::{Code, Finding, Level};
use crate::spec::JobOptions;
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use xapi::{PowerState, Ref, Sr, Vdi, Vm};

/// LVM hands out space in pieces of this size.
const EXTENT: u64 = 4 << 20;
/// Two journal volumes while the snapshot is made.
const JOURNALS: u64 = 2 * EXTENT;
/// A VHD's table of blocks is made for the largest disk on LVM: 2 TiB.
const LARGEST_VHD: u64 = 2 << 40;
/// A block of a VHD.
const VHD_BLOCK: u64 = 2 << 20;
/// Bitmap of one block of a VHD.
const VHD_BITMAP: u64 = 4096;
/// Least that a guest is expected to write while a job runs.
const LEAST_WRITES: u64 = 256 << 20;
/// One part in so many of a disk is expected to be written where nothing is known about it.
const UNKNOWN_WRITES_PART: u64 = 100;
/// One part in so many of the storage should stay free.
const RESERVE_PART: u64 = 20;
/// The most that is asked to stay free.
const LARGEST_RESERVE: u64 = 32 << 30;

/// How storage pays for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Provision {
    /// In full, at once.
    Thick,
    /// LVM with thin allocation: in full for disks that are attached.
    ThinLvm,
    /// As it is written to.
    Thin,
}

impl Provision {
    /// Of a storage repository, by its kind and configuration.
    pub(super) fn of(sr: &Sr) -> Self {
        match (sr.kind.as_str(), sr.sm_config.get("allocation").map(String::as_str)) {
            ("lvm" | "lvmoiscsi" | "lvmohba" | "lvmofcoe", Some("thin")) => Self::ThinLvm,
            ("lvm" | "lvmoiscsi" | "lvmohba" | "lvmofcoe", _) => Self::Thick,
            _ => Self::Thin,
        }
    }
}

/// What a VHD needs besides its blocks: headers, the table of blocks and their bitmap.
fn overhead_of_empty(size: u64) -> u64 {
    let pairs_of_mib = size / VHD_BLOCK;
    let table = (3 * 1024 + pairs_of_mib * 4).next_multiple_of(512);
    (table + pairs_of_mib / 8).next_multiple_of(4096)
}

/// The volume of a disk on LVM.
fn volume(size: u64) -> u64 {
    let bitmaps = size.div_ceil(VHD_BLOCK).saturating_mul(VHD_BITMAP);
    let whole = size.saturating_add(overhead_of_empty(LARGEST_VHD)).saturating_add(bitmaps);
    whole.checked_next_multiple_of(EXTENT).unwrap_or(u64::MAX)
}

/// The volume of a snapshot on LVM, which holds nothing of its own.
fn empty_volume() -> u64 {
    overhead_of_empty(LARGEST_VHD).next_multiple_of(EXTENT)
}

/// What a guest is expected to write while its job runs.
fn expected_writes(vdi: &Vdi, usual: Option<ByteCount>) -> u64 {
    let usual = usual.map_or(vdi.virtual_size / UNKNOWN_WRITES_PART, ByteCount::get);
    usual.max(LEAST_WRITES).min(vdi.virtual_size)
}

/// What the snapshot of one disk costs.
pub(super) fn cost_of_disk(facts: &Facts, disk: &Disk<'_>) -> ByteCount {
    let vdi = disk.vdi;
    let full = volume(vdi.virtual_size).saturating_add(empty_volume() + JOURNALS);
    let provision = disk.sr.map_or(Provision::Thin, Provision::of);
    ByteCount::new(match provision {
        Provision::Thick => full,
        Provision::ThinLvm if disk.vbd.currently_attached => full,
        Provision::ThinLvm => 2 * empty_volume() + JOURNALS,
        Provision::Thin => {
            let writes = expected_writes(vdi, facts.usual_changes.get(vdi.uuid.as_str()).copied());
            writes.saturating_add(2 * overhead_of_empty(vdi.virtual_size))
        }
    })
}

/// What a job of this VM costs on each storage repository.
pub(super) fn costs(facts: &Facts, vm: &Vm, options: &JobOptions) -> BTreeMap<Ref<Sr>, ByteCount> {
    let mut costs: BTreeMap<Ref<Sr>, ByteCount> = BTreeMap::new();
    let mut add = |sr: &Ref<Sr>, bytes: ByteCount| {
        let cost = costs.entry(sr.clone()).or_default();
        *cost = cost.saturating_add(bytes);
    };
    for disk in snapshotted(facts, vm, options) {
        add(&disk.vdi.sr, cost_of_disk(facts, &disk));
    }
    if options.checkpoint
        && vm.power_state != PowerState::Halted
        && let Some(sr) = super::vm::suspend_sr(facts, vm)
    {
        add(&sr, super::vm::suspend_image(vm));
    }
    // Each round has a delegate of its own, but only one at a time. Where none can run, that is said elsewhere.
    let rounds = super::hosts::rounds(facts, vm, options, |_| true).unwrap_or_default();
    let templates: BTreeSet<usize> = rounds.iter().map(|round| round.template).collect();
    let used = templates.iter().filter_map(|at| facts.templates().get(*at));
    for template in used.filter_map(|at| facts.vms.get(&at.template.reference)) {
        for disk in facts.disks(template) {
            let clone = match disk.sr.map_or(Provision::Thin, Provision::of) {
                Provision::Thin => disk.vdi.virtual_size,
                _ => volume(disk.vdi.virtual_size).saturating_add(empty_volume() + JOURNALS),
            };
            add(&disk.vdi.sr, ByteCount::new(clone));
        }
    }
    costs
}

/// Bytes that are free on storage; none where it does not tell.
pub(super) fn free(sr: &Sr) -> Option<ByteCount> {
    if sr.physical_size == 0 {
        return None;
    }
    let used = match Provision::of(sr) {
        Provision::Thick => sr.physical_utilisation.max(sr.virtual_allocation),
        _ => sr.physical_utilisation,
    };
    Some(ByteCount::new(sr.physical_size.saturating_sub(used)))
}

/// Bytes that should stay free.
pub(super) fn reserve(sr: &Sr) -> ByteCount {
    ByteCount::new((sr.physical_size / RESERVE_PART).min(LARGEST_RESERVE))
}

/// Whether there is room for a job of this VM on each storage repository that it needs.
pub(super) fn check_vm(facts: &Facts, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (reference, cost) in costs(facts, vm, options) {
        let Some(sr) = facts.srs.get(&reference) else { continue };
        let Some(free) = free(sr) else { continue };
        let needs = match Provision::of(sr) {
            Provision::Thin => format!("is expected to need {cost}"),
            _ => format!("needs up to {cost} (the disks in full)"),
        };
        let message = format!(
            "a job of '{}' {needs} on storage '{}', and {free} are free",
            vm.name_label, sr.name_label
        );
        let remedy = "make room there: remove snapshots or disks that nobody needs, or enlarge the storage";
        if free < cost {
            let most = if options.ignore_space { Level::Warning } else { Level::Error };
            let remedy = match Provision::of(sr) {
                Provision::Thin => remedy.to_owned(),
                _ => format!("{remedy}; if the disks hold much less than their size, --ignore-space goes on"),
            };
            let finding = Finding::error(Code::SnapshotSpace, Facts::sr_object(sr), message, remedy);
            findings.push(finding.at_most(most));
        } else if free.get() - cost.get() < reserve(sr).get() {
            let message = format!("{message}: then less than {} are left to merge snapshots", reserve(sr));
            findings.push(Finding::warning(Code::SnapshotSpace, Facts::sr_object(sr), message, remedy));
        }
    }
    findings
}

/// Whether storage has its reserve.
pub(super) fn check_storage(sr: &Sr) -> Vec<Finding> {
    let Some(free) = free(sr) else { return Vec::new() };
    let (name, size) = (&sr.name_label, ByteCount::new(sr.physical_size));
    let object = Facts::sr_object(sr);
    let message = format!("storage '{name}' has {free} of {size} free");
    if free < reserve(sr) {
        let remedy = format!("make room: snapshots and their merging need some, at least {}", reserve(sr));
        return vec![Finding::warning(Code::StorageSpace, object, message, remedy)];
    }
    vec![Finding::ok(Code::StorageSpace, object, message)]
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;

    const GIB: u64 = 1 << 30;

    fn options() -> JobOptions {
        JobOptions::default()
    }

    /// Level of the only finding about the room for a job, or none.
    fn level(sample: &Sample) -> Option<Level> {
        let findings = check_vm(&sample.facts, sample.vm(), &options());
        assert!(findings.len() <= 1, "{findings:?}");
        findings.first().map(|finding| finding.level)
    }

    fn cost(sample: &Sample) -> u64 {
        costs(&sample.facts, sample.vm(), &options())[&sample.sr].get()
    }

    #[test]
    fn overheads_are_those_of_the_storage_manager() {
        // vhdutil.calcOverheadEmpty(2 TiB) and lvhdutil.calcSizeVHDLV, worked out by hand.
        assert_eq!(overhead_of_empty(2 << 40), 4_329_472);
        assert_eq!(empty_volume(), 8 << 20);
        assert_eq!(volume(10 * GIB), 10 * GIB + (28 << 20));
        assert_eq!(volume(u64::MAX), u64::MAX);
    }

    #[test]
    fn thick_storage_pays_the_full_size_of_every_disk() {
        let mut sample = Sample::new();
        sample.sr_mut().kind = "lvmoiscsi".into();
        sample.without_template();
        assert_eq!(cost(&sample), 10 * GIB + (28 << 20) + (16 << 20));
        sample.add_disk(10 * GIB);
        assert_eq!(cost(&sample), 2 * (10 * GIB + (44 << 20)));
    }

    #[test]
    fn thin_lvm_pays_in_full_for_attached_disks_only() {
        let mut sample = Sample::new();
        sample.without_template();
        sample.sr_mut().kind = "lvm".into();
        sample.sr_mut().sm_config.insert("allocation".into(), "thin".into());
        assert_eq!(cost(&sample), 24 << 20);
        sample.vbd_mut(0).currently_attached = true;
        assert_eq!(cost(&sample), 10 * GIB + (44 << 20));
    }

    #[test]
    fn thin_storage_is_expected_to_take_what_the_guest_writes_meanwhile() {
        let mut sample = Sample::new();
        sample.without_template();
        let overhead = 2 * overhead_of_empty(10 * GIB);
        assert_eq!(cost(&sample), LEAST_WRITES + overhead, "1 % of 10 GiB is less than the least");
        sample.disk_mut(0).virtual_size = 100 * GIB;
        assert_eq!(cost(&sample), GIB + 2 * overhead_of_empty(100 * GIB), "1 % of 100 GiB");
        let uuid = sample.disk(0).uuid.to_string();
        sample.facts.usual_changes.insert(uuid, ByteCount::new(7 * GIB));
        assert_eq!(cost(&sample), 7 * GIB + 2 * overhead_of_empty(100 * GIB), "as the last time");
        sample.disk_mut(0).virtual_size = 100 << 20;
        assert_eq!(cost(&sample), (100 << 20) + 2 * overhead_of_empty(100 << 20), "never more than the disk");
    }

    #[test]
    fn the_delegates_disk_counts_where_it_is_on_the_same_storage() {
        let mut sample = Sample::new();
        let with = cost(&sample);
        sample.without_template();
        assert_eq!(with - cost(&sample), super::super::sample::TEMPLATE_BYTES);
    }

    #[test]
    fn memory_that_is_saved_costs_its_image_on_the_suspend_storage() {
        let mut sample = Sample::new();
        let other = sample.add_sr("Suspend");
        sample.plug("host-1", &other);
        sample.vm_mut().resident_on = sample.host.clone();
        sample.vm_mut().suspend_sr = other.clone();
        sample.vm_mut().memory_static_max = GIB;
        let options = JobOptions { checkpoint: true, ..options() };
        let costs = costs(&sample.facts, sample.vm(), &options);
        assert_eq!(costs[&other].get(), GIB * 126 / 100 + (100 << 20));
    }

    #[test]
    fn room_is_missing_one_byte_below_the_cost_and_short_one_byte_below_the_reserve() {
        let mut sample = Sample::new();
        let cost = cost(&sample);
        let size = 1000 * GIB;
        sample.sr_mut().physical_size = size;
        let left = |sample: &mut Sample, bytes: u64| sample.sr_mut().physical_utilisation = size - bytes;
        left(&mut sample, cost - 1);
        assert_eq!(level(&sample), Some(Level::Error));
        left(&mut sample, cost);
        assert_eq!(level(&sample), Some(Level::Warning));
        left(&mut sample, cost + LARGEST_RESERVE - 1);
        assert_eq!(level(&sample), Some(Level::Warning));
        left(&mut sample, cost + LARGEST_RESERVE);
        assert_eq!(level(&sample), None);
    }

    #[test]
    fn missing_room_is_a_warning_for_a_job_that_was_told_to_go_on() {
        let mut sample = Sample::new();
        sample.sr_mut().physical_utilisation = sample.facts.srs[&sample.sr].physical_size;
        assert_eq!(level(&sample), Some(Level::Error));
        let options = JobOptions { ignore_space: true, ..options() };
        assert_eq!(check_vm(&sample.facts, sample.vm(), &options)[0].level, Level::Warning);
    }

    #[test]
    fn promised_space_counts_on_thick_storage_only() {
        let mut sample = Sample::new();
        sample.sr_mut().physical_size = 100 * GIB;
        sample.sr_mut().virtual_allocation = 99 * GIB;
        assert_eq!(level(&sample), None);
        sample.sr_mut().kind = "lvm".into();
        assert_eq!(level(&sample), Some(Level::Error));
    }

    #[test]
    fn storage_that_does_not_tell_its_size_is_not_judged() {
        let mut sample = Sample::new();
        sample.sr_mut().physical_size = 0;
        assert_eq!(level(&sample), None);
        assert_eq!(check_storage(&sample.facts.srs[&sample.sr.clone()]), []);
    }

    #[test]
    fn storage_without_its_reserve_is_named() {
        let mut sample = Sample::new();
        sample.sr_mut().physical_size = 100 * GIB;
        let level = |sample: &mut Sample, used: u64| {
            sample.sr_mut().physical_utilisation = used;
            check_storage(&sample.facts.srs[&sample.sr.clone()])[0].level
        };
        assert_eq!(level(&mut sample, 95 * GIB), Level::Ok);
        assert_eq!(level(&mut sample, 95 * GIB + 1), Level::Warning);
    }
}
