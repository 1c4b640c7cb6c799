//! `abd store repair`: what it did, or would do, and what is lost.

use crate::catalog;
use crate::error::{Error, Kind, Result};
use crate::report::{Event, Report};
use ads::{Deed, Place, RepairOptions, RepairReport, Store};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Stretches of disks that are shown to people; `--json` shows all.
const SHOWN_RANGES: usize = 100;

/// Options of `abd store repair`.
#[derive(Clone, Debug, Args)]
pub(super) struct RepairArgs {
    /// Only say what would be done, and what would be lost.
    #[arg(long)]
    dry_run: bool,
    /// A second store to take from what is lost here: a copy, or any store that was made with the same id key. A directory, or
    /// s3://BUCKET/PREFIX?OPTIONS. It is only read.
    #[arg(long, value_name = "PLACE")]
    from: Option<PathBuf>,
    /// Bring back restore points that only the second store has. They may have been removed here on purpose.
    #[arg(long, requires = "from")]
    missing_points: bool,
    /// Let damaged restore points go that nothing has a copy of. Until then they, and all they may need, stay, and nothing
    /// is freed by `abd store gc`.
    #[arg(long)]
    give_up_points: bool,
}

pub(super) fn repair(path: &Path, args: &RepairArgs, report: &Arc<Report>) -> Result<()> {
    let from = args.from.as_deref().map(|from| catalog::open(from, false)).transpose()?.map(|(from, _)| from);
    let backend = Place::from_path(path).and_then(|place| place.backend()).map_err(catalog::store_error)?;
    if catalog::is_vacant(path) {
        return catalog::open(path, false).map(drop);
    }
    let mut deeds = Store::mend(&backend, from.as_deref(), args.dry_run).map_err(catalog::store_error)?;
    let store = match catalog::open(path, false) {
        Ok((store, _)) => store,
        // What would make it open was not done.
        Err(_) if args.dry_run && !deeds.is_empty() => {
            return tell(&RepairReport { deeds, ..RepairReport::default() }, args, report);
        }
        Err(error) => return Err(error),
    };
    let options = RepairOptions {
        dry_run: args.dry_run,
        give_up_points: args.give_up_points,
        missing_points: args.missing_points,
    };
    let progress = |now: ads::RepairProgress| {
        report.event(&Event::Bytes {
            what: "repair".into(),
            done: now.bytes_done.get(),
            total: now.bytes.get(),
        });
    };
    let mut found = store.repair(options, from.as_deref(), &progress).map_err(catalog::store_error)?;
    deeds.append(&mut found.deeds);
    found.deeds = deeds;
    tell(&found, args, report)
}

fn tell(found: &RepairReport, args: &RepairArgs, report: &Report) -> Result<()> {
    report.answer(&to_json(found, args.dry_run), || text(found, args.dry_run));
    if found.is_whole() {
        return Ok(());
    }
    let what = match found.affects.len() {
        0 => "restore points are damaged that nothing has a copy of".to_owned(),
        count => format!("{count} stretches of disks in restore points are lost"),
    };
    Err(Error::new(Kind::Damaged, what).remedy(
        "give a second store with --from where there is one. Else back up the VMs that are named: everything is read, what \
         was lost is shipped again, and `abd store repair` then says whether the older points are whole. What the \
         disks do not have any more stays lost; `abd remove` takes such points away",
    ))
}

fn text(found: &RepairReport, dry_run: bool) -> String {
    let mut lines = vec![format!("{} packs and {} restore points were looked at", found.packs, found.points)];
    if dry_run {
        lines.push("nothing was changed; a repair would say:".into());
    }
    lines.extend(found.deeds.iter().map(ToString::to_string));
    if found.deeds.is_empty() {
        lines.push("nothing is damaged".into());
    }
    if found.written.get() > 0 {
        lines.push(format!("{} of packs were written", found.written));
    }
    if found.waiting > 0 {
        lines.push(format!(
            "{} damaged packs stay where they are for a later repair, because of:",
            found.waiting
        ));
        lines.extend(found.waits_for.iter().map(|who| format!("  {who}")));
    }
    lines.extend(found.affects.iter().take(SHOWN_RANGES).map(|hit| format!("lost: {hit}")));
    let more = found.more_affected + found.affects.len().saturating_sub(SHOWN_RANGES) as u64;
    if more > 0 {
        lines.push(format!("and {more} more; --json has them, as far as they are listed"));
    }
    lines.join("\n")
}

fn to_json(found: &RepairReport, dry_run: bool) -> Value {
    json!({
        "dry_run": dry_run, "whole": found.is_whole(), "packs": found.packs, "points": found.points,
        "written": found.written, "deeds": found.deeds.iter().map(deed).collect::<Vec<_>>(),
        "affects": found.affects.iter().map(|hit| json!({
            "point": hit.point, "vm": hit.vm, "vdi": hit.vdi, "userdevice": hit.userdevice, "offset": hit.offset,
            "size": hit.size,
        })).collect::<Vec<_>>(),
        "more_affected": found.more_affected, "waiting": found.waiting, "waits_for": found.waits_for,
    })
}

fn deed(deed: &Deed) -> Value {
    let what = match deed {
        Deed::Config { .. } => "config",
        Deed::Generation { .. } => "generation",
        Deed::PackWhole { .. } => "pack-whole",
        Deed::PackQuarantined { .. } => "pack-quarantined",
        Deed::PackRemoved { .. } => "pack-removed",
        Deed::PackReleased { .. } => "pack-released",
        Deed::Fetched { .. } => "fetched",
        Deed::PointBack { .. } => "point-back",
        Deed::PointQuarantined { .. } => "point-quarantined",
        Deed::PointLeft { .. } => "point-left",
    };
    json!({"what": what, "message": deed.to_string()})
}
