//! API errors: what a caller of the simulator sees as `ErrorDescription` or as the JSON-RPC error.
//!
//! Owns the code and parameter lists; promises that the first item is always the code. Knows nothing of how they travel.

use std::fmt;

/// One API error: the code first, then its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure(Vec<String>);

/// What every call of the simulated API answers.
pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// An error with its parameters, in the order the API documents them.
    pub fn new<S: Into<String>>(code: &str, params: impl IntoIterator<Item = S>) -> Self {
        let mut all = vec![code.to_owned()];
        all.extend(params.into_iter().map(Into::into));
        Self(all)
    }

    /// An error without parameters.
    pub fn bare(code: &str) -> Self {
        Self(vec![code.to_owned()])
    }

    /// An error as a list; an empty list becomes an internal error.
    pub fn from_list(list: Vec<String>) -> Self {
        if list.is_empty() { Self::internal("an error without a code") } else { Self(list) }
    }

    /// The code alone.
    pub fn code(&self) -> &str {
        &self.0[0]
    }

    /// Code and parameters.
    pub fn list(&self) -> &[String] {
        &self.0
    }

    pub(crate) fn internal(text: impl Into<String>) -> Self {
        Self::new("INTERNAL_ERROR", [text.into()])
    }

    pub(crate) fn handle_invalid(class: &str, reference: &str) -> Self {
        Self::new("HANDLE_INVALID", [class, reference])
    }

    pub(crate) fn field_type(name: &str) -> Self {
        Self::new("FIELD_TYPE_ERROR", [name])
    }

    pub(crate) fn invalid_value(field: &str, value: impl Into<String>) -> Self {
        Self::new("INVALID_VALUE", [field.to_owned(), value.into()])
    }

    pub(crate) fn not_allowed(reason: impl Into<String>) -> Self {
        Self::new("OPERATION_NOT_ALLOWED", [reason.into()])
    }

    /// A storage driver error: `SR_BACKEND_FAILURE_<number>`.
    pub(crate) fn storage(number: u16, text: &str, detail: &str) -> Self {
        let described = if detail.is_empty() { text.to_owned() } else { format!("{text} [opterr={detail}]") };
        Self::new(&format!("SR_BACKEND_FAILURE_{number}"), [String::new(), described, String::new()])
    }

    /// A disk file of the simulator could not be used.
    pub(crate) fn disk(what: &str, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull {
            return Self::storage(44, "There is insufficient space", what);
        }
        Self::storage(46, "The VDI is not available", &format!("{what}: {error}"))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.0[0], self.0[1..].join(", "))
    }
}

impl std::error::Error for Failure {}
