//! One delegate: made from the template, given what its job needs, started, kept or removed.

use super::watch::{Outcome, Trace};
use super::{Failure, Job, PROGRESS_MS};
use crate::cleanup::{Removed, delegate_name, destroy_vdi, destroy_vm, disks_of, tag_vdi};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::kept::{self, Taken};
use crate::networks;
use crate::ownership::mark;
use crate::retry::is_gone;
use crate::spec::DelegateOptions;
use crate::template::{self, TemplateAt};
use ads::JobGrant;
use std::time::Instant;
use wire::{Order, Work};
use xapi::{Host, Ref, StringMap, VbdCreate, VbdMode, VbdType, Vdi, VifCreate, Vm};

/// A disk that a delegate gets.
pub(super) struct Attachment {
    pub vdi: Ref<Vdi>,
    pub userdevice: u16,
    pub writable: bool,
    /// The disk as people know it.
    pub label: String,
}

/// Where a delegate runs, and what it is made of.
pub(super) struct Site {
    /// The host; the pool chooses where absent.
    pub host: Option<Ref<Host>>,
    /// What it is cloned from.
    pub template: TemplateAt,
}

/// A delegate that exists.
pub(super) struct Delegate {
    pub(super) vm: Ref<Vm>,
    own_vdis: Vec<String>,
    /// The record of a kept one, which has what a clone is given only once.
    kept: Option<Box<Vm>>,
}

impl Job<'_> {
    /// Makes and starts a delegate with these disks. Where it fails the journal says what may exist.
    pub(super) async fn provision(
        &self,
        entries: &mut Vec<Entry>,
        disks: &[Attachment],
        site: &Site,
    ) -> Result<Delegate> {
        let client = &self.pool.client;
        let delegate = match kept::rule(&self.pool.config) {
            // One without disks only looks: what a fresh one meets, whatever is kept.
            Some(_) if !disks.is_empty() => self.take_or_make(site).await?,
            _ => self.make(&self.id, site, |entry| self.record(entries, entry)).await?,
        };
        self.set_up(&delegate, disks).await.context(|| "set up the delegate".into())?;
        *self.trace() = Trace { began: Some(Instant::now()), ..Trace::default() };
        let started = match &site.host {
            Some(host) => client.vm_start_on(&delegate.vm, host).await,
            None => client.vm_start(&delegate.vm).await,
        };
        started.context(|| "start the delegate".into())?;
        Ok(delegate)
    }

    /// Takes a kept delegate, or makes one that can be kept: with a journal of its own.
    async fn take_or_make(&self, site: &Site) -> Result<Delegate> {
        let networks = self.run.networks();
        let want = kept::Want {
            job: &self.id,
            template: &site.template.template,
            networks: &networks,
            host: site.host.as_ref(),
        };
        let mut slot = self.holding.lock().await;
        match kept::take(&self.pool, &self.run.journals, want).await {
            Ok(Some(Taken { holding, vm, record, own_vdis })) => {
                self.step("take a kept delegate");
                *slot = Some(holding);
                return Ok(Delegate { vm, own_vdis, kept: Some(Box::new(record)) });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(job = %self.id, "no kept delegate is taken: {}", error.chain()),
        }
        let holding = slot.insert(kept::Holding::start(&self.pool, &self.run.journals)?);
        let id = holding.id.clone();
        self.make(&id, site, |entry| holding.record(entry)).await
    }

    /// Clones the template and marks the clone as `owner`'s, whose journal `record` writes.
    async fn make(
        &self,
        owner: &str,
        site: &Site,
        mut record: impl FnMut(Entry) -> Result<()>,
    ) -> Result<Delegate> {
        let client = &self.pool.client;
        let name = delegate_name(owner);
        record(Entry::DelegateIntent { name: name.clone() })?;
        let vm = self.clone_template(&name, &site.template).await?;
        let found = client.get_record::<Vm>(&vm).await.context(|| "look at the delegate".into())?;
        mark(&self.pool, &vm, &found.uuid, owner, &[]).await.context(|| "tag the delegate".into())?;
        let own_vdis = disks_of(&self.pool, &found, |_| true).await?;
        record(Entry::Delegate { uuid: found.uuid.to_string(), vdis: own_vdis.clone() })?;
        for vdi in &own_vdis {
            tag_vdi(&self.pool, vdi, owner, true).await?;
        }
        Ok(Delegate { vm, own_vdis, kept: None })
    }

    /// Gives a delegate what this job needs: a kept one only what differs from job to job.
    async fn set_up(&self, delegate: &Delegate, disks: &[Attachment]) -> Result<(), xapi::Error> {
        let (run, client, vm) = (self.run, &self.pool.client, &delegate.vm);
        let kept = delegate.kept.as_deref();
        let wanted = &self.options.delegate;
        let about = format!("Backup delegate for {}. It is removed when its job ends.", self.subject);
        client.set_name_description(vm, &about).await?;
        if kept.is_none() {
            client.vm_provision(vm).await?;
        }
        let memory = wanted.memory.get();
        if kept.is_none_or(|vm| vm.memory_static_max != memory || vm.memory_dynamic_min != memory) {
            client.vm_set_memory_limits(vm, xapi::MemoryLimits::fixed(memory)).await?;
        }
        if kept.is_none_or(|vm| vm.vcpus_max != u64::from(wanted.vcpus)) {
            client.vm_set_vcpus(vm, wanted.vcpus).await?;
        }
        for disk in disks {
            let vbd = VbdCreate {
                vm: vm.clone(),
                vdi: disk.vdi.clone(),
                userdevice: u32::from(disk.userdevice),
                bootable: false,
                mode: if disk.writable { VbdMode::ReadWrite } else { VbdMode::ReadOnly },
                kind: VbdType::Disk,
                other_config: StringMap::new(),
            };
            client.vbd_create(&vbd).await?;
        }
        for card in run.cards.iter().filter(|_| kept.is_none()) {
            let vif = VifCreate {
                vm: vm.clone(),
                network: card.network.clone(),
                device: card.number,
                mac: String::new(),
                mtu: card.mtu,
                other_config: StringMap::new(),
            };
            client.vif_create(&vif).await?;
        }
        // All of it: nothing of an earlier job stays.
        client.vm_set_xenstore_data(vm, &self.xenstore_keys()).await
    }

    /// Clones the template; where it was replaced just now, the one that took its place on the same storage.
    async fn clone_template(&self, name: &str, at: &TemplateAt) -> Result<Ref<Vm>> {
        let cloning = || "clone the template".to_owned();
        let client = &self.pool.client;
        let error = match client.vm_clone(&at.template.reference, name).await {
            Err(error) if is_gone(&error) => error,
            done => return done.context(cloning),
        };
        let now = template::usable(&self.pool).await?;
        match now.iter().find(|other| other.storage == at.storage) {
            Some(other) => client.vm_clone(&other.template.reference, name).await.context(cloning),
            None => Err(error).context(cloning),
        }
    }

    /// Opens the job at the service, makes a delegate for it, watches it to its end and removes it. Gives what the
    /// delegate achieved, and whether it is gone.
    /// `bitmaps` go by position in the order, as XAPI gives them.
    pub(super) async fn serve(
        &self,
        work: Work,
        bitmaps: Vec<Option<Vec<u8>>>,
        disks: &[Attachment],
        site: &Site,
        entries: &mut Vec<Entry>,
    ) -> Result<(Outcome, Result<()>), Failure> {
        let order = Order {
            job: self.id.clone(),
            id_key: self.run.store.id_key_bytes(),
            master_key: self.run.store.master_key_bytes().map_err(crate::catalog::store_error)?,
            watchdog_s: self.watchdog_s(),
            progress_ms: PROGRESS_MS,
            work,
        };
        let grant = JobGrant { job: self.id.clone(), order, bitmaps };
        let handle = self.run.service.open_job(grant).map_err(|error| {
            Error::new(Kind::Failed, "the store's service refuses the job").because(error)
        })?;
        self.step("start delegate");
        let delegate = self.unless_cancelled(self.provision(entries, disks, site)).await?;
        let labels = disks.iter().map(|disk| disk.label.clone()).collect();
        let mut outcome = self.watch(&delegate, &handle, labels).await?;
        outcome.reused = delegate.kept.is_some();
        handle.close();
        self.step("remove delegate");
        let removed = self.end(&delegate, site).await;
        self.sweep_templates(&site.template).await;
        Ok((outcome, removed))
    }

    /// Removes the delegate's template where it was replaced meanwhile and this was the last delegate made of it.
    /// `abd reconcile` does what fails here.
    async fn sweep_templates(&self, at: &TemplateAt) {
        let mut removed = Removed::default();
        if let Err(error) = template::sweep_after(&self.pool, &at.template, &mut removed).await {
            tracing::warn!(job = %self.id, "{}", error.chain());
        }
        for object in &removed.objects {
            tracing::info!(job = %self.id, "removed {object}, which was replaced");
        }
        for leftover in removed.leftovers {
            tracing::warn!(job = %self.id, "not removed: {leftover}");
        }
    }

    /// Writes an entry to the journal and remembers it for the clean-up.
    pub(super) fn record(&self, entries: &mut Vec<Entry>, entry: Entry) -> Result<()> {
        self.journal.write(&entry)?;
        entries.push(entry);
        Ok(())
    }

    fn watchdog_s(&self) -> u16 {
        u16::try_from(self.options.delegate.watchdog.as_secs()).unwrap_or(u16::MAX)
    }

    fn xenstore_keys(&self) -> StringMap {
        let run = self.run;
        let mut keys = StringMap::from([
            (wire::KEY_VERSION.into(), wire::PROTOCOL_VERSION.to_string()),
            (wire::KEY_JOB.into(), self.id.clone()),
            (wire::KEY_URL.into(), run.url.clone()),
            (wire::KEY_ORCHESTRATOR_KEY.into(), run.service.fingerprint().to_string()),
            (wire::KEY_WATCHDOG.into(), self.watchdog_s().to_string()),
        ]);
        let DelegateOptions { addresses, gateways, .. } = &self.options.delegate;
        keys.extend(networks::xenstore_keys(&run.cards, &networks::address_settings(addresses, gateways)));
        keys
    }

    /// Keeps a delegate that has done its work for a later job, where the pool is configured so, or removes it.
    async fn end(&self, delegate: &Delegate, site: &Site) -> Result<()> {
        let Some(mut holding) = self.holding.lock().await.take() else { return self.remove(delegate).await };
        let (vm, template) = (&delegate.vm, &site.template.template);
        let host = site.host.as_ref();
        let origin = kept::Origin { template, networks: &self.run.networks(), host };
        let parked = kept::park(&self.pool, &self.run.journals, &mut holding, vm, origin).await;
        match parked {
            Ok(()) => {
                self.step("keep delegate");
                return Ok(());
            }
            Err(error) => tracing::info!(job = %self.id, "{}", error.chain()),
        }
        match kept::discard(&self.pool, holding, false).await.leftovers.first() {
            None => Ok(()),
            Some(first) => Err(Error::new(Kind::Leftovers, format!("remove the delegate: {first}"))),
        }
    }

    /// Removes a delegate and its own disks.
    async fn remove(&self, delegate: &Delegate) -> Result<()> {
        destroy_vm(&self.pool, &delegate.vm).await.context(|| "remove the delegate".into())?;
        for vdi in &delegate.own_vdis {
            destroy_vdi(&self.pool, vdi).await.context(|| format!("remove the delegate's disk {vdi}"))?;
        }
        Ok(())
    }
}
