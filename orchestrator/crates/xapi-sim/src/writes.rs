//! Which calls may change something: the others can be left out where a test counts the steps of a job, and must be
//! the only ones where a program promises to change nothing.

/// Classes whose calls change nothing in the pool but the caller's own session and subscriptions.
const HARMLESS_CLASSES: [&str; 3] = ["session", "event", "system"];
/// Beginnings of the names of calls that only ask.
const QUESTIONS: [&str; 6] = ["get_", "assert_", "compute_", "has_", "list_", "query_"];

/// Whether a call, with or without `Async.`, or a data handler (`PUT /import`) may change something. A data handler
/// always may: it holds the disk and makes a task. A call nobody knows is taken for one.
pub(crate) fn may_change(method: &str) -> bool {
    let method = method.strip_prefix("Async.").unwrap_or(method);
    match method.split_once('.') {
        Some((class, name)) if !method.contains('/') => {
            !HARMLESS_CLASSES.contains(&class) && !QUESTIONS.iter().any(|q| name.starts_with(q))
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_sessions_and_events_change_nothing() {
        for method in [
            "VM.get_record",
            "VM.assert_can_boot_here",
            "VDI.list_changed_blocks",
            "Async.VDI.list_changed_blocks",
            "event.from",
            "session.login_with_password",
            "system.listMethods",
            "task.get_status",
            "host.get_servertime",
            "host.compute_free_memory",
            "pool.has_extension",
        ] {
            assert!(!may_change(method), "{method}");
        }
    }

    #[test]
    fn everything_else_may_change_something() {
        for method in [
            "VM.snapshot",
            "Async.VM.start_on",
            "VM.set_xenstore_data",
            "task.destroy",
            "SR.scan",
            "VDI.data_destroy",
            "PUT /import",
            "GET /export_raw_vdi",
            "nonsense",
        ] {
            assert!(may_change(method), "{method}");
        }
    }
}
