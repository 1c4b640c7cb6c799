//! What the data path of a job spent its time on, for people and programs: of each disk, each pass over it, and the job.
//!
//! The numbers and the verdict are `wire::account`'s; here they get names, units and a table.

use blocks::ByteCount;
use serde::Serialize;
use std::time::Duration;
use wire::{Account, Bound, DiskCounts, PassAccount, Stage, StageAccount, account};

/// The data path of a job, a disk or a pass. Times are milliseconds, sizes bytes, shares percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PathSummary {
    /// What it was bound by.
    pub bound_by: Bound,
    /// The same in words.
    pub verdict: String,
    /// Share of the wall time in which that part was waited for; of `nothing`, the largest share of any part.
    pub bound_percent: f64,
    /// How long data moved: without snapshots, the delegate's start and all else.
    pub wall_ms: u64,
    /// Processors of the delegate.
    pub processors: u16,
    /// Processor time of all stages.
    pub cpu_ms: u64,
    /// How many times as much as was shipped was to be saved, zeros and audits apart; none where nothing was shipped,
    /// and of a restore.
    pub dedup: Option<f64>,
    /// How many times as much as was stored was shipped; none where nothing was.
    pub compression: Option<f64>,
    /// The stages that took part, in the order in which data meets them.
    pub stages: Vec<StageRow>,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageRow {
    /// Which.
    pub stage: Stage,
    /// Its threads; 0 where it is calls.
    pub threads: u16,
    /// Calls that can be on their way at once; 0 where it is no calls.
    pub places: u16,
    /// At work, over all threads.
    pub busy_ms: u64,
    /// The same as a share of the wall time, by the thread.
    pub busy_percent: f64,
    /// Waiting for input.
    pub starved_ms: u64,
    /// The same as a share.
    pub starved_percent: f64,
    /// Waiting for room or buffers.
    pub blocked_ms: u64,
    /// The same as a share.
    pub blocked_percent: f64,
    /// Waiting for the rate limit.
    pub held_ms: u64,
    /// The same as a share.
    pub held_percent: f64,
    /// Processor time; 0 where it is not known.
    pub cpu_ms: u64,
    /// What it worked on.
    pub bytes: u64,
    /// Bytes per second while it was busy; none where it has no bytes.
    pub bytes_per_second: Option<u64>,
    /// What waited before it, or was under way in it: mean.
    pub queue_mean: f64,
    /// Most of that.
    pub queue_max: u32,
}

/// The data paths of a job's disks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Paths {
    passes: Vec<PassAccount>,
}

impl Paths {
    /// Takes in what a delegate reported; `place` gives a disk of its order its position in the job.
    pub fn take(&mut self, passes: Vec<PassAccount>, place: impl Fn(u16) -> Option<u16>) {
        let placed =
            passes.into_iter().filter_map(|pass| Some(PassAccount { disk: place(pass.disk)?, ..pass }));
        self.passes.extend(placed);
    }

    /// Of one disk; none where it was not reported.
    pub fn of_disk(&self, disk: usize, counts: &DiskCounts) -> Option<PathSummary> {
        PathSummary::of(self.accounts(disk), &[*counts])
    }

    /// Of each pass over a disk, where there was more than one. What a pass shipped is not known apart.
    pub fn of_passes(&self, disk: usize) -> Vec<PathSummary> {
        let passes: Vec<_> = self.accounts(disk).collect();
        if passes.len() < 2 {
            return Vec::new();
        }
        passes.into_iter().filter_map(|pass| PathSummary::of([pass], &[])).collect()
    }

    /// Of the job.
    pub fn of_job(&self, counts: &[DiskCounts]) -> Option<PathSummary> {
        PathSummary::of(self.passes.iter().map(|pass| &pass.account), counts)
    }

    fn accounts(&self, disk: usize) -> impl Iterator<Item = &Account> {
        let passes = self.passes.iter().filter(move |pass| usize::from(pass.disk) == disk);
        passes.map(|pass| &pass.account)
    }
}

impl PathSummary {
    fn of<'a>(accounts: impl IntoIterator<Item = &'a Account>, counts: &[DiskCounts]) -> Option<Self> {
        let account = account::sum(accounts);
        if account.wall.is_zero() {
            return None;
        }
        let sum = |of: fn(&DiskCounts) -> ByteCount| {
            counts.iter().fold(0, |sum: u64, one| sum.saturating_add(of(one).get()))
        };
        let (shipped, sealed) = (sum(|one| one.shipped), sum(|one| one.sealed));
        let saved = shipped.saturating_add(sum(|one| one.unchanged)).saturating_add(sum(|one| one.known));
        let verdict = account.verdict();
        Some(Self {
            bound_by: verdict.bound,
            verdict: verdict.words(),
            bound_percent: f64::from(verdict.share) / 10.0,
            wall_ms: milliseconds(account.wall),
            processors: account.processors,
            cpu_ms: milliseconds(account.cpu()),
            // A restore takes what there is.
            dedup: account.stage(Stage::Read).and_then(|_| ratio(saved, shipped)),
            compression: ratio(shipped, sealed),
            stages: account.stages.iter().map(|stage| StageRow::of(stage, account.wall)).collect(),
        })
    }

    /// The verdict on one line: `data moved for 10.4 s, bound by the network: 94 %`.
    pub fn line(&self) -> String {
        let time = match self.wall_ms {
            0..1000 => format!("{} ms", self.wall_ms),
            _ => format!("{:.1} s", self.wall_ms as f64 / 1000.0),
        };
        match self.bound_by {
            Bound::Nothing => format!("data moved for {time}, {}", self.verdict),
            _ => format!("data moved for {time}, {}: {:.0} %", self.verdict, self.bound_percent),
        }
    }

    /// The table for people: at most 78 columns.
    pub fn table(&self) -> String {
        let header = ["BUSY", "STARVED", "BLOCKED", "HELD", "BYTES", "MB/S", "QUEUE", "MOST", "THREADS"];
        let mut rows = vec![("STAGE", header.map(str::to_owned))];
        rows.extend(self.stages.iter().map(|row| (row.stage.name(), row.cells())));
        let mut widths = header.map(str::len);
        for (_, cells) in &rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for (name, cells) in rows {
            text.push_str(&format!("{name:<7}"));
            for (cell, width) in cells.iter().zip(widths) {
                text.push_str(&format!(" {cell:>width$}"));
            }
            text.push('\n');
        }
        let processors = if self.processors == 1 { "processor" } else { "processors" };
        let cpu = self.cpu_ms as f64 / 1000.0;
        text.push_str(&format!("processor time {cpu:.1} s on {} {processors}", self.processors));
        for (name, factor) in [("dedup", self.dedup), ("compression", self.compression)] {
            if let Some(factor) = factor {
                text.push_str(&format!(", {name} {factor:.2} : 1"));
            }
        }
        text
    }
}

impl StageRow {
    /// Its cells in the table; what is nothing, or too little to say, is a dash.
    fn cells(&self) -> [String; 9] {
        let dash = || "-".to_owned();
        let percent = |share: f64| if share < 0.5 { dash() } else { format!("{share:.0} %") };
        let queue = |text: String| if self.queue_max == 0 { dash() } else { text };
        // What was hardly busy has no rate worth telling.
        let rate = self.bytes_per_second.filter(|_| self.busy_ms > 0);
        [
            percent(self.busy_percent),
            percent(self.starved_percent),
            percent(self.blocked_percent),
            percent(self.held_percent),
            if self.bytes == 0 { dash() } else { ByteCount::new(self.bytes).to_string() },
            rate.map_or_else(dash, megabytes),
            queue(format!("{:.1}", self.queue_mean)),
            queue(self.queue_max.to_string()),
            if self.threads == 0 { dash() } else { self.threads.to_string() },
        ]
    }

    fn of(stage: &StageAccount, wall: Duration) -> Self {
        let percent = |time| f64::from(stage.share(time, wall)) / 10.0;
        Self {
            stage: stage.stage,
            threads: stage.threads,
            places: stage.places,
            busy_ms: milliseconds(stage.busy),
            busy_percent: percent(stage.busy),
            starved_ms: milliseconds(stage.starved),
            starved_percent: percent(stage.starved),
            blocked_ms: milliseconds(stage.blocked),
            blocked_percent: percent(stage.blocked),
            held_ms: milliseconds(stage.held),
            held_percent: percent(stage.held),
            cpu_ms: milliseconds(stage.cpu),
            bytes: stage.bytes.get(),
            bytes_per_second: stage.rate().map(ByteCount::get),
            queue_mean: stage.depth_mean_hundredths() as f64 / 100.0,
            queue_max: stage.depth_max,
        }
    }
}

/// Bytes as megabytes: one digit behind the point where there are few.
fn megabytes(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 10.0 { format!("{megabytes:.1}") } else { format!("{megabytes:.0}") }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// With two digits behind the point.
fn ratio(of: u64, to: u64) -> Option<f64> {
    (to > 0).then(|| (of as f64 / to as f64 * 100.0).round() / 100.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The path of a job that a slow network held up.
    pub(crate) fn held_up() -> PathSummary {
        let stage = |stage, threads, busy, starved, blocked| StageAccount {
            threads,
            busy: Duration::from_millis(busy),
            starved: Duration::from_millis(starved),
            blocked: Duration::from_millis(blocked),
            bytes: ByteCount::new(250 << 20),
            depth_sum: 3,
            depth_count: 2,
            depth_max: 2,
            ..StageAccount::new(stage)
        };
        let network = StageAccount { places: 2, ..stage(Stage::Network, 0, 10_000, 400, 0) };
        let stages = vec![
            stage(Stage::Read, 1, 400, 0, 9000),
            stage(Stage::Hash, 2, 300, 8000, 10_000),
            StageAccount { cpu: Duration::from_millis(900), ..stage(Stage::Seal, 2, 1000, 2000, 16_000) },
            stage(Stage::Pack, 1, 100, 500, 9800),
            network,
            StageAccount { places: 2, ..stage(Stage::Store, 0, 350, 0, 0) },
        ];
        let account = Account { wall: Duration::from_millis(10_400), processors: 2, stages };
        let mut paths = Paths::default();
        paths.take(vec![PassAccount { disk: 0, pass: 0, account }], Some);
        let size = |mib: u64| ByteCount::new(mib << 20);
        let counts =
            DiskCounts { shipped: size(250), known: size(50), sealed: size(100), ..DiskCounts::default() };
        paths.of_job(&[counts]).expect("there is a pass")
    }

    #[test]
    fn the_verdict_fits_a_line_and_the_table_its_columns() {
        let path = held_up();
        assert_eq!(path.line(), "data moved for 10.4 s, bound by the network: 94 %");
        let table = path.table();
        assert!(table.lines().all(|line| line.chars().count() <= 78), "{table}");
        let expected = "\
STAGE   BUSY STARVED BLOCKED HELD      BYTES MB/S QUEUE MOST THREADS
read     4 %       -    86 %    - 250.00 MiB  655   1.5    2       1
hash     1 %    38 %    48 %    - 250.00 MiB 1748   1.5    2       2
seal     5 %    10 %    77 %    - 250.00 MiB  524   1.5    2       2
pack     1 %     5 %    94 %    - 250.00 MiB 2621   1.5    2       1
network 96 %     4 %       -    - 250.00 MiB   26   1.5    2       -
store    3 %       -       -    - 250.00 MiB  749   1.5    2       -
processor time 0.9 s on 2 processors, dedup 1.20 : 1, compression 2.50 : 1";
        assert_eq!(table, expected);
    }

    #[test]
    fn disks_passes_and_rounds_are_told_apart_and_add_up() {
        let pass = |disk, pass, seconds| {
            let read = StageAccount {
                threads: 1,
                busy: Duration::from_secs(seconds),
                ..StageAccount::new(Stage::Read)
            };
            let account = Account { wall: Duration::from_secs(seconds), processors: 1, stages: vec![read] };
            PassAccount { disk, pass, account }
        };
        let mut paths = Paths::default();
        // The second delegate has one disk, which is the job's third; what it says of others is no disk of it.
        paths.take(vec![pass(0, 0, 1), pass(0, 1, 2), pass(1, 0, 4)], Some);
        paths.take(vec![pass(0, 0, 8), pass(1, 0, 16)], |disk| (disk == 0).then_some(2));
        let counts = DiskCounts::default();
        let wall = |disk| paths.of_disk(disk, &counts).map(|path| path.wall_ms);
        assert_eq!([wall(0), wall(1), wall(2), wall(3)], [Some(3000), Some(4000), Some(8000), None]);
        assert_eq!(paths.of_passes(0).iter().map(|pass| pass.wall_ms).collect::<Vec<_>>(), [1000, 2000]);
        assert_eq!(paths.of_passes(1), []);
        let job = paths.of_job(&[counts; 3]).expect("there are passes");
        assert_eq!((job.wall_ms, job.bound_by, job.dedup), (15_000, Bound::DiskRead, None));
    }

    #[test]
    fn the_json_form_is_stable() {
        let read = StageAccount {
            threads: 1,
            busy: Duration::from_millis(900),
            held: Duration::from_millis(50),
            bytes: ByteCount::new(1800),
            depth_sum: 5,
            depth_count: 2,
            depth_max: 4,
            ..StageAccount::new(Stage::Read)
        };
        let account = Account { wall: Duration::from_secs(1), processors: 2, stages: vec![read] };
        let counts = DiskCounts {
            shipped: ByteCount::new(400),
            unchanged: ByteCount::new(600),
            sealed: ByteCount::new(160),
            ..DiskCounts::default()
        };
        let path = PathSummary::of([&account], &[counts]).expect("it took time");
        assert_eq!(
            serde_json::to_string(&path).expect("plain"),
            concat!(
                r#"{"bound_by":"disk-read","verdict":"bound by reading the disk","bound_percent":90.0,"wall_ms":1000,"#,
                r#""processors":2,"cpu_ms":0,"dedup":2.5,"compression":2.5,"stages":[{"stage":"read","threads":1,"#,
                r#""places":0,"busy_ms":900,"busy_percent":90.0,"starved_ms":0,"starved_percent":0.0,"blocked_ms":0,"#,
                r#""blocked_percent":0.0,"held_ms":50,"held_percent":5.0,"cpu_ms":0,"bytes":1800,"#,
                r#""bytes_per_second":2000,"queue_mean":2.5,"queue_max":4}]}"#
            )
        );
    }
}
