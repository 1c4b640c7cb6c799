//! Lines for the person at the VM's console.
//!
//! `/dev/console` is only one of the consoles (the last one that the kernel was told of); an admin looks at whichever
//! his tool shows. So every line goes to all active ones. Never blocks: a console that takes nothing loses lines.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::time::Duration;

use super::clock;

/// Names of the active consoles, space separated.
const ACTIVE: &str = "/sys/class/tty/console/active";
/// Consoles that are written to; a VM has two or three.
const CONSOLES_MAX: usize = 8;
/// Longest line. A panic message with a long path still fits.
const LINE_MAX: usize = 1024;

static CONSOLES: OnceLock<Vec<File>> = OnceLock::new();

/// Opens the active consoles. Without it, and where none can be opened, lines go to standard error.
pub fn open_active() {
    let names = fs::read_to_string(ACTIVE).unwrap_or_default();
    let open = |name: &str| {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        OpenOptions::new().write(true).custom_flags(flags).open(format!("/dev/{name}")).ok()
    };
    let consoles = names.split_whitespace().take(CONSOLES_MAX).filter_map(open).collect();
    // Set twice: the first ones stay, they are the same.
    let _ = CONSOLES.set(consoles);
}

/// Writes one line with the time since the kernel started.
pub fn line(text: &str) {
    let line = format_line(clock::uptime(), text);
    let consoles = CONSOLES.get().map(Vec::as_slice).unwrap_or_default();
    if consoles.is_empty() {
        // Lost: the line. There is nowhere else to say it.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
    for mut console in consoles {
        // As above, for this console.
        let _ = console.write_all(line.as_bytes());
    }
}

/// Writes why the job failed, and what to do about it.
pub fn failure(code: &str, message: &str) {
    line(&format!("FAILED ({code}): {message}"));
    if let Some(advice) = wire::advice(code) {
        line(&format!("what to do: {advice}"));
    }
}

fn format_line(at: Duration, text: &str) -> String {
    // A value from outside may be part of the text: it must not move the cursor or fake a second line.
    let clean: String = text.chars().take(LINE_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
    format!("[{:5}.{:03}] abd: {clean}\n", at.as_secs(), at.subsec_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_uptime_and_no_control_characters() {
        let line = format_line(Duration::from_millis(1_234), "no lease\n\x1b[2J");
        assert_eq!(line, "[    1.234] abd: no lease??[2J\n");
    }
}
