//! Identity: keyed BLAKE3 of plain bytes, one key per kind of object.
//!
//! The kinds have keys of their own so that a block whose content looks like a tree node can never be taken
//! for one, whatever a guest writes to its disk.

use crate::MasterKey;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// Key derivation contexts. They are part of the format and never change.
const BLOCK_CONTEXT: &str = "abd 2026-11 block id";
const NODE_CONTEXT: &str = "abd 2026-11 tree node id";
const TREE_CONTEXT: &str = "abd 2026-11 tree id";

/// Bytes of every id.
const ID_SIZE: usize = 32;

/// The store's id key: who does not have it cannot tell from an id what a block holds.
///
/// In an encrypted store the ids of nodes and trees come from the id key, which everybody has who has the store, and those
/// of blocks from the master key. Who has no master key can check all of a tree but its blocks.
#[derive(Clone, PartialEq, Eq)]
pub struct IdKey {
    /// None where the store is encrypted and locked.
    block: Option<Zeroizing<[u8; 32]>>,
    node: [u8; 32],
    tree: [u8; 32],
    master: Option<MasterKey>,
}

impl IdKey {
    /// Derives the keys of each kind from the 32 bytes of a store that is not encrypted.
    pub fn new(secret: &[u8; 32]) -> Self {
        let block = Some(Zeroizing::new(blake3::derive_key(BLOCK_CONTEXT, secret)));
        Self { block, ..Self::locked(secret) }
    }

    /// The keys of an encrypted store.
    pub fn encrypted(secret: &[u8; 32], master: MasterKey) -> Self {
        Self { block: Some(master.block_id_key()), master: Some(master), ..Self::locked(secret) }
    }

    /// What is known of the keys of an encrypted store without its master key.
    pub fn locked(secret: &[u8; 32]) -> Self {
        Self {
            block: None,
            node: blake3::derive_key(NODE_CONTEXT, secret),
            tree: blake3::derive_key(TREE_CONTEXT, secret),
            master: None,
        }
    }

    /// Whether blocks can be named, and so proven.
    pub fn is_locked(&self) -> bool {
        self.block.is_none()
    }

    /// The key that blocks are encrypted with; none of a store that is not encrypted, or locked.
    pub fn master(&self) -> Option<&MasterKey> {
        self.master.as_ref()
    }

    /// Id of a block's plain bytes.
    ///
    /// # Panics
    /// Where it [is locked](Self::is_locked). What is read is proven with [`Opener`](crate::Opener), which never panics.
    pub fn block_id(&self, plain: &[u8]) -> BlockId {
        let key = self.block.as_deref().expect("who makes blocks has the key");
        BlockId(*blake3::keyed_hash(key, plain).as_bytes())
    }

    /// Id of a tree node's bytes.
    pub fn node_id(&self, bytes: &[u8]) -> NodeId {
        NodeId(*blake3::keyed_hash(&self.node, bytes).as_bytes())
    }

    /// Id of a whole disk: its size and its root node, absent = 32 zero bytes.
    pub(crate) fn tree_id(&self, size: u64, root: Option<NodeId>) -> TreeId {
        let mut bytes = [0; 8 + ID_SIZE];
        bytes[..8].copy_from_slice(&size.to_le_bytes());
        if let Some(root) = root {
            bytes[8..].copy_from_slice(&root.0);
        }
        TreeId(*blake3::keyed_hash(&self.tree, &bytes).as_bytes())
    }
}

/// Never shows the key.
impl fmt::Debug for IdKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IdKey(..)")
    }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub(crate) [u8; ID_SIZE]);

        impl $name {
            /// Wraps 32 bytes.
            pub const fn from_bytes(bytes: [u8; ID_SIZE]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes.
            pub const fn as_bytes(&self) -> &[u8; ID_SIZE] {
                &self.0
            }
        }

        /// 64 lower-case hexadecimal digits.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = BadId;

            fn from_str(text: &str) -> Result<Self, BadId> {
                parse_hex(text).map(Self).ok_or_else(|| BadId(text.chars().take(80).collect()))
            }
        }

        /// Hexadecimal where a person may read it, 32 raw bytes elsewhere.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; ID_SIZE]>::deserialize(deserializer).map(Self)
                }
            }
        }
    };
}

id_type! {
    /// Keyed BLAKE3-256 of a block's plain bytes. Zero blocks have none.
    BlockId
}
id_type! {
    /// Keyed BLAKE3-256 of a tree node's bytes.
    NodeId
}
id_type! {
    /// 32 bytes that prove a whole disk: its size and every byte.
    TreeId
}
id_type! {
    /// BLAKE3-256 (no key) of all bytes of a pack; its name.
    PackId
}

/// Text that is not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an id of 64 hexadecimal digits")]
pub struct BadId(String);

impl PackId {
    /// Id of a pack's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

fn parse_hex(text: &str) -> Option<[u8; ID_SIZE]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * ID_SIZE {
        return None;
    }
    let mut bytes = [0; ID_SIZE];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_ids_never_meet() {
        let key = IdKey::new(&[7; 32]);
        let bytes = [1; 8192];
        assert_ne!(key.block_id(&bytes).as_bytes(), key.node_id(&bytes).as_bytes());
        assert_ne!(IdKey::new(&[8; 32]).block_id(&bytes), key.block_id(&bytes));
        assert_ne!(key.tree_id(1, None), key.tree_id(2, None));
    }

    #[test]
    fn blocks_of_an_encrypted_store_are_named_with_its_secret_and_the_rest_is_not() {
        let (public, master) = ([7; 32], MasterKey::new([8; 32]));
        let (clear, locked) = (IdKey::new(&public), IdKey::locked(&public));
        let open = IdKey::encrypted(&public, master.clone());
        assert!(locked.is_locked() && !open.is_locked() && !clear.is_locked());
        assert_eq!(
            (open.node_id(b"n"), open.tree_id(1, None)),
            (locked.node_id(b"n"), locked.tree_id(1, None))
        );
        assert_eq!(
            (open.node_id(b"n"), open.tree_id(1, None)),
            (clear.node_id(b"n"), clear.tree_id(1, None))
        );
        assert_ne!(open.block_id(b"b"), clear.block_id(b"b"));
        assert_ne!(open.block_id(b"b"), IdKey::encrypted(&public, MasterKey::new([9; 32])).block_id(b"b"));
        assert_eq!(open.block_id(b"b"), IdKey::encrypted(&[1; 32], master).block_id(b"b"));
        assert_eq!(format!("{open:?}"), "IdKey(..)");
    }

    /// Pins the derivation: these values were computed with Python's `blake3` package.
    #[test]
    fn ids_are_those_of_an_independent_blake3() {
        let key = IdKey::new(&[7; 32]);
        assert_eq!(key.block_id(b"block").to_string(), GOLDEN_BLOCK);
        assert_eq!(key.node_id(b"node").to_string(), GOLDEN_NODE);
        assert_eq!(key.tree_id(65536, None).to_string(), GOLDEN_TREE);
    }
    const GOLDEN_BLOCK: &str = "97fa91063906c80f774f6d8fcdbcde6d1dfd4e0468f999b9a727be9f16e03483";
    const GOLDEN_NODE: &str = "ce42f88dc8842357fd837fd2b4c345d7cd8d785886f9502d16c71015616cfc87";
    const GOLDEN_TREE: &str = "6c157b11f9240495ebcb83422acccf061c28b0a086be9c0696b121113a86454e";

    #[test]
    fn hexadecimal_round_trips_and_bad_text_is_named() {
        let id = PackId::of(b"pack");
        assert_eq!(id.to_string().parse(), Ok(id));
        let error = "zz".parse::<PackId>().expect_err("two letters");
        assert!(error.to_string().contains("'zz'"));
        assert!("é".repeat(32).parse::<PackId>().is_err());
    }
}
