//! Delegates that are processes, with a real store behind them, driven by the calls an orchestrator makes.

use crate::support::{Client, Lab, PATIENCE, wait_for_log};
use ads::{JobEvent, JobGrant, JobHandle, Service, Store};
use blocks::{ByteCount, ByteOffset};
use pin::{Fingerprint, Identity};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{BackupDisk, IdKeyBytes, Order, PROTOCOL_VERSION as VERSION, RestoreDisk, Start, Work};
use xapi_sim::guest::Engine;
use xapi_sim::{LabClient, Ports};

const PROGRAM: &str = env!("CARGO_BIN_EXE_xapi-sim");
const JOB: &str = "00000000-0000-4000-8000-000000000001";
const SIZE: usize = (5 << 20) + 512;

/// The orchestrator's half.
struct Orchestrator {
    runtime: tokio::runtime::Runtime,
    store: Arc<Store>,
    service: Service,
    job: JobHandle,
}

impl Orchestrator {
    fn new(dir: &Path, work: Work) -> Self {
        let store = Arc::new(Store::init(&dir.join("store")).unwrap());
        Self::with_store(store, work)
    }

    fn with_store(store: Arc<Store>, work: Work) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listen = ["127.0.0.1:0".parse().unwrap()];
        let identity = Identity::generate().unwrap();
        let service = runtime.block_on(Service::start(store.clone(), identity, &listen)).unwrap();
        let id_key: IdKeyBytes = store.id_key_bytes();
        let bitmaps = match &work {
            Work::Backup { disks, .. } => vec![None; disks.len()],
            Work::Restore { disks } => vec![None; disks.len()],
            Work::Diagnose { .. } => Vec::new(),
        };
        let order =
            Order { job: JOB.to_owned(), id_key, master_key: None, watchdog_s: 30, progress_ms: 50, work };
        let job = {
            let _guard = runtime.enter();
            service.open_job(JobGrant { job: JOB.to_owned(), order, bitmaps }).unwrap()
        };
        Self { runtime, store, service, job }
    }

    /// What stands in the VM's `xenstore_data` for the delegate; 10.0.2.2 is this machine's loopback to a guest.
    fn keys(&self) -> Value {
        json!({
            "vm-data/abd/version": VERSION.to_string(),
            "vm-data/abd/job": JOB,
            "vm-data/abd/url": format!("https://10.0.2.2:{}", self.service.addresses()[0].port()),
            "vm-data/abd/orchestrator-key": self.service.fingerprint().to_string(),
        })
    }

    /// The events of the job until its end.
    fn events(&self) -> Vec<JobEvent> {
        self.job.close();
        self.runtime.block_on(async {
            let mut all = Vec::new();
            while let Some(event) = self.job.events().recv().await {
                all.push(event);
            }
            all
        })
    }

    /// The tree of the one disk that was backed up.
    fn tree(&self) -> seal::Tree {
        let sealed = self.events().into_iter().find_map(|event| match event {
            JobEvent::DiskSealed { tree, .. } => Some(tree),
            _ => None,
        });
        sealed.expect("the disk was sealed")
    }
}

fn backup() -> Work {
    let size = ByteCount::new(SIZE as u64);
    let disks = vec![BackupDisk { userdevice: 4, size, start: Start::Nothing, audit: None }];
    Work::Backup {
        level: 1,
        pack_size: 16 << 20,
        rate_limit: None,
        throttle: None,
        skip_bad_blocks: false,
        disks,
    }
}

fn lab() -> Lab {
    Lab::with(|config| config.delegates = Engine::Process { program: PROGRAM.into(), network_rate: None })
}

/// A VM as a clone of the appliance's template is, with one more disk at position 4.
fn delegate(client: &Client<'_>, disk: &str, mode: &str, keys: &Value) -> String {
    let (vm, _) = client.vm(json!({"name": "abd-job", "disks": [{"name": "boot", "size": 1 << 20}]}));
    client.call("VM.remove_from_other_config", json!([vm, "lab:guest"]));
    client.call("VM.add_to_other_config", json!([vm, "abd:template", "0.1.0"]));
    client.call("VBD.create", json!([client.vbd(&vm, disk, "4", mode)]));
    client.call("VM.set_xenstore_data", json!([vm, keys]));
    vm
}

/// A disk with bytes all over it, some blocks zero.
fn source(client: &Client<'_>) -> (String, Vec<u8>) {
    let (_, disks) = client.vm(json!({"name": "web01", "disks": [{"name": "d", "size": SIZE}]}));
    let mut bytes: Vec<u8> =
        (0..SIZE as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    bytes[1 << 20..2 << 20].fill(0);
    client.write(&disks[0], 0, &bytes);
    (disks[0].clone(), bytes)
}

fn data(client: &Client<'_>, vm: &str) -> BTreeMap<String, String> {
    serde_json::from_value(client.call("VM.get_xenstore_data", json!([vm]))).unwrap()
}

/// Follows the VM's events until `wanted` of its data and power state.
fn wait_until(client: &Client<'_>, vm: &str, wanted: impl Fn(&BTreeMap<String, String>, &str) -> bool) {
    let by = Instant::now() + PATIENCE;
    let mut token = String::new();
    loop {
        let state = client.text("VM.get_power_state", json!([vm]));
        if wanted(&data(client, vm), &state) {
            return;
        }
        assert!(Instant::now() < by, "{state} {:?}", data(client, vm));
        let batch = client.call("event.from", json!([[format!("VM/{vm}")], token, 5.0]));
        token = batch["token"].as_str().unwrap().to_owned();
    }
}

fn key_of(client: &Client<'_>, vm: &str) -> Fingerprint {
    wait_until(client, vm, |data, state| data.contains_key("vm-data/abd/key") || state == "Halted");
    let data = data(client, vm);
    data.get("vm-data/abd/key").unwrap_or_else(|| panic!("{data:?}")).parse().unwrap()
}

fn wait_halted(client: &Client<'_>, vm: &str) -> BTreeMap<String, String> {
    wait_until(client, vm, |_, state| state == "Halted");
    data(client, vm)
}

#[test]
fn a_job_is_done_from_start_to_power_off_and_restores_to_the_same_bytes() {
    let lab = lab();
    let client = lab.login();
    let (disk, bytes) = source(&client);
    let orchestrator = Orchestrator::new(lab.dir.path(), backup());
    let vm = delegate(&client, &disk, "RO", &orchestrator.keys());
    client.call("VM.start", json!([vm, false, false]));
    orchestrator.job.admit(key_of(&client, &vm)).unwrap();
    let left = wait_halted(&client, &vm);
    assert_eq!(left["vm-data/abd/state"], "finished");
    assert!(!left.contains_key("vm-data/abd/error"), "{left:?}");
    let uuid = client.text("VM.get_uuid", json!([vm]));
    wait_for_log(&lab, |e| e["kind"] == "guest-start" && e["vm"] == json!(uuid) && e["pid"].is_u64());
    let end = wait_for_log(&lab, |e| e["kind"] == "guest-exit" && e["vm"] == json!(uuid));
    assert_eq!(end["description"], "the guest powered itself off");

    let tree = orchestrator.tree();
    let mut held = vec![0; SIZE];
    let mut sink = |offset: ByteOffset, plain: &[u8]| {
        let at = usize::try_from(offset.get()).unwrap();
        held[at..at + plain.len()].copy_from_slice(plain);
        Ok(())
    };
    orchestrator.store.read_disk(&tree, &mut sink).unwrap();
    assert!(held == bytes, "the store holds something else than the disk");

    let (_, targets) = client.vm(json!({"name": "new", "disks": [{"name": "d", "size": SIZE}]}));
    let disks =
        vec![RestoreDisk { userdevice: 4, device: tree.size, size: tree.size, root: tree.root, blank: true }];
    let orchestrator = Orchestrator::with_store(orchestrator.store.clone(), Work::Restore { disks });
    let vm = delegate(&client, &targets[0], "RW", &orchestrator.keys());
    client.call("VM.start", json!([vm, false, false]));
    orchestrator.job.admit(key_of(&client, &vm)).unwrap();
    assert_eq!(wait_halted(&client, &vm)["vm-data/abd/state"], "finished");
    assert!(client.read(&targets[0], 0, SIZE as u64) == bytes, "the restored disk differs");
}

#[test]
fn the_worker_claims_its_order_within_moments_of_the_start() {
    let lab = lab();
    let client = lab.login();
    let (disk, _) = source(&client);
    let orchestrator = Orchestrator::new(lab.dir.path(), backup());
    let vm = delegate(&client, &disk, "RO", &orchestrator.keys());
    let began = Instant::now();
    client.call("VM.start", json!([vm, false, false]));
    orchestrator.job.admit(key_of(&client, &vm)).unwrap();
    let claimed = orchestrator.runtime.block_on(async {
        loop {
            match orchestrator.job.events().recv().await {
                Some(JobEvent::Claimed(_)) => return began.elapsed(),
                Some(_) => {}
                None => panic!("the job ended unclaimed"),
            }
        }
    });
    println!("claimed after {claimed:?}");
    // Tens of milliseconds on an idle machine. A guest in QEMU takes seconds.
    assert!(claimed < Duration::from_secs(2), "{claimed:?}");
    wait_halted(&client, &vm);
}

#[test]
fn a_source_that_could_be_written_is_refused_and_the_pool_can_read_why() {
    let lab = lab();
    let client = lab.login();
    let (disk, bytes) = source(&client);
    let orchestrator = Orchestrator::new(lab.dir.path(), backup());
    let vm = delegate(&client, &disk, "RW", &orchestrator.keys());
    client.call("VM.start", json!([vm, false, false]));
    orchestrator.job.admit(key_of(&client, &vm)).unwrap();
    let left = wait_halted(&client, &vm);
    assert_eq!(
        (&left["vm-data/abd/state"][..], &left["vm-data/abd/error-code"][..]),
        ("failed", "disk-writable")
    );
    assert!(left["vm-data/abd/error"].contains("userdevice 4 is writable"), "{left:?}");
    assert!(client.read(&disk, 0, SIZE as u64) == bytes);
}

#[test]
fn wrong_settings_end_a_delegate_with_the_code_that_pid_1_gives() {
    let lab = lab();
    let client = lab.login();
    let (disk, _) = source(&client);
    let vm = delegate(
        &client,
        &disk,
        "RO",
        &json!({"vm-data/abd/version": VERSION.to_string(), "vm-data/abd/job": "no uuid"}),
    );
    client.call("VM.start", json!([vm, false, false]));
    let left = wait_halted(&client, &vm);
    assert_eq!(
        (&left["vm-data/abd/state"][..], &left["vm-data/abd/error-code"][..]),
        ("failed", "bad-config")
    );
}

#[test]
fn without_a_cable_a_delegate_says_so_and_ends() {
    let lab = lab();
    let client = lab.login();
    let (disk, _) = source(&client);
    let orchestrator = Orchestrator::new(lab.dir.path(), backup());
    lab.control().json("POST", "/lab/faults", Some(&json!({"dhcp": false}))).unwrap();
    let vm = delegate(&client, &disk, "RO", &orchestrator.keys());
    client.call("VM.start", json!([vm, false, false]));
    let left = wait_halted(&client, &vm);
    assert_eq!((&left["vm-data/abd/state"][..], &left["vm-data/abd/error-code"][..]), ("failed", "no-link"));
}

#[test]
fn a_pulled_cable_holds_a_job_up_and_a_plugged_one_lets_it_go_on() {
    let lab = lab();
    let client = lab.login();
    let (disk, _) = source(&client);
    let orchestrator = Orchestrator::new(lab.dir.path(), backup());
    let vm = delegate(&client, &disk, "RO", &orchestrator.keys());
    let link = |up: u8| lab.control().json("POST", &format!("/lab/guest/{vm}/link?up={up}"), None).unwrap();
    client.call("VM.start", json!([vm, false, false]));
    let key = key_of(&client, &vm);
    let console = |text: &str| {
        let by = Instant::now() + PATIENCE;
        let uuid = client.text("VM.get_uuid", json!([vm]));
        loop {
            let said = lab.control().bytes("GET", &format!("/lab/guest/{uuid}/console"), &[]).unwrap();
            if String::from_utf8_lossy(&said).contains(text) {
                return;
            }
            assert!(Instant::now() < by, "the console does not say {text:?}");
            std::thread::yield_now();
        }
    };
    link(0);
    console("link is down");
    orchestrator.job.admit(key).unwrap();
    let claimed = orchestrator.runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(100), orchestrator.job.events().recv()).await
    });
    assert!(claimed.is_err(), "{claimed:?} came through a pulled cable");
    link(1);
    console("link is up");
    assert_eq!(wait_halted(&client, &vm)["vm-data/abd/state"], "finished");
}

#[test]
fn a_delegate_can_be_paused_killed_and_shut_down() {
    let lab = lab();
    let client = lab.login();
    let (disk, _) = source(&client);
    let orchestrator = Orchestrator::new(lab.dir.path(), backup());
    let vm = delegate(&client, &disk, "RO", &orchestrator.keys());
    // Its key is never admitted, so it waits.
    client.call("VM.start", json!([vm, false, false]));
    key_of(&client, &vm);
    client.call("VM.pause", json!([vm]));
    client.call("VM.unpause", json!([vm]));
    lab.control().json("POST", &format!("/lab/guest/{vm}/kill"), None).unwrap();
    assert_eq!(client.text("VM.get_power_state", json!([vm])), "Halted");
    let end = wait_for_log(&lab, |e| e["kind"] == "guest-exit");
    assert_eq!(end["description"], "the delegate was killed (signal 9)");

    client.call("VM.set_xenstore_data", json!([vm, orchestrator.keys()]));
    client.call("VM.start", json!([vm, false, false]));
    key_of(&client, &vm);
    client.call("VM.clean_shutdown", json!([vm]));
    let left = data(&client, &vm);
    assert_eq!((&left["vm-data/abd/state"][..], &left["vm-data/abd/error-code"][..]), ("failed", "shutdown"));

    client.call("VM.set_xenstore_data", json!([vm, orchestrator.keys()]));
    client.call("VM.start", json!([vm, true, false]));
    assert_eq!(client.text("VM.get_power_state", json!([vm])), "Paused");
    client.call("VM.hard_shutdown", json!([vm]));
    assert_eq!(client.text("VM.get_power_state", json!([vm])), "Halted");
    let vbds = client.call("VM.get_VBDs", json!([vm]));
    for vbd in vbds.as_array().unwrap() {
        assert_eq!(client.call("VBD.get_currently_attached", json!([vbd])), false);
    }
}

#[test]
fn a_delegate_dies_with_a_simulator_that_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let port_file = dir.path().join("ports.json");
    let mut simulator = Command::new(PROGRAM)
        .args(["serve", "--delegates", "process", "--dir"])
        .arg(dir.path().join("pool"))
        .arg("--port-file")
        .arg(&port_file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let by = Instant::now() + PATIENCE;
    let ports: Ports = loop {
        if let Ok(text) = std::fs::read_to_string(&port_file) {
            break serde_json::from_str(&text).unwrap();
        }
        assert!(Instant::now() < by, "the simulator does not start");
        std::thread::yield_now();
    };
    let call = |method: &str, params: Value| {
        let body = json!({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).to_string();
        let answer = crate::support::exchange(ports.http, "POST", "/jsonrpc", &[], body.as_bytes());
        let reply: Value = serde_json::from_slice(&answer.body).unwrap();
        reply.get("result").cloned().unwrap_or_else(|| panic!("{method}: {reply}"))
    };
    let session = call("session.login_with_password", json!(["root", "password"]));
    let control = LabClient::new(ports.lab);
    let wanted = json!({"name": "abd-job", "disks": [{"name": "boot", "size": 1 << 20}]});
    let vm = control.json("POST", "/lab/vm", Some(&wanted)).unwrap()["ref"].clone();
    call("VM.remove_from_other_config", json!([session, vm, "lab:guest"]));
    call("VM.add_to_other_config", json!([session, vm, "abd:template", "0.1.0"]));
    // It finds nobody at that address and goes on looking.
    let keys = json!({"vm-data/abd/version": VERSION.to_string(), "vm-data/abd/job": JOB, "vm-data/abd/url": "https://10.0.2.2:1",
        "vm-data/abd/orchestrator-key": "00".repeat(32)});
    call("VM.set_xenstore_data", json!([session, vm, keys]));
    call("VM.start", json!([session, vm, false, false]));
    let log = control.lines("/lab/log").unwrap();
    let started = log.iter().find(|e| e["kind"] == "guest-start").unwrap();
    let process = format!("/proc/{}", started["pid"]);
    assert!(Path::new(&process).exists());
    simulator.kill().unwrap();
    simulator.wait().unwrap();
    // Reaped by whoever adopts it; until then it is there without memory.
    let is_alive =
        || std::fs::read_to_string(format!("{process}/cmdline")).is_ok_and(|text| !text.is_empty());
    while is_alive() {
        assert!(Instant::now() < by, "the delegate outlives the simulator");
        std::thread::yield_now();
    }
}
