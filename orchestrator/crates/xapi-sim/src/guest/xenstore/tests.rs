//! The store as a guest sees it: bytes in, bytes out.
//!
//! Requests and answers are written by hand from `docs/misc/xenstore.txt` and the public header
//! `io/xs_wire.h`; our own encoder makes none of them.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::domain::bare_config;
use super::server::{Change, Domain, OUTBOX_MAX, TRANSACTIONS_MAX, WATCHES_MAX};
use super::wire::{Decoder, HEADER_SIZE};

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const GET_PERMS: u32 = 3;
const WATCH: u32 = 4;
const UNWATCH: u32 = 5;
const START: u32 = 6;
const END: u32 = 7;
const GET_DOMAIN_PATH: u32 = 10;
const WRITE: u32 = 11;
const MKDIR: u32 = 12;
const RM: u32 = 13;
const SET_PERMS: u32 = 14;
const EVENT: u32 = 15;
const ERROR: u32 = 16;
const IS_INTRODUCED: u32 = 17;
const RESET_WATCHES: u32 = 21;

/// Domain 7 with one key under `vm-data`.
struct Lab {
    domain: Domain,
    now: SystemTime,
    changes: Vec<Change>,
}

/// Kind, transaction and payload of a frame.
type Frame = (u32, u32, Vec<u8>);

impl Lab {
    fn new() -> Lab {
        let mut config = bare_config();
        config.xenstore.insert("vm-data/abd/version".to_owned(), "1".to_owned());
        Lab {
            domain: Domain::build(7, &config).unwrap(),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1000),
            changes: Vec::new(),
        }
    }

    /// Sends a frame made by hand; gives the answer and what else came.
    fn send(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> (Frame, Vec<Frame>) {
        const REQUEST: u32 = 0x51;
        let mut bytes = Vec::new();
        for field in [kind, REQUEST, transaction, payload.len() as u32] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.extend(payload);
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let message = decoder.next_message().unwrap().unwrap();
        self.changes.extend(self.domain.handle(message, self.now));
        let mut frames = self.pending();
        let (request, answer) = frames.remove(0);
        assert_eq!(request, REQUEST);
        (answer, frames.into_iter().map(|(_, frame)| frame).collect())
    }

    /// Frames that wait for the guest, cut by hand, with their request numbers.
    fn pending(&mut self) -> Vec<(u32, Frame)> {
        let mut frames = Vec::new();
        while let Some(message) = self.domain.pop() {
            let bytes = message.to_bytes();
            let field = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(field(12) as usize, bytes.len() - HEADER_SIZE);
            frames.push((field(4), (field(0), field(8), bytes[HEADER_SIZE..].to_vec())));
        }
        frames
    }

    /// Sends outside a transaction and gives the answer's payload.
    fn ok(&mut self, kind: u32, payload: &[u8]) -> Vec<u8> {
        self.ok_in(0, kind, payload)
    }

    fn ok_in(&mut self, transaction: u32, kind: u32, payload: &[u8]) -> Vec<u8> {
        let ((answered, in_transaction, answer), _) = self.send(kind, transaction, payload);
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert_eq!((answered, in_transaction), (kind, transaction), "answer {text:?}");
        answer
    }

    fn refused(&mut self, kind: u32, payload: &[u8]) -> String {
        self.refused_in(0, kind, payload)
    }

    fn refused_in(&mut self, transaction: u32, kind: u32, payload: &[u8]) -> String {
        let ((answered, _, answer), events) = self.send(kind, transaction, payload);
        let text = String::from_utf8(answer).unwrap();
        assert_eq!(answered, ERROR, "not refused: {text:?}");
        assert!(events.is_empty());
        text.strip_suffix('\0').unwrap().to_owned()
    }

    fn start(&mut self) -> u32 {
        let answer = self.ok(START, b"\0");
        std::str::from_utf8(answer.strip_suffix(b"\0").unwrap()).unwrap().parse().unwrap()
    }

    /// Sends and gives the watch events that came with the answer.
    fn events(&mut self, kind: u32, transaction: u32, payload: &[u8]) -> Vec<String> {
        let (_, events) = self.send(kind, transaction, payload);
        texts(events)
    }

    fn late_events(&mut self) -> Vec<String> {
        texts(self.pending().into_iter().map(|(_, frame)| frame).collect())
    }

    fn change(path: &str, value: Option<&str>) -> Change {
        Change { path: path.to_owned(), value: value.map(str::to_owned) }
    }
}

fn texts(events: Vec<Frame>) -> Vec<String> {
    let text = |(kind, transaction, payload): Frame| {
        assert_eq!((kind, transaction), (EVENT, 0));
        String::from_utf8(payload).unwrap().replace('\0', "|")
    };
    events.into_iter().map(text).collect()
}

#[test]
fn values_are_read_by_relative_and_absolute_path_without_a_final_zero() {
    let mut lab = Lab::new();
    assert_eq!(lab.ok(READ, b"vm-data/abd/version\0"), b"1");
    assert_eq!(lab.ok(READ, b"/local/domain/7/vm-data/abd/version\0"), b"1");
    assert_eq!(lab.ok(READ, b"domid\0"), b"7");
    assert_eq!(lab.ok(READ, b"vm-data\0"), b"");
    assert_eq!(lab.refused(READ, b"vm-data/absent\0"), "ENOENT");
    assert_eq!(lab.refused(READ, b"/local/domain/8/name\0"), "ENOENT");
}

#[test]
fn directories_are_lists_of_terminated_names() {
    let mut lab = Lab::new();
    lab.ok(WRITE, b"vm-data/abd/key\0ff");
    assert_eq!(lab.ok(DIRECTORY, b"vm-data/abd\0"), b"key\0version\0");
    assert_eq!(lab.ok(DIRECTORY, b"vm-data/abd/key\0"), b"");
    assert_eq!(lab.refused(DIRECTORY, b"vm-data/absent\0"), "ENOENT");
}

#[test]
fn written_values_may_hold_any_byte_and_make_their_parents() {
    let mut lab = Lab::new();
    assert_eq!(lab.ok(WRITE, b"data/deep/er\0a\0\xffb"), b"OK\0");
    assert_eq!(lab.ok(READ, b"data/deep/er\0"), b"a\0\xffb");
    assert_eq!(lab.ok(READ, b"data/deep\0"), b"");
    assert_eq!(lab.ok(WRITE, b"data/deep/er\0"), b"OK\0");
    assert_eq!(lab.ok(READ, b"data/deep/er\0"), b"");
    assert_eq!(
        lab.changes,
        [Lab::change("data/deep/er", Some("a\0\u{fffd}b")), Lab::change("data/deep/er", Some(""))]
    );
}

#[test]
fn the_guest_may_write_its_subtrees_and_nothing_else() {
    let mut lab = Lab::new();
    for path in ["vm-data/x", "data/x", "attr/x", "control/x", "device/vbd/1/state", "xenserver/attr/x"] {
        lab.ok(WRITE, format!("{path}\0v").as_bytes());
    }
    for path in [
        "name",
        "domid",
        "new",
        "memory/target",
        "cpu/0/availability",
        "xenserver/x",
        "/x",
        "/local/domain/7",
    ] {
        assert_eq!(lab.refused(WRITE, format!("{path}\0v").as_bytes()), "EACCES", "{path}");
        assert_eq!(lab.refused(MKDIR, format!("{path}\0").as_bytes()), "EACCES", "{path}");
    }
    assert_eq!(lab.refused(RM, b"name\0"), "EACCES");
    assert_eq!(lab.refused(RM, b"/\0"), "EACCES");
    assert_eq!(lab.refused(READ, b"/local/domain\0"), "EACCES");
    assert_eq!(lab.refused(DIRECTORY, b"/\0"), "EACCES");
    assert_eq!(lab.ok(READ, b"name\0"), b"abd-test");
}

#[test]
fn permissions_are_told_and_changed_by_the_owner_only() {
    let mut lab = Lab::new();
    assert_eq!(lab.ok(GET_PERMS, b"vm-data\0"), b"n7\0");
    assert_eq!(lab.ok(GET_PERMS, b"name\0"), b"n0\0r7\0");
    assert_eq!(lab.ok(SET_PERMS, b"vm-data\0r7\0b3\0"), b"OK\0");
    assert_eq!(lab.ok(GET_PERMS, b"vm-data\0"), b"r7\0b3\0");
    assert_eq!(lab.refused(SET_PERMS, b"name\0b7\0"), "EACCES");
    assert_eq!(lab.refused(SET_PERMS, b"vm-data\0n3\0"), "EACCES");
    assert_eq!(lab.refused(SET_PERMS, b"vm-data\0q7\0"), "EINVAL");
    assert_eq!(lab.refused(SET_PERMS, b"vm-data\0"), "EINVAL");
    assert!(lab.changes.is_empty());
}

#[test]
fn removal_takes_everything_below_and_needs_a_parent() {
    let mut lab = Lab::new();
    lab.ok(WRITE, b"vm-data/a/b/c\0v");
    assert_eq!(lab.ok(RM, b"vm-data/a\0"), b"OK\0");
    assert_eq!(lab.refused(READ, b"vm-data/a/b/c\0"), "ENOENT");
    assert_eq!(lab.ok(RM, b"vm-data/a\0"), b"OK\0");
    assert_eq!(lab.refused(RM, b"vm-data/a/b\0"), "ENOENT");
    let told = [Lab::change("vm-data/a/b/c", Some("v")), Lab::change("vm-data/a", None)];
    assert_eq!(lab.changes, told);
}

#[test]
fn mkdir_keeps_what_is_there() {
    let mut lab = Lab::new();
    assert_eq!(lab.ok(MKDIR, b"vm-data/abd/version\0"), b"OK\0");
    assert_eq!(lab.ok(READ, b"vm-data/abd/version\0"), b"1");
    assert_eq!(lab.ok(MKDIR, b"vm-data/p/q\0"), b"OK\0");
    assert_eq!(lab.ok(READ, b"vm-data/p\0"), b"");
    assert_eq!(lab.changes, [Lab::change("vm-data/p/q", Some(""))]);
}

#[test]
fn payloads_that_do_not_fit_the_request_are_invalid() {
    let mut lab = Lab::new();
    let bad: [(u32, &[u8]); 14] = [
        (READ, b""),
        (READ, b"name"),
        (READ, b"\0"),
        (READ, b"name\0\0"),
        (READ, b"na me\0"),
        (DIRECTORY, b"a//b\0"),
        (WRITE, b"vm-data/a"),
        (WRITE, b"vm-data/a/\0v"),
        (WATCH, b"vm-data\0"),
        (WATCH, b"vm-data\0token\0extra\0"),
        (WATCH, b"\0token\0"),
        (UNWATCH, b"vm-data\0token"),
        (GET_DOMAIN_PATH, b"x\0"),
        (SET_PERMS, b"vm-data"),
    ];
    for (kind, payload) in bad {
        assert_eq!(lab.refused(kind, payload), "EINVAL", "{kind} {payload:?}");
    }
}

#[test]
fn domains_are_named_and_the_control_domains_requests_refused() {
    let mut lab = Lab::new();
    assert_eq!(lab.ok(GET_DOMAIN_PATH, b"7\0"), b"/local/domain/7\0");
    assert_eq!(lab.ok(GET_DOMAIN_PATH, b"0\0"), b"/local/domain/0\0");
    assert_eq!(lab.ok(IS_INTRODUCED, b"7\0"), b"T\0");
    assert_eq!(lab.ok(IS_INTRODUCED, b"99\0"), b"F\0");
    for kind in [0, 8, 9, 18, 19] {
        assert_eq!(lab.refused(kind, b"7\0"), "EACCES", "kind {kind}");
    }
    for kind in [15, 16, 20, 22, 128, u32::MAX] {
        assert_eq!(lab.refused(kind, b"7\0"), "ENOSYS", "kind {kind}");
    }
}

#[test]
fn sizes_over_the_limits_are_refused() {
    let mut lab = Lab::new();
    let mut payload = b"vm-data/a\0".to_vec();
    payload.resize(payload.len() + 2048, b'v');
    assert_eq!(lab.ok(WRITE, &payload), b"OK\0");
    payload.push(b'v');
    assert_eq!(lab.refused(WRITE, &payload), "E2BIG");
    // An answer that does not fit a frame: 500 names of 9 bytes and their zeros.
    for index in 0..500 {
        lab.ok(MKDIR, format!("data/name{index:05}\0").as_bytes());
    }
    assert_eq!(lab.refused(DIRECTORY, b"data\0"), "E2BIG");
}

#[test]
fn a_watch_fires_at_once_and_in_the_form_it_was_made() {
    let mut lab = Lab::new();
    assert_eq!(lab.events(WATCH, 0, b"control/shutdown\0t1\0"), ["control/shutdown|t1|"]);
    assert_eq!(lab.events(WATCH, 0, b"/local/domain/7/control\0t2\0"), ["/local/domain/7/control|t2|"]);
    assert_eq!(
        lab.events(WRITE, 0, b"control/shutdown\0x"),
        ["control/shutdown|t1|", "/local/domain/7/control/shutdown|t2|"]
    );
    assert_eq!(lab.events(WRITE, 0, b"control/other\0x"), ["/local/domain/7/control/other|t2|"]);
    assert!(lab.events(WRITE, 0, b"data/other\0x").is_empty());
    assert_eq!(lab.refused(WATCH, b"/local/domain/7/control/shutdown\0t1\0"), "EEXIST");
}

#[test]
fn the_answer_to_watch_comes_before_its_first_event() {
    let mut lab = Lab::new();
    let (answer, events) = lab.send(WATCH, 0, b"@releaseDomain\0tok\0");
    assert_eq!(answer, (WATCH, 0, b"OK\0".to_vec()));
    assert_eq!(texts(events), ["@releaseDomain|tok|"]);
    assert_eq!(lab.ok(UNWATCH, b"@releaseDomain\0tok\0"), b"OK\0");
}

#[test]
fn removing_a_parent_tells_the_watched_path() {
    let mut lab = Lab::new();
    lab.ok(WRITE, b"vm-data/a/b\0v");
    lab.ok(WATCH, b"vm-data/a/b\0below\0");
    lab.ok(WATCH, b"vm-data\0above\0");
    lab.pending();
    assert_eq!(lab.events(RM, 0, b"vm-data/a\0"), ["vm-data/a/b|below|", "vm-data/a|above|"]);
    assert!(lab.events(RM, 0, b"vm-data/a\0").is_empty());
}

#[test]
fn unwatch_and_reset_stop_events() {
    let mut lab = Lab::new();
    lab.ok(WATCH, b"data\0t\0");
    assert_eq!(lab.refused(UNWATCH, b"data\0other\0"), "ENOENT");
    assert_eq!(lab.ok(UNWATCH, b"/local/domain/7/data\0t\0"), b"OK\0");
    assert!(lab.events(WRITE, 0, b"data/x\x001").is_empty());
    lab.ok(WATCH, b"data\0t\0");
    let transaction = lab.start();
    assert_eq!(lab.ok(RESET_WATCHES, b"\0"), b"OK\0");
    assert!(lab.events(WRITE, 0, b"data/x\x001").is_empty());
    assert_eq!(lab.refused_in(transaction, READ, b"name\0"), "EIO");
}

#[test]
fn the_toolstacks_writes_wake_the_guest_but_are_not_told_back() {
    let mut lab = Lab::new();
    lab.ok(WATCH, b"control/shutdown\0s\0");
    lab.ok(WATCH, b"vm-data/abd/version\0v\0");
    lab.pending();
    lab.domain.write_as_toolstack("control/shutdown", "poweroff").unwrap();
    assert_eq!(lab.late_events(), ["control/shutdown|s|"]);
    assert_eq!(lab.ok(READ, b"control/shutdown\0"), b"poweroff");
    // The guest acknowledges: the key is its own although the toolstack wrote it.
    assert_eq!(lab.ok(WRITE, b"control/shutdown\0"), b"OK\0");

    let tree = [("vm-data/abd/job".to_owned(), "j".to_owned())].into();
    lab.domain.replace_as_toolstack("vm-data", &tree).unwrap();
    assert_eq!(lab.late_events(), ["vm-data/abd/version|v|"]);
    assert_eq!(lab.ok(DIRECTORY, b"vm-data/abd\0"), b"job\0");
    assert_eq!(lab.ok(WRITE, b"vm-data/abd/state\0booted"), b"OK\0");
    assert_eq!(
        lab.changes,
        [Lab::change("control/shutdown", Some("")), Lab::change("vm-data/abd/state", Some("booted"))]
    );

    let fresh = [("vm-data/abd/net/0/mode".to_owned(), "dhcp".to_owned())].into();
    lab.domain.replace_as_toolstack("vm-data/abd/net", &fresh).unwrap();
    assert_eq!(lab.ok(GET_PERMS, b"vm-data/abd/net/0/mode\0"), b"n7\0");

    let outside = [("data/x".to_owned(), String::new())].into();
    let before = lab.domain.collect("");
    assert!(lab.domain.replace_as_toolstack("vm-data", &outside).is_err());
    assert_eq!(lab.domain.collect(""), before);
}

#[test]
fn a_transaction_sees_its_own_writes_and_others_see_them_after_its_end() {
    let mut lab = Lab::new();
    lab.ok(WATCH, b"vm-data\0w\0");
    let transaction = lab.start();
    assert_eq!(lab.ok_in(transaction, WRITE, b"vm-data/a\x001"), b"OK\0");
    assert_eq!(lab.ok_in(transaction, READ, b"vm-data/a\0"), b"1");
    assert_eq!(lab.refused(READ, b"vm-data/a\0"), "ENOENT");
    assert!(lab.changes.is_empty());
    assert_eq!(lab.events(END, transaction, b"T\0"), ["vm-data/a|w|"]);
    assert_eq!(lab.ok(READ, b"vm-data/a\0"), b"1");
    assert_eq!(lab.changes, [Lab::change("vm-data/a", Some("1"))]);
    assert_eq!(lab.refused_in(transaction, END, b"T\0"), "EIO");
}

#[test]
fn an_aborted_transaction_leaves_nothing() {
    let mut lab = Lab::new();
    lab.ok(WATCH, b"vm-data\0w\0");
    let transaction = lab.start();
    lab.ok_in(transaction, WRITE, b"vm-data/a\x001");
    assert!(lab.events(END, transaction, b"F\0").is_empty());
    assert_eq!(lab.refused(READ, b"vm-data/a\0"), "ENOENT");
    assert!(lab.changes.is_empty());
}

#[test]
fn a_snapshot_stays_and_a_conflict_is_to_be_tried_again() {
    let mut lab = Lab::new();
    let transaction = lab.start();
    assert_eq!(lab.ok_in(transaction, READ, b"vm-data/abd/version\0"), b"1");
    lab.ok_in(transaction, WRITE, b"vm-data/seen\x001");
    lab.ok(WRITE, b"vm-data/abd/version\x002");
    assert_eq!(lab.ok_in(transaction, READ, b"vm-data/abd/version\0"), b"1");
    assert_eq!(lab.refused_in(transaction, END, b"T\0"), "EAGAIN");
    assert_eq!(lab.refused(READ, b"vm-data/seen\0"), "ENOENT");
    assert_eq!(lab.changes, [Lab::change("vm-data/abd/version", Some("2"))]);
    // The second try.
    let transaction = lab.start();
    assert_eq!(lab.ok_in(transaction, READ, b"vm-data/abd/version\0"), b"2");
    lab.ok_in(transaction, WRITE, b"vm-data/seen\x002");
    assert_eq!(lab.ok_in(transaction, END, b"T\0"), b"OK\0");
}

#[test]
fn two_transactions_that_read_what_the_other_writes_conflict() {
    let mut lab = Lab::new();
    let (first, second) = (lab.start(), lab.start());
    assert_ne!(first, second);
    for transaction in [first, second] {
        lab.ok_in(transaction, READ, b"vm-data/abd/version\0");
        lab.ok_in(transaction, WRITE, format!("vm-data/abd/version\0of {transaction}").as_bytes());
    }
    assert_eq!(lab.ok_in(first, END, b"T\0"), b"OK\0");
    assert_eq!(lab.refused_in(second, END, b"T\0"), "EAGAIN");
    assert_eq!(lab.ok(READ, b"vm-data/abd/version\0"), format!("of {first}").as_bytes());
}

#[test]
fn unrelated_writes_do_not_conflict() {
    let mut lab = Lab::new();
    let transaction = lab.start();
    lab.ok_in(transaction, READ, b"vm-data/abd/version\0");
    lab.ok_in(transaction, WRITE, b"vm-data/a\x001");
    lab.ok(WRITE, b"data/elsewhere\x001");
    assert_eq!(lab.ok_in(transaction, END, b"T\0"), b"OK\0");
    assert_eq!(lab.ok(READ, b"data/elsewhere\0"), b"1");
    assert_eq!(lab.ok(READ, b"vm-data/a\0"), b"1");
}

#[test]
fn wrong_ends_and_nested_starts_are_refused() {
    let mut lab = Lab::new();
    let transaction = lab.start();
    assert_eq!(lab.refused_in(transaction, START, b"\0"), "EBUSY");
    assert_eq!(lab.refused_in(transaction, END, b"X\0"), "EINVAL");
    assert_eq!(lab.refused_in(transaction, END, b""), "EINVAL");
    assert_eq!(lab.refused_in(0, END, b"T\0"), "ENOENT");
    assert_eq!(lab.refused_in(transaction + 1, READ, b"name\0"), "EIO");
    assert_eq!(lab.ok_in(transaction, END, b"T\0"), b"OK\0");
}

#[test]
fn watches_and_transactions_have_quotas() {
    let mut lab = Lab::new();
    for index in 0..WATCHES_MAX {
        lab.ok(WATCH, format!("data\0{index}\0").as_bytes());
    }
    assert_eq!(lab.refused(WATCH, b"data\0more\0"), "EQUOTA");
    for _ in 0..TRANSACTIONS_MAX {
        lab.start();
    }
    assert_eq!(lab.refused(START, b"\0"), "EQUOTA");
}

#[test]
fn events_for_a_guest_that_does_not_read_are_bounded() {
    let mut lab = Lab::new();
    lab.ok(WATCH, b"control\0t\0");
    lab.pending();
    for _ in 0..OUTBOX_MAX + 10 {
        lab.domain.write_as_toolstack("control/shutdown", "poweroff").unwrap();
    }
    assert_eq!(lab.late_events().len(), OUTBOX_MAX);
}

#[test]
fn an_event_too_long_for_a_frame_is_not_sent() {
    let mut lab = Lab::new();
    let payload = [b"vm-data\0".as_slice(), &[b't'; 4000], b"\0"].concat();
    lab.ok(WATCH, &payload);
    lab.pending();
    let path = format!("vm-data/{}\0", "n".repeat(500));
    assert!(lab.events(MKDIR, 0, path.as_bytes()).is_empty());
}

#[test]
fn a_closed_port_forgets_what_came_before_and_keeps_what_came_after() {
    let mut lab = Lab::new();
    lab.ok(WATCH, b"data\0old\0");
    let old = lab.start();
    let closed = lab.now + Duration::from_secs(1);
    // The port was opened again, and used, before the news of its closing came.
    lab.now = closed + Duration::from_secs(1);
    lab.ok(WATCH, b"data\0new\0");
    let new = lab.start();
    lab.domain.forget_before(closed);
    assert_eq!(lab.events(WRITE, 0, b"data/x\x001"), ["data/x|new|"]);
    assert_eq!(lab.refused_in(old, READ, b"name\0"), "EIO");
    assert_eq!(lab.ok_in(new, READ, b"name\0"), b"abd-test");
}

/// Frames that look right more often than chance would have it.
fn likely_frame() -> impl Strategy<Value = Vec<u8>> {
    let text = prop_oneof![
        Just("vm-data/abd/version".to_owned()),
        Just("vm-data".to_owned()),
        Just("/".to_owned()),
        Just("/local/domain/7".to_owned()),
        Just("T".to_owned()),
        Just("n7".to_owned()),
        "[a-z/@0-9]{0,12}",
    ];
    let payload = prop::collection::vec(text, 0..4)
        .prop_map(|parts| parts.iter().flat_map(|part| part.bytes().chain([0])).collect::<Vec<u8>>());
    (0u32..24, any::<u32>(), 0u32..4, payload).prop_map(|(kind, request, transaction, payload)| {
        let length = payload.len() as u32;
        let header = [kind, request, transaction, length].map(u32::to_le_bytes);
        [header.concat(), payload].concat()
    })
}

proptest! {
    #[test]
    fn random_bytes_never_panic(pieces in prop::collection::vec(
        prop_oneof![likely_frame(), prop::collection::vec(any::<u8>(), 0..64)], 0..40,
    )) {
        let mut lab = Lab::new();
        let mut decoder = Decoder::default();
        for piece in pieces {
            decoder.push(&piece);
            loop {
                match decoder.next_message() {
                    Ok(Some(message)) => {
                        lab.domain.handle(message, lab.now);
                        lab.pending();
                    }
                    Ok(None) => break,
                    Err(_) => {
                        decoder.clear();
                        break;
                    }
                }
            }
        }
        // The store is still there and its toolstack's part untouched.
        prop_assert_eq!(lab.ok(READ, b"domid\0"), b"7");
    }

    #[test]
    fn likely_requests_never_panic(frames in prop::collection::vec(likely_frame(), 0..200)) {
        let mut lab = Lab::new();
        let mut decoder = Decoder::default();
        for frame in frames {
            decoder.push(&frame);
            let message = decoder.next_message().unwrap().unwrap();
            let kind = message.kind;
            lab.domain.handle(message, lab.now);
            let answers = lab.pending();
            let (_, (answered, _, _)) = &answers[0];
            prop_assert!(*answered == kind || *answered == ERROR);
        }
        prop_assert_eq!(lab.ok(READ, b"domid\0"), b"7");
    }
}
