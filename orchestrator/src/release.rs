//! `abd release`: lets go of what this installation keeps in a pool between runs, of VMs that nobody backs up any more.
//!
//! Promises: only what [`references`](crate::references) knows as this installation's goes; nothing of a VM whose job
//! runs, or whose last job ended without cleaning up. What is let go of only costs the next run: it reads everything.

use crate::cleanup::Removed;
use crate::config::State;
use crate::error::{Context, Error, Kind, Result};
use crate::journal::{self, Entry};
use crate::lock::{self, Lock, Subject};
use crate::pool::Pool;
use crate::reconcile;
use crate::references::{self, Kept, KeptKind, kept};
use ads::StoredPoint;
use std::collections::{BTreeMap, BTreeSet};
use xapi::{Ref, Vbd, Vdi, Vm};

/// A VM, that is there or was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its uuid.
    pub uuid: String,
    /// Its name; the uuid where nothing tells it any more.
    pub name: String,
    /// Whether the pool has no such VM any more.
    pub is_gone: bool,
}

/// Something kept, with the words for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The object.
    pub kept: Kept,
    /// Name of its pool.
    pub pool: String,
    /// The VM that it is kept for; none for a disk that no VM has and no restore point names.
    pub vm: Option<Named>,
    /// Name of the disk; empty for a reserved snapshot and for a disk that is gone.
    pub disk: String,
}

/// What this installation keeps in a pool. `points` tell what VMs that are gone were called.
///
/// # Errors
/// Where the pool cannot be asked.
pub async fn look(pool: &Pool, points: &[StoredPoint]) -> Result<Vec<Item>> {
    let vms = pool.client.get_all_records::<Vm>().await.context(|| "list VMs".into())?;
    let vbds = pool.client.get_all_records::<Vbd>().await.context(|| "list drives".into())?;
    let vdis = pool.client.get_all_records::<Vdi>().await.context(|| "list disks".into())?;
    let here: Vec<_> = points.iter().filter(|stored| stored.point.pool.uuid == pool.config.uuid).collect();
    let mut items = Vec::new();
    for kept in kept(&vms, &vdis).into_iter().filter(|one| one.owner == pool.owner) {
        let (vm, disk) = match kept.kind {
            KeptKind::Reserved => (Some(of_vm(&kept.of, &vms, &here)), String::new()),
            KeptKind::Reference => of_disk(&kept.of, &vms, &vbds, &vdis, &here),
        };
        items.push(Item { kept, pool: pool.config.name.clone(), vm, disk });
    }
    Ok(items)
}

fn of_vm(uuid: &str, vms: &BTreeMap<Ref<Vm>, Vm>, points: &[&StoredPoint]) -> Named {
    if let Some(vm) = vms.values().find(|vm| vm.uuid.as_str() == uuid) {
        return Named { uuid: uuid.to_owned(), name: vm.name_label.clone(), is_gone: false };
    }
    let told = points.iter().rev().find(|stored| stored.point.vm.uuid == uuid);
    let name = told.map_or_else(|| uuid.to_owned(), |stored| stored.point.vm.name.clone());
    Named { uuid: uuid.to_owned(), name, is_gone: true }
}

fn of_disk(
    uuid: &str,
    vms: &BTreeMap<Ref<Vm>, Vm>,
    vbds: &BTreeMap<Ref<Vbd>, Vbd>,
    vdis: &BTreeMap<Ref<Vdi>, Vdi>,
    points: &[&StoredPoint],
) -> (Option<Named>, String) {
    let disk = vdis.values().find(|vdi| vdi.uuid.as_str() == uuid);
    let name = disk.map(|disk| disk.name_label.clone()).unwrap_or_default();
    let drives = disk.into_iter().flat_map(|disk| &disk.vbds).filter_map(|vbd| vbds.get(vbd));
    let mut users = drives.filter_map(|vbd| vms.get(&vbd.vm)).filter(|vm| !vm.is_a_snapshot);
    if let Some(vm) = users.find(|vm| !vm.is_control_domain) {
        let uuid = vm.uuid.to_string();
        return (Some(Named { uuid, name: vm.name_label.clone(), is_gone: false }), name);
    }
    let told = points.iter().rev().find(|stored| stored.point.disks.iter().any(|disk| disk.vdi == uuid));
    (told.map(|stored| of_vm(&stored.point.vm.uuid, vms, points)), name)
}

/// The items that these names mean: of VMs by name or uuid, or single ones by the uuid of the disk or their own.
///
/// # Errors
/// [`Kind::NotFound`] for a name that means none, or several VMs.
pub fn select(items: Vec<Item>, names: &[String]) -> Result<Vec<Item>> {
    let means = |item: &Item, name: &str| {
        let of_vm = item.vm.as_ref().is_some_and(|vm| vm.name == name || vm.uuid == name);
        of_vm || item.kept.of == name || item.kept.uuid == name
    };
    for name in names {
        let found: Vec<&Item> = items.iter().filter(|item| means(item, name)).collect();
        if found.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("nothing is kept for a VM named '{name}'"))
                .remedy(
                    "give the VM's name or uuid; `abd release --all` shows all that is kept before it asks",
                ));
        }
        let vms: BTreeSet<&str> =
            found.iter().filter_map(|item| Some(item.vm.as_ref()?.uuid.as_str())).collect();
        if vms.len() > 1 {
            let uuids: Vec<&str> = vms.into_iter().collect();
            return Err(Error::new(Kind::NotFound, format!("{} VMs are named '{name}'", uuids.len()))
                .remedy(format!("name one by its uuid: {}", uuids.join(", "))));
        }
    }
    let named = |item: &Item| names.is_empty() || names.iter().any(|name| means(item, name));
    Ok(items.into_iter().filter(named).collect())
}

/// Keeps jobs away from the items' VMs until it is dropped.
///
/// # Errors
/// [`Kind::Locked`] where a job runs that has to do with one of them; [`Kind::Leftovers`] where one ended without
/// cleaning up, for `abd reconcile` may still turn its snapshot into a reference.
pub fn hold(state: &State, items: &[Item], pools: &[String]) -> Result<Vec<Lock>> {
    let vms: BTreeSet<&str> = items.iter().filter_map(|item| Some(item.vm.as_ref()?.uuid.as_str())).collect();
    let directory = state.lock_directory();
    // It becomes the name of a file, and comes from the pool. No VM of a pool has a uuid that is none.
    let named = vms.iter().filter(|vm| lock::is_run_name(vm));
    let locks =
        named.map(|vm| Lock::take(&directory, Subject::Vm(vm), "release")).collect::<Result<Vec<_>>>()?;
    let journal::Scan { live, dead, .. } = journal::scan(&state.journal_directory())?;
    if let Some(item) = items.iter().find(|item| item.kept.job.as_ref().is_some_and(|job| live.contains(job)))
    {
        return Err(Error::new(
            Kind::Locked,
            format!("the job that made {} {} still runs", word(item.kept.kind), item.kept.uuid),
        )
        .remedy("wait for it to end"));
    }
    for journal in &dead {
        let here = pools.iter().any(|pool| reconcile::belongs_to(journal, pool));
        if let Some(Entry::Started { subject, .. }) = journal.entries.first()
            && here
            && vms.contains(subject.as_str())
        {
            return Err(Error::new(
                Kind::Leftovers,
                format!("job {} of VM {subject} ended without cleaning up", journal.job),
            )
            .remedy("run `abd reconcile` first"));
        }
    }
    Ok(locks)
}

/// What a kept object is called.
pub const fn word(kind: KeptKind) -> &'static str {
    match kind {
        KeptKind::Reference => "reference",
        KeptKind::Reserved => "reserved snapshot",
    }
}

/// Removes the items of one pool.
///
/// # Errors
/// Where the pool cannot be asked; single objects that resist are listed in the result.
pub async fn remove(pool: &Pool, items: &[&Item]) -> Result<Removed> {
    let mut removed = Removed::default();
    let kept: Vec<&Kept> = items.iter().map(|item| &item.kept).collect();
    references::release(pool, &kept, &mut removed).await?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(uuid: &str, vm: Option<(&str, &str)>) -> Item {
        Item {
            kept: Kept {
                kind: KeptKind::Reference,
                uuid: uuid.into(),
                owner: "me".into(),
                of: format!("disk of {uuid}"),
                store: "store".into(),
                job: None,
                taken: None,
            },
            pool: "dc1".into(),
            vm: vm.map(|(uuid, name)| Named { uuid: uuid.into(), name: name.into(), is_gone: false }),
            disk: "root".into(),
        }
    }

    fn items() -> Vec<Item> {
        vec![
            item("r1", Some(("u1", "web01"))),
            item("r2", Some(("u1", "web01"))),
            item("r3", Some(("u2", "db01"))),
            item("r4", Some(("u3", "db01"))),
            item("r5", None),
        ]
    }

    fn selected(names: &[&str]) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(select(items(), &names)?.into_iter().map(|item| item.kept.uuid).collect())
    }

    #[test]
    fn names_mean_vms_disks_or_single_references_and_none_means_all() {
        assert_eq!(selected(&[]).expect("all").len(), 5);
        assert_eq!(selected(&["web01"]).expect("a VM"), ["r1", "r2"]);
        assert_eq!(selected(&["u3", "r1"]).expect("uuids"), ["r1", "r4"]);
        assert_eq!(selected(&["disk of r5"]).expect("a disk"), ["r5"]);
    }

    #[test]
    fn a_name_that_means_none_or_two_releases_nothing() {
        let error = selected(&["web01", "mail"]).expect_err("none");
        assert_eq!(error.kind(), Kind::NotFound);
        let error = selected(&["db01"]).expect_err("two");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.remedy_text().is_some_and(|text| text.contains("u2, u3")), "{error:?}");
    }

    #[test]
    fn nothing_of_a_vm_whose_job_runs_or_left_something_goes() {
        let directory = tempfile::tempdir().expect("directory");
        let state = State::open(directory.path().join("state")).expect("state");
        let pools = ["pool".to_owned()];
        let lock = Lock::take(&state.lock_directory(), Subject::Vm("u1"), "backup").expect("free");
        assert_eq!(hold(&state, &items(), &pools).expect_err("its job runs").kind(), Kind::Locked);
        drop(lock);
        let started = Entry::Started {
            job: "j".into(),
            pool: "dc1".into(),
            pool_uuid: "pool".into(),
            subject: "u1".into(),
        };
        let journal = journal::Journal::start(&state.journal_directory(), "j", &started).expect("journal");
        let mut of_job = items();
        of_job[4].kept.job = Some("j".into());
        assert_eq!(hold(&state, &of_job[4..], &pools).expect_err("made just now").kind(), Kind::Locked);
        drop(journal);
        assert_eq!(hold(&state, &items(), &pools).expect_err("left something").kind(), Kind::Leftovers);
        hold(&state, &items()[2..], &pools).expect("other VMs");
        hold(&state, &items(), &["another".to_owned()]).expect("in another pool");
    }
}
