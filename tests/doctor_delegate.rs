//! `abd doctor --delegate`: a delegate without a job says what jobs would meet, or where it is stuck, and is gone
//! afterwards. Delegates are processes here, but for one.

use e2e::{Delegates, Lab, Options, Output};
use serde_json::{Value, json};
use std::fs;

const MIB: u64 = 1 << 20;
/// A third of this many seconds is how long the first call is tried.
const WATCHDOG: &str = "10";

fn delegates(output: &Output) -> &Vec<Value> {
    let mut all = output.events.iter().filter_map(|event| event["delegates"].as_array());
    all.next().unwrap_or_else(|| panic!("no delegates: {:#?}", output.events))
}

/// The findings about delegates: code, level, message and remedy.
fn findings(output: &Output) -> Vec<(String, String, String, String)> {
    let all = output.events.iter().find(|event| event["findings"].is_array()).expect("findings");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = all["findings"].as_array().expect("a list").iter();
    all.filter(|one| one["code"].as_str().is_some_and(|code| code.starts_with("delegate")))
        .map(|one| (text(&one["code"]), text(&one["level"]), text(&one["message"]), text(&one["remedy"])))
        .collect()
}

/// The only finding about delegates, an error; gives its message and remedy.
#[track_caller]
fn the_error(output: &Output) -> (String, String) {
    let found = findings(output);
    let [(code, level, message, remedy)] = found.as_slice() else { panic!("{found:#?}") };
    assert_eq!((code.as_str(), level.as_str()), ("delegate", "error"), "{found:#?}");
    (message.clone(), remedy.clone())
}

/// Nothing of it is left: not in the pool, not in the state directory, and no store was made.
#[track_caller]
fn assert_no_trace(lab: &Lab, before: &Value) {
    lab.assert_clean(before);
    assert!(!lab.store().exists(), "a store was made");
    let names = fs::read_dir(lab.path("state")).expect("a directory").flatten().map(|item| item.file_name());
    let left: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("doctor-")).collect();
    assert!(left.is_empty(), "{left:?}");
    let reconciled = lab.abd(&["reconcile"]).ok();
    assert_eq!(reconciled.answer()["jobs"], json!([]), "its journal is closed");
}

#[test]
fn one_delegate_on_each_host_says_what_jobs_would_meet_and_leaves_nothing() {
    let Some(lab) = Lab::quick(&["--hosts", "2"]) else { return };
    lab.abd(&["template", "remove"]).ok();
    // Local storage of each host: a template there, or no delegate runs there.
    for storage in lab.local_storage() {
        lab.abd(&["template", "import", &lab.template(), "--sr", &storage]).ok();
    }
    let before = lab.inventory();
    let output = lab.abd(&["doctor", "--delegate"]).ok();
    let checks = delegates(&output);
    assert_eq!(checks.len(), 2, "{checks:#?}");
    assert_ne!(checks[0]["host_uuid"], checks[1]["host_uuid"]);
    for check in checks {
        assert!(check["error"].is_null() && check["addresses"] == "10.0.2.15", "{check:#}");
        let states = check["states"].as_array().expect("a list");
        assert_eq!(states.last().expect("states")["state"], "finished", "{check:#}");
        assert_eq!(check["read"]["bytes"], MIB, "all of its own disk: {check:#}");
        assert!(check["send"]["bytes"].as_u64() > Some(64 * MIB), "{check:#}");
        for number in
            ["/send/bytes_per_second", "/connect/tls_us", "/round_trip_us", "/memory", "/processors"]
        {
            let value = check.pointer(number).unwrap_or_else(|| panic!("{number}: {check:#}"));
            assert!(value.as_u64() > Some(0), "{number}: {check:#}");
        }
        let ahead = check["clock_ahead_ms"].as_i64().expect("a number");
        assert!(ahead.abs() < 60_000, "the same clock: {ahead}");
        assert!(check["engine"].as_str().is_some_and(|engine| !engine.is_empty()));
    }
    assert!(findings(&output).iter().all(|(_, level, ..)| level != "error"), "{:#?}", findings(&output));
    assert_no_trace(&lab, &before);

    // Only one of them, in words for people: nothing but the answer goes into a pipe.
    let host = checks[1]["host"].as_str().expect("a name");
    let mut people = lab.plain_command(&["doctor", "--delegate", "lab", "--host", host]);
    let output = people.output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && output.stderr.is_empty(), "{text}{:?}", output.stderr);
    assert!(text.starts_with(&format!("delegate on host '{host}' of pool 'lab'\n")), "{text}");
    assert_eq!(text.matches("\n  reached ").count(), 1, "{text}");
    for row in ["reached", "address", "boot", "connect", "own disk", "send", "clock", "memory", "engine"] {
        assert!(text.contains(&format!("\n  {row:<10}  ")), "{row}: {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert_no_trace(&lab, &before);

    let absent = lab.abd(&["doctor", "--delegate", "--host", "no-such-host"]);
    absent.fails_with(3);
    assert!(the_error(&absent).0.contains("no host of pool 'lab' is named 'no-such-host'"));
    lab.abd(&["doctor", "--host", host]).fails_with(2);
    lab.abd(&["doctor", "--delegate", "no-such-pool"]).fails_with(3);
}

#[test]
fn a_delegate_that_gets_nowhere_says_where_it_is_stuck_and_what_to_do() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let before = lab.inventory();
    lab.post("/lab/faults", Some(&json!({"dhcp": false})));
    let output = lab.abd(&["doctor", "--delegate"]);
    output.fails_with(1);
    let (message, remedy) = the_error(&output);
    assert!(message.contains("(no-link)") && message.contains("no link on eth0"), "{message}");
    assert!(remedy.contains("plug the cable"), "{remedy}");
    let check = &delegates(&output)[0];
    assert_eq!((&check["code"], &check["addresses"]), (&json!("no-link"), &json!("")));
    assert!(check["states"].as_array().is_some_and(|states| states[0]["state"] == "booted"), "{check:#}");
    assert_no_trace(&lab, &before);
    lab.post("/lab/faults", Some(&json!({"dhcp": true})));

    // An address of which nobody answers with TLS: what a delegate that is a process sees of a blocked port.
    lab.abd(&["pool", "remove", "lab"]).ok();
    let (url, fingerprint) = (lab.url(), lab.ports.fingerprint.clone());
    let password = lab.ports.password_file.display().to_string();
    let mut arguments = lab.pool_arguments(&url, &fingerprint, &password);
    let at = arguments.iter().position(|word| *word == "10.0.2.2").expect("the address");
    arguments[at] = "127.0.0.9";
    lab.abd(&arguments).ok();
    let output = lab.abd(&["doctor", "--delegate", "--watchdog", WATCHDOG]);
    output.fails_with(1);
    let (message, remedy) = the_error(&output);
    assert!(message.contains("(no-tls)") && message.contains("the orchestrator did not answer"), "{message}");
    assert!(remedy.contains("`abd pool add --advertise`"), "{remedy}");
    let check = &delegates(&output)[0];
    let states: Vec<_> =
        check["states"].as_array().expect("a list").iter().map(|one| &one["state"]).collect();
    assert!(states.contains(&&json!("connecting")) && !states.contains(&&json!("claimed")), "{states:?}");
    assert_no_trace(&lab, &before);
}

#[test]
fn without_a_template_no_delegate_is_started_and_the_exit_code_says_so() {
    let options = Options { delegates: Delegates::Processes, without_template: true, ..Options::default() };
    let Some(lab) = Lab::with(options) else { return };
    let before = lab.inventory();
    let output = lab.abd(&["doctor", "--delegate"]);
    output.fails_with(7);
    let (message, remedy) = the_error(&output);
    assert!(message.contains("no delegate was started in pool 'lab'"), "{message}");
    assert!(remedy.contains("abd template import"), "{remedy}");
    assert_eq!(delegates(&output).len(), 0);
    assert_no_trace(&lab, &before);
}

#[test]
fn one_that_is_stopped_or_killed_is_cleaned_up_after() {
    let Some(lab) = Lab::quick(&["--delegate-network-rate", "1048576"]) else { return };
    let before = lab.inventory();
    let is_working = |event: &Value| {
        event["event"] == "step"
            && event["step"].as_str().is_some_and(|step| step.starts_with("delegate works"))
    };
    let mut run = lab.spawn(&["doctor", "--delegate"]);
    run.until("its delegate works", is_working);
    let sent = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", run.id())]).status();
    assert!(sent.expect("a shell").success());
    let text = run.finish().fails_with(130);
    assert!(text.contains("stopped on request"), "{text}");
    assert_no_trace(&lab, &before);

    let mut run = lab.spawn(&["doctor", "--delegate"]);
    run.until("its delegate works", is_working);
    run.kill();
    let removed = lab.abd(&["reconcile"]).ok();
    assert!(!removed.answer()["removed"].as_array().expect("a list").is_empty());
    // The killed process could not log out; its session ends by itself in a real pool.
    let mut before = before;
    before["session"] = lab.inventory()["session"].clone();
    lab.assert_clean(&before);
    // What it had on this machine goes with the next one.
    lab.post("/lab/faults", Some(&json!({"dhcp": false})));
    lab.abd(&["doctor", "--delegate"]).fails_with(1);
    assert_no_trace(&lab, &before);
}

/// A real guest: eight processors, two networks with jumbo frames, of which only the second leads to this machine, DHCP,
/// io_uring, and the boot disk that it came from.
#[test]
fn a_guest_with_eight_processors_and_two_cards_measures_its_own_boot() {
    let Some(lab) = Lab::start() else { return };
    lab.post("/lab/network", Some(&json!({"name": "storage"})));
    for network in lab.api("network.get_all", json!([])).as_array().expect("a list") {
        lab.api("network.set_MTU", json!([network, 9000]));
    }
    let management = "Pool-wide network associated with eth0";
    // An address of this machine that only the second card's network has.
    let reach = ["--network", management, "--network", "storage", "--advertise", "10.0.3.2"];
    lab.abd(&[&["pool", "set", "lab"], &reach[..]].concat()).ok();
    let before = lab.inventory();
    let output = lab.abd(&["doctor", "--delegate", "--delegate-vcpus", "8", "--boot-limit", "600"]).ok();
    let check = &delegates(&output)[0];
    println!("measured: {check:#}");
    assert_eq!((&check["processors"], &check["code"]), (&json!(8), &Value::Null), "{check:#}");
    assert!(check["engine"].as_str().is_some_and(|engine| engine.starts_with("io_uring")), "{check:#}");
    assert!(check["read"]["bytes"].as_u64() > Some(4 * MIB), "a whole image: {check:#}");
    assert!(check["boot_ms"].as_u64() > Some(0) && check["send"]["bytes"].as_u64() > Some(0), "{check:#}");
    let reached: Vec<_> = check["milestones"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert!(reached.iter().any(|name| name.starts_with("MTU 9000 on eth0")), "{reached:?}");
    assert!(reached.iter().any(|name| name.starts_with("DHCP lease 10.0.2.15/24 on eth0")), "{reached:?}");
    assert!(reached.iter().any(|name| name.starts_with("DHCP lease 10.0.3.15/24 on eth1")), "{reached:?}");
    let cards = check["cards"].as_array().expect("a list");
    for (number, network, address) in [(0, management, "10.0.2.15"), (1, "storage", "10.0.3.15")] {
        assert_eq!((&cards[number]["number"], &cards[number]["network"]), (&json!(number), &json!(network)));
        let addresses = cards[number]["addresses"].as_str().unwrap_or_default();
        assert!(addresses.starts_with(address), "{check:#}");
    }
    let target = check["connect"]["address"].as_str().unwrap_or_default();
    assert!(target.starts_with("10.0.3.2:"), "{check:#}");
    // The last lines on its console, for who looks there.
    let guests = fs::read_dir(lab.path("pool").join("guests")).expect("a directory").flatten();
    let consoles: String =
        guests.filter_map(|guest| fs::read_to_string(guest.path().join("console.log")).ok()).collect();
    for words in ["KiB in all", "processors: 8, worker's time", "powering off: the job has ended"] {
        assert!(consoles.contains(words), "{words}: {consoles}");
    }
    assert_no_trace(&lab, &before);
}
