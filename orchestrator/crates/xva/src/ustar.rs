//! The ustar header: one 512-byte block before each member.
//!
//! Only what an XVA needs: regular files with short names. Long names, sparse files, links and extended
//! headers are refused, since a pool's importer knows none of them.
//!
//! ```text
//! offset  size  field
//!      0   100  name, NUL-padded
//!    100     8  mode, octal digits and NUL       108  8  uid       116  8  gid
//!    124    12  size, octal                      136 12  mtime
//!    148     8  checksum: sum of all bytes with this field as spaces
//!    156     1  type: '0' (or NUL) is a file
//!    257     6  "ustar\0"                        263  2  "00"
//!    345   155  prefix of the name
//! ```

/// Size of a header and unit of padding.
pub(crate) const BLOCK: usize = 512;

/// Largest size that eleven octal digits hold.
const SIZE_LIMIT: u64 = 0o77_777_777_777;

/// A member's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) bytes: u64,
}

/// What a header block holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Member(Header),
    /// A block of zeros: the end of the archive.
    End,
}

/// Bytes after a member of this size up to the next block.
pub(crate) fn padding(bytes: u64) -> usize {
    // The remainder is below 512.
    (BLOCK - (bytes % BLOCK as u64) as usize) % BLOCK
}

/// Bytes that a member takes in the file: header, content, padding.
pub(crate) fn member_bytes(bytes: u64) -> u64 {
    BLOCK as u64 + bytes + padding(bytes) as u64
}

/// The header of a member. The caller's names are short and its sizes small by construction.
pub(crate) fn encode(name: &str, bytes: u64) -> [u8; BLOCK] {
    assert!(name.len() <= 100, "member names are made by this crate and short");
    assert!(bytes <= SIZE_LIMIT, "members are chunks or ova.xml");
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{bytes:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Reads a header block.
pub(crate) fn decode(block: &[u8; BLOCK]) -> Result<Parsed, &'static str> {
    if block.iter().all(|byte| *byte == 0) {
        return Ok(Parsed::End);
    }
    let stated = octal(&block[148..156]).ok_or("the checksum field is not a number")?;
    if stated != u64::from(checksum(block)) {
        return Err("the header checksum does not fit");
    }
    if !matches!(block[156], b'0' | 0) {
        return Err("the member is not a regular file");
    }
    let bytes = octal(&block[124..136]).ok_or("the size is not an octal number")?;
    let mut name = text(&block[..100]).ok_or("the name is not readable text")?;
    let prefix = text(&block[345..500]).ok_or("the name is not readable text")?;
    if !prefix.is_empty() && block[257..262] == *b"ustar" {
        name = format!("{prefix}/{name}");
    }
    if name.is_empty() {
        return Err("the name is empty");
    }
    Ok(Parsed::Member(Header { name, bytes }))
}

fn checksum(block: &[u8; BLOCK]) -> u32 {
    let all: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let field: u32 = block[148..156].iter().map(|byte| u32::from(*byte)).sum();
    all - field + 8 * u32::from(b' ')
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(|c| c == '\0' || c == ' ');
    u64::from_str_radix(digits, 8).ok()
}

fn text(field: &[u8]) -> Option<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn padding_is_zero_on_the_border() {
        assert_eq!((padding(0), padding(1), padding(511), padding(512), padding(513)), (0, 511, 1, 0, 511));
        assert_eq!(member_bytes(40), 1024);
    }

    #[test]
    fn header_round_trips() {
        let block = encode("Ref:2/00000007.checksum", 40);
        let expected = Header { name: "Ref:2/00000007.checksum".to_owned(), bytes: 40 };
        assert_eq!(decode(&block), Ok(Parsed::Member(expected)));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let good = encode("ova.xml", 1234);
        for bit in 0..BLOCK * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            let same = decode(&bad) == decode(&good);
            // The checksum field is not in its own sum: a leading zero may become a space, as good.
            assert!(!same || (148..156).contains(&(bit / 8)), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn no_block_panics(bytes in proptest::collection::vec(any::<u8>(), BLOCK)) {
            let block: [u8; BLOCK] = bytes.try_into().expect("512 bytes");
            let _ = decode(&block);
        }
    }
}
