//! Everything about stored bytes that the appliance and the store must agree on: identity, compression,
//! encryption, packs and trees. The layouts are written down in `FORMAT.md` beside this crate.
//!
//! Owns: block ids, sealed blocks, packs, tree nodes, the keys of an encrypted store. Promises: what [`Opener::open`] returns has the id it
//! was asked for; decoding never panics and never allocates more than a named limit, whatever the bytes.
//! Never: touches a file, a socket or a clock.

#![forbid(unsafe_code)]

mod codec;
mod error;
mod id;
mod keytable;
mod pack;
mod secret;
mod tree;

pub use codec::{Codec, DEFAULT_LEVEL, Opener, SEAL_ROOM, Sealed, Sealer, is_zero};
pub use error::Error;
pub use id::{BlockId, IdKey, NodeId, PackId, TreeId};
pub use keytable::{KeyTable, KeyTablePlace, SEGMENT_SIZE};
pub use pack::{
    Entry, HEADER_SIZE, MAX_PACK_SIZE, Pack, PackIndex, PackKind, PackWriter, TRAILER_ENTRY_SIZE,
    TRAILER_FOOTER_SIZE,
};
pub use secret::{Cipher, KEY_SALT_SIZE, Lock, MasterKey, PackSeal, TAG_SIZE};
pub use tree::{
    FAN_OUT, MAX_LEVELS, NODE_SIZE, Node, NodeSource, Tree, TreeBuilder, TreeError, levels, walk_leaves,
};
