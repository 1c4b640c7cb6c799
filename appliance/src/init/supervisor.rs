//! PID 1: starts the worker, watches it, reaps, has the last word, powers off.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::panic;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::set_cad_enabled;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use super::lifeline::{DEFAULT_LIMIT, Frame, Frames};
use super::{VERSION, WORKER_NAME, mounts, power};
use crate::platform::xenstore::{self, transport};
use crate::platform::{State, report::write_final_word};
use crate::platform::{clock, console, memory};
use crate::sys;

/// Tells the worker when user space began. Milliseconds since the kernel's start.
pub(super) const BOOT_MS: &str = "ABD_BOOT_MS";

/// Signals that end the machine: a power-off helper, Ctrl-Alt-Del, and what others use for the same.
const SHUTDOWN_SIGNALS: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
/// How often a hardware watchdog is fed. Those that hypervisors offer bite after 30 s or more.
const WATCHDOG_FEED: Duration = Duration::from_secs(5);
/// How long a killed worker may take to be gone; it may be stuck in a disk request.
const KILL_WAIT: Duration = Duration::from_secs(3);
/// How long the last words may take altogether.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(5);
/// PID 1's first request number, far from the worker's: see [`xenstore::Options`].
const FIRST_REQUEST_ID: u32 = 1 << 31;

/// How the worker's time ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Exited(i32),
    Killed(Signal),
    /// Silent for longer than this.
    Silent(Duration),
    /// Somebody asked for a shutdown.
    Asked(Signal),
}

/// What is known of the worker.
struct Life {
    limit: Duration,
    until: Instant,
    error: Option<(String, String)>,
    done: bool,
    final_word: bool,
}

/// What PID 1 has to leave in XenStore.
#[derive(Debug, Clone, PartialEq, Eq)]
enum LastWords {
    Done,
    /// Code, message.
    Failed(String, String),
}

impl Life {
    fn new(now: Instant) -> Life {
        Life { limit: DEFAULT_LIMIT, until: now + DEFAULT_LIMIT, error: None, done: false, final_word: false }
    }

    fn apply(&mut self, frame: Frame, now: Instant) {
        match frame {
            Frame::Tick => {}
            Frame::Limit(limit) => self.limit = limit,
            // The first reason is the cause; later ones follow from it.
            Frame::Error(code, message) => drop(self.error.get_or_insert((code, message))),
            Frame::Done => self.done = true,
            Frame::FinalWord => self.final_word = true,
        }
        self.until = now + self.limit;
    }

    /// `None` if the worker said everything itself.
    fn last_words(&self, end: &End, out_of_memory: bool) -> Option<LastWords> {
        if self.final_word {
            return None;
        }
        if let Some((code, message)) = &self.error {
            return Some(LastWords::Failed(code.clone(), message.clone()));
        }
        if self.done {
            return Some(LastWords::Done);
        }
        let (code, message) = match end {
            End::Killed(Signal::SIGKILL) if out_of_memory => {
                ("out-of-memory", "the appliance ran out of memory: give its VM more".to_owned())
            }
            End::Killed(signal) => ("worker-died", format!("the worker was killed by signal {signal}")),
            End::Exited(status) => {
                ("worker-died", format!("the worker ended with status {status} and no reason"))
            }
            End::Silent(limit) => {
                let seconds = limit.as_secs();
                ("watchdog", format!("no progress for {seconds} s: the appliance stopped itself"))
            }
            End::Asked(_) => {
                ("shutdown", "the appliance was asked to shut down before the job was done".to_owned())
            }
        };
        Some(LastWords::Failed(code.to_owned(), message))
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Mounts(#[from] mounts::Error),
    #[error("set up signals and pipe")]
    Setup(#[source] Errno),
    #[error("start the worker")]
    Spawn(#[source] std::io::Error),
}

/// Runs the machine and powers it off. Does not return; the type is what `main` wants.
pub(super) fn run() -> ExitCode {
    sys::power_off_on_fatal_signals();
    panic::set_hook(Box::new(|what| {
        console::line(&format!("PID 1 {what}").replace('\n', " "));
        power::off("PID 1 panicked")
    }));
    let boot = clock::uptime();
    let error = match supervise(boot) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    power::off(&crate::chain(&error))
}

fn supervise(boot: Duration) -> Result<Infallible, Error> {
    mounts::prepare()?;
    console::open_active();
    console::line(&format!("backup appliance {VERSION}, user space after {} ms", boot.as_millis()));
    // The last process to be killed when memory runs out. Optional: the kernel never kills PID 1 first anyway.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    // Ctrl-Alt-Del becomes a signal to us. Without the right to say so it restarts the VM, which destroys it too.
    let _ = set_cad_enabled(false);
    let signals = take_signals().map_err(Error::Setup)?;
    let (life_end, worker_end) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Error::Setup)?;
    let worker = start_worker(worker_end, boot).map_err(Error::Spawn)?;
    let mut life = Life::new(Instant::now());
    // Never closed, so it stays armed: it ends the machine should the power-off hang.
    let mut watchdog = open_watchdog();
    let end = watch(worker, &signals, File::from(life_end), &mut watchdog, &mut life);
    if matches!(end, End::Silent(_) | End::Asked(_)) {
        kill_worker(worker);
    }
    console::line(&describe(&end));
    if let Some(words) = life.last_words(&end, memory::ran_out()) {
        if let LastWords::Failed(code, message) = &words {
            console::failure(code, message);
        }
        leave(words);
    }
    power::off("the job has ended")
}

fn take_signals() -> nix::Result<SignalFd> {
    let mut wanted = SigSet::from_iter(SHUTDOWN_SIGNALS);
    wanted.add(Signal::SIGCHLD);
    wanted.thread_block()?;
    SignalFd::with_flags(&wanted, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

fn start_worker(worker_end: OwnedFd, boot: Duration) -> std::io::Result<Pid> {
    let mut command = Command::new("/proc/self/exe");
    // Standard input is the way to hand over a descriptor without unsafe code; the worker reads nothing.
    command
        .arg0(WORKER_NAME)
        .stdin(Stdio::from(worker_end))
        .env_clear()
        .env(BOOT_MS, boot.as_millis().to_string())
        // One heap for all threads: the C library would keep freed memory apart for each of them.
        .env("MALLOC_ARENA_MAX", "1");
    let child = command.spawn()?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// Waits for the end of the worker, of its time, or of the machine.
fn watch(
    worker: Pid,
    signals: &SignalFd,
    mut life_end: File,
    watchdog: &mut Option<File>,
    life: &mut Life,
) -> End {
    let mut frames = Frames::default();
    let mut fed = Instant::now();
    let mut pipe_open = true;
    loop {
        let now = Instant::now();
        if now >= life.until {
            return End::Silent(life.limit);
        }
        let mut wait = life.until - now;
        if let Some(device) = watchdog {
            if fed.elapsed() >= WATCHDOG_FEED {
                // A watchdog that takes no food bites: that powers off, too.
                let _ = device.write_all(b"\0");
                fed = now;
            }
            wait = wait.min(WATCHDOG_FEED);
        }
        sleep_until_something_happens(signals, pipe_open.then_some(&life_end), wait);
        // Signals first, then the look at dead processes: a death after that look leaves its signal for the next round.
        let asked = read_shutdown_signal(signals);
        if pipe_open {
            pipe_open = read_frames(&mut life_end, &mut frames, life);
        }
        if let Some(end) = reap(worker) {
            // What the worker wrote last may have arrived between the two looks.
            read_frames(&mut life_end, &mut frames, life);
            return end;
        }
        if let Some(signal) = asked {
            return End::Asked(signal);
        }
    }
}

fn read_shutdown_signal(signals: &SignalFd) -> Option<Signal> {
    let mut asked = None;
    while let Ok(Some(seen)) = signals.read_signal() {
        let signal = i32::try_from(seen.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
        asked = asked.or(signal.filter(|s| SHUTDOWN_SIGNALS.contains(s)));
    }
    asked
}

fn sleep_until_something_happens(signals: &SignalFd, pipe: Option<&File>, wait: Duration) {
    // A millisecond more, so that the time has really passed when poll returns.
    let timeout = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    fds.extend(pipe.map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
    if poll(&mut fds, timeout).is_err() {
        // Nothing sensible can fail here; if it does, do not turn the loop into a busy one.
        thread::sleep(Duration::from_millis(100));
    }
}

/// False once the worker's end is closed.
fn read_frames(life_end: &mut File, frames: &mut Frames, life: &mut Life) -> bool {
    let mut buffer = [0u8; 4096];
    loop {
        match life_end.read(&mut buffer) {
            Ok(0) => return false,
            Ok(size) => frames.push(&buffer[..size]),
            // Nothing more for now.
            Err(_) => return true,
        }
        while let Some(frame) = frames.next_frame() {
            life.apply(frame, Instant::now());
        }
    }
}

/// Collects every dead process; tells how `worker` ended if it is among them.
fn reap(worker: Pid) -> Option<End> {
    let mut end = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == worker => end = Some(End::Exited(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == worker => end = Some(End::Killed(signal)),
            Ok(WaitStatus::StillAlive) | Err(_) => return end,
            Ok(_) => {}
        }
    }
}

fn kill_worker(worker: Pid) {
    // Fails only if it is gone already.
    let _ = kill(worker, Signal::SIGKILL);
    let until = Instant::now() + KILL_WAIT;
    while reap(worker).is_none() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
    }
}

fn open_watchdog() -> Option<File> {
    let path = Path::new("/dev/watchdog");
    if !path.exists() {
        return None;
    }
    let device = OpenOptions::new().write(true).open(path);
    let text = if device.is_ok() { "watchdog device armed" } else { "watchdog device cannot be opened" };
    console::line(text);
    device.ok()
}

fn describe(end: &End) -> String {
    match end {
        End::Exited(status) => format!("worker ended with status {status}"),
        End::Killed(signal) => format!("worker killed by {signal}"),
        End::Silent(limit) => format!("no sign of life from the worker for {} s, killed it", limit.as_secs()),
        End::Asked(signal) => format!("asked to shut down ({signal})"),
    }
}

/// Writes state, code and message in the worker's place, in a thread: a hung XenStore must not hold up the end.
fn leave(words: LastWords) {
    let (done, finished) = mpsc::channel();
    let body = move || {
        let timeout = Duration::from_secs(1);
        let options = xenstore::Options { timeout, first_request_id: FIRST_REQUEST_ID, ..Default::default() };
        let written =
            transport::open(Path::new("/"), Duration::from_secs(2), options).and_then(|(store, _)| {
                match &words {
                    LastWords::Done => write_final_word(&store, State::Finished, None),
                    LastWords::Failed(code, message) => {
                        write_final_word(&store, State::Failed, Some((code, message)))
                    }
                }
            });
        if let Err(error) = written {
            console::line(&format!("the outcome is not in XenStore: {}", crate::chain(&error)));
        }
        // The receiver waits or has given up.
        let _ = done.send(());
    };
    let started = thread::Builder::new().name("last-words".to_owned()).spawn(body);
    if started.is_ok() {
        // Lost on a time-out: the outcome in XenStore. It stands on the console.
        let _ = finished.recv_timeout(LAST_WORDS_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life() -> Life {
        Life::new(Instant::now())
    }

    #[test]
    fn every_frame_is_a_sign_of_life() {
        let now = Instant::now();
        let mut life = Life::new(now);
        assert_eq!(life.until, now + DEFAULT_LIMIT);
        let later = now + Duration::from_secs(10);
        life.apply(Frame::Tick, later);
        assert_eq!(life.until, later + DEFAULT_LIMIT);
        life.apply(Frame::Limit(Duration::from_secs(7)), later);
        assert_eq!(life.until, later + Duration::from_secs(7));
    }

    #[test]
    fn a_worker_that_reported_needs_no_last_words() {
        let mut life = life();
        life.apply(Frame::Error("disk-size".to_owned(), "x".to_owned()), Instant::now());
        life.apply(Frame::FinalWord, Instant::now());
        assert_eq!(life.last_words(&End::Exited(1), false), None);
    }

    fn failed(code: &str, message: &str) -> LastWords {
        LastWords::Failed(code.to_owned(), message.to_owned())
    }

    #[test]
    fn what_the_worker_could_not_write_is_passed_on_the_first_reason_wins() {
        let mut life = life();
        life.apply(Frame::Done, Instant::now());
        assert_eq!(life.last_words(&End::Exited(0), false), Some(LastWords::Done));
        life.apply(Frame::Error("panic".to_owned(), "worker panicked at a.rs:1".to_owned()), Instant::now());
        life.apply(Frame::Error("late".to_owned(), "y".to_owned()), Instant::now());
        let words = life.last_words(&End::Killed(Signal::SIGABRT), false);
        assert_eq!(words, Some(failed("panic", "worker panicked at a.rs:1")));
    }

    #[test]
    fn every_silent_end_has_its_own_words() {
        let life = life();
        let code = |end, oom| match life.last_words(&end, oom) {
            Some(LastWords::Failed(code, _)) => {
                assert!(wire::advice(&code).is_some(), "{code}");
                code
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(code(End::Killed(Signal::SIGKILL), true), "out-of-memory");
        assert_eq!(code(End::Killed(Signal::SIGKILL), false), "worker-died");
        assert_eq!(code(End::Killed(Signal::SIGSEGV), true), "worker-died");
        assert_eq!(code(End::Exited(0), false), "worker-died");
        assert_eq!(code(End::Asked(Signal::SIGTERM), false), "shutdown");
        let words = life.last_words(&End::Silent(Duration::from_secs(90)), false);
        assert_eq!(words, Some(failed("watchdog", "no progress for 90 s: the appliance stopped itself")));
    }
}
