//! The summary as text for a mail: at most 78 columns, the result first, then what is to be done, then the rest.

use super::{RunSummary, VmResult, VmSummary};
use crate::printable::printable;
use std::fmt::Write;

/// Columns of a line: what mail programs show without wrapping it themselves.
const WIDTH: usize = 78;
/// Columns of a VM's name in the table; a longer one is cut.
const NAME_WIDTH: usize = 20;
/// Characters of a restore point's id: enough to name it on the command line.
const POINT_WIDTH: usize = 12;

/// The whole summary.
pub fn text(summary: &RunSummary) -> String {
    let mut text = headline(summary);
    text.push('\n');
    meta(&mut text, summary);
    if let Some(error) = &summary.error {
        section(&mut text, "The run as a whole");
        item(&mut text, error, summary.remedy.as_deref());
    }
    let alarms: Vec<_> = summary.vms.iter().filter(|vm| !vm.alarms.is_empty()).collect();
    if !alarms.is_empty() {
        section(&mut text, "ALARM: changes that the pool did not list");
        for vm in alarms {
            let disks = vm.alarms.join(", ");
            paragraph(&mut text, 0, &format!("{}: {disks}", vm.vm));
        }
        paragraph(
            &mut text,
            2,
            "These disks were read as a whole, so the new restore points are right. Earlier ones that change \
             tracking made may lack data: `abd list` marks them. Find out what wrote past the tracking (a disk that \
             was reverted, a storage fault) before you rely on them.",
        );
    }
    bad_blocks(&mut text, summary);
    table(&mut text, summary);
    copies(&mut text, summary);
    bounds(&mut text, summary);
    failures(&mut text, summary, VmResult::Failed, "Failed");
    failures(&mut text, summary, VmResult::Skipped, "Not started");
    leftovers(&mut text, summary);
    warnings(&mut text, summary);
    text
}

/// The first line: the subject of a mail.
pub(super) fn headline(summary: &RunSummary) -> String {
    let counts = summary.counts;
    let missing = counts.selected - counts.done;
    let of = |count: usize| format!("{count} of {}", vms(counts.selected));
    let what = match summary.result {
        "alarm" if missing > 0 => {
            format!("ALARM for {}; {} not backed up", vms(counts.alarms), of(missing))
        }
        "alarm" => format!("ALARM for {}: earlier restore points are in doubt", vms(counts.alarms)),
        "nothing-done" if counts.selected == 0 => "NOTHING DONE: no VM was selected".into(),
        "nothing-done" => format!("NOTHING DONE: none of {} was backed up", vms(counts.selected)),
        "stopped" => format!("STOPPED: {} backed up", of(counts.done)),
        "bad-blocks" => format!("BAD BLOCKS in {}: parts of disks could not be read", vms(counts.bad_blocks)),
        "leftovers" => format!("{} backed up; something is left in the pool", vms(counts.done)),
        "failed" if missing == 0 => format!("FAILED, though {} backed up", of(counts.done)),
        "failed" => format!("FAILED: {} not backed up", of(missing)),
        _ => format!("{} backed up", vms(counts.done)),
    };
    let room = WIDTH.saturating_sub("abd : ".len() + what.chars().count());
    format!("abd {}: {what}", cut(&clean(&summary.name), room))
}

fn vms(count: usize) -> String {
    if count == 1 { "1 VM".into() } else { format!("{count} VMs") }
}

fn meta(text: &mut String, summary: &RunSummary) {
    let when = format!("{} ({})", span(&summary.started, &summary.ended), short_time(summary.elapsed_ms));
    let mut lines = vec![when];
    if !summary.pools.is_empty() {
        lines.push(format!("pool {}", summary.pools.join(", ")));
    }
    if !summary.store.is_empty() {
        lines.push(format!("store {}", summary.store));
    }
    lines.push(format!("read {}, stored {}", short_size(summary.read), short_size(summary.stored)));
    for line in lines {
        paragraph(text, 0, &line);
    }
}

fn section(text: &mut String, title: &str) {
    let _ = write!(text, "\n{title}\n{}\n", "-".repeat(title.chars().count()));
}

fn table(text: &mut String, summary: &RunSummary) {
    if summary.vms.is_empty() {
        return;
    }
    let longest = summary.vms.iter().map(|vm| clean(&vm.vm).chars().count()).max().unwrap_or(0);
    let width = longest.clamp(2, NAME_WIDTH);
    let mut row = |cells: [&str; 7]| {
        let [vm, result, mode, read, stored, time, point] = cells;
        let vm = cut(&clean(vm), width);
        let line = format!(
            "{vm:<width$} {result:<7} {mode:<8} {read:>8} {stored:>8} {time:>7} {point:<POINT_WIDTH$}"
        );
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    };
    row(["", "", "", "", "", "", ""]);
    row(["VM", "RESULT", "MODE", "READ", "STORED", "TIME", "POINT"]);
    for vm in &summary.vms {
        let result = match vm.result {
            VmResult::Done if !vm.alarms.is_empty() => "ALARM",
            VmResult::Done if vm.bad().next().is_some() => "BAD",
            VmResult::Done => "done",
            VmResult::Failed => "FAILED",
            VmResult::Skipped => "skipped",
        };
        if vm.result == VmResult::Done {
            let (read, stored) = (short_size(vm.read()), short_size(vm.stored()));
            let point: String = vm.point.iter().flat_map(|point| point.chars()).take(POINT_WIDTH).collect();
            row([&vm.vm, result, &modes(vm), &read, &stored, &short_time(vm.elapsed_ms), &point]);
        } else {
            row([&vm.vm, result, "", "", "", "", ""]);
        }
    }
}

/// Where restore points were copied to.
fn copies(text: &mut String, summary: &RunSummary) {
    if summary.copies.is_empty() {
        return;
    }
    section(text, "Copies");
    for copy in &summary.copies {
        let points = if copy.points == 1 {
            "1 restore point".into()
        } else {
            format!("{} restore points", copy.points)
        };
        let what = format!("{points}, {}, in {}", short_size(copy.bytes), short_time(copy.elapsed_ms));
        match &copy.error {
            None => paragraph(text, 0, &format!("{}: {what}", copy.to)),
            Some(error) => {
                paragraph(text, 0, &format!("{}: FAILED; {what}", copy.to));
                item(text, error, copy.remedy.as_deref());
            }
        }
    }
}

/// What the jobs were bound by: the VMs of each verdict.
fn bounds(text: &mut String, summary: &RunSummary) {
    let mut bounds: Vec<(&str, Vec<&str>)> = Vec::new();
    for vm in &summary.vms {
        let Some(path) = &vm.path else { continue };
        match bounds.iter_mut().find(|(verdict, _)| *verdict == path.verdict) {
            Some((_, names)) => names.push(&vm.vm),
            None => bounds.push((&path.verdict, vec![&vm.vm])),
        }
    }
    if !bounds.is_empty() {
        text.push('\n');
    }
    for (verdict, names) in bounds {
        paragraph(text, 0, &format!("{verdict}: {}", names.join(", ")));
    }
}

/// The modes of a VM's disks, each once.
fn modes(vm: &VmSummary) -> String {
    let mut modes: Vec<&str> = Vec::new();
    for disk in &vm.disks {
        if !modes.contains(&disk.mode.as_str()) {
            modes.push(&disk.mode);
        }
    }
    let joined = modes.join(",");
    if joined.chars().count() > 8 { "mixed".into() } else { joined }
}

fn failures(text: &mut String, summary: &RunSummary, result: VmResult, title: &str) {
    let those: Vec<_> = summary.vms.iter().filter(|vm| vm.result == result).collect();
    if those.is_empty() {
        return;
    }
    section(text, title);
    for vm in those {
        let tries = if vm.tries > 1 { format!(" (tried {} times)", vm.tries) } else { String::new() };
        paragraph(text, 0, &format!("{}{tries}", vm.vm));
        item(text, vm.error.as_deref().unwrap_or("no reason is known"), vm.remedy.as_deref());
    }
}

fn item(text: &mut String, what: &str, remedy: Option<&str>) {
    paragraph(text, 2, what);
    if let Some(remedy) = remedy {
        paragraph(text, 2, &format!("what to do: {remedy}"));
    }
}

fn bad_blocks(text: &mut String, summary: &RunSummary) {
    if summary.counts.bad_blocks == 0 {
        return;
    }
    section(text, "BAD BLOCKS: what could not be read");
    for vm in &summary.vms {
        for disk in vm.bad() {
            let places = if disk.bad_ranges == 1 { "place" } else { "places" };
            let what = format!("{} in {} {places}", short_size(disk.bad), disk.bad_ranges);
            paragraph(text, 0, &format!("{}: {what} of {} (VDI {})", vm.vm, disk.name, disk.vdi));
        }
    }
    paragraph(
        text,
        2,
        "The new restore points have zeros there; `abd show` lists the places. The next backup reads them again. Look \
         after the storage; what was there may be found in an earlier restore point.",
    );
}

fn leftovers(text: &mut String, summary: &RunSummary) {
    let those: Vec<_> = summary.vms.iter().filter(|vm| !vm.leftovers.is_empty()).collect();
    if those.is_empty() {
        return;
    }
    section(text, "Still in the pool");
    for vm in those {
        for leftover in &vm.leftovers {
            paragraph(text, 0, &format!("{}: {leftover}", vm.vm));
        }
    }
    paragraph(text, 2, "what to do: run `abd reconcile` when the pool answers; the next run does it too");
}

fn warnings(text: &mut String, summary: &RunSummary) {
    if summary.warnings.is_empty() && summary.vms.iter().all(|vm| vm.warnings.is_empty()) {
        return;
    }
    section(text, "Warnings");
    for warning in &summary.warnings {
        paragraph(text, 0, warning);
    }
    for vm in &summary.vms {
        for warning in &vm.warnings {
            paragraph(text, 0, &format!("{}: {warning}", vm.vm));
        }
    }
}

/// A paragraph: its lines after the first are indented by two more columns, and none is too long.
fn paragraph(text: &mut String, indent: usize, words: &str) {
    let mut flush = |line: &mut String, pad: usize| {
        let _ = writeln!(text, "{:pad$}{line}", "");
        line.clear();
    };
    let (mut line, mut pad) = (String::new(), indent);
    for word in clean(words).split_whitespace() {
        let mut rest = word;
        loop {
            let (used, room) = (line.chars().count(), WIDTH - pad);
            let gap = usize::from(used > 0);
            if used + gap + rest.chars().count() <= room {
                line.push_str(&" "[..gap]);
                line.push_str(rest);
                break;
            }
            if used == 0 {
                // A word that is longer than a line goes over several.
                let end = rest.char_indices().nth(room).map_or(rest.len(), |(at, _)| at);
                let piece;
                (piece, rest) = rest.split_at(end);
                line.push_str(piece);
            }
            flush(&mut line, pad);
            pad = indent + 2;
        }
    }
    if !line.is_empty() {
        flush(&mut line, pad);
    }
}

/// From when to when, to the minute, with the offset of the local clock: of RFC 3339 texts.
fn span(started: &str, ended: &str) -> String {
    let part = |text: &str, range: std::ops::Range<usize>| text.get(range).unwrap_or_default().to_owned();
    let (day, last_day) = (part(started, 0..10), part(ended, 0..10));
    let again = if day == last_day { String::new() } else { format!("{last_day} ") };
    let offset = started.get(19..).unwrap_or_default();
    format!("{day} {} to {again}{} {offset}", part(started, 11..16), part(ended, 11..16))
}

/// Text from outside as one line, its spaces evened out.
fn clean(text: &str) -> String {
    text.split_whitespace().map(printable).collect::<Vec<_>>().join(" ")
}

/// A text of at most so many characters; a longer one ends in a tilde.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}~")
}

/// A size in at most eight columns, rounded down.
fn short_size(bytes: u64) -> String {
    const PREFIXES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut place = 0;
    let mut unit = 1_u64;
    while bytes / unit >= 1024 && place + 1 < PREFIXES.len() {
        unit *= 1024;
        place += 1;
    }
    let (whole, part) = (bytes / unit, bytes % unit);
    if place == 0 || whole >= 100 {
        return format!("{whole} {}", PREFIXES[place]);
    }
    // Units are powers of two of at least 1 KiB, so ten times the rest does not overflow before 2^64.
    let tenth = u128::from(part) * 10 / u128::from(unit);
    format!("{whole}.{tenth} {}", PREFIXES[place])
}

/// A duration in at most seven columns, rounded down.
fn short_time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..=9 => format!("{seconds}.{} s", milliseconds % 1000 / 100),
        10..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=359_999 => format!("{} h {:02}", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
#[path = "text_tests.rs"]
mod tests;
