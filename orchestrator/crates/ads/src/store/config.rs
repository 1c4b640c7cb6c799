//! `config.json`: what the store is.
//!
//! The id key is the one value in a store that nothing else could prove: with a wrong one every block looks
//! damaged. `check` is there so that a damaged config is told apart from damaged blocks. In an encrypted store
//! `master_check` does the same for the master key, which stands in no object in the clear.

use crate::Error;
use crate::backend::{Backend, CONFIG};
use ring::rand::{SecureRandom, SystemRandom};
use seal::MasterKey;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use uuid::Uuid;

const FORMAT: &str = "abd store";
/// The version of the format that this program writes, and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;
const NOT_ENCRYPTED: &str = "none";
/// Blocks and restore points are encrypted as FORMAT.md says.
const ENCRYPTED: &str = "aead-1";
/// Largest config that is read; one is about 300 bytes.
pub(super) const MAX_CONFIG_SIZE: u64 = 64 << 10;

/// The checked config.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) id: Uuid,
    pub(crate) id_key: [u8; 32],
    /// What the master key of an encrypted store is known by.
    pub(crate) master_check: Option<[u8; 32]>,
}

/// The members as they are written, in this order.
#[derive(Serialize, Deserialize)]
struct Document {
    format: String,
    version: u32,
    id: String,
    id_key: String,
    encryption: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    master_check: Option<String>,
    check: String,
}

/// Read first, so that a later version is named even where its other members differ.
#[derive(Deserialize)]
struct Version {
    format: String,
    version: u32,
}

impl Config {
    /// A config with a random id and id key; of an encrypted store where there is a master key.
    pub(crate) fn generate(master: Option<&MasterKey>) -> Result<Self, Error> {
        let mut id_key = [0; 32];
        SystemRandom::new()
            .fill(&mut id_key)
            .map_err(|_| Error::Worker { reason: "the system has no randomness".into() })?;
        Ok(Self { id: Uuid::new_v4(), id_key, master_check: master.map(MasterKey::check) })
    }

    /// Reads and checks the config of a store.
    pub(crate) fn read(backend: &dyn Backend) -> Result<Self, Error> {
        let path = backend.place(CONFIG);
        let damaged = |reason: String| Error::Config { path: path.clone(), reason };
        let unsupported = |what: String| Error::Unsupported { path: path.clone(), what };
        let bytes = backend.get(CONFIG, MAX_CONFIG_SIZE).map_err(|error| match error.is_not_found() {
            true => Error::NotAStore { dir: backend.root() },
            false => error,
        })?;
        let version: Version =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("it does not parse: {error}")))?;
        if version.format != FORMAT {
            return Err(damaged(format!("its format is '{}', not '{FORMAT}'", version.format)));
        }
        if version.version != FORMAT_VERSION {
            return Err(unsupported(format!("version {}", version.version)));
        }
        let document: Document =
            serde_json::from_slice(&bytes).map_err(|error| damaged(format!("it does not parse: {error}")))?;
        if ![NOT_ENCRYPTED, ENCRYPTED].contains(&&*document.encryption) {
            return Err(unsupported(format!("encryption '{}'", document.encryption)));
        }
        if document.check != document.expected_check() {
            return Err(damaged("its check does not match; restore the file from a copy".into()));
        }
        let id = document.id.parse().map_err(|_| damaged("its id is no uuid".into()))?;
        let id_key =
            parse_hex(&document.id_key).ok_or_else(|| damaged("its id_key is not 64 hex digits".into()))?;
        let master_check = match (&*document.encryption, &document.master_check) {
            (NOT_ENCRYPTED, None) => None,
            (ENCRYPTED, Some(hex)) => {
                Some(parse_hex(hex).ok_or_else(|| damaged("its master_check is not 64 hex digits".into()))?)
            }
            _ => return Err(damaged("its master_check does not go with its encryption".into())),
        };
        Ok(Self { id, id_key, master_check })
    }

    /// The bytes of the file.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut document = Document {
            format: FORMAT.into(),
            version: FORMAT_VERSION,
            id: self.id.to_string(),
            id_key: to_hex(&self.id_key),
            encryption: if self.master_check.is_some() { ENCRYPTED } else { NOT_ENCRYPTED }.into(),
            master_check: self.master_check.as_ref().map(|check| to_hex(check)),
            check: String::new(),
        };
        document.check = document.expected_check();
        let mut bytes = serde_json::to_vec_pretty(&document).expect("strings and numbers are encodable");
        bytes.push(b'\n');
        bytes
    }
}

impl Document {
    fn expected_check(&self) -> String {
        let mut text =
            format!("{}\n{}\n{}\n{}\n{}\n", self.format, self.version, self.id, self.id_key, self.encryption);
        if let Some(check) = &self.master_check {
            text.push_str(check);
            text.push('\n');
        }
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// So many bytes, from twice as many hexadecimal digits.
pub(super) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}
