//! The crate's error: one variant per room, each with its short code for `vm-data/abd/error-code`.

use std::fmt::Write as _;

use crate::{net, platform::config, platform::devices, platform::xenstore, worker};

/// Anything that ends a job in the appliance.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// XenStore does not answer, or not as it should.
    #[error(transparent)]
    XenStore(#[from] xenstore::Error),
    /// A key under `vm-data/abd` is missing or wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The network does not come up.
    #[error(transparent)]
    Network(#[from] net::Error),
    /// A disk of the order is not there, or not what the order says.
    #[error(transparent)]
    Disk(#[from] devices::Error),
    /// The job itself failed.
    #[error(transparent)]
    Worker(#[from] worker::Error),
}

impl Error {
    /// Short kebab-case code; programs decide by it, so it never changes its meaning.
    pub fn code(&self) -> &'static str {
        match self {
            Error::XenStore(_) => "xenstore",
            Error::Config(e) => e.code(),
            Error::Network(e) => e.code(),
            Error::Disk(e) => e.code(),
            Error::Worker(e) => e.code(),
        }
    }
}

/// An error and all its sources in one line: `a: b: c`.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes stand in the sources as `=> "code"`: one that is added there needs a line in `wire`'s table.
    #[test]
    fn for_every_code_there_is_something_to_do() {
        let sources = [
            include_str!("error.rs"),
            include_str!("net/error.rs"),
            include_str!("platform/config.rs"),
            include_str!("platform/devices.rs"),
            include_str!("worker/error.rs"),
        ];
        let mut seen = 0;
        for line in sources.iter().flat_map(|source| source.lines()) {
            let Some((_, code)) = line.split_once("=> \"") else { continue };
            let Some(code) = code.strip_suffix("\",") else { continue };
            assert!(wire::advice(code).is_some(), "nothing to do about '{code}'");
            seen += 1;
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn chain_names_every_source_once() {
        let error = Error::from(xenstore::Error::Io {
            operation: "write",
            path: "vm-data/abd/state".to_owned(),
            source: std::io::Error::from_raw_os_error(libc::EIO),
        });
        assert_eq!(chain(&error), "XenStore: write vm-data/abd/state: Input/output error (os error 5)");
    }
}
