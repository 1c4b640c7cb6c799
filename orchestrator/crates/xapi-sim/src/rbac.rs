//! Roles: which calls a user may make. The roles are an order, each may do what the next one may and more; the table
//! says for each call the least of them, as the public data model does.

use crate::failure::{Failure, Outcome};
use crate::sim::Context;
use crate::store::methods::{Action, Method};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A role, the mightiest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Everything.
    PoolAdmin,
    /// The pool, its hosts and storage.
    PoolOperator,
    /// VMs, with memory, snapshots and placement.
    VmPowerAdmin,
    /// VMs and their disks.
    VmAdmin,
    /// Starting and stopping VMs.
    VmOperator,
    /// Looking.
    ReadOnly,
}

const ROLES: [(Role, &str); 6] = [
    (Role::PoolAdmin, "pool-admin"),
    (Role::PoolOperator, "pool-operator"),
    (Role::VmPowerAdmin, "vm-power-admin"),
    (Role::VmAdmin, "vm-admin"),
    (Role::VmOperator, "vm-operator"),
    (Role::ReadOnly, "read-only"),
];

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = ROLES.iter().find(|(role, _)| role == self);
        f.write_str(found.map_or("", |(_, name)| name))
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = ROLES.iter().find(|(_, name)| *name == text).map(|(role, _)| *role);
        let names = || ROLES.map(|(_, name)| name).join(", ");
        found.ok_or_else(|| format!("unknown role {text:?}; known are {}", names()))
    }
}

/// Data handlers as permissions; all of them need the same role.
const HANDLERS: [&str; 3] = ["http/put_import", "http/put_import_raw_vdi", "http/get_export_raw_vdi"];
const HANDLER_ROLE: Role = Role::VmAdmin;

/// Described calls that differ from the rule of their class.
const EXCEPTIONS: &[(Role, &[&str])] = &[
    (
        Role::PoolAdmin,
        &[
            "session.change_password",
            "pool.has_extension",
            "host.has_extension",
            "VM.update_allowed_operations",
            "network.add_purpose",
            "network.remove_purpose",
        ],
    ),
    (
        Role::PoolOperator,
        &[
            "VM.set_order",
            "VM.set_start_delay",
            "VM.set_shutdown_delay",
            "VM.set_ha_always_run",
            "VM.set_ha_restart_priority",
            "VM.power_state_reset",
            "VIF.set_locking_mode",
            "VIF.set_ipv4_allowed",
            "VIF.add_ipv4_allowed",
            "VIF.remove_ipv4_allowed",
            "VIF.set_ipv6_allowed",
            "VIF.add_ipv6_allowed",
            "VIF.remove_ipv6_allowed",
            "message.create",
            "message.destroy",
        ],
    ),
    (
        Role::VmPowerAdmin,
        &[
            "VM.set_memory",
            "VM.set_memory_limits",
            "VM.set_memory_static_range",
            "VM.set_memory_static_min",
            "VM.set_memory_static_max",
            "VM.set_memory_dynamic_range",
            "VM.set_memory_dynamic_min",
            "VM.set_memory_dynamic_max",
            "VM.start_on",
            "VM.snapshot",
            "VM.snapshot_with_quiesce",
            "VM.checkpoint",
            "VM.revert",
            "VM.set_affinity",
            "VDI.pool_migrate",
            "SR.scan",
        ],
    ),
    (Role::VmAdmin, &["network.create", "network.destroy", "network.set_MTU"]),
    (
        Role::VmOperator,
        &[
            "VM.start",
            "VM.pause",
            "VM.unpause",
            "VM.clean_shutdown",
            "VM.hard_shutdown",
            "VM.shutdown",
            "VBD.insert",
            "VBD.eject",
            "VDI.list_changed_blocks",
            "pool.set_gui_config",
            "pool.add_to_gui_config",
            "pool.remove_from_gui_config",
        ],
    ),
    (
        Role::ReadOnly,
        &[
            "pool.get_license_state",
            "host.get_server_certificate",
            "host.get_server_localtime",
            "host.get_servertime",
            "host.compute_memory_overhead",
            "host.compute_free_memory",
            "host.list_methods",
            "VM.assert_can_boot_here",
            "VM.get_possible_hosts",
            "VM.get_allowed_VIF_devices",
            "VM.get_allowed_VBD_devices",
            "VM.assert_operation_valid",
            "VM.compute_memory_overhead",
            "SR.get_supported_types",
        ],
    ),
];

/// The least role that may make a call.
fn least_role(method: &Method) -> Role {
    let full = full_name(method);
    if let Some((role, _)) = EXCEPTIONS.iter().find(|(_, names)| names.contains(&full.as_str())) {
        return *role;
    }
    let class = method.class.name.as_str();
    match &method.action {
        Action::Get(_)
        | Action::GetRecord
        | Action::GetAll
        | Action::GetAllRecords
        | Action::GetByUuid
        | Action::GetByNameLabel => Role::ReadOnly,
        Action::Set(field) | Action::Add(field) | Action::Remove(field) if field.name == "tags" => {
            Role::VmOperator
        }
        Action::Custom if matches!(class, "session" | "task" | "event" | "message") => Role::ReadOnly,
        _ => match class {
            "session" | "user" => Role::PoolAdmin,
            "VM" | "VBD" | "VDI" | "VIF" | "console" | "VM_metrics" | "VM_guest_metrics" | "VBD_metrics" => {
                Role::VmAdmin
            }
            _ => Role::PoolOperator,
        },
    }
}

fn full_name(method: &Method) -> String {
    format!("{}.{}", method.class.name, method.name)
}

/// `session.rbac_permissions` of a role: the names of all that it may do, in lower case as servers give them.
pub(crate) fn permissions(methods: &BTreeMap<String, Method>, role: Role) -> Vec<String> {
    let calls = methods.values().filter(|method| role <= least_role(method)).map(full_name);
    let handlers = HANDLERS.iter().filter(|_| role <= HANDLER_ROLE).map(|name| (*name).to_owned());
    let mut all: Vec<String> = calls.chain(handlers).map(|name| name.to_ascii_lowercase()).collect();
    all.sort();
    all
}

/// `RBAC_PERMISSION_DENIED` for a call that the session's user may not make.
pub(crate) fn check(context: &Context, method: &Method) -> Outcome<()> {
    let permission = full_name(method).to_ascii_lowercase();
    check_permission(context, &permission, least_role(method))
}

/// The same for a data handler such as `PUT /import`.
pub(crate) fn check_handler(context: &Context, handler: &str) -> Outcome<()> {
    let permission = format!("http/{}", handler.replace(" /", "_").to_ascii_lowercase());
    check_permission(context, &permission, HANDLER_ROLE)
}

fn check_permission(context: &Context, permission: &str, least: Role) -> Outcome<()> {
    let permitted = context.with(|s| {
        let session = &context.session;
        // Without a session only the local socket gets this far, and there everybody is root.
        !s.db.exists("session", session)
            || s.db.flag("session", session, "is_local_superuser")
            || s.db.list("session", session, "rbac_permissions").iter().any(|granted| granted == permission)
    });
    if permitted {
        return Ok(());
    }
    let roles: Vec<&str> = ROLES.iter().filter(|(role, _)| *role <= least).map(|(_, name)| *name).collect();
    let text = format!("No permission in user session. (Roles with this permission: {})", roles.join(", "));
    Err(Failure::new("RBAC_PERMISSION_DENIED", [permission.to_owned(), text]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flavour::ApiVersion;
    use crate::store::methods::methods;

    #[test]
    fn every_exception_names_a_call() {
        let all = methods(ApiVersion::v2(21));
        for name in EXCEPTIONS.iter().flat_map(|(_, names)| *names) {
            assert!(all.contains_key(*name), "{name}");
        }
    }

    #[test]
    fn a_role_may_do_what_weaker_ones_may() {
        let all = methods(ApiVersion::v2(21));
        let sets: Vec<Vec<String>> = ROLES.iter().map(|(role, _)| permissions(&all, *role)).collect();
        for pair in sets.windows(2) {
            assert!(pair[0].len() > pair[1].len() && pair[1].iter().all(|name| pair[0].contains(name)));
        }
        assert_eq!(sets[0].len(), all.len() + HANDLERS.len());
        // One of each, from the data model.
        for (name, least) in [
            ("vm.get_all_records", Role::ReadOnly),
            ("vm.clean_shutdown", Role::VmOperator),
            ("vm.add_tags", Role::VmOperator),
            ("vm.clone", Role::VmAdmin),
            ("vdi.data_destroy", Role::VmAdmin),
            ("vbd.create", Role::VmAdmin),
            ("vm.snapshot", Role::VmPowerAdmin),
            ("task.add_to_other_config", Role::PoolOperator),
            ("sr.add_to_other_config", Role::PoolOperator),
            ("network.add_purpose", Role::PoolAdmin),
            ("http/get_export_raw_vdi", Role::VmAdmin),
        ] {
            for ((role, _), set) in ROLES.iter().zip(&sets) {
                assert_eq!(set.iter().any(|granted| granted == name), *role <= least, "{name} {role}");
            }
        }
    }
}
