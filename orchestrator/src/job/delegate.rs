//! One delegate: made from the template, started, watched until it has halted, removed.

use super::{Failure, Job, PROGRESS_MS, cancelled, requested};
use crate::cleanup::{Removed, delegate_name, destroy_vdi, destroy_vm, disks_of, tag_vdi};
use crate::error::{Context, Error, Kind, Result};
use crate::journal::Entry;
use crate::kept::{self, Taken};
use crate::ownership::mark;
use crate::report::Event;
use crate::retry::is_gone;
use crate::template::{self, TemplateAt};
use ads::{JobEvent, JobGrant, JobHandle};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::{Claim, DiskAnswer, DiskDone, JobDone, Order, Work};
use xapi::{Host, PowerState, Ref, StringMap, VbdCreate, VbdMode, VbdType, Vdi, VifCreate, Vm};

/// How long a delegate may take to halt after its last word.
const HALT_LIMIT: Duration = Duration::from_secs(60);
/// How often limits are looked at.
const TICK: Duration = Duration::from_secs(1);
/// How long the service's queue of events may be silent before it counts as empty.
const QUEUE_PAUSE: Duration = Duration::from_millis(200);
/// What PID 1 of a delegate says when its worker got nowhere.
const CODE_WATCHDOG: &str = "watchdog";
/// What the service says of a call whose connection broke.
const CODE_CUT: &str = "cut-message";
/// A delegate reports every second; this long without a word is no chance.
const SILENCE: Duration = Duration::from_secs(5);
/// Events of one VM that may wait: it changes a few times a second at most.
const EVENT_QUEUE: usize = 64;
/// Without an event for so long the delegate's record itself is read: events can be lost. Well within the time that a
/// delegate asks for its order.
const LOOK: Duration = Duration::from_secs(10);
/// A delegate notices at the watchdog's time that nothing moves, says why through XenStore and powers itself off: its
/// own words are worth this wait.
const LAST_WORDS: Duration = Duration::from_secs(15);
/// Pause before the events of a delegate are asked for again after the pool did not answer.
const EVENT_PAUSE: Duration = Duration::from_secs(2);

/// States that are kept of a delegate: it has seven, and what it writes is not ours to trust.
const MAX_STATES: usize = 32;
/// MTUs that an appliance takes.
const MTUS: std::ops::RangeInclusive<u32> = 576..=9216;

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
    vm: Ref<Vm>,
    own_vdis: Vec<String>,
    /// The record of a kept one, which has what a clone is given only once.
    kept: Option<Box<Vm>>,
}

/// What a delegate achieved.
pub(super) struct Outcome {
    pub claim: Option<Claim>,
    /// By position in the order.
    pub disks: Vec<Option<(DiskDone, DiskAnswer)>>,
    pub done: JobDone,
    /// Whether the delegate was a kept one.
    pub reused: bool,
    /// What it measured, where it was asked to.
    pub diagnosis: Option<Diagnosed>,
}

/// What a delegate measured.
#[derive(Clone, Debug)]
pub(super) struct Diagnosed {
    pub told: wire::Diagnosis,
    /// When it was told, by this machine's clock.
    pub heard: SystemTime,
}

/// How far a job's last delegate came, also where it failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Trace {
    /// When the pool was asked to start it.
    pub began: Option<Instant>,
    /// Each state that was seen, and when since then.
    pub states: Vec<(String, Duration)>,
    /// The addresses that it got.
    pub addresses: String,
}

impl Trace {
    fn note(&mut self, state: &str) {
        let at = self.began.map(|began| began.elapsed()).unwrap_or_default();
        if self.states.len() < MAX_STATES {
            self.states.push((state.to_owned(), at));
        }
    }
}

/// What the pool says about a delegate's VM.
enum VmEvent {
    Is(Box<Vm>),
    Gone,
    Silent(xapi::Error),
}

struct VmEvents {
    received: mpsc::Receiver<VmEvent>,
    task: tokio::task::JoinHandle<()>,
}

/// What is known of a delegate while it runs.
struct Watch {
    /// The disks by position in the order, as people know them.
    labels: Vec<String>,
    claim: Option<Claim>,
    disks: Vec<Option<(DiskDone, DiskAnswer)>>,
    done: Option<JobDone>,
    diagnosis: Option<Diagnosed>,
    state: String,
    error: Option<(String, String)>,
    refused: Option<(String, String)>,
    started: Instant,
    halt_by: Option<Instant>,
    /// How long it has not been heard, as of the last look.
    silence: Option<Duration>,
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
        let want = kept::Want {
            job: &self.id,
            template: &site.template.template,
            network: &self.run.network,
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
        if kept.is_none() {
            let vif = VifCreate {
                vm: vm.clone(),
                network: run.network.clone(),
                device: 0,
                mac: String::new(),
                mtu: run.network_mtu,
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
        for (key, value) in self.options.delegate.net().into_iter().chain(mtu_setting(run.network_mtu)) {
            keys.insert(format!("{}/0/{key}", wire::KEY_NET), value);
        }
        keys
    }

    /// Keeps a delegate that has done its work for a later job, where the pool is configured so, or removes it.
    async fn end(&self, delegate: &Delegate, site: &Site) -> Result<()> {
        let Some(mut holding) = self.holding.lock().await.take() else { return self.remove(delegate).await };
        let (vm, template) = (&delegate.vm, &site.template.template);
        let host = site.host.as_ref();
        let parked = kept::park(&self.pool, &self.run.journals, &mut holding, vm, template, host).await;
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

    /// Watches a delegate until it has halted with its work done.
    pub(super) async fn watch(
        &self,
        delegate: &Delegate,
        handle: &JobHandle,
        labels: Vec<String>,
    ) -> Result<Outcome, Failure> {
        let mut watch = Watch::new(labels);
        let mut cancel = self.run.cancel.clone();
        let mut events = VmEvents::start(&self.pool.client, &delegate.vm);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                Some(event) = events.received.recv() => match event {
                    VmEvent::Gone => {
                        return Err(watch.ended(self, "was removed from the pool by somebody else"));
                    }
                    VmEvent::Silent(error) => self.warn(format!("the pool sends no events: {error}")),
                    VmEvent::Is(vm) => {
                        if self.look(&vm, &mut watch, handle)? {
                            // Its last calls were answered before it halted: they are in the queue.
                            while let Ok(Some(event)) = timeout(QUEUE_PAUSE, handle.events().recv()).await {
                                self.hear(event, &mut watch);
                            }
                            return watch.into_outcome(self);
                        }
                    }
                },
                Some(event) = handle.events().recv() => self.hear(event, &mut watch),
                _ = tick.tick() => {
                    self.check_limits(&mut watch, handle)?;
                    if watch.halt_by.is_some_and(|by| Instant::now() >= by) {
                        self.warn("the delegate said its last word and did not power off".into());
                        return watch.into_outcome(self);
                    }
                }
                () = requested(&mut cancel) => {
                    handle.stop();
                    return Err(cancelled().into());
                }
            }
        }
    }

    /// Takes in the delegate's VM record. `true` once it has halted.
    fn look(&self, vm: &Vm, watch: &mut Watch, handle: &JobHandle) -> Result<bool, Failure> {
        let key = |key: &str| vm.xenstore_data.get(key).filter(|value| !value.is_empty());
        if let Some(text) = key(wire::KEY_ABD_KEY) {
            let fingerprint: pin::Fingerprint = text.parse().map_err(|error| {
                Error::new(Kind::Failed, "the delegate published a key that is none").because(error)
            })?;
            handle
                .admit(fingerprint)
                .map_err(|error| Error::new(Kind::Failed, "the delegate's key is refused").because(error))?;
        }
        if let Some(state) = key(wire::KEY_STATE)
            && *state != watch.state
        {
            watch.state.clone_from(state);
            self.trace().note(state);
            tracing::debug!(job = %self.id, state, "delegate");
            if matches!(wire::State::from_name(state), Some(wire::State::Network | wire::State::Connecting)) {
                self.step(&format!("delegate: {state}"));
            }
        }
        if let Some(addresses) = key(wire::KEY_ADDRESS) {
            self.trace().addresses.clone_from(addresses);
        }
        if let Some(message) = key(wire::KEY_ERROR) {
            let code = key(wire::KEY_ERROR_CODE).cloned().unwrap_or_default();
            watch.error = Some((code, message.clone()));
        }
        Ok(vm.power_state == PowerState::Halted)
    }

    /// Takes in what the delegate told the service.
    fn hear(&self, event: JobEvent, watch: &mut Watch) {
        match event {
            JobEvent::Claimed(claim) => {
                self.step(&format!("delegate works ({})", claim.engine));
                watch.claim = Some(claim);
            }
            JobEvent::Progress(progress) => self.show(&progress.disks),
            JobEvent::DiskSealed { disk, tree, id, counts, bad, pacing } => {
                if let Some(slot) = watch.disks.get_mut(usize::from(disk)) {
                    let done = DiskDone { disk, size: tree.size, root: tree.root, counts, bad, pacing };
                    *slot = Some((done, DiskAnswer { tree: id }));
                }
            }
            JobEvent::Diagnosed(told) => {
                watch.diagnosis = Some(Diagnosed { told, heard: SystemTime::now() });
            }
            JobEvent::Done(done) => {
                self.show(&done.disks);
                watch.halt_by = Some(Instant::now() + HALT_LIMIT);
                watch.done = Some(done);
            }
            // A connection that broke says nothing about why: the delegate's end does.
            JobEvent::Refused { code, .. } if code == CODE_CUT => {}
            JobEvent::Refused { code, message } => watch.refused = Some((code, message)),
        }
    }

    fn show(&self, disks: &[wire::DiskCounts]) {
        let sum =
            |of: fn(&wire::DiskCounts) -> blocks::ByteCount| disks.iter().map(|disk| of(disk).get()).sum();
        self.run.report.event(&Event::Progress {
            job: self.id.clone(),
            moved: sum(|disk| disk.moved),
            planned: sum(|disk| disk.planned),
            sealed: sum(|disk| disk.sealed),
        });
    }

    fn check_limits(&self, watch: &mut Watch, handle: &JobHandle) -> Result<(), Failure> {
        if watch.halt_by.is_some() {
            return Ok(());
        }
        let settings = &self.options.delegate;
        watch.silence = handle.last_contact().map(|contact| contact.elapsed());
        match handle.last_contact() {
            None if watch.started.elapsed() > settings.boot_limit => {
                Err(watch.ended(self, &format!("did not call within {} s", settings.boot_limit.as_secs())))
            }
            Some(contact) if contact.elapsed() > settings.watchdog + LAST_WORDS => {
                Err(watch.ended(self, &format!("has not been heard for {} s", contact.elapsed().as_secs())))
            }
            _ => Ok(()),
        }
    }
}

impl VmEvents {
    /// Follows one VM by events in a task of its own, so that a waiting request is never cut short.
    fn start(client: &xapi::Client, vm: &Ref<Vm>) -> Self {
        let (sender, received) = mpsc::channel(EVENT_QUEUE);
        let (client, vm, class) = (client.clone(), vm.clone(), format!("vm/{vm}"));
        let task = tokio::spawn(async move {
            let mut events = client.events(&[&class]);
            loop {
                let event = match events.next_within(LOOK).await {
                    Ok(None) => match client.get_record(&vm).await {
                        Ok(vm) => VmEvent::Is(Box::new(vm)),
                        Err(error) if crate::retry::is_gone(&error) => VmEvent::Gone,
                        Err(error) => VmEvent::Silent(error),
                    },
                    Ok(Some(xapi::Event::Resync)) => continue,
                    Ok(Some(xapi::Event::Changed(change))) if change.operation == xapi::Operation::Del => {
                        VmEvent::Gone
                    }
                    Ok(Some(xapi::Event::Changed(change))) => match change.as_record::<Vm>() {
                        Some(Ok((_, vm))) => VmEvent::Is(Box::new(vm)),
                        _ => continue,
                    },
                    Err(error) => {
                        events = client.events(&[&class]);
                        tokio::time::sleep(EVENT_PAUSE).await;
                        VmEvent::Silent(error)
                    }
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        Self { received, task }
    }
}

impl Drop for VmEvents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    fn new(labels: Vec<String>) -> Self {
        Self {
            claim: None,
            disks: vec![None; labels.len()],
            labels,
            done: None,
            diagnosis: None,
            state: String::new(),
            error: None,
            refused: None,
            started: Instant::now(),
            halt_by: None,
            silence: None,
        }
    }

    /// A halted delegate: either all of its work is acknowledged, or it failed.
    fn into_outcome(mut self, job: &Job<'_>) -> Result<Outcome, Failure> {
        let done = match self.done.take() {
            Some(done) if done.outcome.is_ok() => done,
            Some(JobDone { outcome: Err(failure), disk, .. }) => {
                let label = disk.and_then(|disk| self.labels.get(usize::from(disk)));
                let message = match label {
                    Some(label) => format!("disk {label}: {}", failure.message),
                    None => failure.message,
                };
                return Err(failed(job, &failure.code, &message));
            }
            _ => {
                let how = if self.claim.is_some() {
                    "was powered off or crashed in the middle of its work"
                } else {
                    "was powered off or crashed before it called"
                };
                return Err(self.ended(job, how));
            }
        };
        if self.disks.iter().any(Option::is_none) {
            return Err(self.ended(job, "reported success without having finished every disk"));
        }
        Ok(Outcome { claim: self.claim, disks: self.disks, done, reused: false, diagnosis: self.diagnosis })
    }

    /// The failure of a delegate that ended early: its own words where it left some.
    fn ended(&mut self, job: &Job<'_>, how: &str) -> Failure {
        if let Some((code, mut message)) = self.error.take().or(self.refused.take()) {
            // It cannot tell a cut connection from a dead orchestrator; from here the two differ.
            if let Some(silence) = self.silence.filter(|silence| code == CODE_WATCHDOG && *silence > SILENCE)
            {
                message.push_str(&format!(
                    "; it was not heard for its last {} s: the connection between them was cut",
                    silence.as_secs()
                ));
            }
            return failed(job, &code, &message);
        }
        let last = if self.state.is_empty() {
            "it never wrote to XenStore: see its console".to_owned()
        } else {
            format!("its last state was '{}'", self.state)
        };
        let message = format!("the delegate of {} {how}; {last}", job.subject);
        Failure { error: Error::new(Kind::Failed, message), code: None }
    }
}

/// A failure in the delegate's own words, with what helps.
fn failed(job: &Job<'_>, code: &str, message: &str) -> Failure {
    let kind = match code {
        "store-full" => Kind::StoreFull,
        "store-error" => Kind::Store,
        "missing-block" | "missing-node" | "damaged-block" => Kind::Damaged,
        "protocol-version" | "version" | "bad-config" => Kind::Template,
        _ => Kind::Failed,
    };
    let mut error = Error::new(kind, format!("the delegate of {} failed: {message}", job.subject));
    let remedy = wire::advice(code);
    if let Some(remedy) = remedy {
        error = error.remedy(remedy);
    }
    Failure { error, code: (!code.is_empty()).then(|| code.to_owned()) }
}

/// The MTU of the delegates' network as a setting; none where no appliance takes it.
fn mtu_setting(mtu: u32) -> Option<(String, String)> {
    MTUS.contains(&mtu).then(|| ("mtu".to_owned(), mtu.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mtu_of_the_network_is_passed_on_where_an_appliance_takes_it() {
        assert_eq!(mtu_setting(9000), Some(("mtu".into(), "9000".into())));
        assert_eq!(mtu_setting(1500), Some(("mtu".into(), "1500".into())));
        assert_eq!((mtu_setting(0), mtu_setting(65_535)), (None, None));
    }
}
