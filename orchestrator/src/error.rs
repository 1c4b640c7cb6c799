//! What can go wrong for the person or program that runs `abd`: a kind that decides the exit code, a sentence
//! that names the object, what to do about it, and the source.

use std::fmt;

/// What an error means for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A job failed; nothing else fits better.
    Failed,
    /// The command line or a file of ours is wrong.
    Usage,
    /// A VM, pool, restore point or disk of that name does not exist, or more than one does.
    NotFound,
    /// The pool refused user or password.
    Auth,
    /// Nothing answers at the pool's address.
    Unreachable,
    /// The pool's certificate is not trusted, or is another one than before.
    Certificate,
    /// The appliance template is missing or of another version.
    Template,
    /// The store cannot be used.
    Store,
    /// The store's disk is full.
    StoreFull,
    /// Something in the store is damaged.
    Damaged,
    /// Objects of ours are still in the pool.
    Leftovers,
    /// There was nothing to do: no VM was selected, or every job was skipped.
    NothingDone,
    /// Changes that the pool did not list: earlier restore points may be wrong.
    Alarm,
    /// Another process does the same at this moment.
    Locked,
    /// The backup is made, but for parts of a disk that could not be read: zeros stand there.
    BadBlocks,
    /// Stopped by a signal.
    Cancelled,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 16] = [
        Kind::Failed,
        Kind::Usage,
        Kind::NotFound,
        Kind::Auth,
        Kind::Unreachable,
        Kind::Certificate,
        Kind::Template,
        Kind::Store,
        Kind::StoreFull,
        Kind::Damaged,
        Kind::Leftovers,
        Kind::NothingDone,
        Kind::Alarm,
        Kind::Locked,
        Kind::BadBlocks,
        Kind::Cancelled,
    ];

    /// The process's exit code. Documented in the README; never renumbered.
    pub const fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Auth => 4,
            Kind::Unreachable => 5,
            Kind::Certificate => 6,
            Kind::Template => 7,
            Kind::Store => 8,
            Kind::StoreFull => 9,
            Kind::Damaged => 10,
            Kind::Leftovers => 11,
            Kind::NothingDone => 12,
            Kind::Alarm => 13,
            Kind::Locked => 14,
            Kind::BadBlocks => 15,
            Kind::Cancelled => 130,
        }
    }
}

/// An error of the orchestrator.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    remedy: Option<String>,
    /// Whether a call was made of which nobody knows what came of it.
    is_open: bool,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a sentence that names the object.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), remedy: None, is_open: false, source: None }
    }

    /// Says what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Keeps what caused it.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Says that a call was made of which nobody knows what came of it.
    #[must_use]
    pub(crate) fn open(mut self) -> Self {
        self.is_open = true;
        self
    }

    /// Whether a call was made of which nobody knows what came of it: its object may be there, or still appear.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// What it means for the caller.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What to do about it, where one thing helps.
    pub fn remedy_text(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// The whole chain on one line, each cause once.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Refusals of the pool keep their meaning; the caller adds the object with [`Context`].
impl From<xapi::Error> for Error {
    fn from(error: xapi::Error) -> Self {
        use xapi::Kind as X;
        let (kind, remedy) = match error.kind() {
            X::Auth => (Kind::Auth, Some("check the user and the password file of the pool".to_owned())),
            X::Unreachable | X::Timeout | X::SessionInvalid | X::Protocol => {
                (Kind::Unreachable, Some("check the address, the network and that the host is up".to_owned()))
            }
            X::TlsUntrusted { .. } => (
                Kind::Certificate,
                Some("compare the fingerprint on that host; `abd pool remove` and `abd pool add` record all hosts".to_owned()),
            ),
            X::TlsChanged { .. } => (
                Kind::Certificate,
                Some(
                    "if the certificate was renewed on purpose, run `abd pool remove` and `abd pool add`; \
                     otherwise somebody is in between"
                        .to_owned(),
                ),
            ),
            _ => (Kind::Failed, None),
        };
        let is_open = error.effect() == xapi::Effect::Unknown;
        Self { kind, message: error.to_string(), remedy, is_open, source: None }
    }
}

/// Puts the object in front of an error.
pub trait Context<T> {
    /// Adds what was being done, and to what.
    ///
    /// # Errors
    /// The same, with the words in front.
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let mut error = error.into();
            error.message = format!("{}: {}", what(), error.message);
            error
        })
    }
}

/// An input or output error on a file of ours.
pub(crate) fn file_error(kind: Kind, path: &std::path::Path, doing: &str, error: std::io::Error) -> Error {
    Error::new(kind, format!("cannot {doing} {}", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_says_each_cause_once() {
        let inner = std::io::Error::other("disk on fire");
        let error = Error::new(Kind::Store, "cannot open /store").because(inner);
        assert_eq!(error.chain(), "cannot open /store: disk on fire");
        let error = Err::<(), _>(error).context(|| "backup of web01".into()).expect_err("still an error");
        assert_eq!(error.chain(), "backup of web01: cannot open /store: disk on fire");
        assert_eq!(error.kind().exit_code(), 8);
    }
}
