//! References, uuids, and how records are read.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::str::FromStr;

use crate::error::{Error, Kind, Result};
use crate::value::Value;

/// A map of texts, such as `other_config`.
pub type StringMap = BTreeMap<String, String>;

const NULL: &str = "OpaqueRef:NULL";

/// A class of XAPI objects, read as a record.
pub trait Class: Sized {
    /// Name of the class, such as `VM`.
    const NAME: &'static str;

    /// Reads a record. Absent members take their default; the error names a member of the wrong type.
    fn from_record(record: &Value) -> std::result::Result<Self, String>;
}

/// A member's type.
pub trait FromValue: Default {
    /// Reads the member, none if the value has another type.
    fn from_value(value: &Value) -> Option<Self>;
}

/// A reference to an object of a class, valid as long as the object lives.
pub struct Ref<T> {
    text: String,
    class: PhantomData<fn() -> T>,
}

impl<T> Ref<T> {
    /// The reference to nothing.
    pub fn null() -> Self {
        Self::from_opaque(NULL)
    }

    /// A reference from its text, such as one from a journal.
    pub fn from_opaque(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: PhantomData }
    }

    /// Whether it refers to nothing.
    pub fn is_null(&self) -> bool {
        self.text.is_empty() || self.text == NULL || self.text == "NULL"
    }

    /// The text, `OpaqueRef:...`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl<T> Default for Ref<T> {
    fn default() -> Self {
        Self::null()
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        Self::from_opaque(self.text.clone())
    }
}

impl<T> PartialEq for Ref<T> {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl<T> Eq for Ref<T> {}

impl<T> PartialOrd for Ref<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ref<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl<T> Hash for Ref<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl<T> fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T> fmt::Display for Ref<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<T> From<&Ref<T>> for Value {
    fn from(reference: &Ref<T>) -> Self {
        Value::String(reference.text.clone())
    }
}

/// A uuid as XAPI gives it: letters, digits and hyphens, so that it is safe in names of files.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uuid(String);

impl Uuid {
    /// The text; empty for a record without one.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Uuid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let hex = text.chars().all(|c| c == '-' || c.is_ascii_hexdigit());
        match hex && groups == [8, 4, 4, 4, 12] {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err(Error::new(Kind::Input, "", format!("{text:?} is not a uuid"))),
        }
    }
}

impl From<&Uuid> for Value {
    fn from(uuid: &Uuid) -> Self {
        Value::String(uuid.0.clone())
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl FromValue for i64 {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_i64()
    }
}

/// Sizes and counts. XAPI's -1 for "not known" becomes 0.
impl FromValue for u64 {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_i64().map(|number| u64::try_from(number).unwrap_or(0))
    }
}

impl FromValue for f64 {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

impl<T> FromValue for Ref<T> {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_str().map(Self::from_opaque)
    }
}

impl FromValue for Uuid {
    fn from_value(value: &Value) -> Option<Self> {
        let text = value.as_str()?;
        let safe = text.len() <= 64 && text.chars().all(|c| c == '-' || c.is_ascii_alphanumeric());
        safe.then(|| Self(text.to_owned()))
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::from_value).collect()
    }
}

impl<T: FromValue> FromValue for BTreeMap<String, T> {
    fn from_value(value: &Value) -> Option<Self> {
        value.as_struct()?.iter().map(|(key, value)| Some((key.clone(), T::from_value(value)?))).collect()
    }
}

/// Member of a record, its default when absent.
pub(crate) fn member<T: FromValue>(record: &Value, name: &str) -> std::result::Result<T, String> {
    match record.get(name) {
        None | Some(Value::Nil) => Ok(T::default()),
        Some(value) => T::from_value(value).ok_or_else(|| format!("member {name} is {}", value.kind_name())),
    }
}

/// Reads what a call answered.
pub(crate) fn expect<T: FromValue>(method: &str, value: &Value) -> Result<T> {
    T::from_value(value).ok_or_else(|| {
        Error::new(
            Kind::Protocol,
            method,
            format!("the pool answers with {}, which was not expected", value.kind_name()),
        )
    })
}

/// Reads a record that a call answered.
pub(crate) fn expect_record<T: Class>(method: &str, value: &Value) -> Result<T> {
    let read = match value {
        Value::Struct(_) => T::from_record(value),
        other => Err(format!("it is {}", other.kind_name())),
    };
    read.map_err(|why| {
        Error::new(Kind::Protocol, method, format!("the pool's {} record is unusable: {why}", T::NAME))
    })
}

/// Defines record structs: one line per member, with its name on the wire.
macro_rules! classes {
    ($($(#[$doc:meta])* $class:ident = $name:literal {
        $($(#[$field_doc:meta])* $field:ident: $type:ty = $wire:literal,)*
    })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq)]
        pub struct $class {
            $(
                #[doc = concat!("`", $wire, "`")]
                $(#[$field_doc])*
                pub $field: $type,
            )*
        }

        impl $crate::record::Class for $class {
            const NAME: &'static str = $name;

            fn from_record(record: &$crate::value::Value) -> Result<Self, String> {
                Ok(Self { $($field: $crate::record::member(record, $wire)?,)* })
            }
        }
    )*};
}

/// Defines enumerations that keep words they do not know.
macro_rules! words {
    ($($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal,)* })*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $(#[doc = concat!("`", $word, "`")] $variant,)*
            /// A word of another version; empty when the member is absent.
            Other(String),
        }

        impl $name {
            /// The word on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::Other(String::new())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                $(if word.eq_ignore_ascii_case($word) { return Self::$variant; })*
                Self::Other(word.to_owned())
            }
        }

        impl $crate::record::FromValue for $name {
            fn from_value(value: &$crate::value::Value) -> Option<Self> {
                value.as_str().map(Self::from)
            }
        }

        impl From<&$name> for $crate::value::Value {
            fn from(word: &$name) -> Self {
                word.as_str().into()
            }
        }
    )*};
}

pub(crate) use {classes, words};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{PowerState, Vdi, Vm};

    #[test]
    fn records_take_both_encodings_and_missing_members() {
        let vdi = Vdi::from_record(&Value::record([
            ("uuid", "00000000-0000-0000-0000-000000000001".into()),
            ("virtual_size", "8388608".into()),
            ("physical_utilisation", Value::Int(-1)),
            ("snapshot_of", "OpaqueRef:NULL".into()),
            ("type", "brand_new".into()),
        ]))
        .expect("tolerant");
        assert_eq!((vdi.virtual_size, vdi.physical_utilisation), (8_388_608, 0));
        assert!(vdi.snapshot_of.is_null() && vdi.sr.is_null() && !vdi.cbt_enabled);
        assert_eq!(vdi.kind, crate::VdiType::Other("brand_new".to_owned()));
    }

    #[test]
    fn a_member_of_the_wrong_type_is_named() {
        let record = Value::record([("is_a_template", Value::from("yes"))]);
        assert_eq!(Vm::from_record(&record), Err("member is_a_template is a text".to_owned()));
        let path = Value::record([("uuid", Value::from("../../etc"))]);
        assert_eq!(Vm::from_record(&path), Err("member uuid is a text".to_owned()));
    }

    #[test]
    fn words_are_read_in_any_case() {
        assert_eq!(PowerState::from("Halted"), PowerState::Halted);
        assert_eq!(PowerState::from("halted"), PowerState::Halted);
        assert_eq!(PowerState::from("Molten").as_str(), "Molten");
    }

    #[test]
    fn uuids_are_checked_when_people_type_them() {
        assert!("6F9619FF-8B86-D011-B42D-00CF4FC964FF".parse::<Uuid>().is_ok());
        assert!("6f9619ff8b86d011b42d00cf4fc964ff".parse::<Uuid>().is_err());
        assert!("".parse::<Uuid>().is_err());
    }
}
