//! `abd stats`: what VMs and restore points take.

use super::Session;
use crate::catalog::{self, store_error};
use crate::error::{Error, Kind, Result};
use crate::report::{Event, table};
use ads::{PointStatistics, Statistics, StoredPoint, VmStatistics};
use blocks::ByteCount;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A month's restore points: how many, and what their jobs shipped.
type Month = (u64, ByteCount);

pub(super) async fn run(session: &Session, vm: Option<String>, by_point: bool) -> Result<()> {
    let (directory, report) = (session.store.clone(), session.report.clone());
    let count = move || {
        let store = catalog::open_locked(&directory)?;
        let found = store
            .statistics(&|done, total| {
                report.event(&Event::Pieces { what: "restore points".into(), done, total })
            })
            .map_err(store_error)?;
        Ok::<_, Error>((found, store.points().map_err(store_error)?.points))
    };
    let (found, points): (Statistics, Vec<StoredPoint>) = tokio::task::spawn_blocking(count)
        .await
        .map_err(|error| Error::new(Kind::Failed, "the count was stopped").because(error))??;
    let of_vm = |name: &str, uuid: &str| vm.as_ref().is_none_or(|wanted| wanted == name || wanted == uuid);
    let vms: Vec<&VmStatistics> = found.vms.iter().filter(|one| of_vm(&one.name, &one.vm)).collect();
    if let (Some(wanted), []) = (&vm, vms.as_slice()) {
        return Err(Error::new(Kind::NotFound, format!("no restore point is of a VM '{wanted}'"))
            .remedy("see `abd list`"));
    }
    let chosen: Vec<(&StoredPoint, &PointStatistics)> = found
        .points
        .iter()
        .filter_map(|one| Some((points.iter().find(|stored| stored.id == one.id)?, one)))
        .filter(|(stored, _)| of_vm(&stored.point.vm.name, &stored.point.vm.uuid))
        .collect();
    let months = months(&chosen);
    session.report.answer(&value(&found, &vms, &chosen, &months), || {
        let mut text = by_vm(&vms);
        if by_point {
            text.push_str(&format!("\n\n{}", listed(&chosen)));
        }
        text.push_str(&format!("\n\n{}\n\n{}", grown(&months), whole(&found)));
        text
    });
    Ok(())
}

fn months(points: &[(&StoredPoint, &PointStatistics)]) -> BTreeMap<String, Month> {
    let mut months: BTreeMap<String, Month> = BTreeMap::new();
    for (stored, _) in points {
        let month = stored.point.created.get(..7).unwrap_or("?").to_owned();
        let (count, shipped) = months.entry(month).or_insert((0, ByteCount::new(0)));
        *count += 1;
        *shipped =
            stored.point.disks.iter().fold(*shipped, |sum, disk| sum.saturating_add(disk.counts.sealed));
    }
    months
}

/// How many times the first holds the second; a dash where there is no second.
fn factor(whole: ByteCount, part: ByteCount) -> String {
    match ratio(whole, part) {
        Some(ratio) => format!("{ratio:.1}x"),
        None => "-".into(),
    }
}

#[allow(clippy::cast_precision_loss, reason = "shown with one digit")]
fn ratio(whole: ByteCount, part: ByteCount) -> Option<f64> {
    (part.get() > 0).then(|| whole.get() as f64 / part.get() as f64)
}

fn by_vm(vms: &[&VmStatistics]) -> String {
    let rows: Vec<_> = vms
        .iter()
        .map(|one| {
            vec![
                one.name.clone(),
                one.points.to_string(),
                one.size.to_string(),
                one.full.to_string(),
                one.unique.to_string(),
                one.stored.to_string(),
                factor(one.full, one.unique),
                factor(one.unique, one.stored),
                one.exclusive.to_string(),
            ]
        })
        .collect();
    match rows.as_slice() {
        [] => "no restore points".into(),
        rows => {
            table(&["VM", "POINTS", "SIZE", "AS FULLS", "UNIQUE", "STORED", "DEDUP", "ZSTD", "ITS OWN"], rows)
        }
    }
}

fn listed(points: &[(&StoredPoint, &PointStatistics)]) -> String {
    let rows: Vec<_> = points
        .iter()
        .map(|(stored, one)| {
            let created = &stored.point.created;
            vec![
                one.id.short(),
                created.get(..16).unwrap_or(created).replace('T', " "),
                stored.point.vm.name.clone(),
                one.size.to_string(),
                one.full.to_string(),
                one.exclusive.to_string(),
                if one.incomplete { "INCOMPLETE".into() } else { String::new() },
            ]
        })
        .collect();
    table(&["POINT", "TIME", "VM", "SIZE", "AS A FULL", "REMOVING IT FREES", ""], &rows)
}

fn grown(months: &BTreeMap<String, Month>) -> String {
    let row = |(month, (count, shipped)): (&String, &Month)| {
        vec![month.clone(), count.to_string(), shipped.to_string()]
    };
    table(&["MONTH", "POINTS", "SHIPPED"], &months.iter().map(row).collect::<Vec<_>>())
}

fn whole(found: &Statistics) -> String {
    let full = found.vms.iter().fold(ByteCount::new(0), |sum, vm| sum.saturating_add(vm.full));
    let mut text = format!(
        "{} restore points of {} VMs: {} as full backups, {} unique ({}), {} stored ({})\n{} of packs, {} of it reached by \
         no restore point",
        found.points.len(),
        found.vms.len(),
        full,
        found.unique,
        factor(full, found.unique),
        found.stored,
        factor(found.unique, found.stored),
        found.packs,
        found.unreached
    );
    if found.unreadable > 0 || found.points.iter().any(|one| one.incomplete) {
        text.push_str(
            "\nINCOMPLETE: something could not be read, and is missing in these numbers; run `abd verify`",
        );
    }
    text
}

fn value(
    found: &Statistics,
    vms: &[&VmStatistics],
    points: &[(&StoredPoint, &PointStatistics)],
    months: &BTreeMap<String, Month>,
) -> Value {
    let vm = |one: &&VmStatistics| {
        json!({
            "pool": one.pool, "vm_uuid": one.vm, "vm": one.name, "points": one.points, "size": one.size,
            "full": one.full, "unique": one.unique, "stored": one.stored, "exclusive": one.exclusive,
            "dedup": ratio(one.full, one.unique), "compression": ratio(one.unique, one.stored),
        })
    };
    let point = |(stored, one): &(&StoredPoint, &PointStatistics)| {
        json!({
            "id": one.id, "created": stored.point.created, "vm_uuid": stored.point.vm.uuid, "size": one.size,
            "full": one.full, "exclusive": one.exclusive, "incomplete": one.incomplete,
        })
    };
    let month = |(month, (count, shipped)): (&String, &Month)| json!({"month": month, "points": count, "shipped": shipped});
    json!({
        "vms": vms.iter().map(vm).collect::<Vec<_>>(), "points": points.iter().map(point).collect::<Vec<_>>(),
        "months": months.iter().map(month).collect::<Vec<_>>(),
        "store": {
            "packs": found.packs, "unique": found.unique, "stored": found.stored, "unreached": found.unreached,
            "unreadable_packs": found.unreadable,
        },
    })
}
