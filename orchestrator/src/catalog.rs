//! The store as commands see it: opening it, listing and naming restore points, checking it.

use crate::error::{Error, Kind, Result};
use crate::report::{Event, Report, table};
use crate::store_key;
use ads::{Depth, ErrorKind, NewAccess, Pin, Place, PointId, Scope, Store, StoredPoint, VerifyReport};
use blocks::ByteCount;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Findings shown to people; `--json` shows all.
const SHOWN_FINDINGS: usize = 20;
/// Unreadable parts of one disk that are shown to people.
const SHOWN_RANGES: usize = 10;

/// Opens a store, a directory or `s3://BUCKET/PREFIX`; makes it first where nothing is there and `create` is set. The
/// second value says whether it was made. One that is encrypted is unlocked with what [`crate::store_key`] has.
///
/// # Errors
/// [`Kind::Store`] naming the place and what helps; [`Kind::Auth`] where an encrypted store stays locked.
pub fn open(path: &Path, create: bool) -> Result<(Arc<Store>, bool)> {
    let (mut store, made) = open_or_make(path, create)?;
    store_key::unlock(&mut store, true)?;
    if store.is_locked() {
        return Err(store_error(ads::Error::KeyNeeded { dir: store.dir().to_owned() }));
    }
    Ok((Arc::new(store), made))
}

/// Opens a store for what can be done without the key of an encrypted one: that stays locked where no key was named.
///
/// # Errors
/// As [`open`]; also where a key was named and is the wrong one.
pub fn open_locked(path: &Path) -> Result<Arc<Store>> {
    let (mut store, _) = open_or_make(path, false)?;
    store_key::unlock(&mut store, false)?;
    Ok(Arc::new(store))
}

/// Makes an encrypted store where nothing is.
///
/// # Errors
/// As [`open`]; [`Kind::Usage`] for a passphrase or a recipient that is no good.
pub fn make_encrypted(path: &Path, access: &[NewAccess]) -> Result<Store> {
    let place = Place::from_path(path).map_err(store_error)?;
    Store::init_encrypted_at(&place, access).map_err(|error| match error {
        ads::Error::KeyRefused { reason } => Error::new(Kind::Usage, reason),
        error => store_error(error),
    })
}

fn open_or_make(path: &Path, create: bool) -> Result<(Store, bool)> {
    let place = Place::from_path(path).map_err(store_error)?;
    match Store::open_at(&place) {
        Ok(store) => Ok((store, false)),
        Err(error) if error.kind() == ErrorKind::NotAStore && vacant(&place) => match create {
            true => Ok((Store::init_at(&place).map_err(store_error)?, true)),
            false => Err(Error::new(Kind::Store, format!("there is no store at {place}")).remedy(
                "name the store with --store; `abd store init` makes one there, and so does --init-store",
            )),
        },
        Err(error) => Err(store_error(error)),
    }
}

/// Whether nothing at all is where a store is looked for: then one may be made. Where that cannot be told, there is
/// something.
pub fn is_vacant(path: &Path) -> bool {
    Place::from_path(path).is_ok_and(|place| vacant(&place))
}

fn vacant(place: &Place) -> bool {
    place.backend().and_then(|backend| backend.is_vacant()).unwrap_or(false)
}

/// Gives a store's error its meaning for the exit code.
pub fn store_error(error: ads::Error) -> Error {
    if let ads::Error::LeaseLost { .. } = error {
        return Error::new(Kind::Failed, error.to_string()).remedy(
            "run the backup again; where jobs hang for so long, give `abd store gc` a longer --grace",
        );
    }
    let (kind, remedy) = match error.kind() {
        ErrorKind::Full => (Kind::StoreFull, Some("make room where the store is, and run again")),
        ErrorKind::Damaged | ErrorKind::Missing | ErrorKind::BadPack => {
            (Kind::Damaged, Some("run `abd verify --read-data` to see what is damaged"))
        }
        ErrorKind::NotFound => (Kind::NotFound, Some("see `abd list`")),
        ErrorKind::Ambiguous => (Kind::NotFound, Some("give more digits of the restore point's id")),
        ErrorKind::NotAStore => (Kind::Store, Some("name another place with --store")),
        ErrorKind::Unsupported => (Kind::Store, Some("use the version of abd that wrote it")),
        ErrorKind::Busy => (Kind::Store, Some("wait until the other process has ended")),
        ErrorKind::Io => {
            (Kind::Store, Some("check the directory's permissions, its file system and the mount"))
        }
        ErrorKind::Remote => (
            Kind::Store,
            Some(
                "check the address, the bucket and the credentials; orchestrator/README.md says where they are looked for",
            ),
        ),
        ErrorKind::Exists | ErrorKind::Refused => (Kind::Store, None),
        ErrorKind::Locked => (
            Kind::Auth,
            Some(
                "name its passphrase with --store-passphrase-file or ABD_STORE_PASSPHRASE, an identity of age with --store-identity, or its recovery kit with --recovery-kit",
            ),
        ),
        ErrorKind::WrongKey => (
            Kind::Auth,
            Some("`abd store key list` says what opens it; a recovery kit always does, with --recovery-kit"),
        ),
    };
    let wrapped = Error::new(kind, error.to_string());
    let wrapped = match std::error::Error::source(&error).map(ToString::to_string) {
        Some(source) if !wrapped.to_string().contains(&source) => {
            Error::new(kind, format!("{error}: {source}"))
        }
        _ => wrapped,
    };
    match remedy {
        Some(remedy) => wrapped.remedy(remedy),
        None => wrapped,
    }
}

/// Prints the restore points, of one VM where it is named by name or uuid.
///
/// # Errors
/// [`Kind::Damaged`] after the list where a restore point cannot be read.
pub fn list(store: &Store, vm: Option<&str>, report: &Report) -> Result<()> {
    let all = store.points().map_err(store_error)?;
    let points: Vec<&StoredPoint> = all
        .points
        .iter()
        .filter(|stored| vm.is_none_or(|vm| stored.point.vm.name == vm || stored.point.vm.uuid == vm))
        .collect();
    let known = Known { doubts: Doubts::of(&all.points), pins: store.pins().map_err(store_error)? };
    let value = json!({
        "points": points.iter().map(|stored| summary(stored, &known)).collect::<Vec<_>>(),
        "damaged": all.damaged.iter().map(|d| json!({"path": d.path, "reason": d.reason.to_string()})).collect::<Vec<_>>(),
    });
    report.answer(&value, || match points.as_slice() {
        [] => "no restore points".into(),
        points => {
            let rows: Vec<_> = points.iter().map(|stored| row(stored, &known)).collect();
            let mut text = table(&["POINT", "TIME", "VM", "DISKS", "SIZE", "MODE", "READ", "STORED", ""], &rows);
            if points.iter().any(|stored| known.doubts.concern(stored)) {
                text.push_str(
                    "\nSUSPECT: an audit caught change tracking missing writes; what was not listed is missing in \
                     these points. The next point of the same VM is whole.",
                );
            }
            if points.iter().any(|stored| has_bad(stored)) {
                text.push_str(
                    "\nBAD: parts of a disk could not be read, and are zeros in these points. `abd show` says where; an \
                     earlier or later point may have them.",
                );
            }
            text
        }
    });
    match all.damaged.first() {
        None => Ok(()),
        Some(damaged) => Err(Error::new(
            Kind::Damaged,
            format!(
                "{} restore points cannot be read, the first is {}: {}",
                all.damaged.len(),
                damaged.path.display(),
                damaged.reason
            ),
        )
        .remedy("run `abd verify`; the others are not touched by it")),
    }
}

/// Restore points that a later audit puts in doubt.
pub struct Doubts(BTreeSet<PointId>);

impl Doubts {
    /// Gathers what the points say about earlier ones.
    pub fn of(points: &[StoredPoint]) -> Self {
        let disks = points.iter().flat_map(|stored| &stored.point.disks);
        Self(disks.flat_map(|disk| disk.suspect.iter().copied()).collect())
    }

    /// Whether a point is in doubt.
    pub fn concern(&self, stored: &StoredPoint) -> bool {
        self.0.contains(&stored.id)
    }
}

/// What stands beside the points.
struct Known {
    doubts: Doubts,
    pins: BTreeMap<PointId, Pin>,
}

fn summary(stored: &StoredPoint, known: &Known) -> serde_json::Value {
    json!({
        "suspect": known.doubts.concern(stored), "pin": known.pins.get(&stored.id), "bad": sum_of_bad(stored), "quiesced": stored.point.quiesced,
        "checkpoint": stored.point.checkpoint,
        "id": stored.id, "created": stored.point.created, "vm": stored.point.vm.name,
        "vm_uuid": stored.point.vm.uuid, "pool": stored.point.pool.name, "job": stored.point.job,
        "base": stored.point.base, "disks": stored.point.disks,
    })
}

fn row(stored: &StoredPoint, known: &Known) -> Vec<String> {
    let disks = &stored.point.disks;
    let sum = |of: &dyn Fn(&ads::PointDisk) -> ByteCount| {
        disks.iter().fold(ByteCount::new(0), |sum, disk| sum.saturating_add(of(disk))).to_string()
    };
    let mut modes: Vec<_> = disks.iter().map(|disk| crate::tracking::mode_name(disk.mode)).collect();
    modes.dedup();
    vec![
        stored.id.short(),
        short_time(&stored.point.created),
        stored.point.vm.name.clone(),
        disks.len().to_string(),
        sum(&|disk| disk.tree.size),
        modes.join("+"),
        sum(&|disk| ByteCount::new(disk.counts.moved.get().saturating_sub(disk.counts.audited.get()))),
        sum(&|disk| disk.counts.sealed),
        marks(stored, known),
    ]
}

/// What is wrong with a point, in capitals; and whether it is pinned.
fn marks(stored: &StoredPoint, known: &Known) -> String {
    let bad = sum_of_bad(stored);
    let suspect = known.doubts.concern(stored).then(|| "SUSPECT".to_owned());
    let bad = (bad.get() > 0).then(|| format!("BAD {bad}"));
    let pinned = known.pins.contains_key(&stored.id).then(|| "pinned".to_owned());
    suspect.into_iter().chain(bad).chain(pinned).collect::<Vec<_>>().join(" ")
}

fn has_bad(stored: &StoredPoint) -> bool {
    stored.point.disks.iter().any(|disk| !disk.bad.is_empty())
}

fn sum_of_bad(stored: &StoredPoint) -> ByteCount {
    let disks = stored.point.disks.iter();
    disks.fold(ByteCount::new(0), |sum, disk| sum.saturating_add(disk.bad.bytes))
}

/// What to know before any of these disks of a point is used: where zeros stand in place of what could not be read.
pub fn bad_warnings(stored: &StoredPoint, disks: &[usize]) -> Vec<String> {
    let named = disks.iter().filter_map(|at| stored.point.disks.get(*at));
    let bad = named.filter(|disk| !disk.bad.is_empty());
    bad.map(|disk| {
        format!(
            "BAD BLOCKS: {} of disk '{}' could not be read when restore point {} was made, and are zeros in it; see \
             `abd show {}`",
            disk.bad,
            disk.name,
            stored.id.short(),
            stored.id.short()
        )
    })
    .collect()
}

fn bad_text(bad: &wire::BadRanges) -> String {
    let mut text = format!("\n  COULD NOT BE READ, zeros instead: {bad}");
    for range in bad.ranges.iter().take(SHOWN_RANGES) {
        text.push_str(&format!("\n    {} at byte {}", range.size, range.offset.get()));
    }
    if bad.count > SHOWN_RANGES as u64 {
        text.push_str(&format!("\n    and {} more; --json lists them", bad.count - SHOWN_RANGES as u64));
    }
    text
}

fn short_time(created: &str) -> String {
    created.get(..16).unwrap_or(created).replace('T', " ")
}

/// Prints one restore point.
pub fn show(stored: &StoredPoint, report: &Report) {
    report.answer(&json!({"id": stored.id, "point": stored.point}), || {
        let point = &stored.point;
        let mut text = format!(
            "restore point  {}\ncreated        {}\nVM             {} ({})\npool           {} ({})\njob            {}\nbase           {}\n\n",
            stored.id,
            point.created,
            point.vm.name,
            point.vm.uuid,
            point.pool.name,
            point.pool.uuid,
            point.job,
            point.base.map_or_else(|| "none".into(), |base| base.short()),
        );
        let rows: Vec<_> = point
            .disks
            .iter()
            .enumerate()
            .map(|(at, disk)| {
                vec![
                    at.to_string(),
                    disk.userdevice.to_string(),
                    disk.name.clone(),
                    disk.tree.size.to_string(),
                    crate::tracking::mode_name(disk.mode).into(),
                    disk.counts.moved.to_string(),
                    disk.counts.sealed.to_string(),
                ]
            })
            .collect();
        text.push_str(&table(&["DISK", "POSITION", "NAME", "SIZE", "MODE", "READ", "STORED"], &rows));
        for (at, disk) in point.disks.iter().enumerate() {
            text.push_str(&format!("\n\ndisk {at}: VDI {}\n  read because: {} ({})\n  tree id: {}", disk.vdi, disk.reason, disk.cause, disk.tree_id));
            if disk.counts.audited.get() > 0 {
                text.push_str(&format!("\n  audit: {} compared, {} differed", disk.counts.audited, disk.counts.mismatched));
            }
            if !disk.suspect.is_empty() {
                let points: Vec<_> = disk.suspect.iter().map(PointId::short).collect();
                text.push_str(&format!("\n  in doubt since: {}", points.join(", ")));
            }
            if !disk.bad.is_empty() {
                text.push_str(&bad_text(&disk.bad));
            }
        }
        text
    });
}

/// A part of a store's packs that is read, and all others not.
pub struct Part<'a> {
    /// These.
    pub packs: BTreeSet<seal::PackId>,
    /// Told of each that was read and in which nothing is wrong, from several threads.
    pub done: &'a (dyn Fn(seal::PackId) + Sync),
    /// How they were chosen, for people.
    pub about: String,
    /// The same for programs.
    pub value: serde_json::Value,
}

/// Checks restore points, all or the named ones, and prints what was found.
///
/// # Errors
/// [`Kind::Damaged`] where anything is wrong.
pub fn verify(
    store: &Store,
    points: &[String],
    read_data: bool,
    part: Option<&Part<'_>>,
    report: &Arc<Report>,
) -> Result<()> {
    let scope = if points.is_empty() {
        Scope::All
    } else {
        let found = points.iter().map(|id| store.find_point(id).map(|stored| stored.id));
        Scope::Points(found.collect::<std::result::Result<_, _>>().map_err(store_error)?)
    };
    let depth = if read_data { Depth::EveryByte } else { Depth::Structure };
    let progress = |progress: ads::VerifyProgress| {
        report.event(&Event::Bytes {
            what: "verify".into(),
            done: progress.bytes_done.get(),
            total: progress.bytes.get(),
        });
    };
    let chosen = |id| part.is_none_or(|part| part.packs.contains(&id));
    let done = |id| part.iter().for_each(|part| (part.done)(id));
    let found = store.verify_part(&scope, depth, &chosen, &done, &progress).map_err(store_error)?;
    report.event(&Event::Bytes { what: "verify".into(), done: 1, total: 1 });
    let mut value = verify_json(&found);
    value["part"] = part.map_or(serde_json::Value::Null, |part| part.value.clone());
    report.answer(&value, || {
        let about = part.map_or(String::new(), |part| format!("\n{}", part.about));
        verify_text(&found, read_data) + &about
    });
    if found.is_clean() {
        return Ok(());
    }
    let count = found.findings.len();
    Err(Error::new(Kind::Damaged, format!("{count} things in the store are damaged")).remedy(
        "the restore points that are not named are whole. `abd store repair --dry-run` says what can be mended, \
             `abd store repair` does it; what is lost then is shipped again by the next backups",
    ))
}

fn verify_json(found: &VerifyReport) -> serde_json::Value {
    json!({
        "clean": found.is_clean(), "points": found.points, "disks": found.disks, "packs": found.packs,
        "blocks": found.blocks, "unopened": found.unopened, "nodes": found.nodes, "bytes_read": found.bytes_read,
        "known_bad": found.known_bad.iter().map(|a| json!({
            "point": a.point, "vm": a.vm, "vdi": a.vdi, "offset": a.offset, "size": a.size,
        })).collect::<Vec<_>>(),
        "findings": found.findings.iter().map(|finding| json!({
            "message": finding.to_string(),
            "affects": finding.affects.iter().map(|a| json!({
                "point": a.point, "vm": a.vm, "vdi": a.vdi, "offset": a.offset, "size": a.size,
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
    })
}

fn verify_text(found: &VerifyReport, read_data: bool) -> String {
    let mut text = format!(
        "{} restore points, {} disks, {} packs, {} blocks, {} nodes checked",
        found.points, found.disks, found.packs, found.blocks, found.nodes
    );
    text.push_str(if read_data {
        "; every byte was read"
    } else {
        "; structure only, --read-data reads every byte"
    });
    if found.unopened > 0 {
        text.push_str(&format!(
            "\nNOT OPENED: {} blocks, for the store is encrypted and no key was named; their packs are what their names say",
            found.unopened
        ));
    }
    for finding in found.findings.iter().take(SHOWN_FINDINGS) {
        text.push_str(&format!("\ndamaged: {finding}"));
        for affected in &finding.affects {
            text.push_str(&format!(
                "\n         {} at {} of restore point {} ({}, VDI {})",
                affected.size,
                affected.offset,
                affected.point.short(),
                affected.vm,
                affected.vdi
            ));
        }
    }
    if found.is_clean() {
        text.push_str("\nnothing is damaged");
    }
    if let Some(first) = found.known_bad.first() {
        let count = found.known_bad.len();
        text.push_str(&format!(
            "\nfor your information: zeros stand in {count} places that could not be read when the points were made, the \
             first is {first}; `abd show` lists them"
        ));
    }
    text
}
