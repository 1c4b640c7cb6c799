//! Runs of `abd`: to their end, or until something happens.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout};
use std::time::{Duration, Instant};

/// Longest run of one command: generous, because guests are emulated and cores are shared.
const LIMIT: Duration = Duration::from_secs(600);

/// What a finished run of `abd --json` left.
#[derive(Debug)]
pub struct Output {
    /// Exit code; -1 after a signal.
    pub code: i32,
    /// Every line of standard output.
    pub events: Vec<Value>,
    /// Standard error as text.
    pub stderr: String,
}

/// A run of `abd --json` that may still go on.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
    events: Vec<Value>,
}

impl Output {
    /// Fails the test unless the run succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "abd failed: {:#?}\n{}", self.events, self.stderr);
        self
    }

    /// Fails the test unless the run ended with this code; gives every error text it printed.
    #[track_caller]
    pub fn fails_with(&self, code: i32) -> String {
        assert_eq!(self.code, code, "another exit code: {:#?}\n{}", self.events, self.stderr);
        let texts = self.events.iter().flat_map(|event| [&event["error"], &event["remedy"]]);
        texts.filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
    }

    /// Fails unless some text that the run printed for people holds these words.
    #[track_caller]
    pub fn says(&self, words: &str) -> &Self {
        let texts = |event: &Value| {
            ["error", "remedy", "message", "reason", "step"]
                .map(|member| event[member].as_str().unwrap_or_default().to_owned())
        };
        let found = self.events.iter().flat_map(texts).any(|text| text.contains(words));
        assert!(found, "nothing says '{words}': {:#?}", self.events);
        self
    }

    /// Warnings that the run printed.
    pub fn warnings(&self) -> Vec<&str> {
        self.all("warning").into_iter().filter_map(|event| event["message"].as_str()).collect()
    }

    /// The events of a name.
    pub fn all(&self, event: &str) -> Vec<&Value> {
        self.events.iter().filter(|value| value["event"] == event).collect()
    }

    /// The result of the job for a VM.
    #[track_caller]
    pub fn job(&self, subject: &str) -> &Value {
        let found = self.all("job-done").into_iter().find(|job| job["subject"] == subject);
        found.unwrap_or_else(|| panic!("no job for {subject} is done: {:#?}", self.events))
    }

    /// The only answer of a command that gives one.
    #[track_caller]
    pub fn answer(&self) -> &Value {
        self.events.last().expect("the command answers")
    }
}

impl Running {
    pub(crate) fn new(mut child: Child) -> Self {
        let lines = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
        Self { child, lines, events: Vec::new() }
    }

    /// Waits until an event passes the test. Fails where the run ends before.
    #[track_caller]
    pub fn until(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        while let Some(event) = self.next_event() {
            if wanted(&event) {
                return event;
            }
        }
        panic!("the run ended before {what}: {:#?}", self.events);
    }

    /// Waits until a delegate has moved data and still has some to move.
    #[track_caller]
    pub fn until_working(&mut self) -> Value {
        self.until("a delegate works", |event| {
            event["event"] == "progress" && event["moved"].as_u64() > Some(0)
        })
    }

    /// Kills it as SIGKILL does.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was started here");
        // What it said before; a line may have been cut in its middle.
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).expect("a pipe");
        self.events.extend(rest.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
    }

    /// What it said so far.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// Whether it has ended.
    pub fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("it was started here").is_some()
    }

    /// Id of the process, for signals.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self) -> Output {
        while self.next_event().is_some() {}
        let by = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it was started here") {
                break status;
            }
            assert!(Instant::now() < by, "the run does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut stderr = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_string(&mut stderr).expect("a pipe");
        }
        Output { code: status.code().unwrap_or(-1), events: std::mem::take(&mut self.events), stderr }
    }

    fn next_event(&mut self) -> Option<Value> {
        let mut line = String::new();
        if self.lines.read_line(&mut line).expect("a pipe") == 0 {
            return None;
        }
        let event: Value =
            serde_json::from_str(&line).unwrap_or_else(|error| panic!("not a JSON line: {line:?}: {error}"));
        self.events.push(event.clone());
        Some(event)
    }
}

/// A test that failed must not leave its run behind.
impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
