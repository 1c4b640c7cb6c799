//! Reads the compact class description (`schema.txt`). Its grammar stands at the top of that file.
//!
//! The text is part of the crate, so a mistake in it is a mistake in the code: reading it panics with the line.

use crate::flavour::ApiVersion;
use crate::rpc::value::{EPOCH, NULL, Record, Value};
use std::collections::BTreeMap;
use std::sync::OnceLock;

const TEXT: &str = include_str!("schema.txt");

/// The type of a member, parameter or result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Text,
    Int,
    Float,
    Bool,
    Date,
    Void,
    Batch,
    Ref(String),
    Enum(String),
    Record(String),
    Set(Box<Type>),
    Map(Box<Type>, Box<Type>),
}

impl Type {
    fn parse(text: &str) -> Self {
        let mut rest = text;
        let kind = Self::take(&mut rest);
        assert!(rest.is_empty(), "schema: trailing {rest:?} in type {text:?}");
        kind
    }

    fn take(rest: &mut &str) -> Self {
        let first = rest.chars().next().expect("schema: a type is missing");
        match first {
            '[' => {
                *rest = &rest[1..];
                let item = Self::take(rest);
                Self::expect(rest, ']');
                Self::Set(Box::new(item))
            }
            '{' => {
                *rest = &rest[1..];
                let key = Self::take(rest);
                Self::expect(rest, ':');
                let item = Self::take(rest);
                Self::expect(rest, '}');
                Self::Map(Box::new(key), Box::new(item))
            }
            _ => {
                let end = rest.find([']', '}', ':']).unwrap_or(rest.len());
                let (word, tail) = rest.split_at(end);
                *rest = tail;
                match (word, first) {
                    ("string", _) => Self::Text,
                    ("int", _) => Self::Int,
                    ("float", _) => Self::Float,
                    ("bool", _) => Self::Bool,
                    ("datetime", _) => Self::Date,
                    ("void", _) => Self::Void,
                    ("batch", _) => Self::Batch,
                    (_, '&') => Self::Ref(word[1..].to_owned()),
                    (_, '#') => Self::Enum(word[1..].to_owned()),
                    (_, '@') => Self::Record(word[1..].to_owned()),
                    _ => panic!("schema: unknown type {word:?}"),
                }
            }
        }
    }

    fn expect(rest: &mut &str, c: char) {
        *rest = rest.strip_prefix(c).unwrap_or_else(|| panic!("schema: expected {c:?} before {rest:?}"));
    }

    /// The value of a member nobody has set.
    pub(crate) fn empty(&self) -> Value {
        match self {
            Self::Text | Self::Void | Self::Batch | Self::Record(_) => Value::void(),
            Self::Int => Value::Int(0),
            Self::Float => Value::Float(0.0),
            Self::Bool => Value::Bool(false),
            Self::Date => Value::Date(EPOCH.to_owned()),
            Self::Ref(_) => Value::null_ref(),
            Self::Enum(name) => Value::text(schema().enums.get(name).map_or("", |values| values[0].as_str())),
            Self::Set(_) => Value::List(Vec::new()),
            Self::Map(..) => Value::Map(Record::new()),
        }
    }

    fn default(&self, text: &str) -> Value {
        match self {
            Self::Int => Value::Int(text.parse().unwrap_or_else(|_| panic!("schema: bad integer {text:?}"))),
            Self::Float => {
                Value::Float(text.parse().unwrap_or_else(|_| panic!("schema: bad float {text:?}")))
            }
            Self::Bool => Value::Bool(text == "true"),
            Self::Date => Value::Date(text.to_owned()),
            Self::Ref(_) => Value::text(NULL),
            Self::Set(_) => Value::List(Vec::new()),
            Self::Map(..) => Value::Map(Record::new()),
            _ => Value::text(if text == "\"\"" { "" } else { text }),
        }
    }
}

/// Who may set a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qualifier {
    Runtime,
    Constructor,
    Writable,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) qualifier: Qualifier,
    pub(crate) since: ApiVersion,
    pub(crate) default: Option<Value>,
}

#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub(crate) name: String,
    pub(crate) kind: Type,
    pub(crate) optional: bool,
    pub(crate) since: ApiVersion,
}

#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) name: String,
    pub(crate) params: Vec<Param>,
    pub(crate) since: ApiVersion,
}

#[derive(Clone, Debug)]
pub(crate) struct Class {
    pub(crate) name: String,
    pub(crate) creatable: bool,
    pub(crate) destroyable: bool,
    pub(crate) fields: Vec<Field>,
    pub(crate) messages: Vec<Message>,
}

impl Class {
    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Schema {
    pub(crate) enums: BTreeMap<String, Vec<String>>,
    pub(crate) classes: Vec<Class>,
}

impl Schema {
    /// The class of that exact name.
    pub(crate) fn class(&self, name: &str) -> Option<&Class> {
        self.classes.iter().find(|c| c.name == name)
    }
}

/// The one schema of the crate.
pub(crate) fn schema() -> &'static Schema {
    static SCHEMA: OnceLock<Schema> = OnceLock::new();
    SCHEMA.get_or_init(|| parse(TEXT))
}

fn parse(text: &str) -> Schema {
    let mut schema = Schema::default();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "enum" => {
                schema
                    .enums
                    .insert(words[1].to_owned(), words[2..].iter().map(|w| (*w).to_owned()).collect());
            }
            "class" => schema.classes.push(Class {
                name: words[1].to_owned(),
                creatable: words.contains(&"create"),
                destroyable: words.contains(&"destroy"),
                fields: Vec::new(),
                messages: Vec::new(),
            }),
            "call" => {
                let message = parse_message(&line[5..]);
                schema.classes.last_mut().expect("schema: call outside a class").messages.push(message);
            }
            _ => {
                let field = parse_field(line, &words);
                schema.classes.last_mut().expect("schema: field outside a class").fields.push(field);
            }
        }
    }
    schema
}

fn since(word: Option<&str>) -> ApiVersion {
    word.map_or(ApiVersion::v2(0), |text| text.parse().unwrap_or_else(|e| panic!("schema: {e}")))
}

fn parse_field(line: &str, words: &[&str]) -> Field {
    let qualifier = match words[0] {
        "R" => Qualifier::Runtime,
        "C" => Qualifier::Constructor,
        "W" => Qualifier::Writable,
        other => panic!("schema: unknown line {other:?}"),
    };
    let kind = Type::parse(words[2]);
    let default = line.split_once(" = ").map(|(_, text)| kind.default(text));
    let version = words.get(3).and_then(|w| w.strip_prefix(">="));
    Field { name: words[1].to_owned(), kind, qualifier, since: since(version), default }
}

fn parse_message(text: &str) -> Message {
    let (name, rest) = text.split_once('(').unwrap_or_else(|| panic!("schema: bad call {text:?}"));
    let (params, rest) = rest.split_once(") -> ").unwrap_or_else(|| panic!("schema: bad call {text:?}"));
    let (result, version) = rest.split_once(" >=").map_or((rest, None), |(r, v)| (r, Some(v)));
    let params = params.split(", ").filter(|p| !p.is_empty()).map(|param| {
        let (name, kind) = param.split_once(':').unwrap_or_else(|| panic!("schema: bad parameter {param:?}"));
        let (kind, version) = kind.split_once(">=").map_or((kind, None), |(k, v)| (k, Some(v)));
        Param {
            name: name.trim_end_matches('?').to_owned(),
            kind: Type::parse(kind),
            optional: name.ends_with('?'),
            since: since(version),
        }
    });
    // Values carry their own encoding, so a result's type is only checked to be one.
    Type::parse(result);
    Message { name: name.to_owned(), params: params.collect(), since: since(version) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_readable_and_names_only_known_things() {
        let schema = schema();
        assert!(schema.classes.len() > 18);
        let vbd = schema.class("VBD").unwrap();
        assert_eq!(vbd.field("mode").unwrap().kind, Type::Enum("vbd_mode".into()));
        assert_eq!(vbd.field("currently_attached").unwrap().default, Some(Value::Bool(false)));
        for class in &schema.classes {
            for field in &class.fields {
                if let Type::Enum(name) = &field.kind {
                    assert!(schema.enums.contains_key(name), "{name}");
                }
            }
        }
        let snapshot = schema.class("VM").unwrap().messages.iter().find(|m| m.name == "snapshot").unwrap();
        assert_eq!(snapshot.params.len(), 3);
        assert!(snapshot.params[2].optional && snapshot.params[2].since == ApiVersion::v2(20));
    }
}
