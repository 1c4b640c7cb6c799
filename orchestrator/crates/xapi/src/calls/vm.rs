//! Calls on VMs.

use crate::client::Client;
use crate::error::Result;
use crate::record::{Ref, StringMap};
use crate::records::{Host, Vdi, Vm};
use crate::value::Value;

/// The four limits of a VM's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Lower end of what the VM was built for.
    pub static_min: u64,
    /// Upper end of what the VM was built for.
    pub static_max: u64,
    /// Lower end while it runs.
    pub dynamic_min: u64,
    /// Upper end while it runs.
    pub dynamic_max: u64,
}

impl MemoryLimits {
    /// The same fixed size everywhere: no ballooning.
    pub fn fixed(bytes: u64) -> Self {
        Self { static_min: bytes, static_max: bytes, dynamic_min: bytes, dynamic_max: bytes }
    }
}

impl Client {
    /// Snapshots a VM and its disks. Disks in `ignore` are left out where the host can do that (XenServer 8
    /// and later); older hosts snapshot them too.
    pub async fn vm_snapshot(&self, vm: &Ref<Vm>, name: &str, ignore: &[Ref<Vdi>]) -> Result<Ref<Vm>> {
        let params = vec![vm.into(), name.into()];
        if !ignore.is_empty() {
            let mut longer = params.clone();
            longer.push(Value::Array(ignore.iter().map(Value::from).collect()));
            match self.run("VM.snapshot", longer).await {
                Err(error) if error.code() == "MESSAGE_PARAMETER_COUNT_MISMATCH" => {}
                done => return done,
            }
        }
        self.run("VM.snapshot", params).await
    }

    /// Snapshots a VM whose guest is asked to bring its file systems to rest first. Hosts since XenServer 8.1
    /// cannot do that any more: [`Kind::NotSupported`](crate::Kind::NotSupported).
    pub async fn vm_snapshot_with_quiesce(&self, vm: &Ref<Vm>, name: &str) -> Result<Ref<Vm>> {
        self.run("VM.snapshot_with_quiesce", vec![vm.into(), name.into()]).await
    }

    /// Snapshots a running VM with its memory: the snapshot is suspended and has a `suspend_VDI`. The guest
    /// stands still while its memory is written.
    pub async fn vm_checkpoint(&self, vm: &Ref<Vm>, name: &str) -> Result<Ref<Vm>> {
        self.run("VM.checkpoint", vec![vm.into(), name.into()]).await
    }

    /// Clones a halted VM or a template with its disks.
    pub async fn vm_clone(&self, vm: &Ref<Vm>, name: &str) -> Result<Ref<Vm>> {
        self.run("VM.clone", vec![vm.into(), name.into()]).await
    }

    /// Turns a clone of a template into a VM, with the disks that the template asks for.
    pub async fn vm_provision(&self, vm: &Ref<Vm>) -> Result<()> {
        self.perform("VM.provision", vec![vm.into()]).await
    }

    /// Makes a template a VM or a VM a template.
    pub async fn vm_set_is_a_template(&self, vm: &Ref<Vm>, is_a_template: bool) -> Result<()> {
        self.act("VM.set_is_a_template", vec![vm.into(), is_a_template.into()]).await
    }

    /// Removes a halted VM's record, its VBDs and VIFs. Its VDIs stay.
    pub async fn vm_destroy(&self, vm: &Ref<Vm>) -> Result<()> {
        self.act("VM.destroy", vec![vm.into()]).await
    }

    /// Starts a VM where the pool likes.
    pub async fn vm_start(&self, vm: &Ref<Vm>) -> Result<()> {
        self.perform("VM.start", vec![vm.into(), false.into(), false.into()]).await
    }

    /// Starts a VM on a host.
    pub async fn vm_start_on(&self, vm: &Ref<Vm>, host: &Ref<Host>) -> Result<()> {
        self.perform("VM.start_on", vec![vm.into(), host.into(), false.into(), false.into()]).await
    }

    /// Asks the guest to shut down and waits until it has.
    pub async fn vm_clean_shutdown(&self, vm: &Ref<Vm>) -> Result<()> {
        self.perform("VM.clean_shutdown", vec![vm.into()]).await
    }

    /// Ends the guest at once.
    pub async fn vm_hard_shutdown(&self, vm: &Ref<Vm>) -> Result<()> {
        self.perform("VM.hard_shutdown", vec![vm.into()]).await
    }

    /// Declares a VM halted in the database and does nothing else. Right only where its host is dead for
    /// certain: a VM that still runs somewhere would go on using its disks.
    pub async fn vm_power_state_reset(&self, vm: &Ref<Vm>) -> Result<()> {
        self.act("VM.power_state_reset", vec![vm.into()]).await
    }

    /// Replaces `xenstore_data`. Only keys below `vm-data/` reach the guest, at its next start; while it
    /// runs the whole tree below `vm-data` is replaced.
    pub async fn vm_set_xenstore_data(&self, vm: &Ref<Vm>, entries: &StringMap) -> Result<()> {
        self.act("VM.set_xenstore_data", vec![vm.into(), entries.into()]).await
    }

    /// Sets the memory of a halted VM.
    pub async fn vm_set_memory_limits(&self, vm: &Ref<Vm>, limits: MemoryLimits) -> Result<()> {
        let MemoryLimits { static_min, static_max, dynamic_min, dynamic_max } = limits;
        let mut params = vec![vm.into()];
        for bytes in [static_min, static_max, dynamic_min, dynamic_max] {
            params.push(super::storage::size("VM.set_memory_limits", bytes)?);
        }
        self.act("VM.set_memory_limits", params).await
    }

    /// Sets the CPUs of a halted VM, both the number at start and the maximum.
    pub async fn vm_set_vcpus(&self, vm: &Ref<Vm>, count: u32) -> Result<()> {
        let current = self.get_record(vm).await?.vcpus_at_startup;
        // The number at start may never exceed the maximum.
        let mut methods = ["VM.set_VCPUs_max", "VM.set_VCPUs_at_startup"];
        if u64::from(count) < current {
            methods.reverse();
        }
        for method in methods {
            self.act(method, vec![vm.into(), count.into()]).await?;
        }
        Ok(())
    }

    /// Replaces the tags.
    pub async fn vm_set_tags(&self, vm: &Ref<Vm>, tags: &[&str]) -> Result<()> {
        self.act("VM.set_tags", vec![vm.into(), tags.to_vec().into()]).await
    }

    /// Sets the host a VM prefers; [`Ref::null`] for none.
    pub async fn vm_set_affinity(&self, vm: &Ref<Vm>, host: &Ref<Host>) -> Result<()> {
        self.act("VM.set_affinity", vec![vm.into(), host.into()]).await
    }

    /// Whether a VM could start on a host now; the error says why not.
    pub async fn vm_assert_can_boot_here(&self, vm: &Ref<Vm>, host: &Ref<Host>) -> Result<()> {
        self.act("VM.assert_can_boot_here", vec![vm.into(), host.into()]).await
    }

    /// Hosts on which a VM could start.
    pub async fn vm_get_possible_hosts(&self, vm: &Ref<Vm>) -> Result<Vec<Ref<Host>>> {
        self.get("VM.get_possible_hosts", vec![vm.into()]).await
    }
}
