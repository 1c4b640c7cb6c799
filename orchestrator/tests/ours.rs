//! What `abd reconcile` takes for ours in a pool full of things that look like it, and that it finds all that is.

mod pool;

use abd_orchestrator::cleanup::{delegate_name, snapshot_name};
use abd_orchestrator::journal::Entry;
use abd_orchestrator::pool::{TAG_JOB, TAG_OWNER, TAG_RESTORED, TAG_SELF};
use pool::{Lab, job};
use xapi::{StringMap, VdiCreate};

/// Nothing was removed, and everything is still there.
async fn touches_nothing(lab: &Lab) {
    let before = lab.everything();
    let outcome = lab.reconcile().await;
    assert_eq!(lab.everything(), before, "{outcome:?}");
    assert!(outcome.removed.objects.is_empty(), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_vm_with_our_name_stays() {
    let lab = Lab::start().await;
    let job = job();
    lab.user_vm(&delegate_name(&job)).await;
    let (vm, _) = lab.user_vm("web01").await;
    lab.pool.client.vm_snapshot(&vm, &delegate_name(&job), &[]).await.expect("snapshot");
    lab.journal(&job, &[Entry::DelegateIntent { name: delegate_name(&job) }]);
    touches_nothing(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_a_delegate_stay_whatever_they_inherit() {
    let lab = Lab::start().await;
    let job = job();
    let (vm, boot, entries) = lab.delegate(&job).await;
    // With the same name, the same tags, and a disk with the same tags.
    let copy = lab.pool.client.vm_clone(&vm, &delegate_name(&job)).await.expect("cloned");
    let copied_boot = lab.disk_at(&copy, "0").await;
    assert_eq!(lab.record(&copied_boot).await.other_config[TAG_JOB], job, "clones inherit tags");
    let snapshot = lab.pool.client.vm_snapshot(&vm, &snapshot_name(&job), &[]).await.expect("snapshot");
    let snapshot_disk = lab.disk_at(&snapshot, "0").await;
    assert_eq!(lab.record(&snapshot).await.other_config[TAG_JOB], job, "snapshots inherit tags");
    let loose = lab.pool.client.vdi_clone(&boot).await.expect("a disk alone");
    lab.journal(&job, &entries);
    for round in 0..2 {
        let outcome = lab.reconcile().await;
        assert_eq!(outcome.removed.objects.len(), if round == 0 { 2 } else { 0 }, "{outcome:?}");
        assert!(outcome.removed.leftovers.is_empty(), "{outcome:?}");
    }
    assert!(!lab.is_there(&vm).await && !lab.is_there(&boot).await);
    assert!(lab.is_there(&copy).await && lab.is_there(&copied_boot).await);
    assert!(lab.is_there(&snapshot).await && lab.is_there(&snapshot_disk).await);
    assert!(lab.is_there(&loose).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_made_from_our_snapshot_stays() {
    let lab = Lab::start().await;
    let job = job();
    let (web, _) = lab.user_vm("web01").await;
    let (snapshot, vdi, entries) = lab.snapshot(&job, &web).await;
    let rescued = lab.pool.client.vm_clone(&snapshot, &snapshot_name(&job)).await.expect("cloned");
    lab.pool.client.vm_provision(&rescued).await.expect("a VM");
    let disk = lab.disk_at(&rescued, "0").await;
    lab.journal(&job, &entries);
    let outcome = lab.reconcile().await;
    assert!(outcome.removed.leftovers.is_empty(), "{outcome:?}");
    assert!(!lab.is_there(&snapshot).await && !lab.is_there(&vdi).await);
    assert!(lab.is_there(&rescued).await && lab.is_there(&disk).await);
    // The next run finds the journal gone and the tags still there.
    touches_nothing(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_started_from_our_template_by_hand_stays() {
    let lab = Lab::start().await;
    let job = job();
    let vm = lab.pool.client.vm_clone(&lab.template, "looking around").await.expect("cloned");
    lab.pool.client.vm_provision(&vm).await.expect("a VM");
    lab.pool.client.vm_start(&vm).await.expect("started");
    lab.journal(&job, &[Entry::DelegateIntent { name: delegate_name(&job) }]);
    touches_nothing(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_got_its_tags_by_a_revert_stays_with_all_its_snapshots() {
    let lab = Lab::start().await;
    let job = job();
    let (web, live) = lab.user_vm("web01").await;
    // A revert to a snapshot of ours makes the live disk from the snapshot's, tags and all.
    let foreign = "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f";
    for (key, value) in [(TAG_SELF, foreign), (TAG_OWNER, lab.pool.owner.as_str()), (TAG_JOB, job.as_str())] {
        lab.pool.client.add_to_other_config(&live, key, value).await.expect("tagged");
        lab.pool.client.add_to_other_config(&web, key, value).await.expect("tagged");
    }
    lab.pool.client.vm_snapshot(&web, "before the update", &[]).await.expect("snapshot");
    // Another product's snapshot of the disk alone: nobody has it but that product.
    let alone = lab.pool.client.vdi_snapshot(&live).await.expect("snapshot");
    assert_eq!(lab.record(&alone).await.other_config[TAG_JOB], job, "snapshots inherit tags");
    touches_nothing(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_installations_objects_stay() {
    let lab = Lab::start().await;
    let job = job();
    let (vm, boot, _) = lab.delegate(&job).await;
    let (web, _) = lab.user_vm("web01").await;
    let (snapshot, vdi, _) = lab.snapshot(&job, &web).await;
    let other = "another-installation";
    for vm in [&vm, &snapshot] {
        lab.pool.client.add_to_other_config(vm, TAG_OWNER, other).await.expect("tagged");
    }
    for vdi in [&boot, &vdi] {
        lab.pool.client.add_to_other_config(vdi, TAG_OWNER, other).await.expect("tagged");
    }
    touches_nothing(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegate_that_somebody_made_a_template_stays_and_is_reported() {
    let lab = Lab::start().await;
    let job = job();
    let (vm, boot, entries) = lab.delegate(&job).await;
    lab.pool.client.vm_set_is_a_template(&vm, true).await.expect("a template");
    lab.journal(&job, &entries);
    for _ in 0..2 {
        let outcome = lab.reconcile().await;
        let [leftover] = &outcome.removed.leftovers[..] else { panic!("{outcome:?}") };
        assert!(
            leftover.contains("somebody made it a template; give it another name to keep it"),
            "{leftover}"
        );
    }
    assert!(lab.is_there(&vm).await && lab.is_there(&boot).await);
    lab.pool.client.set_name_label(&vm, "my rescue system").await.expect("renamed");
    let outcome = lab.reconcile().await;
    assert!(lab.is_there(&vm).await, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_ours_that_somebody_attached_stays_until_it_is_detached() {
    let lab = Lab::start().await;
    let job = job();
    let (web, _) = lab.user_vm("web01").await;
    let (rescue, _) = lab.user_vm("rescue").await;
    let (snapshot, vdi, entries) = lab.snapshot(&job, &web).await;
    // The VM is off: the pool itself would let the disk go, and take the drive away from the VM.
    let vbd = lab.attach(&rescue, &vdi, 5).await;
    lab.journal(&job, &entries);
    for _ in 0..2 {
        let outcome = lab.reconcile().await;
        let [leftover] = &outcome.removed.leftovers[..] else { panic!("{outcome:?}") };
        assert!(leftover.contains("attached to VM 'rescue'"), "{leftover}");
        assert!(leftover.contains("detach it there and run `abd reconcile`"), "{leftover}");
        assert!(lab.is_there(&vdi).await && lab.is_there(&vbd).await && !lab.is_there(&snapshot).await);
    }
    lab.pool.client.vbd_destroy(&vbd).await.expect("detached");
    let outcome = lab.reconcile().await;
    assert!(outcome.removed.leftovers.is_empty() && !lab.is_there(&vdi).await, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_restored_disk_that_somebody_attached_becomes_theirs() {
    let lab = Lab::start().await;
    let job = job();
    let (rescue, root) = lab.user_vm("rescue").await;
    let mut vdi = VdiCreate::new("root (restored)", lab.record(&root).await.sr, 1 << 20);
    vdi.other_config = StringMap::from([
        (TAG_JOB.into(), job.clone()),
        (TAG_OWNER.into(), lab.pool.owner.clone()),
        (TAG_RESTORED.into(), "a point".into()),
    ]);
    let attached = lab.pool.client.vdi_create(&vdi).await.expect("disk");
    let abandoned = lab.pool.client.vdi_create(&vdi).await.expect("disk");
    let uuid = lab.record(&attached).await.uuid;
    lab.pool.client.add_to_other_config(&attached, TAG_SELF, uuid.as_str()).await.expect("tagged");
    let vbd = lab.attach(&rescue, &attached, 5).await;
    lab.journal(
        &job,
        &[Entry::VdiIntent { name: vdi.name_label.clone() }, Entry::Vdi { uuid: uuid.to_string() }],
    );
    let outcome = lab.reconcile().await;
    assert!(outcome.removed.leftovers.is_empty(), "{outcome:?}");
    assert!(!lab.is_there(&abandoned).await, "the one that nobody took is gone");
    let tags = lab.record(&attached).await.other_config;
    assert!(!tags.contains_key(TAG_JOB) && !tags.contains_key(TAG_OWNER) && !tags.contains_key(TAG_SELF));
    // Detached for an hour: still theirs.
    lab.pool.client.vbd_destroy(&vbd).await.expect("detached");
    touches_nothing(&lab).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_persons_disk_in_our_delegate_stays() {
    let lab = Lab::start().await;
    let job = job();
    let (_, root) = lab.user_vm("web01").await;
    let (vm, boot, entries) = lab.delegate(&job).await;
    for vbd in lab.record(&vm).await.vbds {
        lab.pool.client.vbd_destroy(&vbd).await.expect("boot disk taken out");
    }
    // In the place of the boot disk, and next to it; one is nobody else's.
    lab.attach(&vm, &root, 0).await;
    let spare = VdiCreate::new("spare", lab.record(&root).await.sr, 1 << 20);
    let spare = lab.pool.client.vdi_create(&spare).await.expect("disk");
    lab.attach(&vm, &spare, 1).await;
    lab.journal(&job, &entries);
    let outcome = lab.reconcile().await;
    assert!(outcome.removed.leftovers.is_empty(), "{outcome:?}");
    assert!(!lab.is_there(&vm).await && !lab.is_there(&boot).await);
    assert!(lab.is_there(&root).await && lab.is_there(&spare).await);
}

/// A delegate as it is after so many of the calls that make it.
async fn half_a_delegate(lab: &Lab, job: &str, stage: usize) -> Vec<Entry> {
    let client = &lab.pool.client;
    let mut entries = vec![Entry::DelegateIntent { name: delegate_name(job) }];
    if stage == 0 {
        return entries;
    }
    let vm = client.vm_clone(&lab.template, &delegate_name(job)).await.expect("cloned");
    let record = lab.record(&vm).await;
    lab.tag(&vm, &record.uuid, job, false, stage - 1).await;
    if stage < 5 {
        return entries;
    }
    let boot = lab.disk_at(&vm, "0").await;
    let disk = lab.record(&boot).await;
    entries.push(Entry::Delegate { uuid: record.uuid.to_string(), vdis: vec![disk.uuid.to_string()] });
    lab.tag(&boot, &disk.uuid, job, true, stage - 5).await;
    if stage >= 10 {
        client.vm_provision(&vm).await.expect("provisioned");
    }
    if stage >= 11 {
        client.vm_start(&vm).await.expect("started");
    }
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegate_is_found_after_every_step_of_its_making() {
    let lab = Lab::start().await;
    let before = lab.everything();
    for stage in 0..12 {
        let job = job();
        let entries = half_a_delegate(&lab, &job, stage).await;
        lab.journal(&job, &entries);
        let outcome = lab.reconcile().await;
        assert_eq!(lab.everything(), before, "stage {stage}: {outcome:?}");
        assert!(outcome.removed.leftovers.is_empty(), "stage {stage}: {outcome:?}");
        let again = lab.reconcile().await;
        assert!(again.removed.objects.is_empty() && again.removed.leftovers.is_empty(), "{again:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegate_is_found_without_a_journal_from_its_second_tag_on() {
    let lab = Lab::start().await;
    let before = lab.everything();
    for stage in 3..12 {
        half_a_delegate(&lab, &job(), stage).await;
        let outcome = lab.reconcile().await;
        assert_eq!(lab.everything(), before, "stage {stage}: {outcome:?}");
    }
    // Before that nothing proves that it is ours and not another installation's.
    half_a_delegate(&lab, &job(), 2).await;
    touches_nothing(&lab).await;
}

/// A snapshot as it is after so many of the calls that make it.
async fn half_a_snapshot(lab: &Lab, job: &str, of: &xapi::Ref<xapi::Vm>, stage: usize) -> Vec<Entry> {
    let source = lab.record(of).await.uuid.to_string();
    let mut entries = vec![Entry::SnapshotIntent { vm: source, name: snapshot_name(job) }];
    let vm = lab.pool.client.vm_snapshot(of, &snapshot_name(job), &[]).await.expect("snapshot");
    let record = lab.record(&vm).await;
    lab.tag(&vm, &record.uuid, job, false, stage).await;
    if stage >= 4 {
        let vdi = lab.disk_at(&vm, "0").await;
        let disk = lab.record(&vdi).await;
        entries.push(Entry::Snapshot { uuid: record.uuid.to_string(), vdis: vec![disk.uuid.to_string()] });
        lab.tag(&vdi, &disk.uuid, job, false, stage - 4).await;
    }
    if stage >= 8 {
        // The clean-up itself was killed in the middle.
        lab.pool.client.vm_destroy(&vm).await.expect("removed");
    }
    entries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_found_after_every_step_of_its_making() {
    let lab = Lab::start().await;
    let (web, _) = lab.user_vm("web01").await;
    let before = lab.everything();
    for stage in 0..9 {
        for journalled in [true, false] {
            if !journalled && stage < 2 {
                continue;
            }
            let job = job();
            let entries = half_a_snapshot(&lab, &job, &web, stage).await;
            if journalled {
                lab.journal(&job, &entries);
            }
            let outcome = lab.reconcile().await;
            assert_eq!(lab.everything(), before, "stage {stage}, journal {journalled}: {outcome:?}");
            assert!(outcome.removed.leftovers.is_empty(), "stage {stage}: {outcome:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ours_is_found_after_the_template_is_gone_and_pool_and_vm_have_other_names() {
    let lab = Lab::start().await;
    let (web, _) = lab.user_vm("web01").await;
    let template_disk = lab.disk_at(&lab.template, "0").await;
    let before = lab.everything();
    let (first, second) = (job(), job());
    let (_, _, mut entries) = lab.delegate(&first).await;
    entries.extend(lab.snapshot(&first, &web).await.2);
    lab.delegate(&second).await;
    lab.journal(&first, &entries);
    lab.pool.client.vm_destroy(&lab.template).await.expect("removed");
    lab.pool.client.vdi_destroy(&template_disk).await.expect("removed");
    lab.pool.client.set_name_label(&web, "web02").await.expect("renamed");
    let (pool, _) = lab.pool.client.pool().await.expect("pool");
    lab.pool.client.set_name_label(&pool, "dc2").await.expect("renamed");
    let outcome = lab.reconcile().await;
    assert!(outcome.removed.leftovers.is_empty(), "{outcome:?}");
    let left = lab.everything();
    assert!(left.iter().all(|item| before.contains(item)), "{left:?}");
    assert_eq!(
        left.len(),
        before.len() - 2,
        "only the template and its disk, which the admin removed, are gone"
    );
}
