//! Copies of the store in other places: for `abd store copy`, and after runs whose job file says `copy_to`.

use crate::catalog::{self, store_error};
use crate::error::{Error, Kind, Result};
use crate::report::{Event, Report};
use crate::summary::CopySummary;
use ads::{CopyOptions, CopyProgress, CopyReport, ErrorKind, Place, Store};
use blocks::ByteCount;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Programs and people are told no more often how far it is.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// A copy that was made, or was begun.
#[derive(Debug)]
pub struct Copied {
    /// Where to.
    pub place: String,
    /// Whether nothing was there before.
    pub made: bool,
    /// Whether it was only planned.
    pub dry_run: bool,
    /// What was copied.
    pub report: CopyReport,
}

/// Copies restore points to another place of the store, which is made where nothing is. What went wrong after it began
/// stands in the outcome, see [`Copied::verdict`]. Ends soon after `stop` turns true.
///
/// # Errors
/// Why it could not begin.
pub fn copy(
    from: &Arc<Store>,
    to: &Path,
    options: &CopyOptions,
    dry_run: bool,
    report: &Report,
    stop: &dyn Fn() -> bool,
) -> Result<Copied> {
    let place = Place::from_path(to).map_err(store_error)?;
    let told = Told::new(report);
    let opened = match Store::open_at(&place) {
        Ok(store) => Some(store),
        Err(error) if error.kind() == ErrorKind::NotAStore && catalog::is_vacant(to) => None,
        Err(error) if error.kind() == ErrorKind::NotAStore => {
            return Err(Error::new(Kind::Store, format!("{place} holds something else than a store"))
                .remedy("name a place where nothing is; the copy makes it"));
        }
        Err(error) => return Err(store_error(error)),
    };
    let progress = |at: &CopyProgress<'_>| {
        told.progress(at);
        if stop() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let made = opened.is_none() && !dry_run;
    let found = match (opened, dry_run) {
        (opened, true) => from.plan_copy(opened.as_ref(), options, &progress),
        (opened, false) => {
            let there = match opened {
                Some(there) => there,
                None => from.init_copy_at(&place).map_err(copy_error)?,
            };
            from.copy_to(&Arc::new(there), options, &progress)
        }
    };
    told.end();
    Ok(Copied { place: place.to_string(), made, dry_run, report: found.map_err(copy_error)? })
}

/// Copies the points of these VMs, by uuid, from the store at `from` to each of these places: what a run does at its end. Each
/// copy comes with what is wrong with it.
///
/// # Errors
/// Why none could begin.
pub fn copy_vms(
    from: &Path,
    vms: &BTreeSet<String>,
    to: &[PathBuf],
    limit: Option<ByteCount>,
    report: &Report,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<(CopySummary, Option<Error>)>> {
    let (store, _) = catalog::open(from, false)?;
    let points = store.points().map_err(store_error)?.points;
    let with_points: BTreeSet<String> = points.into_iter().map(|stored| stored.point.vm.uuid).collect();
    let options = CopyOptions {
        vms: vms.intersection(&with_points).cloned().collect(),
        limit,
        ..CopyOptions::default()
    };
    // Without any name all VMs would be meant.
    if options.vms.is_empty() {
        return Ok(Vec::new());
    }
    let each = |place: &PathBuf| {
        let begun = Instant::now();
        let shown =
            Place::from_path(place).map_or_else(|_| place.display().to_string(), |place| place.to_string());
        let mut summary = CopySummary { to: shown, ..CopySummary::default() };
        let outcome = copy(&store, place, &options, false, report, stop).and_then(|copied| {
            summary.points = copied.report.copied.len();
            summary.omitted = copied.report.omitted.len();
            summary.bytes = copied.report.bytes.get();
            copied.verdict()
        });
        summary.elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let error = outcome.err().map(|error| at_place(error, &summary.to));
        summary.error = error.as_ref().map(Error::chain);
        summary.remedy = error.as_ref().and_then(Error::remedy_text).map(str::to_owned);
        (summary, error)
    };
    Ok(to.iter().map(each).collect())
}

/// Of several places, which one.
fn at_place(error: Error, place: &str) -> Error {
    let text = error.chain();
    let named = if text.contains(place) { text } else { format!("copy to {place}: {text}") };
    let wrapped = Error::new(error.kind(), named);
    match error.remedy_text() {
        Some(remedy) => wrapped.remedy(remedy),
        None => wrapped,
    }
}

fn copy_error(error: ads::Error) -> Error {
    match error {
        ads::Error::AnotherStore { .. } => store_error(error).remedy(
            "name a place where nothing is, and the copy makes it: a copy is the same store in another place, and one \
             that `abd store init` made is a store of its own",
        ),
        ads::Error::Interrupted => Error::new(Kind::Cancelled, error.to_string()),
        ads::Error::SamePlace { .. } => store_error(error).remedy("name another place"),
        error => store_error(error),
    }
}

impl Copied {
    /// What programs read.
    pub fn value(&self) -> Value {
        let found = &self.report;
        json!({
            "to": self.place, "made": self.made, "dry_run": self.dry_run,
            "copied": found.copied.iter().map(|point| json!({
                "id": point.id, "vm": point.vm, "created": point.created, "bytes": point.bytes,
            })).collect::<Vec<_>>(),
            "omitted": found.omitted.iter().map(|point| json!({
                "path": point.place, "vm": point.vm, "reason": point.reason,
            })).collect::<Vec<_>>(),
            "present": found.present, "older": found.older, "pins": found.pins, "packs": found.packs,
            "bytes": found.bytes, "stopped": found.stopped.as_ref().map(ToString::to_string),
        })
    }

    /// What people read: a line for each thing that there is to say.
    pub fn text(&self) -> String {
        let found = &self.report;
        let mut lines = Vec::new();
        if self.made {
            lines.push(format!("made a place of the store at {}", self.place));
        }
        let count = found.copied.len();
        if self.dry_run {
            lines.extend(
                found
                    .copied
                    .iter()
                    .map(|p| format!("{}  {}  {}  {}", p.id.short(), p.created, p.vm, p.bytes)),
            );
            let bytes = found.copied.iter().fold(0u64, |sum, p| sum.saturating_add(p.bytes.get()));
            let bytes = ByteCount::new(bytes);
            lines.push(format!("{count} restore points, about {bytes}, would be copied to {}", self.place));
        } else {
            lines.push(format!("{count} restore points copied to {}, {}", self.place, found.bytes));
        }
        if found.present > 0 {
            lines.push(format!("{} are there already", found.present));
        }
        if found.older > 0 {
            let older = found.older;
            lines.push(format!("{older} are older than what their VMs have there; --all copies them too"));
        }
        if found.pins > 0 {
            lines.push(format!("{} pins copied", found.pins));
        }
        for point in &found.omitted {
            lines.push(format!("LEFT OUT: {} {}: {}", point.vm, point.place.display(), point.reason));
        }
        lines.join("\n")
    }

    /// What is wrong, if anything is.
    ///
    /// # Errors
    /// Why it stopped; else [`Kind::Damaged`] where points were left out.
    pub fn verdict(self) -> Result<()> {
        let count = self.report.omitted.len();
        if let Some(error) = self.report.stopped {
            let copied = self.report.copied.len();
            let error = copy_error(error);
            let text =
                format!("the copy to {} ended early, after {copied} restore points: {error}", self.place);
            let wrapped = Error::new(error.kind(), text);
            return Err(match error.remedy_text() {
                Some(advice) => wrapped.remedy(format!("{advice}; it goes on where it was")),
                None => wrapped.remedy("run it again: it goes on where it was"),
            });
        }
        match count {
            0 => Ok(()),
            _ => Err(Error::new(
                Kind::Damaged,
                format!("{count} restore points are damaged here and were not copied to {}", self.place),
            )
            .remedy("run `abd verify --read-data` to see what is damaged")),
        }
    }
}

/// Tells how far it is, and not too often.
struct Told<'a> {
    report: &'a Report,
    state: Mutex<State>,
}

struct State {
    next: Instant,
    /// The point that was told of last, and its size.
    last: Option<(String, u64)>,
}

impl<'a> Told<'a> {
    fn new(report: &'a Report) -> Self {
        Self { report, state: Mutex::new(State { next: Instant::now(), last: None }) }
    }

    fn progress(&self, at: &CopyProgress<'_>) {
        let mut state = self.state.lock().expect("no panic while it is locked");
        let what = format!("{} {}", at.point.point.vm.name, at.point.id.short());
        if state.last.as_ref().is_some_and(|(last, _)| *last != what) {
            self.close(&mut state);
        }
        if state.next > Instant::now() {
            return;
        }
        state.next = Instant::now() + TOLD_EVERY;
        self.report.event(&Event::Pieces { what: "restore points".into(), done: at.done, total: at.count });
        let total = at.planned.get();
        if total > 0 {
            // Full only when the point is there.
            let done = at.moved.get().min(total - 1);
            self.report.event(&Event::Bytes { what: what.clone(), done, total });
            state.last = Some((what, total));
        }
    }

    fn close(&self, state: &mut State) {
        if let Some((what, total)) = state.last.take() {
            self.report.event(&Event::Bytes { what, done: total, total });
        }
    }

    /// Ends what is shown.
    fn end(&self) {
        self.close(&mut self.state.lock().expect("no panic while it is locked"));
        self.report.event(&Event::Pieces { what: "restore points".into(), done: 1, total: 1 });
    }
}
