//! What a delegate without a job measured, from the wire to what people and programs read of it.

use super::wire::message;
use ::wire::Diagnosis;
use abd_orchestrator::check::{Clock, DelegateCheck, Measures};
use abd_orchestrator::printable::{printable, printable_lines};
use abd_orchestrator::report::DelegateSummary;

/// What this machine's clock says here, in milliseconds since 1970.
const NOW_MS: u64 = 1_800_000_000_000;

/// A [`Diagnosis`], then what `abd doctor --delegate` makes of it.
pub fn diagnoses(data: &[u8]) {
    let Some(told) = message::<Diagnosis>(data) else { return };
    for speed in [&told.read, &told.send].into_iter().flatten() {
        assert!(speed.per_second().is_some() || speed.micros == 0, "{speed:?}");
    }
    let clock = Clock::of(told.clock_ms, NOW_MS);
    let measures = Measures { delegate: DelegateSummary::default(), clock, told };
    let check = DelegateCheck { measures: Some(measures), ..DelegateCheck::of("dc1", "host", "u-1") };
    let text = check.text();
    assert_eq!(printable_lines(&text), text, "a terminal only shows it");
    let findings = check.findings();
    assert!(!findings.is_empty());
    for finding in &findings {
        let _ = printable(&finding.message);
    }
    assert!(check.is_sound() || findings.iter().any(|finding| finding.remedy.is_some()));
    let json = serde_json::to_string(&check).expect("text and numbers");
    serde_json::from_str::<serde_json::Value>(&json).expect("what was just written");
}
