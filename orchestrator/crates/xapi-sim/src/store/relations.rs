//! The one-to-many links of the data model: the many-side of each is kept by the store, never written by hand.

/// `child.field` names a parent; `parent.many` is the set of the children that do.
pub(crate) struct Relation {
    pub(crate) child: &'static str,
    pub(crate) field: &'static str,
    pub(crate) parent: &'static str,
    pub(crate) many: &'static str,
}

const fn link(
    child: &'static str,
    field: &'static str,
    parent: &'static str,
    many: &'static str,
) -> Relation {
    Relation { child, field, parent, many }
}

pub(crate) const RELATIONS: &[Relation] = &[
    link("VBD", "VM", "VM", "VBDs"),
    link("VBD", "VDI", "VDI", "VBDs"),
    link("VDI", "SR", "SR", "VDIs"),
    link("VDI", "snapshot_of", "VDI", "snapshots"),
    link("VIF", "VM", "VM", "VIFs"),
    link("VIF", "network", "network", "VIFs"),
    link("VM", "snapshot_of", "VM", "snapshots"),
    link("VM", "parent", "VM", "children"),
    link("VM", "resident_on", "host", "resident_VMs"),
    link("PBD", "SR", "SR", "PBDs"),
    link("PBD", "host", "host", "PBDs"),
    link("PIF", "network", "network", "PIFs"),
    link("PIF", "host", "host", "PIFs"),
    link("console", "VM", "VM", "consoles"),
    link("host_cpu", "host", "host", "host_CPUs"),
    link("task", "subtask_of", "task", "subtasks"),
];
