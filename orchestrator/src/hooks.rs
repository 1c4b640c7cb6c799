//! Hooks: commands that an admin wants run on this machine around a run or a job.
//!
//! A hook runs in a process group of its own, so that Ctrl-C at a terminal does not reach it and the time limit
//! reaches everything it started. Its output is kept, bounded, for the log and for the message about a failure.
//! Promises: no hook outlives its time limit, and none sees a pool's password in its environment.

use crate::error::{Error, Kind, Result};
use crate::spec::{Hook, HookCommand};
use rustix::process::{Pid, Signal, kill_process_group};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Output that is kept: the end of it, which says what went wrong.
const MAX_OUTPUT: usize = 16 << 10;
/// Output that is put into the message of an error: a few lines.
const MAX_SHOWN: usize = 600;
/// How long a hook has between being asked to end and being killed.
const GRACE: Duration = Duration::from_secs(5);
/// How long the output of a hook that has ended is waited for: a program it left running may keep it open for ever.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Variables of ours that hooks keep: with them `abd` in a hook works on the same state.
const KEPT: [&str; 2] = ["ABD_STATE_DIR", "ABD_STORE"];

/// What a hook is told of, beside what this process's own environment holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(Vec<(&'static str, String)>);

impl Environment {
    /// Adds a variable. Where it was added before, the later value counts.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        // A variable cannot hold a zero byte, and names of VMs come from outside.
        self.0.push((name, value.into().replace('\0', " ")));
        self
    }
}

/// Runs a hook to its end or its time limit, and gives back the end of its output.
///
/// # Errors
/// [`Kind::Failed`] saying which hook, how it ended and the end of what it printed.
pub async fn run(hook: &Hook, what: &str, environment: &Environment) -> Result<String> {
    let shown = command_text(&hook.command);
    let failed = |how: String| Error::new(Kind::Failed, format!("{what} hook `{shown}` {how}"));
    let mut child = command(hook, environment).spawn().map_err(|error| {
        failed("cannot be started".into())
            .because(error)
            .remedy("give the program's whole path, and check that it may be executed")
    })?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let output = Arc::new(Mutex::new(Tail::default()));
    let readers = [
        child.stdout.take().map(|pipe| tokio::spawn(read(pipe, output.clone()))),
        child.stderr.take().map(|pipe| tokio::spawn(read(pipe, output.clone()))),
    ];
    let ended = match timeout(hook.timeout, child.wait()).await {
        Ok(status) => status.map(Some),
        Err(_) => end_group(&mut child, group).await.map(|()| None),
    };
    drain(readers).await;
    let output = output.lock().unwrap_or_else(PoisonError::into_inner).text();
    tracing::info!(hook = what, "{output}");
    let how = match ended {
        Ok(Some(status)) if status.success() => return Ok(output),
        Ok(Some(status)) => ended_text(status),
        Ok(None) => format!("took longer than {} s and was stopped", hook.timeout.as_secs()),
        Err(error) => return Err(failed("cannot be waited for".into()).because(error)),
    };
    let said = last_part(&output);
    Err(failed(if said.is_empty() { how } else { format!("{how}; it printed: {said}") }))
}

fn command(hook: &Hook, environment: &Environment) -> Command {
    let mut command = match &hook.command {
        HookCommand::Program(words) => {
            let mut words = words.iter();
            let mut command = Command::new(words.next().map_or("", String::as_str));
            command.args(words);
            command
        }
        HookCommand::Shell(line) => {
            let mut command = Command::new("/bin/sh");
            command.arg("-c").arg(line);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_withheld) {
            command.env_remove(name);
        }
    }
    for (name, value) in &environment.0 {
        command.env(name, value);
    }
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Whether a variable stays with us: it may hold a password, or lead to one.
fn is_withheld(name: &str) -> bool {
    name == "CREDENTIALS_DIRECTORY" || (name.starts_with("ABD_") && !KEPT.contains(&name))
}

/// Asks everything that the hook started to end, and kills what does not.
async fn end_group(child: &mut Child, group: Option<Pid>) -> std::io::Result<()> {
    let signal = |signal| {
        // A group that has ended meanwhile is what is wanted.
        group.map(|group| kill_process_group(group, signal))
    };
    signal(Signal::TERM);
    let waited = timeout(GRACE, child.wait()).await;
    // Also where the hook itself has ended: what it started may not have.
    signal(Signal::KILL);
    match waited {
        Ok(status) => status.map(|_| ()),
        Err(_) => child.wait().await.map(|_| ()),
    }
}

async fn drain(readers: [Option<JoinHandle<()>>; 2]) {
    for mut reader in readers.into_iter().flatten() {
        if timeout(DRAIN_LIMIT, &mut reader).await.is_err() {
            reader.abort();
        }
    }
}

async fn read(mut pipe: impl AsyncRead + Unpin, output: Arc<Mutex<Tail>>) {
    let mut buffer = [0; 4096];
    // An error of the pipe ends the output; how the hook ended is told by its status.
    while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
        output.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..count]);
    }
}

/// The last [`MAX_OUTPUT`] bytes of a stream.
#[derive(Debug, Default)]
struct Tail {
    bytes: Vec<u8>,
    cut: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let over = self.bytes.len().saturating_sub(MAX_OUTPUT);
        if over > 0 {
            self.bytes.drain(..over);
            self.cut = true;
        }
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.trim();
        if self.cut { format!("... {text}") } else { text.to_owned() }
    }
}

/// The end of a text, on one line.
fn last_part(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | ");
    let over = line.chars().count().saturating_sub(MAX_SHOWN);
    if over == 0 { line } else { format!("... {}", line.chars().skip(over).collect::<String>()) }
}

fn ended_text(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with status {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended in an unknown way".into(),
    }
}

fn command_text(command: &HookCommand) -> String {
    match command {
        HookCommand::Program(words) => words.join(" "),
        HookCommand::Shell(line) => line.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::HookFailure;

    fn shell(line: &str, timeout: Duration) -> Hook {
        Hook { command: HookCommand::Shell(line.into()), timeout, on_failure: HookFailure::Abort }
    }

    fn hook(line: &str) -> Hook {
        shell(line, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn a_hook_sees_its_variables_and_its_output_is_kept() {
        let environment = Environment::default().with("ABD_VM", "web 01").with("ABD_RESULT", "done");
        let output =
            run(&hook("echo \"$ABD_VM $ABD_RESULT\"; echo err >&2"), "after_job", &environment).await;
        let output = output.expect("it ends well");
        assert!(output.contains("web 01 done") && output.contains("err"), "{output}");
    }

    #[tokio::test]
    async fn a_program_gets_its_arguments_as_they_are() {
        let command = HookCommand::Program(vec!["printf".into(), "%s".into(), "a  b; $HOME".into()]);
        let output = run(&Hook { command, ..hook("") }, "before_run", &Environment::default()).await;
        assert_eq!(output.expect("it ends well"), "a  b; $HOME");
    }

    #[tokio::test]
    async fn a_failed_hook_says_how_it_ended_and_what_it_printed() {
        let error = run(&hook("echo no space; exit 3"), "before_job", &Environment::default()).await;
        let text = error.expect_err("status 3").chain();
        assert!(text.contains("before_job hook"), "{text}");
        assert!(text.contains("status 3") && text.contains("no space"), "{text}");
        let missing = Hook { command: HookCommand::Program(vec!["/nonexistent/x".into()]), ..hook("") };
        let error = run(&missing, "before_job", &Environment::default()).await.expect_err("missing");
        assert!(error.chain().contains("cannot be started"), "{}", error.chain());
    }

    /// On paused time every wait is over as soon as nothing else happens.
    #[tokio::test(start_paused = true)]
    async fn a_hook_that_takes_too_long_is_stopped_with_all_that_it_started() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("pid");
        let line = format!(
            "trap '' TERM; sleep 1000 & echo $! > '{0}.new'; mv '{0}.new' '{0}'; wait",
            file.display()
        );
        let hook = shell(&line, Duration::from_secs(600));
        let running = tokio::spawn(async move { run(&hook, "before_job", &Environment::default()).await });
        // Real time passes here, and none of the runtime's.
        let grandchild = loop {
            match std::fs::read_to_string(&file) {
                Ok(text) => break text.trim().to_owned(),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        let error = running.await.expect("no panic").expect_err("stopped");
        assert!(error.chain().contains("longer than 600 s"), "{}", error.chain());
        // Its new parent may not have collected it yet: then it is a zombie.
        let ended = || match std::fs::read_to_string(format!("/proc/{grandchild}/stat")) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            Err(_) => true,
        };
        while !ended() {
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_program_left_running_does_not_hold_the_hook_back() {
        let output = run(&hook("sleep 30 & echo started"), "after_run", &Environment::default()).await;
        assert_eq!(output.expect("it ends well"), "started");
    }

    #[tokio::test]
    async fn output_is_bounded_and_its_end_is_kept() {
        let output =
            run(&hook("yes | head -c 200000; echo end"), "x", &Environment::default()).await.expect("ends");
        assert!(output.len() <= MAX_OUTPUT + 4 && output.ends_with("end"), "{}", output.len());
        assert!(last_part(&output).chars().count() <= MAX_SHOWN + 4);
    }

    #[test]
    fn what_may_hold_a_password_is_withheld() {
        for name in ["ABD_PASSWORD", "ABD_STORE_KEY", "CREDENTIALS_DIRECTORY"] {
            assert!(is_withheld(name), "{name}");
        }
        for name in ["ABD_STORE", "ABD_STATE_DIR", "PATH", "HOME"] {
            assert!(!is_withheld(name), "{name}");
        }
    }
}
