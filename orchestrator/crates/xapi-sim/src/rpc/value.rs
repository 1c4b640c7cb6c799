//! The value that both encodings share and that the record store keeps.

use std::collections::BTreeMap;

/// The null reference.
pub const NULL: &str = "OpaqueRef:NULL";
/// The date that stands for "never".
pub const EPOCH: &str = "19700101T00:00:00Z";

/// A record: member name to value.
pub type Record = BTreeMap<String, Value>;

/// Any value of the API. References and enumerations are text.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null` or `<nil/>`; only ever received.
    Nil,
    /// A boolean.
    Bool(bool),
    /// A 64-bit integer; untyped text in XML-RPC.
    Int(i64),
    /// A 32-bit count; `<i4>` in XML-RPC.
    Count(i32),
    /// A double.
    Float(f64),
    /// A string, reference or enumeration.
    Text(String),
    /// A date in the form `YYYYMMDDTHH:MM:SSZ`.
    Date(String),
    /// A set.
    List(Vec<Value>),
    /// A map or a record.
    Map(Record),
}

impl Value {
    /// The answer of a call without a result.
    pub fn void() -> Self {
        Self::Text(String::new())
    }

    /// A string value.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A set of strings.
    pub fn texts<S: Into<String>>(items: impl IntoIterator<Item = S>) -> Self {
        Self::List(items.into_iter().map(Self::text).collect())
    }

    /// A map of strings to strings.
    pub fn text_map<K: Into<String>, V: Into<String>>(items: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Map(items.into_iter().map(|(k, v)| (k.into(), Self::text(v))).collect())
    }

    /// The null reference.
    pub fn null_ref() -> Self {
        Self::text(NULL)
    }

    /// The text of a string, reference, enumeration or date.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Date(text) => Some(text),
            _ => None,
        }
    }

    /// The map, if it is one.
    pub fn as_map(&self) -> Option<&Record> {
        match self {
            Self::Map(map) => Some(map),
            _ => None,
        }
    }

    /// The set, if it is one.
    pub fn as_list(&self) -> Option<&[Value]> {
        match self {
            Self::List(list) => Some(list),
            _ => None,
        }
    }
}

/// Seconds since the epoch as the API writes dates.
pub fn format_date(seconds: u64) -> String {
    let (year, month, day) = civil_date(seconds / 86_400);
    let of_day = seconds % 86_400;
    format!("{year:04}{month:02}{day:02}T{:02}:{:02}:{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// Accepts the two spellings the API accepts (with and without hyphens) and answers the one it writes.
pub fn parse_date(text: &str) -> Option<String> {
    let (day, time) = text.split_once('T')?;
    let day: String = day.chars().filter(|c| *c != '-').collect();
    let clock = time.strip_suffix('Z').unwrap_or(time);
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = clock.split(':').collect();
    if day.len() != 8
        || !digits(&day)
        || parts.len() != 3
        || parts[..2].iter().any(|p| p.len() != 2 || !digits(p))
    {
        return None;
    }
    let seconds = parts[2].split('.').next().unwrap_or_default();
    if seconds.len() != 2 || !digits(seconds) {
        return None;
    }
    Some(format!("{day}T{}:{}:{seconds}Z", parts[0], parts[1]))
}

/// Days since 1970-01-01 to a date of the Gregorian calendar (Hinnant's algorithm: eras of 400 years that begin in March).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_without_hyphens_and_read_with_or_without() {
        assert_eq!(format_date(0), EPOCH);
        assert_eq!(format_date(1_713_614_400), "20240420T12:00:00Z");
        assert_eq!(format_date(951_827_696), "20000229T12:34:56Z");
        assert_eq!(parse_date("2024-04-20T12:00:00Z").as_deref(), Some("20240420T12:00:00Z"));
        assert_eq!(parse_date("20240420T12:00:00").as_deref(), Some("20240420T12:00:00Z"));
        assert_eq!(parse_date("yesterday"), None);
    }
}
