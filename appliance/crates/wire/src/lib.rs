//! What the appliance and the orchestrator say to each other: the order, its answers, and the questions to
//! the store. `PROTOCOL.md` beside this crate describes every exchange.
//!
//! Owns: the messages, their version, and their encoding (postcard bodies over HTTPS; names of XenStore
//! keys). Promises: decoding never panics, and a message of another protocol version is refused by name.
//! Never: opens a connection.

#![forbid(unsafe_code)]

pub mod account;
mod codes;
mod diagnosis;
mod keys;
mod messages;
mod order;
mod spent;

pub use account::{Account, Bound, PassAccount, Stage, StageAccount, Verdict};
pub use blocks::{Audit, BadRanges, ByteRange};
pub use codes::advice;
pub use diagnosis::*;
pub use keys::*;
pub use messages::*;
pub use order::*;
pub use spent::*;

use serde::{Deserialize, Serialize};

/// Room that an encoded message starts with: most are smaller, and none grows step by step from nothing.
const QUESTION_SIZE: usize = 4 << 10;

/// Version of everything in this crate. Both sides are shipped together; a difference means that the
/// template in the pool does not belong to the orchestrator, and is refused with that sentence.
pub const PROTOCOL_VERSION: u16 = 5;

/// Largest message body that either side reads: a batch of sealed blocks.
pub const MAX_MESSAGE_SIZE: usize = 8 << 20;

/// A body that is not the message it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not decodable.
    #[error("{message} cannot be read: {reason}")]
    Malformed {
        /// Which message was expected.
        message: &'static str,
        /// What postcard said.
        reason: String,
    },
}

/// Encodes a message body.
///
/// # Panics
/// Never for the messages of this crate: all of their types are encodable.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    encode_into(message, Vec::with_capacity(QUESTION_SIZE))
}

/// Encodes a large message body into memory of about its size, so that it is not copied again and again as it grows.
///
/// # Panics
/// As [`encode`].
pub fn encode_into<T: Serialize>(message: &T, memory: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(message, memory).expect("the messages of this crate have no unencodable types")
}

/// Decodes a message body, which the message may borrow from; every byte must be used.
///
/// # Errors
/// [`Error::Malformed`] naming the message type.
pub fn decode<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Error> {
    let malformed = |reason: String| Error::Malformed { message: std::any::type_name::<T>(), reason };
    let (message, rest) = postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes too many", rest.len())));
    }
    Ok(message)
}

/// The protocol version at the start of a [`Claim`] of any version, whatever follows it.
///
/// # Errors
/// [`Error::Malformed`] where not even that can be read.
pub fn claim_protocol(body: &[u8]) -> Result<u16, Error> {
    let malformed = |error: postcard::Error| Error::Malformed { message: "Claim", reason: error.to_string() };
    postcard::take_from_bytes(body).map(|(protocol, _)| protocol).map_err(malformed)
}
