//! What the checks of a pool look at: its records, read once with one call per class. Checks are pure functions of
//! these facts; nothing here judges, and nothing here changes anything in the pool.

use super::finding::{Object, ObjectKind};
use crate::error::{Context, Error, Kind, Result};
use crate::job::placement::{self, Site};
use crate::networks::DelegateNetwork;
use crate::pool::Pool;
use crate::template::{self, TemplateAt};
use blocks::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;
use xapi::{
    Certificate, Endpoint, Host, HostMetrics, Network, OnBoot, Pbd, Pif, PifMetrics, Ref, Session, Sm, Sr,
    Vbd, VbdType, Vdi, Vm,
};

/// Records by reference.
pub(super) type Records<T> = BTreeMap<Ref<T>, T>;

/// API version of XenServer 7.3, the first release that tracks changes.
pub const FIRST_CBT_API: (i64, i64) = (2, 8);
/// Port of XAPI on every host.
const HTTPS_PORT: u16 = 443;
/// Longest chain that is followed: a loop in broken metadata ends here. Storage takes 30.
const LONGEST_CHAIN: u32 = 1000;

/// Why something that jobs need was not found, in the words of who looked for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotFound {
    /// What it means for the exit code.
    pub kind: Kind,
    /// One sentence.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
}

impl NotFound {
    /// Keeps what an error says; gives the error back where it is about something else.
    fn from_error(error: Error, expected: Kind) -> Result<Self> {
        if error.kind() != expected {
            return Err(error);
        }
        let remedy = error.remedy_text().unwrap_or("see `abd doctor`").to_owned();
        Ok(Self { kind: error.kind(), message: error.chain(), remedy })
    }
}

/// The pool's clock and ours, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The coordinator's.
    pub pool: SystemTime,
    /// This machine's, in the middle of the call.
    pub here: SystemTime,
}

/// A host's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostCertificate {
    /// SHA-256 that was recorded for the host's address.
    pub pinned: Option<String>,
    /// SHA-256 of what the pool says the host shows.
    pub shown: Option<String>,
}

/// What was read from one pool.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Name in the configuration.
    pub name: String,
    /// Uuid of this installation.
    pub owner: String,
    /// The pool's record.
    pub pool: xapi::Pool,
    /// JSON or XML, for people.
    pub protocol: String,
    /// Whether we talk over the socket of a control domain.
    pub local: bool,
    /// Hosts.
    pub hosts: Records<Host>,
    /// Memory and life of hosts.
    pub host_metrics: Records<HostMetrics>,
    /// VMs, templates, snapshots and control domains.
    pub vms: Records<Vm>,
    /// Drives.
    pub vbds: Records<Vbd>,
    /// Disks, hidden ones too.
    pub vdis: Records<Vdi>,
    /// Storage.
    pub srs: Records<Sr>,
    /// What storage which host has plugged.
    pub pbds: Records<Pbd>,
    /// What kinds of storage can do; empty where the pool does not say.
    pub sms: Records<Sm>,
    /// Networks.
    pub networks: Records<Network>,
    /// Hosts' adapters.
    pub pifs: Records<Pif>,
    /// Their links.
    pub pif_metrics: Records<PifMetrics>,
    /// The networks that delegates are on, that of card 0 first: at least one.
    pub delegate_networks: std::result::Result<Vec<Ref<Network>>, NotFound>,
    /// Whether a card of theirs has a fixed address, which only one delegate at a time can have.
    pub fixed_addresses: bool,
    /// The templates that delegates are cloned from, with their storage: at least one.
    pub templates: std::result::Result<Vec<TemplateAt>, NotFound>,
    /// Our session; only read for a whole pool.
    pub session: Option<Session>,
    /// The clocks; only read for a whole pool.
    pub clocks: Option<Clocks>,
    /// Certificates with their ends; none before XenServer 8.2.
    pub certificates: Records<Certificate>,
    /// Certificates of the hosts as they are pinned and shown; only read for a whole pool over TLS.
    pub host_certificates: BTreeMap<Ref<Host>, HostCertificate>,
    /// Jobs that run now.
    pub live_jobs: BTreeSet<String>,
    /// What the newest incremental restore point of a disk read, by uuid of the live VDI.
    pub usual_changes: BTreeMap<String, ByteCount>,
}

/// What a run of jobs has found already.
#[derive(Clone, Debug)]
pub struct Known {
    /// The delegates' templates.
    pub templates: Vec<TemplateAt>,
    /// Their networks, that of card 0 first.
    pub networks: Vec<Ref<Network>>,
}

impl Facts {
    /// Reads what the checks of one job need: one call per class.
    ///
    /// # Errors
    /// What the pool says, naming what was read.
    pub async fn for_job(pool: &Pool, known: &Known) -> Result<Self> {
        Self::read(pool, Ok(known.networks.clone()), Ok(known.templates.clone())).await
    }

    /// Reads what the checks of the whole pool need.
    ///
    /// # Errors
    /// What the pool says, naming what was read.
    pub async fn for_pool(pool: &Pool) -> Result<Self> {
        let networks = match pool.delegate_cards().await {
            Ok(cards) => Ok(cards.into_iter().map(|card| card.network).collect()),
            Err(error) => Err(NotFound::from_error(error, Kind::NotFound)?),
        };
        let templates = match template::usable(pool).await {
            Ok(templates) => Ok(templates),
            Err(error) => Err(NotFound::from_error(error, Kind::Template)?),
        };
        let mut facts = Self::read(pool, networks, templates).await?;
        facts.session = Some(pool.client.session().await.context(|| "look at our session".into())?);
        facts.clocks = clocks(pool, &facts.pool.master).await;
        // Releases before 8.2 have no such class.
        facts.certificates = pool.client.get_all_records().await.unwrap_or_default();
        if !facts.local {
            facts.host_certificates = host_certificates(pool, &facts.hosts).await;
        }
        Ok(facts)
    }

    async fn read(
        pool: &Pool,
        delegate_networks: std::result::Result<Vec<Ref<Network>>, NotFound>,
        templates: std::result::Result<Vec<TemplateAt>, NotFound>,
    ) -> Result<Self> {
        let client = &pool.client;
        let (_, record) = client.pool().await.context(|| "look at the pool".into())?;
        Ok(Self {
            name: pool.config.name.clone(),
            owner: pool.owner.clone(),
            pool: record,
            protocol: client.protocol().await.map_or_else(String::new, |protocol| format!("{protocol:?}")),
            local: matches!(client.endpoint().await, Endpoint::Unix(_)),
            hosts: pool.hosts().await?,
            host_metrics: client.get_all_records().await.context(|| "list the hosts' memory".into())?,
            vms: client.get_all_records().await.context(|| "list VMs".into())?,
            vbds: client.get_all_records().await.context(|| "list drives".into())?,
            vdis: client.get_all_records().await.context(|| "list disks".into())?,
            srs: client.get_all_records().await.context(|| "list storage".into())?,
            pbds: client.get_all_records().await.context(|| "list storage connections".into())?,
            networks: client.get_all_records().await.context(|| "list networks".into())?,
            pifs: client.get_all_records().await.context(|| "list network interfaces".into())?,
            // What these say is worth a finding where they say it, and their absence is none.
            sms: client.get_all_records().await.unwrap_or_default(),
            pif_metrics: client.get_all_records().await.unwrap_or_default(),
            delegate_networks,
            fixed_addresses: pool.config.networks.iter().any(DelegateNetwork::is_fixed),
            templates,
            session: None,
            clocks: None,
            certificates: Records::new(),
            host_certificates: BTreeMap::new(),
            live_jobs: BTreeSet::new(),
            usual_changes: BTreeMap::new(),
        })
    }

    /// The API version of the oldest host.
    pub fn api(&self) -> (i64, i64) {
        let versions = self.hosts.values().map(|host| (host.api_version_major, host.api_version_minor));
        versions.min().unwrap_or_default()
    }

    /// VMs that can be backed up: no templates, snapshots, control domains or delegates of ours.
    pub fn candidates(&self) -> impl Iterator<Item = (&Ref<Vm>, &Vm)> {
        self.vms.iter().filter(|(_, vm)| {
            let ordinary = !vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain;
            ordinary && !vm.other_config.contains_key(xva::TEMPLATE_KEY)
        })
    }

    /// The disks in a VM's drives, by position.
    pub fn disks<'a>(&'a self, vm: &Vm) -> Vec<Disk<'a>> {
        let drives = vm.vbds.iter().filter_map(|vbd| self.vbds.get(vbd));
        let mut disks: Vec<Disk<'a>> = drives
            .filter(|vbd| vbd.kind == VbdType::Disk && !vbd.vdi.is_null())
            .filter_map(|vbd| {
                let vdi = self.vdis.get(&vbd.vdi)?;
                let vm = self.vms.get(&vbd.vm);
                Some(Disk { reference: &vbd.vdi, vdi, vbd, vm, sr: self.srs.get(&vdi.sr) })
            })
            .collect();
        disks.sort_by_key(Disk::position);
        disks
    }

    /// Whether a host has storage plugged.
    pub fn sees(&self, host: &Ref<Host>, sr: &Ref<Sr>) -> bool {
        self.pbds.values().any(|pbd| pbd.host == *host && pbd.sr == *sr && pbd.currently_attached)
    }

    /// The templates, none where that is what is wrong.
    pub fn templates(&self) -> &[TemplateAt] {
        self.templates.as_deref().unwrap_or_default()
    }

    /// What storage the hosts that pass a test see, for placing delegates.
    pub fn site(&self, wanted: impl Fn(&Ref<Host>, &Host) -> bool) -> Site {
        let hosts = self.hosts.iter().filter(|(reference, host)| wanted(reference, host));
        let sees = hosts.map(|(reference, _)| {
            let plugged = self.pbds.values().filter(|pbd| pbd.host == *reference && pbd.currently_attached);
            (reference.clone(), plugged.map(|pbd| pbd.sr.clone()).collect())
        });
        let names = self.srs.iter().map(|(reference, sr)| (reference.clone(), sr.name_label.clone()));
        Site { sees: sees.collect(), names: names.collect() }
    }

    /// What placing looks at.
    pub fn for_placing(&self) -> placement::Records<'_> {
        placement::Records {
            hosts: &self.hosts,
            metrics: &self.host_metrics,
            pbds: &self.pbds,
            pifs: &self.pifs,
            srs: &self.srs,
        }
    }

    /// Whether a host takes new VMs.
    pub fn is_usable(&self, host: &Ref<Host>) -> bool {
        self.hosts
            .get(host)
            .is_some_and(|record| placement::is_up(record, self.host_metrics.get(&record.metrics)))
    }

    /// A VM as an object of findings.
    pub fn vm_object(vm: &Vm) -> Object {
        Object::new(ObjectKind::Vm, &vm.name_label, &vm.uuid)
    }

    /// Storage as an object of findings.
    pub fn sr_object(sr: &Sr) -> Object {
        Object::new(ObjectKind::Sr, &sr.name_label, &sr.uuid)
    }

    /// A host as an object of findings.
    pub fn host_object(host: &Host) -> Object {
        Object::new(ObjectKind::Host, &host.name_label, &host.uuid)
    }

    /// The pool as an object of findings.
    pub fn pool_object(&self) -> Object {
        Object::new(ObjectKind::Pool, &self.name, &self.pool.uuid)
    }

    /// The disks from a disk down to the oldest that it stands on, itself first, by `vhd-parent`.
    pub fn chain<'a>(&'a self, vdi: &'a Vdi) -> Chain<'a> {
        let mut chain = Chain { nodes: vec![vdi], whole: true };
        let mut current = vdi;
        for _ in 0..LONGEST_CHAIN {
            let Some(parent) = parent_of(current) else { return chain };
            match self.vdis.values().find(|vdi| vdi.uuid.as_str() == parent) {
                Some(found) => chain.nodes.push(found),
                None => break,
            }
            current = chain.nodes[chain.nodes.len() - 1];
        }
        chain.whole = false;
        chain
    }
}

/// Uuid of the disk that a disk is a difference to.
pub(super) fn parent_of(vdi: &Vdi) -> Option<&str> {
    vdi.sm_config.get("vhd-parent").map(String::as_str).filter(|parent| !parent.is_empty())
}

/// A disk in a VM's drive.
#[derive(Clone, Copy, Debug)]
pub struct Disk<'a> {
    /// Reference of the disk.
    pub reference: &'a Ref<Vdi>,
    /// The disk.
    pub vdi: &'a Vdi,
    /// The drive.
    pub vbd: &'a Vbd,
    /// Whose drive it is.
    pub vm: Option<&'a Vm>,
    /// The disk's storage.
    pub sr: Option<&'a Sr>,
}

impl Disk<'_> {
    /// The drive's position; the last for one that is no number.
    pub fn position(&self) -> u32 {
        self.vbd.userdevice.parse().unwrap_or(u32::MAX)
    }

    /// The disk's name, or its position where it has none.
    pub fn name(&self) -> String {
        match self.vdi.name_label.trim() {
            "" => format!("disk {}", self.vbd.userdevice),
            name => name.to_owned(),
        }
    }

    /// The disk and its VM in a sentence.
    pub fn called(&self) -> String {
        match self.vm {
            Some(vm) => format!("disk '{}' of '{}'", self.name(), vm.name_label),
            None => format!("disk '{}'", self.name()),
        }
    }

    /// Whether its contents are thrown away when the VM starts.
    pub fn is_reset(&self) -> bool {
        self.vdi.on_boot == OnBoot::Reset
            || self.vdi.sm_config.get("on_boot").is_some_and(|word| word == "reset")
    }

    /// The disk as an object of findings.
    pub fn object(&self) -> Object {
        Object::new(ObjectKind::Vdi, self.name(), &self.vdi.uuid)
    }
}

/// A disk with what it stands on.
#[derive(Clone, Debug)]
pub struct Chain<'a> {
    /// The disk itself first, the oldest last.
    pub nodes: Vec<&'a Vdi>,
    /// Whether every link is known to the pool.
    pub whole: bool,
}

impl Chain<'_> {
    /// How many nodes there are, at least; the disk itself counts.
    pub fn depth(&self) -> u32 {
        let unknown = u32::from(!self.whole);
        u32::try_from(self.nodes.len()).unwrap_or(u32::MAX).saturating_add(unknown)
    }
}

/// The clocks; none where the release does not tell its own.
async fn clocks(pool: &Pool, host: &Ref<Host>) -> Option<Clocks> {
    let before = SystemTime::now();
    let theirs = pool.client.host_get_servertime(host).await.ok()?;
    let took = before.elapsed().unwrap_or_default();
    Some(Clocks { pool: theirs, here: before + took / 2 })
}

/// What the pool says about its hosts' certificates, next to what was recorded.
async fn host_certificates(pool: &Pool, hosts: &Records<Host>) -> BTreeMap<Ref<Host>, HostCertificate> {
    let mut certificates = BTreeMap::new();
    for (reference, host) in hosts.iter().filter(|(_, host)| !host.address.is_empty()) {
        let address = Endpoint::Https { host: host.address.clone(), port: HTTPS_PORT }.address();
        // A release or a role that does not show it leaves it unknown.
        let asked = pool.client.call("host.get_server_certificate", vec![reference.as_str().into()]).await;
        let der = asked.ok().and_then(|value| crate::pool::pem_to_der(value.as_str()?));
        let certificate = HostCertificate {
            pinned: pool.config.certificates.get(&address).map(|text| text.to_ascii_lowercase()),
            shown: der.map(|der| pin::Fingerprint::of(&der).to_string()),
        };
        certificates.insert(reference.clone(), certificate);
    }
    certificates
}
