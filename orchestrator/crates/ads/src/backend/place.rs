//! What a user writes for a store, and the backend it means.

use super::{AbdAddress, Backend, LocalBackend, RemoteBackend, S3Address, S3Backend};
use crate::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// What an address of object storage begins with.
const S3_SCHEME: &str = "s3://";
/// What an address of `abd serve` begins with.
const ABD_SCHEME: &str = "abd://";

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// A bucket of S3-compatible object storage, and a prefix in it.
    S3(S3Address),
    /// A store that `abd serve` offers on another machine.
    Served(AbdAddress),
}

impl Place {
    /// A path, or the text `s3://BUCKET[/PREFIX][?OPTIONS]` or `abd://HOST[:PORT]?key=KEY` where a path could stand.
    ///
    /// # Errors
    /// [`Error::Address`] where it begins like an address and is none.
    pub fn from_path(path: &Path) -> Result<Self, Error> {
        let text = path.to_str().unwrap_or_default();
        match (text.strip_prefix(S3_SCHEME), text.strip_prefix(ABD_SCHEME)) {
            (Some(rest), _) => rest.parse().map(Self::S3),
            (_, Some(rest)) => rest.parse().map(Self::Served),
            (None, None) => Ok(Self::Directory(path.to_owned())),
        }
    }

    /// Whether it is on another machine for certain, so that questions about a file system make no sense.
    pub fn is_remote(&self) -> bool {
        matches!(self, Self::S3(_) | Self::Served(_))
    }

    /// The backend. Contacts nobody.
    ///
    /// # Errors
    /// [`Error::Remote`] where credentials or certificates are missing or cannot be read; [`Error::KeyFile`] for this
    /// machine's key.
    pub fn backend(&self) -> Result<Arc<dyn Backend>, Error> {
        Ok(match self {
            Self::Directory(dir) => Arc::new(LocalBackend::new(dir)),
            Self::S3(address) => Arc::new(S3Backend::new(address)?),
            Self::Served(address) => Arc::new(RemoteBackend::new(address)?),
        })
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::from_path(Path::new(text))
    }
}

/// Without the options of an address.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(dir) => dir.display().fmt(f),
            Self::S3(address) => address.fmt(f),
            Self::Served(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_like_an_address_is_never_taken_for_a_directory() {
        assert_eq!("/srv/s3".parse::<Place>().expect("a path"), Place::Directory("/srv/s3".into()));
        assert!(matches!("s3:/x".parse::<Place>(), Ok(Place::Directory(_))));
        assert!("s3://bucket/a".parse::<Place>().expect("an address").is_remote());
        assert!("s3://".parse::<Place>().is_err());
        let served = format!("abd://vault?key={}", "ab".repeat(32)).parse::<Place>().expect("an address");
        assert!(served.is_remote() && served.to_string() == "abd://vault:7465");
        assert!("abd://vault".parse::<Place>().is_err());
    }
}
