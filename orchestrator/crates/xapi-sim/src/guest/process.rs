//! Starting guests so that they cannot outlive the simulator.
//!
//! Owns one thread that starts every guest. `setpriv --pdeathsig KILL` asks the kernel to kill QEMU when its
//! parent is gone, and to the kernel the parent is the thread that forked: a worker of an async
//! runtime can end long before the process does, this thread cannot. So QEMU dies with the simulator,
//! even when that is killed with SIGKILL. A simulator that dies in the few milliseconds before
//! `setpriv` has asked leaves no QEMU either: QEMU ends when it cannot reach the control socket. A delegate that is a
//! process asks the kernel itself.

use std::io;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError, mpsc};

use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Requests that wait for the thread; starting takes milliseconds.
const REQUESTS_MAX: usize = 16;

struct Request {
    command: Command,
    runtime: Handle,
    started: oneshot::Sender<io::Result<Child>>,
}

static STARTER: Mutex<Option<mpsc::SyncSender<Request>>> = Mutex::new(None);

/// Starts `command` from the thread that lives as long as the process.
pub(super) async fn spawn(command: Command) -> io::Result<Child> {
    let (started, outcome) = oneshot::channel();
    let request = Request { command, runtime: Handle::current(), started };
    let lost = || io::Error::other("the thread that starts guests is gone");
    starter()?.send(request).map_err(|_| lost())?;
    outcome.await.map_err(|_| lost())?
}

fn starter() -> io::Result<mpsc::SyncSender<Request>> {
    let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(starter) = starter.as_ref() {
        return Ok(starter.clone());
    }
    let (sender, requests) = mpsc::sync_channel::<Request>(REQUESTS_MAX);
    std::thread::Builder::new().name("guest-starter".to_owned()).spawn(move || {
        for mut request in requests {
            // The child is waited for by the runtime that asked.
            let _guard = request.runtime.enter();
            let child = request.command.spawn();
            // The asker is gone: the child is dropped, and dropping kills it.
            let _ = request.started.send(child);
        }
    })?;
    *starter = Some(sender.clone());
    Ok(sender)
}

/// How the process of a program ended, in words.
pub(super) fn describe(program: &str, status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => format!("{program} ended"),
        (Some(code), _) => format!("{program} failed with exit code {code}"),
        (None, Some(9)) => format!("{program} was killed (signal 9)"),
        (None, Some(signal)) => format!("{program} died of signal {signal}"),
        (None, None) => format!("{program} ended in an unknown way"),
    }
}
