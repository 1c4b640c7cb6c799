//! A job file: which VMs, with which options.

use super::reader::{self, Entry, Place, Raw, Setting, Table};
use super::settings::{JOB, RUN};
use super::{JobOptions, Pattern, RunOptions};
use crate::error::{Error, Kind, Result, file_error};
use crate::lock::is_run_name;
use std::path::{Path, PathBuf};

/// Longest job file that is read: thousands of VMs by uuid.
const MAX_FILE_SIZE: u64 = 4 << 20;

/// Everything that one run is told.
#[derive(Clone, Debug, PartialEq)]
pub struct RunSpec {
    /// Name of the run: in messages, the summary and the lock.
    pub name: String,
    /// Names of the pools; the only one that is known where empty.
    pub pools: Vec<String>,
    /// Directory or address of the store, where the file names one.
    pub store: Option<PathBuf>,
    /// VMs that are backed up.
    pub select: Selection,
    /// VMs that are not, whatever `select` says.
    pub exclude: Selection,
    /// Options of every job.
    pub options: JobOptions,
    /// Options of the run.
    pub run: RunOptions,
    /// Options of some jobs; later ones win.
    pub overrides: Vec<Override>,
}

/// Ways to name VMs; each of them is enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Names, or patterns with `*`, `?` and `[...]`.
    pub names: Vec<Pattern>,
    /// Uuids, in lower case.
    pub uuids: Vec<String>,
    /// Tags.
    pub tags: Vec<String>,
}

impl Selection {
    /// Whether it names nothing.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.uuids.is_empty() && self.tags.is_empty()
    }
}

/// Options of the VMs that it names.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// Which VMs.
    pub which: Selection,
    /// Line in the file, for messages.
    pub line: usize,
    settings: Table,
}

impl Override {
    /// Puts its options in the place of others.
    pub fn apply(&self, options: &mut JobOptions) {
        for setting in JOB {
            if let Some(entry) = self.settings.0.iter().find(|entry| entry.key == setting.key) {
                // Read once as the file was read. Only `coalesce_limit` depends on the options below, and says
                // nothing where another policy was put there meanwhile.
                let _ = (setting.set)(options, &entry.value);
            }
        }
    }
}

/// The top of the file and the sections as they stand.
#[derive(Debug, Default)]
struct Top {
    name: Option<String>,
    pools: Vec<String>,
    store: Option<PathBuf>,
    sections: Vec<(&'static str, Table)>,
}

macro_rules! section {
    ($key:literal, $about:literal) => {
        Setting {
            key: $key,
            about: $about,
            allowed: concat!("a section that begins with [", $key, "]"),
            default: "",
            set: |top: &mut Top, raw| match raw {
                Raw::Table(table) => {
                    top.sections.push(($key, table.clone()));
                    Ok(())
                }
                _ => Err("it is a section".into()),
            },
        }
    };
}

const TOP: &[Setting<Top>] = &[
    Setting {
        key: "name",
        about: "name of the run, in messages and for the lock; else the file's name without `.toml`",
        allowed: "1 to 64 letters, digits and any of . _ - @",
        default: "",
        set: |top, raw| {
            let name = raw.text()?;
            top.name = Some(name.to_owned());
            if is_run_name(name) { Ok(()) } else { Err(format!("'{name}' cannot be the name of a run")) }
        },
    },
    Setting {
        key: "pools",
        about: "pools by the names of `abd pool list`; else the only one that is known",
        allowed: "a name or a list of names",
        default: "[]",
        set: |top, raw| {
            top.pools = raw.parsed_list(not_empty)?;
            Ok(())
        },
    },
    Setting {
        key: "store",
        about: "directory of the data store, or its address in object storage; --store and ABD_STORE go before it",
        allowed: "a path, s3://BUCKET/PREFIX?OPTIONS, or abd://HOST?key=KEY",
        default: "",
        set: |top, raw| {
            top.store = Some(raw.parsed(not_empty)?.into());
            Ok(())
        },
    },
    section!("select", "VMs that are backed up"),
    section!("exclude", "VMs that are not, whatever `select` says"),
    section!("options", "options of every job"),
    section!("run", "options of the run"),
    Setting {
        key: "vm",
        about: "options of some VMs",
        allowed: "sections that begin with [[vm]]",
        default: "",
        // Read on its own: its lines matter.
        set: |_, raw| match raw {
            Raw::List(items) if items.iter().all(|item| matches!(item, Raw::Table(_))) => Ok(()),
            _ => Err("it is not a list of sections".into()),
        },
    },
];

/// `[select]`, `[exclude]` and the beginning of `[[vm]]`.
const SELECTION: &[Setting<Selection>] = &[
    Setting {
        key: "names",
        about: "names, or patterns with `*`, `?` and `[...]`",
        allowed: "a text or a list of texts; \"*\" is every VM",
        default: "[]",
        set: |selection, raw| {
            selection.names = raw.parsed_list(str::parse)?;
            Ok(())
        },
    },
    Setting {
        key: "uuids",
        about: "uuids",
        allowed: "a uuid or a list of uuids",
        default: "[]",
        set: |selection, raw| {
            selection.uuids = raw.parsed_list(uuid)?;
            Ok(())
        },
    },
    Setting {
        key: "tags",
        about: "tags, as XenCenter shows them",
        allowed: "a text or a list of texts",
        default: "[]",
        set: |selection, raw| {
            selection.tags = raw.parsed_list(not_empty)?;
            Ok(())
        },
    },
];

/// What names the VMs of a `[[vm]]`, in the singular: there it is one.
const VM_KEYS: [(&str, &str); 3] = [("name", "names"), ("uuid", "uuids"), ("tag", "tags")];

fn uuid(text: &str) -> Result<String, String> {
    uuid::Uuid::try_parse(text).map(|uuid| uuid.to_string()).map_err(|_| format!("'{text}' is not a uuid"))
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text.to_owned()) }
}

/// A key of a job file, for the documents and for `abd run --keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The section; empty for the top of the file.
    pub section: &'static str,
    /// The key.
    pub key: &'static str,
    /// Its value where it is absent; empty where it has none.
    pub default: &'static str,
    /// What its value may be.
    pub allowed: &'static str,
    /// What it is for.
    pub about: &'static str,
}

/// Every key of a job file, section by section.
pub fn keys() -> Vec<Key> {
    fn rows<T>(section: &'static str, settings: &'static [Setting<T>]) -> impl Iterator<Item = Key> {
        settings.iter().map(move |Setting { key, default, allowed, about, .. }| Key {
            section,
            key,
            default,
            allowed,
            about,
        })
    }
    rows("", TOP)
        .chain(rows("select", SELECTION))
        .chain(rows("options", JOB))
        .chain(rows("run", RUN))
        .collect()
}

/// Keys of each section, for keys that stand in the wrong one.
fn sections() -> Vec<(&'static str, Vec<&'static str>)> {
    vec![
        ("options", JOB.iter().map(|setting| setting.key).collect()),
        ("run", RUN.iter().map(|setting| setting.key).collect()),
        ("select", SELECTION.iter().map(|setting| setting.key).collect()),
        ("", TOP.iter().map(|setting| setting.key).collect()),
    ]
}

/// Reads a job file.
///
/// # Errors
/// [`Kind::Usage`] naming file, line and key.
pub fn read_file(path: &Path) -> Result<RunSpec> {
    let unreadable = |error| file_error(Kind::Usage, path, "read", error);
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_FILE_SIZE {
        return Err(Error::new(Kind::Usage, format!("{} is too large for a job file", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    parse_text(&path.display().to_string(), &stem, &text)
}

/// Reads the text of a job file. `file` is for messages, `stem` is the run's name where the text gives none.
///
/// # Errors
/// As [`read_file`].
pub fn parse_text(file: &str, stem: &str, text: &str) -> Result<RunSpec> {
    let elsewhere = sections();
    let table = reader::parse(file, text)?;
    let mut top = Top::default();
    reader::read(Place { file, section: "" }, &table, TOP, &elsewhere, &mut top)?;
    let name = top.name.clone().unwrap_or_else(|| stem.to_owned());
    if !is_run_name(&name) {
        return Err(Error::new(Kind::Usage, format!("'{name}' cannot be the name of a run")).remedy(
            format!("say name = \"...\" at the top of {file}, of letters, digits and any of . _ - @"),
        ));
    }
    let mut spec = RunSpec {
        name,
        pools: top.pools.clone(),
        store: top.store.clone(),
        select: Selection::default(),
        exclude: Selection::default(),
        options: JobOptions::default(),
        run: RunOptions::default(),
        overrides: Vec::new(),
    };
    let place = |section| Place { file, section };
    for (section, table) in &top.sections {
        let place = place(section);
        match *section {
            "select" => reader::read(place, table, SELECTION, &elsewhere, &mut spec.select)?,
            "exclude" => reader::read(place, table, SELECTION, &elsewhere, &mut spec.exclude)?,
            "options" => reader::read(place, table, JOB, &elsewhere, &mut spec.options)?,
            _ => reader::read(place, table, RUN, &elsewhere, &mut spec.run)?,
        }
    }
    let contradiction = |line, clause| place("").error(line, clause).remedy("change one of them");
    let line = |key: &str| table.0.iter().find(|entry| entry.key == key).map_or(1, |entry| entry.line);
    let checked = spec.options.check().and_then(|()| spec.options.check_within(&spec.run.limits));
    checked.map_err(|clause| contradiction(line("options"), clause))?;
    if spec.select.is_empty() {
        return Err(place("").error(line("select"), "[select] names no VM").remedy(
            "say which VMs are backed up: names = [\"web*\"], uuids = [...] or tags = [...]; names = \"*\" is all",
        ));
    }
    for entry in table.0.iter().filter(|entry| entry.key == "vm") {
        let Raw::List(items) = &entry.value else { continue };
        for item in items {
            let Raw::Table(table) = item else { continue };
            let one = read_override(place("vm"), entry, table, &elsewhere, spec.options.clone())?;
            let mut options = spec.options.clone();
            one.apply(&mut options);
            let checked = options.check().and_then(|()| options.check_within(&spec.run.limits));
            checked.map_err(|clause| contradiction(one.line, clause))?;
            spec.overrides.push(one);
        }
    }
    Ok(spec)
}

/// Reads one `[[vm]]`: what names the VMs, and their options.
fn read_override(
    place: Place<'_>,
    whole: &Entry,
    table: &Table,
    elsewhere: &[(&str, Vec<&str>)],
    mut options: JobOptions,
) -> Result<Override> {
    let line = table.0.first().map_or(whole.line, |entry| entry.line);
    let mut which = Selection::default();
    let mut settings = Table::default();
    for entry in &table.0 {
        let Some((_, plural)) = VM_KEYS.iter().find(|(key, _)| *key == entry.key) else {
            settings.0.push(entry.clone());
            continue;
        };
        if let Some(setting) = SELECTION.iter().find(|setting| setting.key == *plural) {
            let one = entry.value.text().map(|_| &entry.value);
            one.and_then(|one| (setting.set)(&mut which, one))
                .map_err(|wrong| place.value_error(entry, &wrong, "one text"))?;
        }
    }
    let known = || JOB.iter().map(|setting| setting.key).chain(VM_KEYS.iter().map(|(key, _)| *key));
    if let Some(entry) = settings.0.iter().find(|entry| !known().any(|key| key == entry.key)) {
        return Err(place.unknown(entry, known(), elsewhere));
    }
    if which.is_empty() {
        return Err(place
            .error(line, "[[vm]] does not say which VM")
            .remedy("add name = \"...\" (a pattern may name several), uuid = \"...\" or tag = \"...\""));
    }
    reader::read(place, &settings, JOB, elsewhere, &mut options)?;
    Ok(Override { which, line, settings })
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
