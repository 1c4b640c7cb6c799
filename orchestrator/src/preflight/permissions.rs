//! What our role may do. XAPI names a permission like the call, in lower case; the local root and the socket of a
//! control domain may do everything, and have no list.

use super::facts::{FIRST_CBT_API, Facts};
use super::finding::{Code, Finding};
use std::collections::BTreeSet;

/// Calls that a backup makes on every release, for its steps and to clean up after itself.
pub(super) const BACKUP: &[&str] = &[
    "VM.snapshot",
    "VM.clone",
    "VM.provision",
    "VM.add_to_other_config",
    "VM.remove_from_other_config",
    "VM.set_name_description",
    "VM.set_name_label",
    "VM.set_memory_limits",
    "VM.set_VCPUs_max",
    "VM.set_VCPUs_at_startup",
    "VM.set_xenstore_data",
    "VM.start",
    "VM.start_on",
    "VM.hard_shutdown",
    "VM.destroy",
    "VBD.create",
    "VIF.create",
    "VDI.add_to_other_config",
    "VDI.remove_from_other_config",
    "VDI.destroy",
    "task.cancel",
    "task.destroy",
];
/// Calls for change tracking, on releases that have it.
pub(super) const TRACKING: &[&str] =
    &["VDI.enable_cbt", "VDI.disable_cbt", "VDI.data_destroy", "VDI.list_changed_blocks"];
/// What one can do without, each with what it costs and the roles that have it.
const OPTIONAL: &[(&[&str], &str, &str)] = &[
    (&["http/get_export_raw_vdi", "task.create"], "first backups read unallocated space too", POWER_ADMIN),
    (&["VM.checkpoint"], "the memory of a VM cannot be backed up", POWER_ADMIN),
    (&["VDI.create"], "restores fail", POWER_ADMIN),
    (
        &["http/put_import", "VM.set_is_a_template"],
        "the template has to be imported by somebody else",
        POWER_ADMIN,
    ),
    (
        &["task.add_to_other_config"],
        "what a killed run started in the pool goes on to its end, and is only cleaned up after it",
        OPERATOR,
    ),
    (
        &["VM.power_state_reset"],
        "delegates on a host that died are only cleaned up once the pool has noticed",
        OPERATOR,
    ),
];
const POWER_ADMIN: &str = "vm-power-admin, pool-operator or pool-admin";
const OPERATOR: &str = "pool-operator or pool-admin";

/// Whether a call is in one of the lists: for the test that what a plan calls is.
#[cfg(test)]
pub(crate) fn may_be_called(call: &str) -> bool {
    let optional = OPTIONAL.iter().flat_map(|(calls, ..)| calls.iter());
    BACKUP.iter().chain(TRACKING).chain(optional).any(|known| *known == call)
}

/// Checks the permissions of our session.
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    let Some(session) = &facts.session else { return Vec::new() };
    let object = || facts.pool_object();
    let user = match session.auth_user_name.as_str() {
        "" => "the user".to_owned(),
        name => format!("user '{name}'"),
    };
    if session.is_local_superuser || facts.local {
        return vec![Finding::ok(Code::Permissions, object(), format!("{user} may do everything"))];
    }
    let granted: BTreeSet<&str> = session.rbac_permissions.iter().map(String::as_str).collect();
    if granted.is_empty() {
        // A release that has no list says so by refusing calls.
        return Vec::new();
    }
    let missing = |calls: &[&str]| -> Vec<String> {
        calls
            .iter()
            .filter(|call| !granted.contains(call.to_ascii_lowercase().as_str()))
            .map(|c| (*c).to_owned())
            .collect()
    };
    let tracking = if facts.api() >= FIRST_CBT_API { TRACKING } else { &[] };
    let for_backups = [missing(BACKUP), missing(tracking)].concat();
    let give = |roles: &str| format!("give {user} the role {roles} in pool '{}'", facts.name);
    if !for_backups.is_empty() {
        let message = format!("{user} may not make these calls of a backup: {}", for_backups.join(", "));
        return vec![Finding::error(Code::Permissions, object(), message, give(POWER_ADMIN))];
    }
    let mut findings = vec![Finding::ok(
        Code::Permissions,
        object(),
        format!("{user} may make every call that a backup needs"),
    )];
    for (calls, cost, roles) in OPTIONAL {
        let missing = missing(calls);
        if !missing.is_empty() {
            let message = format!("{user} may not call {}: {cost}", missing.join(", "));
            findings.push(Finding::warning(Code::Permissions, object(), message, give(roles)));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::sample::Sample;
    use super::*;
    use crate::preflight::finding::Level;
    use xapi::Session;

    fn sample(without: &[&str]) -> Sample {
        let mut sample = Sample::new();
        let optional = OPTIONAL.iter().flat_map(|(calls, ..)| calls.iter());
        let all: Vec<&str> = BACKUP.iter().chain(TRACKING).chain(optional).copied().collect();
        let granted = all.into_iter().filter(|call| !without.contains(call));
        sample.facts.session = Some(Session {
            auth_user_name: "backup".into(),
            rbac_permissions: granted.map(str::to_ascii_lowercase).collect(),
            ..Session::default()
        });
        sample
    }

    fn found(sample: &Sample) -> Vec<(Level, String)> {
        check(&sample.facts).into_iter().map(|finding| (finding.level, finding.message)).collect()
    }

    #[test]
    fn exactly_the_missing_calls_are_named() {
        let all = "user 'backup' may make every call that a backup needs".to_owned();
        assert_eq!(found(&sample(&[])), [(Level::Ok, all)]);
        let findings = found(&sample(&["VM.start_on", "VDI.data_destroy"]));
        let message = "user 'backup' may not make these calls of a backup: VM.start_on, VDI.data_destroy";
        assert_eq!(findings, [(Level::Error, message.to_owned())]);
    }

    #[test]
    fn what_backups_can_do_without_is_a_warning() {
        let findings = found(&sample(&["VDI.create", "VM.power_state_reset"]));
        let levels: Vec<_> = findings.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, [Level::Ok, Level::Warning, Level::Warning]);
        assert!(findings[1].1.ends_with("may not call VDI.create: restores fail"), "{findings:?}");
    }

    #[test]
    fn releases_without_tracking_need_no_permission_for_it() {
        let mut sample = sample(TRACKING);
        assert_eq!(found(&sample)[0].0, Level::Error);
        sample.host_mut().api_version_minor = 7;
        assert_eq!(found(&sample)[0].0, Level::Ok);
    }

    #[test]
    fn root_and_the_local_socket_may_do_everything() {
        let mut sample = sample(BACKUP);
        assert_eq!(found(&sample)[0].0, Level::Error);
        sample.facts.local = true;
        assert_eq!(found(&sample)[0].0, Level::Ok);
        sample.facts.local = false;
        sample.facts.session = Some(Session { is_local_superuser: true, ..Session::default() });
        assert_eq!(found(&sample), [(Level::Ok, "the user may do everything".to_owned())]);
    }
}
