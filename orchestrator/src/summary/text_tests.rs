//! The text as a person sees it.

use super::super::{DiskRow, Whole};
use super::*;
use crate::error::Kind;
use proptest::prelude::*;

fn disk(mode: &str, read: u64, stored: u64) -> DiskRow {
    DiskRow { name: "root".into(), mode: mode.into(), read, stored, ..DiskRow::default() }
}

fn done(vm: &str) -> VmSummary {
    VmSummary {
        vm: vm.into(),
        result: VmResult::Done,
        tries: 1,
        point: Some("3f2a90c1b4d2e0".into()),
        elapsed_ms: 61_000,
        disks: vec![disk("cbt", 300 << 20, 35 << 20), disk("cbt", 5 << 30, 1000)],
        ..VmSummary::default()
    }
}

fn failed(vm: &str) -> VmSummary {
    VmSummary {
        vm: vm.into(),
        result: VmResult::Failed,
        kind: Some(Kind::Failed),
        tries: 3,
        error: Some(
            "snapshot db01: SR_BACKEND_FAILURE_44: there is not enough space on 'Local storage'".into(),
        ),
        remedy: Some("make room on the VM's storage repository: a snapshot needs some".into()),
        ..VmSummary::default()
    }
}

fn summary(vms: Vec<VmSummary>) -> RunSummary {
    RunSummary {
        name: "nightly".into(),
        pools: vec!["dc1".into()],
        store: "/srv/abd".into(),
        started: "2026-11-25T22:00:03+01:00".into(),
        ended: "2026-11-25T23:14:41+01:00".into(),
        elapsed_ms: 4_478_000,
        vms,
        ..RunSummary::default()
    }
    .concluded(Whole::default())
}

#[test]
fn a_mail_says_first_what_matters() {
    let skipped = VmSummary {
        vm: "mail01".into(),
        error: Some("the backup window closed; it opens again at 2026-11-26 22:00".into()),
        ..VmSummary::default()
    };
    let warned = VmSummary { warnings: vec!["no quiesced snapshot".into()], ..done("web01") };
    let left =
        VmSummary { leftovers: vec!["VDI 0f6f0d2c".into()], ..done("a-name-that-is-longer-than-its-column") };
    let text = text(&summary(vec![warned, left, failed("db01"), skipped]));
    let expected = "\
abd nightly: FAILED: 2 of 4 VMs not backed up
2026-11-25 22:00 to 23:14 +01:00 (74 min)
pool dc1
store /srv/abd
read 10.5 GiB, stored 70.0 MiB

VM                   RESULT  MODE         READ   STORED    TIME POINT
web01                done    cbt       5.2 GiB 35.0 MiB    61 s 3f2a90c1b4d2
a-name-that-is-long~ done    cbt       5.2 GiB 35.0 MiB    61 s 3f2a90c1b4d2
db01                 FAILED
mail01               skipped

Failed
------
db01 (tried 3 times)
  snapshot db01: SR_BACKEND_FAILURE_44: there is not enough space on 'Local
    storage'
  what to do: make room on the VM's storage repository: a snapshot needs some

Not started
-----------
mail01
  the backup window closed; it opens again at 2026-11-26 22:00

Still in the pool
-----------------
a-name-that-is-longer-than-its-column: VDI 0f6f0d2c
  what to do: run `abd reconcile` when the pool answers; the next run does it
    too

Warnings
--------
web01: no quiesced snapshot
";
    assert_eq!(text, expected, "\n{text}");
}

#[test]
fn the_first_line_fits_every_result() {
    let alarm = || VmSummary { alarms: vec!["root".into()], ..done("x") };
    let left = || VmSummary { leftovers: vec!["VDI".into()], ..done("x") };
    let skipped = VmSummary::default;
    for (vms, line) in [
        (vec![done("a")], "abd nightly: 1 VM backed up"),
        (vec![done("a"), done("b")], "abd nightly: 2 VMs backed up"),
        (vec![done("a"), failed("b")], "abd nightly: FAILED: 1 of 2 VMs not backed up"),
        (vec![alarm(), done("a")], "abd nightly: ALARM for 1 VM: earlier restore points are in doubt"),
        (vec![alarm(), failed("b")], "abd nightly: ALARM for 1 VM; 1 of 2 VMs not backed up"),
        (vec![left()], "abd nightly: 1 VM backed up; something is left in the pool"),
        (vec![skipped(), skipped()], "abd nightly: NOTHING DONE: none of 2 VMs was backed up"),
        (vec![], "abd nightly: NOTHING DONE: no VM was selected"),
    ] {
        assert_eq!(summary(vms).headline(), line);
    }
    let stopped = Whole { is_stopped: true, ..Whole::default() };
    assert_eq!(
        summary(vec![done("a"), skipped()]).concluded(stopped).headline(),
        "abd nightly: STOPPED: 1 of 2 VMs backed up"
    );
}

#[test]
fn an_alarm_says_what_it_means() {
    let alarm = VmSummary { alarms: vec!["root".into(), "data".into()], ..done("db01") };
    let text = text(&summary(vec![alarm]));
    assert!(text.contains("db01: root, data"), "{text}");
    assert!(text.contains("Earlier ones"), "{text}");
    assert!(text.contains("db01 ALARM"), "{text}");
}

#[test]
fn sizes_and_times_fit_their_columns() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (102_399, "99.9 KiB"),
        (1_048_575, "1023 KiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(short_size(bytes), text);
        assert!(text.len() <= 8);
    }
    for (milliseconds, text) in [
        (0, "0.0 s"),
        (9_999, "9.9 s"),
        (119_999, "119 s"),
        (120_000, "2 min"),
        (7_199_999, "119 min"),
        (7_200_000, "2 h 00"),
        (359_999_999, "99 h 59"),
        (360_000_000, "4 d"),
    ] {
        assert_eq!(short_time(milliseconds), text);
        assert!(text.len() <= 7);
    }
}

proptest! {
    #[test]
    fn no_line_is_too_long_and_no_word_is_lost(
        name in "\\PC{0,90}",
        error in "[a-z/ \u{1b}\n\u{202e}]{0,400}",
        warning in "[a-z]{0,200}",
    ) {
        let one = VmSummary { error: Some(error.clone()), vm: name.clone(), ..failed("x") };
        let two = VmSummary { warnings: vec![warning.clone()], ..done(&name) };
        let run = RunSummary { name: name.clone(), ..summary(vec![one, two]) };
        let text = text(&run);
        for line in text.lines() {
            prop_assert!(line.chars().count() <= WIDTH, "{line}");
            prop_assert!(!line.chars().any(char::is_control));
        }
        let letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).collect::<String>();
        prop_assert!(letters(&text).contains(&letters(&clean(&error))), "{text}");
        prop_assert!(letters(&text).contains(&letters(&warning)), "{text}");
    }
}
