//! What jobs left in the pool: ours of ended jobs, references that are good for nothing any more, and what
//! another installation made. Nothing here is removed: that is `abd reconcile`'s work, or the other one's.

use super::facts::Facts;
use super::finding::{Code, Finding};
use crate::ownership::{Mark, is_jobs_vdi, is_jobs_vm, is_made_by_jobs, job_of_name, mark_of};
use crate::pool::{TAG_IDLE, TAG_JOB, TAG_OWNER, TAG_REFERENCE};
use std::collections::BTreeMap;
use xapi::{StringMap, Uuid, Vdi, VdiType, Vm};

/// Objects that are named; the rest is counted.
const NAMED: usize = 5;

/// Objects of ended jobs of this installation, for people: those that `abd reconcile` would remove by their marks. What a
/// journal announces and has no mark yet is for the journal to tell.
fn of_ended_jobs(facts: &Facts) -> Vec<String> {
    let has_ended = |job: &str| !facts.live_jobs.contains(job);
    let vms = facts.vms.values().filter(|vm| {
        let source = facts.vms.get(&vm.snapshot_of);
        let is_ours = |job: &str| has_ended(job) && is_jobs_vm(&facts.owner, job, vm, &[], source);
        job_of_name(vm).is_some_and(is_ours)
    });
    let vdis = facts.vdis.values().filter(|vdi| {
        let is_ours = |job: &String| has_ended(job) && is_jobs_vdi(&facts.owner, job, vdi);
        vdi.other_config.get(TAG_JOB).is_some_and(is_ours)
    });
    let vms = vms.map(|vm| format!("VM '{}' ({})", vm.name_label, vm.uuid));
    vms.chain(vdis.map(|vdi| format!("disk '{}' ({})", vdi.name_label, vdi.uuid))).collect()
}

/// Objects that another installation's jobs made, by that installation.
fn of_others(facts: &Facts) -> BTreeMap<String, Vec<String>> {
    let mut foreign: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut note = |uuid: &Uuid, tags: &StringMap, object: String| {
        if let Some(owner) = tags.get(TAG_OWNER)
            && mark_of(&facts.owner, uuid, tags) == Mark::Foreign
        {
            foreign.entry(owner.clone()).or_default().push(object);
        }
    };
    // What another installation keeps for its later jobs is nothing that lies around.
    let is_kept = |vm: &Vm| vm.other_config.contains_key(TAG_IDLE);
    let of_kept = |vdi: &&Vdi| {
        let mut users = vdi.vbds.iter().filter_map(|vbd| facts.vms.get(&facts.vbds.get(vbd)?.vm));
        users.any(is_kept)
    };
    for vm in facts.vms.values().filter(|vm| job_of_name(vm).is_some() && !is_kept(vm)) {
        note(&vm.uuid, &vm.other_config, format!("VM '{}' ({})", vm.name_label, vm.uuid));
    }
    for vdi in facts.vdis.values().filter(|vdi| is_made_by_jobs(vdi) && !of_kept(vdi)) {
        note(&vdi.uuid, &vdi.other_config, format!("disk '{}' ({})", vdi.name_label, vdi.uuid));
    }
    foreign
}

/// How many objects of ended jobs of this installation are in the pool.
pub fn count(facts: &Facts) -> usize {
    of_ended_jobs(facts).len()
}

/// Checks what lies around.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let ours = of_ended_jobs(facts);
    let pool = &facts.name;
    let mut findings = vec![if ours.is_empty() {
        Finding::ok(
            Code::Leftovers,
            facts.pool_object(),
            format!("nothing of ended jobs lies around in pool '{pool}'"),
        )
    } else {
        Finding::warning(
            Code::Leftovers,
            facts.pool_object(),
            format!("ended jobs left this in pool '{pool}': {}", list(&ours)),
            "run `abd reconcile`",
        )
    }];
    let kept = kept_delegates(facts);
    if !kept.is_empty() {
        let message = format!("delegates are kept for later jobs in pool '{pool}': {}", list(&kept));
        findings.push(Finding::ok(Code::KeptDelegates, facts.pool_object(), message));
    }
    let stale = stale_references(facts);
    if !stale.is_empty() {
        findings.push(Finding::warning(
            Code::StaleReferences,
            facts.pool_object(),
            format!("references of disks that are gone are in pool '{pool}': {}", list(&stale)),
            "run `abd reconcile`",
        ));
    }
    for (owner, objects) in of_others(facts) {
        findings.push(Finding::warning(
            Code::ForeignObjects,
            facts.pool_object(),
            format!("installation {owner} has this in pool '{pool}': {}", list(&objects)),
            "nothing here touches it; if that installation is gone for good, remove it by hand",
        ));
    }
    findings
}

/// Delegates of this installation that are kept for later jobs, each with the end of its time. Those whose journal is
/// gone are leftovers.
fn kept_delegates(facts: &Facts) -> Vec<String> {
    let kept = facts.vms.values().filter_map(|vm| {
        let is_ours = matches!(mark_of(&facts.owner, &vm.uuid, &vm.other_config), Mark::Ours { job: Some(job) }
            if facts.live_jobs.contains(job));
        let until = vm.other_config.get(TAG_IDLE).filter(|_| is_ours)?;
        Some(format!("VM '{}' until {until}", vm.name_label))
    });
    kept.collect()
}

/// References of ours whose live disk is gone.
fn stale_references(facts: &Facts) -> Vec<String> {
    let references = facts.vdis.values().filter(|vdi| {
        vdi.kind == VdiType::CbtMetadata && vdi.other_config.get(TAG_OWNER) == Some(&facts.owner)
    });
    let gone = references.filter(|vdi| {
        let live = vdi.other_config.get(TAG_REFERENCE);
        live.is_some_and(|live| !facts.vdis.values().any(|vdi| vdi.uuid.as_str() == live))
    });
    gone.map(|vdi| vdi.uuid.to_string()).collect()
}

pub(super) fn list(objects: &[String]) -> String {
    let named = objects.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match objects.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::ownership::delegate_name;
    use crate::pool::{TAG_DELEGATE, TAG_SELF};
    use crate::preflight::finding::Level;
    use xapi::Ref;

    const OWNER: &str = "our-installation";
    const JOB: &str = "22222222-2222-4222-8222-222222222222";

    fn sample() -> Sample {
        let mut sample = Sample::new();
        sample.facts.owner = OWNER.into();
        sample
    }

    fn marked(uuid: &Uuid, owner: &str, more: (&str, &str)) -> StringMap {
        let tags = [(TAG_SELF, uuid.as_str()), (TAG_OWNER, owner), (TAG_JOB, JOB), more];
        tags.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    fn add(sample: &mut Sample, name: &str, owner: &str, more: (&str, &str), kind: VdiType) {
        let uuid = sample.uuid();
        let other_config = marked(&uuid, owner, more);
        let vdi = Vdi { uuid, name_label: name.into(), kind, other_config, ..Vdi::default() };
        sample.facts.vdis.insert(Ref::from_opaque(format!("OpaqueRef:{name}")), vdi);
    }

    fn add_vm(sample: &mut Sample, uuid: Uuid, other_config: StringMap) {
        let name_label = delegate_name(JOB);
        let reference = Ref::from_opaque(format!("OpaqueRef:{uuid}"));
        sample.facts.vms.insert(reference, Vm { uuid, name_label, other_config, ..Vm::default() });
    }

    fn found(sample: &Sample) -> Vec<(Code, Level)> {
        check(&sample.facts).iter().map(|finding| (finding.code, finding.level)).collect()
    }

    #[test]
    fn only_objects_of_ended_jobs_are_leftovers() {
        let mut sample = sample();
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok)]);
        add(&mut sample, "boot disk", OWNER, (TAG_DELEGATE, JOB), VdiType::User);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Warning)]);
        assert!(check(&sample.facts)[0].message.contains("disk 'boot disk'"));
        sample.facts.live_jobs.insert(JOB.into());
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok)]);
    }

    #[test]
    fn a_delegate_that_another_installation_keeps_is_nobodys_concern() {
        let mut sample = sample();
        let uuid = sample.uuid();
        let mut tags = marked(&uuid, "other-installation", (xva::TEMPLATE_KEY, "0.1.0"));
        add_vm(&mut sample, uuid.clone(), tags.clone());
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok), (Code::ForeignObjects, Level::Warning)]);
        tags.insert(TAG_IDLE.into(), "2026-11-25T22:00:00Z".into());
        add_vm(&mut sample, uuid, tags);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok)]);
    }

    #[test]
    fn a_kept_delegate_is_no_leftover_while_its_journal_is_there() {
        let mut sample = sample();
        let uuid = sample.uuid();
        let mut tags = marked(&uuid, OWNER, (xva::TEMPLATE_KEY, "0.1.0"));
        tags.insert(TAG_IDLE.into(), "2026-11-25T22:00:00Z".into());
        add_vm(&mut sample, uuid, tags);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Warning)]);
        sample.facts.live_jobs.insert(JOB.into());
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok), (Code::KeptDelegates, Level::Ok)]);
        assert!(check(&sample.facts)[1].message.ends_with("until 2026-11-25T22:00:00Z"));
    }

    #[test]
    fn a_delegate_is_a_leftover_and_a_copy_of_it_is_somebodys() {
        let mut sample = sample();
        let (own, copy) = (sample.uuid(), sample.uuid());
        let tags = marked(&own, OWNER, (xva::TEMPLATE_KEY, "0.1.0"));
        add_vm(&mut sample, copy, tags.clone());
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok)]);
        add_vm(&mut sample, own, tags);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Warning)]);
        assert_eq!(count(&sample.facts), 1);
    }

    #[test]
    fn many_leftovers_are_counted() {
        let mut sample = sample();
        for index in 0..NAMED + 2 {
            add(&mut sample, &format!("disk {index}"), OWNER, (TAG_DELEGATE, JOB), VdiType::User);
        }
        assert!(check(&sample.facts)[0].message.ends_with("and 2 more"), "{:?}", check(&sample.facts));
    }

    #[test]
    fn a_reference_is_stale_once_its_disk_is_gone() {
        let mut sample = sample();
        let live = sample.disk(0).uuid.to_string();
        add(&mut sample, "reference", OWNER, (TAG_REFERENCE, &live), VdiType::CbtMetadata);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok)]);
        let disk = sample.disk_reference(0);
        sample.facts.vdis.remove(&disk);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok), (Code::StaleReferences, Level::Warning)]);
    }

    #[test]
    fn objects_of_another_installation_are_named_and_no_leftovers_of_ours() {
        let mut sample = sample();
        add(&mut sample, "their disk", "other-installation", (TAG_DELEGATE, JOB), VdiType::User);
        assert_eq!(found(&sample), [(Code::Leftovers, Level::Ok), (Code::ForeignObjects, Level::Warning)]);
        assert!(
            check(&sample.facts)[1].message.contains("other-installation has this"),
            "{:?}",
            check(&sample.facts)
        );
    }
}
