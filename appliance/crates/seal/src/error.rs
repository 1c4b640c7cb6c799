//! Why bytes from a store or a wire were refused.

use crate::{BlockId, NodeId, PackId};

/// Sealed bytes that are not what they claim to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes open to something with another id.
    #[error("block {expected} is damaged: its bytes have the id {found}")]
    BlockId {
        /// The id that was asked for.
        expected: BlockId,
        /// The id of the bytes that were found.
        found: BlockId,
    },
    /// A node's bytes have another id.
    #[error("tree node {expected} is damaged: its bytes have the id {found}")]
    NodeId {
        /// The id that was asked for.
        expected: NodeId,
        /// The id of the bytes that were found.
        found: NodeId,
    },
    /// A pack's bytes have another id.
    #[error("pack {expected} is damaged: its bytes have the id {found}")]
    PackId {
        /// The id that was asked for.
        expected: PackId,
        /// The id of the bytes that were found.
        found: PackId,
    },
    /// A sealed block that does not decompress to its size.
    #[error("sealed block does not open: {reason}")]
    Sealed {
        /// What zstd or the size check said.
        reason: String,
    },
    /// A codec number that this version does not know.
    #[error("codec {code} is not known to this version; a newer one may read it")]
    Codec {
        /// The number found.
        code: u8,
    },
    /// Bytes that are no pack, or a damaged one.
    #[error("not a whole pack: {reason}")]
    Pack {
        /// Which check failed.
        reason: String,
    },
    /// A tree node of the wrong size.
    #[error("tree node has {found} bytes instead of {expected}")]
    NodeSize {
        /// Size of every node.
        expected: usize,
        /// Size found.
        found: usize,
    },
    /// A cipher number that this version does not know.
    #[error("cipher {code} is not known to this version; a newer one may read it")]
    Cipher {
        /// The number found.
        code: u8,
    },
    /// Encrypted bytes, and no key to open them with.
    #[error("it is encrypted, and the store's key is not at hand")]
    Locked,
    /// Encrypted bytes that the key does not open: damaged, or moved to another block's place.
    #[error("it does not open with the store's key: its bytes are damaged, or another block's")]
    Forged,
    /// The system gave no random bytes.
    #[error("the system has no randomness")]
    NoRandomness,
}
