//! The systemd units are what systemd takes for valid.

use std::path::Path;
use std::process::Command;

const UNITS: [(&str, &str); 3] = [
    ("abd-backup@nightly.service", include_str!("../systemd/abd-backup@.service")),
    ("abd-backup@nightly.timer", include_str!("../systemd/abd-backup@.timer")),
    ("abd-serve.service", include_str!("../systemd/abd-serve.service")),
];

/// Writes the units as an instance of this build's program.
fn install(directory: &Path) {
    for (name, text) in UNITS {
        let text = text.replace("/usr/local/bin/abd", env!("CARGO_BIN_EXE_abd"));
        std::fs::write(directory.join(name), text).expect("written");
    }
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units() {
    let directory = tempfile::tempdir().expect("a directory");
    install(directory.path());
    for (name, _) in UNITS {
        let verified = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(directory.path().join(name))
            .output();
        let output = match verified {
            Ok(output) => output,
            Err(error) => return println!("skipped: systemd-analyze cannot be run: {error}"),
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.trim().is_empty(), "{name}: {said}");
    }
}

/// The same check sees what is wrong.
#[test]
fn systemd_finds_a_wrong_key() {
    let directory = tempfile::tempdir().expect("a directory");
    install(directory.path());
    let path = directory.path().join(UNITS[0].0);
    let text = std::fs::read_to_string(&path).expect("readable").replace("ProtectSystem=", "ProtectSytem=");
    std::fs::write(&path, text).expect("written");
    match Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output() {
        Ok(output) => assert!(String::from_utf8_lossy(&output.stderr).contains("ProtectSytem")),
        Err(error) => println!("skipped: systemd-analyze cannot be run: {error}"),
    }
}

/// The service gives a run the time that its clean-up may take, and is run by the documented words.
#[test]
fn the_service_runs_a_job_file_and_waits_for_its_clean_up() {
    let service = UNITS[0].1;
    for line in [
        "Type=oneshot",
        "ExecStart=/usr/local/bin/abd run /etc/abd/%i.toml",
        "KillSignal=SIGTERM",
        "TimeoutStopSec=15min",
        "LoadCredential=abd-dc1:/etc/abd/dc1.password",
        "StateDirectory=abd",
    ] {
        assert!(service.lines().any(|found| found == line), "{line}");
    }
    assert!(UNITS[1].1.contains("[Install]\nWantedBy=timers.target"));
}

/// The words that the unit of the server runs are words of this program.
#[test]
fn the_server_is_run_by_words_that_exist_and_has_what_it_needs() {
    let service = UNITS[2].1;
    let line =
        service.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/abd ")).expect("a line");
    let help = Command::new(env!("CARGO_BIN_EXE_abd")).args(["serve", "--help"]).output().expect("abd runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in line.split_whitespace().filter(|word| word.starts_with("--")) {
        assert!(help.contains(word), "{word}");
    }
    for line in
        ["StateDirectory=abd", "KillSignal=SIGTERM", "ProtectSystem=strict", "WantedBy=multi-user.target"]
    {
        assert!(service.lines().any(|found| found == line), "{line}");
    }
}
