//! What is ours in a pool, and the tags that prove it.
//!
//! Tags alone prove nothing: a clone, a copy, a snapshot and the disk of a reverted VM all inherit them. So every
//! tagged object carries its own uuid as well, and one that carries another object's uuid is somebody's copy, not
//! ours. A VM must also be of the kind and the name that a job gives; the name holds the job's random uuid. Where a
//! crash came before the tags, the journal must have announced it.
//!
//! Tags are written in a fixed order, the job last: an object that names a job is tagged completely.

use crate::journal::Entry;
use crate::pool::{Pool, TAG_DELEGATE, TAG_JOB, TAG_OWNER, TAG_REFERENCE, TAG_RESTORED, TAG_SELF};
use xapi::{Class, Ref, StringMap, Uuid, Vdi, VdiType, Vm};

/// Beginning of the names of everything that jobs make.
const PREFIX: &str = "abd-";
/// End of the name of a job's snapshot.
const SNAPSHOT_SUFFIX: &str = "-snapshot";

/// Name of a job's delegate, and the beginning of the names of everything it makes.
pub fn delegate_name(job: &str) -> String {
    format!("{PREFIX}{job}")
}

/// Name of a job's VM snapshot.
pub fn snapshot_name(job: &str) -> String {
    format!("{PREFIX}{job}{SNAPSHOT_SUFFIX}")
}

/// The job that a VM's name holds, of a delegate or of a snapshot.
pub fn job_of_name(vm: &Vm) -> Option<&str> {
    let rest = vm.name_label.strip_prefix(PREFIX)?;
    let job = if vm.is_a_snapshot { rest.strip_suffix(SNAPSHOT_SUFFIX)? } else { rest };
    uuid::Uuid::parse_str(job).ok().map(|_| job)
}

/// The tags that an object can get when it is created, before it has a uuid: [`TAG_SELF`] is to follow.
pub fn tags(pool: &Pool, job: &str) -> StringMap {
    StringMap::from([(TAG_JOB.into(), job.into()), (TAG_OWNER.into(), pool.owner.clone())])
}

/// Marks an object as made by a job, in the order that lets a half-written mark be recognised as one.
///
/// # Errors
/// What the pool refuses.
pub async fn mark<T: Class>(
    pool: &Pool,
    object: &Ref<T>,
    uuid: &Uuid,
    job: &str,
    extra: &[(&str, &str)],
) -> Result<(), xapi::Error> {
    let first = [(TAG_SELF, uuid.as_str()), (TAG_OWNER, pool.owner.as_str())];
    for (key, value) in first.iter().chain(extra).chain(&[(TAG_JOB, job)]) {
        pool.client.add_to_other_config(object, key, value).await?;
    }
    Ok(())
}

/// Takes our mark off an object that is the user's from now on.
///
/// # Errors
/// What the pool refuses.
pub async fn unmark<T: Class>(pool: &Pool, object: &Ref<T>) -> Result<(), xapi::Error> {
    // The job last: as long as it is there, the object is found again.
    for key in [TAG_SELF, TAG_OWNER, TAG_JOB] {
        pool.client.remove_from_other_config(object, key).await?;
    }
    Ok(())
}

/// What an object's tags say about whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// No tags.
    None,
    /// Only the first tag is there: whoever made it was killed while tagging.
    Begun,
    /// Made by this installation; the job is absent in a mark that was not finished, and in what outlives its job.
    Ours {
        /// The job.
        job: Option<&'a str>,
    },
    /// This installation's tags from an object's creation, without its uuid yet: a copy looks the same.
    Unproven {
        /// The job.
        job: Option<&'a str>,
    },
    /// A copy of a marked object.
    Copy,
    /// Another installation's.
    Foreign,
}

/// Reads a mark.
pub fn mark_of<'a>(owner: &str, uuid: &Uuid, other_config: &'a StringMap) -> Mark<'a> {
    let tag = |key: &str| other_config.get(key).map(String::as_str);
    let job = tag(TAG_JOB);
    match (tag(TAG_SELF), tag(TAG_OWNER)) {
        _ if is_copy(uuid, other_config) => Mark::Copy,
        (_, Some(found)) if found != owner => Mark::Foreign,
        (Some(_), Some(_)) => Mark::Ours { job },
        (Some(_), None) => Mark::Begun,
        (None, Some(_)) => Mark::Unproven { job },
        (None, None) if job.is_some() => Mark::Foreign,
        (None, None) => Mark::None,
    }
}

/// Whether tags are those of another object.
pub fn is_copy(uuid: &Uuid, other_config: &StringMap) -> bool {
    other_config.get(TAG_SELF).is_some_and(|own| own != uuid.as_str())
}

/// Whether an object carries a complete mark of this installation and of this job.
pub fn is_marked(owner: &str, uuid: &Uuid, other_config: &StringMap, job: &str) -> bool {
    mark_of(owner, uuid, other_config) == Mark::Ours { job: Some(job) }
}

/// Whether a VM is this job's snapshot or one of its delegates. `source` is the VM that a snapshot is of.
pub fn is_jobs_vm(owner: &str, job: &str, vm: &Vm, entries: &[Entry], source: Option<&Vm>) -> bool {
    let mark = mark_of(owner, &vm.uuid, &vm.other_config);
    let marked = matches!(mark, Mark::Ours { job: found } if found.is_none_or(|found| found == job));
    if vm.is_a_snapshot {
        // Its kind, its random name and its origin are those that were announced. Its tags may be its VM's.
        let announced = entries.iter().any(|entry| match entry {
            Entry::SnapshotIntent { vm, .. } => source.is_some_and(|source| source.uuid.as_str() == vm),
            _ => false,
        });
        return vm.name_label == snapshot_name(job) && (marked || announced);
    }
    let announced = entries.iter().any(|entry| matches!(entry, Entry::DelegateIntent { .. }))
        && matches!(mark, Mark::None | Mark::Begun);
    vm.name_label == delegate_name(job)
        && vm.other_config.contains_key(xva::TEMPLATE_KEY)
        && !vm.is_control_domain
        && (marked || announced)
}

/// Whether a delegate was set up as a VM and then made a template again. Only a person does that, and may want it.
pub fn was_made_a_template(vm: &Vm) -> bool {
    vm.is_a_template && !vm.is_a_snapshot && vm.xenstore_data.contains_key(wire::KEY_JOB)
}

/// Whether a VDI is this job's: a disk of its snapshot or of its delegate, or one that was being restored into. What
/// stays as a reference is none of these any more.
pub fn is_jobs_vdi(owner: &str, job: &str, vdi: &Vdi) -> bool {
    let ours = match mark_of(owner, &vdi.uuid, &vdi.other_config) {
        Mark::Ours { job: found } => found == Some(job),
        // A VDI to restore into is tagged before it has a uuid that we know.
        Mark::Unproven { job: found } => {
            found == Some(job) && vdi.other_config.contains_key(TAG_RESTORED) && !vdi.is_a_snapshot
        }
        _ => false,
    };
    ours && is_made_by_jobs(vdi)
}

/// Whether a tagged VDI is of a kind that ends with its job: not a reference, and not a disk that inherited the tags
/// from a snapshot.
pub fn is_made_by_jobs(vdi: &Vdi) -> bool {
    let has = |key: &str| vdi.other_config.contains_key(key);
    let reference = vdi.kind == VdiType::CbtMetadata || has(TAG_REFERENCE);
    !reference && (vdi.is_a_snapshot || has(TAG_DELEGATE) || has(TAG_RESTORED))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "22222222-2222-4222-8222-222222222222";
    const SELF: &str = "11111111-1111-4111-8111-111111111111";
    const OTHER: &str = "33333333-3333-4333-8333-333333333333";

    fn uuid(text: &str) -> Uuid {
        text.parse().expect("uuid")
    }

    fn config(tags: &[(&str, &str)]) -> StringMap {
        tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn complete() -> Vec<(&'static str, &'static str)> {
        vec![(TAG_SELF, SELF), (TAG_OWNER, "me"), (TAG_JOB, JOB)]
    }

    #[test]
    fn a_mark_is_read_at_every_stage_of_its_writing() {
        let read = |tags: &[(&str, &str)]| {
            let config = config(tags);
            match mark_of("me", &uuid(SELF), &config) {
                Mark::Ours { job } => format!("ours {}", job.is_some()),
                Mark::Unproven { .. } => "unproven".to_owned(),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(read(&[]), "None");
        assert_eq!(read(&complete()[..1]), "Begun");
        assert_eq!(read(&complete()[..2]), "ours false");
        assert_eq!(read(&complete()), "ours true");
        assert_eq!(read(&[(TAG_OWNER, "me"), (TAG_JOB, JOB)]), "unproven");
        assert_eq!(read(&[(TAG_SELF, OTHER), (TAG_OWNER, "me"), (TAG_JOB, JOB)]), "Copy");
        assert_eq!(read(&[(TAG_SELF, SELF), (TAG_OWNER, "you"), (TAG_JOB, JOB)]), "Foreign");
        assert_eq!(read(&[(TAG_JOB, JOB)]), "Foreign");
        assert_eq!(read(&[("folder", "/x")]), "None");
    }

    fn delegate() -> Vm {
        let mut tags = complete();
        tags.push((xva::TEMPLATE_KEY, "0.1.0"));
        Vm { uuid: uuid(SELF), name_label: delegate_name(JOB), other_config: config(&tags), ..Vm::default() }
    }

    fn snapshot() -> Vm {
        Vm {
            uuid: uuid(SELF),
            is_a_snapshot: true,
            name_label: snapshot_name(JOB),
            other_config: config(&complete()),
            ..Vm::default()
        }
    }

    fn ours(vm: &Vm, entries: &[Entry]) -> bool {
        is_jobs_vm("me", JOB, vm, entries, None)
    }

    #[test]
    fn only_the_delegate_itself_is_ours() {
        assert!(ours(&delegate(), &[]));
        let copy = Vm { uuid: uuid(OTHER), ..delegate() };
        assert!(!ours(&copy, &[]), "a clone with the same name inherits every tag");
        let renamed = Vm { name_label: "keep me".into(), ..delegate() };
        assert!(!ours(&renamed, &[]), "whoever renames it wants it");
        let snapshot = Vm { is_a_snapshot: true, ..delegate() };
        assert!(!ours(&snapshot, &[]), "a snapshot of our delegate");
        assert!(!is_jobs_vm("me", OTHER, &delegate(), &[], None), "another job's");
        assert!(!is_jobs_vm("you", JOB, &delegate(), &[], None), "another installation's");
        let named = Vm { name_label: delegate_name(JOB), ..Vm::default() };
        let intent = [Entry::DelegateIntent { name: delegate_name(JOB) }];
        assert!(!ours(&named, &intent), "a person's VM with our name is no clone of our template");
    }

    #[test]
    fn an_announced_delegate_without_its_tags_is_ours() {
        let intent = [Entry::DelegateIntent { name: delegate_name(JOB) }];
        let clone = |tags: &[(&str, &str)]| Vm {
            other_config: config(&[tags, &[(xva::TEMPLATE_KEY, "0.1.0")]].concat()),
            ..delegate()
        };
        for stage in 0..3 {
            let vm = clone(&complete()[..stage]);
            assert!(ours(&vm, &intent), "killed after {stage} tags");
            // Owner and own uuid prove it without a journal.
            assert_eq!(ours(&vm, &[]), stage == 2, "without a journal, after {stage} tags");
        }
        let by_hand = Vm { name_label: "test".into(), ..clone(&[]) };
        assert!(!ours(&by_hand, &intent), "a VM that somebody made from our template");
    }

    #[test]
    fn only_the_announced_or_marked_snapshot_is_ours() {
        assert!(ours(&snapshot(), &[]));
        assert!(!ours(&Vm { uuid: uuid(OTHER), ..snapshot() }, &[]), "tags from its VM, which was reverted");
        assert!(!ours(&Vm { name_label: "before the update".into(), ..snapshot() }, &[]));
        assert!(!ours(&Vm { is_a_snapshot: false, ..snapshot() }, &[]), "a VM made from our snapshot");
        let intent = [Entry::SnapshotIntent { vm: OTHER.into(), name: snapshot_name(JOB) }];
        let untagged = Vm { other_config: StringMap::new(), ..snapshot() };
        let source = Vm { uuid: uuid(OTHER), ..Vm::default() };
        assert!(is_jobs_vm("me", JOB, &untagged, &intent, Some(&source)), "killed before its tags");
        let elsewhere = Vm { uuid: uuid(SELF), ..Vm::default() };
        assert!(!is_jobs_vm("me", JOB, &untagged, &intent, Some(&elsewhere)), "of another VM");
        assert!(!ours(&untagged, &intent), "of a VM that is gone");
        // Its VM carries old tags, from a revert to an earlier snapshot of ours.
        let inherited = Vm { uuid: uuid(OTHER), ..snapshot() };
        assert!(is_jobs_vm("me", JOB, &inherited, &intent, Some(&source)));
    }

    #[test]
    fn a_delegate_that_somebody_made_a_template_is_told_from_a_fresh_clone() {
        let fresh = Vm { is_a_template: true, ..delegate() };
        assert!(!was_made_a_template(&fresh), "a clone of a template is one until it is provisioned");
        let used = Vm { xenstore_data: config(&[(wire::KEY_JOB, JOB)]), ..fresh };
        assert!(was_made_a_template(&used));
        assert!(!was_made_a_template(&Vm { is_a_template: false, ..used }));
    }

    #[test]
    fn only_the_disk_itself_is_ours_not_its_copies_and_descendants() {
        let tagged = |extra: &[(&str, &str)]| Vdi {
            uuid: uuid(SELF),
            other_config: config(&[&complete(), extra].concat()),
            ..Vdi::default()
        };
        let ours = |vdi: &Vdi| is_jobs_vdi("me", JOB, vdi);
        assert!(ours(&tagged(&[(TAG_DELEGATE, JOB)])));
        assert!(ours(&tagged(&[(TAG_RESTORED, "p")])));
        assert!(ours(&Vdi { is_a_snapshot: true, ..tagged(&[]) }));
        assert!(!ours(&tagged(&[])), "the disk of a VM that was reverted to our snapshot");
        let snapshot_of_reverted = Vdi { uuid: uuid(OTHER), is_a_snapshot: true, ..tagged(&[]) };
        assert!(!ours(&snapshot_of_reverted), "and the next snapshot of it, by whomever");
        assert!(!ours(&Vdi { uuid: uuid(OTHER), ..tagged(&[(TAG_DELEGATE, JOB)]) }), "a copy");
        assert!(!ours(&Vdi { is_a_snapshot: true, ..tagged(&[(TAG_REFERENCE, "l")]) }), "a reserved one");
        assert!(
            !ours(&Vdi { kind: VdiType::CbtMetadata, is_a_snapshot: true, ..tagged(&[]) }),
            "a reference"
        );
        assert!(!is_jobs_vdi("me", OTHER, &tagged(&[(TAG_DELEGATE, JOB)])), "another job's");
        // Killed between the creation of a VDI to restore into and the tag with its uuid.
        let created = config(&[(TAG_OWNER, "me"), (TAG_JOB, JOB), (TAG_RESTORED, "p")]);
        assert!(ours(&Vdi { uuid: uuid(SELF), other_config: created, ..Vdi::default() }));
        let bare = config(&[(TAG_OWNER, "me"), (TAG_JOB, JOB), (TAG_DELEGATE, JOB)]);
        assert!(!ours(&Vdi { uuid: uuid(SELF), other_config: bare, ..Vdi::default() }));
    }

    #[test]
    fn a_name_gives_its_job_away() {
        let named =
            |name: &str, is_a_snapshot| Vm { name_label: name.into(), is_a_snapshot, ..Vm::default() };
        assert_eq!(job_of_name(&named(&delegate_name(JOB), false)), Some(JOB));
        assert_eq!(job_of_name(&named(&snapshot_name(JOB), true)), Some(JOB));
        for (name, is_a_snapshot) in [
            (snapshot_name(JOB), false),
            (delegate_name(JOB), true),
            ("abd-x".into(), false),
            (String::new(), true),
        ] {
            assert_eq!(job_of_name(&named(&name, is_a_snapshot)), None, "{name}");
        }
    }
}
