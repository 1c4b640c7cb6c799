//! Storage that VMs' disks are on: whether hosts have it plugged, has room, and merges its snapshots.

use super::facts::Facts;
use super::finding::{Code, Finding};
use super::{chains, space};
use std::collections::BTreeSet;
use xapi::{Ref, Sr};

/// Storage repositories that matter to jobs: those of the VMs' disks and of the template's.
fn in_use(facts: &Facts) -> BTreeSet<&Ref<Sr>> {
    let templates = facts.templates().iter().filter_map(|at| facts.vms.get(&at.template.reference));
    let vms = facts.candidates().map(|(_, vm)| vm).chain(templates);
    vms.flat_map(|vm| facts.disks(vm)).map(|disk| &disk.vdi.sr).collect()
}

/// Checks every storage repository that matters to jobs.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for reference in in_use(facts) {
        let Some(sr) = facts.srs.get(reference) else { continue };
        findings.extend(plugged(facts, reference, sr));
        findings.extend(space::check_storage(sr));
        findings.extend(chains::check_storage(facts, reference, sr));
    }
    findings
}

/// Hosts that should see the storage and do not.
fn plugged(facts: &Facts, reference: &Ref<Sr>, sr: &Sr) -> Option<Finding> {
    let name = &sr.name_label;
    let remedy = |host: &str| format!("plug it: xe pbd-list sr-uuid={}{host}, then xe pbd-plug", sr.uuid);
    let connections = || facts.pbds.values().filter(|pbd| pbd.sr == *reference);
    if !connections().any(|pbd| pbd.currently_attached) {
        return Some(Finding::warning(
            Code::StorageUnplugged,
            Facts::sr_object(sr),
            format!("storage '{name}' is plugged on no host: VMs with disks there cannot be backed up"),
            remedy(""),
        ));
    }
    let unplugged = connections().filter(|pbd| !pbd.currently_attached && facts.is_usable(&pbd.host));
    let names: Vec<_> = unplugged
        .filter_map(|pbd| facts.hosts.get(&pbd.host))
        .map(|host| format!("'{}'", host.name_label))
        .collect();
    (!names.is_empty()).then(|| {
        Finding::warning(
            Code::StorageUnplugged,
            Facts::sr_object(sr),
            format!(
                "storage '{name}' is not plugged on {}: delegates for it do not run there",
                names.join(", ")
            ),
            remedy(" currently-attached=false"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::preflight::finding::Level;

    fn unplugged(sample: &Sample) -> Vec<String> {
        let findings = check(&sample.facts);
        let unplugged = findings.into_iter().filter(|finding| finding.code == Code::StorageUnplugged);
        unplugged.map(|finding| finding.message).collect()
    }

    #[test]
    fn only_storage_with_disks_of_vms_is_looked_at() {
        let mut sample = Sample::new();
        let spare = sample.add_sr("Spare");
        assert_eq!(unplugged(&sample), Vec::<String>::new(), "nobody needs the spare one");
        sample.add_disk_on(&spare, 1 << 30);
        assert_eq!(unplugged(&sample).len(), 1);
    }

    #[test]
    fn storage_that_a_host_does_not_see_is_named_with_the_host() {
        let mut sample = Sample::new();
        sample.add_host("host-2", 1 << 30, false);
        assert_eq!(
            unplugged(&sample),
            Vec::<String>::new(),
            "a host without a connection is not meant to see it"
        );
        let sr = sample.sr.clone();
        sample.connect("host-2", &sr, false);
        assert!(unplugged(&sample)[0].contains("not plugged on 'host-2'"), "{:?}", unplugged(&sample));
        sample.connect("host-2", &sr, true);
        assert_eq!(unplugged(&sample), Vec::<String>::new());
    }

    #[test]
    fn room_is_said_for_storage_in_use() {
        let sample = Sample::new();
        let findings = check(&sample.facts);
        let levels: Vec<_> = findings.iter().map(|finding| (finding.code, finding.level)).collect();
        assert_eq!(levels, [(Code::StorageSpace, Level::Ok)]);
    }
}
