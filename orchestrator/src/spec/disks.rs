//! Which disks of a VM are left out: by VDI uuid, name, tag or position.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What a filter looks at: the live disk, never its snapshot.
#[derive(Clone, Copy, Debug)]
pub struct DiskFacts<'a> {
    /// Uuid of the VDI.
    pub uuid: &'a str,
    /// Name of the VDI.
    pub name: &'a str,
    /// Tags of the VDI.
    pub tags: &'a [String],
    /// `other_config` of the VDI, where older tools keep what newer ones keep in tags.
    pub other_config: &'a BTreeMap<String, String>,
    /// The drive's position (`userdevice`), where it is a number.
    pub position: Option<u32>,
}

/// One way to name disks.
///
/// Written `uuid:UUID` or a bare uuid, `name:PATTERN` or a bare pattern, `tag:TAG`, and `position:2` or `#2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskFilter {
    /// The VDI of this uuid, in lower case.
    Uuid(String),
    /// VDIs whose name is this text, or that match it as a pattern with `*`, `?` and `[...]`.
    Name(Pattern),
    /// VDIs with this tag, or with this key in `other_config`; `KEY=VALUE` asks for the value too.
    Tag(String),
    /// The drive at this position, counted from 0 as `userdevice` counts.
    Position(u32),
}

/// Positions that a VM has.
const MAX_POSITION: u32 = 254;

/// A name or a pattern of names. The text itself always matches, so that a name with `[` in it can be given as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    glob: Option<glob::Pattern>,
}

impl Pattern {
    /// Whether the text is a plain name: then it should match something.
    pub fn is_plain(&self) -> bool {
        self.glob.is_none()
    }

    /// Whether a name matches. Case counts.
    pub fn matches(&self, name: &str) -> bool {
        name == self.text || self.glob.as_ref().is_some_and(|glob| glob.matches(name))
    }

    /// The text as it was given.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a name cannot be empty; `*` stands for every name".into());
        }
        let glob = match text.contains(['*', '?', '[']) {
            true => Some(
                glob::Pattern::new(text)
                    .map_err(|error| format!("'{text}' is not a pattern: {}", error.msg))?,
            ),
            false => None,
        };
        Ok(Self { text: text.to_owned(), glob })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl DiskFilter {
    /// Whether the disk is meant.
    pub fn matches(&self, disk: &DiskFacts<'_>) -> bool {
        match self {
            Self::Uuid(uuid) => disk.uuid.eq_ignore_ascii_case(uuid),
            Self::Name(pattern) => pattern.matches(disk.name),
            Self::Tag(tag) => {
                let configured = match tag.split_once('=') {
                    Some((key, value)) => disk.other_config.get(key).is_some_and(|found| found == value),
                    None => disk.other_config.contains_key(tag),
                };
                configured || disk.tags.contains(tag)
            }
            Self::Position(position) => disk.position == Some(*position),
        }
    }
}

impl FromStr for DiskFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str = "write uuid:UUID, name:PATTERN, tag:TAG, or position:NUMBER";
        if let Some(number) = text.strip_prefix('#') {
            return position(number);
        }
        match text.split_once(':') {
            Some(("uuid", uuid)) => uuid::Uuid::try_parse(uuid)
                .map(|uuid| Self::Uuid(uuid.to_string()))
                .map_err(|_| format!("'{uuid}' is not a uuid")),
            Some(("name", pattern)) => pattern.parse().map(Self::Name),
            Some(("tag", "")) => Err("a tag cannot be empty".into()),
            Some(("tag", tag)) => Ok(Self::Tag(tag.to_owned())),
            Some(("position", number)) => position(number),
            // `nmae:data` must not silently become a name that no disk has.
            Some((kind, _)) if kind.chars().all(|c| c.is_ascii_lowercase()) => {
                Err(format!("'{kind}:' is not a way to name a disk; {FORMS}"))
            }
            _ if text.is_empty() => Err(format!("it is empty; {FORMS}")),
            _ => match uuid::Uuid::try_parse(text) {
                Ok(uuid) => Ok(Self::Uuid(uuid.to_string())),
                Err(_) => text.parse().map(Self::Name),
            },
        }
    }
}

fn position(number: &str) -> Result<DiskFilter, String> {
    match number.parse() {
        Ok(position) if position <= MAX_POSITION => Ok(DiskFilter::Position(position)),
        _ => {
            Err(format!("'{number}' is not a position; a VM's drives have the positions 0 to {MAX_POSITION}"))
        }
    }
}

impl fmt::Display for DiskFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(uuid) => write!(f, "uuid:{uuid}"),
            Self::Name(pattern) => write!(f, "name:{pattern}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
            Self::Position(position) => write!(f, "position:{position}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0f6f0d2c-7a53-4a0e-9c3e-0a1b2c3d4e5f";

    fn filter(text: &str) -> DiskFilter {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn matches(text: &str) -> bool {
        let other_config = BTreeMap::from([("purpose".to_owned(), "swap".to_owned())]);
        let tags = ["scratch".to_owned()];
        filter(text).matches(&DiskFacts {
            uuid: UUID,
            name: "web01 data [2]",
            tags: &tags,
            other_config: &other_config,
            position: Some(2),
        })
    }

    #[test]
    fn a_disk_is_named_by_uuid_name_tag_or_position() {
        for yes in [
            UUID,
            &UUID.to_uppercase(),
            &format!("uuid:{UUID}"),
            "name:web01*",
            "web0? data*",
            "web01 data [2]",
            "tag:scratch",
            "tag:purpose",
            "tag:purpose=swap",
            "position:2",
            "#2",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in ["web01", "name:WEB01*", "tag:Scratch", "tag:purpose=data", "position:0", "#3"] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn a_filter_survives_its_text() {
        for text in [UUID, "name:a*", "tag:x=y", "#7"] {
            assert_eq!(filter(&filter(text).to_string()), filter(text));
        }
    }

    #[test]
    fn what_is_wrong_with_a_filter_is_said() {
        for (text, expected) in [
            ("", "empty"),
            ("name:", "cannot be empty"),
            ("tag:", "cannot be empty"),
            ("uuid:12", "not a uuid"),
            ("position:-1", "not a position"),
            ("#255", "0 to 254"),
            ("nmae:data", "name:PATTERN"),
            ("a[", "not a pattern"),
        ] {
            let error = text.parse::<DiskFilter>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        // A colon in a name that does not look like a kind.
        assert!(filter("Disk 1: data").to_string().starts_with("name:"));
    }
}
