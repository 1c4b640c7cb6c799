//! What the two sides of `abd://` say to each other; `SERVE.md` is the description for strangers.

use pin::Fingerprint;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Every path begins with it. The number is the version of the protocol.
pub(crate) const ROOT: &str = "/abd/1/";
/// What this client is, and what it may do.
pub(crate) const ABOUT: &str = "about";
/// Below it: the objects, by key.
pub(crate) const OBJECTS: &str = "objects/";
/// Below it: their sizes.
pub(crate) const SIZES: &str = "sizes/";
/// Below it: lists, by prefix.
pub(crate) const LISTS: &str = "lists/";

/// Most bytes of an object that is taken or given: a pack's.
pub(crate) const MAX_OBJECT: u64 = seal::MAX_PACK_SIZE as u64;
/// Most bytes of a failure's document.
pub(crate) const MAX_FAILURE: usize = 16 << 10;

/// What a client may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Reads, restores and verifies. Leaves nothing in the store but a lease while it does so.
    Reader,
    /// Backs up: adds packs, restore points and pins, and reads. Takes nothing away.
    Orchestrator,
    /// Removes restore points and pins as well.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Reader, Self::Orchestrator, Self::Admin];

    fn word(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Orchestrator => "orchestrator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|role| role.word() == text);
        found.ok_or_else(|| "write reader, orchestrator or admin".into())
    }
}

/// Who has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What the server's admin calls it.
    pub name: String,
    /// Its key.
    pub key: Fingerprint,
    /// What it may do.
    pub role: Role,
}

/// What a server says of itself to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What the server's admin calls this client.
    pub client: String,
    /// What it may do.
    pub role: Role,
    /// Nothing is removed through the network, by nobody.
    pub append_only: bool,
    /// Restore points younger than so many days are not removed.
    pub keep_at_least_days: u32,
}

/// Why a call was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Stable, for programs.
    pub(crate) code: String,
    /// For people.
    pub(crate) message: String,
}
