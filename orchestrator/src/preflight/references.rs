//! What stays in the pool between runs by design: references and reserved snapshots. Said with their number, so that
//! nobody finds them by surprise, and named where they seem to serve nobody any more. Nothing here removes them: that
//! is `abd release`'s work.

use super::facts::Facts;
use super::finding::{Code, Finding};
use super::space::Provision;
use crate::references::{Kept, KeptKind, kept};
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

/// What is kept of a VM that had no new restore point for this long is reported: longer than from one monthly run to
/// the next would be, had they all succeeded.
const IDLE_AFTER: Duration = Duration::from_secs(30 * SECONDS_OF_DAY);
const SECONDS_OF_DAY: u64 = 24 * 60 * 60;

/// Checks what is kept. `now` stands in for the pool's clock where that is not known.
pub(super) fn check(facts: &Facts, now: SystemTime) -> Vec<Finding> {
    let now = facts.clocks.map_or(now, |clocks| clocks.pool);
    let (ours, theirs): (Vec<Kept>, Vec<Kept>) =
        kept(&facts.vms, &facts.vdis).into_iter().partition(|one| one.owner == facts.owner);
    let mut findings =
        vec![Finding::ok(Code::References, facts.pool_object(), counted(facts, &ours, &theirs))];
    let idle = idle(facts, &ours, now);
    if !idle.is_empty() {
        let message = format!(
            "no new restore point for more than {} days, and what would list the changes is kept in pool '{}': {}",
            IDLE_AFTER.as_secs() / SECONDS_OF_DAY,
            facts.name,
            super::leftovers::list(&idle)
        );
        let remedy = "back these VMs up again, or let go of it: abd release VM";
        findings.push(Finding::warning(Code::IdleReferences, facts.pool_object(), message, remedy));
    }
    findings.extend(ours.iter().filter_map(|one| thick(facts, one)));
    findings
}

fn counted(facts: &Facts, ours: &[Kept], theirs: &[Kept]) -> String {
    let mut message = format!("kept in pool '{}' between runs: {}", facts.name, number(ours.iter()));
    let owners: BTreeSet<&str> = theirs.iter().map(|one| one.owner.as_str()).collect();
    for owner in owners {
        let of_owner = number(theirs.iter().filter(|one| one.owner == owner));
        message.push_str(&format!("; by installation {owner}: {of_owner}"));
    }
    message
}

fn number<'a>(kept: impl Iterator<Item = &'a Kept>) -> String {
    let (references, reserved): (Vec<&Kept>, Vec<&Kept>) =
        kept.partition(|one| one.kind == KeptKind::Reference);
    format!("{} references, {} reserved snapshots", references.len(), reserved.len())
}

/// What is kept of disks and VMs without a new one for too long, each with its age. Two stores have references of
/// their own, and one of them may have been given up.
fn idle(facts: &Facts, ours: &[Kept], now: SystemTime) -> Vec<String> {
    let mut newest: BTreeMap<(&str, &str), (SystemTime, KeptKind)> = BTreeMap::new();
    for one in ours {
        let Some(taken) = one.taken else { continue };
        let found = newest.entry((&one.of, &one.store)).or_insert((taken, one.kind));
        found.0 = found.0.max(taken);
    }
    let mut idle = Vec::new();
    for ((of, _), (taken, kind)) in newest {
        // A clock that went back makes nothing old.
        let age = now.duration_since(taken).unwrap_or_default();
        if age > IDLE_AFTER {
            let days = age.as_secs() / SECONDS_OF_DAY;
            idle.push(format!("{} ({days} days)", subject(facts, kind, of)));
        }
    }
    idle
}

/// What something is kept for, in words.
fn subject(facts: &Facts, kind: KeptKind, of: &str) -> String {
    if kind == KeptKind::Reserved {
        return match facts.vms.values().find(|vm| vm.uuid.as_str() == of) {
            Some(vm) => format!("VM '{}'", vm.name_label),
            None => format!("VM {of}, which is gone"),
        };
    }
    let Some(disk) = facts.vdis.values().find(|vdi| vdi.uuid.as_str() == of) else {
        return format!("disk {of}, which is gone");
    };
    let mut users = facts.candidates().filter(|(_, vm)| disk.vbds.iter().any(|vbd| vm.vbds.contains(vbd)));
    match users.next() {
        Some((_, vm)) => format!("disk '{}' of VM '{}'", disk.name_label, vm.name_label),
        None => format!("disk '{}' ({of}) of no VM", disk.name_label),
    }
}

/// A reserved snapshot on storage where a snapshot takes the whole size of a disk.
fn thick(facts: &Facts, one: &Kept) -> Option<Finding> {
    let snapshot =
        facts.vms.values().find(|vm| one.kind == KeptKind::Reserved && vm.uuid.as_str() == one.uuid)?;
    let disks = facts.disks(snapshot);
    let thick = disks.iter().filter(|disk| disk.sr.is_some_and(|sr| Provision::of(sr) == Provision::Thick));
    let size = thick.fold(0_u64, |sum, disk| sum.saturating_add(disk.vdi.virtual_size));
    (size > 0).then(|| {
        Finding::warning(
            Code::ReservedSpace,
            Facts::vm_object(snapshot),
            format!(
                "the reserved snapshot of {} keeps {} on storage that gives snapshots all of it at once",
                subject(facts, one.kind, &one.of),
                ByteCount::new(size)
            ),
            "nothing while the VM is backed up and there is room; else let go of it: abd release VM",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::facts::Clocks;
    use super::super::finding::Level;
    use super::super::sample::Sample;
    use super::*;
    use crate::pool::{TAG_OWNER, TAG_REFERENCE, TAG_STORE};
    use crate::references::reserved_name;
    use xapi::{Ref, StringMap, Vdi, VdiType};

    const DAY: Duration = Duration::from_secs(SECONDS_OF_DAY);

    fn tags(owner: &str, of: &str) -> StringMap {
        [(TAG_OWNER, owner), (TAG_REFERENCE, of), (TAG_STORE, "store")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    fn taken() -> SystemTime {
        xapi::timestamp("20250102T03:04:05Z").expect("a time")
    }

    fn add(sample: &mut Sample, name: &str, owner: &str, of: &str) {
        let vdi = Vdi {
            kind: VdiType::CbtMetadata,
            snapshot_time: "20250102T03:04:05Z".into(),
            other_config: tags(owner, of),
            ..Vdi::default()
        };
        sample.facts.vdis.insert(Ref::from_opaque(format!("OpaqueRef:{name}")), vdi);
    }

    fn reserve(sample: &mut Sample) {
        let of = sample.vm().uuid.to_string();
        let snapshot = sample.vm_mut();
        let mut record = snapshot.clone();
        record.is_a_snapshot = true;
        record.name_label = reserved_name("22222222-2222-4222-8222-222222222222");
        record.other_config = tags("our-installation", &of);
        record.snapshot_time = "20250102T03:04:05Z".into();
        record.uuid = "22222222-2222-4222-8222-222222222223".parse().expect("uuid");
        sample.facts.vms.insert(Ref::from_opaque("OpaqueRef:reserved"), record);
    }

    fn found(sample: &Sample, now: SystemTime) -> Vec<(Code, Level, String)> {
        let findings = check(&sample.facts, now).into_iter();
        findings.map(|finding| (finding.code, finding.level, finding.message)).collect()
    }

    #[test]
    fn what_is_kept_is_counted_and_another_installations_is_called_so() {
        let mut sample = Sample::new();
        let disk = sample.disk(0).uuid.to_string();
        add(&mut sample, "a", "our-installation", &disk);
        add(&mut sample, "b", "another", &disk);
        reserve(&mut sample);
        let found = found(&sample, taken());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].0, found[0].1), (Code::References, Level::Ok));
        assert_eq!(
            found[0].2,
            "kept in pool 'dc1' between runs: 1 references, 1 reserved snapshots; by installation another: 1 \
             references, 0 reserved snapshots"
        );
    }

    #[test]
    fn a_reference_is_idle_after_thirty_days_by_the_pools_clock() {
        let mut sample = Sample::new();
        let disk = sample.disk(0).uuid.to_string();
        add(&mut sample, "a", "our-installation", &disk);
        add(&mut sample, "b", "another", &disk);
        assert_eq!(found(&sample, taken() + IDLE_AFTER).len(), 1, "not more than that");
        let late = found(&sample, taken() + IDLE_AFTER + DAY);
        assert_eq!((late.len(), late[1].0, late[1].1), (2, Code::IdleReferences, Level::Warning));
        assert!(late[1].2.ends_with("disk 'web01 disk 0' of VM 'web01' (31 days)"), "{late:?}");
        sample.facts.clocks = Some(Clocks { pool: taken(), here: taken() });
        assert_eq!(found(&sample, taken() + IDLE_AFTER + DAY).len(), 1, "the pool's clock counts");
    }

    #[test]
    fn a_disk_with_a_newer_reference_in_the_same_store_is_not_idle() {
        let mut sample = Sample::new();
        let disk = sample.disk(0).uuid.to_string();
        add(&mut sample, "old", "our-installation", &disk);
        add(&mut sample, "new", "our-installation", &disk);
        let now = taken() + IDLE_AFTER + DAY;
        assert_eq!(found(&sample, now).len(), 2, "both are old");
        let newer = sample.facts.vdis.get_mut(&Ref::from_opaque("OpaqueRef:new")).expect("there");
        newer.snapshot_time = "20250120T00:00:00Z".into();
        assert_eq!(found(&sample, now).len(), 1);
        let newer = sample.facts.vdis.get_mut(&Ref::from_opaque("OpaqueRef:new")).expect("there");
        newer.other_config.insert(TAG_STORE.into(), "another store".into());
        assert_eq!(found(&sample, now).len(), 2, "the first store was given up");
    }

    #[test]
    fn a_reserved_snapshot_on_thick_storage_is_named_with_its_size() {
        let mut sample = Sample::new();
        reserve(&mut sample);
        assert_eq!(found(&sample, taken()).len(), 1, "thin storage");
        sample.sr_mut().kind = "lvmoiscsi".into();
        let found = found(&sample, taken());
        assert_eq!((found[1].0, found[1].1), (Code::ReservedSpace, Level::Warning));
        assert!(found[1].2.contains("VM 'web01' keeps 10"), "{found:?}");
    }
}
