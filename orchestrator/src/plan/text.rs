//! A plan as text for people: what would be read of each disk, then the calls by steps.

use super::steps::{REMOVE, START};
use super::{DiskPlan, Expected, Plan, Step, Verdict};
use crate::preflight::{WIDTH, wrap};
use crate::printable::printable;
use blocks::ByteCount;

/// Widest call that is aligned: the longest of them.
const CALL_WIDTH: usize = 26;

/// Plans as text.
pub fn text(plans: &[Plan]) -> String {
    let mut lines: Vec<String> = Vec::new();
    for plan in plans {
        if !lines.is_empty() {
            lines.push(String::new());
        }
        lines.extend(one(plan));
    }
    lines.join("\n")
}

fn one(plan: &Plan) -> Vec<String> {
    let mut lines =
        vec![format!("{} ({}) in pool {}", printable(&plan.vm), plan.uuid, printable(&plan.pool))];
    let head = match plan.verdict {
        Verdict::Go => None,
        Verdict::Wait => Some("the job would wait first, as configured, because"),
        Verdict::Skip => Some("the job would be left out this time, as configured, because"),
        Verdict::Refuse => Some("the job would be refused before anything is touched, because"),
    };
    lines.extend(head.map(|head| format!("  {head}")));
    for finding in &plan.findings {
        let mark = if plan.verdict == Verdict::Go { "warning: " } else { "" };
        indented(&mut lines, 4, 4, &format!("{mark}{}", finding.message));
        if let Some(remedy) = &finding.remedy {
            indented(&mut lines, 4, 7, &format!("-> {remedy}"));
        }
    }
    for note in &plan.notes {
        indented(&mut lines, 2, 8, &format!("note: {note}"));
    }
    if plan.steps.is_empty() {
        return lines;
    }
    lines.push(String::new());
    for disk in &plan.disks {
        disk_lines(&mut lines, disk);
    }
    lines.extend(sum(&plan.disks));
    lines.push(String::new());
    calls(&mut lines, &plan.steps, &plan.hosts);
    lines.push(String::new());
    let count = plan.steps.iter().filter(|step| step.call != "VDI.list_changed_blocks").count();
    lines.push(format!(
        "  {count} calls that change something, {} of them for tasks; nothing was changed now",
        plan.steps.iter().filter(|step| step.call.starts_with("task.")).count()
    ));
    lines
}

/// Wraps text: its first line `first` columns in, the others `rest`.
fn indented(lines: &mut Vec<String>, first: usize, rest: usize, text: &str) {
    for (at, line) in wrap(text, WIDTH - rest).into_iter().enumerate() {
        let indent = if at == 0 { first } else { rest };
        lines.push(format!("{:indent$}{line}", ""));
    }
}

fn amount(expected: &Expected) -> String {
    match expected.bytes {
        Some(bytes) if bytes == expected.at_most => bytes.to_string(),
        Some(bytes) => format!("about {bytes}"),
        None => format!("at most {}", expected.at_most),
    }
}

fn disk_lines(lines: &mut Vec<String>, disk: &DiskPlan) {
    lines.push(format!("  disk '{}', {}: {}", printable(&disk.name), disk.size, disk.mode));
    indented(lines, 6, 15, &format!("because  {} ({})", disk.reason, disk.cause));
    let audit = match disk.audit.get() {
        0 => String::new(),
        _ => format!("; {} more for the audit", disk.audit),
    };
    indented(lines, 6, 15, &format!("reads    {} ({}){audit}", amount(&disk.reads), disk.reads.basis));
    indented(lines, 6, 15, &format!("ships    {} ({})", amount(&disk.ships), disk.ships.basis));
}

/// All disks together, where there are several.
fn sum(disks: &[DiskPlan]) -> Option<String> {
    if disks.len() < 2 {
        return None;
    }
    let total = |of: &dyn Fn(&DiskPlan) -> &Expected| {
        let known = disks.iter().all(|disk| of(disk).bytes.is_some());
        let all = disks.iter().map(|disk| of(disk).bytes.unwrap_or(of(disk).at_most));
        let sum = all.fold(ByteCount::new(0), ByteCount::saturating_add);
        if known { format!("about {sum}") } else { format!("at most {sum}") }
    };
    Some(format!(
        "  all {} disks: reads {}, ships {}",
        disks.len(),
        total(&|disk| &disk.reads),
        total(&|disk| &disk.ships)
    ))
}

/// The calls: neighbours that differ only in their detail share a line, and the bookkeeping of tasks is a star.
fn calls(lines: &mut Vec<String>, steps: &[Step], hosts: &[String]) {
    let shown: Vec<&Step> = steps.iter().filter(|step| !step.call.starts_with("task.")).collect();
    let (mut at, mut title, mut delegate) = (0, "", 0);
    while let Some(step) = shown.get(at) {
        if step.step != title {
            title = step.step;
            delegate += usize::from(title == START);
            let is_one_of = hosts.len() > 1 && [START, REMOVE].contains(&title);
            let which = if is_one_of { format!(" {delegate} of {}", hosts.len()) } else { String::new() };
            lines.push(format!("  {title}{which}"));
        }
        let alike = shown[at..]
            .iter()
            .take_while(|next| next.step == step.step && next.call == step.call && next.object == step.object)
            .count();
        let details: Vec<_> = shown[at..at + alike].iter().map(|step| step.detail.as_str()).collect();
        let details = details.into_iter().filter(|detail| !detail.is_empty()).collect::<Vec<_>>().join(", ");
        let name = match step.call.strip_prefix("Async.") {
            Some(call) => format!("{call} *"),
            None => step.call.clone(),
        };
        let about =
            if details.is_empty() { step.object.clone() } else { format!("{}: {details}", step.object) };
        let indent = 4 + CALL_WIDTH + 2;
        for (line, text) in wrap(&about, WIDTH - indent).into_iter().enumerate() {
            let name = if line == 0 { name.as_str() } else { "" };
            lines.push(format!("    {name:<CALL_WIDTH$}  {text}"));
        }
        at += alike;
    }
    lines.push("  * runs as a task, which is removed when it ends (task.destroy)".into());
}
