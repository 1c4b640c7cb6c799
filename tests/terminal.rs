//! What others wrote reaches a terminal as text: names in the pool, a delegate's words. Programs get it exactly.

use e2e::{Api, Lab};
use serde_json::{Value, json};
use std::process::Output;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);
/// Clears the screen, forges a line, and turns the writing round.
const VM: &str = "web\u{1b}[2J01\nall is well\u{202e}";
const VM_SHOWN: &str = "web\\u{1b}[2J01\\nall is well\\u{202e}";
/// Sets a window's title, in the 8-bit form too.
const SR: &str = "fast\u{1b}]0;mine\u{7}\u{9b}31m";
const SR_SHOWN: &str = "fast\\u{1b}]0;mine\\u{7}\\u{9b}31m";

/// Everything that a command for people printed; fails where a terminal would obey any of it.
#[track_caller]
fn shown(output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8(bytes.clone()).expect("text"));
    let text = text.concat();
    let is_obeyed = |c: &char| (c.is_control() && *c != '\n') || *c == '\u{202e}';
    assert_eq!(text.chars().find(is_obeyed), None, "{text:?}");
    text
}

/// Waits until the delegate works: uuid and reference of its VM.
fn working(lab: &Lab) -> (String, Value) {
    let by = Instant::now() + LIMIT;
    loop {
        assert!(Instant::now() < by, "no delegate works");
        std::thread::sleep(Duration::from_millis(20));
        let is_delegate = |vm: &&Value| {
            let is_named = vm["name_label"].as_str().is_some_and(|name| name.starts_with("abd-"));
            is_named && vm["is_a_snapshot"] == false && vm["power_state"] == "Running"
        };
        let inventory = lab.inventory();
        let Some(vm) = inventory["VM"].as_array().expect("a list").iter().find(is_delegate) else { continue };
        let uuid = vm["uuid"].as_str().expect("a uuid").to_owned();
        let api = Api::new(lab);
        let guest = api.find("VM", &uuid);
        if api.call("VM.get_xenstore_data", json!([guest]))["vm-data/abd/state"] == "working" {
            return (uuid, guest);
        }
    }
}

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(members) => members.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn names_in_a_pool_are_shown_and_never_obeyed() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm(VM, &[MIB]);
    for sr in lab.api("SR.get_all", json!([])).as_array().expect("a list") {
        lab.api("SR.set_name_label", json!([sr, SR]));
    }
    let mut found = String::new();
    for command in [
        &["plan", &vm.uuid][..],
        &["backup", &vm.uuid],
        &["-vv", "backup", &vm.uuid],
        &["list"],
        &["stats"],
        &["doctor"],
        &["template", "import", &lab.template(), "--sr", "no\u{1b}[7mne"],
        &["backup", "no\u{1b}[7mne"],
    ] {
        let text = shown(&lab.plain_command(command).output().expect("it runs"));
        if matches!(command[0], "plan" | "backup") && command.contains(&vm.uuid.as_str()) {
            // As a whole where a line is not broken at spaces.
            assert!(text.contains(VM_SHOWN), "{command:?}: {text}");
        }
        found.push_str(&text);
    }
    assert!(found.contains(SR_SHOWN), "{found}");
    assert!(found.contains("no\\u{1b}[7mne"), "{found}");

    // The summary of a job file, which goes into a mail.
    let file = lab.path("nightly.toml");
    std::fs::write(&file, format!("pools = [\"lab\"]\n[[vm]]\nuuid = \"{}\"\n", vm.uuid)).expect("written");
    shown(&lab.plain_command(&["run", &file.display().to_string()]).output().expect("it runs"));

    // Programs read what is there.
    let done = lab.abd(&["backup", &vm.uuid]).ok();
    assert_eq!(done.job(VM)["subject"], VM);
    let doctor = lab.abd(&["doctor"]);
    assert!(doctor.events.iter().flat_map(texts).any(|text| text.contains(SR)), "{:#?}", doctor.events);
}

#[test]
fn the_words_of_a_delegate_are_shown_and_never_obeyed() {
    let Some(lab) = Lab::quick(&[]) else { return };
    let vm = lab.vm("web01", &[4 * MIB]);
    lab.write(&vm.vdis[0], 0, &e2e::noise(1, 4 << 20));
    let words = "disk \u{1b}[1Agone\r\nall is well";
    for json in [false, true] {
        let command = ["backup", "web01", "--full", "--rate-limit", "1MiB/s", "--retries", "0"];
        let mut command = if json { lab.command(&command) } else { lab.plain_command(&command) };
        let run = command.spawn().expect("abd starts");
        let (delegate, guest) = working(&lab);
        let api = Api::new(&lab);
        for (key, value) in [("error-code", "made\u{1b}up"), ("error", words)] {
            api.call("VM.add_to_xenstore_data", json!([guest, format!("vm-data/abd/{key}"), value]));
        }
        lab.post(&format!("/lab/guest/{delegate}/kill"), None);
        let output = run.wait_with_output().expect("it ends");
        assert!(!output.status.success());
        if json {
            let text = String::from_utf8(output.stdout).expect("text");
            let events: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
            let failed = events.iter().find(|event| event["event"] == "job-failed").expect("it failed");
            assert!(failed["error"].as_str().is_some_and(|text| text.contains(words)), "{failed:#}");
            assert_eq!(failed["code"], "made\u{1b}up");
        } else {
            let text = shown(&output);
            assert!(text.contains("disk \\u{1b}[1Agone\\r\\nall is well"), "{text}");
            assert!(!text.lines().any(|line| line.starts_with("all is well")), "a forged line: {text}");
        }
    }
}
