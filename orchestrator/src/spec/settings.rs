//! The keys of a job file's `[options]`, `[[vm]]` and `[run]`, one row each: the table is what is read, what errors
//! say and what the documents print.

use super::reader::{Raw, Setting, Table};
use super::values::{
    parse_age, parse_latency, parse_pause, parse_percent, parse_rate, parse_seconds, parse_size, parse_wait,
};
use super::{
    CHAIN_LIMIT, CbtMode, CoalescePolicy, DELEGATE_MEMORY, Hook, HookCommand, HookFailure, JobOptions,
    LEVELS, MAX_JOBS, MAX_KEEP, MAX_RETRIES, RunOptions, ThrottleOptions, WindowEnd,
};
use crate::window::Window;
use blocks::ByteCount;
use std::net::IpAddr;
use std::time::Duration;

macro_rules! setting {
    ($key:literal, $default:literal, $allowed:expr, $about:literal, |$target:ident, $raw:ident| $set:expr) => {
        Setting {
            key: $key,
            about: $about,
            allowed: $allowed,
            default: $default,
            set: |$target, $raw| {
                $set;
                Ok(())
            },
        }
    };
}

/// What a rule may count.
const KEEP: &str = "a whole number, 1 to 100000; without any `keep_` all of them stay";
/// The forms of a hook.
const HOOK_FORMS: &str =
    "a command line, a list of a program and its arguments, or { command, timeout, on_failure }";

/// `[options]` and `[[vm]]`: what one job is told.
pub(super) const JOB: &[Setting<JobOptions>] = &[
    setting!(
        "cbt",
        "\"auto\"",
        "true, false or \"auto\"",
        "change tracking: use it and switch it on where possible (`true` warns where not), or do neither",
        |o, v| o.cbt = cbt(v)?
    ),
    setting!(
        "require_cbt",
        "false",
        "true or false",
        "fail rather than read everything; a disk's first backup may be full",
        |o, v| o.require_cbt = v.boolean()?
    ),
    setting!("full", "false", "true or false", "start from no earlier restore point", |o, v| o.full =
        v.boolean()?),
    setting!(
        "read_unallocated",
        "false",
        "true or false",
        "read unallocated space too on a first backup",
        |o, v| o.read_unallocated = v.boolean()?
    ),
    setting!("level", "1", "a whole number, -7 to 19", "zstd level", |o, v| o.level =
        v.integer(i64::from(*LEVELS.start())..=i64::from(*LEVELS.end()))?),
    setting!(
        "audit_percent",
        "0.1",
        "a number, 0 to 100, in steps of 0.0001; 0 is no audit",
        "share of the unchanged blocks that is read again and compared",
        |o, v| o.audit.parts_per_million = parse_percent(&v.decimal()?)?
    ),
    setting!(
        "audit_minimum",
        "64",
        "a whole number, 0 to 1000000",
        "least number of such blocks per disk",
        |o, v| o.audit.minimum = v.integer(0..=1_000_000)?
    ),
    setting!(
        "audit_seed",
        "",
        "a whole number, 0 or more",
        "repeat the sample of an earlier audit; else each job draws its own",
        |o, v| o.audit.seed = Some(v.integer(0..=i64::MAX)?)
    ),
    setting!(
        "exclude_disks",
        "[]",
        "a list of \"uuid:UUID\", \"name:PATTERN\", \"tag:TAG\" or \"position:NUMBER\" (0 to 254)",
        "disks that are left out",
        |o, v| o.exclude_disks = v.parsed_list(str::parse)?
    ),
    setting!(
        "quiesce",
        "false",
        "true or false",
        "have the guest settle its file systems, where the host can; a plain snapshot with a warning elsewhere",
        |o, v| o.quiesce = v.boolean()?
    ),
    setting!("checkpoint", "false", "true or false", "back up the memory too", |o, v| o.checkpoint =
        v.boolean()?),
    setting!(
        "rate_limit",
        "",
        "a rate of at least 64 KiB/s, such as \"50 MiB/s\"",
        "most that one delegate reads from its disks",
        |o, v| o.rate_limit = Some(v.parsed(parse_rate)?)
    ),
    setting!(
        "throttle_latency",
        "",
        "a duration of 1 ms to 10 s, such as \"20 ms\"",
        "read less while reads of the VM's disks take longer than this",
        |o, v| o.throttle = Some(throttle_latency(v, o.throttle)?)
    ),
    setting!(
        "throttle_floor",
        "",
        "a rate of at least 64 KiB/s, such as \"4 MiB/s\", with throttle_latency",
        "least that is read all the same, 4 MiB/s where nothing is said",
        |o, v| o.throttle = Some(throttle_floor(v, o.throttle)?)
    ),
    setting!(
        "skip_bad_blocks",
        "false",
        "true or false",
        "go on without parts of a disk that cannot be read: zeros are saved there, and the run ends with code 15",
        |o, v| o.skip_bad_blocks = v.boolean()?
    ),
    setting!(
        "coalesce",
        "\"wait\"",
        "\"wait\", \"skip\" or \"ignore\"",
        "what a job does while its storage coalesces",
        |o, v| o.coalesce = coalesce(v, o.coalesce)?
    ),
    setting!(
        "coalesce_limit",
        "\"30 min\"",
        "a duration up to a day, such as \"30 min\", with coalesce = \"wait\"",
        "longest wait for that; then the job is skipped",
        |o, v| o.coalesce = coalesce_limit(v, o.coalesce)?
    ),
    setting!(
        "max_chain",
        "24",
        "a whole number, 1 to 30",
        "no snapshot is made that gives a disk a longer chain",
        |o, v| o.max_chain = v.integer(1..=i64::from(CHAIN_LIMIT))?
    ),
    setting!(
        "ignore_space",
        "false",
        "true or false",
        "make the snapshot although its storage may not have the room; a warning then",
        |o, v| o.ignore_space = v.boolean()?
    ),
    setting!(
        "retries",
        "1",
        "a whole number, 0 to 10",
        "how often a failed job is tried again, where that can help",
        |o, v| o.retries = v.integer(0..=i64::from(MAX_RETRIES))?
    ),
    setting!(
        "retry_pause",
        "\"60 s\"",
        "a duration, 1 s to a day",
        "pause before that; it doubles each time",
        |o, v| o.retry_pause = v.parsed(parse_pause)?
    ),
    setting!("keep_last", "", KEEP, "after the job so many of the newest restore points stay", |o, v| o
        .keep
        .last =
        Some(v.integer(1..=MAX_KEEP)?)),
    setting!("keep_hourly", "", KEEP, "the newest of each of so many hours", |o, v| o.keep.hourly =
        Some(v.integer(1..=MAX_KEEP)?)),
    setting!("keep_daily", "", KEEP, "the newest of each of so many days", |o, v| o.keep.daily =
        Some(v.integer(1..=MAX_KEEP)?)),
    setting!("keep_weekly", "", KEEP, "the newest of each of so many weeks", |o, v| o.keep.weekly =
        Some(v.integer(1..=MAX_KEEP)?)),
    setting!("keep_monthly", "", KEEP, "the newest of each of so many months", |o, v| o.keep.monthly =
        Some(v.integer(1..=MAX_KEEP)?)),
    setting!("keep_yearly", "", KEEP, "the newest of each of so many years", |o, v| o.keep.yearly =
        Some(v.integer(1..=MAX_KEEP)?)),
    setting!(
        "keep_within",
        "",
        "an age, such as \"36 h\", \"30 d\", \"8 w\" or \"1 y\"",
        "all that are at most so much older than the newest",
        |o, v| o.keep.within = Some(v.parsed(parse_age)?)
    ),
    setting!(
        "before_job",
        "",
        HOOK_FORMS,
        "command before each job; if it fails, the job is not started and counts as failed",
        |o, v| o.hooks.before_job = Some(hook(v, HookFailure::Abort)?)
    ),
    setting!(
        "after_job",
        "",
        HOOK_FORMS,
        "command after each job, however it ended; if it fails, that is a warning",
        |o, v| o.hooks.after_job = Some(hook(v, HookFailure::Warn)?)
    ),
    setting!(
        "delegate_memory",
        "\"128 MiB\"",
        "a size in whole MiB, 64 MiB to 64 GiB",
        "memory of a delegate",
        |o, v| o.delegate.memory = memory(v)?
    ),
    setting!("delegate_vcpus", "1", "a whole number, 1 to 16", "processors of a delegate", |o, v| o
        .delegate
        .vcpus =
        v.integer(1..=16)?),
    setting!(
        "delegate_addresses",
        "[]",
        "a list of addresses in CIDR form; with max_jobs = 1",
        "fixed addresses instead of DHCP",
        |o, v| o.delegate.addresses = v.parsed_list(parse_cidr)?
    ),
    setting!(
        "delegate_gateways",
        "[]",
        "a list of addresses, with delegate_addresses",
        "gateways that go with them",
        |o, v| o.delegate.gateways = v.parsed_list(address)?
    ),
    setting!(
        "watchdog",
        "\"90 s\"",
        "whole seconds, 10 s to 65535 s",
        "a delegate that hears nothing or gets nowhere for this long powers itself off",
        |o, v| o.delegate.watchdog = v.parsed(|text| parse_seconds(text, 10, u16::MAX.into()))?
    ),
    setting!(
        "boot_limit",
        "\"300 s\"",
        "whole seconds, 10 s to 3600 s",
        "longest time from a delegate's start to its first call",
        |o, v| o.delegate.boot_limit = v.parsed(|text| parse_seconds(text, 10, 3600))?
    ),
];

/// `[run]`: what concerns all jobs together.
pub(super) const RUN: &[Setting<RunOptions>] = &[
    setting!(
        "max_jobs",
        "4",
        "a whole number, 1 to 64",
        "jobs at once; each has a delegate of its own",
        |o, v| o.limits.max_jobs = v.integer(1..=MAX_JOBS)?
    ),
    setting!("max_jobs_per_pool", "", "a whole number, 1 to 64", "jobs at once in one pool", |o, v| o
        .limits
        .max_jobs_per_pool =
        Some(v.integer(1..=MAX_JOBS)?)),
    setting!("max_jobs_per_host", "4", "a whole number, 1 to 64", "delegates at once on one host", |o, v| {
        o.limits.max_jobs_per_host = v.integer(1..=MAX_JOBS)?
    }),
    setting!(
        "max_jobs_per_sr",
        "4",
        "a whole number, 1 to 64",
        "jobs at once that read from one storage repository",
        |o, v| o.limits.max_jobs_per_sr = v.integer(1..=MAX_JOBS)?
    ),
    setting!(
        "delegate_memory_budget",
        "",
        "a size, such as \"2 GiB\"",
        "memory of all delegates together",
        |o, v| o.limits.delegate_memory_budget = Some(v.parsed(parse_size)?)
    ),
    setting!(
        "window",
        "",
        "\"22:00-06:00\", \"Mon-Fri 22:00-06:00\", or a list of such, in local time",
        "when jobs may start",
        |o, v| o.window = Window::new(v.parsed_list(str::parse)?)
    ),
    setting!(
        "window_end",
        "\"finish\"",
        "\"finish\" or \"stop\"",
        "what becomes of running jobs when the window closes",
        |o, v| o.window_end = window_end(v)?
    ),
    setting!(
        "before_run",
        "",
        HOOK_FORMS,
        "command before the first job; if it fails, no job is started",
        |o, v| o.before_run = Some(hook(v, HookFailure::Abort)?)
    ),
    setting!(
        "after_run",
        "",
        HOOK_FORMS,
        "command after the last job; if it fails, that is a warning",
        |o, v| o.after_run = Some(hook(v, HookFailure::Warn)?)
    ),
    setting!(
        "copy_to",
        "[]",
        "a place or a list of places: a path, or s3://BUCKET/PREFIX?OPTIONS",
        "other places of the store, to which the new restore points of the run's VMs are copied after the last job",
        |o, v| o.copy_to = v.parsed_list(path)?
    ),
    setting!(
        "copy_limit",
        "",
        "a rate of at least 64 KiB/s, such as \"50 MiB/s\"",
        "most that such a copy moves",
        |o, v| o.copy_limit = Some(v.parsed(parse_rate)?)
    ),
    setting!("summary", "", "a path", "file for the summary as text", |o, v| o.summary =
        Some(v.parsed(path)?)),
    setting!("summary_json", "", "a path", "file for the summary as JSON", |o, v| o.summary_json =
        Some(v.parsed(path)?)),
    setting!("metrics", "", "a path", "file for the results as metrics", |o, v| o.metrics =
        Some(v.parsed(path)?)),
];

fn cbt(raw: &Raw) -> Result<CbtMode, String> {
    match raw {
        Raw::Bool(true) => Ok(CbtMode::On),
        Raw::Bool(false) => Ok(CbtMode::Off),
        other => other.parsed(|text| match text {
            "auto" => Ok(CbtMode::Auto),
            _ => Err(format!("'{text}' is not a mode")),
        }),
    }
}

fn coalesce(raw: &Raw, present: CoalescePolicy) -> Result<CoalescePolicy, String> {
    raw.parsed(|text| match (text, present) {
        ("wait", CoalescePolicy::Wait { .. }) => Ok(present),
        ("wait", _) => Ok(CoalescePolicy::default()),
        ("skip", _) => Ok(CoalescePolicy::Skip),
        ("ignore", _) => Ok(CoalescePolicy::Ignore),
        _ => Err(format!("'{text}' is not a policy")),
    })
}

fn coalesce_limit(raw: &Raw, present: CoalescePolicy) -> Result<CoalescePolicy, String> {
    let limit = raw.parsed(parse_wait)?;
    match present {
        CoalescePolicy::Wait { .. } => Ok(CoalescePolicy::Wait { limit }),
        CoalescePolicy::Skip | CoalescePolicy::Ignore => Err("nothing waits with this `coalesce`".into()),
    }
}

fn throttle_latency(raw: &Raw, present: Option<ThrottleOptions>) -> Result<ThrottleOptions, String> {
    let latency_ms = raw.parsed(parse_latency)?;
    let before = present.unwrap_or(ThrottleOptions::with_latency_ms(latency_ms));
    Ok(ThrottleOptions { latency_ms, ..before })
}

fn throttle_floor(raw: &Raw, present: Option<ThrottleOptions>) -> Result<ThrottleOptions, String> {
    let floor = raw.parsed(parse_rate)?;
    let before = present.ok_or("there is no throttle_latency that it goes with")?;
    Ok(ThrottleOptions { floor, ..before })
}

fn window_end(raw: &Raw) -> Result<WindowEnd, String> {
    raw.parsed(|text| match text {
        "finish" => Ok(WindowEnd::Finish),
        "stop" => Ok(WindowEnd::Stop),
        _ => Err(format!("'{text}' is neither")),
    })
}

fn memory(raw: &Raw) -> Result<ByteCount, String> {
    let memory = raw.parsed(parse_size)?;
    if !DELEGATE_MEMORY.contains(&memory.get()) || memory.get() % (1 << 20) != 0 {
        return Err(format!("{memory} does not fit"));
    }
    Ok(memory)
}

/// Reads an address with the length of its network's prefix, as it is.
///
/// # Errors
/// What is wrong, and how it is written.
pub fn parse_cidr(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' is not an address in CIDR form, such as 10.0.0.9/24");
    let (host, prefix) = text.split_once('/').ok_or_else(wrong)?;
    let host: IpAddr = host.parse().map_err(|_| wrong())?;
    let most = if host.is_ipv4() { 32 } else { 128 };
    match prefix.parse::<u8>() {
        Ok(prefix) if (1..=most).contains(&prefix) => Ok(text.to_owned()),
        _ => Err(wrong()),
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is not an address"))
}

fn path(text: &str) -> Result<std::path::PathBuf, String> {
    if text.is_empty() { Err("a path cannot be empty".into()) } else { Ok(text.into()) }
}

/// Reads a hook: a line for the shell, a program with its arguments, or a section with more.
fn hook(raw: &Raw, on_failure: HookFailure) -> Result<Hook, String> {
    let mut hook = Hook { command: command(raw)?, timeout: Hook::DEFAULT_TIMEOUT, on_failure };
    let Raw::Table(Table(entries)) = raw else { return Ok(hook) };
    for entry in entries {
        match entry.key.as_str() {
            "command" => {}
            "timeout" => hook.timeout = entry.value.parsed(hook_timeout)?,
            "on_failure" => {
                hook.on_failure = entry.value.parsed(|text| match text {
                    "abort" => Ok(HookFailure::Abort),
                    "warn" => Ok(HookFailure::Warn),
                    _ => Err(format!("on_failure is \"abort\" or \"warn\", not '{text}'")),
                })?;
            }
            other => return Err(format!("a hook has command, timeout and on_failure, not '{other}'")),
        }
    }
    Ok(hook)
}

fn hook_timeout(text: &str) -> Result<Duration, String> {
    parse_pause(text).map_err(|wrong| format!("a hook's timeout: {wrong}"))
}

fn command(raw: &Raw) -> Result<HookCommand, String> {
    match raw {
        Raw::Text(line) if line.trim().is_empty() => Err("a hook's command cannot be empty".into()),
        Raw::Text(line) => Ok(HookCommand::Shell(line.clone())),
        Raw::List(_) => {
            let words = raw.parsed_list(|word| Ok(word.to_owned()))?;
            match words.first() {
                Some(program) if !program.is_empty() => Ok(HookCommand::Program(words)),
                _ => Err("a hook's command cannot be empty".into()),
            }
        }
        Raw::Table(Table(entries)) => match entries.iter().find(|entry| entry.key == "command") {
            Some(entry) if !matches!(entry.value, Raw::Table(_)) => command(&entry.value),
            _ => Err("a hook needs a command".into()),
        },
        other => other.text().map(|line| HookCommand::Shell(line.to_owned())),
    }
}
