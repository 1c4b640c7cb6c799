//! The recovery kit: the master key as text that survives paper and typing.

use super::shown;
use crate::store::config::to_hex;
use seal::MasterKey;
use std::path::Path;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Lines that the key is printed on, and bytes of it on each.
const LINES: usize = 4;
const LINE_SIZE: usize = 8;
/// Bytes of a line's checksum.
const CHECK_SIZE: usize = 2;
const CHECK_CONTEXT: &str = "abd 2026-11 recovery kit line";

const _: () = assert!(LINES * LINE_SIZE == 32);

/// A kit that was read.
#[derive(Debug)]
pub struct RecoveryKit {
    store: Uuid,
    master: MasterKey,
}

impl RecoveryKit {
    pub(super) fn store(&self) -> Uuid {
        self.store
    }

    pub(super) fn master(&self) -> &MasterKey {
        &self.master
    }

    /// Reads a kit: the line with the store's id and the four with the key count, wherever they stand. The error names the
    /// line that has a slip in it, without its text.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (mut store, mut key) = (None, Zeroizing::new([0; 32]));
        let mut found = [false; LINES];
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next().map(str::to_ascii_lowercase).as_deref() {
                Some("store") => {
                    let id = words.next().and_then(|word| word.parse().ok());
                    store = Some(id.ok_or("the line 'store' of the recovery kit has no uuid")?);
                }
                Some("key") => {
                    let number: usize = words
                        .next()
                        .and_then(|word| word.parse().ok())
                        .filter(|number| (1..=LINES).contains(number))
                        .ok_or("a line 'key' of the recovery kit has no number from 1 to 4")?;
                    let digits: Zeroizing<String> = Zeroizing::new(words.collect());
                    let store: Uuid =
                        store.ok_or("the line 'store' of the recovery kit comes before the key")?;
                    let bytes = parse_line(store, number, &digits)
                        .ok_or_else(|| format!("line 'key {number}' of the recovery kit has a slip in it"))?;
                    key[(number - 1) * LINE_SIZE..number * LINE_SIZE].copy_from_slice(&*bytes);
                    found[number - 1] = true;
                }
                _ => {}
            }
        }
        let store = store.ok_or("this is no recovery kit: it has no line 'store'")?;
        match found.iter().position(|found| !found) {
            None => Ok(Self { store, master: MasterKey::new(*key) }),
            Some(at) => Err(format!("the recovery kit has no line 'key {}'", at + 1)),
        }
    }
}

/// The kit of a store, to be printed.
pub(super) fn print(store: Uuid, place: &Path, master: &MasterKey) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(2048));
    text.push_str(&format!(
        "RECOVERY KIT of an abd store\n\n\
         Whoever has this page can read everything in the store. Print it, lock it away, and\n\
         delete the file. No passphrase is needed to use it, and changing a passphrase does not\n\
         make it useless.\n\n\
         store  {store}\n\
         place  {}\n\n",
        shown(place)
    ));
    for (bytes, number) in master.as_bytes().chunks_exact(LINE_SIZE).zip(1..) {
        let digits = Zeroizing::new(to_hex(bytes));
        text.push_str(&format!("key {number} "));
        for group in digits.as_bytes().chunks(4) {
            text.push(' ');
            group.iter().for_each(|digit| text.push(char::from(*digit)));
        }
        text.push_str("  ");
        text.push_str(&to_hex(&line_check(store, number, bytes)));
        text.push('\n');
    }
    text.push_str(
        "\nThe last four digits of each line are a checksum: a slip in typing is found.\n\n\
         To open the store, also where all of its key slots are lost, type the lines 'store' and\n\
         'key' into a file and name it:\n\n\
         \x20   abd --store PLACE --recovery-kit FILE list\n\n\
         To give it a new passphrase:\n\n\
         \x20   abd --store PLACE --recovery-kit FILE store key add\n\n\
         Without abd: FORMAT.md, of which tests/format/read_store.py is a reader, says how the\n\
         blocks are opened with these 32 bytes, the master key.\n",
    );
    text
}

fn line_check(store: Uuid, number: usize, bytes: &[u8]) -> [u8; CHECK_SIZE] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECK_CONTEXT);
    hasher.update(format!("{store}\n{number}\n").as_bytes());
    hasher.update(bytes);
    let hash = hasher.finalize();
    let [first, second, ..] = *hash.as_bytes();
    [first, second]
}

/// The bytes of a line that has no slip in it.
fn parse_line(store: Uuid, number: usize, digits: &str) -> Option<Zeroizing<[u8; LINE_SIZE]>> {
    let line = Zeroizing::new(crate::store::config::parse_hex::<{ LINE_SIZE + CHECK_SIZE }>(digits)?);
    let (bytes, check) = line.split_at(LINE_SIZE);
    let bytes: [u8; LINE_SIZE] = bytes.try_into().ok()?;
    (line_check(store, number, &bytes) == check).then(|| Zeroizing::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Uuid, MasterKey) {
        let bytes = std::array::from_fn(|at| u8::try_from(at * 7).expect("below 256"));
        (Uuid::from_bytes([3; 16]), MasterKey::new(bytes))
    }

    fn kit() -> String {
        let (store, master) = sample();
        print(store, Path::new("/srv/abd"), &master).to_string()
    }

    #[test]
    fn what_is_printed_is_read_also_with_other_case_and_spacing() {
        let (store, master) = sample();
        let typed = kit().to_uppercase().replace("  ", " \t ");
        for text in [kit(), typed] {
            let read = RecoveryKit::parse(&text).expect(&text);
            assert_eq!((read.store(), read.master()), (store, &master));
        }
    }

    #[test]
    fn every_slip_in_a_digit_and_every_swap_of_lines_is_found_and_named() {
        let text = kit();
        let keys: Vec<&str> = text.lines().filter(|line| line.starts_with("key ")).collect();
        assert_eq!(keys.len(), LINES);
        for (number, line) in (1..).zip(&keys) {
            for (at, digit) in line.char_indices().filter(|(at, digit)| *at > 5 && digit.is_ascii_hexdigit())
            {
                let other = if digit == '0' { "1" } else { "0" };
                let mut slip = (*line).to_owned();
                slip.replace_range(at..=at, other);
                let error = RecoveryKit::parse(&text.replace(line, &slip)).expect_err(&slip);
                assert!(error.contains(&format!("key {number}")) && !error.contains(&slip), "{error}");
            }
        }
        let swapped = keys[0].replacen("key 1", "key 2", 1);
        assert!(RecoveryKit::parse(&text.replace(keys[1], &swapped)).is_err());
        let missing = RecoveryKit::parse(&text.replace(keys[2], "")).expect_err("a line is missing");
        assert!(missing.contains("key 3"), "{missing}");
        assert!(RecoveryKit::parse("nothing").is_err());
        // The kit of another store: its checksums are its own.
        assert!(RecoveryKit::parse(&text.replace("03030303-0303", "04030303-0303")).is_err());
    }
}
