//! Frames of the XenStore wire protocol.
//!
//! Owns the byte layout and nothing else: a frame is a header of four little-endian `u32`
//! followed by a payload, as Xen's public header `io/xs_wire.h` lays it out.
//!
//! | offset | field | meaning |
//! |---|---|---|
//! | 0 | kind | what is asked, or what is answered |
//! | 4 | request | chosen by the client, copied into the answer |
//! | 8 | transaction | 0 outside a transaction |
//! | 12 | length | bytes of payload that follow, at most 4096 |
//!
//! Promises: never holds more than one frame beyond the bytes it was just given, never panics on any
//! input. This is the simulator's own codec; the appliance has another one, so that a slip in one of
//! them shows.

/// Bytes of the header.
pub(crate) const HEADER_SIZE: usize = 16;

/// Largest payload either side may send (`XENSTORE_PAYLOAD_MAX`).
pub(crate) const PAYLOAD_MAX: usize = 4096;

/// Numbers of the message kinds, in the order of `enum xsd_sockmsg_type`.
pub(crate) mod kind {
    pub(crate) const CONTROL: u32 = 0;
    pub(crate) const DIRECTORY: u32 = 1;
    pub(crate) const READ: u32 = 2;
    pub(crate) const GET_PERMS: u32 = 3;
    pub(crate) const WATCH: u32 = 4;
    pub(crate) const UNWATCH: u32 = 5;
    pub(crate) const TRANSACTION_START: u32 = 6;
    pub(crate) const TRANSACTION_END: u32 = 7;
    pub(crate) const INTRODUCE: u32 = 8;
    pub(crate) const RELEASE: u32 = 9;
    pub(crate) const GET_DOMAIN_PATH: u32 = 10;
    pub(crate) const WRITE: u32 = 11;
    pub(crate) const MKDIR: u32 = 12;
    pub(crate) const RM: u32 = 13;
    pub(crate) const SET_PERMS: u32 = 14;
    pub(crate) const WATCH_EVENT: u32 = 15;
    pub(crate) const ERROR: u32 = 16;
    pub(crate) const IS_DOMAIN_INTRODUCED: u32 = 17;
    pub(crate) const RESUME: u32 = 18;
    pub(crate) const SET_TARGET: u32 = 19;
    pub(crate) const RESET_WATCHES: u32 = 21;
}

/// One frame, either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u32,
    pub(crate) request: u32,
    pub(crate) transaction: u32,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    /// The frame's bytes. Panics when the payload is over [`PAYLOAD_MAX`]: the server has to refuse
    /// such an answer before it gets here.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        assert!(
            self.payload.len() <= PAYLOAD_MAX,
            "an answer of {} bytes reached the encoder",
            self.payload.len()
        );
        let length = u32::try_from(self.payload.len()).expect("at most 4096");
        let mut bytes = Vec::with_capacity(HEADER_SIZE + self.payload.len());
        for field in [self.kind, self.request, self.transaction, length] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.payload);
        bytes
    }
}

/// The client announced a payload over the limit. What follows cannot be told apart any more; real
/// daemons stop serving such a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Oversize {
    pub(crate) announced: u32,
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    pending: Vec<u8>,
}

impl Decoder {
    /// Takes bytes as they came from the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` when more bytes are needed.
    pub(crate) fn next_message(&mut self) -> Result<Option<Message>, Oversize> {
        let Some(header) = self.pending.first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let field = |index: usize| {
            let at = index * 4;
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let announced = field(3);
        let length = match usize::try_from(announced) {
            Ok(length) if length <= PAYLOAD_MAX => length,
            _ => return Err(Oversize { announced }),
        };
        let (kind, request, transaction) = (field(0), field(1), field(2));
        if self.pending.len() < HEADER_SIZE + length {
            return Ok(None);
        }
        let payload = self.pending[HEADER_SIZE..HEADER_SIZE + length].to_vec();
        self.pending.drain(..HEADER_SIZE + length);
        Ok(Some(Message { kind, request, transaction, payload }))
    }

    /// Whether a frame has begun but not ended.
    pub(crate) fn is_inside_frame(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Drops a frame that will never end.
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn read_request_has_the_bytes_of_the_public_header() {
        // struct xsd_sockmsg { type = XS_READ (2); req_id = 7; tx_id = 0; len = 5 } then "name\0".
        let bytes = [2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, b'n', b'a', b'm', b'e', 0];
        let message = Message { kind: kind::READ, request: 7, transaction: 0, payload: b"name\0".to_vec() };
        assert_eq!(message.to_bytes(), bytes);
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        assert_eq!(decoder.next_message(), Ok(Some(message)));
        assert_eq!(decoder.next_message(), Ok(None));
        assert!(!decoder.is_inside_frame());
    }

    #[test]
    fn frames_are_found_whatever_the_pieces() {
        let first = Message { kind: 1, request: 0x0102_0304, transaction: 9, payload: Vec::new() };
        let second = Message { kind: 11, request: 2, transaction: 0, payload: vec![0xab; PAYLOAD_MAX] };
        let stream = [first.to_bytes(), second.to_bytes()].concat();
        for piece in [1, 3, 15, 16, 17, 4096, stream.len()] {
            let mut decoder = Decoder::default();
            let mut found = Vec::new();
            for bytes in stream.chunks(piece) {
                decoder.push(bytes);
                while let Some(message) = decoder.next_message().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, [first.clone(), second.clone()], "pieces of {piece}");
        }
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_before_it_arrives() {
        let mut decoder = Decoder::default();
        decoder.push(&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x01, 0x10, 0, 0]);
        assert_eq!(decoder.next_message(), Err(Oversize { announced: 4097 }));
    }
}
