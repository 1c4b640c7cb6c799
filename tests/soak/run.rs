//! One run of `abd backup` under its plan: reads what it prints, does to it what the plan says, and waits for its end.

use super::plan::{Plan, RUN_LIMIT, Trouble};
use e2e::{Lab, Model};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often a run that prints nothing is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How a run ended.
pub(super) struct Ended {
    /// Exit code; -1 after a signal.
    pub(super) code: i32,
    /// What it printed.
    pub(super) events: Vec<Value>,
    /// Whether it was killed.
    pub(super) killed: bool,
    /// Whether what the plan says did happen.
    pub(super) struck: bool,
    /// What the simulator logged meanwhile.
    pub(super) log: Vec<Value>,
    /// Its standard error.
    pub(super) stderr: String,
}

impl Ended {
    /// The events of a name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events.iter().filter(move |event| event["event"] == name)
    }

    /// Everything that is worth reading, for a failure's message.
    pub(super) fn text(&self) -> String {
        let shown = self.events.iter().filter(|event| event["event"] != "progress");
        let lines: Vec<String> = shown.map(Value::to_string).collect();
        format!("{}\n{}", lines.join("\n"), self.stderr)
    }
}

struct Running<'a> {
    lab: &'a Lab,
    model: &'a mut Model,
    plan: &'a Plan,
    child: Child,
    /// What the simulator logged, and the number of the next entry.
    log: Vec<Value>,
    next: &'a mut u64,
    events: Vec<Value>,
    killed: bool,
    struck: bool,
    stopped: bool,
    hosts: &'a [String],
}

/// Does one run. `next` is the number of the first entry of the simulator's log that nobody has read.
///
/// # Errors
/// A run that does not end, or prints what is no event.
pub(super) fn execute(
    lab: &Lab,
    model: &mut Model,
    hosts: &[String],
    next: &mut u64,
    plan: &Plan,
    more: &[&str],
) -> Result<Ended, String> {
    if let Trouble::Calls(_, fault) | Trouble::Frozen(fault) = &plan.trouble {
        model.admin().lab("POST", "/lab/faults", Some(fault));
    }
    let names: Vec<String> = plan.vms.iter().map(|vm| model.name(*vm).to_owned()).collect();
    let jobs = plan.jobs.to_string();
    let mut arguments = vec!["backup", "--jobs", &jobs];
    arguments.extend(more);
    arguments.extend(plan.options);
    let exclude = plan.exclude.map(|position| format!("position:{position}"));
    if let Some(exclude) = &exclude {
        arguments.extend(["--exclude-disk", exclude]);
    }
    if plan.trouble == Trouble::Delegate {
        // Slow enough to be killed in the middle.
        arguments.extend(["--rate-limit", "2MiB/s"]);
    }
    arguments.extend(names.iter().map(String::as_str));
    let stderr = lab.path("abd.stderr");
    let log = std::fs::File::create(&stderr).expect("a file");
    let mut child = lab.command(&arguments).stderr(log).spawn().expect("abd starts");
    let lines = read(&mut child);
    let mut running = Running {
        lab,
        model,
        plan,
        child,
        log: Vec::new(),
        next,
        events: Vec::new(),
        killed: false,
        struck: false,
        stopped: false,
        hosts,
    };
    let status = running.follow(&lines)?;
    running.settle();
    running.read_log();
    Ok(Ended {
        code: status.code().unwrap_or(-1),
        events: std::mem::take(&mut running.events),
        killed: running.killed,
        struck: running.struck,
        log: std::mem::take(&mut running.log),
        stderr: std::fs::read_to_string(&stderr).unwrap_or_default(),
    })
}

/// Standard output, line by line, from a thread of its own: a run that prints nothing must not be waited for.
fn read(child: &mut Child) -> Receiver<Result<Value, String>> {
    let (sender, lines) = channel();
    let output = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    std::thread::spawn(move || {
        for line in output.lines() {
            // A pipe that breaks ends with the process.
            let Ok(line) = line else { return };
            let event =
                serde_json::from_str(&line).map_err(|error| format!("not a JSON line: {line:?}: {error}"));
            if sender.send(event).is_err() {
                return;
            }
        }
    });
    lines
}

impl Running<'_> {
    fn follow(&mut self, lines: &Receiver<Result<Value, String>>) -> Result<ExitStatus, String> {
        let by = Instant::now() + RUN_LIMIT;
        loop {
            match lines.recv_timeout(LOOK) {
                Ok(event) => {
                    let event = event?;
                    self.events.push(event.clone());
                    self.hear(&event);
                }
                Err(RecvTimeoutError::Timeout) => self.look(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if Instant::now() >= by {
                return Err(format!("the run does not end; the last it said: {:#?}", self.events.last()));
            }
        }
        self.child.wait().map_err(|error| format!("wait for abd: {error}"))
    }

    /// It printed something.
    fn hear(&mut self, event: &Value) {
        let line = self.events.len() as u64;
        match &self.plan.trouble {
            Trouble::Kill(at) if *at == line => self.kill(),
            Trouble::Interrupt(at) if *at == line => self.interrupt(),
            Trouble::Sessions(at) if *at == line => self.strike("/lab/sessions/drop"),
            Trouble::Master(at) if *at == line => self.strike("/lab/master"),
            Trouble::HostDown(at, host, down_ms) if *at == line => {
                let uuid = &self.hosts[*host];
                self.strike(&format!("/lab/host/{uuid}/reboot?down_ms={down_ms}"));
            }
            Trouble::Delegate if !self.struck && is_step(event, "delegate works") => {
                self.kill_delegate(event)
            }
            _ => {}
        }
        // From here on the job makes no other snapshot.
        if let (Some(seed), true) = (self.plan.busy, is_step(event, "start delegate")) {
            let name = event["subject"].as_str().unwrap_or_default();
            if let Some(vm) = self.model.by_name(name) {
                self.model.write_somewhere(vm, seed ^ vm as u64);
            }
        }
    }

    /// It printed nothing for a while.
    fn look(&mut self) {
        if matches!(self.plan.trouble, Trouble::Frozen(_)) && !self.killed {
            let seen = self.log.len();
            self.read_log();
            if self.log[seen..].iter().any(|entry| entry["kind"] == "frozen") {
                self.kill();
            }
        }
    }

    /// Takes in what the simulator logged since the last look.
    fn read_log(&mut self) {
        let entries = self.model.admin().log_since(*self.next);
        if let Some(last) = entries.last().and_then(|entry| entry["seq"].as_u64()) {
            *self.next = last + 1;
        }
        self.log.extend(entries);
    }

    fn strike(&mut self, path: &str) {
        self.model.admin().lab("POST", path, None);
        self.struck = true;
    }

    fn kill(&mut self) {
        // It may have ended in this moment.
        self.killed = self.child.kill().is_ok();
        self.struck = true;
    }

    fn interrupt(&mut self) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", self.child.id())]).status();
        self.struck = sent.is_ok_and(|status| status.success());
    }

    fn kill_delegate(&mut self, event: &Value) {
        let name = format!("abd-{}", event["job"].as_str().unwrap_or_default());
        let inventory = self.lab.inventory();
        let vms = inventory["VM"].as_array().expect("a list");
        let found = vms.iter().find(|vm| vm["name_label"] == name.as_str());
        if let Some(uuid) = found.and_then(|vm| vm["uuid"].as_str()) {
            // It may have powered itself off in this moment: then there is nothing to kill.
            self.struck =
                self.model.admin().try_lab("POST", &format!("/lab/guest/{uuid}/kill"), None).is_ok();
        }
    }

    /// The pool is as it was before, and what is left of a planned fault must not strike later.
    fn settle(&mut self) {
        match self.plan.trouble {
            Trouble::Master(_) if self.struck => self.strike(&format!("/lab/master?host={}", self.hosts[0])),
            Trouble::HostDown(_, host, _) if self.struck => {
                self.strike(&format!("/lab/host/{}/boot", self.hosts[host]));
                let inventory = self.lab.inventory();
                self.model.notice_outage(&inventory);
            }
            _ => {}
        }
        if let Trouble::Calls(..) | Trouble::Frozen(_) = self.plan.trouble {
            let left = self.model.admin().lab("GET", "/lab/faults", None);
            let untouched = left["planned"].as_array().is_some_and(|planned| {
                planned.iter().any(|fault| fault["seen"].as_u64() < fault["nth"].as_u64())
            });
            self.struck |= !untouched;
            self.model.admin().lab("POST", "/lab/faults", Some(&json!({"clear": true})));
        }
    }
}

fn is_step(event: &Value, step: &str) -> bool {
    event["event"] == "step" && event["step"].as_str().is_some_and(|found| found.starts_with(step))
}

/// A test that failed must not leave its run behind.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Nothing is left to do about it.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
