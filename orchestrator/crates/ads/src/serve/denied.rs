//! A call that is not done, and why.

use super::protocol::Failure;
use crate::error::{Error, ErrorKind, sentence};

/// A call that is not done. The client is told the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// HTTP's.
    pub status: u16,
    /// Stable, as in `SERVE.md`.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

impl Denied {
    /// With these words.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(400, "bad-request", message)
    }

    pub(super) fn too_large(size: u64, limit: u64) -> Self {
        Self::new(413, "too-large", format!("{size} bytes are over the limit of {limit}"))
    }

    pub(super) fn busy() -> Self {
        Self::new(503, "busy", "the server has too much to do; ask again")
    }

    pub(super) fn not_found() -> Self {
        Self::new(404, "not-found", "there is no such object")
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let failure = Failure { code: self.code.into(), message: self.message.clone() };
        serde_json::to_vec(&failure).expect("two strings are encodable")
    }
}

impl From<Error> for Denied {
    fn from(error: Error) -> Self {
        if error.is_not_found() {
            return Self::not_found();
        }
        let (status, code) = match error.kind() {
            ErrorKind::Full => (507, "store-full"),
            ErrorKind::BadPack => (422, "bad-pack"),
            ErrorKind::Missing => (422, "not-whole"),
            ErrorKind::Refused => (422, "refused"),
            ErrorKind::NotFound => (404, "not-found"),
            _ => (500, "store-error"),
        };
        Self::new(status, code, sentence(&error))
    }
}
