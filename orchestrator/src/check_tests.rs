use super::*;
use crate::preflight::Level;
use wire::{Connect, Milestone};

fn speed(bytes: u64, micros: u64) -> Result<Speed, Failure> {
    Ok(Speed { bytes: ByteCount::new(bytes), micros, slowest_us: 1500 })
}

fn sound() -> DelegateCheck {
    let delegate = DelegateSummary {
        engine: "io_uring".into(),
        boot_ms: 900,
        claim_ms: 2100,
        memory: 120 << 20,
        available_low: 90 << 20,
        ..DelegateSummary::default()
    };
    let told = Diagnosis {
        clock_ms: 0,
        processors: 1,
        milestones: vec![Milestone { name: "up".into(), at_ms: 1 }],
        connect: Ok(Connect { address: "10.0.2.2:1".into(), tcp_us: 300, tls_us: 4000 }),
        round_trip_us: Ok(250),
        read: speed(12 << 20, 100_000),
        send: speed(256 << 20, 2_000_000),
    };
    DelegateCheck {
        states: vec![Reached { state: "booted".into(), at_ms: 1000 }],
        addresses: "10.0.2.15".into(),
        measures: Some(Measures { delegate, clock: Clock::of(1000, 1000), told }),
        ..DelegateCheck::of("dc1", "host-a", "u-1")
    }
}

fn with(change: impl FnOnce(&mut Measures)) -> DelegateCheck {
    let mut check = sound();
    change(check.measures.as_mut().expect("measured"));
    check
}

fn codes(check: &DelegateCheck) -> Vec<(&'static str, Level)> {
    check.findings().iter().map(|finding| (finding.code.as_str(), finding.level)).collect()
}

#[test]
fn a_sound_delegate_is_one_finding_that_is_ok() {
    assert!(sound().is_sound());
    assert_eq!(codes(&sound()), [("delegate", Level::Ok)]);
    assert_eq!(sound().findings()[0].pool.as_deref(), Some("dc1"));
}

/// Makes a sound delegate a little worse.
type Change = fn(&mut Measures);

#[test]
fn what_is_slow_or_odd_is_a_warning_of_its_own() {
    let slow = |change: Change| {
        let check = with(change);
        assert!(check.is_sound());
        codes(&check)
    };
    let cases: [(Change, &str); 7] = [
        (|m| m.delegate.claim_ms = 30_001, "delegate-slow"),
        (|m| m.told.read = speed(12 << 20, 2_000_000), "delegate-slow"),
        (|m| m.told.send = speed(1000, 9_000_000), "delegate-slow"),
        (|m| m.told.round_trip_us = Ok(50_001), "delegate-slow"),
        (|m| m.clock = Clock::of(0, 60_001), "delegate-clock"),
        (|m| m.delegate.engine = "pread: no ring".into(), "delegate-engine"),
        (|m| m.delegate.available_low = 1 << 20, "delegate-memory"),
    ];
    for (at, (change, code)) in cases.into_iter().enumerate() {
        assert_eq!(slow(change), [(code, Level::Warning)], "case {at}");
    }
    // Too little, too quickly read to say anything.
    assert_eq!(slow(|m| m.told.read = speed(1000, 1_000_000)), [("delegate", Level::Ok)]);
}

#[test]
fn a_measurement_that_failed_is_an_error_with_its_code_and_what_helps() {
    let check = with(|m| m.told.read = Err(Failure::new("read-error", "the disk at userdevice 0")));
    assert!(!check.is_sound());
    let findings = check.findings();
    let [finding] = findings.as_slice() else { panic!("{findings:?}") };
    assert_eq!(finding.level, Level::Error);
    assert!(finding.message.contains("could not read its own disk (read-error)"), "{}", finding.message);
    assert_eq!(finding.remedy.as_deref(), wire::advice("read-error"));
    assert!(check.text().contains("own disk    FAILED (read-error)"), "{}", check.text());
}

#[test]
fn a_failure_says_how_far_the_delegate_came() {
    let check = DelegateCheck {
        error: Some("no DHCP lease on eth0".into()),
        code: Some("no-dhcp-lease".into()),
        remedy: Some("plug it".into()),
        kind: Some(Kind::Leftovers),
        leftovers: vec!["VM abd-1".into()],
        measures: None,
        ..sound()
    };
    let findings = check.findings();
    assert_eq!((findings[0].kind, findings[0].remedy.as_deref()), (Kind::Leftovers, Some("plug it")));
    let text = check.text();
    assert!(text.contains("FAILED      after 'booted' (no-dhcp-lease): no DHCP lease on eth0"), "{text}");
    assert!(text.contains("left        VM abd-1"), "{text}");
}

#[test]
fn text_fits_a_terminal_and_json_has_members_for_every_measure() {
    let text = with(|m| m.told.connect = Err(Failure::new("no-tls", "w ".repeat(200)))).text();
    assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
    let text = sound().text();
    assert!(text.contains("connect     10.0.2.2:1: TCP 0.3 ms, TLS 4.0 ms, a call 0.2 ms"), "{text}");
    assert!(text.contains("own disk    12.00 MiB read at 120.00 MiB/s"), "{text}");
    let value = serde_json::to_value(sound()).expect("plain");
    assert_eq!(value["read"]["bytes_per_second"], 120 << 20);
    assert_eq!((&value["round_trip_us"], &value["clock_ahead_ms"]), (&250.into(), &0.into()));
    assert_eq!((&value["connect"]["tls_us"], &value["boot_ms"]), (&4000.into(), &900.into()));
    assert!(value["code"].is_null() && value["states"][0]["at_ms"] == 1000, "{value}");
}

#[test]
fn clocks_differ_in_both_directions() {
    assert_eq!(Clock::of(1500, 0).text(), "1.5 s ahead of this machine's");
    assert_eq!(Clock::of(0, 250).text(), "0.2 s behind this machine's");
    assert_eq!(Clock::of(u64::MAX, 0).clock_ahead_ms, i64::MAX);
}

#[test]
fn the_addresses_of_several_cards_stand_with_their_networks() {
    let card = |number, network: &str, addresses: &str| CardCheck {
        number,
        network: network.into(),
        addresses: addresses.into(),
    };
    let one = DelegateCheck { cards: vec![card(0, "storage", "10.0.2.15")], ..sound() };
    assert!(one.text().contains("\n  address     10.0.2.15\n"), "{}", one.text());
    let cards = vec![card(0, "storage", "10.0.2.15 fd00::5"), card(1, "Management", "")];
    let text = DelegateCheck { cards, ..sound() }.text();
    assert!(text.contains("\n  card 0      10.0.2.15 fd00::5 on network 'storage'\n"), "{text}");
    assert!(text.contains("\n  card 1      no address on network 'Management'\n"), "{text}");
    assert!(!text.contains("\n  address "), "{text}");
}
