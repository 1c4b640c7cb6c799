//! The pool's request to shut down, where no kernel driver takes it.
//!
//! On Xen the kernel owns `control/shutdown`: it clears the key and runs `/sbin/poweroff`, which is this program again.
//! A lab guest has no such driver, so a thread of the worker does the same.

use std::io;
use std::thread;
use std::time::Duration;

use super::console;
use super::xenstore::{Error, XenStore};

const KEY: &str = "control/shutdown";
/// What the guest announces that it can do.
const FEATURES: [&str; 3] =
    ["control/feature-shutdown", "control/feature-poweroff", "control/feature-reboot"];
/// Wake-up without an event; also the pause after a connection that ended.
const WAIT: Duration = Duration::from_secs(60);

/// Watches the key in a thread and calls `act` once with the word that was asked.
pub fn watch(xenstore: XenStore, act: impl FnOnce(&str) + Send + 'static) -> io::Result<()> {
    let body = move || {
        if let Err(error) = follow(&xenstore, act) {
            console::line(&format!("shutdown requests will not be seen: {}", crate::chain(&error)));
        }
    };
    thread::Builder::new().name("shutdown".to_owned()).spawn(body).map(drop)
}

fn follow(xenstore: &XenStore, act: impl FnOnce(&str)) -> Result<(), Error> {
    for feature in FEATURES {
        xenstore.write(feature, "1")?;
    }
    let watch = xenstore.watch(KEY)?;
    while watch.is_alive() {
        if watch.next(WAIT).is_none() {
            continue;
        }
        let word = xenstore.read_optional(KEY)?.unwrap_or_default();
        if is_request(&word) {
            // Clearing the key is the acknowledgement, so it comes before acting.
            xenstore.write(KEY, "")?;
            act(&word);
            return Ok(());
        }
    }
    Ok(())
}

fn is_request(word: &str) -> bool {
    matches!(word, "poweroff" | "halt" | "reboot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_three_words_shut_down() {
        assert!(is_request("poweroff") && is_request("halt") && is_request("reboot"));
        assert!(!is_request("") && !is_request("suspend") && !is_request("poweroff "));
    }
}
