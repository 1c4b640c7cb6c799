//! `abd plan`: what a backup would do, without doing it.

use super::run::by_hand;
use super::work::select;
use super::{PlanArgs, Session};
use crate::error::{Error, Kind, Result};
use crate::journal;
use crate::plan::{self, Past, Verdict};
use crate::pool::Pool;
use crate::preflight::{self, Facts};
use crate::selection::Strictness;
use crate::spec::{self, RunSpec};
use serde_json::json;

pub(super) async fn run(session: &Session, args: PlanArgs) -> Result<()> {
    let (spec, strictness) = match &args.job {
        Some(file) => (spec::read_file(file)?, Strictness::Lenient),
        None => (by_hand(&args.vms, args.tag, &args.exclude, args.pool)?, Strictness::Strict),
    };
    let named = spec.store.clone().filter(|_| session.default_store);
    let store = named.unwrap_or_else(|| session.store.clone());
    let past = tokio::task::spawn_blocking(move || Past::read(&store))
        .await
        .map_err(|error| Error::new(Kind::Failed, "reading the store was stopped").because(error))??;
    let pools = look(session, &spec, &past).await?;
    let named: Vec<_> = pools.iter().map(|facts| (facts.name.as_str(), facts)).collect();
    let (places, chosen) = select(&named, &spec, strictness, &args.jobs)?;
    let mut plans = Vec::new();
    for choice in &chosen.choices {
        let (pool, reference, record) = places[choice.index];
        plans.push(plan::of_vm(&pools[pool], &past, reference, record, &choice.options));
    }
    let missing: Vec<_> = chosen.missing.iter().map(|one| &one.name).collect();
    let answer = json!({"run": spec.name, "warnings": chosen.warnings, "missing": missing, "plans": plans});
    session.report.answer(&answer, || {
        let warnings = chosen.warnings.iter().map(|warning| format!("warning: {warning}\n"));
        format!("{}{}", warnings.collect::<String>(), plan::text(&plans))
    });
    conclude(&plans)?;
    crate::selection::refuse_missing(&chosen)
}

/// Reads the pools in sessions that cannot change anything.
async fn look(session: &Session, spec: &RunSpec, past: &Past) -> Result<Vec<Facts>> {
    let names: Vec<Option<&str>> = match spec.pools.as_slice() {
        [] => vec![None],
        names => names.iter().map(|name| Some(name.as_str())).collect(),
    };
    let live = journal::scan(&session.state.journal_directory())?.owners();
    let mut pools = Vec::new();
    for name in names {
        let pool = Pool::connect_read_only(&session.state, session.state.pool(name)?).await?;
        let facts = Facts::for_pool(&pool).await;
        pool.close().await;
        let mut facts = facts?;
        facts.live_jobs.clone_from(&live);
        facts.usual_changes = preflight::usual_changes(&past.points);
        pools.push(facts);
    }
    Ok(pools)
}

/// A plan whose jobs would be refused ends as they would.
fn conclude(plans: &[plan::Plan]) -> Result<()> {
    let refused: Vec<_> = plans.iter().filter(|plan| plan.verdict == Verdict::Refuse).collect();
    let Some(first) = refused.first() else { return Ok(()) };
    let kind = first.findings.first().map_or(Kind::Failed, |finding| finding.kind);
    Err(Error::new(kind, format!("{} of {} jobs would be refused", refused.len(), plans.len())))
}
