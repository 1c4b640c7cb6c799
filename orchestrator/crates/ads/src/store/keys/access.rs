//! What opens a store: passphrases, identities of age, recovery kits; and what wraps its key for them.

use super::kit::RecoveryKit;
use super::slot::SlotKind;
use crate::Error;
use age::x25519::{Identity, Recipient};
use argon2::{Algorithm, Argon2, Params, Version};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use seal::MasterKey;
use std::fmt;
use zeroize::Zeroizing;

/// Fewest characters of a new passphrase: fewer are guessed at once, whatever each guess costs.
const SHORTEST_PASSPHRASE: usize = 8;
/// Most bytes of one.
const LONGEST_PASSPHRASE: usize = 1024;
/// Bytes of a wrapped key: the key and a tag.
pub(super) const WRAPPED_SIZE: usize = 32 + 16;
/// Bytes of an Argon2 salt.
pub(super) const SALT_SIZE: usize = 16;

/// Text that opens a store. Wiped from memory when it is dropped, and never shown.
#[derive(Clone)]
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// The text as it was typed: nothing is trimmed or normalised.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// What is wrong with it as a new one.
    pub fn fault(&self) -> Option<String> {
        let (chars, bytes) = (self.0.chars().count(), self.0.len());
        if chars < SHORTEST_PASSPHRASE {
            return Some(format!("a passphrase needs at least {SHORTEST_PASSPHRASE} characters"));
        }
        (bytes > LONGEST_PASSPHRASE)
            .then(|| format!("the passphrase has {bytes} bytes, {LONGEST_PASSPHRASE} are the most"))
    }
}

/// Never shows it.
impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(..)")
    }
}

/// What each guess of a passphrase costs, as Argon2id counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfCost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl KdfCost {
    /// Most that is spent on a slot, whoever wrote it: what is over it is refused before anything is allocated.
    pub const MOST: Self = Self { memory_kib: 1 << 20, passes: 32, lanes: 16 };

    /// What is wrong with it.
    pub(super) fn fault(&self) -> Option<String> {
        let Self { memory_kib, passes, lanes } = *self;
        let most = Self::MOST;
        let fits = (1..=most.passes).contains(&passes)
            && (1..=most.lanes).contains(&lanes)
            && memory_kib >= 8 * lanes
            && memory_kib <= most.memory_kib;
        (!fits).then(|| {
            format!("{memory_kib} KiB, {passes} passes and {lanes} lanes are no cost that this program pays")
        })
    }
}

/// RFC 9106's second recommendation, for where memory is short: a control domain has little.
impl Default for KdfCost {
    fn default() -> Self {
        Self { memory_kib: 64 << 10, passes: 3, lanes: 4 }
    }
}

/// What somebody has to open a store with.
#[derive(Debug)]
pub enum Access {
    /// A passphrase.
    Passphrase(Passphrase),
    /// Identities of age; one of them may be a recipient.
    Identities(Identities),
    /// The key itself, as printed.
    Kit(RecoveryKit),
}

/// Secret keys of age.
pub struct Identities(Vec<Identity>);

/// Never shows them.
impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Access {
    /// From the text of a file as `age-keygen` writes it: one identity a line, and comments.
    ///
    /// # Errors
    /// [`Error::KeyRefused`] where it has no identity, or a line that is none.
    pub fn identities(text: &str) -> Result<Self, Error> {
        let refused = |reason: String| Error::KeyRefused { reason };
        let mut found = Vec::new();
        for (line, number) in text.lines().zip(1..) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // Without the line: it may be a secret with a slip in it.
            let identity = line.parse().map_err(|_| {
                refused(format!(
                    "line {number} of the identity file is no identity of age (AGE-SECRET-KEY-1...)"
                ))
            })?;
            found.push(identity);
        }
        match found.is_empty() {
            true => Err(refused("the identity file has no identity in it".into())),
            false => Ok(Self::Identities(Identities(found))),
        }
    }

    /// From the text of a recovery kit, as printed or typed.
    ///
    /// # Errors
    /// [`Error::KeyRefused`] naming the line that has a slip in it.
    pub fn kit(text: &str) -> Result<Self, Error> {
        RecoveryKit::parse(text).map(Self::Kit).map_err(|reason| Error::KeyRefused { reason })
    }

    /// For people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::Identities(_) => "identity",
            Self::Kit(_) => "recovery kit",
        }
    }

    /// Whether it may open a slot of this kind.
    pub(super) fn is_for(&self, kind: &SlotKind) -> bool {
        matches!(
            (self, kind),
            (Self::Passphrase(_), SlotKind::Passphrase { .. })
                | (Self::Identities(_), SlotKind::Recipient { .. })
        )
    }
}

/// What shall open a store.
#[derive(Clone, Debug)]
pub enum NewAccess {
    /// A passphrase, and what guessing it costs.
    Passphrase {
        /// It.
        passphrase: Passphrase,
        /// Argon2id's parameters.
        cost: KdfCost,
    },
    /// A recipient of age, `age1...`.
    Recipient(String),
}

/// Wraps a master key with a passphrase; `about` is authenticated with it.
pub(super) fn wrap(
    passphrase: &Passphrase,
    cost: KdfCost,
    salt: &[u8; SALT_SIZE],
    about: &[u8],
    master: &MasterKey,
) -> Result<[u8; WRAPPED_SIZE], Error> {
    let key = stretched(passphrase, cost, salt)?;
    let mut bytes = [0; WRAPPED_SIZE];
    bytes[..32].copy_from_slice(master.as_bytes());
    let (plain, tag) = bytes.split_at_mut(32);
    let sealed = key.seal_in_place_separate_tag(only_nonce(), Aad::from(about), plain);
    tag.copy_from_slice(sealed.expect("32 bytes are below the cipher's limit").as_ref());
    Ok(bytes)
}

/// `None` where it is the wrong passphrase, or the bytes are not those that were wrapped.
pub(super) fn unwrap(
    passphrase: &Passphrase,
    cost: KdfCost,
    salt: &[u8; SALT_SIZE],
    about: &[u8],
    wrapped: &[u8; WRAPPED_SIZE],
) -> Result<Option<MasterKey>, Error> {
    let key = stretched(passphrase, cost, salt)?;
    let mut bytes = Zeroizing::new(*wrapped);
    let opened = key.open_in_place(only_nonce(), Aad::from(about), &mut *bytes);
    Ok(opened.ok().and_then(|plain| (&*plain).try_into().ok()).map(MasterKey::new))
}

/// The key that a passphrase gives. It meets one nonce and wraps one key: each slot has a salt of its own.
fn stretched(passphrase: &Passphrase, cost: KdfCost, salt: &[u8; SALT_SIZE]) -> Result<LessSafeKey, Error> {
    let failed = |error: argon2::Error| Error::Worker { reason: format!("Argon2id: {error}") };
    let KdfCost { memory_kib, passes, lanes } = cost;
    let params = Params::new(memory_kib, passes, lanes, Some(32)).map_err(failed)?;
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.0.as_bytes(), salt, &mut *key)
        .map_err(failed)?;
    Ok(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &*key).expect("it takes 32 bytes")))
}

fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

/// Encrypts a master key to a recipient, as a binary file of age.
pub(super) fn encrypt_to(recipient: &str, master: &MasterKey) -> Result<Vec<u8>, Error> {
    let refused = |reason: String| Error::KeyRefused { reason };
    let shown: String = recipient.chars().take(80).collect();
    let to: Recipient =
        recipient.parse().map_err(|error| refused(format!("'{shown}' is no recipient of age: {error}")))?;
    age::encrypt(&to, master.as_bytes())
        .map_err(|error| refused(format!("nothing can be encrypted to '{shown}': {error}")))
}

/// `None` where it is encrypted to nobody of these.
pub(super) fn decrypt_as(identities: &Identities, wrapped: &[u8]) -> Option<MasterKey> {
    identities.0.iter().find_map(|identity| {
        let plain = Zeroizing::new(age::decrypt(identity, wrapped).ok()?);
        plain.as_slice().try_into().ok().map(MasterKey::new)
    })
}
