//! A delegate at work: what it, the service and the pool tell about it, until it has halted, its time is over, or the
//! run is to stop.

use super::delegate::Delegate;
use super::{Failure, Job, cancelled, requested};
use crate::error::{Error, Kind};
use crate::report::Event;
use ads::{JobEvent, JobHandle};
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;
use tokio::time::timeout;
use wire::{Claim, DiskAnswer, DiskDone, JobDone};
use xapi::{PowerState, Ref, Vm};

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
    /// Those of each card, by its number.
    pub by_card: BTreeMap<u32, String>,
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
        for card in &self.run.cards {
            if let Some(addresses) = key(&format!("{}/{}", wire::KEY_ADDRESS, card.number)) {
                self.trace().by_card.insert(card.number, addresses.clone());
            }
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
