//! `abd prune`, `abd remove`, `abd pin` and `abd unpin`: which restore points stay.

use super::options::RuleArgs;
use super::{Session, confirm};
use crate::catalog::{self, store_error};
use crate::error::{Error, Kind, Result};
use crate::report::table;
use crate::retention::apply::{self, Group, Scope};
use crate::retention::calendar::{self, Calendar};
use crate::retention::{Reason, Rules};
use crate::spec;
use ads::{PointId, Store, StoredPoint};
use clap::Args;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// VMs, by name or uuid, also such as are gone.
    #[arg(required_unless_present_any = ["all", "every"])]
    vms: Vec<String>,
    /// Of every VM.
    #[arg(long, conflicts_with = "vms")]
    all: bool,
    /// Only points of jobs of this name. Without it each job's points are judged by themselves.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
    #[command(flatten)]
    rules: RuleArgs,
    /// Show what would stay and why, and a calendar, and remove nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Time zone of days, weeks and so on, such as Europe/Berlin [default: this machine's].
    #[arg(long, value_name = "ZONE", value_parser = zone)]
    time_zone: Option<TimeZone>,
    /// Look at no store: play through backups that come this far apart, such as 1d, and draw what stays.
    #[arg(long, value_name = "AGE", value_parser = spec::parse_age, requires = "span", conflicts_with_all = ["vms", "all", "job", "yes"])]
    every: Option<Duration>,
    /// For how long, with --every.
    #[arg(long = "for", value_name = "AGE", value_parser = spec::parse_age, id = "span", requires = "every")]
    span: Option<Duration>,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Ids of restore points, or the beginnings of them.
    #[arg(required = true)]
    points: Vec<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

fn zone(name: &str) -> std::result::Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| format!("'{name}' is no time zone that this machine knows"))
}

pub(super) async fn prune(session: &Session, args: PruneArgs) -> Result<()> {
    let rules = args.rules.rules();
    if rules.is_empty() {
        return Err(Error::new(Kind::Usage, "no rule says what is to stay")
            .remedy("give at least one, such as --keep-daily 7 --keep-monthly 12"));
    }
    let zone = args.time_zone.clone().unwrap_or_else(TimeZone::system);
    if let (Some(every), Some(span)) = (args.every, args.span) {
        return simulate(session, &rules, every, span, &zone);
    }
    let store = open(session).await?;
    let job = args.job.clone().map(Some);
    let scope = Scope { vms: args.vms.clone(), job };
    let (all, pins) = read(&store).await?;
    let missing = args.vms.iter().find(|named| {
        !all.iter().any(|stored| stored.point.vm.name == **named || stored.point.vm.uuid == **named)
    });
    if let Some(missing) = missing {
        return Err(Error::new(Kind::NotFound, format!("no restore point is of a VM '{missing}'"))
            .remedy("see `abd list`"));
    }
    let groups = apply::decide(&all, &pins, &scope, &rules, &zone);
    let doomed = groups.iter().flat_map(|group| &group.points).filter(|judged| !judged.stays()).count();
    if args.dry_run || doomed == 0 {
        let value = value(&groups, false, &[]);
        let calendar = args.dry_run.then(|| draw(&groups, &zone));
        session.report.answer(&value, || {
            let calendar = calendar.map_or(String::new(), |drawn| format!("\n\n{drawn}"));
            format!("{}\n{}{calendar}", listed(&groups), would(doomed, args.dry_run))
        });
        return Ok(());
    }
    if !args.yes {
        let question = format!("{}\nRemove {doomed} restore points? [y/N] ", listed(&groups));
        if !confirm(session, &question)? {
            session.report.answer(&value(&groups, false, &[]), || listed(&groups));
            return Err(Error::new(Kind::NothingDone, "nothing was removed").remedy("say so with --yes"));
        }
    }
    let judged = groups.clone();
    let gone = blocking(move || apply::remove(&store, judged.iter().flat_map(|group| &group.points))).await?;
    session.report.answer(&value(&groups, true, &gone), || {
        let list = if args.yes { format!("{}\n", listed(&groups)) } else { String::new() };
        format!("{list}{} restore points removed; `abd store gc` frees what only they had", gone.len())
    });
    Ok(())
}

fn would(doomed: usize, dry_run: bool) -> String {
    match (doomed, dry_run) {
        (0, _) => "all of them stay".into(),
        (count, true) => format!("{count} would be removed"),
        (count, false) => format!("{count} are removed"),
    }
}

fn simulate(
    session: &Session,
    rules: &Rules,
    every: Duration,
    span: Duration,
    zone: &TimeZone,
) -> Result<()> {
    let signed = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    let found = calendar::simulate(rules, signed(every), signed(span), Timestamp::now(), zone)
        .map_err(|error| Error::new(Kind::Usage, error))?;
    let value = json!({"backups": found.made, "kept": found.left, "most": found.most});
    session.report.answer(&value, || {
        format!(
            "{}\n{} backups, {} of them stay at the end, at most {} at once",
            found.calendar.draw(),
            found.made,
            found.left,
            found.most
        )
    });
    Ok(())
}

pub(super) async fn remove(session: &Session, args: RemoveArgs) -> Result<()> {
    let store = open(session).await?;
    let (all, pins) = read(&store).await?;
    let mut chosen: Vec<&StoredPoint> = Vec::new();
    for name in &args.points {
        let id = store.find_point(name).map_err(store_error)?.id;
        if let Some(stored) = all.iter().find(|stored| stored.id == id) {
            chosen.push(stored);
        }
    }
    // Oldest first: one that doubts others outlives them.
    chosen.sort_by(|a, b| a.point.created.cmp(&b.point.created).then(a.id.cmp(&b.id)));
    chosen.dedup_by_key(|stored| stored.id);
    let ids: BTreeSet<PointId> = chosen.iter().map(|stored| stored.id).collect();
    for stored in &chosen {
        let short = stored.id.short();
        if pins.contains(&stored.id) {
            return Err(Error::new(Kind::Usage, format!("restore point {short} is pinned"))
                .remedy(format!("let go of it first: `abd unpin {short}`")));
        }
        let orphan = apply::marks(stored)
            .find(|marked| !ids.contains(marked) && all.iter().any(|one| one.id == *marked));
        if let Some(marked) = orphan {
            let marked = marked.short();
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "restore point {short} is what says that {marked} is in doubt, and {marked} would stay"
                ),
            )
            .remedy(format!("remove {marked} too, or keep {short}")));
        }
    }
    if !args.yes {
        let names: Vec<String> = chosen.iter().map(|stored| line(stored)).collect();
        let question = format!("{}\nRemove {} restore points? [y/N] ", names.join("\n"), chosen.len());
        if !confirm(session, &question)? {
            return Err(Error::new(Kind::NothingDone, "nothing was removed").remedy("say so with --yes"));
        }
    }
    for stored in &chosen {
        store.remove_point(stored.id).map_err(store_error)?;
    }
    session.report.answer(&json!({"removed": ids}), || {
        format!("{} restore points removed; `abd store gc` frees what only they had", ids.len())
    });
    Ok(())
}

fn line(stored: &StoredPoint) -> String {
    format!("{}  {}  {}", stored.id.short(), stored.point.created, stored.point.vm.name)
}

pub(super) async fn pin(session: &Session, point: &str, note: &str) -> Result<()> {
    let store = open(session).await?;
    let stored = store.find_point(point).map_err(store_error)?;
    store.pin(stored.id, note).map_err(store_error)?;
    let value = json!({"pinned": stored.id, "note": note});
    session.report.answer(&value, || format!("{} stays until `abd unpin`", line(&stored)));
    Ok(())
}

pub(super) async fn unpin(session: &Session, point: &str) -> Result<()> {
    let store = open(session).await?;
    let stored = store.find_point(point).map_err(store_error)?;
    let was = store.unpin(stored.id).map_err(store_error)?;
    session.report.answer(&json!({"unpinned": was, "point": stored.id}), || match was {
        true => format!("{} goes when the rules say so", line(&stored)),
        false => format!("{} was not pinned", line(&stored)),
    });
    Ok(())
}

async fn open(session: &Session) -> Result<Arc<Store>> {
    let directory = session.store.clone();
    blocking(move || Ok(catalog::open(&directory, false)?.0)).await
}

async fn read(store: &Arc<Store>) -> Result<(Vec<StoredPoint>, BTreeSet<PointId>)> {
    let store = store.clone();
    blocking(move || {
        let points = store.points().map_err(store_error)?.points;
        Ok((points, store.pins().map_err(store_error)?.into_keys().collect()))
    })
    .await
}

pub(super) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .map_err(|error| Error::new(Kind::Failed, "a store operation was stopped").because(error))?
}

fn listed(groups: &[Group]) -> String {
    let rows: Vec<_> = groups
        .iter()
        .flat_map(|group| group.points.iter().map(move |judged| (group, judged)))
        .map(|(group, judged)| {
            let why: Vec<_> = judged.reasons.iter().map(|reason| reason.word()).collect();
            let created = &judged.stored.point.created;
            vec![
                judged.stored.id.short(),
                created.get(..16).unwrap_or(created).replace('T', " "),
                group.name.clone(),
                group.job.clone().unwrap_or_else(|| "-".into()),
                if judged.stays() { "keep" } else { "REMOVE" }.to_owned(),
                why.join(" "),
            ]
        })
        .collect();
    match rows.as_slice() {
        [] => "no restore points".into(),
        rows => table(&["POINT", "TIME (UTC)", "VM", "JOB", "", "BECAUSE"], rows),
    }
}

fn draw(groups: &[Group], zone: &TimeZone) -> String {
    let drawn = groups.iter().map(|group| {
        let mut calendar = Calendar::default();
        for judged in &group.points {
            if let Some(created) = judged.created() {
                calendar.add(created, judged.stays(), zone);
            }
        }
        let job = group.job.as_ref().map_or(String::new(), |job| format!(", job {job}"));
        format!("{}{job}\n{}", group.name, calendar.draw())
    });
    drawn.collect::<Vec<_>>().join("\n\n")
}

fn value(groups: &[Group], applied: bool, gone: &[PointId]) -> Value {
    let groups: Vec<Value> = groups
        .iter()
        .map(|group| {
            let points: Vec<Value> = group
                .points
                .iter()
                .map(|judged| {
                    let why: Vec<_> = judged.reasons.iter().copied().map(Reason::word).collect();
                    json!({
                        "id": judged.stored.id, "created": judged.stored.point.created, "keep": judged.stays(),
                        "reasons": why,
                    })
                })
                .collect();
            json!({
                "pool": group.pool, "vm_uuid": group.vm, "vm": group.name, "job": group.job, "points": points,
            })
        })
        .collect();
    json!({"applied": applied, "removed": gone, "groups": groups})
}
