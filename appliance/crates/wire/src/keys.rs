//! Names of the XenStore keys, relative to the domain's home, and of the states written there.
//!
//! No secret stands here: any read-only XAPI role can read `VM.xenstore_data`.

/// Everything of ours lies below this key.
pub const KEY_PREFIX: &str = "vm-data/abd";
/// Protocol version in decimal. Orchestrator to ABD.
pub const KEY_VERSION: &str = "vm-data/abd/version";
/// The job's uuid. Orchestrator to ABD.
pub const KEY_JOB: &str = "vm-data/abd/job";
/// Where the orchestrator listens: `https://ADDRESS:PORT`, several separated by one space, tried in order.
/// Addresses are IP literals: an ABD needs no DNS. Orchestrator to ABD.
pub const KEY_URL: &str = "vm-data/abd/url";
/// SHA-256 of the orchestrator's public key (SPKI DER), 64 hexadecimal digits. Orchestrator to ABD.
pub const KEY_ORCHESTRATOR_KEY: &str = "vm-data/abd/orchestrator-key";
/// Seconds of the watchdog, as in the order, which only comes later: a third of it is how long the first call is tried.
/// 90 where absent. Orchestrator to ABD.
pub const KEY_WATCHDOG: &str = "vm-data/abd/watchdog";
/// Network settings, one directory per NIC: `.../0/mode` and so on. Orchestrator to ABD.
pub const KEY_NET: &str = "vm-data/abd/net";

/// SHA-256 of the ABD's public key (SPKI DER), 64 hexadecimal digits. ABD to orchestrator.
pub const KEY_ABD_KEY: &str = "vm-data/abd/key";
/// One of the [`State`] names. ABD to orchestrator.
pub const KEY_STATE: &str = "vm-data/abd/state";
/// A short code such as `no-dhcp-lease`. ABD to orchestrator.
pub const KEY_ERROR_CODE: &str = "vm-data/abd/error-code";
/// One sentence that a person can act on. ABD to orchestrator.
pub const KEY_ERROR: &str = "vm-data/abd/error";
/// The addresses in use, separated by a space; below it those of each NIC, by its number: `.../0` and so on. ABD to
/// orchestrator.
pub const KEY_ADDRESS: &str = "vm-data/abd/address";
/// Version of the ABD's program. ABD to orchestrator.
pub const KEY_AGENT: &str = "vm-data/abd/agent";
/// Milliseconds from the start of the kernel to user space. ABD to orchestrator.
pub const KEY_BOOT_MS: &str = "vm-data/abd/boot-ms";

/// Longest value that either side writes. XenStore's own quota is 2048 bytes.
pub const MAX_VALUE_SIZE: usize = 1024;

/// How far an ABD has come, as mirrored into XenStore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// PID 1 runs and XenStore answers.
    Booted,
    /// The network is being brought up.
    Network,
    /// The orchestrator is being called.
    Connecting,
    /// The order was received.
    Claimed,
    /// Disks are being read or written.
    Working,
    /// Everything was done and acknowledged.
    Finished,
    /// It ended otherwise; the error keys say why.
    Failed,
}

impl State {
    /// All states in the order in which a job passes them.
    pub const ALL: [State; 7] = [
        State::Booted,
        State::Network,
        State::Connecting,
        State::Claimed,
        State::Working,
        State::Finished,
        State::Failed,
    ];

    /// The name written to [`KEY_STATE`].
    pub const fn name(self) -> &'static str {
        match self {
            State::Booted => "booted",
            State::Network => "network",
            State::Connecting => "connecting",
            State::Claimed => "claimed",
            State::Working => "working",
            State::Finished => "finished",
            State::Failed => "failed",
        }
    }

    /// The state of a name; `None` for any other text.
    pub fn from_name(name: &str) -> Option<State> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}
