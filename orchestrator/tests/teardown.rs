//! Removing what a job made from a pool that refuses, forgets, and changes under the hands.

#[path = "../crates/xapi/tests/peer/mod.rs"]
mod peer;
mod pool;

use abd_orchestrator::cleanup::{destroy_vm, remove_job};
use abd_orchestrator::journal::Entry;
use abd_orchestrator::pool::{Pool, TAG_JOB, TAG_OWNER, TAG_SELF, TAG_TASK};
use abd_orchestrator::retry::Waits;
use peer::{Peer, TASK, api, task_record};
use pool::{Lab, job};
use serde_json::{Value as Json, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use xapi::{Ref, Vm};

/// A delegate that runs, with a snapshot's disk attached.
struct Scene {
    lab: Lab,
    job: String,
    entries: Vec<Entry>,
    before: Vec<String>,
}

impl Scene {
    async fn set(hosts: usize) -> Self {
        let lab = Lab::with(|config| config.hosts = hosts).await;
        let (web, _) = lab.user_vm("web01").await;
        let before = lab.everything();
        let job = job();
        let (_, vdi, mut entries) = lab.snapshot(&job, &web).await;
        let (delegate, _, made) = lab.delegate(&job).await;
        entries.extend(made);
        lab.attach(&delegate, &vdi, 4).await;
        lab.pool.client.vm_start(&delegate).await.expect("started");
        Self { lab, job, entries, before }
    }

    async fn tear_down(&self) -> abd_orchestrator::cleanup::Removed {
        remove_job(&self.lab.pool, &self.job, &self.entries).await.expect("asked")
    }

    /// All of ours is gone, and each object was reported once.
    async fn leaves_nothing(&self) {
        let removed = self.tear_down().await;
        assert_eq!(self.lab.everything(), self.before, "{removed:?}");
        assert!(removed.leftovers.is_empty(), "{removed:?}");
        let mut objects = removed.objects.clone();
        objects.sort();
        objects.dedup();
        assert_eq!((objects.len(), removed.objects.len()), (4, 4), "two VMs with a disk each: {removed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_pool_makes_us_retry_is_retried() {
    let scene = Scene::set(1).await;
    let error = |method: &str, count: u64, error: &[&str]| {
        scene.lab.fault(json!({"method": method, "count": count, "error": error}));
    };
    error(
        "VM.hard_shutdown",
        2,
        &["OTHER_OPERATION_IN_PROGRESS", "VM", "OpaqueRef:x", "start", "OpaqueRef:y"],
    );
    error("VM.destroy", 1, &["TOO_MANY_PENDING_TASKS"]);
    error("VDI.destroy", 3, &["VDI_IN_USE", "OpaqueRef:x", "destroy"]);
    error("VM.add_to_other_config", 1, &["HOST_STILL_BOOTING"]);
    error("VDI.add_to_other_config", 1, &["HOST_STILL_BOOTING"]);
    scene.leaves_nothing().await;
    assert!(scene.lab.calls("VDI.destroy") >= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_whose_answer_was_lost_are_made_again() {
    let scene = Scene::set(1).await;
    for method in ["VM.hard_shutdown", "VM.destroy", "VDI.destroy"] {
        scene.lab.fault(json!({"method": method, "when": "after", "drop": true}));
        scene.lab.fault(json!({"method": method, "when": "before", "drop": true, "nth": 2}));
    }
    scene.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_powers_itself_off_meanwhile_is_no_error() {
    let scene = Scene::set(1).await;
    scene.lab.fault(json!({"method": "VM.hard_shutdown", "when": "after",
        "error": ["VM_BAD_POWER_STATE", "OpaqueRef:x", "paused, suspended, running", "halted"]}));
    scene.leaves_nothing().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_ends_in_the_middle_is_renewed() {
    let scene = Scene::set(1).await;
    scene.lab.fault(json!({"method": "VM.destroy", "delay_ms": 300}));
    let lab = &scene.lab;
    let drops = async {
        for _ in 0..6 {
            lab.ask("POST", "/lab/sessions/drop", None);
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    tokio::join!(scene.leaves_nothing(), drops);
    assert!(lab.calls("session.login_with_password") > 2, "sessions were lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_master_in_the_middle_is_followed() {
    let scene = Scene::set(2).await;
    scene.lab.fault(json!({"method": "VM.destroy", "delay_ms": 300}));
    let lab = &scene.lab;
    let changes = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        lab.ask("POST", "/lab/master", None);
    };
    tokio::join!(scene.leaves_nothing(), changes);
    assert!(lab.pool.client.endpoint().await.address().starts_with("127.0.0.2:"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_resists_is_reported_and_the_rest_goes() {
    let scene = Scene::set(1).await;
    scene.lab.fault(
        json!({"method": "VDI.destroy", "count": 1000, "error": ["VDI_IN_USE", "OpaqueRef:x", "destroy"]}),
    );
    let removed = scene.tear_down().await;
    assert_eq!(removed.leftovers.len(), 2, "{removed:?}");
    assert!(removed.leftovers.iter().all(|leftover| leftover.contains("the disk is in use")), "{removed:?}");
    assert_eq!(removed.objects.len(), 2, "both VMs: {removed:?}");
    scene.lab.fault(json!({"clear": true}));
    // They are found by their marks alone.
    let outcome = scene.lab.reconcile().await;
    assert_eq!(scene.lab.everything(), scene.before, "{outcome:?}");
    assert_eq!(outcome.removed.objects.len(), 2, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_that_do_not_pass_are_not_waited_for() {
    let scene = Scene::set(1).await;
    scene.lab.fault(
        json!({"method": "VM.destroy", "count": 1000, "error": ["OPERATION_BLOCKED", "OpaqueRef:x", "no"]}),
    );
    let started = std::time::Instant::now();
    let removed = scene.tear_down().await;
    assert!(started.elapsed() < scene.lab.pool.waits.detach, "{:?}", started.elapsed());
    let [delegate, snapshot] = &removed.leftovers[..] else { panic!("{removed:?}") };
    assert!(delegate.contains("delegate") && delegate.contains("OPERATION_BLOCKED"), "{delegate}");
    assert!(snapshot.contains("snapshot") && snapshot.contains("OPERATION_BLOCKED"), "{snapshot}");
    assert_eq!(scene.lab.calls("VDI.destroy"), 0, "disks of VMs that stay are left alone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delegate_on_a_host_that_does_not_answer_is_left_for_later() {
    let scene = Scene::set(1).await;
    scene.lab.fault(
        json!({"method": "VM.hard_shutdown", "count": 1000, "error": ["CANNOT_CONTACT_HOST", "OpaqueRef:h"]}),
    );
    let removed = scene.tear_down().await;
    let delegate =
        removed.leftovers.iter().find(|leftover| leftover.starts_with("delegate")).expect("reported");
    assert!(delegate.contains("does not answer its pool; when the host is back"), "{delegate}");
    assert_eq!(scene.lab.calls("VM.power_state_reset"), 0, "the pool thinks that the host lives");
    assert!(scene.lab.calls("Async.VM.hard_shutdown") > 1, "it was given time");
    scene.lab.fault(json!({"clear": true}));
    let outcome = scene.lab.reconcile().await;
    assert_eq!(scene.lab.everything(), scene.before, "{outcome:?}");
}

const SELF: &str = "11111111-1111-4111-8111-111111111111";

/// A pool whose one VM runs, as the database says, on a host that is dead.
async fn dead_host(
    owner: &'static str,
    reset: Result<(), Vec<&'static str>>,
) -> (Peer, Pool, Arc<Mutex<&'static str>>) {
    let state = Arc::new(Mutex::new("Running"));
    let seen = state.clone();
    let ok = || Some(Ok(json!("")));
    let peer = Peer::start(api(move |method, _| {
        let mut state = seen.lock().expect("no panic");
        match method {
            "VM.get_record" if *state == "gone" => Some(Err(vec!["HANDLE_INVALID", "VM", "OpaqueRef:1"])),
            "VM.get_record" => Some(Ok(json!({"uuid": SELF, "name_label": "d", "power_state": *state,
                "resident_on": "OpaqueRef:h", "other_config": {TAG_OWNER: owner, TAG_SELF: SELF, TAG_JOB: "j"}}))),
            "Async.VM.hard_shutdown" => Some(Ok(json!(TASK))),
            "task.get_record" => Some(Ok(task_record("failure", "", &["HOST_OFFLINE", "OpaqueRef:h"]))),
            "host.get_record" => Some(Ok(json!({"name_label": "xen2", "metrics": "OpaqueRef:m"}))),
            "host_metrics.get_record" => Some(Ok(json!({"live": false}))),
            "VM.power_state_reset" => match &reset {
                Ok(()) => {
                    *state = "Halted";
                    ok()
                }
                Err(words) => Some(Err(words.clone())),
            },
            "VM.destroy" if *state == "Halted" => {
                *state = "gone";
                ok()
            }
            _ => None,
        }
    }))
    .await;
    let pool = Pool {
        config: toml_config(),
        client: peer::client(&peer).await,
        owner: "me".into(),
        waits: Waits { host_away: Duration::from_millis(600), ..Waits::default() },
    };
    (peer, pool, state)
}

fn toml_config() -> abd_orchestrator::config::PoolConfig {
    serde_json::from_value(json!({"name": "p", "uuid": "u", "endpoint": "https://x"})).expect("a pool")
}

#[tokio::test]
async fn a_delegate_on_a_dead_host_is_declared_halted_as_the_last_resort() {
    let (peer, pool, state) = dead_host("me", Ok(())).await;
    let vm = Ref::<Vm>::from_opaque("OpaqueRef:1");
    assert!(destroy_vm(&pool, &vm).await.expect("removed"));
    assert_eq!(*state.lock().expect("no panic"), "gone");
    let calls = peer.methods();
    let tries = calls.iter().filter(|method| *method == "Async.VM.hard_shutdown").count();
    assert!(tries >= 2, "the host was given time to come back: {calls:?}");
}

#[tokio::test]
async fn nobody_elses_vm_is_ever_declared_halted() {
    let (peer, pool, state) = dead_host("somebody", Ok(())).await;
    let error = destroy_vm(&pool, &Ref::from_opaque("OpaqueRef:1")).await.expect_err("not ours");
    assert_eq!(error.chain(), "host xen2 is down");
    assert_eq!(*state.lock().expect("no panic"), "Running");
    assert!(!peer.methods().contains(&"VM.power_state_reset".to_owned()));
}

#[tokio::test]
async fn a_host_that_the_pool_finds_alive_after_all_keeps_its_vm() {
    let (_peer, pool, state) = dead_host("me", Err(vec!["HOST_IS_LIVE", "OpaqueRef:h"])).await;
    let error = destroy_vm(&pool, &Ref::from_opaque("OpaqueRef:1")).await.expect_err("alive");
    assert!(
        error.chain().contains("host xen2 is down, and the pool does not give the VM up"),
        "{}",
        error.chain()
    );
    assert!(error.remedy_text().is_some_and(|remedy| remedy.contains("abd reconcile")));
    assert_eq!(*state.lock().expect("no panic"), "Running");
}

#[tokio::test]
async fn a_forgotten_operation_is_not_taken_for_a_removed_vm() {
    // The toolstack was restarted while it halted the VM: its task is gone, the VM is not.
    let halts = Arc::new(AtomicUsize::new(0));
    let (count, gone) = (halts.clone(), AtomicUsize::new(0));
    let peer = Peer::start(api(move |method, _| match method {
        "VM.get_record" if gone.load(Ordering::SeqCst) > 0 => {
            Some(Err(vec!["HANDLE_INVALID", "VM", "OpaqueRef:1"]))
        }
        "VM.get_record" => {
            let state = if count.load(Ordering::SeqCst) < 2 { "Running" } else { "Halted" };
            Some(Ok(json!({"uuid": SELF, "power_state": state})))
        }
        "Async.VM.hard_shutdown" => {
            count.fetch_add(1, Ordering::SeqCst);
            Some(Ok(json!(TASK)))
        }
        "task.get_record" => Some(Err(vec!["HANDLE_INVALID", "task", TASK])),
        "VM.destroy" => {
            gone.fetch_add(1, Ordering::SeqCst);
            Some(Ok(json!("")))
        }
        _ => None,
    }))
    .await;
    let client = peer::client(&peer).await;
    let pool = Pool { config: toml_config(), client, owner: "me".into(), waits: Waits::default() };
    assert!(destroy_vm(&pool, &Ref::from_opaque("OpaqueRef:1")).await.expect("removed"));
    assert_eq!(halts.load(Ordering::SeqCst), 2, "halted again until it was");
    assert_eq!(peer.methods().iter().filter(|method| *method == "VM.destroy").count(), 1);
}

fn tag(owner: &str, job: &str) -> xapi::StringMap {
    [(TAG_TASK.to_owned(), format!("{owner}/{job}"))].into()
}

fn tasks(lab: &Lab) -> Vec<Json> {
    lab.ask("GET", "/lab/inventory", None)["task"].as_array().expect("tasks").clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_of_dead_jobs_are_ended_before_anything_is_looked_at() {
    let lab = Lab::start().await;
    let client = &lab.pool.client;
    let owner = lab.pool.owner.clone();
    let (dead, lost, live) = (job(), job(), job());
    lab.journal(&dead, &[]);
    let started = Entry::Started {
        job: live.clone(),
        pool: "lab".into(),
        pool_uuid: lab.pool.config.uuid.clone(),
        subject: "x".into(),
    };
    let running = abd_orchestrator::journal::Journal::start(&lab.state.journal_directory(), &live, &started);
    let running = running.expect("journal");
    let task = async |owner: &str, job: &str| {
        client.with_task_tags(tag(owner, job)).task_create("Async.VM.snapshot", "").await.expect("task")
    };
    let of_dead = task(&owner, &dead).await;
    let of_lost = task(&owner, &lost).await;
    let of_live = task(&owner, &live).await;
    let of_other = task("another-installation", &dead).await;
    assert_eq!(tasks(&lab).len(), 4);
    let outcome = lab.reconcile().await;
    // Nothing runs behind these tasks that could end them.
    assert_eq!(outcome.removed.leftovers.len(), 2, "{outcome:?}");
    assert!(
        outcome
            .removed
            .leftovers
            .iter()
            .all(|left| left.ends_with("still under way in the pool: Async.VM.snapshot")),
        "{outcome:?}"
    );
    use xapi::TaskStatus::{Cancelling, Pending, Success};
    assert_eq!(lab.record(&of_dead).await.status, Cancelling);
    assert_eq!(lab.record(&of_lost).await.status, Cancelling);
    assert_eq!(lab.record(&of_live).await.status, Pending, "a job that runs is left alone");
    assert_eq!(lab.record(&of_other).await.status, Pending, "and so is another installation's");
    for task in [&of_dead, &of_lost] {
        client.task_set_status(task, &Success).await.expect("ended");
    }
    let outcome = lab.reconcile().await;
    assert!(outcome.removed.leftovers.is_empty(), "{outcome:?}");
    assert_eq!(outcome.live, [live]);
    drop(running);
}
