//! XenStore: the hypervisor's small key-value tree, the only channel that works without a network.
//!
//! Owns: one implementation of the wire protocol over any byte stream; the two streams there are (Xen's device, the
//! lab's virtio port) are in [`transport`].
//! Promises: a request ends, with an answer or an error, within its time limit; a watch event is never lost, though
//! several for one watch may fold into one.
//! Never: interprets values; retries a write that may have happened.
//!
//! Paths without a leading `/` are relative to the domain's own home.

mod client;
mod error;
pub mod transport;
pub mod wire;

pub use client::{EndOfFile, Event, Options, Transaction, Watch, XenStore};
pub use error::Error;

/// Our own limit for a value: the toolstack's default quota is 2048, see the public XenStore documents.
pub const VALUE_MAX: usize = 1024;

/// The longest prefix of `value` that fits [`VALUE_MAX`] and does not cut a character.
pub fn cut_to_value(value: &str) -> &str {
    if value.len() <= VALUE_MAX {
        return value;
    }
    let end = (0..=VALUE_MAX).rev().find(|&at| value.is_char_boundary(at)).unwrap_or(0);
    &value[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_keeps_whole_characters() {
        assert_eq!(cut_to_value("short"), "short");
        let exact = "x".repeat(VALUE_MAX);
        assert_eq!(cut_to_value(&exact), exact);
        let umlauts = "ü".repeat(VALUE_MAX);
        assert_eq!(cut_to_value(&umlauts).len(), VALUE_MAX);
        let odd = format!("x{umlauts}");
        assert_eq!(cut_to_value(&odd).len(), VALUE_MAX - 1);
    }
}
