//! One VM: what keeps it from being snapshotted, tracked or read.

use super::facts::{Disk, FIRST_CBT_API, Facts};
use super::finding::{Code, Finding};
use super::{chains, hosts, space};
use crate::job::MAX_DISKS;
use crate::spec::{CbtMode, DiskFacts, JobOptions};
use blocks::ByteCount;
use std::collections::BTreeMap;
use xapi::{PowerState, Ref, Sr, Vm};

/// API version of XenServer 8.1, from which no guest can be quieted any more.
pub const FIRST_WITHOUT_QUIESCE_API: (i64, i64) = (2, 14);
/// Operations that a job starts on its VM, or that get in its way.
const DISTURBING: &[&str] = &[
    "migrate_send",
    "pool_migrate",
    "snapshot",
    "checkpoint",
    "revert",
    "suspend",
    "clone",
    "copy",
    "export",
];

/// Everything that concerns a job of this VM.
pub(super) fn check(facts: &Facts, reference: &Ref<Vm>, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    let mut findings = state(facts, vm, options);
    if options.checkpoint {
        findings.extend(checkpoint(facts, vm));
    }
    let disks = facts.disks(vm);
    let read: Vec<_> = disks.iter().filter(|disk| !is_excluded(disk, options)).copied().collect();
    if read.is_empty() {
        let message = match disks.len() {
            0 => format!("'{}' has no disks", vm.name_label),
            count => format!("every disk of '{}' is left out ({count})", vm.name_label),
        };
        let remedy = "leave the VM out of the job, or take disks out of exclude_disks";
        findings.push(Finding::error(Code::VmNoDisks, Facts::vm_object(vm), message, remedy));
        return findings;
    }
    for disk in chains::snapshotted(facts, vm, options) {
        findings.extend(snapshot_of(facts, &disk));
    }
    for disk in &read {
        findings.extend(reading_of(facts, reference, disk, options));
    }
    if read.len() > MAX_DISKS {
        findings.push(Finding::ok(
            Code::VmRounds,
            Facts::vm_object(vm),
            format!(
                "'{}' has {} disks and a delegate takes {MAX_DISKS}: its job runs {} rounds over one snapshot",
                vm.name_label,
                read.len(),
                read.len().div_ceil(MAX_DISKS)
            ),
        ));
    }
    findings.extend(chains::check_vm(facts, vm, options));
    findings.extend(space::check_vm(facts, vm, options));
    findings.extend(hosts::check_vm(facts, vm, options));
    findings
}

/// Whether a disk is left out of the backup.
pub fn is_excluded(disk: &Disk<'_>, options: &JobOptions) -> bool {
    let facts = DiskFacts {
        uuid: disk.vdi.uuid.as_str(),
        name: &disk.vdi.name_label,
        tags: &disk.vdi.tags,
        other_config: &disk.vdi.other_config,
        position: disk.vbd.userdevice.parse().ok(),
    };
    options.exclude_disks.iter().any(|filter| filter.matches(&facts))
}

/// What the VM's own state forbids.
fn state(facts: &Facts, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (name, object) = (&vm.name_label, || Facts::vm_object(vm));
    let operation = if options.checkpoint { "checkpoint" } else { "snapshot" };
    if let Some(reason) = vm.blocked_operations.get(operation) {
        let reason = if reason.is_empty() { "no reason given" } else { reason };
        findings.push(Finding::error(
            Code::VmBlocked,
            object(),
            format!("somebody blocked the operation {operation} of '{name}' ({reason})"),
            format!(
                "xe vm-param-remove uuid={} param-name=blocked-operations param-key={operation}",
                vm.uuid
            ),
        ));
    }
    if !vm.vusbs.is_empty() {
        findings.push(Finding::error(
            Code::VmUsb,
            object(),
            format!("'{name}' has USB devices passed through, and then XAPI makes no snapshots"),
            "detach them (xe vusb-destroy), or leave the VM out of the job",
        ));
    }
    let busy = vm.current_operations.values().find(|operation| DISTURBING.contains(&operation.as_str()));
    if let Some(operation) = busy {
        findings.push(Finding::warning(
            Code::VmBusy,
            object(),
            format!("the operation {operation} of '{name}' is under way"),
            "wait for its end; a job tries again for a while",
        ));
    }
    if options.quiesce && facts.api() >= FIRST_WITHOUT_QUIESCE_API {
        findings.push(Finding::warning(
            Code::VmQuiesce,
            object(),
            format!("this release cannot quiet the guest of '{name}': its snapshot is as after a power cut"),
            "take `quiesce` out of the job, or quiet the guest with a hook before the job",
        ));
    }
    findings
}

/// Where the memory of a VM would be saved: the VM's own choice, the pool's, its host's, the first that its host sees
/// (xen-api, `Helpers.choose_suspend_sr`).
pub fn suspend_sr(facts: &Facts, vm: &Vm) -> Option<Ref<Sr>> {
    let of_host = facts.hosts.get(&vm.resident_on).map(|host| &host.suspend_image_sr);
    let wanted = [Some(&vm.suspend_sr), Some(&facts.pool.suspend_image_sr), of_host];
    let seen = |sr: &&Ref<Sr>| facts.srs.contains_key(sr) && facts.sees(&vm.resident_on, sr);
    wanted.into_iter().flatten().find(seen).cloned()
}

/// Size of the image of a VM's memory: a fifth and a twentieth more, and 100 MiB (xen-api, `Xapi_xenops.suspend`).
pub fn suspend_image(vm: &Vm) -> ByteCount {
    let memory = u128::from(vm.memory_static_max) * 126 / 100 + (100 << 20);
    ByteCount::new(u64::try_from(memory).unwrap_or(u64::MAX))
}

/// What keeps the memory of a VM from being saved.
fn checkpoint(facts: &Facts, vm: &Vm) -> Vec<Finding> {
    let name = &vm.name_label;
    let remedy = "take `checkpoint` out of the job of this VM";
    let error = |message: String| Finding::error(Code::VmCheckpoint, Facts::vm_object(vm), message, remedy);
    let mut findings = Vec::new();
    if !matches!(vm.power_state, PowerState::Running | PowerState::Paused | PowerState::Suspended) {
        findings.push(Finding::ok(
            Code::VmCheckpoint,
            Facts::vm_object(vm),
            format!("'{name}' does not run: it has no memory to save"),
        ));
        return findings;
    }
    if !vm.vgpus.is_empty() {
        findings.push(error(format!("'{name}' has a virtual GPU: its memory cannot be saved")));
    }
    if !vm.attached_pcis.is_empty() {
        findings.push(error(format!("'{name}' has a PCI device passed through: its memory cannot be saved")));
    }
    if suspend_sr(facts, vm).is_none() {
        findings.push(error(format!("pool '{}' has no storage for the memory of '{name}'", facts.name)));
    }
    let restricted = facts.pool.restrictions.get("restrict_checkpoint").is_some_and(|word| word == "true");
    if restricted {
        findings.push(error(format!("the licence of pool '{}' has no checkpoints", facts.name)));
    }
    findings
}

/// Features of the disk's storage; none where the pool does not say.
fn features<'a>(facts: &'a Facts, disk: &Disk<'_>) -> Option<&'a BTreeMap<String, i64>> {
    let kind = disk.sr?.kind.as_str();
    let sm = facts.sms.values().find(|sm| sm.kind == kind)?;
    (!sm.features.is_empty()).then_some(&sm.features)
}

/// Whether a disk's storage makes snapshots, as far as the pool tells.
fn can_snapshot(facts: &Facts, disk: &Disk<'_>) -> bool {
    features(facts, disk).is_none_or(|features| features.contains_key("VDI_SNAPSHOT"))
}

/// Whether a disk's storage and format let the pool track its changes, as far as the pool tells.
pub fn can_track(facts: &Facts, disk: &Disk<'_>) -> bool {
    !is_raw(disk) && features(facts, disk).is_none_or(|known| known.contains_key("VDI_CONFIG_CBT"))
}

/// File storage says of raw disks only that they are.
fn is_raw(disk: &Disk<'_>) -> bool {
    match disk.vdi.sm_config.get("vdi_type") {
        Some(kind) => matches!(kind.as_str(), "aio" | "raw"),
        None => disk.vdi.sm_config.get("type").is_some_and(|kind| kind == "raw"),
    }
}

/// What keeps a disk from being snapshotted.
fn snapshot_of(facts: &Facts, disk: &Disk<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = disk.called();
    let leave_out = "leave the disk out with exclude_disks where the release can, or leave the VM out";
    let error = |code, message: String, remedy: &str| Finding::error(code, disk.object(), message, remedy);
    if disk.vdi.missing {
        let message = format!("the storage has lost {name}");
        findings.push(error(Code::DiskMissing, message, "repair the storage, or detach the disk"));
    }
    if disk.is_reset() {
        let message =
            format!("{name} is thrown away at every start (on_boot=reset): XAPI makes no snapshots of it");
        let remedy = "xe vdi-param-set on-boot=persist while the VM is off, or leave the VM out of the job";
        findings.push(error(Code::DiskReset, message, remedy));
    }
    let lvm = disk.sr.is_some_and(|sr| space::Provision::of(sr) != space::Provision::Thin);
    if lvm && disk.vdi.sm_config.get("type").is_some_and(|kind| kind == "raw") {
        let message = format!("{name} is raw on LVM: its storage makes no snapshots of it");
        findings.push(error(
            Code::DiskRaw,
            message,
            "copy it to a new disk (xe vdi-copy makes a VHD) and use that",
        ));
    }
    if !can_snapshot(facts, disk) {
        let kind = disk.sr.map_or("", |sr| &sr.kind);
        let message = format!("{name} is on storage of type {kind}, which makes no snapshots");
        findings.push(error(Code::DiskNoSnapshot, message, leave_out));
    }
    findings
}

/// What is odd about reading a disk.
fn reading_of(facts: &Facts, vm: &Ref<Vm>, disk: &Disk<'_>, options: &JobOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    let name = disk.called();
    let wants_tracking = options.cbt != CbtMode::Off && facts.api() >= FIRST_CBT_API;
    // Without change tracking the job goes on, unless it was told not to.
    let untracked = |code, message: String| {
        let finding =
            Finding::warning(code, disk.object(), message, "move the disk to storage that tracks changes");
        Finding { level: if options.require_cbt { super::Level::Error } else { finding.level }, ..finding }
    };
    if wants_tracking && is_raw(disk) {
        findings.push(untracked(
            Code::DiskRaw,
            format!("{name} is raw: its changes are not tracked, every job reads all of it"),
        ));
    } else if wants_tracking && can_snapshot(facts, disk) && !can_track(facts, disk) {
        let kind = disk.sr.map_or("", |sr| &sr.kind);
        findings.push(untracked(
            Code::DiskNoTracking,
            format!(
                "{name} is on storage of type {kind}, which tracks no changes: every job reads all of it"
            ),
        ));
    }
    if disk.vdi.sharable {
        findings.push(Finding::warning(
            Code::DiskSharable,
            disk.object(),
            format!("{name} is shared between VMs: a snapshot of one of them stops none of the others"),
            "make the cluster quiet with a hook before the job, or leave the disk out",
        ));
    }
    let others = facts.vbds.values().filter(|vbd| vbd.vdi == *disk.reference && vbd.vm != *vm);
    let others = others.filter(|vbd| vbd.currently_attached).filter_map(|vbd| facts.vms.get(&vbd.vm));
    let names: Vec<_> = others.map(|other| format!("'{}'", other.name_label)).collect();
    if !names.is_empty() && !disk.vdi.sharable {
        findings.push(Finding::warning(
            Code::DiskAttached,
            disk.object(),
            format!("{name} is attached to {} as well", names.join(", ")),
            "detach it there when whatever uses it has ended",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::preflight::finding::Level;
    use xapi::{OnBoot, Sm};

    fn found_with(sample: &Sample, options: &JobOptions) -> Vec<(Code, Level)> {
        let findings = check(&sample.facts, &sample.vm, sample.vm(), options);
        findings.iter().map(|finding| (finding.code, finding.level)).collect()
    }

    fn found(sample: &Sample) -> Vec<(Code, Level)> {
        found_with(sample, &JobOptions::default())
    }

    #[test]
    fn an_ordinary_vm_has_no_findings() {
        assert_eq!(found(&Sample::new()), []);
    }

    #[test]
    fn a_blocked_snapshot_is_an_error_and_another_blocked_operation_is_not() {
        let mut sample = Sample::new();
        sample.vm_mut().blocked_operations.insert("hard_shutdown".into(), "keep".into());
        sample.vm_mut().blocked_operations.insert("checkpoint".into(), "keep".into());
        assert_eq!(found(&sample), []);
        sample.vm_mut().blocked_operations.insert("snapshot".into(), "frozen by ops".into());
        assert_eq!(found(&sample), [(Code::VmBlocked, Level::Error)]);
        let findings = check(&sample.facts, &sample.vm, sample.vm(), &JobOptions::default());
        assert!(findings[0].message.contains("(frozen by ops)"), "{}", findings[0].message);
    }

    #[test]
    fn usb_devices_forbid_snapshots_and_migrations_disturb_them() {
        let mut sample = Sample::new();
        sample.vm_mut().current_operations.insert("OpaqueRef:t".into(), "clean_reboot".into());
        assert_eq!(found(&sample), []);
        sample.vm_mut().current_operations.insert("OpaqueRef:u".into(), "pool_migrate".into());
        assert_eq!(found(&sample), [(Code::VmBusy, Level::Warning)]);
        sample.vm_mut().vusbs.push("OpaqueRef:usb".into());
        assert_eq!(found(&sample), [(Code::VmUsb, Level::Error), (Code::VmBusy, Level::Warning)]);
    }

    #[test]
    fn memory_is_only_checked_where_it_is_wanted() {
        let mut sample = Sample::new();
        let options = JobOptions { checkpoint: true, ..JobOptions::default() };
        sample.vm_mut().power_state = PowerState::Running;
        sample.vm_mut().resident_on = sample.host.clone();
        assert_eq!(found_with(&sample, &options), [(Code::VmCheckpoint, Level::Error)], "no storage for it");
        sample.facts.pool.suspend_image_sr = sample.sr.clone();
        assert_eq!(found_with(&sample, &options), []);
        sample.vm_mut().vgpus.push("OpaqueRef:gpu".into());
        sample.vm_mut().attached_pcis.push("OpaqueRef:pci".into());
        let error = (Code::VmCheckpoint, Level::Error);
        assert_eq!(found_with(&sample, &options), [error, error]);
        assert_eq!(found(&sample), []);
        sample.vm_mut().power_state = PowerState::Halted;
        assert_eq!(found_with(&sample, &options), [(Code::VmCheckpoint, Level::Ok)]);
    }

    #[test]
    fn a_quiet_guest_is_promised_by_old_releases_only() {
        let mut sample = Sample::new();
        let options = JobOptions { quiesce: true, ..JobOptions::default() };
        sample.host_mut().api_version_minor = 14;
        assert_eq!(found_with(&sample, &options), [(Code::VmQuiesce, Level::Warning)]);
        sample.host_mut().api_version_minor = 13;
        assert_eq!(found_with(&sample, &options), []);
    }

    #[test]
    fn a_vm_without_disks_or_with_all_of_them_left_out_is_an_error() {
        let mut sample = Sample::new();
        let options = JobOptions {
            exclude_disks: vec!["name:web01*".parse().expect("filter")],
            ..JobOptions::default()
        };
        assert_eq!(found_with(&sample, &options), [(Code::VmNoDisks, Level::Error)]);
        sample.vm_mut().vbds.clear();
        assert_eq!(found(&sample), [(Code::VmNoDisks, Level::Error)]);
    }

    #[test]
    fn one_disk_more_than_a_delegate_takes_means_two_rounds() {
        let mut sample = Sample::new();
        (1..MAX_DISKS).for_each(|_| sample.add_disk(1 << 20));
        assert_eq!(found(&sample), []);
        sample.add_disk(1 << 20);
        assert_eq!(found(&sample), [(Code::VmRounds, Level::Ok)]);
    }

    #[test]
    fn disks_that_cannot_be_snapshotted_are_errors() {
        let reset = |change: &dyn Fn(&mut Sample)| {
            let mut sample = Sample::new();
            change(&mut sample);
            found(&sample)
        };
        assert_eq!(reset(&|s| s.disk_mut(0).on_boot = OnBoot::Reset), [(Code::DiskReset, Level::Error)]);
        let by_driver = |s: &mut Sample| {
            s.disk_mut(0).sm_config.insert("on_boot".into(), "reset".into());
        };
        assert_eq!(reset(&by_driver), [(Code::DiskReset, Level::Error)]);
        assert_eq!(reset(&|s| s.disk_mut(0).missing = true), [(Code::DiskMissing, Level::Error)]);
        let raw = |s: &mut Sample| {
            s.disk_mut(0).sm_config.insert("type".into(), "raw".into());
        };
        assert_eq!(reset(&raw), [], "a raw file can be snapshotted");
        let raw_on_lvm = |s: &mut Sample| {
            raw(s);
            s.sr_mut().kind = "lvm".into();
        };
        assert_eq!(reset(&raw_on_lvm), [(Code::DiskRaw, Level::Error)]);
    }

    #[test]
    fn storage_says_whether_it_snapshots_and_tracks() {
        let mut sample = Sample::new();
        let sm = Ref::from_opaque("OpaqueRef:sm");
        let mut with = |features: &[&str]| {
            let features = features.iter().map(|feature| ((*feature).to_owned(), 1)).collect();
            sample.facts.sms.insert(sm.clone(), Sm { kind: "ext".into(), features, ..Sm::default() });
            found(&sample)
        };
        assert_eq!(with(&["VDI_SNAPSHOT", "VDI_CONFIG_CBT"]), []);
        assert_eq!(with(&["VDI_SNAPSHOT"]), [(Code::DiskNoTracking, Level::Warning)]);
        assert_eq!(with(&["VDI_CONFIG_CBT"]), [(Code::DiskNoSnapshot, Level::Error)]);
        assert_eq!(
            with(&["VDI_ATTACH"]),
            [(Code::DiskNoSnapshot, Level::Error)],
            "that it tracks nothing is no news"
        );
        assert_eq!(with(&[]), [], "a driver without a list says nothing");
    }

    #[test]
    fn a_disk_without_tracking_is_an_error_only_where_tracking_is_required() {
        let mut sample = Sample::new();
        sample.disk_mut(0).sm_config.insert("vdi_type".into(), "aio".into());
        assert_eq!(found(&sample), [(Code::DiskRaw, Level::Warning)]);
        let required = JobOptions { require_cbt: true, ..JobOptions::default() };
        assert_eq!(found_with(&sample, &required), [(Code::DiskRaw, Level::Error)]);
        let off = JobOptions { cbt: CbtMode::Off, ..JobOptions::default() };
        assert_eq!(found_with(&sample, &off), []);
    }

    #[test]
    fn a_disk_that_others_use_is_named() {
        let mut sample = Sample::new();
        sample.disk_mut(0).sharable = true;
        assert_eq!(found(&sample), [(Code::DiskSharable, Level::Warning)]);
        let mut sample = Sample::new();
        sample.attach_elsewhere(0, "db01", false);
        assert_eq!(found(&sample), [], "a drive that is not plugged does no harm");
        sample.attach_elsewhere(0, "mail01", true);
        assert_eq!(found(&sample), [(Code::DiskAttached, Level::Warning)]);
    }

    #[test]
    fn a_disk_that_is_left_out_is_not_snapshotted_where_the_release_can_do_that() {
        let mut sample = Sample::new();
        sample.add_disk(1 << 20);
        sample.disk_mut(1).on_boot = OnBoot::Reset;
        let options =
            JobOptions { exclude_disks: vec!["#1".parse().expect("filter")], ..JobOptions::default() };
        assert_eq!(found_with(&sample, &options), []);
        sample.host_mut().api_version_minor = 15;
        assert_eq!(found_with(&sample, &options), [(Code::DiskReset, Level::Error)]);
    }
}
