//! A hook that sees every call: to log, to journal, to plan.

use std::time::Duration;

use crate::error::Error;
use crate::value::Value;

/// A call about to be made.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Name, such as `VM.snapshot`. HTTP handlers appear by their path: `PUT /import`.
    pub method: &'a str,
    /// Parameters without the session; of a login only the user.
    pub params: &'a [Value],
    /// Whether the call may change something in the pool.
    pub mutating: bool,
}

/// Whether a call may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Make the call.
    Proceed,
    /// Do not; the caller gets [`Kind::Refused`](crate::Kind::Refused) with this reason.
    Refuse(String),
}

/// Sees every call before and after. Called from many tasks at once; must not block for long.
pub trait Observer: Send + Sync {
    /// Before a call.
    fn before(&self, _call: &Call<'_>) -> Verdict {
        Verdict::Proceed
    }

    /// After a call.
    fn after(&self, _call: &Call<'_>, _outcome: Result<&Value, &Error>, _elapsed: Duration) {}
}

/// Whether a method only reads.
pub(crate) fn is_read(method: &str) -> bool {
    let name = method.rsplit('.').next().unwrap_or(method);
    let reads = matches!(method, "event.from" | "system.listMethods" | "VDI.list_changed_blocks");
    reads || name.starts_with("get_") || name.starts_with("assert_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_told_from_changes() {
        for read in ["VM.get_record", "event.from", "VM.get_all_records", "VM.assert_can_boot_here"] {
            assert!(is_read(read), "{read}");
        }
        for change in [
            "VM.snapshot",
            "VM.set_name_label",
            "Async.VM.start",
            "session.login_with_password",
            "event.inject",
        ] {
            assert!(!is_read(change), "{change}");
        }
    }
}
