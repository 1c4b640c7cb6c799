//! Values as both encodings carry them.
//!
//! XML-RPC gives integers as text and JSON gives them as numbers, so reading is by what the caller expects:
//! [`Value::as_i64`] takes both. Dates are text in both.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// A value of the XAPI model.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Value {
    /// Nothing: the result of a call without one.
    #[default]
    Nil,
    /// A boolean.
    Bool(bool),
    /// A 64-bit integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// Text, a reference, an enumeration word, a date, or an integer from XML.
    String(String),
    /// A set.
    Array(Vec<Value>),
    /// A map or a record.
    Struct(BTreeMap<String, Value>),
}

impl Value {
    /// A record from its members.
    pub fn record<K: Into<String>>(members: impl IntoIterator<Item = (K, Value)>) -> Self {
        Self::Struct(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }

    /// Member of a record or map.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.as_struct()?.get(name)
    }

    /// Text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// An integer, also one in text.
    pub fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            Self::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A number, also one in text.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(number) => Some(*number),
            // Progress values and counts: far below the 53 bits of a double.
            Self::Int(number) => Some(*number as f64),
            Self::String(text) => text.trim().parse().ok(),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// Elements of a set.
    pub fn as_array(&self) -> Option<&[Value]> {
        match self {
            Self::Array(items) => Some(items),
            _ => None,
        }
    }

    /// Members of a record or map.
    pub fn as_struct(&self) -> Option<&BTreeMap<String, Value>> {
        match self {
            Self::Struct(members) => Some(members),
            _ => None,
        }
    }

    /// What the value is, for messages.
    pub(crate) fn kind_name(&self) -> &'static str {
        match self {
            Self::Nil => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::String(_) => "a text",
            Self::Array(_) => "a set",
            Self::Struct(_) => "a record",
        }
    }
}

/// A date as XAPI writes it, such as `20240420T12:00:00Z`; without a time zone it is UTC. The epoch stands for
/// "never" and is none.
pub fn timestamp(text: &str) -> Option<SystemTime> {
    let zoned = text.parse::<jiff::Timestamp>().ok();
    let moment = zoned.or_else(|| format!("{text}Z").parse().ok())?;
    Some(SystemTime::from(moment)).filter(|moment| *moment != SystemTime::UNIX_EPOCH)
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(items: Vec<T>) -> Self {
        Self::Array(items.into_iter().map(Into::into).collect())
    }
}

impl From<&BTreeMap<String, String>> for Value {
    fn from(map: &BTreeMap<String, String>) -> Self {
        Self::record(map.iter().map(|(key, value)| (key, Value::from(value.as_str()))))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values that both encodings carry.
    pub(crate) fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Bool),
            any::<i64>().prop_map(Value::Int),
            (-1e12..1e12).prop_map(Value::Float),
            "[ -~\u{e4}\u{1f600}\n\t]{0,16}".prop_map(Value::String),
        ];
        leaf.prop_recursive(4, 48, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::Array),
                proptest::collection::btree_map("[a-zA-Z_<&:/]{1,8}", inner, 0..6).prop_map(Value::Struct),
            ]
        })
    }

    #[test]
    fn dates_are_read_in_every_form_that_xapi_writes() {
        let noon = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_713_614_400);
        for text in [
            "20240420T12:00:00Z",
            "2024-04-20T12:00:00Z",
            "20240420T12:00:00",
            "20240420T14:00:00+02:00",
            "20240420T12:00:00.000Z",
        ] {
            assert_eq!(timestamp(text), Some(noon), "{text}");
        }
        for text in ["19700101T00:00:00Z", "", "yesterday", "20241320T12:00:00Z"] {
            assert_eq!(timestamp(text), None, "{text}");
        }
    }

    #[test]
    fn integers_are_read_from_both_encodings() {
        assert_eq!(Value::Int(-1).as_i64(), Some(-1));
        assert_eq!(Value::from("9223372036854775807").as_i64(), Some(i64::MAX));
        assert_eq!(Value::from("1e3").as_i64(), None);
        assert_eq!(Value::from("0.5").as_f64(), Some(0.5));
        assert_eq!(Value::from("1").as_bool(), None);
    }
}
