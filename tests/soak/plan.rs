//! What goes wrong in a run, drawn from the seed.

use e2e::{Draw, POSITIONS};
use serde_json::{Value, json};
use std::fmt;
use std::time::Duration;

/// Calls of a run, as far as they are counted: so many for each VM, and for the run itself. A fault that would strike
/// a later one does not strike.
const CALLS_PER_JOB: u64 = 160;
const WRITES_PER_JOB: u64 = 36;
const CALLS_PER_RUN: u64 = 40;
/// Lines of output of a run, likewise.
const LINES_PER_JOB: u64 = 10;
/// Hosts of the pool.
pub(super) const HOSTS: usize = 2;
/// Longest delay of one call.
const LONGEST_DELAY_MS: u64 = 900;

/// Calls that jobs make, for faults that are aimed at a kind.
const METHODS: &[&str] = &[
    "VM.snapshot",
    "VM.clone",
    "VM.provision",
    "VM.start_on",
    "VM.start",
    "VM.destroy",
    "VM.hard_shutdown",
    "VM.add_to_other_config",
    "VM.set_xenstore_data",
    "VM.get_by_uuid",
    "VM.get_record",
    "VM.get_all_records",
    "VBD.create",
    "VBD.get_record",
    "VIF.create",
    "VDI.enable_cbt",
    "VDI.list_changed_blocks",
    "VDI.data_destroy",
    "VDI.destroy",
    "VDI.add_to_other_config",
    "VDI.get_record",
    "VDI.get_all_records",
    "VDI.get_by_uuid",
    "GET /export_raw_vdi",
    "event.from",
    "session.login_with_password",
    "session.logout",
    "task.get_record",
    "PBD.get_all_records",
    "*",
];

/// What a pool answers when something is wrong with it for a while, or for good. None of them is a lie: a pool that
/// says that an object is gone while it is there cannot be cleaned by anybody.
const ERRORS: &[&[&str]] = &[
    &["INTERNAL_ERROR", "Unix.Unix_error(Unix.ENOSPC, \"write\", \"\")"],
    &["SR_BACKEND_FAILURE_44", "", "There is insufficient space", ""],
    &["SR_BACKEND_FAILURE_46", "", "The VDI is not available", ""],
    &["OTHER_OPERATION_IN_PROGRESS", "VDI", "OpaqueRef:other"],
    &["VDI_IN_USE", "OpaqueRef:disk", "data_destroy"],
    &["TOO_MANY_PENDING_TASKS"],
    &["HOST_OFFLINE", "OpaqueRef:host"],
    &["SESSION_INVALID", "OpaqueRef:session"],
    &["OPERATION_NOT_ALLOWED", "the lab says so"],
];

/// Options of runs, mostly none.
const OPTIONS: &[(&[&str], u64)] = &[
    (&[], 40),
    (&["--full"], 2),
    (&["--cbt", "off"], 2),
    (&["--read-unallocated"], 2),
    (&["--audit-percent", "100"], 2),
    (&["--level", "7", "--audit-minimum", "1"], 2),
];

/// The moment at which this test, not the pool, does something: when the run printed so many lines.
pub(super) type Line = u64;

/// What goes wrong.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    /// Nothing.
    None,
    /// Calls are refused, cut or slow: the object for `/lab/faults`.
    Calls(&'static str, Value),
    /// A call is never answered; `abd` is killed when that happens.
    Frozen(Value),
    /// `abd` is killed.
    Kill(Line),
    /// `abd` gets SIGINT.
    Interrupt(Line),
    /// All sessions are forgotten.
    Sessions(Line),
    /// Another host becomes the master.
    Master(Line),
    /// A host (by number) is down for so many milliseconds, and every VM on it with it.
    HostDown(Line, usize, u64),
    /// A delegate is killed as soon as the run says that it works.
    Delegate,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Things that users do before it.
    pub(super) changes: u64,
    /// VMs, by number.
    pub(super) vms: Vec<usize>,
    /// Most jobs at once.
    pub(super) jobs: u64,
    /// More options of the command.
    pub(super) options: &'static [&'static str],
    /// The disks at this position are left out, where no VM is left without disks.
    pub(super) exclude: Option<u64>,
    /// Users write while delegates read: what they draw from.
    pub(super) busy: Option<u64>,
    /// What goes wrong.
    pub(super) trouble: Trouble,
    /// Whether `abd reconcile` comes after it, where something died.
    pub(super) reconcile: bool,
    /// The newest restore point of this VM looks older than the one before: the clock was set back in between.
    pub(super) clock_back: Option<usize>,
}

impl Trouble {
    /// The kind, for counting.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Calls(kind, _) => kind,
            Self::Frozen(_) => "frozen call and SIGKILL",
            Self::Kill(_) => "SIGKILL",
            Self::Interrupt(_) => "SIGINT",
            Self::Sessions(_) => "sessions dropped",
            Self::Master(_) => "master changed",
            Self::HostDown(..) => "host down",
            Self::Delegate => "delegate killed",
        }
    }

    /// Whether `abd` itself is killed.
    pub(super) fn kills(&self) -> bool {
        matches!(self, Self::Frozen(_) | Self::Kill(_))
    }

    /// Whether every job must be done all the same.
    pub(super) fn is_bearable(&self) -> bool {
        const BEARABLE: [&str; 8] = [
            "none",
            "delay",
            "events lost",
            "events doubled",
            "no licence",
            "transfer cut",
            "transfer replaced",
            "sessions dropped",
        ];
        BEARABLE.contains(&self.kind())
    }

    fn draw(draw: &mut Draw, vms: u64) -> Self {
        let lines = LINES_PER_JOB * vms;
        let calls = CALLS_PER_RUN + CALLS_PER_JOB * vms;
        let kind = draw.weighted(&[
            ("none", 48),
            ("error", 16),
            ("drop before", 4),
            ("drop after", 4),
            ("delay", 4),
            // A lost event costs the half minute that a wait for events may take.
            ("events lost", 1),
            ("events doubled", 4),
            ("no licence", 2),
            ("transfer cut", 4),
            ("transfer replaced", 2),
            ("frozen", 12),
            ("kill", 8),
            ("interrupt", 4),
            ("sessions", 4),
            ("delegate", 4),
            ("master", 2),
            ("host", 2),
        ]);
        match kind {
            "error" => Self::Calls("error", error(draw, vms)),
            "drop before" => Self::Calls("drop before", dropped(draw, vms, "before")),
            "drop after" => Self::Calls("drop after", dropped(draw, vms, "after")),
            "delay" => Self::Calls("delay", delay(draw, calls)),
            "events lost" => Self::Calls(
                "events lost",
                json!({"method": "event.from", "nth": draw.between(1, 2 * vms), "lose_events": 1}),
            ),
            "events doubled" => Self::Calls(
                "events doubled",
                json!({"method": "event.from", "nth": 1, "count": 50, "double_events": true}),
            ),
            "no licence" => Self::Calls("no licence", json!({"cbt_licensed": false})),
            "transfer cut" => Self::Calls(
                "transfer cut",
                json!({"method": "GET /export_raw_vdi", "nth": draw.between(1, vms),
                    "count": draw.between(1, 3), "cut_after": draw.below(4096)}),
            ),
            "transfer replaced" => Self::Calls(
                "transfer replaced",
                json!({"method": "GET /export_raw_vdi", "nth": draw.between(1, vms), "page_in_body": true}),
            ),
            "frozen" => {
                let writes = draw.once_in(2);
                let last = if writes { WRITES_PER_JOB * vms } else { calls };
                Self::Frozen(json!({"method": "*", "except": ["event.from"], "writes": writes,
                    "nth": draw.between(1, last), "when": when(draw), "freeze": true}))
            }
            "kill" => Self::Kill(draw.between(1, lines)),
            "interrupt" => Self::Interrupt(draw.between(1, lines)),
            "sessions" => Self::Sessions(draw.between(1, lines)),
            "delegate" => Self::Delegate,
            "master" => Self::Master(draw.between(1, lines)),
            "host" => Self::HostDown(draw.between(1, lines), draw.index(HOSTS), draw.between(0, 1500)),
            _ => Self::None,
        }
    }
}

impl Plan {
    /// The next run, over some of so many VMs.
    pub(super) fn draw(draw: &mut Draw, all: usize) -> Self {
        let count = draw.weighted(&[(1, 3), (2, 4), (3, 4), (4, 4), (6, 2), (8, 1)]);
        let trouble = Trouble::draw(draw, count as u64);
        Self {
            changes: draw.between(1, 14),
            vms: draw.some_of(all, count),
            jobs: draw.between(2, 4),
            options: draw.weighted(OPTIONS),
            exclude: draw.once_in(12).then(|| draw.below(POSITIONS)),
            busy: draw.once_in(3).then(|| draw.bits()),
            trouble,
            reconcile: draw.once_in(2),
            clock_back: draw.once_in(15).then(|| draw.index(all)),
        }
    }

    /// A run over some VMs in which nothing goes wrong, and before which users do nothing.
    pub(super) fn quiet(vms: Vec<usize>) -> Self {
        Self {
            changes: 0,
            vms,
            jobs: 2,
            options: &[],
            exclude: None,
            busy: None,
            trouble: Trouble::None,
            reconcile: false,
            clock_back: None,
        }
    }
}

fn method(draw: &mut Draw, vms: u64) -> (&'static str, u64) {
    let method = *draw.pick(METHODS);
    let last = match method {
        "*" => CALLS_PER_JOB * vms,
        "session.login_with_password" | "session.logout" => 1,
        _ => 3 * vms,
    };
    (method, draw.between(1, last))
}

fn when(draw: &mut Draw) -> &'static str {
    if draw.once_in(2) { "before" } else { "after" }
}

fn error(draw: &mut Draw, vms: u64) -> Value {
    let (method, nth) = method(draw, vms);
    json!({"method": method, "nth": nth, "count": draw.between(1, 3), "when": when(draw),
        "error": draw.pick(ERRORS)})
}

fn dropped(draw: &mut Draw, vms: u64, when: &str) -> Value {
    let (method, nth) = method(draw, vms);
    json!({"method": method, "nth": nth, "count": draw.between(1, 2), "when": when, "drop": true})
}

fn delay(draw: &mut Draw, calls: u64) -> Value {
    json!({"method": "*", "nth": draw.between(1, calls), "count": draw.between(1, 6),
        "delay_ms": draw.between(1, LONGEST_DELAY_MS)})
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { changes, vms, jobs, options, exclude, busy, trouble, reconcile, clock_back } = self;
        write!(f, "{changes} changes; VMs {vms:?}, {jobs} at once {}", options.join(" "))?;
        if let Some(position) = exclude {
            write!(f, ", without position {position}")?;
        }
        let flags = [(busy.is_some(), "users write meanwhile"), (*reconcile, "then reconcile")];
        for (flag, word) in flags {
            if flag {
                write!(f, ", {word}")?;
            }
        }
        if let Some(vm) = clock_back {
            write!(f, ", the clock set back for VM {vm} afterwards")?;
        }
        match trouble {
            Trouble::Calls(kind, fault) => write!(f, "; {kind}: {fault}"),
            other => write!(f, "; {other:?}"),
        }
    }
}

/// Longest run: retries with all their pauses, on a machine that is busy.
pub(super) const RUN_LIMIT: Duration = Duration::from_secs(240);
