//! Preflight: what would keep jobs from working, found before anything is touched.
//!
//! Owns: the facts that are read from a pool and from this machine, the checks, and the findings. A check is a pure
//! function from facts to findings; every finding has a stable code, a level, a sentence that names the object and
//! a remedy, and `orchestrator/FINDINGS.md` explains each code. `abd doctor` runs them all; a run of jobs runs those
//! of its pool once, and each job those of its VM, and refuses on an error.
//!
//! Promises: nothing here changes anything in a pool or in a store.

mod chains;
mod facts;
mod finding;
mod gate;
mod here;
mod hosts;
mod leftovers;
mod network;
mod permissions;
mod references;
#[cfg(test)]
pub(crate) mod sample;
mod space;
mod storage;
mod template;
mod text;
mod trust;
mod vm;

pub use facts::{Disk, FIRST_CBT_API, Facts, Known};
pub use finding::{Code, Finding, Level, Object, ObjectKind, refusal, worst};
pub use gate::{Gate, Outlook, Subject, gate, outlook, usual_changes};
pub use here::{Calling, Here, check as check_here, check_calling};
pub use hosts::{footprint, rounds_of};
pub use leftovers::count as leftover_count;
#[cfg(test)]
pub(crate) use permissions::may_be_called;
pub use text::{WIDTH, text, wrap};
pub use trust::cbt_is_restricted;
pub use vm::{FIRST_WITHOUT_QUIESCE_API, can_track, is_excluded, suspend_image, suspend_sr};

use crate::spec::JobOptions;
use std::time::SystemTime;
use xapi::{Ref, Vm};

/// API version from which `VM.snapshot` can leave disks out.
pub const FIRST_IGNORING_API: (i64, i64) = (2, 20);

/// Everything about a pool that is not about one VM.
pub fn check_pool(facts: &Facts, options: &JobOptions, now: SystemTime) -> Vec<Finding> {
    let findings = [
        trust::check_release(facts),
        permissions::check(facts),
        template::check(facts),
        network::check(facts),
        hosts::check(facts, options),
        storage::check(facts),
        trust::check_clock(facts),
        trust::check_certificates(facts, now),
        leftovers::check(facts),
        references::check(facts, now),
    ];
    labelled(facts, findings.concat())
}

/// Everything that concerns a job of one VM.
pub fn check_vm(facts: &Facts, reference: &Ref<Vm>, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    let mut findings = vm::check(facts, reference, vm, options);
    findings.extend(chains::hold(facts, vm, options));
    of_vm(facts, vm, findings)
}

fn of_vm(facts: &Facts, vm: &Vm, mut findings: Vec<Finding>) -> Vec<Finding> {
    for finding in &mut findings {
        finding.vm = Some(vm.uuid.to_string());
    }
    labelled(facts, findings)
}

fn labelled(facts: &Facts, mut findings: Vec<Finding>) -> Vec<Finding> {
    for finding in &mut findings {
        finding.pool = Some(facts.name.clone());
    }
    findings
}
