//! Reading job files: TOML whose every key is known, and whose every error names the file, the line, the key and what
//! is allowed there.

use crate::error::{Error, Kind, Result};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A key that a section may have.
pub(super) struct Setting<T> {
    /// The key.
    pub key: &'static str,
    /// What it is for, in a few words.
    pub about: &'static str,
    /// What its value may be.
    pub allowed: &'static str,
    /// Its value where it is absent, as it would be written; empty where it has none.
    pub default: &'static str,
    /// Checks a value and keeps it. The error says what is wrong with the value, not what is allowed.
    pub set: fn(&mut T, &Raw) -> Result<(), String>,
}

/// A value as it stands in the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Raw {
    Bool(bool),
    Integer(i64),
    /// A number with a point, as it is written.
    Decimal(String),
    Text(String),
    List(Vec<Raw>),
    Table(Table),
    /// Something that no key takes, by its name.
    Other(&'static str),
}

/// A section: its keys in the order of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Table(pub Vec<Entry>);

/// A key with its value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub key: String,
    /// Line of the key, from 1.
    pub line: usize,
    pub value: Raw,
}

/// What errors name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// Path of the file.
    pub file: &'a str,
    /// The section, empty for the top of the file.
    pub section: &'a str,
}

impl Place<'_> {
    /// An error at a line of the file.
    pub(super) fn error(self, line: usize, message: &str) -> Error {
        Error::new(Kind::Usage, format!("{} line {line}: {message}", self.file))
    }

    /// An error about the value of a key.
    pub(super) fn value_error(self, entry: &Entry, wrong: &str, allowed: &str) -> Error {
        let key = self.key(&entry.key);
        self.error(entry.line, &format!("{key}: {wrong}")).remedy(format!("allowed for {key}: {allowed}"))
    }

    fn key(self, key: &str) -> String {
        if self.section.is_empty() { key.to_owned() } else { format!("{}.{key}", self.section) }
    }

    /// The error about a key that the section does not have. `elsewhere` are other sections with their keys.
    pub(super) fn unknown<'k>(
        self,
        entry: &Entry,
        known: impl Iterator<Item = &'k str>,
        elsewhere: &[(&str, Vec<&str>)],
    ) -> Error {
        let known: Vec<&str> = known.collect();
        let error = self.error(entry.line, &format!("'{}' is not a key", self.key(&entry.key)));
        let wanted = entry.key.replace('-', "_").to_ascii_lowercase();
        if let Some((section, _)) = elsewhere
            .iter()
            .find(|(section, keys)| *section != self.section && keys.contains(&wanted.as_str()))
        {
            let place =
                if section.is_empty() { "the top of the file".into() } else { format!("[{section}]") };
            return error.remedy(format!("'{wanted}' belongs into {place}"));
        }
        match nearest(&wanted, &known) {
            Some(near) => error.remedy(format!("did you mean '{near}'?")),
            None => error.remedy(format!("known here: {}", known.join(", "))),
        }
    }
}

/// The known key that is most like another one, where one is like enough to be meant.
fn nearest<'k>(wanted: &str, known: &[&'k str]) -> Option<&'k str> {
    /// `retry` and `retries` are as like as this; keys that only share a letter or two are less.
    const LIKE_ENOUGH: f64 = 0.85;
    let likeness = known.iter().map(|key| (strsim::jaro_winkler(wanted, key), *key));
    likeness.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(like, _)| *like >= LIKE_ENOUGH).map(|(_, near)| near)
}

/// Reads a whole file.
///
/// # Errors
/// [`Kind::Usage`] with the line that is no TOML.
pub(super) fn parse(file: &str, text: &str) -> Result<Table> {
    let lines = Lines::new(text);
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| lines.of(&span));
        Place { file, section: "" }.error(line, &format!("not valid TOML: {}", error.message()))
    })?;
    Ok(table_of(table.get_ref(), &lines))
}

/// Reads a section into `target`. Settings are taken in the order of `settings`, not of the file: one may lean on another.
///
/// # Errors
/// [`Kind::Usage`] for the first key that is unknown or whose value is wrong.
pub(super) fn read<T>(
    place: Place<'_>,
    table: &Table,
    settings: &[Setting<T>],
    elsewhere: &[(&str, Vec<&str>)],
    target: &mut T,
) -> Result<()> {
    for entry in &table.0 {
        if !settings.iter().any(|setting| setting.key == entry.key) {
            return Err(place.unknown(entry, settings.iter().map(|setting| setting.key), elsewhere));
        }
    }
    for setting in settings {
        if let Some(entry) = table.0.iter().find(|entry| entry.key == setting.key) {
            (setting.set)(target, &entry.value)
                .map_err(|wrong| place.value_error(entry, &wrong, setting.allowed))?;
        }
    }
    Ok(())
}

fn table_of(table: &DeTable<'_>, lines: &Lines) -> Table {
    let mut entries: Vec<Entry> = table
        .iter()
        .map(|(key, value)| Entry {
            key: key.get_ref().to_string(),
            line: lines.of(&key.span()),
            value: raw(value, lines),
        })
        .collect();
    entries.sort_by_key(|entry| entry.line);
    Table(entries)
}

fn raw(value: &Spanned<DeValue<'_>>, lines: &Lines) -> Raw {
    match value.get_ref() {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a number that is too large"), Raw::Integer),
        DeValue::Float(number) => Raw::Decimal(number.as_str().to_owned()),
        DeValue::Boolean(value) => Raw::Bool(*value),
        DeValue::Datetime(_) => Raw::Other("a date or time"),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item, lines)).collect()),
        DeValue::Table(table) => Raw::Table(table_of(table, lines)),
    }
}

/// Where lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1).collect())
    }

    /// The line of the first byte, from 1.
    fn of(&self, span: &Range<usize>) -> usize {
        self.0.partition_point(|begin| *begin <= span.start) + 1
    }
}

impl Raw {
    /// What it is, for a person.
    fn kind(&self) -> String {
        match self {
            Raw::Bool(value) => format!("'{value}'"),
            Raw::Integer(number) => format!("the number {number}"),
            Raw::Decimal(number) => format!("the number {number}"),
            Raw::Text(text) => format!("the text '{text}'"),
            Raw::List(_) => "a list".into(),
            Raw::Table(_) => "a section".into(),
            Raw::Other(what) => (*what).into(),
        }
    }

    fn no(&self, wanted: &str) -> String {
        format!("{} is not {wanted}", self.kind())
    }

    pub(super) fn boolean(&self) -> Result<bool, String> {
        match self {
            Raw::Bool(value) => Ok(*value),
            other => Err(other.no("true or false")),
        }
    }

    /// A whole number within bounds.
    pub(super) fn integer<T: TryFrom<i64>>(
        &self,
        bounds: std::ops::RangeInclusive<i64>,
    ) -> Result<T, String> {
        match self {
            Raw::Integer(number) if bounds.contains(number) => {
                T::try_from(*number).map_err(|_| self.no("in range"))
            }
            Raw::Integer(_) => Err(self.no(&format!("within {} to {}", bounds.start(), bounds.end()))),
            other => Err(other.no("a whole number")),
        }
    }

    pub(super) fn text(&self) -> Result<&str, String> {
        match self {
            Raw::Text(text) => Ok(text),
            other => Err(other.no("a text in quotes")),
        }
    }

    /// A text that means something.
    pub(super) fn parsed<T>(&self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
        parse(self.text()?)
    }

    /// A list of texts, or one text alone.
    pub(super) fn parsed_list<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
        match self {
            Raw::List(items) => items.iter().map(|item| item.parsed(&parse)).collect(),
            other => other.parsed(&parse).map(|one| vec![one]),
        }
    }

    /// A number with or without a point, as it is written.
    pub(super) fn decimal(&self) -> Result<String, String> {
        match self {
            Raw::Integer(number) => Ok(number.to_string()),
            Raw::Decimal(text) => Ok(text.clone()),
            other => Err(other.no("a number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq)]
    struct Target {
        level: i8,
        names: Vec<String>,
    }

    const SETTINGS: &[Setting<Target>] = &[
        Setting {
            key: "level",
            about: "",
            allowed: "-7 to 19",
            default: "1",
            set: |target, raw| {
                target.level = raw.integer(-7..=19)?;
                Ok(())
            },
        },
        Setting {
            key: "names",
            about: "",
            allowed: "names",
            default: "",
            set: |target, raw| {
                target.names = raw.parsed_list(|text| Ok(text.to_owned()))?;
                Ok(())
            },
        },
    ];

    fn read_text(text: &str) -> Result<Target> {
        let table = parse("x.toml", text)?;
        let mut target = Target::default();
        let elsewhere = [("run", vec!["max_jobs"]), ("", vec!["name"])];
        read(Place { file: "x.toml", section: "options" }, &table, SETTINGS, &elsewhere, &mut target)?;
        Ok(target)
    }

    #[test]
    fn values_are_read_whatever_their_order() {
        let target = read_text("names = 'one'\nlevel = -0x7\n").map_err(|error| error.chain());
        assert!(target.expect_err("a sign before 0x").contains("line 2: not valid TOML"));
        let target = read_text("# a remark\nnames = ['a', \"b\"]\nlevel = -7").expect("valid");
        assert_eq!(target, Target { level: -7, names: vec!["a".into(), "b".into()] });
        assert_eq!(read_text("names = 'one'").expect("valid").names, ["one"]);
    }

    #[test]
    fn every_error_names_file_line_key_and_what_helps() {
        for (text, message, remedy) in [
            (
                "\n\nlevel = 20",
                "x.toml line 3: options.level: the number 20 is not within -7 to 19",
                "-7 to 19",
            ),
            ("level = '3'", "x.toml line 1: options.level: the text '3' is not a whole number", "-7 to 19"),
            ("names = [1]", "options.names: the number 1 is not a text in quotes", "names"),
            ("names = 2026-01-01", "a date or time is not a text", "names"),
            ("level = 99999999999999999999", "too large", "-7 to 19"),
            ("levle = 1", "x.toml line 1: 'options.levle' is not a key", "did you mean 'level'?"),
            ("max-jobs = 1", "'options.max-jobs' is not a key", "'max_jobs' belongs into [run]"),
            ("name = 1", "'options.name' is not a key", "'name' belongs into the top of the file"),
            ("colour = 1", "'options.colour' is not a key", "known here: level, names"),
            ("level = ", "x.toml line 1: not valid TOML", ""),
            ("level = 1\nlevel = 2", "x.toml line 2: not valid TOML", ""),
        ] {
            let error = read_text(text).expect_err(text);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.chain().contains(message), "{text}: {}", error.chain());
            assert!(error.remedy_text().unwrap_or("").contains(remedy), "{text}: {:?}", error.remedy_text());
        }
    }
}
