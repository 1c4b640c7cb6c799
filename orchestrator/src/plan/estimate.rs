//! How much of a disk would be read and shipped, and where the number comes from.

use crate::job::changes::History;
use crate::preflight::Facts;
use crate::spec::AuditOptions;
use crate::tracking::{Decision, Mode};
use blocks::{BlockCount, ByteCount};
use serde::Serialize;
use xapi::Vdi;

/// How many earlier runs an estimate looks at: enough for a week of nights, and not last year's.
const RUNS: usize = 7;

/// A number of bytes that is not certain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// The best guess; none where nothing is known.
    pub bytes: Option<ByteCount>,
    /// What it cannot exceed.
    pub at_most: ByteCount,
    /// Where it comes from.
    pub basis: String,
}

impl Expected {
    fn exactly(bytes: ByteCount, basis: &str) -> Self {
        Self { bytes: Some(bytes), at_most: bytes, basis: basis.into() }
    }
}

/// What earlier runs of the same kind did with a disk, on average.
struct Usual {
    runs: usize,
    read: ByteCount,
    shipped: ByteCount,
}

fn usual(history: &History, vdi: &str, is_one: impl Fn(Mode) -> bool) -> Option<Usual> {
    let runs: Vec<_> =
        history.of_disk(vdi).map(|(_, disk)| disk).filter(|disk| is_one(disk.mode)).take(RUNS).collect();
    let count = u64::try_from(runs.len()).ok().filter(|count| *count > 0)?;
    let mean = |of: &dyn Fn(&wire::DiskCounts) -> u64| {
        ByteCount::new(runs.iter().map(|disk| of(&disk.counts)).fold(0, u64::saturating_add) / count)
    };
    Some(Usual {
        runs: runs.len(),
        read: mean(&|counts| counts.moved.get().saturating_sub(counts.audited.get())),
        shipped: mean(&|counts| counts.sealed.get()),
    })
}

fn as_before(runs: usize) -> String {
    match runs {
        1 => "as the last such run".into(),
        runs => format!("as the last {runs} such runs on average"),
    }
}

/// What the storage holds of a disk: its own blocks and those of what it stands on.
fn held(facts: &Facts, vdi: &Vdi) -> Option<ByteCount> {
    let chain = facts.chain(vdi);
    let sum = chain.nodes.iter().fold(0, |sum: u64, node| sum.saturating_add(node.physical_utilisation));
    (sum > 0).then(|| ByteCount::new(sum.min(vdi.virtual_size)))
}

/// What is read of a disk, the audit not counted. `vdi` is absent for a VM's memory.
pub(super) fn reads(
    facts: &Facts,
    history: &History,
    vdi: Option<&Vdi>,
    size: ByteCount,
    decision: &Decision,
) -> Expected {
    let uuid = vdi.map_or("", |vdi| vdi.uuid.as_str());
    match decision.mode {
        Mode::Cbt | Mode::VhdDiff => match usual(history, uuid, |mode| mode == decision.mode) {
            Some(usual) => {
                Expected { bytes: Some(usual.read.min(size)), at_most: size, basis: as_before(usual.runs) }
            }
            None => Expected {
                bytes: None,
                at_most: size,
                basis: "what changed is only known once there is a snapshot".into(),
            },
        },
        Mode::Full if decision.bitmap.is_some() => Expected {
            bytes: vdi.and_then(|vdi| held(facts, vdi)),
            at_most: size,
            basis: "what the storage holds of it".into(),
        },
        Mode::Scan | Mode::Full => Expected::exactly(size, "all of it"),
    }
}

/// What is shipped of a disk of which `reads` is read.
pub(super) fn ships(history: &History, uuid: &str, decision: &Decision, reads: &Expected) -> Expected {
    let incremental = |mode: Mode| mode != Mode::Full;
    let usual = incremental(decision.mode).then(|| usual(history, uuid, incremental)).flatten();
    match usual {
        Some(usual) => Expected {
            bytes: Some(usual.shipped.min(reads.at_most)),
            at_most: reads.at_most,
            basis: as_before(usual.runs),
        },
        None => Expected {
            bytes: None,
            at_most: reads.bytes.unwrap_or(reads.at_most),
            basis: "less, as far as it compresses or the store has it already".into(),
        },
    }
}

/// What an audit reads again of a disk.
pub(super) fn audit(
    options: AuditOptions,
    size: ByteCount,
    decision: &Decision,
    reads: &Expected,
) -> ByteCount {
    if !options.is_on() || decision.bitmap.is_none() {
        return ByteCount::new(0);
    }
    let changed = reads.bytes.unwrap_or_default().blocks_ceil().get();
    let unchanged = BlockCount::new(size.blocks_ceil().get().saturating_sub(changed));
    let audit = wire::Audit {
        seed: 0,
        parts_per_million: options.parts_per_million,
        minimum: BlockCount::new(u64::from(options.minimum)),
    };
    audit.count(unchanged).to_bytes().unwrap_or(size).min(size)
}
