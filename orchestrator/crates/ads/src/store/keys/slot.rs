//! One key slot: a small JSON document, written once.
//!
//! Every byte of it is proven: `check` covers all values, and a slot is read only where its bytes are those that this
//! program would write for these values.

use super::access::{
    Access, KdfCost, NewAccess, SALT_SIZE, WRAPPED_SIZE, decrypt_as, encrypt_to, unwrap, wrap,
};
use super::stem;
use crate::Error;
use crate::backend::KEYS;
use crate::store::config::{parse_hex, to_hex};
use crate::store::time::{sort_key, timestamp};
use ring::rand::{SecureRandom, SystemRandom};
use seal::MasterKey;
use serde::{Deserialize, Serialize};
use std::time::SystemTime;
use uuid::Uuid;

const VERSION: u32 = 1;
/// Largest slot that is read; one is less than a KiB.
pub(super) const MAX_SLOT_SIZE: u64 = 16 << 10;
/// Longest label, in bytes.
const MAX_LABEL: usize = 200;
/// Largest file of age that is read: one for a single recipient is about 250 bytes.
const MAX_AGE_FILE: usize = 4 << 10;

/// Who can open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySlot {
    /// Its own id, and its name.
    pub id: Uuid,
    /// The store's id.
    pub(super) store: Uuid,
    /// When it was made, as [`timestamp`] gives it.
    pub created: String,
    /// In somebody's words.
    pub label: String,
    /// For whom, and what it takes.
    pub kind: SlotKind,
    wrapped: Wrapped,
}

/// For whom a slot is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotKind {
    /// Who knows a passphrase, at this cost.
    Passphrase {
        /// Argon2id's parameters.
        cost: KdfCost,
    },
    /// Who has the identity of a recipient of age.
    Recipient {
        /// Its public key.
        recipient: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wrapped {
    Passphrase { salt: [u8; SALT_SIZE], sealed: [u8; WRAPPED_SIZE] },
    Recipient { sealed: Vec<u8> },
}

/// The members as they are written, in this order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    id: Uuid,
    store: Uuid,
    created: String,
    label: String,
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory_kib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lanes: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipient: Option<String>,
    sealed: String,
    check: String,
}

/// Read first, so that a later version is named even where its other members differ.
#[derive(Deserialize)]
struct VersionOf {
    version: u32,
}

const PASSPHRASE: &str = "passphrase";
const RECIPIENT: &str = "recipient";

impl KeySlot {
    /// Wraps a store's master key for somebody.
    pub(super) fn new(store: Uuid, master: &MasterKey, new: &NewAccess, label: &str) -> Result<Self, Error> {
        let refused = |reason: String| Err(Error::KeyRefused { reason });
        if label.len() > MAX_LABEL || label.chars().any(char::is_control) {
            return refused(format!("a label has at most {MAX_LABEL} bytes, and no line breaks"));
        }
        let id = Uuid::new_v4();
        let (kind, wrapped) = match new {
            NewAccess::Passphrase { passphrase, cost } => {
                if let Some(fault) = passphrase.fault().or(cost.fault()) {
                    return refused(fault);
                }
                let mut salt = [0; SALT_SIZE];
                SystemRandom::new()
                    .fill(&mut salt)
                    .map_err(|_| Error::Worker { reason: "the system has no randomness".into() })?;
                let sealed = wrap(passphrase, *cost, &salt, &about(store, id), master)?;
                (SlotKind::Passphrase { cost: *cost }, Wrapped::Passphrase { salt, sealed })
            }
            NewAccess::Recipient(recipient) => {
                let sealed = encrypt_to(recipient, master)?;
                (SlotKind::Recipient { recipient: recipient.clone() }, Wrapped::Recipient { sealed })
            }
        };
        let created = timestamp(SystemTime::now());
        Ok(Self { id, store, created, label: label.to_owned(), kind, wrapped })
    }

    /// The master key, where this opens the slot.
    pub(super) fn open(&self, store: Uuid, access: &Access) -> Result<Option<MasterKey>, Error> {
        match (&self.kind, &self.wrapped, access) {
            (
                SlotKind::Passphrase { cost },
                Wrapped::Passphrase { salt, sealed },
                Access::Passphrase(passphrase),
            ) => unwrap(passphrase, *cost, salt, &about(store, self.id), sealed),
            (_, Wrapped::Recipient { sealed }, Access::Identities(identities)) => {
                Ok(decrypt_as(identities, sealed))
            }
            _ => Ok(None),
        }
    }

    /// Reads and checks a slot; the error says what is wrong with it.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let version: VersionOf = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if version.version != VERSION {
            return Err(format!("version {} is not known to this program; use a newer one", version.version));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if document.check != document.expected_check() {
            return Err("its check does not match".into());
        }
        let slot = document.slot()?;
        match slot.to_bytes() == bytes {
            true => Ok(slot),
            false => Err("it is not as it was written, although its values are".into()),
        }
    }

    /// The bytes of the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut document = Document {
            version: VERSION,
            id: self.id,
            store: self.store,
            created: self.created.clone(),
            label: self.label.clone(),
            kind: String::new(),
            memory_kib: None,
            passes: None,
            lanes: None,
            salt: None,
            recipient: None,
            sealed: String::new(),
            check: String::new(),
        };
        match &self.kind {
            SlotKind::Passphrase { cost } => {
                document.kind = PASSPHRASE.into();
                document.memory_kib = Some(cost.memory_kib);
                document.passes = Some(cost.passes);
                document.lanes = Some(cost.lanes);
            }
            SlotKind::Recipient { recipient } => {
                document.kind = RECIPIENT.into();
                document.recipient = Some(recipient.clone());
            }
        }
        match &self.wrapped {
            Wrapped::Passphrase { salt, sealed } => {
                document.salt = Some(to_hex(salt));
                document.sealed = to_hex(sealed);
            }
            Wrapped::Recipient { sealed } => document.sealed = to_hex(sealed),
        }
        document.check = document.expected_check();
        let mut bytes = serde_json::to_vec_pretty(&document).expect("strings and numbers are encodable");
        bytes.push(b'\n');
        bytes
    }
}

impl Document {
    fn slot(self) -> Result<KeySlot, String> {
        if sort_key(&self.created).is_none() {
            return Err("its time is none".into());
        }
        let (kind, wrapped) = match (&*self.kind, self.memory_kib, self.passes, self.lanes, self.recipient) {
            (PASSPHRASE, Some(memory_kib), Some(passes), Some(lanes), None) => {
                let cost = KdfCost { memory_kib, passes, lanes };
                if let Some(fault) = cost.fault() {
                    return Err(fault);
                }
                let salt = self.salt.as_deref().and_then(parse_hex).ok_or("its salt is not 32 hex digits")?;
                let sealed = parse_hex(&self.sealed).ok_or("its sealed key is not 96 hex digits")?;
                (SlotKind::Passphrase { cost }, Wrapped::Passphrase { salt, sealed })
            }
            (RECIPIENT, None, None, None, Some(recipient)) if self.salt.is_none() => {
                let sealed = parse_hex_bytes(&self.sealed).ok_or("its sealed key is no file of age")?;
                (SlotKind::Recipient { recipient }, Wrapped::Recipient { sealed })
            }
            _ => return Err(format!("its members are not those of a slot of the kind '{}'", self.kind)),
        };
        let Self { id, store, created, label, .. } = self;
        Ok(KeySlot { id, store, created, label, kind, wrapped })
    }

    fn expected_check(&self) -> String {
        let number = |value: Option<u32>| value.map(|value| value.to_string());
        let values = [
            Some(self.version.to_string()),
            Some(self.id.to_string()),
            Some(self.store.to_string()),
            Some(self.created.clone()),
            Some(self.label.clone()),
            Some(self.kind.clone()),
            number(self.memory_kib),
            number(self.passes),
            number(self.lanes),
            self.salt.clone(),
            self.recipient.clone(),
            Some(self.sealed.clone()),
        ];
        let text: String = values.into_iter().flatten().map(|value| value + "\n").collect();
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// What is authenticated with a wrapped key: a slot of another store, or under another name, does not open.
fn about(store: Uuid, id: Uuid) -> Vec<u8> {
    format!("abd key slot\n{store}\n{id}\n").into_bytes()
}

pub(super) fn slot_key(id: Uuid) -> String {
    format!("{KEYS}{id}.json")
}

/// The slot that a key names.
pub(super) fn named_by(key: &str) -> Option<Uuid> {
    let id: Uuid = stem(key)?.parse().ok()?;
    (slot_key(id) == key).then_some(id)
}

fn parse_hex_bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || digits.len() > 2 * MAX_AGE_FILE {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| parse_hex::<1>(std::str::from_utf8(pair).ok()?).map(|[byte]| byte))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::keys::Passphrase;

    /// Made with Python's `argon2-cffi`, `cryptography` and `blake3` packages.
    const FOREIGN: &[u8] = include_bytes!("../../../tests/fixtures/key-slot-version-1.json");

    fn access(text: &str) -> Access {
        Access::Passphrase(Passphrase::new(text.to_owned()))
    }

    fn text() -> String {
        String::from_utf8(FOREIGN.to_vec()).expect("JSON is text")
    }

    /// Another document whose check is right.
    fn with(change: impl FnOnce(&mut Document)) -> Vec<u8> {
        let mut document: Document = serde_json::from_slice(FOREIGN).expect("a slot");
        change(&mut document);
        document.check = document.expected_check();
        let mut bytes = serde_json::to_vec_pretty(&document).expect("encodable");
        bytes.push(b'\n');
        bytes
    }

    #[test]
    fn a_slot_that_another_program_made_opens_with_its_passphrase_and_no_other() {
        let slot = KeySlot::from_bytes(FOREIGN).expect("a slot");
        assert_eq!(slot.to_bytes(), FOREIGN);
        let open = |text: &str| slot.open(slot.store, &access(text)).expect("Argon2id runs");
        assert_eq!(open("Grüße aus dem Tresor"), Some(MasterKey::new([7; 32])));
        assert_eq!(open("Grüsse aus dem Tresor"), None);
        assert_eq!(slot.open(Uuid::nil(), &access("Grüße aus dem Tresor")).expect("runs"), None);
    }

    #[test]
    fn every_flipped_byte_of_a_slot_is_found_without_its_passphrase() {
        for at in 0..FOREIGN.len() {
            for flip in [1, 0x20, 0x80] {
                let mut bad = FOREIGN.to_vec();
                bad[at] ^= flip;
                assert!(KeySlot::from_bytes(&bad).is_err(), "byte {at} ^ {flip}");
            }
            assert!(KeySlot::from_bytes(&FOREIGN[..at]).is_err());
        }
    }

    #[test]
    fn a_slot_that_would_cost_the_machine_is_refused_before_it_does() {
        let costs: [fn(&mut Document); 7] = [
            |slot| slot.memory_kib = Some(u32::MAX),
            |slot| slot.memory_kib = Some((1 << 20) + 1),
            |slot| slot.memory_kib = Some(0),
            |slot| slot.passes = Some(33),
            |slot| slot.passes = Some(0),
            |slot| slot.lanes = Some(17),
            |slot| slot.lanes = Some(0),
        ];
        for change in costs {
            let reason = KeySlot::from_bytes(&with(change)).expect_err("too much or nothing");
            assert!(reason.contains("no cost that this program pays"), "{reason}");
        }
        assert!(KeySlot::from_bytes(&with(|slot| slot.lanes = None)).is_err());
        assert!(KeySlot::from_bytes(&with(|slot| slot.kind = "tpm".into())).is_err());
        let later = text().replace("\"version\": 1", "\"version\": 2");
        let reason = KeySlot::from_bytes(later.as_bytes()).expect_err("a later version");
        assert!(reason.contains("use a newer one"), "{reason}");
    }
}
