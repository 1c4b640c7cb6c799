//! Hosts for delegates: which take any, which see the storage and the networks that one needs, and which have memory.

use super::facts::Facts;
use super::finding::{Code, Finding};
use crate::error::Result;
use crate::job::placement::{self, Round};
use crate::spec::JobOptions;
use blocks::ByteCount;
use xapi::{Host, Ref, Sr, Vm};

/// Pages of a domain.
const PAGES_PER_MIB: u64 = 256;
/// Shadow memory of each virtual processor, in pages.
const SHADOW_PAGES_PER_VCPU: u64 = 256;
/// What Xen itself takes for each virtual processor, in pages.
const XEN_PAGES_PER_VCPU: u64 = 38;
/// Inside and outside the domain, one each.
const EXTRA_MIB: u64 = 2;

/// What a delegate of this memory and these processors takes from its host: XAPI's own sum for HVM guests
/// (xen-api, `ocaml/xapi-idl/memory/memory.ml`).
pub fn footprint(memory: ByteCount, vcpus: u32) -> ByteCount {
    let mib = memory.get().div_ceil(1 << 20);
    let vcpus = u64::from(vcpus);
    // Two pages for each MiB: the map of its pages, and their shadow.
    let shadow = (SHADOW_PAGES_PER_VCPU * vcpus + 2 * mib).div_ceil(PAGES_PER_MIB).max(1);
    let xen = (XEN_PAGES_PER_VCPU * vcpus).div_ceil(PAGES_PER_MIB);
    ByteCount::new((mib + EXTRA_MIB + shadow + xen) << 20)
}

/// Free memory of a host; none where it does not tell.
pub(super) fn free_memory(facts: &Facts, host: &Host) -> Option<ByteCount> {
    let free = facts.host_metrics.get(&host.metrics)?.memory_free;
    (free > 0).then(|| ByteCount::new(free))
}

/// Whether a host has memory for a delegate; one that does not tell is taken to have it.
pub(super) fn has_memory(facts: &Facts, host: &Host, options: &JobOptions) -> bool {
    let needed = footprint(options.delegate.memory, options.delegate.vcpus);
    placement::has_memory(facts.host_metrics.get(&host.metrics), needed)
}

/// The delegates that a job of this VM runs, one after the other, each on a host that takes new VMs, leads to the
/// delegates' networks and passes the test.
///
/// # Errors
/// Which storage is seen by none of them.
pub(super) fn rounds(
    facts: &Facts,
    vm: &Vm,
    options: &JobOptions,
    wanted: impl Fn(&Host) -> bool,
) -> Result<Vec<Round>> {
    let disks = facts.disks(vm).into_iter().filter(|disk| !super::vm::is_excluded(disk, options));
    let storage: Vec<_> = disks.map(|disk| disk.vdi.sr.clone()).collect();
    let site = facts.site(|reference, host| {
        facts.is_usable(reference) && super::network::leads_to(facts, reference) && wanted(host)
    });
    placement::rounds(&storage, &site, facts.templates(), &placement::preference(None, Some(vm)))
}

/// The delegates that a job would run for what lies on this storage, placed as the job places them.
///
/// # Errors
/// Which storage no host sees.
pub fn rounds_of(facts: &Facts, storage: &[Ref<Sr>], vm: &Vm, options: &JobOptions) -> Result<Vec<Round>> {
    let demand = placement::Demand {
        networks: facts.delegate_networks.clone().unwrap_or_default(),
        footprint: footprint(options.delegate.memory, options.delegate.vcpus),
    };
    let site = placement::Site::of(facts.for_placing(), &demand);
    placement::rounds(storage, &site, facts.templates(), &placement::preference(None, Some(vm)))
}

/// Hosts that take no delegates, or have no memory for one.
pub(super) fn check(facts: &Facts, options: &JobOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (reference, host) in &facts.hosts {
        let (name, object) = (&host.name_label, Facts::host_object(host));
        if !host.enabled {
            findings.push(Finding::warning(
                Code::Host,
                object,
                format!("host '{name}' is in maintenance mode: delegates do not run there"),
                "take it out of maintenance mode when its work is done",
            ));
        } else if !facts.is_usable(reference) {
            findings.push(Finding::warning(
                Code::Host,
                object,
                format!("the pool has lost contact to host '{name}': delegates do not run there"),
                "see whether it runs and whether its management network works",
            ));
        } else if !has_memory(facts, host, options) {
            findings.push(no_memory(facts, host, options));
        }
    }
    if !facts.hosts.keys().any(|host| facts.is_usable(host)) {
        let message = format!("no host of pool '{}' takes new VMs", facts.name);
        let remedy = "take one out of maintenance mode";
        findings.push(Finding::error(Code::Host, facts.pool_object(), message, remedy));
    }
    findings
}

fn no_memory(facts: &Facts, host: &Host, options: &JobOptions) -> Finding {
    let needed = footprint(options.delegate.memory, options.delegate.vcpus);
    let free = free_memory(facts, host).unwrap_or_default();
    Finding::warning(
        Code::HostMemory,
        Facts::host_object(host),
        format!("host '{}' has {free} of memory free, a delegate takes {needed}", host.name_label),
        "free some there, or give delegates less with --delegate-memory",
    )
}

/// Whether hosts can run the delegates for this VM.
pub(super) fn check_vm(facts: &Facts, vm: &Vm, options: &JobOptions) -> Vec<Finding> {
    if facts.templates.is_err() || facts.delegate_networks.is_err() {
        // That is said once, for the pool.
        return Vec::new();
    }
    let name = &vm.name_label;
    if let Err(error) = rounds(facts, vm, options, |_| true) {
        let message = format!("no host can run a delegate for '{name}': {error}");
        let remedy = error.remedy_text().unwrap_or("see the findings about hosts and storage");
        return vec![Finding::error(Code::VmNoHost, Facts::vm_object(vm), message, remedy)];
    }
    let Err(error) = rounds(facts, vm, options, |host| has_memory(facts, host, options)) else {
        return Vec::new();
    };
    let needed = footprint(options.delegate.memory, options.delegate.vcpus);
    vec![Finding::error(
        Code::HostMemory,
        Facts::vm_object(vm),
        format!(
            "without hosts that have less than {needed} of memory free, no delegate for '{name}' can run: {error}"
        ),
        "free some on a host that sees the VM's disks, or give the delegate less with --delegate-memory",
    )]
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::preflight::finding::Level;

    fn found(sample: &Sample) -> Vec<(Code, Level)> {
        let findings = check_vm(&sample.facts, sample.vm(), &JobOptions::default());
        findings.iter().map(|finding| (finding.code, finding.level)).collect()
    }

    #[test]
    fn the_footprint_is_xapis_own_sum() {
        // 128 MiB, 1 processor: (256 + 2 * 128) pages are 2 MiB of shadow, 38 pages are 1 MiB, 2 MiB extra.
        assert_eq!(footprint(ByteCount::new(128 << 20), 1), ByteCount::new(133 << 20));
        assert_eq!(footprint(ByteCount::new(1024 << 20), 4), ByteCount::new((1024 + 2 + 12 + 1) << 20));
    }

    #[test]
    fn memory_is_enough_to_the_byte_and_unknown_memory_is_taken_as_enough() {
        let mut sample = Sample::new();
        let needed = footprint(ByteCount::new(128 << 20), 1).get();
        sample.metrics_mut().memory_free = needed;
        assert_eq!(found(&sample), []);
        sample.metrics_mut().memory_free = needed - 1;
        assert_eq!(found(&sample), [(Code::HostMemory, Level::Error)]);
        let pool = check(&sample.facts, &JobOptions::default());
        assert_eq!((pool[0].code, pool[0].level), (Code::HostMemory, Level::Warning));
        sample.metrics_mut().memory_free = 0;
        assert_eq!(found(&sample), []);
    }

    #[test]
    fn memory_on_a_host_that_does_not_see_the_storage_is_no_help() {
        let mut sample = Sample::new();
        sample.metrics_mut().memory_free = 1;
        sample.add_host("host-2", 64 << 30, false);
        assert_eq!(found(&sample), [(Code::HostMemory, Level::Error)]);
        sample.add_host("host-3", 64 << 30, true);
        assert_eq!(found(&sample), []);
    }

    #[test]
    fn disks_that_no_host_with_a_template_sees_are_named_with_their_storage() {
        let mut sample = Sample::new();
        let other = sample.add_sr("Local storage 2");
        sample.add_disk_on(&other, 1 << 30);
        let findings = check_vm(&sample.facts, sample.vm(), &JobOptions::default());
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert_eq!(finding.code, Code::VmNoHost);
        assert!(finding.message.contains("'Local storage 2'"), "{}", finding.message);
        sample.add_host("host-2", 64 << 30, false);
        sample.plug("host-2", &other);
        assert_eq!(found(&sample), [(Code::VmNoHost, Level::Error)], "no template there");
        sample.add_template_on(&other);
        assert_eq!(found(&sample), [], "two delegates, one on each host");
    }

    #[test]
    fn a_host_off_the_delegates_network_runs_none() {
        let mut sample = Sample::new();
        sample.add_host("host-2", 64 << 30, false);
        let host = sample.host.clone();
        sample.pif_mut(&host).currently_attached = false;
        assert_eq!(found(&sample), [(Code::VmNoHost, Level::Error)]);
    }

    #[test]
    fn hosts_that_are_disabled_or_dead_run_no_delegates() {
        for dead in [false, true] {
            let mut sample = Sample::new();
            if dead {
                sample.metrics_mut().live = false;
            } else {
                sample.host_mut().enabled = false;
            }
            assert_eq!(found(&sample), [(Code::VmNoHost, Level::Error)]);
            let pool = check(&sample.facts, &JobOptions::default());
            let levels: Vec<_> = pool.iter().map(|finding| (finding.code, finding.level)).collect();
            assert_eq!(levels, [(Code::Host, Level::Warning), (Code::Host, Level::Error)]);
            sample.add_host("host-2", 64 << 30, true);
            assert_eq!(found(&sample), []);
        }
    }
}
