//! Errors: a kind that tells the caller what to do, and one sentence for people.

use std::error::Error as StdError;
use std::fmt;

use crate::tls::Fingerprint;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What a caller can do about an error.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The pool refuses the user, the password or the role.
    Auth,
    /// No answer: address, network or service.
    Unreachable,
    /// The server's certificate has no pin. Ask the person, pin `found`, connect again.
    TlsUntrusted {
        /// `host:port` of the server.
        address: String,
        /// What it shows.
        found: Fingerprint,
    },
    /// The server shows another certificate than the pinned one.
    TlsChanged {
        /// `host:port` of the server.
        address: String,
        /// The pin.
        expected: Fingerprint,
        /// What it shows.
        found: Fingerprint,
    },
    /// This host is not the pool's master.
    Slave {
        /// Address of the master.
        master: String,
    },
    /// The session is gone. The client logs in again and repeats the call; this is what comes of it in the end.
    SessionInvalid,
    /// The object does not exist.
    HandleInvalid,
    /// Something else uses the object. Worth another try later.
    InUse,
    /// The object's state forbids it.
    BadState,
    /// The storage is full.
    NoSpace,
    /// The disk has as many snapshots behind it as the storage can take; it must merge some first.
    ChainTooLong,
    /// The storage has lost the disk.
    Missing,
    /// The guest could not bring its file systems to rest; a snapshot without that may still be taken.
    Quiesce,
    /// No host has enough memory, or none can run the VM.
    NoHost,
    /// The host that must do it is down, starting, or cut off from its pool.
    HostAway,
    /// The pool's licence forbids it.
    License,
    /// The host or the storage does not know this call.
    NotSupported,
    /// It took too long.
    Timeout,
    /// The pool forgot the operation, as it does when its toolstack is restarted: see [`Error::effect`].
    Lost,
    /// Somebody cancelled the task.
    Cancelled,
    /// The observer refused the call before it was made.
    Refused,
    /// A request or a reply is larger than a limit.
    Limit,
    /// The peer does not speak XAPI as we know it.
    Protocol,
    /// What the caller gave cannot be sent: an address, a file, a name.
    Input,
    /// Anything else: see [`Error::code`].
    Other,
}

/// What a failed call may have done in the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it never got there, or was turned away before anybody looked at it. It may be made again.
    None,
    /// The pool answers that it failed.
    Failed,
    /// Unknown: it may have been done, may still be under way, or never got there.
    Unknown,
}

/// A failed call.
#[derive(thiserror::Error)]
#[error("{}", self.sentence())]
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    method: String,
    code: String,
    params: Vec<String>,
    effect: Effect,
    /// Sentence without the method.
    detail: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: Kind, method: impl Into<String>, detail: impl Into<String>) -> Self {
        let effect = match kind {
            Kind::Unreachable | Kind::Timeout | Kind::Lost | Kind::Protocol | Kind::Limit | Kind::Other => {
                Effect::Unknown
            }
            Kind::Cancelled => Effect::Failed,
            _ => Effect::None,
        };
        Self(Box::new(Inner {
            kind,
            method: method.into(),
            code: String::new(),
            params: Vec::new(),
            effect,
            detail: detail.into(),
            source: None,
        }))
    }

    /// An error that XAPI reported.
    pub(crate) fn from_xapi(method: &str, code: String, params: Vec<String>) -> Self {
        let (kind, detail) = classify(&code, &params);
        let effect = Effect::Failed;
        Self(Box::new(Inner { kind, method: method.to_owned(), code, params, effect, detail, source: None }))
    }

    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    pub(crate) fn with_method(mut self, method: &str) -> Self {
        self.0.method = method.to_owned();
        self
    }

    pub(crate) fn with_effect(mut self, effect: Effect) -> Self {
        self.0.effect = effect;
        self
    }

    /// Takes a secret out of everything that may be shown.
    pub(crate) fn without(mut self, secret: &str) -> Self {
        let clean = |text: &mut String| {
            if !secret.is_empty() && text.contains(secret) {
                *text = text.replace(secret, "(session)");
            }
        };
        clean(&mut self.0.detail);
        self.0.params.iter_mut().for_each(clean);
        self
    }

    /// What to do about it.
    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// The call that failed, or what was attempted (`connect`, `import`).
    pub fn method(&self) -> &str {
        &self.0.method
    }

    /// XAPI's code, empty when the error is not XAPI's.
    pub fn code(&self) -> &str {
        &self.0.code
    }

    /// XAPI's parameters of the code.
    pub fn params(&self) -> &[String] {
        &self.0.params
    }

    /// What the call may have done.
    pub fn effect(&self) -> Effect {
        self.0.effect
    }

    /// Whether the call can be made again even if making it twice would be wrong.
    pub fn is_certainly_not_executed(&self) -> bool {
        self.0.effect == Effect::None
    }

    /// Whether the same call may succeed later without anybody doing something. Where it must not be made twice,
    /// look at [`effect`](Self::effect) as well.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.0.kind,
            Kind::InUse
                | Kind::HostAway
                | Kind::Slave { .. }
                | Kind::SessionInvalid
                | Kind::Unreachable
                | Kind::Timeout
                | Kind::Lost
        )
    }

    /// Whether a disk's change log is damaged: nothing can be listed from it any more.
    pub fn is_cbt_inconsistent(&self) -> bool {
        self.0.code == "SR_BACKEND_FAILURE_459"
    }

    /// Whether two disks have no unbroken change log between them: tracking was off in between, one is not
    /// tracked, or they are in the wrong order.
    pub fn is_cbt_unrelated(&self) -> bool {
        self.0.code == "SR_BACKEND_FAILURE_460"
    }

    fn sentence(&self) -> String {
        let Inner { method, detail, .. } = &*self.0;
        match method.is_empty() {
            true => detail.clone(),
            false => format!("{method}: {detail}"),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, method, code, params, effect, detail, source } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("method", method)
            .field("code", code)
            .field("params", params)
            .field("effect", effect)
            .field("detail", detail)
            .field("source", source)
            .finish()
    }
}

/// Kind and sentence of a XAPI error. The codes are those of the public data model.
fn classify(code: &str, params: &[String]) -> (Kind, String) {
    let at = |index: usize| params.get(index).map_or("?", String::as_str);
    let raw = || {
        let shown: Vec<&str> = params.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        match shown.is_empty() {
            true => code.to_owned(),
            false => format!("{code}: {}", shown.join(", ")),
        }
    };
    let with_raw = |kind, text: &str| (kind, format!("{text} ({})", raw()));
    match code {
        "SESSION_AUTHENTICATION_FAILED" => {
            (Kind::Auth, format!("the pool refuses user {:?}: check the name and the password", at(0)))
        }
        "RBAC_PERMISSION_DENIED" => (Kind::Auth, format!("the user's role lacks the permission {:?}", at(0))),
        "HOST_IS_SLAVE" => (
            Kind::Slave { master: at(0).to_owned() },
            format!("this host is not the pool's master; the master is {}", at(0)),
        ),
        "SESSION_INVALID" => (Kind::SessionInvalid, "the pool has ended the session".to_owned()),
        "HANDLE_INVALID" => (Kind::HandleInvalid, format!("{} {} does not exist", at(0), at(1))),
        "UUID_INVALID" => (Kind::HandleInvalid, format!("there is no {} with uuid {}", at(0), at(1))),
        "VDI_IN_USE" | "SR_DEVICE_IN_USE" | "DEVICE_DETACH_REJECTED" | "SR_BACKEND_FAILURE_46" => {
            with_raw(Kind::InUse, "the disk is in use")
        }
        "OTHER_OPERATION_IN_PROGRESS" => with_raw(Kind::InUse, "another operation on the object is running"),
        "TOO_MANY_PENDING_TASKS" | "TOO_BUSY" => with_raw(Kind::InUse, "the pool has too much to do"),
        "VM_BAD_POWER_STATE" => {
            (Kind::BadState, format!("VM {} must be {}, but it is {}", at(0), at(1), at(2)))
        }
        "SR_BACKEND_FAILURE_44" | "SR_FULL" => with_raw(Kind::NoSpace, "no space left on the storage"),
        "SR_BACKEND_FAILURE_109" => with_raw(
            Kind::ChainTooLong,
            "the disk has too many snapshots behind it; the storage must merge some first",
        ),
        "VDI_MISSING" => with_raw(Kind::Missing, "the storage has lost the disk"),
        "HOST_OFFLINE" | "HOST_NOT_LIVE" => with_raw(Kind::HostAway, "the host is down"),
        "CANNOT_CONTACT_HOST" | "HOST_UNKNOWN_TO_MASTER" | "HOST_MASTER_CANNOT_TALK_BACK" => {
            with_raw(Kind::HostAway, "the pool cannot reach the host")
        }
        "HOST_STILL_BOOTING" => with_raw(Kind::HostAway, "the host is starting"),
        "HOST_IN_EMERGENCY_MODE" | "HOST_HAS_NO_MANAGEMENT_IP" => {
            with_raw(Kind::HostAway, "the host is cut off from its pool")
        }
        "HOST_NOT_ENOUGH_FREE_MEMORY" => with_raw(Kind::NoHost, "the host has too little free memory"),
        "NO_HOSTS_AVAILABLE" => with_raw(Kind::NoHost, "no host can run the VM"),
        "VM_REQUIRES_SR" => with_raw(Kind::NoHost, "the host cannot reach the storage of a disk"),
        "VM_REQUIRES_NETWORK" => with_raw(Kind::NoHost, "the host lacks a network of the VM"),
        "LICENSE_RESTRICTION" | "LICENCE_RESTRICTION" | "FEATURE_RESTRICTED" => {
            with_raw(Kind::License, "the pool's licence does not include this")
        }
        "MESSAGE_METHOD_UNKNOWN" | "MESSAGE_REMOVED" => {
            with_raw(Kind::NotSupported, "this host does not know the call")
        }
        "MESSAGE_PARAMETER_COUNT_MISMATCH" => {
            with_raw(Kind::NotSupported, "this host knows the call with other parameters")
        }
        "SR_OPERATION_NOT_SUPPORTED" => with_raw(Kind::NotSupported, "this storage cannot do it"),
        "NOT_IMPLEMENTED" | "VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED" | "SR_BACKEND_FAILURE_66" => {
            with_raw(Kind::NotSupported, "not supported here")
        }
        "VM_SNAPSHOT_WITH_QUIESCE_FAILED"
        | "VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT"
        | "VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND" => {
            with_raw(Kind::Quiesce, "the guest did not bring its file systems to rest")
        }
        "TASK_CANCELLED" => (Kind::Cancelled, "the task was cancelled".to_owned()),
        "VM_SHUTDOWN_TIMEOUT" | "VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT" => {
            with_raw(Kind::Timeout, "the guest did not shut down in time")
        }
        "SR_BACKEND_FAILURE_459" => with_raw(Kind::Other, "the change tracking of the disk is inconsistent"),
        "SR_BACKEND_FAILURE_460" => with_raw(Kind::Other, "the changes between the disks cannot be listed"),
        "OPERATION_NOT_ALLOWED"
        | "OPERATION_BLOCKED"
        | "VM_IS_TEMPLATE"
        | "VM_IS_SNAPSHOT"
        | "VM_LACKS_FEATURE"
        | "VM_MISSING_PV_DRIVERS"
        | "VM_CANNOT_DELETE_DEFAULT_TEMPLATE"
        | "PROVISION_ONLY_ALLOWED_ON_TEMPLATE"
        | "VDI_INCOMPATIBLE_TYPE"
        | "VDI_NO_CBT_METADATA"
        | "VDI_CBT_ENABLED"
        | "VDI_NOT_MANAGED"
        | "VDI_READONLY"
        | "VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION"
        | "VBD_NOT_UNPLUGGABLE"
        | "DEVICE_ALREADY_ATTACHED"
        | "DEVICE_ALREADY_DETACHED"
        | "DEVICE_ALREADY_EXISTS"
        | "DISK_VBD_MUST_BE_READWRITE_FOR_HVM"
        | "HOST_IS_LIVE"
        | "DOMAIN_EXISTS"
        | "SR_HAS_NO_PBDS" => with_raw(Kind::BadState, "the object's state does not allow it"),
        _ => (Kind::Other, format!("the pool reports {}", raw())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xapi(code: &str, params: &[&str]) -> Error {
        Error::from_xapi("X.y", code.to_owned(), params.iter().map(|text| (*text).to_owned()).collect())
    }

    #[test]
    fn errors_are_one_sentence_with_the_call() {
        let error = xapi("VM_BAD_POWER_STATE", &["OpaqueRef:1", "halted", "running"]);
        assert_eq!(error.to_string(), "X.y: VM OpaqueRef:1 must be halted, but it is running");
        assert_eq!(error.kind(), &Kind::BadState);
        let error = xapi("SR_BACKEND_FAILURE_44", &["", "There is insufficient space", ""]);
        assert_eq!(
            error.to_string(),
            "X.y: no space left on the storage (SR_BACKEND_FAILURE_44: There is insufficient space)"
        );
        assert_eq!(xapi("BRAND_NEW", &[]).to_string(), "X.y: the pool reports BRAND_NEW");
        // Fewer parameters than documented, as some host versions give.
        assert_eq!(xapi("HANDLE_INVALID", &[]).to_string(), "X.y: ? ? does not exist");
    }

    #[test]
    fn kinds_tell_what_to_do() {
        assert_eq!(
            xapi("HOST_IS_SLAVE", &["10.0.0.1"]).kind(),
            &Kind::Slave { master: "10.0.0.1".to_owned() }
        );
        assert!(xapi("VDI_IN_USE", &["OpaqueRef:1"]).is_retryable());
        assert!(!xapi("LICENSE_RESTRICTION", &["CBT"]).is_retryable());
        for unknown in ["MESSAGE_METHOD_UNKNOWN", "MESSAGE_REMOVED"] {
            assert_eq!(xapi(unknown, &["VDI.enable_cbt"]).kind(), &Kind::NotSupported);
        }
        let table = [
            ("SR_BACKEND_FAILURE_109", Kind::ChainTooLong),
            ("SR_BACKEND_FAILURE_46", Kind::InUse),
            ("VDI_MISSING", Kind::Missing),
            ("VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT", Kind::Quiesce),
            // The misspelling is XAPI's.
            ("VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND", Kind::Quiesce),
            ("VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED", Kind::NotSupported),
            ("HOST_OFFLINE", Kind::HostAway),
            ("CANNOT_CONTACT_HOST", Kind::HostAway),
            ("HOST_STILL_BOOTING", Kind::HostAway),
            ("TOO_MANY_PENDING_TASKS", Kind::InUse),
        ];
        for (code, kind) in table {
            assert_eq!(xapi(code, &[]).kind(), &kind, "{code}");
        }
        let (inconsistent, unrelated) =
            (xapi("SR_BACKEND_FAILURE_459", &[]), xapi("SR_BACKEND_FAILURE_460", &[]));
        assert!(inconsistent.is_cbt_inconsistent() && !inconsistent.is_cbt_unrelated());
        assert!(unrelated.is_cbt_unrelated() && !unrelated.is_cbt_inconsistent());
    }
}
