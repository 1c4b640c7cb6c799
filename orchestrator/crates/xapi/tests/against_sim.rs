//! The client against the simulator, which shares no encoder with it: every call of a backup job, on several
//! releases, in both encodings, and what the simulator's faults make of it.

use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value as Json, json};
use xapi::{
    Client, Credentials, Effect, Event, Kind, MemoryLimits, Network, Operation, Options, PowerState,
    Protocol, Ref, Secret, Sr, Upload, Uuid, VbdCreate, VbdMode, VbdType, Vdi, VdiCreate, VdiType, VifCreate,
    Vm,
};
use xapi_sim::{Config, LabClient, Simulator};

/// Size of the sample's disks: not a multiple of the tracked 64 KiB.
const DISK_BYTES: u64 = (3 << 20) + 5 * 512;

struct Lab {
    simulator: Simulator,
    lab: LabClient,
    _folder: tempfile::TempDir,
}

impl Lab {
    async fn start(flavour: &str, json: bool) -> Self {
        Self::with(flavour, json, 1).await
    }

    async fn with(flavour: &str, json: bool, hosts: usize) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let mut config = Config::new(folder.path());
        config.flavour = xapi_sim::Flavour::by_name(flavour).expect("a release");
        config.json &= json;
        config.hosts = hosts;
        config.data_destroy_wait = Duration::from_millis(100);
        let simulator = Simulator::start(config).await.expect("simulator");
        let lab = LabClient::new(simulator.ports().lab);
        Self { simulator, lab, _folder: folder }
    }

    fn options(&self) -> Options {
        let ports = self.simulator.ports();
        let password = std::fs::read_to_string(&ports.password_file).expect("password");
        let endpoint = format!("https://127.0.0.1:{}", ports.https).parse().expect("address");
        let mut options = Options::new(
            endpoint,
            Credentials::Password { user: ports.user.clone(), password: Secret::new(password) },
        );
        let pin = ports.fingerprint.parse().expect("fingerprint");
        options.pins = Arc::new(move |_: &str| Some(pin));
        options.task_tags.insert("abd:owner".to_owned(), "test".to_owned());
        options
    }

    async fn client(&self) -> Client {
        Client::connect(self.options()).await.expect("login")
    }

    /// A request to the control port.
    fn ask(&self, method: &str, path: &str, body: Option<Json>) -> Json {
        tokio::task::block_in_place(|| self.lab.json(method, path, body.as_ref())).expect("control port")
    }

    fn inventory(&self) -> Json {
        self.ask("GET", "/lab/inventory", None)
    }

    fn fault(&self, fault: Json) {
        self.ask("POST", "/lab/faults", Some(fault));
    }

    fn write(&self, vdi: &Uuid, offset: u64, bytes: &[u8]) {
        let path = format!("/lab/vdi/{vdi}?offset={offset}");
        tokio::task::block_in_place(|| self.lab.bytes("PUT", &path, bytes)).expect("control port");
    }

    /// A VM with two disks and a fresh reference to it.
    async fn sample(&self, client: &Client, cbt: bool, running: bool) -> (Ref<Vm>, Vec<Ref<Vdi>>) {
        let disks = json!([{"name": "root", "size": DISK_BYTES}, {"name": "data", "size": 1 << 20}]);
        let wanted = json!({"name": "web01", "disks": disks, "cbt": cbt, "running": running});
        let made = self.ask("POST", "/lab/vm", Some(wanted));
        let mut vdis = Vec::new();
        for uuid in made["vdis"].as_array().expect("vdis") {
            let uuid: Uuid = uuid.as_str().expect("uuid").parse().expect("uuid");
            vdis.push(client.get_by_uuid(&uuid).await.expect("the disk"));
        }
        let vms = client.get_by_name_label("web01").await.expect("by name");
        let [vm] = &vms[..] else { panic!("{vms:?}") };
        (vm.clone(), vdis)
    }
}

fn template_xva() -> Vec<u8> {
    let mut appliance = xva::Appliance::new("abd template", "0.1.0");
    // The simulator starts it without a process.
    appliance.other_config.insert("lab:guest".to_owned(), "none".to_owned());
    let mut image = Cursor::new(vec![0x5a; 3 << 20]);
    let plan = xva::Plan::new(&appliance, &mut image).expect("plan");
    let mut file = Vec::new();
    plan.write(&mut image, &mut file).expect("write");
    file
}

async fn local_sr(client: &Client) -> Ref<Sr> {
    let srs = client.get_all_records::<Sr>().await.expect("storage");
    let usable = |sr: &&Sr| sr.content_type != "iso" && !sr.pbds.is_empty() && sr.physical_size > 0;
    srs.iter().find(|(_, sr)| usable(sr)).map(|(sr, _)| sr.clone()).expect("a local storage repository")
}

fn halted(vm: &Vm) -> bool {
    vm.power_state == PowerState::Halted
}

const MINUTE: Duration = Duration::from_secs(60);

/// Snapshot disks of a VM, in the order of the live ones.
async fn snapshot_disks(client: &Client, snapshot: &Ref<Vm>, live: &[Ref<Vdi>]) -> Vec<Ref<Vdi>> {
    let vdis = client.get_all_records::<Vdi>().await.expect("disks");
    let record = client.get_record(snapshot).await.expect("the snapshot");
    assert!(record.is_a_snapshot);
    let found = |of: &Ref<Vdi>| {
        let fits = |(_, vdi): &(&Ref<Vdi>, &Vdi)| {
            vdi.snapshot_of == *of && vdi.vbds.iter().any(|vbd| record.vbds.contains(vbd))
        };
        vdis.iter().find(fits).map(|(vdi, _)| vdi.clone()).expect("a snapshot of the disk")
    };
    live.iter().map(found).collect()
}

/// Everything that a job does in a pool, from the import of the template to the last trace removed.
async fn a_whole_job(flavour: &str, json: bool) {
    let lab = Lab::start(flavour, json).await;
    let client = lab.client().await;
    let expected = if json { Protocol::Json } else { Protocol::Xml };
    assert_eq!(client.protocol().await, Some(expected), "{flavour}");
    let (vm, disks) = lab.sample(&client, true, true).await;
    let sr = local_sr(&client).await;
    let templates =
        client.import_xva(Upload::bytes(template_xva()), Some(&sr), |_| {}).await.expect("import");
    let [template] = &templates[..] else { panic!("{templates:?}") };
    let record = client.get_record(template).await.expect("the template");
    assert!(record.is_a_template && record.other_config[xva::TEMPLATE_KEY] == "0.1.0", "{record:?}");
    let before = lab.inventory();

    // The reference of an earlier run, then changes.
    let first = client.vm_snapshot(&vm, "first", &[]).await.expect("snapshot");
    let first_disks = snapshot_disks(&client, &first, &disks).await;
    let root = client.get_record(&disks[0]).await.expect("disk");
    lab.write(&root.uuid, 65536 + 5, b"changed");
    lab.write(&root.uuid, DISK_BYTES - 3, b"end");

    let second = client.vm_snapshot(&vm, "abd-job-snapshot", &disks[1..]).await.expect("snapshot");
    client.add_to_other_config(&second, "abd:job", "1").await.expect("tag");
    client.add_to_other_config(&second, "abd:job", "2").await.expect("another tag");
    client.set_other_config_once(&second, "abd:job", "3").await.expect("no error, and no change");
    client.set_other_config_once(&second, "abd:ticket", "1").await.expect("a number");
    client.set_other_config_once(&second, "abd:ticket", "2").await.expect("no error, and no change");
    let tags = client.get_record(&second).await.expect("record").other_config;
    assert_eq!((tags["abd:job"].as_str(), tags["abd:ticket"].as_str()), ("2", "1"));
    let second_disks = snapshot_disks(&client, &second, &disks[..1]).await;
    let bitmap = client.vdi_list_changed_blocks(&first_disks[0], &second_disks[0]).await.expect("bitmap");
    // 49 blocks of 64 KiB: block 1 and the last one, number 48.
    assert_eq!(bitmap, [0x40, 0, 0, 0, 0, 0, 0x80], "{flavour}");
    let error =
        client.vdi_list_changed_blocks(&second_disks[0], &first_disks[0]).await.expect_err("wrong order");
    assert_eq!(error.code(), "SR_BACKEND_FAILURE_460");

    // The appliance.
    let clone = client.vm_clone(template, "abd-job").await.expect("clone");
    client.add_to_other_config(&clone, "abd:job", "1").await.expect("tag");
    client.vm_provision(&clone).await.expect("provision");
    client.vm_set_memory_limits(&clone, MemoryLimits::fixed(128 << 20)).await.expect("memory");
    client.vm_set_vcpus(&clone, 2).await.expect("more CPUs");
    client.vm_set_vcpus(&clone, 1).await.expect("fewer CPUs");
    client.vm_set_tags(&clone, &["abd"]).await.expect("tags");
    client.set_name_description(&clone, "backs up web01").await.expect("description");
    let vbd = VbdCreate {
        vm: clone.clone(),
        vdi: second_disks[0].clone(),
        userdevice: 4,
        bootable: false,
        mode: VbdMode::ReadOnly,
        kind: VbdType::Disk,
        other_config: [("abd:job".to_owned(), "1".to_owned())].into(),
    };
    let vbd_ref = client.vbd_create(&vbd).await.expect("drive");
    let error = client.vbd_create(&vbd).await.expect_err("the position is taken");
    assert_eq!((error.kind(), error.code()), (&Kind::BadState, "DEVICE_ALREADY_EXISTS"));
    let record = client.get_record(&vbd_ref).await.expect("drive");
    assert_eq!((record.userdevice.as_str(), &record.mode, &record.vdi), ("4", &VbdMode::ReadOnly, &vbd.vdi));
    let networks = client.get_all_records::<Network>().await.expect("networks");
    let network = networks.keys().next().expect("a network").clone();
    let vif = VifCreate {
        vm: clone.clone(),
        network,
        device: 0,
        mac: String::new(),
        mtu: 1500,
        other_config: Default::default(),
    };
    client.vif_create(&vif).await.expect("adapter");
    let entries = [("vm-data/abd/version".to_owned(), "1".to_owned())].into();
    client.vm_set_xenstore_data(&clone, &entries).await.expect("xenstore data");
    let record = client.get_record(&clone).await.expect("clone");
    assert_eq!((record.memory_static_max, record.memory_dynamic_min), (128 << 20, 128 << 20));
    assert_eq!((record.vcpus_max, record.vcpus_at_startup, record.is_a_template), (1, 1, false));
    assert_eq!((record.vifs.len(), record.vbds.len(), &record.xenstore_data), (1, 2, &entries));

    let hosts = client.vm_get_possible_hosts(&clone).await.expect("hosts");
    let waiter = {
        let (client, clone) = (client.clone(), clone.clone());
        let running = |vm: &Vm| vm.power_state == PowerState::Running;
        tokio::spawn(async move { client.wait_vm(&clone, running, MINUTE).await })
    };
    client.vm_start_on(&clone, &hosts[0]).await.expect("start");
    let running = waiter.await.expect("no panic").expect("running");
    assert_eq!(running.resident_on, hosts[0]);
    let error = client.vm_start(&clone).await.expect_err("it runs");
    assert_eq!((error.kind(), error.code()), (&Kind::BadState, "VM_BAD_POWER_STATE"));
    let error =
        client.vdi_list_changed_blocks(&first_disks[0], &second_disks[0]).await.expect_err("attached");
    assert_eq!((error.kind(), error.is_retryable()), (&Kind::InUse, true));
    let error = client.vbd_destroy(&vbd_ref).await.expect_err("attached");
    assert_eq!(error.kind(), &Kind::BadState);

    client.vm_hard_shutdown(&clone).await.expect("off");
    client.wait_vm(&clone, halted, MINUTE).await.expect("halted");
    let boot = client.get_all_records::<xapi::Vbd>().await.expect("drives");
    let boot =
        boot.values().find(|vbd| vbd.vm == clone && vbd.userdevice == "0").expect("boot drive").vdi.clone();
    client.vbd_destroy(&vbd_ref).await.expect("drive removed");
    client.vm_destroy(&clone).await.expect("clone removed");
    client.vdi_destroy(&boot).await.expect("boot disk removed");
    let error = client.get_record(&clone).await.expect_err("gone");
    assert_eq!(error.kind(), &Kind::HandleInvalid);

    // The old snapshot goes, the new one's log stays and then goes as well.
    let error = client.vdi_data_destroy(&second_disks[0]).await.expect_err("its VM is still there");
    assert_eq!(error.kind(), &Kind::InUse);
    let mut all_second = disk_refs(&client, &second).await;
    client.vm_destroy(&second).await.expect("snapshot VM removed");
    client.vdi_data_destroy(&second_disks[0]).await.expect("data removed");
    let record = client.get_record(&second_disks[0]).await.expect("the log");
    assert_eq!((record.kind, record.cbt_enabled), (VdiType::CbtMetadata, true));
    let bitmap =
        client.vdi_list_changed_blocks(&first_disks[0], &second_disks[0]).await.expect("still listed");
    assert_eq!(bitmap[0], 0x40);
    client.vm_destroy(&first).await.expect("first snapshot removed");
    all_second.extend(first_disks);
    for vdi in all_second {
        client.vdi_destroy(&vdi).await.expect("disk removed");
    }
    assert_eq!(lab.inventory(), before, "{flavour}: something is left");
    client.close().await.expect("logout");
    let after = lab.inventory();
    assert_eq!(after["session"].as_array().map(Vec::len), Some(0), "{after}");
    assert_eq!(after["task"].as_array().map(Vec::len), Some(0), "{after}");
    lab.simulator.shutdown().await;
}

async fn disk_refs(client: &Client, vm: &Ref<Vm>) -> Vec<Ref<Vdi>> {
    let vbds = client.get_all_records::<xapi::Vbd>().await.expect("drives");
    vbds.values().filter(|vbd| vbd.vm == *vm && !vbd.vdi.is_null()).map(|vbd| vbd.vdi.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_job_on_xcp_ng_8_3() {
    a_whole_job("xcp-8.3", true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_job_on_xenserver_7_3_in_xml() {
    a_whole_job("xs-7.3", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_the_local_socket() {
    let lab = Lab::start("xcp-8.3", true).await;
    let ports = lab.simulator.ports().clone();
    let options = lab.options();
    let found = xapi::probe(&options.endpoint).await.expect("certificate");
    assert_eq!(found, ports.fingerprint.parse().expect("fingerprint"));
    let mut unpinned = options.clone();
    unpinned.pins = Arc::new(|_: &str| None);
    let error = Client::connect(unpinned).await.expect_err("not pinned");
    assert_eq!(error.kind(), &Kind::TlsUntrusted { address: options.endpoint.address(), found });

    let socket = ports.socket.display().to_string().parse().expect("a path");
    let client = Client::connect(Options::new(socket, Credentials::Local)).await.expect("no password needed");
    let (_, pool) = client.pool().await.expect("pool");
    assert!(!client.get_record(&pool.master).await.expect("host").software_version.is_empty());
    let sr = local_sr(&client).await;
    let made =
        client.import_xva(Upload::bytes(template_xva()), Some(&sr), |_| {}).await.expect("over the socket");
    assert_eq!(made.len(), 1);
    client.close().await.expect("logout");

    let mut wrong = options;
    wrong.credentials = Credentials::Password { user: "root".to_owned(), password: Secret::new("wrong") };
    assert_eq!(Client::connect(wrong).await.expect_err("refused").kind(), &Kind::Auth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_without_tracking_export_their_differences() {
    for flavour in ["xs-6.5", "xs-7.2"] {
        let lab = Lab::start(flavour, true).await;
        let client = lab.client().await;
        let (vm, disks) = lab.sample(&client, false, false).await;
        let error = client.vdi_enable_cbt(&disks[0]).await.expect_err("no tracking");
        assert_eq!(
            (error.kind(), error.code()),
            (&Kind::NotSupported, "MESSAGE_METHOD_UNKNOWN"),
            "{flavour}"
        );
        let root = client.get_record(&disks[0]).await.expect("disk");
        lab.write(&root.uuid, 0, b"old");
        let first = client.vm_snapshot(&vm, "first", &disks[1..]).await.expect("snapshot");
        lab.write(&root.uuid, (2 << 20) + 17, b"new");
        let second = client.vm_snapshot(&vm, "second", &[]).await.expect("snapshot");
        let first = snapshot_disks(&client, &first, &disks[..1]).await;
        let second = snapshot_disks(&client, &second, &disks[..1]).await;
        let head = client.export_vdi_vhd_head(&second[0], Some(&first[0])).await.expect("a head");
        assert_eq!((head.disk_bytes, head.block_bytes), (DISK_BYTES, 2 << 20), "{flavour}");
        assert!(head.differencing);
        assert_eq!(head.blocks, [1], "{flavour}");
        let head = client.export_vdi_vhd_head(&second[0], None).await.expect("a head");
        assert!(!head.differencing && head.blocks.contains(&1), "{head:?}");
        client.close().await.expect("logout");
        assert_eq!(lab.inventory()["task"].as_array().map(Vec::len), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_tell_what_happens() {
    let lab = Lab::start("xcp-8.3", true).await;
    let client = lab.client().await;
    let sr = local_sr(&client).await;
    let mut events = client.events(&["vdi"]);
    let vdi = client.vdi_create(&VdiCreate::new("fresh", sr, 1 << 20)).await.expect("disk");
    let name = |event: &Event| match event {
        Event::Changed(change) => change.as_record::<Vdi>().map(|vdi| vdi.expect("readable")),
        Event::Resync => None,
    };
    while !matches!(name(&events.next().await.expect("event")), Some((found, _)) if found == vdi) {}
    client.set_name_label(&vdi, "renamed").await.expect("rename");
    while !matches!(name(&events.next().await.expect("event")), Some((_, record)) if record.name_label == "renamed")
    {
    }
    client.vdi_destroy(&vdi).await.expect("destroyed");
    let gone = |event: &Event| match event {
        Event::Changed(change) => change.operation == Operation::Del && change.reference == vdi.as_str(),
        Event::Resync => false,
    };
    while !gone(&events.next().await.expect("event")) {}
    client.close().await.expect("logout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_become_the_right_errors() {
    let lab = Lab::start("xcp-8.3", true).await;
    let client = lab.client().await;
    let (vm, disks) = lab.sample(&client, true, false).await;
    let before = lab.inventory();

    lab.fault(json!({"method": "VM.snapshot", "error": ["SR_BACKEND_FAILURE_44", "", "no space", ""]}));
    let error = client.vm_snapshot(&vm, "x", &[]).await.expect_err("full");
    assert_eq!((error.kind(), error.method()), (&Kind::NoSpace, "VM.snapshot"));
    lab.fault(json!({"method": "VM.get_record", "error": ["SESSION_INVALID", "OpaqueRef:x"]}));
    assert_eq!(client.get_record(&vm).await.expect("read again").name_label, "web01");
    lab.fault(json!({"method": "VM.get_record", "drop": true}));
    assert_eq!(client.get_record(&vm).await.expect("read again").name_label, "web01");
    lab.fault(json!({"method": "VDI.resize", "drop": true}));
    let error = client.vdi_resize(&disks[0], 8 << 20).await.expect_err("a change is sent once");
    assert_eq!(error.kind(), &Kind::Unreachable);
    lab.ask("POST", "/lab/faults", Some(json!({"cbt_licensed": false})));
    assert_eq!(client.vdi_enable_cbt(&disks[0]).await.expect_err("licence").kind(), &Kind::License);
    lab.fault(json!({"method": "session.login_with_password", "error": ["HOST_IS_SLAVE", "127.0.0.1"]}));
    lab.client().await.close().await.expect("the master was found");

    let sr = local_sr(&client).await;
    let mut broken = template_xva();
    let middle = broken.len() / 2;
    broken[middle] ^= 1;
    let error = client.import_xva(Upload::bytes(broken), Some(&sr), |_| {}).await.expect_err("a flipped bit");
    assert_eq!(error.code(), "IMPORT_ERROR_SOME_CHECKSUMS_FAILED", "{error}");
    let mut short = template_xva();
    short.truncate(1_500_000);
    assert!(client.import_xva(Upload::bytes(short), Some(&sr), |_| {}).await.is_err());
    // Whatever the connection says: the task succeeds, so the import did.
    lab.fault(json!({"method": "PUT /import", "page_in_body": true}));
    let made = client.import_xva(Upload::bytes(template_xva()), Some(&sr), |_| {}).await.expect("imported");
    let boot = disk_refs(&client, &made[0]).await;
    client.vm_destroy(&made[0]).await.expect("removed");
    client.vdi_destroy(&boot[0]).await.expect("removed");
    lab.fault(json!({"method": "PUT /import", "redirect": ""}));
    let error =
        client.import_xva(Upload::bytes(template_xva()), Some(&sr), |_| {}).await.expect_err("leads nowhere");
    assert_eq!(error.kind(), &Kind::Protocol, "{error}");

    // A login of its own makes the sessions differ by nothing but their references.
    let leftovers =
        |inventory: Json| [inventory["VM"].clone(), inventory["VDI"].clone(), inventory["task"].clone()];
    assert_eq!(leftovers(lab.inventory()), leftovers(before));
    client.close().await.expect("logout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_image_is_written_into_a_disk() {
    let lab = Lab::start("xcp-8.3", true).await;
    let client = lab.client().await;
    let sr = local_sr(&client).await;
    let vdi = client.vdi_create(&VdiCreate::new("restored", sr, 2 << 20)).await.expect("disk");
    let image: Vec<u8> = (0..2_u32 << 20).map(|index| (index / 4096 % 251) as u8).collect();
    client.import_raw_vdi(Upload::bytes(image.clone()), &vdi, |_| {}).await.expect("written");
    let uuid = client.get_record(&vdi).await.expect("disk").uuid;
    let path = format!("/lab/vdi/{uuid}?offset=0&length={}", image.len());
    let read = tokio::task::block_in_place(|| lab.lab.bytes("GET", &path, &[])).expect("read");
    assert!(read == image, "the disk differs");
    client.close().await.expect("logout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_changes_in_the_middle_is_followed() {
    let lab = Lab::with("xcp-8.3", true, 2).await;
    let client = lab.client().await;
    client.learn_pool().await.expect("members");
    let (vm, disks) = lab.sample(&client, true, false).await;
    // Tasks wait until they are told to run.
    lab.ask("POST", "/lab/step?on=1", None);
    let while_waiting = async |fate: &str| {
        while lab.ask("GET", "/lab/step", None)["waiting"].as_array().is_none_or(Vec::is_empty) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lab.ask("POST", fate, None);
        lab.ask("POST", "/lab/step", None);
    };

    // The task goes on when the session of its client ends.
    let (snapshot, ()) =
        tokio::join!(client.vm_snapshot(&vm, "first", &[]), while_waiting("/lab/sessions/drop"));
    assert!(client.get_record(&snapshot.expect("taken")).await.expect("there").is_a_snapshot);

    // Another master has never heard of the task.
    let (outcome, ()) = tokio::join!(client.vm_snapshot(&vm, "second", &[]), while_waiting("/lab/master"));
    let error = outcome.expect_err("forgotten");
    assert_eq!((error.kind(), error.effect()), (&Kind::Lost, Effect::Unknown), "{error}");
    assert!(client.endpoint().await.address().starts_with("127.0.0.2:"));
    client.vdi_resize(&disks[0], 8 << 20).await.expect("a change, at the new master");
    client.close().await.expect("logout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_survives_lost_doubled_and_silent_events() {
    let lab = Lab::start("xcp-8.3", true).await;
    let mut options = lab.options();
    options.timeouts.event = Duration::from_millis(300);
    let client = Client::connect(options).await.expect("login");
    let (vm, _) = lab.sample(&client, false, false).await;
    let mut count = 0;
    for fault in [
        json!({"method": "event.from", "lose_events": 100}),
        json!({"method": "event.from", "double_events": true, "count": 100}),
        json!({"method": "event.from", "error": ["EVENTS_LOST"], "count": 3}),
        json!({"method": "event.from", "drop": true, "count": 2}),
    ] {
        lab.fault(json!({"clear": true}));
        lab.fault(fault.clone());
        count += 1;
        let name = format!("web{count}");
        let renamed = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.set_name_label(&vm, &name).await.expect("renamed");
        };
        let (waited, ()) = tokio::join!(client.wait_vm(&vm, |vm| vm.name_label == name, MINUTE), renamed);
        waited.unwrap_or_else(|error| panic!("{fault}: {error}"));
    }
    client.close().await.expect("logout");
}
