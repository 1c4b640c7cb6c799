//! `abd release`: shows what is kept in the pools for VMs, asks, and lets go of it.

use super::{ReleaseArgs, Session, confirm};
use crate::catalog;
use crate::config::PoolConfig;
use crate::error::{Error, Kind, Result};
use crate::kept;
use crate::pool::Pool;
use crate::reconcile;
use crate::release::{self, Item};
use crate::report::{Event, table};
use ads::StoredPoint;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub(super) async fn run(session: &Session, args: ReleaseArgs) -> Result<()> {
    let configs = match &args.pool {
        Some(name) => vec![session.state.pool(Some(name))?],
        None => session.state.pools()?,
    };
    let points = points(session).await;
    let mut pools = Vec::new();
    let result = async {
        let mut items = Vec::new();
        for config in configs {
            let pool = enter(session, config, &mut pools).await?;
            items.extend(release::look(pool, &points).await?);
        }
        let items = release::select(items, &args.vms)?;
        go(session, &args, &pools, items, &points).await?;
        if args.all {
            return drop_kept(session, &pools).await;
        }
        Ok(())
    };
    let result = result.await;
    for pool in &pools {
        pool.close().await;
    }
    result
}

async fn enter<'a>(session: &Session, config: PoolConfig, pools: &'a mut Vec<Pool>) -> Result<&'a Pool> {
    pools.push(Pool::connect(&session.state, config).await?);
    Ok(&pools[pools.len() - 1])
}

/// Removes the delegates that are kept for later jobs: who lets go of everything means them, too.
async fn drop_kept(session: &Session, pools: &[Pool]) -> Result<()> {
    let mut outcome = reconcile::Outcome::default();
    for pool in pools {
        let journals = session.state.journal_directory();
        kept::trim(pool, &journals, true, &mut outcome.removed).await?;
    }
    for object in &outcome.removed.objects {
        session.report.event(&Event::Note { message: format!("removed kept {object}") });
    }
    reconcile::check(&outcome)
}

/// The restore points, which know what VMs that are gone were called. Without a store they have only their uuids.
async fn points(session: &Session) -> Vec<StoredPoint> {
    let directory = session.store.clone();
    let read = move || {
        let (store, _) = catalog::open(&directory, false)?;
        Ok(store.points().map_err(catalog::store_error)?.points)
    };
    let read: std::result::Result<Result<_>, _> = tokio::task::spawn_blocking(read).await;
    match read {
        Ok(Ok(points)) => points,
        Ok(Err(error)) => {
            tracing::info!("VMs that are gone have no names here: {}", error.chain());
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

async fn go(
    session: &Session,
    args: &ReleaseArgs,
    pools: &[Pool],
    items: Vec<Item>,
    points: &[StoredPoint],
) -> Result<()> {
    if items.is_empty() {
        let value = json!({"released": false, "kept": [], "removed": [], "leftovers": []});
        session.report.answer(&value, || "nothing is kept there".into());
        return Ok(());
    }
    if !args.yes {
        let question = format!("{}\n{}\nLet go of it? [y/N] ", listed(&items), consequence(&items));
        if !confirm(session, &question)? {
            let value = json!({"released": false, "kept": values(&items), "removed": [], "leftovers": []});
            session.report.answer(&value, || format!("{}\n{}", listed(&items), consequence(&items)));
            return Err(Error::new(Kind::NothingDone, "nothing was removed").remedy("say so with --yes"));
        }
    }
    let uuids: Vec<String> = pools.iter().map(|pool| pool.config.uuid.clone()).collect();
    let _locks = release::hold(&session.state, &items, &uuids)?;
    let mut removed = crate::cleanup::Removed::default();
    for pool in pools {
        // A job may have come and gone before the locks were taken: what is there now counts.
        let present = release::look(pool, points).await?;
        let present: BTreeSet<&str> = present.iter().map(|item| item.kept.uuid.as_str()).collect();
        let here: Vec<&Item> = items
            .iter()
            .filter(|item| item.pool == pool.config.name && present.contains(item.kept.uuid.as_str()))
            .collect();
        removed.note_all(release::remove(pool, &here).await?);
    }
    let value = json!({
        "released": true, "kept": values(&items), "removed": removed.objects, "leftovers": removed.leftovers,
    });
    session.report.answer(&value, || {
        let mut text = match args.yes {
            true => format!("{}\n", listed(&items)),
            false => String::new(),
        };
        text.push_str(&format!("{} objects removed", removed.objects.len()));
        for object in &removed.leftovers {
            text.push_str(&format!("\nSTILL THERE  {object}"));
        }
        text
    });
    let outcome = reconcile::Outcome { removed, ..reconcile::Outcome::default() };
    reconcile::check(&outcome)
}

/// What it costs, in words.
fn consequence(items: &[Item]) -> String {
    let vms: BTreeSet<&str> = items
        .iter()
        .filter_map(|item| item.vm.as_ref())
        .filter(|vm| !vm.is_gone)
        .map(|vm| vm.uuid.as_str())
        .collect();
    format!(
        "Restore points stay. The next backup of {} VMs reads every byte of these disks, for nothing lists their changes \
         any more.",
        vms.len()
    )
}

fn listed(items: &[Item]) -> String {
    let rows: Vec<_> = items
        .iter()
        .map(|item| {
            let vm = match &item.vm {
                Some(vm) if vm.is_gone => format!("{} (gone)", vm.name),
                Some(vm) => vm.name.clone(),
                None => "-".into(),
            };
            let word = release::word(item.kept.kind).to_owned();
            vec![item.pool.clone(), vm, item.disk.clone(), word, item.kept.uuid.clone()]
        })
        .collect();
    table(&["POOL", "VM", "DISK", "KEPT", "UUID"], &rows)
}

fn values(items: &[Item]) -> Vec<Value> {
    let value = |item: &Item| {
        json!({
            "pool": item.pool, "kind": release::word(item.kept.kind), "uuid": item.kept.uuid, "of": item.kept.of,
            "store": item.kept.store, "vm": item.vm.as_ref().map(|vm| &vm.name),
            "vm_uuid": item.vm.as_ref().map(|vm| &vm.uuid), "gone": item.vm.as_ref().is_some_and(|vm| vm.is_gone),
            "disk": item.disk,
        })
    };
    items.iter().map(value).collect()
}
