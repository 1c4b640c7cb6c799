//! The XenStore wire protocol: packets to bytes and back. No I/O.
//!
//! Layout (public header `xen/include/public/io/xs_wire.h`): four little-endian u32, then the payload:
//!
//! ```text
//! 0  type     what is asked or answered, see [`Kind`]
//! 4  req_id   chosen by the client, repeated in the answer
//! 8  tx_id    transaction, 0 outside of one
//! 12 len      payload bytes, at most 4096
//! 16 payload  strings, most of them ended by a NUL
//! ```
//!
//! Never panics on bytes from the other side; a header that announces too much is an error, not an allocation.

/// Most bytes a payload may have (XENSTORE_PAYLOAD_MAX).
pub const PAYLOAD_MAX: usize = 4096;
/// Bytes of the header.
pub const HEADER_SIZE: usize = 16;
/// Linux's `/dev/xen/xenbus` takes header and payload together in a buffer of PAYLOAD_MAX bytes.
pub const REQUEST_PAYLOAD_MAX: usize = PAYLOAD_MAX - HEADER_SIZE;

/// Message type. A newtype, not an enum: the peer may send any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Kind(pub u32);

impl Kind {
    /// List the children of a node.
    pub const DIRECTORY: Kind = Kind(1);
    /// Read a value.
    pub const READ: Kind = Kind(2);
    /// Register a watch: path, token.
    pub const WATCH: Kind = Kind(4);
    /// Remove a watch: path, token.
    pub const UNWATCH: Kind = Kind(5);
    /// Start a transaction; the answer is its number as text.
    pub const TRANSACTION_START: Kind = Kind(6);
    /// End a transaction: "T" commits, "F" drops it.
    pub const TRANSACTION_END: Kind = Kind(7);
    /// Write a value: path, NUL, value without NUL.
    pub const WRITE: Kind = Kind(11);
    /// Remove a node and everything under it.
    pub const REMOVE: Kind = Kind(13);
    /// A watch fired: path, token. Not an answer to a request.
    pub const WATCH_EVENT: Kind = Kind(15);
    /// A request was refused: the name of an errno.
    pub const ERROR: Kind = Kind(16);

    /// The request's name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Kind::DIRECTORY => "list",
            Kind::READ => "read",
            Kind::WATCH => "watch",
            Kind::UNWATCH => "unwatch",
            Kind::TRANSACTION_START => "start transaction",
            Kind::TRANSACTION_END => "end transaction",
            Kind::WRITE => "write",
            Kind::REMOVE => "remove",
            _ => "request",
        }
    }
}

/// One message in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Joins answer and request.
    pub request_id: u32,
    /// 0 outside of a transaction.
    pub transaction_id: u32,
    /// At most [`PAYLOAD_MAX`] bytes.
    pub payload: Vec<u8>,
}

/// A byte stream that is not XenStore's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The header announces more than the protocol allows.
    #[error("a XenStore message announces {announced} bytes, the limit is {PAYLOAD_MAX}")]
    TooLong {
        /// The length field.
        announced: u32,
    },
}

impl Packet {
    /// Header and payload as one run of bytes, to be written with one call: a transport may carry several writers.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.payload.len() <= PAYLOAD_MAX, "callers check the size of a request");
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.payload.len());
        for field in [self.kind.0, self.request_id, self.transaction_id, self.payload.len() as u32] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The payload as text without its final NUL; `None` if it is not UTF-8.
    pub fn text(&self) -> Option<&str> {
        let bytes = self.payload.strip_suffix(&[0]).unwrap_or(&self.payload);
        std::str::from_utf8(bytes).ok()
    }
}

/// The NUL-separated strings of a payload. An empty payload has none; a missing last NUL is forgiven.
pub fn strings(payload: &[u8]) -> impl Iterator<Item = &[u8]> {
    let body = payload.strip_suffix(&[0]).unwrap_or(payload);
    body.split(|&b| b == 0).filter(move |_| !payload.is_empty())
}

/// Joins parts with NULs and ends with one: the payload of every request but WRITE.
pub fn payload_of(parts: &[&str]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(parts.iter().map(|p| p.len() + 1).sum());
    for part in parts {
        payload.extend_from_slice(part.as_bytes());
        payload.push(0);
    }
    payload
}

/// Cuts a byte stream into packets. Holds at most one unfinished packet and what came with one read.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets an unfinished packet.
    pub fn clear(&mut self) {
        self.buffer.clear();
    }

    /// The next whole packet, `None` until it has arrived.
    pub fn next_packet(&mut self) -> Result<Option<Packet>, WireError> {
        let Some((header, rest)) = self.buffer.split_first_chunk::<HEADER_SIZE>() else { return Ok(None) };
        let field =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let announced = field(12);
        let size = announced as usize;
        if size > PAYLOAD_MAX {
            return Err(WireError::TooLong { announced });
        }
        let Some(payload) = rest.get(..size) else { return Ok(None) };
        let packet = Packet {
            kind: Kind(field(0)),
            request_id: field(4),
            transaction_id: field(8),
            payload: payload.to_vec(),
        };
        self.buffer.drain(..HEADER_SIZE + size);
        Ok(Some(packet))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written out by hand from the public protocol header: READ of "vm-data/abd/job", request 5.
    const READ_REQUEST: &[u8] =
        b"\x02\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00vm-data/abd/job\x00";
    /// The refusal of it: XS_ERROR with the errno's name.
    const ERROR_REPLY: &[u8] = b"\x10\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00ENOENT\x00";
    /// WRITE carries its value without a NUL; inside transaction 9.
    const WRITE_REQUEST: &[u8] =
        b"\x0b\x00\x00\x00\x01\x02\x00\x00\x09\x00\x00\x00\x08\x00\x00\x00data/k\x00v";
    /// A watch event: path, token, each with its NUL.
    const WATCH_EVENT: &[u8] =
        b"\x0f\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x18\x00\x00\x00control/shutdown\x00abd-001\x00";

    #[test]
    fn golden_requests() {
        let read = Packet {
            kind: Kind::READ,
            request_id: 5,
            transaction_id: 0,
            payload: payload_of(&["vm-data/abd/job"]),
        };
        assert_eq!(read.encode(), READ_REQUEST);
        let write = Packet {
            kind: Kind::WRITE,
            request_id: 0x201,
            transaction_id: 9,
            payload: b"data/k\0v".to_vec(),
        };
        assert_eq!(write.encode(), WRITE_REQUEST);
    }

    #[test]
    fn golden_replies() {
        let mut decoder = Decoder::default();
        decoder.push(ERROR_REPLY);
        decoder.push(&WATCH_EVENT[..20]);
        let refused = decoder.next_packet().unwrap().unwrap();
        assert_eq!((refused.kind, refused.request_id, refused.text()), (Kind::ERROR, 5, Some("ENOENT")));
        assert_eq!(decoder.next_packet(), Ok(None), "an unfinished packet waits");
        decoder.push(&WATCH_EVENT[20..]);
        let event = decoder.next_packet().unwrap().unwrap();
        assert_eq!(event.kind, Kind::WATCH_EVENT);
        assert_eq!(strings(&event.payload).collect::<Vec<_>>(), [&b"control/shutdown"[..], b"abd-001"]);
    }

    #[test]
    fn strings_of_edge_payloads() {
        assert_eq!(strings(b"").count(), 0);
        assert_eq!(strings(b"a\0b").collect::<Vec<_>>(), [b"a", b"b"]);
        assert_eq!(strings(b"a\0\0").collect::<Vec<_>>(), [&b"a"[..], b""]);
    }

    #[test]
    fn length_over_the_limit_is_refused_before_the_payload_arrives() {
        let mut decoder = Decoder::default();
        decoder.push(b"\x02\0\0\0\0\0\0\0\0\0\0\0\x01\x10\0\0");
        assert_eq!(decoder.next_packet(), Err(WireError::TooLong { announced: 4097 }));
    }

    proptest! {
        #[test]
        fn decoder_survives_random_bytes(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let mut decoder = Decoder::default();
            for chunk in chunks {
                decoder.push(&chunk);
                while let Ok(Some(packet)) = decoder.next_packet() {
                    let _ = packet.text();
                    let _ = strings(&packet.payload).count();
                }
            }
        }

        #[test]
        fn packets_survive_any_split(kind: u32, request_id: u32, transaction_id: u32,
                                     payload in proptest::collection::vec(any::<u8>(), 0..=PAYLOAD_MAX), cut in 0usize..5000) {
            let packet = Packet { kind: Kind(kind), request_id, transaction_id, payload };
            let bytes = packet.encode();
            let cut = cut.min(bytes.len());
            let mut decoder = Decoder::default();
            decoder.push(&bytes[..cut]);
            let early = decoder.next_packet().unwrap();
            decoder.push(&bytes[cut..]);
            let got = match early { Some(p) => p, None => decoder.next_packet().unwrap().unwrap() };
            prop_assert_eq!(got, packet);
        }
    }
}
