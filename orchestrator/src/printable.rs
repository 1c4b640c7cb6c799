//! Text from outside on its way to a person's terminal.
//!
//! Names in a pool, messages of its servers and words of a delegate are whatever somebody wrote: a VM can be called
//! `\x1b]0;..`. What a terminal would obey instead of showing it is shown as an escape here, the same everywhere. JSON is
//! not touched: its own escapes keep the exact value.

use std::borrow::Cow;
use std::io::{self, Write};

/// What moves a cursor, starts a line, switches a terminal's mode, or turns the writing round.
fn is_obeyed(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{2029}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// A text as one line that a terminal only shows: `\n`, `\t`, `\u{1b}` and the like stand for what it would obey.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if is_obeyed(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// [`printable`] for a text whose lines are ours: each by itself.
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c != '\n' && is_obeyed(c)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.split('\n').map(printable).collect::<Vec<_>>().join("\n"))
}

/// Standard error for a log: each event, written as a whole, is one printable line.
#[derive(Debug, Default)]
pub struct LogLine;

impl Write for LogLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stderr().lock().write_all(&log_line(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn log_line(bytes: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    format!("{}\n", printable(text.trim_end_matches('\n'))).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_obeys_is_shown_instead() {
        for (text, shown) in [
            ("web01", "web01"),
            ("Büro – 東京 🖥 👩\u{200d}💻", "Büro – 東京 🖥 👩\u{200d}💻"),
            ("a\u{1b}[31mred", "a\\u{1b}[31mred"),
            ("a\u{1b}]0;title\u{7}", "a\\u{1b}]0;title\\u{7}"),
            ("a\r\nb\tc\u{8}", "a\\r\\nb\\tc\\u{8}"),
            ("\u{9b}2J\u{7f}", "\\u{9b}2J\\u{7f}"),
            ("exe.\u{202e}gpj", "exe.\\u{202e}gpj"),
            ("a\\n", "a\\n"),
            ("", ""),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
        }
        assert!(matches!(printable("web01"), Cow::Borrowed(_)));
    }

    #[test]
    fn lines_of_ours_stay_lines() {
        assert_eq!(printable_lines("a\nb\n"), "a\nb\n");
        assert_eq!(printable_lines("a\u{1b}c\nb\r"), "a\\u{1b}c\nb\\r");
    }

    #[test]
    fn an_event_of_the_log_is_one_line() {
        assert_eq!(log_line(b"INFO vm=a\nERROR forged \x1b[2J\n"), b"INFO vm=a\\nERROR forged \\u{1b}[2J\n");
        assert_eq!(log_line(b"\xff\n"), "\u{fffd}\n".as_bytes());
    }

    proptest! {
        #[test]
        fn nothing_that_a_terminal_obeys_is_left(text in any::<String>()) {
            prop_assert!(!printable(&text).chars().any(is_obeyed));
            prop_assert!(!printable_lines(&text).chars().any(|c| c != '\n' && is_obeyed(c)));
            let shown = printable(&text).into_owned();
            prop_assert_eq!(printable(&shown), shown.as_str());
        }
    }
}
