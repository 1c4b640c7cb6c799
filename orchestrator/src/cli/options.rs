//! Options of jobs as flags: each is a key of a job file with `-` for `_`, and goes before the file's.

use crate::retention::Rules;
use crate::spec::{
    self, CbtMode, CoalescePolicy, DelegateOptions, DiskFilter, JobOptions, Limits, RunOptions,
    ThrottleOptions,
};
use blocks::ByteCount;
use clap::Args;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// How delegates are made. What is not said stays as the job file or the default has it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Delegates")]
pub(super) struct DelegateArgs {
    /// Memory of each delegate in MiB [default: 128].
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(64..=65536))]
    delegate_memory: Option<u64>,
    /// Processors of each delegate [default: 1].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=16))]
    delegate_vcpus: Option<u32>,
    /// Fixed addresses (CIDR) for the delegate instead of DHCP; for runs with one delegate at a time.
    #[arg(long, value_name = "CIDR", value_parser = spec::parse_cidr)]
    delegate_address: Vec<String>,
    /// Gateways, with --delegate-address.
    #[arg(long, value_name = "ADDRESS", requires = "delegate_address")]
    delegate_gateway: Vec<IpAddr>,
    /// A delegate that gets nowhere or hears nothing for this many seconds powers itself off [default: 90].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(10..))]
    watchdog: Option<u16>,
    /// How many seconds a delegate may take from its start to its first call [default: 300].
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(10..=3600))]
    boot_limit: Option<u64>,
}

impl DelegateArgs {
    pub(super) fn apply(&self, options: &mut DelegateOptions) {
        put(&mut options.memory, self.delegate_memory.map(|mib| ByteCount::new(mib << 20)));
        put(&mut options.vcpus, self.delegate_vcpus);
        put(&mut options.watchdog, self.watchdog.map(|seconds| Duration::from_secs(seconds.into())));
        put(&mut options.boot_limit, self.boot_limit.map(Duration::from_secs));
        if !self.delegate_address.is_empty() {
            options.addresses.clone_from(&self.delegate_address);
            options.gateways.clone_from(&self.delegate_gateway);
        }
    }
}

/// Which restore points stay. Without any of these all do.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which restore points stay")]
pub(super) struct RuleArgs {
    /// So many of the newest.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=spec::MAX_KEEP))]
    keep_last: Option<u32>,
    /// The newest of each of so many hours.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=spec::MAX_KEEP))]
    keep_hourly: Option<u32>,
    /// The newest of each of so many days.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=spec::MAX_KEEP))]
    keep_daily: Option<u32>,
    /// The newest of each of so many weeks.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=spec::MAX_KEEP))]
    keep_weekly: Option<u32>,
    /// The newest of each of so many months.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=spec::MAX_KEEP))]
    keep_monthly: Option<u32>,
    /// The newest of each of so many years.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=spec::MAX_KEEP))]
    keep_yearly: Option<u32>,
    /// All that are at most so much older than the newest, such as 36h, 30d, 8w or 1y.
    #[arg(long, value_name = "AGE", value_parser = spec::parse_age)]
    keep_within: Option<Duration>,
}

impl RuleArgs {
    /// What was said, and nothing else.
    pub(super) fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        self.apply(&mut rules);
        rules
    }

    fn apply(&self, rules: &mut Rules) {
        rules.last = self.keep_last.or(rules.last);
        rules.hourly = self.keep_hourly.or(rules.hourly);
        rules.daily = self.keep_daily.or(rules.daily);
        rules.weekly = self.keep_weekly.or(rules.weekly);
        rules.monthly = self.keep_monthly.or(rules.monthly);
        rules.yearly = self.keep_yearly.or(rules.yearly);
        rules.within = self.keep_within.or(rules.within);
    }
}

/// What jobs are told. What is not said stays as the job file or the default has it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Jobs")]
pub(super) struct JobArgs {
    /// Change tracking: use it and switch it on where possible (`on` warns where it is not), or do neither
    /// [default: auto].
    #[arg(long, value_name = "auto|on|off", value_parser = parse_cbt)]
    cbt: Option<CbtMode>,
    /// Fail rather than read everything; a disk's first backup may be full.
    #[arg(long)]
    require_cbt: bool,
    /// Start from no earlier restore point: every block is offered to the store again.
    #[arg(long)]
    full: bool,
    /// Read unallocated space too on a first backup.
    #[arg(long)]
    read_unallocated: bool,
    /// zstd level [default: 1].
    #[arg(long, value_name = "LEVEL", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-7..=19))]
    level: Option<i8>,
    /// Share of the unchanged blocks that is read again and compared; 0 is no audit [default: 0.1].
    #[arg(long, value_name = "PERCENT", value_parser = spec::parse_percent)]
    audit_percent: Option<u32>,
    /// Least number of such blocks per disk [default: 64].
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    audit_minimum: Option<u32>,
    /// Repeat the sample of an earlier audit.
    #[arg(long, value_name = "NUMBER")]
    audit_seed: Option<u64>,
    /// A disk to leave out: uuid:UUID, name:PATTERN, tag:TAG or position:NUMBER. Once for each.
    #[arg(long, value_name = "DISK")]
    exclude_disk: Vec<DiskFilter>,
    /// Have the guest settle its file systems, where the host can; a plain snapshot with a warning elsewhere.
    #[arg(long)]
    quiesce: bool,
    /// Back up the memory too.
    #[arg(long, conflicts_with = "quiesce")]
    checkpoint: bool,
    /// Most that one delegate reads from its disks, such as 50MiB/s.
    #[arg(long, value_name = "RATE", value_parser = spec::parse_rate)]
    rate_limit: Option<ByteCount>,
    /// Read less while reads of the VM's disks take longer than this, down to --throttle-floor: production goes first.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    throttle_latency: Option<u32>,
    /// Least that is read all the same, with --throttle-latency here or in the job file [default: 4MiB/s].
    #[arg(long, value_name = "RATE", value_parser = spec::parse_rate)]
    throttle_floor: Option<ByteCount>,
    /// Go on without parts of a disk that cannot be read, as far as they are few: zeros are saved there, every listing
    /// says so, and the exit code is 15.
    #[arg(long)]
    skip_bad_blocks: bool,
    /// What a job does while its storage coalesces [default: wait].
    #[arg(long, value_name = "wait|skip|ignore", value_parser = parse_coalesce)]
    coalesce: Option<CoalescePolicy>,
    /// Longest wait for that; then the job is skipped. Means --coalesce wait [default: 30min].
    #[arg(long, value_name = "DURATION", value_parser = spec::parse_wait)]
    coalesce_limit: Option<Duration>,
    /// No snapshot is made that gives a disk a longer chain than this [default: 24].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=30))]
    max_chain: Option<u32>,
    /// Make the snapshot although its storage may not have the room: thick storage is asked for the full size of every
    /// disk, and needs less where a disk holds little.
    #[arg(long)]
    ignore_space: bool,
    /// How often a failed job is tried again, where that can help [default: of a job file 1, by hand 0].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(0..=10))]
    retries: Option<u32>,
    /// Pause before that; it doubles each time [default: 60s].
    #[arg(long, value_name = "DURATION", value_parser = spec::parse_pause)]
    retry_pause: Option<Duration>,
    #[command(flatten)]
    keep: RuleArgs,
    #[command(flatten)]
    delegate: DelegateArgs,
}

impl JobArgs {
    /// Puts what was said in the place of what is there.
    pub(super) fn apply(&self, options: &mut JobOptions) {
        put(&mut options.cbt, self.cbt);
        options.require_cbt |= self.require_cbt;
        options.full |= self.full;
        options.read_unallocated |= self.read_unallocated;
        put(&mut options.level, self.level);
        put(&mut options.audit.parts_per_million, self.audit_percent);
        put(&mut options.audit.minimum, self.audit_minimum);
        options.audit.seed = self.audit_seed.or(options.audit.seed);
        options.exclude_disks.extend(self.exclude_disk.iter().cloned());
        options.quiesce |= self.quiesce;
        options.checkpoint |= self.checkpoint;
        options.rate_limit = self.rate_limit.or(options.rate_limit);
        if let Some(latency_ms) = self.throttle_latency {
            let before = options.throttle.unwrap_or(ThrottleOptions::with_latency_ms(latency_ms));
            options.throttle = Some(ThrottleOptions { latency_ms, ..before });
        }
        if let (Some(throttle), Some(floor)) = (&mut options.throttle, self.throttle_floor) {
            throttle.floor = floor;
        }
        options.skip_bad_blocks |= self.skip_bad_blocks;
        put(&mut options.coalesce, self.coalesce);
        if let Some(limit) = self.coalesce_limit {
            options.coalesce = CoalescePolicy::Wait { limit };
        }
        put(&mut options.max_chain, self.max_chain);
        options.ignore_space |= self.ignore_space;
        put(&mut options.retries, self.retries);
        put(&mut options.retry_pause, self.retry_pause);
        self.keep.apply(&mut options.keep);
        self.delegate.apply(&mut options.delegate);
    }
}

/// What a run is told.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "The run")]
pub(super) struct RunFlags {
    /// Most jobs at once; each has a delegate of its own [default: 4].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Write the summary as text, as for a mail, to this file.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
    /// Write the summary as JSON to this file.
    #[arg(long, value_name = "FILE")]
    summary_json: Option<PathBuf>,
    /// Write the results as metrics to this file, for the node exporter's textfile collector (`NAME.prom`).
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Show what the time of each disk was spent on, and what it was bound by. `--json` always says so.
    #[arg(long)]
    pub(super) report: bool,
    /// Make the store where its directory is missing or empty. The default store is made by itself; a named one is
    /// not, because an empty directory may be a mount point without its file system.
    #[arg(long)]
    pub(super) init_store: bool,
    /// List the VMs that would be backed up, and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl RunFlags {
    /// Puts what was said in the place of what is there.
    pub(super) fn apply(&self, options: &mut RunOptions) {
        let Limits { max_jobs, .. } = &mut options.limits;
        put(max_jobs, self.jobs);
        options.summary = self.summary.clone().or(options.summary.take());
        options.summary_json = self.summary_json.clone().or(options.summary_json.take());
        options.metrics = self.metrics.clone().or(options.metrics.take());
    }
}

fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn parse_cbt(text: &str) -> Result<CbtMode, String> {
    match text {
        "auto" => Ok(CbtMode::Auto),
        "on" | "true" => Ok(CbtMode::On),
        "off" | "false" => Ok(CbtMode::Off),
        _ => Err("write auto, on or off".into()),
    }
}

fn parse_coalesce(text: &str) -> Result<CoalescePolicy, String> {
    match text {
        "wait" => Ok(CoalescePolicy::default()),
        "skip" => Ok(CoalescePolicy::Skip),
        "ignore" => Ok(CoalescePolicy::Ignore),
        _ => Err("write wait, skip or ignore".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::BTreeSet;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        job: JobArgs,
        #[command(flatten)]
        run: RunFlags,
    }

    fn parse(line: &str) -> Result<Line, String> {
        Line::try_parse_from(["abd"].into_iter().chain(line.split_whitespace()))
            .map_err(|error| error.to_string())
    }

    fn options(line: &str) -> JobOptions {
        let mut options = JobOptions { level: 9, quiesce: true, ..JobOptions::default() };
        parse(line).expect(line).job.apply(&mut options);
        options
    }

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        assert_eq!(options(""), JobOptions { level: 9, quiesce: true, ..JobOptions::default() });
        let mut run = RunOptions { summary: Some("a".into()), ..RunOptions::default() };
        parse("").expect("empty").run.apply(&mut run);
        assert_eq!(run, RunOptions { summary: Some("a".into()), ..RunOptions::default() });
    }

    #[test]
    fn what_is_said_goes_before_the_file() {
        let options = options(
            "--cbt off --level -3 --audit-percent 1.5 --exclude-disk tag:scratch --exclude-disk #3 --rate-limit 5MiB/s --throttle-latency 20 --throttle-floor 2MiB/s \
             --coalesce-limit 5min --retries 0 --retry-pause 2min --delegate-memory 256 --delegate-address 10.0.0.9/24 \
             --watchdog 30",
        );
        assert_eq!((options.cbt, options.level, options.quiesce), (CbtMode::Off, -3, true));
        assert_eq!(options.audit.parts_per_million, 15_000);
        assert_eq!(options.exclude_disks.len(), 2);
        assert_eq!(options.rate_limit, Some(ByteCount::new(5 << 20)));
        assert_eq!(
            options.throttle,
            Some(ThrottleOptions { latency_ms: 20, floor: ByteCount::new(2 << 20) })
        );
        assert_eq!(options.coalesce, CoalescePolicy::Wait { limit: Duration::from_secs(300) });
        assert_eq!((options.retries, options.retry_pause), (0, Duration::from_secs(120)));
        assert_eq!(options.delegate.memory, ByteCount::new(256 << 20));
        assert_eq!(options.delegate.addresses, ["10.0.0.9/24"]);
        assert_eq!(options.delegate.watchdog, Duration::from_secs(30));
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_allowed() {
        for (line, expected) in [
            ("--cbt maybe", "auto, on or off"),
            ("--exclude-disk nmae:x", "name:PATTERN"),
            ("--rate-limit 5", "50 MiB/s"),
            ("--throttle-latency 0", "1..=10000"),
            ("--retry-pause 5", "90 s"),
            ("--delegate-address 10.0.0.9", "CIDR"),
            ("--level 20", "-7..=19"),
            ("--checkpoint --quiesce", "cannot be used with"),
        ] {
            let error = parse(line).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }

    /// A key that only a job file has is one of these, on purpose.
    #[test]
    fn every_option_of_a_job_is_a_flag_too() {
        use clap::CommandFactory;
        let flags: BTreeSet<String> =
            Line::command().get_arguments().map(|one| one.get_id().to_string()).collect();
        let only_in_files = ["before_job", "after_job"];
        for key in spec::keys().into_iter().filter(|key| key.section == "options") {
            let singular = match key.key {
                "exclude_disks" => "exclude_disk",
                "delegate_addresses" => "delegate_address",
                "delegate_gateways" => "delegate_gateway",
                other => other,
            };
            assert!(flags.contains(singular) || only_in_files.contains(&key.key), "{}", key.key);
        }
    }
}
