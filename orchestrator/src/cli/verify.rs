//! `abd verify`: all of a store, or a part of it.

use super::Session;
use crate::catalog::{self, Part};
use crate::error::{Error, Kind, Result};
use crate::report::Report;
use crate::verified::{Rotation, Share};
use ads::Store;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most parts; more than the days of ten years nobody wants.
const MAX_PARTS: u32 = 4000;

/// Options of `abd verify`.
#[derive(Clone, Debug, Args)]
pub(super) struct VerifyArgs {
    /// Ids of restore points; all where none is given.
    points: Vec<String>,
    /// Open and hash every block instead of checking the structure only.
    #[arg(long)]
    read_data: bool,
    /// Read every byte of so many of a hundred packs, drawn at random.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=100), conflicts_with_all = ["points", "part", "rotate"])]
    sample: Option<u8>,
    /// The seed of --sample: the same one draws the same packs again [default: another one each time, which is told].
    #[arg(long, value_name = "NUMBER", requires = "sample")]
    seed: Option<u64>,
    /// Read every byte of one of several parts: 1/7 today, 2/7 tomorrow. A pack is in the same part for ever.
    #[arg(long, value_name = "N/M", value_parser = parse_part, conflicts_with_all = ["points", "rotate"])]
    part: Option<(u32, u32)>,
    /// Read every byte of what was read longest ago, so much that a run a day reads everything in so many days. A run that was
    /// killed is gone on with. What was read when stands in the state directory.
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PARTS)), conflicts_with = "points")]
    rotate: Option<u32>,
}

fn parse_part(text: &str) -> std::result::Result<(u32, u32), String> {
    let parts = text.split_once('/').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
    match parts {
        Some((n, m)) if (1..=m).contains(&n) && m <= MAX_PARTS => Ok((n, m)),
        _ => Err(format!("two numbers like 3/7, the first from 1 to the second, the second to {MAX_PARTS}")),
    }
}

/// Off the runtime: a store blocks.
pub(super) async fn verify(session: &Session, args: VerifyArgs) -> Result<()> {
    let (path, report, state) = (session.store.clone(), session.report.clone(), session.state.clone());
    let work = move || {
        let store = catalog::open_locked(&path)?;
        let share = match (args.sample, args.part) {
            (Some(percent), _) => Some(Share::Sample { percent, seed: args.seed.unwrap_or_else(any_seed) }),
            (_, Some((number, of))) => Some(Share::Part { number, of }),
            _ => None,
        };
        match (args.rotate, share) {
            (Some(days), _) => rotate(&store, days, state.verified_file(&store.id().to_string()), &report),
            (None, Some(share)) => read_share(&store, share, &report),
            (None, None) => catalog::verify(&store, &args.points, args.read_data, None, &report),
        }
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::new(Kind::Failed, "the check was stopped").because(error))?
}

fn sizes(store: &Store) -> Vec<(seal::PackId, u64)> {
    store.pack_sizes().into_iter().map(|(id, size)| (id, size.get())).collect()
}

fn read_share(store: &Store, share: Share, report: &Arc<Report>) -> Result<()> {
    let all = sizes(store);
    let packs = share.choose(&all);
    let (read, of) = (packs.len(), all.len());
    let (about, mut value) = match share {
        Share::Sample { percent, seed } => (
            format!(
                "a sample: {percent} % of the packs, {read} of {of}; --seed {seed} draws the same ones again"
            ),
            json!({"sample": percent, "seed": seed}),
        ),
        Share::Part { number, of: parts } => (
            format!("part {number} of {parts}: {read} of {of} packs"),
            json!({"part": number, "parts": parts}),
        ),
    };
    (value["packs"], value["of"]) = (read.into(), of.into());
    catalog::verify(store, &[], true, Some(&Part { packs, done: &|_| (), about, value }), report)
}

fn rotate(store: &Store, days: u32, file: PathBuf, report: &Arc<Report>) -> Result<()> {
    let all = sizes(store);
    let mut rotation = Rotation::open(&file)?;
    let oldest = rotation.oldest(&all);
    let turn = rotation.begin(&all, days, now())?;
    let since = oldest.map(|at| ads::timestamp(UNIX_EPOCH + std::time::Duration::from_secs(at)));
    let about = format!(
        "a turn of {days}: {} of {} packs{}; before it {}",
        turn.packs.len(),
        all.len(),
        if turn.resumed { ", the rest of a run that was broken off" } else { "" },
        since.as_ref().map_or("some were never read".into(), |at| format!("all had been read since {at}")),
    );
    let value = json!({
        "rotate": days, "resumed": turn.resumed, "packs": turn.packs.len(), "of": all.len(), "all_read_since": since,
    });
    let outcome = {
        let done = |id| rotation.read(id, now());
        let part = Part { packs: turn.packs, done: &done, about, value };
        catalog::verify(store, &[], true, Some(&part), report)
    };
    // What was damaged is not remembered as read, and comes again with the next turn.
    if outcome.as_ref().err().is_none_or(|error| error.kind() == Kind::Damaged) {
        rotation.end(now())?;
    }
    outcome
}

fn any_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
