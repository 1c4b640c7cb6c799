//! The commands: each by the module that does it.

use super::{
    Command, Session, doctor, jobs, plan, pools, release, retention, run, serve, stats, store, templates,
    verify,
};
use crate::config::PoolConfig;
use crate::error::Result;
use crate::pool::Pool;
use crate::report::Event;
use crate::{catalog, reconcile};
use serde_json::json;

pub(super) async fn dispatch(session: &Session, command: Command) -> Result<()> {
    match command {
        Command::Pool(command) => pools::run(session, command).await,
        Command::Template(command) => templates::run(session, command).await,
        Command::Backup(args) => run::backup(session, *args).await,
        Command::Run(args) => run::run(session, *args).await,
        Command::Restore(args) => jobs::restore(session, args).await,
        Command::Plan(args) => plan::run(session, *args).await,
        Command::List { vm } => {
            let store = catalog::open_locked(&session.store)?;
            catalog::list(&store, vm.as_deref(), &session.report)
        }
        Command::Show { point } => {
            let (store, _) = catalog::open(&session.store, false)?;
            catalog::show(&store.find_point(&point).map_err(catalog::store_error)?, &session.report);
            Ok(())
        }
        Command::Verify(args) => verify::verify(session, args).await,
        Command::Stats { vm, points } => stats::run(session, vm, points).await,
        Command::Prune(args) => retention::prune(session, *args).await,
        Command::Remove(args) => retention::remove(session, args).await,
        Command::Pin { point, note } => retention::pin(session, &point, &note).await,
        Command::Unpin { point } => retention::unpin(session, &point).await,
        Command::Store(command) => store::run(session, command).await,
        Command::Serve(args) => serve::run(session, *args).await,
        Command::Reconcile { pool } => reconcile_command(session, pool.as_deref()).await,
        Command::Release(args) => release::run(session, args).await,
        Command::Doctor(args) => doctor::run(session, *args).await,
    }
}

async fn reconcile_command(session: &Session, name: Option<&str>) -> Result<()> {
    let pools = match name {
        Some(name) => vec![session.state.pool(Some(name))?],
        None => session.state.pools()?,
    };
    let mut total = reconcile::Outcome::default();
    let mut failed = None;
    for config in pools {
        match reconcile_pool(session, config).await {
            Ok(outcome) => {
                total.live = outcome.live;
                total.jobs.extend(outcome.jobs);
                total.removed.objects.extend(outcome.removed.objects);
                total.removed.leftovers.extend(outcome.removed.leftovers);
            }
            // The other pools are cleaned all the same.
            Err(error) => {
                session.report.event(&Event::Warning { job: None, message: error.chain() });
                failed.get_or_insert(error);
            }
        }
    }
    let value = json!({
        "jobs": total.jobs, "running": total.live, "removed": total.removed.objects,
        "leftovers": total.removed.leftovers,
    });
    session.report.answer(&value, || {
        let mut text =
            format!("{} dead jobs, {} objects removed", total.jobs.len(), total.removed.objects.len());
        for object in &total.removed.objects {
            text.push_str(&format!("\nremoved  {object}"));
        }
        for object in &total.removed.leftovers {
            text.push_str(&format!("\nSTILL THERE  {object}"));
        }
        text
    });
    reconcile::check(&total)?;
    failed.map_or(Ok(()), Err)
}

async fn reconcile_pool(session: &Session, config: PoolConfig) -> Result<reconcile::Outcome> {
    let pool = Pool::connect(&session.state, config).await?;
    let result = reconcile::run(&session.state, &pool).await;
    pool.close().await;
    result
}
