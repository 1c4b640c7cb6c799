//! The calls of a backup, in order, by the steps that the job names while it runs.
//!
//! An end-to-end test compares the list with what the simulator logs of the backup that follows: a call that the job
//! makes and this list does not know, or the other way round, fails it.

use super::predict::{Ask, Disk, Shot, Try};
use crate::job::FIRST_POSITION;
use crate::job::placement::Round;
use crate::journal::Keep;
use crate::pool::{TAG_DELEGATE, TAG_JOB, TAG_OWNER, TAG_REFERENCE, TAG_SELF, TAG_STORE, TAG_TASK};
use crate::preflight::Facts;
use crate::references;
use crate::spec::JobOptions;
use serde::Serialize;
use xapi::Vm;

/// The step in which a delegate is made.
pub(super) const START: &str = "start delegate";
/// The step in which it goes.
pub(super) const REMOVE: &str = "remove delegate";

/// One call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// The job's step, as its output names it.
    pub step: &'static str,
    /// The call as it is sent: `Async.` marks one that runs as a task; data handlers are named by their path.
    pub call: String,
    /// What it is about.
    pub object: String,
    /// Its parameters, as far as people want to know them.
    pub detail: String,
}

struct Steps {
    step: &'static str,
    list: Vec<Step>,
}

impl Steps {
    fn call(&mut self, call: &str, object: impl Into<String>, detail: impl Into<String>) {
        let (object, detail) = (object.into(), detail.into());
        self.list.push(Step { step: self.step, call: call.to_owned(), object, detail });
    }

    /// A call that runs as a task, the task's tag and its removal.
    fn task(&mut self, call: &str, object: impl Into<String>, detail: impl Into<String>) {
        self.call(&format!("Async.{call}"), object, detail);
        self.call("task.add_to_other_config", "its task", TAG_TASK);
        self.call("task.destroy", "its task", "");
    }

    /// The mark of the job, with what else is to be said of the object.
    fn mark(&mut self, class: &str, object: &str, extra: &[&str]) {
        self.tags(class, object, &[&[TAG_SELF, TAG_OWNER], extra, &[TAG_JOB]].concat());
    }

    fn tags(&mut self, class: &str, object: &str, keys: &[&str]) {
        for key in keys {
            self.call(&format!("{class}.add_to_other_config"), object, *key);
        }
    }
}

/// All calls of a backup; without rounds those up to the listing of changes.
pub(super) fn steps(
    facts: &Facts,
    vm: &Vm,
    options: &JobOptions,
    shot: &Shot,
    disks: &[Disk],
    rounds: Option<&[Round]>,
) -> Vec<Step> {
    let mut steps = Steps { step: "check", list: Vec::new() };
    for disk in disks.iter().filter(|disk| disk.enable) {
        steps.call("VDI.enable_cbt", format!("disk '{}'", disk.name), "");
    }
    steps.step = "snapshot";
    snapshot(&mut steps, vm, shot, disks);
    steps.step = "list changes";
    for disk in disks {
        ask(&mut steps, disk);
    }
    let Some(rounds) = rounds else { return steps.list };
    for round in rounds {
        steps.step = START;
        start(&mut steps, facts, vm, options, disks, round);
        steps.step = REMOVE;
        steps.call("VM.destroy", "the delegate", "");
        for _ in own_disks(facts, round) {
            steps.call("VDI.destroy", "the delegate's disk", "");
        }
    }
    if !disks.iter().any(|disk| disk.keep == Keep::Snapshot) {
        steps.step = "remove snapshot";
        if shot.with_memory {
            steps.task("VM.hard_shutdown", "the snapshot", "it is suspended; its memory image goes");
        }
        steps.call("VM.destroy", "the snapshot", "its disks stay");
    }
    steps.step = "rotate references";
    rotate(&mut steps, facts, vm, shot, disks);
    steps.list
}

fn snapshot_disk(name: &str) -> String {
    format!("snapshot of '{name}'")
}

fn snapshot(steps: &mut Steps, vm: &Vm, shot: &Shot, disks: &[Disk]) {
    let object = format!("VM '{}'", vm.name_label);
    for try_ in &shot.tries {
        match try_ {
            Try::Works(call) => steps.task(call, object.clone(), "named abd-JOB-snapshot"),
            Try::Fails(call) => steps.task(call, object.clone(), "this release cannot do that"),
            // There is no task.
            Try::Refused(call) => {
                let detail = "this release does not know all of its parameters";
                steps.call(&format!("Async.{call}"), object.clone(), detail);
            }
        }
    }
    steps.mark("VM", "the snapshot", &[]);
    for name in disks.iter().map(|disk| &disk.name).chain(&shot.unwanted) {
        steps.mark("VDI", &snapshot_disk(name), &[]);
    }
}

fn ask(steps: &mut Steps, disk: &Disk) {
    let object = snapshot_disk(&disk.name);
    match &disk.ask {
        Some(Ask::Changes(from)) => {
            steps.call("VDI.list_changed_blocks", object, format!("since reference {from}"));
        }
        Some(Ask::Head(base)) => {
            let detail = match base {
                Some(base) => format!("the list of blocks that differ from {base}, no data"),
                None => "the list of allocated blocks, no data".to_owned(),
            };
            steps.call("task.create", "a task for the export", "");
            steps.call("task.add_to_other_config", "its task", TAG_TASK);
            steps.call("GET /export_raw_vdi", object, detail);
            steps.call("task.destroy", "its task", "");
        }
        None => {}
    }
}

/// The template's disks, which every delegate has a copy of.
fn own_disks(facts: &Facts, round: &Round) -> Vec<String> {
    let template = facts.templates().get(round.template);
    let record = template.and_then(|template| facts.vms.get(&template.template.reference));
    record.map(|record| facts.disks(record).iter().map(|disk| disk.name()).collect()).unwrap_or_default()
}

fn start(steps: &mut Steps, facts: &Facts, vm: &Vm, options: &JobOptions, disks: &[Disk], round: &Round) {
    let delegate = "the delegate";
    let template = facts.templates().get(round.template);
    let record = template.and_then(|template| facts.vms.get(&template.template.reference));
    let name = record.map_or("the template", |record| &record.name_label);
    steps.task("VM.clone", format!("template '{name}'"), "named abd-JOB");
    steps.mark("VM", delegate, &[]);
    for _ in own_disks(facts, round) {
        steps.mark("VDI", "the delegate's disk", &[TAG_DELEGATE]);
    }
    steps.call("VM.set_name_description", delegate, format!("for {}", vm.name_label));
    steps.task("VM.provision", delegate, "");
    steps.call("VM.set_memory_limits", delegate, options.delegate.memory.to_string());
    // The number at start may never exceed the maximum.
    let fewer = record.is_some_and(|record| u64::from(options.delegate.vcpus) < record.vcpus_at_startup);
    let mut calls = ["VM.set_VCPUs_max", "VM.set_VCPUs_at_startup"];
    if fewer {
        calls.reverse();
    }
    for call in calls {
        steps.call(call, delegate, options.delegate.vcpus.to_string());
    }
    for (position, at) in (FIRST_POSITION..).zip(&round.disks) {
        let object = disks.get(*at).map_or_else(String::new, |disk| snapshot_disk(&disk.name));
        steps.call("VBD.create", object, format!("read-only, at position {position} of the delegate"));
    }
    let networks = facts.delegate_networks.as_deref().unwrap_or_default();
    for (number, network) in networks.iter().enumerate() {
        let network = facts.networks.get(network);
        let network = network.map_or_else(String::new, |network| format!("network '{}'", network.name_label));
        let about = match networks.len() {
            1 => "for the delegate".to_owned(),
            _ => format!("for the delegate, card {number}"),
        };
        steps.call("VIF.create", network, about);
    }
    steps.call("VM.set_xenstore_data", delegate, "job, address and key fingerprint of this run");
    let host = facts.hosts.get(&round.host).map_or("", |host| &host.name_label);
    steps.task("VM.start_on", delegate, format!("on host '{host}'"));
}

fn rotate(steps: &mut Steps, facts: &Facts, vm: &Vm, shot: &Shot, disks: &[Disk]) {
    for disk in disks {
        let object = snapshot_disk(&disk.name);
        match disk.keep {
            Keep::Metadata => {
                steps.tags("VDI", &object, &[TAG_REFERENCE, TAG_STORE]);
                steps.task("VDI.data_destroy", object, "only its change log stays, as the next reference");
            }
            Keep::Snapshot => steps.tags("VDI", &object, &[TAG_REFERENCE, TAG_STORE]),
            // It went with the suspended snapshot.
            Keep::Nothing if disk.is_memory() => {}
            Keep::Nothing => steps.call("VDI.destroy", object, ""),
        }
        for old in &disk.replaces {
            steps.call("VDI.destroy", format!("old reference of '{}'", disk.name), old);
        }
    }
    for name in &shot.unwanted {
        steps.call("VDI.destroy", snapshot_disk(name), "nobody wants it");
    }
    let Some(store) = disks.iter().find(|disk| disk.keep == Keep::Snapshot).map(|disk| &disk.store) else {
        return;
    };
    let kept = "the snapshot";
    steps.tags("VM", kept, &[TAG_REFERENCE, TAG_STORE]);
    steps.call("VM.set_name_description", kept, "reserved for the next run");
    steps.call("VM.set_name_label", kept, "abd-JOB-reserved");
    steps.call("VM.remove_from_other_config", kept, TAG_JOB);
    let old = references::reserved_of(&facts.owner, &facts.vms, vm.uuid.as_str(), store);
    for (_, snapshot) in old {
        let name = &snapshot.name_label;
        for disk in facts.disks(snapshot) {
            steps.call("VDI.destroy", format!("disk '{}' of the old snapshot", disk.name()), "");
        }
        steps.call("VM.destroy", format!("old snapshot '{name}'"), "");
    }
}
