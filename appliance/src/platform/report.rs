//! State and errors of the job, mirrored into `vm-data/abd/*`, where the orchestrator sees them even without a network.
//!
//! Promises: a report that cannot be written never stops the job; the first final word wins.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::console;
use super::xenstore::{XenStore, cut_to_value};
use crate::init::lifeline::Ticker;
use wire::{KEY_PREFIX, State};

/// Writes the reports. Clones share one final word.
#[derive(Clone)]
pub struct Reporter {
    xenstore: XenStore,
    ticker: Ticker,
    spoken: Arc<Mutex<bool>>,
    complained: Arc<AtomicBool>,
}

impl Reporter {
    /// Reports through `xenstore`; `ticker` tells PID 1 that the final word was said.
    pub fn new(xenstore: XenStore, ticker: Ticker) -> Reporter {
        Reporter { xenstore, ticker, spoken: Arc::default(), complained: Arc::default() }
    }

    /// Reports a state on the way. The final ones have functions of their own.
    pub fn state(&self, state: State) {
        let spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        if *spoken {
            return;
        }
        console::line(&format!("state: {}", state.name()));
        self.put("state", state.name());
    }

    /// The final word: the job is done.
    pub fn finished(&self) {
        self.speak(State::Finished, None);
    }

    /// The final word: the job failed. `code` is short kebab-case, `message` one sentence a person can act on.
    pub fn failed(&self, code: &str, message: &str) {
        self.speak(State::Failed, Some((code, message)));
    }

    /// As [`Reporter::failed`], with the code and the whole chain of an error.
    pub fn fail(&self, error: &crate::Error) {
        self.failed(error.code(), &crate::chain(error));
    }

    /// SHA-256 of our TLS public key (SPKI DER), by which the orchestrator knows us.
    pub fn key(&self, digest: &[u8; 32]) {
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        self.put("key", &hex);
    }

    /// The addresses in use: of all cards, and then of each by its number.
    pub fn address(&self, addresses: &[IpAddr], by_nic: &[(u32, Vec<IpAddr>)]) {
        let text = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
        self.put("address", &text(addresses));
        for (nic, addresses) in by_nic {
            self.put(&format!("address/{nic}"), &text(addresses));
        }
    }

    /// Version of this program.
    pub fn agent(&self, version: &str) {
        self.put("agent", version);
    }

    /// Milliseconds from the kernel's start to ours.
    pub fn boot_ms(&self, milliseconds: u128) {
        self.put("boot-ms", &milliseconds.to_string());
    }

    fn speak(&self, state: State, reason: Option<(&str, &str)>) {
        let mut spoken = self.spoken.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *spoken, true) {
            return;
        }
        match reason {
            Some((code, message)) => {
                console::failure(code, message);
                self.ticker.error(code, message);
            }
            None => {
                console::line("state: finished");
                self.ticker.done();
            }
        }
        if write_final_word(&self.xenstore, state, reason).is_ok() {
            self.ticker.final_word();
        }
        // Otherwise PID 1 tries again, after this process has let go of the connection.
    }

    fn put(&self, key: &str, value: &str) {
        let written = self.xenstore.write(&format!("{KEY_PREFIX}/{key}"), cut_to_value(value));
        if let Err(error) = written
            && !self.complained.swap(true, Ordering::Relaxed)
        {
            console::line(&format!("cannot report to XenStore, going on: {}", crate::chain(&error)));
        }
    }
}

/// Writes the last state. The reason comes before it: whoever sees `failed` finds the reason there already.
pub(crate) fn write_final_word(
    xenstore: &XenStore,
    state: State,
    reason: Option<(&str, &str)>,
) -> Result<(), super::xenstore::Error> {
    if let Some((code, message)) = reason {
        xenstore.write(&format!("{KEY_PREFIX}/error-code"), cut_to_value(code))?;
        xenstore.write(&format!("{KEY_PREFIX}/error"), cut_to_value(message))?;
    }
    xenstore.write(&format!("{KEY_PREFIX}/state"), state.name())
}
