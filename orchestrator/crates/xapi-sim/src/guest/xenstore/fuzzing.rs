//! A door for `tests/fuzz`: a guest's requests, without a guest.

use std::time::SystemTime;

use super::server::Domain;
use super::tree::{DomainId, Tree};
use super::wire::{Decoder, PAYLOAD_MAX};

/// Serves everything that a guest wrote to its port, and reads the whole tree afterwards.
pub fn requests(bytes: &[u8]) {
    let mut domain = Domain::new(DomainId(1), Tree::new());
    let mut decoder = Decoder::default();
    let _ = domain.write_as_toolstack("vm-data/abd/version", "3");
    decoder.push(bytes);
    while let Ok(Some(message)) = decoder.next_message() {
        domain.handle(message, SystemTime::UNIX_EPOCH);
        while let Some(answer) = domain.pop() {
            assert!(answer.payload.len() <= PAYLOAD_MAX, "an answer that no guest could take");
            let _ = answer.to_bytes();
        }
    }
    let _ = domain.collect("");
}
