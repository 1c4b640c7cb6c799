//! `abd release` in a simulated pool: what is ours and kept goes, whatever else looks like it stays.

mod pool;

use abd_orchestrator::cleanup::delegate_name;
use abd_orchestrator::error::Kind;
use abd_orchestrator::journal::{Entry, Journal, Keep, Reserve, Rotation};
use abd_orchestrator::lock::{Lock, Subject};
use abd_orchestrator::pool::{TAG_OWNER, TAG_REFERENCE, TAG_STORE};
use abd_orchestrator::references::{self, KeptKind};
use abd_orchestrator::release::{self, Item};
use pool::{Lab, job};
use xapi::{Ref, Vdi, VdiType, Vm};

/// A VM, and the reference that its last job left.
async fn backed_up(lab: &Lab, name: &str) -> (Ref<Vm>, Ref<Vdi>) {
    let job = job();
    let (vm, live) = lab.user_vm(name).await;
    lab.pool.client.vdi_enable_cbt(&live).await.expect("tracked");
    let (snapshot, vdi, _) = lab.snapshot(&job, &vm).await;
    lab.pool.client.vm_destroy(&snapshot).await.expect("removed");
    let rotation = Rotation {
        vdi: lab.record(&vdi).await.uuid.to_string(),
        keep: Keep::Metadata,
        live: lab.record(&live).await.uuid.to_string(),
        store: "store".into(),
        replaces: Some(Vec::new()),
    };
    let mut removed = Default::default();
    references::rotate(&lab.pool, &job, &[rotation], None, &mut removed).await;
    assert!(removed.leftovers.is_empty(), "{removed:?}");
    assert_eq!(lab.record(&vdi).await.kind, VdiType::CbtMetadata);
    (vm, vdi)
}

/// A VM, and the reserved snapshot that its last job left.
async fn reserved(lab: &Lab, name: &str) -> (Ref<Vm>, Ref<Vm>, Ref<Vdi>) {
    let job = job();
    let (vm, live) = lab.user_vm(name).await;
    let (snapshot, vdi, _) = lab.snapshot(&job, &vm).await;
    let rotation = Rotation {
        vdi: lab.record(&vdi).await.uuid.to_string(),
        keep: Keep::Snapshot,
        live: lab.record(&live).await.uuid.to_string(),
        store: "store".into(),
        replaces: Some(Vec::new()),
    };
    let reserve = Reserve {
        snapshot: lab.record(&snapshot).await.uuid.to_string(),
        vm: lab.record(&vm).await.uuid.to_string(),
        store: "store".into(),
    };
    let mut removed = Default::default();
    references::rotate(&lab.pool, &job, &[rotation], Some(&reserve), &mut removed).await;
    assert!(removed.leftovers.is_empty(), "{removed:?}");
    (vm, snapshot, vdi)
}

async fn look(lab: &Lab) -> Vec<Item> {
    release::look(&lab.pool, &[]).await.expect("asked")
}

async fn let_go(lab: &Lab, items: &[Item]) -> Vec<String> {
    let removed = release::remove(&lab.pool, &items.iter().collect::<Vec<_>>()).await.expect("asked");
    assert!(removed.leftovers.is_empty(), "{removed:?}");
    removed.objects
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_a_vm_goes_and_everything_else_stays() {
    let lab = Lab::start().await;
    let (_, of_web) = backed_up(&lab, "web01").await;
    let (_, of_db) = backed_up(&lab, "db01").await;
    let (old, snapshot, disk) = reserved(&lab, "old01").await;
    // A person's clone of a reserved snapshot, and one that has a name like ours.
    let rescued = lab.pool.client.vm_clone(&snapshot, &delegate_name(&job())).await.expect("cloned");
    let by_hand = lab.pool.client.vm_snapshot(&old, "before the update", &[]).await.expect("snapshot");
    let all = look(&lab).await;
    let kinds: Vec<_> =
        all.iter().map(|item| (item.vm.as_ref().expect("a VM").name.as_str(), item.kept.kind)).collect();
    assert_eq!(kinds.len(), 3, "{all:?}");
    for expected in
        [("web01", KeptKind::Reference), ("db01", KeptKind::Reference), ("old01", KeptKind::Reserved)]
    {
        assert!(kinds.contains(&expected), "{kinds:?}");
    }
    let chosen = release::select(all, &["web01".into(), "old01".into()]).expect("both are known");
    assert_eq!(let_go(&lab, &chosen).await.len(), 3, "a reference, a snapshot and its disk");
    assert!(!lab.is_there(&of_web).await && !lab.is_there(&snapshot).await && !lab.is_there(&disk).await);
    assert!(lab.is_there(&of_db).await && lab.is_there(&rescued).await && lab.is_there(&by_hand).await);
    assert!(let_go(&lab, &chosen).await.is_empty(), "again finds its work done");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_installations_are_neither_shown_nor_removed() {
    let lab = Lab::start().await;
    let (_, reference) = backed_up(&lab, "web01").await;
    let (_, snapshot, _) = reserved(&lab, "old01").await;
    let ours = look(&lab).await;
    assert_eq!(ours.len(), 2);
    let other = "another-installation";
    lab.pool.client.add_to_other_config(&reference, TAG_OWNER, other).await.expect("tagged");
    lab.pool.client.add_to_other_config(&snapshot, TAG_OWNER, other).await.expect("tagged");
    assert!(look(&lab).await.is_empty());
    let before = lab.everything();
    assert!(let_go(&lab, &ours).await.is_empty(), "they became another's after they were listed");
    assert_eq!(lab.everything(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_a_vm_that_is_gone_is_found_by_its_uuid() {
    let lab = Lab::start().await;
    let (vm, snapshot, _) = reserved(&lab, "old01").await;
    let uuid = lab.record(&vm).await.uuid.to_string();
    lab.pool.client.vm_destroy(&vm).await.expect("removed");
    let chosen = release::select(look(&lab).await, std::slice::from_ref(&uuid)).expect("by uuid");
    assert!(chosen[0].vm.as_ref().is_some_and(|vm| vm.is_gone && vm.name == uuid), "{chosen:?}");
    let_go(&lab, &chosen).await;
    assert!(!lab.is_there(&snapshot).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_whose_job_runs_keeps_what_is_kept_for_it() {
    let lab = Lab::start().await;
    let (vm, reference) = backed_up(&lab, "web01").await;
    let items = look(&lab).await;
    let uuid = lab.record(&vm).await.uuid.to_string();
    let pools = [lab.pool.config.uuid.clone()];
    let lock = Lock::take(&lab.state.lock_directory(), Subject::Vm(&uuid), "backup").expect("free");
    let error = release::hold(&lab.state, &items, &pools).expect_err("its job runs");
    assert_eq!(error.kind(), Kind::Locked);
    drop(lock);
    let held = release::hold(&lab.state, &items, &pools).expect("nothing runs");
    Lock::take(&lab.state.lock_directory(), Subject::Vm(&uuid), "backup")
        .expect_err("no job starts meanwhile");
    drop(held);
    let tags = lab.record(&reference).await.other_config;
    assert!(tags.contains_key(TAG_REFERENCE) && tags.contains_key(TAG_STORE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reference_that_a_job_is_making_is_not_taken_for_an_unfinished_one() {
    let lab = Lab::start().await;
    let job = job();
    let (vm, live) = lab.user_vm("web01").await;
    let (snapshot, vdi, _) = lab.snapshot(&job, &vm).await;
    lab.pool.client.vm_destroy(&snapshot).await.expect("removed");
    // The job stands between tagging the disk and taking its data out.
    let live = lab.record(&live).await.uuid;
    for (key, value) in [(TAG_REFERENCE, live.as_str()), (TAG_STORE, "store")] {
        lab.pool.client.add_to_other_config(&vdi, key, value).await.expect("tagged");
    }
    let journals = lab.state.journal_directory();
    let started = Entry::Started {
        job: job.clone(),
        pool: "lab".into(),
        pool_uuid: lab.pool.config.uuid.clone(),
        subject: "x".into(),
    };
    // It began after the journals were scanned: only its file tells.
    let running = Journal::start(&journals, &job, &started).expect("journal");
    let mut removed = Default::default();
    references::remove_stale(&lab.pool, &journals, &mut removed).await.expect("asked");
    assert!(lab.is_there(&vdi).await, "{removed:?}");
    running.finish().expect("ended");
    references::remove_stale(&lab.pool, &journals, &mut removed).await.expect("asked");
    assert!(!lab.is_there(&vdi).await, "its job is over, and nobody makes it a reference any more");
}
