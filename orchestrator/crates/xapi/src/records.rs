//! The records, with the members that callers of ours read.

use std::collections::BTreeMap;

use crate::record::{Ref, StringMap, Uuid, classes, words};

words! {
    /// State of a VM.
    PowerState { Halted = "Halted", Paused = "Paused", Running = "Running", Suspended = "Suspended", }
    /// How a VM is virtualised. Absent before XenServer 7.5.
    DomainType {
        Hvm = "hvm", Pv = "pv", PvInPvh = "pv_in_pvh", Pvh = "pvh", Unspecified = "unspecified",
    }
    /// Access of a VM to a disk.
    VbdMode { ReadOnly = "RO", ReadWrite = "RW", }
    /// Kind of a VM's drive.
    VbdType { Disk = "Disk", Cd = "CD", Floppy = "Floppy", }
    /// Purpose of a VDI.
    VdiType {
        System = "system", User = "user", Ephemeral = "ephemeral", Suspend = "suspend",
        Crashdump = "crashdump", HaStatefile = "ha_statefile", Metadata = "metadata",
        RedoLog = "redo_log", Rrd = "rrd", PvsCache = "pvs_cache", CbtMetadata = "cbt_metadata",
    }
    /// What happens to a VDI when its VM starts.
    OnBoot { Persist = "persist", Reset = "reset", }
    /// State of a task.
    TaskStatus {
        Pending = "pending", Success = "success", Failure = "failure", Cancelling = "cancelling",
        Cancelled = "cancelled",
    }
}

classes! {
    /// The pool: exactly one exists.
    Pool = "pool" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        name_description: String = "name_description",
        master: Ref<Host> = "master",
        default_sr: Ref<Sr> = "default_SR",
        suspend_image_sr: Ref<Sr> = "suspend_image_SR",
        ha_enabled: bool = "ha_enabled",
        /// What the licence forbids: `restrict_<feature>` to `true` or `false`.
        restrictions: StringMap = "restrictions",
        other_config: StringMap = "other_config",
        tags: Vec<String> = "tags",
    }

    /// A member of the pool.
    Host = "host" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        hostname: String = "hostname",
        /// Address on the management network.
        address: String = "address",
        enabled: bool = "enabled",
        software_version: StringMap = "software_version",
        api_version_major: i64 = "API_version_major",
        api_version_minor: i64 = "API_version_minor",
        edition: String = "edition",
        license_params: StringMap = "license_params",
        cpu_info: StringMap = "cpu_info",
        metrics: Ref<HostMetrics> = "metrics",
        resident_vms: Vec<Ref<Vm>> = "resident_VMs",
        pbds: Vec<Ref<Pbd>> = "PBDs",
        pifs: Vec<Ref<Pif>> = "PIFs",
        allowed_operations: Vec<String> = "allowed_operations",
        suspend_image_sr: Ref<Sr> = "suspend_image_sr",
        other_config: StringMap = "other_config",
        tags: Vec<String> = "tags",
    }

    /// Memory of a host, and whether its pool hears from it.
    HostMetrics = "host_metrics" {
        uuid: Uuid = "uuid",
        /// Whether the pool hears from the host. It notices a death after some minutes.
        live: bool = "live",
        /// Bytes.
        memory_total: u64 = "memory_total",
        /// Bytes.
        memory_free: u64 = "memory_free",
        last_updated: String = "last_updated",
    }

    /// A virtual machine, a template or a snapshot.
    Vm = "VM" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        name_description: String = "name_description",
        power_state: PowerState = "power_state",
        is_a_template: bool = "is_a_template",
        is_default_template: bool = "is_default_template",
        is_a_snapshot: bool = "is_a_snapshot",
        is_control_domain: bool = "is_control_domain",
        snapshot_of: Ref<Vm> = "snapshot_of",
        snapshots: Vec<Ref<Vm>> = "snapshots",
        snapshot_time: String = "snapshot_time",
        parent: Ref<Vm> = "parent",
        children: Vec<Ref<Vm>> = "children",
        resident_on: Ref<Host> = "resident_on",
        affinity: Ref<Host> = "affinity",
        memory_static_max: u64 = "memory_static_max",
        memory_static_min: u64 = "memory_static_min",
        memory_dynamic_max: u64 = "memory_dynamic_max",
        memory_dynamic_min: u64 = "memory_dynamic_min",
        memory_target: u64 = "memory_target",
        vcpus_max: u64 = "VCPUs_max",
        vcpus_at_startup: u64 = "VCPUs_at_startup",
        vcpus_params: StringMap = "VCPUs_params",
        vbds: Vec<Ref<Vbd>> = "VBDs",
        vifs: Vec<Ref<Vif>> = "VIFs",
        /// References of USB devices that are passed through. Since XenServer 7.3.
        vusbs: Vec<String> = "VUSBs",
        /// References of virtual GPUs.
        vgpus: Vec<String> = "VGPUs",
        /// References of PCI devices that are passed through while it runs.
        attached_pcis: Vec<String> = "attached_PCIs",
        platform: StringMap = "platform",
        hvm_boot_policy: String = "HVM_boot_policy",
        hvm_boot_params: StringMap = "HVM_boot_params",
        domain_type: DomainType = "domain_type",
        nvram: StringMap = "NVRAM",
        pv_bootloader: String = "PV_bootloader",
        pv_kernel: String = "PV_kernel",
        pv_ramdisk: String = "PV_ramdisk",
        pv_args: String = "PV_args",
        actions_after_shutdown: String = "actions_after_shutdown",
        actions_after_reboot: String = "actions_after_reboot",
        actions_after_crash: String = "actions_after_crash",
        bios_strings: StringMap = "bios_strings",
        other_config: StringMap = "other_config",
        xenstore_data: StringMap = "xenstore_data",
        /// -1 when halted.
        domid: i64 = "domid",
        guest_metrics: Ref<VmGuestMetrics> = "guest_metrics",
        allowed_operations: Vec<String> = "allowed_operations",
        current_operations: StringMap = "current_operations",
        blocked_operations: StringMap = "blocked_operations",
        tags: Vec<String> = "tags",
        suspend_vdi: Ref<Vdi> = "suspend_VDI",
        generation_id: String = "generation_id",
        has_vendor_device: bool = "has_vendor_device",
    }

    /// A drive of a VM.
    Vbd = "VBD" {
        uuid: Uuid = "uuid",
        vm: Ref<Vm> = "VM",
        vdi: Ref<Vdi> = "VDI",
        device: String = "device",
        /// Position, a decimal number.
        userdevice: String = "userdevice",
        bootable: bool = "bootable",
        allowed_operations: Vec<String> = "allowed_operations",
        mode: VbdMode = "mode",
        kind: VbdType = "type",
        unpluggable: bool = "unpluggable",
        empty: bool = "empty",
        currently_attached: bool = "currently_attached",
        other_config: StringMap = "other_config",
    }

    /// A virtual disk.
    Vdi = "VDI" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        name_description: String = "name_description",
        sr: Ref<Sr> = "SR",
        vbds: Vec<Ref<Vbd>> = "VBDs",
        /// Bytes.
        virtual_size: u64 = "virtual_size",
        /// Bytes, 0 when not known.
        physical_utilisation: u64 = "physical_utilisation",
        kind: VdiType = "type",
        sharable: bool = "sharable",
        read_only: bool = "read_only",
        managed: bool = "managed",
        missing: bool = "missing",
        location: String = "location",
        is_a_snapshot: bool = "is_a_snapshot",
        snapshot_of: Ref<Vdi> = "snapshot_of",
        snapshots: Vec<Ref<Vdi>> = "snapshots",
        snapshot_time: String = "snapshot_time",
        /// False before XenServer 7.3, which cannot track changes.
        cbt_enabled: bool = "cbt_enabled",
        on_boot: OnBoot = "on_boot",
        allowed_operations: Vec<String> = "allowed_operations",
        current_operations: StringMap = "current_operations",
        sm_config: StringMap = "sm_config",
        other_config: StringMap = "other_config",
        xenstore_data: StringMap = "xenstore_data",
        tags: Vec<String> = "tags",
    }

    /// A storage repository.
    Sr = "SR" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        name_description: String = "name_description",
        kind: String = "type",
        /// `iso` for a library of CD images.
        content_type: String = "content_type",
        shared: bool = "shared",
        vdis: Vec<Ref<Vdi>> = "VDIs",
        pbds: Vec<Ref<Pbd>> = "PBDs",
        /// Bytes, 0 when not known.
        physical_size: u64 = "physical_size",
        /// Bytes, 0 when not known.
        physical_utilisation: u64 = "physical_utilisation",
        /// Bytes.
        virtual_allocation: u64 = "virtual_allocation",
        allowed_operations: Vec<String> = "allowed_operations",
        sm_config: StringMap = "sm_config",
        other_config: StringMap = "other_config",
        tags: Vec<String> = "tags",
    }

    /// A host's connection to a storage repository.
    Pbd = "PBD" {
        uuid: Uuid = "uuid",
        host: Ref<Host> = "host",
        sr: Ref<Sr> = "SR",
        currently_attached: bool = "currently_attached",
        device_config: StringMap = "device_config",
    }

    /// A network adapter of a VM.
    Vif = "VIF" {
        uuid: Uuid = "uuid",
        vm: Ref<Vm> = "VM",
        network: Ref<Network> = "network",
        device: String = "device",
        mac: String = "MAC",
        mtu: u64 = "MTU",
        currently_attached: bool = "currently_attached",
        locking_mode: String = "locking_mode",
        other_config: StringMap = "other_config",
    }

    /// A network of the pool.
    Network = "network" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        name_description: String = "name_description",
        bridge: String = "bridge",
        mtu: u64 = "MTU",
        vifs: Vec<Ref<Vif>> = "VIFs",
        pifs: Vec<Ref<Pif>> = "PIFs",
        purpose: Vec<String> = "purpose",
        other_config: StringMap = "other_config",
        tags: Vec<String> = "tags",
    }

    /// A network adapter of a host.
    Pif = "PIF" {
        uuid: Uuid = "uuid",
        device: String = "device",
        host: Ref<Host> = "host",
        network: Ref<Network> = "network",
        mac: String = "MAC",
        mtu: u64 = "MTU",
        management: bool = "management",
        physical: bool = "physical",
        metrics: Ref<PifMetrics> = "metrics",
        currently_attached: bool = "currently_attached",
        ip_configuration_mode: String = "ip_configuration_mode",
        ip: String = "IP",
        netmask: String = "netmask",
        gateway: String = "gateway",
        ipv6: Vec<String> = "IPv6",
    }

    /// State of a host's network adapter.
    PifMetrics = "PIF_metrics" {
        uuid: Uuid = "uuid",
        /// Whether its link is up.
        carrier: bool = "carrier",
    }

    /// What a kind of storage repository can do.
    Sm = "SM" {
        uuid: Uuid = "uuid",
        /// The kind, as in `SR.type`.
        kind: String = "type",
        /// Features such as `VDI_SNAPSHOT` with their versions.
        features: BTreeMap<String, i64> = "features",
    }

    /// A certificate that the pool knows. Since XenServer 8.2.
    Certificate = "Certificate" {
        uuid: Uuid = "uuid",
        host: Ref<Host> = "host",
        /// `host` for the one that clients see; absent on the first releases, which had no other.
        kind: String = "type",
        not_after: String = "not_after",
    }

    /// A running or finished operation.
    Task = "task" {
        uuid: Uuid = "uuid",
        name_label: String = "name_label",
        name_description: String = "name_description",
        status: TaskStatus = "status",
        /// From 0 to 1.
        progress: f64 = "progress",
        /// XML; empty for an operation without a result.
        result: String = "result",
        error_info: Vec<String> = "error_info",
        created: String = "created",
        finished: String = "finished",
        resident_on: Ref<Host> = "resident_on",
        allowed_operations: Vec<String> = "allowed_operations",
        subtask_of: Ref<Task> = "subtask_of",
        other_config: StringMap = "other_config",
    }

    /// A login.
    Session = "session" {
        uuid: Uuid = "uuid",
        /// Whoever logs in names itself.
        originator: String = "originator",
        last_active: String = "last_active",
        /// Whether it may do everything: the local root and the socket of a control domain.
        is_local_superuser: bool = "is_local_superuser",
        auth_user_name: String = "auth_user_name",
        /// What the role permits, lower case, such as `vm.snapshot`; empty for a superuser.
        rbac_permissions: Vec<String> = "rbac_permissions",
        other_config: StringMap = "other_config",
    }

    /// What a guest reports about itself.
    VmGuestMetrics = "VM_guest_metrics" {
        uuid: Uuid = "uuid",
        os_version: StringMap = "os_version",
        pv_drivers_version: StringMap = "PV_drivers_version",
        pv_drivers_detected: bool = "PV_drivers_detected",
        networks: StringMap = "networks",
        other: StringMap = "other",
        live: bool = "live",
        last_updated: String = "last_updated",
    }
}

/// Records by reference.
pub(crate) type Records<T> = BTreeMap<Ref<T>, T>;
