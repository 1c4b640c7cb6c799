//! `abd run` and `abd backup`: a job file, or names and flags that stand for one; then hooks, lock, window, the work,
//! and the summary.

use super::jobs::{Identity, watch_signals};
use super::options::{JobArgs, RunFlags};
use super::work::{Work, Worked, closed_until, select, work};
use super::{BackupArgs, RunArgs, Session};
use crate::copying;
use crate::error::{Error, Kind, Result};
use crate::hooks::{self, Environment};
use crate::lock::{Lock, Subject};
use crate::pool::Pool;
use crate::preflight::Facts;
use crate::report::{Event, table};
use crate::selection::Strictness;
use crate::spec::{self, Hook, HookFailure, JobOptions, Pattern, RunOptions, RunSpec, Selection};
use crate::summary::{self, RunSummary, Whole};
use crate::window::State;
use jiff::Zoned;
use jiff::tz::TimeZone;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::sync::watch;

/// A run that is about to begin.
struct Plan {
    spec: RunSpec,
    strictness: Strictness,
    jobs: JobArgs,
    flags: RunFlags,
    /// Whether a job file is behind it: then it has a lock of its own, and its name goes into restore points.
    is_job_file: bool,
    store: PathBuf,
    create_store: bool,
}

pub(super) async fn run(session: &Session, args: RunArgs) -> Result<()> {
    if args.keys {
        return print_keys(session);
    }
    let Some(file) = &args.file else {
        return Err(Error::new(Kind::Usage, "no job file is named").remedy("write: abd run FILE.toml"));
    };
    let mut spec = spec::read_file(file)?;
    args.flags.apply(&mut spec.run);
    let named = spec.store.clone().filter(|_| session.default_store);
    let create_store = args.flags.init_store || (session.default_store && named.is_none());
    let plan = Plan {
        strictness: Strictness::Lenient,
        jobs: args.jobs,
        flags: args.flags,
        is_job_file: true,
        store: named.unwrap_or_else(|| session.store.clone()),
        create_store,
        spec,
    };
    execute(session, plan).await
}

pub(super) async fn backup(session: &Session, args: BackupArgs) -> Result<()> {
    let mut spec = by_hand(&args.vms, args.tag, &args.exclude, args.pool)?;
    args.flags.apply(&mut spec.run);
    let plan = Plan {
        spec,
        strictness: Strictness::Strict,
        jobs: args.jobs,
        create_store: args.flags.init_store || session.default_store,
        flags: args.flags,
        is_job_file: false,
        store: session.store.clone(),
    };
    execute(session, plan).await
}

/// What a person names on the command line, as a job file would say it.
pub(super) fn by_hand(
    vms: &[String],
    tags: Vec<String>,
    exclude: &[String],
    pool: Option<String>,
) -> Result<RunSpec> {
    let mut select = Selection { tags, ..Selection::default() };
    for vm in vms {
        match uuid::Uuid::try_parse(vm) {
            Ok(uuid) => select.uuids.push(uuid.to_string()),
            Err(_) => select.names.push(pattern(vm)?),
        }
    }
    let names = exclude.iter().map(|name| pattern(name)).collect::<Result<_>>()?;
    Ok(RunSpec {
        name: "backup".into(),
        pools: pool.into_iter().collect(),
        store: None,
        select,
        exclude: Selection { names, ..Selection::default() },
        // A person sees what failed, and decides.
        options: JobOptions { retries: 0, ..JobOptions::default() },
        run: RunOptions::default(),
        overrides: Vec::new(),
    })
}

fn pattern(text: &str) -> Result<Pattern> {
    text.parse().map_err(|wrong: String| Error::new(Kind::Usage, wrong))
}

async fn execute(session: &Session, plan: Plan) -> Result<()> {
    if plan.flags.dry_run {
        return dry_run(session, &plan).await;
    }
    let name = plan.spec.name.as_str();
    let what = if plan.is_job_file { format!("run {name}") } else { name.to_owned() };
    let _lock = match plan.is_job_file {
        true => Some(Lock::take(&session.state.lock_directory(), Subject::Run(name), &what)?),
        false => None,
    };
    let zone = local_zone(&plan.spec)?;
    let now = || Zoned::now().with_time_zone(zone.clone());
    if let Some(window) = &plan.spec.run.window
        && let State::Closed { opens } = window.state(&now())
    {
        return Err(Error::new(Kind::NothingDone, format!("'{name}': {}", closed_until(&opens)))
            .remedy("start it within its window, or without `window` in the job file"));
    }
    let (begun, started) = (Instant::now(), now());
    let identity =
        Identity { run: uuid::Uuid::new_v4().to_string(), name: plan.is_job_file.then(|| name.to_owned()) };
    let cancel = watch_signals();
    let environment = Environment::default().with("ABD_RUN", name).with("ABD_RUN_ID", identity.run.clone());
    let mut summary = RunSummary {
        name: name.to_owned(),
        run: identity.run.clone(),
        pools: plan.spec.pools.clone(),
        store: plan.store.display().to_string(),
        started: stamp(&started),
        ..RunSummary::default()
    };
    let mut warnings = Vec::new();
    let before =
        hook(session, plan.spec.run.before_run.as_ref(), "before_run", &environment, &mut warnings).await;
    let worked = match before {
        Err(error) => Worked { failure: Some(error), ..Worked::default() },
        Ok(()) => {
            let work_to_do = Work {
                spec: &plan.spec,
                strictness: plan.strictness,
                flags: &plan.jobs,
                what: &what,
                store: &plan.store,
                create_store: plan.create_store,
                identity,
                now: &now,
                cancel: cancel.clone(),
            };
            tokio::task::LocalSet::new().run_until(work(session, work_to_do)).await
        }
    };
    warnings.extend(worked.warnings);
    if !worked.pools.is_empty() {
        summary.pools = worked.pools;
    }
    summary.vms = worked.vms;
    summary.warnings = warnings;
    let uncopied = copy_results(session, &plan, &mut summary, &cancel).await.err();
    summary.ended = stamp(&now());
    summary.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let whole =
        Whole { is_stopped: *cancel.borrow(), has_old_leftovers: worked.has_old_leftovers, failure: None };
    finish(session, &plan, summary, worked.failure.or(uncopied), whole, &environment).await
}

/// Copies what the store has of the run's VMs to its other places, where the job file names some: also what an earlier run
/// could not copy. The first error is that of the run; all are in the summary.
async fn copy_results(
    session: &Session,
    plan: &Plan,
    summary: &mut RunSummary,
    cancel: &watch::Receiver<bool>,
) -> Result<()> {
    let vms: BTreeSet<String> =
        summary.vms.iter().map(|vm| vm.uuid.clone()).filter(|uuid| !uuid.is_empty()).collect();
    let places = plan.spec.run.copy_to.clone();
    if places.is_empty() || vms.is_empty() || *cancel.borrow() {
        return Ok(());
    }
    let (store, limit) = (plan.store.clone(), plan.spec.run.copy_limit);
    let (report, cancel) = (session.report.clone(), cancel.clone());
    let work = move || copying::copy_vms(&store, &vms, &places, limit, &report, &|| *cancel.borrow());
    let done = tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Failed, "the copies were stopped").because(error))?;
    let mut first = Ok(());
    for (copy, error) in done? {
        summary.copies.push(copy);
        if let (Ok(()), Some(error)) = (&first, error) {
            first = Err(error);
        }
    }
    first
}

/// Writes the summary, runs the last hook, prints, and gives the run's result for the exit code.
async fn finish(
    session: &Session,
    plan: &Plan,
    mut summary: RunSummary,
    mut failure: Option<Error>,
    around: Whole,
    environment: &Environment,
) -> Result<()> {
    let whole = |failure: &Option<Error>| Whole {
        failure: failure
            .as_ref()
            .map(|error| (error.kind(), error.chain(), error.remedy_text().map(str::to_owned))),
        ..around.clone()
    };
    summary = summary.concluded(whole(&failure));
    let mut later = write_files(&plan.spec.run, &summary).err();
    let mut environment = environment
        .clone()
        .with("ABD_RESULT", summary.result)
        .with("ABD_EXIT_CODE", summary.exit_code.to_string())
        .with("ABD_HEADLINE", summary.headline());
    for (variable, path) in
        [("ABD_SUMMARY", &plan.spec.run.summary), ("ABD_SUMMARY_JSON", &plan.spec.run.summary_json)]
    {
        if let Some(path) = path {
            environment = environment.with(variable, path.display().to_string());
        }
    }
    let mut warnings = Vec::new();
    let after =
        hook(session, plan.spec.run.after_run.as_ref(), "after_run", &environment, &mut warnings).await;
    later = later.or(after.err());
    if later.is_some() || !warnings.is_empty() {
        // What failed first is what is to be looked at.
        match (&failure, later) {
            (Some(_), Some(error)) => warnings.push(error.chain()),
            (None, later) => failure = later,
            (Some(_), None) => {}
        }
        summary.warnings.append(&mut warnings);
        summary = summary.concluded(whole(&failure));
        // Where it could not be written before, that has been said.
        let _ = write_files(&plan.spec.run, &summary);
    }
    let shown = plan.is_job_file || summary.vms.len() > 1;
    if shown || session.json {
        let mut value = json!({"event": "run-summary"});
        if let (Some(value), Ok(serde_json::Value::Object(members))) =
            (value.as_object_mut(), serde_json::to_value(&summary))
        {
            value.extend(members);
        }
        session.report.answer(&value, || summary::text(&summary));
    }
    match (failure, summary.verdict) {
        (_, None) => Ok(()),
        // Nothing came of it but this error, which says it best.
        (Some(error), Some(_)) if summary.vms.is_empty() => Err(error),
        (_, Some(kind)) => Err(conclusion(kind, &summary)),
    }
}

/// The error that ends the process.
fn conclusion(kind: Kind, summary: &RunSummary) -> Error {
    let counts = summary.counts;
    let missing = counts.selected - counts.done;
    let error = |message: String| Error::new(kind, message);
    match kind {
        Kind::Alarm => {
            error("an audit failed: earlier restore points are in doubt, the new ones are whole".into())
                .remedy("see `abd list`, which marks them")
        }
        Kind::BadBlocks => error(format!(
            "all {} jobs did their work, and in {} of them parts of disks could not be read: zeros are saved there",
            counts.selected, counts.bad_blocks
        ))
        .remedy("the summary names the disks; look after their storage, and keep earlier restore points"),
        Kind::Leftovers if counts.leftovers == 0 => error(format!(
            "all {} jobs did their work, something of earlier jobs is still in the pool",
            counts.selected
        ))
        .remedy("the warnings name it; see in XenCenter what holds it, then run `abd reconcile`"),
        Kind::Leftovers => error(format!(
            "all {} jobs did their work, {} left something in the pool",
            counts.selected, counts.leftovers
        ))
        .remedy("run `abd reconcile`"),
        Kind::Cancelled => {
            error(format!("stopped on request: {} of {} VMs are backed up", counts.done, counts.selected))
        }
        Kind::NothingDone => {
            error(format!("none of {} VMs was backed up: every job was left out", counts.selected))
                .remedy("the summary says why")
        }
        _ if missing == 0 => {
            let error = error(summary.error.clone().unwrap_or_else(|| "the run failed".into()));
            match &summary.remedy {
                Some(remedy) => error.remedy(remedy.clone()),
                None => error,
            }
        }
        _ => error(format!("{missing} of {} jobs failed or were left out", counts.selected)),
    }
}

/// Runs a hook of the run, where there is one.
async fn hook(
    session: &Session,
    hook: Option<&Hook>,
    what: &str,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let Some(hook) = hook else { return Ok(()) };
    match hooks::run(hook, what, environment).await {
        Ok(_) => Ok(()),
        Err(error) if hook.on_failure == HookFailure::Warn => {
            session.report.event(&Event::Warning { job: None, message: error.chain() });
            warnings.push(error.chain());
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn write_files(options: &RunOptions, summary: &RunSummary) -> Result<()> {
    let write = |path: &Path, text: String| {
        std::fs::write(path, text)
            .map_err(|error| crate::error::file_error(Kind::Failed, path, "write", error))
    };
    if let Some(path) = &options.summary {
        write(path, summary::text(summary))?;
    }
    if let Some(path) = &options.summary_json {
        let text = serde_json::to_string_pretty(summary).expect("summaries are plain text and numbers");
        write(path, format!("{text}\n"))?;
    }
    if let Some(path) = &options.metrics {
        // Whole or not at all: a scrape must not meet half of it.
        let text = summary::metrics(summary, std::time::SystemTime::now());
        crate::config::write_durable(path, text.as_bytes())
            .map_err(|error| crate::error::file_error(Kind::Failed, path, "write", error))?;
    }
    Ok(())
}

/// The zone of the local clock. A window must not be taken in a zone that nobody meant.
fn local_zone(spec: &RunSpec) -> Result<TimeZone> {
    match TimeZone::try_system() {
        Ok(zone) => Ok(zone),
        Err(_) if spec.run.window.is_none() => Ok(TimeZone::UTC),
        Err(error) => {
            Err(Error::new(Kind::Usage, "this machine does not tell its time zone, and the window needs it")
                .because(error)
                .remedy("set /etc/localtime, or the variable TZ, such as TZ=Europe/Berlin or TZ=UTC"))
        }
    }
}

fn stamp(time: &Zoned) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// Lists what would be backed up. Takes no lock, opens no store, and changes nothing.
async fn dry_run(session: &Session, plan: &Plan) -> Result<()> {
    let names: Vec<Option<&str>> = match plan.spec.pools.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    let configs = names.into_iter().map(|name| session.state.pool(name)).collect::<Result<Vec<_>>>()?;
    let mut pools = Vec::new();
    for config in configs {
        let pool = Pool::connect(&session.state, config).await?;
        let facts = Facts::for_pool(&pool).await;
        pool.close().await;
        pools.push((pool.config.name.clone(), facts?));
    }
    let pools: Vec<_> = pools.iter().map(|(name, facts)| (name.as_str(), facts)).collect();
    let (places, chosen) = select(&pools, &plan.spec, plan.strictness, &plan.jobs)?;
    let rows: Vec<_> = chosen
        .choices
        .iter()
        .map(|choice| {
            let (pool, _, record) = places[choice.index];
            let lines: Vec<_> = choice.overrides.iter().map(ToString::to_string).collect();
            (record, pools[pool].0, choice.by.clone(), lines)
        })
        .collect();
    let value = json!({
        "run": plan.spec.name, "warnings": chosen.warnings,
        "missing": chosen.missing.iter().map(|one| &one.name).collect::<Vec<_>>(),
        "vms": rows.iter().map(|(record, pool, by, lines)| json!({
            "vm": record.name_label, "uuid": record.uuid.as_str(), "pool": pool, "selected_by": by,
            "overrides_at_lines": lines.iter().filter_map(|line| line.parse::<u64>().ok()).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    });
    session.report.answer(&value, || {
        let cells = |(record, pool, by, lines): &(&xapi::Vm, &str, String, Vec<String>)| {
            let lines = if lines.is_empty() { String::new() } else { format!("line {}", lines.join(", ")) };
            vec![record.name_label.clone(), (*pool).to_owned(), record.uuid.to_string(), by.clone(), lines]
        };
        let rows: Vec<_> = rows.iter().map(cells).collect();
        let mut text = table(&["VM", "POOL", "UUID", "SELECTED BY", "[[vm]]"], &rows);
        for warning in &chosen.warnings {
            text.push_str(&format!("\nwarning: {warning}"));
        }
        format!("{text}\n{} VMs would be backed up; nothing was changed", rows.len())
    });
    crate::selection::refuse_missing(&chosen)
}

/// Prints every key of a job file.
fn print_keys(session: &Session) -> Result<()> {
    let keys = spec::keys();
    let value: Vec<_> = keys
        .iter()
        .map(|key| {
            json!({
                "section": key.section, "key": key.key, "default": key.default, "allowed": key.allowed,
                "about": key.about,
            })
        })
        .collect();
    session.report.answer(&json!({"keys": value}), || {
        let mut text = String::from("# Keys of a job file: their defaults, what is allowed, and what for.\n");
        let mut section = "";
        for key in &keys {
            if key.section != section {
                section = key.section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            let default = if key.default.is_empty() { "..." } else { key.default };
            text.push_str(&format!(
                "#{} = {default}\n    # {}\n    # allowed: {}\n",
                key.key, key.about, key.allowed
            ));
        }
        text
    });
    Ok(())
}
