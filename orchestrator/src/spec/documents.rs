//! The room's README says what the code does: its keys, its example, its exit codes.

use super::{Key, keys, parse_text};
use crate::error::Kind;
use std::collections::BTreeSet;

const ROOM: &str = include_str!("../../README.md");
const TOP: &str = include_str!("../../../README.md");

fn row(key: &Key) -> String {
    // A bar would end the cell.
    let cell = |text: &str| text.replace('|', "\\|");
    let default = if key.default.is_empty() { String::new() } else { format!("`{}`", key.default) };
    format!("| `{}` | {default} | {} | {} |", key.key, cell(key.allowed), cell(key.about))
}

#[test]
fn every_key_has_its_row_and_no_row_is_of_an_unknown_one() {
    let wanted: Vec<String> = keys().iter().map(row).collect();
    let missing: Vec<&str> = wanted.iter().map(String::as_str).filter(|row| !ROOM.contains(row)).collect();
    assert!(missing.is_empty(), "README.md lacks these rows:\n{}", missing.join("\n"));
    let body = ROOM.split("### At the top").nth(1).and_then(|rest| rest.split("## How a run goes").next());
    let rows = body.expect("the tables").lines().filter(|line| line.starts_with("| `"));
    for row in rows {
        assert!(wanted.iter().any(|wanted| wanted == row), "no such key: {row}");
    }
}

#[test]
fn the_example_is_a_job_file() {
    let example =
        ROOM.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("an example");
    let spec = parse_text("example.toml", "nightly", example).expect("valid");
    assert_eq!((spec.select.names.len(), spec.overrides.len()), (2, 1));
}

#[test]
fn every_exit_code_is_documented_in_both_tables() {
    for document in [ROOM, TOP] {
        let rows: BTreeSet<u8> = document
            .lines()
            .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next()?.trim().parse().ok())
            .collect();
        let known: BTreeSet<u8> = Kind::ALL.iter().map(|kind| kind.exit_code()).chain([0]).collect();
        assert_eq!(rows, known);
    }
}
