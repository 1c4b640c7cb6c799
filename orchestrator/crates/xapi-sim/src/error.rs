//! What can keep the simulator from starting or from doing what its owner asked. API errors are `Failure`s instead.

use std::path::PathBuf;

/// An error of the simulator itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No release of that name.
    #[error("unknown flavour {name:?}; known are {known}")]
    UnknownFlavour {
        /// What was asked for.
        name: String,
        /// What exists.
        known: String,
    },
    /// A file or directory of the simulator.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A listening socket.
    #[error("listen on {address}")]
    Listen {
        /// Address or socket path.
        address: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The self-signed certificate.
    #[error("make the TLS certificate")]
    Certificate(#[source] rcgen::Error),
    /// The TLS set-up.
    #[error("set up TLS")]
    Tls(#[from] rustls::Error),
    /// A request to a control port was not answered as expected.
    #[error("{request}: {detail}")]
    Control {
        /// What was asked.
        request: String,
        /// What came back.
        detail: String,
    },
    /// The initial records could not be made.
    #[error("prepare the pool")]
    Seed(#[source] crate::Failure),
}

impl Error {
    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
