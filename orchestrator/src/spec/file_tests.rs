//! Job files: what they mean, what they refuse, and that the documents say the same.

use super::*;
use crate::spec::{
    CbtMode, CoalescePolicy, DiskFilter, HookCommand, HookFailure, ThrottleOptions, WindowEnd,
};
use blocks::ByteCount;
use std::time::Duration;

fn spec(text: &str) -> Result<RunSpec> {
    parse_text("night.toml", "night", text)
}

/// A file that is complete, with more lines behind it.
fn with(text: &str) -> Result<RunSpec> {
    spec(&format!("select.names = \"*\"\n{text}"))
}

#[test]
fn everything_that_a_file_can_say_arrives() {
    let spec = spec(
        r##"
        name = "nightly-dc1"
        pools = ["dc1", "dc2"]
        store = "/srv/abd"

        [select]
        names = ["web*", "db01"]
        uuids = "0F6F0D2C-7A53-4A0E-9C3E-0A1B2C3D4E5F"
        tags = ["backup"]

        [exclude]
        names = "*-test"

        [options]
        cbt = true
        level = 3
        audit_percent = 0.25
        audit_seed = 7
        exclude_disks = ["tag:scratch", "#3"]
        rate_limit = "50 MiB/s"
        throttle_latency = "20 ms"
        throttle_floor = "2 MiB/s"
        coalesce_limit = "10 min"
        retries = 3
        retry_pause = "2 min"
        before_job = "logger starting"
        after_job = { command = ["/usr/bin/logger", "done"], timeout = "10 s", on_failure = "abort" }
        delegate_memory = "256 MiB"
        watchdog = "2 min"

        [run]
        max_jobs = 8
        max_jobs_per_sr = 1
        delegate_memory_budget = "2 GiB"
        window = ["Mon-Fri 22:00-06:00", "Sat,Sun 00:00-24:00"]
        window_end = "stop"
        summary = "/run/abd/summary"

        [[vm]]
        name = "db*"
        quiesce = true
        exclude_disks = []

        [[vm]]
        tag = "slow"
        cbt = false
        coalesce = "skip"
        "##,
    )
    .expect("valid");
    assert_eq!((spec.name.as_str(), spec.pools.len()), ("nightly-dc1", 2));
    assert_eq!(spec.store, Some("/srv/abd".into()));
    assert_eq!(spec.select.names.len(), 2);
    assert_eq!(spec.select.uuids, ["0f6f0d2c-7a53-4a0e-9c3e-0a1b2c3d4e5f"]);
    assert_eq!(spec.select.tags, ["backup"]);
    assert!(spec.exclude.names[0].matches("web-test"));
    let options = &spec.options;
    assert_eq!((options.cbt, options.level, options.retries), (CbtMode::On, 3, 3));
    assert_eq!((options.audit.parts_per_million, options.audit.seed), (2500, Some(7)));
    assert_eq!(options.exclude_disks, [DiskFilter::Tag("scratch".into()), DiskFilter::Position(3)]);
    assert_eq!(options.rate_limit, Some(ByteCount::new(50 << 20)));
    let throttle = ThrottleOptions { latency_ms: 20, floor: ByteCount::new(2 << 20) };
    assert_eq!(options.throttle, Some(throttle));
    assert_eq!(options.coalesce, CoalescePolicy::Wait { limit: Duration::from_secs(600) });
    assert_eq!(options.retry_pause, Duration::from_secs(120));
    let before = options.hooks.before_job.as_ref().expect("a hook");
    assert_eq!(before.command, HookCommand::Shell("logger starting".into()));
    assert_eq!(before.on_failure, HookFailure::Abort);
    let after = options.hooks.after_job.as_ref().expect("a hook");
    assert_eq!(after.command, HookCommand::Program(vec!["/usr/bin/logger".into(), "done".into()]));
    assert_eq!((after.timeout, after.on_failure), (Duration::from_secs(10), HookFailure::Abort));
    assert_eq!(options.delegate.memory, ByteCount::new(256 << 20));
    assert_eq!(options.delegate.watchdog, Duration::from_secs(120));
    let limits = spec.run.limits;
    assert_eq!((limits.max_jobs, limits.max_jobs_per_sr, limits.max_jobs_per_host), (8, 1, 4));
    assert_eq!(limits.delegate_memory_budget, Some(ByteCount::new(2 << 30)));
    assert_eq!(
        spec.run.window.as_ref().map(ToString::to_string).expect("a window").matches(" or ").count(),
        1
    );
    assert_eq!(spec.run.window_end, WindowEnd::Stop);
    assert_eq!(spec.run.summary, Some("/run/abd/summary".into()));

    let [db, slow] = spec.overrides.as_slice() else { panic!("{:?}", spec.overrides) };
    assert!(db.which.names[0].matches("db01"));
    let mut one = options.clone();
    db.apply(&mut one);
    assert!(one.quiesce && one.exclude_disks.is_empty() && one.cbt == CbtMode::On);
    slow.apply(&mut one);
    assert_eq!((one.cbt, one.coalesce, one.quiesce), (CbtMode::Off, CoalescePolicy::Skip, true));
}

#[test]
fn the_file_gives_its_name_and_the_defaults_are_those_of_the_types() {
    let spec = with("").expect("valid");
    assert_eq!(spec.name, "night");
    assert_eq!((spec.options, spec.run), (JobOptions::default(), RunOptions::default()));
    let error = parse_text("a b.toml", "a b", "select.names = \"*\"").expect_err("no name");
    assert!(error.remedy_text().expect("a remedy").contains("name ="), "{}", error.chain());
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_what_is_allowed() {
    for (text, message, remedy) in [
        ("[options]\nlevel = 20", "night.toml line 3: options.level: the number 20", "-7 to 19"),
        ("[options]\nmax_jobs = 2", "'options.max_jobs' is not a key", "'max_jobs' belongs into [run]"),
        ("[options]\nretires = 2", "'options.retires' is not a key", "did you mean 'retries'?"),
        ("[run]\nwindow = \"22-6\"", "run.window: '22' is not a time of day", "22:00-06:00"),
        ("[run]\nmax_jobs = 0", "run.max_jobs: the number 0 is not within 1 to 64", "1 to 64"),
        ("[runs]\nmax_jobs = 1", "'runs' is not a key", "did you mean 'run'?"),
        ("name = \"a/b\"", "'a/b' cannot be the name", "letters, digits"),
        ("options = 1", "options: it is a section", "[options]"),
        ("[options]\nrate_limit = \"1 KiB/s\"", "too slow", "64 KiB/s"),
        ("[options]\nthrottle_latency = \"20 s\"", "1 ms to 10 s", "20 ms"),
        ("[options]\nthrottle_floor = \"5 MiB/s\"", "throttle_latency", "4 MiB/s"),
        ("[options]\nexclude_disks = [\"nmae:x\"]", "'nmae:' is not a way to name a disk", "position:NUMBER"),
        ("[options]\nbefore_job = \"\"", "cannot be empty", "a command line"),
        ("[options]\nbefore_job = { comand = \"x\" }", "needs a command", "a command line"),
        ("[options]\nbefore_job = { command = \"x\", time = 1 }", "not 'time'", "a command line"),
        (
            "[options]\ncoalesce = \"skip\"\ncoalesce_limit = \"1 min\"",
            "nothing waits",
            "coalesce = \"wait\"",
        ),
        ("[options]\ndelegate_memory = \"1 MiB\"", "does not fit", "64 MiB to 64 GiB"),
        ("[options]\ndelegate_addresses = \"10.0.0.9\"", "CIDR", "CIDR"),
        ("[[vm]]\nquiesce = true", "line 3: [[vm]] does not say which VM", "name ="),
        ("[[vm]]\nname = \"a\"\nlevel = 99", "line 4: vm.level", "-7 to 19"),
        ("[[vm]]\nname = \"a\"\nquiese = true", "'vm.quiese' is not a key", "did you mean 'quiesce'?"),
        ("[[vm]]\nname = [\"a\"]", "vm.name: a list is not a text", "one text"),
        ("[vm]\nname = \"a\"", "vm: it is not a list of sections", "[[vm]]"),
    ] {
        let error = with(text).expect_err(text);
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.chain().contains(message), "{text}: {}", error.chain());
        assert!(error.remedy_text().unwrap_or("").contains(remedy), "{text}: {:?}", error.remedy_text());
    }
    let error = spec("[options]\nlevel = 1").expect_err("no selection");
    assert!(error.chain().contains("[select] names no VM"), "{}", error.chain());
}

#[test]
fn options_that_contradict_each_other_are_refused_in_the_file_and_for_each_vm() {
    for text in [
        "[options]\ncbt = false\nrequire_cbt = true",
        "[options]\nfull = true\nrequire_cbt = true",
        "[options]\nquiesce = true\ncheckpoint = true",
        "[options]\ndelegate_gateways = \"10.0.0.1\"",
        "[options]\ndelegate_addresses = \"10.0.0.9/24\"",
        "[options]\nrequire_cbt = true\n[[vm]]\nname = \"a\"\ncbt = false",
        "[run]\ndelegate_memory_budget = \"1 GiB\"\n[[vm]]\nname = \"a\"\ndelegate_memory = \"2 GiB\"",
    ] {
        let error = with(text).expect_err(text);
        assert!(error.remedy_text().is_some_and(|remedy| remedy.contains("change one")), "{}", error.chain());
    }
    with("[options]\ndelegate_addresses = \"10.0.0.9/24\"\n[run]\nmax_jobs = 1").expect("one at a time");
}

#[test]
fn a_floor_goes_with_a_latency_in_either_order_and_not_alone() {
    let (latency, floor) = ("throttle_latency = \"20 ms\"", "throttle_floor = \"8 MiB/s\"");
    let one = with(&format!("[options]\n{latency}\n{floor}")).expect("both").options.throttle;
    let other = with(&format!("[options]\n{floor}\n{latency}")).expect("both").options.throttle;
    assert_eq!(one, other);
    assert_eq!(one.expect("a throttle").floor.get(), 8 << 20);
    with(&format!("[options]\n{floor}")).expect_err("alone");
}

/// Each default, written as the table says, changes nothing.
#[test]
fn the_defaults_in_the_table_are_those_of_the_types() {
    for (section, key, default) in JOB
        .iter()
        .map(|setting| ("options", setting.key, setting.default))
        .chain(RUN.iter().map(|setting| ("run", setting.key, setting.default)))
    {
        if default.is_empty() {
            continue;
        }
        let spec = with(&format!("[{section}]\n{key} = {default}")).expect(key);
        assert_eq!((spec.options, spec.run), (JobOptions::default(), RunOptions::default()), "{key}");
    }
}
