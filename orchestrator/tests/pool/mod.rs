//! A simulated pool with our template in it, a state directory, and what a job makes, step by step.

// Each test program uses its own part.
#![allow(dead_code, unreachable_pub)]

use abd_orchestrator::cleanup::{delegate_name, snapshot_name};
use abd_orchestrator::config::{PoolConfig, State};
use abd_orchestrator::journal::{Entry, Journal};
use abd_orchestrator::pool::{Pool, TAG_DELEGATE, TAG_JOB, TAG_OWNER, TAG_SELF};
use abd_orchestrator::reconcile;
use abd_orchestrator::retry::Waits;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;
use xapi::{Class, Ref, Upload, Uuid, Vbd, VbdCreate, VbdMode, VbdType, Vdi, Vm};
use xapi_sim::{Config, LabClient, Simulator};

/// Longest that a test waits for anything.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Lab {
    pub simulator: Simulator,
    pub control: LabClient,
    pub state: State,
    pub pool: Pool,
    pub template: Ref<Vm>,
    _folder: tempfile::TempDir,
}

impl Lab {
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = Config::new(folder.path().join("sim"));
        config.data_destroy_wait = Duration::from_millis(50);
        change(&mut config);
        let simulator = Simulator::start(config).await.expect("simulator");
        let ports = simulator.ports().clone();
        let certificates = ["127.0.0.1", "127.0.0.2"]
            .map(|host| (format!("{host}:{}", ports.https), ports.fingerprint.clone()));
        let mut config = PoolConfig {
            name: "lab".into(),
            uuid: String::new(),
            endpoint: format!("https://127.0.0.1:{}", ports.https),
            user: ports.user.clone(),
            password_file: Some(ports.password_file.clone()),
            certificates: BTreeMap::from(certificates),
            advertise: None,
            listen: None,
            networks: Vec::new(),
            keep_idle: 0,
            keep_idle_for_s: 0,
        };
        let state = State::open(folder.path().join("state")).expect("state");
        let found = Pool::connect(&state, config.clone()).await.map(drop).expect_err("no uuid is recorded");
        let text = found.chain();
        config.uuid =
            text.split("answers pool ").nth(1).expect("named").split(',').next().expect("uuid").to_owned();
        let mut pool = Pool::connect(&state, config).await.expect("connected");
        pool.waits = Waits {
            detach: Duration::from_secs(4),
            host_away: Duration::from_secs(1),
            tasks: Duration::from_secs(1),
        };
        let made = pool.client.import_xva(Upload::bytes(template()), None, |_| {}).await.expect("imported");
        let control = LabClient::new(ports.lab);
        Self { simulator, control, state, pool, template: made[0].clone(), _folder: folder }
    }

    /// A request to the control port.
    pub fn ask(&self, method: &str, path: &str, body: Option<Json>) -> Json {
        tokio::task::block_in_place(|| self.control.json(method, path, body.as_ref())).expect("control port")
    }

    pub fn fault(&self, fault: Json) {
        self.ask("POST", "/lab/faults", Some(fault));
    }

    /// Uuids of all VMs and VDIs.
    pub fn everything(&self) -> Vec<String> {
        let inventory = self.ask("GET", "/lab/inventory", None);
        let mut uuids = Vec::new();
        for class in ["VM", "VDI"] {
            for item in inventory[class].as_array().expect("a list") {
                uuids.push(format!("{class} {}", item["uuid"].as_str().expect("uuid")));
            }
        }
        uuids.sort();
        uuids
    }

    /// Calls that changed something since the last time.
    pub fn calls(&self, method: &str) -> usize {
        let log = tokio::task::block_in_place(|| self.control.lines("/lab/calls")).expect("log");
        log.iter().filter(|call| call["method"] == method).count()
    }

    /// A user's VM with one disk.
    pub async fn user_vm(&self, name: &str) -> (Ref<Vm>, Ref<Vdi>) {
        let wanted = json!({"name": name, "disks": [{"name": "root", "size": 1 << 20}]});
        let made = self.ask("POST", "/lab/vm", Some(wanted));
        let uuid: Uuid = made["vdis"][0].as_str().expect("uuid").parse().expect("uuid");
        let vdi = self.pool.client.get_by_uuid(&uuid).await.expect("the disk");
        let found = self.pool.client.get_by_name_label(name).await.expect("by name");
        (found[0].clone(), vdi)
    }

    /// The journal of a job that was killed.
    pub fn journal(&self, job: &str, entries: &[Entry]) {
        let started = Entry::Started {
            job: job.to_owned(),
            pool: "lab".into(),
            pool_uuid: self.pool.config.uuid.clone(),
            subject: "x".into(),
        };
        let journal = Journal::start(&self.state.journal_directory(), job, &started).expect("journal");
        for entry in entries {
            journal.write(entry).expect("written");
        }
    }

    /// What `abd reconcile` does.
    pub async fn reconcile(&self) -> reconcile::Outcome {
        tokio::time::timeout(LIMIT, reconcile::run(&self.state, &self.pool))
            .await
            .expect("in time")
            .expect("reconciled")
    }

    pub async fn record<T: Class>(&self, object: &Ref<T>) -> T {
        self.pool.client.get_record(object).await.expect("it exists")
    }

    pub async fn is_there<T: Class>(&self, object: &Ref<T>) -> bool {
        match self.pool.client.get_record(object).await {
            Ok(_) => true,
            Err(error) if *error.kind() == xapi::Kind::HandleInvalid => false,
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn disk_at(&self, vm: &Ref<Vm>, userdevice: &str) -> Ref<Vdi> {
        for vbd in self.record(vm).await.vbds {
            let vbd: Vbd = self.record(&vbd).await;
            if vbd.userdevice == userdevice {
                return vbd.vdi;
            }
        }
        panic!("nothing at {userdevice}")
    }

    pub async fn attach(&self, vm: &Ref<Vm>, vdi: &Ref<Vdi>, userdevice: u32) -> Ref<Vbd> {
        let vbd = VbdCreate {
            vm: vm.clone(),
            vdi: vdi.clone(),
            userdevice,
            bootable: false,
            mode: VbdMode::ReadOnly,
            kind: VbdType::Disk,
            other_config: Default::default(),
        };
        self.pool.client.vbd_create(&vbd).await.expect("attached")
    }

    /// Tags an object as a job does, but only with the first `count` tags.
    pub async fn tag<T: Class>(
        &self,
        object: &Ref<T>,
        uuid: &Uuid,
        job: &str,
        of_delegate: bool,
        count: usize,
    ) {
        let mut tags = vec![(TAG_SELF, uuid.as_str()), (TAG_OWNER, self.pool.owner.as_str())];
        if of_delegate {
            tags.push((TAG_DELEGATE, job));
        }
        tags.push((TAG_JOB, job));
        for (key, value) in tags.into_iter().take(count) {
            self.pool.client.add_to_other_config(object, key, value).await.expect("tagged");
        }
    }

    /// A complete delegate with its disk, not started, and its journal entries.
    pub async fn delegate(&self, job: &str) -> (Ref<Vm>, Ref<Vdi>, Vec<Entry>) {
        let name = delegate_name(job);
        let vm = self.pool.client.vm_clone(&self.template, &name).await.expect("cloned");
        let record = self.record(&vm).await;
        self.tag(&vm, &record.uuid, job, false, 3).await;
        let boot = self.disk_at(&vm, "0").await;
        let disk = self.record(&boot).await;
        self.tag(&boot, &disk.uuid, job, true, 4).await;
        self.pool.client.vm_provision(&vm).await.expect("provisioned");
        let keys = [(wire::KEY_JOB.to_owned(), job.to_owned())].into();
        self.pool.client.vm_set_xenstore_data(&vm, &keys).await.expect("keys");
        let entries = vec![
            Entry::DelegateIntent { name },
            Entry::Delegate { uuid: record.uuid.to_string(), vdis: vec![disk.uuid.to_string()] },
        ];
        (vm, boot, entries)
    }

    /// A complete snapshot with its disk, and its journal entries.
    pub async fn snapshot(&self, job: &str, of: &Ref<Vm>) -> (Ref<Vm>, Ref<Vdi>, Vec<Entry>) {
        let name = snapshot_name(job);
        let source = self.record(of).await.uuid.to_string();
        let vm = self.pool.client.vm_snapshot(of, &name, &[]).await.expect("snapshot");
        let record = self.record(&vm).await;
        self.tag(&vm, &record.uuid, job, false, 3).await;
        let vdi = self.disk_at(&vm, "0").await;
        let disk = self.record(&vdi).await;
        self.tag(&vdi, &disk.uuid, job, false, 3).await;
        let entries = vec![
            Entry::SnapshotIntent { vm: source, name },
            Entry::Snapshot { uuid: record.uuid.to_string(), vdis: vec![disk.uuid.to_string()] },
        ];
        (vm, vdi, entries)
    }
}

fn template() -> Vec<u8> {
    let mut appliance = xva::Appliance::new("Agentless backup delegate", "0.1.0");
    // The simulator starts it without a process.
    appliance.other_config.insert("lab:guest".to_owned(), "none".to_owned());
    let mut image = Cursor::new(vec![0x5a; 1 << 20]);
    let plan = xva::Plan::new(&appliance, &mut image).expect("plan");
    let mut file = Vec::new();
    plan.write(&mut image, &mut file).expect("written");
    file
}

pub fn job() -> String {
    uuid::Uuid::new_v4().to_string()
}
