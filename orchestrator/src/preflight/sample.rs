//! A small pool in which nothing is wrong, for the checks' tests: one host, one storage repository, the network, the
//! template, and a VM 'web01' with one disk of 10 GiB.

use super::facts::{Facts, Records};
use crate::template::{Template, TemplateAt};
use std::collections::{BTreeMap, BTreeSet};
use xapi::{
    Class, Host, HostMetrics, Network, Pbd, Pif, PifMetrics, Pool, Ref, Sr, Uuid, Vbd, VbdType, Vdi, Vm,
};

/// Size of the template's disk.
pub(crate) const TEMPLATE_BYTES: u64 = 64 << 20;

pub(crate) struct Sample {
    pub(crate) facts: Facts,
    pub(crate) host: Ref<Host>,
    pub(crate) sr: Ref<Sr>,
    pub(crate) vm: Ref<Vm>,
    /// The VM's drives.
    drives: Vec<Ref<Vbd>>,
    next: u64,
}

impl Sample {
    pub(crate) fn new() -> Self {
        let network = Ref::from_opaque("OpaqueRef:network");
        let facts = Facts {
            name: "dc1".into(),
            owner: "our-installation".into(),
            pool: Pool { name_label: "dc1".into(), ..Pool::default() },
            protocol: "Json".into(),
            local: false,
            hosts: Records::new(),
            host_metrics: Records::new(),
            vms: Records::new(),
            vbds: Records::new(),
            vdis: Records::new(),
            srs: Records::new(),
            pbds: Records::new(),
            sms: Records::new(),
            networks: Records::new(),
            pifs: Records::new(),
            pif_metrics: Records::new(),
            delegate_networks: Ok(vec![network.clone()]),
            fixed_addresses: false,
            templates: Ok(Vec::new()),
            session: None,
            clocks: None,
            certificates: Records::new(),
            host_certificates: BTreeMap::new(),
            live_jobs: BTreeSet::new(),
            usual_changes: BTreeMap::new(),
        };
        let (host, sr) = (Ref::from_opaque("OpaqueRef:host-1"), Ref::from_opaque("OpaqueRef:sr"));
        let vm = Ref::from_opaque("OpaqueRef:vm");
        let mut sample = Self { facts, host, sr, vm: vm.clone(), drives: Vec::new(), next: 0 };
        let record = Network { name_label: "backup".into(), uuid: sample.uuid(), ..Network::default() };
        sample.facts.networks.insert(network, record);
        let sr = Sr {
            name_label: "Local storage".into(),
            uuid: sample.uuid(),
            kind: "ext".into(),
            physical_size: 1 << 40,
            ..Sr::default()
        };
        sample.facts.srs.insert(sample.sr.clone(), sr);
        sample.add_host("host-1", 64 << 30, true);
        let web01 = Vm { name_label: "web01".into(), uuid: sample.uuid(), ..Vm::default() };
        sample.facts.vms.insert(vm, web01);
        sample.add_disk(10 << 30);
        let sr = sample.sr.clone();
        sample.add_template_on(&sr);
        sample
    }

    fn fresh<T: Class>(&mut self) -> Ref<T> {
        self.next += 1;
        Ref::from_opaque(format!("OpaqueRef:{}-{}", T::NAME, self.next))
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        self.next += 1;
        format!("00000000-0000-0000-0000-{:012}", self.next).parse().expect("a uuid")
    }

    pub(crate) fn add_host(&mut self, name: &str, memory_free: u64, sees_sr: bool) {
        let reference = Ref::from_opaque(format!("OpaqueRef:{name}"));
        let metrics: Ref<HostMetrics> = self.fresh();
        let record =
            HostMetrics { live: true, memory_free, memory_total: 64 << 30, ..HostMetrics::default() };
        self.facts.host_metrics.insert(metrics.clone(), record);
        let software = [("product_brand", "XCP-ng"), ("product_version", "8.3.0")];
        let host = Host {
            name_label: name.into(),
            uuid: self.uuid(),
            enabled: true,
            address: "10.0.0.1".into(),
            api_version_major: 2,
            api_version_minor: 21,
            software_version: software.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            metrics,
            ..Host::default()
        };
        self.facts.hosts.insert(reference.clone(), host);
        let network = self.facts.networks.keys().next().expect("the network").clone();
        let pif = Pif { host: reference, network, currently_attached: true, ..Pif::default() };
        let adapter = self.fresh();
        self.facts.pifs.insert(adapter, pif);
        if sees_sr {
            let sr = self.sr.clone();
            self.plug(name, &sr);
        }
    }

    /// Another network of the delegates, without an adapter.
    pub(crate) fn add_network(&mut self, name: &str) -> Ref<Network> {
        let reference = Ref::from_opaque(format!("OpaqueRef:{name}"));
        let record = Network { name_label: name.into(), uuid: self.uuid(), ..Network::default() };
        self.facts.networks.insert(reference.clone(), record);
        self.facts.delegate_networks.as_mut().expect("networks").push(reference.clone());
        reference
    }

    pub(crate) fn add_adapter(&mut self, host: &Ref<Host>, network: &Ref<Network>) {
        let (host, network) = (host.clone(), network.clone());
        let adapter = self.fresh();
        self.facts.pifs.insert(adapter, Pif { host, network, currently_attached: true, ..Pif::default() });
    }

    pub(crate) fn plug(&mut self, host: &str, sr: &Ref<Sr>) {
        self.connect(host, sr, true);
    }

    /// The connection of a host to storage, plugged or not.
    pub(crate) fn connect(&mut self, host: &str, sr: &Ref<Sr>, currently_attached: bool) {
        let host = Ref::from_opaque(format!("OpaqueRef:{host}"));
        let present = self.facts.pbds.values_mut().find(|pbd| pbd.host == host && pbd.sr == *sr);
        match present {
            Some(pbd) => pbd.currently_attached = currently_attached,
            None => {
                let reference = self.fresh();
                let pbd = Pbd { host, sr: sr.clone(), currently_attached, ..Pbd::default() };
                self.facts.pbds.insert(reference, pbd);
            }
        }
    }

    pub(crate) fn add_sr(&mut self, name: &str) -> Ref<Sr> {
        let reference = self.fresh();
        let sr = Sr {
            name_label: name.into(),
            uuid: self.uuid(),
            kind: "ext".into(),
            physical_size: 1 << 40,
            ..Sr::default()
        };
        self.facts.srs.insert(reference.clone(), sr);
        reference
    }

    pub(crate) fn add_disk(&mut self, virtual_size: u64) {
        let sr = self.sr.clone();
        self.add_disk_on(&sr, virtual_size);
    }

    pub(crate) fn add_disk_on(&mut self, sr: &Ref<Sr>, virtual_size: u64) {
        let (vm, position) = (self.vm.clone(), self.drives.len().to_string());
        let vbd = self.add_drive(&vm, &position, sr, virtual_size);
        self.drives.push(vbd);
    }

    fn add_drive(&mut self, vm: &Ref<Vm>, userdevice: &str, sr: &Ref<Sr>, virtual_size: u64) -> Ref<Vbd> {
        let (vdi, vbd): (Ref<Vdi>, Ref<Vbd>) = (self.fresh(), self.fresh());
        let owner = self.facts.vms.get_mut(vm).expect("the VM");
        owner.vbds.push(vbd.clone());
        let name_label = format!("{} disk {userdevice}", owner.name_label);
        let record = Vdi {
            uuid: self.uuid(),
            name_label,
            sr: sr.clone(),
            virtual_size,
            managed: true,
            sm_config: BTreeMap::from([("vdi_type".to_owned(), "vhd".to_owned())]),
            vbds: vec![vbd.clone()],
            ..Vdi::default()
        };
        self.facts.vdis.insert(vdi.clone(), record);
        let drive =
            Vbd { vm: vm.clone(), vdi, userdevice: userdevice.into(), kind: VbdType::Disk, ..Vbd::default() };
        self.facts.vbds.insert(vbd.clone(), drive);
        vbd
    }

    pub(crate) fn add_template_on(&mut self, sr: &Ref<Sr>) {
        let reference: Ref<Vm> = self.fresh();
        let record = Vm { is_a_template: true, uuid: self.uuid(), ..Vm::default() };
        self.facts.vms.insert(reference.clone(), record);
        self.add_drive(&reference, "0", sr, TEMPLATE_BYTES);
        let template = Template {
            reference,
            uuid: "template-uuid".into(),
            version: "0.1.0".into(),
            digest: String::new(),
        };
        let at = TemplateAt { template, storage: vec![sr.clone()] };
        self.facts.templates.as_mut().expect("templates").push(at);
    }

    fn template(&self) -> Ref<Vm> {
        self.facts.templates()[0].template.reference.clone()
    }

    pub(crate) fn without_template(&mut self) {
        let template = self.template();
        self.facts.vms.remove(&template);
    }

    /// Another drive of the template, without a disk.
    pub(crate) fn add_template_drive(&mut self, userdevice: &str) {
        let template = self.template();
        let vbd: Ref<Vbd> = self.fresh();
        self.facts.vms.get_mut(&template).expect("the template").vbds.push(vbd.clone());
        let drive = Vbd { vm: template, userdevice: userdevice.into(), kind: VbdType::Cd, ..Vbd::default() };
        self.facts.vbds.insert(vbd, drive);
    }

    pub(crate) fn template_disk_reference(&self) -> Ref<Vdi> {
        let template = self.template();
        self.facts.disks(&self.facts.vms[&template])[0].reference.clone()
    }

    pub(crate) fn template_disk_mut(&mut self) -> &mut Vdi {
        let reference = self.template_disk_reference();
        self.facts.vdis.get_mut(&reference).expect("the disk")
    }

    pub(crate) fn vm(&self) -> &Vm {
        &self.facts.vms[&self.vm]
    }

    pub(crate) fn vm_mut(&mut self) -> &mut Vm {
        self.facts.vms.get_mut(&self.vm).expect("the VM")
    }

    pub(crate) fn host_mut(&mut self) -> &mut Host {
        self.facts.hosts.get_mut(&self.host).expect("the host")
    }

    pub(crate) fn metrics_mut(&mut self) -> &mut HostMetrics {
        let metrics = self.facts.hosts[&self.host].metrics.clone();
        self.facts.host_metrics.get_mut(&metrics).expect("its metrics")
    }

    pub(crate) fn sr_mut(&mut self) -> &mut Sr {
        self.facts.srs.get_mut(&self.sr).expect("the storage")
    }

    pub(crate) fn pif_mut(&mut self, host: &Ref<Host>) -> &mut Pif {
        self.facts.pifs.values_mut().find(|pif| pif.host == *host).expect("its adapter")
    }

    pub(crate) fn set_carrier(&mut self, host: &Ref<Host>, carrier: bool) {
        let metrics: Ref<PifMetrics> = self.fresh();
        self.pif_mut(host).metrics = metrics.clone();
        self.facts.pif_metrics.insert(metrics, PifMetrics { carrier, ..PifMetrics::default() });
    }

    pub(crate) fn vbd_mut(&mut self, index: usize) -> &mut Vbd {
        self.facts.vbds.get_mut(&self.drives[index]).expect("the drive")
    }

    pub(crate) fn disk_reference(&self, index: usize) -> Ref<Vdi> {
        self.facts.vbds[&self.drives[index]].vdi.clone()
    }

    pub(crate) fn disk(&self, index: usize) -> &Vdi {
        &self.facts.vdis[&self.disk_reference(index)]
    }

    pub(crate) fn disk_mut(&mut self, index: usize) -> &mut Vdi {
        let reference = self.disk_reference(index);
        self.facts.vdis.get_mut(&reference).expect("the disk")
    }

    /// The disk in a drive of another VM as well.
    pub(crate) fn attach_elsewhere(&mut self, index: usize, name: &str, currently_attached: bool) {
        let (vm, vbd): (Ref<Vm>, Ref<Vbd>) = (self.fresh(), self.fresh());
        let vdi = self.disk_reference(index);
        let record = Vm { name_label: name.into(), vbds: vec![vbd.clone()], ..Vm::default() };
        self.facts.vms.insert(vm.clone(), record);
        let drive = Vbd { vm, vdi, kind: VbdType::Disk, currently_attached, ..Vbd::default() };
        self.facts.vbds.insert(vbd, drive);
    }

    /// A hidden disk that stands on another one, if any; gives its uuid.
    pub(crate) fn hidden(&mut self, parent: &[&str]) -> String {
        let (reference, uuid) = (self.fresh(), self.uuid());
        let parent = parent.iter().map(|parent| ("vhd-parent".to_owned(), (*parent).to_owned()));
        let vdi = Vdi {
            uuid: uuid.clone(),
            name_label: "base copy".into(),
            sr: self.sr.clone(),
            managed: false,
            sm_config: parent.collect(),
            ..Vdi::default()
        };
        self.facts.vdis.insert(reference, vdi);
        uuid.to_string()
    }

    pub(crate) fn set_parent(&mut self, index: usize, parent: &str) {
        self.disk_mut(index).sm_config.insert("vhd-parent".into(), parent.into());
    }

    pub(crate) fn set_parent_of(&mut self, uuid: &str, parent: &str) {
        let vdi = self.facts.vdis.values_mut().find(|vdi| vdi.uuid.as_str() == uuid).expect("the disk");
        vdi.sm_config.insert("vhd-parent".into(), parent.into());
    }

    pub(crate) fn vdi_mut(&mut self, uuid: &str) -> &mut Vdi {
        self.facts.vdis.values_mut().find(|vdi| vdi.uuid.as_str() == uuid).expect("the disk")
    }

    /// A snapshot of a disk that stands on nothing; gives its uuid.
    pub(crate) fn snapshot_of(&mut self, index: usize) -> String {
        let (reference, uuid) = (self.fresh(), self.uuid());
        let vdi = Vdi {
            uuid: uuid.clone(),
            is_a_snapshot: true,
            snapshot_of: self.disk_reference(index),
            sr: self.sr.clone(),
            managed: true,
            ..Vdi::default()
        };
        self.facts.vdis.insert(reference, vdi);
        uuid.to_string()
    }

    /// Puts a disk on a chain of this many nodes in all, each of which a snapshot needs.
    pub(crate) fn chain_of(&mut self, index: usize, depth: usize) {
        let mut parent = None;
        for _ in 1..depth {
            let node = self.hidden(parent.as_deref().as_slice());
            let snapshot = self.snapshot_of(index);
            self.set_parent_of(&snapshot, &node);
            parent = Some(node);
        }
        if let Some(parent) = parent {
            self.set_parent(index, &parent);
        }
    }

    /// Removes the snapshots that stand on a hidden disk.
    pub(crate) fn drop_snapshots_of(&mut self, node: &str) {
        self.facts.vdis.retain(|_, vdi| {
            !vdi.is_a_snapshot || vdi.sm_config.get("vhd-parent").is_none_or(|parent| parent != node)
        });
    }
}
