//! Snapshot chains: how deep a disk stands, and what the storage has not merged yet.
//!
//! A snapshot turns the disk into a hidden node with two children. When the snapshot goes, the hidden node has one
//! child left, and the storage merges that child into it, in its own time, one after the other.

use super::facts::{Disk, Facts, parent_of};
use super::finding::{Code, Finding};
use crate::spec::{CHAIN_LIMIT, JobOptions};
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use xapi::{Ref, Sr, Vdi, Vm};

/// Merges of a VM's own disks that may wait while a job starts: the one that the last job of the VM left. More mean
/// that the storage does not get on.
const OWN_MERGES: usize = 1;
/// Merges that may wait on one storage repository: it does one at a time, and each takes a minute or so.
const SR_MERGES: usize = 64;

/// What one storage repository has still to merge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Backlog {
    /// Uuids of the hidden disks that wait for their only child.
    pub nodes: BTreeSet<String>,
    /// At most this many bytes are moved: what the children take up.
    pub bytes: ByteCount,
}

impl Backlog {
    /// How many merges.
    pub(super) fn count(&self) -> usize {
        self.nodes.len()
    }
}

/// What each storage repository has still to merge; those without are left out.
pub(super) fn backlogs(facts: &Facts) -> BTreeMap<Ref<Sr>, Backlog> {
    let mut children: BTreeMap<(&Ref<Sr>, &str), Vec<&Vdi>> = BTreeMap::new();
    for vdi in facts.vdis.values() {
        if let Some(parent) = parent_of(vdi) {
            children.entry((&vdi.sr, parent)).or_default().push(vdi);
        }
    }
    let mut backlogs: BTreeMap<Ref<Sr>, Backlog> = BTreeMap::new();
    for vdi in facts.vdis.values().filter(|vdi| !vdi.managed) {
        if let Some([child]) = children.get(&(&vdi.sr, vdi.uuid.as_str())).map(Vec::as_slice) {
            let backlog = backlogs.entry(vdi.sr.clone()).or_default();
            backlog.nodes.insert(vdi.uuid.to_string());
            backlog.bytes = backlog.bytes.saturating_add(ByteCount::new(child.physical_utilisation));
        }
    }
    backlogs
}

/// The backlog of every storage repository that has one, and those that never merge.
pub(super) fn check_storage(facts: &Facts, sr: &Ref<Sr>, record: &Sr) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (name, object) = (&record.name_label, || Facts::sr_object(record));
    if let Some(backlog) = backlogs(facts).get(sr) {
        let waiting = waiting(backlog);
        findings.push(if backlog.count() > SR_MERGES {
            Finding::warning(
                Code::CoalesceBacklog,
                object(),
                format!("storage '{name}' has {waiting}: jobs wait or are skipped"),
                "give it time; if the number does not go down, look for SMGC in /var/log/SMlog of the coordinator",
            )
        } else {
            Finding::ok(Code::CoalesceBacklog, object(), format!("storage '{name}' has {waiting}"))
        });
    }
    let off = |key: &str| record.other_config.get(key).is_some_and(|word| word == "false");
    if let Some(key) = ["gc", "coalesce", "leaf-coalesce"].into_iter().find(|key| off(key)) {
        findings.push(Finding::warning(
            Code::CoalesceOff,
            object(),
            format!("storage '{name}' never merges snapshots ({key}=false): each job makes chains longer"),
            format!("xe sr-param-remove uuid={} param-name=other-config param-key={key}", record.uuid),
        ));
    }
    if record.sm_config.contains_key("gc_no_space") {
        findings.push(Finding::warning(
            Code::CoalesceStuck,
            object(),
            format!("storage '{name}' has no room to merge snapshots: chains grow until jobs are refused"),
            "make room there: a merge needs up to the size of the disk",
        ));
    }
    findings
}

fn waiting(backlog: &Backlog) -> String {
    let snapshots = if backlog.count() == 1 { "snapshot" } else { "snapshots" };
    format!("{} {snapshots} to merge, up to {}", backlog.count(), backlog.bytes)
}

/// Why a job of this VM should wait for its storage, if it should: a finding that time may cure.
pub(super) fn hold(facts: &Facts, vm: &Vm, options: &JobOptions) -> Option<Finding> {
    let backlogs = backlogs(facts);
    for disk in snapshotted(facts, vm, options) {
        let Some(backlog) = backlogs.get(&disk.vdi.sr) else { continue };
        let chain = facts.chain(disk.vdi);
        let own = chain.nodes.iter().filter(|node| backlog.nodes.contains(node.uuid.as_str())).count();
        let too_long = own > 0 && chain.depth() >= options.max_chain;
        if own > OWN_MERGES || too_long {
            let merges = if own == 1 { "1 snapshot".to_owned() } else { format!("{own} snapshots") };
            return Some(Finding::warning(
                Code::Coalescing,
                disk.object(),
                format!("the storage still has {merges} of {} to merge", disk.called()),
                "wait; if it does not end, look for SMGC in /var/log/SMlog of the coordinator",
            ));
        }
        if let Some(sr) = disk.sr.filter(|_| backlog.count() > SR_MERGES) {
            return Some(Finding::warning(
                Code::Coalescing,
                Facts::sr_object(sr),
                format!("storage '{}' has {}", sr.name_label, waiting(backlog)),
                "wait; if it does not end, look for SMGC in /var/log/SMlog of the coordinator",
            ));
        }
    }
    None
}

/// Disks whose chain has no room for another snapshot. Where the storage can still merge some of it, that is
/// for [`hold`] to say; under a policy that does not wait it is an error all the same.
pub(super) fn check_vm(facts: &Facts, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for disk in snapshotted(facts, vm, options) {
        let depth = facts.chain(disk.vdi).depth();
        if depth < options.max_chain {
            continue;
        }
        let limit = match options.max_chain {
            CHAIN_LIMIT => "the storage takes no more".to_owned(),
            limit => format!("{limit} are allowed"),
        };
        findings.push(Finding::error(
            Code::DiskChain,
            disk.object(),
            format!("{} stands on a chain of {depth}, and {limit}", disk.called()),
            format!(
                "remove snapshots of '{}' and let the storage merge them; if it does not, run \
                 `xe sr-scan uuid={}`",
                vm.name_label,
                disk.sr.map_or_else(String::new, |sr| sr.uuid.to_string())
            ),
        ));
    }
    findings
}

/// The disks that a snapshot of the VM takes: releases since XenServer 8 can leave some out.
pub(super) fn snapshotted<'a>(facts: &'a Facts, vm: &Vm, options: &JobOptions) -> Vec<Disk<'a>> {
    let leaves_out = facts.api() >= super::FIRST_IGNORING_API;
    let mut disks = facts.disks(vm);
    disks.retain(|disk| !(leaves_out && super::vm::is_excluded(disk, options)));
    disks
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::preflight::finding::Level;

    #[test]
    fn a_hidden_disk_with_one_child_waits_and_one_with_two_does_not() {
        let mut sample = Sample::new();
        let base = sample.hidden(&[]);
        sample.set_parent(0, &base);
        let backlog = backlogs(&sample.facts);
        assert_eq!(backlog.values().map(Backlog::count).sum::<usize>(), 1);
        let snapshot = sample.snapshot_of(0);
        sample.set_parent_of(&snapshot, &base);
        assert!(backlogs(&sample.facts).is_empty(), "the snapshot still needs the base");
    }

    #[test]
    fn the_backlog_counts_what_the_children_take_up() {
        let mut sample = Sample::new();
        let base = sample.hidden(&[]);
        sample.set_parent(0, &base);
        sample.disk_mut(0).physical_utilisation = 5 << 20;
        let backlog = backlogs(&sample.facts).into_values().next().expect("one");
        assert_eq!((backlog.count(), backlog.bytes), (1, ByteCount::new(5 << 20)));
    }

    #[test]
    fn a_chain_is_followed_through_hidden_disks_and_ends_in_broken_ones() {
        let mut sample = Sample::new();
        assert_eq!(sample.facts.chain(sample.disk(0)).depth(), 1);
        let oldest = sample.hidden(&[]);
        let middle = sample.hidden(&[&oldest]);
        sample.set_parent(0, &middle);
        assert_eq!(sample.facts.chain(sample.disk(0)).depth(), 3);
        sample.set_parent_of(&oldest, "00000000-0000-0000-0000-00000000dead");
        let chain = sample.facts.chain(sample.disk(0));
        assert_eq!((chain.depth(), chain.whole), (4, false), "an unknown parent counts");
        sample.set_parent_of(&oldest, &middle);
        assert!(!sample.facts.chain(sample.disk(0)).whole, "a loop ends");
    }

    #[test]
    fn a_chain_at_the_limit_is_an_error_and_one_below_is_none() {
        let mut sample = Sample::new();
        sample.chain_of(0, 23);
        let mut options = JobOptions::default();
        assert_eq!(check_vm(&sample.facts, sample.vm(), &options), []);
        options.max_chain = 23;
        let findings = check_vm(&sample.facts, sample.vm(), &options);
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!((finding.code, finding.level), (Code::DiskChain, Level::Error));
        assert!(finding.message.contains("chain of 23, and 23 are allowed"), "{}", finding.message);
    }

    #[test]
    fn a_job_goes_on_with_one_merge_of_its_disk_and_is_held_with_two() {
        let mut sample = Sample::new();
        let oldest = sample.hidden(&[]);
        sample.set_parent(0, &oldest);
        let options = JobOptions::default();
        assert_eq!(hold(&sample.facts, sample.vm(), &options), None);
        let middle = sample.hidden(&[&oldest]);
        sample.set_parent(0, &middle);
        let held = hold(&sample.facts, sample.vm(), &options).expect("two merges wait");
        assert!(held.message.contains("2 snapshots of disk 'web01 disk 0' of 'web01'"), "{}", held.message);
    }

    #[test]
    fn a_full_chain_is_held_only_where_merging_can_make_room() {
        let mut sample = Sample::new();
        sample.chain_of(0, 5);
        let mut options = JobOptions { max_chain: 5, ..JobOptions::default() };
        // Every node of the chain is also needed by a snapshot: nothing can be merged.
        assert_eq!(hold(&sample.facts, sample.vm(), &options), None);
        let parent = parent_of(sample.disk(0)).expect("a chain").to_owned();
        sample.drop_snapshots_of(&parent);
        assert!(hold(&sample.facts, sample.vm(), &options).is_some());
        options.max_chain = 6;
        assert_eq!(hold(&sample.facts, sample.vm(), &options), None);
    }

    #[test]
    fn a_job_is_held_by_the_backlog_of_others_only_when_it_is_long() {
        let mut sample = Sample::new();
        let options = JobOptions::default();
        let one_merge = |sample: &mut Sample| {
            let base = sample.hidden(&[]);
            let child = sample.hidden(&[&base]);
            // The child itself is needed twice: it is no merge of its own.
            sample.hidden(&[&child]);
            sample.hidden(&[&child]);
        };
        (0..SR_MERGES).for_each(|_| one_merge(&mut sample));
        assert_eq!(hold(&sample.facts, sample.vm(), &options), None);
        let sr = sample.sr.clone();
        let level = |sample: &Sample| check_storage(&sample.facts, &sr, &sample.facts.srs[&sr])[0].level;
        assert_eq!(level(&sample), Level::Ok);
        one_merge(&mut sample);
        let held = hold(&sample.facts, sample.vm(), &options).expect("a long backlog");
        assert!(held.message.contains("65 snapshots to merge"), "{}", held.message);
        assert_eq!(level(&sample), Level::Warning);
    }

    #[test]
    fn storage_that_cannot_or_may_not_merge_is_named() {
        let mut sample = Sample::new();
        let sr = sample.sr.clone();
        let codes = |sample: &Sample| -> Vec<Code> {
            check_storage(&sample.facts, &sr, &sample.facts.srs[&sr]).iter().map(|found| found.code).collect()
        };
        assert_eq!(codes(&sample), []);
        sample.sr_mut().other_config.insert("leaf-coalesce".into(), "false".into());
        sample.sr_mut().sm_config.insert("gc_no_space".into(), "message".into());
        assert_eq!(codes(&sample), [Code::CoalesceOff, Code::CoalesceStuck]);
        sample.sr_mut().other_config.insert("leaf-coalesce".into(), "true".into());
        assert_eq!(codes(&sample), [Code::CoalesceStuck]);
    }
}
